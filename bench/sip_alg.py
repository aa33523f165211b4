"""Is the kernel's SIP ALG found, and is nobody else suspected: on kernel NATs, on port 5060 and another.

Each cell counts the searches that said yes / no / unknown. The ALG is nf_nat_sip, by an nft ct helper; the
server is stund --sip-reflector. With a second table for a server that shows nothing (kamailio, where it is
installed): there the ALG must be found by STUN and `received` alone, and plain NAT stays unknown.
Asked: behind the ALG nothing but yes; without it nothing but no, or with kamailio nothing but unknown.

    python -m bench.sip_alg [--runs 50] [--loss 0]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.networks import ROOT

PORTS = (5060, 5062)
_RUN_TIMEOUT_S = 20
_LABS_AT_ONCE = 4  # the reflector gives one source 5 answers a second, which is what most of the time goes to
_KINDS = [kind for kind in NatKind if kind is not NatKind.BLOCKED]


def searches(lab: Lab, server: Endpoint, runs: int) -> Counter[str]:
    """What so many searches on the client say, each from a new socket."""
    program = [sys.executable, "-m", "tests.lab.alg_program", str(server), str(runs)]
    done = lab.client.run(program, timeout=runs * _RUN_TIMEOUT_S, cwd=ROOT)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return Counter(json.loads(line)["presence"] for line in done.stdout.splitlines())


def cells(kind: NatKind, *, sip_alg: bool, loss: float, runs: int, reflects: bool) -> list[Counter[str]]:
    """One network: a cell for each port of a reflector, or for kamailio's."""
    topology = Topology(kind, loss_percent=loss, sip_alg=sip_alg, sip_alg_ports=PORTS)
    with (
        Lab(topology, start_server=reflects, sip_reflector=reflects) as lab,
        nullcontext() if reflects else kamailio(lab),
    ):
        servers = [SERVER.with_port(port) for port in PORTS] if reflects else [REGISTRAR]
        return [searches(lab, server, runs) for server in servers]


def main() -> int:
    """Print the tables; fail when an ALG was not found, or one was seen where there is none."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--runs", type=int, default=50, help="searches in each cell (50)")
    arguments.add_argument("--loss", type=float, default=0, help="percent lost each way (0)")
    options = arguments.parse_args()
    failed = False
    for reflects in (True, False):
        if not reflects and why_no_kamailio() is not None:
            continue
        ports = [str(port) for port in PORTS] if reflects else [str(REGISTRAR.port)]
        table = Table(title=f"{'reflector' if reflects else 'kamailio'}: yes / no / unknown")
        for heading in ("network", *(f"{way}, {port}" for way in ("ALG", "plain") for port in ports)):
            table.add_column(heading, justify="left" if heading == "network" else "right")
        with ThreadPoolExecutor(_LABS_AT_ONCE) as pool:
            networks = [(kind, way) for kind in _KINDS for way in (True, False) if kind.translates or not way]
            found = {
                (kind, way): pool.submit(
                    cells, kind, sip_alg=way, loss=options.loss, runs=options.runs, reflects=reflects
                )
                for kind, way in networks
            }
        for kind in _KINDS:
            row: list[str] = []
            for way in (True, False):
                if (kind, way) not in found:
                    row += ["-"] * len(ports)
                    continue
                said = found[kind, way].result()
                right = "yes" if way else "no" if reflects else "unknown"
                failed = failed or any(cell[right] != options.runs for cell in said)
                row += [f"{cell['yes']} / {cell['no']} / {cell['unknown']}" for cell in said]
            table.add_row(kind.value, *row)
        Console(width=110).print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
