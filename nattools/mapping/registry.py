"""Where the records of mappings are kept: a directory of the user's, one file a mapping, without a lock."""

from __future__ import annotations

import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

import platformdirs
import psutil

from nattools.errors import DecodeError
from nattools.mapping.model import PortMapping
from nattools.mapping.state import MOST_RECORD_BYTES, Owner, Record

_LOG = logging.getLogger(__name__)
_SAME_START_S = 1.0


def default_directory() -> Path:
    """Where the records are unless the user says otherwise: `nattools/mappings` below XDG_STATE_HOME."""
    return platformdirs.user_state_path("nattools", appauthor=False) / "mappings"


class Registry:
    """The records in one directory. One that cannot be written is warned of, and nothing is remembered."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_directory()
        self._owner = owner_of(os.getpid())
        self._warned_of: set[Path] = set()

    def new(self, mapping: PortMapping, *, kept: bool) -> Record:
        """Remember a mapping that this process is about to ask for."""
        record = Record(uuid.uuid4().hex, mapping, self._owner, time.time(), kept)
        self.write(record)
        return record

    def granted(self, record: Record, mapping: PortMapping) -> Record:
        """Remember what the router granted."""
        record = record.with_mapping(mapping, made_at=time.time())
        self.write(record)
        return record

    def write(self, record: Record) -> None:
        """Write a record whole or not at all, for this user's eyes only: a nonce is a key."""
        path = self._path(record)
        unfinished = path.with_suffix(".new")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(record.encode())
            unfinished.replace(path)
        except OSError as error:
            self._warn(
                self.directory, "mappings are not remembered: %s cannot be written: %s", error.strerror
            )
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def forget(self, record: Record) -> None:
        """Remove a record."""
        with suppress(OSError):
            self._path(record).unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Every record whose lease is not over; those that are over are removed, unless they are kept."""
        found: list[Record] = []
        try:
            paths = sorted(self.directory.glob("*.json"))
        except OSError:
            return []
        for path in paths:
            try:
                with path.open("rb") as file:
                    record = Record.parse(file.read(MOST_RECORD_BYTES + 1))
            except OSError:
                continue
            except DecodeError as error:
                self._warn(path, "%s is left alone: %s", error)
                continue
            if path != self._path(record):
                continue
            expires_at = record.expires_at()
            is_over = expires_at is not None and expires_at < time.time()
            if is_over and not (record.kept and is_running(record.owner)):  # else the clock was set
                self.forget(record)
            else:
                found.append(record)
        return found

    def left_behind(self) -> list[Record]:
        """The records of mappings that nobody answers for any more.

        Their process is gone without removing them, or without having heard what the router answered. One
        that cannot be removed without what was made later in its place, maybe by another protocol, is not.
        """
        records = self.records()
        orphans = [r for r in records if (r.kept or not r.granted) and not is_running(r.owner)]
        used = [r for r in records if r.granted and r not in orphans]
        return [r for r in orphans if not any(_would_go_with(r, other) for other in used)]

    def _warn(self, path: Path, message: str, reason: object) -> None:
        if path not in self._warned_of:
            self._warned_of.add(path)
            _LOG.warning(message, path, reason)

    def _path(self, record: Record) -> Path:
        return self.directory / f"{record.record_id}.json"


def is_running(owner: Owner) -> bool:
    """Whether that process, and not a later one of its number, is there."""
    try:
        found = owner_of(owner.pid)
        return found.boot == owner.boot and abs(found.started_at - owner.started_at) < _SAME_START_S
    except (psutil.Error, ValueError, OverflowError):
        return False


def owner_of(pid: int) -> Owner:
    """A process as it is known again, on Linux also when the clock has been set. Raises `psutil.Error`."""
    if not _BOOT:
        return Owner(pid, psutil.Process(pid).create_time())
    booted_at = psutil.boot_time()  # what psutil adds, at the time of asking
    return Owner(pid, psutil.Process(pid).create_time() - booted_at, _BOOT)


def _read_boot() -> str:
    """What names this start of the system; nothing where the system does not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


_BOOT = _read_boot()


def _would_go_with(orphan: Record, other: Record) -> bool:
    """Whether removing what is left behind would remove what is not."""
    one, two = orphan.mapping, other.mapping
    same_port = one.external_port == two.external_port or not orphan.granted
    return same_port and (one.key, one.gateway) == (two.key, two.gateway)
