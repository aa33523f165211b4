"""A client that floods stund, and its neighbours behind the same address or in the same /64."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import ExitStack

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, WAN_ADDRESS, Topology
from tests.lab.conftest import OpenSockets, next_datagram
from tests.lab.stund import TIME_LIMIT_S, ask, binding, send, stund

BURST = 80
AT_ONCE = 40  # of one socket, by default
SERVED_AGAIN_S = 2.0
SILENCE_S = 0.3
WORKERS = (1, 2)
HOST, NEIGHBOUR = "2001:db8:1::108", "2001:db8:1::109"
SERVER_IPV6 = Endpoint.of("2001:db8::10", SERVER.port)

Asked = tuple[socket.socket, socket.socket, Endpoint]
"""Who floods, its neighbour, and the server."""


def request() -> bytes:
    return binding(secrets.token_bytes(12), None)


def flood(client: socket.socket, server: Endpoint) -> None:
    for _ in range(BURST):
        send(client, request(), server)


def answer_to(client: socket.socket, data: bytes, server: Endpoint) -> bool:
    """Whether there is an answer to just this request; others may have been under way."""
    send(client, data, server)
    while (received := next_datagram(client, TIME_LIMIT_S)) is not None:
        if received[0][8:20] == data[8:20]:
            return True
    return False


def test_a_burst_of_one_client_leaves_its_neighbour_answered_and_itself_again_within_2_s(
    open_sockets: OpenSockets,
) -> None:
    with ExitStack() as stack:
        shared, routed = (
            stack.enter_context(Lab(Topology(kind), start_server=False))
            for kind in (NatKind.PORT_RESTRICTED_CONE, NatKind.OPEN)
        )
        done = routed.client.run(
            ["ip", "address", "add", f"{NEIGHBOUR}/64", "dev", "eth0", "nodad"], timeout=TIME_LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        servers = []
        asked: list[Asked] = []
        for workers in WORKERS:
            for lab, homes, to in (
                (shared, (shared.topology.client_address,) * 2, SERVER),
                (routed, (HOST, NEIGHBOUR), SERVER_IPV6),
            ):
                there = to.with_port(to.port + 10 * workers)
                options = ("--port", str(there.port), "--workers", str(workers))
                servers.append(stack.enter_context(stund(lab, str(there.ip), *options)))
                one, other = open_sockets(lab.client, [Endpoint.of(home, 0) for home in homes])
                asked.append((one, other, there))
        for one, other, there in asked:
            flood(one, there)
            reply, *_ = ask(other, request(), there)
            assert reply.mapped_address is not None
            seen = NEIGHBOUR if there.is_ipv6 else WAN_ADDRESS
            assert str(reply.mapped_address.ip) == seen
        time.sleep(SERVED_AGAIN_S)
        for one, _other, there in asked:
            assert answer_to(one, request(), there)
        for server in servers:
            said = server.stop()
            refused = said["dropped"]["rate_limited"]
            assert said["answered"] + refused == BURST + 2
            assert 0 < refused <= BURST - AT_ONCE


def test_where_all_behind_an_address_share_one_limit_a_neighbour_is_not_answered(
    open_sockets: OpenSockets,
) -> None:
    """That the test above can fail."""
    limit = f"--limit=address=0.001:{AT_ONCE}"
    with (
        Lab(Topology(NatKind.FULL_CONE), start_server=False) as lab,
        stund(lab, str(SERVER.ip), limit) as server,
    ):
        one, other = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 0)] * 2)
        flood(one, SERVER)
        send(other, request(), SERVER)
        assert next_datagram(other, SILENCE_S) is None
        said = server.stop()
    assert (said["answered"], said["dropped"]) == (AT_ONCE, {"rate_limited": BURST + 1 - AT_ONCE})
