"""A port of the router's for UDP port 5060 of this machine, until Ctrl-C: `python mapped_port.py`."""

import asyncio

from nattools import Endpoint, MappingClient, MappingError, MappingRequest


async def main() -> None:
    """Map the port, tell what becomes of it, and give it back at the end."""
    request = MappingRequest(Endpoint.parse("0.0.0.0:5060"), description="my phone")
    async with MappingClient.open() as client:
        mapping = await client.acquire(request)
        print(f"{mapping.protocol.value}: {mapping.external} leads to {mapping.internal}", flush=True)
        if mapping.public is None:
            print("nobody outside can reach it: the router itself is behind a NAT", flush=True)
        async for change in client.changes():
            print(f"{change.kind.value}: {change.mapping.external} ({change.reason})", flush=True)


try:
    asyncio.run(main())
except MappingError as error:
    print(f"no mapping: {error}")
except KeyboardInterrupt:
    print("removed")
