"""A UPnP client of raw sockets, to see what a fake router does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import wraps
from typing import NamedTuple, ParamSpec
from xml.etree import ElementTree as ET

from tests.fakes.igd import SSDP_PORT, FakeIgd
from tests.fakes.igd_descriptions import Behaviour, Service, encoded
from tests.fakes.igd_hostile import behaviour

CLIENT = "127.0.0.1"
PATIENCE_S = 10.0
IGD1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"


P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """A test that is a coroutine."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def served_by(
    named: str | Behaviour,
) -> Callable[[Callable[[FakeIgd], Coroutine[None, None, None]]], Callable[[], None]]:
    """A test that is a coroutine, and gets a router."""

    def with_router(test: Callable[[FakeIgd], Coroutine[None, None, None]]) -> Callable[[], None]:
        async def serve() -> None:
            async with fake(named) as igd:
                await test(igd)

        def run() -> None:
            asyncio.run(serve())

        run.__name__ = test.__name__
        return run

    return with_router


def fake(named: str | Behaviour) -> FakeIgd:
    return FakeIgd(behaviour(named) if isinstance(named, str) else named)


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    head: str
    body: str


async def send(igd: FakeIgd, *pieces: bytes, ends: bool = False) -> bytes:
    """Send each piece in a segment of its own; gives all that comes back."""
    reader, writer = await asyncio.open_connection(
        igd.places.host, igd.places.port, local_addr=(CLIENT, 0), limit=1 << 24
    )
    with closing(writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.02)
            writer.write(piece)
            await writer.drain()
        if ends:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read(-1)


def answer_of(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), head.decode("latin-1"), body.decode("utf-8", "surrogateescape"))


async def get(igd: FakeIgd, target: str, method: str = "GET", **headers: str) -> Answer:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return answer_of(await send(igd, f"{method} {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()))


def soap(action: str, arguments: dict[str, str], service: Service) -> tuple[bytes, bytes]:
    inside = "".join(f"<{name}>{text}</{name}>" for name, text in arguments.items())
    body = (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<u:{action} xmlns:u="{service.type}">{inside}</u:{action}></s:Body></s:Envelope>'
    ).encode()
    head = (
        f'POST {service.control} HTTP/1.1\r\nHost: x\r\nSOAPAction: "{service.type}#{action}"\r\n'
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return encoded(head), body


async def call(
    igd: FakeIgd, action: str, arguments: dict[str, str] | None = None, service: Service | None = None
) -> dict[str, str]:
    """Call an action; gives what is in the leaves of the answer, by local name."""
    service = service or igd.behaviour.roots[0].wan[0]
    answer = answer_of(await send(igd, b"".join(soap(action, arguments or {}, service))))
    return {e.tag.rpartition("}")[2]: e.text or "" for e in ET.fromstring(answer.body).iter() if not len(e)}


def adding(
    external: int = 5060, internal: int | None = None, lease: int = 3600, **more: str
) -> dict[str, str]:
    return {
        "NewRemoteHost": "",
        "NewExternalPort": str(external),
        "NewProtocol": "UDP",
        "NewInternalPort": str(external if internal is None else internal),
        "NewInternalClient": CLIENT,
        "NewEnabled": "1",
        "NewPortMappingDescription": "a phone",
        "NewLeaseDuration": str(lease),
    } | more


def key(external: int = 5060) -> dict[str, str]:
    return {"NewRemoteHost": "", "NewExternalPort": str(external), "NewProtocol": "UDP"}


async def search(igd: FakeIgd, target: str = IGD1, *, number: int = 1) -> list[tuple[bytes, tuple[str, int]]]:
    """Search by unicast; gives so many answers, and where each came from."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((CLIENT, 0))
        request = f'M-SEARCH * HTTP/1.1\r\nHOST: x\r\nMAN: "ssdp:discover"\r\nST: {target}\r\n\r\n'
        await loop.sock_sendto(sock, request.encode(), (igd.address, SSDP_PORT))
        async with asyncio.timeout(PATIENCE_S):
            return [await loop.sock_recvfrom(sock, 65535) for _ in range(number)]


async def found(igd: FakeIgd, target: str = IGD1) -> str:
    ((data, _),) = await search(igd, target)
    return data.decode("latin-1")


class Subscriber:
    """A server for the router's events."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = int(head.lower().split("content-length:")[1].split()[0])
            self.events.put_nowait(head + (await reader.readexactly(size)).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def next(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return await self.events.get()
