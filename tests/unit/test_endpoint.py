from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import AddressClass, Endpoint, classify_address, site_of, split_host_port
from nattools.errors import DecodeError

ports = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(
    ("text", "ip", "port"),
    [
        ("192.0.2.1:3478", "192.0.2.1", 3478),
        ("192.0.2.1:0", "192.0.2.1", 0),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("[2001:db8::1]:3478", "2001:db8::1", 3478),
        ("[::ffff:192.0.2.1]:1", "::ffff:192.0.2.1", 1),
        ("[fe80::1%eth0]:5060", "fe80::1%eth0", 5060),
    ],
)
def test_an_endpoint_and_its_text_are_one(text: str, ip: str, port: int) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == Endpoint.of(ip, port) == Endpoint(ip_address(ip), port)
    assert Endpoint.parse(str(endpoint)) == endpoint
    assert endpoint.is_ipv6 is (":" in ip)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("[2001:DB8:0:0::1]:3478", "[2001:db8::1]:3478"),
        ("192.0.2.1:03478", "192.0.2.1:3478"),
    ],
)
def test_an_endpoint_is_printed_in_its_shortest_form(text: str, printed: str) -> None:
    assert str(Endpoint.parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("192.0.2.1", "192.0.2.1:3478"),
        ("192.0.2.1:99", "192.0.2.1:99"),
        ("2001:db8::1", "[2001:db8::1]:3478"),
        ("[2001:db8::1]", "[2001:db8::1]:3478"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_an_address_alone_takes_the_default_port(text: str, printed: str) -> None:
    assert str(Endpoint.parse(text, default_port=3478)) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":3478",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1: 1",
        "192.0.2.1:65536",
        "192.0.2.1:１２",
        "192.0.2.1:1_0",
        "192.0.2:1",
        "192.0.2.256:1",
        "2001:db8::1",
        "[2001:db8::1]",
        "[2001:db8::1",
        "[2001:db8::1]3478",
        "[2001:db8::1]:",
        "[]:1",
        "[192.0.2.1:1",
        "stun.example.org:3478",
        "192.0.2.1:" + "9" * 5000,
        "\ud800:1",
    ],
)
def test_what_is_no_endpoint_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("stun.example.org", "stun.example.org", None),
        ("stun.example.org:3478", "stun.example.org", 3478),
        ("2001:db8::1", "2001:db8::1", None),
        ("[stun.example.org]:1", "stun.example.org", 1),
    ],
)
def test_a_host_and_a_port_are_split(text: str, host: str, port: int | None) -> None:
    assert split_host_port(text) == (host, port)


@pytest.mark.parametrize("port", [-1, 65536, 1 << 70])
def test_a_port_is_checked_when_the_endpoint_is_made(port: int) -> None:
    ways: list[Callable[[], Endpoint]] = [
        lambda: Endpoint.of("192.0.2.1", port),
        lambda: Endpoint.of("192.0.2.1", 1).with_port(port),
        lambda: Endpoint.parse("192.0.2.1", default_port=port),
    ]
    for make in ways:
        with pytest.raises(DecodeError, match="port"):
            make()


def test_an_address_that_is_none_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match=r"'stun\.example\.org' is not an IP address"):
        Endpoint.of("stun.example.org", 1)


def test_endpoints_are_values() -> None:
    endpoint = Endpoint.parse("192.0.2.1:1")
    assert endpoint.with_port(2) == Endpoint.parse("192.0.2.1:2")
    assert endpoint.with_port(1) == endpoint
    assert len({endpoint, endpoint.with_port(1), Endpoint.parse("[::ffff:192.0.2.1]:1")}) == 2


def test_only_an_ipv4_mapped_address_is_unmapped() -> None:
    assert str(Endpoint.parse("[::ffff:192.0.2.1]:1").unmapped) == "192.0.2.1:1"
    for text in ("192.0.2.1:1", "[2001:db8::1]:1", "[::192.0.2.1]:1"):
        endpoint = Endpoint.parse(text)
        assert endpoint.unmapped is endpoint


@pytest.mark.parametrize(
    ("ip", "site"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::"),
        ("2001:db8:0:1::", "2001:db8:0:1::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_a_site_is_an_address_or_a_prefix_of_64_bits(ip: str, site: str) -> None:
    assert site_of(ip_address(ip)) == ip_address(site)


@pytest.mark.parametrize(
    ("ip", "address_class"),
    [
        ("8.8.8.8", AddressClass.PUBLIC),
        ("172.15.255.255", AddressClass.PUBLIC),
        ("172.32.0.0", AddressClass.PUBLIC),
        ("100.63.255.255", AddressClass.PUBLIC),
        ("100.128.0.0", AddressClass.PUBLIC),
        ("2001:4860:4860::8888", AddressClass.PUBLIC),
        ("::ffff:8.8.8.8", AddressClass.PUBLIC),
        ("10.0.0.0", AddressClass.PRIVATE),
        ("10.255.255.255", AddressClass.PRIVATE),
        ("172.16.0.0", AddressClass.PRIVATE),
        ("172.31.255.255", AddressClass.PRIVATE),
        ("192.168.0.1", AddressClass.PRIVATE),
        ("fc00::1", AddressClass.PRIVATE),
        ("fdff:ffff::1", AddressClass.PRIVATE),
        ("::ffff:10.0.0.1", AddressClass.PRIVATE),
        ("100.64.0.0", AddressClass.SHARED),
        ("100.127.255.255", AddressClass.SHARED),
        ("::ffff:100.64.0.1", AddressClass.SHARED),
        ("127.0.0.1", AddressClass.LOOPBACK),
        ("127.255.255.254", AddressClass.LOOPBACK),
        ("::1", AddressClass.LOOPBACK),
        ("169.254.1.1", AddressClass.LINK_LOCAL),
        ("fe80::1", AddressClass.LINK_LOCAL),
        ("fe80::1%eth0", AddressClass.LINK_LOCAL),
        ("224.0.0.1", AddressClass.MULTICAST),
        ("239.255.255.250", AddressClass.MULTICAST),
        ("ff02::1", AddressClass.MULTICAST),
        ("0.0.0.0", AddressClass.UNSPECIFIED),
        ("::", AddressClass.UNSPECIFIED),
        ("192.0.2.1", AddressClass.RESERVED),
        ("198.18.0.1", AddressClass.RESERVED),
        ("198.51.100.1", AddressClass.RESERVED),
        ("203.0.113.1", AddressClass.RESERVED),
        ("240.0.0.1", AddressClass.RESERVED),
        ("255.255.255.255", AddressClass.RESERVED),
        ("2001:db8::1", AddressClass.RESERVED),
    ],
)
def test_an_address_is_classified(ip: str, address_class: AddressClass) -> None:
    assert classify_address(ip_address(ip)) is address_class
    assert Endpoint.of(ip, 1).address_class is address_class


@settings(deadline=None)
@given(st.ip_addresses(), ports)
def test_every_endpoint_survives_its_text(ip: object, port: int) -> None:
    endpoint = Endpoint.parse(str(Endpoint.of(str(ip), port)))
    assert endpoint == Endpoint.of(str(ip), port)
    assert endpoint.address_class in AddressClass


any_text = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text("0123456789abcdef.:[]%/-+ ", max_size=40),
)


@settings(deadline=None)
@given(any_text, st.none() | ports)
def test_any_text_is_an_endpoint_or_a_decode_error(text: str, default_port: int | None) -> None:
    with contextlib.suppress(DecodeError):
        Endpoint.parse(text, default_port=default_port)
