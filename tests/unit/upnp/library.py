"""A binding in the place of the library miniupnpc, and the connection that is found by it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TypeVar

import pytest

from nattools.upnp.miniupnpc import Binding, LibraryConnection, discover

T = TypeVar("T")

PATIENCE_S = 10.0

Install = Callable[[Binding], dict[str, object]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a binding in the library's place; gives what it is made with."""

    def put(binding: Binding) -> dict[str, object]:
        made_with: dict[str, object] = {}

        def make(**arguments: object) -> Binding:
            made_with.update(arguments)
            return binding

        monkeypatch.setitem(sys.modules, "miniupnpc", SimpleNamespace(UPnP=make))
        return made_with

    return put


def run(work: Coroutine[object, object, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(2 * PATIENCE_S):
            return await work

    return asyncio.run(bounded())


@asynccontextmanager
async def opened() -> AsyncIterator[LibraryConnection]:
    """The connection that is found; afterwards its thread is gone."""
    [connection] = await discover()
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.to_thread(threads_end)


def threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "miniupnpc":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
