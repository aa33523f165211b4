"""How many calls a second one core sets up and ends: natgate, and beside it the B2BUA of sippy.

sipp calls sipp through each of them: INVITE, 180, 200, ACK, a moment, BYE, 200, with a description in INVITE
and 200. natgate is the registrar that the callee has registered with. For each call it opens a stream, which
is four sockets, and writes it into both descriptions; sippy passes descriptions on as they are. Each has a
core of its own, sipp has another, and all are on one host of the laboratory. Rates rise until calls fail.

    python -m bench.calls [--seconds 8] [--most-rate 700] [--sippy PYTHON]

`--sippy` is the Python that has sippy (`pip install sippy` into an environment of its own); without it
natgate is measured alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from nattools.lab.namespaces import Host, Lab, Process, why_unavailable
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology

LEAST_CALLS_PER_CORE_S = 345
"""What sippy's b2bua_simple, 2.4.0, did on the machine that these measurements were first made on."""

_ROOT = Path(__file__).parents[1]
_LOAD_CORE, _OWN_CORE = "0", "1"
_CALLER, _CALLEE, _GATE, _SIPPY = "127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.6"
_RATES = (50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700)
_HOLDING_MS = 200
_START_S = 10.0
_SETTLE_S = 1.0
_GIVE_UP_S = 40.0  # for calls that are still open when the last one was begun
_MOST_FAILED = 0.01
_LEAST_KEPT = 0.75  # of a rate, else it is the load that is too slow; the last calls take a moment more
_PASSWORD = "calls"
_LIMITS = """
requests_per_second = 1000000
calls_per_source = 100000
calls_per_user = 100000
most_calls = 40000
"""

# Registers bob at CALLEE with the registrar at GATE, as a phone with a password does.
_REGISTER = """
import secrets, socket, sys
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request
gate, callee, password = sys.argv[1:]
phone = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
phone.bind((callee, 5060))
phone.settimeout(5)
digest = DigestClient("bob", password, entropy=secrets.token_bytes)
credentials = []
for number in (1, 2):
    phone.sendto(compose_request("REGISTER", f"sip:{gate}", [
        ("Via", f"SIP/2.0/UDP {callee}:5060;branch=z9hG4bK{number}"), ("Max-Forwards", "70"),
        ("From", f"<sip:bob@{gate}>;tag=1"), ("To", f"<sip:bob@{gate}>"), ("Call-ID", "bench"),
        ("CSeq", f"{number} REGISTER"), ("Contact", f"<sip:bob@{callee}:5060>"), ("Expires", "3600"),
        *credentials]), (gate, 5060))
    response = SipMessage.parse(phone.recv(65535))
    if response.status_code == 200:
        sys.exit(0)
    digest.challenged(response)
    credentials = digest.headers("REGISTER", f"sip:{gate}")
sys.exit(f"REGISTER was answered by {response.status_code}")
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One rate, and what it cost."""

    rate: int
    calls: int
    failed: int
    repeated: int
    reached: float
    cpu_s: float
    grown_mb: float

    @property
    def calls_per_core_s(self) -> float:
        return self.calls / self.cpu_s if self.cpu_s else 0.0

    @property
    def is_clean(self) -> bool:
        """Whether every call was set up and ended."""
        return not self.failed and self.calls > 0

    @property
    def is_kept_up_with(self) -> bool:
        """Whether there is no crowd of calls that failed; sippy loses one now and then at any rate."""
        return self.failed <= _MOST_FAILED * self.calls


@dataclass(frozen=True, slots=True)
class Measured:
    """A program that passes calls on, where it listens, and its process."""

    address: str
    process: psutil.Process
    holder: Process


