"""Calls through `natgate` that something happens to: other addresses, forgetful NATs, injectors, holds."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TypedDict

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, WAN_ADDRESS, Topology
from tests.lab.conftest import PATIENCE_SECONDS, OpenSockets
from tests.lab.ears import Ears, ears
from tests.lab.kamailio import REGISTRAR, kamailio, lose_what_has_no_route, why_no_kamailio
from tests.lab.linphone import Linphone, why_no_linphone
from tests.lab.natgate import GATE, Natgate, natgate
from tests.lab.natgate_changes import silence_at_change
from tests.lab.rtpengine import rtpengine, why_no_rtpengine
from tests.lab.sip_peers import Baresip, Phone, why_no_baresip
from tests.lab.sipp import Sipp, why_no_sipp
from tests.lab.stalls import Since


class Words(TypedDict):
    """What all phones of natgate's users are told."""

    password: str
    server: Endpoint


ALICE_HZ, BOB_HZ, CAROL_HZ, DAVE_HZ = 440, 880, 1320, 440
PASSWORD = "sesame"
WORDS: Words = {"password": PASSWORD, "server": GATE}
USERS = dict.fromkeys(("alice", "bob", "carol", "dave"), PASSWORD)
NAT_TIMER_S = 6
KEEPALIVE_S = 2
IDLE_S = 31.0
SETTLES_S = 0.3
BACK_S = 2.0  # asked is 1 s, and measured a tenth of it: here the machine may be busy
DEAF_S = 0.5
RTP_PORTS = range(30000, 30060)
PORT_WORDS = ("--rtp-ports", f"{RTP_PORTS[0]}-{RTP_PORTS[-1]}")
INNER_ADDRESS = "198.51.100.108"
INJECTED_SSRC = 0xBADBAD00  # and the 255 behind it
PCMU = 0


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_baresip(), why_no_linphone(), why_no_sipp()):
        if reason is not None:
            pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Site:
    """A laboratory whose natgate is the registrar, and Bob on the public side."""

    lab: Lab
    gate: Natgate
    gate_host: Host
    nat_host: Host
    nat_address: str
    bob: Baresip

    def alice(self) -> Baresip:
        """A phone behind the NAT."""
        server = self.bob.server
        return Baresip.inside(self.lab, "alice", plays_hz=ALICE_HZ, password=PASSWORD, server=server)


@contextmanager
def by_sockets(topology: Topology, settings: str = "") -> Iterator[Site]:
    """Natgate on the public side, as anybody has it."""
    with (
        Lab(topology, start_server=False) as lab,
        natgate(lab, *PORT_WORDS, users=USERS, settings=settings) as gate,
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD, server=GATE) as bob,
    ):
        lose_what_has_no_route(lab)
        bob.register()
        yield Site(lab, gate, lab.public, lab.router, WAN_ADDRESS, bob)


@contextmanager
def by_kernel(nat: NatKind) -> Iterator[Site]:
    """Natgate on a router between a NAT and the public side, whose nftables carry what it relays."""
    at = Endpoint.of(WAN_ADDRESS, GATE.port)
    with (
        Lab(Topology(NatKind.OPEN, second_nat=nat), start_server=False) as lab,
        natgate(lab, *PORT_WORDS, "--engine", "kernel", users=USERS, at=at, host=lab.router) as gate,
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD, server=at) as bob,
    ):
        bob.register()
        assert lab.inner_router is not None
        yield Site(lab, gate, lab.router, lab.inner_router, INNER_ADDRESS, bob)


@contextmanager
def by_rtpengine(nat: NatKind) -> Iterator[Site]:
    """Natgate on the public side, beside an rtpengine that carries the media."""
    with (
        Lab(Topology(nat), start_server=False) as lab,
        rtpengine(lab.public, GATE.ip),
        natgate(lab, "--engine", "rtpengine", users=USERS) as gate,
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD, server=GATE) as bob,
    ):
        lose_what_has_no_route(lab)
        bob.register()
        yield Site(lab, gate, lab.public, lab.router, WAN_ADDRESS, bob)


def at_home(lab: Lab, port: int) -> Endpoint:
    return Endpoint.of(lab.topology.client_address, port)


def connect(caller: Phone, callee: Phone) -> None:
    caller.call(callee.user)
    caller.wait_established()
    callee.wait_established()


