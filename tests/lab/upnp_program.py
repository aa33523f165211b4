"""What a UPnP test has the client of a laboratory do; it tells a line of JSON for each thing that happens.

    python -m tests.lab.upnp_program SCENARIO [ARGUMENT]...

A scenario that waits goes on with each line of its standard input, and at its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address, ip_address

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import NatToolsError, UpnpError
from nattools.upnp.client import Igd, RouterChange, discover, open_igd, watch
from nattools.upnp.igd import (
    AddPinhole,
    AddPortMapping,
    DeletePinhole,
    GetFirewallStatus,
    GetPinholePackets,
    PortMappingEntry,
    UpdatePinhole,
)

UDP = TransportProtocol.UDP


def tell(event: str, **details: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **details}, default=str) + "\n")
    sys.stdout.flush()


async def told_to_go_on() -> None:
    """Wait for a line of the standard input, or for its end."""
    await asyncio.to_thread(sys.stdin.readline)


def tell_found(found: list[Igd]) -> None:
    """What a search has found."""
    igds = [
        {
            "name": str(igd),
            "local": igd.local,
            "type": igd.service.service_type,
            "external": igd.external_address,
            "connected": igd.status is not None and igd.status.is_connected,
            "firewall": igd.firewall is not None,
        }
        for igd in found
    ]
    tell("found", igds=igds, **open_ends())


def open_ends() -> dict[str, int]:
    """How many tasks and sockets there are, apart from what asyncio itself needs."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the listing's own
    sockets = sum(link.startswith("socket:") for link in links)
    return {"tasks": len(asyncio.all_tasks()) - 1, "sockets": sockets - SELF_PIPE_SOCKETS}


SELF_PIPE_SOCKETS = 2


def row(entry: PortMappingEntry) -> dict[str, object]:
    """A port mapping as the router shows it."""
    return {**asdict(entry), "transport": entry.transport.name}


async def find(gateway: str = "", interface: str = "", timeout_s: str = "1.5") -> None:
    """Search, and tell what there is."""
    started = time.monotonic()
    found = await discover(
        gateway=ip_address(gateway) if gateway else None,
        interface=interface or None,
        timeout_s=float(timeout_s),
    )
    tell_found(found)
    tell("ended", after_s=time.monotonic() - started)


async def find_ipv6() -> None:
    """Search over IPv6."""
    tell_found(await discover(ipv6=True))


async def given(url: str) -> None:
    """Ask the router whose description is there."""
    tell_found(await open_igd(url))


async def cancelled() -> None:
    """Cancel a search in each of its parts."""
    for after_s in (0, 0.001, 0.01, 0.05, 0.1, 0.15):
        search = asyncio.create_task(discover())
        await asyncio.sleep(after_s)
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)
        tell("cancelled", **open_ends())


async def mapping(internal_port: str, lease_s: str) -> None:
    """Make a mapping, keep it until told to go on, remove it, and try that again."""
    [igd, *_] = await discover()
    internal = Endpoint(igd.local, int(internal_port))
    lease = int(lease_s) or None
    done = await igd.acquire(internal, UDP, external_port=None, lease_s=lease, description="a test")
    tell("acquired", **asdict(done))
    tell("entries", rows=[row(entry) for entry in await igd.entries()])
    await told_to_go_on()
    for _ in range(2):
        tell("released", removed=await igd.release(internal, UDP, done.external_port))
    tell("entries", rows=[row(entry) for entry in await igd.entries()])


async def many(number: str) -> None:
    """Make many mappings, and list them."""
    [igd, *_] = await discover()
    for port in range(6000, 6000 + int(number)):
        await igd.acquire(
            Endpoint(igd.local, port), UDP, external_port=None, lease_s=600, description=f"number {port}"
        )
    tell("entries", rows=[row(entry) for entry in await igd.entries()])


async def for_another_host() -> None:
    """Ask for a mapping that leads to another host, and remove one that does."""
    [igd, *_] = await discover()
    other = Endpoint(IPv4Address("192.168.0.77"), 5070)
    try:
        await igd.call(AddPortMapping(other, 5070, UDP, 600))
        tell("acquired")
    except UpnpError as error:
        tell("refused", code=error.code, message=str(error))
    tell("released", removed=await igd.release(Endpoint(igd.local, 5070), UDP, 5070))


async def pinhole(internal_client: str, internal_port: str) -> None:
    """Open a pinhole, keep it until told to go on, and close it."""
    [igd, *_] = await discover(ipv6=True)
    status = await igd.call(GetFirewallStatus())
    opened = AddPinhole(IPv6Address(internal_client), int(internal_port), UDP, 600)
    unique_id = await igd.call(opened)
    tell("opened", allowed=status.inbound_pinhole_allowed, unique_id=unique_id)
    await told_to_go_on()
    packets = await igd.call(GetPinholePackets(unique_id))
    tell("packets", number=packets)
    await igd.call(UpdatePinhole(unique_id, 1200))
    await igd.call(DeletePinhole(unique_id))
    try:
        await igd.call(DeletePinhole(unique_id))
    except UpnpError as error:
        tell("refused", code=error.code, message=str(error))


async def watching() -> None:
    """Tell what becomes of the router until told to go on, and ask it once more then."""
    [igd, *_] = await discover()

    def changed(change: RouterChange) -> None:
        tell(change.kind.value, external=change.external_address)

    async with watch(igd, changed):
        tell("watching")
        await told_to_go_on()
        address = await igd.external_ip_address()
        tell("asked", external=address)
        leaving = time.monotonic()
    tell("ended", after_s=time.monotonic() - leaving, **open_ends())


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        *(find, find_ipv6, given, cancelled, mapping, many, for_another_host, pinhole, watching),
    )
}


async def main(scenario: str, *arguments: str) -> None:
    """Do it, and tell the error that it ends with."""
    try:
        await SCENARIOS[scenario](*arguments)
    except NatToolsError as error:
        tell("failed", error=type(error).__name__, message=str(error))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
