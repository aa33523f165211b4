"""What a binding machine makes of what providers, servers and the network say, one input at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nattools.binding.machine import (
    ANSWER_PATIENCE_S,
    PATIENCE_S,
    Ask,
    BindingEvent,
    BindingMachine,
    Failed,
    Release,
)
from nattools.binding.model import BindingChange, ChangeKind, Claim, Method, Reach, Source
from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, NoRouterError
from nattools.stun.responder import Reply, Responder, ServerAddresses

LOCAL = Endpoint.of("192.168.0.108", 5060)
OTHER_LOCAL = Endpoint.of("192.168.0.109", 5060)
PUBLIC = Endpoint.of("203.0.113.1", 5060)
SERVER = Endpoint.of("203.0.113.10", 3478)
PEER = Endpoint.of("203.0.113.20", 5060)
ROUTER = Claim(Method.PCP, LOCAL, PUBLIC, "the router maps it", lease_s=3600)
STATIC = Claim(Method.STATIC, LOCAL, PUBLIC, "the settings say so")
TUNNEL = Claim(Method.VPN, LOCAL, Endpoint.of("10.8.0.2", 5060), "wg0 leads there", realm="wg0")
REFUSED = NoRouterError("no router answered")
ASK_STATIC, ASK_ROUTER = Ask(Source.STATIC), Ask(Source.ROUTER)


def machine(*methods: Method, now: float = 0.0, **settings: object) -> BindingMachine:
    entropy = random.Random(1).randbytes
    return BindingMachine(LOCAL, methods=methods, entropy=entropy, now=now, **settings)  # type: ignore[arg-type]  # whatever a test varies


def told(machine: BindingMachine) -> list[BindingEvent]:
    events = []
    while (event := machine.next_event()) is not None:
        events.append(event)
    return events


def gist(machine: BindingMachine) -> list[object]:
    """What it asks, releases and tells, changes by their kind alone."""
    return [event.kind if isinstance(event, BindingChange) else event for event in told(machine)]


def failure(machine: BindingMachine) -> BindingError:
    (error,) = [event.error for event in told(machine) if isinstance(event, Failed)]
    return error


def lets_pass(machine: BindingMachine, until: float) -> list[tuple[float, object]]:
    """What it tells by itself until then, and when; nothing that it sends arrives."""
    events: list[tuple[float, object]] = []
    while (due := machine.timeout_at()) is not None and due <= until:
        machine.handle_timeout(now=due)
        list(machine.transmits())
        events += [(due, event) for event in gist(machine)]
    return events


def answers(machine: BindingMachine, *, mapped: Endpoint = PUBLIC) -> list[bytes]:
    """What a server with one address answers to what is sent now."""
    responder = Responder(ServerAddresses(SERVER.ip, SERVER.port))
    replies = [
        responder.respond(transmit.data, mapped, SERVER)
        for transmit in machine.transmits()
        if transmit.destination == SERVER
    ]
    return [reply.data for reply in replies if isinstance(reply, Reply)]


def answered(machine: BindingMachine, now: float, *, mapped: Endpoint = PUBLIC) -> None:
    """Have a server with one address answer, until nothing more is to be done at that time."""
    while (sent := answers(machine, mapped=mapped)) or (machine.timeout_at() or now + 1) <= now:
        for data in sent:
            assert machine.receive(data, SERVER, now=now)
        machine.handle_timeout(now=now)


# Providers: asked, believed, released


def test_every_provider_is_asked_at_once_and_who_is_not_used_is_released() -> None:
    tried = machine(Method.STATIC, Method.PCP)
    assert gist(tried) == [ASK_STATIC, ASK_ROUTER]
    tried.claim(STATIC, now=0.1)
    assert gist(tried) == [Release(Source.ROUTER), ChangeKind.ACQUIRED]


def test_a_claim_that_comes_late_is_given_back() -> None:
    held = machine(Method.STATIC, Method.PCP)
    held.claim(STATIC, now=0.1)
    told(held)
    for now in (1.0, 2.0):
        held.claim(ROUTER, now=now)
        assert gist(held) == [Release(Source.ROUTER)]
    assert held.binding is not None
    assert held.binding.method is Method.STATIC


def test_what_a_provider_says_that_is_not_used_changes_nothing() -> None:
    held = machine(Method.STATIC, Method.PCP)
    held.claim(STATIC, now=0.1)
    told(held)
    before = held.binding
    held.claim(ROUTER, now=1.0)
    held.refuse(Source.ROUTER, REFUSED, now=1.1)
    assert gist(held) == [Release(Source.ROUTER)]
    assert held.binding == before


def test_a_claim_by_a_way_that_is_not_wanted_is_given_back() -> None:
    tried = machine(Method.PCP)
    told(tried)
    tried.claim(STATIC, now=0.1)
    assert gist(tried) == [Release(Source.STATIC)]


def test_who_is_preferred_is_waited_for_a_while() -> None:
    tried = machine(Method.STATIC, Method.PCP)
    told(tried)
    tried.claim(ROUTER, now=0.1)
    assert gist(tried) == []
    assert lets_pass(tried, 10) == [
        (PATIENCE_S, Release(Source.STATIC)),
        (PATIENCE_S, ChangeKind.ACQUIRED),
    ]


def test_one_after_the_other_has_no_patience_and_asks_nobody_in_advance() -> None:
    tried = machine(Method.STATIC, Method.PCP, side_by_side=False)
    assert gist(tried) == [ASK_STATIC]
    assert lets_pass(tried, 60) == []
    tried.refuse(Source.STATIC, BindingError("not set"), now=60)
    assert gist(tried) == [ASK_ROUTER]
    tried.claim(ROUTER, now=61)
    assert gist(tried) == [Release(Source.STATIC), ChangeKind.ACQUIRED]


def test_what_was_held_in_an_earlier_search_is_given_back_when_another_is_taken() -> None:
    held = machine(Method.STATIC, Method.PCP, side_by_side=False)
    held.refuse(Source.STATIC, BindingError("not set"), now=0)
    held.claim(ROUTER, now=1)
    held.network_changed(None, "eth0 is down", now=100)
    held.network_changed(LOCAL, "eth0 is up", now=110)
    told(held)
    held.claim(STATIC, now=111)
    assert gist(held) == [Release(Source.ROUTER), ChangeKind.RESTORED]


def test_asked_again_while_it_is_still_asked_the_first_answer_serves() -> None:
    tried = machine(Method.PCP)
    tried.network_changed(OTHER_LOCAL, "DHCP", now=0.1)
    assert gist(tried) == [ASK_ROUTER, ASK_ROUTER]
    for now in (0.2, 0.3):
        tried.claim(replace(ROUTER, local=OTHER_LOCAL), now=now)
    assert gist(tried) == [ChangeKind.ACQUIRED]


def test_news_of_the_router_while_it_is_looked_for_count() -> None:
    tried = machine(Method.PCP, Method.STATIC)
    told(tried)
    other = PUBLIC.with_port(6000)
    tried.refuse(Source.ROUTER, REFUSED, now=0.1)
    tried.claim(replace(ROUTER, public=other), now=0.2)
    assert gist(tried) == [Release(Source.STATIC), ChangeKind.ACQUIRED]
    assert tried.binding is not None
    assert tried.binding.public == other


def test_a_failure_is_told_and_a_later_claim_is_taken_all_the_same() -> None:
    tried = machine(Method.PCP)
    told(tried)
    tried.refuse(Source.ROUTER, REFUSED, now=1)
    assert failure(tried).refusals == {"pcp": "no router answered"}
    tried.claim(ROUTER, now=100)
    assert gist(tried) == [ChangeKind.ACQUIRED]


def test_what_helps_is_said_once_and_at_the_end() -> None:
    tried = machine(Method.PCP, Method.STUN)
    tried.refuse(Source.ROUTER, REFUSED, now=1)
    said = str(failure(tried))
    assert said.startswith(
        "no public endpoint for 192.168.0.108:5060: pcp: no router answered; stun: no STUN"
    )
    assert said.count("What helps") == 1
    assert said.endswith("natgate)")


# Lost, and found again


def test_two_losses_in_a_row_are_two_and_who_has_just_refused_has_a_pause() -> None:
    held = machine(Method.PCP)
    held.claim(ROUTER, now=0.1)
    told(held)
    held.refuse(Source.ROUTER, REFUSED, now=100)
    assert gist(held) == [ChangeKind.LOST, ASK_ROUTER]
    held.claim(ROUTER, now=100.1)
    assert gist(held) == [ChangeKind.RESTORED]
    held.refuse(Source.ROUTER, REFUSED, now=100.2)
    assert gist(held) == [ChangeKind.LOST]
    ((at, asked),) = lets_pass(held, 110)
    assert asked == ASK_ROUTER
    assert at == pytest.approx(101.2)


def test_a_provider_that_grants_and_takes_back_again_and_again_is_not_asked_without_end() -> None:
    held = machine(Method.STATIC, Method.PCP)
    now, asked = 0.0, 0
    while now < 60:
        events = gist(held)
        asked += events.count(ASK_ROUTER) + events.count(ASK_STATIC)
        for claim in (STATIC, ROUTER):
            if Ask(claim.method.source) in events:
                held.claim(claim, now=now)
                held.refuse(claim.method.source, REFUSED, now=now)
        if not events:
            due = held.timeout_at()
            assert due is not None
            now = due
            held.handle_timeout(now=now)
    assert asked < 200


def test_a_search_that_found_nothing_is_repeated_ever_more_seldom() -> None:
    held = machine(Method.PCP)
    held.claim(ROUTER, now=0)
    held.refuse(Source.ROUTER, REFUSED, now=100)
    told(held)
    held.refuse(Source.ROUTER, REFUSED, now=100)
    times = []
    for _ in range(8):
        now = held.timeout_at()
        assert now is not None
        times.append(now)
        held.handle_timeout(now=now)
        assert gist(held) == [ASK_ROUTER]
        held.refuse(Source.ROUTER, REFUSED, now=now)
    assert times == [101, 103, 107, 115, 131, 161, 191, 221]


def test_after_a_network_change_it_is_tried_as_often_as_at_first() -> None:
    held = machine(Method.PCP)
    held.claim(ROUTER, now=0)
    held.refuse(Source.ROUTER, REFUSED, now=100)
    for now in (100, 101, 103, 107, 115):
        held.handle_timeout(now=now)
        held.refuse(Source.ROUTER, REFUSED, now=now)
    held.network_changed(OTHER_LOCAL, "DHCP", now=120)
    held.refuse(Source.ROUTER, REFUSED, now=120)
    assert held.timeout_at() == 121


# Networks


def test_a_network_that_changes_soon_after_another_question_has_the_provider_asked_later() -> None:
    held = machine(Method.VPN)
    held.claim(TUNNEL, now=0.1)
    told(held)
    held.network_changed(LOCAL, "a link was removed", now=1.0)
    assert gist(held) == []
    ((at, asked),) = lets_pass(held, 60)
    assert asked == Ask(Source.VPN)
    assert at == pytest.approx(5.0)


@pytest.mark.parametrize("is_held", [True, False])
def test_a_hundred_network_changes_in_a_second_are_one_question(is_held: bool) -> None:
    held = machine(Method.PCP)
    if is_held:
        held.claim(ROUTER, now=0)
    else:
        held.refuse(Source.ROUTER, REFUSED, now=0)
    told(held)
    for number in range(100):
        held.network_changed(LOCAL, "a link has changed", now=100 + number / 100)
        if held.binding is None:
            held.refuse(Source.ROUTER, REFUSED, now=100 + number / 100)
    assert gist(held).count(ASK_ROUTER) == 1


def test_back_in_the_network_it_looks_once() -> None:
    held = machine(Method.STUN, servers=(SERVER,))
    answered(held, 0.02)
    assert gist(held) == [ChangeKind.ACQUIRED]
    held.network_changed(None, "eth0 is down", now=10)
    assert held.timeout_at() is None
    held.network_changed(LOCAL, "eth0 is up", now=20)
    assert len(list(held.transmits())) == 1


def test_who_wants_to_know_during_an_outage_does_not_wait_for_the_next_turn_of_a_check() -> None:
    held = machine(Method.STUN, servers=(SERVER,))
    answered(held, 0.02)
    told(held)
    begun_at = held.timeout_at()
    assert begun_at is not None
    assert lets_pass(held, begun_at + 3.2) == []
    next_at, now = held.timeout_at(), begun_at + 3.3
    assert next_at is not None
    assert next_at > now + 1
    held.network_changed(LOCAL, "somebody wants to know", now=now)
    answered(held, now, mapped=PUBLIC.with_port(6000))
    answered(held, now + 1, mapped=PUBLIC.with_port(6000))
    assert gist(held) == [ChangeKind.CHANGED]


@pytest.mark.parametrize("reason", ["eth0 is down", ""])
def test_without_a_network_nothing_is_sent_whatever_was_under_way(reason: str) -> None:
    held = machine(Method.STUN, servers=(SERVER,))
    answered(held, 0.02)
    held.keep_open(PEER, KeepaliveKind.EMPTY, now=0.02)
    held.handle_timeout(now=15)
    keepalives = answers(held)
    assert len(keepalives) == 1
    held.network_changed(None, reason, now=15.1)
    held.receive(keepalives[0], SERVER, now=15.2)  # it was on its way
    assert held.timeout_at() is None
    held.handle_timeout(now=1000)
    assert list(held.transmits()) == []
    assert held.binding is None


def test_without_a_network_before_anything_was_found_it_fails_and_says_why() -> None:
    tried = machine(Method.PCP)
    tried.network_changed(None, "eth0 is down", now=1)
    assert str(failure(tried)) == "no public endpoint for 192.168.0.108:5060: eth0 is down"
    tried.network_changed(None, "eth0 is still down", now=2)
    assert told(tried) == []


# Servers


def test_servers_that_come_after_a_failure_are_asked() -> None:
    tried = machine(Method.STUN)
    assert "no STUN server is given" in str(failure(tried))
    tried.use_servers([SERVER], now=60)
    answered(tried, 60.1)
    assert gist(tried) == [ChangeKind.ACQUIRED]


def test_why_there_is_no_server_is_said() -> None:
    tried = machine(Method.PCP, Method.STUN, servers=None)
    tried.refuse(Source.ROUTER, REFUSED, now=0.1)
    assert gist(tried) == [ASK_ROUTER]
    tried.use_servers((), why_none="no IPv4 address for nobody.test", now=1)
    error = failure(tried)
    assert error.refusals["stun"] == "no STUN server can be asked (no IPv4 address for nobody.test)"
    assert error.refusals["stun"] in str(error)


def test_why_there_is_no_server_is_part_of_what_a_claim_rests_on() -> None:
    held = machine(Method.STATIC, servers=None)
    held.claim(STATIC, now=0.1)
    held.use_servers((), why_none="no IPv4 address for nobody.test", now=0.2)
    assert held.binding is not None
    assert held.binding.reachability.reach is Reach.DECLARED
    assert "nobody.test" in held.binding.reachability.evidence[1]


def test_a_server_that_is_asked_no_more_is_not_believed_either() -> None:
    tried = machine(Method.STUN, servers=(SERVER,))
    late = answers(tried)
    tried.use_servers((), now=0.01)
    for data in late:
        assert tried.receive(data, SERVER, now=0.02)
    tried.handle_timeout(now=0.02)
    assert tried.binding is None


def test_what_comes_in_without_a_network_says_nothing_of_the_servers_after_it() -> None:
    tried = machine(Method.STUN, servers=(SERVER,))
    late = answers(tried)
    tried.network_changed(None, "eth0 is down", now=0.01)
    tried.use_servers((), now=0.01)
    for data in late:
        assert tried.receive(data, SERVER, now=0.02)
    told(tried)
    tried.network_changed(LOCAL, "eth0 is up", now=10)
    assert "no STUN server is given" in str(failure(tried))


def test_one_server_with_one_address_is_not_waited_for_longer() -> None:
    tried = machine(Method.OPEN, Method.STUN, servers=(SERVER,))
    answered(tried, 0.02)
    assert gist(tried) == [ChangeKind.ACQUIRED]
    assert tried.binding is not None
    assert tried.binding.reachability.reach is Reach.SERVER_ONLY


def test_while_a_tunnel_is_held_no_server_is_asked() -> None:
    held = machine(Method.VPN, Method.STUN, servers=(SERVER,))
    answered(held, 0.02)
    held.claim(TUNNEL, now=0.1)
    assert held.binding is not None
    assert held.binding.realm == "wg0"
    list(held.transmits())
    for now in range(1, 600):
        held.handle_timeout(now=now)
        assert list(held.transmits()) == []


def test_who_is_asked_for_what_is_right_has_some_time_then_what_is_wrong_is_lost() -> None:
    held = machine(Method.PCP, servers=(SERVER,))
    answered(held, 0.02)
    held.claim(ROUTER, now=0.1)
    told(held)
    held.handle_timeout(now=15)
    answered(held, 15.1, mapped=Endpoint.of("203.0.113.99", 5060))
    assert gist(held) == [ASK_ROUTER]
    ((at, change), *_) = lets_pass(held, 60)
    assert change is ChangeKind.LOST
    assert at == pytest.approx(15.1 + ANSWER_PATIENCE_S, abs=0.2)


def test_who_stands_by_what_is_wrong_is_not_asked_again() -> None:
    held = machine(Method.PCP, servers=(SERVER,))
    answered(held, 0.02)
    held.claim(ROUTER, now=0.1)
    told(held)
    held.handle_timeout(now=15)
    answered(held, 15.1, mapped=Endpoint.of("203.0.113.99", 5060))
    assert gist(held) == [ASK_ROUTER]
    held.claim(ROUTER, now=15.2)
    assert gist(held) == [ChangeKind.LOST]


def test_the_last_to_refuse_leaves_what_the_one_server_saw() -> None:
    tried = machine(Method.PCP, Method.STUN, servers=(SERVER,))
    answered(tried, 0.02)
    tried.refuse(Source.ROUTER, REFUSED, now=0.2)
    assert gist(tried) == [ASK_ROUTER, Release(Source.ROUTER), ChangeKind.ACQUIRED]


def test_a_new_interval_is_part_of_the_binding_and_no_news() -> None:
    held = machine(Method.STUN, servers=(SERVER,))
    answered(held, 0.02)
    told(held)
    held.set_keepalive(40.0, now=1)
    assert held.binding is not None
    assert held.binding.keepalive_s == 40.0
    assert told(held) == []
