"""Local and public address of a UDP socket: `python public_address_stun.py stun:stun.example.org`."""

import asyncio
import sys

from nattools.stun.client import StunClient


async def main(server: str) -> None:
    """Ask `server` where it sees this host."""
    async with StunClient.open(server) as client:
        result = await client.binding()
    print(f"local   {result.local}")
    print(f"public  {result.mapped}")


asyncio.run(main(sys.argv[1]))
