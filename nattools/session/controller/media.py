"""The media of the calls that go through natgate: each stream that is described is relayed."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, RelayError
from nattools.session.dialogs import Call
from nattools.session.engines.kernel import KernelEngine, KernelStream
from nattools.session.engines.rtpengine import RtpengineEngine
from nattools.session.engines.sockets import SocketEngine
from nattools.session.events import CallEnded, CallFailed, CallStarted, ChangeFailed, Passage, Received
from nattools.session.flows import Flow
from nattools.session.media_session import MediaSession, News, Slot
from nattools.session.offers import is_relayed
from nattools.session.ports import PortPairs
from nattools.session.relay import MediaEngine, MediaStream, Side
from nattools.session.relayed import RelayedDescriptions
from nattools.session.settings import EngineName, GateSettings
from nattools.session.status import SideStatus, StreamStatus
from nattools.sip.body import sdp_parts
from nattools.sip.descriptions import signs_body
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription

_log = logging.getLogger(__name__)

_OFFERING = frozenset({"INVITE", "UPDATE", "PRACK"})
_DESCRIBING = _OFFERING | {"ACK"}
_BEGINNING = frozenset({"INVITE", "UPDATE"})
_AHEAD = 2
"""So many streams are open for an INVITE that leaves the offer to who is called: his response cannot wait."""
_LATE_S = 32.0
"""So long after a 2xx others may come, or the same again (64 * T1, RFC 3261 §13.3.1.4)."""
_FORGOTTEN_S = 600.0
"""After timer C (RFC 3261 §16.6) by far: nobody rings any longer."""


async def open_engine(settings: GateSettings, address: IPAddress) -> MediaEngine:
    """The engine that the settings name, which relays at `address` where no other is asked for.

    Raises `RelayError` where it cannot work here, and `DecodeError` for a range without a pair of ports.
    """
    if settings.engine is EngineName.RTPENGINE:
        return await RtpengineEngine.connect(settings.rtpengine)
    pairs = PortPairs(*settings.rtp_ports, entropy=secrets.token_bytes)
    if settings.engine is EngineName.KERNEL:
        return await KernelEngine.start(address, pairs)
    return SocketEngine(address, pairs)


def found_streams(engine: MediaEngine) -> tuple[MediaStream, ...]:
    """The streams that are still open from before a restart."""
    return engine.found if isinstance(engine, KernelEngine) else ()


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request that may carry an offer, on its way and until its responses are over.

    `waiting` are the sessions of branches that were not sent yet. `is_beginning` says that the sessions end
    when the request fails. `is_signed` says that descriptions stay as they are.
    """

    side: Side
    has_offer: bool
    is_beginning: bool
    touched_at: float
    waiting: list[tuple[Flow, MediaSession]] = field(default_factory=list)
    by_branch: dict[bytes, MediaSession] = field(default_factory=dict)
    begun: list[MediaSession] = field(default_factory=list)
    session: MediaSession | None = None
    is_signed: bool = False
    is_answered: bool = False
    is_over: bool = False

    def of_request(self, branch: bytes, leaves: Flow) -> MediaSession | None:
        """The session of a copy of the request, which leaves by that flow."""
        found = self.by_branch.get(branch) or self.session
        if found is None and self.waiting:
            place = next((at for at, (flow, _) in enumerate(self.waiting) if flow == leaves), 0)
            found = self.waiting.pop(place)[1]
        if found is None and self.begun:  # the copy before could not be sent, and this goes to a spare target
            found = self.begun[-1]
            found.remotes[Side.B] = leaves.remote
        if found is not None:
            self.by_branch[branch] = found
        return found


