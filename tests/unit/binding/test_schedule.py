"""When a flow is refreshed, and with what."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from nattools.binding.schedule import Flows, KeepaliveKind, spread
from nattools.endpoint import Endpoint
from nattools.stun.message import Message, MessageClass, Method

PEER = Endpoint.of("203.0.113.20", 5060)
OTHER = Endpoint.of("203.0.113.21", 5060)


def flows(interval_s: float = 15.0) -> Flows:
    return Flows(interval_s=interval_s, entropy=random.Random(1).randbytes)


def sent(flows: Flows, *, now: float) -> list[tuple[bytes, Endpoint]]:
    return [(transmit.data, transmit.destination) for transmit in flows.due(now=now)]


def test_nothing_is_due_without_a_flow() -> None:
    assert flows().timeout_at() is None
    assert sent(flows(), now=1e9) == []


@pytest.mark.parametrize(("kind", "payload"), [(KeepaliveKind.EMPTY, b""), (KeepaliveKind.CRLF, b"\r\n\r\n")])
def test_the_first_goes_at_once_and_the_next_within_the_interval(kind: KeepaliveKind, payload: bytes) -> None:
    kept = flows()
    kept.keep(PEER, kind, now=100.0)
    times = []
    now = kept.timeout_at()
    for _ in range(50):
        assert now is not None
        assert sent(kept, now=now) == [(payload, PEER)]
        assert sent(kept, now=now) == []
        times.append(now)
        now = kept.timeout_at()
    assert times[0] == 100.0
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 12.0 <= min(gaps) < max(gaps) <= 15.0


def test_an_answer_to_a_request_is_eaten_however_often_it_comes_and_nothing_else_is() -> None:
    kept = flows()
    kept.keep(PEER, KeepaliveKind.STUN_REQUEST, now=0)
    ((data, _),) = sent(kept, now=0)
    request = Message.parse(data)
    assert (request.method, request.message_class) == (Method.BINDING, MessageClass.REQUEST)
    answer = Message(Method.BINDING, MessageClass.SUCCESS, request.transaction_id).encode()
    foreign = Message(Method.BINDING, MessageClass.SUCCESS, bytes(12)).encode()
    assert kept.eats(answer)
    assert kept.eats(answer)
    assert not kept.eats(foreign)
    assert not any(map(kept.eats, (b"", b"\r\n", b"SIP/2.0 200 OK\r\n\r\n")))


def test_an_indication_expects_no_answer() -> None:
    kept = flows()
    kept.keep(PEER, KeepaliveKind.STUN_INDICATION, now=0)
    ((data, _),) = sent(kept, now=0)
    assert Message.parse(data).message_class is MessageClass.INDICATION
    assert not kept.eats(data)


def test_what_was_asked_long_ago_is_forgotten() -> None:
    kept = flows(1.0)
    kept.keep(PEER, KeepaliveKind.STUN_REQUEST, now=0)
    asked = [sent(kept, now=float(second))[0][0] for second in range(100)]
    assert not kept.eats(asked[0])
    assert kept.eats(asked[-1])


def test_a_flow_that_is_let_go_is_refreshed_no_more() -> None:
    kept = flows()
    kept.keep(PEER, KeepaliveKind.EMPTY, now=0)
    kept.keep(OTHER, KeepaliveKind.CRLF, now=0)
    kept.let_go(PEER)
    kept.let_go(PEER)
    assert sent(kept, now=0) == [(b"\r\n\r\n", OTHER)]


def test_a_shorter_interval_counts_at_once() -> None:
    kept = flows(300.0)
    kept.keep(PEER, KeepaliveKind.EMPTY, now=0)
    assert len(sent(kept, now=0)) == 1
    kept.set_interval(5.0, now=10.0)
    assert kept.timeout_at() == 15.0


def test_all_flows_can_be_refreshed_at_once() -> None:
    kept = flows()
    kept.keep(PEER, KeepaliveKind.EMPTY, now=0)
    kept.keep(OTHER, KeepaliveKind.CRLF, now=0)
    assert len(sent(kept, now=0)) == 2
    kept.refresh(now=1)
    assert sent(kept, now=1) == [(b"", PEER), (b"\r\n\r\n", OTHER)]
    assert sent(kept, now=1) == []


def test_a_thousand_flows_are_spread_over_a_fifth_of_the_interval() -> None:
    entropy = random.Random(1).randbytes
    waits = [spread(15.0, entropy) for _ in range(1000)]
    assert 12.0 <= min(waits) < 12.1
    assert 14.9 < max(waits) <= 15.0
