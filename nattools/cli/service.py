"""What the programs that stay have in common: their exit codes, and how they say why they cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from nattools.cli import EXIT_INTERRUPTED, log, output
from nattools.errors import DecodeError, NatToolsError

EXIT_DONE = 0
EXIT_CANNOT = 1
EXIT_USAGE = 2


def run_service(program: str, command: click.Command, arguments: Sequence[str] | None) -> None:
    """Run the command of a program; whatever goes wrong is one line on stderr and an exit code.

    With the log in JSON it is a line of that. What settings or files have wrong is `EXIT_USAGE`, and what
    this machine does not give `EXIT_CANNOT`.
    """
    try:
        command(arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        output.warn(program, f"{error.format_message()} ({program} --help tells more)")
        sys.exit(error.exit_code)
    except NatToolsError as error:
        log.say_why_it_ends(program, str(error))
        sys.exit(EXIT_USAGE if isinstance(error, DecodeError) else EXIT_CANNOT)
    except (click.Abort, KeyboardInterrupt):  # so early that nothing was served yet
        sys.exit(EXIT_INTERRUPTED)
    finally:
        log.forget_what_stderr_refused()
