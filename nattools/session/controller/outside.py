"""The outside of an ALG: one UDP socket with a public endpoint, by which all its phones look like one phone.

What leaves by it passes a `Disguise` (no Record-Route of ours is seen outside), then `Renewal` (REGISTER and
re-INVITE after a change), then `Rewriter` (public endpoints into Via, Contact and SDP); what comes in passes
them the other way round. So the proxy knows nothing of public endpoints.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from ipaddress import IPv4Address
from typing import Self

from nattools.binding.keeper import Keeper
from nattools.binding.model import PublicBinding
from nattools.binding.settling import Settling
from nattools.binding.sip_flows import SipFlows
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    BindingError,
    DecodeError,
    LocalAddressError,
    NatToolsError,
    RelayError,
    TransportError,
)
from nattools.machine import Transmit
from nattools.net.udp import endpoint_of, local_address_towards, socket_address, unbound_socket
from nattools.session.controller.kept_binding import KeptBinding
from nattools.session.controller.outside_media import PublicEngine, PublicSide
from nattools.session.controller.wires import Taker
from nattools.session.disguise import Disguise
from nattools.session.engines.kernel import KernelEngine
from nattools.session.engines.sockets import SocketEngine
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.keyring import Keyring
from nattools.session.location import ContactBinding
from nattools.session.relay import MediaEngine
from nattools.session.settings import GateSettings
from nattools.session.users import Users
from nattools.sip.direct import Calls, Ended
from nattools.sip.learning import Learned
from nattools.sip.message import SipMessage
from nattools.sip.news import in_words, is_trouble
from nattools.sip.renewal import NeedsPhone, Renewal, RenewalEvent
from nattools.sip.rewriter import MediaUnbound, Rewriter, RewriterEvent
from nattools.sip.uri import SIP_PORT
from nattools.stun.uri import PORT as STUN_PORT

OUTSIDE = "outside"
"""The name of its listener."""
RETRY_S = 30.0
"""So long after it was looked for in vain, the public endpoint is looked for again."""

_OTHER_PORT = 5062
_FIRST_S = 3.0
_LOST_S = 3.0
_MOST_SERVERS = 64
_MOST_PHONES = 1024
_MOST_CALLS = 4096
_MOST_WARNING = 200
_BLANK = b"\r\n\t \0"
_MOST_STUN_TYPE = 3  # the first byte of STUN (RFC 8489 §5), and of no SIP message
_FAR_AWAY = Endpoint.parse("192.0.2.1:9")
"""To look up a route; nothing is sent."""
_GO_ON_ANYWAY = frozenset({"ACK", "CANCEL", "OPTIONS"})

_log = logging.getLogger(__name__)

Refusal = tuple[int, str, tuple[tuple[str, str], ...]]


class Outside:
    """The outside socket and its binding. Make it with `Outside.open`, end it with `close`."""

    def __init__(
        self, sock: socket.socket, local: Endpoint, taker: Taker, keeper: Keeper, users: Users | None
    ) -> None:
        """Use `open` instead."""
        self.listener = Listener(OUTSIDE, "UDP", local)
        """For the proxy, which thinks that nothing is between this socket and the world."""
        self._socket = sock
        self._bound = endpoint_of(sock.getsockname())
        self._is_in_kernel = False
        self._taker = taker
        self._keeper = keeper
        self._digest = None if users is None else Keyring(users, entropy=secrets.token_bytes)
        self._exits = AsyncExitStack()
        self._loop = asyncio.get_running_loop()
        self._trouble = "its public endpoint is not known yet"
        self._is_known = asyncio.Event()
        self._disguise = Disguise(local, lambda _host, _port: False, self._local_media)
        self._kept: KeptBinding | None = None
        self._machines: _Machines | None = None
        self._engine: PublicEngine | None = None
        self._known_servers: set[Endpoint] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._settling = Settling(self._sockets, self._renew)
        self._task = asyncio.create_task(self._look_for_binding())

    @classmethod
    async def open(cls, settings: GateSettings, taker: Taker, users: Users | None = None) -> Self:
        """Open the socket and look for its public endpoint; what arrives goes to `taker`, as from any wire.

        Where there is none it is looked for again and again, and `refusal_of` says so. With the passwords of
        `users` it can register them anew after a change, whatever the registrar asks for. Raises
        `LocalAddressError` where the port cannot be had, `TransportError` where no way leads outside, and
        `BindingError` where no method for a public endpoint has what it needs.
        """
        sock = _bind(settings)
        async with AsyncExitStack() as exits:
            exits.callback(sock.close)
            bound = endpoint_of(sock.getsockname())
            ip = _way_out(settings) if bound.ip.is_unspecified else bound.ip
            keeper = await exits.enter_async_context(Keeper.open(settings.binding))
            self = cls(sock, Endpoint(ip, bound.port), taker, keeper, users)
            exits.push_async_callback(self._end)
            try:
                async with asyncio.timeout(_FIRST_S):
                    await self._is_known.wait()
            except TimeoutError:
                _log.info("the public endpoint of %s is still looked for", self.listener.local)
            self._exits = exits.pop_all()
        return self

    def join(self, flows: Flows) -> None:
        """Know from `flows` what the whole proxy is."""
        self._disguise.is_own = flows.is_own

    def keep_servers(self, bindings: Iterable[ContactBinding]) -> None:
        """Keep the flows open to those who know the phones from before a restart: a NAT forgets them."""
        self._known_servers.update(binding.server for binding in bindings if binding.server is not None)
        if self._machines is not None:
            self._keep_known_servers(self._machines)

    def _keep_known_servers(self, machines: _Machines) -> None:
        while self._known_servers:
            machines.flows.keep_server(self._known_servers.pop())

    @property
    def public(self) -> Endpoint | None:
        """By what the world knows it; None while it is not known."""
        return None if self._kept is None or self._kept.binding is None else self._kept.binding.public

    @property
    def address(self) -> IPAddress:
        """What the ports of media that face outside are bound to: no particular address, as the socket is.

        So they go on where this machine gets another one. The kernel relays between real addresses alone.
        """
        bound = self._bound
        if not self._is_in_kernel or not bound.ip.is_unspecified:
            return bound.ip
        binding = None if self._kept is None else self._kept.binding
        return self.listener.local.ip if binding is None else binding.local.ip

    def placed(self, local: Endpoint) -> Endpoint:
        """How the proxy and the media name a port that faces outside: by the address of the listener."""
        return Endpoint(self.listener.local.ip, local.port) if local.ip.is_unspecified else local

    def refusal_of(self, request: SipMessage) -> Refusal | None:
        """How to answer a request from inside that cannot go out, since nobody could answer it; or None."""
        trouble = self._trouble_now()
        if not trouble or request.to_tag is not None or request.method in _GO_ON_ANYWAY:
            return None
        warning = f'399 natgate "{_quotable(trouble)}"'
        return 503, "No Public Endpoint", (("Retry-After", f"{RETRY_S:.0f}"), ("Warning", warning))

    def engine(self, engine: MediaEngine) -> PublicEngine:
        """An engine whose streams have public endpoints on the sides that face outside (address None).

        Raises `RelayError` for one whose sockets are not in this process.
        """
        if not isinstance(engine, SocketEngine | KernelEngine):
            raise RelayError(
                f"the ports of {type(engine).__name__} can have no public endpoint: choose another"
            )
        self._is_in_kernel = isinstance(engine, KernelEngine)
        self._engine = PublicEngine(engine, self._keeper, self)
        return self._engine

    async def close(self) -> None:
        """Give everything back."""
        await self._exits.aclose()

    # What passes

    def send(self, transmit: Transmit) -> None:
        """Send what the proxy has for outside; where that cannot be, the taker is told."""
        machines, destination = self._machines, transmit.destination
        if machines is None:
            self._taker.failed(transmit)
            return
        hidden = self._disguise.hide(transmit.data)
        message = machines.renewal.outgoing(hidden, destination, now=self._loop.time())
        if not self._dispatch(machines, message, destination):
            self._taker.failed(transmit)
        elif _begins_something(message):
            machines.flows.keep_server(destination)
        machines.passed(message, is_incoming=False)
        self._pump()

    def _arrived(self, data: bytes, source: Endpoint) -> None:
        machines, flow = self._machines, Flow(OUTSIDE, source)
        if machines is None:  # nobody can have been told where it is
            return
        if not data.strip(_BLANK):
            self._taker.heard(flow)
            return
        if not self._taker.admits(data, source) or data[0] <= _MOST_STUN_TYPE:
            return
        seen = self._disguise.localise(machines.rewriter.incoming(data, source))
        message = machines.renewal.incoming(seen, source, now=self._loop.time())
        machines.passed(data, is_incoming=True)
        self._pump()
        if message is not None:
            self._taker.take(self._disguise.restore(message), flow)

    def _dispatch(self, machines: _Machines, message: bytes, destination: Endpoint) -> bool:
        data = machines.rewriter.outgoing(self._disguise.address(message), destination)
        assert self._kept is not None, "machines come with a binding"
        assert self._kept.live is not None, "and a binding with a socket"
        try:
            self._kept.live.sendto(data, destination)
        except TransportError as error:
            _log.info("%s", error)
            return False
        return True

    def _pump(self) -> None:
        """Send what there is to send, say what there is to say, and set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        machines = self._machines
        if machines is None:
            return
        rewriter, renewal, now = machines.rewriter, machines.renewal, self._loop.time()
        news: list[RewriterEvent | RenewalEvent] = []
        while (event := rewriter.next_event()) is not None:
            news.append(event)
            if isinstance(event, Learned):
                self._disguise.publish(event.endpoint)
                renewal.binding_changed(event.previous, event.endpoint, server=event.server, now=now)
        for transmit in renewal.transmits():
            self._dispatch(machines, transmit.data, transmit.destination)
        while (told := renewal.next_event()) is not None:
            news.append(told)
        for each in news:
            _log.log(logging.WARNING if is_trouble(each) else logging.INFO, "%s", _in_words(each))
        timeout_at = renewal.timeout_at()
        if timeout_at is not None:
            self._timer = self._loop.call_at(timeout_at, self._timed_out)

    def _timed_out(self) -> None:
        if self._machines is not None:
            self._machines.renewal.handle_timeout(now=self._loop.time())
            self._pump()

    # What changes

    def opened(self, side: PublicSide) -> None:
        """The side of a stream has public endpoints."""
        if self._machines is not None and side.rtp.binding is not None:
            self._machines.rewriter.add_media(side.rtp.binding, side.rtcp.binding)

    def closed(self, side: PublicSide) -> None:
        """The side of a stream is no more."""
        self._settling.forget(side.rtp, side.rtcp)
        if self._machines is not None:
            self._machines.rewriter.remove_media(side.local.port)

    def changed(self, side: PublicSide, kept: KeptBinding, former: PublicBinding) -> None:
        """A port of a stream has another public endpoint."""
        self.opened(side)
        self._settling.changed(kept, former.local)

    def _local_media(self, public: Endpoint) -> Endpoint | None:
        """The port of a stream that the world knows by `public`."""
        for side in () if self._engine is None else self._engine.sides:
            for kept in (side.rtp, side.rtcp):
                if kept.binding is not None and kept.binding.public == public:
                    return Endpoint(self.listener.local.ip, kept.binding.local.port)
        return None

    def _signalling_changed(self, kept: KeptBinding, former: PublicBinding) -> None:
        machines, binding = self._machines, kept.binding
        if machines is None or binding is None:
            return
        was_told = machines.rewriter.public_for(machines.flows.latest_server)
        machines.rewriter.set_signalling(binding)
        self._disguise.publish(binding.public)
        _log.warning("the world knows %s by %s now, not by %s", binding.local, binding.public, former.public)
        self._settling.changed(kept, was_told or former.public)

    def _sockets(self) -> Iterator[KeptBinding]:
        for side in () if self._engine is None else self._engine.sides:
            yield from (side.rtp, side.rtcp)
        if self._kept is not None:
            yield self._kept

    def _renew(self, moved: Mapping[KeptBinding, Endpoint]) -> None:
        machines, now = self._machines, self._loop.time()
        if machines is None:
            return
        is_at = machines.rewriter.public_for(machines.flows.latest_server)  # perhaps learned meanwhile
        for kept, was_at in moved.items():
            if kept is not self._kept:
                machines.renewal.media_changed(was_at, now=now)
            elif is_at is not None:
                machines.renewal.binding_changed(was_at, is_at, now=now)
        self._pump()

    # Its own binding

    async def _look_for_binding(self) -> None:
        while True:
            enter = partial(self._keeper.bind_socket, self._socket, on_datagram=self._arrived)
            self._kept = KeptBinding(enter, on_change=self._signalling_changed)
            try:
                self._begin(self._kept, await self._kept.acquired())
                return
            except NatToolsError as error:
                if str(error) != self._trouble:
                    _log.warning("nobody outside can reach %s: %s", self.listener.local, error)
                self._trouble = str(error)
            finally:
                self._is_known.set()
            await asyncio.sleep(RETRY_S)

    def _begin(self, kept: KeptBinding, binding: PublicBinding) -> None:
        assert kept.live is not None, "it was acquired"
        self._machines = _Machines(
            Rewriter(binding, also_local=[self.listener.local.ip]),
            Renewal(
                self.listener.local,
                entropy=secrets.token_bytes,
                digest=self._digest,
                most_registrations=_MOST_PHONES,
                most_calls=_MOST_CALLS,
            ),
            SipFlows(kept.live, most_servers=_MOST_SERVERS),
        )
        self._keep_known_servers(self._machines)
        self._disguise.publish(binding.public)
        self._trouble = ""
        _log.info("the world knows %s by %s (%s)", binding.local, binding.public, binding.method.value)

    def _trouble_now(self) -> str:
        live = None if self._kept is None else self._kept.live
        if self._trouble or live is None or live.lost_at is None:
            return self._trouble
        if self._loop.time() < live.lost_at + _LOST_S:
            return ""
        try:
            _ = live.public
        except BindingError as error:
            return str(error)
        return ""

    async def _end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._settling.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._machines = None
        if self._kept is not None:
            await self._kept.close()


