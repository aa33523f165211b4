"""What to ask a STUN server to learn what the NAT does, and what was seen (RFC 5780 §4, RFC 3489 §10).

`Discovery` is a machine without I/O. It asks its questions side by side from four sockets, so that no
question opens the filter for another:

- `mapping` talks to all four endpoints of the server;
- `filtering-both` and `filtering-port` talk to A1:P1 alone, and ask for an answer from elsewhere;
- `hairpin` and `mapping` try to reach each other's public endpoint.

Silence is the hard part: it may be the NAT, loss, a stalled server, or a server that lies about what it
can do. So a question counts as unanswered only after enough probes for the loss seen and feared, and
only once a plain request sent *after* them from the same socket was answered; and the filtering
questions are also asked from a socket that the NAT lets through, to see the server keep its word.

A1:P1 is the server, A2:P2 what it says is its other address and port.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import DecodeError
from nattools.machine import Entropy, Transmit
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from nattools.stun.integrity import fingerprint_holds
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.observation import Observation, Observations, Outcome, Question
from nattools.stun.request import OWN_SOFTWARE

MOST_PACKETS = 60
"""What one discovery sends at the most, all questions together."""

FEARED_LOSS = 1 - 0.8 * 0.8
"""The share of round trips feared lost: 20 % in each direction."""

MAPPING, FILTERING_BOTH, FILTERING_PORT, HAIRPIN = "mapping", "filtering-both", "filtering-port", "hairpin"
SOCKETS = (MAPPING, FILTERING_BOTH, FILTERING_PORT, HAIRPIN)
"""The sockets that the driver must open, each on a port of its own."""

_FALSE_SILENCE_ODDS = 1e-5
_MOST_PLAIN_PROBES = 10
_MOST_HAIRPIN_PROBES = 5
_LOSS_PRIOR_PACKETS = 40  # how much the feared loss weighs against the loss seen
_FIRST_INTERVALS_S = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_TCP_AFTER_S = 0.15
_PLAIN_FLOOR_S = 0.04
_BURST_FLOOR_S = 0.02
_GRACE_FLOOR_S = 0.05
_TIMER_SLACK_S = 0.001
_BURST_PER_RTT = 4
_ICMP_ERRORS_BELIEVED = 3
_CHANGE_BOTH = ChangeRequest(change_ip=True, change_port=True)
_CHANGE_PORT = ChangeRequest(change_ip=False, change_port=True)

_FILTERING = (Question.FILTERING_BOTH, Question.FILTERING_PORT)
_BURSTS = (*_FILTERING, Question.HAIRPIN)
_SILENT_AT_ONCE = (Question.BINDING, Question.HAIRPIN_OPEN, Question.STILL_THERE)


@dataclass(frozen=True, slots=True)
class TcpWanted:
    """Event: UDP is silent; try STUN over TCP with `server`, and report an answer to `tcp_answered`."""

    server: Endpoint


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: every question is settled."""

    observations: Observations


DiscoveryEvent = TcpWanted | Finished


def probes_needed(loss: float) -> int:
    """How many unanswered probes tell silence from a round-trip `loss` (0 to 1) with odds of 1 in 100,000."""
    return math.ceil(math.log(_FALSE_SILENCE_ODDS) / math.log(min(max(loss, FEARED_LOSS), 0.95)))


def alternate_fault(server: Endpoint, other: Endpoint | None) -> str:
    """Why `other` cannot serve as the second address of `server`; empty where it can."""
    if other is None:
        return "the server names no other address (no OTHER-ADDRESS or CHANGED-ADDRESS)"
    if other.ip.version != server.ip.version:
        return f"the server's other address {other} is of another family"
    if other.ip == server.ip or other.port == server.port:
        return f"the server's other address {other} is not another address and port"
    inside = (AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL)
    nowhere = other.port == 0 or other.address_class in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST)
    if nowhere or (other.address_class in inside and server.address_class not in inside):
        return f"the server's other address {other} cannot be reached from here"
    return ""


