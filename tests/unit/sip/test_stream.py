"""Streams: where a message ends, what may stand between two, and when it is no SIP."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from nattools.errors import DecodeError
from nattools.sip.stream import MOST_MESSAGE_BYTES, SipStream
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s

BYE = b"BYE sip:a@b.test SIP/2.0\r\nTo: x\r\nContent-Length: 0\r\n\r\n"
INVITE = b"INVITE sip:a@b.test SIP/2.0\r\nl : 007\r\n\r\nv=0\r\n\r\n"
ANSWER = b"SIP/2.0 200 OK\nContent-Length:\n 4\n\nbody"
SHORT = b"OPTIONS sip:a SIP/2.0\r\nTo: x\r\n\r\n"
HEADLESS = b"ACK sip:a SIP/2.0\r\n\r\n"
ALL = (BYE, INVITE, ANSWER, SHORT, HEADLESS)


def taken(stream: SipStream, pieces: Iterable[bytes]) -> list[bytes]:
    """All messages that come of these pieces, taken as soon as they are whole."""
    messages = []
    for piece in pieces:
        stream.feed(piece)
        while (message := stream.next_message()) is not None:
            messages.append(message)
    return messages


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


class TestMessages:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
    def test_are_the_same_in_pieces_of_any_size(self, size: int) -> None:
        stream = SipStream()
        assert taken(stream, pieces_of(b"".join(ALL), size)) == list(ALL)
        assert (stream.pings, stream.pongs) == (0, 0)

    @pytest.mark.parametrize("message", ALL)
    def test_are_whole_with_their_last_byte(self, message: bytes) -> None:
        stream = SipStream()
        assert taken(stream, [message[:-1]]) == []
        assert taken(stream, [message[-1:]]) == [message]
        assert stream.next_message() is None

    def test_without_content_length_have_no_body(self) -> None:
        assert taken(SipStream(), [SHORT + BYE]) == [SHORT, BYE]
        stream = SipStream()
        stream.feed(SHORT + b"v=0\r\n")
        assert stream.next_message() == SHORT
        with pytest.raises(DecodeError, match="v=0"):
            stream.next_message()


class TestBetween:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
    @pytest.mark.parametrize(
        ("between", "pings", "pongs"),
        [
            (b"\r\n", 0, 1),
            (b"\r\n\r\n", 1, 2),
            (b"\r\n\r\n\r\n", 1, 3),
            (b"\r\n\r\n\r\n\r\n", 2, 4),
            (b"\n", 0, 0),
            (b"\r\r\n", 0, 1),
        ],
    )
    def test_line_ends_are_counted(self, between: bytes, pings: int, pongs: int, size: int) -> None:
        stream = SipStream()
        assert taken(stream, pieces_of(between + BYE, size)) == [BYE]
        assert (stream.pings, stream.pongs) == (pings, pongs)
        assert taken(stream, pieces_of(between + INVITE, size)) == [INVITE]
        assert (stream.pings, stream.pongs) == (2 * pings, 2 * pongs)

    def test_a_ping_counts_as_soon_as_it_is_there(self) -> None:
        stream = SipStream()
        counts = []
        for piece in (b"\r", b"\n", b"\r", b"\n"):
            assert taken(stream, [piece]) == []
            counts.append((stream.pongs, stream.pings))
        assert counts == [(0, 0), (1, 0), (1, 0), (2, 1)]

    def test_two_crlf_with_a_message_between_are_no_ping(self) -> None:
        stream = SipStream()
        assert taken(stream, [b"\r\n" + BYE + b"\r\n" + BYE]) == [BYE, BYE]
        assert (stream.pings, stream.pongs) == (0, 2)


class TestNoSip:
    @pytest.mark.parametrize(
        "start",
        [
            b"\x16",
            b"\x00",
            b" ",
            b"HTTP/",
            b"v=",
            b"A" * 41,
            b"INVITE:",
            b"GET / HTTP/1.1\r\n",
            b"BYE sip:a SIP/3.0\r\n",
            b"SIP/2.0 20\r\n",
            b"SIP/1.0 200 OK\n",
        ],
    )
    def test_is_noticed_with_the_first_byte_that_shows_it(self, start: bytes) -> None:
        for pieces in ([start], pieces_of(start, 1)):
            stream = SipStream()
            assert taken(stream, [*pieces[:-1], pieces[-1][:-1]]) == []
            with pytest.raises(DecodeError):
                taken(stream, [pieces[-1][-1:]])

    @pytest.mark.parametrize(
        "header",
        [b"no colon", b" folded: 1", b"l: x", b"l: -1", b"l: 1\r\nl: 2", b"l: 65536", b"l: " + b"9" * 5000],
    )
    def test_is_noticed_with_the_end_of_the_headers(self, header: bytes) -> None:
        data = b"BYE sip:a SIP/2.0\r\n" + header + b"\r\n\r\n"
        stream = SipStream()
        assert taken(stream, pieces_of(data[:-1], 100)) == []
        with pytest.raises(DecodeError):
            taken(stream, [data[-1:]])

    def test_is_said_again_at_each_call_and_holds_nothing(self) -> None:
        stream = SipStream()
        stream.feed(BYE + b"\x00" + BYE)
        assert stream.next_message() == BYE
        for _ in range(3):
            with pytest.raises(DecodeError):
                stream.next_message()
            stream.feed(BYE * 1000)
        assert not stream._held


class TestBounds:
    def test_a_message_of_the_largest_size_is_taken(self) -> None:
        head = b"BYE sip:a SIP/2.0\r\nl: %d\r\n\r\n"
        size = MOST_MESSAGE_BYTES - len(head % 10_000)
        assert taken(SipStream(), [head % size + bytes(size)]) == [head % size + bytes(size)]
        with pytest.raises(DecodeError, match="65536 bytes"):
            taken(SipStream(), [head % (size + 1)])

    @pytest.mark.parametrize("start", [b"BYE sip:a", b"BYE sip:a SIP/2.0\r\nX: ", b"SIP/2.0 200 "])
    def test_headers_without_an_end_are_given_up(self, start: bytes) -> None:
        stream = SipStream()
        assert taken(stream, [start + b"a" * (MOST_MESSAGE_BYTES - len(start))]) == []
        with pytest.raises(DecodeError, match="without an end"):
            taken(stream, [b"a"])

    @pytest.mark.parametrize("start", [b"", b"BYE sip:a", b"BYE sip:a SIP/2.0\r\nX: ", b"SIP/2.0 200 "])
    @pytest.mark.parametrize("filler", [b"\n", b"\r", b"\r\n", b" ", b"a", b"\r\n ", b"a:\n"])
    def test_a_byte_at_a_time_takes_no_longer_than_the_size(self, start: bytes, filler: bytes) -> None:
        stream = SipStream()
        with within_s(DEADLINE_S):
            try:
                taken(stream, pieces_of(start + filler * (60_000 // len(filler)), 1))
            except DecodeError:
                assert not stream._held

    def test_many_messages_at_once_take_no_longer_than_their_number(self) -> None:
        number = HOSTILE_BYTES // len(HEADLESS)
        with within_s(DEADLINE_S):
            assert len(taken(SipStream(), [HEADLESS * number])) == number
