"""Registrations in an SQLite file: they outlive the process, `kill -9` too."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nattools.errors import LocationError
from nattools.session.stores.records import RecordLocation

_VERSION = 1
_BUSY_S = 5.0
_TIDY_S = 60.0
_TABLE = """
create table if not exists registration (
    address_of_record blob primary key,
    record text not null,
    until real not null
) without rowid, strict
"""

ResultT = TypeVar("ResultT")


class SqliteLocation(RecordLocation):
    """Bindings in a file, which several processes of one host may have open; made by `open`.

    Each update is written to the system before it is answered, so the end of the process loses nothing. It is
    not forced to the disk: a power cut may lose the last seconds, but leaves the file whole. All calls
    are made in one thread of its own, since a disk can take its time.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        """Take what `open` has opened."""
        self._path = path
        self._connection = connection
        self._thread = thread
        self._tidy_at = time.monotonic()

    @classmethod
    async def open(cls, path: Path) -> SqliteLocation:
        """Open the file, or make it for this user's eyes only. Raises `LocationError`."""
        thread = ThreadPoolExecutor(1, "registrations")
        loop = asyncio.get_running_loop()
        try:
            return cls(path, await loop.run_in_executor(thread, _connect, path), thread)
        except (sqlite3.Error, OSError) as error:
            thread.shutdown(wait=False)
            raise LocationError(
                f"registrations cannot be kept in {path}: {error}; see that it is an SQLite file that this "
                "user can write, in a directory that this user can write too"
            ) from error

    async def close(self) -> None:
        """Close the file. What was asked for before is done first."""
        await self._call(self._connection.close)
        self._thread.shutdown(wait=False)

    async def _read(self, address_of_record: str) -> str | None:
        def read() -> str | None:
            row = self._connection.execute(
                "select record from registration where address_of_record = ?", (_key(address_of_record),)
            ).fetchone()
            return None if row is None else str(row[0])

        return await self._call(read)

    async def _read_all(self) -> Iterable[tuple[str, str]]:
        def read() -> list[tuple[str, str]]:
            rows = self._connection.execute("select address_of_record, record from registration")
            return [(_name(key), record) for key, record in rows]

        return await self._call(read)

    async def _exchange(
        self, address_of_record: str, before: str | None, after: str | None, until: float
    ) -> bool:
        key = _key(address_of_record)

        def exchange() -> bool:
            with self._connection:
                self._tidy()
                if before is None and after is None:
                    return True
                if before is None:
                    statement = (
                        "insert into registration values (:key, :after, :until) on conflict do nothing"
                    )
                elif after is None:
                    statement = "delete from registration where address_of_record = :key and record = :before"
                else:
                    statement = (
                        "update registration set record = :after, until = :until "
                        "where address_of_record = :key and record = :before"
                    )
                values = {"key": key, "before": before, "after": after, "until": until}
                return self._connection.execute(statement, values).rowcount == 1

        return await self._call(exchange)

    def _tidy(self) -> None:
        """Now and then drop what has expired."""
        if time.monotonic() >= self._tidy_at:
            self._connection.execute("delete from registration where until < ?", (time.time(),))
            self._tidy_at = time.monotonic() + _TIDY_S

    async def _call(self, function: Callable[[], ResultT]) -> ResultT:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except sqlite3.Error as error:
            raise LocationError(
                f"{self} refuses: {error}; see that the disk has room and the file can be written"
            ) from error

    def __str__(self) -> str:
        return f"the file of registrations {self._path}"


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it tells who is where: not for all eyes
    # All calls come from one thread, but the garbage collector may end it from another.
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        (version,) = connection.execute("pragma user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"its form has the number {version}, {_VERSION} is known")
        with connection:
            connection.execute(_TABLE)
            connection.execute(f"pragma user_version = {_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _key(address_of_record: str) -> bytes:
    return address_of_record.encode("utf-8", "surrogateescape")


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
