"""The limiter for whole batches: buckets and rules of `nattools.stun.limiter`, by numpy (extra `server`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nattools.machine import Entropy
from nattools.stun.limiter import (
    DEFAULT_BUCKETS,
    NANOSECONDS,
    PORTS_OF_A_SHARER_BITS,
    Level,
    Limiter,
    Limits,
)

Addresses = NDArray[np.uint32] | NDArray[np.uint64]
"""IPv4 addresses as numbers, of shape (n,), or the high and low halves of IPv6 ones, of shape (n, 2)."""


_USUAL_ROWS = 256
_PORT_BITS = np.uint64(16)
_IPV4_SHIFTS = np.array([0, PORTS_OF_A_SHARER_BITS, 16, 24], np.uint64)  # of address and port, by `Level`


class BatchLimiter(Limiter):
    """A `Limiter` that can judge many datagrams at once too; both ways use the same buckets."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        entropy: Entropy,
        buckets: int = DEFAULT_BUCKETS,
        memory: memoryview | None = None,
    ) -> None:
        """As for `Limiter`."""
        super().__init__(limits, entropy=entropy, buckets=buckets, memory=memory)
        self._times = np.frombuffer(self._full_at, dtype=np.int64)
        self._starts = np.arange(len(Level), dtype=np.int64) * buckets
        self._spreads = np.array(self._spread, np.uint64)
        self._bucket_shift = np.uint64(self._shift)
        self._prepare(_USUAL_ROWS)

    def _prepare(self, rows: int) -> None:
        """What a batch of up to so many rows needs; a call of numpy costs more than its work on a batch."""
        self._rows = rows
        self._intervals = np.tile(np.array([interval for interval, _ in self._costs], np.int64), rows)
        self._spans = np.tile(np.array([span for _, span in self._costs], np.int64), rows)
        self._latest_for_one = self._spans - self._intervals
        self._everybody = np.ones(rows, np.bool_)
        self._everybody.flags.writeable = False

    def become(self, limits: Limits) -> None:
        """As for `Limiter`."""
        super().become(limits)
        self._prepare(self._rows)

    def admit(self, addresses: Addresses, ports: NDArray[np.uint16], *, now: float) -> NDArray[np.bool_]:
        """Which datagrams of a batch may be answered, given where each came from.

        The same as `admit_one` for one row after the other, several rows of one source included. Arrays of
        any byte order will do. The answer is not to be written to.
        """
        now_ns = int(now * NANOSECONDS)
        count = len(ports)
        if count > self._rows:
            self._prepare(count)
        buckets = self._buckets_of(addresses, ports)
        if count == 0 or self._admit_all(buckets.reshape(-1), now_ns):
            self.judged[-1] += count
            return self._everybody[:count]
        admitted = np.ones(count, np.bool_)
        rows = np.arange(count)
        for level in Level:
            has_token = self._take(level, buckets[rows, level], now_ns)
            admitted[rows[~has_token]] = False
            self.judged[level] += int(np.count_nonzero(~has_token))
            rows = rows[has_token]
        self.judged[-1] += len(rows)
        return admitted

    def _buckets_of(self, addresses: Addresses, ports: NDArray[np.uint16]) -> NDArray[np.int64]:
        """The bucket of each row at each level, as `Limiter.admit_one` finds it; of shape (n, 4)."""
        if addresses.ndim == 1:
            sources = addresses.astype(np.uint64)
            sources <<= _PORT_BITS
            sources |= ports
            keys = sources[:, np.newaxis] >> _IPV4_SHIFTS
        else:
            keys = np.empty((len(ports), len(Level)), np.uint64)
            of_high, of_low, of_port = self._halves
            high, low = addresses[:, 0], addresses[:, 1]
            keys[:, Level.SHARER] = high * np.uint64(of_high) + low * np.uint64(of_low)
            keys[:, Level.SOCKET] = keys[:, Level.SHARER] + ports * np.uint64(of_port)
            keys[:, Level.ADDRESS] = high
            keys[:, Level.NETWORK] = high >> 16
        keys *= self._spreads
        keys >>= self._bucket_shift
        buckets = keys.view(np.int64)
        buckets += self._starts
        return buckets

    def _admit_all(self, buckets: NDArray[np.int64], now_ns: int) -> bool:
        """Take a token for every row at every level, unless any is missing; then none is taken."""
        times, count = self._times, len(buckets)
        full = times.take(buckets)
        np.maximum(full, now_ns, out=full)
        if (full - self._latest_for_one[:count]).max() > now_ns:
            return False  # nothing is written: where one source floods several processes, that is usual
        times[buckets] = full
        intervals = self._intervals[:count]
        np.add.at(times, buckets, intervals)
        times.take(buckets, out=full, mode="clip")  # the default mode is slow with `out`, and none is outside
        full -= self._spans[:count]
        if full.max() <= now_ns:
            return True
        np.subtract.at(times, buckets, intervals)
        return False

    def _take(self, level: Level, buckets: NDArray[np.int64], now_ns: int) -> NDArray[np.bool_]:
        """Which rows find a token in their bucket of this level, the earlier row before the later.

        What other processes have written meanwhile is overwritten only where it is nothing or nonsense.
        """
        interval_ns, span_ns = self._costs[level]
        if not len(buckets):
            return np.empty(0, np.bool_)
        latest_ns, times = now_ns + span_ns, self._times.take(buckets)
        self._times[buckets[times > latest_ns]] = latest_ns
        tokens = (latest_ns - np.clip(times, now_ns, latest_ns)) // interval_ns
        has_token = np.ones(len(buckets), np.bool_)
        if tokens.min() < len(buckets):  # or there are enough, though all rows had one bucket
            order = np.argsort(buckets, kind="stable")
            has_token[order] = _ranks(buckets[order]) < tokens[order]
        taken = buckets[has_token]
        self._times[taken[times[has_token] < now_ns]] = now_ns
        np.add.at(self._times, taken, interval_ns)
        return has_token

    def _empty(self, level: Level, latest_ns: int) -> int:
        start = level * self.buckets
        return int(np.count_nonzero(self._times[start : start + self.buckets] > latest_ns))


def _ranks(grouped: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many equal numbers stand before each, where equal ones stand together."""
    positions = np.arange(len(grouped))
    is_first = np.ones(len(grouped), np.bool_)
    is_first[1:] = grouped[1:] != grouped[:-1]
    return positions - np.maximum.accumulate(np.where(is_first, positions, 0))
