"""Mappings by PCP and by its elder, NAT-PMP."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Self

from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import MappingError, NatToolsError, NoRouterError, PcpError, TransportError
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.way import Network, OnChange
from nattools.net.interfaces import Interface, interfaces
from nattools.pcp.client import AnnouncementListener, MapResult, NatPmpClient, PcpClient
from nattools.pcp.pcp import NONCE_BYTES, ResultCode
from nattools.upnp.igd import PortMappingEntry

_DYNAMIC_PORTS = range(49152, 65536)  # RFC 6335 §6
_SHORTEST_LEASE_S = 120  # RFC 6887 §15: a server should grant no less


class _GatewayWay:
    """What both protocols have in common: one gateway, and its announcements."""

    model = ""
    router = ""

    def __init__(self, gateway: IPAddress, local: IPAddress) -> None:
        self.gateway = gateway
        self.local = local
        self._open = AsyncExitStack()
        self._on_change: OnChange | None = None

    def _state_lost(self) -> None:
        if self._on_change is not None:
            self._on_change("the router lost its state: its epoch says so")

    async def watch(self, on_change: OnChange) -> None:
        """Listen to the router's announcements (RFC 6887 §14.1, RFC 6886 §3.2.1)."""
        self._on_change = on_change
        interface = _interface_of(self.local)
        if interface is None:
            return
        listener = AnnouncementListener.open(
            self.gateway,
            interface,
            on_announcement=lambda _: on_change("the router announced a restart or a new address"),
        )
        await self._open.enter_async_context(listener)

    async def entries(self) -> list[PortMappingEntry] | None:
        """None: neither protocol has a way to list mappings."""
        return None

    async def close(self) -> None:
        """Close every socket."""
        await self._open.aclose()


class PcpWay(_GatewayWay):
    """PCP (RFC 6887)."""

    protocol = MappingProtocol.PCP
    known_external_address: IPAddress | None = None

    @classmethod
    async def open(cls, network: Network, *, timeout_s: float) -> Self:
        """Ask the gateway whether it speaks PCP. Raises `NoRouterError`, `NoResponseError` or `PcpError`."""
        gateway, local = _of(network)
        way = cls(gateway, local)
        try:
            way._client = await way._open.enter_async_context(
                PcpClient.open(gateway, local_address=local, timeout_s=timeout_s)
            )
            way._client.on_state_lost = way._state_lost
            await way._client.announce()
        except BaseException:
            await way.close()
            raise
        return way

    _client: PcpClient

    def new_nonce(self) -> bytes:
        """The mapping nonce: who has it may renew and remove the mapping (RFC 6887 §11.2)."""
        return secrets.token_bytes(NONCE_BYTES)

    async def external_address(self) -> IPAddress | None:
        """Learn it from a short mapping, for want of another way (RFC 6887 §11.6).

        Of any port but the discard port that the RFC proposes: where the router's rules forbid ports below
        1024, miniupnpd tries all 65,535 external ports for it, and answers nobody meanwhile.
        """
        port = secrets.choice(_DYNAMIC_PORTS)
        result = await self._client.map(
            port, TransportProtocol.UDP, suggested_external=None, lifetime_s=_SHORTEST_LEASE_S
        )
        await self._client.unmap(result)
        self.known_external_address = result.external.ip
        return result.external.ip

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        """Make or renew a mapping."""
        lease_s = _lease_s(request, self.protocol)
        strict = request.external_port is not None
        unspecified = IPv4Address(0) if draft.gateway.version == 4 else type(draft.gateway)(0)
        suggested = Endpoint(draft.external_address or unspecified, draft.external_port)
        result = await self._map(draft, suggested, lease_s, prefer_failure=strict)
        if strict and result.external.port != request.external_port:
            if draft.external_address is None:  # else it is the mapping that was there before
                await self._client.unmap(result)
            raise _other_port(self.gateway, request, result.external.port)
        return replace(
            draft,
            external_port=result.external.port,
            external_address=None if result.external.ip.is_unspecified else result.external.ip,
            lease_s=result.lifetime_s,
            nonce=result.nonce,
        )

    async def _map(
        self, draft: PortMapping, suggested: Endpoint, lease_s: int, *, prefer_failure: bool
    ) -> MapResult:
        try:
            return await self._client.map(
                draft.internal.port,
                draft.transport,
                suggested_external=suggested,
                lifetime_s=lease_s,
                nonce=draft.nonce,
                prefer_failure=prefer_failure,
            )
        except PcpError as error:
            if not prefer_failure or error.code != ResultCode.UNSUPP_OPTION:
                raise
        return await self._map(draft, suggested, lease_s, prefer_failure=False)

    async def release(self, mapping: PortMapping) -> None:
        """Remove a mapping, with the nonce that it was made with."""
        await self._client.unmap(
            MapResult(
                nonce=mapping.nonce,
                external=Endpoint(mapping.external_address or mapping.internal.ip, mapping.external_port),
                lifetime_s=0,
                epoch_s=0,
                transport=mapping.transport,
                internal_port=mapping.internal.port,
            )
        )


