"""Sockets for servers: UDP that is drained and answers from the address that was asked, and TCP."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, TransportError
from nattools.net.udp import endpoint_of

DATAGRAMS_PER_WAKEUP = 64
"""After so many the other sockets have their turn."""

RECEIVE_BUFFER_BYTES = 4 << 20
"""What is asked of the system for each UDP socket; Linux gives no more than net.core.rmem_max."""

_MOST_DATAGRAM_BYTES = 0xFFFF
_ANCILLARY_BYTES = 64
_BACKLOG = 128
_ACCEPTED_PER_WAKEUP = 16
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_S = 1.0  # after the system had no file for one more connection
_SO_MEMINFO = 55  # <asm-generic/socket.h>: absent from the socket module
_MEMORY_INFO = struct.Struct("=9I")  # <linux/sock_diag.h>: the last is what was dropped

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""A peer as the socket module names it; unlike an `Endpoint` it knows the scope of fe80::."""


class Datagram(NamedTuple):
    """A datagram as it arrived; `local` has the address it was sent to, also on a wildcard bind."""

    data: bytes
    source: Endpoint
    local: Endpoint
    address: SocketAddress
    unicast: bool = True
    truncated: bool = False


OnDatagram = Callable[["UdpListener", Datagram], None]
OnConnection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OnAccepted = Callable[["Acceptor", socket.socket, Endpoint], None]


