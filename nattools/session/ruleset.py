"""The nftables rules by which the kernel relays RTP and RTCP, and the flows that are in them.

Each datagram is rewritten on its own, without connection tracking: an entry there would hold a flow to where
it went first, beyond its removal and beyond a phone's move to another port. In prerouting a datagram of a
known flow gets its destination's address, so that it is routed there; in postrouting it gets the rest. It
is told there by its source, that address and the port at which it arrived. What belongs to no flow goes on to
the socket that is bound to the port, unchanged, and so do fragments, which the socket gets put together.

The kernel counts each flow's datagrams, and keeps the RTP header of one datagram in a second: who relays
no longer sees a stream must still know its SSRC and sequence number to judge who claims to continue it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import Side

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")
_COUNTED = re.compile(r'counter packets (\d+) bytes (\d+) comment "([^"]*)"')
_LABEL = re.compile(r"([0-9a-f]{1,32}) ([ab]) (rtp|rtcp)")
_UDP_HEADER = 8
_IP_HEADER = {4: 20, 6: 40}
_RTP_HEADER = 12
_RTP_VERSION = 2
_MOST_FLOWS = 65535
_SAMPLE_LIFE_S = 1

# The fields of a map's key: the same four everywhere, with what they are at that point of the way.
_KEY = "{ip} saddr . udp sport . {ip} daddr . udp dport"
_RULES = """\
add table {family} {name}
add map {family} {name} toward {{ type {key_type} : {address}; counter; }}
add map {family} {name} source_port {{ type {key_type} : inet_service; }}
add map {family} {name} destination_port {{ type {key_type} : inet_service; }}
add map {family} {name} source_address {{ type {key_type} : {address}; }}
add map {family} {name} heard {{ typeof udp dport : @th,64,96; size {size}; flags dynamic,timeout; \
timeout {life}s; }}
add chain {family} {name} arrive {{ type filter hook prerouting priority raw; }}
add chain {family} {name} leave {{ type filter hook postrouting priority srcnat; }}
flush chain {family} {name} arrive
flush chain {family} {name} leave
add rule {family} {name} arrive {whole} {ip} daddr set {key} map @toward notrack \
add @heard {{ udp dport : @th,64,96 }}
add rule {family} {name} leave udp sport set {key} map @source_port \
udp dport set {key} map @destination_port {ip} saddr set {key} map @source_address
"""
_WHOLE = {4: "ip frag-off & 0x3fff == 0", 6: "exthdr frag missing"}


@dataclass(frozen=True, slots=True)
class Label:
    """Which flow of which stream: a stream has up to four, RTP and RTCP from each side.

    `stream` is a name of up to 32 hexadecimal digits. Raises `DecodeError` for another.
    """

    stream: str
    side: Side
    is_rtcp: bool = False

    def __post_init__(self) -> None:
        if _LABEL.fullmatch(str(self)) is None:
            raise DecodeError(f"{self.stream!r} names no stream: it needs 1 to 32 hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read what `str` writes. Raises `DecodeError`."""
        match = _LABEL.fullmatch(text)
        if match is None:
            raise DecodeError(f"{text!r} is not the label of a flow")
        return cls(match[1], Side(match[2]), match[3] == "rtcp")

    def __str__(self) -> str:
        return f"{self.stream} {self.side.value} {'rtcp' if self.is_rtcp else 'rtp'}"


_Key = tuple[Endpoint, Endpoint]
_Element = tuple[str, _Key]


@dataclass(frozen=True, slots=True)
class KernelFlow:
    """What comes from `source` to the relay's `arrives_at` goes on from its `leaves_from` to `destination`.

    All four are of one address family, or `DecodeError` is raised: the kernel translates no headers.
    """

    label: Label
    source: Endpoint
    arrives_at: Endpoint
    leaves_from: Endpoint
    destination: Endpoint

    def __post_init__(self) -> None:
        if len({it.ip.version for it in (self.arrives_at, self.leaves_from, self.destination)}) > 1 or (
            self.source.is_ipv6 != self.destination.is_ipv6
        ):
            raise DecodeError(f"the flow from {self.source} to {self.destination} changes its address family")

    @property
    def family(self) -> str:
        """The family of nftables that its elements are in."""
        return _family(self.source.ip.version)

    @property
    def elements(self) -> tuple[tuple[_Element, str], ...]:
        """What it puts into the maps: the map's name and the key, and what the key leads to."""
        arrived = (self.source, self.arrives_at)
        routed = (self.source, self.destination.with_port(self.arrives_at.port))
        half = (self.source.with_port(self.leaves_from.port), routed[1])
        whole = (half[0], self.destination)
        return (
            (("toward", arrived), str(self.destination.ip)),
            (("source_port", routed), str(self.leaves_from.port)),
            (("destination_port", half), str(self.destination.port)),
            (("source_address", whole), str(self.leaves_from.ip)),
        )


