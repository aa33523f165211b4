"""Values of SIP headers where they stand: Via, and what holds a name and an address (RFC 3261 §20, §25).

Whatever has a span can be edited in the message that it was read from, and nothing else of it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from sys import intern
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, EncodeError
from nattools.sip.uri import (
    HOST,
    Param,
    SipUri,
    Span,
    find_param,
    read_ip,
    read_port,
    show,
    simple_params,
)

_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes twice the time

_QUOTED = rb'"(?:[^"\\]++|\\.)*+"'
_TOKEN = rb"[A-Za-z0-9\-.!%*_+`'~]++"
_WHOLE_TOKEN = re.compile(_TOKEN)
_COMMON_VIA = re.compile(rb"SIP/2\.0/(UDP|TCP|TLS|SCTP|WSS?) (" + HOST + rb")(?::([0-9]{1,5}))?")
_ANY_VIA = re.compile(
    rb"\s*+(" + _TOKEN + rb")\s*+/\s*+(" + _TOKEN + rb")\s*+/\s*+(" + _TOKEN + rb")\s++"
    rb"(" + HOST + rb")(?:\s*+:\s*+([0-9]{1,5}))?(?=[;\s]|\Z)"
)
_ADDRESS = re.compile(rb"\s*+(?:(" + _QUOTED + rb")\s*+|([^<\",;]*+))<\s*+([^<>]*+)>", re.DOTALL)
_BARE_ADDRESS = re.compile(rb"\s*+([^\s<>\";,?]++)")
_PARAM = re.compile(
    rb"\s*+;\s*+(?:([^\s;=,\"<>]++)(?:\s*+=\s*+(" + _QUOTED + rb"|[^;\"<>(]*+))?)?", re.DOTALL
)
_LIST_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|<[^>]*+>?|\\.|[(),]', re.DOTALL)
_COMMA = re.compile(rb",")
_BLANK = b" \t\r\n\v\f"
_LONGEST_COMMON_VIA = 100
_LONGEST_REMEMBERED = 200

COMPACT_NAMES = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "n": "identity-info",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
    "y": "identity",
}
"""Names that have a form of one letter (RFC 3261 §7.3.3 and the IANA registry of header fields)."""

_LIST_NAMES_TEXT = """
accept accept-contact accept-encoding accept-language alert-info allow allow-events call-info contact
content-encoding content-language diversion error-info history-info in-reply-to p-asserted-identity
p-associated-uri p-preferred-identity path proxy-require reason record-route recv-info reject-contact
request-disposition require resource-priority route security-client security-server security-verify
service-route supported unsupported via warning
"""
_OTHER_NAMES_TEXT = """
authorization cseq date expires max-forwards mime-version min-expires proxy-authenticate
proxy-authorization rack replaces rseq server timestamp user-agent www-authenticate
"""
LIST_NAMES = frozenset(_LIST_NAMES_TEXT.split())
"""Headers whose value is a comma list (RFC 3261 §7.3.1); in all others a comma is only a comma."""

KNOWN_NAMES = {
    written.encode(): intern(name)
    for name in (*LIST_NAMES, *COMPACT_NAMES.values(), *_OTHER_NAMES_TEXT.split())
    for written in (name, name.title(), name.upper())
} | {
    b"Call-ID": "call-id",
    b"CSeq": "cseq",
    b"MIME-Version": "mime-version",
    b"RAck": "rack",
    b"RSeq": "rseq",
    b"WWW-Authenticate": "www-authenticate",
    **{short.encode(): intern(name) for short, name in COMPACT_NAMES.items()},
}
"""As most write them; all others are found too, not as fast."""


def canonical_name(line: bytes) -> str:
    """The name of the header field that `line` begins, in lower case and in full. Raises `DecodeError`."""
    name, colon, _ = line.partition(b":")
    if not colon or line[0] in _BLANK:
        raise DecodeError(f"{show(line)} is not a header field")
    text = name.rstrip(_BLANK).lower().decode("latin-1")
    return COMPACT_NAMES.get(text, text)


class Via(NamedTuple):
    """One Via value (RFC 3261 §20.42): `SIP/2.0/UDP host:port;branch=...`.

    `protocol` is `SIP/2.0`. `host` is without the brackets of IPv6. A param is added at `span.end`.
    """

    span: Span
    protocol: str
    transport: str
    host: bytes
    port: int | None
    params: tuple[Param, ...]
    host_start: int
    port_span: Span | None

    @classmethod
    def parse(cls, data: bytes, span: Span | None = None) -> Via:
        """Read the Via value that is `data`, or its part `span`. Raises `DecodeError`."""
        if span is None:
            span = Span(0, len(data))
        start, end = span
        position = data.find(b";", start, end)
        if position < 0:
            position = end
        size = position - start
        known = _read_sent_by(data[start:position]) if size <= _LONGEST_COMMON_VIA else None
        if known is None:
            return cls._parse_odd(data, span)
        transport, host, port, host_offset, port_bytes = known
        params = simple_params(data[position:end], position)
        if params is None:
            span, params = _read_params(data, span, position)
        port_span = None if port is None else _new_tuple(Span, (position - port_bytes, position))
        return _new_tuple(
            cls, (span, "SIP/2.0", transport, host, port, params, start + host_offset, port_span)
        )

    @classmethod
    def _parse_odd(cls, data: bytes, span: Span) -> Via:
        """Read a Via of another protocol, or one with blanks where most have none."""
        match = _ANY_VIA.match(data, *span)
        if match is None:
            raise DecodeError(f"{show(data[slice(*span)])} is not a Via")
        name, version, transport, host, port = match.groups()
        span, params = _read_params(data, span, match.end())
        return cls(
            span,
            f"{name.decode()}/{version.decode()}".upper(),
            transport.decode().upper(),
            host[1:-1] if host[0] == 0x5B else host,
            None if port is None else read_port(port),
            params,
            match.start(4),
            None if port is None else Span(*match.span(5)),
        )

    @property
    def ip(self) -> IPAddress | None:
        """The host of sent-by, where it is an IP address."""
        return read_ip(self.host)

    @property
    def host_span(self) -> Span:
        """Where the host stands, with the brackets of IPv6."""
        start = self.host_start
        return Span(start, start + len(self.host) + (2 if b":" in self.host else 0))

    @property
    def host_port_span(self) -> Span:
        """The sent-by: from the host through the port, or the host alone where there is no port."""
        if self.port_span is None:
            return self.host_span
        return _new_tuple(Span, (self.host_start, self.port_span.end))

    def param(self, name: str) -> Param | None:
        """The first param of that name (lower case), or None."""
        return find_param(self.params, name)

    @property
    def branch(self) -> bytes | None:
        """The branch, which names the transaction; None where there is none, as with RFC 2543."""
        param = find_param(self.params, "branch")
        return None if param is None else param.value

    @property
    def received(self) -> IPAddress | None:
        """Where the request came from, as the server saw it (RFC 3261 §18.2.1); None where it does not say.

        The grammar has IPv6 bare; bracketed, and with a port behind it, it is met as well.
        """
        param = find_param(self.params, "received")
        if param is None or param.value is None:
            return None
        value = param.value.strip(b'"')
        ip = read_ip(value)
        if ip is None:
            ip = read_ip(value.rpartition(b":")[0])
        return ip

    @property
    def has_rport(self) -> bool:
        """Whether there is an rport, with a value or without (RFC 3581 §3)."""
        return find_param(self.params, "rport") is not None

    @property
    def rport(self) -> int | None:
        """The port that the request came from, as the server saw it (RFC 3581 §4), or None."""
        param = find_param(self.params, "rport")
        if param is None or param.value is None or not param.value.isdigit() or len(param.value) > 5:
            return None
        port = int(param.value)
        return port if 0 < port <= 0xFFFF else None


@lru_cache(maxsize=1024)
def _read_sent_by(text: bytes) -> tuple[str, bytes, int | None, int, int] | None:
    """What stands before the params: transport, host and where it is, port and its digits; None if it is odd.

    A sender repeats it in all its messages, so it is remembered.
    """
    match = _COMMON_VIA.fullmatch(text)
    if match is None:
        return None
    transport, host, port = match.groups()
    return (
        transport.decode(),
        host[1:-1] if host[0] == 0x5B else host,
        None if port is None else read_port(port),
        match.start(2),
        0 if port is None else len(port),
    )


class NameAddress(NamedTuple):
    """One value of Contact, From, To, Route, Record-Route and their kin (RFC 3261 §20.10).

    `uri` is None for the `*` of a Contact alone. `params` are the header's own, outside the `<>`. Without
    `<>` all params are the header's. A display name is as it was written, with its quotes.
    """

    span: Span
    is_star: bool
    display_span: Span | None
    uri: SipUri | None
    params: tuple[Param, ...]

    @classmethod
    def parse(cls, data: bytes, span: Span | None = None) -> NameAddress:
        """Read the value that is `data`, or its part `span`. Raises `DecodeError`."""
        if span is None:
            span = Span(0, len(data))
            return _read_address(data) if len(data) <= _LONGEST_REMEMBERED else cls.parse(data, span)
        start, end = span
        close = data.find(b">", start, end)
        if close > 0 and data[start] == 0x3C and data[start + 1] > 0x20 and data[close - 1] > 0x20:
            uri_start, uri_end, display, position = start + 1, close, None, close + 1
        else:
            match = _ADDRESS.match(data, start, end)
            if match is None:
                return cls._parse_bare(data, span)
            name = match[1] or match[2].rstrip(_BLANK)
            name_start = match.start(1 if match[1] else 2)
            display = _new_tuple(Span, (name_start, name_start + len(name))) if name else None
            uri_start, position = match.start(3), match.end()
            uri_end = uri_start + len(match[3].rstrip(_BLANK))
        uri = SipUri.parse(data, _new_tuple(Span, (uri_start, uri_end)))
        params: tuple[Param, ...] | None = ()
        if position != end:
            span, params = _read_params(data, span, position)
        return _new_tuple(cls, (span, False, display, uri, params))

    @classmethod
    def _parse_bare(cls, data: bytes, span: Span) -> NameAddress:
        """Read an address without `<>`, or a `*`."""
        match = _BARE_ADDRESS.match(data, *span)
        if match is None:
            raise DecodeError(f"{show(data[slice(*span)])} is not an address")
        is_star = match[1] == b"*"
        uri = None if is_star else SipUri.parse(data, _new_tuple(Span, match.span(1)))
        span, params = _read_params(data, span, match.end())
        return cls(span, is_star, None, uri, params)

    def param(self, name: str) -> Param | None:
        """The first header param of that name (lower case), or None; those of the URI are `uri.param`'s."""
        return find_param(self.params, name)


