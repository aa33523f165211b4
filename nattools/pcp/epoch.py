"""Whether a router lost its mappings: its epoch tells (RFC 6887 §8.5, RFC 6886 §3.6)."""

from __future__ import annotations

from typing import Protocol


class EpochRule(Protocol):
    """Given the last epoch, how long ago that was and the epoch now, in seconds: was the state lost?"""

    def __call__(self, previous_s: float, elapsed_s: float, epoch_s: float, /) -> bool: ...


def pcp_state_lost(previous_s: float, elapsed_s: float, epoch_s: float) -> bool:
    """RFC 6887 §8.5: the epoch went back by more than a second, or more than 1/16 and 2 s off our clock."""
    gained_s = epoch_s - previous_s
    if gained_s < -1:
        return True
    gained_s = max(0.0, gained_s)  # a second back is two answers that overtook each other
    return elapsed_s + 2 < gained_s * 15 / 16 or gained_s + 2 < elapsed_s * 15 / 16


def natpmp_state_lost(previous_s: float, elapsed_s: float, epoch_s: float) -> bool:
    """RFC 6886 §3.6: the epoch is more than 2 s behind a clock that runs at 7/8 of ours."""
    return epoch_s < previous_s + elapsed_s * 7 / 8 - 2


class EpochTracker:
    """The epochs that one router told, by the rule of the protocol that they came in."""

    def __init__(self, rule: EpochRule) -> None:
        self._rule = rule
        self._last: tuple[int, float] | None = None

    def update(self, epoch_s: int, *, now: float) -> bool:
        """Take the epoch of a message that came at `now`; whether the router lost its state before it."""
        last, self._last = self._last, (epoch_s, now)
        return last is not None and self._rule(last[0], now - last[1], epoch_s)
