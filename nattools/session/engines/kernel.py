"""The relay that the kernel carries: once it is known whose packets a stream is made of, nftables has it.

Sockets of this process take the first packets, and each stream's `Crossing` decides by them, as without the
kernel. A flow that it has decided comes into the kernel, and out of it when it decides otherwise. The sockets
go on where the kernel cannot: where a flow changes its address family or has RTCP apart on one side only, and
where one of its ends is on this very machine.

The flows are in the kernel and nowhere else, so they go on without this process, and the next one finds them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, RelayError, TransportError
from nattools.machine import Entropy
from nattools.net.udp import local_address_towards, unbound_socket
from nattools.session.crossing import Foreign
from nattools.session.engines.kernel_flows import KernelFlows
from nattools.session.engines.nft import Nft
from nattools.session.engines.sockets import Eats, OnClosed, SocketEngine, SocketStream
from nattools.session.latch import WINDOW_S
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, PortPair, Side, SideStatistics
from nattools.session.ruleset import Heard, KernelFlow, Label

_log = logging.getLogger(__name__)

_NAME_BYTES = 6
_BACK_S = 1.0
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class KernelStream:
    """One stream, in the kernel as far as it can be. Make it with `KernelEngine.open_stream`."""

    def __init__(
        self, engine: KernelEngine, sockets: SocketStream, name: str, *, is_found: bool = False
    ) -> None:
        self.name = name
        """What the stream is called in the kernel, where it is known by that after a restart."""
        self.sockets = sockets
        """What takes those packets that the kernel leaves."""
        self._engine = engine
        self._is_found = is_found
        self._told_at = dict.fromkeys(Side, float("-inf"))
        self._back_until = dict.fromkeys(Side, float("-inf"))

    def ports(self, side: Side) -> PortPair:
        """Where the relay receives from `side`."""
        return self.sockets.ports(side)

    def expect(self, side: Side, expectation: Expectation) -> None:
        """Take what signalling says of `side`."""
        self._told_at[side] = asyncio.get_running_loop().time()
        self._back_until[side] = float("-inf")
        self.sockets.expect(side, expectation)

    def statistics(self, side: Side) -> SideStatistics:
        """What has come from `side`; what the kernel carried is counted every 2 s, without its jitter."""
        return self.sockets.statistics(side)

    def tap(self, name: str, eats: Eats) -> None:
        """As `SocketStream.tap`: what the kernel carries is not seen."""
        self.sockets.tap(name, eats)

    def on_closed(self, call: OnClosed) -> None:
        """As `SocketStream.on_closed`."""
        self.sockets.on_closed(call)

    def send(self, name: str, data: bytes, destination: Endpoint) -> None:
        """As `SocketStream.send`. Raises `TransportError`."""
        self.sockets.send(name, data, destination)

    def is_carried(self, side: Side, *, rtcp: bool = False) -> bool:
        """Whether the kernel carries RTP (or RTCP) that comes from `side`."""
        return self._engine.is_carried(Label(self.name, side, rtcp))

    @property
    def is_known(self) -> bool:
        """Whether it is known what it should be; of one that was found, once both sides are told."""
        return not self._is_found or min(self._told_at.values()) > float("-inf")

    def is_back(self, side: Side, *, now: float) -> bool:
        """Whether the sockets shall carry the RTP of `side` for a moment, though the kernel could."""
        return now < self._back_until[side]

    def take_back(self, side: Side, *, now: float) -> float | None:
        """Let the sockets see whether `side` still speaks, once after each word of signalling about it.

        Returns for how many seconds, or None where there is no need.
        """
        told_at = self._told_at[side]
        if now - told_at >= WINDOW_S or self._back_until[side] > told_at:
            return None
        self._back_until[side] = now + _BACK_S
        return _BACK_S

    async def close(self) -> None:
        """Take the stream out of the kernel and give its ports back; a second time it does nothing."""
        await self._engine.take_out(self)
        await self.sockets.close()


class KernelEngine:
    """Relays through nftables. Make it with `start`, end it with `close`.

    `found` are the streams of an engine of that name which ended without closing them: their packets go on.
    Whoever starts the engine either closes each of them, or tells it again what both its sides expect; until
    then it stays as it is.

    A firewall of the machine must let pass what is forwarded to the UDP ports of the relay.
    """

    def __init__(
        self, address: IPAddress, ports: PortPairs, *, name: str, nft: Nft, entropy: Entropy
    ) -> None:
        """Use `start` instead."""
        self.found: tuple[KernelStream, ...] = ()
        self._version = address.version
        self._streams: dict[str, KernelStream] = {}
        self._names: dict[SocketStream, str] = {}
        self._sockets = SocketEngine(
            address, ports, on_change=self._has_changed, on_foreign=self._has_foreign, entropy=entropy
        )
        self._flows = KernelFlows(name, nft, on_carried=self._is_carried, on_heard=self._was_heard)
        self._lock: socket.socket | None = None

    @classmethod
    async def start(
        cls,
        address: IPAddress,
        ports: PortPairs,
        *,
        name: str = "nattools_relay",
        entropy: Entropy = secrets.token_bytes,
    ) -> KernelEngine:
        """Relay at `address` where no other is asked for, by the nftables tables `ip name` and `ip6 name`.

        Raises `RelayError` without nft, without CAP_NET_ADMIN, without forwarding, and while another process
        relays by that name; `DecodeError` where that cannot name a table.
        """
        engine = cls(address, ports, name=name, nft=Nft(), entropy=entropy)
        engine._lock = _acquire_name(name)
        try:
            await engine._begin()
        except BaseException:
            engine._lock.close()
            raise
        return engine

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> KernelStream:
        """A new stream with ports of its own at the addresses `a` and `b`; the engine's own where None.

        Raises `LocalAddressError` where no ports are to be had.
        """
        sockets = await self._sockets.open_stream(a=a, b=b)
        return self._keep(sockets, secrets.token_hex(_NAME_BYTES))

    async def close(self) -> None:
        """Close every stream that is open, and take the tables out of the kernel."""
        await self._flows.close()
        self._streams.clear()
        self._names.clear()
        self.found = ()
        await self._sockets.close()
        if self._lock is not None:
            self._lock.close()

    def is_carried(self, label: Label) -> bool:
        """Whether the kernel has that flow."""
        return self._flows.is_carried(label)

    async def settle(self) -> None:
        """Wait until the kernel has, or has refused, all that was decided."""
        await self._flows.settle()

    async def look(self) -> None:
        """Count now what the kernel has carried, before the 2 s are over. Raises `RelayError`."""
        await self._flows.look()

    async def take_out(self, stream: KernelStream) -> None:
        """Take the flows of `stream` out of the kernel."""
        if stream.name not in self._streams:
            return
        del self._names[stream.sockets]
        self.found = tuple(it for it in self.found if it is not stream)
        for label in _labels(stream.name):
            self._flows.want(label, None)
        await self._flows.settle()
        self._streams.pop(stream.name, None)

    async def _begin(self) -> None:
        setting = _FORWARDING[self._version]
        if not _forwards(self._version):
            raise RelayError(
                f"this machine does not forward IPv{self._version}, so its kernel cannot relay: "
                f"run sysctl -w {setting.replace('/', '.')}=1"
            )
        flows = await self._flows.add_version(self._version)
        other = 10 - self._version
        if _forwards(other):
            try:
                flows += await self._flows.add_version(other)
            except RelayError as error:
                _log.warning("streams over IPv%d stay with the sockets: %s", other, error)
        by_name: dict[str, list[KernelFlow]] = {}
        for flow in flows:
            by_name.setdefault(flow.label.stream, []).append(flow)
        for name, those in by_name.items():
            await self._go_on(name, those)
        await self._flows.settle()

    async def _go_on(self, name: str, flows: list[KernelFlow]) -> None:
        """Open the sockets of a stream that the kernel has; where they cannot be had, it ends."""
        try:
            sockets = await self._sockets.open_stream(ports=_ports_of(flows))
        except TransportError as error:
            _log.warning("the stream %s, which the kernel has, is ended: %s", name, error)
            for flow in flows:
                self._flows.want(flow.label, None)
            return
        for side in Side:
            latch = sockets.crossing.latches[side]
            latch.resume(_source(flows, side, rtcp=False), _source(flows, side, rtcp=True))
        self.found += (self._keep(sockets, name, is_found=True),)
        for flow in flows:
            self._is_carried(flow.label, True)

    def _keep(self, sockets: SocketStream, name: str, *, is_found: bool = False) -> KernelStream:
        stream = KernelStream(self, sockets, name, is_found=is_found)
        self._streams[name], self._names[sockets] = stream, name
        return stream

    def _has_changed(self, sockets: SocketStream) -> None:
        """A source or destination may be another: want what follows from it."""
        stream = self._streams.get(self._names.get(sockets, ""))
        if stream is not None and stream.is_known:
            now = asyncio.get_running_loop().time()
            for label in _labels(stream.name):
                stays = stream.is_back(label.side, now=now) and not label.is_rtcp
                self._flows.want(label, None if stays else self._flow(label, sockets))

    def _flow(self, label: Label, sockets: SocketStream) -> KernelFlow | None:
        """The flow of that label as it is at the moment, None where there is none for the kernel."""
        crossing, other = sockets.crossing, label.side.other
        source = crossing.source(label.side, rtcp=label.is_rtcp)
        destination = crossing.destination(other, rtcp=label.is_rtcp)
        if source is None or destination is None or crossing.converts_mux:
            return None
        if source.ip.version not in self._flows.versions or not (_is_away(source) and _is_away(destination)):
            return None
        pairs = sockets.ports(label.side), sockets.ports(other)
        arrives_at, leaves_from = (pair.rtcp if label.is_rtcp else pair.rtp for pair in pairs)
        try:
            return KernelFlow(label, source, arrives_at, leaves_from, destination)
        except DecodeError:  # it changes its address family
            return None

    def _has_foreign(self, sockets: SocketStream, foreign: Foreign) -> None:
        """Somebody else sent to a side. If he may be heard now, the sockets must know who still speaks."""
        name, loop = self._names.get(sockets, ""), asyncio.get_running_loop()
        stream = self._streams.get(name)
        if stream is None or foreign.is_rtcp or not self.is_carried(Label(name, foreign.side)):
            return
        pause_s = stream.take_back(foreign.side, now=loop.time())
        if pause_s is not None:
            self._has_changed(sockets)
            loop.call_later(pause_s, self._has_changed, sockets)

    def _is_carried(self, label: Label, is_carried: bool) -> None:
        stream = self._streams.get(label.stream)
        if stream is None or label.is_rtcp:
            return
        now = asyncio.get_running_loop().time()
        stream.sockets.crossing.latches[label.side].carried_until = float("inf") if is_carried else now

    def _was_heard(self, label: Label, heard: Heard) -> None:
        stream = self._streams.get(label.stream)
        if stream is None or label.is_rtcp:
            return
        stream.sockets.crossing.latches[label.side].relayed(
            heard.packets,
            heard.octets,
            ssrc=heard.ssrc,
            sequence=heard.sequence,
            now=asyncio.get_running_loop().time(),
        )


def _acquire_name(name: str) -> socket.socket:
    """Hold the name as long as this process lives, in the network namespace that the tables are in too."""
    lock = unbound_socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0nattools/{name}")
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            raise RelayError(
                f"another process relays by the nftables tables {name}: end it, or choose another name"
            ) from error
        raise RelayError(f"the name {name} cannot be held: {error.strerror}") from error
    return lock


def _forwards(version: int) -> bool:
    try:
        return Path("/proc/sys", _FORWARDING[version]).read_text().strip() != "0"
    except OSError:  # no such IP version
        return False


def _labels(name: str) -> Iterable[Label]:
    return [Label(name, side, rtcp) for side in Side for rtcp in (False, True)]


def _is_away(endpoint: Endpoint) -> bool:
    """Whether it is on another machine, and not on one that only its link can name."""
    ip = endpoint.ip
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    try:
        return local_address_towards(endpoint) != ip
    except TransportError:
        return False


def _ports_of(flows: Iterable[KernelFlow]) -> Mapping[Side, PortPair]:
    """The ports of a stream, from any of its flows."""
    ports: dict[Side, PortPair] = {}
    for flow in flows:
        for side, at in ((flow.label.side, flow.arrives_at), (flow.label.side.other, flow.leaves_from)):
            even = at.port - 1 if flow.label.is_rtcp else at.port
            ports[side] = PortPair(at.with_port(even), at.with_port(even + 1))
    return ports


def _source(flows: Iterable[KernelFlow], side: Side, *, rtcp: bool) -> Endpoint | None:
    """Where RTP (or RTCP) of `side` comes from."""
    return next((it.source for it in flows if it.label.side is side and it.label.is_rtcp is rtcp), None)
