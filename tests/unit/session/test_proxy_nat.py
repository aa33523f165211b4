"""Calls of phones behind NATs through the proxy."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.events import CallStarted, Passage
from nattools.session.flows import Flow, Listener
from nattools.session.forking import Target
from nattools.session.nat_tests import ContactFix, NatTest
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import (
    ALICE,
    BOB,
    BOB_TARGET,
    BODY,
    CAROL,
    NAT,
    OUTSIDE,
    PRIVATE,
    PROXY,
    Desk,
    lines,
    parsed,
    request,
    texts,
)

ALIAS = "203.0.113.1~2753~1"
RECORDED = f"<sip:{PROXY};lr>"


def from_inside(method: str = "INVITE", branch: str = "a", *, rport: bool = False, **more: str) -> bytes:
    via = [f"SIP/2.0/UDP {PRIVATE};branch=z9hG4bK{branch}{';rport' if rport else ''}"]
    return request(method, via=via, contact=f"<sip:alice@{PRIVATE}>", **more)  # type: ignore[arg-type] # tags


def from_bob(method: str, uri: str, *, route: str = "") -> bytes:
    """A request of Bob in the call."""
    headers = [("Max-Forwards", "70")] + ([("Route", route)] if route else [])
    data = request(
        method, uri, via=[f"SIP/2.0/UDP {BOB};branch=z9hG4bKx"], from_tag="b", to_tag="a", headers=headers
    )
    return data.replace(f"alice@{ALICE}".encode(), f"bob@{BOB}".encode())


@pytest.mark.parametrize("rport", [False, True])
def test_answers_go_to_the_port_of_the_nat_whether_asked_to_or_not(rport: bool) -> None:
    desk = Desk()
    sent = desk.put(from_inside(rport=rport), NAT)
    assert lines(desk.forward(BOB_TARGET))[0] == f"100 Trying -> {NAT}"
    assert sent == []


def test_a_via_says_where_it_came_from_and_cannot_lie() -> None:
    desk = Desk()
    via = [f"SIP/2.0/UDP {PRIVATE};received=8.8.8.8;rport=9;branch=z9hG4bKa"]
    (invite,) = desk.invite(data=request(via=via), source=NAT)
    assert texts(invite, "via")[1] == f"SIP/2.0/UDP {PRIVATE};received=203.0.113.1;rport=2753;branch=z9hG4bKa"


def test_a_public_client_without_rport_is_answered_at_the_port_that_it_names() -> None:
    desk = Desk()
    desk.put(request(via=["SIP/2.0/UDP 203.0.113.9:5070;branch=z9hG4bKa"]), ALICE)
    assert lines(desk.forward(BOB_TARGET))[0] == "100 Trying -> 203.0.113.9:5070"


def test_a_caller_behind_a_nat_is_reached_by_the_alias() -> None:
    desk = Desk()
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    contact = invite.first_value("contact").decode()
    assert contact == f"<sip:alice@{PRIVATE};alias={ALIAS}>"
    desk.respond(invite, 200)
    desk.event(CallStarted)
    desk.put(from_bob("BYE", contact[1:-1], route=RECORDED), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{PRIVATE} -> {NAT}"]


def test_the_alias_leads_to_the_phone_even_when_the_call_is_not_known() -> None:
    desk = Desk()
    desk.put(from_bob("BYE", f"sip:alice@{PRIVATE};alias={ALIAS}", route=RECORDED), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{PRIVATE} -> {NAT}"]


@pytest.mark.parametrize("uri", [f"sip:alice@{PRIVATE}", "sip:alice@example.com"])
def test_a_callee_that_loses_alias_and_route_reaches_the_caller_too(uri: str) -> None:
    desk = Desk()
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    desk.respond(invite, 200)
    desk.event(CallStarted)
    desk.put(from_bob("BYE", uri), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{PRIVATE} -> {NAT}"]


def test_a_callee_behind_a_nat_gets_an_alias_and_a_public_one_does_not() -> None:
    desk = Desk()
    (invite,) = desk.invite(Target(f"sip:bob@{PRIVATE}".encode(), Flow("u", NAT)))
    (ok,) = parsed(desk.respond(invite, 200, NAT, contact=f"<sip:bob@{PRIVATE}>"))
    assert ok.first_value("contact") == f"<sip:bob@{PRIVATE};alias={ALIAS}>".encode()
    other = Desk()
    (invite,) = other.invite()
    (ok,) = parsed(other.respond(invite, 200))
    assert ok.first_value("contact") == f"<sip:bob@{BOB}>".encode()


def test_a_callee_whose_public_contact_leads_nowhere_is_reached_where_it_is_registered() -> None:
    desk = Desk()
    wrong = "203.0.113.1:61000"  # the port of its NAT towards a STUN server
    (invite,) = desk.invite(Target(f"sip:bob@{wrong}".encode(), Flow("u", NAT)))
    (ok,) = parsed(desk.respond(invite, 200, NAT, contact=f"<sip:bob@{wrong}>"))
    assert ok.first_value("contact") == f"<sip:bob@{wrong};alias={ALIAS}>".encode()
    desk.event(CallStarted)
    for method in ("ACK", "INVITE"):
        again = request(
            method, f"sip:bob@{wrong}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bK{method}"], to_tag="b"
        )
        desk.put(again)
        sent = desk.forward()
        assert lines(sent)[-1] == f"{method} sip:bob@{wrong} -> {NAT}"
    (ok,) = parsed(desk.respond(parsed(sent)[-1], 200, NAT, contact=f"<sip:bob@{wrong}>"))
    assert ok.first_value("contact") == f"<sip:bob@{wrong};alias={ALIAS}>".encode()
    desk.put(request("BYE", f"sip:bob@{wrong}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKz"], to_tag="b"))
    assert lines(desk.forward()) == [f"BYE sip:bob@{wrong} -> {NAT}"]


def test_the_contacts_of_a_redirection_are_other_places_and_stay() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    sent = desk.respond(invite, 302, contact="", headers=[("Contact", "<sip:x@10.0.0.1>")])
    assert SipMessage.parse(sent[0].data).first_value("contact") == b"<sip:x@10.0.0.1>"


def test_a_registration_is_not_touched() -> None:
    desk = Desk()
    desk.put(from_inside("REGISTER"), NAT)
    received = desk.received()
    assert received.nat
    desk.proxy.forward(received.number, [BOB_TARGET], now=0)
    (sent,) = parsed(desk.proxy.transmits())
    assert sent.first_value("contact") == f"<sip:alice@{PRIVATE}>".encode()


def test_what_another_proxy_passes_on_is_not_judged_by_its_source() -> None:
    desk = Desk()
    via = [f"SIP/2.0/UDP {CAROL};branch=z9hG4bKc", f"SIP/2.0/UDP {PRIVATE};branch=z9hG4bKa"]
    contact = f"<sip:alice@{PRIVATE}>"
    (invite,) = desk.invite(data=request(via=via, contact=contact), source=CAROL)
    assert invite.first_value("contact") == contact.encode()


def test_the_answer_of_a_phone_behind_another_proxy_is_left_alone() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    route = [("Record-Route", f"<sip:{CAROL};lr>"), ("Record-Route", RECORDED)]
    contact = f"<sip:bob@{PRIVATE}>"
    response = desk.respond(invite, 200, contact=contact)
    assert b"alias" in response[0].data
    other = Desk()
    (invite,) = other.invite()
    edited = SipMessage.parse(invite.data)
    edited.remove_header(edited.headers_named("record-route")[0])
    sent = other.respond(SipMessage.parse(edited.encode()), 200, contact=contact, headers=route)
    assert SipMessage.parse(sent[0].data).first_value("contact") == contact.encode()


def test_a_gruu_of_this_domain_is_no_way_to_a_phone_but_its_registration_is() -> None:
    desk = Desk()
    (invite,) = desk.invite(Target(f"sip:bob@{PRIVATE}".encode(), Flow("u", NAT)))
    desk.respond(invite, 200, NAT, contact="<sip:bob@example.com;gr=urn:x>")
    ack = request(
        "ACK", "sip:bob@example.com;gr=urn:x", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b"
    )
    desk.event(CallStarted)
    desk.put(ack)
    (sent,) = desk.forward()
    assert lines([sent])[0].startswith(f"ACK sip:bob@{PRIVATE} -> ")


def test_the_contact_can_be_rewritten() -> None:
    desk = Desk(contact_fix=ContactFix.REWRITE)
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    assert invite.first_value("contact") == f"<sip:alice@{NAT}>".encode()
    desk.respond(invite, 200)
    desk.event(CallStarted)
    desk.put(from_bob("BYE", f"sip:alice@{NAT}", route=RECORDED), BOB)
    assert lines(desk.forward())[0].endswith(f" -> {NAT}")


def test_the_tests_are_the_users_choice() -> None:
    desk = Desk(tests=NatTest(0))
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    assert invite.first_value("contact") == f"<sip:alice@{PRIVATE}>".encode()


def test_a_phone_that_moves_is_followed() -> None:
    desk = Desk()
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    desk.respond(invite, 200)
    desk.event(CallStarted)
    moved = Endpoint.of("203.0.113.2", 1024)
    desk.put(from_inside("INVITE", "b", to_tag="b", uri=f"sip:bob@{BOB}"), moved)
    (again,) = (one for one in parsed(desk.forward()) if one.is_request)
    assert again.first_value("contact") == f"<sip:alice@{PRIVATE};alias=203.0.113.2~1024~1>".encode()
    desk.respond(again, 200)
    desk.put(from_bob("BYE", f"sip:alice@{PRIVATE};alias={ALIAS}", route=RECORDED), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{PRIVATE} -> {moved}"]


def test_media_are_edited_on_the_way_there_and_back() -> None:
    passages: list[Passage] = []

    def edit(passage: Passage) -> None:
        passages.append(passage)
        if passage.message.body:
            passage.message.replace_body(b"edited " + passage.message.body)

    desk = Desk(edit_media=edit)
    (invite,) = desk.invite()
    assert invite.body == b"edited " + BODY
    assert (passages[0].arrived, passages[0].leaves) == (Flow("u", ALICE), Flow("u", BOB))
    (ok,) = parsed(desk.respond(invite, 200, body=BODY))
    assert ok.body == b"edited " + BODY
    assert (passages[1].arrived, passages[1].leaves) == (Flow("u", BOB), Flow("u", ALICE))
    desk.event(CallStarted)
    ack = request(
        "ACK", f"sip:bob@{BOB}", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"], to_tag="b", body=BODY
    )
    desk.put(ack)
    assert parsed(desk.forward())[0].body == b"edited " + BODY


def sides() -> Desk:
    """A gateway: inside and outside, which it is known by under another address."""
    inside = Listener("in", "UDP", Endpoint.of("192.168.0.1", 5060))
    outside = Listener("out", "UDP", Endpoint.of("10.9.9.9", 5060), OUTSIDE)
    return Desk(listeners=(inside, outside))


def test_a_gateway_is_seen_by_each_side_as_that_side_reaches_it() -> None:
    desk = sides()
    desk.put(
        request(via=[f"SIP/2.0/UDP {PRIVATE};branch=z9hG4bKa"], contact=f"<sip:alice@{PRIVATE}>"),
        PRIVATE,
        "in",
    )
    sent = desk.forward(Target(f"sip:bob@{BOB}".encode(), Flow("out", BOB)))
    invite = SipMessage.parse(sent[1].data)
    assert sent[1].socket == "out"
    assert texts(invite, "via")[0].startswith(f"SIP/2.0/UDP {OUTSIDE};")
    assert texts(invite, "record-route") == [f"<sip:{OUTSIDE};lr>", "<sip:192.168.0.1:5060;lr>"]
    (ok,) = desk.respond(invite, 200, socket="out")
    assert (ok.socket, ok.destination) == ("in", PRIVATE)
    assert gateway_route(desk, "ACK", f"sip:bob@{BOB}") == ("out", BOB)


def gateway_route(desk: Desk, method: str, uri: str) -> tuple[str, Endpoint]:
    """Where a request of Alice goes that has both Routes of the gateway."""
    desk.event(CallStarted)
    routes = [("Route", f"<sip:192.168.0.1:5060;lr>, <sip:{OUTSIDE};lr>")]
    via = [f"SIP/2.0/UDP {PRIVATE};branch=z9hG4bKb"]
    desk.put(request(method, uri, via=via, to_tag="b", headers=routes), PRIVATE, "in")
    sent: Transmit
    (sent,) = desk.forward()
    assert texts(SipMessage.parse(sent.data), "route") == []
    return sent.socket, sent.destination


def test_a_request_without_a_contact_changes_no_way() -> None:
    desk = Desk()
    (invite,) = desk.invite(data=from_inside(), source=NAT)
    desk.respond(invite, 200)
    desk.event(CallStarted)
    update = from_inside("UPDATE", "b", to_tag="b", uri=f"sip:bob@{BOB}")
    desk.put(update.replace(b"Contact", b"X-Contact"), NAT)
    (sent,) = parsed(desk.forward())
    desk.respond(sent, 200)
    desk.put(from_bob("BYE", f"sip:alice@{PRIVATE}"), BOB)
    assert lines(desk.forward()) == [f"BYE sip:alice@{PRIVATE} -> {NAT}"]


def mute(request: SipMessage) -> SipMessage:
    """A request whose Record-Route the phone that answers it does not repeat, as pyVoIP 1.6 does not."""
    copy = request.unedited()
    for header in copy.headers_named("record-route"):
        copy.remove_header(header)
    return SipMessage.parse(copy.encode())


def test_a_phone_that_repeats_no_record_route_is_reached_through_the_proxy_all_the_same() -> None:
    desk = Desk()
    others = ["<sip:203.0.113.77;lr>", "<sip:203.0.113.78;lr>"]
    data = request(body=BODY, headers=[("Max-Forwards", "70"), ("Record-Route", ", ".join(others))])
    [invite] = desk.invite(data=data)
    for code in (180, 200):
        [answer] = parsed(desk.respond(mute(invite), code, contact=f"<sip:bob@{PRIVATE}>"))
        assert texts(answer, "record-route") == [RECORDED, *others]
    desk.event(CallStarted)
    desk.put(from_bob("BYE", f"sip:alice@{ALICE}"), BOB)
    [bye] = parsed(desk.forward())
    assert texts(bye, "route") == others


def test_a_response_that_begins_no_dialog_gets_no_record_route() -> None:
    desk = Desk()
    [invite] = desk.invite()
    [trying] = parsed(desk.respond(mute(invite), 183, tag=""))
    assert not texts(trying, "record-route")
    desk.respond(invite, 200)
    desk.event(CallStarted)
    desk.put(from_bob("INVITE", f"sip:alice@{ALICE}", route=RECORDED), BOB)
    [again] = [message for message in parsed(desk.forward()) if message.is_request]
    [answer] = parsed(desk.respond(mute(again), 200, ALICE, tag=""))
    assert not texts(answer, "record-route")


def test_an_ack_with_a_tag_that_the_phone_made_up_reaches_who_answered() -> None:
    desk = Desk()
    [invite] = desk.invite()
    desk.respond(invite, 200)
    desk.event(CallStarted)
    for tag in ("made-up", "another"):  # as pyVoIP 1.6 sends it, without Route, on the branch of its INVITE
        desk.put(request("ACK", to_tag=tag))
        [ack] = parsed(desk.forward())
        assert (ack.to_tag, ack.method) == (b"b", "ACK")


def test_of_several_answers_none_gets_an_ack_with_a_made_up_tag() -> None:
    desk = Desk()
    first, second = desk.invite(BOB_TARGET, Target(f"sip:carol@{CAROL}".encode()))
    for copy, source, tag in ((first, BOB, "b"), (second, CAROL, "c")):
        desk.respond(copy, 200, source, tag=tag)
    desk.put(request("ACK", to_tag="made-up"))
    desk.event(CallStarted)
    desk.event(CallStarted)
    assert desk.received().request.to_tag == b"made-up"
