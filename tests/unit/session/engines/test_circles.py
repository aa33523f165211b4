"""What circles between two relays that were described to each other comes to an end, whatever it is."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from itertools import count

import pytest

from nattools.endpoint import Endpoint
from nattools.net.relay_socket import open_port_pair, receive_with_hops, send_with_hops
from nattools.session.crossing import RTCP, RTP
from nattools.session.engines.sockets import SocketEngine, SocketStream
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, PortPair, Side
from tests.ports import free_port
from tests.unit.session.rtp import PCMU, rtcp, rtp

_WITHIN_S = 30.0
_MOST_HOPS = 255
_SETTLED_S = 0.1
_LOOKED_AT_EVERY = 17
_UDPTL = b"\x00\x07\x01\x00\x00"


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, _WITHIN_S))


def engine_at(address: str) -> SocketEngine:
    return SocketEngine(ip_address(address), PortPairs(24000, 29999, entropy=secrets.token_bytes))


@asynccontextmanager
async def circle(
    addresses: tuple[str, str], types: frozenset[int], *, is_muxed: bool = False
) -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    """Two relays, each of which has the ports of the other for both of its phones."""
    engines = [engine_at(address) for address in addresses]
    try:
        here, there = [await engine.open_stream() for engine in engines]
        for stream, other in ((here, there), (there, here)):
            for side in Side:
                ports = other.ports(side)
                rtcp_at = None if is_muxed else ports.rtcp
                stream.expect(side, Expectation(ports.rtp, rtcp_at, types, is_muxed, is_proven=True))
        yield here, there
    finally:
        for engine in engines:
            await engine.close()


def taken(*streams: SocketStream) -> int:
    """How many datagrams the relays have taken at their RTP ports."""
    return sum(stream.statistics(side).packets for stream in streams for side in Side)


def held(*streams: SocketStream) -> int:
    """How many datagrams the relays have thrown away at last."""
    return sum(stream.statistics(side).held for stream in streams for side in Side)


async def until(is_so: Callable[[], bool]) -> None:
    while True:
        if is_so():
            return
        await asyncio.sleep(0)


async def until_quiet(most: int, so_many: Callable[[], int]) -> None:
    """Wait until nothing is taken any more; complain where it is more than `most`."""
    before = -1
    while so_many() > before:
        before = so_many()
        assert before <= most, "it circles"
        await asyncio.sleep(_SETTLED_S)


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.2", "127.0.0.3"), ("::1", "::1")],
    ids=["IPv4", "IPv6"],
)
@pytest.mark.parametrize(
    ("packets", "types"),
    [
        pytest.param([rtp(1)], frozenset({PCMU}), id="one packet"),
        pytest.param([rtp(1, ssrc=it) for it in range(100)], frozenset({PCMU}), id="many SSRCs"),
        pytest.param([_UDPTL] * 20, frozenset[int](), id="fax"),
        pytest.param([b""], frozenset({PCMU}), id="nothing in it"),
    ],
)
def test_what_comes_back_goes_round_as_often_as_a_router_would_let_it(
    addresses: tuple[str, str], packets: list[bytes], types: frozenset[int]
) -> None:
    async def circling() -> None:
        async with circle(addresses, types) as (here, there):
            for packet in packets:
                there.send(RTP[Side.A], packet, here.ports(Side.A).rtp)
            await until_quiet(len(packets) * _MOST_HOPS, partial(taken, here, there))
            assert taken(here, there) >= 2 * len(packets)  # it did circle, or nothing is shown
            assert held(here, there) == len(packets)

    run(circling())


@pytest.mark.parametrize("is_muxed", [False, True], ids=["apart", "muxed"])
def test_so_do_reports(is_muxed: bool) -> None:
    async def circling() -> None:
        async with circle(("127.0.0.2", "127.0.0.3"), frozenset({PCMU}), is_muxed=is_muxed) as streams:
            here, there = streams
            names = RTP if is_muxed else RTCP
            ports = here.ports(Side.A)
            for _ in range(20):
                there.send(names[Side.A], rtcp(), ports.rtp if is_muxed else ports.rtcp)

            await until(lambda: held(here, there) == 20)
            await until_quiet(20 * _MOST_HOPS, partial(taken, here, there))

    run(circling())


def test_packets_of_relays_that_wait_for_each_other_end_as_well() -> None:
    async def circling() -> None:
        async with circle(("127.0.0.2", "127.0.0.3"), frozenset({PCMU})) as streams:
            await until(lambda: taken(*streams) > 0)
            await until_quiet(4 * _MOST_HOPS, lambda: taken(*streams))

    run(circling())


class Line:
    """A phone, told how many hops what it receives has left, and its place on a relay."""

    def __init__(self, stack: ExitStack, address: str) -> None:
        even = free_port()
        pair = open_port_pair(ip_address(address), even)
        assert pair is not None
        self.rtp, self.rtcp = (stack.enter_context(sock) for sock in pair)
        self.at = at = Endpoint.of(address, even)
        self.expectation = Expectation(at, at.with_port(even + 1), frozenset({PCMU}), is_proven=True)

    def say(self, data: bytes, to: Endpoint, hops: int) -> None:
        send_with_hops(self.rtp, hops)
        self.rtp.sendto(data, (str(to.ip), to.port))

    def throw_away(self) -> None:
        """What has come until now."""
        while True:
            try:
                self.rtp.recv(2048)
            except BlockingIOError:
                return


async def hops_heard(sock: socket.socket) -> int | None:
    """With how many hops left the next datagram comes."""
    while True:
        try:
            return receive_with_hops(sock, bytearray(2048))[2]
        except BlockingIOError:
            await asyncio.sleep(0)


@asynccontextmanager
async def call(a: str, b: str) -> AsyncIterator[tuple[Line, Line, SocketStream]]:
    """Two phones with a relay in between that knows where both are."""
    engine = engine_at("127.0.0.2")
    with ExitStack() as stack:
        caller, callee = (Line(stack, address) for address in (a, b))
        try:
            stream = await engine.open_stream(a=ip_address(a), b=ip_address(b))
            stream.expect(Side.A, caller.expectation)
            stream.expect(Side.B, callee.expectation)
            yield caller, callee, stream
        finally:
            await engine.close()


@pytest.mark.parametrize(
    ("a", "b"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "127.0.0.1"), ("127.0.0.1", "::1")],
    ids=["4", "6 to 4", "4 to 6"],
)
def test_packets_go_on_with_one_hop_less_and_with_64_at_most(a: str, b: str) -> None:
    async def telling() -> None:
        async with call(a, b) as (caller, callee, stream):
            numbers, ports = count(1), stream.ports(Side.A).rtp
            for hops, left in ((64, 63), (50, 49), (255, 64), (2, 1)):
                heard = []
                for _ in range(_LOOKED_AT_EVERY):
                    caller.say(rtp(next(numbers)), ports, hops)
                    heard.append(await hops_heard(callee.rtp))
                assert heard[-1] == left, heard
            before = taken(stream)
            for _ in range(_LOOKED_AT_EVERY):
                caller.say(rtp(next(numbers)), ports, 1)
            await until(lambda: taken(stream) == before + _LOOKED_AT_EVERY)
            callee.throw_away()
            caller.say(rtp(next(numbers)), ports, 9)
            assert await hops_heard(callee.rtp) == 8
            assert held(stream) > 0

    run(telling())


def test_what_the_relay_says_itself_has_all_its_hops() -> None:
    async def telling() -> None:
        async with call("127.0.0.1", "127.0.0.1") as (caller, callee, stream):
            for number in (1, 2):
                caller.say(rtp(2 * number), stream.ports(Side.A).rtp, 5)
                assert await hops_heard(callee.rtp) == 4
                stream.send(RTP[Side.B], b"a question", callee.at)
                assert await hops_heard(callee.rtp) == 64

    run(telling())


def is_refused(stream: SocketStream, packets: int) -> bool:
    return stream.statistics(Side.A).foreign == packets


def test_strangers_take_no_hops_from_a_call() -> None:
    async def telling() -> None:
        async with call("127.0.0.1", "127.0.0.1") as (caller, callee, stream):
            ports: PortPair = stream.ports(Side.A)
            with ExitStack() as stack:
                stranger = Line(stack, "127.0.0.4")
                for number in range(1, 40):
                    caller.say(rtp(number), ports.rtp, 60)
                    assert await hops_heard(callee.rtp) == 59
                    stranger.say(rtp(number, ssrc=0xBAD), ports.rtp, 2)
                    stranger.say(rtcp(), ports.rtcp, 2)
                    await until(partial(is_refused, stream, 2 * number))

    run(telling())
