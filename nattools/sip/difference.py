"""What differs, field by field, between a SIP message as it was sent and as it arrived."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nattools.sip.headers import COMPACT_NAMES

REQUEST_URI, STATUS_LINE, LAYOUT = "Request-URI", "status line", "layout"
_LONGEST_VALUE = 200

_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class TouchedField:
    """One field that arrived otherwise than it was sent, by the name that it has in the message.

    A line of a session description is named by its type and attribute: `c=`, `a=rtcp`. `REQUEST_URI` is the
    first line of a request; `LAYOUT` stands for order, blanks and line ends where no value differs.
    A field that is missing is empty on its side.
    """

    name: str
    sent: str
    arrived: str

    def __str__(self) -> str:
        if not self.sent and not self.arrived:
            return f"{self.name}: other blanks, line ends or order"
        label = self.name if self.name.endswith("=") else f"{self.name}: "
        return f"{label}{self.sent or 'nothing'} arrived as {self.arrived or 'nothing'}"


def touched_fields(sent: bytes, arrived: bytes) -> tuple[TouchedField, ...]:
    """The fields that differ, in the order of what was sent; none where every octet is the same.

    Of several fields of one name the first is compared with the first. Takes any bytes.
    """
    if sent == arrived:
        return ()
    was, now = _fields(sent), _fields(arrived)
    touched = tuple(
        TouchedField(_name(key, was, now), _value(was.get(key, b"")), _value(now.get(key, b"")))
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    )
    return touched or (TouchedField(LAYOUT, "", ""),)


def _fields(message: bytes) -> dict[_Key, bytes]:
    """Every line by the name of its field, and how many of that name stand before it."""
    head, _, body = message.partition(b"\r\n\r\n")
    seen: Counter[str] = Counter()
    fields: dict[_Key, bytes] = {}

    def add(name: str, line: bytes) -> None:
        fields[name, seen[name]] = line
        seen[name] += 1

    first, *lines = head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n")
    add(STATUS_LINE if first[:4].upper() == b"SIP/" else REQUEST_URI, first)
    for line in lines:
        name = line.partition(b":")[0].strip().lower().decode("latin-1")
        add(COMPACT_NAMES.get(name, name), line)
    for line in body.splitlines():
        kind = line.partition(b":")[0] if line.startswith(b"a=") else line[:2]
        add(kind.decode("latin-1"), line)
    return fields


def _name(key: _Key, was: dict[_Key, bytes], now: dict[_Key, bytes]) -> str:
    """The name as whoever wrote the field wrote it."""
    line = was.get(key) or now.get(key) or b""
    if key[0] in (REQUEST_URI, STATUS_LINE) or key[0][1:2] == "=":
        return key[0]
    return line.partition(b":")[0].strip().decode("latin-1")[:_LONGEST_VALUE] or LAYOUT


def _value(line: bytes) -> str:
    """What stands behind the name of a header, or the type of a line of SDP; of a first line all of it."""
    if line[1:2] == b"=":
        text = (line[:1] == b"a" and line.partition(b":")[2]) or line[2:]
    elif line.partition(b":")[0].strip().replace(b"-", b"").isalnum():
        text = line.partition(b":")[2]
    else:
        text = line
    return text.strip().decode("latin-1")[:_LONGEST_VALUE]
