"""The server over real sockets, on loopback: what arrives, from where, and what never does."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from nattools.errors import LocalAddressError, TransportError
from nattools.net import listener
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import AnswerOther, ServerOptions, StunServer
from tests.ports import free_port

A1, A2, A3 = "127.0.0.1", "127.0.0.2", "127.0.0.3"
COOKIE = bytes.fromhex("2112a442")
FULL = ServerAddresses(ip_address(A1), 0, ip_address(A2), 0)
SINGLE = ServerAddresses(ip_address(A1), 0)
WILDCARD = ServerAddresses(ip_address("0.0.0.0"), 0)
TIME_LIMIT_S = 5

Address = tuple[str, int]


def request(*attributes: tuple[int, bytes], classic: bool = False) -> bytes:
    """A Binding request, written by hand so that no code is shared with the server."""
    body = b"".join(struct.pack("!HH", kind, len(v)) + v + bytes(-len(v) % 4) for kind, v in attributes)
    identity = secrets.token_bytes(16) if classic else COOKIE + secrets.token_bytes(12)
    return struct.pack("!HH", 1, len(body)) + identity + body


def attributes_of(reply: bytes, sent: bytes) -> dict[int, bytes]:
    """The attributes of a success response to `sent`."""
    kind, size = struct.unpack_from("!HH", reply)
    assert (kind, size, reply[4:20]) == (0x0101, len(reply) - 20, sent[4:20])
    found, position = {}, 20
    while position < len(reply):
        kind, size = struct.unpack_from("!HH", reply, position)
        found[kind] = reply[position + 4 : position + 4 + size]
        position += 4 + (size + 3 & ~3)
    return found


def value(address: Address, key: bytes = bytes(16)) -> bytes:
    """The value of an address attribute, XOR-ed with a key."""
    packed = ip_address(address[0]).packed
    plain = address[1].to_bytes(2, "big") + packed
    xored = bytes(a ^ b for a, b in zip(plain, key[:2] + key, strict=False))
    return struct.pack("!H", 1 if len(packed) == 4 else 2) + xored


def right(sent: bytes, client: Address, origin: Address, other: Address | None = None) -> dict[int, bytes]:
    """The attributes that the reply to `sent` must have, and no more.

    MAPPED-ADDRESS is among them in the modern dialect too, where `sent` has an attribute: one that makes it
    28 bytes, over IPv4, in every test here. Over IPv6 there is no room for more than where the client is.
    """
    plain = {1: value(client)}
    if ":" in client[0]:
        return plain if sent[4:8] != COOKIE else {0x20: value(client, sent[4:20])}
    if sent[4:8] != COOKIE:
        return plain | {4: value(origin)} | ({5: value(other)} if other else {})
    expected = {0x20: value(client, sent[4:20]), 0x802B: value(origin)}
    if len(sent) > 20:
        expected |= plain
    return expected | ({0x802C: value(other)} if other else {})


@pytest.fixture(autouse=True, params=["in batches", "one by one"])
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is of both ways to read the sockets; without numpy both are the second."""
    if request.param == "one by one":
        monkeypatch.setitem(sys.modules, "nattools.net.batch", None)


@contextmanager
def client(ip: str = A1) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        sock.setblocking(False)
        yield sock


async def receive(sock: socket.socket) -> tuple[bytes, Address]:
    async with asyncio.timeout(TIME_LIMIT_S):
        data, address = await asyncio.get_running_loop().sock_recvfrom(sock, 65_535)
    return data, address[:2]


async def ask(sock: socket.socket, to: Address, data: bytes) -> tuple[bytes, Address]:
    sock.sendto(data, to)
    return await receive(sock)


def is_silent(sock: socket.socket) -> bool:
    try:
        sock.recv(65_535)
    except BlockingIOError:
        return True
    return False


