"""The metrics of stund over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import ip_address

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nattools.cli.stund_metrics import PeerCounts, StundCounts, expose, serve_metrics
from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.net.http import HttpRequest, HttpResponse, exchange
from nattools.stun.limiter import Level, LimiterState
from nattools.stun.peer import PeerDrop
from nattools.stun.responder import DropReason, ServerAddresses

ANY_PORT = Endpoint.of("127.0.0.1", 0)
ADDRESSES = ServerAddresses(ip_address("192.0.2.1"), 3478, ip_address("192.0.2.2"), 3479)
LIMITER = LimiterState(90, {level: 10 + level for level in Level}, dict.fromkeys(Level, 3), 65536)
FULL = StundCounts(
    ADDRESSES,
    answered=80,
    dropped=Counter({DropReason.NOT_STUN: 10, DropReason.RATE_LIMITED: 46}),
    limiter=LIMITER,
    batches=4,
    batched=100,
    peer=PeerCounts(is_up=True, handed_over=5, taken_over=6, dropped=Counter({PeerDrop.FORGED: 7})),
)
TIME_LIMIT_S = 20


def samples(counts: StundCounts) -> dict[tuple[str, ...], float]:
    families = list(text_string_to_metric_families(expose(counts).decode()))
    assert all(family.documentation for family in families)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_each_number_has_its_metric() -> None:
    found = samples(FULL)
    assert found["stund_answered_total",] == 80
    assert found["stund_dropped_total", "not_stun"] == 10
    assert found["stund_dropped_total", "rate_limited"] == 46
    assert found["stund_dropped_total", "truncated"] == 0
    assert found["stund_limiter_admitted_total",] == 90
    assert found["stund_limiter_refused_total", "network"] == 13
    assert found["stund_limiter_empty_buckets", "socket"] == 3
    assert found["stund_limiter_buckets",] == 65536
    assert found["stund_batches_total",] == 4
    assert found["stund_batched_datagrams_total",] == 100
    assert found["stund_peer_up",] == 1
    assert found["stund_peer_handed_over_total",] == 5
    assert found["stund_peer_taken_over_total",] == 6
    assert found["stund_peer_dropped_total", "forged"] == 7


def test_several_processes_show_nothing_that_only_one_of_them_knows() -> None:
    found = samples(StundCounts(ADDRESSES, 80, Counter(), workers=4, restarts=2))
    assert found["stund_workers",] == 4
    assert found["stund_worker_restarts_total",] == 2
    assert not [name for name, *_ in found if name.startswith(("stund_limiter", "stund_batch", "stund_peer"))]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/metrics?name=stund", 200),
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
    ],
)
def test_what_is_answered_over_http(method: str, target: str, status: int) -> None:
    async def run() -> HttpResponse:
        server = await serve_metrics(ANY_PORT, lambda: FULL)
        try:
            request = HttpRequest(method, target)
            return (await exchange(server.local, request, timeout_s=TIME_LIMIT_S))[0]
        finally:
            await server.close()

    response = asyncio.run(run())
    assert response.status == status
    is_metrics = status == 200 and target.startswith("/metrics")
    assert (b"stund_answered_total 80.0" in response.body) is is_metrics


def test_a_port_in_use_is_a_local_address_error() -> None:
    async def run() -> None:
        first = await serve_metrics(ANY_PORT, lambda: FULL)
        try:
            with pytest.raises(LocalAddressError):
                await serve_metrics(first.local, lambda: FULL)
        finally:
            await first.close()

    asyncio.run(run())
