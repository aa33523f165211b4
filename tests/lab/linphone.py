"""Linphone's console telephone as Debian has it, unmodified, with files in place of a sound card.

What happens to calls it writes as lines; of its registration it tells who asks. It has GRUU, and a "nat
helper" that puts the address which the registrar saw into its Contact.
"""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING

from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.sip_peers import ProgramPhone, uri_of
from tests.lab.tones import write_tone

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = "linphonec"
_REGISTRATION_S = 60
_POLL_S = 0.05
_EVENTS = (
    ("registered", re.compile(r"registered, identity=(\S*)")),
    ("unregistered", re.compile(r"registered=-?\d")),
    ("incoming", re.compile(r"Receiving new incoming call from (\S+),")),
    ("established", re.compile(r"Call \d+ with (\S+) connected\.")),
    ("ended", re.compile(r"Call \d+ with \S+ (?:ended \((.*)\)|error)\.")),
)


def why_no_linphone() -> str | None:
    """Say why there can be no linphone here; None when there can."""
    if shutil.which(_PROGRAM) is None:
        return "linphonec is not installed (apt install linphone-cli)"
    return None


class Linphone(ProgramPhone):
    """Linphonec on a host, at an address of it."""

    def _argv(self) -> Sequence[str]:
        files = ("-c", str(self.directory / "settings"), "-d", "6", "-l", str(self.directory / "log"))
        return ("env", f"HOME={self.directory}", _PROGRAM, "-a", *files)

    def _start(self) -> None:
        (self.directory / ".local" / "share" / "linphone").mkdir(parents=True)
        lines = [
            "[sip]",
            f"sip_port={self._at.port}",
            "sip_tcp_port=0",
            "sip_tls_port=0",
            "[proxy_0]",
            f"reg_proxy=<{uri_of('', self.server).replace('@', '')}>",
            f"reg_identity={self.uri}",
            f"reg_expires={_REGISTRATION_S}",
            "reg_sendregister=0",
            "[auth_info_0]",
            f"username={self.user}",
            f"passwd={self._password or 'none'}",
            "",
        ]
        (self.directory / "settings").write_text("\n".join(lines))
        # It adds to a recording that is there. The header of one that it begins it writes when the call ends.
        write_tone(self.directory / "heard.wav", self.plays_hz, seconds=0)
        super()._start()
        for words in ("soundcard use files", f"play {self.tone}", f"record {self.directory}/heard.wav"):
            self.command(words)

    def register(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        self.command("register", self.uri, uri_of(self.user, self.server), self._password or "none")
        deadline = time.monotonic() + within_s
        while True:
            self.command("status register")
            happened = self._next_event(within_s)
            if happened is not None and happened[0] == "registered":
                return
            assert time.monotonic() < deadline, f"{self.user}: not registered: {happened} {self.log}"
            time.sleep(_POLL_S)

    def call(self, user: str) -> None:
        self.command("call", uri_of(user, self.server))

    def hang_up(self) -> None:
        self.command("terminate")

    def _read(self, line: str) -> tuple[str, str] | None:
        for event, said in _EVENTS:
            if (found := said.search(line)) is not None:
                return event, found[1] if found.lastindex else ""
        return None
