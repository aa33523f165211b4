"""A client of RFC 3489 with shared secrets, over blocking sockets, and with nothing of the package in it."""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
import struct
from contextlib import closing

Address = tuple[str, int]

_TIME_LIMIT_S = 20.0
_INTEGRITY = struct.pack("!HH", 8, 20)


class ClassicPhone:
    """Fetches a secret over TLS, and asks where it is seen by UDP."""

    def __init__(self, server: Address, trusting: ssl.SSLContext, name: str) -> None:
        """`server` must show a certificate for `name` that `trusting` takes."""
        self.server = server
        self._trusting = trusting
        self._name = name

    def fetch_secret(self) -> tuple[bytes, bytes]:
        """USERNAME and PASSWORD, by a Shared Secret Request on the port of plain STUN (RFC 3489 §9.3)."""
        asking = struct.pack("!HH", 2, 0) + secrets.token_bytes(16)
        plain = socket.create_connection(self.server, _TIME_LIMIT_S)
        with closing(self._trusting.wrap_socket(plain, server_hostname=self._name)) as secured:
            secured.sendall(asking)
            reply = _receive(secured, 20)
            assert (reply[:2], reply[4:]) == (b"\1\2", asking[4:])
            reply += _receive(secured, int.from_bytes(reply[2:4], "big"))
        values, position = {}, 20
        while position < len(reply):
            kind, size = struct.unpack_from("!HH", reply, position)
            values[kind] = reply[position + 4 : position + 4 + size]
            position += 4 + size  # there is no padding in RFC 3489: values are of whole words
        return values[6], values[7]

    def ask(self, username: bytes, password: bytes) -> int:
        """Send a sealed Binding request from a new socket: 0 for a success sealed alike, or its code."""
        attributes = struct.pack("!HH", 6, len(username)) + username
        covered = struct.pack("!HH", 1, len(attributes) + 24) + secrets.token_bytes(16) + attributes
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(_TIME_LIMIT_S)
            sock.sendto(covered + _INTEGRITY + _seal(covered, password), self.server)
            reply = sock.recv(2048)
        assert reply[4:20] == covered[4:20]
        if reply[:2] == b"\1\1":
            assert reply[-24:] == _INTEGRITY + _seal(reply[:-24], password)
            return 0
        assert reply[:2] == b"\1\x11"
        assert reply[20:22] == b"\0\x09"
        return reply[26] * 100 + reply[27]


def _receive(secured: ssl.SSLSocket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = secured.recv(size - len(received))
        assert data
        received += data
    return received


def _seal(covered: bytes, password: bytes) -> bytes:
    """HMAC-SHA1 over the message, filled with zeros to whole blocks of 64 bytes (RFC 3489 §11.2.8)."""
    return hmac.digest(password, covered + bytes(-len(covered) % 64), "sha1")
