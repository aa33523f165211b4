"""A Redis server of its own for a test, at a socket in a folder, with no port and no other's data."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
_PROGRAM = shutil.which("redis-server", path=_PATH)

needs_redis = pytest.mark.skipif(_PROGRAM is None, reason="redis-server is not installed")


class RedisServer:
    """A server that can be stopped and started, and forgets in between unless it keeps a journal."""

    def __init__(self, folder: Path, *, is_durable: bool = False) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/socket"
        self._options = ("--appendonly", "yes" if is_durable else "no", "--save", "")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        assert _PROGRAM is not None
        self._process = subprocess.Popen(
            [_PROGRAM, "--port", "0", "--unixsocket", "socket", "--dir", str(self.folder), *self._options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            said += line
            if "ready to accept connections" in line.lower():
                return
        raise AssertionError(f"redis-server did not start: {said}")

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def redis_server(*, is_durable: bool = False) -> Iterator[RedisServer]:
    """Run one as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be too long for the name of a socket
        server = RedisServer(Path(folder), is_durable=is_durable)
        server.start()
        try:
            yield server
        finally:
            server.kill()
