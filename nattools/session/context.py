"""What a proxy keeps of one request while it is on its way (RFC 3261 §16.7, the response context)."""

from __future__ import annotations

from dataclasses import dataclass, field

from nattools.session.dialogs import Call, Dialogs, Party, refresh
from nattools.session.flows import Flow
from nattools.session.forking import Fork
from nattools.session.nat_tests import NatTest
from nattools.session.routing import Itinerary
from nattools.session.transactions import ServerKey, ServerTransaction
from nattools.sip.message import SipMessage

_TRYING_AFTER_S = 0.2  # RFC 3261 §17.2.1
_DECIDED_WITHIN_S = 30.0  # before the client gives up


@dataclass(slots=True, eq=False)
class Context:
    """One request: how it came, where its responses go, what was decided, and its branches.

    The ACK of a 2xx is no transaction: it has neither `key` nor `server`.
    """

    number: int
    request: SipMessage
    key: ServerKey | None
    server: ServerTransaction | None
    flow: Flow
    reply: Flow
    began_at: float
    nat: NatTest = NatTest(0)  # noqa: RUF009 - an IntFlag cannot change
    itinerary: Itinerary = Itinerary(b"", None)  # noqa: RUF009 - frozen
    call: Call | None = None
    """The call that it is in; None for what begins one."""
    sender: Party | None = None
    calls: list[Call] = field(default_factory=list)
    """Those that its responses have begun."""
    fork: Fork = field(default_factory=Fork)
    realm: str = ""
    headers: tuple[tuple[str, str | bytes], ...] = ()
    is_decided: bool = False
    is_cancelled: bool = False
    is_fixed: bool = False
    """Whether its Contact leads back only by what was done to it."""
    has_tried: bool = False

    @property
    def trying_at(self) -> float:
        """When a 100 must be sent even if nothing is decided yet."""
        return self.began_at + _TRYING_AFTER_S

    @property
    def decide_by(self) -> float:
        """When it is refused if nothing is decided yet."""
        return self.began_at + _DECIDED_WITHIN_S

    def timeout_at(self) -> float | None:
        """When it wants the time next, or None."""
        if self.is_decided:
            return None if self.server is None else self.server.timeout_at()
        may_try = self.server is not None and self.request.method == "INVITE" and not self.has_tried
        return self.trying_at if may_try else self.decide_by

    def join(self, dialogs: Dialogs) -> None:
        """Look whether the request is in a call, and note in it what the request says of its sender."""
        found = dialogs.find(self.request)
        if found is None:
            return
        self.call, receiver = found
        self.sender = self.call.other(receiver)
        self.sender.seen = self.flow
        number = self.request.cseq
        self.sender.cseq = max(self.sender.cseq, 0 if number is None else number[0])

    def learn(
        self, response: SipMessage, flow: Flow, sent_to: bytes, dialogs: Dialogs, *, is_fixed: bool
    ) -> Call | None:
        """Keep what a response from 101 to 299 says of where both sides are; the call that it starts, if any.

        It came by `flow` from who was reached as `sent_to`; `is_fixed` where its Contact had to be mended.
        """
        code, method = response.status_code or 0, self.request.method
        call, sender = self.call, self.sender
        if call is None and method == "INVITE":
            call = dialogs.begin(self.request, self.flow, response, flow, sent_to)
            if call is not None and call not in self.calls:
                self.calls.append(call)
            sender = None if call is None else call.caller
        elif method not in ("INVITE", "UPDATE") or code < 200:
            return None
        if call is None or sender is None:
            return None
        receiver = call.other(sender)
        refresh(sender, self.request)
        refresh(receiver, response)
        if self.request.header("contact") is not None:
            sender.flow = self.flow if self.is_fixed else None
        receiver.seen = flow
        if response.header("contact") is not None:
            receiver.flow = flow if is_fixed else None
        if self.call is not None or code < 200 or call.is_answered:
            return None
        call.is_answered = True
        return call
