"""Who is answered while somebody floods, by the fake clock; both limiters, which keep the same rules."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.machine import Entropy
from nattools.stun.batch_limiter import BatchLimiter
from nattools.stun.limiter import BYTES_OF_BUCKETS, NANOSECONDS, Level, Limiter, Limits, Rate

AMPLE = Rate(NANOSECONDS, NANOSECONDS)
FREE = Limits(AMPLE, AMPLE, AMPLE, AMPLE)
START = 1000.0

Made = Callable[[Limits], "Judge"]


def secret(seed: int) -> Entropy:
    """Always the same for the same seed."""
    count = itertools.count(seed << 32)
    return lambda size: hashlib.sha256(next(count).to_bytes(8, "big")).digest()[:size]


class Judge:
    """One of the two limiters, asked the same way."""

    def __init__(self, limiter: Limiter, *, in_batches: bool) -> None:
        self.limiter = limiter
        self._in_batches = in_batches

    def admits(self, sources: list[Endpoint], now: float = START) -> list[bool]:
        if not self._in_batches:
            return [self.limiter.admit_one(source, now=now) for source in sources]
        assert isinstance(self.limiter, BatchLimiter)
        return batch(self.limiter, sources, now)

    def count(self, sources: list[Endpoint], now: float = START) -> int:
        return sum(self.admits(sources, now))


def batch(limiter: BatchLimiter, sources: list[Endpoint], now: float) -> list[bool]:
    ports = np.array([source.port for source in sources], np.uint16)
    if sources[0].is_ipv6:
        halves = [divmod(int(source.ip), 1 << 64) for source in sources]
        return list(map(bool, limiter.admit(np.array(halves, np.uint64), ports, now=now)))
    addresses = np.array([int(source.ip) for source in sources], np.uint32)
    return list(map(bool, limiter.admit(addresses, ports, now=now)))


@pytest.fixture(params=[False, True], ids=["one by one", "batch"])
def made(request: pytest.FixtureRequest) -> Made:
    def make(limits: Limits) -> Judge:
        kind = BatchLimiter if request.param else Limiter
        return Judge(kind(limits, entropy=secret(1)), in_batches=request.param)

    return make


def client(text: str) -> Endpoint:
    return Endpoint.parse(text)


def once_each(level: Level) -> Limits:
    """One request each, as this level tells sources apart."""
    return replace(FREE, **{level.name.lower(): Rate(1, 1)})


A = client("203.0.113.7:40000")
A_IPV6 = client("[2001:db8:7::7]:40000")


@pytest.mark.parametrize(
    ("flooder", "neighbour"),
    [
        ("203.0.113.7:40000", "203.0.113.7:40001"),
        ("203.0.113.7:40000", "203.0.113.7:50000"),
        ("203.0.113.7:40000", "203.0.113.8:40000"),
        ("[2001:db8:7::7]:40000", "[2001:db8:7::7]:40001"),
        ("[2001:db8:7::7]:40000", "[2001:db8:7::8]:40000"),
    ],
)
def test_a_burst_of_80_leaves_the_neighbour_answered_and_is_forgiven_at_once(
    made: Made, flooder: str, neighbour: str
) -> None:
    judge = made(Limits())
    answered = judge.count([client(flooder)] * 80)
    assert answered == 40
    assert judge.admits([client(neighbour)]) == [True]
    assert judge.admits([client(flooder)], START + 0.01) == [False]
    assert judge.admits([client(flooder)], START + 0.06) == [True]
    assert judge.count([client(flooder)] * 80, START + 2.06) == 40


def test_a_subscriber_with_a_thousand_sockets_leaves_the_others_behind_the_address_answered(
    made: Made,
) -> None:
    judge = made(Limits())
    flood = [A.with_port(39 * 1024 + port % 1024) for port in range(3000)]
    assert judge.count(flood) == 400
    assert judge.admits([A.with_port(20_000), A.with_port(50_000)]) == [True, True]
    assert judge.admits([A.with_port(39 * 1024)]) == [False]
    assert judge.admits([A.with_port(39 * 1024)], START + 0.01) == [True]


def test_one_host_of_a_site_leaves_the_others_answered_over_ipv6(made: Made) -> None:
    judge = made(Limits())
    assert judge.count([A_IPV6.with_port(port) for port in range(1, 3000)]) == 400
    assert judge.admits([client("[2001:db8:7::8]:5000")]) == [True]


@pytest.mark.parametrize(
    ("level", "same", "other"),
    [
        (Level.SOCKET, "203.0.113.7:40000", "203.0.113.7:40001"),
        (Level.SHARER, "203.0.113.7:39936", "203.0.113.7:40960"),
        (Level.SHARER, "203.0.113.7:40000", "203.0.113.8:40000"),
        (Level.ADDRESS, "203.0.113.7:1", "203.0.113.8:1"),
        (Level.NETWORK, "203.0.113.255:9", "203.0.114.0:9"),
        (Level.SOCKET, "[2001:db8:7::7]:40000", "[2001:db8:7::7]:40001"),
        (Level.SOCKET, "[2001:db8:7::7]:40000", "[2001:db8:7:1::7]:40000"),
        (Level.SHARER, "[2001:db8:7::7]:1", "[2001:db8:7::8]:1"),
        (Level.ADDRESS, "[2001:db8:7::7]:1", "[2001:db8:7:1::7]:1"),
        (Level.NETWORK, "[2001:db8:7:9::7]:1", "[2001:db8:8:9::7]:1"),
    ],
)
def test_what_a_level_holds_together(made: Made, level: Level, same: str, other: str) -> None:
    judge = made(once_each(level))
    assert judge.admits([client(same), client(same), client(other)]) == [True, False, True]
    assert judge.limiter.refused == [int(one is level) for one in Level]
    assert judge.limiter.admitted == 2


@pytest.mark.parametrize(
    ("level", "first", "second"),
    [
        (Level.SHARER, "203.0.113.7:39936", "203.0.113.7:40959"),
        (Level.ADDRESS, "203.0.113.7:1", "203.0.113.7:65535"),
        (Level.NETWORK, "203.0.113.0:1", "203.0.113.255:9"),
        (Level.SHARER, "[2001:db8:7::7]:1", "[2001:db8:7::7]:65535"),
        (Level.ADDRESS, "[2001:db8:7::7]:1", "[2001:db8:7::8]:2"),
        (Level.NETWORK, "[2001:db8:7:1::7]:1", "[2001:db8:7:2::8]:2"),
    ],
)
def test_who_shares_a_bucket(made: Made, level: Level, first: str, second: str) -> None:
    judge = made(once_each(level))
    assert judge.admits([client(first), client(second)]) == [True, False]
    assert judge.limiter.refused[level] == 1


def test_in_the_long_run_the_rate_is_kept_to_the_datagram(made: Made) -> None:
    judge = made(replace(FREE, socket=Rate(10, 5)))
    answered = sum(judge.count([A] * 7, START + step / 8) for step in range(81))
    assert answered == 5 + 10 * 10


def test_a_flood_does_not_put_off_its_own_end(made: Made) -> None:
    judge = made(Limits(socket=Rate(1, 1)))
    assert judge.count([A] * 200) == 1
    assert judge.count([A] * 200, START + 0.9) == 0
    assert judge.admits([A], START + 1.0) == [True]


def test_a_refusal_costs_the_narrow_bucket_and_not_the_wide_ones(made: Made) -> None:
    judge = made(replace(FREE, socket=Rate(1, 1), address=Rate(1, 3)))
    assert judge.count([A] * 50) == 1
    assert judge.admits([A.with_port(1), A.with_port(2), A.with_port(3)]) == [True, True, False]
    assert judge.limiter.refused[Level.SOCKET] == 49
    assert judge.limiter.refused[Level.ADDRESS] == 1


def test_forged_sources_by_the_ten_thousand_cost_no_memory_and_no_neighbour(made: Made) -> None:
    judge = made(Limits())
    flood = [client(f"{100 + n % 100}.{n // 100 % 256}.{n % 251}.9:{1024 + n}") for n in range(20_000)]
    assert judge.count(flood) == len(flood)
    assert judge.admits([A]) == [True]


def test_it_says_what_was_refused_and_what_is_empty(made: Made) -> None:
    judge = made(Limits(socket=Rate(1, 2)))
    judge.admits([A, A, A, A, A.with_port(1)])
    assert judge.limiter.admitted == 3
    assert judge.limiter.refused == [2, 0, 0, 0]
    assert judge.limiter.empty(now=START) == {level: int(level is Level.SOCKET) for level in Level}
    assert not any(judge.limiter.empty(now=START + 1.0).values())


@pytest.mark.parametrize("kind", [Limiter, BatchLimiter])
def test_two_with_the_same_memory_and_secrets_have_one_rate_and_count_for_themselves(
    kind: type[Limiter],
) -> None:
    """As two processes have that were forked from one."""
    memory = memoryview(bytearray(BYTES_OF_BUCKETS))
    one, other = (kind(Limits(socket=Rate(1, 5)), entropy=secret(1), memory=memory) for _ in range(2))
    assert [limiter.admit_one(A, now=START) for limiter in (one, other, one, other, one, other)] == [
        *(True, True, True, True, True, False)
    ]
    assert (one.admitted, other.admitted) == (3, 2)
    assert (one.refused, other.refused) == ([0, 0, 0, 0], [1, 0, 0, 0])
    assert one.empty(now=START) == other.empty(now=START)


def test_memory_that_others_read_takes_the_numbers(made: Made) -> None:
    judge = made(Limits(socket=Rate(1, 2)))
    judge.limiter.judged = cells = memoryview(bytearray(8 * 5)).cast("q")
    judge.admits([A, A, A, A])
    assert cells.tolist() == [2, 0, 0, 0, 2]


def test_a_bucket_that_two_processes_have_spoilt_has_a_token_after_one_interval(made: Made) -> None:
    """What one added for a batch and the other wrote back: as if the source had sent a batch more."""
    judge = made(Limits(socket=Rate(1, 5)))
    judge.admits([A])
    full_at = judge.limiter._full_at
    [bucket] = [bucket for bucket in range(judge.limiter.buckets) if full_at[bucket]]
    full_at[bucket] += 10_000 * NANOSECONDS
    admitted = [judge.count([A], START + seconds) for seconds in (0.0, 0.9, 1.0, 1.1, 2.1)]
    assert admitted == [0, 0, 1, 0, 1]


def test_both_ways_of_a_batch_limiter_use_the_same_buckets() -> None:
    limiter = BatchLimiter(replace(FREE, socket=Rate(1, 3)), entropy=secret(1))
    assert limiter.admit_one(A, now=START)
    assert batch(limiter, [A, A, A], START) == [True, True, False]
    assert not limiter.admit_one(A, now=START)


def test_which_sources_meet_in_a_bucket_is_secret() -> None:
    """Of two buckets, A's is that of about half of the others; of which half, each secret says anew."""
    others = [A.with_port(port) for port in range(1, 33)]

    def meets(other: Endpoint, seed: int) -> bool:
        limiter = Limiter(replace(FREE, socket=Rate(1, 1)), entropy=secret(seed), buckets=2)
        return limiter.admit_one(A, now=START) and not limiter.admit_one(other, now=START)

    meetings = {tuple(meets(other, seed) for other in others) for seed in range(8)}
    assert len(meetings) == 8
    assert all(4 < sum(met) < 28 for met in meetings)


