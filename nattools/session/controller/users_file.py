"""The file of users, as it lies on the disk; `nattools.session.users` reads what stands in it."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from nattools.errors import DecodeError
from nattools.session.settings import MOST_FILE_BYTES
from nattools.session.users import Users

_log = logging.getLogger(__name__)

_FORM = 'write one of two lines: [users] and alice = "secret"'


def read_users(path: Path) -> Users:
    """Read the file at `path`, and warn where others can read it too.

    Raises `DecodeError` with the path, which says how to write one where there is none; no password is in it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
            mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DecodeError(f"{path}: there is no such file of users; {_FORM}") from error
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DecodeError(f"{path}: the users cannot be read: {reason}") from error
    if len(data) > MOST_FILE_BYTES:
        raise DecodeError(f"{path}: over {MOST_FILE_BYTES} bytes, so it is no file of users")
    try:
        users = Users.parse(data.decode("utf-8-sig"))  # Windows editors put a mark in front
    except UnicodeDecodeError:
        raise DecodeError(f"{path}: not UTF-8, which TOML must be: save it as UTF-8") from None
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s: other users of this machine can read the passwords in it: chmod 600 %s", path, path)
    return users
