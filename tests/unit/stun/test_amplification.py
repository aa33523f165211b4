"""No datagram is answered with more than 2.8 times its bytes. `pytest -s` on this file prints the table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest

from nattools.stun.accounts import Accounts, LongTermAccounts, ShortTermAccounts, is_sealed
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    OTHER_ADDRESS,
    PADDING,
    REFLECTED_FROM,
    RESPONSE_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    SOURCE_ADDRESS,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
)
from nattools.stun.authentication import LongTerm, ShortTerm, answer_challenge, short_term_protection
from nattools.stun.integrity import with_fingerprint, with_integrity
from nattools.stun.message import Message, Method
from nattools.stun.responder import MOST_AMPLIFICATION, DropReason, Reply, Responder, ServerAddresses
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.transaction import error_of
from tests.unit.stun.test_responder import (
    ADDRESSES,
    ADDRESSES_IPV6,
    CHANGE_BOTH,
    CHANGE_NOTHING,
    CHANGE_PORT,
    CLASSIC,
    CLIENT,
    CLIENT_IPV6,
    FULL,
    FULL_IPV6,
    IPV6,
    LOCAL,
    LOCAL_IPV6,
    MODERN,
    PORTS,
    UNKNOWN,
    classic,
    reply_to,
    request,
)

SHORT, LONG = ShortTerm("user", "password"), LongTerm("user", "password")
SECRETS = SharedSecrets(bytes(16), entropy=bytes)
ACCOUNTS: dict[str, Accounts | SharedSecrets | None] = {
    "open": None,
    "shared secrets": SECRETS,
    "short-term": ShortTermAccounts([SHORT]),
    "long-term": LongTermAccounts([LONG], secret=bytes(16)),
}
UNKNOWN_REQUIRED = tuple(Attribute(number, b"") for number in range(0x7000, 0x7100))
SHAPES: dict[str, tuple[Attribute, ...]] = {
    "bare": (),
    "CHANGE-REQUEST, nothing": (CHANGE_NOTHING,),
    "CHANGE-REQUEST, port": (CHANGE_PORT,),
    "CHANGE-REQUEST, both": (CHANGE_BOTH,),
    "CHANGE-REQUEST, malformed": (Attribute(CHANGE_REQUEST.type, b""),),
    "RESPONSE-PORT": (RESPONSE_PORT.of(5000),),
    "RESPONSE-PORT, CHANGE-REQUEST": (RESPONSE_PORT.of(5000), CHANGE_BOTH),
    "RESPONSE-PORT, PADDING": (RESPONSE_PORT.of(5000), PADDING.of(b"")),
    "RESPONSE-ADDRESS": (RESPONSE_ADDRESS.of(CLIENT),),
    "RESPONSE-ADDRESS over IPv6": (RESPONSE_ADDRESS.of(CLIENT_IPV6),),
    **{f"PADDING, {size}": (PADDING.of(bytes(size)),) for size in (0, 1, 4, 100, 1400, 65_000)},
    "PADDING, CHANGE-REQUEST": (PADDING.of(b""), CHANGE_BOTH),
    "SOFTWARE": (SOFTWARE.of("x"),),
    "optional and unknown": (UNKNOWN,),
    "optional and unknown, twice": (UNKNOWN, UNKNOWN),
    "USERNAME": (USERNAME.of("a:b"),),
    "required and unknown": UNKNOWN_REQUIRED[:1],
    "required and unknown, 3": UNKNOWN_REQUIRED[:3],
    "required and unknown, 256": UNKNOWN_REQUIRED,
    "a wrong seal": (MESSAGE_INTEGRITY.of(bytes(20)),),
    "a wrong seal of SHA-256": (MESSAGE_INTEGRITY_SHA256.of(bytes(16)),),
    "CHANGE-REQUEST, a wrong seal": (CHANGE_BOTH, MESSAGE_INTEGRITY_SHA256.of(bytes(16))),
    "credentials of another": (CHANGE_BOTH, USERNAME.of("x"), MESSAGE_INTEGRITY.of(bytes(20))),
}


@dataclass(frozen=True)
class Row:
    """One request of one shape, and its answer."""

    shape: str
    accounts: str
    is_padded_for_user: bool
    asked: int
    replied: int

    @property
    def ratio(self) -> float:
        return self.replied / self.asked


def sealed(message: Message, responder: Responder, is_ipv6: bool) -> Message | None:
    """The request as a user sends it, or None where the mechanism has no such."""
    source, local = (CLIENT_IPV6, LOCAL_IPV6) if is_ipv6 else (CLIENT, LOCAL)
    if responder.secrets is not None:
        if not message.is_classic:
            return None
        secret = responder.secrets.issue(source, now=0.0)
        return with_integrity(message.append(USERNAME.of(secret.username)), secret.password.encode())
    if isinstance(responder.accounts, ShortTermAccounts):
        if message.is_classic:
            return with_integrity(message.append(USERNAME.of(SHORT.username)), SHORT.password.encode())
        return short_term_protection(SHORT).seal(message)
    if message.is_classic or not isinstance(responder.accounts, LongTermAccounts):
        return None
    answer = responder.respond(request(CHANGE_BOTH).encode(), source, local)
    assert isinstance(answer, Reply)
    challenge = Message.parse(answer.data)
    error = error_of(challenge)
    assert error is not None
    return answer_challenge(LONG, challenge, error, None).seal(message)


def asked_in_every_way(
    attributes: tuple[Attribute, ...], responder: Responder, is_ipv6: bool
) -> Iterator[Message]:
    for transaction_id, method in product((MODERN, CLASSIC), (Method.BINDING, Method.SHARED_SECRET)):
        plain = request(*attributes, transaction_id=transaction_id, method=method)
        yield plain
        yield with_fingerprint(plain)
        user = sealed(plain, responder, is_ipv6)
        if user is not None:
            yield user
            yield with_fingerprint(user)


def rows() -> Iterator[Row]:
    for (name, accounts), is_ipv6, is_double in product(ACCOUNTS.items(), (False, True), (True, False)):
        ip, alternate = ADDRESSES_IPV6 if is_ipv6 else ADDRESSES
        addresses = ServerAddresses(ip, PORTS[0], *((alternate, PORTS[1]) if is_double else ()))
        responder = serving(addresses, accounts)
        source, local = (CLIENT_IPV6, LOCAL_IPV6) if is_ipv6 else (CLIENT, LOCAL)
        for shape, attributes in SHAPES.items():
            for message in asked_in_every_way(attributes, responder, is_ipv6):
                answer = responder.respond(message.encode(), source, local)
                if isinstance(answer, DropReason):
                    continue
                reply = Message.parse(answer.data)
                is_padded = is_sealed(reply) and reply.has(PADDING)
                yield Row(shape, name, is_padded, len(message.encode()), len(answer.data))


def serving(addresses: ServerAddresses, accounts: Accounts | SharedSecrets | None) -> Responder:
    if isinstance(accounts, SharedSecrets):
        return Responder(addresses, secrets=accounts)
    return Responder(addresses, accounts=accounts)


def worst(rows: list[Row]) -> str:
    row = max((row for row in rows if not row.is_padded_for_user), key=lambda row: row.ratio)
    return f"{row.asked:>8} -> {row.replied:<6}{row.ratio:5.2f}"


def test_the_table_of_every_request_shape() -> None:
    seen = list(rows())
    lines = [f"{'request':32}" + "".join(f"{name:>24}" for name in ACCOUNTS)]
    for shape in SHAPES:
        cells = (worst([r for r in seen if (r.shape, r.accounts) == (shape, name)]) for name in ACCOUNTS)
        lines.append(f"{shape:32}" + "".join(f"{cell:>24}" for cell in cells))
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    too_large = [row for row in seen if row.ratio > MOST_AMPLIFICATION and not row.is_padded_for_user]
    assert too_large == []
    assert len(seen) > 1000
    assert {row.accounts for row in seen if row.is_padded_for_user} == {*ACCOUNTS} - {"open"}


@pytest.mark.parametrize("accounts", ["short-term", "long-term"])
def test_padding_for_a_user_is_the_mtu_and_for_others_is_refused(accounts: str) -> None:
    responder = serving(FULL.addresses, ACCOUNTS[accounts])
    for size, padded in ((0, 1500), (1400, 1500), (3000, 3000)):
        message = sealed(request(PADDING.of(bytes(size))), responder, is_ipv6=False)
        assert message is not None
        reply = Message.parse(reply_to(message, responder).data)
        assert reply.get(PADDING) == bytes(padded)
        assert reply.get(MAPPED_ADDRESS) == CLIENT
        refused = reply_to(request(PADDING.of(bytes(size))), responder)
        assert len(refused.data) <= 2.8 * (24 + size)


@pytest.mark.parametrize(
    ("message", "replied"),
    [
        (request(), 56),
        (classic(), 56),
        (request(CHANGE_BOTH), 68),
        (classic(CHANGE_BOTH), 56),
        (request(UNKNOWN), 56),
        (request(UNKNOWN, UNKNOWN), 68),
        (with_fingerprint(request()), 76),
        (with_fingerprint(request(UNKNOWN)), 76),
        (with_fingerprint(request(CHANGE_BOTH)), 76),
        (with_fingerprint(request(PADDING.of(b""))), 80),
        (request(PADDING.of(b"")), 60),
        (request(PADDING.of(b""), UNKNOWN), 72),
        (request(PADDING.of(b"x")), 76),
        (request(PADDING.of(bytes(1400))), 1472),
        (request(RESPONSE_PORT.of(5000)), 68),
        (classic(RESPONSE_ADDRESS.of(CLIENT)), 68),
        (request(Attribute(0x7777, b"")), 56),
        (classic(Attribute(0x7777, b"")), 56),
        (request(*(Attribute(n, b"") for n in range(0x7000, 0x7100))), 560 + 4),
        (request(Attribute(CHANGE_REQUEST.type, b"")), 40),
        (request(method=Method.SHARED_SECRET, transaction_id=CLASSIC), 44),
    ],
)
def test_amplification(message: Message, replied: int) -> None:
    assert len(reply_to(message).data) == replied
    assert replied <= 2.8 * len(message.encode())


@pytest.mark.parametrize(
    ("message", "replied", "addresses"),
    [
        (request(), 44, "mapped"),
        (classic(), 44, "mapped"),
        (request(UNKNOWN), 44, "mapped"),
        (classic(CHANGE_BOTH), 68, "mapped other"),
        (request(CHANGE_BOTH), 68, "mapped other"),
        (request(RESPONSE_PORT.of(5000)), 68, "mapped other"),
        (with_fingerprint(request()), 76, "mapped other"),
        (request(SOFTWARE.of("natgate")), 68, "mapped other"),
        (request(SOFTWARE.of("x" * 12)), 92, "mapped origin other"),
        (with_fingerprint(request(CHANGE_BOTH)), 100, "mapped origin other"),
        (request(SOFTWARE.of("x" * 16)), 92, "mapped origin other"),
        (request(SOFTWARE.of("x" * 20)), 116, "mapped also origin other"),
        (request(PADDING.of(b"")), 48, "mapped padding"),
        (request(PADDING.of(b"x")), 76, "mapped other padding"),
        (request(PADDING.of(bytes(20))), 116, "mapped origin other padding"),
        (request(PADDING.of(bytes(25))), 124, "mapped origin other padding"),
        (request(PADDING.of(bytes(29))), 152, "mapped also origin other padding"),
        (classic(RESPONSE_ADDRESS.of(CLIENT_IPV6)), 116, "mapped origin other from"),
    ],
)
def test_over_ipv6_what_does_not_fit_is_left_out(message: Message, replied: int, addresses: str) -> None:
    """First the second mapped address goes, then the origin, the other address last."""
    answer = reply_to(message, FULL_IPV6, source=CLIENT_IPV6, local=LOCAL_IPV6)
    assert len(answer.data) == replied
    assert replied <= 2.8 * len(message.encode())
    names = {
        XOR_MAPPED_ADDRESS.type: "mapped",
        MAPPED_ADDRESS.type: "also",
        REFLECTED_FROM.type: "from",
        **dict.fromkeys((RESPONSE_ORIGIN.type, SOURCE_ADDRESS.type), "origin"),
        **dict.fromkeys((OTHER_ADDRESS.type, CHANGED_ADDRESS.type), "other"),
        PADDING.type: "padding",
        FINGERPRINT.type: "",
    }
    reply = Message.parse(answer.data)
    if reply.is_classic:
        names[MAPPED_ADDRESS.type] = "mapped"
    assert " ".join(names[attribute.type] for attribute in reply.attributes).strip() == addresses


def test_what_meets_the_limit_is_within_it() -> None:
    message = request(PADDING.of(bytes(16)))
    answer = reply_to(message, IPV6, source=CLIENT_IPV6, local=LOCAL_IPV6)
    assert (len(message.encode()), len(answer.data)) == (40, 112)
    assert Message.parse(answer.data).get(MAPPED_ADDRESS) == CLIENT_IPV6