class _Machines:
    """What messages pass, once there is a public endpoint."""

    def __init__(self, rewriter: Rewriter, renewal: Renewal, flows: SipFlows) -> None:
        self.rewriter = rewriter
        self.renewal = renewal
        self.flows = flows
        self._calls = Calls()

    def passed(self, message: bytes, *, is_incoming: bool) -> None:
        """Keep the flows open that a message shows to be needed."""
        event = self._calls.passed(message, is_incoming=is_incoming)
        if isinstance(event, Ended):
            self.flows.end_call(event.call_id)
        elif event is not None:
            self.flows.keep_peer(event.call_id, event.peer)


def _bind(settings: GateSettings) -> socket.socket:
    """A socket at `settings.outside`, else at port 5060 if nobody has it. Raises `LocalAddressError`."""
    if settings.outside is not None:
        ip, ports = settings.outside.ip, [settings.outside.port]
    else:
        inside = {each.endpoint.port for each in settings.listen if each.transport == "UDP"}
        ip, ports = IPv4Address(0), [port for port in (SIP_PORT, _OTHER_PORT) if port not in inside] + [0]
    while True:
        local = Endpoint(ip, ports.pop(0))
        sock = unbound_socket(socket.AF_INET6 if local.is_ipv6 else socket.AF_INET)
        try:
            sock.bind(socket_address(local))
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or not ports:
                raise LocalAddressError(
                    f"the outside socket cannot be at {local}: {error.strerror}; set outside to another one"
                ) from error
        else:
            return sock


