"""The small HTTP server, with clients on loopback that send what they should and what they should not."""

from __future__ import annotations

import asyncio

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.net import http_server
from nattools.net.http import HttpRequest, HttpResponse, exchange
from nattools.net.http_server import HttpServer

ANY_PORT = Endpoint.of("127.0.0.1", 0)


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, (("content-type", "text/plain"),), f"{request.method} {request.target}".encode())


async def say(server: HttpServer, data: bytes) -> bytes:
    """Send bytes, and read until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.local.port)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


def test_each_request_is_answered_and_the_connection_closed() -> None:
    async def run() -> None:
        server = await HttpServer.open(ANY_PORT, echo)
        response, _ = await exchange(server.local, HttpRequest("GET", "/a?b"))
        assert (response.status, response.body) == (200, b"GET /a?b")
        assert response.header("content-length") == "8"
        with pytest.raises(LocalAddressError, match="cannot listen"):
            await HttpServer.open(server.local, echo)
        await server.close()

    asyncio.run(run())


def test_a_long_answer_arrives_whole() -> None:
    async def run() -> None:
        size = 4 << 20

        async def long(_request: HttpRequest) -> HttpResponse:
            return HttpResponse(200, (), b"x" * size)

        server = await HttpServer.open(ANY_PORT, long)
        said = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert len(said.partition(b"\r\n\r\n")[2]) == size
        await server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"INVITE sip:bob@example.org SIP/2.0\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000, 431),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n", 413),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    async def run() -> None:
        server = await HttpServer.open(ANY_PORT, echo)
        assert (await say(server, data)).startswith(b"HTTP/1.1 %d " % status)
        await server.close()

    asyncio.run(run())


def test_a_fault_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def fail(_request: HttpRequest) -> HttpResponse:
            raise ZeroDivisionError

        server = await HttpServer.open(ANY_PORT, fail)
        response, _ = await exchange(server.local, HttpRequest("GET", "/"))
        assert response.status == 500
        await server.close()

    asyncio.run(run())
    assert caplog.messages == ["GET / cannot be answered"]


def test_who_says_nothing_is_asked_to_leave_and_too_many_are_not_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        server = await HttpServer.open(ANY_PORT, echo)
        monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 60.0)
        idle = [
            await asyncio.open_connection("127.0.0.1", server.local.port)
            for _ in range(http_server.MOST_CONNECTIONS)
        ]
        assert await say(server, b"") == b""  # closed unread, while it waits for the others
        await server.close()
        for reader, writer in idle:
            assert await reader.read() == b""
            writer.transport.abort()
        server = await HttpServer.open(ANY_PORT, echo)
        monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.05)
        assert (await say(server, b"GET /")).startswith(b"HTTP/1.1 408 ")
        await server.close()

    asyncio.run(run())
