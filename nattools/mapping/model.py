"""What a port mapping is, whoever made it; what is asked of a router, and what the router is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nattools.endpoint import AddressClass, Endpoint, IPAddress, TransportProtocol, classify_address

DEFAULT_LEASE_S = 3600
LONGEST_LEASE_S = 0xFFFFFFFF

MappingKey = tuple[Endpoint, TransportProtocol]


class MappingProtocol(Enum):
    """How a router is asked for a mapping, from the best to the oldest."""

    PCP = "pcp"
    NAT_PMP = "nat-pmp"
    UPNP = "upnp"


@dataclass(frozen=True, slots=True)
class MappingRequest:
    """What is wanted of the router: that what arrives at one of its ports comes to `internal`.

    The unspecified address as `internal` is this machine's own, towards the router. With an `external_port`
    only that one will do; without, the internal port's number is asked for first, and then any. A mapping
    with `lease_s` None stays for ever; only UPnP has those.
    """

    internal: Endpoint
    transport: TransportProtocol = TransportProtocol.UDP
    external_port: int | None = None
    lease_s: int | None = DEFAULT_LEASE_S
    description: str = "nattools"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A mapping as the router granted it.

    `external_address` is what the router says its own outside address is, None if it names none; see
    `public`. `lease_s` is the granted lease, None for a mapping that stays until it is removed. `proven` says
    whether the router has confirmed it beyond saying yes. `router` is the UPnP router's unique device name,
    `nonce` the PCP mapping nonce or the pinhole's id, without which nobody can renew or remove the mapping
    (RFC 6887 §11.2, WANIPv6FirewallControl:1).
    """

    protocol: MappingProtocol
    transport: TransportProtocol
    internal: Endpoint
    external_port: int
    external_address: IPAddress | None
    lease_s: int | None
    gateway: IPAddress
    description: str = ""
    proven: bool = True
    router: str = ""
    nonce: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> MappingKey:
        """What the mapping is of: an internal endpoint has one mapping for each transport protocol."""
        return self.internal, self.transport

    @property
    def external(self) -> Endpoint | None:
        """The router's side of the mapping; None while the router has no address."""
        if self.external_address is None:
            return None
        return Endpoint(self.external_address, self.external_port)

    @property
    def address_class(self) -> AddressClass | None:
        """What kind of address the router has; None while it has none."""
        return None if self.external_address is None else classify_address(self.external_address)

    @property
    def public(self) -> Endpoint | None:
        """The endpoint that others can send to, None unless the router's address is a public one.

        That the address is public is what the router says. A router whose address is not the internet's is
        behind a second NAT, and the mapping reaches only as far as that.
        """
        return self.external if self.address_class is AddressClass.PUBLIC else None

    @property
    def behind_second_nat(self) -> bool:
        """Whether the router has an address that is not public: there is another NAT in front of it."""
        return self.address_class in (AddressClass.PRIVATE, AddressClass.SHARED)
