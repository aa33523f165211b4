"""The STUN server: sockets around a `Responder`, over UDP and TCP (RFC 8489 §12 asks for both), and TLS."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError
from nattools.net.listener import Datagram, SocketAddress, UdpListener
from nattools.net.runner import MachineRunner
from nattools.net.tls import ServerCertificate
from nattools.net.udp import UdpSocket, socket_address
from nattools.stun.accounts import Accounts
from nattools.stun.connections import ConnectionCounts
from nattools.stun.counts import Counts
from nattools.stun.limiter import Limiter
from nattools.stun.peer import PeerLink, PeerState
from nattools.stun.responder import (
    REFLECTOR_PORTS,
    DropReason,
    Reply,
    RequestKind,
    Responder,
    ServerAddresses,
)
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.streams import StreamServer
from nattools.stun.uri import TLS_PORT, Transport

if TYPE_CHECKING:
    from nattools.net.batch import BatchReader  # they want numpy, which not every server has
    from nattools.stun.batch import BatchResponder

AnswerOther = Callable[[bytes, Endpoint], bytes | None]
"""Answers a datagram that is no STUN, given where it came from, or leaves it unanswered (None)."""

_PORT_ATTEMPTS = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server does beside answering at its addresses."""

    more_ports: tuple[int, ...] = ()
    """UDP ports of each address on which STUN is answered as well."""
    answer_other: AnswerOther | None = None
    """Is asked about what is no STUN on every UDP socket; its answers leave from there, to who sent it."""
    limiter: Limiter | None = None
    """Must admit each datagram. Sockets are read in batches where it is a `BatchLimiter` or None."""
    accounts: Accounts | None = None
    secrets: SharedSecrets | None = None
    reflector_ports: Collection[int] = REFLECTOR_PORTS
    advertise: Mapping[IPAddress, IPAddress] = field(default_factory=dict)
    """These four are as for `Responder`."""
    reuse_port: bool = False
    """Whether other servers of this user can have the same addresses: Linux shares the clients out."""
    link: PeerLink | None = None
    """Makes the server one of two hosts; its addresses are the link's `hosts.alone`.

    As long as the other is heard, clients are told of both on all ports but `more_ports`.
    """
    certificate: ServerCertificate | None = None
    """With one, TLS is served on `tls_port`, and on all TCP ports to who begins with it, as in RFC 3489."""
    tls_port: int = TLS_PORT
    connections: ConnectionCounts = field(default_factory=ConnectionCounts)
    """How many there may be; other servers of this process may have the same."""
    counts: Counts = field(default_factory=Counts)
    """Where all that is done is counted; other servers of this process may count there, too."""


