"""Bindings and messages, as tests of the rewriter write them."""

from __future__ import annotations

from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import BindingError
from nattools.sip.rewriter import Rewriter, RewriterEvent

at = Endpoint.parse

LOCAL = at("192.168.0.111:5060")
PUBLIC = at("203.0.113.1:40000")
REGISTRAR = at("203.0.113.7:5060")

AUDIO = """
v=0
o=- 7 1 IN IP4 192.168.0.111
s=-
c=IN IP4 192.168.0.111
t=0 0
m=audio 10002 RTP/AVP 0
"""


@dataclass
class Binding:
    """A binding that a test can move, and that has no public endpoint while `public` is None."""

    local: Endpoint
    endpoint: Endpoint | None

    @property
    def public(self) -> Endpoint:
        if self.endpoint is None:
            raise BindingError("the binding is lost")
        return self.endpoint


RTP = Binding(at("192.168.0.111:10002"), at("203.0.113.1:41002"))
RTCP = Binding(at("192.168.0.111:10003"), at("203.0.113.1:41003"))


def bound(local: str, public: str) -> Binding:
    return Binding(at(local), at(public))


def wire(headers: str, body: str = "") -> bytes:
    """A message of these lines. A body gets its Content-Length, unless the headers have one."""
    head = headers.strip("\n")
    lines = body.lstrip("\n").replace("\n", "\r\n")
    if body and "content-length" not in head.lower():
        head += f"\nContent-Length: {len(lines.encode())}"
    return (head.replace("\n", "\r\n") + "\r\n\r\n" + lines).encode()


def invite(description: str = AUDIO, *, call_id: str = "c1", extra: str = "") -> bytes:
    """An INVITE in which nothing but the description is the phone's."""
    return wire(
        f"""
INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 203.0.113.1:40000;rport;branch=z9hG4bKa
From: <sip:alice@example.com>;tag=1
To: <sip:bob@example.com>
Call-ID: {call_id}
CSeq: 1 INVITE{extra}
Content-Type: application/sdp
""",
        description,
    )


def events(rewriter: Rewriter) -> list[RewriterEvent]:
    """All that happened since they were last taken."""
    found = []
    while (event := rewriter.next_event()) is not None:
        found.append(event)
    return found


def changed_lines(before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
    """The lines that differ, before and after; the number of lines must be the same."""
    pairs = zip(before.split(b"\r\n"), after.split(b"\r\n"), strict=True)
    return [(old, new) for old, new in pairs if old != new]