class UdpListener:
    """One UDP socket of a server. Make it with `UdpListener.open`, end it with `close`."""

    def __init__(self, sock: socket.socket, local: Endpoint, on_datagram: OnDatagram) -> None:
        self._socket = sock
        self._on_datagram = on_datagram
        self._loop = asyncio.get_running_loop()
        self.local = local.with_port(sock.getsockname()[1])
        """Where the socket is bound; the address may be the unspecified one."""
        self._packet_info = _packet_info(sock) if local.ip.is_unspecified else None

    @classmethod
    def open(cls, local: Endpoint, on_datagram: OnDatagram, *, reuse_port: bool = False) -> UdpListener:
        """Bind a socket at `local` (port 0: any free one) and hand it every datagram, from the running loop.

        With `reuse_port` further sockets of this user can be bound there likewise; Linux shares the clients
        out among them.
        Raises `LocalAddressError`, with the reason and what can be done, where the address cannot be had.
        """
        sock = _bind(local, socket.SOCK_DGRAM, reuse_port=reuse_port)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            self = cls(sock, local, on_datagram)
            self._loop.add_reader(sock, self._drain)
        except NotImplementedError as error:
            sock.close()
            raise TransportError(
                "this event loop cannot watch sockets; run it in asyncio.SelectorEventLoop"
            ) from error
        except OSError as error:
            sock.close()
            raise _refusal(local, "UDP", error) from error
        return self

    @property
    def knows_destinations(self) -> bool:
        """Whether `Datagram.local` is true, and replies leave from it; some systems cannot on a wildcard."""
        return self._packet_info is not None or not self.local.ip.is_unspecified

    @property
    def overrun(self) -> int:
        """How many datagrams the system has dropped since the socket had no room for them.

        Few others, with a wrong checksum, are among them. 0 where the system does not tell, as only Linux
        does, and once the listener is closed.
        """
        if sys.platform != "linux":
            return 0
        try:
            told = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMORY_INFO.size)
        except OSError:
            return 0
        return int(_MEMORY_INFO.unpack(told)[-1]) if len(told) == _MEMORY_INFO.size else 0

    def send(self, data: bytes, address: SocketAddress, *, source: IPAddress) -> bool:
        """Send one datagram; on a wildcard bind it leaves from `source`.

        False where the system did not take it: a full buffer, no route, a firewall.
        """
        try:
            if self._packet_info is None:
                self._socket.sendto(data, address)
            else:
                self._socket.sendmsg([data], [self._packet_info.leave_from(source)], 0, address)
        except OSError:
            return False
        return True

    def destination(self, packet_info: bytes) -> tuple[IPAddress, bool]:
        """The address in the packet info that came with a datagram, and whether it is one machine's.

        Only where the listener is bound to the unspecified address.
        """
        assert self._packet_info is not None
        return self._packet_info.destination(packet_info)

    def drain_with(self, drain: Callable[[], None]) -> socket.socket:
        """Have `drain` called from now on whenever something has arrived, to read the socket given back.

        It stays the listener's own, which goes on sending with it, and is closed by `close`.
        """
        self._loop.add_reader(self._socket, drain)
        return self._socket

    def close(self) -> None:
        """Close the socket; no callback comes after that."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _drain(self) -> None:
        receive = self._receive if self._packet_info is None else self._receive_with_destination
        for _ in range(DATAGRAMS_PER_WAKEUP):
            try:
                datagram = receive()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADF:  # the callback has closed it
                    return
                continue  # an ICMP error about an earlier reply
            self._on_datagram(self, datagram)

    def _receive(self) -> Datagram:
        data, address = self._socket.recvfrom(_MOST_DATAGRAM_BYTES)
        return Datagram(data, endpoint_of(address), self.local, address)

    def _receive_with_destination(self) -> Datagram:
        data, ancillary, flags, address = self._socket.recvmsg(_MOST_DATAGRAM_BYTES, _ANCILLARY_BYTES)
        local, unicast = self.local, True
        for level, kind, value in ancillary:
            if self._packet_info is not None and (level, kind) == self._packet_info[:2]:
                ip, unicast = self._packet_info.destination(value)
                local = Endpoint(ip, local.port)
        truncated = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
        return Datagram(data, endpoint_of(address), local, address, unicast, truncated)


def has_address(ip: IPAddress) -> bool:
    """Whether this machine has the address now, so that a socket can be bound there."""
    try:
        _bind(Endpoint(ip, 0), socket.SOCK_DGRAM).close()
    except LocalAddressError as error:
        cause = error.__cause__
        return isinstance(cause, OSError) and cause.errno in _OUT_OF_MEANS
    return True


class StreamListener:
    """One listening TCP socket. Make it with `StreamListener.open`, end it with `close`."""

    def __init__(self, server: asyncio.Server, local: Endpoint) -> None:
        self._server = server
        self.local = local
        """Where it listens; the address may be the unspecified one."""

    @classmethod
    async def open(cls, local: Endpoint, on_connection: OnConnection, *, limit_bytes: int) -> StreamListener:
        """Listen at `local` and run `on_connection` for each connection, reading ahead about `limit_bytes`.

        Raises `LocalAddressError`, with the reason and what can be done, where the address cannot be had.
        """
        sock = _bind(local, socket.SOCK_STREAM)
        try:
            # asyncio accepts `backlog` times at each wakeup, and out of files complains as often
            server = await asyncio.start_server(on_connection, sock=sock, limit=limit_bytes, backlog=1)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _refusal(local, "TCP", error) from error
        return cls(server, local.with_port(sock.getsockname()[1]))

    def close(self) -> None:
        """Stop listening; connections that are open stay so."""
        self._server.close()


class Acceptor:
    """One listening TCP socket that gives away each connection before a byte of it is read.

    So its owner can refuse it, at no cost, where there are enough. Make it with `Acceptor.open`.
    """

    def __init__(self, sock: socket.socket, local: Endpoint, on_accepted: OnAccepted) -> None:
        self._socket = sock
        self._on_accepted = on_accepted
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self.local = local.with_port(sock.getsockname()[1])
        """Where it listens; the address may be the unspecified one."""

    @classmethod
    def open(cls, local: Endpoint, on_accepted: OnAccepted, *, reuse_port: bool = False) -> Acceptor:
        """Listen at `local` (port 0: any free one); `on_accepted` gets a socket, which is its own then.

        `reuse_port` is as for `UdpListener.open`.
        Raises `LocalAddressError`, with the reason and what can be done, where the address cannot be had.
        """
        sock = _bind(local, socket.SOCK_STREAM, reuse_port=reuse_port)
        try:
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _refusal(local, "TCP", error) from error
        self = cls(sock, local, on_accepted)
        self._wake()
        return self

    def close(self) -> None:
        """Stop listening; connections that are open stay so."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _wake(self) -> None:
        self._rest = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_PER_WAKEUP):
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_MEANS:
                    self._loop.remove_reader(self._socket)
                    self._rest = self._loop.call_later(_REST_S, self._wake)
                    return
                if error.errno == errno.EBADF:  # the callback has closed it
                    return
                continue  # who came has left already
            accepted.setblocking(False)
            self._on_accepted(self, accepted, endpoint_of(address))


