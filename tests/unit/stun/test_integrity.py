from __future__ import annotations

import contextlib
import hashlib
import hmac
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import CredentialError, DecodeError, EncodeError
from nattools.stun.attributes import (
    FINGERPRINT,
    ICE_CONTROLLED,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PRIORITY,
    REALM,
    SOFTWARE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
)
from nattools.stun.integrity import (
    SecurityFeatures,
    fingerprint_holds,
    integrity_holds,
    integrity_sha256_holds,
    long_term_key,
    nonce_prefix,
    opaque_string,
    saslprep,
    security_features,
    short_term_key,
    userhash,
    with_fingerprint,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import HEADER_BYTES, Message, MessageClass, Method
from tests import vectors

USER, REALM_NAME, SECRET = "マトリックス", "example.org", "TheMatrIX"
SECRET_UNPREPARED = "The\u00adM\u00aatr\u2168"
SHORT_TERM = short_term_key("VOkJxbRl1RmTxUk/WvJxBt")
LONG_TERM = long_term_key(USER, REALM_NAME, SECRET)
LONG_TERM_SHA256 = long_term_key(USER, REALM_NAME, SECRET, algorithm=PasswordAlgorithmNumber.SHA256)
B1_NONCE = "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"

TRANSACTION = bytes.fromhex("b7e7a701 bc34d686 fa87dfae")
LONG_TRANSACTION = bytes.fromhex("78ad3433 c6ad72c0 29da412e")
CLASSIC_TRANSACTION = bytes(range(16))
XOR_KEY = bytes.fromhex("2112a442") + TRANSACTION


@dataclass(frozen=True)
class Vector:
    """A message of an RFC: the values that it was made of, its key, and what protects it."""

    name: str
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[Attribute, ...]
    key: bytes
    seals: tuple[Callable[[Message, bytes], Message], ...]
    padding: bytes = b"\0"

    @property
    def raw(self) -> bytes:
        return vectors.message(self.name)


def _mapped(ip: str) -> Attribute:
    return XOR_MAPPED_ADDRESS.of(Endpoint.of(ip, 32853), XOR_KEY)


def _fingerprint(message: Message, _key: bytes) -> Message:
    return with_fingerprint(message)


VECTORS = [
    Vector(
        "rfc5769-2.1-request",
        MessageClass.REQUEST,
        TRANSACTION,
        (
            SOFTWARE.of("STUN test client"),
            PRIORITY.of(0x6E0001FF),
            ICE_CONTROLLED.of(0x932FF9B151263B36),
            USERNAME.of("evtj:h6vY"),
        ),
        SHORT_TERM,
        (with_integrity, _fingerprint),
        padding=b" ",
    ),
    Vector(
        "rfc5769-2.2-response-ipv4",
        MessageClass.SUCCESS,
        TRANSACTION,
        (SOFTWARE.of("test vector"), _mapped("192.0.2.1")),
        SHORT_TERM,
        (with_integrity, _fingerprint),
        padding=b" ",
    ),
    Vector(
        "rfc5769-2.3-response-ipv6",
        MessageClass.SUCCESS,
        TRANSACTION,
        (SOFTWARE.of("test vector"), _mapped("2001:db8:1234:5678:11:2233:4455:6677")),
        SHORT_TERM,
        (with_integrity, _fingerprint),
        padding=b" ",
    ),
    Vector(
        "rfc5769-2.4-request-long-term",
        MessageClass.REQUEST,
        LONG_TRANSACTION,
        (USERNAME.of(USER), NONCE.of("f//499k954d6OL34oL9FSTvy64sA"), REALM.of(REALM_NAME)),
        LONG_TERM,
        (with_integrity,),
    ),
    Vector(
        "rfc8489-b.1-request",
        MessageClass.REQUEST,
        LONG_TRANSACTION,
        (
            USERHASH.of(userhash(USER, REALM_NAME)),
            NONCE.of(B1_NONCE),
            REALM.of(REALM_NAME),
            PASSWORD_ALGORITHM.of(PasswordAlgorithm(PasswordAlgorithmNumber.SHA256)),
        ),
        LONG_TERM_SHA256,
        (with_integrity_sha256,),
    ),
]
vector_cases = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def verdicts(message: Message, key: bytes) -> tuple[bool | None, ...]:
    """What is said of MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT."""
    return integrity_holds(message, key), integrity_sha256_holds(message, key), fingerprint_holds(message)


def padded(message: Message, padding: bytes) -> Message:
    """The message with all its padding bytes set to `padding`."""
    raw, position = bytearray(message.encode()), HEADER_BYTES
    for _number, value in message.attributes:
        end = position + 4 + len(value)
        position = end + -end % 4
        raw[end:position] = padding * (position - end)
    return Message.parse(bytes(raw))


def request(*attributes: Attribute, transaction_id: bytes = TRANSACTION) -> Message:
    return Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes)


