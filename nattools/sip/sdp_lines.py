"""The lines of a session description that say an address or a port, one class each (RFC 8866 §5, RFC 3605).

A line keeps the match that found it, and reads a value out of it, or its place, when it is asked.
"""

from __future__ import annotations

import re
from functools import lru_cache

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.sip.uri import Span, read_ip

# Each begins at the line break before it, by which it is found fast. The last group is what cannot be read.
LINES = re.compile(
    rb"\n(?:"
    rb"m=(\S+)[ \t]+([0-9]{1,5})(?:/([0-9]{1,5}))?[ \t]+(\S+)([^\r\n]*)"
    rb"|c=(\S+)[ \t]+(\S{1,16})[ \t]+([^\s/]{1,255})(?=[\s/]|\Z)"
    rb"|a=rtcp(?::[ \t]*([0-9]{1,5})(?:[ \t]+\S+[ \t]+(\S{1,16})[ \t]+(\S{1,255}))?|(-mux))"
    rb"[ \t]*(?=[\r\n]|\Z)"
    rb"|([mc]=)"
    rb"|o=\S+ (\S+) ([0-9]{1,20}) IN (IP[46]) (\S{1,255})(?=\r?\n|\Z)"
    rb")"
)
MEDIA, CONNECTION, RTCP_MUX, UNREADABLE, ORIGIN = 5, 8, 12, 13, 17
"""The last group of each; all else is an a=rtcp line."""
_ODD_ORIGIN = re.compile(
    rb"[ \t](\S+)[ \t]+([0-9]{1,20})[ \t]+IN[ \t]+(IP[46])[ \t]+(\S{1,255})[ \t]*(?=[\r\n]|\Z)"
)
CANDIDATE = re.compile(
    rb"\na=candidate:(\S+)[ \t]+([0-9]{1,3})[ \t]+(\S+)[ \t]+([0-9]{1,10})"
    rb"[ \t]+(\S{1,255})[ \t]+([0-9]{1,5})[ \t]+typ[ \t]+(\S+)([^\r\n]*)"
)
SRCADR = re.compile(rb"\na=srcadr:[ \t]*(\S{1,255}):([0-9]{1,5})[ \t]+(\S{1,255}):([0-9]{1,5})(?=\s|\Z)")

_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes its time
_NO_HOST = (AddressClass.MULTICAST, AddressClass.UNSPECIFIED)


class Line:
    """What all lines share: the match that found it, out of which its values are read when asked for."""

    __slots__ = ("_match",)

    def __init__(self, match: re.Match[bytes]) -> None:
        self._match = match

    def _span(self, group: int) -> Span:
        return _new_tuple(Span, self._match.span(group))

    def _span_from(self, first: int, last: int) -> Span:
        return Span(self._match.start(first), self._match.end(last))


class Origin(Line):
    """An o= line (RFC 8866 §5.2): who made the description, and which version of it this is."""

    __slots__ = ("_first",)

    def __init__(self, match: re.Match[bytes], first: int = ORIGIN - 3) -> None:
        self._match = match
        self._first = first  # the group of the session's number, which the three others follow

    @property
    def username(self) -> bytes:
        """The describer's name, or `-`."""
        data, end = self._match.string, self._match.start(self._first)
        return data[data.rindex(b"\no=", 0, end) + 3 : end].strip(b" \t")

    @property
    def session_id(self) -> bytes:
        """The session's number as it is written."""
        return self._match[self._first]

    @property
    def session_id_span(self) -> Span:
        """Where that is."""
        return self._span(self._first)

    @property
    def version(self) -> int:
        """Must rise when the description is changed (RFC 3264 §8)."""
        return int(self._match[self._first + 1])

    @property
    def version_span(self) -> Span:
        """Where that is."""
        return self._span(self._first + 1)

    @property
    def family(self) -> str:
        """`IP4` or `IP6`."""
        return self._match[self._first + 2].decode()

    @property
    def address(self) -> bytes:
        """The describer's address or host name."""
        return self._match[self._first + 3]

    @property
    def address_span(self) -> Span:
        """Where that is."""
        return self._span(self._first + 3)

    @property
    def family_address_span(self) -> Span:
        """Where family and address are, to exchange both."""
        return self._span_from(self._first + 2, self._first + 3)

    @property
    def ip(self) -> IPAddress | None:
        """The address; None for a host name."""
        return _ip(self._match[self._first + 3], self._match[self._first + 2])


def read_odd_origin(data: bytes, start: int, end: int) -> Origin | None:
    """Read an o= line of odd spacing, or whose name has several words; None where it cannot be read."""
    found = _ODD_ORIGIN.search(data, start, end)
    return Origin(found, 1) if found else None


