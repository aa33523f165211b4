"""Whatever a connection brings is cut into requests, or the reason is told why it is not."""

from __future__ import annotations

import asyncio

from hypothesis import example, given
from hypothesis import strategies as st

from nattools.stun.responder import DropReason
from nattools.stun.streams import MOST_REQUEST_BYTES, read_request

REQUEST = bytes.fromhex("00010000 2112a442") + bytes(12)


async def read(data: bytes) -> tuple[list[bytes], DropReason | None]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    requests: list[bytes] = []
    while True:
        one = await read_request(reader)
        if not isinstance(one, bytes):
            return requests, one
        requests.append(one)


@given(st.lists(st.one_of(st.just(REQUEST), st.binary(max_size=40)), max_size=6).map(b"".join))
@example(b"")
@example(REQUEST[:3])
@example(REQUEST + b"\0\1\xff\xfc")
@example(REQUEST * 3)
def test_a_stream_is_requests_and_then_its_end_or_what_is_none(data: bytes) -> None:
    requests, reason = asyncio.run(read(data))
    whole = b"".join(requests)
    assert data.startswith(whole)
    for request in requests:
        assert 20 <= len(request) == 20 + int.from_bytes(request[2:4], "big") <= MOST_REQUEST_BYTES
    rest = data[len(whole) :]
    assert (reason is None) is (rest == b"")
    if reason is DropReason.TRUNCATED:
        assert len(rest) < 4 or len(rest) < 20 + int.from_bytes(rest[2:4], "big")
