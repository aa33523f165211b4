"""Unix sockets that tell a document: who may read, what becomes of the file, and readers that do not read."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path

import pytest

from nattools.errors import DisconnectedError, LocalAddressError, NoResponseError, TransportError
from nattools.net import unix
from nattools.net.unix import DocumentSocket, read_document


async def hello() -> bytes:
    return b"hello\n"


async def read(path: Path) -> bytes:
    return await asyncio.to_thread(read_document, path)


def on_a_loop(test: Callable[[Path], Coroutine[None, None, None]]) -> Callable[[Path], None]:
    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


@on_a_loop
async def test_each_reader_gets_the_document_of_that_moment(tmp_path: Path) -> None:
    told = 0

    async def count() -> bytes:
        nonlocal told
        told += 1
        return str(told).encode()

    path = tmp_path / "x.sock"
    server = await DocumentSocket.open(path, count)
    assert [await read(path), await read(path)] == [b"1", b"2"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    assert not path.exists()
    with pytest.raises(TransportError, match="no such file"):
        await read(path)


@on_a_loop
async def test_what_a_killed_process_left_is_replaced_and_what_lives_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    first = await DocumentSocket.open(path, hello)
    with pytest.raises(LocalAddressError, match=r"already in use.*another path"):
        await DocumentSocket.open(path, hello)
    assert await read(path) == b"hello\n"
    await first.close()


@on_a_loop
async def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(LocalAddressError, match="already in use"):
        await DocumentSocket.open(path, hello)
    assert path.read_text() == "data"


@on_a_loop
async def test_the_file_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    first = await DocumentSocket.open(path, hello)
    path.unlink()
    second = await DocumentSocket.open(path, hello)
    await first.close()
    assert await read(path) == b"hello\n"
    await second.close()


@on_a_loop
async def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "x.sock", tmp_path / ("x" * 200)):
        with pytest.raises(LocalAddressError, match="cannot listen at"):
            await DocumentSocket.open(path, hello)


@on_a_loop
async def test_a_large_document_arrives_whole_and_readers_that_do_not_read_are_bounded(
    tmp_path: Path,
) -> None:
    path, size = tmp_path / "x.sock", 8 << 20

    async def large() -> bytes:
        return b"x" * size

    server = await DocumentSocket.open(path, large)
    assert len(await read(path)) == size
    idle = [await asyncio.open_unix_connection(str(path)) for _ in range(unix.MOST_READERS)]
    for reader, _writer in idle:
        await reader.readexactly(1)
    with pytest.raises(DisconnectedError, match="too many"):
        await read(path)
    await server.close()
    for _reader, writer in idle:
        writer.transport.abort()


@on_a_loop
async def test_a_document_that_cannot_be_told_ends_one_connection_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    faults = [ValueError("x")]

    async def faulty() -> bytes:
        if faults:
            raise faults.pop()
        return b"well"

    server = await DocumentSocket.open(path, faulty)
    with pytest.raises(DisconnectedError):
        await read(path)
    assert await read(path) == b"well"
    await server.close()


def test_one_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(NoResponseError, match=r"for 0\.01 s"):
            read_document(path, timeout_s=0.01)
