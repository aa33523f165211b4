"""What `natmap` says, in words for people and as JSON for programs (docs/natmap-json.md)."""

from __future__ import annotations

from nattools.cli.natmap_table import Keeping, Row
from nattools.cli.output import Page, warn
from nattools.endpoint import AddressClass, IPAddress, classify_address
from nattools.errors import NatToolsError, NoResponseError
from nattools.mapping.client import Survey
from nattools.mapping.model import MappingProtocol, PortMapping
from nattools.mapping.upkeep import ChangeKind, MappingChange

NAMES = {
    MappingProtocol.PCP: "PCP",
    MappingProtocol.NAT_PMP: "NAT-PMP",
    MappingProtocol.UPNP: "UPnP",
}
"""The protocols as they are written."""

_CLASS_WORDS = {
    AddressClass.PUBLIC: "a public address",
    AddressClass.PRIVATE: "a private address",
    AddressClass.SHARED: "an address of the carrier's NAT",
    AddressClass.LOOPBACK: "a loopback address",
    AddressClass.LINK_LOCAL: "a link-local address",
    AddressClass.MULTICAST: "a multicast address",
    AddressClass.UNSPECIFIED: "no address at all",
    AddressClass.RESERVED: "an address that is nobody's on the internet",
}
_ADVICE = {
    AddressClass.PRIVATE: (
        "another router is in front of it. Map the port there as well, make one of the two a bridge, or use "
        "a relay"
    ),
    AddressClass.SHARED: "ask the provider for a public IPv4 address, or use a relay or a session controller",
}
_ADVICE_ELSE = "look at the router's connection, or use a relay"

_LABEL_WIDTH = 10


def not_public(address: IPAddress | None) -> str | None:
    """Why nobody outside can reach what the router maps, and what to do; None where the address is public."""
    if address is None:
        return (
            "the router names no external address: it is not connected, or another NAT is in front of it. "
            "Nobody outside can reach a mapping; look at its connection, or use a relay"
        )
    address_class = classify_address(address)
    if address_class is AddressClass.PUBLIC:
        return None
    if address.version == 6:  # nothing is translated
        return (
            f"this machine has {address}, {_CLASS_WORDS[address_class]}: nobody outside can reach it; ask "
            "for a global IPv6 address"
        )
    return (
        f"the router itself has {address}, {_CLASS_WORDS[address_class]}: nobody outside can reach a "
        f"mapping; {_ADVICE.get(address_class, _ADVICE_ELSE)}"
    )


def warn_unless_public(address: IPAddress | None) -> None:
    """Say loudly on stderr that a mapping does not help."""
    problem = not_public(address)
    if problem is not None:
        warn("natmap", f"NOT REACHABLE FROM OUTSIDE: {problem}")


def sip_meaning(survey: Survey) -> str:
    """What it means for SIP, in one sentence."""
    if not survey.found:
        return (
            "No port can be mapped from here: see with natcheck whether STUN works, forward the ports in the "
            "router by hand, or use a relay."
        )
    if survey.address_class is not AddressClass.PUBLIC:
        return (
            "A mapping does not make a phone reachable: see with natcheck whether STUN works, or use a relay."
        )
    return (
        f"Map the SIP and RTP ports, and write {survey.external_address} with the mapped ports into Via, "
        "Contact and SDP: callers then reach this machine there."
    )


def reason(error: NatToolsError) -> str:
    """Why there is no router of a protocol, in few words."""
    return "no answer" if isinstance(error, NoResponseError) else str(error)


def duration(seconds: float | None) -> str:
    """A lease in the largest units that say it well: `45 s`, `59 min`, `2 h 5 min`, `7 days`, `for ever`."""
    if seconds is None:
        return "for ever"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' if days > 1 else ''}" + (f" {hours} h" if hours else "")
    if hours:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    return f"{minutes} min"


def mapping_line(mapping: PortMapping) -> str:
    """What leads where: `udp 11.22.33.2:5070 -> 192.168.0.108:5070`."""
    external = mapping.external or f"port {mapping.external_port}"
    return f"{mapping.transport.name.lower()} {external} -> {mapping.internal}"


def change_line(change: MappingChange) -> str:
    """One change of a kept mapping."""
    mapping = change.mapping
    name = f"{mapping.transport.name.lower()} {mapping.external or mapping.external_port}"
    if change.kind is ChangeKind.LOST:
        return f"lost {name}: {change.reason}"
    if change.kind is ChangeKind.CHANGED:
        former = change.previous.external or change.previous.external_port
        return f"changed to {name} (it was {former}): {change.reason}"
    lease = "for ever" if mapping.lease_s is None else f"for {duration(mapping.lease_s)}"
    return f"{change.kind.value} {name} {lease}: {change.reason}"


def owner(row: Row) -> str:
    """Who has a mapping."""
    pid = row.record.owner.pid if row.record else 0
    words = {
        Keeping.KEPT: f"this machine, kept by process {pid}",
        Keeping.LEASED: "this machine, left for its lease",
        Keeping.LEFT_BEHIND: f"this machine, left behind by process {pid}",
    }
    if row.keeping in words:
        return words[row.keeping]
    return "this machine" if row.is_ours else row.internal_text.rpartition(":")[0]


