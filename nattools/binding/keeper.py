"""Keeps public bindings true: any number of them, with one router client and one look at the network."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Self, Unpack

from nattools.binding.client import BoundSocket, LiveBinding, OnDatagram
from nattools.binding.machine import Ask, BindingMachine, Release
from nattools.binding.model import Claim, Method, Provider, SdpWords, Source
from nattools.binding.providers.configured import configured, usable_methods
from nattools.binding.providers.errand import Errand
from nattools.binding.providers.static import REFRESH_S
from nattools.binding.providers.stun import IntervalLearner, StunServers
from nattools.binding.settings import LEARN, PortRange, Settings, SettingWords, read_settings
from nattools.endpoint import Endpoint, IPAddress, split_host_port
from nattools.errors import BindingError, LocalAddressError, NatToolsError, TransportError
from nattools.net.changes import NetworkWatch
from nattools.net.transport import TransportTap
from nattools.net.udp import UdpSocket, local_address_towards, open_consecutive

if TYPE_CHECKING:
    from nattools.binding.providers.router import RouterProvider

_LOG = logging.getLogger(__name__)

_LEARNING_INTERVAL_S = 3.0
"""How often flows are refreshed while nobody knows yet how long the NAT keeps them."""
_LOOK_UP_AFTER_S = 60.0
"""A binding that is lost for so long has the STUN servers' names looked up again."""
_FAR_AWAY = {False: Endpoint.parse("192.0.2.1:9"), True: Endpoint.parse("[2001:db8::1]:9")}
"""To look up a route; nothing is sent."""
_ANY_IPV4 = IPv4Address(0)
_DYNAMIC_PORTS = PortRange(49152, 65535)  # RFC 6335 §6
_PAIR_ATTEMPTS = 64

_FindProvider = Callable[[Source, bool], Awaitable[Provider]]
_OpenSockets = Callable[[Sequence[LiveBinding]], Awaitable[Sequence[BoundSocket]]]


@dataclass(frozen=True, slots=True)
class BindingPair:
    """The two bindings of an RTP session. Where they are not consecutive, SDP must tell `rtcp` (RFC 3605)."""

    rtp: LiveBinding
    rtcp: LiveBinding

    @property
    def is_consecutive(self) -> bool:
        """Whether RTCP is where a peer expects it, one above an even port (RFC 3550 §11).

        Raises `BindingError` while one of them is lost.
        """
        rtp, rtcp = self.rtp.public, self.rtcp.public
        return rtp.port % 2 == 0 and rtcp == Endpoint(rtp.ip, rtp.port + 1)

    def sdp(self, *, session_id: int, version: int, **words: Unpack[SdpWords]) -> bytes:
        """As `PublicBinding.sdp`, and where RTCP is not where a peer looks for it, a=rtcp says so (RFC 3605).

        Raises `BindingError` while one of them is lost.
        """
        words.setdefault("rtcp", self.rtcp.public)
        return self.rtp.sdp(session_id=session_id, version=version, **words)


class _Kept:
    """A binding and what its providers are asked for it."""

    def __init__(
        self, find_provider: _FindProvider, *, on_datagram: OnDatagram | None, has_protocol: bool
    ) -> None:
        self.live = LiveBinding(on_need=self._needs, on_datagram=on_datagram, has_protocol=has_protocol)
        self.errands: dict[Source, Errand] = {}
        self._find_provider = find_provider
        self._loop = asyncio.get_running_loop()

    def begin(self, machine: BindingMachine, sock: BoundSocket, bound: Endpoint, local: Endpoint) -> None:
        """`bound` is where the socket is bound, perhaps to no address, and `local` where it really is."""
        self.machine, self.bound = machine, bound
        self.live.start(machine, sock, local)

    def ask_again(self, source: Source) -> None:
        """See whether what is held of `source` still holds."""
        errand = self.errands.get(source)
        if errand is not None and errand.is_holding:
            errand.ask()

    async def end(self) -> None:
        """Close it and give everything back."""
        self.live.close()
        await asyncio.gather(*(errand.end() for errand in self.errands.values()))

    def _needs(self, event: Ask | Release) -> None:
        errand = self.errands.get(event.source)
        if errand is None:
            errand = self.errands[event.source] = Errand(
                partial(self._find_provider, event.source, self.bound.is_ipv6),
                self.bound,
                on_claim=self._claimed,
                on_refusal=partial(self._refused, event.source),
            )
        if isinstance(event, Ask):
            errand.ask()
        else:
            errand.release()

    def _claimed(self, claim: Claim) -> None:
        self.machine.claim(claim, now=self._loop.time())
        self.live.pump()

    def _refused(self, source: Source, error: NatToolsError) -> None:
        self.machine.refuse(source, error, now=self._loop.time())
        self.live.pump()


