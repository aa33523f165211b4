"""Whatever credentials come, a request is judged, and only who has the key is admitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.stun.accounts import Accounts, Admission, LongTermAccounts, Rejection, ShortTermAccounts
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PADDING,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    RESPONSE_PORT,
    USERHASH,
    USERNAME,
    Attribute,
    AttributeCodec,
    ChangeRequest,
    ErrorCode,
)
from nattools.stun.authentication import LongTerm, ShortTerm, answer_challenge, short_term_protection
from nattools.stun.integrity import with_fingerprint
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.responder import Reply, Responder, ServerAddresses
from nattools.stun.transaction import error_of
from tests.property.test_responder import A1, A2, B1, B2, damaged, requests

SHORT_TERM = ShortTermAccounts([ShortTerm("user", "password")])
LONG_TERM = LongTermAccounts([LongTerm("user", "password")], secret=bytes(16))
CLIENTS = (Endpoint.parse("203.0.113.7:40000"), Endpoint.parse("[2001:db8:7::7]:40000"))
ACCOUNTS = pytest.mark.parametrize("accounts", [SHORT_TERM, LONG_TERM], ids=["short-term", "long-term"])
NOW = 10_000.0
CHANGE_BOTH = CHANGE_REQUEST.of(ChangeRequest(change_ip=True, change_port=True))


def responders(accounts: Accounts) -> list[tuple[Responder, Endpoint]]:
    return [
        (Responder(ServerAddresses(first, 3478, second, 3479), accounts=accounts), client)
        for (first, second), client in zip(((A1, A2), (B1, B2)), CLIENTS, strict=True)
    ]


def challenge() -> tuple[Attribute, ...]:
    message = Message(Method.BINDING, MessageClass.REQUEST, bytes(12), (CHANGE_BOTH,))
    rejection = LONG_TERM.judge(message, CLIENTS[0], now=NOW)
    assert isinstance(rejection, Rejection)
    return rejection.challenge


NONCES = (*(value for number, value in challenge() if number == NONCE.type), b"", b"obMatJos2AAAD", b"\xff")
values = st.one_of(st.binary(max_size=40), st.sampled_from([*NONCES, b"user", b"nattools", bytes(20)]))
codecs: tuple[AttributeCodec[Any], ...] = (
    *(USERNAME, USERHASH, REALM, NONCE, PASSWORD_ALGORITHM, PASSWORD_ALGORITHMS, MESSAGE_INTEGRITY),
    *(MESSAGE_INTEGRITY_SHA256, CHANGE_REQUEST, RESPONSE_PORT, PADDING),
)


@st.composite
def with_credentials(draw: st.DrawFn) -> bytes:
    """Requests with attributes of both mechanisms in any order, of any value."""
    kinds = draw(st.lists(st.sampled_from(codecs), max_size=9))
    attributes = tuple(Attribute(codec.type, draw(values)) for codec in kinds)
    transaction_id = bytes(draw(st.sampled_from([12, 16])))
    message = Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes)
    return (with_fingerprint(message) if draw(st.booleans()) else message).encode()


@ACCOUNTS
@given(data=st.one_of(with_credentials(), requests(), damaged()))
def test_without_the_key_nothing_is_gained(accounts: Accounts, data: bytes) -> None:
    for responder, client in responders(accounts):
        answer = responder.respond(data, client, responder.addresses.endpoints[0], now=NOW)
        if not isinstance(answer, Reply):
            continue
        assert len(answer.data) <= 2.8 * len(data)
        assert (answer.origin, answer.destination) == (responder.addresses.endpoints[0], client)
        reply = Message.parse(answer.data)
        assert not reply.has(MESSAGE_INTEGRITY)
        assert not reply.has(MESSAGE_INTEGRITY_SHA256)
        assert not reply.has(PADDING)


asked = st.lists(
    st.one_of(
        st.builds(CHANGE_REQUEST.of, st.builds(ChangeRequest, st.booleans(), st.booleans())),
        st.builds(PADDING.of, st.binary(max_size=8)),
        st.builds(Attribute, st.integers(0xFF00, 0xFFFF), st.binary(max_size=8)),
    ),
    max_size=3,
).map(tuple)


@ACCOUNTS
@given(attributes=asked, position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_user_is_admitted_and_nobody_who_changed_a_bit_of_it(
    accounts: Accounts, attributes: tuple[Attribute, ...], position: int, bit: int
) -> None:
    message = Message(Method.BINDING, MessageClass.REQUEST, bytes(range(12)), attributes)
    protection = replace(short_term_protection(ShortTerm("user", "password")), sha1=False)
    if accounts is LONG_TERM:
        told = Rejection(ErrorCode.UNAUTHORIZED, challenge()).attributes
        refused = Message(Method.BINDING, MessageClass.ERROR, bytes(12), told)
        error = error_of(refused)
        assert error is not None
        protection = answer_challenge(LongTerm("user", "password"), refused, error, None)
    sealed = protection.seal(message)
    assert isinstance(accounts.judge(sealed, CLIENTS[0], now=NOW), Admission)
    data = bytearray(sealed.encode())
    data[position % len(data)] ^= 1 << bit
    for responder, client in responders(accounts)[:1]:
        answer = responder.respond(bytes(data), client, responder.addresses.endpoints[0], now=NOW)
        if isinstance(answer, Reply):
            reply = Message.parse(answer.data)
            assert not reply.has(MESSAGE_INTEGRITY_SHA256)
            assert not reply.has(PADDING)
