"""The events of `network_changes` are what they say, as plain sockets on both sides see it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind, behavior
from nattools.lab.topology import SERVER, SERVER_ENDPOINTS, STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Wire, next_datagram
from tests.lab.network_changes import (
    change_client_address,
    change_wan_address,
    configure,
    forward_port,
    plug_in_cable,
    pull_cable,
    reboot_router,
)

if TYPE_CHECKING:
    import socket

    from tests.lab.conftest import OpenSockets

TRANSLATING = [kind for kind in NatKind if kind.translates and kind is not NatKind.BLOCKED]
DOUBLE = Topology(NatKind.FULL_CONE, NatKind.RESTRICTED_CONE)
NEW_WAN_ADDRESS = "203.0.113.77"
NOTHING_SECONDS = 0.1  # for what must not come in

why_no_igd_here = cache(why_no_igd)


def name_of(topology: Topology) -> str:
    kinds = [topology.nat, topology.second_nat]
    names = [kind.value for kind in kinds if kind is not None]
    return "-".join([*names, *(["igd"] if topology.igd is not None else [])])


def filters_as_its_kind(wire: Wire, topology: Topology, mapped: Endpoint) -> bool:
    """Whether exactly those get in who should, once the client has sent to the server alone."""
    reached = wire.who_reaches(wire.clients[-1], mapped, SERVER)
    expected = {
        "endpoint-independent": {*SERVER_ENDPOINTS, STRANGER},
        "address-dependent": {e for e in SERVER_ENDPOINTS if e.ip == SERVER.ip},
        "address-and-port-dependent": {SERVER},
    }
    return reached == expected[behavior(topology.nat, topology.second_nat).filtering]


@pytest.mark.parametrize("topology", [*map(Topology, TRANSLATING), DOUBLE], ids=name_of)
def test_another_wan_address_ends_every_mapping(topology: Topology, open_sockets: OpenSockets) -> None:
    with Lab(topology, start_server=False) as lab:
        wire = Wire(lab, open_sockets, clients=2)
        client, fresh = wire.clients
        mapped = wire.mapped(client, SERVER)
        change_wan_address(lab, NEW_WAN_ADDRESS)
        wire.public[SERVER].sendto(b"in", (str(mapped.ip), mapped.port))
        assert next_datagram(client, NOTHING_SECONDS) is None
        assert str(wire.mapped(client, SERVER).ip) == NEW_WAN_ADDRESS
        assert filters_as_its_kind(wire, topology, wire.mapped(fresh, SERVER))


@pytest.mark.parametrize("nat", [NatKind.OPEN, NatKind.SYMMETRIC_FIREWALL])
def test_another_wan_address_of_a_router_that_only_routes_is_not_seen(
    nat: NatKind, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        change_wan_address(lab, NEW_WAN_ADDRESS)
        assert str(wire.mapped(wire.clients[0], SERVER).ip) == lab.topology.client_address
        assert filters_as_its_kind(wire, lab.topology, wire.mapped(wire.clients[0], SERVER))


@pytest.mark.parametrize("nat", TRANSLATING)
def test_the_client_may_have_another_address(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        change_client_address(lab, "192.168.0.7")
        wire = Wire(lab, open_sockets, home="192.168.0.7")
        assert filters_as_its_kind(wire, lab.topology, wire.mapped(wire.clients[0], SERVER))


@pytest.mark.parametrize("nat", TRANSLATING)
def test_a_router_that_reboots_has_forgotten_whom_a_port_has_sent_to(
    nat: NatKind, open_sockets: OpenSockets
) -> None:
    with Lab(Topology(nat), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        reboot_router(lab)
        wire.public[SERVER].sendto(b"in", (str(mapped.ip), mapped.port))
        assert next_datagram(client, NOTHING_SECONDS) is None
        assert filters_as_its_kind(wire, lab.topology, wire.mapped(client, SERVER))


@pytest.mark.parametrize(
    "topology", [Topology(NatKind.OPEN), Topology(NatKind.PORT_RESTRICTED_CONE)], ids=name_of
)
def test_a_cable_that_was_pulled_and_put_back(topology: Topology, open_sockets: OpenSockets) -> None:
    with Lab(topology, start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        mapped = wire.mapped(client, SERVER)
        pull_cable(lab)
        with pytest.raises(OSError, match="unreachable"):
            wire.send(client, SERVER)
        plug_in_cable(lab)
        assert wire.mapped(client, SERVER) == mapped
        if topology.nat is NatKind.OPEN:
            (ours,) = open_sockets(lab.client, [Endpoint.parse("[2001:db8:1::108]:5060")])
            (theirs,) = open_sockets(lab.public, [Endpoint.parse("[2001:db8::20]:3478")])
            ours.sendto(b"out", ("2001:db8::20", 3478))
            assert next_datagram(theirs, PATIENCE_SECONDS) is not None


FORWARDING = [
    Topology(NatKind.SYMMETRIC_FIREWALL),
    *map(Topology, TRANSLATING),
    DOUBLE,
    Topology(NatKind.SYMMETRIC_FIREWALL, NatKind.PORT_RESTRICTED_CONE),
    Topology(NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC_FIREWALL),
    Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd()),
    Topology(NatKind.SYMMETRIC, igd=Igd()),
]


@pytest.mark.parametrize("topology", FORWARDING, ids=name_of)
def test_a_forwarded_port_is_open_to_anyone_and_no_other_is(
    topology: Topology, open_sockets: OpenSockets
) -> None:
    if topology.igd is not None and (missing := why_no_igd_here()) is not None:
        pytest.skip(missing)
    with Lab(topology, start_server=False) as lab:
        stranger, elsewhere = open_sockets(lab.public, [STRANGER, SERVER])
        forwarded, other = open_sockets(
            lab.client, [Endpoint.of(topology.client_address, port) for port in (5060, 5062)]
        )
        public = "203.0.113.1" if topology.igd is None else topology.igd.wan_address
        if not topology.nat.translates:
            public = "198.51.100.108"
        assert stays_out(stranger, forwarded, public, 5060)
        forward_port(lab, 5060, 5060)
        assert gets_in(stranger, forwarded, public, 5060)
        assert gets_in(elsewhere, forwarded, public, 5060)
        other.sendto(b"out", (str(SERVER.ip), SERVER.port))  # which maps it where it is a cone
        assert next_datagram(elsewhere, PATIENCE_SECONDS) is not None
        is_full_cone = behavior(topology.nat, topology.second_nat).filtering == "endpoint-independent"
        meets = gets_in if is_full_cone else stays_out
        assert meets(stranger, other, public, 5062)


def test_a_forwarded_port_may_be_another_one_inside(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab:
        forward_port(lab, 25060, 5060)
        (stranger,) = open_sockets(lab.public, [STRANGER])
        (client,) = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 5060)])
        assert gets_in(stranger, client, "203.0.113.1", 25060)
        assert stays_out(stranger, client, "203.0.113.1", 5060)


def gets_in(
    sender: socket.socket, receiver: socket.socket, ip: str, port: int, *, within_s: float = PATIENCE_SECONDS
) -> bool:
    sender.sendto(b"in", (ip, port))
    return next_datagram(receiver, within_s) is not None


def stays_out(sender: socket.socket, receiver: socket.socket, ip: str, port: int) -> bool:
    return not gets_in(sender, receiver, ip, port, within_s=NOTHING_SECONDS)


def test_tools_that_fail_are_told() -> None:
    with (
        Lab(Topology(NatKind.OPEN), start_server=False) as lab,
        pytest.raises(AssertionError, match="ip on the client"),
    ):
        configure(lab.client, "link set nothing up")
