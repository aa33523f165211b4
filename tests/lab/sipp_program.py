"""A telephone made of sipp as it comes; run on a host of a laboratory by `tests.lab.sipp.Sipp`.

It obeys lines on its stdin (`register`, `call USER`, `hang_up`) and tells, in JSON lines, what happens.
Each of them, and waiting for calls, is a run of sipp with a scenario of `tests/lab/scenarios`, one at a
time on one port. sipp plays, and looks at nothing that it hears: that is recorded beside it, from the RTP
that the host is sent on a port that somebody has bound.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import wave
from array import array
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

from tests.lab import g711
from tests.lab.tones import RATE_HZ

_SCENARIOS = Path(__file__).parent / "scenarios"
_LONGEST_S = 60
_MEDIA_PORTS = range(17000, 18000)
_END_S = 5.0
_PCMU = 0
_ETH_P_IP = 0x0800
_RTP_HEADER_BYTES = 12


def tell(event: str, reason: str = "") -> None:
    """One line."""
    sys.stdout.write(json.dumps({"event": event, "reason": reason}) + "\n")
    sys.stdout.flush()


class Telephone:
    """One phone: the run of sipp that it is just now."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._sipp: subprocess.Popen[bytes] | None = None
        self._told: Path = options.directory / "told"  # which the scenario of a call looks into
        self._lock = Lock()

    def obey(self, command: str, *words: str) -> None:
        """Do what one line says."""
        with self._lock:
            match command:
                case "register":
                    self._end()
                    ended = self._run("register").wait()
                    tell("refused" if ended else "registered", self._said() if ended else "")
                    self._wait_for_calls()
                case "call":
                    self._end()
                    self._told.write_text("0")
                    self._sipp = self._run("call", "-s", *words)
                    Thread(target=self._watch, args=[self._sipp], daemon=True).start()
                case "hang_up":
                    self._told.write_text("1")

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._end()

    def _wait_for_calls(self) -> None:
        self._sipp = self._run("wait", "-aa")

    def _watch(self, run: subprocess.Popen[bytes]) -> None:
        """Tell how a call that was made here has ended, and wait for other ones."""
        ended = run.wait()
        with self._lock:
            if self._sipp is run:
                tell("ended", self._said() if ended else "")
                self._wait_for_calls()

    def _end(self) -> None:
        """End the run, without a word to anybody, so that its port is free."""
        if self._sipp is not None:
            run, self._sipp = self._sipp, None
            run.kill()
            run.wait(_END_S)

    def _run(self, scenario: str, *words: str) -> subprocess.Popen[bytes]:
        options = self._options
        (options.directory / "errors").unlink(missing_ok=True)
        command = [
            *("sipp", f"{options.server}:{options.server_port}", "-sf", str(_SCENARIOS / f"{scenario}.xml")),
            *("-i", options.ip, "-p", str(options.port), "-mi", options.ip, "-mp", str(_MEDIA_PORTS[0])),
            *("-au", options.user, "-ap", options.password, "-key", "user", options.user),
            *("-trace_err", "-error_file", "errors", "-nostdin", *words),
            *(() if scenario == "wait" else ("-m", "1", "-timeout", str(_LONGEST_S))),
        ]
        return subprocess.Popen(command, cwd=options.directory, stdout=subprocess.DEVNULL)

    def _said(self) -> str:
        file = self._options.directory / "errors"
        return file.read_text(errors="replace")[-600:] if file.exists() else ""


def record(directory: Path) -> None:
    """Write down what comes to this host as G.711 in RTP (RFC 3550 §5.1, RFC 3551)."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as wire,
        (directory / "heard.wav").open("ab", buffering=0) as heard,
    ):
        while True:
            packet, where = wire.recvfrom(65536)
            if where[2] == socket.PACKET_HOST and (payload := _payload(packet)) is not None:
                heard.write(g711.decode(payload))


def _payload(packet: bytes) -> bytes | None:
    """The audio of an IPv4 packet; None if it is not PCMU in RTP for a port of sipp's."""
    header = (packet[0] & 15) * 4
    if packet[9] != socket.IPPROTO_UDP or len(packet) < header + 8 + _RTP_HEADER_BYTES:
        return None
    destination, length = struct.unpack_from("!HH", packet, header + 2)
    rtp = packet[header + 8 : header + length]
    if rtp[0] != 0x80 or rtp[1] & 0x7F != _PCMU or not _is_sipps(destination):
        return None
    return rtp[_RTP_HEADER_BYTES:]


def _is_sipps(port: int) -> bool:
    """Whether it is one of the ports that sipp takes for media, and is bound now."""
    return port in _MEDIA_PORTS and any(
        f":{port:04X} " in line for line in Path("/proc/net/udp").read_text().splitlines()[1:]
    )


def report(directory: Path) -> None:
    """Tell what the scenarios say has happened."""
    with open(os.open(directory / "events", os.O_RDWR)) as events:  # both ends, so that it never ends
        for line in events:
            tell(line.strip())


def main() -> None:
    """Obey until there are no more commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("server_port", type=int)
    parser.add_argument("user")
    parser.add_argument("ip")
    parser.add_argument("port", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--password", default="none")
    options = parser.parse_args()
    directory: Path = options.directory
    with wave.open(str(directory / "tone.wav"), "rb") as file:
        (directory / "tone.ulaw").write_bytes(g711.encode(array("h", file.readframes(file.getnframes()))))
    with wave.open(str(directory / "heard.wav"), "wb") as empty:
        empty.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
    os.mkfifo(directory / "events")
    for work in (record, report):
        Thread(target=work, args=[directory], daemon=True).start()
    telephone = Telephone(options)
    tell("ready")
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            telephone.obey(*line.split())
    telephone.close()


if __name__ == "__main__":
    main()
