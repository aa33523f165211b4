"""UDP sockets for clients: portable, and with the ICMP errors where the system hands them out."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
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
    return Endpoint(ip_address(host), port)


def socket_address(endpoint: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    """What the socket module takes for `endpoint`, with its scope: from a pair it would not take that.

    Raises `OSError` for a scope that is no interface here.
    """
    if not isinstance(endpoint.ip, IPv6Address) or endpoint.ip.scope_id is None:
        return str(endpoint.ip), endpoint.port
    host, _, scope = str(endpoint.ip).partition("%")
    return host, endpoint.port, 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


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
    """One UDP socket of a client. Make it with `UdpSocket.open`, end it with `close`."""

    def __init__(
        self,
        sock: socket.socket,
        on_datagram: OnDatagram,
        on_error: OnError | None,
        multicast: MulticastInterface | None,
    ) -> None:
        self._socket = sock
        # Linux looks at the group alone in IPv6, and gives it to its members on all interfaces
        self._scope = multicast.index if multicast is not None and sock.family == socket.AF_INET6 else 0
        self._on_datagram = on_datagram
        self._on_error = on_error
        self._transport: asyncio.DatagramTransport | None = None
        self.local = endpoint_of(sock.getsockname())
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

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send one datagram. Raises `TransportError` when there is no way there at all."""
        for last in (False, True):
            try:
                self._socket.sendto(data, socket_address(destination))
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
        """Close the socket; no callback comes after that."""
        if self._transport is not None:
            self._transport.abort()

    def datagram_received(self, data: bytes, address: object) -> None:
        """Called by asyncio."""
        if self._scope and cast(tuple[str, int, int, int], address)[3] not in (0, self._scope):
            return
        self._on_datagram(data, endpoint_of(address, with_scope=True))

    def error_received(self, error: Exception) -> None:
        """Called by asyncio: take the ICMP errors with their destinations off the queue."""
        if self._on_error is None or not isinstance(error, OSError):
            return
        reports = self._error_queue() if _IS_LINUX else []
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
                        destination = endpoint_of(address, with_scope=True)
                        reports.append((destination, OSError(number, errno.errorcode.get(number, "ICMP"))))
