"""What a person can set for bindings: the same words in a TOML file, in NATTOOLS_* variables and in calls.

Every word is listed in docs/settings.md. Values are checked when `Settings` is made, wherever they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack

import platformdirs

from nattools.binding.model import DEFAULT_METHODS, Method
from nattools.binding.schedule import SAFE_INTERVAL_S, KeepaliveKind
from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address, split_host_port
from nattools.errors import DecodeError
from nattools.files import read_toml, read_toml_if_any
from nattools.mapping.model import DEFAULT_LEASE_S, LONGEST_LEASE_S
from nattools.stun.uri import ServerAddress
from nattools.words import (
    Words,
    check_known,
    choice,
    one_of,
    optional,
    parse_toml,
    read_address,
    read_endpoint,
    read_path,
    read_text,
    read_word,
    shown,
)

LEARN: Final = "learn"
"""The keepalive interval of who wants it to follow from the measured lifetime of the NAT's bindings."""

PREFIX = "NATTOOLS_"
FILE_VARIABLE = "NATTOOLS_SETTINGS"
"""The one variable of that prefix that is no setting: the path of the file."""

_FILE = "settings file"
_SHORTEST_INTERVAL_S = 1.0
_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PortRange:
    """The UDP ports from `first` to `last`, both included. Raises `DecodeError` when there are none such."""

    first: int
    last: int

    def __post_init__(self) -> None:
        for port in (self.first, self.last):
            if not 1 <= port <= 0xFFFF:
                raise DecodeError(f"{port} is not a port (1 to 65535)")
        if self.first > self.last:
            raise DecodeError(
                f"a port range from {self.first} down to {self.last}: the lower port comes first"
            )

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read `5060` or `9000-9010`. Raises `DecodeError`."""
        first, dash, last = text.partition("-")
        return cls(_port(first), _port(last) if dash else _port(first))

    @property
    def even_ports(self) -> range:
        """The ports that RTP can have with RTCP on the next one, which is in the range too (RFC 3550 §11)."""
        return range(self.first + self.first % 2, self.last, 2)

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class SettingWords(TypedDict, total=False):
    """The settings as keyword arguments, in the types that come naturally; see `Settings`."""

    methods: Sequence[str | Method]
    side_by_side: bool
    stun_servers: Sequence[str]
    keepalive_interval: float | str
    keepalive: str | KeepaliveKind
    keepalive_to: Sequence[str | Endpoint]
    static_host: str | None
    static_ports: str | int | PortRange | None
    vpn_interface: str | None
    vpn_peer: str | None
    router_gateway: str | IPAddress | None
    router_interface: str | None
    router_lease: int
    state_directory: str | Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How bindings are found and kept. Raises `DecodeError` when made of what cannot be one.

    `methods` are tried `side_by_side`, the earlier preferred, or one after the other. `stun_servers` are as
    `ServerAddress` reads them. `keepalive_interval` is in seconds, or `LEARN`; with `keepalive` the flows to
    `keepalive_to` are kept open besides. `static_*`, `vpn_*` and `router_*` belong to those methods;
    `router_lease` is in seconds. In `state_directory` the records of router mappings are kept, None for the
    user's own.
    """

    methods: tuple[Method, ...] = DEFAULT_METHODS
    side_by_side: bool = True
    stun_servers: tuple[str, ...] = ()
    keepalive_interval: float | Literal["learn"] = SAFE_INTERVAL_S
    keepalive: KeepaliveKind = KeepaliveKind.CRLF
    keepalive_to: tuple[Endpoint, ...] = ()
    static_host: str | None = None
    static_ports: PortRange | None = None
    vpn_interface: str | None = None
    vpn_peer: str | None = None
    router_gateway: IPAddress | None = None
    router_interface: str | None = None
    router_lease: int = DEFAULT_LEASE_S
    state_directory: Path | None = None

    def __post_init__(self) -> None:
        for name in WORDS:
            object.__setattr__(self, name, read_word(WORDS, name, getattr(self, name)))

    @classmethod
    def of(cls, words: Mapping[str, object]) -> Settings:
        """Make settings of parsed TOML or of keywords; tables inside join with underscores.

        Raises `DecodeError`, which names the word and says what is expected.
        """
        found: dict[str, Any] = {}
        for name, value in _flat(words):
            check_known((name,), WORDS)
            if name in found:
                raise DecodeError(f"{name} is set twice, alone and in a table: leave one out")
            found[name] = value
        return cls(**found)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read the text of a settings file. Raises `DecodeError`, with the line where it is not TOML."""
        return cls.of(parse_toml(text))

    def with_environment(self, environ: Mapping[str, str]) -> Settings:
        """These settings, with those that `NATTOOLS_*` variables name in their place.

        A variable that is set to nothing puts the default back. Raises `DecodeError`.
        """
        variables = {PREFIX + name.upper(): name for name in WORDS}
        defaults = Settings()
        found: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
                continue
            check_known((variable,), (*variables, FILE_VARIABLE))
            name = variables[variable]
            found[name] = read_word(WORDS, name, text, label=variable) if text else getattr(defaults, name)
        return replace(self, **found)

    def with_words(self, **words: Unpack[SettingWords]) -> Settings:
        """These settings, with `words` in their place. Raises `DecodeError`."""
        found: dict[str, Any] = {**words}
        check_known(found, WORDS)
        return replace(self, **found)


def read_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings in the file at `path`, and over them what `environ` says.

    Without a path the file is the one that NATTOOLS_SETTINGS names, or else `default_path()`, if it exists.
    Raises `DecodeError` with the path when a named file is missing, or one cannot be read or understood.
    """
    named = environ.get(FILE_VARIABLE)
    if path is None and named:
        path = Path(named)
    source = path or default_path()
    text = read_toml_if_any(source, _FILE) if path is None else read_toml(source, _FILE)
    try:
        settings = Settings.from_toml(text)
    except DecodeError as error:
        raise DecodeError(f"{source}: {error}") from error
    return settings.with_environment(environ)


