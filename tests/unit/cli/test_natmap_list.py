"""`natmap list` and `natmap remove`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import (
    MappingError,
)
from nattools.upnp.igd import PortMappingEntry
from tests.unit.cli.natmap_client import (
    CARRIER,
    DEAD,
    MAPPING,
    NAT_PMP,
    NONCE,
    OTHER,
    UPNP,
    FakeClient,
    document,
    run,
)
from tests.unit.mapping.ways import LOCAL


def listed(client: FakeClient) -> None:
    """Fill the records: one kept here, one left for its lease, one left behind, one of another network."""
    registry = client.registry
    registry.granted(registry.new(MAPPING, kept=True), MAPPING)
    tcp = replace(MAPPING, transport=TransportProtocol.TCP, protocol=NAT_PMP)
    registry.granted(registry.new(tcp, kept=False), tcp)
    orphan = replace(MAPPING, external_port=5062, internal=Endpoint(LOCAL, 5062))
    registry.write(replace(registry.granted(registry.new(orphan, kept=True), orphan), owner=DEAD))
    elsewhere = replace(MAPPING, external_port=5063, gateway=ip_address("10.0.0.1"))
    registry.granted(registry.new(elsewhere, kept=False), elsewhere)


def test_list_names_owners_and_the_time_left(client: FakeClient) -> None:
    listed(client)
    result = run("list", columns=200)
    assert (result.exit_code, result.stderr, client.tidied) == (0, "", 0)
    lines = result.stdout.splitlines()
    assert lines[:2] == ["Router      192.168.0.1, outside 11.22.33.2", ""]
    # nothing wider than 100 columns is easy to read
    text = " ".join(result.stdout.split())
    for words in (
        "5060/tcp 192.168.0.108:5060 this machine, left for",
        "this machine, kept by",
        "this machine, left behind by",
        "40000/udp 192.168.0.20:40000 192.168.0.20 for ever UPnP a game",
    ):
        assert words in text
    assert "5063" not in text


def test_list_as_json(client: FakeClient) -> None:
    listed(client)
    said = document("list")["mappings"]
    assert [(m["external_port"], m["transport"], m["owner"], m["keeping"], m["process"]) for m in said] == [
        (5060, "tcp", "this-machine", "leased", None),
        (5060, "udp", "this-machine", "kept", os.getpid()),
        (5062, "udp", "this-machine", "left-behind", DEAD.pid),
        (40000, "udp", "other-host", "not-recorded", None),
    ]
    assert {key: said[3][key] for key in ("external", "internal", "lease", "listed", "protocol")} == {
        "external": "11.22.33.2:40000",
        "internal": "192.168.0.20:40000",
        "lease": None,
        "listed": True,
        "protocol": "upnp",
    }
    assert 3590 <= said[1]["lease"] <= 3600


@pytest.mark.parametrize(
    "arguments", [("list",), ("list", "--json"), ("add", "5060"), ("add", "5060", "--json")]
)
def test_a_nonce_is_never_shown(client: FakeClient, arguments: tuple[str, ...]) -> None:
    listed(client)
    client.ways[UPNP].table = [replace(OTHER, description=f"PCP MAP {NONCE.hex()}")]
    result = run(*arguments, "-v")
    assert result.exit_code == 0
    assert NONCE.hex() not in result.output


def test_a_table_that_the_router_does_not_show_leaves_the_records(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def entries() -> list[PortMappingEntry]:
        raise MappingError("606: not authorised")

    listed(client)
    monkeypatch.setattr(client.ways[UPNP], "entries", entries)
    result = run("list", "--json")
    assert result.exit_code == 0
    assert result.stderr == "natmap: the router does not show its mappings: 606: not authorised\n"
    assert [m["listed"] for m in json.loads(result.stdout)["mappings"]] == [None] * 3


@pytest.mark.parametrize("columns", [20, 40, 80, 100])
def test_everything_fits_the_terminal_without_colour_in_a_pipe(client: FakeClient, columns: int) -> None:
    listed(client)
    client.address = CARRIER
    for arguments in (("status",), ("list",)):
        lines = run(*arguments, columns=columns).stdout.splitlines()
        assert max(map(len, lines)) <= max(columns, 24)
        assert not any(line.endswith(" ") or "\x1b" in line for line in lines)


@pytest.mark.parametrize("arguments", [("list",), ("remove", "5060")])
def test_without_a_router_there_is_nothing_to_list(client: FakeClient, arguments: tuple[str, ...]) -> None:
    client.ways = {}
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("natmap: no router (gateway 192.168.0.1) does port mapping: ")


def test_remove_takes_what_its_record_has(client: FakeClient) -> None:
    listed(client)
    result = run("remove", "5062")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "removed udp 11.22.33.2:5062 -> 192.168.0.108:5062\n"
    assert [m.nonce for m in client.released] == [NONCE]


def test_remove_does_not_take_what_a_process_keeps_unless_forced(client: FakeClient) -> None:
    listed(client)
    result = run("remove", "5060")
    assert (result.exit_code, client.released) == (4, [])
    assert f"udp port 5060 is kept by process {os.getpid()}: end that" in result.stderr
    assert run("remove", "5060", "--force").exit_code == 0
    assert client.released == [MAPPING]


def test_remove_does_not_take_another_hosts_unless_forced(client: FakeClient) -> None:
    result = run("remove", "40000")
    assert (result.exit_code, client.released) == (4, [])
    assert result.stderr == (
        "natmap: udp port 40000 is the mapping of 192.168.0.20 (a game): --force removes it\n"
    )
    assert run("remove", "40000", "--force").exit_code == 0
    assert [(m.protocol, m.internal, m.external_port) for m in client.released] == [
        (UPNP, Endpoint.parse("192.168.0.20:40000"), 40000)
    ]


def test_remove_says_when_only_the_other_transport_is_mapped(client: FakeClient) -> None:
    result = run("remove", "40000", "--tcp")
    assert (result.exit_code, result.stderr) == (
        4,
        "natmap: tcp port 40000 is not mapped on 192.168.0.1; udp port 40000 is: see natmap list\n",
    )


def test_remove_all_mine_takes_no_strangers_and_nothing_that_is_kept(client: FakeClient) -> None:
    listed(client)
    said = document("remove", "--all-mine")
    assert sorted((m["external_port"], m["transport"]) for m in said["removed"]) == [
        (5060, "tcp"),
        (5062, "udp"),
        (5063, "udp"),
    ]
    assert [(m["external_port"], m["transport"]) for m in said["failed"]] == [(5060, "udp")]
    assert run("remove", "--all-mine").exit_code == 4


def test_remove_all_mine_with_nothing_there_is_done(client: FakeClient) -> None:
    result = run("remove", "--all-mine")
    assert (result.exit_code, result.stdout) == (0, "there is nothing to remove\n")


# ip
