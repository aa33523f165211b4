"""What a binding says of itself in the words of SIP and SDP."""

from __future__ import annotations

import pytest

from nattools.binding.keeper import BindingPair, Keeper, open_binding
from nattools.binding.model import Method, PublicBinding, Reach, Reachability
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, EncodeError
from nattools.sip.headers import NameAddress, Via
from nattools.sip.sdp import Direction, SessionDescription
from tests.unit.binding.on_loopback import asking, run, stun_server

LOCAL = Endpoint.of("192.168.0.111", 5060)
PUBLIC = Endpoint.of("140.113.131.89", 53404)
BRANCH = "z9hG4bK776asdhds"


def binding(public: Endpoint = PUBLIC) -> PublicBinding:
    return PublicBinding(LOCAL, public, Method.STUN, Reachability(Reach.ANYONE))


class TestVia:
    @pytest.mark.parametrize("public", [PUBLIC, Endpoint.of("2001:db8::1", 5060)])
    def test_is_read_back(self, public: Endpoint) -> None:
        value = binding(public).via(branch=BRANCH).encode()
        via = Via.parse(value)
        assert (via.transport, via.ip, via.port, via.has_rport) == ("UDP", public.ip, public.port, True)
        assert via.branch == BRANCH.encode()
        assert value.startswith(f"SIP/2.0/UDP {public};".encode())

    def test_is_of_another_transport(self) -> None:
        assert binding().via(branch=BRANCH, transport="TLS").startswith("SIP/2.0/TLS 140.113.131.89:53404;")

    def test_is_one_line(self) -> None:
        with pytest.raises(EncodeError):
            binding().via(branch="z9hG4bK\r\nEvil: yes")


class TestContact:
    def test_is_an_address(self) -> None:
        assert binding().contact() == "<sip:140.113.131.89:53404>"
        assert binding().contact("alice") == "<sip:alice@140.113.131.89:53404>"

    def test_has_what_it_is_given(self) -> None:
        value = binding().contact(
            "alice",
            display_name="Alice",
            uri_params=("transport=tcp",),
            params=("expires=0", "q=0.5"),
            scheme="sips",
        )
        contact = NameAddress.parse(value.encode())
        assert contact.uri is not None
        assert (contact.uri.scheme, contact.uri.user) == ("sips", b"alice")
        assert contact.uri.endpoint() == PUBLIC
        assert [param.name for param in contact.uri.params] == ["transport"]
        assert [param.name for param in contact.params] == ["expires", "q"]


class TestSdp:
    def test_describes_a_stream_to_the_public_endpoint(self) -> None:
        session = SessionDescription.parse(binding().sdp(session_id=7, version=8))
        assert session.origin is not None
        assert (session.origin.session_id, session.origin.version, session.origin.ip) == (b"7", 8, PUBLIC.ip)
        (stream,) = session.media
        assert (stream.endpoint, stream.rtcp, stream.direction) == (PUBLIC, None, Direction.SENDRECV)
        assert stream.formats == (b"0",)

    def test_has_what_it_is_given(self) -> None:
        rtcp = Endpoint.of("140.113.131.89", 40000)
        body = binding().sdp(
            session_id=7,
            version=8,
            rtcp=rtcp,
            formats=((8, "PCMA/8000"), (101, "telephone-event/8000")),
            direction="sendonly",
            username="alice",
            session_name="talk",
        )
        session = SessionDescription.parse(body)
        (stream,) = session.media
        assert (stream.rtcp_endpoint, stream.direction) == (rtcp, Direction.SENDONLY)
        assert stream.formats == (b"8", b"101")
        assert session.origin is not None
        assert session.origin.username == b"alice"
        assert b"\r\ns=talk\r\n" in body


class TestLiveBinding:
    def test_says_what_its_snapshot_says(self) -> None:
        async def scenario() -> None:
            async with stun_server() as server, open_binding("127.0.0.1:0", settings=asking(server)) as live:
                assert live.snapshot is not None
                assert live.via(branch=BRANCH, transport="TCP") == live.snapshot.via(
                    branch=BRANCH, transport="TCP"
                )
                assert live.contact("alice", params=("q=1",)) == f"<sip:alice@{live.public}>;q=1"
                body = live.sdp(session_id=1, version=2, direction="inactive")
                assert body == live.snapshot.sdp(session_id=1, version=2, direction="inactive")

        run(scenario())

    def test_says_nothing_while_there_is_none(self) -> None:
        async def scenario() -> None:
            async with stun_server() as server, open_binding("127.0.0.1:0", settings=asking(server)) as live:
                live.close()
                with pytest.raises(BindingError, match="closed"):
                    live.via(branch=BRANCH)
                with pytest.raises(BindingError, match="closed"):
                    live.contact()
                with pytest.raises(BindingError, match="closed"):
                    live.sdp(session_id=1, version=1)

        run(scenario())


class TestPair:
    def test_needs_no_line_for_rtcp_where_it_is_expected(self) -> None:
        async def scenario() -> None:
            async with (
                stun_server() as server,
                Keeper.open(asking(server)) as keeper,
                keeper.open_pair("127.0.0.1:0") as pair,
            ):
                (stream,) = SessionDescription.parse(pair.sdp(session_id=1, version=1)).media
                assert (stream.endpoint, stream.rtcp) == (pair.rtp.public, None)
                assert stream.rtcp_endpoint == pair.rtcp.public

        run(scenario())

    def test_says_where_rtcp_is_else(self) -> None:
        """Two sockets that nobody opened as a pair are one all the same, of any two ports."""

        async def scenario() -> None:
            async with (
                stun_server() as server,
                Keeper.open(asking(server)) as keeper,
                keeper.open_binding("127.0.0.1:0") as rtp,
                keeper.open_binding("127.0.0.1:0") as rtcp,
            ):
                is_consecutive = rtcp.public.port == rtp.public.port + 1
                pair = BindingPair(rtcp, rtp) if is_consecutive else BindingPair(rtp, rtcp)
                (stream,) = SessionDescription.parse(
                    pair.sdp(session_id=1, version=1, direction="recvonly")
                ).media
                assert stream.rtcp is not None
                assert stream.rtcp_endpoint == pair.rtcp.public
                assert stream.direction is Direction.RECVONLY
                rtcp.close()
                with pytest.raises(BindingError, match="closed"):
                    pair.sdp(session_id=1, version=2)

        run(scenario())
