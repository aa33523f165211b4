from __future__ import annotations

from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.stun import attributes
from nattools.stun.attributes import (
    ACCESS_TOKEN,
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    BANDWIDTH,
    CACHE_TIMEOUT,
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    FINGERPRINT,
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    ICMP,
    LIFETIME,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    OTHER_ADDRESS,
    PADDING,
    PASSWORD,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PRIORITY,
    REALM,
    REFLECTED_FROM,
    REGISTRY,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    RESPONSE_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    SOURCE_ADDRESS,
    THIRD_PARTY_AUTHORIZATION,
    TIMER_VAL,
    TRANSACTION_TRANSMIT_COUNTER,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_CLASSIC,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
    Attribute,
    AttributeCodec,
    ChangeRequest,
    Error,
    ErrorCode,
    IcmpError,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    TransmitCounter,
    attribute_name,
)
from tests import vectors

T = TypeVar("T")

KEY = bytes.fromhex("2112a442 b7e7a701 bc34d686 fa87dfae")  # cookie and transaction id of RFC 5769
IPV4 = Endpoint.of("192.0.2.1", 32853)
IPV6 = Endpoint.of("2001:db8:1234:5678:11:2233:4455:6677", 32853)

PLAIN_IPV4 = "0001 8055 c0000201"
PLAIN_IPV6 = "0002 8055 20010db8123456780011223344556677"
XOR_IPV4 = "0001 a147 e112a643"  # as in RFC 5769 §2.2 and §2.3
XOR_IPV6 = "0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9"

