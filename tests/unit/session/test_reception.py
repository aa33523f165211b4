"""Statistics of RTP, and which stream is followed."""

from __future__ import annotations

import pytest

from nattools.session.reception import NEAR_STEPS, Reception, RtpHeader, follows
from tests.unit.session.rtp import EVENT, PCMU, rtcp, rtp


def reception(*sequences: int, pace_s: float = 0.02) -> Reception:
    """One that got these packets at an even pace."""
    made = Reception()
    made.agree(frozenset({PCMU, EVENT}), 8000)
    for number, sequence in enumerate(sequences):
        packet = rtp(sequence)
        made.take(packet, len(packet), now=number * pace_s)
    return made


@pytest.mark.parametrize(
    ("sequences", "lost"),
    [
        ((1, 2, 3, 4), 0),
        ((1, 2, 5, 6), 2),
        ((1, 3, 2, 4), 0),  # overtaken on the way
        ((1, 2, 2, 3), 0),  # twice
        ((1, 2, 2, 5), 1),  # RFC 3550 §A.3 lets a duplicate hide a loss
        ((65534, 65535, 0, 1), 0),
        ((65534, 1), 2),
        ((1, 2, 3, 40000, 40001, 40002), 0),  # the sender started anew
        ((1, 2, 5, 40000, 40001, 40003), 3),
    ],
)
def test_lost_packets_are_counted(sequences: tuple[int, ...], lost: int) -> None:
    made = reception(*sequences)
    assert (made.packets, made.octets, made.lost) == (len(sequences), 172 * len(sequences), lost)


def test_an_even_pace_has_no_jitter_and_a_late_packet_has() -> None:
    assert reception(*range(50)).jitter_s == pytest.approx(0.0)
    made = reception(*range(50))
    packet = rtp(50)
    made.take(packet, len(packet), now=50 * 0.02 + 0.016)
    assert made.jitter_s == pytest.approx(0.001)  # a sixteenth of the difference


def test_the_jitter_counts_in_the_clock_of_the_codec() -> None:
    made = Reception()
    made.agree(frozenset({PCMU}), 48000)
    for number in range(50):
        packet = rtp(number, timestamp=number * 960)
        made.take(packet, len(packet), now=number * 0.02)
    assert made.jitter_s == pytest.approx(0.0)


def test_a_jump_of_the_timestamps_is_no_jitter() -> None:
    made = reception(1, 2, 3)
    packet = rtp(4, timestamp=0x80000000)
    made.take(packet, len(packet), now=0.06)
    assert made.jitter_s == pytest.approx(0.0)


def test_a_single_packet_of_another_ssrc_changes_nothing() -> None:
    made = reception(1, 2, 3)
    forged = rtp(900, ssrc=0xBAD)
    made.take(forged, len(forged), now=0.1)
    assert made.continues_with(RtpHeader(PCMU, 4, 0, 0xA11CE))
    assert not made.continues_with(RtpHeader(PCMU, 901, 0, 0xBAD))


def test_two_in_a_row_of_another_ssrc_are_followed_and_old_losses_kept() -> None:
    made = reception(1, 3)
    for sequence in (900, 901, 904):
        packet = rtp(sequence, ssrc=0xB0B)
        made.take(packet, len(packet), now=0.1)
    assert made.continues_with(RtpHeader(PCMU, 905, 0, 0xB0B))
    assert made.lost == 1 + 2


def test_two_of_another_ssrc_with_the_stream_between_them_change_nothing() -> None:
    made = reception(1, 2, 3)
    for packet in (rtp(900, ssrc=0xBAD), rtp(4), rtp(901, ssrc=0xBAD), rtp(5)):
        made.take(packet, len(packet), now=0.1)
    assert made.continues_with(RtpHeader(PCMU, 6, 0, 0xA11CE))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        rtp(1)[:11],
        b"\x40" + rtp(1)[1:],  # version 1
        rtp(1, payload_type=8),  # not agreed
        b"\x80\xc9" + rtp(1)[2:],  # RTCP on the RTP port
        b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12),  # STUN
    ],
    ids=["empty", "one byte", "short", "version 1", "other type", "rtcp", "stun"],
)
def test_what_is_not_agreed_rtp_is_counted_and_not_followed(data: bytes) -> None:
    made = reception(1, 2)
    assert made.agreed_header(data) is None
    for _ in range(3):
        made.take(data, len(data), now=1.0)
    assert (made.packets, made.last_heard) == (5, 1.0)
    assert made.continues_with(RtpHeader(PCMU, 3, 0, 0xA11CE))


@pytest.mark.parametrize(
    ("sequence", "ssrc", "goes_on"),
    [
        (3, 0xA11CE, True),
        (2 + NEAR_STEPS, 0xA11CE, True),
        (3 + NEAR_STEPS, 0xA11CE, False),
        (2, 0xA11CE, False),  # a copy of the last one
        (1, 0xA11CE, False),
        (3, 0xA11CF, False),
    ],
)
def test_a_stream_goes_on_with_its_ssrc_and_a_number_soon_after(
    sequence: int, ssrc: int, goes_on: bool
) -> None:
    assert reception(1, 2).continues_with(RtpHeader(PCMU, sequence, 0, ssrc)) is goes_on


def test_nothing_continues_what_has_not_begun() -> None:
    assert not Reception().continues_with(RtpHeader(PCMU, 1, 0, 0))


@pytest.mark.parametrize(("step", "is_next"), [(0, False), (1, True), (3, True), (4, False), (-1, False)])
def test_in_order_leaves_room_for_two_lost(step: int, is_next: bool) -> None:
    previous = RtpHeader(PCMU, 65534, 0, 1)
    assert follows(RtpHeader(PCMU, (65534 + step) & 0xFFFF, 0, 1), previous) is is_next


def test_a_report_is_of_the_stream_by_its_ssrc() -> None:
    made = reception(1)
    assert made.is_of(rtcp()[4:8])
    assert not made.is_of(rtcp(ssrc=1)[4:8])


def test_what_was_relayed_elsewhere_counts_and_its_losses_show() -> None:
    made = reception(1, 2)
    made.skip(10, 1720, 0xA11CE, 9, now=1.0)  # seen at 9, when some had come after it already
    assert (made.packets, made.octets, made.last_heard, made.lost) == (12, 2064, 1.0, 0)
    packet = rtp(15)
    made.take(packet, len(packet), now=1.1)
    assert made.lost == 2
    made.skip(0, 0, None, None, now=9.0)
    assert made.last_heard == 1.1


def test_a_stream_that_was_seen_elsewhere_is_the_one_that_goes_on() -> None:
    made = reception(1, 2)
    made.skip(5, 860, 0xB0B, 7, now=1.0)
    assert made.continues_with(RtpHeader(PCMU, 8, 0, 0xB0B))
    assert not made.continues_with(RtpHeader(PCMU, 3, 0, 0xA11CE))
    made.skip(5, 860, 0xB0B, 6, now=1.0)  # an older packet changes nothing
    assert made.continues_with(RtpHeader(PCMU, 7 + NEAR_STEPS, 0, 0xB0B))
