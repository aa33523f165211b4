"""Public bindings: who can reach them, how soon they are there, what a thousand cost, and how long they live.

Asked: no claim that packets do not bear out; from nothing to a usable binding 0.3 s with a static or VPN
method, 0.5 s by STUN, 0.6 s with a router; a thousand bindings for less than 5 % of a core and 50 MB; alive
for two minutes behind a NAT that forgets after 6 s.

    python -m bench.binding [--rounds 5] [--turns 4] [--seconds 60] [--minutes 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from bench.binders import BINDERS, KEEPERS, PORT, SOCKETS
from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, Topology
from tests.lab.binding_networks import NETWORKS, Row, who_can_reach, why_not
from tests.lab.conftest import OpenSockets, opened_sockets
from tests.lab.network_changes import forward_port
from tests.lab.remote_bindings import Impostor, remote_binding
from tests.lab.vpn import INTERFACE, why_no_vpn, wireguard

ROOT = Path(__file__).parents[1]
ASKED_S = {
    "static": 0.3,
    "vpn": 0.3,
    "stun": 0.5,
    "pcp": 0.6,
    "nat-pmp": 0.6,
    "upnp": 0.6,
    "pcp, upnp, stun": 0.6,
}
PEERS = {"stun": "aioice", "upnp": "miniupnpc", "pcp": "miniupnpc", "nat-pmp": "miniupnpc"}
MOST_CORE_PERCENT = 5.0
MOST_MEMORY_MB = 50.0
SHORT_TIMER_S = 6
_TURN_TIMEOUT_S = 120
_BETWEEN_TRIES_S = 10
_NOBODY = {True: "yes", False: "no", None: ""}
_CONSOLE = Console(width=118)


def show_reach() -> bool:
    """Print who can reach each way on each network; whether every claim held."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as state, opened_sockets() as open_sockets:
        for number, network in enumerate(NETWORKS):
            if (missing := why_not(network)) is not None:
                print(f"{network.name}: {missing}", file=sys.stderr)
                continue
            rows += who_can_reach(network, open_sockets, Path(state) / str(number))
    table = _table(
        "who can reach me: what is claimed, and what packets show",
        *("network", "way", "claim", "stranger", "one sent to", "server", "seconds", "broken"),
    )
    former = ""
    for row in rows:
        name = row.network.name
        if name != former and former:
            table.add_section()
        table.add_row(
            "" if name == former else name,
            row.way.name,
            row.outcome,
            *(_NOBODY[got_in] for got_in in (row.stranger, row.known, row.server)),
            f"{row.took_s:.2f}",
            "; ".join(row.broken_promises),
        )
        former = name
    _CONSOLE.print(table)
    broken = sum(bool(row.broken_promises) for row in rows)
    print(f"{len(rows)} ways tried, {broken} claims not borne out")
    return not broken


def show_times(rounds: int, turns: int) -> bool:
    """Print how long each method takes from nothing, in turns; whether each is as quick as asked."""
    taken: dict[str, list[float]] = {name: [] for name in BINDERS}
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd())) as lab:
        assert lab.topology.igd is not None
        network = {"static_host": lab.topology.igd.wan_address, "vpn_interface": INTERFACE}
        forward_port(lab, PORT, PORT)
        for _ in range(turns):
            for name in taken:
                command = [sys.executable, "-m", "bench.binders", "acquire", name, "--rounds", str(rounds)]
                command += ["--network", json.dumps(network)]
                # aioice would ask through the tunnel as well, where its server is not
                with wireguard(lab) if name == "vpn" else nullcontext():
                    done = lab.client.run(command, timeout=_TURN_TIMEOUT_S, cwd=ROOT)
                if done.returncode:
                    print(f"{name}: {done.stderr}", file=sys.stderr)
                    return False
                taken[name] += json.loads(done.stdout)
    table = _table(
        "seconds from nothing to a usable binding",
        *("method", "asked", "median", "fastest", "slowest", "peer", "peer / it"),
    )
    for name, times in taken.items():
        peer = PEERS.get(name, "")
        ratio = f"{median(taken[peer]) / median(times):.1f}" if peer else ""
        asked = f"{ASKED_S[name]:.1f}" if name in ASKED_S else ""
        figures = (f"{value:.3f}" for value in (median(times), min(times), max(times)))
        table.add_row(name, asked, *figures, peer, ratio)
    _CONSOLE.print(table)
    return all(median(taken[name]) <= limit for name, limit in ASKED_S.items())


