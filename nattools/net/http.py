"""HTTP/1.1 as routers speak it: one bounded request for each connection, and a listener for callbacks."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    EncodeError,
    LocalAddressError,
    NoResponseError,
    TransportError,
)
from nattools.net.udp import endpoint_of, socket_address
from nattools.net.visits import Visits

MOST_BODY_BYTES = 1 << 20
MOST_HEAD_BYTES = 1 << 15
MOST_INTERIM_RESPONSES = 8
MOST_CALLBACK_BYTES = 1 << 16
MOST_CALLBACK_CONNECTIONS = 8
CALLBACK_TIMEOUT_S = 5.0

_READ_BYTES = 1 << 14
_MOST_STATUS_LINE_BYTES = 1 << 10
_DEFAULT_PORT = 80

_HINTS = {
    errno.ECONNREFUSED: "the router may have UPnP off, or on another port",
    errno.EINVAL: "a link-local address needs its interface: fe80::1%eth0",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request; Host, Content-Length and Connection are added when it is sent."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, in any spelling."""
        return _header(self.headers, name)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response; the names of its headers are in lower case, its body is as it was sent, never inflated."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, in any spelling."""
        return _header(self.headers, name)


def _header(headers: tuple[tuple[str, str], ...], name: str) -> str | None:
    wanted = name.lower()
    return next((value for key, value in headers if key.lower() == wanted), None)


async def exchange(
    server: Endpoint,
    request: HttpRequest,
    *,
    timeout_s: float = 3.0,
    most_body_bytes: int = MOST_BODY_BYTES,
    local_address: IPAddress | None = None,
) -> tuple[HttpResponse, Endpoint]:
    """Send one request on a connection of its own; give the response, and where the connection left from.

    Redirects are not followed, proxies not asked. `timeout_s` is for all of it. Raises `EncodeError` for a
    request that HTTP cannot carry, `NoResponseError` when the time is over, `DisconnectedError` when the
    server ends the connection before its answer is whole, `TransportError` where there is no connection,
    and `DecodeError` for what is not HTTP or has a body of more than `most_body_bytes`.
    """
    tried = f"{request.method} http://{server}{request.target}"
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
    data = _encode(connection, server, request)
    answer = _Answer(connection, most_body_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            transport, local = await _connect(server, local_address, answer)
            try:
                # Linksys routers read only the first segment, DrayTek ones take a half-close for the end:
                # all in one write, and nothing after it
                transport.write(data)
                outcome = await answer.outcome
            finally:
                transport.abort()
    except TimeoutError as error:
        raise NoResponseError(
            f"{tried}: no whole answer in {timeout_s:.3g} s; the router may be busy: try again"
        ) from error
    if isinstance(outcome, HttpResponse):
        return outcome, local
    raise type(outcome)(f"{tried}: {outcome}") from outcome


async def _connect(
    server: Endpoint, local_address: IPAddress | None, answer: _Answer
) -> tuple[asyncio.WriteTransport, Endpoint]:
    """Connect. Raises `TransportError`, and of these `LocalAddressError` for the address here."""
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if server.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if local_address is not None:
            try:
                sock.bind(socket_address(Endpoint(local_address, 0)))
            except OSError as error:
                raise LocalAddressError(
                    f"cannot connect from {local_address}: {_reason(error)}; give an address of this machine"
                ) from error
        await loop.sock_connect(sock, socket_address(server))
        local = endpoint_of(sock.getsockname(), with_scope=True)
        transport, _ = await loop.create_connection(lambda: answer, sock=sock)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            hint = _HINTS.get(error.errno or 0, "is this machine in the router's network?")
            raise TransportError(f"no connection to {server}: {_reason(error)}; {hint}") from error
        raise
    return transport, local


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)


