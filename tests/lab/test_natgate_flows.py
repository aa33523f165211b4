"""The call flows of RFC 3665 through the real `natgate`, played by sipp: what the RFC draws must come.

Atlanta and Biloxi are natgates with users of their own, and Biloxi lets strangers call its user; Chicago asks
everybody. In flows that the RFC draws without a Record-Route of some proxy, natgate has one.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import PUBLIC_INTERFACE, SERVER, WAN_ADDRESS, Topology
from nattools.sip.dialog import Dialog
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request
from tests.lab.conftest import PATIENCE_SECONDS, next_datagram
from tests.lab.kamailio import lose_what_has_no_route
from tests.lab.natgate import natgate
from tests.lab.network_changes import configure, run
from tests.lab.sipp import why_no_sipp
from tests.lab.sipp_scripts import REPEATED, Playing, Script, finish, sdp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.lab.conftest import OpenSockets

ATLANTA = Endpoint.of("203.0.113.21", 5060)
BILOXI = Endpoint.of("203.0.113.22", 5060)
CHICAGO = Endpoint.of("203.0.113.23", 5060)
NOBODY = Endpoint.of("203.0.113.24", 5060)
REDIRECT = Endpoint.of("203.0.113.25", 5060)
ALICE = Endpoint.of("203.0.113.30", 5060)
BOB = Endpoint.of("203.0.113.31", 5060)
BOB_LATER = Endpoint.of("203.0.113.32", 5060)
SILENT = Endpoint.of("203.0.113.33", 5060)
GATEWAY = Endpoint.of("192.168.0.1", 5060)

PASSWORD = "sesame"
ALICE_URI = f"sip:alice@{ATLANTA.ip}"
BOB_URI = f"sip:bob@{BILOXI.ip}"
ALICE_CONTACT = "Contact: <sip:alice@[local_ip]:[local_port]>"
BOB_CONTACT = "Contact: <sip:bob@[local_ip]:[local_port]>"
TO_BOB = f"INVITE {BOB_URI}"
ALICE_TAG = ";tag=9fxced76sl"
CREDENTIALS = "[authentication]"
UNANSWERED_S = 32.0  # RFC 3261 §17.1.1.2, timer B


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three natgates on the public side, and a fourth one, the ALG, on the router."""
    if (reason := why_no_sipp()) is not None:
        pytest.skip(reason)
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab:
        addresses = (ATLANTA, BILOXI, CHICAGO, REDIRECT, ALICE, BOB, BOB_LATER, SILENT)
        configure(lab.public, *(f"addr add {at.ip}/24 dev {PUBLIC_INTERFACE}" for at in addresses))
        lose_what_has_no_route(lab)
        rule = "insert rule ip lab input udp dport 1024-65535 accept"
        run(lab.router, ["nft", *rule.split()])
        alg = f"[binding]\nstun_servers = ['{SERVER}']\n"
        with (
            natgate(lab, users={"alice": PASSWORD}, at=ATLANTA) as atlanta,
            natgate(lab, "--strangers", users={"bob": PASSWORD, "carol": PASSWORD}, at=BILOXI) as biloxi,
            natgate(lab, users={"alice": PASSWORD, "bob": PASSWORD}, at=CHICAGO) as chicago,
            natgate(lab, "--alg", settings=alg, at=GATEWAY, host=lab.router) as gateway,
        ):
            register(lab, BILOXI, BOB, "bob")
            register(lab, CHICAGO, BOB, "bob")
            yield lab
            for gate in (atlanta, biloxi, chicago, gateway):
                assert "Traceback" not in gate.log
                assert gate.status().counters.get("faults", 0) == 0


