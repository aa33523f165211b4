"""The library miniupnpc as the second client of a real router, and as the witness of the first."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.news import NOTICED_S, until_bound

ROOT = Path(__file__).parents[2]
NATMAP = [sys.executable, "-m", "nattools.cli.natmap"]
PROGRAM = [sys.executable, "-m", "tests.lab.miniupnpc_program"]
LIBRARY = ["--backend", "miniupnpc", "--protocol", "upnp"]
TIME_LIMIT_S = 40.0
SSDP_PORT = 1900
ROUTER, INTERFACE, CLIENT, WAN = "192.168.0.1", "eth0", "192.168.0.108", "11.22.33.2"
ROW_OF_UPNPC = re.compile(r"^ *\d+ (UDP|TCP) +(\d+)->([\d.]+):(\d+) +'(.*)' '(.*)' (\d+)$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def _both() -> None:
    if importlib.util.find_spec("miniupnpc") is None:
        pytest.skip("the library miniupnpc is not here")
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


def told_by_both(lab: Lab, gateway: str = "", interface: str = "") -> dict[str, Any]:
    done = lab.client.run([*PROGRAM, gateway, interface], timeout=TIME_LIMIT_S, cwd=ROOT)
    assert done.stdout, done.stderr
    return cast(dict[str, Any], json.loads(done.stdout))


def environment(state: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(state)}


def natmap(lab: Lab, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.client.run([*NATMAP, *arguments], timeout=TIME_LIMIT_S, env=environment(state), cwd=ROOT)


def document(lab: Lab, state: Path, *arguments: str) -> dict[str, Any]:
    done = natmap(lab, state, *arguments, "--json")
    assert done.stdout, done.stderr
    return cast(dict[str, Any], json.loads(done.stdout))


def agree(tables: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether two tables are equal, apart from the seconds between the questions."""
    native, library = (
        sorted(({**row, "lease_s": None} for row in tables[name]), key=str) for name in ("native", "library")
    )
    leases = [sorted(row["lease_s"] for row in tables[name]) for name in ("native", "library")]
    return native == library and all(abs(a - b) <= 2 for a, b in zip(*leases, strict=True))


@pytest.mark.parametrize("version", [1, 2])
def test_both_clients_see_the_same_and_remove_each_others_mappings(version: int) -> None:
    with lab_with(Igd(version=version)) as lab:
        told = told_by_both(lab)
    for name in ("native", "library"):
        assert told[name]["found"] == [ROUTER, CLIENT, WAN, True]
        assert told[name]["asked"] == [WAN, "Connected", "ERROR_NONE"]
    assert abs(told["native"]["uptime_s"] - told["library"]["uptime_s"]) <= 2
    assert agree(told["tables"]), told["tables"]
    rows = {
        (row["external_port"], row["transport"], row["internal_client"], row["internal_port"]): row
        for row in told["tables"]["library"]
    }
    assert {key: row["description"] for key, row in rows.items()} == {
        (5070, 17, CLIENT, 5070): "Tom & Jo <x>",
        (5071, 6, CLIENT, 5071): "by the library",
    }
    assert all(600 + key[0] - 5 <= row["lease_s"] <= 600 + key[0] for key, row in rows.items())
    assert len(told["tables"]["library"]) == 4  # listed, and each asked for
    assert told["removed"] == [True, True]
    nothing = [{"error": "NoSuchEntryInArrayError"}] * 2
    assert told["tables afterwards"] == {"native": nothing, "library": nothing}


@pytest.mark.parametrize(("gateway", "interface"), [(ROUTER, ""), ("", INTERFACE), (ROUTER, INTERFACE)])
def test_the_router_is_found_by_address_and_by_interface(lab: Lab, gateway: str, interface: str) -> None:
    assert told_by_both(lab, gateway, interface)["library"]["found"] == [ROUTER, CLIENT, WAN, True]


def test_a_router_behind_another_nat_is_found_without_an_address(tmp_path: Path) -> None:
    with lab_with(Igd(wan_address="100.64.0.2")) as lab:
        said = document(lab, tmp_path, "status", *LIBRARY)
    assert said["protocols"]["upnp"]["found"]
    assert said["external_address"] is None


