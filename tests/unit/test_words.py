"""Words that people set: what their values are read into, and what is said of those that are wrong."""

from __future__ import annotations

from enum import Enum, StrEnum
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.words import (
    Reader,
    Words,
    check_known,
    choice,
    number,
    optional,
    parse_toml,
    parse_users,
    printable,
    read_address,
    read_endpoint,
    read_path,
    read_text,
    read_text_or_nothing,
    read_truth,
    read_word,
    several,
    shown,
    whole,
)


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Shape(Enum):
    ROUND = "round"


WORDS: Words = {
    "port": (whole(1, 9), "a port, 1 to 9"),
    "colour": choice(Colour),
    "SHAPE": choice(Shape),
    "address": (read_address, "an address"),
}

ADDRESS = ip_address("2001:db8::1")
ENDPOINT = Endpoint.of("192.0.2.1", 5060)


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (read_text, " a b ", "a b"),
        (read_text_or_nothing, "", ""),
        (read_truth, False, False),
        (read_path, "a/b", Path("a/b")),
        (read_path, Path("~"), Path("~").expanduser()),
        (read_address, " [2001:db8::1] ", ADDRESS),
        (read_address, ADDRESS, ADDRESS),
        (read_endpoint, "192.0.2.1:5060", ENDPOINT),
        (read_endpoint, ENDPOINT, ENDPOINT),
        (whole(1, 9), 9, 9),
        (number(1), 1, 1.0),
        (choice(Colour)[0], " Red", Colour.RED),
        (choice(Shape)[0], Shape.ROUND, Shape.ROUND),
        (several(read_text), "alone", ("alone",)),
        (several(whole(1, 9)), [3, 1, 3], (3, 1, 3)),
        (several(whole(1, 9)), frozenset({2}), (2,)),
        (optional(read_truth), None, None),
        (optional(read_truth), "", None),
        (optional(read_truth), True, True),
    ],
)
def test_a_value_is_read(read: Reader, value: object, expected: object) -> None:
    found = read(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_text, ""),
        (read_text, "a\nb"),
        (read_text, 5),
        (read_text_or_nothing, " "),
        (read_truth, 1),
        (read_path, "~nobody-of-that-name/x"),
        (read_address, "localhost"),
        (read_endpoint, "192.0.2.1"),
        (whole(1, 9), 10),
        (whole(0, 9), False),
        (whole(1, 9), "5"),
        (number(1), 0.5),
        (number(1), float("inf")),
        (number(1), float("nan")),
        (number(1), True),
        (choice(Colour)[0], "xyz"),
        (choice(Colour)[0], 5),
        (several(read_text), 5),
        (several(read_text), ["a", 5]),
    ],
)
def test_what_is_none_is_refused(read: Reader, value: object) -> None:
    with pytest.raises((ValueError, DecodeError)):
        read(value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("port", 10, "port = 10: expected a port, 1 to 9"),
        ("colour", "ret", "colour = 'ret' (did you mean red?): expected one of red, green"),
        ("colour", "xyz", "colour = 'xyz': expected one of red, green"),
        ("SHAPE", 5, "SHAPE = 5: expected one of round"),
        (
            "address",
            "a.b",
            "address = 'a.b' ('a.b' is not an IP address, and names are not looked up): expected an address",
        ),
    ],
)
def test_a_wrong_value_is_told_what_was_expected(name: str, value: object, complaint: str) -> None:
    with pytest.raises(DecodeError) as raised:
        read_word(WORDS, name, value)
    assert str(raised.value) == complaint


def test_a_secret_is_not_shown_and_a_word_is_named_as_the_person_did() -> None:
    with pytest.raises(DecodeError) as raised:
        read_word(WORDS, "port", "hidden", label="THE_PORT", secret=True)
    assert str(raised.value) == "THE_PORT = ...: expected a port, 1 to 9"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("prot", "did you mean port?"),
        ("Colour", "did you mean colour?"),
        ("shape", "did you mean SHAPE?"),
        ("xyzzy", "known are port, colour, SHAPE, address"),
    ],
)
def test_an_unknown_word_is_told_what_it_may_mean(word: str, hint: str) -> None:
    with pytest.raises(DecodeError) as raised:
        check_known(("port", word), WORDS)
    assert str(raised.value) == f"there is no setting {word!r}: {hint}"
    check_known(("port", "SHAPE"), WORDS)


@pytest.mark.parametrize("text", ["a =", "x = " + "[" * 5000, "x = 1" + "0" * 5000, "\0"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="this is not TOML"):
        parse_toml(text)


def test_a_fault_of_toml_does_not_show_the_line_it_is_in() -> None:
    with pytest.raises(DecodeError) as raised:
        parse_toml('alice = "hidden')
    assert "hidden" not in str(raised.value)


def test_what_is_shown_of_a_value_has_an_end() -> None:
    assert shown("a" * 100) == "'" + "a" * 59 + "..."
    assert shown((1, 2)) == "[1, 2]"
    assert shown(ENDPOINT) == "'192.0.2.1:5060'"
    assert shown(10**5000) == "something endless"


def test_what_stands_in_a_table_is_not_shown() -> None:
    assert shown({"alice": "x7-secret", "bob": "y"}) == "a table of ['alice', 'bob']"
    for hidden in ([{"name": "alice", "password": "x7-secret"}], [["alice", "x7-secret"]]):
        assert shown(hidden) == "a list of tables or lists"
    assert shown({}) == "an empty table"


def test_what_others_wrote_cannot_change_how_a_line_reads() -> None:
    assert printable("é plain") == "é plain"
    assert printable("a\x85b\u2028\x7f\u202e") == "a\\x85b\\u2028\\x7f\\u202e"


def test_users_are_a_table_of_names_and_passwords() -> None:
    assert parse_users('[users]\nalice = "a"\n"+49 30" = "ü"') == {"alice": "a", "+49 30": "ü"}
    assert parse_users("[users]") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        'users = "hidden"',
        '[users]\nalice = "hidden"\n[admins]\nbob = "hidden"',
        "[users]\nalice = 12345",
        '[users]\nalice = ""',
        '[users]\nalice.password = "hidden"',
        '[users]\n"" = "hidden"',
    ],
)
def test_a_wrong_table_of_users_is_refused_without_a_password(text: str) -> None:
    with pytest.raises(DecodeError, match=r"\[users\]") as raised:
        parse_users(text)
    assert "hidden" not in str(raised.value)
