"""When an epoch says that the router lost its state."""

from __future__ import annotations

import pytest

from nattools.pcp.epoch import EpochTracker, natpmp_state_lost, pcp_state_lost


@pytest.mark.parametrize(
    ("elapsed_s", "epoch_s", "lost"),
    [
        (0, 1000, False),
        (0, 999, False),  # two answers overtook each other
        (0, 998, True),
        (0, 0, True),
        (3600, 4600, False),
        (3600, 1, True),
        (0, 1002, False),
        (0, 1003, True),  # 3 s in no time: 15/16 of that is more than the tolerance of 2 s
        (1600, 1000 + 1600 * 15 // 16 - 2, False),
        (1600, 1000 + 1600 * 15 // 16 - 3, True),  # its clock is more than 1/16 and 2 s slow
        (1598, 1000 + 1600 * 16 // 15, False),
        (1598, 1000 + 1600 * 16 // 15 + 3, True),  # or that much fast
        (2, 999, False),
        (3, 999, True),
    ],
)
def test_pcp_allows_a_sixteenth_and_two_seconds_either_way(
    elapsed_s: float, epoch_s: int, lost: bool
) -> None:
    assert pcp_state_lost(1000, elapsed_s, epoch_s) is lost


@pytest.mark.parametrize(
    ("elapsed_s", "epoch_s", "lost"),
    [
        (0, 1000, False),
        (0, 998, False),
        (0, 997, True),
        (800, 1698, False),
        (800, 1697, True),
        (800, 100000, False),  # a clock that runs ahead is none of its worries
        (0, 0, True),
    ],
)
def test_nat_pmp_allows_an_eighth_and_two_seconds_behind(elapsed_s: float, epoch_s: int, lost: bool) -> None:
    assert natpmp_state_lost(1000, elapsed_s, epoch_s) is lost


@pytest.mark.parametrize("rule", [pcp_state_lost, natpmp_state_lost])
def test_a_restart_is_noticed_once(rule: object) -> None:
    tracker = EpochTracker(pcp_state_lost if rule is pcp_state_lost else natpmp_state_lost)
    told = [(5000, 10.0), (5010, 20.0), (0, 30.0), (0, 30.25), (10, 40.0), (3, 50.0)]
    assert [tracker.update(epoch_s, now=now) for epoch_s, now in told] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
