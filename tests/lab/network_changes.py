"""What happens to networks while programs run in them: new addresses, a cable that is pulled, a port forward.

Each is the whole event, as the host that it happens to sees it: with the routes that go, and with those that
whoever configures that host (DHCP, PPP) puts back.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from nattools.lab.nat import WAN_INTERFACE
from nattools.lab.topology import CLIENT_INTERFACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nattools.lab.namespaces import Host, Lab

_TOOL_SECONDS = 10.0

# IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK without a tuple: every flow (linux/netfilter/nfnetlink*.h).
_FORGET_FLOWS = """
import socket, struct
netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netfilter.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 1 | 4, 1, 0, 0, 0, 0))
raise SystemExit(-struct.unpack("=i", netfilter.recv(4096)[16:20])[0])
"""


def run(host: Host, argv: Sequence[str], text: str = "") -> str:
    """Run a tool that must succeed, and return what it said."""
    done = host.run(argv, timeout=_TOOL_SECONDS, input=text)
    assert done.returncode == 0, f"{argv[0]} on the {host.name}: {done.stderr or done.stdout}"
    return done.stdout


def configure(host: Host, *commands: str) -> None:
    """Run lines of `ip -batch` on a host."""
    run(host, ["ip", "-batch", "-"], "\n".join([*commands, ""]))


def address_of(host: Host, interface: str) -> IPv4Interface:
    """The IPv4 address that an interface has now, and its network."""
    [shown] = json.loads(run(host, ["ip", "-4", "-j", "address", "show", "dev", interface]))
    [address] = shown["addr_info"]
    return IPv4Interface(f"{address['local']}/{address['prefixlen']}")


def change_wan_address(lab: Lab, address: str) -> float:
    """Give the outer router another address of its WAN network, as providers do at night.

    Its flows end with the old one, but for those of an `Igd`, which ends them by itself. Returns a moment, by
    `time.monotonic`, before which the router passed nothing any more; soon after it, it does again.
    """
    if lab.topology.igd is not None:
        lab.igd.change_wan_address(address)
        return time.monotonic()
    held = address_of(lab.router, WAN_INTERFACE)
    with _passing_nothing(lab.router):
        # The new one first: an interface without any address has no routes.
        configure(
            lab.router,
            f"addr add {address}/{held.network.prefixlen} dev {WAN_INTERFACE}",
            f"addr del {held} dev {WAN_INTERFACE}",
        )
        if not lab.topology.nat.translates:
            configure(lab.public, f"route replace 198.51.100.0/24 via {address}")
        _forget(lab)
        return time.monotonic()


def change_client_address(lab: Lab, address: str) -> None:
    """Give the client another address of its network, as DHCP does. A cone then maps that one."""
    held = address_of(lab.client, CLIENT_INTERFACE)
    changes = (
        f"addr del {held} dev {CLIENT_INTERFACE}",
        f"addr add {address}/{held.network.prefixlen} dev {CLIENT_INTERFACE}",
        f"route replace default via {held.network[1]}",
    )
    if lab.inner_router is not None or lab.topology.igd is not None:
        configure(lab.client, *changes)
        return
    with _passing_nothing(lab.router):
        configure(lab.client, *changes)
        _forget(lab)


def reboot_router(lab: Lab) -> None:
    """Make the outer router forget whatever it knew of its clients; a daemon on it announces its return."""
    if lab.topology.igd is not None:
        lab.igd.restart()
        return
    with _passing_nothing(lab.router):
        _forget(lab)


def pull_cable(lab: Lab) -> None:
    """Take the client's interface down: its IPv4 address stays, its routes and IPv6 addresses go."""
    configure(lab.client, f"link set {CLIENT_INTERFACE} down")


def plug_in_cable(lab: Lab) -> None:
    """Bring the client's interface up again, with the addresses and routes that it had."""
    gateway = address_of(lab.client, CLIENT_INTERFACE).network[1]
    [plan] = (plan for plan in lab.topology.hosts if plan.name == "client")
    configure(
        lab.client,
        f"link set {CLIENT_INTERFACE} up",
        f"route replace default via {gateway}",
        *(command.replace(" add ", " replace ", 1) for command in plan.commands_ipv6),
    )


def forward_port(lab: Lab, external_port: int, internal_port: int) -> None:
    """Enter a port forward for UDP in every router, as its administrator does: anyone may send to the client.

    A router whose address changes, or that reboots, loses it.
    """
    inward = address_of(lab.client, CLIENT_INTERFACE).ip
    if lab.inner_router is not None:
        assert lab.topology.second_nat is not None
        if lab.topology.second_nat.translates:
            _forward(lab.inner_router, "ip", external_port, f"{inward}:{internal_port}")
            inward, internal_port = address_of(lab.inner_router, WAN_INTERFACE).ip, external_port
        else:
            _open(lab.inner_router, internal_port)
    if lab.topology.nat.translates:
        family = "ip" if lab.topology.igd is None else "inet"
        _forward(lab.router, family, external_port, f"{inward}:{internal_port}")
    else:
        _open(lab.router, internal_port)


def _forward(router: Host, family: str, external_port: int, target: str) -> None:
    to = "dnat to" if family == "ip" else "dnat ip to"
    forwarded = f"meta l4proto udp ct status dnat ct original proto-dst {external_port}"
    _add_rules(
        router,
        # Before the rules of the kind, which send a port inward as the client's last datagram mapped it.
        f"add chain {family} lab forwards {{ type nat hook prerouting priority dstnat - 1; }}",
        f"add rule {family} lab forwards iifname {WAN_INTERFACE} udp dport {external_port} {to} {target}",
        f"add rule {family} lab forward iifname {WAN_INTERFACE} {forwarded} accept",
    )


def _open(router: Host, port: int) -> None:
    _add_rules(router, f"add rule inet lab forward iifname {WAN_INTERFACE} udp dport {port} accept")


def _add_rules(router: Host, *commands: str) -> None:
    run(router, ["nft", "-f", "-"], "\n".join([*commands, ""]))


@contextmanager
def _passing_nothing(router: Host) -> Iterator[None]:
    """Drop all that comes to a router before it makes a flow, which would be half of the old and half new."""
    _add_rules(
        router,
        "add table inet pause",
        "add chain inet pause dropping { type filter hook prerouting priority raw; policy drop; }",
    )
    try:
        yield
    finally:
        _add_rules(router, "delete table inet pause")


def _forget(lab: Lab) -> None:
    """Write the outer router's rules anew, with empty sets, and make it forget its flows."""
    topology = lab.topology
    held = address_of(lab.router, WAN_INTERFACE).ip
    inside = address_of(lab.client, CLIENT_INTERFACE).ip
    if lab.inner_router is not None and topology.second_nat is not None and topology.second_nat.translates:
        inside = address_of(lab.inner_router, WAN_INTERFACE).ip
    family = "ip" if topology.nat.translates else "inet"
    rules = topology.router_ruleset(str(held), str(inside))
    _add_rules(lab.router, f"delete table {family} lab", rules)
    run(lab.router, [sys.executable, "-I", "-S", "-c", _FORGET_FLOWS])
