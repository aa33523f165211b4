"""Credentials, and how a request is sealed with them (RFC 8489 §9).

`Credentials` are what the user knows. A `Protection` is what they become towards one server: at once for the
short-term mechanism, and out of the server's challenge (`answer_challenge`) for the long-term one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nattools.errors import AuthenticationError, DecodeError
from nattools.stun.attributes import (
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
from nattools.stun.integrity import (
    NONCE_COOKIE,
    SecurityFeatures,
    integrity_holds,
    integrity_sha256_holds,
    long_term_key,
    opaque_string,
    saslprep,
    security_features,
    short_term_key,
    userhash,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import Message
from nattools.stun.transaction import error_of


@dataclass(frozen=True, slots=True)
class ShortTerm:
    """A user name and password that both sides know for this session only (RFC 8489 §9.1)."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LongTerm:
    """A user's account on the server, used when the server asks for it (RFC 8489 §9.2)."""

    username: str
    password: str = field(repr=False)


Credentials = ShortTerm | LongTerm


@dataclass(frozen=True, slots=True)
class Protection:
    """How requests to one server are sealed, and by which seal its responses are known.

    `attributes` go before the seal; `sha1` and `sha256` say which of the two integrity attributes are made,
    and accepted. `realm` and `nonce` are the server's, and empty in the short-term mechanism.
    """

    attributes: tuple[Attribute, ...]
    key: bytes = field(repr=False)
    sha1: bool
    sha256: bool
    unsealed_codes: frozenset[int]
    """Error responses that count without a seal, because the server may be unable to make one."""
    realm: str = ""
    nonce: str = ""

    def seal(self, message: Message) -> Message:
        """The message with the attributes of the mechanism and its integrity (RFC 8489 §9.1.2, §9.2.3)."""
        message = message.append(*self.attributes)
        if self.sha1:
            message = with_integrity(message, self.key)
        return with_integrity_sha256(message, self.key) if self.sha256 else message

    def objection(self, response: Message) -> str | None:
        """Why the response must be ignored, or None (RFC 8489 §9.1.4, §9.2.5)."""
        checks = (integrity_holds(response, self.key), integrity_sha256_holds(response, self.key))
        wanted = [holds for holds, used in zip(checks, (self.sha1, self.sha256), strict=True) if used]
        if False in checks:
            return "its integrity check fails"
        error = error_of(response)
        if True not in wanted and (error is None or error.code not in self.unsealed_codes):
            return "it has no integrity check" if True not in checks else "its integrity check is the weaker"
        if error is not None and error.code in (ErrorCode.UNAUTHORIZED, ErrorCode.STALE_NONCE):
            return None  # a new challenge, and judged as such
        return "it was stripped of PASSWORD-ALGORITHMS" if _is_stripped(response) else None

    def after(self, response: Message) -> Protection:
        """The protection for later requests to the server that sent `response` (RFC 8489 §9.1.5)."""
        if not (self.sha1 and self.sha256):
            return self
        sha256 = integrity_sha256_holds(response, self.key) is True
        return replace(self, sha1=not sha256, sha256=sha256)


def short_term_protection(credentials: ShortTerm) -> Protection:
    """Seal with both integrity attributes until the server has shown which it knows (RFC 8489 §9.1.2).

    Raises `CredentialError` for characters that OpaqueString forbids.
    """
    return Protection(
        attributes=(USERNAME.of(opaque_string(credentials.username)),),
        key=short_term_key(credentials.password),
        sha1=True,
        sha256=True,
        unsealed_codes=frozenset({ErrorCode.TRY_ALTERNATE}),  # RFC 8489 §10: it may know no passwords
    )


