"""A program that keeps one mapping and tells, in a line of JSON each, what happens; run on a lab's client.

It ends, and removes the mapping, when its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from nattools.endpoint import Endpoint
from nattools.errors import NatToolsError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping


def tell(event: str, mapping: PortMapping | None = None, reason: str = "") -> None:
    """One line."""
    line: dict[str, object] = {"event": event, "at": time.monotonic(), "reason": reason}
    if mapping is not None:
        line |= {
            "protocol": mapping.protocol.value,
            "external": str(mapping.external),
            "public": mapping.public is not None,
            "lease_s": mapping.lease_s,
            "proven": mapping.proven,
        }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(
    state: str, internal: str, lease_s: int, keep: bool, timeout_s: float, names: list[str]
) -> None:
    """Keep the mapping."""
    protocols = [MappingProtocol(name) for name in names]
    request = MappingRequest(Endpoint.parse(internal), lease_s=lease_s, description="a test")
    ipv6 = request.internal.is_ipv6
    try:
        async with MappingClient.open(
            protocols=protocols, ipv6=ipv6, state_directory=Path(state), timeout_s=timeout_s
        ) as client:
            started = time.monotonic()
            mapping = await client.acquire(request, keep=keep)
            tell("acquired", mapping, f"{time.monotonic() - started:.3f} s")
            if not keep:
                return
            ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
            changes = asyncio.create_task(_tell_changes(client))
            await asyncio.wait([ended, changes], return_when=asyncio.FIRST_COMPLETED)
            changes.cancel()
        tell("released")
    except NatToolsError as error:
        tell("failed", reason=f"{type(error).__name__}: {error}")


async def _tell_changes(client: MappingClient) -> None:
    async for change in client.changes():
        tell(change.kind.value, change.mapping, change.reason)


if __name__ == "__main__":
    asyncio.run(
        main(
            sys.argv[1],
            sys.argv[2],
            int(sys.argv[3]),
            sys.argv[4] == "keep",
            float(sys.argv[5]),
            sys.argv[6:],
        )
    )
