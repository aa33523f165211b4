"""A SIP message that is edited in place (RFC 3261 §7): what nobody edits comes back bit for bit.

`SipMessage.parse` finds where each header stands and looks into none of them. What the values mean is read
when it is asked for. Every answer has spans into `data`, and `encode` puts in what `edit` was told.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from nattools.errors import DecodeError, EncodeError
from nattools.sip.headers import KNOWN_NAMES, LIST_NAMES, NameAddress, Via, canonical_name, split_list
from nattools.sip.uri import Span, show

_new_tuple = tuple.__new__  # a NamedTuple's own constructor is Python, and takes twice the time

# Every repetition is possessive where another one follows, so that no text takes more than linear time.
_METHOD = re.compile(rb"([A-Za-z0-9\-.!%*_+`'~]++)[ \t]++")
_STATUS_LINE = re.compile(rb"SIP/2\.0[ \t]++([1-6][0-9]{2})(?:[ \t]++|\Z)", re.IGNORECASE)
_COMMON_METHODS = {
    name.encode(): name
    for name in ("INVITE", "ACK", "BYE", "CANCEL", "REGISTER", "OPTIONS", "UPDATE", "NOTIFY", "SUBSCRIBE")
}
_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+")
_CSEQ = re.compile(rb"0*+([0-9]{1,10})\s++([A-Za-z0-9\-.!%*_+`'~]++)\Z")
_TAG = re.compile(
    rb'(?:[^"<;]++|"(?:[^"\\]++|\\.)*+"|<[^>]*+>|;(?!\s*+tag\s*+=))*+;\s*+tag\s*+=\s*+([^\s;,]++)',
    re.IGNORECASE | re.DOTALL,
)
_FOLD = re.compile(rb"\r?\n[ \t]*+")
_BLANK = b" \t\r\n\v\f"
_VERSION = b"SIP/2.0"
_LARGEST_CSEQ = 0xFFFFFFFF
_MOST_DIGITS = 10  # of a Content-Length
_COMMON_CODES = frozenset(b"%d" % code for code in range(100, 700))


class Header(NamedTuple):
    """One header field: its name in lower case and in full, and where it stands.

    `value_span` includes line folds, but no blanks around the value; `line_span` is the field with its CRLF.
    """

    name: str
    name_span: Span
    value_span: Span
    line_span: Span


def parse_start_line(line: bytes, start: int = 0) -> tuple[str, Span | None, int | None, bytes]:
    """Read a Request-Line (RFC 3261 §7.1) or a Status-Line (§7.2), which stands at `start`.

    The first two are the method and where the Request-URI stands, the others the status code and the reason;
    those of the other kind are empty or None. Odd spacing is taken. Raises `DecodeError`.
    """
    words = line.split(b" ", 3)
    first = words[0]
    method = _COMMON_METHODS.get(first)
    if method is not None:
        if len(words) == 3 and words[2] == b"SIP/2.0\r\n" and words[1][:1] > b" ":
            place = start + len(first) + 1
            return method, _new_tuple(Span, (place, place + len(words[1]))), None, b""
    elif first == _VERSION and len(words) > 2 and words[1] in _COMMON_CODES and words[2][:1] > b" ":
        return "", None, int(words[1]), line[12:].rstrip(_BLANK)
    line = line.rstrip(_BLANK)
    match = _STATUS_LINE.match(line)
    if match is not None:
        return "", None, int(match[1]), line[match.end() :]
    match = _METHOD.match(line)
    is_request = line[-7:].upper() == _VERSION and line[-8:-7] in (b" ", b"\t")
    if match is None or not is_request or match.end() > len(line) - 8:
        raise DecodeError(f"{show(line)} is not the first line of a SIP/2.0 request or response")
    place = start + match.end()
    uri = line[match.end() : -8].rstrip(_BLANK)
    return match[1].decode(), Span(place, place + len(uri)), None, b""


class SipMessage:
    """One SIP request or response as it came, made by `parse`.

    What it says of itself is always about the message that was parsed, whatever was edited since. Headers
    are asked for by their names in lower case and in full. Of a response `request_uri` is None, of a request
    `status_code`. `length_error` is empty, or says why nobody knows where the body ends: then it cannot be
    edited, `content_length` is None, and `body_span` is all that follows the headers.
    """

    __slots__ = (
        "_body_growth",
        "_body_span",
        "_contacts",
        "_content_length",
        "_cseq",
        "_edits",
        "_from_tag",
        "_length_error",
        "_lengths",
        "_line_starts",
        "_lines",
        "_method",
        "_names",
        "_replacements",
        "_to_tag",
        "_top_via",
        "data",
        "reason",
        "request_uri",
        "status_code",
    )

    def __init__(self, data: bytes) -> None:
        start = 0 if data[:1] > b"\r" else len(data) - len(data.lstrip(b"\r\n"))
        line_end = data.find(b"\n", start) + 1 or len(data)
        self.data = data
        self._method, self.request_uri, self.status_code, self.reason = parse_start_line(
            data[start:line_end], start
        )
        head = data[line_end : data.find(b"\r\n\r\n", line_end - 2) + 2]
        lines = head.splitlines(keepends=True)
        known = KNOWN_NAMES.get
        try:
            names = [known(line.partition(b":")[0]) or canonical_name(line) for line in lines]
        except DecodeError:  # a folded line, or an empty one: the headers end earlier
            names = []
        if not names or len(lines) != head.count(b"\n"):  # a bare CR is no line end here
            lines = _split_fields(data, line_end)
            names = [canonical_name(line) for line in lines]
        self._lines = lines  # each header field with its folds
        self._names = names
        self._line_starts = [line_end]  # of each header, and where the empty line after them begins
        for line in lines:
            line_end += len(line)
            self._line_starts.append(line_end)
        self._body_span: Span | None = None  # until somebody asks; then the next three are set as well
        self._content_length: int | None = None
        self._length_error = ""
        self._lengths: list[Span] = []
        self._contacts: tuple[NameAddress, ...] | None = None  # what was read once is kept
        self._cseq: tuple[int, str] | None = None
        self._from_tag: bytes | None = None
        self._to_tag: bytes | None = None
        self._top_via: Via | None = None
        self._edits: list[Span] = []  # in their order in `data`, without overlap
        self._replacements: list[bytes] = []
        self._body_growth = 0

    @classmethod
    def parse(cls, data: bytes) -> SipMessage:
        """Read one message; line ends may be bare LF, and empty lines may stand before it (RFC 3261 §7.5).

        Values of headers are not looked into. Raises `DecodeError` when the start line is not one of
        SIP/2.0, a header has no colon, or no empty line ends the headers.
        """
        return cls(data)

    def unedited(self) -> SipMessage:
        """Another one of the bytes that this one was parsed from, to be edited apart from it."""
        other = SipMessage.__new__(SipMessage)
        for name in SipMessage.__slots__:
            setattr(other, name, getattr(self, name))
        other._edits, other._replacements, other._body_growth = [], [], 0
        return other

    def encode(self) -> bytes:
        """The message with its edits; without any, exactly the bytes that it was parsed from.

        Where the size of the body has changed, so do its Content-Length headers, unless they were edited
        themselves. Where there is none and the message goes over a stream (by its top Via), one is added.
        """
        edits, replacements, data = self._edits, self._replacements, self.data
        if not edits:
            return data
        if self._body_growth:
            edits, replacements = self._with_lengths()
        pieces: list[bytes] = []
        position = 0
        for (start, end), replacement in zip(edits, replacements, strict=True):
            pieces += (data[position:start], replacement)
            position = end
        pieces.append(data[position:])
        return b"".join(pieces)

    def _with_lengths(self) -> tuple[list[Span], list[bytes]]:
        """The edits, and those that make Content-Length right."""
        edits, replacements = self._edits.copy(), self._replacements.copy()
        start, end = self.body_span
        size = b"%d" % (end - start + self._body_growth)
        for span in self._lengths:
            _insert(edits, replacements, span, size)
        if not self._lengths and self._is_for_a_stream:
            place = self._line_starts[-1]
            _insert(edits, replacements, Span(place, place), b"Content-Length: %b\r\n" % size)
        return edits, replacements

    @property
    def _is_for_a_stream(self) -> bool:
        try:
            via = self.top_via
        except DecodeError:
            return False
        return via is not None and via.transport != "UDP"

    @property
    def is_edited(self) -> bool:
        """Whether `edit` was called, even if it changed nothing."""
        return bool(self._edits)

    def edit(self, span: Span, replacement: bytes) -> None:
        """Have `encode` write `replacement` in place of `span`; an empty span inserts.

        What is inserted twice at one place stands in the order of the calls. Raises `ValueError` when the
        span overlaps one that was edited before, is neither wholly in the headers (or the start line) nor
        wholly in the body, or is in a body of which nobody knows where it ends.
        """
        start, end = span
        growth = 0
        if not 0 <= start <= end <= self._line_starts[-1]:
            body_start, body_end = self.body_span
            if self._length_error and end > body_start:
                raise ValueError(f"the body cannot be edited: {self._length_error}")
            if not body_start <= start <= end <= body_end:
                raise ValueError(f"{span} is neither in the headers nor in the body {self.body_span}")
            growth = len(replacement) - (end - start)
        if not _insert(self._edits, self._replacements, span, replacement):
            raise ValueError(f"{span} overlaps what was edited before")
        self._body_growth += growth

    def replace_body(self, new: bytes) -> None:
        """Have `encode` write another body and its size. Raises `ValueError` as `edit` does."""
        self.edit(self.body_span, new)

    def insert_header_before(self, header: Header | None, name: str, value: str | bytes) -> None:
        """Insert a header field before another one, or before all. Raises `EncodeError`."""
        place = self._line_starts[0] if header is None else header.line_span.start
        self.edit(Span(place, place), _compose_field(name, value))

    def insert_header_after(self, header: Header | None, name: str, value: str | bytes) -> None:
        """Insert a header field after another one, or after all. Raises `EncodeError`."""
        place = self._line_starts[-1] if header is None else header.line_span.end
        self.edit(Span(place, place), _compose_field(name, value))

    def remove_header(self, header: Header) -> None:
        """Remove a header field with its line end. Raises `ValueError` where it was edited before."""
        self.edit(header.line_span, b"")

    @property
    def is_request(self) -> bool:
        """Whether it is a request; else it is a response."""
        return self.status_code is None

    @property
    def method(self) -> str:
        """The method, as it was written; of a response that of its CSeq, empty where there is none."""
        if self._method:
            return self._method
        cseq = self.cseq
        return "" if cseq is None else cseq[1]

    @property
    def headers(self) -> tuple[Header, ...]:
        """All header fields in their order."""
        return tuple(map(self._header, range(len(self._names))))

    def header(self, name: str) -> Header | None:
        """The first header field of that name, or None."""
        return self._header(self._names.index(name)) if name in self._names else None

    def headers_named(self, name: str) -> tuple[Header, ...]:
        """All header fields of that name, in their order."""
        return tuple(map(self._header, self._indexes(name)))

    def _indexes(self, name: str) -> list[int]:
        names = self._names
        number = names.count(name)
        if number == 0:
            return []
        if number == 1:
            return [names.index(name)]
        return [index for index, other in enumerate(names) if other == name]

    def _header(self, index: int) -> Header:
        start, end = self._line_starts[index : index + 2]
        name_end = start + len(self._lines[index].partition(b":")[0].rstrip(_BLANK))
        name_span, line_span = _new_tuple(Span, (start, name_end)), _new_tuple(Span, (start, end))
        return _new_tuple(Header, (self._names[index], name_span, self._value_span(index), line_span))

    def _value_span(self, index: int) -> Span:
        data = self.data
        start = data.index(b":", self._line_starts[index]) + 1
        end = self._line_starts[index + 1]
        if data[start] == 0x20 and data[start + 1] > 0x20 and data[end - 3] > 0x20 and data[end - 2] == 0x0D:
            return _new_tuple(Span, (start + 1, end - 2))
        value = data[start:end]
        inner = value.strip(_BLANK)
        # An empty value stands where one would be written.
        start += value.index(inner[0]) if inner else int(value[:1] == b" ")
        return _new_tuple(Span, (start, start + len(inner)))

    def value(self, header: Header | None) -> bytes:
        """The value of a header with its folds undone (RFC 3261 §7.3.1); empty for None."""
        if header is None:
            return b""
        value = self.data[slice(*header.value_span)]
        return _FOLD.sub(b" ", value) if b"\n" in value else value

    def first_value(self, name: str) -> bytes:
        """The value of the first header of that name as it is written, with its folds, or empty."""
        if name not in self._names:
            return b""
        return self._lines[self._names.index(name)].partition(b":")[2].strip(_BLANK)

    def values(self, name: str) -> list[Span]:
        """Where the values of all headers of that name are, in their order: those of a comma list singly."""
        indexes = self._indexes(name)
        if not indexes:
            return []
        spans = [self._value_span(index) for index in indexes]
        if name not in LIST_NAMES:
            return spans
        if len(spans) == 1:
            return split_list(self.data, spans[0])
        return [element for span in spans for element in split_list(self.data, span)]

    @property
    def top_via(self) -> Via | None:
        """The first Via value; None where there is none. Raises `DecodeError` when it is malformed."""
        if self._top_via is None and "via" in self._names:
            span = self._value_span(self._names.index("via"))
            if self.data.find(b",", span[0], span[1]) >= 0:
                span = next(iter(split_list(self.data, span)), span)
            self._top_via = Via.parse(self.data, span)
        return self._top_via

    @property
    def branch(self) -> bytes | None:
        """The branch of the top Via, or None. Raises `DecodeError` when the Via is malformed."""
        via = self.top_via
        return None if via is None else via.branch

    @property
    def contacts(self) -> list[NameAddress]:
        """All values of all Contact headers. Raises `DecodeError` when any is malformed."""
        if self._contacts is None:
            spans = self.values("contact")
            self._contacts = tuple([NameAddress.parse(self.data, span) for span in spans])
        return list(self._contacts)

    @property
    def call_id(self) -> bytes:
        """The Call-ID; empty where there is none."""
        value = self.first_value("call-id")
        return _FOLD.sub(b" ", value) if b"\n" in value else value

    @property
    def cseq(self) -> tuple[int, str] | None:
        """The number and the method of CSeq; None where there is none, or one that cannot be."""
        if self._cseq is None:
            match = _CSEQ.match(self.first_value("cseq"))
            if match is not None and int(match[1]) <= _LARGEST_CSEQ:
                self._cseq = int(match[1]), match[2].decode()
        return self._cseq

    @property
    def from_tag(self) -> bytes | None:
        """The tag of From, or None."""
        if self._from_tag is None:
            self._from_tag = self._tag("from")
        return self._from_tag

    @property
    def to_tag(self) -> bytes | None:
        """The tag of To, or None: then the request is not inside a dialog (RFC 3261 §12.2)."""
        if self._to_tag is None:
            self._to_tag = self._tag("to")
        return self._to_tag

    def _tag(self, name: str) -> bytes | None:
        match = _TAG.match(self.first_value(name))
        return None if match is None else match[1]

    @property
    def content_type(self) -> str:
        """The media type in lower case, without its parameters (`application/sdp`), or empty."""
        return self.first_value("content-type").partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def content_length(self) -> int | None:
        """What Content-Length says; None where there is none, or by `length_error` none that can be."""
        if self._body_span is None:
            self._find_body()
        return self._content_length

    @property
    def length_error(self) -> str:
        """Why nobody knows where the body ends; empty where it is known."""
        if self._body_span is None:
            self._find_body()
        return self._length_error

    @property
    def body(self) -> bytes:
        """The bytes of the body."""
        return self.data[slice(*self.body_span)]

    @property
    def body_span(self) -> Span:
        """Where the body is: as long as Content-Length says, or without one to the end of the datagram.

        What follows it is no part of the message, and stays where it is (RFC 3261 §18.3).
        """
        return self._body_span or self._find_body()

    def _find_body(self) -> Span:
        start = self._line_starts[-1]
        start += 2 if self.data[start] == 0x0D else 1
        end = len(self.data)
        self._lengths = [self._value_span(index) for index in self._indexes("content-length")]
        try:
            length = self._read_length()
        except DecodeError as error:
            length = None
            self._length_error = str(error)
        if length is not None and length > end - start:
            self._length_error = f"Content-Length says {length}, {end - start} bytes follow"
        elif length is not None:
            self._content_length = length
            end = start + length
        self._body_span = _new_tuple(Span, (start, end))
        return self._body_span

    @property
    def declared_length(self) -> int | None:
        """What Content-Length says, whatever follows the headers; None where there is none.

        Raises `DecodeError` when it says no number, or several.
        """
        if self._body_span is None:
            self._find_body()
        return self._read_length()

    def _read_length(self) -> int | None:
        length = None
        for start, end in self._lengths:
            value = self.data[start:end]
            if not value.isdigit() or len(value := value.lstrip(b"0")) > _MOST_DIGITS:
                raise DecodeError(f"Content-Length says {show(value)}")
            number = int(value or b"0")
            if length is not None and length != number:
                raise DecodeError(f"Content-Length says {length}, and {number} as well")
            length = number
        return length


def _split_fields(data: bytes, start: int) -> list[bytes]:
    """Split the header fields from `start` on, where lines may be folded or end in LF alone.

    Raises `DecodeError` where no empty line ends them.
    """
    fields: list[bytes] = []
    while data[start : start + 1] != b"\n" and data[start : start + 2] != b"\r\n":
        end = data.find(b"\n", start) + 1
        while end and data[end : end + 1] in (b" ", b"\t"):
            end = data.find(b"\n", end) + 1
        if not end:
            raise DecodeError(f"no empty line ends the headers; the last of them is {show(data[start:])}")
        fields.append(data[start:end])
        start = end
    return fields


def _insert(edits: list[Span], replacements: list[bytes], span: Span, replacement: bytes) -> bool:
    """Put an edit where it belongs; False where it overlaps another one."""
    start, end = span
    if not edits or edits[-1].end <= start:  # most are made in their order
        edits.append(span)
        replacements.append(replacement)
        return True
    index = bisect_right(edits, span)
    if (index and edits[index - 1].end > start) or (index < len(edits) and edits[index].start < end):
        return False
    edits.insert(index, span)
    replacements.insert(index, replacement)
    return True


def _compose_field(name: str, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if not _TOKEN.fullmatch(name):
        raise EncodeError(f"{name[:60]!r} is not the name of a header")
    if b"\r" in data or b"\n" in data:
        raise EncodeError(f"a value of {name} with a line break: {show(data)}")
    return b"%b: %b\r\n" % (name.encode(), data)


def _compose(start_line: str, fields: Iterable[bytes], body: bytes) -> bytes:
    if "\r" in start_line or "\n" in start_line:
        raise EncodeError(f"a first line with a line break: {start_line[:60]!r}")
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"".join((start_line.encode(), b"\r\n", *fields, length, body))


def compose_request(
    method: str, uri: str, headers: Iterable[tuple[str, str | bytes]], body: bytes = b""
) -> bytes:
    """Write a request (RFC 3261 §7.1) with these headers in this order, and Content-Length, which is added.

    Raises `EncodeError` where a name or value would break out of its line.
    """
    if not _TOKEN.fullmatch(method):
        raise EncodeError(f"{method[:60]!r} is not a method")
    if not uri or uri.split() != [uri]:
        raise EncodeError(f"{uri[:60]!r} is not a URI to send a request to")
    return _compose(f"{method} {uri} SIP/2.0", (_compose_field(*header) for header in headers), body)


def compose_response(
    request: SipMessage,
    status_code: int,
    reason: str,
    headers: Iterable[tuple[str, str | bytes]] = (),
    body: bytes = b"",
    *,
    to_tag: str = "",
) -> bytes:
    """Write a response to `request`: what it repeats of it, then these headers, and Content-Length.

    It repeats Via, From, To, Call-ID and CSeq (RFC 3261 §8.2.6.2), of 101 to 299 Record-Route (§12.1.1), and
    of 100 Timestamp. `to_tag` is added to a To that has none. Raises `EncodeError`.
    """
    if not 100 <= status_code <= 699:
        raise EncodeError(f"{status_code} is not a status code (100 to 699)")
    if not request.is_request:
        raise EncodeError("a response answers a request, not a response")
    if to_tag and not _TOKEN.fullmatch(to_tag):
        raise EncodeError(f"{to_tag[:60]!r} is not a tag")
    repeated = ["via", "from", "to", "call-id", "cseq"]
    if 100 < status_code < 300:
        repeated.append("record-route")
    if status_code == 100:
        repeated.append("timestamp")
    fields = []
    for name, line in zip(request._names, request._lines, strict=True):
        if name in repeated:
            value = _FOLD.sub(b" ", line.partition(b":")[2].strip(_BLANK)).replace(b"\r", b" ")
            if name == "to" and to_tag and request.to_tag is None:
                value += b";tag=" + to_tag.encode()
            fields.append(_compose_field(_WRITTEN.get(name, name.title()), value))
    fields += (_compose_field(*header) for header in headers)
    return _compose(f"SIP/2.0 {status_code} {reason}", fields, body)


_WRITTEN = {"call-id": "Call-ID", "cseq": "CSeq"}