@lru_cache(maxsize=1024)
def _read_address(data: bytes) -> NameAddress:
    """Read an address alone, as the same Route is in all requests to one proxy."""
    return NameAddress.parse(data, Span(0, len(data)))


def _read_params(data: bytes, span: Span, position: int) -> tuple[Span, tuple[Param, ...]]:
    """Read `;name=value` from `position` to the end of `span`; and `span` up to the end of the last of them.

    Blanks may follow, and a comment, as RFC 2543 §6.40 has it in Via. Empty ones are passed over. Raises
    `DecodeError`.
    """
    start, end = span
    text = data[position:end]
    if text[:1] in (b";", b""):
        simple = simple_params(text, position)
        if simple is not None:
            return span, simple
    end = position + len(text.rstrip(_BLANK))
    params = []
    while (match := _PARAM.match(data, position, end)) is not None:
        name, value = match.groups()
        if name is not None:
            value = None if value is None else value.rstrip(_BLANK)
            params.append(
                Param(name.lower().decode("latin-1"), value, match.start(1), max(match.start(2), 0))
            )
        position = match.end()
    rest = data[position:end].strip(_BLANK)
    if rest and not (rest.startswith(b"(") and rest.endswith(b")")):
        raise DecodeError(f"{show(rest)} is not a parameter")
    position -= len(data[start:position]) - len(data[start:position].rstrip(_BLANK))
    return _new_tuple(Span, (start, position)), tuple(params)


