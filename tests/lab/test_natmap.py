"""`natmap` as its user sees it, with a real router: miniupnpd on a NAT of the kernel's."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, Process, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines, OpenSockets, next_datagram
from tests.lab.stalls import Since

ROOT = Path(__file__).parents[2]
NATMAP = [sys.executable, "-m", "nattools.cli.natmap"]
TIME_LIMIT_S = 40.0
CLIENT, WAN = "192.168.0.108", "11.22.33.2"
PROTOCOLS = ["pcp", "nat-pmp", "upnp"]


def lab_with(igd: Igd | None) -> Lab:
    if igd is not None and (reason := why_no_igd()) is not None:
        pytest.skip(reason)
    return Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=igd), start_server=False)


class Natmap:
    """natmap on the client, with records of its own."""

    def __init__(self, lab: Lab, state: Path) -> None:
        self._lab = lab
        variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        self.environment = {**variables, "XDG_STATE_HOME": str(state), "COLUMNS": "100"}
        self.records = state / "nattools" / "mappings"

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._lab.client.run(
            [*NATMAP, *arguments], timeout=TIME_LIMIT_S, env={**self.environment, **environment}, cwd=ROOT
        )

    def document(self, *arguments: str) -> dict[str, Any]:
        done = self(*arguments, "--json")
        assert done.stdout, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        assert said["schema"] == 1
        return said

    def start(self, *arguments: str, stdout: int = subprocess.PIPE) -> Process:
        return self._lab.client.popen(
            [*NATMAP, *arguments], stdout=stdout, stderr=subprocess.PIPE, env=self.environment, cwd=ROOT
        )

    @contextmanager
    def keeping(self, port: int, *arguments: str) -> Iterator[Kept]:
        """`natmap add PORT --keep`, from when the mapping is there; it is gone after the block."""
        process = self.start("add", str(port), "--keep", "--json", *arguments)
        try:
            kept = Kept(process)
            assert kept.event()["event"] == "mapped"
            yield kept
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE_SECONDS)

    def table(self) -> dict[int, dict[str, Any]]:
        return {row["external_port"]: row for row in self.document("list")["mappings"]}


class Kept:
    """A natmap that keeps a mapping."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines = Lines(process)

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self._lines.next())
        return event

    def ended(self) -> tuple[int, str]:
        """The exit status, and what was said on stderr."""
        _, stderr = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, stderr


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A router that nothing happens to."""
    with lab_with(Igd()) as lab:
        yield lab


@pytest.fixture
def natmap(lab: Lab, tmp_path: Path) -> Natmap:
    return Natmap(lab, tmp_path)


def test_status_finds_the_router_by_every_protocol(natmap: Natmap) -> None:
    said = natmap.document("status")
    assert [name for name, protocol in said["protocols"].items() if protocol["found"]] == PROTOCOLS
    assert {key: said[key] for key in ("gateway", "interface", "local", "external_address", "public")} == {
        "gateway": "192.168.0.1",
        "interface": "eth0",
        "local": CLIENT,
        "external_address": WAN,
        "public": True,
    }
    assert said["model"]
    done = natmap("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"External  {WAN}, a public address\n" in done.stdout


@pytest.mark.parametrize("protocol", [*PROTOCOLS, None])
def test_ip_is_the_address_alone(natmap: Natmap, protocol: str | None) -> None:
    done = natmap("ip", *(("--protocol", protocol) if protocol else ()))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{WAN}\n", "")


def test_it_starts_where_nothing_is_imported_yet(lab: Lab, natmap: Natmap) -> None:
    command = [sys.executable, "-B", *NATMAP[1:], "ip"]  # with that option, no warm process is its parent
    done = lab.client.run(command, timeout=TIME_LIMIT_S, env=natmap.environment, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{WAN}\n", "")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_mapping_is_added_listed_and_removed(natmap: Natmap, protocol: str, transport: str) -> None:
    port = 5070 + PROTOCOLS.index(protocol)
    since = Since()
    added = natmap.document("add", str(port), f"--{transport}", "--protocol", protocol, "--lease", "7200")
    mapping = added["mapping"]
    assert {key: mapping[key] for key in ("protocol", "transport", "external", "internal", "public")} == {
        "protocol": protocol,
        "transport": transport,
        "external": f"{WAN}:{port}",
        "internal": f"{CLIENT}:{port}",
        "public": True,
    }
    assert 7199 - since.short_s <= mapping["lease"] <= 7200  # UPnP reads back what is left
    row = natmap.table()[port]
    assert (row["protocol"], row["transport"], row["owner"], row["keeping"], row["description"]) == (
        protocol,
        transport,
        "this-machine",
        "leased",
        "nattools",
    )
    assert 7100 < row["lease"] <= 7200
    removed = natmap("remove", str(port), f"--{transport}")
    assert (removed.returncode, removed.stdout, removed.stderr) == (
        0,
        f"removed {transport} {WAN}:{port} -> {CLIENT}:{port}\n",
        "",
    )
    assert port not in natmap.table()
    assert list(natmap.records.iterdir()) == []


def test_what_arrives_at_the_mapping_reaches_this_machine(
    lab: Lab, natmap: Natmap, open_sockets: OpenSockets
) -> None:
    mapping = natmap.document("add", "5076", "--external", "15076")["mapping"]
    assert mapping["external"] == f"{WAN}:15076"
    [inside] = open_sockets(lab.client, [Endpoint.of(CLIENT, 5076)])
    [outside] = open_sockets(lab.public, [STRANGER])
    outside.sendto(b"INVITE", (WAN, 15076))
    assert next_datagram(inside, PATIENCE_SECONDS) == (b"INVITE", STRANGER)
    assert natmap("remove", "15076").returncode == 0


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
def test_an_ipv6_router_lets_in_what_is_asked_for(natmap: Natmap, protocol: str) -> None:
    arguments = ("-6", "--protocol", protocol)
    said = natmap.document("add", "5076", *arguments)["mapping"]
    assert (said["protocol"], said["external"], said["internal"]) == (
        protocol,
        *["[2001:db8:1::108]:5076"] * 2,
    )
    (listed,) = natmap.document("list", "-6")["mappings"]
    assert (listed["protocol"], listed["external"]) == (protocol, said["external"])
    assert natmap("remove", "5076", *arguments).returncode == 0
    assert natmap.document("list", "-6")["mappings"] == []


def test_adding_again_renews(natmap: Natmap) -> None:
    for lease in ("600", "1200"):
        assert natmap.document("add", "5077", "--lease", lease)["mapping"]["protocol"] == "pcp"
    assert 600 < natmap.table()[5077]["lease"] <= 1200
    assert natmap("remove", "--all-mine").returncode == 0
    assert 5077 not in natmap.table()


def test_a_lease_for_ever_is_upnps_alone(natmap: Natmap) -> None:
    added = natmap.document("add", "5078", "--lease", "0")["mapping"]
    assert added["protocol"] == "upnp"
    assert added["lease"] in range(604790, 604801)  # all that an IGD:2 gives, and a second may be over
    assert natmap("remove", "5078").returncode == 0
    refused = natmap("add", "5078", "--lease", "0", "--protocol", "pcp")
    assert refused.returncode == 4
    assert refused.stderr.startswith("natmap: pcp grants leases only")


def test_a_port_that_the_router_forbids_is_refused_in_one_line(natmap: Natmap) -> None:
    refused = natmap("add", "5079", "--external", "80", "--protocol", "upnp")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.startswith("natmap: ")
    assert refused.stderr.count("\n") == 1
    assert list(natmap.records.iterdir()) == []


def test_a_table_fits_a_narrow_terminal(natmap: Natmap) -> None:
    assert natmap("add", "5080", "--lease", "3590", "--description", "the phone in the hall").returncode == 0
    for columns in (40, 60, 80):
        done = natmap("list", COLUMNS=str(columns))
        assert max(map(len, done.stdout.splitlines())) <= columns
        assert "5080/udp" in done.stdout
        assert "this machine," in done.stdout
        assert "59 min" in done.stdout
    assert natmap("remove", "5080").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_kept_mapping_is_removed_at_a_signal(natmap: Natmap, number: signal.Signals) -> None:
    with natmap.keeping(5081) as kept:
        row = natmap.table()[5081]
        assert row["keeping"] == "kept"
        assert row["process"] > 0
        kept.process.send_signal(number)
        assert kept.event()["event"] == "removed"
        assert kept.ended() == (0, "")
    assert 5081 not in natmap.table()
    assert list(natmap.records.iterdir()) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_process_keeps_is_its_own(natmap: Natmap, protocol: str) -> None:
    """Also by another protocol: on this router removing one would remove both."""
    with natmap.keeping(5082) as kept:
        for arguments in (
            ("add", "5082", "--protocol", protocol),
            ("remove", "5082"),
            ("remove", "--all-mine"),
        ):
            refused = natmap(*arguments)
            assert (refused.returncode, refused.stdout) == (4, ""), arguments
            assert "udp port 5082" in refused.stderr
            assert "is kept by process" in refused.stderr
        assert natmap.table()[5082]["keeping"] == "kept"
        kept.process.terminate()
        assert kept.ended() == (0, "")


def test_a_reader_that_goes_away_ends_it_and_its_mapping(natmap: Natmap) -> None:
    read, write = os.pipe()
    process = natmap.start("add", "5083", "--keep", "--lease", "120", stdout=write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline().startswith("Mapped    udp")
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in stderr
    assert 5083 not in natmap.table()


@pytest.mark.parametrize(
    ("protocol", "next_start"),
    [("pcp", ("status",)), ("nat-pmp", ("ip",)), ("upnp", ("add", "5085")), ("upnp", ("status",))],
)
def test_what_a_killed_natmap_left_behind_the_next_one_removes(
    natmap: Natmap, protocol: str, next_start: tuple[str, ...]
) -> None:
    with natmap.keeping(5084, "--protocol", protocol) as kept:
        kept.process.kill()
        kept.process.wait(PATIENCE_SECONDS)
    assert natmap.table()[5084]["keeping"] == "left-behind"
    assert natmap(*next_start).returncode == 0
    assert 5084 not in natmap.table()
    assert natmap("remove", "--all-mine").returncode == 0
    assert list(natmap.records.iterdir()) == []


def test_every_change_is_told(tmp_path: Path) -> None:
    with lab_with(Igd()) as lab:
        natmap = Natmap(lab, tmp_path)
        assert lab.igd is not None
        with natmap.keeping(5086) as kept:
            lab.igd.change_wan_address("11.22.33.9")
            while (event := kept.event())["event"] == "renewed":
                pass  # the router tells of its new address before it gives up the old one
            assert (event["event"], event["previous"]) == ("changed", f"{WAN}:5086")
            assert event["mapping"]["external"] == "11.22.33.9:5086"
            time.sleep(3.2)  # the epochs tell whole seconds, and two of them are tolerated
            lab.igd.restart()
            assert kept.event()["event"] in ("renewed", "restored")
            kept.process.send_signal(signal.SIGINT)
            while kept.event()["event"] != "removed":
                pass
            assert kept.ended() == (0, "")
        assert natmap.table() == {}


def test_a_router_that_is_gone_at_the_end_is_said(tmp_path: Path) -> None:
    with lab_with(Igd()) as lab:
        natmap = Natmap(lab, tmp_path)
        assert lab.igd is not None
        with natmap.keeping(5087, "--protocol", "pcp") as kept:
            lab.igd.kill()
            kept.process.terminate()
            assert kept.event()["event"] == "not-removed"
            status, stderr = kept.ended()
        assert status == 3
        assert stderr.count("\n") == 1
        [record] = natmap.records.iterdir()  # the next start removes it
        assert json.loads(record.read_text())["kept"] is True


def test_without_a_public_address_it_is_a_second_nat(tmp_path: Path) -> None:
    """A miniupnpd tells no address when its own is the carrier's, and refuses every mapping."""
    with lab_with(Igd(wan_address="100.64.0.2")) as lab:
        natmap = Natmap(lab, tmp_path)
        done = natmap("status")
        assert (done.returncode, done.stderr) == (5, "")
        assert "another NAT" in " ".join(done.stdout.split())
        done = natmap("ip")
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith("natmap: NOT REACHABLE FROM OUTSIDE: ")
        done = natmap("add", "5088")
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("natmap: NOT REACHABLE FROM OUTSIDE: ")


