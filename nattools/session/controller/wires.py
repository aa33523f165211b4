"""The sockets and connections that SIP goes by: UDP, TCP and TLS (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import ssl
from collections import Counter
from collections.abc import Awaitable, Iterator
from itertools import count
from socket import socket
from typing import Protocol

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address, site_of
from nattools.errors import LocalAddressError
from nattools.machine import Transmit
from nattools.net.interfaces import interfaces
from nattools.net.listener import Acceptor, Datagram, UdpListener
from nattools.net.stream import StreamConnection
from nattools.net.tls import ServerCertificate
from nattools.net.udp import socket_address
from nattools.session.controller.connection import Connection
from nattools.session.flows import Flow, Listener
from nattools.session.settings import GateSettings, ListenAddress
from nattools.stun.responder import Reply, Responder, ServerAddresses

MOST_UNSENT_BYTES = 1 << 18
"""A peer that leaves so much unread is cut off."""

_PORT_ATTEMPTS = 16
_CONNECT_TIMEOUT_S = 5.0
_MOST_NAMES = 4096
_BLANK = b"\r\n\t \0"
_MOST_STUN_TYPE = 3  # the first byte of STUN (RFC 8489 §5), and of no SIP message

_log = logging.getLogger(__name__)


class Taker(Protocol):
    """What takes that which arrives. It raises nothing."""

    def admits(self, data: bytes, source: Endpoint) -> bool:
        """Whether a datagram or message is looked at at all; asked first, once for each."""

    def take(self, data: bytes, flow: Flow) -> None:
        """Take one message."""

    def heard(self, flow: Flow) -> None:
        """Line ends have come, and nothing else: a ping, or the answer to one (RFC 5626 §4.4.1)."""

    def connected(self, name: str, listener: str, remote: Endpoint) -> None:
        """A connection of that name is open, of that listener."""

    def disconnected(self, name: str) -> None:
        """It has ended."""

    def failed(self, transmit: Transmit) -> None:
        """A message could not be sent, since no connection was to be had."""


class Wires:
    """All listeners and connections. Make them with `Wires.open`, end them with `close`.

    `counters` has what was not given to the taker: `keepalives` (blank datagrams), `stun_answered`,
    `stun_dropped`, `garbled_streams`, `connections_refused`, `connections_slow`, `connections_failed`, and
    messages that could not be sent (`unsent`).
    """

    def __init__(self, settings: GateSettings, taker: Taker) -> None:
        self.counters: Counter[str] = Counter()
        self.listeners: tuple[Listener, ...] = ()
        self._settings = settings
        self._taker = taker
        self._is_started = False
        self._certificate = certificate_of(settings)
        self._client_context = None if self._certificate is None else ssl.create_default_context()
        self._udp: dict[str, UdpListener] = {}
        self._udp_names: dict[UdpListener, str] = {}
        self._responders: dict[str, Responder] = {}
        self._acceptors: dict[Acceptor, Listener] = {}
        self._streams: dict[str, Listener] = {}
        self._connections: dict[str, Connection] = {}
        self._by_peer: dict[tuple[str, Endpoint], Connection] = {}
        self._by_source: Counter[IPAddress] = Counter()
        self._names: dict[Endpoint, str] = {}
        self._numbers = count(1)
        self._epoch = secrets.token_hex(6)  # so that no name is that of a connection before a restart

    @classmethod
    async def open(cls, settings: GateSettings, taker: Taker) -> Wires:
        """Listen as the settings say; what comes before `start` is lost.

        Raises `LocalAddressError`, or `DecodeError` for a certificate that is none; then nothing listens.
        """
        listen = list(local_addresses(settings.listen, loopback=settings.alg))
        attempts = _PORT_ATTEMPTS if any(not address.endpoint.port for address in listen) else 1
        while True:
            attempts -= 1
            wires = cls(settings, taker)
            try:
                wires._listen(listen)
            except LocalAddressError:
                await wires.close()
                if attempts:
                    continue  # the port that was free for UDP was not for TCP
                raise
            return wires

    def start(self) -> None:
        """Give to the taker what comes from now on."""
        self._is_started = True

    def remember(self, endpoint: Endpoint, host: str) -> None:
        """Note the name by which `endpoint` was found: the one that its certificate must show (RFC 5922)."""
        self._names[endpoint] = host
        if len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]

    def send(self, transmit: Transmit) -> None:
        """Send by the listener or connection that `transmit.socket` names; connect if need be."""
        udp = self._udp.get(transmit.socket)
        if udp is not None:
            self._send_datagram(udp, transmit)
            return
        connection = self._connections.get(transmit.socket)
        if connection is None:
            connection = self._by_peer.get((transmit.socket, transmit.destination))
        if connection is None and transmit.socket in self._streams:
            connection = self._connect(self._streams[transmit.socket], transmit.destination)
        if connection is None or not connection.send(transmit, most_unsent=MOST_UNSENT_BYTES):
            self.counters["unsent"] += 1
            self._taker.failed(transmit)
            if connection is not None:
                self._drop(connection)

    def tidy(self, *, now: float) -> None:
        """Close the connections whose time is up: to be called every second or so."""
        for connection in list(self._connections.values()):
            if connection.is_stale(now=now, idle_s=self._settings.most_expires_s):
                self.counters["connections_slow"] += 1
                self._drop(connection)

    @property
    def connections(self) -> int:
        """How many connections there are, those included that are being opened."""
        return len(self._connections)

    def reload_certificate(self) -> None:
        """Read it and its key again, for connections that are still to come.

        Raises `DecodeError` for what is none; then that of before stays.
        """
        if self._certificate is not None:
            self._certificate.reload()

    async def close(self) -> None:
        """Close everything."""
        for udp in self._udp.values():
            udp.close()
        for acceptor in self._acceptors:
            acceptor.close()
        await asyncio.sleep(0)  # so that what was accepted last has begun, and can be cancelled
        connections = list(self._connections.values())
        tasks = [connection.task for connection in connections if connection.task is not None]
        for connection in connections:
            connection.close()
        self._connections.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listen(self, listen: list[ListenAddress]) -> None:
        free_ports: dict[IPAddress, int] = {}
        for address in listen:
            ip, port = address.endpoint.ip, address.endpoint.port
            if not port and address.transport != "TLS":
                port = free_ports.get(ip, 0)
            try:
                listener = self._listen_at(address.transport, Endpoint(ip, port))
            except LocalAddressError as error:
                if address in self._settings.listen or not _has_gone(error):
                    raise
                _log.warning("%s", error)  # one of a wildcard's, and others are left
                continue
            free_ports.setdefault(ip, listener.local.port)
            self.listeners += (listener,)
        if not self.listeners:
            raise LocalAddressError("this machine has no address to listen on: connect it to a network")

    def _listen_at(self, transport: str, local: Endpoint) -> Listener:
        if transport == "UDP":
            udp = UdpListener.open(local, self._on_datagram)
            listener = self._listener("UDP", udp.local)
            self._udp[listener.name] = udp
            self._udp_names[udp] = listener.name
            self._responders[listener.name] = Responder(ServerAddresses(local.ip, udp.local.port))
            return listener
        acceptor = Acceptor.open(local, self._on_accepted)
        listener = self._listener(transport, acceptor.local)
        self._acceptors[acceptor] = self._streams[listener.name] = listener
        return listener

    def _listener(self, transport: str, local: Endpoint) -> Listener:
        advertise = self._settings.advertise
        is_told = advertise is not None and advertise.version == local.ip.version and not local.ip.is_loopback
        advertised = Endpoint(advertise, local.port) if advertise is not None and is_told else None
        return Listener(f"{transport.lower()}:{local}", transport, local, advertised)

    # --- UDP ---

    def _on_datagram(self, udp: UdpListener, datagram: Datagram) -> None:
        self.take_datagram(self._udp_names[udp], udp, datagram)

    def take_datagram(self, name: str, udp: UdpListener, datagram: Datagram) -> None:
        """Take what arrived at the UDP listener of that name."""
        data, source = datagram.data, datagram.source
        if not self._is_started or not self._taker.admits(data, source):
            return
        if not data.strip(_BLANK):
            self.counters["keepalives"] += 1
            self._taker.heard(Flow(name, source))
        elif data[0] <= _MOST_STUN_TYPE:
            self._answer_stun(name, udp, datagram)
        else:
            self._taker.take(data, Flow(name, source))

    def _answer_stun(self, name: str, udp: UdpListener, datagram: Datagram) -> None:
        """Answer a phone that keeps its flow open by STUN (RFC 5626 §4.4.2)."""
        responder = self._responders.get(name)
        reply = None if responder is None else responder.respond(datagram.data, datagram.source, udp.local)
        if not isinstance(reply, Reply) or reply.destination != datagram.source:
            self.counters["stun_dropped"] += 1
            return
        self.counters["stun_answered"] += 1
        udp.send(reply.data, datagram.address, source=udp.local.ip)

    def _send_datagram(self, udp: UdpListener, transmit: Transmit) -> None:
        try:
            address = socket_address(transmit.destination)
        except OSError:  # the scope of a link-local address that is none here
            self.counters["unsent"] += 1
            return
        if not udp.send(transmit.data, address, source=udp.local.ip):
            self.counters["unsent"] += 1

    # --- TCP and TLS ---

    def _on_accepted(self, acceptor: Acceptor, accepted: socket, remote: Endpoint) -> None:
        listener = self._acceptors[acceptor]
        connection = self._new_connection(listener, remote) if self._is_started else None
        if connection is None:
            accepted.close()
            return
        tls = self._certificate if listener.transport == "TLS" else None

        def opening() -> Awaitable[StreamConnection]:
            return StreamConnection.accept(
                accepted,
                remote,
                frame_size=_all_there_is,
                on_frame=connection.receive,
                on_lost=connection.lost,
                ssl_context=None if tls is None else tls.context,
            )

        connection.task = asyncio.ensure_future(connection.open(opening))

    def _connect(self, listener: Listener, remote: Endpoint) -> Connection | None:
        connection = self._new_connection(listener, remote)
        if connection is None:
            return None
        is_tls = listener.transport == "TLS"

        def opening() -> Awaitable[StreamConnection]:
            return StreamConnection.open(
                remote,
                frame_size=_all_there_is,
                on_frame=connection.receive,
                on_lost=connection.lost,
                connect_timeout_s=_CONNECT_TIMEOUT_S,
                local_address=listener.local.ip,
                server_name=self._names.get(remote, str(remote.ip)) if is_tls else None,
                ssl_context=self._client_context,
            )

        connection.is_ours = True
        connection.task = asyncio.ensure_future(connection.open(opening))
        return connection

    def _new_connection(self, listener: Listener, remote: Endpoint) -> Connection | None:
        """A connection that counts from now on; None where there are too many."""
        source = site_of(remote.ip)
        settings = self._settings
        if (
            len(self._connections) >= settings.most_connections
            or self._by_source[source] >= settings.connections_per_source
        ):
            self.counters["connections_refused"] += 1
            return None
        name = f"{listener.name}#{self._epoch}-{next(self._numbers)}"
        connection = Connection(name, listener, remote, self)
        self._connections[name] = connection
        self._by_peer[listener.name, remote] = connection
        self._by_source[source] += 1
        return connection

    def opened(self, connection: Connection) -> None:
        """A connection is open now; called by itself."""
        self._taker.connected(connection.name, connection.listener.name, connection.remote)

    def message(self, connection: Connection, data: bytes) -> None:
        """A whole message has come; called by the connection."""
        if self._taker.admits(data, connection.remote):
            self._taker.take(data, Flow(connection.name, connection.remote))

    def line_ends(self, connection: Connection) -> None:
        """Line ends have come between messages; called by the connection."""
        self._taker.heard(Flow(connection.name, connection.remote))

    def ended(self, connection: Connection, reason: str, counter: str = "") -> None:
        """A connection has ended, or could not be opened; called by itself."""
        if counter:
            self.counters[counter] += 1
        _log.debug("%s with %s ended: %s", connection.name, connection.remote, reason)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection.name, None) is None:
            return
        key = (connection.listener.name, connection.remote)
        if self._by_peer.get(key) is connection:
            del self._by_peer[key]
        source = site_of(connection.remote.ip)
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]
        was_open = connection.is_open
        connection.close()
        if was_open:
            self._taker.disconnected(connection.name)
        for transmit in connection.take_waiting():
            self.counters["unsent"] += 1
            self._taker.failed(transmit)


def _all_there_is(start: bytes | bytearray) -> int | None:
    """Frames that are whatever has come: `SipStream` finds the messages in it."""
    return min(len(start), 0xFFFF) or None


def _has_gone(error: LocalAddressError) -> bool:
    """Whether the address is not this machine's any more, or not yet (IPv6 looks for doubles first)."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRNOTAVAIL


