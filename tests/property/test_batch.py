"""Answered by the batch or row by row: the same bytes, the same reasons."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint, IPAddress
from nattools.stun.limiter import Limits, Rate
from nattools.stun.message import MAGIC_COOKIE
from nattools.stun.responder import DropReason, Reply, Responder, ServerAddresses
from tests.property.test_responder import FULL, IPV6, SINGLE, damaged, requests

np = pytest.importorskip("numpy")

from nattools.stun.batch import BatchResponder, Columns  # noqa: E402 - there is none without numpy
from nattools.stun.batch_limiter import BatchLimiter  # noqa: E402 - it needs numpy

Row = tuple[bytes, Endpoint]

ROW_BYTES = 1024
PLAIN, CLASSIC = b"\0\1\0\0" + MAGIC_COOKIE, b"\0\1\0\0abcd"
CLIENT = Endpoint.of("203.0.113.7", 40_000)
FEW = Rate(per_s=1, at_once=2)

TRANSACTION = st.binary(min_size=12, max_size=12)
plain = st.builds(bytes.__add__, st.sampled_from([PLAIN, CLASSIC]), TRANSACTION)
headers = st.builds(  # of 20 bytes, nearly right
    lambda start, rest: bytes(start) + rest,
    st.tuples(
        st.sampled_from([0, 1, 0x3F, 0x40, 0x80]),
        st.sampled_from([1, 2, 3, 0x11]),
        *(2 * [st.integers(0, 4)]),
    ),
    st.binary(min_size=16, max_size=16),
)


@st.composite
def idle(draw: st.DrawFn) -> bytes:
    """A request with SOFTWARE of any size, or a CHANGE-REQUEST for no change; or nearly so."""
    software = draw(st.one_of(st.integers(0, 110), st.sampled_from([103, 104, 105])))
    attribute = draw(
        st.sampled_from(
            [
                struct.pack("!HH", 0x8022, software) + draw(st.binary(min_size=software, max_size=software)),
                struct.pack("!HHI", 0x0003, 4, draw(st.sampled_from([0, 0, 2, 4, 6, 1, 1 << 31]))),
                struct.pack("!HHI", draw(st.sampled_from([0x0003, 0x8021, 0x8023, 0x8028])), 4, 0),
            ]
        )
    )
    body = attribute + draw(st.sampled_from([bytes, b"\xff".__mul__]))(-len(attribute) % 4)
    claimed = len(body) + draw(st.sampled_from([0, 0, 0, 0, 4, -4, 1]))
    kind = draw(st.sampled_from([1, 1, 1, 1, 3, 0x11, 0x101]))
    cookie = draw(st.sampled_from([MAGIC_COOKIE, b"abcd"]))
    return struct.pack("!HH", kind, max(claimed, 0)) + cookie + draw(TRANSACTION) + body


data = st.one_of(plain, plain, idle(), idle(), headers, st.binary(max_size=40), requests(), damaged())
ports = st.one_of(st.integers(1024, 0xFFFF), st.sampled_from([0, 19, 53, 123, 1900, 3478, 3479]))
octets = st.sampled_from([0, 1, 127, 203, 223, 224, 239, 240, 255])
sources_ipv4 = st.one_of(
    st.just(CLIENT),
    st.builds(Endpoint, st.sampled_from([FULL.addresses.address, IPv4Address(2**32 - 1)]), ports),
    st.builds(lambda first, port: Endpoint(IPv4Address(first << 24 | 1), port), octets, ports),
    st.builds(Endpoint, st.ip_addresses(v=4), ports),
)
sources_ipv6 = st.one_of(
    st.builds(Endpoint, st.sampled_from([IPV6.addresses.address, IPv6Address(0), IPv6Address(1)]), ports),
    st.builds(lambda first, port: Endpoint(IPv6Address(first << 120 | 1), port), octets, ports),
    st.builds(Endpoint, st.ip_addresses(v=6), ports),
)


def limiter(rate: Rate) -> BatchLimiter:
    return BatchLimiter(Limits(*(4 * (rate,))), entropy=lambda count: bytes(range(1, count + 1)))


def check(
    responder: Responder,
    rows: list[Row],
    rate: Rate | None,
    *,
    not_stun_is_odd: bool = False,
    own: list[IPAddress] | None = None,
) -> None:
    """Compare for each socket, with the limiter's state going on from one to the next.

    `own` has what each row was sent to where the socket is bound to the unspecified address.
    """
    size = 16 if responder.addresses.address.version == 6 else 4
    payload = np.resize(np.frombuffer(PLAIN + bytes(12), np.uint8), (len(rows), ROW_BYTES))  # of before
    replies = np.full((len(rows), 128), 0xEE, np.uint8)
    for row, (datagram, _source) in enumerate(rows):
        payload[row, : len(datagram)] = np.frombuffer(datagram, np.uint8)
    lengths = np.array([len(datagram) for datagram, _source in rows], np.uint32)
    addresses = np.frombuffer(b"".join(source.ip.packed for _, source in rows), np.uint8).reshape(-1, size)
    numbers = np.array([source.port for _, source in rows], ">u2")
    together, single = (None, None) if rate is None else (limiter(rate), limiter(rate))
    packed = None
    if own is not None:
        packed = np.frombuffer(b"".join(ip.packed for ip in own), np.uint8).reshape(-1, size)
    columns = Columns(payload, lengths, addresses, numbers, replies, packed, packed)
    for local in responder.addresses.endpoints:
        batch = BatchResponder(responder, local, columns, together, not_stun_is_odd=not_stun_is_odd)
        found = batch.respond(len(rows), now=1.0)
        asked_at = [local if own is None else Endpoint(own[row], local.port) for row in range(len(rows))]
        expected: list[Reply | DropReason] = [
            responder.respond(datagram, source, asked)
            if single is None or single.admit_one(source, now=1.0)
            else DropReason.RATE_LIMITED
            for (datagram, source), asked in zip(rows, asked_at, strict=True)
        ]
        answered = list(range(found.answered)) if found.rows is None else found.rows.tolist()
        sizes = np.broadcast_to(found.sizes, found.answered).tolist()
        assert len(answered) == found.answered
        for place, row in enumerate(answered):
            written = replies[place, : sizes[place]].tobytes()
            assert Reply(written, asked_at[row], rows[row][1]) == expected[row]
        odd = set(found.odd.tolist())
        assert not odd & set(answered)
        assert all(expected[row] is not DropReason.RATE_LIMITED for row in odd)
        rest = [expected[row] for row in range(len(rows)) if row not in odd.union(answered)]
        assert Counter(rest) == found.dropped
        if not_stun_is_odd:
            assert DropReason.NOT_STUN not in found.dropped


IDLE = b"\0\1\0\x08" + MAGIC_COOKIE + bytes(range(12)) + b"\0\3\0\4\0\0\0\0"
LATE = b"\0\1\0\x0cabcd" + bytes(range(12)) + b"\x80\x22\0\x05name \0\0\0"
ALL = [
    (PLAIN + bytes(12), CLIENT),
    (IDLE, CLIENT),
    (LATE, CLIENT),
    (CLASSIC + bytes(12), CLIENT),
    (b"", CLIENT),
    (PLAIN, CLIENT),
]


@given(
    st.lists(st.tuples(data, sources_ipv4), min_size=1, max_size=6),
    st.sampled_from([None, FEW]),
    st.booleans(),
)
@example(ALL, None, False)
@example(5 * ALL, FEW, False)
@example(ALL[:1], None, False)
@example(ALL[:3], None, False)
def test_over_ipv4(rows: list[Row], rate: Rate | None, not_stun_is_odd: bool) -> None:
    for responder in (FULL, SINGLE):
        check(responder, rows, rate, not_stun_is_odd=not_stun_is_odd)


@given(st.lists(st.tuples(data, sources_ipv6), min_size=1, max_size=6), st.sampled_from([None, FEW]))
def test_over_ipv6(rows: list[Row], rate: Rate | None) -> None:
    check(IPV6, rows, rate)


own_ipv4 = st.sampled_from([IPv4Address("127.0.0.1"), IPv4Address("198.51.100.1"), CLIENT.ip])
own_ipv6 = st.sampled_from([IPv6Address(1), IPv6Address("2001:db8::1")])


@given(
    st.lists(st.tuples(data, sources_ipv4, own_ipv4), min_size=1, max_size=6), st.sampled_from([None, FEW])
)
@example([(*row, CLIENT.ip) for row in ALL], None)
@example([(*ALL[0], CLIENT.ip), (*ALL[1], FULL.addresses.address)], None)
def test_on_a_wildcard_bind_over_ipv4(
    rows: list[tuple[bytes, Endpoint, IPAddress]], rate: Rate | None
) -> None:
    check(
        Responder(ServerAddresses(IPv4Address(0))), [row[:2] for row in rows], rate, own=[o for *_, o in rows]
    )


@given(
    st.lists(st.tuples(data, sources_ipv6, own_ipv6), min_size=1, max_size=6), st.sampled_from([None, FEW])
)
def test_on_a_wildcard_bind_over_ipv6(
    rows: list[tuple[bytes, Endpoint, IPAddress]], rate: Rate | None
) -> None:
    check(
        Responder(ServerAddresses(IPv6Address(0))), [row[:2] for row in rows], rate, own=[o for *_, o in rows]
    )


@pytest.mark.parametrize(
    ("own", "asked"),
    [("198.51.100.1", "198.51.100.255"), ("0.0.0.0", "198.51.100.1"), ("ff02::1", "ff02::1")],
    ids=["broadcast", "before it was asked for", "multicast"],
)
def test_what_was_sent_to_many_is_odd(own: str, asked: str) -> None:
    own_ip, asked_ip = ip_address(own), ip_address(asked)
    source = ip_address("2001:db8::7") if own_ip.version == 6 else CLIENT.ip
    columns = Columns(
        *(np.frombuffer(PLAIN + bytes(20), np.uint8).reshape(1, -1), np.full(1, 20, np.uint32)),
        *(np.frombuffer(source.packed, np.uint8).reshape(1, -1), np.full(1, 40_000, ">u2")),
        np.zeros((1, 128), np.uint8),
        *(np.frombuffer(ip.packed, np.uint8).reshape(1, -1) for ip in (own_ip, asked_ip)),
    )
    wildcard = Responder(ServerAddresses(ip_address("::" if own_ip.version == 6 else "0.0.0.0")))
    found = BatchResponder(wildcard, wildcard.addresses.endpoints[0], columns).respond(1, now=1.0)
    assert found.odd.tolist() == [0]
    assert not found.answered


@given(
    st.lists(
        st.tuples(
            st.one_of(plain, st.sampled_from([IDLE, LATE])),
            st.builds(Endpoint, st.ip_addresses(v=4, network="203.0.113.0/24"), ports),
        )
    )
)
def test_a_plain_or_idle_request_is_never_odd(rows: list[Row]) -> None:
    """Otherwise the batch could be right and have answered nothing."""
    rows = [row for row in rows if row[1].port not in (3478, 3479)] or ALL[:3]
    payload = np.zeros((len(rows), 32), np.uint8)
    for row, (datagram, _) in enumerate(rows):
        payload[row, : len(datagram)] = np.frombuffer(datagram, np.uint8)
    addresses = np.frombuffer(b"".join(source.ip.packed for _, source in rows), np.uint8).reshape(-1, 4)
    columns = Columns(
        payload,
        np.array([len(datagram) for datagram, _ in rows], np.uint32),
        addresses,
        np.array([source.port for _, source in rows], ">u2"),
        np.zeros((len(rows), 128), np.uint8),
    )
    found = BatchResponder(FULL, FULL.addresses.endpoints[0], columns).respond(len(rows), now=1.0)
    refused = [row for row in rows if row[1].port in {0, *FULL.reflector_ports}]
    assert not found.odd.size
    assert found.answered == len(rows) - len(refused)
