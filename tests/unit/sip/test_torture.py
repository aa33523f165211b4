"""Whole messages of the kinds that RFC 4475 and RFC 5118 torture parsers with, in words of our own.

Each comes back bit for bit, is read for what it says, and is edited where it is odd.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

import nattools.sip
from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.headers import NameAddress, Via
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri, Span


def wire(text: str, body: bytes = b"") -> bytes:
    """The lines of `text`, each with CRLF, an empty one, and the body."""
    return text.strip("\n").replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


ODD_BLANKS = wire(
    """
INVITE sip:carol@cafe.test;own-param  SIP/2.0
TO :
 sip:carol@cafe.test ;   tag    = t0x
from   : "C \\\\\\""       <sip:c@cafe.test>
  ;
  tag = f0x
mAx-fOrWaRdS: 0009
Call-ID: blanks.1@192.0.2.1
Content-Length   : 004
cseq: 0009
  INVITE
Via  : SIP  /   2.0
 /UDP
    192.0.2.2;branch=b1
s :
Own-Header: folded
    so: that; it looks, <like
 Via: a header
v:  SIP  / 2.0  / TCP     loop.test   ;
  branch  =   z9hG4bKb2  ,
 SIP  /    2.0   / UDP  192.0.2.1 : 5061   ; branch=
 z9hG4bKb3
m:"Quoted, \\"twice\\"" <sip:c@192.0.2.1;lr?h=v> ; first =
      value ;
  second ; q = 0.5
""",
    b"1234",
)
ESCAPED = wire(
    """
REGISTER sip:cafe.test SIP/2.0
To: sip:zero-%00-zero@cafe.test
From: <sip:sip%3Ax%40y;z=1%40cafe.test@cafe.test>;tag=8
Call-ID: esc.1
CSeq: 14 REGISTER
Via: SIP/2.0/UDP host5.test;branch=z9hG4bKk
Contact: <sip:%00@host5.test>
 , <sip:c%61rol@host5.test:5060;%74x;p%71=%31%25%30>
Contact: <sip:c@host5.test;method=BYE?Subject=x%20y&Date=%3Cnow%3E>;expires=0
l: 0
"""
)
TOKEN = "aZ09-.!%*_+`'~"
EXOTIC = wire(
    f"""
{TOKEN} sip:-_.!~*'()&=+$,;?/z:p&=+$,@cafe.test SIP/2.0
Via: SIP/2.0/TCP host1.test;branch=z9hG4bK{TOKEN}
To: "ringing \\\x07, nothing \\\x00" <sip:-_.!~*'()&=+$,;?/@cafe.test>
From: {TOKEN} {TOKEN} <sip:c@cafe.test>;own{TOKEN}="\u044f\u043d";tag={TOKEN}
Call-ID: {TOKEN}()<>:\\/"[]?{{}}@{TOKEN}
CSeq: 4000000000 {TOKEN}
{TOKEN}: \uff08caf\u00e9\uff09
Content-Length: 0
"""
)
TWO_REQUESTS = wire(
    """
REGISTER sip:cafe.test SIP/2.0
Via: SIP/2.0/UDP 192.0.2.125;branch=z9hG4bKkd
To: <sip:j@cafe.test>
Contact: sip:j@192.0.2.125
Content-Length: 0
""",
    wire(
        """
INVITE sip:joe@cafe.test SIP/2.0
t: sip:joe@cafe.test
Via: SIP/2.0/UDP 192.0.2.125;branch=z9hG4bKkd2
l: 4
""",
        b"v=0\n",
    ),
)
REPEATED = wire(
    """
INVITE sip:u@cafe.test SIP/2.0
Contact: <sip:c@host25.test>
Via: SIP/2.0/UDP 192.0.2.25;branch=z9hG4bKkdj
CSeq: 5 INVITE
CSeq: 59 NOTIFY
Call-ID: first@192.0.2.25
To: sip:other@cafe.test;tag=3
From: <sip:c@cafe.test>;tag=34
To: sip:u@cafe.test;tag=35
Call-ID: second@192.0.2.25
Via: SIP/2.0/UDP 192.0.2.26
"""
)
BINARY = wire(
    """
