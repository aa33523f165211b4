"""The commands: natcheck, natmap, stund, natlab.

The entry points stand here, and load a command when it is called: so Ctrl-C ends it without a traceback also
while its modules are still being imported, which is most of the time that a command takes to start.
"""

from __future__ import annotations

import sys
from importlib import import_module

EXIT_INTERRUPTED = 130
"""As a shell reports a command that SIGINT has ended."""


def natcheck_command() -> None:
    """Run `natcheck`."""
    _run("natcheck")


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
    try:
        import_module(f"nattools.cli.{command}").main()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