@pytest.fixture(scope="module", autouse=True)
def silent_call(lab: Lab) -> Iterator[Playing]:
    """A call to a phone that says nothing, which takes half a minute: it goes on beside all other tests."""
    register(lab, BILOXI, SILENT, "carol", f"Contact: <sip:carol@{SILENT}>")
    alice = Script(ALICE_URI, f"sip:carol@{BILOXI.ip}", "9fxced76sl")
    to_carol = f"INVITE sip:carol@{BILOXI.ip}"
    asked(alice, start=to_carol)
    alice.receive(100)
    alice.receive(
        408,
        ("CSeq", "2 INVITE"),
        ("To", "tag="),
        lacks=("Record-Route",),
        within_ms=round(UNANSWERED_S * 1500),
    )
    alice.request(f"ACK sip:carol@{BILOXI.ip}", 2, via=REPEATED)
    at = ALICE.with_port(5062)
    playing = Playing(
        lab.public, alice, at, ATLANTA, user="alice", password=PASSWORD, within_s=2 * UNANSWERED_S
    )
    yield playing
    playing.close()


def registering(registrar: Endpoint, user: str = "bob") -> Script:
    address = f"sip:{user}@{registrar.ip}"
    return Script(address, address, user)


def register(lab: Lab, registrar: Endpoint, at: Endpoint, user: str, contact: str = BOB_CONTACT) -> None:
    """Have a user's contact known at a registrar."""
    script = registering(registrar, user)
    script.request(f"REGISTER sip:{registrar.ip}", 1, contact, far_tag="")
    script.receive(401, asks=True)
    script.request(f"REGISTER sip:{registrar.ip}", 2, contact, CREDENTIALS, far_tag="")
    script.receive(200)
    play(lab, script, at, registrar, user=user)


def play(lab: Lab, script: Script, at: Endpoint, server: Endpoint, *, user: str = "bob") -> None:
    """Play one script alone."""
    finish(Playing(lab.public, script, at, server, user=user, password=PASSWORD))


def call(lab: Lab, alice: Script, bob: Script, server: Endpoint, *, call_id: str = "") -> None:
    """Play both sides of a call; Alice's first server is `server`."""
    with side(lab, bob, BOB, BILOXI, call_id=call_id) as answering:
        calling = Playing(lab.public, alice, ALICE, server, call_id=call_id, user="alice", password=PASSWORD)
        finish(calling, answering)


@contextmanager
def side(lab: Lab, script: Script, at: Endpoint, server: Endpoint, *, call_id: str = "") -> Iterator[Playing]:
    """A script that waits for what comes."""
    playing = Playing(lab.public, script, at, server, call_id=call_id)
    try:
        lab.wait_until_bound(playing.process, [at])
        yield playing
    finally:
        playing.close()


def alice_script() -> Script:
    return Script(ALICE_URI, BOB_URI, "9fxced76sl")


def bob_script() -> Script:
    return Script(BOB_URI, ALICE_URI, "314159")


def answered(bob: Script, *, hops: int, gate: Endpoint = BILOXI) -> None:
    """Bob's side up to the ACK, of an INVITE that so many proxies have passed on."""
    bob.receive(
        "INVITE",
        ("Via", f"SIP/2.0/UDP {gate};.*branch=z9hG4bK"),
        ("Record-Route", f"<sip:{gate};lr>"),
        ("Max-Forwards", f"^ *{70 - hops}$"),
        ("From", f"{ALICE_URI}>;tag=9fxced76sl"),
        ("To", f"<{BOB_URI}> *$"),
        ("Contact", "sip:alice@"),
        lacks=("Route", "Proxy-Authorization"),
        whole=["Via:.*" * (hops + 1), f"c=IN IP4 {gate.ip}"],
    )
    bob.response("180 Ringing", BOB_CONTACT)
    bob.response("200 OK", BOB_CONTACT, body=sdp(3456))
    acknowledged(bob, hops=hops)


def acknowledged(bob: Script, *, hops: int) -> None:
    bob.receive(
        "ACK",
        ("Max-Forwards", f"^ *{70 - hops}$"),
        ("To", "tag=314159"),
        lacks=("Route",),
        whole=["Via:.*" * (hops + 1)],
    )


def invited(
    alice: Script, *, start: str = TO_BOB, cseq: int = 1, headers: str = "", repeats: bool = True
) -> None:
    """Alice's INVITE with a description."""
    more = [headers] if headers else []
    alice.request(start, cseq, ALICE_CONTACT, *more, body=sdp(49172), far_tag="", repeats=repeats)


