"""What an observer promises whatever arrives, whenever, and whatever it is told to do."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from nattools.binding.observer import Observer
from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.attributes import Attribute
from nattools.stun.message import MAGIC_COOKIE, Message, MessageClass, Method
from tests.sim.one_socket import BEHIND, MAPPED, SECOND, serving
from tests.sim.servers import A1P1, A2P2

WORLD = {**serving(A1P1, A2P2), **serving(SECOND)}
SOURCES = [*WORLD, BEHIND, MAPPED, Endpoint.parse("[2001:db8::1]:3478"), Endpoint.parse("0.0.0.0:0")]
MOST_EVENTS_AT_ONCE = 20
MOST_SENT_AT_ONCE = 60

sources = st.sampled_from(SOURCES)
kinds = st.sampled_from(MessageClass)
values = st.lists(
    st.builds(
        Attribute,
        st.sampled_from([0x1, 0x3, 0x5, 0x8, 0x9, 0x20, 0x27, 0x8020, 0x8023, 0x8028, 0x802C, 0x7777]),
        st.binary(max_size=24) | st.just(b"\0\1\x0d\x96\xcb\0\x71\x0b"),
    ),
    max_size=4,
).map(tuple)
steps = st.one_of(
    st.tuples(st.just("wait"), st.floats(0, 20)),
    st.tuples(st.just("due"), st.integers(1, 30)),
    st.tuples(st.just("answer"), st.integers(0, 40)),
    st.tuples(st.just("answer all"), st.none()),
    st.tuples(st.just("forge"), st.tuples(st.integers(0, 40), kinds, values, sources)),
    st.tuples(st.just("spoil"), st.tuples(st.integers(0, 40), st.integers(0, 99), st.integers(0, 255))),
    st.tuples(st.just("arrives"), st.tuples(st.binary(max_size=60), sources)),
    st.tuples(st.just("undeliverable"), st.none() | sources),
    st.tuples(st.just("observe"), st.sampled_from([BEHIND, MAPPED])),
    st.tuples(st.just("use"), st.lists(st.sampled_from([A1P1, A2P2, SECOND]), max_size=4)),
    st.tuples(st.just("map"), st.none()),
    st.tuples(st.just("check"), st.none()),
    st.tuples(st.just("try"), st.sampled_from([MAPPED, MAPPED.with_port(6000), BEHIND])),
)


class Harness:
    """An observer that is drained after each step, and whose promises are then looked at."""

    def __init__(self, *, fresh_port: bool, seed: int) -> None:
        self.observer = Observer(entropy=random.Random(seed).randbytes, fresh_port=fresh_port)
        self.now = 1000.0
        self.sent: deque[Transmit] = deque(maxlen=50)
        self.asked = self.tried = self.ended = 0
        self.observer.use_servers([A1P1, SECOND], now=self.now)
        self.observer.observe(BEHIND, now=self.now)
        self.drain()

    def drain(self) -> None:
        transmits = list(self.observer.transmits())
        assert len(transmits) <= MOST_SENT_AT_ONCE
        self.sent.extend(transmits)
        number = 0
        while self.observer.next_event() is not None:
            number += 1
        assert number <= MOST_EVENTS_AT_ONCE

    def do(self, name: str, value: object) -> None:
        """Take one step."""
        observer, now = self.observer, self.now
        match name, value:
            case "wait", float(seconds):
                self.now += seconds
                observer.handle_timeout(now=self.now)
            case "due", int(times):
                for _ in range(times):
                    if (due := observer.timeout_at()) is not None:
                        self.now = max(self.now, due)
                        observer.handle_timeout(now=self.now)
                        self.drain()
            case "answer", int(which):
                self.answer(which)
            case "answer all", None:
                for which in range(len(self.sent)):
                    self.answer(which)
            case "forge", (int(which), MessageClass() as kind, tuple(attributes), Endpoint() as source):
                if which < len(self.sent):
                    transaction_id = self.sent[which].data[8:20]
                    forged = Message(Method.BINDING, kind, transaction_id, attributes).encode()
                    assert observer.receive(forged, source, now=now) in (True, False)
            case "spoil", (int(which), int(where), int(byte)):
                self.answer(which, spoil=(where, byte))
            case "arrives", (bytes(data), Endpoint() as source):
                is_ours = observer.receive(data, source, now=now)
                assert not is_ours or data[4:8] == MAGIC_COOKIE
            case "undeliverable", Endpoint() | None as destination:
                observer.undeliverable(destination, "Network is unreachable", now=now)
            case "observe", Endpoint() as local:
                observer.observe(local, now=now)
            case "use", list(servers):
                observer.use_servers(servers, now=now)
            case "map", None:
                observer.test_mapping(now=now)
            case "check", None:
                observer.check(now=now)
            case "try", Endpoint() as public:
                observer.try_inbound(public, now=now)
            case _:
                raise AssertionError(name)
        self.drain()

    def answer(self, which: int, *, spoil: tuple[int, int] | None = None) -> None:
        """Have a request answered by the server that it went to, perhaps with one byte changed."""
        if which >= len(self.sent):
            return
        asked = self.sent[which]
        reply = WORLD[asked.destination](asked.data, MAPPED, asked.destination)
        if reply is None:
            return
        data = bytearray(reply[0])
        if spoil:
            data[spoil[0] % len(data)] = spoil[1]
        self.observer.receive(bytes(data), reply[1], now=self.now)
        self.drain()

    def look(self) -> None:
        """See that the promises are kept."""
        due = self.observer.timeout_at()
        for _ in range(3):  # what is due is done at once, and what follows from it
            if due is None or due > self.now:
                break
            self.observer.handle_timeout(now=self.now)
            self.drain()
            due = self.observer.timeout_at()
        assert due is None or due > self.now
        assert len(self.observer._probes._sent) < 200
        assert len(self.observer._probes._active) < 30


@given(st.lists(steps, max_size=30), st.booleans(), st.integers(0, 99))
def test_it_never_raises_never_runs_in_circles_and_remembers_little(
    story: list[tuple[str, object]], fresh_port: bool, seed: int
) -> None:
    harness = Harness(fresh_port=fresh_port, seed=seed)
    for name, value in story:
        harness.do(name, value)
        harness.look()


@given(st.lists(steps, max_size=30), st.booleans(), st.integers(0, 99))
def test_left_alone_it_comes_to_rest(story: list[tuple[str, object]], fresh_port: bool, seed: int) -> None:
    harness = Harness(fresh_port=fresh_port, seed=seed)
    for name, value in story:
        harness.do(name, value)
    for _ in range(1000):
        if (due := harness.observer.timeout_at()) is None:
            break
        harness.now = max(harness.now, due)
        harness.observer.handle_timeout(now=harness.now)
        harness.drain()
    assert harness.observer.timeout_at() is None


@given(st.lists(st.tuples(st.binary(max_size=80), sources), max_size=20))
def test_what_it_did_not_ask_for_is_never_eaten(arriving: list[tuple[bytes, Endpoint]]) -> None:
    harness = Harness(fresh_port=True, seed=1)
    ids = {asked.data[8:20] for asked in harness.sent}
    for data, source in arriving:
        assert harness.observer.receive(data, source, now=1000.0) is (
            data[4:8] == MAGIC_COOKIE and data[8:20] in ids
        )
