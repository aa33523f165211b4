"""A laboratory that cannot be built says why, in one line; and how long one is waited for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nattools.errors import LabError
from nattools.lab import namespaces
from nattools.lab.namespaces import Lab, Process, why_no_igd, why_unavailable
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_it_needs_linux(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(LabError, match="needs Linux"), Lab(Topology(NatKind.OPEN)):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
@pytest.mark.parametrize(("tool", "package"), [("ip", "iproute2"), ("nft", "nftables")])
def test_a_missing_program_is_named_with_its_package(
    tool: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def which(name: str, path: str) -> str | None:
        return None if name == tool else f"/usr/sbin/{name}"

    monkeypatch.setattr(shutil, "which", which)
    assert why_unavailable() == (
        f"the NAT laboratory needs the program {tool}: install {package} (apt install {package})"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
def test_the_first_missing_program_of_an_igd_is_the_laboratory_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    assert why_no_igd() == "the NAT laboratory needs the program ip: install iproute2 (apt install iproute2)"


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
def test_a_python_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/usr/sbin/{name}")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert "cannot be started" in str(why_unavailable())


def test_a_server_that_is_slow_to_come_up_on_a_busy_machine_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = 0.0
    lab = Lab(Topology(NatKind.OPEN))

    def sleep(_seconds: float) -> None:
        nonlocal clock_s
        clock_s += 1

    def bound(_lab: Lab, _tcp: bool) -> set[str]:
        return namespaces._local_addresses(SERVER) if clock_s > 20 else set()

    monkeypatch.setattr(namespaces, "time", SimpleNamespace(monotonic=lambda: clock_s, sleep=sleep))
    monkeypatch.setattr(Lab, "_bound", bound)
    with Process([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        try:
            lab.wait_until_bound(server, [SERVER])
        finally:
            server.kill()
