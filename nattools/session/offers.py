"""Session descriptions with a relay in them: what each m= line says of its side, and how the other reads it.

A relay is no party to the offer/answer exchange (RFC 3264): formats, directions, keys and fingerprints pass
as they are. Only where media go to changes, and what would lead them past the relay is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from nattools.endpoint import Endpoint, IPAddress
from nattools.session.relay import PortPair
from nattools.sip.media import Edit, carriage
from nattools.sip.sdp import Direction, Media, SessionDescription, address_words, rtcp_line
from nattools.sip.sdp_lines import Connection
from nattools.sip.uri import Span

_UNSPECIFIED: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}
_USUAL_CLOCK_HZ = 8000
_VIDEO_CLOCK_HZ = 90_000  # RFC 3551 §5
_LARGEST_CLOCK_HZ = 10_000_000
_HIGHEST_TYPE = 127
_RELAY_PREFERENCE = 0xFFFF

_CLOCK = re.compile(rb"\na=rtpmap:[ \t]*(\d{1,3})[ \t]+[^\s/]+/(\d{1,8})")
_TITLE = re.compile(rb"(?:\r?\ni=[^\r\n]*)?")
_BEFORE_ATTRIBUTES = re.compile(rb"(?:\r?\n[icbk]=[^\r\n]*)*")
_RTCP_LINE = re.compile(rb"(?<=\n)a=rtcp:[^\r\n]*")
_PAST_THE_RELAY = re.compile(  # ICE, its elder drafts, and the streams that share a port by it (RFC 9143)
    rb"(?<=\n)a=(?:(?:candidate|remote-candidates|end-of-candidates|ice-[a-z]+|alt)(?=[:\s]|\Z)"
    rb"|group:[ \t]*BUNDLE(?=\s|\Z))[^\n]*\n?"
)
_BOTH_ADDRESSES = re.compile(rb"(?<=\n)a=srcadr:[^\n]*\n?")


@dataclass(frozen=True, slots=True)
class Described:
    """What an m= line says of the side that wrote it.

    `rtp` and `rtcp` are where it receives, None on hold by `c=0.0.0.0`. `payload_types` are those that it
    takes, empty where the stream is no RTP. `hosts` is where its signalling comes from.
    """

    rtp: Endpoint | None
    rtcp: Endpoint | None
    payload_types: frozenset[int]
    clock_hz: int
    rtcp_mux: bool
    direction: Direction
    hosts: frozenset[IPAddress]
    is_proven: bool
    has_ice: bool

    @property
    def is_held(self) -> bool:
        """Whether this side has it that nothing need come both ways (RFC 3264 §8.4)."""
        return self.rtp is None or self.direction is not Direction.SENDRECV


class Lot(Enum):
    """What becomes of an m= line that the relay gives no ports to."""

    LEFT = "left"
    """It stays as it is: refused already, not over UDP, or with the relay's ports in it."""
    REFUSED = "refused"
    """It is refused in the relay's name, by port 0."""


def is_relayed(media: Media) -> bool:
    """Whether an m= line needs ports of the relay: it is in use, and over UDP."""
    return media.port != 0 and carriage(media.protocol)[0]


def describe(media: Media, host: IPAddress) -> Described:
    """Read an m= line of a side whose signalling comes from `host`.

    That host stands for a host name in its c= line, and for a c= line that is missing: media most often come
    from there, too.
    """
    connection = media.connection
    rtp = None if connection is None else connection.receiver(media.port)
    if rtp is None and (connection is None or not (connection.is_hold or connection.is_multicast)):
        rtp = Endpoint(host, media.port) if media.port <= 0xFFFF else None
    is_rtp = carriage(media.protocol)[1]
    types = [int(it) for it in media.formats if it.isdigit() and len(it) <= 3] if is_rtp else []
    return Described(
        rtp,
        media.rtcp_endpoint if is_rtp and rtp is not None and not media.is_rtcp_mux else None,
        frozenset(it for it in types if it <= _HIGHEST_TYPE),
        _clock_hz(media, types),
        media.is_rtcp_mux,
        media.direction,
        frozenset({host}),
        rtp is not None and rtp.ip == host,
        bool(media.candidates),
    )