class Keeper:
    """Makes bindings and keeps them until they are left. Make it with `Keeper.open`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._methods = usable_methods(settings)
        self._servers = StunServers(settings.stun_servers, self._servers_changed)
        self._providers = dict(configured(settings, self._methods))
        self._routers: dict[bool, RouterProvider] = {}
        self._opening = asyncio.Lock()
        self._exits = AsyncExitStack()
        self._kept: dict[_Kept, None] = {}
        self._ways_out: dict[bool, IPAddress | TransportError] = {}
        self._interval_s = _interval_s(settings)
        self._learning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._watch = NetworkWatch.open(self._network_changed)
        self._timer = self._loop.call_later(REFRESH_S, self._look_after)
        self._is_closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings | None = None) -> AsyncIterator[Self]:
        """A keeper by `settings`, or by the user's file and environment (`read_settings`).

        Nothing is sent before the first binding; leaving the context ends all that are still open. Raises
        `DecodeError` for settings that make no sense, and `BindingError` when no method has what it needs.
        """
        self = cls(read_settings(None, os.environ) if settings is None else settings)
        try:
            yield self
        finally:
            await self._close()

    @asynccontextmanager
    async def open_binding(
        self, local: Endpoint | str, *, on_datagram: OnDatagram | None = None
    ) -> AsyncIterator[LiveBinding]:
        """A socket at `local`, an address (perhaps no particular one) and a port, with its public endpoint.

        Port 0 is any that is free; one of `static_ports`, where these are several. What others send goes to
        `on_datagram(data, source)`, or to `recvfrom`. Raises `LocalAddressError` when the address or port
        cannot be had, and `BindingError` when no public endpoint can be. Leaving the context gives
        everything back.
        """
        local = _endpoint(local)
        forwarded = self._forwarded if not local.port else None
        ports = [local.port] if forwarded is None else _shuffled(range(forwarded.first, forwarded.last + 1))
        open_sockets = partial(_open_sockets, local, ports)
        is_fresh = not local.port and forwarded is None
        async with self._keeping(open_sockets, on_datagram=on_datagram, is_fresh=is_fresh) as (live,):
            yield live

    @asynccontextmanager
    async def bind_socket(
        self, sock: socket.socket, *, on_datagram: OnDatagram | None = None
    ) -> AsyncIterator[LiveBinding]:
        """The public endpoint of a UDP socket that is bound already, and stays its owner's.

        Meanwhile nobody else may read from it. Raises `LocalAddressError` where it is not bound,
        `TransportError` where it cannot be used, and `BindingError` when no public endpoint can be had.
        """

        async def adopt(lives: Sequence[LiveBinding]) -> list[UdpSocket]:
            return [await UdpSocket.adopt(sock, live.received, live.undelivered) for live in lives]

        async with self._keeping(adopt, on_datagram=on_datagram) as (live,):
            yield live

    @asynccontextmanager
    async def bind_transport(self, transport: asyncio.DatagramTransport) -> AsyncIterator[LiveBinding]:
        """The public endpoint of an asyncio transport; its protocol goes on getting what others send.

        Raises `TransportError` where the transport cannot be used, `BindingError` when none can be had.
        """

        async def put(lives: Sequence[LiveBinding]) -> list[TransportTap]:
            return [TransportTap.put(transport, eats=live.eats, on_lost=live.socket_ended) for live in lives]

        async with self._keeping(put, has_protocol=True) as (live,):
            yield live

    @asynccontextmanager
    async def bind_shared(self, share: Callable[[LiveBinding], BoundSocket]) -> AsyncIterator[LiveBinding]:
        """The public endpoint of a UDP socket that somebody else goes on reading.

        He offers each datagram to `LiveBinding.eats` first, and says by `socket_ended` when the socket is
        closed; `share` is given the binding and returns what its own datagrams are sent by. Raises
        `TransportError` where the socket cannot be used, `BindingError` when no endpoint can be had.
        """

        async def put(lives: Sequence[LiveBinding]) -> list[BoundSocket]:
            return [share(live) for live in lives]

        async with self._keeping(put, has_protocol=True) as (live,):
            yield live

    @asynccontextmanager
    async def open_pair(self, local: Endpoint | str) -> AsyncIterator[BindingPair]:
        """Two sockets for RTP and RTCP: an even port of this machine's and the next (RFC 3550 §11).

        Port 0 is any such pair that is free, of `static_ports` where these are several. Raises what
        `open_binding` does; an odd port is a `LocalAddressError`.
        """
        local = _endpoint(local)
        if local.port % 2:
            raise LocalAddressError(f"RTP has an even port, and RTCP the next one: {local.port} is odd")
        forwarded = self._forwarded if not local.port else None
        ports: Sequence[int] = [local.port]
        if forwarded is not None:
            ports = _shuffled(forwarded.even_ports)
        elif not local.port:
            ports = _shuffled(_DYNAMIC_PORTS.even_ports)[:_PAIR_ATTEMPTS]
        open_sockets = partial(_open_sockets, local, ports)
        is_fresh = not local.port and forwarded is None
        methods = self._methods_of_pairs()
        async with self._keeping(open_sockets, count=2, is_fresh=is_fresh, methods=methods) as (rtp, rtcp):
            yield BindingPair(rtp, rtcp)

    @property
    def _forwarded(self) -> PortRange | None:
        """The ports that an administrator forwards, where there is a choice and one should be taken."""
        ports = self._settings.static_ports
        return ports if Method.STATIC in self._methods and ports and ports.first < ports.last else None

    def _methods_of_pairs(self) -> tuple[Method, ...]:
        """Without static, where one port is forwarded. Raises `BindingError` when there is nothing else."""
        ports = self._settings.static_ports
        if ports is None or ports.first < ports.last:
            return self._methods
        methods = tuple(method for method in self._methods if method is not Method.STATIC)
        if not methods:
            raise BindingError(
                f"RTP and RTCP need two ports, and static_ports is {ports}: set 9000-9001, say"
            )
        return methods

    @asynccontextmanager
    async def _keeping(
        self,
        open_sockets: _OpenSockets,
        *,
        count: int = 1,
        on_datagram: OnDatagram | None = None,
        has_protocol: bool = False,
        is_fresh: bool = False,
        methods: Sequence[Method] = (),
    ) -> AsyncIterator[list[LiveBinding]]:
        """Open `count` sockets, find out about them, and end it all."""
        if self._is_closed:
            raise BindingError("this keeper of bindings is closed: open another")
        all_kept = [
            _Kept(self._find_provider, on_datagram=on_datagram, has_protocol=has_protocol)
            for _ in range(count)
        ]
        sockets: Sequence[BoundSocket] = ()
        try:
            sockets = await open_sockets([kept.live for kept in all_kept])
            for kept, sock in zip(all_kept, sockets, strict=True):
                self._begin(kept, sock, methods or self._methods, is_fresh=is_fresh)
            for kept in all_kept:
                await kept.live.acquired()
            yield [kept.live for kept in all_kept]
        finally:
            for kept in all_kept:
                kept.live.close()
            for sock in sockets:
                sock.close()
            await asyncio.gather(*(self._end(kept) for kept in all_kept))

    def _begin(self, kept: _Kept, sock: BoundSocket, methods: Sequence[Method], *, is_fresh: bool) -> None:
        bound = self._bound(sock)
        try:
            local = self._local(bound)
        except TransportError as error:
            raise BindingError(f"no public endpoint for {bound}: {error}") from error
        now = self._loop.time()
        machine = BindingMachine(
            local,
            methods=methods,
            servers=None,
            entropy=secrets.token_bytes,
            now=now,
            keepalive_s=self._interval_s,
            side_by_side=self._settings.side_by_side,
            fresh_port=is_fresh,
        )
        for destination in self._settings.keepalive_to:
            if destination.is_ipv6 == bound.is_ipv6:
                machine.keep_open(destination, self._settings.keepalive, now=now)
        self._kept[kept] = None
        kept.begin(machine, sock, bound, local)
        self._tell_servers(kept)

    async def _end(self, kept: _Kept) -> None:
        await kept.end()
        self._kept.pop(kept, None)

    # Where a socket is

    def _bound(self, sock: BoundSocket) -> Endpoint:
        """Where it is bound. One for both families counts as IPv4 where there is any: that has the NATs."""
        local = sock.local
        is_for_both = sock.is_dual_stack and local.is_ipv6 and local.ip.is_unspecified
        if is_for_both and not isinstance(self._way_out(ipv6=False), TransportError):
            return Endpoint(_ANY_IPV4, local.port)
        return local

    def _local(self, bound: Endpoint) -> Endpoint:
        """Where it really is. Raises `TransportError` where this machine has no such address or way out."""
        if bound.ip.is_unspecified:
            way_out = self._way_out(ipv6=bound.is_ipv6)
            if isinstance(way_out, TransportError):
                raise way_out
            return Endpoint(way_out, bound.port)
        try:
            local_address_towards(bound, local_address=bound.ip)
        except LocalAddressError as error:
            raise LocalAddressError(f"{bound.ip} is no longer an address of this machine") from error
        except TransportError as error:
            _LOG.debug("%s is looked for in vain: %s", bound.ip, error)  # the servers will tell
        return bound

    def _way_out(self, *, ipv6: bool) -> IPAddress | TransportError:
        """The address that packets leave from, until something changes; or why none do."""
        if ipv6 not in self._ways_out:
            try:
                self._ways_out[ipv6] = self._find_way_out(ipv6)
            except TransportError as error:
                self._ways_out[ipv6] = error
        return self._ways_out[ipv6]

    def _find_way_out(self, ipv6: bool) -> IPAddress:
        towards = [*(self._servers.known(ipv6=ipv6) or ())[:1], *_peer(self._settings, ipv6), _FAR_AWAY[ipv6]]
        for destination in towards:
            try:
                return local_address_towards(destination)
            except TransportError as error:
                _LOG.debug("%s", error)
        raise TransportError(f"this machine has no IPv{6 if ipv6 else 4} route: connect it to a network")

    # What changes

    def _network_changed(self, reason: str) -> None:
        former, self._ways_out = self._ways_out, {}
        self._servers.look_up_again()
        for kept in list(self._kept):
            self._move(kept, reason)
            kept.ask_again(Source.VPN)
        if any(str(self._way_out(ipv6=ipv6)) != str(way_out) for ipv6, way_out in former.items()):
            self._learn_anew()

    def _move(self, kept: _Kept, reason: str) -> None:
        try:
            local = self._local(kept.bound)
        except TransportError as error:
            kept.live.network_changed(None, str(error))
        else:
            kept.live.network_changed(local, reason)

    def _servers_changed(self, ipv6: bool) -> None:
        self._ways_out.pop(ipv6, None)
        for kept in [kept for kept in self._kept if kept.bound.is_ipv6 == ipv6]:
            way_out = self._way_out(ipv6=ipv6)
            is_elsewhere = kept.bound.ip.is_unspecified and kept.live.local.ip != way_out
            if is_elsewhere and not isinstance(way_out, TransportError):
                self._move(kept, f"the way to the STUN servers begins at {way_out}")
            self._tell_servers(kept)

    def _tell_servers(self, kept: _Kept) -> None:
        """Have it ask the servers, or know why there are none; nothing while they are still looked up."""
        ipv6 = kept.bound.is_ipv6
        servers = self._servers.known(ipv6=ipv6)
        if servers is not None:
            why_none = self._servers.failure(ipv6=ipv6)
            kept.machine.use_servers(servers, now=self._loop.time(), why_none=why_none)
            kept.live.pump()
            self._learn_from(kept)

    def _look_after(self) -> None:
        """Done every minute: dynamic names, and the servers' where somebody cannot reach them."""
        now = self._loop.time()
        self._timer = self._loop.call_later(REFRESH_S, self._look_after)
        lost_at = [kept.live.lost_at for kept in self._kept]
        if any(at is not None and now >= at + _LOOK_UP_AFTER_S for at in lost_at):
            self._servers.look_up_again()
        for kept in self._kept:
            kept.ask_again(Source.STATIC)

    # How often flows are refreshed

    def _learn_from(self, kept: _Kept) -> None:
        """Have it measured, once, where that is wanted and there is a server to do it with."""
        servers = self._servers.known(ipv6=kept.bound.is_ipv6)
        if self._settings.keepalive_interval == LEARN and servers and self._learning is None:
            learner = IntervalLearner(self._set_interval)
            self._learning = self._spawn(learner.learn(servers, kept.live.local.ip))

    def _learn_anew(self) -> None:
        """What was learned of one network's NAT is nothing to go by in another."""
        if self._learning is None:
            return
        self._learning.cancel()
        self._learning = None
        self._set_interval(_LEARNING_INTERVAL_S)
        for kept in self._kept:
            self._learn_from(kept)

    def _set_interval(self, interval_s: float) -> None:
        if interval_s == self._interval_s:
            return
        self._interval_s = interval_s
        for kept in self._kept:
            kept.machine.set_keepalive(interval_s, now=self._loop.time())
            kept.live.pump()

    # Who is asked

    async def _find_provider(self, source: Source, ipv6: bool) -> Provider:
        """The provider, the router's made when it is first asked for. Raises `LocalAddressError`."""
        if source is not Source.ROUTER:
            return self._providers[source]
        # a fifth of all that there is to load, which a phone without a router need not wait for
        from nattools.binding.providers.router import RouterProvider, protocols_of
        from nattools.mapping.client import MappingClient

        async with self._opening:
            if ipv6 not in self._routers:
                settings = self._settings
                client = await self._exits.enter_async_context(
                    MappingClient.open(
                        protocols=protocols_of(self._methods),
                        gateway=settings.router_gateway,
                        interface=settings.router_interface,
                        ipv6=ipv6,
                        state_directory=settings.state_directory,
                    )
                )
                router = self._routers[ipv6] = RouterProvider(client, lease_s=settings.router_lease)
                self._spawn(self._pass_on_news(router))
        return self._routers[ipv6]

    async def _pass_on_news(self, router: RouterProvider) -> None:
        async for bound, news in router.news():
            for kept in [kept for kept in self._kept if kept.bound == bound]:
                errand = kept.errands.get(Source.ROUTER)
                if errand is not None:
                    errand.told(news)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("the keeping of bindings has a bug: %r", error, exc_info=error)

    async def _close(self) -> None:
        self._is_closed = True
        self._watch.close()
        self._timer.cancel()
        await asyncio.gather(*(self._end(kept) for kept in list(self._kept)))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._servers.close()
        await self._exits.aclose()


