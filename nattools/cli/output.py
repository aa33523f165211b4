"""What the commands share: one-line errors on stderr, and pages of text that fit any terminal."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

_WIDEST = 100
_GAP = "  "


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


def print_json_line(document: dict[str, object]) -> None:
    """One JSON document on a line of its own, at once: for a program that reads as it comes."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


class Page:
    """Labelled rows and lists on stdout: in colour on a terminal unless NO_COLOR is set, else plain text."""

    def __init__(self, *, label_width: int, console: Console | None = None) -> None:
        from rich.console import Console  # it takes 60 ms to load, and only people need it

        # without emoji=False, the ":a:" in fe80::a:1 would be a picture
        self._console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        self._width = max(min(self._console.width, _WIDEST), 2 * label_width)
        self._label_width = label_width

    @property
    def width(self) -> int:
        """How many columns the page has."""
        return self._width

    def gap(self) -> None:
        """An empty line."""
        self._console.print()

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

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose cells wrap at spaces; where that does not fit either, labelled lines for each row."""
        columns = list(zip(headings, *rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
        room = self._width - len(_GAP) * (len(columns) - 1)
        if sum(least) > room:
            for row in rows:
                self._console.print()
                for heading, cell in zip(headings, row, strict=True):
                    self.row(heading, cell)
            return
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda n: widths[n] if widths[n] > least[n] else 0)
            widths[widest] -= 1
        self._console.print()
        for number, row in enumerate((headings, *rows)):
            cells = [textwrap.wrap(c, w, break_on_hyphens=False) for c, w in zip(row, widths, strict=True)]
            for lines in zip_longest(*cells, fillvalue=""):
                line = _GAP.join(f"{text:{width}}" for text, width in zip(lines, widths, strict=True))
                self._console.print(line.rstrip(), style="" if number else "dim", markup=False)
