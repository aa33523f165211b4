"""A public binding that is held until it is let go, whoever asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from nattools.binding.client import LiveBinding
from nattools.binding.model import PublicBinding
from nattools.errors import BindingError, NatToolsError

_log = logging.getLogger(__name__)

OnChange = Callable[["KeptBinding", PublicBinding], None]


class KeptBinding:
    """One of a keeper's bindings, held by a task of its own."""

    def __init__(
        self,
        enter: Callable[[], AbstractAsyncContextManager[LiveBinding]],
        *,
        on_change: OnChange,
    ) -> None:
        """`enter` makes the binding; `on_change(self, former)` is called when it has become another one.

        While it is lost, `binding` is the last one: it is still the best guess.
        """
        self.live: LiveBinding | None = None
        self.binding: PublicBinding | None = None
        self._enter = enter
        self._on_change = on_change
        self._is_settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold())

    async def acquired(self) -> PublicBinding:
        """Wait for the public endpoint. Raises `BindingError` where there is none to be had."""
        await asyncio.shield(self._is_settled)
        if self.binding is None:
            raise BindingError("the binding was let go before it was there")
        return self.binding

    def check(self) -> None:
        """Ask now whether it has changed, once it is there."""
        if self.live is not None:
            self.live.check()

    async def close(self) -> None:
        """Let it go; a second time it does nothing."""
        if self.live is None:
            self._task.cancel()
        else:
            self.live.close()  # so that nothing more changes, and the task ends by itself
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self) -> None:
        try:
            async with self._enter() as live:
                self.live, self.binding = live, live.snapshot
                changes = live.changes()
                self._settle(None)
                async for change in changes:
                    former, self.binding = self.binding, change.binding or self.binding
                    if former is not None and self.binding is not None and _moved(former, self.binding):
                        self._on_change(self, former)
        except NatToolsError as error:
            self._settle(error)
        finally:
            self._settle(None)

    def _settle(self, error: NatToolsError | None) -> None:
        if self._is_settled.done():
            if error is not None:
                _log.warning("a public endpoint is not kept any more: %s", error)
        elif error is None:
            self._is_settled.set_result(None)
        else:
            self._is_settled.set_exception(error)
            self._is_settled.exception()  # whoever waits is told; perhaps nobody does


def _moved(former: PublicBinding, now: PublicBinding) -> bool:
    return (former.public, former.local) != (now.public, now.local)
