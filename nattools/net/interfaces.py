"""Network interfaces of this machine, and the routers that it sends everything else to."""

from __future__ import annotations

import array
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

import psutil

from nattools.endpoint import IPAddress
from nattools.errors import TransportError

_TOOL_TIMEOUT_S = 2.0
_TELLS_INDEXES = sys.platform != "win32"  # there psutil and the socket module use different names

# <linux/route.h>
_RTF_UP = 0x0001
_RTF_GATEWAY = 0x0002
_RTF_REJECT = 0x0200

# <linux/sockios.h>, <linux/ethtool.h>, <net/if_arp.h>
_SIOCGIFHWADDR = 0x8927
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRIVER_INFO = struct.Struct("=I32s32s32s32s32s12x5I")
_LINK_ETHERNET = 1
_LINK_NONE = 0xFFFE  # tun, WireGuard and xfrm, but modems as well that carry bare IP packets
_TUNNEL_LINKS = frozenset({256, 512, 768, 769, 776, 778, 823})  # SLIP, PPP, IP in IP, SIT, GRE

_TUNNEL_NAMES = ("gif", "gre", "ipsec", "ppp", "tap", "tun", "utun", "wg")


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as it is at the moment."""

    name: str
    index: int  # 0 where the system does not tell (Windows)
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    is_up: bool
    is_multicast: bool
    is_loopback: bool
    is_point_to_point: bool

    @property
    def ips(self) -> tuple[IPAddress, ...]:
        """The addresses alone; a link-local IPv6 one has its scope, which `IPv6Interface.ip` drops."""
        return tuple(
            IPv6Address(f"{address.ip}%{self.name}")
            if isinstance(address, IPv6Interface) and address.is_link_local
            else address.ip
            for address in self.addresses
        )


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A way to everywhere; of several the system takes the one with the lowest metric."""

    gateway: IPAddress  # a link-local one has its scope: fe80::1%eth0
    interface: str
    metric: int


def interfaces() -> list[Interface]:
    """All interfaces of this machine. Raises `TransportError` where the system does not tell."""
    try:
        all_addresses = psutil.net_if_addrs()
        all_statistics = psutil.net_if_stats()
    except (OSError, psutil.Error) as error:
        raise TransportError(f"the system does not tell its network interfaces: {error}") from error
    found = []
    for name, statistics in all_statistics.items():
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            if _TELLS_INDEXES:
                continue  # it has gone meanwhile
            index = 0
        addresses = tuple(
            address
            for label, entries in all_addresses.items()
            if label == name or label.startswith(f"{name}:")  # Linux: `ip addr add ... label eth0:1`
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
            and (address := parse_address(entry.address, entry.netmask)) is not None
        )
        flags = set(statistics.flags.split(",")) if statistics.flags else None  # None: Windows
        loopback = any(address.is_loopback for address in addresses)
        found.append(
            Interface(
                name,
                index,
                addresses,
                is_up=statistics.isup,
                is_multicast=not loopback if flags is None else "multicast" in flags,
                is_loopback=loopback or (flags is not None and "loopback" in flags),
                is_point_to_point=flags is not None and "pointopoint" in flags,
            )
        )
    return found


def interface_of(address: IPAddress) -> Interface | None:
    """The interface that has `address`; None where this machine has no such address.

    Where several have it, one that is up comes first. Raises what `interfaces` does.
    """
    owners = [interface for interface in interfaces() if address in interface.ips]
    return max(owners, key=lambda interface: interface.is_up, default=None)


def is_tunnel(interface: Interface) -> bool | None:
    """Whether what goes through `interface` leaves inside other packets; None where nobody tells.

    Linux tells the kind of link and its driver. Elsewhere a point-to-point link is one, or the name says so.
    """
    if interface.is_loopback:
        return False
    if sys.platform == "linux":
        tunnel = _is_linux_tunnel(interface.name)
    elif interface.is_point_to_point or interface.name.startswith(_TUNNEL_NAMES):
        tunnel = True
    else:
        tunnel = None if sys.platform == "win32" else False
    return tunnel


def _is_linux_tunnel(name: str) -> bool | None:
    from fcntl import ioctl  # there is none on Windows

    # not from /sys, which shows the network namespace of who mounted it
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        try:
            answer = ioctl(anything, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
        except OSError:  # it has gone, or the sandbox allows no such question
            return None
        link: int = struct.unpack_from("=H", answer, 16)[0]
        if link in _TUNNEL_LINKS:
            return True
        if link not in (_LINK_NONE, _LINK_ETHERNET):
            return False
        info = array.array("B", _DRIVER_INFO.pack(_ETHTOOL_GDRVINFO, *[b""] * 5, *[0] * 5))
        try:
            ioctl(anything, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), info.buffer_info()[0]))
        except OSError:
            return link == _LINK_NONE
    _, driver, _, _, bus, *_ = _DRIVER_INFO.unpack(info.tobytes())
    is_software = not bus.strip(b"\0")
    return driver.strip(b"\0") == b"tun" or (link == _LINK_NONE and is_software)  # Ethernet: a tap


