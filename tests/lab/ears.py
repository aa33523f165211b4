"""What RTP reaches a host, as its network delivers it and whatever a phone there makes of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Host
from tests.lab.conftest import PATIENCE_SECONDS

_POLL_S = 0.005

# A line for each packet of RTP's version 2 (RFC 3550 §5.1) that comes to this host by UDP over IPv4.
_LISTENER = """
import socket, struct, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
with open(sys.argv[1], "w", buffering=1) as told:
    told.write("listening\\n")
    while True:
        packet, where = wire.recvfrom(65536)
        start = (packet[0] & 15) * 4
        if where[2] or packet[9] != socket.IPPROTO_UDP or len(packet) < start + 20:
            continue
        if packet[start + 8] >> 6 != 2:
            continue
        ports = struct.unpack_from("!HH", packet, start)
        source, to = (f"{socket.inet_ntoa(packet[at:at + 4])}:{port}" for at, port in zip((12, 16), ports))
        _, kind, sequence, _, ssrc = struct.unpack_from("!BBHII", packet, start + 8)
        told.write(f"{time.monotonic()} {source} {to} {kind & 127} {sequence} {ssrc}\\n")
"""


@dataclass(frozen=True, slots=True)
class Packet:
    """An RTP packet that came to a host, and when, by the clock of `time.monotonic`."""

    at_s: float
    source: Endpoint
    to: Endpoint
    payload_type: int
    sequence: int
    ssrc: int


class Ears:
    """What has reached the host so far."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def packets(self) -> list[Packet]:
        """All RTP so far, in the order in which it came; RTCP shows as payload types from 72 to 76."""
        packets = []
        for line in self._file.read_text().splitlines()[1:]:
            words = line.split()
            if len(words) == 6:  # the last line may be half written
                at_s, source, to, *numbers = words
                packets.append(
                    Packet(float(at_s), Endpoint.parse(source), Endpoint.parse(to), *map(int, numbers))
                )
        return packets


@contextmanager
def ears(host: Host) -> Iterator[Ears]:
    """Listen on a host as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ears-") as scratch:
        file = Path(scratch, "told")
        program = [sys.executable, "-I", "-S", "-c", _LISTENER, str(file)]
        with host.popen(program, stdin=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not file.exists() or not file.read_text():
                    assert process.poll() is None, "nobody can listen on this host"
                    assert time.monotonic() < deadline
                    time.sleep(_POLL_S)
                yield Ears(file)
            finally:
                process.kill()
