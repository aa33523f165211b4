"""The networks of `tests.networks`, built out of kernel NATs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, SERVER_ENDPOINTS, Topology
from tests.networks import Expected, TestNetwork

ROOT = Path(__file__).parents[2]
NATCHECK = (sys.executable, "-m", "nattools.cli.natcheck")


@contextmanager
def built(network: TestNetwork, *, loss_percent: float = 0, start_server: bool = True) -> Iterator[Lab]:
    """The laboratory of a network, its server running unless the caller starts one."""
    topology = Topology(
        NatKind(network.nat),
        second_nat=NatKind(network.second_nat) if network.second_nat else None,
        loss_percent=loss_percent,
        hairpin=network.hairpin,
        alternate_dead=network.server == "alternate-dead",
    )
    ignores = network.server == "ignores-change"
    with Lab(topology, start_server=start_server and not ignores) as lab:
        if start_server and ignores:
            server = lab.public.popen(
                [sys.executable, "-m", "tests.fakes.defective_server", "ignore"], cwd=ROOT
            )
            lab.wait_until_bound(server, SERVER_ENDPOINTS)
        yield lab


@dataclass(frozen=True, slots=True)
class Run:
    """One run of natcheck: what it said, and its exit status."""

    said: Expected
    status: int
    document: dict[str, Any]


def natcheck(lab: Lab, *arguments: str) -> Run:
    """Run natcheck as a process on the client."""
    done = lab.client.run([*NATCHECK, str(SERVER), "--json", *arguments], timeout=60, cwd=ROOT)
    document = json.loads(done.stdout)
    words = (document[key] for key in ("nat_type", "mapping", "filtering", "hairpin"))
    return Run(Expected(*words), done.returncode, document)
