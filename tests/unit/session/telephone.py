"""A small telephone on loopback: it registers, calls, answers and hangs up, by UDP, TCP or TLS."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.net.stream import StreamConnection
from nattools.session.server import SessionServer
from nattools.session.settings import GateSettings, parse_listen
from nattools.sip.dialog import Dialog
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.stream import SipStream

PATIENCE_S = 10.0
SDP = (
    b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio %d RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


def gate_settings(directory: Path, **words: Any) -> GateSettings:
    """A registrar on loopback with the users alice, bob and carol, whose passwords are their names."""
    users = directory / "users.toml"
    users.write_text("[users]\n" + "".join(f'{name} = "{name}"\n' for name in ("alice", "bob", "carol")))
    users.chmod(0o600)
    found: dict[str, Any] = {"listen": parse_listen("127.0.0.1:0"), "requests_per_second": 1000.0}
    if not ({"upstream", "alg"} & words.keys()):
        found |= {"registrar": True, "users": users}
    return GateSettings(**(found | words))


@asynccontextmanager
async def gate(directory: Path, **words: Any) -> AsyncIterator[SessionServer]:
    """Such a natgate, running."""
    async with await SessionServer.start(gate_settings(directory, **words)) as server:
        yield server


def place(server: SessionServer, transport: str = "UDP", *, ipv6: bool = False) -> Endpoint:
    """Where it listens."""
    found = [it.local for it in server.listeners if it.transport == transport]
    return next(local for local in found if local.is_ipv6 is ipv6)


class Telephone(asyncio.DatagramProtocol):
    """One telephone with one line. `answers` is what it says to an INVITE; None: it only rings.

    `description` is the SDP that it answers with.
    """

    def __init__(
        self, name: str, server: Endpoint, *, transport: str = "UDP", password: str | None = None
    ) -> None:
        self.name = name
        self.server = server
        self.transport = transport
        self.local: Endpoint
        self.answers: int | None = 200
        self.description = SDP % 20000
        self.requests: list[SipMessage] = []
        self.responses: list[SipMessage] = []
        self.blanks = 0
        self.dialog: Dialog | None = None
        self.changed = asyncio.Event()
        self.is_lost = False
        self.digest = DigestClient(name, password or name, entropy=secrets.token_bytes)
        self.branches = count(1)
        self.cseq = count(1)
        self.udp: asyncio.DatagramTransport | None = None
        self.link: StreamConnection | None = None
        self.stream = SipStream()

    async def open(self, *, address: str = "", context: ssl.SSLContext | None = None) -> Telephone:
        """Open its socket, at `address` or where the server is, or connect."""
        if self.transport == "UDP":
            loop = asyncio.get_running_loop()
            local = (address or str(self.server.ip), 0)
            self.udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=local)
            self.local = Endpoint.of(*self.udp.get_extra_info("sockname")[:2])
            return self
        self.link = await StreamConnection.open(
            self.server,
            frame_size=lambda start: min(len(start), 0xFFFF) or None,
            on_frame=self.on_bytes,
            on_lost=self.on_lost,
            server_name="natgate.test" if context else None,
            ssl_context=context,
        )
        self.local = self.link.local
        return self

    async def __aenter__(self) -> Telephone:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the socket."""
        if self.udp is not None:
            self.udp.close()
            await asyncio.sleep(0)
        if self.link is not None:
            self.link.close()
            await self.link.wait_closed()

    # --- wires ---

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.take(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody is at the other end any more."""

    def on_bytes(self, data: bytes) -> None:
        before = self.stream.pongs
        self.stream.feed(data)
        while (message := self.stream.next_message()) is not None:
            self.take(message)
        self.blanks += self.stream.pongs - before
        self.changed.set()

    def on_lost(self, error: TransportError) -> None:
        self.is_lost = True
        self.changed.set()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self.udp is not None:
            self.udp.sendto(data, (str(self.server.ip), self.server.port))
        elif self.link is not None:
            self.link.send(data)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    # --- the phone ---

    def via(self, branch: str = "") -> str:
        branch = branch or f"z9hG4bK{self.name}{next(self.branches)}{secrets.token_hex(4)}"
        return f"SIP/2.0/{self.transport} {self.local};rport;branch={branch}"

    @property
    def host(self) -> str:
        """The server as a URI without port has it."""
        return f"[{self.server.ip}]" if self.server.is_ipv6 else str(self.server.ip)

    @property
    def contact(self) -> str:
        suffix = "" if self.transport == "UDP" else f";transport={self.transport.lower()}"
        return f"<sip:{self.name}@{self.local}{suffix}>"

    def take(self, data: bytes) -> None:
        """Take a message; requests are answered."""
        if not data.strip():
            self.blanks += 1
            self.changed.set()
            return
        message = SipMessage.parse(data)
        if not message.is_request:
            self.responses.append(message)
            self.changed.set()
            return
        self.requests.append(message)
        self.changed.set()
        if message.method == "INVITE":
            self.send(self.response(message, 180))
            if self.answers is not None:
                self.answer(message, self.answers)
        elif message.method == "CANCEL":
            self.send(self.response(message, 200))
            self.send(self.response(self.requests_of("INVITE")[-1], 487))
        elif message.method != "ACK":
            self.send(self.response(message, 200))

    def answer(self, invite: SipMessage, code: int) -> None:
        """Answer an INVITE."""
        data = self.response(invite, code, self.description if code < 300 else b"")
        self.dialog = Dialog.of_callee(invite, SipMessage.parse(data)) if code < 300 else None
        self.send(data)

    def response(self, request: SipMessage, code: int, body: bytes = b"") -> bytes:
        fields = [("Contact", self.contact)] if request.method == "INVITE" and code < 300 else []
        if body:
            fields.append(("Content-Type", "application/sdp"))
        return compose_response(request, code, "Word", fields, body, to_tag=f"tag-of-{self.name}")

    def requests_of(self, method: str) -> list[SipMessage]:
        """The requests of a method that have come."""
        return [request for request in self.requests if request.method == method]

    def request(
        self,
        method: str,
        uri: str,
        *,
        to: str = "",
        call_id: str = "",
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: bytes = b"",
        from_uri: str = "",
        cseq: int | None = None,
        branch: str = "",
    ) -> bytes:
        """A request outside a dialog."""
        fields: list[tuple[str, str | bytes]] = [
            ("Via", self.via(branch)),
            ("Max-Forwards", "70"),
            ("From", f"<{from_uri or f'sip:{self.name}@{self.host}'}>;tag=from-{self.name}"),
            ("To", to or f"<{uri}>"),
            ("Call-ID", call_id or secrets.token_hex(8)),
            ("CSeq", f"{cseq or next(self.cseq)} {method}"),
            ("Contact", self.contact),
            *headers,
        ]
        if body:
            fields.append(("Content-Type", "application/sdp"))
        return compose_request(method, uri, fields, body)

    async def final(self, sent: bytes) -> SipMessage:
        """The final response to a request that was sent."""
        key = _key(SipMessage.parse(sent))

        def found() -> list[SipMessage]:
            return [it for it in self.responses if _key(it) == key and (it.status_code or 0) >= 200]

        await self.until(found)
        return found()[0]

    async def ask(self, method: str, uri: str, **options: Any) -> SipMessage:
        """Send a request, with credentials where they are asked for; the final response."""
        options.setdefault("call_id", secrets.token_hex(8))
        sent = self.request(method, uri, **options)
        self.send(sent)
        response = await self.final(sent)
        if response.status_code in (401, 407):
            self.acknowledge(sent, response)
            self.digest.challenged(response, SipMessage.parse(sent))
            body = options.get("body", b"")
            options["headers"] = [*options.get("headers", ()), *self.digest.headers(method, uri, body)]
            sent = self.request(method, uri, **options)
            self.send(sent)
            response = await self.final(sent)
        self.acknowledge(sent, response)
        return response

    def acknowledge(self, sent: bytes, response: SipMessage) -> None:
        """Send the ACK of an INVITE."""
        invite = SipMessage.parse(sent)
        if invite.method != "INVITE":
            return
        code = response.status_code or 0
        if code < 300:
            self.dialog = Dialog.of_caller(invite, response)
            number = 0 if invite.cseq is None else invite.cseq[0]
            self.send(self.dialog.compose("ACK", cseq=number, via=self.via()))
            return
        values = [(name, invite.value(invite.header(name))) for name in ("via", "from", "call-id")]
        fields = [*values, ("To", response.value(response.header("to")))]
        number = 0 if invite.cseq is None else invite.cseq[0]
        assert invite.request_uri is not None
        uri = invite.data[slice(*invite.request_uri)].decode()
        self.send(compose_request("ACK", uri, [*fields, ("CSeq", f"{number} ACK")]))

    async def register(self, expires: int = 600) -> SipMessage:
        """Register, or by 0 leave."""
        aor = f"sip:{self.name}@{self.host}"
        headers = [("Expires", str(expires))]
        return await self.ask("REGISTER", f"sip:{self.server}", to=f"<{aor}>", headers=headers)

    async def call(self, name: str, **options: Any) -> SipMessage:
        """Call a user; the final response, which is acknowledged."""
        options.setdefault("body", SDP % 10000)
        return await self.ask("INVITE", f"sip:{name}@{self.server}", **options)

    async def within(self, method: str, cseq: int = 100) -> SipMessage:
        """Send a request within the call; the final response."""
        assert self.dialog is not None
        sent = self.dialog.compose(method, cseq=cseq, via=self.via())
        self.send(sent)
        return await self.final(sent)


def _key(message: SipMessage) -> tuple[object, ...]:
    with suppress(ValueError):
        return message.branch, message.cseq
    return ()


@asynccontextmanager
async def alice_and_bob(
    directory: Path, *, alice_by: str = "UDP", **words: Any
) -> AsyncIterator[tuple[SessionServer, Telephone, Telephone]]:
    """A natgate, and two telephones that are registered with it; bob has UDP."""
    async with (
        gate(directory, **words) as server,
        Telephone("alice", place(server, alice_by), transport=alice_by) as alice,
        Telephone("bob", place(server)) as bob,
    ):
        await alice.register()
        await bob.register()
        yield server, alice, bob
