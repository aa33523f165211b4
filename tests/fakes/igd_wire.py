"""How a fake router reads what comes in, and the responses that it sends."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from collections.abc import Iterable
from http import HTTPStatus
from xml.etree import ElementTree as ET

from tests.fakes.igd_descriptions import Arguments, encoded

_DATA_SEGMENTS_IN = 152  # tcpi_data_segs_in of <linux/tcp.h>


def matches(target: str, advertised: str) -> bool:
    """Whether a device answers a search; also one for a lower version (UDA 1.1 §1.3.2)."""
    if target in ("ssdp:all", advertised):
        return True
    (wanted, _, least), (name, _, version) = target.rpartition(":"), advertised.rpartition(":")
    return wanted == name and least.isdecimal() and version.isdecimal() and int(least) <= int(version)


def headers_in(lines: Iterable[str]) -> dict[str, str]:
    """The headers by name in lower case; the last of a name counts."""
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def response(status: HTTPStatus | str, body: bytes = b"", *headers: str) -> bytes:
    """A whole HTTP response."""
    line = status if isinstance(status, str) else f"{int(status)} {status.phrase}"
    own = ('Content-Type: text/xml; charset="utf-8"', f"Content-Length: {len(body)}", "Connection: close")
    return encoded("\r\n".join([f"HTTP/1.1 {line}", *own, *headers, "", ""])) + body


def arguments_in(body: bytes, *, is_naive: bool) -> Arguments | None:
    """The in arguments of an action; None for what this router cannot read."""
    if is_naive and (re.search(rb"&(?!lt;|gt;|amp;)", body) or b":Envelope" not in body):
        return None
    try:
        action = ET.fromstring(body)[0][0]
    except (ET.ParseError, IndexError):
        return None
    return {argument.tag.rpartition("}")[2]: argument.text or "" for argument in action}


def data_segments(writer: asyncio.StreamWriter) -> int | None:
    """How many segments with data a connection has brought; None where the system does not say."""
    if sys.platform != "linux":
        return None
    information = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (number,) = struct.unpack_from("=I", information, _DATA_SEGMENTS_IN)
    return int(number)
