"""Verdicts on the simulated internet: every kind of NAT, with loss, delay, stalls and bad servers."""

from __future__ import annotations

import random

import pytest

from nattools.endpoint import Endpoint
from nattools.stun.classifier import Verdict, classify
from nattools.stun.discovery import MOST_PACKETS
from tests.networks import NETWORKS, Expected, TestNetwork, contradicts
from tests.sim.internet import Internet, Nat
from tests.sim.servers import A1, A1P1, A2, ALL, stun_server

CONES_AND_KIN = [n for n in NETWORKS if n.server == "whole" and n.nat != "blocked"]


def internet_for(network: TestNetwork, *, seed: int = 1, **settings: float) -> Internet:
    """The simulated counterpart of a network of the table."""
    rng = random.Random(seed)
    nats = (
        [Nat(network.nat, "203.0.113.1", hairpin=network.hairpin, rng=rng)]
        if network.nat != "blocked"
        else []
    )
    if network.second_nat:
        nats.insert(0, Nat(network.second_nat, "100.64.0.2", hairpin=False, rng=rng))
    server = stun_server(honours="ignore" if network.server == "ignores-change" else "change")
    alive = [e for e in ALL if network.server != "alternate-dead" or str(e.ip) == A1]
    internet = Internet(nats, dict.fromkeys(alive, server), rng, udp_blocked=network.nat == "blocked")
    for name, value in settings.items():
        setattr(internet, name, value)
    return internet


def verdict(internet: Internet, servers: list[Endpoint] | None = None, *, timeout_s: float = 5.0) -> Verdict:
    result = classify(internet.discover(servers or [A1P1], timeout_s=timeout_s))
    assert internet.packets_sent <= MOST_PACKETS
    return result


def words(verdict: Verdict) -> Expected:
    return Expected(
        verdict.nat_type.value, verdict.mapping.value, verdict.filtering.value, hairpin=verdict.hairpin
    )


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_each_network_gets_its_verdict(network: TestNetwork) -> None:
    assert words(verdict(internet_for(network))) == network.expected


@pytest.mark.parametrize("loss", [0.1, 0.2])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_loss_never_makes_a_wrong_verdict(network: TestNetwork, loss: float) -> None:
    inconclusive = 0
    runs = 60
    for seed in range(runs):
        said = words(verdict(internet_for(network, seed=seed, loss=loss)))
        assert not contradicts(said, network.expected), f"seed {seed}: {said}"
        inconclusive += said.nat_type == "inconclusive" != network.expected.nat_type
    assert inconclusive <= runs * 0.05


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
@pytest.mark.parametrize("delay_s", [0.0001, 0.1, 1.0])
def test_the_round_trip_time_changes_nothing_but_the_duration(network: TestNetwork, delay_s: float) -> None:
    internet = internet_for(network, delay_s=delay_s, jitter_s=delay_s / 5)
    assert words(verdict(internet)) == network.expected


@pytest.mark.parametrize("network", CONES_AND_KIN, ids=lambda n: n.name)
def test_a_satellite_with_loss_is_judged_rightly(network: TestNetwork) -> None:
    for seed in range(20):
        said = words(
            verdict(internet_for(network, seed=seed, delay_s=1.0, jitter_s=0.3, loss=0.2, duplicates=0.2))
        )
        assert not contradicts(said, network.expected), f"seed {seed}: {said}"


@pytest.mark.parametrize("honours", ["ignore", "refuse", "silent", "address-only"])
@pytest.mark.parametrize("network", CONES_AND_KIN, ids=lambda n: n.name)
def test_a_server_that_breaks_its_word_never_makes_a_filtering_verdict(
    network: TestNetwork, honours: str
) -> None:
    internet = internet_for(network)
    internet.servers = {e: stun_server(honours=honours) for e in ALL}
    said = words(verdict(internet))
    assert not contradicts(said, network.expected)
    if network.expected.mapping != "address-and-port-dependent" or honours != "silent":
        assert said.filtering == "unknown"
    assert said.mapping == network.expected.mapping


