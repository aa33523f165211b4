"""Run `natcheck` against a `stund` embedded here, on loopback: it takes no NAT, no network and no rights."""

import asyncio
import sys
from ipaddress import ip_address

from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer


async def main() -> int:
    whole = sys.platform == "linux"  # elsewhere loopback has one address, which cannot show everything
    if whole:
        addresses = ServerAddresses(ip_address("127.0.0.1"), 0, ip_address("127.0.0.2"), 0)
    else:
        addresses = ServerAddresses(ip_address("127.0.0.1"), 0)
    async with await StunServer.start(addresses) as server:
        natcheck = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nattools.cli.natcheck", f"127.0.0.1:{server.addresses.port}"
        )
        status = await natcheck.wait()
    return status if whole else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
