"""Whatever arrives while the lifetime of bindings is measured, it ends in time and claims nothing unheard."""

from __future__ import annotations

import random
from ipaddress import ip_address

from hypothesis import example, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.attributes import (
    ERROR_CODE,
    OTHER_ADDRESS,
    RESPONSE_PORT,
    XOR_MAPPED_ADDRESS,
    Attribute,
    Error,
)
from nattools.stun.lifetime import RESTS_S, Expired, Finished, Lifetime, LifetimeEvent, Survived, socket_names
from nattools.stun.message import Message, MessageClass

SERVER = Endpoint.of("203.0.113.10", 3478)
OTHER = Endpoint.of("203.0.113.11", 3479)
PUBLIC_IP, PORT = ip_address("198.51.100.1"), 20000
SOCKETS = socket_names()
Answer = tuple[int, MessageClass, Endpoint | None, list[Attribute]]
LONGEST_S = RESTS_S[-1] + 60  # the openings, the control and the last question beside the rests

sources = st.sampled_from([SERVER, SERVER, SERVER, OTHER])
sockets = st.sampled_from(["ask", "ask", *SOCKETS, "another", ""])
addresses = st.builds(
    Endpoint, st.sampled_from([ip_address("198.51.100.1"), OTHER.ip]), st.integers(0, 0xFFFF)
)
attributes = st.one_of(
    st.builds(Attribute, st.integers(0, 0xFFFF), st.binary(max_size=12)),
    st.builds(ERROR_CODE.of, st.builds(Error, st.integers(300, 699))),
    st.builds(OTHER_ADDRESS.of, addresses),
)
classes = st.sampled_from([MessageClass.SUCCESS, *MessageClass])


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """An answer, true or false, to the request of that number; the modulus is taken."""
    mapped = draw(st.none() | addresses)
    return draw(st.integers(0, 500)), draw(classes), mapped, draw(st.lists(attributes, max_size=3))


arrivals = st.lists(
    st.tuples(answers() | st.binary(max_size=60), sources, sockets, st.floats(0, 5)), max_size=40
)


def datagram(answer: Answer | bytes, sent: list[Transmit]) -> bytes:
    if isinstance(answer, bytes):
        return answer
    number, message_class, mapped, more = answer
    request = Message.parse(sent[number % len(sent)].data)
    if mapped is not None:
        more = [XOR_MAPPED_ADDRESS.of(mapped, request.xor_key), *more]
    return Message(request.method, message_class, request.transaction_id, tuple(more)).encode()


def check_end(events: list[LifetimeEvent], sent: list[Transmit], now: float) -> None:
    """One end, in time, with what the events before it said."""
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished is events[-1]
    survived = [event.idle_s for event in events if isinstance(event, Survived)]
    expired = [event.idle_s for event in events if isinstance(event, Expired)]
    longest_s, shortest_s = finished.longest_survived_s, finished.shortest_expired_s
    assert shortest_s == min(expired, default=None)
    assert longest_s is None or longest_s in survived
    assert longest_s is None or shortest_s is None or longest_s < shortest_s
    assert finished.reason
    assert now < LONGEST_S
    assert len(sent) < 2000
    assert {transmit.destination for transmit in sent} == {SERVER}


ONE_LATE_ANSWER: list[tuple[Answer | bytes, Endpoint, str, float]] = [
    (b"", SERVER, "ask", 2.0),
    ((0, MessageClass.SUCCESS, Endpoint(PUBLIC_IP, 0), [OTHER_ADDRESS.of(OTHER)]), SERVER, "ask", 4.0),
]


@given(arrivals, st.randoms(use_true_random=False))
@example(ONE_LATE_ANSWER, random.Random(1))
def test_anything_may_arrive(
    coming: list[tuple[Answer | bytes, Endpoint, str, float]], rng: random.Random
) -> None:
    coming = list(coming)
    machine = Lifetime(SERVER, sockets=SOCKETS, entropy=rng.randbytes, now=0.0)
    sent, events, now = list(machine.transmits()), list[LifetimeEvent](), 0.0
    while (timeout_at := machine.timeout_at()) is not None:
        assert timeout_at >= now
        if coming and now + coming[0][3] <= timeout_at:
            answer, source, socket, pause_s = coming.pop(0)
            now += pause_s
            machine.receive(datagram(answer, sent), source, now=now, socket=socket)
        else:
            now = timeout_at
            machine.handle_timeout(now=now)
        sent += machine.transmits()
        while (event := machine.next_event()) is not None:
            events.append(event)
    check_end(events, sent, now)


@given(st.randoms(use_true_random=False), st.floats(0, 0.5))
def test_a_server_may_answer_as_it_likes(rng: random.Random, wrong: float) -> None:
    """Rightly for the most part, so that every question is asked; else nothing, an error, or elsewhere."""
    machine = Lifetime(SERVER, sockets=SOCKETS, entropy=rng.randbytes, now=0.0)
    sent, events, now = list[Transmit](), list[LifetimeEvent](), 0.0
    while True:
        for transmit in machine.transmits():
            sent.append(transmit)
            port = Message.parse(transmit.data).get(RESPONSE_PORT)
            socket = SOCKETS[port - PORT] if port is not None else transmit.socket
            mapped = Endpoint(PUBLIC_IP, PORT + SOCKETS.index(transmit.socket))
            message_class, more = MessageClass.SUCCESS, [OTHER_ADDRESS.of(OTHER)]
            if rng.random() < wrong:
                socket = rng.choice([socket, transmit.socket, rng.choice(SOCKETS)])
                mapped = rng.choice([mapped, mapped.with_port(PORT), OTHER])
                message_class = rng.choice([MessageClass.SUCCESS, MessageClass.ERROR])
                more = [ERROR_CODE.of(Error(500))]
            if rng.random() >= wrong:
                answer = datagram((0, message_class, mapped, more), [transmit])
                now += rng.random() * 0.01
                machine.receive(answer, SERVER, now=now, socket=socket)
        while (event := machine.next_event()) is not None:
            events.append(event)
        timeout_at = machine.timeout_at()
        if timeout_at is None:
            break
        now = max(now, timeout_at)
        machine.handle_timeout(now=now)
    check_end(events, sent, now)
