"""What is sent to keep flows open, and when silence means that one is dead."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import EncodeError
from nattools.sip.keepalive import (
    PING,
    PONG,
    FlowDead,
    FlowMoved,
    FlowWatch,
    KeepalivePromise,
    PingKind,
    RtpFill,
    RtpSender,
    compose_options,
    compose_stun,
    read_promise,
    read_stun,
)
from nattools.sip.message import SipMessage
from nattools.stun.attributes import MAPPED_ADDRESS, SOFTWARE, XOR_MAPPED_ADDRESS, Attribute
from nattools.stun.message import Message, MessageClass, Method

SERVER = Endpoint.of("203.0.113.7", 5060)
STRANGER = Endpoint.of("203.0.113.8", 5060)
SEEN = Endpoint.of("198.51.100.1", 40000)
MOVED = Endpoint.of("198.51.100.2", 40001)
ID = bytes(range(12))


def counting() -> Callable[[int], bytes]:
    calls = count(1)
    return lambda size: next(calls).to_bytes(size, "big")


def answer(
    request: bytes, seen: Endpoint = SEEN, *, plain: bool = False, extra: tuple[Attribute, ...] = ()
) -> bytes:
    """What a STUN server of the STUN room says to a request."""
    asked = Message.parse(request)
    attribute = MAPPED_ADDRESS.of(seen) if plain else XOR_MAPPED_ADDRESS.of(seen, asked.xor_key)
    return Message(asked.method, MessageClass.SUCCESS, asked.transaction_id, (*extra, attribute)).encode()


class TestStunOnTheSipPort:
    def test_is_a_request_that_any_stun_server_reads(self) -> None:
        request = Message.parse(compose_stun(ID))
        assert (request.method, request.message_class) == (Method.BINDING, MessageClass.REQUEST)
        assert (request.transaction_id, request.attributes) == (ID, ())

    @pytest.mark.parametrize("seen", [SEEN, Endpoint.of("2001:db8::17", 1), Endpoint.of("0.0.0.0", 0)])
    @pytest.mark.parametrize("plain", [False, True])
    def test_the_answer_says_where_the_server_saw_us(self, seen: Endpoint, plain: bool) -> None:
        extra = (SOFTWARE.of("odd"),)
        assert read_stun(answer(compose_stun(ID), seen, plain=plain, extra=extra), ID) == seen

    def test_what_nobody_rewrites_counts_first(self) -> None:
        extra = (MAPPED_ADDRESS.of(MOVED),)
        assert read_stun(answer(compose_stun(ID), extra=extra), ID) == SEEN

    def test_anything_else_says_nothing(self) -> None:
        good = answer(compose_stun(ID))
        assert read_stun(good, bytes(12)) is None
        assert read_stun(compose_stun(ID), ID) is None
        assert read_stun(good + b"\0", ID) is None
        for size in range(len(good)):
            assert read_stun(good[:size], ID) is None
        for position in range(20):
            assert (
                read_stun(good[:position] + bytes((good[position] ^ 1,)) + good[position + 1 :], ID) is None
            )

    def test_an_address_of_no_known_family_says_nothing(self) -> None:
        good = answer(compose_stun(ID), plain=True)
        assert read_stun(good[:25] + b"\x03" + good[26:], ID) is None

    def test_an_id_has_twelve_bytes(self) -> None:
        with pytest.raises(EncodeError, match="11 bytes"):
            compose_stun(bytes(11))


def test_options_is_a_whole_request() -> None:
    message = SipMessage.parse(
        compose_options(
            "sip:203.0.113.7",
            sent_by=SEEN,
            sender="sip:alice@203.0.113.7",
            tag="t",
            branch="z9hG4bKb",
            call_id="c",
        )
    )
    via = message.top_via
    assert via is not None
    assert (message.method, message.cseq, message.call_id) == ("OPTIONS", (1, "OPTIONS"), b"c")
    assert (via.ip, via.port, via.has_rport, via.branch) == (SEEN.ip, SEEN.port, True, b"z9hG4bKb")
    assert (message.from_tag, message.to_tag) == (b"t", None)
    assert message.content_length == 0


@pytest.mark.parametrize(
    ("via", "headers", "promise"),
    [
        ("", "", KeepalivePromise(False)),
        ("", "Flow-Timer: 30", KeepalivePromise(False)),  # without outbound nobody keeps it
        ("", "Require: outbound", KeepalivePromise(True)),
        ("", "Require: path, Outbound\r\nFlow-Timer: 30", KeepalivePromise(True, 30.0)),
        ("", "Require: outbound\r\nFlow-Timer: 0", KeepalivePromise(True)),
        ("", "Require: outbound\r\nFlow-Timer: soon", KeepalivePromise(True)),
        ("", "Require: outbound\r\nFlow-Timer: 999999999999", KeepalivePromise(True)),
        ("", "Require: outbound\r\nFlow-Timer: 99999999", KeepalivePromise(True, 3600.0)),
        (";keep", "", KeepalivePromise(False)),  # our own wish, which the server did not take up
        (";keep=29", "", KeepalivePromise(True, 29.0)),
        (';keep="0"', "", KeepalivePromise(True)),
    ],
)
def test_what_a_server_promises(via: str, headers: str, promise: KeepalivePromise) -> None:
    text = f"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKa{via}\r\n{headers}"
    assert read_promise(SipMessage.parse(f"{text.rstrip()}\r\n\r\n".encode())) == promise


def watch(kind: PingKind = PingKind.STUN, *, promised: bool = False) -> FlowWatch:
    return FlowWatch(SERVER, kind, now=0, entropy=counting(), promised=promised)


def sent(flow: FlowWatch) -> list[bytes]:
    transmits = flow.transmits()
    assert all(transmit.destination == SERVER for transmit in transmits)
    return [transmit.data for transmit in transmits]


def run(flow: FlowWatch, until: float) -> list[float]:
    """Let the time pass without any answer; when something was sent."""
    times = []
    while (due := flow.timeout_at()) is not None and due <= until:
        flow.handle_timeout(now=due)
        times += [due] * len(sent(flow))
    return times


class TestFlowWatch:
    def test_a_pong_within_ten_seconds_shows_that_the_flow_lives(self) -> None:
        flow = watch(PingKind.CRLF, promised=True)
        assert sent(flow) == [PING]
        flow.receive(PONG, SERVER, now=9.9)
        flow.handle_timeout(now=10.0)
        assert flow.next_event() is None
        assert sent(flow) == []
        due = flow.timeout_at()
        assert due is not None
        assert 9.9 + 96 <= due <= 9.9 + 120
        flow.handle_timeout(now=due)
        assert sent(flow) == [PING]

    def test_without_the_promised_pong_it_is_dead_and_stays_so(self) -> None:
        flow = watch(PingKind.CRLF, promised=True)
        sent(flow)
        flow.handle_timeout(now=9.9)
        assert flow.next_event() is None
        flow.handle_timeout(now=10.0)
        event = flow.next_event()
        assert isinstance(event, FlowDead)
        assert "did not answer a double CRLF" in event.reason
        flow.receive(PONG, SERVER, now=10.1)
        flow.handle_timeout(now=500.0)
        assert (flow.timeout_at(), flow.next_event(), sent(flow)) == (None, None, [])

    def test_who_never_promised_and_never_answered_is_pinged_on(self) -> None:
        flow = watch(PingKind.CRLF)
        sent(flow)
        assert len(run(flow, 1000)) in range(7, 11)
        assert flow.next_event() is None

    def test_who_answered_once_is_held_to_it(self) -> None:
        flow = watch(PingKind.CRLF)
        sent(flow)
        flow.receive(PONG, SERVER, now=1)
        run(flow, 500)
        assert isinstance(flow.next_event(), FlowDead)

    def test_stun_is_repeated_like_any_stun_request(self) -> None:
        flow = watch(promised=True)
        [first] = sent(flow)
        times = run(flow, 100)
        assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
        event = flow.next_event()
        assert isinstance(event, FlowDead)
        assert "7 STUN requests" in event.reason
        assert Message.parse(first).method is Method.BINDING

    def test_one_of_seven_answers_is_enough(self) -> None:
        flow = watch(promised=True)
        [request] = sent(flow)
        run(flow, 32)
        flow.receive(answer(request), SERVER, now=39)
        assert flow.next_event() is None
        due = flow.timeout_at()
        assert due is not None
        assert 39 + 0.8 * 29 <= due <= 39 + 29

    def test_each_ping_has_an_id_of_its_own(self) -> None:
        flow = watch()
        [first] = sent(flow)
        flow.receive(answer(first), SERVER, now=0)
        due = flow.timeout_at()
        assert due is not None
        flow.handle_timeout(now=due)
        [second] = sent(flow)
        flow.receive(answer(first), SERVER, now=due)  # late, and no answer to this one
        assert run(flow, due + 1) == [due + 0.5]
        assert first[8:] != second[8:]

    def test_another_address_means_that_the_nat_forgot_the_flow(self) -> None:
        flow = watch()
        for seen, event in (
            (SEEN, None),
            (SEEN, None),
            (MOVED, FlowMoved(SERVER, SEEN, MOVED)),
            (MOVED, None),
        ):
            [request] = sent(flow)
            flow.receive(answer(request, seen), SERVER, now=flow.timeout_at() or 0)
            assert flow.next_event() == event
            flow.handle_timeout(now=flow.timeout_at() or 0)

    @pytest.mark.parametrize("kind", PingKind)
    def test_what_is_no_answer_is_passed_over(self, kind: PingKind) -> None:
        flow = watch(kind, promised=True)
        [request] = sent(flow)
        good = PONG if kind is PingKind.CRLF else answer(request)
        flow.receive(good, STRANGER, now=1)
        flow.receive(b"SIP/2.0 200 OK\r\n\r\n", SERVER, now=1)
        flow.receive(PING, SERVER, now=1)
        flow.receive(b"", SERVER, now=1)
        run(flow, 100)
        assert isinstance(flow.next_event(), FlowDead)

    def test_calling_early_is_harmless(self) -> None:
        flow = watch()
        sent(flow)
        for now in (0.0, 0.1, 0.4):
            flow.handle_timeout(now=now)
        assert sent(flow) == []


def header(packet: bytes) -> tuple[int, int, int, int, int]:
    """Version, payload type, sequence number, timestamp and SSRC (RFC 3550 §5.1)."""
    return (
        packet[0] >> 6,
        packet[1] & 0x7F,
        int.from_bytes(packet[2:4], "big"),
        int.from_bytes(packet[4:8], "big"),
        int.from_bytes(packet[8:12], "big"),
    )


class TestRtp:
    def test_media_and_keepalives_share_one_numbering(self) -> None:
        sender = RtpSender(entropy=lambda size: b"\xff" * size)
        packets = [
            sender.fill(RtpFill.SILENCE, now=10.0),
            sender.packet(b"speech", now=10.02, marker=True),
            sender.fill(RtpFill.COMFORT_NOISE, now=10.04),
            sender.fill(RtpFill.UNKNOWN_TYPE, now=25.04),
        ]
        ssrc = 0xFFFFFFFF
        assert [header(packet) for packet in packets] == [
            (2, 0, 0xFFFF, 0xFFFFFFFF, ssrc),
            (2, 0, 0, 159, ssrc),
            (2, 13, 1, 319, ssrc),
            (2, 127, 2, 120319, ssrc),
        ]
        assert [packet[1] >> 7 for packet in packets] == [0, 1, 0, 0]
        assert [len(packet) - 12 for packet in packets] == [160, 6, 1, 0]

    def test_a_paced_stream_has_even_timestamps(self) -> None:
        sender = RtpSender(entropy=bytes)
        stamps = [header(sender.packet(b"", now=123.456 + 0.02 * n))[3] for n in range(10_000)]
        assert stamps == [160 * n for n in range(10_000)]

    def test_an_empty_datagram_takes_no_number(self) -> None:
        sender = RtpSender(entropy=bytes)
        assert sender.fill(RtpFill.EMPTY, now=0) == b""
        assert header(sender.packet(b"", now=1))[2] == 0

    @pytest.mark.parametrize(("payload_type", "silence"), [(0, 0xFF), (8, 0xD5)])
    def test_silence_is_that_of_the_codec(self, payload_type: int, silence: int) -> None:
        packet = RtpSender(entropy=bytes, payload_type=payload_type).fill(RtpFill.SILENCE, now=0)
        assert header(packet)[1] == payload_type
        assert packet[12:] == bytes((silence,)) * 160

    def test_a_codec_without_known_silence_says_so(self) -> None:
        with pytest.raises(EncodeError, match="payload type 96"):
            RtpSender(entropy=bytes, payload_type=96).fill(RtpFill.SILENCE, now=0)

    def test_the_unknown_type_is_one_that_nobody_offered(self) -> None:
        sender = RtpSender(entropy=bytes, payload_type=127, offered=(126, 101))
        assert header(sender.fill(RtpFill.UNKNOWN_TYPE, now=0))[1] == 125
        with pytest.raises(EncodeError, match="every dynamic payload type is offered"):
            RtpSender(entropy=bytes, offered=range(128)).fill(RtpFill.UNKNOWN_TYPE, now=0)

    def test_a_keepalive_is_due_after_silence_only(self) -> None:
        sender = RtpSender(entropy=bytes)
        assert sender.due_at() == float("-inf")
        sender.packet(b"", now=5)
        assert sender.due_at() == 20
        sender.fill(RtpFill.EMPTY, now=7)
        assert sender.due_at(4) == 11