@dataclass(slots=True, eq=False)
class _Probe:
    """One question under way."""

    question: Question
    socket: str
    destination: Endpoint
    most: int
    next_at: float
    change: ChangeRequest | None = None
    expected_source: Endpoint | None = None
    guards: _Probe | None = None
    sent: dict[bytes, float] = field(default_factory=dict)
    replies: set[bytes] = field(default_factory=set)
    confirmed: bool = False
    icmp_errors: int = 0
    outcome: Outcome | None = None
    source: Endpoint | None = None
    mapped: Endpoint | None = None
    rtt_s: float | None = None
    detail: str = ""

    def observation(self) -> Observation:
        return Observation(
            self.question,
            self.socket,
            self.destination,
            self.outcome or Outcome.UNDECIDED,
            len(self.sent),
            self.source,
            self.mapped,
            self.rtt_s,
            self.detail,
        )


class Discovery:
    """Finds out what the NAT in front of `local` does, with one RFC 5780 server or several plain ones.

    `local` is the mapping socket's endpoint: its port, and the address that the kernel sends from.
    `timeout_s` is how long the first answer may take; after it everything is paced by the measured RTT.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        *,
        local: Endpoint,
        entropy: Entropy,
        now: float,
        timeout_s: float = 5.0,
    ) -> None:
        self._local = local
        self._entropy = entropy
        self._tcp_at = now + _TCP_AFTER_S
        self._deadline = now + timeout_s
        self._transmits: deque[Transmit] = deque()
        self._events: deque[DiscoveryEvent] = deque()
        self._by_id: dict[bytes, _Probe] = {}
        self._server = servers[0]
        self._alternate: Endpoint | None = None
        self._alternate_fault = "no server answered"
        self._rtt_s: float | None = None
        self._tcp_rtt_s: float | None = None
        self._tcp_asked = False
        self._rewritten: Endpoint | None = None
        self._unstable = False
        self._packets = 0
        self._heard_at = now
        self._finished = False
        most = min(probes_needed(FEARED_LOSS), MOST_PACKETS // len(servers))
        self._probes = [_Probe(Question.BINDING, MAPPING, server, most, now) for server in servers]
        self._advance(now)

    # The machine contract

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now."""
        while self._transmits:
            yield self._transmits.popleft()

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next; None once everything is settled."""
        if self._finished:
            return None
        times = [probe.next_at for probe in self._probes if probe.outcome is None]
        if self._rtt_s is None and not self._tcp_asked:
            times.append(self._tcp_at)
        return min(times)

    def handle_timeout(self, *, now: float) -> None:
        """Send what is due, and settle what has waited long enough."""
        if self._rtt_s is None and not self._tcp_asked and now >= self._tcp_at:
            self._tcp_asked = True
            self._events.append(TcpWanted(self._server))
        self._advance(now)

    def next_event(self) -> DiscoveryEvent | None:
        """Take the next event, or None."""
        return self._events.popleft() if self._events else None

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = MAPPING) -> None:
        """Take one datagram; what is no answer to a probe of that very socket is ignored."""
        try:
            message = Message.parse(data)
            probe = self._by_id.get(message.transaction_id)
            if probe is None or message.method != Method.BINDING or fingerprint_holds(message) is False:
                return
            if message.message_class is MessageClass.REQUEST:
                self._hairpinned(probe, source, socket)
            elif message.message_class is not MessageClass.INDICATION and probe.socket == socket:
                self._answered(probe, message, source, now)
        except DecodeError:
            return
        self._advance(now)

    # What else the driver may know

    def undeliverable(
        self, destination: Endpoint, reason: str, *, now: float, socket: str = MAPPING, final: bool = False
    ) -> None:
        """Take an ICMP error for `destination`, or, `final`, the system's word that there is no way there."""
        for probe in self._probes:
            if probe.outcome is None and (probe.destination, probe.socket) == (destination, socket):
                probe.icmp_errors += 1
                probe.detail = reason
                if final or probe.icmp_errors >= _ICMP_ERRORS_BELIEVED:
                    self._settle(probe, Outcome.UNREACHABLE, now)
        self._advance(now)

    def tcp_answered(self, rtt_s: float, *, now: float) -> None:
        """Take the RTT of a STUN exchange over TCP: the server lives, so UDP needs no long wait.

        The first answer sets the pace, the next one, asked for after the last probe, shows that the server
        did not merely stall.
        """
        if self._rtt_s is None:
            confirms, self._tcp_rtt_s = self._tcp_rtt_s is not None, rtt_s
            for probe in self._probes:
                if confirms and len(probe.sent) >= probe.most:
                    probe.confirmed = True
                    probe.next_at = now + max(2 * _GRACE_FLOOR_S, 2 * rtt_s)
                else:
                    probe.next_at = min(probe.next_at, now + self._interval(probe))
        self._advance(now)

    # Asking

    def _advance(self, now: float) -> None:
        while not self._finished:
            due = [probe for probe in self._probes if probe.outcome is None and probe.next_at <= now]
            for probe in due:
                if probe.outcome is None:
                    self._act(probe, now)
            if all(probe.outcome is not None for probe in self._probes):
                self._finished = True
                self._events.append(Finished(self._observations()))
            if not due:
                return

    def _act(self, probe: _Probe, now: float) -> None:
        waiting = self._rtt_s is not None or self._tcp_rtt_s is not None or now < self._deadline
        only_tcp = self._rtt_s is None and self._tcp_rtt_s is not None
        if len(probe.sent) < probe.most and waiting:
            if probe.question not in _SILENT_AT_ONCE and self._is_quiet(now):
                probe.next_at = now + _PLAIN_FLOOR_S
            elif self._packets < MOST_PACKETS:
                self._send(probe, now)
            else:
                probe.detail = f"undecided after {MOST_PACKETS} packets: too many are lost"
                self._settle(probe, Outcome.UNDECIDED, now)
        elif only_tcp and not probe.confirmed and now < self._deadline:
            probe.next_at = self._deadline
            self._events.append(TcpWanted(self._server))
        elif probe.question in _SILENT_AT_ONCE:
            self._settle(probe, Outcome.SILENT, now)
        elif not probe.confirmed:
            probe.next_at = math.inf
            self._ask(Question.STILL_THERE, probe.socket, self._server, now, guards=probe)
        elif probe.question in _FILTERING and len(probe.sent) < (needed := probes_needed(self._loss(now))):
            probe.most, probe.confirmed, probe.next_at = needed, False, now
        else:
            self._settle(probe, Outcome.SILENT, now)

    def _ask(
        self,
        question: Question,
        socket: str,
        destination: Endpoint,
        now: float,
        *,
        change: ChangeRequest | None = None,
        expected_source: Endpoint | None = None,
        guards: _Probe | None = None,
    ) -> None:
        most = _MOST_PLAIN_PROBES
        if question in _FILTERING:
            most = probes_needed(self._loss(now))
        elif question is Question.HAIRPIN:
            most = _MOST_HAIRPIN_PROBES
        self._probes.append(_Probe(question, socket, destination, most, now, change, expected_source, guards))

    def _is_quiet(self, now: float) -> bool:
        """Whether even the server itself is overdue: a stall, in which more questions would tell nothing."""
        patience_s = max(_PLAIN_FLOOR_S, 1.5 * (self._rtt_s or 0.0)) - _TIMER_SLACK_S
        return any(
            probe.outcome is None
            and probe.question in _SILENT_AT_ONCE
            and any(self._heard_at < when <= now - patience_s for when in probe.sent.values())
            for probe in self._probes
        )

    def _send(self, probe: _Probe, now: float) -> None:
        transaction_id = self._entropy(12)
        request = Message(Method.BINDING, MessageClass.REQUEST, transaction_id)
        if probe.destination.is_ipv6:
            request = request.append(OWN_SOFTWARE)
        if probe.change is not None:
            request = request.append(CHANGE_REQUEST.of(probe.change))
        probe.sent[transaction_id] = now
        self._by_id[transaction_id] = probe
        self._packets += 1
        self._transmits.append(Transmit(request.encode(), probe.destination, probe.socket))
        probe.next_at = now + self._interval(probe)
        if self._rtt_s is None and self._tcp_rtt_s is None:
            last = len(probe.sent) == probe.most
            probe.next_at = self._deadline if last else min(probe.next_at, self._deadline)

    def _interval(self, probe: _Probe) -> float:
        """How long to wait after a probe: for the next one, or after the last one for the answer."""
        rtt_s = self._rtt_s
        last = len(probe.sent) >= probe.most
        if rtt_s is None and self._tcp_rtt_s is not None:
            return max(_BURST_FLOOR_S, self._tcp_rtt_s / _BURST_PER_RTT)
        if rtt_s is None:
            return _FIRST_INTERVALS_S[min(len(probe.sent), len(_FIRST_INTERVALS_S)) - 1]
        if probe.question in _BURSTS:
            return 0.0 if last else max(_BURST_FLOOR_S, rtt_s / _BURST_PER_RTT)
        plain = max(_PLAIN_FLOOR_S, 1.5 * rtt_s)
        if probe.question in _SILENT_AT_ONCE:  # a server that only stalls is waited for
            plain = min(plain * 1.5 ** len(probe.sent), max(plain, 1.0))
        return plain

    def _loss(self, now: float) -> float:
        """The share of round trips that are lost: what is feared, corrected by what the plain probes saw."""
        settled_before = now - 2 * (self._rtt_s or 0.0)
        sent = lost = 0
        for probe in self._probes:
            if (
                probe.change is None
                and probe.outcome is Outcome.ANSWERED
                and probe.question is not Question.HAIRPIN
            ):
                old = [
                    key for key, when in probe.sent.items() if when < settled_before or key in probe.replies
                ]
                sent += len(old)
                lost += len(old) - len(probe.replies)
        return (lost + FEARED_LOSS * _LOSS_PRIOR_PACKETS) / (sent + _LOSS_PRIOR_PACKETS)

    # Hearing

    def _settle(self, probe: _Probe, outcome: Outcome, now: float) -> None:
        probe.outcome = outcome
        if probe.question in _FILTERING:
            self._ask_hairpin(now)
        guarded = probe.guards
        if guarded is None or guarded.outcome is not None:
            return
        if outcome is Outcome.ANSWERED:  # what was on its way before may still come in
            guarded.confirmed = True
            guarded.next_at = now + max(_GRACE_FLOOR_S, self._rtt_s or 0.0)
        else:
            guarded.detail = probe.detail or "the server stopped answering"
            self._settle(guarded, Outcome.UNDECIDED, now)

    def _answered(self, probe: _Probe, message: Message, source: Endpoint, now: float) -> None:
        probe.replies.add(message.transaction_id)
        self._heard_at = now
        expected = probe.expected_source or probe.destination
        error = message.get(ERROR_CODE) if message.message_class is MessageClass.ERROR else None
        mapped = message.mapped_address
        if probe.outcome in (Outcome.ANSWERED, Outcome.REFUSED, Outcome.MISDIRECTED):
            self._unstable = self._unstable or (
                probe.mapped is not None and mapped not in (None, probe.mapped)
            )
            return
        probe.source = source
        probe.rtt_s = now - probe.sent[message.transaction_id]
        if error is not None or mapped is None:
            probe.detail = f"error {error}" if error else "no mapped address"
            self._settle(probe, Outcome.REFUSED, now)
            return
        probe.mapped = mapped
        if source != expected:
            probe.detail = f"the answer came from {source}, not from {expected}"
            self._settle(probe, Outcome.MISDIRECTED, now)
            return
        self._rtt_s = max(self._rtt_s or 0.0, probe.rtt_s)
        self._settle(probe, Outcome.ANSWERED, now)
        xored, plain = message.get(XOR_MAPPED_ADDRESS), message.get(MAPPED_ADDRESS)
        if xored is not None and plain is not None and xored != plain:
            self._rewritten = plain
        if probe.question is Question.BINDING:
            self._server_answered(probe, message, now)
        self._ask_what_follows(probe, now)

    def _server_answered(self, probe: _Probe, message: Message, now: float) -> None:
        """Choose the server with a usable other address, and ask it the rest."""
        for other in self._probes:  # from here on the measured RTT sets the pace
            if other.outcome is None:
                other.next_at = min(other.next_at, now + self._interval(other))
        if self._alternate is not None:
            return
        other_address = message.get(OTHER_ADDRESS) or message.get(CHANGED_ADDRESS)
        fault = alternate_fault(probe.destination, other_address)
        if fault or other_address is None:
            if not self._has_answer_before(probe):
                self._server, self._alternate_fault = probe.destination, fault
                self._ask(Question.HAIRPIN_OPEN, HAIRPIN, self._server, now)
            return
        if not self._has_answer_before(probe):
            self._ask(Question.HAIRPIN_OPEN, HAIRPIN, probe.destination, now)
        server, alternate = probe.destination, other_address
        self._server, self._alternate, self._alternate_fault = server, alternate, ""
        for other in self._probes:
            if other.question is Question.BINDING and other.outcome is None:
                other.detail = "not needed"
                self._settle(other, Outcome.UNDECIDED, now)
        self._ask(Question.MAPPING_ADDRESS, MAPPING, alternate.with_port(server.port), now)
        self._ask(Question.MAPPING_BOTH, MAPPING, alternate, now)
        self._ask(Question.MAPPING_PORT, MAPPING, server.with_port(alternate.port), now)
        for question, socket, change, source in (
            (Question.FILTERING_BOTH, FILTERING_BOTH, _CHANGE_BOTH, alternate),
            (Question.FILTERING_PORT, FILTERING_PORT, _CHANGE_PORT, server.with_port(alternate.port)),
        ):
            self._ask(question, socket, server, now, change=change, expected_source=source)

    def _has_answer_before(self, probe: _Probe) -> bool:
        return any(
            other.question is Question.BINDING and other.outcome is Outcome.ANSWERED
            for other in self._probes
            if other is not probe
        )

    def _ask_what_follows(self, probe: _Probe, now: float) -> None:
        binding = self._find(Question.BINDING)
        control = {
            Question.MAPPING_BOTH: (Question.CONTROL_BOTH, _CHANGE_BOTH),
            Question.MAPPING_PORT: (Question.CONTROL_PORT, _CHANGE_PORT),
        }.get(probe.question)
        if control and binding and probe.mapped == binding.mapped:  # else the way is not open
            question, change = control
            self._ask(question, MAPPING, self._server, now, change=change, expected_source=probe.destination)
        self._ask_hairpin(now)

    def _ask_hairpin(self, now: float) -> None:
        """Knock at our own public endpoint, once the rest is settled and the mapping known to be reused."""
        binding, opened = self._find(Question.BINDING), self._find(Question.HAIRPIN_OPEN)
        if binding is None or binding.mapped is None or opened is None or opened.mapped is None:
            return
        mapped = binding.mapped
        reused = any(
            probe.mapped == mapped and probe.destination.ip != self._server.ip
            for probe in self._probes
            if probe.socket == MAPPING and probe.outcome is Outcome.ANSWERED and probe.change is None
        )
        filtering = any(probe.question in _FILTERING and probe.outcome is None for probe in self._probes)
        nowhere = (AddressClass.LOOPBACK, AddressClass.UNSPECIFIED, AddressClass.MULTICAST)
        if (
            reused
            and not filtering
            and self._find(Question.HAIRPIN) is None
            and mapped != self._local
            and self._local.address_class is not AddressClass.LOOPBACK
            and mapped.address_class not in nowhere
            and opened.mapped.ip == mapped.ip
        ):
            self._ask(Question.HAIRPIN, HAIRPIN, mapped, now)
            self._ask(Question.HAIRPIN, MAPPING, opened.mapped, now)

    def _hairpinned(self, probe: _Probe, source: Endpoint, socket: str) -> None:
        if probe.question is Question.HAIRPIN and socket != probe.socket:
            for pair in self._probes:
                if pair.question is Question.HAIRPIN:
                    pair.outcome, pair.source = Outcome.ANSWERED, source

    def _find(self, question: Question) -> _Probe | None:
        for probe in self._probes:
            if probe.question is question and (
                question is not Question.BINDING or probe.destination == self._server
            ):
                return probe
        return None

    def _observations(self) -> Observations:
        return Observations(
            self._local,
            self._server,
            self._alternate,
            self._alternate_fault,
            tuple(probe.observation() for probe in self._probes),
            self._packets,
            self._tcp_rtt_s,
            self._rewritten,
            self._unstable,
        )
