"""How long a verdict takes: the whole process of natcheck beside other classifiers, on every kind of NAT.

Asked: at most 1.0 s for every kind, without loss. The tools take turns, so that they share the machine's
moods; the ratio is natcheck's median over the fastest peer's.

    python -m bench.natcheck [--runs 5] [--peer-runs 1]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from bench.peers import TOOLS, Tool
from nattools.lab.namespaces import Lab
from tests.lab.networks import ROOT, built
from tests.networks import NETWORKS

ASKED_S = 1.0
_TOOL_TIMEOUT_S = 120


def seconds(lab: Lab, tool: Tool) -> float:
    """The wall time of one process, from its start to its end."""
    started = time.monotonic()
    try:
        lab.client.run(tool.command, timeout=_TOOL_TIMEOUT_S, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return float("inf")
    return time.monotonic() - started


def main() -> int:
    """Print the table; fail when natcheck's median is over a second anywhere."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--runs", type=int, default=5, help="runs of natcheck on each network (5)")
    arguments.add_argument("--peer-runs", type=int, default=1, help="runs of each peer on each network (1)")
    options = arguments.parse_args()
    tools = [tool for tool in TOOLS if tool.is_here]
    table = Table(title=f"seconds to a verdict, median (worst); asked of natcheck: {ASKED_S:.1f}")
    for heading in ("network", *(tool.name for tool in tools), "ratio"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    slow = False
    for network in NETWORKS:
        times: dict[str, list[float]] = {tool.name: [] for tool in tools}
        with built(network) as lab:
            for turn in range(max(options.runs, options.peer_runs)):
                for tool in tools:
                    if turn < (options.runs if tool is TOOLS[0] else options.peer_runs):
                        times[tool.name].append(seconds(lab, tool))
        ours, *others = (median(times[tool.name]) for tool in tools)
        slow = slow or ours > ASKED_S
        texts = [f"{median(taken):.2f} ({max(taken):.2f})" for taken in times.values()]
        table.add_row(network.name, *texts, f"{ours / min(others):.2f}" if others else "")
    Console(width=110).print(table)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
