"""Who may call whom, and where it goes, at a registrar's desk."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocationError
from nattools.session.location import Bindings, DecisionT
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage
from tests.unit.session.controller.home import BOB_CONTACT, DOMAIN, FAR, Home
from tests.unit.session.proxy_desk import ALICE, BOB, NAT, lines, request


def test_a_user_who_shows_the_password_reaches_another() -> None:
    home = Home()
    home.register()
    sent = home.put(home.with_credentials("alice", "INVITE", "sip:bob@example.com"))
    assert lines(sent)[1:] == [f"INVITE {BOB_CONTACT} -> {BOB}"]
    assert b"Proxy-Authorization" not in sent[1].data  # which was for this natgate alone
    assert home.gate.users == ["alice"]


def test_the_password_is_asked_for_by_407() -> None:
    home = Home()
    home.register()
    answer = home.put(request())[0]
    assert answer.data.startswith(b"SIP/2.0 407 ")
    assert answer.data.count(b"Proxy-Authenticate: Digest realm") == 1


def test_nobody_calls_under_the_name_of_another() -> None:
    home = Home()
    home.register()
    asked = home.with_credentials("carol", "INVITE", "sip:bob@example.com")  # From says alice
    assert home.code(asked) == 403


def test_a_wrong_password_is_asked_for_again() -> None:
    home = Home()
    home.register()
    asked = home.with_credentials("alice", "INVITE", "sip:bob@example.com")
    place = asked.index(b'response="') + len(b'response="')
    forged = asked[:place] + b"0" * 32 + asked[place + 32 :]
    assert home.code(forged) == 407


@pytest.mark.parametrize(
    ("sender", "source", "code"),
    [
        pytest.param("alice@example.com", ALICE, 0, id="the flow that is registered"),
        pytest.param("alice@example.com", ALICE.with_port(5061), 407, id="another port of that host"),
        pytest.param("carol@example.com", ALICE, 407, id="another user"),
        pytest.param("alice@192.168.0.108", ALICE, 0, id="with its own address for a domain"),
        pytest.param("alice@192.168.0.108", ALICE.with_port(5061), 407, id="the same from another port"),
        pytest.param("alice@elsewhere.example", ALICE, 407, id="a user of another domain"),
    ],
)
def test_a_phone_calls_our_users_without_password_by_the_flow_it_is_registered_by(
    sender: str, source: Endpoint, code: int
) -> None:
    home = Home()
    home.register()
    home.register("alice", f"sip:alice@{ALICE}", ALICE)
    invite = request(via=[f"SIP/2.0/UDP {source};branch=z9hG4bKx"]).replace(
        b"<sip:alice@example.com>", f"<sip:{sender}>".encode()
    )
    assert home.code(invite, source) == code


def test_to_other_domains_only_the_password_leads() -> None:
    home = Home()
    home.register("alice", f"sip:alice@{ALICE}", ALICE)
    assert home.code(request(uri=f"sip:x@{FAR}")) == 407
    sent = home.put(home.with_credentials("alice", "INVITE", f"sip:x@{FAR}"))
    assert lines(sent)[1:] == [f"INVITE sip:x@{FAR} -> {FAR}"]


def test_a_route_leads_nobody_past_the_password() -> None:
    home = Home(strangers=True)
    invite = request(headers=[("Max-Forwards", "70"), ("Route", f"<sip:{FAR};lr>")])
    stranger = invite.replace(b"<sip:alice@example.com>", b"<sip:alice@elsewhere.example>")
    assert home.code(stranger) == 407


def test_strangers_reach_users_where_they_are_let_in_and_nobody_else() -> None:
    for strangers, code in ((True, 0), (False, 407)):
        home = Home(strangers=strangers)
        home.register()
        invite = request().replace(b"<sip:alice@example.com>", b"<sip:alice@elsewhere.example>")
        assert home.code(invite) == code
    assert home.code(request(via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"])) == 407  # it says it is ours


def test_a_host_name_is_looked_up() -> None:
    home = Home()
    home.gate.hosts[b"elsewhere.example"] = FAR
    sent = home.put(home.with_credentials("alice", "INVITE", "sip:x@elsewhere.example"))
    assert lines(sent)[1:] == [f"INVITE sip:x@elsewhere.example -> {FAR}"]
    assert home.code(home.with_credentials("alice", "INVITE", "sip:x@nowhere.example")) == 502


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        pytest.param("sip:bob@example.com", 480, id="a user without a phone"),
        pytest.param("sip:dave@example.com", 404, id="nobody"),
        pytest.param("sip:example.com", 404, id="natgate itself"),
    ],
)
def test_who_cannot_be_reached_is_told_apart(uri: str, code: int) -> None:
    home = Home(strangers=True)
    assert home.code(request(uri=uri).replace(b"alice@example.com", b"alice@elsewhere.example")) == code


def test_options_to_natgate_itself_are_answered_without_a_password() -> None:
    assert Home().code(request("OPTIONS", "sip:203.0.113.7")) == 200


def test_all_phones_of_a_user_ring_each_by_its_own_flow() -> None:
    home = Home(strangers=True)
    home.register()
    home.register("bob", "sip:bob@192.168.0.5:5060", NAT)
    invite = request().replace(b"alice@example.com", b"alice@elsewhere.example")
    assert sorted(lines(home.put(invite))[1:]) == [
        f"INVITE sip:bob@192.168.0.5:5060 -> {NAT}",
        f"INVITE {BOB_CONTACT} -> {BOB}",
    ]


def test_a_phone_whose_connection_has_ended_is_not_looked_for_behind_its_nat() -> None:
    home = Home(strangers=True)
    home.gate.flows.connected("t#1", "t", NAT)
    home.register("bob", "sip:bob@192.168.0.5:5060;transport=tcp", NAT, socket="t#1")
    invite = request().replace(b"alice@example.com", b"alice@elsewhere.example")
    assert lines(home.put(invite))[1:] == [f"INVITE sip:bob@192.168.0.5:5060;transport=tcp -> {NAT}"]
    home.gate.flows.disconnected("t#1")
    again = invite.replace(b"z9hG4bKa", b"z9hG4bKb")
    assert home.code(again) == 480


def test_a_contact_that_is_natgate_itself_is_left_out() -> None:
    home = Home(strangers=True)
    home.register("bob", "sip:carol@203.0.113.7:5060", BOB)
    invite = request().replace(b"alice@example.com", b"alice@elsewhere.example")
    assert home.code(invite) == 480


def test_a_phone_whose_nonce_is_too_old_is_asked_again_and_not_called_refused() -> None:
    home = Home()
    to = b"<sip:bob@example.com>", f"<sip:alice@{DOMAIN}>".encode()
    first = request("REGISTER", f"sip:{DOMAIN}").replace(*to)
    client = DigestClient("alice", "alice", entropy=secrets.token_bytes)
    client.challenged(SipMessage.parse(home.put(first)[0].data))
    home.gate.time += 3600
    more = [(key, value.decode()) for key, value in client.headers("REGISTER", f"sip:{DOMAIN}")]
    headers = [("Max-Forwards", "70"), *more]
    via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKagain"]
    assert (
        home.code(request("REGISTER", f"sip:{DOMAIN}", via=via, headers=headers, cseq=2).replace(*to)) == 401
    )
    assert home.refused == []
    assert home.desk.counters == {"challenged": 2}


def test_register_to_another_domain_is_refused() -> None:
    assert Home().code(request("REGISTER", "sip:elsewhere.example")) == 403


def test_in_a_call_nobody_is_asked() -> None:
    home = Home()
    home.register()
    home.register("alice", f"sip:alice@{ALICE}", ALICE)
    sent = home.put(request())
    invite = next(one.data for one in sent if one.data.startswith(b"INVITE"))
    head, _, _ = invite.partition(b"Max-Forwards")
    ok = b"SIP/2.0 200 OK\r\n" + head.partition(b"\r\n")[2]
    ok += b"From: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>;tag=b\r\nCall-ID: call\r\n"
    ok += b"CSeq: 1 INVITE\r\nContact: <%b>\r\nContent-Length: 0\r\n\r\n" % BOB_CONTACT.encode()
    home.put(ok, BOB)
    route = [("Max-Forwards", "70"), ("Route", "<sip:203.0.113.7:5060;lr>")]
    bye = request("BYE", BOB_CONTACT, to_tag="b", headers=route, cseq=2)
    detour = bye.replace(b"Route:", f"Route: <sip:{FAR};lr>\r\nRoute:".encode())
    assert home.code(bye.replace(BOB_CONTACT.encode(), f"sip:x@{FAR}".encode())) == 403
    assert home.code(detour.replace(b"z9hG4bKa", b"z9hG4bKd")) == 403  # not even for who is in it
    assert lines(home.put(bye.replace(b"z9hG4bKa", b"z9hG4bKe"))) == [f"BYE {BOB_CONTACT} -> {BOB}"]


@pytest.mark.parametrize(
    ("method", "source", "target", "sent"),
    [
        pytest.param("BYE", BOB, FAR, "BYE", id="from a registered phone"),
        pytest.param("BYE", FAR, BOB, "BYE", id="to a registered phone"),
        pytest.param("ACK", FAR, BOB, "ACK", id="an ACK to one"),
        pytest.param("BYE", FAR, ALICE, "481", id="of strangers to strangers"),
        pytest.param("INVITE", FAR, ALICE, "481", id="a call of strangers"),
    ],
)
def test_a_dialog_of_before_a_restart_goes_on_where_a_registered_phone_is_in_it(
    method: str, source: Endpoint, target: Endpoint, sent: str
) -> None:
    home = Home()
    home.register()
    via = [f"SIP/2.0/UDP {source};branch=z9hG4bKx"]
    said = lines(home.put(request(method, f"sip:x@{target}", to_tag="b", via=via), source))
    assert [line.split()[0] for line in said if not line.startswith("100")] == [sent]


def test_an_ack_of_strangers_is_dropped() -> None:
    home = Home()
    assert home.put(request("ACK", f"sip:x@{ALICE}", to_tag="b"), FAR) == []
    assert home.put(request("ACK", f"sip:x@{ALICE}"), FAR) == []


class _Broken:
    """Registrations that are not to be had."""

    async def bindings(self, address_of_record: str, *, now: float) -> Bindings:
        raise LocationError("the disk is gone")

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        raise LocationError("the disk is gone")

    async def registrations(self, *, now: float) -> Mapping[str, Bindings]:
        raise LocationError("the disk is gone")

    async def close(self) -> None:
        """Nothing is open."""


def test_without_its_registrations_it_says_so_and_lives_on() -> None:
    home = Home(strangers=True)
    home.gate.location = _Broken()
    invite = request().replace(b"alice@example.com", b"alice@elsewhere.example")
    assert home.code(invite) == 503
