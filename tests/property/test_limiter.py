"""The limiter over batches is the limiter over single datagrams, whatever comes and whenever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.stun.batch_limiter import BatchLimiter
from nattools.stun.limiter import Limiter, Limits, Rate
from tests.unit.stun.test_limiter import batch

rates = st.builds(Rate, st.floats(0.5, 2000), st.integers(1, 12))
limits = st.builds(Limits, rates, rates, rates, rates)
ports = st.one_of(st.integers(40_000, 40_003), st.integers(0, 0xFFFF))
ipv4 = st.one_of(
    st.sampled_from(["203.0.113.7", "203.0.113.8", "203.0.114.7"]), st.ip_addresses(v=4).map(str)
)
ipv6 = st.one_of(
    st.sampled_from(["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "ffff:ffff:ffff:ffff::1"]),
    st.ip_addresses(v=6).map(str),
)
batches = st.one_of(
    *(st.lists(st.builds(Endpoint.of, ips, ports), min_size=1, max_size=40) for ips in (ipv4, ipv6))
)
pauses = st.one_of(st.just(0.0), st.floats(0, 3))
secrets = st.binary(min_size=64, max_size=64)


class Entropy:
    """Hands out the same bytes to each limiter."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken


@given(limits, secrets, st.sampled_from([2, 64, 65_536]), st.lists(st.tuples(pauses, batches), max_size=6))
def test_a_batch_is_its_rows_one_by_one(
    limits: Limits, secret: bytes, buckets: int, arrivals: list[tuple[float, list[Endpoint]]]
) -> None:
    plain = Limiter(limits, entropy=Entropy(secret), buckets=buckets)
    vector = BatchLimiter(limits, entropy=Entropy(secret), buckets=buckets)
    now = 5.0
    for pause, sources in arrivals:
        now += pause
        expected = [plain.admit_one(source, now=now) for source in sources]
        assert batch(vector, sources, now) == expected
        assert vector.judged == plain.judged
        assert vector.empty(now=now) == plain.empty(now=now)


@given(limits, secrets, st.lists(st.tuples(pauses, batches), min_size=1, max_size=6))
def test_nobody_gets_more_than_the_rate_of_the_socket(
    limits: Limits, secret: bytes, arrivals: list[tuple[float, list[Endpoint]]]
) -> None:
    limiter = Limiter(limits, entropy=Entropy(secret))
    answered: dict[Endpoint, int] = {}
    now = 5.0
    for pause, sources in arrivals:
        now += pause
        for source in sources:
            answered[source] = answered.get(source, 0) + limiter.admit_one(source, now=now)
    rate = limits.socket
    assert max(answered.values()) <= rate.at_once + (now - 5.0) * rate.per_s * 1.001 + 1


@given(limits, secrets, batches, st.integers(1, 200))
def test_an_empty_bucket_has_a_token_again_after_one_interval_of_each_level(
    limits: Limits, secret: bytes, sources: list[Endpoint], times: int
) -> None:
    limiter = Limiter(limits, entropy=Entropy(secret))
    for source in sources * times:
        limiter.admit_one(source, now=5.0)
    slowest_s = 1 / min(rate.per_s for rate in limits.rates)
    assert limiter.admit_one(sources[0], now=5.0 + slowest_s + 1e-6)
