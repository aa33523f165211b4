"""Drives a sans-I/O machine: datagrams and time in, datagrams and events out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.machine import Machine
from nattools.net.udp import UdpSocket

EventT = TypeVar("EventT")


class MachineRunner(Generic[EventT]):
    """Runs `machine` over the sockets that it names, until `close`.

    `on_event` gets every event; `on_unsendable` the datagrams for which the system knows no way.
    Feed what the sockets receive to `receive`, and call `pump` after telling the machine anything else.
    """

    def __init__(
        self,
        machine: Machine[EventT],
        sockets: Mapping[str, UdpSocket],
        *,
        on_event: Callable[[EventT], None],
        on_unsendable: Callable[[str, Endpoint, TransportError], None],
    ) -> None:
        self._machine = machine
        self._sockets = sockets
        self._on_event = on_event
        self._on_unsendable = on_unsendable
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def receive(self, socket: str, data: bytes, source: Endpoint) -> None:
        """Feed one datagram."""
        self._machine.receive(data, source, now=self._loop.time(), socket=socket)
        self.pump()

    def pump(self) -> None:
        """Send what the machine has to send, pass its events on, and set the timer anew."""
        if self._closed:
            return
        for transmit in self._machine.transmits():
            try:
                self._sockets[transmit.socket].send(transmit.data, transmit.destination)
            except TransportError as error:
                self._on_unsendable(transmit.socket, transmit.destination, error)
        while (event := self._machine.next_event()) is not None:
            self._on_event(event)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timeout_at = self._machine.timeout_at()
        if timeout_at is not None and not self._closed:
            self._timer = self._loop.call_at(timeout_at, self._timed_out)

    def _timed_out(self) -> None:
        self._machine.handle_timeout(now=self._loop.time())
        self.pump()

    def close(self) -> None:
        """Stop driving. The sockets stay open: they are the caller's."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
