"""Multicast and link-local addresses, through `UdpSocket` on a host with more than one interface."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import LAN_INTERFACE, NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, OpenSockets, next_datagram

pytestmark = pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="needs a kernel with IPv6")

# Opens the sockets of a plan, says where they are, sends what stdin tells it to and says what arrives.
_CLIENT = """
import asyncio, json, sys
from ipaddress import ip_address
from nattools.endpoint import Endpoint
from nattools.net.interfaces import interfaces
from nattools.net.udp import MulticastInterface, UdpSocket, local_address_towards

def say(*words):
    print(json.dumps([str(word) for word in words]), flush=True)

async def open(number, plan):
    via = next((i for i in interfaces() if i.name == plan.get("via")), None)
    multicast = via and MulticastInterface(via.index, next(ip for ip in via.ips if ip.version == 4))
    return await UdpSocket.open(
        ipv6=plan["ipv6"],
        local_address=ip_address(plan["local"]) if "local" in plan else None,
        local_port=plan.get("port", 0),
        multicast=multicast,
        groups=[ip_address(group) for group in plan.get("groups", ())],
        share_port=plan.get("share", False),
        on_datagram=lambda data, source: say(number, data.decode(), source),
    )

async def main():
    sockets = [await open(number, plan) for number, plan in enumerate(json.loads(sys.argv[1]))]
    say("open", *(opened.local for opened in sockets))
    while line := await asyncio.to_thread(sys.stdin.readline):
        number, destination, text = line.split()
        if number == "towards":
            say(local_address_towards(Endpoint.parse(destination)))
        else:
            sockets[int(number)].send(text.encode(), Endpoint.parse(destination))
    for opened in sockets:
        opened.close()

asyncio.run(main())
"""

SSDP = Endpoint.of("239.255.255.250", 1900)
SSDP_IPV6 = Endpoint.of("ff02::c", 1900)
ROUTER = Endpoint.of("198.51.100.1", 1900)
ROUTER_LINK_LOCAL = "fe80::1"
GROUPS = pytest.mark.parametrize("group", [SSDP, SSDP_IPV6], ids=["ipv4", "ipv6"])


class Client:
    """The sockets on the client."""

    def __init__(self, host: Host, *plans: dict[str, object]) -> None:
        self._process = host.popen(
            [sys.executable, "-P", "-c", _CLIENT, json.dumps(plans)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        opened, *locals_ = self.heard()
        assert opened == "open"
        self.locals = [Endpoint.parse(text) for text in locals_]

    def heard(self) -> list[str]:
        """What the client says next: the number of a socket, what came to it, and where from."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client has ended"
        words = json.loads(line)
        return [str(word) for word in words]

    def tell(self, what: object, destination: Endpoint, text: str = "-") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {destination} {text}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_SECONDS) == 0
        assert self._process.stdout.read() == "", "more came than was expected"
        self._process.stdout.close()


@pytest.fixture(scope="module")
def lab(_missing: str | None) -> Iterator[Lab]:
    """A client with the router on eth0, and with eth1, which leads nowhere but has all the better routes."""
    if _missing is not None:
        pytest.skip(_missing)
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        set_up(lab.router, f"addr add {ROUTER_LINK_LOCAL}/64 dev {LAN_INTERFACE} nodad", version=6)
        set_up(
            lab.client,
            "link add eth1 type veth peer name eth1-end",
            "link set eth1 up",
            "link set eth1-end up",
            "addr add 192.168.78.10/24 dev eth1",
            "route replace default dev eth1",
        )
        set_up(
            lab.client,
            "addr add fe80::78/64 dev eth1 nodad",
            "addr add fe80::108/64 dev eth0 nodad",
            f"route add multicast {SSDP_IPV6.ip} dev eth1 table local metric 1",
            version=6,
        )
        yield lab


def set_up(host: Host, *commands: str, version: int = 4) -> None:
    lines = "".join(f"{line}\n" for line in commands)
    done = host.run(["ip", f"-{version}", "-batch", "-"], timeout=10, input=lines)
    assert done.returncode == 0, done.stderr


def index_of(host: Host, interface: str) -> int:
    done = host.run(["ip", "-json", "link", "show", interface], timeout=10)
    (link,) = json.loads(done.stdout)
    index = link["ifindex"]
    assert isinstance(index, int)
    return index


def router_socket(lab: Lab, open_sockets: OpenSockets, group: Endpoint) -> socket.socket:
    """A socket of the router that is in the group on the LAN, and sends to it there."""
    any_address = "::" if group.is_ipv6 else "0.0.0.0"
    (opened,) = open_sockets(lab.router, [Endpoint.of(any_address, group.port)])
    index = index_of(lab.router, LAN_INTERFACE)
    if isinstance(group.ip, IPv6Address):
        membership = group.ip.packed + struct.pack("=I", index)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    else:
        request = struct.pack("=4s4si", group.ip.packed, ROUTER.ip.packed, index)  # struct ip_mreqn
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    return opened


