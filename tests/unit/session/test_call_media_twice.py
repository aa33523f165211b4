"""Calls that pass here twice: on their way to a registrar, and again on their way back to a phone of ours."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.session.flows import Flow
from nattools.session.forking import Target
from nattools.session.relay import Side
from nattools.sip.message import SipMessage
from tests.unit.session.media_desk import MediaDesk, reinvite, sdp, told
from tests.unit.session.proxy_desk import ALICE, BOB, PROXY, request

BOBS = sdp("m=audio 6000 RTP/AVP 8 101", ip="192.168.1.9")
VIDEO = "m=video 4002 RTP/AVP 96"
UPSTREAM = Endpoint.of("203.0.113.20", 5060)
SDP = sdp()
UPSTREAM_TARGET = Target(b"sip:bob@example.com", Flow("u", UPSTREAM))


def passed_on(message: SipMessage, uri: bytes, branch: str) -> bytes:
    """A request as the registrar sends it back."""
    copy = SipMessage.parse(message.data)
    assert copy.request_uri is not None
    copy.edit(copy.request_uri, uri)
    copy.insert_header_before(copy.header("via"), "Via", f"SIP/2.0/UDP {UPSTREAM};branch=z9hG4bK{branch}")
    for header in copy.headers_named("route"):
        copy.remove_header(header)
    return copy.encode()


def answered(message: SipMessage) -> bytes:
    """A response as the registrar passes it on."""
    copy = SipMessage.parse(message.data)
    copy.remove_header(copy.headers_named("via")[0])
    return copy.encode()


def call_twice_through(
    desk: MediaDesk, offer: bytes = SDP
) -> tuple[SipMessage, SipMessage, SipMessage, SipMessage]:
    """A call by way of a registrar: the INVITE as that and Bob have it, the 200 as that and Alice have it."""
    (first,) = desk.invites(offer)
    (second,) = [
        it for it in desk.give(passed_on(first, f"sip:bob@{BOB}".encode(), "up1"), UPSTREAM) if it.is_request
    ]
    (inner,) = desk.says(second, 200, BOBS)
    (outer,) = desk.give(answered(inner), UPSTREAM)
    return first, second, inner, outer


def change_twice_through(desk: MediaDesk, offer: bytes) -> tuple[SipMessage, SipMessage]:
    """A re-INVITE of Alice's, as the registrar and as Bob has it."""
    route = [("Route", f"<sip:{UPSTREAM};lr>")]
    data = request("INVITE", f"sip:bob@{BOB}", headers=route, to_tag="b", cseq=2, body=offer)
    (first,) = [it for it in desk.give(data) if it.is_request]
    back = passed_on(first, f"sip:bob@{BOB}".encode(), "up2")
    (second,) = [it for it in desk.give(back, UPSTREAM) if it.is_request]
    return first, second


def test_a_call_that_passes_here_twice_has_one_stream() -> None:
    with MediaDesk(UPSTREAM_TARGET) as desk:
        messages = call_twice_through(desk)
        (stream,) = desk.engine.streams
        ports = [stream.ports(side).rtp for side in (Side.B, Side.B, Side.A, Side.A)]
        assert [told(it)[0] for it in messages] == ports
        assert messages[0].body == messages[1].body
        assert messages[2].body == messages[3].body
        assert stream.latest(Side.A).hosts == {ALICE.ip}
        assert stream.latest(Side.B).hosts == {BOB.ip}
        assert len(stream.told[Side.A]) == 2
        assert len(stream.told[Side.B]) == 1
        (bye,) = desk.within("BYE", source=ALICE)
        desk.says(bye)
        assert not desk.engine.open


def test_a_delayed_offer_that_passes_here_twice_goes_through_two_streams() -> None:
    with MediaDesk(UPSTREAM_TARGET) as desk:
        *_, inner, outer = call_twice_through(desk, b"")
        first, second = desk.engine.open
        assert told(inner) == [second.ports(Side.A).rtp]
        assert told(outer) == [first.ports(Side.A).rtp]
        route = [("Route", f"<sip:{UPSTREAM};lr>")]
        ack = request("ACK", f"sip:bob@{BOB}", headers=route, to_tag="b", body=sdp())
        (there,) = desk.give(ack)
        (back,) = desk.give(passed_on(there, f"sip:bob@{BOB}".encode(), "up3"), UPSTREAM)
        assert told(there) == [first.ports(Side.B).rtp]
        assert told(back) == [second.ports(Side.B).rtp]
        assert first.latest(Side.A).hosts == {ALICE.ip}
        assert first.latest(Side.B).rtp == second.ports(Side.A).rtp
        assert second.latest(Side.A).rtp == first.ports(Side.B).rtp


def test_a_delayed_offer_that_comes_back_by_another_relay_goes_round_in_no_circle() -> None:
    relay = Endpoint.of("203.0.113.20", 31000)
    with MediaDesk(UPSTREAM_TARGET) as desk:
        (first,) = desk.invites(b"")
        uri = f"sip:bob@{BOB}".encode()
        (second,) = [it for it in desk.give(passed_on(first, uri, "up1"), UPSTREAM) if it.is_request]
        (inner,) = desk.says(second, 200, BOBS)
        there = SipMessage.parse(answered(inner))
        there.replace_body(sdp(f"m=audio {relay.port} RTP/AVP 8", ip=str(relay.ip)))
        desk.give(there.encode(), UPSTREAM)
        outer, nearer = desk.engine.open
        assert outer.latest(Side.B).rtp == relay
        assert nearer.latest(Side.B).rtp == Endpoint.of("192.168.1.9", 6000)


