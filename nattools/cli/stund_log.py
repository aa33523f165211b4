"""How stund writes its log: one line for each record, as text or as JSON, on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from nattools.stun.settings import LogForm


def log_to_stderr(form: LogForm, *, verbose: bool) -> None:
    """Give the log of nattools to stderr. A stderr that is gone must not stop the server."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("stund: %(message)s")
    handler.setFormatter(_JsonLine() if form is LogForm.JSON else text)
    logger = logging.getLogger("nattools")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.raiseExceptions = False


def forget_what_stderr_refused() -> None:
    """Python would try once more at its end, and make a failure of the server's exit code out of it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _JsonLine(logging.Formatter):
    """One JSON object: when, how grave, from where, what; and what `extra` names `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
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
