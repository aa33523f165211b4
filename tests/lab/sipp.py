"""sipp as a telephone, unmodified: scenarios that register, call and answer, and RTP of a real tone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.sip_peers import ProgramPhone

if TYPE_CHECKING:
    from collections.abc import Sequence


def why_no_sipp() -> str | None:
    """Say why there can be no sipp here; None when there can."""
    if shutil.which("sipp") is None:
        return "sipp is not installed (apt install sip-tester)"
    return None


class Sipp(ProgramPhone):
    """sipp on a host, at an address of it. It never sends back what it hears: its tone is its own."""

    def _argv(self) -> Sequence[str]:
        where = (self.server.ip, self.server.port, self.user, self._at.ip, self._at.port, self.directory)
        program = (sys.executable, "-m", "tests.lab.sipp_program", *map(str, where))
        return (*program, f"--password={self._password or 'none'}")

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._process.stdin.close()  # on which it ends its run of sipp
                self._process.wait(PATIENCE_SECONDS)
        super().close()
