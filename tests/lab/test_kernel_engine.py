"""The kernel engine: nftables relays, and nobody but the two phones of a call has anything of it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_SERVER, SERVER, STRANGER, Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, next_datagram
from tests.lab.remote_relay import RELAY_ADDRESS, Phone, heard, is_followed, rtcp, rtp, running_relay, talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.conftest import OpenSockets
    from tests.lab.remote_relay import RemoteRelay

NAME = "lab_relay"
A = Endpoint.of("198.51.100.108", 5004)
B = SERVER.with_port(6004)
MANY = 50
MOST_HOPS = 255


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology(NatKind.OPEN), start_server=False) as built:
        yield built


@pytest.fixture
def relay(lab: Lab) -> Iterator[RemoteRelay]:
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as running:
        assert running.tell() == {"ready": True}
        yield running
        if running.process.poll() is None:
            running.close()
    assert tables(lab) == ""


def tables(lab: Lab) -> str:
    """Those tables of the relay that its machine has."""
    listed = lab.router.run(["nft", "list", "tables"], timeout=PATIENCE_SECONDS).stdout
    return "".join(line for line in listed.splitlines() if NAME in line)


def datagrams_seen_by_programs(lab: Lab) -> int:
    """How many UDP datagrams the sockets of the relay's machine have got (RFC 4113, udpInDatagrams)."""
    snmp = lab.router.run(["cat", "/proc/net/snmp"], timeout=PATIENCE_SECONDS).stdout
    names, numbers = (line.split() for line in snmp.splitlines() if line.startswith("Udp:"))
    return int(numbers[names.index("InDatagrams")])


def carried(relay: RemoteRelay, *, name: str = "call") -> list[bool]:
    """Whether the kernel has the RTP of the sides."""
    told = relay.do("look", name)
    return [told[side]["carried"][0] for side in "ab"]


def packets_of(relay: RemoteRelay) -> int:
    told = relay.do("look")
    return sum(int(told[side]["packets"]) for side in "ab")


def until_carried(relay: RemoteRelay, *, name: str = "call") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while carried(relay, name=name) != [True, True]:
        assert time.monotonic() < deadline, relay.do("look", name)


