"""Which streams are moved to their public endpoints, and what of a description changes for that."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.sip import media
from nattools.sip.sdp import SessionDescription
from nattools.sip.uri import Span

RTP, RTCP = "192.168.0.111:9000", "192.168.0.111:9001"
PUBLIC, PUBLIC_RTCP = "140.113.131.89:13016", "140.113.131.89:13017"
HEAD = "v=0\r\no=alice 77 78 IN IP4 192.168.0.111\r\ns=-\r\n"


def spliced(data: bytes, edits: list[media.Edit]) -> bytes:
    """`data` with its edits; those at one place in their order."""
    pieces, position = [], 0
    for (start, end), replacement in sorted(edits, key=lambda edit: edit[0]):
        assert start >= position, "edits do not overlap"
        pieces += [data[position:start], replacement]
        position = end
    return b"".join([*pieces, data[position:]])


def moved(text: str, publics: dict[str, str]) -> str:
    """The lines of `text` behind `HEAD`, moved; the lines of HEAD never change."""
    data = (HEAD + text.replace("\n", "\r\n")).encode()
    known = {Endpoint.parse(local): Endpoint.parse(public) for local, public in publics.items()}
    description = SessionDescription.parse(data)
    edits = media.edits(description, media.moves(description, known.get))
    result = spliced(data, edits).decode()
    again = SessionDescription.parse(result.encode())
    assert not media.edits(again, media.moves(again, lambda local: local)), (
        "what is written is not written again"
    )
    assert result.startswith(HEAD)
    return result.removeprefix(HEAD).replace("\r\n", "\n")


MOVES = {
    "a session's c= and an m=": (
        "c=IN IP4 192.168.0.111\nt=0 0\nm=audio 9000 RTP/AVP 0 101\na=sendrecv\n",
        {RTP: PUBLIC, RTCP: PUBLIC_RTCP},
        "c=IN IP4 140.113.131.89\nt=0 0\nm=audio 13016 RTP/AVP 0 101\na=sendrecv\n",
    ),
    "a stream's own c=": (
        "t=0 0\nm=audio 9000 RTP/AVP 0\nc=IN IP4 192.168.0.111\n",
        {RTP: PUBLIC},
        "t=0 0\nm=audio 13016 RTP/AVP 0\nc=IN IP4 140.113.131.89\n",
    ),
    "both levels": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nc=IN IP4 192.168.0.111\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\nc=IN IP4 140.113.131.89\n",
    ),
    "several c= of one stream, and of the session": (
        "c=IN IP4 192.168.0.111\nc=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n"
        "c=IN IP4 192.168.0.111\nc=IN IP4 192.168.0.5\nc=IN IP4 192.168.0.111\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nc=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\n"
        "c=IN IP4 140.113.131.89\nc=IN IP4 192.168.0.5\nc=IN IP4 140.113.131.89\n",
    ),
    "odd spacing stays": (
        "c=IN  IP4\t192.168.0.111 \nm=audio  9000\tRTP/AVP 0 \n",
        {RTP: PUBLIC},
        "c=IN  IP4\t140.113.131.89 \nm=audio  13016\tRTP/AVP 0 \n",
    ),
    "the number of ports stays": (
        "c=IN IP4 192.168.0.111\nm=audio 9000/2 RTP/AVP 0\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016/2 RTP/AVP 0\n",
    ),
    "the same port outside": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n",
        {RTP: "140.113.131.89:9000"},
        "c=IN IP4 140.113.131.89\nm=audio 9000 RTP/AVP 0\n",
    ),
    "the same address outside": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n",
        {RTP: "192.168.0.111:9002"},
        "c=IN IP4 192.168.0.111\nm=audio 9002 RTP/AVP 0\n",
    ),
    "several streams at one address": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nm=video 9002 RTP/AVP 31\n",
        {RTP: PUBLIC, "192.168.0.111:9002": "140.113.131.89:13018"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\nm=video 13018 RTP/AVP 31\n",
    ),
    "several streams at several addresses: the first has the session's": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nm=video 9002 RTP/AVP 31\ni=a title\nb=AS:64\n",
        {RTP: PUBLIC, "192.168.0.111:9002": "203.0.113.9:13018"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\n"
        "m=video 13018 RTP/AVP 31\ni=a title\nc=IN IP4 203.0.113.9\nb=AS:64\n",
    ),
    "a stream that stays keeps the session's c=": (
        "c=IN IP4 192.168.0.111\nm=message 2855 TCP/MSRP *\nm=audio 9000 RTP/AVP 0\n",
        {RTP: PUBLIC},
        "c=IN IP4 192.168.0.111\nm=message 2855 TCP/MSRP *\n"
        "m=audio 13016 RTP/AVP 0\nc=IN IP4 140.113.131.89\n",
    ),
    "a refused one does not": (
        "c=IN IP4 192.168.0.111\nm=video 0 RTP/AVP 31\nm=audio 9000 RTP/AVP 0\n",
        {RTP: PUBLIC, "192.168.0.111:0": "203.0.113.9:1"},
        "c=IN IP4 140.113.131.89\nm=video 0 RTP/AVP 31\nm=audio 13016 RTP/AVP 0\n",
    ),
    "nor does one with a c= of its own": (
        "c=IN IP4 192.168.0.111\nm=message 2855 TCP/MSRP *\nc=IN IP4 192.168.0.7\nm=audio 9000 RTP/AVP 0\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=message 2855 TCP/MSRP *\nc=IN IP4 192.168.0.7\nm=audio 13016 RTP/AVP 0\n",
    ),
    "a session's c= of another address stays": (
        "c=IN IP4 10.0.0.1\nm=audio 9000 RTP/AVP 0\nc=IN IP4 192.168.0.111\n",
        {RTP: PUBLIC},
        "c=IN IP4 10.0.0.1\nm=audio 13016 RTP/AVP 0\nc=IN IP4 140.113.131.89\n",
    ),
    "IPv6": (
        "c=IN IP6 FD00::1\nm=audio 9000 RTP/AVP 0\n",
        {"[fd00::1]:9000": "[2001:db8::1]:13016"},
        "c=IN IP6 2001:db8::1\nm=audio 13016 RTP/AVP 0\n",
    ),
    "from one family to the other": (
        "c=IN IP6 fd00::1\nm=audio 9000 RTP/AVP 0\na=rtcp:9005 IN IP6 fd00::1\n",
        {"[fd00::1]:9000": PUBLIC, "[fd00::1]:9005": "140.113.131.89:13018"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:13018 IN IP4 140.113.131.89\n",
    ),
    "who only sends or receives, or neither": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=inactive\nm=video 9000 RTP/AVP 31\na=recvonly\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=inactive\n"
        "m=video 13016 RTP/AVP 31\na=recvonly\n",
    ),
    "fax, data channels and encrypted media": (
        "c=IN IP4 192.168.0.111\nm=image 9000 udptl t38\nm=application 9000 UDP/DTLS/SCTP x\n"
        "m=audio 9000 RTP/SAVP 0\nm=audio 9000 UDP/TLS/RTP/SAVPF 0\na=setup:actpass\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=image 13016 udptl t38\nm=application 13016 UDP/DTLS/SCTP x\n"
        "m=audio 13016 RTP/SAVP 0\nm=audio 13016 UDP/TLS/RTP/SAVPF 0\na=setup:actpass\n",
    ),
    "a=rtcp with a port": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp:9001\n",
        {RTP: PUBLIC, RTCP: "140.113.131.89:40000"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:40000\n",
    ),
    "a=rtcp with a port that needs an address now": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp:9001\n",
        {RTP: PUBLIC, RTCP: "203.0.113.9:9001"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:9001 IN IP4 203.0.113.9\n",
    ),
    "a=rtcp with an address": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp:9001 IN IP4 192.168.0.111\n",
        {RTP: PUBLIC, RTCP: PUBLIC_RTCP},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:13017 IN IP4 140.113.131.89\n",
    ),
    "a=rtcp of which nothing is known": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp:9001 IN IP4 192.168.0.111\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:9001 IN IP4 192.168.0.111\n",
    ),
    "RTCP that is not one above any more": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nb=AS:64\nk=prompt\na=ptime:20\n",
        {RTP: PUBLIC, RTCP: "140.113.131.89:40000"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\nb=AS:64\nk=prompt\na=rtcp:40000\na=ptime:20\n",
    ),
    "RTCP elsewhere, and a c= more, at one place": (
        "c=IN IP4 192.168.0.111\nm=image 9 TCP/x y\nm=audio 9000 RTP/AVP 0",
        {RTP: PUBLIC, RTCP: "203.0.113.9:40000"},
        "c=IN IP4 192.168.0.111\nm=image 9 TCP/x y\nm=audio 13016 RTP/AVP 0\nc=IN IP4 140.113.131.89\n"
        "a=rtcp:40000 IN IP4 203.0.113.9",
    ),
    "RTCP on the port of RTP": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp-mux\n",
        {RTP: PUBLIC, RTCP: "140.113.131.89:40000"},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp-mux\n",
    ),
    "RTCP on the port of RTP, which a=rtcp then names": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp:9001 IN IP4 192.168.0.111\na=rtcp-mux\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=rtcp:13016 IN IP4 140.113.131.89\na=rtcp-mux\n",
    ),
    "no RTCP of what is no RTP": (
        "c=IN IP4 192.168.0.111\nm=image 9000 udptl t38\n",
        {RTP: PUBLIC, RTCP: "140.113.131.89:40000"},
        "c=IN IP4 140.113.131.89\nm=image 13016 udptl t38\n",
    ),
    "a=srcadr stays": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=srcadr:192.168.0.111:9000 0.0.0.0:0\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\na=srcadr:192.168.0.111:9000 0.0.0.0:0\n",
    ),
    "candidates stay, and the public endpoints join them": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n"
        "a=candidate:1 1 UDP 2130706431 192.168.0.111 9000 typ host\n"
        "a=candidate:1 2 UDP 2130706430 192.168.0.111 9001 typ host\na=sendrecv\n",
        {RTP: PUBLIC, RTCP: PUBLIC_RTCP},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\n"
        "a=candidate:1 1 UDP 2130706431 192.168.0.111 9000 typ host\n"
        "a=candidate:1 2 UDP 2130706430 192.168.0.111 9001 typ host\n"
        "a=candidate:public 1 UDP 1694498815 140.113.131.89 13016 typ srflx raddr 192.168.0.111 rport 9000\n"
        "a=candidate:public 2 UDP 1694498814 140.113.131.89 13017 typ srflx raddr 192.168.0.111 rport 9001\n"
        "a=sendrecv\n",
    ),
    "a public candidate that is there already": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n"
        "a=candidate:1 1 UDP 1694498815 140.113.131.89 13016 typ srflx raddr 192.168.0.111 rport 9000\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\n"
        "a=candidate:1 1 UDP 1694498815 140.113.131.89 13016 typ srflx raddr 192.168.0.111 rport 9000\n",
    ),
    "a foundation and a priority that are taken": (
        "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\n"
        "a=candidate:public 1 UDP 1694498815 203.0.113.9 13016 typ srflx raddr 192.168.0.111 rport 9000\n",
        {RTP: PUBLIC},
        "c=IN IP4 140.113.131.89\nm=audio 13016 RTP/AVP 0\n"
        "a=candidate:public 1 UDP 1694498815 203.0.113.9 13016 typ srflx raddr 192.168.0.111 rport 9000\n"
        "a=candidate:public1 1 UDP 1694498559 140.113.131.89 13016 typ srflx"
        " raddr 192.168.0.111 rport 9000\n",
    ),
}


@pytest.mark.parametrize(("before", "publics", "after"), MOVES.values(), ids=MOVES)
def test_moving(before: str, publics: dict[str, str], after: str) -> None:
    assert moved(before, publics) == after


STAYING = {
    "of other sockets": "c=IN IP4 192.168.0.111\nm=audio 7000 RTP/AVP 0\n",
    "at other addresses": "c=IN IP4 192.168.0.7\nm=audio 9000 RTP/AVP 0\n",
    "refused": "c=IN IP4 192.168.0.111\nm=audio 0 RTP/AVP 0\n",
    "held": "c=IN IP4 0.0.0.0\nm=audio 9000 RTP/AVP 0\n",
    "held one by one": "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nc=IN IP4 0.0.0.0\n",
    "held over IPv6": "c=IN IP6 ::\nm=audio 9000 RTP/AVP 0\n",
    "multicast": "c=IN IP4 224.2.36.42/127\nm=audio 9000 RTP/AVP 0\n",
    "host names": "c=IN IP4 phone.example\nm=audio 9000 RTP/AVP 0\n",
    "other networks": "c=TN RFC2543 +1-201-406-4090\nm=audio 9000 RTP/AVP 0\n",
    "nowhere": "m=audio 9000 RTP/AVP 0\n",
    "MSRP": "c=IN IP4 192.168.0.111\nm=message 9000 TCP/MSRP *\na=path:msrp://192.168.0.111:9000/x;tcp\n",
    "MSRP over TLS": "c=IN IP4 192.168.0.111\nm=message 9000 TCP/TLS/MSRP *\na=setup:active\n",
    "RTP over TCP": "c=IN IP4 192.168.0.111\nm=audio 9000 TCP/RTP/AVP 0\na=setup:actpass\n",
    "RTP over TCP by its other name": "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP/TCP 0\n",
    "of unknown protocols": "c=IN IP4 192.168.0.111\nm=audio 9000 PIGEON/AVP 0\n",
}


@pytest.mark.parametrize("text", STAYING.values(), ids=STAYING)
def test_staying(text: str) -> None:
    anywhere = {
        f"{host}:9000": PUBLIC for host in ("192.168.0.111", "0.0.0.0", "[::]", "224.2.36.42", "127.0.0.1")
    }
    assert moved(text, anywhere) == text


class TestStreams:
    def streams(self, text: str) -> list[tuple[str, str | None]]:
        description = SessionDescription.parse((HEAD + text.replace("\n", "\r\n")).encode())
        return [
            (str(stream.rtp), str(stream.rtcp) if stream.rtcp else None)
            for stream in media.streams(description)
        ]

    def test_have_sockets_for_rtp_and_rtcp(self) -> None:
        text = "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\nm=video 9002 RTP/AVP 31\na=rtcp:9100\n"
        assert self.streams(text) == [(RTP, RTCP), ("192.168.0.111:9002", "192.168.0.111:9100")]

    def test_have_one_where_rtcp_is_on_it_or_there_is_none(self) -> None:
        text = "c=IN IP4 192.168.0.111\nm=audio 9000 RTP/AVP 0\na=rtcp-mux\nm=image 9002 udptl t38\n"
        assert self.streams(text) == [(RTP, None), ("192.168.0.111:9002", None)]

    @pytest.mark.parametrize("text", list(STAYING.values())[2:], ids=list(STAYING)[2:])
    def test_are_only_those_that_can_move(self, text: str) -> None:
        assert self.streams(text) == []


class TestOrigin:
    data = HEAD.encode()

    def edited(self, version: int, ip: str | None = None) -> bytes:
        origin = SessionDescription.parse(self.data).origin
        assert origin is not None
        address = Endpoint.of(ip, 0).ip if ip else None
        return spliced(self.data, media.origin_edits(origin, version=version, ip=address)).splitlines()[1]

    def test_has_another_version(self) -> None:
        assert self.edited(100) == b"o=alice 77 100 IN IP4 192.168.0.111"

    def test_has_another_address(self) -> None:
        assert self.edited(78, "192.0.2.1") == b"o=alice 77 78 IN IP4 192.0.2.1"
        assert self.edited(79, "2001:db8::1") == b"o=alice 77 79 IN IP6 2001:db8::1"

    def test_stays_where_nothing_changes(self) -> None:
        assert self.edited(78, "192.168.0.111") == b"o=alice 77 78 IN IP4 192.168.0.111"


@pytest.mark.parametrize("line_break", ["\r\n", "\n"])
def test_new_lines_break_as_the_others_do(line_break: str) -> None:
    text = HEAD + "c=IN IP4 192.168.0.111\r\nm=image 9 TCP/x y\r\nm=audio 9000 RTP/AVP 0\r\n"
    data = b"\r\n\r\n" + text.replace("\r\n", line_break).encode()
    description = SessionDescription.parse(data, Span(4, len(data)))
    moves = media.moves(description, {Endpoint.parse(RTP): Endpoint.parse(PUBLIC)}.get)
    result = spliced(data, media.edits(description, moves))
    assert result.endswith(f"m=audio 13016 RTP/AVP 0{line_break}c=IN IP4 140.113.131.89{line_break}".encode())
