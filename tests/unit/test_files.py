"""Files that people write: what is read of them, and what is said where there is nothing to read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nattools.errors import DecodeError
from nattools.files import MOST_BYTES, is_open_to_others, read_bytes, read_toml, read_toml_if_any


def test_a_file_is_read_as_it_is_and_text_without_the_mark_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_bytes(path, "key") == b"\xef\xbb\xbfa = 1\r\n"
    assert read_toml(path, "settings file") == read_toml_if_any(path, "settings file") == "a = 1\r\n"


def test_a_file_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(DecodeError) as raised:
        read_toml(path, "file of users", hint="write one")
    assert str(raised.value) == f"{path}: there is no such file of users; write one"
    with pytest.raises(DecodeError, match=r"a\.toml: there is no such key$"):
        read_bytes(path, "key")
    assert read_toml_if_any(path, "settings file") == ""


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"a\n\xff", "line 2: not UTF-8"), (b"#" * (MOST_BYTES + 1), "over 1048576 bytes, so it is no key")],
)
def test_what_is_no_text_or_far_too_long_is_refused(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(data)
    for read in (read_toml, read_toml_if_any):
        with pytest.raises(DecodeError, match=rf"{re.escape(str(path))}.*{complaint}"):
            read(path, "key")


def test_a_directory_and_an_impossible_name_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("a\0b")):
        for read in (read_toml, read_toml_if_any, read_bytes):
            with pytest.raises(DecodeError, match="the key cannot be read: "):
                read(path, "key")


@pytest.mark.skipif(os.name == "nt", reason="modes say nothing of other users there")
def test_a_file_is_open_to_others_by_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    for mode, is_open in ((0o600, False), (0o640, True), (0o604, True), (0o622, False)):
        path.chmod(mode)
        assert is_open_to_others(path) is is_open
    assert not is_open_to_others(tmp_path / "missing")