def split_list(data: bytes, span: Span | None = None) -> list[Span]:
    """Split a comma list (RFC 3261 §7.3.1) into its elements, without the blanks around them.

    Commas in quoted strings, `<>` and comments do not split. Empty elements are passed over.
    """
    start, end = span = Span(0, len(data)) if span is None else span
    if start < end and data.find(b",", start, end) < 0 and data[start] > 0x20 and data[end - 1] > 0x20:
        return [span]
    elements = []
    for comma in (*_commas(data, span), end):
        part = data[start:comma]
        inner = part.strip(_BLANK)
        if inner:
            inner_start = start + part.index(inner[0])
            elements.append(_new_tuple(Span, (inner_start, inner_start + len(inner))))
        start = comma + 1
    return elements


def _commas(data: bytes, span: Span) -> Iterator[int]:
    """Where the commas are that split. A parenthesis without its partner begins no comment."""
    start, end = span
    text = data[start:end]
    if len(text.translate(None, b'"<(\\')) == len(text):
        return (match.start() for match in _COMMA.finditer(data, start, end))
    found: list[int] = []
    opened: list[int] = []  # how many commas stand before each parenthesis that is open
    for match in _LIST_MARK.finditer(data, *span):
        mark = data[match.start()]
        if mark == 0x2C:
            found.append(match.start())
        elif mark == 0x28:
            opened.append(len(found))
        elif mark == 0x29 and opened:
            del found[opened.pop() :]
    return iter(found)


