"""Pairs of ports: even, at random, rested, and never two streams on one."""

from __future__ import annotations

import itertools
import random

import pytest

from nattools.errors import DecodeError, LocalAddressError
from nattools.session.ports import QUARANTINE_S, PortPairs


def pairs(first: int = 30000, last: int = 30009, seed: int = 1) -> PortPairs:
    return PortPairs(first, last, entropy=random.Random(seed).randbytes)


@pytest.mark.parametrize(
    ("first", "last", "evens"),
    [
        (30000, 30009, [30000, 30002, 30004, 30006, 30008]),
        (30001, 30009, [30002, 30004, 30006, 30008]),
        (30000, 30008, [30000, 30002, 30004, 30006]),  # 30009 is not in the range
        (65534, 65535, [65534]),
    ],
)
def test_the_pairs_of_a_range_are_even_ones_with_the_port_after_them(
    first: int, last: int, evens: list[int]
) -> None:
    some = pairs(first, last)
    assert len(some) == len(evens)
    assert sorted(some.acquire(now=0.0) for _ in evens) == evens
    assert some.in_use == len(evens)


@pytest.mark.parametrize(
    ("first", "last"), [(30001, 30002), (30000, 30000), (30010, 30000), (1000, 2000), (65000, 65536)]
)
def test_a_range_without_a_pair_or_out_of_bounds_is_refused(first: int, last: int) -> None:
    with pytest.raises(DecodeError, match=f"{first}-{last}"):
        pairs(first, last)


def test_the_order_is_that_of_the_entropy() -> None:
    orders = {
        tuple(some.acquire(now=0.0) for _ in range(100))
        for some in (pairs(30000, 30999, seed) for seed in (1, 1, 2, 3))
    }
    assert len(orders) == 3
    assert all(list(order) != sorted(order) for order in orders)


def test_when_all_are_in_use_the_error_says_so() -> None:
    some = pairs()
    for _ in range(5):
        some.acquire(now=0.0)
    with pytest.raises(LocalAddressError, match=r"all 5 pairs of the RTP ports 30000-30009 are in use"):
        some.acquire(now=0.0)


def test_a_pair_rests_after_its_stream() -> None:
    some = pairs(30000, 30199)
    first = some.acquire(now=0.0)
    some.release(first, now=1.0)
    early = [some.acquire(now=1.0 + QUARANTINE_S - 0.1) for _ in range(99)]
    assert first not in early
    assert some.acquire(now=1.0 + QUARANTINE_S) == first


def test_with_nothing_else_left_the_pair_that_rested_longest_is_given() -> None:
    some = pairs()
    used = [some.acquire(now=0.0) for _ in range(5)]
    for age, even in enumerate(used):
        some.release(even, now=float(age))
    assert [some.acquire(now=5.0) for _ in used] == used


def test_what_is_not_in_use_cannot_be_released() -> None:
    some = pairs()
    even = some.acquire(now=0.0)
    some.release(even, now=0.0)
    with pytest.raises(ValueError, match=str(even)):
        some.release(even, now=0.0)


def test_no_pair_is_ever_given_twice_or_lost() -> None:
    chance = random.Random(7)
    some, held = pairs(30000, 30039), set[int]()
    for step in itertools.islice(itertools.count(), 3000):
        if len(held) < 20 and (not held or chance.random() < 0.5):
            even = some.acquire(now=step * 0.5)
            assert even not in held
            held.add(even)
        else:
            even = held.pop()
            some.release(even, now=step * 0.5)
        assert len(some) == 20
        assert some.in_use == len(held)


def test_a_pair_that_was_told_before_is_taken_again_unless_it_is_in_use() -> None:
    some = pairs()
    some.take(30004)
    assert 30004 not in {some.acquire(now=0.0) for _ in range(4)}
    for taken in (30004, 30100, 30005):
        with pytest.raises(LocalAddressError, match=str(taken)):
            some.take(taken)
    some.release(30004, now=0.0)
    some.take(30004)  # though it has not rested
    with pytest.raises(LocalAddressError, match="all 5 pairs"):
        some.acquire(now=QUARANTINE_S)
