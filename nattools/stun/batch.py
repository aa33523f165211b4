"""What a STUN server answers to many datagrams at once: the plain Binding request by arithmetic on columns.

Plain is a request of 20 bytes, of either dialect (RFC 8489 §5, RFC 3489 §11.1): a header, no attributes. Its
reply depends on nothing but its source, so a template asked of the `Responder` serves for all. Idle is one
with a single attribute that asks for nothing, SOFTWARE or a CHANGE-REQUEST for no change, which many clients
send; its reply depends on its size as well. What the header or the source already condemns is dropped here,
for the responder's reason; whatever is left is odd, and its caller's to hand to the responder row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    RESPONSE_ORIGIN,
    SOFTWARE,
    SOURCE_ADDRESS,
    XOR_MAPPED_ADDRESS,
)
from nattools.stun.batch_limiter import Addresses, BatchLimiter
from nattools.stun.message import HEADER_BYTES, MAGIC_COOKIE, Message, MessageClass, Method
from nattools.stun.responder import DropReason, Reply, Responder

_ANSWERED, _ODD, _IDLE = 0, 1, 2
_REASONS = tuple(DropReason)
_CODES = {reason: code for code, reason in enumerate(_REASONS, start=_IDLE + 1)}
_UNUSABLE = _CODES[DropReason.UNUSABLE_ADDRESS]
_LIMITED = _CODES[DropReason.RATE_LIMITED]
_REFLECTOR = _CODES[DropReason.REFLECTOR_PORT]

_BINDING_REQUEST = np.frombuffer(b"\0\1\0\0", np.uint32)[0]
_REQUEST = 0x0001
_COOKIE = np.frombuffer(MAGIC_COOKIE, np.uint32)[0]
_NO_ROWS: Final = np.empty(0, np.intp)
_NOTHING: Final[Mapping[DropReason, int]] = {}
_ADDRESS_AT = HEADER_BYTES + 8  # in a reply, whose first attribute is the mapped address
_PORT_AT = _ADDRESS_AT - 2
_ORIGIN_AT = _ADDRESS_AT + 12  # over IPv4, on a wildcard bind: its address
_VALUE_AT = HEADER_BYTES + 4  # of a request's first attribute
_CHANGE_NOTHING = (CHANGE_REQUEST.type << 16 | 4) << 32  # type, length, value
_MOST_BYTES = 128  # of an idle request; there are few that have more, and a form for each size


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch: arrays with a row for each datagram, filled anew for every batch and all as long."""

    payload: NDArray[np.uint8]
    """The datagrams, at least 28 columns."""
    lengths: NDArray[np.uint32]
    """How many columns of `payload` are meant."""
    addresses: NDArray[np.uint8]
    """The sources, 4 or 16 columns, big-endian as in a socket address."""
    ports: NDArray[np.uint16]
    """The same of the source ports."""
    replies: NDArray[np.uint8]
    """Room for replies, 128 columns: the longest has 116 bytes."""
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
    classic: int
    """How many replies are in the classic dialect."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What a socket replies to all requests of one size and dialect that are plain or idle."""

    reply: NDArray[np.uint8]
    """Where a mapped address stands it has what that is XOR-ed with, save the transaction id."""
    is_modern: bool
    mapped_at: tuple[int, ...]
    """Where mapped addresses stand. The first is at `_ADDRESS_AT`, and XOR-ed in the modern dialect."""
    origin_at: int | None
    """Where the address stands that was asked, on a wildcard bind."""

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.reply)


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
        self._new_form = partial(_form, responder, local)
        self._forms: dict[tuple[int, bool], _Form] = {}
        forms = [self._form(HEADER_BYTES, is_modern) for is_modern in (False, True)]
        self._template = np.zeros((len(forms), columns.replies.shape[1]), np.uint8)
        for row, form in zip(self._template, forms, strict=True):
            row[: form.size] = form.reply
        classic, modern = (form.size for form in forms)
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
            sizes, classic = self._write(slice(count), count)
            return Outcome(count, sizes, None, _NO_ROWS, _NOTHING, classic)
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
        codes[is_unjudged & self._is_idle(count)] = _IDLE
        codes[is_unjudged & self._is_not_stun(count)] = self._not_stun
        if self._asked_octets is not None:
            codes[self._is_for_many(count)] = _ODD
        if admitted is not None:
            codes[~admitted] = _LIMITED
        rows = np.flatnonzero(codes == _ANSWERED)
        counts = np.bincount(codes).tolist()
        dropped = {_REASONS[code]: number for code, number in enumerate(counts[_IDLE + 1 :]) if number}
        sizes, classic = self._write(rows, len(rows))
        idle = np.flatnonzero(codes == _IDLE)
        if len(idle):
            idle, idle_sizes, idle_classic = self._write_idle(idle, len(rows))
            sizes = np.concatenate((np.broadcast_to(np.uint64(sizes), len(rows)), idle_sizes))
            rows, classic = np.concatenate((rows, idle)), classic + idle_classic
        return Outcome(len(rows), sizes, rows, np.flatnonzero(codes == _ODD), dropped, classic)

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

    def _is_idle(self, count: int) -> NDArray[np.bool_]:
        """Which rows are requests with one attribute that asks for nothing."""
        payload, lengths = self._columns.payload[:count], self._columns.lengths[:count]
        attributes = payload[:, HEADER_BYTES : HEADER_BYTES + 8].view(">u8")[:, 0].astype(np.uint64)
        claimed = (attributes >> np.uint64(32)).astype(np.int64) - (SOFTWARE.type << 16)
        is_idle: NDArray[np.bool_] = (claimed >= 0) & (_VALUE_AT + (claimed + 3 & ~3) == lengths)
        is_idle &= lengths <= _MOST_BYTES
        is_idle |= (attributes == np.uint64(_CHANGE_NOTHING)) & (lengths == _VALUE_AT + 4)
        starts = payload[:, :4].view(">u4")[:, 0].astype(np.int64)
        is_idle &= starts == (_REQUEST << 16) - HEADER_BYTES + lengths.astype(np.int64)
        return is_idle

    def _write_idle(
        self, rows: NDArray[np.intp], start: int
    ) -> tuple[NDArray[np.intp], NDArray[np.uint64], int]:
        """Write the replies to idle `rows` from the place `start` on.

        Returns the rows in the order of the replies, their sizes, and how many are classic.
        """
        is_modern = self._cookies[rows] == _COOKIE
        kinds = self._columns.lengths[rows].astype(np.intp) << 1 | is_modern
        order = np.argsort(kinds, kind="stable")
        rows, sizes = rows[order], np.empty(len(rows), np.uint64)
        first = 0
        for kind, number in zip(
            *(part.tolist() for part in np.unique(kinds, return_counts=True)), strict=True
        ):
            form, end = self._form(kind >> 1, bool(kind & 1)), first + number
            self._fill(form, rows[first:end], self._columns.replies[start + first : start + end])
            sizes[first:end] = form.size
            first = end
        return rows, sizes, len(rows) - int(np.count_nonzero(is_modern))

    def _fill(self, form: _Form, rows: NDArray[np.intp], replies: NDArray[np.uint8]) -> None:
        """Write the replies of one form to `rows`."""
        keys, addresses = self._columns.payload[rows, 4:HEADER_BYTES], self._columns.addresses[rows]
        ports = self._columns.ports[rows].astype(">u2").view(np.uint8).reshape(-1, 2)
        replies[:, : form.size] = form.reply
        replies[:, 4:HEADER_BYTES] = keys
        for at in form.mapped_at:
            replies[:, at - 2 : at] ^= ports
            replies[:, at : at + addresses.shape[1]] ^= addresses
        if form.is_modern and self._is_ipv6:  # the key goes on with the transaction id
            replies[:, _ADDRESS_AT + 4 : _ADDRESS_AT + 16] ^= keys[:, 4:]
        if form.origin_at is not None and self._columns.own is not None:
            replies[:, form.origin_at : form.origin_at + addresses.shape[1]] = self._columns.own[rows]

    def _form(self, size: int, is_modern: bool) -> _Form:
        """What is replied to plain and idle requests of that size."""
        form = self._forms.get((size, is_modern))
        if form is None:
            form = self._forms[size, is_modern] = self._new_form(size, is_modern)
        return form

    def _write(self, rows: slice | NDArray[np.intp], count: int) -> tuple[NDArray[np.uint64] | int, int]:
        """Write the replies to `rows`, which are plain requests: their sizes, and how many are classic."""
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
        return sizes, count - int(np.count_nonzero(is_modern))


