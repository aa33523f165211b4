"""A phone behind a NAT, a registrar and another phone, on a clock that is turned by hand."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from nattools.endpoint import Endpoint
from nattools.sip.digest import DigestClient, DigestServer, Verdict
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.renewal import Renewal, RenewalEvent
from nattools.sip.rewriter import Rewriter
from nattools.sip.sdp import SessionDescription, compose_sdp

LOCAL = Endpoint.of("192.168.0.10", 5060)
LOCAL_RTP = Endpoint.of("192.168.0.10", 10002)
FIRST = Endpoint.of("198.51.100.1", 40000)
SECOND = Endpoint.of("198.51.100.2", 40001)
THIRD = Endpoint.of("198.51.100.3", 40002)
REGISTRAR = Endpoint.of("203.0.113.7", 5060)
PEER = Endpoint.of("203.0.113.9", 5060)
PEER_RTP = Endpoint.of("203.0.113.9", 20000)
LATENCY_S = 0.02
AOR = "sip:alice@203.0.113.7"
CALL = b"call"

Loss = Callable[[int], bool]
"""Whether the packet of that number is lost."""


def entropy() -> Callable[[int], bytes]:
    """Bytes that are others each time, and the same in each run."""
    calls = count(1)
    return lambda size: hashlib.shake_256(b"%d" % next(calls)).digest(size)


@dataclass
class Binding:
    """Where the phone's socket is, inside and outside."""

    local: Endpoint
    public: Endpoint


@dataclass
class Registrar:
    """Keeps Contacts by their URIs, wants rising CSeq numbers, and a password if it is given a realm."""

    digest: DigestServer | None = None
    contacts: dict[str, int] = field(default_factory=dict)
    numbers: dict[bytes, int] = field(default_factory=dict)
    requests: list[SipMessage] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    is_down: bool = False

    def answer(self, request: SipMessage, *, now: float) -> bytes | None:
        if self.is_down:
            return None
        self.requests.append(request)
        if self.refusals:
            return compose_response(request, self.refusals.pop(0), "No", [("Retry-After", "1")])
        if self.digest is not None:
            verdict = self.digest.verify(request, {"alice": "secret"}.get, now=now).verdict
            if verdict is not Verdict.ACCEPTED:
                challenges = self.digest.challenges(now=now, stale=verdict is Verdict.STALE)
                return compose_response(request, 401, "Unauthorized", challenges, to_tag="r")
        number = request.cseq
        assert number is not None
        if number[0] <= self.numbers.get(request.call_id, -1):
            return compose_response(request, 500, "CSeq out of order")
        self.numbers[request.call_id] = number[0]
        general = int(request.value(request.header("expires")) or b"3600")
        for contact in request.contacts:
            assert contact.uri is not None
            own = contact.param("expires")
            expires = general if own is None else int(own.value or b"0")
            uri = request.data[slice(*contact.uri.span)].decode()
            self.contacts.pop(uri, None)
            if expires:
                self.contacts[uri] = expires
        values = ", ".join(f"<{uri}>;expires={expires}" for uri, expires in self.contacts.items())
        return compose_response(request, 200, "OK", [("Contact", values)] if values else [], to_tag="r")


@dataclass
class Peer:
    """The other side of calls: as strict as an implementation can be about CSeq, ACK and o=."""

    send: Callable[[bytes, Endpoint], None]
    at: Callable[[float, Callable[[], None]], None]
    highest: dict[bytes, int] = field(default_factory=dict)
    version: int = -1
    sends_to: Endpoint | None = None
    target: str = ""
    complaints: list[str] = field(default_factory=list)
    requests: list[SipMessage] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    responses: dict[bytes, bytes] = field(default_factory=dict)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    answers_from: Endpoint = PEER_RTP
    is_over: bool = False
    is_down: bool = False

    def receive(self, message: SipMessage, source: Endpoint) -> None:
        if not message.is_request or self.is_down:
            return
        self.requests.append(message)
        branch, cseq = message.branch or b"", message.cseq
        assert cseq is not None
        if message.method == "ACK":
            self.acknowledged.add(cseq[0])
            return
        if branch in self.responses:
            self.send(self.responses[branch], source)
            return
        if cseq[0] <= self.highest.get(message.call_id, -1):
            self.complaints.append(f"{message.method} {cseq[0]} after {self.highest[message.call_id]}")
        self.highest[message.call_id] = cseq[0]
        self.responses[branch] = self._answer(message, cseq[0])
        self.send(self.responses[branch], source)
        if message.method == "INVITE" and self.responses[branch].startswith(b"SIP/2.0 200"):
            self._repeat(self.responses[branch], source, cseq[0], 0.5, 32.0)

    def _repeat(self, response: bytes, source: Endpoint, number: int, after_s: float, left_s: float) -> None:
        def again() -> None:
            if number in self.acknowledged or self.is_over:
                return
            if left_s <= 0:
                self.complaints.append(f"no ACK for INVITE {number}")
                self.is_over = True
                return
            self.send(response, source)
            self._repeat(response, source, number, min(2 * after_s, 4.0), left_s - after_s)

        self.at(after_s, again)

    def _answer(self, request: SipMessage, number: int) -> bytes:
        if request.method == "BYE":
            self.is_over = True
            return compose_response(request, 200, "OK")
        if self.refusals:
            code, header = self.refusals.pop(0)
            name, _, value = header.partition(": ")
            return compose_response(request, code, "No", [(name, value)] if name else [], to_tag="p")
        if request.body:
            self.take(request)
        contact = request.contacts[0].uri
        assert contact is not None
        self.target = request.data[slice(*contact.span)].decode()
        sdp = compose_sdp(self.answers_from, session_id=7, version=number)
        headers = [
            ("Contact", f"<sip:bob@{PEER}>"),
            ("Content-Type", "application/sdp"),
            ("Allow", "INVITE, UPDATE"),
        ]
        return compose_response(request, 200, "OK", headers, sdp, to_tag="p")

    def take(self, message: SipMessage) -> None:
        """Send media to where a description says, if its version is a new one (RFC 3264 §8)."""
        description = SessionDescription.parse(message.body)
        origin, endpoint = description.origin, description.media[0].endpoint
        assert origin is not None
        if origin.version <= self.version:
            if endpoint != self.sends_to:
                self.complaints.append(f"other addresses in version {origin.version}")
            return
        self.version, self.sends_to = origin.version, endpoint


