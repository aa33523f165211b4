"""sipp as a telephone, unmodified: scenarios that register, call and answer, and RTP of a real tone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from nattools.endpoint import Endpoint
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import REGISTRAR
from tests.lab.sip_peers import ProgramPhone

if TYPE_CHECKING:
    from nattools.lab.namespaces import Host, Lab


def why_no_sipp() -> str | None:
    """Say why there can be no sipp here; None when there can."""
    if shutil.which("sipp") is None:
        return "sipp is not installed (apt install sip-tester)"
    return None


class Sipp(ProgramPhone):
    """sipp on a host, at an address of it. It never sends back what it hears: its tone is its own."""

    def __init__(
        self,
        host: Host,
        user: str,
        at: Endpoint,
        *,
        plays_hz: int,
        password: str = "",
        server: Endpoint = REGISTRAR,
    ) -> None:
        super().__init__(host, user, (), plays_hz=plays_hz, server=server)
        where = (str(server.ip), str(server.port), user, str(at.ip), str(at.port), str(self.directory))
        program = (sys.executable, "-m", "tests.lab.sipp_program")
        self._argv = (*program, *where, f"--password={password or 'none'}")

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._process.stdin.close()  # on which it ends its run of sipp
                self._process.wait(PATIENCE_SECONDS)
        super().close()

    @classmethod
    def inside(
        cls, lab: Lab, user: str, *, plays_hz: int, password: str = "", server: Endpoint = REGISTRAR
    ) -> Self:
        """One on the client, without any help against its NAT."""
        at = Endpoint.of(lab.topology.client_address, 5060)
        return cls(lab.client, user, at, plays_hz=plays_hz, password=password, server=server)
