"""How a STUN server is named: `stun:` and `stuns:` URIs (RFC 7064), or simply `host` or `host:port`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from nattools.endpoint import IPAddress, split_host_port
from nattools.errors import DecodeError

PORT = 3478
TLS_PORT = 5349

_SCHEMES = {"stun": False, "stuns": True}
_SCHEMES_OF_OTHERS = ("turn", "turns", "http", "https", "sip", "sips")


class Transport(StrEnum):
    """What STUN runs over (RFC 8489 §6.2)."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"

    @property
    def service(self) -> str:
        """The service and protocol under which DNS lists servers for it (RFC 8489 §8.1)."""
        return {"udp": "_stun._udp", "tcp": "_stun._tcp", "tls": "_stuns._tcp"}[self]

    @property
    def default_port(self) -> int:
        """The port where nobody says another (RFC 8489 §8.1)."""
        return TLS_PORT if self is Transport.TLS else PORT


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A STUN server as the user names it: a host name or IP address, a port or None, and whether over TLS."""

    host: str
    port: int | None = None
    secure: bool = False

    def __post_init__(self) -> None:
        """Raises `DecodeError` for what cannot be a server."""
        if self.ip is None and not all(letter.isalnum() or letter in "-._" for letter in self.host):
            raise DecodeError(f"{self.host!r} is not a host name or IP address")
        if not self.host:
            raise DecodeError("a server without a host")
        if self.port is not None and not 1 <= self.port <= 0xFFFF:
            raise DecodeError(f"port {self.port} of {self.host}: 1 to 65535 are possible")
        if self.secure and self.ip is not None:
            raise DecodeError(
                f"stuns:{self.host}: a stuns: URI needs a host name, to check the certificate against "
                "(RFC 8489 §8.1); for TLS to an IP address give the address alone and transport tls"
            )

    @classmethod
    def parse(cls, text: str) -> ServerAddress:
        """Read `stun:host`, `stuns:host:port`, `host`, `192.0.2.1:3478` or `[2001:db8::1]:3478`.

        Raises `DecodeError`, which says what to write instead.
        """
        scheme, colon, rest = text.partition(":")
        scheme = scheme.lower()
        if colon and scheme in _SCHEMES_OF_OTHERS:
            raise DecodeError(f"{text!r} is not a STUN server: write stun:host, or host:port")
        is_uri = bool(colon) and scheme in _SCHEMES
        if is_uri:
            _check_uri(text, rest)
        host, port = split_host_port(rest if is_uri else text)
        if "[" in text and ":" not in host:
            raise DecodeError(f"{text!r}: only an IPv6 address stands in brackets")
        return cls(host, port, secure=is_uri and _SCHEMES[scheme])

    @property
    def ip(self) -> IPAddress | None:
        """The host as an IP address, or None where it is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'stuns' if self.secure else 'stun'}:{host}" + (f":{self.port}" if self.port else "")


def _check_uri(text: str, rest: str) -> None:
    """Refuse what RFC 7064 §3.1 does not have after the scheme, although people write it."""
    problem = None
    if rest.startswith("//"):
        problem = "write it without the slashes"
    elif "?" in rest:
        problem = (
            "a query like ?transport=tcp belongs to turn: URIs (RFC 7065); "
            "for STUN over TCP give the transport separately"
        )
    elif rest.count(":") > 1 and not rest.startswith("["):
        problem = "an IPv6 address stands in brackets"
    if problem is not None:
        raise DecodeError(f"{text!r} is not a STUN URI: {problem}")
