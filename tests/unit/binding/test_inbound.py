"""The test of a public port, datagram by datagram."""

from __future__ import annotations

import pytest

from nattools.binding.observer import Inbound, Observer, Silent
from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.attributes import CHANGE_REQUEST, RESPONSE_PORT, ChangeRequest
from nattools.stun.message import Message
from tests.unit.binding.answers import (
    A1P1,
    A1P2,
    A2P2,
    BOTH,
    PUBLIC,
    events,
    let_time_pass,
    observing,
    refusal,
    reply,
    sent,
)

FORWARDED = PUBLIC.with_port(6000)
SIDE = ChangeRequest(change_ip=False, change_port=True)
Question = tuple[ChangeRequest | None, int | None]


def question(asked: Transmit) -> Question:
    message = Message.parse(asked.data)
    return message.get(CHANGE_REQUEST), message.get(RESPONSE_PORT)


def trying(public: Endpoint = FORWARDED) -> tuple[Observer, dict[Question, Transmit]]:
    """An observer that tries a port from 101.0 s on, and what it asks first."""
    observer = observing()
    (asked,) = sent(observer)
    observer.receive(reply(asked, other=A2P2), A1P1, now=100.02)
    events(observer)
    observer.try_inbound(public, now=101.0)
    return observer, {question(asked): asked for asked in sent(observer)}


def verdict(observer: Observer) -> Inbound:
    (event,) = events(observer)
    assert isinstance(event, Inbound), event
    return event


def until_asked(observer: Observer, wanted: Endpoint, wants: Question) -> tuple[float, Transmit]:
    """Let time pass until that is asked."""
    while (due := observer.timeout_at()) is not None:
        observer.handle_timeout(now=due)
        for asked in observer.transmits():
            if (asked.destination, question(asked)) == (wanted, wants):
                return due, asked
    raise AssertionError(f"{wanted} was not asked")


def test_the_server_is_asked_to_send_from_its_other_endpoints_and_to_a_port_that_is_not_ours() -> None:
    _, asked = trying()
    assert set(asked) == {(BOTH, 6000), (SIDE, 6000), (None, 9)}
    assert {transmit.destination for transmit in asked.values()} == {A1P1}


def test_where_the_port_is_the_mapped_one_no_decoy_is_needed() -> None:
    observer, asked = trying(PUBLIC)
    assert set(asked) == {(BOTH, 5060), (SIDE, 5060)}
    observer.receive(reply(asked[BOTH, 5060]), A2P2, now=101.02)
    assert verdict(observer) == Inbound(PUBLIC, True, f"an answer from {A2P2} came in at {PUBLIC}")
    assert observer.timeout_at() is None


def test_another_port_is_open_once_the_decoy_was_silent_and_the_server_heard_after_it() -> None:
    observer, asked = trying()
    observer.receive(reply(asked[BOTH, 6000]), A2P2, now=101.02)
    assert events(observer) == []
    now, again = until_asked(observer, A1P1, (None, None))
    assert now == pytest.approx(101.24)
    observer.receive(reply(again), A1P1, now=now + 0.02)
    let_time_pass(observer)
    assert verdict(observer).arrived is True


def test_an_answer_to_the_decoy_shows_that_the_server_does_not_heed_ports() -> None:
    observer, asked = trying()
    observer.receive(reply(asked[BOTH, 6000]), A2P2, now=101.02)
    observer.receive(reply(asked[None, 9]), A1P1, now=101.02)
    assert "does not heed RESPONSE-PORT" in verdict(observer).reason


def test_a_refusal_of_the_decoys_port_shows_that_it_does() -> None:
    observer, asked = trying()
    observer.receive(reply(asked[BOTH, 6000]), A2P2, now=101.02)
    observer.receive(refusal(asked[None, 9], 400), A1P1, now=101.02)
    (again,) = sent(observer)
    observer.receive(reply(again), A1P1, now=101.04)
    let_time_pass(observer)
    assert verdict(observer).arrived is True