def _form(responder: Responder, local: Endpoint, size: int, is_modern: bool) -> _Form:
    """What a socket replies to plain requests, and to those of more than 20 bytes with SOFTWARE."""
    ip = IPv6Address("2001:db8::1") if local.is_ipv6 else IPv4Address("198.51.100.1")
    refused = responder.reflector_ports.union(endpoint.port for endpoint in responder.addresses.endpoints)
    port = next(port for port in range(0xFFFF, 0, -1) if port not in refused)
    source, is_anywhere = Endpoint(ip, port), local.ip.is_unspecified
    if is_anywhere:
        own = IPv6Address("2001:db8::2") if local.is_ipv6 else IPv4Address("198.51.100.2")
        local = Endpoint(own, local.port)
    software = () if size == HEADER_BYTES else (SOFTWARE.of("n" * (size - _VALUE_AT)),)
    transaction_id = bytes(12 if is_modern else 16)
    request = Message(Method.BINDING, MessageClass.REQUEST, transaction_id, software).encode()
    answer = responder.respond(request, source, local)
    assert isinstance(answer, Reply)
    reply = np.frombuffer(answer.data, np.uint8).copy()
    mapped = np.frombuffer(source.port.to_bytes(2, "big") + ip.packed, np.uint8)
    mapped_at, origin_at = [], None
    for number, attribute in enumerate(Message.parse(answer.data).attributes):
        at = _ADDRESS_AT + number * (_ADDRESS_AT - HEADER_BYTES + len(ip.packed))
        if attribute.type in (XOR_MAPPED_ADDRESS.type, MAPPED_ADDRESS.type):
            mapped_at.append(at)
            reply[at - 2 : at - 2 + len(mapped)] ^= mapped
        elif is_anywhere and attribute.type in (RESPONSE_ORIGIN.type, SOURCE_ADDRESS.type):
            origin_at = at
    return _Form(reply, is_modern, tuple(mapped_at), origin_at)


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
