"""What stands in deploy/: files for the programs that run ours."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "deploy" / "stund.service"
TIME_LIMIT_S = 30


def commands(key: str) -> list[str]:
    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith(f"{key}=")]
    return shlex.split(line.partition("=")[2])


@pytest.mark.parametrize("key", ["ExecStart", "ExecStartPre"])
def test_the_unit_starts_stund_with_options_that_it_has(key: str, tmp_path: Path) -> None:
    config = tmp_path / "stund.toml"
    config.write_text('address = "127.0.0.1"')
    program, *arguments = commands(key)
    assert Path(program).name == "stund"
    arguments = [str(config) if argument.endswith("stund.toml") else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "nattools.cli.stund", *arguments, "--check-config"],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the settings are good: 127.0.0.1:3478\n"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to read it")
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "stund.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/stund", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT_S,
    )
    assert "stund.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_a_line_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here to read it")
    unit = tmp_path / "stund.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nPrivateDevicez=yes\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT_S,
    )
    assert "stund.service" in done.stderr