@dataclass(frozen=True, slots=True)
class Heard:
    """What the kernel saw of a flow: datagrams and octets of UDP payload since it has it.

    `ssrc` and `sequence` (RFC 3550 §5.1) are of a datagram of the last second or so; None where there was
    none, or it was no RTP.
    """

    packets: int
    octets: int
    ssrc: int | None = None
    sequence: int | None = None


@dataclass
class FlowTable:
    """Flows that do not stand in each other's way."""

    _flows: dict[Label, KernelFlow] = field(default_factory=dict)
    _taken: dict[_Element, Label] = field(default_factory=dict)

    def put(self, flow: KernelFlow) -> bool:
        """Take a flow, in place of the one with that label; false where another's datagrams look the same."""
        keys = [element for element, _value in flow.elements]
        if any(self._taken.get(key, flow.label) != flow.label for key in keys):
            return False
        self.remove(flow.label)
        self._flows[flow.label] = flow
        self._taken.update(dict.fromkeys(keys, flow.label))
        return True

    def remove(self, label: Label) -> KernelFlow | None:
        """Forget the flow with that label and return it; None where there is none."""
        flow = self._flows.pop(label, None)
        if flow is not None:
            for key, _value in flow.elements:
                del self._taken[key]
        return flow

    def get(self, label: Label) -> KernelFlow | None:
        """The flow with that label."""
        return self._flows.get(label)

    def __iter__(self) -> Iterator[KernelFlow]:
        return iter(self._flows.values())


def check_name(name: str) -> str:
    """Return the name of a table. Raises `DecodeError` where nft would read something else in it."""
    if _NAME.fullmatch(name) is None:
        raise DecodeError(f"{name!r} cannot name a table: it takes up to 31 letters, digits and _")
    return name


def compose_table(name: str, version: int) -> str:
    """Write what makes the table of an IP version; one that is there keeps its flows (`nft -f`)."""
    return _RULES.format(
        family=_family(version),
        name=check_name(name),
        ip=_family(version),
        address=f"ipv{version}_addr",
        key_type=f"ipv{version}_addr . inet_service . ipv{version}_addr . inet_service",
        key=_KEY.format(ip=_family(version)),
        whole=_WHOLE[version],
        size=_MOST_FLOWS,
        life=_SAMPLE_LIFE_S,
    )


def compose_removal(name: str, version: int) -> str:
    """Write what removes the table of an IP version, whether it is there or not (`nft -f`)."""
    table = f"{_family(version)} {check_name(name)}"
    return f"add table {table}\ndelete table {table}\n"


def compose_difference(name: str, present: Iterable[KernelFlow], wanted: Iterable[KernelFlow]) -> str:
    """Write what makes the flows that are present the wanted ones, in one transaction; empty if they are."""
    check_name(name)
    old, new = set(present), set(wanted)
    lines: list[str] = []
    for flow in old - new:
        for (table, key), _value in flow.elements:
            lines.append(f"delete element {flow.family} {name} {table} {{ {_key_text(key)} }}\n")
    for flow in new - old:
        for (table, key), value in flow.elements:
            comment = f' comment "{flow.label}"' if table == "toward" else ""
            lines.append(
                f"add element {flow.family} {name} {table} {{ {_key_text(key)}{comment} : {value} }}\n"
            )
    return "".join(lines)


def listing_command(name: str, version: int) -> str:
    """The argument by which `nft -j` lists the table of an IP version."""
    return f"list table {_family(version)} {check_name(name)}"


