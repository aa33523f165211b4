"""What becomes of a phone's registrations when its public endpoint changes, and what holds at all times."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.renewal import NeedsPhone, NotRenewed, Registered
from tests.unit.sip.renewal_world import (
    AOR,
    FIRST,
    LOCAL,
    PEER,
    REGISTRAR,
    SECOND,
    THIRD,
    World,
    entropy,
    established,
    in_dialog,
    incoming,
    incoming_invite,
    invite,
    numbers,
    register,
)


def contact(endpoint: Endpoint) -> str:
    return f"sip:alice@{endpoint};transport=UDP"


class TestRegistration:
    def test_one_request_binds_the_new_contact_and_removes_the_old_one(self) -> None:
        world = World()
        world.register()
        assert list(world.registrar.contacts) == [contact(FIRST)]
        world.move()
        world.run(1)
        assert list(world.registrar.contacts) == [contact(SECOND)]
        [_, renewed] = world.registrar.requests
        own, old = renewed.contacts
        assert own.param("+sip.instance") is not None
        assert (old.param("+sip.instance"), renewed.data[slice(*old.span)][-10:]) == (None, b";expires=0")
        assert renewed.call_id == b"reg"
        assert world.events == [Registered(AOR, REGISTRAR)]
        assert [message.status_code for message in world.inbox] == [200]
        assert renewed.branch != world.registrar.requests[0].branch

    def test_the_phones_numbers_go_on_above_and_come_back_as_its_own(self) -> None:
        world = World()
        world.register(7)
        for endpoint in (SECOND, THIRD):
            world.move(endpoint)
            world.run(1)
        world.register(8)
        world.register(9)
        assert numbers(world.registrar.requests) == [7, 8, 9, 10, 11]
        assert numbers(world.inbox) == [7, 8, 9]
        assert [message.status_code for message in world.inbox] == [200] * 3

    def test_a_phone_with_a_new_call_id_each_time_keeps_its_numbers(self) -> None:
        world = World()
        world.register(1, call_id="one")
        world.register(2, call_id="two")
        world.move()
        world.run(1)
        world.register(3, call_id="three")
        assert numbers(world.registrar.requests) == [1, 2, 3, 3]
        assert [message.call_id for message in world.registrar.requests] == [b"one", b"two", b"two", b"three"]

    def test_what_was_not_answered_is_sent_again_by_the_timers_of_the_rfc(self) -> None:
        world = World()
        world.register()
        world.sent.clear()
        world.registrar.is_down = True
        started = world.now
        world.move()
        times = []
        while world.renewal.timeout_at() is not None:
            before = len(world.sent)
            world.run(0.01)
            times += [round(world.now - started, 1)] * (len(world.sent) - before)
        assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert (event.method, event.server, event.status_code) == ("REGISTER", REGISTRAR, None)
        assert world.now - started == pytest.approx(32, abs=0.1)

    def test_the_old_contact_is_removed_later_if_it_could_not_be_at_once(self) -> None:
        world = World(loss=lambda packet: 2 <= packet < 30)
        world.register()
        world.move()
        world.run(40)
        assert isinstance(world.events.pop(), NotRenewed)
        while world._loss(next(world._packets)):
            pass
        world.register(2)
        world.run(1)
        assert list(world.registrar.contacts) == [contact(SECOND)]
        assert world.events == [Registered(AOR, REGISTRAR)]

    def test_two_changes_in_a_row_leave_one_contact(self) -> None:
        world = World()
        world.register()
        world.move(SECOND)
        world.run(0.03)  # the registrar has it, and its answer goes astray
        world.move(THIRD)
        world.run(40)
        assert list(world.registrar.contacts) == [contact(THIRD)]
        assert world.events == [Registered(AOR, REGISTRAR)]

    def test_back_again_does_not_remove_what_was_just_bound(self) -> None:
        world = World()
        world.register()
        world.move(SECOND)
        world.run(0.03)
        world.move(FIRST)
        world.run(40)
        assert list(world.registrar.contacts) == [contact(FIRST)]

    def test_what_one_server_sees_is_no_news_for_the_others(self) -> None:
        world = World()
        world.register()
        world.call()
        world.sent.clear()
        world.renewal.binding_changed(FIRST, LOCAL, server=PEER, now=world.now)
        world.run(5)
        assert [message.method for message in world.sent] == ["INVITE", "ACK"]
        assert list(world.registrar.contacts) == [contact(FIRST)]

    def test_what_a_server_sees_is_registered_there(self) -> None:
        world = World()
        world.register()
        world.call()
        world.sent.clear()
        world.signalling.public = SECOND
        world.renewal.binding_changed(FIRST, SECOND, server=REGISTRAR, now=world.now)
        world.run(5)
        assert [message.method for message in world.sent] == ["REGISTER"]
        assert list(world.registrar.contacts) == [contact(SECOND)]

    def test_an_old_contact_that_a_late_request_brings_back_is_removed(self) -> None:
        world = World()
        world.register()
        world.move(SECOND)
        world.run(1)
        world.registrar.contacts[contact(FIRST)] = 3600
        world.register(2)
        world.run(1)
        assert list(world.registrar.contacts) == [contact(SECOND)]

    def test_one_that_shows_in_the_answer_to_the_next_change_is_removed_at_once(self) -> None:
        world = World()
        world.register()
        world.move(SECOND)
        world.run(1)
        world.registrar.contacts[contact(FIRST)] = 3600
        world.move(THIRD)
        world.run(1)
        assert list(world.registrar.contacts) == [contact(THIRD)]

    def test_a_registrar_that_never_forgets_is_asked_once(self) -> None:
        world = World()
        world.register()
        world.move(SECOND)
        world.run(1)
        kept = f"<{contact(FIRST)}>;expires=3600, <{contact(SECOND)}>;expires=3600"
        world.sent.clear()
        world.registrar.answer = lambda request, *, now: compose_response(  # type: ignore[method-assign]  # one that does not listen
            request, 200, "OK", [("Contact", kept)]
        )
        world.register(2)
        world.run(100)
        assert [message.cseq for message in world.sent] == [(3, "REGISTER"), (4, "REGISTER")]

    def test_a_registrar_that_wants_to_be_asked_later_is_asked_later(self) -> None:
        world = World()
        world.register()
        world.registrar.refusals = [503, 500]
        world.move()
        world.run(0.5)
        assert world.events == []
        world.run(2)
        assert world.events == [Registered(AOR, REGISTRAR)]

    def test_a_registrar_that_refuses_is_not_asked_for_ever(self) -> None:
        world = World()
        world.register()
        world.registrar.refusals = [503] * 100
        world.move()
        world.run(60)
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert event.status_code == 503
        assert len(world.registrar.requests) == 6

    @pytest.mark.parametrize("expires", [0, 3600])
    def test_a_phone_that_has_left_is_not_registered_again(self, expires: int) -> None:
        world = World()
        world.register()
        world.phone_sends(register(2, expires=expires), REGISTRAR)
        world.run(1)
        world.move()
        world.run(1)
        assert bool(world.registrar.contacts) is (expires > 0)
        assert len(world.registrar.requests) == (3 if expires else 2)

    def test_a_phone_that_leaves_while_it_is_being_renewed_has_left(self) -> None:
        world = World(loss=lambda packet: packet == 2)
        world.register()
        world.move()
        world.phone_sends(register(2, expires=0), REGISTRAR)
        world.run(60)
        assert numbers(world.registrar.requests) == [1, 3]
        assert world.events == []

    def test_a_registration_that_was_never_accepted_is_not_renewed(self) -> None:
        world = World()
        world.registrar.refusals = [403]
        world.register()
        world.move()
        world.run(5)
        assert len(world.registrar.requests) == 1

    def test_credentials_without_qop_are_used_again(self) -> None:
        world = World(realm="example.org")
        authenticate(world)
        world.move()
        world.run(1)
        assert list(world.registrar.contacts) == [contact(SECOND)]
        assert world.events == [Registered(AOR, REGISTRAR)]

    def test_for_a_stale_nonce_the_phone_is_needed(self) -> None:
        world = World(realm="example.org")
        authenticate(world)
        world.run(400)
        world.move()
        world.run(1)
        [event] = world.events
        assert isinstance(event, NeedsPhone)
        assert (event.method, event.server) == ("REGISTER", REGISTRAR)
        assert "401" in event.reason

    def test_credentials_with_qop_are_not_used_again(self) -> None:
        world = World(realm="example.org", qops=("auth",))
        authenticate(world)
        world.move()
        world.run(1)
        assert world.registrar.requests[-1].header("authorization") is None
        [event] = world.events
        assert isinstance(event, NeedsPhone)

    def test_who_has_the_password_answers_in_the_phones_name(self) -> None:
        world = World(realm="example.org", qops=("auth",), password="secret")
        authenticate(world)
        for endpoint in (SECOND, THIRD):
            world.move(endpoint)
            world.run(1)
            assert list(world.registrar.contacts) == [contact(endpoint)]
        assert world.events == [Registered(AOR, REGISTRAR)] * 2
        assert len(world.inbox) == 2

    def test_a_wrong_password_is_said_and_not_repeated(self) -> None:
        world = World(realm="example.org", qops=("auth",), password="wrong")
        authenticate(world)
        world.move()
        world.run(60)
        [event] = world.events
        assert isinstance(event, NeedsPhone)
        assert "password refused" in event.reason
        assert len(world.registrar.requests) == 4

    def test_a_phone_whose_credentials_are_good_once_is_not_bothered_again(self) -> None:
        world = World(realm="example.org", qops=("auth",))
        authenticate(world)
        world.move()
        world.run(1)
        authenticate(world, 5)
        assert len(world.events) == 1
        assert len(world.registrar.requests) == 5

    def test_two_phones_behind_one_socket_are_both_registered(self) -> None:
        world = World()
        world.register()
        other = register(1, call_id="other").replace(b'To: "Alice" <sip:alice@', b"To: <sip:carol@")
        world.phone_sends(other, REGISTRAR)
        world.run(0.1)
        world.move()
        world.run(1)
        aors = {event.address_of_record for event in world.events if isinstance(event, Registered)}
        assert aors == {AOR, "sip:carol@203.0.113.7"}

    def test_a_contact_that_is_not_the_sockets_own_is_not_removed(self) -> None:
        world = World()
        data = register(1).replace(str(LOCAL).encode() + b";transport", b"phone.example.org;transport")
        world.phone_sends(data, REGISTRAR)
        world.run(0.1)
        world.move()
        world.run(1)
        assert list(world.registrar.contacts) == ["sip:alice@phone.example.org;transport=UDP"]
        assert len(world.registrar.requests[-1].contacts) == 1


def authenticate(world: World, number: int = 1) -> None:
    """Have the phone register with a password, as a phone of its own does."""
    world.register(number)
    client = DigestClient("alice", "secret", entropy=entropy())
    assert world.inbox[-1].status_code == 401
    client.challenged(world.inbox[-1])
    world.register(number + 1, headers=tuple(client.headers("REGISTER", "sip:203.0.113.7")))
    assert world.inbox[-1].status_code == 200


def test_what_is_no_sip_passes_unseen() -> None:
    world = World()
    for data in (
        b"",
        b"\r\n\r\n",
        b"\0\1\0\0",
        b"hello",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"INVITE sip:x SIP/2.0\r\n\r\n",
    ):
        assert world.renewal.outgoing(data, PEER, now=0) == data
        assert world.renewal.incoming(data, PEER, now=0) == data
    assert world.renewal.timeout_at() is None


def test_without_a_change_every_message_passes_as_it_is() -> None:
    world = established()
    for data in (in_dialog("BYE", 2), in_dialog("INFO", 3), register(5), invite(9)):
        assert world.renewal.outgoing(data, PEER, now=world.now) is data
    for data in (incoming("BYE", 30), incoming("OPTIONS", 31)):
        assert world.renewal.incoming(data, PEER, now=world.now) is data


def test_it_remembers_so_many_calls_and_no_more() -> None:
    world = World()
    for number in range(500):
        data = invite().replace(b"Call-ID: call", b"Call-ID: call%d" % number)
        world.renewal.outgoing(data, PEER, now=world.now)
        world.renewal.outgoing(register(1, call_id=f"reg{number}"), REGISTRAR, now=world.now)
        world.renewal.incoming(incoming_invite(number), PEER, now=world.now)
    assert len(list(world.renewal._calls)) == 128
    assert len(world.renewal._calls._asked) == 64
    assert len(world.renewal._registrations._shifts) == 64


def test_it_has_so_many_requests_under_way_and_no_more() -> None:
    world = World()
    world.peer.is_down = True
    for number in range(100):
        call = b"Call-ID: call%d\r\n" % number
        asked, acknowledged = (
            data.replace(b"Call-ID: call\r\n", call) for data in (invite(), in_dialog("ACK", 1))
        )
        fields = [("Contact", f"<sip:bob@{PEER}>")]
        answer = compose_response(SipMessage.parse(asked), 200, "OK", fields, to_tag="p")
        world.renewal.outgoing(asked, PEER, now=0)
        world.renewal.incoming(answer, PEER, now=0)
        world.renewal.outgoing(acknowledged, PEER, now=0)
    for number in range(10):
        world.renewal.binding_changed(FIRST, SECOND, now=number)
        world.renewal.handle_timeout(now=number + 0.5)
    assert len(world.renewal._running) == 256
    assert len(world.renewal._errands) <= 100
