"""The promise of the SIP editor: any bytes are a message or a `DecodeError`, and what nobody edits stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.headers import NameAddress, Via, split_list
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.rewriter import Rewriter
from nattools.sip.sdp import SessionDescription
from nattools.sip.stream import SipStream
from nattools.sip.uri import SipUri, Span
from tests.fuzz.mutator import Target

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "sip" / "rfc3665"
"""The messages of RFC 3665, beside the repository; without them those here must do."""

_SERVER = Endpoint.of("203.0.113.7", 5060)
_ODD_REQUEST = b"""\
INVITE sip:carol@cafe.test;own-param  SIP/2.0
TO :
 sip:carol@cafe.test ;   tag    = t0x
f   : "C \\\\\\""       <sip:c@cafe.test>
  ;
  tag = f0x
CONTACT:
 "Quoted, \\"twice\\" <x>"
   <sip:carol@192.0.2.1:5060;lr?h=v> ; first = "a;b,c" ;q=0.5 , *, tel:+1
  : sip:a@192.0.2.1
MaX-fOrWaRdS: 0009
Call-ID: odd.1@192.0.2.1
Content-Length   : 0160
cseq: 0009
  INVITE
Via  : SIP  /   2.0
 /UDP
    192.0.2.2 ; branch=b1;rport (a comment, with (one more)), SIP/2.0/TCP [2001:db8::9]:5070
v:  SIP / 2.0 / TLS loop.test ;received= 2001:db8::9;ttl = 1,
   SIP/2.0/UDP 192.0.2.1:5060;received=[2001:db8::1]:7;rport=5061
Route:
 <sip:proxy.test;lr;own=value;own2>
Content-Type: application/sdp

v=0
o=carol 29739 7272939 IN IP4 192.0.2.3
s=-
c=IN IP4 192.0.2.4
t=0 0
m=audio 49217/2 RTP/AVP 0 12
a=rtcp:49220 IN IP4 192.0.2.4
m=video 0 RTP/AVP 31
c=IN IP6 2001:db8::1
"""
_RESPONSE = b"""\
SIP/2.0 200 \xe4\xbd\xa0 OK
v: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;received=203.0.113.1;rport=40000
f:<sip:a@b.test>;tag=1
t:<sip:c@d.test>;tag=2
m:<sip:[2001:db8::5]:5062>,<sip:a@192.0.2.1>;expires=60
i:1
CSeq:1 REGISTER
l: 0

