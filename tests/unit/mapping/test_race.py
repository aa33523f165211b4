"""Which protocol wins when several answer."""

from __future__ import annotations

import pytest

from nattools.mapping.model import MappingProtocol
from nattools.mapping.race import Race

PCP, NAT_PMP, UPNP = MappingProtocol.PCP, MappingProtocol.NAT_PMP, MappingProtocol.UPNP


@pytest.fixture
def race() -> Race:
    return Race([PCP, NAT_PMP, UPNP], grace_s=0.05)


def test_nothing_is_won_before_an_answer(race: Race) -> None:
    assert race.winner(now=100) is None
    assert race.timeout_at() is None
    assert not race.is_over


def test_the_best_wins_at_once(race: Race) -> None:
    race.answered(PCP, behind_second_nat=False, now=1)
    assert race.winner(now=1) is PCP


def test_a_lesser_one_waits_for_the_grace(race: Race) -> None:
    race.answered(UPNP, behind_second_nat=False, now=1)
    assert race.timeout_at() == 1.05
    assert race.winner(now=1.04) is None
    assert race.winner(now=1.05) is UPNP


def test_a_better_one_within_the_grace_wins(race: Race) -> None:
    race.answered(UPNP, behind_second_nat=False, now=1)
    race.answered(NAT_PMP, behind_second_nat=False, now=1.02)
    assert race.winner(now=1.03) is None  # PCP may still come
    race.failed(PCP)
    assert race.winner(now=1.03) is NAT_PMP


def test_the_grace_counts_from_the_first_answer(race: Race) -> None:
    race.answered(UPNP, behind_second_nat=False, now=1)
    race.answered(NAT_PMP, behind_second_nat=False, now=1.04)
    assert race.timeout_at() == 1.05


def test_nobody_waits_for_those_that_failed(race: Race) -> None:
    race.failed(PCP)
    race.failed(NAT_PMP)
    race.answered(UPNP, behind_second_nat=False, now=1)
    assert race.winner(now=1) is UPNP
    assert race.timeout_at() is None


def test_a_public_address_beats_a_better_protocol(race: Race) -> None:
    race.answered(PCP, behind_second_nat=True, now=1)
    assert race.winner(now=1) is None  # UPnP may know a router with a public one
    race.answered(UPNP, behind_second_nat=False, now=1.01)
    assert race.winner(now=1.05) is UPNP


def test_after_a_refusal_the_next_is_taken(race: Race) -> None:
    race.answered(PCP, behind_second_nat=False, now=1)
    race.answered(UPNP, behind_second_nat=False, now=1)
    race.failed(PCP)
    race.failed(NAT_PMP)
    assert race.winner(now=1) is UPNP
    race.failed(UPNP)
    assert race.winner(now=1) is None
    assert race.is_over


def test_the_order_given_is_the_preference() -> None:
    race = Race([UPNP, PCP])
    race.answered(UPNP, behind_second_nat=False, now=1)
    assert race.winner(now=1) is UPNP
