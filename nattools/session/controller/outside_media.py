"""Streams of a relay that face outside from behind a NAT: their ports have public bindings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Protocol

from nattools.binding.client import BoundSocket, LiveBinding
from nattools.binding.keeper import Keeper
from nattools.binding.model import PublicBinding
from nattools.binding.silence import Silence
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import BindingError, RelayError
from nattools.session.controller.kept_binding import KeptBinding
from nattools.session.crossing import RTCP, RTP
from nattools.session.engines.sockets import Eats
from nattools.session.relay import MediaEngine, MediaStream, Side

_RTCP_GRACE_S = 1.0
"""So much longer than that of RTP the binding of RTCP is waited for: a call goes on without."""
_LOOK_S = 0.1
_SILENCE_S = 0.3
_SPARE_S = 120.0
"""So long a stream that was made ahead waits for a call."""
_MOST_SPARES = 4

_Addresses = tuple[IPAddress | None, IPAddress | None]
OnChange = Callable[["PublicSide", KeptBinding, PublicBinding], None]

_log = logging.getLogger(__name__)


class SharedStream(MediaStream, Protocol):
    """A stream whose sockets others may use for what is not media."""

    def on_closed(self, call: Callable[[], None]) -> None:
        """As `SocketStream.on_closed`."""

    def tap(self, name: str, eats: Eats) -> None:
        """As `SocketStream.tap`."""

    def send(self, name: str, data: bytes, destination: Endpoint) -> None:
        """As `SocketStream.send`."""


class SharedEngine(MediaEngine, Protocol):
    """An engine whose streams have sockets in this process."""

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> SharedStream:
        """As `MediaEngine.open_stream`."""


class Whereabouts(Protocol):
    """Who tells others where the streams are."""

    @property
    def address(self) -> IPAddress:
        """What ports that face outside are bound to."""

    def opened(self, side: PublicSide) -> None:
        """That side has public endpoints from now on."""

    def changed(self, side: PublicSide, kept: KeptBinding, former: PublicBinding) -> None:
        """One of its bindings is another than it was, `former`."""

    def closed(self, side: PublicSide) -> None:
        """That side is no more, if it ever was."""


class _SharedSocket:
    """One socket of a stream, as what a binding sends its own datagrams by."""

    is_dual_stack = False

    def __init__(self, stream: SharedStream, name: str, local: Endpoint) -> None:
        self.local = local
        self._stream = stream
        self._name = name

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send one datagram. Raises `TransportError` when there is no way there at all."""
        self._stream.send(self._name, data, destination)

    def close(self) -> None:
        """The socket is the stream's, and goes with it."""


class PublicSide:
    """The side of a stream that faces outside, and the bindings of its two ports."""

    def __init__(self, keeper: Keeper, stream: SharedStream, side: Side, on_change: OnChange) -> None:
        ports = stream.ports(side)
        self.local = ports.rtp
        self.stream = stream
        self._side = side
        self._keeper = keeper
        self._on_change = on_change
        self._heard_at: float | None = None
        self._silence = Silence(_SILENCE_S)
        self.rtp = self._keep(RTP[side], ports.rtp)
        self.rtcp = self._keep(RTCP[side], ports.rtcp)

    @property
    def is_public(self) -> bool:
        """Whether RTP has a public endpoint now."""
        return self.rtp.live is not None and self.rtp.live.snapshot is not None

    async def acquired(self) -> None:
        """Wait for both. Raises `BindingError` where there is none for RTP; without RTCP a call goes on."""
        await self.rtp.acquired()
        try:
            async with asyncio.timeout(_RTCP_GRACE_S):
                await self.rtcp.acquired()
        except (TimeoutError, BindingError) as error:
            _log.info(
                "RTCP at %s goes without a public endpoint: %s", self.stream.ports(self._side).rtcp, error
            )

    def look(self, *, now: float) -> None:
        """Where packets have stopped to come, see whether the NAT has another address."""
        heard_at = self.stream.statistics(self._side).last_heard
        if heard_at is not None and heard_at != self._heard_at:
            self._heard_at = heard_at
            self._silence.heard(now=heard_at)
        if self._silence.handle_timeout(now=now):
            self.check()

    def check(self) -> None:
        """See now whether the bindings still hold."""
        for kept in (self.rtp, self.rtcp):
            if kept.live is not None:
                kept.live.check()

    async def close(self) -> None:
        """Let both go."""
        await asyncio.gather(self.rtp.close(), self.rtcp.close())

    def _keep(self, name: str, local: Endpoint) -> KeptBinding:
        def share(live: LiveBinding) -> BoundSocket:
            self.stream.tap(name, live.eats)
            return _SharedSocket(self.stream, name, local)

        return KeptBinding(
            partial(self._keeper.bind_shared, share),
            on_change=partial(self._on_change, self),
        )


