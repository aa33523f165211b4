"""Phones behind NATs, natgate, and a plain registrar and proxy behind it that knows nothing of NATs."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.controller.next_hops import Resolve
from nattools.session.controller.upstream_desk import UpstreamDesk
from nattools.session.domains import Domains
from nattools.session.events import Event, Passage, Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.guard import Guard
from nattools.session.location import MemoryLocation
from nattools.session.nat_tests import ContactFix, NatTest
from nattools.session.proxy import Proxy
from nattools.session.registrar import Refusal, Registrar
from nattools.session.settings import GateSettings
from nattools.session.users import Users
from nattools.sip.dialog import Dialog
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.uri import SipUri
from tests.unit.session.controller.home import FakeGate as HomeGate

GATE = Endpoint.of("203.0.113.5", 5060)
OUTSIDE = Endpoint.of("203.0.113.6", 5062)
SOCKETS = {GATE: "u", OUTSIDE: "outside"}
ADDRESSES = {"u": GATE, "t": GATE, "outside": OUTSIDE}
UPSTREAM = Endpoint.of("203.0.113.20", 5060)
STRANGER = Endpoint.of("198.51.100.77", 5060)
PRIVATE = Endpoint.of("192.168.0.108", 5060)
DOMAIN = "example.com"
RECORDED = re.compile(rb"Record-Route: <sip:203\.0\.113\.20:5060[^\r]*\r\n")


class FakeGate(HomeGate):
    """A gate in front of `UPSTREAM`, without sockets."""

    def __init__(self, **words: Any) -> None:
        self.settings = GateSettings(**({} if "alg" in words else {"upstream": f"sip:{UPSTREAM.ip}"}) | words)
        listeners = [Listener("u", "UDP", GATE), Listener("t", "TCP", GATE)]
        if self.settings.alg:
            listeners.append(Listener("outside", "UDP", OUTSIDE))
        self.flows = Flows(listeners)
        self.location = MemoryLocation()
        self.hosts = {str(UPSTREAM.ip).encode(): UPSTREAM, DOMAIN.encode(): UPSTREAM}
        self.users = []
        self.time = 0.0
        self.desk: UpstreamDesk
        self.proxy = Proxy(self.flows, entropy=secrets.token_bytes, edit_media=self.edit)

    async def flow_to(self, host: bytes, port: int | None, transport: str) -> Flow | None:
        """How to reach a host: from an ALG by its outside."""
        flow = await super().flow_to(host, port, transport)
        return Flow("outside", flow.remote) if flow is not None and self.settings.alg else flow

    def edit(self, passage: Passage) -> None:
        """Let the desk edit, as the server does."""
        self.desk.edit(passage)


async def no_dns(host: str, port: int | None, *, service: str, default_port: int) -> list[Endpoint]:
    """What stands for DNS where no name is asked for."""
    return [Endpoint.of(host, port or default_port)]


@dataclass
class Phone:
    """One phone, and what it was sent. `heard_as` is where the world sees it."""

    name: str
    heard_as: Endpoint
    local: Endpoint = PRIVATE
    contact_uri: str = ""
    inbox: list[SipMessage] = field(default_factory=list)
    branches: count[int] = field(default_factory=lambda: count(1))

    @property
    def contact(self) -> str:
        return self.contact_uri or f"<sip:{self.name}@{self.local}>"

    def via(self, branch: str = "") -> str:
        return f"SIP/2.0/UDP {self.local};rport;branch={branch or f'z9hG4bK{self.name}{next(self.branches)}'}"

    def last(self, what: str | int) -> SipMessage:
        """The last request of a method, or response of a code."""
        return next(
            message
            for message in reversed(self.inbox)
            if what in ((message.method,) if message.is_request else (message.status_code,))
        )

    def number_of(self, what: str | int) -> int:
        """How many of these it has got."""
        return sum(what in ((it.method,) if it.is_request else (it.status_code,)) for it in self.inbox)


def request(
    phone: Phone,
    method: str,
    uri: str,
    *,
    to: str,
    call_id: str = "call",
    cseq: int = 1,
    branch: str = "",
    contact: str | None = "",
    to_tag: str = "",
    from_name: str = "",
    headers: Iterable[tuple[str, str | bytes]] = (),
) -> bytes:
    """A request outside any dialog."""
    fields: list[tuple[str, str | bytes]] = [
        ("Via", phone.via(branch)),
        ("Max-Forwards", "70"),
        ("From", f"<sip:{from_name or phone.name}@{DOMAIN}>;tag=t{phone.name}"),
        ("To", f"<{to}>" + (f";tag={to_tag}" if to_tag else "")),
        ("Call-ID", call_id),
        ("CSeq", f"{cseq} {method}"),
        *headers,
    ]
    if contact is not None:
        fields.append(("Contact", contact or phone.contact))
    return compose_request(method, uri, fields)


class World:
    """Carries messages until all are there. `strips` has the upstream not record itself."""

    def __init__(self, *, strips: bool = False, has_passwords: bool = False, **words: Any) -> None:
        self.gate = FakeGate(**words)
        self.strips = strips
        self.proxy = Proxy(
            Flows([Listener("u", "UDP", UPSTREAM)], {DOMAIN.encode()}),
            entropy=secrets.token_bytes,
            tests=NatTest(0),
            contact_fix=ContactFix.NONE,
        )
        self.registrar = Registrar(
            Domains([DOMAIN, str(UPSTREAM.ip)]),
            Users({"alice": "a", "bob": "b"}),
            entropy=secrets.token_bytes,
        )
        if not has_passwords:
            self.registrar._authenticate = lambda request, now: _user(request)  # type: ignore[method-assign]  # a fake
        self.location = MemoryLocation()
        self.phones: dict[Endpoint, Phone] = {}
        self.events: list[Event] = []
        self.sent: dict[Endpoint, list[bytes]] = defaultdict(list)
        self.is_dead = False

    @classmethod
    async def begin(cls, *, resolve: Resolve = no_dns, **words: Any) -> World:
        """A world at its beginning."""
        world = cls(**words)
        gate = world.gate
        gate.desk = await UpstreamDesk.open(
            gate, Guard(gate.settings), entropy=secrets.token_bytes, resolve=resolve
        )
        return world

    def phone(self, name: str, number: int, **words: Any) -> Phone:
        """A phone behind a NAT of its own."""
        heard_as = words.pop("heard_as", Endpoint.of(f"203.0.113.{100 + number}", 1000 + number))
        phone = self.phones[heard_as] = Phone(name, heard_as, **words)
        return phone

    async def send(self, phone: Phone | Endpoint, data: bytes, to: Endpoint = GATE) -> None:
        """Send a message, and let everything happen that it brings about."""
        source = phone if isinstance(phone, Endpoint) else phone.heard_as
        await self._carry([(source, Transmit(data, to))])

    async def _carry(self, waiting: list[tuple[Endpoint, Transmit]]) -> None:
        while waiting:
            source, transmit = waiting.pop(0)
            here, data = transmit.destination, transmit.data
            self.sent[here].append(data)
            if here in SOCKETS:
                self.gate.proxy.receive(data, source, now=self.gate.time, socket=SOCKETS[here])
                waiting += [(ADDRESSES.get(each.socket, GATE), each) for each in await self.settle()]
            elif here == UPSTREAM and not self.is_dead:
                self.proxy.receive(data, source, now=self.gate.time, socket="u")
                waiting += [(UPSTREAM, each) for each in await self._settle_upstream()]
            elif here in self.phones:
                self.phones[here].inbox.append(SipMessage.parse(data))
            else:
                assert here == UPSTREAM, f"sent to {here}, where nobody is: {data!r}"

    async def settle(self) -> list[Transmit]:
        """What natgate sends, all decided."""
        while (event := self.gate.proxy.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, Received):
                await self.gate.desk.decide(event)
        sent = self.gate.proxy.transmits()
        for _ in range(4):
            await asyncio.sleep(0)
        return sent

    async def carry_on(self) -> None:
        """Deliver what natgate has to send by itself."""
        await self._carry([(ADDRESSES.get(each.socket, GATE), each) for each in await self.settle()])

    async def wait(self, seconds: float) -> None:
        """Let time pass at natgate."""
        end = self.gate.time + seconds
        while (due := self.gate.proxy.timeout_at()) is not None and due <= end:
            self.gate.time = max(due, self.gate.time)
            self.gate.proxy.handle_timeout(now=self.gate.time)
            await self.carry_on()
        self.gate.time = end

    async def _settle_upstream(self) -> list[Transmit]:
        while (event := self.proxy.next_event()) is not None:
            if isinstance(event, Received):
                await self._decide(event)
        sent = self.proxy.transmits()
        if not self.strips:
            return sent
        return [Transmit(RECORDED.sub(b"", each.data), each.destination, each.socket) for each in sent]

    async def _decide(self, received: Received) -> None:
        """What a plain proxy does: registrations, dialogs by Route, users by their contacts."""
        request, now = received.request, self.gate.time
        if request.method == "REGISTER":
            response = await self._register(received)
            self.proxy.respond(received.number, response, now=now)
            return
        if received.next_hop is not None:
            self.proxy.forward(received.number, now=now)
            return
        assert request.request_uri is not None
        uri = SipUri.parse(request.data, request.request_uri)
        assert uri.user is not None, request.data
        bindings = await self.location.bindings(f"{uri.user.decode()}@{DOMAIN}", now=now)
        if bindings:
            targets = [Target(binding.contact, route=binding.path) for binding in bindings]
            self.proxy.forward(received.number, targets, now=now)
        else:
            self.proxy.answer(received.number, 404, "Not Found", now=now)

    async def _register(self, received: Received) -> bytes:
        request, now = received.request, self.gate.time
        admitted = self.registrar.admit(request, source=received.flow.remote, now=now)
        if isinstance(admitted, Refusal):
            return admitted.response
        registration = await self.location.update(
            admitted.address_of_record,
            lambda bindings: self.registrar.register(admitted, bindings, now=now),
            now=now,
        )
        return registration.response

    # --- what phones do ---

    async def register(
        self, phone: Phone, *contacts: str, cseq: int = 1, uri: str = f"sip:{DOMAIN}", call_id: str = ""
    ) -> SipMessage:
        """Register a phone, by its usual contact where none is given; the answer that it gets."""
        headers = [("Contact", contact) for contact in contacts or (f"{phone.contact};expires=600",)]
        headers += [("Expires", "0")] if contacts == ("*",) else []
        data = request(
            phone,
            "REGISTER",
            uri,
            to=f"sip:{phone.name}@{DOMAIN}",
            call_id=call_id or f"reg-{phone.name}-{phone.heard_as}",
            cseq=cseq,
            contact=None,
            headers=headers,
        )
        await self.send(phone, data)
        return phone.inbox[-1]

    async def respond(self, phone: Phone, to: SipMessage, code: int, contact: str | None = "") -> None:
        """Answer a request that a phone has got."""
        has_contact = contact is not None and code < 300 and to.method in ("INVITE", "UPDATE")
        fields = [("Contact", contact or phone.contact)] if has_contact else []
        via = to.top_via
        assert via is not None
        assert via.ip is not None
        data = compose_response(to, code, "Word", fields, to_tag=f"t{phone.name}")
        await self.send(phone, data, to=Endpoint(via.ip, via.port or 5060))

    async def call(self, caller: Phone, callee: Phone, *, uri: str = "") -> tuple[Dialog, Dialog]:
        """Have a phone call another one, which rings and answers, and send the ACK; their two dialogs."""
        wanted = uri or f"sip:{callee.name}@{DOMAIN}"
        invite = request(caller, "INVITE", wanted, to=f"sip:{callee.name}@{DOMAIN}")
        await self.send(caller, invite)
        arrived = callee.last("INVITE")
        await self.respond(callee, arrived, 180)
        await self.respond(callee, arrived, 200)
        answer = caller.last(200)
        assert answer.method == "INVITE"
        ours = Dialog.of_caller(SipMessage.parse(invite), answer)
        theirs = Dialog.of_callee(arrived, answer_of(callee, arrived))
        await self.send(caller, ours.compose("ACK", cseq=1, via=caller.via()))
        return ours, theirs


def _user(request: SipMessage) -> str:
    return request.data.partition(b"To: <sip:")[2].partition(b"@")[0].decode()


def answer_of(phone: Phone, invite: SipMessage) -> SipMessage:
    """The 200 that a phone has sent."""
    data = compose_response(invite, 200, "Word", [("Contact", phone.contact)], to_tag=f"t{phone.name}")
    return SipMessage.parse(data)
