"""TCP and TLS connections, opened or accepted, cut into frames."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, LocalAddressError, TransportError
from nattools.net.udp import endpoint_of

FrameSize = Callable[[bytes | bytearray], int | None]
"""How many bytes the frame has that begins so; None: too few to tell. Raises `DecodeError`: not a frame."""
OnFrame = Callable[[bytes], None]
OnLost = Callable[[TransportError], None]

MOST_FRAME_BYTES = 1 << 17
"""A peer that announces more than this is cut off; what is held back for an unfinished frame stays below."""

_CLOSE_TIMEOUT_S = 1.0
_HANDSHAKE_TIMEOUT_S = 10.0


class StreamConnection(asyncio.Protocol):
    """One connection. Make it with `StreamConnection.open` or `accept`, end it with `close`."""

    def __init__(self, remote: Endpoint, frame_size: FrameSize, on_frame: OnFrame, on_lost: OnLost) -> None:
        self.remote = remote
        self.local: Endpoint
        """Where the connection leaves this host; known once it is open."""
        self._frame_size = frame_size
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._loss: TransportError | None = None
        self._closing = False
        self._transport_closed = False

    @classmethod
    async def open(
        cls,
        remote: Endpoint,
        *,
        frame_size: FrameSize,
        on_frame: OnFrame,
        on_lost: OnLost,
        connect_timeout_s: float = 5.0,
        local_address: IPAddress | None = None,
        local_port: int = 0,
        server_name: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> StreamConnection:
        """Connect, and hand every whole frame to `on_frame`; `on_lost` is called once if the peer ends it.

        With a `server_name` the connection is TLS and the certificate must show that name, by the rules of
        `ssl_context` or else those of `ssl.create_default_context`. Raises `TransportError`, and of these
        `LocalAddressError` when the local address or port cannot be had.
        """
        source: tuple[str, int] | None = None
        if local_address is not None or local_port:
            source = (str(local_address or ("::" if remote.is_ipv6 else "0.0.0.0")), local_port)
        loop = asyncio.get_running_loop()
        context = (ssl_context or ssl.create_default_context()) if server_name is not None else None
        self = cls(remote, frame_size, on_frame, on_lost)
        try:
            async with asyncio.timeout(connect_timeout_s):
                transport, _ = await loop.create_connection(
                    (lambda: self) if context is None else asyncio.Protocol,
                    str(remote.ip),
                    remote.port,
                    local_addr=source,
                )
                if context is not None:
                    # create_connection can do it too, but if cancelled just before the handshake it leaks
                    await self._start_tls(transport, context, server_name)
        except TimeoutError as error:
            raise TransportError(
                f"no connection to {remote}: nothing came back in {connect_timeout_s:g} s; "
                "the server may be down, or a firewall in between"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"the certificate of {remote} is not accepted for {server_name}: {error.verify_message}; "
                "give the host name that is in it, or an ssl_context that trusts its issuer"
            ) from error
        except ssl.SSLError as error:
            raise TransportError(f"no TLS with {remote}: {error.reason or error}") from error
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            if source is not None and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                where = f"{local_address or 'any address'}, port {local_port or 'any'}"
                raise LocalAddressError(f"cannot connect from {where}: {problem}") from error
            raise TransportError(f"no connection to {remote}: {problem}") from error
        return self

    @classmethod
    async def accept(
        cls,
        accepted: socket.socket,
        remote: Endpoint,
        *,
        frame_size: FrameSize,
        on_frame: OnFrame,
        on_lost: OnLost,
        ssl_context: ssl.SSLContext | None = None,
    ) -> StreamConnection:
        """Serve a connection that a listening socket gave; with an `ssl_context` it is TLS.

        Raises `TransportError` where there is nobody any more, or no TLS comes about; it is closed then.
        """
        self = cls(remote, frame_size, on_frame, on_lost)
        limit_s = None if ssl_context is None else _HANDSHAKE_TIMEOUT_S
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, accepted, ssl=ssl_context, ssl_handshake_timeout=limit_s
            )
        except OSError as error:  # those of TLS are of this kind, too
            accepted.close()
            # without the traceback, whose frames hold the error and all of TLS: as in net/accepted.py
            raise TransportError(f"no connection from {remote}: {error}") from error.with_traceback(None)
        except BaseException:
            accepted.close()
            raise
        return self

    async def _start_tls(
        self, transport: asyncio.WriteTransport, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        secured = await asyncio.get_running_loop().start_tls(
            transport,
            self,
            context,
            server_hostname=server_name,
            ssl_shutdown_timeout=_CLOSE_TIMEOUT_S,
        )
        if secured is None:
            raise TransportError(f"{self.remote} closed the connection")
        self.connection_made(secured)
        if self._loss is not None:
            secured.close()
            raise self._loss

    @property
    def is_open(self) -> bool:
        """Whether nobody has ended the connection yet."""
        return not self._closing and self._loss is None

    @property
    def unsent_bytes(self) -> int:
        """How much the peer has not taken yet of what was sent."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> None:
        """Send. Raises `TransportError` on a connection that has ended."""
        if self._closing or self._transport is None:
            raise TransportError(f"the connection to {self.remote} is closed")
        if self._loss is not None:
            raise self._loss
        self._transport.write(data)

    def close(self) -> None:
        """End the connection, after what is still to be sent; no callback comes after that."""
        self._closing = True
        self._close_transport()

    def abort(self) -> None:
        """End the connection at once, whatever is still to be sent; no callback comes after that."""
        self._closing = True
        if self._transport is not None and not self._transport_closed:
            self._transport_closed = True
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait, but not for long, until the connection has ended."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await asyncio.shield(self._closed)
        finally:
            if self._transport is not None and not self._closed.done():
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self.local = endpoint_of(transport.get_extra_info("sockname"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: hand out the frames that are whole."""
        self._buffer += data
        while not self._closing and self._loss is None:
            try:
                size = self._frame_size(self._buffer)
                if size is not None and size > MOST_FRAME_BYTES:
                    raise DecodeError(f"a frame of {size} bytes")
            except DecodeError as error:
                self._end(TransportError(f"{self.remote} sent what nobody understands: {error}"))
                return
            if size is None or len(self._buffer) < size:
                return
            frame = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._on_frame(frame)

    def eof_received(self) -> None:
        """Called by asyncio: the peer has nothing more to say, so this end closes too."""
        self._end(TransportError(f"{self.remote} closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._end(TransportError(f"the connection to {self.remote} broke: {error or 'closed'}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _end(self, loss: TransportError) -> None:
        if self._loss is not None:
            return
        self._loss = loss
        self._buffer.clear()
        self._close_transport()
        if not self._closing:
            self._on_lost(loss)

    def _close_transport(self) -> None:
        """Close it once: the TLS transport of Python 3.11.2 cannot be aborted after a second time."""
        if self._transport is not None and not self._transport_closed:
            self._transport_closed = True
            self._transport.close()
