"""The metrics of natgate over HTTP, and the status over its Unix socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocalAddressError, LocationError
from nattools.net.http import HttpRequest, HttpResponse, exchange
from nattools.net.http_server import REQUEST_TIMEOUT_S, HttpServer
from nattools.net.metrics import expose
from nattools.session.controller.metrics import metrics_of, serve_metrics
from nattools.session.controller.status_socket import open_status_socket, read_status, usual_paths
from nattools.session.status import GateStatus
from tests.unit.session.gate_status import STATUS

ANY_PORT = Endpoint.of("127.0.0.1", 0)


class Gate:
    """What tells the status."""

    def __init__(self) -> None:
        self.status = STATUS
        self.is_away = False

    async def tell(self) -> GateStatus:
        if self.is_away:
            raise LocationError("the file is away")
        return self.status


async def get(server: HttpServer, target: str, method: str = "GET") -> HttpResponse:
    request = HttpRequest(method, target)
    return (await exchange(server.local, request, timeout_s=REQUEST_TIMEOUT_S))[0]


def test_every_metric_has_a_help_text_and_bounded_labels() -> None:
    families = list(text_string_to_metric_families(expose(metrics_of(STATUS)).decode()))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert all(family.documentation for family in families)
    assert samples["natgate_calls", "answered"] == samples["natgate_calls", "ringing"] == 1
    assert samples["natgate_registrations",] == 2
    assert samples["natgate_streams", "kernel"] == 1
    assert samples["natgate_streams", "engine"] == 0
    assert samples["natgate_media_packets_total",] == 3100
    assert samples["natgate_media_lost_total",] == 0
    assert samples["natgate_events_total", "malformed"] == 3
    assert samples["natgate_jitter_seconds_max",] == 0.00125
    assert samples["natgate_draining",] == 0
    text = expose(metrics_of(STATUS)).decode()
    assert not any(word in text for word in ("alice", "203.0.113.1", "a84b4c76e66710"))


def test_metrics_and_health_are_served_and_nothing_else() -> None:
    async def run() -> None:
        gate = Gate()
        server = await serve_metrics(ANY_PORT, gate.tell)
        metrics = await get(server, "/metrics?x=1")
        assert metrics.status == 200
        assert metrics.header("content-type") is not None
        assert metrics.body == expose(metrics_of(STATUS))
        assert (await get(server, "/health")).status == 200
        assert (await get(server, "/")).status == 404
        assert (await get(server, "/metrics", "POST")).status == 405
        gate.status = replace(STATUS, draining=True)
        assert (await get(server, "/health")).status == 503
        gate.is_away = True
        assert (await get(server, "/metrics")).status == 503
        with pytest.raises(LocalAddressError, match="cannot listen"):
            await serve_metrics(server.local, gate.tell)
        await server.close()

    asyncio.run(run())


def test_the_status_is_told_in_a_directory_that_is_made_for_it(tmp_path: Path) -> None:
    async def run() -> None:
        gate, path = Gate(), tmp_path / "run" / "nattools" / "natgate.sock"
        server = await open_status_socket(path, gate.tell)
        assert await asyncio.to_thread(read_status, path) == STATUS
        gate.is_away = True
        with pytest.raises(DecodeError, match="the file is away"):
            await asyncio.to_thread(read_status, path)
        await server.close()

    asyncio.run(run())


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalAddressError, match=r"cannot make .*status socket"):
        asyncio.run(open_status_socket(tmp_path / "file" / "natgate.sock", Gate().tell))


def test_the_socket_is_in_the_users_own_place_or_the_systems() -> None:
    system = Path("/run/nattools/natgate.sock")
    assert usual_paths({}) == (system,)
    assert usual_paths({"XDG_RUNTIME_DIR": "/run/user/7"}) == (
        Path("/run/user/7/nattools/natgate.sock"),
        system,
    )
