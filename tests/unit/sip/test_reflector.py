"""The reflector: what comes back, to whom, and how much of it at the most."""

from __future__ import annotations

import re

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage
from nattools.sip.reflector import (
    MOST_REQUEST_BYTES,
    REFLECTION_TYPE,
    RateLimit,
    Reflector,
    Refusal,
    reflect,
)

SOURCE = Endpoint.of("203.0.113.1", 1024)
REQUEST = (
    b"OPTIONS sip:203.0.113.10:5060 SIP/2.0\r\n"
    b"v: SIP/2.0/UDP 192.168.0.108:40000;rport;branch=z9hG4bK1\r\n"
    b"Max-Forwards: 70\r\n"
    b"From: <sip:probe@192.168.0.108:40000>;tag=1\r\n"
    b"To: <sip:203.0.113.10:5060>\r\n"
    b"Call-ID: 1@192.168.0.108\r\n"
    b"CSeq: 1 OPTIONS\r\n"
    b"Contact: <sip:probe@192.168.0.108:40000>\r\n"
    b"X-Padding: ......................................................................\r\n"
    b"Content-Length: 0\r\n"
    b"\r\n"
)
TINY = b"A x:y SIP/2.0\r\nv:SIP/2.0/UDP a\r\nf:x:y;tag=1\r\nt:x:y\r\ni:1\r\nCSeq:1 A\r\n\r\n"
PATIENT = RateLimit(per_source_at_once=10_000, all_at_once=10_000)


def reflector(limit: RateLimit = PATIENT) -> Reflector:
    return Reflector(entropy=bytes, limit=limit)


def answer(request: bytes, source: Endpoint = SOURCE) -> SipMessage:
    data = reflector().answer(request, source, now=0.0)
    assert data is not None
    return SipMessage.parse(data)


def refusal(data: bytes) -> Refusal:
    asked = reflector()
    assert asked.answer(data, SOURCE, now=0.0) is None
    [reason] = asked.refused
    return reason


def test_the_request_comes_back_octet_for_octet() -> None:
    for request in (REQUEST, REQUEST.replace(b"X-Padding: .", b"X-Padding: \xff\x00")):
        response = answer(request)
        assert response.status_code == 200
        assert response.content_type == REFLECTION_TYPE
        assert reflect(response.body) == request
        assert response.body_span.end == len(response.data)


def test_nothing_in_the_body_is_an_address_to_anybody() -> None:
    body = answer(REQUEST).body
    assert len(body) == len(REQUEST)
    assert not re.search(rb"[\x00-\x7f]", body)


@pytest.mark.parametrize(
    ("asked", "source", "told"),
    [
        (b";rport;branch=z9hG4bK1", SOURCE, b";rport=1024;branch=z9hG4bK1;received=203.0.113.1"),
        (b";branch=z9hG4bK1", SOURCE, b";branch=z9hG4bK1;received=203.0.113.1"),
        (b";branch=z9hG4bK1;rport", SOURCE, b";branch=z9hG4bK1;rport=1024;received=203.0.113.1"),
        (
            b";received=192.168.0.108;rport=40000;branch=z9hG4bK1",
            SOURCE,
            b";received=203.0.113.1;rport=1024;branch=z9hG4bK1",
        ),
        (
            b";rport;branch=z9hG4bK1, SIP/2.0/UDP 192.0.2.9;rport;branch=z9hG4bK0",
            SOURCE,
            b";rport=1024;branch=z9hG4bK1;received=203.0.113.1, SIP/2.0/UDP 192.0.2.9;rport;branch=z9hG4bK0",
        ),
        (
            b";rport;branch=z9hG4bK1",
            Endpoint.of("2001:db8::1", 1024),
            b";rport=1024;branch=z9hG4bK1;received=2001:db8::1",
        ),
    ],
)
def test_the_top_via_says_where_the_request_came_from(asked: bytes, source: Endpoint, told: bytes) -> None:
    request = REQUEST.replace(b";rport;branch=z9hG4bK1", asked)
    response = answer(request, source)
    assert response.value(response.header("via")) == b"SIP/2.0/UDP 192.168.0.108:40000" + told
    assert reflect(response.body) == request


def test_the_client_finds_its_transaction_in_the_response() -> None:
    response = answer(REQUEST)
    assert response.branch == b"z9hG4bK1"
    assert response.call_id == b"1@192.168.0.108"
    assert response.cseq == (1, "OPTIONS")
    assert (response.from_tag, response.to_tag) == (b"1", b"00000000")


