"""UDP sockets for clients: portable, and with the ICMP errors where the system hands them out."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import cast

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, TransportError

OnDatagram = Callable[[bytes, Endpoint], None]
OnError = Callable[[Endpoint | None, OSError], None]

# <linux/in.h>, <linux/in6.h>, <linux/errqueue.h>: absent from the socket module
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_ICMP_ORIGINS = (2, 3)
_ABOUT_AN_EARLIER_DATAGRAM = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO)
_HAS_ERROR_QUEUE = sys.platform == "linux"


def _new_socket(*, ipv6: bool) -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:  # a kernel without IPv6
        raise TransportError(f"no IPv{6 if ipv6 else 4} on this machine: {error.strerror}") from error


def endpoint_of(address: object) -> Endpoint:
    """The endpoint in a socket address of the socket module; an IPv6 scope is dropped."""
    host, port = cast(tuple[str, int], address)[:2]
    return Endpoint(ip_address(host.partition("%")[0]), port)


def local_address_towards(destination: Endpoint, *, local_address: IPAddress | None = None) -> IPAddress:
    """The address that the kernel would send from to reach `destination`. Nothing is sent.

    Raises `LocalAddressError` where `local_address` is not this machine's, and `TransportError` where
    there is no route.
    """
    with _new_socket(ipv6=destination.is_ipv6) as probe:
        try:
            if local_address is not None:
                probe.bind((str(local_address), 0))
            probe.connect((str(destination.ip), destination.port or 9))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and local_address is not None:
                raise LocalAddressError(f"{local_address} is not an address of this machine") from error
            raise TransportError(
                f"no route to {destination.ip} ({error.strerror}): connect this machine to a network"
            ) from error
        return endpoint_of(probe.getsockname()).ip


class UdpSocket(asyncio.DatagramProtocol):
    """One UDP socket of a client. Make it with `UdpSocket.open`, end it with `close`."""

    def __init__(self, sock: socket.socket, on_datagram: OnDatagram, on_error: OnError | None) -> None:
        self._socket = sock
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
        on_datagram: OnDatagram,
        on_error: OnError | None = None,
    ) -> UdpSocket:
        """Bind a socket and hand every datagram to `on_datagram(data, source)`.

        `on_error(destination, error)` gets what the system reports of datagrams that could not be delivered
        (ICMP, on Linux with the destination); without a destination it is about the socket itself.
        Raises `LocalAddressError` when the address or port cannot be had, `TransportError` for other reasons.
        """
        sock = _new_socket(ipv6=ipv6)
        try:
            sock.setblocking(False)
            if ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if _HAS_ERROR_QUEUE:
                level, option = (
                    (socket.IPPROTO_IPV6, _IPV6_RECVERR) if ipv6 else (socket.IPPROTO_IP, _IP_RECVERR)
                )
                sock.setsockopt(level, option, 1)
            host = str(local_address) if local_address is not None else "::" if ipv6 else "0.0.0.0"
            try:
                sock.bind((host, local_port))
            except OSError as error:
                where = f"{host}, UDP port {local_port}" if local_port else host
                raise LocalAddressError(f"cannot send from {where}: {error.strerror}") from error
            self = cls(sock, on_datagram, on_error)
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
        address = (str(destination.ip), destination.port)
        for last in (False, True):
            try:
                self._socket.sendto(data, address)
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
        self._on_datagram(data, endpoint_of(address))

    def error_received(self, error: Exception) -> None:
        """Called by asyncio: take the ICMP errors with their destinations off the queue."""
        if self._on_error is None or not isinstance(error, OSError):
            return
        reports = self._error_queue() if _HAS_ERROR_QUEUE else []
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
                        reports.append(
                            (endpoint_of(address), OSError(number, errno.errorcode.get(number, "ICMP")))
                        )
