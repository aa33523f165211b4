"""Another protocol on the server's UDP sockets, and ports that it has beside those of its addresses."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from tests.ports import free_port
from tests.unit.stun.test_server import (
    A1,
    A2,
    FULL,
    SINGLE,
    WILDCARD,
    ask,
    attributes_of,
    client,
    first,
    is_silent,
    request,
    right,
    serve,
)

CHANGE_IP, CHANGE_PORT = (3, bytes((0, 0, 0, 4))), (3, bytes((0, 0, 0, 2)))


class Guest:
    """Answers each datagram that begins with `?`, and remembers all that it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Endpoint]] = []

    def __call__(self, data: bytes, source: Endpoint) -> bytes | None:
        self.asked.append((data, source))
        return b"!" + data if data.startswith(b"?") else None


@pytest.mark.parametrize("addresses", [SINGLE, FULL, WILDCARD], ids=["single", "full", "wildcard"])
def test_a_guest_answers_what_is_no_stun_from_where_it_was_asked(addresses: ServerAddresses) -> None:
    guest = Guest()

    async def scenario(server: StunServer) -> None:
        ports = [endpoint.port for endpoint in server.addresses.endpoints] + list(server.more_ports)
        for address in (A1,) if addresses is not FULL else (A1, A2):
            for port in ports:
                with client() as sock:
                    assert await ask(sock, (address, port), b"?hello") == (b"!?hello", (address, port))
                    own = Endpoint.of(*sock.getsockname())
                    assert guest.asked[-1] == (b"?hello", own)
                    sent = request()
                    reply, source = await ask(sock, (address, port), sent)
                    assert source == (address, port)
                    assert 0x20 in attributes_of(reply, sent)

    server = serve(addresses, scenario, more_ports=(0,), answer_other=guest)
    assert all(data == b"?hello" for data, _ in guest.asked)
    assert server.answered == 2 * len(guest.asked)
    assert not server.dropped


def test_what_the_guest_does_not_answer_is_dropped_as_before() -> None:
    guest = Guest()

    async def scenario(server: StunServer) -> None:
        with client() as sock:
            sock.sendto(b"hello", first(server))
            response = b"\x01\x01" + request()[2:]
            sock.sendto(response, first(server))  # STUN, so it is none of the guest's
            await ask(sock, first(server), request())
            assert is_silent(sock)

    server = serve(SINGLE, scenario, answer_other=guest)
    assert [data for data, _ in guest.asked] == [b"hello"]
    assert server.dropped == {DropReason.NOT_STUN: 1, DropReason.NOT_A_REQUEST: 1}


def test_a_port_beside_the_others_is_the_same_on_both_addresses_and_can_change_them() -> None:
    async def scenario(server: StunServer) -> None:
        [port] = server.more_ports
        other = (A2, server.addresses.alternate_port or 0)
        with client() as sock:
            for attribute, origin in ((CHANGE_IP, (A2, port)), (CHANGE_PORT, (A1, other[1]))):
                sent = request(attribute)
                reply, source = await ask(sock, (A1, port), sent)
                assert source == origin
                assert attributes_of(reply, sent) == right(sent, sock.getsockname(), origin, other)

    serve(FULL, scenario, more_ports=(0,))


def test_a_port_that_is_one_of_the_server_s_already_is_taken_once() -> None:
    async def scenario(server: StunServer) -> None:
        again = ServerAddresses(ip_address(A2), server.addresses.port)
        async with await StunServer.start(again, ServerOptions(more_ports=(again.port, again.port))) as same:
            assert same.more_ports == (again.port, again.port)

    serve(SINGLE, scenario)


def test_a_port_that_is_taken_is_named_and_no_other_is_kept() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((A1, 0))
        taken_port, port = taken.getsockname()[1], free_port()

        async def start() -> None:
            await StunServer.start(
                ServerAddresses(ip_address(A1), port), ServerOptions(more_ports=(taken_port,))
            )

        with pytest.raises(LocalAddressError, match=f"UDP port {taken_port}: address already in use"):
            asyncio.run(start())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind((A1, port))
