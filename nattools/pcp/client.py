"""The clients of one gateway, by PCP (RFC 6887) and by NAT-PMP (RFC 6886), and its announcements."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Self, TypeVar

from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import DecodeError, EncodeError, LocalAddressError, PcpError
from nattools.net.interfaces import Interface
from nattools.net.udp import MulticastInterface, UdpSocket, local_address_towards
from nattools.pcp import natpmp, pcp
from nattools.pcp.announcement import Announcement, Announcements
from nattools.pcp.epoch import EpochRule, EpochTracker, natpmp_state_lost, pcp_state_lost
from nattools.pcp.pcp import ANNOUNCEMENT_PORT, PREFER_FAILURE, SERVER_PORT, Filter, third_party
from nattools.pcp.request import (
    ExternalAddressQuestion,
    Failed,
    GatewayRequest,
    MappingQuestion,
    PcpQuestion,
    Question,
    without_scope,
)

_LOG = logging.getLogger(__name__)
_ALL_HOSTS = IPv4Address("224.0.0.1")
_ALL_NODES = IPv6Address("ff02::1")
_HARD_ICMP_ERRORS = (errno.ECONNREFUSED, errno.ENOPROTOOPT, errno.EACCES)
"""Port or protocol unreachable, or forbidden (RFC 1122 §3.2.2.1); the others may pass."""

OnStateLost = Callable[[], None]
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Announced:
    """The gateway speaks PCP, and its state is `epoch_s` seconds old."""

    epoch_s: int


@dataclass(frozen=True, slots=True)
class MapResult:
    """A PCP mapping. The `nonce` is needed to renew and to remove it (RFC 6887 §11.2)."""

    nonce: bytes = field(repr=False)
    external: Endpoint
    lifetime_s: int
    epoch_s: int
    transport: TransportProtocol
    internal_port: int
    third_party: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class PeerResult:
    """A PCP mapping towards one `remote` peer: from where that sees this machine (RFC 6887 §12)."""

    nonce: bytes = field(repr=False)
    external: Endpoint
    remote: Endpoint
    lifetime_s: int
    epoch_s: int
    transport: TransportProtocol
    internal_port: int


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """What a NAT-PMP gateway says its external address is; None where it has none (0.0.0.0)."""

    address: IPv4Address | None
    epoch_s: int


@dataclass(frozen=True, slots=True)
class NatPmpMapping:
    """A NAT-PMP mapping."""

    external_port: int
    lifetime_s: int
    epoch_s: int
    transport: TransportProtocol
    internal_port: int


class _GatewayClient:
    """A socket towards one gateway; requests on it may run side by side.

    Each waits for `timeout_s`. `on_state_lost` is called when the gateway's epoch says that it forgot its
    mappings.
    """

    _epoch_rule: ClassVar[EpochRule]

    def __init__(self, gateway: Endpoint, timeout_s: float, on_state_lost: OnStateLost | None) -> None:
        self.gateway = gateway
        self.on_state_lost = on_state_lost
        self.timeout_s = timeout_s
        self._epoch = EpochTracker(type(self)._epoch_rule)
        self._active: dict[GatewayRequest[Any], asyncio.Event] = {}
        self._socket: UdpSocket

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        gateway: IPAddress,
        *,
        local_address: IPAddress | None = None,
        port: int = SERVER_PORT,
        timeout_s: float = 3.0,
        on_state_lost: OnStateLost | None = None,
    ) -> AsyncIterator[Self]:
        """Open a socket towards `gateway`; a link-local one carries its scope (`fe80::1%eth0`).

        `timeout_s` is for each request. Raises `LocalAddressError` when `local_address` is not this
        machine's, `TransportError` when there is no way to the gateway.
        """
        client = cls(Endpoint(gateway, port), timeout_s, on_state_lost)
        await client._open(local_address)
        try:
            yield client
        finally:
            client._socket.close()
            await asyncio.sleep(0)  # asyncio closes it for good in its next round

    @property
    def local(self) -> Endpoint:
        """Where requests are sent from."""
        return self._socket.local

    async def _open(self, local_address: IPAddress | None) -> None:
        gateway = self.gateway
        local = local_address_towards(gateway, local_address=_scoped(local_address, gateway.ip))
        self._socket = await UdpSocket.open(
            ipv6=gateway.is_ipv6,
            local_address=local,
            on_datagram=self._receive,
            on_error=self._icmp_error,
        )

    async def _ask(self, question: Question[AnswerT]) -> AnswerT:
        request = GatewayRequest(
            question, self.gateway, now=_now(), entropy=secrets.token_bytes, timeout_s=self.timeout_s
        )
        wake = self._active[request] = asyncio.Event()
        try:
            while True:
                wake.clear()
                for transmit in request.transmits():
                    self._socket.send(transmit.data, transmit.destination)
                event = request.next_event()  # an earlier request's ICMP error comes out of `send`
                if event is not None:
                    break
                try:
                    async with asyncio.timeout_at(request.timeout_at()):
                        await wake.wait()
                except TimeoutError:
                    request.handle_timeout(now=_now())
        finally:
            del self._active[request]
        self._take_epoch(event.epoch_s)
        if isinstance(event, Failed):
            raise event.error
        return event.answer

    def _take_epoch(self, epoch_s: int | None) -> None:
        if epoch_s is None or not self._epoch.update(epoch_s, now=_now()):
            return
        _LOG.info("%s lost its mappings: its epoch is now %d s", self.gateway.ip, epoch_s)
        if self.on_state_lost is not None:
            self.on_state_lost()

    def _receive(self, data: bytes, source: Endpoint) -> None:
        for request, wake in self._active.items():
            request.receive(data, source, now=_now())
            wake.set()

    def _icmp_error(self, destination: Endpoint | None, error: OSError) -> None:
        if destination is not None and without_scope(destination) != without_scope(self.gateway):
            return
        hard = destination is not None and error.errno in _HARD_ICMP_ERRORS
        reason = os.strerror(error.errno or 0).lower()
        if error.errno == errno.ECONNREFUSED:
            reason = f"nothing listens on UDP port {self.gateway.port} there (ICMP port unreachable)"
        for request, wake in self._active.items():
            request.handle_unreachable(reason, hard=hard)
            wake.set()


class PcpClient(_GatewayClient):
    """A PCP client of one gateway; make it with `async with PcpClient.open(...) as client`.

    Every request raises `PcpError` when the gateway refuses it, `NoResponseError` when it does not answer and
    another `TransportError` when it cannot be asked.
    """

    _epoch_rule = staticmethod(pcp_state_lost)

    async def announce(self) -> Announced:
        """Ask whether the gateway speaks PCP (RFC 6887 §14.1). NAT-PMP only is UNSUPP_VERSION."""
        response = await self._ask(self._question(pcp.Announce(), 0, (), "PCP ANNOUNCE request"))
        return Announced(response.epoch_s)

    async def map(
        self,
        internal_port: int,
        transport: TransportProtocol,
        *,
        suggested_external: Endpoint | None,
        lifetime_s: int,
        nonce: bytes | None = None,
        prefer_failure: bool = False,
        filters: Sequence[Filter] = (),
        third_party: IPAddress | None = None,
    ) -> MapResult:
        """Make a mapping, or renew the one that was made with `nonce` (RFC 6887 §11.1, §11.2.1).

        With `prefer_failure` only the suggested external port will do; miniupnpd 2.3.1 gives another all the
        same where the one suggested is already mapped. `filters` say who may send to the
        mapping, everybody if none; `third_party` has it made for another machine.
        Raises `EncodeError` for ports and lifetimes that cannot be asked for; to remove a mapping there is
        `unmap`.
        """
        _check_port(internal_port)
        if lifetime_s <= 0:
            raise EncodeError(f"a mapping for {lifetime_s} s cannot be asked for")
        options = [PREFER_FAILURE] if prefer_failure else []
        options += [each.option() for each in filters]
        return await self._map(
            pcp.Map(
                nonce or secrets.token_bytes(pcp.NONCE_BYTES),
                transport,
                internal_port,
                suggested_external or self._no_endpoint,
            ),
            lifetime_s,
            options,
            third_party,
            f"PCP MAP request for {transport.name} port {internal_port}",
        )

    async def unmap(self, mapping: MapResult) -> None:
        """Remove a mapping (RFC 6887 §15.1); one that is not there any more is no error."""
        _check_port(mapping.internal_port)
        try:
            await self._map(
                pcp.Map(mapping.nonce, mapping.transport, mapping.internal_port, self._no_endpoint),
                0,
                [],
                mapping.third_party,
                f"PCP request to remove the mapping of {mapping.transport.name} port {mapping.internal_port}",
            )
        except PcpError as error:
            # To remove takes no resources: so miniupnpd 2.3.1 says that there is no such mapping.
            if error.code != pcp.ResultCode.NO_RESOURCES:
                raise

    async def peer(
        self,
        internal_port: int,
        transport: TransportProtocol,
        remote: Endpoint,
        *,
        suggested_external: Endpoint | None = None,
        lifetime_s: int,
        nonce: bytes | None = None,
    ) -> PeerResult:
        """Learn, make or prolong the mapping that is used towards `remote` alone (RFC 6887 §12).

        Raises `EncodeError` for ports and lifetimes that cannot be asked for.
        """
        _check_port(internal_port)
        asked = pcp.Peer(
            nonce or secrets.token_bytes(pcp.NONCE_BYTES),
            transport,
            internal_port,
            suggested_external or self._no_endpoint,
            remote,
        )
        name = f"PCP PEER request for {transport.name} port {internal_port} towards {remote}"
        response = await self._ask(self._question(asked, lifetime_s, (), name))
        assert isinstance(response.body, pcp.Peer)
        return PeerResult(
            asked.nonce,
            response.body.external,
            remote,
            response.lifetime_s,
            response.epoch_s,
            transport,
            internal_port,
        )

    @property
    def _no_endpoint(self) -> Endpoint:
        return Endpoint(IPv6Address(0) if self.gateway.is_ipv6 else IPv4Address(0), 0)

    def _question(
        self, body: pcp.Body, lifetime_s: int, options: Sequence[pcp.Option], name: str
    ) -> PcpQuestion:
        request = pcp.Request(body, lifetime_s, self.local.ip, tuple(options))
        return PcpQuestion(request, name, allow_third_party=True)

    async def _map(
        self,
        asked: pcp.Map,
        lifetime_s: int,
        options: list[pcp.Option],
        for_whom: IPAddress | None,
        name: str,
    ) -> MapResult:
        if for_whom is not None:
            options = [third_party(for_whom), *options]
        response = await self._ask(self._question(asked, lifetime_s, options, name))
        assert isinstance(response.body, pcp.Map)
        return MapResult(
            nonce=asked.nonce,
            external=response.body.external,
            lifetime_s=response.lifetime_s,
            epoch_s=response.epoch_s,
            transport=TransportProtocol(asked.protocol),
            internal_port=asked.internal_port,
            third_party=for_whom,
        )


class NatPmpClient(_GatewayClient):
    """A NAT-PMP client of one gateway; make it with `async with NatPmpClient.open(...) as client`.

    Every request raises `PcpError` when the gateway refuses it, `NoResponseError` when it does not answer and
    another `TransportError` when it cannot be asked.
    """

    _epoch_rule = staticmethod(natpmp_state_lost)

    async def external_address(self) -> ExternalAddress:
        """Ask for the gateway's external address (RFC 6886 §3.2)."""
        response = await self._ask(ExternalAddressQuestion())
        address = None if response.address.is_unspecified else response.address
        return ExternalAddress(address, response.epoch_s)

    async def map(
        self, internal_port: int, transport: TransportProtocol, *, external_port: int, lifetime_s: int
    ) -> NatPmpMapping:
        """Make or renew a mapping, on `external_port` (0: any) or, if that is taken, another (RFC 6886 §3.3).

        Raises `EncodeError` for ports and lifetimes that cannot be asked for; to remove a mapping there is
        `unmap`.
        """
        _check_port(internal_port)
        if lifetime_s <= 0:
            raise EncodeError(f"a mapping for {lifetime_s} s cannot be asked for")
        request = natpmp.MappingRequest(transport, internal_port, external_port, lifetime_s)
        name = f"NAT-PMP request for a mapping of {transport.name} port {internal_port}"
        response = await self._ask(MappingQuestion(request, name))
        return NatPmpMapping(
            response.external_port, response.lifetime_s, response.epoch_s, transport, internal_port
        )

    async def unmap(self, internal_port: int, transport: TransportProtocol) -> None:
        """Remove the mapping of a port (RFC 6886 §3.4); one that is not there any more is no error."""
        _check_port(internal_port)
        request = natpmp.MappingRequest(transport, internal_port, 0, 0)
        name = f"NAT-PMP request to remove the mapping of {transport.name} port {internal_port}"
        await self._ask(MappingQuestion(request, name))


