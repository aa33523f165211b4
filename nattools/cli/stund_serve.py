"""How stund runs: a server for each family, their limits and metrics, until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from nattools.cli.event_loop import allow_many_files, hear_no_more, service_runner
from nattools.cli.stund_equipment import Equipment
from nattools.cli.stund_text import Fields, start_fields, start_line, stop_fields
from nattools.errors import DecodeError, LocalAddressError
from nattools.net.listener import has_address
from nattools.net.service_manager import tell_ready
from nattools.stun.connections import ConnectionCounts
from nattools.stun.counts import Counts
from nattools.stun.limiter import BYTES_OF_BUCKETS, Limiter, Limits
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import AnswerOther, ServerOptions, StunServer
from nattools.stun.settings import WORDS, StundSettings
from nattools.stun.uri import TLS_PORT

if TYPE_CHECKING:
    from nattools.cli.stund_metrics import StundState
    from nattools.cli.stund_workers import Worker
    from nattools.sip.reflector import Reflector

_CHANGE_AT_ONCE = frozenset(
    {"limits", "most_connections", "connections_per_source", "idle_s", "users", "credentials", "realm"}
)
_PAUSE_S = 0.5
_PORT_ATTEMPTS = 16

Reread = Callable[[], StundSettings]
"""Reads the settings again, from where they came from. Raises `DecodeError`."""

_log = logging.getLogger("nattools.stund")


def run(settings: StundSettings, equipment: Equipment, reread: Reread) -> None:
    """Serve until a signal comes. Raises `LocalAddressError` where an address or port cannot be had."""
    with _hangups_waiting():
        _run(settings, equipment, reread)


def _run(settings: StundSettings, equipment: Equipment, reread: Reread) -> None:
    allow_many_files()  # each connection has one
    _interrupt_nobody()
    limiter = _new_limiter(settings.limits, is_shared=settings.workers > 1)
    connections = ConnectionCounts(settings.connection_limits)
    reload = _Reload(settings, equipment, limiter, connections, reread)
    families = settings.families
    if not settings.addresses:
        families = tuple(filter(_is_spoken_here, families)) or families
    if settings.workers > 1:
        _run_several(_Stund(settings, equipment, limiter, connections), families, reload)
    else:
        with service_runner() as runner:
            runner.run(_Stund(settings, equipment, limiter, connections).serve(families, reload))


def _run_several(stund: _Stund, families: Sequence[ServerAddresses], reload: _Reload) -> None:
    """Serve by several processes, once this one has found that all addresses and ports can be had."""
    from nattools.cli.stund_workers import run_workers

    with service_runner() as runner:
        found, line, fields = runner.run(stund.try_out(families))

    def serve(worker: Worker) -> None:
        reload.is_quiet = True  # the supervisor has said it already
        with service_runner() as runner:
            runner.run(stund.of(worker).serve(found, reload))

    tally = run_workers(
        stund.settings.workers, serve, on_up=lambda: _announce(line, fields), on_hangup=reload
    )
    counts = tally.counts
    _log.info("stopped: %s", counts.summary(), extra=stop_fields(counts))


def _interrupt_nobody() -> None:
    """Have what else runs on a core go on when a datagram comes, for as long as the system sees fit.

    More of them have come by then. Where two workers share their cores with other programs that is a sixth
    to a third more replies, and a lone request waits no longer (bench/README.md). Who has given stund another
    policy keeps it.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # what confines this process may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _is_spoken_here(family: ServerAddresses) -> bool:
    """Whether this machine has the family at all: then it has its loopback address.

    The unspecified one can be had on Linux even where IPv6 is turned off, as it is in most containers.
    """
    return has_address(ip_address("::1" if family.address.version == 6 else "127.0.0.1"))


def _announce(line: str, fields: Fields) -> None:
    _log.info("%s", line, extra=fields)
    tell_ready(line)