def test_an_invite_is_refused_and_so_no_call() -> None:
    response = answer(REQUEST.replace(b"OPTIONS", b"INVITE"))
    assert response.status_code == 488
    assert reflect(response.body) == REQUEST.replace(b"OPTIONS", b"INVITE")


@pytest.mark.parametrize("method", [b"REGISTER", b"MESSAGE", b"BYE", b"WHATEVER"])
def test_any_method_is_reflected(method: bytes) -> None:
    assert answer(REQUEST.replace(b"OPTIONS", method)).method == method.decode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Refusal.NOT_SIP),
        (b"\r\n\r\n", Refusal.NOT_SIP),
        (b"GET / HTTP/1.1\r\n\r\n", Refusal.NOT_SIP),
        (REQUEST.replace(b"OPTIONS sip:203.0.113.10:5060 SIP/2.0", b"SIP/2.0 200 OK"), Refusal.NOT_A_REQUEST),
        (REQUEST.replace(b"OPTIONS", b"ACK"), Refusal.ACK),
        (REQUEST.replace(b"1 OPTIONS", b"1 INVITE"), Refusal.INCOMPLETE),
        *(
            (re.sub(rb"(?m)^%b: .*\r\n" % name, b"", REQUEST), Refusal.INCOMPLETE)
            for name in (b"v", b"From", b"To", b"Call-ID", b"CSeq")
        ),
        (REQUEST.replace(b">;tag=1", b">"), Refusal.INCOMPLETE),
        (REQUEST.replace(b"SIP/2.0/UDP 192", b"192"), Refusal.NOT_SIP),
        (REQUEST.replace(b"X-Padding: .", b"X-Padding: " + b"." * MOST_REQUEST_BYTES), Refusal.TOO_LARGE),
        (TINY, Refusal.TOO_SMALL),
    ],
)
def test_what_is_no_good_request_gets_no_answer(data: bytes, reason: Refusal) -> None:
    assert refusal(data) is reason


def test_its_own_answer_gets_no_answer() -> None:
    assert refusal(answer(REQUEST).data) is Refusal.NOT_A_REQUEST


def admitted(asked: Reflector, times: int, *, now: float, source: Endpoint = SOURCE) -> int:
    return sum(asked.answer(REQUEST, source, now=now) is not None for _ in range(times))


def test_a_source_gets_so_many_at_once_and_then_so_many_a_second() -> None:
    asked = reflector(RateLimit(per_source_per_s=5, per_source_at_once=8))
    assert admitted(asked, 20, now=100.0) == 8
    assert admitted(asked, 20, now=102.0) == 10 - 2  # no more than at once, however long it was silent
    assert admitted(asked, 20, now=103.0) == 5
    assert asked.refused[Refusal.TOO_MANY] == 12 + 12 + 15
    assert admitted(asked, 1, now=103.0, source=Endpoint.of("203.0.113.2", 1024)) == 1


def test_another_port_or_a_neighbour_in_ipv6_is_the_same_source() -> None:
    asked = reflector(RateLimit(per_source_at_once=1))
    assert admitted(asked, 1, now=0.0) == 1
    assert admitted(asked, 1, now=0.0, source=SOURCE.with_port(1025)) == 0
    assert admitted(asked, 1, now=0.0, source=Endpoint.of("2001:db8::1", 1)) == 1
    assert admitted(asked, 1, now=0.0, source=Endpoint.of("2001:db8::2", 1)) == 0
    assert admitted(asked, 1, now=0.0, source=Endpoint.of("2001:db8:0:1::1", 1)) == 1


def test_all_together_get_so_many_whatever_they_call_themselves() -> None:
    asked = reflector(RateLimit(all_per_s=10, all_at_once=50))
    sources = [Endpoint.of(f"198.51.{n // 250}.{n % 250}", 5060) for n in range(500)]
    assert sum(admitted(asked, 1, now=0.0, source=source) for source in sources) == 50
    assert sum(admitted(asked, 1, now=1.0, source=source) for source in sources) == 10


def test_what_is_kept_of_sources_is_bounded() -> None:
    asked = reflector(RateLimit(all_at_once=1))
    for n in range(5000):
        asked.answer(REQUEST, Endpoint.of(f"198.51.{n // 250}.{n % 250}", 5060), now=0.0)
    assert len(asked._tokens._sources) == 4096


def test_the_summary_counts() -> None:
    asked = reflector()
    asked.answer(REQUEST, SOURCE, now=0.0)
    assert asked.summary() == "1 SIP requests reflected; not: none"
    for _ in range(2):
        asked.answer(b"hello", SOURCE, now=0.0)
    assert asked.summary() == "1 SIP requests reflected; not: 2 not SIP"
