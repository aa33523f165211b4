"""Kinds of NAT: what each does, in the words of RFC 4787, and the nftables rules that make the kernel do it.

The rules leave to the kernel's connection tracking whatever it does as the kind should. Sets that the rules
fill themselves carry what it does not know: which ports are mapped, and whom each of them has sent to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LAN_INTERFACE = "lan"
WAN_INTERFACE = "wan"

_MEMORY_S = 300  # how long a silent port stays mapped in the sets, unless told otherwise (RFC 4787 §4.3)


class NatKind(Enum):
    """A NAT or firewall by the name that `natlab run --nat` takes."""

    OPEN = "open"
    SYMMETRIC_FIREWALL = "symmetric-firewall"
    FULL_CONE = "full-cone"
    RESTRICTED_CONE = "restricted-cone"
    PORT_RESTRICTED_CONE = "port-restricted-cone"
    SYMMETRIC = "symmetric"
    ADDRESS_DEPENDENT = "address-dependent"
    BLOCKED = "blocked"

    @property
    def translates(self) -> bool:
        """Whether addresses change on the way; a kind that does not translate is only a router."""
        return self not in (NatKind.OPEN, NatKind.SYMMETRIC_FIREWALL)

    @property
    def hairpins(self) -> bool:
        """Whether this kind can be built with hairpinning: a mapping must be one public port for that."""
        return self in (NatKind.FULL_CONE, NatKind.RESTRICTED_CONE, NatKind.PORT_RESTRICTED_CONE)

    @property
    def remembers(self) -> bool:
        """Whether this kind keeps a state for each flow, and so forgets it after a time."""
        return self not in (NatKind.OPEN, NatKind.BLOCKED)


@dataclass(frozen=True, slots=True)
class Behavior:
    """What a client behind the NAT can measure, in the words that `natcheck --json` uses."""

    mapping: str
    filtering: str
    nat_type: str


# From the widest to the narrowest: of two in a row, the narrower one is seen.
_MAPPINGS = ("none", "endpoint-independent", "address-dependent", "address-and-port-dependent")
_FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")

_BEHAVIORS = {
    NatKind.OPEN: ("none", "endpoint-independent"),
    NatKind.SYMMETRIC_FIREWALL: ("none", "address-and-port-dependent"),
    NatKind.FULL_CONE: ("endpoint-independent", "endpoint-independent"),
    NatKind.RESTRICTED_CONE: ("endpoint-independent", "address-dependent"),
    NatKind.PORT_RESTRICTED_CONE: ("endpoint-independent", "address-and-port-dependent"),
    NatKind.SYMMETRIC: ("address-and-port-dependent", "address-and-port-dependent"),
    NatKind.ADDRESS_DEPENDENT: ("address-dependent", "address-and-port-dependent"),
    NatKind.BLOCKED: ("unknown", "unknown"),
}

MEANINGS = {
    NatKind.OPEN: "no NAT and no filter: the client has a public address",
    NatKind.SYMMETRIC_FIREWALL: "no NAT, but only answers to what was sent come in",
    NatKind.FULL_CONE: "one public port for all; anyone may send to it",
    NatKind.RESTRICTED_CONE: "one public port for all; addresses that were sent to may answer",
    NatKind.PORT_RESTRICTED_CONE: "one public port for all; only the endpoints that were sent to may answer",
    NatKind.SYMMETRIC: "another random public port for every endpoint; only it may answer",
    NatKind.ADDRESS_DEPENDENT: "another public port for every address; only endpoints sent to may answer",
    NatKind.BLOCKED: "UDP is dropped both ways; TCP passes through a NAT",
}


def behavior(nat: NatKind, second_nat: NatKind | None = None) -> Behavior:
    """Say what a client measures behind `nat`, or behind `second_nat` and then `nat` (RFC 4787 §4, §5).

    `nat_type` is the name that RFC 3489 §5 has for it; address-dependent mapping counts as symmetric there.
    """
    kinds = [nat] if second_nat is None else [nat, second_nat]
    if NatKind.BLOCKED in kinds:
        return Behavior("unknown", "unknown", "blocked")
    mapping = max((_BEHAVIORS[kind][0] for kind in kinds), key=_MAPPINGS.index)
    filtering = max((_BEHAVIORS[kind][1] for kind in kinds), key=_FILTERINGS.index)
    if mapping == "none":
        nat_type = "open" if filtering == "endpoint-independent" else "symmetric-firewall"
    elif mapping == "endpoint-independent":
        nat_type = ("full-cone", "restricted-cone", "port-restricted-cone")[_FILTERINGS.index(filtering)]
    else:
        nat_type = "symmetric"
    return Behavior(mapping, filtering, nat_type)


def ruleset(
    kind: NatKind,
    *,
    wan_address: str,
    inside_address: str,
    remote_addresses: Sequence[str],
    loss_percent: float = 0,
    hairpin: bool = False,
    udp_timeout_s: int | None = None,
) -> str:
    """Write the ruleset of one router, for `nft -f -`.

    `inside_address` is the one client, or next router inward, that the router knows; `remote_addresses` are
    the hosts outside, each of which has a port range of its own under address-dependent mapping.
    `loss_percent` of the UDP datagrams are dropped in each direction, to a hundredth of a percent.
    A port that sends nothing for `udp_timeout_s` is no longer mapped; the timers of connection tracking are
    no rules, and must be set to the same.
    """
    options = f"size 65535; flags dynamic,timeout; timeout {udp_timeout_s or _MEMORY_S}s;"
    sets: list[str] = []
    chains = [
        chain("forward", "filter hook forward", "filter", [*loss(loss_percent), *_forward(kind)], "drop")
    ]
    if kind.translates:
        # The router serves nobody. A new datagram that no mapping wants is dropped before conntrack keeps it:
        # kept, it would hold the tuple, and the client's own packet would get another port. Nor is there an
        # ICMP port unreachable for it, or for what does not hairpin: most home routers are silent.
        chains.append(chain("input", "filter hook input", "filter", ["meta l4proto { tcp, udp } drop"]))
        source_nat = _source_nat(kind, wan_address, remote_addresses, hairpin)
        chains.append(chain("postrouting", "nat hook postrouting", "srcnat", source_nat))
    outside = [WAN_INTERFACE] if kind in (NatKind.FULL_CONE, NatKind.RESTRICTED_CONE) else []
    # What hairpins is not filtered: the filters of RFC 4787 §5 are about external hosts.
    open_to = [*outside, LAN_INTERFACE] if hairpin else outside
    if open_to:
        sets.append(f"set mapped {{ type inet_service; {options} }}")
        outgoing = [f"iifname {LAN_INTERFACE} meta l4proto udp update @mapped {{ udp sport }}"]
        if kind is NatKind.RESTRICTED_CONE:
            # The filter belongs to an internal endpoint: a set of addresses would open every port at once.
            sets.append(f"set sent_to {{ type ipv4_addr . inet_service; {options} }}")
            update = "update @sent_to { ip daddr . udp sport }"
            outgoing.append(f"iifname {LAN_INTERFACE} meta l4proto udp {update}")
        chains.append(chain("outgoing", "filter hook prerouting", "mangle", outgoing))
        # Only a port that has sent is mapped; for any other the router stays silent.
        mapped = f"ip daddr {wan_address} udp dport @mapped dnat to {inside_address}"
        incoming = [f"iifname {interface} {mapped}" for interface in open_to]
        chains.append(chain("prerouting", "nat hook prerouting", "dstnat", incoming))
    family = "ip" if kind.translates else "inet"
    return "\n".join([f"table {family} lab {{", *sets, *chains, "}", ""])


def sip_alg_ruleset(ports: Sequence[int]) -> str:
    """Write the rules that give a router the kernel's SIP ALG (nf_nat_sip) on these UDP ports.

    They are a table of their own, which replaces the one that may be there: whatever kind the NAT is, the ALG
    stands before it.
    """
    asked = f"udp dport {{ {', '.join(map(str, ports))} }}"
    rules = [f'iifname {LAN_INTERFACE} {asked} ct helper set "sip"']
    return "\n".join(
        [
            "table ip sip_alg",
            "delete table ip sip_alg",
            "table ip sip_alg {",
            'ct helper sip { type "sip" protocol udp; l3proto ip; }',
            # After connection tracking has made the flow, and before it is confirmed.
            chain("prerouting", "filter hook prerouting", "filter", rules),
            "}",
            "",
        ]
    )


def chain(name: str, hook: str, priority: str, rules: Iterable[str], policy: str = "accept") -> str:
    """Write one base chain of nftables."""
    return "\n".join([f"chain {name} {{", f"type {hook} priority {priority}; policy {policy};", *rules, "}"])


def loss(percent: float) -> list[str]:
    """Write the rule that drops this share of the UDP datagrams, to a hundredth of a percent."""
    share = round(percent * 100)
    if share >= 10000:
        return ["meta l4proto udp drop"]
    return [f"meta l4proto udp numgen random mod 10000 < {share} drop"] if share else []


def _forward(kind: NatKind) -> list[str]:
    """The filtering behavior (RFC 4787 §5): who may send inward."""
    if kind is NatKind.OPEN:
        return ["accept"]
    rules = ["ct state established,related accept", f"iifname {LAN_INTERFACE} accept"]
    if kind is NatKind.BLOCKED:
        return ["meta l4proto udp drop", *rules]
    if kind is NatKind.FULL_CONE:
        rules.append("ct status dnat accept")
    if kind is NatKind.RESTRICTED_CONE:
        rules.append("ip saddr . udp dport @sent_to accept")
    return rules


def _source_nat(kind: NatKind, wan_address: str, remote_addresses: Sequence[str], hairpin: bool) -> list[str]:
    """The mapping behavior (RFC 4787 §4): which public port a datagram leaves from."""
    rules = []
    if kind is NatKind.SYMMETRIC:
        rules.append(f"oifname {WAN_INTERFACE} meta l4proto udp masquerade fully-random")
    if kind is NatKind.ADDRESS_DEPENDENT:
        # Conntrack gives a source that it knows the port that it has, where the range holds it: a range
        # for each address makes one mapping for each address, for any number of sockets. The ranges lie below
        # Linux's ephemeral ports, or a socket's own port could be in one of them and be kept.
        span = (32768 - 2048) // len(remote_addresses)
        for number, address in enumerate(remote_addresses):
            first = 2048 + number * span
            source = f"{wan_address}:{first}-{first + span - 1}"
            rules.append(f"oifname {WAN_INTERFACE} ip daddr {address} meta l4proto udp snat to {source}")
    rules.append(f"oifname {WAN_INTERFACE} masquerade")  # Linux keeps the port where it can
    if hairpin:
        # The external source address and port, not the router's own on the LAN (RFC 4787 §6, REQ-9).
        rules.append(
            f"iifname {LAN_INTERFACE} oifname {LAN_INTERFACE} meta l4proto udp snat to {wan_address}"
        )
    return rules
