"""natcheck, the whole process, behind kernel NATs."""

from __future__ import annotations

import pytest

from nattools.stun.discovery import MOST_PACKETS
from tests.lab.networks import built, natcheck
from tests.networks import NETWORKS, TestNetwork, contradicts

EXIT_STATUS = {"inconclusive": 4, "blocked": 3}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_ten_runs_in_a_row_give_ten_right_and_equal_verdicts(network: TestNetwork) -> None:
    with built(network) as lab:
        runs = [natcheck(lab) for _ in range(10)]
    assert [run.said for run in runs] == [network.expected] * 10
    assert {run.status for run in runs} == {EXIT_STATUS.get(network.expected.nat_type, 0)}
    assert all(run.document["packets_sent"] <= MOST_PACKETS for run in runs)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_twenty_percent_loss_each_way_fools_nobody(network: TestNetwork) -> None:
    with built(network, loss_percent=20) as lab:
        for _ in range(3):
            run = natcheck(lab)
            assert not contradicts(run.said, network.expected), run.document["reasons"]
            assert run.document["packets_sent"] <= MOST_PACKETS


def test_the_same_local_port_again_and_again_gives_the_same_verdict() -> None:
    network = next(n for n in NETWORKS if n.name == "port-restricted-cone")
    with built(network) as lab:
        runs = [natcheck(lab, "--local-port", "40012") for _ in range(4)]
    assert [run.said for run in runs] == [network.expected] * 4
    assert runs[0].document["local"] == "192.168.0.108:40012"
    assert runs[0].document["public"] == "203.0.113.1:40012"
    assert runs[0].document["server"] == "203.0.113.10:3478"
