"""Which flows of a phone's SIP socket are kept open."""

from __future__ import annotations

import pytest

from nattools.binding import sip_flows
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.sip_flows import SipFlows
from nattools.blocking import flows
from nattools.endpoint import Endpoint


class OpenFlows:
    """A socket that notes which flows it is to keep open."""

    def __init__(self) -> None:
        self.open: list[int] = []

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind) -> None:
        assert kind is KeepaliveKind.CRLF
        self.open.append(destination.port)

    def let_go(self, destination: Endpoint) -> None:
        self.open.remove(destination.port)


@pytest.fixture
def sock() -> OpenFlows:
    return OpenFlows()


@pytest.fixture(params=[SipFlows, flows.SipFlows], ids=["one thread", "many threads"])
def kept(sock: OpenFlows, request: pytest.FixtureRequest) -> SipFlows:
    made = request.param(sock)
    assert isinstance(made, SipFlows)
    return made


def at(port: int) -> Endpoint:
    return Endpoint.of("198.51.100.7", port)


def test_of_many_servers_the_last_ones_count(sock: OpenFlows, kept: SipFlows) -> None:
    for port in (1, 2, 3, 4, 1, 5):
        kept.keep_server(at(port))
    assert sock.open == [1, 3, 4, 5]
    assert kept.latest_server == at(5)
    assert at(1) in kept
    assert at(2) not in kept


def test_nothing_is_kept_open_before_a_request_was_sent(sock: OpenFlows, kept: SipFlows) -> None:
    assert kept.latest_server is None
    assert at(1) not in kept
    assert sock.open == []


def test_a_peer_counts_as_long_as_its_call(sock: OpenFlows, kept: SipFlows) -> None:
    for call_id, port in ((b"one", 1), (b"two", 2), (b"two", 2), (b"two", 3)):
        kept.keep_peer(call_id, at(port))
    assert sock.open == [1, 3]
    assert at(3) in kept
    for call_id in (b"two", b"two", b"never seen"):
        kept.end_call(call_id)
    assert sock.open == [1]


def test_what_somebody_else_still_needs_stays_open(sock: OpenFlows, kept: SipFlows) -> None:
    kept.keep_server(at(1))
    kept.keep_peer(b"one", at(1))
    kept.keep_peer(b"two", at(1))
    kept.end_call(b"one")
    for port in (2, 3, 4, 5):
        kept.keep_server(at(port))
    assert at(1) in kept
    assert 1 in sock.open
    kept.end_call(b"two")
    assert 1 not in sock.open


def test_peers_are_limited(sock: OpenFlows, kept: SipFlows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip_flows, "MOST_PEERS", 2)
    for port in (1, 2, 3):
        kept.keep_peer(b"%d" % port, at(port))
    assert sock.open == [2, 3]
