"""The phone of softphone.py: registered, called and calling, and wherever its NAT has it just now.

What it does about NATs is marked with NAT.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from softphone_line import RETRY_S, Account, Line, PhoneError, Registration, read_address, status_of, tell
from softphone_media import Audio
from softphone_sip import ALLOW, SDP, Headers, Request, Session, compose_cancel, credentials_of, value

from nattools import BindingError, DecodeError, Endpoint, NatToolsError
from nattools.binding.client import LiveBinding
from nattools.binding.keeper import Keeper
from nattools.sip import SessionDescription, SipMessage
from nattools.sip.body import sdp_parts
from nattools.sip.sdp import Direction, Media

GOODBYE_S = 2.0
"""So long a phone that ends waits for answers to BYE and to its last REGISTER."""
TOGETHER_S = 0.1
"""What changes within this time is told in one message."""
ANSWERED_BY = {  # what we do, by what the peer does (RFC 3264 §6.1)
    Direction.SENDRECV: Direction.SENDRECV,
    Direction.SENDONLY: Direction.RECVONLY,
    Direction.RECVONLY: Direction.SENDONLY,
    Direction.INACTIVE: Direction.INACTIVE,
}


@dataclass(slots=True, eq=False)
class Call:
    """A call from its first INVITE on."""

    session: Session
    invite: Request | None = None
    """Theirs, where they call us."""
    last_invite: SipMessage = field(init=False)
    """Ours, the last one of them."""
    audio: Audio = field(init=False)
    bindings: tuple[LiveBinding, ...] = ()
    over: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Why it ended."""
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    is_ringing: asyncio.Event = field(default_factory=asyncio.Event)
    inviting: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_established: bool = False
    is_hung_up: bool = False
    """One of the two has; no other BYE is needed."""
    session_id: int = field(default_factory=lambda: secrets.randbits(31))
    version: int = 0
    described: bytes = b""
    """Our SDP as the peer has it."""
    told: Sequence[Endpoint] = ()
    """Our public endpoints as the peer knows them."""
    direction: Direction = Direction.SENDRECV

    def end(self, reason: str) -> None:
        """Have it end, if it has not."""
        if not self.over.done():
            self.over.set_result(reason)


