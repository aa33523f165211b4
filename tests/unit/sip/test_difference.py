"""Which fields of a message arrived otherwise than they were sent, by name."""

from __future__ import annotations

import pytest

from nattools.sip.difference import LAYOUT, REQUEST_URI, STATUS_LINE, touched_fields

SENT = (
    b"INVITE sip:203.0.113.10 SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 192.168.0.108:40000;rport;branch=z9hG4bK1\r\n"
    b"f: <sip:probe@192.168.0.108>;tag=1\r\n"
    b"Contact: <sip:a@192.168.0.108>\r\n"
    b"Contact: <sip:b@192.168.0.108>\r\n"
    b"Content-Length: 147\r\n"
    b"\r\n"
    b"v=0\r\n"
    b"o=- 1 1 IN IP4 192.168.0.108\r\n"
    b"c=IN IP4 192.168.0.108\r\n"
    b"m=audio 41000 RTP/AVP 0\r\n"
    b"c=IN IP4 192.168.0.108\r\n"
    b"a=rtcp:41001 IN IP4 192.168.0.108\r\n"
    b"a=sendrecv\r\n"
)


def names(arrived: bytes) -> list[str]:
    return [field.name for field in touched_fields(SENT, arrived)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"sip:203.0.113.10 ", b"sip:203.0.113.10:5060 ", [REQUEST_URI]),
        (b"192.168.0.108:40000", b"203.0.113.1:1024", ["Via"]),
        (b"probe@192.168.0.108", b"probe@203.0.113.1", ["f"]),
        (b"f: <", b"From: <", ["f"]),
        (b"sip:b@192.168.0.108", b"sip:b@203.0.113.1", ["Contact"]),
        (b"Length: 147", b"Length: 143", ["Content-Length"]),
        (b"- 1 1 IN IP4 192.168.0.108", b"- 1 1 IN IP4 203.0.113.1", ["o="]),
        (b"41000", b"41002", ["m="]),
        (b"0\r\nc=IN IP4 192.168.0.108", b"0\r\nc=IN IP4 203.0.113.1", ["c="]),
        (b"41001 IN IP4 192.168.0.108", b"41001 IN IP4 203.0.113.1", ["a=rtcp"]),
        (b"a=sendrecv", b"a=sendonly", ["a=sendrecv", "a=sendonly"]),
        (b"a=sendrecv\r\n", b"", ["a=sendrecv"]),
        (b"Via:", b"Via: SIP/2.0/UDP 203.0.113.1;branch=z9hG4bKproxy\r\nVia:", ["Via", "Via"]),
        (b"Contact: <sip:a", b"X-ALG: here\r\nContact: <sip:a", ["X-ALG"]),
        (b"sendrecv\r\n", b"sendrecv\n", [LAYOUT]),
        (b"INVITE sip:203.0.113.10 SIP/2.0", b"SIP/2.0 200 OK", [REQUEST_URI, STATUS_LINE]),
    ],
)
def test_a_touched_field_is_named(old: bytes, new: bytes, expected: list[str]) -> None:
    assert SENT.count(old) == 1
    assert names(SENT.replace(old, new)) == expected


def test_what_nobody_touched_differs_in_nothing() -> None:
    assert touched_fields(SENT, SENT) == ()


def test_fields_that_changed_places_are_a_matter_of_layout() -> None:
    lines = SENT.split(b"\r\n")
    lines[1], lines[2] = lines[2], lines[1]
    [field] = touched_fields(SENT, b"\r\n".join(lines))
    assert str(field) == "layout: other blanks, line ends or order"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"Length: 147", b"Length: 143", "Content-Length: 147 arrived as 143"),
        (b"41000", b"41002", "m=audio 41000 RTP/AVP 0 arrived as audio 41002 RTP/AVP 0"),
        (b"a=sendrecv\r\n", b"", "a=sendrecv: sendrecv arrived as nothing"),
        (b"41001 IN", b"9 IN", "a=rtcp: 41001 IN IP4 192.168.0.108 arrived as 9 IN IP4 192.168.0.108"),
    ],
)
def test_it_says_what_was_sent_and_what_arrived(old: bytes, new: bytes, text: str) -> None:
    [field] = touched_fields(SENT, SENT.replace(old, new))
    assert str(field) == text
