"""A socket with its public binding, alive: datagrams and time into the machine, datagrams and news out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol, Unpack
from weakref import WeakSet

from nattools.binding.machine import Ask, BindingEvent, BindingMachine, Failed, Release
from nattools.binding.model import BindingChange, ChangeKind, ContactWords, PublicBinding, SdpWords
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.silence import AFTER_S, Silence
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, TransportError

MOST_DATAGRAMS = 1024
"""So many wait for `LiveBinding.recvfrom`; then the oldest makes room for the newest."""
MOST_CHANGES = 256
"""So many wait for each reader of `LiveBinding.changes`; then the oldest is forgotten."""

OnDatagram = Callable[[bytes, Endpoint], None]
OnNeed = Callable[[Ask | Release], None]


class BoundSocket(Protocol):
    """What carries the datagrams: a socket of one's own, somebody's socket, or somebody's transport."""

    is_dual_stack: bool
    local: Endpoint

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send one datagram. Raises `TransportError` when there is no way there at all."""

    def close(self) -> None:
        """Receive no more, and give back what is somebody else's."""


class _Reader(AsyncIterator[BindingChange]):
    """The news for one reader, from when it was made until the binding is closed."""

    def __init__(self, *, is_closed: bool) -> None:
        self._changes: deque[BindingChange] = deque(maxlen=MOST_CHANGES)
        self._arrived = asyncio.Event()
        self._is_closed = is_closed

    def put(self, change: BindingChange) -> None:
        self._changes.append(change)
        self._arrived.set()

    def close(self) -> None:
        self._is_closed = True
        self._arrived.set()

    async def __anext__(self) -> BindingChange:
        while not self._changes:
            if self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._changes.popleft()


