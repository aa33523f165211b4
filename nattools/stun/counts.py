"""What a server counts: fixed cells, so that several processes can have theirs in memory that all can read.

Every cell has one writer. Nothing that a client sends decides how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from nattools.stun.limiter import Level
from nattools.stun.responder import DropReason, RequestKind
from nattools.stun.uri import Transport

_CELL_BYTES = 8

BATCH_SIZES: Final = (1, 4, 16, 64, 256)
"""Up to how many datagrams the batches have that are counted together."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How many requests of one kind were answered, and whether with success."""

    ipv6: bool
    transport: Transport
    kind: RequestKind
    is_error: bool
    number: int


_FAMILY = len(Transport) * len(RequestKind) * 2
_DROPS_AT = 2 * _FAMILY
_BATCHES_AT = _DROPS_AT + len(DropReason)
_BATCHED_AT = _BATCHES_AT + len(BATCH_SIZES)
_JUDGED_AT = _BATCHED_AT + 1
_OVERRUN_AT = _JUDGED_AT + len(Level) + 1
_ACCEPTED_AT = _OVERRUN_AT + 1
_OPEN_AT = _ACCEPTED_AT + len(Transport)
CELLS: Final = _OPEN_AT + len(Transport)
"""So many cells `Counts` needs, of 8 bytes each."""

_PLACES = {transport: place for place, transport in enumerate(Transport)}
_CELL_OF_DROP = {reason: cell for cell, reason in enumerate(DropReason, start=_DROPS_AT)}


class Counts:
    """What one process did, or several of them together."""

    def __init__(self, cells: memoryview | None = None) -> None:
        """Count in `cells`, `CELLS` signed numbers of 8 bytes, on top of what is there; or in own ones."""
        self._cells = memoryview(bytearray(_CELL_BYTES * CELLS)).cast("q") if cells is None else cells
        self._cells[_OPEN_AT:CELLS] = memoryview(bytes(_CELL_BYTES * len(Transport))).cast("q")
        self._overrun_before = self._cells[_OVERRUN_AT]
        self.judged = self._cells[_JUDGED_AT:_OVERRUN_AT]
        """For a `Limiter` to count in."""

    @classmethod
    def total(cls, rows: Iterable[memoryview]) -> Counts:
        """What several processes did together, each in its own cells."""
        self = cls()
        for cell, numbers in enumerate(zip(*rows, strict=True)):
            self._cells[cell] = sum(numbers)
        return self

    def answer(
        self,
        kind: RequestKind,
        *,
        ipv6: bool,
        transport: Transport = Transport.UDP,
        is_error: bool = False,
        number: int = 1,
    ) -> None:
        """So many requests were answered."""
        self._cells[_cell_of(ipv6, transport, kind, is_error)] += number

    def drop(self, reason: DropReason, number: int = 1) -> None:
        """So many datagrams or connections were not."""
        self._cells[_CELL_OF_DROP[reason]] += number

    def batch(self, datagrams: int) -> None:
        """A batch of so many datagrams was read, 1 to 256."""
        self._cells[_BATCHES_AT + (((datagrams - 1).bit_length() + 1) >> 1)] += 1
        self._cells[_BATCHED_AT] += datagrams

    def overrun_is(self, datagrams: int) -> None:
        """So many the system has dropped so far since the sockets of this process had no room for them."""
        self._cells[_OVERRUN_AT] = self._overrun_before + datagrams

    def connect(self, transport: Transport) -> None:
        """A connection was accepted to be served."""
        self._cells[_ACCEPTED_AT + _PLACES[transport]] += 1
        self._cells[_OPEN_AT + _PLACES[transport]] += 1

    def disconnect(self, transport: Transport) -> None:
        """It has ended."""
        self._cells[_OPEN_AT + _PLACES[transport]] -= 1

    @property
    def answered(self) -> int:
        """How many requests were answered, with success or with an error."""
        return sum(self._cells[:_DROPS_AT])

    @property
    def dropped(self) -> Counter[DropReason]:
        """How many datagrams and connections were not, by reason."""
        counts = {reason: self._cells[cell] for reason, cell in _CELL_OF_DROP.items()}
        return Counter({reason: count for reason, count in counts.items() if count})

    @property
    def batches(self) -> tuple[int, ...]:
        """How many batches of each of `BATCH_SIZES` were read."""
        return tuple(self._cells[_BATCHES_AT:_BATCHED_AT])

    @property
    def batched(self) -> int:
        """How many datagrams were in them."""
        return self._cells[_BATCHED_AT]

    @property
    def overrun(self) -> int:
        """How many datagrams the system has dropped since the sockets had no room for them."""
        return self._cells[_OVERRUN_AT]

    def accepted(self, transport: Transport) -> int:
        """How many connections there have been."""
        return self._cells[_ACCEPTED_AT + _PLACES[transport]]

    def open(self, transport: Transport) -> int:
        """How many there are."""
        return self._cells[_OPEN_AT + _PLACES[transport]]

    def by_kind(self) -> Iterator[Answered]:
        """How many requests of each kind were answered."""
        for ipv6, transport, kind, is_error in product((False, True), Transport, RequestKind, (False, True)):
            number = self._cells[_cell_of(ipv6, transport, kind, is_error)]
            yield Answered(ipv6, transport, kind, is_error, number)

    def summary(self) -> str:
        """What was done so far, in one line."""
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in self.dropped.most_common())
        unread = f"; {self.overrun} never read, for lack of room" if self.overrun else ""
        return f"{self.answered} requests answered; dropped: {reasons or 'nothing'}{unread}"


def _cell_of(ipv6: bool, transport: Transport, kind: RequestKind, is_error: bool) -> int:
    return ipv6 * _FAMILY + (_PLACES[transport] * len(RequestKind) + kind) * 2 + is_error
