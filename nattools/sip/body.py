"""Where the session descriptions of a message are: its body, or parts of it (RFC 3261 §7.4, RFC 5621).

Looked into are multipart/mixed, alternative and related, one inside the other. Opaque, and left alone, are
what is signed, encrypted, compressed or encoded, and all other types: an edit there would break them, or hit
what only looks like a description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from nattools.sip.message import SipMessage
from nattools.sip.uri import Span

_SDP = b"application/sdp"
_OPENED = frozenset({b"multipart/mixed", b"multipart/alternative", b"multipart/related"})
_PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary", b"identity"})
_NOT_ENCODED = [b"", b""]
_DEEPEST = 4
_LONGEST_BOUNDARY = 70  # RFC 2046 §5.1.1
_LINE_FEED, _CARRIAGE_RETURN = 0x0A, 0x0D

_PLACE = itemgetter(0)
_PARAM = re.compile(rb'\s*+;\s*+([^\s=;"]*+)\s*+(?:=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*+)))?', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:[ \t]*+([^\r\n]*+(?:\r?\n[ \t][^\r\n]*+)*+)\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n")
_LENGTH = re.compile(rb"[0-9]+")


class Length(NamedTuple):
    """A Content-Length inside the body: where its number stands, and what the size of its part really is."""

    span: Span
    size: int


class Part(NamedTuple):
    """A session description in a message: where it is, and the lengths inside the body that count it."""

    span: Span
    lengths: tuple[Length, ...] = ()


class _Entity(NamedTuple):
    """A part with headers of its own, or the message: type, encodings and place of what it carries."""

    content_type: bytes
    encodings: Sequence[bytes]
    span: Span
    length: Span | None = None


def sdp_parts(message: SipMessage) -> list[Part]:
    """The session descriptions of `message` that can be edited, in their order.

    There are none in a body of which nobody knows where it ends (`SipMessage.length_error`).
    """
    content_type = message.first_value("content-type")
    if not content_type or message.length_error:
        return []
    encodings = [message.first_value("content-encoding"), message.first_value("content-transfer-encoding")]
    span = message.body_span
    if content_type == _SDP and encodings == _NOT_ENCODED and span.start < span.end:
        return [Part(span)]  # as below, for the usual message
    entity = _Entity(content_type, encodings, span)
    return list(_parts(message.data, entity, (), _DEEPEST))


def edit_parts(message: SipMessage, edited: Iterable[tuple[Part, Sequence[tuple[Span, bytes]]]]) -> None:
    """Edit parts of `message`, all in one call, and the lengths that count them; `encode` does the message's.

    Raises `ValueError` where an edit overlaps another.
    """
    growths: dict[Length, int] = {}
    for part, edits in edited:
        if not edits:
            continue
        span, new = edits[0] if len(edits) == 1 else _joined(message.data, edits)
        message.edit(span, new)
        for length in part.lengths:
            growths[length] = growths.get(length, 0) + len(new) - (span.end - span.start)
    for length, growth in growths.items():
        if growth:
            message.edit(length.span, b"%d" % (length.size + growth))


def _joined(data: bytes, edits: Sequence[tuple[Span, bytes]]) -> tuple[Span, bytes]:
    """One edit that does what these do, with what lies between them."""
    ordered = sorted(edits, key=_PLACE)
    first = position = ordered[0][0].start
    pieces = []
    for (start, end), replacement in ordered:
        if start > position:
            pieces.append(data[position:start])
        elif start < position:
            raise ValueError(f"what is edited up to {position} is edited from {start} on as well")
        pieces.append(replacement)
        position = end
    return Span(first, position), b"".join(pieces)


def _parts(data: bytes, entity: _Entity, outer: tuple[Length, ...], depth: int) -> Iterator[Part]:
    if any(encoding.strip().lower() not in _PLAIN_ENCODINGS for encoding in entity.encodings):
        return
    start, end = entity.span
    lengths = outer if entity.length is None else (*outer, Length(entity.length, end - start))
    content_type = entity.content_type.partition(b";")[0].strip().lower()
    if content_type == _SDP and start < end:
        yield Part(entity.span, lengths)
    elif content_type in _OPENED and depth and (boundary := _boundary(entity.content_type)):
        for span in _between(data, entity.span, boundary):
            inner = _entity(data, span)
            if inner is not None:
                yield from _parts(data, inner, lengths, depth - 1)


def _boundary(content_type: bytes) -> bytes:
    """The boundary that a multipart type names; empty where there is none that can be."""
    position = len(content_type.partition(b";")[0])
    while (match := _PARAM.match(content_type, position)) is not None:
        if match[1].lower() == b"boundary":
            boundary = match[3] if match[2] is None else _ESCAPED.sub(rb"\1", match[2])
            return boundary if boundary and len(boundary) <= _LONGEST_BOUNDARY else b""
        position = match.end()
    return b""


def _between(data: bytes, span: Span, boundary: bytes) -> Iterator[Span]:
    """What lies between the delimiter lines, without preamble and epilogue (RFC 2046 §5.1.1)."""
    part_start = -1
    for line_start, line_end, is_last in _delimiters(data, span, b"--" + boundary):
        if part_start >= 0:
            yield Span(part_start, max(part_start, line_start))
        part_start = line_end
        if is_last:
            return
    if part_start >= 0:
        yield Span(part_start, span.end)


def _delimiters(data: bytes, span: Span, mark: bytes) -> Iterator[tuple[int, int, bool]]:
    """Each delimiter line: where the line break before it starts, where it ends, whether it is the last."""
    start, end = span
    place = data.find(mark, start, end)
    while place >= 0:
        rest = place + len(mark)
        if place == start or data[place - 1] == _LINE_FEED:
            is_last = data.startswith(b"--", rest, end)
            line_end = data.find(b"\n", rest, end) + 1 or end
            if not data[rest + 2 * is_last : line_end].strip(b" \t\r\n"):
                line_start = place - 1 if place > start else place
                if line_start > start and data[line_start - 1] == _CARRIAGE_RETURN:
                    line_start -= 1
                yield line_start, line_end, is_last
        place = data.find(mark, rest, end)


def _entity(data: bytes, span: Span) -> _Entity | None:
    """Read the headers of a part (RFC 2045 §3); None where no empty line ends them."""
    content_type, encodings, length = b"text/plain", [], None
    position, end = span
    while (field := _FIELD.match(data, position, end)) is not None:
        name = field[1].lower()
        if name in (b"content-type", b"c"):
            content_type = field[2]
        elif name in (b"content-encoding", b"e", b"content-transfer-encoding"):
            encodings.append(field[2])
        elif name in (b"content-length", b"l") and (number := _LENGTH.match(data, *field.span(2))):
            length = Span(*number.span())
        position = field.end()
    if (empty := _EMPTY_LINE.match(data, position, end)) is None:
        return None
    return _Entity(content_type, encodings, Span(empty.end(), end), length)
