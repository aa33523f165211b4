"""What goes wrong around `stund`: its alternate address is taken away, or the network refuses its replies."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import product

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_PORT, ALTERNATE_SERVER, PUBLIC_INTERFACE, SERVER, Topology
from nattools.stun.attributes import ChangeRequest
from nattools.stun.limiter import Level
from tests.lab.conftest import OpenSockets, next_datagram
from tests.lab.stund import NO_CHANGE, TIME_LIMIT_S, TRANSACTION_IDS, Stund, ask, binding, send, stund

CHANGE_BOTH = ChangeRequest(change_ip=True, change_port=True)
CHANGE_PORT = ChangeRequest(change_ip=False, change_port=True)
CLIENTS = 16  # enough for each process to have some
PATIENCE_S = 0.2
ATTEMPTS = 3

PLENTY = tuple(f"--limit={level.name.lower()}=1000000:1000000" for level in Level)
METRICS = Endpoint.of("127.0.0.1", 9061)
MANY = 400  # more replies than a socket may have under way, unless told otherwise
TC = ("tc", "qdisc")
TO_ALL = ("dev", PUBLIC_INTERFACE, "root")
SLOW = (*TO_ALL, "tbf", "rate", "8kbit", "burst", "200", "limit", "1000000")


def run(host: Host, *command: str, text: str = "") -> str:
    done = host.run(command, timeout=TIME_LIMIT_S, input=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hears(client: socket.socket, change: ChangeRequest, origin: Endpoint) -> bool:
    """Whether an answer to a request that is sent now comes from there; others may be under way."""
    data = binding(secrets.token_bytes(12), change)
    send(client, data, SERVER)
    while (received := next_datagram(client, PATIENCE_S)) is not None:
        if received[0][8:20] == data[8:20]:
            return received[1] == origin
    return False


def all_hear(clients: list[socket.socket], change: ChangeRequest, origin: Endpoint) -> None:
    """Have each ask until it is answered from there."""
    silent, deadline = clients, time.monotonic() + TIME_LIMIT_S
    while silent := [client for client in silent if not hears(client, change, origin)]:
        assert time.monotonic() < deadline, f"{len(silent)} of {len(clients)} do not hear from {origin}"


def test_an_address_that_is_taken_away_costs_the_answers_from_there_until_it_is_back(
    open_sockets: OpenSockets,
) -> None:
    other = ALTERNATE_SERVER.with_port(ALTERNATE_PORT)
    arguments = (str(SERVER.ip), str(ALTERNATE_SERVER.ip), "--workers", "2", f"--metrics={METRICS}")
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab, stund(lab, *arguments) as server:
        clients = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 0)] * CLIENTS)
        all_hear(clients, CHANGE_BOTH, other)
        assert is_well(lab, open_sockets)
        [link] = json.loads(run(lab.public, "ip", "-j", "address", "show", "to", str(ALTERNATE_SERVER.ip)))
        [own] = [a for a in link["addr_info"] if a.get("local") == str(ALTERNATE_SERVER.ip)]
        address = (f"{own['local']}/{own['prefixlen']}", "dev", link["ifname"])
        run(lab.public, "ip", "address", "del", *address)
        assert not any(hears(clients[0], CHANGE_BOTH, other) for _ in range(ATTEMPTS))
        status, why = page(lab, open_sockets, "/health")
        assert (status, str(ALTERNATE_SERVER.ip) in why) == (HTTPStatus.SERVICE_UNAVAILABLE, True)
        all_hear(clients, CHANGE_PORT, SERVER.with_port(ALTERNATE_PORT))
        # who dies now cannot have all its sockets again before the address is back
        os.kill(workers_below(server.process.pid)[0], signal.SIGKILL)
        assert "was ended by SIGKILL and is started again" in server.next()["message"]
        said = server.next()["message"]
        assert f"cannot listen on {ALTERNATE_SERVER.ip}, UDP port" in said
        assert "give an address of this machine" in said
        all_hear(clients, NO_CHANGE, SERVER)
        run(lab.public, "ip", "address", "add", *address)
        all_hear(clients, CHANGE_BOTH, other)
        ask(clients[0], binding(TRANSACTION_IDS[1]), other)
        deadline = time.monotonic() + TIME_LIMIT_S
        while not is_well(lab, open_sockets):  # who was killed comes back within seconds
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stopped = server.stop()
    assert stopped["dropped"]["send_failed"] > 0


def workers_below(number: int) -> list[int]:
    """The two processes below the one of the laboratory's that has a single one, and so on."""
    with open(f"/proc/{number}/task/{number}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    return workers_below(children[0]) if len(children) == 1 else children


class Asked:
    """A socket of stund in a network that fails, a client's socket that it fails for, and another."""

    def __init__(self, there: Endpoint, one: socket.socket, other: socket.socket) -> None:
        self.there = there
        self.one = one
        self.other = other
        self.sent = 0

    def send(self, data: bytes, times: int = 1) -> None:
        for _ in range(times):
            send(self.one, data, self.there)
        self.sent += times

    def are_served(self, *clients: socket.socket) -> None:
        """Each asks for itself, once plainly and once in a way that the server looks at one by one."""
        for client in clients:
            for change in (None, NO_CHANGE):
                data = binding(secrets.token_bytes(12), change)
                send(client, data, self.there)
                self.sent += 1
                while True:  # other answers may still be under way
                    received = next_datagram(client, TIME_LIMIT_S)
                    assert received is not None, f"no answer from {self.there}"
                    if received[0][8:20] == data[8:20]:
                        assert received[1] == self.there
                        break


class Faults:
    """A stund on sockets of both families, what it counts, and ways to let its network fail."""

    def __init__(self, lab: Lab, server: Stund, asked: list[Asked], metrics: Metrics) -> None:
        self.lab = lab
        self.server = server
        self.asked = asked
        self._metrics = metrics

    @property
    def unsent(self) -> int:
        """How many replies it could not send so far, once it has seen to all that was sent to it."""
        sent = sum(asked.sent for asked in self.asked)
        deadline = time.monotonic() + TIME_LIMIT_S
        while (counts := self._metrics()) and sum(counts.values()) != sent:
            assert time.monotonic() < deadline, f"{counts} of {sent}"
            time.sleep(0.01)
        return counts["send_failed"]

    def refuse(self, host: Host, hook: str, verdict: str) -> None:
        """A firewall refuses what is for the first sockets; others are served, and these after it."""
        rules = "\n".join(
            f"{'ip6 nexthdr' if asked.there.is_ipv6 else 'ip protocol'} udp"
            f" udp dport {asked.one.getsockname()[1]} {verdict}"
            for asked in self.asked
        )
        chain = f"type filter hook {hook} priority 0\n{rules}\n"
        run(host, "nft", "-f", "-", text=f"table inet fault {{ chain fault {{ {chain} }}\n}}\n")
        for asked in self.asked:
            for dialect, change in product(TRANSACTION_IDS, (None, NO_CHANGE)):
                asked.send(binding(dialect, change))
            asked.are_served(asked.other)
            assert next_datagram(asked.one, 0) is None
        run(host, "nft", "delete", "table", "inet", "fault")
        for asked in self.asked:
            asked.are_served(asked.one, asked.other)

    def choke(self, asked: Asked) -> None:
        """A line that takes ten replies a second holds what a socket may have under way, and no more."""
        before = self.unsent
        run(self.lab.public, *TC, "add", *SLOW)
        for _ in range(ATTEMPTS):
            asked.send(binding(TRANSACTION_IDS[0], None), MANY)
            if self.unsent > before:
                break
        else:
            raise AssertionError(f"{asked.there} could send all to a line that takes nothing")
        run(self.lab.public, *TC, "delete", *TO_ALL)


Metrics = Callable[[], Counter[str]]


def page(lab: Lab, open_sockets: OpenSockets, path: str) -> tuple[int, str]:
    """What a stund of the laboratory answers by HTTP: the status, and the body."""
    [connection] = open_sockets(lab.public, [METRICS.with_port(0)], kind=socket.SOCK_STREAM)
    with connection:
        connection.settimeout(TIME_LIMIT_S)
        connection.connect((str(METRICS.ip), METRICS.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def is_well(lab: Lab, open_sockets: OpenSockets) -> bool:
    try:
        return page(lab, open_sockets, "/health")[0] == HTTPStatus.OK
    except ConnectionRefusedError:  # nobody is there who could say so
        return False


def metrics_of(lab: Lab, open_sockets: OpenSockets) -> Metrics:
    """What it counts: its answers, and what it dropped by reason."""
    pattern = re.compile(r'^stund_(replies|dropped)_total\{(?:reason="(\w+)"|[^}]*)\} (\S+)$', re.MULTILINE)

    def read() -> Counter[str]:
        status, body = page(lab, open_sockets, "/metrics")
        assert status == HTTPStatus.OK
        counts: Counter[str] = Counter()
        for name, reason, number in pattern.findall(body):
            counts[reason or name] += int(float(number))
        return counts

    return read


@pytest.fixture(params=["named addresses", "every address"])
def faults(request: pytest.FixtureRequest, open_sockets: OpenSockets) -> Iterator[Faults]:
    named = (str(SERVER.ip), str(ALTERNATE_SERVER.ip), "2001:db8::10", "2001:db8::11")
    options = (*PLENTY, f"--metrics={METRICS}", *(named if request.param == "named addresses" else ()))
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab, stund(lab, *options) as server:
        asked = []
        for there, home in (
            (SERVER, lab.topology.client_address),
            (Endpoint.of("2001:db8::10", SERVER.port), "2001:db8:1::108"),
        ):
            asked.append(Asked(there, *open_sockets(lab.client, [Endpoint.of(home, 0)] * 2)))
        yield Faults(lab, server, asked, metrics_of(lab, open_sockets))


def test_what_the_network_does_to_some_replies_costs_no_others(faults: Faults) -> None:
    lab, asked = faults.lab, faults.asked
    faults.refuse(lab.public, "output", "drop")  # sending fails with EPERM
    assert faults.unsent == len(asked) * 4
    for host, hook, verdict in (
        (lab.client, "input", "reject with icmpx port-unreachable"),
        (lab.router, "forward", "reject with icmpx host-unreachable"),
        (lab.router, "forward", "reject with icmpx admin-prohibited"),
    ):
        faults.refuse(host, hook, verdict)
    assert faults.unsent == len(asked) * 4
    whole = binding(TRANSACTION_IDS[0])
    for each in asked:
        for size in range(len(whole)):
            each.send(whole[:size])
        each.are_served(each.one, each.other)
    sent = sum(each.sent for each in asked)
    said = faults.server.stop()
    assert said["dropped"] == {"send_failed": len(asked) * 4, "not_stun": len(asked) * len(whole)}
    assert said["answered"] == sent - len(asked) * (4 + len(whole))


def test_a_line_that_is_full_costs_the_replies_that_it_does_not_take(faults: Faults) -> None:
    if faults.lab.public.run([*TC, "add", *SLOW], timeout=TIME_LIMIT_S).returncode:
        pytest.skip("this kernel has no token bucket filter (sch_tbf) to slow a line down with")
    run(faults.lab.public, *TC, "delete", *TO_ALL)
    for asked in faults.asked:
        faults.choke(asked)
        asked.are_served(asked.one, asked.other)
    unsent = faults.unsent
    said = faults.server.stop()
    assert said["dropped"] == {"send_failed": unsent}
