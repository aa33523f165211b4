"""The file of users: what it may say, and what is said of one that may not."""

from __future__ import annotations

import traceback

import pytest

from nattools.errors import DecodeError
from nattools.session.users import Users

GOOD = """
# Sales
[users]
alice = "correct horse"
"+4930123456" = 'with "quotes"'
"a b" = "ü"
"""


def test_names_and_passwords_are_read_as_they_stand() -> None:
    users = Users.parse(GOOD)
    assert len(users) == 3
    assert users.password_of("alice") == "correct horse"
    assert users.password_of("+4930123456") == 'with "quotes"'
    assert users.password_of("a b") == "ü"
    assert users.password_of("Alice") is None
    assert "alice" in users
    assert "bob" not in users


def test_an_empty_table_lets_nobody_in() -> None:
    assert len(Users.parse("[users]")) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alice = secret", "not TOML"),
        ('alice = "secret"', r"\[users\]"),
        ("", r"\[users\]"),
        ('users = "secret"', r"\[users\]"),
        ('[users]\n[admins]\nbob = "secret"', "admins"),
        ("[users]\nalice = 7", "'alice'"),
        ('[users]\nalice = ""', "'alice'"),
        ('[users]\nalice.password = "secret"', "'alice'"),
        ('[users]\n"" = "secret"', "''"),
        ('[users]\n"alice@example.com" = "secret"', "no domain"),
        ('[users]\n"a\\u0000b" = "secret"', "control"),
        ('[users]\nalice = "secret\\n"', "control"),
        ('[users]\nalice = "secret"\nalice = "secret"', "not TOML"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(text: str, said: str) -> None:
    with pytest.raises(DecodeError, match=said) as caught:
        Users.parse(text)
    shown = "".join(traceback.format_exception_only(caught.value))
    assert "secret" not in shown.replace('alice = "secret"', "")  # the example of the form has this one
    assert caught.value.__cause__ is None


def test_passwords_are_not_shown() -> None:
    users = Users({"alice": "hidden"})
    assert "hidden" not in f"{users!r} {users}"


def test_they_become_others() -> None:
    users = Users({"alice": "old", "bob": "secret"})
    users.become(Users({"alice": "new"}))
    assert users.password_of("alice") == "new"
    assert "bob" not in users
