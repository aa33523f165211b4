"""A program that asks one provider what it is told to, and tells in a line of JSON each what comes of it.

On stdin: `acquire 0.0.0.0:5060`, `renew`, `release`; the end of it ends the program.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from nattools.binding.model import Claim, Method, Provider
from nattools.binding.providers.router import RouterProvider, protocols_of
from nattools.binding.providers.static import StaticProvider
from nattools.binding.providers.vpn import VpnProvider
from nattools.binding.settings import PortRange
from nattools.endpoint import Endpoint
from nattools.errors import NatToolsError
from nattools.mapping.client import DEFAULT_TIMEOUT_S, MappingClient


def tell(event: str, said: Claim | NatToolsError | None = None, **more: object) -> None:
    """One line."""
    line: dict[str, object] = {"event": event, "at": time.monotonic(), **more}
    if isinstance(said, Claim):
        line |= {
            "method": said.method.value,
            "local": str(said.local),
            "public": str(said.public),
            "realm": said.realm,
            "lease_s": said.lease_s,
            "word": said.word,
        }
    elif said is not None:
        line |= {"error": type(said).__name__, "reason": str(said)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def _open(options: dict[str, Any], exits: AsyncExitStack) -> Provider:
    if "interface" in options or "peer" in options:
        return VpnProvider(options.get("interface"), options.get("peer"))
    if "static_host" in options:
        return StaticProvider(options["static_host"], PortRange.parse(options["static_ports"]))
    protocols = protocols_of([Method(name) for name in options["methods"]])
    client = await exits.enter_async_context(
        MappingClient.open(
            protocols=protocols,
            state_directory=Path(options["state"]),
            timeout_s=options.get("timeout_s", DEFAULT_TIMEOUT_S),
        )
    )
    router = RouterProvider(client, lease_s=options.get("lease_s", 3600))
    news = asyncio.create_task(_tell_news(router))
    exits.callback(news.cancel)
    return router


async def _tell_news(router: RouterProvider) -> None:
    async for bound, said in router.news():
        tell("news", said, bound=str(bound))


async def main(options: dict[str, Any]) -> None:
    """Do as told."""
    claim = None
    async with AsyncExitStack() as exits:
        provider = await _open(options, exits)
        tell("ready")
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            try:
                if words[0] == "acquire":
                    claim = await provider.acquire(Endpoint.parse(words[1]))
                    tell("claim", claim)
                elif claim is not None and words[0] == "renew":
                    claim = await provider.renew(claim)
                    tell("claim", claim)
                elif claim is not None:
                    await provider.release(claim)
                    tell("released")
            except NatToolsError as error:
                tell("refused", error)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
