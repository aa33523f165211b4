"""The commands: natcheck, natmap, stund, natgate, natlab.

The entry points stand here, and load a command when it is called: so Ctrl-C ends it without a traceback also
while its modules are still being imported, which is most of the time that a command takes to start.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

EXIT_INTERRUPTED = 130
"""As a shell reports a command that SIGINT has ended."""

_EXIT_UNWRITABLE = 1
_UNWRITABLE = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def natcheck_command() -> None:
    """Run `natcheck`."""
    _run("natcheck")


def natgate_command() -> None:
    """Run `natgate`."""
    _run("natgate")


def natlab_command() -> None:
    """Run `natlab`."""
    _run("natlab")


def natmap_command() -> None:
    """Run `natmap`."""
    _run("natmap")


def stund_command() -> None:
    """Run `stund`."""
    _run("stund")


def _run(command: str) -> None:
    _open_what_is_closed()
    try:
        try:
            import_module(f"nattools.cli.{command}").main()
        finally:
            sys.stdout.flush()  # while it can still be said what became of it
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more at its end
        if error.errno != errno.EPIPE:  # else it is who reads that has seen enough
            print(f"{command}: its output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(_EXIT_UNWRITABLE)


def _open_what_is_closed() -> None:
    """Where stdin, stdout or stderr is closed (`2>&-`) have it lead nowhere: else a socket would be it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  as long as the program runs
