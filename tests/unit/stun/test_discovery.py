"""The discovery machine, datagram by datagram."""

from __future__ import annotations

import random

import pytest

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    Attribute,
    Error,
)
from nattools.stun.discovery import (
    MOST_PACKETS,
    Discovery,
    Finished,
    TcpWanted,
    alternate_fault,
    probes_needed,
)
from nattools.stun.message import Message, MessageClass
from nattools.stun.observation import Observations, Outcome, Question
from nattools.stun.responder import Reply, Responder, ServerAddresses

LOCAL = Endpoint.parse("192.168.0.108:40000")
PUBLIC = Endpoint.parse("198.51.100.1:40000")
A1P1 = Endpoint.parse("203.0.113.10:3478")
A2P2 = Endpoint.parse("203.0.113.11:3479")


def discovery(*servers: Endpoint, timeout_s: float = 5.0) -> Discovery:
    rng = random.Random(1)
    return Discovery(servers or (A1P1,), local=LOCAL, entropy=rng.randbytes, now=0.0, timeout_s=timeout_s)


def reply(
    transmit: Transmit, *attributes: Attribute, message_class: MessageClass = MessageClass.SUCCESS
) -> bytes:
    request = Message.parse(transmit.data)
    mapped = XOR_MAPPED_ADDRESS.of(PUBLIC, request.xor_key)
    return Message(request.method, message_class, request.transaction_id, (mapped, *attributes)).encode()


def run_out(machine: Discovery) -> Observations:
    """Let the time pass without any further datagram."""
    while True:
        list(machine.transmits())
        while (event := machine.next_event()) is not None:
            if isinstance(event, Finished):
                return event.observations
        timeout_at = machine.timeout_at()
        assert timeout_at is not None
        machine.handle_timeout(now=timeout_at)


def test_it_begins_with_one_plain_request_from_the_mapping_socket() -> None:
    (first,) = discovery().transmits()
    assert (first.destination, first.socket) == (A1P1, "mapping")
    assert Message.parse(first.data).attributes == ()


def test_over_ipv6_a_request_has_room_for_a_careful_servers_other_address() -> None:
    """`stund` gives at most 2.8 times what it got, and beside 20 bytes no second IPv6 address fits."""
    server, other = Endpoint.parse("[2001:db8::1]:3478"), Endpoint.parse("[2001:db8::2]:3479")
    responder = Responder(ServerAddresses(server.ip, server.port, other.ip, other.port))
    machine = discovery(server)
    (first,) = machine.transmits()
    answer = responder.respond(first.data, Endpoint.parse("[2001:db8:7::7]:40000"), server)
    assert isinstance(answer, Reply)
    machine.receive(answer.data, server, now=0.01)
    assert other in {transmit.destination for transmit in machine.transmits()}


def test_filtering_sockets_talk_to_the_server_alone() -> None:
    machine = discovery()
    (first,) = machine.transmits()
    machine.receive(reply(first, OTHER_ADDRESS.of(A2P2)), A1P1, now=0.01)
    sent = list(machine.transmits())
    filtering = [t for t in sent if t.socket.startswith("filtering")]
    assert {t.destination for t in filtering} == {A1P1}
    assert all(Message.parse(t.data).has(CHANGE_REQUEST) for t in filtering)
    assert len({t.socket for t in sent}) == 4


@pytest.mark.parametrize(
    ("change", "socket", "source"),
    [
        ("other transaction id", "mapping", A1P1),
        ("none", "filtering-both", A1P1),
        ("cut", "mapping", A1P1),
        ("indication", "mapping", A1P1),
    ],
)
def test_what_is_no_answer_to_this_socket_is_ignored(change: str, socket: str, source: Endpoint) -> None:
    machine = discovery(timeout_s=0.2)
    (first,) = machine.transmits()
    data = reply(first)
    if change == "other transaction id":
        data = data[:8] + bytes(12) + data[20:]
    elif change == "cut":
        data = data[:-1]
    elif change == "indication":
        data = reply(first, message_class=MessageClass.INDICATION)
    machine.receive(data, source, now=0.01, socket=socket)
    binding = run_out(machine).get(Question.BINDING)
    assert binding is not None
    assert binding.outcome is Outcome.SILENT


def test_a_late_answer_to_an_earlier_probe_still_counts_for_its_own_question() -> None:
    machine = discovery()
    (first,) = machine.transmits()
    machine.handle_timeout(now=0.05)
    assert len(list(machine.transmits())) == 1
    machine.receive(reply(first), A1P1, now=0.06)
    binding = run_out(machine).get(Question.BINDING)
    assert binding is not None
    assert binding.outcome is Outcome.ANSWERED
    assert binding.rtt_s == pytest.approx(0.06)


