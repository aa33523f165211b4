"""The actions of an Internet Gateway Device, as values: what goes in, and what comes back.

WANIPConnection:1 and :2 §2.5, WANPPPConnection:1 §2.4 (which has the same actions) and
WANIPv6FirewallControl:1 §2.5. The name of a class is the name of its action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar, Generic, TypeVar

from nattools.endpoint import AddressClass, Endpoint, IPAddress, TransportProtocol, classify_address
from nattools.errors import DecodeError, EncodeError
from nattools.upnp.soap import local_name, parse_xml, texts_in
from nattools.upnp.ssdp import printable

MOST_DESCRIPTION_CHARACTERS = 60
LONGEST_LEASE_S = 604_800
"""A week, the most that WANIPConnection:2 §2.3.16 grants; it takes 0 for this, too."""
LONGEST_PINHOLE_LEASE_S = 86_400
"""WANIPv6FirewallControl:1 §2.3.4."""
MOST_ENTRIES = 1000

Reply = Mapping[str, str]
"""The out arguments of an action, by name in lower case, as `soap.parse_reply` gives them."""

ResultT = TypeVar("ResultT")

_UINT32 = 0xFFFFFFFF
_ANY_PROTOCOL = 0xFFFF
_TRUE = frozenset({"1", "true", "yes"})
_FALSE = frozenset({"0", "false", "no"})


class Action(Generic[ResultT]):
    """A call of one action; `is_of_firewall` says that it is one of WANIPv6FirewallControl."""

    __slots__ = ()
    is_of_firewall: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name of the action."""
        return type(self).__name__

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return ()

    def parse(self, reply: Reply) -> ResultT:
        """Read the out arguments. Raises `DecodeError`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """What a WAN service says about its connection; `uptime_s` is None where it says nothing believable."""

    connection_status: str
    last_error: str
    uptime_s: int | None

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up; some routers say "Up" for it."""
        return self.connection_status.lower() in ("connected", "up")


@dataclass(frozen=True, slots=True)
class PortMappingEntry:
    """A row of the router's table of port mappings; `lease_s` is what is left, None for a permanent one.

    `remote_host` is empty for a mapping that is open to all. `internal_client` may be a host name. Texts are
    printable: any host of the LAN may have written them.
    """

    remote_host: str
    external_port: int
    transport: TransportProtocol
    internal_client: str
    internal_port: int
    enabled: bool
    description: str
    lease_s: int | None

    @property
    def internal(self) -> Endpoint | None:
        """Where the mapping leads; None where the router names no IP address."""
        try:
            return Endpoint.of(self.internal_client, self.internal_port)
        except DecodeError:
            return None


@dataclass(frozen=True, slots=True)
class FirewallStatus:
    """Whether the IPv6 firewall is on, and whether hosts may open pinholes in it."""

    enabled: bool
    inbound_pinhole_allowed: bool


@dataclass(frozen=True, slots=True)
class GetExternalIPAddress(Action[IPAddress | None]):
    """The router's outside address; None while it has none, which it says as "" or 0.0.0.0."""

    def parse(self, reply: Reply) -> IPAddress | None:
        """Read the address. Raises `DecodeError` for what is none."""
        text = _text(reply, "NewExternalIPAddress")
        if not text:
            return None
        try:
            address = ip_address("" if "%" in text else text)  # a scope could be any text
        except ValueError as error:
            raise DecodeError(f"the router's external address is said to be {text[:40]!r}") from error
        return None if address.is_unspecified else address


@dataclass(frozen=True, slots=True)
class GetStatusInfo(Action[StatusInfo]):
    """Whether the WAN connection is up, and for how long."""

    def parse(self, reply: Reply) -> StatusInfo:
        """Read the status; the uptime goes by "NewUpTime" on some routers, and is negative on others."""
        uptime = reply.get("newuptime", "")  # names are in lower case, so that both spellings are this one
        return StatusInfo(
            printable(_text(reply, "NewConnectionStatus")),
            printable(reply.get("newlastconnectionerror", "")),
            int(uptime) if _is_uint32(uptime) else None,
        )


