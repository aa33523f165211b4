"""The process natgate: a call through it, its users read again, its end, and what `natgate status` draws."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.session.controller.status_socket import read_status
from nattools.session.status import CallState, GateStatus
from tests.unit.session.gate_status import STATUS
from tests.unit.session.telephone import Telephone

TIME_LIMIT_S = 30
PASSWORD = "x7-secret"


class Natgate:
    """A registrar on loopback with the users alice and bob, in a process of its own."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.users = directory / "users.toml"
        self.write_users("alice", "bob")
        self.socket = directory / "natgate.sock"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nattools.cli.natgate", "--registrar", "--users", str(self.users)),
                *("--listen", "127.0.0.1:0", "--status", str(self.socket), *words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def write_users(self, *names: str) -> None:
        self.users.write_text("[users]\n" + "".join(f'{name} = "{PASSWORD}"\n' for name in names))
        self.users.chmod(0o600)

    def read_line(self, word: str) -> str:
        """The next line of the log that has the word."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if word in line:
                return line
        raise AssertionError(f"no line with {word!r} in {self.lines}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self) -> GateStatus:
        return read_status(self.socket)

    def place(self, transport: str = "UDP") -> Endpoint:
        return next(each.local for each in self.status().listeners if each.transport == transport)

    def finish(self) -> tuple[int, str, Sequence[str]]:
        """The exit code, what is on stdout, and the whole log."""
        out, err = self.process.communicate(timeout=TIME_LIMIT_S)
        return self.process.returncode, out, [*self.lines, *err.splitlines(keepends=True)]


@contextlib.contextmanager
def natgate(directory: Path, *words: str) -> Iterator[Natgate]:
    """A natgate that is ended at the latest with the block."""
    gate = Natgate(directory, *words)
    watchdog = threading.Timer(TIME_LIMIT_S, gate.process.kill)
    watchdog.start()
    with gate.process:
        try:
            gate.read_line("serving SIP on 127.0.0.1:")
            yield gate
        finally:
            watchdog.cancel()
            gate.process.kill()


def phone(name: str, gate: Natgate) -> Telephone:
    return Telephone(name, gate.place(), password=PASSWORD)


def test_calls_go_on_while_users_change_and_while_it_ends(tmp_path: Path) -> None:
    async def scenario(gate: Natgate) -> None:
        async with phone("alice", gate) as alice, phone("bob", gate) as bob, phone("carol", gate) as carol:
            for it in (alice, bob):
                assert (await it.register()).status_code == 200
            assert (await alice.call("bob")).status_code == 200
            await bob.until(lambda: bob.requests_of("ACK"))
            status = gate.status()
            assert [call.state for call in status.calls] == [CallState.ANSWERED]
            assert {it.address_of_record.partition("@")[0] for it in status.registrations} == {"alice", "bob"}

            assert (await carol.register()).status_code in (401, 403)
            assert gate.status().counters["registrations_refused"] == 1
            gate.users.write_text("carol = oops")
            gate.signal(signal.SIGHUP)
            gate.read_line("all stays as it was")
            gate.write_users("alice", "carol")
            gate.signal(signal.SIGHUP)
            gate.read_line("read again: the users from")
            carol.cseq = iter(range(100, 200))  # type: ignore[assignment]  # others than its own
            assert (await carol.register()).status_code == 200

            gate.signal(signal.SIGTERM)
            gate.read_line("those that go on have 30 s")
            assert gate.status().draining
            assert (await carol.call("alice")).status_code == 503
            assert (await bob.within("BYE")).status_code == 200
            assert alice.requests_of("BYE")

    with natgate(tmp_path, "--log", "json") as gate:
        asyncio.run(scenario(gate))
        code, out, log = gate.finish()
    assert (code, out) == (0, "")
    records = [json.loads(line) for line in log]
    assert [it["aor"].partition("@")[0] for it in records if it.get("what") == "new"] == [
        "alice",
        "bob",
        "carol",
    ]
    (refused,) = (it for it in records if it.get("what") == "refused")
    assert refused["aor"].startswith("sip:carol@")
    (call,) = (it for it in records if it.get("event") == "call" and it["result"] == 200)
    assert call["from"].startswith("sip:alice@")
    assert call["ended_by"] == "callee"
    assert call["audio_a_packets"] == 0
    assert records[-1]["message"] == "stopped"
    assert not gate.socket.exists()
    assert PASSWORD not in "".join(log)
    assert "Traceback" not in "".join(log)


def test_a_second_signal_ends_it_at_once_and_sqlite_keeps_its_registrations(tmp_path: Path) -> None:
    async def call(gate: Natgate) -> None:
        async with phone("alice", gate) as alice, phone("bob", gate) as bob:
            await alice.register()
            await bob.register()
            assert (await alice.call("bob")).status_code == 200

    store = ("--store", f"sqlite:{tmp_path / 'natgate.db'}")
    with natgate(tmp_path, *store) as gate:
        asyncio.run(call(gate))
        gate.signal(signal.SIGTERM)
        gate.read_line("a second signal")
        gate.signal(signal.SIGINT)
        assert gate.finish()[:2] == (0, "")
    with natgate(tmp_path, *store) as gate:
        assert len(gate.status().registrations) == 2
        gate.signal(signal.SIGINT)
        code, _, log = gate.finish()
    assert code == 0
    assert not any("what=new" in line for line in log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_on_the_heels_of_the_first_end_it_no_less_well(
    tmp_path: Path, number: signal.Signals
) -> None:
    with natgate(tmp_path) as gate:
        gate.signal(signal.SIGTERM)
        deadline = time.monotonic() + TIME_LIMIT_S
        while gate.process.poll() is None and time.monotonic() < deadline:
            gate.signal(number)
            time.sleep(0.001)
        code, _, log = gate.finish()
        assert code == 0
        assert log[-1].endswith("natgate: stopped\n")
        assert not any("Traceback" in line for line in log)


def test_another_natgate_is_not_disturbed(tmp_path: Path) -> None:
    with natgate(tmp_path) as gate:
        second = subprocess.run(
            [
                *(sys.executable, "-m", "nattools.cli.natgate", "--registrar", "--users", str(gate.users)),
                *("--listen", str(gate.place()), "--status", str(gate.socket)),
            ],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr.startswith(
            f"natgate: cannot listen on 127.0.0.1, UDP port {gate.place().port}: "
        )
        assert second.stderr.count("\n") == 1


def test_on_a_terminal_the_page_is_renewed_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "natgate.sock"
    answered = threading.Semaphore(0)
    document = json.dumps(STATUS.as_json()).encode()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def tell() -> None:
        with contextlib.suppress(OSError):
            while True:
                reader, _ = listener.accept()
                with reader:
                    reader.sendall(document)
                answered.release()

    with listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=tell, daemon=True).start()
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            [sys.executable, "-m", "nattools.cli.natgate", "status", "--socket", str(path)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
        )
        os.close(theirs)
        watchdog = threading.Timer(TIME_LIMIT_S, process.kill)
        watchdog.start()
        with process:
            for _ in range(2):  # the page, and the first renewed one
                assert answered.acquire(timeout=TIME_LIMIT_S)
            written = b""
            while written.count(b"Calls: 2") < 2:
                written += os.read(ours, 65536)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # its end is an error of the terminal
                while chunk := os.read(ours, 65536):
                    written += chunk
            assert process.wait(TIME_LIMIT_S) == 0
        watchdog.cancel()
        os.close(ours)
        listener.shutdown(socket.SHUT_RDWR)
    assert b"203.0.113.1:40000: 3100" in written
    assert b"\x1b[31m" not in written
    assert written.rstrip().endswith(b"\x1b[?1049l")  # the screen of before is back


def test_nobody_to_ask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="no such file"):
        read_status(tmp_path / "natgate.sock")
