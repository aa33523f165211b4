"""UDP sockets of a relay: two ports in a row, how many hops packets have left, hundreds watched as one."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, TransportError
from nattools.net.udp import socket_address

OwnerT = TypeVar("OwnerT")

MOST_READY = 256
"""After so many sockets in a row the rest of the program has its turn."""

_RECEIVE_BUFFER_BYTES = 1 << 20
_SEND_BUFFER_BYTES = 1 << 20
_IP_RECVTTL = {"linux": 12, "darwin": 24}.get(sys.platform)  # which the socket module does not name
_HOPS_SPACE_BYTES = 64
_HOP_LEVELS = (socket.IPPROTO_IP, socket.IPPROTO_IPV6)


def open_port_pair(address: IPAddress, even_port: int) -> tuple[socket.socket, socket.socket] | None:
    """Two sockets at `even_port` and the port after it, which do not block; None where one is taken.

    Raises `LocalAddressError` where the address is not this machine's, files are exhausted,
    or the system forbids.
    """
    opened: list[socket.socket] = []
    try:
        for port in (even_port, even_port + 1):
            sock = socket.socket(
                socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM
            )
            opened.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            if address.version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _ask_for_hops(sock)
            sock.bind(socket_address(Endpoint(address, port)))
    except OSError as error:
        for sock in opened:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        hint = {
            errno.EADDRNOTAVAIL: "; give an address of this machine",
            errno.EMFILE: "; raise the limit of open files (ulimit -n): a stream takes four",
        }.get(error.errno or 0, "")
        reason = (error.strerror or str(error)).lower()
        raise LocalAddressError(
            f"cannot relay at {address}, UDP ports {even_port} and {even_port + 1}: {reason}{hint}"
        ) from error
    return opened[0], opened[1]


def receive_with_hops(
    sock: socket.socket, buffer: bytearray
) -> tuple[int, tuple[str, int] | tuple[str, int, int, int], int | None]:
    """Receive a datagram of one of a pair's sockets: its length, where from, and its hops left.

    These are the TTL of IPv4, the hop limit of IPv6; None where this system does not tell. Raises `OSError`.
    """
    if not hasattr(sock, "recvmsg_into"):
        return *sock.recvfrom_into(buffer), None
    length, ancillary, _flags, source = sock.recvmsg_into([buffer], _HOPS_SPACE_BYTES)
    for level, _kind, data in ancillary:
        if level in _HOP_LEVELS:
            return length, source, int.from_bytes(data, sys.byteorder)
    return length, source, None


def send_with_hops(sock: socket.socket, hops: int) -> None:
    """Give what is sent from now on so many hops, 1 to 255. Raises `OSError`."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


def _ask_for_hops(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        if hasattr(socket, "IPV6_RECVHOPLIMIT"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    elif _IP_RECVTTL is not None:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)


class SocketWatch(Generic[OwnerT]):
    """Calls `on_ready(owners)` in the running loop with the owners of those sockets that have datagrams.

    On Linux all of them hang on one epoll object, which the loop watches by `add_reader`: the loop's own way
    costs for each socket as much as relaying a packet does. A socket that was not read to its end is named
    again, after whatever else the loop has to do.
    """

    def __init__(self, on_ready: Callable[[list[OwnerT]], None]) -> None:
        """Watch from the running loop. Raises `TransportError` where it cannot watch sockets."""
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._owners: dict[int, OwnerT] = {}
        self._epoll: select.epoll | None = None
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            try:
                self._add_reader(self._epoll.fileno(), self._poll)
            except TransportError:
                self._epoll.close()
                raise

    def add(self, sock: socket.socket, owner: OwnerT) -> None:
        """Watch `sock` as well. Raises `TransportError` where the loop cannot."""
        number = sock.fileno()
        self._owners[number] = owner
        if self._epoll is not None:
            self._epoll.register(number, select.EPOLLIN)
        else:
            self._add_reader(number, lambda: self._on_ready([owner]))

    def remove(self, sock: socket.socket) -> None:
        """Watch it no longer; it must still be open."""
        number = sock.fileno()
        if self._owners.pop(number, None) is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(number)
        else:
            self._loop.remove_reader(number)

    def close(self) -> None:
        """Watch nothing any more; the sockets stay open."""
        if self._epoll is not None and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        elif self._epoll is None:
            for number in self._owners:
                self._loop.remove_reader(number)
        self._owners.clear()

    def _poll(self) -> None:
        if self._epoll is not None:
            ready = self._epoll.poll(0, MOST_READY)
            self._on_ready([self._owners[number] for number, _events in ready if number in self._owners])

    def _add_reader(self, number: int, callback: Callable[[], None]) -> None:
        try:
            self._loop.add_reader(number, callback)
        except NotImplementedError as error:
            raise TransportError(
                "this event loop cannot watch sockets; run it in asyncio.SelectorEventLoop"
            ) from error