class _Stund:
    """What one process serves, as the only one or as one of several."""

    def __init__(
        self,
        settings: StundSettings,
        equipment: Equipment,
        limiter: Limiter,
        connections: ConnectionCounts,
        worker: Worker | None = None,
    ) -> None:
        self.settings = settings
        self.equipment = equipment
        self.limiter = limiter
        self._connections = connections
        self._worker = worker
        self._counts = Counts() if worker is None else worker.counts
        self._servers: Sequence[StunServer] = ()
        self._reflector = _new_reflector() if settings.sip_reflector else None
        limiter.judged = self._counts.judged

    def of(self, worker: Worker) -> _Stund:
        """The same for one of several processes."""
        return _Stund(self.settings, self.equipment, self.limiter, self._connections, worker)

    async def try_out(self, families: Sequence[ServerAddresses]) -> tuple[list[ServerAddresses], str, Fields]:
        """Where several processes are to serve, with the ports that are free, and the start line."""
        async with self._bound(families), self._metrics():
            addresses = [server.addresses for server in self._servers]
            return addresses, start_line(self._servers, self.settings), start_fields(self._servers)

    async def serve(self, families: Sequence[ServerAddresses], reload: _Reload) -> None:
        """Serve until a signal comes."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        _stop_on_signals(loop, stop)
        async with self._bound(families), self._metrics():
            if sys.platform != "win32":
                loop.add_signal_handler(signal.SIGHUP, reload)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
            if self.equipment.identity is not None:
                self.equipment.identity.assume()
            if self._worker is not None:
                self._worker.watch(stop.set)
                self._worker.up()
            else:
                _announce(start_line(self._servers, self.settings), start_fields(self._servers))
            while not stop.is_set():
                self._note()
                # Windows does not wake a waiting loop for a signal
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _PAUSE_S)
            hear_no_more()
        self._note()
        if self._worker is None:
            reflected = "" if self._reflector is None else f"; {self._reflector.summary()}"
            _log.info("stopped: %s%s", self._counts.summary(), reflected, extra=stop_fields(self._counts))

    def _note(self) -> None:
        """Count what only the system knows."""
        self._counts.overrun_is(sum(server.overrun for server in self._servers))

    @asynccontextmanager
    async def _bound(self, families: Sequence[ServerAddresses]) -> AsyncIterator[None]:
        """The servers of all families, all at the same ports, as long as stund runs."""
        is_any_port = 0 in (self.settings.port, self.settings.alternate_port, *self.settings.more_ports)
        for attempt in range(_PORT_ATTEMPTS):
            async with AsyncExitStack() as stack:
                try:
                    self._servers = ()
                    for family in families:
                        server = await self._start(family)
                        await stack.enter_async_context(server)
                        self._servers = (*self._servers, server)
                except LocalAddressError:
                    if is_any_port and len(self._servers) and attempt + 1 < _PORT_ATTEMPTS:
                        continue  # the port that was free in one family was not in the other
                    raise
                yield
                return

    async def _start(self, family: ServerAddresses) -> StunServer:
        settings, more_ports = self.settings, self.settings.more_ports
        if self._servers:
            first, more_ports = self._servers[0].addresses, self._servers[0].more_ports
            family = replace(
                family,
                port=family.port or first.port,
                alternate_port=first.alternate_port if family.alternate_port == 0 else family.alternate_port,
            )
        version = family.address.version
        options = ServerOptions(
            more_ports=more_ports,
            answer_other=None if self._reflector is None else _reflection_of(self._reflector),
            limiter=self.limiter,
            accounts=self.equipment.users,
            reflector_ports=settings.reflector_ports,
            advertise={own: told for own, told in settings.advertise.items() if own.version == version},
            reuse_port=self._worker is not None,
            link=self.equipment.link_of(family.address),
            certificate=self.equipment.certificate,
            tls_port=settings.tls_port or TLS_PORT,
            secrets=self.equipment.secrets,
            connections=self._connections,
            counts=self._counts,
        )
        return await StunServer.start(family, options)

    @asynccontextmanager
    async def _metrics(self) -> AsyncIterator[None]:
        """The metrics, where they are wanted; of several processes the first has them."""
        if self.settings.metrics is None or (self._worker is not None and self._worker.number != 0):
            yield
            return
        from nattools.cli.stund_metrics import serve_metrics  # with prometheus-client

        server = await serve_metrics(self.settings.metrics, self._state, self._ailments)
        try:
            yield
        finally:
            await server.close()

    def _state(self) -> StundState:
        """What metrics show."""
        from nattools.cli.stund_metrics import Link, Processes, StundState

        self._note()
        counts, processes, now = self._counts, Processes(), time.monotonic()
        if self._worker is not None:
            tally = self._worker.tally
            counts = tally.counts
            processes = Processes(self.settings.workers, tally.serving, tally.restarts)
        return StundState(
            [server.addresses for server in self._servers],
            counts,
            self.limiter.empty(now=now),
            self.limiter.buckets,
            processes,
            [
                Link(it.hosts.own.version, it.is_up(now=now), it.handed_over, it.taken_over, it.dropped)
                for it in self.equipment.links
            ],
        )

    def _ailments(self) -> Iterator[str]:
        """Why not all can be served that the start line says."""
        if self._worker is not None and self._worker.tally.serving < self.settings.workers:
            yield f"{self._worker.tally.serving} of {self.settings.workers} processes serve"
        own = {endpoint.ip for server in self._servers for endpoint in server.addresses.endpoints}
        for ip in sorted(own, key=str):
            if not has_address(ip):
                yield f"{ip} is no address of this machine now"


def _new_limiter(limits: Limits, *, is_shared: bool) -> Limiter:
    """A limiter for this process, or one for all that are forked from it."""
    memory = memoryview(mmap.mmap(-1, BYTES_OF_BUCKETS)) if is_shared else None
    # numpy starts a thread for each processor, to multiply matrices; each would take signals, too
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from nattools.stun.batch_limiter import BatchLimiter
    except ImportError:  # no numpy
        return Limiter(limits, entropy=secrets.token_bytes, memory=memory)
    return BatchLimiter(limits, entropy=secrets.token_bytes, memory=memory)


def _new_reflector() -> Reflector:
    from nattools.sip.reflector import Reflector  # with all of SIP; most servers need none of it

    return Reflector(entropy=secrets.token_bytes)


def _reflection_of(reflector: Reflector) -> AnswerOther:
    return lambda data, source: reflector.answer(data, source, now=time.monotonic())


class _Reload:
    """What SIGHUP does: settings, users and certificate are read again, and no socket is touched."""

    def __init__(
        self,
        settings: StundSettings,
        equipment: Equipment,
        limiter: Limiter,
        connections: ConnectionCounts,
        reread: Reread,
    ) -> None:
        self._settings = settings
        self._users = equipment.users
        self._certificate = equipment.certificate
        self._limiter = limiter
        self._connections = connections
        self._reread = reread
        self.is_quiet = False
        """Whether only what is wrong is worth a line."""

    def __call__(self) -> bool:
        """Take what can be taken. What is wrong anywhere leaves all as it was, and False is returned."""
        try:
            settings = self._reread()
            accounts = None
            if self._users is not None and settings.users is not None:
                accounts = self._users.read(settings)
            if self._certificate is not None:
                self._certificate.reload()
        except DecodeError as error:
            _log.error("all stays as it was: %s", error)
            return False
        later = sorted(self._not_at_once(settings))
        if self._users is not None and accounts is not None:
            self._users.become(accounts)
        if settings.limits != self._limiter.limits:
            self._limiter.become(settings.limits)
        self._connections.limits = settings.connection_limits
        if not self.is_quiet:
            anew = f"; for {', '.join(later)} start stund anew" if later else ""
            _log.info("the settings were read again%s", anew)
        return True

    def _not_at_once(self, settings: StundSettings) -> Iterator[str]:
        for name in WORDS:
            is_other = getattr(settings, name) != getattr(self._settings, name)
            if is_other and name not in _CHANGE_AT_ONCE:
                yield name
        if (settings.users is None) is not (self._users is None):
            yield "users"


@contextlib.contextmanager
def _hangups_waiting() -> Iterator[None]:
    """Have SIGHUP wait for who can hear it: a process that does not yet, as a new worker, would end by it."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    try:
        yield
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
