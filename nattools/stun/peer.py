"""Two machines with one address each as one server of two (RFC 5780 §6): how one has the other answer.

A reply to CHANGE-REQUEST must leave from an address that the machine which was asked does not have. That
machine composes it, and hands it over to the other in one datagram; the other sends it. `PeerLink` is one
end of that link, a `Machine` whose driver gives it a UDP socket of its own and sends what its events say.

Each datagram is under an HMAC-SHA256 by a key that both hosts have. There is no clock in common. Instead
each host invents a token for the other to show: only who has just read it can, so what was recorded before
a restart of either host is worth nothing. What was recorded since is told by its sequence number.

::

    magic 4 | kind 1 | sender 16 | token shown 16 | sequence 8 | body | HMAC 32

``sender`` is a random number for each start. The body of a ping is the token that the other shall show from
now on (16), and whether the other was heard lately (1). That of a reply is the port to send it from (2), the
destination's port (2) and address (4 or 16, as the hosts are IPv4 or IPv6), and the datagram to send.

Replies are readable on the way. Whoever has the key can have either host send STUN responses anywhere.
"""

from __future__ import annotations

import hmac
from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from math import inf

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import CredentialError, DecodeError, TransportError
from nattools.machine import Entropy, Transmit
from nattools.stun.message import Message, MessageClass
from nattools.stun.responder import DEFAULT_ALTERNATE_PORT, DEFAULT_PORT, Reply, ServerAddresses, is_usable
from nattools.wire import Reader

LEAST_KEY_BYTES = 16

PING_INTERVAL_S = 1.0
"""So often each host shows the other that it is there."""

LOST_AFTER_S = 3.5
"""A host that was not heard for so long is taken for gone: three pings in a row were lost."""

SEQUENCE_WINDOW = 1024
"""So far may a datagram be overtaken by others on its way."""

MOST_REPLY_BYTES = 1 << 15
"""A longer reply, which only the PADDING of a user can make, is not handed over."""

_MAGIC = b"\xf1np\x01"  # never the start of STUN, whose first two bits are zero
_ID_BYTES = 16
_SEQUENCE_BYTES = 8
_SEAL_BYTES = 32
_PING, _REPLY = b"\1", b"\2"
_NOT_HEARD, _HEARD = b"\0", b"\1"
_NOBODY = bytes(_ID_BYTES)


class PeerState(Enum):
    """Whether there is one server of two addresses, or each host stands for itself."""

    UP = "up"
    DOWN = "down"


class PeerDrop(Enum):
    """Why a datagram that came to the link was ignored."""

    STRANGER = "not from the peer"
    FORGED = "not sealed with the key"
    REPLAYED = "seen before, or too old to tell"
    STALE = "from before a restart"
    UNFIT = "no reply that this host may send"


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """The two addresses and ports of a server on two machines, seen from one of them.

    Both hosts have the same two ports. Raises `TransportError` where `ServerAddresses` does.
    """

    own: IPAddress
    other: IPAddress
    port: int = DEFAULT_PORT
    alternate_port: int = DEFAULT_ALTERNATE_PORT

    def __post_init__(self) -> None:
        if not (self.port and self.alternate_port):
            raise TransportError("two hosts must know each other's ports: port 0, a free one, cannot serve")
        _ = self.whole

    @property
    def whole(self) -> ServerAddresses:
        """What clients are told while both hosts are there."""
        return ServerAddresses(self.own, self.port, self.other, self.alternate_port)

    @property
    def alone(self) -> ServerAddresses:
        """What this host listens on, and all that it speaks of while the other is away."""
        return ServerAddresses(self.own, self.port, alternate_port=self.alternate_port)


