"""The relay that needs no rights: sockets of this process, read as long as there is something, by hand.

A packet of a latched source is compared, counted and sent on; everything else takes the longer way through
the stream's `Crossing`, which decides.

Like a router, and like the kernel where that relays, it sends with one hop less than came in (RFC 8656 §14).
So what circles ends: two relays may be described to each other, and then each gives the other whatever it
gets, be it RTP, RTCP or anything else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Mapping

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, TransportError
from nattools.machine import Entropy
from nattools.net.relay_socket import SocketWatch, open_port_pair, receive_with_hops, send_with_hops
from nattools.net.udp import endpoint_of, socket_address
from nattools.session.crossing import RTCP, RTP, Crossing, Foreign
from nattools.session.latch import Latch
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, PortPair, Side, SideStatistics

OnChange = Callable[["SocketStream"], None]
OnForeign = Callable[["SocketStream", Foreign], None]
Eats = Callable[[bytes, Endpoint], bool]
OnClosed = Callable[[], None]

_log = logging.getLogger(__name__)

_LARGEST_DATAGRAM_BYTES = 0xFFFF
_FEW_SOCKETS = 8
_DATAGRAMS_OF_FEW = 32
_MOST_TAKEN_PAIRS = 64
_FIRST_RTCP, _LAST_RTCP = 192, 223
_MOST_HOPS = 64
_UNSEEN_HOPS = 15  # after a look that brought nothing new, since each costs a fifth of a packet


class _Leg:
    """One socket of a stream, and what a packet of its latched source needs, looked up beforehand."""

    __slots__ = (
        "heard",
        "name",
        "own_address",
        "receive",
        "send",
        "side",
        "sock",
        "splits_rtcp",
        "stream",
        "target",
        "unseen",
    )

    def __init__(
        self,
        stream: SocketStream,
        side: Side,
        name: str,
        sock: socket.socket,
        out: socket.socket,
        latch: Latch,
    ) -> None:
        self.stream = stream
        self.side = side
        self.name = name
        self.sock = sock
        self.unseen = 0
        """So many datagrams are taken without a look at the hops that they have left."""
        self.receive = sock.recvfrom_into
        self.send = out.sendto
        self.heard = latch.heard
        self.own_address: object = None
        """Whose packets go straight on, as the socket module writes it; None where each is looked at."""
        self.target: tuple[str, int] | tuple[str, int, int, int] = ("", 0)
        self.splits_rtcp = False


class SocketStream:
    """One stream through four sockets. Make it with `SocketEngine.open_stream`."""

    def __init__(
        self, engine: SocketEngine, sockets: Mapping[str, socket.socket], *, entropy: Entropy
    ) -> None:
        self.crossing = Crossing(entropy=entropy)
        """What is known of both sides, and what is decided; to be read."""
        self._engine = engine
        self._sockets = dict(sockets)
        self._ports = {
            side: PortPair(*(endpoint_of(sockets[names[side]].getsockname()) for names in (RTP, RTCP)))
            for side in Side
        }
        self._legs = {
            names[side]: _Leg(
                self,
                side,
                names[side],
                sockets[names[side]],
                sockets[names[side.other]],
                self.crossing.latches[side],
            )
            for names in (RTP, RTCP)
            for side in Side
        }
        self._hops: dict[Side, int] = {}
        self._taps: dict[str, Eats] = {}
        self._on_closed: list[OnClosed] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def ports(self, side: Side) -> PortPair:
        """Where the relay receives from `side`; the address is the one that the sockets are bound to."""
        return self._ports[side]

    def expect(self, side: Side, expectation: Expectation) -> None:
        """Take what signalling says of `side`; once the stream is closed it does nothing."""
        if self._sockets:
            self.crossing.expect(side, expectation, now=self._loop.time())
            self._drain()
            self._engine.report_change(self)

    def statistics(self, side: Side) -> SideStatistics:
        """What has come from `side` until now, also after the end."""
        return self.crossing.latches[side].statistics()

    def tap(self, name: str, eats: Eats) -> None:
        """Offer `eats` what comes to the socket of that name (`crossing.RTP`, `RTCP`) from no known source.

        Where it says True the datagram was not for the relay: it is the answer of a STUN server, say.
        """
        self._taps[name] = eats

    def on_closed(self, call: OnClosed) -> None:
        """Call this when the stream is closed, before its sockets are; at once where it is closed already."""
        if self._sockets:
            self._on_closed.append(call)
        else:
            call()

    def send(self, name: str, data: bytes, destination: Endpoint) -> None:
        """Send from the socket of that name. Raises `TransportError` when there is no way there at all."""
        sock = self._sockets.get(name)
        if sock is None:
            raise TransportError(f"cannot send to {destination}: the stream is closed")
        self._restore_hops(self._legs[name].side)
        try:
            sock.sendto(data, socket_address(destination))
        except (BlockingIOError, InterruptedError):
            return  # the send buffer is full: as good as lost on the way
        except OSError as error:
            raise TransportError(f"cannot send to {destination}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Close the sockets and give the ports back; a second time it does nothing."""
        self.abort()

    def abort(self) -> None:
        """What `close` does, for who cannot await."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        callbacks, self._on_closed = self._on_closed, []
        for call in callbacks:
            call()
        sockets, self._sockets = self._sockets, {}
        if sockets:
            self._engine.take_back(self, sockets)
        self._legs.clear()  # they lead back here: without them nothing waits for the garbage collector

    def watch(self, watch: SocketWatch[_Leg]) -> None:
        """Have `watch` name the stream's sockets when they have something."""
        for name, sock in self._sockets.items():
            watch.add(sock, self._legs[name])

    def take(self, name: str, data: bytes, source: Endpoint, *, now: float, hops: int | None = None) -> None:
        """Take a datagram of the socket of that name that does not go straight on, and its hops if known."""
        tap = self._taps.get(name)
        if tap is not None and tap(data, source):
            return
        if self._sockets:
            self.crossing.receive(data, source, now=now, socket=name)
            if hops is not None and self.crossing.has_transmits and not self.count_hop(name, hops):
                self.crossing.transmits()
            self._drain()

    def count_hop(self, name: str, hops: int) -> bool:
        """Whether a datagram that came to the socket of that name with so many hops left may go on.

        What goes to the other side from now on has one less.
        """
        leg = self._legs[name]
        if hops == self._hops.get(leg.side):
            leg.unseen = _UNSEEN_HOPS
            return True
        if hops <= 1:
            self.crossing.latches[leg.side.other].held += 1
            return False
        self._send_with_hops(leg.side.other, min(hops - 1, _MOST_HOPS))
        self._hops[leg.side] = hops
        return True

    def _restore_hops(self, side: Side) -> None:
        """What goes to `side` next is not passed on: it has all its hops before it."""
        if self._hops.pop(side.other, None) is not None:
            self._send_with_hops(side, _MOST_HOPS)

    def _send_with_hops(self, side: Side, hops: int) -> None:
        for names in (RTP, RTCP):
            send_with_hops(self._sockets[names[side]], hops)
            self._legs[names[side.other]].unseen = 0

    def _drain(self) -> None:
        crossing = self.crossing
        for transmit in crossing.transmits():
            try:
                self._sockets[transmit.socket].sendto(transmit.data, socket_address(transmit.destination))
            except OSError as error:
                _log.debug("%s did not get %d bytes: %s", transmit.destination, len(transmit.data), error)
        foreign: list[Foreign] = []
        has_latched = False
        while (event := crossing.next_event()) is not None:
            if isinstance(event, Foreign):
                foreign.append(event)
            else:
                has_latched = True
                _log.debug(
                    "side %s speaks from %s, before from %s", event.side.value, event.source, event.previous
                )
        if has_latched or not foreign:  # who floods the ports shall cost little
            self._prepare_legs()
            self._set_timer()
        if has_latched:
            self._engine.report_change(self)
        for each in foreign:
            self._engine.report_foreign(self, each)

    def _prepare_legs(self) -> None:
        crossing, splits_rtcp = self.crossing, self.crossing.converts_mux
        for side in Side:
            leg = self._legs[RTP[side]]
            source, destination = crossing.source(side), crossing.destination(side.other)
            if source is None or destination is None:
                leg.own_address = None
                continue
            leg.own_address = _as_received(source)
            leg.target = socket_address(destination)
            leg.splits_rtcp = splits_rtcp

    def _set_timer(self) -> None:
        due_at = self.crossing.timeout_at()
        if self._timer is not None:
            if self._timer.when() == due_at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if due_at is not None:
            self._timer = self._loop.call_at(due_at, self._time_has_come)

    def _time_has_come(self) -> None:
        self._timer = None
        for side in Side:
            self._restore_hops(side)
        self.crossing.handle_timeout(now=self._loop.time())
        self._drain()


