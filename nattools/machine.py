"""The sans-I/O contract: what every protocol machine in nattools looks like from outside.

A machine owns no socket, no clock and no source of randomness. Its driver feeds it datagrams and the
time, and after every input drains it: send all of `transmits()`, take `next_event()` until None, and
call `handle_timeout()` once `timeout_at()` has come. `now` is monotonic seconds, from any origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nattools.endpoint import Endpoint

Entropy = Callable[[int], bytes]
"""Returns that many random bytes; `secrets.token_bytes` in production, anything repeatable in a test."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """A datagram that the driver must send: `data` to `destination`, from the socket named `socket`."""

    data: bytes
    destination: Endpoint
    socket: str = ""


EventT_co = TypeVar("EventT_co", covariant=True)


class Machine(Protocol[EventT_co]):
    """One protocol exchange, driven from outside."""

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:
        """Take one datagram that arrived from `source` on `socket`."""

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now; each datagram is handed out once."""

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None."""

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due at `now`; calling early is harmless."""

    def next_event(self) -> EventT_co | None:
        """Take the next thing that happened, or None."""
