"""A small HTTP server: one bounded request for each connection, answered and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import h11

from nattools.endpoint import Endpoint
from nattools.net.http import HttpRequest, HttpResponse, receive_request
from nattools.net.listener import StreamListener
from nattools.net.visits import Visits, tell

MOST_CONNECTIONS = 16
"""At once; those beyond are closed unread."""

REQUEST_TIMEOUT_S = 5.0
"""For the request to arrive, and once more for the answer to be taken."""

_READ_BYTES = 1 << 14

Respond = Callable[[HttpRequest], Awaitable[HttpResponse]]

_log = logging.getLogger(__name__)


class HttpServer:
    """Answers each request with what `respond` makes of it. Made by `open`, ended by `close`."""

    def __init__(self, respond: Respond) -> None:
        self.local: Endpoint
        """Where it listens."""
        self._respond = respond
        self._listener: StreamListener
        self._visits = Visits(MOST_CONNECTIONS)

    @classmethod
    async def open(cls, local: Endpoint, respond: Respond) -> HttpServer:
        """Listen at `local` (port 0: any free one). Raises `LocalAddressError`."""
        self = cls(respond)
        self._listener = await StreamListener.open(local, self._serve, limit_bytes=_READ_BYTES)
        self.local = self._listener.local
        return self

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        self._listener.close()
        await self._visits.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._visits.of(writer) as is_welcome:
            if is_welcome:
                response = await self._response_to(reader)
                await tell(writer, _encode(response), within_s=REQUEST_TIMEOUT_S)

    async def _response_to(self, reader: asyncio.StreamReader) -> HttpResponse:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await receive_request(reader)
        except TimeoutError:
            return status_only(HTTPStatus.REQUEST_TIMEOUT)
        except h11.RemoteProtocolError as error:
            return status_only(HTTPStatus(error.error_status_hint))
        if request is None:
            return status_only(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            return await self._respond(request)
        except Exception:  # noqa: BLE001  the answer is the caller's; a task has nobody to tell
            _log.exception("%s %s cannot be answered", request.method, request.target[:100])
            return status_only(HTTPStatus.INTERNAL_SERVER_ERROR)


def status_only(status: HTTPStatus) -> HttpResponse:
    """A response that says its status in words."""
    text = f"{status.value} {status.phrase}\n"
    return HttpResponse(status, (("content-type", "text/plain; charset=utf-8"),), text.encode())


def _encode(response: HttpResponse) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += (f"{name}: {value}" for name, value in response.headers)
    lines += (f"content-length: {len(response.body)}", "connection: close", "", "")
    return "\r\n".join(lines).encode() + response.body
