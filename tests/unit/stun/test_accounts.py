"""Who may send CHANGE-REQUEST, RESPONSE-PORT and PADDING, and what everybody else is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import CredentialError
from nattools.stun.accounts import (
    NONCE_SECONDS,
    Accounts,
    Admission,
    LongTermAccounts,
    Rejection,
    ShortTermAccounts,
)
from nattools.stun.attributes import (
    ERROR_CODE,
    FINGERPRINT,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PADDING,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PRIORITY,
    REALM,
    RESPONSE_ADDRESS,
    RESPONSE_PORT,
    USERHASH,
    USERNAME,
    Attribute,
    ErrorCode,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
)
from nattools.stun.authentication import (
    LongTerm,
    Protection,
    ShortTerm,
    answer_challenge,
    short_term_protection,
)
from nattools.stun.integrity import (
    fingerprint_holds,
    integrity_holds,
    integrity_sha256_holds,
    long_term_key,
    with_fingerprint,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import Message, MessageClass
from nattools.stun.responder import Reply, Responder
from nattools.stun.transaction import error_of
from tests.unit.stun.test_responder import (
    CHANGE_BOTH,
    CHANGE_NOTHING,
    CLIENT,
    FULL,
    LOCAL,
    UNKNOWN,
    classic,
    request,
)

SECRET = bytes(range(16))
SHORT, LONG = ShortTerm("user", "password"), LongTerm("user", "password")
SHORT_TERM = ShortTermAccounts([SHORT, ShortTerm("other", "secret")])
LONG_TERM = LongTermAccounts([LONG, LongTerm("other", "secret")], secret=SECRET)
KEY = long_term_key("user", "nattools", "password")
NOW = 10_000.0
FOR_USERS = [
    CHANGE_BOTH,
    RESPONSE_PORT.of(5000),
    PADDING.of(bytes(4)),
    Attribute(CHANGE_BOTH.type, b"\0\0\0"),
]


def served(
    message: Message, accounts: Accounts | None, *, now: float = NOW, source: Endpoint = CLIENT
) -> Message:
    answer = Responder(FULL.addresses, accounts=accounts).respond(message.encode(), source, LOCAL, now=now)
    assert isinstance(answer, Reply)
    return Message.parse(answer.data)


def code(reply: Message) -> int | None:
    error = error_of(reply)
    return None if error is None else error.code


def challenged(accounts: LongTermAccounts = LONG_TERM, *, now: float = NOW) -> Protection:
    """How the client seals, once it has been asked."""
    challenge = served(request(CHANGE_BOTH), accounts, now=now)
    error = error_of(challenge)
    assert error is not None
    assert error.code == ErrorCode.UNAUTHORIZED
    return answer_challenge(LONG, challenge, error, None)


@pytest.mark.parametrize("accounts", [SHORT_TERM, LONG_TERM], ids=["short-term", "long-term"])
@pytest.mark.parametrize("attribute", FOR_USERS, ids=lambda attribute: f"{attribute.type:#x}")
def test_what_is_for_users_needs_credentials(accounts: Accounts, attribute: Attribute) -> None:
    refused = ErrorCode.BAD_REQUEST if accounts is SHORT_TERM else ErrorCode.UNAUTHORIZED
    assert code(served(request(attribute), accounts)) == refused
    assert code(served(classic(attribute), accounts)) == ErrorCode.UNAUTHORIZED
    assert served(with_fingerprint(request(attribute)), accounts).has(FINGERPRINT)


def test_response_address_is_for_users() -> None:
    attribute = RESPONSE_ADDRESS.of(CLIENT.with_port(5000))
    assert code(served(classic(attribute), SHORT_TERM)) == ErrorCode.UNAUTHORIZED
    assert code(served(classic(attribute), None)) is None


@pytest.mark.parametrize("accounts", [SHORT_TERM, LONG_TERM], ids=["short-term", "long-term"])
def test_everybody_is_told_where_he_comes_from(accounts: Accounts) -> None:
    probe = with_integrity(request(USERNAME.of("a:b"), PRIORITY.of(1)), b"of an ICE session")
    for message in (request(), classic(), request(CHANGE_NOTHING), request(UNKNOWN), probe):
        assert served(message, accounts) == served(message, None)


@pytest.mark.parametrize("attribute", FOR_USERS[:3], ids=lambda attribute: f"{attribute.type:#x}")
def test_a_user_is_served_and_the_reply_is_sealed(attribute: Attribute) -> None:
    for accounts, protection in ((SHORT_TERM, short_term_protection(SHORT)), (LONG_TERM, challenged())):
        for message in (request(attribute), request()):
            for asked in (protection.seal(message), with_fingerprint(protection.seal(message))):
                reply = served(asked, accounts)
                assert reply.message_class is MessageClass.SUCCESS
                assert protection.objection(reply) is None
                assert reply.has(MESSAGE_INTEGRITY_SHA256)
                assert not reply.has(MESSAGE_INTEGRITY)
                assert fingerprint_holds(reply) is (True if asked.has(FINGERPRINT) else None)


def test_an_error_for_a_user_is_sealed_too() -> None:
    for accounts, protection in ((SHORT_TERM, short_term_protection(SHORT)), (LONG_TERM, challenged())):
        for attributes, expected in (
            ((Attribute(0x7777, b""),), ErrorCode.UNKNOWN_ATTRIBUTE),
            ((RESPONSE_PORT.of(5000), PADDING.of(b"")), ErrorCode.BAD_REQUEST),
            ((Attribute(CHANGE_BOTH.type, b""),), ErrorCode.BAD_REQUEST),
        ):
            reply = served(protection.seal(request(*attributes)), accounts)
            assert code(reply) == expected
            assert protection.objection(reply) is None


def test_a_user_of_the_weaker_seal_gets_it_back() -> None:
    only_sha1 = replace(short_term_protection(SHORT), sha256=False)
    reply = served(only_sha1.seal(request(CHANGE_BOTH)), SHORT_TERM)
    assert integrity_holds(reply, only_sha1.key) is True
    assert integrity_sha256_holds(reply, only_sha1.key) is None


def test_of_two_seals_the_stronger_must_hold() -> None:
    message = with_integrity(request(CHANGE_BOTH, USERNAME.of("user")), b"password")
    assert isinstance(SHORT_TERM.judge(message, CLIENT, now=NOW), Admission)
    forged = with_integrity_sha256(message, b"wrong")
    assert SHORT_TERM.judge(forged, CLIENT, now=NOW) == Rejection(ErrorCode.UNAUTHORIZED)


def test_a_classic_client_with_a_shared_secret_is_served() -> None:
    message = with_integrity(classic(CHANGE_BOTH, USERNAME.of("user")), b"password")
    reply = served(message, SHORT_TERM)
    assert reply.message_class is MessageClass.SUCCESS
    assert integrity_holds(reply, b"password") is True
    assert code(served(message, LONG_TERM)) == ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (with_integrity(request(CHANGE_BOTH), b"password"), 400),
        (request(CHANGE_BOTH, USERNAME.of("user")), 400),
        (with_integrity(request(CHANGE_BOTH, USERNAME.of("nobody")), b"password"), 401),
        (with_integrity(request(CHANGE_BOTH, USERNAME.of("other")), b"password"), 401),
        (with_integrity(request(CHANGE_BOTH, USERNAME.of("user")), b"passwore"), 401),
        (with_integrity(request(CHANGE_BOTH), b"password").append(USERNAME.of("user")), 400),
        (with_integrity(request(CHANGE_BOTH, Attribute(USERNAME.type, b"\xff")), b"password"), 400),
        (with_integrity(classic(CHANGE_BOTH), b"password"), 401),
    ],
)
def test_short_term_refusals_say_nothing_more(message: Message, expected: int) -> None:
    reply = served(message, SHORT_TERM)
    assert code(reply) == expected
    assert len(reply.attributes) == 1


def test_the_challenge() -> None:
    reply = served(request(CHANGE_BOTH), LONG_TERM)
    assert reply.get(REALM) == "nattools"
    nonce = reply.get(NONCE)
    assert nonce is not None
    assert (len(nonce), nonce[:13]) == (20, "obMatJos2AAAD")
    algorithms = [PasswordAlgorithm(number) for number in (2, 1)]
    assert reply.get(PASSWORD_ALGORITHMS) == tuple(algorithms)
    assert len(reply.encode()) == 76


def sealed(*attributes: Attribute, key: bytes = KEY, nonce: str | None = None) -> Message:
    """As a client of RFC 5389 asks: it chooses no algorithm."""
    nonce = challenged().nonce if nonce is None else nonce
    named = (CHANGE_BOTH, USERNAME.of("user"), REALM.of("nattools"), NONCE.of(nonce), *attributes)
    return with_integrity(request(*named), key)


def test_a_client_of_rfc_5389_is_served_with_md5_and_sha1() -> None:
    reply = served(sealed(), LONG_TERM)
    assert reply.message_class is MessageClass.SUCCESS
    assert integrity_holds(reply, KEY) is True


def test_the_name_may_be_a_hash() -> None:
    protection = challenged()
    assert USERHASH.type in {attribute.type for attribute in protection.attributes}
    named = [a for a in protection.attributes if a.type != USERHASH.type]
    by_name = replace(protection, attributes=(USERNAME.of("user"), *named))
    for each in (protection, by_name):
        assert code(served(each.seal(request(CHANGE_BOTH)), LONG_TERM)) is None


MD5, SHA256 = (PASSWORD_ALGORITHM.of(PasswordAlgorithm(n)) for n in PasswordAlgorithmNumber)
OFFER = Attribute(PASSWORD_ALGORITHMS.type, SHA256.value + MD5.value)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (with_integrity(request(CHANGE_BOTH), KEY), 400),
        (with_integrity(request(CHANGE_BOTH, USERNAME.of("user"), REALM.of("nattools")), KEY), 400),
        (sealed(key=b"wrong"), 401),
        (sealed(OFFER), 400),
        (sealed(MD5), 400),
        (sealed(Attribute(OFFER.type, MD5.value), MD5), 400),
        (sealed(OFFER, PASSWORD_ALGORITHM.of(PasswordAlgorithm(3))), 400),
        (sealed(OFFER, Attribute(MD5.type, b"\0")), 400),
        (sealed(OFFER, SHA256), 401),
        (sealed(nonce="of another server"), 438),
        (sealed(nonce=""), 438),
        (sealed(nonce="obMatJos2AAADxxxxxxx"), 438),
        (sealed(nonce="\u00e9"), 438),
    ],
)
def test_long_term_refusals(message: Message, expected: int) -> None:
    reply = served(message, LONG_TERM)
    assert code(reply) == expected
    assert reply.has(NONCE) is reply.has(REALM) is (expected != 400)


def test_the_offer_repeated_with_md5_is_right() -> None:
    assert code(served(sealed(OFFER, MD5), LONG_TERM)) is None


def test_a_nonce_lasts_some_minutes_and_a_new_one_comes_with_the_438() -> None:
    protection = challenged(now=NOW)
    message = protection.seal(request(CHANGE_BOTH))
    assert code(served(message, LONG_TERM, now=NOW + NONCE_SECONDS)) is None
    stale = served(message, LONG_TERM, now=NOW + 2 * NONCE_SECONDS)
    error = error_of(stale)
    assert error is not None
    assert error.code == ErrorCode.STALE_NONCE
    assert protection.objection(stale) is None
    again = answer_challenge(LONG, stale, error, protection)
    assert code(served(again.seal(request(CHANGE_BOTH)), LONG_TERM, now=NOW + 2 * NONCE_SECONDS)) is None


def test_a_nonce_of_the_future_or_of_before_the_start_is_none() -> None:
    message = challenged(now=NOW).seal(request(CHANGE_BOTH))
    assert code(served(message, LONG_TERM, now=NOW - NONCE_SECONDS)) == ErrorCode.STALE_NONCE
    assert code(served(message, LONG_TERM, now=0.0)) == ErrorCode.STALE_NONCE


def test_a_nonce_is_for_one_address_and_all_its_sockets() -> None:
    message = challenged().seal(request(CHANGE_BOTH))
    assert code(served(message, LONG_TERM, source=CLIENT.with_port(50_000))) is None
    elsewhere = served(message, LONG_TERM, source=Endpoint.parse("203.0.113.8:40000"))
    assert code(elsewhere) == ErrorCode.STALE_NONCE


def test_servers_with_one_secret_know_each_others_nonces() -> None:
    message = challenged().seal(request(CHANGE_BOTH))
    assert code(served(message, LongTermAccounts([LONG], secret=SECRET))) is None
    other = served(message, LongTermAccounts([LONG], secret=bytes(16)))
    assert code(other) == ErrorCode.STALE_NONCE


def test_a_challenge_too_large_for_its_request_is_left_out() -> None:
    reply = served(request(PADDING.of(b"")), LONG_TERM)
    assert code(reply) == ErrorCode.UNAUTHORIZED
    assert [attribute.type for attribute in reply.attributes] == [ERROR_CODE.type]


@pytest.mark.parametrize("realm", ["too long a realm", 'a"b', ""])
def test_realms_that_cannot_be(realm: str) -> None:
    with pytest.raises(CredentialError):
        LongTermAccounts([], secret=SECRET, realm=realm)


def test_accounts_that_cannot_be() -> None:
    with pytest.raises(CredentialError, match="twice"):
        ShortTermAccounts([SHORT, SHORT])
    with pytest.raises(CredentialError, match="twice"):
        LongTermAccounts([LONG, LONG], secret=SECRET)
    with pytest.raises(CredentialError, match="secret of 15 bytes"):
        LongTermAccounts([LONG], secret=SECRET[1:])


def test_no_secret_is_shown() -> None:
    assert "password" not in repr(
        SHORT_TERM.judge(short_term_protection(SHORT).seal(request()), CLIENT, now=NOW)
    )
