"""Metrics for Prometheus on a port of their own: `/metrics`, and `/health` for whoever watches the process.

No label takes what phones write, so that their number is bounded. Needs the `server` extra.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nattools.endpoint import Endpoint
from nattools.errors import NatToolsError
from nattools.net.http import HttpResponse
from nattools.net.http_server import HttpServer, status_only
from nattools.net.metrics import Page, metrics_page, serve_pages
from nattools.session.controller.status_socket import Tell
from nattools.session.status import CallState, GateStatus, SideStatus

_MEDIA = {
    "media_packets": "RTP packets taken from phones.",
    "media_octets": "Octets of UDP payload taken from phones.",
    "media_lost": "RTP packets that were lost on the way from phones (RFC 3550), where the engine sees that.",
    "media_foreign": "Packets to RTP ports that came from strangers, and were dropped.",
    "media_held": "Packets that were dropped, since nowhere to send them was proven.",
}
_OPEN = "connections"


async def serve_metrics(local: Endpoint, tell: Tell) -> HttpServer:
    """Serve `/metrics` and `/health` at `local`, of what `tell` knows. Raises `LocalAddressError`."""

    def page(show: Callable[[GateStatus], HttpResponse]) -> Page:
        async def shown() -> HttpResponse:
            try:
                return show(await tell())
            except NatToolsError:  # the place of the registrations is away
                return status_only(HTTPStatus.SERVICE_UNAVAILABLE)

        return shown

    pages = {"/metrics": page(lambda status: metrics_page(metrics_of(status))), "/health": page(_health)}
    return await serve_pages(local, pages)


def metrics_of(status: GateStatus) -> Iterator[Metric]:
    """What Prometheus is told of a status."""
    yield from _about(status)
    yield from _loads(status)
    yield from _counters(status)


def _health(status: GateStatus) -> HttpResponse:
    return status_only(HTTPStatus.SERVICE_UNAVAILABLE if status.draining else HTTPStatus.OK)


def _about(status: GateStatus) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "natgate_info", "Which natgate this is; always 1.", labels=("version", "mode", "engine")
    )
    info.add_metric((status.version, status.mode.value, status.engine.value), 1)
    yield info
    yield GaugeMetricFamily(
        "natgate_start_time_seconds", "When it was started, in Unix time.", value=status.started_s
    )
    yield GaugeMetricFamily(
        "natgate_draining", "1 while it takes no new calls, since it is to end.", value=int(status.draining)
    )


def _loads(status: GateStatus) -> Iterator[Metric]:
    states = Counter(call.state for call in status.calls)
    calls = GaugeMetricFamily("natgate_calls", "Calls that there are now.", labels=("state",))
    for state in CallState:
        calls.add_metric((state.value,), states[state])
    yield calls
    yield GaugeMetricFamily(
        "natgate_registrations", "Contacts that are registered now.", value=len(status.registrations)
    )
    streams = GaugeMetricFamily(
        "natgate_streams", "Media streams that there are now, by what carries them.", labels=("carrier",)
    )
    in_kernel = Counter(stream.in_kernel for call in status.calls for stream in call.streams)
    streams.add_metric(("kernel",), in_kernel[True])
    streams.add_metric(("engine",), in_kernel[False])
    yield streams
    yield GaugeMetricFamily(
        "natgate_connections", "TCP and TLS connections that are open.", value=status.counters.get(_OPEN, 0)
    )
    jitters = [side.jitter_ms for side in _sides(status) if side.jitter_ms is not None]
    yield GaugeMetricFamily(
        "natgate_jitter_seconds_max",
        "The largest interarrival jitter of the streams that there are now (RFC 3550).",
        value=max(jitters, default=0.0) / 1000,
    )


def _counters(status: GateStatus) -> Iterator[Metric]:
    for name, text in _MEDIA.items():
        yield CounterMetricFamily(f"natgate_{name}", text, value=status.counters.get(name, 0))
    events = CounterMetricFamily(
        "natgate_events", "What has happened, by the names in docs/natgate-json.md.", labels=("event",)
    )
    for name, value in status.counters.items():
        if name not in _MEDIA and name != _OPEN:
            events.add_metric((name,), value)
    yield events


def _sides(status: GateStatus) -> Iterator[SideStatus]:
    for call in status.calls:
        for stream in call.streams:
            yield from (stream.a, stream.b)
