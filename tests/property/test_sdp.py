"""What holds for any bytes: a description or a refusal, and only what was asked for changes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import assume, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip import media
from nattools.sip.body import edit_parts, sdp_parts
from nattools.sip.message import SipMessage
from nattools.sip.sdp import Direction, SessionDescription, compose_sdp
from nattools.sip.uri import Span

PUBLIC = Endpoint.of("203.0.113.9", 40000)

fragments = st.sampled_from(
    [
        "v=0",
        "o=- 1 2 IN IP4 192.0.2.1",
        "o=a b 1 2 IN IP6 ::1",
        "c=IN IP4 192.0.2.1",
        "c=IN IP4 0.0.0.0",
        "c=IN IP4 224.1.1.1/127",
        "c=IN IP6 2001:db8::1",
        "c=IN IP4 host.example",
        "m=audio 9000 RTP/AVP 0",
        "m=audio 9000/2 RTP/AVP 0 8",
        "m=video 0 RTP/AVP 31",
        "m=message 9000 TCP/MSRP *",
        "m=image 9002 udptl t38",
        "m=audio 65535 UDP/TLS/RTP/SAVPF 0",
        "i=title",
        "b=AS:64",
        "a=rtcp:9001",
        "a=rtcp:9001 IN IP4 192.0.2.1",
        "a=rtcp:99999 IN IP6 2001:db8::2",
        "a=rtcp-mux",
        "a=candidate:1 1 UDP 2130706431 192.0.2.1 9000 typ host",
        "a=candidate:public 2 UDP 1694498814 203.0.113.9 40000 typ srflx",
        "a=candidate:1 1 UDP 1",
        "a=srcadr:192.0.2.1:9000 203.0.113.9:1",
        "a=sendonly",
        "a=",
        "",
        "x",
    ]
)
broken = st.builds(
    lambda line, at, with_: line[:at] + with_ + line[at:], fragments, st.integers(0, 30), st.text(max_size=2)
)
line_breaks = st.sampled_from(["\r\n", "\n", "\r", "\n\n"])
nearly = st.lists(st.tuples(fragments | broken, line_breaks), max_size=12).map(
    lambda lines: ("v=0\r\n" + "".join(line + end for line, end in lines)).encode()
)
ports = st.integers(1, 65535)
addresses = st.ip_addresses(v=4).filter(lambda ip: not (ip.is_multicast or ip.is_unspecified))
endpoints = st.builds(Endpoint, addresses, ports)


def spliced(data: bytes, edits: list[media.Edit]) -> bytes:
    pieces, position = [], 0
    for (start, end), replacement in sorted(edits, key=lambda edit: edit[0]):
        assert position <= start <= end
        pieces += [data[position:start], replacement]
        position = end
    return b"".join([*pieces, data[position:]])


def look_at_all(data: bytes, span: Span | None = None) -> SessionDescription | None:
    """Read a description, and every value in it; None where it is refused."""
    try:
        description = SessionDescription.parse(data, span)
    except DecodeError:
        return None
    start, end = description.span
    values: list[object] = [description.origin, *description.connections, *description.media]
    for stream in description.media:
        assert start <= stream.span.start <= stream.line_end <= stream.span.end <= end
        values += [*stream.connections, stream.rtcp, *stream.candidates, stream.srcadr]
    for value in values:
        for name in dir(type(value)):
            if isinstance(getattr(type(value), name), property):
                read = getattr(value, name)
                assert not isinstance(read, Span) or start <= read.start <= read.end <= end
    return description


class TestAnyBytes:
    @given(st.binary(max_size=200) | nearly)
    def test_are_a_description_or_a_decode_error(self, data: bytes) -> None:
        look_at_all(data)
        look_at_all(b"v=0\n" + data)

    @given(nearly, st.binary(max_size=20), st.binary(max_size=20))
    def test_may_lie_around_it(self, data: bytes, before: bytes, behind: bytes) -> None:
        alone = look_at_all(data)
        inside = look_at_all(before + data + behind, Span(len(before), len(before) + len(data)))
        assert (alone is None) is (inside is None)
        if alone is not None and inside is not None:
            assert [it.endpoint for it in alone.media] == [it.endpoint for it in inside.media]

    @given(
        nearly, st.sampled_from([PUBLIC, Endpoint.of("2001:db8::9", 40000), Endpoint.of("192.0.2.1", 9000)])
    )
    def test_move_once_and_no_further(self, data: bytes, public: Endpoint) -> None:
        """What was moved is still a description; its streams are where they were moved to, and stay there."""
        description = look_at_all(data)
        if description is None:
            return
        moves = media.moves(description, lambda local: public)
        assume(all(move.stream.rtp.port < 65535 for move in moves))  # that one has no port above for RTCP
        edited = spliced(data, media.edits(description, moves))
        again = SessionDescription.parse(edited)
        moved = {id(move.stream.media) for move in moves}
        for old, new in zip(description.media, again.media, strict=True):
            assert new.endpoint == (public if id(old) in moved else old.endpoint)
            assert (new.kind, new.port_count, new.formats) == (old.kind, old.port_count, old.formats)
        assert not media.edits(again, media.moves(again, lambda local: public))

    @given(nearly)
    def test_stay_where_nothing_is_known(self, data: bytes) -> None:
        description = look_at_all(data)
        if description is not None:
            assert not media.edits(description, media.moves(description, lambda local: None))

    @given(st.lists(nearly | st.binary(max_size=30), max_size=4), st.binary(max_size=10), st.booleans())
    def test_are_parts_of_a_body_that_is_edited(self, parts: list[bytes], around: bytes, sized: bool) -> None:
        """Lengths follow, and what was not edited is the same."""
        heads = [
            b"Content-Type: application/sdp\r\n" + b"Content-Length: %d\r\n" % len(it) * sized for it in parts
        ]
        pieces = [b"--q\r\n" + head + b"\r\n" + it + b"\r\n" for head, it in zip(heads, parts, strict=True)]
        body = b"".join([around, b"\r\n", *pieces, b"--q--\r\n", around])
        head = b"MESSAGE sip:b@example.com SIP/2.0\r\nContent-Type: multipart/mixed;boundary=q\r\n"
        message = SipMessage.parse(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        found = sdp_parts(message)
        edit_parts(message, [(it, [(Span(it.span.start, it.span.start), b"new")]) for it in found])
        edited = SipMessage.parse(message.encode())
        assert edited.length_error == ""
        assert edited.body_span.end == len(edited.data)
        assert [edited.data[slice(*it.span)] for it in sdp_parts(edited)] == [
            b"new" + message.data[slice(*it.span)] for it in found
        ]
        assert all(
            it.size == len(edited.data[slice(*part.span)])
            for part in sdp_parts(edited)
            for it in part.lengths
        )


class TestDescriptions:
    @given(
        endpoints | st.builds(Endpoint, st.ip_addresses(v=6), ports),
        st.none() | endpoints,
        st.integers(0, 2**63),
        st.integers(0, 2**63),
        st.sampled_from(Direction),
        st.lists(st.integers(0, 127), min_size=1, max_size=4),
    )
    def test_that_are_written_are_read_back(
        self,
        rtp: Endpoint,
        rtcp: Endpoint | None,
        session_id: int,
        version: int,
        direction: Direction,
        types: list[int],
    ) -> None:
        formats = [(number, "PCMU/8000") for number in types]
        data = compose_sdp(
            rtp, rtcp=rtcp, formats=formats, session_id=session_id, version=version, direction=direction
        )
        description = look_at_all(data)
        assert description is not None
        (stream,) = description.media
        origin = description.origin
        assert origin is not None
        assert (int(origin.session_id), origin.version, origin.ip) == (session_id, version, rtp.ip)
        assert stream.endpoint == rtp
        if rtcp is not None:
            assert stream.rtcp_endpoint == rtcp
        assert stream.direction is direction
        assert stream.formats == tuple(b"%d" % number for number in types)

    @given(
        st.lists(
            st.tuples(ports, st.booleans(), st.none() | endpoints, st.none() | endpoints),
            min_size=1,
            max_size=4,
        ),
        addresses,
        st.booleans(),
    )
    def test_move_each_stream_to_its_own_endpoint(
        self,
        streams: list[tuple[int, bool, Endpoint | None, Endpoint | None]],
        local: IPv4Address | IPv6Address,
        with_session: bool,
    ) -> None:
        """Whichever level c= lines are on, and whoever shares them."""
        publics: dict[Endpoint, Endpoint] = {}
        lines = ["v=0", "o=- 1 1 IN IP4 192.0.2.1", "s=-"]
        lines += [f"c=IN IP4 {local}"] if with_session else []
        for port, with_own, rtp, rtcp in streams:
            lines.append(f"m=audio {port} RTP/AVP 0")
            lines += [f"c=IN IP4 {local}"] if with_own else []
            lines.append("a=ptime:20")
            if rtp is not None:
                publics.setdefault(Endpoint(local, port), rtp)
            if rtcp is not None and port < 65535:
                publics.setdefault(Endpoint(local, port + 1), rtcp)
        data = "\r\n".join([*lines, ""]).encode()
        before = SessionDescription.parse(data)
        after = SessionDescription.parse(spliced(data, media.edits(before, media.moves(before, publics.get))))
        for old, new in zip(before.media, after.media, strict=True):
            rtp = publics.get(old.endpoint) if old.endpoint else None
            assert new.endpoint == (rtp or old.endpoint)
            rtcp = publics.get(old.rtcp_endpoint) if old.rtcp_endpoint else None
            if rtp is not None and rtcp is not None:
                assert new.rtcp_endpoint == rtcp
