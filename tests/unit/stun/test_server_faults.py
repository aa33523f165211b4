"""A server to which things happen that are nobody's request: it loses what was lost, and goes on."""

from __future__ import annotations

import asyncio
import socket
import sys
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.net import listener
from nattools.stun.responder import DropReason, Reply, Responder, ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from tests.unit.stun.test_server import (
    A1,
    A2,
    FULL,
    SINGLE,
    ask,
    attributes_of,
    client,
    first,
    request,
    right,
    serve,
    value,
)

TIME_LIMIT_S = 20
BURST = 500
VANISHED = 100
OUTSIDE = {ip_address(A1): ip_address("198.51.100.1"), ip_address(A2): ip_address("198.51.100.2")}


@pytest.fixture(autouse=True, params=["in batches", "one by one"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        monkeypatch.setitem(sys.modules, "nattools.net.batch", None)


def test_what_overruns_the_socket_s_buffer_is_lost_and_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "RECEIVE_BUFFER_BYTES", 1)  # the system gives its least

    async def scenario(server: StunServer) -> None:
        with client() as flood, client() as honest:
            for _ in range(BURST):  # without a pause in which the server could read
                flood.sendto(request(), first(server))
            sent = request()
            async with asyncio.timeout(TIME_LIMIT_S):
                while not server.answered:  # noqa: ASYNC110 - nothing tells of a datagram that was answered
                    await asyncio.sleep(0)
            _, source = await ask(honest, first(server), sent)
            assert source == first(server)

    server = serve(SINGLE, scenario)
    assert 1 < server.answered < BURST / 2
    assert not server.dropped
    if sys.platform == "linux":
        assert server.answered + server.overrun == BURST + 1


def test_clients_that_are_gone_when_their_reply_comes_stop_nothing() -> None:
    """The system is told by ICMP that nobody has their port any more."""

    async def scenario(server: StunServer) -> None:
        for _ in range(VANISHED):
            with client() as gone:
                gone.sendto(request(), first(server))
        with client() as honest:
            sent = request()
            reply, _ = await ask(honest, first(server), sent)
            other = A2, server.addresses.alternate_port or 0
            assert attributes_of(reply, sent) == right(sent, honest.getsockname(), first(server), other)

    server = serve(FULL, scenario)
    assert server.answered + server.dropped[DropReason.SEND_FAILED] == VANISHED + 1


def test_the_addresses_that_a_1_1_nat_gives_are_those_that_clients_are_told() -> None:
    async def run() -> None:
        async with await StunServer.start(FULL, ServerOptions(advertise=OUTSIDE)) as server:
            port, alternate_port = server.addresses.port, server.addresses.alternate_port or 0
            with client() as sock:
                for sent in (request(), request((3, bytes((0, 0, 0, 6))))):
                    is_changed = len(sent) > 20
                    reply, source = await ask(sock, first(server), sent)
                    assert source == ((A2, alternate_port) if is_changed else (A1, port))
                    found = attributes_of(reply, sent)
                    told = ("198.51.100.2", alternate_port) if is_changed else ("198.51.100.1", port)
                    assert found[0x802B] == value(told)
                    assert found[0x802C] == value(("198.51.100.2", alternate_port))
                sent = request(classic=True)
                found = attributes_of((await ask(sock, first(server), sent))[0], sent)
                assert found[4] == value(("198.51.100.1", port))
                assert found[5] == value(("198.51.100.2", alternate_port))

    asyncio.run(run())


def test_a_request_from_the_advertised_address_is_from_the_server_itself() -> None:
    addresses = ServerAddresses(ip_address(A1), 3478)
    local = Endpoint.of(A1, 3478)
    for responder, wildcard in (
        (Responder(addresses, advertise=OUTSIDE), False),
        (Responder(ServerAddresses(ip_address("0.0.0.0"), 3478), advertise=OUTSIDE), True),
    ):
        own = Endpoint.of("198.51.100.1", 3478)
        assert responder.respond(request(), own, local) is DropReason.OWN_SOCKET, wildcard
        assert isinstance(responder.respond(request(), own.with_port(3479), local), Reply)


def test_two_servers_that_reuse_a_port_both_have_it_and_one_that_does_not_is_refused() -> None:
    async def run() -> None:
        async with await StunServer.start(SINGLE, ServerOptions(reuse_port=True)) as one:
            async with await StunServer.start(one.addresses, ServerOptions(reuse_port=True)) as other:
                assert other.addresses == one.addresses
                for _ in range(50):
                    with client() as sock:
                        await ask(sock, first(one), request())
                assert one.answered
                assert other.answered
            with pytest.raises(OSError, match="in use"), socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.bind(first(one))

    asyncio.run(run())


def test_reflector_ports_are_those_that_were_given() -> None:
    async def run() -> None:
        with client() as sock, client() as honest:
            port = sock.getsockname()[1]
            async with await StunServer.start(
                SINGLE, ServerOptions(reflector_ports={port, 0xFFFF})
            ) as server:
                sock.sendto(request(), first(server))
                await ask(honest, first(server), request())
                assert server.dropped == {DropReason.REFLECTOR_PORT: 1}

    asyncio.run(run())