def test_a_public_endpoint_that_changes_between_two_requests_is_noticed() -> None:
    machine = discovery()
    (first,) = machine.transmits()
    machine.handle_timeout(now=0.05)
    (second,) = machine.transmits()
    machine.receive(reply(first), A1P1, now=0.06)
    request = Message.parse(second.data)
    other = XOR_MAPPED_ADDRESS.of(PUBLIC.with_port(1), request.xor_key)
    changed = Message(request.method, MessageClass.SUCCESS, request.transaction_id, (other,))
    machine.receive(changed.encode(), A1P1, now=0.07)
    assert run_out(machine).unstable


def test_a_rewritten_payload_is_noticed() -> None:
    machine = discovery()
    (first,) = machine.transmits()
    machine.receive(reply(first, MAPPED_ADDRESS.of(LOCAL)), A1P1, now=0.01)
    assert run_out(machine).rewritten == LOCAL


def test_an_error_response_is_a_refusal_with_its_code() -> None:
    machine = discovery()
    (first,) = machine.transmits()
    error = ERROR_CODE.of(Error(401, "Unauthorized"))
    machine.receive(reply(first, error, message_class=MessageClass.ERROR), A1P1, now=0.01)
    binding = run_out(machine).get(Question.BINDING)
    assert binding is not None
    assert (binding.outcome, binding.detail) == (Outcome.REFUSED, "error 401 Unauthorized")


def test_what_a_server_writes_cannot_steer_a_terminal() -> None:
    assert str(Error(400, "a\x1b[2J\x9b2J\r\nb" + "c" * 1000)) == "400 a[2J2Jb" + "c" * 73
    assert str(Error(400)) == "400"


def test_tcp_is_wanted_after_a_moment_of_silence_and_then_sets_the_pace() -> None:
    machine = discovery()
    now = 0.0
    while not isinstance(event := machine.next_event(), TcpWanted):
        assert event is None
        timeout_at = machine.timeout_at()
        assert timeout_at is not None
        now = timeout_at
        machine.handle_timeout(now=now)
    assert now == pytest.approx(0.15)
    machine.tcp_answered(0.001, now=now + 0.001)
    observations = run_out(machine)
    assert observations.tcp_rtt_s == 0.001
    binding = observations.get(Question.BINDING)
    assert binding is not None
    assert binding.sent == probes_needed(0)


def test_icmp_errors_end_the_waiting() -> None:
    machine = discovery()
    for number in range(3):
        machine.undeliverable(A1P1, "nothing listens there", now=0.01 * number)
    binding = run_out(machine).get(Question.BINDING)
    assert binding is not None
    assert (binding.outcome, binding.sent) == (Outcome.UNREACHABLE, 1)


def test_four_servers_that_are_all_silent_stay_within_the_budget() -> None:
    servers = [A1P1.with_port(3478 + n) for n in range(4)]
    observations = run_out(discovery(*servers))
    assert observations.packets_sent <= MOST_PACKETS
    assert {o.outcome for o in observations.seen} == {Outcome.SILENT}


def test_more_loss_asks_for_more_probes() -> None:
    assert probes_needed(0) == probes_needed(0.36) == 12
    assert probes_needed(0.5) > 12
    assert 0.36 ** probes_needed(0.36) < 1e-5


@pytest.mark.parametrize(
    ("server", "other", "usable"),
    [
        ("203.0.113.10:3478", "203.0.113.11:3479", True),
        ("203.0.113.10:3478", None, False),
        ("203.0.113.10:3478", "203.0.113.10:3479", False),
        ("203.0.113.10:3478", "203.0.113.11:3478", False),
        ("8.8.8.8:3478", "192.168.0.1:3479", False),
        ("8.8.8.8:3478", "100.64.0.1:3479", False),
        ("8.8.8.8:3478", "127.0.0.1:3479", False),
        ("8.8.8.8:3478", "224.0.0.1:3479", False),
        ("8.8.8.8:3478", "8.8.4.4:0", False),
        ("8.8.8.8:3478", "[2001:db8::1]:3479", False),
        ("127.0.0.1:3478", "127.0.0.2:3479", True),
        ("192.168.0.1:3478", "192.168.0.2:3479", True),
    ],
)
def test_only_another_reachable_address_and_port_is_an_alternate(
    server: str, other: str | None, usable: bool
) -> None:
    fault = alternate_fault(Endpoint.parse(server), Endpoint.parse(other) if other else None)
    assert (fault == "") is usable
