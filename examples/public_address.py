"""Who am I to the others, as long as it runs: `python public_address.py STUN_SERVER...`."""

import asyncio
import sys

from nattools import open_binding


async def main(servers: list[str]) -> None:
    async with open_binding("0.0.0.0:5060", stun_servers=servers) as binding:
        print(binding.public, flush=True)
        async for change in binding.changes():
            print(change.kind.value, change.binding and change.binding.public, flush=True)


asyncio.run(main(sys.argv[1:]))