class StunServer:
    """A running STUN server. Make it with `StunServer.start`, end it with `close` or `async with`."""

    def __init__(self, addresses: ServerAddresses, options: ServerOptions) -> None:
        """Use `start` instead."""
        link = options.link
        self._options = options
        self._new_responder = partial(
            Responder,
            reflector_ports=options.reflector_ports,
            accounts=options.accounts,
            secrets=options.secrets,
            advertise=options.advertise,
        )
        self._responder = self._new_responder(addresses)
        self._link = link
        self._link_socket: UdpSocket | None = None
        self._link_runner: MachineRunner[Reply | PeerState] | None = None
        self._whole = None if link is None else self._new_responder(link.hosts.whole)
        self._more_ports = options.more_ports
        self._limiter = options.limiter
        self._now = asyncio.get_running_loop().time
        self._udp: dict[Endpoint, UdpListener] = {}
        self.tls_port = None if options.certificate is None else options.tls_port
        """The TCP port of each address that is for TLS alone, where there is a certificate."""
        self.counts = options.counts
        """What was done so far."""
        self._streams = StreamServer(
            self._respond,
            self._count,
            counts=self.counts,
            connections=options.connections,
            limiter=options.limiter,
            certificate=options.certificate,
            reuse_port=options.reuse_port,
        )
        self._is_ipv6 = addresses.address.version == 6
        self._overrun_before_close = 0
        self.why_one_by_one = ""
        """Why the UDP sockets are not read in batches; empty where they are."""
        self.is_paired = False
        """Whether the other of two hosts is there, so that clients can test their NAT."""

    @classmethod
    async def start(cls, addresses: ServerAddresses, options: ServerOptions | None = None) -> StunServer:
        """Bind every socket of `addresses` and serve. Port 0 is any free one, the same on both addresses.

        Raises `LocalAddressError` where a port cannot be had; then none is kept.
        """
        options = options or ServerOptions()
        ports = [addresses.port, addresses.alternate_port, *options.more_ports]
        if options.certificate is not None:
            ports.append(options.tls_port)
        attempts = _PORT_ATTEMPTS if 0 in ports else 1
        while True:
            attempts -= 1
            server = cls(addresses, options)
            try:
                await server._listen()
            except BaseException as error:
                await server.close()
                if attempts and isinstance(error, LocalAddressError):
                    continue  # the port that was free on one address was not on the other
                raise
            return server

    @property
    def addresses(self) -> ServerAddresses:
        """Where the server listens, with the ports that it really has."""
        return self._responder.addresses

    @property
    def more_ports(self) -> tuple[int, ...]:
        """The UDP ports beside those of `addresses`, as they really are."""
        return self._more_ports

    @property
    def overrun(self) -> int:
        """How many datagrams were never read, since they came faster than that; as `UdpListener.overrun`."""
        return self._overrun_before_close + sum(udp.overrun for udp in self._udp.values())

    @property
    def answered(self) -> int:
        """How many requests were answered, with success or with an error, by `answer_other` among them."""
        return self.counts.answered

    @property
    def dropped(self) -> Counter[DropReason]:
        """How many datagrams and connections were not, by reason."""
        return self.counts.dropped

    def summary(self) -> str:
        """What was done so far, in one line."""
        return self.counts.summary()

    async def close(self) -> None:
        """Close every socket and connection."""
        if self._link_runner is not None and self._link is not None:
            self._link.leave()
            self._link_runner.pump()
            self._link_runner.close()
        if self._link_socket is not None:
            self._link_socket.close()
        self._overrun_before_close = self.overrun
        for udp in self._udp.values():
            udp.close()
        self._udp.clear()
        await self._streams.close()

    async def __aenter__(self) -> StunServer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _listen(self) -> None:
        wanted = self._responder.addresses
        # first, so that the system cannot give the same port for the alternate one
        actual = replace(wanted, port=self._listen_udp(Endpoint(wanted.address, wanted.port)))
        if wanted.alternate_port == 0:
            actual = replace(actual, alternate_port=self._listen_udp(Endpoint(wanted.address, 0)))
        self._responder = self._new_responder(actual)
        for endpoint in actual.endpoints:
            if endpoint not in self._udp:
                self._listen_udp(endpoint)
        self._more_ports = tuple(self._listen_udp_everywhere(port) for port in self._more_ports)
        asked = (wanted.port, wanted.alternate_port)
        # those first that were asked for: if they are taken, it is of them that the user must be told
        for endpoint in sorted(actual.endpoints, key=lambda it: it.port not in asked):
            self._streams.listen(endpoint)
        if self.tls_port is not None:
            for ip in dict.fromkeys(endpoint.ip for endpoint in actual.endpoints):
                self.tls_port = self._streams.listen(Endpoint(ip, self.tls_port), tls_only=True)
        self.why_one_by_one = self._read_in_batches()
        if self._link is not None:
            await self._open_link(self._link)

    async def _open_link(self, link: PeerLink) -> None:
        own = link.hosts.own
        self._link_socket = await UdpSocket.open(
            ipv6=own.version == 6,
            local_address=own,
            local_port=link.peer.port,
            on_datagram=lambda data, source: runner.receive("", data, source),
        )
        runner: MachineRunner[Reply | PeerState] = MachineRunner(
            link,
            {"": self._link_socket},
            on_event=self._on_peer,
            on_unsendable=lambda *_: None,  # as good as lost on the way
        )
        self._link_runner = runner
        runner.pump()

    def _on_peer(self, event: Reply | PeerState) -> None:
        """Send what the other host may not, and speak of it only while it is there."""
        if isinstance(event, Reply):
            sender, address = self._udp[event.origin], socket_address(event.destination)
            if not sender.send(event.data, address, source=event.origin.ip):
                self.counts.drop(DropReason.SEND_FAILED)
            return
        self.is_paired = event is PeerState.UP
        assert self._link is not None
        _log.info(
            "the other host, %s, is %s",
            self._link.hosts.other,
            "there: NAT behaviour tests are served"
            if self.is_paired
            else "silent: until it is heard again, CHANGE-REQUEST is refused and OTHER-ADDRESS omitted",
        )

    def _responder_at(self, local: Endpoint, transport: Transport = Transport.UDP) -> Responder:
        """Who answers at `local` now: for both hosts, or for what is bound here.

        Whether the other host has TLS is not known.
        """
        is_of_both = transport is not Transport.TLS and local.port not in self._more_ports
        if self.is_paired and self._whole is not None and is_of_both:
            return self._whole
        return self._responder

    def _listen_udp_everywhere(self, port: int) -> int:
        for ip in dict.fromkeys(endpoint.ip for endpoint in self._responder.addresses.endpoints):
            if not port or Endpoint(ip, port) not in self._udp:
                port = self._listen_udp(Endpoint(ip, port))
        return port

    def _listen_udp(self, local: Endpoint) -> int:
        listener = UdpListener.open(local, self._on_datagram, reuse_port=self._options.reuse_port)
        self._udp[listener.local] = listener
        if not listener.knows_destinations:
            _log.warning(
                "this system does not say which of its addresses a datagram was sent to: replies may leave"
                " from another than the one asked; give the address to listen on"
            )
        return listener.local.port

    def _read_in_batches(self) -> str:
        """Have every UDP socket read in batches; otherwise say why not."""
        is_wildcard = self._responder.addresses.address.is_unspecified
        if is_wildcard and self._options.advertise:
            return "what to advertise depends on the address that was asked; give the address to listen on"
        if _log.isEnabledFor(logging.DEBUG):
            return "each datagram is logged"
        try:
            from nattools.net.batch import BatchBuffers, BatchReader, is_available
            from nattools.stun.batch import BatchResponder, Columns
            from nattools.stun.batch_limiter import BatchLimiter
        except ImportError:
            return "numpy is not installed; the extra `server` has it"
        if not is_available():
            return "this system has no recvmmsg that is known here"
        if self._limiter is not None and not isinstance(self._limiter, BatchLimiter):
            return "the limiter takes one datagram at a time"
        buffers = BatchBuffers(ipv6=self._responder.addresses.address.version == 6, destinations=is_wildcard)
        columns = Columns(
            *(buffers.payload, buffers.lengths, buffers.addresses, buffers.ports, buffers.replies),
            *(buffers.own, buffers.asked),
        )
        for listener in self._udp.values():
            new = partial(
                BatchResponder,
                local=listener.local,
                columns=columns,
                limiter=self._limiter,
                not_stun_is_odd=self._options.answer_other is not None,
            )
            alone = paired = new(self._responder)
            if self._whole is not None and listener.local.port not in self._more_ports:
                paired = new(self._whole)
            BatchReader(listener, buffers, partial(self._on_batch, alone, paired))
        return ""

    def _on_batch(
        self, alone: BatchResponder, paired: BatchResponder, reader: BatchReader, count: int
    ) -> None:
        self.counts.batch(count)
        outcome = (paired if self.is_paired else alone).respond(count, now=self._now())
        sent = reader.reply(outcome.answered, outcome.sizes, outcome.rows)
        classic = min(outcome.classic, sent)  # of those that were not sent the kind is not known
        self.counts.answer(RequestKind.PLAIN, ipv6=self._is_ipv6, number=sent - classic)
        if classic:
            self.counts.answer(RequestKind.CLASSIC, ipv6=self._is_ipv6, number=classic)
        if sent < outcome.answered:
            self.counts.drop(DropReason.SEND_FAILED, outcome.answered - sent)
        for reason, number in outcome.dropped.items():
            self.counts.drop(reason, number)
        for row in outcome.odd.tolist():
            self._answer(reader.listener, reader.datagram(row))

    def _on_datagram(self, listener: UdpListener, datagram: Datagram) -> None:
        if self._limiter is not None and not self._limiter.admit_one(datagram.source, now=self._now()):
            self._count(DropReason.RATE_LIMITED, datagram.source, datagram.local, len(datagram.data))
        else:
            self._answer(listener, datagram)

    def _answer(self, listener: UdpListener, datagram: Datagram) -> None:
        answer: Reply | DropReason
        if datagram.truncated:
            answer = DropReason.TRUNCATED
        elif not datagram.unicast:
            answer = DropReason.NOT_UNICAST
        else:
            responder = self._responder_at(datagram.local)
            answer = responder.respond(datagram.data, datagram.source, datagram.local, now=self._now())
            if answer is DropReason.NOT_STUN and self._options.answer_other is not None:
                other = self._options.answer_other(datagram.data, datagram.source)
                answer = answer if other is None else _other(other, datagram)
        if isinstance(answer, Reply) and not self._send(answer, listener, datagram):
            answer = DropReason.SEND_FAILED
        self._count(answer, datagram.source, datagram.local, len(datagram.data))

    def _send(self, reply: Reply, listener: UdpListener, datagram: Datagram) -> bool:
        """Send the reply to what came to `listener`, or have the other host send it."""
        if reply.origin == datagram.local:
            sender = listener  # on a wildcard bind the origin is no key of _udp, but then it never changes
        elif reply.origin.ip == datagram.local.ip or self._link is None or self._link_runner is None:
            sender = self._udp[reply.origin]
        else:
            is_handed_over = self._link.hand_over(reply, now=self._now())
            self._link_runner.pump()
            return is_handed_over
        address = _with_port(datagram.address, reply.destination.port)
        return sender.send(reply.data, address, source=reply.origin.ip)

    def _respond(
        self, data: bytes, source: Endpoint, local: Endpoint, transport: Transport
    ) -> Reply | DropReason:
        """What to answer to a request that came over a connection."""
        responder = self._responder_at(local, transport)
        return responder.respond(data, source, local, transport=transport, now=self._now())

    def _count(
        self,
        answer: Reply | DropReason,
        source: Endpoint,
        local: Endpoint,
        size: int,
        transport: Transport = Transport.UDP,
    ) -> None:
        if isinstance(answer, DropReason):
            self.counts.drop(answer)
            _log.debug("%s to %s, %d bytes: dropped (%s)", source, local, size, answer.value)
        else:
            kind, is_error = answer.kind, answer.is_error
            self.counts.answer(kind, ipv6=self._is_ipv6, transport=transport, is_error=is_error)
            _log.debug(
                *("%s to %s, %d bytes: answered from %s to port %d with %d bytes", source, local, size),
                *(answer.origin, answer.destination.port, len(answer.data)),
            )


def _other(data: bytes, datagram: Datagram) -> Reply:
    return Reply(data, datagram.local, datagram.source, RequestKind.SIP)


def _with_port(address: SocketAddress, port: int) -> SocketAddress:
    """The same host, in the same IPv6 scope, at another port."""
    return (address[0], port) if len(address) == 2 else (address[0], port, address[2], address[3])
