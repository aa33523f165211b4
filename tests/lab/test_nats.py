"""Each kind of NAT does what its name says, as plain sockets on both sides of it see it.

No STUN and none of natcheck's code is in this proof: the laboratory can in turn prove those.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LabError
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind, behavior
from nattools.lab.topology import (
    ALTERNATE_SERVER,
    SERVER,
    SERVER_ENDPOINTS,
    STRANGER,
    WAN_ADDRESS,
    Topology,
)
from tests.lab.conftest import PATIENCE_SECONDS, Wire, endpoint_of, next_datagram, sources

if TYPE_CHECKING:
    from tests.lab.conftest import OpenSockets

IP_RECVERR = 11  # linux/in.h: report ICMP errors to a socket that is not connected, too

CONES = [NatKind.FULL_CONE, NatKind.RESTRICTED_CONE, NatKind.PORT_RESTRICTED_CONE]
PASSING = [kind for kind in NatKind if kind is not NatKind.BLOCKED]


def mapping_of(local: Endpoint, seen: dict[Endpoint, Endpoint]) -> str:
    """Name the mapping behavior from what each of the four server endpoints saw (RFC 4787 §4.1)."""
    if set(seen.values()) == {local}:
        return "none"
    if len(set(seen.values())) == 1:
        return "endpoint-independent"
    by_address = {ip: {seen[e] for e in seen if e.ip == ip} for ip in {e.ip for e in seen}}
    same_for_an_address = all(len(endpoints) == 1 for endpoints in by_address.values())
    return "address-dependent" if same_for_an_address else "address-and-port-dependent"


def filtering_of(reached: set[Endpoint], sent_to: Endpoint) -> str:
    """Name the filtering behavior from who reached a socket that had sent to one endpoint (RFC 4787 §5)."""
    if reached == {*SERVER_ENDPOINTS, STRANGER}:
        return "endpoint-independent"
    if reached == {e for e in SERVER_ENDPOINTS if e.ip == sent_to.ip}:
        return "address-dependent"
    assert reached == {sent_to}
    return "address-and-port-dependent"


def mappings_of(wire: Wire) -> list[dict[Endpoint, Endpoint]]:
    """What the server's endpoints see of each client socket. All have sent to all before one is read."""
    number = {client.fileno(): str(n).encode() for n, client in enumerate(wire.clients)}
    seen: list[dict[Endpoint, Endpoint]] = [{} for _ in wire.clients]
    for destination in SERVER_ENDPOINTS:
        for client in wire.clients:
            client.sendto(number[client.fileno()], (str(destination.ip), destination.port))
    for destination in SERVER_ENDPOINTS:
        for _ in wire.clients:
            received = next_datagram(wire.public[destination], PATIENCE_SECONDS)
            assert received is not None
            seen[int(received[0])][destination] = received[1]
    return seen


# Every kind alone, outside of the three that differ most, and inside of the one that hides least.
PAIRS: list[tuple[NatKind, NatKind | None]] = [
    *((kind, None) for kind in PASSING),
    *((kind, inner) for kind in PASSING for inner in (NatKind.OPEN, NatKind.FULL_CONE, NatKind.SYMMETRIC)),
    *(
        (NatKind.FULL_CONE, kind)
        for kind in PASSING[1:]
        if kind not in (NatKind.FULL_CONE, NatKind.SYMMETRIC)
    ),
]


