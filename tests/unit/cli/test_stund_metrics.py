"""The metrics of stund over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import ip_address

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nattools import __version__
from nattools.cli.stund_metrics import Link, Processes, StundState, metrics_of, serve_metrics
from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.net.http import HttpRequest, HttpResponse, exchange
from nattools.net.metrics import expose
from nattools.stun.counts import Counts
from nattools.stun.limiter import Level
from nattools.stun.peer import PeerDrop
from nattools.stun.responder import DropReason, RequestKind, ServerAddresses
from nattools.stun.uri import Transport

ANY_PORT = Endpoint.of("127.0.0.1", 0)
IPV4 = ServerAddresses(ip_address("192.0.2.1"), 3478, ip_address("192.0.2.2"), 3479)
IPV6 = ServerAddresses(ip_address("2001:db8::1"))
EMPTY = {level: 3 * (level is Level.SOCKET) for level in Level}
BUCKETS = 65_536
TIME_LIMIT_S = 20


def counts() -> Counts:
    made = Counts()
    made.answer(RequestKind.PLAIN, ipv6=False, number=70)
    made.answer(RequestKind.CLASSIC, ipv6=False, number=5)
    made.answer(RequestKind.BEHAVIOUR, ipv6=True, is_error=True, number=2)
    made.answer(RequestKind.PLAIN, ipv6=True, transport=Transport.TLS, number=3)
    made.drop(DropReason.NOT_STUN, 10)
    made.drop(DropReason.RATE_LIMITED, 46)
    for size in (1, 1, 3, 64, 256):
        made.batch(size)
    made.judged[Level.NETWORK] += 13
    made.judged[-1] += 90
    made.overrun_is(17)
    for _ in range(3):
        made.connect(Transport.TCP)
    made.disconnect(Transport.TCP)
    return made


def state() -> StundState:
    link = Link(6, is_up=True, handed_over=5, taken_over=6, dropped=Counter({PeerDrop.FORGED: 7}))
    return StundState([IPV4, IPV6], counts(), EMPTY, BUCKETS, Processes(4, 3, 2), [link])


def samples(state: StundState) -> dict[str, float]:
    """Each value by its name and labels, as Prometheus writes them."""
    text = expose(metrics_of(state)).decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) == sum(len(family.samples) for family in families)
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f'stund_info{{addresses="2",family="ipv4",version="{__version__}"}}', 1),
        (f'stund_info{{addresses="1",family="ipv6",version="{__version__}"}}', 1),
        ('stund_requests_total{family="ipv4",kind="plain",transport="udp"}', 70),
        ('stund_requests_total{family="ipv4",kind="classic",transport="udp"}', 5),
        ('stund_requests_total{family="ipv6",kind="behaviour",transport="udp"}', 2),
        ('stund_requests_total{family="ipv6",kind="plain",transport="tls"}', 3),
        ('stund_requests_total{family="ipv6",kind="sip",transport="udp"}', 0),
        ('stund_replies_total{family="ipv4",result="success",transport="udp"}', 75),
        ('stund_replies_total{family="ipv6",result="error",transport="udp"}', 2),
        ('stund_dropped_total{reason="not_stun"}', 10),
        ('stund_dropped_total{reason="rate_limited"}', 46),
        ('stund_dropped_total{reason="truncated"}', 0),
        ("stund_overrun_total", 17),
        ('stund_connections{transport="tcp"}', 2),
        ('stund_connections_accepted_total{transport="tcp"}', 3),
        ('stund_connections{transport="tls"}', 0),
        ('stund_batch_size_bucket{le="1"}', 2),
        ('stund_batch_size_bucket{le="4"}', 3),
        ('stund_batch_size_bucket{le="16"}', 3),
        ('stund_batch_size_bucket{le="64"}', 4),
        ('stund_batch_size_bucket{le="256"}', 5),
        ("stund_batch_size_count", 5),
        ("stund_batch_size_sum", 325),
        ("stund_limiter_admitted_total", 90),
        ('stund_limiter_refused_total{level="network"}', 13),
        ('stund_limiter_empty_buckets{level="socket"}', 3),
        ("stund_limiter_buckets", BUCKETS),
        ("stund_workers", 4),
        ("stund_workers_serving", 3),
        ("stund_worker_restarts_total", 2),
        ('stund_peer_up{family="ipv6"}', 1),
        ('stund_peer_handed_over_total{family="ipv6"}', 5),
        ('stund_peer_taken_over_total{family="ipv6"}', 6),
        ('stund_peer_dropped_total{family="ipv6",reason="forged"}', 7),
    ],
)
def test_each_number_has_its_metric(name: str, value: float) -> None:
    assert samples(state())[name] == value


def test_without_a_peer_there_are_no_metrics_of_one() -> None:
    found = samples(StundState([IPV4], counts(), EMPTY, BUCKETS))
    assert found["stund_workers_serving"] == 1
    assert not [name for name in found if name.startswith("stund_peer")]


def answered(method: str, target: str, *ailments: str) -> HttpResponse:
    async def run() -> HttpResponse:
        server = await serve_metrics(ANY_PORT, state, lambda: ailments)
        try:
            request = HttpRequest(method, target)
            return (await exchange(server.local, request, timeout_s=TIME_LIMIT_S))[0]
        finally:
            await server.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/metrics?name=stund", 200),
        ("HEAD", "/live", 200),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
    ],
)
def test_what_is_answered_over_http(method: str, target: str, status: int) -> None:
    response = answered(method, target)
    assert response.status == status
    is_metrics = status == 200 and target.startswith("/metrics")
    assert (b"stund_overrun_total 17.0" in response.body) is is_metrics


def test_health_is_bad_while_not_all_is_served_and_says_why() -> None:
    assert answered("GET", "/health").body == b"200 OK\n"
    ill = answered("GET", "/health", "1 of 2 processes serve", "192.0.2.2 is no address of this machine now")
    assert ill.status == 503
    assert ill.body.splitlines()[1:] == [
        b"1 of 2 processes serve",
        b"192.0.2.2 is no address of this machine now",
    ]
    assert answered("GET", "/live", "1 of 2 processes serve").status == 200  # nothing to start anew


def test_a_port_in_use_is_a_local_address_error() -> None:
    async def run() -> None:
        first = await serve_metrics(ANY_PORT, state, tuple)
        try:
            with pytest.raises(LocalAddressError):
                await serve_metrics(first.local, state, tuple)
        finally:
            await first.close()

    asyncio.run(run())
