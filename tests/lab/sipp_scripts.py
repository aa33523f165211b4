"""Sides of a call written down step by step, and played by sipp: what it sends, what must come, with what.

sipp ends a script by a fault where another message comes than the next one, or one without what it must have.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from tests.lab.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nattools.endpoint import Endpoint
    from nattools.lab.namespaces import Host

VIA = "Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]"
REPEATED = "[last_Via:]"
"""The Via of the last message: for the ACK of a refusal, and for CANCEL."""

_LOG_CHARACTERS = 3000
_SDP = """v=0
o=- 1 {version} IN IP4 [local_ip]
s=-
c=IN IP4 [local_ip]
t=0 0
m=audio {port} RTP/AVP 0
a=rtpmap:0 PCMU/8000
"""


def sdp(port: int, version: int = 1) -> str:
    """A description of one stream of PCMU."""
    return _SDP.format(port=port, version=version)


class Script:
    """One side of a call: `own` and `far` are the addresses of record, without tags; `tag` is its own tag."""

    def __init__(self, own: str, far: str, tag: str) -> None:
        self.own = own
        self.far = far
        self.tag = tag
        self._steps: list[str] = []
        self._variables: list[str] = []

    def request(
        self,
        start: str,
        cseq: int,
        *headers: str,
        via: str = VIA,
        body: str = "",
        far_tag: str = "[peer_tag_param]",
        repeats: bool = True,
    ) -> None:
        """Send a request: its method and Request-URI, its number, and what it has besides."""
        method = start.partition(" ")[0]
        content = ["Content-Type: application/sdp"] if body else []
        self._send(
            [
                f"{start} SIP/2.0",
                via,
                "Max-Forwards: 70",
                f"From: <{self.own}>;tag={self.tag}",
                f"To: <{self.far}>{far_tag}",
                "Call-ID: [call_id]",
                f"CSeq: {cseq} {method}",
                *headers,
                *content,
            ],
            body,
            repeats=repeats and method != "ACK",
        )

    def response(
        self, status: str, *headers: str, via: str = "[last_Via:]", cseq: str = "", body: str = ""
    ) -> None:
        """Answer the last request that came, or another one by its Vias and CSeq."""
        content = ["Content-Type: application/sdp"] if body else []
        named = f"To: <{self.own}>;tag={self.tag}"
        self._send(
            [
                f"SIP/2.0 {status}",
                via,
                *(["[last_Record-Route:]"] if status < "3" else []),
                "[last_From:]",
                named,
                "[last_Call-ID:]",
                f"CSeq: {cseq}" if cseq else "[last_CSeq:]",
                *headers,
                *content,
            ],
            body,
            repeats=status.startswith(("2", "3", "4", "5", "6")) and bool(body or status[0] != "2"),
        )

    def receive(
        self,
        what: str | int,
        *has: tuple[str, str],
        lacks: Iterable[str] = (),
        whole: Iterable[str] = (),
        asks: bool = False,
        within_ms: int = 10_000,
    ) -> None:
        """Have a request, or a response of that code, come next; `has` are headers and what is in each.

        `lacks` are headers that it must not have, `whole` is what must be found anywhere in it. Of one whose
        Contact is looked at, route and target are kept. The challenge of one that `asks` for a password is
        answered by `[authentication]`.
        """
        kind = "response" if isinstance(what, int) else "request"
        words = [f'{kind}="{what}"', f'timeout="{within_ms}"']
        words += ['rrs="true"'] * any(name == "Contact" for name, _ in has) + ['auth="true"'] * asks
        actions = [self._look("hdr", pattern, header=f"{name}:") for name, pattern in has]
        actions += [self._look("msg", f"[^A-Za-z-]{name}:", inverse=True) for name in lacks]
        actions += [self._look("msg", pattern) for pattern in whole]
        inner = f"<action>{''.join(actions)}</action>" if actions else ""
        self._steps.append(f"<recv {' '.join(words)}>{inner}</recv>")

    def keep_vias(self, number: int) -> list[str]:
        """Names of variables with the Vias of the last message that was received, for a later response."""
        names = [f"via{place}" for place in range(1, number + 1)]
        actions = "".join(
            f'<ereg regexp=".*" search_in="hdr" header="Via:" occurrence="{place}" assign_to="{name}"/>'
            for place, name in enumerate(names, 1)
        )
        self._variables += names
        last = self._steps.pop().removesuffix("</recv>").removesuffix("</action>")
        opened = "" if "<action>" in last else "<action>"
        self._steps.append(f"{last}{opened}{actions}</action></recv>")
        return [f"Via:[${name}]" for name in names]

    def pause(self, milliseconds: int) -> None:
        """Do nothing for a moment."""
        self._steps.append(f'<pause milliseconds="{milliseconds}"/>')

    def towards(self, at: Endpoint) -> None:
        """Send elsewhere from now on."""
        where = f'host="{at.ip}" port="{at.port}" protocol="udp"'
        self._steps.append(f"<nop><action><setdest {where}/></action></nop>")

    def xml(self) -> str:
        """The scenario, as sipp reads it."""
        reference = f'<Reference variables="{",".join(self._variables)}"/>' if self._variables else ""
        steps = "\n".join([*self._steps, reference])
        return f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<scenario name="flow">\n{steps}\n</scenario>\n'

    def _send(self, lines: Iterable[str], body: str, *, repeats: bool) -> None:
        text = "\n".join([*lines, "Content-Length: [len]", "", body])
        again = ' retrans="500"' if repeats else ""
        self._steps.append(f"<send{again}><![CDATA[\n{text}\n]]></send>")

    def _look(self, where: str, pattern: str, *, header: str = "", inverse: bool = False) -> str:
        name = f"seen{len(self._variables) + 1}"
        self._variables.append(name)
        words = f"regexp={quoteattr(pattern)} search_in={quoteattr(where)}"
        words += f" header={quoteattr(header)}" if header else ""
        words += f' check_it{"_inverse" * inverse}="true" assign_to="{name}"'
        return f"<ereg {words}/>"


class Playing:
    """A script that sipp plays on a host, from an address of it."""

    def __init__(
        self,
        host: Host,
        script: Script,
        at: Endpoint,
        server: Endpoint,
        *,
        call_id: str = "",
        user: str = "",
        password: str = "",
        within_s: float = PATIENCE_SECONDS,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="sipp-")
        self._directory = Path(self._scratch.name)
        (self._directory / "script.xml").write_text(script.xml())
        self._within_s = within_s
        words = ["sipp", str(server), "-sf", "script.xml", "-i", str(at.ip), "-p", str(at.port), "-m", "1"]
        words += ["-nostdin", "-deadcall_wait", "0", "-timeout", str(round(within_s)), "-timeout_error"]
        words += ["-trace_msg", "-message_file", "messages", "-trace_err", "-error_file", "errors"]
        words += ["-cid_str", call_id] if call_id else []
        words += ["-au", user, "-ap", password] if user else []
        self.process = host.popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._directory,
        )

    def fault(self) -> str:
        """Wait for its end; what was said of it where something else happened than is written, else empty."""
        try:
            status = self.process.wait(self._within_s + PATIENCE_SECONDS)
            told = [file.read_text(errors="replace")[-_LOG_CHARACTERS:] for file in self._logs]
        finally:
            self.close()
        return "" if status == 0 else "\n".join([f"sipp has ended with {status}:", *told])

    @property
    def _logs(self) -> list[Path]:
        return [
            self._directory / name for name in ("messages", "errors") if (self._directory / name).exists()
        ]

    def close(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)
        self._scratch.cleanup()


def finish(*playings: Playing) -> None:
    """Wait for the end of all. Raises `AssertionError` with what each says whose script was not kept to."""
    faults = [fault for playing in playings if (fault := playing.fault())]
    assert not faults, "\n\n".join(faults)
