"""The command `natmap` with a router that does as it is told: its words, its JSON, its exit statuses."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

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
from nattools.mapping.model import MappingProtocol, MappingRequest
from tests.unit.cli.natmap_client import CARRIER, DOCUMENT, PCP, UPNP, FakeClient, document, run
from tests.unit.mapping.ways import GATEWAY, PUBLIC


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
