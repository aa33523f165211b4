"""Bindings that `binding_program` opens on a host of a laboratory, and who sends to them from outside."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nattools.endpoint import Endpoint
from tests.lab.conftest import PATIENCE_SECONDS, Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.lab.namespaces import Host, Lab, Process
    from tests.lab.conftest import OpenSockets

ROOT = Path(__file__).parents[2]
ARRIVES_SECONDS = 5.0  # for what must arrive

_ANY = Endpoint.parse("0.0.0.0:0")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_VERSION_AND_WORDS = 0x45  # a header of five words
_TTL = 64


class RemoteBinding:
    """One binding of a program: what is told of it, and what came out of its socket."""

    def __init__(self, program: BindingProgram, name: str) -> None:
        self.datagrams: list[tuple[str, str]] = []
        self.changes: list[dict[str, Any]] = []
        self._program = program
        self._name = name
        self._events: list[dict[str, Any]] = []

    def until(self, *events: str, within_s: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The first of these events; others before it are passed over."""
        deadline = time.monotonic() + within_s
        while True:
            while not self._events:
                self._program.hear(within_s=max(deadline - time.monotonic(), 0))
            told = self._events.pop(0)
            if told["event"] in events:
                return told

    def has_received(self, text: str, *, within_s: float) -> bool:
        """Whether a datagram with this text came out of the binding's socket, or does so soon."""
        deadline = time.monotonic() + within_s
        while all(data != text for data, _ in self.datagrams):
            if not self._program.has_news(within_s=max(deadline - time.monotonic(), 0)):
                return False
            self._program.hear(within_s=0)
        return True

    def send(self, destination: Endpoint, text: str) -> None:
        """Have it send from the binding's socket."""
        self._program.command("send", self._name, str(destination), text)

    def close(self) -> None:
        """Have it close the binding; `until` tells when that is done."""
        self._program.command("close", self._name)

    def heard(self, told: dict[str, Any]) -> None:
        """The program has told this."""
        if told["event"] == "datagram":
            self.datagrams.append((told["data"], told["source"]))
            return
        if told["event"] in ("changed", "lost", "restored"):
            self.changes.append(told)
        self._events.append(told)


class BindingProgram:
    """The program on a host, as long as the `with` block lasts."""

    def __init__(self, host: Host) -> None:
        self.process: Process = host.popen(
            [sys.executable, "-m", "tests.lab.binding_program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lines = Lines(self.process)
        self._bindings: list[RemoteBinding] = []

    def __enter__(self) -> BindingProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def open(self, local: str, **words: object) -> RemoteBinding:
        """Have it open a binding with these settings; `until` tells when it has, or has failed to."""
        name = str(len(self._bindings))
        self._bindings.append(RemoteBinding(self, name))
        self.command("open", name, local, json.dumps(words))
        return self._bindings[-1]

    def command(self, *words: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def has_news(self, *, within_s: float) -> bool:
        """Whether there is something to hear, or will be within that time."""
        return self._lines.are_there(within_s=within_s)

    def hear(self, *, within_s: float) -> None:
        """Take one line and pass it to its binding."""
        line = self._lines.next(within_s=within_s)
        assert line, "the program has ended"
        told = cast(dict[str, Any], json.loads(line))
        self._bindings[int(told["name"])].heard(told)

    def end(self) -> None:
        """Have it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_SECONDS) == 0


@contextmanager
def remote_binding(host: Host, local: str, **words: object) -> Iterator[RemoteBinding]:
    """A binding in a program of its own, which has given it back when the block ends without an error."""
    with BindingProgram(host) as program:
        binding = program.open(local, **words)
        yield binding
        binding.close()
        assert binding.until("released", "failed")["event"] == "released"
        program.end()


class Impostor:
    """Sends from any address and port of the public side, also where somebody else has a socket."""

    def __init__(self, lab: Lab, open_sockets: OpenSockets) -> None:
        [self._socket] = open_sockets(lab.public, [_ANY], kind=socket.SOCK_RAW)

    def send(self, source: Endpoint, destination: Endpoint, text: str) -> None:
        """Send a UDP datagram over IPv4; where there is no way to `destination`, nothing."""
        data = text.encode()
        addresses = (source.ip.packed, destination.ip.packed)
        # The kernel writes the packet's length, number and checksum; UDP over IPv4 does without one.
        header = _IPV4.pack(_VERSION_AND_WORDS, 0, 0, 0, 0, _TTL, socket.IPPROTO_UDP, 0, *addresses)
        datagram = _UDP.pack(source.port, destination.port, _UDP.size + len(data), 0) + data
        with suppress(OSError):
            self._socket.sendto(header + datagram, (str(destination.ip), 0))
