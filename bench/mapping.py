"""From nothing known to a mapping that the router has confirmed: by each protocol, by all, and by the peers.

Asked, as medians: UPnP 0.5 s, PCP and NAT-PMP 0.1 s each, all three side by side at most 0.1 s more than the
fastest. The router is a real miniupnpd in the laboratory; the clients take turns.

    python -m bench.mapping [--rounds 5] [--turns 4]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from bench.mappers import MAPPERS
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology

ROOT = Path(__file__).parents[1]
ASKED_S = {"nattools, UPnP": 0.5, "nattools, PCP": 0.1, "nattools, NAT-PMP": 0.1}
ALL = "nattools, all three"
_OVER_THE_FASTEST_S = 0.1
_TURN_TIMEOUT_S = 120


def main() -> int:
    """Print the table; fail when a median is over what is asked."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5, help="mappings in each turn (5)")
    arguments.add_argument("--turns", type=int, default=4, help="turns of each client (4)")
    options = arguments.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in MAPPERS}
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd())) as lab:
        for turn in range(options.turns):
            for name in taken:
                command = [sys.executable, "-m", "bench.mappers", name, "--rounds", str(options.rounds)]
                port = ["--port", str(20000 + turn * 100)]
                done = lab.client.run([*command, *port], timeout=_TURN_TIMEOUT_S, cwd=ROOT)
                if done.returncode:
                    print(f"{name}: {done.stderr}", file=sys.stderr)
                    return 1
                taken[name] += json.loads(done.stdout)
    fastest = min(median(taken[name]) for name in ASKED_S)
    asked = {**ASKED_S, ALL: fastest + _OVER_THE_FASTEST_S}
    peers = min(median(times) for name, times in taken.items() if name not in asked)
    table = Table(title="seconds from nothing known to a confirmed mapping")
    for heading in ("client", "asked", "median", "fastest", "slowest", "fastest peer / it"):
        table.add_column(heading, justify="left" if heading == "client" else "right")
    for name, times in taken.items():
        middle = median(times)
        table.add_row(
            name,
            f"{asked[name]:.3f}" if name in asked else "",
            f"{middle:.3f}",
            f"{min(times):.3f}",
            f"{max(times):.3f}",
            f"{peers / middle:.1f}",
        )
    Console(width=110).print(table)
    return int(any(median(taken[name]) > limit for name, limit in asked.items()))


if __name__ == "__main__":
    sys.exit(main())
