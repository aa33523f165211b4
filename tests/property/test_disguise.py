"""What holds for any message that an ALG sends outside, or that comes from there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.session.disguise import Disguise
from nattools.session.flows import Flows, Listener
from nattools.sip.message import SipMessage

INSIDE, LOCAL = Endpoint.of("127.0.0.1", 5060), Endpoint.of("192.168.0.108", 5062)
PUBLIC = Endpoint.of("203.0.113.1", 5062)
MEDIA = {Endpoint.of("203.0.113.1", 30000): Endpoint.of("192.168.0.108", 31000)}
OWN = [f"<sip:{LOCAL};lr>", f"<sip:{INSIDE};lr>"]

others = st.sampled_from(
    [
        "<sip:198.51.100.7;lr>",
        "<sip:proxy.example.org;lr;x=1>",
        '"P" <sip:203.0.113.20:5070;transport=tcp;lr>',
    ]
)
routes = st.lists(others, max_size=4)
pieces = st.sampled_from(
    [
        b"INVITE sip:bob@203.0.113.1:5062 SIP/2.0\r\n",
        b"SIP/2.0 200 OK\r\n",
        b"Via: SIP/2.0/UDP 192.168.0.108:5062;branch=z9hG4bK1\r\n",
        b"Record-Route: <sip:192.168.0.108:5062;lr>\r\n",
        b"record-route : <sip:127.0.0.1:5060;lr>, <sip:",
        b"m: <sip:bob@203.0.113.1:5062>,*\r\n",
        b"Contact: bob <sip:203.0.113.1:5062>;q=\r\n",
        b"CSeq: 1 INVITE\r\n",
        b"Content-Type: application/sdp\r\n",
        b"Content-Length: 40\r\n",
        b"\r\n",
        b"v=0\r\nc=IN IP4 203.0.113.1\r\n",
        b"m=audio 30000 RTP/AVP 0\r\n",
        b"a=rtcp:30000\r\n",
        b"\x00\xff",
        b"\n ",
    ]
)
messages = st.lists(pieces | st.binary(max_size=8), max_size=14).map(b"".join)


def disguise() -> Disguise:
    flows = Flows([Listener("inside", "UDP", INSIDE), Listener("outside", "UDP", LOCAL)])
    made = Disguise(LOCAL, flows.is_own, MEDIA.get)
    made.publish(PUBLIC)
    return made


def message(start: str, values: list[str]) -> bytes:
    lines = [
        start,
        f"Via: SIP/2.0/UDP {LOCAL};branch=z9hG4bK1",
        *(f"Record-Route: {each}" for each in values),
    ]
    lines += ["From: <sip:a@example.org>;tag=a", "To: <sip:b@example.org>", "Call-ID: c", "CSeq: 1 INVITE"]
    return "\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()


def routes_in(data: bytes) -> list[str]:
    sip = SipMessage.parse(data)
    return [sip.data[slice(*span)].decode() for span in sip.values("record-route")]


@given(messages, messages)
def test_no_bytes_make_it_raise(one: bytes, other: bytes) -> None:
    made = disguise()
    for data in (one, other, one):
        for edit in (made.hide, made.restore, made.localise, made.address):
            edit(data)


@given(st.lists(st.sampled_from(OWN), max_size=2), routes, routes)
def test_the_route_set_inside_is_as_if_nothing_had_been_hidden(
    own: list[str], before: list[str], beyond: list[str]
) -> None:
    made = disguise()
    assert routes_in(made.hide(message("INVITE sip:bob@example.org SIP/2.0", [*own, *before]))) == before
    answer = message("SIP/2.0 200 OK", [*beyond, *before])
    assert routes_in(made.restore(answer)) == [*beyond, *own, *before]
    assert routes_in(made.hide(message("SIP/2.0 200 OK", [*beyond, *own, *before]))) == [*beyond, *before]


@given(routes, messages)
def test_what_names_nothing_of_ours_passes_byte_for_byte(values: list[str], body: bytes) -> None:
    made = disguise()
    data = message("INVITE sip:bob@198.51.100.9 SIP/2.0", values) + body
    for edit in (made.hide, made.restore, made.address):
        assert edit(data) == data