@asynccontextmanager
async def open_binding(
    local: Endpoint | str,
    *,
    on_datagram: OnDatagram | None = None,
    settings: Settings | None = None,
    **words: Unpack[SettingWords],
) -> AsyncIterator[LiveBinding]:
    """`Keeper.open_binding` with a keeper of its own, by `settings` and over them `words`."""
    async with (
        Keeper.open(_settings(settings, **words)) as keeper,
        keeper.open_binding(local, on_datagram=on_datagram) as binding,
    ):
        yield binding


@asynccontextmanager
async def bind_socket(
    sock: socket.socket,
    *,
    on_datagram: OnDatagram | None = None,
    settings: Settings | None = None,
    **words: Unpack[SettingWords],
) -> AsyncIterator[LiveBinding]:
    """`Keeper.bind_socket` with a keeper of its own, by `settings` and over them `words`."""
    async with (
        Keeper.open(_settings(settings, **words)) as keeper,
        keeper.bind_socket(sock, on_datagram=on_datagram) as binding,
    ):
        yield binding


@asynccontextmanager
async def bind_transport(
    transport: asyncio.DatagramTransport,
    *,
    settings: Settings | None = None,
    **words: Unpack[SettingWords],
) -> AsyncIterator[LiveBinding]:
    """`Keeper.bind_transport` with a keeper of its own, by `settings` and over them `words`."""
    async with (
        Keeper.open(_settings(settings, **words)) as keeper,
        keeper.bind_transport(transport) as binding,
    ):
        yield binding