def default_path() -> Path:
    """Where the settings are unless the user says otherwise: `nattools/nattools.toml` in XDG_CONFIG_HOME."""
    return platformdirs.user_config_path("nattools", appauthor=False) / "nattools.toml"


def _flat(words: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each word with its value, tables dissolved; what begins no word is handed on to be refused."""
    for key, value in words.items():
        name = prefix + key
        if isinstance(value, Mapping) and any(word.startswith(f"{name}_") for word in WORDS):
            yield from _flat(value, f"{name}_")
        else:
            yield name, value


# How each kind of value is read, from text as in the environment or from what TOML and Python have for it


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _TRUTH[read_text(value).lower()]
    except KeyError as error:
        raise ValueError("neither") from error


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return int(read_text(value))
    return value


def _seconds(value: object) -> float:
    number = float(read_text(value)) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError("no number")
    return float(number)


def _interval(value: object) -> float | str:
    if isinstance(value, str) and value.strip().lower() == LEARN:
        return LEARN
    seconds = _seconds(value)
    if not _SHORTEST_INTERVAL_S <= seconds < math.inf:
        raise ValueError("out of range")
    return seconds


def _lease(value: object) -> int:
    lease_s = _whole(value)
    if not 1 <= lease_s <= LONGEST_LEASE_S:
        raise ValueError("out of range")
    return lease_s


def _port(text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise DecodeError(f"{shown(text)} is not a port (1 to 65535)")
    return int(text)


def _ports(value: object) -> PortRange:
    if isinstance(value, PortRange):
        return value
    return PortRange.parse(read_text(value) if isinstance(value, str) else str(_whole(value)))


def _stun_server(value: object) -> str:
    text = read_text(value)
    if ServerAddress.parse(text).secure:
        raise DecodeError("only STUN over UDP shows the binding of a UDP socket: stun: instead of stuns:")
    return text


def _host(value: object) -> str:
    text = read_text(value)
    host, port = split_host_port(text)
    if port is not None:
        raise DecodeError("the public port is set by static_ports")
    return ServerAddress(host).host


def _peer(value: object) -> str:
    text = read_text(value)
    ServerAddress(*split_host_port(text))
    return text


def _destination(value: object) -> Endpoint:
    endpoint = read_endpoint(value)
    nowhere = (AddressClass.UNSPECIFIED, AddressClass.MULTICAST)
    if endpoint.port == 0 or endpoint.address_class in nowhere:
        raise DecodeError(f"nothing can be sent to {endpoint}")
    return endpoint.unmapped


def _gateway(value: object) -> IPAddress:
    address = read_address(value)
    if classify_address(address) in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
        raise DecodeError(f"{address} is not the address of a router")
    return address


def _methods(value: object) -> tuple[Method, ...]:
    methods = _several(one_of(Method))(value)
    if not methods:
        raise DecodeError("at least one is needed")
    return methods


def _several(read: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """Several of them, each once: a list, or text with commas in between."""

    def read_all(value: object) -> tuple[T, ...]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError("no list")
        found = tuple(read(part) for part in value)
        if len(set(found)) < len(found):
            raise DecodeError("something is there twice")
        return found

    return read_all


_METHOD_NAMES = ", ".join(method.value for method in Method)

WORDS: Final[Words] = {
    "methods": (_methods, f"a list of {_METHOD_NAMES}, the preferred one first"),
    "side_by_side": (_truth, "true or false"),
    "stun_servers": (_several(_stun_server), "a list of servers: stun.example.org, 192.0.2.1:3478"),
    "keepalive_interval": (_interval, "seconds, 1 or more, or learn"),
    "keepalive": choice(KeepaliveKind),
    "keepalive_to": (_several(_destination), "a list of addresses with ports: 192.0.2.1:5060"),
    "static_host": (optional(_host), "a host name or an IP address"),
    "static_ports": (optional(_ports), "a port like 5060 or a range like 9000-9010"),
    "vpn_interface": (optional(read_text), "the name of a network interface: wg0"),
    "vpn_peer": (optional(_peer), "a host name or an IP address behind the tunnel, perhaps with a port"),
    "router_gateway": (optional(_gateway), "the IP address of the router"),
    "router_interface": (optional(read_text), "the name of a network interface: eth0"),
    "router_lease": (_lease, f"whole seconds, 1 to {LONGEST_LEASE_S}"),
    "state_directory": (optional(read_path), "the path of a directory"),
}
"""Every word of `Settings`."""
