"""The entry points of the commands, as pyproject.toml names them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from nattools import cli

SCRIPTS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS = SCRIPTS["project"]["scripts"]


@pytest.mark.parametrize(("command", "target"), COMMANDS.items())
def test_ctrl_c_during_the_imports_is_quiet(
    command: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        assert name == f"nattools.cli.{command}"
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupted)
    module, _, function = target.partition(":")
    with pytest.raises(SystemExit) as ended:
        getattr(import_module(module), function)()
    assert ended.value.code == cli.EXIT_INTERRUPTED


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(command: str) -> None:
    program = f"from nattools import cli; cli.{command}_command()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        f"{command}: its output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that can close files")
def test_nobody_need_listen_to_it(command: str) -> None:
    program = f"from nattools import cli; cli.{command}_command()"
    for arguments, code in (("--version", 0), ("--no-such-option", 2)):
        closed = ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, program, arguments]
        assert subprocess.run(closed, timeout=30, check=False).returncode == code
