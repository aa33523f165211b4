"""A server with a limiter: who floods waits, the neighbour does not, and nobody waits for long."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
from ipaddress import ip_address

import pytest

from nattools.stun.batch_limiter import BatchLimiter
from nattools.stun.limiter import Limiter
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from tests.unit.stun.test_responder import PLAIN

TIME_LIMIT_S = 20
BURST = 80


class Clock:
    """The server's, which stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def replies(sock: socket.socket, requests: int, address: tuple[str, int], server: StunServer) -> int:
    """How many of so many requests, sent at once, are answered."""
    loop = asyncio.get_running_loop()
    settled = server.answered + server.dropped.total()
    for _ in range(requests):
        sock.sendto(PLAIN, address)
    async with asyncio.timeout(TIME_LIMIT_S):
        while server.answered + server.dropped.total() < settled + requests:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0)
    count = 0
    while True:
        try:
            async with asyncio.timeout(0.05):
                await loop.sock_recv(sock, 2048)
        except TimeoutError:
            return count
        count += 1


@pytest.mark.parametrize("kind", [Limiter, BatchLimiter], ids=["one by one", "in batches"])
def test_a_burst_leaves_the_neighbour_answered_and_its_sender_again_within_2_s(kind: type[Limiter]) -> None:
    numbers = itertools.count()

    def entropy(size: int) -> bytes:
        return hashlib.sha256(next(numbers).to_bytes(4, "big")).digest()[:size]

    async def scenario() -> None:
        limiter = kind(entropy=entropy)
        addresses = ServerAddresses(ip_address("127.0.0.1"), 0)
        async with await StunServer.start(addresses, ServerOptions(limiter=limiter)) as server:
            server._now = clock = Clock()
            address = ("127.0.0.1", server.addresses.port)
            with (
                socket.socket(type=socket.SOCK_DGRAM) as flooder,
                socket.socket(type=socket.SOCK_DGRAM) as neighbour,
            ):
                for sock in (flooder, neighbour):
                    sock.bind(("127.0.0.1", 0))
                    sock.setblocking(False)
                assert await replies(flooder, BURST, address, server) == 40
                assert server.dropped == {DropReason.RATE_LIMITED: 40}
                assert await replies(neighbour, 1, address, server) == 1
                assert await replies(flooder, 1, address, server) == 0
                clock.now += 2.0
                assert await replies(flooder, 40, address, server) == 40
            assert limiter.admitted == 81

    asyncio.run(scenario())
