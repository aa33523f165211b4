"""What a person can set for bindings: the same words in a TOML file, in NATTOOLS_* variables and in calls.

Every word is listed in docs/settings.md. Values are checked when `Settings` is made, wherever they come from.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack

import platformdirs

from nattools.binding.model import DEFAULT_METHODS, Method
from nattools.binding.schedule import SAFE_INTERVAL_S, KeepaliveKind
from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address, split_host_port
from nattools.errors import DecodeError
from nattools.mapping.model import DEFAULT_LEASE_S, LONGEST_LEASE_S
from nattools.stun.uri import ServerAddress

LEARN: Final = "learn"
"""The keepalive interval of who wants it to follow from the measured lifetime of the NAT's bindings."""

MOST_FILE_BYTES = 1 << 20
PREFIX = "NATTOOLS_"
FILE_VARIABLE = "NATTOOLS_SETTINGS"
"""The one variable of that prefix that is no setting: the path of the file."""

_SHORTEST_INTERVAL_S = 1.0
_MOST_SHOWN = 60
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
_Reader = Callable[[object], object]


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
            object.__setattr__(self, name, _value(name, getattr(self, name), name))

    @classmethod
    def of(cls, words: Mapping[str, object]) -> Settings:
        """Make settings of parsed TOML or of keywords; tables inside join with underscores.

        Raises `DecodeError`, which names the word and says what is expected.
        """
        found: dict[str, Any] = {}
        for name, value in _flat(words):
            if name not in WORDS:
                raise _unknown(name, WORDS)
            if name in found:
                raise DecodeError(f"{name} is set twice, alone and in a table: leave one out")
            found[name] = value
        return cls(**found)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read the text of a settings file. Raises `DecodeError`, with the line where it is not TOML."""
        try:
            words = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # of numbers and brackets without end, too
            raise DecodeError(f"this is not TOML: {error}") from error
        return cls.of(words)

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
            if variable not in variables:
                raise _unknown(variable, (*variables, FILE_VARIABLE))
            name = variables[variable]
            found[name] = _value(name, text, variable) if text else getattr(defaults, name)
        return replace(self, **found)

    def with_words(self, **words: Unpack[SettingWords]) -> Settings:
        """These settings, with `words` in their place. Raises `DecodeError`."""
        found: dict[str, Any] = {**words}
        for name in found:
            if name not in WORDS:
                raise _unknown(name, WORDS)
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
    text = _read(source, missing_ok=path is None)
    try:
        settings = Settings.from_toml(text)
    except DecodeError as error:
        raise DecodeError(f"{source}: {error}") from error
    return settings.with_environment(environ)


def default_path() -> Path:
    """Where the settings are unless the user says otherwise: `nattools/nattools.toml` in XDG_CONFIG_HOME."""
    return platformdirs.user_config_path("nattools", appauthor=False) / "nattools.toml"


def _read(path: Path, *, missing_ok: bool) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except FileNotFoundError as error:
        if missing_ok:
            return ""
        raise DecodeError(f"{path}: there is no such settings file") from error
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DecodeError(f"{path}: the settings cannot be read: {reason}") from error
    if len(data) > MOST_FILE_BYTES:
        raise DecodeError(f"{path}: over {MOST_FILE_BYTES} bytes, so it is no settings file")
    try:
        return data.decode("utf-8-sig")  # Windows editors put a mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DecodeError(f"{path}, line {line}: not UTF-8, which TOML must be: save it as UTF-8") from error


def _flat(words: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each word with its value, tables dissolved; what begins no word is handed on to be refused."""
    for key, value in words.items():
        name = prefix + key
        if isinstance(value, Mapping) and any(word.startswith(f"{name}_") for word in WORDS):
            yield from _flat(value, f"{name}_")
        else:
            yield name, value


def _unknown(name: str, known: Sequence[str] | Mapping[str, object]) -> DecodeError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), [word.lower() for word in known], 1, 0.5)
    meant = next((word for word in known if [word.lower()] == near), None)
    hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
    return DecodeError(f"there is no setting {_shown(name)}: {hint}")


def _value(name: str, value: object, label: str) -> object:
    """Read the value of one word. `label` is what the person called it."""
    read, expected = WORDS[name]
    try:
        return read(value)
    except (DecodeError, ValueError, OverflowError) as error:
        detail = f" ({error})" if isinstance(error, DecodeError) else ""
        raise DecodeError(f"{label} = {_shown(value)}{detail}: expected {expected}") from error


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of over 4300 digits, tables without end
        return "something endless"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


