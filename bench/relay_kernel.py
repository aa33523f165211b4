"""What a relayed packet costs the machine between two networks: the kernel engine, beside rtpengine.

The kernel relays in no process, so what is counted is how busy a core is, interrupts and softirqs included.
All that the relay's host receives is handled on one core (receive packet steering), where the relay runs as
well; the load, and all that the two phones' hosts receive, is on the other. What the core does anyway is
measured before and after each load, and taken off; loads during which it did much else are left out. It is
part of `bench.relay`, and needs root and a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.relay import LOAD_CORE, RELAY_CORE, Addresses, as_text, rtpengine, serve
from nattools.lab.namespaces import Host, Lab, Process, why_unavailable
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, WAN_ADDRESS, Topology

LEAST_RATIO = 2.0

_ROOT = Path(__file__).parents[1]
_AT = Addresses("198.51.100.108", WAN_ADDRESS, str(SERVER.ip))
_ENGINES = ("kernel", "rtpengine", "sockets")
_RATE = 40_000
_ROUNDS = 5
_MOST_TRIES = 4  # for each round
_MOST_OTHER_SHARE = 0.1
_WARM_RATE = 4_000
_WARM_S = 3.0  # who sends from where is learnt, and told to the kernel
_START_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Round:
    """One load: how long the relay's core was busy for it, and with what outcome."""

    sent: int
    received: int
    busy_s: float
    other_share: float
    """Of the core's time, what it was busy with before or after, whichever was more."""
    p50_us: float
    p99_us: float

    @property
    def us_per_packet(self) -> float:
        return self.busy_s / self.received * 1e6 if self.received else float("inf")


def busy_s() -> float:
    """A clock that goes on while the relay's core is not idle.

    The time that is idle is taken off, since that is measured. The kernel counts what a core is busy with by
    its ticks, and an idle core has none: what comes in and goes out between two of them would cost nothing.
    """
    line = next(
        it for it in Path("/proc/stat").read_text().splitlines() if it.startswith(f"cpu{RELAY_CORE} ")
    )
    _user, _nice, _system, idle, waiting, *_ = map(int, line.split()[1:])
    return time.monotonic() - (idle + waiting) / _TICKS


def busy_share(seconds: float) -> float:
    """Of the core's time, what it is busy for in the next seconds."""
    before_s, began = busy_s(), time.monotonic()
    time.sleep(seconds)
    return (busy_s() - before_s) / (time.monotonic() - began)


def steer(host: Host, core: str) -> None:
    """Have a core handle all that a host receives."""
    mask = f"{1 << int(core):x}"
    queues = "/sys/class/net/*/queues/rx-*/rps_cpus"
    script = f"mount -t sysfs none /sys && for it in {queues}; do echo {mask} >$it; done"
    done = host.run(["unshare", "--mount", "sh", "-c", script], timeout=_START_S)
    if done.returncode:
        raise SystemExit(f"packets cannot be steered to a core: {done.stderr.strip()}")


@contextmanager
def relaying(host: Host, engine: str, calls: int) -> Iterator[bytes]:
    """A relay on that host; the ports of its calls, as the load reads them."""
    words = ["taskset", "-c", RELAY_CORE, sys.executable, "-m", "bench.relay_kernel", "--serve", engine]
    process: Process = host.popen(
        [*words, "--calls", str(calls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT
    )
    try:
        assert process.stdout is not None
        yield as_text(json.loads(process.stdout.readline()))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_START_S)


def serve_here(engine: str, calls: int) -> None:
    """Relay on this host until standard input ends."""
    if engine != "rtpengine":
        asyncio.run(serve(calls, engine, _AT))
        return
    with rtpengine(calls, _AT) as relay:
        print(json.dumps(relay.lines), flush=True)
        sys.stdin.read()


def load(lab: Lab, program: Path, lines: bytes, rate: int, seconds: float) -> Round:
    """Put a load on the relay."""
    words = ["taskset", "-c", LOAD_CORE, str(program), "load", str(rate), str(seconds)]
    shares = [busy_share(seconds / 2)]
    before_s, began = busy_s(), time.monotonic()
    done = subprocess.run(
        [*words, _AT.a, _AT.relay, _AT.b, str(lab.client.network), str(lab.public.network)],
        input=lines,
        capture_output=True,
        check=True,
        timeout=seconds * 3 + _START_S,
    )
    used_s, took_s = busy_s() - before_s, time.monotonic() - began
    shares.append(busy_share(seconds / 2))
    used_s -= sum(shares) / 2 * took_s
    told = json.loads(done.stdout)
    return Round(told["sent"], told["received"], used_s, max(shares), told["p50_us"], told["p99_us"])


def loads(lab: Lab, program: Path, lines: bytes, seconds: float) -> list[Round]:
    """Several loads during which the core did little else; fewer, or none, where it never does."""
    found: list[Round] = []
    for _ in range(_ROUNDS * _MOST_TRIES):
        tried = load(lab, program, lines, _RATE, seconds)
        if tried.other_share <= _MOST_OTHER_SHARE:
            found.append(tried)
        if len(found) == _ROUNDS:
            break
    return found


def measure(program: Path, *, calls: int, seconds: float) -> bool | None:
    """Print what a packet costs, and whether that is little enough; None where it cannot be measured."""
    if os.geteuid() != 0:
        print("skipped: between networks, since only root can steer packets to a core")
        return None
    if (reason := why_unavailable()) is not None:
        print(f"skipped: between networks: {reason}")
        return None
    results: dict[str, list[Round]] = {}
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        for host, core in ((lab.router, RELAY_CORE), (lab.client, LOAD_CORE), (lab.public, LOAD_CORE)):
            steer(host, core)
        for name in _ENGINES:
            with relaying(lab.router, name, calls) as lines:
                load(lab, program, lines, _WARM_RATE, _WARM_S)
                results[name] = loads(lab, program, lines, seconds)
    if not all(results.values()):
        print("not measured between networks: the machine does too much besides")
        return None
    show(results, seconds)
    cost = {name: median(it.us_per_packet for it in rounds) for name, rounds in results.items()}
    ratio = cost["rtpengine"] / cost["kernel"]
    print(f"rtpengine takes {ratio:.1f} times the core time of the kernel engine (asked {LEAST_RATIO})")
    return ratio >= LEAST_RATIO and not any(it.sent - it.received for it in results["kernel"])


def show(results: dict[str, list[Round]], seconds: float) -> None:
    """Print the medians."""
    table = Table(title=f"between two networks, {_RATE:,} packets/s, {_ROUNDS} rounds of {seconds:g} s")
    for column in ("", "lost", "µs of the core / packet", "lowest", "highest", "p50 µs", "p99 µs"):
        table.add_column(column, justify="right" if column else "left")
    for name, rounds in results.items():
        costs = sorted(it.us_per_packet for it in rounds)
        table.add_row(
            name,
            f"{sum(it.sent - it.received for it in rounds):,}",
            f"{median(costs):.2f}",
            f"{costs[0]:.2f}",
            f"{costs[-1]:.2f}",
            f"{median(it.p50_us for it in rounds):,.0f}",
            f"{median(it.p99_us for it in rounds):,.0f}",
        )
    Console(width=118).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=_ENGINES, required=True)
    parser.add_argument("--calls", type=int, required=True)
    options = parser.parse_args()
    serve_here(options.serve, options.calls)
