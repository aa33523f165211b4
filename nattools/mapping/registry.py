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
        self._owner = Owner(os.getpid(), psutil.Process().create_time())

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
            _LOG.warning("a mapping is not remembered: %s cannot be written: %s", path, error.strerror)

    def forget(self, record: Record) -> None:
        """Remove a record."""
        with suppress(OSError):
            self._path(record).unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Every record whose lease is not over; those that are over are removed."""
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
                _LOG.warning("%s is left alone: %s", path, error)
                continue
            if path != self._path(record):
                continue
            expires_at = record.expires_at()
            if expires_at is not None and expires_at < time.time():
                self.forget(record)
            else:
                found.append(record)
        return found

    def left_behind(self) -> list[Record]:
        """The records of mappings that nobody answers for any more.

        Their process is gone without removing them, or without having heard what the router answered.
        """
        orphans = [record for record in self.records() if not is_running(record.owner)]
        return [record for record in orphans if record.kept or not record.granted]

    def _path(self, record: Record) -> Path:
        return self.directory / f"{record.record_id}.json"


def is_running(owner: Owner) -> bool:
    """Whether that process, and not a later one of its number, is there."""
    try:
        return abs(psutil.Process(owner.pid).create_time() - owner.started_at) < _SAME_START_S
    except (psutil.Error, ValueError, OverflowError):
        return False
