"""An ALG's outside on loopback, what it hands inside, and a server that it talks to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from nattools.binding.model import BindingChange, ChangeKind
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.controller.kept_binding import KeptBinding
from nattools.session.controller.outside import OUTSIDE, Outside
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.settings import GateSettings, ListenAddress

PUBLIC, NEW = "140.113.131.89", "140.113.131.90"
INSIDE = Endpoint.of("127.0.0.1", 5060)
FORWARDED = Settings.of({"methods": ["static"], "static_host": PUBLIC})
"""An administrator forwards all ports: nobody is asked, and no packet is sent."""
NO_WAY = Settings.of({"methods": ["open"]})
"""On loopback there is no public address: nothing is found, at once and without a packet."""
SDP = "v=0\r\no=- 1 1 IN IP4 {0}\r\ns=-\r\nc=IN IP4 {0}\r\nt=0 0\r\nm=audio {1} RTP/AVP 0\r\n"


class Inside:
    """What is on the other side of the outside: a server, as far as its sockets know one."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost: list[Transmit] = []
        self.pongs: asyncio.Queue[Flow] = asyncio.Queue()
        self.refused: set[bytes] = set()

    def admits(self, data: bytes, source: Endpoint) -> bool:
        return data not in self.refused

    def take(self, data: bytes, flow: Flow) -> None:
        assert flow.socket == OUTSIDE
        self.taken.put_nowait(data)

    def heard(self, flow: Flow) -> None:
        self.pongs.put_nowait(flow)

    def connected(self, name: str, listener: str, remote: Endpoint) -> None:
        raise AssertionError("it has no connections")

    def disconnected(self, name: str) -> None:
        raise AssertionError("it has no connections")

    def failed(self, transmit: Transmit) -> None:
        self.lost.append(transmit)


def alg(binding: Settings = FORWARDED, outside: Endpoint | None = None) -> GateSettings:
    """The settings of an ALG on loopback."""
    return GateSettings(
        alg=True,
        listen=(ListenAddress("UDP", INSIDE),),
        outside=outside or Endpoint.of("127.0.0.1", 0),
        binding=binding,
    )


class Peer:
    """A server outside."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.endpoint = Endpoint.of(*sock.getsockname()[:2])

    async def next(self) -> bytes:
        """What comes next but for keepalives."""
        while not (data := await self.next_of_any_kind()).strip(b"\r\n"):
            pass
        return data

    async def next_of_any_kind(self) -> bytes:
        """What comes next, be it a keepalive."""
        return await asyncio.get_running_loop().sock_recv(self._socket, 65535)

    async def send(self, data: bytes, to: Endpoint) -> None:
        await asyncio.get_running_loop().sock_sendto(self._socket, data, (str(to.ip), to.port))


@asynccontextmanager
async def outside(settings: GateSettings | None = None) -> AsyncIterator[tuple[Outside, Inside, Peer]]:
    """An outside that is open, as a server has it."""
    inside = Inside()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        opened = await Outside.open(settings or alg(), inside)
        try:
            opened.join(Flows([Listener("udp:127.0.0.1:5060", "UDP", INSIDE), opened.listener]))
            yield opened, inside, Peer(sock)
        finally:
            await opened.close()


def move(*bindings: KeptBinding) -> None:
    """Have the NAT be at another public address from now on, as the keeper of these bindings would say."""
    for kept in bindings:
        assert kept.live is not None
        held = kept.live.snapshot
        assert held is not None
        moved = replace(held, public=Endpoint.of(NEW, held.public.port))
        kept.live._report(BindingChange(ChangeKind.CHANGED, moved, held, "another address"))


def request(
    method: str, at: Endpoint, *headers: str, cseq: int = 1, to_tag: str = "", body: str = ""
) -> bytes:
    """A request as the proxy sends it outside: everything of it at the local endpoint `at`."""
    uri = "sip:127.0.0.1" if method == "REGISTER" else "sip:bob@127.0.0.1"
    recorded = [f"<sip:{at};lr>, <sip:{INSIDE};lr>"] if method == "INVITE" else []
    return _message(
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP {at};branch=z9hG4bKproxy{method}{cseq};rport",
        "Via: SIP/2.0/UDP 192.168.0.7;branch=z9hG4bKphone",
        *(f"Record-Route: {each}" for each in recorded),
        "Max-Forwards: 69",
        "From: <sip:alice@127.0.0.1>;tag=a",
        f"To: <sip:bob@127.0.0.1>{';tag=b' if to_tag else ''}",
        f"Call-ID: {'register' if method == 'REGISTER' else 'call'}",
        f"CSeq: {cseq} {method}",
        f"Contact: <sip:alice@{at};natgate=x>",
        *headers,
        body=body,
    )


def answer(received: bytes, status: str, *headers: str, body: str = "") -> bytes:
    """What a server answers to a request as it has received it."""
    lines = received.decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
    kept = [line for line in lines if line.split(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
    kept = [f"{line};tag=b" if line.startswith("To:") and "tag=" not in line else line for line in kept]
    return _message(f"SIP/2.0 {status}", *kept, *headers, body=body)


def _message(*lines: str, body: str = "") -> bytes:
    kind = ["Content-Type: application/sdp"] if body else []
    return "\r\n".join([*lines, *kind, f"Content-Length: {len(body)}", "", body]).encode()
