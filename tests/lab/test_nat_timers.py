"""A NAT forgets a UDP flow after the silence that it was given, and not before (RFC 4787 §4.3)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from nattools.errors import LabError
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, Wire, next_datagram

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from nattools.endpoint import Endpoint
    from tests.lab.conftest import OpenSockets

TIMEOUT_S = 4
TALK_S = 2
SILENCE_S = 6
NOTHING_SECONDS = 0.1  # for what must not come in

NETWORKS = {
    **{
        kind.value: Topology(kind, udp_timeout_s=TIMEOUT_S)
        for kind in NatKind
        if kind.remembers and kind is not NatKind.SYMMETRIC
    },
    "symmetric, with a miniupnpd": Topology(NatKind.SYMMETRIC, igd=Igd(), udp_timeout_s=TIMEOUT_S),
    "double": Topology(NatKind.RESTRICTED_CONE, NatKind.FULL_CONE, udp_timeout_s=TIMEOUT_S),
    "inner": Topology(NatKind.OPEN, NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=TIMEOUT_S),
}


@pytest.fixture
def laboratories() -> Iterator[dict[str, Lab]]:
    """All the networks at once, since each needs the same time."""
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(Lab(topology, start_server=False))
            for name, topology in NETWORKS.items()
            if topology.igd is None or why_no_igd() is None
        }
        yield found


def comes_in(wire: Wire, mapped: Endpoint, client: socket.socket) -> bool:
    """Whether the server, which the client has sent to, gets in."""
    server_sends(wire, mapped)
    return next_datagram(client, PATIENCE_SECONDS) is not None


def server_sends(wire: Wire, mapped: Endpoint) -> None:
    wire.public[SERVER].sendto(b"in", (str(mapped.ip), mapped.port))


def test_a_silent_flow_is_forgotten_and_one_that_talks_is_not(
    laboratories: dict[str, Lab], open_sockets: OpenSockets
) -> None:
    wires = {name: Wire(lab, open_sockets, clients=2) for name, lab in laboratories.items()}
    silent = {name: wire.mapped(wire.clients[0], SERVER) for name, wire in wires.items()}
    talking = {name: wire.mapped(wire.clients[1], SERVER) for name, wire in wires.items()}
    for name, wire in wires.items():
        assert comes_in(wire, silent[name], wire.clients[0]), name
    begun = time.monotonic()
    while time.monotonic() < begun + SILENCE_S:
        time.sleep(TALK_S)
        for name, wire in wires.items():
            assert wire.mapped(wire.clients[1], SERVER) == talking[name], name
    for name, wire in wires.items():
        server_sends(wire, silent[name])
    time.sleep(NOTHING_SECONDS)
    for name, wire in wires.items():
        assert next_datagram(wire.clients[0], 0) is None, name
        assert comes_in(wire, talking[name], wire.clients[1]), name


def test_a_flow_that_goes_both_ways_is_forgotten_as_soon(open_sockets: OpenSockets) -> None:
    """Linux has a longer timer for these, once they have gone on for two seconds."""
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=3), start_server=False) as lab:
        wire = Wire(lab, open_sockets)
        [client] = wire.clients
        for _ in range(3):
            mapped = wire.mapped(client, SERVER)
            assert comes_in(wire, mapped, client)
            time.sleep(1.1)
        time.sleep(2.4)
        server_sends(wire, mapped)
        assert next_datagram(client, NOTHING_SECONDS) is None
        assert wire.mapped(client, SERVER) == mapped
        server_sends(wire, mapped)
        assert next_datagram(client, PATIENCE_SECONDS) is not None
        assert next_datagram(client, FENCE_SECONDS) is None


def test_a_kernel_that_refuses_the_timers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "net/netfilter/nf_conntrack_count"  # which nobody may write
    monkeypatch.setattr("nattools.lab.topology._UDP_TIMERS", (refused,))
    with (
        pytest.raises(LabError, match=f"/proc/sys/{refused} cannot be written .*: run it as root"),
        Lab(Topology(NatKind.FULL_CONE, udp_timeout_s=6), start_server=False),
    ):
        pass
