"""Coroutines that are run at once as far as they come without waiting: most decisions never wait."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


def begin(coroutine: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Run `coroutine` until it waits; what is left of it, which wants a task, or None where it has ended.

    Raises what it raises. Until its first wait there is no current task, so it must not use `asyncio.timeout`
    before that; another task that it awaits may.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _finish(_Rest(coroutine, waits_for))


async def _finish(rest: _Rest) -> None:
    await rest


class _Rest:
    """A coroutine that waits for something already."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - a cancellation, too, is the coroutine's to see
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(sent)
        except StopIteration:
            return
