"""What is counted, by one process and by several in memory that they share."""

from __future__ import annotations

from itertools import product

import pytest

from nattools.stun.counts import BATCH_SIZES, CELLS, Counts
from nattools.stun.responder import DropReason, RequestKind
from nattools.stun.uri import Transport


def cells() -> memoryview:
    return memoryview(bytearray(8 * CELLS)).cast("q")


def filled(row: memoryview | None = None) -> Counts:
    """Something else in every cell that can be written."""
    counts = Counts(row)
    kinds = product((False, True), Transport, RequestKind, (False, True))
    for number, (ipv6, transport, kind, is_error) in enumerate(kinds, start=1):
        counts.answer(kind, ipv6=ipv6, transport=transport, is_error=is_error, number=number)
    for number, reason in enumerate(DropReason, start=1000):
        counts.drop(reason, number)
    for number, size in enumerate(BATCH_SIZES, start=1):
        for _ in range(number):
            counts.batch(size)
    for place in range(len(counts.judged)):
        counts.judged[place] += 2000 + place
    counts.overrun_is(3000)
    for number, transport in enumerate(Transport, start=3):
        for _ in range(number):
            counts.connect(transport)
        counts.disconnect(transport)
    return counts


def test_everything_has_a_cell_of_its_own() -> None:
    counts = filled()
    assert [each.number for each in counts.by_kind()] == list(range(1, 61))
    assert counts.answered == sum(range(1, 61))
    assert counts.dropped == dict(zip(DropReason, range(1000, 2000), strict=False))
    assert counts.batches == (1, 2, 3, 4, 5)
    assert counts.batched == sum(number * size for number, size in enumerate(BATCH_SIZES, start=1))
    assert counts.judged.tolist() == [2000, 2001, 2002, 2003, 2004]
    assert counts.overrun == 3000
    assert [counts.accepted(transport) for transport in Transport] == [3, 4, 5]
    assert [counts.open(transport) for transport in Transport] == [2, 3, 4]


def test_of_several_processes_there_is_the_sum() -> None:
    rows = [cells() for _ in range(3)]
    for row in rows:
        filled(row)
    total, one = Counts.total(rows), filled()
    assert total.answered == 3 * one.answered
    assert total.dropped == {reason: 3 * number for reason, number in one.dropped.items()}
    assert total.open(Transport.TLS) == 3 * one.open(Transport.TLS)
    assert total.overrun == 3 * one.overrun


def test_the_next_process_goes_on_where_the_last_has_died_but_for_its_connections() -> None:
    row = cells()
    filled(row)
    counts = filled(row)
    assert counts.answered == 2 * filled().answered
    assert counts.overrun == 6000
    assert counts.accepted(Transport.TCP) == 8
    assert counts.open(Transport.TCP) == 3


@pytest.mark.parametrize(
    ("size", "place"),
    [(1, 0), (2, 1), (4, 1), (5, 2), (16, 2), (17, 3), (64, 3), (65, 4), (256, 4)],
)
def test_a_batch_is_counted_with_those_of_its_size(size: int, place: int) -> None:
    counts = Counts()
    counts.batch(size)
    assert counts.batches.index(1) == place
    assert sum(counts.batches) == 1
    assert size <= BATCH_SIZES[place]


def test_the_summary_names_what_was_dropped_most_first() -> None:
    counts = Counts()
    assert counts.summary() == "0 requests answered; dropped: nothing"
    counts.answer(RequestKind.SIP, ipv6=True)
    counts.drop(DropReason.NOT_STUN)
    counts.drop(DropReason.RATE_LIMITED, 2)
    counts.overrun_is(5)
    assert counts.summary() == (
        "1 requests answered; dropped: 2 over the limit of their source, 1 not STUN;"
        " 5 never read, for lack of room"
    )
