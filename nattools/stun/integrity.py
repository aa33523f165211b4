"""MESSAGE-INTEGRITY, FINGERPRINT, and the keys they are made with (RFC 8489 §9, §14.5 to §14.7)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from collections.abc import Callable
from enum import IntFlag

from nattools.errors import CredentialError, EncodeError
from nattools.stun.attributes import (
    FINGERPRINT,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    PasswordAlgorithmNumber,
)
from nattools.stun.message import HEADER_BYTES, Message

FINGERPRINT_XOR = 0x5354554E
NONCE_COOKIE = "obMatJos2"
"""How a nonce begins that carries security features (RFC 8489 §9.2)."""

Preparation = Callable[[str], str]
"""How a user name, realm or password is prepared: `opaque_string`, or `saslprep` for RFC 5389 servers."""


class SecurityFeatures(IntFlag):
    """The 24 feature bits behind the nonce cookie: bit 0 is the lowest (RFC 8489 §18.1, erratum 6290)."""

    NONE = 0
    PASSWORD_ALGORITHMS = 1 << 0
    USERNAME_ANONYMITY = 1 << 1


def opaque_string(text: str) -> str:
    """Prepare by the OpaqueString profile (RFC 8265 §4.2), as RFC 8489 wants it. Raises `CredentialError`."""
    if text.isascii() and text.isprintable() and text:
        return text
    import precis_i18n  # its tables take 20 ms to load, and ASCII needs none of them

    try:
        return str(precis_i18n.get_profile("OpaqueString").enforce(text))
    except UnicodeEncodeError as error:
        raise CredentialError(f"a credential that OpaqueString (RFC 8265) forbids: {error.reason}") from error


def saslprep(text: str) -> str:
    """Prepare by SASLprep (RFC 4013), as RFC 5389 wanted it. Raises `CredentialError`."""
    if text.isascii() and text.isprintable():
        return text
    from scramp import ScramException
    from scramp.core import saslprep as prepare  # which ASCII does not need, and takes long to load

    try:
        return str(prepare(text))
    except (ScramException, ValueError) as error:
        raise CredentialError("a credential that SASLprep (RFC 4013) forbids") from error


def short_term_key(password: str, *, preparation: Preparation = opaque_string) -> bytes:
    """The HMAC key of the short-term mechanism (RFC 8489 §9.1.1)."""
    return preparation(password).encode()


def long_term_key(
    username: str,
    realm: str,
    password: str,
    *,
    algorithm: PasswordAlgorithmNumber = PasswordAlgorithmNumber.MD5,
    preparation: Preparation = opaque_string,
) -> bytes:
    """The HMAC key of the long-term mechanism: 16 bytes for MD5, 32 for SHA-256 (RFC 8489 §9.2.2, §18.5).

    Raises `CredentialError` for forbidden characters and `EncodeError` for an unknown algorithm.
    """
    secret = f"{preparation(username)}:{preparation(realm)}:{preparation(password)}".encode()
    if algorithm == PasswordAlgorithmNumber.MD5:
        return hashlib.md5(secret, usedforsecurity=False).digest()
    if algorithm == PasswordAlgorithmNumber.SHA256:
        return hashlib.sha256(secret).digest()
    raise EncodeError(f"password algorithm {algorithm:#x} is not known")


def userhash(username: str, realm: str) -> bytes:
    """The value of USERHASH, 32 bytes (RFC 8489 §14.4)."""
    return hashlib.sha256(f"{opaque_string(username)}:{opaque_string(realm)}".encode()).digest()


def security_features(nonce: str) -> SecurityFeatures:
    """The features that a server announces in its nonce; none where the nonce is of the older kind."""
    if not nonce.startswith(NONCE_COOKIE):
        return SecurityFeatures.NONE
    try:
        bits = base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4], validate=True)
    except (binascii.Error, ValueError):
        return SecurityFeatures.NONE
    return SecurityFeatures(int.from_bytes(bits, "big")) if len(bits) == 3 else SecurityFeatures.NONE


def nonce_prefix(features: SecurityFeatures) -> str:
    """The 13 characters with which a nonce announces `features`. Raises `EncodeError` past 24 bits."""
    if not 0 <= features < 1 << 24:
        raise EncodeError(f"security features {features:#x} do not fit 24 bits")
    return NONCE_COOKIE + base64.b64encode(int(features).to_bytes(3, "big")).decode()


def _covered(message: Message, position: int, added: int) -> bytes:
    """The message up to `position`, its length field as if it ended `added` bytes later."""
    raw = message.encode()
    return raw[:2] + (position - HEADER_BYTES + added).to_bytes(2, "big") + raw[4:position]


def _sha1(message: Message, key: bytes, position: int) -> bytes:
    """The value of a MESSAGE-INTEGRITY that begins at `position`."""
    covered = _covered(message, position, 24)
    if message.is_classic:  # RFC 3489 §11.2.8 fills the last block with zeros; RFC 5389 no longer does
        covered += bytes(-len(covered) % 64)
    return hmac.digest(key, covered, "sha1")


def _find(message: Message, number: int) -> tuple[int, bytes] | None:
    """Where the first such attribute begins in the message, and its value."""
    position = HEADER_BYTES
    for kind, value in message.attributes:
        if kind == number:
            return position, value
        position += 4 + (len(value) + 3 & ~3)
    return None


def with_integrity(message: Message, key: bytes) -> Message:
    """The message with MESSAGE-INTEGRITY (HMAC-SHA1) at its end (RFC 8489 §14.5)."""
    return message.append(MESSAGE_INTEGRITY.of(_sha1(message, key, len(message.encode()))))


def with_integrity_sha256(message: Message, key: bytes, *, size: int = 32) -> Message:
    """The message with MESSAGE-INTEGRITY-SHA256 at its end, cut to `size` bytes: 16 to 32, a multiple of 4.

    RFC 8489 §14.6. Raises `EncodeError` for another size.
    """
    if size not in range(16, 33, 4):
        raise EncodeError(f"MESSAGE-INTEGRITY-SHA256 of {size} bytes; 16, 20, 24, 28 or 32 are allowed")
    covered = _covered(message, len(message.encode()), 4 + size)
    return message.append(MESSAGE_INTEGRITY_SHA256.of(hmac.digest(key, covered, "sha256")[:size]))


def with_fingerprint(message: Message) -> Message:
    """The message with FINGERPRINT at its end (RFC 8489 §14.7); nothing may follow it."""
    covered = _covered(message, len(message.encode()), 8)
    return message.append(FINGERPRINT.of(zlib.crc32(covered) ^ FINGERPRINT_XOR))


def integrity_holds(message: Message, key: bytes) -> bool | None:
    """Whether MESSAGE-INTEGRITY is right for `key`; None where the message has none. In constant time."""
    found = _find(message, MESSAGE_INTEGRITY.type)
    if found is None:
        return None
    position, value = found
    return hmac.compare_digest(_sha1(message, key, position), value)


def integrity_sha256_holds(message: Message, key: bytes) -> bool | None:
    """Whether MESSAGE-INTEGRITY-SHA256, truncated or not, is right for `key`; None where there is none."""
    found = _find(message, MESSAGE_INTEGRITY_SHA256.type)
    if found is None:
        return None
    position, value = found
    if len(value) not in range(16, 33, 4):
        return False
    digest = hmac.digest(key, _covered(message, position, 4 + len(value)), "sha256")
    return hmac.compare_digest(digest[: len(value)], value)


def fingerprint_holds(message: Message) -> bool | None:
    """Whether FINGERPRINT is right and stands last; None where the message has none."""
    found = _find(message, FINGERPRINT.type)
    if found is None:
        return None
    position, value = found
    if len(value) != 4 or position + 8 != len(message.encode()):
        return False
    crc = zlib.crc32(_covered(message, position, 8)) ^ FINGERPRINT_XOR
    return crc == int.from_bytes(value, "big")
