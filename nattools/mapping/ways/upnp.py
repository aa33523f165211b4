"""Mappings by UPnP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Protocol, Self

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import NatToolsError, NoRouterError, TransportError, UpnpError
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.way import Network, OnChange
from nattools.upnp.acquisition import Done
from nattools.upnp.client import ChangeKind, RouterChange, discover
from nattools.upnp.igd import PortMappingEntry
from nattools.upnp.wan_connection import WanConnection

_NEWS = {
    ChangeKind.RESTARTED: "the router restarted",
    ChangeKind.ADDRESS_CHANGED: "the router has another external address",
    ChangeKind.GONE: "the router says goodbye",
}


class Search(Protocol):
    """How WAN connections are found: `discover` of the client, or that of the library's."""

    async def __call__(
        self, *, gateway: IPAddress | None, interface: str | None, timeout_s: float
    ) -> Sequence[WanConnection]:
        """Search; the best is the first."""


class UpnpWay:
    """The best WAN connection of the UPnP routers that answered, and the others in case it refuses."""

    protocol = MappingProtocol.UPNP

    def __init__(self, found: Sequence[WanConnection]) -> None:
        self._found = found
        self._connection = found[0]
        self._watches = AsyncExitStack()

    @classmethod
    async def open(cls, network: Network, *, timeout_s: float, search: Search = discover) -> Self:
        """Search for routers. Raises `NoRouterError`, and what `search` does."""
        found = await search(
            gateway=network.gateway if network.gateway_is_named else None,
            interface=network.interface,
            timeout_s=timeout_s,
        )
        if not found:
            raise NoRouterError("no UPnP router answered the search")
        return cls(found)

    @property
    def gateway(self) -> IPAddress:
        """The router that is used."""
        return self._connection.host

    @property
    def local(self) -> IPAddress:
        """The address of this machine on the connection to it."""
        return self._connection.local

    @property
    def model(self) -> str:
        """Manufacturer and model, as the router writes them."""
        return self._connection.model

    @property
    def router(self) -> str:
        """The unique device name of its root device."""
        return self._connection.udn

    @property
    def known_external_address(self) -> IPAddress | None:
        """The external address, as it was when the router was found."""
        return self._connection.external_address

    def new_nonce(self) -> bytes:
        """None: UPnP knows whose a mapping is by its internal client."""
        return b""

    async def external_address(self) -> IPAddress | None:
        """Ask for it."""
        return await self._connection.external_ip_address()

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        """Make or renew a mapping on the first WAN connection that grants it."""
        refused: NatToolsError | None = None
        for connection in sorted(self._found, key=lambda connection: connection is not self._connection):
            internal = draft.internal
            if request.internal.ip.is_unspecified:
                internal = Endpoint(connection.local, internal.port)
            try:
                acquired = await self._acquire(connection, request, replace(draft, internal=internal))
            except NatToolsError as error:
                refused = refused or error
                continue
            self._connection = connection
            return replace(
                draft,
                internal=internal,
                external_port=acquired.external_port,
                external_address=await _address(connection),
                lease_s=acquired.lease_s,
                gateway=connection.host,
                router=connection.udn,
                proven=acquired.proven,
            )
        assert refused is not None
        raise refused

    async def _acquire(self, connection: WanConnection, request: MappingRequest, draft: PortMapping) -> Done:
        async def ask(external_port: int | None) -> Done:
            return await connection.acquire(
                draft.internal,
                draft.transport,
                external_port=external_port,
                lease_s=request.lease_s,
                description=request.description,
            )

        if request.external_port is None and draft.external_port != draft.internal.port:
            with suppress(UpnpError):  # the port that it had before comes first
                return await ask(draft.external_port)
        return await ask(request.external_port)

    async def release(self, mapping: PortMapping) -> None:
        """Remove a mapping, if it is still this machine's."""
        await self._connection.release(mapping.internal, mapping.transport, mapping.external_port)

    async def entries(self) -> list[PortMappingEntry] | None:
        """The router's whole table."""
        return await self._connection.entries()

    async def watch(self, on_change: OnChange) -> None:
        """Listen to the router's multicast announcements and events."""
        await self._watches.enter_async_context(self._connection.watch(teller(on_change)))

    async def close(self) -> None:
        """Stop listening, and let go of the routers."""
        await self._watches.aclose()
        for connection in self._found:
            connection.close()


def teller(on_change: OnChange) -> Callable[[RouterChange], None]:
    """What a watch calls, to have its news told in words."""
    return lambda change: on_change(_NEWS[change.kind])


async def _address(connection: WanConnection) -> IPAddress | None:
    """The external address after a mapping was made, whatever becomes of the question."""
    try:
        return await connection.external_ip_address()
    except TransportError:
        return connection.external_address
    except NatToolsError:
        return None
