"""The lines of natgate's log: one for each record, whatever phones have written into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from nattools.cli.natgate_log import log_to_stderr
from nattools.session.settings import LogForm

_log = logging.getLogger("nattools.session.of_a_test")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    logger = logging.getLogger("nattools")
    before = logger.handlers[:], logger.propagate, logger.level, logging.raiseExceptions
    yield
    logger.handlers[:], logger.propagate, level, logging.raiseExceptions = before
    logger.setLevel(level)


def test_a_line_of_text_has_the_time_and_no_character_that_ends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log_to_stderr(LogForm.TEXT, verbose=False)
    _log.info("from %s", "a\r\nb\x1b[0m\u2028")
    _log.debug("not said")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z natgate: from a\\r\\nb\\x1b\[0m\\u2028\n",
        capsys.readouterr().err,
    )


def test_systemd_writes_the_time_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    log_to_stderr(LogForm.TEXT, verbose=True)
    _log.debug("said")
    assert capsys.readouterr().err == "natgate: said\n"


def test_a_line_of_json_has_the_values_under_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(LogForm.JSON, verbose=False)
    _log.info("call x=1", extra={"fields": {"event": "call", "x": 1, "to": "a\nb"}})
    _log.warning("some\nthing")
    try:
        raise ValueError("no")
    except ValueError:
        _log.exception("a fault")
    call, warning, fault = map(json.loads, capsys.readouterr().err.splitlines())
    assert call.pop("time").endswith("Z")
    assert call == {"level": "info", "from": "session.of_a_test", "event": "call", "x": 1, "to": "a\nb"}
    assert (warning["level"], warning["message"]) == ("warning", "some\nthing")
    assert fault["exception"].endswith("ValueError: no")
