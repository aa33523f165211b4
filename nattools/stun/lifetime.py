"""How long the NAT keeps an idle UDP binding (RFC 5780 §4.6).

`Lifetime` is a machine without I/O. One socket asks, the others rest, each for a time of its own and all side
by side. Each resting socket sends one Binding request, learns its mapped port, and then sends nothing more.
When its time is over, the asking socket has the server send an answer to that port (RESPONSE-PORT, §7.5):
whether it comes in shows whether the binding is still there.

Silence is believed late, as in `discovery`. First the server must show, on a socket that rests for later,
that it does answer to another port. Each question then travels with a plain request, and only those whose
plain request was answered count as unanswered: neither loss nor a stalled server looks like a binding that
is gone.

What is measured is a binding that has seen one request and its answer. Some NATs, Linux among them, keep it
longer once more has passed; then the figure errs on the safe side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.machine import Entropy, Transmit
from nattools.stun.attributes import ERROR_CODE, OTHER_ADDRESS, RESPONSE_PORT
from nattools.stun.discovery import FEARED_LOSS, probes_needed
from nattools.stun.integrity import fingerprint_holds
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.request import OWN_SOFTWARE

RESTS_S = (3.0, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0, 60.0, 90.0, 135.0, 200.0, 300.0)
"""How long the sockets rest. RFC 4787 REQ-5 asks NATs for two minutes at least, and recommends five."""

_SHORTEST_INTERVAL_S = 1.0
_LONGEST_INTERVAL_S = 240.0
_SHARE_OF_LIFETIME = 0.8

_MOST_REQUESTS = 7
_FIRST_INTERVAL_S = 0.1
_PLAIN_FLOOR_S = 0.05
_LONGEST_INTERVAL_OF_REQUESTS_S = 4.0
_SLOWEST_ROUND_TRIP_S = 2.0  # an answer that takes longer is late, and no measure of the rest
_BURST_FLOOR_S = 0.02
_BURST_PER_RTT = 4
_GRACE_FLOOR_S = 0.05
_MOST_PAIRS = 64
_PATIENT_AFTER_PAIRS = 8  # with none of them answered: from then on the waits grow
_GIVEN_UP_AFTER_PAIRS = 20
_PATIENCE = 1.5
_LONGEST_WAIT_S = 1.0
_LOSS_PRIOR_PAIRS = 40  # how much the feared loss weighs against the loss seen


@dataclass(frozen=True, slots=True)
class Survived:
    """Event: a binding was still there after `idle_s` seconds without traffic, or a little more."""

    idle_s: float


@dataclass(frozen=True, slots=True)
class Expired:
    """Event: a binding was gone after `idle_s` seconds without traffic, or a little less."""

    idle_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: nothing more will be found out. `reason` says what rests on what, or why both times are None."""

    longest_survived_s: float | None
    shortest_expired_s: float | None
    reason: str


LifetimeEvent = Survived | Expired | Finished


def socket_names(longest_s: float = RESTS_S[-1]) -> tuple[str, ...]:
    """The sockets for rests of up to `longest_s`: first the one that asks, then one for each rest."""
    rests = sum(rest_s <= longest_s for rest_s in RESTS_S)
    return ("ask", *(f"idle-{number}" for number in range(1, rests + 1)))


def safe_interval_s(longest_survived_s: float) -> float:
    """How often to refresh a binding that survived `longest_survived_s` of silence: 80 % of it, 1 to 240 s.

    The fifth that is left is for what makes a keepalive late: a lost one that is sent again, and a busy
    machine. More often than every second helps no binding. The longest interval is that of the five minutes
    that RFC 4787 REQ-5 recommends: a new public address is noticed no sooner than the next keepalive. The
    spreading over 80 to 100 % of an interval (RFC 5626 §4.4) is up to whoever sends.
    """
    return min(max(_SHARE_OF_LIFETIME * longest_survived_s, _SHORTEST_INTERVAL_S), _LONGEST_INTERVAL_S)


@dataclass(slots=True, eq=False)
class _Idle:
    """A socket that rests: when it last sent and received, and when its rest is over."""

    socket: str
    rest_s: float
    sent_at: float = 0.0
    heard_at: float = 0.0
    due_at: float = 0.0
    mapped: Endpoint | None = None


