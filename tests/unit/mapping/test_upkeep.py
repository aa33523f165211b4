"""When mappings are renewed, and what is said of them; a fake clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattools.mapping.upkeep import ChangeKind, MappingChange, Upkeep
from tests.unit.mapping.mappings import MAPPING, at


@pytest.fixture
def upkeep() -> Upkeep:
    upkeep = Upkeep()
    upkeep.keep(MAPPING, now=1000)
    return upkeep


def test_nothing_is_due_when_nothing_is_kept() -> None:
    assert Upkeep().timeout_at() is None
    assert Upkeep().due(now=1e9) == []


def test_a_mapping_is_due_at_half_of_its_lease(upkeep: Upkeep) -> None:
    assert upkeep.timeout_at() == 2800
    assert upkeep.due(now=2799.9) == []
    assert upkeep.due(now=2800) == [MAPPING]


def test_a_renewal_starts_the_lease_anew(upkeep: Upkeep) -> None:
    change = upkeep.renewed(MAPPING.key, replace(MAPPING, lease_s=120), now=2800)
    assert change is not None
    assert change.kind is ChangeKind.RENEWED
    assert upkeep.timeout_at() == 2860


def test_a_mapping_for_ever_is_looked_at_as_well() -> None:
    upkeep = Upkeep()
    upkeep.keep(replace(MAPPING, lease_s=None), now=0)
    assert upkeep.timeout_at() == 1800


def test_another_external_endpoint_is_a_change(upkeep: Upkeep) -> None:
    new = at("11.22.33.9:5060")
    assert upkeep.renewed(MAPPING.key, new, now=2800) == MappingChange(
        ChangeKind.CHANGED, new, MAPPING, "half of its lease is over"
    )
    assert upkeep.mappings == [new]


def test_failures_are_retried_with_growing_waits(upkeep: Upkeep) -> None:
    now, waits = 2800.0, []
    for _ in range(9):
        assert upkeep.failed(MAPPING.key, "no answer", now=now) is None  # the lease goes on
        timeout_at = upkeep.timeout_at()
        assert timeout_at is not None
        waits.append(timeout_at - now)
        now = timeout_at
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert upkeep.failures(MAPPING.key) == 9


def test_it_is_lost_once_when_its_lease_is_over(upkeep: Upkeep) -> None:
    lost = upkeep.failed(MAPPING.key, "no answer", now=4600)
    assert lost == MappingChange(ChangeKind.LOST, MAPPING, MAPPING, "no answer")
    assert upkeep.failed(MAPPING.key, "no answer", now=4700) is None


def test_a_mapping_for_ever_is_not_lost_by_silence() -> None:
    upkeep = Upkeep()
    upkeep.keep(replace(MAPPING, lease_s=None), now=0)
    assert upkeep.failed(MAPPING.key, "no answer", now=1e9) is None


def test_when_the_router_restarted_it_is_due_at_once(upkeep: Upkeep) -> None:
    upkeep.router_changed("the router restarted", now=1010)
    assert upkeep.due(now=1010) == [MAPPING]
    change = upkeep.renewed(MAPPING.key, MAPPING, now=1010)
    assert change is not None
    assert (change.kind, change.reason) == (ChangeKind.RENEWED, "the router restarted")


def test_after_a_restart_it_is_lost_when_not_given_back_at_once(upkeep: Upkeep) -> None:
    upkeep.router_changed("the router restarted", now=1010)
    lost = upkeep.failed(MAPPING.key, "refused", now=1010)
    assert lost is not None
    assert lost.kind is ChangeKind.LOST
    assert upkeep.timeout_at() == 1010.25
    restored = upkeep.renewed(MAPPING.key, MAPPING, now=1010.25)
    assert restored is not None
    assert restored.kind is ChangeKind.RESTORED


def test_a_lost_mapping_that_comes_back_elsewhere_has_changed(upkeep: Upkeep) -> None:
    upkeep.failed(MAPPING.key, "no answer", now=4600)
    change = upkeep.renewed(MAPPING.key, at("11.22.33.9:5060"), now=4601)
    assert change is not None
    assert change.kind is ChangeKind.CHANGED


def test_news_of_the_router_end_the_waiting(upkeep: Upkeep) -> None:
    for _ in range(10):
        upkeep.failed(MAPPING.key, "no answer", now=2800)
    upkeep.router_changed("the router restarted", now=2801)
    assert upkeep.timeout_at() == 2801
    upkeep.failed(MAPPING.key, "no answer", now=2801)
    assert upkeep.timeout_at() == 2801.25


def test_what_is_forgotten_is_silent(upkeep: Upkeep) -> None:
    assert upkeep.forget(MAPPING.key) == MAPPING
    assert upkeep.forget(MAPPING.key) is None
    assert upkeep.timeout_at() is None
    assert upkeep.renewed(MAPPING.key, MAPPING, now=2800) is None
    assert upkeep.failed(MAPPING.key, "no answer", now=2800) is None
    assert upkeep.failures(MAPPING.key) == 0
    assert upkeep.mappings == []


def test_what_has_the_least_time_left_is_renewed_first(upkeep: Upkeep) -> None:
    short = replace(MAPPING, internal=MAPPING.internal.with_port(5062), lease_s=120)
    upkeep.keep(short, now=1000)
    upkeep.router_changed("the router restarted", now=1010)
    assert upkeep.due(now=1010) == [short, MAPPING]


def test_that_it_is_lost_is_seen_when_its_lease_ends(upkeep: Upkeep) -> None:
    for now in (4570.0, 4570.25, 4570.75, 4571.75, 4573.75, 4577.75):
        assert upkeep.failed(MAPPING.key, "no answer", now=now) is None
    assert upkeep.timeout_at() == 4585.75
    upkeep.failed(MAPPING.key, "no answer", now=4585.75)
    assert upkeep.timeout_at() == 4600  # and not 16 s later
    lost = upkeep.failed(MAPPING.key, "no answer", now=4600)
    assert lost is not None
    assert lost.kind is ChangeKind.LOST
