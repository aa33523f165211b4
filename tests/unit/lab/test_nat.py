"""The kinds of NAT: what is claimed of them, and what must be in their rules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nattools.lab.nat import MEANINGS, Behavior, NatKind, behavior, ruleset

REMOTE_ADDRESSES = ("203.0.113.10", "203.0.113.11", "203.0.113.20")


def rules_of(
    kind: NatKind, *, loss_percent: float = 0, hairpin: bool = False, udp_timeout_s: int | None = None
) -> list[str]:
    text = ruleset(
        kind,
        wan_address="203.0.113.1",
        inside_address="192.168.0.108",
        remote_addresses=REMOTE_ADDRESSES,
        loss_percent=loss_percent,
        hairpin=hairpin,
        udp_timeout_s=udp_timeout_s,
    )
    return text.splitlines()


ANY, ADDRESS, ENDPOINT = "endpoint-independent", "address-dependent", "address-and-port-dependent"


@pytest.mark.parametrize(
    ("nat", "second_nat", "expected"),
    [
        (NatKind.OPEN, None, Behavior("none", ANY, "open")),
        (NatKind.SYMMETRIC_FIREWALL, None, Behavior("none", ENDPOINT, "symmetric-firewall")),
        (NatKind.FULL_CONE, None, Behavior(ANY, ANY, "full-cone")),
        (NatKind.RESTRICTED_CONE, None, Behavior(ANY, ADDRESS, "restricted-cone")),
        (NatKind.PORT_RESTRICTED_CONE, None, Behavior(ANY, ENDPOINT, "port-restricted-cone")),
        (NatKind.SYMMETRIC, None, Behavior(ENDPOINT, ENDPOINT, "symmetric")),
        (NatKind.ADDRESS_DEPENDENT, None, Behavior(ADDRESS, ENDPOINT, "symmetric")),
        (NatKind.BLOCKED, None, Behavior("unknown", "unknown", "blocked")),
        (NatKind.OPEN, NatKind.OPEN, Behavior("none", ANY, "open")),
        (NatKind.OPEN, NatKind.FULL_CONE, Behavior(ANY, ANY, "full-cone")),
        (NatKind.FULL_CONE, NatKind.SYMMETRIC_FIREWALL, Behavior(ANY, ENDPOINT, "port-restricted-cone")),
        (NatKind.FULL_CONE, NatKind.RESTRICTED_CONE, Behavior(ANY, ADDRESS, "restricted-cone")),
        (NatKind.RESTRICTED_CONE, NatKind.FULL_CONE, Behavior(ANY, ADDRESS, "restricted-cone")),
        (NatKind.SYMMETRIC, NatKind.FULL_CONE, Behavior(ENDPOINT, ENDPOINT, "symmetric")),
        (NatKind.ADDRESS_DEPENDENT, NatKind.FULL_CONE, Behavior(ADDRESS, ENDPOINT, "symmetric")),
        (NatKind.FULL_CONE, NatKind.BLOCKED, Behavior("unknown", "unknown", "blocked")),
        (NatKind.BLOCKED, NatKind.OPEN, Behavior("unknown", "unknown", "blocked")),
    ],
)
def test_two_routers_show_the_narrower_of_each_behavior(
    nat: NatKind, second_nat: NatKind | None, expected: Behavior
) -> None:
    assert behavior(nat, second_nat) == expected
    if second_nat is not None:
        assert behavior(second_nat, nat) == expected


def test_every_kind_is_explained() -> None:
    assert set(MEANINGS) == set(NatKind)


@pytest.mark.parametrize("kind", NatKind)
def test_only_kinds_that_translate_have_rules_of_translation(kind: NatKind) -> None:
    rules = "\n".join(rules_of(kind))
    assert ("nat hook" in rules) is kind.translates
    assert ("masquerade" in rules) is kind.translates


@pytest.mark.parametrize("kind", [kind for kind in NatKind if kind.translates])
def test_a_router_that_translates_takes_nothing_for_itself(kind: NatKind) -> None:
    assert "meta l4proto { tcp, udp } drop" in rules_of(kind)


def test_the_filter_of_a_restricted_cone_belongs_to_an_endpoint() -> None:
    rules = rules_of(NatKind.RESTRICTED_CONE)
    assert "iifname lan meta l4proto udp update @sent_to { ip daddr . udp sport }" in rules
    assert "ip saddr . udp dport @sent_to accept" in rules


def test_address_dependent_mapping_has_a_range_of_ports_for_every_address() -> None:
    ranges = [
        tuple(map(int, rule.rsplit(":", 1)[1].split("-")))
        for rule in rules_of(NatKind.ADDRESS_DEPENDENT)
        if "snat to" in rule
    ]
    assert len(ranges) == len(REMOTE_ADDRESSES)
    assert all(last < following[0] for (_, last), following in pairwise(ranges))
    assert ranges[0][0] >= 1024
    assert ranges[-1][1] < 32768  # where Linux's ephemeral ports begin


@pytest.mark.parametrize("kind", [kind for kind in NatKind if kind.hairpins])
def test_hairpinning_opens_the_mapping_from_the_inside(kind: NatKind) -> None:
    rule = "iifname lan ip daddr 203.0.113.1 udp dport @mapped dnat to 192.168.0.108"
    assert rule in rules_of(kind, hairpin=True)
    assert rule not in rules_of(kind)


@pytest.mark.parametrize(
    ("percent", "rule"),
    [
        (0, None),
        (0.001, None),
        (0.01, "meta l4proto udp numgen random mod 10000 < 1 drop"),
        (20, "meta l4proto udp numgen random mod 10000 < 2000 drop"),
        (99.999, "meta l4proto udp drop"),
        (100, "meta l4proto udp drop"),
    ],
)
def test_loss_to_a_hundredth_of_a_percent(percent: float, rule: str | None) -> None:
    before, after = rules_of(NatKind.OPEN), rules_of(NatKind.OPEN, loss_percent=percent)
    assert [line for line in after if line not in before] == ([] if rule is None else [rule])


@pytest.mark.parametrize(("timeout_s", "written"), [(None, "timeout 300s;"), (6, "timeout 6s;")])
def test_the_sets_forget_when_connection_tracking_does(timeout_s: int | None, written: str) -> None:
    rules = rules_of(NatKind.RESTRICTED_CONE, udp_timeout_s=timeout_s)
    sets = [rule for rule in rules if rule.startswith("set ")]
    assert [written in rule for rule in sets] == [True, True]


def test_what_neither_translates_nor_filters_has_nothing_to_forget() -> None:
    assert [kind for kind in NatKind if not kind.remembers] == [NatKind.OPEN, NatKind.BLOCKED]
