"""Interfaces and default routes of real kernels, in networks of every kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from nattools.net.interfaces import DefaultRoute

pytestmark = pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="needs a kernel with IPv6")

_REPORT = """
from nattools.net.interfaces import default_routes, interfaces
for route in [*default_routes(), *default_routes(ipv6=True)]:
    print("route", route.gateway, route.interface, route.metric)
for interface in interfaces():
    flags = ("up", "multicast", "loopback", "point_to_point")
    told = [flag for flag in flags if getattr(interface, "is_" + flag)]
    print("interface", interface.index, interface.name, *told)
    print("addresses", interface.name, *interface.addresses)
    print("ips", interface.name, *interface.ips)
"""


@pytest.fixture
def client() -> Iterator[Host]:
    """A host at 198.51.100.108 and 2001:db8:1::108, with a router at .1 and ::1."""
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        yield lab.client


def ip(host: Host, *commands: str, version: int = 4) -> None:
    lines = "".join(f"{line}\n" for line in commands)
    done = host.run(["ip", f"-{version}", "-batch", "-"], timeout=10, input=lines)
    assert done.returncode == 0, done.stderr


def report(host: Host) -> list[list[str]]:
    done = host.run([sys.executable, "-P", "-c", _REPORT], timeout=30)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def routes(host: Host) -> list[DefaultRoute]:
    return [DefaultRoute(ip_address(r[1]), r[2], int(r[3])) for r in report(host) if r[0] == "route"]


def route(gateway: str, interface: str, metric: int) -> DefaultRoute:
    return DefaultRoute(ip_address(gateway), interface, metric)


def told(host: Host, kind: str, interface: str) -> list[str]:
    """What is told of an interface: its flags, its addresses with prefixes, or without."""
    (line,) = (row for row in report(host) if row[0] == kind and interface in row[1:3])
    return line[line.index(interface) + 1 :]


def test_the_router_of_a_home_is_its_default_gateway(client: Host) -> None:
    assert routes(client) == [route("198.51.100.1", "eth0", 0), route("2001:db8:1::1", "eth0", 1024)]


def test_the_lowest_metric_comes_first(client: Host) -> None:
    ip(
        client,
        "link add eth1 type veth peer name eth1-end",
        "link set eth1-end up",
        "link set eth1 up",
        "addr add 192.168.78.10/24 dev eth1",
        "route replace default via 198.51.100.1 metric 600",
        "route del default via 198.51.100.1 metric 0",
        "route add default via 192.168.78.1 metric 100",
        "route add unreachable default metric 5",
    )
    ip(
        client,
        "addr add 2001:db8:78::10/64 dev eth1 nodad",
        "route add default via 2001:db8:78::1 metric 50",
        "route add unreachable default metric 5",
        version=6,
    )
    assert routes(client) == [
        route("192.168.78.1", "eth1", 100),
        route("198.51.100.1", "eth0", 600),
        route("2001:db8:78::1", "eth1", 50),
        route("2001:db8:1::1", "eth0", 1024),
    ]


def test_a_link_local_gateway_has_its_scope(client: Host) -> None:
    ip(client, "route del default", "route add default via fe80::1 dev eth0", version=6)
    assert routes(client)[1:] == [route("fe80::1%eth0", "eth0", 1024)]


def test_a_route_without_gateway_tells_no_router(client: Host) -> None:
    for version in (4, 6):
        ip(client, "route del default", "route add default dev eth0", version=version)
    assert routes(client) == []


def test_without_routes_there_is_no_router(client: Host) -> None:
    for version in (4, 6):
        ip(client, "route del default", version=version)
    assert routes(client) == []


def test_an_interface_that_is_down_has_no_routes_and_is_told_to_be_down(client: Host) -> None:
    assert told(client, "interface", "eth0") == ["up", "multicast"]
    ip(client, "link set eth0 down")
    assert routes(client) == []
    assert told(client, "interface", "eth0") == ["multicast"]


def test_addresses_have_their_prefixes_and_scopes(client: Host) -> None:
    ip(client, "addr add 10.9.8.7/30 dev eth0")
    ip(client, "addr add fe80::108/64 dev eth0 nodad", version=6)
    assert {"198.51.100.108/24", "10.9.8.7/30", "2001:db8:1::108/64", "fe80::108%eth0/64"} <= set(
        told(client, "addresses", "eth0")
    )
    assert {"198.51.100.108", "10.9.8.7", "2001:db8:1::108", "fe80::108%eth0"} <= set(
        told(client, "ips", "eth0")
    )


def test_loopback_and_tunnels_are_told_apart(client: Host) -> None:
    assert told(client, "interface", "lo") == ["up", "loopback"]
    made = client.run(["ip", "tuntap", "add", "mode", "tun", "name", "tun0"], timeout=10)
    if made.returncode:
        pytest.skip(f"no tunnel on this machine: {made.stderr.strip()}")
    assert "point_to_point" in told(client, "interface", "tun0")


_TUNNELS = """
import sys
from ipaddress import ip_address
from nattools.net.interfaces import interface_of, interfaces, is_tunnel
for interface in interfaces():
    print(interface.name, is_tunnel(interface))
for text in sys.argv[1:]:
    owner = interface_of(ip_address(text))
    print(text, owner and owner.name)
"""


def owners(host: Host, *addresses: str) -> dict[str, str]:
    """Of each interface whether it is a tunnel, of each address whose it is."""
    done = host.run([sys.executable, "-P", "-c", _TUNNELS, *addresses], timeout=30)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_a_tunnel_is_known_by_its_driver_whatever_its_name(client: Host, mode: str) -> None:
    made = client.run(["ip", "tuntap", "add", "mode", mode, "name", "office"], timeout=10)
    if made.returncode:
        pytest.skip(f"no tunnel on this machine: {made.stderr.strip()}")
    ip(client, "link add tun7 type veth peer name tun8")
    told = owners(client)
    assert told == {"lo": "False", "eth0": "False", "office": "True", "tun7": "False", "tun8": "False"}


def test_an_address_has_its_interface(client: Host) -> None:
    ip(client, "addr add 10.9.8.7/30 dev eth0 label eth0:office")  # as older systems set up a second one
    ip(client, "addr add fe80::108/64 dev eth0 nodad", version=6)
    told = owners(client, "127.0.0.1", "10.9.8.7", "2001:db8:1::108", "fe80::108%eth0", "198.51.100.1")
    assert told | {"lo": "", "eth0": ""} == {
        "lo": "",
        "eth0": "",
        "127.0.0.1": "lo",
        "10.9.8.7": "eth0",
        "2001:db8:1::108": "eth0",
        "fe80::108%eth0": "eth0",
        "198.51.100.1": "None",
    }
