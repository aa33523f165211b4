"""`stund` in several processes, whose alternate address is taken away while it serves, and given back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_PORT, ALTERNATE_SERVER, SERVER, Topology
from nattools.stun.attributes import ChangeRequest
from tests.lab.conftest import OpenSockets
from tests.lab.test_server_peers import STUND, TIME_LIMIT_S, TRANSACTION_IDS, ask, binding

CHANGE_BOTH = ChangeRequest(change_ip=True, change_port=True)
CHANGE_PORT = ChangeRequest(change_ip=False, change_port=True)
CLIENTS = 16  # enough for each process to have some
PATIENCE_S = 0.2
ATTEMPTS = 3


def ip(lab: Lab, *words: str) -> str:
    done = lab.public.run(["ip", *words], timeout=TIME_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answered(clients: list[socket.socket], data: bytes, origin: Endpoint) -> int:
    """How many of them hear from `origin` when all ask the first address, where need be again."""
    silent = list(clients)
    for _ in range(ATTEMPTS):
        for client in silent:
            client.sendto(data, (str(SERVER.ip), SERVER.port))
        silent = [client for client in silent if not hears(client, origin)]
    return len(clients) - len(silent)


def hears(client: socket.socket, origin: Endpoint) -> bool:
    client.settimeout(PATIENCE_S)
    try:
        source = Endpoint.of(*client.recvfrom(2048)[1])
    except TimeoutError:
        return False
    return source == origin


def test_an_address_that_is_taken_away_costs_the_answers_from_there_until_it_is_back(
    open_sockets: OpenSockets,
) -> None:
    other = ALTERNATE_SERVER.with_port(ALTERNATE_PORT)
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        clients = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 0)] * CLIENTS)
        arguments = (str(SERVER.ip), str(ALTERNATE_SERVER.ip), "--workers", "2")
        process = lab.public.popen([*STUND, *arguments], stderr=subprocess.PIPE)
        with process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("stund: serving")
            changed = binding(TRANSACTION_IDS[0], CHANGE_BOTH)
            assert answered(clients, changed, other) == CLIENTS
            [link] = json.loads(ip(lab, "-j", "address", "show", "to", str(ALTERNATE_SERVER.ip)))
            [own] = [a for a in link["addr_info"] if a.get("local") == str(ALTERNATE_SERVER.ip)]
            address = (f"{own['local']}/{own['prefixlen']}", "dev", link["ifname"])
            ip(lab, "address", "del", *address)
            assert answered(clients[:1], changed, other) == 0
            same_address = binding(TRANSACTION_IDS[1], CHANGE_PORT)
            assert answered(clients, same_address, SERVER.with_port(ALTERNATE_PORT)) == CLIENTS
            # who dies now cannot have all its sockets again before the address is back
            os.kill(workers_below(process.pid)[0], signal.SIGKILL)
            assert "was ended by SIGKILL and is started again" in process.stderr.readline()
            line = process.stderr.readline()
            assert f"cannot listen on {ALTERNATE_SERVER.ip}, UDP port" in line
            assert "give an address of this machine" in line
            assert answered(clients, binding(TRANSACTION_IDS[0]), SERVER) == CLIENTS
            ip(lab, "address", "add", *address)
            assert answered(clients, changed, other) == CLIENTS
            ask(clients[0], binding(TRANSACTION_IDS[1]), other)
            process.terminate()
            _out, said = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0
    assert "replies not sent" in said.splitlines()[-1]
    assert "Traceback" not in said


def workers_below(number: int) -> list[int]:
    """The two processes below the one of the laboratory's that has a single one, and so on."""
    with open(f"/proc/{number}/task/{number}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    return workers_below(children[0]) if len(children) == 1 else children
