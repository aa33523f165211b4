"""Which ports the next stream gets: even ones with the odd one after it (RFC 3550 §11), at random, rested."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nattools.errors import DecodeError, LocalAddressError

QUARANTINE_S = 10.0
"""A port rests so long after its stream, so that what still comes for that one meets nobody."""

_LOWEST_PORT = 1024
_ENTROPY_BYTES = 4


class PortPairs:
    """The pairs of a range: each is free, in use, or resting.

    They are given at random (RFC 6056), since whoever guesses the port of a call can send there before the
    phone does. When no other is left, the pair that has rested longest is given before its time.
    """

    def __init__(self, first: int, last: int, *, entropy: Callable[[int], bytes]) -> None:
        """The pairs from `first` to `last`, both included. Raises `DecodeError` where there is none."""
        evens = range(first + first % 2, last, 2)
        if not (first >= _LOWEST_PORT and last <= 0xFFFF and evens):
            raise DecodeError(
                f"{first}-{last} has no pair of ports: give a range like 30000-40000, from {_LOWEST_PORT} on"
            )
        self._entropy = entropy
        self._range = f"{first}-{last}"
        self._free = list(evens)
        self._used: set[int] = set()
        self._resting: deque[tuple[float, int]] = deque()

    @property
    def in_use(self) -> int:
        """How many pairs are in use."""
        return len(self._used)

    def __len__(self) -> int:
        """How many pairs there are in all."""
        return len(self._free) + len(self._used) + len(self._resting)

    def acquire(self, *, now: float) -> int:
        """Take a pair and give its even port. Raises `LocalAddressError` when all are in use."""
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        if self._free:
            index = int.from_bytes(self._entropy(_ENTROPY_BYTES), "big") % len(self._free)
            self._free[index], self._free[-1] = self._free[-1], self._free[index]
            even = self._free.pop()
        elif self._resting:
            even = self._resting.popleft()[1]
        else:
            raise LocalAddressError(
                f"all {len(self._used)} pairs of the RTP ports {self._range} are in use: "
                "end calls, or give a larger range"
            )
        self._used.add(even)
        return even

    def take(self, even: int) -> None:
        """Take that very pair. Raises `LocalAddressError` where it is in use, or none of the range."""
        resting = [(at, port) for at, port in self._resting if port != even]
        if even in self._free:
            self._free.remove(even)
        elif len(resting) < len(self._resting):
            self._resting = deque(resting)
        else:
            raise LocalAddressError(f"the RTP port {even} is in use, or none of {self._range}")
        self._used.add(even)

    def release(self, even: int, *, now: float) -> None:
        """Let the pair of `even` rest, whether a stream had it or it was found to be somebody else's.

        Raises `ValueError` where it is not in use.
        """
        if even not in self._used:
            raise ValueError(f"port {even} is not in use")
        self._used.remove(even)
        self._resting.append((now + QUARANTINE_S, even))
