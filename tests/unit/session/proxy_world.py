"""Two phones behind NATs, the proxy between them, and a network that loses, doubles and delays."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from nattools.endpoint import Endpoint
from nattools.session.events import CallEnded, CallFailed, CallStarted, Event, Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.proxy import Proxy
from nattools.session.transactions import ServerTransaction, server_key
from nattools.sip.dialog import Dialog
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.transaction import ClientTransaction
from tests.unit.session.proxy_desk import PROXY, counting

INSIDE = Endpoint.of("192.168.0.108", 5060)
NAT_OF_ALICE = Endpoint.of("203.0.113.1", 2753)
NATS_OF_BOB = [Endpoint.of("203.0.113.2", port) for port in (1024, 1025, 1026)]
MOST_LOST = 1
"""Of the same message in a row: so whatever is sent again arrives, and its answer too."""


@dataclass
class Plan:
    """What the phones do, and when (seconds)."""

    phones: int = 1
    answers: tuple[int, ...] = (200,)  # by phone; 0: it only rings
    answers_after_s: tuple[float, ...] = (2.0,)
    cancels_after_s: float | None = None
    hangs_up_after_s: float = 5.0
    ignores_route: bool = False
    knows_one_call: bool = False
    """Whether the caller does not see that several phones have answered: baresip and others."""
    loss: float = 0.3
    duplication: float = 0.2
    delay_s: float = 0.3


@dataclass
class Caller:
    """Alice's phone: one call, and what became of it."""

    plan: Plan
    clients: dict[tuple[bytes, str], ClientTransaction] = field(default_factory=dict)
    established: dict[bytes, Dialog] = field(default_factory=dict)
    hangs_up_at: dict[bytes, float] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    ended: int = 0
    is_cancelled: bool = False
    branches: count[int] = field(default_factory=lambda: count(1))

    def via(self, branch: str = "") -> str:
        return f"SIP/2.0/UDP {INSIDE};rport;branch={branch or f'z9hG4bKalice{next(self.branches)}'}"

    def invite(self, now: float) -> None:
        fields = [("Via", self.via()), *self.fields("INVITE"), ("Contact", f"<sip:alice@{INSIDE}>")]
        self.start(compose_request("INVITE", "sip:bob@example.com", fields), now)

    def fields(self, method: str) -> list[tuple[str, str]]:
        return [
            ("Max-Forwards", "70"),
            ("From", "<sip:alice@example.com>;tag=a"),
            ("To", "<sip:bob@example.com>"),
            ("Call-ID", "call"),
            ("CSeq", f"1 {method}"),
        ]

    def start(self, data: bytes, now: float) -> None:
        transaction = ClientTransaction(data, PROXY, now=now)
        self.clients[transaction.branch, transaction.request.method] = transaction

    def cancel(self, now: float) -> None:
        """Cancel, if it rings and nothing final has come."""
        if self.codes and max(self.codes) < 200:
            self.is_cancelled = True
            fields = [("Via", self.via("z9hG4bKalice1")), *self.fields("CANCEL")]
            self.start(compose_request("CANCEL", "sip:bob@example.com", fields), now)

    def take(self, response: SipMessage, now: float) -> list[bytes]:
        """Take a response; the ACKs that are to be sent."""
        key = (response.branch or b"", response.method)
        transaction = self.clients.get(key)
        if transaction is None:
            return []
        transaction.receive(response, now=now)
        acks = []
        while (taken := transaction.next_response()) is not None:
            code = taken.status_code or 0
            if key[1] == "INVITE":
                self.codes.append(code)
                is_known = not self.established or (taken.to_tag or b"") in self.established
                if 200 <= code < 300 and (is_known or not self.plan.knows_one_call):
                    acks.append(self.ack(transaction.request, taken, now))
            elif key[1] == "BYE" and code >= 200:
                self.ended += 1
        return acks

    def ack(self, invite: SipMessage, response: SipMessage, now: float) -> bytes:
        dialog = Dialog.of_caller(invite, response)
        if self.plan.ignores_route:
            dialog.route, dialog.target = (), b"sip:bob@example.com"
        tag = response.to_tag or b""
        if tag not in self.established:
            self.established[tag] = dialog
            self.hangs_up_at[tag] = now + self.plan.hangs_up_after_s
        return dialog.compose("ACK", cseq=1, via=self.via())

    def hang_up(self, now: float) -> None:
        """End those calls that have lasted long enough."""
        for tag, when in list(self.hangs_up_at.items()):
            if now >= when:
                del self.hangs_up_at[tag]
                bye = self.established[tag].compose("BYE", cseq=2, via=self.via())
                self.start(bye, now)


