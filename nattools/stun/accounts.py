"""Whom a server serves beyond the plain Binding request: users by their credentials (RFC 8489 §9, §12).

The server's side of `nattools.stun.authentication`. `ShortTermAccounts` and `LongTermAccounts` judge a
request by what it carries and keep nothing of it, nor of the challenge before it: a nonce is an HMAC over the
time and the client's address, so any server that has the same secret and clock recognises it.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import CredentialError, DecodeError
from nattools.stun.attributes import (
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    Attribute,
    Error,
    ErrorCode,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
)
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.integrity import (
    SecurityFeatures,
    integrity_holds,
    integrity_sha256_holds,
    long_term_key,
    nonce_prefix,
    opaque_string,
    security_features,
    short_term_key,
    userhash,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import Message

K = TypeVar("K")
V = TypeVar("V")

DEFAULT_REALM = "nattools"

MOST_REALM_BYTES = 8
"""With a longer realm the challenge to a request of 28 bytes would have more than 2.8 times its bytes."""

LEAST_SECRET_BYTES = 16

NONCE_SECONDS = 300.0
"""A nonce is taken for at least so long, and for at most twice as long."""

_FEATURES = SecurityFeatures.PASSWORD_ALGORITHMS | SecurityFeatures.USERNAME_ANONYMITY
_NONCE_PREFIX = nonce_prefix(_FEATURES)
_NONCE_CHARACTERS = 7  # of 6 bits; with the prefix 20, a whole number of words
_ALGORITHMS = (PasswordAlgorithmNumber.SHA256, PasswordAlgorithmNumber.MD5)  # the preferred one first
_OFFER = PASSWORD_ALGORITHMS.of(tuple(PasswordAlgorithm(number) for number in _ALGORITHMS))


@dataclass(frozen=True, slots=True)
class Admission:
    """The request is from a user: `key` seals the reply, with the kind of integrity that the request has."""

    key: bytes = field(repr=False)
    sha256: bool

    @property
    def seal_bytes(self) -> int:
        """By how much `seal` makes a message longer."""
        return 36 if self.sha256 else 24

    def seal(self, reply: Message) -> Message:
        """The reply with its integrity at the end (RFC 8489 §9.1.3, §9.2.4)."""
        return with_integrity_sha256(reply, self.key) if self.sha256 else with_integrity(reply, self.key)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the request is not known to be from a user: an error, and what the client needs to do better."""

    code: ErrorCode
    challenge: tuple[Attribute, ...] = ()

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What the error response carries. No phrase: a challenge must stay small beside its request."""
        return ERROR_CODE.of(Error(self.code)), *self.challenge


class Accounts(Protocol):
    """Who may ask for more than a plain answer."""

    def judge(self, request: Message, source: Endpoint, *, now: float) -> Admission | Rejection:
        """Whether `request` is from a user. It never raises."""


class ShortTermAccounts:
    """User names and passwords that both sides have from elsewhere (RFC 8489 §9.1.3, RFC 3489 §8.1)."""

    def __init__(self, accounts: Iterable[ShortTerm]) -> None:
        """Raises `CredentialError` for characters that OpaqueString forbids, and for a name given twice."""
        self._keys: dict[str, bytes] = {}
        for account in accounts:
            _add(self._keys, opaque_string(account.username), short_term_key(account.password))

    def judge(
        self,
        request: Message,
        source: Endpoint,  # noqa: ARG002  # `Accounts` has it, for nonces of one address
        *,
        now: float,  # noqa: ARG002  # `Accounts` has it, for nonces that grow old
    ) -> Admission | Rejection:
        """As RFC 8489 §9.1.3 says; a classic request that lacks something is told 401 (RFC 3489 §8.1)."""
        try:
            username = request.get(USERNAME)
        except DecodeError:
            return Rejection(ErrorCode.BAD_REQUEST)
        if username is None or not is_sealed(request):
            return Rejection(ErrorCode.UNAUTHORIZED if request.is_classic else ErrorCode.BAD_REQUEST)
        key = self._keys.get(username)
        return (key and _admission(request, key)) or Rejection(ErrorCode.UNAUTHORIZED)


class LongTermAccounts:
    """Users of the server, who prove that they know their password for a nonce (RFC 8489 §9.2.4).

    Serves RFC 5389 clients too: they choose no algorithm, which means MD5, and seal with HMAC-SHA1. A classic
    client (RFC 3489) knows no such thing and is refused.
    """

    def __init__(self, accounts: Iterable[LongTerm], *, secret: bytes, realm: str = DEFAULT_REALM) -> None:
        """`secret` makes the nonces; servers that share it and a clock know each other's.

        Raises `CredentialError` for characters that OpaqueString forbids, a name given twice, a realm of
        more than `MOST_REALM_BYTES`, and a secret of less than `LEAST_SECRET_BYTES`.
        """
        self.realm = opaque_string(realm)
        if len(self.realm.encode()) > MOST_REALM_BYTES or '"' in realm:
            raise CredentialError(
                f"the realm {realm!r} is longer than {MOST_REALM_BYTES} bytes or has a quotation mark: a"
                " challenge with it would be too large beside a small request"
            )
        if len(secret) < LEAST_SECRET_BYTES:
            raise CredentialError(f"a secret of {len(secret)} bytes; {LEAST_SECRET_BYTES} at the least")
        self._secret = secret
        self._keys: dict[str | bytes, dict[int, bytes]] = {}
        for account in accounts:
            username = opaque_string(account.username)
            keys: dict[int, bytes] = {
                number: long_term_key(username, self.realm, account.password, algorithm=number)
                for number in _ALGORITHMS
            }
            _add(self._keys, username, keys)
            self._keys[userhash(username, self.realm)] = keys

    def judge(self, request: Message, source: Endpoint, *, now: float) -> Admission | Rejection:
        """As RFC 8489 §9.2.4 says.

        The seal covers the nonce, so it can be checked before the nonce's age: a 438 makes the client try
        the same password once more, which is for who knows it.
        """
        if request.is_classic:
            return Rejection(ErrorCode.UNAUTHORIZED)
        if not is_sealed(request):
            return self._challenge(ErrorCode.UNAUTHORIZED, source, now)
        try:
            name = request.get(USERNAME) or request.get(USERHASH)
            realm, nonce = request.get(REALM), request.get(NONCE)
            algorithm = _chosen_algorithm(request, nonce or "")
        except DecodeError:
            return Rejection(ErrorCode.BAD_REQUEST)
        if not name or realm is None or nonce is None or algorithm is None:
            return Rejection(ErrorCode.BAD_REQUEST)
        keys = self._keys.get(name)
        admission = _admission(request, keys[algorithm]) if keys else None
        if admission is None:
            return self._challenge(ErrorCode.UNAUTHORIZED, source, now)
        if not self._is_current(nonce, source, now):
            return self._challenge(ErrorCode.STALE_NONCE, source, now)
        return admission

    def _challenge(self, code: ErrorCode, source: Endpoint, now: float) -> Rejection:
        nonce = self._nonce(source, int(now // NONCE_SECONDS))
        return Rejection(code, (REALM.of(self.realm), NONCE.of(nonce), _OFFER))

    def _nonce(self, source: Endpoint, period: int) -> str:
        """The nonce of all sockets at one address: a client may well ask from several."""
        digest = hmac.digest(
            self._secret, period.to_bytes(8, "big", signed=True) + source.ip.packed, "sha256"
        )
        return _NONCE_PREFIX + base64.b64encode(digest).decode()[:_NONCE_CHARACTERS]

    def _is_current(self, nonce: str, source: Endpoint, now: float) -> bool:
        period = int(now // NONCE_SECONDS)
        given = nonce.encode()
        fresh, older = (self._nonce(source, number).encode() for number in (period, period - 1))
        return hmac.compare_digest(given, fresh) or hmac.compare_digest(given, older)


def is_sealed(request: Message) -> bool:
    """Whether the request claims to be from a user: it has one of the two integrity attributes."""
    return request.has(MESSAGE_INTEGRITY) or request.has(MESSAGE_INTEGRITY_SHA256)


def _admission(request: Message, key: bytes) -> Admission | None:
    """The user's admission where the seal is right. Of two seals the stronger decides (RFC 8489 §9.1.3)."""
    sha256 = integrity_sha256_holds(request, key)
    if sha256 is None:
        return Admission(key, sha256=False) if integrity_holds(request, key) else None
    return Admission(key, sha256=True) if sha256 else None


def _chosen_algorithm(request: Message, nonce: str) -> int | None:
    """What the key is made with, or None where the request contradicts what was offered to it.

    RFC 8489 §9.2.4: both attributes or none; with none it is MD5. Who stripped the offer from the challenge
    or changed it on the way is found out by the copy that the client seals.
    """
    offered, chosen = request.get(PASSWORD_ALGORITHMS), request.get(PASSWORD_ALGORITHM)
    if SecurityFeatures.PASSWORD_ALGORITHMS not in security_features(nonce) or (
        offered is None and chosen is None
    ):
        return PasswordAlgorithmNumber.MD5
    if chosen is None or offered != PASSWORD_ALGORITHMS.parse(_OFFER.value, b""):
        return None
    return chosen.number if chosen.number in _ALGORITHMS else None


def _add(keys: dict[K, V], username: K, value: V) -> None:
    if username in keys:
        raise CredentialError(f"the user name {username!r} is given twice")
    keys[username] = value
