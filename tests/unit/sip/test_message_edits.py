"""Edits of messages: they change their span, the lengths that follow from them, and nothing else."""

from __future__ import annotations

import pytest

from nattools.errors import EncodeError
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.uri import Span
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s
from tests.unit.sip.written import REQUEST, RESPONSE, request


def names(message: SipMessage) -> list[str]:
    return [header.name for header in message.headers]


class TestEdit:
    def test_changes_its_span_and_nothing_else(self) -> None:
        message = SipMessage.parse(REQUEST)
        via = message.top_via
        assert via is not None
        contact = message.contacts[0].uri
        assert contact is not None
        message.edit(contact.host_port_span, b"[2001:db8::1]:7")
        message.edit(via.host_port_span, b"203.0.113.1:40000")
        message.edit(Span(via.span.end, via.span.end), b";rport")
        assert message.is_edited
        assert message.encode() == REQUEST.replace(
            b"Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKv1",
            b"Via: SIP/2.0/UDP 203.0.113.1:40000;branch=z9hG4bKv1;rport",
        ).replace(b"alice@192.168.0.111:5060", b"alice@[2001:db8::1]:7")

    def test_without_any_the_message_is_the_very_bytes(self) -> None:
        message = SipMessage.parse(REQUEST)
        assert not message.is_edited
        assert message.encode() is REQUEST

    def test_an_answer_is_about_the_message_as_it_was(self) -> None:
        message = SipMessage.parse(REQUEST)
        message.edit(message.headers[5].value_span, b"2 BYE")
        assert message.cseq == (11, "INVITE")
        assert SipMessage.parse(message.encode()).cseq == (2, "BYE")

    def test_side_by_side_and_inserted_at_one_place_stand_in_order(self) -> None:
        message = SipMessage.parse(REQUEST)
        for span, text in (
            (Span(2, 4), b"<b>"),
            (Span(4, 4), b"<c1>"),
            (Span(0, 2), b"<a>"),
            (Span(4, 4), b"<c2>"),
            (Span(4, 6), b"<d>"),
            (Span(0, 0), b"<0>"),
        ):
            message.edit(span, text)
        assert message.encode() == b"<0><a><b><c1><c2><d>" + REQUEST[6:]

    @pytest.mark.parametrize(
        "span", [Span(10, 20), Span(12, 13), Span(5, 11), Span(19, 30), Span(5, 30), Span(15, 15)]
    )
    def test_that_overlaps_another_is_refused(self, span: Span) -> None:
        message = SipMessage.parse(REQUEST)
        message.edit(Span(40, 50), b"later")
        message.edit(Span(10, 20), b"first")
        before = message.encode()
        with pytest.raises(ValueError, match="overlaps"):
            message.edit(span, b"second")
        assert message.encode() == before

    @pytest.mark.parametrize(
        "span",
        [
            Span(-1, 3),
            Span(5, 3),
            Span(0, len(REQUEST) + 1),
            Span(len(REQUEST) - 8, len(REQUEST) - 2),
            Span(len(REQUEST) - 6, len(REQUEST) - 6),
        ],
    )
    def test_that_is_neither_in_the_headers_nor_in_the_body_is_refused(self, span: Span) -> None:
        with pytest.raises(ValueError, match="neither"):
            SipMessage.parse(REQUEST).edit(span, b"x")

    def test_after_the_body_is_refused(self) -> None:
        message = request(b"l: 2", body=b"hi there")
        with pytest.raises(ValueError, match="neither"):
            message.edit(Span(len(message.data) - 3, len(message.data)), b"")

    def test_thousands_take_no_longer_than_their_number(self) -> None:
        message = request(b"X: " + b"a" * HOSTILE_BYTES)
        start = message.headers[0].value_span.start
        with within_s(DEADLINE_S):
            for index in reversed(range(0, 100_000, 2)):
                message.edit(Span(start + index, start + index + 1), b"bc")
            assert message.encode().count(b"bca") == 50_000


