"""URLs of routers: how they are read and joined, and which of them may be asked."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.upnp.location import MOST_URL_CHARACTERS, Location, check_location

DESCRIPTION = Location.parse("http://192.168.1.1:5000/igd/rootDesc.xml")


@pytest.mark.parametrize(
    ("text", "endpoint", "target"),
    [
        ("http://192.168.1.1:5000/rootDesc.xml", "192.168.1.1:5000", "/rootDesc.xml"),
        ("http://192.168.1.1/", "192.168.1.1:80", "/"),
        ("http://192.168.1.1", "192.168.1.1:80", "/"),
        ("http://192.168.1.1:", "192.168.1.1:80", "/"),
        ("http://192.168.1.1:65535/", "192.168.1.1:65535", "/"),
        ("HTTP://192.168.1.1:80/A", "192.168.1.1:80", "/A"),
        ("\r\n http://192.168.1.1/a \t", "192.168.1.1:80", "/a"),
        ("http://192.168.1.1?a=1&b=2", "192.168.1.1:80", "/?a=1&b=2"),
        ("http://192.168.1.1/a#part", "192.168.1.1:80", "/a"),
        ("http://192.168.1.1#part", "192.168.1.1:80", "/"),
        ("http://192.168.1.1/a b/é", "192.168.1.1:80", "/a%20b/%C3%A9"),
        ("http://192.168.1.1/a%20b@c:d\\", "192.168.1.1:80", "/a%20b@c:d\\"),
        ("http://192.168.1.1//twice", "192.168.1.1:80", "//twice"),
        ("http://[2001:DB8::1]:5000/a", "[2001:db8::1]:5000", "/a"),
        ("http://[2001:db8::1]", "[2001:db8::1]:80", "/"),
    ],
)
def test_a_url_is_read(text: str, endpoint: str, target: str) -> None:
    location = Location.parse(text)
    assert location == Location(Endpoint.parse(endpoint), target)
    assert Location.parse(str(location)) == location


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.168.1.1",
        "/rootDesc.xml",
        "https://192.168.1.1/",
        "file:///etc/passwd",
        "ftp://192.168.1.1/",
        "http:/192.168.1.1/",
        "http:///a",
        "http://router/a",
        "http://localhost/",
        "http://192.168.1.1.example.org/",
        "http://192.168.1/",
        "http://3232235777/",
        "http://0xc0.0xa8.1.1/",
        "http://0300.0250.1.1/",
        "http://192.168.1.256/",
        "http://١٩٢.168.1.1/",
        "http://192.168.1.1:0/",
        "http://192.168.1.1:65536/",
        "http://192.168.1.1:123456/",
        "http://192.168.1.1:-1/",
        "http://192.168.1.1:٨٠/",
        "http://user@192.168.1.1/",
        "http://user:password@192.168.1.1/",
        "http://192.168.1.1@127.0.0.1/",
        "http://192.168.1.1\\@127.0.0.1/",
        "http://192.168.1.1:80\\/",
        "http://192.168.1.1 /",
        "http://[fe80::1%eth0]/",
        "http://[fe80::1%25eth0]/",
        "http://[2001:db8::1/",
        "http://2001:db8::1/",
        "http://[192.168.1.1]/",
        "http://[]/",
        "http://192.168.1.1/a\r\nHost: 127.0.0.1",
        "http://192.168.1.1/\0",
        "http://192.168.1.1/\x1b[31m",
        "http://192.168.1.1/\x85",
        "http://192.168.1.1/\ud800",
        "http://192.168.1.1/" + "a" * MOST_URL_CHARACTERS,
    ],
)
def test_any_other_text_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        Location.parse(text)


@pytest.mark.parametrize("target", ["", "a", "/a b", "/a#b", "/\r\n", "/é", "/" * (MOST_URL_CHARACTERS + 1)])
def test_a_target_that_no_request_line_can_carry_makes_no_location(target: str) -> None:
    with pytest.raises(DecodeError):
        Location(Endpoint.of("192.168.1.1", 80), target)


def test_what_encoding_makes_too_long_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        Location.parse("http://192.168.1.1/" + "é" * (MOST_URL_CHARACTERS // 2))


@pytest.mark.parametrize(
    ("reference", "joined"),
    [
        ("/ctl/IPConn", "http://192.168.1.1:5000/ctl/IPConn"),
        ("ctl/IPConn", "http://192.168.1.1:5000/igd/ctl/IPConn"),
        ("./ctl", "http://192.168.1.1:5000/igd/ctl"),
        ("../ctl", "http://192.168.1.1:5000/ctl"),
        ("../../../ctl", "http://192.168.1.1:5000/ctl"),
        ("/a/../b", "http://192.168.1.1:5000/b"),
        ("?Layer3Forwarding", "http://192.168.1.1:5000/igd/rootDesc.xml?Layer3Forwarding"),
        ("/?Layer3Forwarding", "http://192.168.1.1:5000/?Layer3Forwarding"),
        ("", "http://192.168.1.1:5000/igd/rootDesc.xml"),
        (" /ctl\n", "http://192.168.1.1:5000/ctl"),
        ("/a b", "http://192.168.1.1:5000/a%20b"),
        ("http://192.168.1.1:49152/ctl?x", "http://192.168.1.1:49152/ctl?x"),
        ("HTTP://192.168.1.1/ctl", "http://192.168.1.1:80/ctl"),
        ("//192.168.1.1:8080/ctl", "http://192.168.1.1:8080/ctl"),
    ],
)
def test_a_reference_is_joined_as_rfc_3986_says(reference: str, joined: str) -> None:
    assert str(DESCRIPTION.join(reference)) == joined


def test_a_base_that_begins_with_two_slashes_names_no_host() -> None:
    base = Location.parse("http://192.168.1.1:5000//upnp/rootDesc.xml")
    assert str(base.join("/ctl")) == "http://192.168.1.1:5000/ctl"


def test_an_ipv6_base_is_joined() -> None:
    base = Location.parse("http://[2001:db8::1]:5000/rootDesc.xml")
    assert str(base.join("ctl")) == "http://[2001:db8::1]:5000/ctl"


@pytest.mark.parametrize(
    "reference",
    [
        "http://192.168.1.2/ctl",
        "http://127.0.0.1:5000/ctl",
        "//127.0.0.1/ctl",
        "https://192.168.1.1/ctl",
        "javascript:alert(1)",
        "//router/ctl",
        "//[::/ctl",
        "http://[::1]/",
        "/ctl\r\nHost: 127.0.0.1",
        "//127.0.0.1\t/ctl",
        "ht\ntp://127.0.0.1/",
        "/\ud800",
        "/" + "a" * MOST_URL_CHARACTERS,
    ],
)
def test_a_reference_that_leads_away_is_a_decode_error(reference: str) -> None:
    with pytest.raises(DecodeError):
        DESCRIPTION.join(reference)


LAN = (ip_network("192.168.1.0/24"), ip_network("2001:db8:1::/64"), ip_network("fe80::/64"))


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("http://192.168.1.1:5000/", "192.168.1.1"),
        ("http://10.0.0.1:5000/", "10.0.0.1"),  # a gateway beyond the prefix of the interface
        ("http://100.64.0.1:5000/", "100.64.0.1"),
        ("http://[2001:db8:1::1]:5000/", "2001:db8:1::1"),
        ("http://[2001:db8:1::1]:5000/", "fe80::1"),
        ("http://127.0.77.1:5000/", "127.0.77.1"),
        ("http://[::1]:5000/", "::1"),
    ],
)
def test_a_router_may_name_itself(url: str, source: str) -> None:
    check_location(Location.parse(url), source=ip_address(source), on_link=LAN)


@pytest.mark.parametrize(
    ("url", "source", "reason"),
    [
        ("http://192.168.1.2/", "192.168.1.1", "may only name itself"),
        ("http://127.0.0.1/", "192.168.1.1", "this machine itself"),
        ("http://127.0.0.1/", "127.0.0.2", "this machine itself"),
        ("http://[::1]/", "fe80::1", "this machine itself"),
        ("http://169.254.169.254/", "192.168.1.1", "link-local"),
        ("http://169.254.1.1/", "169.254.1.1", "link-local"),
        ("http://[fe80::1]/", "fe80::1", "link-local"),
        ("http://239.255.255.250/", "192.168.1.1", "multicast"),
        ("http://[ff02::c]/", "fe80::1", "multicast"),
        ("http://0.0.0.0/", "0.0.0.0", "unspecified"),
        ("http://[::]/", "::", "unspecified"),
        ("http://[::ffff:127.0.0.1]/", "127.0.0.1", "in disguise"),
        ("http://[::ffff:192.168.1.1]/", "192.168.1.1", "in disguise"),
        ("http://[2001:db8:2::1]/", "fe80::1", "may only name itself"),
        ("http://[2600::1]/", "fe80::1", "may only name itself"),
        ("http://8.8.8.8/", "8.8.8.8", "on the Internet"),
        ("http://[2600::1]/", "2600::1", "on the Internet"),
    ],
)
def test_any_other_location_is_refused_with_the_reason(url: str, source: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        check_location(Location.parse(url), source=ip_address(source), on_link=LAN)


@pytest.mark.parametrize(
    ("url", "network"),
    [("http://8.8.8.8/", IPv4Network("8.8.8.0/24")), ("http://[2600::1]/", IPv6Network("2600::/64"))],
)
def test_a_router_of_a_network_with_public_addresses_is_one(
    url: str, network: IPv4Network | IPv6Network
) -> None:
    location = Location.parse(url)
    check_location(location, source=location.endpoint.ip, on_link=[network])
