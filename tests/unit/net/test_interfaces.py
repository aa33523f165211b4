"""Addresses and default routes, read off what the systems say."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.errors import TransportError
from nattools.net import interfaces as module
from nattools.net.interfaces import (
    DefaultRoute,
    Interface,
    default_routes,
    interface_of,
    interfaces,
    is_tunnel,
    parse_address,
    parse_ipv6_route,
    parse_netstat,
    parse_route,
    parse_route_print,
)

ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	FE01A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	014DA8C0	0003	0	0	100	00000000	0	0	0
eth0	004DA8C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
eth0	00000000	024DA8C0	0003	0	0	50	00000080	0	0	0
tun0	00000000	00000000	0001	0	0	10	00000000	0	0	0
*	00000000	00000000	0201	0	0	1024	00000000	0	0	0
eth0	00000000	034DA8C0	0002	0	0	5	00000000	0	0	0
lo	00000000	0100007F	0003	0	0	1	00000000	0	0	0
"""

EVERYWHERE = "0" * 32 + " 00"
FROM_ONE_NETWORK = "20010db8000100000000000000000000 40"
IPV6_ROUTE = f"""\
20010db8000100000000000000000000 40 {EVERYWHERE} {"0" * 32} 00000100 00000001 00000000 00000001     eth0
{EVERYWHERE} {EVERYWHERE} 20010db8000100000000000000000001 00000400 00000002 00000000 00000003     eth0
{EVERYWHERE} {EVERYWHERE} fe800000000000000000000000000001 00000064 00000001 00000000 00450003    wlan0
{EVERYWHERE} {FROM_ONE_NETWORK} fe800000000000000000000000000002 00000001 00000001 00000000 00000003     eth0
{EVERYWHERE} {EVERYWHERE} {"0" * 32} 00000001 00000001 00000000 00000001     tun0
{EVERYWHERE} {EVERYWHERE} {"0" * 32} ffffffff 00000001 00000000 00200200       lo
{EVERYWHERE} {EVERYWHERE} fe800000000000000000000000000003 00000001 00000001 00000000 00000202     eth0
"""

MACOS = """\
Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.77.1       UGScg                 en0
default            link#19            UCSIg               utun4
default            192.168.78.1       UGScIg                en1
127                127.0.0.1          UCS                   lo0
192.168.77         link#12            UCS                   en0      !
"""
MACOS_IPV6 = """\
Routing tables

Internet6:
Destination                             Gateway                         Flags               Netif Expire
default                                 fe80::1%en0                     UGcg                  en0
default                                 fe80::%utun0                    UGcIg               utun0
::1                                     ::1                             UHL                   lo0
"""
OLD_MACOS = """\
Routing tables

Internet:
Destination        Gateway            Flags        Refs      Use   Netif Expire
default            10.0.1.1           UGSc           12        0     en0
10.0.1/24          link#4             UCS             1        0     en0
"""
FREEBSD = """\
Routing tables

Internet:
Destination        Gateway            Flags     Netif Expire
0.0.0.0/0          10.0.0.9           UGRS        em1
default            10.0.0.1           UGS         em0
"""
WINDOWS = """\
===========================================================================
Schnittstellenliste
 12...00 15 5d 01 02 03 ......Microsoft Hyper-V Network Adapter
===========================================================================

IPv4-Routentabelle
===========================================================================
Aktive Routen:
     Netzwerkziel    Netzwerkmaske          Gateway    Schnittstelle Metrik
          0.0.0.0          0.0.0.0     192.168.78.1    192.168.78.10     50
          0.0.0.0          0.0.0.0     192.168.77.1    192.168.77.10     25
          0.0.0.0          0.0.0.0  Auf Verbindung         10.8.0.2      5
          0.0.0.0          0.0.0.0          On-link        10.8.0.2      5
        127.0.0.0        255.0.0.0          On-link       127.0.0.1    331
===========================================================================
St\ufffdndige Routen:
  Netzwerkadresse          Netzmaske  Gatewayadresse  Metrik
          0.0.0.0          0.0.0.0     192.168.77.1       1
===========================================================================
"""
WINDOWS_IPV6 = """\
IPv6 Route Table
===========================================================================
Active Routes:
 If Metric Network Destination      Gateway
 12    281 ::/0                     fe80::1
  7     26 ::/0                     2001:db8:1::1
  9     10 ::/0                     On-link
  1    331 ::1/128                  On-link
===========================================================================
Persistent Routes:
 If Metric Network Destination      Gateway
  0 4294967295 ::/0                     2001:db8:1::1
===========================================================================
"""