def _encode(connection: h11.Connection, server: Endpoint, request: HttpRequest) -> bytes:
    """The whole request. Raises `EncodeError`."""
    host = f"[{str(server.ip).partition('%')[0]}]" if server.is_ipv6 else str(server.ip)
    port = "" if server.port == _DEFAULT_PORT else f":{server.port}"
    headers = [("Host", host + port), *request.headers]
    if request.body or request.method == "POST":
        headers.append(("Content-Length", str(len(request.body))))
    headers.append(("Connection", "close"))
    try:
        head = h11.Request(
            method=request.method.encode("ascii"),
            target=request.target.encode("ascii"),
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in headers],
        )
        events: list[h11.Event] = [head, h11.Data(data=request.body), h11.EndOfMessage()]
        return b"".join(connection.send(event) or b"" for event in events)
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise EncodeError(f"{request.method} {request.target!r} cannot be sent by HTTP: {error}") from error


class _Answer(asyncio.BufferedProtocol):
    """The connection of one exchange, until the response is whole.

    The buffer is small, and so is each piece of work: between two of them the deadline has its chance.
    """

    def __init__(self, connection: h11.Connection, most_body_bytes: int) -> None:
        self.outcome: asyncio.Future[HttpResponse | DecodeError | DisconnectedError] = (
            asyncio.get_running_loop().create_future()
        )
        """An error is a result here, since nobody may be left to take an exception."""
        self._connection = connection
        self._most_body_bytes = most_body_bytes
        self._buffer = bytearray(_READ_BYTES)
        self._status_line: bytearray | None = bytearray()
        self._interim = 0
        self._head: h11.Response | None = None
        self._body = bytearray()

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Called by asyncio."""
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        """Called by asyncio: `size` bytes are in the buffer."""
        self._take(bytes(self._buffer[:size]))

    def eof_received(self) -> None:
        """Called by asyncio: the server has nothing more to say, which may be how the body ends."""
        self._take(b"")

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        reason = _reason(error) if isinstance(error, OSError) else "closed"
        self._settle(DisconnectedError(f"the connection was lost before the answer was whole: {reason}"))

    def _settle(self, outcome: HttpResponse | DecodeError | DisconnectedError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _take(self, data: bytes) -> None:
        """Take what was read, b"" for the end."""
        if self.outcome.done():
            return
        try:
            if self._status_line is not None:
                self._take_status_line(self._status_line + data)
            else:
                self._connection.receive_data(data)
            response = self._read() if self._status_line is None else None
        except DecodeError as error:
            self._settle(error)
        except h11.RemoteProtocolError as error:
            if data:  # else the end came too early, and the connection is lost next
                self._settle(DecodeError(f"the answer is not HTTP: {str(error)[:100]}"))
        else:
            if response is not None:
                self._settle(response)

    def _take_status_line(self, start: bytearray) -> None:
        """Pass on the first line, once it is whole, with single spaces: h11 takes no others."""
        line, newline, rest = start.partition(b"\n")
        if not b"HTTP/".startswith(line[:5]) or len(line) > _MOST_STATUS_LINE_BYTES:
            raise DecodeError(f"the answer is not HTTP: it begins with {bytes(line[:40])!r}")
        if not newline:
            self._status_line = start
            return
        self._status_line = None
        self._connection.receive_data(b" ".join(line.split()) + b"\r\n" + rest)

    def _read(self) -> HttpResponse | None:
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.InformationalResponse):
                self._interim += 1
                if self._interim > MOST_INTERIM_RESPONSES:
                    raise DecodeError(f"more than {MOST_INTERIM_RESPONSES} interim responses")
            elif isinstance(event, h11.Response):
                self._head = event
                announced = dict(event.headers).get(b"content-length", b"0")
                self._check_size(int(announced))
            elif isinstance(event, h11.Data):
                self._check_size(len(self._body) + len(event.data))
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage) and self._head is not None:
                return HttpResponse(self._head.status_code, _text_of(self._head.headers), bytes(self._body))
            else:  # NEED_DATA
                return None

    def _check_size(self, size: int) -> None:
        if size > self._most_body_bytes:
            raise DecodeError(f"the answer is larger than {self._most_body_bytes} bytes")


def _text_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


OnRequest = Callable[[HttpRequest, Endpoint], int]
"""Takes a request and where it came from; gives the status to answer with."""


_ROUNDS_TO_ACCEPT = 10
"""Of the event loop: asyncio takes some for a connection, and loses one that is late for its server."""


class HttpListener:
    """A small HTTP server for callbacks. Make it with `HttpListener.open`, end it with `close`."""

    def __init__(self, on_request: OnRequest, accept_from: Callable[[Endpoint], bool]) -> None:
        self.local: Endpoint
        """Where it listens."""
        self._on_request = on_request
        self._accept_from = accept_from
        self._visits = Visits(MOST_CALLBACK_CONNECTIONS)
        self._server: asyncio.Server

    @classmethod
    async def open(
        cls,
        local_address: IPAddress,
        *,
        on_request: OnRequest,
        accept_from: Callable[[Endpoint], bool],
    ) -> HttpListener:
        """Listen on a free port of `local_address`; `on_request` gets every whole request.

        Connections from where `accept_from` says no are closed unread, and so are those beyond eight at once.
        Raises `LocalAddressError` when the address cannot be had.
        """
        self = cls(on_request, accept_from)
        try:
            sock = socket.socket(
                socket.AF_INET6 if local_address.version == 6 else socket.AF_INET, socket.SOCK_STREAM
            )
            try:
                sock.setblocking(False)
                sock.bind(socket_address(Endpoint(local_address, 0)))
                self._server = await asyncio.start_server(
                    self._serve, sock=sock, limit=_READ_BYTES, backlog=MOST_CALLBACK_CONNECTIONS
                )
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise LocalAddressError(
                f"cannot listen for callbacks on {local_address}: {_reason(error)};"
                " give an address of this machine"
            ) from error
        self.local = endpoint_of(sock.getsockname(), with_scope=True)
        return self

    async def close(self) -> None:
        """Stop listening and end every connection; no callback comes after that."""
        try:
            for listening in self._server.sockets:
                with suppress(NotImplementedError):  # Windows
                    asyncio.get_running_loop().remove_reader(listening.fileno())
            self._visits.end()
            for _ in range(_ROUNDS_TO_ACCEPT):
                await asyncio.sleep(0)
        finally:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, whatever it is, in bounded time."""
        peer = endpoint_of(writer.get_extra_info("peername"), with_scope=True)
        async with self._visits.of(writer) as is_welcome:
            if not is_welcome or not self._accept_from(peer):
                return
            try:
                writer.write(_status_only(await self._status_for(reader, peer)))
            except OSError:
                raise
            except Exception:  # noqa: BLE001  the callbacks are the caller's; a task has nobody to tell
                _log.exception("a callback from %s cannot be answered", peer)

    async def _status_for(self, reader: asyncio.StreamReader, peer: Endpoint) -> int:
        try:
            async with asyncio.timeout(CALLBACK_TIMEOUT_S):
                request = await receive_request(reader)
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        except h11.RemoteProtocolError as error:
            return error.error_status_hint
        if request is None:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return self._on_request(request, peer)


async def receive_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    """Read a whole request; None if it is too large. Raises h11's `RemoteProtocolError` and `OSError`."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD_BYTES)
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
            await asyncio.sleep(0)  # as in `exchange`
        elif isinstance(event, h11.Request):
            head = event
            if int(dict(head.headers).get(b"content-length", b"0")) > MOST_CALLBACK_BYTES:
                return None
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MOST_CALLBACK_BYTES:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            target, method = head.target.decode("ascii"), head.method.decode("ascii")
            return HttpRequest(method, target, _text_of(head.headers), bytes(body))
        else:
            raise ConnectionResetError(errno.ECONNRESET, "closed before a request")


def _status_only(status: int) -> bytes:
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {int(status)} {phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
