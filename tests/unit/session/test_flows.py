"""Which socket leads where, and which addresses are the proxy's own."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
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


def test_a_proxy_needs_a_listener_of_a_known_transport() -> None:
    with pytest.raises(ValueError, match="without a listener"):
        Flows([])
    with pytest.raises(ValueError, match="SCTP"):
        Listener("x", "SCTP", PROXY)
