"""A way to mappings that does what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import NoReturn

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import NatToolsError, NoRouterError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.state import Owner
from nattools.mapping.upkeep import MappingChange
from nattools.mapping.way import OnChange
from nattools.upnp.igd import PortMappingEntry

GATEWAY = ip_address("192.168.0.1")
LOCAL = ip_address("192.168.0.108")
PUBLIC = ip_address("11.22.33.2")


@dataclass(eq=False)
class FakeWay:
    """A router; `refusals` are raised one after the other before it grants anything."""

    protocol: MappingProtocol
    known_external_address: IPAddress | None = PUBLIC
    refusals: list[Exception] = field(default_factory=list)
    lease_s: int | None = 3600
    gateway: IPAddress = GATEWAY
    local: IPAddress = LOCAL
    model: str = "A Router"
    router: str = ""
    answers_after_s: float = 0.0
    table: list[PortMappingEntry] | None = None
    stuck: bool = False
    stuck_ports: set[int] = field(default_factory=set)
    delay_s: float = 0.0
    granted: list[PortMapping] = field(default_factory=list)
    asked: list[PortMapping] = field(default_factory=list)
    released: list[PortMapping] = field(default_factory=list)
    on_change: OnChange | None = None
    closed: bool = False

    def new_nonce(self) -> bytes:
        return b"nonce-of-12b" if self.protocol is MappingProtocol.PCP else b""

    async def external_address(self) -> IPAddress | None:
        await self._answer()
        return self.known_external_address

    async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
        self.asked.append(draft)
        if draft.internal.port in self.stuck_ports:
            await asyncio.sleep(3600)
        await self._answer()
        mapping = replace(draft, external_address=self.known_external_address, lease_s=self.lease_s)
        self.granted.append(mapping)
        return mapping

    async def release(self, mapping: PortMapping) -> None:
        await self._answer()
        self.released.append(mapping)

    async def entries(self) -> list[PortMappingEntry] | None:
        return self.table

    async def watch(self, on_change: OnChange) -> None:
        self.on_change = on_change

    async def close(self) -> None:
        self.closed = True

    async def _answer(self) -> None:
        if self.stuck:
            await asyncio.sleep(3600)
        await asyncio.sleep(self.delay_s)
        if self.refusals:
            raise self.refusals.pop(0)


Answer = FakeWay | NatToolsError
Opener = Callable[..., object]


def opener(answer: Answer) -> Opener:
    """What stands for the `open` of a way: it finds that router, or fails so."""

    async def open_way(*_: object, **__: object) -> FakeWay:
        if isinstance(answer, NatToolsError):
            _raise(answer)
        await asyncio.sleep(answer.answers_after_s)
        return answer

    return open_way


def _raise(error: NatToolsError) -> NoReturn:
    raise error


PCP, NAT_PMP, UPNP = MappingProtocol.PCP, MappingProtocol.NAT_PMP, MappingProtocol.UPNP
SIP = MappingRequest(Endpoint.parse("0.0.0.0:5060"))
NOBODY = NoRouterError("nobody is there")
DEAD = Owner(2**22 + 1, 0.0)
"""No process can have this number (PID_MAX_LIMIT)."""

OpenClient = Callable[..., AbstractAsyncContextManager[MappingClient]]


OTHER = replace(SIP, internal=Endpoint.parse("0.0.0.0:5062"))


def run(work: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; whoever calls must have a time limit."""
    while not condition():  # noqa: ASYNC110  # nobody tells of it
        await asyncio.sleep(0.001)


async def news(client: MappingClient) -> MappingChange:
    """The next change."""
    return await anext(client.changes())
