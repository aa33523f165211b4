"""The media of calls: which streams are open when, what they are told, and what both sides are told."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.session.relay import Side
from nattools.session.status import StreamStatus
from tests.unit.session.media_desk import (
    HOLD_TIMEOUT_S,
    TIMEOUT_S,
    MediaDesk,
    line,
    reinvite,
    sdp,
    told,
)
from tests.unit.session.proxy_desk import ALICE, BOB, BOB_TARGET, CAROL, CAROL_TARGET, PROXY, request

AUDIO = "m=audio 4000 RTP/AVP 0 101"
VIDEO = "m=video 4002 RTP/AVP 96"
BOBS = sdp("m=audio 6000 RTP/AVP 8 101", ip="192.168.1.9")


def test_both_sides_are_told_ports_of_the_relay_and_it_is_told_of_both() -> None:
    with MediaDesk() as desk:
        invite, ok = desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        assert told(invite) == [stream.ports(Side.B).rtp]
        assert told(ok) == [stream.ports(Side.A).rtp]
        alice, bob = stream.latest(Side.A), stream.latest(Side.B)
        assert (alice.rtp, bob.rtp) == (Endpoint.of("192.168.0.108", 4000), Endpoint.of("192.168.1.9", 6000))
        assert alice.payload_types == {8, 101}, "Alice sends what Bob takes"
        assert bob.payload_types == {0, 101}
        assert alice.hosts == {ALICE.ip}
        assert bob.hosts == {BOB.ip}
        assert not desk.media.counters


def test_no_address_of_a_phone_is_left_in_a_description() -> None:
    with MediaDesk() as desk:
        for message in desk.call(sdp(), BOBS):
            assert b"192.168." not in message.body
            assert line(message, "o=") == [f"o=- 7 1 IN IP4 {PROXY.ip}"]


def test_the_end_of_a_call_closes_its_streams() -> None:
    with MediaDesk() as desk:
        desk.call()
        (bye,) = desk.within("BYE")
        assert desk.engine.open
        desk.says(bye)
        assert not desk.engine.open
        assert not desk.media.status(b"call")


@pytest.mark.parametrize("code", [302, 407, 486, 603])
def test_a_call_that_fails_closes_its_streams(code: int) -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp())
        assert desk.engine.open
        desk.says(invite, code)
        assert not desk.engine.open


def test_a_call_that_is_cancelled_while_ports_are_looked_for_leaves_none_open() -> None:
    with MediaDesk() as desk:
        desk.holds = True
        via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa"]
        desk.give(request(via=via, body=sdp()))
        (received,) = desk.waiting

        async def cancel() -> None:
            await desk.take(request("CANCEL", via=via))

        desk.runner.run(desk.race(received, cancel))
        assert desk.engine.streams
        assert not desk.engine.open


def test_without_ports_for_all_its_streams_a_call_gets_none() -> None:
    with MediaDesk() as desk:
        desk.engine.most = 1
        desk.holds = True
        assert desk.invites(sdp(AUDIO, VIDEO)) == []
        (received,) = desk.waiting

        async def prepare() -> None:
            with pytest.raises(LocalAddressError):
                await desk.media.prepare(received, desk.proxy.leaves_by(received.number, desk.targets))
            await asyncio.sleep(0)

        desk.runner.run(prepare())
        assert len(desk.engine.streams) == 1
        assert not desk.engine.open


def test_a_change_that_is_cancelled_while_ports_are_looked_for_leaves_none_open() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        desk.holds = True
        via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKc"]
        desk.give(request("INVITE", to_tag="b", cseq=2, via=via, body=sdp(AUDIO, VIDEO)))
        (received,) = desk.waiting

        async def cancel() -> None:
            await desk.take(request("CANCEL", to_tag="b", cseq=2, via=via))

        desk.runner.run(desk.race(received, cancel))
        desk.pass_time(1)
        assert len(desk.engine.streams) == 2
        assert desk.engine.open == [stream]


def test_early_media_and_the_answer_have_the_same_ports_and_the_same_version() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp())
        (early,) = desk.says(invite, 183, BOBS)
        (ok,) = desk.says(invite, 200, BOBS)
        (again,) = desk.says(invite, 200, BOBS)
        assert early.body == ok.body == again.body
        (stream,) = desk.engine.open
        assert len(stream.told[Side.B]) == 2, "what comes again says nothing new"


def test_each_branch_of_a_fork_has_streams_of_its_own() -> None:
    with MediaDesk(BOB_TARGET, CAROL_TARGET) as desk:
        bobs, carols = desk.invites(sdp())
        assert told(bobs) != told(carols)
        (early,) = desk.says(bobs, 183, BOBS, tag="b")
        (ok,) = desk.says(carols, 200, sdp(ip="192.168.2.2"), source=CAROL, tag="c")[-1:]
        first, second = desk.engine.open
        assert told(early) == [first.ports(Side.A).rtp]
        assert told(ok) == [second.ports(Side.A).rtp]
        assert second.latest(Side.B).hosts == {CAROL.ip}
        desk.says(bobs, 487, tag="b")
        desk.pass_time(20)
        assert desk.engine.open == [first, second], "another 2xx may still come"
        desk.pass_time(20)
        assert desk.engine.open == [second]


def test_a_second_phone_that_answers_has_its_own_streams_till_its_own_end() -> None:
    with MediaDesk(BOB_TARGET, CAROL_TARGET) as desk:
        bobs, carols = desk.invites(sdp())
        desk.says(bobs, 200, BOBS, tag="b")
        desk.says(carols, 200, sdp(ip="192.168.2.2"), source=CAROL, tag="c")
        _, second = desk.engine.open
        (bye,) = desk.within("BYE", tags=("a", "b"))
        desk.says(bye)
        assert desk.engine.open == [second]


def test_forks_beyond_the_next_proxy_share_ports_and_the_latest_is_heard() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp())
        desk.says(invite, 183, BOBS, tag="b1")
        (ok,) = desk.says(invite, 200, sdp("m=audio 7000 RTP/AVP 0", ip="192.168.3.3"), tag="b2")
        (stream,) = desk.engine.open
        assert stream.latest(Side.B).rtp == Endpoint.of("192.168.3.3", 7000)
        assert told(ok) == [stream.ports(Side.A).rtp]
        (bye,) = desk.within("BYE", tags=("a", "b2"))
        desk.says(bye, tag="b2")
        assert not desk.engine.open


def test_a_delayed_offer_is_relayed_and_what_was_open_in_vain_closes() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites()
        assert not invite.body
        assert len(desk.engine.open) == 2
        (ok,) = desk.says(invite, 200, BOBS)
        (stream,) = desk.engine.open
        assert told(ok) == [stream.ports(Side.A).rtp]
        (ack,) = desk.within("ACK", sdp(), cseq=1)
        assert told(ack) == [stream.ports(Side.B).rtp]
        assert stream.latest(Side.A).rtp == Endpoint.of("192.168.0.108", 4000)
        assert stream.latest(Side.A).payload_types == {8, 101}


def test_a_delayed_offer_of_more_streams_than_are_open_is_cut_short() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites()
        (ok,) = desk.says(invite, 200, sdp(AUDIO, VIDEO, VIDEO))
        assert [it is not None for it in told(ok)] == [True, True, False]
        assert desk.media.counters["streams_refused"] == 1


def test_a_delayed_offer_may_be_answered_in_a_prack() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites()
        (early,) = desk.says(invite, 183, BOBS, headers=[("Require", "100rel"), ("RSeq", "1")])
        (prack,) = desk.within("PRACK", sdp(), cseq=2)
        (stream, _) = desk.engine.open
        assert told(early) == [stream.ports(Side.A).rtp]
        assert told(prack) == [stream.ports(Side.B).rtp]
        desk.says(prack)
        desk.says(invite, 200)
        assert desk.engine.open == [stream]


def test_an_update_moves_a_stream() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        moved = sdp("m=audio 9000 RTP/AVP 0 101", ip="192.168.0.109", version=2)
        (update,) = desk.within("UPDATE", moved)
        assert told(update) == [stream.ports(Side.B).rtp]
        assert stream.latest(Side.A).rtp == Endpoint.of("192.168.0.109", 9000)
        (ok,) = desk.says(update, 200, BOBS)
        assert told(ok) == [stream.ports(Side.A).rtp]
        assert desk.engine.streams == [stream]


@pytest.mark.parametrize("by_bob", [False, True])
def test_a_reinvite_of_either_side_goes_on_with_the_same_streams(by_bob: bool) -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        offer = sdp("m=audio 9000 RTP/AVP 0 101", version=2, ip="192.168.7.7")
        (invite,) = [it for it in desk.within("INVITE", offer, by_bob=by_bob) if it.is_request]
        side = Side.B if by_bob else Side.A
        assert told(invite) == [stream.ports(side.other).rtp]
        assert stream.latest(side).rtp == Endpoint.of("192.168.7.7", 9000)
        (ok,) = desk.says(invite, 200, BOBS, source=ALICE if by_bob else BOB)
        assert told(ok) == [stream.ports(side).rtp]
        assert desk.engine.streams == [stream]


@pytest.mark.parametrize(
    "hold",
    [
        sdp(AUDIO, "a=sendonly", version=2),
        sdp(AUDIO, "a=inactive", version=2),
        sdp(AUDIO, version=2, ip="0.0.0.0"),
    ],
)
def test_hold_keeps_the_stream_open(hold: bytes) -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        (invite,) = [it for it in desk.within("INVITE", hold) if it.is_request]
        assert stream.latest(Side.A).rtp is not None, "nobody has agreed to hold yet"
        desk.says(invite, 491)
        offer, _ = reinvite(desk, hold, BOBS, cseq=3)
        assert b"m=audio %d " % stream.ports(Side.B).rtp.port in offer
        assert (b"c=IN IP4 0.0.0.0" in offer) is (b"0.0.0.0" in hold)
        assert (stream.latest(Side.A).rtp is None) is (b"0.0.0.0" in hold)
        reinvite(desk, sdp(version=3), BOBS, cseq=4)
        assert stream.latest(Side.A).rtp == Endpoint.of("192.168.0.108", 4000)
        assert desk.engine.open == [stream]


def test_a_stream_more_is_opened_and_closes_when_it_is_removed() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (audio,) = desk.engine.open
        both = sdp("m=audio 6000 RTP/AVP 8 101", "m=video 6002 RTP/AVP 96", ip="192.168.1.9")
        reinvite(desk, sdp(AUDIO, VIDEO), both)
        assert len(desk.engine.open) == 2
        removed = sdp("m=audio 6000 RTP/AVP 8 101", "m=video 0 RTP/AVP 96", ip="192.168.1.9")
        reinvite(desk, sdp(AUDIO, "m=video 0 RTP/AVP 96"), removed, cseq=3)
        assert desk.engine.open == [audio]
        reinvite(desk, sdp(AUDIO, VIDEO), both, cseq=4)
        assert len(desk.engine.open) == 2
        assert desk.engine.streams[1].is_closed


def test_a_stream_that_is_not_taken_closes() -> None:
    with MediaDesk() as desk:
        _, ok = desk.call(sdp(AUDIO, VIDEO), sdp(AUDIO, "m=video 0 RTP/AVP 96"))
        (audio,) = desk.engine.open
        assert told(ok) == [audio.ports(Side.A).rtp, None]


def test_the_version_rises_where_ports_have_changed_and_the_phone_does_not_know() -> None:
    with MediaDesk() as desk:
        invite, _ = desk.call(sdp(AUDIO, VIDEO), sdp(AUDIO, "m=video 0 RTP/AVP 96"))
        first, _ = reinvite(desk, sdp(AUDIO, VIDEO), sdp(AUDIO, VIDEO))
        assert line(invite, "o=") == [f"o=- 7 1 IN IP4 {PROXY.ip}"]
        assert b"o=- 7 2 IN IP4 203.0.113.7" in first


@pytest.mark.parametrize("code", [488, 491, 500])
def test_a_refused_change_leaves_all_as_it_was(code: int) -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        before = stream.latest(Side.A), stream.latest(Side.B)
        changed = sdp("m=audio 9000 RTP/AVP 18", VIDEO, ip="192.168.0.200", version=2)
        reinvite(desk, changed, b"", code)
        assert stream.latest(Side.A) == before[0]
        assert stream.latest(Side.B) == before[1]
        assert desk.engine.open == [stream]
        assert len(desk.engine.streams) == 2


def test_a_change_that_nobody_answers_leaves_all_as_it_was() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        before = stream.latest(Side.A)
        desk.within("UPDATE", sdp("m=audio 9000 RTP/AVP 18", ip="192.168.0.200", version=2))
        assert stream.latest(Side.A) != before
        desk.pass_time(40)
        assert stream.latest(Side.A) == before


def test_offers_that_cross_leave_all_as_it_was() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        before = stream.latest(Side.A), stream.latest(Side.B)
        (alices,) = [it for it in desk.within("INVITE", sdp("m=audio 9000 RTP/AVP 0")) if it.is_request]
        crossing = sdp("m=audio 9100 RTP/AVP 0", ip="192.168.1.9")
        (bobs,) = [it for it in desk.within("INVITE", crossing, cseq=1, by_bob=True) if it.is_request]
        desk.says(alices, 491)
        desk.says(bobs, 491, source=ALICE)
        assert (stream.latest(Side.A), stream.latest(Side.B)) == before
        reinvite(desk, sdp("m=audio 9000 RTP/AVP 0", version=2), BOBS, cseq=3)
        assert stream.latest(Side.A).rtp == Endpoint.of("192.168.0.108", 9000)


def test_payload_types_of_an_offer_count_before_it_is_answered() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        desk.within("INVITE", sdp("m=audio 4000 RTP/AVP 18", version=2))
        assert stream.latest(Side.B).payload_types == {0, 101, 18}


def test_fax_takes_over_the_stream_of_the_voice() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(), BOBS)
        (stream,) = desk.engine.open
        fax = "m=image 4000 udptl t38"
        offer, _ = reinvite(desk, sdp(fax, version=2), sdp(fax, ip="192.168.1.9"))
        assert b"m=image %d udptl t38" % stream.ports(Side.B).rtp.port in offer
        assert stream.latest(Side.A).payload_types == stream.latest(Side.B).payload_types == frozenset()


def test_rtcp_mux_holds_where_both_sides_say_so() -> None:
    with MediaDesk() as desk:
        desk.call(sdp(AUDIO, "a=rtcp-mux"), BOBS)
        (stream,) = desk.engine.open
        assert not stream.latest(Side.A).rtcp_mux
        reinvite(desk, sdp(AUDIO, "a=rtcp-mux", version=2), sdp(AUDIO, "a=rtcp-mux", ip="192.168.1.9"))
        assert stream.latest(Side.A).rtcp_mux
        assert stream.latest(Side.B).rtcp_mux


def test_of_very_many_streams_most_are_refused() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp(*[AUDIO] * 500))
        assert len(desk.engine.open) == 8
        assert [it is not None for it in told(invite)] == [True] * 8 + [False] * 492
        desk.says(invite, 486)


def test_streams_over_tcp_pass_by_the_relay() -> None:
    with MediaDesk() as desk:
        invite, _ = desk.call(sdp("m=message 5000 TCP/MSRP *"), sdp("m=message 5000 TCP/MSRP *"))
        assert told(invite) == [Endpoint.of("192.168.0.108", 5000)]
        assert not desk.engine.streams


def test_a_description_inside_a_multipart_body_is_relayed() -> None:
    with MediaDesk() as desk:
        body = (
            b"--x\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%b\r\n"
            b"--x\r\nContent-Type: text/plain\r\n\r\n192.168.0.108\r\n--x--\r\n" % (len(sdp()), sdp())
        )
        data = request(
            headers=[("Content-Type", "multipart/mixed;boundary=x"), ("Max-Forwards", "7")], body=b""
        )
        head, _ = data.split(b"Content-Length: 0")
        (invite,) = [
            it
            for it in desk.give(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            if it.is_request
        ]
        (stream,) = desk.engine.open
        assert b"m=audio %d " % stream.ports(Side.B).rtp.port in invite.body
        assert b"text/plain\r\n\r\n192.168.0.108\r\n" in invite.body
        assert invite.declared_length == len(invite.body)
        desk.says(invite, 486)


def test_a_body_that_a_digest_covers_stays_with_its_answer() -> None:
    with MediaDesk() as desk:
        signed = [("Authorization", 'Digest username="a", qop=auth-int, nc=1'), ("Max-Forwards", "70")]
        (invite,) = [it for it in desk.give(request(body=sdp(), headers=signed)) if it.is_request]
        (ok,) = desk.says(invite, 200, BOBS)
        assert (invite.body, ok.body) == (sdp(), BOBS)
        assert not desk.engine.streams
        assert desk.media.counters["descriptions_signed"] == 2


@pytest.mark.parametrize("body", [b"v=0\r\nm=audio\r\n", b"nothing", b"v=0\r\n" * 9000])
def test_what_is_no_description_passes_as_it_came(body: bytes) -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(body)
        assert invite.body == body
        desk.says(invite, 486)
        assert not desk.engine.open


def test_what_belongs_to_no_call_is_refused_in_the_name_of_the_relay() -> None:
    with MediaDesk() as desk:
        (prack,) = desk.within("PRACK", sdp())
        assert told(prack) == [None]
        assert b"192.168.0.108" not in prack.body.split(b"s=-")[1]
        assert desk.media.counters["streams_refused"] == 1
        assert not desk.engine.streams


def test_a_reinvite_of_a_call_from_before_a_restart_brings_new_streams() -> None:
    with MediaDesk() as desk:
        offer, answer = reinvite(desk, sdp(version=5), BOBS)
        (stream,) = desk.engine.open
        assert b"m=audio %d " % stream.ports(Side.B).rtp.port in offer
        assert b"m=audio %d " % stream.ports(Side.A).rtp.port in answer
        (bye,) = desk.within("BYE", cseq=3, by_bob=True)
        desk.says(bye, source=ALICE)
        assert not desk.engine.open


def test_an_update_of_a_call_from_before_a_restart_brings_new_streams_that_silence_ends() -> None:
    with MediaDesk() as desk:
        (update,) = desk.within("UPDATE", sdp())
        desk.says(update, 200, BOBS)
        assert len(desk.engine.open) == 1
        desk.pass_time(TIMEOUT_S + 5)
        assert not desk.engine.open


def test_a_call_from_before_a_restart_ends_whoever_was_heard_first() -> None:
    with MediaDesk() as desk:
        (update,) = desk.within("UPDATE", sdp())
        desk.says(update, 200, BOBS)
        (invite,) = [it for it in desk.within("INVITE", BOBS, by_bob=True, cseq=7) if it.is_request]
        desk.says(invite, 200, sdp(), source=ALICE)
        assert len(desk.engine.open) == 1
        (bye,) = desk.within("BYE", cseq=8, by_bob=True)
        desk.says(bye, source=ALICE)
        assert not desk.engine.open


def test_what_others_are_told_is_the_public_address() -> None:
    public = ip_address("198.51.100.7")
    with MediaDesk(advertised=lambda endpoint: Endpoint(public, endpoint.port)) as desk:
        invite, ok = desk.call()
        (stream,) = desk.engine.open
        assert told(invite) == [Endpoint(public, stream.ports(Side.B).rtp.port)]
        assert told(ok) == [Endpoint(public, stream.ports(Side.A).rtp.port)]
        assert line(ok, "o=") == ["o=- 7 1 IN IP4 198.51.100.7"]


# --- silence ---


def test_a_call_in_which_nobody_is_heard_is_hung_up_on_both_sides() -> None:
    with MediaDesk() as desk:
        desk.call()
        sent = desk.pass_time(TIMEOUT_S - 2)
        assert not sent
        byes = [it for it in desk.pass_time(4) if it.method == "BYE"]
        assert len(byes) >= 2
        assert desk.ended() == 1
        assert not desk.engine.open


def test_a_call_in_which_one_side_is_heard_goes_on() -> None:
    with MediaDesk() as desk:
        desk.call()
        (stream,) = desk.engine.open
        for _ in range(5):
            desk.pass_time(TIMEOUT_S - 5)
            stream.heard_at = desk.now
        desk.pass_time(TIMEOUT_S - 5)
        assert desk.engine.open
        desk.pass_time(10)
        assert not desk.engine.open


@pytest.mark.parametrize("lines", [(AUDIO, "a=sendonly"), (AUDIO, "a=inactive")])
def test_a_call_on_hold_may_be_silent_for_longer(lines: tuple[str, ...]) -> None:
    with MediaDesk() as desk:
        desk.call()
        reinvite(desk, sdp(*lines, version=2), BOBS)
        desk.pass_time(HOLD_TIMEOUT_S - 5, step_s=5)
        assert desk.engine.open
        desk.pass_time(10)
        assert not desk.engine.open


def test_a_call_that_comes_back_from_hold_may_not() -> None:
    with MediaDesk() as desk:
        desk.call()
        reinvite(desk, sdp(AUDIO, "a=inactive", version=2), BOBS)
        desk.pass_time(5)
        reinvite(desk, sdp(version=3), BOBS, cseq=3)
        desk.pass_time(TIMEOUT_S + 5)
        assert not desk.engine.open


def test_a_phone_that_rings_is_not_given_up_for_its_silence() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp())
        desk.says(invite, 183, BOBS)
        desk.pass_time(170)
        assert desk.engine.open
        desk.pass_time(100)
        assert not desk.engine.open, "timer C"


def test_with_ice_of_both_sides_passed_on_silence_at_the_relay_means_nothing() -> None:
    candidate = "a=candidate:1 1 UDP 1 192.168.0.108 4000 typ host"
    with MediaDesk(strip_ice=False) as desk:
        desk.call(sdp(AUDIO, candidate), sdp(AUDIO, candidate))
        desk.pass_time(TIMEOUT_S + 5)
        assert desk.engine.open


def test_the_streams_of_a_call_are_shown() -> None:
    with MediaDesk() as desk:
        both = sdp(AUDIO, VIDEO)
        desk.call(both, both)
        shown = desk.media.status(b"call")
        assert [it.kind for it in shown] == ["audio", "video"]
        assert all(isinstance(it, StreamStatus) and not it.in_kernel for it in shown)
        assert desk.media.status(b"another") == ()


def test_streams_that_were_found_go_on_till_nobody_is_heard_in_them() -> None:
    with MediaDesk() as desk:
        found = desk.runner.run(desk.engine.open_stream())
        desk.media.adopt([found])
        desk.pass_time(TIMEOUT_S - 5)
        found.heard_at = desk.now
        desk.pass_time(TIMEOUT_S - 5)
        assert not found.is_closed
        desk.pass_time(10)
        assert found.is_closed


def test_a_call_may_be_ipv4_on_one_side_and_ipv6_on_the_other() -> None:
    with MediaDesk() as desk:
        desk.facing[BOB] = ip_address("2001:db8::7")
        invite, ok = desk.call(sdp(AUDIO, "a=rtcp:4001"), sdp(ip="2001:db8:2::9", family="IP6"))
        (stream,) = desk.engine.open
        assert told(invite) == [stream.ports(Side.B).rtp]
        assert line(invite, "c=") == ["c=IN IP6 2001:db8::7"]
        assert line(invite, "o=") == ["o=- 7 1 IN IP6 2001:db8::7"]
        assert told(ok) == [stream.ports(Side.A).rtp]
        assert line(ok, "c=") == [f"c=IN IP4 {PROXY.ip}"]
        assert stream.latest(Side.B).rtp == Endpoint.of("2001:db8:2::9", 4000)
