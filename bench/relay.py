"""How many RTP packets one core relays: nattools' sockets and kernel, rtpengine in user space, a loop in C.

The same traffic for all in one run: 172-byte RTP both ways on loopback, the relay on one core and the load on
another. It is spread over a hundred calls, since rtpengine drops what is more than 50 packets behind in one.
Rates rise until packets are lost. Asked of `sockets`: 0.6 of what rtpengine relays without loss, and 500
calls at once for a minute without a lost packet, in memory that does not grow. The kernel engine relays
between networks, see `bench.relay_kernel`; asked of it: half of rtpengine's processor time for a packet.

    python -m bench.relay [--seconds 4] [--calls 100] [--most-rate 200000] [--minute 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from nattools.endpoint import Endpoint
from nattools.session.engines.kernel import KernelEngine
from nattools.session.engines.sockets import SocketEngine
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, Side
from nattools.sip.sdp import compose_sdp

LEAST_RATIO = 0.6
CALLS_OF_THE_MINUTE = 500
PACKETS_OF_A_CALL = 100  # a second, both ways: 20 ms of audio in each
MOST_GROWTH_MB = 2.0

_LOOPBACK = "127.0.0.1"
LOAD_CORE, RELAY_CORE = "0", "1"
_RATES = (20_000, 40_000, 60_000, 80_000, 100_000, 120_000, 140_000, 160_000, 180_000, 200_000)
_FIRST_LOAD_PORT, _FIRST_RELAY_PORT, _LAST_RELAY_PORT = 10_000, 20_000, 29_999
_NG_PORT = 22_223
_START_S = 10.0
_SETTLE_S = 0.5
_LEAST_KEPT = 0.9  # of a rate, else it is the load that is too slow
_MOST_P50_US = 20_000.0  # later than the next packet: a queue grows, and would overflow in a longer run

Line = tuple[int, int, int, int]
"""The port of A, the relay's for A, the port of B, the relay's for B."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two sides are, and the relay."""

    a: str = _LOOPBACK
    relay: str = _LOOPBACK
    b: str = _LOOPBACK


LOCAL = Addresses()


