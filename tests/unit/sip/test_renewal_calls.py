"""What becomes of a phone's calls when its public endpoint changes, seen from the other side."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.renewal import SETTLE_S, CallMoved, NeedsPhone, NotRenewed, Renewal
from tests.unit.sip.corpus import PATHS, needs_corpus
from tests.unit.sip.renewal_world import (
    CALL,
    FIRST,
    LOCAL,
    LOCAL_RTP,
    PEER,
    PEER_RTP,
    SECOND,
    THIRD,
    World,
    entropy,
    established,
    in_dialog,
    incoming,
    invite,
    numbers,
    requests,
    sdp,
)

BOTH = pytest.mark.parametrize("is_caller", [True, False])


class TestCall:
    @BOTH
    def test_the_other_side_is_told_in_one_reinvite(self, is_caller: bool) -> None:
        world = established(is_caller=is_caller)
        world.move()
        world.run(5)
        assert world.peer.sends_to == SECOND.with_port(41000)
        assert world.peer.target == f"sip:alice@{SECOND}"
        assert world.peer.complaints == []
        assert [message.method for message in world.sent] == ["INVITE", "ACK"]
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]
        assert world.inbox == []
        [invited, acknowledged] = world.sent
        assert (
            (invited.from_tag, invited.to_tag) == (b"a", b"p") == (acknowledged.from_tag, acknowledged.to_tag)
        )
        assert invited.branch != acknowledged.branch
        assert invited.value(invited.header("user-agent")) == b"old phone"

    @BOTH
    def test_it_is_told_within_a_fifth_of_a_second(self, is_caller: bool) -> None:
        world = established(is_caller=is_caller)
        world.move()
        world.run(0.2)
        assert world.peer.sends_to == SECOND.with_port(41000)

    @BOTH
    def test_the_phones_later_requests_are_numbered_above_ours(self, is_caller: bool) -> None:
        world = established(is_caller=is_caller)
        first = 2 if is_caller else 1
        world.move(SECOND)
        world.run(1)
        world.phone_sends(in_dialog("INFO", first), PEER)
        world.run(1)
        world.move(THIRD)
        world.run(1)
        world.phone_sends(in_dialog("BYE", first + 1), PEER)
        world.phone_sends(in_dialog("INFO", first), PEER)  # once more, late
        world.run(1)
        sent = [(message.method, *numbers([message])) for message in world.sent if message.method != "ACK"]
        assert sent == [
            ("INVITE", first),
            ("INFO", first + 1),
            ("INVITE", first + 2),
            ("BYE", first + 3),
            ("INFO", first + 1),
        ]
        assert [numbers([message])[0] for message in world.inbox] == [first, first + 1, first]
        assert world.peer.complaints == []

    def test_an_ack_and_a_prack_follow_the_request_that_they_are_about(self) -> None:
        world = established()
        world.move()
        world.run(1)
        world.phone_sends(in_dialog("INVITE", 2, body=sdp(9)), PEER)
        world.run(0.1)
        prack = in_dialog("PRACK", 3).replace(b"Contact:", b"RAck: 1 2 INVITE\r\nContact:")
        world.phone_sends(prack, PEER)
        world.phone_sends(in_dialog("ACK", 2), PEER)
        world.run(40)
        assert numbers(requests(world, "INVITE")) == [2, 3]
        assert numbers(requests(world, "ACK")) == [2, 3]
        [prack_sent] = requests(world, "PRACK")
        assert prack_sent.value(prack_sent.header("rack")) == b"1 3 INVITE"
        assert world.peer.complaints == []

    @pytest.mark.parametrize("lost", range(1, 6))
    def test_loss_delays_and_does_no_more(self, lost: int) -> None:
        world = World(loss=lambda packet: 3 <= packet < 3 + lost)
        world.call()
        world.move()
        world.run(60)
        assert world.peer.sends_to == SECOND.with_port(41000)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]
        assert world.peer.complaints == []

    def test_each_2xx_gets_an_ack(self) -> None:
        world = World(loss=lambda packet: packet in (5, 7))  # the first two ACKs of ours
        world.call()
        world.move()
        world.run(60)
        assert numbers(requests(world, "ACK")) == [1, 2, 2, 2]
        assert world.peer.complaints == []
        assert [message.status_code for message in world.inbox] == [200]

    def test_an_invite_that_nobody_answers_ends_after_32_seconds(self) -> None:
        world = established()
        world.peer.is_down = True
        started = world.now
        world.move()
        world.run(31.7)
        assert [message.method for message in world.sent] == ["INVITE"] * 7
        assert world.events == []
        world.run(1)
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert (event.method, event.call_id, event.status_code) == ("INVITE", CALL, None)
        assert world.renewal.timeout_at() is None
        assert world.now - started < 33

    @pytest.mark.parametrize(("is_caller", "least_s", "most_s"), [(True, 2.1, 4.0), (False, 0.0, 2.0)])
    def test_after_491_it_waits_by_who_made_the_call(
        self, is_caller: bool, least_s: float, most_s: float
    ) -> None:
        world = established(is_caller=is_caller)
        world.peer.refusals = [(491, "")]
        world.move()
        world.run(0.15)
        assert [message.method for message in world.sent] == ["INVITE", "ACK"]
        started = world.now
        while not world.events:
            world.run(0.01)
        waited = world.now - started
        assert least_s - 0.1 <= waited <= most_s + 0.1
        assert world.peer.complaints == []
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]

    def test_after_a_timeout_on_the_way_it_is_tried_again_ever_later(self) -> None:
        world = established()
        world.peer.refusals = [(408, ""), (504, "")]
        world.move()
        world.run(0.9)
        assert [message.method for message in world.sent] == ["INVITE", "ACK"]
        world.run(2)
        assert [message.method for message in world.sent] == 2 * ["INVITE", "ACK"]
        world.run(1)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]

    @pytest.mark.parametrize("refusals", [100 * [(408, "")], [(408, "Retry-After: 60")]])
    def test_a_call_that_cannot_be_told_is_given_up(self, refusals: list[tuple[int, str]]) -> None:
        world = established()
        world.peer.refusals = refusals
        world.move()
        world.run(60)
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert event.status_code == 408

    def test_a_refusal_is_acknowledged_within_its_transaction(self) -> None:
        world = established()
        world.peer.refusals = [(488, "")]
        world.move()
        world.run(5)
        [invited, acknowledged] = world.sent
        assert invited.branch == acknowledged.branch
        assert acknowledged.to_tag == b"p"
        [event] = world.events
        assert isinstance(event, NotRenewed)
        assert event.status_code == 488

    def test_a_proxy_that_wants_the_phones_password(self) -> None:
        world = established()
        world.peer.refusals = [(407, 'Proxy-Authenticate: Digest realm="r", nonce="n"')]
        world.move()
        world.run(5)
        [event] = world.events
        assert isinstance(event, NeedsPhone)
        assert (event.method, event.call_id) == ("INVITE", CALL)

    def test_a_proxy_that_gets_the_phones_password(self) -> None:
        world = World(password="secret")
        world.call()
        world.peer.refusals = [(407, 'Proxy-Authenticate: Digest realm="r", nonce="n", qop="auth"')]
        world.move()
        world.run(5)
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]
        assert requests(world, "INVITE")[-1].header("proxy-authorization") is not None
        assert world.peer.complaints == []

    def test_the_next_change_does_not_wait_for_an_answer_that_cannot_come(self) -> None:
        world = established()
        world.move(SECOND)
        world.run(0.13)  # the re-INVITE was answered, to an endpoint that is no more
        world.move(THIRD)
        world.run(0.3)
        assert world.peer.sends_to == THIRD.with_port(41000)
        world.run(60)
        assert world.peer.complaints == []
        assert not world.peer.is_over
        assert world.events == [CallMoved(CALL, has_peer_moved=False)]

    def test_a_change_of_the_media_alone_waits_for_the_answer(self) -> None:
        world = established()
        world.move(SECOND)
        world.run(0.13)
        world.rtp.public = THIRD
        world.renewal.media_changed(LOCAL_RTP, now=world.now)
        world.run(5)
        assert world.peer.sends_to == THIRD
        assert numbers(requests(world, "INVITE")) == [2, 3]
        assert world.peer.complaints == []
        assert world.events == [CallMoved(CALL, has_peer_moved=False)] * 2

    def test_media_of_another_call_are_not_told(self) -> None:
        world = established()
        world.renewal.media_changed(LOCAL_RTP.with_port(10004), now=world.now)
        world.run(5)
        assert world.sent == []
        world.renewal.media_changed(LOCAL_RTP.with_port(10003), now=world.now)  # its RTCP
        world.run(5)
        assert len(requests(world, "INVITE")) == 1

    def test_a_description_that_cannot_be_read_may_be_concerned(self) -> None:
        world = established()
        odd = in_dialog("INVITE", 2, body=b"--x").replace(b"application/sdp", b"multipart/mixed;boundary=x")
        world.peer.is_down = True
        world.phone_sends(odd, PEER)
        world.peer_sends(compose_response(world.sent[-1], 200, "OK", [("Contact", f"<sip:bob@{PEER}>")]))
        world.run(0.1)
        world.phone_sends(in_dialog("ACK", 2), PEER)
        world.renewal.media_changed(LOCAL_RTP, now=world.now)
        world.run(0.2)
        told = requests(world, "INVITE")[-1]
        assert (told.cseq, told.content_type, told.body) == ((3, "INVITE"), "multipart/mixed", b"--x")

    def test_it_says_when_the_other_side_moved_as_well(self) -> None:
        world = established()
        world.peer.answers_from = PEER_RTP.with_port(30000)
        world.move()
        world.run(5)
        assert world.events == [CallMoved(CALL, has_peer_moved=True)]

    @BOTH
    def test_a_call_that_is_over_is_left_alone(self, is_caller: bool) -> None:
        for by_phone in (True, False):
            world = established(is_caller=is_caller)
            if by_phone:
                world.phone_sends(in_dialog("BYE", 2), PEER)
            else:
                world.peer_sends(incoming("BYE", 30))
            world.run(1)
            world.sent.clear()
            world.move()
            world.run(5)
            assert world.sent == []
            assert world.renewal.timeout_at() is None

    def test_hanging_up_ends_what_was_being_told(self) -> None:
        world = World(loss=lambda packet: packet == 3)
        world.call()
        world.move()
        world.run(0.2)
        world.phone_sends(in_dialog("BYE", 2), PEER)
        world.run(60)
        assert [message.method for message in world.sent][-2:] == ["INVITE", "BYE"]
        assert numbers(world.sent)[-2:] == [2, 3]
        assert (world.events, world.peer.complaints) == ([], [])

    def test_the_session_is_refreshed_by_who_refreshed_it(self) -> None:
        world = World()
        world.peer.is_down = True
        world.phone_sends(invite(), PEER)
        response = compose_response(
            world.sent[-1],
            200,
            "OK",
            [("Contact", f"<sip:bob@{PEER}>"), ("x", "1800;refresher=uas")],
            to_tag="p",
        )
        world.peer_sends(response)
        world.run(0.5)
        world.phone_sends(in_dialog("ACK", 1), PEER)
        world.move()
        world.run(1)
        told = requests(world, "INVITE")[-1]
        assert told.value(told.header("session-expires")) == b"1800;refresher=uas"

    def test_a_target_that_moved_is_found_again(self) -> None:
        world = established()
        elsewhere = Endpoint.of("203.0.113.10", 5070)
        update = incoming("UPDATE", 30).replace(
            f"<sip:bob@{PEER}>".encode(), f"<sip:bob@{elsewhere}>".encode()
        )
        world.peer_sends(update)
        world.run(0.1)
        world.phone_sends(compose_response(world.inbox[-1], 200, "OK"), PEER)
        world.move()
        world.run(0.2)
        assert world.sent[-1].data.startswith(f"INVITE sip:bob@{elsewhere} SIP/2.0\r\n".encode())

    def test_a_target_that_is_a_name_is_reached_where_the_phone_sends(self) -> None:
        world = World()
        world.peer.is_down = True
        world.phone_sends(invite(), PEER)
        fields = [("Contact", "<sip:bob@phone.example.org>"), ("Record-Route", "<sip:proxy.example.org;lr>")]
        world.peer_sends(compose_response(world.sent[-1], 200, "OK", fields, to_tag="p"))
        world.run(0.1)
        world.phone_sends(in_dialog("ACK", 1), PEER)
        world.peer.is_down = False
        world.move()
        world.run(0.2)
        told = next(message for message in world.peer.requests if message.method == "INVITE")
        assert told.data.startswith(b"INVITE sip:bob@phone.example.org SIP/2.0\r\n")
        assert told.value(told.header("route")) == b"<sip:proxy.example.org;lr>"

    def test_each_fork_that_was_answered_is_told(self) -> None:
        world = World()
        world.peer.is_down = True
        world.phone_sends(invite(), PEER)
        first = world.sent[-1]
        for tag in ("p", "q"):
            fields = [("Contact", f"<sip:{tag}@{PEER}>")]
            world.peer_sends(compose_response(first, 200, "OK", fields, to_tag=tag))
            world.run(0.1)
            world.phone_sends(in_dialog("ACK", 1).replace(b"tag=p", b"tag=" + tag.encode()), PEER)
        world.move()
        world.run(0.2)
        told = requests(world, "INVITE")[1:]
        assert [message.to_tag for message in told] == [b"p", b"q"]
        assert numbers(told) == [2, 3]


def test_a_request_that_cannot_be_made_is_said_and_not_raised() -> None:
    world = World()
    world.phone_sends(invite().replace(b"From: ", b'From: "Al\rice" '), PEER)
    world.run(0.1)
    world.phone_sends(in_dialog("ACK", 1), PEER)
    world.move()
    world.run(60)
    [event] = world.events
    assert isinstance(event, NotRenewed)
    assert event.reason.startswith("it cannot be sent: ")
    assert (event.call_id, event.server, event.status_code) == (CALL, PEER, None)
    assert world.renewal.timeout_at() is None


@needs_corpus
@pytest.mark.parametrize(
    ("passed", "like"),
    [
        (("out 3.7-F01", "in 3.7-F07", "out 3.7-F08"), "3.7-F12"),  # Alice, whose next request is a BYE
        (("in 3.7-F02", "out 3.7-F06", "in 3.7-F08"), "3.7-F09"),  # Bob, who does send the re-INVITE
    ],
)
def test_the_reinvite_of_rfc_3665(passed: tuple[str, ...], like: str) -> None:
    renewal = Renewal(LOCAL, entropy=entropy())
    description = b""
    for step in passed:
        direction, _, name = step.partition(" ")
        data = flow(name)
        if direction == "out":
            assert renewal.outgoing(data, PEER, now=0) == data
            description = SipMessage.parse(data).body or description
        else:
            assert renewal.incoming(data, PEER, now=0) == data
    renewal.binding_changed(FIRST, SECOND, now=1)
    renewal.handle_timeout(now=1 + SETTLE_S)
    [transmit] = renewal.transmits()
    told, wanted = SipMessage.parse(transmit.data), SipMessage.parse(flow(like))
    assert told.request_uri is not None
    assert wanted.request_uri is not None
    if like == "3.7-F09":
        assert told.data[slice(*told.request_uri)] == wanted.data[slice(*wanted.request_uri)]
    else:  # Bob has moved when Alice hangs up
        assert told.data[slice(*told.request_uri)] == b"sip:bob@client.biloxi.example.com"
    for name in ("from", "to", "call-id"):
        assert told.value(told.header(name)) == wanted.value(wanted.header(name))
    assert (told.method, told.body) == ("INVITE", description)


def flow(name: str) -> bytes:
    """A message of RFC 3665, by the beginning of its file's name."""
    [path] = [path for path in PATHS if path.name.startswith(name)]
    return path.read_bytes()
