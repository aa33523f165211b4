"""`natmap add --keep`: hold one mapping until a signal comes, tell what becomes of it, remove it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from datetime import datetime

from nattools.cli import natmap_text, output
from nattools.errors import NatToolsError, NoResponseError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingRequest, PortMapping
from nattools.mapping.upkeep import ChangeKind, MappingChange

_LAST_ANSWER_S = 0.3
"""How long a request under way may take once natmap is told to stop: what it makes can then be removed."""
_RELEASE_S = 2.5
_POLL_S = 0.5 if sys.platform == "win32" else None  # Windows does not wake a waiting loop for a signal


class StoppedEarlyError(Exception):
    """A signal came before there was a mapping."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


async def keep_until_stopped(client: MappingClient, request: MappingRequest, *, as_json: bool) -> PortMapping:
    """Make the mapping, keep and show it until a signal, remove it; gives it as it last was.

    Raises `StoppedEarlyError`, what `MappingClient.acquire` does, and what keeps it from being removed.
    """
    stopped = _stop_signal()
    acquiring = asyncio.ensure_future(client.acquire(request))
    await _first(acquiring, stopped)
    if stopped.done():
        await asyncio.wait([acquiring], timeout=_LAST_ANSWER_S)
        await _end(acquiring)
        raise StoppedEarlyError(stopped.result())
    teller = _Teller(acquiring.result(), as_json=as_json)
    reading = asyncio.ensure_future(_read(client, teller))
    await _first(reading, stopped)
    if not stopped.done():
        reading.result()  # nobody reads the output any more
    await _end(reading)
    await _release(client, teller)
    return teller.mapping


async def _read(client: MappingClient, teller: _Teller) -> None:
    async for change in client.changes():
        teller.changed(change)


async def _release(client: MappingClient, teller: _Teller) -> None:
    try:
        async with asyncio.timeout(_RELEASE_S):
            await client.release(teller.mapping)
    except TimeoutError as error:
        teller.event("not-removed", "not removed, the next natmap will: no answer", reason="no answer")
        raise NoResponseError(
            f"{natmap_text.mapping_line(teller.mapping)} is not removed, for the router did not answer in "
            f"{_RELEASE_S:g} s: the next natmap does, or its lease ends"
        ) from error
    except NatToolsError as error:
        teller.event("not-removed", f"not removed, the next natmap will: {error}", reason=str(error))
        raise
    teller.event("removed", f"removed {natmap_text.mapping_line(teller.mapping)}")


class _Teller:
    """Says on stdout what becomes of the mapping, a line each time."""

    def __init__(self, mapping: PortMapping, *, as_json: bool) -> None:
        self.mapping = mapping
        self._as_json = as_json
        if as_json:
            self.event("mapped", "")
        else:
            natmap_text.show_mapping(mapping, kept=True)
        natmap_text.warn_unless_public(mapping.external_address)

    def changed(self, change: MappingChange) -> None:
        """One change."""
        self.mapping = change.mapping
        former = change.previous.external
        self.event(
            change.kind.value,
            natmap_text.change_line(change),
            reason=change.reason,
            previous=None if former is None else str(former),
            is_there=change.kind is not ChangeKind.LOST,
        )
        if change.mapping.external_address != change.previous.external_address:
            natmap_text.warn_unless_public(change.mapping.external_address)

    def event(self, name: str, line: str, *, is_there: bool = True, **more: object) -> None:
        """One line: the time and what happened, or a JSON document. What is not there is not public."""
        now = datetime.now().astimezone()
        if not self._as_json:
            print(f"{now:%Y-%m-%d %H:%M:%S}  {line}", flush=True)
            return
        document = natmap_text.mapping_document(self.mapping)
        output.print_json_line(
            {
                "schema": 1,
                "event": name,
                "time": now.isoformat(timespec="milliseconds"),
                **more,
                "mapping": document | ({} if is_there else {"public": False}),
            }
        )


def _stop_signal() -> asyncio.Future[int]:
    """Done with the number of the first signal that tells natmap to stop."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) is signal.SIG_IGN:  # nohup, or a shell's background job
            continue
        try:
            loop.add_signal_handler(number, stop, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(stop, number))
    return stopped


async def _first(*futures: asyncio.Future[PortMapping] | asyncio.Future[None] | asyncio.Future[int]) -> None:
    waiting: Sequence[asyncio.Future[object]] = futures  # type: ignore[assignment]  # Future is invariant
    while not any(future.done() for future in waiting):
        await asyncio.wait(waiting, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)


async def _end(future: asyncio.Future[PortMapping] | asyncio.Future[None]) -> None:
    """End it, whatever became of it."""
    future.cancel()
    await asyncio.wait([future])
    if not future.cancelled():
        future.exception()
