"""Session descriptions on their way out: which streams follow their bindings, and which stay."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.sip.message import SipMessage
from nattools.sip.rewriter import MediaPort, MediaUnbound, Rewriter, Unedited
from tests.unit.sip.bound import (
    AUDIO,
    LOCAL,
    PUBLIC,
    REGISTRAR,
    RTCP,
    RTP,
    Binding,
    at,
    bound,
    changed_lines,
    events,
    invite,
)


def rewriter(*media: tuple[Binding, Binding | None]) -> Rewriter:
    made = Rewriter(Binding(LOCAL, PUBLIC))
    for rtp, rtcp in media or ((RTP, RTCP),):
        made.add_media(rtp, rtcp)
    return made


def sent(made: Rewriter, message: bytes) -> list[str]:
    """The lines of the description that goes out; the message's length must be true."""
    out = SipMessage.parse(made.outgoing(message, REGISTRAR))
    assert out.content_length == len(out.body) == len(out.data) - out.body_span.start
    return out.body.decode().splitlines()


class TestStreams:  # R9
    def test_session_and_media_addresses_and_ports_follow(self) -> None:
        lines = sent(
            rewriter((RTP, RTCP), (bound("192.168.0.111:20000", "203.0.113.1:42000"), None)),
            invite(
                AUDIO
                + "c=IN IP4 192.168.0.111\nm=video 20000/2 RTP/AVP 99\nc=IN IP4 192.168.0.111\na=sendonly\n"
            ),
        )
        assert lines == [
            "v=0",
            "o=- 7 1 IN IP4 203.0.113.1",
            "s=-",
            "c=IN IP4 203.0.113.1",
            "t=0 0",
            "m=audio 41002 RTP/AVP 0",
            "c=IN IP4 203.0.113.1",
            "m=video 42000/2 RTP/AVP 99",
            "c=IN IP4 203.0.113.1",
            "a=sendonly",
        ]

    def test_rtcp_is_told_where_it_is_not_one_above(self) -> None:
        odd = Binding(RTCP.local, at("203.0.113.1:50505"))
        assert "a=rtcp:50505" in sent(rewriter((RTP, odd)), invite())
        assert "a=rtcp:50505 IN IP4 203.0.113.1" in sent(
            rewriter((RTP, odd)), invite(AUDIO + "a=rtcp:10003 IN IP4 192.168.0.111\n")
        )
        assert not any(line.startswith("a=rtcp") for line in sent(rewriter(), invite()))

    @pytest.mark.parametrize(
        "stays",
        [
            "m=audio 0 RTP/AVP 0",
            "m=audio 10002 RTP/AVP 0\nc=IN IP4 0.0.0.0",
            "m=audio 10002 RTP/AVP 0\nc=IN IP4 224.2.1.1/127/3",
            "m=audio 10002 RTP/AVP 0\nc=IN IP4 phone.example.com",
            "m=audio 10002 RTP/AVP 0\nc=IN IP6 ::1",
            "m=audio 10002 RTP/AVP 0\nc=IN IP4 192.168.0.222",
            "m=message 10002 TCP/MSRP *\na=path:msrp://192.168.0.111:10002/s;tcp",
            "m=image 10002 TCPTL t38\na=setup:actpass",
        ],
    )
    def test_what_no_binding_can_carry_stays(self, stays: str) -> None:
        made = rewriter()
        session = AUDIO.partition("m=")[0].replace("c=IN IP4 192.168.0.111\n", "")
        c_line = "" if "c=" in stays else "c=IN IP4 192.168.0.111\n"
        message = invite(f"{session}{c_line}{stays}\n")
        assert made.media_needed(message) == ()
        lines = sent(made, message)
        assert "\n".join(lines).endswith(f"{c_line}{stays}")
        assert events(made) == []

    @pytest.mark.parametrize("direction", ["sendonly", "recvonly", "inactive"])
    def test_a_stream_that_only_sends_is_mapped_too(self, direction: str) -> None:
        assert "m=audio 41002 RTP/AVP 0" in sent(rewriter(), invite(f"{AUDIO}a={direction}\n"))

    def test_candidates_that_are_there_stay(self) -> None:  # R11
        host = "a=candidate:1 1 UDP 2130706431 192.168.0.111 10002 typ host"
        lines = sent(rewriter(), invite(f"{AUDIO}a=ice-ufrag:x\na=ice-pwd:y\n{host}\n"))
        assert host in lines
        assert any(" 203.0.113.1 41002 typ srflx" in line for line in lines)

    def test_two_public_addresses_get_c_lines_of_their_own(self) -> None:
        lines = sent(
            rewriter((RTP, RTCP), (bound("192.168.0.111:20000", "198.51.100.1:42000"), None)),
            invite(f"{AUDIO}m=video 20000 RTP/AVP 99\n"),
        )
        audio, video = lines.index("m=audio 41002 RTP/AVP 0"), lines.index("m=video 42000 RTP/AVP 99")
        assert "c=IN IP4 198.51.100.1" in lines[video:]
        assert "c=IN IP4 203.0.113.1" in lines[:video]
        assert audio < video

    def test_a_removed_binding_is_used_no_more(self) -> None:
        made = rewriter()
        made.remove_media(10002)
        made.remove_media(10002)
        assert made.media_needed(invite()) == (MediaPort(RTP.local, RTCP.local),)
        assert "m=audio 10002 RTP/AVP 0" in sent(made, invite())

    def test_another_binding_of_the_same_port_takes_its_place(self) -> None:
        made = rewriter()
        made.add_media(Binding(RTP.local, at("203.0.113.1:45000")))
        assert sent(made, invite())[-1] == "m=audio 45000 RTP/AVP 0"


