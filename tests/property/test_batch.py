"""Answered by the batch or row by row: the same bytes, the same reasons."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.stun.limiter import Limits, Rate
from nattools.stun.message import MAGIC_COOKIE
from nattools.stun.responder import DropReason, Reply, Responder
from tests.property.test_responder import FULL, IPV6, SINGLE, damaged, requests

np = pytest.importorskip("numpy")

from nattools.stun.batch import BatchResponder, Columns  # noqa: E402 - there is none without numpy
from nattools.stun.batch_limiter import BatchLimiter  # noqa: E402

Row = tuple[bytes, Endpoint]

ROW_BYTES = 1024
PLAIN, CLASSIC = b"\0\1\0\0" + MAGIC_COOKIE, b"\0\1\0\0abcd"
CLIENT = Endpoint.of("203.0.113.7", 40_000)
FEW = Rate(per_s=1, at_once=2)

plain = st.builds(bytes.__add__, st.sampled_from([PLAIN, CLASSIC]), st.binary(min_size=12, max_size=12))
headers = st.builds(  # of 20 bytes, nearly right
    lambda start, rest: bytes(start) + rest,
    st.tuples(
        st.sampled_from([0, 1, 0x3F, 0x40, 0x80]),
        st.sampled_from([1, 2, 3, 0x11]),
        *(2 * [st.integers(0, 4)]),
    ),
    st.binary(min_size=16, max_size=16),
)
data = st.one_of(plain, plain, headers, st.binary(max_size=40), requests(), damaged())
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


def check(responder: Responder, rows: list[Row], rate: Rate | None, *, not_stun_is_odd: bool = False) -> None:
    """Compare for each socket, with the limiter's state going on from one to the next."""
    size = 16 if responder.addresses.address.version == 6 else 4
    payload = np.resize(np.frombuffer(PLAIN + bytes(12), np.uint8), (len(rows), ROW_BYTES))  # of before
    replies = np.full((len(rows), 64), 0xEE, np.uint8)
    for row, (datagram, _source) in enumerate(rows):
        payload[row, : len(datagram)] = np.frombuffer(datagram, np.uint8)
    lengths = np.array([len(datagram) for datagram, _source in rows], np.uint32)
    addresses = np.frombuffer(b"".join(source.ip.packed for _, source in rows), np.uint8).reshape(-1, size)
    numbers = np.array([source.port for _, source in rows], ">u2")
    together, single = (None, None) if rate is None else (limiter(rate), limiter(rate))
    columns = Columns(payload, lengths, addresses, numbers, replies)
    for local in responder.addresses.endpoints:
        batch = BatchResponder(responder, local, columns, together, not_stun_is_odd=not_stun_is_odd)
        found = batch.respond(len(rows), now=1.0)
        expected: list[Reply | DropReason] = [
            responder.respond(datagram, source, local)
            if single is None or single.admit_one(source, now=1.0)
            else DropReason.RATE_LIMITED
            for datagram, source in rows
        ]
        answered = list(range(found.answered)) if found.rows is None else found.rows.tolist()
        sizes = np.broadcast_to(found.sizes, found.answered).tolist()
        assert len(answered) == found.answered
        for place, row in enumerate(answered):
            written = replies[place, : sizes[place]].tobytes()
            assert Reply(written, local, rows[row][1]) == expected[row]
        odd = set(found.odd.tolist())
        assert not odd & set(answered)
        assert all(expected[row] is not DropReason.RATE_LIMITED for row in odd)
        rest = [expected[row] for row in range(len(rows)) if row not in odd.union(answered)]
        assert Counter(rest) == found.dropped
        if not_stun_is_odd:
            assert DropReason.NOT_STUN not in found.dropped


ALL = [(PLAIN + bytes(12), CLIENT), (CLASSIC + bytes(12), CLIENT), (b"", CLIENT), (PLAIN, CLIENT)]


@given(
    st.lists(st.tuples(data, sources_ipv4), min_size=1, max_size=6),
    st.sampled_from([None, FEW]),
    st.booleans(),
)
@example(ALL, None, False)
@example(5 * ALL, FEW, False)
@example(ALL[:1], None, False)
def test_over_ipv4(rows: list[Row], rate: Rate | None, not_stun_is_odd: bool) -> None:
    for responder in (FULL, SINGLE):
        check(responder, rows, rate, not_stun_is_odd=not_stun_is_odd)


@given(st.lists(st.tuples(data, sources_ipv6), min_size=1, max_size=6), st.sampled_from([None, FEW]))
def test_over_ipv6(rows: list[Row], rate: Rate | None) -> None:
    check(IPV6, rows, rate)


@given(st.lists(st.tuples(plain, st.builds(Endpoint, st.ip_addresses(v=4, network="203.0.113.0/24"), ports))))
def test_a_plain_request_is_never_odd(rows: list[Row]) -> None:
    """Otherwise the batch could be right and have answered nothing."""
    rows = [row for row in rows if row[1].port not in (3478, 3479)] or ALL[:1]
    payload = np.frombuffer(b"".join(datagram for datagram, _ in rows), np.uint8).reshape(-1, 20)
    addresses = np.frombuffer(b"".join(source.ip.packed for _, source in rows), np.uint8).reshape(-1, 4)
    columns = Columns(
        payload,
        np.full(len(rows), 20, np.uint32),
        addresses,
        np.array([source.port for _, source in rows], ">u2"),
        np.zeros((len(rows), 64), np.uint8),
    )
    found = BatchResponder(FULL, FULL.addresses.endpoints[0], columns).respond(len(rows), now=1.0)
    refused = [row for row in rows if row[1].port in {0, *FULL.reflector_ports}]
    assert not found.odd.size
    assert found.answered == len(rows) - len(refused)