def _clock_hz(media: Media, types: Sequence[int]) -> int:
    """The RTP clock of the first format (RFC 8866 §6.6)."""
    if types:
        for found in _CLOCK.finditer(media.data, media.line_end, media.span.end):
            if int(found[1]) == types[0]:
                clock_hz = int(found[2])
                return clock_hz if 0 < clock_hz <= _LARGEST_CLOCK_HZ else _USUAL_CLOCK_HZ
    return _VIDEO_CLOCK_HZ if media.kind == "video" else _USUAL_CLOCK_HZ


def edits(
    description: SessionDescription,
    lots: Sequence[PortPair | Lot],
    *,
    address: IPAddress,
    is_answer: bool,
    strips_ice: bool,
) -> list[Edit]:
    """What makes a description lead to the relay, by one lot for each m= line.

    The c= lines follow, at session level and at that of streams; one that is shared with a stream that does
    not move is left to that one. `c=0.0.0.0` stays what it says. `address` stands where no stream needs the
    c= line of the session any longer. A number of ports behind a slash goes, since the relay has one pair for
    a stream. Where an answer agrees to rtcp-mux, a=rtcp goes (RFC 5761 §5.1.1). The o= line is left alone.
    With ICE stripped no way past the relay is offered; else the relay is one more candidate, the last choice.
    """
    made: list[Edit] = []
    shared = _session_words(description, lots, address)
    connection = description.connection
    if connection is not None:
        made += _connection_edits(description.connections, description.data, description.span.end, shared)
    stays = [lot is Lot.LEFT and it.port != 0 for it, lot in zip(description.media, lots, strict=True)]
    if strips_ice and not all(stays):
        end = description.media[0].span.start if description.media else description.span.end
        made += _without(_PAST_THE_RELAY, description.data, Span(description.span.start, end))
    for media, lot, is_left in zip(description.media, lots, stays, strict=True):
        words = _words(media, lot)
        if media.connections:
            if words is not None or lot is Lot.REFUSED:
                instead = words or address_words(address)
                made += _connection_edits(media.connections, media.data, media.span.end, instead)
        elif is_left and connection is not None and shared != (own := _as_written(connection)):
            made.append(_new_line(media, _TITLE, f"c=IN {own}"))
        elif words is not None and (connection is None or words != shared):
            made.append(_new_line(media, _TITLE, f"c=IN {words}"))
        if is_left:
            continue
        if strips_ice:
            made += _without(_PAST_THE_RELAY, media.data, media.span)
        if isinstance(lot, PortPair):
            made.append((_ports_span(media), b"%d" % lot.rtp.port))
            made += _without(_BOTH_ADDRESSES, media.data, media.span)
            made += _rtcp_edits(media, lot, is_answer=is_answer)
            if not strips_ice:
                made += _new_candidates(media, lot)
        elif lot is Lot.REFUSED:
            made.append((_ports_span(media), b"0"))
    return made


def _session_words(
    description: SessionDescription, lots: Sequence[PortPair | Lot], address: IPAddress
) -> str:
    """What the c= line of the session is to say, where there is one."""
    sharing = [
        (media, lot)
        for media, lot in zip(description.media, lots, strict=True)
        if media.port and not media.connections
    ]
    for media, lot in sharing:
        if (words := _words(media, lot)) is not None:
            return words
    if description.connection is not None and any(lot is Lot.LEFT for _, lot in sharing):
        return _as_written(description.connection)
    return address_words(address)


def _words(media: Media, lot: PortPair | Lot) -> str | None:
    """What the c= line of a stream that moves is to say; None for one that does not."""
    if not isinstance(lot, PortPair):
        return None
    ip = lot.rtp.ip
    is_hold = media.connection is not None and media.connection.is_hold
    return address_words(_UNSPECIFIED[ip.version] if is_hold else ip)


def _as_written(connection: Connection) -> str:
    return f"{connection.family} {connection.address.decode('latin-1')}"


