"""Metrics for Prometheus by HTTP, and pages beside them for whoever watches a process.

Needs the `server` extra.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from nattools.endpoint import Endpoint
from nattools.net.http import HttpRequest, HttpResponse
from nattools.net.http_server import HttpServer, status_only

Page = Callable[[], Awaitable[HttpResponse]]


async def serve_pages(local: Endpoint, pages: Mapping[str, Page]) -> HttpServer:
    """Answer GET and HEAD of each path at `local` with its page. Raises `LocalAddressError`."""

    async def respond(request: HttpRequest) -> HttpResponse:
        page = pages.get(request.target.partition("?")[0])
        if page is None:
            return status_only(HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return status_only(HTTPStatus.METHOD_NOT_ALLOWED)
        return await page()

    return await HttpServer.open(local, respond)


def metrics_page(metrics: Iterable[Metric]) -> HttpResponse:
    """Metrics as Prometheus reads them."""
    return HttpResponse(HTTPStatus.OK, (("content-type", CONTENT_TYPE_LATEST),), expose(metrics))


def expose(metrics: Iterable[Metric]) -> bytes:
    """Metrics in the text format of Prometheus."""
    return generate_latest(_Collected(metrics))


class _Collected(Collector):
    """Metrics that are there already, for a library that collects."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
