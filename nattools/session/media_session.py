"""The media of one call: its streams, what both sides have said of them, and what holds (RFC 3264).

What a side offers counts for it at once, since its media may move with the offer; what was agreed before is
kept until the answer is final, and comes back where the offer is refused (RFC 3261 §14.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.session.offers import Described
from nattools.session.relay import Expectation, MediaStream, Side
from nattools.sip.origins import Origins

MOST_STREAMS = 8
"""So many m= lines of a description are relayed; the others are refused."""

_MOST_TAGS = 32


class News(NamedTuple):
    """What a stream is to be told of one of its sides."""

    stream: MediaStream
    side: Side
    expectation: Expectation


Line = Described | None
"""What an m= line says; None where it is refused, or not relayed."""


@dataclass(slots=True, eq=False)
class Slot:
    """One m= line of a session, and the stream that carries it."""

    stream: MediaStream
    kind: str
    agreed: dict[Side, Described] = field(default_factory=dict)
    offered: dict[Side, Described] = field(default_factory=dict)
    """What was said since, and is not answered yet."""
    told: dict[Side, Expectation] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Whether media are to come from both sides, and through the relay."""
        said = [self._current(side) for side in Side]
        if all(it is not None and it.has_ice for it in said):
            return False  # the two sides may have found a way of their own
        return all(it is not None and not it.is_held for it in said)

    def expectation(self, side: Side) -> Expectation | None:
        """What the stream is to know of `side`; None before that has described itself."""
        own, other = self._current(side), self._current(side.other)
        if own is None:
            return None
        types = [it.payload_types for it in (self.agreed.get(side.other), self.offered.get(side.other)) if it]
        return Expectation(
            own.rtp,
            own.rtcp,
            (frozenset().union(*types) or own.payload_types) if own.payload_types else frozenset(),
            own.rtcp_mux and (other is None or other.rtcp_mux),
            (other or own).clock_hz,
            own.hosts,
            own.is_proven,
        )

    def _current(self, side: Side) -> Described | None:
        """What counts for a side: an offer that holds the stream does so only once it is agreed."""
        offered, agreed = self.offered.get(side), self.agreed.get(side)
        if offered is None or (agreed is not None and offered.rtp is None):
            return agreed
        return offered


class _Snapshot(NamedTuple):
    """What was agreed for each m= line before the offer in the request of that number."""

    number: int
    agreed: dict[Slot, dict[Side, Described]]


