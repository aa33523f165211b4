"""The router's own word: a port of its public address, made with PCP, NAT-PMP or UPnP and kept there."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

from nattools.binding.model import Claim, Method, Source
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, MappingError, NatToolsError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import DEFAULT_LEASE_S, MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.upkeep import ChangeKind, MappingChange
from nattools.net.interfaces import interface_of

_LOG = logging.getLogger(__name__)

_PROTOCOLS = {
    Method.PCP: (MappingProtocol.PCP, MappingProtocol.NAT_PMP),
    Method.NAT_PMP: (MappingProtocol.NAT_PMP,),
    Method.UPNP: (MappingProtocol.UPNP,),
}


def protocols_of(methods: Sequence[Method]) -> list[MappingProtocol]:
    """What a router is asked by for these methods, in their order; nothing for those without a router."""
    return list(dict.fromkeys(protocol for method in methods for protocol in _PROTOCOLS.get(method, ())))


class RouterProvider:
    """The mappings of many sockets at one router, by one client that keeps them all."""

    def __init__(self, client: MappingClient, *, lease_s: int = DEFAULT_LEASE_S) -> None:
        self._client = client
        self._lease_s = lease_s
        self._mappings: dict[Endpoint, PortMapping] = {}
        self._told: dict[Endpoint, Claim | None] = {}

    @property
    def source(self) -> Source:
        """Which one it is."""
        return Source.ROUTER

    async def acquire(self, local: Endpoint) -> Claim:
        """Have the router map a port to `local`; where it does so already, have it say so again.

        Raises `MappingError` or `TransportError` where no router does, and `BindingError` where the router's
        address is not the internet's, or `local` not this machine's.
        """
        if local in self._mappings:
            return await self._renew(local)
        _check_own(local)
        mapping = await self._client.acquire(MappingRequest(local, lease_s=self._lease_s))
        try:
            claim = _claim(mapping)
        except BindingError:
            await self._give_back(mapping)
            raise
        self._mappings[local], self._told[local] = mapping, claim
        return claim

    async def renew(self, claim: Claim) -> Claim:
        """Have the router renew the mapping now. Raises what `acquire` does."""
        return await self.acquire(self._asked_for(claim.local))

    async def release(self, claim: Claim) -> None:
        """Have the router remove the mapping. Raises `MappingError` or `TransportError`."""
        local = self._asked_for(claim.local)
        mapping = self._mappings.pop(local, None)
        self._told.pop(local, None)
        if mapping is not None:
            await self._client.release(mapping)

    async def news(self) -> AsyncIterator[tuple[Endpoint, Claim | NatToolsError]]:
        """What has become of mappings without anybody asking, until the client is closed; for one reader.

        The endpoint is the one that `acquire` was given. An error says that there is nothing now; the client
        goes on trying, and what comes of that is news as well.
        """
        async for change in self._client.changes():
            local = self._asked_for(change.previous.internal)
            if local not in self._mappings:
                continue  # released in the meantime
            told = self._read(local, change)
            if told is not None:
                yield local, told

    def _read(self, local: Endpoint, change: MappingChange) -> Claim | NatToolsError | None:
        """The claim or error in a change; None where it says what was told already."""
        former = self._told.get(local)
        self._mappings[local] = change.mapping
        if change.kind is ChangeKind.LOST:
            self._told[local] = None
            return MappingError(
                f"{change.mapping.gateway} maps UDP port {local.port} no longer: {change.reason}"
            )
        try:
            claim = _claim(change.mapping)
        except BindingError as error:
            self._told[local] = None
            return error if former is not None else None
        self._told[local] = claim
        if former is not None and _gist(former) == _gist(claim):
            return None
        return claim

    async def _renew(self, local: Endpoint) -> Claim:
        mapping = self._mappings[local]
        try:
            _check_own(local)
        except BindingError:
            del self._mappings[local], self._told[local]
            await self._give_back(mapping)
            raise
        self._told[local] = None  # an error is told by raising it
        mapping = await self._client.renew(mapping)
        if local not in self._mappings:
            await self._give_back(mapping)
            raise MappingError(f"UDP port {local.port} was released while the router was asked to renew it")
        self._mappings[local] = mapping
        claim = self._told[local] = _claim(mapping)
        return claim

    def _asked_for(self, local: Endpoint) -> Endpoint:
        """The endpoint that a mapping to `local` was asked for with: that, or any address and its port."""
        if local in self._mappings:
            return local
        for asked in self._mappings:
            if asked.ip.is_unspecified and asked.port == local.port and asked.is_ipv6 == local.is_ipv6:
                return asked
        return local

    async def _give_back(self, mapping: PortMapping) -> None:
        try:
            await self._client.release(mapping)
        except NatToolsError as error:
            _LOG.warning("UDP port %d stays mapped on %s: %s", mapping.internal.port, mapping.gateway, error)


def _claim(mapping: PortMapping) -> Claim:
    public = mapping.public
    if public is None:
        raise BindingError(_why_not_public(mapping))
    method = Method(mapping.protocol.value)
    word = f"the router {mapping.gateway} maps {public} to {mapping.internal} ({method.value})"
    return Claim(method, mapping.internal, public, word, lease_s=mapping.lease_s)


def _why_not_public(mapping: PortMapping) -> str:
    address = mapping.external_address
    if address is None:
        return (
            f"the router {mapping.gateway} has no public address: see whether it is connected to the internet"
        )
    if mapping.behind_second_nat:
        return (
            f"the router's own address {address} is not public: there is a second NAT in front of it. "
            "Forward the port in that NAT as well, or ask the internet provider for a public address"
        )
    return (
        f"the router's own address {address} is not one that the internet knows: see how it is connected, "
        "and what it is told to say"
    )


def _check_own(local: Endpoint) -> None:
    """Raise `BindingError` where a router must not be told a socket's address: it might be a stranger's."""
    if local.ip.is_loopback:
        raise BindingError(f"{local.ip} is reached from this machine alone: bind the socket to any address")
    if not local.ip.is_unspecified and interface_of(local.ip) is None:
        raise BindingError(
            f"{local.ip} is not an address of this machine, or no longer: bind the socket to another, "
            "or to any address"
        )


def _gist(claim: Claim) -> tuple[Method, Endpoint, Endpoint]:
    """What is news where it changes; a new lease is none."""
    return claim.method, claim.local, claim.public
