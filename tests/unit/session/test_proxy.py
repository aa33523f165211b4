"""What becomes of requests and responses on their way through the proxy."""

from __future__ import annotations

import pytest

from nattools.session.events import CallEnded, CallFailed, CallStarted, Received
from nattools.session.flows import Flow
from nattools.session.forking import Target
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import (
    ALICE,
    BOB,
    BOB_TARGET,
    BODY,
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


def answered(desk: Desk) -> SipMessage:
    """Have Alice call Bob, who answers; the INVITE as Bob got it."""
    (invite,) = desk.invite()
    desk.respond(invite, 200, body=BODY)
    desk.event(CallStarted)
    return invite


def test_an_invite_goes_on_with_a_via_a_record_route_and_one_hop_less() -> None:
    desk = Desk()
    assert desk.put(request(body=BODY)) == []
    sent = desk.forward(BOB_TARGET)
    assert lines(sent) == [f"100 Trying -> {ALICE}", f"INVITE sip:bob@{BOB} -> {BOB}"]
    invite = SipMessage.parse(sent[1].data)
    mine, hers = texts(invite, "via")
    assert mine.startswith(f"SIP/2.0/UDP {PROXY};rport;branch=z9hG4bK")
    assert hers == f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa"
    assert texts(invite, "record-route") == [RECORDED]
    assert invite.first_value("max-forwards") == b"69"
    assert invite.body == BODY


def test_what_is_not_the_proxys_stays_bit_for_bit() -> None:
    odd = b"x-Odd :  a,b ;\xff\r\n\tfolded\r\nsubject:  Hi\r\n"
    data = request().replace(b"Contact:", odd + b"m:")
    desk = Desk()
    (invite,) = desk.invite(data=data)
    before = data.partition(b"From:")[2]
    assert invite.data.endswith(before)


def test_responses_go_back_without_the_proxys_via() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    assert lines(desk.respond(invite, 180)) == [f"180 Word -> {ALICE}"]
    (ok,) = parsed(desk.respond(invite, 200))
    assert texts(ok, "via") == [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa"]
    assert texts(ok, "record-route") == [RECORDED]


def test_a_100_is_not_passed_on() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    assert desk.respond(invite, 100) == []


def test_a_100_is_said_after_200_ms_even_if_nothing_is_decided() -> None:
    desk = Desk()
    desk.put(request())
    assert [(when, lines([one])) for when, one in desk.wait(1)] == [(0.2, [f"100 Trying -> {ALICE}"])]
    assert lines(desk.forward(BOB_TARGET)) == [f"INVITE sip:bob@{BOB} -> {BOB}"]


def test_only_invites_get_a_100() -> None:
    desk = Desk()
    desk.put(request("MESSAGE"))
    assert desk.wait(1) == []
    assert lines(desk.forward(BOB_TARGET)) == [f"MESSAGE sip:bob@{BOB} -> {BOB}"]


def test_a_request_that_comes_again_is_answered_again_and_goes_no_further() -> None:
    desk = Desk()
    desk.invite()
    assert lines(desk.put(request(body=BODY))) == [f"100 Trying -> {ALICE}"]
    assert desk.has_no_event()
    assert desk.proxy.counters["absorbed"] == 1


def test_what_nobody_answers_is_sent_again_and_times_out() -> None:
    desk = Desk()
    desk.invite()
    sent = desk.wait(32)
    assert [when for when, one in sent if one.destination == BOB] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert lines(one for _, one in sent if one.destination == ALICE)[0] == f"408 Request Timeout -> {ALICE}"
    assert desk.event(CallFailed).status_code == 408


def test_a_refusal_is_sent_again_until_its_ack() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    sent = desk.respond(invite, 486)
    assert lines(sent) == [f"486 Word -> {ALICE}", f"ACK sip:bob@{BOB} -> {BOB}"]
    assert [when for when, _ in desk.wait(2)] == [0.5, 1.5]
    assert desk.put(request("ACK", to_tag="b")) == []
    assert desk.wait(60) == []
    assert desk.event(CallFailed).status_code == 486
    assert desk.has_no_event()


def test_nothing_is_kept_of_a_call_that_failed() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 180)
    desk.respond(invite, 486)
    desk.put(request("ACK", to_tag="b"))
    desk.wait(300)
    assert desk.proxy.timeout_at() is None
    assert len(desk.proxy.dialogs) == 0


def test_a_2xx_that_comes_again_is_passed_on_again() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    for _ in range(3):
        assert lines(desk.respond(invite, 200)) == [f"200 Word -> {ALICE}"]
    desk.event(CallStarted)
    assert desk.has_no_event()


def test_a_response_to_nothing_is_not_passed_on() -> None:
    desk = Desk()
    via = (f"SIP/2.0/UDP {PROXY};branch=z9hG4bKx", f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa")
    assert desk.respond(SipMessage.parse(request(via=via)), 200) == []
    assert desk.proxy.counters["stray"] == 1


def test_the_ack_of_a_2xx_goes_on_by_its_route() -> None:
    desk = Desk()
    answered(desk)
    ack = request(
        "ACK",
        f"sip:bob@{BOB}",
        via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"],
        to_tag="b",
        headers=[("Max-Forwards", "70"), ("Route", RECORDED)],
    )
    desk.put(ack)
    (sent,) = desk.forward()
    assert lines([sent]) == [f"ACK sip:bob@{BOB} -> {BOB}"]
    assert texts(SipMessage.parse(sent.data), "route") == []


@pytest.mark.parametrize("method", ["ACK", "BYE"])
def test_a_client_that_ignores_the_route_reaches_the_phone_all_the_same(method: str) -> None:
    desk = Desk()
    answered(desk)
    desk.put(request(method, via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b", cseq=1))
    assert lines(desk.forward()) == [f"{method} sip:bob@{BOB} -> {BOB}"]


def test_an_ack_with_the_branch_of_its_invite_reaches_the_phone_too() -> None:
    desk = Desk()
    answered(desk)
    desk.put(request("ACK", to_tag="b"))
    assert lines(desk.forward()) == [f"ACK sip:bob@{BOB} -> {BOB}"]


def test_the_callee_who_ignores_the_route_reaches_the_caller() -> None:
    desk = Desk()
    answered(desk)
    bye = request("BYE", "sip:alice@example.com", via=[f"SIP/2.0/UDP {BOB};branch=z9hG4bKb"], to_tag="a")
    desk.put(bye.replace(b"com>;tag=a\r\nTo", b"com>;tag=b\r\nTo"), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{ALICE} -> {ALICE}"]


def test_a_bye_that_is_answered_ends_the_call() -> None:
    desk = Desk()
    answered(desk)
    desk.put(request("BYE", f"sip:bob@{BOB}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b"))
    (bye,) = parsed(desk.forward())
    assert desk.has_no_event()
    desk.respond(bye, 200)
    assert desk.event(CallEnded).call.call_id == b"call"
    desk.wait(32)
    assert len(desk.proxy.dialogs) == 0
    assert desk.proxy.timeout_at() is None


def test_an_ack_that_the_bye_has_overtaken_still_reaches_the_phone() -> None:
    desk = Desk()
    answered(desk)
    desk.put(request("BYE", f"sip:bob@{BOB}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b"))
    (bye,) = parsed(desk.forward())
    desk.respond(bye, 200)
    desk.event(CallEnded)
    desk.put(request("ACK", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKc"], to_tag="b"))
    assert lines(desk.forward()) == [f"ACK sip:bob@{BOB} -> {BOB}"]


def test_a_2xx_that_comes_again_after_the_bye_begins_no_call() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 200)
    desk.event(CallStarted)
    desk.put(request("BYE", f"sip:bob@{BOB}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b"))
    (bye,) = parsed(desk.forward())
    desk.respond(bye, 200)
    desk.event(CallEnded)
    assert lines(desk.respond(invite, 200)) == [f"200 Word -> {ALICE}"]
    assert desk.has_no_event()


def test_a_bye_that_nobody_answers_ends_the_call_too() -> None:
    desk = Desk()
    answered(desk)
    desk.put(request("BYE", f"sip:bob@{BOB}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b"))
    desk.forward()
    desk.wait(33)
    desk.event(CallEnded)


def test_a_timeout_of_another_request_is_not_told() -> None:
    desk = Desk()
    desk.put(request("MESSAGE"))
    desk.forward(BOB_TARGET)
    assert [one for _, one in desk.wait(100) if one.destination == ALICE] == []
    assert desk.proxy.timeout_at() is None


def test_all_phones_of_one_q_ring_at_once_and_the_others_are_cancelled() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    desk.respond(first, 180)
    desk.respond(second, 180, CAROL, tag="c")
    sent = desk.respond(first, 200)
    assert lines(sent) == [f"CANCEL sip:carol@{CAROL} -> {CAROL}", f"200 Word -> {ALICE}"]
    cancel = SipMessage.parse(sent[0].data)
    assert cancel.branch == second.branch
    assert cancel.cseq == (1, "CANCEL")
    assert b"cause=200" in cancel.first_value("reason")
    assert desk.respond(cancel, 200, CAROL) == []
    assert lines(desk.respond(second, 487, CAROL, tag="c")) == [f"ACK sip:carol@{CAROL} -> {CAROL}"]
    assert desk.event(CallStarted).call.callee.tag == b"b"
    desk.wait(300)
    assert len(desk.proxy.dialogs) == 1


def test_a_phone_that_has_not_rung_is_cancelled_when_it_does() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    assert lines(desk.respond(first, 200)) == [f"200 Word -> {ALICE}"]
    assert lines(desk.respond(second, 180, CAROL)) == [f"CANCEL sip:carol@{CAROL} -> {CAROL}"]


def test_two_phones_that_answer_at_once_make_two_calls() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    desk.respond(first, 200)
    assert f"200 Word -> {ALICE}" in lines(desk.respond(second, 200, CAROL, tag="c"))
    assert {desk.event(CallStarted).call.callee.tag for _ in range(2)} == {b"b", b"c"}


def test_a_lower_q_has_its_turn_when_the_higher_has_refused() -> None:
    desk = Desk()
    (first,) = desk.invite(Target(CAROL_TARGET.uri, CAROL_TARGET.flow, q=0.5), BOB_TARGET)
    sent = desk.respond(first, 486)
    assert lines(sent) == [f"INVITE sip:carol@{CAROL} -> {CAROL}", f"ACK sip:bob@{BOB} -> {BOB}"]
    assert desk.has_no_event()


@pytest.mark.parametrize(
    ("codes", "passed"),
    [
        ((486, 404), 404),
        ((486, 603), 603),
        ((503, 486), 486),
        ((503, 505), 505),
        ((408, 480), 480),
        ((302, 404), 302),
        ((500, 401), 401),
        ((487, 407), 407),
    ],
)
def test_the_best_refusal_goes_back(codes: tuple[int, int], passed: int) -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    assert f"{passed} Word -> {ALICE}" not in lines(desk.respond(first, codes[0]))
    assert f"{passed} Word -> {ALICE}" in lines(desk.respond(second, codes[1], CAROL))


def test_a_503_of_one_server_is_not_this_proxys() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    assert f"500 Server Internal Error -> {ALICE}" in lines(desk.respond(invite, 503))


def test_all_challenges_go_back_together() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    desk.respond(first, 401, headers=[("WWW-Authenticate", 'Digest realm="b"')])
    sent = desk.respond(second, 407, CAROL, headers=[("Proxy-Authenticate", 'Digest realm="c"')])
    (refusal,) = (one for one in parsed(sent) if not one.is_request)
    assert refusal.status_code == 401
    assert texts(refusal, "www-authenticate") == ['Digest realm="b"']
    assert texts(refusal, "proxy-authenticate") == ['Digest realm="c"']


def cancel() -> bytes:
    return request("CANCEL", contact=None, headers=[("Max-Forwards", "70"), ("Reason", "SIP;cause=487")])


def test_a_cancel_stops_all_branches() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 180)
    sent = desk.put(cancel())
    assert lines(sent) == [f"200 OK -> {ALICE}", f"CANCEL sip:bob@{BOB} -> {BOB}"]
    assert SipMessage.parse(sent[1].data).first_value("reason") == b"SIP;cause=487"
    assert desk.has_no_event()
    assert f"487 Word -> {ALICE}" in lines(desk.respond(invite, 487))
    assert desk.event(CallFailed).status_code == 487


def test_a_cancel_before_any_decision_ends_it_at_once() -> None:
    desk = Desk()
    desk.put(request())
    number = desk.received().number
    assert lines(desk.put(cancel())) == [f"200 OK -> {ALICE}", f"487 Request Terminated -> {ALICE}"]
    desk.proxy.forward(number, [BOB_TARGET], now=desk.now)
    assert desk.proxy.transmits() == []


def test_a_cancel_that_nobody_answers_ends_as_cancelled() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 180)
    desk.put(cancel())
    sent = [one for when, one in desk.wait(32) if one.destination == ALICE]
    assert lines(sent)[0] == f"487 Request Terminated -> {ALICE}"


def test_a_cancel_of_nothing_is_told_so() -> None:
    desk = Desk()
    assert lines(desk.put(cancel())) == [f"481 Call/Transaction Does Not Exist -> {ALICE}"]


def test_a_cancel_that_is_too_late_changes_nothing() -> None:
    desk = Desk()
    answered(desk)
    assert lines(desk.put(cancel())) == [f"200 OK -> {ALICE}"]


def test_nobody_rings_for_ever() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 180)
    sent = desk.wait(180)
    assert lines(one for _, one in sent)[0] == f"CANCEL sip:bob@{BOB} -> {BOB}"
    desk.wait(32)
    assert desk.event(CallFailed).status_code == 408


def test_who_rings_on_after_the_cancel_is_given_up() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    for _ in range(10):
        desk.respond(invite, 180)
        desk.wait(60)
    assert desk.has_no_event()
    desk.wait(400)
    assert desk.event(CallFailed).status_code == 408


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(headers=[("Max-Forwards", "0")]), "483 Too Many Hops"),
        (request(headers=[("Max-Forwards", "many")]), "400 Bad Max-Forwards"),
        (request(headers=[("Max-Forwards", "256")]), "400 Bad Max-Forwards"),
        (request(uri="mailto:bob@example.com"), "416 Unsupported URI Scheme"),
        (request(uri="sip:bob@"), "400 Bad Request-URI"),
        (request().replace(b" sip:bob@", b" sip:b\xffb@"), "400 Bad Request-URI"),
        (request(headers=[("Proxy-Require", "foo")]), "420 Bad Extension"),
        (request(headers=[("Route", "<sip:@@>")]), "400 Bad Route"),
    ],
)
def test_what_may_not_go_on_is_refused(data: bytes, status: str) -> None:
    desk = Desk()
    assert lines(desk.put(data)) == [f"{status} -> {ALICE}"]
    assert desk.put(request("ACK", to_tag="x")) == []
    assert not isinstance(desk.proxy.next_event(), Received)
    assert desk.proxy.counters["refused"] == 1


