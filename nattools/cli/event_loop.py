"""The event loop of the programs that stay, and how many files it may have open."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

_log = logging.getLogger(__name__)


def service_runner() -> asyncio.Runner:
    """What runs a program that stays; what asyncio itself complains of is one line in the log."""
    return asyncio.Runner(loop_factory=_new_loop)


def allow_many_files() -> None:
    """Have as many sockets as the system lets this process have: the soft limit of most is 1024."""
    if sys.platform != "win32":
        import resource

        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def hear_no_more() -> None:
    """Have signals change nothing from now on, since the program ends already.

    Whoever stops a group of processes tells some of them twice, the second time without a loop to hear it:
    that would be a traceback of asyncio, and an exit code as if it had not ended well.
    """
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()  # Proactor has no add_reader
    loop.set_exception_handler(_on_loop_error)
    return loop


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In one line what asyncio reports with a traceback, such as a lack of file descriptors."""
    _log.error("%s: %s", context["message"], context.get("exception") or "no more is known")
