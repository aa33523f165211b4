"""The STUN server: sockets around a `Responder`, over UDP and TCP (RFC 8489 §12 asks for both)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, LocalAddressError
from nattools.net.listener import Datagram, SocketAddress, StreamListener, UdpListener
from nattools.net.runner import MachineRunner
from nattools.net.udp import UdpSocket, endpoint_of, socket_address
from nattools.stun.accounts import Accounts
from nattools.stun.limiter import Limiter
from nattools.stun.message import HEADER_BYTES, frame_size
from nattools.stun.peer import PeerLink, PeerState
from nattools.stun.responder import REFLECTOR_PORTS, DropReason, Reply, Responder, ServerAddresses

if TYPE_CHECKING:
    from nattools.net.batch import BatchReader  # they want numpy, which not every server has
    from nattools.stun.batch import BatchResponder

MOST_CONNECTIONS = 256
"""So many TCP connections are served at a time; further ones are closed at once."""

IDLE_SECONDS = 30.0
"""A connection that takes longer to send a whole request, or to take its reply, is closed."""

AnswerOther = Callable[[bytes, Endpoint], bytes | None]
"""Answers a datagram that is no STUN, given where it came from, or leaves it unanswered (None)."""

_MOST_STREAM_BYTES = 0xFFFF + HEADER_BYTES
_PORT_ATTEMPTS = 16

_log = logging.getLogger(__name__)


class StunServer:
    """A running STUN server. Make it with `StunServer.start`, end it with `close` or `async with`."""

    def __init__(
        self,
        addresses: ServerAddresses,
        *,
        more_ports: Sequence[int] = (),
        answer_other: AnswerOther | None = None,
        limiter: Limiter | None = None,
        accounts: Accounts | None = None,
        reflector_ports: Collection[int] = REFLECTOR_PORTS,
        advertise: Mapping[IPAddress, IPAddress] | None = None,
        reuse_port: bool = False,
        link: PeerLink | None = None,
    ) -> None:
        self._new_responder = partial(
            Responder, reflector_ports=reflector_ports, accounts=accounts, advertise=advertise
        )
        self._responder = self._new_responder(addresses)
        self._advertises = bool(advertise)
        self._reuse_port = reuse_port
        self._link = link
        self._link_socket: UdpSocket | None = None
        self._link_runner: MachineRunner[Reply | PeerState] | None = None
        self._whole = None if link is None else self._new_responder(link.hosts.whole)
        self._more_ports = tuple(more_ports)
        self._answer_other = answer_other
        self._limiter = limiter
        self._now = asyncio.get_running_loop().time
        self._udp: dict[Endpoint, UdpListener] = {}
        self._tcp: list[StreamListener] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.answered = 0
        """How many requests were answered, with success or with an error, by `answer_other` among them."""
        self.dropped: Counter[DropReason] = Counter()
        """How many datagrams and connections were not, by reason."""
        self.batches = 0
        """How many batches were read."""
        self.batched = 0
        """How many datagrams were in them."""
        self.why_one_by_one = ""
        """Why the UDP sockets are not read in batches; empty where they are."""
        self.is_paired = False
        """Whether the other of two hosts is there, so that clients can test their NAT."""

    @classmethod
    async def start(
        cls,
        addresses: ServerAddresses,
        *,
        more_ports: Sequence[int] = (),
        answer_other: AnswerOther | None = None,
        limiter: Limiter | None = None,
        accounts: Accounts | None = None,
        reflector_ports: Collection[int] = REFLECTOR_PORTS,
        advertise: Mapping[IPAddress, IPAddress] | None = None,
        reuse_port: bool = False,
        link: PeerLink | None = None,
    ) -> StunServer:
        """Bind every socket of `addresses` and serve. Port 0 is any free one, the same on both addresses.

        STUN over UDP is answered on `more_ports` of each address as well. On every UDP socket `answer_other`
        is asked about what is no STUN; its answers leave from there, to where the datagram came from.
        Each datagram must first be admitted by `limiter`. Where that is a `BatchLimiter`, or None, the
        sockets are read in batches if the system can. `accounts`, `reflector_ports` and `advertise` are as
        for `Responder`. With `reuse_port` other servers of this user can have the same addresses: Linux
        shares the clients out among those that all have it.
        With `link` the server is one of two hosts, and `addresses` are its `hosts.alone`. As long as the
        other is heard, clients are told of both on all ports but `more_ports`.
        Raises `LocalAddressError` where a port cannot be had; then none is kept.
        """
        attempts = _PORT_ATTEMPTS if 0 in (addresses.port, addresses.alternate_port, *more_ports) else 1
        while True:
            attempts -= 1
            server = cls(
                addresses,
                more_ports=more_ports,
                answer_other=answer_other,
                limiter=limiter,
                accounts=accounts,
                reflector_ports=reflector_ports,
                advertise=advertise,
                reuse_port=reuse_port,
                link=link,
            )
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

    def summary(self) -> str:
        """What was done so far, in one line."""
        return summary(self.answered, self.dropped)

    async def close(self) -> None:
        """Close every socket and connection."""
        if self._link_runner is not None and self._link is not None:
            self._link.leave()
            self._link_runner.pump()
            self._link_runner.close()
        if self._link_socket is not None:
            self._link_socket.close()
        for udp in self._udp.values():
            udp.close()
        for tcp in self._tcp:
            tcp.close()
        self._udp.clear()
        self._tcp.clear()
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

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
            self._tcp.append(
                await StreamListener.open(
                    endpoint,
                    self._on_connection,
                    limit_bytes=_MOST_STREAM_BYTES,
                    reuse_port=self._reuse_port,
                )
            )
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
                self.dropped[DropReason.SEND_FAILED] += 1
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

    def _responder_at(self, local: Endpoint) -> Responder:
        """Who answers at `local` now: for both hosts, or for what is bound here."""
        if self.is_paired and self._whole is not None and local.port not in self._more_ports:
            return self._whole
        return self._responder

    def _listen_udp_everywhere(self, port: int) -> int:
        for ip in dict.fromkeys(endpoint.ip for endpoint in self._responder.addresses.endpoints):
            if not port or Endpoint(ip, port) not in self._udp:
                port = self._listen_udp(Endpoint(ip, port))
        return port

    def _listen_udp(self, local: Endpoint) -> int:
        listener = UdpListener.open(local, self._on_datagram, reuse_port=self._reuse_port)
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
        if is_wildcard and self._advertises:
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
                not_stun_is_odd=self._answer_other is not None,
            )
            alone = paired = new(self._responder)
            if self._whole is not None and listener.local.port not in self._more_ports:
                paired = new(self._whole)
            BatchReader(listener, buffers, partial(self._on_batch, alone, paired))
        return ""

    def _on_batch(
        self, alone: BatchResponder, paired: BatchResponder, reader: BatchReader, count: int
    ) -> None:
        self.batches += 1
        self.batched += count
        outcome = (paired if self.is_paired else alone).respond(count, now=self._now())
        sent = reader.reply(outcome.answered, outcome.sizes, outcome.rows)
        self.answered += sent
        if sent < outcome.answered:
            self.dropped[DropReason.SEND_FAILED] += outcome.answered - sent
        if outcome.dropped:
            self.dropped.update(outcome.dropped)
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
            if answer is DropReason.NOT_STUN and self._answer_other is not None:
                other = self._answer_other(datagram.data, datagram.source)
                answer = answer if other is None else Reply(other, datagram.local, datagram.source)
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

    def _count(self, answer: Reply | DropReason, source: Endpoint, local: Endpoint, size: int) -> None:
        if isinstance(answer, DropReason):
            self.dropped[answer] += 1
            _log.debug("%s to %s, %d bytes: dropped (%s)", source, local, size, answer.value)
        else:
            self.answered += 1
            _log.debug(
                *("%s to %s, %d bytes: answered from %s to port %d with %d bytes", source, local, size),
                *(answer.origin, answer.destination.port, len(answer.data)),
            )

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # `drain` is to wait until everything is sent
        try:
            peer, name = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
            if peer is None or name is None:
                return  # gone already
            source, local = endpoint_of(peer), endpoint_of(name)
            if len(self._connections) > MOST_CONNECTIONS:
                self._count(DropReason.TOO_MANY_CONNECTIONS, source, local, 0)
            else:
                await self._serve(reader, writer, source, local)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: Endpoint, local: Endpoint
    ) -> None:
        """Answer requests one after the other until the client leaves or sends what is not answered."""
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    data = await _read_message(reader)
                responder = self._responder_at(local)
                answer = responder.respond(data, source, local, stream=True, now=self._now())
                self._count(answer, source, local, len(data))
                if isinstance(answer, DropReason):
                    return
                async with asyncio.timeout(IDLE_SECONDS):
                    writer.write(answer.data)
                    await writer.drain()
        except TimeoutError:
            self._count(DropReason.SLOW_CONNECTION, source, local, 0)
        except DecodeError:
            self._count(DropReason.NOT_STUN, source, local, 0)


def summary(answered: int, dropped: Counter[DropReason]) -> str:
    """What was done, in one line."""
    reasons = ", ".join(f"{count} {reason.value}" for reason, count in dropped.most_common())
    return f"{answered} requests answered; dropped: {reasons or 'nothing'}"


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message of a stream. Raises `DecodeError` as soon as it cannot be STUN."""
    start = await reader.readexactly(4)
    return start + await reader.readexactly((frame_size(start) or HEADER_BYTES) - len(start))


def _with_port(address: SocketAddress, port: int) -> SocketAddress:
    """The same host, in the same IPv6 scope, at another port."""
    return (address[0], port) if len(address) == 2 else (address[0], port, address[2], address[3])
