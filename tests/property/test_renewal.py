"""What holds for any loss, any moment of a change, and any bytes that pass."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.digest import Challenge, DigestServer
from nattools.sip.keepalive import FlowWatch, PingKind, read_promise, read_stun
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.renewal import NotRenewed, Renewal
from tests.unit.sip import renewal_world as world_of
from tests.unit.sip.renewal_world import FIRST, LOCAL, LOCAL_RTP, PEER, REGISTRAR, World

SEEDS = (
    world_of.register(1),
    world_of.register(2, expires=0),
    world_of.invite(),
    world_of.in_dialog("ACK", 1),
    world_of.in_dialog("PRACK", 2).replace(b"Contact:", b"RAck: 1 1 INVITE\r\nContact:"),
    world_of.in_dialog("BYE", 3),
    world_of.incoming_invite(),
    world_of.incoming("ACK", 20),
    world_of.incoming("INVITE", 21, body=world_of.sdp()),
    world_of.incoming("UPDATE", 22, body=world_of.sdp(2)),
    world_of.incoming("BYE", 23),
    *(
        compose_response(
            SipMessage.parse(request),
            code,
            "Word",
            [
                ("Contact", f"<sip:bob@{PEER}>"),
                ("Record-Route", "<sip:203.0.113.7;lr>"),
                ("Allow", "UPDATE"),
                ("Session-Expires", "90;refresher=uac"),
                ("WWW-Authenticate", 'Digest realm="r", nonce="n"'),
                ("Content-Type", "application/sdp"),
            ],
            world_of.sdp(),
            to_tag="p",
        )
        for request in (world_of.register(1), world_of.invite(), world_of.incoming_invite())
        for code in (100, 183, 200, 401, 491, 503)
    ),
)
ENDPOINTS = st.sampled_from((world_of.FIRST, world_of.SECOND, world_of.THIRD))

mutated = st.builds(
    lambda seed, at, size, new: seed[: at % len(seed)] + new + seed[at % len(seed) + size :],
    st.sampled_from(SEEDS),
    st.integers(0, 5000),
    st.integers(0, 4),
    st.binary(max_size=6) | st.sampled_from((b"\r\n", b"<", b'"', b";tag=", b",", b"0", b"99999999999")),
)
messages = st.sampled_from(SEEDS) | mutated | st.binary(max_size=60)


@st.composite
def losses(draw: st.DrawFn) -> frozenset[int]:
    """Which packets are lost: any, but none for so long that everybody gives up."""
    return draw(st.frozensets(st.integers(3, 60), max_size=10))


class TestAnyLoss:
    @given(losses(), st.booleans())
    @settings(max_examples=60)
    def test_a_call_is_told_and_lives_on(self, lost: frozenset[int], is_caller: bool) -> None:
        world = World(loss=lambda packet: packet in lost)
        if is_caller:
            world.call()
        else:
            world.be_called()
        world.move()
        world.run(100)
        [event] = world.events
        assert world.peer.complaints == []
        assert isinstance(event, NotRenewed) or world.peer.sends_to == world_of.SECOND.with_port(41000)
        assert world.renewal.timeout_at() is None

    @given(losses())
    @settings(max_examples=60)
    def test_a_registration_is_at_the_new_endpoint_or_said_to_be_lost(self, lost: frozenset[int]) -> None:
        world = World(loss=lambda packet: packet in lost)
        world.register()
        world.move()
        world.run(100)
        [event] = world.events
        renewed = list(world.registrar.contacts) == [f"sip:alice@{world_of.SECOND};transport=UDP"]
        assert renewed or isinstance(event, NotRenewed)
        assert world.renewal.timeout_at() is None

    @given(st.lists(st.tuples(ENDPOINTS, st.floats(0.0, 1.0)), min_size=1, max_size=6))
    @settings(max_examples=60)
    def test_after_any_changes_only_the_last_endpoint_is_left(
        self, changes: list[tuple[Endpoint, float]]
    ) -> None:
        world = World()
        world.register()
        world.call()
        for endpoint, pause_s in changes:
            if endpoint != world.signalling.public:
                world.move(endpoint)
            world.run(pause_s)
        world.run(40)
        last = world.signalling.public
        assert list(world.registrar.contacts) == [f"sip:alice@{last};transport=UDP"]
        assert world.peer.sends_to == last.with_port(41000)
        assert world.peer.complaints == []
        assert not world.peer.is_over


class TestAnyBytes:
    @given(
        st.lists(st.tuples(messages, st.sampled_from(("out", "in", "time", "move", "media"))), max_size=25)
    )
    @settings(max_examples=200)
    def test_never_stop_it_and_what_it_says_is_sip(self, steps: list[tuple[bytes, str]]) -> None:
        renewal = Renewal(LOCAL, entropy=world_of.entropy())
        now = 0.0
        for data, what in steps:
            now += 0.3
            if what == "out":
                renewal.outgoing(data, REGISTRAR, now=now)
            elif what == "in":
                renewal.incoming(data, PEER, now=now)
            elif what == "move":
                renewal.binding_changed(FIRST, world_of.SECOND, now=now)
            elif what == "media":
                renewal.media_changed(LOCAL_RTP, now=now)
            else:
                now = max(now, renewal.timeout_at() or 0)
                renewal.handle_timeout(now=now)
            for transmit in renewal.transmits():
                SipMessage.parse(transmit.data)
        for _ in range(600):
            due = renewal.timeout_at()
            if due is None:
                break
            now = max(now, due)
            renewal.handle_timeout(now=now)
            renewal.transmits()
        assert renewal.timeout_at() is None

    @given(st.binary(max_size=200) | st.builds(lambda rest: b"Digest " + rest, st.binary(max_size=100)))
    def test_are_a_challenge_or_a_decode_error(self, data: bytes) -> None:
        try:
            Challenge.parse(data)
        except DecodeError:
            return

    @given(st.binary(max_size=120))
    def test_are_credentials_with_a_verdict(self, data: bytes) -> None:
        value = b" ".join(data.split()) or b"-"
        request = world_of.register(1).replace(b"CSeq:", b"Authorization: Digest " + value + b"\r\nCSeq:")
        server = DigestServer("r", entropy=world_of.entropy())
        server.verify(SipMessage.parse(request), {"a": "b"}.get, now=0)

    @given(st.binary(max_size=100), st.sampled_from(PingKind))
    def test_are_no_answer_to_a_ping_by_chance(self, data: bytes, kind: PingKind) -> None:
        assert read_stun(data, bytes(12)) is None
        flow = FlowWatch(REGISTRAR, kind, now=0, entropy=world_of.entropy())
        flow.receive(data, REGISTRAR, now=1)
        assert flow.next_event() is None

    @given(st.binary(max_size=60))
    def test_promise_something_or_nothing(self, data: bytes) -> None:
        value = b" ".join(data.split()) or b"-"
        head = b"SIP/2.0 200 OK\r\nRequire: outbound\r\nFlow-Timer: " + value + b"\r\n\r\n"
        promise = read_promise(SipMessage.parse(head))
        assert promise.interval_s is None or 0 < promise.interval_s <= 3600
