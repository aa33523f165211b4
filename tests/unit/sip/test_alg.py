"""Whether SIP is rewritten on the way: what shows it, what does not, and what loss makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.alg import AlgPresence, judge
from nattools.sip.alg_probe import MOST_PACKETS, MOST_SENT
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from tests.unit.sip.alg_networks import (
    CONTROL,
    LOCAL,
    NATS,
    SERVER,
    Alg,
    Answer,
    Network,
    no_nat,
    ordinary,
    preserving,
    reflecting,
    replacing,
    silent,
    symmetric,
)

YES, NO, UNKNOWN = AlgPresence.YES, AlgPresence.NO, AlgPresence.UNKNOWN
KERNEL = replacing(b"Via:", b"From:", b"Contact:", b"o=", b"c=")
KERNEL_TOUCHES = ("Via", "From", "Contact", "Content-Length", "o=", "c=")
NOBODY_HEARD = Alg(lambda data: None if b"SIP/2.0" in data else data)
NO_CALLS = Alg(lambda data: None if data.startswith(b"INVITE") else data)
Nat = Callable[[Endpoint], Endpoint]


def network(
    alg: Alg | None = None, *, nat: Nat = preserving, sip: Answer | None = None, control: Answer | None = None
) -> Network:
    return Network(sip or reflecting(), control or reflecting(), nat=nat, alg=alg or Alg())


@pytest.mark.parametrize("nat", [preserving, symmetric])
def test_a_reflector_names_every_field_that_was_rewritten(nat: Nat) -> None:
    verdict = network(KERNEL, nat=nat).verdict()
    assert verdict.presence is YES
    assert tuple(field.name for field in verdict.touched) == KERNEL_TOUCHES
    assert verdict.sip.hides_address
    assert verdict.control is not None
    assert (verdict.control.presence, verdict.control.touched) == (NO, ())


@pytest.mark.parametrize(
    "names", [("m=",), ("a=rtcp",), ("X-Probe",), ("Call-ID",), ("Contact",), ("Via", "To", "CSeq")]
)
def test_each_field_alone_is_named(names: tuple[str, ...]) -> None:
    def outward(data: bytes) -> bytes:
        for name in names:
            separator = b"\r\n" + name.encode()
            before, found, rest = data.partition(separator)
            data = before + found + rest.replace(b"1", b"2", 1) if found else data
        return data

    verdict = network(Alg(outward)).verdict()
    assert verdict.presence is YES
    assert {field.name for field in verdict.touched} == set(names)
    assert not verdict.sip.hides_address


@pytest.mark.parametrize("nat", NATS)
def test_where_nothing_is_rewritten_a_reflector_shows_that(nat: Nat) -> None:
    asked = network(nat=nat)
    verdict = asked.verdict()
    assert (verdict.presence, verdict.touched, verdict.sip.lost) == (NO, (), ())
    assert verdict.sip.mapped == verdict.sip.received == nat(SERVER)
    assert len(asked.sent) == verdict.packets_sent == 8  # STUN, OPTIONS, INVITE and ACK, to each port
    assert asked.ended_at < 0.1


@pytest.mark.parametrize("status", [b"200 OK", b"405 Method Not Allowed", b"501 Not Implemented"])
@pytest.mark.parametrize("nat", [preserving, symmetric])
def test_any_server_that_answers_stun_shows_an_alg_that_hides_itself(nat: Nat, status: bytes) -> None:
    asked = network(KERNEL, nat=nat, sip=ordinary(status=status), control=silent)
    verdict = asked.verdict()
    assert verdict.presence is YES
    assert (verdict.sip.hides_address, verdict.touched) == (True, ())
    assert verdict.sip.mapped == nat(SERVER)
    assert verdict.sip.received is not None
    assert verdict.sip.received.ip == LOCAL.ip
    assert any("received=192.168.0.108, our own address" in reason for reason in verdict.reasons)
    assert not any(data.startswith(b"INVITE") for data, _ in asked.sent)


@pytest.mark.parametrize("nat", NATS)
def test_an_ordinary_server_shows_no_sign_and_no_proof_of_the_opposite(nat: Nat) -> None:
    verdict = network(nat=nat, sip=ordinary(), control=silent).verdict()
    assert (verdict.presence, verdict.sip.hides_address, verdict.touched) == (UNKNOWN, False, ())
    assert verdict.reasons[0] == f"{SERVER}: STUN and the SIP answer agree that we are seen at {nat(SERVER)}"
    assert "only a reflector" in verdict.reasons[1]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (ordinary(stun=False), "STUN is not answered there"),
        (ordinary(tells=False), "does not say where it saw us"),
        (ordinary(seen=Endpoint.of("10.0.0.7", 5060)), "behind a proxy or NAT of its own"),
        (ordinary(seen=LOCAL.with_port(5060)), "behind a proxy or NAT of its own"),  # by chance our address
    ],
)
@pytest.mark.parametrize("nat", [preserving, symmetric])
def test_a_server_with_manners_of_its_own_is_no_proof(nat: Nat, server: Answer, reason: str) -> None:
    verdict = network(nat=nat, sip=server, control=silent).verdict()
    assert (verdict.presence, verdict.sip.hides_address) == (UNKNOWN, False)
    assert any(reason in text for text in verdict.reasons)


def test_without_stun_our_own_address_proves_nothing() -> None:
    verdict = network(KERNEL, sip=ordinary(stun=False), control=silent).verdict()
    assert (verdict.presence, verdict.sip.hides_address) == (UNKNOWN, False)


def test_an_alg_that_does_not_restore_what_it_wrote_shows_itself_in_the_echo() -> None:
    one_way = Alg(KERNEL.outward)
    verdict = network(one_way, sip=ordinary(tells=False), control=silent).verdict()
    assert verdict.presence is YES
    assert any("our Via came back with 203.0.113.1" in reason for reason in verdict.reasons)
    assert not verdict.sip.hides_address


def test_a_mapping_that_changes_meanwhile_is_no_alg() -> None:
    ports = iter(range(50000, 60000))
    asked = network(nat=lambda _: Endpoint.of("203.0.113.1", next(ports)), sip=ordinary(), control=silent)
    assert asked.verdict().presence is UNKNOWN


def test_an_alg_on_every_port_is_seen_on_every_port() -> None:
    everywhere = Alg(KERNEL.outward, KERNEL.inward, (SERVER.port, CONTROL.port))
    verdict = network(everywhere).verdict()
    assert verdict.control is not None
    assert (verdict.sip.presence, verdict.control.presence) == (YES, YES)
    assert tuple(field.name for field in verdict.touched) == KERNEL_TOUCHES


def test_sip_that_gets_lost_is_a_finding_of_its_own_and_no_rewriting() -> None:
    verdict = network(NOBODY_HEARD).verdict()
    assert verdict.presence is UNKNOWN
    assert (verdict.sip.presence, verdict.sip.lost, verdict.sip.mapped) == (
        UNKNOWN,
        ("OPTIONS",),
        preserving(SERVER),
    )
    assert verdict.control is not None
    assert (verdict.control.presence, verdict.control.lost) == (NO, ())
    assert any(f"no answer to OPTIONS, sent {MOST_SENT} times" in reason for reason in verdict.reasons)


def test_calls_that_get_lost_on_the_sip_port_alone_prove_somebody_on_the_way() -> None:
    verdict = network(NO_CALLS).verdict()
    assert (verdict.presence, verdict.sip.lost, verdict.touched) == (YES, ("INVITE",), ())
    assert any("an INVITE never arrives there" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("ports", [(SERVER.port, CONTROL.port), (SERVER.port,)])
def test_calls_that_get_lost_without_a_port_to_compare_with_prove_nothing(ports: tuple[int, ...]) -> None:
    lossy = Alg(NO_CALLS.outward, ports=ports)
    verdict = network(lossy).verdict(control_port=CONTROL.port if len(ports) == 2 else None)
    assert (verdict.presence, verdict.sip.lost) == (UNKNOWN, ("INVITE",))


def test_where_nobody_answers_it_ends_with_the_time_it_was_given() -> None:
    for timeout_s in (0.2, 5.0, 20.0):
        asked = network(sip=silent, control=silent)
        verdict = asked.verdict(timeout_s=timeout_s)
        assert (verdict.presence, verdict.is_answered, verdict.sip.lost) == (UNKNOWN, False, ())
        assert asked.ended_at <= timeout_s + 0.25
        assert verdict.packets_sent <= 4 * MOST_SENT
        assert "neither STUN nor SIP was answered" in verdict.reasons[0]


def test_without_a_control_port_nothing_is_sent_to_another_port() -> None:
    for control_port in (None, SERVER.port):
        asked = network(KERNEL)
        verdict = asked.verdict(control_port=control_port)
        assert (verdict.presence, verdict.control) == (YES, None)
        assert {destination for _, destination in asked.sent} == {SERVER}


@pytest.mark.parametrize("nat", NATS)
def test_loss_makes_no_alg_and_hides_none(nat: Nat) -> None:
    unknown = 0
    for seed in range(150):
        alg = seed % 2 == 0 and nat is not no_nat
        asked = network(KERNEL if alg else None, nat=nat)
        asked.loss, asked.rng = 0.2, random.Random(seed)
        verdict = asked.verdict()
        assert verdict.presence in ((YES,) if alg else (NO, UNKNOWN)), verdict.reasons
        unknown += verdict.presence is UNKNOWN
        assert verdict.packets_sent <= MOST_PACKETS
    assert unknown == 0


def test_an_outage_in_the_middle_is_no_lost_call() -> None:
    """The INVITE to the SIP port is lost with all its repetitions, and then the way is good again."""
    asked = network()
    carry, lost = asked.carry, 0

    def carry_or_lose(data: bytes, destination: Endpoint) -> bytes | None:
        nonlocal lost
        if data.startswith(b"INVITE") and destination == SERVER and lost < MOST_SENT:
            lost += 1
            return None
        return carry(data, destination)

    asked.carry = carry_or_lose  # type: ignore[method-assign]  # the fault is this test's alone
    verdict = asked.verdict()
    assert lost == MOST_SENT
    assert (verdict.presence, verdict.sip.lost) == (NO, ())


def test_the_bait_is_what_a_phone_behind_nat_would_send() -> None:
    asked = network()
    asked.verdict()
    for data, destination in asked.sent:
        if b"SIP/2.0" not in data:
            continue
        message = SipMessage.parse(data)
        assert message.encode() == data
        assert message.content_length == len(message.body)
        assert message.top_via is not None
        assert (message.top_via.ip, message.top_via.port, message.top_via.has_rport) == (*_local(), True)
        assert len(data) < 1000
        if message.method == "ACK":
            assert message.to_tag is not None
            continue
        assert [contact.uri and contact.uri.endpoint() for contact in message.contacts] == [LOCAL, LOCAL]
        if message.method == "INVITE":
            described = SessionDescription.parse(data, message.body_span)
            [media] = described.media
            assert media.port % 2 == 0
            assert data.count(b"IN IP4 192.168.0.108") == 4  # o=, c= twice, a=rtcp
        assert destination in (SERVER, CONTROL)
    methods = [data.split(b" ")[0] for data, to in asked.sent if to == SERVER and b"SIP/2.0" in data]
    assert methods == [b"OPTIONS", b"INVITE", b"ACK"]


def _local() -> tuple[object, int]:
    return LOCAL.ip, LOCAL.port


def test_an_answer_that_no_ack_can_repeat_is_taken_all_the_same() -> None:
    reflect = reflecting()

    def mad(data: bytes, source: Endpoint) -> bytes | None:
        answer = reflect(data, source)
        if answer is None or b"INVITE" not in answer.partition(b"\r\n\r\n")[0]:
            return answer
        return answer.replace(b"\r\nCall-ID:", b"\rCall-ID:", 1)  # To goes on after a bare CR

    asked = network(sip=mad, control=mad)
    assert asked.verdict().packets_sent == len(asked.sent)
    assert any(data.startswith(b"INVITE") for data, _ in asked.sent)
    assert not any(data.startswith(b"ACK") for data, _ in asked.sent)


def test_answers_that_are_not_ours_are_passed_over() -> None:
    asked = network()
    probe = asked.probe()
    for transmit in list(probe.transmits()):
        answer = asked.carry(transmit.data, transmit.destination)
        assert answer is not None
        probe.receive(answer, transmit.destination.with_port(9), now=0.1)
        if answer.startswith(b"SIP/2.0"):
            token = transmit.data.partition(b"branch=z9hG4bK")[2][:16]
            probe.receive(answer.replace(token, b"0" * 16), transmit.destination, now=0.1)
            probe.receive(answer.replace(b"200 OK", b"100 Trying"), transmit.destination, now=0.1)
            probe.receive(answer.replace(b"1 OPTIONS", b"1 INVITE"), transmit.destination, now=0.1)
            probe.receive(transmit.data, transmit.destination, now=0.1)
        else:
            probe.receive(answer[:-1] + b"?", transmit.destination.with_port(9), now=0.1)
            probe.receive(answer[:8] + bytes(12) + answer[20:], transmit.destination, now=0.1)
    assert not list(probe.transmits())  # an INVITE would be sent after a reflection
    assert probe.next_event() is None


def test_icmp_ends_a_question_when_it_comes_again_and_again() -> None:
    probe = network().probe()
    now = 0.0
    while (seen := probe.next_event()) is None:
        sent = list(probe.transmits())
        for transmit in sent:
            probe.undeliverable(transmit.destination, "it cannot be reached: connection refused", now=now)
        due = probe.timeout_at()
        now = due if due is not None else now
        probe.handle_timeout(now=now)
    verdict = judge(seen)
    assert now < 1
    assert verdict.presence is UNKNOWN
    assert not verdict.is_answered
    assert verdict.reasons[0] == f"{SERVER}: it cannot be reached: connection refused"


def test_what_cannot_be_sent_ends_a_question_at_once() -> None:
    probe = network().probe()
    for destination in (SERVER, CONTROL):
        probe.undeliverable(destination, "no route", now=0.0, is_final=True)
    seen = probe.next_event()
    assert seen is not None
    assert judge(seen).reasons == (f"{SERVER}: no route", f"{CONTROL}: no route")
