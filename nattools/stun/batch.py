"""What a STUN server answers to many datagrams at once: the plain Binding request by arithmetic on columns.

Plain is a request of 20 bytes, of either dialect (RFC 8489 §5, RFC 3489 §11.1): a header, no attributes. Its
reply depends on nothing but its source, so a template asked of the `Responder` serves for all. What the
header or the source already condemns is dropped here, for the responder's reason; whatever is left is odd,
and its caller's to hand to the responder row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nattools.endpoint import Endpoint
from nattools.stun.batch_limiter import Addresses, BatchLimiter
from nattools.stun.message import HEADER_BYTES, MAGIC_COOKIE
from nattools.stun.responder import DropReason, Reply, Responder

_ANSWERED, _ODD = 0, 1
_REASONS = tuple(DropReason)
_CODES = {reason: code for code, reason in enumerate(_REASONS, start=_ODD + 1)}
_UNUSABLE = _CODES[DropReason.UNUSABLE_ADDRESS]
_LIMITED = _CODES[DropReason.RATE_LIMITED]
_REFLECTOR = _CODES[DropReason.REFLECTOR_PORT]

_BINDING_REQUEST = np.frombuffer(b"\0\1\0\0", np.uint32)[0]
_COOKIE = np.frombuffer(MAGIC_COOKIE, np.uint32)[0]
_CLASSIC_COOKIE = bytes(4)
_NO_ROWS: Final = np.empty(0, np.intp)
_NOTHING: Final[Mapping[DropReason, int]] = {}
_ADDRESS_AT = HEADER_BYTES + 8  # in a reply, whose first attribute is the mapped address
_PORT_AT = _ADDRESS_AT - 2
_ORIGIN_AT = _ADDRESS_AT + 12  # over IPv4, on a wildcard bind: its address
_ANY_ORIGIN = IPv4Address("198.51.100.2")


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch: arrays with a row for each datagram, filled anew for every batch and all as long."""

    payload: NDArray[np.uint8]
    """The datagrams, at least 20 columns."""
    lengths: NDArray[np.uint32]
    """How many columns of `payload` are meant."""
    addresses: NDArray[np.uint8]
    """The sources, 4 or 16 columns, big-endian as in a socket address."""
    ports: NDArray[np.uint16]
    """The same of the source ports."""
    replies: NDArray[np.uint8]
    """Room for replies, 64 columns: `MOST_AMPLIFICATION` allows 56 bytes."""
    own: NDArray[np.uint8] | None = None
    """On a wildcard bind: the addresses of this machine that they were sent to, like `addresses`."""
    asked: NDArray[np.uint8] | None = None
    """On a wildcard bind: the addresses that they were sent to, multicast and broadcast among them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch. A row is answered, odd or dropped."""

    answered: int
    """How many replies there are."""
    sizes: NDArray[np.uint64] | int
    """The bytes of each; a number where they are all as long."""
    rows: NDArray[np.intp] | None
    """Which row each of them is for; None where that is its own."""
    odd: NDArray[np.intp]
    """The rows for the responder. They have been admitted already."""
    dropped: Mapping[DropReason, int]
    """How many of the others there are, by reason."""


