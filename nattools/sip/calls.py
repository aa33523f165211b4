"""A phone's calls, as its messages tell them: which dialogs there are, and the CSeq numbers in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.change import CREDENTIALS
from nattools.sip.dialog import Body, CSeqShift, Dialog, Fields, copied_fields, route_set, target_of
from nattools.sip.digest import is_reusable
from nattools.sip.message import SipMessage
from nattools.sip.transaction import RINGING_S, T1_S, TIMEOUT_S

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MOST_CALLS = 128
_MOST_FORKS = 16
_MEDIA_LINES = (b"m=", b"c=")
_DESCRIBING = ("INVITE", "ACK", "UPDATE", "PRACK")


@dataclass(slots=True)
class Call:
    """What shares a Call-ID and the phone's tag: one dialog, or several where the INVITE forked.

    `body` is the phone's last session description, in its own words. `peer` is where the phone's messages go
    to, or those for it come from.
    """

    call_id: bytes
    local_tag: bytes
    is_caller: bool
    peer: Endpoint
    invite: SipMessage
    shift: CSeqShift = field(default_factory=CSeqShift)
    dialogs: dict[bytes, Dialog] = field(default_factory=dict)
    body: Body | None = None
    contact: bytes = b""
    credentials: Fields = field(default_factory=list)
    busy_until: float = float("-inf")
    """Until then an INVITE of either side may be under way, and no other may be sent (RFC 3261 §14.1)."""
    is_over: bool = False
    acknowledged_at: float = float("inf")
    """When an ACK of the other side first showed that it knows the dialog that the phone has answered."""
    heard: tuple[bytes, ...] = ()
    """The addresses in the other side's last description."""
    offers: dict[int, Body] = field(default_factory=dict)
    """Descriptions of the phone, by CSeq, that the other side has not accepted yet."""
    has_answer: bool = False
    """Whether an early dialog has a description of both sides, confirmed by PRACK."""
    allows_update: bool = False
    timer: bytes = b""
    """The session's interval in seconds (RFC 4028), empty where it has none."""
    is_refresher: bool = False
    """Whether the phone refreshes the session."""

    def movable(self) -> Iterator[tuple[Dialog, str]]:
        """The dialogs that can be told another address now, and by which request.

        An early one can by UPDATE (RFC 3311 §5.1), if the other side allows it and one description of each
        side has passed reliably; else it has to wait until it is confirmed.
        """
        if self.is_over or self.body is None:
            return
        for dialog in self.dialogs.values():
            if not dialog.is_early:
                yield dialog, "INVITE"
            elif self.has_answer and self.allows_update:
                yield dialog, "UPDATE"

    def free_at(self) -> float | None:
        """From when on its dialogs can be told, None while there is none that can.

        An UPDATE does not wait for an INVITE that is under way (RFC 3311 §5.1), another INVITE does.
        """
        methods = {method for _, method in self.movable()}
        if not methods:
            return None
        return self.busy_until if "INVITE" in methods else float("-inf")

    def timer_field(self) -> Fields:
        """The Session-Expires of a request of ours: who refreshed goes on refreshing (RFC 4028 §7.4)."""
        role = b"uac" if self.is_refresher else b"uas"
        return [("Session-Expires", b"%b;refresher=%b" % (self.timer, role))] if self.timer else []

    def hears(self, message: SipMessage) -> bool:
        """Note the other side's description, if there is one; and whether its addresses are new."""
        lines = tuple(line.strip() for line in message.body.split(b"\n") if line.startswith(_MEDIA_LINES))
        if not lines or message.length_error:
            return False
        is_other = self.heard not in ((), lines)
        self.heard = lines
        return is_other

    def refused(self, method: str) -> None:
        """A request of either side was refused; an INVITE that has made no dialog yet ends the call."""
        if method == "INVITE":
            self.busy_until = float("-inf")
            self.is_over |= all(dialog.is_early for dialog in self.dialogs.values())

    def forget(self, dialog: Dialog) -> None:
        """The other side does not know that dialog (any more)."""
        self.dialogs = {tag: other for tag, other in self.dialogs.items() if other is not dialog}

    @staticmethod
    def refresh(dialog: Dialog, message: SipMessage) -> None:
        """Take the other side's target from its Contact, if it has one (RFC 3261 §12.2.1.2)."""
        if message.header("contact") is not None:
            dialog.target = target_of(message)


