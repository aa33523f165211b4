"""What tests of threaded programs share: a STUN server in a thread of its own, and sockets that ask it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TypeVar

from nattools.binding.settings import Settings
from nattools.blocking import PublicSocket
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer

T = TypeVar("T")

DEADLINE_S = 20.0
"""Nothing in these tests takes long; a stalled machine may."""


@contextmanager
def stun_server(address: str = "127.0.0.1") -> Iterator[StunServer]:
    """A server on loopback, which answers whether its test waits or not."""
    started: list[StunServer] = []
    is_ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with await StunServer.start(ServerAddresses(ip_address(address), port=0)) as server:
            started.append(server)
            is_ready.set()
            await over.wait()

    over = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(DEADLINE_S)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(DEADLINE_S)
        loop.close()


def settings_for(server: StunServer, *, keepalive_interval: float = 15.0) -> Settings:
    """Whatever the user's own settings are, only `server` is asked."""
    return Settings.of(
        {
            "methods": ["stun", "open"],
            "stun_servers": [str(server.addresses.endpoints[0])],
            "keepalive_interval": keepalive_interval,
        }
    )


NO_WAY = Settings.of({"methods": ["open"]})
"""On loopback there is no public address, so that these find nothing, at once and without a packet."""


@contextmanager
def public_socket(settings: Settings = NO_WAY, host: str = "127.0.0.1") -> Iterator[PublicSocket]:
    """A bound one; it waits no longer than the test's deadline."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with PublicSocket(family, settings=settings, binding_timeout_s=DEADLINE_S) as sock:
        sock.settimeout(DEADLINE_S)
        sock.bind((host, 0))
        yield sock


@contextmanager
def plain_socket(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Somebody to talk to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.bind((host, 0))
        yield sock


def in_time(call: Callable[[], T]) -> T:
    """What `call` returns, which waits for something without a limit of its own."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert results, "it waits, or has raised an error"
    return results[0]


def eventually(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so in time."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def background_threads() -> list[threading.Thread]:
    """Those that keep bindings at the moment."""
    return [thread for thread in threading.enumerate() if thread.name == "nattools bindings"]
