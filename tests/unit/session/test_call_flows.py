"""The call flows of RFC 3665 §3 through each of their proxies: what goes in, and what must come out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.session.events import Passage, Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.proxy import Proxy
from nattools.sip.headers import NameAddress, Via
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import counting
from tests.unit.sip.corpus import PATHS, needs_corpus

ADDRESSES = {
    "client.atlanta.example.com": "192.0.2.101",
    "client.biloxi.example.com": "192.0.2.201",
    "ss1.atlanta.example.com": "192.0.2.111",
    "ss2.biloxi.example.com": "192.0.2.222",
    "ss3.chicago.example.com": "192.0.2.233",
    "alg1.atlanta.example.com": "192.0.2.128",
}
HOSTS = {
    "Alice": "client.atlanta.example.com",
    "Bob": "client.biloxi.example.com",
    "Proxy-1": "ss1.atlanta.example.com",
    "Proxy-2": "ss2.biloxi.example.com",
    "Proxy-3": "ss3.chicago.example.com",
    "SIP-ALG": "alg1.atlanta.example.com",
}
DOMAINS = {"Proxy-2": b"biloxi.example.com", "Proxy-3": b"chicago.example.com"}
PARTY = r"(Alice|Bob|SIP-ALG|Redirect-Server|Redirect-Proxy|Proxy(?:-[123])?)"
WAY = re.compile(f"-{PARTY}-{PARTY}$")
REALMS = {"Proxy-1": "atlanta.example.com", "Proxy-2": "biloxi.example.com"}
MISPRINTS = {
    # An ACK of a refusal has the Via of the INVITE that its sender sent (RFC 3261 §17.1.1.3).
    "3.3-F08-ACK-Proxy-1-Proxy-2": (
        b"client.atlanta.example.com:5060;branch=z9hG4bK74b21",
        b"ss1.atlanta.example.com:5060;branch=z9hG4bK230f2.1",
    ),
    # The ACK of a 2xx that Alice sent had no Contact.
    "3.3-F20-ACK-Proxy-1-Proxy-2": (b"Contact: <sip:bob@client.biloxi.example.com>\r\n", b""),
    "3.3-F21-ACK-Proxy-2-Bob": (b"Contact: <sip:bob@client.biloxi.example.com>\r\n", b""),
    # A CANCEL has the Request-URI of the INVITE (RFC 3261 §9.1).
    "3.8-F11-CANCEL-Proxy-1-Proxy-2": (b"sip:alice@atlanta", b"sip:bob@biloxi"),
}
NOT_DRAWN_RIGHT = {
    # Proxy 2 keeps out of the dialog in these; the controller is there to stay in it.
    "3.5-F04-INVITE-Proxy-2-Bob": {"record-route"},
    "3.7-F02-INVITE-Proxy-2-Bob": {"record-route"},
    # Nor does Bob repeat one, which the controller then puts back.
    "3.7-F05-180-Ringing-Proxy-2-Alice": {"record-route"},
    "3.7-F07-200-OK-Proxy-2-Alice": {"record-route"},
    # Its own Via has the `received` that belongs to Bob's.
    "3.6-F14-BYE-Proxy-3-Alice": {"received"},
}


def endpoint(host: str) -> Endpoint:
    return Endpoint.of(ADDRESSES[host], 5060)


@dataclass
class Step:
    """One message of a flow, from whom and to whom."""

    name: str
    sender: str
    receiver: str
    message: SipMessage


def flow_of(section: str) -> list[Step]:
    """The messages of one section whose files are whole, in their order."""
    steps = []
    for path in PATHS:
        match = WAY.search(path.stem)
        if path.name.startswith(f"{section}-") and match is not None and is_whole(path):
            sender, receiver = (name if name != "Proxy" else "Proxy-3" for name in match.groups())
            data = path.read_bytes().replace(*MISPRINTS.get(path.stem, (b"", b"")), 1)
            if section == "3.3" and b"CSeq: 3 INVITE" in data:  # a third INVITE with the branch of the second
                data = data.replace(b"z9hG4bK230f2.1", b"z9hG4bK230f2.3")
            steps.append(Step(path.stem, sender, receiver, SipMessage.parse(data)))
    return steps


def is_whole(path: Path) -> bool:
    return b"\r\n\r\n" in path.read_bytes()


@dataclass
class Stage:
    """One proxy in a flow; branches are its own, and so are the responses that the others give to them."""

    name: str
    transport: str
    branches: dict[bytes, bytes] = field(default_factory=dict)
    tags: dict[bytes, bytes] = field(default_factory=dict)
    heard: set[bytes | None] = field(default_factory=set)  # tags that are not the proxy's own
    sent: list[Transmit] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        own = HOSTS[self.name]
        local = endpoint(own)
        domains = {own.encode(), DOMAINS.get(self.name, b"-")}
        self.flows = Flows([Listener("s", self.transport, local)], domains)
        edit = edit_media if self.name == "SIP-ALG" else None
        self.proxy = Proxy(self.flows, entropy=counting(), edit_media=edit)
        if self.transport == "TCP":
            for name, host in HOSTS.items():
                self.flows.connected(name, "s", endpoint(host))

    def take(self, step: Step, later: list[Step]) -> None:
        """Give the proxy a message, and decide about it as the flow does."""
        data = step.message.data
        for theirs, ours in self.branches.items():
            data = data.replace(b"branch=" + theirs + b";", b"branch=" + ours + b";")
            data = data.replace(b"branch=" + theirs + b"\r", b"branch=" + ours + b"\r")
        self.heard |= {step.message.from_tag, step.message.to_tag} - {None}
        for theirs, ours in self.tags.items():
            data = data.replace(b";tag=" + theirs + b"\r", b";tag=" + ours + b"\r")
        source = endpoint(HOSTS[step.sender])
        socket = step.sender if self.transport == "TCP" else "s"
        self.proxy.receive(data, source, now=self.now, socket=socket)
        self.sent += self.proxy.transmits()
        while (event := self.proxy.next_event()) is not None:
            if isinstance(event, Received):
                self.decide(event, next(it for it in later if self.is_said(it)))

    def is_said(self, step: Step) -> bool:
        """Whether it is what the proxy sends once the request before has been decided about."""
        return step.sender == self.name and step.message.status_code != 100

    def decide(self, event: Received, following: Step) -> None:
        message = following.message
        if not message.is_request:
            headers = [
                (name, message.value(header))
                for name in ("Proxy-Authenticate",)
                for header in message.headers_named(name.lower())
            ]
            code = message.status_code or 0
            self.proxy.answer(event.number, code, message.reason.decode(), headers, now=self.now)
        elif event.next_hop is None:
            assert message.request_uri is not None
            uri = message.data[slice(*message.request_uri)]
            self.proxy.forward(
                event.number,
                [Target(uri, self.flow_to(following))],
                now=self.now,
                realm=REALMS.get(self.name, ""),
            )
        else:
            flow = event.next_hop.flow or self.flow_to(following)
            self.proxy.forward(event.number, flows=[flow], now=self.now, realm=REALMS.get(self.name, ""))
        self.sent += self.proxy.transmits()

    def flow_to(self, step: Step) -> Flow:
        remote = endpoint(HOSTS[step.receiver])
        return Flow(step.receiver if self.transport == "TCP" else "s", remote)

    def give(self, step: Step) -> None:
        """Find among what the proxy has sent the message that the flow has here."""
        wrong = NOT_DRAWN_RIGHT.get(step.name, set())
        expected = described(step.message, self, wrong)
        for place, transmit in enumerate(self.sent):
            message = SipMessage.parse(transmit.data)
            if described(message, self, wrong) == expected:
                assert transmit.destination == endpoint(HOSTS[step.receiver]), step.name
                del self.sent[place]
                self.learn(step.message, message)
                return
        found = [described(SipMessage.parse(transmit.data), self, wrong) for transmit in self.sent]
        raise AssertionError(f"{step.name}: {expected} expected; {found} found")

    def learn(self, theirs: SipMessage, ours: SipMessage) -> None:
        """The flow has another branch for what the proxy sent, and another tag for what it answered."""
        if ours.is_request:
            assert theirs.branch
            assert ours.branch
            self.branches[theirs.branch] = ours.branch
        elif ours.to_tag not in self.heard and ours.to_tag is not None and theirs.to_tag is not None:
            self.tags[theirs.to_tag] = ours.to_tag


def edit_media(passage: Passage) -> None:
    """The ALG of §3.5 has its own address for the media of each side."""
    message = passage.message
    if message.body:
        to_alice = passage.leaves.remote == endpoint(HOSTS["Alice"])
        theirs, port, ours = (b"201", b"3456", b"1734") if to_alice else (b"101", b"49172", b"2000")
        body = message.body.replace(b"c=IN IP4 192.0.2." + theirs, b"c=IN IP4 192.0.2.128")
        message.replace_body(body.replace(b"m=audio " + port, b"m=audio " + ours))


def described(message: SipMessage, stage: Stage, wrong: set[str]) -> dict[str, object]:
    """What must be equal: hosts by their addresses, branches and tags where they are not the proxy's own."""
    vias = [Via.parse(message.data, span) for span in message.values("via")]
    own = ADDRESSES[HOSTS[stage.name]]
    request_uri = message.request_uri or (0, 0)
    found = {
        "start": message.status_code or (message.method, message.data[slice(*request_uri)]),
        "via": [(address(via.host), None if address(via.host) == own else via.branch) for via in vias],
        "received": [via.received for via in vias[:2]] if message.is_request else [],
        "record-route": [address(host) for host in hosts(message, "record-route")],
        "route": [address(host) for host in hosts(message, "route")],
        "to-tag": message.to_tag if message.to_tag in stage.heard else "own",
        "credentials": [message.value(it) for it in message.headers_named("proxy-authorization")],
        "challenges": len(message.headers_named("proxy-authenticate")),
        "cseq": message.cseq,
        "body": message.body,
    }
    for name in ("max-forwards", "from", "call-id", "contact"):
        found[name] = message.first_value(name)
    return {name: value for name, value in found.items() if name not in wrong}