@dataclass(slots=True, eq=False)
class _Opening:
    """A plain request, repeated until it is answered; `idle` is None for the asking socket."""

    socket: str
    idle: _Idle | None
    next_at: float
    requests: int = 0


@dataclass(slots=True, eq=False)
class _Knock:
    """The question whether `idle` can be reached at `mapped`, repeated, each time beside a plain request.

    `witnessed` has for each pair whether the plain request was answered, `unheard` counts the last ones that
    were not. With `is_control` it is the server that is tried.
    """

    idle: _Idle
    mapped: Endpoint
    rested_s: float
    next_at: float
    is_control: bool = False
    witnessed: list[bool] = field(default_factory=list)
    unheard: int = 0
    in_grace: bool = False


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a transaction id stands for; `pair` numbers the questions of a knock."""

    purpose: _Opening | _Knock
    socket: str
    at: float
    pair: int = 0
    is_question: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What counts in an answer: the mapped address, or why there is none, and whether RFC 5780 is spoken."""

    mapped: Endpoint | None
    error: str
    names_other_address: bool

    @classmethod
    def read(cls, message: Message) -> _Answer:
        if message.message_class is MessageClass.ERROR:
            error = message.get(ERROR_CODE)
            return cls(None, f"error {error}", False)
        return cls(message.mapped_address, "no mapped address", message.get(OTHER_ADDRESS) is not None)


