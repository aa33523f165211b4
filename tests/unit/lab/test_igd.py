"""A router that grants mappings, on paper: what the daemon is told, and the rules around its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nattools.errors import LabError
from nattools.lab.igd import Igd, configuration, igd_ruleset
from nattools.lab.nat import NatKind


def settings(igd: Igd) -> dict[str, str]:
    lines = configuration(igd).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def rules(igd: Igd, kind: NatKind = NatKind.PORT_RESTRICTED_CONE, *, loss_percent: float = 0) -> list[str]:
    return igd_ruleset(igd, kind, loss_percent=loss_percent).splitlines()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Igd(version=3), "InternetGatewayDevice:3"),
        (lambda: Igd(upnp=False, pcp=False), "neither UPnP nor PCP"),
        (lambda: Igd(min_lease_s=0), "no lease is between 0 and 86400"),
        (lambda: Igd(min_lease_s=300, max_lease_s=299), "no lease is between 300 and 299"),
        (lambda: Igd(wan_address="router"), "'router' is no IPv4 address"),
        (lambda: Igd(external_address="2001:db8::1"), "'2001:db8::1' is no IPv4 address"),
        (lambda: Igd(wan_address="192.168.0.2"), "192.168.0.0/24 is in use elsewhere"),
        (lambda: Igd(wan_address="203.0.113.1"), "203.0.113.0/24 is in use elsewhere"),
        (lambda: Igd(wan_address="11.22.33.0"), "11.22.33.0 is no WAN address"),
        (lambda: Igd(wan_address="11.22.33.1"), "11.22.33.1 is no WAN address: it can be from 11.22.33.2 to"),
        (lambda: Igd(wan_address="11.22.33.255"), "11.22.33.255 is no WAN address"),
    ],
)
def test_a_router_that_cannot_be_is_refused(make: Callable[[], Igd], complaint: str) -> None:
    with pytest.raises(LabError) as refused:
        make()
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("wan_address", "neighbour"), [("11.22.33.2", "11.22.33.1"), ("100.64.0.254", "100.64.0.1")]
)
def test_the_next_hop_is_the_first_of_the_network(wan_address: str, neighbour: str) -> None:
    assert Igd(wan_address=wan_address).neighbour == neighbour


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"version": 1}, {"force_igd_desc_v1": "yes"}),
        ({"version": 2}, {"force_igd_desc_v1": "no"}),
        ({"secure": False}, {"secure_mode": "no"}),
        ({"secure": True}, {"secure_mode": "yes"}),
        ({"upnp": False}, {"enable_upnp": "no"}),
        ({"external_address": "11.22.33.44"}, {"ext_ip": "11.22.33.44"}),
        ({"min_lease_s": 5, "max_lease_s": 6}, {"min_lifetime": "5", "max_lifetime": "6"}),
        ({"notify_interval_s": 7}, {"notify_interval": "7"}),
        ({"pcp": False}, {}),  # the rules see to it
    ],
)
def test_the_daemon_is_told_what_the_router_is(words: dict[str, Any], told: dict[str, str]) -> None:
    usual = settings(Igd())
    assert settings(Igd(**words)) == {**usual, **told}


def test_without_another_address_the_daemon_looks_for_its_own() -> None:
    assert "ext_ip" not in settings(Igd())


def test_only_the_lan_and_only_high_ports_are_allowed() -> None:
    assert configuration(Igd()).splitlines()[-2:] == [
        "allow 1024-65535 192.168.0.0/24 1024-65535",
        "deny 0-65535 0.0.0.0/0 0-65535",
    ]


def test_nothing_is_kept_in_a_file() -> None:
    assert "lease_file" not in settings(Igd())


def test_the_daemon_s_table_and_chains_are_there() -> None:
    written = rules(Igd())
    table = settings(Igd())
    assert f"table inet {table['upnp_table_name']} {{" in written
    assert table["upnp_nat_table_name"] == table["upnp_table_name"]
    for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
        assert f"chain {chain} {{ }}" in written
        assert f"jump {chain}" in written


def test_ipv6_is_not_translated() -> None:
    for kind in (NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC):
        masquerading = [rule for rule in rules(Igd(), kind) if "masquerade" in rule]
        assert masquerading
        assert all(rule.startswith("meta nfproto ipv4 oifname wan") for rule in masquerading)


def test_only_a_symmetric_router_changes_every_port() -> None:
    assert "fully-random" not in "".join(rules(Igd(), NatKind.PORT_RESTRICTED_CONE))
    assert "fully-random" in "".join(rules(Igd(), NatKind.SYMMETRIC))


def test_a_router_without_pcp_is_silent_about_it() -> None:
    assert [rule for rule in rules(Igd(pcp=False)) if rule not in rules(Igd())] == [
        "iifname lan udp dport 5351 reject",
        "oifname lan udp dport 5350 drop",
    ]


def test_loss_comes_before_everything_else_that_is_forwarded() -> None:
    written = rules(Igd(), loss_percent=20)
    lost = written.index("meta l4proto udp numgen random mod 10000 < 2000 drop")
    assert written[lost - 1] == "type filter hook forward priority filter; policy drop;"
    assert written[:lost] + written[lost + 1 :] == rules(Igd())
