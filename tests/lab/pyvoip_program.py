"""A telephone made of pyVoIP as it comes; run on a host of a laboratory by `tests.lab.sip_peers.PyVoip`.

It obeys lines on its stdin (`register`, `call USER`, `hang_up`) and tells, in JSON lines, what happens:
registered, refused, incoming, established, ended. It answers every call, plays `tone.wav` of its directory
and writes what it hears to `heard.wav` there. It ends when its stdin ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import wave
from array import array
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pyVoIP
from pyVoIP.VoIP import CallState, VoIPCall, VoIPPhone
from pyVoIP.VoIP.status import PhoneStatus

from tests.lab.tones import RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAME_S = 0.02
_FRAME_BYTES = 160
_NOTHING_HEARD = b"\x80" * _FRAME_BYTES
_RTP_PORTS = (16500, 16600)


def tell(event: str, reason: str = "") -> None:
    """One line."""
    sys.stdout.write(json.dumps({"event": event, "reason": reason}) + "\n")
    sys.stdout.flush()


class Telephone:
    """One phone, and the call that it has."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._directory: Path = options.directory
        self._call: VoIPCall | None = None
        self._phone = VoIPPhone(
            options.server,
            options.server_port,
            options.user,
            options.password,
            myIP=options.ip,
            callCallback=self._answer,
            sipPort=options.port,
            rtpPortLow=_RTP_PORTS[0],
            rtpPortHigh=_RTP_PORTS[1],
        )
        self._voice = _eight_bits(self._directory / "tone.wav")

    def register(self) -> None:
        """Register, and tell how that went."""
        try:
            self._phone.start()
        except OSError as error:
            tell("refused", str(error))
            return
        status = self._phone.get_status()
        tell("registered" if status is PhoneStatus.REGISTERED else "refused", status.name)

    def call(self, user: str) -> None:
        """Call somebody, and stay in the call until it ends."""
        self._call = self._phone.call(user)
        while self._call.state is CallState.DIALING:
            time.sleep(_FRAME_S / 2)
        self._talk(self._call)

    def hang_up(self) -> None:
        """End the call."""
        if self._call is not None and self._call.state is CallState.ANSWERED:
            self._call.hangup()

    def _answer(self, call: VoIPCall) -> None:
        tell("incoming")
        self._call = call
        call.answer()
        self._talk(call)

    def _talk(self, call: VoIPCall) -> None:
        if call.state is CallState.ANSWERED:
            tell("established")
        call.write_audio(self._voice)
        with (self._directory / "heard.wav").open("ab") as heard:
            while call.state is CallState.ANSWERED:
                while (frame := call.read_audio(_FRAME_BYTES, blocking=False)) != _NOTHING_HEARD:
                    heard.write(_sixteen_bits(frame))
                heard.flush()
                time.sleep(_FRAME_S / 2)
        tell("ended", call.state.name)


def _eight_bits(tone: Path) -> bytes:
    """A WAV file of 16 bits as pyVoIP wants it, unsigned bytes."""
    with wave.open(str(tone), "rb") as file:
        return bytes((sample >> 8) + 128 for sample in array("h", file.readframes(file.getnframes())))


def _sixteen_bits(frame: bytes) -> bytes:
    return array("h", ((byte - 128) << 8 for byte in frame)).tobytes()


def main() -> None:
    """Obey until there are no more commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("server_port", type=int)
    parser.add_argument("user")
    parser.add_argument("ip")
    parser.add_argument("port", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--password", default="")
    parser.add_argument("--line", default="", help="what the program does first, in Python")
    options = parser.parse_args()
    exec(options.line, {"pyVoIP": pyVoIP})  # the one line that may be added to a program
    with wave.open(str(options.directory / "heard.wav"), "wb") as empty:
        empty.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
    telephone = Telephone(options)
    commands: dict[str, Callable[..., None]]
    commands = {"register": telephone.register, "call": telephone.call, "hang_up": telephone.hang_up}
    tell("ready")
    for line in sys.stdin:
        command, *arguments = line.split()
        Thread(target=commands[command], args=arguments, daemon=True).start()
    os._exit(0)  # pyVoIP's threads would go on


if __name__ == "__main__":
    main()
