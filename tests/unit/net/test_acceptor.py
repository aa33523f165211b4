"""Listening for connections that are accepted one by one, on loopback."""

from __future__ import annotations

import asyncio
import errno
import socket
from unittest import mock

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError, TransportError
from nattools.net.listener import Acceptor
from nattools.net.stream import StreamConnection

LOOPBACK = Endpoint.of("127.0.0.1", 0)


def whole(start: bytes | bytearray) -> int | None:
    """Frames that are whatever has come."""
    return len(start) or None


def test_a_connection_is_served_and_told_of_its_peer() -> None:
    async def scenario() -> None:
        arrived: asyncio.Queue[tuple[socket.socket, Endpoint]] = asyncio.Queue()
        acceptor = Acceptor.open(LOOPBACK, lambda _, sock, remote: arrived.put_nowait((sock, remote)))
        reader, writer = await asyncio.open_connection(*_address(acceptor))
        writer.write(b"hello")
        frames: asyncio.Queue[bytes] = asyncio.Queue()
        losses: asyncio.Queue[TransportError] = asyncio.Queue()
        async with asyncio.timeout(10):
            accepted, remote = await arrived.get()
            assert remote == Endpoint.of(*writer.get_extra_info("sockname"))
            connection = await StreamConnection.accept(
                accepted,
                remote,
                frame_size=whole,
                on_frame=frames.put_nowait,
                on_lost=losses.put_nowait,
            )
            assert connection.local == acceptor.local
            assert await frames.get() == b"hello"
            connection.send(b"answer")
            assert await reader.readexactly(6) == b"answer"
            writer.close()
            await writer.wait_closed()
            await losses.get()
        await connection.wait_closed()
        acceptor.close()

    asyncio.run(scenario())


def test_what_the_peer_does_not_take_is_told_and_can_be_dropped() -> None:
    async def scenario() -> None:
        arrived: asyncio.Queue[tuple[socket.socket, Endpoint]] = asyncio.Queue()
        acceptor = Acceptor.open(LOOPBACK, lambda _, sock, remote: arrived.put_nowait((sock, remote)))
        with socket.create_connection(_address(acceptor)) as peer:
            async with asyncio.timeout(10):
                accepted, remote = await arrived.get()
            connection = await StreamConnection.accept(
                accepted, remote, frame_size=whole, on_frame=lambda _: None, on_lost=lambda _: None
            )
            assert connection.unsent_bytes == 0
            connection.send(bytes(32 << 20))
            assert connection.unsent_bytes > 0
            connection.abort()
            connection.abort()
            await connection.wait_closed()
            assert not connection.is_open
            peer.close()
        acceptor.close()

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_told() -> None:
    async def scenario() -> None:
        acceptor = Acceptor.open(LOOPBACK, lambda _, sock, __: sock.close())
        with pytest.raises(LocalAddressError, match="TCP port"):
            Acceptor.open(acceptor.local, lambda _, sock, __: sock.close())
        acceptor.close()

    asyncio.run(scenario())


def test_without_a_file_for_one_more_it_rests_and_goes_on() -> None:
    async def scenario() -> None:
        arrived: asyncio.Queue[Endpoint] = asyncio.Queue()

        def on_accepted(_: Acceptor, sock: socket.socket, remote: Endpoint) -> None:
            sock.close()
            arrived.put_nowait(remote)

        acceptor = Acceptor.open(LOOPBACK, on_accepted)
        failed = asyncio.Event()

        def fail(_: socket.socket) -> None:
            assert not failed.is_set(), "asked again at once"
            failed.set()
            raise OSError(errno.EMFILE, "too many open files")

        with mock.patch("socket.socket.accept", fail), socket.create_connection(_address(acceptor)):
            async with asyncio.timeout(10):
                await failed.wait()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await arrived.get()
        acceptor.close()

    asyncio.run(scenario())


def _address(acceptor: Acceptor) -> tuple[str, int]:
    return str(acceptor.local.ip), acceptor.local.port