def hear_each_other(one: Phone, other: Phone) -> None:
    assert one.hear() == {other.plays_hz}
    assert other.hear() == {one.plays_hz}


def end(caller: Phone, callee: Phone) -> None:
    caller.hang_up()
    callee.wait_ended()
    caller.wait_ended()


def injected(sequence: int, ssrc: int) -> bytes:
    return struct.pack("!BBHII", 0x80, PCMU, sequence & 0xFFFF, sequence * 160 & 0xFFFFFFFF, ssrc) + bytes(
        160
    )


@contextmanager
def injector(at: socket.socket, number: int, relay: Endpoint) -> Iterator[None]:
    """Send RTP, as a phone of the same codec would, to every port of the relay again and again."""
    is_over = Event()

    def work() -> None:
        dice = random.Random(number)
        sequence = dice.randrange(0x10000)
        while not is_over.wait(0.02):
            sequence += 1
            for port in RTP_PORTS:
                at.sendto(injected(sequence, INJECTED_SSRC + number), (str(relay.ip), port))

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(PATIENCE_SECONDS)


def is_injected(ssrc: int) -> bool:
    return ssrc >> 8 == INJECTED_SSRC >> 8


def foreign(gate: Natgate) -> list[int]:
    """How many packets of others natgate has counted on either side of the only call."""
    [call] = gate.status().calls
    [stream] = call.streams
    return [stream.a.foreign, stream.b.foreign]


def keep_injectors_out(site: Site, alice: Phone, open_sockets: OpenSockets) -> None:
    """A call that one injector tries from before it begins, and later others on the phones' own hosts."""
    lab, gate, bob = site.lab, site.gate, site.bob
    [stranger] = open_sockets(lab.public, [STRANGER.with_port(40000)])
    [beside_bob] = open_sockets(lab.public, [SERVER.with_port(40002)])
    [beside_alice] = open_sockets(site.nat_host, [Endpoint.of(site.nat_address, 40004)])
    relay = bob.server
    with (
        ears(lab.client) as at_alice,
        ears(lab.public) as at_bob,
        ears(site.gate_host) as at_gate,
        ExitStack() as injectors,
    ):
        injectors.enter_context(injector(stranger, 0, relay))
        connect(bob, alice)
        hear_each_other(alice, bob)
        before = foreign(gate)
        injectors.enter_context(injector(beside_bob, 1, relay))
        injectors.enter_context(injector(beside_alice, 2, relay))
        hear_each_other(alice, bob)
        time.sleep(SETTLES_S)
        hear_each_other(alice, bob)
        assert all(now > then for now, then in zip(foreign(gate), before, strict=True))
        to_alice = [packet.ssrc for packet in at_alice.packets()]
        to_bob = [packet.ssrc for packet in at_bob.packets() if packet.to.ip == SERVER.ip]
        to_gate = {packet.ssrc for packet in at_gate.packets() if packet.to.ip == relay.ip}
        end(bob, alice)
    assert {INJECTED_SSRC, INJECTED_SSRC + 1, INJECTED_SSRC + 2} <= to_gate
    assert to_alice
    assert to_bob
    assert not any(map(is_injected, to_alice + to_bob))


def voices(heard: Ears, at: Endpoint) -> set[int]:
    """Whose RTP comes to a phone's host within a short while, by SSRC."""
    began = time.monotonic()
    time.sleep(DEAF_S)
    return {
        packet.ssrc
        for packet in heard.packets()
        if packet.to.ip == at.ip and packet.payload_type == PCMU and packet.at_s > began
    }


def hold_and_resume(site: Site, alice: Baresip) -> None:
    """A call that is put on hold, in which nobody hears anything, and taken up again.

    Judged by what comes to the hosts: what baresip 1.0 records ends when it is put on hold.
    """
    lab, bob = site.lab, site.bob
    connect(alice, bob)
    hear_each_other(alice, bob)
    with ears(lab.client) as at_alice, ears(lab.public) as at_bob:
        before = voices(at_alice, at_home(lab, 0)), voices(at_bob, SERVER)
        assert [len(ssrcs) for ssrcs in before] == [1, 1]
        alice.hold()
        time.sleep(SETTLES_S)
        assert voices(at_alice, at_home(lab, 0)) | voices(at_bob, SERVER) == set()
        alice.resume()
        time.sleep(SETTLES_S)
        assert (voices(at_alice, at_home(lab, 0)), voices(at_bob, SERVER)) == before
    end(bob, alice)


