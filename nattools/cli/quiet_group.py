"""Commands below a command, each of which Ctrl-C ends quietly."""

from __future__ import annotations

import sys
from typing import Any

import click

from nattools.cli import EXIT_INTERRUPTED


class QuietGroup(click.Group):
    """A group that Ctrl-C ends without a word, where click would say "Aborted!"."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named, or the group itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
