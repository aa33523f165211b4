"""The session controller: sockets, proxy, desk and media joined to one server (`natgate`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    DecodeError,
    EncodeError,
    LocalAddressError,
    LocationError,
    RelayError,
    TransportError,
)
from nattools.machine import Transmit
from nattools.net.udp import local_address_towards
from nattools.session.controller.desk import Desk, Headers
from nattools.session.controller.eager import begin
from nattools.session.controller.home_desk import HomeDesk
from nattools.session.controller.journal import Journal
from nattools.session.controller.media import CallMedia, found_streams, open_engine
from nattools.session.controller.next_hops import NextHops
from nattools.session.controller.noted_location import NotedLocation
from nattools.session.controller.outside import Outside
from nattools.session.controller.pings import Pings
from nattools.session.controller.upstream_desk import UpstreamDesk
from nattools.session.controller.users_file import read_users
from nattools.session.controller.wires import Wires
from nattools.session.dialogs import Call
from nattools.session.events import CallEnded, CallFailed, CallStarted, ChangeFailed, Event, Passage, Received
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.guard import Guard
from nattools.session.homes import is_elsewhere
from nattools.session.location import Location, MemoryLocation
from nattools.session.proxy import Proxy
from nattools.session.settings import EngineName, GateMode, GateSettings, IceHandling
from nattools.session.status import GateStatus, ListenerStatus, RegistrationStatus
from nattools.session.stores.sqlite import SqliteLocation
from nattools.session.users import Users
from nattools.sip.message import SipMessage

_TICK_S = 1.0
_FAREWELL_S = 0.5  # for the answers to the last BYEs, and once for sending these again
_FACING_S = 30.0
_MOST_FACING = 4096
_SURE_BYTES = 1300  # by UDP; what is larger comes in fragments, or not at all (RFC 3261 §18.1.1)
_RESPONSE = b"SIP/2.0 "
_LATER = (("Retry-After", "5"),)
_DRAINING = (("Retry-After", "30"),)
_OFFERING = frozenset({"INVITE", "UPDATE", "PRACK", "ACK"})

_log = logging.getLogger(__name__)


class SessionServer:
    """A running natgate. Make it with `SessionServer.start`, end it with `close` or `async with`.

    It is the `Gate` of its desk, and the `Taker` of its wires.
    """

    def __init__(self, settings: GateSettings, now: Callable[[], float]) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self.location: Location
        self.flows: Flows
        self.proxy: Proxy
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._started_s = time.time()
        self._exits = AsyncExitStack()
        self._users: Users | None = None
        self._outside: Outside | None = None
        self._guard = Guard(settings)
        self._wires: Wires
        self._media: CallMedia
        self._journal: Journal
        self._next_hops: NextHops
        self._pings: Pings
        self._desk: Desk
        self._facing: dict[IPAddress, tuple[IPAddress | None, float]] = {}
        self._ringing: set[int] = set()
        self._calls: set[Call] = set()
        self._is_quiet = asyncio.Event()
        self._is_draining = False
        self._is_running = False
        self._is_flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # what may wait by `asyncio.timeout` needs a task from the start
        self._is_eager = (
            settings.store == "memory" and settings.engine is EngineName.SOCKETS and not settings.alg
        )

    @classmethod
    async def start(
        cls, settings: GateSettings, *, now: Callable[[], float] = time.monotonic
    ) -> SessionServer:
        """Listen and serve as the settings say. When it returns, everything listens.

        Raises `LocalAddressError` for a port that cannot be had, `RelayError` for an engine that cannot work
        here, `LocationError` for registrations that cannot be read, `BindingError` for an ALG that has no way
        to a public endpoint, and `DecodeError` for settings that do not go together, for a file of users or a
        certificate that is none; then nothing is left open.
        """
        server = cls(settings, now)
        try:
            await server._open()
        except BaseException:
            await server.close()
            raise
        return server

    async def _open(self) -> None:
        settings, mode, exits = self.settings, self.settings.mode, self._exits
        if mode is GateMode.REGISTRAR or settings.users is not None:
            self._users = read_users(settings.users or Path())
        self._wires = await Wires.open(settings, self)
        exits.push_async_callback(self._wires.close)
        listeners = list(self._wires.listeners)
        if mode is GateMode.ALG:
            self._outside = await Outside.open(settings, self, self._users)
            exits.push_async_callback(self._outside.close)
            listeners.append(self._outside.listener)
        domains = frozenset(name.lower().encode() for name in settings.domains)
        self.flows = Flows(listeners, domains, facing=self._address_facing)
        if self._outside is not None:
            self._outside.join(self.flows)
        self._next_hops = NextHops(self.flows, now=self._now, on_found=self._wires.remember)
        exits.callback(self._next_hops.close)
        await self._open_media(listeners[-1 if self._outside else 0].local.ip)
        store = await _open_location(settings.store)
        exits.push_async_callback(store.close)
        for address_of_record, bindings in (await store.registrations(now=self._now())).items():
            here = tuple(binding for binding in bindings if not is_elsewhere(binding, self.flows))
            self._journal.know(address_of_record, here)
            if self._outside is not None:
                self._outside.keep_servers(here)
        self.proxy = Proxy(
            self.flows,
            entropy=secrets.token_bytes,
            edit_media=self._edit,
            tests=settings.nat_tests,
            contact_fix=settings.contact_fix,
        )
        self._pings = Pings(self, self._guard)
        exits.push_async_callback(self._pings.close)
        self.location = self._pings.watched(NotedLocation(store, self._journal.changed))
        if mode is GateMode.REGISTRAR and self._users is not None:
            self._desk = HomeDesk(
                self,
                self._users,
                has_phone_at=self._pings.has_phone_at,
                on_refused=self._journal.refused,
                on_guess=lambda source: self._guard.charge(source, now=self._now()),
                on_neighbour=self._guard.trust,
                entropy=secrets.token_bytes,
            )
        else:
            self._desk = await UpstreamDesk.open(self, self._guard, entropy=secrets.token_bytes)
        exits.push_async_callback(self._desk.close)
        self._is_running = True
        self._wires.start()
        await self._pings.start()
        self._run(self._tick())

    async def _open_media(self, address: IPAddress) -> None:
        settings = self.settings
        engine = await open_engine(settings, address)
        self._exits.push_async_callback(engine.close)
        self._media = CallMedia(
            engine if self._outside is None else self._outside.engine(engine),
            local_address=self._media_address,
            advertised=self._advertised,
            strip_ice=settings.ice is IceHandling.STRIP,
            timeout_s=settings.media_timeout_s,
            hold_timeout_s=settings.hold_timeout_s,
            now=self._now,
        )
        self._media.adopt(found_streams(engine))
        self._journal = Journal(streams_of=self._media.status, now=self._now)
        self._exits.callback(self._journal.close)
        self._exits.push_async_callback(self._media.close)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Where it listens, with the ports that it really has."""
        return tuple(self.flows.listeners)

    @property
    def is_idle(self) -> bool:
        """Whether no call rings, and none is answered."""
        return not self._calls and not self._ringing

    def reload(self) -> None:
        """Read the users and the certificate again. Raises `DecodeError`; then those of before stay."""
        users = None if self.settings.users is None else read_users(self.settings.users)
        self._wires.reload_certificate()
        if users is not None and self._users is not None:
            self._users.become(users)

    async def status(self) -> GateStatus:
        """What is known of it now: calls, registrations, counters. Raises `LocationError`."""
        now = self._now()
        registrations = await self.location.registrations(now=now)
        calls = self._journal.calls()
        counters = Counter(connections=self._wires.connections)
        counters.update(self._journal.counters(calls))
        for part in (self, self.proxy, self._guard, self._media, self._wires, self._pings, self._desk):
            counters.update(part.counters)
        return GateStatus(
            version="",  # which only the command knows
            started_s=self._started_s,
            mode=self.settings.mode,
            engine=self.settings.engine,
            listeners=tuple(
                ListenerStatus(listener.transport, listener.local, listener.advertised)
                for listener in self.flows.listeners
            ),
            draining=self._is_draining,
            counters=counters,
            calls=calls,
            registrations=tuple(
                RegistrationStatus(
                    address_of_record,
                    binding.contact.decode("utf-8", "replace"),
                    binding.received,
                    binding.flow,
                    binding.expires_at - now,
                )
                for address_of_record, bindings in registrations.items()
                for binding in bindings
            ),
        )

    async def drain(self, within_s: float) -> None:
        """Take no new calls (503, Retry-After), and return when all have ended, or hang them up then.

        What rings may still be answered until then.
        """
        self._is_draining = True
        self._is_quiet.clear()
        if self.is_idle:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._is_quiet.wait()
        except TimeoutError:
            for call in list(self._calls):
                self._hang_up(call, "natgate ends")
            self._flush()
            await asyncio.sleep(_FAREWELL_S)

    async def close(self) -> None:
        """Close everything; calls that are left lose their media."""
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._exits.aclose()

    async def __aenter__(self) -> SessionServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- the gate ---

    def now(self) -> float:
        """The time in monotonic seconds."""
        return self._now()

    async def forward(
        self,
        received: Received,
        targets: Sequence[Target] | None = None,
        *,
        flows: Sequence[Flow] = (),
        realm: str = "",
        headers: Headers = (),
        user: str = "",
    ) -> None:
        """Send a request on, once there are ports for its media."""
        number, method = received.number, received.request.method
        leaves = self.proxy.leaves_by(number, targets, flows=flows)
        if leaves and method == "INVITE" and received.call is None and received.earlier is None:
            refusal = self._guard.may_call(user, received.flow.remote)
            if refusal is not None:
                self.answer(received, refusal.status_code, refusal.reason, refusal.headers)
                return
            self._guard.call_began(number, user, received.flow.remote)
            self._ringing.add(number)
        if leaves and method in _OFFERING:
            try:
                await self._media.prepare(received, leaves)
            except (LocalAddressError, RelayError) as error:
                self.counters["calls_without_media"] += 1
                _log.warning("a call of %s has no media: %s", received.flow.remote, error)
                if method != "ACK":
                    self.answer(received, 503, "No Media Ports", _LATER)
                    return
            if method == "INVITE" and not self.proxy.leaves_by(number, targets, flows=flows):
                # it was cancelled while ports were looked for
                self._media.take(CallFailed(number, received.request.call_id, 487))
                return
        self.proxy.forward(
            number,
            targets,
            now=self._now(),
            flows=flows,
            realm=realm,
            headers=headers,
            is_challenged=self._users is None and not _has_credentials(received.request),
        )
        self._flush()

    def answer(
        self, received: Received, status_code: int, reason: str, headers: Headers = (), body: bytes = b""
    ) -> None:
        """Answer a request."""
        self.proxy.answer(received.number, status_code, reason, headers, body, now=self._now())
        self._flush()

    def respond(self, received: Received, data: bytes) -> None:
        """Answer a request by a whole response."""
        self.proxy.respond(received.number, data, now=self._now())
        self._flush()

    def ignore(self, received: Received) -> None:
        """Let a request go unanswered."""
        self.proxy.ignore(received.number, now=self._now())
        self._flush()

    async def flow_to(self, host: bytes, port: int | None, transport: str) -> Flow | None:
        """How to reach a host by its name or address (RFC 3263)."""
        flow = await self._next_hops.flow_to(host, port, transport)
        if flow is not None and self._outside is not None and transport == "UDP":
            return Flow(self._outside.listener.name, flow.remote)
        return flow

    def flow_at(self, endpoint: Endpoint, transport: str, *, name: str = "") -> Flow | None:
        """How to reach an address, which was found by a name."""
        if name and self._wires is not None:
            self._wires.remember(endpoint, name)
        return self.flows.towards(endpoint, transport)

    def send(self, data: bytes, flow: Flow) -> None:
        """Send a message that is of no transaction."""
        self._transmit(Transmit(data, flow.remote, flow.socket))

    # --- what arrives ---

    def admits(self, data: bytes, source: Endpoint) -> bool:
        """Whether a message is looked at at all."""
        return self._guard.refuses(data, source, now=self._now()) is None

    def take(self, data: bytes, flow: Flow) -> None:
        """Take one message."""
        if not self._is_running:
            return
        try:
            if not (data.startswith(_RESPONSE) and self._pings.receive(data, flow)):
                self.proxy.receive(data, flow.remote, now=self._now(), socket=flow.socket)
        except Exception as error:  # noqa: BLE001 - whatever arrives costs a counter, never a call
            self._note_fault(f"a message from {flow.remote}", error)
        self._flush()

    def heard(self, flow: Flow) -> None:
        """Line ends have come: who sends them is there, and nothing more is known of it."""

    def connected(self, name: str, listener: str, remote: Endpoint) -> None:
        """A connection of that name is open."""
        self.flows.connected(name, listener, remote)

    def disconnected(self, name: str) -> None:
        """It has ended."""
        lost = self.flows.disconnected(name)
        if self._is_running:
            self._pings.disconnected(name)
            self.proxy.disconnected(lost, now=self._now())
            self._loop.call_soon(self._flush)

    def failed(self, transmit: Transmit) -> None:
        """A message could not be sent."""
        if self._is_running:
            self.proxy.send_failed(transmit, now=self._now())
            self._loop.call_soon(self._flush)  # not at once: it is in the middle of sending

    # --- what comes of it ---

    def _flush(self) -> None:
        """Do what the proxy has events for, send what it has to send, and be there when it wants the time."""
        if self._is_flushing or not self._is_running:
            return
        self._is_flushing = True
        try:
            proxy = self.proxy
            while (event := proxy.next_event()) is not None:
                self._handle(event)
            while transmits := proxy.transmits():
                for transmit in transmits:
                    self._transmit(transmit)
        except Exception as error:  # noqa: BLE001 - as in `take`
            self._note_fault("the sending of messages", error)
        finally:
            self._is_flushing = False
        self._set_timer()

    def _handle(self, event: Event) -> None:
        try:
            if isinstance(event, Received):
                self._receive(event)
            else:
                self._note(event)
        except Exception as error:  # noqa: BLE001 - as in `take`
            self._note_fault(f"a {type(event).__name__}", error)

    def _receive(self, received: Received) -> None:
        self._journal.request(received)
        request = received.request
        if self._is_draining and request.method == "INVITE" and request.to_tag is None:
            self.answer(received, 503, "Going Down", _DRAINING)
            return
        if self._outside is not None and received.flow.socket != self._outside.listener.name:
            refusal = self._outside.refusal_of(request)
            if refusal is not None:
                self.answer(received, *refusal)
                return
        deciding = self._decide(self._desk, received)
        rest = begin(deciding) if self._is_eager else deciding
        if rest is not None:
            self._run(rest)

    async def _decide(self, desk: Desk, received: Received) -> None:
        try:
            await desk.decide(received)
        except Exception as error:  # noqa: BLE001 - as in `take`
            self._note_fault(f"a {received.request.method[:32]} of {received.flow.remote}", error)
            self.answer(received, 500, "Server Internal Error")

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, event: CallStarted | CallFailed | CallEnded | ChangeFailed) -> None:
        """Tell of a call to who keeps account of it; the journal first, which asks for its streams."""
        if isinstance(event, CallEnded):
            self._journal.ends(event.call, self._media.reading(event.call.call_id), why=event.why)
        elif not isinstance(event, ChangeFailed):
            self._journal.take(event)
        self._media.take(event)
        match event:
            case CallStarted(number=number, call=call):
                self._calls.add(call)
                self._ringing.discard(number)
                parties = (call.caller.seen.remote, call.callee.seen.remote)
                self._guard.call_answered(number, call, parties)
            case CallFailed(number=number):
                self._ringing.discard(number)
                self._guard.call_failed(number)
            case CallEnded(call=call):
                self._calls.discard(call)
                self._guard.call_ended(call)
                self._run(self._write_end(call))
        if self.is_idle:
            self._is_quiet.set()

    async def _write_end(self, call: Call) -> None:
        await self._media.settle()
        self._journal.ended(call)

    def _transmit(self, transmit: Transmit) -> None:
        if len(transmit.data) > _SURE_BYTES:
            listener = self.flows.listener(transmit.socket)
            self.counters["fragmented"] += listener is not None and not listener.is_reliable
        if self._outside is not None and transmit.socket == self._outside.listener.name:
            self._outside.send(transmit)
        else:
            self._wires.send(transmit)

    def _edit(self, passage: Passage) -> None:
        try:
            self._desk.edit(passage)
        except (DecodeError, EncodeError):
            self.counters["unedited"] += 1
        self._media.edit(passage)

    def _note_fault(self, what: str, error: Exception) -> None:
        """Count and log what should not be, in one line: the text of an exception may hold what was sent."""
        self.counters["faults"] += 1
        _log.error("%s met a fault of natgate: %s", what, ascii(error)[:300])
        _log.debug("the fault:", exc_info=error)

    # --- time ---

    def _set_timer(self) -> None:
        """Wake up when the proxy wants it; a timer that comes too early is left as it is."""
        due = self.proxy.timeout_at()
        if due is None:
            return
        when = self._loop.time() + max(due - self._now(), 0)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        try:
            self.proxy.handle_timeout(now=self._now())
        except Exception as error:  # noqa: BLE001 - as in `take`
            self._note_fault("a timer", error)
        self._flush()

    async def _tick(self) -> None:
        """Look each second at what nobody tells of by itself."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                for call in self._media.silent(now=self._now()):
                    self._hang_up(call, "no media")
                self._journal.look()
                self._wires.tidy(now=self._loop.time())
            except Exception as error:  # noqa: BLE001 - as in `take`
                self._note_fault("a look at the calls", error)
            self._flush()

    def _hang_up(self, call: Call, why: str) -> None:
        self._journal.hung_up(call, why)
        self.proxy.hang_up(call, now=self._now())

    # --- addresses ---

    def _address_facing(self, remote: Endpoint) -> IPAddress | None:
        """The address of this machine on the way to `remote`; None where there is no way."""
        now = self._now()
        known = self._facing.get(remote.ip)
        if known is not None and known[1] > now:
            return known[0]
        try:
            address: IPAddress | None = local_address_towards(remote)
        except TransportError:
            address = None
        if len(self._facing) >= _MOST_FACING:
            self._facing.clear()
        self._facing[remote.ip] = address, now + _FACING_S
        return address

    def _media_address(self, flow: Flow) -> IPAddress | None:
        """The address that faces a flow; None for the outside of an ALG, which sees to its ports itself."""
        if self._outside is not None and flow.socket == self._outside.listener.name:
            return None
        listener = self.flows.listener(flow.socket)
        if listener is not None and listener.local.ip.is_loopback and not flow.remote.ip.is_loopback:
            return flow.remote.ip  # a phone on this machine has another of its addresses, for its media too
        return None if listener is None else listener.local.ip

    def _advertised(self, local: Endpoint) -> Endpoint:
        """What descriptions say for a port of this machine."""
        if self._outside is not None:
            return self._outside.placed(local)
        advertise = self.settings.advertise
        if advertise is None or advertise.version != local.ip.version or local.ip.is_loopback:
            return local
        return Endpoint(advertise, local.port)


def _has_credentials(request: SipMessage) -> bool:
    return any(request.header(name) is not None for name in ("authorization", "proxy-authorization"))


async def _open_location(store: str) -> Location:
    """The place that the setting names. Raises `LocationError`."""
    if store == "memory":
        return MemoryLocation()
    scheme, _, rest = store.partition(":")
    if scheme == "sqlite":
        return await SqliteLocation.open(Path(rest))
    try:
        from nattools.session.stores.redis import RedisLocation  # the `redis` extra
    except ImportError as error:
        raise LocationError(
            f"a store in Redis needs the redis package: pip install 'nattools[redis]' ({error})"
        ) from error
    return await RedisLocation.open(store)
