"""TCP and TLS connections, against a peer on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocalAddressError, TransportError
from nattools.net.stream import StreamConnection
from tests.ports import free_port


def one_byte_length(start: bytes | bytearray) -> int | None:
    """Frames of which the first byte gives the whole length."""
    if not start:
        return None
    if start[0] == 0:
        raise DecodeError("a frame without length")
    return 1 << 20 if start[0] == 255 else start[0]


Arrivals = asyncio.Queue[tuple[int, asyncio.Event]]
"""Of each connection the client's port, and whether it has ended."""


class _Peer(asyncio.Protocol):
    """Says its first words, and then waits for the end, closes or resets."""

    def __init__(self, first_words: bytes, then: str, heard: list[bytes], arrivals: Arrivals) -> None:
        self._first_words = first_words
        self._then = then
        self._heard = heard
        self._arrivals = arrivals
        self._gone = asyncio.Event()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]  # asyncio gives this kind
        self._arrivals.put_nowait((transport.get_extra_info("peername")[1], self._gone))
        transport.write(self._first_words)
        if self._then == "close":
            transport.close()
        elif self._then == "reset":
            asyncio.get_running_loop().call_later(0.01, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._heard.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()


@asynccontextmanager
async def peer(first_words: bytes, *, then: str = "wait") -> AsyncIterator[tuple[Endpoint, list[bytes]]]:
    """A server; gives its address and what it heard, and ends when the client has ended everything."""
    heard: list[bytes] = []
    arrivals: Arrivals = asyncio.Queue()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Peer(first_words, then, heard, arrivals), "127.0.0.1", 0
    )
    try:
        yield Endpoint.of(*server.sockets[0].getsockname()[:2]), heard
    finally:
        async with asyncio.timeout(10):
            # a last one, behind all others in the queue, so that none is still to be accepted
            _, last = await asyncio.open_connection(*server.sockets[0].getsockname())
            last.close()
            port = None
            while port != last.get_extra_info("sockname")[1]:
                port, gone = await arrivals.get()
                await gone.wait()
        server.close()


@contextmanager
def tls_peer(context: ssl.SSLContext, first_words: bytes) -> Iterator[Endpoint]:
    """A TLS server for one connection, in a thread of its own; gives its address."""

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(first_words)
            while tls.recv(1000):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Endpoint.of(*listener.getsockname())
        finally:
            thread.join()


