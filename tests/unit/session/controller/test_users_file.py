"""The file of users on the disk: what is said of one that is missing, unreadable or open to all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nattools.errors import DecodeError
from nattools.session.controller.users_file import read_users
from nattools.session.users import Users


def test_a_file_for_its_owner_alone_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users.toml"
    path.write_bytes(b'\xef\xbb\xbf[users]\nalice = "\xc3\xbc"\n')
    path.chmod(0o600)
    assert read_users(path).password_of("alice") == "ü"
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_read_with_a_warning(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users.toml"
    path.write_text('[users]\nalice = "secret"\n')
    path.chmod(mode)
    assert len(read_users(path)) == 1
    (line,) = caplog.messages
    assert f"chmod 600 {path}" in line
    assert "secret" not in line


def test_a_missing_file_is_told_how_to_write(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r'no such file.*\[users\] and alice = "secret"'):
        read_users(tmp_path / "users.toml")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[users]\nalice = \xff", "UTF-8"),
        (b"alice", "not TOML"),
        (b"#" * ((1 << 20) + 1), "no file of users"),
    ],
)
def test_what_is_no_file_of_users_is_named_with_its_path(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=f"users.toml.*{said}"):
        read_users(path)


def test_a_directory_and_an_impossible_name_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("a\0b")):
        with pytest.raises(DecodeError, match="cannot be read"):
            read_users(path)


def test_users_become_others() -> None:
    users = Users({"alice": "old", "bob": "secret"})
    users.become(Users({"alice": "new"}))
    assert users.password_of("alice") == "new"
    assert "bob" not in users
