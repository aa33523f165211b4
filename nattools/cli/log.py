"""How the programs that stay write their log: one line for each record, as text or as JSON, on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from nattools.cli import output
from nattools.words import LogForm, printable


def log_to_stderr(program: str, form: LogForm, *, verbose: bool) -> None:
    """Give the log of nattools to stderr. A stderr that is gone must not stop the program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine() if form is LogForm.JSON else _TextLine(program))
    logger = logging.getLogger("nattools")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.raiseExceptions = False


def say_why_it_ends(program: str, message: str) -> None:
    """Say on stderr in one line, as the log is written, what keeps the program from running."""
    logger = logging.getLogger("nattools")
    if any(isinstance(handler.formatter, _JsonLine) for handler in logger.handlers):
        logger.getChild(program).critical("%s", message)
    else:
        output.warn(program, message)


def forget_what_stderr_refused() -> None:
    """Python would try once more at its end, and make a failure of the program's exit code out of it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _TextLine(logging.Formatter):
    """`2026-01-31T12:00:00.000Z natgate: message`; what others wrote cannot begin a second line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program
        self._with_time = "JOURNAL_STREAM" not in os.environ  # systemd writes the time itself

    def format(self, record: logging.LogRecord) -> str:
        time = f"{_time_of(record)} " if self._with_time else ""
        line = f"{time}{self._program}: {printable(record.getMessage())}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonLine(logging.Formatter):
    """One JSON object: when, how grave, from where, what; and the values that `extra` has as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "from": record.name.removeprefix("nattools."),
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            document |= fields
        if record.exc_info is not None:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _time_of(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
