"""The mapping client: a port of the router's for a port of this machine, by whichever protocol it speaks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from nattools.endpoint import AddressClass, IPAddress, classify_address
from nattools.errors import EncodeError, MappingError, NatToolsError
from nattools.mapping.model import MappingKey, MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.registry import Registry, is_running
from nattools.mapping.state import Record
from nattools.mapping.upkeep import MappingChange, Upkeep
from nattools.mapping.way import Network, Way, draft
from nattools.mapping.ways.routers import Attempt, Backend, LostError, Routers

_LOG = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 1.5
"""How long a router may take to answer the search."""
_RELEASE_S = 2.0
_STUCK_S = 0.3
_MOST_SEARCHES = 3
_BETWEEN_GIVING_UP_S = 5.0
"""Or somebody who sends news all the time would keep a slow router from ever renewing anything."""
_MOST_CHANGES = 1000
_BETWEEN_NEWS_S = 1.0
"""News of a router come in bursts, and anybody on the LAN can send them: the first counts, then the last."""


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

    def __init__(self, routers: Routers, registry: Registry) -> None:
        self.registry = registry
        self._routers = routers
        self._loop = asyncio.get_running_loop()
        self._held: dict[MappingKey, _Held] = {}
        self._asked_for: set[MappingKey] = set()
        self._unanswered: dict[str, Record] = {}
        self._upkeep = Upkeep()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._round: asyncio.Task[None] | None = None
        self._round_since = 0.0
        self._gave_up_at = float("-inf")
        self._renewals: dict[MappingKey, asyncio.Task[None]] = {}
        self._news_at = float("-inf")
        self._late_news: asyncio.TimerHandle | None = None
        self._changes: deque[MappingChange] = deque(maxlen=_MOST_CHANGES)
        self._changed = asyncio.Event()
        self._tidying = asyncio.Lock()
        self._tidied: set[str] = set()
        self._is_closed = False

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
        routers = Routers(
            protocols,
            gateway=gateway,
            interface=interface,
            ipv6=ipv6,
            backend=backend,
            timeout_s=timeout_s,
        )
        self = cls(routers, Registry(state_directory))
        try:
            yield self
        finally:
            await self._close()

    async def survey(self) -> Survey:
        """Ask by every protocol, and say what answered."""
        found: dict[MappingProtocol, Way] = {}
        failed: dict[MappingProtocol, NatToolsError] = {}
        for protocol, probe in self._probes().items():
            try:
                found[protocol] = await asyncio.shield(probe)
            except NatToolsError as error:
                failed[protocol] = error
        return Survey(self._routers.network, found, failed, await _external_address(found.values()))

    async def external_address(self) -> IPAddress | None:
        """The router's external address; None if it has none. Raises `NoRouterError` and what refuses."""
        self._check_open()
        attempt = Attempt(self._routers, MappingProtocol.NAT_PMP)  # PCP cannot tell without making a mapping
        while (way := await attempt.next_way()) is not None:
            try:
                async with self._routers.turn(way):
                    return way.known_external_address or await way.external_address()
            except NatToolsError as error:
                attempt.refused(way.protocol, error)
        raise attempt.failure()

    async def acquire(self, request: MappingRequest, *, keep: bool = True) -> PortMapping:
        """Make a mapping by the best protocol that grants it.

        With `keep` it is renewed at half of its lease, made again when the router forgot it, and removed when
        the client is closed; `changes` tells. Without, it stays on the router for its lease.
        Raises `NoRouterError` when no router answers, otherwise what the router refused it with. Given up
        half-way, the mapping may be there; it is removed when the client is closed, or by the next start.
        """
        self._check_open()
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
        self._check_open()
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
        self._check_open()
        mapping = self._upkeep.forget(mapping.key) or mapping
        renewal = self._renewals.get(mapping.key)
        if renewal is not None:  # it would make the mapping again
            renewal.cancel()
            await asyncio.wait([renewal])
        held = self._held.pop(mapping.key, None)
        await self._release(mapping)
        for record in self.registry.records():
            if record.mapping.key == mapping.key and record.mapping.protocol is mapping.protocol:
                self.registry.forget(record)
        if held is not None:
            self.registry.forget(held.record)

    async def changes(self) -> AsyncIterator[MappingChange]:
        """The news of the kept mappings, as it comes, until the client is closed; for one reader."""
        while True:
            while self._changes:
                yield self._changes.popleft()
            if self._is_closed:
                return
            self._changed.clear()
            await self._changed.wait()

    async def tidy(self) -> None:
        """Remove what a process left behind that was killed before it could do so itself; once for each."""
        self._check_open()
        async with self._tidying:  # nobody may map a port anew that somebody else is about to remove
            records = [r for r in self.registry.left_behind() if r.record_id not in self._tidied]
            self._tidied.update(record.record_id for record in records)
            if records:
                await asyncio.gather(*(self._tidy(record) for record in records))

    async def _tidy(self, record: Record) -> None:
        mapping = record.mapping
        if mapping.protocol not in self._routers.protocols:
            return
        try:
            async with asyncio.timeout(_RELEASE_S + self._routers.timeout_s):
                way = await self._routers.way(mapping.protocol)
                if not _is_on(way, mapping):
                    return  # another network: its router will have to wait for us
                if mapping.protocol is not MappingProtocol.UPNP and mapping.internal.ip != way.local:
                    self.registry.forget(record)  # it goes with its lease: a host may ask for itself alone
                    return
                async with self._routers.turn(way):
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
        searches = 0
        attempt = Attempt(self._routers, previous.protocol if previous else None)
        while (way := await attempt.next_way()) is not None:
            try:
                return await self._ask(way, request, previous, keep=keep)
            except LostError as error:
                attempt.refused(way.protocol, error)
                searches += 1
                if searches <= _MOST_SEARCHES:
                    attempt = Attempt(self._routers, way.protocol)
            except NatToolsError as error:
                attempt.refused(way.protocol, error)
        raise attempt.failure()

    async def _ask(
        self, way: Way, request: MappingRequest, previous: PortMapping | None, *, keep: bool
    ) -> PortMapping:
        wanted = draft(way, request)
        known = self._known(wanted, request.external_port)
        if previous is None:
            self._check_unkept(wanted)
            if wanted.key in self._asked_for:
                raise MappingError(f"{_name(wanted)} is being asked for already: wait for that")
            previous = known.mapping if known else None
        if previous is not None and (previous.protocol, previous.gateway, previous.internal) == (
            way.protocol,
            way.gateway,
            wanted.internal,
        ):
            port = request.external_port or previous.external_port
            wanted = replace(previous, external_port=port, description=wanted.description)
        record = known or self.registry.new(wanted, kept=keep)
        self._asked_for.add(wanted.key)
        is_asked = False
        try:
            async with self._routers.turn(way):
                is_asked = True
                mapping = await way.acquire(request, wanted)
        except (MappingError, EncodeError):
            if known is None:
                self.registry.forget(record)
            raise
        except BaseException:  # a timeout or the caller's: the router may have made the mapping all the same
            if is_asked and not record.granted:
                self._unanswered[record.record_id] = record
            elif not is_asked and known is None:
                self.registry.forget(record)
            raise
        finally:
            self._asked_for.discard(wanted.key)
        self._unanswered.pop(record.record_id, None)
        if record.mapping.key != mapping.key or record.kept != keep:
            self.registry.forget(record)
            record = self.registry.new(mapping, kept=keep)
        record = self.registry.granted(record, mapping)
        self._hold(way, _Held(request, record), previous)
        return mapping

    def _hold(self, way: Way, held: _Held, previous: PortMapping | None) -> None:
        """Remember what was granted; what it replaces is removed, or is not there any more."""
        mapping = held.record.mapping
        for key in {mapping.key, mapping.key if previous is None else previous.key}:
            former = self._held.pop(key, None)
            if former is None or former.record.record_id == held.record.record_id:
                continue
            if former.record.mapping.gateway != mapping.gateway:
                continue  # another network: its router will have to wait for us
            if key != mapping.key:  # it leads to an address that this machine has no more
                self._spawn(self._tidy(former.record))
            elif former.record.mapping.protocol is not mapping.protocol:
                self.registry.forget(former.record)  # the same one, made by another protocol
        self._held[mapping.key] = held
        if held.record.kept:
            self._spawn(self._routers.watch(way, self._router_changed))

    def _check_unkept(self, wanted: PortMapping) -> None:
        """Raise `MappingError` where a process keeps it, by whatever protocol: removing one removes both."""
        for record in self.registry.records():
            same = (record.mapping.key, record.mapping.gateway) == (wanted.key, wanted.gateway)
            if same and record.kept and record.granted and is_running(record.owner):
                raise MappingError(
                    f"{_name(record.mapping)} is kept by process {record.owner.pid} already: end that, "
                    "or take another port"
                )

    def _known(self, wanted: PortMapping, external_port: int | None) -> Record | None:
        """The record of the same mapping, of which this client or another process has the nonce."""
        held = self._held.get(wanted.key)
        for record in [held.record] if held else []:
            if _is_same(record.mapping, wanted, external_port):
                return record
        for record in self.registry.records():
            if _is_same(record.mapping, wanted, external_port):
                return record
        return None

    async def _release(self, mapping: PortMapping, *, within_s: float | None = None) -> None:
        async with asyncio.timeout(within_s):
            way = await self._routers.way(mapping.protocol)
        if way.gateway != mapping.gateway:
            raise MappingError(
                f"{_name(mapping)} is on {mapping.gateway}, and the router here is {way.gateway}: "
                "connect this machine to that network"
            )
        try:
            async with self._routers.turn(way), asyncio.timeout(within_s):
                await way.release(mapping)
        except TimeoutError:
            self._routers.lose(way)  # nobody else need wait for it
            raise

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
        try:
            async with asyncio.TaskGroup() as group:
                for mapping in due:
                    self._renewals[mapping.key] = group.create_task(self._renew_due(mapping))
        finally:
            self._renewals.clear()

    async def _renew_due(self, mapping: PortMapping) -> None:
        held = self._held.get(mapping.key)
        if held is None:
            return
        try:
            renewed = await self._make(held.request, mapping, keep=True)
        except Exception as error:  # noqa: BLE001  a bug in one renewal must not end all that follow
            is_bug = not isinstance(error, NatToolsError)
            _LOG.log(
                logging.ERROR if is_bug else logging.INFO,
                "%s is not renewed: %s",
                _name(mapping),
                repr(error) if is_bug else error,
                exc_info=is_bug,
            )
            change = self._upkeep.failed(mapping.key, str(error), now=self._loop.time())
        else:
            change = self._upkeep.renewed(mapping.key, renewed, now=self._loop.time())
        self._report(change)

    def _router_changed(self, reason: str) -> None:
        now = self._loop.time()
        if now < self._news_at + _BETWEEN_NEWS_S:
            if self._late_news is None:
                self._late_news = self._loop.call_at(self._news_at + _BETWEEN_NEWS_S, self._news_late, reason)
            return
        _LOG.info("%s", reason)
        self._news_at = now
        self._upkeep.router_changed(reason, now=now)
        is_stuck = self._round is not None and now - self._round_since > _STUCK_S
        if self._round is not None and is_stuck and now > self._gave_up_at + _BETWEEN_GIVING_UP_S:
            self._gave_up_at = now
            self._round.cancel()  # it waits for a router that was not there
        self._wake.set()

    def _news_late(self, reason: str) -> None:
        self._late_news, self._news_at = None, float("-inf")
        self._router_changed(reason)

    def _report(self, change: MappingChange | None) -> None:
        if change is not None:
            self._changes.append(change)
            self._changed.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("the keeping of mappings has a bug: %r", error, exc_info=error)

    async def _close(self) -> None:
        self._is_closed = True
        self._changed.set()
        if self._late_news is not None:
            self._late_news.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._round is not None:
            await asyncio.wait([self._round])
        await asyncio.gather(*(self._release_at_end(mapping) for mapping in self._upkeep.mappings))
        await asyncio.gather(*(self._tidy_at_end(record) for record in self._unanswered.values()))
        await self._routers.close()

    async def _release_at_end(self, mapping: PortMapping) -> None:
        held = self._held[mapping.key]
        try:
            await self._release(mapping, within_s=_RELEASE_S)
        except (NatToolsError, TimeoutError) as error:
            _LOG.warning("%s is not removed, the next start will: %s", _name(mapping), error or "no answer")
        else:
            self.registry.forget(held.record)

    async def _tidy_at_end(self, record: Record) -> None:
        """Remove what was asked for and given up, unless the router did not answer: the next start will."""
        if self._routers.has(record.mapping.protocol):
            await self._tidy(record)

    def _check_open(self) -> None:
        if self._is_closed:
            raise MappingError("this mapping client is closed: open another")

    def _probes(self) -> Mapping[MappingProtocol, asyncio.Task[Way]]:
        self._check_open()
        return self._routers.probes()


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


def _is_same(mapping: PortMapping, wanted: PortMapping, external_port: int | None) -> bool:
    """Whether asking for one renews the other: by UPnP, several external ports may lead to one of ours."""
    is_renewal = mapping.protocol is not MappingProtocol.UPNP or external_port in (
        None,
        mapping.external_port,
    )
    return is_renewal and (mapping.key, mapping.protocol, mapping.gateway) == (
        wanted.key,
        wanted.protocol,
        wanted.gateway,
    )


async def _release_ungranted(way: Way, mapping: PortMapping) -> None:
    """Remove what a request made whose answer nobody read: a UPnP router may have chosen another port."""
    for entry in await way.entries() or []:
        if (entry.internal, entry.transport, entry.description) == (*mapping.key, mapping.description):
            await way.release(replace(mapping, external_port=entry.external_port))


def _name(mapping: PortMapping) -> str:
    return f"{mapping.transport.name.lower()} port {mapping.internal.port} ({mapping.protocol.value})"
