"""Programs that look for the router, map a port, have it confirmed and remove it: one run, on a lab's client.

    python -m bench.mappers NAME --rounds 5        prints the seconds of each round as a list of JSON

Imports are not counted. Every round starts from nothing: a new client that knows no router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from pathlib import Path

import miniupnpc
from async_upnp_client.aiohttp import AiohttpRequester
from async_upnp_client.client import UpnpService
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.profiles.igd import IgdDevice

from nattools.endpoint import Endpoint
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol, MappingRequest

Mapper = Callable[[int], Coroutine[None, None, float]]

_DESCRIPTION = "a bench"
_LEASE_S = 600


def nattools(*protocols: MappingProtocol) -> Mapper:
    """The mapping client with these protocols."""

    async def once(port: int) -> float:
        request = MappingRequest(Endpoint(IPv4Address(0), port), lease_s=_LEASE_S, description=_DESCRIPTION)
        with tempfile.TemporaryDirectory() as directory:
            started = time.monotonic()
            async with MappingClient.open(protocols=protocols, state_directory=Path(directory)) as client:
                mapping = await client.acquire(request, keep=False)
                taken = time.monotonic() - started
                assert mapping.proven
                assert mapping.external_port == port
                await client.release(mapping)
        return taken

    return once


async def miniupnpc_once(port: int) -> float:
    """Python's miniupnpc, with the delay of its own examples."""
    started = time.monotonic()
    upnp = miniupnpc.UPnP()
    upnp.discoverdelay = 200
    upnp.discover()
    upnp.selectigd()
    assert upnp.addportmapping(port, "UDP", upnp.lanaddr, port, _DESCRIPTION, "")
    assert upnp.getspecificportmapping(port, "UDP")[:2] == (upnp.lanaddr, port)
    taken = time.monotonic() - started
    upnp.deleteportmapping(port, "UDP")
    return taken


async def async_upnp_client_once(port: int) -> float:
    """async_upnp_client, searching for two seconds, half of what it takes by default."""
    started = time.monotonic()
    requester = AiohttpRequester()
    (found, *_) = await IgdDevice.async_search(timeout=2)
    device = await UpnpFactory(requester).async_create_device(found["location"])
    services = [s for d in device.all_devices for s in d.services.values()]
    (wan,) = [s for s in services if "WANIPConnection" in s.service_type]
    await _add(wan, port)
    entry = await wan.action("GetSpecificPortMappingEntry").async_call(
        NewRemoteHost="", NewExternalPort=port, NewProtocol="UDP"
    )
    assert entry["NewInternalPort"] == port
    taken = time.monotonic() - started
    await wan.action("DeletePortMapping").async_call(
        NewRemoteHost="", NewExternalPort=port, NewProtocol="UDP"
    )
    return taken


async def _add(wan: UpnpService, port: int) -> None:
    own = await asyncio.to_thread(_own_address)
    await wan.action("AddPortMapping").async_call(
        NewRemoteHost="",
        NewExternalPort=port,
        NewProtocol="UDP",
        NewInternalPort=port,
        NewInternalClient=own,
        NewEnabled=True,
        NewPortMappingDescription=_DESCRIPTION,
        NewLeaseDuration=_LEASE_S,
    )


def _own_address() -> str:
    from nattools.net.udp import local_address_towards

    return str(local_address_towards(Endpoint.of("192.168.0.1", 1900)))


MAPPERS: dict[str, Mapper] = {
    "nattools, UPnP": nattools(MappingProtocol.UPNP),
    "nattools, PCP": nattools(MappingProtocol.PCP),
    "nattools, NAT-PMP": nattools(MappingProtocol.NAT_PMP),
    "nattools, all three": nattools(*MappingProtocol),
    "miniupnpc": miniupnpc_once,
    "async_upnp_client": async_upnp_client_once,
}


def main() -> None:
    """Run one of them."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("name", choices=MAPPERS)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--port", type=int, default=20000)
    options = arguments.parse_args()
    mapper = MAPPERS[options.name]
    print(json.dumps([asyncio.run(mapper(options.port + n)) for n in range(options.rounds)]))


if __name__ == "__main__":
    main()
