"""The rtpengine engine, with Debian's rtpengine-daemon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, next_datagram
from tests.lab.remote_relay import RELAY_ADDRESS, RemoteRelay, rtp, running_relay, talk
from tests.lab.rtpengine import CONTROL, rtpengine, why_no_rtpengine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.conftest import OpenSockets

A = Endpoint.of("198.51.100.108", 5004)
B = SERVER.with_port(6004)
PACKETS = 20

pytestmark = pytest.mark.skipif(why_no_rtpengine() is not None, reason=why_no_rtpengine() or "")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology(NatKind.OPEN), start_server=False) as built, rtpengine(built.router, RELAY_ADDRESS):
        yield built


@pytest.fixture
def relay(lab: Lab) -> Iterator[RemoteRelay]:
    with running_relay(lab.router, "rtpengine", CONTROL) as running:
        assert running.tell() == {"ready": True}
        yield running
        running.close()


def test_both_ways_are_relayed_and_counted(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert str(a.relay.ip) == str(b.relay.ip) == RELAY_ADDRESS
    assert talk(a, b, packets=PACKETS)
    told = relay.do("look")
    for side, at in (("a", A), ("b", B)):
        assert told[side]["packets"] == PACKETS
        assert told[side]["octets"] == PACKETS * len(rtp(0))
        assert told[side]["latched"] == str(at)
        assert Endpoint.parse(told[side]["rtcp"]).port == Endpoint.parse(told[side]["rtp"]).port + 1


def test_ports_stay_when_a_side_is_told_anew(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    at_first, moved = open_sockets(lab.client, [A, A.with_port(5014)])
    a, b = relay.call(at_first, *open_sockets(lab.public, [B]))
    assert talk(a, b)
    before = relay.do("look")
    relay.do("expect", side="a", rtp=str(A.with_port(5014)))
    a.socket = moved
    assert talk(a, b)
    after = relay.do("look")
    assert [after[side]["rtp"] for side in "ab"] == [before[side]["rtp"] for side in "ab"]


def test_a_phone_whose_description_says_a_private_address_is_learnt(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    relay.do("expect", side="a", rtp="192.168.0.108:5004")
    assert b.hears(a.say(), source=b.relay)
    deadline = time.monotonic() + PATIENCE_SECONDS  # it learns for 3 s before it answers there
    while time.monotonic() < deadline:
        packet = b.say()
        a.say()
        if next_datagram(a.socket, 0.1) == (packet, a.relay):
            return
    pytest.fail("rtpengine did not learn where the phone is")


def test_closing_ends_the_stream(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    relay.do("close")
    a.say()
    assert next_datagram(b.socket, 0.1) is None


def test_an_rtpengine_that_is_not_there_is_named(lab: Lab) -> None:
    began = time.monotonic()
    with running_relay(lab.router, "rtpengine", "127.0.0.1:2224") as refused:
        assert "rtpengine at 127.0.0.1:2224 does not answer ping" in refused.tell()["error"]
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_an_address_that_rtpengine_has_not_is_refused(lab: Lab, relay: RemoteRelay) -> None:
    assert relay.process.stdin is not None
    relay.process.stdin.write('{"do": "open", "name": "x", "at": {"b": "203.0.113.99"}}\n')
    relay.process.stdin.flush()
    assert "not at 203.0.113.99" in relay.tell()["error"]
