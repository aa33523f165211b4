"""Reading a session description where it lies, and writing one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.sip.sdp import Direction, Media, SessionDescription, compose_sdp
from nattools.sip.uri import Span
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s

RTP = Endpoint.of("192.168.0.111", 9000)


def description(*lines: str, line_break: str = "\r\n") -> bytes:
    """A description of these lines behind the four that begin each."""
    head = ("v=0", "o=alice 77 78 IN IP4 192.168.0.111", "s=-", "t=0 0")
    return "".join(line + line_break for line in (*head, *lines)).encode()


def the_media(*lines: str) -> Media:
    (media,) = SessionDescription.parse(description(*lines)).media
    return media


class TestSession:
    data = description("c=IN IP4 192.168.0.111", "m=audio 9000 RTP/AVP 0 8 101", "a=rtpmap:0 PCMU/8000")

    def test_has_an_origin(self) -> None:
        origin = SessionDescription.parse(self.data).origin
        assert origin is not None
        assert (origin.username, origin.session_id, origin.version) == (b"alice", b"77", 78)
        assert (origin.family, origin.address, origin.ip) == ("IP4", b"192.168.0.111", RTP.ip)
        spans = (
            origin.session_id_span,
            origin.version_span,
            origin.address_span,
            origin.family_address_span,
        )
        read = [self.data[slice(*span)] for span in spans]
        assert read == [b"77", b"78", b"192.168.0.111", b"IP4 192.168.0.111"]

    @pytest.mark.parametrize(
        ("line", "username", "address"),
        [
            ("o=- 1 2 IN IP4 host.example", b"-", b"host.example"),
            ("o=Alice B. Toklas 1 2 IN IP4 192.0.2.1", b"Alice B. Toklas", b"192.0.2.1"),
            ("o=1 2 3 1 2 IN IP4 192.0.2.1", b"1 2 3", b"192.0.2.1"),
            ("o= 1 2 IN IP6 2001:db8::1", b"", b"2001:db8::1"),
            ("o=-  1\t2 IN  IP4 192.0.2.1 ", b"-", b"192.0.2.1"),
        ],
    )
    def test_has_an_origin_in_odd_spacing_too(self, line: str, username: bytes, address: bytes) -> None:
        origin = SessionDescription.parse(f"v=0\r\n{line}\r\ns=-\r\n".encode()).origin
        assert origin is not None
        assert (origin.username, origin.session_id, origin.version) == (username, b"1", 2)
        assert origin.address == address

    @pytest.mark.parametrize(
        "lines",
        [
            "s=-",
            "o=- 1 2 IN IP4",
            "o=- 1 x IN IP4 192.0.2.1",
            "o=- 1 2 ATM NSAP 47.0091",
            f"o=- 1 {'9' * 21} IN IP4 192.0.2.1",
            "s=-\r\nm=audio 9000 RTP/AVP 0\r\no=- 1 2 IN IP4 192.0.2.1",
        ],
    )
    def test_has_no_origin_where_none_can_be_read(self, lines: str) -> None:
        assert SessionDescription.parse(f"v=0\r\n{lines}\r\n".encode()).origin is None

    def test_has_a_connection_and_media(self) -> None:
        session = SessionDescription.parse(self.data)
        connection = session.connection
        assert connection is not None
        assert (connection.family, connection.address, connection.ip) == ("IP4", b"192.168.0.111", RTP.ip)
        assert self.data[slice(*connection.address_span)] == b"192.168.0.111"
        assert self.data[slice(*connection.family_address_span)] == b"IP4 192.168.0.111"
        (media,) = session.media
        assert (media.kind, media.port, media.port_count, media.protocol) == ("audio", 9000, 1, "RTP/AVP")
        assert media.formats == (b"0", b"8", b"101")
        assert media.connection is connection
        assert media.connections == ()
        assert media.endpoint == RTP
        assert self.data[slice(*media.span)] == b"m=audio 9000 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\n"
        assert self.data[slice(*media.port_span)] == b"9000"

    def test_lies_somewhere_in_a_message(self) -> None:
        message = b"INVITE sip:b@example.com SIP/2.0\r\nc=x\r\n\r\n" + self.data + b"\nm=trailing octets"
        start = message.index(b"v=0")
        session = SessionDescription.parse(message, Span(start, start + len(self.data)))
        (media,) = session.media
        assert message[slice(*media.port_span)] == b"9000"
        assert media.span.end == start + len(self.data)
        assert session.origin is not None
        assert message[slice(*session.origin.version_span)] == b"78"

    @pytest.mark.parametrize("line_break", ["\r\n", "\n"])
    def test_ends_its_lines_either_way(self, line_break: str) -> None:
        data = description("m=audio 9000 RTP/AVP 0", "c=IN IP4 192.168.0.111", line_break=line_break)
        for whole in (data, data.rstrip()):
            (media,) = SessionDescription.parse(whole).media
            assert media.formats == (b"0",)
            assert media.endpoint == RTP
            assert media.line_end == whole.index(b"AVP 0") + 5

    @pytest.mark.parametrize(
        "odd",
        [
            "x-unknown",
            "=",
            "m",
            "a=",
            "z=0 0",
            "a=rtcp",
            "a=rtcp:x",
            "a=rtcp-fb:* nack",
            "a=rtcp-mux-only",
            "\0",
        ],
    )
    def test_passes_over_odd_lines(self, odd: str) -> None:
        media = the_media("c=IN IP4 192.168.0.111", odd, "m=audio 9000 RTP/AVP 0", odd, "a=sendonly", odd)
        assert media.endpoint == RTP
        assert media.rtcp is None
        assert not media.is_rtcp_mux
        assert media.direction is Direction.SENDONLY

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"o=- 1 2 IN IP4 192.0.2.1\r\n",
            b"<xml/>",
            b"v=0\r\nm=audio\r\n",
            b"v=0\r\nm=audio x RTP/AVP 0\r\n",
            b"v=0\r\nm=audio 123456 RTP/AVP 0\r\n",
            b"v=0\r\nm=audio 9000/ RTP/AVP 0\r\n",
            b"v=0\r\nc=IN IP4\r\n",
            b"v=0\r\nc=\r\n",
            b"v=0\r\nc=IN IP4 " + b"1" * 256 + b"\r\n",
        ],
    )
    def test_is_refused_where_its_main_lines_make_no_sense(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            SessionDescription.parse(data)

    def test_many_connections_take_no_long_time(self) -> None:
        line = b"c=a b c\n"
        connections = 2 * HOSTILE_BYTES // len(line)
        with within_s(DEADLINE_S):
            session = SessionDescription.parse(b"v=0\n" + line * connections)
        assert len(session.connections) == connections

    @pytest.mark.parametrize(
        "hostile",
        [
            b"v=0\r\n" + b"m=a 1 R" * 9000,
            b"v=0\r\no=" + b"a " * 30000,
            b"v=0\r\no=a" + b" " * 60000 + b"b",
            b"v=0\r\nc=IN " + b" " * 60000,
            b"v=0\r\nm=audio 1 RTP/AVP 0" + b"\r\na=candidate:" * 4500 + b"\r\na=srcadr:" + b":" * 5000,
            b"v=0\r\nm=audio 1 RTP/AVP 0\r\na=rtcp:1 " + b"  IN" * 15000,
            b"v=0\r\nm=audio 1 RTP/AVP 0\r\na=candidate:" + b"1 " * 30000,
        ],
    )
    def test_takes_no_long_time_whatever_comes(self, hostile: bytes) -> None:
        """Each of them would take minutes if the time rose with the square of the size."""
        try:
            session = SessionDescription.parse(hostile)
        except DecodeError:
            return
        assert session.origin is None
        for media in session.media:
            assert not media.candidates
            assert media.srcadr is None


class TestConnection:
    @pytest.mark.parametrize(
        ("words", "ip", "multicast", "hold"),
        [
            ("IN IP4 192.0.2.1", "192.0.2.1", False, False),
            ("IN ip4 192.0.2.1", "192.0.2.1", False, False),
            ("IN  IP4\t192.0.2.1 ", "192.0.2.1", False, False),
            ("IN IP4 192.0.2.1/127", "192.0.2.1", False, False),
            ("IN IP4 0.0.0.0", "0.0.0.0", False, True),
            ("IN IP6 ::", "::", False, True),
            ("IN IP4 224.2.36.42/127/3", "224.2.36.42", True, False),
            ("IN IP6 ff15::101/3", "ff15::101", True, False),
            ("IN IP6 2001:DB8::1", "2001:db8::1", False, False),
            ("IN IP4 phone.example.com", None, False, False),
            ("IN IP4 2001:db8::1", None, False, False),
            ("IN IP6 192.0.2.1", None, False, False),
            ("TN RFC2543 +1-201-406-4090", None, False, False),
        ],
    )
    def test_says_where(self, words: str, ip: str | None, multicast: bool, hold: bool) -> None:
        connection = SessionDescription.parse(f"v=0\r\nc={words}\r\n".encode()).connection
        assert connection is not None
        assert connection.ip == (ip_address(ip) if ip else None)
        assert (connection.is_multicast, connection.is_hold) == (multicast, hold)

    def test_of_a_stream_comes_before_that_of_the_session(self) -> None:
        data = description(
            "c=IN IP4 192.0.2.1",
            "m=audio 9000 RTP/AVP 0",
            "c=IN IP4 192.0.2.2",
            "c=IN IP4 192.0.2.3",
            "m=video 9002 RTP/AVP 31",
        )
        audio, video = SessionDescription.parse(data).media
        assert audio.endpoint == Endpoint.of("192.0.2.2", 9000)
        assert [str(each.ip) for each in audio.connections] == ["192.0.2.2", "192.0.2.3"]
        assert video.endpoint == Endpoint.of("192.0.2.1", 9002)
        assert data[slice(*audio.span)].endswith(b"192.0.2.3\r\n")

    def test_may_be_nowhere(self) -> None:
        media = the_media("m=audio 9000 RTP/AVP 0")
        assert media.connection is None
        assert media.endpoint is None
        assert media.rtcp_endpoint is None


class TestMedia:
    def test_keeps_the_number_of_ports_apart(self) -> None:
        data = description("m=audio 49170/2 RTP/AVP 0")
        (media,) = SessionDescription.parse(data).media
        assert (media.port, media.port_count) == (49170, 2)
        assert data[slice(*media.port_span)] == b"49170"

    @pytest.mark.parametrize(
        ("line", "rtcp"),
        [
            ("a=x", "192.168.0.111:9001"),
            ("a=rtcp:53020", "192.168.0.111:53020"),
            ("a=rtcp:53020 IN IP4 126.16.64.4", "126.16.64.4:53020"),
            ("a=rtcp:53020 IN IP6 2001:db8::4", "[2001:db8::4]:53020"),
            ("a=rtcp:53020 IN IP4 host.example", None),
            ("a=rtcp:65536", None),
        ],
    )
    def test_has_its_rtcp_somewhere(self, line: str, rtcp: str | None) -> None:
        media = the_media("c=IN IP4 192.168.0.111", "m=audio 9000 RTP/AVP 0", line)
        assert media.rtcp_endpoint == (Endpoint.parse(rtcp) if rtcp else None)

    def test_says_where_its_rtcp_line_has_what(self) -> None:
        data = description("m=audio 9000 RTP/AVP 0", "a=rtcp:53020 IN IP4 126.16.64.4")
        rtcp = SessionDescription.parse(data).media[0].rtcp
        assert rtcp is not None
        assert rtcp.address_span is not None
        assert rtcp.family_address_span is not None
        assert (rtcp.port, rtcp.address) == (53020, b"126.16.64.4")
        spans = (rtcp.port_span, rtcp.address_span, rtcp.family_address_span)
        assert [data[slice(*span)] for span in spans] == [b"53020", b"126.16.64.4", b"IP4 126.16.64.4"]

    def test_may_have_rtcp_on_the_same_port(self) -> None:
        assert the_media("m=audio 9000 RTP/AVP 0", "a=rtcp-mux").is_rtcp_mux
        assert not the_media("a=rtcp-mux", "m=audio 9000 RTP/AVP 0").is_rtcp_mux

    @pytest.mark.parametrize("direction", Direction)
    def test_has_a_direction(self, direction: Direction) -> None:
        assert the_media("m=audio 9 RTP/AVP 0", f"a={direction}").direction is direction
        assert the_media(f"a={direction}", "m=audio 9 RTP/AVP 0").direction is direction
        assert the_media("a=inactive", "m=audio 9 RTP/AVP 0", f"a={direction}").direction is direction

    def test_sends_and_receives_where_nothing_is_said(self) -> None:
        assert the_media("m=audio 9 RTP/AVP 0", "a=sendonlyx", "s=sendonly").direction is Direction.SENDRECV

    def test_has_candidates(self) -> None:
        data = description(
            "m=audio 9000 RTP/AVP 0",
            "a=candidate:1 1 UDP 2130706431 192.168.0.111 9000 typ host",
            "a=candidate:2 2 tcp 1694498815 2001:db8::7 9 typ srflx raddr 10.0.1.1 rport 8998 tcptype active",
            "a=candidate:3 1 UDP 1 3a1f.local 9000 typ host",
            "a=candidate:cannot be read",
        )
        first, second, third = SessionDescription.parse(data).media[0].candidates
        assert first.endpoint == RTP
        assert (first.foundation, first.component, first.transport, first.type) == (b"1", 1, "UDP", "host")
        assert (second.transport, second.priority, second.type) == ("TCP", 1694498815, "srflx")
        assert second.endpoint == Endpoint.of("2001:db8::7", 9)
        assert third.endpoint is None
        assert third.address == b"3a1f.local"
        assert data[slice(*first.address_span)] == b"192.168.0.111"
        assert data[slice(*first.port_span)] == b"9000"
        assert data[slice(*second.span)].endswith(b"tcptype active")

    def test_has_the_two_endpoints_of_a_srcadr_line(self) -> None:
        data = description("m=audio 9000 RTP/AVP 0", "a=srcadr:192.168.0.111:9000 140.113.131.89:13016")
        srcadr = SessionDescription.parse(data).media[0].srcadr
        assert srcadr is not None
        assert (srcadr.private, srcadr.public) == (RTP, Endpoint.of("140.113.131.89", 13016))
        assert data[slice(*srcadr.private_span)] == b"192.168.0.111:9000"
        assert data[slice(*srcadr.public_span)] == b"140.113.131.89:13016"


class TestComposing:
    def test_writes_one_audio_stream(self) -> None:
        assert compose_sdp(RTP, session_id=5, version=1) == (
            b"v=0\r\no=- 5 1 IN IP4 192.168.0.111\r\ns=-\r\nc=IN IP4 192.168.0.111\r\nt=0 0\r\n"
            b"m=audio 9000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
        )

    def test_is_read_back(self) -> None:
        data = compose_sdp(
            Endpoint.of("2001:db8::1", 9000),
            rtcp=Endpoint.of("2001:db8::2", 9007),
            formats=((8, "PCMA/8000"), (101, "telephone-event/8000")),
            session_id=5,
            version=6,
            direction=Direction.RECVONLY,
            username="bob",
            session_name="a talk",
        )
        session = SessionDescription.parse(data)
        (media,) = session.media
        assert session.origin is not None
        assert (session.origin.username, session.origin.session_id, session.origin.version) == (
            b"bob",
            b"5",
            6,
        )
        assert media.endpoint == Endpoint.of("2001:db8::1", 9000)
        assert media.rtcp_endpoint == Endpoint.of("2001:db8::2", 9007)
        assert media.formats == (b"8", b"101")
        assert media.direction is Direction.RECVONLY

    @pytest.mark.parametrize(
        ("rtcp", "line"),
        [
            (None, None),
            ("192.168.0.111:9001", None),
            ("192.168.0.111:9002", b"a=rtcp:9002"),
            ("192.0.2.1:9001", b"a=rtcp:9001 IN IP4 192.0.2.1"),
        ],
    )
    def test_tells_rtcp_only_where_it_is_not_expected(self, rtcp: str | None, line: bytes | None) -> None:
        data = compose_sdp(RTP, rtcp=Endpoint.parse(rtcp) if rtcp else None, session_id=5, version=1)
        assert [each for each in data.split(b"\r\n") if each.startswith(b"a=rtcp")] == (
            [line] if line else []
        )

    @pytest.mark.parametrize(
        "words",
        [
            {"username": "a b"},
            {"username": ""},
            {"session_name": "x\r\na=evil"},
            {"session_name": ""},
            {"direction": "sideways"},
            {"formats": ()},
            {"formats": ((128, "PCMU/8000"),)},
            {"formats": ((0, "PCMU/8000\r\na=evil"),)},
            {"session_id": -1},
            {"version": -1},
        ],
    )
    def test_refuses_what_no_line_can_carry(self, words: dict[str, object]) -> None:
        with pytest.raises(EncodeError):
            compose_sdp(RTP, **{"session_id": 1, "version": 1, **words})  # type: ignore[arg-type]  # on purpose
