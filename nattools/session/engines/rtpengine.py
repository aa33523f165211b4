"""The relay that rtpengine carries, on this machine or another, told what to do by its ng protocol.

rtpengine latches by rules of its own: it takes the first packets from anywhere, and by `strict source` holds
to where they come from. Those of `Latch` are stricter, and it has nothing to set them by.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, LocalAddressError, RelayError, TransportError
from nattools.net.udp import UdpSocket
from nattools.session.ng import (
    Answer,
    Json,
    compose_request,
    compose_side,
    parse_answer,
    parse_ports,
    parse_received,
)
from nattools.session.relay import Expectation, PortPair, Side, SideStatistics

_log = logging.getLogger(__name__)

_COOKIE_BYTES = 8
_FIRST_WAIT_S = 0.25
_MOST_TRIES = 4  # 0.25, 0.5, 1 and 2 s
_LOOK_S = 2.0
_OPTIONS: Mapping[str, Json] = {
    # The ports of a side stay what they were though the other one is told anew; SDP went out with them.
    "flags": ["port latching", "strict source"],
    "replace": ["origin", "session-connection"],
    "rtcp-mux": ["accept", "offer"],
    "ICE": "remove",
}


class RtpengineStream:
    """One stream, which is a call of its own to rtpengine. Make it with `RtpengineEngine.open_stream`."""

    def __init__(self, engine: RtpengineEngine, name: str, families: Mapping[Side, int]) -> None:
        self.name = name
        """Its call-id at rtpengine."""
        self._engine = engine
        self._families = families
        self._ports: dict[Side, PortPair] = {}
        self._expectations: dict[Side, Expectation] = {}
        self._statistics = {side: SideStatistics(lost=None, jitter_s=None) for side in Side}
        self._version = 0
        self._news: set[Side] = set()
        self._teller: asyncio.Task[None] | None = None

    def ports(self, side: Side) -> PortPair:
        """Where rtpengine receives from `side`."""
        return self._ports[side]

    def expect(self, side: Side, expectation: Expectation) -> None:
        """Take what signalling says of `side`, and tell rtpengine as soon as that can be."""
        self._expectations[side] = expectation
        self._news.add(side)
        if self._teller is None or self._teller.done():
            self._teller = asyncio.get_running_loop().create_task(self._tell_news())

    def statistics(self, side: Side) -> SideStatistics:
        """What had come from `side` some 2 s ago; rtpengine tells of no foreign, lost or held packets."""
        return self._statistics[side]

    async def settle(self) -> None:
        """Wait until rtpengine was told everything."""
        while self._teller is not None and not self._teller.done():
            await asyncio.wait([self._teller])

    async def close(self) -> None:
        """Have rtpengine end the stream; a second time it does nothing."""
        if self._teller is not None:
            self._teller.cancel()
        answer = await self._engine.end(self)
        if answer is not None:
            with contextlib.suppress(RelayError):
                self._count(answer, now=asyncio.get_running_loop().time())

    async def tell(self, side: Side) -> None:
        """Tell rtpengine of both sides, `side` being the one that offers. Raises `RelayError`."""
        self._version += 1
        other = side.other
        for command, speaker in (("offer", side), ("answer", other)):
            listener = speaker.other
            sdp = compose_side(
                self._expectations.get(speaker),
                version=self._version,
                ipv6=self._families[speaker] == 6,
            )
            answer = await self._engine.request(
                command,
                {
                    **_OPTIONS,
                    "call-id": self.name,
                    "from-tag": side.value,
                    "to-tag": other.value,
                    "address family": f"IP{self._families[listener]}",
                    "sdp": sdp,
                },
            )
            self._take_ports(listener, answer)

    async def look(self, *, now: float) -> None:
        """Ask rtpengine what it has counted. Raises `RelayError`."""
        self._count(await self._engine.request("query", {"call-id": self.name}), now=now)

    def _count(self, answer: Answer, *, now: float) -> None:
        """Take what rtpengine has counted. Raises `RelayError`."""
        for side in Side:
            try:
                received = parse_received(answer, side.value)
            except DecodeError as error:
                raise RelayError(f"{self._engine}: {error}") from error
            before = self._statistics[side]
            has_more = received.packets > before.packets
            self._statistics[side] = SideStatistics(
                packets=received.packets,
                octets=received.octets,
                lost=None,
                jitter_s=None,
                latched=received.endpoint if received.packets else None,
                last_heard=now if has_more else before.last_heard,
            )

    def _take_ports(self, side: Side, answer: Answer) -> None:
        """What rtpengine says to the one side is for the other: the ports where that one sends to."""
        try:
            ports = parse_ports(answer)
        except DecodeError as error:
            raise RelayError(f"{self._engine}: {error}") from error
        if self._ports.setdefault(side, ports).rtp != ports.rtp:
            _log.warning("%s moved a port from %s to %s", self._engine, self._ports[side].rtp, ports.rtp)
            self._ports[side] = ports

    async def _tell_news(self) -> None:
        while self._news:
            try:
                await self.tell(self._news.pop())
            except RelayError as error:
                _log.warning("a stream stays as it was: %s", error)


class RtpengineEngine:
    """Relays by an rtpengine-daemon (10.5 or later). Make it with `connect`, end it with `close`."""

    def __init__(self, control: Endpoint) -> None:
        """Use `connect` instead."""
        self._control = control
        self._socket: UdpSocket | None = None
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._streams: set[RtpengineStream] = set()
        self._looker: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, control: Endpoint) -> RtpengineEngine:
        """Use the rtpengine whose `--listen-ng` is `control`.

        Raises `RelayError` when it does not answer, and `TransportError` where it cannot be sent to.
        """
        engine = cls(control)
        engine._socket = await UdpSocket.open(ipv6=control.is_ipv6, on_datagram=engine._take)
        try:
            await engine.request("ping", {})
        except BaseException:
            engine._socket.close()
            raise
        engine._looker = asyncio.get_running_loop().create_task(engine._look_for_ever())
        return engine

    def __str__(self) -> str:
        return f"rtpengine at {self._control}"

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> RtpengineStream:
        """A new stream, at the addresses `a` and `b`; where None at whichever rtpengine has.

        Raises `LocalAddressError` where it has no such address, `RelayError` when it refuses or is silent.
        """
        wanted = {Side.A: a, Side.B: b}
        families = {side: 4 if address is None else address.version for side, address in wanted.items()}
        stream = RtpengineStream(self, secrets.token_hex(_COOKIE_BYTES), families)
        self._streams.add(stream)
        try:
            await stream.tell(Side.A)
            for side, address in wanted.items():
                given = stream.ports(side).rtp.ip
                if address not in (None, given):
                    raise LocalAddressError(
                        f"{self} relays at {given}, not at {address}: "
                        f"start it with that address as its first --interface"
                    )
        except BaseException:
            await stream.close()
            raise
        return stream

    async def close(self) -> None:
        """Have rtpengine end every stream that is open."""
        if self._looker is not None:
            self._looker.cancel()
        for stream in list(self._streams):
            await stream.close()
        if self._socket is not None:
            self._socket.close()

    async def request(self, command: str, fields: Mapping[str, Json]) -> Answer:
        """Ask rtpengine for something, repeatedly for 3.75 s. Raises `RelayError`."""
        assert self._socket is not None
        cookie = secrets.token_hex(_COOKIE_BYTES)
        data = compose_request(cookie, command, fields)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[cookie] = answered
        try:
            for turn in range(_MOST_TRIES):
                self._socket.send(data, self._control)
                done, _ = await asyncio.wait([answered], timeout=_FIRST_WAIT_S * 2**turn)
                if done:
                    break
            else:
                raise RelayError(f"{self} does not answer {command}: is it running, with --listen-ng there?")
        except TransportError as error:
            raise RelayError(f"{self} cannot be asked: {error}") from error
        finally:
            del self._waiting[cookie]
        answer = answered.result()
        if answer.reason:
            raise RelayError(f"{self} refuses {command}: {answer.reason}")
        return answer

    async def end(self, stream: RtpengineStream) -> Answer | None:
        """End a stream, whose counts are in the answer; if rtpengine is silent, its own timeout ends it."""
        if stream not in self._streams:
            return None
        self._streams.remove(stream)
        try:
            return await self.request("delete", {"call-id": stream.name, "delete delay": 0})
        except RelayError as error:
            _log.warning("a stream was not ended: %s", error)
            return None

    def _take(self, data: bytes, source: Endpoint) -> None:
        if source != self._control:
            return
        try:
            answer = parse_answer(data)
        except DecodeError as error:
            _log.warning("%s said what is not understood: %s", self, error)
            return
        waiting = self._waiting.get(answer.cookie)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _look_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            for stream in list(self._streams):
                try:
                    await stream.look(now=loop.time())
                except RelayError as error:
                    _log.warning("no statistics: %s", error)
