"""What an operator can set for stund: the same words in a TOML file, in flags, and in `StundSettings`.

Every word is listed in docs/stund.md. Values are checked when `StundSettings` is made, wherever they come
from.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import CredentialError, DecodeError, TransportError
from nattools.stun.accounts import DEFAULT_REALM, Accounts, LongTermAccounts, ShortTermAccounts
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.limiter import Level, Limits, Rate
from nattools.stun.peer import TwoHosts
from nattools.stun.responder import (
    DEFAULT_ALTERNATE_PORT,
    DEFAULT_PORT,
    REFLECTOR_PORTS,
    ServerAddresses,
)

MOST_FILE_BYTES = 1 << 20

EVERY_ADDRESS: Final = IPv4Address("0.0.0.0")

DEFAULT_SIP_PORT = 5060

DEFAULT_PEER_PORT = 3480
"""Where the link of two hosts is, on both."""

LEVELS: Final = tuple(level.name.lower() for level in Level)
"""The words of the table `limits`, the narrowest first."""

_MOST_PORT = 65_535
_MOST_SHOWN = 60
_MOST_WORKERS = 256
_USERS_FORM = 'as in\n\n[users]\nalice = "secret"'


class CredentialKind(StrEnum):
    """How users prove that they are users (RFC 8489 §9)."""

    LONG_TERM = "long-term"
    SHORT_TERM = "short-term"


class LogForm(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class StundSettings:
    """Everything that an operator can set; raises `DecodeError` for what is wrong, and says what is right."""

    address: IPAddress = EVERY_ADDRESS
    alternate: IPAddress | None = None
    port: int = DEFAULT_PORT
    alternate_port: int | None = None
    sip_reflector: bool = False
    sip_ports: tuple[int, ...] = ()
    advertise: Mapping[IPAddress, IPAddress] = field(default_factory=dict, hash=False)
    reflector_ports: frozenset[int] = REFLECTOR_PORTS
    peer: IPAddress | None = None
    peer_port: int = DEFAULT_PEER_PORT
    peer_key: Path | None = None
    limits: Limits = field(default_factory=Limits)
    users: Path | None = None
    credentials: CredentialKind = CredentialKind.LONG_TERM
    realm: str = DEFAULT_REALM
    user: str = ""
    workers: int = 1
    metrics: Endpoint | None = None
    log: LogForm = LogForm.TEXT

    def __post_init__(self) -> None:
        for name in WORDS:
            object.__setattr__(self, name, _value(name, getattr(self, name)))
        if self.sip_ports and not self.sip_reflector:
            raise DecodeError("--sip-port says where --sip-reflector answers: give that as well")
        if self.sip_reflector and self.workers > 1:
            raise DecodeError("sip_reflector wants one process: leave workers at 1")
        self._check_peer()
        if (self.alternate or self.peer) is not None and self.alternate_port is None:
            object.__setattr__(self, "alternate_port", DEFAULT_ALTERNATE_PORT)
        try:
            addresses = self.addresses
        except TransportError as error:
            raise DecodeError(str(error)) from error
        served = {endpoint.ip for endpoint in addresses.endpoints} | {self.peer}
        for local, public in self.advertise.items():
            if local.version != public.version:
                raise DecodeError(f"advertise {local}={public}: they are of different families")
            if local not in served and not self.address.is_unspecified:
                raise DecodeError(f"advertise {local}={public}: stund is not to listen on {local}")
        if len(set(self.advertise.values())) < len(self.advertise):
            raise DecodeError("advertise has one public address for two: each needs its own")

    def _check_peer(self) -> None:
        if (self.peer is None) is not (self.peer_key is None):
            raise DecodeError("peer and peer_key belong together: set both, or neither")
        if self.peer is None:
            return
        if self.alternate is not None:
            raise DecodeError("peer and alternate exclude each other: the peer has the second address")
        if self.address.is_unspecified:
            raise DecodeError("peer wants an address of this machine that is named: give that as address")
        if self.workers > 1:
            raise DecodeError("peer wants one process: leave workers at 1")
        if self.peer_port in (self.port, self.alternate_port or DEFAULT_ALTERNATE_PORT):
            raise DecodeError(f"peer_port {self.peer_port} is a port of STUN, too: they must differ")

    @property
    def hosts(self) -> TwoHosts | None:
        """Both machines, where there is a peer."""
        if self.peer is None or self.alternate_port is None:
            return None
        return TwoHosts(self.address, self.peer, self.port, self.alternate_port)

    @property
    def addresses(self) -> ServerAddresses:
        """Where stund listens."""
        hosts = self.hosts
        if hosts is not None:
            return hosts.alone
        return ServerAddresses(self.address, self.port, self.alternate, self.alternate_port)

    @property
    def more_ports(self) -> tuple[int, ...]:
        """The UDP ports for SIP beside those of `addresses`."""
        return (self.sip_ports or (DEFAULT_SIP_PORT,)) if self.sip_reflector else ()

    @classmethod
    def of(cls, words: Mapping[str, object]) -> StundSettings:
        """Make settings of parsed TOML or of flags. Raises `DecodeError`, which names the word."""
        for name in words:
            if name not in WORDS:
                raise _unknown(name, WORDS)
        found: dict[str, Any] = dict(words)
        return cls(**found)

    @classmethod
    def parse(cls, text: str) -> StundSettings:
        """Read the text of a settings file. Raises `DecodeError`, with the line where it is not TOML."""
        return cls.of(parse_words(text))

    def accounts(self, text: str, *, secret: bytes) -> Accounts:
        """The users of a file like that of natgate: a table [users] of names and passwords.

        `secret` is for `LongTermAccounts`. Raises `DecodeError`, which names the user and no password.
        """
        passwords = _parse_users(text)
        try:
            if self.credentials is CredentialKind.SHORT_TERM:
                return ShortTermAccounts(ShortTerm(*each) for each in passwords)
            accounts = (LongTerm(*each) for each in passwords)
            return LongTermAccounts(accounts, secret=secret, realm=self.realm)
        except CredentialError as error:
            raise DecodeError(str(error)) from error


def parse_words(text: str) -> Mapping[str, object]:
    """The words of a settings file with their values, which are not looked at. Raises `DecodeError`."""
    words = _parse_toml(text)
    for name in words:
        if name not in WORDS:
            raise _unknown(name, WORDS)
    return words


def _parse_toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of numbers and brackets without end, too
        raise DecodeError(f"this is not TOML: {error}") from None  # its lines may have passwords


def _parse_users(text: str) -> Iterable[tuple[str, str]]:
    tables = _parse_toml(text)
    users = tables.pop("users", None)
    if not isinstance(users, dict) or tables or not users:
        raise DecodeError(f"a file of users has one table [users] with one user or more, {_USERS_FORM}")
    for name, password in users.items():
        if not name or not isinstance(password, str) or not password:
            raise DecodeError(f"user {name!r} has no password in quotes, {_USERS_FORM}")
    return users.items()


def _unknown(name: str, known: Iterable[str]) -> DecodeError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return DecodeError(f"there is no setting {_shown(name)}: {hint}")


def _value(name: str, value: object) -> object:
    """Read the value of one word."""
    read, expected = WORDS[name]
    try:
        return read(value)
    except DecodeError as error:
        raise DecodeError(f"{name}: {error}") from error
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"{name} = {_shown(value)}: expected {expected}") from error


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of over 4300 digits, tables without end
        return "something endless"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


# How each kind of value is read, from what TOML has for it or from itself

_Reader = Callable[[object], object]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("no text")
    return value.strip()


def _name(value: object) -> str:
    return "" if value == "" else _text(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither")
    return value


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError("none such")
        return value

    return read


_port = _whole(0, _MOST_PORT)


def _optional(read: _Reader) -> _Reader:
    return lambda value: None if value in (None, "") else read(value)


def _ports(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("no list")
    return tuple(_port(each) for each in value)


def _port_set(value: object) -> frozenset[int]:
    return frozenset(_ports(value))


def _address(value: object) -> IPAddress:
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    text = _text(value)
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise DecodeError(
            f"{_shown(text)} is not an IP address; names are not looked up, give an address of this machine"
        ) from None


def _advertise(value: object) -> Mapping[IPAddress, IPAddress]:
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):  # of flags
        pairs = [_pair(each) for each in value]
    else:
        raise ValueError("no table")
    found = {_address(local): _address(public) for local, public in pairs}
    if len(found) < len(pairs):
        raise DecodeError("an address is given twice")
    for public in found.values():
        if classify_address(public) in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
            raise DecodeError(f"{public}: nobody can be told to send there")
    return found


def _pair(value: object) -> tuple[str, str]:
    local, equals, public = _text(value).partition("=")
    if not equals:
        raise DecodeError(f"{_shown(value)} is not PRIVATE=PUBLIC, as 10.0.0.5=203.0.113.5 is")
    return local, public


def _limits(value: object) -> Limits:
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("no table")
    rates: dict[str, Rate] = {}
    for name, rate in value.items():
        if name not in LEVELS:
            raise _unknown(name, LEVELS)
        rates[name] = _rate(rate)
    return replace(Limits(), **rates)


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
            f"{_shown(text)} is no limit; it is one of {', '.join(LEVELS)}, how many a second and how many at"
            " once: socket=20:40"
        ) from None


def _file(value: object) -> Path:
    try:
        return (value if isinstance(value, Path) else Path(_text(value))).expanduser()
    except RuntimeError as error:
        raise DecodeError(str(error)) from error


def _endpoint(value: object) -> Endpoint:
    endpoint = value if isinstance(value, Endpoint) else Endpoint.parse(_text(value))
    if endpoint.port == 0:
        raise DecodeError(f"{endpoint}: whoever is to find it needs a port that stays")
    return endpoint


def _one_of(names: type[StrEnum]) -> _Reader:
    def read(value: object) -> StrEnum:
        return names(_text(value).lower())

    return read


WORDS: Final[dict[str, tuple[_Reader, str]]] = {
    "address": (_address, 'an IP address of this machine: "203.0.113.10"'),
    "alternate": (_optional(_address), 'an IP address of this machine: "203.0.113.11"'),
    "port": (_port, "a port, 0 to 65535"),
    "alternate_port": (_optional(_port), "a port, 0 to 65535"),
    "sip_reflector": (_truth, "true or false"),
    "sip_ports": (_ports, "a list of ports: [5060, 5062]"),
    "advertise": (_advertise, 'a table: {"10.0.0.5" = "203.0.113.5"}'),
    "reflector_ports": (_port_set, "a list of ports: [19, 53]"),
    "peer": (_optional(_address), 'the IP address of the other machine: "203.0.113.11"'),
    "peer_port": (_whole(1, _MOST_PORT), "a port, 1 to 65535"),
    "peer_key": (_optional(_file), "the path of a file with a secret that both machines have"),
    "limits": (_limits, f"a table of {', '.join(LEVELS)}: {{socket = [20, 40]}}, per second and at once"),
    "users": (_optional(_file), "the path of a TOML file with a table [users]"),
    "credentials": (_one_of(CredentialKind), f"one of {', '.join(CredentialKind)}"),
    "realm": (_text, "text of at most 8 bytes"),
    "user": (_name, "the name of a user of this machine"),
    "workers": (_whole(1, _MOST_WORKERS), f"how many processes, 1 to {_MOST_WORKERS}"),
    "metrics": (_optional(_endpoint), 'an address of this machine with a port: "127.0.0.1:9061"'),
    "log": (_one_of(LogForm), f"one of {', '.join(LogForm)}"),
}
"""Every word with what reads its value, which raises `DecodeError` or `ValueError`, and what is expected."""

if set(WORDS) != {each.name for each in fields(StundSettings)}:
    raise AssertionError("each setting has a word, and each word a setting")
