"""The rows of `natmap list`: whose each mapping is, and what this machine's records add to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nattools.cli.natmap_table import Keeping, Row, rows
from nattools.endpoint import Endpoint, TransportProtocol
from nattools.mapping.model import MappingProtocol, PortMapping
from nattools.mapping.state import Owner, Record
from nattools.upnp.igd import PortMappingEntry

ROUTER, OWN = ip_address("192.168.0.1"), ip_address("192.168.0.108")
NONCE = bytes(range(12))
ENTRY = PortMappingEntry(
    "", 5060, TransportProtocol.UDP, "192.168.0.108", 5070, enabled=True, description="a phone", lease_s=1800
)
MAPPING = PortMapping(
    protocol=MappingProtocol.PCP,
    transport=TransportProtocol.UDP,
    internal=Endpoint(OWN, 5070),
    external_port=5060,
    external_address=ip_address("11.22.33.2"),
    lease_s=3600,
    gateway=ROUTER,
    description="a phone",
    nonce=NONCE,
)
ALIVE, GONE = Owner(10, 0.0), Owner(11, 0.0)
RECORD = Record("1", MAPPING, ALIVE, made_at=1000.0, kept=True, granted=True)


def read(entries: Sequence[PortMappingEntry] | None = None, records: Sequence[Record] = ()) -> list[Row]:
    return rows(
        entries,
        records,
        table_of=None if entries is None else ROUTER,
        own_addresses={OWN},
        is_running=lambda owner: owner == ALIVE,
        wall_clock_s=1600.0,
    )


def test_a_mapping_of_another_host() -> None:
    [row] = read([replace(ENTRY, internal_client="192.168.0.20")])
    assert (row.is_ours, row.keeping, row.internal_text) == (False, Keeping.NOT_RECORDED, "192.168.0.20:5070")
    mapping = row.mapping(ROUTER)
    assert mapping is not None
    assert (mapping.protocol, mapping.internal) == (MappingProtocol.UPNP, Endpoint.parse("192.168.0.20:5070"))


def test_a_mapping_of_another_program_here() -> None:
    [row] = read([ENTRY])
    assert (row.is_ours, row.keeping, row.left_s, row.description) == (
        True,
        Keeping.NOT_RECORDED,
        1800,
        "a phone",
    )


def test_a_host_that_the_router_names_cannot_be_released() -> None:
    [row] = read([replace(ENTRY, internal_client="fritz.box")])
    assert (row.is_ours, row.internal_text, row.mapping(ROUTER)) == (False, "fritz.box:5070", None)


@pytest.mark.parametrize(
    ("record", "keeping"),
    [
        (RECORD, Keeping.KEPT),
        (replace(RECORD, kept=False), Keeping.LEASED),
        (replace(RECORD, kept=False, owner=GONE), Keeping.LEASED),
        (replace(RECORD, owner=GONE), Keeping.LEFT_BEHIND),
        (replace(RECORD, kept=False, granted=False, owner=GONE), Keeping.LEFT_BEHIND),
    ],
)
@pytest.mark.parametrize("entries", [None, [ENTRY]])
def test_a_record_says_who_keeps_it(
    record: Record, keeping: Keeping, entries: list[PortMappingEntry] | None
) -> None:
    [row] = read(entries, [record])
    assert (row.keeping, row.record, row.is_ours, row.protocol) == (
        keeping,
        record,
        True,
        MappingProtocol.PCP,
    )
    assert row.mapping(ROUTER) == MAPPING


def test_what_no_router_lists_is_known_from_the_record() -> None:
    [row] = read(None, [RECORD])
    assert (row.left_s, row.is_listed, row.internal_text) == (3000, None, "192.168.0.108:5070")
    [for_ever] = read(None, [replace(RECORD, mapping=replace(MAPPING, lease_s=None))])
    assert for_ever.left_s is None


def test_a_upnp_mapping_that_is_not_in_the_table_is_gone() -> None:
    upnp = replace(RECORD, mapping=replace(MAPPING, protocol=MappingProtocol.UPNP))
    elsewhere = replace(upnp, mapping=replace(upnp.mapping, gateway=ip_address("192.168.0.2")))
    assert [row.is_listed for row in read([], [upnp])] == [False]
    assert [row.is_listed for row in read([], [elsewhere])] == [None]
    assert [row.is_listed for row in read([], [RECORD])] == [None]  # UPnP need not show a PCP mapping


def test_the_same_port_leading_elsewhere_is_another_mapping() -> None:
    found = read([replace(ENTRY, internal_client="192.168.0.20")], [RECORD])
    assert [(row.is_ours, row.keeping) for row in found] == [
        (False, Keeping.NOT_RECORDED),
        (True, Keeping.KEPT),
    ]


def test_the_nonce_that_miniupnpd_shows_is_not_shown_again() -> None:
    shown = replace(ENTRY, description=f"PCP MAP {NONCE.hex()}")
    assert [row.description for row in read([shown])] == ["PCP MAP"]
    assert [row.description for row in read([shown], [RECORD])] == ["a phone"]


def test_rows_are_in_the_order_of_their_ports() -> None:
    tcp = replace(ENTRY, transport=TransportProtocol.TCP)
    found = read([replace(ENTRY, external_port=9), ENTRY, tcp, replace(ENTRY, external_port=80)])
    assert [(row.external_port, row.transport.name) for row in found] == [
        (9, "UDP"),
        (80, "UDP"),
        (5060, "TCP"),
        (5060, "UDP"),
    ]
