"""Files that people write for programs: settings, users, keys. They are small, and text is UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nattools.errors import DecodeError

MOST_BYTES = 1 << 20


def read_bytes(path: Path, what: str, *, hint: str = "") -> bytes:
    """What is in the file at `path`. `what` says what it should be: "settings file".

    Raises `DecodeError` with the path; where there is no file, with `hint`, if there is one.
    """
    try:
        return _read(path, what)
    except FileNotFoundError as error:
        raise DecodeError(f"{path}: there is no such {what}{hint and f'; {hint}'}") from error


def read_toml(path: Path, what: str, *, hint: str = "") -> str:
    """The text of a TOML file, as `read_bytes` has it. Raises `DecodeError` with the path."""
    return _text(path, read_bytes(path, what, hint=hint))


def read_toml_if_any(path: Path, what: str) -> str:
    """The same, and nothing where there is no file. Raises `DecodeError` with the path."""
    try:
        return _text(path, _read(path, what))
    except FileNotFoundError:
        return ""


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DecodeError(f"{path}: the {what} cannot be read: {reason}") from error
    if len(data) > MOST_BYTES:
        raise DecodeError(f"{path}: over {MOST_BYTES} bytes, so it is no {what}")
    return data


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # Windows editors put a mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DecodeError(f"{path}: line {line}: not UTF-8, which TOML must be: save it as UTF-8") from None


def is_open_to_others(path: Path) -> bool:
    """Whether other users of this machine can read the file at `path`, as none should that has secrets."""
    if os.name == "nt":  # whose modes say nothing of other users
        return False
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False