def test_a_request_that_counts_no_hops_begins_to() -> None:
    desk = Desk()
    (invite,) = desk.invite(data=request(headers=[]))
    assert invite.first_value("max-forwards") == b"70"


def test_a_request_that_comes_round_is_a_loop_and_one_that_changed_is_none() -> None:
    desk = Desk()
    desk.put(request())
    (sent,) = desk.forward(Target(b"sip:bob@example.com", Flow("u", CAROL)))[1:]
    back = SipMessage.parse(sent.data)
    back.insert_header_before(back.header("via"), "Via", f"SIP/2.0/UDP {CAROL};branch=z9hG4bKc")
    assert lines(desk.put(back.encode(), CAROL)) == [f"482 Loop Detected -> {CAROL}"]
    spiral = back.encode().replace(b"z9hG4bKc", b"z9hG4bKd").replace(b"INVITE sip:bob", b"INVITE sip:carol")
    desk.put(spiral, CAROL)
    desk.event(CallFailed)
    assert desk.received().request.request_uri is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        request().replace(b"Via", b"Vaa"),
        request().replace(b"Call-ID", b"Call-Id-X"),
        request(cseq_method="BYE"),
        request().replace(b"Content-Length: 0", b"Content-Length: 5"),
        request().replace(b"sip:alice@example.com", b"sip:al\rice@example.com"),
    ],
)
def test_what_is_no_message_is_counted_and_passed_over(data: bytes) -> None:
    desk = Desk()
    assert desk.put(data) == []
    assert desk.has_no_event()
    assert desk.proxy.counters["malformed"] == 1


