"""An observation, datagram by datagram: what is asked when, and which answer is believed."""

from __future__ import annotations

import pytest

from nattools.binding.model import Reflection
from nattools.binding.observer import Inbound, Observer, Reflected, Silent
from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    ALTERNATE_SERVER,
    CHANGED_ADDRESS,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    Attribute,
)
from nattools.stun.classifier import Mapping
from nattools.stun.integrity import with_fingerprint
from nattools.stun.message import Message, MessageClass, Method
from tests.unit.binding.answers import (
    A1P1,
    A1P2,
    A2P1,
    A2P2,
    BOTH,
    LOCAL,
    PUBLIC,
    SECOND,
    THIRD,
    change_of,
    counting,
    events,
    let_time_pass,
    observing,
    refusal,
    reply,
    sent,
)

OTHER_PUBLIC = PUBLIC.with_port(6000)


def reflected(observer: Observer) -> Reflection:
    (event,) = events(observer)
    assert isinstance(event, Reflected), event
    return event.reflection


def silence(observer: Observer) -> str:
    (event,) = events(observer)
    assert isinstance(event, Silent), event
    return event.reason


class TestAsking:
    def test_a_request_is_bare(self) -> None:
        (asked,) = sent(observing())
        assert asked.destination == A1P1
        assert asked.data == bytes.fromhex("00010000 2112a442 000000000000000000000000")

    def test_two_servers_are_asked_at_once_also_to_answer_from_elsewhere(self) -> None:
        asked = sent(observing(A1P1, SECOND, THIRD))
        assert [(t.destination, change_of(t)) for t in asked] == [
            (A1P1, None),
            (A1P1, BOTH),
            (SECOND, None),
            (SECOND, BOTH),
        ]

    def test_one_server_is_asked_to_answer_from_elsewhere_if_the_port_is_fresh(self) -> None:
        assert [change_of(t) for t in sent(observing(fresh_port=True))] == [None, BOTH]

    def test_the_second_server_is_one_with_another_address(self) -> None:
        asked = sent(observing(A1P1, A1P2, SECOND))
        assert {t.destination for t in asked} == {A1P1, SECOND}

    def test_a_silent_server_is_asked_seven_times_in_five_seconds(self) -> None:
        observer = observing()
        times = [round(at - 100, 2) for at, _ in let_time_pass(observer)]
        assert times == [0, 0.05, 0.15, 0.35, 0.75, 1.55, 3.15]
        assert f"{A1P1}: no answer in 5.0 s" in silence(observer)
        assert observer.timeout_at() is None

    def test_a_silent_server_is_joined_by_the_next_and_never_more_than_three_are_asked(self) -> None:
        observer = observing(A1P1, SECOND, THIRD, Endpoint.parse("203.0.113.50:3478"))
        log = [(at - 100, t.destination) for at, t in let_time_pass(observer) if change_of(t) is None]
        began = {destination: at for at, destination in reversed(log)}
        assert sorted(began.values()) == pytest.approx([0, 0, 0.35, 5.0])
        assert "no answer" in silence(observer)

    def test_no_more_are_asked_than_a_second_view_needs(self) -> None:
        observer = observing(A1P1, SECOND, THIRD, Endpoint.parse("203.0.113.50:3478"))
        first, *_ = sent(observer)
        observer.receive(reply(first), A1P1, now=100.02)
        log = let_time_pass(observer, until=100.5)
        assert {t.destination for _, t in log} == {SECOND, THIRD}

    def test_without_a_server_it_is_silent_at_once(self) -> None:
        observer = Observer(entropy=counting())
        observer.observe(LOCAL, now=100.0)
        assert silence(observer) == "no STUN server is given"
        assert (sent(observer), observer.timeout_at()) == ([], None)

    def test_a_server_that_is_given_twice_is_asked_once(self) -> None:
        twice = Endpoint.parse("[::ffff:203.0.113.10]:3478")
        assert [t.destination for t in sent(observing(twice, A1P1))] == [A1P1]

    def test_of_many_servers_eight_are_asked(self) -> None:
        observer = observing(*(Endpoint.parse(f"203.0.113.{n}:3478") for n in range(50, 70)))
        assert len({t.destination for _, t in let_time_pass(observer)}) == 8

    def test_a_new_observation_ends_the_one_before(self) -> None:
        observer = observing()
        (first,) = sent(observer)
        observer.observe(LOCAL, now=101.0)
        assert observer.receive(reply(first), A1P1, now=101.0)
        assert events(observer) == []
        (second,) = sent(observer)
        observer.receive(reply(second), A1P1, now=101.1)
        assert reflected(observer).mapped == PUBLIC