@pytest.fixture(scope="module")
def lab_without_router() -> Iterator[Lab]:
    with lab_with(None) as lab:
        yield lab


@pytest.mark.parametrize("arguments", [("status",), ("add", "5070"), ("list",), ("remove", "5070"), ("ip",)])
def test_without_a_router_the_status_is_3(
    lab_without_router: Lab, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    natmap = Natmap(lab_without_router, tmp_path)
    done = natmap(*arguments)
    assert done.returncode == 3
    if arguments == ("status",):
        assert "UPnP      no: " in done.stdout
    else:
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert done.stderr.startswith("natmap: no router (gateway 192.168.0.1) does port mapping: ")


@pytest.mark.parametrize("arguments", [("status",), ("add", "5070"), ("add", "5070", "--keep")])
def test_ctrl_c_during_the_search_is_quiet(
    lab_without_router: Lab, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    natmap = Natmap(lab_without_router, tmp_path)
    process = natmap.start(*arguments, "--timeout", "30", "-v")
    assert process.stderr is not None
    assert process.stderr.readline()  # it says what it asks
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert "Aborted" not in stderr


def test_colour_is_for_terminals_that_want_it(lab: Lab, tmp_path: Path) -> None:
    said = {}
    for no_color in ("", "1"):
        natmap = Natmap(lab, tmp_path)
        natmap.environment |= {"TERM": "xterm", "NO_COLOR": no_color}
        ours, terminal = pty.openpty()
        process = natmap.start("status", stdout=terminal)
        os.close(terminal)
        read = bytearray()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and select.select([ours], [], [], PATIENCE_SECONDS)[0]:
            try:
                read += os.read(ours, 4096)
            except OSError:  # the terminal's other side is closed
                break
        os.close(ours)
        process.communicate(timeout=PATIENCE_SECONDS)
        said[no_color] = read.decode()
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", said[""])
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", said["1"])
    assert f"External  {WAN}, a public address" in re.sub(r"\x1b\[[0-9;]*m", "", said["1"])
