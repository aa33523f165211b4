"""A mapping client that does as it is told, and ways to run `natmap` with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from click.testing import CliRunner, Result

from nattools.cli import natmap
from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import (
    LocalAddressError,
    NatToolsError,
)
from nattools.mapping.client import Survey
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.registry import Registry
from nattools.mapping.state import Owner
from nattools.mapping.upkeep import MappingChange
from nattools.mapping.way import Network
from nattools.upnp.igd import PortMappingEntry
from tests.unit.mapping.ways import GATEWAY, LOCAL, PUBLIC, FakeWay

PCP, NAT_PMP, UPNP = MappingProtocol.PCP, MappingProtocol.NAT_PMP, MappingProtocol.UPNP
CARRIER = ip_address("100.64.0.2")
NONCE = bytes(range(12))
OTHER = PortMappingEntry(
    "", 40000, TransportProtocol.UDP, "192.168.0.20", 40000, enabled=True, description="a game", lease_s=None
)
DEAD = Owner(2**22 + 1, 0.0)
"""No process can have this number (PID_MAX_LIMIT)."""


@dataclass
class FakeClient:
    """Stands for MappingClient; `opened` is what natmap opened it with."""

    registry: Registry
    ways: dict[MappingProtocol, FakeWay] = field(default_factory=dict)
    failed: dict[MappingProtocol, NatToolsError] = field(default_factory=dict)
    address: IPAddress | None = PUBLIC
    lease_s: int | None = 3600
    refusal: NatToolsError | None = None
    hangs: bool = False
    told: Sequence[MappingChange] = ()
    then_signal: signal.Signals = signal.SIGTERM
    opened: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[MappingRequest, bool]] = field(default_factory=list)
    released: list[PortMapping] = field(default_factory=list)
    tidied: int = 0

    @asynccontextmanager
    async def open(self, **how: object) -> AsyncIterator[FakeClient]:
        self.opened = how
        if isinstance(self.refusal, LocalAddressError):
            raise self.refusal
        yield self

    async def survey(self) -> Survey:
        network = Network(None, GATEWAY, LOCAL)
        return Survey(network, self.ways, self.failed, self.address)

    async def external_address(self) -> IPAddress | None:
        self._refuse()
        return self.address

    async def acquire(self, request: MappingRequest, *, keep: bool = True) -> PortMapping:
        self.requests.append((request, keep))
        if self.hangs:
            os.kill(os.getpid(), self.then_signal)
            await asyncio.sleep(3600)
        self._refuse()
        return mapping(request, self.address, self.lease_s)

    async def changes(self) -> AsyncIterator[MappingChange]:
        for change in self.told:
            yield change
        os.kill(os.getpid(), self.then_signal)
        await asyncio.sleep(3600)

    async def release(self, mapping: PortMapping) -> None:
        self._refuse()
        self.released.append(mapping)

    async def tidy(self) -> None:
        self.tidied += 1

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal


def mapping(
    request: MappingRequest, address: IPAddress | None = PUBLIC, lease_s: int | None = 3600
) -> PortMapping:
    return PortMapping(
        protocol=PCP,
        transport=request.transport,
        internal=Endpoint(LOCAL, request.internal.port),
        external_port=request.external_port or request.internal.port,
        external_address=address,
        lease_s=lease_s,
        gateway=GATEWAY,
        description=request.description,
        nonce=NONCE,
    )


MAPPING = mapping(MappingRequest(Endpoint.parse("0.0.0.0:5060")))
DOCUMENT = {
    "protocol": "pcp",
    "transport": "udp",
    "external": "11.22.33.2:5060",
    "external_port": 5060,
    "internal": "192.168.0.108:5060",
    "lease": 3600,
    "public": True,
    "address_class": "public",
    "gateway": "192.168.0.1",
    "description": "nattools",
    "proven": True,
}


def run(*arguments: str, columns: int = 100) -> Result:
    result = CliRunner().invoke(natmap.main, arguments, env={"COLUMNS": str(columns)}, prog_name="natmap")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(*arguments: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    assert said["schema"] == 1
    return said


# what is wrong usage, without asking anybody
