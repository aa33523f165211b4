"""natcheck against other people's servers, behind kernel NATs, and where there is no network at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nattools.lab.topology import ALTERNATE_SERVER, SERVER, SERVER_ENDPOINTS
from tests.lab.networks import NATCHECK, ROOT, built, natcheck
from tests.networks import NETWORKS, TestNetwork

A1, A2 = str(SERVER.ip), str(ALTERNATE_SERVER.ip)
KINDS = [n for n in NETWORKS if n.server == "whole" and n.second_nat is None and n.nat != "blocked"]


@pytest.mark.parametrize("program", ["turnserver", "stund"])
@pytest.mark.parametrize("network", KINDS, ids=lambda n: n.name)
def test_coturn_and_vovida_serve_as_well(network: TestNetwork, program: str, tmp_path: Path) -> None:
    path = shutil.which(program, path="/usr/sbin:/usr/bin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    coturn = f"-n -S --no-tls --no-dtls --no-cli --log-file=stdout -L {A1} -L {A2}".split()
    folder = [f"--pidfile={tmp_path}/pid", f"--userdb={tmp_path}/db"]
    arguments = [*coturn, *folder] if program == "turnserver" else ["-h", A1, "-a", A2]
    with built(network, start_server=False) as lab:
        server = lab.public.popen([path, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lab.wait_until_bound(server, SERVER_ENDPOINTS)
        assert natcheck(lab).said == network.expected


@pytest.mark.parametrize("arguments", [(A1,), ("--json", A1)], ids=["text", "json"])
def test_without_a_network_it_says_so_and_what_to_do(arguments: tuple[str, ...]) -> None:
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    done = subprocess.run(
        [*alone, *NATCHECK, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode not in (3, 4):
        pytest.skip(f"unshare: {done.stderr.strip()}")
    assert done.returncode == 3
    assert done.stderr == (
        f"natcheck: no route to {A1} (Network is unreachable): connect this machine to a network\n"
    )
    assert ('"nat_type": "inconclusive"' in done.stdout) is ("--json" in arguments)
