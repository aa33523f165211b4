"""The network of a laboratory: its hosts, their addresses, and the commands that set each of them up.

::

    client ------------------------------ router ---------------- public side
    192.168.0.108      192.168.0.1  (lan)   (wan)  203.0.113.1    203.0.113.10  server
                                                                  203.0.113.11  its alternate address
    with a second NAT, nearer to the client:                      203.0.113.20  a stranger
    client ---------- inner router ------ router ----------------
    192.168.0.108     192.168.0.1         100.64.0.1
                      100.64.0.108

With an `Igd` the router can be asked for mappings, and has a WAN address that may be anywhere:

    client ------------------------------ router ---------------- public side
    192.168.0.108      192.168.0.1  (lan)   (wan)  11.22.33.2     11.22.33.1    next hop
    2001:db8:1::108    2001:db8:1::1        2001:db8::1           all the addresses above, and
                                                                  2001:db8::10, ::11, ::20

Where no router translates, the client has the public address 198.51.100.108, and with one router
2001:db8:1::108 beside it, and is routed. The addresses are those of RFC 1918, RFC 6598, RFC 5737 and
RFC 3849: none of them leads anywhere. Only 11.22.33.0/24 is not reserved: on a reserved WAN address miniupnpd
grants nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from nattools.endpoint import Endpoint
from nattools.errors import LabError
from nattools.lab.igd import Igd, igd_ruleset
from nattools.lab.nat import LAN_INTERFACE, WAN_INTERFACE, NatKind, ruleset, sip_alg_ruleset

SERVER = Endpoint.of("203.0.113.10", 3478)
ALTERNATE_SERVER = Endpoint.of("203.0.113.11", 3478)
ALTERNATE_PORT = 3479
SIP_PORT = 5060
STRANGER = Endpoint.of("203.0.113.20", 3478)
SERVER_ENDPOINTS = tuple(
    e.with_port(p) for e in (SERVER, ALTERNATE_SERVER) for p in (SERVER.port, ALTERNATE_PORT)
)

WAN_ADDRESS = "203.0.113.1"
# The kinds whose only way in is a mapping that was asked for: what a home router with UPnP is.
IGD_KINDS = (NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC)
PUBLIC_INTERFACE = CLIENT_INTERFACE = "eth0"

_PUBLIC_NETWORK = IPv4Network("203.0.113.0/24")
_REMOTE_ADDRESSES = tuple(str(endpoint.ip) for endpoint in (SERVER, ALTERNATE_SERVER, STRANGER))
_HOME = IPv4Network("192.168.0.0/24")
_CARRIER = IPv4Network("100.64.0.0/24")
_ROUTED = IPv4Network("198.51.100.0/24")
_ROUTER_HOST = 1
_LONGEST_UDP_TIMEOUT_S = 86400
_INSIDE_HOST = 108

_PUBLIC_IPV6 = "2001:db8::"
_CLIENT_IPV6 = "2001:db8:1::"

_FORWARDING = {
    "net/ipv4/ip_forward": "1",
    # A datagram that hairpins leaves where it came in, which would tell the client to go round the router.
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # When the WAN address changes, the new one is there before the old one goes, and would go with it.
    "net/ipv4/conf/all/promote_secondaries": "1",
}
# Of a flow that nothing came back on, and of one that goes both ways.
_UDP_TIMERS = (
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
)
_FORWARDING_IPV6 = {
    "net/ipv6/conf/all/forwarding": "1",
    # A neighbour is asked for from the link-local address, which would be unusable for the first two seconds.
    "net/ipv6/conf/default/accept_dad": "0",
}


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two hosts, each named with the interface at its end."""

    host: str
    interface: str
    peer: str
    peer_interface: str


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What makes a network namespace into one host of the laboratory."""

    name: str
    commands: tuple[str, ...]  # lines for `ip -batch`
    commands_ipv6: tuple[str, ...] = ()  # the same, where the kernel has IPv6
    ruleset: str = ""  # for `nft -f`
    sysctls: tuple[tuple[str, str], ...] = ()  # path below /proc/sys, and value
    sysctls_ipv6: tuple[tuple[str, str], ...] = ()
    timers: tuple[tuple[str, str], ...] = ()  # sysctls of connection tracking, there once the ruleset is


@dataclass(frozen=True, slots=True)
class Topology:
    """A client behind `nat`, or behind `second_nat` (at home) and then `nat` (at the carrier).

    `loss_percent` of the UDP datagrams are lost each way, at the router `nat`. With `hairpin` that router
    returns what the client sends to its own public endpoint; only the cone kinds can. With `alternate_dead`
    the server's second address neither receives nor sends. With `igd` the router can be asked for mappings
    (UPnP-IGD, NAT-PMP, PCP). After `udp_timeout_s` without a datagram every router forgets a UDP flow
    (RFC 4787 §4.3); None leaves that to the kernel, which waits for 30 to 120 s. With `sip_alg` the client's
    own router rewrites the SIP that goes to the UDP ports `sip_alg_ports`, as nf_nat_sip does. Raises
    `LabError` for a network that cannot be.
    """

    nat: NatKind
    second_nat: NatKind | None = None
    loss_percent: float = 0.0
    hairpin: bool = False
    alternate_dead: bool = False
    igd: Igd | None = None
    udp_timeout_s: int | None = None
    sip_alg: bool = False
    sip_alg_ports: tuple[int, ...] = (SIP_PORT,)

    def __post_init__(self) -> None:
        if not 0 <= self.loss_percent <= 100:
            raise LabError(f"a loss of {self.loss_percent} % is not between 0 and 100")
        if self.hairpin and not self.nat.hairpins:
            able = ", ".join(kind.value for kind in NatKind if kind.hairpins)
            raise LabError(f"{self.nat.value} has no hairpinning: it can be had with {able}")
        if self.udp_timeout_s is not None:
            self._check_udp_timeout(self.udp_timeout_s)
        if self.igd is not None:
            self._check_igd()
        if self.sip_alg:
            self._check_sip_alg()

    def _check_udp_timeout(self, timeout_s: int) -> None:
        if not 0 < timeout_s <= _LONGEST_UDP_TIMEOUT_S:
            raise LabError(f"a UDP timeout of {timeout_s} s is not between 1 and {_LONGEST_UDP_TIMEOUT_S}")
        if not any(kind is not None and kind.remembers for kind in (self.nat, self.second_nat)):
            raise LabError(f"{self.nat.value} keeps no UDP flow that it could forget")

    def _check_igd(self) -> None:
        if self.nat not in IGD_KINDS:
            able = " and ".join(kind.value for kind in IGD_KINDS)
            raise LabError(f"{self.nat.value} grants no mappings to who asks: that can be had with {able}")
        if self.second_nat is not None:
            raise LabError("a router that grants mappings has no second NAT: give it a WAN address of one")
        if self.hairpin:
            raise LabError("the router that grants mappings has no hairpinning")

    def _check_sip_alg(self) -> None:
        kind = self.second_nat or self.nat
        if not kind.translates:
            raise LabError(f"{kind.value} translates no address that a SIP ALG could write into messages")
        if not self.sip_alg_ports or not all(0 < port <= 0xFFFF for port in self.sip_alg_ports):
            raise LabError("a SIP ALG needs ports from 1 to 65535 to look at")

    @property
    def client_address(self) -> str:
        """The address of the client's only interface."""
        return str(self._client_network[_INSIDE_HOST])

    @property
    def links(self) -> tuple[Link, ...]:
        """The cables, from the public side inward."""
        inward = "router" if self.second_nat is None else "inner-router"
        middle = Link("router", LAN_INTERFACE, "inner-router", WAN_INTERFACE)
        return (
            Link("public", PUBLIC_INTERFACE, "router", WAN_INTERFACE),
            *([] if self.second_nat is None else [middle]),
            Link(inward, LAN_INTERFACE, "client", CLIENT_INTERFACE),
        )

    @property
    def hosts(self) -> tuple[HostPlan, ...]:
        """The hosts, from the public side inward."""
        inner = [] if self.second_nat is None else [self._inner_router(self.second_nat)]
        return (self._public(), self._router(), *inner, self._client())

    @property
    def _client_network(self) -> IPv4Network:
        translated = self.nat.translates or (self.second_nat is not None and self.second_nat.translates)
        return _HOME if translated else _ROUTED

    @property
    def _middle_network(self) -> IPv4Network:
        """The segment between the routers. Where only the inner one translates, the public side sees it."""
        return _CARRIER if self.nat.translates or self._client_network is _ROUTED else _ROUTED

    @property
    def _has_ipv6(self) -> bool:
        return self.igd is not None or (self.second_nat is None and not self.nat.translates)

    @property
    def _wan_address(self) -> str:
        return WAN_ADDRESS if self.igd is None else self.igd.wan_address

    def _public(self) -> HostPlan:
        commands = [*_up("lo"), *_up(PUBLIC_INTERFACE)]
        commands += [f"addr add {address}/24 dev {PUBLIC_INTERFACE}" for address in _REMOTE_ADDRESSES]
        if self.igd is not None:
            commands.append(f"addr add {self.igd.neighbour}/24 dev {PUBLIC_INTERFACE}")
        if not self.nat.translates:
            commands.append(f"route add {_ROUTED} via {WAN_ADDRESS}")
        commands_ipv6 = [f"addr add {_PUBLIC_IPV6}{n}/64 dev {PUBLIC_INTERFACE} nodad" for n in (10, 11, 20)]
        commands_ipv6.append(f"route add {_CLIENT_IPV6}/64 via {_PUBLIC_IPV6}1")
        return HostPlan(
            "public",
            tuple(commands),
            commands_ipv6=tuple(commands_ipv6) if self._has_ipv6 else (),
            ruleset=_dead_address(str(ALTERNATE_SERVER.ip)) if self.alternate_dead else "",
        )

    def _router(self) -> HostPlan:
        network = self._client_network if self.second_nat is None else self._middle_network
        commands = [*_up("lo"), *_up(WAN_INTERFACE), *_up(LAN_INTERFACE)]
        commands.append(f"addr add {self._wan_address}/24 dev {WAN_INTERFACE}")
        commands.append(f"addr add {network[_ROUTER_HOST]}/24 dev {LAN_INTERFACE}")
        if self.igd is not None:
            commands.append(f"route add {_PUBLIC_NETWORK} via {self.igd.neighbour}")
        inside_address = str(network[_INSIDE_HOST])
        if self.second_nat is not None and not self.second_nat.translates:
            commands.append(f"route add {self._client_network} via {network[_INSIDE_HOST]}")
            inside_address = self.client_address
        commands_ipv6 = (
            f"addr add {_PUBLIC_IPV6}1/64 dev {WAN_INTERFACE} nodad",
            f"addr add {_CLIENT_IPV6}1/64 dev {LAN_INTERFACE} nodad",
        )
        return HostPlan(
            "router",
            tuple(commands),
            commands_ipv6=commands_ipv6 if self._has_ipv6 else (),
            ruleset=self.router_ruleset(WAN_ADDRESS, inside_address),
            sysctls=tuple(_FORWARDING.items()),
            sysctls_ipv6=tuple(_FORWARDING_IPV6.items()) if self._has_ipv6 else (),
            timers=self._timers(self.nat),
        )

    def _timers(self, kind: NatKind) -> tuple[tuple[str, str], ...]:
        if self.udp_timeout_s is None or not kind.remembers:
            return ()
        return tuple((timer, str(self.udp_timeout_s)) for timer in _UDP_TIMERS)

    def router_ruleset(self, wan_address: str, inside_address: str) -> str:
        """Write the rules of the outer router while it has that public address, and knows that host inside.

        An `Igd` names neither in its rules.
        """
        sip_alg = self._sip_alg_ruleset if self.second_nat is None else ""
        if self.igd is not None:
            return igd_ruleset(self.igd, self.nat, loss_percent=self.loss_percent) + sip_alg
        return sip_alg + ruleset(
            self.nat,
            wan_address=wan_address,
            inside_address=inside_address,
            remote_addresses=_REMOTE_ADDRESSES,
            loss_percent=self.loss_percent,
            hairpin=self.hairpin,
            udp_timeout_s=self.udp_timeout_s,
        )

    @property
    def _sip_alg_ruleset(self) -> str:
        return sip_alg_ruleset(self.sip_alg_ports) if self.sip_alg else ""

    def _inner_router(self, kind: NatKind) -> HostPlan:
        middle = self._middle_network
        return HostPlan(
            "inner-router",
            (
                *_up("lo"),
                *_up(WAN_INTERFACE),
                *_up(LAN_INTERFACE),
                f"addr add {middle[_INSIDE_HOST]}/24 dev {WAN_INTERFACE}",
                f"addr add {self._client_network[_ROUTER_HOST]}/24 dev {LAN_INTERFACE}",
                f"route add default via {middle[_ROUTER_HOST]}",
            ),
            ruleset=self._sip_alg_ruleset
            + ruleset(
                kind,
                wan_address=str(middle[_INSIDE_HOST]),
                inside_address=self.client_address,
                remote_addresses=_REMOTE_ADDRESSES,
                udp_timeout_s=self.udp_timeout_s,
            ),
            sysctls=tuple(_FORWARDING.items()),
            timers=self._timers(kind),
        )

    def _client(self) -> HostPlan:
        commands = (
            *_up("lo"),
            *_up(CLIENT_INTERFACE),
            f"addr add {self.client_address}/24 dev {CLIENT_INTERFACE}",
            f"route add default via {self._client_network[_ROUTER_HOST]}",
        )
        commands_ipv6 = (
            f"addr add {_CLIENT_IPV6}{_INSIDE_HOST}/64 dev {CLIENT_INTERFACE} nodad",
            f"route add default via {_CLIENT_IPV6}1",
        )
        return HostPlan("client", commands, commands_ipv6=commands_ipv6 if self._has_ipv6 else ())


def _up(interface: str) -> tuple[str]:
    return (f"link set {interface} up",)


def _dead_address(address: str) -> str:
    """Make `address` neither receive nor send. It stays assigned: the router would report a missing one."""
    return "\n".join(
        [
            "table ip lab {",
            "chain input {",
            "type filter hook input priority filter; policy accept;",
            f"ip daddr {address} drop",
            "}",
            "chain output {",
            "type filter hook output priority filter; policy accept;",
            f"ip saddr {address} drop",
            "}",
            "}",
            "",
        ]
    )
