"""Shared secrets of RFC 3489: who gets them, for how long they are good, and what the others are told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import CredentialError
from nattools.stun.accounts import Accounts, LongTermAccounts, ShortTermAccounts
from nattools.stun.attributes import (
    ERROR_CODE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    PADDING,
    PASSWORD,
    USERNAME,
    Attribute,
)
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.integrity import integrity_holds, with_integrity
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.responder import Reply, Responder
from nattools.stun.shared_secrets import CLOCK_SKEW_S, LIFETIME_S, SharedSecret, SharedSecrets
from nattools.stun.uri import Transport
from tests.unit.stun.test_responder import (
    CHANGE_BOTH,
    CLASSIC,
    CLIENT,
    CLIENT_IPV6,
    FULL,
    LOCAL,
    UNKNOWN,
    classic,
    request,
)

KEY = bytes(range(32))
NOW = 10_000.0
MONDAY = 1_700_000_000.0
ASKING = request(transaction_id=CLASSIC, method=Method.SHARED_SECRET)
NUMBERS = itertools.count()


def entropy(size: int) -> bytes:
    return hashlib.sha256(next(NUMBERS).to_bytes(4, "big")).digest()[:size]


def secrets(key: bytes = KEY, *, clock_ahead_s: float = MONDAY - NOW) -> SharedSecrets:
    return SharedSecrets(key, entropy=entropy, clock_ahead_s=clock_ahead_s)


def serving(accounts: Accounts | None = None, handed_out: SharedSecrets | None = None) -> Responder:
    return Responder(FULL.addresses, accounts=accounts, secrets=handed_out or secrets())


def answer_to(
    message: Message,
    responder: Responder,
    *,
    transport: Transport = Transport.UDP,
    now: float = NOW,
    source: Endpoint = CLIENT,
) -> Message:
    answer = responder.respond(message.encode(), source, LOCAL, transport=transport, now=now)
    assert isinstance(answer, Reply)
    assert transport is not Transport.UDP or len(answer.data) <= 2.8 * len(message.encode())
    return Message.parse(answer.data)


def code_of(reply: Message) -> int | None:
    error = reply.get(ERROR_CODE)
    return None if error is None else error.code


def secret_from(responder: Responder, *, now: float = NOW, source: Endpoint = CLIENT) -> SharedSecret:
    """As a client gets one over TLS."""
    reply = answer_to(ASKING, responder, transport=Transport.TLS, now=now, source=source)
    assert (reply.method, reply.message_class) == (Method.SHARED_SECRET, MessageClass.SUCCESS)
    assert [attribute.type for attribute in reply.attributes] == [USERNAME.type, PASSWORD.type]
    username, password = reply.get(USERNAME), reply.get(PASSWORD)
    assert username is not None
    assert password is not None
    return SharedSecret(username, password.decode())


def sealed(secret: SharedSecret, *attributes: Attribute) -> Message:
    message = classic(*attributes, USERNAME.of(secret.username))
    return with_integrity(message, secret.password.encode())


class TestHandingOut:
    def test_over_tls_a_client_gets_a_name_and_a_password_of_whole_words(self) -> None:
        responder = serving()
        first, second = secret_from(responder), secret_from(responder)
        assert first.username != second.username
        assert first.password != second.password
        for text in (first.username, first.password):
            assert len(text) % 4 == 0
        assert len(base64.urlsafe_b64decode(first.password)) >= 16  # RFC 3489 §8.2: 128 bits
        assert first.password not in repr(first)

    @pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
    def test_elsewhere_it_is_told_to_come_over_tls(self, transport: Transport) -> None:
        assert code_of(answer_to(ASKING, serving(), transport=transport)) == 433

    @pytest.mark.parametrize("transport", list(Transport))
    def test_a_server_that_has_none_does_not_send_clients_elsewhere_for_them(
        self, transport: Transport
    ) -> None:
        assert code_of(answer_to(ASKING, FULL, transport=transport)) == 600

    def test_a_request_with_more_than_it_may_have_is_refused(self) -> None:
        odd = request(Attribute(0x7777, b""), transaction_id=CLASSIC, method=Method.SHARED_SECRET)
        assert code_of(answer_to(odd, serving(), transport=Transport.TLS)) == 420

    def test_a_short_key_is_refused(self) -> None:
        with pytest.raises(CredentialError, match="a key of 15 bytes"):
            SharedSecrets(bytes(15), entropy=entropy)


class TestJudging:
    def test_a_sealed_request_gets_a_sealed_reply(self) -> None:
        responder = serving()
        secret = secret_from(responder)
        for attributes in ((), (CHANGE_BOTH,), (UNKNOWN,)):
            reply = answer_to(sealed(secret, *attributes), responder)
            assert reply.message_class is MessageClass.SUCCESS
            assert reply.get(MAPPED_ADDRESS) == CLIENT
            assert reply.attributes[-1].type == MESSAGE_INTEGRITY.type
            assert integrity_holds(reply, secret.password.encode())

    def test_the_seal_is_over_the_message_filled_up_to_64_bytes(self) -> None:
        """By hand, as RFC 3489 §11.2.8 has it."""
        responder = serving()
        secret = secret_from(responder)
        head = classic(USERNAME.of(secret.username)).encode()
        head = head[:2] + (len(head) - 20 + 24).to_bytes(2, "big") + head[4:]
        seal = hmac.new(secret.password.encode(), head + bytes(-len(head) % 64), "sha1").digest()
        reply = answer_to(Message.parse(head + b"\0\x08\0\x14" + seal), responder)
        assert reply.message_class is MessageClass.SUCCESS

    def test_an_error_is_sealed_as_well(self) -> None:
        responder = serving()
        secret = secret_from(responder)
        reply = answer_to(sealed(secret, Attribute(0x7777, b"")), responder)
        assert code_of(reply) == 420
        assert integrity_holds(reply, secret.password.encode())

    def test_the_three_ways_to_be_wrong_are_told_apart(self) -> None:
        responder = serving()
        secret = secret_from(responder)
        nameless = with_integrity(classic(), secret.password.encode())
        forged = with_integrity(classic(USERNAME.of(secret.username)), b"another")
        invented = with_integrity(classic(USERNAME.of("x" * 32)), secret.password.encode())
        replies = [answer_to(message, responder) for message in (nameless, forged, invented)]
        assert [code_of(reply) for reply in replies] == [432, 431, 430]
        assert not any(reply.has(MESSAGE_INTEGRITY) for reply in replies)

    @pytest.mark.parametrize(
        ("later_s", "code"),
        [(-CLOCK_SKEW_S, None), (-CLOCK_SKEW_S - 1, 430), (LIFETIME_S, None), (LIFETIME_S + 1, 430)],
    )
    def test_a_secret_is_good_for_ten_minutes(self, later_s: int, code: int | None) -> None:
        responder = serving()
        secret = secret_from(responder)
        assert code_of(answer_to(sealed(secret), responder, now=NOW + later_s)) == code

    @pytest.mark.parametrize("source", [Endpoint.of("203.0.113.8", CLIENT.port), CLIENT_IPV6])
    def test_a_secret_is_for_the_address_that_has_fetched_it(self, source: Endpoint) -> None:
        responder = serving()
        secret = secret_from(responder, source=source)
        assert code_of(answer_to(sealed(secret), responder)) == 430
        elsewhere = Endpoint(CLIENT.ip, CLIENT.port + 1)
        assert code_of(answer_to(sealed(secret_from(responder, source=elsewhere)), responder)) is None

    @pytest.mark.parametrize(
        "username",
        ["", "x", "====", "a" * 31, "a" * 36, "\xe9" * 16, "a" * 508, " " * 32, "a\nb" * 10 + "cc"],
    )
    def test_names_that_are_none_of_ours_are_stale(self, username: str) -> None:
        message = with_integrity(classic(USERNAME.of(username)), b"x")
        assert code_of(answer_to(message, serving())) == 430
        no_text = with_integrity(classic(Attribute(USERNAME.type, b"\xff\xfe")), b"x")
        assert code_of(answer_to(no_text, serving())) == 430

    def test_any_change_to_a_name_makes_it_none(self) -> None:
        responder = serving()
        secret = secret_from(responder)
        for position, character in enumerate(secret.username):
            other = "A" if character != "A" else "B"
            username = secret.username[:position] + other + secret.username[position + 1 :]
            changed = with_integrity(classic(USERNAME.of(username)), secret.password.encode())
            assert code_of(answer_to(changed, responder)) == 430


class TestSeveralServers:
    def test_those_with_the_same_key_and_time_of_day_know_each_others(self) -> None:
        """Their clocks began elsewhere, as those of two hosts do, and do not quite agree."""
        secret = secret_from(serving())
        other = serving(handed_out=secrets(clock_ahead_s=MONDAY + 5.0))
        assert code_of(answer_to(sealed(secret), other, now=0.0)) is None

    def test_those_with_another_key_do_not(self) -> None:
        secret = secret_from(serving())
        assert code_of(answer_to(sealed(secret), serving(handed_out=secrets(KEY[::-1])))) == 430

    def test_the_time_may_wrap_around(self) -> None:
        responder = serving(handed_out=secrets(clock_ahead_s=float(1 << 32) - NOW - 10))
        secret = secret_from(responder)
        assert code_of(answer_to(sealed(secret), responder, now=NOW + 20)) is None


SHORT, LONG = ShortTerm("user", "password"), LongTerm("user", "password")
USERS: list[Accounts] = [ShortTermAccounts([SHORT]), LongTermAccounts([LONG], secret=bytes(16))]


class TestBesideUsers:
    def test_without_users_nothing_is_for_users_only(self) -> None:
        for message in (classic(CHANGE_BOTH), request(CHANGE_BOTH)):
            assert code_of(answer_to(message, serving())) is None

    @pytest.mark.parametrize("accounts", USERS, ids=["short-term", "long-term"])
    def test_who_has_a_secret_is_a_user(self, accounts: Accounts) -> None:
        responder = serving(accounts)
        secret = secret_from(responder)
        assert code_of(answer_to(classic(CHANGE_BOTH), responder)) == 401
        reply = answer_to(sealed(secret, CHANGE_BOTH), responder)
        assert reply.message_class is MessageClass.SUCCESS

    @pytest.mark.parametrize("accounts", USERS, ids=["short-term", "long-term"])
    def test_a_stale_secret_is_told_so_and_not_taken_for_a_wrong_user(self, accounts: Accounts) -> None:
        responder = serving(accounts)
        secret = secret_from(responder)
        for attributes in ((), (CHANGE_BOTH,)):
            reply = answer_to(sealed(secret, *attributes), responder, now=NOW + LIFETIME_S + 1)
            assert code_of(reply) == 430

    def test_a_users_own_password_is_taken_as_before(self) -> None:
        message = with_integrity(classic(CHANGE_BOTH, USERNAME.of(SHORT.username)), SHORT.password.encode())
        reply = answer_to(message, serving(USERS[0]))
        assert reply.message_class is MessageClass.SUCCESS
        assert integrity_holds(reply, SHORT.password.encode())

    def test_a_modern_request_has_no_shared_secret(self) -> None:
        """RFC 8489 has none. An ICE agent's own credentials are no concern of the server's."""
        responder = serving()
        secret = secret_from(responder)
        modern = with_integrity(request(USERNAME.of(secret.username)), secret.password.encode())
        reply = answer_to(modern, responder)
        assert reply.message_class is MessageClass.SUCCESS
        assert not reply.has(MESSAGE_INTEGRITY)

    def test_padding_is_for_who_has_shown_that_the_address_is_not_forged(self) -> None:
        responder = serving()
        secret = secret_from(responder)
        message = sealed(secret, PADDING.of(b""))
        answer = responder.respond(message.encode(), CLIENT, LOCAL, now=NOW)
        assert isinstance(answer, Reply)
        assert Message.parse(answer.data).get(PADDING) == bytes(1500)
        assert not Message.parse(answer.data).has(FINGERPRINT)
        forged = responder.respond(message.encode(), Endpoint.of("203.0.113.9", 5000), LOCAL, now=NOW)
        assert isinstance(forged, Reply)
        assert code_of(Message.parse(forged.data)) == 430
