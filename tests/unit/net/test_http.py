"""HTTP with a router on loopback: with good ones, old ones and hostile ones."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    EncodeError,
    LocalAddressError,
    NoResponseError,
    TransportError,
)
from nattools.net.http import HttpRequest, HttpResponse, exchange

GET = HttpRequest("GET", "/rootDesc.xml")
PATIENCE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Router:
    """A web server for one connection after another, that says the same whatever it hears."""

    endpoint: Endpoint
    heard: list[bytes] = field(default_factory=list)
    data_segments: int | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client has ended a connection, or the router has said all it had."""


def data_segments_received(connection: socket.socket) -> int:
    """How many segments with data came on a connection: tcpi_data_segs_in of <linux/tcp.h>."""
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (number,) = struct.unpack_from("=I", information, 152)
    return int(number)


@asynccontextmanager
async def router(
    *pieces: bytes, then: str = "close", pause_s: float = 0, endlessly: bytes = b"", host: str = "127.0.0.1"
) -> AsyncIterator[Router]:
    """A router that reads once, says the pieces, each after a pause, and then closes, waits or resets."""

    async def serve(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            try:
                this.heard.append(await loop.sock_recv(connection, 1 << 20))
                this.asked.set()
                if sys.platform == "linux":
                    this.data_segments = data_segments_received(connection)
                everything: Iterator[bytes] = chain(pieces, repeat(endlessly) if endlessly else ())
                for piece in everything:
                    await asyncio.sleep(pause_s)
                    await loop.sock_sendall(connection, piece)
                if then == "wait":
                    while await loop.sock_recv(connection, 1 << 20):
                        pass
                elif then == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        this.gone.set()

    async def accept() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            sockets.enter_context(connection)
            connection.setblocking(False)
            connections.append(asyncio.create_task(serve(connection)))

    connections: list[asyncio.Task[None]] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as sockets, socket.create_server((host, 0), family=family) as listener:
        listener.setblocking(False)
        this = Router(Endpoint.of(*listener.getsockname()[:2]))
        accepting = asyncio.create_task(accept())
        try:
            yield this
        finally:
            for task in (accepting, *connections):
                task.cancel()
            await asyncio.gather(accepting, *connections, return_exceptions=True)


def answer(*pieces: bytes, request: HttpRequest = GET, then: str = "close") -> HttpResponse:
    """What the client makes of a router that says this."""

    async def run() -> HttpResponse:
        async with router(*pieces, then=then) as peer:
            response, _ = await exchange(peer.endpoint, request, timeout_s=PATIENCE_S)
            return response

    return asyncio.run(run())


def request_as_sent(request: HttpRequest) -> tuple[list[str], bytes, Router]:
    """The lines of the head and the body that the router gets."""

    async def run() -> Router:
        async with router(OK + b"Content-Length: 0\r\n\r\n") as peer:
            await exchange(peer.endpoint, request, timeout_s=PATIENCE_S)
            return peer

    peer = asyncio.run(run())
    head, _, body = b"".join(peer.heard).partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body, peer


def test_a_request_has_host_and_close_and_nothing_that_was_not_asked_for() -> None:
    lines, body, peer = request_as_sent(HttpRequest("GET", "/x?y=1", (("SOAPAction", '"a#b"'),)))
    assert lines == [
        "GET /x?y=1 HTTP/1.1",
        f"Host: {peer.endpoint}",
        'SOAPAction: "a#b"',
        "Connection: close",
    ]
    assert body == b""


@pytest.mark.parametrize("body", [b"", b"<s:Envelope/>"])
def test_a_post_tells_its_length_even_of_nothing(body: bytes) -> None:
    lines, sent, _ = request_as_sent(HttpRequest("POST", "/ctl", body=body))
    assert f"Content-Length: {len(body)}" in lines
    assert sent == body


@pytest.mark.skipif(sys.platform != "linux", reason="counts segments by Linux's TCP_INFO")
def test_head_and_body_travel_in_one_segment() -> None:
    """Old Linksys routers read once and answer what they have (miniupnpc's minisoap.c tells of it)."""
    request = HttpRequest("POST", "/ctl", (("SOAPAction", '"x"'),), b"b" * 4000)
    _, body, peer = request_as_sent(request)
    assert (len(peer.heard), peer.data_segments) == (1, 1)
    assert body == request.body


def test_an_ipv6_host_is_in_brackets() -> None:
    async def run() -> None:
        async with router(OK + b"\r\n", host="::1") as peer:
            _, local = await exchange(peer.endpoint, GET, timeout_s=PATIENCE_S)
            assert local.ip == IPv6Address("::1")
            assert f"Host: [::1]:{peer.endpoint.port}\r\n".encode() in peer.heard[0]

    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
    asyncio.run(run())


def test_the_local_endpoint_is_that_of_the_connection_and_can_be_chosen() -> None:
    async def run() -> None:
        async with router(OK + b"\r\n") as peer:
            chosen = IPv4Address("127.0.0.3")
            _, local = await exchange(peer.endpoint, GET, timeout_s=PATIENCE_S, local_address=chosen)
            assert local.ip == chosen
            assert local.port != 0

    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8")
    asyncio.run(run())


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("GET", "/", (("SOAPAction", "a\r\nHost: elsewhere"),)),
        HttpRequest("GET", "/", (("SOAPAction", "a\nb"),)),
        HttpRequest("GET", "/", (("SOAPAction", "a\rb"),)),
        HttpRequest("GET", "/", (("SOAPAction", "a\0b"),)),
        HttpRequest("GET", "/", (("SOAPAction", "\u20ac"),)),
        HttpRequest("GET", "/", (("SOAP Action", "a"),)),
        HttpRequest("GET", "/", (("Host", "elsewhere"),)),
        HttpRequest("GET", "/", (("Content-Length", "7"),)),
        HttpRequest("GET", "/a b"),
        HttpRequest("GET", "/a\r\nb"),
        HttpRequest("GET", "/\xe9"),
        HttpRequest("GET", ""),
        HttpRequest("GET / HTTP/1.1\r\nX:", "/"),
    ],
    ids=repr,
)
def test_what_would_break_out_of_a_request_is_refused_before_it_is_sent(request_: HttpRequest) -> None:
    async def run() -> None:
        async with router(OK + b"\r\n") as peer:
            with pytest.raises(EncodeError):
                await exchange(peer.endpoint, request_, timeout_s=PATIENCE_S)
            assert peer.heard == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (OK + b"Content-Length: 4\r\n\r\nbody", 200, b"body"),
        (OK + b"\r\nbody", 200, b"body"),  # ended by the close
        (b"HTTP/1.0 200 OK\r\n\r\nbody", 200, b"body"),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),
        (b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),  # no reason
        (b"HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),
        (b"HTTP/1.1  200   OK  \r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),
        (OK + b"CONTENT-length:4\r\n\r\nbody", 200, b"body"),
        (OK + b"EXT:\r\nContent-Length:   4  \r\n\r\nbody", 200, b"body"),
        (b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody", 200, b"body"),
        (OK + b"Content-Length: 4\r\n\r\nbody and more", 200, b"body"),  # what is too much is not read
        (OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", 200, b"body"),
        (CHUNKED + b"3\r\nbod\r\n1;x=y\r\ny\r\n0\r\n\r\n", 200, b"body"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nbody", 200, b"body"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/secret\r\nContent-Length: 0\r\n\r\n", 302, b""),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nfault", 500, b"fault"),
        (b"HTTP/1.1 412 Precondition Failed\r\n\r\n", 412, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 200, b"\x1f\x8b"),
    ],
)
def test_what_routers_say_is_understood_at_once_and_byte_by_byte(
    said: bytes, status: int, body: bytes
) -> None:
    whole = answer(said)
    assert (whole.status, whole.body) == (status, body)
    assert answer(*(said[i : i + 1] for i in range(len(said)))) == whole


def test_a_whole_answer_needs_no_close() -> None:
    assert answer(OK + b"Content-Length: 4\r\n\r\nbody", then="wait").body == b"body"


def test_a_whole_answer_counts_also_when_a_reset_follows() -> None:
    assert answer(OK + b"Content-Length: 40000\r\n\r\n" + b"b" * 40000, then="reset").body == b"b" * 40000


def test_headers_are_found_in_any_spelling() -> None:
    response = answer(OK + b"SID:uuid:1\r\nTimeOut: Second-300\r\nX: \xe4\r\nSid: uuid:2\r\n\r\n")
    expected = (("sid", "uuid:1"), ("timeout", "Second-300"), ("x", "\xe4"), ("sid", "uuid:2"))
    assert response.headers == expected
    assert (response.header("Sid"), response.header("TIMEOUT"), response.header("y")) == (
        "uuid:1",
        "Second-300",
        None,
    )


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-dropbear\r\n",
        b"\x16\x03\x01",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 " + b" " * 2000 + b"200 OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        OK + b"Content-Length: 1048577\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        CHUNKED + b"no number\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
    ],
)
def test_what_is_not_http_is_refused_without_waiting_for_more(said: bytes) -> None:
    with pytest.raises(DecodeError, match=r"GET http://127\.0\.0\.1:\d+/rootDesc\.xml"):
        answer(said, then="wait")