class TestTheFirstAnswer:
    def test_it_is_told_at_once_and_settles_nothing(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        assert observer.receive(reply(asked, other=A2P2), A1P1, now=100.02)
        expected = Reflection(
            LOCAL,
            PUBLIC,
            A1P1,
            Mapping.UNKNOWN,
            can_test_inbound=True,
            is_settled=False,
            evidence=(f"{A1P1} sees {PUBLIC}",),
        )
        assert reflected(observer) == expected
        assert observer.reflection == expected

    def test_nothing_is_awaited_until_somebody_wants_to_know_the_mapping(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, other=A2P2), A1P1, now=100.02)
        assert (sent(observer), observer.timeout_at()) == ([], None)
        observer.test_mapping(now=101.0)
        assert [t.destination for t in sent(observer)] == [A2P1]

    def test_who_is_told_may_have_a_port_tried_before_the_mapping(self) -> None:
        observer = observing()
        observer.test_mapping(now=100.0)
        (asked,) = sent(observer)
        observer.receive(reply(asked, other=A2P2), A1P1, now=100.02)
        assert (sent(observer), observer.timeout_at()) == ([], 100.02)
        observer.try_inbound(PUBLIC, now=100.02)
        observer.handle_timeout(now=100.02)
        assert {t.destination for t in sent(observer)} == {A1P1}

    @pytest.mark.parametrize("source", [A1P2, A2P1, A2P2, Endpoint.parse("198.51.100.99:3478")], ids=str)
    def test_from_elsewhere_it_is_eaten_and_not_believed(self, source: Endpoint) -> None:
        observer = observing()
        (asked,) = sent(observer)
        assert observer.receive(reply(asked), source, now=100.02)
        assert events(observer) == []
        let_time_pass(observer)
        assert f"an answer came from {source}" in silence(observer)

    def test_an_ipv4_mapped_source_is_the_ipv4_one(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        assert observer.receive(reply(asked), Endpoint.parse("[::ffff:203.0.113.10]:3478"), now=100.02)
        assert reflected(observer).mapped == PUBLIC

    def test_an_ipv4_mapped_other_address_is_the_ipv4_one(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, other=Endpoint.parse("[::ffff:203.0.113.11]:3479")), A1P1, now=100.02)
        observer.test_mapping(now=100.02)
        assert [t.destination for t in sent(observer)] == [A2P1]

    def test_over_ipv6_it_is_the_same(self) -> None:
        server = Endpoint.parse("[2001:db8::10]:3478")
        local, public = Endpoint.parse("[fd00::8]:5060"), Endpoint.parse("[2001:db8:1::8]:5060")
        observer = observing(server, local=local)
        (asked,) = sent(observer)
        observer.receive(reply(asked, mapped=public), server, now=100.02)
        assert reflected(observer).mapped == public

    def test_the_elder_attributes_serve_as_well(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        request = Message.parse(asked.data)
        said = (MAPPED_ADDRESS.of(PUBLIC), CHANGED_ADDRESS.of(A2P2))
        old = Message(Method.BINDING, MessageClass.SUCCESS, request.transaction_id, said)
        observer.receive(old.encode(), A1P1, now=100.02)
        reflection = reflected(observer)
        assert (reflection.mapped, reflection.can_test_inbound) == (PUBLIC, False)
        observer.try_inbound(PUBLIC, now=100.1)
        (event,) = events(observer)
        assert event == Inbound(PUBLIC, None, f"{A1P1} speaks RFC 3489 only, and cannot be given a port")


class TestWhatIsEaten:
    def test_an_answer_that_comes_again_or_late(self) -> None:
        observer = observing()
        log = let_time_pass(observer)
        events(observer)
        for _, asked in log:
            for _ in range(3):
                assert observer.receive(reply(asked), A1P1, now=110.0)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00",
            b"INVITE sip:me@example.org SIP/2.0\r\n\r\n",
            b"\x80\x00" + bytes(160),
            Message(Method.BINDING, MessageClass.REQUEST, bytes(11) + b"\xff").encode(),
            Message(Method.BINDING, MessageClass.SUCCESS, bytes(11) + b"\xff").encode(),
            Message(Method.BINDING, MessageClass.INDICATION, bytes(11) + b"\xff").encode(),
            Message(Method.BINDING, MessageClass.SUCCESS, bytes(16)).encode(),
        ],
        ids=["empty", "a byte", "SIP", "RTP", "request", "another answer", "indication", "RFC 3489"],
    )
    def test_nothing_that_is_anothers(self, data: bytes) -> None:
        observer = observing()
        sent(observer)
        assert not observer.receive(data, A1P1, now=100.02)
        assert events(observer) == []

    def test_its_own_request_that_comes_back(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        assert observer.receive(asked.data, A1P1, now=100.02)
        assert events(observer) == []


class TestUselessServers:
    @pytest.mark.parametrize(
        ("code", "attributes", "said"),
        [
            (401, (), "wants credentials, which a public binding does not have"),
            (300, (ALTERNATE_SERVER.of(SECOND),), "ALTERNATE-SERVER is not followed"),
            (500, (), "it answers 500 No"),
        ],
    )
    def test_errors_say_what_is_wrong(self, code: int, attributes: tuple[Attribute, ...], said: str) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(refusal(asked, code, *attributes), A1P1, now=100.02)
        reason = silence(observer)
        assert str(A1P1) in reason
        assert said in reason
        assert observer.timeout_at() is None

    @pytest.mark.parametrize(
        ("mapped", "said"),
        [
            ("0.0.0.0:5060", "cannot be"),
            ("198.51.100.1:0", "cannot be"),
            ("224.0.0.1:5060", "cannot be"),
            ("[2001:db8::1]:5060", "cannot be"),
        ],
    )
    def test_an_impossible_endpoint(self, mapped: str, said: str) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, mapped=Endpoint.parse(mapped)), A1P1, now=100.02)
        assert said in silence(observer)

    def test_a_success_without_an_endpoint(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        request = Message.parse(asked.data)
        bare = Message(Method.BINDING, MessageClass.SUCCESS, request.transaction_id).encode()
        observer.receive(bare, A1P1, now=100.02)
        assert "does not say where the request came from" in silence(observer)

    def test_an_attribute_that_must_be_understood(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, Attribute(0x7777, b"")), A1P1, now=100.02)
        assert "0x7777" in silence(observer)

    def test_one_that_need_not_be_is_passed_over(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, Attribute(0xF777, b"")), A1P1, now=100.02)
        assert reflected(observer).mapped == PUBLIC

    def test_what_follows_the_integrity_need_not_be_understood(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        sealed = reply(asked, MESSAGE_INTEGRITY.of(bytes(20)), Attribute(0x7777, b""))
        observer.receive(sealed, A1P1, now=100.02)
        assert reflected(observer).mapped == PUBLIC

    def test_a_wrong_fingerprint(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        right = with_fingerprint(Message.parse(reply(asked))).encode()
        observer.receive(right[:-1] + bytes((right[-1] ^ 1,)), A1P1, now=100.02)
        assert FINGERPRINT.name in silence(observer)

    def test_bytes_that_are_no_message(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        assert observer.receive(reply(asked)[:-1], A1P1, now=100.02)
        assert "malformed" in silence(observer)

    def test_an_other_address_that_cannot_be_read_hides_no_endpoint(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        observer.receive(reply(asked, Attribute(0x802C, b"\0")), A1P1, now=100.02)
        reflection = reflected(observer)
        assert (reflection.mapped, reflection.can_test_inbound) == (PUBLIC, False)

    def test_the_next_one_is_asked_at_once(self) -> None:
        observer = observing(A1P1, SECOND, THIRD)
        asked = sent(observer)
        observer.receive(refusal(asked[0], 500), A1P1, now=100.02)
        assert {t.destination for t in sent(observer)} == {THIRD}


class TestUndeliverable:
    def test_two_tries_are_enough_to_be_silent(self) -> None:
        observer = observing()
        observer.undeliverable(A1P1, "Network is unreachable", now=100.0)
        assert events(observer) == []
        observer.handle_timeout(now=100.05)
        observer.undeliverable(A1P1, "Network is unreachable", now=100.05)
        assert "Network is unreachable" in silence(observer)
        assert observer.timeout_at() is None

    def test_eight_servers_are_given_up_within_a_third_of_a_second(self) -> None:
        observer = observing(*(Endpoint.parse(f"203.0.113.{n}:3478") for n in range(50, 58)))
        now = 100.0
        while observer.timeout_at() is not None:
            for transmit in observer.transmits():
                observer.undeliverable(transmit.destination, "Network is unreachable", now=now)
            if (due := observer.timeout_at()) is not None:
                now = due
                observer.handle_timeout(now=now)
        assert now <= 100.3
        assert "203.0.113.57:3478: Network is unreachable" in silence(observer)

    def test_errors_that_name_nobody_are_believed_later_for_they_may_be_the_programs_own(self) -> None:
        observer = observing()
        times = []
        while (due := observer.timeout_at()) is not None:
            for _ in range(3):
                observer.undeliverable(None, "Connection refused", now=due)
            times.append(round(due - 100, 2))
            observer.handle_timeout(now=due)
        assert times == [0.05, 0.15, 0.35, 0.75]
        assert "Connection refused" in silence(observer)

    def test_once_is_no_reason_and_what_is_for_others_is_none(self) -> None:
        observer = observing()
        (asked,) = sent(observer)
        for _ in range(5):
            observer.undeliverable(A1P1, "Host is unreachable", now=100.0)
            observer.undeliverable(SECOND, "Host is unreachable", now=100.0)
        observer.receive(reply(asked), A1P1, now=100.02)
        assert reflected(observer).mapped == PUBLIC

    def test_the_next_server_is_asked_instead(self) -> None:
        observer = observing(A1P1, SECOND, THIRD)
        for now in (100.0, 100.05):
            observer.handle_timeout(now=now)
            sent(observer)
            observer.undeliverable(A1P1, "Host is unreachable", now=now)
        assert {t.destination for t in sent(observer)} == {THIRD}


class TestMapping:
    def test_two_servers_that_see_the_same(self) -> None:
        observer = observing(A1P1, SECOND)
        first, _, second, _ = sent(observer)
        observer.receive(reply(first), A1P1, now=100.02)
        observer.receive(reply(second), SECOND, now=100.03)
        reflection = observer.reflection
        assert reflection is not None
        assert (reflection.mapping, reflection.is_settled) == (Mapping.ENDPOINT_INDEPENDENT, True)
        assert f"{A1P1} and {SECOND} see the same endpoint {PUBLIC}" in reflection.evidence
        assert observer.timeout_at() is None

    def test_two_servers_that_see_the_socket_itself(self) -> None:
        observer = observing(A1P1, SECOND)
        first, _, second, _ = sent(observer)
        observer.receive(reply(first, mapped=LOCAL), A1P1, now=100.02)
        observer.receive(reply(second, mapped=LOCAL), SECOND, now=100.03)
        assert observer.reflection is not None
        assert observer.reflection.mapping is Mapping.NONE

    def test_two_servers_that_differ_count_once_the_first_has_said_so_again(self) -> None:
        observer = observing(A1P1, SECOND)
        first, _, second, _ = sent(observer)
        observer.receive(reply(first), A1P1, now=100.02)
        observer.receive(reply(second, mapped=OTHER_PUBLIC), SECOND, now=100.03)
        assert not any(
            event.reflection.is_settled for event in events(observer) if isinstance(event, Reflected)
        )
        (again,) = sent(observer)
        assert again.destination == A1P1
        observer.receive(reply(again), A1P1, now=100.05)
        reflection = reflected(observer)
        assert (reflection.mapping, reflection.is_settled) == (Mapping.ADDRESS_DEPENDENT, True)
        assert f"{A1P1} sees {PUBLIC}, {SECOND} sees {OTHER_PUBLIC}" in reflection.evidence

    def test_a_first_server_that_has_changed_its_mind_begins_it_all_again(self) -> None:
        observer = observing(A1P1, SECOND)
        now = 100.0
        for turn in range(3):
            first, _, second, _ = sent(observer)
            observer.receive(reply(first, mapped=PUBLIC.with_port(7000 + turn)), A1P1, now=now)
            observer.receive(reply(second, mapped=OTHER_PUBLIC), SECOND, now=now)
            (again,) = sent(observer)
            observer.receive(reply(again, mapped=PUBLIC.with_port(7001 + turn)), A1P1, now=now)
        assert observer.reflection is not None
        assert (observer.reflection.mapping, observer.reflection.is_settled) == (Mapping.UNKNOWN, True)
        assert "does not stay" in observer.reflection.evidence[0]

    def test_the_other_address_of_the_server_is_a_second_view(self) -> None:
        observer = observing()
        (first,) = sent(observer)
        observer.receive(reply(first, other=A2P2), A1P1, now=100.02)
        observer.test_mapping(now=100.02)
        (second,) = sent(observer)
        assert (second.destination, change_of(second)) == (A2P1, None)
        observer.receive(reply(second, other=A1P2), A2P1, now=100.04)
        assert observer.reflection is not None
        assert observer.reflection.mapping is Mapping.ENDPOINT_INDEPENDENT

    @pytest.mark.parametrize(("rtt_s", "patience_s"), [(0.02, 0.9), (0.6, 1.2)])
    def test_a_second_server_is_waited_for_as_long_as_it_may_take(
        self, rtt_s: float, patience_s: float
    ) -> None:
        observer = observing(A1P1, SECOND, fresh_port=True)
        observer.test_mapping(now=100.0)
        first, *_ = sent(observer)
        observer.receive(reply(first, other=A2P2), A1P1, now=100 + rtt_s)
        log = let_time_pass(observer, until=100 + patience_s - 0.01)
        assert A2P1 not in {t.destination for _, t in log}
        log = let_time_pass(observer, until=100 + patience_s + 0.01)
        assert A2P1 in {t.destination for _, t in log}

    def test_it_is_no_server_of_its_own(self) -> None:
        observer = observing()
        observer.test_mapping(now=100.0)
        (first,) = sent(observer)
        observer.receive(reply(first, CHANGED_ADDRESS.of(A2P2)), A1P1, now=100.02)
        observer.handle_timeout(now=100.02)
        (second,) = sent(observer)
        observer.receive(reply(second, other=A1P2), A2P1, now=100.04)
        assert observer.reflection is not None
        assert (observer.reflection.is_settled, observer.reflection.can_test_inbound) == (True, False)

    def test_a_server_that_answered_once_and_refuses_then_is_not_called_silent(self) -> None:
        observer = observing()
        (first, second) = (t for _, t in let_time_pass(observer, until=100.06))
        observer.receive(reply(first), A1P1, now=100.07)
        observer.receive(refusal(second, 500), A1P1, now=100.08)
        observer.test_mapping(now=100.1)
        assert observer.reflection is not None
        assert "one server only saw it" in observer.reflection.evidence[0]
        assert "500" not in observer.reflection.evidence[0]

    def test_its_silence_counts_once_the_server_was_heard_after_it(self) -> None:
        observer = observing()
        (first,) = sent(observer)
        observer.receive(reply(first, other=A2P2), A1P1, now=100.02)
        observer.test_mapping(now=100.02)
        events(observer)
        log = let_time_pass(observer, until=100.4)
        assert [t.destination for _, t in log].count(A2P1) == 6
        (again,) = [t for _, t in log if t.destination == A1P1]
        assert events(observer) == []
        observer.receive(reply(again), A1P1, now=100.42)
        reflection = reflected(observer)
        assert (reflection.mapping, reflection.is_settled) == (Mapping.UNKNOWN, True)
        assert "one server only saw it" in reflection.evidence[0]
        assert f"{A2P1}: no answer" in reflection.evidence[0]

    @pytest.mark.parametrize(
        "other", ["203.0.113.10:3479", "203.0.113.11:3478", "10.0.0.1:3479", "0.0.0.0:1", "[2001:db8::1]:1"]
    )
    def test_an_other_address_of_no_use_is_not_asked(self, other: str) -> None:
        observer = observing()
        observer.test_mapping(now=100.0)
        (first,) = sent(observer)
        observer.receive(reply(first, other=Endpoint.parse(other)), A1P1, now=100.02)
        observer.handle_timeout(now=100.02)
        assert sent(observer) == []
        assert observer.reflection is not None
        assert (observer.reflection.mapping, observer.reflection.is_settled) == (Mapping.UNKNOWN, True)
        assert "other address" in observer.reflection.evidence[0]


class TestStrangers:
    def test_an_answer_from_where_nothing_was_sent_is_told(self) -> None:
        observer = observing(fresh_port=True)
        plain, changed = sent(observer)
        assert observer.receive(reply(changed, other=A2P2), A2P2, now=100.02)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        reflection = reflected(observer)
        assert reflection.reached_by_stranger is True
        assert f"an answer came in from {A2P2}, which nothing was ever sent to" in reflection.evidence

    def test_it_may_come_a_little_later_before_anything_is_sent_there(self) -> None:
        observer = observing(fresh_port=True)
        observer.test_mapping(now=100.0)
        plain, changed = sent(observer)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        observer.handle_timeout(now=100.02)
        assert sent(observer) == []
        assert observer.timeout_at() == pytest.approx(100.04)
        observer.receive(reply(changed, other=A2P2), A2P2, now=100.03)
        assert observer.reflection is not None
        assert observer.reflection.reached_by_stranger is True

    def test_after_something_was_sent_there_it_counts_no_more(self) -> None:
        observer = observing(fresh_port=True)
        observer.test_mapping(now=100.0)
        plain, changed = sent(observer)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        observer.handle_timeout(now=100.04)
        assert [t.destination for t in sent(observer)] == [A2P1]
        observer.receive(reply(changed, other=A2P2), A2P2, now=100.05)
        assert observer.reflection is not None
        assert observer.reflection.reached_by_stranger is None

    @pytest.mark.parametrize("source", [A1P1, A1P2, A2P1, Endpoint.parse("203.0.113.99:3479")], ids=str)
    def test_it_has_to_come_from_the_other_address_and_port(self, source: Endpoint) -> None:
        observer = observing(fresh_port=True)
        plain, changed = sent(observer)
        observer.receive(reply(changed, other=A2P2), source, now=100.02)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        assert observer.reflection is not None
        assert observer.reflection.reached_by_stranger is None

    def test_on_a_given_port_it_needs_a_second_server(self) -> None:
        observer = observing(A1P1, SECOND)
        plain, changed, second, _ = sent(observer)
        observer.receive(reply(changed, other=A2P2), A2P2, now=100.02)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        assert reflected(observer).reached_by_stranger is None
        observer.receive(reply(second), SECOND, now=100.03)
        assert reflected(observer).reached_by_stranger is True

    def test_a_second_server_at_the_other_address_makes_that_no_stranger(self) -> None:
        observer = observing(A1P1, A2P1, fresh_port=True)
        plain, changed, *_ = sent(observer)
        observer.receive(reply(changed, other=A2P2), A2P2, now=100.02)
        observer.receive(reply(plain, other=A2P2), A1P1, now=100.02)
        assert reflected(observer).reached_by_stranger is None