def test_behind_a_forgetful_nat_phones_are_called_hold_and_talk_at_once(open_sockets: OpenSockets) -> None:
    forgetful = Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=NAT_TIMER_S)
    with (
        by_sockets(forgetful, settings=f"keepalive_s = {KEEPALIVE_S}\ndead_after = 5\n") as site,
        site.alice() as alice,
        Linphone(site.lab.client, "carol", at_home(site.lab, 5062), plays_hz=CAROL_HZ, **WORDS) as carol,
        Sipp(site.lab.client, "dave", at_home(site.lab, 5064), plays_hz=DAVE_HZ, **WORDS) as dave,
    ):
        dave.register()
        idle_until = time.monotonic() + IDLE_S  # sipp says nothing by itself
        alice.register()
        carol.register()
        hold_and_resume(site, alice)
        keep_injectors_out(site, alice, open_sockets)
        connect(carol, alice)  # behind the same NAT
        hear_each_other(carol, alice)
        time.sleep(max(0.0, idle_until - time.monotonic()))
        connect(site.bob, dave)
        hear_each_other(site.bob, dave)
        hear_each_other(carol, alice)
        assert len(site.gate.status().calls) == 2
        end(site.bob, dave)
        end(alice, carol)


@pytest.mark.parametrize("nat", [NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC])
def test_when_the_nat_has_another_address_in_mid_call_both_soon_hear_again(nat: NatKind) -> None:
    with by_sockets(Topology(nat)) as site, site.alice() as alice:
        alice.register()
        connect(site.bob, alice)
        hear_each_other(alice, site.bob)
        since = Since()
        silence = silence_at_change(site.lab, "203.0.113.98")
        assert max(silence.inside_s, silence.outside_s) - since.short_s < BACK_S
        hear_each_other(alice, site.bob)
        end(alice, site.bob)


def test_what_the_kernel_relays_is_kept_from_injectors_and_follows_the_nat(open_sockets: OpenSockets) -> None:
    with by_kernel(NatKind.SYMMETRIC) as site, site.alice() as alice:
        alice.register()
        keep_injectors_out(site, alice, open_sockets)
        connect(alice, site.bob)
        hear_each_other(alice, site.bob)
        assert [stream.in_kernel for call in site.gate.status().calls for stream in call.streams] == [True]
        since = Since()
        silence = silence_at_change(site.lab, "198.51.100.98")
        assert max(silence.inside_s, silence.outside_s) - since.short_s < BACK_S
        hear_each_other(alice, site.bob)
        assert [stream.in_kernel for call in site.gate.status().calls for stream in call.streams] == [True]
        end(alice, site.bob)


@pytest.mark.skipif(why_no_rtpengine() is not None, reason=why_no_rtpengine() or "")
def test_what_rtpengine_relays_is_heard_behind_a_symmetric_nat_whoever_calls() -> None:
    with by_rtpengine(NatKind.SYMMETRIC) as site, site.alice() as alice:
        alice.register()
        for caller, callee in ((alice, site.bob), (site.bob, alice)):
            connect(caller, callee)
            hear_each_other(alice, site.bob)
            end(caller, callee)


def test_two_phones_behind_one_nat_talk_through_a_registrar_that_knows_no_nats() -> None:
    if (reason := why_no_kamailio()) is not None:
        pytest.skip(reason)
    with (
        Lab(Topology(NatKind.SYMMETRIC), start_server=False) as lab,
        kamailio(lab, password=PASSWORD, gruu=True),
        natgate(lab, "--upstream", f"sip:{REGISTRAR}") as gate,
        Baresip.inside(lab, "alice", plays_hz=ALICE_HZ, **WORDS) as alice,
        Linphone(lab.client, "carol", at_home(lab, 5062), plays_hz=CAROL_HZ, **WORDS) as carol,
    ):
        alice.register()
        carol.register()
        for caller, callee in ((alice, carol), (carol, alice)):
            connect(caller, callee)
            hear_each_other(caller, callee)
            end(callee, caller)
        assert not gate.status().calls
