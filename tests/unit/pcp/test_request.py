"""One request to a gateway: its timetable, and what it takes for an answer."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import NoResponseError, PcpError
from nattools.machine import Machine
from nattools.pcp import natpmp, pcp
from nattools.pcp.request import (
    Answered,
    ExternalAddressQuestion,
    Failed,
    GatewayRequest,
    MappingQuestion,
    PcpQuestion,
    Question,
    without_scope,
)

GATEWAY = Endpoint.of("192.168.77.1", 5351)
CLIENT = IPv4Address("192.168.77.10")
NONCE = bytes(range(12))
EXTERNAL_ADDRESS = IPv4Address("11.22.33.2")
EXTERNAL = Endpoint(EXTERNAL_ADDRESS, 5060)
UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP


def middle(size: int) -> bytes:
    return b"\x7f\xff"[:size]


ASKED = pcp.Map(NONCE, 17, 5060, Endpoint.of("0.0.0.0", 5060))
GRANTED = replace(ASKED, external=EXTERNAL)
MAP = PcpQuestion(pcp.Request(ASKED, 3600, CLIENT), "PCP MAP request")
UNMAP = PcpQuestion(pcp.Request(ASKED, 0, CLIENT), "PCP removal")
REMOTE = Endpoint.of("198.51.100.9", 443)
PEER_BODY = pcp.Peer(NONCE, 6, 5061, EXTERNAL, REMOTE)
PEER = PcpQuestion(pcp.Request(PEER_BODY, 3600, CLIENT), "PCP PEER request")
ANNOUNCE = PcpQuestion(pcp.Request(pcp.Announce(), 0, CLIENT), "PCP ANNOUNCE request")
ADDRESS = ExternalAddressQuestion()
MAPPING = MappingQuestion(natpmp.MappingRequest(UDP, 5060, 5060, 3600), "NAT-PMP request")
REMOVAL = MappingQuestion(natpmp.MappingRequest(UDP, 5060, 0, 0), "NAT-PMP removal")


def ok(body: pcp.Body, lifetime_s: int = 3600) -> bytes:
    return pcp.Response(pcp.ResultCode.SUCCESS, body, lifetime_s, 77).encode()


def no(body: pcp.Body, result: int = 7) -> bytes:
    return pcp.Response(pcp.ResultCode(result), body, 30, 77).encode()


def mapping(internal_port: int = 5060, lifetime_s: int = 3600) -> bytes:
    return natpmp.MappingResponse(UDP, 77, internal_port, 5060, lifetime_s).encode()


def request_for(question: Question[object], *, timeout_s: float = 3.0) -> GatewayRequest[object]:
    return GatewayRequest(question, GATEWAY, now=100.0, entropy=middle, timeout_s=timeout_s)


def sending_times(request: GatewayRequest[object]) -> tuple[list[float], float]:
    """When it sends, and when it gives up, from its start on, if nobody ever answers."""
    times, now = [], 100.0
    while (due := request.timeout_at()) is not None:
        times += [round(now - 100, 2)] * len(request.transmits())
        now = due
        request.handle_timeout(now=now)
    return times, round(now - 100, 2)


@pytest.mark.parametrize(
    ("timeout_s", "times"),
    [(3.0, [0, 0.25, 0.75, 1.75]), (0.2, [0]), (0.5, [0, 0.25]), (0.0, [0])],
)
def test_it_is_sent_again_at_doubling_intervals_until_the_time_is_over(
    timeout_s: float, times: list[float]
) -> None:
    request = request_for(MAP, timeout_s=timeout_s)
    assert sending_times(request) == (times, timeout_s)
    event = request.next_event()
    assert isinstance(event, Failed)
    assert isinstance(event.error, NoResponseError)
    assert event.transmissions == len(times)
    assert f"sent {len(times)} times in {timeout_s:.1f} s" in str(event.error)


def test_intervals_are_spread_by_a_tenth() -> None:
    early: GatewayRequest[object] = GatewayRequest(MAP, GATEWAY, now=100.0, entropy=bytes, timeout_s=1.0)
    late: GatewayRequest[object] = GatewayRequest(
        MAP, GATEWAY, now=100.0, entropy=lambda size: b"\xff" * size, timeout_s=1.0
    )
    assert early.timeout_at() == pytest.approx(100.225)
    assert late.timeout_at() == pytest.approx(100.275)


def test_a_late_driver_causes_no_burst() -> None:
    request = request_for(MAP)
    request.transmits()
    request.handle_timeout(now=102.0)
    assert len(request.transmits()) == 1


def test_it_is_a_machine() -> None:
    machine: Machine[object] = request_for(MAP)
    (sent,) = machine.transmits()
    assert (sent.data, sent.destination) == (MAP.data, GATEWAY)


GRANTS: list[tuple[Question[object], bytes]] = [
    (MAP, ok(GRANTED)),
    (MAP, ok(replace(GRANTED, external=Endpoint.of("11.22.33.2", 1)), 120)),
    (UNMAP, ok(ASKED, 0)),
    (PEER, ok(PEER_BODY)),
    (ANNOUNCE, ok(pcp.Announce(), 0)),
    (ADDRESS, natpmp.ExternalAddressResponse(77, EXTERNAL_ADDRESS).encode()),
    (MAPPING, mapping()),
    (REMOVAL, mapping(lifetime_s=0)),
]


@pytest.mark.parametrize(("question", "data"), GRANTS)
def test_its_answer_ends_it(question: Question[object], data: bytes) -> None:
    request = request_for(question)
    request.receive(data, GATEWAY, now=100.5)
    event = request.next_event()
    assert isinstance(event, Answered)
    assert (event.epoch_s, event.rtt_s, event.transmissions) == (77, 0.5, 1)
    assert request.timeout_at() is None
    assert request.next_event() is None


@pytest.mark.parametrize(("question", "data"), GRANTS)
@pytest.mark.parametrize(
    "source",
    [Endpoint.of("192.168.77.2", 5351), Endpoint.of("192.168.77.1", 5350), Endpoint.of("11.22.33.2", 5351)],
)
def test_an_answer_from_elsewhere_is_passed_over_and_told(
    question: Question[object], data: bytes, source: Endpoint
) -> None:
    request = request_for(question)
    request.receive(data, source, now=100.1)
    assert request.next_event() is None
    request.handle_timeout(now=103)
    event = request.next_event()
    assert isinstance(event, Failed)
    assert f"an answer came from {source}, which is not who was asked" in str(event.error)


@pytest.mark.parametrize(
    ("question", "data"),
    [
        (MAP, ok(replace(GRANTED, nonce=bytes(12)))),
        (MAP, ok(replace(GRANTED, protocol=6))),
        (MAP, ok(replace(GRANTED, internal_port=5061))),
        (MAP, no(replace(GRANTED, nonce=bytes(12)))),
        (MAP, ok(GRANTED, 0)),  # the late answer to a removal
        (MAP, ok(pcp.Announce())),
        (MAP, ok(PEER_BODY)),
        (UNMAP, ok(GRANTED, 3600)),  # the late answer to the mapping
        (PEER, ok(replace(PEER_BODY, remote=REMOTE.with_port(80)))),
        (PEER, ok(replace(PEER_BODY, nonce=bytes(12)))),
        (ANNOUNCE, ok(GRANTED)),
        (ADDRESS, mapping()),
        (ADDRESS, natpmp.ErrorResponse(natpmp.Opcode.MAP_UDP, natpmp.ResultCode(2), 77).encode()),
        (MAPPING, mapping(internal_port=5061)),
        (MAPPING, mapping(lifetime_s=0)),
        (MAPPING, natpmp.MappingResponse(TCP, 77, 5060, 5060, 3600).encode()),
        (MAPPING, natpmp.ErrorResponse(natpmp.Opcode.MAP_UDP, natpmp.ResultCode(2), 77, 5061).encode()),
        (MAPPING, natpmp.ExternalAddressResponse(77, EXTERNAL_ADDRESS).encode()),
        (REMOVAL, mapping()),
    ],
)
def test_the_answer_to_something_else_is_passed_over(question: Question[object], data: bytes) -> None:
    request = request_for(question)
    request.receive(data, GATEWAY, now=100.1)
    assert request.next_event() is None
    assert request.timeout_at() is not None


@pytest.mark.parametrize("data", [b"", b"\x02", bytes(60), b"\xff" * 60, ok(GRANTED)[:-4], MAP.data])
def test_noise_is_passed_over_and_told(data: bytes) -> None:
    request = request_for(MAP)
    request.receive(data, GATEWAY, now=100.1)
    request.receive(data, GATEWAY, now=100.1, socket="another")
    assert request.next_event() is None
    request.handle_timeout(now=103)
    event = request.next_event()
    assert isinstance(event, Failed)
    assert "what came from 192.168.77.1:5351 is no answer" in str(event.error)


def error_of(request: GatewayRequest[object]) -> tuple[PcpError, Failed]:
    event = request.next_event()
    assert isinstance(event, Failed)
    assert isinstance(event.error, PcpError)
    return event.error, event


@pytest.mark.parametrize("code", [code for code in pcp.ResultCode if code])
@pytest.mark.parametrize("body", [ASKED, pcp.Opaque(pcp.Opcode.MAP)])
def test_each_pcp_refusal_says_what_to_do_and_for_how_long_it_lasts(
    code: pcp.ResultCode, body: pcp.Body
) -> None:
    request = request_for(MAP)
    request.receive(no(body, code), GATEWAY, now=100.1)
    error, event = error_of(request)
    assert error.code is code
    assert str(error) == (
        f"192.168.77.1 refused the PCP MAP request with {code.name} ({code.value}): {code.advice}; "
        "the same will be refused for 30 s"
    )
    assert (event.epoch_s, event.retry_after_s) == (77, 30)


@pytest.mark.parametrize("code", [code for code in natpmp.ResultCode if code])
@pytest.mark.parametrize("port", [5060, None])
def test_each_nat_pmp_refusal_says_what_to_do(code: natpmp.ResultCode, port: int | None) -> None:
    request = request_for(MAPPING)
    request.receive(natpmp.ErrorResponse(natpmp.Opcode.MAP_UDP, code, 77, port).encode(), GATEWAY, now=100.1)
    error, event = error_of(request)
    assert error.code is code
    assert code.advice in str(error)
    assert (event.epoch_s, event.retry_after_s) == (77, None)


def test_a_refused_question_for_the_address_says_so() -> None:
    request = request_for(ADDRESS)
    refusal = natpmp.ErrorResponse(natpmp.Opcode.EXTERNAL_ADDRESS, natpmp.ResultCode.NETWORK_FAILURE, 77)
    request.receive(refusal.encode(), GATEWAY, now=100.1)
    error, _ = error_of(request)
    assert error.code is natpmp.ResultCode.NETWORK_FAILURE


def test_a_gateway_with_nat_pmp_only_is_told_apart() -> None:
    request = request_for(MAP)
    request.receive(bytes.fromhex("0081000100000063"), GATEWAY, now=100.1)
    error, event = error_of(request)
    assert error.code is pcp.ResultCode.UNSUPP_VERSION
    assert "speaks NAT-PMP and no PCP" in str(error)
    assert event.epoch_s is None


def test_a_gateway_with_another_pcp_only_is_told_apart() -> None:
    request = request_for(ANNOUNCE)
    request.receive(bytes.fromhex("01800001") + bytes(20), GATEWAY, now=100.1)
    error, _ = error_of(request)
    assert "speaks PCP version 1 only" in str(error)


@pytest.mark.parametrize("question", [ADDRESS, MAPPING])
def test_a_gateway_with_pcp_only_is_told_apart(question: Question[object]) -> None:
    request = request_for(question)
    request.receive(bytes.fromhex("02800001") + bytes(20), GATEWAY, now=100.1)
    error, _ = error_of(request)
    assert error.code is natpmp.ResultCode.UNSUPPORTED_VERSION
    assert "speaks PCP version 2 and no NAT-PMP" in str(error)


def test_a_second_answer_is_nothing() -> None:
    request = request_for(MAP)
    request.receive(ok(GRANTED), GATEWAY, now=100.1)
    request.receive(ok(GRANTED), GATEWAY, now=100.2)
    assert isinstance(request.next_event(), Answered)
    assert request.next_event() is None
    request.handle_timeout(now=200)
    assert request.next_event() is None


def test_a_hard_icmp_error_ends_it_at_once() -> None:
    request = request_for(MAP)
    request.handle_unreachable("nothing listens there", hard=True)
    event = request.next_event()
    assert isinstance(event, Failed)
    assert isinstance(event.error, NoResponseError)
    assert "failed, nothing listens there: the router has no PCP" in str(event.error)
    request.handle_unreachable("nothing listens there", hard=True)
    assert request.next_event() is None


def test_a_soft_icmp_error_is_told_in_the_end() -> None:
    request = request_for(MAP)
    request.handle_unreachable("no route to host", hard=False)
    assert request.next_event() is None
    request.handle_timeout(now=103)
    event = request.next_event()
    assert isinstance(event, Failed)
    assert "the network reports: no route to host" in str(event.error)


def test_a_link_local_gateway_answers_with_or_without_its_scope() -> None:
    gateway = Endpoint.of("fe80::1%eth0", 5351)
    for source in (gateway, Endpoint.of("fe80::1", 5351)):
        request: GatewayRequest[object] = GatewayRequest(
            MAP, gateway, now=100.0, entropy=middle, timeout_s=3.0
        )
        (sent,) = request.transmits()
        assert sent.destination == gateway
        request.receive(ok(GRANTED), source, now=100.1)
        assert isinstance(request.next_event(), Answered)
    assert without_scope(gateway) == Endpoint.of("fe80::1", 5351)
