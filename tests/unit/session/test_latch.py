"""Whose packets a side is made of: rule by rule, with a fake clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.latch import PATIENCE_S, SILENCE_S, WINDOW_S, Latch
from nattools.session.reception import NEAR_STEPS
from nattools.session.relay import Expectation
from tests.unit.session.rtp import (
    ATTACKER,
    EVENT,
    MAPPED,
    OTHER_ATTACKER,
    PCMU,
    PEER,
    PHONE,
    REBOUND,
    behind_nat,
    in_public,
    rtcp,
    rtp,
)

STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)


def told(expectation: Expectation, *, now: float = 0.0) -> Latch:
    latch = Latch()
    latch.expect(expectation, now=now)
    return latch


def speak(
    latch: Latch, source: Endpoint, sequences: range, *, now: float, ssrc: int = 0xA11CE, pace_s: float = 0.02
) -> list[bool]:
    """Have packets in a row come from `source`; which of them were taken."""
    return [
        latch.receive(rtp(sequence, ssrc=ssrc), source, now=now + number * pace_s)
        for number, sequence in enumerate(sequences)
    ]


def latched(expectation: Expectation | None = None, source: Endpoint = MAPPED) -> Latch:
    """A side that has been speaking from `source` since 0 s, for a minute."""
    latch = told(expectation or behind_nat())
    assert speak(latch, source, range(1, 3000), now=0.0)[-1]
    assert latch.source == source
    return latch


def destinations(latch: Latch) -> tuple[Endpoint | None, Endpoint | None]:
    """Where RTP and RTCP for that side go."""
    return latch.destination, latch.rtcp_destination


LAST, AT = 2999, 2998 * 0.02


def test_before_signalling_has_told_anything_nobody_is_heard() -> None:
    latch = Latch()
    assert not latch.receive(rtp(1), PEER, now=0.0)
    assert not latch.receive_rtcp(rtcp(), PEER, now=0.0)
    assert destinations(latch) == (None, None)
    assert latch.statistics().foreign == 0  # nobody can be told from anybody


def test_the_announced_source_is_taken_by_its_first_packet() -> None:
    latch = told(in_public())
    assert latch.receive(rtp(1), PEER, now=0.0)
    assert latch.source == PEER
    assert latch.statistics().foreign == 0


def test_the_announced_host_from_another_port_takes_two_packets() -> None:
    latch, source = told(in_public()), PEER.with_port(50000)
    assert speak(latch, source, range(1, 4), now=0.0) == [False, True, True]
    assert latch.destination == source
    assert latch.statistics().foreign == 0  # what proved it was its own


def test_so_does_the_host_that_signalling_comes_from() -> None:
    latch = told(behind_nat())
    assert speak(latch, MAPPED, range(1, 4), now=0.0) == [False, True, True]
    assert latch.destination == MAPPED


def test_a_stranger_takes_five_packets_in_order_where_nobody_better_can_be_expected() -> None:
    latch = told(behind_nat(with_host=False))
    assert speak(latch, MAPPED, range(1, 8), now=0.0) == [False] * 4 + [True] * 3


def test_where_a_host_is_named_a_stranger_waits() -> None:
    latch = told(in_public())
    early = speak(latch, ATTACKER, range(1, 40), now=0.0)
    assert not any(early)
    assert speak(latch, MAPPED, range(1, 8), now=PATIENCE_S) == [False] * 4 + [True] * 3


def test_a_stranger_that_comes_after_the_window_is_not_heard() -> None:
    latch = told(behind_nat(with_host=False))
    assert not any(speak(latch, MAPPED, range(1, 100), now=WINDOW_S))
    assert latch.statistics().foreign == 99


def test_a_named_host_may_take_its_time() -> None:
    latch = told(behind_nat())
    assert speak(latch, MAPPED, range(1, 3), now=300.0) == [False, True]


def test_of_two_strangers_who_speak_at_once_neither_is_guessed() -> None:
    latch = told(behind_nat(with_host=False))
    for number in range(1, 40):
        for source in (MAPPED, ATTACKER):
            assert not latch.receive(rtp(number, ssrc=source.port), source, now=number * 0.02)
    assert speak(latch, MAPPED, range(40, 80), now=0.8, ssrc=MAPPED.port)[-1]  # the other one gave up
    assert latch.source == MAPPED


@pytest.mark.parametrize(
    "packets",
    [
        [rtp(1), rtp(9), rtp(17), rtp(25), rtp(33), rtp(41)],
        [rtp(6), rtp(5), rtp(4), rtp(3), rtp(2), rtp(1)],
        [rtp(1)] * 6,
        [rtp(number, ssrc=number) for number in range(6)],
        [rtp(number, payload_type=8) for number in range(6)],
        [rtcp()] * 6,
        [STUN] * 6,
        [b""] * 6,
    ],
    ids=["gaps", "backwards", "copies", "ssrcs", "payload type", "rtcp", "stun", "empty"],
)
def test_what_is_not_one_stream_in_order_proves_nothing(packets: list[bytes]) -> None:
    for expectation in (behind_nat(), behind_nat(with_host=False)):
        latch = told(expectation)
        assert not any(latch.receive(it, MAPPED, now=1.0 + n * 0.02) for n, it in enumerate(packets))
        assert latch.source is None
        assert latch.statistics().foreign == len(packets)


def test_a_flood_of_strangers_does_not_push_the_named_host_out() -> None:
    latch = told(behind_nat())
    assert not latch.receive(rtp(1), MAPPED, now=2.0)
    for port in range(1000, 1200):
        assert not latch.receive(rtp(1), ATTACKER.with_port(port), now=2.01)
    assert latch.receive(rtp(2), MAPPED, now=2.02)


def test_of_many_candidates_the_latest_are_remembered() -> None:
    latch = told(behind_nat())
    ports = range(1000, 1400)
    for port in ports:
        assert not latch.receive(rtp(1, ssrc=port), MAPPED.with_port(port), now=0.0)
    assert not latch.receive(rtp(2, ssrc=1000), MAPPED.with_port(1000), now=0.1)
    assert latch.receive(rtp(2, ssrc=1399), MAPPED.with_port(1399), now=0.1)


def test_the_announced_source_takes_the_place_of_a_stranger_soon_after_signalling() -> None:
    latch = told(in_public())
    assert speak(latch, MAPPED, range(1, 10), now=PATIENCE_S)[-1]
    assert latch.receive(rtp(700, ssrc=1), PEER, now=PATIENCE_S + 0.2)
    assert latch.source == PEER


def test_after_that_the_source_is_strict() -> None:
    latch = latched()
    others = (MAPPED.with_port(13017), PHONE, ATTACKER, REBOUND)
    for source in others:
        assert not any(speak(latch, source, range(7000, 7050), now=AT, ssrc=0xBAD))
    assert latch.source == MAPPED
    assert latch.statistics().foreign == 50 * len(others)
    assert latch.receive(b"anything", MAPPED, now=AT)


def test_the_stream_itself_may_go_on_elsewhere_at_any_time() -> None:
    latch = latched()
    assert latch.receive(rtp(LAST + 1), REBOUND, now=AT + 0.3)
    assert latch.source == latch.destination == REBOUND
    assert not latch.receive(rtp(LAST + 2, ssrc=1), MAPPED, now=AT + 0.32)
    assert latch.statistics().lost == 0


@pytest.mark.parametrize(
    "packet",
    [
        rtp(LAST),
        rtp(LAST - 1),
        rtp(LAST + NEAR_STEPS + 1),
        rtp(LAST + 1, ssrc=0xA11CF),
        rtp(LAST + 1, payload_type=8),
        rtp(LAST + 1)[:11],
    ],
    ids=["copy", "old", "far ahead", "other ssrc", "other type", "short"],
)
def test_what_only_resembles_the_stream_may_not(packet: bytes) -> None:
    latch = latched()
    assert not latch.receive(packet, REBOUND, now=AT + 0.3)
    assert latch.source == MAPPED


def test_who_can_forge_one_packet_of_the_source_has_won_nothing() -> None:
    latch = latched()
    assert latch.receive(rtp(100, ssrc=0xBAD), MAPPED, now=AT)
    assert not latch.receive(rtp(101, ssrc=0xBAD), ATTACKER, now=AT)
    assert latch.source == MAPPED


def test_after_signalling_a_phone_with_a_new_address_is_taken() -> None:
    latch = latched()
    moved = replace(behind_nat(), hosts=frozenset({REBOUND.ip}))
    latch.expect(moved, now=AT + 1.0)
    assert latch.source is None  # it had fallen silent
    assert speak(latch, REBOUND, range(1, 3), now=AT + 1.1, ssrc=7) == [False, True]
    assert latch.destination == REBOUND


def test_and_from_another_port_of_its_host_where_nothing_else_has_changed() -> None:
    latch = latched()
    latch.expect(behind_nat(), now=AT + 1.0)
    assert latch.source == MAPPED
    other = MAPPED.with_port(40000)
    assert speak(latch, other, range(1, 3), now=AT + 1.0 + SILENCE_S, ssrc=7) == [False, True]
    assert latch.source == other


def test_signalling_does_not_take_the_place_of_a_source_that_speaks() -> None:
    latch = latched()
    latch.expect(behind_nat(), now=AT)
    for number in range(100):
        now = AT + number * 0.02
        assert latch.receive(rtp(LAST + 1 + number), MAPPED, now=now)
        for thief in (ATTACKER, MAPPED.with_port(1)):
            assert not latch.receive(rtp(number, ssrc=0xBAD), thief, now=now)


def test_nor_does_a_stranger_take_that_of_a_silent_one_when_signalling_told_nothing_new() -> None:
    latch = latched()
    latch.expect(behind_nat(), now=AT + 1.0)
    assert not any(speak(latch, ATTACKER, range(400), now=AT + 1.0, ssrc=0xBAD))


def test_when_another_fork_answers_it_is_sent_to_at_once_though_the_first_one_still_speaks() -> None:
    latch = latched(in_public(), PEER)
    fork = REBOUND
    latch.expect(Expectation(fork, payload_types=frozenset({PCMU}), hosts=frozenset({fork.ip})), now=AT)
    assert destinations(latch) == (fork, fork.with_port(fork.port + 1))
    assert latch.receive(rtp(LAST + 1), PEER, now=AT)
    assert latch.receive(rtp(1, ssrc=2), fork, now=AT)
    assert latch.source == fork
    assert not latch.receive(rtp(LAST + 900), PEER, now=AT)


def test_a_phone_behind_its_nat_keeps_its_source_when_it_announces_another_port() -> None:
    announced = replace(behind_nat(), rtp=MAPPED.with_port(10002))
    latch = latched(announced)
    latch.expect(replace(announced, rtp=MAPPED.with_port(10004)), now=AT)
    assert latch.destination == MAPPED


def test_the_window_closes() -> None:
    latch = latched()
    latch.expect(behind_nat(), now=AT + 1.0)
    late = AT + 1.0 + WINDOW_S
    assert not any(speak(latch, MAPPED.with_port(40000), range(100), now=late, ssrc=7))


def test_hold_and_resume_keep_the_source() -> None:
    latch = latched()
    latch.expect(replace(behind_nat(), rtp=None), now=AT + 1.0)
    assert destinations(latch) == (None, None)
    assert latch.source == MAPPED
    latch.expect(behind_nat(), now=AT + 60.0)
    assert latch.destination == MAPPED


def test_what_was_found_on_hold_is_kept_when_the_hold_ends_in_silence() -> None:
    latch = latched(replace(behind_nat(), rtp=None))
    assert latch.destination is None
    latch.expect(behind_nat(), now=AT + 60.0)
    assert destinations(latch)[0] == MAPPED
    latch.expect(replace(behind_nat(), rtp=PHONE.with_port(9)), now=AT + 61.0)
    assert latch.source is None  # that is another description


@pytest.mark.parametrize(
    ("announced", "is_proven", "is_sent_to"),
    [
        ("140.113.131.7", False, True),
        ("203.0.113.9", False, True),
        ("2600::7", False, True),
        ("192.168.0.108", False, False),
        ("100.64.1.1", False, False),
        ("169.254.1.1", False, False),
        ("127.0.0.1", False, False),
        ("fd00::1", False, False),
        ("192.168.0.108", True, True),
        ("0.0.0.0", True, False),
        ("224.2.1.1", True, False),
    ],
)
def test_packets_are_held_back_until_an_address_is_public_or_proven(
    announced: str, is_proven: bool, is_sent_to: bool
) -> None:
    at = Endpoint.of(announced, 10002)
    latch = told(Expectation(at, payload_types=frozenset({PCMU}), is_proven=is_proven))
    assert latch.destination == (at if is_sent_to else None)
    assert latch.rtcp_destination == (at.with_port(10003) if is_sent_to else None)


def test_port_0_is_nowhere() -> None:
    latch = told(Expectation(PEER.with_port(0), payload_types=frozenset({PCMU})))
    assert destinations(latch) == (None, None)


def test_rtcp_follows_rtp_to_its_host() -> None:
    latch = latched()
    source = MAPPED.with_port(13999)
    assert destinations(latch) == (MAPPED, None)  # a NAT's port for it may be any
    assert not latch.receive_rtcp(rtcp(), ATTACKER, now=AT)
    assert latch.receive_rtcp(rtcp(), source, now=AT)
    assert latch.rtcp_destination == source
    assert not latch.receive_rtcp(rtcp(ssrc=0xBAD), MAPPED.with_port(14000), now=AT)
    assert latch.receive_rtcp(rtcp(), MAPPED.with_port(14000), now=AT)  # the SSRC of the stream
    assert latch.rtcp_source == MAPPED.with_port(14000)


def test_after_signalling_rtcp_of_a_side_that_only_listens_may_come_from_another_port() -> None:
    latch = latched()
    reports, moved = rtcp(ssrc=0x0E5), MAPPED.with_port(14000)
    assert latch.receive_rtcp(reports, MAPPED.with_port(13017), now=AT)
    assert not latch.receive_rtcp(reports, moved, now=AT)
    latch.expect(behind_nat(), now=AT)
    assert latch.receive_rtcp(reports, moved, now=AT)
    assert latch.rtcp_source == moved


def test_rtcp_is_not_heard_before_rtp_but_from_where_it_is_announced() -> None:
    latch = told(behind_nat())
    assert not latch.receive_rtcp(rtcp(), MAPPED, now=0.0)
    latch = told(replace(in_public(), rtcp=PEER.with_port(50001)))
    assert not latch.receive_rtcp(rtcp(), PEER.with_port(PEER.port + 1), now=0.0)
    assert latch.receive_rtcp(rtcp(), PEER.with_port(50001), now=0.0)


def test_rtcp_does_not_stay_behind_when_rtp_goes_to_another_host() -> None:
    latch = latched()
    assert latch.receive_rtcp(rtcp(), MAPPED.with_port(13017), now=AT)
    assert latch.receive(rtp(LAST + 1), REBOUND, now=AT)
    assert latch.rtcp_source is latch.rtcp_destination is None
    assert not latch.receive_rtcp(rtcp(), MAPPED.with_port(13017), now=AT)
    assert latch.receive_rtcp(rtcp(), REBOUND.with_port(20009), now=AT)


def test_the_rtcp_of_a_source_that_kept_its_word_goes_where_it_is_announced() -> None:
    latch = latched(in_public(), PEER)
    assert latch.rtcp_destination == PEER.with_port(PEER.port + 1)


def test_with_rtcp_mux_rtcp_goes_where_rtp_goes() -> None:
    latch = latched(replace(behind_nat(), rtcp_mux=True))
    assert latch.rtcp_destination == MAPPED


@pytest.mark.parametrize("data", [b"", b"\x80", STUN, rtp(1), rtcp()[:7]])
def test_what_is_no_rtcp_does_not_make_a_source_for_it(data: bytes) -> None:
    latch = latched()
    assert not latch.receive_rtcp(data, MAPPED.with_port(13017), now=AT)
    assert latch.rtcp_source is None


def test_stun_and_dtls_of_the_announced_source_pass_without_making_it_the_source() -> None:
    latch = told(in_public())
    assert latch.receive(STUN, PEER, now=0.0)
    assert latch.source is None
    assert not latch.receive(STUN, PEER.with_port(1), now=0.0)


def test_a_stream_that_is_no_rtp_has_only_the_announced_source() -> None:
    latch = told(Expectation(PEER, hosts=frozenset({PEER.ip})))
    assert not any(latch.receive(b"\x00\x01\x03fax", PEER.with_port(1), now=2.0) for _ in range(9))
    assert latch.receive(b"\x00\x01\x03fax", PEER, now=2.0)
    assert latch.source == PEER


def test_events_of_the_keypad_are_of_the_stream() -> None:
    latch = latched()
    assert latch.receive(rtp(LAST + 1, payload_type=EVENT), REBOUND, now=AT)


def test_statistics_are_of_what_was_taken() -> None:
    latch = latched()
    latch.receive(rtp(1, ssrc=1), OTHER_ATTACKER, now=AT)
    latch.receive(rtp(LAST + 3), MAPPED, now=AT + 0.06)
    seen = latch.statistics()
    assert (seen.packets, seen.octets, seen.foreign, seen.lost) == (2999, 2999 * 172, 1, 2)
    assert (seen.latched, seen.last_heard) == (MAPPED, AT + 0.06)


@pytest.mark.parametrize("payload_type", [-1, 128])
def test_a_payload_type_is_one_of_128(payload_type: int) -> None:
    with pytest.raises(DecodeError, match="payload type"):
        Expectation(PEER, payload_types=frozenset({payload_type}))


def test_a_clock_runs() -> None:
    with pytest.raises(DecodeError, match="0 Hz"):
        Expectation(PEER, clock_hz=0)


def test_a_source_that_is_carried_elsewhere_is_not_silent() -> None:
    latch = latched()
    latch.expect(behind_nat(), now=90.0)  # of the sockets nothing was heard for half a minute
    latch.carried_until = float("inf")
    rival = MAPPED.with_port(7777)
    assert not any(speak(latch, rival, range(500), now=90.1, ssrc=0xBAD, pace_s=0.002))
    latch.carried_until = 91.2
    assert not any(speak(latch, rival, range(500, 502), now=91.3, ssrc=0xBAD))
    assert speak(latch, rival, range(502, 505), now=91.2 + SILENCE_S, ssrc=0xBAD)[-1]


def test_a_phone_that_moves_goes_on_after_what_was_relayed_elsewhere() -> None:
    latch = latched()
    latch.relayed(9000, 9000 * 172, ssrc=0xA11CE, sequence=11990, now=239.0)
    assert speak(latch, REBOUND, range(12040, 12041), now=240.0) == [True]
    assert latch.statistics().packets == 2998 + 9000 + 1  # the first one only proved the source


def test_a_side_that_was_known_before_is_heard_and_others_are_not() -> None:
    latch = Latch()
    latch.resume(MAPPED, None)
    assert latch.receive(rtp(1), MAPPED, now=0.0)
    assert not latch.receive(rtp(2), ATTACKER, now=0.1)
    assert latch.destination is None  # until signalling tells
    latch.expect(behind_nat(), now=0.2)
    assert latch.destination == MAPPED
