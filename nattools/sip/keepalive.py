"""What SIP and RTP send to keep a NAT open, and when a flow counts as dead (RFC 5626 §3.5, RFC 6263).

When a flow is refreshed is `binding.schedule`'s to say for a socket with a binding. Here is what is composed,
what the answers mean, and `FlowWatch`, a machine that keeps one flow to a SIP server and notices its death.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.machine import Entropy, Transmit
from nattools.sip.headers import compose_via
from nattools.sip.message import SipMessage, compose_request
from nattools.stun.message import Message, MessageClass, Method

PING = b"\r\n\r\n"
PONG = b"\r\n"
PONG_TIMEOUT_S = 10.0
"""A flow whose ping is not answered within this time is dead (RFC 5626 §4.4.1)."""
UDP_INTERVAL_S = 29.0
STREAM_INTERVAL_S = 120.0
"""The longest time between two keepalives where the server names none (RFC 5626 §4.4)."""

_STUN_FIRST_S = 0.5
_STUN_MOST_SENT = 7
_STUN_LAST_WAIT_S = 8.0
_LONGEST_FLOW_TIMER_S = 3600.0


def compose_stun(transaction_id: bytes) -> bytes:
    """A bare Binding request for the SIP port (RFC 5626 §8); the id is 12 random bytes.

    Raises `EncodeError` for an id of another size.
    """
    return Message(Method.BINDING, MessageClass.REQUEST, transaction_id).encode()


def read_stun(answer: bytes, transaction_id: bytes) -> Endpoint | None:
    """Where the server saw the request with that id come from; None where `answer` does not say so.

    XOR-MAPPED-ADDRESS counts before MAPPED-ADDRESS, which some ALGs rewrite (RFC 5626 §8.1).
    """
    try:
        message = Message.parse(answer)
        is_answer = message.message_class is MessageClass.SUCCESS and message.method is Method.BINDING
        return message.mapped_address if is_answer and message.transaction_id == transaction_id else None
    except DecodeError:
        return None


def compose_options(
    uri: str, *, sent_by: Endpoint, sender: str, tag: str, branch: str, call_id: str, transport: str = "UDP"
) -> bytes:
    """An OPTIONS request that asks a server for a sign of life (RFC 3261 §11), ready to be sent.

    `uri` is whom to ask, `sender` the address-of-record that asks, a URI. `tag`, `branch` and `call_id` are
    new for each. Any answer shows that the flow works, and its Via says where the server saw the request come
    from; an error answer is an answer as well.
    """
    return compose_request(
        "OPTIONS",
        uri,
        (
            ("Via", compose_via(sent_by, branch=branch, transport=transport)),
            ("Max-Forwards", "70"),
            ("From", f"<{sender}>;tag={tag}"),
            ("To", f"<{uri}>"),
            ("Call-ID", call_id),
            ("CSeq", "1 OPTIONS"),
            ("Accept", "application/sdp"),
        ),
    )


@dataclass(frozen=True, slots=True)
class KeepalivePromise:
    """What a server says of keepalives: whether it answers pings, and how often it wants them, in seconds.

    `interval_s` is None where it names no time.
    """

    answers: bool
    interval_s: float | None = None


def read_promise(response: SipMessage) -> KeepalivePromise:
    """Read what the answer to a REGISTER promises (RFC 5626 §4.4, RFC 6223).

    `Require: outbound` and a `keep` with a value in our Via promise answers; Flow-Timer and `keep` name a
    time. Without either nothing is promised, and silence shows nothing.
    """
    interval_s = None
    answers = False
    required = (response.data[slice(*span)].strip().lower() for span in response.values("require"))
    if b"outbound" in required:
        answers = True
        header = response.header("flow-timer")
        interval_s = None if header is None else _read_seconds(response.value(header))
    via = response.top_via
    keep = None if via is None else via.param("keep")
    if keep is not None and keep.value is not None:
        answers = True
        interval_s = interval_s or _read_seconds(keep.value)
    return KeepalivePromise(answers, interval_s)


def _read_seconds(text: bytes) -> float | None:
    text = text.strip(b'" ')
    if not text.isdigit() or len(text) > 9 or int(text) == 0:
        return None
    return min(float(int(text)), _LONGEST_FLOW_TIMER_S)


class PingKind(Enum):
    """How a SIP server is asked whether a flow still works."""

    CRLF = "crlf"  # a double CRLF, answered by a single one: streams (RFC 5626 §4.4.1)
    STUN = "stun"  # a Binding request on the SIP port: UDP (RFC 5626 §4.4.2)


@dataclass(frozen=True, slots=True)
class FlowDead:
    """The flow to `server` no longer works; register again over a new one (RFC 5626 §4.4)."""

    server: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class FlowMoved:
    """The server now sees another address than before: the NAT forgot the flow (RFC 5626 §4.4.2)."""

    server: Endpoint
    previous: Endpoint
    current: Endpoint


class FlowWatch:
    """Keeps one flow to a SIP server open and notices when it is dead; a `machine.Machine`.

    Silence means death only where the server promised answers (`read_promise`) or has answered before; one
    that never does is pinged all the same, since that keeps the NAT open. After its death it is silent.
    """

    def __init__(
        self,
        server: Endpoint,
        kind: PingKind,
        *,
        now: float,
        entropy: Entropy,
        interval_s: float | None = None,
        promised: bool = False,
    ) -> None:
        """Ping at once, and then every 80 to 100 % of `interval_s` (RFC 5626 §4.4)."""
        self._server = server
        self._kind = kind
        self._entropy = entropy
        is_stream = kind is PingKind.CRLF
        self._interval_s = interval_s or (STREAM_INTERVAL_S if is_stream else UDP_INTERVAL_S)
        self._answers = promised
        self._due: float | None = now
        self._transaction_id: bytes | None = None  # of a ping that is unanswered
        self._sent = 0
        self._mapped: Endpoint | None = None
        self._outbox: list[Transmit] = []
        self._event: FlowDead | FlowMoved | None = None
        self.handle_timeout(now=now)

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When the next ping or the end of one is due; None when the flow is dead."""
        return self._due

    def next_event(self) -> FlowDead | FlowMoved | None:
        """Take what happened, once."""
        taken, self._event = self._event, None
        return taken

    def receive(
        self,
        data: bytes,
        source: Endpoint,
        *,
        now: float,
        socket: str = "",  # noqa: ARG002  # of the machine's contract; a flow has one socket
    ) -> None:
        """Take a datagram, or of a stream what stood between two messages; others are passed over."""
        if self._due is None or self._transaction_id is None or source != self._server:
            return
        if self._kind is PingKind.CRLF:
            if data != PONG:
                return
        elif (mapped := read_stun(data, self._transaction_id)) is None:
            return
        else:
            if self._mapped not in (None, mapped):
                self._event = FlowMoved(self._server, self._mapped, mapped)
            self._mapped = mapped
        self._answers = True
        self._rest(now)

    def handle_timeout(self, *, now: float) -> None:
        """Ping, ping again, or find the flow dead, if that is due."""
        if self._due is None or now < self._due:
            return
        if self._transaction_id is None:
            self._transaction_id, self._sent = self._entropy(12), 0
        if self._sent == (1 if self._kind is PingKind.CRLF else _STUN_MOST_SENT):
            self._give_up(now)
            return
        if self._kind is PingKind.CRLF:
            self._outbox.append(Transmit(PING, self._server))
            self._due = now + PONG_TIMEOUT_S
        else:
            self._outbox.append(Transmit(compose_stun(self._transaction_id), self._server))
            last = self._sent == _STUN_MOST_SENT - 1
            self._due = now + (_STUN_LAST_WAIT_S if last else _STUN_FIRST_S * 2**self._sent)
        self._sent += 1

    def _rest(self, now: float) -> None:
        self._transaction_id = None
        self._due = now + self._interval_s * (0.8 + 0.2 * self._entropy(1)[0] / 0xFF)

    def _give_up(self, now: float) -> None:
        if not self._answers:
            self._rest(now)
            return
        self._due = None
        pinged = "a double CRLF" if self._kind is PingKind.CRLF else f"{self._sent} STUN requests"
        self._event = FlowDead(
            self._server,
            f"{self._server} did not answer {pinged} in time, though it promised to or had answered before: "
            "register again over a new flow",
        )


