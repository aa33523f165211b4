"""Pinholes in the firewall of an IPv6 router, which has nothing to translate (WANIPv6FirewallControl:1)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Self

from nattools.endpoint import IPAddress
from nattools.errors import MappingError, NatToolsError, NoRouterError, UpnpError
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.way import Network, OnChange
from nattools.mapping.ways.upnp import teller
from nattools.upnp.client import Igd, discover
from nattools.upnp.faults import InvalidArgsError, NoSuchEntryError
from nattools.upnp.igd import (
    LONGEST_PINHOLE_LEASE_S,
    AddPinhole,
    DeletePinhole,
    GetFirewallStatus,
    GetPinholePackets,
    PortMappingEntry,
    UpdatePinhole,
)

_GONE = (NoSuchEntryError, InvalidArgsError)  # the second is what miniupnpd says


class PinholeWay:
    """The IPv6 firewall of a UPnP router; the external endpoint of a mapping is the internal one."""

    protocol = MappingProtocol.UPNP

    def __init__(self, igd: Igd) -> None:
        self._igd = igd
        self._watches = AsyncExitStack()

    @classmethod
    async def open(cls, network: Network, *, timeout_s: float) -> Self:
        """Search for a router with such a firewall, over IPv6. Raises `NoRouterError`."""
        found = await discover(
            gateway=network.gateway if network.gateway_is_named else None,
            interface=network.interface,
            ipv6=True,
            timeout_s=timeout_s,
        )
        refused: NatToolsError = NoRouterError("no UPnP router answered the search over IPv6")
        for igd in found:
            if igd.firewall is None:
                refused = NoRouterError(f"{igd} lets nobody open its IPv6 firewall by UPnP")
                continue
            try:
                status = await igd.call(GetFirewallStatus())
            except NatToolsError as error:
                refused = error
                continue
            if status.inbound_pinhole_allowed:
                return cls(igd)
            refused = NoRouterError(f"{igd} allows no pinholes in its IPv6 firewall: allow them there")
        raise refused

    @property
    def gateway(self) -> IPAddress:
        """The router that is used."""
        return self._igd.host

    @property
    def local(self) -> IPAddress:
        """The address of this machine on the connection to it: miniupnpd opens pinholes to no other."""
        return self._igd.local

    @property
    def model(self) -> str:
        """Manufacturer and model, as the router writes them."""
        return self._igd.model

    @property
    def router(self) -> str:
        """The unique device name of its root device."""
        return self._igd.description.udn

    @property
    def known_external_address(self) -> IPAddress | None:
        """The address of this machine: nothing is translated."""
        return self._igd.local

    def new_nonce(self) -> bytes:
        """None: the router gives a pinhole its id."""
        return b""

    async def external_address(self) -> IPAddress | None:
        """The address of this machine: nothing is translated."""
        return self._igd.local

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        """Open a pinhole, or give the one that is there a new lease."""
        if request.lease_s is None:
            raise MappingError("a pinhole in an IPv6 firewall has a lease of a day at most: give a lease")
        if request.external_port not in (None, draft.internal.port):
            raise MappingError("IPv6 translates no ports: the external port is the internal one")
        if not isinstance(draft.internal.ip, IPv6Address):
            raise MappingError(f"{draft.internal} is no IPv6 endpoint")
        lease_s = min(request.lease_s, LONGEST_PINHOLE_LEASE_S)
        unique_id = await self._renewed(draft, lease_s)
        if unique_id is None:
            unique_id = await self._igd.call(
                AddPinhole(draft.internal.ip, draft.internal.port, draft.transport, lease_s)
            )
        try:
            await self._igd.call(GetPinholePackets(unique_id))
            proven = True
        except UpnpError:
            proven = False
        return replace(
            draft,
            external_port=draft.internal.port,
            external_address=draft.internal.ip,
            lease_s=lease_s,
            proven=proven,
            nonce=str(unique_id).encode(),
        )

    async def _renewed(self, draft: PortMapping, lease_s: int) -> int | None:
        """The id of the pinhole, if it is still there and has a new lease now."""
        unique_id = _unique_id(draft)
        if unique_id is None:
            return None
        try:
            await self._igd.call(UpdatePinhole(unique_id, lease_s))
        except _GONE:
            return None
        return unique_id

    async def release(self, mapping: PortMapping) -> None:
        """Close the pinhole."""
        unique_id = _unique_id(mapping)
        if unique_id is None:
            return
        try:
            await self._igd.call(DeletePinhole(unique_id))
        except _GONE:
            return

    async def entries(self) -> list[PortMappingEntry] | None:
        """None: a router does not list its pinholes."""
        return None

    async def watch(self, on_change: OnChange) -> None:
        """Listen to the router's multicast announcements and events."""
        await self._watches.enter_async_context(self._igd.watch(teller(on_change)))

    async def close(self) -> None:
        """Stop listening, and let go of the router."""
        await self._watches.aclose()
        self._igd.close()


def _unique_id(mapping: PortMapping) -> int | None:
    return int(mapping.nonce) if mapping.nonce.isdigit() and len(mapping.nonce) <= 5 else None
