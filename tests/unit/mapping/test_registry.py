"""The records on disk, and whose they are."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nattools.mapping.model import MappingProtocol
from nattools.mapping.registry import Registry, default_directory, is_running, owner_of
from nattools.mapping.state import Owner, Record
from tests.unit.mapping.mappings import MAPPING


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "mappings")


@pytest.fixture
def ended_owner() -> Owner:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = owner_of(process.pid)
        assert is_running(owner)
    return owner


def test_a_mapping_is_remembered_until_it_is_forgotten(registry: Registry) -> None:
    hoped = registry.new(MAPPING, kept=True)
    assert registry.records() == [hoped]
    granted = registry.granted(hoped, replace(MAPPING, external_port=7000))
    assert registry.records() == [granted]
    assert Registry(registry.directory).records() == [granted]
    registry.forget(granted)
    registry.forget(granted)
    assert registry.records() == []


def test_nobody_else_can_read_a_nonce(registry: Registry) -> None:
    registry.new(MAPPING, kept=True)
    (file,) = registry.directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(registry.directory.stat().st_mode) == 0o700


def test_what_the_router_has_dropped_is_forgotten(registry: Registry) -> None:
    record = registry.new(MAPPING, kept=False)
    registry.write(replace(record, made_at=time.time() - 3601))
    assert registry.records() == []
    assert list(registry.directory.iterdir()) == []


def test_a_mapping_for_ever_is_never_dropped(registry: Registry) -> None:
    record = registry.new(replace(MAPPING, lease_s=None), kept=False)
    registry.write(replace(record, made_at=0))
    assert len(registry.records()) == 1


@pytest.mark.parametrize(
    ("kept", "granted", "left_behind"),
    [(True, True, True), (True, False, True), (False, False, True), (False, True, False)],
)
def test_left_behind_is_what_nobody_answers_for(
    registry: Registry, ended_owner: Owner, kept: bool, granted: bool, left_behind: bool
) -> None:
    mine = registry.new(MAPPING, kept=kept)
    if granted:
        mine = registry.granted(mine, MAPPING)
    assert registry.left_behind() == []
    registry.write(replace(mine, owner=ended_owner))
    assert bool(registry.left_behind()) is left_behind


def test_what_was_made_anew_in_its_place_is_not_left_behind(registry: Registry, ended_owner: Owner) -> None:
    left = replace(registry.new(MAPPING, kept=True), owner=ended_owner)
    registry.write(left)
    assert registry.left_behind() == [left]
    anew = registry.new(replace(MAPPING, protocol=MappingProtocol.UPNP), kept=True)
    assert registry.left_behind() == [left]  # what is only asked for is not there yet
    registry.granted(anew, anew.mapping)
    assert registry.left_behind() == []
    registry.forget(anew)
    assert registry.left_behind() == [left]


def test_a_later_process_of_the_same_number_is_another() -> None:
    owner = owner_of(os.getpid())
    assert is_running(owner)
    assert not is_running(replace(owner, started_at=owner.started_at - 60))
    assert not is_running(replace(owner, boot="another start of the system"))
    assert not is_running(Owner(-1, 0))
    assert not is_running(Owner(2**70, 0))


def test_setting_the_clock_makes_no_other_process_of_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere the system remembers when a process started")
    record = registry.granted(registry.new(MAPPING, kept=True), MAPPING)
    booted_at, create_time = psutil.boot_time(), psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: booted_at + 7200)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 7200)
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    assert is_running(record.owner)
    assert registry.records() == [record]  # though its lease of an hour seems to be over
    assert registry.left_behind() == []


def test_a_full_disk_leaves_no_unfinished_file(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for _ in range(3):
        registry.new(MAPPING, kept=True)
    assert list(registry.directory.iterdir()) == []
    assert caplog.text.count("mappings are not remembered") == 1


def test_a_router_with_a_long_name_is_remembered(registry: Registry) -> None:
    record = registry.new(replace(MAPPING, router="\N{SNOWMAN}" * 8192), kept=True)
    assert registry.records() == [record]


def test_foreign_files_are_left_alone(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    record = registry.new(MAPPING, kept=True)
    (registry.directory / "notes.json").write_text("buy milk")
    (registry.directory / "copy.json").write_bytes(record.encode())
    (registry.directory / "notes.txt").write_text("buy milk")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert registry.records() == [record]
    assert caplog.text.count("notes.json is left alone") == 1
    assert len(list(registry.directory.iterdir())) == 4


def test_a_record_cannot_lead_out_of_the_directory(registry: Registry, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("precious")
    forged = Record("../outside", MAPPING, Owner(1, 0), 0.0, kept=True)
    registry.directory.mkdir()
    (registry.directory / "forged.json").write_bytes(forged.encode())
    assert registry.records() == []
    assert outside.read_text() == "precious"


def test_a_directory_that_cannot_be_written_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry(tmp_path / "file" / "mappings")
    record = registry.new(MAPPING, kept=True)
    assert "mappings are not remembered" in caplog.text
    registry.forget(record)
    assert registry.records() == []


def test_the_default_directory_is_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("XDG_STATE_HOME is Linux's")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "nattools" / "mappings"
