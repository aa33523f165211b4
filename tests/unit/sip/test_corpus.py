"""All messages of RFC 3665: bit for bit as they came, and read as an independent reader reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sipmessage

from nattools.sip.headers import COMPACT_NAMES, Via
from nattools.sip.message import SipMessage
from nattools.sip.stream import SipStream
from tests.unit.sip.corpus import PATHS, needs_corpus

MESSAGES = 141
CUT_SHORT = "3.8-F14-200-OK-Bob-Proxy-2.sip"  # ends inside To, without Content-Length
FOLD = re.compile(rb"\r\n[ \t]+")
each_message = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)

pytestmark = needs_corpus


def plain_headers(data: bytes) -> list[tuple[str, bytes]]:
    """Names and values, found in another way: unfold everything, then cut it line by line."""
    head = FOLD.sub(b" ", data.partition(b"\r\n\r\n")[0])
    pairs = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
    named = ((name.strip().lower().decode(), value.strip()) for name, value in pairs)
    return [(COMPACT_NAMES.get(name, name), value) for name, value in named]


def test_all_of_them_are_there() -> None:
    assert len(PATHS) == MESSAGES


@each_message
def test_unedited_it_comes_back_bit_for_bit(path: Path) -> None:
    data = path.read_bytes()
    message = SipMessage.parse(data)
    assert message.encode() == data
    assert not message.is_edited


@each_message
def test_each_header_is_found(path: Path) -> None:
    data = path.read_bytes()
    message = SipMessage.parse(data)
    found = [(header.name, re.sub(rb" +", b" ", message.value(header))) for header in message.headers]
    assert found == [(name, re.sub(rb" +", b" ", value)) for name, value in plain_headers(data)]
    body = data.partition(b"\r\n\r\n")[2]
    assert (message.body, message.length_error) == (body, "")
    assert message.content_length == (None if path.name == CUT_SHORT else len(body))


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.name != CUT_SHORT], ids=lambda path: path.stem
)
def test_sipmessage_reads_the_same(path: Path) -> None:
    data = path.read_bytes()
    ours, theirs = SipMessage.parse(data), sipmessage.Message.parse(FOLD.sub(b" ", data))
    assert ours.call_id.decode() == theirs.call_id
    assert ours.cseq == (theirs.cseq.sequence, theirs.cseq.method)
    assert (ours.from_tag or b"").decode() == theirs.from_address.parameters.get("tag", "")
    assert (ours.to_tag or b"").decode() == theirs.to_address.parameters.get("tag", "")
    if isinstance(theirs, sipmessage.Request):
        assert ours.is_request
        assert (ours.method, ours.status_code) == (theirs.method, None)
        assert ours.request_uri is not None
        assert data[slice(*ours.request_uri)].decode() == str(theirs.uri)
    else:
        assert (ours.status_code, ours.reason.decode()) == (theirs.code, theirs.phrase)
    vias = [Via.parse(data, span) for span in ours.values("via")]
    assert [(via.transport, via.host.decode(), via.port) for via in vias] == [
        (via.transport, via.host, via.port) for via in theirs.via
    ]
    assert [(via.branch or b"").decode() for via in vias] == [via.parameters["branch"] for via in theirs.via]
    if not re.search(rb"mailto:|Contact: \*", data):  # of which theirs makes nothing
        contacts = [contact.uri for contact in ours.contacts]
        assert [data[slice(*uri.span)].decode() for uri in contacts if uri] == [
            str(contact.uri) for contact in theirs.contact
        ]


@each_message
def test_every_header_can_be_replaced_alone(path: Path) -> None:
    data = path.read_bytes()
    for header in SipMessage.parse(data).headers:
        message = SipMessage.parse(data)
        message.edit(header.value_span, b"<replaced>")
        start, end = header.value_span
        assert message.encode() == data[:start] + b"<replaced>" + data[end:]


def test_one_after_the_other_they_come_out_of_a_stream() -> None:
    messages = [path.read_bytes() for path in PATHS if path.name != CUT_SHORT]
    stream = SipStream()
    for byte in b"".join(messages):
        stream.feed(bytes((byte,)))
    assert [stream.next_message() for _ in messages] == messages
    assert stream.next_message() is None
