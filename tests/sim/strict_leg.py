"""One call of a strict telephone: its offers and answers (RFC 3264), its RTP, and whom it hears."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.dialog import Body, Dialog, target_of
from nattools.sip.message import SipMessage
from nattools.sip.sdp import Direction, SessionDescription

if TYPE_CHECKING:
    from tests.sim.strict_phone import Phone

PACKET_S = 0.1
GRACE_S = 1.5  # after a change, until when the media of before may be on its way
LOSSY_GRACE_S = 9.0  # where messages are lost: 2xx and BYE are sent again after 0.5, 1, 2 and 4 s
SETTLED_S = 4.0  # after a change, from when on both must hear each other
MOST_STREAMS = 2

_MIRROR = {
    Direction.SENDRECV: Direction.SENDRECV,
    Direction.SENDONLY: Direction.RECVONLY,
    Direction.RECVONLY: Direction.SENDONLY,
    Direction.INACTIVE: Direction.INACTIVE,
}
_SENDING = (Direction.SENDRECV, Direction.SENDONLY)
_HEARING = (Direction.SENDRECV, Direction.RECVONLY)


@dataclass
class Stream:
    """One m= line: our socket, what we say of it, and where the other side wants its packets."""

    socket: socket.socket
    port: int
    ours: Direction | None = None
    """None: the line is refused, by port 0."""
    target: Endpoint | None = None
    theirs: Direction = Direction.INACTIVE
    sequence: int = 0
    heard: dict[bytes, float] = field(default_factory=dict)

    @property
    def is_sent(self) -> bool:
        return self.target is not None and self.ours in _SENDING and self.theirs in _HEARING

    @property
    def is_heard(self) -> bool:
        return self.target is not None and self.ours in _HEARING and self.theirs in _SENDING


class Leg:
    """A call of one phone, from its first INVITE to its last response."""

    def __init__(self, phone: Phone, call_id: str, *, is_caller: bool, local_tag: str = "") -> None:
        self.phone = phone
        self.world = phone.world
        self.call_id = call_id
        self.is_caller = is_caller
        self.local_tag = local_tag or self.world.token()
        self.remote_tag = b""
        self.dialog: Dialog | None = None
        self.cseq = self.world.random.randrange(1, 1000)
        self.remote_cseq = 0
        self.streams: list[Stream] = []
        self.version = 0
        self.session = self.world.random.getrandbits(40)
        self.has_offered = False
        """Whether an offer of ours waits for its answer."""
        self.is_changing = False
        """Whether a re-INVITE or UPDATE of ours is not over."""
        self.is_answered = False
        self.is_over = False
        self.answered_at = float("inf")
        self.changed_at = self.world.now()
        self.acks: dict[int, bytes] = {}
        self.early: dict[bytes, bytes] = {}
        """What early dialogs have answered to our offer, by their tags."""
        self.others: dict[bytes, float] = {}
        """Who has answered as well, and until when it was not hung up."""
        self.pracks: set[tuple[bytes, int]] = set()
        self.answers: dict[bytes, bytes] = {}
        """The ACK of each 2xx, by its To tag."""
        self.is_reliable = False
        self.is_pracked = False
        self.is_answering = False
        self.is_ending = False
        self.ssrc = self.world.random.getrandbits(32)
        self.timer: asyncio.TimerHandle | None = None
        self.sequence = self.world.random.randrange(0xFFFF)

    # --- descriptions ---

    def offer(self, *, directions: list[Direction | None] | None = None) -> bytes:
        """Describe our side, as an offer; without `directions` the lines are as they are."""
        if directions is None:
            directions = [it.ours for it in self.streams] or [Direction.SENDRECV]
        for place, direction in enumerate(directions):
            if place >= len(self.streams):
                self.streams.append(self._new_stream())
            self.streams[place].ours = direction
        self.has_offered = True
        self.changed_at = self.world.now()
        return self.described()

    def answer(self, offer: bytes) -> bytes:
        """Answer an offer."""
        self.has_offered = False
        self.changed_at = self.world.now()
        description = SessionDescription.parse(offer)
        for place, media in enumerate(description.media):
            if place >= len(self.streams):
                self.streams.append(self._new_stream())
            stream = self.streams[place]
            is_wanted = media.port != 0 and not (place and self.world.chance(0.2))
            stream.ours = _MIRROR[media.direction] if is_wanted else None
        self._take(description)
        return self.described()

    def answered(self, answer: bytes) -> None:
        """Take the answer to our offer."""
        self.has_offered = False
        self.changed_at = self.world.now()
        description = SessionDescription.parse(answer)
        if len(description.media) != len(self.streams):
            self.wrong(f"an answer with {len(description.media)} lines to {len(self.streams)}")
        self._take(description)

    def go_back(self, before: list[Direction | None]) -> None:
        """Take an offer back that was refused (RFC 3261 §14.1)."""
        self.changed_at = self.world.now()
        if self.is_over:
            return
        for stream in self.streams[len(before) :]:
            self._shut(stream)
        del self.streams[len(before) :]
        for stream, ours in zip(self.streams, before, strict=True):
            stream.ours = ours

    def _shut(self, stream: Stream) -> None:
        self.world.loop.remove_reader(stream.socket.fileno())
        stream.socket.close()

    def _take(self, description: SessionDescription) -> None:
        for stream, media in zip(self.streams, description.media, strict=False):
            endpoint = media.endpoint
            if endpoint is not None and endpoint.port and endpoint.ip not in self.phone.relays:
                self.wrong(f"media of the other side unrelayed: {endpoint}")
            stream.target = endpoint if endpoint is not None and endpoint.port else None
            stream.theirs = media.direction
        if self.timer is None and not self.is_over:
            self._speak()

    def _new_stream(self) -> Stream:
        sock = self._socket()
        return Stream(sock, sock.getsockname()[1])

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((self.phone.line.address, 0))
        sock.setblocking(False)
        self.world.loop.add_reader(sock.fileno(), self._readable, sock)
        return sock

    def described(self) -> bytes:
        """Our side as it is."""
        self.version += 1
        shown = self.phone.shown_ip
        lines = [
            "v=0",
            f"o=- {self.session} {self.version} IN IP4 {shown}",
            "s=-",
            f"c=IN IP4 {shown}",
            "t=0 0",
        ]
        for place, stream in enumerate(self.streams):
            kind, number = ("audio", "0") if place == 0 else ("video", "96")
            port = 0 if stream.ours is None else stream.port
            lines.append(f"m={kind} {port} RTP/AVP {number}")
            lines.append("a=rtpmap:0 PCMU/8000" if place == 0 else "a=rtpmap:96 H264/90000")
            if stream.ours is not None:
                lines.append(f"a={stream.ours.value}")
        return "\r\n".join([*lines, ""]).encode()

    def body(self, data: bytes) -> Body:
        """The body of a request."""
        return Body(data, (("Content-Type", b"application/sdp"),))

    # --- media ---

    def _speak(self) -> None:
        self.timer = self.world.loop.call_later(PACKET_S, self._speak)
        self.sequence += 1
        for place, stream in enumerate(self.streams):
            if stream.is_sent and stream.target is not None:
                number, clock = (0, 800) if place == 0 else (96, 9000)
                header = struct.pack(
                    ">BBHII",
                    0x80,
                    number,
                    self.sequence & 0xFFFF,
                    self.sequence * clock & 0xFFFFFFFF,
                    (self.ssrc + place) & 0xFFFFFFFF,
                )
                words = f"{self.call_id} {self.local_tag} {place}".encode()
                self.world.counters["spoken"] += 1
                try:
                    stream.socket.sendto(header + words, (str(stream.target.ip), stream.target.port))
                except OSError:
                    self.world.counters["unspoken"] += 1

    def _readable(self, sock: socket.socket) -> None:
        while True:
            try:
                data, _ = sock.recvfrom(4096)
            except OSError:
                return
            place = next((at for at, it in enumerate(self.streams) if it.socket is sock), None)
            if place is not None and len(data) > 12 and data[1] & 0x7F in (0, 96):
                self._hear(place, data[12:])

    def _hear(self, place: int, words: bytes) -> None:
        self.world.counters["heard"] += 1
        if not words.strip():
            return
        try:
            call_id, tag, number = words.split()
        except ValueError:
            self.wrong(f"unintelligible media {words[:60]!r}")
            return
        now = self.world.now()
        stream = self.streams[place]
        stream.heard[tag] = now
        if call_id.decode() != self.call_id:
            self.wrong(f"hears the call {call_id!r}")
        elif tag.decode() == self.local_tag:
            self.wrong("hears itself")
        elif int(number) != place:
            self.wrong(f"hears stream {number!r} in {place}")
        elif (
            self.is_answered
            and tag != self.remote_tag
            and now - max(self.answered_at, self.others.get(tag, 0.0)) > self.grace_s
        ):
            self.wrong(f"hears {tag!r} though {self.remote_tag!r} has answered")

    def rebind(self) -> None:
        """Send from other ports, in the same RTP streams."""
        for stream in self.streams:
            self._shut(stream)
            stream.socket = self._socket()
            if not self.phone.is_natted:
                stream.port = stream.socket.getsockname()[1]

    # --- the end ---

    def end(self) -> None:
        """Be silent and deaf."""
        if self.is_over:
            return
        self.is_over = True
        self.phone.forget(self)
        if self.timer is not None:
            self.timer.cancel()
        for stream in self.streams:
            self._shut(stream)

    def wrong(self, text: str) -> None:
        """Complain of something in this call."""
        if self.call_id not in self.world.broken:
            self.world.complain(f"{self.phone.name} {self.call_id}/{self.local_tag}: {text}")

    # --- the dialog ---

    def request(self, method: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """A request in the dialog, with the next number."""
        assert self.dialog is not None
        self.cseq += 1
        return self.dialog.compose(
            method,
            cseq=self.cseq,
            via=self.phone.via(),
            contact=None if method == "BYE" else self.phone.contact,
            headers=headers,
            body=self.body(body) if body else None,
        )

    def refresh(self, message: SipMessage) -> None:
        """Take the Contact of a re-INVITE, an UPDATE or a 2xx to one."""
        if self.dialog is not None and message.header("contact") is not None:
            try:
                self.dialog.target = target_of(message)
            except DecodeError as error:
                self.wrong(f"a Contact that is none: {error}")

    @property
    def grace_s(self) -> float:
        return LOSSY_GRACE_S if self.world.wire.loss else GRACE_S

    def is_settled(self) -> bool:
        """Whether nothing has changed for long."""
        return (
            self.is_answered
            and not self.is_over
            and not self.is_changing
            and not self.has_offered
            and self.world.now() - max(self.changed_at, self.answered_at) > SETTLED_S + self.grace_s
        )
