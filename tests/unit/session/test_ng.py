"""The ng protocol of rtpengine: requests, answers, and the SDP in them."""

from __future__ import annotations

import json

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.ng import (
    Answer,
    compose_request,
    compose_side,
    parse_answer,
    parse_ports,
    parse_received,
)
from nattools.session.relay import Expectation, PortPair
from nattools.sip.sdp import SessionDescription

PRIVATE = Endpoint.of("192.168.0.108", 5004)
RTP = Endpoint.of("198.51.100.8", 5004)
# What rtpengine 10.5.3 says of a stream on hold, whose c= line names no address.
HELD = (
    "v=0\r\no=- 1 1 IN IP4 203.0.113.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    "m=audio 30000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendonly\r\na=rtcp:30001\r\n"
)


def test_a_request_is_a_cookie_and_an_object() -> None:
    data = compose_request("c1", "offer", {"call-id": "x", "flags": ["strict source"]})
    cookie, _space, rest = data.partition(b" ")
    assert cookie == b"c1"
    assert json.loads(rest) == {"command": "offer", "call-id": "x", "flags": ["strict source"]}


def test_an_answer_says_what_is_refused_and_why() -> None:
    assert parse_answer(b'c1 {"result": "pong"}') == Answer("c1", {"result": "pong"})
    refused = parse_answer(b'c2 {"result": "error", "error-reason": "Unknown call-id"}')
    assert (refused.cookie, refused.reason) == ("c2", "Unknown call-id")
    assert parse_answer(b'c3 {"result": "error"}').reason


@pytest.mark.parametrize(
    "data", [b"", b"c1", b"c1 ", b"c1 {", b"c1 7", b"c1 {}", b'c1 {"result": 7}', b'\xff {"result": "ok"}']
)
def test_what_is_no_answer_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="rtpengine"):
        parse_answer(data)


def test_a_side_is_described_as_it_expects() -> None:
    expectation = Expectation(RTP, RTP.with_port(5099), payload_types=frozenset({101, 0, 8}), rtcp_mux=True)
    media = SessionDescription.parse(compose_side(expectation, version=3).encode()).media[0]
    assert (media.kind, media.port, media.is_rtcp_mux) == ("audio", 5004, True)
    assert compose_side(expectation, version=3).splitlines() == [
        "v=0",
        "o=- 1 3 IN IP4 198.51.100.8",
        "s=-",
        "c=IN IP4 198.51.100.8",
        "t=0 0",
        "m=audio 5004 RTP/AVP 0 8 101",
        "a=rtcp:5099 IN IP4 198.51.100.8",
        "a=rtcp-mux",
    ]


@pytest.mark.parametrize(
    ("expectation", "ipv6", "lines"),
    [
        (None, False, ["c=IN IP4 0.0.0.0", "m=audio 9 RTP/AVP 0"]),
        (None, True, ["c=IN IP6 ::", "m=audio 9 RTP/AVP 0"]),
        (Expectation(None, payload_types=frozenset({8})), False, ["c=IN IP4 0.0.0.0", "m=audio 9 RTP/AVP 8"]),
        (Expectation(RTP), False, ["c=IN IP4 198.51.100.8", "m=image 5004 udptl t38"]),
        # rtpengine would send there for 3 s before it followed the phone to where it is heard from
        (
            Expectation(PRIVATE, payload_types=frozenset({0})),
            False,
            ["c=IN IP4 0.0.0.0", "m=audio 9 RTP/AVP 0"],
        ),
        (
            Expectation(PRIVATE, payload_types=frozenset({0}), is_proven=True),
            False,
            ["c=IN IP4 192.168.0.108", "m=audio 5004 RTP/AVP 0"],
        ),
        (
            Expectation(Endpoint.of("2001:db8::8", 5004), payload_types=frozenset({0})),
            False,
            ["c=IN IP6 2001:db8::8", "m=audio 5004 RTP/AVP 0"],
        ),
    ],
)
def test_a_side_that_receives_nothing_and_one_that_is_no_rtp(
    expectation: Expectation | None, ipv6: bool, lines: list[str]
) -> None:
    written = compose_side(expectation, version=1, ipv6=ipv6).splitlines()
    assert [line for line in written if line[0] in "cm"] == lines


def test_the_ports_of_a_stream_on_hold_are_at_the_address_of_its_origin() -> None:
    answer = Answer("c", {"result": "ok", "sdp": HELD})
    rtp = Endpoint.of("203.0.113.1", 30000)
    assert parse_ports(answer) == PortPair(rtp, rtp.with_port(30001))
    muxed = Answer("c", {"result": "ok", "sdp": HELD.replace("a=rtcp:30001\r\n", "a=rtcp-mux\r\n")})
    assert parse_ports(muxed) == PortPair(rtp, rtp)


@pytest.mark.parametrize("sdp", [None, 7, "", "v=0\r\n", HELD.replace("m=audio 30000", "m=audio 0")])
def test_an_answer_without_ports_is_a_decode_error(sdp: object) -> None:
    with pytest.raises(DecodeError):
        parse_ports(Answer("c", {"result": "ok", "sdp": sdp}))


def test_what_a_side_has_sent_is_read_from_a_query() -> None:
    stream = {
        "stats": {"packets": 20, "bytes": 3440, "errors": 0},
        "endpoint": {"family": "IPv4", "address": "198.51.100.8", "port": 5004},
    }
    fields = {"result": "ok", "tags": {"a": {"medias": [{"streams": [stream]}]}}}
    received = parse_received(Answer("c", fields), "a")
    assert (received.packets, received.octets, received.endpoint) == (20, 3440, RTP)
    with pytest.raises(DecodeError, match="'b'"):
        parse_received(Answer("c", fields), "b")


@pytest.mark.parametrize("tags", [7, {"a": 7}, {"a": {"medias": []}}, {"a": {"medias": [{"streams": [{}]}]}}])
def test_a_query_that_tells_nothing_is_a_decode_error(tags: object) -> None:
    with pytest.raises(DecodeError, match="'a'"):
        parse_received(Answer("c", {"result": "ok", "tags": tags}), "a")
