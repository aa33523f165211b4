"""The call flows of RFC 3665 by phones with private addresses: what others read, and nothing else is new.

Alice and Bob have host names in the RFC. Here they get private addresses, and the public ones that their
messages must have on the wire are told by sipmessage and sdp-transform, two readers that share no code
with this package.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import sdp_transform
import sipmessage

from nattools.sip.rewriter import Rewriter
from tests.unit.sip.bound import at, bound, events, wire
from tests.unit.sip.corpus import PATHS, needs_corpus

MESSAGES = {path.stem: path.read_bytes() for path in PATHS}
SERVER = at("203.0.113.7:5060")


class Client(NamedTuple):
    """A phone of the RFC: its host and address there, and its addresses here, inside and outside."""

    host: str
    address: str
    private: str
    public: str


CLIENTS = {
    "Alice": (Client("client.atlanta.example.com", "192.0.2.101", "192.168.1.10", "203.0.113.1"),),
    "Bob": (
        Client("client.biloxi.example.com", "192.0.2.201", "192.168.2.20", "203.0.113.2"),
        Client("client.chicago.example.com", "192.0.2.100", "192.168.2.20", "203.0.113.2"),
    ),
}
SERVERS = r"Proxy(?:-\d)?|SIP-Server|SIP-ALG|Redirect-Server|Alice|Bob"
SENT = {n: m[1] for n in MESSAGES if (m := re.search(rf"-(Alice|Bob)-(?:{SERVERS})$", n))}
RECEIVED = {n: m[1] for n in MESSAGES if (m := re.search(r"-(Alice|Bob)$", n))}


CONTACT = re.compile(rb"(?m)^Contact: .*$")


def with_length(message: bytes) -> bytes:
    head, gap, body = message.partition(b"\r\n\r\n")
    return re.sub(rb"(?m)^Content-Length: \d+", b"Content-Length: %d" % len(body), head) + gap + body


def inside(name: str, user: str) -> bytes:
    """The message as the phone of `user` knows it."""
    message = MESSAGES[name]
    for client in CLIENTS[user]:
        message = message.replace(client.host.encode(), client.private.encode())
        message = message.replace(client.address.encode(), client.private.encode())
    return with_length(message)


def outside(name: str, user: str, port: int) -> bytes:
    """The message as servers know it, of a phone whose socket is at `port` outside."""
    message = MESSAGES[name]
    for client in CLIENTS[user]:
        public = f"{client.public}:{port}".encode()
        message = re.sub(rf"{re.escape(client.host)}(:\d+)?".encode(), public, message)
        message = message.replace(client.address.encode(), client.public.encode())
    return with_length(message)


class Reading:
    """A message as the other two libraries read it."""

    def __init__(self, message: bytes) -> None:
        head, gap, body = message.partition(b"\r\n\r\n")
        unfolded = re.sub(rb"\r\n[ \t]+", b" ", head)  # sipmessage would take a fold for a header
        parsed = sipmessage.Message.parse(unfolded + gap + body)
        self.start_line = head.partition(b"\r\n")[0]
        self.vias = parsed.via
        self.contacts = parsed.contact if b"\r\nContact: <" in head else []  # it reads neither * nor mailto:
        self.names = parsed.headers.keys()
        self.rest = {
            name: parsed.headers.getlist(name)
            for name in self.names
            if name not in ("Via", "Content-Length") and (name != "Contact" or not self.contacts)
        }
        self.length = int(parsed.headers.get("Content-Length") or 0)
        self.size = len(body)
        self.description: dict[str, Any] = sdp_transform.parse(body.decode()) if body else {}


class Phone:
    """A phone of the RFC with its rewriter, whose socket outside is at 40000, and its media at 41000."""

    def __init__(self, user: str, message: bytes) -> None:
        self.client = CLIENTS[user][0]
        found = re.search(rb"Via: SIP/2.0/(\w+)", message)
        assert found
        self.transport = found[1].decode()
        port = 5061 if self.transport == "TLS" else 5060
        self.signalling = bound(f"{self.client.private}:{port}", f"{self.client.public}:40000")
        self.rewriter = Rewriter(self.signalling, transport=self.transport)

    def say_something(self) -> None:
        """Have the rewriter see how the phone writes: its Via with a port, its Contact without."""
        local = self.signalling.local
        scheme = "sips" if self.transport == "TLS" else "sip"
        via = f"Via: SIP/2.0/{self.transport} {local}"
        contact = f"Contact: <{scheme}:a@{local.ip}>"
        self.rewriter.outgoing(wire(f"OPTIONS sip:x.example.com SIP/2.0\n{via}\n{contact}"), SERVER)

    def bind_media(self, message: bytes) -> None:
        for needed in self.rewriter.media_needed(message):
            self.rewriter.add_media(bound(str(needed.local), f"{self.client.public}:41000"))


def moved_via(via: sipmessage.Via, phone: Phone) -> sipmessage.Via:
    assert via.host == phone.client.private
    parameters = sipmessage.Parameters(rport=None, **via.parameters)
    return replace(via, host=phone.client.public, port=40000, parameters=parameters)


def moved_contact(contact: sipmessage.Address, phone: Phone) -> sipmessage.Address:
    if contact.uri.host != phone.client.private:
        return contact
    return replace(contact, uri=replace(contact.uri, host=phone.client.public, port=40000))


def moved_description(description: dict[str, Any], phone: Phone) -> dict[str, Any]:
    if not description:
        return description
    public = phone.client.public
    return description | {
        "origin": description["origin"] | {"address": public},
        "connection": description["connection"] | {"ip": public},
        "media": [media | {"port": 41000} for media in description["media"]],
    }


@needs_corpus
class TestSent:
    @pytest.mark.parametrize("name", SENT)
    def test_others_read_public_addresses_and_everything_else_as_the_phone_wrote_it(self, name: str) -> None:
        message = inside(name, SENT[name])
        phone = Phone(SENT[name], message)
        phone.bind_media(message)
        written, read = Reading(message), Reading(phone.rewriter.outgoing(message, SERVER))
        is_request = not written.start_line.startswith(b"SIP/2.0")
        assert read.start_line == written.start_line
        assert read.names == written.names
        assert read.rest == written.rest
        assert read.vias[1:] == written.vias[1:]
        assert read.vias[0] == (moved_via(written.vias[0], phone) if is_request else written.vias[0])
        assert read.contacts == [moved_contact(contact, phone) for contact in written.contacts]
        assert read.description == moved_description(written.description, phone)
        assert read.length == read.size
        assert events(phone.rewriter) == []

    def test_these_are_all_that_alice_and_bob_send(self) -> None:
        assert len(SENT) == 64
        assert sum(bool(Reading(MESSAGES[name]).description) for name in SENT) == 22


@needs_corpus
class TestReceived:
    @pytest.mark.parametrize("name", RECEIVED)
    def test_the_phone_gets_its_own_address_back_and_everything_else_as_it_came(self, name: str) -> None:
        user = RECEIVED[name]
        expected = inside(name, user)
        phone = Phone(user, expected)
        phone.say_something()
        message = outside(name, user, 40000)
        if (contact := CONTACT.search(message)) and not message.startswith(b"SIP/2.0"):
            expected = CONTACT.sub(contact[0], expected)  # a request has the sender's
        assert phone.rewriter.incoming(message, SERVER) == expected

    def test_these_are_all_that_alice_and_bob_receive(self) -> None:
        assert len(RECEIVED) == 66


@needs_corpus
class TestForeign:
    def test_none_of_the_messages_is_touched_where_nothing_in_it_is_the_phones(self) -> None:
        rewriter = Rewriter(bound("192.168.0.111:5060", "203.0.113.1:40000"))
        rewriter.add_media(bound("192.168.0.111:49172", "203.0.113.1:41000"))
        for name, message in MESSAGES.items():
            assert rewriter.media_needed(message) == (), name
            assert rewriter.outgoing(message, SERVER) == message, name
            assert rewriter.incoming(message, SERVER) == message, name
        assert events(rewriter) == []

    def test_there_are_as_many_as_the_rfc_has(self) -> None:
        assert len(MESSAGES) == 141
