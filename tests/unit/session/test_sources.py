"""How many users one address registers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.session.sources import Sources


def test_those_that_are_there_may_stay_and_others_wait_until_one_has_gone() -> None:
    sources = Sources(2)
    ip = ip_address("192.0.2.1")
    for name, until in (("a", 10.0), ("b", 20.0)):
        assert sources.has_room(ip, name, now=0.0)
        sources.note(ip, name, until, now=0.0)
    assert sources.has_room(ip, "a", now=0.0)
    assert not sources.has_room(ip, "c", now=9.9)
    assert sources.has_room(ip, "c", now=10.0)
    sources.note(ip, "b", None, now=0.0)
    assert sources.has_room(ip, "c", now=0.0)


def test_a_refresh_counts_once_and_lasts_longer() -> None:
    sources = Sources(1)
    ip = ip_address("192.0.2.1")
    sources.note(ip, "a", 10.0, now=0.0)
    sources.note(ip, "a", 15.0, now=5.0)
    assert not sources.has_room(ip, "b", now=14.0)
    assert sources.has_room(ip, "b", now=15.0)


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_a_household_is_one_source(one: str, other: str, are_one: bool) -> None:
    sources = Sources(1)
    sources.note(ip_address(one), "a", 10.0, now=0.0)
    assert sources.has_room(ip_address(other), "b", now=0.0) is not are_one


def test_sources_that_are_gone_take_no_memory() -> None:
    sources = Sources(1)
    for number in range(10_000):
        sources.note(ip_address(number), "a", 10.0, now=float(number))
    assert len(sources._until) < 2000