@pytest.mark.parametrize("code", [420, 400, 403])
@pytest.mark.parametrize("change", [BOTH, SIDE], ids=["both", "port"])
def test_a_refusal_shows_nothing_and_says_why(code: int, change: ChangeRequest) -> None:
    observer, asked = trying()
    observer.receive(refusal(asked[change, 6000], code), A1P1, now=101.02)
    tried = verdict(observer)
    assert tried.arrived is None
    assert str(code) in tried.reason


def test_an_answer_from_where_it_was_asked_shows_nothing() -> None:
    observer, asked = trying()
    observer.receive(reply(asked[BOTH, 6000]), A1P1, now=101.02)
    assert "does not heed CHANGE-REQUEST" in verdict(observer).reason


@pytest.mark.parametrize("source", ["203.0.113.11:3478", "203.0.113.10:3479", "203.0.113.99:3479"])
def test_an_answer_from_anywhere_else_is_eaten_and_not_believed(source: str) -> None:
    observer, asked = trying(PUBLIC)
    assert observer.receive(reply(asked[BOTH, 5060]), Endpoint.parse(source), now=101.02)
    assert events(observer) == []


def test_a_stranger_whose_source_port_was_translated_is_one_all_the_same() -> None:
    observer, asked = trying(PUBLIC)
    observer.receive(reply(asked[BOTH, 5060]), Endpoint.parse("203.0.113.11:7915"), now=101.02)
    assert verdict(observer).arrived is True


def closed_so_far(public: Endpoint = FORWARDED) -> tuple[Observer, float, Transmit]:
    """A silence after which the server still answered, and the request that opens the NAT for A1:P2."""
    observer, _ = trying(public)
    now, again = until_asked(observer, A1P1, (None, None))
    observer.receive(reply(again), A1P1, now=now + 0.02)
    now, opening = until_asked(observer, A1P2, (None, None))
    return observer, now, opening


def test_silence_is_a_closed_port_if_the_server_does_send_through_an_open_one() -> None:
    observer, now, opening = closed_so_far()
    observer.receive(reply(opening, mapped=PUBLIC.with_port(7777)), A1P2, now=now + 0.02)
    (control,) = sent(observer)
    assert (control.destination, question(control)) == (A1P1, (SIDE, 7777))
    observer.receive(reply(control), A1P2, now=now + 0.04)
    assert verdict(observer).arrived is False
    assert now + 0.04 < 101.0 + 1.5
    assert observer.timeout_at() is None


def test_not_if_it_does_not() -> None:
    observer, now, opening = closed_so_far()
    observer.receive(reply(opening), A1P2, now=now + 0.02)
    let_time_pass(observer)
    tried = verdict(observer)
    assert tried.arrived is None
    assert "sends from nowhere else" in tried.reason


def test_nor_if_its_other_port_is_dead() -> None:
    observer, _, _ = closed_so_far()
    let_time_pass(observer)
    tried = verdict(observer)
    assert (tried.arrived, f"{A1P2} does not answer at all" in tried.reason) == (None, True)


def test_nor_if_the_nat_shows_it_another_address() -> None:
    observer, now, opening = closed_so_far()
    observer.receive(reply(opening, mapped=Endpoint.parse("198.51.100.2:5060")), A1P2, now=now + 0.02)
    assert verdict(observer).arrived is None


def test_nor_if_the_server_itself_is_silent() -> None:
    observer, _ = trying()
    let_time_pass(observer)
    assert verdict(observer) == Inbound(FORWARDED, None, f"{A1P1} stopped answering")


def test_nor_if_its_other_port_gets_in() -> None:
    observer, asked = trying(PUBLIC)
    observer.receive(reply(asked[SIDE, 5060]), A1P2, now=101.02)
    now, again = until_asked(observer, A1P1, (None, None))
    observer.receive(reply(again), A1P1, now=now + 0.02)
    let_time_pass(observer)
    tried = verdict(observer)
    assert tried.arrived is None
    assert f"{A1P2} gets in at {PUBLIC}" in tried.reason


