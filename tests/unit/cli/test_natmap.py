"""The command `natmap` with a router that does as it is told: its words, its JSON, its exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nattools.cli import natmap, natmap_options
from nattools.cli.natmap_text import duration, not_public
from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import (
    LocalAddressError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
)
from nattools.mapping.client import Survey
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.registry import Registry
from nattools.mapping.state import Owner
from nattools.mapping.upkeep import ChangeKind, MappingChange
from nattools.mapping.way import Network
from nattools.upnp.igd import PortMappingEntry
from tests.unit.mapping.ways import GATEWAY, LOCAL, PUBLIC, FakeWay

PCP, NAT_PMP, UPNP = MappingProtocol.PCP, MappingProtocol.NAT_PMP, MappingProtocol.UPNP
CARRIER = ip_address("100.64.0.2")
NONCE = bytes(range(12))
OTHER = PortMappingEntry(
    "", 40000, TransportProtocol.UDP, "192.168.0.20", 40000, enabled=True, description="a game", lease_s=None
)
DEAD = Owner(2**22 + 1, 0.0)
"""No process can have this number (PID_MAX_LIMIT)."""


@dataclass
class FakeClient:
    """Stands for MappingClient; `opened` is what natmap opened it with."""

    registry: Registry
    ways: dict[MappingProtocol, FakeWay] = field(default_factory=dict)
    failed: dict[MappingProtocol, NatToolsError] = field(default_factory=dict)
    address: IPAddress | None = PUBLIC
    lease_s: int | None = 3600
    refusal: NatToolsError | None = None
    hangs: bool = False
    told: Sequence[MappingChange] = ()
    then_signal: signal.Signals = signal.SIGTERM
    opened: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[MappingRequest, bool]] = field(default_factory=list)
    released: list[PortMapping] = field(default_factory=list)
    tidied: int = 0

    @asynccontextmanager
    async def open(self, **how: object) -> AsyncIterator[FakeClient]:
        self.opened = how
        if isinstance(self.refusal, LocalAddressError):
            raise self.refusal
        yield self

    async def survey(self) -> Survey:
        network = Network(None, GATEWAY, LOCAL)
        return Survey(network, self.ways, self.failed, self.address)

    async def external_address(self) -> IPAddress | None:
        self._refuse()
        return self.address

    async def acquire(self, request: MappingRequest, *, keep: bool = True) -> PortMapping:
        self.requests.append((request, keep))
        if self.hangs:
            os.kill(os.getpid(), self.then_signal)
            await asyncio.sleep(3600)
        self._refuse()
        return mapping(request, self.address, self.lease_s)

    async def changes(self) -> AsyncIterator[MappingChange]:
        for change in self.told:
            yield change
        os.kill(os.getpid(), self.then_signal)
        await asyncio.sleep(3600)

    async def release(self, mapping: PortMapping) -> None:
        self._refuse()
        self.released.append(mapping)

    async def tidy(self) -> None:
        self.tidied += 1

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal


def mapping(
    request: MappingRequest, address: IPAddress | None = PUBLIC, lease_s: int | None = 3600
) -> PortMapping:
    return PortMapping(
        protocol=PCP,
        transport=request.transport,
        internal=Endpoint(LOCAL, request.internal.port),
        external_port=request.external_port or request.internal.port,
        external_address=address,
        lease_s=lease_s,
        gateway=GATEWAY,
        description=request.description,
        nonce=NONCE,
    )


MAPPING = mapping(MappingRequest(Endpoint.parse("0.0.0.0:5060")))
DOCUMENT = {
    "protocol": "pcp",
    "transport": "udp",
    "external": "11.22.33.2:5060",
    "external_port": 5060,
    "internal": "192.168.0.108:5060",
    "lease": 3600,
    "public": True,
    "address_class": "public",
    "gateway": "192.168.0.1",
    "description": "nattools",
    "proven": True,
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """The client that natmap gets; its router speaks PCP and UPnP."""
    ways = {PCP: FakeWay(PCP, model=""), UPNP: FakeWay(UPNP, table=[OTHER], model="AVM FRITZ!Box 7590")}
    fake = FakeClient(Registry(tmp_path), ways, {NAT_PMP: NoResponseError("nobody; do something")})
    monkeypatch.setattr(natmap_options, "MappingClient", fake)
    return fake


def run(*arguments: str, columns: int = 100) -> Result:
    result = CliRunner().invoke(natmap.main, arguments, env={"COLUMNS": str(columns)}, prog_name="natmap")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(*arguments: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    assert said["schema"] == 1
    return said


# what is wrong usage, without asking anybody


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stat",), "No such command"),
        (("status", "--jsn"), "No such option"),
        (("status", "--gateway", "fritz.box"), "names are not looked up"),
        (("status", "--gateway", "192.168.0.1:5351"), "is not an IP address"),
        (("status", "--gateway", "239.255.255.250"), "is not the address of a router"),
        (("status", "--gateway", "255.255.255.255"), "is not the address of a router"),
        (("status", "--gateway", "::ffff:0.0.0.0"), "is not the address of a router"),
        (("status", "--gateway", "0.0.0.0"), "is not the address of a router"),
        (("status", "-6", "--gateway", "192.168.0.1"), "exclude each other"),
        (("add", "5060", "-6", "--backend", "miniupnpc"), "opens no IPv6 pinholes"),
        (("status", "--protocol", "stun"), "is not one of"),
        (("status", "--backend", "upnpc"), "is not one of"),
        (("status", "--backend", "miniupnpc", "--protocol", "pcp"), "which --protocol leaves out"),
        (("status", "--timeout", "0.1"), "is not in the range"),
        (("status", "--timeout", "61"), "is not in the range"),
        (("status", "--timeout", "nan"), "is not a number of seconds"),
        (("add",), "Missing argument"),
        (("add", "0"), "is not in the range"),
        (("add", "65536"), "is not in the range"),
        (("add", "sip"), "is not a valid integer"),
        (("add", "5060", "--external", "0"), "is not in the range"),
        (("add", "5060", "--lease", "-1"), "is not in the range"),
        (("add", "5060", "--description", "a\nb"), "printable ASCII"),
        (("add", "5060", "--description", "Türklingel"), "printable ASCII"),
        (("add", "5060", "--description", "x" * 61), "at most 60 characters"),
        (("remove",), "one external PORT, or --all-mine"),
        (("remove", "5060", "--all-mine"), "one external PORT, or --all-mine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_clear_error(client: FakeClient, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, client.opened) == (2, "", {})
    assert words in result.stderr


def test_alone_it_prints_its_help_with_the_exit_statuses() -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == run("--help").stdout
    for line in (
        "0  done",
        "2  wrong usage",
        "3  no router answered",
        "4  the router refused",
        "5  done, but",
    ):
        assert line in result.stdout


@pytest.mark.parametrize("command", ["status", "add", "list", "remove", "ip"])
def test_every_command_has_help_and_the_common_options(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    for option in (
        "-6",
        "--gateway",
        "--interface",
        "--protocol",
        "--backend",
        "--timeout",
        "--json",
        "--verbose",
    ):
        assert option in result.stdout
    assert "Exit status: 0 done" in result.stdout


def test_the_options_say_who_is_asked(client: FakeClient) -> None:
    options = ("--gateway", "192.168.0.1", "--interface", "eth0", "--timeout", "10")
    assert run("ip", *options, "--protocol", "upnp", "--protocol", "pcp").exit_code == 0
    how = client.opened
    assert (how["gateway"], how["interface"], how["protocols"], how["timeout_s"]) == (
        GATEWAY,
        "eth0",
        (UPNP, PCP),
        10.0,
    )


# status


def test_status_says_what_the_router_can_do(client: FakeClient) -> None:
    result = run("status")
    assert (result.exit_code, result.stderr, client.tidied) == (0, "", 1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Gateway   192.168.0.1")
    assert lines[1:6] == [
        "This host 192.168.0.108",
        "PCP       yes",
        "NAT-PMP   no: no answer",
        "UPnP      yes: AVM FRITZ!Box 7590",
        "External  11.22.33.2, a public address",
    ]
    assert "write 11.22.33.2 with the mapped ports into Via" in result.stdout


def test_status_as_json(client: FakeClient) -> None:
    said = document("status")
    assert set(said) == {
        *("schema", "gateway", "interface", "local", "protocols", "model", "external_address"),
        *("address_class", "public", "second_nat", "problem", "sip"),
    }
    assert said["protocols"] == {
        "pcp": {"found": True, "gateway": "192.168.0.1", "local": "192.168.0.108", "model": None},
        "nat-pmp": {"found": False, "reason": "nobody; do something"},
        "upnp": {
            "found": True,
            "gateway": "192.168.0.1",
            "local": "192.168.0.108",
            "model": "AVM FRITZ!Box 7590",
        },
    }
    assert (said["external_address"], said["public"], said["second_nat"]) == ("11.22.33.2", True, False)


def test_a_second_nat_is_said_plainly(client: FakeClient) -> None:
    client.address = CARRIER
    result = run("status", columns=200)
    assert result.exit_code == 5
    assert "External  100.64.0.2, an address of the carrier's NAT" in result.stdout
    text = " ".join(result.stdout.split())
    assert (
        "Problem The router itself has 100.64.0.2, an address of the carrier's NAT: nobody outside can reach "
        "a mapping; ask the provider for a public IPv4 address, or use a relay" in text
    )
    said = document("status")
    assert (said["public"], said["second_nat"], said["address_class"]) == (False, True, "shared")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (ip_address("10.0.0.2"), "10.0.0.2, a private address: nobody outside"),
        (ip_address("203.0.113.2"), "an address that is nobody's on the internet"),
        (ip_address("127.0.0.1"), "a loopback address"),
        (None, "names no external address"),
    ],
)
def test_an_address_that_is_not_public_is_never_called_so(address: IPAddress | None, words: str) -> None:
    assert words in (not_public(address) or "")


def test_a_public_address_has_no_problem() -> None:
    assert not_public(PUBLIC) is None


def test_without_a_router_status_says_so_and_why(client: FakeClient) -> None:
    client.ways, client.address = {}, None
    client.failed = {p: NoRouterError(f"nobody speaks {p.value}") for p in MappingProtocol}
    result = run("status")
    assert (result.exit_code, result.stderr) == (3, "")
    assert "UPnP      no: nobody speaks upnp" in result.stdout
    assert "External" not in result.stdout
    assert document("status")["problem"] is None


# add


def test_add_prints_the_mapping(client: FakeClient) -> None:
    result = run("add", "5060")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "Mapped    udp 11.22.33.2:5060 -> 192.168.0.108:5060",
        "By        PCP, router 192.168.0.1",
        "Lease     1 h",
        "Remove    natmap remove 5060",
    ]
    assert client.requests == [(MappingRequest(Endpoint.parse("0.0.0.0:5060")), False)]


def test_add_asks_for_what_the_options_say(client: FakeClient) -> None:
    run("add", "5061", "--tcp", "--external", "443", "--lease", "0", "--description", "a phone")
    internal = Endpoint.parse("0.0.0.0:5061")
    assert client.requests == [(MappingRequest(internal, TransportProtocol.TCP, 443, None, "a phone"), False)]


def test_add_as_json(client: FakeClient) -> None:
    assert document("add", "5060") == {"schema": 1, "mapping": DOCUMENT}


def test_a_mapping_for_ever_has_no_lease(client: FakeClient) -> None:
    client.lease_s = None
    assert document("add", "5060")["mapping"]["lease"] is None
    assert "Lease     for ever" in run("add", "5060").stdout


@pytest.mark.parametrize("arguments", [("add", "5060"), ("add", "5060", "--keep"), ("ip",)])
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_mapping_that_nobody_can_reach_is_said_loudly(
    client: FakeClient, arguments: tuple[str, ...], json_too: tuple[str, ...]
) -> None:
    client.address = CARRIER
    result = run(*arguments, *json_too)
    assert result.exit_code == 5
    assert result.stderr.startswith("natmap: NOT REACHABLE FROM OUTSIDE: the router itself has 100.64.0.2, ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoRouterError("no router here"), 3),
        (NoResponseError("no answer"), 3),
        (TransportError("no network"), 3),
        (MappingError("718: the port is taken"), 4),
        (LocalAddressError("there is no interface eth7"), 2),
    ],
)
@pytest.mark.parametrize("arguments", [("add", "5060"), ("add", "5060", "--keep"), ("ip",)])
def test_what_goes_wrong_is_one_line_and_an_exit_status(
    client: FakeClient, arguments: tuple[str, ...], error: NatToolsError, status: int
) -> None:
    client.refusal = error
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", f"natmap: {error}\n")
    said = run(*arguments, "--json").stdout
    assert said == "" if status == 2 else json.loads(said) == {"schema": 1, "error": str(error)}


def test_a_refusal_behind_a_second_nat_names_that_as_the_reason(client: FakeClient) -> None:
    client.refusal, client.address = MappingError("501: action failed"), None
    result = run("add", "5060")
    assert result.exit_code == 4
    assert [line.partition(": ")[2][:21] for line in result.stderr.splitlines()] == [
        "NOT REACHABLE FROM OU",
        "501: action failed",
    ]


# add --keep

LATER = replace(MAPPING, external_address=ip_address("11.22.33.9"))
CHANGES = [
    MappingChange(ChangeKind.RENEWED, MAPPING, MAPPING, "half of its lease is over"),
    MappingChange(ChangeKind.LOST, MAPPING, MAPPING, "the router is silent"),
    MappingChange(ChangeKind.RESTORED, MAPPING, MAPPING, "it is back"),
    MappingChange(ChangeKind.CHANGED, LATER, MAPPING, "the router has another external address"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_kept_mapping_is_shown_and_removed_at_a_signal(client: FakeClient, number: signal.Signals) -> None:
    client.told, client.then_signal = CHANGES, number
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stderr, client.released) == (0, "", [LATER])
    lines = result.stdout.splitlines()
    assert lines[3] == "Kept      until natmap is stopped (Ctrl-C)"
    assert [line[21:] for line in lines[4:]] == [
        "renewed udp 11.22.33.2:5060 for 1 h: half of its lease is over",
        "lost udp 11.22.33.2:5060: the router is silent",
        "restored udp 11.22.33.2:5060 for 1 h: it is back",
        "changed to udp 11.22.33.9:5060 (it was 11.22.33.2:5060): the router has another external address",
        "removed udp 11.22.33.9:5060 -> 192.168.0.108:5060",
    ]


def test_a_kept_mapping_as_json_is_a_document_for_each_line(client: FakeClient) -> None:
    client.told = CHANGES
    events = [json.loads(line) for line in run("add", "5060", "--keep", "--json").stdout.splitlines()]
    assert [event["event"] for event in events] == [
        *("mapped", "renewed", "lost", "restored", "changed", "removed")
    ]
    assert events[0]["mapping"] == DOCUMENT
    assert [event["mapping"]["public"] for event in events] == [True, True, False, True, True, True]
    assert (events[4]["previous"], events[4]["mapping"]["external"]) == ("11.22.33.2:5060", "11.22.33.9:5060")
    assert events[4]["reason"] == "the router has another external address"
    assert all(event["schema"] == 1 and event["time"] for event in events)


def test_a_kept_mapping_that_moves_behind_a_second_nat_is_said_loudly(client: FakeClient) -> None:
    behind = replace(MAPPING, external_address=CARRIER)
    client.told = [MappingChange(ChangeKind.CHANGED, behind, MAPPING, "another address")]
    result = run("add", "5060", "--keep")
    assert result.exit_code == 5
    assert result.stderr.startswith("natmap: NOT REACHABLE FROM OUTSIDE: the router itself has 100.64.0.2, ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_before_there_is_a_mapping_ends_it_quietly(
    client: FakeClient, number: signal.Signals, status: int
) -> None:
    client.hangs, client.then_signal = True, number
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", "")


@pytest.mark.parametrize("arguments", [("add", "5060"), ("add", "5060", "--json")])
def test_ctrl_c_during_the_search_is_quiet(client: FakeClient, arguments: tuple[str, ...]) -> None:
    client.hangs, client.then_signal = True, signal.SIGINT
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_what_cannot_be_removed_at_the_end_is_said(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def release(_: PortMapping) -> None:
        raise NoResponseError("no answer from 192.168.0.1")

    monkeypatch.setattr(client, "release", release)
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stderr) == (3, "natmap: no answer from 192.168.0.1\n")
    assert result.stdout.splitlines()[-1][21:] == (
        "not removed, the next natmap will: no answer from 192.168.0.1"
    )


# list and remove


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


def test_ip_prints_the_address_alone(client: FakeClient) -> None:
    result = run("ip")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "11.22.33.2\n", "")
    assert document("ip") == {
        "schema": 1,
        "external_address": "11.22.33.2",
        "address_class": "public",
        "public": True,
        "second_nat": False,
    }


def test_ip_prints_also_what_is_not_public_and_nothing_where_there_is_none(client: FakeClient) -> None:
    client.address = CARRIER
    assert run("ip").stdout == "100.64.0.2\n"
    client.address = None
    result = run("ip")
    assert (result.exit_code, result.stdout) == (5, "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "for ever"),
        (0, "0 s"),
        (59, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 day"),
        (604799, "6 days 23 h"),
        (604800, "7 days"),
    ],
)
def test_a_duration_in_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
