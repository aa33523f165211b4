"""The UPnP client against a real router, miniupnpd: found, asked, watched, and a datagram to prove it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, Process, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines, OpenSockets, next_datagram
from tests.lab.news import NOTICED_S, until_subscribed

ROOT = Path(__file__).parents[2]
ROUTER, INTERFACE = "192.168.0.1", "eth0"
CLIENT, CLIENT_IPV6 = "192.168.0.108", "2001:db8:1::108"
OUTSIDE_IPV6 = Endpoint.of("2001:db8::20", 3478)


@pytest.fixture(scope="module", autouse=True)
def _router() -> None:
    reason = why_no_igd()
    if reason is not None:
        pytest.skip(reason)


def lab_with(igd: Igd | None) -> Lab:
    return Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=igd), start_server=False)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A router that nothing happens to."""
    with lab_with(Igd()) as lab:
        yield lab


class Program:
    """A scenario on the client, and what it tells."""

    def __init__(self, lab: Lab, scenario: str, *arguments: str) -> None:
        self._process: Process = lab.client.popen(
            [sys.executable, "-m", "tests.lab.upnp_program", scenario, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lines = Lines(self._process)

    def next(self, event: str, *, within_s: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The next thing it tells, which must be that."""
        told = cast(dict[str, Any], json.loads(self._lines.next(within_s=within_s)))
        assert told["event"] == event, told
        return told

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def running(lab: Lab, scenario: str, *arguments: str) -> Iterator[Program]:
    program = Program(lab, scenario, *arguments)
    try:
        yield program
    finally:
        program.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_router_is_found_and_what_it_is_and_has(version: int) -> None:
    with lab_with(Igd(version=version)) as lab, running(lab, "find") as program:
        [igd] = program.next("found")["igds"]
    assert igd == {
        "name": "Debian router 1 at 192.168.0.1",
        "local": CLIENT,
        "type": f"urn:schemas-upnp-org:service:WANIPConnection:{version}",
        "external": "11.22.33.2",
        "connected": True,
        "firewall": version == 2,
    }


def test_a_search_leaves_no_task_and_no_socket(lab: Lab) -> None:
    with running(lab, "find") as program:
        found = program.next("found")
    assert (found["tasks"], found["sockets"]) == (0, 0)


def test_a_search_that_is_cancelled_leaves_no_task_and_no_socket(lab: Lab) -> None:
    with running(lab, "cancelled") as program:
        left = [program.next("cancelled") for _ in range(6)]
    assert [(one["tasks"], one["sockets"]) for one in left] == [(0, 0)] * 6


def test_without_a_router_a_search_ends_with_nothing_when_its_time_is_over() -> None:
    with lab_with(None) as lab, running(lab, "find", "", "", "0.5") as program:
        assert program.next("found")["igds"] == []
        assert 0.5 <= program.next("ended")["after_s"] < 0.5 + PATIENCE_SECONDS


@pytest.mark.parametrize(("gateway", "interface"), [(ROUTER, ""), ("", INTERFACE), (ROUTER, INTERFACE)])
def test_a_router_is_found_by_address_and_by_interface(lab: Lab, gateway: str, interface: str) -> None:
    with running(lab, "find", gateway, interface) as program:
        [igd] = program.next("found")["igds"]
    assert igd["external"] == "11.22.33.2"


def test_an_interface_that_is_not_there_is_an_error_that_names_those_that_are(lab: Lab) -> None:
    with running(lab, "find", "", "eth7") as program:
        failed = program.next("failed")
    assert failed["error"] == "LocalAddressError"
    assert "no interface eth7" in failed["message"]


@pytest.mark.parametrize("name", ["multicast-only", "other-address", "notify", "new-port"])
def test_a_router_that_answers_in_its_own_way_by_multicast_is_found(name: str) -> None:
    fake = ["--address", ROUTER, "--interface", "lan", "--behaviour", name, "--json-events"]
    if name == "other-address":
        fake += ["--other-address", "192.168.0.2"]
    with lab_with(None) as lab:
        for command in ("ip addr add 192.168.0.2/24 dev lan", "nft flush chain ip lab input"):
            assert lab.router.run(command.split(), timeout=PATIENCE_SECONDS).returncode == 0
        with lab.router.popen(
            [sys.executable, "-m", "tests.fakes.igd", *fake],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as router:
            assert router.stdout is not None
            assert json.loads(router.stdout.readline())["kind"] == "ready"
            with running(lab, "find", "", "", "5") as program:
                [igd] = program.next("found")["igds"]
            router.kill()
    address = "192.168.0.2" if name == "other-address" else ROUTER
    assert igd["name"] == f"nattools Fake IGD 1 at {address}"


def test_a_router_is_asked_by_the_url_of_its_description(lab: Lab) -> None:
    with running(lab, "given", "http://192.168.0.1:5000/rootDesc.xml") as program:
        [igd] = program.next("found")["igds"]
    assert igd["name"] == "Debian router 1 at 192.168.0.1"


def test_a_router_is_found_over_ipv6(lab: Lab) -> None:
    with running(lab, "find_ipv6") as program:
        [igd] = program.next("found")["igds"]
    assert (igd["local"], igd["firewall"]) == (CLIENT_IPV6, True)


def test_a_router_behind_another_nat_is_found_without_an_address() -> None:
    with lab_with(Igd(wan_address="100.64.0.2")) as lab, running(lab, "find") as program:
        [igd] = program.next("found")["igds"]
    assert (igd["external"], igd["connected"]) == (None, True)


@pytest.mark.parametrize("version", [1, 2])
def test_a_mapping_is_made_listed_used_and_removed(version: int, open_sockets: OpenSockets) -> None:
    with lab_with(Igd(version=version)) as lab, running(lab, "mapping", "5070", "600") as program:
        acquired = program.next("acquired")
        assert (acquired["external_port"], acquired["proven"]) == (5070, True)
        assert 590 <= acquired["lease_s"] <= 600  # what is left when it is read back
        [entry] = program.next("entries")["rows"]
        assert 590 <= entry.pop("lease_s") <= 600
        assert entry == {
            "remote_host": "",
            "external_port": 5070,
            "transport": "UDP",
            "internal_client": CLIENT,
            "internal_port": 5070,
            "enabled": True,
            "description": "a test",
        }
        [inside] = open_sockets(lab.client, [Endpoint.of(CLIENT, 5070)])
        [outside] = open_sockets(lab.public, [STRANGER])
        outside.sendto(b"INVITE", ("11.22.33.2", 5070))
        assert next_datagram(inside, PATIENCE_SECONDS) == (b"INVITE", STRANGER)
        program.go_on()
        assert [program.next("released")["removed"] for _ in range(2)] == [True, False]
        assert program.next("entries")["rows"] == []


def test_a_mapping_for_ever_is_one_for_a_week_at_an_igd2(lab: Lab) -> None:
    with running(lab, "mapping", "5072", "0") as program:
        assert 604_700 <= program.next("acquired")["lease_s"] <= 604_800
        program.next("entries")
        program.go_on()
        assert program.next("released")["removed"]


@pytest.mark.parametrize("version", [1, 2])
def test_all_mappings_are_listed(version: int) -> None:
    with lab_with(Igd(version=version)) as lab, running(lab, "many", "8") as program:
        rows = program.next("entries")["rows"]
    assert sorted(row["external_port"] for row in rows) == list(range(6000, 6008))
    assert {row["description"] for row in rows} == {f"number {port}" for port in range(6000, 6008)}


def test_in_secure_mode_a_mapping_to_another_host_is_refused(lab: Lab) -> None:
    with running(lab, "for_another_host") as program:
        refused = program.next("refused")
    assert refused["code"] == 718
    asked = "Debian router 1 at 192.168.0.1: AddPortMapping was refused"
    assert refused["message"].startswith(f"{asked}: 718 ConflictInMappingEntry")


def test_a_mapping_of_another_host_is_not_removed() -> None:
    with lab_with(Igd(secure=False)) as lab, running(lab, "for_another_host") as program:
        program.next("acquired")
        assert program.next("released")["removed"] is False


def test_a_pinhole_lets_a_datagram_in_and_is_closed(lab: Lab, open_sockets: OpenSockets) -> None:
    with running(lab, "pinhole", CLIENT_IPV6, "5070") as program:
        assert program.next("opened")["allowed"]
        [inside] = open_sockets(lab.client, [Endpoint.of(CLIENT_IPV6, 5070)])
        [outside] = open_sockets(lab.public, [OUTSIDE_IPV6])
        outside.sendto(b"INVITE", (CLIENT_IPV6, 5070))
        assert next_datagram(inside, PATIENCE_SECONDS) == (b"INVITE", OUTSIDE_IPV6)
        program.go_on()
        program.next("packets")  # this daemon does not count
        assert program.next("refused")["code"] == 402  # by the specification 704: there is no such pinhole


def test_another_address_and_a_restart_are_noticed() -> None:
    with lab_with(Igd()) as lab, running(lab, "watching") as program:
        program.next("watching")
        until_subscribed(lab)
        lab.igd.change_wan_address("11.22.33.9")
        assert program.next("address changed", within_s=NOTICED_S)["external"] == "11.22.33.9"
        lab.igd.stop()
        assert program.next("gone", within_s=NOTICED_S)["external"] == "11.22.33.9"
        lab.igd.start()
        program.next("restarted", within_s=NOTICED_S)
        until_subscribed(lab, starts=2)
        lab.igd.change_wan_address("11.22.33.12")
        assert program.next("address changed", within_s=NOTICED_S)["external"] == "11.22.33.12"
        program.go_on()
        assert program.next("asked")["external"] == "11.22.33.12"
        ended = program.next("ended")
        assert (ended["tasks"], ended["sockets"]) == (0, 0)
        assert "ProcessHTTPUnSubscribe" in lab.igd.log()


def test_a_router_killed_without_a_word_is_noticed_when_it_is_back() -> None:
    with lab_with(Igd()) as lab, running(lab, "watching") as program:
        program.next("watching")
        lab.igd.kill()
        time.sleep(1.1)  # the daemon's BOOTID is the time in seconds
        lab.igd.start()
        program.next("restarted", within_s=NOTICED_S)


def test_a_watch_ends_in_time_when_the_router_is_deaf() -> None:
    with lab_with(Igd()) as lab, running(lab, "watching") as program:
        program.next("watching")
        until_subscribed(lab)
        lab.igd.stall()
        program.go_on()
        failed = program.next("failed")
        lab.igd.resume()
    assert failed["error"] == "NoResponseError"
    assert failed["message"].startswith("GetExternalIPAddress of Debian router 1 at 192.168.0.1: ")
