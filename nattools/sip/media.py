"""Moves the streams of a session description to the public endpoints of their sockets, by edits.

Only streams over UDP with an IP address are moved. All others stay as they are: refused ones (port 0), held
ones (`c=0.0.0.0`), multicast, host names, and those over TCP, which no binding of a UDP socket can carry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.sip.sdp import Media, SessionDescription, address_words, rtcp_line
from nattools.sip.sdp_lines import Candidate, Connection, Origin, Rtcp
from nattools.sip.uri import Span

_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes its time

Edit = tuple[Span, bytes]
"""What stands at a place, and what is to stand there; an empty place is one to insert at."""

FindPublic = Callable[[Endpoint], Endpoint | None]
"""The public endpoint of a local one, None where that has none."""

_OVER_UDP = frozenset({"RTP", "SRTP", "UDP", "UDPTL", "DTLS", "VAT"})
"""How the protocols of m= lines begin that run over UDP (RFC 8866 §8.2.2)."""
_TITLE = re.compile(rb"(?:\r?\ni=[^\r\n]*)?")
_BEFORE_ATTRIBUTES = re.compile(rb"(?:\r?\n[icbk]=[^\r\n]*)*")
"""What RFC 8866 §5 has between an m= line and its attributes."""
_CARRIAGE_RETURN = 0x0D
_SERVER_REFLEXIVE = 100
"""The type preference of such candidates (RFC 8445 §5.1.2.2)."""


class Stream(NamedTuple):
    """A stream that can be moved: where its m= line says that RTP is received, and where RTCP.

    `rtcp` is None for what has no RTCP, and where that may come to the port of RTP (a=rtcp-mux).
    """

    media: Media
    rtp: Endpoint
    rtcp: Endpoint | None


class Move(NamedTuple):
    """A stream, and where its sockets are to be told to be; `rtcp` is None where nothing is known of that."""

    stream: Stream
    rtp: Endpoint
    rtcp: Endpoint | None


def streams(description: SessionDescription) -> list[Stream]:
    """The streams that can be moved, wherever they are received, in their order."""
    found = []
    for media in description.media:
        connection = media.connection
        if connection is None or (rtp := connection.receiver(media.port)) is None:
            continue
        is_over_udp, has_rtcp = carriage(media.protocol)
        if is_over_udp:
            rtcp = media.rtcp_endpoint if has_rtcp and not media.is_rtcp_mux else None
            found.append(_new_tuple(Stream, (media, rtp, rtcp)))
    return found


@lru_cache(maxsize=64)
def carriage(protocol: str) -> tuple[bool, bool]:
    """Whether a protocol of m= lines runs over UDP, and whether it has RTCP."""
    layers = protocol.split("/")
    return layers[0] in _OVER_UDP and "TCP" not in layers, "RTP" in protocol


def moves(description: SessionDescription, find_public: FindPublic) -> list[Move]:
    """The streams that `find_public` knows a public endpoint for."""
    found = []
    for stream in streams(description):
        rtp = find_public(stream.rtp)
        if rtp is not None:
            rtcp = rtp if stream.media.is_rtcp_mux else stream.rtcp and find_public(stream.rtcp)
            found.append(_new_tuple(Move, (stream, rtp, rtcp)))
    return found


def edits(description: SessionDescription, moves: Sequence[Move]) -> list[Edit]:
    """What makes those moves, in any order; nothing where all of it is written already.

    The c= lines in force follow: that of the session if all streams that it speaks for move to one address,
    else these get c= lines of their own. The ports of m= follow, and keep their /n, and so does a=rtcp; it is
    added where RTCP is not one port above RTP (RFC 3605), and names the port of RTP where both may share it.
    A stream that offers ICE gets server-reflexive candidates, since the endpoint in c= and m= must be one of
    them (RFC 8839 §4.2.5); those that are there stay as they are.
    """
    made: list[Edit] = []
    shared = _shared_address(description, moves)
    if shared is not None:
        _readdress(made, description.connections, shared)
    for move in moves:
        (media, local, _), public, rtcp = move
        if media.connections:
            _readdress(made, media.connections, public.ip)
        elif (shared or local.ip) != public.ip:
            made.append(_new_line(media, _end_of(_TITLE, media), f"c=IN {address_words(public.ip)}"))
        if public.port != local.port:
            made.append((media.port_span, b"%d" % public.port))
        if rtcp is not None:
            if media.rtcp is not None:
                made += _rtcp_edits(media.rtcp, public, rtcp)
            elif not media.is_rtcp_mux and (line := rtcp_line(public, rtcp)):
                made.append(_new_line(media, _end_of(_BEFORE_ATTRIBUTES, media), line))
        if candidates := media.candidates:
            made += _new_candidates(move, candidates)
    return made


def origin_edits(origin: Origin, *, version: int, ip: IPAddress | None = None) -> list[Edit]:
    """What gives the o= line that version, and if `ip` is given that address (RFC 3264 §8)."""
    made: list[Edit] = []
    if version != origin.version:
        made.append((origin.version_span, b"%d" % version))
    if ip is not None and origin.address != _text(ip) and (old := origin.ip) != ip:
        if type(old) is type(ip):
            made.append((origin.address_span, _text(ip)))
        else:
            made.append((origin.family_address_span, address_words(ip).encode()))
    return made


def _shared_address(description: SessionDescription, moves: Sequence[Move]) -> IPAddress | None:
    """What the session's c= line is to say; None where it has to stay, or is not about what moves."""
    session = description.connection
    if session is None:
        return None
    if len(moves) < len(description.media):
        moving = {id(move.stream.media) for move in moves}
        for media in description.media:
            if media.port and not media.connections and id(media) not in moving:
                return None
    for move in moves:
        if not move.stream.media.connections:
            return move.rtp.ip
    return next((move.rtp.ip for move in moves if move.stream.rtp.ip == session.ip), None)


