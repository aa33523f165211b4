"""How users name a STUN server."""

from __future__ import annotations

import pytest

from nattools.errors import DecodeError
from nattools.stun.uri import ServerAddress, Transport

GOOD = [
    ("stun:stun.example.org", ServerAddress("stun.example.org"), "stun:stun.example.org"),
    ("stun:stun.example.org:3479", ServerAddress("stun.example.org", 3479), "stun:stun.example.org:3479"),
    ("STUN:stun.example.org", ServerAddress("stun.example.org"), "stun:stun.example.org"),
    ("stuns:example.org", ServerAddress("example.org", secure=True), "stuns:example.org"),
    ("stuns:example.org:443", ServerAddress("example.org", 443, secure=True), "stuns:example.org:443"),
    ("stun:192.0.2.1", ServerAddress("192.0.2.1"), "stun:192.0.2.1"),
    ("stun:[2001:db8::1]", ServerAddress("2001:db8::1"), "stun:[2001:db8::1]"),
    ("stun:[2001:db8::1]:3478", ServerAddress("2001:db8::1", 3478), "stun:[2001:db8::1]:3478"),
    ("stun.example.org", ServerAddress("stun.example.org"), "stun:stun.example.org"),
    ("stun.example.org:5000", ServerAddress("stun.example.org", 5000), "stun:stun.example.org:5000"),
    ("localhost", ServerAddress("localhost"), "stun:localhost"),
    ("1.2.3.4", ServerAddress("1.2.3.4"), "stun:1.2.3.4"),
    ("1.2.3.4:3478", ServerAddress("1.2.3.4", 3478), "stun:1.2.3.4:3478"),
    ("::1", ServerAddress("::1"), "stun:[::1]"),
    ("[::1]:3478", ServerAddress("::1", 3478), "stun:[::1]:3478"),
    ("stün.example", ServerAddress("stün.example"), "stun:stün.example"),
]

BAD = [
    ("", "host"),
    ("stun:", "host"),
    ("stun:host:", "not a port"),
    ("stun:host:x", "not a port"),
    ("stun:host:70000", "not a port"),
    ("host:0", "port 0"),
    ("stun://stun.example.org", "without the slashes"),
    ("stun:stun.example.org?transport=udp", "RFC 7065"),
    ("stun:stun.example.org:3478?transport=tcp", "RFC 7065"),
    ("turn:turn.example.org", "write stun:host"),
    ("https://stun.example.org/", "write stun:host"),
    ("stun:2001:db8::1", "brackets"),
    ("stun:[2001:db8::1", "bracket"),
    ("[host]", "host"),
    ("stun:[::g]", "not a host name"),
    ("stun:user@host", "not a host name"),
    ("ho st", "not a host name"),
    ("stuns:192.0.2.1", "needs a host name"),
    ("stuns:[::1]:5349", "needs a host name"),
]


@pytest.mark.parametrize(("text", "address", "written"), GOOD)
def test_a_server_is_read_and_written(text: str, address: ServerAddress, written: str) -> None:
    assert ServerAddress.parse(text) == address
    assert str(address) == written
    assert ServerAddress.parse(written) == address


@pytest.mark.parametrize(("text", "hint"), BAD)
def test_what_is_no_server_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(DecodeError, match=hint):
        ServerAddress.parse(text)


def test_an_ip_address_is_recognised() -> None:
    assert str(ServerAddress.parse("[::1]:3478").ip) == "::1"
    assert ServerAddress.parse("localhost").ip is None


@pytest.mark.parametrize(
    ("transport", "service", "port"),
    [("udp", "_stun._udp", 3478), ("tcp", "_stun._tcp", 3478), ("tls", "_stuns._tcp", 5349)],
)
def test_each_transport_has_its_port_and_its_name_in_dns(transport: str, service: str, port: int) -> None:
    assert Transport(transport).service == service
    assert Transport(transport).default_port == port
