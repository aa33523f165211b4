"""Registrations in a file: what they outlive, and what is said of files that cannot be."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from nattools.errors import LocationError
from nattools.session.location import Bindings, ContactBinding
from nattools.session.stores import sqlite
from nattools.session.stores.sqlite import SqliteLocation

ALICE = "alice@example.com"

# Registers users without end, and says each one's name once it is kept.
PROGRAM = """
import asyncio, itertools, sys, time
from pathlib import Path
from nattools.session.location import ContactBinding
from nattools.session.registrar import Registration
from nattools.session.stores.sqlite import SqliteLocation

async def main():
    location = await SqliteLocation.open(Path(sys.argv[1]))
    for number in itertools.count():
        now = time.monotonic()
        kept = Registration(b"", (ContactBinding(b"sip:a@192.0.2.1", now + 1000, b"call", number),))
        await location.update(f"{number}@example.com", lambda _: kept, now=now)
        print(number, flush=True)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Decided:
    bindings: Bindings | None


def kept(now: float, *, cseq: int = 1, lasts_s: float = 100.0) -> Decided:
    return Decided((ContactBinding(b"sip:a@192.0.2.1", now + lasts_s, b"call", cseq),))


def test_what_was_kept_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "registrations"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < 50:
            pass
        process.kill()
        said = [int(line), *(int(rest) for rest in process.stdout.read().splitlines())]

    async def read() -> None:
        location = await SqliteLocation.open(path)
        now = time.monotonic()
        found = await location.registrations(now=now)
        assert {f"{number}@example.com" for number in range(said[-1] + 1)} <= set(found)
        (binding,) = found["50@example.com"]
        assert binding.cseq == 50
        assert 0 < binding.expires_at - now <= 1000
        await location.update("50@example.com", lambda _: kept(now, cseq=51), now=now)
        await location.close()

    asyncio.run(read())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def test_two_processes_may_share_it(tmp_path: Path) -> None:
    async def run() -> None:
        one, other = [await SqliteLocation.open(tmp_path / "registrations") for _ in range(2)]
        now, seen = time.monotonic(), list[int]()

        def decide(bindings: Bindings) -> Decided:
            seen.append(len(bindings))
            if len(seen) == 1:  # somebody else is quicker
                with closing(sqlite3.connect(tmp_path / "registrations")) as connection, connection:
                    connection.execute(
                        "update registration set record = replace(record, '\"cseq\":1', '\"cseq\":2')"
                    )
            return kept(now, cseq=bindings[0].cseq + 10)

        await other.update(ALICE, lambda _: kept(now), now=now)
        await one.update(ALICE, decide, now=now)
        assert seen == [1, 1]
        assert [binding.cseq for binding in await other.bindings(ALICE, now=now)] == [12]
        await one.close()
        await other.close()

    asyncio.run(run())


def test_a_change_without_end_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        location = await SqliteLocation.open(tmp_path / "registrations")
        now = time.monotonic()
        await location.update(ALICE, lambda _: kept(now), now=now)

        def decide(bindings: Bindings) -> Decided:
            with closing(sqlite3.connect(tmp_path / "registrations")) as connection, connection:
                connection.execute("update registration set record = record || ' '")
            return kept(now, cseq=2)

        with pytest.raises(LocationError, match=f"'{ALICE}'"):
            await location.update(ALICE, decide, now=now)
        await location.close()

    asyncio.run(run())


def test_what_expired_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_TIDY_S", 0.0)

    async def run() -> list[str]:
        location = await SqliteLocation.open(tmp_path / "registrations")
        now = time.monotonic()
        await location.update(ALICE, lambda _: kept(now, lasts_s=-1.0), now=now)
        await location.update("bob@example.com", lambda _: kept(now), now=now)
        rows = location._connection.execute("select address_of_record from registration").fetchall()
        await location.close()
        return [key.decode() for (key,) in rows]

    assert asyncio.run(run()) == ["bob@example.com"]


def test_a_record_that_is_broken_is_taken_for_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        location = await SqliteLocation.open(tmp_path / "registrations")
        now = time.monotonic()
        await location.update(ALICE, lambda _: kept(now), now=now)
        with closing(sqlite3.connect(tmp_path / "registrations")) as connection, connection:
            connection.execute("update registration set record = '[{}]'")
        assert await location.bindings(ALICE, now=now) == ()
        await location.update(ALICE, lambda bindings: kept(now), now=now)
        assert len(await location.bindings(ALICE, now=now)) == 1
        await location.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert f"the registration of {ALICE!r} is taken for none" in caplog.text


def test_it_is_for_its_users_eyes_only(tmp_path: Path) -> None:
    async def run() -> None:
        location = await SqliteLocation.open(tmp_path / "registrations")
        now = time.monotonic()
        await location.update(ALICE, lambda _: kept(now), now=now)
        modes.update((name, (tmp_path / name).stat().st_mode & 0o777) for name in os.listdir(tmp_path))
        await location.close()

    modes: dict[str, int] = {}
    before = os.umask(0o022)
    try:
        asyncio.run(run())
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("kind", ["a folder", "no database", "another version", "no such folder"])
def test_a_file_that_cannot_be_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "registrations"
    if kind == "a folder":
        path.mkdir()
    elif kind == "no database":
        path.write_bytes(b"alice = 'secret'\n" * 200)
    elif kind == "another version":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma user_version = 9")
    else:
        path = tmp_path / "nowhere" / "registrations"
    with pytest.raises(LocationError, match="cannot be kept in") as caught:
        asyncio.run(SqliteLocation.open(path))
    assert str(path) in str(caught.value)


def test_a_file_that_is_locked_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)

    async def run() -> None:
        location = await SqliteLocation.open(tmp_path / "registrations")
        now = time.monotonic()
        with closing(sqlite3.connect(tmp_path / "registrations")) as other:
            other.execute("begin exclusive")
            with pytest.raises(LocationError, match="locked"):
                await location.update(ALICE, lambda _: kept(now), now=now)
            assert await location.bindings(ALICE, now=now) == ()  # reading goes on
        await location.update(ALICE, lambda _: kept(now), now=now)
        assert len(await location.bindings(ALICE, now=now)) == 1
        await location.close()

    asyncio.run(run())
