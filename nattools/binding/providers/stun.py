"""What STUN from the very socket needs besides: where the servers are, and how long the NAT keeps a flow."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nattools.binding.schedule import SAFE_INTERVAL_S
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, ResolveError, TransportError
from nattools.net.dns import resolve
from nattools.net.runner import MachineRunner
from nattools.net.udp import UdpSocket
from nattools.stun.lifetime import (
    Expired,
    Finished,
    Lifetime,
    LifetimeEvent,
    Survived,
    safe_interval_s,
    socket_names,
)
from nattools.stun.uri import PORT, ServerAddress, Transport

_LOG = logging.getLogger(__name__)

_GRACE_S = 0.3
"""So long the first names that have addresses wait for the others."""


@dataclass(slots=True)
class _Family:
    """What is known in one address family."""

    found: dict[ServerAddress, list[Endpoint]] = field(default_factory=dict)
    failures: dict[ServerAddress, str] = field(default_factory=dict)
    told: tuple[Endpoint, ...] | None = None
    looking: asyncio.Task[None] | None = None


class StunServers:
    """Where the servers are that settings name: looked up once, for all sockets of an address family.

    `on_change(ipv6)` says that `known` has something else to say from now on. Raises `DecodeError` for what
    is no server, or one that is asked over TLS.
    """

    def __init__(
        self,
        names: Sequence[str],
        on_change: Callable[[bool], None],
        *,
        nameservers: Sequence[Endpoint] | None = None,
    ) -> None:
        self._servers = [ServerAddress.parse(name) for name in names]
        for server in self._servers:
            if server.secure:
                raise DecodeError(f"{server}: only STUN over UDP shows the binding of a UDP socket")
        self._on_change = on_change
        self._nameservers = nameservers
        self._families = {False: _Family(), True: _Family()}
        for server in self._servers:
            if (ip := server.ip) is not None:
                self._families[ip.version == 6].found[server] = [Endpoint(ip, server.port or PORT)]

    def known(self, *, ipv6: bool) -> tuple[Endpoint, ...] | None:
        """The servers of a family, the best first; None while they are looked up, which begins with this."""
        family = self._families[ipv6]
        if family.told is None and family.looking is None:
            if self._names:
                self._look_up(ipv6)
            else:
                family.told = self._in_order(family)
        return family.told

    def failure(self, *, ipv6: bool) -> str:
        """Why there is none at all, in words; empty where there are some, or none were named."""
        family = self._families[ipv6]
        if family.told != () or not self._servers:
            return ""
        others = [server for server in self._servers if server.ip is not None]
        reasons = [f"{server} is of the other address family" for server in others]
        return "; ".join([*family.failures.values(), *reasons])

    def look_up_again(self) -> None:
        """The network is another, or servers are silent: see whether the names have other addresses."""
        for ipv6, family in self._families.items():
            if family.told is not None and family.looking is None and self._names:
                self._look_up(ipv6)

    async def close(self) -> None:
        """Stop looking."""
        tasks = [family.looking for family in self._families.values() if family.looking is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _names(self) -> list[ServerAddress]:
        return [server for server in self._servers if server.ip is None]

    def _in_order(self, family: _Family) -> tuple[Endpoint, ...]:
        found = [endpoint for server in self._servers for endpoint in family.found.get(server, ())]
        return tuple(dict.fromkeys(found))

    def _look_up(self, ipv6: bool) -> None:
        family = self._families[ipv6]
        family.looking = asyncio.create_task(self._look(family, ipv6))

    async def _look(self, family: _Family, ipv6: bool) -> None:
        """Look up all names side by side; one that takes long comes in later."""
        pending = {asyncio.create_task(self._look_one(family, server, ipv6)) for server in self._names}
        try:
            patience_s = None
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                if not done:
                    self._tell(family, ipv6)
                patience_s = _GRACE_S if done and family.told is None and self._in_order(family) else None
            self._tell(family, ipv6)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            family.looking = None

    async def _look_one(self, family: _Family, server: ServerAddress, ipv6: bool) -> None:
        try:
            family.found[server] = await resolve(
                server.host,
                server.port,
                service=Transport.UDP.service,
                default_port=PORT,
                family=6 if ipv6 else 4,
                nameservers=self._nameservers,
            )
        except ResolveError as error:  # what was found earlier is as good as before
            if server not in family.failures:
                _LOG.warning("the STUN server %s is not asked: %s", server, error)
            family.failures[server] = str(error)
        else:
            family.failures.pop(server, None)

    def _tell(self, family: _Family, ipv6: bool) -> None:
        servers = self._in_order(family)
        if family.told is None or set(servers) != set(family.told):  # DNS shuffles them
            family.told = servers
            self._on_change(ipv6)


class IntervalLearner:
    """Measures how long the NAT keeps an idle flow, on sockets of its own beside those that are in use.

    `on_interval` gets how often flows should be refreshed, each time that something shows more of it.
    """

    def __init__(self, on_interval: Callable[[float], None]) -> None:
        self._on_interval = on_interval
        self._survived_s = 0.0

    async def learn(self, servers: Sequence[Endpoint], local_address: IPAddress) -> None:
        """Measure with the first server that can, for some five minutes; without any, be on the safe side."""
        for server in servers:
            try:
                found = await self._measure(server, local_address)
            except TransportError as error:
                _LOG.info("how long the NAT keeps an idle flow is not measured: %s", error)
                break
            _LOG.info("how long the NAT keeps an idle flow, by %s: %s", server, found.reason)
            if found.longest_survived_s is not None or found.shortest_expired_s is not None:
                return
        self._on_interval(SAFE_INTERVAL_S)

    async def _measure(self, server: Endpoint, local_address: IPAddress) -> Finished:
        finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        sockets: dict[str, UdpSocket] = {}
        runners: list[MachineRunner[LifetimeEvent]] = []

        def receive(name: str, data: bytes, source: Endpoint) -> None:
            for runner in runners:
                runner.receive(name, data, source)

        def take(event: LifetimeEvent) -> None:
            self._read(event)
            if isinstance(event, Finished) and not finished.done():
                finished.set_result(event)

        try:
            for name in socket_names():
                sockets[name] = await UdpSocket.open(
                    ipv6=server.is_ipv6, local_address=local_address, on_datagram=partial(receive, name)
                )
            now = asyncio.get_running_loop().time()
            machine = Lifetime(server, sockets=socket_names(), entropy=secrets.token_bytes, now=now)
            runners.append(
                MachineRunner(
                    machine, sockets, on_event=take, on_unsendable=lambda *_: None
                )  # as good as lost
            )
            runners[0].pump()
            return await finished
        finally:
            for runner in runners:
                runner.close()
            for sock in sockets.values():
                sock.close()

    def _read(self, event: LifetimeEvent) -> None:
        """Go as far as what was shown to survive allows; where nothing was, half as far as what was not."""
        gone_s = None
        if isinstance(event, Survived):
            self._survived_s = max(self._survived_s, event.idle_s)
        elif isinstance(event, Expired):
            gone_s = event.idle_s
        else:
            self._survived_s, gone_s = event.longest_survived_s or 0.0, event.shortest_expired_s
        if self._survived_s:
            self._on_interval(safe_interval_s(self._survived_s))
        elif gone_s is not None:
            self._on_interval(safe_interval_s(gone_s / 2))
