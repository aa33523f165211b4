"""The listener for callbacks, with callers on loopback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DisconnectedError, LocalAddressError
from nattools.net import http
from nattools.net.http import HttpListener, HttpRequest, exchange

LOOPBACK = IPv4Address("127.0.0.1")
PATIENCE_S = 10.0


@dataclass
class Callbacks:
    """What a listener got, and a way to send it something."""

    got: list[HttpRequest] = field(default_factory=list)
    status: int = 200
    allowed: Callable[[Endpoint], bool] = lambda _peer: True
    listener: HttpListener = field(init=False)

    async def __aenter__(self) -> Callbacks:
        self.listener = await HttpListener.open(LOOPBACK, on_request=self._take, accept_from=self.allowed)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()

    def _take(self, request: HttpRequest, peer: Endpoint) -> int:
        assert peer.ip == LOOPBACK
        self.got.append(request)
        return self.status

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.listener.local.port)

    async def send(self, *pieces: bytes, eof: bool = False) -> bytes:
        """The first line of what it says to this, b"" if it closes without a word."""
        reader, writer = await self.connect()
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            if eof:
                writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                said = await reader.read()
        except OSError:  # reset, or so early that nothing can be shut down any more
            said = b""
        finally:
            writer.close()
        return said.partition(b"\r\n")[0]


NOTIFY = HttpRequest(
    "NOTIFY", "/events/1", (("NT", "upnp:event"), ("SID", "uuid:1"), ("SEQ", "0")), b"<e:propertyset/>"
)


def notify(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"NOTIFY / HTTP/1.1", b"Host: x", *headers, b"", body])


def test_a_callback_is_handed_over_and_answered() -> None:
    async def run() -> None:
        async with Callbacks(status=412) as callbacks:
            response, _ = await exchange(callbacks.listener.local, NOTIFY, timeout_s=PATIENCE_S)
            assert (response.status, response.body) == (412, b"")
            (request,) = callbacks.got
            assert (request.method, request.target, request.body) == ("NOTIFY", NOTIFY.target, NOTIFY.body)
            assert [request.header(name) for name in ("nt", "Sid", "SEQ")] == ["upnp:event", "uuid:1", "0"]

    asyncio.run(run())


def test_a_callback_may_come_in_pieces_and_chunks() -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            said = notify(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            pieces = (said[i : i + 1] for i in range(len(said)))
            assert await callbacks.send(*pieces) == b"HTTP/1.1 200 OK"
            assert [request.body for request in callbacks.got] == [b"abcde"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"\x16\x03\x01\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"NOTIFY / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request"),  # without Host
        (notify(b"no colon"), b"HTTP/1.1 400 Bad Request"),
        (notify(b"Content-Length: 65537"), b"HTTP/1.1 413 Request Entity Too Large"),
        (
            notify().strip().ljust(http.MOST_HEAD_BYTES + 1, b"y"),
            b"HTTP/1.1 431 Request Header Fields Too Large",
        ),
    ],
    ids=["tls", "no-host", "no-colon", "large-body", "large-head"],
)
def test_a_callback_that_is_none_is_answered_and_not_handed_over(said: bytes, answered: bytes) -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            line = await callbacks.send(said)
            assert line.split()[:2] == answered.split()[:2]
            assert callbacks.got == []

    asyncio.run(run())


def test_an_endless_callback_is_cut_off() -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            _, writer = await callbacks.connect()
            writer.write(notify(b"Transfer-Encoding: chunked"))
            async with asyncio.timeout(PATIENCE_S):
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"1000\r\n" + b"b" * 4096 + b"\r\n")
                        await writer.drain()
            writer.close()
            assert callbacks.got == []

    asyncio.run(run())


def test_silent_and_slow_callers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            assert await callbacks.send() == b"HTTP/1.1 408 Request Timeout"
            assert await callbacks.send(notify(b"Content-Length: 5", body=b"four")) == (
                b"HTTP/1.1 408 Request Timeout"
            )
            assert callbacks.got == []

    monkeypatch.setattr(http, "CALLBACK_TIMEOUT_S", 0.05)
    asyncio.run(run())


def test_a_caller_that_leaves_early_is_no_trouble() -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            await callbacks.send(eof=True)
            await callbacks.send(notify(b"Content-Length: 5", body=b"four"), eof=True)
            assert callbacks.got == []
            await exchange(callbacks.listener.local, NOTIFY, timeout_s=PATIENCE_S)
            assert len(callbacks.got) == 1

    asyncio.run(run())


def test_callers_from_elsewhere_are_closed_unread() -> None:
    async def run() -> None:
        async with Callbacks(allowed=lambda peer: False) as callbacks:
            assert await callbacks.send(notify()) == b""
            assert callbacks.got == []

    asyncio.run(run())


def test_no_more_than_eight_callers_at_once() -> None:
    async def run() -> None:
        async with Callbacks() as callbacks:
            waiting = [await callbacks.connect() for _ in range(8)]
            assert await callbacks.send(notify()) == b""
            waiting[0][1].write(notify())
            assert (await waiting[0][0].readline()).startswith(b"HTTP/1.1 200")
            await waiting[0][0].read()
            assert await callbacks.send(notify()) == b"HTTP/1.1 200 OK"
            for _, writer in waiting:
                writer.close()

    asyncio.run(run())


def test_a_failing_callback_is_logged_and_the_listener_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_request: HttpRequest, _peer: Endpoint) -> int:
        raise KeyError("a bug")

    async def run() -> None:
        listener = await HttpListener.open(LOOPBACK, on_request=fail, accept_from=lambda _: True)
        for _ in range(2):
            with pytest.raises(DisconnectedError):
                await exchange(listener.local, NOTIFY, timeout_s=PATIENCE_S)
        await listener.close()

    with caplog.at_level(logging.ERROR, logger="nattools.net.http"):
        asyncio.run(run())
    assert [record.exc_text and "a bug" in record.exc_text for record in caplog.records] == [True, True]


def test_closing_ends_every_connection() -> None:
    async def run() -> None:
        callbacks = Callbacks()
        async with callbacks:
            reader, writer = await callbacks.connect()
            writer.write(b"NOTIFY ")
            await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises((ConnectionError, EOFError)):
                await reader.readexactly(1)
        writer.close()
        with pytest.raises(OSError):
            await callbacks.connect()

    asyncio.run(run())


def test_a_listener_on_another_machines_address_is_a_local_address_error() -> None:
    async def run() -> None:
        with pytest.raises(LocalAddressError, match=r"192\.0\.2\.77"):
            await HttpListener.open(
                IPv4Address("192.0.2.77"), on_request=lambda _request, _peer: 200, accept_from=lambda _: True
            )

    asyncio.run(run())


FRAGMENTS = st.sampled_from(
    [
        b"Content-Length: ",
        b"Transfer-Encoding: chunked",
        b"4",
        b"70000",
        b"\r\n",
        b"\r\n\r\n",
        b"body",
        b"0\r\n\r\n",
        b"ffffff\r\n",
    ]
)


@given(st.lists(st.one_of(FRAGMENTS, st.binary(max_size=30)), max_size=8))
def test_any_callback_is_answered_or_closed(pieces: list[bytes]) -> None:
    async def run() -> bytes:
        async with Callbacks() as callbacks:
            return await callbacks.send(b"NOTIFY / HTTP/1.1\r\nHost: x\r\n", *pieces, eof=True)

    assert asyncio.run(run()) in (
        b"",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 413 Request Entity Too Large",
        b"HTTP/1.1 501 Not Implemented",  # a Transfer-Encoding other than chunked
    )


def test_closing_it_in_the_middle_of_a_request_is_quiet() -> None:
    complaints: list[dict[str, object]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with Callbacks() as callbacks:
            reader, writer = await callbacks.connect()
            writer.write(b"NOTIFY /ev")
            await asyncio.sleep(0.05)
        assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert complaints == []
