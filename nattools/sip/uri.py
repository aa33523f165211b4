"""SIP URIs where they stand in a message: whatever has a span can be edited there (RFC 3261 §19.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError

SIP_PORT = 5060
SIPS_PORT = 5061

_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes twice the time
_LONGEST_IP = len("[0000:0000:0000:0000:0000:ffff:255.255.255.255]")
_LONGEST_SCHEME = 40
_LONGEST_REMEMBERED = 200

# In all patterns of this package a repetition that another one follows is possessive, so that no text
# takes more than linear time. Inside brackets a colon is asked for, so that a host with one had brackets.
HOST = rb"\[[0-9A-Za-z.%_~-]*+:[0-9A-Za-z.%_~:-]*+\]|[^\s;:?@,<>\"\[\]/]++"
_URI = re.compile(
    rb"(sips?):(?:([^@\s<>\"]*+)@)?(" + HOST + rb")(?::([0-9]{1,5}))?(?=[;?]|\Z)", re.IGNORECASE
)
_OTHER_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*+):[^\s<>\"]++\Z")
_NOT_SIMPLE = b' \t\r\n\v\f"<>,'


class Span(NamedTuple):
    """Where something stands in the bytes it was read from; an empty one is a place to insert at."""

    start: int
    end: int


class Param(NamedTuple):
    """One `;name=value` of a URI or a header, its name in lower case.

    `value` is as it was written, with the quotes of a quoted string; None where there is no `=`.
    """

    name: str
    value: bytes | None
    name_start: int
    value_start: int

    @property
    def name_span(self) -> Span:
        """Where the name stands."""
        return Span(self.name_start, self.name_start + len(self.name))

    @property
    def value_span(self) -> Span | None:
        """Where the value stands, or None where there is none."""
        return None if self.value is None else Span(self.value_start, self.value_start + len(self.value))


class SipUri(NamedTuple):
    """A URI of the schemes sip and sips, or by its scheme alone any other (tel, mailto, urn ...).

    `user` is everything before the `@`, a password too, escapes not decoded. `host` is without the brackets
    of IPv6. Of another scheme the host is empty, and there is no user, port or param.
    """

    span: Span
    scheme: str
    user: bytes | None
    host: bytes
    port: int | None
    params: tuple[Param, ...]
    host_port_span: Span
    """From the host through the port, or the host alone where there is no port; with the brackets of IPv6."""

    @classmethod
    def parse(cls, data: bytes, span: Span | None = None) -> SipUri:
        """Read the URI that is `data`, or its part `span`. Raises `DecodeError`."""
        if span is None:
            whole = Span(0, len(data))
            return _read_uri(data) if len(data) <= _LONGEST_REMEMBERED else cls.parse(data, whole)
        start, end = span
        match = _URI.match(data, start, end)
        if match is None:
            return _read_other_uri(data, span)
        scheme, user, host, port = match.groups()
        params_start = match.end()
        return _new_tuple(
            cls,
            (
                span,
                "sip" if scheme == b"sip" else scheme.lower().decode(),
                user,
                host[1:-1] if host[0] == 0x5B else host,
                None if port is None else read_port(port),
                () if params_start == end else _read_uri_params(data, params_start, end),
                _new_tuple(Span, (match.start(3), params_start)),
            ),
        )

    @property
    def ip(self) -> IPAddress | None:
        """The host, where it is an IP address."""
        return read_ip(self.host)

    @property
    def user_span(self) -> Span | None:
        """Where the user stands, or None where there is none."""
        if self.user is None:
            return None
        end = self.host_port_span.start - 1
        return Span(end - len(self.user), end)

    @property
    def host_span(self) -> Span:
        """Where the host stands, with the brackets of IPv6."""
        start = self.host_port_span.start
        return Span(start, start + len(self.host) + (2 if b":" in self.host else 0))

    @property
    def port_span(self) -> Span | None:
        """Where the port stands, or None where there is none."""
        return None if self.port is None else Span(self.host_span.end + 1, self.host_port_span.end)

    def param(self, name: str) -> Param | None:
        """The first param of that name (lower case), or None."""
        return find_param(self.params, name)

    def endpoint(self, default_port: int = SIP_PORT) -> Endpoint | None:
        """The IP address and port, `default_port` where none is written; None for a host name."""
        ip = read_ip(self.host)
        return None if ip is None else Endpoint(ip, default_port if self.port is None else self.port)


@lru_cache(maxsize=1024)
def _read_uri(data: bytes) -> SipUri:
    """Read a URI alone; a few are read again and again: where this proxy is, who is called just now."""
    return SipUri.parse(data, Span(0, len(data)))


def _read_other_uri(data: bytes, span: Span) -> SipUri:
    match = _OTHER_SCHEME.match(data, *span)
    scheme = "" if match is None else match[1][:_LONGEST_SCHEME].lower().decode()
    if match is None or scheme in ("sip", "sips"):
        raise DecodeError(f"{show(data[slice(*span)])} is not a URI")
    place = Span(match.end(1) + 1, match.end(1) + 1)
    return SipUri(span, scheme, None, b"", None, (), place)


def _read_uri_params(data: bytes, start: int, end: int) -> tuple[Param, ...]:
    """Read `;name=value;name` up to the `?` of the URI's headers, or its end."""
    text = data[start:end].partition(b"?")[0]
    params = simple_params(text, start)
    if params is None:
        raise DecodeError(f"{show(text)} cannot be the parameters of a URI")
    return params


def simple_params(text: bytes, start: int) -> tuple[Param, ...] | None:
    """Read `;name=value;name`, which stands at `start`; None where it has blanks, quotes, `<>` or commas.

    Empty parameters are passed over. Raises `DecodeError` where a name is missing.
    """
    if len(text.translate(None, _NOT_SIMPLE)) != len(text):
        return None
    params = []
    for piece in text[1:].split(b";"):
        start += 1
        name, equals, value = piece.partition(b"=")
        if name:
            lower = _PARAM_NAMES.get(name) or name.lower().decode("latin-1")
            params.append(_new_tuple(Param, (lower, value if equals else None, start, start + len(name) + 1)))
        elif equals:
            raise DecodeError(f"{show(piece)} has no name, as a parameter must")
        start += len(piece)
    return tuple(params)


_PARAM_NAMES_TEXT = (
    "alias branch expires gr lr maddr method ob q received reg-id rport tag transport ttl user"
)
_PARAM_NAMES = {name.encode(): name for name in _PARAM_NAMES_TEXT.split()}


def find_param(params: Iterable[Param], name: str) -> Param | None:
    """The first of `params` with that name (lower case), or None."""
    for param in params:
        if param.name == name:
            return param
    return None


def read_port(text: bytes) -> int:
    """Read one to five digits as a port. Raises `DecodeError` above 65535."""
    port = int(text)
    if port > 0xFFFF:
        raise DecodeError(f"{port} is not a port (0 to 65535)")
    return port


def read_ip(host: bytes) -> IPAddress | None:
    """The IP address that `host` is, with or without brackets; None for a name, or an address with a zone."""
    return None if len(host) > _LONGEST_IP else _read_ip(host)


@lru_cache(maxsize=1024)
def _read_ip(host: bytes) -> IPAddress | None:
    if not host.isascii() or b"%" in host:
        return None
    if host.startswith(b"[") and host.endswith(b"]"):
        host = host[1:-1]
    try:
        return ip_address(host.decode())
    except ValueError:
        return None


def show(text: bytes) -> str:
    """What a message says about bytes from outside: not too much of them, and printable."""
    return repr(text[:60].decode("latin-1"))