def test_nor_if_it_got_in_while_the_nat_was_being_opened() -> None:
    observer, asked = trying()
    now, again = until_asked(observer, A1P1, (None, None))
    observer.receive(reply(again), A1P1, now=now + 0.02)
    now, opening = until_asked(observer, A1P2, (None, None))
    observer.receive(reply(asked[SIDE, 6000]), A1P2, now=now + 0.01)
    observer.receive(reply(opening), A1P2, now=now + 0.02)
    control = next(t for t in sent(observer) if question(t)[0] == SIDE)
    observer.receive(reply(control), A1P2, now=now + 0.04)
    assert verdict(observer).arrived is None


def test_what_was_on_its_way_when_the_server_was_heard_may_still_come_in() -> None:
    observer, asked = trying(PUBLIC)
    now, again = until_asked(observer, A1P1, (None, None))
    observer.receive(reply(again), A1P1, now=now + 0.02)
    observer.handle_timeout(now=now + 0.06)
    assert (sent(observer), events(observer)) == ([], [])
    observer.receive(reply(asked[BOTH, 5060]), A2P2, now=now + 0.065)
    assert verdict(observer).arrived is True


def test_an_answer_that_comes_very_late_still_opens_the_port() -> None:
    observer, asked = trying()
    now, again = until_asked(observer, A1P1, (None, None))
    observer.receive(reply(again), A1P1, now=now + 0.02)
    now, _ = until_asked(observer, A1P2, (None, None))
    observer.receive(reply(asked[BOTH, 6000]), A2P2, now=now + 0.01)
    (again,) = sent(observer)
    observer.receive(reply(again), A1P1, now=now + 0.02)
    let_time_pass(observer)
    assert verdict(observer).arrived is True


def test_what_cannot_be_sent_shows_nothing() -> None:
    observer, _ = trying()
    for now in (101.0, 101.05):
        observer.handle_timeout(now=now)
        observer.undeliverable(A1P1, "Network is unreachable", now=now)
    tried = verdict(observer)
    assert tried.arrived is None
    assert "Network is unreachable" in tried.reason


def test_several_are_tried_one_after_the_other_and_each_once() -> None:
    observer, _ = trying()
    for port in (6000, 6001, 6001):
        observer.try_inbound(PUBLIC.with_port(port), now=101.0)
    let_time_pass(observer)
    assert [event.public.port for event in events(observer) if isinstance(event, Inbound)] == [6000, 6001]


def test_too_many_are_not_tried() -> None:
    observer, _ = trying()
    for port in range(6001, 6010):
        observer.try_inbound(PUBLIC.with_port(port), now=101.0)
    refused = [event for event in events(observer) if isinstance(event, Inbound)]
    assert [event.public.port for event in refused] == [6008, 6009]


def test_without_an_observation_there_is_nobody_to_try() -> None:
    observer = Observer(entropy=bytes)
    observer.try_inbound(PUBLIC, now=100.0)
    assert verdict(observer) == Inbound(PUBLIC, None, "no STUN server is there to try it")


def test_what_is_tried_when_the_servers_fall_silent_is_not_left_open() -> None:
    observer, _ = trying()
    observer.observe(Endpoint.parse("192.168.0.109:5060"), now=101.01)
    let_time_pass(observer)
    silent, tried = events(observer)
    assert isinstance(silent, Silent)
    assert isinstance(tried, Inbound)
    assert (tried.public, tried.arrived) == (FORWARDED, None)


def test_what_is_wanted_before_the_first_answer_waits_for_it() -> None:
    observer = observing()
    (asked,) = sent(observer)
    observer.try_inbound(FORWARDED, now=100.0)
    assert (sent(observer), events(observer)) == ([], [])
    observer.receive(reply(asked, other=A2P2), A1P1, now=100.02)
    assert (BOTH, 6000) in {question(t) for t in sent(observer)}