class Calls:
    """The calls of a phone that is watched. Methods raise `DecodeError` for what cannot be understood."""

    def __init__(self, *, most: int = MOST_CALLS) -> None:
        self._most = most
        self._calls: OrderedDict[tuple[bytes, bytes], Call] = OrderedDict()
        self._asked: OrderedDict[tuple[bytes, bytes | None, int], tuple[SipMessage, Endpoint]] = OrderedDict()

    def __iter__(self) -> Iterator[Call]:
        """Those that are remembered, over or not."""
        return iter(list(self._calls.values()))

    # What the phone sends

    def sent_request(self, request: SipMessage, destination: Endpoint, *, now: float) -> Call | None:
        """Note a request of the phone; the call that it belongs to."""
        number, tag = _number(request), request.from_tag
        if tag is None:
            return None
        call = self._calls.get((request.call_id, tag))
        method = request.method
        if method == "INVITE" and (call is None or (request.to_tag is None and number not in call.offers)):
            call = self._begin(call, request, tag, destination)
        if call is None:
            return None
        call.peer = destination
        body = Body.of(request)
        if method == "INVITE":
            call.busy_until = now + TIMEOUT_S
            self._describe(call, request)
        elif method == "ACK":
            call.busy_until = float("-inf")
            call.body = body or call.body
        elif method == "PRACK":
            call.has_answer = call.body is not None and bool(call.heard)
            call.body = body or call.body
        elif method == "BYE":
            call.is_over = True
        if method in ("INVITE", "UPDATE") and body is not None:
            call.offers[number] = body
            _trim(call.offers, _MOST_FORKS)
        return call

    def _begin(self, call: Call | None, invite: SipMessage, tag: bytes, destination: Endpoint) -> Call:
        """A call that the phone begins, or begins once more with credentials."""
        if call is None:
            call = Call(invite.call_id, tag, True, destination, invite)
            self._keep(call)
        call.invite, call.is_over = invite, False
        call.body = Body.of(invite)
        return call

    def sent_response(self, response: SipMessage, *, now: float) -> None:
        """Note a response of the phone to a request of the other side."""
        status_code, method, tag = response.status_code or 0, response.method, response.to_tag
        key = (response.call_id, response.from_tag, _number(response))
        asked = self._asked.get(key)
        if status_code >= 200:
            self._asked.pop(key, None)
        call = None if tag is None else self._calls.get((response.call_id, tag))
        if asked is None and call is not None and not call.is_caller and call.invite.cseq == response.cseq:
            asked = call.invite, call.peer  # which rings while many others have come
        if tag is None or asked is None or status_code <= 100:
            return
        request, source = asked
        if method == "INVITE" and call is None and status_code < 300:
            call = Call(response.call_id, tag, False, source, request)
            self._keep(call)
            call.hears(request)
            call.allows_update = _allows_update(request)
        if call is None:
            return
        if status_code >= 300:
            call.refused(method)
            return
        call.body = Body.of(response) or call.body
        if method == "INVITE":
            self._describe(call, response)
            self._agree(call, request, response, now)

    def _agree(self, call: Call, invite: SipMessage, response: SipMessage, now: float) -> None:
        """The phone answers an INVITE, for the time being or for good."""
        remote = response.from_tag or b""
        if remote not in call.dialogs and len(call.dialogs) < _MOST_FORKS:
            call.dialogs[remote] = Dialog.of_callee(invite, response)
        if (response.status_code or 0) < 200:
            call.busy_until = now + RINGING_S
            return
        # The ACK may be lost on its way here. A peer that has no 2xx yet answers 491, or 481 where it has had
        # no response at all: both are tried again.
        call.busy_until = now + T1_S
        _note_timer(call, response, is_own=False)
        if remote in call.dialogs:
            call.dialogs[remote].is_early = False
            call.refresh(call.dialogs[remote], invite)

    def _describe(self, call: Call, message: SipMessage) -> None:
        """Note what the phone says of itself."""
        contacts = message.values("contact")
        if contacts:
            call.contact = b" ".join(message.data[slice(*contacts[0])].split())
        if message.is_request:
            call.credentials = [
                (name, value) for name, value in copied_fields(message, CREDENTIALS) if is_reusable(value)
            ]

    # What comes for it

    def received_request(self, request: SipMessage, source: Endpoint, *, now: float) -> Call | None:
        """Note a request of the other side; the call that it belongs to."""
        method, tag = request.method, request.to_tag
        if method in ("INVITE", "UPDATE"):
            self._asked[request.call_id, request.from_tag, _number(request)] = (request, source)
            _trim(self._asked, self._most // 2)
        call = None if tag is None else self._calls.get((request.call_id, tag))
        if call is None:
            return None
        dialog = call.dialogs.get(request.from_tag or b"")
        if method == "INVITE":
            call.busy_until = now + TIMEOUT_S
        elif method == "ACK":
            call.busy_until = float("-inf")
            call.acknowledged_at = min(call.acknowledged_at, now)
        elif method == "PRACK":
            call.has_answer = call.body is not None and bool(call.heard)
        elif method == "BYE":
            call.is_over = True
        if method in _DESCRIBING:
            call.hears(request)
        if method == "UPDATE" and dialog is not None:
            call.refresh(dialog, request)
        return call

    def received_response(self, response: SipMessage, *, now: float) -> Call | None:
        """Note a response to a request of the phone; the call that it belongs to."""
        tag, remote = response.from_tag, response.to_tag
        call = None if tag is None else self._calls.get((response.call_id, tag))
        status_code, method = response.status_code or 0, response.method
        if call is None:
            return None
        if status_code >= 300:
            call.refused(method)
        elif method in ("INVITE", "UPDATE") and status_code > 100 and remote is not None:
            if method == "INVITE" and call.busy_until > now:
                call.busy_until = now + (RINGING_S if status_code < 200 else TIMEOUT_S)  # or the phone's ACK
            with suppress(DecodeError):  # its number has to be shifted back all the same
                self._learn(call, response, remote)
        return call

    def _learn(self, call: Call, response: SipMessage, remote: bytes) -> None:
        """What a response from 101 to 299 to the phone's INVITE or UPDATE says."""
        is_invite, is_final = response.method == "INVITE", (response.status_code or 0) >= 200
        call.hears(response)
        call.allows_update |= _allows_update(response)
        if is_final:
            call.body = call.offers.get(call.shift.incoming(_number(response)), call.body)
            _note_timer(call, response, is_own=True)
        if is_invite and remote not in call.dialogs and len(call.dialogs) < _MOST_FORKS:
            call.dialogs[remote] = Dialog.of_caller(call.invite, response)
        if is_final and remote in call.dialogs:
            dialog = call.dialogs[remote]
            if is_invite and dialog.is_early:
                dialog.is_early = False
                dialog.route = tuple(reversed(route_set(response)))
            call.refresh(dialog, response)

    def _keep(self, call: Call) -> None:
        """Remember a call, and forget another for it: the oldest that is over, else the oldest."""
        self._calls[call.call_id, call.local_tag] = call
        if len(self._calls) > self._most:
            over = (key for key, other in self._calls.items() if other.is_over)
            self._calls.pop(next(over, next(iter(self._calls)))).is_over = True


def _trim(memory: dict[KeyT, ValueT], most: int) -> None:
    """Forget the oldest entries beyond `most`."""
    while len(memory) > most:
        del memory[next(iter(memory))]


def _number(message: SipMessage) -> int:
    cseq = message.cseq
    if cseq is None:
        raise DecodeError("a message of a call without a CSeq")
    return cseq[0]


def _allows_update(message: SipMessage) -> bool:
    return any(message.data[slice(*span)] == b"UPDATE" for span in message.values("allow"))


def _note_timer(call: Call, response: SipMessage, *, is_own: bool) -> None:
    """Note the session timer of a 2xx to an INVITE or UPDATE, which was the phone's if `is_own`."""
    value = response.value(response.header("session-expires"))
    interval, _, params = value.partition(b";")
    call.timer = interval.strip() if interval.strip().isdigit() else b""
    call.is_refresher = (b"refresher=uac" in params.lower().replace(b" ", b"")) == is_own
