"""What an operator can set for stund: the same words in a TOML file, in flags, and in `StundSettings`.

Every word is listed in docs/stund.md. Values are checked when `StundSettings` is made, wherever they come
from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import CredentialError, DecodeError, TransportError
from nattools.stun.accounts import DEFAULT_REALM, Accounts, LongTermAccounts, ShortTermAccounts
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.connections import MOST_CONNECTIONS, ConnectionLimits
from nattools.stun.limiter import Level, Limits, Rate
from nattools.stun.peer import TwoHosts
from nattools.stun.responder import (
    DEFAULT_ALTERNATE_PORT,
    DEFAULT_PORT,
    REFLECTOR_PORTS,
    ServerAddresses,
)
from nattools.stun.uri import TLS_PORT
from nattools.words import (
    LogForm,
    Words,
    check_known,
    choice,
    number,
    optional,
    parse_toml,
    parse_users,
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

EVERY_ADDRESS: Final[tuple[IPAddress, ...]] = (IPv4Address("0.0.0.0"), IPv6Address("::"))

DEFAULT_SIP_PORT = 5060

DEFAULT_PEER_PORT = 3480
"""Where the link of two hosts is, on both."""

LEVELS: Final = tuple(level.name.lower() for level in Level)
"""The words of the table `limits`, the narrowest first."""

_CONNECTIONS = ConnectionLimits()
_MOST_PORT = 65_535
_MOST_WORKERS = 256


class CredentialKind(StrEnum):
    """How users prove that they are users (RFC 8489 §9)."""

    LONG_TERM = "long-term"
    SHORT_TERM = "short-term"


@dataclass(frozen=True, slots=True)
class StundSettings:
    """Everything that an operator can set; raises `DecodeError` for what is wrong, and says what is right."""

    addresses: tuple[IPAddress, ...] = ()
    """The first of a family is its address, the second its alternate; without any it is `EVERY_ADDRESS`."""
    port: int = DEFAULT_PORT
    alternate_port: int | None = None
    sip_reflector: bool = False
    sip_ports: tuple[int, ...] = ()
    advertise: Mapping[IPAddress, IPAddress] = field(default_factory=dict, hash=False)
    reflector_ports: frozenset[int] = REFLECTOR_PORTS
    peers: tuple[IPAddress, ...] = ()
    """One of each family at the most."""
    peer_port: int = DEFAULT_PEER_PORT
    peer_key: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    tls_port: int | None = None
    """With a certificate `TLS_PORT` unless given; without one None."""
    shared_secrets: bool = False
    limits: Limits = field(default_factory=Limits)
    most_connections: int = _CONNECTIONS.most
    connections_per_source: int = _CONNECTIONS.per_source
    idle_s: float = _CONNECTIONS.idle_s
    users: Path | None = None
    credentials: CredentialKind = CredentialKind.LONG_TERM
    realm: str = DEFAULT_REALM
    user: str = ""
    workers: int = 1
    metrics: Endpoint | None = None
    log: LogForm = LogForm.TEXT

    def __post_init__(self) -> None:
        for name in WORDS:
            object.__setattr__(self, name, read_word(WORDS, name, getattr(self, name)))
        if self.sip_ports and not self.sip_reflector:
            raise DecodeError("--sip-port says where --sip-reflector answers: give that as well")
        if self.sip_reflector and self.workers > 1:
            raise DecodeError("sip_reflector wants one process: leave workers at 1")
        self._check_peers()
        self._check_tls()
        try:
            families = self.families
        except TransportError as error:
            raise DecodeError(str(error)) from error
        endpoints = [endpoint for family in families for endpoint in family.endpoints]
        self._check_advertise({endpoint.ip for endpoint in endpoints})
        if self.tls_port in {endpoint.port for endpoint in endpoints}:
            raise DecodeError(f"tls_port {self.tls_port} is a port of STUN as it is, too: they must differ")

    def _check_peers(self) -> None:
        if bool(self.peers) is (self.peer_key is None):
            raise DecodeError("peers and peer_key belong together: set both, or neither")
        if not self.peers:
            return
        for peer in self.peers:
            own = _of_family(self.addresses, peer.version)
            if len(own) != 1 or own[0].is_unspecified or len(_of_family(self.peers, peer.version)) != 1:
                raise DecodeError(
                    f"the peer {peer} has the second IPv{peer.version} address: of this machine it wants one,"
                    " which is named, and beside it no other peer of that family"
                )
        if self.workers > 1:
            raise DecodeError("peers want one process: leave workers at 1")
        if self.peer_port in (self.port, self._second_port):
            raise DecodeError(f"peer_port {self.peer_port} is a port of STUN, too: they must differ")

    def _check_tls(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise DecodeError("certificate and key belong together: set both, or neither")
        if self.certificate is None:
            for word, is_set in (
                ("tls_port", self.tls_port is not None),
                ("shared_secrets", self.shared_secrets),
            ):
                if is_set:
                    raise DecodeError(
                        f"{word} is for TLS, which wants a certificate: set certificate and key"
                    )
            return
        if self.tls_port is None:
            object.__setattr__(self, "tls_port", TLS_PORT)

    def _check_advertise(self, own: Collection[IPAddress]) -> None:
        for local, public in self.advertise.items():
            if local.version != public.version:
                raise DecodeError(f"advertise {local}={public}: they are of different families")
            is_served = local in own or any(ip.is_unspecified for ip in _of_family(own, local.version))
            if not is_served and local not in self.peers:
                raise DecodeError(f"advertise {local}={public}: stund is not to listen on {local}")
        if len(set(self.advertise.values())) < len(self.advertise):
            raise DecodeError("advertise has one public address for two: each needs its own")

    @property
    def hosts(self) -> tuple[TwoHosts, ...]:
        """Both machines, for each family that has a peer."""
        return tuple(
            TwoHosts(_of_family(self.addresses, peer.version)[0], peer, self.port, self._second_port)
            for peer in self.peers
        )

    @property
    def families(self) -> tuple[ServerAddresses, ...]:
        """Where stund listens: all sockets of one family, then those of the other, if there is one."""
        addresses = self.addresses or EVERY_ADDRESS
        alone = {hosts.own: hosts.alone for hosts in self.hosts}
        versions = dict.fromkeys(ip.version for ip in addresses)
        of_each = [_of_family(addresses, version) for version in versions]
        return tuple(alone.get(own[0]) or self._family(own) for own in of_each)

    def _family(self, own: tuple[IPAddress, ...]) -> ServerAddresses:
        if len(own) > 2:
            raise DecodeError(
                f"{', '.join(map(str, own))}: a family has two addresses at the most, the second for NAT"
                " behaviour tests; to serve every address of this machine give none"
            )
        if len(own) == 1:
            return ServerAddresses(own[0], self.port, alternate_port=self.alternate_port)
        return ServerAddresses(own[0], self.port, own[1], self._second_port)

    @property
    def _second_port(self) -> int:
        """The alternate port where there must be one."""
        return DEFAULT_ALTERNATE_PORT if self.alternate_port is None else self.alternate_port

    @property
    def connection_limits(self) -> ConnectionLimits:
        """How many connections one process serves, and for how long."""
        return ConnectionLimits(self.most_connections, self.connections_per_source, self.idle_s)

    @property
    def more_ports(self) -> tuple[int, ...]:
        """The UDP ports for SIP beside those of `families`."""
        return (self.sip_ports or (DEFAULT_SIP_PORT,)) if self.sip_reflector else ()

    @classmethod
    def of(cls, words: Mapping[str, object]) -> StundSettings:
        """Make settings of parsed TOML or of flags. Raises `DecodeError`, which names the word."""
        check_known(words, WORDS)
        found: dict[str, Any] = dict(words)
        return cls(**found)

    @classmethod
    def parse(cls, text: str) -> StundSettings:
        """Read the text of a settings file. Raises `DecodeError`, with the line where it is not TOML."""
        return cls.of(parse_toml(text))

    def accounts(self, text: str, *, secret: bytes) -> Accounts:
        """The users of a file like that of natgate: a table [users] of names and passwords.

        `secret` is for `LongTermAccounts`. Raises `DecodeError`, which names the user and no password.
        """
        passwords = parse_users(text).items()
        if not passwords:
            raise DecodeError("the table [users] has nobody in it")
        try:
            if self.credentials is CredentialKind.SHORT_TERM:
                return ShortTermAccounts(ShortTerm(*each) for each in passwords)
            accounts = (LongTerm(*each) for each in passwords)
            return LongTermAccounts(accounts, secret=secret, realm=self.realm)
        except CredentialError as error:
            raise DecodeError(str(error)) from error


def _of_family(addresses: Iterable[IPAddress], version: int) -> tuple[IPAddress, ...]:
    return tuple(ip for ip in addresses if ip.version == version)


# How the values that only stund has are read, from what TOML has for them or from themselves

_port = whole(0, _MOST_PORT)
_lasting_port = whole(1, _MOST_PORT)


def _port_set(value: object) -> frozenset[int]:
    return frozenset(several(_port)(value))


def _advertise(value: object) -> Mapping[IPAddress, IPAddress]:
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):  # of flags
        pairs = [_pair(each) for each in value]
    else:
        raise ValueError("no table")
    found = {read_address(local): read_address(public) for local, public in pairs}
    if len(found) < len(pairs):
        raise DecodeError("an address is given twice")
    for public in found.values():
        if classify_address(public) in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
            raise DecodeError(f"{public}: nobody can be told to send there")
    return found


def _pair(value: object) -> tuple[str, str]:
    local, equals, public = read_text(value).partition("=")
    if not equals:
        raise DecodeError(f"{shown(value)} is not PRIVATE=PUBLIC, as 10.0.0.5=203.0.113.5 is")
    return local, public


def _limits(value: object) -> Limits:
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("no table")
    check_known(value, LEVELS)
    return replace(Limits(), **{name: _rate(rate) for name, rate in value.items()})


def _rate(value: object) -> Rate:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("no pair")
    per_s, at_once = value
    if isinstance(per_s, bool) or not isinstance(per_s, int | float) or type(at_once) is not int:
        raise ValueError("no numbers")
    try:
        return Rate(per_s, at_once)
    except TransportError as error:
        raise DecodeError(str(error)) from error


def parse_limit(text: str) -> tuple[str, tuple[float, int]]:
    """One entry of the table `limits` as a flag has it, LEVEL=PER_SECOND:AT_ONCE. Raises `DecodeError`."""
    level, _, rate = text.partition("=")
    per_s, _, at_once = rate.partition(":")
    try:
        return level, (float(per_s), int(at_once))
    except (ValueError, OverflowError):
        raise DecodeError(
            f"{shown(text)} is no limit; it is one of {', '.join(LEVELS)}, how many a second and how many at"
            " once: socket=20:40"
        ) from None


def _addresses(value: object) -> tuple[IPAddress, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("no list")
    found = tuple(map(read_address, value))
    for ip in found:
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            raise DecodeError(f"{ip} is an IPv4 address, which is written {ip.ipv4_mapped}")
    return found


def _endpoint(value: object) -> Endpoint:
    endpoint = read_endpoint(value)
    if endpoint.port == 0:
        raise DecodeError(f"{endpoint}: whoever is to find it needs a port that stays")
    return endpoint


WORDS: Final[Words] = {
    "addresses": (_addresses, 'a list of IP addresses of this machine: ["203.0.113.10"]'),
    "port": (_port, "a port, 0 to 65535"),
    "alternate_port": (optional(_port), "a port, 0 to 65535"),
    "sip_reflector": (read_truth, "true or false"),
    "sip_ports": (several(_port), "a list of ports: [5060, 5062]"),
    "advertise": (_advertise, 'a table: {"10.0.0.5" = "203.0.113.5"}'),
    "reflector_ports": (_port_set, "a list of ports: [19, 53]"),
    "peers": (_addresses, 'a list of IP addresses of the other machine: ["203.0.113.11"]'),
    "peer_port": (_lasting_port, "a port, 1 to 65535"),
    "peer_key": (optional(read_path), "the path of a file with a secret that both machines have"),
    "certificate": (optional(read_path), "the path of a PEM file"),
    "key": (optional(read_path), "the path of a PEM file"),
    "tls_port": (optional(_lasting_port), "a port, 1 to 65535"),
    "shared_secrets": (read_truth, "true or false"),
    "limits": (_limits, f"a table of {', '.join(LEVELS)}: {{socket = [20, 40]}}, per second and at once"),
    "most_connections": (whole(1, MOST_CONNECTIONS), f"how many, 1 to {MOST_CONNECTIONS}"),
    "connections_per_source": (whole(1, MOST_CONNECTIONS), f"how many, 1 to {MOST_CONNECTIONS}"),
    "idle_s": (number(1), "seconds, 1 or more"),
    "users": (optional(read_path), "the path of a TOML file with a table [users]"),
    "credentials": choice(CredentialKind),
    "realm": (read_text, "text of at most 8 bytes"),
    "user": (read_text_or_nothing, "the name of a user of this machine"),
    "workers": (whole(1, _MOST_WORKERS), f"how many processes, 1 to {_MOST_WORKERS}"),
    "metrics": (optional(_endpoint), 'an address of this machine with a port: "127.0.0.1:9061"'),
    "log": choice(LogForm),
}
"""Every word of `StundSettings`."""

if set(WORDS) != {each.name for each in fields(StundSettings)}:
    raise AssertionError("each setting has a word, and each word a setting")
