"""The network of a laboratory, on paper."""

from __future__ import annotations

import pytest

from nattools.errors import LabError
from nattools.lab.igd import Igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER_ENDPOINTS, HostPlan, Topology


def host(topology: Topology, name: str) -> HostPlan:
    [plan] = (plan for plan in topology.hosts if plan.name == name)
    return plan


def addresses(topology: Topology, name: str) -> list[str]:
    """`interface address/prefix` of a host."""
    words = [command.split() for command in host(topology, name).commands]
    return [f"{line[4]} {line[2]}" for line in words if line[:2] == ["addr", "add"]]


def routes(topology: Topology, name: str) -> list[str]:
    return [c.removeprefix("route add ") for c in host(topology, name).commands if c.startswith("route add ")]


def test_one_router_that_translates() -> None:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE)
    assert topology.client_address == "192.168.0.108"
    assert addresses(topology, "client") == ["eth0 192.168.0.108/24"]
    assert addresses(topology, "router") == ["wan 203.0.113.1/24", "lan 192.168.0.1/24"]
    assert addresses(topology, "public") == [f"eth0 203.0.113.{n}/24" for n in (10, 11, 20)]
    assert routes(topology, "client") == ["default via 192.168.0.1"]
    assert routes(topology, "public") == []  # what is behind a NAT has no route


@pytest.mark.parametrize("nat", [NatKind.OPEN, NatKind.SYMMETRIC_FIREWALL])
def test_one_router_that_only_routes(nat: NatKind) -> None:
    topology = Topology(nat)
    assert topology.client_address == "198.51.100.108"
    assert addresses(topology, "router") == ["wan 203.0.113.1/24", "lan 198.51.100.1/24"]
    assert routes(topology, "public") == ["198.51.100.0/24 via 203.0.113.1"]
    assert all(plan.commands_ipv6 for plan in topology.hosts)


@pytest.mark.parametrize(
    ("nat", "second_nat", "client", "middle", "inside"),
    [
        (NatKind.FULL_CONE, NatKind.SYMMETRIC, "192.168.0", "100.64.0", "100.64.0.108"),
        (NatKind.FULL_CONE, NatKind.SYMMETRIC_FIREWALL, "192.168.0", "100.64.0", "192.168.0.108"),
        (NatKind.OPEN, NatKind.FULL_CONE, "192.168.0", "198.51.100", None),
        (NatKind.OPEN, NatKind.SYMMETRIC_FIREWALL, "198.51.100", "100.64.0", None),
    ],
)
def test_two_routers(nat: NatKind, second_nat: NatKind, client: str, middle: str, inside: str | None) -> None:
    topology = Topology(nat, second_nat)
    assert [plan.name for plan in topology.hosts] == ["public", "router", "inner-router", "client"]
    assert topology.client_address == f"{client}.108"
    assert addresses(topology, "router") == ["wan 203.0.113.1/24", f"lan {middle}.1/24"]
    assert addresses(topology, "inner-router") == [f"wan {middle}.108/24", f"lan {client}.1/24"]
    inward = [] if second_nat.translates else [f"{client}.0/24 via {middle}.108"]
    assert routes(topology, "router") == inward
    assert (f"dnat to {inside}\n" in host(topology, "router").ruleset) is (inside is not None)
    assert not any(plan.commands_ipv6 for plan in topology.hosts)


def test_a_router_that_grants_mappings() -> None:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd(wan_address="11.22.33.7"))
    assert topology.client_address == "192.168.0.108"
    assert addresses(topology, "router") == ["wan 11.22.33.7/24", "lan 192.168.0.1/24"]
    assert routes(topology, "router") == ["203.0.113.0/24 via 11.22.33.1"]
    assert addresses(topology, "public")[3:] == ["eth0 11.22.33.1/24"]
    assert routes(topology, "public") == []  # what is behind a NAT has no route
    assert "chain miniupnpd { }" in host(topology, "router").ruleset
    assert ("net/ipv4/conf/all/promote_secondaries", "1") in host(topology, "router").sysctls
    assert all(plan.commands_ipv6 for plan in topology.hosts)
    assert ("net/ipv6/conf/all/forwarding", "1") in host(topology, "router").sysctls_ipv6


@pytest.mark.parametrize(
    ("nat", "second_nat", "hairpin", "complaint"),
    [
        (NatKind.OPEN, None, False, "open grants no mappings"),
        (NatKind.FULL_CONE, None, False, "that can be had with port-restricted-cone and symmetric"),
        (NatKind.SYMMETRIC, NatKind.FULL_CONE, False, "no second NAT"),
        (NatKind.PORT_RESTRICTED_CONE, None, True, "no hairpinning"),
    ],
)
def test_not_every_router_can_grant_mappings(
    nat: NatKind, second_nat: NatKind | None, hairpin: bool, complaint: str
) -> None:
    with pytest.raises(LabError, match=complaint):
        Topology(nat, second_nat, hairpin=hairpin, igd=Igd())


def test_loss_and_hairpinning_belong_to_the_outer_router() -> None:
    topology = Topology(NatKind.FULL_CONE, NatKind.FULL_CONE, loss_percent=5, hairpin=True)
    assert "numgen" in host(topology, "router").ruleset
    assert "numgen" not in host(topology, "inner-router").ruleset
    assert "iifname lan ip daddr" in host(topology, "router").ruleset
    assert "iifname lan ip daddr" not in host(topology, "inner-router").ruleset