class BatchResponder:
    """Answers what comes to `local` as `responder` does, a batch at a time, if `limiter` admits it.

    Without a limiter everything is admitted. If `local` is the unspecified address, the columns must say
    which one each datagram was sent to, and `responder` must not advertise another in its place.
    """

    def __init__(
        self,
        responder: Responder,
        local: Endpoint,
        columns: Columns,
        limiter: BatchLimiter | None = None,
        *,
        not_stun_is_odd: bool = False,
    ) -> None:
        """With `not_stun_is_odd` what is no STUN is odd too, for a caller who can make something of it."""
        self._limiter = limiter
        self._not_stun = _ODD if not_stun_is_odd else _CODES[DropReason.NOT_STUN]
        self._is_ipv6 = local.is_ipv6
        self._port_codes = _port_codes(responder)
        self._octet_codes = _octet_codes(ipv6=self._is_ipv6)
        # that a batch has nothing to be looked at closer is seen with as few calls as can be: in between
        # system calls each costs a microsecond or two, however many rows it is for
        self._is_odd_port, self._is_odd_octet = self._port_codes != _ANSWERED, self._octet_codes != _ANSWERED
        self._columns = columns
        words = columns.payload[:, :HEADER_BYTES].view(np.uint32)
        self._kinds, self._cookies, self._keys = words[:, 0], words[:, 1], words[:, 1:]
        self._octets = columns.addresses[:, 0]
        self._numbers = (
            columns.addresses.view(">u8") if self._is_ipv6 else columns.addresses.view(">u4")[:, 0]
        )
        self._seen_ports = columns.ports.view(np.uint16)
        self._seen_addresses = columns.addresses.view(np.uint32)
        words, first = columns.replies.view(np.uint32), _ADDRESS_AT // 4
        self._reply_keys = words[:, 1 : HEADER_BYTES // 4]
        self._reply_ports = columns.replies.view(np.uint16)[:, _PORT_AT // 2]
        self._reply_addresses = words[:, first : first + self._seen_addresses.shape[1]]
        self._asked_octets: NDArray[np.uint8] | None = None
        if columns.own is not None and columns.asked is not None:
            self._own, self._asked = columns.own.view(np.uint32)[:, 0], columns.asked.view(np.uint32)[:, 0]
            self._asked_octets = columns.asked[:, 0]
            self._origins = words[:, _ORIGIN_AT // 4]
        self._template = _template(responder, local, columns.replies.shape[1])
        classic, modern = map(_size_of, self._template)
        self._sizes = np.array([classic, modern], np.uint64)
        self._size = modern if modern == classic else None

    def respond(self, count: int, *, now: float) -> Outcome:
        """Judge the first `count` rows, and write the replies into the first rows of `replies`."""
        ports = self._columns.ports[:count].astype(np.uint16)
        addresses: Addresses
        if self._is_ipv6:
            addresses = self._numbers[:count].astype(np.uint64)
        else:
            addresses = self._numbers[:count].astype(np.uint32)
        admitted = None if self._limiter is None else self._limiter.admit(addresses, ports, now=now)
        is_odd = self._columns.lengths[:count] != HEADER_BYTES
        is_odd |= self._kinds[:count] != _BINDING_REQUEST
        is_odd |= self._is_odd_port.take(ports)
        is_odd |= self._is_odd_octet.take(self._octets[:count])
        if self._is_ipv6:
            is_odd |= ~addresses.any(axis=1)
        if self._asked_octets is not None:
            is_odd |= self._is_for_many(count)
        if not np.count_nonzero(is_odd) and (admitted is None or np.count_nonzero(admitted) == count):
            return Outcome(count, self._write(slice(count), count), None, _NO_ROWS, _NOTHING)
        return self._sort(count, ports, admitted)

    def _sort(self, count: int, ports: NDArray[np.uint16], admitted: NDArray[np.bool_] | None) -> Outcome:
        """What `respond` does where not every row is plain, admitted and from an ordinary source."""
        codes = self._octet_codes.take(self._octets[:count])
        if self._is_ipv6:
            codes[~self._columns.addresses[:count].any(axis=1)] = _UNUSABLE
        codes = np.where(codes, codes, self._port_codes.take(ports))
        is_unjudged = codes == _ANSWERED
        is_plain = (self._columns.lengths[:count] == HEADER_BYTES) & (self._kinds[:count] == _BINDING_REQUEST)
        codes[is_unjudged & ~is_plain] = _ODD
        codes[is_unjudged & self._is_not_stun(count)] = self._not_stun
        if self._asked_octets is not None:
            codes[self._is_for_many(count)] = _ODD
        if admitted is not None:
            codes[~admitted] = _LIMITED
        rows = np.flatnonzero(codes == _ANSWERED)
        counts = np.bincount(codes).tolist()
        dropped = {_REASONS[code]: number for code, number in enumerate(counts[_ODD + 1 :]) if number}
        sizes = self._write(rows, len(rows))
        return Outcome(len(rows), sizes, rows, np.flatnonzero(codes == _ODD), dropped)

    def _is_for_many(self, count: int) -> NDArray[np.bool_]:
        """Which rows were sent to an address of many machines."""
        assert self._asked_octets is not None
        if self._is_ipv6:
            is_multicast: NDArray[np.bool_] = self._asked_octets[:count] == 0xFF
            return is_multicast
        is_another: NDArray[np.bool_] = self._own[:count] != self._asked[:count]
        return is_another

    def _is_not_stun(self, count: int) -> NDArray[np.bool_]:
        """Which rows the header condemns; of the others some have attributes that do not fit."""
        payload, lengths = self._columns.payload[:count], self._columns.lengths[:count]
        claimed = payload[:, 2:4].view(">u2")[:, 0].astype(np.uint32) + HEADER_BYTES
        condemned: NDArray[np.bool_] = (payload[:, 0] > 0x3F) | (claimed != lengths)
        return condemned

    def _write(self, rows: slice | NDArray[np.intp], count: int) -> NDArray[np.uint64] | int:
        """Write the replies to `rows`, which are plain requests; returns their sizes."""
        keys, is_modern = self._keys[rows], (self._cookies[rows] == _COOKIE).view(np.uint8)
        self._template.take(is_modern, axis=0, out=self._columns.replies[:count], mode="clip")
        self._reply_keys[:count] = keys
        # the template has the key there, or nothing in the classic dialect
        for own, seen in (
            (self._reply_ports, self._seen_ports),
            (self._reply_addresses, self._seen_addresses),
        ):
            np.bitwise_xor(own[:count], seen[rows], out=own[:count])
        if self._is_ipv6:  # the key goes on with the transaction id
            self._reply_addresses[:count, 1:] ^= keys[:, 1:] * is_modern[:, np.newaxis]
        elif self._asked_octets is not None:
            self._origins[:count] = self._own[rows]
        sizes: NDArray[np.uint64] | int = self._size or self._sizes.take(is_modern)
        return sizes


def _template(responder: Responder, local: Endpoint, row_bytes: int) -> NDArray[np.uint8]:
    """The replies of a socket to the plain requests of both dialects, the classic one first.

    Where the mapped address stands they have what it is XOR-ed with, save the transaction id. On a wildcard
    bind the origin comes at `_ORIGIN_AT`; over IPv6 there is no room for it.
    """
    ip = IPv6Address("2001:db8::1") if local.is_ipv6 else IPv4Address("198.51.100.1")
    source = Endpoint(ip, 0x8000)
    if local.ip.is_unspecified:
        local = Endpoint(IPv6Address("2001:db8::2") if local.is_ipv6 else _ANY_ORIGIN, local.port)
    mapped = np.frombuffer(source.port.to_bytes(2, "big") + ip.packed, np.uint8)
    replies = np.zeros((2, row_bytes), np.uint8)
    for row, cookie in enumerate((_CLASSIC_COOKIE, MAGIC_COOKIE)):
        answer = responder.respond(b"\0\1\0\0" + cookie + bytes(12), source, local)
        assert isinstance(answer, Reply)
        replies[row, : len(answer.data)] = np.frombuffer(answer.data, np.uint8)
        replies[row, _PORT_AT : _PORT_AT + len(mapped)] ^= mapped
    return replies


def _size_of(reply: NDArray[np.uint8]) -> int:
    return HEADER_BYTES + int.from_bytes(reply[2:4].tobytes(), "big")


def _port_codes(responder: Responder) -> NDArray[np.uint8]:
    """What each source port means: nothing, a reason, or that the responder must look closer."""
    codes = np.zeros(0x10000, np.uint8)
    codes[[endpoint.port for endpoint in responder.addresses.endpoints]] = _ODD
    codes[np.array([*responder.reflector_ports], np.intp)] = _REFLECTOR
    codes[0] = _UNUSABLE
    return codes


def _octet_codes(*, ipv6: bool) -> NDArray[np.uint8]:
    """The same for the first octet of a source: multicast, and what is no address of a host."""
    codes = np.zeros(0x100, np.uint8)
    if ipv6:
        codes[0xFF] = _UNUSABLE
    else:
        codes[0] = codes[224:240] = _UNUSABLE
        codes[255] = _ODD  # one address of these is the broadcast
    return codes
