"""When a stream that stopped is looked after: soon, then ever more seldom, and no stream at all never."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nattools.binding.silence import AFTER_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, Silence

PACKET_S = 0.02


def streaming(packets: int = 5) -> tuple[Silence, float]:
    """A stream that has just brought its last packet, and when that was."""
    silence = Silence()
    for number in range(packets):
        silence.heard(now=number * PACKET_S)
    return silence, (packets - 1) * PACKET_S


def looks(silence: Silence) -> list[float]:
    """When it is looked at, if nothing more comes."""
    found = []
    while (at := silence.timeout_at()) is not None:
        assert silence.handle_timeout(now=at)
        found.append(at)
    return found


def test_who_never_heard_anything_misses_nothing() -> None:
    assert looks(Silence()) == []
    assert not Silence().handle_timeout(now=100)


@pytest.mark.parametrize("gap_s", [AFTER_S * 1.01, 1, 60])
def test_datagrams_now_and_then_are_no_stream(gap_s: float) -> None:
    silence = Silence()
    for number in range(5):
        silence.heard(now=number * gap_s)
    assert looks(silence) == []


def test_a_stream_that_stopped_is_looked_after_ever_more_seldom() -> None:
    silence, last = streaming()
    found = looks(silence)
    assert found[0] == pytest.approx(last + AFTER_S)
    pauses = [later - earlier for earlier, later in pairwise(found)]
    assert pauses == pytest.approx([1, 2, 4, 8])
    assert (min(pauses), max(pauses)) == pytest.approx((FIRST_PAUSE_S, LONGEST_PAUSE_S))


def test_a_stream_that_goes_on_is_let_alone() -> None:
    silence, last = streaming()
    assert not silence.handle_timeout(now=last + AFTER_S * 0.9)
    silence.heard(now=last + AFTER_S * 0.9)
    assert not silence.handle_timeout(now=last + AFTER_S * 1.1)


def test_a_stream_that_came_back_is_missed_anew() -> None:
    silence, _ = streaming()
    looks(silence)
    silence.heard(now=100)
    assert looks(silence) == []
    silence.heard(now=100 + PACKET_S)
    assert looks(silence)[0] == pytest.approx(100 + PACKET_S + AFTER_S)


def test_one_late_packet_does_not_put_off_the_next_look() -> None:
    silence, last = streaming()
    assert silence.handle_timeout(now=last + AFTER_S)
    silence.heard(now=last + 0.9)
    assert silence.timeout_at() == pytest.approx(last + AFTER_S + FIRST_PAUSE_S)
