"""How many may connect, and that coming and going in haste does not get around it."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.stun.connections import LEAST_COUNTED_S, ConnectionCounts, ConnectionLimits

NOW = 1000.0
LONG_AGO = NOW - 2 * LEAST_COUNTED_S


def client(number: int, port: int = 40_000) -> Endpoint:
    return Endpoint.of(f"203.0.113.{number}", port)


def admitted(counts: ConnectionCounts, *remotes: Endpoint, now: float = NOW) -> list[bool]:
    return [counts.admit(remote, now=now) for remote in remotes]


def test_one_source_has_its_share_and_the_rest_is_for_others() -> None:
    counts = ConnectionCounts(ConnectionLimits(most=3, per_source=2))
    greedy = [client(1, port) for port in (1, 2, 3)]
    assert admitted(counts, *greedy, client(2), client(3)) == [True, True, False, True, False]
    assert counts.counted == 3


@pytest.mark.parametrize(
    ("other", "is_same_source"),
    [("2001:db8:0:1:ffff::2", True), ("2001:db8:0:2::1", False), ("203.0.113.1", False)],
)
def test_over_ipv6_a_site_is_one_source(other: str, is_same_source: bool) -> None:
    counts = ConnectionCounts(ConnectionLimits(per_source=1))
    assert counts.admit(Endpoint.of("2001:db8:0:1::1", 1), now=NOW)
    assert counts.admit(Endpoint.of(other, 1), now=NOW) is not is_same_source


def test_what_ended_after_a_while_makes_room_at_once() -> None:
    counts = ConnectionCounts(ConnectionLimits(per_source=1))
    assert counts.admit(client(1), now=LONG_AGO)
    counts.end(client(1), since=LONG_AGO, now=NOW)
    assert counts.counted == 0
    assert counts.admit(client(1), now=NOW)


def test_what_ends_at_once_counts_for_a_second_all_the_same() -> None:
    counts = ConnectionCounts(ConnectionLimits(most=2, per_source=1))
    for remote in (client(1), client(2)):
        assert counts.admit(remote, now=NOW)
        counts.end(remote, since=NOW, now=NOW)
    just_before = NOW + LEAST_COUNTED_S - 0.01
    assert admitted(counts, client(1), client(3), now=just_before) == [False, False]
    assert admitted(counts, client(1), client(3), now=NOW + LEAST_COUNTED_S) == [True, True]


def test_nothing_is_kept_of_who_was_refused_or_has_gone() -> None:
    counts = ConnectionCounts(ConnectionLimits(most=1))
    for number in range(100):
        counts.admit(client(number), now=NOW)
    counts.end(client(0), since=NOW, now=NOW)
    assert counts.admit(client(1), now=NOW + LEAST_COUNTED_S)
    assert len(counts._by_source) == counts.counted == 1
    assert not counts._ended


def test_other_limits_hold_from_then_on() -> None:
    counts = ConnectionCounts(ConnectionLimits(per_source=1))
    counts.admit(client(1), now=NOW)
    counts.limits = ConnectionLimits(per_source=2)
    assert admitted(counts, client(1), client(1)) == [True, False]


@pytest.mark.parametrize(
    "wrong",
    [{"most": 0}, {"per_source": 0}, {"idle_s": 0.0}, {"idle_s": float("nan")}, {"most": 1_000_001}],
    ids=str,
)
def test_limits_that_would_let_nobody_in_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(TransportError, match="must be positive"):
        ConnectionLimits(**wrong)  # type: ignore[arg-type]  # one table for numbers of both kinds
