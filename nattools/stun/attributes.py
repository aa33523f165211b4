"""STUN attributes: every one in the IANA registry, and those of RFC 3489 (RFC 8489 §14, §18.3).

Each attribute is a module-level `AttributeCodec` that knows its number, its name and the shape of its
value. `SOFTWARE.of("nattools")` makes an attribute, `message.get(SOFTWARE)` reads it back as `str`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, NamedTuple, TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.wire import OpenIntEnum, Reader

T = TypeVar("T")

_SHOWN_CHARACTERS = 80

COMPREHENSION_OPTIONAL = 0x8000
"""From this number on an attribute that is not understood may be ignored (RFC 8489 §14)."""


class Attribute(NamedTuple):
    """One attribute as it stands on the wire: its number, and its value without the padding."""

    type: int
    value: bytes

    @property
    def comprehension_required(self) -> bool:
        """Whether a receiver that does not know it must refuse the message."""
        return self.type < COMPREHENSION_OPTIONAL


@dataclass(frozen=True, slots=True, repr=False)
class AttributeCodec(Generic[T]):
    """How one attribute is numbered, named, read and written.

    `parse` and `encode` also get the XOR key: the 16 header bytes from the magic cookie on (the whole
    transaction id in the classic dialect), which the XOR-ed addresses need.
    """

    type: int
    name: str
    parse: Callable[[bytes, bytes], T]
    encode: Callable[[T, bytes], bytes]

    def of(self, value: T, xor_key: bytes = b"") -> Attribute:
        """Make the attribute. `xor_key` is wanted only by the XOR-ed addresses. Raises `EncodeError`."""
        return Attribute(self.type, self.encode(value, xor_key))

    def __repr__(self) -> str:
        return f"<{self.name} 0x{self.type:04X}>"


class ErrorCode(OpenIntEnum):
    """Error codes of the IANA registry (RFC 8489 §18.4) and of RFC 3489 §11.2.9."""

    TRY_ALTERNATE = 300
    BAD_REQUEST = 400
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    MOBILITY_FORBIDDEN = 405
    UNKNOWN_ATTRIBUTE = 420
    STALE_CREDENTIALS = 430  # RFC 3489
    INTEGRITY_CHECK_FAILURE = 431  # RFC 3489
    MISSING_USERNAME = 432  # RFC 3489
    USE_TLS = 433  # RFC 3489
    ALLOCATION_MISMATCH = 437
    STALE_NONCE = 438
    ADDRESS_FAMILY_NOT_SUPPORTED = 440
    WRONG_CREDENTIALS = 441
    UNSUPPORTED_TRANSPORT_PROTOCOL = 442
    PEER_ADDRESS_FAMILY_MISMATCH = 443
    CONNECTION_ALREADY_EXISTS = 446
    CONNECTION_TIMEOUT_OR_FAILURE = 447
    ALLOCATION_QUOTA_REACHED = 486
    ROLE_CONFLICT = 487
    SERVER_ERROR = 500
    INSUFFICIENT_CAPACITY = 508
    GLOBAL_FAILURE = 600  # RFC 3489

    @property
    def phrase(self) -> str:
        """The reason phrase that the registry gives it, or an empty string."""
        name = {440: "Address Family not Supported", 433: "Use TLS"}.get(self)
        if name is not None:
            return name
        if self.name.startswith("UNKNOWN_0x"):
            return ""
        return self.name.replace("_", " ").title().replace("Or ", "or ")


class AddressFamily(IntEnum):
    """The family octet of an address attribute (RFC 8489 §14.1)."""

    IPV4 = 1
    IPV6 = 2


class PasswordAlgorithmNumber(OpenIntEnum):
    """How a long-term key is made from the password (RFC 8489 §18.5)."""

    MD5 = 1
    SHA256 = 2


@dataclass(frozen=True, slots=True)
class Error:
    """The value of ERROR-CODE (RFC 8489 §14.8): `code` is 300 to 699."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        """For people: what a server writes into the phrase must not steer a terminal."""
        phrase = "".join(character for character in self.reason if character.isprintable())
        return f"{self.code} {phrase[:_SHOWN_CHARACTERS]}".rstrip()


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """The value of CHANGE-REQUEST (RFC 5780 §7.2): answer from the other address, the other port, or both."""

    change_ip: bool
    change_port: bool


@dataclass(frozen=True, slots=True)
class PasswordAlgorithm:
    """One entry of PASSWORD-ALGORITHMS (RFC 8489 §14.11, §14.12)."""

    number: int
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class AddressError:
    """The value of ADDRESS-ERROR-CODE (RFC 8656 §18.12)."""

    family: int
    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class IcmpError:
    """The value of ICMP (RFC 8656 §18.13): `type` is 0 to 127, `code` 0 to 511, `data` 4 bytes."""

    type: int
    code: int
    data: bytes = b"\0\0\0\0"


@dataclass(frozen=True, slots=True)
class TransmitCounter:
    """The value of TRANSACTION_TRANSMIT_COUNTER (RFC 7982 §3): which transmission this is, 0 to 255 each."""

    request: int
    response: int


_PORT_IPV4 = struct.Struct("!2xHI")
_IPV4, _IPV6 = int(AddressFamily.IPV4), int(AddressFamily.IPV6)


def _pack(name: str, layout: str, *values: int | bytes) -> bytes:
    try:
        return struct.pack(layout, *values)
    except struct.error as error:
        raise EncodeError(f"{name} cannot carry {values}: {error}") from error


def _parse_address(value: bytes, _key: bytes) -> Endpoint:
    size = len(value)
    if size == 8 and value[1] == _IPV4:
        port, ip = _PORT_IPV4.unpack(value)
        return Endpoint(IPv4Address(ip), port)
    if size == 20 and value[1] == _IPV6:
        return Endpoint(IPv6Address(value[4:]), value[2] << 8 | value[3])
    raise DecodeError(f"an address attribute of {size} bytes, family {value[1] if size > 1 else None}")


def _encode_address(endpoint: Endpoint, _key: bytes) -> bytes:
    family = _IPV6 if endpoint.is_ipv6 else _IPV4
    return bytes((0, family)) + endpoint.port.to_bytes(2, "big") + endpoint.ip.packed


def _parse_xor_address(value: bytes, key: bytes) -> Endpoint:
    size = len(value)
    if size == 8 and value[1] == _IPV4:
        port, ip = _PORT_IPV4.unpack(value)
        ip_key = int.from_bytes(key[:4], "big")
        return Endpoint(IPv4Address(ip ^ ip_key), port ^ ip_key >> 16)
    if size == 20 and value[1] == _IPV6:
        ip_key = int.from_bytes(key, "big")
        ip = int.from_bytes(value[4:], "big") ^ ip_key
        return Endpoint(IPv6Address(ip), (value[2] << 8 | value[3]) ^ ip_key >> 112)
    raise DecodeError(f"an address attribute of {size} bytes, family {value[1] if size > 1 else None}")


def _encode_xor_address(endpoint: Endpoint, key: bytes) -> bytes:
    if len(key) != 16:
        raise EncodeError("an XOR-ed address needs the 16-byte XOR key of its message")
    size = len(endpoint.ip.packed)
    address = int.from_bytes(endpoint.ip.packed, "big") ^ int.from_bytes(key[:size], "big")
    port = endpoint.port ^ int.from_bytes(key[:2], "big")
    family = _IPV6 if size == 16 else _IPV4
    return bytes((0, family)) + port.to_bytes(2, "big") + address.to_bytes(size, "big")


def _parse_text(value: bytes, _key: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"text that is not UTF-8: {value[:40]!r}") from error


def _encode_text(name: str, text: str, *, most_bytes: int = 763) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"{name} is not text that UTF-8 can carry: {error.reason}") from error
    if len(encoded) > most_bytes:
        raise EncodeError(f"{name} of {len(encoded)} bytes; {most_bytes} at the most")
    return encoded


def _parse_empty(value: bytes, _key: bytes) -> bool:
    if value:
        raise DecodeError(f"a flag with a value of {len(value)} bytes")
    return True


def _encode_empty(_value: bool, _key: bytes) -> bytes:
    return b""


def _parse_error(value: bytes, _key: bytes) -> Error:
    reader = Reader(value)
    reader.take(2)
    hundreds, number = reader.uint(1) & 7, reader.uint(1)
    if not (3 <= hundreds <= 6 and number <= 99):
        raise DecodeError(f"error class {hundreds}, number {number}: no such code")
    return Error(hundreds * 100 + number, reader.rest().decode(errors="replace"))


def _encode_error(value: Error, _key: bytes) -> bytes:
    if not 300 <= value.code <= 699:
        raise EncodeError(f"{value.code} is not an error code (300 to 699)")
    reason = _encode_text("the reason phrase", value.reason)
    return bytes((0, 0, value.code // 100, value.code % 100)) + reason


def _parse_unknown(value: bytes, _key: bytes) -> tuple[int, ...]:
    if len(value) % 2:
        raise DecodeError("half an attribute number in UNKNOWN-ATTRIBUTES")
    return struct.unpack(f"!{len(value) // 2}H", value)


def _encode_unknown(value: tuple[int, ...], _key: bytes) -> bytes:
    return _pack("UNKNOWN-ATTRIBUTES", f"!{len(value)}H", *value)


def _parse_change_request(value: bytes, _key: bytes) -> ChangeRequest:
    if len(value) != 4:
        raise DecodeError(f"CHANGE-REQUEST of {len(value)} bytes")
    return ChangeRequest(change_ip=bool(value[3] & 4), change_port=bool(value[3] & 2))


def _encode_change_request(value: ChangeRequest, _key: bytes) -> bytes:
    return bytes((0, 0, 0, (4 if value.change_ip else 0) | (2 if value.change_port else 0)))


def _parse_response_port(value: bytes, _key: bytes) -> int:
    if len(value) not in (2, 4):  # coturn counts the padding and sends 4
        raise DecodeError(f"RESPONSE-PORT of {len(value)} bytes")
    return int.from_bytes(value[:2], "big")


def _encode_response_port(value: int, _key: bytes) -> bytes:
    return _pack("RESPONSE-PORT", "!H", value)


def _parse_password_algorithm(value: bytes, _key: bytes) -> PasswordAlgorithm:
    algorithms = _parse_password_algorithms(value, _key)
    if len(algorithms) != 1:
        raise DecodeError(f"PASSWORD-ALGORITHM with {len(algorithms)} algorithms")
    return algorithms[0]


def _parse_password_algorithms(value: bytes, _key: bytes) -> tuple[PasswordAlgorithm, ...]:
    reader, algorithms = Reader(value), []
    while reader.remaining:
        number, size = reader.uint(2), reader.uint(2)
        algorithms.append(PasswordAlgorithm(number, reader.take(size)))
        reader.take(min(-size % 4, reader.remaining))
    return tuple(algorithms)


def _encode_password_algorithm(value: PasswordAlgorithm, _key: bytes) -> bytes:
    size = len(value.parameters)
    head = _pack("PASSWORD-ALGORITHM", "!HH", value.number, size)
    return head + value.parameters + bytes(-size % 4)


def _encode_password_algorithms(value: tuple[PasswordAlgorithm, ...], key: bytes) -> bytes:
    return b"".join(_encode_password_algorithm(algorithm, key) for algorithm in value)


def _parse_address_error(value: bytes, key: bytes) -> AddressError:
    error = _parse_error(value, key)
    return AddressError(value[0], error.code, error.reason)


def _encode_address_error(value: AddressError, key: bytes) -> bytes:
    family = _pack("ADDRESS-ERROR-CODE", "!B", value.family)
    return family + _encode_error(Error(value.code, value.reason), key)[1:]


def _parse_icmp(value: bytes, _key: bytes) -> IcmpError:
    if len(value) != 8:
        raise DecodeError(f"ICMP of {len(value)} bytes; 8 expected")
    number = value[2] << 8 | value[3]
    return IcmpError(number >> 9, number & 0x1FF, value[4:])


def _encode_icmp(value: IcmpError, _key: bytes) -> bytes:
    if not (0 <= value.type <= 127 and 0 <= value.code <= 511 and len(value.data) == 4):
        raise EncodeError(f"{value}: the type is 0 to 127, the code 0 to 511, the data 4 bytes")
    return struct.pack("!xxH4s", value.type << 9 | value.code, value.data)


def _parse_transmit_counter(value: bytes, _key: bytes) -> TransmitCounter:
    if len(value) != 4:
        raise DecodeError(f"TRANSACTION_TRANSMIT_COUNTER of {len(value)} bytes; 4 expected")
    return TransmitCounter(value[2], value[3])


def _encode_transmit_counter(value: TransmitCounter, _key: bytes) -> bytes:
    return _pack("TRANSACTION_TRANSMIT_COUNTER", "!2xBB", value.request, value.response)


REGISTRY: dict[int, AttributeCodec[object]] = {}
"""Every attribute known here, by its number."""


def _define(
    number: int, name: str, parse: Callable[[bytes, bytes], T], encode: Callable[[T, bytes], bytes]
) -> AttributeCodec[T]:
    codec = AttributeCodec(number, name, parse, encode)
    REGISTRY[number] = codec  # type: ignore[assignment]  # a registry of codecs for unlike values
    return codec


def _address(number: int, name: str) -> AttributeCodec[Endpoint]:
    return _define(number, name, _parse_address, _encode_address)


def _xor_address(number: int, name: str) -> AttributeCodec[Endpoint]:
    return _define(number, name, _parse_xor_address, _encode_xor_address)


def _text(number: int, name: str, *, most_bytes: int = 763) -> AttributeCodec[str]:
    def encode(value: str, _key: bytes) -> bytes:
        return _encode_text(name, value, most_bytes=most_bytes)

    return _define(number, name, _parse_text, encode)


def _opaque(number: int, name: str, *, sizes: Container[int] = range(0x10000)) -> AttributeCodec[bytes]:
    """Bytes that are handed on as they are, `sizes` many of them."""

    def parse(value: bytes, _key: bytes) -> bytes:
        if len(value) not in sizes:
            raise DecodeError(f"{name} of {len(value)} bytes")
        return value

    def encode(value: bytes, _key: bytes) -> bytes:
        if len(value) not in sizes:
            raise EncodeError(f"{name} of {len(value)} bytes")
        return value

    return _define(number, name, parse, encode)


def _flag(number: int, name: str) -> AttributeCodec[bool]:
    return _define(number, name, _parse_empty, _encode_empty)


def _number(number: int, name: str, size: int, *, trailing: int = 0) -> AttributeCodec[int]:
    """An unsigned number of `size` bytes, then `trailing` reserved ones."""

    def parse(value: bytes, _key: bytes) -> int:
        if len(value) != size + trailing:
            raise DecodeError(f"{name} of {len(value)} bytes; {size + trailing} expected")
        return int.from_bytes(value[:size], "big")

    def encode(value: int, _key: bytes) -> bytes:
        try:
            return value.to_bytes(size, "big") + bytes(trailing)
        except OverflowError as error:
            raise EncodeError(f"{value} does not fit the {size} bytes of {name}") from error

    return _define(number, name, parse, encode)


# RFC 8489, and RFC 3489 where the registry says "was"
MAPPED_ADDRESS = _address(0x0001, "MAPPED-ADDRESS")
RESPONSE_ADDRESS = _address(0x0002, "RESPONSE-ADDRESS")
CHANGE_REQUEST = _define(0x0003, "CHANGE-REQUEST", _parse_change_request, _encode_change_request)
SOURCE_ADDRESS = _address(0x0004, "SOURCE-ADDRESS")
CHANGED_ADDRESS = _address(0x0005, "CHANGED-ADDRESS")
USERNAME = _text(0x0006, "USERNAME", most_bytes=508)
PASSWORD = _opaque(0x0007, "PASSWORD")
MESSAGE_INTEGRITY = _opaque(0x0008, "MESSAGE-INTEGRITY", sizes=(20,))
ERROR_CODE = _define(0x0009, "ERROR-CODE", _parse_error, _encode_error)
UNKNOWN_ATTRIBUTES = _define(0x000A, "UNKNOWN-ATTRIBUTES", _parse_unknown, _encode_unknown)
REFLECTED_FROM = _address(0x000B, "REFLECTED-FROM")
REALM = _text(0x0014, "REALM")
NONCE = _text(0x0015, "NONCE")
MESSAGE_INTEGRITY_SHA256 = _opaque(0x001C, "MESSAGE-INTEGRITY-SHA256", sizes=range(16, 33, 4))
PASSWORD_ALGORITHM = _define(
    0x001D, "PASSWORD-ALGORITHM", _parse_password_algorithm, _encode_password_algorithm
)
USERHASH = _opaque(0x001E, "USERHASH", sizes=(32,))
XOR_MAPPED_ADDRESS = _xor_address(0x0020, "XOR-MAPPED-ADDRESS")
PASSWORD_ALGORITHMS = _define(
    0x8002, "PASSWORD-ALGORITHMS", _parse_password_algorithms, _encode_password_algorithms
)
ALTERNATE_DOMAIN = _text(0x8003, "ALTERNATE-DOMAIN", most_bytes=255)
XOR_MAPPED_ADDRESS_CLASSIC = _xor_address(0x8020, "XOR-MAPPED-ADDRESS (0x8020)")  # vovida and kin
SOFTWARE = _text(0x8022, "SOFTWARE")
ALTERNATE_SERVER = _address(0x8023, "ALTERNATE-SERVER")
FINGERPRINT = _number(0x8028, "FINGERPRINT", 4)

# RFC 5780
PADDING = _opaque(0x0026, "PADDING")
RESPONSE_PORT = _define(0x0027, "RESPONSE-PORT", _parse_response_port, _encode_response_port)
CACHE_TIMEOUT = _number(0x8027, "CACHE-TIMEOUT", 4)
RESPONSE_ORIGIN = _address(0x802B, "RESPONSE-ORIGIN")
OTHER_ADDRESS = _address(0x802C, "OTHER-ADDRESS")

# RFC 8656 (TURN), RFC 6062, RFC 7635, RFC 8016
CHANNEL_NUMBER = _number(0x000C, "CHANNEL-NUMBER", 2, trailing=2)
LIFETIME = _number(0x000D, "LIFETIME", 4)
BANDWIDTH = _number(0x0010, "BANDWIDTH", 4)
XOR_PEER_ADDRESS = _xor_address(0x0012, "XOR-PEER-ADDRESS")
DATA = _opaque(0x0013, "DATA")
XOR_RELAYED_ADDRESS = _xor_address(0x0016, "XOR-RELAYED-ADDRESS")
REQUESTED_ADDRESS_FAMILY = _number(0x0017, "REQUESTED-ADDRESS-FAMILY", 1, trailing=3)
EVEN_PORT = _number(0x0018, "EVEN-PORT", 1)
REQUESTED_TRANSPORT = _number(0x0019, "REQUESTED-TRANSPORT", 1, trailing=3)
DONT_FRAGMENT = _flag(0x001A, "DONT-FRAGMENT")
ACCESS_TOKEN = _opaque(0x001B, "ACCESS-TOKEN")
TIMER_VAL = _number(0x0021, "TIMER-VAL", 4)
RESERVATION_TOKEN = _opaque(0x0022, "RESERVATION-TOKEN", sizes=(8,))
CONNECTION_ID = _number(0x002A, "CONNECTION-ID", 4)
ADDITIONAL_ADDRESS_FAMILY = _number(0x8000, "ADDITIONAL-ADDRESS-FAMILY", 1, trailing=3)
ADDRESS_ERROR_CODE = _define(0x8001, "ADDRESS-ERROR-CODE", _parse_address_error, _encode_address_error)
ICMP = _define(0x8004, "ICMP", _parse_icmp, _encode_icmp)
THIRD_PARTY_AUTHORIZATION = _text(0x802E, "THIRD-PARTY-AUTHORIZATION")
MOBILITY_TICKET = _opaque(0x8030, "MOBILITY-TICKET")

# RFC 8445 (ICE), RFC 7982, RFC 6679, and what vendors registered
PRIORITY = _number(0x0024, "PRIORITY", 4)
USE_CANDIDATE = _flag(0x0025, "USE-CANDIDATE")
ICE_CONTROLLED = _number(0x8029, "ICE-CONTROLLED", 8)
ICE_CONTROLLING = _number(0x802A, "ICE-CONTROLLING", 8)
TRANSACTION_TRANSMIT_COUNTER = _define(
    0x8025, "TRANSACTION_TRANSMIT_COUNTER", _parse_transmit_counter, _encode_transmit_counter
)
ECN_CHECK_STUN = _opaque(0x802D, "ECN-CHECK STUN")
CISCO_STUN_FLOWDATA = _opaque(0xC000, "CISCO-STUN-FLOWDATA")
ENF_FLOW_DESCRIPTION = _opaque(0xC001, "ENF-FLOW-DESCRIPTION")
ENF_NETWORK_STATUS = _opaque(0xC002, "ENF-NETWORK-STATUS")
GOOG_NETWORK_INFO = _opaque(0xC057, "GOOG-NETWORK-INFO")
GOOG_LAST_ICE_CHECK_RECEIVED = _opaque(0xC058, "GOOG-LAST-ICE-CHECK-RECEIVED")
GOOG_MISC_INFO = _opaque(0xC059, "GOOG-MISC-INFO")
GOOG_OBSOLETE_1 = _opaque(0xC05A, "GOOG-OBSOLETE-1")
GOOG_CONNECTION_ID = _opaque(0xC05B, "GOOG-CONNECTION-ID")
GOOG_DELTA = _opaque(0xC05C, "GOOG-DELTA")
GOOG_DELTA_ACK = _opaque(0xC05D, "GOOG-DELTA-ACK")
GOOG_MESSAGE_INTEGRITY_32 = _opaque(0xC060, "GOOG-MESSAGE-INTEGRITY-32")
DTLS_IN_STUN = _opaque(0xC070, "DTLS-IN-STUN")
DTLS_IN_STUN_ACKNOWLEDGEMENT = _opaque(0xC071, "DTLS-IN-STUN-ACKNOWLEDGEMENT")


def attribute_name(number: int) -> str:
    """The registered name of an attribute, or its number in hexadecimal."""
    codec = REGISTRY.get(number)
    return codec.name if codec else f"0x{number:04X}"
