"""A phone's socket on loopback, the server that it talks to, and what they say to each other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from nattools.binding.settings import Settings
from nattools.blocking import SipSocket, SipSockets
from nattools.endpoint import Endpoint
from nattools.net.udp import endpoint_of
from tests.unit.public_sockets import DEADLINE_S

PUBLIC = "140.113.131.89"
FORWARDED = Settings.of({"methods": ["static"], "static_host": PUBLIC})
"""An administrator forwards all ports: nobody is asked, and no packet is sent."""


def sockets(settings: Settings = FORWARDED) -> SipSockets:
    """Those of one phone."""
    return SipSockets(settings, binding_timeout_s=DEADLINE_S)


@contextmanager
def phone_socket(phone: SipSockets, port: int = 0, host: str = "127.0.0.1") -> Iterator[SipSocket]:
    """One of its sockets, bound; it waits no longer than the test's deadline."""
    with cast(SipSocket, phone.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(DEADLINE_S)
        sock.bind((host, port))
        yield sock


def at(sock: socket.socket | SipSocket) -> Endpoint:
    """Where it is bound."""
    return endpoint_of(sock.getsockname())


def next_sip(sock: socket.socket) -> bytes:
    """What comes next but for keepalives."""
    while not (data := sock.recv(65535)).strip(b"\r\n"):
        pass
    return data


def sdp(rtp: Endpoint, *, version: int = 1) -> str:
    """A description of one audio stream."""
    return (
        f"v=0\r\no=- 1 {version} IN IP4 {rtp.ip}\r\ns=-\r\nc=IN IP4 {rtp.ip}\r\nt=0 0\r\n"
        f"m=audio {rtp.port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
    )


def message(start_line: str, headers: str, body: str = "") -> bytes:
    """A message of lines, as a phone writes it."""
    kind = "Content-Type: application/sdp\r\n" if body else ""
    return f"{start_line}\r\n{headers}{kind}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def request(
    method: str,
    me: Endpoint,
    *,
    body: str = "",
    call_id: str = "a84b4c76e66710",
    cseq: int = 1,
    to_tag: str = "",
    contact: Endpoint | None = None,
) -> bytes:
    """A request of the phone at `me`."""
    tag = f";tag={to_tag}" if to_tag else ""
    headers = (
        f"Via: SIP/2.0/UDP {me};branch=z9hG4bK776asdhds{cseq}\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <sip:alice@example.org>;tag=1928301774\r\nTo: <sip:bob@example.org>{tag}\r\n"
        f"Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n"
        f"Contact: <sip:alice@{contact or me}>\r\n"
    )
    uri = "sip:example.org" if method == "REGISTER" else "sip:bob@example.org"
    return message(f"{method} {uri} SIP/2.0", headers, body)


def response(received: bytes, status: str, *, to_tag: str = "", contact: str = "", body: str = "") -> bytes:
    """What a server answers to a request as it received it."""
    lines = received.decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
    kept = [line for line in lines if line.split(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
    if to_tag:
        kept = [
            f"{line};tag={to_tag}" if line.startswith("To:") and "tag=" not in line else line for line in kept
        ]
    if contact:
        kept.append(f"Contact: <{contact}>")
    return message(f"SIP/2.0 {status}", "".join(f"{line}\r\n" for line in kept), body)