def format_sent_by(endpoint: Endpoint) -> bytes:
    """The sent-by of a Via, or the host and port of a URI: `192.0.2.1:5060`, `[2001:db8::1]:5060`."""
    return str(endpoint).encode()


def compose_via(sent_by: Endpoint, *, branch: str, transport: str = "UDP", rport: bool = True) -> str:
    """Write the value of a Via header for a request (RFC 3261 §18.1.1), with `rport` (RFC 3581 §3).

    `branch` must begin with `z9hG4bK` and be new for each transaction (§8.1.1.7). Raises `EncodeError`.
    """
    for word in (branch, transport):
        if not _WHOLE_TOKEN.fullmatch(word.encode()):
            raise EncodeError(f"{word[:60]!r} is not a token, as a Via's branch and transport must be")
    return f"SIP/2.0/{transport} {sent_by}{';rport' if rport else ''};branch={branch}"


def compose_contact(
    endpoint: Endpoint,
    *,
    user: str = "",
    display_name: str = "",
    uri_params: Iterable[str] = (),
    params: Iterable[str] = (),
    scheme: str = "sip",
) -> str:
    """Write a Contact value: `"Alice" <sip:alice@192.0.2.1:5060;transport=tcp>;expires=60` (RFC 3261 §20.10).

    `uri_params` and `params` are written `name` or `name=value`. What the user part cannot hold is escaped.
    Raises `EncodeError` where a param, or the scheme, would break out of its place.
    """
    uri_params, params = tuple(uri_params), tuple(params)
    for text in uri_params:
        if not re.fullmatch(r"[^\s;?<>\"@,]+", text):
            raise EncodeError(f"{text[:60]!r} cannot be a parameter of a URI")
    for text in params:
        if not re.fullmatch(r"[^\s;=,\"<>]+(?:=(?:\"(?:[^\"\\\r\n]|\\[^\r\n])*\"|[^\s;,\"<>]+))?", text):
            raise EncodeError(f"{text[:60]!r} cannot be a parameter of a Contact")
    if scheme not in ("sip", "sips"):
        raise EncodeError(f"a Contact of the scheme {scheme[:60]!r}; sip or sips expected")
    name = "" if not display_name else f"{_quote(display_name)} "
    address = f"{_escape_user(user)}@{endpoint}" if user else f"{endpoint}"
    return f"{name}<{';'.join((f'{scheme}:{address}', *uri_params))}>{''.join(f';{p}' for p in params)}"


def _quote(text: str) -> str:
    if "\r" in text or "\n" in text:
        raise EncodeError(f"a display name with a line break: {text[:60]!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escape_user(user: str) -> str:
    """Escape what RFC 3261 §25.1 does not allow in a user; an escape that is there already stays."""
    return re.sub(
        rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-_.!~*'()&=+$,;?/%:]",
        lambda match: b"%%%02X" % match[0][0],
        user.encode(),
    ).decode()
