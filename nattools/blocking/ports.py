"""Which socket of a phone has which port: those that it has bound, and those that wait for it to do so.

A softphone writes its media ports into an INVITE, and binds them when somebody has answered. But what the
INVITE says has to be public by then. So such a port is bound in the phone's place, and held until the phone
comes for it: what it gets is the very socket that the INVITE told of.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from dataclasses import dataclass

from nattools.binding.background import CLOSE_S, KeptSocket
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.net.listener import SocketAddress
from nattools.net.udp import endpoint_of, socket_address
from nattools.sip.message import SipMessage

HOLD_S = 300.0
"""So long a port is held. A proxy that limits ringing does so sooner (timer C of RFC 3261 §16.6)."""
MOST_HELD = 64
"""So many are held at a time; then the oldest is given back."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the phone's: its Call-ID, and the socket that its SIP passes through."""

    signalling: KeptSocket
    call_id: bytes

    @classmethod
    def of(cls, message: bytes, signalling: KeptSocket) -> Call:
        """The call that a message belongs to. Raises `DecodeError` when it is no SIP."""
        return cls(signalling, SipMessage.parse(message).call_id)


@dataclass(slots=True, eq=False)
class _Port:
    """One socket, and the call that it is held for: None once the phone has it."""

    kept: KeptSocket
    bound: Endpoint
    call: Call | None
    is_leaving: bool = False

    @property
    def is_gone(self) -> bool:
        return self.kept.is_over.is_set() or self.kept.is_inherited

    def has(self, local: Endpoint) -> bool:
        is_any = self.bound.ip.is_unspecified or local.ip.is_unspecified
        same_family = self.bound.is_ipv6 == local.is_ipv6
        return self.bound.port == local.port and same_family and (is_any or self.bound.ip == local.ip)


class Ports:
    """The ports of one phone, for any thread."""

    def __init__(self, settings: Settings) -> None:
        """Sockets that are held are kept by `settings`."""
        self._settings = settings
        self._lock = threading.Lock()
        self._ports: list[_Port] = []
        self._process = os.getpid()

    def add(self, kept: KeptSocket) -> None:
        """The phone has bound a socket by itself."""
        self._enter()
        with self._lock:
            self._ports.append(_Port(kept, endpoint_of(kept.real.getsockname()), None))

    def claim(self, address: SocketAddress, *, is_ipv6: bool) -> KeptSocket | None:
        """The held socket that the phone wants when it binds one to `address`; None where there is none."""
        host = address[0] or ("::" if is_ipv6 else "0.0.0.0")
        try:
            local = endpoint_of((host, *address[1:]))
        except ValueError:  # a host name
            return None
        self._enter()
        with self._lock:
            port = self._find(local)
            if port is not None and port.call is not None and not port.is_leaving:
                port.call = None
                return port.kept
        if port is not None and port.is_leaving:
            port.kept.is_over.wait(CLOSE_S)
        return None

    def hold(self, local: Endpoint, call: Call) -> KeptSocket:
        """The phone's socket at `local`, or one that is held there for a call until the phone binds it.

        Raises `OSError` where the port cannot be had.
        """
        self._enter()
        with self._lock:
            port = self._find(local)
        if port is not None and port.is_leaving:
            port.kept.is_over.wait(CLOSE_S)
        with self._lock:
            port = self._find(local)
            if port is None or port.is_leaving:
                port = self._open(local, call)
            elif port.call is not None:
                port.call = call
            return port.kept

    def release(self, call: Call) -> None:
        """Give back what is held for a call that has failed or ended."""
        self._enter()
        with self._lock:
            for port in self._ports:
                if port.call == call:
                    _give_back(port)

    def release_all(self, signalling: KeptSocket) -> None:
        """Give back what is held for the calls of one socket."""
        self._enter()
        with self._lock:
            for port in self._ports:
                if port.call is not None and port.call.signalling is signalling:
                    _give_back(port)

    def _find(self, local: Endpoint) -> _Port | None:
        self._ports = [port for port in self._ports if not port.is_gone]
        return next((port for port in self._ports if port.has(local)), None)

    def _open(self, local: Endpoint, call: Call) -> _Port:
        kept = KeptSocket(socket.AF_INET6 if local.is_ipv6 else socket.AF_INET, self._settings)
        try:
            kept.real.bind(socket_address(local))
            kept.start()
        except OSError:
            kept.close()
            raise
        held = [port for port in self._ports if port.call is not None and not port.is_leaving]
        if len(held) >= MOST_HELD:
            _give_back(held[0])
        port = _Port(kept, local, call)
        self._ports.append(port)
        kept.call(self._limit, port)
        return port

    def _limit(self, port: _Port) -> None:
        asyncio.get_running_loop().call_later(HOLD_S, self._give_up, port)

    def _give_up(self, port: _Port) -> None:
        with self._lock:
            _give_back(port)

    def _enter(self) -> None:
        """In a fork begin anew: the sockets stayed with the parent, whose threads may have held the lock."""
        if self._process != os.getpid():
            self._lock, self._ports, self._process = threading.Lock(), [], os.getpid()


def _give_back(port: _Port) -> None:
    if port.call is not None and not port.is_leaving:
        port.is_leaving = True
        port.kept.abandon()
