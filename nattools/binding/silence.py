"""When silence is suspicious: a stream has stopped coming in, as when the NAT gets another address."""

from __future__ import annotations

AFTER_S = 0.3
"""Fifteen packets of a call in a row (20 ms of audio in each): no usual loss is as long."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 8.0
"""Longer pauses are the keepalives' own."""


class Silence:
    """Says when to look whether a binding still is so; the pauses between looks double while silence lasts.

    Datagrams further apart than `after_s` are no stream, and nobody misses one.
    """

    __slots__ = ("_after_s", "_heard_at", "_look_at", "_pause_s")

    def __init__(self, after_s: float = AFTER_S) -> None:
        self._after_s = after_s
        self._heard_at = float("-inf")
        self._look_at: float | None = None
        self._pause_s = 0.0

    def heard(self, *, now: float) -> None:
        """Something came in."""
        if now - self._heard_at <= self._after_s:
            self._look_at, self._pause_s = now + self._after_s, FIRST_PAUSE_S
        self._heard_at = now

    def timeout_at(self) -> float | None:
        """When to look unless something comes in; None while nothing is missed."""
        return self._look_at

    def handle_timeout(self, *, now: float) -> bool:
        """Whether it is time to look; calling early is harmless."""
        if self._look_at is None or now < self._look_at:
            return False
        self._look_at = now + self._pause_s if self._pause_s <= LONGEST_PAUSE_S else None
        self._pause_s *= 2
        return True