class AnnouncementListener:
    """Hears what a gateway tells everybody on its LAN (RFC 6887 §14.1.3, RFC 6886 §3.2.1)."""

    def __init__(self, gateway: IPAddress, on_announcement: Callable[[Announcement], None]) -> None:
        self._announcements = Announcements(gateway)
        self._on_announcement = on_announcement

    @classmethod
    @asynccontextmanager
    async def open(
        cls, gateway: IPAddress, interface: Interface, *, on_announcement: Callable[[Announcement], None]
    ) -> AsyncIterator[Self]:
        """Listen on 224.0.0.1 or ff02::1, port 5350, at `interface`; others on this machine may do so, too.

        Raises `LocalAddressError` when the port cannot be had, or the interface has no address of that kind.
        """
        listener = cls(gateway, on_announcement)
        ipv6 = gateway.version == 6
        socket = await UdpSocket.open(
            ipv6=ipv6,
            local_port=ANNOUNCEMENT_PORT,
            multicast=MulticastInterface(interface.index, _address_at(interface, gateway)),
            groups=[_ALL_NODES if ipv6 else _ALL_HOSTS],
            share_port=True,
            on_datagram=listener._receive,
        )
        try:
            yield listener
        finally:
            socket.close()
            await asyncio.sleep(0)  # asyncio closes it for good in its next round

    def _receive(self, data: bytes, source: Endpoint) -> None:
        try:
            announcement = self._announcements.receive(data, source, now=_now())
        except DecodeError as error:
            _LOG.info("an announcement of %s cannot be read: %s", source.ip, error)
            return
        if announcement is not None:
            self._on_announcement(announcement)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _check_port(port: int) -> None:
    """Port 0 would be all of them (RFC 6887 §11.1, RFC 6886 §3.4)."""
    if not 1 <= port <= 0xFFFF:
        raise EncodeError(f"port {port} is not between 1 and 65535")


def _scoped(address: IPAddress | None, gateway: IPAddress) -> IPAddress | None:
    """A link-local address with the scope of the gateway, without which it cannot be bound."""
    if not isinstance(address, IPv6Address) or not isinstance(gateway, IPv6Address):
        return address
    if address.scope_id or not (address.is_link_local and gateway.scope_id):
        return address
    return IPv6Address(f"{address}%{gateway.scope_id}")


def _address_at(interface: Interface, gateway: IPAddress) -> IPAddress:
    """The interface's own address nearest to the gateway."""
    own = [each for each in interface.addresses if each.version == gateway.version]
    if not own:
        raise LocalAddressError(
            f"{interface.name} has no IPv{gateway.version} address: {gateway} cannot be heard there"
        )
    return next((each for each in own if gateway in each.network), own[0]).ip
