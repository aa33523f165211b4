"""The sockets engine on loopback: real datagrams, both ways, and nobody else's."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError, TransportError
from nattools.session.crossing import Foreign
from nattools.session.engines.sockets import SocketEngine, SocketStream
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, MediaEngine, MediaStream, Side
from tests.ports import free_port
from tests.unit.session.rtp import PCMU, rtcp, rtp

_WITHIN_S = 20.0
FENCE_S = 0.05  # for a datagram on loopback that should not be there


class Phone:
    """A telephone of one socket each for RTP and RTCP."""

    def __init__(self, stack: ExitStack, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.rtp, self.rtcp = (
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2)
        )
        for sock in (self.rtp, self.rtcp):
            sock.bind((address, 0))
            sock.setblocking(False)
        self.expectation = Expectation(
            endpoint(self.rtp), endpoint(self.rtcp), frozenset({PCMU}), is_proven=True
        )


def endpoint(sock: socket.socket) -> Endpoint:
    return Endpoint.of(*sock.getsockname()[:2])


def say(sock: socket.socket, data: bytes, to: Endpoint) -> None:
    sock.sendto(data, (str(to.ip), to.port))


async def heard(sock: socket.socket) -> tuple[bytes, Endpoint]:
    data, address = await asyncio.get_running_loop().sock_recvfrom(sock, 2048)
    return data, Endpoint.of(*address[:2])


async def until(is_so: Callable[[], bool]) -> None:
    while True:
        if is_so():
            return
        await asyncio.sleep(0)


async def is_quiet(sock: socket.socket) -> bool:
    await asyncio.sleep(FENCE_S)
    try:
        sock.recv(2048)
    except BlockingIOError:
        return True
    return False


class Call:
    """A stream of an engine, and a telephone at each side of it."""

    def __init__(self, stack: ExitStack, addresses: tuple[str, str] = ("127.0.0.1", "127.0.0.1")) -> None:
        self.phones = {side: Phone(stack, at) for side, at in zip(Side, addresses, strict=True)}
        self.changes: list[SocketStream] = []
        self.foreign: list[Foreign] = []
        self.engine = SocketEngine(
            ip_address("127.0.0.1"),
            PortPairs(24000, 29999, entropy=secrets.token_bytes),
            on_change=self.changes.append,
            on_foreign=lambda _stream, each: self.foreign.append(each),
        )
        self.addresses = addresses

    async def open(self, *, expects: bool = True) -> SocketStream:
        a, b = map(ip_address, self.addresses)
        stream = await self.engine.open_stream(a=a, b=b)
        for side, phone in self.phones.items() if expects else ():
            stream.expect(side, phone.expectation)
        return stream


def calling(
    test: Callable[[Call], Awaitable[None]], addresses: tuple[str, str] = ("127.0.0.1", "127.0.0.1")
) -> None:
    """Run a test with a call, and end what it has opened."""

    async def whole() -> None:
        with ExitStack() as stack:
            call = Call(stack, addresses)
            try:
                await asyncio.wait_for(test(call), _WITHIN_S)
            finally:
                await call.engine.close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::1")], ids=["4", "6", "4 to 6"]
)
def test_rtp_and_rtcp_cross_both_ways_from_the_ports_that_were_announced(addresses: tuple[str, str]) -> None:
    async def crossing(call: Call) -> None:
        stream = await call.open()
        for number in range(1, 6):
            for side, phone in call.phones.items():
                other, ports = call.phones[side.other], stream.ports(side.other)
                say(phone.rtp, rtp(number), stream.ports(side).rtp)
                assert await heard(other.rtp) == (rtp(number), ports.rtp)
                say(phone.rtcp, rtcp(), stream.ports(side).rtcp)
                assert await heard(other.rtcp) == (rtcp(), ports.rtcp)
        for side, phone in call.phones.items():
            seen = stream.statistics(side)
            assert (seen.packets, seen.octets, seen.foreign, seen.lost) == (5, 5 * 172, 0, 0)
            assert seen.latched == endpoint(phone.rtp)

    calling(crossing, addresses)


def test_a_stream_has_even_ports_with_the_next_ones_for_rtcp() -> None:
    async def ports(call: Call) -> None:
        stream = await call.open()
        for side in Side:
            pair = stream.ports(side)
            assert pair.rtp.port % 2 == 0
            assert pair.rtcp == pair.rtp.with_port(pair.rtp.port + 1)
        assert stream.ports(Side.A) != stream.ports(Side.B)

    calling(ports)


def test_a_burst_arrives_whole_and_in_order() -> None:
    async def burst(call: Call) -> None:
        stream = await call.open()
        for number in range(100):  # more than are read at once
            say(call.phones[Side.A].rtp, rtp(number), stream.ports(Side.A).rtp)
        for number in range(100):
            assert (await heard(call.phones[Side.B].rtp))[0] == rtp(number)

    calling(burst)


def test_many_streams_at_once_each_hear_their_own() -> None:
    async def many(call: Call) -> None:
        b = call.phones[Side.B]
        with ExitStack() as stack:
            callers = []
            for _ in range(30):  # sides A apart; B tells them by the ports that they come from
                stream = await call.open(expects=False)
                caller = Phone(stack)
                stream.expect(Side.A, caller.expectation)
                stream.expect(Side.B, b.expectation)
                callers.append((caller, stream))
            for number in range(1, 4):
                for ssrc, (caller, stream) in enumerate(callers):
                    say(caller.rtp, rtp(number, ssrc=ssrc), stream.ports(Side.A).rtp)
                got = [await heard(b.rtp) for _ in callers]
                assert {source: data for data, source in got} == {
                    stream.ports(Side.B).rtp: rtp(number, ssrc=ssrc)
                    for ssrc, (_, stream) in enumerate(callers)
                }

    calling(many)


def test_a_foreign_packet_is_counted_and_told_and_goes_nowhere() -> None:
    async def injected(call: Call) -> None:
        stream = await call.open()
        with ExitStack() as stack:
            stranger = Phone(stack, "127.0.0.2")
            for number in range(1, 20):
                for side, phone in call.phones.items():
                    say(phone.rtp, rtp(number), stream.ports(side).rtp)
                    assert (await heard(call.phones[side.other].rtp))[0] == rtp(number)
                    for port in (stream.ports(side).rtp, stream.ports(side).rtcp):
                        say(stranger.rtp, rtp(number, ssrc=0xBAD), port)
            await until(lambda: len(call.foreign) >= 19 * 4)
            for phone in call.phones.values():
                assert await is_quiet(phone.rtp)
                assert await is_quiet(phone.rtcp)
            assert {it.source for it in call.foreign} == {endpoint(stranger.rtp)}
        assert [stream.statistics(side).foreign for side in Side] == [38, 38]

    calling(injected)


def test_a_phone_that_moves_is_heard_and_reached_at_its_new_place() -> None:
    async def moves(call: Call) -> None:
        stream = await call.open()
        a, b = call.phones.values()
        with ExitStack() as stack:
            moved = Phone(stack, "127.0.0.3")
            for number in range(1, 4):
                say(a.rtp, rtp(number), stream.ports(Side.A).rtp)
                await heard(b.rtp)
            for number in range(4, 7):
                say(moved.rtp, rtp(number), stream.ports(Side.A).rtp)
                assert (await heard(b.rtp))[0] == rtp(number)
            say(b.rtp, rtp(1, ssrc=2), stream.ports(Side.B).rtp)
            assert (await heard(moved.rtp))[0] == rtp(1, ssrc=2)
            assert call.changes
            assert stream.statistics(Side.A).latched == endpoint(moved.rtp)

    calling(moves)


def test_rtcp_in_the_rtp_port_of_one_side_comes_out_of_the_rtcp_port_of_the_other() -> None:
    async def muxed(call: Call) -> None:
        stream = await call.open()
        a, b = call.phones.values()
        stream.expect(Side.A, replace(a.expectation, rtcp_mux=True))
        for number in range(1, 4):
            say(a.rtp, rtp(number), stream.ports(Side.A).rtp)
            assert (await heard(b.rtp))[0] == rtp(number)
            say(a.rtp, rtcp(), stream.ports(Side.A).rtp)
            assert (await heard(b.rtcp))[0] == rtcp()
        say(b.rtcp, rtcp(9), stream.ports(Side.B).rtcp)
        assert await heard(a.rtp) == (rtcp(9), stream.ports(Side.A).rtp)

    calling(muxed)


def test_a_side_on_hold_hears_nothing_and_after_that_again() -> None:
    async def hold(call: Call) -> None:
        stream = await call.open()
        a, b = call.phones.values()
        for number in range(1, 3):
            say(a.rtp, rtp(number), stream.ports(Side.A).rtp)
            await heard(b.rtp)
        stream.expect(Side.B, replace(b.expectation, rtp=None))
        say(a.rtp, rtp(3), stream.ports(Side.A).rtp)
        await until(lambda: stream.statistics(Side.B).held > 0)
        stream.expect(Side.B, b.expectation)
        say(a.rtp, rtp(4), stream.ports(Side.A).rtp)
        assert (await heard(b.rtp))[0] == rtp(4)

    calling(hold)


def test_two_sides_that_wait_for_each_other_get_punches() -> None:
    async def waiting(call: Call) -> None:
        stream = await call.open()
        for side, phone in call.phones.items():
            data, source = await heard(phone.rtp)
            assert (len(data), source) == (12, stream.ports(side).rtp)

    calling(waiting)


def test_a_closed_stream_relays_no_more_and_gives_its_ports_back() -> None:
    async def closed(call: Call) -> None:
        stream = await call.open()
        a, b = call.phones.values()
        say(a.rtp, rtp(1), stream.ports(Side.A).rtp)
        await heard(b.rtp)
        await stream.close()
        await stream.close()
        stream.expect(Side.A, a.expectation)
        say(a.rtp, rtp(2), stream.ports(Side.A).rtp)
        assert await is_quiet(b.rtp)
        assert stream.statistics(Side.A).packets == 1
        assert stream.ports(Side.A).rtp.port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", stream.ports(Side.A).rtp.port))

    calling(closed)


def test_a_stream_may_be_closed_by_what_it_tells() -> None:
    async def closes(call: Call) -> None:
        engine = SocketEngine(
            ip_address("127.0.0.1"),
            PortPairs(24000, 29999, entropy=secrets.token_bytes),
            on_foreign=lambda stream, _: stream.abort(),
        )
        stream = await engine.open_stream()
        for port in (stream.ports(Side.A).rtp, stream.ports(Side.A).rtcp, stream.ports(Side.B).rtp):
            for _ in range(3):
                say(call.phones[Side.A].rtp, rtp(1), port)
        await asyncio.sleep(FENCE_S)
        assert sum(stream.statistics(side).held for side in Side) == 1
        await engine.close()

    calling(closes)


def test_ports_that_others_have_are_passed_over() -> None:
    async def passed(call: Call) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
            theirs.bind(("127.0.0.1", 0))
            taken = theirs.getsockname()[1]
            first = taken - taken % 2 - 4
            engine = SocketEngine(
                ip_address("127.0.0.1"), PortPairs(first, first + 9, entropy=secrets.token_bytes)
            )
            stream = await engine.open_stream()
            used = {stream.ports(side).rtp.port for side in Side}
            assert len(used) == 2
            assert taken - taken % 2 not in used
            await engine.close()

    calling(passed)


def test_when_there_are_no_ports_the_first_side_gives_its_own_back() -> None:
    async def exhausted(call: Call) -> None:
        port = free_port()
        pairs = PortPairs(port, port + 1, entropy=secrets.token_bytes)
        engine = SocketEngine(ip_address("127.0.0.1"), pairs)
        with pytest.raises(LocalAddressError):
            await engine.open_stream()
        assert pairs.in_use == 0
        with pytest.raises(LocalAddressError, match=r"192\.0\.2\.1"):
            await engine.open_stream(a=ip_address("192.0.2.1"))
        assert pairs.in_use == 0
        await engine.close()

    calling(exhausted)


def test_the_engine_keeps_the_protocol_of_engines() -> None:
    async def keeps(call: Call) -> None:
        engine: MediaEngine = call.engine
        stream: MediaStream = await engine.open_stream()
        await stream.close()

    calling(keeps)


def test_a_stream_gets_the_ports_that_were_told_before() -> None:
    async def test() -> None:
        pairs = PortPairs(30200, 30399, entropy=secrets.token_bytes)
        engine = SocketEngine(ip_address("127.0.0.1"), pairs)
        first = await engine.open_stream()
        ports = {side: first.ports(side) for side in Side}
        with pytest.raises(LocalAddressError, match="in use"):
            await engine.open_stream(ports=ports)
        await first.close()
        again = await engine.open_stream(ports=ports)
        assert {side: again.ports(side) for side in Side} == ports
        assert pairs.in_use == 2
        await engine.close()

    asyncio.run(test())


def test_ports_that_another_program_has_meanwhile_are_refused() -> None:
    async def test() -> None:
        pairs = PortPairs(30200, 30399, entropy=secrets.token_bytes)
        engine = SocketEngine(ip_address("127.0.0.1"), pairs)
        first = await engine.open_stream()
        ports = {side: first.ports(side) for side in Side}
        await first.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", ports[Side.B].rtcp.port))
            with pytest.raises(LocalAddressError, match="another program"):
                await engine.open_stream(ports=ports)
        assert pairs.in_use == 0
        await engine.close()

    asyncio.run(test())


def test_others_may_use_a_socket_of_a_stream_for_what_is_no_media() -> None:
    async def test(call: Call) -> None:
        with ExitStack() as stack:
            stranger, stream = Phone(stack), await call.open()
            taken: list[bytes] = []

            def eats(data: bytes, source: Endpoint) -> bool:
                assert source == endpoint(stranger.rtp)
                taken.append(data)
                return data == b"mine"

            at = stream.ports(Side.B).rtp
            stream.tap("b.rtp", eats)
            stream.send("b.rtp", b"question", endpoint(stranger.rtp))
            assert await heard(stranger.rtp) == (b"question", at)
            for data in (b"mine", b"not mine"):
                say(stranger.rtp, data, at)
            await until(lambda: len(taken) == 2)
            assert [each.data for each in call.foreign] == [b"not mine"]
            assert stream.statistics(Side.B).foreign == 1

    calling(test)


def test_a_closed_stream_tells_who_used_its_sockets() -> None:
    async def test(call: Call) -> None:
        stream = await call.open()
        told: list[str] = []
        stream.on_closed(lambda: told.append("in time"))
        await stream.close()
        await stream.close()
        stream.on_closed(lambda: told.append("late"))
        assert told == ["in time", "late"]
        with pytest.raises(TransportError, match="the stream is closed"):
            stream.send("b.rtp", b"question", Endpoint.of("127.0.0.1", 9))

    calling(test)


def test_what_cannot_be_sent_from_a_socket_of_a_stream_says_so() -> None:
    async def test(call: Call) -> None:
        stream = await call.open()
        with pytest.raises(TransportError, match=r"cannot send to 127\.0\.0\.1:0: "):
            stream.send("a.rtcp", b"question", Endpoint.of("127.0.0.1", 0))

    calling(test)
