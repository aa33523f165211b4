"""What an operator can set for natgate: the same words in a TOML file, in flags, and in `GateSettings`.

Every word is listed in docs/natgate.md. Values are checked when `GateSettings` is made, wherever they come
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from nattools.binding.settings import PortRange, Settings
from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import DecodeError
from nattools.session.flows import transport_of
from nattools.session.nat_tests import USUAL_TESTS, ContactFix, NatTest
from nattools.session.registrar import RegistrarSettings
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri
from nattools.words import (
    LogForm,
    Words,
    check_known,
    choice,
    number,
    optional,
    parse_toml,
    read_address,
    read_endpoint,
    read_path,
    read_text,
    read_text_or_nothing,
    read_truth,
    read_word,
    several,
    shown,
    whole,
)

SCANNERS: Final = (
    "friendly-scanner",
    "friendly-request",
    "sipvicious",
    "sip-scan",
    "sipscan",
    "sundayddr",
    "sipcli",
    "sipptk",
    "pplsip",
    "VaxSIPUserAgent",
    "VaxIPUserAgent",
    "iWar",
    "sivus",
    "smap",
    "siparmyknife",
    "Nmap NSE",
)
"""Words in the User-Agent of programs that look for open SIP servers; see `guard`."""

USUAL_RTPENGINE: Final = Endpoint(IPv4Address("127.0.0.1"), 2223)

_TRANSPORTS = ("UDP", "TCP", "TLS")
_SQLITE = "sqlite:"
_STORES = ("memory", "sqlite:PATH", "redis://HOST:PORT/DB")
_LOWEST_RTP_PORT = 1024
_PAIRS_OF_A_STREAM = 2


class GateMode(StrEnum):
    """How natgate stands: as registrar of its own, in front of another one, or beside the phones."""

    REGISTRAR = "registrar"
    UPSTREAM = "upstream"
    ALG = "alg"


class EngineName(StrEnum):
    """What carries the media."""

    SOCKETS = "sockets"
    KERNEL = "kernel"
    RTPENGINE = "rtpengine"


class IceHandling(StrEnum):
    """What becomes of ICE attributes in descriptions."""

    STRIP = "strip"
    PASS = "pass"


class PingKind(StrEnum):
    """What is sent to registered phones behind a NAT."""

    CRLF = "crlf"
    OPTIONS = "options"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where SIP is taken: UDP, TCP or TLS at an address of this machine; the wildcard is each of them.

    Port 0 takes a free one. Raises `DecodeError` for another transport.
    """

    transport: str
    endpoint: Endpoint

    def __post_init__(self) -> None:
        if self.transport not in _TRANSPORTS:
            raise DecodeError(
                f"{shown(self.transport)} is no transport of SIP: one of {', '.join(_TRANSPORTS)}"
            )

    def __str__(self) -> str:
        return f"{self.transport.lower()}:{self.endpoint}"


def parse_listen(text: str) -> tuple[ListenAddress, ...]:
    """Read `203.0.113.5`, `[2001:db8::1]:5070` (UDP and TCP), or one transport: `tls:203.0.113.5:5061`.

    Raises `DecodeError`.
    """
    name, colon, rest = text.strip().partition(":")
    if colon and name.upper() in _TRANSPORTS:
        transport = name.upper()
        port = SIPS_PORT if transport == "TLS" else SIP_PORT
        return (ListenAddress(transport, Endpoint.parse(rest, default_port=port)),)
    endpoint = Endpoint.parse(text.strip(), default_port=SIP_PORT)
    return ListenAddress("UDP", endpoint), ListenAddress("TCP", endpoint)


