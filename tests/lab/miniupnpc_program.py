"""Has both UPnP clients do the same on a lab's client, nattools' own and the library miniupnpc, and tells.

    python -m tests.lab.miniupnpc_program GATEWAY INTERFACE

One line of JSON; an empty gateway or interface is left to the search.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from ipaddress import ip_address

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import NatToolsError
from nattools.upnp import client, miniupnpc
from nattools.upnp.igd import GetSpecificPortMappingEntry, GetStatusInfo
from nattools.upnp.wan_connection import WanConnection

TRANSPORTS = {5070: TransportProtocol.UDP, 5071: TransportProtocol.TCP}


async def rows(connection: WanConnection) -> list[dict[str, object]]:
    """The table as one of them lists it, and as it reads the entries one by one."""
    table = [asdict(entry) for entry in await connection.entries()]
    for port, transport in TRANSPORTS.items():
        try:
            entry = await connection.call(GetSpecificPortMappingEntry(port, transport))
            table.append(asdict(entry))
        except NatToolsError as error:
            table.append({"error": type(error).__name__})
    return table


async def main(gateway: str, interface: str) -> None:
    """Each makes a mapping, both read both, each removes the other's."""
    asked = {"gateway": ip_address(gateway) if gateway else None, "interface": interface or None}
    told: dict[str, object] = {}
    try:
        [library] = await miniupnpc.discover(**asked)  # type: ignore[arg-type]  # of two types, by name
        [native] = await client.discover(**asked)  # type: ignore[arg-type]  # of two types, by name
    except NatToolsError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return
    both: dict[str, WanConnection] = {"native": native, "library": library}
    for name, one in both.items():
        status = await one.call(GetStatusInfo())
        told[name] = {
            "found": [one.host, one.local, one.external_address, one.is_online],
            "asked": [await one.external_ip_address(), status.connection_status, status.last_error],
            "uptime_s": status.uptime_s,
        }
    for one, (port, transport), description in zip(
        both.values(), TRANSPORTS.items(), ("Tom & Jo <x>", "by the library"), strict=True
    ):
        internal = Endpoint(one.local, port)
        await one.acquire(
            internal, transport, external_port=None, lease_s=600 + port, description=description
        )
    told["tables"] = {name: await rows(one) for name, one in both.items()}
    removals = zip(reversed(both.values()), TRANSPORTS.items(), strict=True)
    told["removed"] = [
        await one.release(Endpoint(one.local, port), transport, port) for one, (port, transport) in removals
    ]
    told["tables afterwards"] = {name: await rows(one) for name, one in both.items()}
    library.close()
    sys.stdout.write(json.dumps(told, default=str))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
