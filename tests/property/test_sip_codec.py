"""What holds for any bytes, any message, any edit of it, and any way that a stream may cut it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.headers import (
    COMPACT_NAMES,
    LIST_NAMES,
    NameAddress,
    Via,
    compose_contact,
    compose_via,
    split_list,
)
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.stream import SipStream
from nattools.sip.uri import SipUri, Span, read_ip
from tests.fuzz.mutator import run
from tests.fuzz.sip_codec import TARGET, check

TOKEN_LETTERS = "ABCXYZabcxyz0189-.!%*_+`'~"
SEEDS = TARGET.seeds()

tokens = st.text(TOKEN_LETTERS, min_size=1, max_size=12)
token_bytes = tokens.map(str.encode)
endpoints = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 0xFFFF))
blanks = st.sampled_from([b"", b" ", b"\t", b"  ", b"\r\n ", b" \r\n\t"])
line_ends = st.sampled_from([b"\r\n", b"\n"])
written_names = st.sampled_from(sorted({*LIST_NAMES, *COMPACT_NAMES, "x-own", "date", "cseq"})).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)
quoted = st.text(min_size=0, max_size=8).map(
    lambda text: b'"' + text.encode("utf-8", "replace").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
)
line_safe = st.binary(max_size=20).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, bytes]], bytes]:
    """A message of odd layout, its headers as they must be found, and its body."""
    end = draw(line_ends)
    lines = [
        draw(st.sampled_from([b"INVITE sip:a@b.test SIP/2.0", b"SIP/2.0 200 OK", b"x  tel:1  sip/2.0 "]))
    ]
    headers = []
    for _ in range(draw(st.integers(0, 6))):
        name = draw(written_names)
        words = draw(st.lists(line_safe.map(lambda word: word.strip()), max_size=3))
        value = b"\r\n ".join(word for word in words if word)
        if name.lower() in ("content-length", "l"):
            value = b""
        gap = draw(st.sampled_from([b"", b" ", b"\t "]))
        lines.append(
            name.encode() + gap + b":" + draw(blanks) + value + draw(st.sampled_from([b"", b" ", b"\t"]))
        )
        headers.append((COMPACT_NAMES.get(name.lower(), name.lower()), value))
    body = draw(st.binary(max_size=30))
    return end.join((*lines, b"", body)), headers, body


class TestAnyBytes:
    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_are_a_message_or_a_decode_error(self, data: bytes) -> None:
        check(data)

    @settings(deadline=None)
    @given(st.sampled_from([b"BYE sip:a SIP/2.0\r\n", b"SIP/2.0 200 OK\n"]), st.binary(max_size=200))
    def test_behind_a_start_line_too(self, start: bytes, data: bytes) -> None:
        check(start + data)

    @settings(deadline=None)
    @given(st.sampled_from(["Via", "Contact", "f", "CSeq", "l", "Content-Type"]), st.binary(max_size=100))
    def test_as_a_value_too(self, name: str, data: bytes) -> None:
        check(b"BYE sip:a SIP/2.0\r\n" + name.encode() + b": " + data + b"\r\n\r\nbody")

    @settings(deadline=None)
    @given(st.binary(max_size=100), st.text('",<>()\\ab\r\n *;=:@[]', max_size=60).map(str.encode))
    def test_as_any_part_of_a_value_too(self, data: bytes, marks: bytes) -> None:
        for text in (data, marks):
            for parse in (SipUri.parse, Via.parse, NameAddress.parse):
                with suppress(DecodeError):
                    parse(text)
            read_ip(text)
            elements = [text[slice(*span)] for span in split_list(text)]
            assert all(element and element == element.strip() for element in elements)


class TestAnyMessage:
    @settings(deadline=None)
    @given(messages())
    def test_unedited_is_the_same_and_all_headers_are_found(
        self, made: tuple[bytes, list[tuple[str, bytes]], bytes]
    ) -> None:
        data, headers, body = made
        message = SipMessage.parse(data)
        assert message.encode() == data
        assert [header.name for header in message.headers] == [name for name, _ in headers]
        assert [data[slice(*header.value_span)] for header in message.headers] == [
            v.strip() for _, v in headers
        ]
        assert message.body == body

    @settings(deadline=None)
    @given(messages(), st.data())
    def test_edited_reads_back_and_else_is_the_same(
        self, made: tuple[bytes, list[tuple[str, bytes]], bytes], data: st.DataObject
    ) -> None:
        message = SipMessage.parse(made[0])
        headers = message.headers
        # another Content-Length is another body
        free = [index for index, header in enumerate(headers) if header.name != "content-length"]
        chosen = data.draw(st.sets(st.sampled_from(free))) if free else set()
        new = {index: data.draw(token_bytes) for index in data.draw(st.permutations(sorted(chosen)))}
        for index, value in new.items():
            message.edit(headers[index].value_span, value)
        again = SipMessage.parse(message.encode())
        assert len(again.headers) == len(headers)
        for index, (old, header) in enumerate(zip(headers, again.headers, strict=True)):
            expected = new.get(index, made[0][slice(*old.value_span)])
            assert (header.name, again.data[slice(*header.value_span)]) == (old.name, expected)
        assert again.body == message.body
        back = SipMessage.parse(again.data)
        for index in new:
            back.edit(again.headers[index].value_span, made[0][slice(*headers[index].value_span)])
        assert back.encode() == made[0]


class TestAnyEdits:
    @settings(deadline=None)
    @given(st.data())
    def test_are_what_splicing_one_by_one_from_the_end_makes(self, data: st.DataObject) -> None:
        original = SEEDS[0]
        message = SipMessage.parse(original)
        limit = original.index(b"\n\n")
        spans: list[Span] = []
        edits: list[tuple[Span, bytes]] = []
        for _ in range(data.draw(st.integers(0, 12))):
            start = data.draw(st.integers(0, limit))
            span = Span(start, min(limit, start + data.draw(st.integers(0, 30))))
            text = data.draw(st.binary(max_size=5))
            if any(span.start < other.end and other.start < span.end for other in spans):
                with pytest.raises(ValueError, match="overlaps"):
                    message.edit(span, text)
            else:
                message.edit(span, text)
                spans.append(span)
                edits.append((span, text))
        spliced = original
        order = sorted(range(len(edits)), key=lambda index: (*edits[index][0], index))
        for index in reversed(order):
            (start, end), text = edits[index]
            spliced = spliced[:start] + text + spliced[end:]
        assert message.encode() == spliced

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.data())
    def test_of_the_body_keep_its_length_true(self, body: bytes, data: st.DataObject) -> None:
        message = SipMessage.parse(compose_request("INFO", "sip:a@b.test", [("To", "x")], body))
        expected = body
        for start in sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=5)), reverse=True):
            text = data.draw(st.binary(max_size=9))
            place = message.body_span.start + start
            message.edit(Span(place, place), text)
            expected = expected[:start] + text + expected[start:]
        again = SipMessage.parse(message.encode())
        assert (again.body, again.content_length, again.length_error) == (expected, len(expected), "")


class TestAnyList:
    @settings(deadline=None)
    @given(
        st.lists(
            st.lists(
                token_bytes
                | quoted
                | token_bytes.map(lambda word: b"<" + word + b",>")
                | token_bytes.map(lambda word: b"(" + word + b", (,))"),
                min_size=1,
                max_size=3,
            ).map(b" ".join),
            max_size=5,
        ),
        blanks,
        blanks,
    )
    def test_is_split_into_what_it_was_joined_of(
        self, parts: list[bytes], before: bytes, after: bytes
    ) -> None:
        text = before + (after + b"," + before).join(parts) + after
        assert [text[slice(*span)] for span in split_list(text)] == parts


class TestComposed:
    @settings(deadline=None)
    @given(endpoints, tokens, st.sampled_from(["UDP", "TCP", "TLS"]), st.booleans())
    def test_via_reads_back(self, sent_by: Endpoint, branch: str, transport: str, rport: bool) -> None:
        via = Via.parse(compose_via(sent_by, branch=branch, transport=transport, rport=rport).encode())
        assert (via.ip, via.port, via.transport) == (sent_by.ip, sent_by.port, transport)
        assert (via.branch, via.has_rport) == (branch.encode(), rport)

    @settings(deadline=None)
    @given(
        endpoints,
        st.text(max_size=10),
        st.text(max_size=10).filter(lambda text: "\r" not in text and "\n" not in text),
        st.lists(tokens, max_size=3),
    )
    def test_contact_reads_back(self, place: Endpoint, user: str, display: str, params: list[str]) -> None:
        try:
            written = compose_contact(place, user=user, display_name=display, params=params).encode()
        except UnicodeEncodeError:
            return  # a lone surrogate is no text
        address = NameAddress.parse(written)
        assert address.uri is not None
        assert address.uri.endpoint() == place
        assert (address.uri.user is not None) == bool(user)
        assert [param.name for param in address.params] == [param.lower() for param in params]
        assert [written[slice(*span)] for span in split_list(written)] == [written]

    @settings(deadline=None)
    @given(
        tokens,
        tokens,
        st.lists(st.tuples(tokens, line_safe.map(bytes.strip)), max_size=5),
        st.binary(max_size=9),
    )
    def test_request_and_response_read_back(
        self, method: str, uri: str, headers: list[tuple[str, bytes]], body: bytes
    ) -> None:
        own = [(f"x-{name}", value) for name, value in headers]
        via = ("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1")
        request = SipMessage.parse(compose_request(method, uri, [via, ("To", "<sip:a@b.test>"), *own], body))
        assert (request.method, request.body) == (method, body)
        assert [request.value(header) for header in request.headers[2:-1]] == [value for _, value in own]
        response = SipMessage.parse(compose_response(request, 486, "Busy Here", own, body, to_tag="t"))
        assert (response.status_code, response.body, response.to_tag) == (486, body, b"t")
        assert response.branch == request.branch


class TestAnyStream:
    @settings(deadline=None)
    @given(
        st.lists(messages().map(lambda made: made[0]) | st.sampled_from(SEEDS), max_size=4),
        st.lists(st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]), min_size=4, max_size=4),
        st.lists(st.integers(1, 40), min_size=1),
    )
    def test_gives_its_messages_however_it_is_cut(
        self, sent: list[bytes], between: list[bytes], sizes: list[int]
    ) -> None:
        sent = [framed(data) for data in sent]
        stream = b"".join(gap + data for gap, data in zip(between, sent, strict=False))
        pings = sum(gap.count(b"\r\n\r\n") for gap in between[: len(sent)])
        pongs = sum(gap.count(b"\r\n") for gap in between[: len(sent)])
        for pieces in ([stream], cut(stream, [1]), cut(stream, sizes)):
            assert outcome(pieces) == (sent, False, pings, pongs)

    @settings(deadline=None)
    @given(st.binary(max_size=300) | st.sampled_from(SEEDS), st.binary(max_size=20), st.integers(1, 50))
    def test_of_any_bytes_comes_to_the_same_however_it_is_cut(
        self, start: bytes, more: bytes, size: int
    ) -> None:
        whole = outcome([start + more])
        assert outcome(cut(start + more, [1])) == whole
        assert outcome(cut(start + more, [size])) == whole


def framed(data: bytes) -> bytes:
    """The message with one Content-Length that is true, as a stream needs it."""
    message = SipMessage.parse(data.lstrip(b"\r\n"))
    for header in message.headers_named("content-length"):
        message.remove_header(header)
    message = SipMessage.parse(message.encode())
    message.insert_header_after(None, "Content-Length", str(len(message.body)))
    return message.encode()


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The bytes in pieces of these sizes, again and again."""
    pieces: list[bytes] = []
    for size in cycle(sizes):
        if not data:
            return pieces
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def outcome(pieces: Iterable[bytes]) -> tuple[list[bytes], bool, int, int]:
    """The messages that a stream in these pieces gives, whether it failed then, and its pings and pongs."""
    stream = SipStream()
    found = []
    try:
        for piece in pieces:
            stream.feed(piece)
            while (message := stream.next_message()) is not None:
                found.append(message)
    except DecodeError:
        return found, True, stream.pings, stream.pongs
    return found, False, stream.pings, stream.pongs


class TestFuzzTarget:
    def test_a_short_run_holds(self) -> None:
        report = run(TARGET, count=1000, seed=5)
        assert report.failure is None
        assert {"request", "response", "DecodeError"} <= report.outcomes.keys()
