"""A tap on a transport: what it takes, what goes on to the protocol, and that it leaves no trace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.net.transport import TransportTap
from tests.unit.net.test_udp import bound, endpoint, run


class Program(asyncio.DatagramProtocol):
    """Remembers every call of its transport."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: object) -> None:
        self.calls.put_nowait((data, address))

    def error_received(self, error: Exception) -> None:
        self.calls.put_nowait(("error", type(error)))

    def connection_lost(self, error: Exception | None) -> None:
        self.calls.put_nowait(("lost", error))

    def pause_writing(self) -> None:
        self.calls.put_nowait(("pause",))

    def resume_writing(self) -> None:
        self.calls.put_nowait(("resume",))


Scenario = Callable[[TransportTap, asyncio.DatagramTransport, Program, list[str]], Awaitable[None]]


def tapping(scenario: Scenario, *, local: tuple[str, int] = ("127.0.0.1", 0)) -> None:
    """Run with a tap that takes what begins with `mine`."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        transport, program = await loop.create_datagram_endpoint(Program, local_addr=local)
        ends: list[str] = []
        tap = TransportTap.put(transport, eats=lambda data, _: data.startswith(b"mine"), on_lost=ends.append)
        try:
            await scenario(tap, transport, program, ends)
        finally:
            tap.close()
            transport.close()

    run(work())


def test_what_it_does_not_take_goes_on_untouched_and_in_order() -> None:
    async def scenario(
        tap: TransportTap, _transport: asyncio.DatagramTransport, program: Program, _ends: list[str]
    ) -> None:
        with bound() as peer:
            for data in (b"INVITE", b"mine", b"", b"mine too", b"\x80\x00"):
                peer.sendto(data, (str(tap.local.ip), tap.local.port))
            heard = [await program.calls.get() for _ in range(3)]
            assert heard == [(data, peer.getsockname()) for data in (b"INVITE", b"", b"\x80\x00")]

    tapping(scenario)


def test_it_sends_from_the_transports_port_empty_datagrams_as_well() -> None:
    async def scenario(
        tap: TransportTap, _transport: asyncio.DatagramTransport, _program: Program, _ends: list[str]
    ) -> None:
        with bound() as peer:
            peer.settimeout(5)
            for data in (b"hello", b"", b"again"):
                tap.send(data, endpoint(peer))
                assert peer.recvfrom(100) == (data, (str(tap.local.ip), tap.local.port))

    tapping(scenario)


def test_the_protocol_hears_of_everything_but_what_the_tap_sends() -> None:
    async def scenario(
        tap: TransportTap, transport: asyncio.DatagramTransport, program: Program, ends: list[str]
    ) -> None:
        tap.pause_writing()
        tap.resume_writing()
        tap.error_received(ConnectionRefusedError())
        for data in (bytes(70_000), b""):
            with pytest.raises(TransportError, match="cannot send to"):
                tap.send(data, Endpoint.parse("[::1]:9") if not data else Endpoint.parse("127.0.0.1:9"))
        transport.sendto(bytes(70_000), ("127.0.0.1", 9))
        transport.close()
        heard = [await program.calls.get() for _ in range(5)]
        assert heard == [
            ("pause",),
            ("resume",),
            ("error", ConnectionRefusedError),
            ("error", OSError),
            ("lost", None),
        ]
        assert ends == ["the transport was closed"]
        with pytest.raises(TransportError, match="the transport is closed"):
            tap.send(b"late", Endpoint.parse("127.0.0.1:9"))

    tapping(scenario)


def test_at_the_end_the_protocol_is_back_in_its_place() -> None:
    async def scenario(
        tap: TransportTap, transport: asyncio.DatagramTransport, program: Program, ends: list[str]
    ) -> None:
        assert transport.get_protocol() is tap
        tap.close()
        assert transport.get_protocol() is program
        tap.close()
        transport.close()
        assert await program.calls.get() == ("lost", None)
        assert not ends

    tapping(scenario)


def test_a_protocol_that_somebody_put_before_it_stays_and_misses_nothing() -> None:
    class Other(asyncio.DatagramProtocol):
        def __init__(self, behind: asyncio.DatagramProtocol) -> None:
            self._behind = behind

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            self._behind.datagram_received(data, address)

    async def scenario(
        tap: TransportTap, transport: asyncio.DatagramTransport, program: Program, _ends: list[str]
    ) -> None:
        other = Other(tap)
        transport.set_protocol(other)
        tap.close()
        assert transport.get_protocol() is other
        with bound() as peer:
            peer.sendto(b"mine no more", (str(tap.local.ip), tap.local.port))
            assert await program.calls.get() == (b"mine no more", peer.getsockname())

    tapping(scenario)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no dual-stack sockets")
def test_a_dual_stack_transport_has_ipv4_peers_by_their_ipv4_endpoints() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            transport, _ = await loop.create_datagram_endpoint(Program, sock=sock)
            sources: asyncio.Queue[Endpoint] = asyncio.Queue()

            def eats(_data: bytes, source: Endpoint) -> bool:
                sources.put_nowait(source)
                return True

            tap = TransportTap.put(transport, eats=eats, on_lost=lambda _: None)
            with bound() as peer:
                peer.settimeout(5)
                for data in (b"hello", b""):
                    tap.send(data, endpoint(peer))
                    assert peer.recv(100) == data
                peer.sendto(b"yes", ("127.0.0.1", tap.local.port))
                assert await sources.get() == endpoint(peer)
            transport.close()
            await asyncio.sleep(0)

    run(work())


def test_a_transport_that_cannot_be_tapped_is_refused_with_the_reason() -> None:
    class NoSocket(asyncio.DatagramTransport):
        def is_closing(self) -> bool:
            return False

    def put(transport: asyncio.DatagramTransport) -> None:
        TransportTap.put(transport, eats=lambda *_: False, on_lost=lambda _: None)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with bound() as peer:
            connected, _ = await loop.create_datagram_endpoint(Program, remote_addr=peer.getsockname())
            with pytest.raises(TransportError, match="connected to 127"):
                put(connected)
            connected.close()
            with pytest.raises(TransportError, match="closed"):
                put(connected)
        with pytest.raises(TransportError, match="NoSocket shows no socket"):
            put(NoSocket())

    run(work())
