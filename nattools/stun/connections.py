"""Who may connect: how many connections there are at most, in all and from one source.

A connection costs more than a datagram, and one over TLS a hundred times as much before its first request.
So each counts for `LEAST_COUNTED_S` at the least, however soon it ends: what limits how many there are limits
how many come in a second, too. No more is kept than the limit on all of them.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from nattools.endpoint import Endpoint, IPAddress, site_of
from nattools.errors import TransportError

LEAST_COUNTED_S = 1.0

MOST_CONNECTIONS = 1_000_000
"""No limit on all of them is above this."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be, and how long one may be silent. Raises `TransportError`.

    A source is an IPv4 address or an IPv6 /64. A client may take `idle_s` to send a whole request, and as
    long to take its reply.
    """

    most: int = 256
    per_source: int = 32
    idle_s: float = 30.0

    def __post_init__(self) -> None:
        if not (1 <= self.most <= MOST_CONNECTIONS and self.per_source >= 1 and self.idle_s > 0):
            raise TransportError(
                f"{self.most} connections, {self.per_source} of one source, {self.idle_s:g} s of silence: all"
                f" must be positive, the first at most {MOST_CONNECTIONS}"
            )


class ConnectionCounts:
    """How many connections count now, in all and by source."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        """May be replaced; the connections that there are stay."""
        self.counted = 0
        """So many are open, or have ended too soon to be forgotten."""
        self._by_source: Counter[IPAddress] = Counter()
        self._ended: deque[tuple[float, IPAddress]] = deque()  # and until when they count

    def admit(self, remote: Endpoint, *, now: float) -> bool:
        """Whether one more may come from `remote`; if so it counts, until `end`."""
        while self._ended and self._ended[0][0] <= now:
            self._forget(self._ended.popleft()[1])
        source = site_of(remote.ip)
        if self.counted >= self.limits.most or self._by_source[source] >= self.limits.per_source:
            return False
        self.counted += 1
        self._by_source[source] += 1
        return True

    def end(self, remote: Endpoint, *, since: float, now: float) -> None:
        """One from `remote`, admitted at `since`, has ended."""
        until, source = since + LEAST_COUNTED_S, site_of(remote.ip)
        if until <= now:
            self._forget(source)
        else:
            self._ended.append((until, source))

    def _forget(self, source: IPAddress) -> None:
        self.counted -= 1
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]
