"""The keepalive of an observer: one request, and what becomes of its answer."""

from __future__ import annotations

import pytest

from nattools.binding.observer import Observer, Reflected, Silent, Unchanged
from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.classifier import Mapping
from nattools.stun.integrity import with_fingerprint
from nattools.stun.message import Message
from tests.unit.binding.answers import (
    A1P1,
    A2P2,
    LOCAL,
    PUBLIC,
    SECOND,
    events,
    let_time_pass,
    observing,
    refusal,
    reply,
    sent,
)

OTHER_PUBLIC = PUBLIC.with_port(6000)


def observed(*servers: Endpoint, rtt_s: float = 0.02) -> Observer:
    """An observer that has its reflection and rests."""
    observer = observing(*servers)
    for asked in sent(observer):
        observer.receive(reply(asked), asked.destination, now=100.0 + rtt_s)
    events(observer)
    assert observer.reflection is not None
    return observer


def checking(observer: Observer, *, now: float = 115.0) -> Transmit:
    observer.check(now=now)
    (asked,) = sent(observer)
    return asked


def test_it_is_one_bare_request_to_the_server_in_use() -> None:
    asked = checking(observed())
    assert asked.destination == A1P1
    assert asked.data.startswith(bytes.fromhex("00010000 2112a442"))
    assert len(asked.data) == 20


def test_the_same_endpoint_is_no_news_but_the_round_trip() -> None:
    observer = observed()
    before = observer.reflection
    for turn in range(5):
        now = 115.0 + 15 * turn
        assert observer.receive(reply(checking(observer, now=now)), A1P1, now=now + 0.25)
        assert events(observer) == [Unchanged(0.25)]
    assert observer.reflection == before
    assert (sent(observer), observer.timeout_at()) == ([], None)


def test_one_that_is_under_way_can_be_hastened_and_is_given_up_no_sooner_nor_later() -> None:
    times = {}
    for is_hastened in (False, True):
        observer = observed()
        checking(observer)
        log = let_time_pass(observer, until=117.0)
        if is_hastened:
            for now in (117.0, 117.0, 117.05):  # once in a round trip
                observer.hasten_check(now=now)
            (asked,) = sent(observer)
            assert asked.destination == A1P1
        log += let_time_pass(observer, until=125.0)
        times[is_hastened] = [at for at, _ in log]
    assert times[True] == times[False]


def test_the_answer_to_one_that_was_hastened_counts() -> None:
    observer = observed()
    checking(observer)
    let_time_pass(observer, until=117.0)
    observer.hasten_check(now=117.0)
    (asked,) = sent(observer)
    observer.receive(reply(asked), A1P1, now=117.02)
    (unchanged,) = events(observer)
    assert isinstance(unchanged, Unchanged)
    assert unchanged.rtt_s == pytest.approx(0.02)
    observer.hasten_check(now=118.0)  # there is none
    assert (sent(observer), observer.timeout_at()) == ([], None)


def test_a_server_that_adds_something_is_understood_all_the_same() -> None:
    observer = observed()
    for turn, other in enumerate([None, A2P2, None]):
        now = 115.0 + 15 * turn
        observer.receive(reply(checking(observer, now=now), other=other), A1P1, now=now)
        assert events(observer) == [Unchanged(0.0)]


def test_over_ipv6_and_with_fingerprints_each_answer_is_read_anew() -> None:
    server, public = Endpoint.parse("[2001:db8::10]:3478"), Endpoint.parse("[2001:db8:1::8]:5060")
    observer = observing(server, local=Endpoint.parse("[fd00::8]:5060"))
    (asked,) = sent(observer)
    observer.receive(reply(asked, mapped=public), server, now=100.02)
    events(observer)
    for turn in range(3):
        now = 115.0 + 15 * turn
        answer = reply(checking(observer, now=now), mapped=public)
        if turn == 2:
            answer = with_fingerprint(Message.parse(answer)).encode()
        observer.receive(answer, server, now=now)
        assert events(observer) == [Unchanged(0.0)]
    asked = checking(observer, now=200.0)
    other_key = Message.parse(reply(asked, mapped=public.with_port(7000)))
    observer.receive(other_key.encode(), server, now=200.0)
    assert events(observer) == []
    assert [t.destination for t in sent(observer)] == [server]


def test_a_fingerprint_that_is_repeated_from_an_older_answer_is_wrong() -> None:
    observer = observed()
    first = with_fingerprint(Message.parse(reply(checking(observer)))).encode()
    observer.receive(first, A1P1, now=115.0)
    assert events(observer) == [Unchanged(0.0)]
    asked = checking(observer, now=130.0)
    observer.receive(first[:8] + asked.data[8:20] + first[20:], A1P1, now=130.0)
    (event,) = events(observer)
    assert isinstance(event, Silent)
    assert "FINGERPRINT" in event.reason


