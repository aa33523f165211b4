"""How much one source may ask: token buckets for it and for the networks that it belongs to.

A datagram is held against four buckets, the narrowest first: its socket, its sharer (the subscriber behind a
carrier's NAT, who has a block of ports; over IPv6 one address), its address (over IPv6 the /64, which is what
one site has at the least) and its network (/24, over IPv6 /48). So a neighbour behind the same address is
still answered while somebody there floods the server, and whoever flooded is answered again as soon as the
bucket has a token: there are no bans.

Nothing is kept per source. A source is hashed to its buckets by multiplication with secrets (Dietzfelbinger
et al. 1997), so memory is fixed, and who meets whom in a bucket is not known outside: by chance, 2 in 65,536
at the most. A flood from sources that are forged at random spreads over all buckets.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm of ITU-T
I.371), in whole nanoseconds. So `nattools.stun.batch_limiter`, which judges a batch at once, comes to the
same result to the last datagram.

Several processes can have one limiter's buckets in memory that they share. They take no lock: where two
judge datagrams of one bucket in the same microseconds, what one of them took can be lost, or taken twice. Who
flooded two processes at full speed was answered a tenth too often; others hardly ever meet. No bucket is
believed to be emptier than empty, so that whatever two processes did to it, it has a token one interval after
it refused one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.machine import Entropy

DEFAULT_BUCKETS = 1 << 16
"""So many buckets each level has; one takes 8 bytes, all four levels 2 MiB."""

PORTS_OF_A_SHARER_BITS = 10
"""IPv4 sources whose ports are equal but for so many bits are taken for one subscriber behind a shared NAT.

RFC 7422 and RFC 6888 let carriers hand out ports in blocks; 1,024 is a common size.
"""

NANOSECONDS = 1_000_000_000
WORD = (1 << 64) - 1

_MOST_BUCKETS = 1 << 24
_MULTIPLIER_BYTES = 8


class Level(IntEnum):
    """What a bucket is for, the narrowest first."""

    SOCKET = 0  # address and port
    SHARER = 1  # IPv4: the address and a block of 1,024 ports; IPv6: the address
    ADDRESS = 2  # IPv4: the address; IPv6: its /64
    NETWORK = 3  # IPv4: /24; IPv6: /48


BYTES_OF_BUCKETS = 8 * DEFAULT_BUCKETS * len(Level)
"""Of all levels, unless a `Limiter` is given another number."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many datagrams a second in the long run, and so many at once. Raises `TransportError`."""

    per_s: float
    at_once: int

    def __post_init__(self) -> None:
        if not (0.001 <= self.per_s <= NANOSECONDS and 1 <= self.at_once <= NANOSECONDS):
            raise TransportError(
                f"a rate of {self.per_s:g} a second and {self.at_once} at once; both must be positive, and"
                f" neither above {NANOSECONDS}"
            )

    @property
    def interval_ns(self) -> int:
        """What one datagram costs: the time in which the bucket gets it back."""
        return max(1, round(NANOSECONDS / self.per_s))

    @property
    def span_ns(self) -> int:
        """How long an empty bucket takes to fill."""
        return self.interval_ns * self.at_once


@dataclass(frozen=True, slots=True)
class Limits:
    """The rate of each level. A level stops nothing where its rate is above what can arrive.

    By default a client's retransmissions and a whole `natcheck` (60 datagrams from four sockets) pass, and an
    address of a carrier's NAT has some hundreds of clients a second. Who is sent the answers to plain
    requests that were forged to come from there gets 56 kB/s at the most.
    """

    socket: Rate = Rate(20, 40)
    sharer: Rate = Rate(200, 400)
    address: Rate = Rate(1000, 2000)
    network: Rate = Rate(4000, 8000)

    @property
    def rates(self) -> tuple[Rate, Rate, Rate, Rate]:
        """By `Level`."""
        return self.socket, self.sharer, self.address, self.network


