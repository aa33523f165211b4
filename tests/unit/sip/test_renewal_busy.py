"""How a change is told in calls where something else is under way."""

from __future__ import annotations

import pytest

from nattools.sip.message import SipMessage, compose_response
from nattools.sip.renewal import CallMoved, NotRenewed
from nattools.sip.sdp import compose_sdp
from tests.unit.sip.renewal_world import (
    CALL,
    LOCAL,
    PEER,
    PEER_RTP,
    SECOND,
    THIRD,
    World,
    established,
    in_dialog,
    incoming,
    incoming_invite,
    invite,
    numbers,
    requests,
    sdp,
)


class TestBusyCall:
    def test_an_invite_of_the_phone_is_waited_for(self) -> None:
        world = established()
        world.peer.is_down = True
        world.phone_sends(in_dialog("INVITE", 2, body=sdp(2)), PEER)
        world.move()
        world.run(2)
        assert numbers(requests(world, "INVITE")) == [2]
        world.peer.is_down = False
        world.phone_sends(in_dialog("INVITE", 2, body=sdp(2)), PEER)
        world.run(0.1)
        world.phone_sends(in_dialog("ACK", 2), PEER)
        world.run(5)
        assert numbers(requests(world, "INVITE")) == [2, 2, 3]
        assert world.peer.complaints == []

    def test_its_ack_is_waited_for_but_not_for_ever(self) -> None:
        world = World()
        world.phone_sends(invite(), PEER)
        world.run(0.1)
        world.move()
        world.run(31)
        assert numbers(requests(world, "INVITE")) == [1]
        world.run(2)
        assert numbers(requests(world, "INVITE")) == [1, 2]

    def test_one_that_is_lost_is_not_waited_for(self) -> None:
        world = World(loss=lambda packet: packet == 2)
        world.be_called()
        world.move()
        world.run(0.25)
        assert requests(world, "INVITE") == []
        world.run(0.1)
        assert numbers(requests(world, "INVITE")) == [1]

    def test_a_2xx_that_comes_again_after_its_ack_changes_nothing(self) -> None:
        world = established()
        again = next(iter(world.peer.responses.values()))
        world.peer_sends(again)
        world.run(0.1)
        world.move()
        world.run(0.2)
        assert numbers(requests(world, "INVITE")) == [2]

    def test_after_a_minute_of_ringing_the_phones_ack_comes_first(self) -> None:
        world = World()
        world.peer.is_down = True
        world.phone_sends(invite(), PEER)
        asked, fields = world.sent[-1], [("Contact", f"<sip:bob@{PEER}>")]
        world.peer_sends(compose_response(asked, 180, "Ringing", fields, to_tag="p"))
        world.run(60)
        world.move()
        world.run(1)
        world.peer_sends(compose_response(world.sent[-1], 200, "OK", fields, to_tag="p"))
        world.run(0.1)
        assert [message.method for message in world.sent] == ["INVITE"]
        world.phone_sends(in_dialog("ACK", 1), PEER)
        assert [message.method for message in world.sent] == ["INVITE", "ACK", "INVITE"]

    def test_a_wrong_ack_is_an_ack(self) -> None:
        world = World()
        world.phone_sends(invite(), PEER)
        world.run(0.1)
        world.phone_sends(in_dialog("ACK", 1).replace(b"tag=p", b"tag=invented"), PEER)
        world.move()
        world.run(1)
        assert numbers(requests(world, "INVITE")) == [1, 2]

    def test_an_invite_of_the_other_side_into_ours_is_refused_and_both_go_on(self) -> None:
        world = established()
        world.move()
        world.run(0.11)
        world.peer_sends(incoming("INVITE", 21, body=sdp()))  # crosses ours
        world.run(0.025)
        refusal = world.sent[-1]
        assert (refusal.status_code, refusal.cseq, refusal.to_tag) == (491, (21, "INVITE"), b"a")
        assert world.inbox == []
        branch = refusal.branch or b""
        world.peer_sends(incoming("ACK", 21, branch=branch.decode()))
        world.peer_sends(incoming("INVITE", 21, body=sdp()))  # once more, the 491 was lost
        world.run(5)
        assert world.inbox == []
        assert [message.status_code for message in world.sent if not message.is_request] == [491, 491]
        world.peer_sends(incoming("INVITE", 22, body=sdp()))
        world.run(0.1)
        assert [message.method for message in world.inbox] == ["INVITE"]

    def test_an_invite_of_the_other_side_is_waited_for(self) -> None:
        world = established()
        world.peer_sends(incoming("INVITE", 21, body=compose_sdp(PEER_RTP, session_id=7, version=2)))
        world.run(0.1)
        world.move()
        world.run(5)
        assert requests(world, "INVITE") == []
        headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp")]
        world.phone_sends(compose_response(world.inbox[-1], 200, "OK", headers, sdp(2)), PEER)
        world.run(0.1)
        assert requests(world, "INVITE") == []
        world.peer_sends(incoming("ACK", 21))
        world.run(0.1)
        assert len(requests(world, "INVITE")) == 1

    def test_what_the_other_side_did_not_accept_is_not_told(self) -> None:
        world = established()
        for number, code in ((2, 488), (3, 200)):
            world.peer.refusals = [(488, "")] if code == 488 else []
            body = sdp(number).replace(b"PCMU", b"TEST%d" % number)
            world.phone_sends(in_dialog("INVITE", number, body=body), PEER)
            world.run(0.1)
            world.phone_sends(in_dialog("ACK", number), PEER)
            world.move(THIRD if code == 200 else SECOND)
            world.run(0.05)
            world.run(5)
        bodies = [message.body for message in requests(world, "INVITE")]
        assert [b"TEST2" in body for body in bodies] == [True, False, False, False]
        assert [b"TEST3" in body for body in bodies] == [False, False, True, True]

    @pytest.mark.parametrize("is_caller", [True, False])
    def test_one_that_went_to_the_old_endpoint_is_waited_for_until_it_times_out(
        self, is_caller: bool
    ) -> None:
        world = established(is_caller=is_caller)
        world.move()
        started = world.now
        while world.now < started + 33:
            world.peer.refusals = [(491, "")]
            world.run(0.5)
        world.peer.refusals.clear()
        world.run(10)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]
        assert len(requests(world, "INVITE")) < 20

    def test_one_that_never_ends_is_not_waited_for_for_ever(self) -> None:
        world = established()
        world.peer.refusals = [(491, "")] * 100
        world.move()
        world.run(60)
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert world.renewal.timeout_at() is not None  # its last transaction
        world.sent.clear()
        world.run(60)
        assert world.sent == []

    @pytest.mark.parametrize("ack_after_s", [None, 0.13])
    def test_a_caller_that_has_no_answer_yet_does_not_know_the_dialog_yet(
        self, ack_after_s: float | None
    ) -> None:
        world = World()
        world.peer_sends(incoming_invite())
        world.run(0.1)
        headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp")]
        world.phone_sends(compose_response(world.inbox[-1], 200, "OK", headers, sdp(), to_tag="a"), PEER)
        world.run(0.5)
        world.peer.refusals = [(481, "")]
        world.move()
        if ack_after_s is not None:  # it gets there before our request is refused
            world.run(ack_after_s)
            world.renewal.incoming(incoming("ACK", 20), PEER, now=world.now)
        world.run(5)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]

    @pytest.mark.parametrize("is_caller", [True, False])
    def test_a_dialog_that_the_other_side_has_left_is_told_nothing_more(self, is_caller: bool) -> None:
        world = established(is_caller=is_caller)
        world.peer.refusals = [(481, "")]
        world.move()
        world.run(1)
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert event.status_code == 481
        world.sent.clear()
        world.move(THIRD)
        world.run(40)
        assert world.sent == []

    def test_two_invites_without_a_branch_are_two(self) -> None:
        world = established()
        world.move()
        world.run(0.11)
        crossing = incoming("INVITE", 21, body=sdp()).replace(b";branch=z9hG4bKpeerINVITE21", b"")
        world.peer_sends(crossing)
        world.run(5)
        assert world.inbox == []
        world.peer_sends(crossing.replace(b"21 INVITE", b"22 INVITE"))
        world.run(0.1)
        assert [message.cseq for message in world.inbox] == [(22, "INVITE")]

    def test_a_call_that_rings_is_known_whatever_comes_meanwhile(self) -> None:
        world = World()
        world.peer_sends(incoming_invite())
        world.run(0.1)
        invited = world.inbox[-1]
        headers = [("Contact", f"<sip:alice@{LOCAL}>")]
        world.phone_sends(compose_response(invited, 180, "Ringing", headers, to_tag="a"), PEER)
        for number in range(200):
            world.peer_sends(incoming_invite().replace(b"Call-ID: call", b"Call-ID: other%d" % number))
        world.run(0.1)
        headers.append(("Content-Type", "application/sdp"))
        world.phone_sends(compose_response(invited, 200, "OK", headers, sdp(), to_tag="a"), PEER)
        world.peer_sends(incoming("ACK", 20))
        world.run(0.1)
        world.move()
        world.run(5)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]