@asynccontextmanager
async def open_pair(
    local: Endpoint | str, *, settings: Settings | None = None, **words: Unpack[SettingWords]
) -> AsyncIterator[BindingPair]:
    """`Keeper.open_pair` with a keeper of its own, by `settings` and over them `words`."""
    async with Keeper.open(_settings(settings, **words)) as keeper, keeper.open_pair(local) as pair:
        yield pair


def _settings(settings: Settings | None, **words: Unpack[SettingWords]) -> Settings:
    return (read_settings(None, os.environ) if settings is None else settings).with_words(**words)


def _endpoint(local: Endpoint | str) -> Endpoint:
    return Endpoint.parse(local, default_port=0) if isinstance(local, str) else local


def _interval_s(settings: Settings) -> float:
    interval_s = settings.keepalive_interval
    return _LEARNING_INTERVAL_S if interval_s == LEARN else float(interval_s)


def _peer(settings: Settings, ipv6: bool) -> list[Endpoint]:
    """The VPN's peer, if it is an IP address of that family."""
    try:
        ip = ip_address(split_host_port(settings.vpn_peer or "")[0])
    except (NatToolsError, ValueError):
        return []
    return [Endpoint(ip, 0)] if (ip.version == 6) is ipv6 else []


def _shuffled(ports: range) -> list[int]:
    return secrets.SystemRandom().sample(ports, len(ports))


async def _open_sockets(
    local: Endpoint, ports: Sequence[int], lives: Sequence[LiveBinding]
) -> list[UdpSocket]:
    handlers = [(live.received, live.undelivered) for live in lives]
    return await open_consecutive(local.ip, ports, handlers)
