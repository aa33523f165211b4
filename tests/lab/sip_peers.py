"""Telephones in a laboratory, each of another maker, all told what to do in the same words.

`Baresip` sends its voice exactly where the SDP says, never back to where a packet came from: who hears it has
told the right address. `PyVoip` is a program around a library that knows nothing of NATs.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nattools.endpoint import Endpoint
from nattools.lab.topology import CLIENT_INTERFACE, SERVER
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.kamailio import REGISTRAR
from tests.lab.tones import hear, write_tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nattools.lab.namespaces import Host, Lab, Process

ROOT = Path(__file__).parents[2]
ANYWHERE = Endpoint.of("0.0.0.0", 0)
TONE_SECONDS = 3.0  # within which a tone must be heard

# Connects to a TCP port of this host, as soon as somebody listens, and hands the connection to the test.
_CONNECTOR = """
import socket, sys, time
deadline = time.monotonic() + 10
while True:
    try:
        connected = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        break
    except ConnectionRefusedError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.01)
socket.send_fds(socket.socket(fileno=0), [b"."], [connected.fileno()])
"""

_REGISTRATION_S = 60
_CONTROL_PORT = 4444
_LOG_CHARACTERS = 4000
_BARESIP_MODULE_PATHS = (
    *Path("/usr/lib").glob("baresip/modules"),
    *Path("/usr/lib").glob("*-linux-gnu*/baresip/modules"),
    *Path("/usr/lib64").glob("baresip/modules"),
)
_BARESIP_MODULES = ("g711", "aufile", "aubridge", "sndfile")
_BARESIP_EVENTS = {
    "REGISTER_OK": "registered",
    "REGISTER_FAIL": "refused",
    "CALL_INCOMING": "incoming",
    "CALL_ESTABLISHED": "established",
    "CALL_CLOSED": "ended",
}


def why_no_baresip() -> str | None:
    """Say why there can be no baresip here; None when there can."""
    if shutil.which("baresip") is None or not _BARESIP_MODULE_PATHS:
        return "baresip is not installed (apt install baresip-core)"
    return None


def why_no_pyvoip() -> str | None:
    """Say why there can be no pyVoIP here; None when there can."""
    if find_spec("pyVoIP") is None:
        return "pyVoIP is not installed (pip install pyVoIP; it needs a Python below 3.13)"
    return None


class Phone(ABC):
    """A telephone of one user at a server, which plays one tone and records what it hears.

    It stands on a host, `at` an address of it or wherever it pleases. It is there as long as the `with` block
    lasts, answers every call, and has one at a time.
    """

    def __init__(
        self,
        host: Host,
        user: str,
        at: Endpoint = ANYWHERE,
        *,
        plays_hz: int,
        password: str = "",
        server: Endpoint = REGISTRAR,
    ) -> None:
        self._host = host
        self._at = at
        self._password = password
        self.user = user
        self.server = server
        self.plays_hz = plays_hz
        self._told: list[str] = []
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{user}-")
        self.directory = Path(self._scratch.name)
        self.tone = self.directory / "tone.wav"
        write_tone(self.tone, plays_hz)

    @classmethod
    def outside(cls, lab: Lab, user: str, **words: Any) -> Self:
        """One on the public side; `words` as above."""
        return cls(lab.public, user, SERVER.with_port(5060), **words)

    @classmethod
    def inside(cls, lab: Lab, user: str, **words: Any) -> Self:
        """One on the client, without any help against its NAT."""
        return cls(lab.client, user, Endpoint.of(lab.topology.client_address, 5060), **words)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Where others call it, who have the same server."""
        return uri_of(self.user, self.server)

    @property
    def log(self) -> str:
        """The last of what it wrote to its stderr, or baresip to either stream."""
        file = self.directory / "log"
        return file.read_text(errors="replace")[-_LOG_CHARACTERS:] if file.exists() else ""

    @abstractmethod
    def register(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        """Register, and wait until that has succeeded."""

    @abstractmethod
    def call(self, user: str) -> None:
        """Call another user; `wait_established` waits for an answer."""

    @abstractmethod
    def hang_up(self) -> None:
        """End the call."""

    @abstractmethod
    def recordings(self) -> Sequence[Path]:
        """The WAV files of what it has heard, and hears."""

    @abstractmethod
    def _start(self) -> None:
        """Start, until it can be told something."""

    @abstractmethod
    def _next_event(self, within_s: float) -> tuple[str, str] | None:
        """What happened next, and why: registered, refused, established, ended; None if nothing did."""

    def close(self) -> None:
        """End it, without a word to anybody."""
        self._scratch.cleanup()

    def wait_established(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        """Wait until a call is answered, its own or one that came in."""
        self.wait_for("established", unless="ended", within_s=within_s)

    def wait_ended(self, *, within_s: float = PATIENCE_SECONDS) -> str:
        """Wait until the call has ended, or has failed, and return the reason."""
        return self.wait_for("ended", within_s=within_s)

    def hear(self, *, within_s: float = TONE_SECONDS) -> set[int]:
        """The tones, in Hz, that it hears from now on, once it hears one; the empty set if it is deaf."""
        return hear(self.recordings, within_s=within_s)

    def wait_for(self, event: str, *, unless: str = "", within_s: float = PATIENCE_SECONDS) -> str:
        """Wait for an event, passing over others, and return its reason."""
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            happened = self._next_event(left_s)
            if happened is None:
                break
            name, reason = happened
            self._told.append(f"{name} {reason}")
            if name == event:
                return reason
            assert name != unless, f"{self.user}: {name} instead of {event}: {reason} {self.log}"
        raise AssertionError(f"{self.user}: not {event} within {within_s} s: {self._told} {self.log}")


def uri_of(user: str, server: Endpoint = REGISTRAR) -> str:
    """The address of record of a user at a server on port 5060."""
    return f"sip:{user}@{server.ip}"


class Baresip(Phone):
    """Baresip, as Debian has it, at an address of a host, which must be the first of its interface."""

    def __init__(
        self,
        host: Host,
        user: str,
        at: Endpoint,
        *,
        outbound: Endpoint | None = None,
        control_port: int = _CONTROL_PORT,
        **words: Any,
    ) -> None:
        """With `outbound` all that it sends goes by that proxy; two on one host need two control ports."""
        super().__init__(host, user, at, **words)
        self._outbound = outbound
        self._control_port = control_port
        self._control: socket.socket | None = None
        self._held = b""
        self._events: list[tuple[str, str]] = []
        self._answers: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] | None = None
        self._has_account = False

    def _start(self) -> None:
        lines = [
            f"sip_listen {self._at}",
            f"net_interface {CLIENT_INTERFACE}",
            f"ctrl_tcp_listen 127.0.0.1:{self._control_port}",
            "poll_method epoll",
            f"audio_source aufile,{self.tone}",
            "audio_player aubridge,none",
            f"audio_alert aufile,{self.directory}/none.wav",
            *(f"{way}_format s16" for way in ("ausrc", "auplay", "auenc", "audec")),
            "rtp_ports 16384-16484",
            "jitter_buffer_delay 1-2",
            "ringback_disabled yes",
            f"snd_path {self.directory}",
            f"module_path {_BARESIP_MODULE_PATHS[0]}",
            *(f"module {name}.so" for name in _BARESIP_MODULES),
            *(f"module_tmp {name}.so" for name in ("uuid", "account")),
            *(f"module_app {name}.so" for name in ("menu", "ctrl_tcp")),
        ]
        (self.directory / "config").write_text("\n".join([*lines, ""]))
        for name in ("accounts", "contacts"):
            (self.directory / name).write_text("")
        with (self.directory / "log").open("w") as log:
            self._process = self._host.popen(
                ["baresip", "-4", "-f", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._control = _connected(self._host, self._control_port)

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
        super().close()

    def register(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        if self._has_account:
            self._command("uadel", self.uri)
        self._make_account(refresh_s=_REGISTRATION_S)
        self.wait_for("registered", unless="refused", within_s=within_s)

    def _make_account(self, refresh_s: int) -> None:
        """Add its user, who registers at once unless `refresh_s` is 0."""
        password = self._password or "none"  # without one, it would ask for it at the terminal
        words = f"<{self.uri}>;answermode=auto;regint={refresh_s};auth_pass={password}"
        if self._outbound is not None:
            words += f';outbound="sip:{self._outbound}"'
        self._command("uanew", words)
        self._has_account = True

    def call(self, user: str) -> None:
        if not self._has_account:
            self._make_account(refresh_s=0)
        self._command("dial", uri_of(user, self.server))

    def hang_up(self) -> None:
        self._command("hangup")

    def hold(self) -> None:
        """Put the call on hold, by a re-INVITE (RFC 3264 §8.4)."""
        self._command("hold")

    def resume(self) -> None:
        """Take the call up again, by another re-INVITE."""
        self._command("resume")

    def recordings(self) -> Sequence[Path]:
        return list(self.directory.glob("dump-*-dec.wav"))

    def _command(self, command: str, params: str = "") -> None:
        assert self._control is not None
        text = json.dumps({"command": command, "params": params, "token": command})
        self._control.sendall(b"%d:%s," % (len(text), text.encode()))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers:
            left_s = deadline - time.monotonic()
            assert self._hear(max(left_s, 0)), f"baresip does not answer {command}: {self.log}"
        answer = self._answers.pop(0)
        assert answer["ok"], f"baresip refuses {command} {params}: {answer}"

    def _next_event(self, within_s: float) -> tuple[str, str] | None:
        deadline = time.monotonic() + within_s
        while not self._events:
            if not self._hear(max(deadline - time.monotonic(), 0)):
                return None
        return self._events.pop(0)

    def _hear(self, within_s: float) -> bool:
        """Take what it says, a netstring of JSON at a time; False if that is nothing."""
        assert self._control is not None
        if not select.select([self._control], [], [], within_s)[0]:
            return False
        piece = self._control.recv(65536)
        assert piece, f"baresip has ended: {self.log}"
        self._held += piece
        while (length := self._held.partition(b":")[0]).isdigit():
            start, end = len(length) + 1, len(length) + 1 + int(length)
            if len(self._held) <= end:
                break
            self._take(json.loads(self._held[start:end]))
            self._held = self._held[end + 1 :]
        return True

    def _take(self, told: dict[str, Any]) -> None:
        if "response" in told:
            self._answers.append(told)
        elif told["type"] in _BARESIP_EVENTS:
            self._events.append((_BARESIP_EVENTS[told["type"]], told.get("param", "")))


def _connected(host: Host, port: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connector = host.popen(
            [sys.executable, "-I", "-S", "-c", _CONNECTOR, str(port)], stdin=theirs.fileno()
        )
        theirs.close()
        files = socket.recv_fds(ours, 1, 1)[1]
        assert connector.wait(PATIENCE_SECONDS) == 0
    return socket.socket(fileno=files[0])


class ProgramPhone(Phone):
    """A telephone that is a program, which obeys lines (`register`, `call USER`, `hang_up`) and tells JSON.

    Each of its lines has an `event` and perhaps a `reason`; lines of another form are ignored.
    """

    _process: Process | None = None
    _lines: Lines | None = None

    @abstractmethod
    def _argv(self) -> Sequence[str]:
        """The command line of the program."""

    def _start(self) -> None:
        with (self.directory / "log").open("w") as log:
            self._process = self._host.popen(
                self._argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT
            )
        self._lines = Lines(self._process)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        super().close()

    def register(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        self.command("register")
        self.wait_for("registered", unless="refused", within_s=within_s)

    def call(self, user: str) -> None:
        self.command("call", user)

    def hang_up(self) -> None:
        self.command("hang_up")

    def command(self, *words: str) -> None:
        """Write a line to the program."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def recordings(self) -> Sequence[Path]:
        return list(self.directory.glob("heard*.wav"))

    def _next_event(self, within_s: float) -> tuple[str, str] | None:
        assert self._lines is not None
        deadline = time.monotonic() + within_s
        while self._lines.are_there(within_s=max(deadline - time.monotonic(), 0)):
            line = self._lines.next()
            assert line, f"{self.user}: the program has ended: {self.log}"
            if (told := self._read(line)) is not None:
                return told
        return None

    def _read(self, line: str) -> tuple[str, str] | None:
        """The event that a line tells, and its reason; None where it tells none."""
        if not line.startswith("{"):
            return None
        told = json.loads(line)
        return told["event"], told.get("reason", "")


class PyVoip(ProgramPhone):
    """pyVoIP on a host, unchanged; `line` is a line of Python that its program begins with."""

    def __init__(self, host: Host, user: str, at: Endpoint, *, line: str = "", **words: Any) -> None:
        super().__init__(host, user, at, **words)
        self._line = line

    def _argv(self) -> Sequence[str]:
        where = (self.server.ip, self.server.port, self.user, self._at.ip, self._at.port, self.directory)
        program = (sys.executable, "-m", "tests.lab.pyvoip_program", *map(str, where))
        return (*program, f"--password={self._password}", f"--line={self._line}")
