"""A seeded mutator, and the loop that holds a target to its promise on what the mutator makes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Mutation = Callable[[bytearray, Random], None]
"""Changes the bytes in place."""

INTERESTING = (0x00, 0x01, 0x02, 0x04, 0x08, 0x14, 0x20, 0x21, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFE, 0xFF)


def flip_bit(data: bytearray, random: Random) -> None:
    """Flip one bit."""
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def set_byte(data: bytearray, random: Random) -> None:
    """Set one byte to a value that stands at some border."""
    if data:
        data[random.randrange(len(data))] = random.choice(INTERESTING)


def truncate(data: bytearray, random: Random) -> None:
    """Cut the end off."""
    del data[random.randrange(len(data) + 1) :]


def remove(data: bytearray, random: Random) -> None:
    """Take a short run out."""
    start = random.randrange(len(data) + 1)
    del data[start : start + random.randrange(1, 9)]


def insert(data: bytearray, random: Random) -> None:
    """Put random bytes in."""
    start = random.randrange(len(data) + 1)
    data[start:start] = random.randbytes(random.randrange(1, 9))


def repeat(data: bytearray, random: Random) -> None:
    """Double a run."""
    start = random.randrange(len(data) + 1)
    end = start + random.randrange(1, 33)
    data[end:end] = data[start:end]


GENERAL: tuple[Mutation, ...] = (flip_bit, flip_bit, set_byte, truncate, remove, insert, repeat)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes, and its promise.

    `check` returns what became of the bytes, in a word for the statistics, and raises whatever a broken
    promise raises. `mutations` know the format; `repair`, now and then called last, makes the frame fit.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], str]
    mutations: tuple[Mutation, ...] = ()
    repair: Mutation | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The input that broke the promise, which one it was of its seed, and how."""

    data: bytes
    index: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    count: int
    seconds: float
    outcomes: Counter[str]
    failure: Failure | None


def _splice(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    other = random.choice(seeds)
    data[random.randrange(len(data) + 1) :] = other[random.randrange(len(other) + 1) :]


def run(target: Target, *, count: int, seed: int) -> Report:
    """Check `count` inputs or up to a failure, the unchanged seeds first; a `seed` always makes the same."""
    random = Random(seed)
    seeds = target.seeds()
    mutations = (*GENERAL, *target.mutations * 2)
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    for index in range(count):
        data = bytearray(seeds[index % len(seeds)])
        if index >= len(seeds):
            for _ in range(random.choice((1, 1, 1, 2, 2, 4, 8))):
                if random.random() < 0.1:
                    _splice(data, random, seeds)
                else:
                    random.choice(mutations)(data, random)
            if target.repair is not None and random.random() < 0.6:
                target.repair(data, random)
        frozen = bytes(data)
        try:
            outcomes[target.check(frozen)] += 1
        except Exception as error:  # noqa: BLE001  # any exception at all is the finding
            failure = Failure(frozen, index, error)
            return Report(index + 1, time.perf_counter() - start, outcomes, failure)
    return Report(count, time.perf_counter() - start, outcomes, None)
