"""How a program that stays says why it cannot, and with what exit code."""

from __future__ import annotations

import json

import click
import pytest

from nattools.cli import EXIT_INTERRUPTED
from nattools.cli.log import log_to_stderr
from nattools.cli.service import EXIT_CANNOT, EXIT_USAGE, run_service
from nattools.errors import DecodeError, LocalAddressError
from nattools.words import LogForm


def ended(error: BaseException | None, form: LogForm = LogForm.TEXT) -> int | str | None:
    """The exit code of a program that ends with `error` once it has a log."""

    @click.command()
    def command() -> None:
        log_to_stderr("stund", form, verbose=False)
        if error is not None:
            raise error

    try:
        run_service("stund", command, [])
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, None, ""),
        (click.UsageError("no such thing"), EXIT_USAGE, "stund: no such thing (stund --help tells more)\n"),
        (DecodeError("a.toml: no\nsuch word"), EXIT_USAGE, "stund: a.toml: no such word\n"),
        (LocalAddressError("cannot listen"), EXIT_CANNOT, "stund: cannot listen\n"),
        (click.Abort(), EXIT_INTERRUPTED, ""),
    ],
)
def test_what_keeps_it_from_running_is_one_line(
    error: BaseException | None, code: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == code
    assert capsys.readouterr() == ("", said)


def test_with_a_log_in_json_it_is_a_line_of_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(LocalAddressError("cannot listen"), LogForm.JSON) == EXIT_CANNOT
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["from"], line["message"]) == ("critical", "stund", "cannot listen")


def test_what_is_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError())
