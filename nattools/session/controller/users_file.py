"""The file of users, as it lies on the disk; `nattools.session.users` reads what stands in it."""

from __future__ import annotations

import logging
from pathlib import Path

from nattools.errors import DecodeError
from nattools.files import is_open_to_others, read_toml
from nattools.session.users import Users

_log = logging.getLogger(__name__)

_FORM = 'write one of two lines: [users] and alice = "secret"'


def read_users(path: Path) -> Users:
    """Read the file at `path`, and warn where others can read it too.

    Raises `DecodeError` with the path, which says how to write one where there is none; no password is in it.
    """
    text = read_toml(path, "file of users", hint=_FORM)
    try:
        users = Users.parse(text)
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}") from None
    if is_open_to_others(path):
        _log.warning("%s: other users of this machine can read the passwords in it: chmod 600 %s", path, path)
    return users