@pytest.mark.parametrize(
    ("opening", "endlessly"),
    [
        (OK + b"\r\n", b"b" * 65536),
        (CHUNKED, b"10000\r\n" + b"b" * 65536 + b"\r\n"),
        (CHUNKED + b"ffffffff\r\n", b"b" * 65536),
        (CHUNKED + b"1;", b"b" * 65536),
        (CHUNKED + b"0\r\n", b"X: y\r\n" * 8192),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048),
        (b"HTTP/1.1 ", b"2" * 65536),
        (OK, b"X: y\r\n" * 8192),
        (OK + b"X: ", b"y" * 65536),
    ],
    ids=[
        "body",
        "chunks",
        "one-chunk",
        "chunk-extension",
        "trailers",
        "interim-responses",
        "status-line",
        "headers",
        "one-header",
    ],
)
def test_an_endless_answer_is_refused_and_costs_little_memory(opening: bytes, endlessly: bytes) -> None:
    async def run() -> None:
        async with router(opening, endlessly=endlessly) as peer:
            with pytest.raises(DecodeError):
                await exchange(peer.endpoint, GET, timeout_s=PATIENCE_S, most_body_bytes=1 << 18)
            async with asyncio.timeout(PATIENCE_S):
                await peer.gone.wait()

    gc.collect()
    tracemalloc.start()
    try:
        asyncio.run(run())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20


