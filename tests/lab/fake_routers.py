"""Fake routers on the router of a laboratory: told how to behave, and asked what they have seen."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nattools.lab.namespaces import Host, Lab
from tests.lab.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
ROUTER, OTHER, GOOD, CLIENT = "192.168.0.1", "192.168.0.2", "192.168.0.3", "192.168.0.108"


def let_the_router_be_asked(lab: Lab) -> None:
    """Take away what drops all that is for the router itself, and give it more addresses."""
    addresses = (f"ip addr add {address}/24 dev lan" for address in (OTHER, GOOD))
    at_once = "sysctl -qw net.ipv4.icmp_ratelimit=0"  # says each time that a port is closed
    for command in ("nft flush chain ip lab input", at_once, *addresses):
        done = lab.router.run(command.split(), timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, done.stderr


class FakeRouter:
    """`python -m tests.fakes.igd` on a host of a laboratory, as long as the `with` block lasts."""

    def __init__(
        self, host: Host, *behaviours: str, address: str = ROUTER, other_address: str | None = OTHER
    ) -> None:
        command = [sys.executable, "-m", "tests.fakes.igd", "--address", address, "--interface", "lan"]
        command += [part for name in behaviours for part in ("--behaviour", name)]
        if other_address is not None:
            command += ["--other-address", other_address]
        self._process = host.popen(
            [*command, "--json-events"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self._seen: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.until("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._seen.append(json.loads(line))
                self._news.notify_all()

    @property
    def pid(self) -> int:
        """Of the program itself, not of what brought it into its namespace."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else pid

    def tell(self, command: str) -> None:
        """Give it one of its commands."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def behave(self, *names: str) -> None:
        """Make it another router, which has seen nothing yet."""
        with self._news:
            self._seen.clear()
        self.tell(" ".join(("behave", *names)))
        self.until("behaves")

    def seen(self, *kinds: str) -> list[dict[str, Any]]:
        """What it was asked, in order."""
        with self._news:
            return [one for one in self._seen if one["kind"] in kinds]

    def until(self, kind: str, what: str = "") -> dict[str, Any]:
        """Wait for the first of a kind that has `what` in it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._news:
            while True:
                for one in self._seen:
                    if one["kind"] == kind and what in one["what"]:
                        return one
                left = deadline - time.monotonic()
                assert left > 0, f"no {kind} {what}: {self._seen[-5:]}"
                self._news.wait(left)
