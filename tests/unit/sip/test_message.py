"""Messages: what is found in them, where it stands, and what is no message."""

from __future__ import annotations

import pytest

from nattools.errors import DecodeError
from nattools.sip.message import SipMessage
from nattools.sip.uri import Span
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s
from tests.unit.sip.written import RESPONSE, request


def cut(message: SipMessage, span: Span | None) -> bytes:
    assert span is not None
    return message.data[slice(*span)]


def names(message: SipMessage) -> list[str]:
    return [header.name for header in message.headers]


class TestStartLine:
    @pytest.mark.parametrize(
        ("line", "method", "uri"),
        [
            (b"INVITE sip:bob@b.test SIP/2.0", "INVITE", b"sip:bob@b.test"),
            (b"!own.Method-1 tel:+1 sip/2.0", "!own.Method-1", b"tel:+1"),
            (b"INVITE  sip:b@b.test; lr \t SIP/2.0 ", "INVITE", b"sip:b@b.test; lr"),
            (b"BYE\tsip:b@b.test\tSIP/2.0", "BYE", b"sip:b@b.test"),
            (b"OPTIONS  sip:b@b.test SIP/2.0", "OPTIONS", b"sip:b@b.test"),
            (b"OPTIONS <sip:\xff@b.test> SIP/2.0", "OPTIONS", b"<sip:\xff@b.test>"),
        ],
    )
    def test_of_a_request(self, line: bytes, method: str, uri: bytes) -> None:
        for before in (b"", b"\r\n\r\n", b"\n"):
            message = SipMessage.parse(before + line + b"\r\nTo: x\r\n\r\n")
            assert message.is_request
            assert (message.method, message.status_code, message.reason) == (method, None, b"")
            assert cut(message, message.request_uri) == uri

    @pytest.mark.parametrize(
        ("line", "code", "reason"),
        [
            (b"SIP/2.0 200 OK", 200, b"OK"),
            (b"sip/2.0 180", 180, b""),
            (b"SIP/2.0 699 ", 699, b""),
            (b"SIP/2.0  100  Trying, = \xe4\xbd\xa0 SIP/2.0", 100, b"Trying, = \xe4\xbd\xa0 SIP/2.0"),
        ],
    )
    def test_of_a_response(self, line: bytes, code: int, reason: bytes) -> None:
        message = SipMessage.parse(line + b"\r\nCSeq: 7 BYE\r\n\r\n")
        assert not message.is_request
        assert (message.status_code, message.reason, message.request_uri) == (code, reason, None)
        assert message.method == "BYE"

    def test_of_a_response_without_cseq_tells_no_method(self) -> None:
        assert SipMessage.parse(b"SIP/2.0 200 OK\r\n\r\n").method == ""

    @pytest.mark.parametrize(
        "data", [b"", b"\r\n", b"SIP/2.0 200 ", b"SIP/2.0 200", b"BYE sip:a SIP/2.0", b"B"]
    )
    def test_without_an_end_is_refused(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            SipMessage.parse(data)

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"INVITE",
            b"INVITE SIP/2.0",
            b"INVITE sip:a@b.test",
            b"INVITE sip:a@b.test SIP/7.0",
            b"INVITE sip:a@b.testSIP/2.0",
            b"INV@TE sip:a@b.test SIP/2.0",
            b" INVITE sip:a@b.test SIP/2.0",
            b"SIP/2.0 42 OK",
            b"SIP/2.0 2000 OK",
            b"SIP/2.0 4294967301 better",
            b"SIP/2.0 OK",
            b"SIP/3.0 200 OK",
            b"GET / HTTP/1.1",
            b"\x00\x01\x00\x00\x21\x12\xa4\x42",
        ],
    )
    def test_that_is_none_is_refused(self, line: bytes) -> None:
        with pytest.raises(DecodeError):
            SipMessage.parse(line + b"\r\nTo: x\r\n\r\n")