def hosts(message: SipMessage, name: str) -> Iterator[bytes]:
    for span in message.values(name):
        uri = NameAddress.parse(message.data, span).uri
        assert uri is not None
        yield uri.host


def address(host: bytes) -> str:
    return ADDRESSES.get(host.decode(), host.decode())


CASES = [
    ("3.2", "Proxy-1", "TCP"),
    ("3.2", "Proxy-2", "TCP"),
    ("3.3", "Proxy-1", "UDP"),
    ("3.3", "Proxy-2", "UDP"),
    ("3.4", "Proxy-2", "UDP"),
    ("3.5", "SIP-ALG", "UDP"),
    ("3.5", "Proxy-2", "UDP"),
    ("3.6", "Proxy-3", "UDP"),
    ("3.7", "Proxy-2", "UDP"),
    ("3.8", "Proxy-1", "UDP"),
    ("3.8", "Proxy-2", "UDP"),
]


@needs_corpus
@pytest.mark.parametrize(("section", "name", "transport"), CASES)
def test_a_flow_passes_as_it_is_drawn(section: str, name: str, transport: str) -> None:
    stage = Stage(name, transport)
    steps = flow_of(section)
    seen = 0
    for place, step in enumerate(steps):
        if step.receiver == name:
            stage.take(step, steps[place + 1 :])
        elif step.sender == name:
            stage.give(step)
            seen += 1
    assert seen
    assert {SipMessage.parse(transmit.data).status_code for transmit in stage.sent} <= {100}
