"""The mapping client: a port of the router's for a port of this machine, by whichever protocol it speaks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Self

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import (
    EncodeError,
    LocalAddressError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
)
from nattools.mapping.model import MappingKey, MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.race import Race
from nattools.mapping.registry import Registry, is_running
from nattools.mapping.state import Record
from nattools.mapping.upkeep import MappingChange, Upkeep
from nattools.mapping.way import Network, Way, draft
from nattools.mapping.ways.pcp import NatPmpWay, PcpWay
from nattools.mapping.ways.pinhole import PinholeWay
from nattools.mapping.ways.upnp import Search, UpnpWay
from nattools.net.interfaces import default_routes, interfaces
from nattools.net.udp import local_address_towards
from nattools.upnp import miniupnpc
from nattools.upnp.client import discover

_LOG = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 1.5
"""How long a router may take to answer the search."""
_FAR_AWAY = Endpoint.parse("[2001:db8::1]:9")  # to look up a route; nothing is sent
_RELEASE_S = 2.0
_STUCK_S = 0.3
_MOST_CHANGES = 1000
_BETWEEN_NEWS_S = 1.0
"""News of a router come in bursts, and anybody on the LAN can send them: the first counts, then the last."""


class Backend(Enum):
    """Who speaks UPnP."""

    NATIVE = "native"
    MINIUPNPC = "miniupnpc"


@dataclass(frozen=True, slots=True)
class Survey:
    """What the probes found: for each protocol the router that speaks it, or why there is none."""

    network: Network
    found: Mapping[MappingProtocol, Way]
    failed: Mapping[MappingProtocol, NatToolsError]
    external_address: IPAddress | None

    @property
    def address_class(self) -> AddressClass | None:
        """What kind of external address the router has; None when it has none, or told none."""
        return None if self.external_address is None else classify_address(self.external_address)


@dataclass(slots=True)
class _Held:
    """A mapping that this client made: what was asked for, and its record."""

    request: MappingRequest
    record: Record


class MappingClient:
    """Makes port mappings, and keeps them until they are released. Make it with `MappingClient.open`."""

    def __init__(
        self,
        network: Network,
        protocols: Sequence[MappingProtocol],
        backend: Backend,
        registry: Registry,
        timeout_s: float,
    ) -> None:
        self.network = network
        self.registry = registry
        self._protocols = tuple(dict.fromkeys(protocols))
        self._backend = backend
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._probes: dict[MappingProtocol, asyncio.Task[Way]] = {}
        self._held: dict[MappingKey, _Held] = {}
        self._upkeep = Upkeep()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._watched: dict[MappingProtocol, Way] = {}
        self._wake = asyncio.Event()
        self._round: asyncio.Task[None] | None = None
        self._round_since = 0.0
        self._news_at = float("-inf")
        self._late_news: asyncio.TimerHandle | None = None
        self._changes: deque[MappingChange] = deque(maxlen=_MOST_CHANGES)
        self._changed = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        protocols: Sequence[MappingProtocol] = tuple(MappingProtocol),
        gateway: IPAddress | None = None,
        interface: str | None = None,
        ipv6: bool = False,
        backend: Backend = Backend.NATIVE,
        state_directory: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> AsyncIterator[Self]:
        """A client for the router of the default route, or for `gateway`, or for those on `interface`.

        With `ipv6`, or a gateway of such an address, its IPv6 firewall is asked to let packets in.
        `protocols` are asked side by side, the first of them being preferred. `state_directory` is where
        mappings are remembered; see `registry`. Leaving the context removes the mappings that were kept.
        Nothing is sent before the first request. Raises `LocalAddressError` when there is no such interface.
        """
        network = find_network(gateway, interface, ipv6=ipv6)
        self = cls(network, protocols, backend, Registry(state_directory), timeout_s)
        try:
            yield self
        finally:
            await self._close()

    async def survey(self) -> Survey:
        """Ask by every protocol, and say what answered."""
        found: dict[MappingProtocol, Way] = {}
        failed: dict[MappingProtocol, NatToolsError] = {}
        for protocol, probe in self.start_probes().items():
            try:
                found[protocol] = await asyncio.shield(probe)
            except NatToolsError as error:
                failed[protocol] = error
        return Survey(self.network, found, failed, await _external_address(found.values()))

    async def external_address(self) -> IPAddress | None:
        """The router's external address; None if it has none. Raises `NoRouterError` and what refuses."""
        attempt = _Attempt(self, MappingProtocol.NAT_PMP)  # PCP cannot tell without making a mapping
        while (way := await attempt.next_way()) is not None:
            try:
                return way.known_external_address or await way.external_address()
            except NatToolsError as error:
                attempt.refused(way.protocol, error)
        raise attempt.failure()

    async def acquire(self, request: MappingRequest, *, keep: bool = True) -> PortMapping:
        """Make a mapping by the best protocol that grants it.

        With `keep` it is renewed at half of its lease, made again when the router forgot it, and removed when
        the client is closed; `changes` tells. Without, it stays on the router for its lease.
        Raises `NoRouterError` when no router answers, otherwise what the router refused it with.
        """
        await self.tidy()
        mapping = await self._make(request, None, keep=keep)
        if keep:
            self._upkeep.keep(mapping, now=self._loop.time())
            self._wake.set()
            if self._keeper is None:
                self._keeper = self._spawn(self._keep_up())
        return mapping

    async def renew(self, mapping: PortMapping) -> PortMapping:
        """Renew a mapping of this client's now. Raises `MappingError` or `TransportError`."""
        held = self._held.get(mapping.key)
        if held is None:
            raise MappingError(f"{_name(mapping)} is not a mapping of this client's: acquire it")
        renewed = await self._make(held.request, mapping, keep=held.record.kept)
        self._report(self._upkeep.renewed(mapping.key, renewed, now=self._loop.time()))
        return renewed

    async def release(self, mapping: PortMapping) -> None:
        """Remove a mapping from the router, and keep it no more.

        It may be another process's, given as its record has it. Raises `MappingError` or `TransportError`.
        """
        held = self._held.pop(mapping.key, None)
        mapping = self._upkeep.forget(mapping.key) or mapping
        await self._release(mapping)
        for record in self.registry.records():
            if record.mapping.key == mapping.key and record.mapping.protocol is mapping.protocol:
                self.registry.forget(record)
        if held is not None:
            self.registry.forget(held.record)

    async def changes(self) -> AsyncIterator[MappingChange]:
        """The news of the kept mappings, as it comes; for one reader."""
        while True:
            while self._changes:
                yield self._changes.popleft()
            self._changed.clear()
            await self._changed.wait()

    async def way(self, protocol: MappingProtocol) -> Way:
        """The router that speaks `protocol`. Raises `NoRouterError`, and what it answered."""
        return await asyncio.shield(self._probe(protocol))

    async def tidy(self) -> None:
        """Remove what a process left behind that was killed before it could do so itself."""
        records = self.registry.left_behind()
        if records:
            await asyncio.gather(*(self._tidy(record) for record in records))

    async def _tidy(self, record: Record) -> None:
        mapping = record.mapping
        if mapping.protocol not in self._protocols:
            return
        try:
            async with asyncio.timeout(_RELEASE_S + self._timeout_s):
                way = await self.way(mapping.protocol)
                if not _is_on(way, mapping):
                    return  # another network: its router will have to wait for us
                if not record.granted:
                    await _release_ungranted(way, mapping)
                await way.release(mapping)
        except (NatToolsError, TimeoutError) as error:
            _LOG.warning("%s, left behind by process %d, stays: %s", _name(mapping), record.owner.pid, error)
        else:
            _LOG.info("%s, left behind by process %d, is removed", _name(mapping), record.owner.pid)
            self.registry.forget(record)

    async def _make(
        self, request: MappingRequest, previous: PortMapping | None, *, keep: bool
    ) -> PortMapping:
        attempt = _Attempt(self, previous.protocol if previous else None)
        while (way := await attempt.next_way()) is not None:
            try:
                return await self._ask(way, request, previous, keep=keep)
            except NatToolsError as error:
                attempt.refused(way.protocol, error)
        raise attempt.failure()

    async def _ask(
        self, way: Way, request: MappingRequest, previous: PortMapping | None, *, keep: bool
    ) -> PortMapping:
        wanted = draft(way, request)
        known = self._known(wanted)
        if previous is None:
            self._check_unkept(wanted)
            previous = known.mapping if known else None
        if previous is not None and (previous.protocol, previous.gateway) == (way.protocol, way.gateway):
            wanted = replace(previous, external_port=request.external_port or previous.external_port)
        record = known or self.registry.new(wanted, kept=keep)
        try:
            mapping = await way.acquire(request, wanted)
        except (MappingError, EncodeError):
            if known is None:
                self.registry.forget(record)
            raise
        # After anything else, a timeout among it, the router may have made the mapping: the record stays.
        if record.mapping.key != mapping.key or record.kept != keep:
            self.registry.forget(record)
            record = self.registry.new(mapping, kept=keep)
        record = self.registry.granted(record, mapping)
        replaced = self._held.get(mapping.key)
        if replaced is not None and replaced.record.record_id != record.record_id:
            self.registry.forget(replaced.record)  # it was made by another protocol
        self._held[mapping.key] = _Held(request, record)
        if keep and self._watched.get(way.protocol) is not way:
            self._spawn(self._watch(way))
        return mapping

    def _check_unkept(self, wanted: PortMapping) -> None:
        """Raise `MappingError` where a process keeps it, by whatever protocol: removing one removes both."""
        for record in self.registry.records():
            same = (record.mapping.key, record.mapping.gateway) == (wanted.key, wanted.gateway)
            if same and record.kept and record.granted and is_running(record.owner):
                raise MappingError(
                    f"{_name(record.mapping)} is kept by process {record.owner.pid} already: end that, "
                    "or take another port"
                )

    def _known(self, wanted: PortMapping) -> Record | None:
        """The record of the same mapping, of which this client or another process has the nonce."""
        held = self._held.get(wanted.key)
        if held is not None and held.record.mapping.protocol is wanted.protocol:
            return held.record
        for record in self.registry.records():
            mapping = record.mapping
            if (mapping.key, mapping.protocol, mapping.gateway) == (
                wanted.key,
                wanted.protocol,
                wanted.gateway,
            ):
                return record
        return None

    async def _release(self, mapping: PortMapping) -> None:
        way = await self.way(mapping.protocol)
        if way.gateway != mapping.gateway:
            raise MappingError(
                f"{_name(mapping)} is on {mapping.gateway}, and the router here is {way.gateway}: "
                "connect this machine to that network"
            )
        await way.release(mapping)

    async def _keep_up(self) -> None:
        """Renew what is due, for as long as the client is open."""
        while True:
            timeout_at = self._upkeep.timeout_at()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(timeout_at):
                    await self._wake.wait()
            self._wake.clear()
            due = self._upkeep.due(now=self._loop.time())
            if not due:
                continue
            self._round_since = self._loop.time()
            self._round = renewals = asyncio.create_task(self._renew_all(due))
            try:
                await asyncio.wait([renewals])
                if not renewals.cancelled():
                    renewals.result()
            finally:
                renewals.cancel()

    async def _renew_all(self, due: Sequence[PortMapping]) -> None:
        if any(self._upkeep.failures(mapping.key) for mapping in due):
            await self._search_anew()
        for mapping in due:
            held = self._held.get(mapping.key)
            if held is None:
                continue
            try:
                renewed = await self._make(held.request, mapping, keep=True)
            except NatToolsError as error:
                _LOG.info("%s is not renewed: %s", _name(mapping), error)
                change = self._upkeep.failed(mapping.key, str(error), now=self._loop.time())
            else:
                change = self._upkeep.renewed(mapping.key, renewed, now=self._loop.time())
            self._report(change)

    async def _search_anew(self) -> None:
        """Forget the routers that were found; the news of those that are watched is still heard."""
        probes, self._probes = self._probes, {}
        for probe in probes.values():
            await _close_probe(probe, unless=self._watched.values())

    async def _watch(self, way: Way) -> None:
        former = self._watched.get(way.protocol)
        self._watched[way.protocol] = way
        if former is not None:
            await former.close()
        try:
            await way.watch(self._router_changed)
        except NatToolsError as error:
            _LOG.info("no news of %s by %s: %s", way.gateway, way.protocol.value, error)

    def _router_changed(self, reason: str) -> None:
        now = self._loop.time()
        if now < self._news_at + _BETWEEN_NEWS_S:
            if self._late_news is None:
                self._late_news = self._loop.call_at(self._news_at + _BETWEEN_NEWS_S, self._news_late, reason)
            return
        _LOG.info("%s", reason)
        self._news_at = now
        self._upkeep.router_changed(reason, now=now)
        if self._round is not None and now - self._round_since > _STUCK_S:
            self._round.cancel()  # it waits for a router that was not there
        self._wake.set()

    def _news_late(self, reason: str) -> None:
        self._late_news, self._news_at = None, float("-inf")
        self._router_changed(reason)

    def _report(self, change: MappingChange | None) -> None:
        if change is not None:
            self._changes.append(change)
            self._changed.set()

    def start_probes(self) -> dict[MappingProtocol, asyncio.Task[Way]]:
        """Ask for a router by every protocol that has not found one."""
        return {protocol: self._probe(protocol) for protocol in self._protocols}

    def _probe(self, protocol: MappingProtocol) -> asyncio.Task[Way]:
        probe = self._probes.get(protocol)
        if probe is None or (probe.done() and (probe.cancelled() or probe.exception() is not None)):
            probe = self._probes[protocol] = asyncio.create_task(self._open_way(protocol))
            probe.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be needed
        return probe

    async def _open_way(self, protocol: MappingProtocol) -> Way:
        if protocol is MappingProtocol.PCP:
            return await PcpWay.open(self.network, timeout_s=self._timeout_s)
        if protocol is MappingProtocol.NAT_PMP:
            return await NatPmpWay.open(self.network, timeout_s=self._timeout_s)
        if self.network.ipv6:
            return await PinholeWay.open(self.network, timeout_s=self._timeout_s)
        search: Search = miniupnpc.discover if self._backend is Backend.MINIUPNPC else discover
        return await UpnpWay.open(self.network, timeout_s=self._timeout_s, search=search)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self) -> None:
        if self._late_news is not None:
            self._late_news.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._release_at_end(mapping) for mapping in self._upkeep.mappings))
        for way in self._watched.values():
            await way.close()
        for probe in self._probes.values():
            await _close_probe(probe)

    async def _release_at_end(self, mapping: PortMapping) -> None:
        held = self._held[mapping.key]
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._release(mapping)
        except (NatToolsError, TimeoutError) as error:
            _LOG.warning("%s is not removed, the next start will: %s", _name(mapping), error or "no answer")
        else:
            self.registry.forget(held.record)