"""


@dataclass(frozen=True, slots=True)
class _Binding:
    local: Endpoint
    public: Endpoint


def check(data: bytes) -> str:
    """Hold every reader to its promise on `data`; say what it was."""
    check_values(data)
    rewriter = Rewriter(_Binding(Endpoint.of("192.0.2.1", 5060), Endpoint.of("203.0.113.1", 40000)))
    rewriter.add_media(_Binding(Endpoint.of("192.0.2.4", 49217), Endpoint.of("203.0.113.1", 40002)))
    outgoing = rewriter.outgoing(data, _SERVER)
    incoming = rewriter.incoming(data, _SERVER)
    for _ in range(100):
        if rewriter.next_event() is None:
            break
    try:
        message = SipMessage.parse(data)
    except DecodeError:
        assert outgoing == incoming == data
        check_stream(data, None)
        return "DecodeError"
    check_message(message)
    check_edits(message)
    check_stream(data, message)
    SipMessage.parse(outgoing)
    SipMessage.parse(incoming)
    return "request" if message.is_request else "response"


def _value(read: Callable[[], object]) -> object:
    """What it gives, or None for a `DecodeError`."""
    try:
        return read()
    except DecodeError:
        return None


def check_values(data: bytes) -> None:
    """Values of headers are read wherever they begin."""
    place = Span(len(data) // 3, len(data) - len(data) // 4)
    for parse in (SipUri.parse, Via.parse, NameAddress.parse, SessionDescription.parse):
        _value(lambda parse=parse: parse(data, place))  # type: ignore[misc]  # no type for a default
    last = place.start
    for start, end in split_list(data, place):
        assert last <= start < end <= place.end
        last = end


def check_message(message: SipMessage) -> None:
    """Each answer is a value that lies where it is said to lie, or a `DecodeError`."""
    data = message.data
    assert message.encode() is data
    start, end = message.body_span
    assert 0 < start <= end <= len(data)
    assert message.body == data[start:end]
    assert bool(message.length_error) <= (message.content_length is None)
    _ = (
        message.method,
        message.call_id,
        message.cseq,
        message.from_tag,
        message.to_tag,
        message.content_type,
    )
    _value(lambda: message.branch)
    _value(lambda: message.declared_length)
    _value(lambda: message.contacts)
    headers = message.headers
    for header in headers:
        begin, stop = header.line_span
        assert begin <= header.name_span.start <= header.name_span.end <= header.value_span.start
        assert header.value_span.start <= header.value_span.end < stop <= start
        message.value(header)
    for name in {header.name for header in headers}:
        parse = Via.parse if name == "via" else NameAddress.parse
        for span in message.values(name):
            check_value(data, _value(lambda parse=parse, span=span: parse(data, span)))  # type: ignore[misc]  # mypy infers no lambda with defaults
    via = _value(lambda: message.top_via)
    if isinstance(via, Via) and message.is_request:
        SipMessage.parse(compose_response(message, 200, "OK", to_tag="t"))


def check_value(data: bytes, value: object) -> None:
    """Each part has the bytes that its span has."""
    if isinstance(value, Via):
        _ = (value.ip, value.received, value.rport, value.branch)
        assert data[slice(*value.host_span)].strip(b"[]") == value.host
        assert value.port is None or int(data[slice(*(value.port_span or (0, 0)))]) == value.port
    if isinstance(value, NameAddress) and value.uri is not None:
        uri = value.uri
        uri.endpoint()
        assert data[slice(*uri.host_span)].strip(b"[]") == uri.host
        assert uri.user_span is None or data[slice(*uri.user_span)] == uri.user
        assert uri.port is None or int(data[slice(*(uri.port_span or (0, 0)))]) == uri.port
    if isinstance(value, Via | NameAddress):
        for param in value.params:
            assert data[slice(*param.name_span)].lower().decode("latin-1") == param.name
            assert param.value_span is None or data[slice(*param.value_span)] == param.value


def check_edits(message: SipMessage) -> None:
    """What is written into each value is read there again, and all else is as it was."""
    data = message.data
    edited = SipMessage.parse(data)
    headers = message.headers
    for header in headers:
        if header.name != "content-length":
            edited.edit(header.value_span, b"new")
    again = SipMessage.parse(edited.encode())
    for header, old in zip(again.headers, headers, strict=True):
        value = data[slice(*old.value_span)] if old.name == "content-length" else b"new"
        assert (header.name, again.data[slice(*header.value_span)]) == (old.name, value)
        assert again.data[slice(*header.name_span)] == data[slice(*old.name_span)]
    assert again.body == message.body
    if not message.length_error:
        edited.replace_body(b"another body")
        if message.content_length is not None:
            assert SipMessage.parse(edited.encode()).body == b"another body"


def check_stream(data: bytes, message: SipMessage | None) -> None:
    """The first message of a stream is the message, as far as its length says."""
    stream = SipStream()
    stream.feed(data)
    first = _value(stream.next_message)
    if isinstance(first, bytes) and message is not None and message.content_length is not None:
        assert data[: message.body_span.end].lstrip(b"\r\n") == first
    if isinstance(first, bytes):
        SipMessage.parse(first)


_WORDS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n ",
    b"\r\n\r\n",
    b'"',
    b"\\",
    b"<",
    b">",
    b"(",
    b")",
    b",",
    b";",
    b"=",
    b":",
    b"@",
    b"[",
    b"]",
    b"*",
    b" ",
    b"sip:",
    b"sips:",
    b"tel:",
    b"SIP/2.0",
    b"SIP/2.0/UDP ",
    b"192.0.2.1",
    b"192.0.2.1:5060",
    b"[2001:db8::1]",
    b"65536",
    b";rport",
    b";received=",
    b";tag=",
    b";branch=z9hG4bK",
    b"\r\nVia: ",
    b"\r\nv:",
    b"\r\nContact: ",
    b"\r\nContact: *",
    b"\r\nContent-Length: ",
    b"\r\nl: 0",
    b"\r\nCSeq: 1 INVITE",
    b"\r\nContent-Type: multipart/mixed;boundary=b\r\n",
    b"\r\nContent-Type: application/sdp\r\n",
    b"--b\r\n",
    b"--b--",
    b"c=IN IP4 192.0.2.4\r\n",
    b"m=audio 49217 RTP/AVP 0\r\n",
    b"9" * 20,
    b"\xff",
)


def put_word(data: bytearray, random: Random) -> None:
    """Put in something that means something to one of the readers."""
    position = random.randrange(len(data) + 1)
    data[position:position] = random.choice(_WORDS)


def change_case(data: bytearray, random: Random) -> None:
    """Swap the case of a short run."""
    start = random.randrange(len(data) + 1)
    data[start : start + 16] = data[start : start + 16].swapcase()


def drop_line(data: bytearray, random: Random) -> None:
    """Take a line out, or put it elsewhere."""
    start = data.find(b"\n", random.randrange(len(data) + 1)) + 1
    line = data[start : data.find(b"\n", start) + 1]
    del data[start : start + len(line)]
    if random.random() < 0.5:
        position = data.find(b"\n", random.randrange(len(data) + 1)) + 1
        data[position:position] = line


def seeds() -> Sequence[bytes]:
    """Odd ones of each kind, with both line ends, and the corpus where it is there."""
    own = (_ODD_REQUEST, _RESPONSE)
    corpus = (path.read_bytes() for path in sorted(CORPUS.glob("*.sip")))
    return (*own, *(message.replace(b"\n", b"\r\n") for message in own), *corpus)


TARGET = Target("sip_codec", seeds, check, (put_word, change_case, drop_line))
