"""How many Binding requests one core answers: `StunServer` in batches, coturn, vovida's stund, and the limit.

The limit is a loop in C around recvmmsg and sendmmsg that checks nothing. All run in one run, on loopback, on
one core, in turns, the load on another; every reply is checked. `StunServer` has two addresses, and a limiter
that is asked about every packet, its limits above the load. Asked of it: 0.85 of the limit, 1.15 times what
vovida's answers and 1.5 times coturn's, and no more processor time for garbage than for requests. Beside them
`stund --workers 2` and coturn with two threads have both cores, which they share with the load; the first is
to answer no less than the second.

A second table has what is not asked for: requests with an attribute, SOFTWARE or CHANGE-REQUEST, and IPv6.
`--soak` loads stund for so long and accounts for every datagram, see `bench.stund_soak`.

    python -m bench.stund [--seconds 1] [--rounds 5]
    python -m bench.stund --soak 120
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from math import inf
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from nattools.stun.batch_limiter import BatchLimiter
from nattools.stun.limiter import Level, Limits, Rate
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import ServerOptions, StunServer

OURS, LIMIT, VOVIDA, COTURN = "nattools", "limit (C)", "vovida stund", "coturn"
OURS_TWICE, COTURN_TWICE = "stund, 2 workers", "coturn, 2 threads"
LEAST_OF = {LIMIT: 0.85, VOVIDA: 1.15, COTURN: 1.5}
MOST_GARBAGE_COST = 1.0
LOAD_CORE, SERVER_CORE, BOTH_CORES = "0", "1", "0,1"

_KINDS = ("plain", "classic")
_CHANGE, _SOFTWARE = "change", "software"
OURS_IPV6, LIMIT_IPV6, COTURN_IPV6 = (f"{name}, IPv6" for name in (OURS, LIMIT, COTURN))
MORE_KINDS = {
    OURS: (_CHANGE, _SOFTWARE),
    VOVIDA: (_CHANGE, _SOFTWARE),
    COTURN: (_SOFTWARE,),  # as it runs here it has no other port
    OURS_IPV6: _KINDS[:1],
    LIMIT_IPV6: _KINDS[:1],
    COTURN_IPV6: _KINDS[:1],
}
_FIRST_PORT = 34_780
_START_S = 10.0
PLENTY = 100_000_000
_UNLIMITED = Rate(per_s=PLENTY, at_once=PLENTY)


@dataclass(slots=True)
class Server:
    """A server that runs, and what was measured of it: replies a second by kind, and seconds for a packet."""

    process: subprocess.Popen[bytes]
    port: int
    version: int = 4
    rates: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    wrong: int = 0
    lost: int = 0

    def rate(self, kind: str) -> float:
        """The median."""
        return median(self.rates[kind])

    def times(self, other: Server, kind: str) -> float:
        """How many times the rate of another: the median of the rounds, each of which has both."""
        rounds = zip(self.rates[kind], other.rates[kind], strict=True)
        return median(own / its if its else inf for own, its in rounds)

    def cost(self, kind: str) -> float:
        """The median."""
        return median(self.costs[kind])

    @property
    def memory_mb(self) -> float:
        return sum(process.memory_info().rss for process in self.processes) / 1e6

    @property
    def processes(self) -> list[psutil.Process]:
        """The one that was started, and its workers."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children()]

    @property
    def processor_s(self) -> float:
        """What all of them have used so far."""
        times = [process.cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)


