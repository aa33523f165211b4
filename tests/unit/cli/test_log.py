"""The lines of a program's log: one for each record, whatever others have written into it."""

from __future__ import annotations

import json
import logging
import re

import pytest

from nattools.cli.log import log_to_stderr
from nattools.words import LogForm

_log = logging.getLogger("nattools.session.of_a_test")


def test_a_line_of_text_has_the_time_and_no_character_that_ends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log_to_stderr("natgate", LogForm.TEXT, verbose=False)
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
    log_to_stderr("natgate", LogForm.TEXT, verbose=True)
    _log.debug("said")
    assert capsys.readouterr().err == "natgate: said\n"


def test_a_line_of_json_has_the_values_under_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("natgate", LogForm.JSON, verbose=False)
    _log.info("call x=1", extra={"fields": {"event": "call", "x": 1, "to": "a\nb"}})
    _log.warning("some\nthing")
    try:
        raise ValueError("no")
    except ValueError:
        _log.exception("a fault")
    call, warning, fault = map(json.loads, capsys.readouterr().err.splitlines())
    assert call.pop("time").endswith("Z")
    assert call == {
        "level": "info",
        "from": "session.of_a_test",
        "message": "call x=1",
        "event": "call",
        "x": 1,
        "to": "a\nb",
    }
    assert (warning["level"], warning["message"]) == ("warning", "some\nthing")
    assert fault["exception"].endswith("ValueError: no")