def test_both_ways_go_through_the_kernel_alone(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    before = datagrams_seen_by_programs(lab)
    assert talk(a, b, packets=MANY)
    assert datagrams_seen_by_programs(lab) == before
    told = relay.do("look")
    for side in "ab":
        assert told[side]["packets"] == MANY + 3
        assert told[side]["octets"] == (MANY + 3) * len(rtp(0))
        assert (told[side]["lost"], told[side]["foreign"]) == (0, 0)


def test_what_the_kernel_carries_is_counted_while_nobody_asks(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    assert talk(a, b, packets=MANY)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while [relay.do("tell")[side]["packets"] for side in "ab"] != [MANY + 3] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_phones_on_the_same_network_are_relayed_too(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    one, other = open_sockets(lab.public, [B, STRANGER.with_port(5004)])
    a, b = relay.call(one, other)
    assert talk(a, b)
    until_carried(relay)
    before = datagrams_seen_by_programs(lab)
    assert talk(a, b, packets=MANY)
    assert datagrams_seen_by_programs(lab) == before


def test_a_phone_on_the_relay_itself_is_left_to_the_sockets(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    home = Endpoint.of(RELAY_ADDRESS, 5004)
    a, b = relay.call(*open_sockets(lab.router, [home]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    assert carried(relay) == [False, False]
    assert talk(a, b)


def test_rtcp_goes_through_the_kernel_by_the_ports_after(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a_rtp, a_rtcp = open_sockets(lab.client, [A, A.with_port(A.port + 1)])
    b_rtp, b_rtcp = open_sockets(lab.public, [B, B.with_port(B.port + 1)])
    a, b = relay.call(a_rtp, b_rtp)
    assert talk(a, b)
    to_a, to_b = (it.relay.with_port(it.relay.port + 1) for it in (a, b))
    for _ in range(2):
        for sender, relayed_at, listener, comes_from in (
            (a_rtcp, to_a, b_rtcp, to_b),
            (b_rtcp, to_b, a_rtcp, to_a),
        ):
            sender.sendto(rtcp(), (str(relayed_at.ip), relayed_at.port))
            assert next_datagram(listener, PATIENCE_SECONDS) == (rtcp(), comes_from)
        told = relay.do("look")
    assert [told[side]["carried"] for side in "ab"] == [[True, True]] * 2


def test_nobody_else_gets_a_packet_through_or_is_sent_one(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    (a_socket,) = open_sockets(lab.client, [A])
    elsewhere = [B.with_port(6006), STRANGER.with_port(6004), ALTERNATE_SERVER.with_port(6004)]
    b_socket, *others = open_sockets(lab.public, [B, *elsewhere])
    a, b = relay.call(a_socket, b_socket)
    assert talk(a, b)
    until_carried(relay)
    for other in others:
        for port in (a.relay, b.relay):
            for number in range(MANY):
                other.sendto(rtp(number, ssrc=0xBAD), (str(port.ip), port.port))
    assert talk(a, b)
    assert [heard(it) for it in (a_socket, b_socket, *others)] == [None] * 5
    told = relay.do("look")
    assert sum(told[side]["foreign"] for side in "ab") == MANY * 2 * len(others)
    assert [told[side]["latched"] for side in "ab"] == [str(A), str(B)]


def test_a_fragmented_datagram_arrives_whole(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    large = rtp(a.sequence, ssrc=a.ssrc)[:12] + bytes(1900)
    a.socket.sendto(large, (str(a.relay.ip), a.relay.port))
    assert b.hears(large, source=b.relay)


def test_a_phone_that_moves_is_followed_by_its_stream(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    at_first, moved = open_sockets(lab.client, [A, A.with_port(5014)])
    a, b = relay.call(at_first, *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    for _ in range(600):  # more than the window of sequence numbers, and all of it past the sockets
        assert b.hears(a.say(), source=b.relay)
    time.sleep(1.1)  # in the kernel's memory is a packet of the last second, at 50 a second soon enough
    assert b.hears(a.say(), source=b.relay)
    relay.do("look")
    new = Phone(moved, a.relay, a.sequence, a.ssrc)
    assert is_followed(new, b)
    until_carried(relay)
    assert talk(new, b)
    told = relay.do("look")
    assert told["a"]["latched"] == str(A.with_port(5014))


def test_the_old_place_of_a_phone_that_moved_is_a_stranger(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    at_first, moved = open_sockets(lab.client, [A.with_port(5014), A.with_port(5024)])
    a, b = relay.call(at_first, *open_sockets(lab.public, [B]))
    relay.do("expect", side="a", rtp=str(A))  # neither place is the one that signalling has told
    a.say()
    assert talk(a, b)
    until_carried(relay)
    relay.do("look")
    new = Phone(moved, a.relay, a.sequence, a.ssrc)
    assert is_followed(new, b)
    until_carried(relay)
    for number in range(MANY):
        at_first.sendto(rtp(number, ssrc=0xBAD), (str(a.relay.ip), a.relay.port))
        assert talk(new, b, packets=1)
    assert heard(b.socket) is None
    assert relay.do("look")["a"]["latched"] == str(A.with_port(5024))


def test_a_stranger_cannot_take_a_stream_that_still_speaks(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    (a_socket,) = open_sockets(lab.client, [A])
    b_socket, other = open_sockets(lab.public, [B, B.with_port(6006)])  # B's own host: the best evidence
    a, b = relay.call(a_socket, b_socket)
    assert talk(a, b)
    until_carried(relay)
    relay.do("expect", side="b", rtp=str(B))
    for number in range(MANY):  # signalling has just told: this is the time when a side may be taken
        packet = b.say()
        other.sendto(rtp(number, ssrc=0xBAD), (str(b.relay.ip), b.relay.port))
        assert a.hears(packet, source=a.relay)
        time.sleep(0.01)
    assert heard(a.socket) is None
    assert relay.do("look")["b"]["latched"] == str(B)


def test_hold_ends_what_is_sent(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    relay.do("expect", side="b", rtp=None)
    a.say()
    assert next_datagram(b.socket, 0.1) is None
    assert carried(relay) == [False, True]
    relay.do("expect", side="b", rtp=str(B))
    assert talk(a, b)


def test_closing_a_stream_ends_it_at_once_and_no_other(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a_sockets = open_sockets(lab.client, [A, A.with_port(5014)])
    b_sockets = open_sockets(lab.public, [B, B.with_port(6014)])
    calls = [relay.call(a_sockets[n], b_sockets[n], name=f"call{n}") for n in range(2)]
    for n, (a, b) in enumerate(calls):
        assert talk(a, b)
        until_carried(relay, name=f"call{n}")
    relay.do("close", "call0")
    calls[0][0].say()
    calls[0][1].say()
    assert talk(*calls[1])
    assert [heard(it.socket) for it in calls[0]] == [None, None]


def test_calls_go_on_without_the_process_and_the_next_one_takes_them_over(
    lab: Lab, open_sockets: OpenSockets
) -> None:
    a_socket, moved = open_sockets(lab.client, [A, A.with_port(5014)])
    (b_socket,) = open_sockets(lab.public, [B])
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as relay:
        assert relay.tell() == {"ready": True}
        a, b = relay.call(a_socket, b_socket)
        assert talk(a, b)
        until_carried(relay)
        relay.process.send_signal(signal.SIGKILL)
        relay.process.wait(PATIENCE_SECONDS)
    assert talk(a, b, packets=MANY)
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as relay:
        assert relay.tell() == {"ready": True}
        assert talk(a, b, packets=MANY)
        assert relay.do("find", "found") == 1
        assert relay.do("look", "found0")["a"]["rtp"] == str(a.relay)
        for side, at in (("a", A), ("b", B)):
            relay.do("expect", "found0", side=side, rtp=str(at))
            assert talk(a, b)
        relay.do("look", "found0")
        new = Phone(moved, a.relay, a.sequence, a.ssrc)
        assert is_followed(new, b)
        relay.do("close", "found0")
        new.say()
        assert next_datagram(b.socket, 0.1) is None
        relay.close()
    assert tables(lab) == ""


def test_a_stream_whose_ports_are_gone_is_taken_out_of_the_kernel(
    lab: Lab, open_sockets: OpenSockets
) -> None:
    (a_socket,), (b_socket,) = open_sockets(lab.client, [A]), open_sockets(lab.public, [B])
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as relay:
        assert relay.tell() == {"ready": True}
        a, b = relay.call(a_socket, b_socket)
        assert talk(a, b)
        until_carried(relay)
        relay.process.send_signal(signal.SIGKILL)
        relay.process.wait(PATIENCE_SECONDS)
    open_sockets(lab.router, [a.relay])
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as relay:
        assert relay.tell() == {"ready": True}
        assert relay.do("find", "found") == 0
        a.say()
        b.say()
        assert [next_datagram(it.socket, 0.1) for it in (a, b)] == [None, None]
        relay.close()
    assert tables(lab) == ""


def test_what_somebody_else_removed_is_put_back(
    lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets
) -> None:
    a, b = relay.call(*open_sockets(lab.client, [A]), *open_sockets(lab.public, [B]))
    assert talk(a, b)
    until_carried(relay)
    flushed = lab.router.run(["nft", "delete", "table", "ip", NAME], timeout=PATIENCE_SECONDS)
    assert flushed.returncode == 0
    assert talk(a, b)  # by the sockets
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (
        NAME not in tables(lab)
        or "198.51.100.108"
        not in lab.router.run(["nft", "list", "table", "ip", NAME], timeout=PATIENCE_SECONDS).stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = datagrams_seen_by_programs(lab)
    assert talk(a, b, packets=MANY)
    assert datagrams_seen_by_programs(lab) == before


def test_two_processes_do_not_share_a_name(lab: Lab, relay: RemoteRelay) -> None:
    with running_relay(lab.router, "kernel", RELAY_ADDRESS, NAME) as second:
        assert "another process relays" in second.tell()["error"]


def test_a_machine_that_does_not_forward_says_so(lab: Lab) -> None:
    with running_relay(lab.client, "kernel", "198.51.100.108", NAME) as refused:
        assert "sysctl -w net.ipv4.ip_forward=1" in refused.tell()["error"]


def test_streams_over_ipv6_are_carried_too(lab: Lab, relay: RemoteRelay, open_sockets: OpenSockets) -> None:
    at = "2001:db8::1"
    a_at, b_at = Endpoint.of("2001:db8:1::108", 5004), Endpoint.of("2001:db8::10", 6004)
    (a_socket,), (b_socket,) = open_sockets(lab.client, [a_at]), open_sockets(lab.public, [b_at])
    told = relay.do("open", at={"a": at, "b": at})
    a = Phone(a_socket, Endpoint.parse(told["a"]["rtp"]), ssrc=1)
    b = Phone(b_socket, Endpoint.parse(told["b"]["rtp"]), ssrc=2)
    relay.do("expect", side="a", rtp=str(a_at), hosts=["2001:db8:1::108"])
    relay.do("expect", side="b", rtp=str(b_at))
    assert talk(a, b)
    until_carried(relay)
    before = datagrams_seen_by_programs(lab)
    assert talk(a, b, packets=MANY)
    assert datagrams_seen_by_programs(lab) == before


def test_what_circles_between_two_kernels_ends_as_between_routers(lab: Lab, relay: RemoteRelay) -> None:
    forwarding = ["sysctl", "-w", "net.ipv4.ip_forward=1"]
    assert lab.public.run(forwarding, timeout=PATIENCE_SECONDS).returncode == 0
    with running_relay(lab.public, "kernel", str(B.ip), NAME) as there:
        assert there.tell() == {"ready": True}
        relays = (relay, there)
        told = [each.do("open") for each in relays]
        ports = [{side: it[side]["rtp"] for side in "ab"} for it in told]
        for here, others in zip(relays, reversed(ports), strict=True):
            for side in "ab":
                here.do("expect", side=side, rtp=others[side])
        for side in "ab":  # by these each relay learns where packets come from
            there.do("say", socket=f"{side}.rtp", data=rtp(1).hex(), to=ports[0][side])
        for each in relays:
            until_carried(each)
        before, seen_before = packets_of(relay), datagrams_seen_by_programs(lab)
        there.do("say", socket="a.rtp", data=rtp(2).hex(), to=ports[0]["a"])
        rounds, deadline = 0, time.monotonic() + PATIENCE_SECONDS
        while (more := packets_of(relay) - before) > rounds or more <= 2:
            rounds = more
            assert time.monotonic() < deadline, "it did not come back, or it circles"
            time.sleep(FENCE_SECONDS)
        assert rounds < MOST_HOPS
        assert datagrams_seen_by_programs(lab) == seen_before
        there.close()
    unforwarding = ["sysctl", "-w", "net.ipv4.ip_forward=0"]
    assert lab.public.run(unforwarding, timeout=PATIENCE_SECONDS).returncode == 0
