"""The two sides of one stream: what comes from the one goes to the other, or nowhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nattools.endpoint import Endpoint
from nattools.machine import Entropy, Transmit
from nattools.session.latch import Latch
from nattools.session.relay import Expectation, Side
from nattools.sip.keepalive import RtpFill, RtpSender

RTP: Mapping[Side, str] = MappingProxyType({side: f"{side.value}.rtp" for side in Side})
"""The names of the RTP sockets."""
RTCP: Mapping[Side, str] = MappingProxyType({side: f"{side.value}.rtcp" for side in Side})
"""The names of the RTCP sockets."""

FIRST_PUNCH_S = 0.1
"""So long both sides may be silent before they are sent something; the pauses after that double."""
MOST_PUNCHES = 7
"""The last one leaves 12.7 s after the description; by then signalling gives up, too."""

_MOST_EVENTS = 64
_SIDE_OF = {name: side for names in (RTP, RTCP) for side, name in names.items()}
_RTCP_NAMES = frozenset(RTCP.values())
_FIRST_RTCP, _LAST_RTCP = 192, 223


@dataclass(frozen=True, slots=True)
class Latched:
    """A side's RTP (or RTCP) comes from `source` from now on; before it came from `previous`."""

    side: Side
    is_rtcp: bool
    source: Endpoint
    previous: Endpoint | None


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody who is not that side sent to its port, and was not heard; or is not yet believed."""

    side: Side
    is_rtcp: bool
    source: Endpoint
    data: bytes


CrossingEvent = Latched | Foreign


class Crossing:
    """One stream between two sides, as a machine whose four sockets are named in `RTP` and `RTCP`.

    After each input, drain it: `transmits()`, then `next_event()`. Of events that nobody takes it keeps the
    latest.
    """

    def __init__(self, *, entropy: Entropy) -> None:
        self.latches: Mapping[Side, Latch] = MappingProxyType({side: Latch() for side in Side})
        self._entropy = entropy
        self._transmits: list[Transmit] = []
        self._events: deque[CrossingEvent] = deque(maxlen=_MOST_EVENTS)
        self._senders: dict[Side, RtpSender] = {}
        self._punches = 0
        self._punch_at: float | None = None

    def source(self, side: Side, *, rtcp: bool = False) -> Endpoint | None:
        """Where RTP (or RTCP) of that side comes from, None until that is known."""
        latch = self.latches[side]
        return latch.rtcp_source if rtcp else latch.source

    def destination(self, side: Side, *, rtcp: bool = False) -> Endpoint | None:
        """Where RTP (or RTCP) for that side goes, None while it must be held back."""
        latch = self.latches[side]
        return latch.rtcp_destination if rtcp else latch.destination

    @property
    def converts_mux(self) -> bool:
        """Whether only one side has RTCP on its RTP port, so that RTCP is told from RTP (RFC 5761 §4)."""
        return self._is_muxed(Side.A) is not self._is_muxed(Side.B)

    def expect(self, side: Side, expectation: Expectation, *, now: float) -> None:
        """Take what signalling says of that side."""
        self.latches[side].expect(expectation, now=now)
        self._senders.pop(side, None)
        if self._both_wait():
            self._punches, self._punch_at = 0, now + FIRST_PUNCH_S
        else:
            self._punch_at = None

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str) -> None:
        """Take one datagram of the socket of that name: it goes to the other side, or nowhere."""
        side, is_rtcp = _SIDE_OF[socket], socket in _RTCP_NAMES
        latch = self.latches[side]
        before = latch.rtcp_source if is_rtcp else latch.source
        if is_rtcp:
            is_own = latch.receive_rtcp(data, source, now=now)
        else:
            is_own = latch.receive(data, source, now=now)
        if not is_own:
            self.latches[side.other].held += latch.is_unknown
            self._events.append(Foreign(side, is_rtcp, source, data))
            return
        self._punch_at = None
        latched = latch.rtcp_source if is_rtcp else latch.source
        if latched is not None and latched != before:
            self._events.append(Latched(side, is_rtcp, latched, before))
        self._cross(side, data, is_rtcp=is_rtcp)

    @property
    def has_transmits(self) -> bool:
        """Whether something must be sent now: after a datagram, whether that is relayed."""
        return bool(self._transmits)

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        made, self._transmits = self._transmits, []
        return made

    def timeout_at(self) -> float | None:
        """When the next punch is due, or None."""
        return self._punch_at

    def handle_timeout(self, *, now: float) -> None:
        """Open the ways to both sides, which wait for each other, by a packet that receivers drop."""
        if self._punch_at is None or now < self._punch_at:
            return
        self._punches += 1
        pause_s = FIRST_PUNCH_S * 2**self._punches
        self._punch_at = now + pause_s if self._punches < MOST_PUNCHES else None
        for side in Side:
            destination = self.latches[side].destination
            if destination is not None:
                packet = self._sender(side).fill(RtpFill.UNKNOWN_TYPE, now=now)
                self._transmits.append(Transmit(packet, destination, RTP[side]))

    def next_event(self) -> CrossingEvent | None:
        """Take the next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def _is_muxed(self, side: Side) -> bool:
        wanted = self.latches[side].expectation
        return wanted is not None and wanted.rtcp_mux

    def _both_wait(self) -> bool:
        return all(
            latch.expectation is not None and latch.expectation.payload_types and latch.source is None
            for latch in self.latches.values()
        )

    def _sender(self, side: Side) -> RtpSender:
        if side not in self._senders:
            wanted = self.latches[side.other].expectation
            offered = wanted.payload_types if wanted is not None else ()
            # a whole session of dynamic types leaves one for the punch
            self._senders[side] = RtpSender(entropy=self._entropy, offered=sorted(offered)[:31])
        return self._senders[side]

    def _cross(self, side: Side, data: bytes, *, is_rtcp: bool) -> None:
        """Send what `side` has said to the other one, from the socket that it listens to."""
        other = side.other
        if not is_rtcp and self._is_muxed(side) and len(data) > 1:
            is_rtcp = _FIRST_RTCP <= data[1] <= _LAST_RTCP
        destination = self.destination(other, rtcp=is_rtcp)
        if destination is None:
            self.latches[other].held += 1
            return
        names = RTCP if is_rtcp and not self._is_muxed(other) else RTP
        self._transmits.append(Transmit(data, destination, names[other]))
