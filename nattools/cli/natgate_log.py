"""How natgate writes its log: one line for each record, as text or as JSON, on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from nattools.session.controller.journal import printable
from nattools.session.settings import LogForm


def log_to_stderr(form: LogForm, *, verbose: bool) -> None:
    """Give the log of nattools to stderr. A stderr that is gone must not stop natgate."""
    handler = logging.StreamHandler(sys.stderr)
    is_stamped = "JOURNAL_STREAM" in os.environ  # systemd writes the time itself
    handler.setFormatter(_JsonLine() if form is LogForm.JSON else _TextLine(with_time=not is_stamped))
    logger = logging.getLogger("nattools")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.raiseExceptions = False


def forget_what_stderr_refused() -> None:
    """Python would try once more at its end, and make a failure of natgate's exit code out of it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _TextLine(logging.Formatter):
    """`2026-01-31T12:00:00Z natgate: message`; what phones wrote cannot begin a second line."""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        time = f"{_time_of(record)} " if self._with_time else ""
        line = f"{time}natgate: {printable(record.getMessage())}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonLine(logging.Formatter):
    """One JSON object: when, how grave, from where, what; and the journal's values under their names."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "from": record.name.removeprefix("nattools."),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            document |= fields
        else:
            document["message"] = record.getMessage()
        if record.exc_info is not None:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _time_of(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
