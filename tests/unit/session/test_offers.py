"""How descriptions read for the other side of a relay, case by case."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.session.offers import Lot, describe, edits, is_relayed
from nattools.session.relay import PortPair
from nattools.sip.body import Part, edit_parts
from nattools.sip.message import SipMessage
from nattools.sip.sdp import Direction, SessionDescription
from nattools.sip.uri import Span

RELAY = ip_address("203.0.113.7")
HOST = ip_address("203.0.113.1")
FIRST = PortPair(Endpoint(RELAY, 30000), Endpoint(RELAY, 30001))
SECOND = PortPair(Endpoint(RELAY, 30002), Endpoint(RELAY, 30003))
RELAY6 = ip_address("2001:db8::7")
SIXTH = PortPair(Endpoint(RELAY6, 30000), Endpoint(RELAY6, 30001))
APART = PortPair(Endpoint(RELAY, 30000), Endpoint(RELAY, 41234))

HEAD = ("v=0", "o=- 1 1 IN IP4 10.0.0.8", "s=-")
AT_SESSION = (*HEAD, "c=IN IP4 10.0.0.8", "t=0 0")
BARE = (*HEAD, "t=0 0")


def text(*lines: str, line_break: str = "\r\n") -> bytes:
    return "".join(f"{line}{line_break}" for line in lines).encode()


def relayed(data: bytes, *lots: PortPair | Lot, is_answer: bool = False, strips_ice: bool = True) -> bytes:
    """The description as the relay passes it on, by way of a message."""
    head = b"INVITE sip:b@x SIP/2.0\r\n\r\n"
    message = SipMessage.parse(head + data)
    span = Span(len(head), len(head) + len(data))
    description = SessionDescription.parse(message.data, span)
    made = edits(description, lots, address=RELAY, is_answer=is_answer, strips_ice=strips_ice)
    edit_parts(message, [(Part(span), made)])
    return message.encode()[len(head) :]


CASES = {
    "the c= line of the session": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=sendrecv"),
        (FIRST,),
        (*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0", "a=sendrecv"),
    ),
    "c= lines of streams, and of the session that they hide": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "i=talk", "c=IN IP4 10.0.0.9", "b=AS:64", "a=ptime:20"),
        (FIRST,),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0"),
            *("m=audio 30000 RTP/AVP 0", "i=talk", "c=IN IP4 203.0.113.7", "b=AS:64", "a=ptime:20"),
        ),
    ),
    "no c= line at all": (
        (*BARE, "m=audio 4000 RTP/AVP 0", "i=talk", "a=ptime:20"),
        (FIRST,),
        (*BARE, "m=audio 30000 RTP/AVP 0", "i=talk", "c=IN IP4 203.0.113.7", "a=ptime:20"),
    ),
    "several streams, one of them refused before": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "m=video 0 RTP/AVP 96", "m=video 4002 RTP/AVP 97"),
        (FIRST, Lot.LEFT, SECOND),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0"),
            *("m=audio 30000 RTP/AVP 0", "m=video 0 RTP/AVP 96", "m=video 30002 RTP/AVP 97"),
        ),
    ),
    "a stream that the relay has no ports for": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "m=video 4002/2 RTP/AVP 97", "c=IN IP4 10.0.0.9"),
        (FIRST, Lot.REFUSED),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0"),
            *("m=audio 30000 RTP/AVP 0", "m=video 0 RTP/AVP 97", "c=IN IP4 203.0.113.7"),
        ),
    ),
    "TCP beside it, which keeps its address": (
        (
            *AT_SESSION,
            "m=audio 4000 RTP/AVP 0",
            "m=message 5000 TCP/MSRP *",
            "a=path:msrp://10.0.0.8:5000/x;tcp",
        ),
        (FIRST, Lot.LEFT),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0"),
            *("m=message 5000 TCP/MSRP *", "c=IN IP4 10.0.0.8", "a=path:msrp://10.0.0.8:5000/x;tcp"),
        ),
    ),
    "TCP alone": (
        (*AT_SESSION, "m=message 5000 TCP/MSRP *"),
        (Lot.LEFT,),
        (*AT_SESSION, "m=message 5000 TCP/MSRP *"),
    ),
    "hold by 0.0.0.0 at the session": (
        (*HEAD, "c=IN IP4 0.0.0.0", "t=0 0", "m=audio 4000 RTP/AVP 0"),
        (FIRST,),
        (*HEAD, "c=IN IP4 0.0.0.0", "t=0 0", "m=audio 30000 RTP/AVP 0"),
    ),
    "hold by 0.0.0.0 of one stream of two": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "c=IN IP4 0.0.0.0", "m=video 4002 RTP/AVP 96"),
        (FIRST, SECOND),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0"),
            *("m=audio 30000 RTP/AVP 0", "c=IN IP4 0.0.0.0", "m=video 30002 RTP/AVP 96"),
        ),
    ),
    "hold across address families": (
        (*HEAD, "c=IN IP4 0.0.0.0", "t=0 0", "m=audio 4000 RTP/AVP 0"),
        (SIXTH,),
        (*HEAD, "c=IN IP6 ::", "t=0 0", "m=audio 30000 RTP/AVP 0"),
    ),
    "IPv6 for IPv4": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=rtcp:4001 IN IP4 10.0.0.8"),
        (SIXTH,),
        (
            *HEAD,
            "c=IN IP6 2001:db8::7",
            "t=0 0",
            "m=audio 30000 RTP/AVP 0",
            "a=rtcp:30001 IN IP6 2001:db8::7",
        ),
    ),
    "a=rtcp with a port alone": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=rtcp:5001", "a=sendrecv"),
        (FIRST,),
        (*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0", "a=rtcp:30001", "a=sendrecv"),
    ),
    "a=rtcp where RTCP is elsewhere than one port above": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=sendrecv"),
        (APART,),
        (*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0", "a=rtcp:41234", "a=sendrecv"),
    ),
    "rtcp-mux offered, with RTCP on the same port": (
        (*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=rtcp:4000 IN IP4 10.0.0.8", "a=rtcp-mux"),
        (FIRST,),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0"),
            *("a=rtcp:30000 IN IP4 203.0.113.7", "a=rtcp-mux"),
        ),
    ),
    "layers on several ports, and multicast": (
        (
            *BARE,
            "m=audio 4000/2 RTP/AVP 0",
            "c=IN IP4 224.2.1.1/127/2",
            "c=IN IP4 224.2.1.2/127",
            "a=sendrecv",
        ),
        (FIRST,),
        (*BARE, "m=audio 30000 RTP/AVP 0", "c=IN IP4 203.0.113.7", "a=sendrecv"),
    ),
    "a host name": (
        (*HEAD, "c=IN IP4 phone.example.com", "t=0 0", "m=audio 4000 RTP/AVP 0"),
        (FIRST,),
        (*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0"),
    ),
    "T.38": (
        (*AT_SESSION, "m=image 4000 udptl t38", "a=T38FaxVersion:0"),
        (APART,),
        (*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=image 30000 udptl t38", "a=T38FaxVersion:0"),
    ),
    "keys and fingerprints stay": (
        (
            *AT_SESSION,
            "a=fingerprint:sha-256 AA",
            "m=audio 4000 RTP/SAVP 0",
            "a=crypto:1 X inline:Y",
            "a=setup:actpass",
        ),
        (FIRST,),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "a=fingerprint:sha-256 AA"),
            *("m=audio 30000 RTP/SAVP 0", "a=crypto:1 X inline:Y", "a=setup:actpass"),
        ),
    ),
    "ICE goes, and what needs it": (
        (
            *(*AT_SESSION, "a=ice-lite", "a=ice-options:trickle", "a=group:BUNDLE 0 1", "a=group:LS 0 1"),
            *("m=audio 4000 RTP/AVP 0", "a=ice-ufrag:F", "a=ice-pwd:P", "a=ptime:20", "a=mid:0"),
            *("a=candidate:1 1 UDP 1 10.0.0.8 4000 typ host", "a=remote-candidates:1 10.0.0.8 4000"),
            *(
                "a=end-of-candidates",
                "a=alt:1 1 : a b 10.0.0.8 4000",
                "a=srcadr:10.0.0.8:4000 203.0.113.1:4000",
            ),
        ),
        (FIRST,),
        (
            *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "a=group:LS 0 1"),
            *("m=audio 30000 RTP/AVP 0", "a=ptime:20", "a=mid:0"),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("line_break", ["\r\n", "\n"])
def test_media_are_led_to_the_relay_and_nothing_else_changes(name: str, line_break: str) -> None:
    before, lots, after = CASES[name]
    assert relayed(text(*before, line_break=line_break), *lots) == text(*after, line_break=line_break)


@pytest.mark.parametrize("name", CASES)
def test_a_last_line_may_lack_its_line_break(name: str) -> None:
    before, lots, after = CASES[name]
    made = relayed(text(*before).removesuffix(b"\r\n"), *lots)
    assert made.removesuffix(b"\r\n") == text(*after).removesuffix(b"\r\n")


def test_what_has_been_edited_is_left_as_it_is() -> None:
    data = text(
        *HEAD, "c=IN  IP4  203.0.113.7", "t=0 0", "a=ice-lite", "m=audio 30000/2 RTP/AVP 0", "a=rtcp:9"
    )
    assert relayed(data, Lot.LEFT) == data


def test_an_answer_that_agrees_to_rtcp_mux_names_no_port_for_rtcp() -> None:
    data = text(*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=rtcp:4001 IN IP4 10.0.0.8", "a=rtcp-mux")
    assert relayed(data, APART, is_answer=True) == text(
        *HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0", "a=rtcp-mux"
    )


def test_with_ice_passed_the_relay_is_the_last_candidate() -> None:
    candidates = (
        "a=candidate:1 1 UDP 1 10.0.0.8 4000 typ host",
        "a=candidate:1 2 UDP 1 10.0.0.8 4001 typ host",
    )
    made = relayed(
        text(*AT_SESSION, "m=audio 4000 RTP/AVP 0", "a=ice-ufrag:F", *candidates, "a=sendrecv"),
        FIRST,
        strips_ice=False,
    )
    assert made == text(
        *(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 30000 RTP/AVP 0", "a=ice-ufrag:F", *candidates),
        "a=candidate:relay 1 UDP 16777215 203.0.113.7 30000 typ relay raddr 0.0.0.0 rport 9",
        "a=candidate:relay 2 UDP 16777214 203.0.113.7 30001 typ relay raddr 0.0.0.0 rport 9",
        "a=sendrecv",
    )


def test_the_session_without_a_stream_that_needs_its_address_still_hides_it() -> None:
    made = relayed(text(*AT_SESSION, "m=audio 4000 RTP/AVP 0"), Lot.REFUSED)
    assert made == text(*HEAD, "c=IN IP4 203.0.113.7", "t=0 0", "m=audio 0 RTP/AVP 0")


@pytest.mark.parametrize(
    ("media", "needs_ports"),
    [
        ("m=audio 4000 RTP/AVP 0", True),
        ("m=audio 0 RTP/AVP 0", False),
        ("m=audio 4000 UDP/TLS/RTP/SAVPF 0", True),
        ("m=image 4000 udptl t38", True),
        ("m=application 4000 UDP/DTLS/SCTP webrtc-datachannel", True),
        ("m=message 4000 TCP/MSRP *", False),
        ("m=audio 4000 TCP/RTP/AVP 0", False),
    ],
)
def test_streams_over_udp_need_ports(media: str, needs_ports: bool) -> None:
    assert is_relayed(SessionDescription.parse(text(*AT_SESSION, media)).media[0]) is needs_ports


def test_a_description_says_where_its_side_receives_and_what_it_takes() -> None:
    lines = (
        "m=audio 4000 RTP/AVP 111 0 101",
        "a=rtpmap:0 PCMU/8000",
        "a=rtpmap:111 opus/48000/2",
        "a=sendonly",
    )
    said = describe(SessionDescription.parse(text(*AT_SESSION, *lines)).media[0], HOST)
    assert said.rtp == Endpoint.of("10.0.0.8", 4000)
    assert said.rtcp == Endpoint.of("10.0.0.8", 4001)
    assert said.payload_types == {111, 0, 101}
    assert said.clock_hz == 48000
    assert said.direction is Direction.SENDONLY
    assert said.hosts == {HOST}
    assert not said.is_proven
    assert said.is_held


def test_an_address_that_signalling_comes_from_is_proven_though_it_is_private() -> None:
    media = SessionDescription.parse(text(*AT_SESSION, "m=audio 4000 RTP/AVP 0")).media[0]
    assert describe(media, ip_address("10.0.0.8")).is_proven


@pytest.mark.parametrize(
    ("connection", "rtp"),
    [
        ("c=IN IP4 0.0.0.0", None),
        ("c=IN IP4 224.2.1.1/127", None),
        ("c=IN IP4 phone.example.com", Endpoint(HOST, 4000)),
        ("c=IN IP4 2001:db8::1", Endpoint(HOST, 4000)),
        ("a=inactive", Endpoint(HOST, 4000)),
    ],
)
def test_where_no_address_is_said_media_are_sought_where_signalling_comes_from(
    connection: str, rtp: Endpoint | None
) -> None:
    media = SessionDescription.parse(text(*BARE, "m=audio 4000 RTP/AVP 0", connection)).media[0]
    assert describe(media, HOST).rtp == rtp


@pytest.mark.parametrize(
    ("lines", "clock_hz"),
    [
        (("m=audio 4000 RTP/AVP 0",), 8000),
        (("m=video 4000 RTP/AVP 31",), 90_000),
        (("m=audio 4000 RTP/AVP 96", "a=rtpmap:96 L16/44100"), 44_100),
        (("m=audio 4000 RTP/AVP 96", "a=rtpmap:96 L16/0"), 8000),
        (("m=audio 4000 RTP/AVP 96", "a=rtpmap:96 L16/99999999"), 8000),
        (("m=image 4000 udptl t38",), 8000),
        (("m=audio 4000 RTP/AVP x 999 200",), 8000),
    ],
)
def test_the_clock_is_that_of_the_first_format(lines: tuple[str, ...], clock_hz: int) -> None:
    assert describe(SessionDescription.parse(text(*AT_SESSION, *lines)).media[0], HOST).clock_hz == clock_hz


def test_what_is_no_rtp_has_no_payload_types() -> None:
    media = SessionDescription.parse(text(*AT_SESSION, "m=image 4000 udptl 38")).media[0]
    assert describe(media, HOST).payload_types == frozenset()
    assert describe(media, HOST).rtcp is None
