"""What the commands share: one-line errors on stderr, and pages of text that fit any terminal."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import NoReturn

_WIDEST = 100


def fail(command: str, message: str, *, status: int) -> NoReturn:
    """Say in one line why `command` ends, and end it with `status`."""
    warn(command, message)
    sys.exit(status)


def warn(command: str, message: str) -> None:
    """Say in one line on stderr what is wrong."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)


def print_json(document: dict[str, object]) -> None:
    """One JSON document on stdout, its characters as they are."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


class Page:
    """Labelled rows and lists on stdout: in colour on a terminal unless NO_COLOR is set, else plain text."""

    def __init__(self, *, label_width: int) -> None:
        from rich.console import Console  # it takes 60 ms to load, and only people need it

        self._console = Console(highlight=False, soft_wrap=True)
        self._width = max(min(self._console.width, _WIDEST), 2 * label_width)
        self._label_width = label_width

    def row(self, label: str, value: str, *, style: str = "") -> None:
        """A label, and its value wrapped beside it."""
        lines = textwrap.wrap(value, self._width - self._label_width, break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            self._console.print(f"{'' if number else label:{self._label_width}}", style="dim", end="")
            self._console.print(line, style=style, markup=False)

    def heading(self, text: str) -> None:
        """The title of a list."""
        self._console.print(f"\n{text}", style="bold", markup=False)

    def item(self, text: str) -> None:
        """One entry of a list."""
        wrapped = textwrap.fill(
            text, self._width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
        self._console.print(wrapped, markup=False)