class TestHeaders:
    def test_are_found_where_they_stand(self) -> None:
        data = b"BYE sip:a SIP/2.0\r\nVia : a\r\nX-Own:\t \r\n b\r\n c \r\nm:<sip:c>\r\nSubject:\r\n\r\n"
        message = SipMessage.parse(data)
        found = [
            (header.name, cut(message, header.name_span), cut(message, header.value_span))
            for header in message.headers
        ]
        assert found == [
            ("via", b"Via", b"a"),
            ("x-own", b"X-Own", b"b\r\n c"),
            ("contact", b"m", b"<sip:c>"),
            ("subject", b"Subject", b""),
        ]
        lines = [cut(message, header.line_span) for header in message.headers]
        assert b"BYE sip:a SIP/2.0\r\n" + b"".join(lines) + b"\r\n" == data

    @pytest.mark.parametrize(
        ("compact", "name"),
        [
            (b"a", "accept-contact"),
            (b"b", "referred-by"),
            (b"c", "content-type"),
            (b"e", "content-encoding"),
            (b"f", "from"),
            (b"i", "call-id"),
            (b"k", "supported"),
            (b"l", "content-length"),
            (b"m", "contact"),
            (b"o", "event"),
            (b"r", "refer-to"),
            (b"s", "subject"),
            (b"t", "to"),
            (b"u", "allow-events"),
            (b"v", "via"),
            (b"x", "session-expires"),
        ],
    )
    def test_of_one_letter_have_their_name_in_full(self, compact: bytes, name: str) -> None:
        for written in (
            compact,
            compact.upper(),
            name.encode(),
            name.upper().encode(),
            name.title().encode(),
        ):
            assert names(request(written + b": 0", b"X-Own: 1")) == [name, "x-own"]

    def test_folded_lines_are_one_even_with_a_colon(self) -> None:
        message = request(b"Subject: one\r\n two: three\r\n\tfour", b'To: "B: <b"\r\n  <sip\r\n :x>')
        assert names(message) == ["subject", "to"]
        assert message.value(message.header("subject")) == b"one two: three four"
        assert message.encode() == message.data

    def test_a_fold_may_come_before_the_value(self) -> None:
        message = request(b"To:\r\n <sip:b@b.test>;tag=9", b"l:\r\n  0")
        assert (message.to_tag, message.content_length) == (b"9", 0)

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
    def test_line_ends_may_be_bare(self, line_end: bytes) -> None:
        message = request(b"To: <sip:b>;tag=1", b"Subject: a\n b", b"l: 2", body=b"hi", line_end=line_end)
        assert names(message) == ["to", "subject", "content-length"]
        assert (message.to_tag, message.body, message.content_length) == (b"1", b"hi", 2)

    def test_line_ends_may_be_mixed(self) -> None:
        message = SipMessage.parse(b"BYE sip:a SIP/2.0\nTo: x\r\nFrom: y\n\r\n\r\n\r\n")
        assert names(message) == ["to", "from"]
        assert message.body == b"\r\n\r\n"

    def test_an_empty_line_of_bare_lf_ends_them_whatever_the_body_has(self) -> None:
        message = request(b"To: x", b"", b"Via: no header\r\n\r\n", line_end=b"\n")
        assert names(message) == ["to"]
        assert message.body.startswith(b"Via: no header")

    def test_a_bare_cr_ends_no_line(self) -> None:
        message = request(b"To: x\rVia: y\r", b"From\r: z")
        assert names(message) == ["to", "from"]
        assert message.value(message.header("to")) == b"x\rVia: y"

    def test_may_be_missing_altogether(self) -> None:
        message = SipMessage.parse(b"BYE sip:a SIP/2.0\r\n\r\n")
        assert message.headers == ()
        assert (message.top_via, message.contacts, message.call_id, message.cseq) == (None, [], b"", None)
        assert (message.from_tag, message.to_tag, message.branch, message.content_type) == (
            None,
            None,
            None,
            "",
        )
        assert message.header("via") is None
        assert message.value(None) == b""

    @pytest.mark.parametrize(
        "headers",
        [
            b"",
            b"To: x",
            b"To: x\r\n",
            b"To: x\r\nno colon\r\n\r\n",
            b"Via\r\n\r\n",
            b" To: x\r\n\r\n",
            b"\rTo: x\r\n\r\n",
            b"\tTo: x\n\n",
            b"To: x\r\n more",
            b"To: x\r\n more\r\n",
        ],
    )
    def test_that_are_not_whole_are_refused(self, headers: bytes) -> None:
        with pytest.raises(DecodeError):
            SipMessage.parse(b"BYE sip:a SIP/2.0\r\n" + headers)

    def test_bytes_of_any_encoding_stay(self) -> None:
        message = request(b'From: "J\xf6rg \xff\x00" <sip:j@b.test>;tag=\xfe1', b"X-\xe9: \xc3\x28")
        assert message.from_tag == b"\xfe1"
        assert names(message)[1] == "x-\xe9"
        message.edit(message.headers[0].name_span, b"f")
        assert message.encode() == message.data.replace(b"From", b"f")