def covered(raw: bytes, added: int) -> bytes:
    """`raw` with the length field that it has once `added` bytes follow."""
    return raw[:2] + (len(raw) - HEADER_BYTES + added).to_bytes(2, "big") + raw[4:]


class TestVectors:
    @vector_cases
    def test_it_holds(self, vector: Vector) -> None:
        sealed = (with_integrity, with_integrity_sha256, _fingerprint)
        expected = tuple(True if seal in vector.seals else None for seal in sealed)
        assert verdicts(Message.parse(vector.raw), vector.key) == expected

    @vector_cases
    def test_it_carries_these_values(self, vector: Vector) -> None:
        message = Message.parse(vector.raw)
        assert message.method is Method.BINDING
        assert message.message_class is vector.message_class
        assert message.transaction_id == vector.transaction_id
        assert message.attributes[: len(vector.attributes)] == vector.attributes
        assert len(message.attributes) == len(vector.attributes) + len(vector.seals)

    @vector_cases
    def test_it_is_rebuilt_from_its_values(self, vector: Vector) -> None:
        message = Message(Method.BINDING, vector.message_class, vector.transaction_id, vector.attributes)
        message = padded(message, vector.padding)
        for seal in vector.seals:
            message = seal(message, vector.key)
        assert message.encode() == vector.raw

    @vector_cases
    def test_no_bit_of_it_can_be_changed(self, vector: Vector) -> None:
        whole = verdicts(Message.parse(vector.raw), vector.key)
        for position in range(8 * len(vector.raw)):
            changed = bytearray(vector.raw)
            changed[position // 8] ^= 0x80 >> position % 8
            with contextlib.suppress(DecodeError):
                assert verdicts(Message.parse(bytes(changed)), vector.key) != whole, f"bit {position}"

    @vector_cases
    def test_no_other_key_fits(self, vector: Vector) -> None:
        message = Message.parse(vector.raw)
        for key in (b"", b"another", vector.key + b"\1", vector.key[:-1]):
            assert False in verdicts(message, key)


class TestMessageIntegrity:
    def test_it_covers_what_stands_before_and_the_length_as_if_it_were_last(self) -> None:
        plain = request(SOFTWARE.of("s"), Attribute(0x7777, b"unknown"))
        sealed = with_integrity(plain, b"key")
        digest = hmac.new(b"key", covered(plain.encode(), 24), hashlib.sha1).digest()
        assert sealed.encode() == covered(plain.encode(), 24) + bytes.fromhex("00080014") + digest
        assert sealed.get(MESSAGE_INTEGRITY) == digest

    def test_it_holds_whatever_follows(self) -> None:
        sealed = with_integrity(request(SOFTWARE.of("s")), b"key")
        longer = with_fingerprint(sealed.append(Attribute(0x7777, b"more")))
        assert integrity_holds(Message.parse(longer.encode()), b"key") is True

    def test_a_message_without_it_says_so(self) -> None:
        assert integrity_holds(request(), b"key") is None
        assert integrity_sha256_holds(request(), b"key") is None
        assert fingerprint_holds(request()) is None

    @pytest.mark.parametrize("size", [0, 1, 16, 19, 21, 32])
    def test_one_of_another_size_is_wrong(self, size: int) -> None:
        digest = hmac.new(b"key", covered(request().encode(), 24), hashlib.sha1).digest()
        message = request(Attribute(MESSAGE_INTEGRITY.type, (digest + bytes(12))[:size]))
        assert integrity_holds(message, b"key") is False

    @pytest.mark.parametrize("software", ["", "s", "s" * 16, "s" * 40, "s" * 41, "s" * 104])
    def test_the_classic_one_covers_zeros_up_to_whole_blocks(self, software: str) -> None:
        plain = request(SOFTWARE.of(software), transaction_id=CLASSIC_TRANSACTION)
        text = covered(plain.encode(), 24)
        while len(text) % 64:
            text += b"\0"
        sealed = with_integrity(plain, b"key")
        assert sealed.get(MESSAGE_INTEGRITY) == hmac.new(b"key", text, hashlib.sha1).digest()
        assert integrity_holds(Message.parse(sealed.encode()), b"key") is True
        assert integrity_holds(Message.parse(sealed.encode()), b"another") is False


class TestMessageIntegritySha256:
    PLAIN = request(SOFTWARE.of("s"))

    @pytest.mark.parametrize("size", [16, 20, 24, 28, 32])
    def test_it_may_be_cut(self, size: int) -> None:
        sealed = with_integrity_sha256(self.PLAIN, b"key", size=size)
        text = covered(self.PLAIN.encode(), 4 + size)
        digest = hmac.new(b"key", text, hashlib.sha256).digest()
        assert sealed.encode() == text + bytes((0, 0x1C, 0, size)) + digest[:size]
        received = Message.parse(sealed.encode())
        assert integrity_sha256_holds(received, b"key") is True
        assert integrity_sha256_holds(received, b"another") is False
        assert integrity_holds(received, b"key") is None

    @pytest.mark.parametrize("size", [-4, 0, 4, 12, 15, 17, 18, 30, 33, 36])
    def test_but_to_no_other_size(self, size: int) -> None:
        with pytest.raises(EncodeError, match="16, 20, 24, 28 or 32"):
            with_integrity_sha256(self.PLAIN, b"key", size=size)

    @pytest.mark.parametrize("size", [0, 4, 12, 15, 17, 18, 30, 31, 33, 36])
    def test_and_one_that_is_cut_to_another_size_is_wrong(self, size: int) -> None:
        text = covered(self.PLAIN.encode(), 4 + size)
        digest = hmac.new(b"key", text, hashlib.sha256).digest() + bytes(4)
        message = self.PLAIN.append(Attribute(MESSAGE_INTEGRITY_SHA256.type, digest[:size]))
        assert integrity_sha256_holds(message, b"key") is False

    def test_it_stands_beside_the_elder_one(self) -> None:
        both = with_integrity_sha256(with_integrity(self.PLAIN, b"old key"), b"new key")
        received = Message.parse(with_fingerprint(both).encode())
        assert integrity_holds(received, b"old key") is True
        assert integrity_sha256_holds(received, b"new key") is True
        assert fingerprint_holds(received) is True
        assert integrity_holds(received, b"new key") is False
        assert integrity_sha256_holds(received, b"old key") is False


class TestFingerprint:
    SEALED = with_fingerprint(request(SOFTWARE.of("s")))

    def test_it_is_the_crc_of_what_stands_before(self) -> None:
        plain = request(SOFTWARE.of("s")).encode()
        assert self.SEALED.get(FINGERPRINT) == zlib.crc32(covered(plain, 8)) ^ 0x5354554E
        assert fingerprint_holds(Message.parse(self.SEALED.encode())) is True

    def test_nothing_may_follow_it(self) -> None:
        assert fingerprint_holds(self.SEALED.append(SOFTWARE.of("s"))) is False

    def test_nor_another_one(self) -> None:
        assert fingerprint_holds(with_fingerprint(self.SEALED)) is False

    @pytest.mark.parametrize("size", [0, 3, 5, 8])
    def test_one_of_another_size_is_wrong(self, size: int) -> None:
        assert fingerprint_holds(request(Attribute(FINGERPRINT.type, bytes(size)))) is False


class TestKeys:
    def test_the_long_term_key_of_rfc5389(self) -> None:
        key = long_term_key("user", "realm", "pass")
        assert key == bytes.fromhex("8493fbc53ba582fb4c044c456bdc40eb")  # RFC 5389 §15.4

    def test_the_long_term_key_of_rfc8489_is_a_sha256(self) -> None:
        key = long_term_key("user", "realm", "pass", algorithm=PasswordAlgorithmNumber.SHA256)
        assert key == hashlib.sha256(b"user:realm:pass").digest()

    def test_a_password_is_prepared_as_the_caller_says(self) -> None:
        assert long_term_key(USER, REALM_NAME, SECRET_UNPREPARED, preparation=saslprep) == LONG_TERM
        assert short_term_key(SECRET_UNPREPARED, preparation=saslprep) == SECRET.encode()
        with pytest.raises(CredentialError):  # whatever RFC 8489 B.1 says: RFC 8265 disallows U+00AD
            long_term_key(USER, REALM_NAME, SECRET_UNPREPARED)

    @pytest.mark.parametrize("number", [0, 3, 0xFFFF])
    def test_an_unknown_algorithm_is_an_encode_error(self, number: int) -> None:
        with pytest.raises(EncodeError, match="not known"):
            long_term_key("user", "realm", "pass", algorithm=PasswordAlgorithmNumber(number))

    def test_the_userhash_of_rfc8489(self) -> None:
        message = Message.parse(vectors.message("rfc8489-b.1-request"))
        assert message.get(USERHASH) == userhash(USER, REALM_NAME)
        assert message.get(USERHASH) != userhash(USER, "example.com")


class TestSecurityFeatures:
    def test_the_nonce_of_rfc8489_announces_username_anonymity(self) -> None:
        assert security_features(B1_NONCE) is SecurityFeatures.USERNAME_ANONYMITY
        assert nonce_prefix(SecurityFeatures.USERNAME_ANONYMITY) == B1_NONCE[:13]

    @pytest.mark.parametrize(
        ("features", "prefix"),
        [
            (SecurityFeatures.NONE, "obMatJos2AAAA"),
            (SecurityFeatures.PASSWORD_ALGORITHMS, "obMatJos2AAAB"),
            (SecurityFeatures.PASSWORD_ALGORITHMS | SecurityFeatures.USERNAME_ANONYMITY, "obMatJos2AAAD"),
            (SecurityFeatures(1 << 23), "obMatJos2gAAA"),
            (SecurityFeatures(0xFFFFFF), "obMatJos2////"),
        ],
    )
    def test_features_and_nonce_are_one(self, features: SecurityFeatures, prefix: str) -> None:
        assert nonce_prefix(features) == prefix
        assert security_features(prefix) == features
        assert security_features(prefix + "and the rest ==") == features

    @pytest.mark.parametrize(
        "nonce",
        [
            "",
            "f//499k954d6OL34oL9FSTvy64sA",
            "obMatJos",
            "obMatJos2",
            "obMatJos2AAB",
            "obMatJos2gA==rest",
            "obMatJos2gAA=rest",
            "obMatJos2A===",
            "obMatJos2 AAB",
            "obMatJos2AA\u00e9B",
            "obMatJos2AA\ud800B",
            "OBMATJOS2AAAB",
            " obMatJos2AAAB",
        ],
    )
    def test_another_nonce_announces_none(self, nonce: str) -> None:
        assert security_features(nonce) is SecurityFeatures.NONE

    def test_there_are_24_of_them(self) -> None:
        with pytest.raises(EncodeError, match="24 bits"):
            nonce_prefix(SecurityFeatures(1 << 24))

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=())))
    def test_any_nonce_is_read(self, rest: str) -> None:
        assert security_features("obMatJos2" + rest) in SecurityFeatures(0xFFFFFF)