def local_addresses(listen: tuple[ListenAddress, ...], *, loopback: bool = False) -> Iterator[ListenAddress]:
    """Where to listen, each wildcard being every address that this machine has now.

    Loopback is among them where it is asked for, or nothing else is there. Link-local addresses are not:
    nobody could be told one without its scope.
    """
    own: list[IPAddress] | None = None
    seen: set[ListenAddress] = set()
    for address in listen:
        ips = [address.endpoint.ip]
        if address.endpoint.ip.is_unspecified:
            own = _own_addresses(loopback=loopback) if own is None else own
            ips = [ip for ip in own if ip.version == address.endpoint.ip.version]
        for ip in ips:
            single = ListenAddress(address.transport, Endpoint(ip, address.endpoint.port))
            if single not in seen:
                seen.add(single)
                yield single


def _own_addresses(*, loopback: bool) -> list[IPAddress]:
    found = [ip for interface in interfaces() if interface.is_up for ip in interface.ips]
    inside = [ip for ip in found if ip.is_loopback]
    outside = [
        ip for ip in found if not ip.is_loopback and classify_address(ip) is not AddressClass.LINK_LOCAL
    ]
    return [*outside, *(inside if loopback or not outside else ())]


def certificate_of(settings: GateSettings) -> ServerCertificate | None:
    """What is shown over TLS, if anything. Raises `DecodeError` for what is no certificate."""
    if settings.certificate is None or settings.key is None:
        return None
    return ServerCertificate(settings.certificate, settings.key)
