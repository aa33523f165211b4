"""The promise of the PCP and NAT-PMP codecs: bytes give a value or a `DecodeError`, whoever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from random import Random

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError, EncodeError
from nattools.pcp import natpmp, pcp
from nattools.pcp.announcement import Announcements
from nattools.pcp.request import ExternalAddressQuestion, MappingQuestion, PcpQuestion, Question
from tests.fuzz.mutator import Target

GATEWAY = Endpoint.of("192.168.77.1", pcp.SERVER_PORT)
CLIENT = IPv4Address("192.168.77.10")
NONCE = bytes(range(pcp.NONCE_BYTES))
EXTERNAL = Endpoint.of("11.22.33.2", 5060)
MAP = pcp.Map(NONCE, 17, 5060, EXTERNAL)
PEER = pcp.Peer(NONCE, 17, 5060, EXTERNAL, Endpoint.of("2001:db8::9", 443))
OPTIONS = (
    pcp.third_party(IPv4Address("192.168.77.11")),
    pcp.PREFER_FAILURE,
    pcp.Filter(IPv4Network("198.51.100.0/24"), 5060).option(),
    pcp.Option(pcp.OptionCode(200), b"abcde"),
)
BODIES: tuple[pcp.Body, ...] = (pcp.Announce(), MAP, PEER, pcp.Opaque(pcp.Opcode(99), b"four"))
MAPPING = natpmp.MappingRequest(TransportProtocol.UDP, 5060, 5060, 3600)
QUESTIONS: tuple[Question[object], ...] = (
    *(PcpQuestion(pcp.Request(body, 3600, CLIENT), "PCP request") for body in BODIES),
    ExternalAddressQuestion(),
    MappingQuestion(MAPPING, "NAT-PMP request"),
)


def check(data: bytes) -> str:
    """Hold the codecs to their promise on `data`; say what it was, to the first that could read it."""
    for question in QUESTIONS:
        with suppress(DecodeError):
            question.read(data)
    with suppress(DecodeError):
        Announcements(GATEWAY.ip).receive(data, GATEWAY, now=0)
    readers = (_check_request, _check_response, _check_natpmp_request, _check_natpmp_response)
    for reader in readers:
        with suppress(DecodeError):
            reader(data)
            return reader.__name__.removeprefix("_check_")
    return "DecodeError"


def _check_request(data: bytes) -> None:
    request = pcp.Request.parse(data)
    assert request.encode(allow_third_party=True) == data
    rebuilt = pcp.Request(request.body, request.lifetime_s, request.client, request.options)
    assert pcp.Request.parse(rebuilt.encode(allow_third_party=True)) == request
    _check_options(request.options)


def _check_response(data: bytes) -> None:
    response = pcp.Response.parse(data)
    assert response.encode() == data
    rebuilt = pcp.Response(
        response.result, response.body, response.lifetime_s, response.epoch_s, response.options
    )
    assert pcp.Response.parse(rebuilt.encode()) == response
    _check_options(response.options)


def _check_options(options: Sequence[pcp.Option]) -> None:
    for option in options:
        with suppress(DecodeError):
            address = pcp.third_party_address(option)
            assert pcp.third_party_address(pcp.third_party(address)) == address
        with suppress(DecodeError, EncodeError):
            read = pcp.Filter.parse(option)
            assert pcp.Filter.parse(read.option()) == read


def _check_natpmp_request(data: bytes) -> None:
    request = natpmp.parse_request(data)
    if not isinstance(request, natpmp.UnknownRequest):
        assert natpmp.parse_request(request.encode()) == request


def _check_natpmp_response(data: bytes) -> None:
    response = natpmp.parse_response(data)
    assert natpmp.parse_response(response.encode()) == response


def cut_short(data: bytearray, random: Random) -> None:
    """Leave a NAT-PMP message's worth of bytes."""
    del data[random.choice((2, 4, 8, 12, 16, 24)) :]


def other_version(data: bytearray, random: Random) -> None:
    """Speak the other protocol, or none."""
    if data:
        data[0] = random.choice((natpmp.VERSION, natpmp.VERSION, 1, pcp.VERSION, 3))


def other_opcode(data: bytearray, random: Random) -> None:
    """Ask for, or answer, something else."""
    if len(data) > 1:
        data[1] = random.choice((0, pcp.RESPONSE_BIT)) | random.choice((0, 1, 1, 2, 2, 9))


def lie(data: bytearray, random: Random) -> None:
    """Change the length that the last option claims, if there is one."""
    if len(data) > 64:
        claim = random.choice((0, 1, 16, 20, random.randrange(64), random.randrange(0x10000)))
        data[62:64] = claim.to_bytes(2, "big")


def repair(data: bytearray, random: Random) -> None:
    """Make the frame fit: version 2 in whole words."""
    data += bytes(-len(data) % 4)
    if data:
        data[0] = pcp.VERSION


def seeds() -> Sequence[bytes]:
    """One message of each kind, with options and without."""
    success, failure = pcp.ResultCode.SUCCESS, pcp.ResultCode.NO_RESOURCES
    by_pcp = (
        *(
            pcp.Request(body, 3600, CLIENT, options).encode(allow_third_party=True)
            for body in BODIES
            for options in ((), OPTIONS)
        ),
        *(
            pcp.Response(result, body, 3600, 77, options).encode()
            for result in (success, failure)
            for body in BODIES
            for options in ((), OPTIONS)
        ),
        pcp.Response(failure, pcp.Opaque(pcp.Opcode.MAP), 30, 77).encode(),
    )
    by_natpmp = (
        natpmp.ExternalAddressRequest(),
        MAPPING,
        natpmp.ExternalAddressResponse(77, IPv4Address("11.22.33.2")),
        natpmp.MappingResponse(TransportProtocol.TCP, 77, 5060, 5061, 3600),
        natpmp.ErrorResponse(natpmp.Opcode.MAP_UDP, natpmp.ResultCode.NOT_AUTHORIZED, 77, 5060),
        natpmp.ErrorResponse(natpmp.Opcode(9), natpmp.ResultCode.UNSUPPORTED_OPCODE, 77),
    )
    return (*by_pcp, *(message.encode() for message in by_natpmp))


TARGET = Target("pcp_codec", seeds, check, (cut_short, other_version, other_opcode, lie), repair)
