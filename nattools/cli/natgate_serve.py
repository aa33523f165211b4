"""The running of natgate: from the first socket to the last call."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

from nattools import __version__
from nattools.cli.event_loop import allow_many_files, hear_no_more, service_runner
from nattools.endpoint import AddressClass
from nattools.errors import DecodeError, LocalAddressError, NatToolsError
from nattools.net.http_server import HttpServer
from nattools.net.unix import DocumentSocket
from nattools.session.controller.status_socket import open_status_socket, usual_paths
from nattools.session.controller.users_file import read_users
from nattools.session.controller.wires import certificate_of
from nattools.session.flows import Listener
from nattools.session.server import SessionServer
from nattools.session.settings import EngineName, GateMode, GateSettings
from nattools.session.status import GateStatus

_MOMENT_S = 0.05
_NEVER = 1_000_000_000
_COLLECT_EVERY_S = 60.0
_COLLECT_AT_LAST_S = 6 * 3600.0
_SOCKETS_PER_STREAM = 4
_NOT_FROM_OUTSIDE = frozenset(
    {AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL}
)

_log = logging.getLogger("nattools.natgate")


def run(settings: GateSettings) -> None:
    """Serve until a signal ends it. Raises `NatToolsError` for what keeps it from that."""
    allow_many_files()  # each stream has four sockets
    with service_runner() as runner:
        runner.run(_serve(settings))


def check_files(settings: GateSettings) -> None:
    """See whether the files that settings name are what they should be. Raises `DecodeError`."""
    if settings.users is not None:
        read_users(settings.users)
    certificate_of(settings)


async def _serve(settings: GateSettings) -> None:
    signals = _Signals(asyncio.get_running_loop())
    async with await SessionServer.start(settings) as server, _tellers(settings, server), _no_pauses(server):
        signals.on_hangup = lambda: _reload(settings, server)
        _log.info("%s", start_line(settings, server.listeners))
        await signals.ended()
        await _drain(settings, server, signals)
        hear_no_more()
    _log.info("stopped")


async def _drain(settings: GateSettings, server: SessionServer, signals: _Signals) -> None:
    """Let calls end, unless a second signal comes."""
    draining = asyncio.ensure_future(server.drain(settings.drain_s))
    again = asyncio.ensure_future(signals.ended())
    try:
        done, _ = await asyncio.wait((draining,), timeout=_MOMENT_S)
        if not done:
            _log.info(
                "ending: no calls begin any more; those that go on have %g s, unless a second signal ends "
                "them now",
                settings.drain_s,
            )
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (draining, again):
            task.cancel()
        await asyncio.gather(draining, again, return_exceptions=True)


@asynccontextmanager
async def _tellers(settings: GateSettings, server: SessionServer) -> AsyncIterator[None]:
    """The status socket and the metrics, as long as natgate runs."""
    opened: list[DocumentSocket | HttpServer] = []

    async def tell() -> GateStatus:
        return replace(await server.status(), version=__version__)

    try:
        if settings.metrics is not None:
            try:
                from nattools.session.controller.metrics import serve_metrics
            except ImportError as error:
                raise DecodeError(
                    "--metrics needs prometheus-client: pip install 'nattools[server]'"
                ) from error
            opened.append(await serve_metrics(settings.metrics, tell))
        try:
            path = settings.status or usual_paths(os.environ)[0]
            opened.append(await open_status_socket(path, tell))
        except LocalAddressError as error:
            if settings.status is not None:
                raise
            _log.warning("natgate status has nobody to ask: %s", error)  # calls go on all the same
        yield
    finally:
        for each in opened:
            await each.close()


@asynccontextmanager
async def _no_pauses(server: SessionServer) -> AsyncIterator[None]:
    """Have Python look for garbage among all objects only while nobody talks.

    What thousands of calls leave for half a minute takes it 0.3 s to look through, and no RTP is relayed
    meanwhile. Calls leave nothing that only it could find; this is for what is not foreseen.
    """
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], _NEVER)
    collecting = asyncio.ensure_future(_collect(server))
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _collect(server: SessionServer) -> None:
    waited_s = 0.0
    while True:
        await asyncio.sleep(_COLLECT_EVERY_S)
        waited_s += _COLLECT_EVERY_S
        if server.is_idle or waited_s >= _COLLECT_AT_LAST_S:
            gc.collect()
            waited_s = 0.0


class _Signals:
    """The signals that end natgate, each once, and the one that has it read files again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.on_hangup: Callable[[], None] | None = None
        self._came: asyncio.Queue[None] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came.put_nowait, None)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)

    async def ended(self) -> None:
        """Wait for the next signal that is to end it."""
        await self._came.get()

    def _hangup(self) -> None:
        if self.on_hangup is not None:
            self.on_hangup()


def _reload(settings: GateSettings, server: SessionServer) -> None:
    read = [
        f"the {what} from {path}"
        for what, path in (("users", settings.users), ("certificate", settings.certificate))
        if path is not None
    ]
    if not read:
        _log.info("there is no file of users and no certificate to read again")
        return
    try:
        server.reload()
    except (NatToolsError, OSError) as error:
        _log.error("all stays as it was: %s", error)
    else:
        _log.info("read again: %s", ", ".join(read))


def start_line(settings: GateSettings, listeners: Iterable[Listener]) -> str:
    """What is served, and what is not, in one line."""
    listeners = tuple(listeners)
    places: dict[str, list[str]] = {}
    for listener in listeners:
        place = str(listener.local)
        if listener.advertised is not None and listener.advertised != listener.local:
            place += f" (told as {listener.advertised})"
        places.setdefault(place, []).append(listener.transport)
    served = ", ".join(f"{place} ({' and '.join(names)})" for place, names in places.items())
    first, last = settings.rtp_ports
    parts = [f"serving SIP on {served}", _role(settings)]
    if settings.engine is EngineName.RTPENGINE:
        parts.append(f"media by rtpengine at {settings.rtpengine}")
    else:
        streams = (last - first + 1) // _SOCKETS_PER_STREAM
        parts.append(f"media by {settings.engine}, UDP ports {first}-{last}, {streams} streams at most")
    if settings.metrics is not None:
        parts.append(f"metrics at http://{settings.metrics}/metrics")
    parts += _limits(settings, listeners)
    return "; ".join(parts)


def _role(settings: GateSettings) -> str:
    if settings.mode is GateMode.REGISTRAR:
        return f"registrar of {', '.join(settings.domains) or 'these addresses'}, users from {settings.users}"
    if settings.mode is GateMode.UPSTREAM:
        return f"in front of {settings.upstream}"
    return "beside the phones" + (f", calls by {settings.upstream}" if settings.upstream else "")


def _limits(settings: GateSettings, listeners: Iterable[Listener]) -> Iterable[str]:
    """What it cannot do as it stands."""
    if settings.mode is GateMode.ALG:
        return
    if all(listener.public.address_class in _NOT_FROM_OUTSIDE for listener in listeners):
        yield "phones of the internet cannot come to these addresses; --advertise names a public one"
    if settings.certificate is None:
        yield "no TLS without --certificate and --key"
    if settings.store == "memory":
        yield "registrations end with the process, unless --store keeps them"