class CallMedia:
    """Puts a relay between the two sides of each call, by editing what they say of their media.

    `prepare` opens what a request needs before it is passed on, `edit` writes the relay's ports into what
    passes, and `take` and `silent` end what is no longer needed.

    `counters` has those of `RelayedDescriptions`, and `descriptions_signed`, which went on as they came since
    a digest covers them (auth-int).

    Streams of calls from before a restart, where the engine has `found` them, are to be given to `adopt`. A
    re-INVITE of such a call brings new streams, with the relay's ports in both descriptions.
    """

    def __init__(
        self,
        engine: MediaEngine,
        *,
        local_address: Callable[[Flow], IPAddress | None],
        advertised: Callable[[Endpoint], Endpoint],
        strip_ice: bool,
        timeout_s: float,
        hold_timeout_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`local_address` is that of this machine which faces a flow, None for the engine's own.

        `advertised` is what descriptions say for a port of the relay. The engine stays its owner's to close.
        """
        self.counters: Counter[str] = Counter()
        self._engine = engine
        self._local_address = local_address
        self._descriptions = RelayedDescriptions(advertised, strips_ice=strip_ice, counters=self.counters)
        self._timeout_s = timeout_s
        self._hold_timeout_s = hold_timeout_s
        self._now = now
        self._serial = 0
        self._exchanges: dict[int, _Exchange] = {}
        self._sessions: dict[bytes, list[MediaSession]] = {}
        self._calls: dict[tuple[bytes, bytes, bytes], Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._found: list[tuple[MediaStream, float]] = []

    def adopt(self, streams: Iterable[MediaStream]) -> None:
        """Let streams of calls that are not known (`found_streams`) go on till nobody is heard in them."""
        self._found += [(stream, self._now()) for stream in streams]

    # --- before a request goes on ---

    async def prepare(self, received: Received, leaves: Sequence[Flow]) -> None:
        """Open the streams that a request needs which is to leave by those flows (`Proxy.leaves_by`).

        Raises `LocalAddressError` and `RelayError` where there are none to be had; then nothing is left open.
        """
        request = received.request
        if request.method not in _OFFERING or not leaves:
            return
        description = _first_description(request)
        if description is None and request.method != "INVITE":
            return
        known = None if request.to_tag is None else self._find(request, received.flow.remote)
        if known is None and request.method not in _BEGINNING:
            return
        side = Side.A if known is None else known[1]
        exchange = _Exchange(side, description is not None, known is None, self._now())
        self._exchanges[received.number] = exchange
        if description is not None and signs_body(request):
            exchange.is_signed = True
            return
        wanted = [True] * _AHEAD if description is None else [is_relayed(it) for it in description.media]
        try:
            if known is not None:
                exchange.session = known[0]
                await self._open(known[0], known[0].lacks(wanted) - len(known[0].spare))
            elif (outer := self._outer(received, description, leaves)) is not None:
                exchange.session = outer
            else:
                for flow in leaves:
                    if exchange.is_over:
                        break
                    session = self._begin(request, received.flow, flow)
                    exchange.begun.append(session)
                    exchange.waiting.append((flow, session))
                    await self._open(session, session.lacks(wanted))
        except BaseException:
            self._drop(received.number)
            raise
        if exchange.is_over and exchange.session is not None:
            self._close_spare(exchange.session)

    def _outer(
        self, received: Received, description: SessionDescription | None, leaves: Sequence[Flow]
    ) -> MediaSession | None:
        """The session that an INVITE is in already, since it passed here before, on its way to a registrar.

        It goes on with the ports that were written into it then, where these face the next hop as well. One
        without an offer gets a session of its own: nothing shows yet that nobody in between relays, too.
        """
        places = [] if description is None else self._descriptions.places(description)
        sessions = [session for session, _, side in places if side is Side.B]
        if not sessions or len(leaves) != 1:
            return None
        session, request = sessions[0], received.request
        fits = (
            all(it is session for it in sessions)
            and session.call_id == request.call_id
            and session.caller_tag == request.from_tag
            and session.addresses[Side.B] == self._local_address(leaves[0])
        )
        return session if fits else None

    def _begin(self, request: SipMessage, arrived: Flow, leaves: Flow) -> MediaSession:
        self._serial += 1
        session = MediaSession(
            self._serial,
            request.call_id,
            request.from_tag or b"",
            {Side.A: self._local_address(arrived), Side.B: self._local_address(leaves)},
            {Side.A: arrived.remote, Side.B: leaves.remote},
            touched_at=self._now(),
        )
        if request.to_tag is not None:  # a call from before a restart
            session.learn_tag(request.to_tag)
        self._sessions.setdefault(session.call_id, []).append(session)
        return session

    async def _open(self, session: MediaSession, number: int) -> None:
        if number == 1:  # the usual call; with sockets nothing has to wait then
            await self._open_one(session)
        elif number > 1:
            opened = await asyncio.gather(
                *(self._open_one(session) for _ in range(number)), return_exceptions=True
            )
            for error in opened:
                if error is not None:
                    raise error

    async def _open_one(self, session: MediaSession) -> None:
        addresses = session.addresses
        stream = await self._engine.open_stream(a=addresses[Side.A], b=addresses[Side.B])
        if session.is_closed:
            self._close_streams([stream])
        else:
            session.spare.append(stream)

    # --- what passes ---

    def edit(self, passage: Passage) -> None:
        """Write the relay's ports into the descriptions of a message. Raises nothing."""
        message = passage.message
        if message.method not in _DESCRIBING:
            return
        try:
            self._edit(passage, message)
        except (DecodeError, ValueError):
            self.counters["descriptions_unreadable"] += 1
            _log.debug("a description of %s went on as it came", message.call_id, exc_info=True)

    def _edit(self, passage: Passage, message: SipMessage) -> None:
        exchange = self._exchanges.get(passage.number)
        session, side = self._session_of(passage, exchange)
        now = self._now()
        code = message.status_code or 0
        if exchange is not None:
            exchange.touched_at = now
        if session is not None:
            session.touched_at = now
            session.quiet_until = now
            if not message.is_request and message.to_tag is not None and exchange is not None:
                self._learn(session, exchange, message.to_tag, code)
        if not message.body:
            if session is not None and exchange is not None and exchange.is_beginning and code >= 200:
                self._recall(session)
        elif exchange is not None and exchange.is_signed:
            self.counters["descriptions_signed"] += 1
        else:
            news, closed = self._descriptions.edit(
                passage,
                session,
                side,
                is_answer=_is_answer(message, session, side, exchange),
                address=self._local_address(passage.leaves),
            )
            _tell(news)
            self._close_streams(closed)
        if exchange is not None and code >= 200:
            exchange.is_answered = True
            if session is not None:
                self._close_spare(session)

    def _session_of(self, passage: Passage, exchange: _Exchange | None) -> tuple[MediaSession | None, Side]:
        """The session that a message is in, and the side that sent it."""
        message = passage.message
        if exchange is None:
            found = self._find(message, passage.arrived.remote if message.is_request else None)
            if found is None:
                return None, Side.A
            return found if message.is_request else (found[0], found[1].other)
        if message.is_request:
            return exchange.of_request(passage.branch, passage.leaves), exchange.side
        return exchange.by_branch.get(passage.branch), exchange.side.other

    def _learn(self, session: MediaSession, exchange: _Exchange, tag: bytes, code: int) -> None:
        """Take note of the dialog that a response to what began the session belongs to."""
        if exchange.is_beginning:
            session.learn_tag(tag)
            if code >= 200:
                session.answered_by(tag)

    def _find(self, message: SipMessage, remote: Endpoint | None) -> tuple[MediaSession, Side] | None:
        """The session of a message in a dialog, and the side that sent the request.

        Of a call that comes by here twice there may be two: then it tells where the request came from.
        """
        from_tag, to_tag = message.from_tag, message.to_tag
        found = [
            (session, side)
            for session in self._sessions.get(message.call_id, ())
            for side, caller, callee in ((Side.A, from_tag, to_tag), (Side.B, to_tag, from_tag))
            if session.caller_tag == caller and callee in session.callee_tags
        ]
        if not found:
            return None
        for session, side in found:
            if session.remotes[side] == remote:
                return session, side
        return found[0 if found[0][1] is Side.A else -1]

    # --- what ends ---

    def take(self, event: CallStarted | CallFailed | CallEnded | ChangeFailed) -> None:
        """Close what is no longer needed, or go back to what was agreed before a change that was refused."""
        if isinstance(event, CallStarted):
            self._calls[_key(event.call)] = event.call
        elif isinstance(event, CallEnded):
            self._calls.pop(_key(event.call), None)
            self._call_ended(event.call)
        else:
            self._drop(event.number)

    def _call_ended(self, call: Call) -> None:
        tags = (call.caller.tag, call.callee.tag)
        for session in list(self._sessions.get(call.call_id, ())):
            for caller, callee in (tags, tags[::-1]):
                if session.caller_tag == caller and callee in session.answered_tags:
                    session.ended_with(callee)
                    if not session.answered_tags:
                        self._close_session(session)
                    else:
                        self._recall(session)

    def _recall(self, session: MediaSession) -> None:
        """Let what the chosen callee has said count again, where another one of the branch spoke later."""
        news, closed = session.recall()
        _tell(news)
        self._close_streams(closed)

    def _drop(self, number: int) -> None:
        """End what a request has begun which was refused."""
        exchange = self._exchanges.pop(number, None)
        if exchange is None:
            return
        exchange.is_over = True
        session = exchange.session
        if session is not None and not exchange.is_beginning:
            news, closed = session.refuse(number)
            _tell(news)
            self._close_streams(closed)
            self._close_spare(session)
        self._end_exchange(exchange)

    def _end_exchange(self, exchange: _Exchange) -> None:
        """Close the sessions of a request, except those that have become calls."""
        for session in exchange.begun:
            if not session.answered_tags:
                self._close_session(session)

    def silent(self, *, now: float) -> list[Call]:
        """The answered calls in whose streams nobody was heard for too long; and time passes for the rest.

        It wants to be called each second: what waits for its end is closed here.
        """
        for number, exchange in list(self._exchanges.items()):
            waits_s = _LATE_S if exchange.is_answered else _FORGOTTEN_S
            if now - exchange.touched_at >= waits_s:
                del self._exchanges[number]
                self._end_exchange(exchange)
        for found in list(self._found):
            if now - _heard_at([found[0]], found[1]) >= self._timeout_s:
                self._found.remove(found)
                self._close_streams([found[0]])
        silent: list[Call] = []
        for session in [it for those in self._sessions.values() for it in those]:
            if now < session.quiet_until or not session.answered_tags or not self._is_silent(session, now):
                continue
            calls = [call for call in self._calls_of(session) if not call.is_over]
            silent += [call for call in calls if call not in silent]
            if not calls:
                self._close_session(session)
        return silent

    def _is_silent(self, session: MediaSession, now: float) -> bool:
        slots = [slot for slot in session.slots if slot is not None]
        if not slots:
            return False
        wait_s = self._timeout_s if any(slot.is_active for slot in slots) else self._hold_timeout_s
        session.quiet_until = wait_s + _heard_at([slot.stream for slot in slots], session.touched_at)
        return now >= session.quiet_until

    def _calls_of(self, session: MediaSession) -> Iterable[Call]:
        for tag in session.answered_tags:
            for caller, callee in ((session.caller_tag, tag), (tag, session.caller_tag)):
                call = self._calls.get((session.call_id, caller, callee))
                if call is not None:
                    yield call

    def _close_session(self, session: MediaSession) -> None:
        if session.is_closed:
            return
        session.is_closed = True
        those = self._sessions[session.call_id]
        those.remove(session)
        if not those:
            del self._sessions[session.call_id]
        self._close_streams(session.streams)
        session.slots, session.spare = [], []

    def _close_spare(self, session: MediaSession) -> None:
        self._close_streams(session.spare)
        session.spare = []

    def _close_streams(self, streams: Iterable[MediaStream]) -> None:
        for stream in list(streams):
            self._descriptions.forget(stream)
            task = asyncio.get_running_loop().create_task(self._close_stream(stream))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _close_stream(self, stream: MediaStream) -> None:
        try:
            await stream.close()
        except RelayError as error:
            _log.warning("a stream was not closed: %s", error)

    # --- what is shown ---

    def status(self, call_id: bytes) -> tuple[StreamStatus, ...]:
        """The streams of the calls with that Call-ID."""
        return self.reading(call_id)()

    def reading(self, call_id: bytes) -> Callable[[], tuple[StreamStatus, ...]]:
        """What tells of the streams that those calls have now, whenever it is asked: after their end, too."""
        slots = [
            slot for session in self._sessions.get(call_id, ()) for slot in session.slots if slot is not None
        ]
        return lambda: tuple(_status_of(slot, now=self._now()) for slot in slots)

    async def settle(self) -> None:
        """Wait until the streams that are to close by now have closed, and count no more."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Close every stream."""
        for session in [it for those in self._sessions.values() for it in those]:
            self._close_session(session)
        self._close_streams(stream for stream, _ in self._found)
        self._found = []
        while self._tasks:
            await asyncio.wait(self._tasks)


def _status_of(slot: Slot, *, now: float) -> StreamStatus:
    stream = slot.stream
    a, b = (stream.statistics(side) for side in Side)
    speaking = [side for side, it in zip(Side, (a, b), strict=True) if it.latched is not None]
    is_in_kernel = (
        isinstance(stream, KernelStream) and bool(speaking) and all(map(stream.is_carried, speaking))
    )
    return StreamStatus(slot.kind, SideStatus.of(a, now=now), SideStatus.of(b, now=now), is_in_kernel)


def _first_description(message: SipMessage) -> SessionDescription | None:
    for part in sdp_parts(message):
        try:
            return SessionDescription.parse(message.data, part.span)
        except DecodeError:
            continue
    return None


def _is_answer(
    message: SipMessage, session: MediaSession | None, side: Side, exchange: _Exchange | None
) -> bool:
    """Whether a description answers one that came before it (RFC 3264, RFC 6337 §2.2)."""
    if not message.is_request:
        return exchange is None or exchange.has_offer
    if message.method in _BEGINNING:
        return False
    return session is not None and session.awaits_answer_of(side)


def _tell(news: Iterable[News]) -> None:
    for stream, side, expectation in news:
        stream.expect(side, expectation)


def _heard_at(streams: Iterable[MediaStream], since: float) -> float:
    """When anybody was heard last in any of them, or else `since`."""
    heard = [stream.statistics(side).last_heard for stream in streams for side in Side]
    return max([since, *(at for at in heard if at is not None)])


def _key(call: Call) -> tuple[bytes, bytes, bytes]:
    return call.call_id, call.caller.tag, call.callee.tag