class Connection(Line):
    """A c= line (RFC 8866 §5.7): where media are received, of the session or of one stream."""

    __slots__ = ()

    @property
    def family(self) -> str:
        """`IP4` or `IP6`; gateways to other networks have others as well (RFC 2848)."""
        return self._match[7].decode("latin-1").upper()

    @property
    def address(self) -> bytes:
        """The address or host name, without the `/ttl/count` behind a multicast address."""
        return self._match[8]

    @property
    def address_span(self) -> Span:
        """Where that is."""
        return self._span(8)

    @property
    def family_address_span(self) -> Span:
        """Where family and address are, to exchange both."""
        return self._span_from(7, 8)

    @property
    def ip(self) -> IPAddress | None:
        """The address; None for a host name or another kind of network."""
        return _ip(self._match[8], self._match[7])

    @property
    def is_multicast(self) -> bool:
        """Whether it is a group's address (224.0.0.0/4, ff00::/8)."""
        return _kind(self._match[8], self._match[7]) is AddressClass.MULTICAST

    @property
    def is_hold(self) -> bool:
        """Whether it is the unspecified address, by which elder phones hold a call (RFC 3264 §8.4)."""
        return _kind(self._match[8], self._match[7]) is AddressClass.UNSPECIFIED

    def endpoint(self, port: int) -> Endpoint | None:
        """That port of it; None for a host name, a port that there is not, or another kind of network."""
        return _endpoint(self._match[8], self._match[7], port)

    def receiver(self, port: int) -> Endpoint | None:
        """As `endpoint`, but None too for multicast and hold: a socket of one host, or nothing."""
        return _receiver(self._match[8], self._match[7], port)


class Rtcp(Line):
    """An a=rtcp line (RFC 3605): where RTCP is received, if not one port above RTP."""

    __slots__ = ()

    @property
    def port(self) -> int:
        """The port."""
        return int(self._match[9])

    @property
    def port_span(self) -> Span:
        """Where that is."""
        return self._span(9)

    @property
    def address(self) -> bytes | None:
        """The address, if one is written: else it is that of RTP."""
        return self._match[11]

    @property
    def address_span(self) -> Span | None:
        """Where that is."""
        return None if self._match[11] is None else self._span(11)

    @property
    def family_address_span(self) -> Span | None:
        """Where family and address are, to exchange both."""
        return None if self._match[11] is None else self._span_from(10, 11)

    @property
    def endpoint(self) -> Endpoint | None:
        """Address and port; None where no address is written, or a host name."""
        address = self._match[11]
        return None if address is None else _endpoint(address, self._match[10], self.port)


class Candidate(Line):
    """An a=candidate line of ICE (RFC 8839 §5.1)."""

    __slots__ = ()

    @property
    def span(self) -> Span:
        """The line without its line break."""
        return Span(self._match.start() + 1, self._match.end())

    @property
    def foundation(self) -> bytes:
        """The same for candidates of one type, base and server (RFC 8445 §5.1.1.3)."""
        return self._match[1]

    @property
    def component(self) -> int:
        """1 is RTP, 2 is RTCP."""
        return int(self._match[2])

    @property
    def transport(self) -> str:
        """`UDP` or `TCP`, in upper case."""
        return self._match[3].decode("latin-1").upper()

    @property
    def priority(self) -> int:
        """The higher, the sooner it is tried."""
        return int(self._match[4])

    @property
    def address(self) -> bytes:
        """An IP address or a host name."""
        return self._match[5]

    @property
    def address_span(self) -> Span:
        """Where that is."""
        return self._span(5)

    @property
    def port(self) -> int:
        """Its port."""
        return int(self._match[6])

    @property
    def port_span(self) -> Span:
        """Where that is."""
        return self._span(6)

    @property
    def type(self) -> str:
        """`host`, `srflx`, `prflx` or `relay`."""
        return self._match[7].decode("latin-1")

    @property
    def endpoint(self) -> Endpoint | None:
        """Address and port; None for a host name."""
        return _endpoint(self._match[5], b"", self.port)


class SourceAddresses(Line):
    """An a=srcadr line, which some phones write: the private and the public endpoint of a stream."""

    __slots__ = ()

    @property
    def private(self) -> Endpoint | None:
        """The first endpoint; None for a host name."""
        return _endpoint(self._match[1], b"", int(self._match[2]))

    @property
    def private_span(self) -> Span:
        """Where that is."""
        return self._span_from(1, 2)

    @property
    def public(self) -> Endpoint | None:
        """The second endpoint; None for a host name."""
        return _endpoint(self._match[3], b"", int(self._match[4]))

    @property
    def public_span(self) -> Span:
        """Where that is."""
        return self._span_from(3, 4)


# Calls repeat their few addresses, and making sense of one takes longer than all the rest.


@lru_cache(maxsize=1024)
def _endpoint(address: bytes, family: bytes, port: int) -> Endpoint | None:
    ip = _ip(address, family) if family else read_ip(address)
    return None if ip is None or port > 0xFFFF else Endpoint(ip, port)


@lru_cache(maxsize=1024)
def _receiver(address: bytes, family: bytes, port: int) -> Endpoint | None:
    endpoint = _endpoint(address, family, port)
    return endpoint if port and endpoint is not None and _kind(address, family) not in _NO_HOST else None


@lru_cache(maxsize=1024)
def _ip(address: bytes, family: bytes) -> IPAddress | None:
    ip = read_ip(address)
    return ip if ip is not None and family.upper() == b"IP%d" % ip.version else None


@lru_cache(maxsize=1024)
def _kind(address: bytes, family: bytes) -> AddressClass | None:
    ip = _ip(address, family)
    return None if ip is None else classify_address(ip)
