"""A STUN server's connections over TCP and TLS (RFC 8489 §6.2.2, §6.2.3), each within its limits."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import NamedTuple

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.net.accepted import Streams, begins_with_tls, close_streams, open_streams
from nattools.net.listener import Acceptor
from nattools.net.tls import ServerCertificate
from nattools.net.udp import endpoint_of
from nattools.stun.connections import ConnectionCounts
from nattools.stun.counts import Counts
from nattools.stun.limiter import Limiter
from nattools.stun.message import HEADER_BYTES, frame_size
from nattools.stun.responder import DropReason, Reply
from nattools.stun.uri import Transport

MOST_REQUEST_BYTES = 4096
"""A connection with a longer request is closed. Only PADDING makes one, and TCP has no use for that."""

HANDSHAKE_S = 10.0
"""A connection that takes longer to agree on TLS is closed."""

_FRAME_START_BYTES = 4
_OVER_LIMIT_PAUSE_S = 0.1
_CLOSE_S = 1.0

Respond = Callable[[bytes, Endpoint, Endpoint, Transport], Reply | DropReason]
"""What to answer to a request, given its source, where it came to, and by what."""

Count = Callable[[Reply | DropReason, Endpoint, Endpoint, int, Transport], None]
"""Takes note of what became of a request of so many bytes, or of a connection (0)."""

_log = logging.getLogger(__name__)


class _Ends(NamedTuple):
    """Whom a connection is with, at which socket of the server, and what it is."""

    source: Endpoint
    local: Endpoint
    transport: Transport


class StreamServer:
    """Listens where it is told to by `listen`, until `close`."""

    def __init__(
        self,
        respond: Respond,
        count: Count,
        *,
        counts: Counts,
        connections: ConnectionCounts,
        limiter: Limiter | None,
        certificate: ServerCertificate | None,
        reuse_port: bool,
    ) -> None:
        """`limiter` must admit each request; one that it does not has to wait, and its connection with it."""
        self._respond = respond
        self._count = count
        self._counts = counts
        self._connections = connections
        self._limiter = limiter
        self._certificate = certificate
        self._reuse_port = reuse_port
        self._now = asyncio.get_running_loop().time
        self._acceptors: list[Acceptor] = []
        self._tls_only: set[Acceptor] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, local: Endpoint, *, tls_only: bool = False) -> int:
        """Listen at `local` (port 0: any free one), and say at which port that is.

        With a certificate a connection that begins with TLS is served so; with `tls_only` no other is.
        Raises `LocalAddressError`.
        """
        acceptor = Acceptor.open(local, self._on_accepted, reuse_port=self._reuse_port)
        self._acceptors.append(acceptor)
        if tls_only:
            self._tls_only.add(acceptor)
        return acceptor.local.port

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        await asyncio.sleep(0)  # so that what was accepted last has begun, and closes its socket
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_accepted(self, acceptor: Acceptor, accepted: socket, source: Endpoint) -> None:
        since = self._now()
        if not self._connections.admit(source, now=since):
            accepted.close()
            self._count(DropReason.TOO_MANY_CONNECTIONS, source, acceptor.local, 0, Transport.TCP)
            return

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._connections.end(source, since=since, now=self._now())

        task = asyncio.create_task(self._on_connection(accepted, source, acceptor in self._tls_only))
        self._tasks.add(task)
        task.add_done_callback(end)

    async def _on_connection(self, accepted: socket, source: Endpoint, tls_only: bool) -> None:
        """Serve one connection from its first byte to its last; its socket is closed then."""
        with accepted, suppress(OSError):  # the client has left
            ends = _Ends(source, endpoint_of(accepted.getsockname()), Transport.TCP)
            try:
                if tls_only or (self._certificate is not None and await self._wants_tls(accepted)):
                    ends = ends._replace(transport=Transport.TLS)
            except TimeoutError:
                self._drop(DropReason.SLOW_CONNECTION, ends)
                return
            streams = await self._open(accepted, ends)
            if streams is not None:
                await self._converse(streams, ends)

    async def _wants_tls(self, accepted: socket) -> bool:
        async with asyncio.timeout(self._idle_s):
            return await begins_with_tls(accepted)

    async def _open(self, accepted: socket, ends: _Ends) -> Streams | None:
        """The connection to read and write; None where TLS does not come about."""
        if ends.transport is Transport.TCP or self._certificate is None:
            return await open_streams(accepted, limit_bytes=MOST_REQUEST_BYTES)
        tls = self._certificate.context
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                return await open_streams(accepted, limit_bytes=MOST_REQUEST_BYTES, tls=tls)
        except OSError as error:  # a `TimeoutError`, too
            _log.debug("%s to %s: no TLS: %s", ends.source, ends.local, error or "it takes too long")
            self._drop(DropReason.TLS_FAILED, ends)
            return None

    async def _converse(self, streams: Streams, ends: _Ends) -> None:
        """Serve an open connection until either side ends it."""
        reader, writer = streams
        writer.transport.set_write_buffer_limits(high=0)  # `drain` is to wait until everything is sent
        self._counts.connect(ends.transport)
        try:
            reason = await self._serve(reader, writer, ends)
            if reason is not None:
                self._drop(reason, ends)
            await close_streams(writer, within_s=_CLOSE_S)
        except OSError as error:  # the client has left, or TLS broke
            error.with_traceback(None)  # the reader keeps the error, and its frames the reader and all of TLS
            if isinstance(error, ssl.SSLError):
                self._drop(DropReason.TLS_FAILED, ends)
        finally:
            self._counts.disconnect(ends.transport)
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: _Ends
    ) -> DropReason | None:
        """Answer requests one after the other until the client leaves, or sends what is not answered.

        After each all others have their turn, so that a connection full of requests delays nobody.
        """
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    data = await read_request(reader)
                if not isinstance(data, bytes):
                    return data
                if not await self._is_admitted(ends.source):
                    return DropReason.RATE_LIMITED
                answer = self._respond(data, *ends)
                if isinstance(answer, DropReason):
                    return answer
                async with asyncio.timeout(self._idle_s):
                    writer.write(answer.data)
                    await writer.drain()
            except TimeoutError:
                return DropReason.SLOW_CONNECTION
            self._count(answer, ends.source, ends.local, len(data), ends.transport)
            await asyncio.sleep(0)

    async def _is_admitted(self, source: Endpoint) -> bool:
        """Wait, though not forever, until the limiter admits a request.

        Nothing is read from its connection meanwhile: so TCP slows its client down.
        """
        until = self._now() + self._idle_s
        while self._limiter is not None and not self._limiter.admit_one(source, now=self._now()):
            if self._now() >= until:
                return False
            await asyncio.sleep(_OVER_LIMIT_PAUSE_S)
        return True

    def _drop(self, reason: DropReason, ends: _Ends) -> None:
        self._count(reason, ends.source, ends.local, 0, ends.transport)

    @property
    def _idle_s(self) -> float:
        return self._connections.limits.idle_s


async def read_request(reader: asyncio.StreamReader) -> bytes | DropReason | None:
    """The next request, or what is there instead; None at the end of the connection."""
    start = b""
    try:
        start = await reader.readexactly(_FRAME_START_BYTES)
        size = frame_size(start) or HEADER_BYTES
        if size > MOST_REQUEST_BYTES:
            return DropReason.TOO_LONG
        return start + await reader.readexactly(size - len(start))
    except DecodeError:
        return DropReason.NOT_STUN
    except asyncio.IncompleteReadError as error:
        return DropReason.TRUNCATED if start or error.partial else None
