"""The phone of the slides behind its Windows NAT: what its messages became by each way to a public endpoint.

The phone, a snom 200, is at 192.168.0.111:5060, its registrar at 140.113.131.7, the NAT at 140.113.131.89.
The captures show what went over the wire; what the phone would have written by itself follows from them.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from nattools.sip.rewriter import Rewriter
from tests.unit.sip.bound import at, bound, changed_lines, events, wire

PHONE = "192.168.0.111:5060"
REGISTRAR = at("140.113.131.7:5060")


class Way(NamedTuple):
    """One way of the slides: the public port for SIP, the phone's RTP port and the public one, the length."""

    sip_port: int
    rtp_local_port: int
    rtp_port: int
    content_length: int


WAYS = {
    "static mapping": Way(5060, 9000, 9000, 333),
    "UPnP": Way(53404, 10002, 13016, 336),
    "STUN": Way(1038, 10002, 1042, 334),
}

REGISTER = wire(
    """
REGISTER sip:140.113.131.7 SIP/2.0
Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bK-kh12inde6asp;rport
From: "Ya-Lin" <sip:944021375@140.113.131.7>;tag=hjsmzgdd4a
To: "Ya-Lin" <sip:944021375@140.113.131.7>
Call-ID: 3c267006daaf-9j1zworugrtt@192-168-0-111
CSeq: 1 REGISTER
Max-Forwards: 70
Contact: <sip:944021375@192.168.0.111:5060;transport=udp;line=1hymyb3y>;q=1.0;description="available"
User-Agent: snom200-2.03o
Supported: gruu
Expires: 3600
Content-Length: 0
"""
)


def invite(way: Way) -> bytes:
    srcadr = f"192.168.0.111:{way.rtp_local_port} 140.113.131.89:{way.rtp_port}"
    return wire(
        """
INVITE sip:944021371@140.113.131.7;user=phone SIP/2.0
Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bK-pg3r5fuxad;rport
From: "Ya-Lin" <sip:944021375@140.113.131.7>;tag=tnal4oer
To: <sip:944021371@140.113.131.7;user=phone>
Call-ID: 3c26701fcf45-iqsu1adehefo@192-168-0-111
CSeq: 1 INVITE
Max-Forwards: 70
Contact: <sip:944021375@192.168.0.111:5060;transport=udp;line=1hymyb3y>
User-Agent: snom200-2.03o
Accept-Language: en
Accept: application/sdp
Allow: INVITE, ACK, CANCEL, BYE, REFER, OPTIONS, NOTIFY, SUBSCRIBE, PRACK, MESSAGE, INFO
Supported: timer, 100rel, replaces
Session-Expires: 7200
Content-Type: application/sdp
""",
        f"""
v=0
o=root 1351536835 1351536835 IN IP4 192.168.0.111
s=call
c=IN IP4 192.168.0.111
t=0 0
m=audio {way.rtp_local_port} RTP/AVP 18 3 0 8 101
a=rtpmap:18 g729/8000
a=rtpmap:3 gsm/8000
a=rtpmap:0 pcmu/8000
a=rtpmap:8 pcma/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-15
a=sendrecv
a=srcadr:{srcadr}
""",
    )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_registration_says_where_the_nat_lets_calls_in(way: Way) -> None:
    rewriter = Rewriter(bound(PHONE, f"140.113.131.89:{way.sip_port}"))
    sent = rewriter.outgoing(REGISTER, REGISTRAR)
    assert changed_lines(REGISTER, sent) == [
        (
            b"Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bK-kh12inde6asp;rport",
            b"Via: SIP/2.0/UDP 140.113.131.89:%d;branch=z9hG4bK-kh12inde6asp;rport" % way.sip_port,
        ),
        (
            b"Contact: <sip:944021375@192.168.0.111:5060;transport=udp;line=1hymyb3y>;q=1.0;"
            b'description="available"',
            b"Contact: <sip:944021375@140.113.131.89:%d;transport=udp;line=1hymyb3y>;q=1.0;"
            b'description="available"' % way.sip_port,
        ),
    ]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_invitation_says_where_the_nat_lets_media_in(way: Way) -> None:
    rewriter = Rewriter(bound(PHONE, f"140.113.131.89:{way.sip_port}"))
    message = invite(way)
    (needed,) = rewriter.media_needed(message)
    assert needed.local == at(f"192.168.0.111:{way.rtp_local_port}")
    rewriter.add_media(bound(str(needed.local), f"140.113.131.89:{way.rtp_port}"))
    assert rewriter.media_needed(message) == ()
    sent = rewriter.outgoing(message, REGISTRAR)
    lines = dict(changed_lines(message, sent))
    port = b"m=audio %d RTP/AVP 18 3 0 8 101"
    moved_port = {port % way.rtp_local_port: port % way.rtp_port}
    length = len(message.partition(b"\r\n\r\n")[2])
    assert lines == {
        b"Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bK-pg3r5fuxad;rport": (
            b"Via: SIP/2.0/UDP 140.113.131.89:%d;branch=z9hG4bK-pg3r5fuxad;rport" % way.sip_port
        ),
        b"Contact: <sip:944021375@192.168.0.111:5060;transport=udp;line=1hymyb3y>": (
            b"Contact: <sip:944021375@140.113.131.89:%d;transport=udp;line=1hymyb3y>" % way.sip_port
        ),
        b"Content-Length: %d" % length: b"Content-Length: %d" % way.content_length,
        b"o=root 1351536835 1351536835 IN IP4 192.168.0.111": (
            b"o=root 1351536835 1351536835 IN IP4 140.113.131.89"
        ),
        b"c=IN IP4 192.168.0.111": b"c=IN IP4 140.113.131.89",
        **(moved_port if way.rtp_port != way.rtp_local_port else {}),
    }
    assert events(rewriter) == []


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_phone_is_answered_in_its_own_words(way: Way) -> None:
    rewriter = Rewriter(bound(PHONE, f"140.113.131.89:{way.sip_port}"))
    sent = rewriter.outgoing(REGISTER, REGISTRAR)
    answer = sent.replace(b"REGISTER sip:140.113.131.7 SIP/2.0", b"SIP/2.0 200 OK (1 bindings)", 1)
    heard = rewriter.incoming(answer, REGISTRAR)
    assert heard.partition(b"\r\n")[2] == REGISTER.partition(b"\r\n")[2]