class TestLengths:
    def test_follow_the_body(self) -> None:
        message = SipMessage.parse(REQUEST)
        start, end = message.body_span
        message.edit(Span(start + 2, start + 3), b"123456")
        message.edit(Span(end, end), b"a=x\r\n")
        after = SipMessage.parse(message.encode())
        assert (after.body, after.content_length) == (b"v=123456\r\na=x\r\n", 15)
        assert message.encode().startswith(REQUEST[:-9].replace(b"Length: 5", b"Length: 15"))

    def test_stay_as_they_are_written_while_the_size_does(self) -> None:
        message = request(b"Content-Length:   0004 ", body=b"body")
        message.replace_body(b"BODY")
        assert message.encode() == message.data.replace(b"body", b"BODY")

    def test_stay_when_only_headers_change(self) -> None:
        message = request(b"To: x", b"Content-Length:   0004 ", body=b"body!")
        message.edit(message.headers[0].value_span, b"longer")
        assert message.encode() == message.data.replace(b"To: x", b"To: longer")

    def test_change_in_each_header_that_says_one(self) -> None:
        message = request(b"l:4", b"To: x", b"Content-Length: 04", body=b"body")
        message.replace_body(b"")
        assert message.encode() == request(b"l:0", b"To: x", b"Content-Length: 0").data

    def test_that_were_edited_themselves_are_believed(self) -> None:
        message = request(b"l: 4", body=b"body")
        message.edit(message.headers[0].value_span, b"77")
        message.replace_body(b"longer body")
        assert message.encode() == request(b"l: 77", body=b"longer body").data
        gone = request(b"l: 4", b"To: x", body=b"body")
        gone.remove_header(gone.headers[0])
        gone.replace_body(b"longer body")
        assert gone.encode() == request(b"To: x", body=b"longer body").data

    @pytest.mark.parametrize(
        ("via", "added"),
        [
            (b"Via: SIP/2.0/UDP a", b""),
            (b"Via: SIP/2.0/TCP a", b"Content-Length: 3\r\n"),
            (b"Via: SIP/2.0/TLS a", b"Content-Length: 3\r\n"),
            (b"Via: nonsense", b""),
            (b"To: x", b""),
        ],
    )
    def test_are_added_where_a_stream_needs_one(self, via: bytes, added: bytes) -> None:
        message = request(via)
        message.replace_body(b"new")
        assert message.encode() == message.data[:-2] + added + b"\r\nnew"

    def test_leave_what_follows_the_body(self) -> None:
        message = request(b"l: 4", body=b"body and more")
        message.replace_body(b"other body")
        assert message.encode() == request(b"l: 10", body=b"other body and more").data


class TestHeaderEdits:
    def test_insert_and_remove_whole_lines(self) -> None:
        message = request(b"Via: a", b"To: x\r\n y", b"From: z")
        to = message.header("to")
        assert to is not None
        message.remove_header(to)
        message.insert_header_before(None, "Via", b"new")
        message.insert_header_after(to, "Route", "r1")
        message.insert_header_after(to, "Route", "r2")
        message.insert_header_before(to, "Path", "p")
        message.insert_header_after(None, "X", "last")
        assert message.encode() == (
            b"INVITE sip:a@b.test SIP/2.0\r\n"
            b"Via: new\r\nVia: a\r\nPath: p\r\nRoute: r1\r\nRoute: r2\r\nFrom: z\r\nX: last\r\n\r\n"
        )

    def test_into_a_message_without_headers(self) -> None:
        message = SipMessage.parse(b"BYE sip:a SIP/2.0\r\n\r\n")
        message.insert_header_before(None, "To", "x")
        message.insert_header_after(None, "From", "y")
        assert message.encode() == b"BYE sip:a SIP/2.0\r\nTo: x\r\nFrom: y\r\n\r\n"

    @pytest.mark.parametrize(
        ("name", "value"), [("", "x"), ("a b", "x"), ("a:", "x"), ("A", "x\r\nB: y"), ("A", b"\n")]
    )
    def test_cannot_break_out_of_their_line(self, name: str, value: str | bytes) -> None:
        with pytest.raises(EncodeError):
            SipMessage.parse(REQUEST).insert_header_after(None, name, value)

    def test_an_empty_value_is_filled_where_it_would_stand(self) -> None:
        for line, filled in (
            (b"Subject:", b"Subject:x"),
            (b"Subject: ", b"Subject: x"),
            (b"Subject: \t", b"Subject: x\t"),
        ):
            message = request(line)
            message.edit(message.headers[0].value_span, b"x")
            assert message.encode() == request(filled).data


