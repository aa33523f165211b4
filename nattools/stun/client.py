"""The STUN client: one server, over UDP, TCP or TLS (RFC 8489)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, Self

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, EncodeError, LocalAddressError, NatToolsError, TransportError
from nattools.net.dns import Family, first_success, resolve
from nattools.net.runner import MachineRunner
from nattools.net.stream import StreamConnection
from nattools.net.udp import UdpSocket, local_address_towards
from nattools.stun.attributes import Attribute
from nattools.stun.authentication import Credentials, Protection, ShortTerm, short_term_protection
from nattools.stun.discovery import (
    FILTERING_BOTH,
    FILTERING_PORT,
    MAPPING,
    SOCKETS,
    Discovery,
    DiscoveryEvent,
    Finished,
)
from nattools.stun.message import Message, MessageClass, Method, frame_size
from nattools.stun.observation import Observations
from nattools.stun.request import Redirected, Request, RequestEvent, compose
from nattools.stun.transaction import Answered, Failed, RttEstimator, Timing
from nattools.stun.uri import ServerAddress, Transport

_LOG = logging.getLogger(__name__)
_HARD_ICMP_ERRORS = (errno.ECONNREFUSED, errno.ENOPROTOOPT, errno.EACCES)
"""Port or protocol unreachable, or forbidden (RFC 1122 §3.2.2.1); the others may pass."""
_FIRST_DYNAMIC_PORT = 49152  # RFC 6335 §6
_PORT_ATTEMPTS = 32
_ICMP_MEANING = {
    errno.ECONNREFUSED: "nothing listens there (ICMP port unreachable)",
    errno.EHOSTUNREACH: "there is no such host (ICMP host unreachable)",
    errno.ENETUNREACH: "there is no way there (ICMP network unreachable)",
    errno.EACCES: "a firewall forbids it (ICMP administratively prohibited)",
}


@dataclass(frozen=True, slots=True)
class BindingResult:
    """What a Binding request found out.

    `mapped` is where the server saw the request come from, `local` where it left this host, `server` who
    answered. `rtt_s` counts from the first of the `transmissions` on; exact when there was one.
    """

    mapped: Endpoint
    local: Endpoint
    server: Endpoint
    rtt_s: float
    transmissions: int
    response: Message


class _Link(Protocol):
    """A way to a server: a UDP socket, or a connection."""

    @property
    def is_open(self) -> bool: ...

    def send(self, data: bytes, destination: Endpoint) -> None: ...

    def local_towards(self, destination: Endpoint) -> Endpoint: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _UdpLink:
    socket: UdpSocket
    is_open: bool = True

    def send(self, data: bytes, destination: Endpoint) -> None:
        self.socket.send(data, destination)

    def local_towards(self, destination: Endpoint) -> Endpoint:
        local = self.socket.local
        return Endpoint(local_address_towards(destination), local.port) if local.ip.is_unspecified else local

    def close(self) -> None:
        self.socket.close()

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)  # asyncio closes it for good in its next round


@dataclass(frozen=True, slots=True)
class _StreamLink:
    connection: StreamConnection

    @property
    def is_open(self) -> bool:
        return self.connection.is_open

    def send(self, data: bytes, _destination: Endpoint) -> None:
        self.connection.send(data)

    def local_towards(self, _destination: Endpoint) -> Endpoint:
        return self.connection.local

    def close(self) -> None:
        self.connection.close()

    async def wait_closed(self) -> None:
        await self.connection.wait_closed()


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the user said about the client, and holds for all of its requests."""

    transport: Transport
    credentials: Credentials | None
    local_address: IPAddress | None
    local_port: int
    classic: bool
    timing: Timing
    connect_timeout_s: float
    ssl_context: ssl.SSLContext | None

    def __post_init__(self) -> None:
        if self.classic and (self.credentials or self.transport is not Transport.UDP):
            raise EncodeError("the RFC 3489 dialect runs over UDP only, and without credentials")


