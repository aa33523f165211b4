"""Metrics of stund for Prometheus on a port of their own: `/metrics`, and `/health` for whoever watches it.

No label takes what clients send, so that their number is bounded. Needs the `server` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from nattools import __version__
from nattools.endpoint import Endpoint
from nattools.net.http import HttpRequest, HttpResponse
from nattools.net.http_server import HttpServer, status_only
from nattools.stun.limiter import LimiterState
from nattools.stun.peer import PeerDrop
from nattools.stun.responder import DropReason, ServerAddresses


@dataclass(frozen=True, slots=True)
class PeerCounts:
    """What has gone over the link to the other host."""

    is_up: bool
    handed_over: int
    taken_over: int
    dropped: Mapping[PeerDrop, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class StundCounts:
    """What a stund has done so far, and how it stands."""

    addresses: ServerAddresses
    answered: int
    dropped: Mapping[DropReason, int] = field(hash=False)
    limiter: LimiterState | None = None
    """None where there are several processes, each with a limiter of its own."""
    batches: int = 0
    batched: int = 0
    """How many datagrams were in them; of several processes neither is known."""
    workers: int = 1
    restarts: int = 0
    peer: PeerCounts | None = None


Tell = Callable[[], StundCounts]


async def serve_metrics(local: Endpoint, tell: Tell) -> HttpServer:
    """Serve `/metrics` and `/health` at `local`, of what `tell` knows. Raises `LocalAddressError`."""

    async def respond(request: HttpRequest) -> HttpResponse:
        path = request.target.partition("?")[0]
        if path not in ("/metrics", "/health"):
            return status_only(HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return status_only(HTTPStatus.METHOD_NOT_ALLOWED)
        if path == "/health":
            return status_only(HTTPStatus.OK)
        return HttpResponse(HTTPStatus.OK, (("content-type", CONTENT_TYPE_LATEST),), expose(tell()))

    return await HttpServer.open(local, respond)


def expose(counts: StundCounts) -> bytes:
    """The metrics in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_CountsCollector(counts))
    return generate_latest(registry)


class _CountsCollector(Collector):
    def __init__(self, counts: StundCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        counts = self._counts
        info = GaugeMetricFamily(
            "stund_info", "Which stund this is; always 1.", labels=("version", "family", "addresses")
        )
        addresses = counts.addresses
        number = "1" if addresses.alternate_address is None else "2"
        info.add_metric((__version__, f"ipv{addresses.address.version}", number), 1)
        yield info
        yield GaugeMetricFamily("stund_workers", "Processes that serve.", value=counts.workers)
        yield CounterMetricFamily(
            "stund_worker_restarts", "Processes that died and were replaced.", value=counts.restarts
        )
        yield CounterMetricFamily(
            "stund_answered", "Requests that were answered, with success or an error.", value=counts.answered
        )
        dropped = CounterMetricFamily(
            "stund_dropped", "What arrived and was not answered, by reason.", labels=("reason",)
        )
        for reason in DropReason:
            dropped.add_metric((reason.name.lower(),), counts.dropped.get(reason, 0))
        yield dropped
        if counts.limiter is not None:
            yield CounterMetricFamily("stund_batches", "Batches that were read.", value=counts.batches)
            yield CounterMetricFamily(
                "stund_batched_datagrams", "Datagrams that were in them.", value=counts.batched
            )
            yield from _of_limiter(counts.limiter)
        if counts.peer is not None:
            yield from _of_peer(counts.peer)


def _of_limiter(state: LimiterState) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "stund_limiter_admitted", "Datagrams that the limiter let through.", value=state.admitted
    )
    refused = CounterMetricFamily(
        "stund_limiter_refused", "Datagrams that it did not, by what had no token left.", labels=("level",)
    )
    empty = GaugeMetricFamily(
        "stund_limiter_empty_buckets", "Buckets that have no token now.", labels=("level",)
    )
    for level in state.refused:
        refused.add_metric((level.name.lower(),), state.refused[level])
        empty.add_metric((level.name.lower(),), state.empty[level])
    yield refused
    yield empty
    yield GaugeMetricFamily("stund_limiter_buckets", "Buckets that each level has.", value=state.buckets)


def _of_peer(counts: PeerCounts) -> Iterator[Metric]:
    yield GaugeMetricFamily("stund_peer_up", "1 while the other host is heard.", value=int(counts.is_up))
    yield CounterMetricFamily(
        "stund_peer_handed_over", "Replies that the other host was asked to send.", value=counts.handed_over
    )
    yield CounterMetricFamily(
        "stund_peer_taken_over", "Replies that the other host had this one send.", value=counts.taken_over
    )
    dropped = CounterMetricFamily(
        "stund_peer_dropped", "Datagrams to the link that were ignored, by reason.", labels=("reason",)
    )
    for reason in PeerDrop:
        dropped.add_metric((reason.name.lower(),), counts.dropped.get(reason, 0))
    yield dropped
