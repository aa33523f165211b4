"""A STUN message, read and written without loss (RFC 8489 §5, §14; RFC 3489 §11.1).

Two dialects: the modern one carries the magic cookie and a 12-byte transaction id; the classic one
(RFC 3489) has no cookie and a 16-byte id. Everything else is the same, so one class serves both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.stun.attributes import (
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_CLASSIC,
    Attribute,
    AttributeCodec,
    attribute_name,
)
from nattools.wire import OpenIntEnum

T = TypeVar("T")

MAGIC_COOKIE = b"\x21\x12\xa4\x42"
HEADER_BYTES = 20

_HEADER = struct.Struct("!HH")
_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes a sixth of `parse`
_SEALS = (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type)
_AFTER_SEAL = (MESSAGE_INTEGRITY_SHA256.type, FINGERPRINT.type)


class Method(OpenIntEnum):
    """Methods of the IANA registry (RFC 8489 §18.2); 12 bits."""

    BINDING = 0x001
    SHARED_SECRET = 0x002  # RFC 3489
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


class MessageClass(IntEnum):
    """The two class bits (RFC 8489 §5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


def _split_type(message_type: int) -> tuple[Method, MessageClass]:
    number = message_type & 0xF | (message_type & 0xE0) >> 1 | (message_type & 0x3E00) >> 2
    return Method(number), MessageClass((message_type & 0x10) >> 4 | (message_type & 0x100) >> 7)


def _join_type(method: int, message_class: int) -> int:
    bits = method & 0xF | (method & 0x70) << 1 | (method & 0xF80) << 2
    return bits | (message_class & 1) << 4 | (message_class & 2) << 7


_KNOWN_TYPES = {_join_type(m, c): (m, c) for m in Method for c in MessageClass}


@dataclass(frozen=True, slots=True)
class Message:
    """One STUN message. `transaction_id` has 12 bytes, or 16 in the classic dialect (no magic cookie)."""

    method: Method
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[Attribute, ...] = ()
    _raw: bytes | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self._raw is None:
            if len(self.transaction_id) not in (12, 16):
                raise EncodeError(f"a transaction id of {len(self.transaction_id)} bytes; 12 or 16 expected")
            if self.is_classic and self.transaction_id.startswith(MAGIC_COOKIE):
                raise EncodeError("a classic transaction id cannot begin with the magic cookie")
            if not 0 <= self.method <= 0xFFF:
                raise EncodeError(f"method 0x{self.method:X} does not fit 12 bits")

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Read exactly one message. Attribute values are checked when they are asked for, by `get`.

        Raises `DecodeError` when `data` is not a well-formed STUN message of either dialect.
        """
        size = len(data)
        if size < HEADER_BYTES:
            raise DecodeError(f"{size} bytes are too few for a STUN header")
        message_type, length = _HEADER.unpack_from(data)
        if message_type > 0x3FFF:
            raise DecodeError(f"first byte 0x{data[0]:02X}: not STUN")
        if length != size - HEADER_BYTES or length & 3:
            raise DecodeError(f"length field {length} in a message of {size} bytes")
        attributes = []
        position = HEADER_BYTES
        while position < size:
            kind, value_size = _HEADER.unpack_from(data, position)
            start = position + 4
            end = start + value_size
            if end > size:
                raise DecodeError(
                    f"{attribute_name(kind)} claims {value_size} bytes, {size - start} are left"
                )
            attributes.append(_new_tuple(Attribute, (kind, data[start:end])))
            position = end + 3 & ~3
        method, message_class = _KNOWN_TYPES.get(message_type) or _split_type(message_type)
        transaction_id = data[8:20] if data[4:8] == MAGIC_COOKIE else data[4:20]
        return cls(method, message_class, transaction_id, tuple(attributes), _raw=data)

    def encode(self) -> bytes:
        """The bytes on the wire; a parsed message gives back exactly the bytes that it was parsed from."""
        if self._raw is not None:
            return self._raw
        body = b"".join(map(_encode_attribute, self.attributes))
        if len(body) > 0xFFFC:
            raise EncodeError(f"attributes of {len(body)} bytes do not fit one message")
        return _HEADER.pack(_join_type(self.method, self.message_class), len(body)) + self.xor_key + body

    def append(self, *attributes: Attribute) -> Message:
        """The same message with more attributes at its end; what stands before stays byte for byte."""
        raw = self.encode() + b"".join(map(_encode_attribute, attributes))
        if len(raw) - HEADER_BYTES > 0xFFFC:
            raise EncodeError(f"attributes of {len(raw) - HEADER_BYTES} bytes do not fit one message")
        raw = raw[:2] + (len(raw) - HEADER_BYTES).to_bytes(2, "big") + raw[4:]
        return Message(
            self.method, self.message_class, self.transaction_id, (*self.attributes, *attributes), _raw=raw
        )

    @property
    def is_classic(self) -> bool:
        """Whether this is the RFC 3489 dialect: no magic cookie, a 16-byte transaction id."""
        return len(self.transaction_id) == 16

    @property
    def xor_key(self) -> bytes:
        """The 16 header bytes after the length, with which addresses are XOR-ed (RFC 8489 §14.2)."""
        if self._raw is not None:
            return self._raw[4:HEADER_BYTES]
        return self.transaction_id if self.is_classic else MAGIC_COOKIE + self.transaction_id

    def get(self, codec: AttributeCodec[T]) -> T | None:
        """The value of the first such attribute, or None where there is none.

        What follows MESSAGE-INTEGRITY is not protected by it and is passed over (RFC 8489 §14.5), save
        MESSAGE-INTEGRITY-SHA256 and FINGERPRINT. Raises `DecodeError` when the value is malformed.
        """
        wanted = codec.type
        for number, value in self.attributes:
            if number == wanted:
                return codec.parse(value, self.xor_key)
            if number in _SEALS and wanted not in _AFTER_SEAL:
                return None
        return None

    def has(self, codec: AttributeCodec[T]) -> bool:
        """Whether the attribute is there at all, wherever it stands and whatever its value."""
        return any(attribute.type == codec.type for attribute in self.attributes)

    @property
    def mapped_address(self) -> Endpoint | None:
        """Where the request was seen to come from: XOR-MAPPED-ADDRESS, its elder 0x8020, or MAPPED-ADDRESS.

        An IPv4 address that a dual-stack server wrote as `::ffff:192.0.2.1` comes back as IPv4.
        Raises `DecodeError` when the attribute is malformed.
        """
        for codec in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_CLASSIC, MAPPED_ADDRESS):
            mapped = self.get(codec)
            if mapped is not None:
                return mapped.unmapped
        return None


def _encode_attribute(attribute: Attribute) -> bytes:
    size = len(attribute.value)
    if not 0 <= attribute.type <= 0xFFFF:
        raise EncodeError(f"{attribute.type} is not an attribute number (0 to 65535)")
    if size > 0xFFFF:
        raise EncodeError(f"{attribute_name(attribute.type)} of {size} bytes does not fit one attribute")
    return _HEADER.pack(attribute.type, size) + attribute.value + bytes(-size % 4)


def frame_size(start: bytes | bytearray) -> int | None:
    """How many bytes the message that begins with `start` has on a stream, or None with under 4 bytes.

    RFC 8489 §6.2.2. Raises `DecodeError` when `start` cannot be the beginning of a STUN message.
    """
    if len(start) < 4:
        return None
    message_type, length = _HEADER.unpack_from(start)
    if message_type > 0x3FFF or length & 3:
        raise DecodeError(f"{bytes(start[:4]).hex()} does not begin a STUN message")
    return HEADER_BYTES + int(length)
