"""Session descriptions (SDP, RFC 8866) read where they lie: each value with its place in the bytes around it.

Nothing is written anew: an edit replaces a value's span, and all other lines stay as they came, known or not.
`nattools.sip.media` says which edits move the media to their public endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Self

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, EncodeError
from nattools.sip.sdp_lines import (
    CANDIDATE,
    CONNECTION,
    LINES,
    MEDIA,
    ORIGIN,
    RTCP_MUX,
    SRCADR,
    UNREADABLE,
    Candidate,
    Connection,
    Line,
    Origin,
    Rtcp,
    SourceAddresses,
    read_odd_origin,
)
from nattools.sip.uri import Span, show

_DIRECTION = re.compile(rb"\na=(sendrecv|sendonly|recvonly|inactive)[ \t]*(?=[\r\n]|\Z)")


class Direction(StrEnum):
    """Who sends in a stream, from the describer's side (RFC 8866 §6.7)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"


class Media(Line):
    """An m= line (RFC 8866 §5.14) and the lines that belong to it."""

    __slots__ = ("_end", "_session_start", "connection", "connections", "data", "is_rtcp_mux", "port", "rtcp")

    data: bytes
    """What its spans are places in."""
    port: int
    """Where it is received; 0 for a stream that is refused or removed (RFC 3264 §6)."""
    connection: Connection | None
    """The c= line in force: its own first one, or the session's."""
    connections: tuple[Connection, ...]
    """Its own c= lines; several where a multicast stream has layers."""
    rtcp: Rtcp | None
    """Its a=rtcp line."""
    is_rtcp_mux: bool
    """Whether RTCP may come to the port of RTP (a=rtcp-mux, RFC 5761)."""

    def __init__(self, match: re.Match[bytes], session: SessionDescription) -> None:
        self._match = match
        self.data = session.data
        self._session_start, self._end = session.span
        self.port = int(match[2])
        self.connection = session.connection
        self.connections = ()
        self.rtcp = None
        self.is_rtcp_mux = False

    @property
    def span(self) -> Span:
        """From its m= to the next one, or to the end."""
        return Span(self._match.start() + 1, self._end)

    @property
    def line_end(self) -> int:
        """Where the m= line itself ends, before its line break."""
        return self._match.end()

    @property
    def kind(self) -> str:
        """`audio`, `video`, `image`, `message`, ..., in lower case."""
        return self._match[1].decode("latin-1").lower()

    @property
    def port_span(self) -> Span:
        """Where that is, without a slash and what follows."""
        return self._span(2)

    @property
    def port_count(self) -> int:
        """The number behind a slash: how many streams, on how many ports (RFC 8866 §5.14); else 1."""
        return int(self._match[3] or 1)

    @property
    def protocol(self) -> str:
        """`RTP/AVP`, `UDPTL`, `TCP/MSRP`, ..., in upper case."""
        return self._match[4].decode("latin-1").upper()

    @property
    def formats(self) -> tuple[bytes, ...]:
        """The payload types of RTP, or what the protocol has in their place."""
        return tuple(self._match[5].split())

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it is received; None for a host name, and where no c= is in force."""
        connection = self.connection
        return None if connection is None else connection.endpoint(self.port)

    @property
    def rtcp_endpoint(self) -> Endpoint | None:
        """Where its RTCP is received: as a=rtcp says, else one port above (RFC 3550 §11); None as there."""
        rtcp, connection = self.rtcp, self.connection
        if rtcp is not None and rtcp.address is not None:
            return rtcp.endpoint
        return connection.endpoint(self.port + 1 if rtcp is None else rtcp.port) if connection else None

    @property
    def direction(self) -> Direction:
        """Who sends; as the session says where the stream says nothing."""
        data, start = self.data, self._session_start
        found = _DIRECTION.search(data, self._match.end(), self._end) or _DIRECTION.search(
            data, start, data.find(b"\nm=", start, self._end)
        )
        return Direction(found[1].decode()) if found else Direction.SENDRECV

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Its a=candidate lines, those that can be read."""
        data, start = self.data, self._match.end()
        if data.find(b"\na=candidate:", start, self._end) < 0:
            return ()
        return tuple(Candidate(match) for match in CANDIDATE.finditer(data, start, self._end))

    @property
    def srcadr(self) -> SourceAddresses | None:
        """Its a=srcadr line."""
        found = SRCADR.search(self.data, self._match.end(), self._end)
        return SourceAddresses(found) if found else None


