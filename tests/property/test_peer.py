"""Whatever the wire between two hosts does, a reply is sent once at the most, and by who was meant to."""

from __future__ import annotations

import hmac
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.stun.attributes import CHANGE_REQUEST, ChangeRequest
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.peer import PING_INTERVAL_S
from tests.unit.stun.two_hosts import KEY, PORTS, Lost, Pair

CLIENT = Endpoint.of("203.0.113.7", 40_000)
SECONDS_TO_MEET = 3 * PING_INTERVAL_S

hosts = st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("ask"), hosts),
    st.tuples(st.just("restart"), hosts),
    st.tuples(st.just("leave"), hosts),
    st.tuples(st.just("replay"), st.integers(0, 1000)),
    st.tuples(st.just("wait"), st.integers(1, 50)),
    st.tuples(st.just("lose"), st.integers(0, 3)),
)


def request(number: int) -> bytes:
    change = CHANGE_REQUEST.of(ChangeRequest(change_ip=True, change_port=False))
    return Message(Method.BINDING, MessageClass.REQUEST, number.to_bytes(12, "big"), (change,)).encode()


def one_in(number: int, pair: Pair) -> Lost:
    return lambda _data: number > 0 and len(pair.wire) % number == 0


@given(st.lists(steps, max_size=30))
def test_each_reply_is_sent_once_whatever_is_lost_replayed_or_restarted(steps: list[tuple[str, int]]) -> None:
    pair = Pair()
    times: Counter[bytes] = Counter()
    wrong = 0
    for number, (what, value) in enumerate([*steps, ("wait", 1)]):
        if what == "ask":
            pair.hosts[value].ask(request(number), CLIENT, PORTS[0], now=pair.now)
        elif what == "leave":
            pair.hosts[value].link.leave()
        elif what == "replay" and pair.wire:
            to, data = pair.wire[value % len(pair.wire)]
            pair.deliver(to, data)
        elif what == "wait":
            pair.run(value / 10)
        elif what == "lose":
            pair.lost = one_in(value, pair)
        for host in pair.hosts:
            times.update(reply.data[8:20] for reply in host.sent)
            wrong += sum(reply.origin.ip != host.address.ip for reply in host.sent)
            host.sent.clear()
        if what == "restart":
            pair.restart(value)
    assert wrong == 0
    assert all(count == 1 for count in times.values())
    pair.lost = lambda _data: False
    pair.run(SECONDS_TO_MEET)
    assert pair.up == (True, True)


@given(st.integers(0, 4), st.binary(max_size=200), st.booleans())
def test_any_bytes_even_under_the_key(kind: int, data: bytes, is_headed: bool) -> None:
    pair = Pair()
    pair.run(0.1)
    known = pair.wire[-1][1]
    content = known[:4] + bytes((kind,)) + (known[5:37] if is_headed else b"") + data
    for datagram in (data, content + hmac.digest(KEY, content, "sha256")):
        for to in (0, 1):
            pair.deliver(to, datagram)
            assert len(pair.take(to)) <= 1
            for reply in pair.hosts[to].sent:
                assert reply.origin in pair.hosts[to].link.hosts.alone.endpoints
                assert Message.parse(reply.data).message_class is not MessageClass.REQUEST
