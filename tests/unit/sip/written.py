"""A request and a response, and requests of any headers, as tests of messages need them."""

from __future__ import annotations

from nattools.sip.message import SipMessage

REQUEST = (
    b"INVITE sip:bob@192.0.2.4 SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKv1\r\n"
    b"Max-Forwards: 70\r\n"
    b"From: Alice <sip:alice@a.test>;tag=f1\r\n"
    b"To: Bob <sip:bob@b.test>\r\n"
    b"Call-ID: call1@192.168.0.111\r\n"
    b"CSeq: 11 INVITE\r\n"
    b"Contact: <sip:alice@192.168.0.111:5060>\r\n"
    b"Content-Type: application/sdp\r\n"
    b"Content-Length: 5\r\n"
    b"\r\n"
    b"v=0\r\n"
)
RESPONSE = (
    b"SIP/2.0 200 OK\r\n"
    b"v: SIP/2.0/UDP 192.168.0.111;received=192.0.2.9;rport=1038\r\n"
    b"i: x@y\r\n"
    b"CSeq: 1 REGISTER\r\n"
    b"\r\n"
)


def request(*headers: bytes, body: bytes = b"", line_end: bytes = b"\r\n") -> SipMessage:
    """An INVITE of these headers alone."""
    return SipMessage.parse(line_end.join((b"INVITE sip:a@b.test SIP/2.0", *headers, b"", body)))
