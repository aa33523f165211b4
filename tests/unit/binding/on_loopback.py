"""What tests of whole bindings share: a STUN server on loopback, and settings that ask nobody else."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

from nattools.binding.model import Method
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer

TIME_LIMIT_S = 30
QUIET_METHODS = (Method.OPEN, Method.STUN)


def run(work: Coroutine[None, None, None]) -> None:
    """Run a scenario; it leaves no task behind, and whatever it left open is a warning, so an error."""

    async def limited() -> None:
        async with asyncio.timeout(TIME_LIMIT_S):
            await work
        await asyncio.sleep(0)  # transports close one turn later
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(limited())
    gc.collect()


@asynccontextmanager
async def stun_server(*, port: int = 0) -> AsyncIterator[Endpoint]:
    """A server, with a second address where loopback has one; gives where it is."""
    alternate = ip_address("127.0.0.2") if sys.platform == "linux" else None
    addresses = ServerAddresses(
        ip_address("127.0.0.1"), port, alternate, 0 if alternate is not None else None
    )
    async with await StunServer.start(addresses) as server:
        yield Endpoint(server.addresses.address, server.addresses.port)


def asking(*servers: Endpoint | str, methods: tuple[Method, ...] = QUIET_METHODS) -> Settings:
    """Settings that ask these servers and no router."""
    return Settings(methods=methods, stun_servers=tuple(map(str, servers)))


@contextmanager
def bound(ip: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """A peer: a blocking socket that waits no longer than the test may take."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, port))
        sock.settimeout(TIME_LIMIT_S)
        yield sock


def endpoint(sock: socket.socket) -> Endpoint:
    """Where it is bound."""
    return Endpoint.of(*sock.getsockname()[:2])


def address(endpoint: Endpoint) -> tuple[str, int]:
    """The same for the socket module."""
    return str(endpoint.ip), endpoint.port


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds; the time limit of `run` ends what never does."""
    while not condition():  # noqa: ASYNC110  what is waited for has no event
        await asyncio.sleep(0.005)
