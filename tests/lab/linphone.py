"""Linphone's console telephone as Debian has it, unmodified, with files in place of a sound card.

What happens to calls it writes as lines; of its registration it tells who asks. It has GRUU, and a "nat
helper" that puts the address which the registrar saw into its Contact.
"""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING, Self

from nattools.endpoint import Endpoint
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import REGISTRAR
from tests.lab.sip_peers import ProgramPhone, uri_of
from tests.lab.tones import write_tone

if TYPE_CHECKING:
    from nattools.lab.namespaces import Host, Lab

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

    def __init__(
        self,
        host: Host,
        user: str,
        at: Endpoint,
        *,
        plays_hz: int,
        password: str = "",
        server: Endpoint = REGISTRAR,
    ) -> None:
        super().__init__(host, user, (), plays_hz=plays_hz, server=server)
        self._password = password
        self._at = at
        settings = self.directory / "settings"
        self._argv = (
            *("env", f"HOME={self.directory}", _PROGRAM),
            *("-a", "-c", str(settings), "-d", "6", "-l", str(self.directory / "log")),
        )

    @classmethod
    def inside(
        cls, lab: Lab, user: str, *, plays_hz: int, password: str = "", server: Endpoint = REGISTRAR
    ) -> Self:
        """One on the client, without any help against its NAT."""
        at = Endpoint.of(lab.topology.client_address, 5060)
        return cls(lab.client, user, at, plays_hz=plays_hz, password=password, server=server)

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