class PublicEngine:
    """An engine whose streams have public endpoints where they face outside. End it with `close`."""

    def __init__(self, engine: SharedEngine, keeper: Keeper, whereabouts: Whereabouts) -> None:
        """Streams of `engine`; `whereabouts` knows the outside, and is told of each side that is public."""
        self._engine = engine
        self._keeper = keeper
        self._whereabouts = whereabouts
        self._sides: dict[PublicSide, None] = {}
        self._spares: dict[_Addresses, asyncio.Task[SharedStream]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def sides(self) -> Collection[PublicSide]:
        """Those that are open."""
        return self._sides.keys()

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> SharedStream:
        """A new stream; a side without an address faces outside, and has public endpoints.

        To find these takes a while, so that one more is made ahead for the next call. Raises
        `LocalAddressError` where no ports are to be had, `RelayError` where no public endpoint is.
        """
        if (a is None) is (b is None):
            return await self._open(a, b)
        stream = self._take_spare((a, b))
        self._prepare((a, b))
        return await self._open(a, b) if stream is None else stream

    async def close(self) -> None:
        """Close every stream that is open, and give the bindings back."""
        for spare in self._spares.values():
            spare.cancel()
        await asyncio.gather(*self._spares.values(), return_exceptions=True)
        await self._engine.close()
        if self._timer is not None:
            self._timer.cancel()
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def _open(self, a: IPAddress | None, b: IPAddress | None) -> SharedStream:
        here = self._whereabouts.address
        stream = await self._engine.open_stream(a=a or here, b=b or here)
        facing = [
            PublicSide(self._keeper, stream, side, self._whereabouts.changed)
            for side, address in ((Side.A, a), (Side.B, b))
            if address is None
        ]
        self._sides.update(dict.fromkeys(facing))
        stream.on_closed(partial(self._forget, facing))
        try:
            await asyncio.gather(*(side.acquired() for side in facing))
        except BindingError as error:
            await stream.close()
            raise RelayError(f"the media of a call cannot have a public endpoint: {error}") from error
        except BaseException:
            await stream.close()
            raise
        for side in facing:
            self._whereabouts.opened(side)
        if self._timer is None:
            self._look()
        return stream

    def _take_spare(self, key: _Addresses) -> SharedStream | None:
        """The stream that was made ahead, where it is there and still public."""
        spare = self._spares.get(key)
        if spare is None or not spare.done():
            return None
        del self._spares[key]
        if spare.cancelled() or spare.exception() is not None:
            return None
        stream = spare.result()
        if all(side.is_public for side in self._sides if side.stream is stream):
            return stream
        self._see_to(stream.close())
        return None

    def _prepare(self, key: _Addresses) -> None:
        """Make a stream ahead, and give it back if nobody wants it."""
        if key in self._spares or len(self._spares) >= _MOST_SPARES:
            return
        spare = self._spares[key] = asyncio.create_task(self._open(*key))
        self._loop.call_later(_SPARE_S, self._give_back, key, spare)

    def _give_back(self, key: _Addresses, spare: asyncio.Task[SharedStream]) -> None:
        if self._spares.get(key) is spare and (stream := self._take_spare(key)) is not None:
            self._see_to(stream.close())

    def _see_to(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _forget(self, sides: Sequence[PublicSide]) -> None:
        for side in sides:
            del self._sides[side]
            self._whereabouts.closed(side)
            self._see_to(side.close())

    def _look(self) -> None:
        for side in self._sides:
            side.look(now=self._loop.time())
        self._timer = self._loop.call_later(_LOOK_S, self._look) if self._sides else None
