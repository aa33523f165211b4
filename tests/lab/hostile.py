"""What a hostile router costs: natmap in a laboratory with nobody else to ask, measured."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.fake_routers import GOOD, ROOT, ROUTER, FakeRouter, let_the_router_be_asked
from tests.lab.measured_program import COUNTER, packets_elsewhere
from tests.lab.stalls import kept_waiting_s

MOST_SECONDS = 3.0
MOST_MIB = 20.0
BENIGN = "igd2"

_TIME_LIMIT_S = 60.0
_CANARY = f"""
table inet canary {{
    counter elsewhere {{ }}
    chain output {{
        type filter hook output priority 0;
        ip daddr {{ {ROUTER}, {GOOD} }} accept
        ip daddr 239.255.255.250 udp dport 1900 accept
        meta l4proto {{ igmp, ipv6-icmp }} accept
        counter name elsewhere
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of natmap. `elsewhere` are the packets that left it for anybody but the router.

    `seconds` are without those in which natmap or the router could have gone on, but for a busy machine.
    """

    status: int
    seconds: float
    peak_kib: int
    stdout: str
    stderr: str
    elsewhere: int
    lured: tuple[str, ...]
    asked: tuple[dict[str, Any], ...]

    @property
    def is_kept(self) -> bool:
        """Whether it kept a mapping for as long as it was let."""
        return '"event": "removed"' in self.stdout

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document on its stdout."""
        said: dict[str, Any] = json.loads(self.stdout)
        return said


class HostileLab:
    """A laboratory with one fake router, whose behaviour changes, and natmap on the client."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._packets = 0
        self._peaks: dict[tuple[str, ...], int] = {}

    def __enter__(self) -> Self:
        with self._stack:
            lab = Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False)
            self.lab = self._stack.enter_context(lab)
            let_the_router_be_asked(self.lab)
            done = self.lab.client.run(["nft", "-f", "-"], timeout=PATIENCE_SECONDS, input=_CANARY)
            assert done.returncode == 0, done.stderr
            self.router = self._stack.enter_context(FakeRouter(self.lab.router))
            self._natmap = self.lab.client.popen(
                [sys.executable, "-m", "tests.lab.measured_program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            self._stack.callback(self._end)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._natmap.kill()
        self._natmap.wait(PATIENCE_SECONDS)
        for stream in (self._natmap.stdin, self._natmap.stdout):
            assert stream is not None
            stream.close()

    def measure(self, behaviour: str, *arguments: str) -> Measured:
        """Run natmap with a router of that behaviour."""
        self.router.behave(behaviour)
        return self.run(*arguments)

    def run(self, *arguments: str) -> Measured:
        """Run natmap with the routers as they are."""
        assert self._natmap.stdin is not None
        assert self._natmap.stdout is not None
        router_waited_s = kept_waiting_s(self.router.pid)
        self._natmap.stdin.write(json.dumps(arguments) + "\n")
        self._natmap.stdin.flush()
        assert select.select([self._natmap.stdout], [], [], _TIME_LIMIT_S)[0], "natmap does not end"
        said = json.loads(self._natmap.stdout.readline())
        waited_s = said["kept_waiting_s"] + kept_waiting_s(self.router.pid) - router_waited_s
        return Measured(
            status=said["status"],
            seconds=said["seconds"] - waited_s,
            peak_kib=said["peak_kib"],
            stdout=said["stdout"],
            stderr=said["stderr"],
            elsewhere=said["elsewhere"],
            lured=tuple(one["what"] for one in self.router.seen("decoy")),
            asked=tuple(self.router.seen("http")),
        )

    def extra_mib(self, measured: Measured, *arguments: str) -> float:
        """What it took above what the same costs with a router that means well."""
        if arguments not in self._peaks:
            self._peaks[arguments] = self.measure(BENIGN, *arguments).peak_kib
        return (measured.peak_kib - self._peaks[arguments]) / 1024

    def packets_elsewhere(self) -> int:
        """How many there were since the last time."""
        listed = self.lab.client.run(COUNTER, timeout=_TIME_LIMIT_S)
        assert listed.returncode == 0, listed.stderr
        before, self._packets = self._packets, packets_elsewhere(listed.stdout)
        return self._packets - before