def say(sender: socket.socket, text: str, destination: Endpoint) -> None:
    sender.sendto(text.encode(), (str(destination.ip), destination.port))


def plan(group: Endpoint, via: str = "eth0", **more: object) -> dict[str, object]:
    return {"ipv6": group.is_ipv6, "via": via, **more}


def member(group: Endpoint, via: str = "eth0") -> dict[str, object]:
    return plan(group, via, port=group.port, groups=[str(group.ip)], share=True)


def from_router(group: Endpoint) -> str:
    """Where a datagram of the router comes from, as it must be written to answer it."""
    return f"[{ROUTER_LINK_LOCAL}%eth0]:1900" if group.is_ipv6 else str(ROUTER)


@GROUPS
def test_multicast_leaves_by_the_interface_that_was_chosen(
    group: Endpoint, lab: Lab, open_sockets: OpenSockets
) -> None:
    router = router_socket(lab, open_sockets, group)
    client = Client(lab.client, plan(group, "eth0"), plan(group, "eth1"))
    client.tell(1, group, "elsewhere")
    client.tell(0, group, "M-SEARCH")
    received = next_datagram(router, PATIENCE_SECONDS)
    assert received is not None
    data, source = received
    own = ip_address("fe80::108" if group.is_ipv6 else lab.topology.client_address)
    assert (data, source) == (b"M-SEARCH", Endpoint(own, client.locals[0].port))
    assert next_datagram(router, FENCE_SECONDS) is None
    client.end()


@GROUPS
def test_an_answer_reaches_the_socket_that_asked(
    group: Endpoint, lab: Lab, open_sockets: OpenSockets
) -> None:
    router = router_socket(lab, open_sockets, group)
    client = Client(lab.client, plan(group))
    client.tell(0, group, "M-SEARCH")
    _, address = router.recvfrom(100)
    router.sendto(b"200", address)
    assert client.heard() == ["0", "200", from_router(group)]
    client.end()


@GROUPS
def test_sockets_that_share_a_port_all_hear_the_group(
    group: Endpoint, lab: Lab, open_sockets: OpenSockets
) -> None:
    router = router_socket(lab, open_sockets, group)
    client = Client(lab.client, member(group), member(group))
    say(router, "NOTIFY", group)
    heard = sorted([client.heard(), client.heard()])
    assert heard == [["0", "NOTIFY", from_router(group)], ["1", "NOTIFY", from_router(group)]]
    client.end()


@GROUPS
def test_a_socket_hears_its_groups_on_its_own_interface_only(
    group: Endpoint, lab: Lab, open_sockets: OpenSockets
) -> None:
    router = router_socket(lab, open_sockets, group)
    client = Client(lab.client, member(group, "eth1"), plan(group, port=1900, share=True), member(group))
    say(router, "NOTIFY", group)
    assert client.heard() == ["2", "NOTIFY", from_router(group)]
    client.end()


def test_a_group_that_was_not_joined_is_not_heard(lab: Lab, open_sockets: OpenSockets) -> None:
    router = router_socket(lab, open_sockets, SSDP)
    announcements = Endpoint.of("224.0.0.1", 1900)  # RFC 6886 section 3.2.1 has it on port 5350
    client = Client(lab.client, member(announcements))
    say(router, "NOTIFY", SSDP)
    say(router, "announcement", announcements)
    assert client.heard() == ["0", "announcement", str(ROUTER)]
    client.end()


def test_a_link_local_router_is_reached_and_answers_from_where_it_was_asked(
    lab: Lab, open_sockets: OpenSockets
) -> None:
    router = router_socket(lab, open_sockets, SSDP_IPV6)
    there = Endpoint.of(f"{ROUTER_LINK_LOCAL}%eth0", 1900)
    client = Client(lab.client, {"ipv6": True}, {"ipv6": True, "local": "fe80::108%eth0"})
    for number in (0, 1):
        client.tell(number, there, "request")
        data, address = router.recvfrom(100)
        assert (data, address[0]) == (b"request", "fe80::108")
        router.sendto(b"answer", address)
        assert client.heard() == [str(number), "answer", str(there)]
    client.tell("towards", there)
    assert client.heard() == ["fe80::108%eth0"]
    client.end()


def test_an_interface_that_is_not_there_is_a_transport_error(lab: Lab) -> None:
    program = """
import asyncio
from ipaddress import ip_address
from nattools.errors import TransportError
from nattools.net.udp import MulticastInterface, UdpSocket
for ip in "192.0.2.99", "::1":
    via = MulticastInterface(4711, ip_address(ip))
    opening = UdpSocket.open(ipv6=via.address.version == 6, multicast=via, on_datagram=print)
    try:
        asyncio.run(opening)
    except TransportError as error:
        print(error)
"""
    done = lab.client.run([sys.executable, "-P", "-W", "error", "-c", program], timeout=30)
    assert done.stderr == ""
    assert done.stdout.count("cannot open a UDP socket: ") == 2
