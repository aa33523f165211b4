"""What waits, when one socket has another public endpoint, for those behind the same NAT: they change too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from nattools.endpoint import Endpoint

SETTLE_S = 0.3
"""So long after the first change the others are waited for."""


class Checked(Protocol):
    """A socket whose public endpoint can be looked into."""

    def check(self) -> None:
        """Ask now whether it has changed."""


S = TypeVar("S", bound=Checked)


class Settling(Generic[S]):
    """Tells of the changes of several sockets at once, so that each call and registration is changed once."""

    def __init__(
        self, sockets: Callable[[], Iterable[S]], tell: Callable[[Mapping[S, Endpoint]], None]
    ) -> None:
        """`sockets` are all that there are; `tell` gets those that have moved, and where each was."""
        self._sockets = sockets
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: set[S] = set()
        self._moved: dict[S, Endpoint] = {}

    def changed(self, moved: S, was_at: Endpoint) -> None:
        """A socket was known by `was_at`. The others are looked into, and waited for, but not for long."""
        self._moved.setdefault(moved, was_at)
        if self._timer is None:
            self._awaited = set(self._sockets())
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._end)
            for other in self._awaited - {moved}:
                other.check()
        self._awaited.discard(moved)
        if not self._awaited:
            self._timer.cancel()
            self._end()

    def forget(self, *gone: S) -> None:
        """Wait no longer for sockets that are closed."""
        self._awaited.difference_update(gone)

    def cancel(self) -> None:
        """Tell of nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._timer = None
        moved, self._moved = self._moved, {}
        self._tell(moved)
