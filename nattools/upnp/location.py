"""Where a router says its documents are: URLs, and which of them may be asked (UDA 1.1 §1.2.2, RFC 3986)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urljoin

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import DecodeError

DEFAULT_PORT = 80
MOST_URL_CHARACTERS = 2048

_URL = re.compile(
    r"http://(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<ipv4>[0-9.]+))(?::(?P<port>[0-9]{0,5}))?(?P<target>[/?][^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_TARGET = re.compile(r"/[!-\"$-~]*", re.ASCII)  # no fragment: it is not sent
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_ROUTER_IS_THERE = {
    AddressClass.LOOPBACK: "this machine itself",
    AddressClass.LINK_LOCAL: "a link-local address",
    AddressClass.MULTICAST: "a multicast address",
    AddressClass.UNSPECIFIED: "the unspecified address",
}


@dataclass(frozen=True, slots=True)
class Location:
    """An `http` URL with an address for its host. `target` is what a request line carries: path and query.

    Raises `DecodeError` for a port or target that no request can be made with.
    """

    endpoint: Endpoint
    target: str

    def __post_init__(self) -> None:
        if self.endpoint.port == 0:
            raise DecodeError(f"{self.endpoint} names port 0, which nobody can listen on")
        if len(self.target) > MOST_URL_CHARACTERS or not _TARGET.fullmatch(self.target):
            raise DecodeError(f"{self.target[:100]!r} is not a request target")

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read an absolute URL; spaces and non-ASCII characters are percent-encoded, a fragment is dropped.

        Raises `DecodeError` for other schemes, host names, user names, scopes and control characters.
        """
        text = text.strip(" \t\r\n")
        match = _URL.fullmatch(text) if len(text) <= MOST_URL_CHARACTERS else None
        if match is None or _CONTROL.search(text):
            raise DecodeError(f"{text[:100]!r} is not an http URL with an IP address for its host")
        target = match["target"] or "/"
        try:
            ip = ip_address(match["ipv6"] or match["ipv4"])
            target = quote(target, safe=_VISIBLE_ASCII)
        except ValueError as error:  # a lone surrogate fails in quote
            raise DecodeError(f"{text[:100]!r} is not an http URL: {error}") from error
        if (ip.version == 6) != (match["ipv6"] is not None):
            raise DecodeError(f"{text[:100]!r} has brackets round what is not an IPv6 address")
        endpoint = Endpoint(ip, int(match["port"] or DEFAULT_PORT))
        return cls(endpoint, target if target.startswith("/") else f"/{target}")

    def join(self, reference: str) -> Location:
        """Read a URL that may be relative to this one (RFC 3986 §5.2); another port is fine.

        Raises `DecodeError` where it leads to another host, or to no `http` URL.
        """
        reference = reference.strip(" \t\r\n")
        if len(reference) > MOST_URL_CHARACTERS or _CONTROL.search(reference):  # before urljoin drops them
            raise DecodeError(f"{reference[:100]!r} is not a URL")
        try:
            joined = Location.parse(urljoin(str(self), reference))
        except ValueError as error:
            raise DecodeError(f"{reference[:100]!r} is not a URL: {error}") from error
        if joined.endpoint.ip != self.endpoint.ip:
            raise DecodeError(
                f"{reference[:100]!r} leads to {joined.endpoint.ip}, away from {self.endpoint.ip}"
            )
        return joined

    def __str__(self) -> str:
        return f"http://{self.endpoint}{self.target}"


def check_location(
    location: Location, *, source: IPAddress, on_link: Sequence[IPv4Network | IPv6Network]
) -> None:
    """Raise `DecodeError` unless `location` can be that of a router which answered from `source`.

    Its host must be the source itself or, for IPv6, where a router has many addresses, one on the link.
    A loopback host is refused unless the answer came from there, which only this machine can do. So is a
    public address that is not on the link: anybody on the Internet may have sent such an answer.
    """
    host = location.endpoint.ip
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        raise DecodeError(f"{location} is refused: its host is an IPv4 address in disguise")
    is_source = host == source
    address_class = classify_address(host)
    reason = _NO_ROUTER_IS_THERE.get(address_class)
    if reason is not None and not (is_source and address_class is AddressClass.LOOPBACK):
        raise DecodeError(f"{location} is refused: its host is {reason}")
    is_on_link = any(host in network for network in on_link)
    if not is_source and not (host.version == 6 and is_on_link):
        raise DecodeError(f"{location} is refused: {source} sent it, and may only name itself as the host")
    if address_class is AddressClass.PUBLIC and not is_on_link:
        raise DecodeError(f"{location} is refused: its host is on the Internet, not on this network")