def test_a_change_that_passes_here_twice_and_is_refused_leaves_all_as_it_was() -> None:
    with MediaDesk(UPSTREAM_TARGET) as desk:
        call_twice_through(desk)
        (stream,) = desk.engine.open
        before = stream.latest(Side.A)
        first, second = change_twice_through(desk, sdp("m=audio 9000 RTP/AVP 0", VIDEO, version=2))
        assert told(first) == told(second) == [it.ports(Side.B).rtp for it in desk.engine.open]
        assert stream.latest(Side.A) != before
        (inner,) = [it for it in desk.says(second, 488) if it.status_code == 488]
        desk.give(answered(inner), UPSTREAM)
        assert stream.latest(Side.A) == before
        assert desk.engine.open == [stream]


def test_a_call_that_passes_here_twice_may_fail_there_and_go_on_elsewhere() -> None:
    with MediaDesk(UPSTREAM_TARGET) as desk:
        (first,) = desk.invites(sdp())
        back = passed_on(first, f"sip:bob@{BOB}".encode(), "up1")
        (second,) = [it for it in desk.give(back, UPSTREAM) if it.is_request]
        desk.says(second, 486)
        assert len(desk.engine.open) == 1, "the registrar may know another phone"
        desk.says(first, 486, source=UPSTREAM)
        assert not desk.engine.open


def test_where_the_phone_needs_another_address_the_call_goes_through_two_streams() -> None:
    elsewhere = ip_address("10.0.0.7")
    with MediaDesk(UPSTREAM_TARGET) as desk:
        desk.facing[BOB] = elsewhere
        messages = call_twice_through(desk)
        first, second = desk.engine.open
        streams = first, second, second, first
        sides = Side.B, Side.B, Side.A, Side.A
        for message, stream, side in zip(messages, streams, sides, strict=True):
            assert told(message) == [stream.ports(side).rtp]
        assert second.ports(Side.B).rtp.ip == elsewhere
        inward, onward = first.latest(Side.B), second.latest(Side.A)
        assert (inward.rtp, inward.is_proven) == (second.ports(Side.A).rtp, True)
        assert (onward.rtp, onward.is_proven) == (first.ports(Side.B).rtp, True)
        assert second.latest(Side.B).rtp == Endpoint.of("192.168.1.9", 6000)
        for source in (
            BOB,
            Endpoint.of("203.0.113.99", 5060),
        ):  # his phone, which may have moved
            offer = sdp("m=audio 9100 RTP/AVP 0", ip="192.168.1.9", version=2)
            sent = desk.within("INVITE", offer, by_bob=True, source=source, cseq=source.port)
            (invite,) = [it for it in sent if it.is_request]
            assert second.latest(Side.B).rtp == Endpoint.of("192.168.1.9", 9100)
            assert told(invite) == [second.ports(Side.A).rtp]
            desk.says(invite, 491, source=ALICE)
        changed = sdp("m=audio 9000 RTP/AVP 0", version=2)
        invite, again = change_twice_through(desk, changed)
        assert told(invite) == [first.ports(Side.B).rtp]
        assert told(again) == [second.ports(Side.B).rtp]
        assert second.latest(Side.A).rtp == first.ports(Side.B).rtp
        desk.says(again, 491)
        (bye,) = desk.within("BYE", cseq=3)
        desk.says(bye)
        assert not desk.engine.open


def test_a_phone_that_names_a_port_of_the_relay_gets_nothing_sent_there() -> None:
    with MediaDesk() as desk:
        desk.call()
        (stream,) = desk.engine.open
        for side in Side:
            port = stream.ports(side).rtp.port
            reinvite(desk, sdp(f"m=audio {port} RTP/AVP 0", ip=str(PROXY.ip)), b"", 488, cseq=10 + port)
        assert desk.media.counters["streams_looped"] >= 1
        named = [it.rtp for side in Side for it in stream.told[side]]
        assert not {stream.ports(side).rtp for side in Side} & set(named)


@pytest.mark.parametrize("rtcp", [False, True])
def test_nobody_has_two_calls_send_to_each_other_by_their_rtcp_ports(rtcp: bool) -> None:
    with MediaDesk() as desk:
        desk.call()
        (stream,) = desk.engine.open
        port = stream.ports(Side.B).rtcp.port
        named = f"m=audio 4000 RTP/AVP 0\r\na=rtcp:{port} IN IP4 {PROXY.ip}" if rtcp else ""
        offer = sdp(named or f"m=audio {port} RTP/AVP 0", ip=str(ALICE.ip if rtcp else PROXY.ip))
        via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKother"]
        desk.give(request(via=via, call_id="another", body=offer))
        (_, other) = desk.engine.open
        assert (other.latest(Side.A).rtp, other.latest(Side.A).rtcp) == (None, None)
        assert desk.media.counters["streams_looped"] == 1


def test_a_call_that_names_a_port_of_another_call_gets_streams_of_its_own() -> None:
    with MediaDesk() as desk:
        desk.call()
        (stream,) = desk.engine.open
        port = stream.ports(Side.B).rtp.port
        offer = sdp(f"m=audio {port} RTP/AVP 0", ip=str(PROXY.ip))
        via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKother"]
        (invite,) = [it for it in desk.give(request(via=via, call_id="another", body=offer)) if it.is_request]
        (_, other) = desk.engine.open
        assert told(invite) == [other.ports(Side.B).rtp]
        assert other.latest(Side.A).rtp is None
        assert desk.media.counters["streams_looped"] == 1
        desk.says(invite, 486)