MESSAGE sip:k@cafe.test SIP/2.0
Via: SIP/2.0/UDP 127.0.0.1:5070;branch=z9hG4bK-d
To: <sip:k@cafe.test>
Content-Type: multipart/mixed;boundary=7a9c
Content-Length: 38
""",
    b"--7a9c\r\n\r\n\x30\x82\x00\xff\r\n\r\nVia: none\x00\r\n--7a9c--",
)
IPV6 = wire(
    """
BYE sip:u@[2001:db8::10]:5070 SIP/2.0
To: sip:u@cafe.test;tag=bd76ya
From: <sip:u@[2001:db8::9:1]>;tag=81
Via: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3
v: SIP/2.0/UDP [::ffff:192.0.2.10]:19823;received=2001:db8::9:255;rport=7
Contact: <sip:u@[::ffff:192.0.2.10]:19823>, "v6" <sip:c@[2001:db8::1]>
Call-ID: a@[2001:db8::9:1]
CSeq: 3 BYE
"""
)
BARE_IPV6 = IPV6.replace(b"[2001:db8::10]", b"2001:db8::10")
OTHER_SCHEMES = wire(
    """
INVITE unheard-of:anything/at?all SIP/2.0
To: isbn:0-306-40615-2
From: <http://www.cafe.test>;tag=http1
Contact: <tel:+999;phone-context=cafe.test>, <sip:r@cafe.test>
Via: SIP/2.0/UDP 192.0.2.105
"""
)
ALL = (
    ODD_BLANKS,
    ESCAPED,
    EXOTIC,
    TWO_REQUESTS,
    REPEATED,
    BINARY,
    IPV6,
    BARE_IPV6,
    OTHER_SCHEMES,
    b"SIP/2.0 200 = (10 + 10) * 10 \xd0\xbd\xd0\xbe \xff\r\nv: SIP/2.0/UDP a\r\n\r\n",
    b"SIP/2.0 100 \r\nVia: SIP/2.0/UDP a\r\n\r\n",
    b"\r\n\r\nOPTIONS sip:a SIP/2.0\nVia: SIP/2.0/UDP a\n\n",
)


def vias(message: SipMessage) -> list[Via]:
    return [Via.parse(message.data, span) for span in message.values("via")]


@pytest.mark.parametrize("data", ALL)
def test_unedited_it_is_the_same(data: bytes) -> None:
    assert SipMessage.parse(data).encode() == data


@pytest.mark.parametrize("data", ALL)
@pytest.mark.parametrize(
    "change", [bytes.lower, bytes.upper, bytes.swapcase], ids=lambda change: change.__name__
)
def test_the_case_of_names_does_not_matter(data: bytes, change: Callable[[bytes], bytes]) -> None:
    message = SipMessage.parse(data)
    for header in message.headers:
        message.edit(header.name_span, change(data[slice(*header.name_span)]))
    again = SipMessage.parse(message.encode())
    assert [header.name for header in again.headers] == [header.name for header in message.headers]


def test_odd_blanks_are_read_through() -> None:
    message = SipMessage.parse(ODD_BLANKS)
    assert (message.method, message.cseq, message.call_id) == ("INVITE", (9, "INVITE"), b"blanks.1@192.0.2.1")
    assert (message.from_tag, message.to_tag, message.body) == (b"f0x", b"t0x", b"1234")
    assert [(via.transport, via.host, via.port, via.branch) for via in vias(message)] == [
        ("UDP", b"192.0.2.2", None, b"b1"),
        ("TCP", b"loop.test", None, b"z9hG4bKb2"),
        ("UDP", b"192.0.2.1", 5061, b"z9hG4bKb3"),
    ]
    contact = message.contacts[0]
    assert contact.uri is not None
    assert (contact.uri.host, [param.name for param in contact.params]) == (
        b"192.0.2.1",
        ["first", "second", "q"],
    )
    last = vias(message)[-1]
    message.edit(last.host_port_span, b"203.0.113.1:7")
    message.edit(contact.uri.host_port_span, b"203.0.113.1:8")
    assert message.encode() == ODD_BLANKS.replace(b"192.0.2.1 : 5061", b"203.0.113.1:7").replace(
        b"c@192.0.2.1;", b"c@203.0.113.1:8;"
    )


def test_escapes_stay_escapes() -> None:
    message = SipMessage.parse(ESCAPED)
    users = [contact.uri.user if contact.uri else None for contact in message.contacts]
    assert users == [b"%00", b"c%61rol", b"c"]
    sender = message.header("from")
    assert sender is not None
    uri = NameAddress.parse(message.data, sender.value_span).uri
    assert uri is not None
    assert (uri.user, uri.host) == (b"sip%3Ax%40y;z=1%40cafe.test", b"cafe.test")


def test_every_letter_that_a_token_may_have_is_taken() -> None:
    message = SipMessage.parse(EXOTIC)
    assert message.method == TOKEN
    assert message.cseq == (4_000_000_000, TOKEN)
    assert message.from_tag == TOKEN.encode()
    assert message.branch == b"z9hG4bK" + TOKEN.encode()
    assert message.headers[-2].name == TOKEN.lower()
    assert message.request_uri is not None
    assert SipUri.parse(message.data, message.request_uri).host == b"cafe.test"


def test_a_second_request_in_a_datagram_is_no_part_of_the_first() -> None:
    message = SipMessage.parse(TWO_REQUESTS)
    assert (message.body, len(message.headers)) == (b"", 4)
    message.replace_body(b"x")
    assert message.encode() == TWO_REQUESTS.replace(b"Length: 0\r\n\r\n", b"Length: 1\r\n\r\nx")


def test_of_what_is_there_twice_the_first_counts() -> None:
    message = SipMessage.parse(REPEATED)
    assert (message.call_id, message.cseq, message.to_tag) == (b"first@192.0.2.25", (5, "INVITE"), b"3")
    assert len(message.headers_named("to")) == 2
    assert [str(via.ip) for via in vias(message)] == ["192.0.2.25", "192.0.2.26"]


def test_a_binary_body_is_only_bytes() -> None:
    message = SipMessage.parse(BINARY)
    assert (len(message.body), message.length_error, message.content_type) == (38, "", "multipart/mixed")
    assert len(vias(message)) == 1


def test_ipv6_is_read_with_brackets_and_where_the_grammar_has_none() -> None:
    message = SipMessage.parse(IPV6)
    assert [(via.ip, via.port, via.received) for via in vias(message)] == [
        (ip_address("2001:db8::9:1"), None, ip_address("2001:db8::9:255")),
        (ip_address("::ffff:192.0.2.10"), 19823, ip_address("2001:db8::9:255")),
    ]
    assert [contact.uri.endpoint() for contact in message.contacts if contact.uri] == [
        Endpoint.of("::ffff:192.0.2.10", 19823),
        Endpoint.of("2001:db8::1", 5060),
    ]


def test_an_ipv6_uri_without_brackets_is_refused_and_the_message_is_not() -> None:
    message = SipMessage.parse(BARE_IPV6)
    assert message.request_uri is not None
    with pytest.raises(DecodeError):
        SipUri.parse(message.data, message.request_uri)
    assert len(message.contacts) == 2


def test_uris_of_other_schemes_are_nobodys_address() -> None:
    message = SipMessage.parse(OTHER_SCHEMES)
    schemes = [(contact.uri.scheme, contact.uri.ip) for contact in message.contacts if contact.uri]
    assert schemes == [("tel", None), ("sip", None)]
    assert message.from_tag == b"http1"


@pytest.mark.parametrize(
    "data",
    [
        IPV6.replace(b"SIP/2.0\r\nTo", b"SIP/7.0\r\nTo"),
        b"SIP/2.0 4294967301 better not\r\nv: SIP/2.0/UDP a\r\n\r\n",
        TWO_REQUESTS.replace(b"REGISTER sip", b"REGISTER\r\n sip"),
        TWO_REQUESTS[:60],
        b"",
    ],
)
def test_what_is_no_message_of_this_version_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        SipMessage.parse(data)


def test_the_names_of_the_package_are_the_classes() -> None:
    assert nattools.sip.SipMessage is SipMessage
    assert nattools.sip.Span is Span
    assert all(hasattr(nattools.sip, name) for name in nattools.sip.__all__)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = nattools.sip.Nonsense