def _way_out(settings: GateSettings) -> IPAddress:
    """The address that faces outside. Raises `TransportError` where no way leads there."""
    failure: TransportError | None = None
    for destination in (*_known_places(settings), _FAR_AWAY):
        try:
            return local_address_towards(destination)
        except TransportError as error:
            failure = error
    raise failure or TransportError("no way leads outside: connect this machine to a network")


def _known_places(settings: GateSettings) -> Iterator[Endpoint]:
    """The servers in the settings that have no name, but an address."""
    for server in settings.binding.stun_servers:
        with suppress(DecodeError):
            yield Endpoint.parse(server, default_port=STUN_PORT)


def _begins_something(message: bytes) -> bool:
    """Whether it is a request outside any dialog: whoever gets it may have more to say, later."""
    try:
        sip = SipMessage.parse(message)
        return sip.is_request and sip.to_tag is None
    except NatToolsError:
        return False


def _quotable(text: str) -> str:
    """What of `text` can stand in a quoted-string (RFC 3261 §25.1)."""
    plain = "".join(char if char.isascii() and char.isprintable() else " " for char in text)
    return plain.replace("\\", "/").replace('"', "'")[:_MOST_WARNING]


def _in_words(event: RewriterEvent | RenewalEvent) -> str:
    match event:
        case MediaUnbound(ports):
            local = ", ".join(str(port.local) for port in ports)
            return f"media will not arrive at {local}: no stream of the relay has these ports"
        case NeedsPhone(method, _, server, reason):
            return f"{server} is not told of the new endpoint before the phone does so: {method}: {reason}"
        case _:
            return in_words(event)