def parse_flows(listing: str) -> list[KernelFlow]:
    """Read the flows of one family from what `nft -j` says of its table.

    A flow that is not whole, or was not put there by `compose_difference`, is left out. Raises `DecodeError`
    for what is no such listing.
    """
    maps = dict(_maps(listing))
    flows = []
    for arrived, (value, comment, _counted) in maps.get("toward", {}).items():
        if isinstance(arrived, int):
            continue
        source, arrives_at = arrived
        try:
            label = Label.parse(comment)
            reached = Endpoint.of(str(value), arrives_at.port)
            port = int(str(maps["source_port"][(source, reached)][0]))
            half = source.with_port(port)
            destination = reached.with_port(int(str(maps["destination_port"][(half, reached)][0])))
            address = str(maps["source_address"][(half, destination)][0])
            flows.append(KernelFlow(label, source, arrives_at, Endpoint.of(address, port), destination))
        except (DecodeError, KeyError, ValueError):
            continue
    return flows


def parse_heard(listing: str, flows: Iterable[KernelFlow]) -> dict[Label, Heard]:
    """What the kernel saw of those of `flows` that are in a listing of one family. Raises `DecodeError`."""
    maps = dict(_maps(listing))
    samples = {key: value for key, (value, _comment, _counted) in maps.get("heard", {}).items()}
    heard = {}
    for flow in flows:
        entry = maps.get("toward", {}).get((flow.source, flow.arrives_at))
        if entry is not None:
            sample = None if flow.label.is_rtcp else samples.get(flow.arrives_at.port)
            packets, octets = entry[2]
            heard[flow.label] = Heard(packets, _payload(flow, packets, octets), *_rtp_of(sample))
    return heard


def counting_commands(name: str, flows: Iterable[KernelFlow]) -> str:
    """The argument by which `nft` tells of those flows alone; it fails where it has not got them all."""
    check_name(name)
    return "; ".join(
        f"get element {flow.family} {name} toward {{ {_key_text((flow.source, flow.arrives_at))} }}"
        for flow in flows
    )


def parse_counts(text: str, flows: Iterable[KernelFlow]) -> dict[Label, Heard]:
    """What the kernel saw of `flows`, from what `nft` says to `counting_commands`."""
    counts = {label: (int(packets), int(octets)) for packets, octets, label in _COUNTED.findall(text)}
    return {
        flow.label: Heard(packets, _payload(flow, packets, octets))
        for flow in flows
        for packets, octets in [counts.get(str(flow.label), (0, 0))]
    }


def _payload(flow: KernelFlow, packets: int, octets: int) -> int:
    return max(octets - packets * (_IP_HEADER[flow.source.ip.version] + _UDP_HEADER), 0)


def _family(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _key_text(key: _Key) -> str:
    source, destination = key
    return f"{source.ip} . {source.port} . {destination.ip} . {destination.port}"


_Entry = tuple[object, str, tuple[int, int]]


def _maps(listing: str) -> Iterator[tuple[str, dict[_Key | int, _Entry]]]:
    """The maps of a listing, which is one JSON document."""
    try:
        for item in json.loads(listing)["nftables"]:
            if "map" in item:
                yield item["map"]["name"], dict(_entry(*it) for it in item["map"].get("elem", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DecodeError(f"nft lists what is no map of the relay: {listing[:80]!r}") from error


def _entry(key: object, value: object) -> tuple[_Key | int, _Entry]:
    """An element as nft writes it: its key may have a comment, a counter or a time beside it."""
    whole: dict[str, Any] = {"val": key}
    if isinstance(key, dict) and "elem" in key:
        whole = key["elem"]
    counter = whole.get("counter") or {"packets": 0, "bytes": 0}
    entry = (value, whole.get("comment", ""), (int(counter["packets"]), int(counter["bytes"])))
    if isinstance(whole["val"], int):
        return whole["val"], entry
    source_ip, source_port, ip, port = whole["val"]["concat"]
    return (Endpoint(ip_address(source_ip), source_port), Endpoint(ip_address(ip), port)), entry


def _rtp_of(sample: object) -> tuple[int | None, int | None]:
    """The SSRC and sequence number in a header that nft writes as a number, or in hexadecimal digits."""
    if sample is None:
        return None, None
    try:
        number = sample if isinstance(sample, int) else int(str(sample), 0)
        header = number.to_bytes(_RTP_HEADER, "big")
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"nft lists {sample!r} as an RTP header") from error
    if header[0] >> 6 != _RTP_VERSION:
        return None, None
    return int.from_bytes(header[8:]), int.from_bytes(header[2:4])