def show_cost(seconds: float) -> bool:
    """Print what a thousand bindings cost beside as many bare sockets; whether it is as little as asked."""
    costs: dict[str, dict[str, float]] = {}
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab:
        for name in KEEPERS:
            command = [sys.executable, "-m", "bench.binders", "keep", name, "--seconds", str(seconds)]
            done = lab.client.run(command, timeout=seconds + _TURN_TIMEOUT_S, cwd=ROOT)
            if done.returncode:
                print(f"{name}: {done.stderr}", file=sys.stderr)
                return False
            costs[name] = json.loads(done.stdout)
    ours, bare = costs["nattools"], costs["bare sockets"]
    table = _table(
        f"{SOCKETS} sockets kept open for {seconds:.0f} s", "", "asked", *costs, "nattools / bare sockets"
    )
    rows: Sequence[tuple[str, str, str]] = (
        ("core_percent", "% of a core", f"{MOST_CORE_PERCENT:.0f}"),
        ("memory_mb", "MB in all", f"{MOST_MEMORY_MB:.0f}"),
        ("more_memory_mb", "MB for the sockets", ""),
    )
    for key, unit, asked in rows:
        values = (f"{costs[name][key]:.2f}" for name in costs)
        table.add_row(unit, asked, *values, f"{ours[key] / bare[key]:.1f}" if bare[key] else "")
    _CONSOLE.print(table)
    return ours["core_percent"] < MOST_CORE_PERCENT and ours["memory_mb"] < MOST_MEMORY_MB


def show_life(minutes: float) -> bool:
    """Print how long bindings live behind a NAT that forgets after 6 s; whether they do to the end.

    What comes in keeps a flow alive as well, so it comes seldom: a host that was sent to tries every 10 s.
    """
    intervals: dict[str, object] = {"every 4 s": 4, "learned": "learn", "every 15 s, too seldom": 15}
    topology = Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=SHORT_TIMER_S)
    with ExitStack() as stack:
        open_sockets = stack.enter_context(opened_sockets())
        labs = [stack.enter_context(Lab(topology)) for _ in intervals]
        lives = [
            _Life(lab, stack, open_sockets, interval)
            for lab, interval in zip(labs, intervals.values(), strict=True)
        ]
        for _ in range(round(minutes * 60 / _BETWEEN_TRIES_S)):
            time.sleep(_BETWEEN_TRIES_S)
            for life in lives:
                life.try_it()
    title = f"{minutes:g} minutes behind a NAT that forgets after {SHORT_TIMER_S} s"
    table = _table(title, "keepalives", "tried to get in", "got in")
    for name, life in zip(intervals, lives, strict=True):
        table.add_row(name, str(life.tries), str(life.reached))
    _CONSOLE.print(table)
    return all(life.reached == life.tries for life in lives[:-1])


class _Life:
    """A binding that keeps the flow to a host open."""

    def __init__(self, lab: Lab, stack: ExitStack, open_sockets: OpenSockets, interval: object) -> None:
        self._outside = Impostor(lab, open_sockets)
        self._binding = stack.enter_context(
            remote_binding(
                lab.client,
                "0.0.0.0:0",
                methods=["stun"],
                stun_servers=[str(SERVER)],
                keepalive_to=[str(STRANGER)],
                keepalive_interval=interval,
            )
        )
        self._public = Endpoint.parse(self._binding.until("acquired")["public"])
        self.tries = self.reached = 0

    def try_it(self) -> None:
        """Have the host send something."""
        self.tries += 1
        self._outside.send(STRANGER, self._public, f"try {self.tries}")
        self.reached += self._binding.has_received(f"try {self.tries}", within_s=0.5)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    return table


def main() -> int:
    """Print it all; fail where something is not as asked."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5, help="bindings in each turn (5)")
    arguments.add_argument("--turns", type=int, default=4, help="turns of each method (4)")
    arguments.add_argument("--seconds", type=float, default=60, help="how long a thousand are kept (60)")
    arguments.add_argument(
        "--minutes", type=float, default=2, help="how long they live with short timers (2)"
    )
    options = arguments.parse_args()
    if (missing := why_no_vpn() or why_no_igd()) is not None:
        print(missing, file=sys.stderr)
        return 1
    done = [
        show_times(options.rounds, options.turns),
        show_cost(options.seconds),
        show_life(options.minutes),
        show_reach(),
    ]
    return int(not all(done))


if __name__ == "__main__":
    sys.exit(main())
