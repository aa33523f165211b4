"""Pings to registered phones: when they go out, what counts as an answer, and who is dead."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from nattools.endpoint import Endpoint
from nattools.machine import Entropy, Transmit
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.keepalive import Alive, Dead, Keepalive
from nattools.session.settings import PingKind
from nattools.sip.message import SipMessage, compose_response
from tests.unit.session.proxy_desk import counting

PHONE = Flow("udp", Endpoint.of("198.51.100.1", 2753))
URI = b"sip:alice@192.168.0.108:5060"


def keepalive(
    kind: PingKind = PingKind.OPTIONS, *, dead_after: int = 3, entropy: Entropy | None = None
) -> Keepalive[str]:
    flows = Flows(
        [
            Listener("udp", "UDP", Endpoint.of("10.0.0.5", 5060), Endpoint.of("203.0.113.5", 5060)),
            Listener("tcp", "TCP", Endpoint.of("203.0.113.5", 5060)),
        ]
    )
    flows.connected("tcp#1", "tcp", Endpoint.of("198.51.100.1", 41000))
    return Keepalive(flows, kind, interval_s=15, dead_after=dead_after, entropy=entropy or counting())


def run(it: Keepalive[str], until: float) -> list[tuple[float, Transmit]]:
    """What it sends by itself until then, and when."""
    sent = []
    while (when := it.timeout_at()) is not None and when <= until:
        it.handle_timeout(now=when)
        sent += [(when, transmit) for transmit in it.transmits()]
    return sent


def answer(ping: bytes, code: int = 200) -> bytes:
    return compose_response(SipMessage.parse(ping), code, "Word", to_tag="t")


def events(it: Keepalive[str]) -> list[Alive[str] | Dead[str]]:
    taken = []
    while (event := it.next_event()) is not None:
        taken.append(event)
    return taken


def first_ping(it: Keepalive[str]) -> tuple[float, bytes]:
    when = it.timeout_at()
    assert when is not None
    ((_, transmit),) = run(it, when)
    return when, transmit.data


def alive(it: Keepalive[str]) -> float:
    """Have the phone be pinged, and answer; when that was."""
    it.watch("alice", PHONE, URI, until=1e6, now=0)
    when, ping = first_ping(it)
    assert it.receive_response(answer(ping), now=when)
    assert events(it) == [Alive("alice")]
    return when


def test_a_ping_is_an_options_by_the_flow_of_the_registration() -> None:
    it = keepalive()
    it.watch("alice", PHONE, URI, until=1e6, now=0)
    when = it.timeout_at()
    assert when is not None
    ((_, transmit),) = run(it, when)
    assert (transmit.socket, transmit.destination) == (PHONE.socket, PHONE.remote)
    ping = SipMessage.parse(transmit.data)
    assert transmit.data.startswith(b"OPTIONS sip:alice@192.168.0.108:5060 SIP/2.0\r\n")
    assert ping.first_value("via").startswith(b"SIP/2.0/UDP 203.0.113.5:5060;rport;branch=z9hG4bKping")
    assert ping.cseq == (1, "OPTIONS")
    assert ping.first_value("to") == b"<sip:alice@192.168.0.108:5060>"
    assert ping.from_tag
    assert not ping.length_error


def test_by_a_connection_the_via_is_that_of_its_listener() -> None:
    it = keepalive()
    it.watch("alice", Flow("tcp#1", Endpoint.of("198.51.100.1", 41000)), URI, until=1e6, now=0)
    _, ping = first_ping(it)
    assert SipMessage.parse(ping).first_value("via").startswith(b"SIP/2.0/TCP 203.0.113.5:5060;branch=")


@pytest.mark.parametrize("uri", [b"sip:a\0b@x", b"sip:\xff@x", b"sip:a b@x", b"sip:a>@x", b""])
def test_a_contact_that_would_break_the_request_is_not_written_into_it(uri: bytes) -> None:
    it = keepalive()
    it.watch("alice", PHONE, uri, until=1e6, now=0)
    _, ping = first_ping(it)
    assert ping.startswith(b"OPTIONS sip:198.51.100.1:2753 SIP/2.0\r\n")


def test_who_answers_is_pinged_once_in_each_interval() -> None:
    it = keepalive()
    first = alive(it)
    assert 7.5 < first <= 15  # it has just registered
    whens = [first]
    pings = []
    for turn in range(1, 4):
        ((when, transmit),) = run(it, first + 15 * turn)
        assert it.receive_response(answer(transmit.data, 486), now=when + 0.1)
        whens.append(when)
        pings.append(transmit.data)
    assert whens == [first, first + 15, first + 30, first + 45]
    assert len({SipMessage.parse(ping).branch for ping in pings}) == 3
    assert len({SipMessage.parse(ping).call_id for ping in pings}) == 3
    assert events(it) == []
    assert it.counters == {"pings": 4, "pongs": 4}


def test_many_phones_have_their_turns_evenly() -> None:
    it = keepalive(entropy=Random(1).randbytes)
    for number in range(1500):
        it.watch(str(number), PHONE, URI, until=1e6, now=0, is_heard=False)
    seconds = [0] * 15
    for when, _ in run(it, 15):
        seconds[min(int(when), 14)] += 1
    assert sum(seconds) == 1500
    assert max(seconds) < 3 * min(seconds)


def test_who_stops_answering_is_asked_again_quickly_and_then_is_dead() -> None:
    it = keepalive(dead_after=3)
    first = alive(it)
    sent = run(it, 1e5)
    assert [when - first for when, _ in sent] == [15, 16, 18]
    assert events(it) == [Dead("alice", PHONE, 3)]
    assert len(it) == 0
    assert it.counters["dead"] == 1


def test_an_answer_to_any_ping_of_the_row_is_one() -> None:
    it = keepalive(dead_after=3)
    first = alive(it)
    sent = run(it, first + 18.5)
    assert it.receive_response(answer(sent[0][1].data), now=first + 18.5)
    assert events(it) == [Alive("alice")]
    ((when, _),) = run(it, first + 30)
    assert when == first + 30


def test_a_provisional_answer_shows_nothing_but_is_no_business_of_the_proxy() -> None:
    it = keepalive(dead_after=2)
    first = alive(it)
    ((when, transmit),) = run(it, first + 15)
    assert it.receive_response(answer(transmit.data, 100), now=when)
    run(it, 1e5)
    assert events(it) == [Dead("alice", PHONE, 2)]


def test_who_never_answered_is_pinged_on_and_never_dead() -> None:
    it = keepalive()
    it.watch("alice", PHONE, URI, until=1000, now=0)
    sent = run(it, 900)
    assert {b - a for (a, _), (b, _) in pairwise(sent)} == {15}
    assert events(it) == []
    assert it.receive_response(answer(sent[-1][1].data), now=901)
    assert events(it) == [Alive("alice")]


def test_a_registration_that_has_run_out_is_pinged_no_more() -> None:
    it = keepalive()
    it.watch("alice", PHONE, URI, until=40, now=0)
    assert 2 <= len(run(it, 1000)) <= 3
    assert len(it) == 0
    assert events(it) == []


def test_registering_again_keeps_the_turn_and_another_flow_begins_anew() -> None:
    it = keepalive(dead_after=3)
    first = alive(it)
    run(it, first + 16.5)  # two in vain
    it.watch("alice", PHONE, URI, until=2e6, now=first + 17)
    assert len(run(it, first + 20)) == 2
    assert events(it) == []
    moved = Flow("udp", Endpoint.of("198.51.100.2", 2754))
    it.watch("alice", moved, URI, until=1e6, now=first + 20)
    assert {transmit.destination for _, transmit in run(it, first + 100)} == {moved.remote}
    assert events(it) == []
    it.unwatch("alice")
    it.unwatch("alice")
    assert it.timeout_at() is None


def test_made_up_answers_count_for_nothing() -> None:
    it = keepalive(dead_after=3)
    first = alive(it)
    ((_, transmit),) = run(it, first + 15)
    forged = answer(transmit.data)
    branch = SipMessage.parse(transmit.data).branch or b""
    name = branch.split(b".")
    for wrong in (name[0] + b".0123456789abcdef.2", b"z9hG4bKpingffffff." + name[1] + b".2"):
        assert it.receive_response(forged.replace(branch, wrong), now=first + 15)
    assert not it.receive_response(forged.replace(branch, b"z9hG4bK" + name[1]), now=first + 15)
    assert it.counters["late"] == 2
    run(it, first + 20)
    assert events(it) == []
    assert it.receive_response(forged, now=first + 20)
    assert it.receive_response(forged, now=first + 20)  # sent twice
    assert events(it) == [Alive("alice")]


def test_a_stall_does_not_bring_turns_together() -> None:
    it = keepalive()
    for number in range(50):
        it.watch(str(number), PHONE, URI, until=1e6, now=0, is_heard=False)
    turns = [when for when, _ in run(it, 15)]
    it.handle_timeout(now=100)
    assert len(it.transmits()) == 50
    assert [round(when % 15, 6) for when, _ in run(it, 115)] == [
        round(turn % 15, 6) for turn in sorted(turns, key=lambda turn: (turn - 10) % 15)
    ]


def test_double_crlfs_go_out_alike_and_expect_nothing() -> None:
    it = keepalive(PingKind.CRLF)
    it.watch("alice", PHONE, URI, until=1e6, now=0)
    sent = run(it, 100)
    assert len(sent) in (6, 7)
    assert {transmit.data for _, transmit in sent} == {b"\r\n\r\n"}
    assert {b - a for (a, _), (b, _) in pairwise(sent)} == {15}
    assert events(it) == []


def test_nobody_is_pinged_where_that_is_not_wanted() -> None:
    it = keepalive(PingKind.NONE)
    it.watch("alice", PHONE, URI, until=1e6, now=0)
    assert it.timeout_at() is None
