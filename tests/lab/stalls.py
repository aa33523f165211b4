"""When this machine stood still: whoever took part in a laboratory was late then, and it was no fault."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_BEAT_S = 0.005
_PRESSURE = Path("/proc/pressure/cpu")
_MOST_SHORT_S = 10.0


def kept_waiting_s(process: int | None = None) -> float:
    """How long a process, or this one, could have run so far but for others; 0 where Linux does not tell.

    Of its first thread alone (/proc/PID/schedstat, in nanoseconds).
    """
    try:
        times = Path(f"/proc/{process or 'self'}/schedstat").read_text().split()
    except OSError:
        return 0.0
    return int(times[1]) / 1e9


class Since:
    """Time from now on, but for that in which a program of this machine waited for a processor.

    What is promised of a time is promised on a machine that has one to give. At most 10 s are taken off, and
    none where Linux does not count them.
    """

    def __init__(self) -> None:
        self._began_at, self._short_s = time.monotonic(), _short_of_processors_s()

    @property
    def short_s(self) -> float:
        """How much is taken off, so far."""
        return min(_short_of_processors_s() - self._short_s, _MOST_SHORT_S)

    def took_s(self, at: float | None = None) -> float:
        """How long it was until `at`, by `time.monotonic`, or until now."""
        return (time.monotonic() if at is None else at) - self._began_at - self.short_s


def _short_of_processors_s() -> float:
    try:
        some = _PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.partition("total=")[2]) / 1e6


class Stalls:
    """Watches, while a block lasts, whether a thread that has nothing to do is late by so much."""

    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        self._last: float | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    def since(self, moment: float) -> bool:
        """Whether there was one since then, by `time.monotonic`."""
        return self._last is not None and self._last >= moment

    def _beat(self) -> None:
        before = time.monotonic()
        while not self._ends.wait(_BEAT_S):
            now = time.monotonic()
            if now - before > _BEAT_S + self._late_s:
                self._last = now
            before = now