def established(alice: Script, gate: Endpoint, *, via: Endpoint | None = None, cseq: int = 1) -> None:
    """Alice's side from the 100 to the ACK; `via` is who speaks with her, `gate` who has the media last."""
    near = via or gate
    alice.receive(100, lacks=("Record-Route",))
    alice.receive(180, ("To", "tag=314159"), ("Record-Route", f"<sip:{gate}"), whole=["CSeq: .*INVITE"])
    alice.receive(
        200,
        ("To", "tag=314159"),
        ("Contact", f"sip:bob@{BOB}"),
        ("Via", "branch=z9hG4bK"),
        whole=[f"c=IN IP4 {near.ip}"],
    )
    alice.request("ACK [next_url]", cseq, "[routes]")


def hung_up_by_bob(alice: Script, bob: Script, *, hops: int) -> None:
    """BYE from Bob, by the route that the INVITE has recorded."""
    bob.pause(100)
    bob.request("BYE [next_url]", 1, "[routes]", far_tag=ALICE_TAG)
    bob.receive(200, ("CSeq", "1 BYE"), whole=["Via: "])
    alice.receive(
        "BYE", ("Max-Forwards", f"^ *{70 - hops}$"), whole=["Via:.*" * (hops + 1)], lacks=("Route",)
    )
    alice.response("200 OK")


def test_2_1_to_2_4_a_registration_is_made_added_to_listed_and_cancelled(lab: Lab) -> None:
    bob = registering(CHICAGO)
    to = f"REGISTER sip:{CHICAGO.ip}"
    other = f"Contact: <sip:bob@{BOB_LATER}>"
    bob.request(to, 1, "Contact: *", "Expires: 0", far_tag="")
    bob.receive(401, asks=True)
    bob.request(to, 2, "Contact: *", "Expires: 0", CREDENTIALS, far_tag="")
    bob.receive(200, lacks=("Contact",))
    bob.request(to, 3, BOB_CONTACT, far_tag="")  # 2.1
    bob.receive(
        401, ("WWW-Authenticate", 'Digest.*realm=".*nonce="'), ("To", "tag="), asks=True, lacks=("Contact",)
    )
    bob.request(to, 4, BOB_CONTACT, "Expires: 3600", CREDENTIALS, far_tag="")
    bob.receive(200, ("Contact", f"<sip:bob@{BOB}>;expires=3600"), ("To", "tag="), ("CSeq", "4 REGISTER"))
    bob.request(to, 5, other, CREDENTIALS, far_tag="")  # 2.2
    bob.receive(200, whole=[f"Contact:.*sip:bob@{BOB}>", f"Contact:.*sip:bob@{BOB_LATER}>"])
    bob.request(to, 6, CREDENTIALS, far_tag="")  # 2.3
    bob.receive(200, whole=[f"Contact:.*sip:bob@{BOB}>", f"Contact:.*sip:bob@{BOB_LATER}>"])
    bob.request(to, 7, "Contact: *", "Expires: 0", CREDENTIALS, far_tag="")  # 2.4
    bob.receive(200, lacks=("Contact",))
    play(lab, bob, BOB, CHICAGO)
    register(lab, CHICAGO, BOB, "bob")


def test_2_5_a_wrong_password_is_asked_for_again(lab: Lab) -> None:
    bob = registering(CHICAGO)
    to = f"REGISTER sip:{CHICAGO.ip}"
    bob.request(to, 1, BOB_CONTACT, far_tag="")
    bob.receive(401, ("WWW-Authenticate", "Digest"), asks=True)
    bob.request(to, 2, BOB_CONTACT, "[authentication password=wrong]", far_tag="")
    bob.receive(401, ("WWW-Authenticate", "Digest"), lacks=("Contact",))
    play(lab, bob, BOB, CHICAGO)


def test_3_1_one_calls_another(lab: Lab) -> None:
    alice, bob = alice_script(), bob_script()
    invited(alice)
    established(alice, BILOXI)
    answered(bob, hops=1)
    hung_up_by_bob(alice, bob, hops=1)
    call(lab, alice, bob, BILOXI)