# A value, and the bytes that stand for it: read both ways. Every attribute of the registry is here.
CASES: list[tuple[AttributeCodec[Any], Any, str]] = [
    *((codec, IPV4, PLAIN_IPV4) for codec in (MAPPED_ADDRESS, RESPONSE_ADDRESS, SOURCE_ADDRESS)),
    *((codec, IPV6, PLAIN_IPV6) for codec in (CHANGED_ADDRESS, REFLECTED_FROM, ALTERNATE_SERVER)),
    *((codec, IPV4, PLAIN_IPV4) for codec in (RESPONSE_ORIGIN, OTHER_ADDRESS)),
    (MAPPED_ADDRESS, IPV6, PLAIN_IPV6),
    (MAPPED_ADDRESS, Endpoint.of("0.0.0.0", 0), "0001 0000 00000000"),
    (MAPPED_ADDRESS, Endpoint.of("255.255.255.255", 65535), "0001 ffff ffffffff"),
    *((codec, IPV4, XOR_IPV4) for codec in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_CLASSIC)),
    *((codec, IPV6, XOR_IPV6) for codec in (XOR_MAPPED_ADDRESS, XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS)),
    (XOR_MAPPED_ADDRESS, Endpoint.of("33.18.164.66", 0x2112), "0001 0000 00000000"),
    (CHANGE_REQUEST, ChangeRequest(change_ip=False, change_port=False), "00000000"),
    (CHANGE_REQUEST, ChangeRequest(change_ip=False, change_port=True), "00000002"),
    (CHANGE_REQUEST, ChangeRequest(change_ip=True, change_port=False), "00000004"),
    (CHANGE_REQUEST, ChangeRequest(change_ip=True, change_port=True), "00000006"),
    (USERNAME, "evtj:h6vY", b"evtj:h6vY".hex()),
    (USERNAME, "マトリックス", "e3839ee38388e383aae38383e382afe382b9"),
    (USERNAME, "u" * 508, "75" * 508),
    (PASSWORD, b"\xff\x00secret", "ff00736563726574"),
    (MESSAGE_INTEGRITY, bytes(range(20)), bytes(range(20)).hex()),
    (ERROR_CODE, Error(300), "0000 03 00"),
    (ERROR_CODE, Error(420, "Unknown Attribute"), "0000 04 14" + b"Unknown Attribute".hex()),
    (ERROR_CODE, Error(699, "é"), "0000 06 63 c3a9"),
    (UNKNOWN_ATTRIBUTES, (), ""),
    (UNKNOWN_ATTRIBUTES, (0x0003,), "0003"),
    (UNKNOWN_ATTRIBUTES, (0x0002, 0x7FFF, 0xFFFF), "0002 7fff ffff"),
    (CHANNEL_NUMBER, 0x4001, "4001 0000"),
    (LIFETIME, 600, "00000258"),
    (BANDWIDTH, 0xFFFFFFFF, "ffffffff"),
    (DATA, b"", ""),
    (DATA, b"datagram", b"datagram".hex()),
    (REALM, "example.org", b"example.org".hex()),
    (NONCE, "f//499k954d6OL34oL9FSTvy64sA", b"f//499k954d6OL34oL9FSTvy64sA".hex()),
    (NONCE, "n" * 763, "6e" * 763),
    (REQUESTED_ADDRESS_FAMILY, 2, "02000000"),
    (EVEN_PORT, 0x80, "80"),
    (REQUESTED_TRANSPORT, 17, "11000000"),
    (DONT_FRAGMENT, True, ""),
    (ACCESS_TOKEN, b"token", b"token".hex()),
    *((MESSAGE_INTEGRITY_SHA256, bytes(range(n)), bytes(range(n)).hex()) for n in (16, 20, 24, 28, 32)),
    (PASSWORD_ALGORITHM, PasswordAlgorithm(PasswordAlgorithmNumber.SHA256), "0002 0000"),
    (PASSWORD_ALGORITHM, PasswordAlgorithm(0xFFFF, b"abc"), "ffff 0003 616263 00"),
    (PASSWORD_ALGORITHMS, (), ""),
    (PASSWORD_ALGORITHMS, (PasswordAlgorithm(1), PasswordAlgorithm(2)), "0001 0000 0002 0000"),
    (PASSWORD_ALGORITHMS, (PasswordAlgorithm(7, b"p"), PasswordAlgorithm(2)), "0007 0001 70000000 0002 0000"),
    (USERHASH, bytes(range(32)), bytes(range(32)).hex()),
    (TIMER_VAL, 1, "00000001"),
    (RESERVATION_TOKEN, b"8 bytes!", b"8 bytes!".hex()),
    (PRIORITY, 0x6E0001FF, "6e0001ff"),
    (USE_CANDIDATE, True, ""),
    (PADDING, bytes(1500), "00" * 1500),
    (RESPONSE_PORT, 5060, "13c4"),
    (CONNECTION_ID, 0x01020304, "01020304"),
    (ADDITIONAL_ADDRESS_FAMILY, 2, "02000000"),
    (ADDRESS_ERROR_CODE, AddressError(2, 440, "Address"), "02 00 04 28" + b"Address".hex()),
    (ALTERNATE_DOMAIN, "example.org", b"example.org".hex()),
    (ALTERNATE_DOMAIN, "d" * 255, "64" * 255),
    (ICMP, IcmpError(3, 4, b"\0\0\x05\xdc"), "0000 0604 000005dc"),
    (ICMP, IcmpError(127, 511), "0000 ffff 00000000"),
    (SOFTWARE, "STUN test client", b"STUN test client".hex()),
    (SOFTWARE, "", ""),
    (TRANSACTION_TRANSMIT_COUNTER, TransmitCounter(1, 0), "0000 01 00"),
    (TRANSACTION_TRANSMIT_COUNTER, TransmitCounter(255, 255), "0000 ff ff"),
    (CACHE_TIMEOUT, 86400, "00015180"),
    (FINGERPRINT, 0xE57A3BCF, "e57a3bcf"),
    (ICE_CONTROLLED, 0x932FF9B151263B36, "932ff9b151263b36"),
    (ICE_CONTROLLING, (1 << 64) - 1, "ffffffffffffffff"),
    (THIRD_PARTY_AUTHORIZATION, "auth.example.org", b"auth.example.org".hex()),
    *(
        (codec, b"\x01\x02\x03", "010203")
        for codec in (
            attributes.ECN_CHECK_STUN,
            attributes.MOBILITY_TICKET,
            attributes.CISCO_STUN_FLOWDATA,
            attributes.ENF_FLOW_DESCRIPTION,
            attributes.ENF_NETWORK_STATUS,
            attributes.GOOG_NETWORK_INFO,
            attributes.GOOG_LAST_ICE_CHECK_RECEIVED,
            attributes.GOOG_MISC_INFO,
            attributes.GOOG_OBSOLETE_1,
            attributes.GOOG_CONNECTION_ID,
            attributes.GOOG_DELTA,
            attributes.GOOG_DELTA_ACK,
            attributes.GOOG_MESSAGE_INTEGRITY_32,
            attributes.DTLS_IN_STUN,
            attributes.DTLS_IN_STUN_ACKNOWLEDGEMENT,
        )
    ),
]


