"""What holds of any description with a relay in it: it leads to the relay, and only what must change does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import AddressClass, Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.session.offers import Lot, describe, edits, is_relayed
from nattools.session.relay import PortPair
from nattools.sip.body import Part, edit_parts
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from nattools.sip.uri import Span

RELAYS: list[IPAddress] = [Endpoint.of("203.0.113.7", 0).ip, Endpoint.of("2001:db8::7", 0).ip]
HEAD = b"INVITE sip:b@x SIP/2.0\r\n\r\n"
LINES = st.sampled_from(
    (
        b"c=IN IP4 10.0.0.8",
        b"c=IN IP4 0.0.0.0",
        b"c=IN  IP4 224.2.1.1/127/3",
        b"c=IN IP6 fe80::1",
        b"c=IN IP4 phone.example.com",
        b"m=audio 4000 RTP/AVP 0 101",
        b"m=audio 4000/2 RTP/SAVP 0",
        b"m=video 0 RTP/AVP 96",
        b"m=video 4002 RTP/AVPF 96",
        b"m=image 4004 udptl t38",
        b"m=message 5000 TCP/MSRP *",
        b"a=rtcp:4001",
        b"a=rtcp:4001 IN IP4 10.0.0.8",
        b"a=rtcp-mux",
        b"a=candidate:1 1 UDP 1 10.0.0.8 4000 typ host",
        b"a=ice-ufrag:x",
        b"a=group:BUNDLE 0 1",
        b"a=srcadr:10.0.0.8:4000 203.0.113.1:4000",
        b"a=sendonly",
        b"b=AS:64",
        b"i=words",
        b"k=clear:x",
        b"a=x-unknown:\xff 10.0.0.8",
    )
)
LED_PAST = (b"a=candidate", b"a=ice-", b"a=group:BUNDLE", b"a=srcadr", b"c=", b"m=", b"a=rtcp:")
descriptions = st.builds(
    lambda lines, line_break, ends: (
        line_break.join((b"v=0", b"o=- 1 1 IN IP4 10.0.0.8", b"s=-", b"t=0 0", *lines))
        + (line_break if ends else b"")
    ),
    st.lists(LINES, max_size=14),
    st.sampled_from((b"\r\n", b"\n")),
    st.booleans(),
)
mutated = st.builds(
    lambda data, at, size, new: data[: at % len(data)] + new + data[at % len(data) + size :],
    descriptions,
    st.integers(0, 2000),
    st.integers(0, 8),
    st.binary(max_size=6) | st.sampled_from((b"\r\n", b"\nc=", b"\nm=", b"/", b"\na=rtcp:", b" 99999 ")),
)


def relayed(data: bytes, relay: IPAddress, *, is_answer: bool) -> bytes | None:
    """The description as it goes on, None where it is none."""
    message = SipMessage.parse(HEAD + data + b"\r\n--boundary")
    span = Span(len(HEAD), len(HEAD) + len(data))
    try:
        description = SessionDescription.parse(message.data, span)
    except DecodeError:
        return None
    lots: list[PortPair | Lot] = []
    for index, media in enumerate(description.media):
        describe(media, relay)
        at = Endpoint(relay, 30000 + 2 * index)
        lots.append(PortPair(at, at.with_port(at.port + 1)) if is_relayed(media) else Lot.LEFT)
    made = edits(description, lots, address=relay, is_answer=is_answer, strips_ice=True)
    edit_parts(message, [(Part(span), made)])
    encoded = message.encode()
    assert encoded.endswith(b"\r\n--boundary")
    return encoded[len(HEAD) : -len(b"\r\n--boundary")]


@settings(max_examples=300, deadline=None)
@given(descriptions | mutated, st.sampled_from(RELAYS), st.booleans())
def test_each_stream_over_udp_leads_to_the_relay(data: bytes, relay: IPAddress, is_answer: bool) -> None:
    made = relayed(data, relay, is_answer=is_answer)
    if made is None:
        return
    before, after = SessionDescription.parse(data), SessionDescription.parse(made)
    assert len(before.media) == len(after.media)
    for index, (old, new) in enumerate(zip(before.media, after.media, strict=True)):
        if not is_relayed(old):
            assert (new.port, new.protocol) == (old.port, old.protocol)
            continue
        assert new.port == 30000 + 2 * index
        assert new.endpoint is not None
        assert new.endpoint.ip == relay or new.endpoint.address_class is AddressClass.UNSPECIFIED
        assert new.formats == old.formats
        assert new.direction is old.direction
        assert not new.candidates
        if new.rtcp_endpoint is not None and not new.is_rtcp_mux:
            assert new.rtcp_endpoint.port == new.port + 1


@settings(max_examples=200, deadline=None)
@given(descriptions, st.sampled_from(RELAYS), st.booleans())
def test_all_other_lines_stay_as_they_are(data: bytes, relay: IPAddress, is_answer: bool) -> None:
    made = relayed(data, relay, is_answer=is_answer)
    assert made is not None
    kept = [[it for it in text.split(b"\n") if it and not it.startswith(LED_PAST)] for text in (data, made)]
    assert [it.rstrip(b"\r") for it in kept[0]] == [it.rstrip(b"\r") for it in kept[1]]