def parse_address(text: str, netmask: str | None) -> IPv4Interface | IPv6Interface | None:
    """The address and the prefix in what psutil gives; None where it is no address."""
    try:
        ip = ip_address(text.partition("%")[0])
        if netmask is not None:
            prefix_length = int(ip_address(netmask)).bit_count()
        else:  # Windows tells none for IPv6, where an interface identifier has 64 bits (RFC 4291 §2.5.4)
            prefix_length = 32 if ip.version == 4 else 64
        return ip_interface(f"{text}/{prefix_length}")
    except ValueError:
        return None


def default_routes(*, ipv6: bool = False) -> list[DefaultRoute]:
    """The default routes that have a gateway, best first; none where the system has or tells none."""
    if sys.platform == "linux":
        routes = _linux_routes(ipv6)
    elif sys.platform == "win32":
        names = {str(ip): interface.name for interface in interfaces() for ip in interface.ips}
        said = _said_by(["route", "print", "-6", "::/0"] if ipv6 else ["route", "print", "-4", "0.0.0.0"])
        routes = parse_route_print(said, ipv6=ipv6, interface_names=names)
    else:
        routes = parse_netstat(_said_by(["netstat", "-rn", "-f", "inet6" if ipv6 else "inet"]))
    return sorted(routes, key=lambda route: route.metric)


def _linux_routes(ipv6: bool) -> list[DefaultRoute]:
    # a thread may be in another network namespace than its process
    path = f"/proc/thread-self/net/{'ipv6_route' if ipv6 else 'route'}"
    try:
        with open(path, encoding="ascii", errors="replace") as lines:  # may have millions
            return list(parse_ipv6_route(lines) if ipv6 else parse_route(lines))
    except OSError:  # no /proc, or a kernel without IPv6
        return []


def parse_route(lines: Iterable[str]) -> Iterator[DefaultRoute]:
    """The default routes in Linux's /proc/net/route, where addresses are numbers in host byte order."""
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        try:
            gateway = IPv4Address(int(fields[2], 16).to_bytes(4, sys.byteorder))
            flags, metric = int(fields[3], 16), int(fields[6])
        except (ValueError, OverflowError):
            continue
        if _is_usable(flags, gateway, fields[0]):
            yield DefaultRoute(gateway, fields[0], metric)


def parse_ipv6_route(lines: Iterable[str]) -> Iterator[DefaultRoute]:
    """The default routes in Linux's /proc/net/ipv6_route, where addresses are in network byte order."""
    everywhere = ["0" * 32, "00"]
    for line in lines:
        fields = line.split()
        if len(fields) < 10 or fields[:4] != everywhere * 2:
            continue
        try:
            gateway = IPv6Address(bytes.fromhex(fields[4]))
            metric, flags = int(fields[5], 16), int(fields[8], 16)
            if gateway.is_link_local:
                gateway = IPv6Address(f"{gateway}%{fields[9]}")
        except ValueError:
            continue
        if _is_usable(flags, gateway, fields[9]):
            yield DefaultRoute(gateway, fields[9], metric)


def _is_usable(flags: int, gateway: IPAddress, interface: str) -> bool:
    wanted = _RTF_UP | _RTF_GATEWAY
    return flags & (wanted | _RTF_REJECT) == wanted and not gateway.is_unspecified and interface != "lo"


def _said_by(command: list[str]) -> str:
    """What a tool of the system prints; nothing where there is none or it takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def parse_netstat(text: str) -> list[DefaultRoute]:
    """The default routes in what `netstat -rn` prints on macOS and the BSDs.

    It shows no metric; the first is the one that is used, so the place in the list serves.
    """
    routes: list[DefaultRoute] = []
    column = None
    for line in text.splitlines():
        fields = line.split()
        if "Destination" in fields and "Netif" in fields:
            column = fields.index("Netif")
        if column is None or len(fields) <= column or fields[0] not in ("default", "0.0.0.0/0", "::/0"):
            continue
        try:
            gateway = ip_address(fields[1])  # not so: link#15, of a tunnel without gateway
        except ValueError:
            continue
        # macOS has fe80::%utun0 for its own tunnels, which is no router's address
        if int.from_bytes(gateway.packed[-8:], "big") and "R" not in fields[2] and "B" not in fields[2]:
            routes.append(DefaultRoute(gateway, fields[column], len(routes)))
    return routes


def parse_route_print(
    text: str, *, ipv6: bool = False, interface_names: dict[str, str] | None = None
) -> list[DefaultRoute]:
    """The default routes in what `route print` prints on Windows, in any language.

    IPv4 rows have network, mask, gateway, the interface's address, metric; IPv6 rows have the interface's
    index, metric, network, gateway. `interface_names` gives names for the addresses.
    """
    routes = []
    for line in text.splitlines():
        fields = line.split()
        try:
            if ipv6 and len(fields) == 4 and fields[2] == "::/0" and fields[0] != "0":  # 0: stored, not used
                gateway, interface, metric = ip_address(fields[3]), fields[0], int(fields[1])
                if gateway.is_link_local:
                    gateway = IPv6Address(f"{gateway}%{interface}")
            elif not ipv6 and len(fields) == 5 and fields[:2] == ["0.0.0.0", "0.0.0.0"]:
                gateway, metric = ip_address(fields[2]), int(fields[4])
                interface = (interface_names or {}).get(fields[3], fields[3])
            else:
                continue
        except ValueError:  # "On-link"
            continue
        routes.append(DefaultRoute(gateway, interface, metric))
    return routes
