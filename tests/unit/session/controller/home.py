"""A registrar's desk with a proxy and no sockets: messages are put in, and what it sends is looked at."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.controller.desk import Headers
from nattools.session.controller.eager import begin
from nattools.session.controller.home_desk import HomeDesk
from nattools.session.events import Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.location import Location, MemoryLocation
from nattools.session.proxy import Proxy
from nattools.session.settings import GateSettings
from nattools.session.users import Users
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import ALICE, BOB, PROXY, request

DOMAIN = "example.com"
BOB_CONTACT = "sip:bob@203.0.113.11:5062"
FAR = Endpoint.of("198.51.100.77", 5060)


class FakeGate:
    """A gate without sockets. `hosts` is what names lead to."""

    def __init__(self, **words: Any) -> None:
        self.settings = GateSettings(registrar=True, users=Path("users.toml"), domains=(DOMAIN,), **words)
        listeners = [Listener("u", "UDP", PROXY), Listener("t", "TCP", PROXY)]
        self.flows = Flows(listeners, {DOMAIN.encode()})
        self.proxy = Proxy(self.flows, entropy=secrets.token_bytes)
        self.location: Location = MemoryLocation()
        self.hosts: dict[bytes, Endpoint] = {}
        self.users: list[str] = []
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def forward(
        self,
        received: Received,
        targets: Sequence[Target] | None = None,
        *,
        flows: Sequence[Flow] = (),
        realm: str = "",
        headers: Headers = (),
        user: str = "",
    ) -> None:
        self.users.append(user)
        self.proxy.forward(received.number, targets, now=self.time, flows=flows, realm=realm, headers=headers)

    def answer(
        self, received: Received, status_code: int, reason: str, headers: Headers = (), body: bytes = b""
    ) -> None:
        self.proxy.answer(received.number, status_code, reason, headers, body, now=self.time)

    def respond(self, received: Received, data: bytes) -> None:
        self.proxy.respond(received.number, data, now=self.time)

    def ignore(self, received: Received) -> None:
        self.proxy.ignore(received.number, now=self.time)

    async def flow_to(self, host: bytes, port: int | None, transport: str) -> Flow | None:
        endpoint = self.hosts.get(host)
        return None if endpoint is None else self.flows.towards(endpoint, transport)

    def flow_at(self, endpoint: Endpoint, transport: str, *, name: str = "") -> Flow | None:
        return self.flows.towards(endpoint, transport)

    def send(self, data: bytes, flow: Flow) -> None:
        raise AssertionError("a desk sends nothing by itself")


class Home:
    """The desk at work; alice, bob and carol are users, and their passwords their names."""

    def __init__(self, **words: Any) -> None:
        self.gate = FakeGate(**words)
        users = Users({name: name for name in ("alice", "bob", "carol")})
        self.phones: set[Endpoint] = set()
        self.refused: list[str] = []
        self.guesses: list[Endpoint] = []
        self.neighbours: list[Endpoint] = []
        self.desk = HomeDesk(
            self.gate,
            users,
            has_phone_at=self.phones.__contains__,
            on_refused=lambda _received, why: self.refused.append(why),
            on_guess=self.guesses.append,
            on_neighbour=self.neighbours.append,
            entropy=secrets.token_bytes,
        )

    def put(self, data: bytes, source: Endpoint = ALICE, socket: str = "u") -> list[Transmit]:
        """Give it a message; what is sent then."""
        proxy = self.gate.proxy
        proxy.receive(data, source, now=self.gate.time, socket=socket)
        while (event := proxy.next_event()) is not None:
            if isinstance(event, Received):
                assert begin(self.desk.decide(event)) is None
        return proxy.transmits()

    def code(self, data: bytes, source: Endpoint = ALICE, socket: str = "u") -> int:
        """The final response to a request; 0 where there is none."""
        sent = [SipMessage.parse(one.data) for one in self.put(data, source, socket)]
        return next((one.status_code for one in sent if (one.status_code or 0) >= 200), None) or 0

    def register(
        self,
        name: str = "bob",
        contact: str = BOB_CONTACT,
        source: Endpoint = BOB,
        socket: str = "u",
        expires: int = 600,
    ) -> None:
        """Have a user register."""
        headers = [("Max-Forwards", "70"), ("Expires", str(expires))]
        transport = "UDP" if socket == "u" else "TCP"
        options: dict[str, Any] = {
            "via": [f"SIP/2.0/{transport} {source};rport;branch=z9hG4bKr{secrets.token_hex(4)}"],
            "contact": f"<{contact}>",
            "call_id": secrets.token_hex(4),
        }
        sent = request("REGISTER", f"sip:{DOMAIN}", headers=headers, **options)
        to = f"<sip:{name}@{DOMAIN}>".encode()
        sent = sent.replace(b"<sip:bob@example.com>", to)
        challenge = SipMessage.parse(self.put(sent, source, socket)[0].data)
        assert challenge.status_code == 401
        client = DigestClient(name, name, entropy=secrets.token_bytes)
        client.challenged(challenge, SipMessage.parse(sent))
        options["via"] = [f"SIP/2.0/{transport} {source};rport;branch=z9hG4bKr{secrets.token_hex(4)}"]
        more = [(key, value.decode()) for key, value in client.headers("REGISTER", f"sip:{DOMAIN}")]
        sent = request("REGISTER", f"sip:{DOMAIN}", headers=[*headers, *more], cseq=2, **options)
        assert self.code(sent.replace(b"<sip:bob@example.com>", to), source, socket) == 200
        self.phones.add(source)

    def with_credentials(self, name: str, method: str, uri: str, **options: Any) -> bytes:
        """The same request once more, with the password of that user."""
        options.setdefault("headers", [("Max-Forwards", "70")])
        first = request(method, uri, **options)
        challenge = SipMessage.parse(self.put(first)[0].data)
        assert challenge.status_code == 407
        client = DigestClient(name, name, entropy=secrets.token_bytes)
        client.challenged(challenge, SipMessage.parse(first))
        more = [(key, value.decode()) for key, value in client.headers(method, uri)]
        options["headers"] = [*options["headers"], *more]
        options["via"] = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bK{secrets.token_hex(4)}"]
        return request(method, uri, cseq=2, **options)
