"""A laboratory is said to stand when what is sent there arrives, and not before."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]

# A cable with one end that is up, and what brings up the other one.
CABLE = """
import subprocess
from nattools.lab import holder
for command in ("add near type veth peer name far", "set near up"):
    subprocess.run(["ip", "link", *command.split()], check=True)
"""
LATER = (
    CABLE
    + """
with subprocess.Popen(["sh", "-c", "sleep 0.3; ip link set far up"]):
    holder.wait_until_links_run("ip")
    subprocess.run(["ip", "-o", "link", "show", "near"], check=True)
"""
)
NEVER = (
    CABLE
    + """
holder._TOOL_SECONDS = 0.1
try:
    holder.wait_until_links_run("ip")
except holder._BuildError as error:
    print(error)
"""
)


@pytest.fixture
def client() -> Iterator[Host]:
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        yield lab.client


def said(host: Host, program: str) -> str:
    done = host.run([sys.executable, "-c", program], timeout=PATIENCE_SECONDS, cwd=ROOT)
    assert done.stderr == ""
    return done.stdout


def test_a_link_that_comes_up_late_is_waited_for(client: Host) -> None:
    """Its first datagrams would be lost: the kernel drops what is sent before it has seen to the link."""
    assert " state UP " in said(client, LATER)


def test_a_link_that_stays_down_is_told(client: Host) -> None:
    assert re.fullmatch(r"a link does not come up: .*\b(near|far)@.*\n", said(client, NEVER))


@pytest.mark.parametrize("second_nat", [None, NatKind.FULL_CONE])
def test_every_link_of_a_laboratory_runs(second_nat: NatKind | None) -> None:
    with Lab(Topology(NatKind.FULL_CONE, second_nat), start_server=False) as lab:
        for host in filter(None, (lab.client, lab.inner_router, lab.router, lab.public)):
            links = host.run(["ip", "-o", "link"], timeout=PATIENCE_SECONDS).stdout.splitlines()
            assert [link for link in links if " state UP " not in link and ": lo:" not in link] == []