def show_survey(survey: Survey, *, interface: str | None) -> None:
    """`natmap status` for people."""
    page = Page(label_width=_LABEL_WIDTH)
    network = survey.network
    gateway = str(network.gateway) if network.gateway else "none: there is no default route"
    page.row("Gateway", gateway + (f" on {interface}" if interface and network.gateway else ""))
    page.row("This host", str(network.local or "unknown"))
    for protocol, name in NAMES.items():
        if (way := survey.found.get(protocol)) is not None:
            at = "" if way.gateway == network.gateway else f" at {way.gateway}"
            page.row(name, "yes" + at + (f": {way.model}" if way.model else ""), style="green")
        elif (error := survey.failed.get(protocol)) is not None:
            page.row(name, f"no: {reason(error)}")
        else:
            page.row(name, "not asked")
    if survey.found:
        problem = not_public(survey.external_address)
        if survey.external_address is None:
            page.row("External", "none")
        else:
            words = _CLASS_WORDS[classify_address(survey.external_address)]
            page.row(
                "External", f"{survey.external_address}, {words}", style="yellow" if problem else "green"
            )
        if problem is not None:
            page.row("Problem", _sentence(problem), style="bold yellow")
    page.row("For SIP", sip_meaning(survey), style="bold")


def show_mapping(mapping: PortMapping, *, kept: bool) -> None:
    """A new mapping, for people."""
    page = Page(label_width=_LABEL_WIDTH)
    page.row("Mapped", mapping_line(mapping), style="bold" if mapping.public is None else "bold green")
    page.row("By", f"{NAMES[mapping.protocol]}, router {mapping.gateway}")
    page.row("Lease", duration(mapping.lease_s))
    if not mapping.proven:
        page.row("Checked", "no: the router only said yes, and does not show the mapping")
    if kept:
        page.row("Kept", "until natmap is stopped (Ctrl-C)")
    else:
        ipv6 = "-6 " if mapping.internal.is_ipv6 else ""
        tcp = " --tcp" if mapping.transport.name == "TCP" else ""
        page.row("Remove", f"natmap remove {ipv6}{mapping.external_port}{tcp}")


def show_rows(rows: list[Row], *, gateway: IPAddress, external_address: IPAddress | None) -> None:
    """`natmap list` for people."""
    page = Page(label_width=_LABEL_WIDTH + 2)
    outside = "without an external address" if external_address is None else f"outside {external_address}"
    page.row("Router", f"{gateway}, {outside}")
    if not rows:
        page.row("Mappings", "none")
        return
    page.table(
        ("Port", "Leads to", "Owner", "Time left", "By", "Description"),
        [
            (
                f"{row.external_port}/{row.transport.name.lower()}",
                row.internal_text,
                owner(row),
                _left(row),
                NAMES[row.protocol],
                row.description,
            )
            for row in rows
        ],
    )


def _left(row: Row) -> str:
    if row.is_listed is False:
        return "gone: the router has it no more"
    if not row.is_enabled:
        return f"{duration(row.left_s)}, disabled"
    return duration(row.left_s)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def mapping_document(mapping: PortMapping) -> dict[str, object]:
    """A mapping as JSON. The nonce is a key, and is not in it."""
    return {
        "protocol": mapping.protocol.value,
        "transport": mapping.transport.name.lower(),
        "external": None if mapping.external is None else str(mapping.external),
        "external_port": mapping.external_port,
        "internal": str(mapping.internal),
        "lease": mapping.lease_s,
        "public": mapping.public is not None,
        "address_class": _class_document(mapping.external_address),
        "gateway": str(mapping.gateway),
        "description": mapping.description,
        "proven": mapping.proven,
    }


def row_document(row: Row, *, gateway: IPAddress, external_address: IPAddress | None) -> dict[str, object]:
    """A row of `natmap list` as JSON: a mapping, and whose it is."""
    mapping = row.record.mapping if row.record else None
    address = mapping.external_address if mapping and mapping.external_address else external_address
    external = None if address is None else f"[{address}]" if address.version == 6 else str(address)
    return {
        "protocol": row.protocol.value,
        "transport": row.transport.name.lower(),
        "external": None if external is None else f"{external}:{row.external_port}",
        "external_port": row.external_port,
        "internal": row.internal_text,
        "lease": None if row.left_s is None else round(row.left_s),
        "public": address is not None and classify_address(address) is AddressClass.PUBLIC,
        "address_class": _class_document(address),
        "gateway": str(mapping.gateway if mapping else gateway),
        "description": row.description,
        "owner": "this-machine" if row.is_ours else "other-host",
        "keeping": row.keeping.value,
        "process": row.record.owner.pid if row.record and row.keeping is not Keeping.LEASED else None,
        "listed": row.is_listed,
        "enabled": row.is_enabled,
        "remote_host": row.remote_host or None,
    }


def survey_document(survey: Survey, *, interface: str | None) -> dict[str, object]:
    """`natmap status` as JSON."""
    network = survey.network
    protocols: dict[str, object] = {}
    for protocol, way in survey.found.items():
        protocols[protocol.value] = {
            "found": True,
            "gateway": str(way.gateway),
            "local": str(way.local),
            "model": way.model or None,
        }
    for protocol, error in survey.failed.items():
        protocols[protocol.value] = {"found": False, "reason": str(error)}
    return {
        "schema": 1,
        "gateway": None if network.gateway is None else str(network.gateway),
        "interface": interface,
        "local": None if network.local is None else str(network.local),
        "protocols": protocols,
        "model": next((way.model for way in survey.found.values() if way.model), None),
        **address_document(survey.external_address),
        "problem": not_public(survey.external_address) if survey.found else None,
        "sip": sip_meaning(survey),
    }


def address_document(address: IPAddress | None) -> dict[str, object]:
    """An external address, and what kind of address it is."""
    address_class = None if address is None else classify_address(address)
    return {
        "external_address": None if address is None else str(address),
        "address_class": _class_document(address),
        "public": address_class is AddressClass.PUBLIC,
        "second_nat": None
        if address is None
        else address_class in (AddressClass.PRIVATE, AddressClass.SHARED),
    }


def _class_document(address: IPAddress | None) -> str | None:
    return None if address is None else classify_address(address).value
