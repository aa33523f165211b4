"""Metrics of stund for Prometheus on a port of their own: `/metrics`, and what orchestrators ask.

`/live` is answered with 200 as long as the process works: who gets no answer starts stund anew. `/health` is
answered with 503, and why, while not all is served that the start line says: who gets that sends clients
elsewhere. No label takes what clients send, so that their number is bounded. Needs the `server` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from nattools import __version__
from nattools.endpoint import Endpoint
from nattools.net.http import HttpResponse
from nattools.net.http_server import HttpServer, status_only
from nattools.net.metrics import metrics_page, serve_pages
from nattools.stun.counts import BATCH_SIZES, Counts
from nattools.stun.limiter import Level
from nattools.stun.peer import PeerDrop
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.uri import Transport


@dataclass(frozen=True, slots=True)
class Processes:
    """How many there are to be, how many serve, and how many have died."""

    wanted: int = 1
    serving: int = 1
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """What has gone over the link to the other host, whose addresses are of one family."""

    version: int
    is_up: bool
    handed_over: int
    taken_over: int
    dropped: Mapping[PeerDrop, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class StundState:
    """What a stund has done so far, and how it stands; of several processes all together."""

    families: Sequence[ServerAddresses] = field(hash=False)
    counts: Counts
    empty: Mapping[Level, int] = field(hash=False)
    """How many buckets of the limiter have no token."""
    buckets: int
    """How many it has of each level."""
    processes: Processes = Processes()
    links: Sequence[Link] = field(default=(), hash=False)


Tell = Callable[[], StundState]
Ailments = Callable[[], Iterable[str]]
"""Why not all is served that should be: nothing where all is well."""


async def serve_metrics(local: Endpoint, tell: Tell, ailments: Ailments) -> HttpServer:
    """Serve `/metrics`, `/health` and `/live` at `local`. Raises `LocalAddressError`."""

    async def metrics() -> HttpResponse:
        return metrics_page(metrics_of(tell()))

    async def health() -> HttpResponse:
        return _health(ailments())

    async def live() -> HttpResponse:
        return status_only(HTTPStatus.OK)

    return await serve_pages(local, {"/metrics": metrics, "/health": health, "/live": live})


def _health(ailments: Iterable[str]) -> HttpResponse:
    lines = list(ailments)
    response = status_only(HTTPStatus.SERVICE_UNAVAILABLE if lines else HTTPStatus.OK)
    body = response.body + "".join(f"{line}\n" for line in lines).encode()
    return HttpResponse(response.status, response.headers, body)


def metrics_of(state: StundState) -> Iterator[Metric]:
    """What Prometheus is told of a state."""
    info = GaugeMetricFamily(
        "stund_info",
        "Which stund this is; always 1, for each family that is served.",
        labels=("version", "family", "addresses"),
    )
    for addresses in state.families:
        number = "1" if addresses.alternate_address is None else "2"
        info.add_metric((__version__, _family(addresses.address.version), number), 1)
    yield info
    yield from _of_processes(state.processes)
    yield from _of_requests(state.counts)
    yield from _of_connections(state.counts)
    yield _of_batches(state.counts)
    yield from _of_limiter(state)
    if state.links:
        yield from _of_links(state.links)


def _family(version: int) -> str:
    return f"ipv{version}"


def _of_processes(processes: Processes) -> Iterator[Metric]:
    yield GaugeMetricFamily("stund_workers", "Processes that are to serve.", value=processes.wanted)
    yield GaugeMetricFamily("stund_workers_serving", "Processes that serve.", value=processes.serving)
    yield CounterMetricFamily(
        "stund_worker_restarts", "Processes that died and were replaced.", value=processes.restarts
    )


def _of_requests(counts: Counts) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "stund_requests",
        "Requests that were answered, by what they asked.",
        labels=("kind", "family", "transport"),
    )
    replies = CounterMetricFamily(
        "stund_replies", "Answers to them: success or an error.", labels=("result", "family", "transport")
    )
    asked: dict[tuple[str, str, str], int] = {}
    answered: dict[tuple[str, str, str], int] = {}
    for each in counts.by_kind():
        where = _family(6 if each.ipv6 else 4), each.transport.value
        of_kind, of_result = (
            (each.kind.name.lower(), *where),
            ("error" if each.is_error else "success", *where),
        )
        asked[of_kind] = asked.get(of_kind, 0) + each.number
        answered[of_result] = answered.get(of_result, 0) + each.number
    for labels, number in asked.items():
        requests.add_metric(labels, number)
    for labels, number in answered.items():
        replies.add_metric(labels, number)
    yield requests
    yield replies
    dropped = CounterMetricFamily(
        "stund_dropped", "What arrived and was not answered, by reason.", labels=("reason",)
    )
    numbers = counts.dropped
    for reason in DropReason:
        dropped.add_metric((reason.name.lower(),), numbers[reason])
    yield dropped
    yield CounterMetricFamily(
        "stund_overrun",
        "Datagrams that the system dropped since the sockets had no room for them.",
        value=counts.overrun,
    )


def _of_connections(counts: Counts) -> Iterator[Metric]:
    now = GaugeMetricFamily("stund_connections", "Connections that are open.", labels=("transport",))
    accepted = CounterMetricFamily(
        "stund_connections_accepted", "Connections that there have been.", labels=("transport",)
    )
    for transport in (Transport.TCP, Transport.TLS):
        now.add_metric((transport.value,), counts.open(transport))
        accepted.add_metric((transport.value,), counts.accepted(transport))
    yield now
    yield accepted


def _of_batches(counts: Counts) -> Metric:
    sums = [float(number) for number in accumulate(counts.batches)]
    buckets = [(str(size), number) for size, number in zip(BATCH_SIZES, sums, strict=True)]
    return HistogramMetricFamily(
        "stund_batch_size",
        "How many datagrams were read at once.",
        buckets=[*buckets, ("+Inf", sums[-1])],
        sum_value=counts.batched,
    )


def _of_limiter(state: StundState) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "stund_limiter_admitted", "Datagrams that the limiter let through.", value=state.counts.judged[-1]
    )
    refused = CounterMetricFamily(
        "stund_limiter_refused", "Datagrams that it did not, by what had no token left.", labels=("level",)
    )
    empty = GaugeMetricFamily(
        "stund_limiter_empty_buckets", "Buckets that have no token now.", labels=("level",)
    )
    for level in Level:
        refused.add_metric((level.name.lower(),), state.counts.judged[level])
        empty.add_metric((level.name.lower(),), state.empty[level])
    yield refused
    yield empty
    yield GaugeMetricFamily("stund_limiter_buckets", "Buckets that each level has.", value=state.buckets)


def _of_links(links: Iterable[Link]) -> Iterator[Metric]:
    is_up = GaugeMetricFamily("stund_peer_up", "1 while the other host is heard.", labels=("family",))
    handed_over = CounterMetricFamily(
        "stund_peer_handed_over", "Replies that the other host was asked to send.", labels=("family",)
    )
    taken_over = CounterMetricFamily(
        "stund_peer_taken_over", "Replies that the other host had this one send.", labels=("family",)
    )
    dropped = CounterMetricFamily(
        "stund_peer_dropped",
        "Datagrams to the link that were ignored, by reason.",
        labels=("family", "reason"),
    )
    for link in links:
        family = _family(link.version)
        is_up.add_metric((family,), int(link.is_up))
        handed_over.add_metric((family,), link.handed_over)
        taken_over.add_metric((family,), link.taken_over)
        for reason in PeerDrop:
            dropped.add_metric((family, reason.name.lower()), link.dropped.get(reason, 0))
    yield from (is_up, handed_over, taken_over, dropped)
