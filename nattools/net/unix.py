"""Unix sockets for this user alone: a server that tells each who connects one document, and its reader."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from nattools.errors import DisconnectedError, LocalAddressError, NoResponseError, TransportError
from nattools.net.visits import Visits, tell

MOST_READERS = 8
"""At once; those beyond are closed without a word."""

MOST_DOCUMENT_BYTES = 1 << 28

_MODE = 0o600
_BACKLOG = 16
_WRITE_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 16

Document = Callable[[], Awaitable[bytes]]

_log = logging.getLogger(__name__)


class DocumentSocket:
    """A Unix socket that gives a document to each who connects, and ends the connection.

    Made by `open`, ended by `close`, which removes its file.
    """

    def __init__(self, path: Path, document: Document) -> None:
        self.path = path
        """Where its file is."""
        self._document = document
        self._server: asyncio.Server
        self._inode = 0
        self._visits = Visits(MOST_READERS)

    @classmethod
    async def open(cls, path: Path, document: Document) -> DocumentSocket:
        """Listen at `path`, which only this user can connect to; a file that nobody listens at is replaced.

        Raises `LocalAddressError` where another process listens there, or a file of another kind is there.
        """
        self = cls(path, document)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), _MODE)  # on Linux the file is made with it, so that there is no gap
            self._inode = _bind(sock, path)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, backlog=_BACKLOG)
        except OSError as error:
            sock.close()
            raise LocalAddressError(
                f"cannot listen at {path}: {_reason(error)}; give another path, in a directory of this user"
            ) from error
        except BaseException:
            sock.close()
            raise
        return self

    async def close(self) -> None:
        """Stop listening, end every connection and remove the file, if it is still this socket's."""
        self._server.close()
        await self._visits.close()
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._visits.of(writer) as is_welcome:
            if not is_welcome:
                return
            try:
                document = await self._document()
            except Exception:  # noqa: BLE001  the document is the caller's; a task has nobody to tell
                _log.exception("what is asked for at %s cannot be told", self.path)
                return
            await tell(writer, document, within_s=_WRITE_TIMEOUT_S)


def read_document(path: Path, *, timeout_s: float = 5.0) -> bytes:
    """What the process that listens at `path` tells.

    Raises `NoResponseError` where it takes longer, and `TransportError` where nobody is there to ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        document = bytearray()
        try:
            sock.connect(os.fspath(path))
            while chunk := sock.recv(_READ_BYTES):
                document += chunk
                if len(document) > MOST_DOCUMENT_BYTES:
                    raise TransportError(f"{path} tells more than {MOST_DOCUMENT_BYTES} bytes")
        except TimeoutError as error:
            raise NoResponseError(f"nothing came from {path} for {timeout_s:g} s") from error
        except OSError as error:
            raise TransportError(f"cannot read from {path}: {_reason(error)}") from error
    if not document:
        raise DisconnectedError(f"{path} told nothing: too many read from it at once, or it is ending")
    return bytes(document)


def _bind(sock: socket.socket, path: Path) -> int:
    """Bind to `path`, over a socket that a killed process has left there. Gives the number of its file."""
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(path):
            raise
        path.unlink()
        sock.bind(os.fspath(path))
    path.chmod(_MODE)
    return path.stat().st_ino


def _is_stale(path: Path) -> bool:
    """Whether there is a socket at `path`, and nobody listens."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
