"""Programs that find the public endpoint of a socket, or keep a thousand of them: one run, on a lab's client.

    python -m bench.binders acquire NAME --rounds 5    prints the seconds of each round as a list of JSON
    python -m bench.binders keep NAME                  prints what a thousand sockets cost

Imports are not counted. Every round starts from nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from nattools.binding.client import LiveBinding
from nattools.binding.keeper import Keeper, open_binding
from nattools.binding.model import Method
from nattools.binding.settings import Settings
from nattools.lab.topology import SERVER

PORT = 5060
SOCKETS = 1000
INTERVAL_S = 15.0
_AT_ONCE = 50
_SETTLE_S = 2.0

Binder = Callable[[dict[str, Any]], Coroutine[None, None, float]]


def nattools(*methods: Method) -> Binder:
    """A binding by these methods."""

    async def once(network: dict[str, Any]) -> float:
        with tempfile.TemporaryDirectory() as directory:
            settings = Settings(
                methods=methods,
                stun_servers=(str(SERVER),),
                static_host=network["static_host"],
                vpn_interface=network["vpn_interface"],
                state_directory=Path(directory),
            )
            started = time.monotonic()
            async with open_binding(f"0.0.0.0:{PORT}", settings=settings) as binding:
                taken_s = time.monotonic() - started
                snapshot = binding.snapshot
                assert snapshot is not None
                wanted = {method.value for method in methods}
                assert snapshot.method.value in wanted, snapshot
        return taken_s

    return once


async def aioice_once(_network: dict[str, Any]) -> float:
    """The candidates of aioice, a server-reflexive one among them."""
    import aioice  # not for those who keep a thousand sockets: it would count as their memory

    started = time.monotonic()
    connection = aioice.Connection(ice_controlling=True, stun_server=(str(SERVER.ip), SERVER.port))
    await connection.gather_candidates()
    taken_s = time.monotonic() - started
    assert any(candidate.type == "srflx" for candidate in connection.local_candidates)
    await connection.close()
    return taken_s


async def miniupnpc_once(_network: dict[str, Any]) -> float:
    """Python's miniupnpc, with the delay of its own examples."""
    import miniupnpc

    started = time.monotonic()
    upnp = miniupnpc.UPnP()
    upnp.discoverdelay = 200
    upnp.discover()
    upnp.selectigd()
    assert upnp.addportmapping(PORT, "UDP", upnp.lanaddr, PORT, "a bench", "")
    assert upnp.externalipaddress()
    taken_s = time.monotonic() - started
    upnp.deleteportmapping(PORT, "UDP")
    return taken_s


ROUTER = (Method.PCP, Method.UPNP)
BINDERS: dict[str, Binder] = {
    "static": nattools(Method.STATIC),
    "vpn": nattools(Method.VPN),
    "stun": nattools(Method.STUN),
    "aioice": aioice_once,
    "pcp": nattools(Method.PCP),
    "nat-pmp": nattools(Method.NAT_PMP),
    "upnp": nattools(Method.UPNP),
    "pcp, upnp, stun": nattools(*ROUTER, Method.NAT_PMP, Method.STUN),
    "miniupnpc": miniupnpc_once,
}


async def _keep_bindings(seconds: float) -> dict[str, float]:
    """A thousand bindings by STUN."""
    settings = Settings(methods=(Method.STUN,), stun_servers=(str(SERVER),), keepalive_interval=INTERVAL_S)
    before_bytes = psutil.Process().memory_info().rss
    async with Keeper.open(settings) as keeper, AsyncExitStack() as stack:
        bindings: list[LiveBinding] = []
        for _ in range(SOCKETS // _AT_ONCE):
            opened = [keeper.open_binding("0.0.0.0:0") for _ in range(_AT_ONCE)]
            bindings += await asyncio.gather(*(stack.enter_async_context(one) for one in opened))
        await asyncio.sleep(_SETTLE_S)
        cost = await _cost(seconds, before_bytes)
        assert all(binding.snapshot is not None for binding in bindings)
    return cost


async def _keep_bare_sockets(seconds: float) -> dict[str, float]:
    """What no program can do without: a socket, a timer, a request and its answer that nobody reads."""
    loop = asyncio.get_running_loop()
    server = (str(SERVER.ip), SERVER.port)
    before_bytes = psutil.Process().memory_info().rss
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SOCKETS)]

    def ask(sock: socket.socket) -> None:
        sock.sendto(b"\x00\x01\x00\x00\x21\x12\xa4\x42" + secrets.token_bytes(12), server)
        loop.call_later(INTERVAL_S * (0.8 + 0.2 * secrets.randbelow(256) / 256), ask, sock)

    for number, sock in enumerate(sockets):
        sock.setblocking(False)
        sock.bind(("0.0.0.0", 0))
        loop.add_reader(sock, sock.recvfrom, 2048)
        loop.call_later(INTERVAL_S * number / SOCKETS, ask, sock)
    await asyncio.sleep(_SETTLE_S)
    cost = await _cost(seconds, before_bytes)
    for sock in sockets:
        loop.remove_reader(sock)
        sock.close()
    return cost


async def _cost(seconds: float, before_bytes: int) -> dict[str, float]:
    used_s, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    memory_bytes = psutil.Process().memory_info().rss
    return {
        "core_percent": 100 * (time.process_time() - used_s) / (time.monotonic() - began),
        "memory_mb": memory_bytes / 1e6,
        "more_memory_mb": (memory_bytes - before_bytes) / 1e6,
    }


KEEPERS = {"nattools": _keep_bindings, "bare sockets": _keep_bare_sockets}


def main() -> None:
    """Run one of them."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("what", choices=["acquire", "keep"])
    arguments.add_argument("name", choices=[*BINDERS, *KEEPERS])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--network", type=json.loads, default={})
    options = arguments.parse_args()
    if options.what == "keep":
        print(json.dumps(asyncio.run(KEEPERS[options.name](options.seconds))))
        return
    binder = BINDERS[options.name]
    print(json.dumps([asyncio.run(binder(options.network)) for _ in range(options.rounds)]))


if __name__ == "__main__":
    main()