def answer_challenge(
    credentials: LongTerm, response: Message, error: Error, sent: Protection | None
) -> Protection:
    """Turn a 401 or 438 into the protection of the next attempt (RFC 8489 §9.2.5).

    `error` is what `response` says, and `sent` protected the request that it answers.
    Raises `AuthenticationError` where there must be no next attempt, `CredentialError` for characters that
    cannot be used, `DecodeError` for a malformed challenge.
    """
    nonce, realm = response.get(NONCE), response.get(REALM)
    if realm is None and sent is not None:
        realm = sent.realm
    if not nonce or realm is None:
        raise _refusal(error, "the server asks for credentials without realm and nonce")
    if sent is not None and sent.nonce:
        _forbid_repetition(error, sent, realm, nonce)
    offered = _offered_algorithms(response, error, sent)
    features = security_features(nonce)
    prepare = opaque_string if nonce.startswith(NONCE_COOKIE) else saslprep
    username = prepare(credentials.username)
    anonymous = SecurityFeatures.USERNAME_ANONYMITY in features
    bare_realm = realm.rstrip("\0").strip('"')  # RFC 8489 §9.2.2
    algorithm = PasswordAlgorithm(PasswordAlgorithmNumber.MD5)
    choice: tuple[Attribute, ...] = ()
    if offered is not None:
        algorithm = _first_known(offered, error)
        copied = next(a for a in response.attributes if a.type == PASSWORD_ALGORITHMS.type)
        choice = (copied, PASSWORD_ALGORITHM.of(algorithm))
    return Protection(
        attributes=(
            USERHASH.of(userhash(username, bare_realm)) if anonymous else USERNAME.of(username),
            REALM.of(realm),
            NONCE.of(nonce),
            *choice,
        ),
        key=long_term_key(
            username,
            bare_realm,
            credentials.password,
            algorithm=PasswordAlgorithmNumber(algorithm.number),
            preparation=prepare,
        ),
        sha1=offered is None,
        sha256=offered is not None,
        unsealed_codes=frozenset({ErrorCode.TRY_ALTERNATE, ErrorCode.UNAUTHORIZED, ErrorCode.STALE_NONCE}),
        realm=realm,
        nonce=nonce,
    )


def _forbid_repetition(error: Error, sent: Protection, realm: str, nonce: str) -> None:
    """Refuse to try the same again: a 401 for the same realm, a 438 with the same nonce."""
    if error.code == ErrorCode.UNAUTHORIZED and realm == sent.realm:
        raise _refusal(error, f"user name or password refused for realm {realm!r}")
    if error.code == ErrorCode.STALE_NONCE and nonce == sent.nonce:
        raise _refusal(error, "the server calls its own new nonce stale")


def _offered_algorithms(
    response: Message, error: Error, sent: Protection | None
) -> tuple[PasswordAlgorithm, ...] | None:
    """PASSWORD-ALGORITHMS, or None from an older server; who strips it is found out (RFC 8489 §9.2.1)."""
    offered = response.get(PASSWORD_ALGORITHMS)
    if offered is None and (_is_stripped(response) or (sent is not None and sent.sha256)):
        raise _refusal(
            error, "PASSWORD-ALGORITHMS is gone from the challenge: somebody weakens it on the way"
        )
    return offered


def _first_known(offered: tuple[PasswordAlgorithm, ...], error: Error) -> PasswordAlgorithm:
    known = (PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA256)
    for algorithm in offered:
        if algorithm.number in known:
            return algorithm
    numbers = ", ".join(f"0x{algorithm.number:04X}" for algorithm in offered) or "none"
    raise _refusal(error, f"the server wants a password algorithm not known here ({numbers} offered)")


def _is_stripped(response: Message) -> bool:
    """Whether the nonce promises PASSWORD-ALGORITHMS and there is none (RFC 8489 §9.2.5)."""
    try:
        nonce = response.get(NONCE)
        return (
            nonce is not None
            and SecurityFeatures.PASSWORD_ALGORITHMS in security_features(nonce)
            and response.get(PASSWORD_ALGORITHMS) is None
        )
    except DecodeError:
        return True


def _refusal(error: Error, text: str) -> AuthenticationError:
    message = f"{text} (error {error})"
    return AuthenticationError(message, code=error.code, reason=error.reason)
