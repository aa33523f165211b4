"""What the driver of a proxy can have it do, and what it must do for it."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.session.events import CallEnded, CallFailed, CallStarted
from nattools.session.flows import Flow
from nattools.session.forking import Target, by_flows
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import (
    ALICE,
    BOB,
    BOB_TARGET,
    CAROL,
    CAROL_TARGET,
    PROXY,
    Desk,
    lines,
    parsed,
    request,
    texts,
)

RECORDED = f"<sip:{PROXY};lr>"


def test_a_refusal_of_the_driver_has_a_tag_and_is_sent_once_for_each_request() -> None:
    desk = Desk()
    for _ in range(2):
        desk.put(request())
        number = desk.received().number
        desk.proxy.answer(number, 404, "Not Found", [("X-A", "b")], now=0)
        (refusal,) = desk.proxy.transmits()
        assert SipMessage.parse(refusal.data).to_tag
        desk.event(CallFailed)
        desk.proxy.answer(number, 486, "Too late", now=1)
        assert desk.proxy.transmits() == []
    assert desk.wait(100) == []


def test_the_ack_of_a_refusal_goes_no_further() -> None:
    desk = Desk()
    desk.put(request())
    desk.proxy.answer(desk.received().number, 404, "Not Found", now=0)
    tag = SipMessage.parse(desk.proxy.transmits()[0].data).to_tag or b""
    desk.event(CallFailed)
    assert desk.put(request("ACK", cseq=1, to_tag=tag.decode())) == []
    assert desk.has_no_event()
    desk.put(request("ACK", cseq=1, to_tag="another"))
    assert desk.received().request.method == "ACK"


def test_what_was_waited_for_is_refused_until_the_ack_is_here() -> None:
    desk = Desk()
    desk.put(request())
    number = desk.received().number
    assert [lines([one]) for _, one in desk.wait(0.3)] == [[f"100 Trying -> {ALICE}"]]
    desk.proxy.answer(number, 404, "Not Found", now=0.3)
    (refusal,) = desk.proxy.transmits()
    assert [one for _, one in desk.wait(0.9)] == [refusal]


def test_a_response_that_the_driver_has_whole_is_sent() -> None:
    desk = Desk()
    desk.put(request("REGISTER"))
    received = desk.received()
    response = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP x\r\n\r\n"
    desk.proxy.respond(received.number, response, now=0)
    assert [one.data for one in desk.proxy.transmits()] == [response]


def test_what_is_ignored_gets_no_answer_ever() -> None:
    desk = Desk()
    desk.put(request())
    desk.proxy.ignore(desk.received().number, now=0)
    assert desk.wait(10) == []
    assert desk.put(request()) == []
    assert desk.wait(100) == []
    assert desk.proxy.timeout_at() is None


def test_a_driver_that_decides_nothing_is_not_waited_for_without_end() -> None:
    desk = Desk()
    desk.put(request("MESSAGE"))
    assert lines(one for _, one in desk.wait(31)) == [f"500 Not Decided In Time -> {ALICE}"]


def test_an_ack_that_nobody_decides_about_is_forgotten() -> None:
    desk = Desk()
    desk.put(request("ACK", to_tag="b"))
    desk.wait(31)
    assert desk.proxy.timeout_at() is None


def test_there_is_a_limit_of_requests_at_once() -> None:
    desk = Desk(most_requests=1)
    desk.put(request())
    other = request(via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"])
    assert lines(desk.put(other)) == [f"503 Too Many Requests Pending -> {ALICE}"]
    assert desk.proxy.counters["overload"] == 1


def test_credentials_for_this_proxy_go_no_further() -> None:
    desk = Desk()
    headers = [("Proxy-Authorization", f'Digest username="a", realm="{realm}"') for realm in ("mine", "his")]
    desk.put(request(headers=headers))
    (sent,) = desk.forward(BOB_TARGET, realm="mine")[1:]
    assert texts(SipMessage.parse(sent.data), "proxy-authorization") == [headers[1][1]]


def test_headers_of_the_driver_are_added() -> None:
    desk = Desk()
    desk.put(request("REGISTER"))
    path = [("Path", RECORDED)]
    desk.proxy.forward(desk.received().number, [BOB_TARGET], now=0, headers=path)
    (sent,) = parsed(desk.proxy.transmits())
    assert texts(sent, "path") == [RECORDED]
    assert texts(sent, "record-route") == []


def test_a_path_is_followed() -> None:
    desk = Desk()
    (invite,) = desk.invite(Target(b"sip:bob@192.168.0.3", route=(f"<sip:{CAROL};lr>".encode(),)))
    assert texts(invite, "route") == [f"<sip:{CAROL};lr>"]
    assert invite.data.startswith(b"INVITE sip:bob@192.168.0.3 ")


@pytest.mark.parametrize(
    "target",
    [
        Target(b"sip:bob@nowhere.test"),
        Target(b"sip:bob@x", Flow("gone", BOB)),
        Target(b"sip:b\xffb@x", Flow("u", BOB)),
        Target(b"sip:@@", Flow("u", BOB)),
        Target(b"sip:bob@x", route=(b"<sip:@@>",)),
        Target(b"tel:123"),
    ],
)
def test_a_target_that_cannot_be_reached_counts_as_503(target: Target) -> None:
    desk = Desk()
    desk.put(request())
    sent = desk.forward(target)
    assert lines(sent)[-1] == f"500 Server Internal Error -> {ALICE}"


def test_a_request_that_could_not_be_sent_counts_as_503() -> None:
    desk = Desk()
    desk.put(request())
    sent = desk.forward(BOB_TARGET, Target(CAROL_TARGET.uri, CAROL_TARGET.flow, q=0.1))[1]
    desk.proxy.send_failed(sent, now=0)
    assert lines(desk.proxy.transmits()) == [f"INVITE sip:carol@{CAROL} -> {CAROL}"]


SPARES = by_flows(BOB_TARGET.uri, [Flow("u", BOB), Flow("u", CAROL)])


def test_a_spare_is_tried_where_the_one_before_cannot_be_reached() -> None:
    desk = Desk()
    desk.put(request())
    number = desk.received().number
    assert desk.proxy.leaves_by(number, SPARES) == [Flow("u", BOB)]
    desk.proxy.forward(number, SPARES, now=0)
    sent = desk.proxy.transmits()[1]
    desk.proxy.send_failed(sent, now=0)
    assert lines(desk.proxy.transmits()) == [f"INVITE sip:bob@{BOB} -> {CAROL}"]


def test_so_it_is_where_that_one_says_503() -> None:
    desk = Desk()
    (invite,) = desk.invite(*SPARES)
    other, ack = desk.respond(invite, 503)
    assert lines([other, ack]) == [f"INVITE sip:bob@{BOB} -> {CAROL}", f"ACK sip:bob@{BOB} -> {BOB}"]
    assert lines(desk.respond(SipMessage.parse(other.data), 404, CAROL))[0] == f"404 Word -> {ALICE}"


@pytest.mark.parametrize("code", [401, 404, 486, 500, 603])
def test_where_that_one_has_answered_the_spare_is_left_alone(code: int) -> None:
    desk = Desk()
    (invite,) = desk.invite(*SPARES)
    assert lines(desk.respond(invite, code)) == [
        f"{code} Word -> {ALICE}",
        f"ACK sip:bob@{BOB} -> {BOB}",
    ]
    assert [one for _, one in desk.wait(0.1) if one.destination == CAROL] == []


def test_a_cancelled_request_goes_to_no_spare() -> None:
    desk = Desk()
    desk.put(request())
    sent = desk.forward(*SPARES)[1]
    desk.put(request("CANCEL"))
    desk.proxy.send_failed(sent, now=0)
    assert lines(desk.proxy.transmits()) == [f"487 Request Terminated -> {ALICE}"]


def test_a_request_without_next_hop_wants_targets() -> None:
    desk = Desk()
    desk.put(request())
    received = desk.received()
    assert received.next_hop is None
    with pytest.raises(ValueError, match="targets"):
        desk.proxy.forward(received.number, now=0)


def test_a_host_name_is_for_the_driver_to_resolve() -> None:
    desk = Desk()
    desk.put(request(uri="sip:bob@elsewhere.test:5070;transport=tcp"))
    received = desk.received()
    hop = received.next_hop
    assert hop is not None
    assert (hop.host, hop.port, hop.transport, hop.flow) == (b"elsewhere.test", 5070, "TCP", None)
    desk.proxy.forward(received.number, now=0, flows=[Flow("t", BOB)])
    sent = desk.proxy.transmits()[1]
    assert (sent.socket, sent.destination) == ("t", BOB)
    assert len(texts(SipMessage.parse(sent.data), "record-route")) == 2


def test_a_hang_up_reaches_both_sides() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 200)
    call = desk.event(CallStarted).call
    desk.proxy.hang_up(call, now=desk.now)
    sent = desk.proxy.transmits()
    assert lines(sent) == [f"BYE sip:alice@{ALICE} -> {ALICE}", f"BYE sip:bob@{BOB} -> {BOB}"]
    to_alice, to_bob = parsed(sent)
    assert (to_alice.from_tag, to_alice.to_tag) == (b"b", b"a")
    assert (to_bob.from_tag, to_bob.to_tag, to_bob.cseq) == (b"a", b"b", (2, "BYE"))
    desk.event(CallEnded)
    assert desk.respond(to_alice, 200, ALICE) == []
    assert desk.respond(to_bob, 481) == []
    desk.proxy.hang_up(call, now=desk.now)
    assert desk.proxy.transmits() == []


def test_over_a_stream_nothing_is_sent_again_and_answers_take_the_connection() -> None:
    desk = Desk()
    peer = Endpoint.of("203.0.113.9", 40000)
    desk.flows.connected("c1", "t", peer)
    data = request(via=[f"SIP/2.0/TCP {ALICE};branch=z9hG4bKa"])
    desk.put(data, peer, "c1")
    sent = desk.forward(Target(b"sip:bob@x", Flow("t", BOB)))
    assert [(one.socket, one.destination) for one in sent] == [("c1", peer), ("t", BOB)]
    assert desk.wait(10) == []
    desk.flows.connected("c2", "t", BOB)
    invite = SipMessage.parse(sent[1].data)
    refusal, _ = desk.respond(invite, 486, socket="c2")
    assert (refusal.socket, refusal.destination) == ("c1", peer)
    assert desk.wait(20) == []


def test_when_the_connection_is_gone_the_answer_goes_where_the_via_says() -> None:
    desk = Desk()
    peer = Endpoint.of("203.0.113.9", 40000)
    desk.flows.connected("c1", "t", peer)
    desk.put(request(via=[f"SIP/2.0/TCP {ALICE};branch=z9hG4bKa"]), peer, "c1")
    (invite,) = (one for one in parsed(desk.forward(BOB_TARGET)) if one.is_request)
    desk.flows.disconnected("c1")
    (sent,) = desk.respond(invite, 180)
    assert (sent.socket, sent.destination) == ("t", ALICE)
