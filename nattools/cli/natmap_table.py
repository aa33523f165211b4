"""The rows of `natmap list`: the router's table of port mappings joined with this machine's own records.

The router shows who a mapping leads to and, to UPnP, how long it lasts; the records know by which protocol it
was made and by which process, and they alone know the PCP and NAT-PMP mappings of routers that list none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.mapping.model import MappingProtocol, PortMapping
from nattools.mapping.state import Owner, Record
from nattools.upnp.igd import PortMappingEntry

_NONCE = re.compile(r"PCP MAP [0-9a-f]{24}\b")
"""miniupnpd shows the nonce of a PCP mapping in its description; with it anybody could remove the mapping."""


class Keeping(Enum):
    """What this machine's record says of a mapping."""

    KEPT = "kept"  # a process renews it, and removes it at its end
    LEASED = "leased"  # left on the router for its lease
    LEFT_BEHIND = "left-behind"  # its process was killed before it could remove it
    NOT_RECORDED = "not-recorded"  # another program's, or another host's


@dataclass(frozen=True, slots=True)
class Row:
    """One mapping on the router.

    `internal` is None where the router names a host instead of an address; `internal_text` is what it says.
    `left_s` is what is left of the lease, None for a mapping that stays until it is removed. `is_listed` is
    None where the router has no table to look it up in.
    """

    protocol: MappingProtocol
    transport: TransportProtocol
    external_port: int
    internal: Endpoint | None
    internal_text: str
    is_ours: bool
    left_s: float | None
    description: str
    keeping: Keeping = Keeping.NOT_RECORDED
    record: Record | None = None
    is_listed: bool | None = True
    is_enabled: bool = True
    remote_host: str = ""

    def mapping(self, gateway: IPAddress) -> PortMapping | None:
        """What to release; None where it leads to a host without an address."""
        if self.record is not None:
            return self.record.mapping
        if self.internal is None:
            return None
        return PortMapping(
            protocol=self.protocol,
            transport=self.transport,
            internal=self.internal,
            external_port=self.external_port,
            external_address=None,
            lease_s=None,
            gateway=gateway,
            description=self.description,
        )


def rows(
    entries: Iterable[PortMappingEntry] | None,
    records: Iterable[Record],
    *,
    table_of: IPAddress | None,
    own_addresses: Collection[IPAddress],
    is_running: Callable[[Owner], bool],
    wall_clock_s: float,
) -> list[Row]:
    """Join the table of the router `table_of`, None where it shows none, with the records.

    `wall_clock_s` is in seconds since 1970, as records are.
    """
    unmatched = list(records)
    found: list[Row] = []
    for entry in entries or ():
        record = next((r for r in unmatched if r.mapping.gateway == table_of and _is_of(entry, r)), None)
        if record is not None:
            unmatched.remove(record)
        found.append(_listed(entry, record, own_addresses, is_running))
    for record in unmatched:
        mapping, expires_at = record.mapping, record.expires_at()
        # Of PCP's and NAT-PMP's mappings some routers' UPnP shows nothing: missing there says nothing.
        in_doubt = (
            entries is None or table_of != mapping.gateway or mapping.protocol is not MappingProtocol.UPNP
        )
        found.append(
            Row(
                protocol=mapping.protocol,
                transport=mapping.transport,
                external_port=mapping.external_port,
                internal=mapping.internal,
                internal_text=str(mapping.internal),
                is_ours=True,
                left_s=None if expires_at is None else max(expires_at - wall_clock_s, 0),
                description=mapping.description,
                keeping=_keeping(record, is_running),
                record=record,
                is_listed=None if in_doubt else False,
            )
        )
    return sorted(found, key=lambda row: (row.external_port, row.transport))


def _is_of(entry: PortMappingEntry, record: Record) -> bool:
    mapping = record.mapping
    return (entry.transport, entry.external_port, entry.internal) == (
        mapping.transport,
        mapping.external_port,
        mapping.internal,
    )


def _listed(
    entry: PortMappingEntry,
    record: Record | None,
    own_addresses: Collection[IPAddress],
    is_running: Callable[[Owner], bool],
) -> Row:
    internal = entry.internal
    return Row(
        protocol=MappingProtocol.UPNP if record is None else record.mapping.protocol,
        transport=entry.transport,
        external_port=entry.external_port,
        internal=internal,
        internal_text=f"{entry.internal_client}:{entry.internal_port}",
        is_ours=internal is not None and internal.ip in own_addresses,
        left_s=entry.lease_s,
        description=record.mapping.description if record else _NONCE.sub("PCP MAP", entry.description),
        keeping=_keeping(record, is_running),
        record=record,
        is_enabled=entry.enabled,
        remote_host=entry.remote_host,
    )


def _keeping(record: Record | None, is_running: Callable[[Owner], bool]) -> Keeping:
    if record is None:
        return Keeping.NOT_RECORDED
    if is_running(record.owner):
        return Keeping.KEPT if record.kept else Keeping.LEASED
    return Keeping.LEFT_BEHIND if record.kept or not record.granted else Keeping.LEASED