class TestValues:
    def test_of_lists_are_those_of_all_their_headers(self) -> None:
        message = request(b"Via: a, b", b"Subject: c, d", b"v: e", b"VIA:\r\n f ,\r\n g", b"Via:")
        assert [cut(message, span) for span in message.values("via")] == [b"a", b"b", b"e", b"f", b"g"]
        assert [cut(message, span) for span in message.values("subject")] == [b"c, d"]
        assert message.values("route") == []
        assert [cut(message, header.value_span) for header in message.headers_named("via")] == [
            b"a, b",
            b"e",
            b"f ,\r\n g",
            b"",
        ]

    @pytest.mark.parametrize(
        "name",
        ["WWW-Authenticate", "Proxy-Authenticate", "Authorization", "Date", "Subject", "X-Own", "From"],
    )
    def test_of_other_headers_are_not_split(self, name: str) -> None:
        value = b'Digest realm="a, b", nonce="c"'
        message = request(name.encode() + b": " + value)
        assert [cut(message, span) for span in message.values(name.lower())] == [value]

    def test_the_first_is_read_as_it_is_written(self) -> None:
        message = request(b"Subject :  a\r\n b ", b"Subject: c", b"X-Own:")
        assert message.first_value("subject") == b"a\r\n b"
        assert message.first_value("x-own") == message.first_value("via") == b""

    def test_the_top_via_is_the_first_of_the_first_header(self) -> None:
        message = request(
            b"To: x", b"v: SIP/2.0/UDP a;branch=1, SIP/2.0/TCP b;branch=2", b"Via: SIP/2.0/TCP c"
        )
        assert message.top_via is not None
        assert (message.top_via.host, message.branch) == (b"a", b"1")

    def test_contacts_are_those_of_all_headers(self) -> None:
        message = request(b"Contact: <sip:a@b.test>, *", b'm: "x, y" <sip:c@d.test:7>;q=1')
        hosts = [contact.uri.host if contact.uri else b"*" for contact in message.contacts]
        assert hosts == [b"b.test", b"*", b"d.test"]

    def test_that_are_malformed_are_a_decode_error(self) -> None:
        message = request(b"Via: x", b"Contact: <sip:a@b.test>, <x")
        for read in (lambda: message.top_via, lambda: message.contacts, lambda: message.branch):
            with pytest.raises(DecodeError):
                read()
        with pytest.raises(DecodeError):
            _ = request(b"Via:").top_via

    @pytest.mark.parametrize(
        ("value", "cseq"),
        [
            (b"1 INVITE", (1, "INVITE")),
            (b"0009 \r\n INVITE", (9, "INVITE")),
            (b"4294967295 a-B", (4294967295, "a-B")),
            (b"4294967296 INVITE", None),
            (b"36893488147419103232 REGISTER", None),
            (b"9" * 5000 + b" REGISTER", None),
            (b"1", None),
            (b"1 INVITE x", None),
            (b"-1 INVITE", None),
            (b"", None),
        ],
    )
    def test_cseq(self, value: bytes, cseq: tuple[int, str] | None) -> None:
        assert request(b"CSeq: " + value).cseq == cseq

    @pytest.mark.parametrize(
        ("value", "tag"),
        [
            (b"<sip:a@b.test>;tag=1x", b"1x"),
            (b"sip:a@b.test;TAG = 2;x", b"2"),
            (b'"x;tag=no" <sip:a;tag=no@b.test;tag=no>;x="tag=no";\r\n tag=3', b"3"),
            (b"<sip:a@b.test>;tagged=1;tag=4, x", b"4"),
            (b"<tel:+1>;tag=5", b"5"),
            (b"<nonsense ;tag=6>;tag=7", b"7"),
            (b"<sip:a@b.test>", None),
            (b"<sip:a@b.test>;tag=", None),
            (b"<sip:a@b.test>;tag", None),
            (b'"open <sip:a@b.test>;tag=8', None),
            (b"<sip:a@b.test;tag=9", None),
        ],
    )
    def test_tags_are_those_of_the_header_not_of_the_uri(self, value: bytes, tag: bytes | None) -> None:
        message = request(b"From: " + value, b"t: " + value)
        assert (message.from_tag, message.to_tag) == (tag, tag)

    def test_call_id_and_content_type(self) -> None:
        message = request(b"i : a b@c ", b"c:Application/SDP ; charset=utf-8")
        assert (message.call_id, message.content_type) == (b"a b@c", "application/sdp")

    def test_via_of_a_response(self) -> None:
        via = SipMessage.parse(RESPONSE).top_via
        assert via is not None
        assert (str(via.received), via.rport) == ("192.0.2.9", 1038)


