"""What a proxy keeps of one request while it is on its way (RFC 3261 §16.7, the response context)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nattools.session.dialogs import Call, Dialogs, Party, refresh
from nattools.session.events import CallFailed, ChangeFailed
from nattools.session.flows import Flow
from nattools.session.forking import Final, Fork, Target, by_flows
from nattools.session.nat_tests import NatTest
from nattools.session.passing import reply_endpoint
from nattools.session.routing import Itinerary
from nattools.session.transactions import ServerKey, ServerTransaction
from nattools.sip.message import SipMessage

_TRYING_AFTER_S = 0.2  # RFC 3261 §17.2.1
_OFFERING = frozenset({"INVITE", "UPDATE", "PRACK"})
_DECIDED_WITHIN_S = 30.0  # before the client gives up


@dataclass(slots=True, eq=False)
class Context:
    """One request: how it came, where its responses go, what was decided, and its branches.

    The ACK of a 2xx is no transaction: it has neither `key` nor `server`.
    """

    number: int
    message: SipMessage | bytes
    """The request, or the bytes of one that was answered; `request` is it in any case."""
    key: ServerKey | None
    server: ServerTransaction | None
    flow: Flow
    reply: Flow
    began_at: float
    nat: NatTest = NatTest(0)  # noqa: RUF009 - an IntFlag cannot change
    itinerary: Itinerary = Itinerary(b"", None)  # noqa: RUF009 - frozen
    earlier: Context | None = None
    """The same request as it came here first, where another proxy has sent it back (a spiral)."""
    is_direct: bool = False
    """Whether it comes from a phone itself, and no proxy is in between."""
    is_again: bool = False
    """Whether it has been here before: then it comes from that proxy, and not from its sender."""
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

    @classmethod
    def begin(
        cls,
        number: int,
        request: SipMessage,
        key: ServerKey | None,
        flow: Flow,
        *,
        is_reliable: bool,
        now: float,
    ) -> Context:
        """That of a request that has just come by `flow`. Raises `DecodeError` without a Via."""
        remote = flow.remote if is_reliable else reply_endpoint(request, flow.remote)
        server = None if key is None else ServerTransaction(request, is_reliable=is_reliable)
        return cls(number, request, key, server, flow, replace(flow, remote=remote), now)

    @property
    def request(self) -> SipMessage:
        """The request, with what `mark_source` has written into it."""
        return SipMessage.parse(self.message) if isinstance(self.message, bytes) else self.message

    def condense(self) -> None:
        """Keep little of what was answered: it stays for half a minute, and hardly anybody asks again."""
        if not isinstance(self.message, bytes):
            self.message = self.message.data
            self.fork.condense()

    @property
    def trying_at(self) -> float:
        """When a 100 must be sent where nothing else was: by then the INVITE would soon be sent again."""
        return self.began_at + _TRYING_AFTER_S

    @property
    def decide_by(self) -> float:
        """When it is refused if nothing is decided yet."""
        return self.began_at + _DECIDED_WITHIN_S

    @property
    def first_number(self) -> int:
        """The number that this request had when it came here first."""
        return self.number if self.earlier is None else self.earlier.first_number

    def timeout_at(self) -> float | None:
        """When it wants the time next, or None."""
        if self.may_try:
            return self.trying_at
        if self.is_decided:
            return None if self.server is None else self.server.timeout_at()
        return self.decide_by

    @property
    def may_try(self) -> bool:
        """Whether it is an INVITE that nothing was answered to yet."""
        is_open = self.server is not None and not self.server.is_answered
        return is_open and self.request.method == "INVITE" and not self.has_tried

    def is_done_by(self, status_code: int) -> bool:
        """Whether nothing needs to be kept once this proxy itself has answered so, and nobody was asked.

        OPTIONS can be answered again; and what was refused, unless the client waits for the outcome.
        """
        is_undone = status_code >= 300 and status_code != 487
        is_repeatable = is_undone or self.request.method == "OPTIONS"
        return is_repeatable and not self.has_tried and not self.fork.branches

    def left_alone(self) -> list[Call]:
        """Calls that nobody has taken once none of them can be any more: 64*T1 after the first 2xx.

        Where several phones have answered, the caller is to acknowledge each, and to hang up all but one
        (RFC 3261 §13.2.2.4); some see the first alone, and acknowledge that. Where no ACK has come by here,
        they go another way.
        """
        if self.server is None or not self.server.is_over:
            return []
        if not any(call.is_acknowledged for call in self.calls):
            return []
        return [it for it in self.calls if it.is_answered and not (it.is_acknowledged or it.is_over)]

    def by_itself(self, flows: Sequence[Flow]) -> list[Target]:
        """Where the request goes without targets, by `flows` if its next hop is a name; none: nowhere."""
        if flows:
            return by_flows(self.itinerary.uri, flows)
        hop = self.itinerary.hop
        return [] if hop is None else [Target(self.itinerary.uri, hop.flow)]

    def outcome(self) -> Final:
        """What goes back once each branch has had its final response, and none was a 2xx (§16.7 step 6).

        A 503 would have the client give up this proxy, and not the one that cannot.
        """
        best = self.fork.best() or Final(480)
        if self.is_cancelled and (best.message is None or best.status_code < 400):
            return Final(487)
        return Final(500) if best.status_code == 503 else best

    def failure(self, status_code: int) -> CallFailed | ChangeFailed | None:
        """What a final response means to a call that was to begin, or to change; None: nothing."""
        if status_code < 300 or self.server is None:
            return None
        method = self.request.method
        if method == "INVITE" and self.call is None:
            return CallFailed(self.number, self.request.call_id, status_code)
        return ChangeFailed(self.number, status_code) if method in _OFFERING else None

    def ends_call(self, status_code: int) -> bool:
        """Whether a response is to a BYE that need not be sent again: its call is over then."""
        return self.request.method == "BYE" and status_code >= 200 and status_code not in (401, 407)

    def join(self, dialogs: Dialogs) -> None:
        """Look whether the request is in a call, and note in it what the request says of its sender."""
        found = dialogs.find(self.request)
        if found is None:
            return
        self.call, receiver = found
        self.sender = self.call.other(receiver)
        if not self.is_again:
            self.sender.seen = self.flow
        self.call.is_acknowledged |= self.request.method == "ACK" and receiver is self.call.callee
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
        if not self.is_again:
            refresh(sender, self.request)
            sender.seen = self.flow
            if self.request.header("contact") is not None:
                sender.flow = self.flow if self.is_fixed else None
        if receiver.is_told_by(self.request, self.number):
            refresh(receiver, response)
            receiver.seen = flow
            if response.header("contact") is not None:
                receiver.flow = flow if is_fixed else None
        if self.call is not None or code < 200 or call.is_answered:
            return None
        call.is_answered = True
        return call
