"""What must be sent when a binding has changed, for a phone that knows of no bindings.

A `Renewal` watches the messages of a phone, in the phone's own words: what it sends passes here before it
passes `Rewriter.outgoing`, what comes for it after `Rewriter.incoming`. When the public endpoint changes it
sends requests of its own in the phone's name: a REGISTER that binds the new Contact and removes the old one,
and in each call a re-INVITE with the phone's last description, whose addresses the Rewriter exchanges (RFC
3665 §3.7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from nattools.endpoint import Endpoint
from nattools.errors import AuthenticationError, DecodeError, EncodeError
from nattools.machine import Entropy, Transmit
from nattools.sip.calls import MOST_CALLS, Call, Calls
from nattools.sip.change import register_after_change
from nattools.sip.dialog import Dialog, Fields
from nattools.sip.digest import Answering
from nattools.sip.headers import compose_via
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.registrations import MOST_REGISTRATIONS, Registration, Registrations
from nattools.sip.sdp import SessionDescription
from nattools.sip.transaction import TIMEOUT_S, ClientTransaction

SETTLE_S = 0.1
"""So long calls wait after a change for those of their other sockets, to tell all in one re-INVITE."""
_MOST_TRIES = 5
_LONGEST_RETRY_AFTER_S = 10
_TIMEOUTS = (408, 504)  # somebody on the way heard nothing: the same request may succeed (RFC 3261 §21.4.9)
_LONGEST_PENDING_S = 1.25 * TIMEOUT_S
_MOST_EVENTS = 64
_MOST_RUNNING = 256
_MOST_REFUSED = 32
_MOST_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Registered:
    """The registrar at `server` has the new Contact of `address_of_record`, and the old one no more."""

    address_of_record: str
    server: Endpoint


@dataclass(frozen=True, slots=True)
class CallMoved:
    """The other side of a call has accepted the new addresses.

    `has_peer_moved` says that its own description names other addresses than before, of which the phone
    does not know.
    """

    call_id: bytes
    has_peer_moved: bool


@dataclass(frozen=True, slots=True)
class NeedsPhone:
    """A request was refused for want of credentials that only the phone can make: have it send its own."""

    method: str
    call_id: bytes
    server: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class NotRenewed:
    """A request was refused, or nobody answered it; `status_code` is None without an answer."""

    method: str
    call_id: bytes
    server: Endpoint
    reason: str
    status_code: int | None = None


RenewalEvent = Registered | CallMoved | NeedsPhone | NotRenewed


_InviteKey = tuple[bytes | None, bytes, int]
"""An INVITE of the other side, and the ACK of its refusal, by branch, Call-ID and CSeq number."""


class _Move(NamedTuple):
    """A dialog that must be told where the phone is, and by which request."""

    call: Call
    dialog: Dialog
    method: str


class _Errand:
    """One thing that must be told, over all the requests that it takes."""

    __slots__ = ("about", "began_at", "is_dropped", "retry_at", "tries")

    def __init__(self, about: Registration | _Move, now: float) -> None:
        self.about = about
        self.began_at = now
        self.tries = 0
        self.retry_at: float | None = None
        self.is_dropped = False

    @property
    def move(self) -> _Move | None:
        return self.about if isinstance(self.about, _Move) else None

    @property
    def method(self) -> str:
        return self.about.method if isinstance(self.about, _Move) else "REGISTER"

    @property
    def call_id(self) -> bytes:
        return self.about.call.call_id if isinstance(self.about, _Move) else self.about.request.call_id

    @property
    def peer(self) -> Endpoint:
        """Whom the phone sends its own messages about it to."""
        return self.about.call.peer if isinstance(self.about, _Move) else self.about.destination

    @property
    def destination(self) -> Endpoint:
        """Where its requests are sent. Raises `DecodeError`."""
        if isinstance(self.about, _Move):
            return self.about.dialog.next_hop() or self.about.call.peer
        return self.about.destination


class _Running:
    """A request of an errand: its transaction, and the ACK of a 2xx once there was one."""

    __slots__ = ("ack", "errand", "transaction")

    def __init__(self, errand: _Errand, transaction: ClientTransaction) -> None:
        self.errand = errand
        self.transaction = transaction
        self.ack: Transmit | None = None


class Renewal:
    """Keeps a phone's registrations and calls reachable over changes of its public endpoint.

    A machine after `nattools.machine`: after each call drain `transmits`, whose messages are in the phone's
    words and must pass `Rewriter.outgoing` like the phone's, and `next_event`. Bytes that are no SIP pass
    unseen, and none make a method raise. Requests of its own take CSeq numbers; those of the phone in that
    dialog are shifted from then on, and shifted back in the answers.

    A call in which the phone's last description is not confirmed yet is told when it is; by UPDATE before,
    where RFC 3311 allows one. Another INVITE under way is waited for. While its own is under way, one of the
    other side is answered by 491 (RFC 3261 §14.2).
    """

    def __init__(
        self,
        local: Endpoint,
        *,
        entropy: Entropy,
        digest: Answering | None = None,
        transport: str = "UDP",
        most_registrations: int = MOST_REGISTRATIONS,
        most_calls: int = MOST_CALLS,
    ) -> None:
        """`local` is the phone's SIP socket; with `digest` it answers challenges in the phone's name."""
        self.local = local
        self._entropy = entropy
        self._digest = digest
        self._transport = transport
        self._registrations = Registrations(most=most_registrations)
        self._calls = Calls(most=most_calls)
        self._moves: dict[tuple[bytes, bytes], tuple[Call, float]] = {}  # what to tell, and from when on
        self._errands: list[_Errand] = []
        self._running: dict[bytes, _Running] = {}
        self._refused: dict[_InviteKey, bytes] = {}  # our 491 to it
        self._outbox: list[Transmit] = []
        self._events: deque[RenewalEvent] = deque(maxlen=_MOST_EVENTS)

    # The machine

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now, in the phone's words."""
        for running in self._running.values():
            self._outbox += running.transaction.transmits()
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When something is due, or None."""
        due = [running.transaction.timeout_at() for running in self._running.values()]
        due += [errand.retry_at for errand in self._errands if errand.retry_at is not None]
        for call, at in self._moves.values():
            free_at = None if self._has_errand(call) else call.free_at()
            due += [] if free_at is None else [max(at, free_at)]
        return min(due, default=None)

    def next_event(self) -> RenewalEvent | None:
        """Take the next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def handle_timeout(self, *, now: float) -> None:
        """Send again, give up, or try once more, what is due."""
        for branch, running in list(self._running.items()):
            transaction = running.transaction
            was_over = transaction.is_over
            transaction.handle_timeout(now=now)
            if transaction.has_timed_out and not was_over and not running.errand.is_dropped:
                self._fail(running.errand, "nobody answered it in time")
            if transaction.has_timed_out or (transaction.is_over and now >= transaction.timeout_at()):
                self._outbox += transaction.transmits()
                del self._running[branch]
        for errand in list(self._errands):
            if errand.retry_at is not None and now >= errand.retry_at:
                errand.retry_at = None
                self._send(errand, [], now)
        self._start_moves(now)

    # What the driver tells

    def binding_changed(
        self, old: Endpoint | None, new: Endpoint, *, now: float, server: Endpoint | None = None
    ) -> None:
        """The phone's SIP socket is at `new` now, and no longer at `old`, the public endpoint written before.

        Registers at once, and tells the calls after `SETTLE_S`. What was being told is told anew: its
        answer would go to the old endpoint. With `server` only what is sent there is concerned: it alone is
        known to see the socket at `new` (`Learned`), and all others go on with what they were told.
        """
        for errand in list(self._errands):
            if server in (None, errand.peer):
                self._drop(errand, now)
        for registration in self._registrations.moved(old, new, server):
            self._begin(registration, now)
        for call in self._calls:
            if server in (None, call.peer):
                self._must_tell(call, now)
        self._start_moves(now)

    def media_changed(self, local: Endpoint | None = None, *, now: float) -> None:
        """The media socket at `local` has a new public endpoint: tell the calls that use it; None for all."""
        for call in self._calls:
            if local is None or _uses(call, local):
                self._must_tell(call, now)
        self._start_moves(now)

    # What passes

    def outgoing(self, message: bytes, destination: Endpoint, *, now: float) -> bytes:
        """A message of the phone, on its way to `destination`, as it must go on from here."""
        try:
            sip = SipMessage.parse(message)
            if not sip.is_request:
                self._calls.sent_response(sip, now=now)
            elif sip.method == "REGISTER":
                number, ended = self._registrations.sent(sip, destination)
                _renumber(sip, "cseq", number)
                if ended is not None:
                    self._drop_all_about(ended, now)
            elif (call := self._calls.sent_request(sip, destination, now=now)) is not None:
                _shift_request(sip, call)
                if call.is_over:
                    self._drop_all_about(call, now)
        except (DecodeError, EncodeError):
            return message
        self._start_moves(now)
        return sip.encode()

    def incoming(self, message: bytes, source: Endpoint, *, now: float) -> bytes | None:
        """A message for the phone, as it must see it; None where it is none of the phone's business."""
        try:
            sip = SipMessage.parse(message)
            if sip.is_request:
                if self._refuses(sip, source):
                    return None
                call = self._calls.received_request(sip, source, now=now)
                if call is not None and call.is_over:
                    self._drop_all_about(call, now)
            elif (running := self._running.get(sip.branch or b"")) is not None:
                self._answered(running, sip, now)
                return None
            elif sip.method == "REGISTER":
                number, registration = self._registrations.answered(sip)
                _renumber(sip, "cseq", number)
                self._remove_stale(registration, now)
            elif (call := self._calls.received_response(sip, now=now)) is not None:
                _renumber(sip, "cseq", None if sip.cseq is None else call.shift.incoming(sip.cseq[0]))
        except (DecodeError, EncodeError):
            return message
        self._start_moves(now)
        return sip.encode()

    def _refuses(self, request: SipMessage, source: Endpoint) -> bool:
        """Answer an INVITE of the other side by 491 while ours is under way, and take the ACK of that."""
        number = request.cseq
        key = request.branch, request.call_id, -1 if number is None else number[0]
        if request.method == "INVITE" and key not in self._refused and self._is_telling(request):
            tag = self._entropy(4).hex()
            self._refused[key] = compose_response(request, 491, "Request Pending", to_tag=tag)
            while len(self._refused) > _MOST_REFUSED:
                del self._refused[next(iter(self._refused))]
        answer = self._refused.get(key)
        if answer is not None and request.method == "INVITE":
            self._outbox.append(Transmit(answer, source))
        return answer is not None and request.method in ("INVITE", "ACK")

    def _is_telling(self, request: SipMessage) -> bool:
        """Whether a request of the other side falls into an INVITE of ours that has no answer yet."""
        return any(
            running.errand.move is not None
            and not running.errand.is_dropped
            and not running.transaction.is_over
            and running.errand.method == "INVITE"
            and running.errand.call_id == request.call_id
            and running.errand.move.call.local_tag == request.to_tag
            for running in self._running.values()
        )

    # What is told, and how it goes

    def _must_tell(self, call: Call, now: float) -> None:
        if not call.is_over and call.body is not None:
            key = call.call_id, call.local_tag
            self._moves[key] = call, min(now + SETTLE_S, self._moves.get(key, (call, float("inf")))[1])

    def _start_moves(self, now: float) -> None:
        """Tell the calls that have something to tell, and may speak."""
        for key, (call, at) in list(self._moves.items()):
            free_at = call.free_at()
            if call.is_over:
                del self._moves[key]
            elif free_at is not None and now >= max(at, free_at) and not self._has_errand(call):
                del self._moves[key]
                for dialog, method in call.movable():
                    self._begin(_Move(call, dialog, method), now)

    def _has_errand(self, call: Call) -> bool:
        return any(errand.move is not None and errand.move.call is call for errand in self._errands)

    def _begin(self, about: Registration | _Move, now: float) -> None:
        errand = _Errand(about, now)
        self._errands.append(errand)
        self._send(errand, [], now)

    def _send(self, errand: _Errand, credentials: Fields, now: float) -> None:
        """Send a request for the errand; `credentials` answer the challenge to the one before."""
        errand.tries += 1
        branch = f"z9hG4bK{self._entropy(12).hex()}"
        try:
            if isinstance(errand.about, _Move):
                request = self._compose_move(errand.about, branch, credentials)
            else:
                request = self._compose_register(errand.about, branch, credentials)
            transaction = ClientTransaction(request, errand.destination, now=now)
        except (DecodeError, EncodeError) as error:
            self._fail(errand, f"it cannot be sent: {error}")
            return
        self._running[transaction.branch] = _Running(errand, transaction)
        if len(self._running) > _MOST_RUNNING:
            forgotten = self._running.pop(next(iter(self._running)))
            self._fail(forgotten.errand, "too many other requests are under way")

    def _compose_register(self, registration: Registration, branch: str, credentials: Fields) -> bytes:
        own = registration.own or self.local
        return register_after_change(
            registration.request.data,
            own,
            own,
            branch=branch,
            cseq=registration.shift.take(),
            stale=registration.stale,
            credentials=credentials or None,
        )

    def _compose_move(self, move: _Move, branch: str, credentials: Fields) -> bytes:
        call, dialog, method = move
        return dialog.compose(
            method,
            cseq=call.shift.take(),
            via=compose_via(self.local, branch=branch, transport=self._transport),
            contact=call.contact,
            headers=[*call.timer_field(), *(credentials or call.credentials)],
            body=call.body,
        )

    def _answered(self, running: _Running, response: SipMessage, now: float) -> None:
        """Take a response to a request of ours."""
        running.transaction.receive(response, now=now)
        while (taken := running.transaction.next_response()) is not None:
            status_code = taken.status_code or 0
            if running.errand.move is not None and 200 <= status_code < 300:
                self._acknowledge(running, running.errand.move, taken)
            if status_code >= 200 and not running.errand.is_dropped and running.errand in self._errands:
                self._settle(running, taken, now)
        self._start_moves(now)

    def _acknowledge(self, running: _Running, move: _Move, response: SipMessage) -> None:
        """Send the ACK of a 2xx to our INVITE, again each time that the 2xx comes (RFC 3261 §13.2.2.4)."""
        with suppress(DecodeError):
            move.call.refresh(move.dialog, response)
        if move.method == "INVITE":
            self._send_ack(running, move)

    def _send_ack(self, running: _Running, move: _Move) -> None:
        """Send it; to a target that no request can be sent to there is none, and the peer ends the call."""
        with suppress(DecodeError, EncodeError):
            if running.ack is None:
                running.ack = self._compose_ack(running, move)
            self._outbox.append(running.ack)

    def _compose_ack(self, running: _Running, move: _Move) -> Transmit:
        cseq = running.transaction.request.cseq
        assert cseq is not None
        via = compose_via(self.local, branch=f"z9hG4bK{self._entropy(12).hex()}", transport=self._transport)
        ack = move.dialog.compose("ACK", cseq=cseq[0], via=via, headers=move.call.credentials)
        return Transmit(ack, running.errand.destination)

    def _settle(self, running: _Running, response: SipMessage, now: float) -> None:
        """Take the final response to a request of an errand: done, try again, or give up."""
        errand, status_code = running.errand, response.status_code or 0
        if status_code < 300:
            self._errands.remove(errand)
            self._succeed(errand, response, now)
        elif status_code in (401, 407):
            self._challenged(running, response, now)
        elif (wait_s := self._wait_s(errand, response, now)) is not None:
            errand.retry_at = now + wait_s
        else:
            reason = response.reason.decode("utf-8", "replace")
            if status_code == 481 and errand.move is not None:
                errand.move.call.forget(errand.move.dialog)
            self._fail(errand, f"it was refused: {status_code} {reason}", status_code)

    def _succeed(self, errand: _Errand, response: SipMessage, now: float) -> None:
        if isinstance(errand.about, _Move):
            self._events.append(CallMoved(errand.call_id, errand.about.call.hears(response)))
            return
        self._events.append(Registered(errand.about.address_of_record, errand.about.destination))
        self._registrations.cleared(errand.about, response)
        self._remove_stale(errand.about, now)

    def _wait_s(self, errand: _Errand, response: SipMessage, now: float) -> float | None:
        """How long to wait before the next try; None where there should be none.

        After 491 whoever made the Call-ID waits longer, so that both do not try again at once (RFC 3261
        §14.1). An INVITE of the other side that went to the old endpoint is under way until it times out, so
        that it is tried for longer than that, ever less often.
        """
        if errand.move is not None and _is_too_early(errand.move.call, errand.began_at, response):
            if now >= errand.began_at + _LONGEST_PENDING_S:
                return None
            chance = int.from_bytes(self._entropy(2), "big")
            least_s, most_s = (2.1, 4.0) if errand.move.call.is_caller else (0.0, 2.0)
            return least_s + (most_s - least_s) * chance / 0xFFFF + (errand.tries - 1) / 2
        if errand.tries >= _MOST_TRIES:
            return None
        after = response.value(response.header("retry-after")).split(b";")[0].split(b"(")[0].strip()
        if after.isdigit() and len(after) <= 2 and int(after) <= _LONGEST_RETRY_AFTER_S:
            return float(int(after))
        if after or response.status_code not in _TIMEOUTS:
            return None
        return float(1 << (errand.tries - 1))

    def _challenged(self, running: _Running, response: SipMessage, now: float) -> None:
        errand, request = running.errand, running.transaction.request
        reason = f"{response.status_code}, and the phone's own credentials cannot be used again"
        if self._digest is not None and errand.tries < _MOST_TRIES and request.request_uri is not None:
            try:
                self._digest.challenged(response, request)
            except AuthenticationError as error:
                reason = str(error)
            else:
                uri = request.data[slice(*request.request_uri)].decode("utf-8", "replace")
                self._send(errand, self._digest.headers(request.method, uri, request.body), now)
                return
        self._errands.remove(errand)
        self._events.append(NeedsPhone(errand.method, errand.call_id, errand.peer, reason))

    def _fail(self, errand: _Errand, reason: str, status_code: int | None = None) -> None:
        if errand in self._errands:
            self._errands.remove(errand)
            self._events.append(NotRenewed(errand.method, errand.call_id, errand.peer, reason, status_code))

    # What is no longer told

    def _drop(self, errand: _Errand, now: float) -> None:
        """Send the errand's requests no more, and acknowledge what may have been accepted unseen.

        Without an ACK the other side ends the call after 32 s (RFC 3261 §13.3.1.4). One that it does not
        expect is passed over.
        """
        errand.is_dropped = True
        self._errands.remove(errand)
        for running in self._running.values():
            if running.errand is errand and not running.transaction.is_over:
                running.transaction.abandon(now=now)
                if errand.move is not None and errand.method == "INVITE" and not errand.move.call.is_over:
                    self._send_ack(running, errand.move)

    def _drop_all_about(self, ended: Registration | Call, now: float) -> None:
        """A registration or a call is over: say nothing more of it."""
        for errand in list(self._errands):
            if errand.about is ended or (errand.move is not None and errand.move.call is ended):
                self._drop(errand, now)

    def _remove_stale(self, registration: Registration | None, now: float) -> None:
        """After the phone has registered by itself: remove what a failed REGISTER of ours left behind."""
        if registration is None or not registration.stale:
            return
        can_authenticate = self._digest is not None or registration.is_repeatable
        if can_authenticate and not any(errand.move is None for errand in self._errands):
            self._begin(registration, now)


