"""A proxy on a desk with `CallMedia` beside it, and an engine that only notes what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError
from nattools.session.controller.media import CallMedia
from nattools.session.events import CallEnded, Event, Received
from nattools.session.flows import Flow
from nattools.session.forking import Target
from nattools.session.relay import Expectation, MediaEngine, PortPair, Side, SideStatistics
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.sdp import Media, SessionDescription
from tests.unit.session.proxy_desk import ALICE, BOB, BOB_TARGET, PROXY, Desk, request

NAT_HOST = Endpoint.of("203.0.113.1", 2753)
TIMEOUT_S = 60.0
HOLD_TIMEOUT_S = 1800.0


def sdp(
    *lines: str, ip: str = "192.168.0.108", version: int = 1, session: str = "", family: str = "IP4"
) -> bytes:
    """A description with those m= lines (and attributes); one audio stream at port 4000 without any."""
    head = ["v=0", f"o=- 7 {version} IN {family} {ip}", "s=-", f"c=IN {family} {ip}", "t=0 0"]
    head += [session] if session else []
    return "".join(f"{line}\r\n" for line in (*head, *(lines or ("m=audio 4000 RTP/AVP 0 101",)))).encode()


@dataclass(eq=False)
class NotedStream:
    """A stream that is told things."""

    engine: NotedEngine
    number: int
    at: dict[Side, IPAddress]
    told: dict[Side, list[Expectation]] = field(default_factory=lambda: {side: [] for side in Side})
    heard_at: float | None = None
    is_closed: bool = False

    def ports(self, side: Side) -> PortPair:
        even = 30000 + 4 * self.number + (2 if side is Side.B else 0)
        return PortPair(Endpoint(self.at[side], even), Endpoint(self.at[side], even + 1))

    def expect(self, side: Side, expectation: Expectation) -> None:
        assert not self.is_closed, "a closed stream is told something"
        self.told[side].append(expectation)

    def latest(self, side: Side) -> Expectation:
        """What it was told of that side last."""
        return self.told[side][-1]

    def statistics(self, side: Side) -> SideStatistics:
        at_the_end = int(self.is_closed)  # as the kernel counts once more when it gives a flow up
        return SideStatistics(packets=1 + at_the_end, last_heard=self.heard_at)

    async def close(self) -> None:
        self.is_closed = True


class NotedEngine:
    """Opens streams without sockets; `most` at once."""

    def __init__(self) -> None:
        self.streams: list[NotedStream] = []
        self.most = 1000
        self.gate: asyncio.Event | None = None

    @property
    def open(self) -> list[NotedStream]:
        return [stream for stream in self.streams if not stream.is_closed]

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> NotedStream:
        if self.gate is not None:
            await self.gate.wait()
        if len(self.open) >= self.most:
            raise LocalAddressError("all pairs are in use")
        at = {Side.A: a or PROXY.ip, Side.B: b or PROXY.ip}
        stream = NotedStream(self, len(self.streams), at)
        self.streams.append(stream)
        return stream

    async def close(self) -> None:
        for stream in self.streams:
            stream.is_closed = True


class MediaDesk(Desk):
    """The desk, whose events go to `CallMedia`; requests without a next hop go to `targets`.

    `carrier` is a real engine in place of the one that only notes.
    """

    def __init__(
        self,
        *targets: Target,
        carrier: MediaEngine | None = None,
        strip_ice: bool = True,
        advertised: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint,
    ) -> None:
        self.engine = NotedEngine()
        self.targets = list(targets or (BOB_TARGET,))
        self.events: list[Event] = []
        self.waiting: list[Received] = []
        self.holds = False
        self.now = 0.0
        self.facing: dict[Endpoint, IPAddress] = {}
        self.runner = asyncio.Runner()
        self.media = CallMedia(
            carrier or self.engine,
            local_address=self.address_of,
            advertised=advertised,
            strip_ice=strip_ice,
            timeout_s=TIMEOUT_S,
            hold_timeout_s=HOLD_TIMEOUT_S,
            now=lambda: self.now,
        )
        super().__init__(edit_media=self.media.edit)
        self.branches = count(1)

    def __enter__(self) -> MediaDesk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.runner.run(self.media.close())
        self.runner.close()
        assert error is not None or not self.engine.open

    def address_of(self, flow: Flow) -> IPAddress | None:
        listener = self.flows.listener(flow.socket)
        return self.facing.get(flow.remote, None if listener is None else listener.local.ip)

    def give(self, data: bytes, source: Endpoint = ALICE, socket: str = "u") -> list[SipMessage]:
        """Give it a message, and decide whatever it asks; what it sends."""
        return self.runner.run(self.take(data, source, socket))

    async def take(self, data: bytes, source: Endpoint = ALICE, socket: str = "u") -> list[SipMessage]:
        """What `give` does, inside of the loop."""
        self.proxy.receive(data, source, now=self.now, socket=socket)
        return await self.go_on()

    async def go_on(self) -> list[SipMessage]:
        """See to the events of the proxy."""
        while (event := self.proxy.next_event()) is not None:
            self.events.append(event)
            if not isinstance(event, Received):
                self.media.take(event)
            elif self.holds:
                self.waiting.append(event)
            else:
                await self.decide(event)
        await asyncio.sleep(0)  # for streams to be closed
        return [SipMessage.parse(it.data) for it in self.proxy.transmits()]

    async def decide(self, received: Received) -> None:
        """Send a request on."""
        number = received.number
        targets = None if received.next_hop is not None else self.targets
        try:
            await self.media.prepare(received, self.proxy.leaves_by(number, targets))
        except LocalAddressError:
            self.proxy.answer(number, 503, "No Ports", now=self.now)
            return
        if targets is None and received.request.to_tag is None and received.request.method == "INVITE":
            targets = self.targets
        self.proxy.forward(number, targets, now=self.now)

    async def race(self, received: Received, other: Callable[[], Awaitable[None]]) -> None:
        """Send a request on while something else happens, before there are ports for it."""
        self.engine.gate = asyncio.Event()
        deciding = asyncio.create_task(self.decide(received))
        await asyncio.sleep(0)
        await other()
        self.engine.gate.set()
        await deciding

    def pass_time(self, seconds: float, step_s: float = 1.0) -> list[SipMessage]:
        """Let time pass, a look each second."""
        end, sent = self.now + seconds, []
        while self.now < end:
            due = self.proxy.timeout_at()
            self.now = min(end, self.now + step_s) if due is None else min(end, self.now + step_s, due)
            sent += self.runner.run(self._look())
        return sent

    async def _look(self) -> list[SipMessage]:
        due = self.proxy.timeout_at()
        if due is not None and due <= self.now:
            self.proxy.handle_timeout(now=self.now)
        for call in self.media.silent(now=self.now):
            self.proxy.hang_up(call, now=self.now)
        return await self.go_on()

    # --- the usual call ---

    def invites(self, body: bytes = b"", *, source: Endpoint = ALICE, cseq: int = 1) -> list[SipMessage]:
        """An INVITE of Alice's outside a dialog; the copies that go on."""
        via = [f"SIP/2.0/UDP {source};branch=z9hG4bKa{next(self.branches)}"]
        sent = self.give(request(via=via, body=body, contact=f"<sip:alice@{source}>", cseq=cseq), source)
        return [it for it in sent if it.is_request]

    def says(
        self,
        to: SipMessage,
        code: int = 200,
        body: bytes = b"",
        *,
        source: Endpoint = BOB,
        tag: str = "b",
        headers: Iterable[tuple[str, str]] = (),
    ) -> list[SipMessage]:
        """A response to a request that went on; what the other side gets."""
        fields = [*headers, ("Contact", f"<sip:bob@{source}>")]
        if body:
            fields.append(("Content-Type", "application/sdp"))
        return self.give(compose_response(to, code, "Word", fields, body, to_tag=tag), source)

    def within(
        self,
        method: str,
        body: bytes = b"",
        *,
        cseq: int = 2,
        by_bob: bool = False,
        tags: tuple[str, str] = ("a", "b"),
        source: Endpoint | None = None,
    ) -> list[SipMessage]:
        """A request in the dialog, of Alice's or of Bob's."""
        own, other = tags[::-1] if by_bob else tags
        source = source or (BOB if by_bob else ALICE)
        via = [f"SIP/2.0/UDP {source};branch=z9hG4bKw{next(self.branches)}"]
        uri = f"sip:alice@{ALICE}" if by_bob else f"sip:bob@{BOB}"
        data = request(
            method,
            uri,
            via=via,
            from_tag=own,
            to_tag=other,
            cseq=cseq,
            contact=f"<sip:x@{source}>",
            body=body,
        )
        return self.give(data, source)

    def call(self, offer: bytes = b"", answer: bytes = b"") -> tuple[SipMessage, SipMessage]:
        """A call as it mostly is; the INVITE as Bob has it, and the 200 as Alice has it."""
        (invite,) = self.invites(offer or sdp())
        (ok,) = self.says(invite, 200, answer or sdp(ip="192.168.1.9"))
        self.within("ACK", cseq=1)
        return invite, ok

    def ended(self) -> int:
        """How many calls have ended."""
        return sum(isinstance(event, CallEnded) for event in self.events)


def medias(message: SipMessage) -> tuple[Media, ...]:
    """The m= lines of a message."""
    return SessionDescription.parse(message.body).media


def told(message: SipMessage) -> list[Endpoint | None]:
    """Where a message says that its streams are received; None for a refused one."""
    return [it.endpoint if it.port else None for it in medias(message)]


def line(message: SipMessage, start: str) -> list[str]:
    """The lines of a description that begin so."""
    return [it for it in message.body.decode().split("\r\n") if it.startswith(start)]


def reinvite(desk: MediaDesk, offer: bytes, answer: bytes, code: int = 200, cseq: int = 2) -> list[bytes]:
    """A re-INVITE of Alice's; its body as Bob has it, and that of the response as she has it."""
    (invite,) = [it for it in desk.within("INVITE", offer, cseq=cseq) if it.is_request]
    (response,) = [it for it in desk.says(invite, code, answer) if not it.is_request]
    return [invite.body, response.body]