class SocketEngine:
    """Relays through sockets at this machine's addresses. End it with `close`."""

    def __init__(
        self,
        address: IPAddress,
        ports: PortPairs,
        *,
        on_change: OnChange | None = None,
        on_foreign: OnForeign | None = None,
        entropy: Entropy = secrets.token_bytes,
    ) -> None:
        """Relay at `address` where no other is asked for.

        `on_change(stream)` is called after each change of a source or destination, and
        `on_foreign(stream, foreign)` for each datagram that was not relayed, since it is not from the side.
        """
        self._address = address
        self._pairs = ports
        self._on_change = on_change
        self._on_foreign = on_foreign
        self._entropy = entropy
        self._watch: SocketWatch[_Leg] | None = None
        self._streams: dict[SocketStream, list[int]] = {}
        self._buffer = bytearray(_LARGEST_DATAGRAM_BYTES)
        self._view = memoryview(self._buffer)

    async def open_stream(
        self,
        *,
        a: IPAddress | None = None,
        b: IPAddress | None = None,
        ports: Mapping[Side, PortPair] | None = None,
    ) -> SocketStream:
        """A new stream with ports of its own at the addresses `a` and `b`; the engine's own where None.

        With `ports` it gets these very ones, since they were told to its sides before.
        Raises `LocalAddressError` where no ports are to be had, and `TransportError` where the event loop
        cannot watch sockets.
        """
        if self._watch is None:
            self._watch = SocketWatch(self._relay)
        evens: list[int] = []
        sockets: dict[str, socket.socket] = {}
        try:
            for side, address in ((Side.A, a), (Side.B, b)):
                if ports is not None:
                    even, pair = self._reopen_pair(ports[side].rtp)
                else:
                    even, pair = self._open_pair(address or self._address)
                evens.append(even)
                sockets[RTP[side]], sockets[RTCP[side]] = pair
        except LocalAddressError:
            self._give_back(sockets, evens)
            raise
        stream = SocketStream(self, sockets, entropy=self._entropy)
        stream.watch(self._watch)
        self._streams[stream] = evens
        return stream

    async def close(self) -> None:
        """Close every stream that is open."""
        for stream in list(self._streams):
            stream.abort()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def report_change(self, stream: SocketStream) -> None:
        """Tell that a source or destination of `stream` may be another."""
        if self._on_change is not None:
            self._on_change(stream)

    def report_foreign(self, stream: SocketStream, foreign: Foreign) -> None:
        """Tell of a datagram that was not relayed."""
        if self._on_foreign is not None:
            self._on_foreign(stream, foreign)

    def take_back(self, stream: SocketStream, sockets: Mapping[str, socket.socket]) -> None:
        """Close the sockets of `stream` and let its ports rest."""
        if self._watch is not None:
            for sock in sockets.values():
                self._watch.remove(sock)
        self._give_back(sockets, self._streams.pop(stream))

    def _give_back(self, sockets: Mapping[str, socket.socket], evens: list[int]) -> None:
        for sock in sockets.values():
            sock.close()
        now = asyncio.get_running_loop().time()
        for even in evens:
            self._pairs.release(even, now=now)

    def _open_pair(self, address: IPAddress) -> tuple[int, tuple[socket.socket, socket.socket]]:
        now = asyncio.get_running_loop().time()
        for _ in range(_MOST_TAKEN_PAIRS):
            even = self._pairs.acquire(now=now)
            try:
                pair = open_port_pair(address, even)
            except LocalAddressError:
                self._pairs.release(even, now=now)
                raise
            if pair is not None:
                return even, pair
            self._pairs.release(even, now=now)
        raise LocalAddressError(
            f"of {_MOST_TAKEN_PAIRS} pairs of RTP ports at {address} other programs have all: "
            "give another range of ports"
        )

    def _reopen_pair(self, rtp: Endpoint) -> tuple[int, tuple[socket.socket, socket.socket]]:
        self._pairs.take(rtp.port)
        try:
            pair = open_port_pair(rtp.ip, rtp.port)
            if pair is None:
                raise LocalAddressError(f"another program has a socket at {rtp} or at the port after it")
        except LocalAddressError:
            self._pairs.release(rtp.port, now=asyncio.get_running_loop().time())
            raise
        return rtp.port, pair

    def _relay(self, legs: list[_Leg]) -> None:
        """Take what the sockets of `legs` have. Here goes the time, so that nothing is looked up twice."""
        now, buffer, view = asyncio.get_running_loop().time(), self._buffer, self._view
        # with many sockets ready another look at each costs more than being told of it again
        most = _DATAGRAMS_OF_FEW if len(legs) <= _FEW_SOCKETS else 1
        for leg in legs:
            receive = leg.receive
            for _ in range(most):
                try:
                    if leg.unseen:
                        length, address = receive(buffer)
                        leg.unseen -= 1
                        hops = None
                    else:
                        length, address, hops = receive_with_hops(leg.sock, buffer)
                except OSError:  # nothing more, or the stream was closed by the one before
                    break
                if address != leg.own_address or (
                    leg.splits_rtcp and length > 1 and _FIRST_RTCP <= buffer[1] <= _LAST_RTCP
                ):
                    source = endpoint_of(address)
                    leg.stream.take(leg.name, bytes(view[:length]), source, now=now, hops=hops)
                    continue
                leg.heard(buffer, length, now=now)
                if hops is not None and not leg.stream.count_hop(leg.name, hops):
                    continue
                try:
                    leg.send(view[:length], leg.target)
                except OSError:  # the buffer is full, or no way there: lost, as on any way
                    continue


def _as_received(source: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    """What `recvfrom` gives for that source."""
    return (str(source.ip), source.port, 0, 0) if source.is_ipv6 else (str(source.ip), source.port)