class TestPreparation:
    @pytest.mark.parametrize(
        ("text", "prepared"),
        [
            ("user", "user"),
            ("Two words ~!", "Two words ~!"),
            (USER, USER),
            ("e\u0301", "\u00e9"),  # NFC
            ("ideographic\u3000space", "ideographic space"),
            ("\u2168\u00aa", "\u2168\u00aa"),  # no compatibility mapping
        ],
    )
    def test_opaque_string(self, text: str, prepared: str) -> None:
        assert opaque_string(text) == prepared

    @pytest.mark.parametrize("text", ["", "\0", "tab\there", "\x7f", "soft\u00adhyphen", "\ud800", "\u0378"])
    def test_what_opaque_string_forbids(self, text: str) -> None:
        with pytest.raises(CredentialError, match="OpaqueString"):
            opaque_string(text)

    @pytest.mark.parametrize(
        ("text", "prepared"),
        [  # the first five are the examples of RFC 4013 §3
            ("I\u00adX", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u00aa", "a"),
            ("\u2168", "IX"),
            (SECRET_UNPREPARED, SECRET),
            (USER, USER),
            ("no-break\u00a0space", "no-break space"),
            ("", ""),
        ],
    )
    def test_saslprep(self, text: str, prepared: str) -> None:
        assert saslprep(text) == prepared

    @pytest.mark.parametrize("text", ["\u0007", "\u06271", "\0", "\x7f", "\ud800", "\ue000", "\U0001f600"])
    def test_what_saslprep_forbids(self, text: str) -> None:
        with pytest.raises(CredentialError, match="SASLprep"):
            saslprep(text)

    @pytest.mark.parametrize("preparation", [opaque_string, saslprep])
    @settings(deadline=None)
    @given(
        text=st.one_of(
            st.text(st.characters(exclude_categories=())),
            st.text(
                "a \u200c\u200d\u00b7\u0375\u05d0\u05f3\u05f4\u30fb\u30a2\u0660\u06f0\u094d\u0627\u00ad\u0301"
            ),
        )
    )
    @example(text="\U0010ffff")
    @example(text="\udfff")
    def test_any_text_is_prepared_or_a_credential_error(
        self, preparation: Callable[[str], str], text: str
    ) -> None:
        with contextlib.suppress(CredentialError):
            preparation(text).encode()

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=()), max_size=8))
    def test_any_credentials_make_keys_or_a_credential_error(self, text: str) -> None:
        ways: list[Callable[[], bytes]] = [
            lambda: short_term_key(text),
            lambda: long_term_key("user", text, "pass"),
            lambda: long_term_key(text, "realm", "pass", preparation=saslprep),
            lambda: userhash(text, "realm"),
        ]
        for make in ways:
            with contextlib.suppress(CredentialError):
                assert isinstance(make(), bytes)
