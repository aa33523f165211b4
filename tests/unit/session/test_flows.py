"""Which socket leads where, and which addresses are the proxy's own."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint, IPAddress
from nattools.session.flows import Flow, Flows, Listener
from tests.unit.session.proxy_desk import ALICE, OUTSIDE, PROXY


def flows() -> Flows:
    return Flows(
        [
            Listener("in", "UDP", PROXY),
            Listener("out", "UDP", Endpoint.of("10.9.9.9", 5060), OUTSIDE),
            Listener("t", "TCP", PROXY),
        ],
        {b"example.com"},
    )


def test_a_connection_is_used_while_it_is_open() -> None:
    known = flows()
    assert known.towards(ALICE, "TCP") == Flow("t", ALICE)
    known.connected("c", "t", ALICE)
    assert known.towards(ALICE, "TCP") == Flow("c", ALICE)
    assert known.is_open(Flow("c", ALICE))
    listener = known.listener("c")
    assert listener is not None
    assert listener.name == "t"
    known.disconnected("c")
    known.disconnected("c")
    assert known.towards(ALICE, "TCP") == Flow("t", ALICE)
    assert not known.is_open(Flow("c", ALICE))
    assert known.listener("c") is None


def test_of_two_connections_to_one_peer_the_newer_is_used_and_outlives_the_older() -> None:
    known = flows()
    known.connected("old", "t", ALICE)
    known.connected("new", "t", ALICE)
    known.disconnected("old")
    assert known.towards(ALICE, "TCP") == Flow("new", ALICE)


def test_the_nearest_listener_is_used() -> None:
    known = flows()
    assert known.towards(ALICE, "UDP") == Flow("in", ALICE)
    assert known.towards(ALICE, "UDP", near="out") == Flow("out", ALICE)
    assert known.towards(ALICE, "TLS") is None
    assert known.towards(Endpoint.of("::1", 1), "UDP") is None


@pytest.mark.parametrize(
    "remote",
    [
        *("224.0.0.1:5060", "255.255.255.255:5060", "0.0.0.0:5060", "203.0.113.9:0"),
        *("127.0.0.1:6379", "[::ffff:127.0.0.1]:6379", "[::ffff:224.0.0.1]:5060"),
    ],
)
def test_nothing_is_sent_to_everybody_nor_to_what_listens_on_this_machine_alone(remote: str) -> None:
    assert flows().towards(Endpoint.parse(remote), "UDP") is None
    assert flows().towards(Endpoint.parse(remote), "TCP") is None


def test_on_this_machine_is_reached_what_a_loopback_listener_faces_or_the_operator_has_named() -> None:
    beside = Endpoint.of("127.0.0.1", 5080)
    inside = Flows([Listener("u", "UDP", PROXY), Listener("lo", "UDP", Endpoint.of("127.0.0.1", 5060))])
    assert inside.towards(beside, "UDP") == Flow("lo", beside)
    known = flows()
    known.trust(beside)
    assert known.towards(beside, "UDP") == Flow("in", beside)
    assert known.towards(beside.with_port(5081), "UDP") is None


@pytest.mark.parametrize(
    ("host", "port", "own"),
    [
        (b"203.0.113.7", None, True),
        (b"203.0.113.7", 5060, True),
        (b"203.0.113.7", 5061, False),
        (b"198.51.100.7", 5060, True),
        (b"10.9.9.9", 5060, True),
        (b"Example.COM", None, True),
        (b"example.com", 5061, False),
        (b"example.org", None, False),
        (b"", None, False),
    ],
)
def test_what_is_the_proxys_own(host: bytes, port: int | None, own: bool) -> None:
    assert flows().is_own(host, port) is own


def test_of_several_addresses_the_one_that_faces_the_other_side_is_used() -> None:
    inside, outside = Endpoint.of("192.168.0.1", 5060), Endpoint.of("203.0.113.5", 5060)
    asked: list[Endpoint] = []

    def facing(remote: Endpoint) -> IPAddress | None:
        asked.append(remote)
        return {"1": inside.ip, "9": outside.ip}.get(str(remote.ip)[-1])

    listeners = [Listener("in", "UDP", inside), Listener("out", "UDP", outside), Listener("t", "TCP", inside)]
    flows = Flows(listeners, facing=facing)
    for remote, near, expected in (
        (Endpoint.of("192.168.0.1", 5062), "out", "in"),
        (Endpoint.of("203.0.113.9", 5062), "in", "out"),
        (Endpoint.of("203.0.113.10", 5062), "out", "out"),  # no way there: as ever
    ):
        flow = flows.towards(remote, "UDP", near=near)
        assert flow == Flow(expected, remote)
    assert len(asked) == 3
    assert flows.towards(outside.with_port(5062), "TCP") == Flow("t", outside.with_port(5062))
    assert len(asked) == 3  # there is no choice


def test_a_proxy_needs_a_listener_of_a_known_transport() -> None:
    with pytest.raises(ValueError, match="without a listener"):
        Flows([])
    with pytest.raises(ValueError, match="SCTP"):
        Listener("x", "SCTP", PROXY)
