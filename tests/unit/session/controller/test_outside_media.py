"""Streams whose ports have public endpoints where they face outside, and what becomes of these."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from nattools.binding.client import LiveBinding
from nattools.binding.keeper import Keeper
from nattools.binding.model import PublicBinding
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, RelayError, SymmetricNatError
from nattools.machine import Transmit
from nattools.session.controller.kept_binding import KeptBinding
from nattools.session.controller.outside import OUTSIDE
from nattools.session.controller.outside_media import PublicEngine, PublicSide, SharedStream
from nattools.session.engines.rtpengine import RtpengineEngine
from nattools.session.engines.sockets import SocketEngine
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, Side
from nattools.sip.message import SipMessage
from nattools.stun.message import Message, MessageClass
from nattools.stun.message import Method as StunMethod
from tests.ports import free_ports
from tests.unit.binding.on_loopback import asking, bound, endpoint, eventually, run, stun_server
from tests.unit.session.controller.outsides import (
    FORWARDED,
    NEW,
    NO_WAY,
    PUBLIC,
    SDP,
    alg,
    answer,
    move,
    outside,
    request,
)
from tests.unit.session.rtp import PCMU, rtp

LOOPBACK = ip_address("127.0.0.1")
INSIDE = ip_address("127.0.0.2")


class Teller:
    """Notes what it is to tell others of."""

    address: IPAddress = LOOPBACK

    def __init__(self) -> None:
        self.open: list[PublicSide] = []
        self.told: list[tuple[PublicSide, KeptBinding, PublicBinding]] = []

    def opened(self, side: PublicSide) -> None:
        self.open.append(side)

    def changed(self, side: PublicSide, kept: KeptBinding, former: PublicBinding) -> None:
        self.told.append((side, kept, former))

    def closed(self, side: PublicSide) -> None:
        if side in self.open:
            self.open.remove(side)


def sockets() -> SocketEngine:
    return SocketEngine(LOOPBACK, PortPairs(24000, 29999, entropy=secrets.token_bytes))


@asynccontextmanager
async def engine(settings: Settings = FORWARDED) -> AsyncIterator[tuple[PublicEngine, Teller]]:
    async with Keeper.open(settings) as keeper:
        teller = Teller()
        opened = PublicEngine(sockets(), keeper, teller)
        try:
            yield opened, teller
        finally:
            await opened.close()


def sides_of(sides: Collection[PublicSide], stream: SharedStream) -> list[PublicSide]:
    return [side for side in sides if side.stream is stream]


def public_of(kept: KeptBinding) -> Endpoint:
    assert kept.binding is not None
    return kept.binding.public


def live_of(kept: KeptBinding) -> LiveBinding:
    assert kept.live is not None
    return kept.live


@pytest.mark.parametrize(("a", "b", "facing"), [(INSIDE, None, [Side.B]), (None, INSIDE, [Side.A])])
def test_the_side_that_faces_outside_has_public_ports(
    a: IPAddress | None, b: IPAddress | None, facing: list[Side]
) -> None:
    async def scenario() -> None:
        async with engine() as (opened, teller):
            stream = await opened.open_stream(a=a, b=b)
            sides = sides_of(teller.open, stream)
            assert [side.local for side in sides] == [stream.ports(side).rtp for side in facing]
            for side in sides:
                assert str(public_of(side.rtp)) == f"{PUBLIC}:{side.local.port}"
                assert str(public_of(side.rtcp)) == f"{PUBLIC}:{side.local.port + 1}"
            assert {stream.ports(side).rtp.ip for side in facing} == {LOOPBACK}
            assert sides_of(opened.sides, stream) == sides
            await stream.close()
            assert not sides_of(opened.sides, stream)
            assert not sides_of(teller.open, stream)

    run(scenario())


def test_two_sides_may_face_outside_and_none() -> None:
    async def scenario() -> None:
        async with engine() as (opened, teller):
            await opened.open_stream()
            assert len(teller.open) == 2
            await opened.open_stream(a=INSIDE, b=LOOPBACK)
            assert len(teller.open) == 2

    run(scenario())


def test_the_next_stream_is_made_ahead_so_that_a_call_need_not_wait() -> None:
    async def scenario() -> None:
        async with engine() as (opened, teller):
            first = await opened.open_stream(a=INSIDE)
            await eventually(lambda: len(teller.open) == 2)
            [spare] = [side for side in teller.open if side.stream is not first]
            await opened.open_stream(b=INSIDE)  # the other way round it is another one
            second = await opened.open_stream(a=INSIDE)
            assert second is spare.stream
            assert await opened.open_stream(a=INSIDE) not in (first, second)

    run(scenario())


def test_what_was_made_ahead_and_is_public_no_more_is_not_used() -> None:
    async def scenario() -> None:
        async with engine() as (opened, teller):
            first = await opened.open_stream(a=INSIDE)
            await eventually(lambda: len(teller.open) == 2)
            [spare] = [side for side in teller.open if side.stream is not first]
            live_of(spare.rtp).close()
            second = await opened.open_stream(a=INSIDE)
            assert second not in (first, spare.stream)
            await eventually(lambda: not sides_of(opened.sides, spare.stream))

    run(scenario())


def test_what_was_made_ahead_is_given_back_when_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nattools.session.controller.outside_media._SPARE_S", 0.05)

    async def scenario() -> None:
        async with engine() as (opened, teller):
            stream = await opened.open_stream(a=INSIDE)
            await eventually(lambda: len(teller.open) == 2)
            await eventually(lambda: list(opened.sides) == sides_of(opened.sides, stream))

    run(scenario())


def test_where_no_port_can_be_public_there_is_no_stream() -> None:
    async def scenario() -> None:
        async with engine(NO_WAY) as (opened, teller):
            with pytest.raises(RelayError, match="the media of a call cannot have a public endpoint: "):
                await opened.open_stream(a=INSIDE)
            await eventually(lambda: not opened.sides)
            assert not teller.open

    run(scenario())


def test_without_rtcp_a_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = Keeper.bind_shared

    @asynccontextmanager
    async def even_ports_only(self: Keeper, share: object) -> AsyncIterator[LiveBinding]:
        async with bind(self, share) as live:  # type: ignore[arg-type]  # whatever it is, it is handed on
            if live.local.port % 2:
                raise SymmetricNatError("the NAT is symmetric for this one")
            yield live

    monkeypatch.setattr(Keeper, "bind_shared", even_ports_only)

    async def scenario() -> None:
        async with engine() as (opened, _teller):
            [side] = sides_of(opened.sides, await opened.open_stream(a=INSIDE))
            assert public_of(side.rtp).port == side.local.port
            assert side.rtcp.binding is None

    run(scenario())


def test_an_engine_without_ports_says_so() -> None:
    async def scenario() -> None:
        async with Keeper.open(FORWARDED) as keeper:
            first, second = free_ports(2)
            few = SocketEngine(LOOPBACK, PortPairs(first, second + 1, entropy=secrets.token_bytes))
            opened = PublicEngine(few, keeper, Teller())
            await opened.open_stream()
            with pytest.raises(LocalAddressError):
                await opened.open_stream()
            await opened.close()

    run(scenario())


def test_the_answers_of_a_stun_server_are_no_media_and_media_is_nobody_elses() -> None:
    async def scenario() -> None:
        with bound() as phone, bound() as peer, bound() as stranger:
            async with stun_server() as server, engine(asking(server)) as (opened, teller):
                stream = await opened.open_stream(a=LOOPBACK)
                [side] = sides_of(teller.open, stream)
                assert public_of(side.rtp) == side.local  # loopback has no NAT
                for at, sock in ((Side.A, phone), (Side.B, peer)):
                    stream.expect(
                        at,
                        Expectation(
                            endpoint(sock),
                            payload_types=frozenset({PCMU}),
                            hosts=frozenset({LOOPBACK}),
                            is_proven=True,
                        ),
                    )
                assert [stream.statistics(each).foreign for each in Side] == [0, 0]
                strange = Message(StunMethod.BINDING, MessageClass.SUCCESS, bytes(range(12))).encode()
                stranger.sendto(strange, (str(side.local.ip), side.local.port))
                peer.sendto(rtp(1), (str(side.local.ip), side.local.port))
                heard = await asyncio.to_thread(phone.recv, 2048)
                assert heard == rtp(1)
                assert stream.statistics(Side.B).foreign == 1  # the answer to what nobody has asked

    run(scenario())


def test_a_change_is_told_and_rtp_that_stops_is_a_reason_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Endpoint] = []
    monkeypatch.setattr(LiveBinding, "check", lambda live: looked.append(live.local))

    async def scenario() -> None:
        with bound() as peer, bound() as phone:
            async with engine() as (opened, teller):
                stream = await opened.open_stream(a=LOOPBACK)
                [side] = sides_of(teller.open, stream)
                for at, sock in ((Side.A, phone), (Side.B, peer)):
                    stream.expect(
                        at, Expectation(endpoint(sock), payload_types=frozenset({PCMU}), is_proven=True)
                    )
                for number in range(1, 30):
                    peer.sendto(rtp(number), (str(side.local.ip), side.local.port))
                    await asyncio.sleep(0.02)
                await eventually(lambda: len(looked) >= 2)
                assert looked[:2] == [side.local, side.local.with_port(side.local.port + 1)]
                before = public_of(side.rtp)
                move(side.rtp)
                await eventually(lambda: bool(teller.told))
                [(told, kept, former)] = teller.told
                assert (told, kept, former.public) == (side, side.rtp, before)
                assert str(public_of(side.rtp)) == f"{NEW}:{side.local.port}"

    run(scenario())


def test_a_description_names_the_public_ports_and_a_change_is_told_the_peer() -> None:
    async def scenario() -> None:
        async with outside(alg()) as (opened, inside, peer):
            public = opened.engine(sockets())
            stream = await public.open_stream(a=INSIDE)
            local, port = opened.listener.local, stream.ports(Side.B).rtp.port
            invite = request("INVITE", local, body=SDP.format("127.0.0.1", port))
            opened.send(Transmit(invite, peer.endpoint, OUTSIDE))
            seen = await peer.next()
            assert SDP.format(PUBLIC, port).encode() in seen
            route = f"Record-Route: <sip:{peer.endpoint};lr>"
            await peer.send(answer(seen, "200 OK", "Contact: <sip:bob@127.0.0.1:9>", route), local)
            await inside.taken.get()
            opened.send(Transmit(request("ACK", local, to_tag="b"), peer.endpoint, OUTSIDE))
            assert (await peer.next()).startswith(b"ACK")
            [side] = sides_of(public.sides, stream)
            assert opened._kept is not None
            move(opened._kept, side.rtp, side.rtcp)
            told = SipMessage.parse(await peer.next())
            assert told.method == "INVITE"
            assert f"c=IN IP4 {NEW}\r\n".encode() in told.body
            assert f"m=audio {port} ".encode() in told.body
            assert b"o=- 1 2 IN IP4" in told.body
            await public.close()

    run(scenario())


def test_an_engine_whose_sockets_are_elsewhere_is_refused() -> None:
    async def scenario() -> None:
        async with outside() as (opened, _inside, _peer):
            elsewhere = RtpengineEngine.__new__(RtpengineEngine)
            with pytest.raises(RelayError, match="choose another"):
                opened.engine(elsewhere)

    run(scenario())