def test_3_2_through_two_proxies_the_first_of_which_asks_for_a_password(lab: Lab) -> None:
    alice, bob = alice_script(), bob_script()
    asked(alice)
    established(alice, BILOXI, via=ATLANTA, cseq=2)
    answered(bob, hops=2)
    hung_up_by_bob(alice, bob, hops=2)
    call(lab, alice, bob, ATLANTA)


def asked(alice: Script, *, start: str = TO_BOB) -> None:
    """Alice's INVITE, the proxy's 407, her ACK and her INVITE with credentials."""
    invited(alice, start=start)
    alice.receive(
        407, ("Proxy-Authenticate", 'Digest.*realm=".*nonce="'), ("To", "tag="), asks=True, lacks=("Contact",)
    )
    alice.request(f"ACK {start.partition(' ')[2]}", 1, via=REPEATED)
    invited(alice, start=start, cseq=2, headers=CREDENTIALS)


def test_3_3_both_proxies_ask_for_a_password(lab: Lab, open_sockets: OpenSockets) -> None:
    """Not by sipp, which answers one challenge at a time."""
    (phone,) = open_sockets(lab.public, [ALICE])
    phone.connect((str(ATLANTA.ip), ATLANTA.port))
    digest = DigestClient("alice", PASSWORD, entropy=secrets.token_bytes)
    uri = f"sip:bob@{CHICAGO.ip}"
    bob = bob_script()
    bob.receive("INVITE", ("Max-Forwards", "^ *68$"), lacks=("Route", "Proxy-Authorization"))
    bob.response("200 OK", BOB_CONTACT, body=sdp(3456))
    acknowledged(bob, hops=2)
    bob.receive("BYE", lacks=("Route",))
    bob.response("200 OK")
    realms = []
    with side(lab, bob, BOB, CHICAGO) as answering:
        for cseq in (1, 2, 3):
            data = spoken("INVITE", uri, cseq, digest.headers("INVITE", uri))
            phone.send(data)
            invite, response = SipMessage.parse(data), final(phone)
            if response.status_code != 407:
                break
            phone.send(spoken("ACK", uri, cseq, [], to=response.value(response.header("to"))))
            realms.append(response.value(response.header("proxy-authenticate")).partition(b",")[0])
            digest.challenged(response, invite)
        assert response.status_code == 200
        assert len(response.values("via")) == 1
        assert realms == [b'Digest realm="%b"' % str(gate.ip).encode() for gate in (ATLANTA, CHICAGO)]
        dialog = Dialog.of_caller(invite, response)
        phone.send(dialog.compose("ACK", cseq=3, via=via("ack")))
        phone.send(dialog.compose("BYE", cseq=4, via=via("bye")))
        assert final(phone).status_code == 200
        finish(answering)


def via(branch: str) -> str:
    return f"SIP/2.0/UDP {ALICE};branch=z9hG4bK3.3{branch}"


def spoken(
    method: str, uri: str, cseq: int, credentials: list[tuple[str, bytes]], *, to: bytes = b""
) -> bytes:
    """A request of Alice's, without sipp."""
    fields: list[tuple[str, str | bytes]] = [
        ("Via", via(f"{cseq}")),
        ("Max-Forwards", "70"),
        ("From", f"<{ALICE_URI}>;tag=9fxced76sl"),
        ("To", to or f"<{uri}>"),
        ("Call-ID", "3.3"),
        ("CSeq", f"{cseq} {method}"),
        ("Contact", f"<sip:alice@{ALICE}>"),
        *credentials,
    ]
    return compose_request(method, uri, fields)


def final(phone: socket.socket) -> SipMessage:
    """The next final response."""
    while True:
        received = next_datagram(phone, PATIENCE_SECONDS)
        assert received is not None
        response = SipMessage.parse(received[0])
        if (response.status_code or 0) >= 200:
            return response


