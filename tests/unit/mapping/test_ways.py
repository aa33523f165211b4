"""The ways to a mapping: what they make of a router that grants one thing and refuses the next."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import cast

import pytest

from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import NatToolsError, NoResponseError, PcpError
from nattools.mapping.model import MappingProtocol, MappingRequest
from nattools.mapping.ways.pcp import NatPmpWay
from nattools.pcp.client import ExternalAddress, NatPmpClient, NatPmpMapping
from tests.unit.mapping.mappings import MAPPING


class NatPmpRouter:
    """Grants every mapping; of its address it says what a test wants."""

    def __init__(self, refusal: NatToolsError) -> None:
        self._refusal = refusal

    async def map(
        self, internal_port: int, transport: TransportProtocol, *, external_port: int, lifetime_s: int
    ) -> NatPmpMapping:
        return NatPmpMapping(external_port, lifetime_s, 1, transport, internal_port)

    async def external_address(self) -> ExternalAddress:
        raise self._refusal


@pytest.mark.parametrize(
    ("refusal", "address"),
    [
        (PcpError("no connection", code=3), None),
        (NoResponseError("no answer"), ip_address("11.22.33.2")),  # as it was when the router was found
    ],
)
def test_a_nat_pmp_mapping_without_an_address_is_a_mapping(
    refusal: NatToolsError, address: IPAddress | None
) -> None:
    way = NatPmpWay(MAPPING.gateway, MAPPING.internal.ip)
    way._client = cast(NatPmpClient, NatPmpRouter(refusal))
    way.known_external_address = ip_address("11.22.33.2")
    wanted = replace(MAPPING, protocol=MappingProtocol.NAT_PMP, external_address=None, nonce=b"")
    request = MappingRequest(Endpoint.parse("0.0.0.0:5060"))
    granted = asyncio.run(way.acquire(request, wanted))
    assert granted == replace(wanted, external_address=address)
