"""What is dropped unread, and which calls are too many."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.session.guard import Guard, Refused
from nattools.session.settings import GateSettings
from tests.unit.session.proxy_desk import BODY, request

A = Endpoint.of("203.0.113.9", 5060)
B = Endpoint.of("203.0.113.10", 5060)
ANSWER = b"SIP/2.0 200 OK\r\n\r\n"


def guard(requests_per_second: float = 10, **words: object) -> Guard:
    settings = GateSettings(requests_per_second=requests_per_second, **words)  # type: ignore[arg-type]  # a table's
    return Guard(settings)


def passed(guard: Guard, source: Endpoint, number: int, *, now: float, data: bytes = b"OPTIONS x") -> int:
    """How many of as many messages from `source` may be read."""
    return sum(guard.refuses(data, source, now=now) is None for _ in range(number))


# --- size and rate ---


def test_what_is_larger_than_it_may_be_is_dropped() -> None:
    it = guard(most_message_bytes=2000)
    assert it.refuses(request(body=BODY), A, now=0) is None
    assert it.refuses(b"x" * 2001, A, now=0) is Refused.TOO_LARGE
    assert it.counters == {"oversized": 1}


def test_a_source_has_its_rate_and_four_seconds_of_it_at_once() -> None:
    it = guard(requests_per_second=10)
    assert passed(it, A, 100, now=50) == 40
    assert passed(it, A, 100, now=51) == 10
    assert passed(it, B, 100, now=51) == 40
    assert passed(it, A, 100, now=60) == 40
    assert it.counters["flooding"] == 100 * 4 - 40 * 3 - 10


def test_ports_of_one_address_share_its_rate_and_so_do_addresses_of_one_64() -> None:
    it = guard(requests_per_second=10)
    assert sum(passed(it, A.with_port(port), 1, now=0) for port in range(1, 200)) == 40
    hosts = [Endpoint.of(f"2001:db8:0:1::{host:x}", 5060) for host in range(1, 200)]
    assert sum(passed(it, host, 1, now=0) for host in hosts) == 40
    assert passed(it, Endpoint.of("2001:db8:0:2::1", 5060), 1, now=0) == 1
    assert passed(it, Endpoint.of("::ffff:203.0.113.9", 5060), 1, now=0) == 0


def test_a_large_message_counts_as_several() -> None:
    it = guard(requests_per_second=10)
    large = b"x" * 10_000
    assert passed(it, A, 100, now=0, data=large) == 8
    it.know(B)
    assert passed(it, B, 100, now=0, data=large) == 8


def test_who_is_known_is_heard_while_others_flood_from_the_same_address() -> None:
    it = guard(requests_per_second=10)
    it.know(A)
    assert passed(it, A.with_port(6000), 100, now=0) == 40
    assert passed(it, A, 100, now=0) == 40
    it.know(A)
    it.forget(A)
    assert passed(it, A, 100, now=1) == 10
    it.forget(A)
    assert passed(it, A, 100, now=1) == 10  # it is the address's again
    it.forget(A)  # once too often


def test_answers_of_who_is_known_do_not_count_and_those_of_strangers_do() -> None:
    it = guard(requests_per_second=10)
    it.know(A)
    assert passed(it, A, 100, now=0, data=ANSWER) == 100
    assert passed(it, B, 100, now=0, data=ANSWER) == 40


def test_who_is_trusted_is_not_limited_but_in_size() -> None:
    it = guard(requests_per_second=1, most_message_bytes=1024, calls_per_source=1)
    it.trust(A)
    it.know(A)
    it.forget(A)
    assert passed(it, A, 1000, now=0) == 1000
    assert it.refuses(b"x" * 1025, A, now=0) is Refused.TOO_LARGE
    it.call_began(1, "", A)
    assert it.may_call("", A) is None


def test_a_flood_from_everywhere_leaves_room_for_who_is_known() -> None:
    it = guard(requests_per_second=10)
    it.know(A)
    strangers = [
        Endpoint.of(f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}", 9) for place in range(5000)
    ]
    heard = sum(passed(it, stranger, 1, now=0) for stranger in strangers)
    assert 10 * 20 * 4 <= heard <= 10 * 20 * 4 + 1
    assert passed(it, A, 10, now=0) == 10
    assert passed(it, B, 1, now=1) == 1  # and later for others, too


def test_sources_of_long_ago_are_forgotten() -> None:
    it = guard(requests_per_second=1000)
    for place in range(3000):
        it.refuses(b"OPTIONS x", Endpoint.of(f"10.0.{place >> 8}.{place & 255}", 9), now=place / 10)
    assert len(it._full_at) + len(it._full_at_before) < 100
    assert passed(it, A, 5000, now=301) == 4000
    assert passed(it, A, 5000, now=302) == 1000  # who is busy is not forgotten
    assert passed(it, A, 5000, now=305.5) == 3500


def test_a_wrong_password_counts_as_many_requests() -> None:
    for is_known in (False, True):
        it = guard(requests_per_second=10)
        if is_known:
            it.know(A)
        guesses = 0
        for tenth in range(1000):
            if it.refuses(b"REGISTER", A, now=tenth / 10) is None:
                it.charge(A, now=tenth / 10)
                guesses += 1
        assert 38 <= guesses <= 42  # in 100 s
        assert it.counters["guesses"] == guesses
        assert passed(it, B, 40, now=100) == 40
    it.trust(A)
    it.charge(A, now=100)
    assert passed(it, A, 1000, now=100) == 1000


# --- scanners ---


@pytest.mark.parametrize(
    "name",
    [
        "friendly-scanner",
        "Friendly-Scanner 1.0",
        "sipcli/v1.8",
        "VaxSIPUserAgent/3.1",
        "pplsip",
        "sipvicious",
        "sundayddr",
        "Mozilla (sip-scan)",
    ],
)
def test_scanners_are_dropped_and_their_address_goes_unheard_for_a_while(name: str) -> None:
    it = guard()
    scan = request("OPTIONS", headers=[("Max-Forwards", "70"), ("user-agent", name)])
    assert it.refuses(scan, A, now=0) is Refused.SCANNER
    assert it.refuses(request(), A.with_port(99), now=299) is Refused.SCANNER
    assert it.refuses(request(), B, now=299) is None
    assert it.refuses(request(), A, now=301) is None
    assert it.counters == {"scanners": 2}


@pytest.mark.parametrize(
    "data",
    [
        request(headers=[("User-Agent", "Linphone/3 (smart, kiwarts)")]),
        request(headers=[("Subject", "friendly-scanner")]),
        request(body=b"\r\nUser-Agent friendly scanner"),
        request(headers=[("User-Agent", "Grandstream"), ("Subject", "sipvicious")]),
        request("sipvicious"),
        b"",
        b"\nUser-Agent:",
        b'\nFrom: "',
    ],
)
def test_others_are_not_taken_for_scanners(data: bytes) -> None:
    assert guard().refuses(data, A, now=0) is None


def test_sipvicious_is_known_by_its_from() -> None:
    scan = request("OPTIONS").replace(
        b"From: <sip:alice@example.com>", b'From: "sipvicious"<sip:100@1.1.1.1>'
    )
    assert guard().refuses(scan, A, now=0) is Refused.SCANNER


def test_nobody_silences_an_address_that_a_phone_is_registered_from() -> None:
    it = guard()
    it.know(A)
    scan = request("OPTIONS", headers=[("User-Agent", "sipvicious")])
    assert it.refuses(scan, A.with_port(7), now=0) is Refused.SCANNER
    assert it.refuses(request(), A, now=1) is None
    assert it.refuses(request(), A.with_port(8), now=1) is None


def test_only_so_many_scanners_are_remembered() -> None:
    it = guard(requests_per_second=100_000)
    scan = request("OPTIONS", headers=[("User-Agent", "sipvicious")])
    for place in range(5000):
        it.refuses(scan, Endpoint.of(f"10.0.{place >> 8}.{place & 255}", 9), now=0)
    assert len(it._silenced) == 4096
    assert it.refuses(request(), Endpoint.of("10.0.0.1", 9), now=1) is None
    assert it.refuses(request(), Endpoint.of("10.0.19.1", 9), now=1) is Refused.SCANNER


def test_the_words_can_be_others_or_none() -> None:
    scan = request(headers=[("User-Agent", "sipvicious")])
    assert guard(scanners=()).refuses(scan, A, now=0) is None
    assert guard(scanners=("evil+phone",)).refuses(scan, A, now=0) is None
    evil = request(headers=[("User-Agent", "An Evil+Phone")])
    assert guard(scanners=("evil+phone",)).refuses(evil, A, now=0) is Refused.SCANNER


# --- calls ---


def test_calls_are_limited_in_all_of_a_user_and_of_a_source() -> None:
    it = guard(most_calls=4, calls_per_user=2, calls_per_source=3)
    it.call_began(1, "alice", A)
    it.call_began(2, "alice", B)
    refused = it.may_call("alice", A)
    assert refused is not None
    assert (refused.status_code, refused.reason) == (486, "Too Many Calls Of This User")
    assert it.may_call("", A) is None
    it.call_began(3, "", A.with_port(1))
    it.call_began(4, "bob", A)
    refused = it.may_call("", B)
    assert refused is not None
    assert (refused.status_code, dict(refused.headers)) == (503, {"Retry-After": "10"})
    it.call_failed(2)
    assert it.may_call("alice", B) is None
    refused = it.may_call("carol", A)
    assert refused is not None
    assert refused.reason == "Too Many Calls From This Address"
    assert it.counters == {"calls_refused": 3}


def test_a_call_counts_from_its_invite_to_its_end_and_each_fork_that_answers_too() -> None:
    it = guard(most_calls=2)
    it.call_began(1, "alice", A)
    it.call_answered(1, "first", (A, B))
    assert it.may_call("", A) is None
    it.call_answered(1, "first")
    it.call_failed(1)
    assert it.may_call("", A) is None
    it.call_answered(1, "second", (A,))
    assert it.may_call("", A) is not None
    it.call_ended("first")
    it.call_ended("first")
    assert it.may_call("", A) is None
    it.call_began(2, "", A)
    assert it.may_call("", A) is not None
    it.call_ended("second")
    it.call_failed(2)
    it.call_failed(2)
    it.call_answered(7, "never began", (A,))
    it.call_ended("never began")
    assert not it._of_all
    assert not it._of_users
    assert not it._of_households
    assert not it._attempts
    assert not it._known


def test_both_sides_of_a_call_are_known_while_it_lasts() -> None:
    it = guard(requests_per_second=1)
    it.call_began(1, "alice", A)
    it.call_answered(1, "call", (A, B))
    passed(it, B.with_port(9), 100, now=0)
    assert passed(it, B, 5, now=0) == 4
    it.call_ended("call")
    assert passed(it, B, 5, now=0) == 0
