"""What a relay promises whoever sends to its ports: no stranger is heard, and none gets the sound of a call.

The attacker knows all ports, sends whatever he likes as often as he likes, from as many places as he likes.
He sees no packet of the call, so that he does not know its SSRC, and he is at no address that signalling
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.crossing import Crossing, Latched
from nattools.session.latch import PATIENCE_S
from nattools.session.relay import Side
from tests.unit.session.rtp import ATTACKER, MAPPED, PEER, REBOUND, behind_nat, in_public, rtcp, rtp

PHONE_SSRC, PEER_SSRC = 0xA11CE, 0xB0B
ATTACKERS = [ATTACKER.with_port(port) for port in (1, 2, 5060, 10002, 49170)]
SOCKETS = ("a.rtp", "a.rtcp", "b.rtp", "b.rtcp")
PACE_S = 0.02
MARK = b"attack"

hostile = st.one_of(
    st.builds(
        lambda sequence, ssrc, kind: rtp(sequence, ssrc=ssrc, payload_type=kind)[:12] + MARK,
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF).filter(lambda it: it not in (PHONE_SSRC, PEER_SSRC)),
        st.sampled_from([0, 8, 101]),
    ),
    st.builds(lambda kind: rtcp(0xBAD, packet_type=kind) + MARK, st.sampled_from([200, 201, 203])),
    st.binary(max_size=20).map(lambda it: b"\x00" + it + MARK),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("attack"), st.sampled_from(ATTACKERS), st.sampled_from(SOCKETS), hostile),
        st.tuples(
            st.just("volley"), st.sampled_from(ATTACKERS), st.sampled_from(SOCKETS), st.integers(5, 40)
        ),
        st.tuples(st.just("speak"), st.integers(1, 40)),
        st.tuples(st.just("rebind"), st.sampled_from([MAPPED, REBOUND, MAPPED.with_port(9)])),
        st.tuples(st.just("signalling"), st.sampled_from(Side)),
        st.tuples(st.just("hold"), st.sampled_from(Side)),
        st.tuples(st.just("lose"), st.integers(1, 100)),
    ),
    max_size=40,
)


class Call:
    """A phone behind a NAT that speaks with a telephone without one, and who else there is."""

    def __init__(self) -> None:
        self.crossing = Crossing(entropy=bytes)
        self.now = 0.0
        self.sequence = 1
        self.phone_at = MAPPED
        self.own = {MAPPED, REBOUND, MAPPED.with_port(9), PEER, PEER.with_port(PEER.port + 1)}
        self.expectations = {Side.A: behind_nat(), Side.B: in_public()}
        for side in Side:
            self.crossing.expect(side, self.expectations[side], now=self.now)

    def speak(self) -> list[Transmit]:
        """20 ms of both; what was relayed."""
        sent = self.receive(rtp(self.sequence, ssrc=PHONE_SSRC), self.phone_at, "a.rtp")
        sent += self.receive(rtp(self.sequence, ssrc=PEER_SSRC), PEER, "b.rtp")
        self.sequence += 1
        self.now += PACE_S
        return sent

    def receive(self, data: bytes, source: Endpoint, socket: str) -> list[Transmit]:
        """Give the relay a datagram, and look at all that it does."""
        self.crossing.receive(data, source, now=self.now, socket=socket)
        sent = self.crossing.transmits()
        for each in sent:
            assert MARK not in each.data, "a foreign packet was relayed"
            assert each.destination in self.own, "a packet of the call went to somebody else"
        while (event := self.crossing.next_event()) is not None:
            assert not isinstance(event, Latched) or event.source in self.own, "a stream was taken"
        return sent

    def attack(self, step: tuple[object, ...]) -> Iterator[tuple[bytes, Endpoint, str]]:
        """What an attacker sends."""
        what, source, socket, how = step
        assert isinstance(source, Endpoint)
        assert isinstance(socket, str)
        if what == "volley":
            assert isinstance(how, int)
            for number in range(how):  # perfect RTP, but for its SSRC
                yield rtp(self.sequence + number, ssrc=0xBAD)[:12] + MARK, source, socket
        else:
            assert isinstance(how, bytes)
            yield how, source, socket

    def take(self, step: tuple[object, ...]) -> None:
        """One step of the walk."""
        match step:
            case ("speak", int(packets)):
                for _ in range(packets):
                    self.speak()
            case ("rebind", Endpoint() as where):
                self.phone_at = where
                self.speak()
            case ("signalling", Side() as side):
                self.crossing.expect(side, self.expectations[side], now=self.now)
            case ("hold", Side() as side):
                self.crossing.expect(side, replace(self.expectations[side], rtp=None), now=self.now)
            case ("lose", int(packets)):
                self.sequence += packets
                self.now += packets * PACE_S
            case _:
                for data, source, socket in self.attack(step):
                    self.receive(data, source, socket)


@given(walk=steps)
def test_an_attacker_never_gets_a_packet_through_nor_takes_a_stream(walk: list[tuple[object, ...]]) -> None:
    call = Call()
    for _ in range(2):
        call.speak()
    for step in walk:
        call.take(step)
    call.expectations[Side.A] = replace(
        behind_nat(), hosts=frozenset({call.phone_at.ip})
    )  # it registers anew
    for side in Side:
        call.crossing.expect(side, call.expectations[side], now=call.now)
    for _ in range(3):
        call.speak()
    sent = call.speak()
    assert [it.socket for it in sent] == ["b.rtp", "a.rtp"], "the call was silenced"
    assert [it.destination for it in sent] == [PEER, call.phone_at]


@given(walk=steps.map(lambda all_steps: [it for it in all_steps if it[0] in ("attack", "volley")]))
def test_nor_before_the_sides_have_spoken_while_the_hosts_that_are_named_may_come(
    walk: list[tuple[object, ...]],
) -> None:
    call = Call()
    for number, step in enumerate(walk):
        call.now = number * PATIENCE_S / (len(walk) + 1)
        call.take(step)
    for _ in range(2):
        call.speak()
    assert [it.destination for it in call.speak()] == [PEER, MAPPED]


@given(
    data=st.binary(max_size=64), socket=st.sampled_from(SOCKETS), at=st.sampled_from([MAPPED, PEER, ATTACKER])
)
def test_no_datagram_raises(data: bytes, socket: str, at: Endpoint) -> None:
    call = Call()
    for _ in range(3):
        call.crossing.receive(data, at, now=call.now, socket=socket)
    assert all(it.data == data for it in call.crossing.transmits())


def test_the_walk_would_notice_a_relay_that_believes_strangers() -> None:
    call = Call()
    call.crossing.expect(Side.A, replace(behind_nat(), hosts=frozenset({ATTACKER.ip})), now=0.0)
    with pytest.raises(AssertionError, match=r"foreign packet|a stream was taken|somebody else"):
        call.take(("volley", ATTACKER, "a.rtp", 10))