@dataclass
class Callee:
    """One of Bob's phones."""

    number: int
    plan: Plan
    servers: dict[object, ServerTransaction] = field(default_factory=dict)
    requests: dict[ServerTransaction, SipMessage] = field(default_factory=dict)
    invites: set[bytes] = field(default_factory=set)
    ok: bytes = b""
    repeats_at: float | None = None
    repeats_until: float = 0.0
    interval_s: float = 0.5
    answers_at: float | None = None
    invite: ServerTransaction | None = None
    is_acknowledged: bool = False
    is_cancelled: bool = False
    is_ended: bool = False

    @property
    def has_accepted(self) -> bool:
        return bool(self.ok)

    def take(self, request: SipMessage, now: float) -> None:
        key = server_key(request)
        known = self.servers.get(key)
        if request.method == "INVITE":
            self.invites.add(request.data)
        if known is not None and known.receive(request, now=now):
            return
        if request.method == "ACK":
            self.is_acknowledged, self.repeats_at = True, None
            return
        server = self.servers[key] = ServerTransaction(request, is_reliable=False)
        self.requests[server] = request
        if request.method == "INVITE":
            self.invite = server
            self.answers_at = now + self.plan.answers_after_s[self.number]
            self.respond(server, 180, now)
        elif request.method == "BYE":
            self.is_ended = True
            self.respond(server, 200, now)
        elif request.method == "CANCEL":
            self.respond(server, 200, now)
            if self.invite is not None and not self.invite.is_answered:
                self.is_cancelled, self.answers_at = True, None
                self.respond(self.invite, 487, now)

    def respond(self, server: ServerTransaction, code: int, now: float) -> bytes:
        request = self.requests[server]
        contact = [("Contact", f"<sip:bob@{INSIDE}>")] if request.method == "INVITE" else []
        data = compose_response(request, code, "Word", contact, to_tag=f"b{self.number}")
        server.respond(data, code, now=now)
        return data

    def pass_time(self, now: float) -> None:
        """Answer, and repeat a 2xx until its ACK is here (RFC 3261 §13.3.1.4)."""
        if self.answers_at is not None and now >= self.answers_at and self.invite is not None:
            self.answers_at = None
            code = self.plan.answers[self.number]
            if code:
                data = self.respond(self.invite, code, now)
                if code < 300:
                    self.ok, self.repeats_at, self.repeats_until = data, now + 0.5, now + 32
        if self.repeats_at is not None and now >= self.repeats_at and self.invite is not None:
            self.invite.respond(self.ok, 200, now=now)
            self.interval_s = min(2 * self.interval_s, 4.0)
            self.repeats_at = now + self.interval_s if now < self.repeats_until else None