def _connection_edits(connections: Sequence[Connection], data: bytes, limit: int, words: str) -> list[Edit]:
    """One c= line with those words for all; the rest of each line goes, too (`/ttl/count`)."""
    made: list[Edit] = []
    if len(connections) == 1 and _as_written(connections[0]) == words:
        return made
    for connection in connections:
        start, end = connection.family_address_span
        line_start = data.rfind(b"\n", 0, start) + 1
        if made:
            made.append((Span(line_start, _next_line(data, end, limit)), b""))
        else:
            made.append((Span(line_start, _line_end(data, end, limit)), f"c=IN {words}".encode("latin-1")))
    return made


def _rtcp_edits(media: Media, pair: PortPair, *, is_answer: bool) -> list[Edit]:
    """The a=rtcp line (RFC 3605), where one is there or needed."""
    data, end = media.data, media.span.end
    lines = [Span(*found.span()) for found in _RTCP_LINE.finditer(data, media.line_end, end)]
    is_shared = media.is_rtcp_mux and (
        is_answer or (media.rtcp is not None and media.rtcp.port == media.port)
    )
    rtcp = pair.rtp if is_shared else pair.rtcp
    made: list[Edit] = []
    if lines and media.rtcp is not None and not (media.is_rtcp_mux and is_answer):
        has_address = media.rtcp.address is not None or rtcp.ip != pair.rtp.ip
        address = f" IN {address_words(rtcp.ip)}" if has_address else ""
        made.append((lines.pop(0), f"a=rtcp:{rtcp.port}{address}".encode()))
    elif carriage(media.protocol)[1] and not is_shared and (line := rtcp_line(pair.rtp, rtcp)):
        made.append(_new_line(media, _BEFORE_ATTRIBUTES, line))
    made += [(Span(line.start, _next_line(data, line.end, end)), b"") for line in lines]
    return made


def _new_candidates(media: Media, pair: PortPair) -> list[Edit]:
    """The relay as a candidate, since what c= and m= say must be one (RFC 8839 §4.2.5)."""
    present = media.candidates
    if not present:
        return []
    made = []
    wanted = [(1, pair.rtp)]
    if any(it.component == 2 for it in present):
        wanted.append((2, pair.rtcp))
    nowhere = _UNSPECIFIED[pair.rtp.ip.version]
    for component, public in wanted:
        priority = (_RELAY_PREFERENCE << 8) + 256 - component  # RFC 8445 §5.1.2.1, of the type "relay"
        words = (
            f"a=candidate:relay {component} UDP {priority} {public.ip} {public.port} typ relay"
            f" raddr {nowhere} rport 9"
        )
        made.append(_line_after(media, present[-1].span.end, words))
    return made


def _ports_span(media: Media) -> Span:
    """The port of an m= line, with the number of ports behind a slash."""
    start, end = media.port_span
    if media.data[end : end + 1] == b"/":
        while not media.data[end : end + 1].isspace():
            end += 1
    return Span(start, end)


def _without(lines: re.Pattern[bytes], data: bytes, span: Span) -> list[Edit]:
    return [(Span(*found.span()), b"") for found in lines.finditer(data, *span)]


def _new_line(media: Media, after: re.Pattern[bytes], words: str) -> Edit:
    """A line more, behind the m= line and those that `after` means."""
    found = after.match(media.data, media.line_end, media.span.end)
    return _line_after(media, media.line_end if found is None else found.end(), words)


def _line_after(media: Media, place: int, words: str) -> Edit:
    """A line more behind that in which `place` is; it breaks as the line before the m= line does."""
    data, end = media.data, media.span.end
    line_break = "\r\n" if data[media.span.start - 2 : media.span.start] == b"\r\n" else "\n"
    feed = data.find(b"\n", place, end)
    if feed < 0:
        return Span(end, end), f"{line_break}{words}".encode("latin-1")
    return Span(feed + 1, feed + 1), f"{words}{line_break}".encode("latin-1")


def _line_end(data: bytes, place: int, limit: int) -> int:
    """Where the line of `place` ends, before its line break."""
    feed = data.find(b"\n", place, limit)
    if feed < 0:
        return limit
    return feed - 1 if data[feed - 1 : feed] == b"\r" and feed > place else feed


def _next_line(data: bytes, place: int, limit: int) -> int:
    feed = data.find(b"\n", place, limit)
    return limit if feed < 0 else feed + 1
