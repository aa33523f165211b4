"""The routers that were found, one way to each protocol, and the choice among them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from ipaddress import IPv6Address

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import (
    LocalAddressError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
)
from nattools.mapping.model import MappingProtocol
from nattools.mapping.race import Race
from nattools.mapping.way import Network, OnChange, Way
from nattools.mapping.ways.pcp import NatPmpWay, PcpWay
from nattools.mapping.ways.pinhole import PinholeWay
from nattools.mapping.ways.upnp import Search, UpnpWay
from nattools.net.interfaces import default_routes, interfaces
from nattools.net.udp import local_address_towards
from nattools.upnp import miniupnpc
from nattools.upnp.client import discover

_LOG = logging.getLogger(__name__)

_FAR_AWAY = Endpoint.parse("[2001:db8::1]:9")  # to look up a route; nothing is sent

_MOST_AT_ONCE = 2
"""So much a router is asked at once. miniupnpd works off one request after the other, and with many mappings
slowly: of fifty PCP requests at once it answers four before they are given up."""


class Backend(Enum):
    """Who speaks UPnP."""

    NATIVE = "native"
    MINIUPNPC = "miniupnpc"


class LostError(NoResponseError):
    """The router did not answer somebody else: it has to be found again before it is asked."""


class Routers:
    """The way to a router for each of `protocols`, searched for when it is first asked for.

    One that does not answer any more is lost, and so is one that was reached from an address that this
    machine has no more: the next who asks has it searched for again, in the network as it is then.
    Raises what `find_network` does.
    """

    def __init__(
        self,
        protocols: Sequence[MappingProtocol],
        *,
        gateway: IPAddress | None,
        interface: str | None,
        ipv6: bool,
        backend: Backend,
        timeout_s: float,
    ) -> None:
        self.protocols = tuple(dict.fromkeys(protocols))
        self.timeout_s = timeout_s
        self._find_network = partial(find_network, gateway, interface, ipv6=ipv6)
        self.network = self._find_network()
        self._backend = backend
        self._probes: dict[MappingProtocol, asyncio.Task[Way]] = {}
        self._lost: dict[MappingProtocol, Way] = {}
        self._watched: dict[MappingProtocol, Way] = {}
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)

    def probes(self) -> dict[MappingProtocol, asyncio.Task[Way]]:
        """Ask for a router by every protocol that has not found one, or has lost it."""
        return {protocol: self._probe(protocol) for protocol in self.protocols}

    async def way(self, protocol: MappingProtocol) -> Way:
        """The router that speaks `protocol`. Raises `NoRouterError`, and what it answered."""
        return await asyncio.shield(self._probe(protocol))

    def has(self, protocol: MappingProtocol) -> bool:
        """Whether a router that speaks it is found, and answers."""
        probe = self._probes.get(protocol)
        return probe is not None and probe.done() and self._is_good(_found(probe))

    def lose(self, way: Way) -> None:
        """Search for it again: it does not answer."""
        self._lost[way.protocol] = way

    def is_lost(self, way: Way) -> bool:
        """Whether it has not answered somebody else."""
        return self._lost.get(way.protocol) is way

    @asynccontextmanager
    async def turn(self, way: Way) -> AsyncIterator[None]:
        """Wait until it may be asked for something. Raises `LostError` where it is lost by then."""
        async with self._turns:
            if self.is_lost(way):
                raise LostError(
                    f"{way.gateway} has not answered what it was asked before by {way.protocol.value}: "
                    "it is looked for again"
                )
            try:
                yield
            except TransportError:
                self.lose(way)
                raise

    async def watch(self, way: Way, on_change: OnChange) -> None:
        """Have the news of a router, instead of those of the one that spoke its protocol before."""
        former = self._watched.get(way.protocol)
        if former is way:
            return
        self._watched[way.protocol] = way
        if former is not None:
            await former.close()
        try:
            await way.watch(on_change)
        except NatToolsError as error:
            _LOG.info("no news of %s by %s: %s", way.gateway, way.protocol.value, error)

    async def close(self) -> None:
        """Give up what is under way, and close every way."""
        for probe in self._probes.values():
            probe.cancel()
            await asyncio.wait([probe])
            if (way := _found(probe)) is not None:
                await way.close()
        for way in self._watched.values():
            await way.close()

    def _probe(self, protocol: MappingProtocol) -> asyncio.Task[Way]:
        probe = self._probes.get(protocol)
        if probe is None:
            probe = self._begin(self._open(protocol))
        elif probe.done() and not self._is_good(found := _found(probe)):
            probe = self._begin(self._open_again(protocol, found))
        self._probes[protocol] = probe
        return probe

    def _is_good(self, way: Way | None) -> bool:
        return way is not None and not self.is_lost(way) and self._is_own(way.local)

    def _is_own(self, local: IPAddress) -> bool:
        own = {ip.packed for interface in interfaces() for ip in interface.ips}
        return local.is_loopback or local.packed in own

    @staticmethod
    def _begin(opening: Coroutine[None, None, Way]) -> asyncio.Task[Way]:
        probe = asyncio.create_task(opening)
        probe.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be needed
        return probe

    async def _open_again(self, protocol: MappingProtocol, former: Way | None) -> Way:
        """Search in the network as it is now: the cable may be in another router, or the address new."""
        if former is not None and self._watched.get(protocol) is not former:
            await former.close()
        self.network = self._find_network()
        way = await self._open(protocol)
        self._lost.pop(protocol, None)
        return way

    async def _open(self, protocol: MappingProtocol) -> Way:
        if protocol is MappingProtocol.PCP:
            return await PcpWay.open(self.network, timeout_s=self.timeout_s)
        if protocol is MappingProtocol.NAT_PMP:
            return await NatPmpWay.open(self.network, timeout_s=self.timeout_s)
        if self.network.ipv6:
            return await PinholeWay.open(self.network, timeout_s=self.timeout_s)
        search: Search = miniupnpc.discover if self._backend is Backend.MINIUPNPC else discover
        return await UpnpWay.open(self.network, timeout_s=self.timeout_s, search=search)


def _found(probe: asyncio.Task[Way]) -> Way | None:
    return None if probe.cancelled() or probe.exception() is not None else probe.result()


class Attempt:
    """One search for a way: all protocols side by side, the best first, then those that are left."""

    def __init__(self, routers: Routers, first: MappingProtocol | None = None) -> None:
        self._probes = routers.probes()
        self._race = Race(sorted(self._probes, key=lambda protocol: protocol is not first))
        self._routers = routers
        self._unread = set(self._probes)
        self._found: set[MappingProtocol] = set()
        self._errors: dict[MappingProtocol, NatToolsError] = {}

    async def next_way(self) -> Way | None:
        """The best that is left; None when there is nothing left to try."""
        loop = asyncio.get_running_loop()
        while True:
            self._read(loop.time())
            if self._race.is_over:
                return None
            winner = self._race.winner(now=loop.time())
            if winner is not None:
                return self._probes[winner].result()
            timeout_at = self._race.timeout_at()
            timeout = None if timeout_at is None else max(timeout_at - loop.time(), 0)
            pending = [self._probes[protocol] for protocol in self._unread]
            await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    def _read(self, now: float) -> None:
        for protocol in [p for p in self._unread if self._probes[p].done()]:
            self._unread.discard(protocol)
            try:
                way = self._probes[protocol].result()
            except asyncio.CancelledError:
                self.refused(protocol, NoRouterError("the router went away"))
            except NatToolsError as error:
                self.refused(protocol, error)
            else:
                address = way.known_external_address
                behind = address is not None and classify_address(address) is not AddressClass.PUBLIC
                self._found.add(protocol)
                self._race.answered(protocol, behind_second_nat=behind, now=now)

    def refused(self, protocol: MappingProtocol, error: NatToolsError) -> None:
        """The router that speaks `protocol` would not, or there is none."""
        self._errors[protocol] = error
        self._race.failed(protocol)

    def failure(self) -> NatToolsError:
        """Why nothing was had: what a router refused, that it fell silent, or that there is none."""
        in_order = {protocol: self._errors[protocol] for protocol in self._probes if protocol in self._errors}
        for error in in_order.values():
            if not isinstance(error, NoRouterError | TransportError):
                return error
        for protocol, error in in_order.items():
            if protocol in self._found:
                return error
        return no_router(self._routers.network, in_order)


def no_router(network: Network, errors: Mapping[MappingProtocol, NatToolsError]) -> NoRouterError:
    """The error that says that no router answered, for each protocol."""
    reasons = "; ".join(
        f"{protocol.value}: {'no answer' if isinstance(error, NoResponseError) else error}"
        for protocol, error in errors.items()
    )
    where = f" (gateway {network.gateway})" if network.gateway else ""
    return NoRouterError(
        f"no router{where} does port mapping: {reasons}. Turn on UPnP, PCP or NAT-PMP in the router, "
        "or forward the port there by hand"
    )


def find_network(gateway: IPAddress | None, interface: str | None, *, ipv6: bool = False) -> Network:
    """The router that the default route names, or `gateway`, and this machine's address towards it.

    Raises `LocalAddressError` when there is no such interface, or none that a link-local `gateway` is on, and
    `TransportError` without a route to it.
    """
    if interface is not None and interface not in (names := [i.name for i in interfaces()]):
        raise LocalAddressError(f"there is no interface {interface}: this machine has {', '.join(names)}")
    if gateway is not None:
        gateway = _with_scope(gateway, interface)
        local = _local_address(gateway)
        return Network(interface, gateway, local, gateway_is_named=True, ipv6=gateway.version == 6)
    for route in default_routes(ipv6=ipv6):
        if interface in (None, route.interface):
            return Network(interface, route.gateway, _local_address(route.gateway), ipv6=ipv6)
    return Network(interface, None, None, ipv6=ipv6)


def _local_address(gateway: IPAddress) -> IPAddress:
    """The address of this machine that the router is to lead to."""
    if gateway.version == 6 and gateway.is_link_local:
        try:
            return local_address_towards(_FAR_AWAY)  # the link-local address leads nowhere
        except TransportError as error:
            raise TransportError(
                f"{gateway} can let nothing in: this machine has no global IPv6 address"
            ) from error
    return local_address_towards(Endpoint(gateway, 0))


def _with_scope(gateway: IPAddress, interface: str | None) -> IPAddress:
    """A link-local gateway with the interface that it is on: there is one fe80::1 on each."""
    if not isinstance(gateway, IPv6Address) or not gateway.is_link_local:
        return gateway
    names = [one.name for one in interfaces()]
    scope = gateway.scope_id or interface
    if scope is None or not (scope in names or scope.isdecimal()):
        raise LocalAddressError(
            f"{gateway} is a link-local address, which needs the name of its interface ({', '.join(names)}): "
            f"write {str(gateway).partition('%')[0]}%{names[-1]}"
        )
    return IPv6Address(f"{str(gateway).partition('%')[0]}%{scope}")
