"""One connection that SIP goes by: its bytes cut into messages, its pings answered, its patience limited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, TransportError
from nattools.machine import Transmit
from nattools.net.stream import StreamConnection
from nattools.session.flows import Listener
from nattools.sip.stream import SipStream

FIRST_MESSAGE_S = 30.0
"""A connection that has brought no message by then is closed, and one whose message takes so long."""

_MOST_WAITING = 64
_PONG = b"\r\n"


class Owner(Protocol):
    """Who is told of what happens to a connection."""

    def opened(self, connection: Connection) -> None:
        """It is open now."""

    def message(self, connection: Connection, data: bytes) -> None:
        """A whole message has come."""

    def line_ends(self, connection: Connection) -> None:
        """Line ends have come between messages."""

    def ended(self, connection: Connection, reason: str, counter: str = "") -> None:
        """It has ended, or could not be opened; told once."""


class Connection:
    """A TCP or TLS connection of a listener, accepted by it or opened for it.

    What is sent before it is open waits. `is_ours` says that this side has opened it.
    """

    def __init__(self, name: str, listener: Listener, remote: Endpoint, owner: Owner) -> None:
        self.name = name
        self.listener = listener
        self.remote = remote
        self.task: asyncio.Future[None] | None = None
        self.is_ours = False
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._stream = SipStream()
        self._link: StreamConnection | None = None
        self._has_begun = False
        self._is_over = False
        self._early: list[bytes] = []
        self._loss: TransportError | None = None
        self._waiting: list[Transmit] = []
        self._heard_at = self._waits_since = self._loop.time()
        self._is_waited_for = True

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and not closed yet."""
        return self._link is not None

    async def open(self, opening: Callable[[], Awaitable[StreamConnection]]) -> None:
        """Open it by `opening`, and send what waits; or tell that it cannot be opened."""
        self._has_begun = True
        try:
            link = await opening()
        except TransportError as error:
            self.task = None
            self._end(str(error), "connections_failed")
            return
        self.task = None
        if self._is_over:
            link.abort()
            return
        self._link = link
        self._owner.opened(self)
        for transmit in self.take_waiting():
            self.send(transmit, most_unsent=1 << 30)
        early, self._early = self._early, []
        for data in early:
            self.receive(data)
        if self._loss is not None:
            self.lost(self._loss)

    def send(self, transmit: Transmit, *, most_unsent: int) -> bool:
        """Send a message, now or once it is open; False where it has ended, or the peer does not read."""
        if self._is_over:
            return False
        if self._link is None:
            if len(self._waiting) >= _MOST_WAITING:
                return False
            self._waiting.append(transmit)
            return True
        if self._link.unsent_bytes > most_unsent:
            return False
        try:
            self._link.send(transmit.data)
        except TransportError:
            return False
        return True

    def take_waiting(self) -> list[Transmit]:
        """Take what could not be sent yet."""
        taken, self._waiting = self._waiting, []
        return taken

    def receive(self, data: bytes) -> None:
        """Take bytes, in their order."""
        if self._link is None:
            self._early.append(data)
            return
        self._heard_at = self._loop.time()
        stream = self._stream
        pings, line_ends = stream.pings, stream.pongs
        stream.feed(data)
        try:
            while (message := stream.next_message()) is not None:
                self._is_waited_for = False
                self._owner.message(self, message)
                if not self.is_open:  # closed by who took it
                    return
        except DecodeError as error:
            self._end(str(error), "garbled_streams")
            return
        self._watch_patience()
        if stream.pongs != line_ends:
            self._owner.line_ends(self)
        if stream.pings != pings:  # one answer for all that came at once
            self.send(Transmit(_PONG, self.remote), most_unsent=0)

    def _watch_patience(self) -> None:
        """Begin to wait for the rest of a message, or stop."""
        is_begun = not self._stream.is_between_messages
        if is_begun and not self._is_waited_for:
            self._waits_since = self._heard_at
        self._is_waited_for = is_begun

    def lost(self, loss: TransportError) -> None:
        """Take note that the peer has ended it."""
        if self._link is None:
            self._loss = loss
            return
        self._end(str(loss))

    def is_stale(self, *, now: float, idle_s: float) -> bool:
        """Whether its time is up: a message that does not become whole, or nothing for `idle_s`."""
        if self._is_waited_for and not self.is_ours and now - self._waits_since > FIRST_MESSAGE_S:
            return True
        return now - self._heard_at > idle_s

    def close(self) -> None:
        """End it, at once."""
        self._is_over = True
        if self._link is not None:
            self._link.abort()
            self._link = None
        elif self.task is not None and self._has_begun:  # else its socket would stay open
            self.task.cancel()

    def _end(self, reason: str, counter: str = "") -> None:
        if not self._is_over:
            self._owner.ended(self, reason, counter)