@dataclass(slots=True)
class _Window:
    """Which sequence numbers were seen under one token."""

    highest: int
    seen: int = 1
    """Bit n stands for `highest` - n."""

    def admit(self, sequence: int) -> bool:
        """Whether the number is new; it is not from now on."""
        ahead = sequence - self.highest
        if ahead > 0:
            kept = self.seen << ahead if ahead < SEQUENCE_WINDOW else 0
            self.seen = (kept | 1) & ((1 << SEQUENCE_WINDOW) - 1)
            self.highest = sequence
            return True
        if -ahead >= SEQUENCE_WINDOW or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A datagram of the link whose seal held."""

    kind: bytes
    sender: bytes
    shown: bytes
    """The token that the sender has been given by this host, as it thinks."""
    sequence: int
    body: Reader


class PeerLink:
    """One host's end of the link: hands over what the other must send, and says what this one must.

    Its events are the replies to send, each from one of this host's own sockets, and whether the link is up,
    when that changes. Nothing but the key, the last token of each side and one window is kept, whatever
    arrives.
    """

    def __init__(self, hosts: TwoHosts, peer: Endpoint, *, key: bytes, entropy: Entropy) -> None:
        """Make the end of `hosts.own`; `peer` is the link's socket on the other host.

        `StunServer` has its own at `hosts.own` and the same port.
        Raises `CredentialError` for a key of less than 16 bytes.
        """
        if len(key) < LEAST_KEY_BYTES:
            raise CredentialError(
                f"a key of {len(key)} bytes for the peer {peer}; give both hosts the same {LEAST_KEY_BYTES}"
                " random bytes or more"
            )
        self.hosts = hosts
        self.peer = peer
        self.handed_over = 0
        """How many replies the other host was asked to send."""
        self.taken_over = 0
        """How many replies the other host had this one send."""
        self.dropped: Counter[PeerDrop] = Counter()
        """How many datagrams were ignored, by reason."""
        self._key = key
        self._entropy = entropy
        self._sender = entropy(_ID_BYTES)
        self._sequence = 0
        self._theirs = _NOBODY  # the token to show
        self._other = _NOBODY  # who shows ours
        self._token = self._offer = entropy(_ID_BYTES)
        self._window: _Window | None = None
        self._heard_at: float | None = None
        self._is_heard = False
        self._ping_at = -inf
        self._transmits: deque[Transmit] = deque()
        self._events: deque[Reply | PeerState] = deque()
        self._state = PeerState.DOWN

    def is_up(self, *, now: float) -> bool:
        """Whether the other host was heard lately, and lately heard this one."""
        return self._is_heard and self._hears(now)

    def hand_over(self, reply: Reply, *, now: float) -> bool:
        """Have the other host send `reply`, whose origin is one of its sockets.

        False where the link is down or the reply is too long; then nobody sends it.
        """
        if not self.is_up(now=now) or len(reply.data) > MOST_REPLY_BYTES:
            return False
        to = reply.destination
        ports = reply.origin.port.to_bytes(2, "big") + to.port.to_bytes(2, "big")
        self._send(_REPLY, self._theirs, ports + to.ip.packed + reply.data)
        self.handed_over += 1
        return True

    def leave(self) -> None:
        """Tell the other host that this one stops, so that it need not wait to notice."""
        self._send(_PING, self._theirs, self._token + _NOT_HEARD)

    def receive(
        self,
        data: bytes,
        source: Endpoint,
        *,
        now: float,
        socket: str = "",  # noqa: ARG002  # of the machine's contract; a link has one socket
    ) -> None:
        """Take one datagram that came to the link's socket."""
        drop = self._receive(data, source, now)
        if drop is not None:
            self.dropped[drop] += 1
        self._note_state(now)

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now from the link's socket."""
        taken = list(self._transmits)
        self._transmits.clear()
        return taken

    def timeout_at(self) -> float:
        """When the next ping is due. By then it is seen, too, that the other host has fallen silent."""
        return self._ping_at

    def handle_timeout(self, *, now: float) -> None:
        """Ping, if it is time."""
        if now >= self._ping_at:
            self._ping(self._theirs, self._token, now)
            self._ping_at = now + PING_INTERVAL_S
        self._note_state(now)

    def next_event(self) -> Reply | PeerState | None:
        """Take the next reply that this host must send for the other, or the link's new state, or None."""
        return self._events.popleft() if self._events else None

    def _note_state(self, now: float) -> None:
        state = PeerState.UP if self.is_up(now=now) else PeerState.DOWN
        if state is not self._state:
            self._state = state
            self._events.append(state)

    def _receive(self, data: bytes, source: Endpoint, now: float) -> PeerDrop | None:
        if source != self.peer:
            return PeerDrop.STRANGER
        sealed = self._open(data)
        if sealed is None:
            return PeerDrop.FORGED
        if sealed.sender == self._sender:  # our own, sent back
            return PeerDrop.REPLAYED
        if self._window is not None and (sealed.sender, sealed.shown) == (self._other, self._token):
            if not self._window.admit(sealed.sequence):
                return PeerDrop.REPLAYED
            self._heard_at = now
        elif sealed.kind != _PING:
            return PeerDrop.STALE
        elif sealed.shown != self._offer:
            return self._challenge(sealed, now)
        else:
            self._accept(sealed, now)
            return None
        return self._take(sealed)

    def _take(self, sealed: _Sealed) -> PeerDrop | None:
        """Do what a datagram says that is known to be new."""
        if sealed.kind == _PING:
            self._read_ping(sealed.body)
            return None
        reply = self._parse_reply(sealed.body)
        if reply is None:
            return PeerDrop.UNFIT
        self._events.append(reply)
        self.taken_over += 1
        return None

    def _accept(self, sealed: _Sealed, now: float) -> None:
        """Who shows the token of the last challenge is there now; what was sealed before counts no more."""
        self._other, self._token, self._offer = sealed.sender, self._offer, self._entropy(_ID_BYTES)
        self._window = _Window(sealed.sequence)
        self._heard_at = now
        self._read_ping(sealed.body)
        self._ping(self._theirs, self._token, now)

    def _challenge(self, sealed: _Sealed, now: float) -> PeerDrop | None:
        """Answer a ping with an unknown token: the first after a restart of either host, or an old one.

        While the peer is heard it knows its token, so then it is an old one. If it is one of before the
        peer's restart, the answer shows a token that the peer has forgotten, and is an old one there.
        """
        if sealed.sender == self._other and self._hears(now):
            return PeerDrop.STALE
        theirs, _ = _parse_ping(sealed.body)
        self._ping(theirs, self._offer, now)
        return None

    def _read_ping(self, body: Reader) -> None:
        self._theirs, self._is_heard = _parse_ping(body)

    def _hears(self, now: float) -> bool:
        return self._heard_at is not None and now - self._heard_at < LOST_AFTER_S

    def _ping(self, shown: bytes, token: bytes, now: float) -> None:
        self._send(_PING, shown, token + (_HEARD if self._hears(now) else _NOT_HEARD))

    def _send(self, kind: bytes, shown: bytes, body: bytes) -> None:
        self._sequence += 1
        sequence = self._sequence.to_bytes(_SEQUENCE_BYTES, "big")
        data = _MAGIC + kind + self._sender + shown + sequence + body
        self._transmits.append(Transmit(data + hmac.digest(self._key, data, "sha256"), self.peer))

    def _open(self, data: bytes) -> _Sealed | None:
        """The datagram without its seal; None where that does not hold, or no host sends such."""
        content, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if not content.startswith(_MAGIC):
            return None
        if not hmac.compare_digest(seal, hmac.digest(self._key, content, "sha256")):
            return None
        reader = Reader(content[len(_MAGIC) :])
        try:
            kind, sender, shown = reader.take(1), reader.take(_ID_BYTES), reader.take(_ID_BYTES)
            sequence = reader.uint(_SEQUENCE_BYTES)
        except DecodeError:
            return None
        if kind == _REPLY or (kind == _PING and reader.remaining == _ID_BYTES + 1):
            return _Sealed(kind, sender, shown, sequence, reader)
        return None

    def _parse_reply(self, body: Reader) -> Reply | None:
        """What the peer wants sent, if it is a STUN response to a client, from one of this host's sockets."""
        own = self.hosts.own
        try:
            origin = Endpoint(own, body.uint(2))
            port, packed = body.uint(2), body.take(len(own.packed))
            destination = Endpoint(type(own)(packed), port)
            data = body.rest()
            message = Message.parse(data)
        except DecodeError:
            return None
        is_response = message.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
        is_ours = origin.port in (self.hosts.port, self.hosts.alternate_port)
        is_for_a_client = is_usable(destination) and destination not in self.hosts.whole.endpoints
        return Reply(data, origin, destination) if is_response and is_ours and is_for_a_client else None


def _parse_ping(body: Reader) -> tuple[bytes, bool]:
    """The token to show to the sender, and whether it hears this host."""
    return body.take(_ID_BYTES), body.take(1) == _HEARD
