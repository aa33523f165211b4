"""SIP over TCP and TLS: where each message ends (RFC 3261 §18.3), and CRLFs between them (RFC 5626 §4.4.1).

A message without Content-Length counts as one without a body. RFC 3261 §18.3 calls that an error, but
senders leave it out where they have no body. A body that nobody announced begins no next message, and is a
`DecodeError` all the same.
"""

from __future__ import annotations

import re

from nattools.errors import DecodeError
from nattools.sip.message import SipMessage, parse_start_line
from nattools.sip.uri import show

MOST_MESSAGE_BYTES = 0xFFFF
"""What one message may have, headers and body: as much as a datagram."""

_HEADERS_END = re.compile(rb"\n\r?\n")
_BEGINNING = re.compile(rb"[A-Za-z0-9\-.!%*_+`'~]{1,40}+(?:\Z|[ \t])|SIP/", re.IGNORECASE)
_LONGEST_BEGINNING = 41


class SipStream:
    """Cuts the bytes of one connection into messages: `feed` what arrives, then take all `next_message`s.

    Taken so, it never holds more than one message that is not whole, and what was fed last. `pings` counts
    the double CRLFs that came between messages, each of which a server answers with one CRLF. `pongs` counts
    the CRLFs, each of which a client that has sent a ping takes for the answer.
    """

    def __init__(self) -> None:
        self.pings = 0
        self.pongs = 0
        self._held = bytearray()
        self._searched = 0  # how much of what is held was looked through in vain
        self._has_start_line = False
        self._size: int | None = None  # of the message that is held, where its headers are whole
        self._is_second = False  # whether a CRLF now is the second one of a ping
        self._error: DecodeError | None = None

    @property
    def is_between_messages(self) -> bool:
        """Whether no message has begun that is not whole."""
        return not self._held

    def feed(self, data: bytes) -> None:
        """Take bytes in the order that they arrived in."""
        if self._error is None:
            self._held += data

    def next_message(self) -> bytes | None:
        """Take the next message, or None until more has come.

        Raises `DecodeError` as soon as what came cannot be SIP, or is too large. Nobody knows then where the
        next message begins: the connection is of no more use, and each further call raises it again.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._take_message()
        except DecodeError as error:
            self._error = error
            self._held.clear()
            raise

    def _take_message(self) -> bytes | None:
        held = self._held
        if not self._searched:
            self._take_line_ends()
        if self._size is None and held and held[0] != 0x0D:
            self._size = self._find_size()
        size = self._size
        if size is None or len(held) < size:
            return None
        message = bytes(held[:size])
        del held[:size]
        self._searched, self._has_start_line, self._size, self._is_second = 0, False, None, False
        return message

    def _take_line_ends(self) -> None:
        """Take what stands before a message, and count it; a CR alone waits for what comes after it."""
        held = self._held
        end = len(held) - len(held.lstrip(b"\r\n"))
        if end == len(held) and held.endswith(b"\r"):
            end -= 1
        for _ in range(held.count(b"\r\n", 0, end)):
            self.pongs += 1
            self.pings += self._is_second
            self._is_second = not self._is_second
        del held[:end]

    def _find_size(self) -> int | None:
        """How large the message is that is held, or None while its headers are not whole."""
        held = self._held
        if not self._has_start_line:
            self._has_start_line = self._check_start_line()
        match = _HEADERS_END.search(held, max(self._searched - 2, 0)) if self._has_start_line else None
        if match is None:
            self._searched = len(held)
            if len(held) > MOST_MESSAGE_BYTES:
                raise DecodeError(f"headers without an end in {len(held)} bytes; a message has no more")
            return None
        head = SipMessage.parse(bytes(held[: match.end()]))
        size = match.end() + (head.declared_length or 0)
        if size > MOST_MESSAGE_BYTES:
            raise DecodeError(f"a message of {size} bytes; {MOST_MESSAGE_BYTES} is the most that is taken")
        return size

    def _check_start_line(self) -> bool:
        """Whether the start line is whole. Raises `DecodeError` when it is none, or cannot become one."""
        held = self._held
        end = held.find(b"\n", max(self._searched - 1, 0)) + 1
        if end:
            parse_start_line(bytes(held[:end]))
            self._searched = end
            return True
        if not _BEGINNING.match(held):
            raise DecodeError(f"{show(bytes(held[:_LONGEST_BEGINNING]))} does not begin a SIP message")
        return False