@dataclass(slots=True, eq=False)
class MediaSession:
    """The streams between a caller (side A) and who answers (side B), by one branch of one INVITE.

    `serial` rises with each session. `callee_tags` are those of the early dialogs that the branch has led to,
    `answered_tags` those of them that a 2xx has made calls; of these the `chosen` one is heard, the first as
    long as it lasts. `remotes` are where each side's signalling came from.
    """

    serial: int
    call_id: bytes
    caller_tag: bytes
    addresses: dict[Side, IPAddress | None]
    remotes: dict[Side, Endpoint]
    callee_tags: set[bytes] = field(default_factory=set)
    answered_tags: set[bytes] = field(default_factory=set)
    chosen: bytes | None = None
    slots: list[Slot | None] = field(default_factory=list)
    spare: list[MediaStream] = field(default_factory=list)
    """Streams that are open, and wait for an m= line."""
    origins: Origins = field(default_factory=Origins)
    touched_at: float = 0.0
    quiet_until: float = 0.0
    """Before that it cannot have been silent for too long."""
    is_closed: bool = False
    _lines: dict[Side, list[Line]] = field(default_factory=dict)
    _offering: set[Side] = field(default_factory=set)
    _before: dict[Side, _Snapshot] = field(default_factory=dict)
    _latest: dict[Side, object] = field(default_factory=dict)
    _of_callees: dict[bytes, list[Line]] = field(default_factory=dict)
    _speaker: bytes | None = None
    """The callee whose lines count now."""

    @property
    def streams(self) -> list[MediaStream]:
        """All that are open."""
        return [slot.stream for slot in self.slots if slot is not None] + self.spare

    def learn_tag(self, tag: bytes) -> None:
        """Take note of an early dialog; of very many those that come later are not known."""
        if len(self.callee_tags) < _MOST_TAGS:
            self.callee_tags.add(tag)

    def lacks(self, wanted: Sequence[bool]) -> int:
        """How many streams more a description needs, by whether each of its m= lines needs one."""
        places = list(wanted)[:MOST_STREAMS]
        return sum(is_wanted and self.slot(index) is None for index, is_wanted in enumerate(places))

    def begin_offer(self, side: Side, *, number: int) -> None:
        """Keep what is agreed, before streams are added for what `side` offers in that request."""
        before = self._before.get(side)
        if before is None or before.number != number:
            agreed = {slot: dict(slot.agreed) for slot in self.slots if slot is not None}
            self._before[side] = _Snapshot(number, agreed)

    def slot(self, index: int) -> Slot | None:
        """The m= line with that index, None where it has no stream."""
        return self.slots[index] if index < len(self.slots) else None

    def fill(self, index: int, kind: str) -> Slot | None:
        """Give an m= line one of the streams that wait; None where there is none left for it."""
        if not self.spare:
            return None
        self.slots += [None] * (index + 1 - len(self.slots))
        slot = self.slots[index] = Slot(self.spare.pop(0), kind)
        return slot

    def awaits_answer_of(self, side: Side) -> bool:
        """Whether the other side has offered something that `side` has not answered."""
        return side.other in self._offering

    def offer(self, side: Side, lines: Sequence[Line], *, message: object) -> list[News]:
        """Take what `side` offers, after `begin_offer`.

        `message` tells a message from others; when it comes again it says nothing new.
        """
        if self._is_known(side, message):
            return []
        self._lines[side] = list(lines)
        self._offering.add(side)
        changed = []
        for index, line in enumerate(lines):
            slot = self.slot(index)
            if slot is not None and line is not None:
                slot.offered[side] = line
                changed.append(slot)
        return _news(changed, side)

    def answer(
        self, side: Side, lines: Sequence[Line], *, is_final: bool, message: object
    ) -> tuple[list[News], list[MediaStream]]:
        """Take what `side` answers, and give the streams that are to be closed, since they are refused.

        An answer that is not final, in a response below 200, can be followed by another one.
        """
        if self._is_known(side, message):
            return [], []
        other, changed = side.other, []
        self._offering.discard(other)
        for index, line in enumerate(lines):
            slot = self.slot(index)
            if slot is not None and line is not None:
                slot.agreed[side] = line
                if other in slot.offered:
                    slot.agreed[other] = slot.offered.pop(other)
                changed.append(slot)
        if not is_final:
            return _news(changed, side), []
        closed = self._take_out(lambda index: None in (_at(lines, index), _at(self._lines.get(other), index)))
        return _news([it for it in changed if it in self.slots], side), closed

    def answered_by(self, tag: bytes) -> None:
        """Take note of a 2xx."""
        self.answered_tags.add(tag)
        self.chosen = self.chosen or tag

    def ended_with(self, tag: bytes) -> None:
        """Take note that a call is over."""
        self.answered_tags.discard(tag)
        self.callee_tags.discard(tag)
        self._of_callees.pop(tag, None)
        if self.chosen == tag:
            self.chosen = next(iter(self.answered_tags), None)

    def is_of_another(self, tag: bytes | None) -> bool:
        """Whether a dialog is not the one that is heard: the caller will hang it up."""
        return self.chosen is not None and tag != self.chosen

    def note_callee(self, tag: bytes | None, lines: Sequence[Line]) -> None:
        """Take note of what a callee has said; one branch may lead to several, by a proxy that forks."""
        if tag in self.callee_tags:
            self._of_callees[tag] = list(lines)
        if not self.is_of_another(tag):
            self._speaker = tag

    def recall(self) -> tuple[list[News], list[MediaStream]]:
        """Go back to what the chosen callee has said, where another one spoke since; as `answer` gives."""
        lines = None if self.chosen is None else self._of_callees.get(self.chosen)
        if lines is None or self.chosen == self._speaker:
            return [], []
        self._speaker = self.chosen
        changed = []
        for index, line in enumerate(lines):
            slot = self.slot(index)
            if slot is not None and line is not None:
                slot.agreed[Side.B] = line
                slot.offered.pop(Side.B, None)
                changed.append(slot)
        closed = self._take_out(lambda index: _at(lines, index) is None)
        return _news(changed, Side.B), closed

    def refuse(self, number: int) -> tuple[list[News], list[MediaStream]]:
        """Go back to what was agreed before the offer in that request; streams that are new close."""
        side = next((side for side, it in self._before.items() if it.number == number), None)
        if side is None:
            return [], []
        kept = self._before.pop(side).agreed
        self._offering.discard(side)
        closed = self._take_out(lambda index: self.slots[index] not in kept)
        news: list[News] = []
        for slot in self.slots:
            if slot is not None:
                slot.agreed = kept[slot]
                slot.offered.pop(side, None)
                for each in Side:
                    news += _changed(slot, each)
        return news, closed

    def _is_known(self, side: Side, message: object) -> bool:
        if self._latest.get(side) == message:
            return True
        self._latest[side] = message
        return False

    def _take_out(self, is_over: Callable[[int], bool]) -> list[MediaStream]:
        closed = []
        for index, slot in enumerate(self.slots):
            if slot is not None and is_over(index):
                closed.append(slot.stream)
                self.slots[index] = None
        return closed


def _at(lines: Sequence[Line] | None, index: int) -> Line:
    return None if lines is None or index >= len(lines) else lines[index]


def _news(changed: Sequence[Slot], side: Side) -> list[News]:
    """What is to be told where `side` has described itself; it may come from elsewhere now, as before."""
    news = []
    for slot in changed:
        expectation = slot.expectation(side)
        if expectation is not None:
            slot.told[side] = expectation
            news.append(News(slot.stream, side, expectation))
        news += _changed(slot, side.other)
    return news


def _changed(slot: Slot, side: Side) -> list[News]:
    """What is to be told of `side`, if it is something else than before."""
    expectation = slot.expectation(side)
    if expectation is None or slot.told.get(side) == expectation:
        return []
    slot.told[side] = expectation
    return [News(slot.stream, side, expectation)]