EVERY_ADDRESS: Final = (*parse_listen("0.0.0.0"), *parse_listen("[::]"))
"""UDP and TCP on port 5060 of every address of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What natgate is and does. Raises `DecodeError` when made of what cannot be one.

    What it is stands in `registrar` (with `users`), `upstream` or `alg`; whether enough of these is said is
    asked by `mode`. With a `certificate` and no TLS in `listen`, TLS is added on port 5061 of the same
    addresses.
    `advertise` is what others are told instead of the local address. `domains` are host names that mean this
    natgate. `strangers` says whether who has no password may call the registrar's users. `outside`, for an
    ALG, is the local endpoint of its outside socket, and `binding` how its public endpoint is found; with the
    passwords in `users` it can register phones anew when that changes.
    `nat_tests` is the sum of the signs of a NAT that count (`NatTest`), and `contact_fix` what becomes of the
    Contact of who shows one.
    `rtp_ports` are the first and the last one. A stream is given up after `media_timeout_s` of silence, on
    hold after `hold_timeout_s`. A phone behind a NAT is pinged each `keepalive_s` and dead after `dead_after`
    pings without an answer. `requests_per_second` is for each source, as are `connections_per_source`,
    `calls_per_source` and `users_per_source`. `scanners` are words in the User-Agent of who is never
    answered. `status` is the path of the status socket, None for the usual place. `drain_s` is how long
    calls may go on once natgate is to end. Times end in `_s` and are in seconds.
    """

    listen: tuple[ListenAddress, ...] = EVERY_ADDRESS
    advertise: IPAddress | None = None
    certificate: Path | None = None
    key: Path | None = None
    domains: tuple[str, ...] = ()
    upstream: str = ""
    path: bool = False
    registrar: bool = False
    users: Path | None = None
    realm: str = ""
    store: str = "memory"
    strangers: bool = False
    alg: bool = False
    outside: Endpoint | None = None
    binding: Settings = field(default_factory=Settings)
    nat_tests: NatTest = USUAL_TESTS
    contact_fix: ContactFix = ContactFix.ALIAS
    engine: EngineName = EngineName.SOCKETS
    rtp_ports: tuple[int, int] = (30000, 40000)
    rtpengine: Endpoint = USUAL_RTPENGINE
    ice: IceHandling = IceHandling.STRIP
    media_timeout_s: float = 60.0
    hold_timeout_s: float = 1800.0
    keepalive: PingKind = PingKind.OPTIONS
    keepalive_s: float = 15.0
    dead_after: int = 3
    least_expires_s: int = 60
    default_expires_s: int = 3600
    most_expires_s: int = 7200
    contacts_per_user: int = 8
    users_per_source: int = 256
    most_calls: int = 10_000
    calls_per_user: int = 20
    calls_per_source: int = 500
    requests_per_second: float = 50.0
    most_message_bytes: int = 65_535
    most_connections: int = 10_000
    connections_per_source: int = 100
    scanners: tuple[str, ...] = SCANNERS
    metrics: Endpoint | None = None
    status: Path | None = None
    log: LogForm = LogForm.TEXT
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name in WORDS:
            secret = name == "store"  # there may be a password in it
            object.__setattr__(self, name, read_word(WORDS, name, getattr(self, name), secret=secret))
        if (self.certificate is None) is not (self.key is None):
            raise DecodeError("certificate and key belong together: set both, or neither")
        self._check_listen()
        self._check_role()
        _ = self.registrations  # which checks its times and limits

    def _check_listen(self) -> None:
        listen = self.listen or EVERY_ADDRESS
        has_tls = any(address.transport == "TLS" for address in listen)
        if has_tls and self.certificate is None:
            raise DecodeError("TLS is to be listened for without a certificate: set certificate and key")
        if self.certificate is not None and not has_tls:
            ips = dict.fromkeys(address.endpoint.ip for address in listen)
            listen += tuple(ListenAddress("TLS", Endpoint(ip, SIPS_PORT)) for ip in ips)
        if len(set(listen)) < len(listen):
            raise DecodeError("listen has the same address twice: leave one out")
        advertise = self.advertise
        if advertise is not None and all(it.endpoint.ip.version != advertise.version for it in listen):
            raise DecodeError(f"advertise {advertise} has another IP version than the addresses of listen")
        object.__setattr__(self, "listen", listen)

    def _check_role(self) -> None:
        is_tls = bool(self.upstream) and transport_of(SipUri.parse(self.upstream.encode())) == "TLS"
        if is_tls and self.certificate is None:
            raise DecodeError("upstream by TLS needs a certificate of natgate's own: set certificate and key")
        if self.registrar and (self.upstream or self.alg):
            other = "upstream" if self.upstream else "alg"
            raise DecodeError(
                f"registrar and {other} exclude each other: natgate registers phones, or passes them on"
            )
        if self.users is not None and self.upstream and not self.alg:
            raise DecodeError(
                "users are those of registrar: without that, whom the phones register with knows them"
            )

        if self.alg and self.engine is EngineName.RTPENGINE:
            raise DecodeError("alg and engine rtpengine exclude each other: its ports have no public binding")

    @property
    def mode(self) -> GateMode:
        """What natgate is to be. Raises `DecodeError` where that is not said, or not enough of it."""
        if self.alg:
            return GateMode.ALG
        if self.upstream:
            return GateMode.UPSTREAM
        if not self.registrar:
            raise DecodeError(
                "nothing says what natgate is to be: --registrar --users FILE to register phones itself, "
                "--upstream sip:HOST to stand in front of another registrar, or --alg to stand beside phones"
            )
        if self.users is None:
            raise DecodeError(
                'a registrar needs to know its users: --users FILE, with a line like alice = "secret"'
            )
        return GateMode.REGISTRAR

    @property
    def registrations(self) -> RegistrarSettings:
        """The part of it that the registrar takes."""
        try:
            return RegistrarSettings(
                default_expires_s=self.default_expires_s,
                least_expires_s=self.least_expires_s,
                most_expires_s=self.most_expires_s,
                contacts_per_user=self.contacts_per_user,
                users_per_source=self.users_per_source,
            )
        except ValueError as error:
            raise DecodeError(str(error)) from error

    @classmethod
    def of(cls, words: Mapping[str, object]) -> GateSettings:
        """Make settings of parsed TOML or of flags. Raises `DecodeError`, which names the word."""
        check_known(words, WORDS)
        found: dict[str, Any] = dict(words)
        return cls(**found)

    @classmethod
    def parse(cls, text: str) -> GateSettings:
        """Read the text of a settings file. Raises `DecodeError`, with the line where it is not TOML."""
        return cls.of(parse_toml(text))