def serve(
    addresses: ServerAddresses,
    scenario: Callable[[StunServer], Awaitable[None]],
    *,
    more_ports: tuple[int, ...] = (),
    answer_other: AnswerOther | None = None,
) -> StunServer:
    """Run the scenario against a server; every socket of it is closed at the end."""

    async def run() -> StunServer:
        async with await StunServer.start(
            addresses, ServerOptions(more_ports=more_ports, answer_other=answer_other)
        ) as server:
            await scenario(server)
            return server

    return asyncio.run(run())


def first(server: StunServer) -> Address:
    return A1, server.addresses.port


def grid_of(server: StunServer) -> dict[tuple[int, int], Address]:
    """The four sockets by (address 0 or 1, port 0 or 1)."""
    ports = server.addresses.port, server.addresses.alternate_port or 0
    return {(i, j): (ip, ports[j]) for i, ip in enumerate((A1, A2)) for j in (0, 1)}


@pytest.mark.parametrize("classic", [False, True], ids=["modern", "classic"])
def test_the_grid(classic: bool) -> None:
    async def scenario(server: StunServer) -> None:
        sockets = grid_of(server)
        assert len(set(sockets.values())) == 4
        for (address, port), asked in sockets.items():
            for change in (None, (0, 0), (0, 1), (1, 0), (1, 1)):
                change_ip, change_port = change or (0, 0)
                flags = (3, struct.pack("!I", change_ip << 2 | change_port << 1))
                data = request(*(() if change is None else (flags,)), classic=classic)
                with client() as sock:
                    reply, source = await ask(sock, asked, data)
                    mine: Address = sock.getsockname()
                origin = sockets[address ^ change_ip, port ^ change_port]
                assert source == origin
                assert attributes_of(reply, data) == right(data, mine, origin, sockets[1 - address, 1 - port])

    assert serve(FULL, scenario).answered == 20


@pytest.mark.parametrize(
    ("bind", "asked"),
    [("0.0.0.0", A1), ("0.0.0.0", A2), ("0.0.0.0", A3), ("::1", "::1"), ("::", "::1")],
)
def test_a_single_or_wildcard_bind_answers_from_the_address_that_was_asked(bind: str, asked: str) -> None:
    if ":" in bind and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")

    async def scenario(server: StunServer) -> None:
        to = (asked, server.addresses.port)
        for classic in (False, True):
            data = request(classic=classic)
            with client("::1" if ":" in bind else A1) as sock:
                reply, source = await ask(sock, to, data)
                assert source == to
                assert attributes_of(reply, data) == right(data, sock.getsockname()[:2], to)

    serve(ServerAddresses(ip_address(bind), 0), scenario)


@pytest.mark.parametrize("padding", [b"", bytes(2)], ids=["2 bytes", "coturn's 4"])
def test_response_port(padding: bytes) -> None:
    async def scenario(server: StunServer) -> None:
        with client() as sock, client() as elsewhere:
            data = request((0x27, struct.pack("!H", elsewhere.getsockname()[1]) + padding))
            sock.sendto(data, first(server))
            reply, _source = await receive(elsewhere)
            assert attributes_of(reply, data) == right(data, sock.getsockname(), first(server))
            assert is_silent(sock)

    serve(SINGLE, scenario)


def test_a_third_party_gets_nothing_by_way_of_response_address() -> None:
    async def scenario(server: StunServer) -> None:
        with client() as sock, client(A2) as victim:
            sock.sendto(request((2, value(victim.getsockname())), classic=True), first(server))
            await ask(sock, first(server), request())  # by now the one before has been dealt with
            assert is_silent(victim)
            assert is_silent(sock)

    server = serve(SINGLE, scenario)
    assert server.dropped == {DropReason.THIRD_PARTY: 1}
    assert server.answered == 1


