"""Which announcements are news."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError
from nattools.pcp import natpmp, pcp
from nattools.pcp.announcement import Announcement, Announcements

GATEWAY = Endpoint.of("192.168.77.1", 5351)
A, B = IPv4Address("11.22.33.2"), IPv4Address("11.22.33.44")


def natpmp_says(epoch_s: int, address: IPv4Address = A) -> bytes:
    return natpmp.ExternalAddressResponse(epoch_s, address).encode()


def pcp_says(epoch_s: int) -> bytes:
    return pcp.Response(pcp.ResultCode.SUCCESS, pcp.Announce(), 0, epoch_s).encode()


def news(*told: tuple[float, bytes]) -> list[Announcement | None]:
    announcements = Announcements(GATEWAY.ip)
    return [announcements.receive(data, GATEWAY, now=now) for now, data in told]


def test_a_burst_is_news_once_in_each_protocol() -> None:
    burst = [(now, data) for now in (10.0, 10.25, 10.75) for data in (natpmp_says(0), pcp_says(0))]
    assert news(*burst) == [
        Announcement(0, 0, A, state_lost=False),
        Announcement(2, 0, None, state_lost=False),
        *[None] * 4,
    ]


@pytest.mark.parametrize("says", [natpmp_says, pcp_says])
def test_a_restart_is_news(says: object) -> None:
    assert callable(says)
    first, same, restart, again = news((10, says(500)), (20, says(510)), (30, says(0)), (30.25, says(0)))
    assert first is not None
    assert same is None
    assert restart is not None
    assert restart.state_lost
    assert restart.epoch_s == 0
    assert again is None


def test_a_new_address_is_news_though_the_mappings_are_kept() -> None:
    _, changed, same, lost, back = news(
        (10, natpmp_says(500)),
        (20, natpmp_says(510, B)),
        (20.25, natpmp_says(510, B)),
        (30, natpmp_says(520, IPv4Address(0))),
        (40, natpmp_says(530, B)),
    )
    assert changed == Announcement(0, 510, B, state_lost=False)
    assert same is None
    assert lost == Announcement(0, 520, None, state_lost=False)
    assert back == Announcement(0, 530, B, state_lost=False)


@pytest.mark.parametrize(
    "source",
    [Endpoint.of("192.168.77.2", 5351), Endpoint.of("192.168.77.1", 5350), Endpoint.of("11.22.33.2", 5351)],
)
def test_what_others_say_is_nothing_and_is_not_even_read(source: Endpoint) -> None:
    announcements = Announcements(GATEWAY.ip)
    assert announcements.receive(natpmp_says(0), source, now=10) is None
    assert announcements.receive(b"", source, now=10) is None
    assert announcements.receive(natpmp_says(900), GATEWAY, now=11) == Announcement(
        0, 900, A, state_lost=False
    )


@pytest.mark.parametrize(
    "data",
    [
        natpmp.MappingResponse(TransportProtocol.UDP, 0, 1, 1, 1).encode(),
        natpmp.ErrorResponse(natpmp.Opcode.EXTERNAL_ADDRESS, natpmp.ResultCode.NETWORK_FAILURE, 0).encode(),
        pcp.Response(pcp.ResultCode.NETWORK_FAILURE, pcp.Announce(), 0, 0).encode(),
        pcp.Response(pcp.ResultCode.SUCCESS, pcp.Opaque(pcp.Opcode(9)), 0, 0).encode(),
    ],
)
def test_another_message_of_the_gateway_is_no_news(data: bytes) -> None:
    assert news((10, data)) == [None]


@pytest.mark.parametrize("data", [b"", b"\x02\x80", b"\x00\x80\x00", b"\x00\x00", b"\x07" * 24])
def test_noise_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        news((10, data))


def test_a_link_local_gateway_is_heard_with_or_without_its_scope() -> None:
    announcements = Announcements(ip_address("fe80::1%eth0"))
    assert announcements.receive(pcp_says(5), Endpoint.of("fe80::1", 5351), now=10) is not None
    assert announcements.receive(pcp_says(0), Endpoint.of("fe80::1%eth0", 5351), now=30) is not None


def test_a_router_known_by_its_global_address_is_heard_from_its_link_local_one() -> None:
    announcements = Announcements(ip_address("2001:db8:1::1"))
    assert announcements.receive(pcp_says(5), Endpoint.of("2001:db8:1::2", 5351), now=10) is None
    assert announcements.receive(pcp_says(5), Endpoint.of("fe80::1", 5350), now=10) is None
    assert announcements.receive(pcp_says(5), Endpoint.of("fe80::1%eth0", 5351), now=10) is not None