@pytest.mark.parametrize(("nat", "second_nat"), PAIRS)
def test_mapping_and_filtering_are_those_of_the_kind(
    nat: NatKind, second_nat: NatKind | None, open_sockets: OpenSockets
) -> None:
    truth = behavior(nat, second_nat)
    with Lab(Topology(nat, second_nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=7)
        probe, other, *crowd = wire.clients
        # The others talk to everybody: what they may receive must not open the way to the probe's socket.
        for destination in (*SERVER_ENDPOINTS, STRANGER):
            wire.mapped(other, destination)
        mapped = wire.mapped(probe, SERVER)
        assert filtering_of(wire.who_reaches(probe, mapped, SERVER), SERVER) == truth.filtering
        wire.clients = crowd
        seen = mappings_of(wire)
        assert {
            mapping_of(endpoint_of(client.getsockname()), of_client)
            for client, of_client in zip(crowd, seen, strict=True)
        } == {truth.mapping}
        if truth.mapping == "endpoint-independent":
            assert [of_client[SERVER].port for of_client in seen] == [c.getsockname()[1] for c in crowd]


@pytest.mark.parametrize("nat", [NatKind.SYMMETRIC, NatKind.ADDRESS_DEPENDENT])
def test_a_kind_with_several_ports_does_not_keep_the_client_s(
    nat: NatKind, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=5)
        kept = [
            of_client[SERVER].port == client.getsockname()[1]
            for client, of_client in zip(wire.clients, mappings_of(wire), strict=True)
        ]
        assert sum(kept) <= 1


@pytest.mark.parametrize("nat", CONES)
def test_a_hundred_sockets_keep_their_ports(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=100)
        for client, seen in zip(wire.clients, mappings_of(wire), strict=True):
            assert set(seen.values()) == {Endpoint.of(WAN_ADDRESS, client.getsockname()[1])}


@pytest.mark.parametrize("nat", [kind for kind in PASSING if kind is not NatKind.OPEN])
def test_a_datagram_that_comes_before_the_mapping_is_dropped_and_takes_no_port(
    nat: NatKind, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        port = client.getsockname()[1]
        address = WAN_ADDRESS if nat.translates else lab.topology.client_address
        for early in wire.public.values():
            early.sendto(b"early", (address, port))
        [seen] = mappings_of(wire)
        assert list(sources(client)) == []
        assert mapping_of(endpoint_of(client.getsockname()), seen) == behavior(nat).mapping
        assert (seen[SERVER] == Endpoint.of(address, port)) is behavior(nat).mapping.startswith(
            ("none", "endpoint")
        )


def test_full_cone_keeps_the_mapping_towards_a_stranger_who_wrote_first(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.FULL_CONE), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        wire.public[STRANGER].sendto(b"in", (str(mapped.ip), mapped.port))
        assert list(sources(client, until=STRANGER)) == [STRANGER]
        assert wire.mapped(client, STRANGER) == mapped
        assert wire.mapped(client, ALTERNATE_SERVER) == mapped


@pytest.mark.parametrize("second_nat", [None, NatKind.PORT_RESTRICTED_CONE])
@pytest.mark.parametrize("nat", CONES)
def test_hairpinning_returns_a_datagram_from_the_external_endpoint(
    nat: NatKind, second_nat: NatKind | None, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat, second_nat, hairpin=True), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        for _ in range(2):
            wire.send(client, mapped)
            assert list(sources(client, until=mapped)) == [mapped]
        assert wire.mapped(client, ALTERNATE_SERVER) == mapped


@pytest.mark.parametrize("nat", CONES)
def test_hairpinning_reaches_another_socket_of_the_client(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat, hairpin=True), start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=2)
        first, second = wire.clients
        mapped = wire.mapped(first, SERVER)
        own = wire.mapped(second, SERVER)
        wire.send(second, mapped)
        assert list(sources(first, until=own)) == [own]
        wire.send(first, own)
        assert list(sources(second, until=mapped)) == [mapped]


@pytest.mark.parametrize("nat", CONES)
def test_hairpinning_does_not_change_the_filter(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat, hairpin=True), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        assert filtering_of(wire.who_reaches(client, mapped, SERVER), SERVER) == behavior(nat).filtering


@pytest.mark.parametrize("nat", [kind for kind in PASSING if kind.translates])
def test_without_hairpinning_the_router_is_silent(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=2)
        for client in wire.clients:
            client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        first, second = wire.clients
        mapped = wire.mapped(first, SERVER)
        wire.send(first, mapped)
        wire.send(second, mapped)
        wire.mapped(first, SERVER)  # the fence: whatever came back came before this
        for client in wire.clients:
            assert list(sources(client)) == []
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_sender_whom_the_filter_refuses_hears_nothing(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        stranger = wire.public[STRANGER]
        stranger.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        assert wire.who_reaches(client, mapped, SERVER) == {SERVER}
        assert stranger.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("second_nat", [None, NatKind.FULL_CONE])
def test_loss_is_that_share_each_way_and_once(second_nat: NatKind | None, open_sockets: OpenSockets) -> None:
    percent, count = 20, 1000
    with Lab(Topology(NatKind.FULL_CONE, second_nat, loss_percent=percent), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        server = wire.public[SERVER]
        mapped = Endpoint.of(WAN_ADDRESS, client.getsockname()[1])
        out = delivered(client, SERVER, server, count)
        back = delivered(server, mapped, client, count)
    deviation = math.sqrt(count * percent / 100 * (1 - percent / 100))
    for arrived in (out, back):
        assert abs(arrived - count * (1 - percent / 100)) < 4.5 * deviation


def delivered(sender: socket.socket, destination: Endpoint, receiver: socket.socket, count: int) -> int:
    """How many of `count` datagrams arrive, sent in bursts that a socket buffer holds."""
    arrived = 0
    for _ in range(count // 50):
        for _ in range(50):
            sender.sendto(b"x", (str(destination.ip), destination.port))
        arrived += sum(1 for _ in sources(receiver))
    return arrived


def test_all_is_lost_at_100_percent(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.OPEN, loss_percent=100), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        assert delivered(wire.clients[0], SERVER, wire.public[SERVER], 50) == 0


@pytest.mark.parametrize(
    ("nat", "second_nat"),
    [(NatKind.BLOCKED, None), (NatKind.FULL_CONE, NatKind.BLOCKED), (NatKind.BLOCKED, NatKind.OPEN)],
)
def test_blocked_drops_udp_and_passes_tcp(
    nat: NatKind, second_nat: NatKind | None, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat, second_nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        [listener] = open_sockets(lab.public, [SERVER], kind=socket.SOCK_STREAM)
        [caller] = open_sockets(
            lab.client, [Endpoint.of(lab.topology.client_address, 0)], kind=socket.SOCK_STREAM
        )
        for destination in wire.public:
            wire.send(client, destination)
        for sender in wire.public.values():
            sender.sendto(b"in", (WAN_ADDRESS, client.getsockname()[1]))
        listener.listen()
        caller.settimeout(PATIENCE_SECONDS)
        caller.connect((str(SERVER.ip), SERVER.port))
        listener.settimeout(PATIENCE_SECONDS)
        accepted, source = listener.accept()
        with accepted:
            assert str(endpoint_of(source).ip) == WAN_ADDRESS
            accepted.sendall(b"over TCP")
            assert caller.recv(100) == b"over TCP"
        for quiet in (client, *wire.public.values()):
            assert list(sources(quiet)) == []


def test_a_dead_alternate_address_neither_receives_nor_sends(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.OPEN, alternate_dead=True), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        wire.send(client, ALTERNATE_SERVER)
        mapped = wire.mapped(client, SERVER)
        assert list(sources(wire.public[ALTERNATE_SERVER])) == []
        with contextlib.suppress(PermissionError):  # what a sender is told when a rule drops its output
            wire.public[ALTERNATE_SERVER].sendto(b"in", (str(mapped.ip), mapped.port))
        wire.public[SERVER].sendto(b"in", (str(mapped.ip), mapped.port))
        assert list(sources(client, until=SERVER)) == [SERVER]


@pytest.mark.parametrize(("nat", "passes"), [(NatKind.OPEN, True), (NatKind.SYMMETRIC_FIREWALL, False)])
@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 in this Python")
def test_without_translation_there_is_ipv6(nat: NatKind, passes: bool, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        client, server, stranger = (
            open_sockets(host, [Endpoint.of(ip, port)])[0]
            for host, ip, port in (
                (lab.client, "2001:db8:1::108", 5000),
                (lab.public, "2001:db8::10", 3478),
                (lab.public, "2001:db8::20", 3478),
            )
        )
        client.sendto(b"out", server.getsockname())
        assert next_datagram(server, PATIENCE_SECONDS) == (b"out", Endpoint.of("2001:db8:1::108", 5000))
        stranger.sendto(b"in", client.getsockname())
        server.sendto(b"in", client.getsockname())
        reached = set(sources(client, until=endpoint_of(server.getsockname())))
        assert (endpoint_of(stranger.getsockname()) in reached) is passes


def test_laboratories_stand_side_by_side(open_sockets: OpenSockets) -> None:
    with (
        Lab(Topology(NatKind.OPEN), start_server=False) as first,
        Lab(Topology(NatKind.OPEN), start_server=False) as second,
    ):
        for wire in (Wire(first, open_sockets), Wire(second, open_sockets)):
            [client] = wire.clients
            assert wire.mapped(client, SERVER) == endpoint_of(client.getsockname())


def test_a_command_gets_its_status_streams_and_signals() -> None:
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        done = lab.client.run(["sh", "-c", "cat; echo wrong >&2; exit 7"], input="typed", timeout=10)
        assert (done.returncode, done.stdout, done.stderr) == (7, "typed", "wrong\n")
        assert lab.client.run(["sh", "-c", "kill -KILL $$"], timeout=10).returncode == -9
        for stop in ("terminate", "kill"):
            sleeper = lab.public.popen(["sh", "-c", "echo asleep; exec sleep 60"], stdout=subprocess.PIPE)
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "asleep\n"
            getattr(sleeper, stop)()
            assert sleeper.communicate(timeout=10)[0] == ""  # the end of its output is the end of the command
            assert sleeper.returncode == -getattr(signal, {"terminate": "SIGTERM", "kill": "SIGKILL"}[stop])


def test_a_look_up_of_a_name_fails_at_once() -> None:
    script = "import socket; socket.getaddrinfo('host.example', 80)"
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab:
        done = lab.client.run([sys.executable, "-c", script], timeout=10)
        assert "gaierror" in done.stderr


def test_a_server_that_does_not_come_up_is_reported() -> None:
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        broken = lab.public.popen(["false"])
        with pytest.raises(LabError, match="ended with status 1"):
            lab.wait_until_bound(broken, [SERVER])


VOVIDA_SAYS = {
    NatKind.OPEN: "Primary: Open",
    NatKind.SYMMETRIC_FIREWALL: "Primary: Firewall",
    NatKind.FULL_CONE: "Primary: Independent Mapping, Independent Filter, preserves ports, {} hairpin",
    NatKind.RESTRICTED_CONE: "Independent Mapping, Address Dependent Filter, preserves ports, {} hairpin",
    NatKind.PORT_RESTRICTED_CONE: "Independent Mapping, Port Dependent Filter, preserves ports, {} hairpin",
    NatKind.SYMMETRIC: "Primary: Dependent Mapping, random port, no hairpin",
    NatKind.ADDRESS_DEPENDENT: "Primary: Dependent Mapping, random port, no hairpin",
    NatKind.BLOCKED: "Primary: Blocked or could not reach STUN server",
}
VOVIDA_TOPOLOGIES = [*map(Topology, NatKind), *(Topology(nat, hairpin=True) for nat in CONES)]


@pytest.fixture(scope="module")
def vovida() -> dict[Topology, str]:
    """What vovida's client says of each network. It takes a second for each, so all of them run at once."""
    found = [shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin") for name in ("stun", "stund")]
    if None in found:
        pytest.skip("vovida's client or server is not installed (apt install stun-client stun-server)")
    client, server = map(str, found)
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with contextlib.ExitStack() as stack:
        asked = {}
        for topology in VOVIDA_TOPOLOGIES:
            lab = stack.enter_context(Lab(topology, start_server=False))
            addresses = ["-h", str(SERVER.ip), "-a", str(ALTERNATE_SERVER.ip)]
            lab.wait_until_bound(lab.public.popen([server, *addresses], stderr=nowhere), SERVER_ENDPOINTS)
            asked[topology] = lab.client.popen([client, str(SERVER.ip)], stdout=pipe, stderr=nowhere)
        return {topology: asking.communicate(timeout=30)[0] for topology, asking in asked.items()}


@pytest.mark.parametrize("topology", VOVIDA_TOPOLOGIES)
def test_vovida_s_client_agrees(topology: Topology, vovida: dict[Topology, str]) -> None:
    expected = VOVIDA_SAYS[topology.nat].format("will" if topology.hairpin else "no")
    assert expected in vovida[topology]