def test_a_dead_alternate_address_is_the_server_s_second() -> None:
    assert host(Topology(NatKind.OPEN), "public").ruleset == ""
    dead = host(Topology(NatKind.OPEN, alternate_dead=True), "public").ruleset
    assert "ip daddr 203.0.113.11 drop" in dead
    assert "ip saddr 203.0.113.11 drop" in dead


def test_the_server_has_two_addresses_and_two_ports() -> None:
    assert [str(endpoint) for endpoint in SERVER_ENDPOINTS] == [
        "203.0.113.10:3478",
        "203.0.113.10:3479",
        "203.0.113.11:3478",
        "203.0.113.11:3479",
    ]


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan")])
def test_a_loss_beyond_all_or_nothing_is_refused(percent: float) -> None:
    with pytest.raises(LabError, match="not between 0 and 100"):
        Topology(NatKind.OPEN, loss_percent=percent)


@pytest.mark.parametrize("nat", [kind for kind in NatKind if not kind.hairpins])
def test_only_cones_can_hairpin(nat: NatKind) -> None:
    with pytest.raises(LabError, match="full-cone, restricted-cone, port-restricted-cone"):
        Topology(nat, hairpin=True)


def timers(topology: Topology, name: str) -> dict[str, str]:
    return {path.rpartition("_udp_")[2]: value for path, value in host(topology, name).timers}


def test_every_router_forgets_after_the_same_time() -> None:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE, NatKind.FULL_CONE, udp_timeout_s=6)
    for name in ("router", "inner-router"):
        assert timers(topology, name) == {"timeout": "6", "timeout_stream": "6"}
    assert "timeout 6s;" in host(topology, "inner-router").ruleset
    assert timers(topology, "client") == timers(topology, "public") == {}


def test_a_router_that_grants_mappings_forgets_too() -> None:
    topology = Topology(NatKind.SYMMETRIC, igd=Igd(), udp_timeout_s=9)
    assert timers(topology, "router") == {"timeout": "9", "timeout_stream": "9"}


def test_unless_told_otherwise_the_kernel_has_its_own_timers() -> None:
    assert timers(Topology(NatKind.FULL_CONE), "router") == {}


def test_a_router_without_memory_has_no_timers() -> None:
    topology = Topology(NatKind.OPEN, NatKind.FULL_CONE, udp_timeout_s=6)
    assert timers(topology, "router") == {}
    assert timers(topology, "inner-router") == {"timeout": "6", "timeout_stream": "6"}
    for nat in (NatKind.OPEN, NatKind.BLOCKED):
        with pytest.raises(LabError, match=f"{nat.value} keeps no UDP flow"):
            Topology(nat, udp_timeout_s=6)


@pytest.mark.parametrize("timeout_s", [-1, 0, 86401])
def test_a_timeout_beyond_reason_is_refused(timeout_s: int) -> None:
    with pytest.raises(LabError, match="not between 1 and 86400"):
        Topology(NatKind.FULL_CONE, udp_timeout_s=timeout_s)


def test_a_sip_alg_stands_in_the_client_s_own_router() -> None:
    topology = Topology(NatKind.FULL_CONE, sip_alg=True, sip_alg_ports=(5060, 5062))
    assert "udp dport { 5060, 5062 } ct helper set" in host(topology, "router").ruleset
    assert "ct helper" not in host(Topology(NatKind.FULL_CONE), "router").ruleset
    for outer in (NatKind.SYMMETRIC, NatKind.OPEN):
        double = Topology(outer, NatKind.FULL_CONE, sip_alg=True)
        assert "udp dport { 5060 } ct helper set" in host(double, "inner-router").ruleset
        assert "ct helper" not in host(double, "router").ruleset


def test_a_router_that_grants_mappings_can_have_a_sip_alg() -> None:
    rules = host(Topology(NatKind.SYMMETRIC, igd=Igd(), sip_alg=True), "router").ruleset
    assert "chain miniupnpd { }" in rules
    assert "ct helper set" in rules


def test_rules_that_are_written_again_have_one_sip_alg() -> None:
    rules = Topology(NatKind.SYMMETRIC, sip_alg=True).router_ruleset("203.0.113.2", "192.168.0.108")
    assert rules.index("delete table ip sip_alg") < rules.index("table ip sip_alg {")
    assert rules.count("ct helper set") == 1


@pytest.mark.parametrize(
    ("nat", "second_nat", "ports", "complaint"),
    [
        (NatKind.OPEN, None, (5060,), "open translates no address"),
        (NatKind.FULL_CONE, NatKind.SYMMETRIC_FIREWALL, (5060,), "symmetric-firewall translates no address"),
        (NatKind.FULL_CONE, None, (), "needs ports from 1 to 65535"),
        (NatKind.FULL_CONE, None, (0,), "needs ports from 1 to 65535"),
        (NatKind.FULL_CONE, None, (5060, 65536), "needs ports from 1 to 65535"),
    ],
)
def test_not_every_router_can_have_a_sip_alg(
    nat: NatKind, second_nat: NatKind | None, ports: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(LabError, match=complaint):
        Topology(nat, second_nat, sip_alg=True, sip_alg_ports=ports)
