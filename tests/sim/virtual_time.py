"""An event loop whose time passes only while nobody has anything to do, over the real sockets of loopback.

What was sent on loopback is there at once, so that hours of timers pass in seconds, and none is early.
"""

from __future__ import annotations

import asyncio
import selectors

_BEGIN_S = 10_000.0


class _Skipping(selectors.DefaultSelector):
    """A selector that does not wait: where nothing is ready the time is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _BEGIN_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("nobody has anything to do, and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. Threads must not be used in it: it does not wait for them."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._skipping.now
