"""`kill -9` in mid-call: what natgate has stored, and what the kernel carries, outlives it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, WAN_ADDRESS, Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.natgate import natgate
from tests.lab.plain_phone import PlainPhone
from tests.lab.redis_server import redis_server, why_no_redis
from tests.lab.remote_relay import talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import OpenSockets
    from tests.lab.natgate import Natgate

GATE = Endpoint.of(WAN_ADDRESS, 5060)
ALICE = Endpoint.of("198.51.100.108", 5062)
PRIVATE = Endpoint.of("192.168.7.7", 5060)  # what Alice says of where she is; she is where she sends from
BOB = SERVER.with_port(5064)
CAROL = STRANGER.with_port(5066)
PASSWORDS = {"alice": "a", "bob": "b", "carol": "c"}
MANY = 50
_POLL_S = 0.02


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology(NatKind.OPEN), start_server=False) as built:
        yield built


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[str]:
    """Where registrations are kept, as an operator writes it."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/registrations.sqlite"
        return
    if (reason := why_no_redis()) is not None:
        pytest.skip(reason)
    with redis_server(lab.router) as url:
        yield url


def until_in_kernel(gate: Natgate) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while [[it.in_kernel for it in call.streams] for call in gate.status().calls] != [[True]]:
        assert time.monotonic() < deadline, gate.status().calls
        time.sleep(_POLL_S)


def registered(gate: Natgate) -> set[str]:
    return {it.address_of_record.partition("@")[0] for it in gate.status().registrations}


def test_phones_stay_registered_and_their_call_goes_on_until_one_hangs_up(
    lab: Lab, open_sockets: OpenSockets, store: str
) -> None:
    """Alice's Contact is a private address: only what was stored of her flow leads to her."""
    at_alice = open_sockets(lab.client, [ALICE, ALICE.with_port(5004)])
    at_others = open_sockets(lab.public, [BOB, BOB.with_port(5004), CAROL, CAROL.with_port(5004)])
    alice = PlainPhone("alice", "a", GATE, at_alice[0], at_alice[1], contact=PRIVATE)
    bob = PlainPhone("bob", "b", GATE, at_others[0], at_others[1])
    carol = PlainPhone("carol", "c", GATE, at_others[2], at_others[3])
    words = ("--engine", "kernel", "--store", store)
    with natgate(lab, *words, users=PASSWORDS, at=GATE, host=lab.router) as gate:
        for phone in (alice, bob, carol):
            phone.register()
        for ends, other in ((alice, bob), (bob, alice)):
            invite = alice.call("bob")
            bob.answer(bob.wait_called())
            assert alice.wait_answered(invite) == 200
            bob.wait_acknowledged()
            assert alice.voice is not None
            assert bob.voice is not None
            assert talk(alice.voice, bob.voice)
            until_in_kernel(gate)
            gate.kill()
            assert talk(alice.voice, bob.voice, packets=MANY)  # nobody but the kernel is there
            gate.start()
            assert talk(alice.voice, bob.voice, packets=MANY)
            assert registered(gate) == set(PASSWORDS)
            asking = carol.call("alice")
            alice.answer(alice.wait_called(), 486)
            assert carol.wait_answered(asking) == 486
            alice.wait_acknowledged()
            assert ends.hang_up(other.wait_hung_up) == 200
        assert "Traceback" not in gate.log
        assert gate.status().counters.get("faults", 0) == 0