def test_3_4_a_proxy_does_not_answer_and_another_one_is_called(lab: Lab) -> None:
    alice, bob = alice_script(), bob_script()
    invited(alice, repeats=False)  # sipp would go on at the next one
    alice.pause(500)
    alice.towards(BILOXI)
    invited(alice, cseq=2)
    established(alice, BILOXI, cseq=2)
    answered(bob, hops=1)
    hung_up_by_bob(alice, bob, hops=1)
    call(lab, alice, bob, NOBODY)


def test_3_5_through_an_alg_that_brings_the_media_with_it(lab: Lab) -> None:
    alice, bob = alice_script(), bob_script()
    wan = WAN_ADDRESS
    route = f"Route: <sip:{GATEWAY};lr>"
    invited(alice, headers=route)
    alice.receive(100)
    alice.receive(180, ("To", "tag=314159"), whole=[f"Record-Route:.*<sip:{GATEWAY}"])
    alice.receive(200, ("Contact", "sip:bob@"), whole=[f"c=IN IP4 {GATEWAY.ip}", "m=audio [1-9]"])
    alice.request("ACK [next_url]", 1, "[routes]")
    alice.pause(100)
    alice.request("BYE [next_url]", 2, "[routes]")
    alice.receive(200, ("CSeq", "2 BYE"))
    bob.receive(
        "INVITE",
        ("Contact", f"sip:.*@{wan}"),
        ("Record-Route", f"<sip:{BILOXI};lr>"),
        ("Max-Forwards", "^ *68$"),
        lacks=("Route",),
        whole=[f"c=IN IP4 {BILOXI.ip}"],
    )
    bob.response("180 Ringing", BOB_CONTACT)
    bob.response("200 OK", BOB_CONTACT, body=sdp(3456))
    bob.receive("ACK", lacks=("Route",))
    bob.receive("BYE", lacks=("Route",))
    bob.response("200 OK")
    with side(lab, bob, BOB, BILOXI) as answering:
        at = Endpoint.of(lab.topology.client_address, 5060)
        finish(Playing(lab.client, alice, at, GATEWAY), answering)


def test_3_6_redirected_and_with_the_description_in_the_ack(lab: Lab) -> None:
    alice, bob, redirect = alice_script(), bob_script(), bob_script()
    redirect.receive("INVITE", ("To", f"<{BOB_URI}> *$"))
    redirect.response("302 Moved Temporarily", f"Contact: <{BOB_URI}>")
    redirect.receive("ACK")
    invited(alice)
    alice.receive(302, ("Contact", f"<{BOB_URI}>"))
    alice.request(f"ACK {BOB_URI}", 1, via=REPEATED)
    alice.towards(BILOXI)
    alice.request(TO_BOB, 2, ALICE_CONTACT, far_tag="")
    alice.receive(100)
    alice.receive(180, ("To", "tag=314159"))
    alice.receive(200, ("Contact", f"sip:bob@{BOB}"), whole=[f"c=IN IP4 {BILOXI.ip}", "m=audio [1-9]"])
    alice.request("ACK [next_url]", 2, "[routes]", body=sdp(49172))
    bob.receive(
        "INVITE", ("Contact", "sip:alice@"), ("Content-Length", "^ *0$"), lacks=("Content-Type", "Route")
    )
    bob.response("180 Ringing", BOB_CONTACT)
    bob.response("200 OK", BOB_CONTACT, body=sdp(3456))
    bob.receive("ACK", ("Content-Type", "application/sdp"), whole=[f"c=IN IP4 {BILOXI.ip}", "m=audio [1-9]"])
    hung_up_by_bob(alice, bob, hops=1)
    with side(lab, redirect, REDIRECT, BILOXI) as redirecting:
        call(lab, alice, bob, REDIRECT)
        finish(redirecting)


