"""natcheck, the whole process, behind kernel NATs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product

import pytest

from nattools.lab.namespaces import Lab
from nattools.stun.discovery import MOST_PACKETS
from tests.lab.networks import Run, built, natcheck
from tests.lab.stalls import Stalls
from tests.networks import NETWORKS, TestNetwork, contradicts

EXIT_STATUS = {"inconclusive": 4, "blocked": 3}
RUNS = {0: 10, 20: 3}  # by the loss in percent, each way
LABS_AT_ONCE = 4  # most of a run is waiting
LATE_S = 0.02  # answers that are later than that by more than those before may be taken for lost ones
MOST_AGAIN = 10

Runs = Mapping[tuple[str, int], Future[list[Run]]]


class Natcheck:
    """Runs natcheck on a network; again where it says too little, and the machine stood still meanwhile."""

    def __init__(self, network: TestNetwork, lab: Lab, stalls: Stalls) -> None:
        self._network = network
        self._lab = lab
        self._stalls = stalls
        self._again = MOST_AGAIN

    def run(self, *arguments: str) -> Run:
        while True:
            began = time.monotonic()
            run = natcheck(self._lab, *arguments)
            says_too_little = run.said != self._network.expected and not contradicts(
                run.said, self._network.expected
            )
            if not (says_too_little and self._stalls.since(began) and self._again):
                return run
            self._again -= 1


def run_in_a_row(network: TestNetwork, loss_percent: int, stalls: Stalls) -> list[Run]:
    with built(network, loss_percent=loss_percent) as lab:
        if loss_percent:  # of which too little may come
            return [natcheck(lab) for _ in range(RUNS[loss_percent])]
        check = Natcheck(network, lab, stalls)
        return [check.run() for _ in range(RUNS[loss_percent])]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """All runs of this file, each network in a laboratory of its own, several of them side by side."""
    with Stalls(LATE_S) as stalls, ThreadPoolExecutor(LABS_AT_ONCE) as pool:
        yield {
            (network.name, loss): pool.submit(run_in_a_row, network, loss, stalls)
            for loss, network in product(RUNS, NETWORKS)
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_ten_runs_in_a_row_give_ten_right_and_equal_verdicts(network: TestNetwork, runs: Runs) -> None:
    ten = runs[network.name, 0].result()
    assert [run.said for run in ten] == [network.expected] * 10
    assert {run.status for run in ten} == {EXIT_STATUS.get(network.expected.nat_type, 0)}
    assert all(run.document["packets_sent"] <= MOST_PACKETS for run in ten)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_twenty_percent_loss_each_way_fools_nobody(network: TestNetwork, runs: Runs) -> None:
    for run in runs[network.name, 20].result():
        assert not contradicts(run.said, network.expected), run.document["reasons"]
        assert run.document["packets_sent"] <= MOST_PACKETS


def test_the_same_local_port_again_and_again_gives_the_same_verdict() -> None:
    network = next(n for n in NETWORKS if n.name == "port-restricted-cone")
    with built(network) as lab, Stalls(LATE_S) as stalls:
        check = Natcheck(network, lab, stalls)
        runs = [check.run("--local-port", "40012") for _ in range(4)]
    assert [run.said for run in runs] == [network.expected] * 4
    assert runs[0].document["local"] == "192.168.0.108:40012"
    assert runs[0].document["public"] == "203.0.113.1:40012"
    assert runs[0].document["server"] == "203.0.113.10:3478"
