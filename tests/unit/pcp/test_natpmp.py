"""The NAT-PMP codec: exact bytes both ways."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from nattools.endpoint import TransportProtocol
from nattools.errors import DecodeError, EncodeError
from nattools.pcp.natpmp import (
    ErrorResponse,
    ExternalAddressRequest,
    ExternalAddressResponse,
    MappingRequest,
    MappingResponse,
    Opcode,
    Request,
    Response,
    ResultCode,
    UnknownRequest,
    parse_request,
    parse_response,
)

UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP

REQUESTS: list[tuple[Request, str]] = [
    (ExternalAddressRequest(), "0000"),
    (MappingRequest(UDP, 5060, 25060, 300), "0001000013c461e40000012c"),
    (MappingRequest(TCP, 5061, 0, 0), "0002000013c5000000000000"),
]
RESPONSES: list[tuple[Response, str]] = [
    (ExternalAddressResponse(258, IPv4Address("11.22.33.2")), "00800000000001020b162102"),
    (MappingResponse(UDP, 258, 5060, 25060, 300), "008100000000010213c461e40000012c"),
    (MappingResponse(TCP, 258, 5061, 0, 0), "008200000000010213c5000000000000"),
    (ErrorResponse(Opcode.EXTERNAL_ADDRESS, ResultCode.NETWORK_FAILURE, 258), "0080000300000102"),
    (ErrorResponse(Opcode.MAP_UDP, ResultCode.NOT_AUTHORIZED, 258), "0081000200000102"),
    (
        ErrorResponse(Opcode.MAP_UDP, ResultCode.OUT_OF_RESOURCES, 258, 5060),
        "008100040000010213c4000000000000",
    ),
    (ErrorResponse(Opcode(9), ResultCode.UNSUPPORTED_OPCODE, 258), "0089000500000102"),
    (ErrorResponse(Opcode.MAP_TCP, ResultCode(4242), 258), "0082109200000102"),
]


@pytest.mark.parametrize(("value", "wire"), REQUESTS)
def test_a_request_is_these_bytes(value: Request, wire: str) -> None:
    assert not isinstance(value, UnknownRequest)
    assert value.encode().hex() == wire
    assert parse_request(bytes.fromhex(wire)) == value


@pytest.mark.parametrize(("value", "wire"), RESPONSES)
def test_a_response_is_these_bytes(value: Response, wire: str) -> None:
    assert value.encode().hex() == wire
    assert parse_response(bytes.fromhex(wire)) == value


@pytest.mark.parametrize(
    ("wire", "version", "opcode"), [("0009", 0, 9), ("0200" + "00" * 22, 2, 0), ("0101", 1, 1)]
)
def test_a_request_of_another_kind_is_named(wire: str, version: int, opcode: int) -> None:
    assert parse_request(bytes.fromhex(wire)) == UnknownRequest(version, Opcode(opcode))


def test_what_follows_a_message_is_ignored() -> None:
    assert parse_request(bytes.fromhex("0000ffff")) == ExternalAddressRequest()
    assert parse_response(bytes.fromhex("00800000000001020b162102ffff")) == RESPONSES[0][0]


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        ("", "1 bytes wanted"),
        ("00", "1 bytes wanted"),
        ("008000", "2 bytes wanted"),
        ("0080000000000102", "4 bytes wanted"),
        ("00800000000001020b1621", "4 bytes wanted"),
        ("008100000000010213c461e4", "4 bytes wanted"),
        ("0281000000000102", "version 2"),
        ("0000000000000102", "opcode 0 is not"),
        ("0089000000000102", "opcode 9"),
    ],
)
def test_what_is_no_response_is_a_decode_error(wire: str, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        parse_response(bytes.fromhex(wire))


@pytest.mark.parametrize("wire", ["", "00", "0080", "0001000013c461e4"])
def test_what_is_no_request_is_a_decode_error(wire: str) -> None:
    with pytest.raises(DecodeError):
        parse_request(bytes.fromhex(wire))


@pytest.mark.parametrize(
    ("internal", "external", "lifetime_s"),
    [(65536, 0, 0), (-1, 0, 0), (0, 65536, 0), (0, 0, -1), (0, 0, 1 << 32)],
)
def test_what_does_not_fit_is_an_encode_error(internal: int, external: int, lifetime_s: int) -> None:
    with pytest.raises(EncodeError, match="is not between"):
        MappingRequest(UDP, internal, external, lifetime_s)


def test_every_result_code_has_advice() -> None:
    assert len({code.advice for code in ResultCode}) == len(ResultCode)
    assert "not known here" in ResultCode(200).advice
