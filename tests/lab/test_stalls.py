"""What a busy machine costs is taken off, and nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.lab import stalls
from tests.lab.stalls import Since

if TYPE_CHECKING:
    from pathlib import Path


def test_only_what_programs_waited_for_a_processor_is_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressure = tmp_path / "cpu"
    monkeypatch.setattr(stalls, "_PRESSURE", pressure)
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7000000\nfull total=9\n")
    since, later = Since(), time.monotonic() + 60
    whole_s = since.took_s(later)
    assert whole_s >= 60
    pressure.write_text("some avg10=9.00 avg60=0.00 avg300=0.00 total=9500000\nfull total=9\n")
    assert since.short_s == 2.5
    assert since.took_s(later) == pytest.approx(whole_s - 2.5)
    pressure.write_text("some avg10=9.00 avg60=0.00 avg300=0.00 total=99000000\nfull total=9\n")
    assert since.short_s == 10


def test_where_linux_does_not_tell_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "_PRESSURE", tmp_path / "none")
    since, later = Since(), time.monotonic() + 60
    assert since.took_s(later) >= 60