def test_an_unknown_socket_is_the_drivers_mistake() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Desk().put(request(), socket="nowhere")


def chain(*, answer: int | None) -> list[str]:
    """Alice calls Bob through two proxies; the final responses that she gets (RFC 3665 §3.9 to §3.11)."""
    near, far = Desk(), Desk()
    (invite,) = near.invite(Target(b"sip:bob@far.test", Flow("u", CAROL)))
    (onward,) = far.invite(data=invite.data, source=PROXY)
    back = []
    if answer is None:
        far.wait(31.9)
        back = [one for _, one in far.wait(0.2)]
    else:
        back = far.respond(onward, answer)
    assert f"ACK sip:bob@{BOB} -> {BOB}" in lines(back) or answer is None
    sent = [one for data in back for one in near.put(data.data, CAROL) if not data.data.startswith(b"ACK")]
    (ack,) = (one for one in sent if one.destination == CAROL)
    assert far.put(ack.data, PROXY) == []
    assert far.wait(60) == []
    return [line for line in lines(sent) if line.endswith(str(ALICE))]


@pytest.mark.parametrize(
    ("answer", "status"), [(486, "486 Word"), (None, "408 Request Timeout"), (480, "480 Word")]
)
def test_a_call_that_does_not_come_about_is_refused_hop_by_hop(answer: int | None, status: str) -> None:
    assert chain(answer=answer) == [f"{status} -> {ALICE}"]


