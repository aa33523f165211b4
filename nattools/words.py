"""The words that people set: how their values are read, and what is said of those that are wrong.

The settings of each program are a table of `Words`. A value comes out of TOML, of a flag or of the
environment, or is there already in the type that it is read into.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError

_MOST_SHOWN = 60
_LEAST_ALIKE = 0.5
_USERS_FORM = 'as in the two lines [users] and alice = "secret"'

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

Reader = Callable[[object], object]
"""Reads the value of a word. Raises `ValueError`, or `DecodeError` where there is more to say."""

Words = Mapping[str, tuple[Reader, str]]
"""Every word with what reads its value, and what is expected."""


class LogForm(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


def parse_toml(text: str) -> dict[str, object]:
    """Read TOML. Raises `DecodeError`, with the place and without the line, which may have a password."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of numbers and brackets without end, too
        raise DecodeError(f"this is not TOML: {error}") from None


def parse_users(text: str) -> dict[str, str]:
    """Names and passwords, out of TOML with one table [users].

    Raises `DecodeError`, which names the user, and no password.
    """
    tables = parse_toml(text)
    users = tables.pop("users", None)
    if not isinstance(users, dict):
        raise DecodeError(f"a file of users has a table [users], {_USERS_FORM}")
    if tables:
        raise DecodeError(f"a file of users has {', '.join(tables)} beside [users], {_USERS_FORM}")
    for name, password in users.items():
        if not name or not isinstance(password, str) or not password:
            raise DecodeError(f"user {name!r} has no password in quotes, {_USERS_FORM}")
    return users


def check_known(words: Iterable[str], known: Iterable[str]) -> None:
    """Raise `DecodeError` for the first of `words` that is not `known`, with the one that may be meant."""
    known = tuple(known)
    for name in words:
        if name not in known:
            near = _nearest(name.replace("-", "_"), known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise DecodeError(f"there is no setting {shown(name)}: {hint}")


def read_word(words: Words, name: str, value: object, *, label: str = "", secret: bool = False) -> object:
    """Read the value of one word. Raises `DecodeError`, which says what was expected.

    `label` is what the person called it, where that is not `name`. A `secret` value is not shown.
    """
    read, expected = words[name]
    try:
        return read(value)
    except (DecodeError, ValueError, OverflowError) as error:
        detail = f" ({error})" if isinstance(error, DecodeError) else ""
        was = "..." if secret else shown(value)
        raise DecodeError(f"{label or name} = {was}{detail}: expected {expected}") from error


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not without end.

    Of a table only its words: where one stands that is not wanted, it may be that of users and passwords.
    """
    if isinstance(value, tuple):  # of flags; a file has lists
        value = list(value)
    if isinstance(value, Mapping):
        return f"a table of {shown(list(value))}" if value else "an empty table"
    if isinstance(value, list) and any(isinstance(each, Mapping | list) for each in value):
        return "a list of tables or lists"
    try:
        text = repr(str(value) if isinstance(value, Endpoint | Path) else value)
    except ValueError:  # integers of over 4300 digits
        return "something endless"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def printable(text: str) -> str:
    """The text with whatever cannot be printed, or would change how the line reads, as an escape."""
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def read_text(value: object) -> str:
    """Text on one line, without the blanks around it."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("no text")
    return value.strip()


def read_text_or_nothing(value: object) -> str:
    """The same, or nothing at all."""
    return "" if value == "" else read_text(value)


def read_truth(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("neither")
    return value


def read_path(value: object) -> Path:
    """The path of a file or a directory, `~` expanded."""
    path = value if isinstance(value, Path) else Path(read_text(value))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DecodeError(str(error)) from error


def read_address(value: object) -> IPAddress:
    """An IP address, with or without brackets; names are not looked up."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    text = read_text(value)
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise DecodeError(f"{shown(text)} is not an IP address, and names are not looked up") from None


def read_endpoint(value: object) -> Endpoint:
    """An IP address with a port."""
    return value if isinstance(value, Endpoint) else Endpoint.parse(read_text(value))


def whole(least: int, most: int) -> Callable[[object], int]:
    """What reads a whole number, `least` to `most`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError("none such")
        return value

    return read


def number(least: float) -> Callable[[object], float]:
    """What reads a number from `least` on."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise ValueError("none such")
        return float(value)

    return read


def one_of(names: type[E]) -> Callable[[object], E]:
    """What reads a member of `names`, whose values are words, in letters of either case."""

    def read(value: object) -> E:
        if isinstance(value, names):
            return value
        text = read_text(value).lower()
        known = [name.value for name in names]
        if text in known:
            return names(text)
        near = _nearest(text, known)
        raise DecodeError(f"did you mean {near}?") if near else ValueError("none of them")

    return read


def choice(names: type[Enum]) -> tuple[Reader, str]:
    """The entry of a word whose value is a member of `names`."""
    return one_of(names), f"one of {', '.join(name.value for name in names)}"


def several(read: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """What reads a list, or text that is one of its values."""

    def read_all(value: object) -> tuple[T, ...]:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple | set | frozenset):
            raise ValueError("no list")
        return tuple(map(read, parts))

    return read_all


def optional(read: Reader) -> Reader:
    """What reads nothing as None, and all else as `read` does."""
    return lambda value: None if value in (None, "") else read(value)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Which of `known` was likely meant, whatever the case of its letters."""
    of_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), of_lower, 1, _LEAST_ALIKE)
    return of_lower[near[0]] if near else None