class Limiter:
    """Judges one datagram after the other. `BatchLimiter` judges many at once, with numpy."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        entropy: Entropy,
        buckets: int = DEFAULT_BUCKETS,
        memory: memoryview | None = None,
    ) -> None:
        """Make one with every bucket full. `buckets`, a power of two, are what each level has.

        `memory` has room for all of them, 8 bytes each, and nothing but zeros. Processes that share it share
        the limits too, if they have this limiter, with its secrets, from the one that they were forked from.
        Raises `TransportError` for another number of buckets.
        """
        if not 2 <= buckets <= _MOST_BUCKETS or buckets & (buckets - 1):
            raise TransportError(f"{buckets} buckets; a power of two from 2 to {_MOST_BUCKETS} is needed")
        self.limits = limits or Limits()
        self.judged: list[int] | memoryview = [0] * (len(Level) + 1)
        """How many datagrams were refused, by `Level`, and last how many were let through.

        Memory that others read can take its place.
        """
        self.buckets = buckets
        """So many each level has."""
        self._shift = 64 - (buckets.bit_length() - 1)
        self._full_at = (memory or memoryview(bytearray(8 * buckets * len(Level)))).cast("q")
        self._costs = tuple((rate.interval_ns, rate.span_ns) for rate in self.limits.rates)
        self._spread = tuple(_multiplier(entropy) for _ in Level)
        self._halves = (_multiplier(entropy), _multiplier(entropy), _multiplier(entropy))

    def admit_one(self, source: Endpoint, *, now: float) -> bool:
        """Whether a datagram from `source` may be answered; it takes a token at each level.

        Where a level has none left, the narrower ones have given theirs: who floods pays.
        """
        now_ns = int(now * NANOSECONDS)
        full_at, shift = self._full_at, self._shift
        for level, key in enumerate(self._keys(source)):
            interval_ns, span_ns = self._costs[level]
            bucket = level * self.buckets + ((key * self._spread[level] & WORD) >> shift)
            full = max(full_at[bucket], now_ns) + interval_ns
            if full > now_ns + span_ns:
                full_at[bucket] = min(full_at[bucket], now_ns + span_ns)
                self.judged[level] += 1
                return False
            full_at[bucket] = full
        self.judged[-1] += 1
        return True

    def become(self, limits: Limits) -> None:
        """Have these limits from now on, with every bucket full; what was counted stays."""
        self.limits = limits
        self._costs = tuple((rate.interval_ns, rate.span_ns) for rate in limits.rates)
        self._full_at[:] = memoryview(bytes(self._full_at.nbytes)).cast("q")

    @property
    def admitted(self) -> int:
        """How many datagrams were let through."""
        return self.judged[-1]

    @property
    def refused(self) -> list[int]:
        """How many were not, by the `Level` that had no token left."""
        return list(self.judged[:-1])

    def empty(self, *, now: float) -> dict[Level, int]:
        """How many buckets of each level have no token now: a look at all of them, some milliseconds."""
        now_ns = int(now * NANOSECONDS)
        return {
            level: self._empty(level, now_ns + span_ns - interval_ns)
            for level, (interval_ns, span_ns) in zip(Level, self._costs, strict=True)
        }

    def _empty(self, level: Level, latest_ns: int) -> int:
        """How many buckets of the level will be full only after `latest_ns`, and so have no token now."""
        start = level * self.buckets
        return sum(full > latest_ns for full in self._full_at[start : start + self.buckets])

    def _keys(self, source: Endpoint) -> tuple[int, int, int, int]:
        """64 bits for each level, different for different sources (over IPv6 but for rare accidents)."""
        number, port = int(source.ip), source.port
        if not source.is_ipv6:
            socket = number << 16 | port
            return socket, socket >> PORTS_OF_A_SHARER_BITS, number, number >> 8
        high, low = number >> 64, number & WORD
        of_high, of_low, of_port = self._halves
        address = (high * of_high + low * of_low) & WORD
        return (address + port * of_port) & WORD, address, high, high >> 16


def _multiplier(entropy: Entropy) -> int:
    """A secret odd number of 64 bits."""
    return int.from_bytes(entropy(_MULTIPLIER_BYTES), "big") | 1
