"""The connections of a small server: so many at once, each for one answer, and all gone at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Visits:
    """The connections that are open. `most` of them are answered at once; those beyond are closed unread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[object]] = set()
        self._has_ended = False

    @asynccontextmanager
    async def of(self, writer: asyncio.StreamWriter) -> AsyncIterator[bool]:
        """One connection, from its beginning to its end: whether it is to be answered.

        A peer that has gone, or does not take its answer (`OSError`, `TimeoutError`), ends it alone.
        """
        is_welcome = not self._has_ended and len(self._tasks) < self._most
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield is_welcome
        except asyncio.CancelledError:
            if not self._has_ended:  # else it is `end` that ends it; asyncio of Python 3.11 would complain
                raise
        except OSError:
            return
        finally:
            self._tasks.discard(task)
            with suppress(RuntimeError):  # the loop may be closing as well
                writer.transport.abort()

    def end(self) -> None:
        """End every connection, and answer no more."""
        self._has_ended = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Do as `end` does, and wait until they have ended."""
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def tell(writer: asyncio.StreamWriter, answer: bytes, *, within_s: float) -> None:
    """Give the answer, and end the connection once it is taken. Raises `TimeoutError` and `OSError`."""
    writer.write(answer)
    async with asyncio.timeout(within_s):
        await writer.drain()
        writer.close()
        await writer.wait_closed()