@dataclass(frozen=True, slots=True)
class _Mapping(Action[ResultT]):
    """What AddPortMapping and AddAnyPortMapping have in common; `lease_s` None is for ever.

    Port 0 is refused here: to an IGD:1 it means all ports of the router.
    Raises `EncodeError` for values that the action cannot carry.
    """

    internal: Endpoint
    external_port: int
    transport: TransportProtocol
    lease_s: int | None
    description: str = ""
    remote_host: str = ""

    def __post_init__(self) -> None:
        _check_port(self.external_port, "external")
        _check_port(self.internal.port, "internal")
        _check_lease(self.lease_s, _UINT32)
        if not isinstance(self.internal.ip, IPv4Address):
            raise EncodeError(f"a port mapping leads to an IPv4 address, not to {self.internal.ip}")

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return (
            *_entry_key(self.remote_host, self.external_port, self.transport),
            ("NewInternalPort", str(self.internal.port)),
            ("NewInternalClient", str(self.internal.ip)),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", clean_description(self.description)),
            ("NewLeaseDuration", str(self.lease_s or 0)),
        )


@dataclass(frozen=True, slots=True)
class AddPortMapping(_Mapping[None]):
    """Map one external port, or make the mapping that is there already last longer."""

    def parse(self, reply: Reply) -> None:
        """Nothing comes back."""


@dataclass(frozen=True, slots=True)
class AddAnyPortMapping(_Mapping[int]):
    """Map the external port, or any other one if that is taken (WANIPConnection:2); gives the port."""

    def parse(self, reply: Reply) -> int:
        """Read the reserved port; the description of miniupnpd before 2.3.5 calls it NewExternalPort."""
        name = "NewReservedPort" if "newreservedport" in reply else "NewExternalPort"
        return _port(reply, name, least=1)


@dataclass(frozen=True, slots=True)
class DeletePortMapping(Action[None]):
    """Remove one mapping."""

    external_port: int
    transport: TransportProtocol
    remote_host: str = ""

    def __post_init__(self) -> None:
        _check_port(self.external_port, "external")

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return _entry_key(self.remote_host, self.external_port, self.transport)

    def parse(self, reply: Reply) -> None:
        """Nothing comes back."""


@dataclass(frozen=True, slots=True)
class DeletePortMappingRange(Action[None]):
    """Remove all mappings of a range (WANIPConnection:2); with `manage` also those of other hosts."""

    start_port: int
    end_port: int
    transport: TransportProtocol
    manage: bool = False

    def __post_init__(self) -> None:
        _check_range(self.start_port, self.end_port)

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return _range(self.start_port, self.end_port, self.transport, manage=self.manage)

    def parse(self, reply: Reply) -> None:
        """Nothing comes back."""


@dataclass(frozen=True, slots=True)
class GetGenericPortMappingEntry(Action[PortMappingEntry]):
    """One row of the table, by its index from 0; the walk ends with a SpecifiedArrayIndexInvalidError."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index <= 0xFFFF:
            raise EncodeError(f"index {self.index} is not between 0 and 65535")

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in argument."""
        return (("NewPortMappingIndex", str(self.index)),)

    def parse(self, reply: Reply) -> PortMappingEntry:
        """Read the row."""
        return _entry(reply)


@dataclass(frozen=True, slots=True)
class GetSpecificPortMappingEntry(Action[PortMappingEntry]):
    """The row of one external port; a NoSuchEntryInArrayError where there is none."""

    external_port: int
    transport: TransportProtocol
    remote_host: str = ""

    def __post_init__(self) -> None:
        _check_port(self.external_port, "external")

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return _entry_key(self.remote_host, self.external_port, self.transport)

    def parse(self, reply: Reply) -> PortMappingEntry:
        """Read the row; what was asked for does not come back."""
        asked = {name.lower(): text for name, text in self.arguments()}
        return _entry({**reply, **asked})


@dataclass(frozen=True, slots=True)
class GetListOfPortMappings(Action[list[PortMappingEntry]]):
    """The first `number` rows of a range (WANIPConnection:2); with `manage` also those of other hosts."""

    start_port: int
    end_port: int
    transport: TransportProtocol
    manage: bool = False
    number: int = MOST_ENTRIES

    def __post_init__(self) -> None:
        _check_range(self.start_port, self.end_port)
        if not 1 <= self.number <= MOST_ENTRIES:
            raise EncodeError(f"a list of {self.number} port mappings is not between 1 and {MOST_ENTRIES}")

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        wanted = _range(self.start_port, self.end_port, self.transport, manage=self.manage)
        return (*wanted, ("NewNumberOfPorts", str(self.number)))

    def parse(self, reply: Reply) -> list[PortMappingEntry]:
        """Read the listing, an XML document inside the argument.

        A row that cannot be read is left out: what one host had the router write must not hide the others.
        """
        listing = _text(reply, "NewPortListing")
        if not listing:
            return []
        entries: list[PortMappingEntry] = []
        for element in parse_xml(listing.encode("utf-8", "replace")).iter():
            if local_name(element) == "portmappingentry" and len(entries) < self.number:
                row = texts_in(element)
                row.setdefault("newportmappingdescription", row.get("newdescription", ""))
                row.setdefault("newleaseduration", row.get("newleasetime", ""))
                try:
                    entries.append(_entry(row))
                except DecodeError:
                    continue
        return entries