class NatPmpWay(_GatewayWay):
    """NAT-PMP (RFC 6886)."""

    protocol = MappingProtocol.NAT_PMP

    @classmethod
    async def open(cls, network: Network, *, timeout_s: float) -> Self:
        """Ask the gateway for its address. Raises `NoRouterError`, `NoResponseError` or `PcpError`."""
        gateway, local = _of(network)
        if gateway.version == 6:
            raise NoRouterError("NAT-PMP knows IPv4 only: ask by PCP")
        way = cls(gateway, local)
        try:
            way._client = await way._open.enter_async_context(
                NatPmpClient.open(gateway, local_address=local, timeout_s=timeout_s)
            )
            way._client.on_state_lost = way._state_lost
            await way.external_address()
        except BaseException:
            await way.close()
            raise
        return way

    _client: NatPmpClient
    known_external_address: IPAddress | None = None

    def new_nonce(self) -> bytes:
        """None: NAT-PMP knows whose a mapping is by the address that asks."""
        return b""

    async def external_address(self) -> IPAddress | None:
        """Ask for it (RFC 6886 §3.2)."""
        self.known_external_address = (await self._client.external_address()).address
        return self.known_external_address

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        """Make or renew a mapping, then ask for the address that it is on."""
        lease_s = _lease_s(request, self.protocol)
        granted = await self._client.map(
            draft.internal.port, draft.transport, external_port=draft.external_port, lifetime_s=lease_s
        )
        if request.external_port not in (None, granted.external_port):
            if draft.external_address is None:
                await self._client.unmap(draft.internal.port, draft.transport)
            raise _other_port(self.gateway, request, granted.external_port)
        return replace(
            draft,
            external_port=granted.external_port,
            external_address=await self._address_of_mapping(),
            lease_s=granted.lifetime_s,
        )

    async def _address_of_mapping(self) -> IPAddress | None:
        """The external address after a mapping was made, whatever becomes of the question."""
        try:
            return await self.external_address()
        except TransportError:
            return self.known_external_address
        except NatToolsError:
            return None

    async def release(self, mapping: PortMapping) -> None:
        """Remove a mapping."""
        await self._client.unmap(mapping.internal.port, mapping.transport)


def _of(network: Network) -> tuple[IPAddress, IPAddress]:
    if network.gateway is None or network.local is None:
        raise NoRouterError("there is no default route to a gateway: name one")
    return network.gateway, network.local


def _interface_of(local: IPAddress) -> Interface | None:
    for interface in interfaces():
        if any(address.ip == local for address in interface.addresses):
            return interface
    return None


def _lease_s(request: MappingRequest, protocol: MappingProtocol) -> int:
    if request.lease_s is None:
        raise MappingError(f"{protocol.value} grants leases only: give one, or ask by UPnP")
    return request.lease_s


def _other_port(gateway: IPAddress, request: MappingRequest, offered: int) -> MappingError:
    return MappingError(
        f"{gateway} did not give external port {request.external_port} to port {request.internal.port}, but "
        f"{offered}: it is taken, not allowed, or the port has that mapping already; remove that, ask for "
        "another, or for any"
    )