@pytest.mark.parametrize(
    ("opening", "endlessly", "pause_s"),
    [
        (b"", b"", 0),
        (OK + b"Content-Length: 4\r\n\r\nbod", b"", 0),
        (OK + b"Content-Length: 1000000\r\n\r\n", b"b", 0.005),
        (OK + b"X: ", b"y", 0.005),
        (CHUNKED, b"1\r\nb\r\n" * 5000, 0),  # so many that the work alone takes longer than the time
    ],
    ids=["silence", "a-byte-too-few", "dripping-body", "dripping-head", "crumbs"],
)
def test_the_deadline_is_for_everything(opening: bytes, endlessly: bytes, pause_s: float) -> None:
    async def run() -> None:
        async with router(opening, endlessly=endlessly, pause_s=pause_s, then="wait") as peer:
            with pytest.raises(NoResponseError, match=r"no whole answer in 0\.1 s"):
                await exchange(peer.endpoint, GET, timeout_s=0.1)
            async with asyncio.timeout(PATIENCE_S):
                await peer.gone.wait()

    asyncio.run(run())


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK",
        OK,
        OK + b"Content-Length: 5\r\n\r\nbody",
        CHUNKED + b"5\r\nbody",
        CHUNKED + b"4\r\nbody\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_end_before_the_answer_is_whole_is_told_apart(said: bytes, then: str) -> None:
    """Routers by Ubee close the connection at an action they do not know (miniupnp issue 528)."""
    with pytest.raises(DisconnectedError):
        answer(said, then=then)


def test_a_router_without_a_web_server_is_a_transport_error() -> None:
    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(TransportError, match="connection refused") as caught:
                await exchange(Endpoint.of(*taken.getsockname()), GET, timeout_s=PATIENCE_S)
            assert type(caught.value) is TransportError

    asyncio.run(run())


def test_a_local_address_of_another_machine_is_a_local_address_error() -> None:
    async def run() -> None:
        async with router() as peer:
            with pytest.raises(LocalAddressError, match=r"192\.0\.2\.77"):
                await exchange(peer.endpoint, GET, local_address=IPv4Address("192.0.2.77"))

    asyncio.run(run())


def test_a_scope_that_is_no_interface_is_a_transport_error() -> None:
    async def run() -> None:
        with pytest.raises(TransportError, match="fe80::1%no-such-interface"):
            await exchange(Endpoint.of("fe80::1%no-such-interface", 5000), GET)

    asyncio.run(run())


def test_a_cancelled_exchange_leaves_no_connection() -> None:
    async def run() -> None:
        async with router(OK, then="wait") as peer:
            task = asyncio.create_task(exchange(peer.endpoint, GET, timeout_s=PATIENCE_S))
            async with asyncio.timeout(PATIENCE_S):
                await peer.asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(PATIENCE_S):
                await peer.gone.wait()

    asyncio.run(run())


def test_an_exchange_that_is_cancelled_at_any_moment_leaves_no_connection() -> None:
    """A socket that stays open would warn when it is collected, and warnings are errors."""

    async def run() -> None:
        for turns in range(30):
            async with router(OK + b"Content-Length: 4\r\n\r\n", b"body") as peer:
                task = asyncio.create_task(exchange(peer.endpoint, GET, timeout_s=PATIENCE_S))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        gc.collect()

    asyncio.run(run())


FRAGMENTS = st.sampled_from(
    [
        OK,
        CHUNKED,
        b"HTTP/1.0 200",
        b"HTTP/1.1 100 x\r\n\r\n",
        b"HTTP/1.1 ",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"Content-Length: ",
        b"4",
        b"0\r\n\r\n",
        b"body",
        b": ",
        b"ffff\r\n",
    ]
)
ANYTHING = st.lists(st.one_of(FRAGMENTS, st.binary(max_size=30)), max_size=8)


@given(ANYTHING)
def test_any_answer_gives_a_response_or_an_error_of_ours(pieces: list[bytes]) -> None:
    try:
        response = answer(*pieces)
    except (DecodeError, DisconnectedError):
        return
    assert 200 <= response.status <= 999