@contextmanager
def started(port: int, *command: str, cores: str = SERVER_CORE, version: int = 4) -> Iterator[Server]:
    """Run a server on its core until the block ends."""
    process = subprocess.Popen(
        ["taskset", "-c", cores, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(port, version)
        yield Server(process, port, version)
    finally:
        process.kill()  # workers of ours end when it is gone
        process.communicate()


def _wait_until_it_answers(port: int, version: int) -> None:
    deadline = time.monotonic() + _START_S
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        probe.connect(("::1" if version == 6 else "127.0.0.1", port))
        while time.monotonic() < deadline:
            try:
                probe.send(b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12))
                probe.recv(512)
            except OSError:
                time.sleep(0.05)
            else:
                return
    raise SystemExit(f"nothing answers at port {port}")


async def serve(port: int, version: int) -> None:
    """What the process of `nattools` does until it is killed; there is but one loopback address of IPv6."""
    limiter = BatchLimiter(Limits(*(4 * (_UNLIMITED,))), entropy=secrets.token_bytes)
    addresses = ServerAddresses(ip_address("127.0.0.1"), port, ip_address("127.0.0.2"), port + 1)
    if version == 6:
        addresses = ServerAddresses(ip_address("::1"), port)
    async with await StunServer.start(addresses, ServerOptions(limiter=limiter)) as server:
        if server.why_one_by_one:
            raise SystemExit(f"not in batches: {server.why_one_by_one}")
        await asyncio.Event().wait()


def commands(program: Path, folder: Path) -> dict[str, Callable[[int], tuple[str, ...]]]:
    """How to start each server at a port; only those that are installed."""
    found: dict[str, Callable[[int], tuple[str, ...]]] = {
        OURS: lambda port: (sys.executable, "-m", "bench.stund", "--serve", str(port)),
        LIMIT: lambda port: (str(program), "limit", "4", str(port)),
        OURS_IPV6: lambda port: (sys.executable, "-m", "bench.stund", "--serve", str(port), "--ipv6"),
        LIMIT_IPV6: lambda port: (str(program), "limit", "6", str(port)),
        OURS_TWICE: lambda port: (
            *(sys.executable, "-m", "nattools.cli.stund", "127.0.0.1", "127.0.0.2"),
            *("--port", str(port), "--alternate-port", str(port + 1), "--workers", "2"),
            *(f"--limit={level.name.lower()}={PLENTY}:{PLENTY}" for level in Level),
        ),
    }
    vovida = shutil.which("stund", path="/usr/sbin:/usr/bin")  # ours has the same name
    if vovida is not None:
        where = ("-h", "127.0.0.1", "-a", "127.0.0.2")
        found[VOVIDA] = lambda port: (vovida, *where, "-p", str(port), "-o", str(port + 1))
    coturn = shutil.which("turnserver")
    if coturn is not None:
        found[COTURN] = partial(_coturn, coturn, folder, 1, "127.0.0.1")
        found[COTURN_TWICE] = partial(_coturn, coturn, folder, 2, "127.0.0.1")
        found[COTURN_IPV6] = partial(_coturn, coturn, folder, 1, "::1")
    return found


def _coturn(program: str, folder: Path, threads: int, ip: str, port: int) -> tuple[str, ...]:
    return (
        *(program, "-n", "--no-cli", "--no-tls", "--no-dtls", "--stun-only", "--no-rfc5780"),
        *(f"--log-file={folder}/log{port}", f"--pidfile={folder}/pid{port}"),
        *(f"--userdb={folder}/db{port}", f"--listening-ip={ip}", f"--relay-ip={ip}"),
        *(f"--relay-threads={threads}", f"--listening-port={port}"),
    )


def measure(server: Server, program: Path, kind: str, seconds: float) -> None:
    """Put one load on a server, and note what came of it."""
    is_garbage = kind == "garbage"
    before, used_s = overrun(server.port) if is_garbage else 0, server.processor_s
    where = (str(server.version), str(server.port))
    told = json.loads(
        subprocess.run(
            ["taskset", "-c", LOAD_CORE, program, "load", *where, str(seconds), kind],
            stdout=subprocess.PIPE,
            timeout=seconds + _START_S,
            check=True,
        ).stdout
    )
    spent = server.processor_s - used_s
    handled = told["replies"]
    if is_garbage:
        handled = told["sent"] - (overrun(server.port) - before)
        told["wrong"] = told["replies"]  # none is right
    else:
        server.lost += told["lost"]
    server.wrong += told["wrong"]
    server.rates.setdefault(kind, []).append(handled / told["seconds"])
    server.costs.setdefault(kind, []).append(spent / handled if handled else inf)


def overrun(port: int) -> int:
    """How many datagrams the sockets at 127.0.0.0/8 with that port had no room for."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    dropped = [int(fields[-1]) for fields in lines if fields[1].endswith(f"7F:{port:04X}")]
    if not dropped:
        raise SystemExit(f"no socket at port {port}")
    return sum(dropped)


def show(servers: dict[str, Server], rounds: int, seconds: float) -> None:
    """One line for each server."""
    table = Table(
        title=f"replies a second, one core (with 2, two cores), median of {rounds} rounds of {seconds:g} s",
        title_justify="left",
    )
    figures = ("of the limit", "nattools / it", "it, classic", "us a request", "us of garbage", "MB", "wrong")
    for heading in ("server", *_KINDS, *figures):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    own, limit = servers[OURS], servers[LIMIT]
    for name, each in servers.items():
        if each.version == 6:
            continue
        table.add_row(
            name,
            *(f"{each.rate(kind):,.0f}" for kind in _KINDS),
            f"{each.times(limit, 'plain'):.2f}",
            *(f"{own.times(each, kind):.2f}" for kind in _KINDS),
            f"{each.cost('plain') * 1e6:.2f}",
            f"{each.cost('garbage') * 1e6:.2f}",
            f"{each.memory_mb:.0f}",
            f"{each.wrong}",
        )
    Console(width=118).print(table)


def show_more(servers: dict[str, Server]) -> None:
    """What is not asked for, a line for each kind of request and server."""
    table = Table(title="with an attribute, and over IPv6", title_justify="left")
    for heading in ("server", "request", "replies/s", "nattools / it", "us a request", "wrong"):
        table.add_column(heading, justify="left" if heading in ("server", "request") else "right")
    for name, kinds in MORE_KINDS.items():
        for kind in kinds if name in servers else ():
            each = servers[name]
            own = servers[OURS_IPV6 if each.version == 6 else OURS]
            table.add_row(
                *(name, kind, f"{each.rate(kind):,.0f}", f"{own.times(each, kind):.2f}"),
                *(f"{each.cost(kind) * 1e6:.2f}", f"{each.wrong}"),
            )
    Console(width=118).print(table)


def judge(servers: dict[str, Server]) -> bool:
    """Whether what is asked was reached beside each server that there is."""
    own, is_enough = servers[OURS], True
    for name, asked in LEAST_OF.items():
        if name not in servers:
            print(f"{name}: not installed")
            continue
        for kind in _KINDS:
            ratio = own.times(servers[name], kind)
            cost = servers[name].cost(kind) / own.cost(kind)
            print(f"{kind}: {ratio:.2f} of {name} (asked {asked}); by processor time {cost:.2f}")
            is_enough &= ratio >= asked
    if COTURN_TWICE in servers:
        for kind in _KINDS:
            ratio = servers[OURS_TWICE].times(servers[COTURN_TWICE], kind)
            print(f"{kind}: {OURS_TWICE}: {ratio:.2f} of {COTURN_TWICE} (asked 1)")
            is_enough &= ratio >= 1
    ratio = own.cost("garbage") / own.cost("plain")
    print(f"garbage: {ratio:.2f} of a request's processor time (asked {MOST_GARBAGE_COST:g} at the most)")
    return is_enough and ratio <= MOST_GARBAGE_COST and not own.wrong


def main() -> int:
    """Print the table; 1 when less was reached than is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.stund", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="account for every datagram so long")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ipv6", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, 6 if options.ipv6 else 4))
        return 0
    compiler = shutil.which("cc")
    if compiler is None:
        print("skipped: the load and the limit are a program in C, and there is no compiler (cc)")
        return 0
    with tempfile.TemporaryDirectory() as directory, ExitStack() as running:
        program = Path(directory, "stund_load")
        source = Path(__file__).with_name("stund_load.c")
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
        if options.soak:
            from bench.stund_soak import soak  # which takes what it needs from here

            return 0 if soak(program, options.soak) else 1
        servers = {
            name: running.enter_context(
                started(
                    port,
                    *command(port),
                    cores=BOTH_CORES if name in (OURS_TWICE, COTURN_TWICE) else SERVER_CORE,
                    version=6 if name in (OURS_IPV6, LIMIT_IPV6, COTURN_IPV6) else 4,
                )
            )
            for port, (name, command) in zip(
                range(_FIRST_PORT, 0xFFFF, 10), commands(program, Path(directory)).items(), strict=False
            )
        }
        for _ in range(options.rounds):
            for kind in (*_KINDS, "garbage"):
                for server in servers.values():
                    if server.version == 4:
                        measure(server, program, kind, options.seconds)
            for name, kinds in MORE_KINDS.items():
                for kind in kinds if name in servers else ():
                    measure(servers[name], program, kind, options.seconds)
        show(servers, options.rounds, options.seconds)
        show_more(servers)
        return 0 if judge(servers) else 1


if __name__ == "__main__":
    raise SystemExit(main())
