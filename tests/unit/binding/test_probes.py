"""Requests under way: what is remembered of them, and for how long."""

from __future__ import annotations

from ipaddress import IPv4Address

from nattools.binding.probes import Probe, Probes, Purpose, Touched
from nattools.endpoint import Endpoint
from nattools.stun.attributes import OTHER_ADDRESS
from nattools.stun.message import Message
from nattools.stun.responder import Reply, Responder, ServerAddresses
from tests.unit.binding.answers import A1P1, SECOND, counting, reply


def test_an_answer_is_known_by_its_transaction_id_alone() -> None:
    probes = Probes(counting())
    probe = probes.ask(Probe(Purpose.VIEW, A1P1, (0.1, 0.1), None), now=100.0)
    probes.fire(now=100.1)
    first, second = probes.outbox
    assert probes.find(reply(first)) == (probe, 100.0)
    assert probes.find(reply(second)) == (probe, 100.1)
    assert probes.find(reply(first)[:4] + bytes(4) + reply(first)[8:]) is None


def test_a_plain_request_is_20_bytes_and_over_ipv6_has_room_for_a_careful_servers_other_address() -> None:
    server, other = Endpoint.parse("[2001:db8::1]:3478"), Endpoint.parse("[2001:db8::2]:3479")
    probes = Probes(counting())
    probes.ask(Probe(Purpose.VIEW, A1P1, (0.1,), None), now=100.0)
    probes.ask(Probe(Purpose.VIEW, server, (0.1,), None), now=100.0)
    first, second = probes.outbox
    assert len(first.data) == 20
    responder = Responder(ServerAddresses(server.ip, server.port, other.ip, other.port))
    answer = responder.respond(second.data, Endpoint.parse("[2001:db8:7::7]:40000"), server)
    assert isinstance(answer, Reply)
    assert Message.parse(answer.data).get(OTHER_ADDRESS) == other
    assert probes.find(answer.data) is not None


def test_a_driver_that_comes_late_causes_no_burst() -> None:
    probes = Probes(counting())
    probes.ask(Probe(Purpose.VIEW, A1P1, (0.1, 0.1, 0.1), None), now=100.0)
    assert probes.fire(now=200.0) == []
    assert len(probes.outbox) == 2
    assert probes.timeout_at() == 200.1


def test_what_is_stopped_is_not_sent_again_and_still_known() -> None:
    probes = Probes(counting())
    probes.ask(Probe(Purpose.VIEW, A1P1, (0.1, 0.1), None), now=100.0)
    kept = probes.ask(Probe(Purpose.VIEW, SECOND, (0.1, 0.1), None), now=100.0)
    first, _ = probes.outbox
    probes.stop(Purpose.VIEW, destination=A1P1)
    assert list(probes.under_way(Purpose.VIEW)) == [kept]
    assert probes.find(reply(first)) is not None


def test_a_minute_is_remembered_and_never_more_than_some() -> None:
    probes = Probes(counting())
    for second in range(200):
        probes.ask(Probe(Purpose.CHECK, A1P1, (0.1,), None), now=100.0 + second)
    assert len(probes._sent) == 60
    for _ in range(1000):
        probes.ask(Probe(Purpose.CHECK, A1P1, (0.1,), None), now=300.0)
    assert len(probes._sent) < 200


def test_of_too_many_addresses_any_may_have_been_sent_to() -> None:
    touched = Touched()
    for number in range(256):
        touched.add(IPv4Address(number))
    assert IPv4Address(1) in touched
    assert IPv4Address(1000) not in touched
    touched.add(IPv4Address(256))
    assert IPv4Address(1000) in touched