@dataclass(frozen=True, slots=True)
class GetFirewallStatus(Action[FirewallStatus]):
    """Whether the IPv6 firewall is on, and lets hosts open pinholes."""

    is_of_firewall = True

    def parse(self, reply: Reply) -> FirewallStatus:
        """Read both."""
        return FirewallStatus(
            _boolean(reply, "FirewallEnabled"),
            _boolean(reply, "InboundPinholeAllowed"),
        )


@dataclass(frozen=True, slots=True)
class AddPinhole(Action[int]):
    """Let packets in to an IPv6 host; gives the pinhole's id.

    A remote host, remote port, internal port or transport of None stands for any.
    Raises `EncodeError` for values that the action cannot carry.
    """

    is_of_firewall = True

    internal_client: IPv6Address
    internal_port: int | None
    transport: TransportProtocol | None
    lease_s: int
    remote_host: IPv6Address | None = None
    remote_port: int | None = None

    def __post_init__(self) -> None:
        for port, which in ((self.internal_port, "internal"), (self.remote_port, "remote")):
            if port is not None:
                _check_port(port, which)
        _check_lease(self.lease_s, LONGEST_PINHOLE_LEASE_S)

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return (
            ("RemoteHost", "" if self.remote_host is None else str(self.remote_host)),
            ("RemotePort", str(self.remote_port or 0)),
            ("InternalClient", str(self.internal_client)),
            ("InternalPort", str(self.internal_port or 0)),
            ("Protocol", str(_ANY_PROTOCOL if self.transport is None else int(self.transport))),
            ("LeaseTime", str(self.lease_s)),
        )

    def parse(self, reply: Reply) -> int:
        """Read the id."""
        return _number(reply, "UniqueID", 0, 0xFFFF)


@dataclass(frozen=True, slots=True)
class UpdatePinhole(Action[None]):
    """Give a pinhole a new lease."""

    is_of_firewall = True

    unique_id: int
    lease_s: int

    def __post_init__(self) -> None:
        _check_unique_id(self.unique_id)
        _check_lease(self.lease_s, LONGEST_PINHOLE_LEASE_S)

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in arguments, in the order of the specification."""
        return (("UniqueID", str(self.unique_id)), ("NewLeaseTime", str(self.lease_s)))

    def parse(self, reply: Reply) -> None:
        """Nothing comes back."""


@dataclass(frozen=True, slots=True)
class DeletePinhole(Action[None]):
    """Close a pinhole."""

    is_of_firewall = True

    unique_id: int

    def __post_init__(self) -> None:
        _check_unique_id(self.unique_id)

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in argument."""
        return (("UniqueID", str(self.unique_id)),)

    def parse(self, reply: Reply) -> None:
        """Nothing comes back."""


