"""The journal: one line a call and a registration, whoever writes what into their headers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from nattools.endpoint import Endpoint
from nattools.session.controller.journal import Journal, address_of, shown
from nattools.session.controller.noted_location import NotedLocation
from nattools.session.dialogs import Call, Party
from nattools.session.events import CallFailed, CallStarted, Received
from nattools.session.flows import Flow
from nattools.session.location import ContactBinding, MemoryLocation, Removal
from nattools.session.nat_tests import NatTest
from nattools.session.status import CallState, SideStatus, StreamStatus
from nattools.sip.message import SipMessage
from tests.unit.session.gate_status import HEARD
from tests.unit.session.proxy_desk import ALICE, BOB, request

STREAMS = (StreamStatus("audio", HEARD, SideStatus(40, lost=None)), StreamStatus("audio", HEARD, HEARD))
UDP = Flow("udp", ALICE)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock, caplog: pytest.LogCaptureFixture) -> Journal:
    caplog.set_level(logging.INFO, "nattools")
    return Journal(now=clock, streams_of=lambda call_id: STREAMS if call_id == b"call" else ())


def received(data: bytes, number: int = 1) -> Received:
    return Received(number, SipMessage.parse(data), UDP, NatTest(0), None)


def call(call_id: bytes = b"call", callee_tag: bytes = b"b") -> Call:
    caller = Party(b"a", b"<sip:alice@example.com>;tag=a", b"", (), UDP)
    callee = Party(callee_tag, b'"Bob" <sip:bob@example.com>;tag=b', b"", (), Flow("udp", BOB))
    return Call(call_id, caller, callee)


def fields_of(caplog: pytest.LogCaptureFixture) -> list[Mapping[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records]


def test_an_answered_call_is_one_line_at_its_end(
    journal: Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    the_call = call()
    journal.request(received(request()))
    clock.now += 0.812
    journal.take(CallStarted(1, the_call))
    clock.now += 62.34
    assert not caplog.records
    journal.request(received(request("BYE", from_tag="b", to_tag="a", cseq=2), 2))
    streams: list[tuple[StreamStatus, ...]] = [()]
    journal.ends(the_call, lambda: streams[0])
    clock.now += 1  # so long it takes to close them
    streams[0] = STREAMS
    assert journal.calls() == ()
    assert journal.counters(())["media_packets"] == 3 * 3100 + 40
    assert not caplog.records
    journal.ended(the_call)
    journal.ended(the_call)
    assert caplog.messages == [
        "call call_id=call from=sip:alice@example.com to=sip:bob@example.com source=203.0.113.9:5060 "
        "result=200 setup_ms=812 duration_s=62.3 ended_by=callee "
        "audio_a_packets=3100 audio_a_lost=3 audio_a_jitter_ms=1.2 audio_a_foreign=2 audio_b_packets=40 "
        "audio2_a_packets=3100 audio2_a_lost=3 audio2_a_jitter_ms=1.2 audio2_a_foreign=2 "
        "audio2_b_packets=3100 audio2_b_lost=3 audio2_b_jitter_ms=1.2 audio2_b_foreign=2"
    ]
    assert fields_of(caplog)[0]["setup_ms"] == 812
    assert journal.counters(())["media_packets"] == 3 * 3100 + 40
    assert journal.counters(())["calls_ended"] == 1


def test_who_ended_a_call_is_said(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    by_caller, by_gate, by_nobody, by_proxy = (call(b"%d" % number) for number in (1, 2, 3, 5))
    for it in (by_caller, by_gate, by_nobody, by_proxy):
        journal.take(CallStarted(1, it))
    journal.request(received(request("BYE", call_id="1", to_tag="b", cseq=2)))
    journal.request(received(request("BYE", call_id="1", from_tag="b", to_tag="a", cseq=2)))  # too late
    journal.request(received(request("BYE", call_id="2", to_tag="forged", cseq=2)))
    journal.hung_up(by_gate, "no media for 60 s")
    journal.hung_up(call(b"4"), "it is not known")
    for it in (by_caller, by_gate, by_nobody):
        journal.ends(it, tuple)
    journal.ends(by_proxy, tuple, why="nobody has taken it")
    journal.ended(by_caller)
    journal.close()
    journal.close()
    assert [(it["ended_by"], it.get("why")) for it in fields_of(caplog)] == [
        ("caller", None),
        ("natgate", "no media for 60 s"),
        ("nobody", None),
        ("natgate", "nobody has taken it"),
    ]


def test_a_call_that_fails_is_one_line_and_a_challenge_is_none(
    journal: Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    journal.request(received(request()))
    journal.take(CallFailed(1, b"call", 407))
    assert journal.calls() == ()
    journal.request(received(request(cseq=2), 2))
    clock.now += 3
    journal.take(CallFailed(2, b"call", 486))
    journal.take(CallFailed(2, b"call", 486))
    assert caplog.messages == [
        "call call_id=call from=sip:alice@example.com to=sip:bob@example.com source=203.0.113.9:5060 "
        "result=486 setup_ms=3000"
    ]
    assert journal.counters(())["calls_failed"] == 1


def test_a_flood_of_calls_that_fail_is_no_flood_of_lines(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        journal.request(received(request(call_id=f"{number}"), number))
        journal.take(CallFailed(number, b"%d" % number, 403))
    assert len(caplog.records) == 50
    journal.look()
    journal.look()
    assert caplog.messages[50:] == ["950 more calls or registrations failed"]
    assert journal.counters(())["calls_failed"] == 1000
    assert journal.calls() == ()


def test_an_invite_that_comes_by_twice_is_one_call(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        journal.request(received(request(), number))
    journal.request(replace(received(request(), 5), earlier=1))
    journal.take(CallFailed(2, b"call", 404))
    assert not caplog.records
    journal.take(CallFailed(1, b"call", 404))
    assert len(caplog.records) == 1
    for number in (3, 4):
        journal.request(received(request(), number))
    journal.take(CallStarted(4, call()))
    journal.take(CallFailed(3, b"call", 500))
    assert len(caplog.records) == 1
    assert len(journal.calls()) == 1


def test_what_phones_write_cannot_make_a_line_of_its_own(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    forged = call(b"x\r\ncall result=200 \xff\xe2\x80\xae")
    forged.caller.address = b'"a" <sip:al%0aice@h result=1>;tag=a'
    forged.callee.address = b"<sip:bob@h;p=\x1b[2J\x00>"
    journal.take(CallStarted(1, forged))
    journal.ends(forged, tuple)
    journal.ended(forged)
    (line,) = caplog.messages
    assert line.isprintable()
    assert line.startswith('call call_id="x\\\\r\\\\ncall result=200 ')
    assert line.count(" result=200 ") == 2  # the one in quotes, and the true one
    assert all(str(value).isprintable() for value in fields_of(caplog)[0].values())


def test_calls_are_shown_with_their_media(journal: Journal, clock: Clock) -> None:
    journal.request(received(request(call_id="ringing")))
    journal.take(CallStarted(1, call()))
    clock.now += 5
    answered, ringing = journal.calls()
    assert (answered.call_id, answered.state, answered.duration_s) == ("call", CallState.ANSWERED, 5)
    assert answered.streams == STREAMS
    assert (ringing.call_id, ringing.state, ringing.duration_s) == ("ringing", CallState.RINGING, 5)
    assert (ringing.caller, ringing.callee) == ("sip:alice@example.com", "sip:bob@example.com")
    assert journal.counters(journal.calls())["media_foreign"] == 6


def test_requests_in_calls_are_no_calls(journal: Journal) -> None:
    journal.request(received(request(to_tag="b", cseq=2)))
    journal.request(received(request("OPTIONS")))
    journal.request(received(request("BYE", to_tag="b", cseq=2)))
    assert journal.calls() == ()


def binding(contact: bytes, expires_at: float, received: Endpoint | None = None) -> ContactBinding:
    return ContactBinding(contact, expires_at, b"id", 1, received=received)


def test_registrations_are_written_when_they_are_new_and_when_they_are_gone(
    journal: Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    phone, laptop = binding(b"sip:alice@192.168.0.108", 1060.0, ALICE), binding(b"sip:alice@10.0.0.1", 1030.0)
    journal.registered("alice@example.com", (phone,))
    journal.registered("alice@example.com", (phone, laptop))
    journal.registered("alice@example.com", (phone, laptop))
    journal.registered("alice@example.com", (laptop,))
    journal.look()
    clock.now = 1030.0
    journal.look()
    journal.look()
    assert [tuple(it.values())[1:] for it in fields_of(caplog)] == [
        ("new", "alice@example.com", "sip:alice@192.168.0.108", str(ALICE), 60),
        ("new", "alice@example.com", "sip:alice@10.0.0.1", 30),
        ("gone", "alice@example.com", "sip:alice@192.168.0.108", str(ALICE), "unregistered"),
        ("gone", "alice@example.com", "sip:alice@10.0.0.1", "expired"),
    ]
    assert caplog.messages[3] == (
        "registration what=gone aor=alice@example.com contact=sip:alice@10.0.0.1 why=expired"
    )
    counters = journal.counters(())
    assert (counters["registrations_new"], counters["registrations_gone"]) == (2, 2)


def test_why_a_registration_was_ended_without_a_register_is_written(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        location = NotedLocation(MemoryLocation(), journal.changed)
        phone = (binding(b"sip:alice@192.168.0.108", 1060.0, ALICE),)
        await location.update("alice@example.com", lambda _: Removal(phone, "its own"), now=1000.0)
        await location.update("alice@example.com", lambda _: Removal((), "it is gone"), now=1000.0)
        await location.update("alice@example.com", lambda _: Removal(None, "nothing"), now=1000.0)

    asyncio.run(scenario())
    assert [(it["what"], it.get("why")) for it in fields_of(caplog)] == [
        ("new", None),
        ("gone", "it is gone"),
    ]


def test_a_wrong_password_is_a_line_with_its_source(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(60):
        journal.refused(received(request("REGISTER")), "the response does not match")
    assert len(caplog.records) == 50
    assert caplog.messages[0] == (
        "registration what=refused aor=sip:bob@example.com source=203.0.113.9:5060 "
        'why="the response does not match"'
    )


def test_registrations_of_before_a_restart_are_nothing_new(
    journal: Journal, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    journal.know("alice@example.com", (binding(b"sip:a@h", 1010.0),))
    journal.registered("alice@example.com", (binding(b"sip:a@h", 1020.0),))
    clock.now = 1015.0
    journal.look()
    assert not caplog.records
    clock.now = 1020.0
    journal.look()
    assert [it["why"] for it in fields_of(caplog)] == ["expired"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"<sip:a@h>;tag=1", "sip:a@h"),
        (b'"A" <sip:a@h;x=y>', "sip:a@h;x=y"),
        (b"sip:a@h;tag=1", "sip:a@h"),
        (b"<<>>", "<<>>"),
        (b"", ""),
        (b"\n", "\\n"),
    ],
)
def test_an_address_is_shown_without_name_and_tag(value: bytes, expected: str) -> None:
    assert address_of(value) == expected


def test_what_is_shown_is_short_and_printable() -> None:
    assert shown(b"a" * 5000) == "a" * 200 + "..."
    assert shown("é".encode() + b"\xff") == "é\\xff"
