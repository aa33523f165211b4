"""What a service manager is told, and that a server without one, or with a deaf one, is none the worse."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from nattools.net.service_manager import tell_ready

PATIENCE_S = 10.0


def listening(name: str) -> socket.socket:
    """Where a service manager would listen."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(PATIENCE_S)
    manager.bind(name)
    return manager


def test_the_service_manager_hears_that_all_is_served_and_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a Unix socket is short
    monkeypatch.setenv("NOTIFY_SOCKET", "manager")
    with listening("manager") as manager:
        tell_ready("serving 192.0.2.1:3478")
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving 192.0.2.1:3478"


def test_an_abstract_socket_is_found_by_its_at(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"nattools-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with listening(f"\0{name}") as manager:
        tell_ready("serving")
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving"


def test_a_status_cannot_say_more_than_a_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", "manager")
    with listening("manager") as manager:
        tell_ready("serving\nERRNO=1")
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving ERRNO=1"


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_service_manager_nothing_is_said(
    path: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    tell_ready("serving")
    assert caplog.messages == []


@pytest.mark.parametrize("path", ["missing", "x" * 200, "vsock:2:1234"])
def test_a_service_manager_that_cannot_be_told_costs_a_line_of_the_log(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with caplog.at_level(logging.WARNING):
        tell_ready("serving")
    [line] = caplog.messages
    assert line.startswith(f"{path}: the service manager cannot be told")