class RtpFill(Enum):
    """What an RTP stream that has nothing to say sends (RFC 6263 §4)."""

    EMPTY = "empty"  # a datagram without a byte (§4.1): opens NATs, no relay latches on it
    COMFORT_NOISE = "comfort-noise"  # payload type 13 (§4.2): only where the peer offered it
    UNKNOWN_TYPE = "unknown-type"  # a payload type that nobody offered (§4.6): receivers drop it
    SILENCE = "silence"  # 20 ms in the call's own codec: what relays that latch accept


_SILENCE = {0: b"\xff" * 160, 8: b"\xd5" * 160}  # PCMU and PCMA
_COMFORT_NOISE_TYPE = 13
_COMFORT_NOISE = b"\x7f"  # -127 dBov: as quiet as it can say (RFC 3389 §3)
_QUIET_TYPES = range(96, 128)


class RtpSender:
    """The numbering of one RTP stream that is sent (RFC 3550 §5.1), for media and for keepalives alike.

    A keepalive takes a sequence number like any packet, so whoever sends media must take all packets from
    here.
    """

    def __init__(
        self, *, entropy: Entropy, payload_type: int = 0, clock_hz: int = 8000, offered: Iterable[int] = ()
    ) -> None:
        """A stream of `payload_type`; `offered` has all types of the session, which are not free for §4.6."""
        self.payload_type = payload_type
        self._clock_hz = clock_hz
        self._offered = frozenset((*offered, payload_type))
        self.ssrc = int.from_bytes(entropy(4), "big")
        self._sequence = int.from_bytes(entropy(2), "big")
        self._offset = int.from_bytes(entropy(4), "big")
        self._started_at: float | None = None
        self._sent_at = float("-inf")

    def packet(
        self, payload: bytes, *, now: float, payload_type: int | None = None, marker: bool = False
    ) -> bytes:
        """The next packet, its timestamp that of `now`: of a paced stream, when it is due by the pace."""
        if self._started_at is None:
            self._started_at = now
        timestamp = self._offset + round((now - self._started_at) * self._clock_hz)
        kind = self.payload_type if payload_type is None else payload_type
        header = bytes((0x80, marker << 7 | kind & 0x7F))
        header += (self._sequence & 0xFFFF).to_bytes(2, "big")
        header += (timestamp & 0xFFFFFFFF).to_bytes(4, "big") + self.ssrc.to_bytes(4, "big")
        self._sequence += 1
        self._sent_at = now
        return header + payload

    def fill(self, fill: RtpFill, *, now: float) -> bytes:
        """A packet that says nothing: the punch that opens the NAT before anybody speaks, or a keepalive.

        Raises `EncodeError` for silence in a codec that has none here (PCMU and PCMA have), and where every
        dynamic payload type is offered.
        """
        if fill is RtpFill.EMPTY:
            self._sent_at = now
            return b""
        if fill is RtpFill.COMFORT_NOISE:
            return self.packet(_COMFORT_NOISE, now=now, payload_type=_COMFORT_NOISE_TYPE)
        if fill is RtpFill.UNKNOWN_TYPE:
            free = next((kind for kind in reversed(_QUIET_TYPES) if kind not in self._offered), None)
            if free is None:
                raise EncodeError(
                    "every dynamic payload type is offered; send silence or comfort noise instead"
                )
            return self.packet(b"", now=now, payload_type=free)
        silence = _SILENCE.get(self.payload_type)
        if silence is None:
            raise EncodeError(f"no silence is known for payload type {self.payload_type}; send comfort noise")
        return self.packet(silence, now=now)

    def due_at(self, interval_s: float = 15.0) -> float:
        """When the next keepalive is due: `interval_s` after the last packet (RFC 6263 §7)."""
        return self._sent_at + interval_s
