"""The real `natgate`, a process of its own on a host of a laboratory, as its operator starts and ends it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from nattools.lab.topology import ALTERNATE_SERVER
from nattools.session.status import GateStatus
from tests.lab.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nattools.lab.namespaces import Host, Lab, Process

ROOT = Path(__file__).parents[2]
GATE = ALTERNATE_SERVER.with_port(5060)
"""Where it stands on the public side, unless a test says otherwise."""

_POLL_S = 0.01
_LOG_CHARACTERS = 6000


class Natgate:
    """A running `natgate`, with what it writes, says of itself, and keeps in `directory` over restarts."""

    def __init__(self, host: Host, directory: Path, words: tuple[str, ...]) -> None:
        self.directory = directory
        self.process: Process | None = None
        self._host = host
        self._words = words
        self._log = directory / "log"

    @property
    def log(self) -> str:
        """The last of what it has written, over all its lives."""
        return self._log.read_text(errors="replace")[-_LOG_CHARACTERS:] if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """The process ID of the program itself, not of what brought it into its namespace."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def start(self) -> None:
        """Start it, and wait until it answers on its status socket, which it does once everything listens."""
        with self._log.open("a") as log:
            self.process = self._host.popen(
                [sys.executable, "-P", "-m", "nattools.cli.natgate", *self._words, "--status", self._socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._ask() is None:
            ended = self.process.poll()
            assert ended is None, f"natgate has ended with {ended}: {self.log}"
            assert time.monotonic() < deadline, f"natgate does not say that it runs: {self.log}"
            time.sleep(_POLL_S)

    def status(self) -> GateStatus:
        """What it says of itself now, as `natgate status` shows it."""
        said = self._ask()
        assert said is not None, f"natgate does not answer: {self.log}"
        return said

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self, *, within_s: float = PATIENCE_SECONDS) -> int:
        """Have it drain and end (SIGTERM), and return its status."""
        return self._end(signal.SIGTERM, within_s)

    def close(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    @property
    def _socket(self) -> str:
        return str(self.directory / "status")

    def _end(self, sig: signal.Signals, within_s: float = PATIENCE_SECONDS) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(within_s)

    def _ask(self) -> GateStatus | None:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE_SECONDS)
            try:
                asking.connect(self._socket)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            said = b""
            while piece := asking.recv(65536):
                said += piece
        return GateStatus.parse(said)


@contextmanager
def natgate(
    lab: Lab,
    *words: str,
    users: Mapping[str, str] | None = None,
    settings: str = "",
    at: Endpoint = GATE,
    host: Host | None = None,
) -> Iterator[Natgate]:
    """Run `natgate --listen AT`, on the public side unless a host is named, with these words besides.

    With `users`, names and passwords, it is the registrar; `settings` is what its file of settings says.
    Raises `AssertionError` where it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="natgate-") as scratch:
        directory = Path(scratch)
        registrar: tuple[str, ...] = ()
        if users is not None:
            file = directory / "users.toml"
            lines = (f"{json.dumps(name)} = {json.dumps(password)}" for name, password in users.items())
            file.write_text("\n".join(["[users]", *lines, ""]))
            file.chmod(0o600)
            registrar = ("--registrar", "--users", str(file))
        (directory / "natgate.toml").write_text(settings)
        config = ("--config", str(directory / "natgate.toml"))
        gate = Natgate(host or lab.public, directory, (*config, "--listen", str(at), *registrar, *words))
        try:
            gate.start()
            yield gate
        finally:
            gate.close()