def test_garbage_is_counted_and_the_server_lives_on() -> None:
    binding = request()
    garbage = {
        b"": DropReason.NOT_STUN,
        b"\xff" * 1000: DropReason.NOT_STUN,
        bytes(65_507): DropReason.NOT_STUN,
        binding[:19]: DropReason.NOT_STUN,
        binding[:3] + b"\x08" + binding[4:]: DropReason.NOT_STUN,
        b"\x01\x01" + binding[2:]: DropReason.NOT_A_REQUEST,
        b"\x00\x11" + binding[2:]: DropReason.NOT_A_REQUEST,
        b"\x00\x03" + binding[2:]: DropReason.UNSUPPORTED_METHOD,
        request((0x8028, bytes(4))): DropReason.WRONG_FINGERPRINT,
    }

    async def scenario(server: StunServer) -> None:
        with client() as sock:
            for data, reason in garbage.items():
                before = server.dropped[reason]
                sock.sendto(data, first(server))
                await ask(sock, first(server), request())
                assert server.dropped[reason] == before + 1
                assert is_silent(sock)

    server = serve(SINGLE, scenario)
    assert server.dropped.total() == server.answered == len(garbage)
    assert server.summary().startswith("9 requests answered; dropped: 5 not STUN, 2 responses or indications")


def test_a_broadcast_is_not_answered() -> None:
    async def scenario(server: StunServer) -> None:
        with client() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                sock.sendto(request(), ("127.255.255.255", server.addresses.port))
            except OSError:
                pytest.skip("no broadcast on loopback here")
            await ask(sock, first(server), request())
            assert is_silent(sock)

    assert serve(WILDCARD, scenario).dropped == {DropReason.NOT_UNICAST: 1}


@pytest.mark.parametrize(
    ("addresses", "reason"), [(WILDCARD, DropReason.TRUNCATED), (SINGLE, DropReason.NOT_STUN)]
)
def test_a_truncated_datagram_is_not_answered(
    addresses: ServerAddresses, reason: DropReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nattools.net.batch", None)  # where nothing is cut off
    monkeypatch.setattr(listener, "_MOST_DATAGRAM_BYTES", 64)

    async def scenario(server: StunServer) -> None:
        with client() as sock:
            sock.sendto(request((0x26, bytes(60))), first(server))
            await ask(sock, first(server), request())

    assert serve(addresses, scenario).dropped == {reason: 1}


def test_more_than_one_wakeup_of_datagrams_is_drained() -> None:
    async def scenario(server: StunServer) -> None:
        with client() as sock:
            sent = [request() for _ in range(3 * listener.DATAGRAMS_PER_WAKEUP // 2)]
            for data in sent:
                sock.sendto(data, first(server))
            replies = [(await receive(sock))[0] for _ in sent]
        assert [reply[4:20] for reply in replies] == [data[4:20] for data in sent]

    serve(SINGLE, scenario)


def test_a_reply_that_cannot_be_sent_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    send = listener.UdpListener.send

    def refuse_big_ones(udp: listener.UdpListener, data: bytes, address: Address, **named: Any) -> bool:
        return send(udp, data if len(data) < 100 else bytes(70_000), address, **named)

    monkeypatch.setattr(listener.UdpListener, "send", refuse_big_ones)

    async def scenario(server: StunServer) -> None:
        with client() as sock:
            sock.sendto(request((0x26, bytes(100))), first(server))
            await ask(sock, first(server), request())
            assert is_silent(sock)

    server = serve(SINGLE, scenario)
    assert server.dropped == {DropReason.SEND_FAILED: 1}
    assert server.answered == 1


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_a_port_in_use_is_an_error_that_names_it(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        port = free_port()
        other.bind((A2, port))
        if kind is socket.SOCK_STREAM:
            other.listen()
        named = (
            f"127.0.0.2, {'UDP' if kind is socket.SOCK_DGRAM else 'TCP'} port {port}: address already in use"
        )
        with pytest.raises(LocalAddressError, match=named):
            asyncio.run(StunServer.start(ServerAddresses(ip_address(A1), port, ip_address(A2), 0)))
    with socket.socket(socket.AF_INET, kind) as again:  # nothing is kept of the attempt
        again.bind((A1, port))


def test_a_loop_that_cannot_watch_sockets_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_reader(*_: object) -> None:
        raise NotImplementedError

    async def start() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        with pytest.raises(TransportError, match="SelectorEventLoop"):
            await StunServer.start(SINGLE)

    asyncio.run(start())
