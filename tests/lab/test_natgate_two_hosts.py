"""Two natgates with one Redis: whoever has registered with one of them is called by way of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, Topology
from tests.lab.natgate import GATE, natgate
from tests.lab.plain_phone import PlainPhone
from tests.lab.redis_server import redis_server, why_no_redis
from tests.lab.remote_relay import talk

if TYPE_CHECKING:
    from tests.lab.conftest import OpenSockets

OTHER_GATE = STRANGER.with_port(5060)
ALICE = Endpoint.of("192.168.0.108", 5062)
BOB = SERVER.with_port(5064)
PASSWORDS = {"alice": "a", "bob": "b"}
SETTINGS = 'domains = ["example.com"]\nstore = "redis://127.0.0.1:6379/0"\n'
ENOUGH = 10
"""Packets, until it is believed that Alice's come from where they come from."""


@pytest.mark.skipif(why_no_redis() is not None, reason=str(why_no_redis()))
def test_a_phone_behind_a_nat_is_called_through_the_natgate_it_has_not_registered_with(
    open_sockets: OpenSockets,
) -> None:
    """Its NAT lets in nobody but the one that it has sent to."""
    with Lab(Topology(NatKind.SYMMETRIC), start_server=False) as lab, redis_server(lab.public):
        at_alice = open_sockets(lab.client, [ALICE, ALICE.with_port(5004)])
        at_bob = open_sockets(lab.public, [BOB, BOB.with_port(5004)])
        alice = PlainPhone("alice", "a", GATE, at_alice[0], at_alice[1])
        bob = PlainPhone("bob", "b", OTHER_GATE, at_bob[0], at_bob[1])
        with (
            natgate(lab, users=PASSWORDS, settings=SETTINGS) as first,
            natgate(
                lab, "--rtp-ports", "40002-41000", users=PASSWORDS, settings=SETTINGS, at=OTHER_GATE
            ) as second,
        ):
            alice.register()
            bob.register()
            for ends, other in ((alice, bob), (bob, alice)):
                invite = bob.call("alice")
                alice.answer(alice.wait_called())
                assert bob.wait_answered(invite) == 200
                alice.wait_acknowledged()
                assert alice.voice is not None
                assert bob.voice is not None
                for _ in range(ENOUGH):
                    alice.voice.say()
                    bob.voice.say()
                assert talk(alice.voice, bob.voice)
                assert ends.hang_up(other.wait_hung_up) == 200
            for gate in (first, second):
                counters = gate.status().counters
                assert (counters["calls_answered"], counters["calls_ended"]) == (2, 2), gate.log
                assert counters.get("faults", 0) == 0, gate.log