def _name(argument: object) -> str | None:
    return argument.name if isinstance(argument, AttributeCodec) else repr(argument)[:40]


@pytest.mark.parametrize(("codec", "value", "encoded"), CASES, ids=_name)
def test_value_and_bytes_are_one(codec: AttributeCodec[T], value: T, encoded: str) -> None:
    wire = bytes.fromhex(encoded)
    assert codec.of(value, KEY) == Attribute(codec.type, wire)
    assert codec.parse(wire, KEY) == value


def test_every_attribute_of_the_registry_has_a_case() -> None:
    assert {codec.type for codec, _value, _encoded in CASES} == REGISTRY.keys()


# What others send and is read all the same, though it is not written so here.
LENIENT: list[tuple[AttributeCodec[Any], str, Any]] = [
    (MAPPED_ADDRESS, "ff01 8055 c0000201", IPV4),  # the first byte means nothing
    (XOR_MAPPED_ADDRESS, "ff02" + XOR_IPV6[4:], IPV6),
    (RESPONSE_PORT, "13c4 0000", 5060),  # coturn counts the padding
    (RESPONSE_PORT, "13c4 ffff", 5060),
    (CHANGE_REQUEST, "fffffff9", ChangeRequest(change_ip=False, change_port=False)),
    (CHANGE_REQUEST, "ffffffff", ChangeRequest(change_ip=True, change_port=True)),
    (ERROR_CODE, "ffff fc 63 6f6b", Error(499, "ok")),  # 21 reserved bits
    (ERROR_CODE, "0000 04 00 ff", Error(400, "\ufffd")),  # a reason that is no UTF-8 is still an error
    (ERROR_CODE, "0000 04 01 556e 20 20", Error(401, "Un  ")),  # RFC 3489 pads with spaces
    (PASSWORD_ALGORITHM, "ffff 0003 616263", PasswordAlgorithm(0xFFFF, b"abc")),
    (
        PASSWORD_ALGORITHMS,
        "0007 0001 70 ffffff 0002 0000",
        (PasswordAlgorithm(7, b"p"), PasswordAlgorithm(2)),
    ),
    (CHANNEL_NUMBER, "4001 ffff", 0x4001),
    (REQUESTED_TRANSPORT, "11ffffff", 17),
    (ICMP, "ffff 0604 00000000", IcmpError(3, 4)),
    (TRANSACTION_TRANSMIT_COUNTER, "ffff 0102", TransmitCounter(1, 2)),
    (USERNAME, "75" * 600, "u" * 600),
]


@pytest.mark.parametrize(("codec", "encoded", "value"), LENIENT, ids=_name)
def test_a_peers_liberties_are_read(codec: AttributeCodec[T], encoded: str, value: T) -> None:
    assert codec.parse(bytes.fromhex(encoded), KEY) == value