class StunClient:
    """A client of one STUN server; make it with `async with StunClient.open(...) as client`.

    Requests may run side by side. Cancelling one leaves nothing behind.
    """

    def __init__(self, candidates: Sequence[Endpoint], host: str, settings: _Settings) -> None:
        self._candidates = candidates
        self._settings = settings
        self._server: Endpoint | None = None
        self._server_name = host if settings.transport is Transport.TLS else None
        self._links: dict[Endpoint | bool, _Link] = {}
        self._opening: defaultdict[Endpoint | bool, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._active: dict[Request, asyncio.Event] = {}
        self._protections: dict[Endpoint, Protection] = {}
        self._estimators: dict[IPAddress, RttEstimator] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        server: str | Endpoint | ServerAddress,
        *,
        transport: Transport | Literal["udp", "tcp", "tls"] | None = None,
        credentials: Credentials | None = None,
        family: Family | None = None,
        local_address: IPAddress | None = None,
        local_port: int = 0,
        classic: bool = False,
        timing: Timing | None = None,
        connect_timeout_s: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
        nameservers: Sequence[Endpoint] | None = None,
    ) -> AsyncIterator[Self]:
        """Find the addresses of `server` and, over TCP and TLS, connect to it.

        `server` is a URI (`stun:stun.example.org`), a host with or without port, or an endpoint. Without a
        `transport` a `stuns:` URI means TLS and all else UDP. A host may have addresses of both families,
        IPv6 first, unless `family` or `local_address` wants one only. Each is tried while the one before it
        stays silent (RFC 8305); over UDP the first request does that, and later ones go to the server that
        answered. `credentials` are used when the server asks for them (`LongTerm`) or always (`ShortTerm`).
        `classic` speaks the RFC 3489 dialect. `ssl_context` replaces the default one, which trusts the
        system's authorities; `nameservers` replace the system's.

        Raises `DecodeError` for a bad `server`, `ResolveError` and other `TransportError`.
        """
        address = _server_address(server)
        chosen = Transport(transport or (Transport.TLS if address.secure else Transport.UDP))
        if address.secure and chosen is not Transport.TLS:
            raise DecodeError(f"{address} means TLS; for {chosen.upper()} write stun:{address.host}")
        settings = _Settings(
            chosen,
            credentials,
            local_address,
            local_port,
            classic,
            timing or Timing(),
            connect_timeout_s,
            ssl_context,
        )
        if family is None and local_address is not None:
            family = 6 if local_address.version == 6 else 4
        candidates = await resolve(
            address.host,
            address.port,
            service=chosen.service,
            default_port=chosen.default_port,
            family=family,
            nameservers=nameservers,
        )
        client = cls(candidates, address.host, settings)
        try:
            if chosen is not Transport.UDP:
                client._server = await first_success(candidates, client._connect)
            yield client
        finally:
            await client._close()

    async def binding(self, *attributes: Attribute) -> BindingResult:
        """Ask where this client is seen from (RFC 8489 §2).

        Raises what `request` does, and `DecodeError` for an answer without a mapped address.
        """
        answered, link = await self._ask(Method.BINDING, attributes)
        mapped = answered.response.mapped_address
        if mapped is None:
            raise DecodeError(f"{answered.source} answers a BINDING request without any mapped address")
        return BindingResult(
            mapped=mapped,
            local=link.local_towards(answered.source),
            server=answered.source,
            rtt_s=answered.rtt_s,
            transmissions=answered.transmissions,
            response=answered.response,
        )

    async def request(self, method: Method, *attributes: Attribute) -> Message:
        """Send a request and return the success response, after whatever challenges and redirections.

        Raises `NoResponseError` or another `TransportError` when no answer came, `ResponseError` when the
        answer is an error, `AuthenticationError` and `RedirectError` among them, and `DecodeError` when the
        answer cannot be understood.
        """
        answered, _ = await self._ask(method, attributes)
        return answered.response

    async def indication(self, method: Method, *attributes: Attribute) -> None:
        """Send an indication, which nobody answers. Long-term credentials cannot protect it (RFC 8489 §9.2).

        Raises `TransportError` when it cannot be sent.
        """
        server = self._server or self._candidates[0]
        message = compose(
            method,
            MessageClass.INDICATION,
            attributes,
            entropy=secrets.token_bytes,
            classic=self._settings.classic,
        )
        if isinstance(self._settings.credentials, ShortTerm):
            known = self._protections.get(server)
            message = (known or short_term_protection(self._settings.credentials)).seal(message)
        link = await self._link_to(server, self._server_name)
        link.send(message.encode(), server)

    async def _close(self) -> None:
        for link in self._links.values():
            link.close()
        await asyncio.gather(*(link.wait_closed() for link in self._links.values()))

    async def _connect(self, server: Endpoint) -> Endpoint:
        await self._link_to(server, self._server_name)
        return server

    async def _ask(self, method: Method, attributes: tuple[Attribute, ...]) -> tuple[Answered, _Link]:
        def ask(server: Endpoint) -> Awaitable[tuple[Answered, _Link]]:
            return self._ask_server(server, method, attributes)

        if self._server is not None:
            return await ask(self._server)
        return await first_success(self._candidates, ask)

    async def _ask_server(
        self, server: Endpoint, method: Method, attributes: tuple[Attribute, ...]
    ) -> tuple[Answered, _Link]:
        name = self._server_name
        link = await self._link_to(server, name)
        request = Request(
            method,
            attributes,
            server,
            now=_now(),
            entropy=secrets.token_bytes,
            credentials=self._settings.credentials,
            protection=self._protections.get(server),
            estimator=self._estimator(server),
            timing=self._settings.timing,
            reliable=self._settings.transport is not Transport.UDP,
            classic=self._settings.classic,
        )
        self._active[request] = asyncio.Event()
        try:
            while isinstance(event := await self._next_event(request, link), Redirected):
                _LOG.info("%s sends the request to %s", server, event.server)
                name = event.domain if event.domain and name else name
                link = await self._link_to(event.server, name)
                request.follow(
                    now=_now(),
                    protection=self._protections.get(event.server),
                    estimator=self._estimator(event.server),
                )
        finally:
            del self._active[request]
        if isinstance(event, Failed):
            raise event.error
        self._server, self._server_name = request.server, name
        if request.protection is not None:
            self._protections[request.server] = request.protection
        return event, link

    async def _next_event(self, request: Request, link: _Link) -> RequestEvent:
        """Send, wait and retransmit until something has happened."""
        wake = self._active[request]
        while True:
            for transmit in request.transmits():
                link.send(transmit.data, transmit.destination)
            event = request.next_event()
            if event is not None:
                return event
            wake.clear()
            try:
                async with asyncio.timeout_at(request.timeout_at()):
                    await wake.wait()
            except TimeoutError:
                request.handle_timeout(now=_now())

    def _estimator(self, server: Endpoint) -> RttEstimator:
        return self._estimators.setdefault(server.ip, RttEstimator(self._settings.timing.rto_s))

    async def _link_to(self, server: Endpoint, name: str | None) -> _Link:
        """The socket or connection to `server`, opened if it is not yet, or no longer, open."""
        key = server.is_ipv6 if self._settings.transport is Transport.UDP else server
        async with self._opening[key]:
            link = self._links.get(key)
            if link is None or not link.is_open:
                link = self._links[key] = await self._open_link(server, name)
        return link

    async def _open_link(self, server: Endpoint, name: str | None) -> _Link:
        settings = self._settings
        if settings.transport is Transport.UDP:
            return _UdpLink(
                await UdpSocket.open(
                    ipv6=server.is_ipv6,
                    local_address=settings.local_address,
                    local_port=settings.local_port,
                    on_datagram=self._receive,
                    on_error=self._icmp_error,
                )
            )
        return _StreamLink(
            await StreamConnection.open(
                server,
                frame_size=frame_size,
                on_frame=lambda frame: self._receive(frame, server),
                on_lost=lambda error: self._unreachable(server, str(error), hard=True),
                connect_timeout_s=settings.connect_timeout_s,
                local_address=settings.local_address,
                local_port=settings.local_port,
                server_name=name,
                ssl_context=settings.ssl_context,
            )
        )

    def _receive(self, data: bytes, source: Endpoint) -> None:
        for request, wake in self._active.items():
            request.receive(data, source, now=_now())
            wake.set()

    def _icmp_error(self, destination: Endpoint | None, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hard = destination is not None and error.errno in _HARD_ICMP_ERRORS
        self._unreachable(destination, reason, hard=hard)

    def _unreachable(self, destination: Endpoint | None, reason: str, *, hard: bool) -> None:
        for request, wake in self._active.items():
            if destination in (None, request.server):
                request.handle_unreachable(reason, hard=hard, now=_now())
                wake.set()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _server_address(server: str | Endpoint | ServerAddress) -> ServerAddress:
    if isinstance(server, Endpoint):
        return ServerAddress(str(server.ip), server.port)
    return ServerAddress.parse(server) if isinstance(server, str) else server


async def tcp_round_trip(server: Endpoint, *, timeout_s: float) -> float | None:
    """How long `server` takes to answer a Binding request over TCP, in seconds, the handshake not counted.

    None when it does not, for whatever reason.
    """
    try:
        async with asyncio.timeout(timeout_s), StunClient.open(server, transport=Transport.TCP) as client:
            result = await client.binding()
    except (NatToolsError, TimeoutError):
        return None
    return result.rtt_s if result.server == server else None


async def discover(
    servers: Sequence[Endpoint],
    *,
    local_address: IPAddress | None = None,
    local_port: int = 0,
    timeout_s: float = 5.0,
) -> Observations:
    """Ask `servers`, all of one family, what the NAT does; `classifier.classify` judges the answers.

    `timeout_s` is how long the first answer may take. Raises `TransportError` when there is no route to the
    first server, or when the local address or port cannot be had.
    """
    run = _DiscoveryRun(timeout_s)
    try:
        await run.open(servers, local_address, local_port)
        return await run.finished
    finally:
        await run.close()


class _DiscoveryRun:
    """One `Discovery` on real sockets."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[Observations] = self._loop.create_future()
        self._sockets: dict[str, UdpSocket] = {}
        self._tcp: list[asyncio.Task[None]] = []

    async def open(
        self, servers: Sequence[Endpoint], local_address: IPAddress | None, local_port: int
    ) -> None:
        local_ip = local_address_towards(servers[0], local_address=local_address)
        for name in SOCKETS:
            self._sockets[name] = await self._bind(name, local_ip, local_port if name == MAPPING else 0)
        self._machine = Discovery(
            servers,
            local=self._sockets[MAPPING].local,
            entropy=secrets.token_bytes,
            now=self._loop.time(),
            timeout_s=self._timeout_s,
        )
        self._runner: MachineRunner[DiscoveryEvent] = MachineRunner(
            self._machine, self._sockets, on_event=self._on_event, on_unsendable=self._unsendable
        )
        self._runner.pump()

    async def _bind(self, name: str, local_ip: IPAddress, local_port: int) -> UdpSocket:
        """Open one socket, on a random port unless one is given.

        Filtering sockets get odd ports, the others even ones: a NAT remembers for minutes whom a port has
        talked to, and an earlier run must not have opened the filter of this one.
        """
        parity = name in (FILTERING_BOTH, FILTERING_PORT)
        attempts_left = 1 if local_port else _PORT_ATTEMPTS
        while True:
            attempts_left -= 1
            try:
                return await UdpSocket.open(
                    ipv6=local_ip.version == 6,
                    local_address=local_ip,
                    local_port=local_port or _FIRST_DYNAMIC_PORT + 2 * secrets.randbelow(0x2000) + parity,
                    on_datagram=partial(self._received, name),
                    on_error=partial(self._undelivered, name),
                )
            except LocalAddressError:
                if not attempts_left:
                    raise

    def _received(self, name: str, data: bytes, source: Endpoint) -> None:
        self._runner.receive(name, data, source)

    def _undelivered(self, name: str, destination: Endpoint | None, error: OSError) -> None:
        if destination is not None:
            reason = (
                _ICMP_MEANING.get(error.errno or 0) or f"ICMP says: {os.strerror(error.errno or 0).lower()}"
            )
            self._machine.undeliverable(destination, reason, socket=name, now=self._loop.time())
            self._runner.pump()

    def _unsendable(self, name: str, destination: Endpoint, error: TransportError) -> None:
        self._machine.undeliverable(destination, str(error), socket=name, now=self._loop.time(), final=True)

    def _on_event(self, event: DiscoveryEvent) -> None:
        if not isinstance(event, Finished):
            self._tcp.append(self._loop.create_task(self._try_tcp(event.server)))
        elif not self.finished.done():
            self.finished.set_result(event.observations)

    async def _try_tcp(self, server: Endpoint) -> None:
        rtt_s = await tcp_round_trip(server, timeout_s=self._timeout_s)
        if rtt_s is not None:
            self._machine.tcp_answered(rtt_s, now=self._loop.time())
            self._runner.pump()

    async def close(self) -> None:
        for task in self._tcp:
            task.cancel()
        await asyncio.gather(*self._tcp, return_exceptions=True)
        if hasattr(self, "_runner"):
            self._runner.close()
        for socket in self._sockets.values():
            socket.close()