@dataclass(frozen=True, slots=True)
class Run:
    """One load, and what it cost the relay."""

    rate: int
    sent: int
    received: int
    kept: float
    cpu_s: float
    p50_us: float
    p99_us: float
    grown_mb: float

    @property
    def lost(self) -> int:
        return self.sent - self.received

    @property
    def packets_per_core_s(self) -> float:
        return self.received / self.cpu_s if self.cpu_s else 0.0

    @property
    def is_clean(self) -> bool:
        """Whether the relay kept up: nothing lost, and no queue that grows."""
        return not self.lost and 0 <= self.p50_us <= _MOST_P50_US

    @property
    def reached(self) -> int:
        """The packets a second that there were."""
        return round(self.rate * self.kept)


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay that runs, and the ports of its calls."""

    process: subprocess.Popen[bytes]
    lines: Sequence[Line]


def load_ports(calls: int) -> list[tuple[int, int]]:
    """The ports of A and B of each call."""
    return [(port, port + 2) for port in range(_FIRST_LOAD_PORT, _FIRST_LOAD_PORT + 4 * calls, 4)]


@contextmanager
def pinned(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a relay on its core until the block ends."""
    process = subprocess.Popen(
        ["taskset", "-c", RELAY_CORE, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def sockets(calls: int) -> Iterator[Relay]:
    """The engine of nattools, in a process of its own."""
    with pinned(sys.executable, "-m", "bench.relay", "--serve", "sockets", "--calls", str(calls)) as process:
        assert process.stdout is not None
        yield Relay(process, json.loads(process.stdout.readline()))


async def serve(calls: int, name: str, at: Addresses) -> None:
    """What that process does: open the streams, tell their ports, relay until standard input ends."""
    ports = PortPairs(_FIRST_RELAY_PORT, _LAST_RELAY_PORT, entropy=secrets.token_bytes)
    address = ip_address(at.relay)
    engine: SocketEngine | KernelEngine
    if name == "kernel":
        engine = await KernelEngine.start(address, ports, name="bench_relay")
    else:
        engine = SocketEngine(address, ports)
    lines: list[Line] = []
    for a, b in load_ports(calls):
        stream = await engine.open_stream()
        for side, ip, port in ((Side.A, at.a, a), (Side.B, at.b, b)):
            expected = Expectation(Endpoint.of(ip, port), payload_types=frozenset({0}), is_proven=True)
            stream.expect(side, expected)
        lines.append((a, stream.ports(Side.A).rtp.port, b, stream.ports(Side.B).rtp.port))
    print(json.dumps(lines), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await engine.close()


@contextmanager
def bare_loop(calls: int, program: Path) -> Iterator[Relay]:
    """A loop of recv and sendto in C, without a look at a packet."""
    lines = [(a, a + 10_000, b, b + 10_000) for a, b in load_ports(calls)]
    with pinned(str(program), "relay") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(as_text(lines))
        process.stdin.close()
        process.stdin = None
        process.stdout.readline()
        yield Relay(process, lines)


@contextmanager
def rtpengine(calls: int, at: Addresses = LOCAL) -> Iterator[Relay]:
    """An rtpengine with one thread and no kernel module."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        process = stack.enter_context(
            pinned(
                "rtpengine",
                "--config-file=none",
                "--foreground",
                "--log-stderr",
                "--log-level=1",
                "--table=-1",
                f"--interface={at.relay}",
                f"--listen-ng={_LOOPBACK}:{_NG_PORT}",
                f"--port-min={_FIRST_RELAY_PORT}",
                f"--port-max={_LAST_RELAY_PORT}",
                "--num-threads=1",
                f"--pidfile={directory}/pid",
            )
        )
        control = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        control.connect((_LOOPBACK, _NG_PORT))
        _wait_for(control)
        lines: list[Line] = []
        for number, (a, b) in enumerate(load_ports(calls)):
            for_b = _describe(control, "offer", number, Endpoint.of(at.a, a))
            for_a = _describe(control, "answer", number, Endpoint.of(at.b, b))
            lines.append((a, for_a, b, for_b))
        yield Relay(process, lines)


def _wait_for(control: socket.socket) -> None:
    control.settimeout(0.1)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            control.send(b"0 d7:command4:pinge")
            control.recv(1000)
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(0.05)
        else:
            control.settimeout(_START_S)
            return
    raise SystemExit("rtpengine does not answer")


def _describe(control: socket.socket, command: str, number: int, where: Endpoint) -> int:
    """Give rtpengine a description (ng protocol); the port that it puts in its place."""
    body = compose_sdp(where, session_id=1, version=1)
    words = {
        b"command": command.encode(),
        b"call-id": b"call-%d" % number,
        b"from-tag": b"a",
        b"ICE": b"remove",
        b"sdp": body,
    }
    if command == "answer":
        words[b"to-tag"] = b"b"
    pairs = b"".join(b"%d:%b%d:%b" % (len(k), k, len(v), v) for k, v in words.items())
    control.send(b"%d-%b d%be" % (number, command.encode(), pairs))
    answer = control.recv(65536)
    found = re.search(rb"m=audio (\d+)", answer)
    if found is None:
        raise SystemExit(f"rtpengine answered {answer!r}")
    return int(found[1])


def as_text(lines: Sequence[Line]) -> bytes:
    """Lines, as the load reads them."""
    return "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()


def run(relay: Relay, program: Path, rate: int, seconds: float) -> Run:
    """Put a load on a relay."""
    process = psutil.Process(relay.process.pid)
    before, memory = process.cpu_times(), process.memory_info().rss
    done = subprocess.run(
        ["taskset", "-c", LOAD_CORE, str(program), "load", str(rate), str(seconds)],
        input=as_text(relay.lines),
        capture_output=True,
        check=True,
        timeout=seconds * 3 + 30,
    )
    after = process.cpu_times()
    told = json.loads(done.stdout)
    return Run(
        rate,
        told["sent"],
        told["received"],
        seconds / told["seconds"],
        after.user + after.system - before.user - before.system,
        told["p50_us"],
        told["p99_us"],
        (process.memory_info().rss - memory) / 1e6,
    )


def climb(relay: Relay, program: Path, *, seconds: float, most_rate: int) -> list[Run]:
    """Higher and higher rates, until the relay did not keep up with two in a row, or the load with one."""
    run(relay, program, _RATES[0] // 4, 1.0)  # who sends from where is learnt
    runs: list[Run] = []
    for rate in _RATES:
        is_over = len(runs) > 1 and not runs[-1].is_clean and not runs[-2].is_clean
        if rate > most_rate or is_over or (runs and runs[-1].kept < _LEAST_KEPT):
            break
        time.sleep(_SETTLE_S)
        runs.append(run(relay, program, rate, seconds))
    return runs


def show(title: str, results: dict[str, list[Run]]) -> None:
    """Print each relay's runs."""
    table = Table(title=title)
    for column in ("", "rate", "lost", "packets / core·s", "p50 µs", "p99 µs", "memory MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, runs in results.items():
        for each in runs:
            table.add_row(
                name,
                f"{each.reached:,}",
                f"{each.lost:,}",
                f"{each.packets_per_core_s:,.0f}",
                f"{each.p50_us:,.0f}",
                f"{each.p99_us:,.0f}",
                f"{each.grown_mb:+.1f}",
            )
        table.add_section()
    Console(width=118).print(table)


def highest_clean(runs: Sequence[Run]) -> Run | None:
    """The run of the highest rate that the relay kept up with."""
    return max((it for it in runs if it.is_clean), key=lambda it: it.reached, default=None)


def judge(results: dict[str, list[Run]]) -> bool:
    """Whether `sockets` reaches what is asked beside rtpengine, by rate and by processor time."""
    own, theirs = highest_clean(results["sockets"]), highest_clean(results.get("rtpengine", ()))
    if own is None or theirs is None:
        print("no comparison: rtpengine is not installed, or nothing was relayed without loss")
        return own is not None
    ratio = own.reached / theirs.reached
    print(
        f"without loss or a growing queue: sockets {own.reached:,}, rtpengine {theirs.reached:,}: "
        f"{ratio:.2f} (asked {LEAST_RATIO})"
    )
    by_rate = {it.rate: it for it in results["rtpengine"]}
    for each in results["sockets"]:
        if each.is_clean and each.rate in by_rate:
            share = each.packets_per_core_s / by_rate[each.rate].packets_per_core_s
            print(f"at {each.rate:,}: {share:.2f} of rtpengine's packets for the same processor time")
    return ratio >= LEAST_RATIO


def main() -> int:
    """Print the tables; 1 when less was reached than is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--most-rate", type=int, default=_RATES[-1])
    parser.add_argument("--minute", type=float, default=60.0, help="seconds of the 500 calls; 0 for none")
    parser.add_argument("--serve", choices=["sockets"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.calls, options.serve, LOCAL))
        return 0
    from bench import relay_kernel  # not above: it is built on this file

    compiler = shutil.which("cc")
    if compiler is None:
        print("skipped: the load is a program in C, and there is no compiler (cc)")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "relay_load")
        source = Path(__file__).with_name("relay_load.c")
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
        results: dict[str, list[Run]] = {}
        relays = {"sockets": sockets, "rtpengine": rtpengine, "bare loop in C": None}
        for name, start in relays.items():
            if name == "rtpengine" and shutil.which(name) is None:
                continue
            opened = bare_loop(options.calls, program) if start is None else start(options.calls)
            with opened as relay:
                results[name] = climb(relay, program, seconds=options.seconds, most_rate=options.most_rate)
        show(f"172-byte RTP, {options.calls} call(s), relay on one core, {options.seconds:g} s each", results)
        is_enough = judge(results)
        if "rtpengine" in results:
            is_enough &= (
                relay_kernel.measure(program, calls=options.calls, seconds=options.seconds) is not False
            )
        if options.minute:
            with sockets(CALLS_OF_THE_MINUTE) as relay:
                run(relay, program, 10_000, 2.0)
                rate = CALLS_OF_THE_MINUTE * PACKETS_OF_A_CALL
                minute = run(relay, program, rate, options.minute)
            show(f"{CALLS_OF_THE_MINUTE} calls for {options.minute:g} s", {"sockets": [minute]})
            is_enough &= minute.is_clean and minute.kept > _LEAST_KEPT and minute.grown_mb <= MOST_GROWTH_MB
    return 0 if is_enough else 1


if __name__ == "__main__":
    raise SystemExit(main())
