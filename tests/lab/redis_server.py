"""A real redis-server on a host of a laboratory."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from tests.lab.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.lab.namespaces import Host

REDIS = Endpoint.of("127.0.0.1", 6379)

_POLL_S = 0.02


def why_no_redis() -> str | None:
    """Say why there can be no redis-server here; None when there can."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (apt install redis-server)"
    return None


@contextmanager
def redis_server(host: Host) -> Iterator[str]:
    """One that answers, which nothing ends but the end of the block; its URL, for that host alone."""
    server = host.popen(
        ["redis-server", "--bind", str(REDIS.ip), "--port", str(REDIS.port), "--save", ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while host.run(["redis-cli", "ping"], timeout=PATIENCE_SECONDS).stdout != "PONG\n":
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(_POLL_S)
        yield f"redis://{REDIS}/0"
    finally:
        server.kill()
        server.wait(PATIENCE_SECONDS)
