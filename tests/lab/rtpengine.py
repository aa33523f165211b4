"""Debian's rtpengine-daemon on a host of a laboratory, relaying in its own process."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.endpoint import IPAddress
    from nattools.lab.namespaces import Host

CONTROL = "127.0.0.1:2223"
"""Where it takes commands, on that host."""


def why_no_rtpengine() -> str | None:
    """Say why there can be no rtpengine here; None when there can."""
    if shutil.which("rtpengine") is None:
        return "rtpengine is not installed (apt install rtpengine-daemon)"
    return None


@contextmanager
def rtpengine(host: Host, address: IPAddress | str) -> Iterator[None]:
    """Relay at an address of that host as long as the block lasts; who asks at once must ask again."""
    with tempfile.TemporaryDirectory(prefix="rtpengine-") as scratch:
        options = [
            *("--config-file=none", "--foreground", "--log-stderr", "--log-level=4", "--table=-1"),
            *(f"--interface={address}", f"--listen-ng={CONTROL}", "--num-threads=1"),
            *("--port-min=31000", "--port-max=31200", f"--pidfile={Path(scratch, 'pid')}"),
        ]
        with (
            Path(scratch, "log").open("w") as log,
            host.popen(["rtpengine", *options], stderr=log, stdin=subprocess.DEVNULL) as daemon,
        ):
            try:
                yield
            finally:
                daemon.terminate()
                try:
                    daemon.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    daemon.kill()
