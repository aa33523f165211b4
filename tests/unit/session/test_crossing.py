"""Two sides: what crosses, from which socket, to where; punches; events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.crossing import FIRST_PUNCH_S, MOST_PUNCHES, Crossing, Foreign, Latched
from nattools.session.relay import Expectation, Side
from tests.unit.session.rtp import ATTACKER, MAPPED, PCMU, PEER, REBOUND, behind_nat, in_public, rtcp, rtp


def crossing(a: Expectation | None = None, b: Expectation | None = None) -> Crossing:
    """A phone behind a NAT on side A, a telephone without one on side B."""
    made = Crossing(entropy=lambda count: b"\x07" * count)
    made.expect(Side.A, a or behind_nat(), now=0.0)
    made.expect(Side.B, b or in_public(), now=0.0)
    return made


def take(made: Crossing, data: bytes, source: Endpoint, socket: str, *, now: float = 0.0) -> list[Transmit]:
    made.receive(data, source, now=now, socket=socket)
    return made.transmits()


def events(made: Crossing) -> Iterator[Latched | Foreign]:
    while (event := made.next_event()) is not None:
        yield event


def in_a_call(a: Expectation | None = None, b: Expectation | None = None) -> Crossing:
    """Both have spoken."""
    made = crossing(a, b)
    take(made, rtp(1, ssrc=1), MAPPED, "a.rtp")
    take(made, rtp(2, ssrc=1), MAPPED, "a.rtp")
    take(made, rtp(1, ssrc=2), PEER, "b.rtp")
    assert (made.source(Side.A), made.source(Side.B)) == (MAPPED, PEER)
    list(events(made))
    return made


def test_what_the_one_says_goes_to_the_other_from_the_socket_that_hears_him() -> None:
    made = in_a_call()
    assert take(made, rtp(3, ssrc=1), MAPPED, "a.rtp") == [Transmit(rtp(3, ssrc=1), PEER, "b.rtp")]
    assert take(made, rtp(2, ssrc=2), PEER, "b.rtp") == [Transmit(rtp(2, ssrc=2), MAPPED, "a.rtp")]


def test_it_is_held_back_while_nowhere_to_send_it_is_known() -> None:
    made = crossing()
    assert take(made, rtp(1), PEER, "b.rtp") == []
    assert made.latches[Side.A].statistics().held == 1
    assert made.latches[Side.B].statistics().packets == 1


def test_what_comes_before_its_side_has_described_itself_is_held_and_not_foreign() -> None:
    """As the first packets of who answers, which overtake his 200."""
    made = Crossing(entropy=bytes)
    made.expect(Side.A, in_public(), now=0.0)
    assert take(made, rtp(1), MAPPED, "b.rtp") == take(made, rtcp(), MAPPED, "b.rtcp") == []
    assert made.latches[Side.A].statistics().held == 2
    assert made.latches[Side.B].statistics().foreign == 0


def test_a_public_address_is_sent_to_before_it_has_spoken() -> None:
    made = crossing()
    take(made, rtp(1), MAPPED, "a.rtp")
    assert take(made, rtp(2), MAPPED, "a.rtp") == [Transmit(rtp(2), PEER, "b.rtp")]


def test_a_foreign_packet_goes_nowhere_and_is_told() -> None:
    made = in_a_call()
    for socket, is_rtcp in (("a.rtp", False), ("b.rtcp", True)):
        assert take(made, rtp(9), ATTACKER, socket) == []
        assert list(events(made)) == [Foreign(Side(socket[0]), is_rtcp, ATTACKER, rtp(9))]


def test_of_a_flood_the_latest_events_are_kept() -> None:
    made = in_a_call()
    for port in range(1000, 2000):
        take(made, rtp(9), ATTACKER.with_port(port), "a.rtp")
    kept = list(events(made))
    assert len(kept) <= 100
    assert kept[-1].source.port == 1999
    assert made.latches[Side.A].statistics().foreign == 1000


def test_a_new_source_is_told_with_the_one_before() -> None:
    made = crossing()
    take(made, rtp(1), PEER, "b.rtp")
    take(made, rtp(2), REBOUND, "b.rtp")
    take(made, rtcp(), REBOUND.with_port(1), "b.rtcp")
    assert list(events(made)) == [
        Latched(Side.B, False, PEER, None),
        Latched(Side.B, False, REBOUND, PEER),
        Latched(Side.B, True, REBOUND.with_port(1), None),
    ]


def test_rtcp_crosses_between_the_rtcp_ports() -> None:
    made = in_a_call()
    peer_rtcp = PEER.with_port(PEER.port + 1)
    crossed = take(made, rtcp(1), MAPPED.with_port(13017), "a.rtcp")
    assert crossed == [Transmit(rtcp(1), peer_rtcp, "b.rtcp")]
    crossed = take(made, rtcp(2), peer_rtcp, "b.rtcp")
    assert crossed == [Transmit(rtcp(2), MAPPED.with_port(13017), "a.rtcp")]


def test_between_one_side_with_rtcp_mux_and_one_without_it_changes_ports() -> None:
    made = in_a_call(a=replace(behind_nat(), rtcp_mux=True))
    assert made.converts_mux
    peer_rtcp = PEER.with_port(PEER.port + 1)
    assert take(made, rtcp(1), MAPPED, "a.rtp") == [Transmit(rtcp(1), peer_rtcp, "b.rtcp")]
    assert take(made, rtcp(2), peer_rtcp, "b.rtcp") == [Transmit(rtcp(2), MAPPED, "a.rtp")]
    assert take(made, rtp(3, ssrc=1), MAPPED, "a.rtp") == [Transmit(rtp(3, ssrc=1), PEER, "b.rtp")]


def test_with_rtcp_mux_on_both_sides_it_stays_where_it_is() -> None:
    muxed = (replace(behind_nat(), rtcp_mux=True), replace(in_public(), rtcp_mux=True))
    made = in_a_call(*muxed)
    assert not made.converts_mux
    assert take(made, rtcp(1), MAPPED, "a.rtp") == [Transmit(rtcp(1), PEER, "b.rtp")]


def test_a_side_on_hold_is_sent_nothing_and_the_other_is() -> None:
    made = in_a_call()
    made.expect(Side.A, replace(behind_nat(), rtp=None), now=5.0)
    assert take(made, rtp(2, ssrc=2), PEER, "b.rtp", now=5.0) == []
    assert take(made, rtp(3, ssrc=1), MAPPED, "a.rtp", now=5.0) == [Transmit(rtp(3, ssrc=1), PEER, "b.rtp")]


def punches(made: Crossing) -> list[tuple[float, Transmit]]:
    sent = []
    while (due_at := made.timeout_at()) is not None:
        made.handle_timeout(now=due_at - 0.001)
        assert not made.transmits()
        made.handle_timeout(now=due_at)
        sent += [(due_at, each) for each in made.transmits()]
    return sent


def test_while_both_wait_the_side_that_may_be_sent_to_gets_punches_less_and_less_often() -> None:
    sent = punches(crossing())
    assert [round(at, 3) for at, _ in sent] == [0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7]
    assert len(sent) == MOST_PUNCHES
    for _, punch in sent:
        assert (punch.destination, punch.socket) == (PEER, "b.rtp")
        assert len(punch.data) == 12
        assert punch.data[0] == 0x80
        assert punch.data[1] not in (PCMU, 101)  # receivers drop a type that nobody has offered


def test_both_sides_get_them_where_both_may_be_sent_to() -> None:
    sent = punches(crossing(a=replace(behind_nat(), is_proven=True)))
    assert {it.socket for _, it in sent} == {"a.rtp", "b.rtp"}


def test_there_is_no_punch_once_one_has_spoken() -> None:
    made = crossing()
    take(made, rtp(1), PEER, "b.rtp", now=0.05)
    assert made.timeout_at() is None


def test_a_foreign_packet_does_not_stop_them() -> None:
    made = crossing()
    take(made, rtp(1), ATTACKER, "b.rtp", now=0.05)
    assert made.timeout_at() == FIRST_PUNCH_S


def test_nor_is_there_one_before_both_are_known_or_for_what_is_no_rtp() -> None:
    made = Crossing(entropy=bytes)
    made.expect(Side.A, behind_nat(), now=0.0)
    assert made.timeout_at() is None
    made.expect(Side.B, Expectation(PEER), now=0.0)
    assert made.timeout_at() is None


def test_a_session_of_all_dynamic_types_is_punched_as_well() -> None:
    every = replace(in_public(), payload_types=frozenset(range(96, 128)))
    assert len(punches(crossing(a=replace(behind_nat(), payload_types=every.payload_types), b=every))) == 7


@pytest.mark.parametrize("side", Side)
def test_the_other_side_of_the_other_side_is_this_one(side: Side) -> None:
    assert side.other is not side
    assert side.other.other is side
