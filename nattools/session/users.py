"""Who may register: names and passwords out of a TOML file.

The file has one table, and in it a line for each user, who is called by that name as well::

    [users]
    alice = "correct horse battery staple"
    "+4930123456" = "another secret"

Passwords stand there as they are. Digest would let them be replaced by a hash, but whoever reads the hash can
register with it just as well, and each algorithm would need one of its own. So: `chmod 600`.
"""

from __future__ import annotations

from collections.abc import Mapping

from nattools.errors import DecodeError
from nattools.words import parse_users


class Users:
    """Names and passwords. It never shows a password, not even in a traceback."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = dict(passwords)

    @classmethod
    def parse(cls, text: str) -> Users:
        """Read a file of users. Raises `DecodeError`, which names the user, and no password."""
        users = parse_users(text)
        for name, password in users.items():
            if not name.isprintable() or not password.isprintable() or "@" in name:
                raise DecodeError(
                    f"user {name!r}: neither name nor password can have control characters, "
                    "and a name has no @ and no domain"
                )
        return cls(users)

    def become(self, others: Users) -> None:
        """Have the users of `others` from now on, and their passwords."""
        self._passwords = dict(others._passwords)

    def __len__(self) -> int:
        return len(self._passwords)

    def __contains__(self, name: str) -> bool:
        """Whether there is a user of that name."""
        return name in self._passwords

    def password_of(self, name: str) -> str | None:
        """The password of a user, or None where there is no such user."""
        return self._passwords.get(name)

    def __repr__(self) -> str:
        return f"<{len(self)} users>"