class LiveBinding:
    """One socket and its public endpoint, for as long as it is open. `nattools.binding.keeper` makes them.

    The binding's own STUN is taken out of what the socket receives; everything else is handed on as it came,
    to `on_datagram` if there is one, to the protocol of a transport, otherwise to `recvfrom`.
    """

    def __init__(
        self, *, on_need: OnNeed, on_datagram: OnDatagram | None = None, has_protocol: bool = False
    ) -> None:
        self._on_need = on_need
        self._on_datagram = on_datagram
        self._is_read = on_datagram is None and not has_protocol
        self._loop = asyncio.get_running_loop()
        self._machine: BindingMachine | None = None
        self._socket: BoundSocket | None = None
        self._local: Endpoint | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_acquired = False
        self._failure: BindingError | None = None
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._trouble = "it is not acquired yet"
        self._has_network = True
        self._has_socket = True
        self._lost_at: float | None = None
        self._readers: WeakSet[_Reader] = WeakSet()
        self._datagrams: list[tuple[bytes, Endpoint]] = []  # a deque has 0.7 kB even when it is empty
        self._arrived: asyncio.Event | None = None
        self._silence: Silence | None = None
        self._silence_timer: asyncio.TimerHandle | None = None

    # What a program asks of it

    @property
    def local(self) -> Endpoint:
        """Where the socket is on this machine: a real address, also where it is bound to none."""
        assert self._local is not None, "nobody has a binding that was not started"
        return self._local

    @property
    def public(self) -> Endpoint:
        """What to write into Via, Contact and SDP. Raises `BindingError`, saying why, while there is none."""
        return self._held.public

    @property
    def snapshot(self) -> PublicBinding | None:
        """The whole binding as it is now; None while there is none."""
        return self._machine.binding if self._machine is not None and not self._is_closed else None

    def via(self, *, branch: str, transport: str = "UDP") -> str:
        """A request's Via, as `PublicBinding.via` says. Raises `BindingError` as `public` does."""
        return self._held.via(branch=branch, transport=transport)

    def contact(self, user: str = "", **words: Unpack[ContactWords]) -> str:
        """The value of Contact, as `PublicBinding.contact` says. Raises `BindingError` as `public` does."""
        return self._held.contact(user, **words)

    def sdp(self, *, session_id: int, version: int, **words: Unpack[SdpWords]) -> bytes:
        """The body of an INVITE or its answer, as `PublicBinding.sdp` says. Raises `BindingError` so too."""
        return self._held.sdp(session_id=session_id, version=version, **words)

    def changes(self) -> AsyncIterator[BindingChange]:
        """The news from now on, until the binding is closed; each call is a reader of its own."""
        reader = _Reader(is_closed=self._is_closed)
        self._readers.add(reader)
        return reader

    def sendto(self, data: bytes, destination: Endpoint) -> None:
        """Send from the very socket. Raises `TransportError` when there is no way there at all."""
        if self._socket is None or self._is_closed:
            raise TransportError(f"cannot send to {destination}: the binding is closed")
        self._socket.send(data, destination)

    async def recvfrom(self) -> tuple[bytes, Endpoint]:
        """The next datagram that is not the binding's own, and where it came from.

        Raises `TransportError` when the binding is closed, or hands its datagrams to somebody else.
        """
        if not self._is_read:
            raise TransportError("the datagrams of this socket go to its callback or protocol")
        while not self._datagrams:
            if self._is_closed or not self._has_socket:
                raise TransportError("nothing more will arrive: the binding is closed")
            self._arrived = self._arrived or asyncio.Event()
            self._arrived.clear()
            await self._arrived.wait()
        return self._datagrams.pop(0)

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind = KeepaliveKind.CRLF) -> None:
        """Keep the flow to `destination` open as well, as to a SIP proxy, with `kind`; the first at once."""
        if self._machine is not None and not self._is_closed:
            self._machine.keep_open(destination, kind, now=self._loop.time())
            self.pump()

    def let_go(self, destination: Endpoint) -> None:
        """Keep that flow open no longer."""
        if self._machine is not None:
            self._machine.let_go(destination)

    def check(self) -> None:
        """See now, not at the next keepalive, whether everything still is so; `changes` tells if not."""
        if self._has_network and self._local is not None:
            self.network_changed(self._local, "somebody wants to know")

    def check_when_quiet(self, after_s: float = AFTER_S) -> None:
        """From now on `check` whenever a stream of the program's datagrams stops for `after_s`, as RTP may.

        Nobody announces that a NAT has another address: the peer's packets just end, and the next keepalive
        may be 15 s away. While silence lasts it is looked at again after 1, 2, 4 and 8 s; then keepalives go
        on alone, so that a call on hold costs nothing.
        """
        self._silence = Silence(after_s)

    def close(self) -> None:
        """Stop, and close the socket if it is the binding's own. A second time does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._trouble = "it is closed"
        for timer in (self._timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        if self._socket is not None:
            self._socket.close()
        for reader in self._readers:
            reader.close()
        self._wake_readers()

    # What its keeper does with it

    @property
    def lost_at(self) -> float | None:
        """Since when it is lost, by the loop's clock; None while it is not."""
        return self._lost_at

    def start(self, machine: BindingMachine, socket: BoundSocket, local: Endpoint) -> None:
        """Have `machine` run over `socket`, which is at `local`."""
        self._machine, self._socket, self._local = machine, socket, local
        self.pump()

    async def acquired(self) -> None:
        """Wait for the first public endpoint. Raises `BindingError` where there is none to be had."""
        await asyncio.shield(self._settled)
        if self._failure is not None:
            raise self._failure

    def pump(self) -> None:
        """Send and tell what there is, and set the timer; to be called after telling the machine anything."""
        if self._machine is None or self._socket is None or self._is_closed:
            return
        undelivered: list[tuple[Endpoint, str]] = []
        for transmit in self._machine.transmits():
            try:
                self._socket.send(transmit.data, transmit.destination)
            except TransportError as error:
                undelivered.append((transmit.destination, str(error)))
        while (event := self._machine.next_event()) is not None:
            self._take(event)
        for destination, reason in undelivered:
            self._machine.undeliverable(destination, reason, now=self._loop.time())
        if undelivered:
            self._loop.call_soon(self.pump)
        self._set_timer(self._machine.timeout_at())

    def network_changed(self, local: Endpoint | None, reason: str) -> None:
        """The socket is at `local` now; None says that there is no way out, and `reason` why."""
        if self._machine is None or self._is_closed or not self._has_socket:
            return
        self._has_network = local is not None
        if local is not None:
            self._local = local
        elif not self._is_acquired:  # the machine would wait for a network
            self._fail(BindingError(f"no public endpoint for {self._local}: {reason}"))
        self._machine.network_changed(local, reason, now=self._loop.time())
        self.pump()

    # What its socket does with it

    def received(self, data: bytes, source: Endpoint) -> None:
        """Take a datagram off a socket that has nobody else to hand it to."""
        if self.eats(data, source) or self._is_closed:
            return
        if self._on_datagram is not None:
            self._on_datagram(data, source)
        else:
            if len(self._datagrams) == MOST_DATAGRAMS:
                del self._datagrams[0]
            self._datagrams.append((data, source))
            self._wake_readers()

    def eats(self, data: bytes, source: Endpoint) -> bool:
        """Take a datagram if it is the binding's own; False where it is the program's."""
        if self._machine is None or self._is_closed:
            return False
        if not self._machine.receive(data, source, now=self._loop.time()):
            if self._silence is not None:
                self._silence.heard(now=self._loop.time())
                self._listen(self._silence)
            return False
        self.pump()
        return True

    def undelivered(self, destination: Endpoint | None, error: OSError) -> None:
        """Take what the system reports of a datagram that did not arrive (ICMP)."""
        if self._machine is not None and not self._is_closed:
            reason = error.strerror or str(error)
            self._machine.undeliverable(destination, reason, now=self._loop.time())
            self.pump()

    def socket_ended(self, reason: str) -> None:
        """Its owner has closed it: the binding stays lost."""
        self.network_changed(None, reason)
        self._has_socket = False
        self._wake_readers()

    @property
    def _held(self) -> PublicBinding:
        if (binding := self.snapshot) is None:
            raise BindingError(f"no public endpoint for {self._local}: {self._trouble}")
        return binding

    def _take(self, event: BindingEvent) -> None:
        if isinstance(event, Failed):
            self._fail(event.error)
        elif isinstance(event, BindingChange):
            self._report(event)
        else:
            self._on_need(event)

    def _fail(self, error: BindingError) -> None:
        self._failure = self._failure or error
        self._settle()

    def _report(self, change: BindingChange) -> None:
        is_lost = change.kind is ChangeKind.LOST
        self._lost_at = self._loop.time() if is_lost else None
        self._trouble = change.reason
        if change.kind is ChangeKind.ACQUIRED:
            self._is_acquired = True
            self._settle()
        for reader in self._readers:
            reader.put(change)

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def _listen(self, silence: Silence) -> None:
        """Wait until there may be something to look for; packets that come meanwhile move no timer."""
        timeout_at = silence.timeout_at()
        if self._silence_timer is None and timeout_at is not None:
            self._silence_timer = self._loop.call_at(timeout_at, self._heard_nothing, silence)

    def _heard_nothing(self, silence: Silence) -> None:
        self._silence_timer = None
        if silence.handle_timeout(now=self._loop.time()):
            self.check()
        self._listen(silence)

    def _wake_readers(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    def _set_timer(self, timeout_at: float | None) -> None:
        if self._timer is not None:
            if self._timer.when() == timeout_at:
                return
            self._timer.cancel()
            self._timer = None
        if timeout_at is not None:
            self._timer = self._loop.call_at(timeout_at, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if self._machine is not None and not self._is_closed:
            self._machine.handle_timeout(now=self._loop.time())
            self.pump()