class Listener:
    """What a connection reports."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.lost: list[TransportError] = []
        self.changed = asyncio.Event()

    def on_frame(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.changed.set()

    def on_lost(self, error: TransportError) -> None:
        self.lost.append(error)
        self.changed.set()

    async def open(self, remote: Endpoint, **options: object) -> StreamConnection:
        return await StreamConnection.open(
            remote,
            frame_size=one_byte_length,
            on_frame=self.on_frame,
            on_lost=self.on_lost,
            **options,  # type: ignore[arg-type]  # of several types
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def end(connection: StreamConnection) -> None:
    connection.close()
    await connection.wait_closed()


def test_a_stream_is_cut_into_frames() -> None:
    async def run() -> None:
        listener = Listener()
        async with peer(b"\x03ab\x01\x05abcd\x04un") as (remote, _):
            connection = await listener.open(remote)
            await listener.until(lambda: len(listener.frames) == 3)
            await end(connection)
        assert listener.frames == [b"\x03ab", b"\x01", b"\x05abcd"]
        assert listener.lost == []

    asyncio.run(run())


def test_what_was_sent_before_the_end_arrives() -> None:
    async def run() -> None:
        listener = Listener()
        async with peer(b"") as (remote, heard):
            connection = await listener.open(remote)
            assert connection.local.ip == IPv4Address("127.0.0.1")
            connection.send(b"last ")
            connection.send(b"words")
            await end(connection)
        assert b"".join(heard) == b"last words"
        with pytest.raises(TransportError, match="is closed"):
            connection.send(b"more")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("first_words", "then", "reason"),
    [
        (b"\x02a", "close", "closed the connection"),
        (b"\x02a", "reset", "broke|closed"),
        (b"\x02a\x00", "wait", "nobody understands: a frame without length"),
        (b"\x02a\xff", "wait", "nobody understands: a frame of 1048576 bytes"),
    ],
)
def test_the_loss_of_the_connection_is_told_once(first_words: bytes, then: str, reason: str) -> None:
    async def run() -> None:
        listener = Listener()
        async with peer(first_words, then=then) as (remote, _):
            connection = await listener.open(remote)
            await listener.until(lambda: listener.lost)
            assert not connection.is_open
            with pytest.raises(TransportError, match=reason):
                connection.send(b"anybody there?")
            await end(connection)
        assert listener.frames == [b"\x02a"]
        assert len(listener.lost) == 1

    asyncio.run(run())


def unused_port() -> Endpoint:
    return Endpoint.of("127.0.0.1", free_port())


def test_a_refused_connection_is_a_transport_error() -> None:
    with pytest.raises(TransportError, match="Connection refused"):
        asyncio.run(Listener().open(unused_port()))


def test_a_silent_peer_is_given_up() -> None:
    async def run() -> None:
        async with peer(b"") as (remote, _):  # TCP is accepted, the TLS handshake never answered
            await Listener().open(remote, server_name="x.test", connect_timeout_s=0.05)

    with pytest.raises(TransportError, match=r"nothing came back in 0\.05 s"):
        asyncio.run(run())


def test_a_local_address_that_is_not_here_is_a_local_address_error() -> None:
    with pytest.raises(LocalAddressError, match=r"cannot connect from 192\.0\.2\.1, port any"):
        asyncio.run(Listener().open(unused_port(), local_address=IPv4Address("192.0.2.1")))


class TestTls:
    """With certificates of an authority made for the occasion."""

    authority = trustme.CA()

    @classmethod
    def server_context(cls, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cls.authority.issue_cert(name).configure_cert(context)
        return context

    @classmethod
    def trusting(cls) -> ssl.SSLContext:
        context = ssl.create_default_context()
        cls.authority.configure_trust(context)
        return context

    async def frames(self, certificate: str, **options: object) -> list[bytes]:
        listener = Listener()
        with tls_peer(self.server_context(certificate), b"\x03ab") as remote:
            connection = await listener.open(remote, **options)
            await listener.until(lambda: listener.frames)
            await end(connection)
        return listener.frames

    @pytest.mark.parametrize("name", ["stun.test", "127.0.0.1"])
    def test_a_certificate_with_the_name_is_accepted(self, name: str) -> None:
        frames = asyncio.run(self.frames(name, server_name=name, ssl_context=self.trusting()))
        assert frames == [b"\x03ab"]

    def test_a_certificate_with_another_name_is_refused(self) -> None:
        with pytest.raises(TransportError, match=r"not accepted for stun\.test: .*mismatch"):
            asyncio.run(self.frames("other.test", server_name="stun.test", ssl_context=self.trusting()))

    def test_an_unknown_authority_is_refused_by_default(self) -> None:
        with pytest.raises(TransportError, match="ssl_context that trusts its issuer"):
            asyncio.run(self.frames("stun.test", server_name="stun.test"))

    def test_a_peer_without_tls_is_a_transport_error(self) -> None:
        async def run() -> None:
            async with peer(b"plain text, and much of it") as (remote, _):
                await Listener().open(remote, server_name="stun.test")

        with pytest.raises(TransportError, match="no TLS with"):
            asyncio.run(run())


@pytest.mark.parametrize("server_name", [None, "stun.test"])
@pytest.mark.parametrize("rounds", range(8))
def test_cancelling_at_any_moment_leaves_nothing_behind(rounds: int, server_name: str | None) -> None:
    async def run() -> None:
        async with peer(b"") as (remote, _):  # which never answers a TLS handshake
            opening = asyncio.ensure_future(Listener().open(remote, server_name=server_name))
            for _ in range(rounds):
                await asyncio.sleep(0)
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await end(await opening)

    asyncio.run(run())
