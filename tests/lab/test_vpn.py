"""The laboratory's VPN is a VPN: it carries datagrams both ways, and when it goes, so does its address."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, endpoint_of, next_datagram
from tests.lab.network_changes import run
from tests.lab.vpn import (
    CLIENT_ADDRESS,
    INTERFACE,
    SERVER_ADDRESS,
    STRANGER_ADDRESS,
    why_no_vpn,
    wireguard,
)

if TYPE_CHECKING:
    from tests.lab.conftest import OpenSockets

HOME = Endpoint(CLIENT_ADDRESS, 5060)
REMOTE = (Endpoint(SERVER_ADDRESS, 5060), Endpoint(STRANGER_ADDRESS, 5060))


@pytest.fixture(scope="module", autouse=True)
def _vpn() -> None:
    reason = why_no_vpn()
    if reason is not None:
        pytest.skip(reason)


def sockets_of_wireguard() -> set[str]:
    directory = Path("/var/run/wireguard")
    return set(os.listdir(directory)) if directory.exists() else set()


@pytest.mark.parametrize(
    "topology",
    [
        Topology(NatKind.PORT_RESTRICTED_CONE),
        Topology(NatKind.OPEN),
        Topology(NatKind.SYMMETRIC, NatKind.SYMMETRIC),
        Topology(NatKind.SYMMETRIC, igd=Igd()),
    ],
    ids=["port-restricted-cone", "open", "double", "igd"],
)
def test_hosts_of_the_tunnel_and_the_client_reach_each_other(
    topology: Topology, open_sockets: OpenSockets
) -> None:
    if topology.igd is not None and (missing := why_no_igd()) is not None:
        pytest.skip(missing)
    before = sockets_of_wireguard()
    with Lab(topology, start_server=False) as lab, wireguard(lab):
        (client,) = open_sockets(lab.client, [HOME])
        for remote, at in zip(open_sockets(lab.public, REMOTE), REMOTE, strict=True):
            remote.sendto(b"from a stranger", (str(HOME.ip), HOME.port))
            assert next_datagram(client, PATIENCE_SECONDS) == (b"from a stranger", at)
            client.sendto(b"an answer", (str(at.ip), at.port))
            assert next_datagram(remote, PATIENCE_SECONDS) == (b"an answer", HOME)
    assert sockets_of_wireguard() == before


def test_the_internet_does_not_see_the_address_in_the_tunnel(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab, wireguard(lab):
        (client,) = open_sockets(lab.client, [Endpoint.parse("0.0.0.0:5060")])
        (stranger,) = open_sockets(lab.public, [STRANGER])
        client.sendto(b"out", (str(STRANGER.ip), STRANGER.port))
        received = next_datagram(stranger, PATIENCE_SECONDS)
        assert received is not None
        assert str(received[1].ip) == "203.0.113.1"


def test_a_tunnel_that_was_down_comes_back(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab, wireguard(lab) as vpn:
        (client,) = open_sockets(lab.client, [HOME])
        (stranger,) = open_sockets(lab.public, [REMOTE[1]])
        vpn.unplug()
        client.sendto(b"lost", stranger.getsockname())  # by the default route, which does not lead there
        assert next_datagram(stranger, 0.3) is None
        vpn.plug_in()
        client.sendto(b"out", stranger.getsockname())
        assert next_datagram(stranger, PATIENCE_SECONDS) == (b"out", HOME)


def test_a_tunnel_may_get_another_address(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab, wireguard(lab) as vpn:
        vpn.change_address("10.8.0.7")
        (client,) = open_sockets(lab.client, [Endpoint.parse("0.0.0.0:5060")])
        (stranger,) = open_sockets(lab.public, [REMOTE[1]])
        client.sendto(b"out", stranger.getsockname())
        assert next_datagram(stranger, PATIENCE_SECONDS) == (b"out", Endpoint.parse("10.8.0.7:5060"))
        stranger.sendto(b"in", ("10.8.0.7", 5060))
        assert next_datagram(client, PATIENCE_SECONDS) == (b"in", REMOTE[1])


@pytest.mark.parametrize("how", ["deleted", "terminated", "killed"])
def test_a_tunnel_that_goes_takes_its_address_along(how: str, open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab, wireguard(lab) as vpn:
        (client,) = open_sockets(lab.client, [HOME])
        {"deleted": vpn.delete, "terminated": vpn.client.terminate, "killed": vpn.client.kill}[how]()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while INTERFACE in run(lab.client, ["ip", "-brief", "link"]):
            assert time.monotonic() < deadline
        assert str(CLIENT_ADDRESS) not in run(lab.client, ["ip", "-brief", "address"])
        assert endpoint_of(client.getsockname()) == HOME  # a socket does not notice by itself


def test_a_tunnel_through_a_router_that_blocks_udp_is_told() -> None:
    with (
        Lab(Topology(NatKind.BLOCKED), start_server=False) as lab,
        pytest.raises(AssertionError, match="nothing comes through the tunnel"),
        wireguard(lab, attempts=5),
    ):
        pass
