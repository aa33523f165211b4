"""A program that was forked from a warm process is, to itself and to the test, as one that was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattools.lab import namespaces
from nattools.lab.namespaces import Host, Lab, Process
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab import warm_sample
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.warm_start import ROOT, WarmProcess

SAMPLE = ("-m", "tests.lab.warm_sample")


@pytest.fixture(scope="module")
def client() -> Iterator[Host]:
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        yield lab.client


def started(host: Host, way: type[Process], *words: str) -> Process:
    pipe = subprocess.PIPE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "Process", way)
        environment = {**os.environ, "ONLY_HERE": "yes"}
        command = [sys.executable, *words]
        return host.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=ROOT)


def ended(host: Host, way: type[Process], *words: str) -> tuple[int, str, str]:
    with started(host, way, *words) as process:
        stdout, stderr = process.communicate("asked\n", PATIENCE_SECONDS)
    return process.returncode, stdout, stderr.splitlines()[-1] if stderr else ""


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=" ".join)
@pytest.mark.parametrize("end", [end for end in warm_sample.ENDS if end != "waits"])
def test_it_sees_the_same_and_ends_the_same(client: Host, options: tuple[str, ...], end: str) -> None:
    words = (*options, *SAMPLE, end, "two words", "")
    first, again, other = (ended(client, way, *words) for way in (WarmProcess, WarmProcess, Process))
    assert first == again == other
    assert first[1].endswith("the end\n")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_the_same(client: Host, sent: signal.Signals) -> None:
    statuses = []
    for way in (WarmProcess, Process):
        with started(client, way, *SAMPLE, "waits") as process:
            assert Lines(process).next()
            process.send_signal(sent)
            process.communicate(timeout=PATIENCE_SECONDS)
        statuses.append(process.returncode)
    assert statuses[0] == statuses[1] != 0


def test_who_is_between_is_a_child_of_ours_and_takes_the_program_along(client: Host) -> None:
    with started(client, WarmProcess, *SAMPLE, "waits") as process:
        assert Lines(process).next()
        [program] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" in status
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
        process.communicate(timeout=PATIENCE_SECONDS)  # its end of the pipe is closed, too
        assert not Path(f"/proc/{program}/cwd").exists()