class TestNeeds:
    def test_sockets_of_this_machine_that_have_no_binding_are_needed(self) -> None:
        made = rewriter()
        message = invite(
            AUDIO
            + "m=video 20000 RTP/AVP 99\na=rtcp:20005\nm=video 0 RTP/AVP 99\n"
            + "m=audio 30000 RTP/AVP 0\na=rtcp-mux\n"
            + "m=image 40000 udptl t38\nm=audio 10004 RTP/AVP 0\nc=IN IP4 192.168.0.222\n"
        )
        assert made.media_needed(message) == (
            MediaPort(at("192.168.0.111:20000"), at("192.168.0.111:20005")),
            MediaPort(at("192.168.0.111:30000"), None),
            MediaPort(at("192.168.0.111:40000"), None),
        )
        assert events(made) == []

    def test_a_response_needs_them_as_well(self) -> None:
        made = Rewriter(Binding(LOCAL, PUBLIC))
        message = invite().replace(b"INVITE sip:bob@example.com SIP/2.0", b"SIP/2.0 183 Session Progress")
        assert made.media_needed(message) == (MediaPort(RTP.local, RTCP.local),)

    def test_sending_without_them_is_told(self) -> None:
        made = Rewriter(Binding(LOCAL, PUBLIC))
        message = invite()
        assert dict(changed_lines(message, made.outgoing(message, REGISTRAR))) == {
            b"o=- 7 1 IN IP4 192.168.0.111": b"o=- 7 1 IN IP4 203.0.113.1",
            b"Content-Length: 96": b"Content-Length: 94",
        }
        assert events(made) == [MediaUnbound((MediaPort(RTP.local, RTCP.local),))]

    def test_a_binding_that_is_lost_is_told_and_not_needed_anew(self) -> None:
        made = rewriter((Binding(RTP.local, None), None))
        assert made.media_needed(invite()) == ()
        assert "m=audio 10002 RTP/AVP 0" in sent(made, invite())
        assert events(made) == [MediaUnbound((MediaPort(RTP.local, RTCP.local),))]

    def test_addresses_that_are_named_count_as_this_machines(self) -> None:
        other = ip_address("10.0.0.5")
        made = Rewriter(Binding(LOCAL, PUBLIC), also_local=(other,))
        message = invite(AUDIO.replace("192.168.0.111", "10.0.0.5"))
        assert [port.local for port in made.media_needed(message)] == [at("10.0.0.5:10002")]
        made.add_media(RTP)
        assert sent(made, message)[-3:] == ["c=IN IP4 203.0.113.1", "t=0 0", "m=audio 41002 RTP/AVP 0"]

    def test_media_at_another_address_than_signalling_is_known_by_its_binding(self) -> None:
        made = rewriter((bound("10.0.0.5:10002", "203.0.113.9:41002"), None))
        message = invite(AUDIO.replace("192.168.0.111", "10.0.0.5"))
        assert "m=audio 41002 RTP/AVP 0" in sent(made, message)
        assert made.media_needed(message) == ()


