"""Several processes of one `stund` over the same ports (SO_REUSEPORT), and the one that looks after them.

Linux gives each client to one of the processes, by its address and port. Where one dies its sockets are gone
at once, and its clients are the others' until a new one has them: what is lost is what it had received and
not answered. Nothing else is kept in a worker that a client could miss.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from nattools.errors import TransportError
from nattools.stun.counts import CELLS, Counts

STOP_SECONDS = 5.0
"""A worker that has not stopped by then is killed."""

_SHORT_LIFE_S = 1.0
_FIRST_DELAY_S = 0.1  # before the next life of a worker whose last was short; doubled each time
_LONGEST_DELAY_S = 5.0
_CELL_BYTES = 8
_STOPPING = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("nattools.stund")


class WorkersError(TransportError):
    """Workers cannot be had on this system, or one of them could not begin to serve."""


class Tally:
    """What all workers did together, in memory that they share; what a dead one did stays in it."""

    def __init__(self, workers: int) -> None:
        cells = memoryview(mmap.mmap(-1, _CELL_BYTES * (workers * (CELLS + 1) + 1))).cast("q")
        self._rows = [cells[start : start + CELLS] for start in range(0, workers * CELLS, CELLS)]
        self._is_serving = cells[workers * CELLS : -1]
        self._restarts = cells[-1:]

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return Counts.total(self._rows)

    @property
    def serving(self) -> int:
        """How many workers serve now."""
        return sum(self._is_serving)

    @property
    def restarts(self) -> int:
        """How often a worker had died and was started again."""
        return self._restarts[0]

    def count_restart(self) -> None:
        """One more; only the supervisor counts."""
        self._restarts[0] += 1

    def set_serving(self, worker: int, *, is_serving: bool) -> None:
        """Whether a worker serves now; only the supervisor says so."""
        self._is_serving[worker] = is_serving

    def row(self, worker: int) -> memoryview:
        """The numbers of one worker, which only that one writes."""
        return self._rows[worker]


class Worker:
    """What one process knows of the others, and tells them. `run_workers` makes it."""

    def __init__(self, number: int, tally: Tally, lifeline: int, ready: int) -> None:
        self.number = number
        """From 0 on; the same in its next life."""
        self.tally = tally
        """What all of them did."""
        self.counts = Counts(tally.row(number))
        """For this one to count in."""
        self._lifeline = lifeline
        self._ready = ready

    def up(self) -> None:
        """Say that this one serves."""
        with suppress(BrokenPipeError):  # the supervisor has died
            os.write(self._ready, bytes((self.number,)))

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Have the running loop call `on_gone`, once, when the supervisor has died."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._lifeline)
            on_gone()

        loop.add_reader(self._lifeline, gone)


def run_workers(
    count: int,
    serve: Callable[[Worker], None],
    *,
    on_up: Callable[[], None],
    on_hangup: Callable[[], bool],
) -> Tally:
    """Run `serve` in `count` processes until SIGTERM or SIGINT stops them all; they must obey these, too.

    Each calls `Worker.up` when it serves; after the last `on_up` is called here, once. From then on a worker
    that ends is started again, at once, or if it lived for less than a second ever later, up to 5 s. SIGHUP
    calls `on_hangup` here, and is passed on to all where that is true. Once all have ended no signal changes
    anything any more: whoever calls this ends, too. No event loop may be running, nor any thread.
    Raises `WorkersError` where the system has no such workers, and where one ends before all are up.
    """
    if sys.platform != "linux":
        raise WorkersError("several workers need Linux, which shares clients out among them; leave it at one")
    return _Supervisor(count, serve, on_up, on_hangup).run()


class _Supervisor:
    def __init__(
        self,
        count: int,
        serve: Callable[[Worker], None],
        on_up: Callable[[], None],
        on_hangup: Callable[[], bool],
    ) -> None:
        self._serve = serve
        self._on_up = on_up
        self._on_hangup = on_hangup
        self._tally = Tally(count)
        self._not_up = set(range(count))
        self._is_complete = False
        self._is_stopping = False
        self._failed = ""
        self._kill_at: float | None = None
        self._numbers: dict[int, int] = {}  # of the workers that live, by process
        self._born_at: dict[int, float] = {}  # by number
        self._delays_s: dict[int, float] = {}
        self._due_at: dict[int, float] = dict.fromkeys(range(count), 0.0)  # when one is to be started
        self._signals = {*_STOPPING, signal.SIGHUP, signal.SIGCHLD, signal.SIGIO}
        self._lifeline, self._lifeline_end = os.pipe()  # which closes when this process dies
        self._ready, self._ready_end = os.pipe()
        # SIGIO comes from the kernel: a worker that is another user by then may not send a signal itself
        fcntl.fcntl(self._ready, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._ready, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    def run(self) -> Tally:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            while not self._is_stopping or self._numbers:
                self._start_due()
                self._take(signal.sigtimedwait(self._signals, self._seconds_to_wait()))
            if self._failed:
                raise WorkersError(f"the workers were stopped: {self._failed}")
        finally:
            self._signal(signal.SIGKILL)  # only where something went wrong here is any left
            for process in self._numbers:
                os.waitpid(process, 0)
            for end in (self._lifeline, self._lifeline_end, self._ready, self._ready_end):
                os.close(end)
        return self._tally

    def _seconds_to_wait(self) -> float:
        wanted = [*self._due_at.values()] if not self._is_stopping else []
        if self._kill_at is not None:
            wanted.append(self._kill_at)
        return max(0.0, min(wanted, default=time.monotonic() + 60.0) - time.monotonic())

    def _take(self, received: signal.struct_siginfo | None) -> None:
        if received is not None and received.si_signo in _STOPPING:
            self._stop()
        elif received is not None and received.si_signo == signal.SIGHUP and self._on_hangup():
            self._signal(signal.SIGHUP)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)
        self._welcome()
        self._bury()

    def _stop(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._kill_at = time.monotonic() + STOP_SECONDS
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._numbers:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _welcome(self) -> None:
        """See which workers have come up since the last time."""
        with suppress(BlockingIOError):
            for number in os.read(self._ready, 4096):
                self._not_up.discard(number)
                self._tally.set_serving(number, is_serving=True)
        if not self._not_up and not self._is_complete and not self._is_stopping:
            self._is_complete = True
            self._on_up()

    def _bury(self) -> None:
        """See which workers have died, and when they are to be started again."""
        for process, status in _dead():
            number = self._numbers.pop(process, None)
            if number is None:
                continue
            self._tally.set_serving(number, is_serving=False)
            if self._is_stopping:
                continue
            end = _end(status)
            if not self._is_complete:
                self._failed = f"worker {number + 1} of {len(self._born_at)} {end} before all of them served"
                self._stop()
                continue
            now = time.monotonic()
            lived_s = now - self._born_at[number]
            last_s = self._delays_s.get(number, 0.0)
            delay_s = 0.0 if lived_s >= _SHORT_LIFE_S else min(last_s * 2 or _FIRST_DELAY_S, _LONGEST_DELAY_S)
            self._delays_s[number] = delay_s
            self._due_at[number] = now + delay_s
            again = f"is started again in {delay_s:g} s" if delay_s else "is started again"
            _log.warning("worker %d (process %d) %s and %s", number + 1, process, end, again)

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, due_at in self._due_at.items() if due_at <= now]:
            if self._is_stopping:
                return
            del self._due_at[number]
            if self._is_complete:
                self._tally.count_restart()
            self._born_at[number] = now
            process = os.fork()
            if process == 0:
                self._live(number)
            self._numbers[process] = number

    def _live(self, number: int) -> None:
        """All that a worker does; it never comes back from here."""
        code = 1
        try:
            os.close(self._lifeline_end)
            os.close(self._ready)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._serve(Worker(number, self._tally, self._lifeline, self._ready_end))
            code = 0
        except KeyboardInterrupt:  # SIGINT so early that nothing was served yet
            code = 0
        except TransportError as error:
            _log.error("worker %d: %s", number + 1, error)
        except BaseException as error:  # noqa: BLE001 - whatever it is: one line, and another life
            _log.error("worker %d: %s: %s", number + 1, type(error).__name__, error)
        finally:
            with suppress(AttributeError, OSError, ValueError):  # Python has None for a stderr that is closed
                sys.stderr.flush()
            os._exit(code)  # what the supervisor has open is not this one's to tidy up


def _dead() -> Iterable[tuple[int, int]]:
    """Each child that has ended, with its status; of others' children too, where this is process 1."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        yield process, status


def _end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