def _readdress(made: list[Edit], connections: Sequence[Connection], new: IPAddress) -> None:
    """Exchange the address of the first, in all of them that have it."""
    first = connections[0]
    old = first.ip
    if old is None or old == new:
        return
    is_same_family = type(old) is type(new)
    words = _text(new) if is_same_family else address_words(new).encode()
    for connection in connections:
        if connection is first or connection.ip == old:
            span = connection.address_span if is_same_family else connection.family_address_span
            made.append((span, words))


@lru_cache(maxsize=64)
def _text(ip: IPAddress) -> bytes:
    return str(ip).encode()


def _rtcp_edits(line: Rtcp, rtp: Endpoint, new: Endpoint) -> Iterator[Edit]:
    if new.port != line.port:
        yield line.port_span, b"%d" % new.port
    if line.family_address_span is None:
        if new.ip != rtp.ip:
            yield Span(line.port_span.end, line.port_span.end), f" IN {address_words(new.ip)}".encode()
    elif (old := line.endpoint) is not None and old.ip != new.ip:
        yield line.family_address_span, address_words(new.ip).encode()


def _new_candidates(move: Move, present: Sequence[Candidate]) -> Iterator[Edit]:
    stream = move.stream
    wanted = [(1, stream.rtp, move.rtp)]
    if stream.rtcp is not None and move.rtcp is not None and any(it.component == 2 for it in present):
        wanted.append((2, stream.rtcp, move.rtcp))
    foundation = "public"
    while foundation.encode() in (it.foundation for it in present):
        foundation += "1"
    for component, local, public in wanted:
        alike = [it for it in present if it.component == component]
        if public == local or any(it.endpoint == public and it.transport == "UDP" for it in alike):
            continue
        priority = _priority(component, {it.priority for it in alike})
        words = (
            f"a=candidate:{foundation} {component} UDP {priority} {public.ip} {public.port} typ srflx"
            f" raddr {local.ip} rport {local.port}"
        )
        yield _new_line(stream.media, present[-1].span.end, words)


def _priority(component: int, taken: set[int]) -> int:
    """The highest for a server-reflexive candidate that no other of its component has (RFC 8445 §5.1.2.1)."""
    local_preference = 0xFFFF
    while (priority := (_SERVER_REFLEXIVE << 24) + (local_preference << 8) + 256 - component) in taken:
        local_preference -= 1
    return priority


def _end_of(lines: re.Pattern[bytes], media: Media) -> int:
    """Where `lines`, those that follow the m= line, end: before a line break."""
    found = lines.match(media.data, media.line_end, media.span.end)
    return media.line_end if found is None else found.end()


def _new_line(media: Media, place: int, words: str) -> Edit:
    """A line more, behind the one that ends at `place`; it breaks as the line before the m= line does."""
    is_crlf = media.data[media.span.start - 2] == _CARRIAGE_RETURN
    return Span(place, place), ("\r\n" if is_crlf else "\n").encode() + words.encode()
