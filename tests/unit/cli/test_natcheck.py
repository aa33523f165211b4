"""The command `natcheck`, as its user sees it; on loopback, where there is no NAT."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nattools.sip.alg_probe import MOST_PACKETS
from tests.ports import free_port
from tests.unit.cli.test_stund import ports_in, running, start_line

TIME_LIMIT_S = 30
needs_second_loopback = pytest.mark.skipif(
    sys.platform != "linux", reason="127.0.0.2 needs to be set up first on this system"
)


def natcheck(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nattools.cli.natcheck", *arguments]
    variables = {key: value for key, value in os.environ.items() if key != "NATCHECK_SERVER"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        env={**variables, **environment},
        check=False,
    )


def document(*arguments: str, **environment: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(natcheck("--json", *arguments, **environment).stdout)
    return result


@contextmanager
def stund(*addresses: str, reflects: bool = False) -> Iterator[str]:
    """A stund; yields the server to name."""
    ports = ["--port", "0", *(["--alternate-port", "0"] if len(addresses) == 2 else [])]
    ports += ["--sip-reflector", "--sip-port", "0"] if reflects else []
    with running(*addresses, *ports) as process:
        yield f"{addresses[0]}:{ports_in(start_line(process))[0]}"


@needs_second_loopback
def test_on_loopback_with_two_addresses_the_network_is_open() -> None:
    with stund("127.0.0.1", "127.0.0.2") as server:
        said = document(server)
        assert natcheck(server).returncode == 0
    assert {
        key: said[key] for key in ("schema", "nat_type", "mapping", "filtering", "hairpin", "server")
    } == {
        "schema": 1,
        "nat_type": "open",
        "mapping": "none",
        "filtering": "endpoint-independent",
        "hairpin": None,
        "server": server,
    }
    assert said["public"] == said["local"]
    assert said["confidence"] == "high"
    assert {probe["question"] for probe in said["probes"]} >= {"binding", "filtering-both", "control-both"}


@needs_second_loopback
def test_filtering_sockets_use_ports_that_no_earlier_run_has_used_for_anything_else() -> None:
    """A NAT remembers whom a port has talked to, so a port taken at random is wrong once in a while."""
    with stund("127.0.0.1", "127.0.0.2") as server:
        for _ in range(3):
            for probe in document(server)["probes"]:
                port = int(probe["mapped"].rpartition(":")[2])
                assert port % 2 == probe["socket"].startswith("filtering"), probe


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_server_with_one_address_leaves_the_verdict_open_and_says_why(address: str) -> None:
    with stund(address.strip("[]")) as server:
        port = server.rpartition(":")[2]
        result = natcheck("--json", f"{address}:{port}")
    said = json.loads(result.stdout)
    assert result.returncode == 4
    assert (said["nat_type"], said["mapping"], said["filtering"]) == ("inconclusive", "none", "unknown")
    assert any("names no other address" in reason for reason in said["reasons"])


@needs_second_loopback
def test_two_plain_servers_show_the_mapping() -> None:
    with stund("127.0.0.1") as first, stund("127.0.0.2") as second:
        said = document(first, second)
    assert (said["mapping"], said["filtering"]) == ("none", "unknown")


def test_the_environment_names_servers_too() -> None:
    with stund("127.0.0.1") as server:
        assert document(NATCHECK_SERVER=server)["server"] == server


def test_the_local_port_can_be_chosen() -> None:
    with stund("127.0.0.1") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        refused = natcheck(server, "--local-port", str(port))
        taken.close()
        assert document(server, "--local-port", str(port))["local"] == f"127.0.0.1:{port}"
    assert refused.returncode == 2
    assert (
        refused.stderr == f"natcheck: cannot send from 127.0.0.1, UDP port {port}: Address already in use\n"
    )


def test_where_nothing_listens_it_says_so() -> None:
    port = free_port()
    result = natcheck(f"127.0.0.1:{port}", "--timeout", "1")
    assert result.returncode == 3
    assert "NAT type" in result.stdout
    if sys.platform == "linux":
        assert "nothing listens there (ICMP port unreachable)" in result.stdout


@needs_second_loopback
def test_with_a_reflector_it_says_that_nothing_rewrites_sip() -> None:
    with stund("127.0.0.1", "127.0.0.2", reflects=True) as server:
        result = natcheck(server, "--sip-alg", f"sip:bob@{server}")
        said = document(server, "--sip-alg", server)["sip_alg"]
        assert document(server)["sip_alg"] is None
    assert result.returncode == 0
    assert f"SIP ALG    no: nothing is rewritten on UDP port {server.rpartition(':')[2]}\n" in result.stdout
    assert "octet for octet" in " ".join(result.stdout.split())
    assert (said["presence"], said["server"]) == ("no", server)
    assert set(said) == {"presence", "server", "meaning", "reasons", "packets_sent", "ports"}
    port = said["ports"][0]
    assert port["mapped"] == port["received"]
    assert {key: port[key] for key in ("to", "presence", "hides_address", "touched", "lost")} == {
        "to": server,
        "presence": "no",
        "hides_address": False,
        "touched": [],
        "lost": [],
    }


@needs_second_loopback
def test_where_it_stays_unknown_whether_sip_is_rewritten_it_says_so_by_its_status() -> None:
    with stund("127.0.0.1", "127.0.0.2") as server:
        result = natcheck(server, "--sip-alg", server, "--json")
        # from loopback there is no way anywhere else, so nothing is sent
        nowhere = natcheck(server, "--sip-alg", "192.0.2.1", "--local-address", "127.0.0.1", "--json")
    said = json.loads(result.stdout)
    assert (said["nat_type"], said["sip_alg"]["presence"], result.returncode) == ("open", "unknown", 4)
    assert said["sip_alg"]["ports"][0]["lost"] == ["OPTIONS"]
    unsent = json.loads(nowhere.stdout)["sip_alg"]
    assert (unsent["presence"], unsent["server"], unsent["ports"], nowhere.returncode) == (
        "unknown",
        None,
        [],
        4,
    )
    assert "no route to 192.0.2.1" in unsent["reasons"][0]


def test_the_search_for_an_alg_takes_the_same_local_port() -> None:
    with stund("127.0.0.1", reflects=True) as server:
        port = free_port()
        said = document(server, "--sip-alg", server, "--local-port", str(port))
    assert said["local"] == f"127.0.0.1:{port}"
    assert said["sip_alg"]["ports"][0]["mapped"] == f"127.0.0.1:{port}"


def test_output_fits_a_narrow_terminal_and_has_no_colour_in_a_pipe() -> None:
    with stund("127.0.0.1") as server:
        result = natcheck(server, "--verbose", COLUMNS="40")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--jsn",), "No such option"),
        (("-4", "-6", "127.0.0.1"), "exclude each other"),
        (("127.0.0.1:99999",), "is not a port"),
        (("turn:127.0.0.1",), "is not a STUN server"),
        (("stuns:localhost",), "a stuns: server cannot show it"),
        (("--local-address", "nonsense", "127.0.0.1"), "is not an IP address"),
        (("--local-address", "127.0.0.1", "-6", "::1"), "127.0.0.1 is not an IPv6 address"),
        (("-4", "::1"), "::1 is not an IPv4 address"),
        (("--local-address", "::1", "127.0.0.1"), "127.0.0.1 is not an IPv6 address"),
        (("--sip-alg", "sip:127.0.0.1:sip", "127.0.0.1"), "is not a port"),
        (("--sip-alg", "sip:bob@", "127.0.0.1"), "names no host"),
        (("--sip-alg", "a b", "127.0.0.1"), "is not a host name"),
        (("-4", "--sip-alg", "::1", "127.0.0.1"), "::1 is not an IPv4 address"),
        (("--timeout", "0", "127.0.0.1"), "is not in the range"),
        (("--timeout", "nan", "127.0.0.1"), "is not"),
        (("--local-port", "70000", "127.0.0.1"), "is not in the range"),
        (("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"), "at the most"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_clear_error(arguments: tuple[str, ...], words: str) -> None:
    result = natcheck(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_the_exit_statuses() -> None:
    text = natcheck("--help").stdout
    for line in ("0  there is a verdict", "2  wrong usage", "3  UDP is blocked", "4  inconclusive, or"):
        assert line in text
    assert f"at most {MOST_PACKETS} packets" in " ".join(text.split())
