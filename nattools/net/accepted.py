"""A connection that an `Acceptor` has given, read and written by `await`: plain, or over TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_HANDSHAKE = b"\x16"  # the first byte of TLS (RFC 8446 §5.1)


async def begins_with_tls(accepted: socket.socket) -> bool:
    """Wait for the first byte, which stays to be read: whether it is one of TLS. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    while True:
        readable = loop.create_future()
        loop.add_reader(accepted, _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(accepted)
        with suppress(BlockingIOError):
            return accepted.recv(1, socket.MSG_PEEK) == _HANDSHAKE


async def open_streams(
    accepted: socket.socket, *, limit_bytes: int, tls: ssl.SSLContext | None = None
) -> Streams:
    """Begin to read the connection, about twice `limit_bytes` ahead; with `tls` after the handshake.

    Raises `OSError`, of which those of TLS are, where there is nobody any more; it is closed then.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit_bytes, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=tls)
    except OSError as error:
        accepted.close()
        # asyncio's frames in its traceback hold the error: a circle that keeps 0.3 MB until it is found
        raise error.with_traceback(None) from None
    except BaseException:
        accepted.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def close_streams(writer: asyncio.StreamWriter, *, within_s: float) -> None:
    """Close once what was written is sent and TLS has said goodbye, or when the time is up."""
    try:
        with suppress(OSError):  # `TimeoutError` is one
            async with asyncio.timeout(within_s):
                if not writer.is_closing():  # closed twice, TLS of Python 3.11 cannot be aborted any more
                    writer.close()
                await writer.wait_closed()
    finally:
        writer.transport.abort()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
