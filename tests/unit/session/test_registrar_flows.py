"""The registrations of RFC 3665 §2, with the messages that Bob sends there.

His credentials are computed anew, since the nonces are ours. Of the answers, what the RFC has is compared:
status, bindings, and what identifies the transaction.
"""

from __future__ import annotations

import asyncio

from nattools.endpoint import Endpoint
from nattools.session.domains import Domains
from nattools.session.location import targets
from nattools.session.registrar import Registrar
from nattools.session.users import Users
from nattools.sip.message import SipMessage
from tests.unit.session.registering import Phone, contacts, counting
from tests.unit.sip.corpus import PATHS, needs_corpus

MESSAGES = {path.stem[:7]: path.read_bytes() for path in PATHS}
SOURCE = Endpoint.parse("192.0.2.201:5061")
BOB = "sips:bob@client.biloxi.example.com"

pytestmark = needs_corpus


def bob(password: str = "zanzibar") -> Phone:
    server = Registrar(
        Domains(["biloxi.example.com", "ss2.biloxi.example.com"]),
        Users({"bob": "zanzibar"}),
        entropy=counting(),
        realm="atlanta.example.com",
    )
    return Phone(server, user="bob", password=password, source=SOURCE)


def message(name: str, *, call_id: str = "") -> bytes:
    data = MESSAGES[name]
    return data if not call_id else data.replace(b"1j9FpLxk3uxtm8tn", call_id.encode())


def bindings(phone: Phone) -> list[str]:
    kept = asyncio.run(phone.location.bindings("bob@biloxi.example.com", now=0.0))
    return [binding.contact.decode() for binding in kept]


def assert_answers(response: SipMessage, name: str) -> None:
    """Whether it is the response of the RFC, but for what each registrar chooses for itself."""
    expected = SipMessage.parse(MESSAGES[name])
    assert (response.status_code, response.reason) == (expected.status_code, expected.reason)
    assert response.call_id == expected.call_id
    assert response.cseq == expected.cseq
    assert (response.from_tag, response.branch) == (expected.from_tag, expected.branch)
    assert bool(response.to_tag) is bool(expected.to_tag)
    assert {each.name for each in expected.headers} <= {each.name for each in response.headers}
    written = (response.data[slice(*each.uri.span)] for each in response.contacts if each.uri)
    assert sorted(written) == sorted(
        expected.data[slice(*each.uri.span)] for each in expected.contacts if each.uri
    )


def registered() -> Phone:
    """Bob after 2.1, at another time: another Call-ID."""
    phone = bob()
    assert phone.run(message("2.1-F03", call_id="before")).status_code == 200
    return phone


def test_2_1_a_new_registration() -> None:
    phone = bob()
    challenge = asyncio.run(phone.ask(message("2.1-F01")))
    assert_answers(challenge, "2.1-F02")
    phone.digest.challenged(challenge)
    response = asyncio.run(phone.ask(phone.signed(message("2.1-F03"))))
    assert_answers(response, "2.1-F04")
    assert contacts(response) == {BOB: 3600}
    (binding,) = asyncio.run(phone.location.bindings("bob@biloxi.example.com", now=0.0))
    assert binding.received == SOURCE  # over TLS he is reached by his own connection


def test_2_2_an_update_of_the_contact_list() -> None:
    phone = registered()
    response = phone.run(message("2.2-F01"))
    assert_answers(response, "2.2-F02")
    assert list(contacts(response)) == [BOB, "mailto:bob@biloxi.example.com"]
    kept = asyncio.run(phone.location.bindings("bob@biloxi.example.com", now=0.0))
    assert [[binding.contact.decode() for binding in group] for group in targets(kept)] == [[BOB]]


def test_2_3_a_request_for_the_contact_list() -> None:
    phone = registered()
    phone.run(message("2.2-F01", call_id="update"))
    assert_answers(phone.run(message("2.3-F01")), "2.3-F02")
    assert bindings(phone) == [BOB, "mailto:bob@biloxi.example.com"]


def test_2_4_a_cancellation() -> None:
    phone = registered()
    assert_answers(phone.run(message("2.4-F01")), "2.4-F02")
    assert bindings(phone) == []


def test_2_5_an_unsuccessful_registration() -> None:
    phone = bob(password="wrong")
    challenge = asyncio.run(phone.ask(message("2.5-F01")))
    assert_answers(challenge, "2.5-F02")
    phone.digest.challenged(challenge)
    refused = asyncio.run(phone.ask(phone.signed(message("2.5-F03"))))
    assert_answers(refused, "2.5-F04")
    assert bindings(phone) == []


def test_the_nonces_of_the_rfc_are_not_ours() -> None:
    phone = bob()
    response = asyncio.run(phone.ask(message("2.1-F03")))
    assert response.status_code == 401
    assert b"stale=true" in response.data
    assert bindings(phone) == []