def test_a_target_that_cannot_be_written_to_raises_nothing() -> None:
    world = established()
    world.move()
    world.run(0.11)
    odd = incoming("UPDATE", 21).replace(b"<sip:bob@", b"<sip:b\x1cb@")
    world.renewal.incoming(odd, PEER, now=world.now)
    world.move(THIRD)
    world.run(40)
    assert all(isinstance(event, NotRenewed) for event in world.events)


def test_an_answer_that_makes_no_dialog_is_numbered_back_all_the_same() -> None:
    world = established()
    world.move()
    world.run(1)
    world.peer.is_down = True
    world.phone_sends(in_dialog("INVITE", 2, body=sdp(2)), PEER)
    bad = compose_response(world.sent[-1], 200, "OK", [("Contact", "<sip:")])
    world.peer_sends(bad)
    world.run(0.1)
    assert numbers(world.inbox) == [2]


def test_one_tag_of_the_phone_in_many_dialogs_is_borne() -> None:
    world = World()
    headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp")]
    for number in range(30):
        asked = incoming_invite(number).replace(b"tag=p", b"tag=p%d" % number)
        world.renewal.incoming(asked, PEER, now=0)
        answer = compose_response(SipMessage.parse(asked), 200, "OK", headers, sdp(), to_tag="a")
        assert world.renewal.outgoing(answer, PEER, now=0) == answer
    [call] = world.renewal._calls
    assert len(call.dialogs) == 16