class TestBody:
    @pytest.mark.parametrize(
        ("length", "body", "rest"),
        [
            (b"Content-Length: 4", b"body", b""),
            (b"l:4", b"body", b" octets after it"),
            (b"CONTENT-LENGTH  :  0004", b"body", b"\r\n"),
            (b"Content-Length:\r\n 4\t", b"body", b""),
            (b"Content-Length: " + b"0" * 9000 + b"4", b"body", b""),
            (b"Content-Length: 0", b"", b"body"),
            (b"X: y", b"body", b""),
            (b"Content-Length: 4\r\nl: 04", b"body", b"more"),
        ],
    )
    def test_is_as_long_as_content_length_says(self, length: bytes, body: bytes, rest: bytes) -> None:
        message = request(length, body=body + rest)
        assert (message.body, message.length_error) == (body, "")
        assert message.content_length == (None if length == b"X: y" else len(body))
        assert cut(message, message.body_span) == body
        assert message.encode() == message.data

    @pytest.mark.parametrize(
        "length",
        [
            b"Content-Length: 5",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: " + b"9" * 9000,
            b"Content-Length: -4",
            b"Content-Length: +4",
            b"Content-Length: 4, 4",
            b"Content-Length: four",
            b"Content-Length:",
            b"Content-Length: \xb2",
            b"Content-Length: 4\r\nl: 3",
            b"l: 3\r\nl: 4",
        ],
    )
    def test_whose_end_nobody_knows_is_not_edited(self, length: bytes) -> None:
        message = request(length, b"To: x", body=b"body")
        assert message.content_length is None
        assert "Content-Length" in message.length_error
        assert message.body == b"body"
        with pytest.raises(ValueError, match="Content-Length"):
            message.edit(message.body_span, b"new")
        with pytest.raises(ValueError, match="Content-Length"):
            message.replace_body(b"new")
        message.edit(message.headers[-1].value_span, b"y")
        assert message.encode() == message.data.replace(b"To: x", b"To: y")

    def test_declared_length_tells_it_whatever_follows(self) -> None:
        assert request(b"l: 4000", body=b"body").declared_length == 4000
        assert request(b"To: x").declared_length is None
        with pytest.raises(DecodeError):
            _ = request(b"l: 3", b"l: 4").declared_length


class TestHostileMessage:
    @pytest.mark.parametrize(
        "filler",
        [
            b" ",
            b"\r",
            b"\n",
            b"a",
            b":",
            b"a:",
            b"a:\n",
            b"\r\n ",
            b"\n ",
            b'"',
            b"<",
            b",",
            b";tag",
            b";tag ",
            b"0",
        ],
    )
    @pytest.mark.parametrize(
        "start",
        [
            b"",
            b"INVITE",
            b"INVITE ",
            b"SIP/2.0 200 ",
            b"BYE sip:a SIP/2.0\r\n",
            b"BYE sip:a SIP/2.0\r\nFrom: a",
            b"BYE sip:a SIP/2.0\r\nl:",
            b"BYE sip:a SIP/2.0\r\nCSeq: 1",
        ],
    )
    def test_takes_no_longer_than_its_size(self, start: bytes, filler: bytes) -> None:
        data = start + filler * (HOSTILE_BYTES // len(filler) // 4)
        with within_s(DEADLINE_S):
            for end in (b"", b"\r\n\r\n", b"\n\n"):
                try:
                    message = SipMessage.parse(data + end)
                except DecodeError:
                    continue
                assert message.encode() == data + end
                _ = (message.from_tag, message.cseq, message.body, message.content_type)
                for header in message.headers[:3]:
                    message.value(header)
                for name in {header.name for header in message.headers[:3]}:
                    message.values(name)


def test_another_one_of_the_same_bytes_is_edited_apart() -> None:
    message = SipMessage.parse(
        b"BYE sip:b@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKa\r\n"
        b"CSeq: 2 BYE\r\nContent-Length: 2\r\n\r\nab"
    )
    message.edit(message.body_span, b"longer")
    other = message.unedited()
    assert (other.encode(), other.is_edited) == (message.data, False)
    other.edit(other.values("cseq")[0], b"3 BYE")
    assert other.encode() == message.data.replace(b"2 BYE", b"3 BYE")
    assert message.encode() == message.data.replace(b"Length: 2", b"Length: 6").replace(b"ab", b"longer")
    assert (other.branch, other.cseq) == (b"z9hG4bKa", (2, "BYE"))
