"""UDP sockets for clients, opened or adopted: portable, and with the ICMP errors that the system tells."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, TransportError

OnDatagram = Callable[[bytes, Endpoint], None]
OnError = Callable[[Endpoint | None, OSError], None]

# <linux/in.h>, <linux/in6.h>, <linux/errqueue.h>: absent from the socket module
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_ICMP_ORIGINS = (2, 3)
_ABOUT_AN_EARLIER_DATAGRAM = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO)
_IS_LINUX = sys.platform == "linux"
_PAIR_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class MulticastInterface:
    """Where multicast leaves and arrives: an interface by its index, and for IPv4 by its address as well."""

    index: int
    address: IPAddress


def _new_socket(*, ipv6: bool) -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:  # a kernel without IPv6
        raise TransportError(f"no IPv{6 if ipv6 else 4} on this machine: {error.strerror}") from error


def _set_multicast(sock: socket.socket, via: MulticastInterface, groups: Sequence[IPAddress]) -> None:
    # MULTICAST_ALL, Linux's default, has every socket hear what any socket of this machine has joined
    if sock.family == socket.AF_INET6:
        if _IS_LINUX:
            with suppress(OSError):  # there since Linux 4.20
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, via.index)
        for group in groups:
            membership = group.packed + struct.pack("@I", via.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        return
    if _IS_LINUX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, via.address.packed)
    for group in groups:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.packed + via.address.packed)


def endpoint_of(address: object, *, with_scope: bool = False) -> Endpoint:
    """The endpoint in a socket address of the socket module.

    With its scope a link-local IPv6 address is one that can be sent to (fe80::1%eth0). Without, it is as
    the other side writes it.
    """
    host, port, *rest = cast(tuple[str, int] | tuple[str, int, int, int], address)
    host = host.partition("%")[0]
    if with_scope and len(rest) == 2 and rest[1]:
        try:
            host = f"{host}%{socket.if_indextoname(rest[1])}"
        except OSError:  # the interface has gone
            host = f"{host}%{rest[1]}"
    return Endpoint(_read_ip(host), port)


@lru_cache(maxsize=4096)
def _read_ip(text: str) -> IPAddress:
    """An address as the system writes it; the same few send most datagrams."""
    return ip_address(text)


def socket_address(endpoint: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    """What the socket module takes for `endpoint`, with its scope: from a pair it would not take that.

    Raises `OSError` for a scope that is no interface here.
    """
    if not isinstance(endpoint.ip, IPv6Address) or endpoint.ip.scope_id is None:
        return str(endpoint.ip), endpoint.port
    host, _, scope = str(endpoint.ip).partition("%")
    return host, endpoint.port, 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


def dual_stack_address(endpoint: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    """What an IPv6 socket that does IPv4 as well takes for `endpoint` (RFC 3493 §3.7). Raises `OSError`."""
    if isinstance(endpoint.ip, IPv4Address):
        return f"::ffff:{endpoint.ip}", endpoint.port
    return socket_address(endpoint)


def check_usable(sock: socket.socket) -> None:
    """See whether a socket that somebody else made can have a public endpoint.

    Raises `LocalAddressError` where it is not bound, and `TransportError` where it is closed, connected or
    not UDP.
    """
    if sock.fileno() < 0:
        raise TransportError("the socket is closed: give an open one")
    is_udp = sock.type == socket.SOCK_DGRAM and sock.proto in (0, socket.IPPROTO_UDP)
    if not is_udp or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise TransportError(
            f"a socket of {sock.family.name}, {sock.type.name}, protocol {sock.proto} is not a UDP socket"
        )
    if not sock.getsockname()[1]:
        raise LocalAddressError("the socket has no port yet: bind it first, to port 0 for any")
    try:
        peer = endpoint_of(sock.getpeername())
    except OSError:  # so it is not connected
        return
    raise TransportError(
        f"the socket is connected to {peer} and hears nobody else: use one without connect()"
    )


def is_dual_stack(sock: socket.socket) -> bool:
    """Whether it is an IPv6 socket that does IPv4 as well, in mapped addresses (RFC 3493 §5.3)."""
    return sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _is_blocking(sock: socket.socket) -> bool:
    """Its mode as the system has it, which all its duplicates share; Python may believe another."""
    return sock.gettimeout() != 0 if sys.platform == "win32" else os.get_blocking(sock.fileno())


def local_address_towards(destination: Endpoint, *, local_address: IPAddress | None = None) -> IPAddress:
    """The address that the kernel would send from to reach `destination`. Nothing is sent.

    Raises `LocalAddressError` where `local_address` is not this machine's, and `TransportError` where
    there is no route.
    """
    with _new_socket(ipv6=destination.is_ipv6) as probe:
        try:
            if local_address is not None:
                probe.bind(socket_address(Endpoint(local_address, 0)))
            probe.connect(socket_address(destination.with_port(destination.port or 9)))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and local_address is not None:
                raise LocalAddressError(f"{local_address} is not an address of this machine") from error
            raise TransportError(
                f"no route to {destination.ip} ({error.strerror}): connect this machine to a network"
            ) from error
        return endpoint_of(probe.getsockname(), with_scope=True).ip


class UdpSocket(asyncio.DatagramProtocol):
    """One UDP socket of a client. Make it with `UdpSocket.open` or `adopt`, end it with `close`."""

    def __init__(
        self,
        sock: socket.socket,
        on_datagram: OnDatagram,
        on_error: OnError | None,
        multicast: MulticastInterface | None = None,
    ) -> None:
        self._socket = sock
        self._gives_back_blocking: bool | None = None
        # Linux looks at the group alone in IPv6, and gives it to its members on all interfaces
        self._scope = multicast.index if multicast is not None and sock.family == socket.AF_INET6 else 0
        self._on_datagram = on_datagram
        self._on_error = on_error
        self._transport: asyncio.DatagramTransport | None = None
        self.is_dual_stack = is_dual_stack(sock)
        """Whether it is an IPv6 socket that does IPv4 as well; its IPv4 peers have IPv4 endpoints here."""
        self.local = endpoint_of(sock.getsockname()).unmapped
        """Where the socket is bound; the address may be the unspecified one."""

    @classmethod
    async def open(
        cls,
        *,
        ipv6: bool = False,
        local_address: IPAddress | None = None,
        local_port: int = 0,
        multicast: MulticastInterface | None = None,
        groups: Sequence[IPAddress] = (),
        share_port: bool = False,
        on_datagram: OnDatagram,
        on_error: OnError | None = None,
    ) -> UdpSocket:
        """Bind a socket and hand every datagram to `on_datagram(data, source)`.

        Multicast is sent through `multicast`, and received there for the `groups`; a socket that is to
        receive it is bound to no address. With `share_port` others on this machine may have the port too.
        `on_error(destination, error)` gets what the system reports of datagrams that could not be delivered
        (ICMP, on Linux with the destination); without a destination it is about the socket itself.
        Raises `LocalAddressError` when the address or port cannot be had, `TransportError` for other reasons.
        """
        sock = _new_socket(ipv6=ipv6)
        try:
            sock.setblocking(False)
            if ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if _IS_LINUX:
                level, option = (
                    (socket.IPPROTO_IPV6, _IPV6_RECVERR) if ipv6 else (socket.IPPROTO_IP, _IP_RECVERR)
                )
                sock.setsockopt(level, option, 1)
            if share_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT") and not _IS_LINUX:  # BSD; on Linux it would split
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if multicast is not None:
                _set_multicast(sock, multicast, groups)
            host = local_address or ip_address("::" if ipv6 else "0.0.0.0")
            try:
                sock.bind(socket_address(Endpoint(host, local_port)))
            except OSError as error:
                where = f"{host}, UDP port {local_port}" if local_port else host
                raise LocalAddressError(f"cannot send from {where}: {error.strerror}") from error
            self = cls(sock, on_datagram, on_error, multicast)
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)
        except OSError as error:
            sock.close()
            raise TransportError(f"cannot open a UDP socket: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        self._transport = transport
        return self

    @classmethod
    async def adopt(
        cls, sock: socket.socket, on_datagram: OnDatagram, on_error: OnError | None = None
    ) -> UdpSocket:
        """Hand what arrives at `sock`, which somebody else made and bound, to `on_datagram(data, source)`.

        It stays its owner's, and open when this one is closed. Until then it does not block, whatever its
        mode was; that comes back at the end. Its options are left alone, so ICMP errors come only if they
        came before. Raises `LocalAddressError` where it is not bound, and `TransportError` where it cannot be
        used.
        """
        check_usable(sock)
        blocking, own = _is_blocking(sock), sock.dup()
        try:
            own.setblocking(False)
            self = cls(own, on_datagram, on_error)
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=own)
        except BaseException as error:
            own.setblocking(blocking)
            own.close()
            if isinstance(error, OSError):
                raise TransportError(f"cannot use the socket: {error.strerror or error}") from error
            raise
        self._transport, self._gives_back_blocking = transport, blocking
        return self

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send one datagram. Raises `TransportError` when there is no way there at all."""
        address_of = dual_stack_address if self.is_dual_stack else socket_address
        for last in (False, True):
            try:
                self._socket.sendto(data, address_of(destination))
                return
            except (BlockingIOError, InterruptedError):
                return  # the send buffer is full: as good as lost on the way
            except OSError as error:
                if error.errno not in _ABOUT_AN_EARLIER_DATAGRAM or last:
                    raise TransportError(
                        f"cannot send to {destination}: {error.strerror or error}"
                    ) from error
                self.error_received(error)

    def close(self) -> None:
        """Close the socket, unless it is somebody else's; no callback comes after that."""
        if self._transport is not None:
            self._transport.abort()
        if self._gives_back_blocking is not None:
            self._socket.setblocking(self._gives_back_blocking)
            self._gives_back_blocking = None

    def datagram_received(self, data: bytes, address: object) -> None:
        """Called by asyncio."""
        if self._scope and cast(tuple[str, int, int, int], address)[3] not in (0, self._scope):
            return
        source = endpoint_of(address, with_scope=True)
        self._on_datagram(data, source.unmapped if self.is_dual_stack else source)

    def error_received(self, error: Exception) -> None:
        """Called by asyncio: take the ICMP errors with their destinations off the queue."""
        reports = self._error_queue() if _IS_LINUX else []  # what stays in it wakes the loop for ever
        if self._on_error is None or not isinstance(error, OSError):
            return
        for destination, report in reports or [(None, error)]:
            self._on_error(destination, report)

    def _error_queue(self) -> list[tuple[Endpoint | None, OSError]]:
        reports: list[tuple[Endpoint | None, OSError]] = []
        while True:
            try:
                _data, ancillary, _flags, address = self._socket.recvmsg(64, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return reports
            for _level, option, value in ancillary:
                if option in (_IP_RECVERR, _IPV6_RECVERR):
                    number, origin = struct.unpack_from("=IB", value)
                    if origin in _ICMP_ORIGINS:
                        destination = endpoint_of(address, with_scope=True).unmapped
                        reports.append((destination, OSError(number, errno.errorcode.get(number, "ICMP"))))


async def open_consecutive(
    local_address: IPAddress, ports: Sequence[int], handlers: Sequence[tuple[OnDatagram, OnError]]
) -> list[UdpSocket]:
    """One socket for each of `handlers`, at the first of `ports` that is free and those after it.

    Port 0 is any that is free. Raises what `UdpSocket.open` does; of several ports, only when all are taken.
    """
    for port in ports:
        opened: list[UdpSocket] = []
        try:
            for offset, (on_datagram, on_error) in enumerate(handlers):
                opened.append(
                    await UdpSocket.open(
                        ipv6=local_address.version == 6,
                        local_address=local_address,
                        local_port=port + offset,
                        on_datagram=on_datagram,
                        on_error=on_error,
                    )
                )
        except BaseException as error:
            for sock in opened:
                sock.close()
            is_taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if len(ports) == 1 or not is_taken:
                raise
        else:
            return opened
    several = "" if len(handlers) == 1 else " with the next one"
    raise LocalAddressError(
        f"of the ports {min(ports)} to {max(ports)} of {local_address} none is free{several}"
    )


def unbound_socket(
    family: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0, fileno: int | None = None
) -> socket.socket:
    """A socket as the socket module makes it, for who binds it later. Raises `OSError`."""
    return socket.socket(family, kind, protocol, fileno)


def datagram_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets between threads of this process that keep datagrams apart. Raises `OSError`."""
    pair = _unix_pair() if hasattr(socket, "AF_UNIX") else _loopback_pair()
    for sock in pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            if sock.getsockopt(socket.SOL_SOCKET, option) < _PAIR_BYTES:  # macOS gives 2 KiB to send
                sock.setsockopt(socket.SOL_SOCKET, option, _PAIR_BYTES)
    return pair


def _unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    one, other = unbound_socket(socket.AF_INET), unbound_socket(socket.AF_INET)
    try:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        for sock, peer in ((one, other), (other, one)):
            sock.connect(peer.getsockname())
        for sock in (one, other):  # what somebody else sent there before it was connected
            with suppress(BlockingIOError):
                sock.setblocking(False)
                while True:
                    sock.recv(1)
            sock.setblocking(True)
    except BaseException:
        one.close()
        other.close()
        raise
    return one, other