class _Attempt:
    """One search for a way: all protocols side by side, the best first, then those that are left."""

    def __init__(self, client: MappingClient, first: MappingProtocol | None = None) -> None:
        self._probes = client.start_probes()
        self._race = Race(sorted(self._probes, key=lambda protocol: protocol is not first))
        self._network = client.network
        self._unread = set(self._probes)
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
                self._race.answered(protocol, behind_second_nat=behind, now=now)

    def refused(self, protocol: MappingProtocol, error: NatToolsError) -> None:
        """The router that speaks `protocol` would not, or there is none."""
        self._errors[protocol] = error
        self._race.failed(protocol)

    def failure(self) -> NatToolsError:
        """Why nothing was had: what a router refused, or that there is none."""
        in_order = {protocol: self._errors[protocol] for protocol in self._probes if protocol in self._errors}
        for error in in_order.values():
            if not isinstance(error, NoRouterError | TransportError):
                return error
        return no_router(self._network, in_order)


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

    Raises `LocalAddressError` when there is no such interface, `TransportError` without a route to `gateway`.
    """
    if interface is not None and interface not in (names := [i.name for i in interfaces()]):
        raise LocalAddressError(f"there is no interface {interface}: this machine has {', '.join(names)}")
    if gateway is not None:
        local = _local_address(gateway)
        return Network(interface, gateway, local, gateway_is_named=True, ipv6=gateway.version == 6)
    for route in default_routes(ipv6=ipv6):
        if interface in (None, route.interface):
            return Network(interface, route.gateway, _local_address(route.gateway), ipv6=ipv6)
    return Network(interface, None, None, ipv6=ipv6)


def _local_address(gateway: IPAddress) -> IPAddress:
    """The address of this machine that the router is to lead to."""
    if gateway.version == 6 and gateway.is_link_local:
        return local_address_towards(_FAR_AWAY)  # the link-local address leads nowhere
    return local_address_towards(Endpoint(gateway, 0))


async def _external_address(ways: Iterable[Way]) -> IPAddress | None:
    for way in ways:
        if way.known_external_address is not None:
            return way.known_external_address
    for way in ways:
        try:
            address = await way.external_address()
        except NatToolsError as error:
            _LOG.debug("%s tells no address by %s: %s", way.gateway, way.protocol.value, error)
        else:
            return address
    return None


def _is_on(way: Way, mapping: PortMapping) -> bool:
    """Whether it is the router of that mapping, as far as names tell: miniupnpc tells none."""
    same_name = way.router == mapping.router or not (way.router and mapping.router)
    return way.gateway == mapping.gateway and same_name


async def _release_ungranted(way: Way, mapping: PortMapping) -> None:
    """Remove what a request made whose answer nobody read: a UPnP router may have chosen another port."""
    for entry in await way.entries() or []:
        if (entry.internal, entry.transport, entry.description) == (*mapping.key, mapping.description):
            await way.release(replace(mapping, external_port=entry.external_port))


async def _close_probe(probe: asyncio.Task[Way], unless: Iterable[Way] = ()) -> None:
    probe.cancel()
    await asyncio.wait([probe])
    if not probe.cancelled() and probe.exception() is None and probe.result() not in unless:
        await probe.result().close()


def _name(mapping: PortMapping) -> str:
    return f"{mapping.transport.name.lower()} port {mapping.internal.port} ({mapping.protocol.value})"