# How each kind of value is read, from text as in the environment or from what TOML and Python have for it


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("no text")
    return value.strip()


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _TRUTH[_text(value).lower()]
    except KeyError as error:
        raise ValueError("neither") from error


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return int(_text(value))
    return value


def _seconds(value: object) -> float:
    number = float(_text(value)) if isinstance(value, str) else value
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
        raise DecodeError(f"{_shown(text)} is not a port (1 to 65535)")
    return int(text)


def _ports(value: object) -> PortRange:
    if isinstance(value, PortRange):
        return value
    return PortRange.parse(_text(value) if isinstance(value, str) else str(_whole(value)))


def _stun_server(value: object) -> str:
    text = _text(value)
    if ServerAddress.parse(text).secure:
        raise DecodeError("only STUN over UDP shows the binding of a UDP socket: stun: instead of stuns:")
    return text


def _host(value: object) -> str:
    text = _text(value)
    host, port = split_host_port(text)
    if port is not None:
        raise DecodeError("the public port is set by static_ports")
    return ServerAddress(host).host


def _peer(value: object) -> str:
    text = _text(value)
    ServerAddress(*split_host_port(text))
    return text


def _destination(value: object) -> Endpoint:
    endpoint = value if isinstance(value, Endpoint) else Endpoint.parse(_text(value))
    nowhere = (AddressClass.UNSPECIFIED, AddressClass.MULTICAST)
    if endpoint.port == 0 or endpoint.address_class in nowhere:
        raise DecodeError(f"nothing can be sent to {endpoint}")
    return endpoint.unmapped


def _gateway(value: object) -> IPAddress:
    address = value if isinstance(value, IPv4Address | IPv6Address) else ip_address(_text(value))
    if classify_address(address) in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
        raise DecodeError(f"{address} is not the address of a router")
    return address


def _directory(value: object) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DecodeError(str(error)) from error


def _method(value: object) -> Method:
    if isinstance(value, Method):
        return value
    text = _text(value).lower()
    known = [method.value for method in Method]
    if text in known:
        return Method(text)
    near = difflib.get_close_matches(text, known, 1)
    raise DecodeError(f"there is no method {_shown(text)}" + (f", did you mean {near[0]}?" if near else ""))


def _methods(value: object) -> tuple[Method, ...]:
    methods = _several(_method)(value)
    if not methods:
        raise DecodeError("at least one is needed")
    return methods


def _kind(value: object) -> KeepaliveKind:
    return value if isinstance(value, KeepaliveKind) else KeepaliveKind(_text(value).lower())


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


def _optional(read: _Reader) -> _Reader:
    return lambda value: None if value in (None, "") else read(value)


_METHOD_NAMES = ", ".join(method.value for method in Method)
_KIND_NAMES = ", ".join(kind.value for kind in KeepaliveKind)

WORDS: Final[dict[str, tuple[_Reader, str]]] = {
    "methods": (_methods, f"a list of {_METHOD_NAMES}, the preferred one first"),
    "side_by_side": (_truth, "true or false"),
    "stun_servers": (_several(_stun_server), "a list of servers: stun.example.org, 192.0.2.1:3478"),
    "keepalive_interval": (_interval, "seconds, 1 or more, or learn"),
    "keepalive": (_kind, f"one of {_KIND_NAMES}"),
    "keepalive_to": (_several(_destination), "a list of addresses with ports: 192.0.2.1:5060"),
    "static_host": (_optional(_host), "a host name or an IP address"),
    "static_ports": (_optional(_ports), "a port like 5060 or a range like 9000-9010"),
    "vpn_interface": (_optional(_text), "the name of a network interface: wg0"),
    "vpn_peer": (_optional(_peer), "a host name or an IP address behind the tunnel, perhaps with a port"),
    "router_gateway": (_optional(_gateway), "the IP address of the router"),
    "router_interface": (_optional(_text), "the name of a network interface: eth0"),
    "router_lease": (_lease, f"whole seconds, 1 to {LONGEST_LEASE_S}"),
    "state_directory": (_optional(_directory), "the path of a directory"),
}
"""Every word with what reads its value, which raises `DecodeError` or `ValueError`, and what is expected."""