def test_natmap_does_all_by_the_library(lab: Lab, tmp_path: Path) -> None:
    said = document(lab, tmp_path, "status", *LIBRARY)
    assert (said["gateway"], said["external_address"], said["public"]) == (ROUTER, WAN, True)
    done = natmap(lab, tmp_path, "ip", *LIBRARY)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{WAN}\n", "")
    added = document(lab, tmp_path, "add", "5072", "--tcp", "--lease", "7200", *LIBRARY)["mapping"]
    assert (added["protocol"], added["transport"], added["external"], added["internal"]) == (
        "upnp",
        "tcp",
        f"{WAN}:5072",
        f"{CLIENT}:5072",
    )
    assert 7195 <= added["lease"] <= 7200
    [row] = document(lab, tmp_path, "list", *LIBRARY)["mappings"]
    assert (row["external_port"], row["owner"], row["description"]) == (5072, "this-machine", "nattools")
    removed = natmap(lab, tmp_path, "remove", "5072", "--tcp", *LIBRARY)
    assert (removed.returncode, removed.stdout, removed.stderr) == (
        0,
        f"removed tcp {WAN}:5072 -> {CLIENT}:5072\n",
        "",
    )
    assert document(lab, tmp_path, "list", *LIBRARY)["mappings"] == []


def test_a_port_that_the_router_forbids_is_refused_in_one_line(lab: Lab, tmp_path: Path) -> None:
    refused = natmap(lab, tmp_path, "add", "5073", "--external", "80", *LIBRARY)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.startswith(f"natmap: the router at {ROUTER}: AddPortMapping was refused: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", ["native", "miniupnpc"])
def test_upnpc_lists_what_natmap_lists(lab: Lab, tmp_path: Path, backend: str) -> None:
    upnpc = shutil.which("upnpc")
    if upnpc is None:
        pytest.skip("upnpc is not here: install the package miniupnpc")
    asked = ["--backend", backend, "--protocol", "upnp"]
    for port, transport in ((5074, "--udp"), (5075, "--tcp")):
        added = natmap(lab, tmp_path, "add", str(port), "--external", str(port + 10000), transport, *asked)
        assert added.returncode == 0, added.stderr
    rows = document(lab, tmp_path, "list", *asked)["mappings"]
    listed = lab.client.run([upnpc, "-l"], timeout=TIME_LIMIT_S)
    theirs = {
        (protocol.lower(), int(external), f"{client}:{internal}", description): int(lease)
        for protocol, external, client, internal, description, _, lease in ROW_OF_UPNPC.findall(listed.stdout)
    }
    ours = {
        (row["transport"], row["external_port"], row["internal"], row["description"]): row["lease"]
        for row in rows
    }
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    assert all(0 <= ours[key] - lease <= 3 for key, lease in theirs.items())
    assert f"ExternalIPAddress = {WAN}" in listed.stdout
    assert natmap(lab, tmp_path, "remove", "--all-mine", *asked).returncode == 0


def test_a_kept_mapping_is_back_after_a_restart_and_removed_at_the_end(tmp_path: Path) -> None:
    with lab_with(Igd()) as lab:
        process = lab.client.popen(
            [*NATMAP, "add", "5076", "--keep", "--json", *LIBRARY],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            cwd=ROOT,
        )

        lines = Lines(process)

        def event(within_s: float = PATIENCE_SECONDS) -> str:
            return cast(str, json.loads(lines.next(within_s=within_s))["event"])

        try:
            assert event() == "mapped"
            until_bound(lab, SSDP_PORT)
            lab.igd.restart()
            while not document(lab, tmp_path, "list", "--protocol", "upnp")["mappings"]:
                event(NOTICED_S)
            process.terminate()
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        # the library's own words about a router that goes away in the middle, and none of natmap's
        assert {line.partition(": ")[0] for line in stderr.splitlines()} <= {"connect", "send", "recv"}
        assert '"removed"' in stdout
        assert document(lab, tmp_path, "list", "--protocol", "upnp")["mappings"] == []


def test_without_a_router_it_says_so(tmp_path: Path) -> None:
    with lab_with(None) as lab:
        done = natmap(lab, tmp_path, "status", "--json", *LIBRARY)
    assert (done.returncode, done.stderr) == (3, "")
    assert not json.loads(done.stdout)["protocols"]["upnp"]["found"]
