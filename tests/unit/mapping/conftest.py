"""A mapping client in a network that a test makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.mapping.client import MappingClient
from nattools.mapping.way import Network
from nattools.mapping.ways import routers as routers_module
from nattools.mapping.ways.pcp import NatPmpWay, PcpWay
from nattools.mapping.ways.routers import Routers
from nattools.mapping.ways.upnp import UpnpWay
from tests.unit.mapping.ways import NOBODY, Answer, OpenClient, opener


@pytest.fixture
def open_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenClient:
    """Opens a client in a network with these routers."""

    @asynccontextmanager
    async def open_all(
        pcp: Answer = NOBODY, nat_pmp: Answer = NOBODY, upnp: Answer = NOBODY
    ) -> AsyncIterator[MappingClient]:
        network = Network(None, ip_address("192.168.0.1"), ip_address("192.168.0.108"))
        monkeypatch.setattr(routers_module, "find_network", lambda *_, **__: network)
        monkeypatch.setattr(Routers, "_is_own", lambda *_: True)
        for way, answer in ((PcpWay, pcp), (NatPmpWay, nat_pmp), (UpnpWay, upnp)):
            monkeypatch.setattr(way, "open", opener(answer))
        async with MappingClient.open(state_directory=tmp_path) as client:
            yield client

    return open_all
