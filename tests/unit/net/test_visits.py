"""So many connections at once, and none of them after the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from nattools.net.visits import Visits, tell


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What is told until the end, be it a reset."""
    with suppress(ConnectionResetError):
        return await reader.read()
    return b""


async def scenario() -> None:
    visits = Visits(2)
    arrivals = asyncio.Event()
    arrived: list[bytes] = []
    served: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with visits.of(writer) as is_welcome:
            if not is_welcome:
                return
            wanted = await reader.readline()
            if wanted == b"fault\n":
                raise ConnectionResetError
            if wanted == b"stay\n":
                arrived.append(wanted)
                arrivals.set()
                await asyncio.Event().wait()
            served.append(wanted.decode().strip())
            await tell(writer, b"hello", within_s=5)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    async def ask(wanted: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(wanted + b"\n")
        return reader, writer

    fault = await ask(b"fault")
    assert await all_of(fault[0]) == b""
    one = await ask(b"a")
    assert await all_of(one[0]) == b"hello"
    guests = [await ask(b"stay") for _ in range(2)]
    while len(arrived) < 2:
        await arrivals.wait()
        arrivals.clear()
    late = await ask(b"too many")
    assert await all_of(late[0]) == b""
    server.close()
    await visits.close()
    assert [await all_of(reader) for reader, _ in guests] == [b"", b""]
    assert served == ["a"]
    for _, writer in (fault, one, late, *guests):
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def test_a_server_has_few_guests_and_sends_them_home() -> None:
    asyncio.run(scenario())


def test_a_task_that_somebody_else_ends_is_told_so() -> None:
    async def ended() -> None:
        class Writer:
            class transport:  # noqa: N801 - as asyncio has it
                abort = staticmethod(lambda: None)

        async with Visits(1).of(Writer):  # type: ignore[arg-type]  # nothing else of it is used
            await asyncio.sleep(3600)

    async def run() -> None:
        task = asyncio.ensure_future(ended())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
