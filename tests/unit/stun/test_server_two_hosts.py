"""Two servers of one address each, linked, are one of two addresses; on loopback, which has both."""

from __future__ import annotations

import asyncio
import secrets
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.stun import peer
from nattools.stun.peer import PeerLink, TwoHosts
from nattools.stun.server import ServerOptions, StunServer
from tests.ports import free_ports
from tests.unit.stun.test_server import (
    A1,
    A2,
    COOKIE,
    TIME_LIMIT_S,
    Address,
    ask,
    attributes_of,
    client,
    is_silent,
    receive,
    request,
    right,
)

KEY = b"a key of more than sixteen bytes"
CHANGE_IP, CHANGE_PORT = 4, 2

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="wants all of 127.0.0.0/8")


@pytest.fixture(autouse=True, params=["in batches", "one by one"])
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is of both ways to read the sockets; without numpy both are the second."""
    if request.param == "one by one":
        monkeypatch.setitem(sys.modules, "nattools.net.batch", None)


class Pair:
    """Two linked servers, either of which a test can end and start again."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.servers: dict[int, StunServer] = {}

    async def start(self, which: int, *, key: bytes = KEY) -> None:
        own, other = (ip_address(text) for text in ((A1, A2), (A2, A1))[which])
        hosts = TwoHosts(own, other, *self.ports[:2])
        link = PeerLink(hosts, Endpoint(other, self.ports[2]), key=key, entropy=secrets.token_bytes)
        self.servers[which] = await StunServer.start(hosts.alone, ServerOptions(more_ports=(0,), link=link))

    async def stop(self, which: int) -> None:
        await self.servers.pop(which).close()

    async def until(self, *, paired: bool) -> None:
        async with asyncio.timeout(TIME_LIMIT_S * 2):
            while any(  # noqa: ASYNC110  # a server has no event for it
                server.is_paired is not paired for server in self.servers.values()
            ):
                await asyncio.sleep(0.005)

    def at(self, address: int, port: int) -> Address:
        return (A1, A2)[address], self.ports[port]


@asynccontextmanager
async def two_hosts(*, keys: tuple[bytes, bytes] = (KEY, KEY)) -> AsyncIterator[Pair]:
    pair = Pair(free_ports(3))
    try:
        for which in (0, 1):
            await pair.start(which, key=keys[which])
        yield pair
    finally:
        for which in tuple(pair.servers):
            await pair.stop(which)


def serve(scenario: Callable[[Pair], Awaitable[None]]) -> None:
    async def run() -> None:
        async with two_hosts() as pair:
            await pair.until(paired=True)
            await scenario(pair)

    asyncio.run(run())


def change(flags: int) -> tuple[int, bytes]:
    return 3, struct.pack("!I", flags)


def test_the_grid() -> None:
    async def scenario(pair: Pair) -> None:
        for address in (0, 1):
            for port in (0, 1):
                for flags in (None, 0, CHANGE_PORT, CHANGE_IP, CHANGE_IP | CHANGE_PORT):
                    for classic in (False, True):
                        await check(pair, address, port, flags, classic=classic)

    async def check(pair: Pair, address: int, port: int, flags: int | None, *, classic: bool) -> None:
        sent = request(*(() if flags is None else (change(flags),)), classic=classic)
        origin = pair.at(address ^ bool((flags or 0) & CHANGE_IP), port ^ bool((flags or 0) & CHANGE_PORT))
        with client() as sock:
            data, source = await ask(sock, pair.at(address, port), sent)
            assert source == origin
            expected = right(sent, sock.getsockname(), origin, pair.at(1 - address, 1 - port))
            assert attributes_of(data, sent) == expected

    serve(scenario)


def test_over_tcp_the_other_host_is_named_and_no_change_is_made() -> None:
    async def scenario(pair: Pair) -> None:
        reader, writer = await asyncio.open_connection(*pair.at(0, 0))
        async with asyncio.timeout(TIME_LIMIT_S):
            sent = request()
            writer.write(sent)
            head = await reader.readexactly(20)
            found = attributes_of(head + await reader.readexactly(int.from_bytes(head[2:4], "big")), sent)
            assert 0x802C in found
            writer.write(request(change(CHANGE_IP)))
            assert (await reader.readexactly(2)) == b"\x01\x11"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    serve(scenario)


@pytest.mark.parametrize("says_so", [True, False], ids=["said so", "silently"])
def test_a_host_whose_peer_has_gone_serves_one_address_until_it_is_back(
    says_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "LOST_AFTER_S", 3600 if says_so else 0.8)
    if not says_so:
        monkeypatch.setattr(peer, "PING_INTERVAL_S", 0.2)
        monkeypatch.setattr(PeerLink, "leave", lambda _link: None)

    async def scenario(pair: Pair) -> None:
        await pair.stop(1)
        await pair.until(paired=False)
        with client() as sock:
            sent = request()
            data, _ = await ask(sock, pair.at(0, 0), sent)
            assert set(attributes_of(data, sent)) == {0x20, 0x802B}
            for flags in (CHANGE_IP, CHANGE_PORT):
                data, source = await ask(sock, pair.at(0, 0), request(change(flags)))
                assert (data[:2], source) == (b"\x01\x11", pair.at(0, 0))
        await pair.start(1)
        await pair.until(paired=True)
        with client() as sock:
            sent = request(change(CHANGE_IP))
            data, source = await ask(sock, pair.at(0, 0), sent)
            assert source == pair.at(1, 0)

    serve(scenario)


def test_hosts_with_different_keys_never_meet() -> None:
    async def run() -> None:
        async with two_hosts(keys=(KEY, KEY[::-1])) as pair:
            await asyncio.sleep(0.05)  # a meeting takes four datagrams
            with client() as sock:
                data, _ = await ask(sock, pair.at(0, 0), request(change(CHANGE_IP)))
                assert data[:2] == b"\x01\x11"
            assert not any(server.is_paired for server in pair.servers.values())

    asyncio.run(run())


def test_what_anybody_else_sends_to_the_link_is_ignored() -> None:
    async def scenario(pair: Pair) -> None:
        with client() as sock:
            for data in (b"", b"\xf1np\x01" + bytes(100), request(), COOKIE * 50):
                sock.sendto(data, (A1, pair.ports[2]))
            sent = request(change(CHANGE_IP))
            data, source = await ask(sock, pair.at(1, 1), sent)
            assert source == pair.at(0, 1)
            assert is_silent(sock)
        assert all(server.is_paired for server in pair.servers.values())

    serve(scenario)


def test_many_requests_at_once_all_come_back_from_the_other_host() -> None:
    async def scenario(pair: Pair) -> None:
        with client() as sock:
            sent = [request(change(CHANGE_IP)) for _ in range(100)]
            for data in sent:
                sock.sendto(data, pair.at(0, 0))
            answers = [await receive(sock) for _ in sent]
        assert {source for _, source in answers} == {pair.at(1, 0)}
        assert {data[8:20] for data, _ in answers} == {data[8:20] for data in sent}

    serve(scenario)


def test_on_a_further_port_each_host_speaks_for_itself() -> None:
    async def scenario(pair: Pair) -> None:
        (port,) = pair.servers[0].more_ports
        with client() as sock:
            sent = request()
            data, _ = await ask(sock, (A1, port), sent)
            assert set(attributes_of(data, sent)) == {0x20, 0x802B}
            data, source = await ask(sock, (A1, port), request(change(CHANGE_IP)))
            assert (data[:2], source) == (b"\x01\x11", (A1, port))

    serve(scenario)