def _is_too_early(call: Call, began_at: float, refusal: SipMessage) -> bool:
    """Whether the other side is busy with another INVITE, or had not the phone's answer to its own then."""
    is_unanswered = not call.is_caller and began_at <= call.acknowledged_at
    return refusal.status_code == 491 or (refusal.status_code == 481 and is_unanswered)


def _renumber(message: SipMessage, name: str, number: int | None) -> None:
    """Exchange the first number in a CSeq, or the second in an RAck (RFC 3262 §7.2)."""
    header = message.header(name)
    if header is None or number is None:
        return
    words = message.data[slice(*header.value_span)].split()
    place = 0 if name == "cseq" else 1
    if len(words) <= place or not words[place].isdigit() or len(words[place]) > _MOST_DIGITS:
        return
    if int(words[place]) == number:
        return
    words[place] = b"%d" % number
    message.edit(header.value_span, b" ".join(words))


def _shift_request(request: SipMessage, call: Call) -> None:
    """Put the numbers into a request of the phone by which the other side knows its requests."""
    if request.cseq is not None:
        _renumber(request, "cseq", call.shift.outgoing(request.cseq[0]))
    words = request.value(request.header("rack")).split()
    if len(words) == 3 and words[1].isdigit() and len(words[1]) <= _MOST_DIGITS:
        _renumber(request, "rack", call.shift.outgoing(int(words[1])))


def _uses(call: Call, local: Endpoint) -> bool:
    """Whether the phone's description in a call names `local`; one that cannot be read may."""
    if call.body is None:
        return False
    try:
        streams: Iterator[tuple[Endpoint | None, Endpoint | None]] = (
            (media.endpoint, media.rtcp_endpoint) for media in SessionDescription.parse(call.body.data).media
        )
        return any(local in endpoints for endpoints in streams)
    except DecodeError:
        return True