class SessionDescription:
    """A session description that lies in `data` at `span`; all its spans are places in `data`."""

    __slots__ = ("_origin", "connection", "connections", "data", "media", "span")

    data: bytes
    span: Span
    connections: tuple[Connection, ...]
    """The session's own c= lines: one, or none where each stream has its own."""
    connection: Connection | None
    """The first of them, in force for the streams that have none of their own."""
    _origin: Origin | None
    media: tuple[Media, ...]
    """Its streams in their order, refused ones too."""

    @classmethod
    def parse(cls, data: bytes, span: Span | None = None) -> Self:
        """Read `data`, or the part of it that `span` is. Lines end with CRLF or LF.

        Raises `DecodeError` where the first line is no v=, and where an m= or c= line cannot be read.
        """
        self = cls()
        self.data = data
        self.span = span = span or Span(0, len(data))
        start, end = span
        if not data.startswith(b"v=", start, end):
            raise DecodeError(f"a session description begins with v=, not with {show(data[start:end])}")
        self.connections, self.connection, self._origin = (), None, None
        media: list[Media] = []
        described: Media | SessionDescription = self
        connections: list[Connection] = []  # of what is being described
        for match in LINES.finditer(data, start, end):
            kind = match.lastindex
            if kind == MEDIA:
                if media:
                    media[-1]._end = match.start() + 1
                described.connections, connections = tuple(connections), []
                described = Media(match, self)
                media.append(described)
            elif kind == UNREADABLE:
                line = data[match.start() + 1 : end].split(b"\n", 1)[0]
                raise DecodeError(f"{show(line)} is no line of a session description")
            elif kind == CONNECTION:
                connections.append(Connection(match))
                described.connection = connections[0]
            elif kind == ORIGIN:
                self._origin = self._origin or (Origin(match) if not media else None)
            elif media and kind == RTCP_MUX:
                media[-1].is_rtcp_mux = True
            elif media and media[-1].rtcp is None:
                media[-1].rtcp = Rtcp(match)
        described.connections = tuple(connections)
        self.media = tuple(media)
        return self

    @property
    def origin(self) -> Origin | None:
        """The o= line; None where there is none, or none that can be read."""
        if self._origin is not None:
            return self._origin
        data, (start, end) = self.data, self.span
        if self.media:
            end = self.media[0].span.start
        line = data.find(b"\no=", start, end)
        if line < 0:
            return None
        line_end = data.find(b"\n", line + 1, end)
        return read_odd_origin(data, line + 3, end if line_end < 0 else line_end)


PCMU = ((0, "PCMU/8000"),)
"""G.711 µ-law, the one format that every phone has (RFC 3551 §4.5.14)."""


def compose_sdp(
    rtp: Endpoint,
    *,
    rtcp: Endpoint | None = None,
    formats: Iterable[tuple[int, str]] = PCMU,
    session_id: int,
    version: int,
    direction: str = Direction.SENDRECV,
    username: str = "-",
    session_name: str = "-",
) -> bytes:
    """Write the description of one audio stream that is received at `rtp` (RFC 8866, RFC 3264 §5).

    An a=rtcp line tells `rtcp` where it is not one port above `rtp` (RFC 3605). `formats` are payload types
    and their encodings, the best first. `session_id` stays the same in a dialog, and `version` rises by one
    with each change. Raises `EncodeError` for what such lines cannot carry.
    """
    kinds = tuple(formats)
    if not kinds:
        raise EncodeError(
            "an audio stream without formats cannot be described: give at least (0, 'PCMU/8000')"
        )
    for number, encoding in kinds:
        if not 0 <= number <= 127:
            raise EncodeError(f"{number} is no payload type (0 to 127)")
        _check("encoding", encoding, " ")
    _check("user name", username, " ")
    _check("session name", session_name, "")
    if direction not in tuple(Direction):
        raise EncodeError(f"{direction!r} is no direction: take one of {', '.join(Direction)}")
    if session_id < 0 or version < 0:
        raise EncodeError(f"session id {session_id} and version {version} must not be below 0")
    address = address_words(rtp.ip)
    lines = [
        "v=0",
        f"o={username} {session_id} {version} IN {address}",
        f"s={session_name}",
        f"c=IN {address}",
        "t=0 0",
        f"m=audio {rtp.port} RTP/AVP {' '.join(str(number) for number, _ in kinds)}",
        *(f"a=rtpmap:{number} {encoding}" for number, encoding in kinds),
        "" if rtcp is None else rtcp_line(rtp, rtcp),
        f"a={direction}",
    ]
    return "".join(f"{line}\r\n" for line in lines if line).encode()


def rtcp_line(rtp: Endpoint, rtcp: Endpoint) -> str:
    """The a=rtcp line of a stream; empty where RTCP is where every peer expects it (RFC 3605 §2.1)."""
    if rtcp.ip != rtp.ip:
        return f"a=rtcp:{rtcp.port} IN {address_words(rtcp.ip)}"
    return "" if rtcp.port == rtp.port + 1 else f"a=rtcp:{rtcp.port}"


def address_words(ip: IPAddress) -> str:
    """Family and address, as c= and o= have them: `IP4 192.0.2.1`."""
    return f"IP{ip.version} {ip!s}"


def _check(what: str, text: str, forbidden: str) -> None:
    if not text or any(character in text for character in f"\r\n\0{forbidden}"):
        raise EncodeError(f"{text!r} cannot be the {what} of a session description")