@dataclass(frozen=True, slots=True)
class GetPinholePackets(Action[int]):
    """How many packets have come in through a pinhole."""

    is_of_firewall = True

    unique_id: int

    def __post_init__(self) -> None:
        _check_unique_id(self.unique_id)

    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The in argument."""
        return (("UniqueID", str(self.unique_id)),)

    def parse(self, reply: Reply) -> int:
        """Read the number."""
        return _number(reply, "PinholePackets", 0, _UINT32)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A WAN service that could be asked for a mapping, and what it said about itself.

    `host` and `control` are where it is called, `udn` is its root device's; `status` is None where it did not
    say. `order` is the caller's own number for it.
    """

    host: IPAddress
    control: str
    udn: str
    service_type: str
    version: int
    status: StatusInfo | None
    external_address: IPAddress | None
    order: int

    @property
    def kind(self) -> str:
        """The service type without its version."""
        return self.service_type.rpartition(":")[0].lower()


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Order WAN services by how likely a mapping on them is of use, and leave doubles out.

    Connected with a public address comes first, then with another address, then without one, then what is not
    connected; among equals the higher version, then the caller's order. A FRITZ!Box that describes itself as
    IGD:1 and IGD:2 side by side is one router, while the two WAN devices of a MikroTik are two.
    """
    ranked: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (_rank(c), -c.version, c.order)):
        if not any(_is_same(candidate, other) for other in ranked):
            ranked.append(candidate)
    return ranked


def clean_description(text: str) -> str:
    """What of a description every router can keep: printable ASCII, at most 60 characters."""
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in " ".join(text.split()))
    return printable[:MOST_DESCRIPTION_CHARACTERS]


def _rank(candidate: Candidate) -> int:
    address, status = candidate.external_address, candidate.status
    if status is not None and not status.is_connected:
        return 3
    if address is None or classify_address(address) in (AddressClass.LOOPBACK, AddressClass.UNSPECIFIED):
        return 3 if status is None else 2
    return 0 if classify_address(address) is AddressClass.PUBLIC else 1


def _is_same(one: Candidate, other: Candidate) -> bool:
    """Whether both lead to the same table of mappings."""
    if (one.host, one.control) == (other.host, other.control):
        return True
    if one.external_address is None or one.external_address != other.external_address:
        return False
    return one.kind == other.kind and (one.host == other.host or (one.udn == other.udn != ""))


def _entry_key(
    remote_host: str, external_port: int, transport: TransportProtocol
) -> tuple[tuple[str, str], ...]:
    """What names a mapping. The protocol must be in upper case: routers take any other word as TCP."""
    return (
        ("NewRemoteHost", remote_host),
        ("NewExternalPort", str(external_port)),
        ("NewProtocol", transport.name),
    )


def _range(
    start_port: int, end_port: int, transport: TransportProtocol, *, manage: bool
) -> tuple[tuple[str, str], ...]:
    return (
        ("NewStartPort", str(start_port)),
        ("NewEndPort", str(end_port)),
        ("NewProtocol", transport.name),
        ("NewManage", "1" if manage else "0"),
    )


def _check_port(port: int, which: str) -> None:
    if not 1 <= port <= 0xFFFF:
        raise EncodeError(f"{which} port {port} is not between 1 and 65535")


def _check_range(start_port: int, end_port: int) -> None:
    _check_port(start_port, "first")
    _check_port(end_port, "last")
    if start_port > end_port:
        raise EncodeError(f"the first port, {start_port}, is behind the last, {end_port}")


def _check_lease(lease_s: int | None, longest_s: int) -> None:
    if lease_s is not None and not 1 <= lease_s <= longest_s:
        raise EncodeError(f"a lease of {lease_s} s is not between 1 and {longest_s} s")


def _check_unique_id(unique_id: int) -> None:
    if not 0 <= unique_id <= 0xFFFF:
        raise EncodeError(f"pinhole id {unique_id} is not between 0 and 65535")


def _entry(row: Reply) -> PortMappingEntry:
    protocol = _text(row, "NewProtocol").upper()
    if protocol not in TransportProtocol.__members__:
        raise DecodeError(f"the transport of a port mapping is said to be {protocol[:40]!r}")
    lease = row.get("newleaseduration") or "0"  # IGD:1 has routers without leases, which leave it empty
    if not _is_uint32(lease):
        raise DecodeError(f"the lease of a port mapping is said to be {lease[:40]!r}")
    return PortMappingEntry(
        remote_host=printable(row.get("newremotehost", "")),
        external_port=_port(row, "NewExternalPort", least=0),
        transport=TransportProtocol[protocol],
        internal_client=printable(_text(row, "NewInternalClient")),
        internal_port=_port(row, "NewInternalPort", least=0),
        enabled=_boolean(row, "NewEnabled") if "newenabled" in row else True,
        description=printable(row.get("newportmappingdescription", "")),
        lease_s=int(lease) or None,
    )


def _text(reply: Reply, name: str) -> str:
    text = reply.get(name.lower())
    if text is None:
        raise DecodeError(f"the reply has no {name}")
    return text


def _is_uint32(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _UINT32


def _number(reply: Reply, name: str, least: int, most: int) -> int:
    text = _text(reply, name)
    if not _is_uint32(text) or not least <= int(text) <= most:
        raise DecodeError(f"{name} is said to be {text[:40]!r}, not a number between {least} and {most}")
    return int(text)


def _port(reply: Reply, name: str, *, least: int) -> int:
    return _number(reply, name, least, 0xFFFF)


def _boolean(reply: Reply, name: str) -> bool:
    text = _text(reply, name).lower()
    if text not in _TRUE | _FALSE:
        raise DecodeError(f"{name} is said to be {text[:40]!r}, neither yes nor no")
    return text in _TRUE
