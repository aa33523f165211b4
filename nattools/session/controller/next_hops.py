"""Where host names lead (RFC 3263), asked once and remembered for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nattools.endpoint import Endpoint
from nattools.errors import ResolveError
from nattools.net.dns import resolve
from nattools.session.flows import Flow, Flows
from nattools.sip.uri import SIP_PORT, SIPS_PORT, read_ip

_SERVICES = {"UDP": "_sip._udp", "TCP": "_sip._tcp", "TLS": "_sips._tcp"}
_FOUND_S = 60.0
_NOT_FOUND_S = 5.0
_MOST_NAMES = 1024

_log = logging.getLogger(__name__)

_Name = tuple[str, int | None, str]


class Resolve(Protocol):
    """`nattools.net.dns.resolve`, as far as it is used here."""

    def __call__(
        self, host: str, port: int | None, *, service: str, default_port: int
    ) -> Awaitable[list[Endpoint]]:
        """All endpoints of a server, best first. Raises `ResolveError`."""


@dataclass(slots=True)
class _Known:
    endpoints: asyncio.Task[Sequence[Endpoint]]
    until: float


class NextHops:
    """Finds the flows that lead to hosts. Several that ask for one name wait for the same answer."""

    def __init__(
        self,
        flows: Flows,
        *,
        now: Callable[[], float],
        on_found: Callable[[Endpoint, str], None] = lambda _endpoint, _host: None,
        resolve: Resolve = resolve,
    ) -> None:
        """`on_found` is told of each endpoint that was found by a name."""
        self._flows = flows
        self._now = now
        self._on_found = on_found
        self._resolve = resolve
        self._known: dict[_Name, _Known] = {}

    async def flow_to(self, host: bytes, port: int | None, transport: str) -> Flow | None:
        """How to reach a host by its name or address; None where it has no address that can be reached."""
        if transport not in _SERVICES:
            return None
        ip = read_ip(host)
        if ip is not None:
            default_port = SIPS_PORT if transport == "TLS" else SIP_PORT
            return self._flows.towards(Endpoint(ip, default_port if port is None else port), transport)
        try:
            name = (host.decode("ascii").lower().rstrip("."), port, transport)
        except UnicodeDecodeError:
            return None
        if not name[0]:
            return None
        for endpoint in await self._endpoints(name):
            flow = self._flows.towards(endpoint, transport)
            if flow is not None:
                self._on_found(endpoint, name[0])
                return flow
        return None

    def close(self) -> None:
        """Ask for nothing any more."""
        for known in self._known.values():
            known.endpoints.cancel()

    async def _endpoints(self, name: _Name) -> Sequence[Endpoint]:
        known = self._known.get(name)
        if known is None or known.until <= self._now():
            # a task of its own: who asks first may give up, and may have been begun outside any task
            asking = asyncio.get_running_loop().create_task(self._ask(name))
            known = self._known[name] = _Known(asking, float("inf"))
            if len(self._known) > _MOST_NAMES:
                del self._known[next(iter(self._known))]
        return await asyncio.shield(known.endpoints)

    async def _ask(self, name: _Name) -> Sequence[Endpoint]:
        host, port, transport = name
        default_port = SIPS_PORT if transport == "TLS" else SIP_PORT
        found: Sequence[Endpoint] = ()
        try:
            found = await self._resolve(host, port, service=_SERVICES[transport], default_port=default_port)
        except ResolveError as error:
            _log.warning("%s", error)
        known = self._known.get(name)
        if known is not None:
            known.until = self._now() + (_FOUND_S if found else _NOT_FOUND_S)
        return found
