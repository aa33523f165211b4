"""The SIP proxy of the session controller (RFC 3261 §16): stateful, forking, record-routing, aware of NATs.

It decides nothing about who may call whom. Each request that is to go on comes out as `Received`, and goes
where its driver says. Responses, CANCEL, retransmissions and refusals by form it sees to itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.machine import Entropy, Transmit
from nattools.session import acceptance, passing, routing
from nattools.session.acceptance import Refusal
from nattools.session.clients import ClientKey, Clients
from nattools.session.context import Context
from nattools.session.dialogs import Call, Dialogs, Party
from nattools.session.events import CallEnded, CallStarted, Event, Passage, Received
from nattools.session.flows import Flow, Flows
from nattools.session.forking import Branch, Final, Target
from nattools.session.nat_tests import USUAL_TESTS, ContactFix, NatTest, find_signs
from nattools.session.onward import Onward
from nattools.session.reachability import Reachability
from nattools.session.transactions import Alarms, ServerKey, server_key
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.transaction import ClientTransaction

_MOST_REQUESTS = 50_000
_ELSEWHERE = b'SIP;cause=200;text="Call completed elsewhere"'
_LEFT_ALONE = "the caller has taken another phone's answer"
_SECRET_BYTES = 16


class Proxy:
    """The proxy, as a machine: sockets are those that `flows` knows, by their names.

    A `Transmit` with the name of a stream listener wants a connection to its destination, which the driver
    tells `flows` of. `counters` has how many messages were `malformed`, `absorbed` (sent again), `stray`
    (responses to nothing), `refused` by their form, or came when there were too many (`overload`).
    """

    def __init__(
        self,
        flows: Flows,
        *,
        entropy: Entropy,
        edit_media: Callable[[Passage], None] | None = None,
        tests: NatTest = USUAL_TESTS,
        contact_fix: ContactFix = ContactFix.ALIAS,
        most_requests: int = _MOST_REQUESTS,
    ) -> None:
        """`edit_media` is called for each message that is passed on, to edit its body in place.

        `tests` are the signs that count; the Contact of who shows one is mended by `contact_fix`.
        """
        self.flows = flows
        self.dialogs = Dialogs(flows)
        self.reachability = Reachability()
        self.counters: Counter[str] = Counter()
        self._entropy = entropy
        self._secret = entropy(_SECRET_BYTES)
        self._tests = tests
        self._onward = Onward(flows, entropy, tests, contact_fix, edit_media)
        self._most_requests = most_requests
        self._last_number = 0
        self._contexts: dict[int, Context] = {}
        self._by_key: dict[ServerKey, Context] = {}
        self._clients = Clients()
        self._alarms = Alarms()
        self._outbox: list[Transmit] = []
        self._events: deque[Event] = deque()

    # --- the machine ---

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str) -> None:
        """Take one message that came from `source` by the listener or connection of that name.

        Raises `ValueError` where `flows` knows no such name; whatever the bytes are, nothing else.
        """
        if self.flows.listener(socket) is None:
            raise ValueError(f"no listener or connection has the name {socket!r}")
        flow = Flow(socket, source)
        self.reachability.heard(source, now=now)
        try:
            message = SipMessage.parse(data)
            acceptance.check_line_ends(message)
            if message.is_request:
                self._take_request(message, flow, now)
            else:
                self._take_response(message, flow, now)
        except (DecodeError, EncodeError):
            self.counters["malformed"] += 1

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def next_event(self) -> Event | None:
        """Take the next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None."""
        return self._alarms.next()

    def handle_timeout(self, *, now: float) -> None:
        """Send again what is due, and give up what has waited long enough."""
        for key in self._alarms.due(now=now):
            if isinstance(key, int):
                context = self._contexts.get(key)
                if context is not None:
                    self._context_due(context, now)
            elif isinstance(key, tuple):
                self._client_due(key, now)

    # --- what the driver decides ---

    def forward(
        self,
        number: int,
        targets: Sequence[Target] | None = None,
        *,
        now: float,
        flows: Sequence[Flow] = (),
        realm: str = "",
        headers: Iterable[tuple[str, str | bytes]] = (),
        is_challenged: bool = False,
    ) -> None:
        """Send the request of that number on: to `targets`, or without any to its `next_hop`.

        `flows` lead to a next hop that is a host name; where the first leads nowhere, the next does (RFC 3263
        §4.3). Credentials for `realm` were used up here and are removed; `headers` are added (Path, RFC
        3327). Where a challenge is likely, `is_challenged`, a 100 waits 0.2 s for it: pyVoIP sees no 401
        behind a 100. A request that was cancelled or answered since stays so. Raises `ValueError` where there
        is no next hop, and no target.
        """
        context = self._undecided(number)
        if context is None:
            return
        if targets is None:
            targets = context.by_itself(flows)
            if not targets:
                raise ValueError(f"request {number} has no next hop: name targets, or answer it")
        context.is_decided = True
        context.realm, context.headers = realm, tuple(headers)
        context.fork.add(targets, passing.breadth(context.request))
        if context.server is None:
            self._pass_ack(context, targets)
            return
        if not is_challenged:
            self._say_trying(context, now)
        self._flush(context)
        self._try_next(context, now)

    def leaves_by(
        self, number: int, targets: Sequence[Target] | None = None, *, flows: Sequence[Flow] = ()
    ) -> list[Flow]:
        """By what `forward` would send the request of that number, spares apart; none if it is too late."""
        context = self._undecided(number)
        if context is None:
            return []
        targets = context.by_itself(flows) if targets is None else targets
        leaves = [self._onward.flow_of_target(target) for target in targets if not target.is_spare]
        return [it for it in leaves if it is not None]

    def answer(
        self,
        number: int,
        status_code: int,
        reason: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: bytes = b"",
        *,
        now: float,
    ) -> None:
        """Answer the request of that number; an ACK is dropped. Too late is as with `forward`.

        Raises `EncodeError` for headers that cannot be written.
        """
        context = self._undecided(number)
        if context is not None:
            self._answer(context, status_code, reason, headers, body, now=now)

    def respond(self, number: int, response: bytes, *, now: float) -> None:
        """Answer the request of that number by a whole response, as a registrar composes it.

        Raises `DecodeError` for what is no response.
        """
        context = self._undecided(number)
        if context is None:
            return
        code = SipMessage.parse(response).status_code
        if code is None:
            raise DecodeError("a request cannot be answered by a request")
        context.is_decided = code >= 200
        if context.server is None:
            self._drop(context)
            return
        context.server.respond(response, code, now=now)
        if context.request.method == "INVITE":
            self._flush(context)  # by its tag its ACK would not be known
        else:
            self._flush_answer(context, code)

    def ignore(self, number: int, *, now: float) -> None:
        """Let the request of that number, and its retransmissions, go unanswered."""
        context = self._undecided(number)
        if context is None:
            return
        context.is_decided = True
        if context.server is None:
            self._drop(context)
            return
        context.server.abandon(now=now)
        self._flush(context)

    def send_failed(self, transmit: Transmit, *, now: float) -> None:
        """Take note that a request could not be sent (RFC 3261 §16.9): it counts as answered by 503."""
        try:
            message = SipMessage.parse(transmit.data)
            key = (message.branch or b"", message.method)
        except DecodeError:
            return
        if message.is_request:
            self._fail(key, now)

    def disconnected(self, flows: Iterable[Flow], *, now: float) -> None:
        """Take note that the connection of these has ended: what nothing came back to is as not sent.

        Who has said that he is at it, as one that rings, may answer by another connection (§18.2.2).
        """
        for key in [key for flow in flows for key in self._clients.unheard(flow)]:
            self._fail(key, now)

    def hang_up(self, call: Call, *, now: float) -> None:
        """End a call by a BYE to each side, as from the other one (a call without media, RFC 3261 §15)."""
        self._say_bye(call, (call.caller, call.callee), now)

    def _say_bye(self, call: Call, parties: Iterable[Party], now: float, *, why: str = "") -> None:
        if not call.is_over:
            for target, flow, data in self._onward.byes(call, parties):
                self._start(None, target, flow, data, now)
            self._end(call, why)

    def _fail(self, key: ClientKey, now: float) -> None:
        context, branch = self._clients.find(key)
        if branch is None or branch.final is not None:
            return
        self.reachability.unreachable(branch.flow.remote, now=now)
        branch.final = Final(503)
        branch.transaction.abandon(now=now)
        self._flush_client(key, branch)
        if context is not None:
            self._conclude(context, now)

    # --- requests ---

    def _take_request(self, message: SipMessage, flow: Flow, now: float) -> None:
        request = passing.mark_source(message, flow.remote)
        key = server_key(request, flow.remote.ip)
        known = self._by_key.get(key)
        if known is not None and known.server is not None and known.server.receive(request, now=now):
            self.counters["absorbed"] += 1
            self._flush(known)
            return
        acceptance.check_form(request)
        if request.method == "ACK" and known is not None and len(known.calls) == 1:
            request = passing.mend_ack(request, known.calls[0].callee.tag)
        if request.method == "ACK" and request.to_tag == passing.answer_tag(request, self._secret).encode():
            self.counters["absorbed"] += 1  # of a refusal that nothing is kept of
            return
        if len(self._contexts) >= self._most_requests:
            self._overloaded(request, flow)
            return
        context = self._begin(request, None if request.method == "ACK" else key, flow, now)
        if request.method == "CANCEL":
            self._take_cancel(context, now)
            return
        refusal = acceptance.refusal_of(request, self.flows)
        if refusal is None:
            try:
                context.itinerary = routing.plan(request, flow, self.flows, self.dialogs)
            except DecodeError:
                refusal = Refusal(400, "Bad Route")
        if refusal is not None:
            self.counters["refused"] += 1
            self._answer(context, refusal.status_code, refusal.reason, refusal.headers, now=now)
            return
        context.join(self.dialogs)
        earlier = None if context.earlier is None else context.first_number
        hop, call = context.itinerary.hop, context.call
        self._events.append(Received(context.number, request, flow, context.nat, hop, call, earlier))

    def _begin(self, request: SipMessage, key: ServerKey | None, flow: Flow, now: float) -> Context:
        self._last_number += 1
        listener = self.flows.listener(flow.socket)
        is_reliable = listener is not None and listener.is_reliable
        context = Context.begin(self._last_number, request, key, flow, is_reliable=is_reliable, now=now)
        if len(request.values("via")) == 1:
            context.is_direct = True
            context.nat = find_signs(request, flow.remote, self._tests)
        else:
            # perhaps it went on from here to a proxy that has sent it back
            own = list(acceptance.own_branches(request, self.flows))
            context.is_again, context.earlier = bool(own), self._clients.sent_for(own, request.method)
        self._contexts[context.number] = context
        if key is not None:
            self._by_key[key] = context
        self._alarms.set(context.number, context.timeout_at())
        return context

    def _overloaded(self, request: SipMessage, flow: Flow) -> None:
        self.counters["overload"] += 1
        if request.method != "ACK":
            response = compose_response(request, 503, "Too Many Requests Pending", [("Retry-After", "5")])
            self._outbox.append(Transmit(response, passing.reply_endpoint(request, flow.remote), flow.socket))

    def _take_cancel(self, context: Context, now: float) -> None:
        """Answer a CANCEL, and cancel what it means (RFC 3261 §9.2, §16.10)."""
        invite = self._by_key.get(server_key(context.request, context.flow.remote.ip, "INVITE"))
        if invite is None or invite.server is None:
            self._answer(context, 481, "Call/Transaction Does Not Exist", now=now)
            return
        self._answer(context, 200, "OK", now=now)
        if invite.server.is_answered:
            return
        if not invite.is_decided:
            self._answer(invite, 487, "Request Terminated", now=now)
            return
        invite.is_cancelled = True
        invite.fork.reason = context.request.value(context.request.header("reason"))
        self._settle(invite, now)
        self._conclude(invite, now)

    def _undecided(self, number: int) -> Context | None:
        context = self._contexts.get(number)
        return None if context is None or context.is_decided else context

    def _answer(
        self,
        context: Context,
        status_code: int,
        reason: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: bytes = b"",
        *,
        now: float,
    ) -> None:
        if context.server is None:
            self._drop(context)
            return
        tag = passing.answer_tag(context.request, self._secret) if status_code > 100 else ""
        response = compose_response(context.request, status_code, reason, headers, body, to_tag=tag)
        if status_code >= 200:
            context.is_decided = True
        context.server.respond(response, status_code, now=now)
        self._finished(context, status_code)
        self._flush_answer(context, status_code)

    def _flush_answer(self, context: Context, status_code: int) -> None:
        """Send the proxy's own answer; keep nothing of what it refused at once (RFC 3261 §26.3.2.4).

        So nobody has it send a refusal eleven times to another's address, or fill its memory. The client
        sends the request again, and gets the answer again.
        """
        self._flush(context)
        if context.is_done_by(status_code):
            self._drop(context)

    def _say_trying(self, context: Context, now: float) -> None:
        """Answer an INVITE by 100, so that it is not sent again; others must not be (RFC 4320 §4.1)."""
        if context.may_try and context.server is not None:
            context.has_tried = True
            context.server.respond(compose_response(context.request, 100, "Trying"), 100, now=now)

    def _try_next(self, context: Context, now: float) -> None:
        """Send the request to those whose turn it is."""
        while not context.fork.pending and (group := context.fork.take()):
            for target in group:
                flow = self._onward.flow_of_target(target)
                if flow is None:
                    context.fork.failed.append(Final(503))
                    continue
                data, name = self._onward.request(context, target, flow, len(group))
                self._start(context, target, flow, data, now, (name, context.request.method))
        self._conclude(context, now)

    def _pass_ack(self, context: Context, targets: Sequence[Target]) -> None:
        """Send the ACK of a 2xx on; it is no transaction (RFC 3261 §17.1)."""
        for target in targets[:1]:
            flow = self._onward.flow_of_target(target)
            if flow is not None:
                data, _ = self._onward.request(context, target, flow, 1)
                self._outbox.append(Transmit(data, flow.remote, flow.socket))
        self._drop(context)

    # --- responses ---

    def _start(
        self,
        context: Context | None,
        target: Target,
        flow: Flow,
        data: bytes,
        now: float,
        known: ClientKey | None = None,
    ) -> None:
        is_reliable = self._onward.listener(flow).is_reliable
        transaction = ClientTransaction(data, flow.remote, now=now, is_reliable=is_reliable, known=known)
        branch = Branch(target, flow, transaction)
        if context is not None and transaction.method != "CANCEL":
            context.fork.branches.append(branch)
        key = (transaction.branch, transaction.method)
        self._clients.add(key, context, branch, is_reliable=is_reliable)
        self._flush_client(key, branch)

    def _take_response(self, response: SipMessage, flow: Flow, now: float) -> None:
        key = (response.branch or b"", response.method)
        context, branch = self._clients.find(key)
        if branch is None:
            self.counters["stray"] += 1  # RFC 6026 §8.9: such a response is not passed on
            return
        branch.transaction.receive(response, now=now)
        while (taken := branch.transaction.next_response()) is not None:
            if context is not None and response.method != "CANCEL":
                self._answered(context, branch, taken, flow, now)
        self._flush_client(key, branch)

    def _answered(
        self, context: Context, branch: Branch, response: SipMessage, flow: Flow, now: float
    ) -> None:
        """Decide about a response of one branch (RFC 3261 §16.7)."""
        code = response.status_code or 0
        branch.has_rung = True
        if code < 200:
            if code > 100:
                self._pass_response(context, branch, response, flow, now)
            if branch.is_unwanted:
                self._cancel(context, branch, now)
            return
        if branch.final is None:
            is_late = context.server is None or context.server.is_answered
            branch.final = Final(code, None if is_late or code < 300 else response)
        if code < 300:
            context.fork.reason = context.fork.reason or _ELSEWHERE
            self._settle(context, now)
            self._pass_response(context, branch, response, flow, now)
            return
        if code >= 600:
            self._settle(context, now)
        self._conclude(context, now)

    def _pass_response(
        self, context: Context, branch: Branch, response: SipMessage, flow: Flow, now: float
    ) -> None:
        """Send a response from 101 to 299 back to who sent the request."""
        code = response.status_code or 0
        server = context.server
        if server is None or server.is_over or (code < 200 and server.is_answered):
            return
        if self._onward.lacks_record_route(context, response):
            response = passing.restore_record_route(response, branch.transaction.request)
        is_fixed = self._onward.response(context, response, flow, branch)
        started = context.learn(response, flow, branch.target.uri, self.dialogs, is_fixed=is_fixed)
        if started is not None:
            self._events.append(CallStarted(context.first_number, started))
        context.has_tried = True
        server.respond(response.encode(), code, now=now)
        self._finished(context, code)
        self._flush(context)

    def _settle(self, context: Context, now: float) -> None:
        """Try nobody else, and cancel who still rings."""
        context.fork.settle()
        for branch in context.fork.pending:
            self._cancel(context, branch, now)

    def _cancel(self, context: Context, branch: Branch, now: float) -> None:
        """Cancel a branch once it has rung (RFC 3261 §9.1); until then it waits."""
        transaction = branch.transaction
        if branch.is_cancelled or not branch.has_rung or transaction.method != "INVITE":
            return
        branch.is_cancelled = True
        transaction.abandon(now=now)
        data = passing.compose_cancel(transaction.request, context.fork.reason)
        self._start(context, branch.target, branch.flow, data, now)
        self._flush_client((transaction.branch, "INVITE"), branch)

    def _conclude(self, context: Context, now: float) -> None:
        """Where all branches have had their final response, send the best of them (RFC 3261 §16.7)."""
        fork, server = context.fork, context.server
        if server is None or server.is_answered or fork.pending:
            return
        if fork.waiting:
            self._try_next(context, now)
            return
        best = context.outcome()
        if best.status_code == 408 and best.message is None and context.request.method != "INVITE":
            server.abandon(now=now)  # RFC 4320 §4.2: who sent it has given up by now as well
            self._finished(context, 408)
            self._flush(context)
        elif best.message is None:
            self._answer(context, best.status_code, acceptance.REASONS[best.status_code], now=now)
        else:
            challenges = fork.challenges(best)
            passing.drop_top_via(best.message)
            passing.add_challenges(best.message, challenges)
            server.respond(best.message.encode(), best.status_code, now=now)
            self._finished(context, best.status_code)
            self._flush(context)

    def _finished(self, context: Context, status_code: int) -> None:
        """Tell what a final response means for the call."""
        failure = context.failure(status_code)
        if failure is not None:
            self._events.append(failure)
        elif context.call is not None and context.ends_call(status_code):
            self._end(context.call)

    def _end(self, call: Call, why: str = "") -> None:
        if call.is_over:
            return
        call.is_over = True
        self._events.append(CallEnded(call, why))
        if not call.is_held:
            self.dialogs.forget(call)

    # --- time ---

    def _context_due(self, context: Context, now: float) -> None:
        if context.server is not None:
            context.server.handle_timeout(now=now)
            for call in context.left_alone():  # not to the caller, who may take it for the call that he has
                self._say_bye(call, (call.callee,), now, why=_LEFT_ALONE)
        if not context.is_decided and now >= context.decide_by:
            self._answer(context, 500, "Not Decided In Time", now=now)
            return
        if now >= context.trying_at:
            self._say_trying(context, now)
        self._flush(context)

    def _client_due(self, key: ClientKey, now: float) -> None:
        context, branch = self._clients.find(key)
        if branch is None:
            return
        transaction = branch.transaction
        if now >= transaction.timeout_at() and transaction.is_over:
            self._clients.remove(key)
            return
        is_ringing = branch.has_rung and not branch.is_cancelled and key[1] == "INVITE"
        if is_ringing and context is not None and branch.final is None:  # timer C (RFC 3261 §16.8)
            self._cancel(context, branch, now)
            return
        transaction.handle_timeout(now=now)
        self._flush_client(key, branch)
        if not transaction.has_timed_out:
            return
        self._clients.remove(key)
        self._alarms.set(key, None)
        if context is not None:
            self.reachability.unanswered(branch.flow.remote, sent_at=context.began_at, now=now)
        if context is not None and branch.final is None and key[1] != "CANCEL":
            branch.final = Final(408)
            if key[1] == "BYE" and context.call is not None:
                self._end(context.call)
            self._conclude(context, now)

    def _flush(self, context: Context) -> None:
        """Send what the server transaction has for the client, and drop it when it is over."""
        server = context.server
        if server is None:
            return
        for data in server.responses():
            flow = self._onward.flow_of_reply(context)
            if flow is not None:
                self._outbox.append(Transmit(data, flow.remote, flow.socket))
        if server.is_over:
            self._drop(context)
            return
        self._alarms.set(context.number, context.timeout_at())
        if server.is_answered:
            context.condense()

    def _flush_client(self, key: ClientKey, branch: Branch) -> None:
        for transmit in branch.transaction.transmits():
            self._outbox.append(Transmit(transmit.data, branch.flow.remote, branch.flow.socket))
        self._alarms.set(key, branch.transaction.timeout_at())

    def _drop(self, context: Context) -> None:
        self._contexts.pop(context.number, None)
        self._alarms.set(context.number, None)
        if context.key is not None and self._by_key.get(context.key) is context:
            del self._by_key[context.key]
        for call in context.calls:
            call.is_held = False
            if call.is_over or not call.is_answered:
                self.dialogs.forget(call)