# How each kind of value is read, from what TOML has for it or from itself


def _listen(value: object) -> tuple[ListenAddress, ...]:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("no list")
    found: list[ListenAddress] = []
    for part in parts:
        found += [part] if isinstance(part, ListenAddress) else parse_listen(read_text(part))
    return tuple(found)


def _advertise(value: object) -> IPAddress:
    address = read_address(value)
    if classify_address(address) in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
        raise DecodeError("nobody can be told to send there")
    return address


def _domain(value: object) -> str:
    text = read_text(value).lower().rstrip(".")
    uri = SipUri.parse(f"sip:{text}".encode())
    if uri.user is not None or uri.port is not None or uri.params:
        raise DecodeError("a host name alone, without user, port and parameters")
    return text


def _upstream(value: object) -> str:
    if value == "":
        return ""
    text = read_text(value)
    try:
        uri = SipUri.parse(text.encode())
    except DecodeError as error:
        raise DecodeError(f"it begins with sip: or sips:, as in sip:{text}") from error
    transport = uri.param("transport")
    if uri.scheme not in ("sip", "sips"):
        raise DecodeError("its scheme is sip or sips")
    if uri.user is not None:
        raise DecodeError("it is a server, without a user")
    if any(param.name != "transport" for param in uri.params):
        raise DecodeError("it has no parameter but transport")
    if transport is not None and (transport.value or b"").upper().decode("latin-1") not in _TRANSPORTS:
        raise DecodeError("its transport is udp, tcp or tls")
    return text


def _store(value: object) -> str:
    text = read_text(value)
    if text.startswith(_SQLITE) and text != _SQLITE:
        return f"{_SQLITE}{read_path(text.removeprefix(_SQLITE))}"
    if text != "memory" and not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("none of them")
    return text