MALFORMED: list[tuple[AttributeCodec[Any], str]] = [
    (MAPPED_ADDRESS, "00"),
    (MAPPED_ADDRESS, "0000 8055 c0000201"),  # unknown families
    (MAPPED_ADDRESS, "0003 8055 c0000201"),
    (XOR_MAPPED_ADDRESS, "0000 8055 c0000201"),
    (XOR_MAPPED_ADDRESS, "00ff" + XOR_IPV6[4:]),
    (MAPPED_ADDRESS, "0002 8055 c0000201"),  # the family of the other size
    (MAPPED_ADDRESS, "0001" + PLAIN_IPV6[4:]),
    (XOR_MAPPED_ADDRESS, "0002" + XOR_IPV4[4:]),
    (XOR_MAPPED_ADDRESS, "0001" + XOR_IPV6[4:]),
    (USERNAME, "ff"),
    (REALM, "c3"),
    (SOFTWARE, "eda080"),  # a surrogate
    (ERROR_CODE, ""),
    (ERROR_CODE, "000004"),
    (ERROR_CODE, "0000 02 00"),  # 200
    (ERROR_CODE, "0000 07 00"),  # 700
    (ERROR_CODE, "0000 04 64"),  # 400 and 100
    (UNKNOWN_ATTRIBUTES, "00"),
    (UNKNOWN_ATTRIBUTES, "000100"),
    (PASSWORD_ALGORITHM, ""),
    (PASSWORD_ALGORITHM, "0001 0000 0002 0000"),
    (PASSWORD_ALGORITHM, "0001 0001"),
    (PASSWORD_ALGORITHMS, "0001"),
    (PASSWORD_ALGORITHMS, "0001 0000 00"),
    (PASSWORD_ALGORITHMS, "0001 ffff 0000"),
    (ADDRESS_ERROR_CODE, "01"),
    (ADDRESS_ERROR_CODE, "01 00 00 00"),
]


@pytest.mark.parametrize(("codec", "encoded"), MALFORMED, ids=_name)
def test_a_malformed_value_is_a_decode_error(codec: AttributeCodec[object], encoded: str) -> None:
    with pytest.raises(DecodeError):
        codec.parse(bytes.fromhex(encoded), KEY)


ADDRESSES = [
    codec for codec in REGISTRY.values() if codec.parse is MAPPED_ADDRESS.parse or "XOR" in codec.name
]
SIZES: list[tuple[AttributeCodec[Any], set[int]]] = [
    *((codec, {8, 20}) for codec in ADDRESSES),
    *((codec, {4}) for codec in (CHANGE_REQUEST, CHANNEL_NUMBER, LIFETIME, BANDWIDTH, TIMER_VAL)),
    *((codec, {4}) for codec in (REQUESTED_ADDRESS_FAMILY, REQUESTED_TRANSPORT, ADDITIONAL_ADDRESS_FAMILY)),
    *((codec, {4}) for codec in (CONNECTION_ID, PRIORITY, CACHE_TIMEOUT, FINGERPRINT)),
    (TRANSACTION_TRANSMIT_COUNTER, {4}),
    *((codec, {8}) for codec in (ICE_CONTROLLED, ICE_CONTROLLING, ICMP, RESERVATION_TOKEN)),
    *((codec, {0}) for codec in (DONT_FRAGMENT, USE_CANDIDATE)),
    (RESPONSE_PORT, {2, 4}),
    (EVEN_PORT, {1}),
    (MESSAGE_INTEGRITY, {20}),
    (MESSAGE_INTEGRITY_SHA256, {16, 20, 24, 28, 32}),
    (USERHASH, {32}),
]


def test_every_address_attribute_is_among_the_sizes() -> None:
    assert len(ADDRESSES) == 12


@pytest.mark.parametrize(("codec", "sizes"), SIZES, ids=_name)
def test_no_other_size_is_read(codec: AttributeCodec[object], sizes: set[int]) -> None:
    for size in range(64):
        value = bytes([0, 1 if size < 20 else 2, *bytes(max(0, size - 2))])[:size]
        if size in sizes:
            codec.parse(value, KEY)
        else:
            with pytest.raises(DecodeError, match="bytes"):
                codec.parse(value, KEY)