@pytest.mark.parametrize(
    "other",
    [
        None,
        Endpoint.of(A1, 3479),
        Endpoint.of(A2, 3478),
        Endpoint.of("10.0.0.1", 3479),
        Endpoint.of("0.0.0.0", 1),
    ],
    ids=str,
)
def test_a_useless_other_address_leaves_both_parts_unknown(other: Endpoint | None) -> None:
    internet = internet_for(NETWORKS[4])
    internet.servers = {e: stun_server(other=other) for e in ALL}
    assert words(verdict(internet)) == Expected("inconclusive", "unknown", "unknown")


def test_answers_from_the_wrong_address_count_for_nothing() -> None:
    internet = internet_for(NETWORKS[0])
    internet.servers = {e: stun_server(answers_from=Endpoint.of(A1, 9999)) for e in ALL}
    said = verdict(internet)
    assert said.nat_type.value == "inconclusive"
    assert "not from 203.0.113.10:3478" in said.reasons[0]


@pytest.mark.parametrize("network", CONES_AND_KIN, ids=lambda n: n.name)
def test_two_plain_servers_give_the_mapping(network: TestNetwork) -> None:
    internet = internet_for(network)
    internet.servers = {e: stun_server(other=None) for e in ALL}
    said = verdict(internet, [A1P1, Endpoint.of(A2, 3478)])
    truth = network.expected
    assert said.filtering.value == "unknown"
    if truth.mapping == "address-and-port-dependent":
        assert (said.nat_type.value, said.mapping.value) == ("symmetric", "address-dependent")
        assert "port as well was not tested" in said.reasons[0]
    else:
        assert said.mapping.value == truth.mapping


@pytest.mark.parametrize("kind", ["symmetric", "address-dependent"])
def test_plain_servers_on_two_ports_tell_the_dependent_mappings_apart(kind: str) -> None:
    network = next(n for n in NETWORKS if n.name == kind)
    internet = internet_for(network)
    internet.servers = {e: stun_server(other=None) for e in ALL}
    said = verdict(internet, [A1P1, Endpoint.of(A1, 3479), Endpoint.of(A2, 3478)])
    assert said.mapping.value == network.expected.mapping


def test_a_server_with_four_endpoints_is_preferred_to_a_plain_one() -> None:
    internet = internet_for(NETWORKS[4])
    plain = Endpoint.of("198.51.100.7", 3478)
    internet.servers[plain] = stun_server(other=None)
    assert words(verdict(internet, [plain, A1P1])) == NETWORKS[4].expected


def test_silence_without_tcp_is_waited_for_until_the_timeout_and_then_called_blocked() -> None:
    internet = internet_for(NETWORKS[7])
    internet.tcp_answers = False
    began = internet.now
    said = verdict(internet, timeout_s=3.0)
    assert said.nat_type.value == "blocked"
    assert internet.now - began == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("network", CONES_AND_KIN, ids=lambda n: n.name)
def test_a_server_that_stalls_does_not_look_like_a_filter(network: TestNetwork) -> None:
    """All requests of one second are answered late, together and in order, as a busy machine does."""
    internet = internet_for(network)
    began = internet.now

    def stall() -> float:
        return max(0.01, began + 1.0 - internet.now) if internet.now > began + 0.005 else 0.002

    internet._one_way = stall  # type: ignore[method-assign]  # a clock that stands still
    assert words(verdict(internet)) == network.expected


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_on_a_quiet_network_the_verdict_takes_well_under_a_second(network: TestNetwork) -> None:
    """Simulated seconds, so this is the schedule's length, not the machine's speed."""
    internet = internet_for(network, delay_s=0.0002)
    began = internet.now
    verdict(internet)
    assert internet.now - began < 0.65
