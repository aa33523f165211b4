"""One transaction: its timetable, and what it takes for an answer."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import AuthenticationError, DecodeError, NatToolsError, NoResponseError, TransportError
from nattools.machine import Machine
from nattools.stun.attributes import (
    CHANGED_ADDRESS,
    ERROR_CODE,
    SOURCE_ADDRESS,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_CLASSIC,
    Attribute,
    Error,
)
from nattools.stun.integrity import with_fingerprint, with_integrity
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.transaction import Answered, Failed, RttEstimator, Timing, Transaction

SERVER = Endpoint.of("192.0.2.1", 3478)
ELSEWHERE = Endpoint.of("192.0.2.2", 3478)
MAPPED = Endpoint.of("203.0.113.7", 40000)
REQUEST = Message(Method.BINDING, MessageClass.REQUEST, b"twelve bytes")
CLASSIC = Message(Method.BINDING, MessageClass.REQUEST, b"sixteen bytes id")


def answer_to(request: Message, *attributes: Attribute) -> Message:
    mapped = XOR_MAPPED_ADDRESS.of(MAPPED, request.xor_key)
    return Message(request.method, MessageClass.SUCCESS, request.transaction_id, (mapped, *attributes))


ANSWER = answer_to(REQUEST)


def sending_times(transaction: Transaction) -> tuple[list[float], float]:
    """When it sends, and when it gives up, if nobody ever answers."""
    times, now = [], 0.0
    while (due := transaction.timeout_at()) is not None:
        times += [now] * len(transaction.transmits())
        now = due
        transaction.handle_timeout(now=now)
    return times, now


def failure(transaction: Transaction) -> NatToolsError:
    event = transaction.next_event()
    assert isinstance(event, Failed)
    return event.error


@pytest.mark.parametrize(
    ("timing", "rto_s", "times", "end"),
    [
        (Timing(), None, [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5], 39.5),
        (Timing(rc=3), None, [0, 0.5, 1.5], 9.5),
        (Timing(rm=4), None, [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5], 33.5),
        (Timing(rc=1), None, [0], 8),
        (Timing(rc=4), 0.125, [0, 0.125, 0.375, 0.875], 2.875),
        (Timing(rto_s=3, rc=2), None, [0, 3], 51),
    ],
)
def test_retransmission_doubles_and_ends_as_rfc_8489_says(
    timing: Timing, rto_s: float | None, times: list[float], end: float
) -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, timing=timing, rto_s=rto_s)
    assert sending_times(transaction) == (times, end)
    event = transaction.next_event()
    assert isinstance(event, Failed)
    assert isinstance(event.error, NoResponseError)
    assert event.transmissions == len(times)


def test_a_reliable_transport_gets_the_request_once() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, reliable=True)
    assert sending_times(transaction) == ([0], 39.5)
    assert isinstance(failure(transaction), NoResponseError)


def test_every_transmission_is_the_same_datagram_to_the_same_place() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, socket="probe")
    (first,) = transaction.transmits()
    transaction.handle_timeout(now=0.5)
    assert transaction.transmits() == [first]
    assert (first.data, first.destination, first.socket) == (REQUEST.encode(), SERVER, "probe")


def test_a_late_driver_causes_no_burst() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.transmits()
    transaction.handle_timeout(now=100)
    assert len(transaction.transmits()) == 1
    assert transaction.timeout_at() == 101


def test_an_early_driver_does_no_harm() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.transmits()
    transaction.handle_timeout(now=0.499)
    assert transaction.transmits() == []
    assert transaction.timeout_at() == 0.5


@pytest.mark.parametrize("request_", [REQUEST, CLASSIC])
def test_the_answer_ends_it_and_tells_the_round_trip(request_: Message) -> None:
    transaction: Machine[Answered | Failed] = Transaction(request_, SERVER, now=10)
    answer = answer_to(request_)
    transaction.receive(answer.encode(), SERVER, now=10.25)
    event = transaction.next_event()
    assert event == Answered(answer, SERVER, rtt_s=0.25, transmissions=1)
    assert transaction.timeout_at() is None
    assert transaction.next_event() is None


def test_the_answer_tells_how_often_the_request_was_sent() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.handle_timeout(now=0.5)
    transaction.handle_timeout(now=1.5)
    transaction.receive(ANSWER.encode(), SERVER, now=1.75)
    event = transaction.next_event()
    assert isinstance(event, Answered)
    assert (event.rtt_s, event.transmissions) == (1.75, 3)


def test_an_error_response_is_an_answer() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    answer = Message(Method.BINDING, MessageClass.ERROR, REQUEST.transaction_id, (ERROR_CODE.of(Error(500)),))
    transaction.receive(answer.encode(), SERVER, now=1)
    event = transaction.next_event()
    assert isinstance(event, Answered)
    assert event.response == answer


def test_duplicate_and_late_answers_are_passed_over() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(ANSWER.encode(), SERVER, now=1)
    transaction.next_event()
    transaction.receive(ANSWER.encode(), SERVER, now=2)
    assert transaction.next_event() is None

    transaction = Transaction(REQUEST, SERVER, now=0)
    sending_times(transaction)
    transaction.next_event()
    transaction.receive(ANSWER.encode(), SERVER, now=40)
    assert transaction.next_event() is None


def changed(answer: Message, *, method: Method | None = None, kind: MessageClass | None = None) -> bytes:
    return Message(
        method or answer.method, kind or answer.message_class, answer.transaction_id, answer.attributes
    ).encode()


WRONG_FINGERPRINT = with_fingerprint(ANSWER).encode()[:-1] + b"?"
NOT_ANSWERS = {
    "noise": (b"\xff" * 40, SERVER),
    "empty": (b"", SERVER),
    "cut short": (ANSWER.encode()[:-4], SERVER),
    "another id": (changed(Message(Method.BINDING, MessageClass.SUCCESS, b"twelve bytez")), SERVER),
    "the id without the cookie": (b"\x01\x01\0\0" + b"\0\0\0\0" + REQUEST.transaction_id, SERVER),
    "the request itself": (REQUEST.encode(), SERVER),
    "an indication": (changed(ANSWER, kind=MessageClass.INDICATION), SERVER),
    "another method": (changed(ANSWER, method=Method.ALLOCATE), SERVER),
    "another address": (ANSWER.encode(), ELSEWHERE),
    "another port": (ANSWER.encode(), SERVER.with_port(3479)),
    "a wrong fingerprint": (WRONG_FINGERPRINT, SERVER),
}


@pytest.mark.parametrize(("data", "source"), NOT_ANSWERS.values(), ids=NOT_ANSWERS)
def test_what_is_no_answer_changes_nothing(data: bytes, source: Endpoint) -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(data, source, now=0.1)
    assert transaction.next_event() is None
    assert transaction.timeout_at() == 0.5
    transaction.receive(ANSWER.encode(), SERVER, now=0.2)
    assert isinstance(transaction.next_event(), Answered)


def test_every_bit_of_a_classic_id_counts() -> None:
    answer = answer_to(CLASSIC).encode()
    for bit in range(128):
        forged = bytearray(answer)
        forged[4 + bit // 8] ^= 1 << bit % 8
        transaction = Transaction(CLASSIC, SERVER, now=0)
        transaction.receive(bytes(forged), SERVER, now=0.1)
        assert transaction.next_event() is None


def test_a_right_fingerprint_is_no_obstacle() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(with_fingerprint(ANSWER).encode(), SERVER, now=0.1)
    assert isinstance(transaction.next_event(), Answered)


def test_the_answer_must_come_in_at_the_socket_it_was_asked_from() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, socket="first")
    transaction.receive(ANSWER.encode(), SERVER, now=0.1, socket="second")
    assert transaction.next_event() is None
    transaction.receive(ANSWER.encode(), SERVER, now=0.1, socket="first")
    assert isinstance(transaction.next_event(), Answered)


def test_the_answer_to_a_change_request_must_come_from_the_other_address() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, expected_source=ELSEWHERE)
    transaction.receive(ANSWER.encode(), SERVER, now=0.1)
    assert transaction.next_event() is None
    transaction.receive(ANSWER.encode(), ELSEWHERE, now=0.2)
    event = transaction.next_event()
    assert isinstance(event, Answered)
    assert event.source == ELSEWHERE


def test_the_error_of_a_timeout_says_what_was_ignored() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(ANSWER.encode(), ELSEWHERE, now=0.1)
    transaction.handle_unreachable("No route to host", hard=False)
    sending_times(transaction)
    text = str(failure(transaction))
    assert "BINDING request to 192.0.2.1:3478, sent 7 times in 39.5 s" in text
    assert "it came from 192.0.2.2:3478, not from 192.0.2.1:3478" in text
    assert "No route to host" in text


def test_a_hard_icmp_error_ends_it() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.handle_unreachable("Connection refused", hard=True)
    error = failure(transaction)
    assert isinstance(error, TransportError)
    assert not isinstance(error, NoResponseError)
    assert "Connection refused" in str(error)
    assert transaction.timeout_at() is None


def test_a_soft_icmp_error_does_not_end_it() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.handle_unreachable("Network is unreachable", hard=False)
    assert transaction.next_event() is None
    transaction.receive(ANSWER.encode(), SERVER, now=0.2)
    assert isinstance(transaction.next_event(), Answered)


def test_icmp_errors_after_the_end_are_passed_over() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(ANSWER.encode(), SERVER, now=0.2)
    transaction.handle_unreachable("Connection refused", hard=True)
    assert isinstance(transaction.next_event(), Answered)


def no_objection_to_sealed(response: Message) -> str | None:
    return None if response.attributes[-1].type == 0x0008 else "it has no integrity check"


def test_over_udp_an_answer_without_integrity_is_ignored_and_named_at_the_end() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, objection=no_objection_to_sealed)
    transaction.receive(ANSWER.encode(), SERVER, now=0.1)
    assert transaction.next_event() is None
    assert len(sending_times(transaction)[0]) == 7
    error = failure(transaction)
    assert isinstance(error, AuthenticationError)
    assert "it has no integrity check" in str(error)


def test_over_udp_the_true_answer_after_a_forged_one_counts() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, objection=no_objection_to_sealed)
    transaction.receive(ANSWER.encode(), SERVER, now=0.1)
    transaction.receive(with_integrity(ANSWER, b"key").encode(), SERVER, now=0.2)
    assert isinstance(transaction.next_event(), Answered)


def test_over_tcp_an_answer_without_integrity_ends_it_at_once() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0, objection=no_objection_to_sealed, reliable=True)
    transaction.receive(ANSWER.encode(), SERVER, now=0.1)
    assert isinstance(failure(transaction), AuthenticationError)


def test_an_attribute_that_must_be_understood_and_is_not_fails_it() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(answer_to(REQUEST, Attribute(0x7F00, b"")).encode(), SERVER, now=0.1)
    error = failure(transaction)
    assert isinstance(error, DecodeError)
    assert "0x7F00" in str(error)


def test_attributes_of_rfc_3489_and_optional_ones_are_no_obstacle() -> None:
    answer = answer_to(
        REQUEST,
        Attribute(0x0002, bytes(8)),
        Attribute(0x0003, bytes(4)),
        SOURCE_ADDRESS.of(SERVER),
        CHANGED_ADDRESS.of(ELSEWHERE),
        XOR_MAPPED_ADDRESS_CLASSIC.of(MAPPED, REQUEST.xor_key),
        Attribute(0xFFFF, b"vendor"),
    )
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(answer.encode(), SERVER, now=0.1)
    assert isinstance(transaction.next_event(), Answered)


def test_what_follows_the_integrity_attribute_is_not_looked_at() -> None:
    answer = with_integrity(ANSWER, b"key").append(Attribute(0x7F00, b""))
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(answer.encode(), SERVER, now=0.1)
    assert isinstance(transaction.next_event(), Answered)


def test_an_error_response_without_error_code_fails_it() -> None:
    transaction = Transaction(REQUEST, SERVER, now=0)
    transaction.receive(changed(ANSWER, kind=MessageClass.ERROR), SERVER, now=0.1)
    assert isinstance(failure(transaction), DecodeError)


@pytest.mark.parametrize("field", ["rto_s", "rc", "rm", "ti_s"])
def test_timing_must_be_above_zero(field: str) -> None:
    with pytest.raises(DecodeError):
        Timing(**{field: 0})


def test_the_estimator_follows_rfc_6298() -> None:
    estimator = RttEstimator()
    assert estimator.rto_s(now=0) == 0.5
    estimator.observe(0.2, now=1)  # SRTT 0.2, RTTVAR 0.1
    assert estimator.rto_s(now=1) == 0.6
    estimator.observe(0.1, now=2)  # RTTVAR 0.75 * 0.1 + 0.25 * 0.1 = 0.1; SRTT 0.1875
    assert estimator.rto_s(now=2) == 0.588
    estimator.observe(2.0, now=3)  # RTTVAR 0.528125; SRTT 0.4140625
    assert estimator.rto_s(now=3) == 2.527


def test_the_estimator_does_not_give_a_near_server_up_in_a_blink() -> None:
    estimator = RttEstimator()
    estimator.observe(0.0002, now=0)
    assert estimator.rto_s(now=0) == 0.1
    impatient = RttEstimator(0.01)
    impatient.observe(0.0002, now=0)
    assert impatient.rto_s(now=0) == 0.01


def test_the_estimator_forgets_after_ten_minutes() -> None:
    estimator = RttEstimator()
    estimator.observe(2.0, now=0)
    assert estimator.rto_s(now=600) == 6.0
    assert estimator.rto_s(now=600.1) == 0.5
    estimator.observe(1.0, now=700)
    assert estimator.rto_s(now=700) == 3.0