def test_3_7_bob_has_another_address_and_invites_again(lab: Lab) -> None:
    alice, bob, later = alice_script(), bob_script(), bob_script()
    invited(alice)
    established(alice, BILOXI)
    answered(bob, hops=1)
    later.request(
        f"INVITE sip:alice@{ALICE}",
        14,
        f"Route: <sip:{BILOXI};lr>",
        BOB_CONTACT,
        body=sdp(47172, version=2),
        far_tag=ALICE_TAG,
    )
    later.receive(100)
    later.receive(200, ("To", ALICE_TAG), ("Contact", "sip:alice@"), whole=[f"c=IN IP4 {BILOXI.ip}"])
    later.request("ACK [next_url]", 14, "[routes]", far_tag=ALICE_TAG)
    later.receive("BYE", ("CSeq", "2 BYE"), lacks=("Route",))
    later.response("200 OK")
    alice.receive(
        "INVITE",
        ("Contact", f"sip:bob@{BOB_LATER}"),
        ("CSeq", "14 INVITE"),
        ("From", "tag=314159"),
        whole=[f"c=IN IP4 {BILOXI.ip}", "o=- 1 2 "],
    )
    alice.response("200 OK", ALICE_CONTACT, body=sdp(49172, version=2))
    alice.receive("ACK", ("CSeq", "14 ACK"))
    alice.request(f"BYE sip:bob@{BOB_LATER}", 2, f"Route: <sip:{BILOXI};lr>")  # sipp keeps the first target
    alice.receive(200, ("CSeq", "2 BYE"))
    with side(lab, bob, BOB, BILOXI, call_id="3.7") as first, alice_calls(lab, alice, "3.7") as calling:
        finish(first)
        finish(Playing(lab.public, later, BOB_LATER, BILOXI, call_id="3.7"), calling)


@contextmanager
def alice_calls(lab: Lab, alice: Script, call_id: str) -> Iterator[Playing]:
    """Alice's side while Bob's goes on elsewhere."""
    playing = Playing(lab.public, alice, ALICE, BILOXI, call_id=call_id)
    try:
        yield playing
    finally:
        playing.close()


def test_3_8_nobody_answers_and_the_caller_gives_up(lab: Lab) -> None:
    alice, bob = alice_script(), bob_script()
    asked(alice)
    alice.receive(100)
    alice.receive(180, ("To", "tag=314159"))
    alice.request(f"CANCEL {BOB_URI}", 2, via=REPEATED, far_tag="")
    alice.receive(200, ("CSeq", "2 CANCEL"))
    alice.receive(487, ("CSeq", "2 INVITE"), ("To", "tag="), lacks=("Contact",))
    alice.request(f"ACK {BOB_URI}", 2, via=REPEATED)
    bob.receive("INVITE", ("Max-Forwards", "^ *68$"))
    vias = bob.keep_vias(3)
    bob.response("180 Ringing", BOB_CONTACT)
    bob.receive("CANCEL", ("CSeq", "2 CANCEL"), lacks=("Route",))
    bob.response("200 OK")
    bob.response("487 Request Terminated", via="\n".join(vias), cseq="2 INVITE")
    bob.receive("ACK", ("CSeq", "2 ACK"), ("To", "tag=314159"))
    call(lab, alice, bob, ATLANTA)


@pytest.mark.parametrize(
    ("status", "header"),
    [("486 Busy Here", ""), ("480 Temporarily Unavailable", "Retry-After: 180")],
    ids=["3.9 busy", "3.11 unavailable"],
)
def test_a_refusal_of_bob_comes_back_with_what_it_says(lab: Lab, status: str, header: str) -> None:
    alice, bob = alice_script(), bob_script()
    said = tuple(header.split(": "))
    asked(alice)
    alice.receive(100)
    has = [(said[0], f"^ *{said[1]}$")] if header else []
    alice.receive(int(status[:3]), ("To", "tag=314159"), *has, lacks=("Record-Route", "Contact"))
    alice.request(f"ACK {BOB_URI}", 2, via=REPEATED)
    bob.receive("INVITE", ("Max-Forwards", "^ *68$"), ("Record-Route", f"<sip:{BILOXI}"))
    bob.response(status, *([header] if header else []))
    bob.receive("ACK", ("CSeq", "2 ACK"), ("To", "tag=314159"), lacks=("Route",))
    call(lab, alice, bob, ATLANTA)


def test_3_10_a_phone_that_says_nothing_is_given_up(silent_call: Playing) -> None:
    """By 408, as RFC 3261 §16.7 has it; RFC 3665 draws a 480."""
    finish(silent_call)