def route(gateway: str, interface: str, metric: int) -> DefaultRoute:
    return DefaultRoute(ip_address(gateway), interface, metric)


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample was written on a little-endian machine")
def test_linux_ipv4_default_routes_have_a_gateway_and_are_up() -> None:
    expected = [route("192.168.1.254", "wlan0", 600), route("192.168.77.1", "eth0", 100)]
    assert list(parse_route(ROUTE.splitlines())) == expected


def test_linux_ipv6_default_routes_scope_a_link_local_gateway() -> None:
    expected = [route("2001:db8:1::1", "eth0", 1024), route("fe80::1%wlan0", "wlan0", 100)]
    assert list(parse_ipv6_route(IPV6_ROUTE.splitlines())) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MACOS, [route("192.168.77.1", "en0", 0), route("192.168.78.1", "en1", 1)]),
        (MACOS_IPV6, [route("fe80::1%en0", "en0", 0)]),
        (OLD_MACOS, [route("10.0.1.1", "en0", 0)]),
        (FREEBSD, [route("10.0.0.1", "em0", 0)]),
        ("", []),
    ],
    ids=["macos", "macos-ipv6", "old-macos", "freebsd", "nothing"],
)
def test_netstat_is_read_by_its_header(text: str, expected: list[DefaultRoute]) -> None:
    assert parse_netstat(text) == expected


def test_route_print_is_read_in_any_language() -> None:
    names = {"192.168.77.10": "Ethernet"}
    expected = [route("192.168.78.1", "192.168.78.10", 50), route("192.168.77.1", "Ethernet", 25)]
    assert parse_route_print(WINDOWS, interface_names=names) == expected
    assert parse_route_print(WINDOWS_IPV6, ipv6=True) == [
        route("fe80::1%12", "12", 281),
        route("2001:db8:1::1", "7", 26),
    ]


SAMPLES = [ROUTE, IPV6_ROUTE, MACOS, MACOS_IPV6, WINDOWS, WINDOWS_IPV6]
WORDS = st.sampled_from(sorted({word for sample in SAMPLES for word in sample.split()}))
LINES = st.lists(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=12).map(" ".join), max_size=4)


@given(LINES)
def test_no_text_breaks_a_parser(lines: list[str]) -> None:
    header = "Destination Gateway Flags Netif"
    list(parse_route(lines))
    list(parse_ipv6_route(lines))
    parse_netstat("\n".join([header, *lines]))
    parse_route_print("\n".join(lines))
    parse_route_print("\n".join(lines), ipv6=True)


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_no_address_breaks_its_parser(text: str, netmask: str | None) -> None:
    parse_address(text, netmask)