class World:
    """Runs a plan until everything is over."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.random = Random(seed)
        self.flows = Flows([Listener("u", "UDP", PROXY)], {b"example.com"})
        self.proxy = Proxy(self.flows, entropy=counting())
        self.caller = Caller(plan)
        self.phones = [Callee(number, plan) for number in range(plan.phones)]
        self.events: list[Event] = []
        self.lost: dict[object, int] = {}
        self.queue: list[tuple[float, int, Endpoint, Endpoint, bytes]] = []
        self.order = count()
        self.now = 0.0

    def run(self, until: float = 700.0, step_s: float = 0.05) -> None:
        """Let the time pass in small steps, and in large ones where nothing happens."""
        self.caller.invite(0.0)
        cancels = self.plan.cancels_after_s
        while self.now < until:
            self.drain()
            self.now += step_s if self.now < 120 else 2.0
            while self.queue and self.queue[0][0] <= self.now:
                _, _, source, destination, data = heappop(self.queue)
                self.deliver(source, destination, data)
            if cancels is not None and self.now >= cancels:
                cancels = None
                self.caller.cancel(self.now)
            self.caller.hang_up(self.now)
            self.pass_time()

    def pass_time(self) -> None:
        if (due := self.proxy.timeout_at()) is not None and due <= self.now:
            self.proxy.handle_timeout(now=self.now)
        for client in self.caller.clients.values():
            if client.timeout_at() <= self.now:
                client.handle_timeout(now=self.now)
        for phone in self.phones:
            phone.pass_time(self.now)
            for server in phone.servers.values():
                if (due := server.timeout_at()) is not None and due <= self.now:
                    server.handle_timeout(now=self.now)

    def deliver(self, source: Endpoint, destination: Endpoint, data: bytes) -> None:
        if destination == PROXY:
            self.proxy.receive(data, source, now=self.now, socket="u")
            return
        message = SipMessage.parse(data)
        if destination == NAT_OF_ALICE and not message.is_request:
            for ack in self.caller.take(message, self.now):
                self.send(NAT_OF_ALICE, PROXY, ack)
        elif destination in NATS_OF_BOB and message.is_request:
            self.phones[NATS_OF_BOB.index(destination)].take(message, self.now)
        elif destination in NATS_OF_BOB or destination == NAT_OF_ALICE:
            raise AssertionError(f"{destination} got {data!r}")
        else:
            raise AssertionError(f"sent to {destination}, where nobody is: {data!r}")

    def drain(self) -> None:
        while (event := self.proxy.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, Received):
                self.decide(event)
        for transmit in self.proxy.transmits():
            self.send(PROXY, transmit.destination, transmit.data)
        for client in self.caller.clients.values():
            for transmit in client.transmits():
                self.send(NAT_OF_ALICE, PROXY, transmit.data)
        for number, phone in enumerate(self.phones):
            for server in phone.servers.values():
                for data in server.responses():
                    self.send(NATS_OF_BOB[number], PROXY, data)

    def decide(self, event: Received) -> None:
        if event.next_hop is not None:
            self.proxy.forward(event.number, now=self.now)
        elif event.request.to_tag is not None:
            self.proxy.answer(event.number, 481, "No Such Call", now=self.now)
        else:
            targets = [
                Target(f"sip:bob@{INSIDE}".encode(), Flow("u", NATS_OF_BOB[phone.number]))
                for phone in self.phones
            ]
            self.proxy.forward(event.number, targets, now=self.now)

    def send(self, source: Endpoint, destination: Endpoint, data: bytes) -> None:
        message = SipMessage.parse(data)
        kind = (source, destination, message.status_code, message.cseq, message.method)
        if self.random.random() < self.plan.loss and self.lost.get(kind, 0) < MOST_LOST:
            self.lost[kind] = self.lost.get(kind, 0) + 1
            return
        self.lost[kind] = 0
        for _ in range(2 if self.random.random() < self.plan.duplication else 1):
            arrives = self.now + self.random.random() * self.plan.delay_s
            heappush(self.queue, (arrives, next(self.order), source, destination, data))

    @property
    def has_given_up(self) -> bool:
        """Whether the caller has waited three minutes for a phone that rings, as long as the proxy does."""
        invite = self.caller.clients[b"z9hG4bKalice1", "INVITE"]
        return 0 in self.plan.answers and invite.has_timed_out

    def happened(self, kind: type[CallStarted] | type[CallFailed] | type[CallEnded]) -> int:
        """How often."""
        return sum(isinstance(event, kind) for event in self.events)
