"""What the tests of the commands share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattools.cli import natmap_options
from nattools.errors import (
    NoResponseError,
)
from nattools.mapping.registry import Registry
from tests.unit.cli.natmap_client import NAT_PMP, OTHER, PCP, UPNP, FakeClient
from tests.unit.mapping.ways import FakeWay


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that runs in this process takes the log of nattools to its own stderr."""
    logger = logging.getLogger("nattools")
    before = logger.handlers[:], logger.propagate, logger.level, logging.raiseExceptions
    yield
    logger.handlers[:], logger.propagate, level, logging.raiseExceptions = before
    logger.setLevel(level)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """The client that natmap gets; its router speaks PCP and UPnP."""
    ways = {PCP: FakeWay(PCP, model=""), UPNP: FakeWay(UPNP, table=[OTHER], model="AVM FRITZ!Box 7590")}
    fake = FakeClient(Registry(tmp_path), ways, {NAT_PMP: NoResponseError("nobody; do something")})
    monkeypatch.setattr(natmap_options, "MappingClient", fake)
    return fake