SURROGATE = "\ud800"
TOO_MUCH: list[tuple[AttributeCodec[Any], Any]] = [
    (USERNAME, "u" * 509),
    (USERNAME, "é" * 255),
    (USERNAME, SURROGATE),
    (REALM, "r" * 764),
    (NONCE, "n" * 764),
    (SOFTWARE, "s" * 764),
    (SOFTWARE, SURROGATE),
    (ALTERNATE_DOMAIN, "d" * 256),
    (THIRD_PARTY_AUTHORIZATION, SURROGATE),
    (ERROR_CODE, Error(299)),
    (ERROR_CODE, Error(700)),
    (ERROR_CODE, Error(-1)),
    (ERROR_CODE, Error(1 << 70)),
    (ERROR_CODE, Error(400, "r" * 764)),
    (ERROR_CODE, Error(400, SURROGATE)),
    (ADDRESS_ERROR_CODE, AddressError(256, 440)),
    (ADDRESS_ERROR_CODE, AddressError(-1, 440)),
    (ADDRESS_ERROR_CODE, AddressError(1, 0)),
    (ADDRESS_ERROR_CODE, AddressError(1, 440, SURROGATE)),
    (UNKNOWN_ATTRIBUTES, (70000,)),
    (UNKNOWN_ATTRIBUTES, (1, -1)),
    (RESPONSE_PORT, 70000),
    (RESPONSE_PORT, -1),
    (CHANNEL_NUMBER, 1 << 16),
    (LIFETIME, 1 << 32),
    (LIFETIME, -1),
    (EVEN_PORT, 256),
    (REQUESTED_TRANSPORT, 256),
    (FINGERPRINT, 1 << 32),
    (ICE_CONTROLLED, 1 << 64),
    (PASSWORD_ALGORITHM, PasswordAlgorithm(70000)),
    (PASSWORD_ALGORITHM, PasswordAlgorithm(-1)),
    (PASSWORD_ALGORITHM, PasswordAlgorithm(1, bytes(70000))),
    (PASSWORD_ALGORITHMS, (PasswordAlgorithm(1), PasswordAlgorithm(70000))),
    (ICMP, IcmpError(128, 0)),
    (ICMP, IcmpError(-1, 0)),
    (ICMP, IcmpError(0, 512)),
    (ICMP, IcmpError(0, -1)),
    (ICMP, IcmpError(3, 4, b"abc")),
    (ICMP, IcmpError(3, 4, b"abcde")),
    (TRANSACTION_TRANSMIT_COUNTER, TransmitCounter(300, 0)),
    (TRANSACTION_TRANSMIT_COUNTER, TransmitCounter(0, -1)),
    (MESSAGE_INTEGRITY, bytes(19)),
    (MESSAGE_INTEGRITY_SHA256, bytes(12)),
    (MESSAGE_INTEGRITY_SHA256, bytes(18)),
    (MESSAGE_INTEGRITY_SHA256, bytes(36)),
    (USERHASH, bytes(31)),
    (RESERVATION_TOKEN, bytes(9)),
    (DATA, bytes(65536)),
]


@pytest.mark.parametrize(("codec", "value"), TOO_MUCH, ids=_name)
def test_a_value_that_does_not_fit_is_an_encode_error(codec: AttributeCodec[T], value: T) -> None:
    with pytest.raises(EncodeError):
        codec.of(value, KEY)


@pytest.mark.parametrize("key", [b"", KEY[:12], KEY + b"\0"])
def test_a_xored_address_wants_the_whole_key(key: bytes) -> None:
    with pytest.raises(EncodeError, match="16-byte XOR key"):
        XOR_MAPPED_ADDRESS.of(IPV4, key)


