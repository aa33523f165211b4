"""Calls through the sockets engine on loopback: RTP that signalling has made room for, and no other."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.session.engines.sockets import SocketEngine
from nattools.session.ports import PortPairs
from tests.unit.session.media_desk import MediaDesk, sdp, told
from tests.unit.session.proxy_desk import ALICE, BOB, BOB_TARGET
from tests.unit.session.rtp import rtp

_WITHIN_S = 20.0
_FENCE_S = 0.05  # for a datagram on loopback that should not be there
RELAY = ip_address("127.0.0.1")
ALICES, BOBS = 0xA11CE, 0xB0B


class Ear:
    """A socket of a phone, or of somebody else."""

    def __init__(self, stack: ExitStack, address: str) -> None:
        self.socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.bind((address, 0))
        self.socket.setblocking(False)
        self.at = Endpoint.of(*self.socket.getsockname())

    def say(self, data: bytes, to: Endpoint) -> None:
        self.socket.sendto(data, (str(to.ip), to.port))

    async def heard(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 2048), _WITHIN_S)

    async def hears_nothing(self) -> bool:
        await asyncio.sleep(_FENCE_S)
        try:
            self.socket.recv(2048)
        except BlockingIOError:
            return True
        return False


@contextmanager
def desk_with_sockets() -> Iterator[tuple[MediaDesk, ExitStack]]:
    pairs = PortPairs(20000, 29999, entropy=secrets.token_bytes)
    with ExitStack() as stack, MediaDesk(BOB_TARGET, carrier=SocketEngine(RELAY, pairs)) as desk:
        desk.facing[ALICE] = desk.facing[BOB] = RELAY
        yield desk, stack


def described(ear: Ear) -> bytes:
    return sdp(f"m=audio {ear.at.port} RTP/AVP 0 101", ip=str(ear.at.ip))


def call(desk: MediaDesk, alice: Ear, bob: Ear) -> tuple[Endpoint, Endpoint]:
    """A call of both; where each of them sends to."""
    invite, ok = desk.call(described(alice), described(bob))
    (for_bob,), (for_alice,) = told(invite), told(ok)
    assert for_alice is not None
    assert for_bob is not None
    return for_alice, for_bob


async def hear_each_other(
    alice: Ear, bob: Ear, ports: tuple[Endpoint, Endpoint], *, ssrc: int = ALICES, first: int = 0
) -> None:
    """Some packets both ways. Until Alice has been heard, nothing goes to her private address."""
    alices, bobs = ports
    for number in range(first, first + 3):
        bob.say(rtp(number, ssrc=BOBS), bobs)
    alice.say(rtp(first, ssrc=ssrc), alices)
    while await bob.heard() != rtp(first, ssrc=ssrc):
        alice.say(rtp(first, ssrc=ssrc), alices)
    bob.say(rtp(first + 3, ssrc=BOBS), bobs)
    while await alice.heard() != rtp(first + 3, ssrc=BOBS):
        pass


def test_both_hear_each_other_and_nobody_else() -> None:
    with desk_with_sockets() as (desk, stack):
        alice, bob, stranger = (Ear(stack, f"127.0.0.{last}") for last in (2, 3, 66))
        ports = call(desk, alice, bob)

        async def talk() -> None:
            await hear_each_other(alice, bob, ports)
            for number in range(8):
                for port in ports:
                    stranger.say(rtp(number, ssrc=666), port)
                    stranger.say(rtp(1000 + number, ssrc=ALICES), port)
            assert await bob.hears_nothing()
            assert await alice.hears_nothing()

        desk.runner.run(talk())
        (shown,) = desk.media.status(b"call")
        assert (shown.a.source, shown.b.source) == (alice.at, bob.at)
        assert (shown.a.foreign, shown.b.foreign) == (16, 16)


@pytest.mark.parametrize("place", ["127.0.0.2", "127.0.0.9"])
def test_after_a_change_of_address_in_mid_call_both_hear_again(place: str) -> None:
    """Another port, as after a NAT's restart, and another address, as after a change of the WAN."""
    with desk_with_sockets() as (desk, stack):
        alice, bob, moved = (Ear(stack, it) for it in ("127.0.0.2", "127.0.0.3", place))
        alices, bobs = ports = call(desk, alice, bob)

        async def talk() -> None:
            await hear_each_other(alice, bob, ports)
            moved.say(rtp(20, ssrc=ALICES), alices)
            assert await bob.heard() == rtp(20, ssrc=ALICES), "its first packet counts"
            bob.say(rtp(20, ssrc=BOBS), bobs)
            assert await moved.heard() == rtp(20, ssrc=BOBS)

        desk.runner.run(talk())


def test_a_reinvite_from_elsewhere_opens_the_way_from_there() -> None:
    with desk_with_sockets() as (desk, stack):
        alice, bob, moved = (Ear(stack, f"127.0.0.{last}") for last in (2, 3, 9))
        ports = call(desk, alice, bob)
        desk.runner.run(hear_each_other(alice, bob, ports))
        (invite,) = [it for it in desk.within("INVITE", described(moved)) if it.is_request]
        desk.says(invite, 200, described(bob))
        desk.runner.run(hear_each_other(moved, bob, ports, ssrc=0xA11CE2, first=40))


def test_the_end_of_a_call_frees_its_ports() -> None:
    with desk_with_sockets() as (desk, stack):
        alice, bob = Ear(stack, "127.0.0.2"), Ear(stack, "127.0.0.3")
        ports = call(desk, alice, bob)
        (bye,) = desk.within("BYE", cseq=3)
        desk.says(bye)
        for port in ports:
            again = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            again.bind((str(port.ip), port.port))