class Phone:
    """One account over one socket with a public endpoint, and a pair of sockets in each call."""

    def __init__(self, account: Account, keeper: Keeper, binding: LiveBinding) -> None:
        self._account = account
        self._keeper = keeper
        self._binding = binding
        self._line = Line(account, binding, self._take)
        self._registration = Registration(self._line)
        self._call: Call | None = None
        self._group: asyncio.TaskGroup | None = None
        self._moved = asyncio.Event()
        self._moved.set()
        self._news: set[LiveBinding] = set()

    @asynccontextmanager
    async def on_duty(self) -> AsyncIterator[None]:
        """Be registered and reachable. Raises `PhoneError` where the registrar does not want that."""
        receiving = asyncio.create_task(self._line.transactions.run())
        self._binding.keep_open(self._account.proxy)  # NAT: else no call comes in any more after some 30 s
        try:
            expires_s = await self._registration.renew()
            async with asyncio.TaskGroup() as group:
                stay = self._registration.stay(expires_s)
                duties = (stay, self._watch(self._binding), self._tell_others())
                tasks = [group.create_task(duty) for duty in duties]
                self._group = group
                yield
                for task in tasks:
                    task.cancel()
                if self._call is not None:
                    self._call.end("the phone ends")
        finally:
            with suppress(PhoneError, NatToolsError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._registration.renew(0)
            receiving.cancel()

    async def obey(self, commands: asyncio.StreamReader) -> None:
        """Do what lines say: `call URI`, `answer`, `hang up`, `quit`."""
        while line := await _next_line(commands):
            match line.split(), self._call, self._group:
                case ["call", uri], _, asyncio.TaskGroup() as group:
                    group.create_task(self.call(uri))
                case ["answer"], Call() as call, _:
                    call.accepted.set()
                case ["hang", "up"], Call() as call, _:
                    call.end("we hung up")
                case ["quit"], _, _:
                    return
                case _:
                    tell("cannot", line.strip())
        await asyncio.Event().wait()

    # NAT: what to do when a public endpoint becomes another

    async def _watch(self, binding: LiveBinding) -> None:
        async for change in binding.changes():
            tell(change.kind.value, binding.local, "->", change.binding and change.binding.public)
            # It is one NAT: the others will have moved too, and might know only at their next keepalives.
            self._news.add(binding)
            for other in {self._binding, *(self._call.bindings if self._call else ())} - self._news:
                other.check()
            self._moved.set()

    async def _tell_others(self) -> None:
        """Tell the registrar and the peer where we are (RFC 3665 §3.7); while something is lost, wait."""
        while True:
            await self._moved.wait()
            await asyncio.sleep(TOGETHER_S)
            self._moved.clear()
            self._news.clear()
            try:
                async with asyncio.TaskGroup() as group:
                    if self._registration.public != self._binding.public:
                        group.create_task(self._registration.renew())
                    if self._call is not None and self._call.is_established:
                        group.create_task(self._move(self._call))
            except* (PhoneError, NatToolsError) as errors:
                tell("not told:", *errors.exceptions)
                asyncio.get_running_loop().call_later(RETRY_S, self._moved.set)

    async def _move(self, call: Call) -> None:
        """Send a re-INVITE, unless the peer knows our endpoints (RFC 3261 §14.1)."""
        while call.told != self._endpoints(call) and not call.over.done():
            before = self._endpoints(call)
            status = await self._invite(call)
            if status == 408 and before != self._endpoints(call):  # the answer went to where we were
                continue
            if status == 491:  # it sends one as well
                await asyncio.sleep(secrets.randbelow(2000) / 1000 + (2.1 if call.invite is None else 0))
            elif status in (408, 481):
                call.end(f"the peer knows nothing of it ({status})")
            elif status >= 300:
                raise PhoneError(f"the peer does not take our new address: {status}", 4)

    # Calls from here

    async def call(self, uri: str) -> int:
        """Call somebody, until one of the two hangs up, and return the status of the answer."""
        try:
            read_address(uri)
        except DecodeError as error:
            tell("cannot call:", error)
            return 484
        if self._call is not None:
            tell("cannot call", uri)
            return 486
        call = self._call = Call(Session.begin(self._account.address, uri, uri))
        status = 480
        try:
            async with self._with_audio(call):
                tell("calling", uri)
                inviting = asyncio.create_task(self._invite(call))
                try:
                    await _first_of(inviting, call.over)
                finally:
                    if not inviting.done():
                        await self._cancel(call, inviting)
                status = 487 if inviting.cancelled() else inviting.result()
                if call.is_established and not call.is_hung_up:
                    await self._talk(call)
                call.end(f"not accepted ({status})")
        except (PhoneError, NatToolsError) as error:
            call.end(str(error))
        finally:
            self._call = None
        tell("ended", call.over.result())
        return status

    async def _invite(self, call: Call) -> int:
        """Send an INVITE, the first one or a further one, and return the status of the answer."""

        def compose() -> bytes:
            contact, body = self._line.contact(), self._describe(call)
            invite = self._line.compose(call.session, "INVITE", contact=contact, body=body)
            call.last_invite = SipMessage.parse(invite)
            return invite

        def ring(response: SipMessage) -> None:
            call.is_ringing.set()
            if not call.is_established and response.status_code != 100:
                tell("ringing", status_of(response))
                self._aim(call, response)  # some announce what goes wrong

        async with call.inviting:
            hop = call.session.next_hop(self._account.proxy)
            response = await self._line.ask(compose, hop, ring)
            status = response.status_code or 0
            if status >= 300:
                call.told = ()
                return status
            if call.is_established:
                call.session.take_target(response)
            else:
                call.session.confirm(call.last_invite, response)
            hop = call.session.next_hop(self._account.proxy)
            ack = self._line.compose(call.session, "ACK", headers=credentials_of(call.last_invite))
            self._line.transactions.acknowledge(response, ack, hop)
            if not self._aim(call, response) and not call.is_established:
                call.end("the peer has no audio in PCMU")
            call.is_established = True
            return status

    async def _cancel(self, call: Call, inviting: asyncio.Task[int]) -> None:
        """Take an INVITE back (RFC 3261 §9.1); if it was accepted all the same, hang up."""
        with suppress(PhoneError, NatToolsError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                ringing = asyncio.create_task(call.is_ringing.wait())
                await _first_of(inviting, ringing)
                ringing.cancel()
                if not inviting.done():
                    cancel = compose_cancel(call.last_invite)
                    await self._line.transactions.request(cancel, self._account.proxy)
                await asyncio.wait([inviting])
        if not inviting.done():
            inviting.cancel()
            await asyncio.wait([inviting])
        if call.is_established:
            await self._hang_up(call)

    # Calls to here

    def _take(self, request: Request) -> None:
        """Take a request of somebody else's."""
        try:
            self._handle(request)
        except DecodeError:
            request.respond(400, "Bad Request")
        except BindingError:  # there is no address that the answer could name
            request.respond(480, "Temporarily Unavailable")

    def _handle(self, request: Request) -> None:
        message, call = request.message, self._call
        if message.method == "CANCEL":
            if call is None or call.invite is None or call.invite.branch != request.branch:
                request.respond(481, "Call/Transaction Does Not Exist")
                return
            request.respond(200, "OK")
            if not call.is_established:
                call.end("the caller gave up")
        elif message.to_tag is not None:
            if call is None or not call.session.is_of(message):
                request.respond(481, "Call/Transaction Does Not Exist")
            elif message.cseq is None or message.cseq[0] <= call.session.remote_cseq:
                request.respond(500, "Server Internal Error")
            else:
                call.session.take(message)
                self._handle_in_call(request, call)
        elif message.method == "INVITE":
            if call is None and self._group is not None:
                ringing = request.compose(180, "Ringing", [("Contact", self._line.contact()), ALLOW])
                self._call = Call(Session.of_callee(request, ringing), request)
                self._line.transactions.answer(request, ringing)
                self._group.create_task(self._be_called(self._call, request))
            else:
                request.respond(486, "Busy Here")
        elif message.method == "OPTIONS":
            request.respond(200, "OK", [ALLOW, ("Accept", SDP[1])])
        else:
            request.respond(405, "Method Not Allowed", [ALLOW])

    def _handle_in_call(self, request: Request, call: Call) -> None:
        method = request.message.method
        if method == "BYE":
            request.respond(200, "OK")
            call.is_hung_up = True
            call.end("the peer hung up")
        elif method in ("INVITE", "UPDATE") and call.inviting.locked():
            request.respond(491, "Request Pending")
        elif method in ("INVITE", "UPDATE") and self._group is not None:
            self._group.create_task(self._be_reinvited(call, request))
        elif method == "OPTIONS":
            request.respond(200, "OK", [ALLOW])
        else:
            request.respond(405, "Method Not Allowed", [ALLOW])

    async def _be_called(self, call: Call, request: Request) -> None:
        """Ring, answer and talk."""
        try:
            tell("incoming", value(request.message, "from").decode(errors="replace"))
            async with self._with_audio(call):
                has_offer = bool(sdp_parts(request.message))
                if has_offer and not self._aim(call, request.message):
                    request.respond(488, "Not Acceptable Here")
                    call.end("the caller has no audio in PCMU")
                else:
                    await self._answered(call)
                    if call.over.done():
                        request.respond(487, "Request Terminated")
                    else:
                        call.is_established, call.session.dialog.is_early = True, False
                        async with call.inviting:
                            await self._accept(call, request)
                        await self._talk(call)
        except (PhoneError, NatToolsError) as error:
            call.end(str(error))
            if not call.is_established:
                request.respond(480, "Temporarily Unavailable")
        except asyncio.CancelledError:
            if not call.is_established:
                request.respond(480, "Temporarily Unavailable")
            raise
        finally:
            self._call = None
        tell("ended", call.over.result())

    async def _answered(self, call: Call) -> None:
        """Wait until the call is accepted, or over."""
        accepting = asyncio.create_task(call.accepted.wait())
        await _first_of(call.over, accepting, timeout_s=self._account.answers_after_s)
        accepting.cancel()

    async def _be_reinvited(self, call: Call, request: Request) -> None:
        """Take what the peer changes: where it is, or whether it wants to be heard."""
        async with call.inviting:
            try:
                if sdp_parts(request.message) and not self._aim(call, request.message):
                    request.respond(488, "Not Acceptable Here")
                elif request.message.method == "INVITE":
                    await self._accept(call, request)
                else:  # an UPDATE without an offer, which refreshes, gets none (RFC 3311 §5.2)
                    body = self._describe(call, request.message) if sdp_parts(request.message) else b""
                    request.respond(200, "OK", [("Contact", self._line.contact())], body)
            except BindingError:  # for now
                request.respond(480, "Temporarily Unavailable")

    async def _accept(self, call: Call, request: Request) -> None:
        """Answer an INVITE with 200, until its ACK comes, which has the answer where ours was the offer."""
        headers: Headers = [("Contact", self._line.contact()), ALLOW]
        accepting = asyncio.create_task(request.accept(headers, self._describe(call, request.message)))
        await _first_of(accepting, call.over)
        if not accepting.done():
            accepting.cancel()
        elif (ack := accepting.result()) is None:
            call.end("nobody acknowledged our answer")
        elif not sdp_parts(request.message):
            self._aim(call, ack)

    # In a call

    @asynccontextmanager
    async def _with_audio(self, call: Call) -> AsyncIterator[None]:
        async with self._keeper.open_pair(self._account.anywhere) as pair:
            call.audio = Audio(pair, tone=self._account.tone, recording=self._account.recording)
            call.bindings = (pair.rtp, pair.rtcp)
            works = (call.audio.run(), self._watch(pair.rtp), self._watch(pair.rtcp))
            tasks = [asyncio.create_task(work) for work in works]
            try:
                yield
            finally:
                call.bindings = ()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, call: Call) -> None:
        tell("established", call.session.dialog.remote.decode(errors="replace"))
        hop = call.session.next_hop(self._account.proxy)
        if hop != self._account.proxy:  # NAT: its BYE will come from there
            self._binding.keep_open(hop)
        self._moved.set()  # NAT: perhaps since they were told
        try:
            await _first_of(call.over, timeout_s=self._account.hangs_up_after_s)
            call.end("we hung up")
        finally:
            if hop != self._account.proxy:
                self._binding.let_go(hop)
            if not call.is_hung_up:
                await self._hang_up(call)

    async def _hang_up(self, call: Call) -> None:
        call.is_hung_up = True
        hop = call.session.next_hop(self._account.proxy)
        with suppress(PhoneError, NatToolsError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._line.ask(lambda: self._line.compose(call.session, "BYE"), hop)

    def _describe(self, call: Call, offer: SipMessage | None = None) -> bytes:
        """Our SDP, an answer where `offer` has an offer; its version rises with changes (RFC 3264 §8)."""
        if offer is not None and not sdp_parts(offer):  # it wants ours
            offer = None

        def written() -> bytes:
            pair, direction = call.audio.pair, call.direction if offer else Direction.SENDRECV
            sdp = pair.sdp(session_id=call.session_id, version=call.version, direction=direction)
            return _in_order_of(offer, sdp) if offer else sdp

        if written() != call.described:
            call.version += 1
        call.described, call.told = written(), self._endpoints(call)
        return call.described

    def _aim(self, call: Call, message: SipMessage) -> bool:
        """Send our audio to where the peer's SDP says; False where it says nothing that we can use."""
        try:
            media = _audio_of(message)
        except DecodeError:
            return False
        if media is None or media.endpoint is None:
            return False
        is_hold = media.connection is not None and media.connection.is_hold
        call.direction = ANSWERED_BY[media.direction]
        call.audio.is_on_hold = is_hold or call.direction in (Direction.RECVONLY, Direction.INACTIVE)
        if not is_hold:
            rtcp = media.endpoint if media.is_rtcp_mux else media.rtcp_endpoint
            call.audio.aim(media.endpoint, rtcp or media.endpoint)
        return True

    def _endpoints(self, call: Call) -> Sequence[Endpoint]:
        return tuple(binding.public for binding in (self._binding, *call.bindings))


async def _next_line(commands: asyncio.StreamReader) -> str:
    """The next line, empty at the end; for one that is longer than any command, what is left of it."""
    while True:
        with suppress(ValueError):
            return (await commands.readline()).decode(errors="replace")


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _streams(message: SipMessage) -> list[Media]:
    """What a message offers or accepts. Raises `DecodeError`."""
    parts = sdp_parts(message)[:1]
    return [media for part in parts for media in SessionDescription.parse(message.data, part.span).media]


def _audio_of(message: SipMessage) -> Media | None:
    """The stream that we can take part in."""
    for media in _streams(message):
        if media.kind == "audio" and media.port and b"0" in media.formats:
            return media
    return None


def _in_order_of(offer: SipMessage, sdp: bytes) -> bytes:
    """An answer has every stream of the offer; those that it does not take have port 0 (RFC 3264 §6)."""
    chosen = _audio_of(offer)
    if chosen is None:
        return sdp
    head, mark, own = sdp.partition(b"m=")
    for media in _streams(offer):
        before, after = (media.span.start, media.port_span.start), (media.port_span.end, media.line_end)
        refused = offer.data[slice(*before)] + b"0" + offer.data[slice(*after)] + b"\r\n"
        head += mark + own if media.span == chosen.span else refused
    return head
