"""What a mapping says of itself."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nattools.endpoint import AddressClass, Endpoint
from tests.unit.mapping.mappings import MAPPING, at


def test_a_public_address_is_offered() -> None:
    assert MAPPING.external == MAPPING.public == Endpoint.parse("11.22.33.2:5060")
    assert MAPPING.address_class is AddressClass.PUBLIC
    assert not MAPPING.behind_second_nat


@pytest.mark.parametrize(
    ("address", "address_class", "second_nat"),
    [
        ("192.168.1.2", AddressClass.PRIVATE, True),
        ("10.0.0.9", AddressClass.PRIVATE, True),
        ("172.31.255.1", AddressClass.PRIVATE, True),
        ("100.64.0.2", AddressClass.SHARED, True),
        ("0.0.0.0", AddressClass.UNSPECIFIED, False),
        ("127.0.0.1", AddressClass.LOOPBACK, False),
        ("192.0.2.7", AddressClass.RESERVED, False),
    ],
)
def test_no_other_address_is_offered_as_public(
    address: str, address_class: AddressClass, second_nat: bool
) -> None:
    mapping = at(f"{address}:5060")
    assert mapping.public is None
    assert mapping.address_class is address_class
    assert mapping.behind_second_nat is second_nat


def test_a_router_without_an_address_has_no_external_endpoint() -> None:
    mapping = replace(MAPPING, external_address=None)
    assert (mapping.external, mapping.public, mapping.address_class) == (None, None, None)
    assert not mapping.behind_second_nat


def test_ipv6_is_public_as_well() -> None:
    mapping = replace(MAPPING, external_address=ip_address("2001:470:77::108"))
    assert str(mapping.public) == "[2001:470:77::108]:5060"


def test_the_nonce_is_not_shown() -> None:
    assert "nonce" not in repr(MAPPING)