def test_another_endpoint_has_everything_asked_anew() -> None:
    observer = observed()
    observer.receive(reply(checking(observer), mapped=OTHER_PUBLIC), A1P1, now=115.02)
    assert observer.reflection is None
    assert events(observer) == []
    (asked,) = sent(observer)
    observer.receive(reply(asked, mapped=OTHER_PUBLIC), A1P1, now=115.04)
    (event,) = events(observer)
    assert isinstance(event, Reflected)
    assert (event.reflection.mapped, event.reflection.mapping) == (OTHER_PUBLIC, Mapping.UNKNOWN)


def test_an_endpoint_that_comes_back_is_another_one_again() -> None:
    observer = observed()
    observer.receive(reply(checking(observer)), A1P1, now=115.0)
    observer.observe(LOCAL, now=120.0)
    (asked,) = sent(observer)
    observer.receive(reply(asked, mapped=OTHER_PUBLIC), A1P1, now=120.0)
    events(observer)
    observer.receive(reply(checking(observer, now=130.0)), A1P1, now=130.0)
    assert (observer.reflection, events(observer)) == (None, [])


def test_a_first_answer_from_elsewhere_is_not_believed() -> None:
    observer = observed()
    for _ in range(2):
        asked = checking(observer)
        assert observer.receive(reply(asked), A2P2, now=115.01)
        assert events(observer) == []
        assert observer.receive(reply(asked), A1P1, now=115.02)
        assert len(events(observer)) == 1


@pytest.mark.parametrize(
    ("rtt_s", "now", "times", "end"),
    [
        (0.02, 115.0, [0, 0.1, 0.3, 0.7, 1.5, 3.1], 6.3),
        (0.5, 115.0, [0, 1.5, 4.5, 8.5, 12.5, 16.5], 20.5),
        (0.02, 1000.0, [0, 0.5, 1.5, 3.5, 7.5, 11.5], 15.5),
    ],
    ids=["near", "far", "measured long ago"],
)
def test_it_is_sent_again_as_far_apart_as_the_server_is_away(
    rtt_s: float, now: float, times: list[float], end: float
) -> None:
    observer = observed(rtt_s=rtt_s)
    checking(observer, now=now)
    assert [0, *(round(at - now, 1) for at, _ in let_time_pass(observer))] == times
    (event,) = events(observer)
    assert isinstance(event, Silent)
    assert f"{A1P1}: no answer in {end} s" in event.reason


def test_an_answer_to_any_of_them_will_do() -> None:
    observer = observed()
    first = checking(observer)
    let_time_pass(observer, until=115.8)
    assert observer.receive(reply(first), A1P1, now=116.0)
    assert events(observer) == [Unchanged(1.0)]
    assert observer.timeout_at() is None


def test_when_the_server_is_silent_the_others_are_asked_first() -> None:
    observer = observed(A1P1, SECOND)
    observer.check(now=115.0)
    log = let_time_pass(observer, until=122.0)
    assert log[0][1].destination == A1P1
    after = [t.destination for at, t in log if at > 121]
    assert after[0] == SECOND
    assert A1P1 in after


def test_a_server_that_is_undeliverable_is_left_at_once() -> None:
    observer = observed(A1P1, SECOND)
    checking(observer)
    for now in (115.0, 115.1):
        observer.handle_timeout(now=now)
        observer.undeliverable(A1P1, "Host is unreachable", now=now)
    assert SECOND in {t.destination for t in sent(observer)}


def test_so_is_one_that_refuses() -> None:
    observer = observed(A1P1, SECOND)
    observer.receive(refusal(checking(observer), 500), A1P1, now=115.02)
    assert SECOND in {t.destination for t in sent(observer)}


def test_it_does_nothing_while_the_server_is_asked_anyway() -> None:
    observer = observed()
    checking(observer)
    observer.check(now=115.01)
    assert sent(observer) == []
    busy = observing()
    sent(busy)
    busy.check(now=100.01)
    assert sent(busy) == []


def test_it_does_nothing_before_the_first_observation() -> None:
    observer = Observer(entropy=bytes)
    observer.check(now=100.0)
    assert (sent(observer), observer.timeout_at()) == ([], None)


def test_after_a_silence_it_begins_from_the_beginning() -> None:
    observer = observing()
    let_time_pass(observer)
    events(observer)
    asked = checking(observer)
    observer.receive(reply(asked), A1P1, now=115.02)
    (event,) = events(observer)
    assert isinstance(event, Reflected)
    assert event.reflection.local == LOCAL


def test_what_was_sent_long_ago_is_forgotten() -> None:
    observer = observed()
    for turn in range(1000):
        now = 115.0 + 15 * turn
        observer.receive(reply(checking(observer, now=now)), A1P1, now=now)
        events(observer)
    assert len(observer._probes._sent) < 8