@pytest.mark.parametrize(
    ("text", "netmask", "expected"),
    [
        ("192.168.77.10", "255.255.255.0", "192.168.77.10/24"),
        ("10.8.0.2", "255.255.255.255", "10.8.0.2/32"),
        ("10.8.0.2", None, "10.8.0.2/32"),
        ("fe80::1%eth0", "ffff:ffff:ffff:ffff::", "fe80::1%eth0/64"),
        ("2001:db8:1::108", None, "2001:db8:1::108/64"),  # Windows tells no prefix
        ("2001:db8:1::108", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:1::108/128"),
    ],
)
def test_an_address_has_its_prefix_and_scope(text: str, netmask: str | None, expected: str) -> None:
    parsed = parse_address(text, netmask)
    assert str(parsed) == expected


def test_link_local_addresses_keep_their_scope() -> None:
    addresses = tuple(ip_interface(text) for text in ("192.0.2.1/24", "fe80::1%eth0/64", "2001:db8::1/64"))
    interface = Interface("eth0", 2, addresses, True, True, False, False)
    assert interface.ips == (
        IPv4Address("192.0.2.1"),
        IPv6Address("fe80::1%eth0"),
        IPv6Address("2001:db8::1"),
    )


def test_this_machine_has_a_loopback_interface() -> None:
    (loopback,) = (interface for interface in interfaces() if interface.is_loopback)
    assert IPv4Address("127.0.0.1") in loopback.ips
    assert loopback.is_up
    assert not loopback.is_multicast
    assert not loopback.is_point_to_point
    assert loopback.index > 0


def test_a_system_that_tells_no_interfaces_is_a_transport_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(psutil, "net_if_addrs", refuse)
    with pytest.raises(TransportError, match="Permission denied"):
        interfaces()


def said(text: str, calls: list[list[str]]) -> Callable[..., object]:
    def run(command: list[str], **_options: object) -> object:
        calls.append(command)
        return SimpleNamespace(stdout=text.encode())

    return run


@pytest.mark.parametrize(
    ("platform", "ipv6", "text", "command", "best"),
    [
        ("darwin", False, MACOS, "netstat -rn -f inet", route("192.168.77.1", "en0", 0)),
        ("darwin", True, MACOS_IPV6, "netstat -rn -f inet6", route("fe80::1%en0", "en0", 0)),
        ("win32", False, WINDOWS, "route print -4 0.0.0.0", route("192.168.77.1", "192.168.77.10", 25)),
        ("win32", True, WINDOWS_IPV6, "route print -6 ::/0", route("2001:db8:1::1", "7", 26)),
    ],
)
def test_other_systems_are_asked_by_their_own_tools(
    platform: str, ipv6: bool, text: str, command: str, best: DefaultRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(subprocess, "run", said(text, calls))
    monkeypatch.setattr(module, "interfaces", list)
    assert default_routes(ipv6=ipv6)[0] == best
    assert calls == [command.split()]


@pytest.mark.parametrize("error", [FileNotFoundError("netstat"), subprocess.TimeoutExpired("netstat", 2)])
def test_a_tool_that_is_missing_or_hangs_means_no_route(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", fail)
    assert default_routes() == []


def test_a_system_without_proc_has_no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("builtins.open", missing)
    assert default_routes(ipv6=True) == []


def named(name: str, *addresses: str, is_up: bool = True, is_point_to_point: bool = False) -> Interface:
    parsed = tuple(ip_interface(text) for text in addresses)
    return Interface(name, 2, parsed, is_up, True, name == "lo", is_point_to_point)


@pytest.mark.parametrize(
    ("platform", "interface", "expected"),
    [
        ("darwin", named("utun3", is_point_to_point=True), True),
        ("darwin", named("en0"), False),
        ("darwin", named("lo", is_point_to_point=True), False),
        ("freebsd14", named("tap0"), True),
        ("freebsd14", named("ng0", is_point_to_point=True), True),
        ("win32", named("wg-office"), True),
        ("win32", named("Ethernet 2"), None),  # may be a TAP adapter
        ("linux", named("no-such-interface"), None),
        ("linux", named("lo"), False),
    ],
)
def test_a_tunnel_is_known_by_what_the_system_tells(
    platform: str, interface: Interface, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform == "linux" and sys.platform != "linux":
        pytest.skip("asks a Linux kernel")
    monkeypatch.setattr(sys, "platform", platform)
    assert is_tunnel(interface) is expected


def test_of_two_interfaces_with_an_address_the_one_that_is_up_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    down, up = named("eth0", "10.8.0.2/24", is_up=False), named("tun0", "10.8.0.2/24")
    monkeypatch.setattr(module, "interfaces", lambda: [down, up])
    assert interface_of(ip_address("10.8.0.2")) == up
    assert interface_of(ip_address("10.8.0.3")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs ioctl as Linux has it")
@pytest.mark.parametrize(
    ("link", "driver", "bus", "expected"),
    [
        (65534, b"wireguard", b"", True),
        (65534, b"tun", b"tun", True),
        (65534, None, b"", True),
        (65534, b"qmi_wwan", b"usb-0000:00:14.0-3", False),  # a modem that carries bare IP packets
        (512, None, b"", True),
        (778, None, b"", True),
        (1, b"tun", b"tap", True),
        (1, b"e1000e", b"0000:00:1f.6", False),
        (1, b"veth", b"", False),
        (1, None, b"", False),
        (801, b"ath9k", b"0000:00:1f.7", False),
    ],
)
def test_linux_tells_a_tunnel_by_its_link_and_driver(
    link: int, driver: bytes | None, bus: bytes, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(_: object, request: int, argument: bytes) -> bytes:
        assert argument.startswith(b"any0\0")
        if request == 0x8927:  # SIOCGIFHWADDR
            return struct.pack("16sH22x", b"any0", link)
        if driver is None:
            raise OSError(95, "Operation not supported")
        (where,) = struct.unpack_from("P", argument, 16)
        assert ctypes.string_at(where, 4) == struct.pack("=I", 3)  # ETHTOOL_GDRVINFO
        told = struct.pack("=I32s64x32s", 3, driver, bus)
        ctypes.memmove(where, told, len(told))
        return argument

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    assert is_tunnel(named("any0")) is expected
