"""What holds for any phone, binding and bytes: nothing raises, the way back is exact, twice is once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage
from nattools.sip.rewriter import Rewriter
from tests.fuzz.mutator import Target, run
from tests.unit.sip.bound import Binding, at, events, wire

LOCAL, SERVER = at("192.168.0.111:5060"), at("203.0.113.7:5060")

INVITE = wire(
    """
INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKa, SIP/2.0/UDP 10.0.0.1
Max-Forwards: 70
m: "A, B" <sip:alice@192.168.0.111>;expires=60, <sip:x@192.168.0.111:5060;ob>,
 <sip:alice@192.168.0.111:5060;transport=udp>
f: <sip:alice@192.168.0.111:5060>;tag=1
t: <sip:bob@example.com>
i: c1
CSeq: 1 INVITE
c: application/sdp
""",
    """
v=0
o=- 7 1 IN IP4 192.168.0.111
s=-
c=IN IP4 192.168.0.111
t=0 0
m=audio 10002 RTP/AVP 0
a=rtcp:10003 IN IP4 192.168.0.111
a=candidate:1 1 UDP 2130706431 192.168.0.111 10002 typ host
m=video 20000/2 RTP/AVP 99
c=IN IP4 192.168.0.111
""",
)
REGISTERED = wire(
    """
SIP/2.0 200 OK
Via: SIP/2.0/UDP 203.0.113.1:40000;branch=z9hG4bKa;received=203.0.113.1;rport=40777
From: <sip:alice@example.com>;tag=1
To: <sip:alice@example.com>;tag=2
Call-ID: c1
CSeq: 1 REGISTER
Contact: <sip:alice@203.0.113.1:40000>;expires=60, <sip:alice@203.0.113.1>
"""
)
CALLED = wire(
    """
INVITE sip:alice@203.0.113.1:40000;transport=udp SIP/2.0
Via: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp
Call-ID: c2
CSeq: 1 INVITE
"""
)
MIXED = wire(
    """
SIP/2.0 200 OK
Via: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp
Call-ID: c2
CSeq: 1 INVITE
Contact: <sip:alice@192.168.0.111:5060>
Content-Type: multipart/mixed;boundary=x
""",
    """
--x
Content-Type: application/sdp
Content-Length: 96

v=0
o=- 7 1 IN IP4 192.168.0.111
s=-
c=IN IP4 192.168.0.111
t=0 0
m=audio 10002 RTP/AVP 0
--x
Content-Type: text/plain

192.168.0.111:5060
--x--
""",
)


def rewriter(public: Endpoint | None = None) -> Rewriter:
    made = Rewriter(Binding(LOCAL, public or at("203.0.113.1:40000")))
    made.add_media(
        Binding(at("192.168.0.111:10002"), at("203.0.113.1:41002")),
        Binding(at("192.168.0.111:10003"), at("203.0.113.1:41777")),
    )
    made.add_media(Binding(at("192.168.0.111:20000"), at("198.51.100.1:42000")))
    return made


def seeds() -> Sequence[bytes]:
    return (INVITE, REGISTERED, CALLED, MIXED)


def check(data: bytes) -> str:
    """Both ways, from one rewriter for each; then once more what went out, which must be as it is."""
    made = rewriter()
    made.media_needed(data)
    once = made.outgoing(data, SERVER)
    events(made)
    twice = rewriter().outgoing(once, SERVER)
    assert twice == once
    back = rewriter().incoming(data, SERVER)
    if once == data == back:
        return "as it was"
    SipMessage.parse(once)
    SipMessage.parse(back)
    return "rewritten"


@given(st.binary(max_size=200))
def test_any_bytes_come_back_as_bytes(data: bytes) -> None:
    assert check(data) == "as it was"


def test_mutated_messages_never_raise_and_twice_is_once() -> None:
    report = run(Target("rewriter", seeds, check), count=2000, seed=5060)
    assert report.failure is None, report.failure
    assert report.outcomes["rewritten"] > 800


hosts = st.sampled_from(["192.168.0.111", "192.168.0.111:5060"])
users = st.sampled_from(["", "alice@", "a%20b;x=1@", "alice:secret@"])
uri_params = st.sampled_from(["", ";transport=udp", ";line=abc;lr", ";x=%3b?Subject=1"])
params = st.sampled_from(["", ";expires=60", ' ; q=0.5;+sip.instance="<urn:uuid:1,2>"'])
own = st.builds("<sip:{}{}{}>{}".format, users, hosts, uri_params, params)
foreign = st.sampled_from(
    [
        "<sip:bob@198.51.100.4:5060>",
        "sip:bob@example.com;q=1",
        "<tel:+12015550123>",
        "<sip:x@192.168.0.111:7000>",
    ]
)
publics = st.builds(
    Endpoint,
    st.ip_addresses(v=4) | st.ip_addresses(v=6),
    st.sampled_from([5060, 5061]) | st.integers(1, 0xFFFF),
)


@given(
    via=hosts,
    rport=st.sampled_from(["", ";rport"]),
    contact=hosts,
    others=st.lists(foreign, max_size=2),
    mine=st.lists(st.tuples(users, uri_params, params), min_size=1, max_size=3),
    public=publics,
)
def test_an_answer_gives_the_phone_back_what_it_wrote(
    via: str,
    rport: str,
    contact: str,
    others: list[str],
    mine: list[tuple[str, str, str]],
    public: Endpoint,
) -> None:
    values = [f"<sip:{user}{contact}{end}>{after}" for user, end, after in mine] + others
    request = wire(f"""
REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/UDP {via}{rport};branch=z9hG4bKa
From: <sip:alice@192.168.0.111>;tag=1
Call-ID: c1
CSeq: 1 REGISTER
Contact: {", ".join(values)}
Content-Length: 0
""")
    made = rewriter(public)
    sent = made.outgoing(request, SERVER)
    heard = made.incoming(sent.replace(b"REGISTER sip:example.com SIP/2.0", b"SIP/2.0 200 OK"), SERVER)
    expected = request.replace(b"REGISTER sip:example.com SIP/2.0", b"SIP/2.0 200 OK")
    if not rport:
        expected = re.sub(rb"(Via: SIP/2.0/UDP [0-9.:]+)", rb"\1;rport", expected)
    assert heard == expected


@given(contact=own, public=publics)
def test_a_request_to_the_contact_finds_the_phone_by_what_it_wrote(contact: str, public: Endpoint) -> None:
    request = wire(f"""
REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/UDP 192.168.0.111:5060;rport;branch=z9hG4bKa
Call-ID: c1
CSeq: 1 REGISTER
Contact: {contact}
""")
    made = rewriter(public)
    sent = made.outgoing(request, SERVER)
    told = re.search(rb"Contact: <([^>]*)>", sent)
    wrote = re.search(r"<([^>]*)>", contact)
    assert told
    assert wrote
    assert str(public.ip).encode() in told[1]
    call = "INVITE {} SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp"
    assert made.incoming(wire(call.format(told[1].decode())), SERVER) == wire(call.format(wrote[1]))


@given(message=st.sampled_from([INVITE, MIXED]), public=publics)
def test_no_private_address_is_left_where_servers_look(message: bytes, public: Endpoint) -> None:
    sent = SipMessage.parse(rewriter(public).outgoing(message, SERVER))
    via = sent.top_via
    assert via is not None
    if sent.is_request:
        assert (via.ip, via.port or 5060) == (public.ip, public.port)
    uris = [contact.uri for contact in sent.contacts]
    assert all(uri and (uri.endpoint() == public or uri.param("ob")) for uri in uris)
    assert sent.content_length == len(sent.body)
    assert not re.search(rb"(?m)^[oc]=.*192\.168\.0\.111", sent.body)


UNUSUAL = b"a=candidateless:x\r\n"
"""Means nothing, and keeps a description from being read at one glance."""

words = st.sampled_from(["192.168.0.111"] * 12 + ["0.0.0.0", "198.51.100.3", "203.0.113.1"])
lines = ["s=-", "t=0 0", "b=AS:64", "k=prompt", "i=x y", "a=sendonly", "a=srcadr:192.168.0.111:10002 x"]
extras = st.lists(st.sampled_from([*lines * 3, "x"]), max_size=2).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)
descriptions = st.builds(
    "v=0\no=- {} {} IN IP4 {}\n{}c=IN IP4 {}\n{}m=audio {} {} 0\n{}".format,
    st.integers(7, 8),
    st.sampled_from(["1", "2", "007", "99999999999999999"]),
    words,
    extras,
    words,
    extras,
    st.sampled_from(["10002"] * 12 + ["30000", "0", "65535", "010002", "10002/2"]),
    st.sampled_from(["RTP/AVP"] * 6 + ["RTP/SAVP", "TCP/RTP/AVP", "udptl"]),
    extras,
)
media_publics = st.builds(
    lambda host, port: at(f"{host}:{port}"),
    st.sampled_from(["203.0.113.1", "198.51.100.1", "[2001:db8::1]", "192.168.0.111"]),
    st.sampled_from([10002, 41002, 41003]),
)


@given(
    sent=st.lists(st.tuples(descriptions, media_publics, media_publics), min_size=1, max_size=4),
    rtcp_is_bound=st.booleans(),
)
def test_the_usual_description_is_no_special_case(
    sent: list[tuple[str, Endpoint, Endpoint]], rtcp_is_bound: bool
) -> None:
    rtp = Binding(at("192.168.0.111:10002"), at("203.0.113.1:41002"))
    rtcp = Binding(at("192.168.0.111:10003"), at("203.0.113.1:41003"))
    usual, other = (Rewriter(Binding(LOCAL, at("203.0.113.1:40000"))) for _ in range(2))
    for made in (usual, other):
        made.add_media(rtp, rtcp if rtcp_is_bound else None)
    for description, rtp.endpoint, rtcp.endpoint in sent:
        message = wire("INVITE sip:b@h SIP/2.0\nCall-ID: c1\nContent-Type: application/sdp", description)
        length = len(message.partition(b"\r\n\r\n")[2])
        longer = message.replace(
            b"Content-Length: %d" % length, b"Content-Length: %d" % (length + len(UNUSUAL))
        )
        once = SipMessage.parse(usual.outgoing(message, SERVER))
        again = SipMessage.parse(other.outgoing(longer + UNUSUAL, SERVER))
        assert once.content_length == len(once.body)
        assert again.body == once.body + UNUSUAL
        assert events(usual) == events(other)
