"""`natgate status`: a look at the natgate that runs on this machine, once or each second."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nattools.cli import output
from nattools.cli.natgate_page import show_page
from nattools.errors import DecodeError, NatToolsError, NoResponseError, TransportError
from nattools.session.controller.status_socket import read_status, usual_paths
from nattools.session.status import GateStatus

_EXIT_NOBODY = 1
_PAUSE_S = 1.0
_COMMAND = "natgate status"


def show(socket: Path | None, *, as_json: bool, once: bool) -> None:
    """Show what natgate tells at `socket`, or at the usual places where that is None."""
    paths = usual_paths(os.environ) if socket is None else (socket,)
    try:
        path, status = _first_answer(paths)
        if as_json:
            output.print_json(status.as_json())
        elif once or not sys.stdout.isatty():
            show_page(status)
        else:
            _watch(path, status)
    except NatToolsError as error:
        output.fail(_COMMAND, str(error), status=_EXIT_NOBODY)


def _first_answer(paths: Sequence[Path]) -> tuple[Path, GateStatus]:
    """What the first of them tells that has somebody to ask. Raises `TransportError`, `DecodeError`."""
    refusals: list[str] = []
    for path in paths:
        try:
            return path, read_status(path)
        except NoResponseError as error:
            raise NoResponseError(
                f"natgate is there, and does not answer: {error}; see what its log says, and whether it is "
                "stopped or the machine overloaded"
            ) from error
        except TransportError as error:
            refusals.append(str(error))
        except DecodeError as error:
            raise DecodeError(f"{path}: {error}") from error
    raise TransportError(
        f"no natgate is there to ask: {', '.join(refusals)}; see that it runs, as this user or as root, "
        "and give its --status PATH as --socket PATH if it has one"
    )


def _watch(path: Path, status: GateStatus) -> None:
    """Renew the page each second, until Ctrl-C or the end of natgate."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(emoji=False)

    def page() -> Text:
        written = io.StringIO()
        drawn = Console(
            file=written,
            force_terminal=console.is_terminal,
            no_color=console.no_color,
            width=console.width,
            highlight=False,
            soft_wrap=True,
            emoji=False,
        )
        show_page(status, console=drawn, most_lines=console.height)
        return Text.from_ansi(written.getvalue())

    try:
        with Live(page(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(_PAUSE_S)
                status = read_status(path)
                live.update(page(), refresh=True)
    except KeyboardInterrupt:
        return