class TestBodies:  # R12, R14
    def test_descriptions_in_parts_follow_and_all_lengths_with_them(self) -> None:
        part = AUDIO.strip("\n").replace("\n", "\r\n")
        body = (
            f"--x\nContent-Type: application/sdp\nContent-Length: {len(part)}\n\n{AUDIO.strip()}\n"
            "--x\nContent-Type: message/sipfrag\n\nVia: SIP/2.0/UDP 192.168.0.111:5060\n--x--\n"
        )
        message = invite(body).replace(b"application/sdp\r\n", b"multipart/mixed;boundary=x\r\n", 1)
        out = SipMessage.parse(rewriter().outgoing(message, REGISTRAR))
        assert out.content_length == len(out.body)
        assert b"m=audio 41002 RTP/AVP 0" in out.body
        assert b"Content-Length: %d\r\n\r\nv=0" % (len(part) - 4) in out.body
        assert b"Via: SIP/2.0/UDP 192.168.0.111:5060\r\n" in out.body

    @pytest.mark.parametrize(
        "headers",
        [
            "Content-Type: message/sipfrag",
            "Content-Type: application/pkcs7-mime",
            "Content-Type: application/sdp\nContent-Encoding: gzip",
        ],
    )
    def test_opaque_bodies_stay(self, headers: str) -> None:
        message = invite().replace(b"Content-Type: application/sdp", headers.replace("\n", "\r\n").encode())
        assert rewriter().outgoing(message, REGISTRAR) == message

    @pytest.mark.parametrize(
        "credentials",
        [
            'Authorization: Digest username="a", qop=auth-int, response="0"',
            'Proxy-Authorization: Digest qop="AUTH-INT",response="0"',
            'Authorization: Digest username="a",\n  qop = auth-int ,nc=00000001',
        ],
    )
    def test_a_signed_body_stays_and_the_headers_do_not(self, credentials: str) -> None:
        made = rewriter()
        message = invite(extra=f"\nContact: <sip:a@192.168.0.111:5060>\n{credentials}")
        assert changed_lines(message, made.outgoing(message, REGISTRAR)) == [
            (b"Contact: <sip:a@192.168.0.111:5060>", b"Contact: <sip:a@203.0.113.1:40000>")
        ]
        (event,) = events(made)
        assert isinstance(event, Unedited)
        assert "auth-int" in event.reason
        made.remove_media(10002)
        assert made.media_needed(message) == ()

    def test_a_signed_body_of_others_is_nothing_to_speak_of(self) -> None:
        made = rewriter()
        message = invite(
            AUDIO.replace("192.168.0.111", "198.51.100.3"), extra="\nAuthorization: Digest qop=auth-int"
        )
        assert made.outgoing(message, REGISTRAR) == message
        assert events(made) == []

    @pytest.mark.parametrize(
        "credentials",
        [
            'Authorization: Digest realm="qop=auth-int, x", qop=auth',
            "X-Authorization: Digest qop=auth-int",
            "Subject: qop=auth-int",
        ],
    )
    def test_what_only_looks_like_a_signature_does_not_keep_the_body(self, credentials: str) -> None:
        assert "m=audio 41002 RTP/AVP 0" in sent(rewriter(), invite(extra=f"\n{credentials}"))

    def test_a_description_that_cannot_be_read_stays_and_is_told(self) -> None:
        made = rewriter()
        message = invite("m=audio x\nv=0\n")
        assert made.outgoing(message, REGISTRAR) == message
        (event,) = events(made)
        assert isinstance(event, Unedited)
        assert made.media_needed(message) == ()


class TestVersions:  # R10
    def test_a_new_public_port_raises_the_version_in_the_phones_stead(self) -> None:
        binding = Binding(RTP.local, RTP.endpoint)
        made = rewriter((binding, None))
        assert sent(made, invite())[1] == "o=- 7 1 IN IP4 203.0.113.1"
        assert sent(made, invite())[1] == "o=- 7 1 IN IP4 203.0.113.1"
        binding.endpoint = at("203.0.113.1:41999")
        assert sent(made, invite())[1] == "o=- 7 2 IN IP4 203.0.113.1"
        assert sent(made, invite())[1] == "o=- 7 2 IN IP4 203.0.113.1"
        assert sent(made, invite(AUDIO.replace("- 7 1", "- 7 2")))[1] == "o=- 7 3 IN IP4 203.0.113.1"

    def test_after_another_public_address_the_origin_still_has_the_first(self) -> None:
        binding = Binding(RTP.local, RTP.endpoint)
        made = rewriter((binding, None))
        sent(made, invite())
        binding.endpoint = at("198.51.100.77:41002")
        lines = sent(made, invite())
        assert lines[1] == "o=- 7 2 IN IP4 203.0.113.1"
        assert lines[3] == "c=IN IP4 198.51.100.77"
        assert sent(made, invite(call_id="c2"))[1] == "o=- 7 1 IN IP4 198.51.100.77"

    def test_requests_and_responses_of_one_call_count_together(self) -> None:
        binding = Binding(RTP.local, RTP.endpoint)
        made = rewriter((binding, None))
        response = invite().replace(b"INVITE sip:bob@example.com SIP/2.0", b"SIP/2.0 200 OK")
        sent(made, response)
        binding.endpoint = at("203.0.113.1:41999")
        assert sent(made, invite())[1] == "o=- 7 2 IN IP4 203.0.113.1"

    def test_a_hold_keeps_count(self) -> None:
        made = rewriter()
        sent(made, invite())
        held = AUDIO.replace("- 7 1", "- 7 2").replace("c=IN IP4 192.168.0.111", "c=IN IP4 0.0.0.0")
        assert sent(made, invite(held))[1:4] == ["o=- 7 2 IN IP4 203.0.113.1", "s=-", "c=IN IP4 0.0.0.0"]

    def test_what_was_rewritten_is_not_rewritten_again(self) -> None:
        made = rewriter()
        once = made.outgoing(invite(), REGISTRAR)
        assert made.outgoing(once, REGISTRAR) == once

    def test_sessions_of_others_are_none_of_its_business(self) -> None:
        made = rewriter()
        for port in (5000, 5002):
            message = invite(AUDIO.replace("192.168.0.111", "198.51.100.3").replace("10002", str(port)))
            assert made.outgoing(message, REGISTRAR) == message

    def test_a_description_without_an_origin_still_moves(self) -> None:
        lines = sent(rewriter(), invite(AUDIO.replace("o=- 7 1 IN IP4 192.168.0.111\n", "")))
        assert lines[2] == "c=IN IP4 203.0.113.1"