def test_a_2xx_that_comes_when_its_invite_is_forgotten_begins_no_call() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, CAROL_TARGET)
    desk.respond(first, 200)
    desk.wait(20)
    desk.respond(second, 200, CAROL, tag="c")
    call = [desk.event(CallStarted) for _ in range(2)][1].call
    desk.proxy.hang_up(call, now=desk.now)
    desk.event(CallEnded)
    desk.wait(13)
    assert desk.respond(second, 200, CAROL, tag="c") == []
    assert desk.has_no_event()
    assert len(desk.proxy.dialogs) == 1


@pytest.mark.parametrize("code", [401, 180])
def test_a_100_waits_for_what_comes_back_at_once_where_a_challenge_is_likely(code: int) -> None:
    desk = Desk()
    desk.put(request(body=BODY))
    number = desk.received().number
    desk.proxy.forward(number, [BOB_TARGET], now=desk.now, is_challenged=True)
    [invite] = parsed(desk.proxy.transmits())
    assert invite.method == "INVITE"
    answers = parsed(desk.respond(invite, code))
    assert code in [answer.status_code for answer in answers]
    assert all(sent.status_code != 100 for _, one in desk.wait(1) for sent in parsed([one]))


def test_where_no_challenge_comes_a_100_does() -> None:
    desk = Desk()
    desk.put(request(body=BODY))
    desk.proxy.forward(desk.received().number, [BOB_TARGET], now=desk.now, is_challenged=True)
    desk.proxy.transmits()
    began = desk.now
    sent = [(at, one) for at, one in desk.wait(1) if one.data.startswith(b"SIP/2.0 100")]
    assert [at - began for at, _ in sent] == [pytest.approx(0.2)]
