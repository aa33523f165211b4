"""A settings file as a program has it: the words in it, and where the paths among them lead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nattools.errors import DecodeError
from nattools.files import read_toml
from nattools.words import parse_toml


def read_settings_file(
    path: Path, check: Callable[[Mapping[str, object]], object], *, paths: Iterable[str]
) -> dict[str, object]:
    """The words of the file at `path`, once `check` has taken them; those named in `paths` from where it is.

    Raises `DecodeError` with the path of the file, also for what `check` raises.
    """
    text = read_toml(path, "settings file")
    try:
        words = parse_toml(text)
        check(words)
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}") from error
    for name in paths:
        value = words.get(name)
        if isinstance(value, str) and value:
            words[name] = beside(path, value)
    return words


def beside(file: Path, path: str) -> str:
    """A path that stands in `file`, seen from the working directory."""
    return str(file.parent / Path(path).expanduser())
