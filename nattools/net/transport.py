"""A tap on a datagram transport of asyncio's that a program has opened, and goes on using."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import cast

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.net.udp import check_usable, dual_stack_address, endpoint_of, is_dual_stack, socket_address

Eats = Callable[[bytes, Endpoint], bool]
"""Takes a datagram from a source, or says False: then it is the program's."""


class TransportTap(asyncio.DatagramProtocol):
    """Sits between a transport and its protocol, and takes datagrams out. Make it with `TransportTap.put`."""

    def __init__(
        self,
        transport: asyncio.DatagramTransport,
        sock: socket.socket,
        eats: Eats,
        on_lost: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._socket = sock
        self._protocol = cast(asyncio.DatagramProtocol, transport.get_protocol())
        self._eats: Eats | None = eats
        self._on_lost = on_lost
        self._is_sending = False
        self._failure: Exception | None = None
        self.is_dual_stack = is_dual_stack(sock)
        """Whether it is an IPv6 socket that does IPv4 as well; its IPv4 peers have IPv4 endpoints here."""
        self.local = endpoint_of(sock.getsockname()).unmapped
        """Where the transport is bound; the address may be the unspecified one."""

    @classmethod
    def put(
        cls, transport: asyncio.DatagramTransport, *, eats: Eats, on_lost: Callable[[str], None]
    ) -> TransportTap:
        """Have every datagram go through `eats` first; what that does not take goes to the protocol as it is.

        `on_lost(reason)` is told when the transport has ended. Raises `TransportError` with the reason where
        it cannot be tapped.
        """
        if transport.is_closing():
            raise TransportError("the transport is closed: give an open one")
        sock = transport.get_extra_info("socket")
        if sock is None or not callable(getattr(transport, "set_protocol", None)):
            raise TransportError(
                f"{type(transport).__name__} shows no socket, or does not let its protocol be replaced: "
                "give the socket itself (bind_socket), or one of asyncio's own transports"
            )
        check_usable(sock)
        tap = cls(transport, sock, eats, on_lost)
        transport.set_protocol(tap)
        return tap

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send one datagram. Raises `TransportError` when there is no way there at all."""
        if self._transport.is_closing():
            raise TransportError(f"cannot send to {destination}: the transport is closed")
        self._is_sending, self._failure = True, None
        try:
            address = (dual_stack_address if self.is_dual_stack else socket_address)(destination)
            if data:
                self._transport.sendto(data, address)
            else:
                self._send_nothing(address)
        except BlockingIOError:
            return  # as good as lost on the way
        except OSError as error:
            self._failure = error
        finally:
            self._is_sending = False
        if self._failure is not None:
            reason = getattr(self._failure, "strerror", None) or self._failure
            raise TransportError(f"cannot send to {destination}: {reason}") from self._failure

    def _send_nothing(self, address: object) -> None:
        """An empty datagram: asyncio's transports did not send those before Python 3.13."""
        with socket.socket(
            self._socket.family, socket.SOCK_DGRAM, fileno=os.dup(self._socket.fileno())
        ) as own:
            own.sendto(b"", cast(tuple[str, int], address))

    def close(self) -> None:
        """Give the transport back to its protocol; no callback comes after that."""
        self._eats = None  # somebody may have put another protocol before this one
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._protocol)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Called by the transport."""
        if self._eats is not None:
            source = endpoint_of(address, with_scope=True)
            if self._eats(data, source.unmapped if self.is_dual_stack else source):
                return
        self._protocol.datagram_received(data, address)

    def error_received(self, error: Exception) -> None:
        """Called by the transport, for the datagram that is being sent or an earlier one of the program's."""
        if self._is_sending:
            self._failure = error
        else:
            self._protocol.error_received(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the transport, when it is closed."""
        if self._eats is not None:
            self._eats = None
            self._on_lost(f"the transport was closed: {error}" if error else "the transport was closed")
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        """Called by the transport."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Called by the transport."""
        self._protocol.resume_writing()
