"""Challenges to requests that are made in several phones' names."""

from __future__ import annotations

import re

import pytest

from nattools.errors import AuthenticationError
from nattools.session.keyring import Keyring
from nattools.session.users import Users
from nattools.sip.message import SipMessage, compose_request, compose_response


def entropy(count: int) -> bytes:
    return bytes(range(count))


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(Users({"alice": "secret", "+49 30": "other"}), entropy=entropy)


def register(user: str) -> SipMessage:
    fields = [
        ("Via", "SIP/2.0/UDP 192.168.0.108:5062;branch=z9hG4bK1"),
        ("From", f"<sip:{user}@example.org>;tag=a"),
        ("To", f"<sip:{user}@example.org>"),
        ("Call-ID", "one"),
        ("CSeq", "1 REGISTER"),
    ]
    return SipMessage.parse(compose_request("REGISTER", "sip:example.org", fields))


def challenge(request: SipMessage, nonce: str = "n") -> SipMessage:
    wanted = f'Digest realm="example.org", nonce="{nonce}", qop="auth"'
    return SipMessage.parse(compose_response(request, 401, "Unauthorized", [("WWW-Authenticate", wanted)]))


def test_each_is_answered_with_the_password_of_its_own_user(keyring: Keyring) -> None:
    answers = []
    for written, name in (("alice", "alice"), ("%2B49%2030:x", "+49 30"), ("alice", "alice")):
        request = register(written)
        keyring.challenged(challenge(request), request)
        [(header, value)] = keyring.headers("REGISTER", "sip:example.org")
        assert header == "Authorization"
        assert f'username="{name}"'.encode() in value
        answers.append(re.search(rb'response="(\w+)"', value)[1])  # type: ignore[index]  # or it fails here
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("user", ["bob", "", "%zz"])
def test_whose_password_nobody_gave_is_named(keyring: Keyring, user: str) -> None:
    request = register(user)
    with pytest.raises(AuthenticationError, match="nobody has given the password of"):
        keyring.challenged(challenge(request), request)


def test_before_any_challenge_there_is_nothing_to_say(keyring: Keyring) -> None:
    assert keyring.headers("REGISTER", "sip:example.org") == []


def test_a_password_that_was_changed_is_used(keyring: Keyring) -> None:
    request = register("alice")
    users = Users({"alice": "secret"})
    changing = Keyring(users, entropy=entropy)
    for each in (keyring, changing):
        each.challenged(challenge(request), request)
    before = changing.headers("REGISTER", "sip:example.org")
    assert before == keyring.headers("REGISTER", "sip:example.org")
    users.become(Users({"alice": "new"}))
    changing.challenged(challenge(request), request)
    assert changing.headers("REGISTER", "sip:example.org") != before
