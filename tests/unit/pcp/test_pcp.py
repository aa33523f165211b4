"""The PCP codec: exact bytes both ways."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.pcp.pcp import (
    PREFER_FAILURE,
    Announce,
    Body,
    Filter,
    Map,
    Opaque,
    Opcode,
    Option,
    OptionCode,
    Peer,
    Request,
    Response,
    ResultCode,
    encode_address,
    parse_address,
    refused_version,
    third_party,
    third_party_address,
)

NONCE = bytes(range(12))
CLIENT = IPv4Address("192.168.77.10")
ANYWHERE = Endpoint.of("0.0.0.0", 5060)
MAPPED = "00000000000000000000ffff"
HEAD = f"0201000000000e10{MAPPED}c0a84d0a"
MAP = f"{NONCE.hex()}1100000013c413c4{MAPPED}00000000"

# A real router's answer, carried over from tailscale's net/portmapper/pcp_test.go (BSD-3-Clause).
REAL_MAP_RESPONSE = bytes.fromhex(
    "0281000000001c2000029bed000000000000000000000000"
    "81700918f1d0fb2d9d4c0abc1100000004d204d2"
    "00000000000000000000ffff87b4aff6"
)


def request(body: Body, *options: Option) -> Request:
    return Request(body, 3600, CLIENT, options)


WANTED = Map(NONCE, 17, 5060, ANYWHERE)
REQUESTS = [
    (Request(Announce(), 0, CLIENT), f"0200000000000000{MAPPED}c0a84d0a"),
    (request(WANTED), HEAD + MAP),
    (request(WANTED, PREFER_FAILURE), HEAD + MAP + "02000000"),
    (
        request(WANTED, Filter(IPv4Network("198.51.100.0/24"), 5060).option()),
        HEAD + MAP + f"03000014007813c4{MAPPED}c6336400",
    ),
    (
        request(WANTED, Filter(IPv6Network("2001:db8::/32")).option()),
        HEAD + MAP + "030000140020000020010db8000000000000000000000000",
    ),
    (request(WANTED, Filter(None).option()), HEAD + MAP + "03000014" + "00" * 20),
    (
        request(WANTED, third_party(IPv4Address("192.168.77.11"))),
        HEAD + MAP + f"01000010{MAPPED}c0a84d0b",
    ),
    (request(WANTED, Option(OptionCode(200), b"abcde")), HEAD + MAP + "c80000056162636465000000"),
    (
        request(Peer(NONCE, 6, 5061, Endpoint.of("0.0.0.0", 0), Endpoint.of("198.51.100.9", 443))),
        f"0202000000000e10{MAPPED}c0a84d0a{NONCE.hex()}0600000013c50000{MAPPED}0000000001bb0000{MAPPED}c6336409",
    ),
    (
        Request(Map(NONCE, 17, 1, Endpoint.of("::", 0)), 1, IPv6Address("2001:db8::1")),
        f"0201000000000001{'20010db8000000000000000000000001'}{NONCE.hex()}1100000000010000{'00' * 16}",
    ),
    (request(Opaque(Opcode(99), b"four")), f"0263000000000e10{MAPPED}c0a84d0a666f7572"),
]


@pytest.mark.parametrize(("value", "wire"), REQUESTS)
def test_a_request_is_these_bytes(value: Request, wire: str) -> None:
    assert value.encode(allow_third_party=True).hex() == wire
    assert Request.parse(bytes.fromhex(wire)) == value


RESPONSES = [
    (
        Response(ResultCode.SUCCESS, Announce(), 0, 7),
        "0280000000000000" + "00000007" + "00" * 12,
    ),
    (
        Response(ResultCode.SUCCESS, Map(NONCE, 17, 5060, Endpoint.of("11.22.33.2", 5060)), 120, 258),
        f"028100000000007800000102{'00' * 12}{NONCE.hex()}1100000013c413c4{MAPPED}0b162102",
    ),
    (
        Response(ResultCode.NO_RESOURCES, Opaque(Opcode.MAP), 30, 7),
        "028100080000001e00000007" + "00" * 12,
    ),
    (
        Response(ResultCode(77), WANTED, 30, 7),
        f"0281004d0000001e00000007{'00' * 12}{MAP}",
    ),
]


@pytest.mark.parametrize(("value", "wire"), RESPONSES)
def test_a_response_is_these_bytes(value: Response, wire: str) -> None:
    assert value.encode().hex() == wire
    assert Response.parse(bytes.fromhex(wire)) == value


def test_a_real_routers_answer_is_read() -> None:
    response = Response.parse(REAL_MAP_RESPONSE)
    assert response.result is ResultCode.SUCCESS
    assert (response.lifetime_s, response.epoch_s) == (7200, 170989)
    assert response.body == Map(
        bytes.fromhex("81700918f1d0fb2d9d4c0abc"), 17, 1234, Endpoint.of("135.180.175.246", 1234)
    )
    assert response.encode() == REAL_MAP_RESPONSE


def test_reserved_fields_and_padding_are_kept_until_the_message_is_another() -> None:
    wire = bytearray.fromhex(HEAD + MAP + "c801000561626364650a0b0c")
    wire[2:4] = b"\xaa\xbb"
    parsed = Request.parse(bytes(wire))
    assert parsed.encode() == bytes(wire)
    assert parsed == request(WANTED, Option(OptionCode(200), b"abcde"))
    again = Request(parsed.body, parsed.lifetime_s, parsed.client, parsed.options)
    assert again.encode().hex() == HEAD + MAP + "c80000056162636465000000"


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        ("", "0 bytes"),
        ("02", "1 bytes"),
        ("0281" + "00" * 21, "23 bytes"),
        ("0281" + "00" * 23, "25 bytes"),
        ("0280" + "00" * 1102, "1104 bytes"),
        ("0181" + "00" * 58, "version 1"),
        ("0080" + "00" * 22, "version 0"),
        ("0201" + "00" * 58, "0x01"),
        ("0281" + "00" * 22, "12 bytes wanted"),
        ("0281" + "00" * 50, "wanted"),
        ("0282" + "00" * 58, "wanted"),
        ("0280" + "00" * 22 + "03000014", "20 bytes wanted, 0 left"),
    ],
)
def test_what_is_no_response_is_a_decode_error(wire: str, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        Response.parse(bytes.fromhex(wire))


def test_a_response_is_no_request() -> None:
    with pytest.raises(DecodeError, match="0x81 is not that of a PCP request"):
        Request.parse(REAL_MAP_RESPONSE)


@pytest.mark.parametrize("data", [b"", bytes(19), bytes(21), b"\x00\x81" + bytes(18)])
def test_a_filter_that_is_none_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Filter.parse(Option(OptionCode.FILTER, data))


@pytest.mark.parametrize(
    "filter_",
    [
        Filter(None),
        Filter(IPv4Network("0.0.0.0/0"), 5060),
        Filter(IPv4Network("198.51.100.7/32")),
        Filter(IPv6Network("2001:db8::/33"), 1),
        Filter(IPv6Network("::/80")),
    ],
)
def test_a_filter_survives_the_wire(filter_: Filter) -> None:
    assert Filter.parse(filter_.option()) == filter_


def test_a_filters_host_bits_do_not_count() -> None:
    data = bytes((0, 120, 0, 0)) + encode_address(IPv4Address("198.51.100.77"))
    assert Filter.parse(Option(OptionCode.FILTER, data)) == Filter(IPv4Network("198.51.100.0/24"))


def test_a_filter_for_all_of_ipv6_cannot_be_said() -> None:
    with pytest.raises(EncodeError, match="::/0"):
        Filter(IPv6Network("::/0"), 5060)


def test_a_mapping_for_another_machine_must_be_allowed() -> None:
    for_another = request(WANTED, third_party(IPv4Address("192.168.77.11")))
    with pytest.raises(EncodeError, match="THIRD_PARTY"):
        for_another.encode()
    received = Request.parse(for_another.encode(allow_third_party=True))
    with pytest.raises(EncodeError, match="THIRD_PARTY"):
        received.encode()


def test_a_third_party_is_read() -> None:
    assert third_party_address(third_party(IPv6Address("2001:db8::7"))) == IPv6Address("2001:db8::7")
    with pytest.raises(DecodeError, match="4 bytes"):
        third_party_address(Option(OptionCode.THIRD_PARTY, bytes(4)))


@pytest.mark.parametrize(
    ("address", "wire"),
    [
        ("192.0.2.1", f"{MAPPED}c0000201"),
        ("0.0.0.0", f"{MAPPED}00000000"),
        ("::", "00" * 16),
        ("2001:db8::1", "20010db8000000000000000000000001"),
    ],
)
def test_an_ipv4_address_travels_as_an_ipv6_one(address: str, wire: str) -> None:
    ip = Endpoint.of(address, 0).ip
    assert encode_address(ip).hex() == wire
    assert parse_address(bytes.fromhex(wire)) == ip


def test_a_scope_stays_at_home() -> None:
    assert parse_address(encode_address(IPv6Address("fe80::1%eth0"))) == IPv6Address("fe80::1")


@pytest.mark.parametrize(
    ("wire", "ours", "version"),
    [
        ("0080000100000000", 2, 0),
        ("0000000100000000", 2, 0),  # RFC 6886 §3.5 draws the opcode as 0
        ("0182000100000000", 2, 1),
        ("028000010000000000000000" + "00" * 12, 0, 2),
        ("00800001", 0, None),
        ("0080000200000000", 2, None),
        ("008000", 2, None),
        ("", 2, None),
    ],
)
def test_either_protocol_reads_the_others_refusal(wire: str, ours: int, version: int | None) -> None:
    assert refused_version(bytes.fromhex(wire), ours=ours) == version


@pytest.mark.parametrize(
    "make",
    [
        lambda: Map(b"short", 17, 1, ANYWHERE),
        lambda: Map(NONCE, 256, 1, ANYWHERE),
        lambda: Map(NONCE, 17, 65536, ANYWHERE),
        lambda: Peer(NONCE, 17, -1, ANYWHERE, ANYWHERE),
        lambda: Request(Announce(), 1 << 32, CLIENT),
        lambda: Request(Announce(), -1, CLIENT),
        lambda: Response(ResultCode(256), Announce(), 0, 0),
        lambda: Response(ResultCode(0), Announce(), 0, 1 << 32),
        lambda: Option(OptionCode(256)),
        lambda: Opaque(Opcode(128)),
        lambda: Filter(None, 65536),
        lambda: request(WANTED, Option(OptionCode(200), bytes(1101))).encode(),
        lambda: request(WANTED, *[Option(OptionCode(200), bytes(500))] * 3).encode(),
        lambda: Response(ResultCode(0), Opaque(Opcode(9), bytes(1077)), 0, 0).encode(),
    ],
)
def test_what_does_not_fit_is_an_encode_error(make: object) -> None:
    assert callable(make)
    with pytest.raises(EncodeError):
        make()


def test_every_result_code_has_advice() -> None:
    assert len({code.advice for code in ResultCode}) == len(ResultCode)
    assert "not known here" in ResultCode(200).advice


def test_a_nonce_is_not_shown() -> None:
    assert NONCE.hex() not in repr(WANTED)
    assert repr(NONCE) not in repr(request(WANTED))