class TestComposed:
    def test_a_request_is_read_back(self) -> None:
        data = compose_request("OPTIONS", "sip:b@b.test", [("To", "<sip:b@b.test>"), ("X", b"\xff")], b"body")
        assert data == (
            b"OPTIONS sip:b@b.test SIP/2.0\r\nTo: <sip:b@b.test>\r\nX: \xff\r\nContent-Length: 4\r\n\r\nbody"
        )
        assert SipMessage.parse(data).body == b"body"

    def test_a_response_repeats_what_it_must(self) -> None:
        asked = request(
            b"Via: SIP/2.0/UDP a;branch=1,\r\n SIP/2.0/UDP b",
            b"v: SIP/2.0/UDP c",
            b"Record-Route: <sip:p;lr>",
            b"f: <sip:a@b.test>;tag=1",
            b"To: <sip:b@b.test;tag=no>",
            b"i: x",
            b"CSeq: 5 INVITE",
            b"Timestamp: 54",
            b"Subject: no",
        )
        assert compose_response(asked, 200, "OK", [("Contact", "<sip:c>")], b"body", to_tag="t1") == (
            b"SIP/2.0 200 OK\r\n"
            b"Via: SIP/2.0/UDP a;branch=1, SIP/2.0/UDP b\r\n"
            b"Via: SIP/2.0/UDP c\r\n"
            b"Record-Route: <sip:p;lr>\r\n"
            b"From: <sip:a@b.test>;tag=1\r\n"
            b"To: <sip:b@b.test;tag=no>;tag=t1\r\n"
            b"Call-ID: x\r\n"
            b"CSeq: 5 INVITE\r\n"
            b"Contact: <sip:c>\r\n"
            b"Content-Length: 4\r\n\r\nbody"
        )
        trying = SipMessage.parse(compose_response(asked, 100, "Trying"))
        assert names(trying) == ["via", "via", "from", "to", "call-id", "cseq", "timestamp", "content-length"]
        assert "record-route" not in names(SipMessage.parse(compose_response(asked, 404, "Not Found")))

    def test_a_to_tag_that_is_there_stays(self) -> None:
        asked = request(b"To: <sip:b@b.test>;tag=theirs")
        assert b"To: <sip:b@b.test>;tag=theirs\r\n" in compose_response(asked, 200, "OK", to_tag="mine")

    def test_a_response_repeats_a_bare_cr_as_a_blank(self) -> None:
        asked = request(b"To: a\rVia: b")
        assert b"To: a Via: b\r\n" in compose_response(asked, 400, "Bad Request")

    def test_what_would_break_out_is_refused(self) -> None:
        asked = request(b"To: x")
        with pytest.raises(EncodeError):
            compose_request("IN VITE", "sip:a", [])
        with pytest.raises(EncodeError):
            compose_request("BYE", "sip:a SIP/2.0\r\nX:", [])
        with pytest.raises(EncodeError):
            compose_request("BYE", "", [])
        with pytest.raises(EncodeError):
            compose_request("BYE", "sip:a", [("A\r\nB", "x")])
        with pytest.raises(EncodeError):
            compose_response(asked, 200, "OK\r\nX: y")
        with pytest.raises(EncodeError):
            compose_response(asked, 99, "No")
        with pytest.raises(EncodeError):
            compose_response(asked, 200, "OK", to_tag="a;b")
        with pytest.raises(EncodeError):
            compose_response(SipMessage.parse(RESPONSE), 200, "OK")
