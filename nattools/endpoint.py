"""A transport address: IP and port, how it is written, what kind of address it is, and of which protocol."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from nattools.errors import DecodeError

IPAddress = IPv4Address | IPv6Address


class TransportProtocol(IntEnum):
    """What a port is a port of, by its IANA protocol number."""

    TCP = 6
    UDP = 17


class AddressClass(Enum):
    """What an IP address says about who can reach it."""

    PUBLIC = "public"
    PRIVATE = "private"  # RFC 1918, and RFC 4193 for IPv6
    SHARED = "shared"  # 100.64.0.0/10, carrier-grade NAT (RFC 6598)
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"
    RESERVED = "reserved"  # documentation, benchmarking, future use


_PRIVATE = tuple(IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
_SHARED = IPv4Network("100.64.0.0/10")
_SITE_BITS = 64  # RFC 6177


@lru_cache(maxsize=1024)
def classify_address(ip: IPAddress) -> AddressClass:
    """Say what kind of address `ip` is; an IPv4-mapped IPv6 address is judged by the IPv4 address in it."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    private = any(ip in n for n in _PRIVATE) if isinstance(ip, IPv4Address) else ip in _UNIQUE_LOCAL
    for holds, address_class in (
        (ip.is_unspecified, AddressClass.UNSPECIFIED),
        (ip.is_loopback, AddressClass.LOOPBACK),
        (ip.is_multicast, AddressClass.MULTICAST),
        (ip.is_link_local, AddressClass.LINK_LOCAL),
        (private, AddressClass.PRIVATE),
        (isinstance(ip, IPv4Address) and ip in _SHARED, AddressClass.SHARED),
        (ip.is_global, AddressClass.PUBLIC),
    ):
        if holds:
            return address_class
    return AddressClass.RESERVED


def site_of(ip: IPAddress) -> IPAddress:
    """What one customer has at the least: an IPv4 address, or an IPv6 /64, whose first address this is.

    An IPv4-mapped IPv6 address is the IPv4 address in it.
    """
    if isinstance(ip, IPv4Address):
        return ip
    return ip.ipv4_mapped or IPv6Address(int(ip) >> _SITE_BITS << _SITE_BITS)


@dataclass(frozen=True, slots=True, order=False)
class Endpoint:
    """An IP address and a port (0 to 65535)."""

    ip: IPAddress
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise DecodeError(f"port {self.port} is not between 0 and 65535")

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> Endpoint:
        """Read `192.0.2.1:3478`, `[2001:db8::1]:3478`, or an address alone where there is a default port.

        Raises `DecodeError` when the text is none of these; host names are not resolved here.
        """
        host, port = split_host_port(text)
        if port is None:
            port = default_port
        if port is None:
            raise DecodeError(f"{text!r} has no port")
        try:
            return cls(ip_address(host), port)
        except ValueError as error:
            raise DecodeError(f"{text!r} is not an IP address and port") from error

    @classmethod
    def of(cls, ip: str, port: int) -> Endpoint:
        """Make an endpoint from an address in text form. Raises `DecodeError`."""
        try:
            return cls(ip_address(ip), port)
        except ValueError as error:
            raise DecodeError(f"{ip!r} is not an IP address") from error

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is an IPv6 one."""
        return self.ip.version == 6

    @property
    def address_class(self) -> AddressClass:
        """What kind of address this is."""
        return classify_address(self.ip)

    @property
    def unmapped(self) -> Endpoint:
        """The IPv4 endpoint inside an IPv4-mapped IPv6 one (RFC 4291 §2.5.5.2), or this one itself."""
        if isinstance(self.ip, IPv6Address) and self.ip.ipv4_mapped is not None:
            return Endpoint(self.ip.ipv4_mapped, self.port)
        return self

    def with_port(self, port: int) -> Endpoint:
        """The same address with another port."""
        return Endpoint(self.ip, port)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.is_ipv6 else f"{self.ip}:{self.port}"


def split_host_port(text: str) -> tuple[str, int | None]:
    """Split `host`, `host:port`, `[v6]:port` or a bare IPv6 address. Raises `DecodeError`."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise DecodeError(f"{text!r} is not an address: a bracket is missing, or text follows it")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
    if not host:
        raise DecodeError(f"{text!r} names no host")
    if port_text is None:
        return host, None
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 0xFFFF):
        raise DecodeError(f"{port_text[:40]!r} is not a port (0 to 65535)")
    return host, int(port_text)
