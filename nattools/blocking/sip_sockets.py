"""Sockets for softphones that cannot be changed: what their SIP says of addresses is made true on the way."""

from __future__ import annotations

import os
import socket
from types import ModuleType
from typing import Unpack, cast

from nattools.binding.settings import Settings, SettingWords, read_settings
from nattools.blocking.ports import Ports
from nattools.blocking.public_socket import DEFAULT_BINDING_TIMEOUT_S, Data, PublicSocket
from nattools.blocking.signalling import Credentials, Signalling, is_sip
from nattools.net.listener import SocketAddress
from nattools.net.udp import endpoint_of, unbound_socket

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class SipSocket(PublicSocket):
    """A public socket whose SIP says where others reach the phone. `SipSockets` makes them.

    Messages that it sends have public endpoints in Via, Contact and SDP; in those that it receives are the
    phone's own again. The media ports that a message names are made public first. All else, RTP above all,
    passes as it is.

    So sending SIP waits for public endpoints, also where the socket does not block: `binding_timeout_s` at
    most. Where there can be none, as behind a symmetric NAT, it fails with `ConnectionError`, whose cause is
    the `BindingError`: nobody could call the phone, and its calls would be silent. The flows to SIP servers
    are kept open. When an endpoint changes, the registrar and the peers of calls are told, without the phone;
    while one is lost, the last stands in for it.
    """

    def __init__(
        self,
        family: int,
        proto: int,
        ports: Ports,
        *,
        settings: Settings,
        binding_timeout_s: float,
        credentials: Credentials | None,
    ) -> None:
        super().__init__(
            family, socket.SOCK_DGRAM, proto, settings=settings, binding_timeout_s=binding_timeout_s
        )
        self._ports = ports
        self._credentials = credentials
        self._options: list[tuple[int, int, int | Data]] = []
        self._signalling: Signalling | None = None

    def setsockopt(self, level: int, option: int, value: int | Data) -> None:
        """Set an option of the real socket. Raises `OSError`."""
        super().setsockopt(level, option, value)
        if not self._kept.is_started:
            self._options.append((level, option, value))

    def _bind(self, address: SocketAddress) -> None:
        held = None
        if not self._kept.is_started:
            held = self._ports.claim(address, is_ipv6=self.family == socket.AF_INET6)
        if held is None:
            super()._bind(address)
            self._ports.add(self._kept)
            return
        held.stand_in_for(self._kept)
        self._kept = held
        self.settimeout(self.gettimeout())
        for option in self._options:
            super().setsockopt(*option)

    def _transmit(self, data: Data, *flags_and_address: object) -> int:
        message = bytes(data)
        if not is_sip(message) or not flags_and_address:
            return super()._transmit(data, *flags_and_address)
        *flags, address = flags_and_address
        host, port = cast(SocketAddress, address)[:2]
        found = cast(SocketAddress, socket.getaddrinfo(host, port, self.family, socket.SOCK_DGRAM)[0][4])
        destination = endpoint_of(found, with_scope=True).unmapped
        signalling = self._signalling_here()
        super()._transmit(signalling.outgoing(message, destination), *flags, found)
        signalling.sent(message, destination)
        return len(message)

    def _signalling_here(self) -> Signalling:
        with self._lock:
            self._check()
            if self._signalling is None:
                self._signalling = Signalling(
                    self._kept,
                    self._ports,
                    binding_timeout_s=self._binding_timeout_s,
                    credentials=self._credentials,
                )
            return self._signalling


class SipSockets(ModuleType):
    """Stands in for the socket module in a softphone that opens its sockets with `socket.socket`.

    Its UDP sockets are `SipSocket`s, all others and everything else are the socket module's own::

        pyVoIP.SIP.socket = pyVoIP.RTP.socket = nattools.blocking.SipSockets()

    One phone has one: SIP and media must come from the same. The phone must write the address of this
    machine into its messages, not 0.0.0.0.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        binding_timeout_s: float = DEFAULT_BINDING_TIMEOUT_S,
        credentials: Credentials | None = None,
        **words: Unpack[SettingWords],
    ) -> None:
        """Bindings are found by `settings`, the user's own where none are given, and over them `words`.

        `binding_timeout_s` is how long sending a SIP message waits for the public endpoints that it needs.
        With the `credentials` of the phone's account it can register anew after a change, whatever the
        registrar asks for; without, perhaps not before the phone does so by itself. Raises `DecodeError` for
        settings that cannot be.
        """
        super().__init__("nattools.blocking.SipSockets", type(self).__doc__)
        if settings is None:
            settings = read_settings(None, os.environ)
        self._settings = settings.with_words(**words)
        self._binding_timeout_s = binding_timeout_s
        self._credentials = credentials
        self._ports = Ports(self._settings)

    def socket(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - the name that socket.socket has for it
        proto: int = -1,
        fileno: int | None = None,
    ) -> SipSocket | socket.socket:
        """What `socket.socket` does, whose defaults these are; a new UDP socket is a `SipSocket`."""
        if type != socket.SOCK_DGRAM or family not in (-1, *_IP_FAMILIES) or fileno is not None:
            return unbound_socket(family, type, proto, fileno)
        return SipSocket(
            socket.AF_INET if family == -1 else family,
            max(proto, 0),
            self._ports,
            settings=self._settings,
            binding_timeout_s=self._binding_timeout_s,
            credentials=self._credentials,
        )

    def __getattr__(self, name: str) -> object:
        return getattr(socket, name)

    def __repr__(self) -> str:
        return "<nattools.blocking.SipSockets>"
