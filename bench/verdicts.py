"""Who is right behind real NATs: natcheck beside others, on 12 networks, with 0, 10 and 20 % loss each way.

Each cell counts right / unknown / wrong verdicts, by what the kernel really does. A server at fault
(alternate-dead, ignores-change) cannot show everything, so there `unknown` is the best there is.
Asked of natcheck: none wrong anywhere, and without loss none unknown that could be known.

    python -m bench.verdicts [--runs 20] [--peer-runs 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from bench.peers import TOOLS, Tool, judge
from tests.lab.networks import ROOT, built
from tests.networks import NETWORKS, TestNetwork

LOSSES = (0, 10, 20)
_TOOL_TIMEOUT_S = 120
_LABS_AT_ONCE = 3


def cell(network: TestNetwork, loss: int, tool: Tool, runs: int) -> Counter[str]:
    """Run one tool `runs` times in one laboratory."""
    verdicts: Counter[str] = Counter()
    with built(network, loss_percent=loss) as lab:
        for _ in range(runs):
            try:
                done = lab.client.run(tool.command, timeout=_TOOL_TIMEOUT_S, cwd=ROOT)
                judged = judge(tool.read(done.stdout), network)
                verdicts[judged] += 1
                if judged == "wrong" and tool is TOOLS[0]:
                    print(
                        f"natcheck is wrong on {network.name}, {loss} % loss:\n{done.stdout}", file=sys.stderr
                    )
            except (subprocess.TimeoutExpired, StopIteration):
                verdicts["unknown"] += 1
    return verdicts


def main() -> int:
    """Print the table; fail when natcheck was wrong, or unknown without loss and with a whole server."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--runs", type=int, default=20, help="runs of natcheck in each cell (20)")
    arguments.add_argument("--peer-runs", type=int, default=2, help="runs of each peer in each cell (2)")
    options = arguments.parse_args()
    tools = [tool for tool in TOOLS if tool.is_here]
    rows = [(network, loss) for network in NETWORKS for loss in LOSSES]
    with ThreadPoolExecutor(_LABS_AT_ONCE) as pool:
        cells = {
            (network.name, loss, tool.name): pool.submit(
                cell, network, loss, tool, options.runs if tool is TOOLS[0] else options.peer_runs
            )
            for tool in tools
            for network, loss in rows
        }
    table = Table(title="right / unknown / wrong")
    for heading in ("network", "loss", *(tool.name for tool in tools)):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    total: dict[str, Counter[str]] = {tool.name: Counter() for tool in tools}
    failed = False
    for network, loss in rows:
        texts = []
        for tool in tools:
            verdicts = cells[network.name, loss, tool.name].result()
            total[tool.name] += verdicts
            texts.append(_text(verdicts))
            if tool is TOOLS[0]:
                needless = verdicts["unknown"] if loss == 0 and network.server == "whole" else 0
                failed = failed or verdicts["wrong"] + needless > 0
        table.add_row(network.name, f"{loss} %", *texts)
    table.add_section()
    table.add_row("all", "", *(_text(total[tool.name]) for tool in tools))
    Console(width=110).print(table)
    return int(failed)


def _text(verdicts: Counter[str]) -> str:
    return f"{verdicts['right']} / {verdicts['unknown']} / {verdicts['wrong']}"


if __name__ == "__main__":
    sys.exit(main())