def _start(host: Host, words: Sequence[str], address: str) -> Measured:
    """Start a program on its core, and wait until it has a socket on port 5060 of that address."""
    holder = host.popen(
        ["taskset", "-c", _OWN_CORE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"SIPLOG_BEND": "none", "PYTHONPATH": str(_ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=_ROOT,
    )
    wanted = "".join(f"{int(octet):02X}" for octet in reversed(address.split("."))) + f":{5060:04X}"
    deadline = time.monotonic() + _START_S
    while True:
        children = psutil.Process(holder.pid).children(recursive=True)
        if children and wanted in Path(f"/proc/{children[-1].pid}/net/udp").read_text():
            return Measured(address, children[-1], holder)
        if holder.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(words)} does not listen")
        time.sleep(0.05)


@contextmanager
def natgate(host: Host, directory: Path) -> Iterator[Measured]:
    """A natgate that is the registrar, with bob registered."""
    users, settings = directory / "users.toml", directory / "natgate.toml"
    users.write_text(f"[users]\nbob = {json.dumps(_PASSWORD)}\n")
    users.chmod(0o600)
    settings.write_text(_LIMITS)
    words = [sys.executable, "-P", "-m", "nattools.cli.natgate", "--registrar", "--strangers"]
    words += ["--users", str(users), "--config", str(settings), "--listen", f"udp:{_GATE}"]
    words += ["--status", str(directory / "status")]
    measured = _start(host, words, _GATE)
    registered = host.run(
        [sys.executable, "-c", _REGISTER, _GATE, _CALLEE, _PASSWORD], timeout=_START_S, cwd=_ROOT
    )
    if registered.returncode:
        raise SystemExit(registered.stderr.strip())
    try:
        yield measured
    finally:
        measured.holder.kill()


@contextmanager
def sippy(host: Host, python: str) -> Iterator[Measured]:
    """The simple B2BUA of sippy, which sends every call to one place."""
    words = [python, "-m", "sippy.b2bua_simple", "-f", "-l", _SIPPY, "-p", "5060", "-n", f"{_CALLEE}:5060"]
    measured = _start(host, words, _SIPPY)
    try:
        yield measured
    finally:
        measured.holder.kill()


@contextmanager
def callee(host: Host) -> Iterator[None]:
    """A sipp that answers."""
    scenario = Path(__file__).with_name("calls_uas.xml")
    answering = host.popen(
        ["taskset", "-c", _LOAD_CORE, "sipp", "-sf", str(scenario), "-i", _CALLEE, "-p", "5060", "-nostdin"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        answering.kill()


def run(host: Host, measured: Measured, rate: int, seconds: float) -> Run:
    """Call at a rate, and see what became of the calls."""
    process = measured.process
    before, memory = process.cpu_times(), process.memory_info().rss
    with callee(host), tempfile.TemporaryDirectory() as scratch:
        time.sleep(_SETTLE_S / 2)
        table = Path(scratch, "stat.csv")
        words = ["taskset", "-c", _LOAD_CORE, "sipp", "-sf", str(Path(__file__).with_name("calls_uac.xml"))]
        words += ["-i", _CALLER, "-p", "5060", "-r", str(rate), "-m", str(round(rate * seconds))]
        words += ["-d", str(_HOLDING_MS), "-l", "100000", "-trace_stat", "-stf", str(table), "-fd", "1"]
        words += ["-timeout", str(round(seconds + _GIVE_UP_S)), "-nostdin", f"{measured.address}:5060"]
        host.run(words, timeout=seconds + 2 * _GIVE_UP_S)
        last = list(csv.DictReader(table.open(), delimiter=";"))[-1]
    time.sleep(_SETTLE_S)
    after = process.cpu_times()
    calls, failed = int(last["SuccessfulCall(C)"]), int(last["FailedCall(C)"])
    return Run(
        rate,
        calls,
        failed + round(rate * seconds) - calls - failed,
        int(last["Retransmissions(C)"]),
        float(last["CallRate(C)"]),
        after.user + after.system - before.user - before.system,
        (process.memory_info().rss - memory) / 1e6,
    )


def climb(host: Host, measured: Measured, *, seconds: float, most_rate: int) -> list[Run]:
    """Higher and higher rates, until calls fail, or the load does not keep the rate."""
    runs: list[Run] = []
    run(host, measured, _RATES[0] // 2, 2.0)  # what is loaded at the first call is loaded
    for rate in _RATES:
        if rate > most_rate:
            break
        runs.append(run(host, measured, rate, seconds))
        if not runs[-1].is_kept_up_with or runs[-1].reached < _LEAST_KEPT * rate:
            break
    return runs


def show(results: dict[str, list[Run]], seconds: float) -> None:
    """Print each program's runs."""
    table = Table(title=f"calls set up and ended, each program on one core, {seconds:g} s each")
    for column in (
        "",
        "calls/s",
        "calls",
        "failed",
        "sent again",
        "ms of core / call",
        "calls / core·s",
        "memory MB",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, runs in results.items():
        for each in runs:
            table.add_row(
                name,
                f"{each.rate:,}",
                f"{each.calls:,}",
                f"{each.failed:,}",
                f"{each.repeated:,}",
                f"{1000 / each.calls_per_core_s if each.calls_per_core_s else 0:.2f}",
                f"{each.calls_per_core_s:,.0f}",
                f"{each.grown_mb:+.1f}",
            )
        table.add_section()
    Console(width=118).print(table)


def judge(results: dict[str, list[Run]]) -> bool:
    """Whether natgate sets up as many calls as is asked, and how it stands beside sippy.

    It is judged at its highest rate without a failed call; at low rates each message wakes it up anew.
    """
    best = max((it for it in results["natgate"] if it.is_clean), key=lambda it: it.rate, default=None)
    if best is None:
        print("natgate: no rate without a failed call")
        return False
    print(
        f"natgate at {best.rate} calls/s, none failed: {best.calls_per_core_s:,.0f} for each second "
        f"of its core (asked {LEAST_CALLS_PER_CORE_S})"
    )
    theirs = {it.rate: it for it in results.get("sippy", ()) if it.is_kept_up_with}
    for own in results["natgate"]:
        if own.is_clean and own.rate in theirs:
            ratio = own.calls_per_core_s / theirs[own.rate].calls_per_core_s
            print(f"at {own.rate}: {ratio:.2f} of sippy's calls for the same processor time")
    return best.calls_per_core_s >= LEAST_CALLS_PER_CORE_S


def main() -> int:
    """Print the table; 1 when less was reached than is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--most-rate", type=int, default=_RATES[-1])
    parser.add_argument("--sippy", metavar="PYTHON", help="the Python that has sippy")
    options = parser.parse_args()
    missing = why_unavailable() if shutil.which("sipp") else "sipp is not installed (apt install sip-tester)"
    if missing is not None:
        print(f"skipped: {missing}")
        return 0
    results: dict[str, list[Run]] = {}
    with (
        Lab(Topology(NatKind.FULL_CONE), start_server=False) as lab,
        tempfile.TemporaryDirectory() as scratch,
    ):
        host = lab.public
        with natgate(host, Path(scratch)) as measured:
            results["natgate"] = climb(host, measured, seconds=options.seconds, most_rate=options.most_rate)
        if options.sippy:
            with sippy(host, options.sippy) as measured:
                results["sippy"] = climb(host, measured, seconds=options.seconds, most_rate=options.most_rate)
    show(results, options.seconds)
    return 0 if judge(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