class TestEarlyCall:
    def answer(
        self, world: World, code: int, headers: tuple[tuple[str, str], ...] = (), body: bytes = b""
    ) -> None:
        fields = [("Contact", f"<sip:bob@{PEER}>"), *headers]
        first = requests(world, "INVITE")[0]
        world.peer_sends(compose_response(first, code, "Word", fields, body, to_tag="p"))
        world.run(0.1)

    def start(self) -> World:
        world = World()
        world.peer.is_down = True
        world.phone_sends(invite(), PEER)
        world.run(0.05)
        return world

    def test_a_call_that_rings_is_told_when_it_is_answered(self) -> None:
        world = self.start()
        self.answer(world, 180)
        world.move()
        world.run(10)
        assert len(requests(world, "INVITE")) == 1
        self.answer(world, 200, body=compose_sdp(PEER_RTP, session_id=7, version=1))
        assert len(requests(world, "INVITE")) == 1
        world.phone_sends(in_dialog("ACK", 1), PEER)
        world.run(0.1)
        assert numbers(requests(world, "INVITE")) == [1, 2]

    def test_a_call_that_is_refused_is_not_told(self) -> None:
        world = self.start()
        world.move()
        self.answer(world, 486)
        world.run(60)
        assert len(requests(world, "INVITE")) == 1
        assert world.renewal.timeout_at() is None

    def test_where_both_have_agreed_early_an_update_tells_it(self) -> None:
        world = self.start()
        headers = (("Require", "100rel"), ("RSeq", "1"), ("Allow", "INVITE, PRACK, UPDATE"))
        self.answer(world, 183, headers, compose_sdp(PEER_RTP, session_id=7, version=1))
        world.phone_sends(in_dialog("PRACK", 2), PEER)
        world.move()
        world.run(0.5)
        [update] = requests(world, "UPDATE")
        assert numbers([update]) == [3]
        assert b"c=IN IP4 198.51.100.2" in update.body
        world.peer_sends(compose_response(update, 200, "OK", [("Contact", f"<sip:bob@{PEER}>")]))
        world.run(1)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]
        assert requests(world, "ACK") == []

    def test_one_that_does_not_allow_update_is_told_later(self) -> None:
        world = self.start()
        headers = (("Require", "100rel"), ("RSeq", "1"), ("Allow", "INVITE, PRACK"))
        self.answer(world, 183, headers, compose_sdp(PEER_RTP, session_id=7, version=1))
        world.phone_sends(in_dialog("PRACK", 2), PEER)
        world.move()
        world.run(5)
        assert requests(world, "UPDATE") == []

    def test_a_call_for_the_phone_that_it_refuses_is_not_told(self) -> None:
        world = World()
        world.peer_sends(incoming_invite())
        world.run(0.1)
        for code in (180, 486):
            headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp")]
            world.phone_sends(compose_response(world.inbox[-1], code, "W", headers, sdp(), to_tag="a"), PEER)
        world.move()
        world.run(60)
        assert requests(world, "INVITE") == []
        assert world.renewal.timeout_at() is None

    def test_where_the_other_side_has_confirmed_early_an_update_tells_it(self) -> None:
        world = World()
        world.peer_sends(incoming_invite().replace(b"Contact:", b"Allow: UPDATE, PRACK\r\nContact:"))
        world.run(0.1)
        headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp"), ("RSeq", "1")]
        world.phone_sends(compose_response(world.inbox[-1], 183, "W", headers, sdp(), to_tag="a"), PEER)
        world.peer_sends(incoming("PRACK", 21))
        world.run(0.1)
        world.move()
        world.run(0.2)
        [update] = requests(world, "UPDATE")
        assert (update.from_tag, update.to_tag, update.cseq) == (b"a", b"p", (1, "UPDATE"))

    def test_a_call_for_the_phone_that_rings_says_the_new_address_when_it_is_answered(self) -> None:
        world = World()
        world.peer_sends(incoming_invite())
        world.run(0.1)
        asked = world.inbox[-1]
        headers = [("Contact", f"<sip:alice@{LOCAL}>"), ("Content-Type", "application/sdp")]
        world.phone_sends(compose_response(asked, 180, "Ringing", headers[:1], to_tag="a"), PEER)
        world.move()
        world.run(5)
        world.phone_sends(compose_response(asked, 200, "OK", headers, sdp(), to_tag="a"), PEER)
        world.peer_sends(incoming("ACK", 20))
        world.run(5)
        assert requests(world, "INVITE") == []
        assert b"c=IN IP4 198.51.100.2" in world.sent[-1].body
