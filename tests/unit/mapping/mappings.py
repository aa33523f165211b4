"""Mappings for the tests of this room."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.mapping.model import MappingProtocol, PortMapping

MAPPING = PortMapping(
    protocol=MappingProtocol.PCP,
    transport=TransportProtocol.UDP,
    internal=Endpoint.parse("192.168.0.108:5060"),
    external_port=5060,
    external_address=ip_address("11.22.33.2"),
    lease_s=3600,
    gateway=ip_address("192.168.0.1"),
    description="a phone",
    nonce=bytes(range(12)),
)


def at(external: str, mapping: PortMapping = MAPPING) -> PortMapping:
    """The same mapping with another external endpoint."""
    endpoint = Endpoint.parse(external)
    return replace(mapping, external_address=endpoint.ip, external_port=endpoint.port)
