"""Whatever strangers send to natgate costs a counter, and never the call that goes on all the while."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, Topology
from tests.lab.conftest import OpenSockets
from tests.lab.kamailio import lose_what_has_no_route
from tests.lab.natgate import GATE, Natgate, natgate
from tests.lab.sip_attacks import Attacker
from tests.lab.sip_peers import Baresip, Phone, why_no_baresip

PASSWORD = "sesame"
USERS = dict.fromkeys(("alice", "bob"), PASSWORD)
VICTIM = SERVER.with_port(7777)
ATTACKER = STRANGER.with_port(5060)
GATES_HOST = Endpoint(GATE.ip, 6666)
MESSAGES = 3000
AT_ONCE = 20
PAUSE_S = 0.01
MOST_MIB = 24.0
CONNECTIONS = 150  # natgate takes 100 of one address
UNLIMITED = "requests_per_second = 100000\n"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if (reason := why_no_baresip()) is not None:
        pytest.skip(reason)


@dataclass
class Scene:
    """A natgate, a call over it, an attacker, and somebody whom he would have natgate send to."""

    lab: Lab
    gate: Natgate
    alice: Phone
    bob: Phone
    attacker: socket.socket
    on_gates_host: socket.socket
    victim: socket.socket
    victim_listener: socket.socket

    def has_the_call(self) -> None:
        assert self.alice.hear() == {self.bob.plays_hz}
        assert self.bob.hear() == {self.alice.plays_hz}

    def has_left_the_victim_alone(self) -> None:
        assert not select.select([self.victim, self.victim_listener], [], [], 0)[0]

    def mallory(self, seed: int, source: Endpoint = ATTACKER, **words: object) -> Attacker:
        return Attacker(GATE, VICTIM, source, random.Random(seed), **words)  # type: ignore[arg-type]  # as named


@contextmanager
def scene(open_sockets: OpenSockets, settings: str) -> Iterator[Scene]:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab,
        natgate(lab, users=USERS, settings=settings) as gate,
        Baresip.outside(lab, "bob", plays_hz=880, password=PASSWORD, server=GATE) as bob,
        Baresip.inside(lab, "alice", plays_hz=440, password=PASSWORD, server=GATE) as alice,
    ):
        lose_what_has_no_route(lab)
        [listener] = open_sockets(lab.public, [VICTIM], kind=socket.SOCK_STREAM)
        listener.listen()
        bob.register()
        alice.register()
        connect(bob, alice)
        attacker, on_gates_host, victim = open_sockets(lab.public, [ATTACKER, GATES_HOST, VICTIM])
        it = Scene(lab, gate, alice, bob, attacker, on_gates_host, victim, listener)
        it.has_the_call()
        yield it
        it.has_the_call()
        it.has_left_the_victim_alone()
        bob.hang_up()
        alice.wait_ended()
        bob.wait_ended()
        connect(alice, bob)
        assert not gate.status().counters.get("faults"), gate.log
        assert "Traceback" not in gate.log


def connect(caller: Phone, callee: Phone) -> None:
    caller.call(callee.user)
    caller.wait_established()
    callee.wait_established()


def flood(at: socket.socket, mallory: Attacker, number: int) -> tuple[int, int]:
    """Send messages at the pace of a slow machine; the bytes that were sent, and that came back."""
    sent = answered = 0
    for place, data in enumerate(mallory.messages(number)):
        sent += at.sendto(data, (str(GATE.ip), GATE.port))
        if place % AT_ONCE == 0:
            time.sleep(PAUSE_S)
            answered += drained(at)
    time.sleep(0.5)
    return sent, answered + drained(at)


def drained(at: socket.socket) -> int:
    octets = 0
    while select.select([at], [], [], 0)[0]:
        octets += len(at.recv(0x10000))
    return octets


def resident_mib(gate: Natgate) -> float:
    status = Path(f"/proc/{gate.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def garble_streams(scene: Scene, open_sockets: OpenSockets) -> None:
    """Connections that bring garbage, halves, nothing, or messages for others; and more than there may be."""
    mallory = scene.mallory(4, transport=b"TCP")
    sources = [Endpoint(ATTACKER.ip, 0)] * CONNECTIONS
    connections = open_sockets(scene.lab.public, sources, kind=socket.SOCK_STREAM)
    for number, connection in enumerate(connections):
        connection.settimeout(5)
        with suppress(OSError):  # natgate ends those that are too many, and those that bring no SIP
            connection.connect((str(GATE.ip), GATE.port))
            if number < 5:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(2000))
            elif number < 25:
                connection.sendall(b"".join(mallory.messages(5)))
            elif number % 2:
                connection.sendall(mallory.request()[: 5 * number])
    scene.has_the_call()
    counters = scene.gate.status().counters
    assert counters["connections_refused"] > 0
    assert counters["garbled_streams"] > 0
    for connection in connections:
        connection.close()


def test_what_strangers_send_costs_counters_and_never_a_call(open_sockets: OpenSockets) -> None:
    with scene(open_sockets, UNLIMITED) as it:
        [call] = it.gate.status().calls
        call_id = call.call_id.encode()
        flood(it.attacker, it.mallory(0), MESSAGES // 3)
        before_mib = resident_mib(it.gate)
        sent, answered = flood(it.attacker, it.mallory(1), MESSAGES)
        it.has_the_call()
        it.has_left_the_victim_alone()
        assert answered < sent
        knowing = it.mallory(2, call=(call_id, b"x", b"y"), user=b"bob")
        flood(it.attacker, knowing, MESSAGES)
        flood(it.on_gates_host, it.mallory(3, GATES_HOST), MESSAGES // 3)
        it.has_the_call()
        garble_streams(it, open_sockets)
        assert resident_mib(it.gate) - before_mib < MOST_MIB
        counters = it.gate.status().counters
        assert counters["malformed"] > MESSAGES / 10
        assert counters["stray"] > MESSAGES / 20
        assert len(it.gate.status().calls) == 1
