"""Each example runs as it stands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.test_natcheck import needs_second_loopback, stund

EXAMPLES = Path(__file__).parents[1] / "examples"
TIME_LIMIT_S = 30


def output_of(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=True)
    assert done.stderr == ""
    return done.stdout


def test_the_embedded_server() -> None:
    assert "I am seen as 127.0.0.1:" in output_of("embedded_server.py")


def test_the_session_controller() -> None:
    assert "it says SIP/2.0 200 OK\n0 calls, 0 registrations\n" in output_of("session_controller.py")


@needs_second_loopback
def test_the_embedded_check() -> None:
    assert "NAT type   open" in output_of("check_embedded.py")


@needs_second_loopback
@pytest.mark.parametrize(
    ("name", "words"),
    [("public_address_stun.py", "public  127.0.0.1:"), ("verdict.py", "open: we are 127.0.0.1:")],
)
def test_those_that_ask_a_server(name: str, words: str) -> None:
    with stund("127.0.0.1", "127.0.0.2") as server:
        assert words in output_of(name, server)


def test_the_blocking_socket(tmp_path: Path) -> None:
    (tmp_path / "nattools.toml").write_text('methods = ["stun", "open"]')
    command = [sys.executable, "-W", "error", str(EXAMPLES / "blocking_socket.py")]
    with stund("127.0.0.1") as server:
        environment = {"NATTOOLS_SETTINGS": str(tmp_path / "nattools.toml"), "NATTOOLS_STUN_SERVERS": server}
        with (
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            ) as program,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as friend,
        ):
            assert program.stdout is not None
            words = program.stdout.readline().split()
            assert words[:2] == ["write", "to"]
            host, port = words[2].split(":")
            friend.settimeout(TIME_LIMIT_S)
            friend.sendto(b"hello", (host, int(port)))
            assert friend.recv(64) == b"you said: hello"
            assert program.communicate("", timeout=TIME_LIMIT_S) == ("", "")
            assert program.returncode == 0


def test_every_example_is_tried() -> None:
    """Here, or in the laboratory where it needs a router, or a NAT that changes; parts with their whole."""
    rooms = (Path(__file__), *(Path(__file__).parent / "lab").glob("test_*.py"))
    tried = "".join(room.read_text(encoding="utf-8") for room in rooms)
    sources = {path: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    whole = "".join(sources.values())
    untried = [path.name for path in sources if path.name not in tried and f"from {path.stem} " not in whole]
    assert untried == []
