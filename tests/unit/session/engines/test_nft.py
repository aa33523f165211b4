"""How the program nft is run, and what is told when it cannot do what it should."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nattools.errors import RelayError
from nattools.session.engines import nft
from nattools.session.engines.nft import Nft


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program is to be, alone on its path."""
    monkeypatch.setattr(nft, "_PATH", str(tmp_path))
    return tmp_path / "nft"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_script_comes_by_its_standard_input(program: Path, tmp_path: Path) -> None:
    write(program, f'echo "$@" > {tmp_path}/arguments; /bin/cat > {tmp_path}/script')
    asyncio.run(Nft().apply("add table ip relay\n"))
    assert (tmp_path / "arguments").read_text() == "-f -\n"
    assert (tmp_path / "script").read_text() == "add table ip relay\n"


@pytest.mark.parametrize(("as_json", "said"), [(True, "-j list tables\n"), (False, "list tables\n")])
def test_what_it_tells_is_returned(program: Path, as_json: bool, said: str) -> None:
    write(program, 'echo "$@"; echo a warning >&2')
    assert asyncio.run(Nft().ask("list tables", as_json=as_json)) == said


def test_a_refusal_has_its_first_line(program: Path) -> None:
    write(program, "echo 'Error: File exists' >&2; echo more >&2; exit 1")
    with pytest.raises(RelayError, match=r"status 1 \(Error: File exists\)$"):
        asyncio.run(Nft().apply(""))


def test_a_missing_right_is_named(program: Path) -> None:
    write(program, "echo 'Operation not permitted (you must be root)' >&2; exit 1")
    with pytest.raises(RelayError, match="give this process CAP_NET_ADMIN"):
        asyncio.run(Nft().apply(""))


def test_a_program_that_hangs_is_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_PATIENCE_S", 0.2)
    write(program, "exec /bin/sleep 60")
    with pytest.raises(RelayError, match="did not come to an end"):
        asyncio.run(Nft().apply(""))


def test_a_machine_without_the_program_is_told_what_to_install(program: Path) -> None:
    with pytest.raises(RelayError, match="apt install nftables"):
        Nft()
