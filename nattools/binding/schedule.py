"""When a flow through the NAT is refreshed, and with what (RFC 5626 §4.4, RFC 6263 §4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint
from nattools.machine import Entropy, Transmit
from nattools.stun.message import HEADER_BYTES, MessageClass, Method
from nattools.stun.request import compose

SAFE_INTERVAL_S = 15.0
"""Half of what careless NATs give an idle UDP binding; RFC 4787 REQ-5 asks them for two minutes."""

_MOST_UNANSWERED = 64
_STEPS = 256


class KeepaliveKind(Enum):
    """What is sent to keep a flow open, by the names that settings use."""

    STUN_REQUEST = "stun-request"  # a peer that speaks STUN on that port answers it (RFC 5626 §4.4.2)
    STUN_INDICATION = "stun-indication"  # nobody answers it (RFC 8489 §2)
    EMPTY = "empty"  # a datagram without payload (RFC 6263 §4.1)
    CRLF = "crlf"  # what SIP servers pass over (RFC 5626 §3.5.1)


def spread(interval_s: float, entropy: Entropy) -> float:
    """80 to 100 % of `interval_s`, so that a thousand flows do not fall due at once (RFC 5626 §4.4)."""
    return interval_s * (0.8 + 0.2 * entropy(1)[0] / _STEPS)


@dataclass(slots=True)
class _Flow:
    kind: KeepaliveKind
    due_at: float


class Flows:
    """How often a socket's flows are refreshed, and those that are kept open beside the STUN server's."""

    __slots__ = ("_entropy", "_flows", "_unanswered", "interval_s")

    def __init__(self, *, interval_s: float, entropy: Entropy) -> None:
        self.interval_s = interval_s
        self._entropy = entropy
        self._flows: dict[Endpoint, _Flow] = {}
        self._unanswered: dict[bytes, None] = {}

    def keep(self, destination: Endpoint, kind: KeepaliveKind, *, now: float) -> None:
        """Refresh the flow to `destination` from now on, the first time at once."""
        self._flows[destination] = _Flow(kind, now)

    def let_go(self, destination: Endpoint) -> None:
        """Refresh it no more."""
        self._flows.pop(destination, None)

    def set_interval(self, interval_s: float, *, now: float) -> None:
        """Refresh as often as that; what would be due later is due sooner."""
        self.interval_s = interval_s
        for flow in self._flows.values():
            flow.due_at = min(flow.due_at, now + interval_s)

    def refresh(self, *, now: float) -> None:
        """Refresh all of them at once: the NAT has lost them, with its address say."""
        for flow in self._flows.values():
            flow.due_at = min(flow.due_at, now)

    def next_at(self, *, now: float) -> float:
        """When a flow that is refreshed now is to be refreshed again."""
        return now + spread(self.interval_s, self._entropy)

    def timeout_at(self) -> float | None:
        """When the next one is due; None while there is none."""
        return min((flow.due_at for flow in self._flows.values()), default=None)

    def due(self, *, now: float) -> Iterator[Transmit]:
        """What must be sent now."""
        for destination, flow in self._flows.items():
            if flow.due_at <= now:
                flow.due_at = self.next_at(now=now)
                yield Transmit(self._payload(flow.kind), destination)

    def eats(self, data: bytes) -> bool:
        """Whether `data` answers a keepalive; it may come several times."""
        return data[8:HEADER_BYTES] in self._unanswered

    def _payload(self, kind: KeepaliveKind) -> bytes:
        if kind is KeepaliveKind.EMPTY:
            return b""
        if kind is KeepaliveKind.CRLF:
            return b"\r\n\r\n"
        is_request = kind is KeepaliveKind.STUN_REQUEST
        message_class = MessageClass.REQUEST if is_request else MessageClass.INDICATION
        message = compose(Method.BINDING, message_class, (), entropy=self._entropy)
        if is_request:
            self._unanswered[message.transaction_id] = None
            while len(self._unanswered) > _MOST_UNANSWERED:
                del self._unanswered[next(iter(self._unanswered))]
        return message.encode()