class _PacketInfo(NamedTuple):
    """The ancillary data that tells, and sets, this machine's address of a datagram (RFC 3542 §6.1)."""

    level: int
    kind: int
    layout: struct.Struct

    def destination(self, value: bytes) -> tuple[IPAddress, bool]:
        """Where a datagram was sent to, and whether that is the address of one machine."""
        if self.level == socket.IPPROTO_IPV6:
            packed, _interface = self.layout.unpack(value)
            return ip_address(packed), packed[0] != 0xFF
        _interface, own, packed = self.layout.unpack(value)
        # Linux has this machine's own address in the second field, also for a broadcast
        return ip_address(packed), packed[0] >> 4 != 14 and (own == packed or sys.platform != "linux")

    def leave_from(self, source: IPAddress) -> tuple[int, int, bytes]:
        """What to send along for a datagram to leave from `source`; its interface is the routes' affair."""
        if self.level == socket.IPPROTO_IPV6:
            return self.level, self.kind, self.layout.pack(source.packed, 0)
        return self.level, self.kind, self.layout.pack(0, source.packed, bytes(4))


def _packet_info(sock: socket.socket) -> _PacketInfo | None:
    """Have the system say where each datagram was sent to; None where it cannot."""
    if sock.family == socket.AF_INET6:
        ask, kind = getattr(socket, "IPV6_RECVPKTINFO", None), getattr(socket, "IPV6_PKTINFO", None)
        info = _PacketInfo(socket.IPPROTO_IPV6, kind or 0, struct.Struct("=16sI"))
    else:
        # absent from the socket module; the numbers are those of <linux/in.h> and of macOS's <netinet/in.h>
        ask = kind = {"linux": 8, "darwin": 26}.get(sys.platform)
        info = _PacketInfo(socket.IPPROTO_IP, kind or 0, struct.Struct("=I4s4s"))
    if ask is None or kind is None or not hasattr(sock, "recvmsg"):
        return None
    sock.setsockopt(info.level, ask, 1)
    return info


def _bind(local: Endpoint, kind: socket.SocketKind, *, reuse_port: bool = False) -> socket.socket:
    """A non-blocking socket at `local`. Raises `LocalAddressError`."""
    try:
        sock = socket.socket(socket.AF_INET6 if local.is_ipv6 else socket.AF_INET, kind)
        try:
            sock.setblocking(False)
            if local.is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # On TCP not to wait for TIME_WAIT after a restart; on UDP it would hide that the port is in use,
            # and so it would on Windows.
            if kind is socket.SOCK_STREAM and sys.platform != "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # only getaddrinfo makes an address with a scope of fe80::1%eth0
            found = socket.getaddrinfo(str(local.ip), local.port, type=kind, flags=socket.AI_NUMERICHOST)
            sock.bind(found[0][4])
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _refusal(local, "UDP" if kind is socket.SOCK_DGRAM else "TCP", error) from error
    return sock


def _refusal(local: Endpoint, transport: str, error: OSError) -> LocalAddressError:
    """Why `local` cannot be had, in one line, and what the user can do."""
    hints = {
        errno.EADDRINUSE: "stop the program that has it or choose another port; on Linux"
        f" `ss -{transport[0].lower()}lnp 'sport = :{local.port}'` names it",
        errno.EADDRNOTAVAIL: "give an address of this machine; on Linux `ip address` lists them",
        errno.EACCES: "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
    }
    if local.is_ipv6 and local.ip.is_link_local:
        hints[errno.EINVAL] = f"a link-local address needs its interface: {local.ip}%eth0"
    hint = f"; {hints[error.errno]}" if error.errno in hints else ""
    reason = (error.strerror or str(error)).lower()
    return LocalAddressError(f"cannot listen on {local.ip}, {transport} port {local.port}: {reason}{hint}")
