"""A relay that `relay_program` runs on a laboratory's router, and phones on both sides of it."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nattools.endpoint import Endpoint
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, Lines, next_datagram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.lab.namespaces import Host, Process

ROOT = Path(__file__).parents[2]
RELAY_ADDRESS = "203.0.113.1"  # the router's towards the public side; the client reaches it as well
SAMPLES = bytes(160)  # 20 ms of G.711


def rtp(sequence: int, *, ssrc: int = 0x5EED_0001, payload_type: int = 0) -> bytes:
    """An RTP packet of 172 bytes (RFC 3550 §5.1)."""
    number = sequence & 0xFFFF
    return struct.pack("!BBHII", 0x80, payload_type, number, number * 160, ssrc) + SAMPLES


def rtcp(*, ssrc: int = 0x5EED_0001) -> bytes:
    """An empty receiver report (RFC 3550 §6.4.2)."""
    return struct.pack("!BBHI", 0x80, 201, 1, ssrc)


def heard(at: socket.socket) -> tuple[bytes, Endpoint] | None:
    """What has come to a socket, or will soon; None if nothing has."""
    return next_datagram(at, FENCE_SECONDS)


@dataclass
class Phone:
    """A socket at one side of a stream, and the ports of the relay that it sends to."""

    socket: socket.socket
    relay: Endpoint
    sequence: int = 100
    ssrc: int = 0x5EED_0001

    def say(self) -> bytes:
        """Send the next packet of its stream."""
        packet = rtp(self.sequence, ssrc=self.ssrc)
        self.sequence += 1
        self.socket.sendto(packet, (str(self.relay.ip), self.relay.port))
        return packet

    def hears(self, packet: bytes, *, source: Endpoint) -> bool:
        """Whether the packet comes to it from there; what came before it is passed over."""
        while (received := next_datagram(self.socket, PATIENCE_SECONDS)) is not None:
            if received[0] == packet:
                return received[1] == source
        return False


def talk(one: Phone, other: Phone, *, packets: int = 3) -> bool:
    """Whether each hears what the other says, from the relay's port that it sends to."""
    return all(
        listener.hears(speaker.say(), source=listener.relay)
        for _ in range(packets)
        for speaker, listener in ((one, other), (other, one))
    )


def is_followed(moved: Phone, other: Phone) -> bool:
    """Whether a phone that moved is heard from its first packet on, and soon hears the other one."""
    if not other.hears(moved.say(), source=other.relay):
        return False
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        packet = other.say()
        if next_datagram(moved.socket, 0.05) == (packet, moved.relay):
            return talk(moved, other)
    return False


class RemoteRelay:
    """The program, as seen from the test."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines = Lines(process)

    def tell(self) -> dict[str, Any]:
        """The next line that it writes."""
        line = json.loads(self._lines.next())
        assert isinstance(line, dict)
        return line

    def do(self, do: str, name: str = "call", **what: object) -> Any:
        """Have it do something, and return what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "name": name, **what}) + "\n")
        self.process.stdin.flush()
        line = self.tell()
        assert "error" not in line, line
        return line["told"]

    def call(self, a: socket.socket, b: socket.socket, *, name: str = "call") -> tuple[Phone, Phone]:
        """A stream whose SDP on both sides says where the sockets are."""
        told = self.do("open", name)
        phones = [
            Phone(sock, Endpoint.parse(told[side]["rtp"]), ssrc=ssrc)
            for side, sock, ssrc in (("a", a, 0x5EED_000A), ("b", b, 0x5EED_000B))
        ]
        for side, sock in (("a", a), ("b", b)):
            self.do("expect", name, side=side, rtp=str(Endpoint.of(*sock.getsockname()[:2])))
        return phones[0], phones[1]

    def close(self) -> None:
        """End its input, on which it gives everything back."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_SECONDS) == 0


@contextmanager
def running_relay(host: Host, *arguments: str) -> Iterator[RemoteRelay]:
    """The program on that host, until it is closed or the block ends."""
    pipe = subprocess.PIPE
    program = [sys.executable, "-m", "tests.lab.relay_program", *arguments]
    with host.popen(program, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
        try:
            yield RemoteRelay(process)
        finally:
            if process.poll() is None:
                process.kill()
