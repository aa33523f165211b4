"""The descriptions of calls as they pass a relay: its ports are written into them, what they say is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.session.events import Passage
from nattools.session.media_session import Line, MediaSession, News
from nattools.session.offers import Described, Lot, describe, edits, is_relayed
from nattools.session.relay import MediaStream, PortPair, Side
from nattools.sip.body import Part, edit_parts, sdp_parts
from nattools.sip.media import Edit, origin_edits
from nattools.sip.message import SipMessage
from nattools.sip.sdp import Media, SessionDescription

Place = tuple[MediaSession, int, Side]
"""An m= line of a session, and the side that a port of it faces."""


class RelayedDescriptions:
    """Edits descriptions, and knows which ports of the relay they have been given.

    `counters` has how many went on as they came (`descriptions_unreadable`), how many m= lines were refused
    for want of a stream (`streams_refused`), and how many of them said a port of the relay that they cannot
    mean (`streams_looped`).
    """

    def __init__(
        self, advertised: Callable[[Endpoint], Endpoint], *, strips_ice: bool, counters: Counter[str]
    ) -> None:
        self._advertised = advertised
        self._strips_ice = strips_ice
        self._counters = counters
        self._places: dict[Endpoint, Place] = {}
        self._ports: dict[MediaStream, frozenset[Endpoint]] = {}
        self._taken: set[Endpoint] = set()
        """All ports of the relay as anybody might name them: RTP and RTCP, local and advertised."""

    def places(self, description: SessionDescription) -> list[Place]:
        """The ports of the relay that a description has already."""
        found = [self._place(media) for media in description.media]
        return [it for it in found if it is not None]

    def forget(self, stream: MediaStream) -> None:
        """Let go of a stream that closes."""
        ports = self._ports.pop(stream, frozenset())
        self._taken -= ports
        for port in ports:
            self._places.pop(port, None)

    def edit(
        self,
        passage: Passage,
        session: MediaSession | None,
        side: Side,
        *,
        is_answer: bool,
        address: IPAddress | None,
    ) -> tuple[list[News], list[MediaStream]]:
        """Edit the descriptions of a message from `side`: what is to be told, and which streams are to close.

        Without a session its m= lines are refused. `address` is this machine's that faces the receiver.
        """
        message = passage.message
        edited: list[tuple[Part, list[Edit]]] = []
        news: list[News] = []
        closed: list[MediaStream] = []
        for part in sdp_parts(message):
            try:
                description = SessionDescription.parse(message.data, part.span)
            except DecodeError:
                self._counters["descriptions_unreadable"] += 1
                continue
            is_again = self._is_again(session, side, description)
            callee = None if session is None else _callee(message, session)
            if session is None or session.is_closed:
                lots: list[PortPair | Lot] = [
                    Lot.REFUSED if is_relayed(it) else Lot.LEFT for it in description.media
                ]
            else:
                is_heard = not is_again and not session.is_of_another(callee)
                if not is_answer and is_heard:
                    session.begin_offer(side, number=passage.number)
                host = passage.arrived.remote.ip
                lots, lines = self._lots(session, side, description, host, is_answer=is_answer)
                if not edited and not is_again and side is Side.B:
                    session.note_callee(callee, lines)
                if not edited and is_heard:  # of alternatives (RFC 2046 §5.1.4) the first is believed
                    news, closed = _take(session, side, lines, message, is_answer=is_answer)
            if Lot.REFUSED in lots:
                self._counters["streams_refused"] += lots.count(Lot.REFUSED)
            made = edits(
                description,
                lots,
                address=self._address(session, side.other, passage, address),
                is_answer=is_answer,
                strips_ice=self._strips_ice,
            )
            if session is not None and not is_again:
                made += _origin_edits(session, side, description, lots, message, is_edited=bool(made))
            edited.append((part, made))
        edit_parts(message, edited)
        return news, closed

    def _lots(
        self,
        session: MediaSession,
        side: Side,
        description: SessionDescription,
        host: IPAddress,
        *,
        is_answer: bool,
    ) -> tuple[list[PortPair | Lot], list[Line]]:
        """What each m= line gets, and what it says."""
        lots: list[PortPair | Lot] = []
        lines: list[Line] = []
        receiver = side.other
        for index, media in enumerate(description.media):
            place = self._place(media)
            has_ports = place is not None and place[0] is session and place[2] is receiver
            if has_ports or not is_relayed(media):
                lots.append(Lot.LEFT)
                lines.append(None)
            else:
                slot = session.slot(index)
                if slot is None and not is_answer:
                    slot = session.fill(index, media.kind)
                    if slot is not None:
                        self._know(slot.stream, session, index)
                lots.append(Lot.REFUSED if slot is None else self._told(slot.stream, receiver))
                lines.append(self._describe(session, side, media, place, host))
        return lots, lines

    def _is_again(self, session: MediaSession | None, side: Side, description: SessionDescription) -> bool:
        """Whether a description passes here once more, and was edited and understood when it came first."""
        return any(it[0] is session and it[2] is side.other for it in self.places(description))

    def _describe(
        self, session: MediaSession, side: Side, media: Media, place: Place | None, host: IPAddress
    ) -> Described:
        described = describe(media, host)
        if place is None and not {described.rtp, described.rtcp} & self._taken:
            return described
        if place is None:  # nobody speaks from there but the relay, which would speak to itself
            self._counters["streams_looped"] += 1
            return replace(described, rtp=None, rtcp=None)
        # The way leads through this relay twice. From one session it leads to later ones only, and back, so
        # that nothing can go round in circles.
        other, index, facing = place
        is_next = session.serial > other.serial if side is Side.A else session.serial < other.serial
        slot = other.slot(index)
        if slot is None or facing is side or not is_next or other.call_id != session.call_id:
            self._counters["streams_looped"] += 1
            return replace(described, rtp=None, rtcp=None)
        ports = slot.stream.ports(facing)
        if ports.rtp.ip.is_unspecified:  # nothing can be sent to that
            ports = self._told(slot.stream, facing)
        return replace(described, rtp=ports.rtp, rtcp=ports.rtcp, is_proven=True)

    def _place(self, media: Media) -> Place | None:
        return self._places.get(media.endpoint) if media.port and media.endpoint is not None else None

    def _know(self, stream: MediaStream, session: MediaSession, index: int) -> None:
        ports: set[Endpoint] = set()
        for side in Side:
            local, told = stream.ports(side), self._told(stream, side)
            self._places[told.rtp] = session, index, side
            ports |= {local.rtp, local.rtcp, told.rtp, told.rtcp}
        self._ports[stream] = frozenset(ports)
        self._taken |= ports

    def _told(self, stream: MediaStream, side: Side) -> PortPair:
        ports = stream.ports(side)
        return PortPair(self._advertised(ports.rtp), self._advertised(ports.rtcp))

    def _address(
        self, session: MediaSession | None, side: Side, passage: Passage, address: IPAddress | None
    ) -> IPAddress:
        """What stands in a c= line that no stream needs any longer."""
        streams = [] if session is None else session.streams
        if streams:
            return self._advertised(streams[0].ports(side).rtp).ip
        if address is not None:
            return self._advertised(Endpoint(address, 0)).ip
        return IPv6Address(0) if passage.leaves.remote.is_ipv6 else IPv4Address(0)


def _callee(message: SipMessage, session: MediaSession) -> bytes | None:
    """The tag of the callee's side in the dialog of a message."""
    return message.to_tag if message.from_tag == session.caller_tag else message.from_tag


def _take(
    session: MediaSession, side: Side, lines: Sequence[Line], message: SipMessage, *, is_answer: bool
) -> tuple[list[News], list[MediaStream]]:
    """Have the session take an offer or an answer."""
    known_by = (message.is_request, message.cseq, message.status_code, message.to_tag)
    if not is_answer:
        return session.offer(side, lines, message=known_by), []
    is_final = message.is_request or (message.status_code or 0) >= 200
    return session.answer(side, lines, is_final=is_final, message=known_by)


def _origin_edits(
    session: MediaSession,
    side: Side,
    description: SessionDescription,
    lots: Sequence[PortPair | Lot],
    message: SipMessage,
    *,
    is_edited: bool,
) -> list[Edit]:
    """The address of the relay in o=, and a version that rises when its ports change (RFC 3264 §8)."""
    origin = description.origin
    if origin is None:
        return []
    key = (side.value.encode(), origin.session_id)
    if not is_edited and key not in session.origins:
        return []
    ip = next((lot.rtp.ip for lot in lots if isinstance(lot, PortPair)), None)
    of_message = (message.is_request, message.cseq)
    version, ip = session.origins.next(key, origin.version, tuple(lots), ip, message=of_message)
    return origin_edits(origin, version=version, ip=ip)