class Lifetime:
    """Finds out with `server` how long a binding lives that nothing refreshes; a `machine.Machine`.

    The first of `sockets` asks; each other one rests for the next of `RESTS_S` up to `longest_s`. Each is on
    a port of its own that nobody else uses meanwhile. It takes as long as the first rest that the binding
    does not survive, or the last one, and a few seconds. Without a NAT it is the firewall that is measured.
    After a sleep of the machine, which its monotonic clock may not count, it must be begun anew.
    """

    def __init__(
        self,
        server: Endpoint,
        *,
        sockets: Sequence[str],
        entropy: Entropy,
        now: float,
        longest_s: float = RESTS_S[-1],
    ) -> None:
        self._server = server
        self._entropy = entropy
        self._asking, *others = sockets
        rests = [rest_s for rest_s in RESTS_S if rest_s <= longest_s]
        self._idle = {socket: _Idle(socket, rest_s) for socket, rest_s in zip(others, rests, strict=False)}
        self._openings = [_Opening(self._asking, None, now)]
        self._resting: list[_Idle] = []
        self._knocks: list[_Knock] = []
        self._by_id: dict[bytes, _Sent] = {}
        self._public: Endpoint | None = None
        self._rtt_s: float | None = None
        self._survived: list[float] = []
        self._expired: list[float] = []
        self._undecided: list[str] = []
        self._transmits: deque[Transmit] = deque()
        self._events: deque[LifetimeEvent] = deque()
        self._finished = False
        if not self._idle:
            self._finish(f"nothing to measure: no socket rests, or none for {RESTS_S[0]:g} s")
        self._advance(now)

    # The machine contract

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now."""
        while self._transmits:
            yield self._transmits.popleft()

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next; None once it is finished."""
        if self._finished:
            return None
        times = [opening.next_at for opening in self._openings]
        times += [knock.next_at for knock in self._knocks]
        return min(times + [idle.due_at for idle in self._resting])

    def handle_timeout(self, *, now: float) -> None:
        """Send what is due, and settle what has waited long enough."""
        self._advance(now)

    def next_event(self) -> LifetimeEvent | None:
        """Take the next event, or None."""
        return self._events.popleft() if self._events else None

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:
        """Take one datagram; what is no answer of the server to one of the requests says nothing."""
        if socket in self._idle:
            self._idle[socket].heard_at = now  # whatever came in may have refreshed the binding
        if self._finished or source.unmapped != self._server.unmapped:
            return
        try:
            message = Message.parse(data)
            sent = self._by_id.get(message.transaction_id)
            is_answer = message.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
            if sent is None or not is_answer or message.method != Method.BINDING:
                return
            if fingerprint_holds(message) is False:
                return
            answer = _Answer.read(message)
        except DecodeError:
            return
        if isinstance(sent.purpose, _Opening):
            self._opening_answered(sent, sent.purpose, answer, socket, now)
        elif sent.purpose in self._knocks:
            self._knock_answered(sent, sent.purpose, answer, socket, now)
        self._advance(now)

    # Asking

    def _advance(self, now: float) -> None:
        """Do everything that is due."""
        for opening in [opening for opening in self._openings if opening.next_at <= now]:
            self._open(opening, now)
        for idle in [idle for idle in self._resting if idle.due_at <= now]:
            self._resting.remove(idle)
            self._knock_at(idle, now)
        for knock in [knock for knock in self._knocks if knock.next_at <= now]:
            self._knock(knock, now)
        if not (self._openings or self._resting or self._knocks):
            self._finish(self._findings())

    def _open(self, opening: _Opening, now: float) -> None:
        if opening.requests == _MOST_REQUESTS:
            if opening.idle is None:
                self._finish(f"{self._server} did not answer, asked {opening.requests} times")
            else:
                self._opened(opening, now)
            return
        if opening.idle is not None:
            opening.idle.sent_at = now
        self._send(_Sent(opening, opening.socket, now))
        first_s = _FIRST_INTERVAL_S if self._rtt_s is None else max(_PLAIN_FLOOR_S, 1.5 * self._rtt_s)
        opening.next_at = now + min(first_s * 2**opening.requests, _LONGEST_INTERVAL_OF_REQUESTS_S)
        opening.requests += 1

    def _opened(self, opening: _Opening, now: float) -> None:
        """After the last one the server is tried, on the socket that has the longest rest before it."""
        self._openings.remove(opening)
        if self._openings:
            return
        opened = [idle for idle in self._idle.values() if idle.mapped is not None]
        if opened:
            self._knock_at(opened[-1], now, is_control=True)
        else:
            self._finish(f"{self._server} saw one socket, and no other one at the same address")

    def _knock_at(self, idle: _Idle, now: float, *, is_control: bool = False) -> None:
        if idle.mapped is not None:
            rested_s = now - max(idle.sent_at, idle.heard_at)
            self._knocks.append(_Knock(idle, idle.mapped, rested_s, now, is_control))

    def _knock(self, knock: _Knock, now: float) -> None:
        """Send the next pair, or settle: in silence that was witnessed often enough, or undecided."""
        pairs, witnessed = len(knock.witnessed), sum(knock.witnessed)
        loss = (pairs - witnessed + FEARED_LOSS * _LOSS_PRIOR_PAIRS) / (pairs + _LOSS_PRIOR_PAIRS)
        if knock.in_grace and knock.is_control:
            self._finish(f"{self._server} answers, but not to another port (RESPONSE-PORT)")
        elif knock.in_grace:
            self._expire(knock, now)
        elif witnessed >= probes_needed(loss):
            knock.in_grace = True
            knock.next_at = now + max(_GRACE_FLOOR_S, self._rtt_s or 0.0)
        elif knock.unheard >= _GIVEN_UP_AFTER_PAIRS:
            self._leave_undecided(knock, f"{self._server} stopped answering")
        elif pairs >= _MOST_PAIRS:
            self._leave_undecided(knock, f"too much of what {self._server} is asked gets lost")
        else:
            self._send(_Sent(knock, self._asking, now, pairs, is_question=True))
            self._send(_Sent(knock, self._asking, now, pairs))
            knock.witnessed.append(False)
            knock.unheard += 1
            knock.next_at = now + self._wait_s(knock)

    def _wait_s(self, knock: _Knock) -> float:
        """Until the answer to the first pair is overdue; then little, as long as the server is heard."""
        rtt_s = self._rtt_s or 0.0
        wait_s = max(_BURST_FLOOR_S, rtt_s * 1.5 if len(knock.witnessed) == 1 else rtt_s / _BURST_PER_RTT)
        missed = max(0, knock.unheard - _PATIENT_AFTER_PAIRS)
        return min(wait_s * _PATIENCE**missed, max(wait_s, _LONGEST_WAIT_S))

    def _send(self, sent: _Sent) -> None:
        request = Message(Method.BINDING, MessageClass.REQUEST, self._entropy(12))
        if self._server.is_ipv6:
            request = request.append(OWN_SOFTWARE)
        if isinstance(sent.purpose, _Knock) and sent.is_question:
            request = request.append(RESPONSE_PORT.of(sent.purpose.mapped.port))
        self._by_id[request.transaction_id] = sent
        self._transmits.append(Transmit(request.encode(), self._server, sent.socket))

    # Hearing

    def _opening_answered(
        self, sent: _Sent, opening: _Opening, answer: _Answer, socket: str, now: float
    ) -> None:
        if opening not in self._openings or socket != sent.socket:
            return
        self._measure_round_trip(now - sent.at)
        idle = opening.idle
        if idle is not None:
            idle.due_at = now + idle.rest_s
            if answer.mapped and self._public and answer.mapped.ip == self._public.ip:
                idle.mapped = answer.mapped  # at another address of the NAT it cannot be asked for
        elif answer.mapped is None:
            self._finish(f"{self._server} does not say where it sees this machine: {answer.error}")
            return
        elif not answer.names_other_address:
            self._finish(
                f"{self._server} is no RFC 5780 server, which would name an OTHER-ADDRESS (§7.4): try one"
            )
            return
        else:
            self._public = answer.mapped
            self._openings += [_Opening(idle.socket, idle, now) for idle in self._idle.values()]
        self._opened(opening, now)

    def _knock_answered(self, sent: _Sent, knock: _Knock, answer: _Answer, socket: str, now: float) -> None:
        if sent.is_question and socket == knock.idle.socket:
            self._arrived(knock, now)
        elif socket != self._asking:
            return
        elif not sent.is_question:
            self._measure_round_trip(now - sent.at)
            self._witness(knock, sent.pair, answer)
        elif answer.mapped is None:
            self._leave_undecided(knock, f"{self._server} refuses RESPONSE-PORT: {answer.error}")
        elif answer.mapped == knock.mapped and not knock.is_control:
            self._expire(knock, now)  # the NAT has given the port to the socket that asks
        else:
            self._leave_undecided(
                knock, f"{self._server} ignores RESPONSE-PORT, and answers the port that asks"
            )

    def _arrived(self, knock: _Knock, now: float) -> None:
        """The answer came in; so the binding was there when it was first asked for, too."""
        self._knocks.remove(knock)
        if knock.is_control:
            knock.idle.due_at = now + knock.idle.rest_s
            self._resting = [idle for idle in self._idle.values() if idle.mapped is not None]
            return
        rested_s = round(knock.rested_s, 3)
        self._survived.append(rested_s)
        self._events.append(Survived(rested_s))

    def _measure_round_trip(self, rtt_s: float) -> None:
        self._rtt_s = max(self._rtt_s or 0.0, min(rtt_s, _SLOWEST_ROUND_TRIP_S))

    def _witness(self, knock: _Knock, pair: int, answer: _Answer) -> None:
        """The server answers; what it answers to a port goes to the address that it sees now."""
        if answer.mapped is None:
            return
        if answer.mapped.ip != knock.mapped.ip:
            self._resting.clear()  # they have none to be reached at either
            self._leave_undecided(knock, f"seen at {knock.mapped.ip} before, and at {answer.mapped.ip} now")
            return
        knock.witnessed[pair] = True
        knock.unheard = 0

    # Settling

    def _expire(self, knock: _Knock, now: float) -> None:
        """Gone, at the latest now; what rests for longer need not be waited for."""
        self._knocks.remove(knock)
        rested_s = round(now - knock.idle.sent_at, 3)
        self._expired.append(rested_s)
        self._events.append(Expired(rested_s))
        self._resting = [idle for idle in self._resting if idle.rest_s < knock.idle.rest_s]

    def _leave_undecided(self, knock: _Knock, reason: str) -> None:
        self._knocks.remove(knock)
        if knock.is_control:
            self._finish(reason)
        else:
            self._undecided.append(f"not known for {knock.idle.rest_s:g} s: {reason}")

    def _findings(self) -> str:
        found = []
        if self._survived:
            found.append(f"bindings survived up to {round(max(self._survived), 1):g} s of silence")
        if self._expired:
            found.append(f"one was gone after {round(min(self._expired), 1):g} s")
        return "; ".join(found + self._undecided)

    def _finish(self, reason: str) -> None:
        if self._finished:
            return
        self._finished = True
        self._openings, self._resting, self._knocks = [], [], []
        expired_s = min(self._expired, default=None)
        survived = [idle_s for idle_s in self._survived if expired_s is None or idle_s < expired_s]
        self._events.append(Finished(max(survived, default=None), expired_s, reason))
