"""The STUN server: sockets around a `Responder`, over UDP and TCP (RFC 8489 §12 asks for both)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocalAddressError
from nattools.net.listener import Datagram, SocketAddress, StreamListener, UdpListener
from nattools.net.udp import endpoint_of
from nattools.stun.limiter import Limiter
from nattools.stun.message import HEADER_BYTES, frame_size
from nattools.stun.responder import DropReason, Reply, Responder, ServerAddresses

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
    ) -> None:
        self._responder = Responder(addresses)
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
        self.why_one_by_one = ""
        """Why the UDP sockets are not read in batches; empty where they are."""

    @classmethod
    async def start(
        cls,
        addresses: ServerAddresses,
        *,
        more_ports: Sequence[int] = (),
        answer_other: AnswerOther | None = None,
        limiter: Limiter | None = None,
    ) -> StunServer:
        """Bind every socket of `addresses` and serve. Port 0 is any free one, the same on both addresses.

        STUN over UDP is answered on `more_ports` of each address as well. On every UDP socket `answer_other`
        is asked about what is no STUN; its answers leave from there, to where the datagram came from.
        Each datagram must first be admitted by `limiter`. Where that is a `BatchLimiter`, or None, the
        sockets are read in batches if the system can.
        Raises `LocalAddressError` where a port cannot be had; then none is kept.
        """
        attempts = _PORT_ATTEMPTS if 0 in (addresses.port, addresses.alternate_port, *more_ports) else 1
        while True:
            attempts -= 1
            server = cls(addresses, more_ports=more_ports, answer_other=answer_other, limiter=limiter)
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
        dropped = ", ".join(f"{count} {reason.value}" for reason, count in self.dropped.most_common())
        return f"{self.answered} requests answered; dropped: {dropped or 'nothing'}"

    async def close(self) -> None:
        """Close every socket and connection."""
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
        self._responder = Responder(actual)
        for endpoint in actual.endpoints:
            if endpoint not in self._udp:
                self._listen_udp(endpoint)
        self._more_ports = tuple(self._listen_udp_everywhere(port) for port in self._more_ports)
        for endpoint in actual.endpoints:
            self._tcp.append(
                await StreamListener.open(endpoint, self._on_connection, limit_bytes=_MOST_STREAM_BYTES)
            )
        self.why_one_by_one = self._read_in_batches()

    def _listen_udp_everywhere(self, port: int) -> int:
        for ip in dict.fromkeys(endpoint.ip for endpoint in self._responder.addresses.endpoints):
            if not port or Endpoint(ip, port) not in self._udp:
                port = self._listen_udp(Endpoint(ip, port))
        return port

    def _listen_udp(self, local: Endpoint) -> int:
        listener = UdpListener.open(local, self._on_datagram)
        self._udp[listener.local] = listener
        if not listener.knows_destinations:
            _log.warning(
                "this system does not say which of its addresses a datagram was sent to: replies may leave"
                " from another than the one asked; give the address to listen on"
            )
        return listener.local.port

    def _read_in_batches(self) -> str:
        """Have every UDP socket read in batches; otherwise say why not."""
        if self._responder.addresses.address.is_unspecified:
            return "each datagram is asked which address it was sent to; give the address to listen on"
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
        buffers = BatchBuffers(ipv6=self._responder.addresses.address.version == 6)
        columns = Columns(buffers.payload, buffers.lengths, buffers.addresses, buffers.ports, buffers.replies)
        for listener in self._udp.values():
            responder = BatchResponder(
                self._responder,
                listener.local,
                columns,
                self._limiter,
                not_stun_is_odd=self._answer_other is not None,
            )
            BatchReader(listener, buffers, partial(self._on_batch, responder))
        return ""

    def _on_batch(self, responder: BatchResponder, reader: BatchReader, count: int) -> None:
        outcome = responder.respond(count, now=self._now())
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
            answer = self._responder.respond(datagram.data, datagram.source, datagram.local, now=self._now())
            if answer is DropReason.NOT_STUN and self._answer_other is not None:
                other = self._answer_other(datagram.data, datagram.source)
                answer = answer if other is None else Reply(other, datagram.local, datagram.source)
        if isinstance(answer, Reply):
            # on a wildcard bind the origin is no key of _udp, but then it never changes either
            sender = listener if answer.origin == datagram.local else self._udp[answer.origin]
            address = _with_port(datagram.address, answer.destination.port)
            if not sender.send(answer.data, address, source=answer.origin.ip):
                answer = DropReason.SEND_FAILED
        self._count(answer, datagram.source, datagram.local, len(datagram.data))

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
                answer = self._responder.respond(data, source, local, stream=True, now=self._now())
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


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message of a stream. Raises `DecodeError` as soon as it cannot be STUN."""
    start = await reader.readexactly(4)
    return start + await reader.readexactly((frame_size(start) or HEADER_BYTES) - len(start))


def _with_port(address: SocketAddress, port: int) -> SocketAddress:
    """The same host, in the same IPv6 scope, at another port."""
    return (address[0], port) if len(address) == 2 else (address[0], port, address[2], address[3])
