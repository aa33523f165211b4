"""A proxy on a desk: messages are put in by hand, and what it sends is looked at one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import TypeVar

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.events import Event, Passage, Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.nat_tests import USUAL_TESTS, ContactFix, NatTest
from nattools.session.proxy import Proxy
from nattools.sip.message import SipMessage, compose_request, compose_response

PROXY = Endpoint.of("203.0.113.7", 5060)
OUTSIDE = Endpoint.of("198.51.100.7", 5060)
ALICE = Endpoint.of("203.0.113.9", 5060)
BOB = Endpoint.of("203.0.113.11", 5062)
CAROL = Endpoint.of("203.0.113.12", 5060)
NAT = Endpoint.of("203.0.113.1", 2753)
PRIVATE = Endpoint.of("192.168.0.108", 5060)

BODY = (
    b"v=0\r\no=- 1 1 IN IP4 192.168.0.108\r\ns=-\r\n"
    b"c=IN IP4 192.168.0.108\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
)

EventT = TypeVar("EventT", bound=Event)


def counting() -> Callable[[int], bytes]:
    """Entropy that repeats itself in each test, and never in one."""
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def request(
    method: str = "INVITE",
    uri: str = "sip:bob@example.com",
    *,
    via: Iterable[str] = (f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa",),
    to_tag: str = "",
    from_tag: str = "a",
    cseq: int = 1,
    contact: str | None = f"<sip:alice@{ALICE}>",
    headers: Iterable[tuple[str, str]] = (("Max-Forwards", "70"),),
    body: bytes = b"",
    cseq_method: str = "",
    call_id: str = "call",
) -> bytes:
    """A request of Alice's, as far as nothing else is said."""
    fields = [("Via", value) for value in via]
    fields += headers
    fields += [
        ("From", f"<sip:alice@example.com>;tag={from_tag}"),
        ("To", "<sip:bob@example.com>" + (f";tag={to_tag}" if to_tag else "")),
        ("Call-ID", call_id),
        ("CSeq", f"{cseq} {cseq_method or method}"),
    ]
    if contact is not None:
        fields.append(("Contact", contact))
    if body:
        fields.append(("Content-Type", "application/sdp"))
    return compose_request(method, uri, fields, body)


class Desk:
    """A proxy with a UDP and a TCP listener, in the domain example.com, and what has come out of it."""

    def __init__(
        self,
        *,
        listeners: Iterable[Listener] = (Listener("u", "UDP", PROXY), Listener("t", "TCP", PROXY)),
        edit_media: Callable[[Passage], None] | None = None,
        contact_fix: ContactFix = ContactFix.ALIAS,
        tests: NatTest = USUAL_TESTS,
        most_requests: int = 50_000,
    ) -> None:
        self.flows = Flows(listeners, {b"example.com"})
        self.proxy = Proxy(
            self.flows,
            entropy=counting(),
            edit_media=edit_media,
            tests=tests,
            contact_fix=contact_fix,
            most_requests=most_requests,
        )
        self.now = 0.0

    def put(self, data: bytes, source: Endpoint = ALICE, socket: str = "u") -> list[Transmit]:
        """Give it a message; what it sends at once."""
        self.proxy.receive(data, source, now=self.now, socket=socket)
        return self.proxy.transmits()

    def received(self) -> Received:
        """The request that waits for a decision."""
        return self.event(Received)

    def event(self, kind: type[EventT]) -> EventT:
        """The next event, which must be of that kind."""
        event = self.proxy.next_event()
        assert isinstance(event, kind), event
        return event

    def has_no_event(self) -> bool:
        """Whether nothing more happened."""
        return self.proxy.next_event() is None

    def forward(self, *targets: Target, realm: str = "") -> list[Transmit]:
        """Send the next request on, to targets or by itself; what is sent."""
        self.proxy.forward(self.received().number, targets or None, now=self.now, realm=realm)
        return self.proxy.transmits()

    def invite(self, *targets: Target, data: bytes = b"", source: Endpoint = ALICE) -> list[SipMessage]:
        """Have an INVITE go to targets (Bob without any); the copies that were sent, without the 100."""
        self.put(data or request(body=BODY), source)
        sent = self.forward(*(targets or (BOB_TARGET,)))
        return [SipMessage.parse(one.data) for one in sent if one.data.startswith(b"INVITE")]

    def respond(
        self,
        to: SipMessage,
        code: int,
        source: Endpoint = BOB,
        *,
        tag: str = "b",
        contact: str = f"<sip:bob@{BOB}>",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        socket: str = "u",
    ) -> list[Transmit]:
        """Answer a request that the proxy has sent; what it sends then."""
        fields = [*headers, *([("Contact", contact)] if contact and code < 300 else [])]
        if body:
            fields.append(("Content-Type", "application/sdp"))
        return self.put(compose_response(to, code, "Word", fields, body, to_tag=tag), source, socket)

    def wait(self, seconds: float) -> list[tuple[float, Transmit]]:
        """Let time pass; what is sent, and when."""
        end = self.now + seconds
        sent = []
        while (due := self.proxy.timeout_at()) is not None and due <= end:
            self.now = max(due, self.now)
            self.proxy.handle_timeout(now=self.now)
            sent += [(self.now, transmit) for transmit in self.proxy.transmits()]
        self.now = end
        return sent


BOB_TARGET = Target(f"sip:bob@{BOB}".encode(), Flow("u", BOB))
CAROL_TARGET = Target(f"sip:carol@{CAROL}".encode(), Flow("u", CAROL))


def lines(transmits: Iterable[Transmit]) -> list[str]:
    """First lines, without the version, and where they go: `INVITE sip:... -> 192.0.2.1:5060`."""
    return [
        f"{one.data.splitlines()[0].decode().replace('SIP/2.0', '').strip()} -> {one.destination}"
        for one in transmits
    ]


def parsed(transmits: Iterable[Transmit]) -> list[SipMessage]:
    """The messages."""
    return [SipMessage.parse(one.data) for one in transmits]


def texts(message: SipMessage, name: str) -> list[str]:
    """The values of a header, one by one."""
    return [message.data[slice(*span)].decode() for span in message.values(name)]