@pytest.mark.parametrize("buckets", [0, 1, 3, 1000, 1 << 25])
def test_numbers_of_buckets_that_cannot_be(buckets: int) -> None:
    with pytest.raises(TransportError, match="power of two"):
        Limiter(entropy=secret(1), buckets=buckets)


@pytest.mark.parametrize(
    ("per_s", "at_once"), [(0, 1), (-1, 1), (1, 0), (1e10, 1), (1, 10**10), (float("nan"), 1)]
)
def test_rates_that_cannot_be(per_s: float, at_once: int) -> None:
    with pytest.raises(TransportError, match="positive"):
        Rate(per_s, at_once)


@pytest.mark.parametrize("source", [A, A_IPV6], ids=["IPv4", "IPv6"])
def test_numbers_may_stand_as_in_a_socket_address(source: Endpoint) -> None:
    limits = replace(FREE, socket=Rate(1, 3))
    limiter, other = (BatchLimiter(limits, entropy=secret(1)) for _ in range(2))
    packed = np.frombuffer(source.ip.packed * 4, ">u8" if source.is_ipv6 else ">u4")
    addresses = packed.reshape(4, 2) if source.is_ipv6 else packed
    ports = np.full(4, source.port, ">u2")
    assert limiter.admit(addresses, ports, now=START).tolist() == [True, True, True, False]
    assert batch(other, [source] * 4, START) == [True, True, True, False]
    assert bytes(limiter._full_at) == bytes(other._full_at)


def test_the_answer_about_one_batch_is_not_changed_by_the_next() -> None:
    limiter = BatchLimiter(replace(FREE, socket=Rate(1, 300)), entropy=secret(1))
    addresses, ports = np.full(300, 1, np.uint32), np.full(300, 5000, np.uint16)
    first = limiter.admit(addresses, ports, now=START)
    second = limiter.admit(addresses, ports, now=START)
    assert (first.tolist(), second.tolist()) == ([True] * 300, [False] * 300)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = False
    assert limiter.admit(addresses[:0], ports[:0], now=START).tolist() == []


def test_limits_above_the_load_stop_nothing(made: Made) -> None:
    judge = made(FREE)
    assert judge.count([A] * 2000) == 2000


def test_other_limits_hold_at_once_and_everybody_begins_anew(made: Made) -> None:
    judge = made(replace(FREE, socket=Rate(0.01, 5)))
    assert judge.count([A] * 10) == 5
    judge.limiter.become(replace(FREE, socket=Rate(1, 7)))
    assert judge.count([A] * 10) == 7
    assert judge.count([A] * 10, START + 2) == 2
    assert judge.limiter.admitted == 14
    assert judge.limiter.refused[Level.SOCKET] == 16