def _peer(value: object) -> Endpoint:
    endpoint = read_endpoint(value)
    if endpoint.port == 0 or endpoint.address_class in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
        raise DecodeError(f"nothing can be sent to {endpoint}")
    return endpoint


def _nat_tests(value: object) -> NatTest:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2 * max(NatTest):
        raise ValueError("none such")
    return NatTest(value)


def _binding(value: object) -> Settings:
    if isinstance(value, Settings):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("no table")
    return Settings.of(value)


def _rtp_ports(value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple):
        if len(value) != 2 or not all(type(port) is int for port in value):
            raise ValueError("not two numbers")
        ports = PortRange(*value)
    else:
        ports = PortRange.parse(read_text(value))
    if ports.first < _LOWEST_RTP_PORT or len(ports.even_ports) < _PAIRS_OF_A_STREAM:
        raise DecodeError(f"two even ports from {_LOWEST_RTP_PORT} on and those after them are the least")
    return ports.first, ports.last


_TRUTH = (read_truth, "true or false")
_SECONDS = (number(1), "seconds, 1 or more")
_COUNT = (whole(1, 1 << 31), "a whole number, 1 or more")
_EXPIRES = (whole(1, 1 << 31), "whole seconds, 1 or more")


WORDS: Final[Words] = {
    "listen": (_listen, 'a list of addresses: "203.0.113.5", "[2001:db8::1]:5070", "tls:203.0.113.5:5061"'),
    "advertise": (optional(_advertise), 'an IP address: "198.51.100.7"'),
    "certificate": (optional(read_path), "the path of a PEM file"),
    "key": (optional(read_path), "the path of a PEM file"),
    "domains": (several(_domain), 'a list of host names: "sip.example.org"'),
    "upstream": (_upstream, "a SIP server: sip:HOST, sip:HOST:PORT or sip:HOST;transport=tcp"),
    "path": _TRUTH,
    "registrar": _TRUTH,
    "users": (optional(read_path), "the path of a TOML file with a table [users]"),
    "realm": (read_text_or_nothing, "text"),
    "store": (_store, f"one of {', '.join(_STORES)}"),
    "strangers": _TRUTH,
    "alg": _TRUTH,
    "outside": (optional(read_endpoint), 'an address of this machine with a port: "192.168.0.7:5062"'),
    "binding": (_binding, "a table of words from docs/settings.md"),
    "nat_tests": (_nat_tests, f"a sum of the numbers 1, 2, 4 ... {max(NatTest).value}"),
    "contact_fix": choice(ContactFix),
    "engine": choice(EngineName),
    "rtp_ports": (_rtp_ports, 'a range of ports: "30000-40000"'),
    "rtpengine": (_peer, 'an address with a port: "127.0.0.1:2223"'),
    "ice": choice(IceHandling),
    "media_timeout_s": _SECONDS,
    "hold_timeout_s": _SECONDS,
    "keepalive": choice(PingKind),
    "keepalive_s": _SECONDS,
    "dead_after": _COUNT,
    "least_expires_s": _EXPIRES,
    "default_expires_s": _EXPIRES,
    "most_expires_s": _EXPIRES,
    "contacts_per_user": _COUNT,
    "users_per_source": _COUNT,
    "most_calls": _COUNT,
    "calls_per_user": _COUNT,
    "calls_per_source": _COUNT,
    "requests_per_second": (number(1), "a number, 1 or more"),
    "most_message_bytes": (whole(1024, 65_535), "bytes, 1024 to 65535"),
    "most_connections": _COUNT,
    "connections_per_source": _COUNT,
    "scanners": (several(read_text), 'a list of words in User-Agent: "friendly-scanner"'),
    "metrics": (optional(read_endpoint), 'an address of this machine with a port: "127.0.0.1:9060"'),
    "status": (optional(read_path), "the path of a socket"),
    "log": choice(LogForm),
    "drain_s": (number(0), "seconds, 0 or more"),
}
"""Every word of `GateSettings`."""

if set(WORDS) != {each.name for each in fields(GateSettings)}:
    raise AssertionError("each setting has a word, and each word a setting")