def test_a_plain_attribute_wants_no_key() -> None:
    assert MAPPED_ADDRESS.of(IPV4) == Attribute(0x0001, bytes.fromhex(PLAIN_IPV4))


any_integer = st.integers(-(1 << 70), 1 << 70) | st.integers(-10, 70000)
any_text = st.text(st.characters(exclude_categories=()))
ANY_VALUE: list[tuple[AttributeCodec[Any], st.SearchStrategy[Any]]] = [
    *((codec, any_integer) for codec in (LIFETIME, EVEN_PORT, RESPONSE_PORT, CHANNEL_NUMBER, ICE_CONTROLLED)),
    *((codec, any_text) for codec in (USERNAME, SOFTWARE, ALTERNATE_DOMAIN)),
    *((codec, st.binary()) for codec in (DATA, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, USERHASH)),
    (ERROR_CODE, st.builds(Error, any_integer, any_text)),
    (ADDRESS_ERROR_CODE, st.builds(AddressError, any_integer, any_integer, any_text)),
    (UNKNOWN_ATTRIBUTES, st.lists(any_integer).map(tuple)),
    (PASSWORD_ALGORITHMS, st.lists(st.builds(PasswordAlgorithm, any_integer, st.binary())).map(tuple)),
    (ICMP, st.builds(IcmpError, any_integer, any_integer, st.binary(max_size=6))),
    (TRANSACTION_TRANSMIT_COUNTER, st.builds(TransmitCounter, any_integer, any_integer)),
]


@pytest.mark.parametrize(("codec", "values"), ANY_VALUE, ids=_name)
@settings(deadline=None)
@given(data=st.data())
def test_any_value_comes_back_or_is_an_encode_error(
    codec: AttributeCodec[T], values: st.SearchStrategy[T], data: st.DataObject
) -> None:
    value = data.draw(values)
    try:
        attribute = codec.of(value, KEY)
    except EncodeError:
        return
    assert codec.parse(attribute.value, KEY) == value


def test_the_registry_holds_what_iana_assigns_and_nothing_else() -> None:
    assigned = vectors.registry("attributes")
    known = {codec.type: codec.name for codec in REGISTRY.values()}
    assert known.pop(0x8020) == "XOR-MAPPED-ADDRESS (0x8020)"  # of drafts before RFC 5389: never registered
    assert known == assigned


def test_every_attribute_is_a_constant_of_its_name() -> None:
    for codec in REGISTRY.values():
        name = codec.name.replace(" (0x8020)", "-CLASSIC").replace("-", "_").replace(" ", "_")
        assert getattr(attributes, name) is codec
        assert repr(codec) == f"<{codec.name} 0x{codec.type:04X}>"


def test_error_codes_and_phrases_are_those_of_iana() -> None:
    assigned = vectors.registry("error-codes")
    rfc3489 = {
        430: "Stale Credentials",
        431: "Integrity Check Failure",
        432: "Missing Username",
        433: "Use TLS",
        600: "Global Failure",
    }
    assert {int(code): code.phrase for code in ErrorCode} == assigned | rfc3489
    for code in ErrorCode:
        assert code.name == code.phrase.upper().replace(" ", "_")


def test_an_unregistered_error_code_has_no_phrase() -> None:
    assert ErrorCode(418) == 418
    assert ErrorCode(418).phrase == ""


@pytest.mark.parametrize(
    ("number", "name", "required"),
    [
        (0x0020, "XOR-MAPPED-ADDRESS", True),
        (0x7FFF, "0x7FFF", True),
        (0x8000, "ADDITIONAL-ADDRESS-FAMILY", False),
        (0x8022, "SOFTWARE", False),
        (0xFFFF, "0xFFFF", False),
    ],
)
def test_an_attribute_says_its_name_and_whether_it_must_be_known(
    number: int, name: str, required: bool
) -> None:
    assert attribute_name(number) == name
    assert Attribute(number, b"").comprehension_required is required