class World:
    """Everything together. Messages of the phone are in its own words; what it gets lies in `inbox`."""

    def __init__(
        self,
        *,
        loss: Loss = lambda _: False,
        realm: str = "",
        password: str = "",
        qops: tuple[str, ...] = (),
    ) -> None:
        self.now = 1000.0
        chance = entropy()
        self.signalling = Binding(LOCAL, FIRST)
        self.rtp = Binding(LOCAL_RTP, FIRST.with_port(41000))
        client = DigestClient("alice", password, entropy=chance) if password else None
        self.renewal = Renewal(LOCAL, entropy=chance, digest=client)
        self.rewriter = Rewriter(self.signalling)
        self.rewriter.add_media(self.rtp)
        self.registrar = Registrar(DigestServer(realm, entropy=chance, qops=qops) if realm else None)
        self.peer = Peer(self._from(PEER), self._at)
        self.inbox: list[SipMessage] = []
        self.sent: list[SipMessage] = []
        self.events: list[RenewalEvent] = []
        self._loss = loss
        self._packets = count()
        self._order = count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []

    def _at(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + after_s, next(self._order), action))

    def _from(self, server: Endpoint) -> Callable[[bytes, Endpoint], None]:
        """How a server sends: to the phone's public endpoint only."""

        def send(data: bytes, destination: Endpoint) -> None:
            def arrive() -> None:
                if destination == self.signalling.public:
                    self._receive(data, server)

            if not self._loss(next(self._packets)):
                self._at(LATENCY_S, arrive)

        return send

    def _transmit(self, data: bytes, destination: Endpoint) -> None:
        """Let the phone's socket send, through the rewriter."""
        wire = self.rewriter.outgoing(data, destination)
        message = SipMessage.parse(wire)
        self.sent.append(message)
        source = self.signalling.public

        def arrive() -> None:
            if destination == REGISTRAR:
                answer = self.registrar.answer(message, now=self.now)
                if answer is not None:
                    self._from(REGISTRAR)(answer, source)
            elif destination == PEER:
                self.peer.receive(message, source)

        if not self._loss(next(self._packets)):
            self._at(LATENCY_S, arrive)

    def _receive(self, data: bytes, source: Endpoint) -> None:
        seen = self.renewal.incoming(self.rewriter.incoming(data, source), source, now=self.now)
        if seen is not None:
            self.inbox.append(SipMessage.parse(seen))
        self._drain()

    def _drain(self) -> None:
        for transmit in self.renewal.transmits():
            self._transmit(transmit.data, transmit.destination)
        while (event := self.renewal.next_event()) is not None:
            self.events.append(event)

    def run(self, for_s: float) -> None:
        """Let the time pass."""
        until = self.now + for_s
        while True:
            due = self.renewal.timeout_at()
            agenda = self._agenda[0][0] if self._agenda else float("inf")
            first = min(agenda, float("inf") if due is None else due)
            if first > until:
                break
            self.now = max(self.now, first)
            if agenda <= self.now:
                heapq.heappop(self._agenda)[2]()
            else:
                self.renewal.handle_timeout(now=self.now)
            self._drain()
        self.now = until

    # What the phone does

    def phone_sends(self, data: bytes, destination: Endpoint) -> None:
        """Send a message of the phone."""
        self._transmit(self.renewal.outgoing(data, destination, now=self.now), destination)
        self._drain()

    def peer_sends(self, data: bytes) -> None:
        """Send a request of the other phone to where it believes the phone is."""
        self._from(PEER)(data, self.signalling.public)

    def register(
        self, number: int = 1, *, call_id: str = "reg", headers: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        """Have the phone register, and answer a challenge by itself if it has no credentials here."""
        self.phone_sends(register(number, call_id=call_id, headers=headers), REGISTRAR)
        self.run(0.1)

    def call(self) -> None:
        """Have the phone call, and be answered."""
        self.phone_sends(invite(), PEER)
        self.run(0.1)
        assert self.inbox[-1].status_code == 200
        self.phone_sends(in_dialog("ACK", 1), PEER)
        self.run(0.1)

    def be_called(self) -> None:
        """Have the phone be called, and answer."""
        self.peer_sends(incoming_invite())
        self.run(0.1)
        request = self.inbox[-1]
        assert request.method == "INVITE"
        headers = [
            ("Contact", f"<sip:alice@{LOCAL}>"),
            ("Content-Type", "application/sdp"),
            ("User-Agent", "old phone"),
        ]
        self.phone_sends(compose_response(request, 200, "OK", headers, sdp(), to_tag="a"), PEER)
        self.run(0.1)
        self.peer_sends(incoming("ACK", 20))
        self.run(0.1)

    def move(self, to: Endpoint = SECOND) -> None:
        """Give the phone's sockets other public endpoints, as a WAN address that changes does."""
        old, self.signalling.public = self.signalling.public, to
        self.rtp.public = to.with_port(41000)
        self.renewal.binding_changed(old, to, now=self.now)
        self.renewal.media_changed(LOCAL_RTP, now=self.now)
        self._drain()


def register(
    number: int,
    *,
    call_id: str = "reg",
    expires: int = 3600,
    headers: tuple[tuple[str, str | bytes], ...] = (),
) -> bytes:
    fields: list[tuple[str, str | bytes]] = [
        ("Via", f"SIP/2.0/UDP {LOCAL};rport;branch=z9hG4bKphone{call_id}{number}"),
        ("From", '"Alice" <sip:alice@203.0.113.7>;tag=reg'),
        ("To", '"Alice" <sip:alice@203.0.113.7>'),
        ("Call-ID", call_id),
        ("CSeq", f"{number} REGISTER"),
        ("Contact", f'<sip:alice@{LOCAL};transport=UDP>;+sip.instance="<urn:uuid:1>"'),
        ("Expires", str(expires)),
        *headers,
    ]
    return compose_request("REGISTER", "sip:203.0.113.7", fields)


def sdp(version: int = 1) -> bytes:
    return compose_sdp(LOCAL_RTP, session_id=5, version=version)


def invite(number: int = 1) -> bytes:
    fields = [
        ("Via", f"SIP/2.0/UDP {LOCAL};branch=z9hG4bKinvite{number}"),
        ("From", "<sip:alice@192.168.0.10>;tag=a"),
        ("To", "<sip:bob@203.0.113.9>"),
        ("Call-ID", "call"),
        ("CSeq", f"{number} INVITE"),
        ("Contact", f"<sip:alice@{LOCAL}>"),
        ("User-Agent", "old phone"),
        ("Content-Type", "application/sdp"),
    ]
    return compose_request("INVITE", "sip:bob@203.0.113.9", fields, sdp())


def in_dialog(method: str, number: int, *, body: bytes = b"", local_tag: str = "a") -> bytes:
    """A request of the phone in its call."""
    fields = [
        ("Via", f"SIP/2.0/UDP {LOCAL};branch=z9hG4bK{method}{number}"),
        ("From", f"<sip:alice@192.168.0.10>;tag={local_tag}"),
        ("To", "<sip:bob@203.0.113.9>;tag=p"),
        ("Call-ID", "call"),
        ("CSeq", f"{number} {method}"),
        ("Contact", f"<sip:alice@{LOCAL}>"),
        *([("Content-Type", "application/sdp")] if body else []),
    ]
    return compose_request(method, f"sip:bob@{PEER}", fields, body)


def incoming_invite(number: int = 20) -> bytes:
    return incoming("INVITE", number, to_tag="", body=compose_sdp(PEER_RTP, session_id=7, version=1))


def incoming(method: str, number: int, *, to_tag: str = "a", body: bytes = b"", branch: str = "") -> bytes:
    """A request of the other phone in the call."""
    fields = [
        ("Via", f"SIP/2.0/UDP {PEER};branch={branch or f'z9hG4bKpeer{method}{number}'}"),
        ("From", "<sip:bob@203.0.113.9>;tag=p"),
        ("To", f"<sip:alice@203.0.113.7>{f';tag={to_tag}' if to_tag else ''}"),
        ("Call-ID", "call"),
        ("CSeq", f"{number} {method}"),
        ("Contact", f"<sip:bob@{PEER}>"),
        *([("Content-Type", "application/sdp")] if body else []),
    ]
    return compose_request(method, f"sip:alice@{FIRST}", fields, body)


def requests(world: World, method: str) -> list[SipMessage]:
    """What left the phone's socket, by method."""
    return [message for message in world.sent if message.is_request and message.method == method]


def numbers(messages: list[SipMessage]) -> list[int]:
    return [message.cseq[0] for message in messages if message.cseq is not None]


def established(*, is_caller: bool = True) -> World:
    """A call that the phone has made, or taken."""
    world = World()
    if is_caller:
        world.call()
    else:
        world.be_called()
    assert world.peer.sends_to == FIRST.with_port(41000) or not is_caller
    world.sent.clear()
    world.inbox.clear()
    return world
