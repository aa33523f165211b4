"""What the mapping client needs of each way to a mapping, and what it knows of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nattools.endpoint import Endpoint, IPAddress
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.upnp.igd import PortMappingEntry, clean_description

OnChange = Callable[[str], None]
"""Gets the reason why the router's mappings are in doubt."""


@dataclass(frozen=True, slots=True)
class Network:
    """Where routers are looked for.

    `gateway` is the default route's unless the user named one, which `gateway_is_named` says: then only that
    host counts. `local` is this machine's address towards it; both are None without a default route. With
    `ipv6` the router is asked to let packets in, since it has nothing to translate.
    """

    interface: str | None
    gateway: IPAddress | None
    local: IPAddress | None
    gateway_is_named: bool = False
    ipv6: bool = False


class Way(Protocol):
    """One protocol of one router, which has answered in it."""

    @property
    def protocol(self) -> MappingProtocol:
        """How the router is asked."""

    @property
    def gateway(self) -> IPAddress:
        """The router's address on this side."""

    @property
    def local(self) -> IPAddress:
        """The address of this machine towards the router."""

    @property
    def model(self) -> str:
        """What the router says it is, or nothing."""

    @property
    def known_external_address(self) -> IPAddress | None:
        """The external address, if the router has told it without being asked for it."""

    @property
    def router(self) -> str:
        """The name by which the router is known again, or nothing."""

    def new_nonce(self) -> bytes:
        """What a new mapping is asked for with."""

    async def external_address(self) -> IPAddress | None:
        """Ask the router for its external address; None if it has none."""

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        """Make or renew a mapping; `draft` is the mapping as it was, or as it is hoped to be."""

    async def release(self, mapping: PortMapping) -> None:
        """Remove a mapping of this machine's. One that is not there any more is no error."""

    async def entries(self) -> list[PortMappingEntry] | None:
        """The router's table of mappings; None where the protocol has no way to ask for it."""

    async def watch(self, on_change: OnChange) -> None:
        """Start listening for news of the router."""

    async def close(self) -> None:
        """Stop listening, and close every socket."""


def draft(way: Way, request: MappingRequest) -> PortMapping:
    """The mapping that is hoped for: the external port as asked for, or the internal one's number."""
    internal = request.internal
    if internal.ip.is_unspecified:
        internal = Endpoint(way.local, internal.port)
    return PortMapping(
        protocol=way.protocol,
        transport=request.transport,
        internal=internal,
        external_port=request.external_port or internal.port,
        external_address=None,
        lease_s=request.lease_s,
        gateway=way.gateway,
        description=clean_description(request.description),
        router=way.router,
        nonce=way.new_nonce(),
    )
