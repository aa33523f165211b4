"""The clients against a fake gateway on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, ip_address
from typing import TypeVar

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import EncodeError, LocalAddressError, NoResponseError, PcpError, TransportError
from nattools.net.interfaces import Interface
from nattools.pcp import natpmp, pcp
from nattools.pcp.client import (
    Announced,
    AnnouncementListener,
    ExternalAddress,
    MapResult,
    NatPmpClient,
    NatPmpMapping,
    PcpClient,
)
from tests.fakes.pcp_gateway import EXTERNAL, EXTERNAL_IPV6, Fault, Gateway, Speaks, serving

T = TypeVar("T")
UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP
LOOPBACK = ip_address("127.0.0.1")
ANY_PORT = Endpoint.of("0.0.0.0", 0)


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end, and see that nothing is left behind."""

    async def checked() -> T:
        try:
            async with asyncio.timeout(20):
                return await coroutine
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(checked())


@asynccontextmanager
async def pcp_client(
    gateway: Gateway, *, host: str = "127.0.0.1", timeout_s: float = 5.0
) -> AsyncIterator[PcpClient]:
    async with (
        serving(gateway, host=host),
        PcpClient.open(ip_address(host), port=gateway.endpoint.port, timeout_s=timeout_s) as client,
    ):
        yield client


@asynccontextmanager
async def natpmp_client(gateway: Gateway, *, timeout_s: float = 5.0) -> AsyncIterator[NatPmpClient]:
    async with (
        serving(gateway),
        NatPmpClient.open(LOOPBACK, port=gateway.endpoint.port, timeout_s=timeout_s) as client,
    ):
        yield client


async def map_one(client: PcpClient, port: int = 5060, *, prefer_failure: bool = False) -> MapResult:
    """A mapping of one UDP port for an hour."""
    suggested = Endpoint(IPv4Address(0), port)
    return await client.map(
        port, UDP, suggested_external=suggested, lifetime_s=3600, prefer_failure=prefer_failure
    )


class TestPcp:
    def test_it_is_told_that_there_is_pcp(self) -> None:
        async def ask() -> Announced:
            async with pcp_client(Gateway(epoch_s=77)) as client:
                return await client.announce()

        assert run(ask()) == Announced(77)

    def test_a_mapping_is_made_renewed_and_removed_with_one_nonce(self) -> None:
        gateway = Gateway()

        async def ask() -> tuple[MapResult, MapResult]:
            async with pcp_client(gateway) as client:
                made = await client.map(5060, UDP, suggested_external=None, lifetime_s=3600)
                renewed = await client.map(
                    5060, UDP, suggested_external=made.external, lifetime_s=600, nonce=made.nonce
                )
                assert list(gateway.mappings) == [(LOOPBACK, 17, 5060)]
                await client.unmap(renewed)
                await client.unmap(renewed)  # one that is not there any more is no error
                return made, renewed

        made, renewed = run(ask())
        assert gateway.mappings == {}
        assert made.external == renewed.external == Endpoint(EXTERNAL, 5060)
        assert (made.lifetime_s, renewed.lifetime_s) == (3600, 600)
        asked = [pcp.Request.parse(data) for data in gateway.requests]
        bodies = [request.body for request in asked]
        assert {body.nonce for body in bodies if isinstance(body, pcp.Map)} == {made.nonce}
        assert [request.lifetime_s for request in asked] == [3600, 600, 0, 0]
        assert {request.client for request in asked} == {LOOPBACK}
        removal = bodies[2]
        assert isinstance(removal, pcp.Map)
        assert removal.external == ANY_PORT

    def test_to_remove_what_is_not_there_is_no_error_though_miniupnpd_makes_it_one(self) -> None:
        gateway = Gateway(faults=frozenset({Fault.NOTHING_TO_REMOVE}))

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                made = await map_one(client)
                for _ in range(2):
                    await client.unmap(made)

        run(ask())
        assert len(gateway.requests) == 3

    def test_a_removal_that_is_refused_is_an_error(self) -> None:
        gateway = Gateway()

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                made = await map_one(client)
                with pytest.raises(PcpError, match="NOT_AUTHORIZED"):
                    await client.unmap(replace(made, nonce=bytes(12)))

        run(ask())
        assert list(gateway.mappings) == [(LOOPBACK, 17, 5060)]

    def test_every_mapping_has_its_own_nonce(self) -> None:
        async def ask() -> list[MapResult]:
            async with pcp_client(Gateway()) as client:
                return list(await asyncio.gather(*(map_one(client, port) for port in range(5060, 5070))))

        made = run(ask())
        assert len({each.nonce for each in made}) == 10
        assert [each.external.port for each in made] == list(range(5060, 5070))

    def test_the_gateway_has_the_last_word_on_the_lease_and_the_port(self) -> None:
        async def ask() -> MapResult:
            async with pcp_client(Gateway(taken=frozenset({5060}), longest_lifetime_s=900)) as client:
                return await map_one(client)

        made = run(ask())
        assert (made.external.port, made.lifetime_s) == (5061, 900)

    def test_prefer_failure_gets_the_port_or_nothing(self) -> None:
        gateway = Gateway(taken=frozenset({5060}))

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                await map_one(client, 5070, prefer_failure=True)
                await map_one(client, prefer_failure=True)

        with pytest.raises(PcpError, match="CANNOT_PROVIDE_EXTERNAL") as caught:
            run(ask())
        assert caught.value.code == pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL
        assert list(gateway.mappings) == [(LOOPBACK, 17, 5070)]

    def test_filters_reach_the_gateway(self) -> None:
        gateway = Gateway()
        filters = (pcp.Filter(IPv4Network("198.51.100.0/24"), 5060), pcp.Filter(IPv4Network("192.0.2.7/32")))

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                await client.map(5060, TCP, suggested_external=None, lifetime_s=600, filters=filters)

        run(ask())
        assert gateway.mappings[LOOPBACK, 6, 5060].filters == filters

    def test_another_machine_is_mapped_and_unmapped_when_that_is_asked_for(self) -> None:
        gateway = Gateway()
        other = ip_address("127.0.0.77")

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                made = await client.map(5060, UDP, suggested_external=None, lifetime_s=600, third_party=other)
                assert list(gateway.mappings) == [(other, 17, 5060)]
                await client.unmap(made)

        run(ask())
        assert gateway.mappings == {}

    def test_a_peer_is_told_of(self) -> None:
        remote = Endpoint.of("198.51.100.9", 443)

        async def ask() -> tuple[Endpoint, Endpoint, int]:
            async with pcp_client(Gateway()) as client:
                result = await client.peer(5061, TCP, remote, lifetime_s=300)
                return result.external, result.remote, result.lifetime_s

        assert run(ask()) == (Endpoint(EXTERNAL, 5061), remote, 300)

    def test_ipv6_is_spoken(self) -> None:
        gateway = Gateway()

        async def ask() -> MapResult:
            async with pcp_client(gateway, host="::1") as client:
                return await client.map(5060, UDP, suggested_external=None, lifetime_s=600)

        assert run(ask()).external == Endpoint(EXTERNAL_IPV6, 5060)
        request = pcp.Request.parse(gateway.requests[0])
        assert request.client == ip_address("::1")
        assert isinstance(request.body, pcp.Map)
        assert request.body.external == Endpoint.of("::", 0)

    @pytest.mark.parametrize("code", [code for code in pcp.ResultCode if code])
    @pytest.mark.parametrize("faults", [frozenset(), frozenset({Fault.HEADER_ONLY_ERRORS})])
    def test_each_refusal_is_an_error_with_its_code(
        self, code: pcp.ResultCode, faults: frozenset[Fault]
    ) -> None:
        async def ask() -> None:
            async with pcp_client(Gateway(result=code, faults=faults)) as client:
                await map_one(client)

        with pytest.raises(
            PcpError, match=rf"refused the PCP MAP request for UDP port 5060 with {code.name}"
        ) as e:
            run(ask())
        assert e.value.code is code

    def test_a_gateway_with_nat_pmp_only_says_so_at_once(self) -> None:
        gateway = Gateway(speaks=Speaks.NAT_PMP)

        async def ask() -> None:
            async with pcp_client(gateway) as client:
                await client.announce()

        with pytest.raises(PcpError, match="speaks NAT-PMP and no PCP") as caught:
            run(ask())
        assert caught.value.code == pcp.ResultCode.UNSUPP_VERSION
        assert len(gateway.requests) == 1

    @pytest.mark.parametrize("fault", [Fault.DUPLICATED, Fault.GARBAGE_FIRST])
    def test_noise_around_the_answer_does_no_harm(self, fault: Fault) -> None:
        async def ask() -> list[MapResult]:
            async with pcp_client(Gateway(faults=frozenset({fault}))) as client:
                made = await map_one(client)
                await client.unmap(made)
                return [made, await map_one(client)]

        assert [each.external.port for each in run(ask())] == [5060, 5060]

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            (Fault.SILENT, "no answer to the PCP MAP request"),
            (Fault.WRONG_NONCE, "no answer to the PCP MAP request"),
            (Fault.WRONG_INTERNAL_PORT, "no answer to the PCP MAP request"),
            (Fault.OTHER_PORT, "which is not who was asked"),
            (Fault.OTHER_ADDRESS, "an answer came from 127.0.0.2"),
            (Fault.CUT_SHORT, "is no answer"),
        ],
    )
    def test_what_is_no_answer_to_the_request_does_not_count(self, fault: Fault, told: str) -> None:
        async def ask() -> None:
            async with pcp_client(Gateway(faults=frozenset({fault})), timeout_s=0.3) as client:
                await map_one(client)

        with pytest.raises(NoResponseError, match=told):
            run(ask())

    def test_lost_requests_are_sent_again(self) -> None:
        gateway = Gateway(lose=2)

        async def ask() -> MapResult:
            async with pcp_client(gateway) as client:
                return await map_one(client)

        assert run(ask()).external.port == 5060
        assert len(gateway.requests) >= 3
        assert len(set(gateway.requests)) == 1

    def test_a_cancelled_request_leaves_nothing_behind(self) -> None:
        async def ask() -> None:
            async with pcp_client(Gateway(faults=frozenset({Fault.SILENT}))) as client:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.announce()

        run(ask())


class TestNatPmp:
    def test_the_external_address_is_told(self) -> None:
        async def ask() -> ExternalAddress:
            async with natpmp_client(Gateway(epoch_s=77)) as client:
                return await client.external_address()

        assert run(ask()) == ExternalAddress(EXTERNAL, 77)

    def test_no_external_address_is_none(self) -> None:
        async def ask() -> ExternalAddress:
            async with natpmp_client(Gateway(epoch_s=77, external=IPv4Address(0))) as client:
                return await client.external_address()

        assert run(ask()) == ExternalAddress(None, 77)

    def test_a_mapping_is_made_renewed_and_removed(self) -> None:
        gateway = Gateway(taken=frozenset({25060}), epoch_s=77)

        async def ask() -> list[NatPmpMapping]:
            async with natpmp_client(gateway) as client:
                made = await client.map(5060, UDP, external_port=25060, lifetime_s=3600)
                renewed = await client.map(5060, UDP, external_port=made.external_port, lifetime_s=10)
                tcp = await client.map(5060, TCP, external_port=0, lifetime_s=600)
                assert set(gateway.mappings) == {(LOOPBACK, 17, 5060), (LOOPBACK, 6, 5060)}
                await client.unmap(5060, UDP)
                await client.unmap(5060, UDP)
                return [made, renewed, tcp]

        assert run(ask()) == [
            NatPmpMapping(25061, 3600, 77, UDP, 5060),
            NatPmpMapping(25061, 120, 77, UDP, 5060),
            NatPmpMapping(5060, 600, 77, TCP, 5060),
        ]
        assert set(gateway.mappings) == {(LOOPBACK, 6, 5060)}
        assert gateway.requests[3].hex() == "0001000013c4000000000000"

    @pytest.mark.parametrize("code", [code for code in natpmp.ResultCode if code])
    def test_each_refusal_is_an_error_with_its_code(self, code: natpmp.ResultCode) -> None:
        async def ask() -> None:
            async with natpmp_client(Gateway(result=code)) as client:
                await client.map(5060, UDP, external_port=0, lifetime_s=600)

        with pytest.raises(PcpError, match=code.name) as caught:
            run(ask())
        assert caught.value.code is code

    def test_a_gateway_with_pcp_only_says_so_at_once(self) -> None:
        async def ask() -> None:
            async with natpmp_client(Gateway(speaks=Speaks.PCP)) as client:
                await client.external_address()

        with pytest.raises(PcpError, match="speaks PCP version 2 and no NAT-PMP"):
            run(ask())

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            (Fault.SILENT, "no answer to the NAT-PMP request"),
            (Fault.WRONG_INTERNAL_PORT, "no answer to the NAT-PMP request"),
            (Fault.OTHER_PORT, "which is not who was asked"),
            (Fault.OTHER_ADDRESS, "an answer came from 127.0.0.2"),
            (Fault.CUT_SHORT, "is no answer"),
        ],
    )
    def test_what_is_no_answer_to_the_request_does_not_count(self, fault: Fault, told: str) -> None:
        async def ask() -> None:
            async with natpmp_client(Gateway(faults=frozenset({fault})), timeout_s=0.3) as client:
                await client.map(5060, UDP, external_port=0, lifetime_s=600)

        with pytest.raises(NoResponseError, match=told):
            run(ask())


class TestBoth:
    @pytest.mark.parametrize("result", [0, 2])
    def test_a_restart_of_the_gateway_is_told_once(self, result: int) -> None:
        gateway = Gateway()
        told: list[str] = []

        async def ask() -> None:
            async with (
                pcp_client(gateway) as by_pcp,
                NatPmpClient.open(LOOPBACK, port=gateway.endpoint.port) as by_natpmp,
            ):
                by_pcp.on_state_lost = lambda: told.append("pcp")
                by_natpmp.on_state_lost = lambda: told.append("nat-pmp")
                for _ in range(2):
                    await by_pcp.announce()
                    await by_natpmp.external_address()
                gateway.restart()
                gateway.result = result  # a refusal has an epoch, too
                for _ in range(2):
                    for question in (by_pcp.announce(), by_natpmp.external_address()):
                        if result:
                            with pytest.raises(PcpError):
                                await question
                        else:
                            await question

        run(ask())
        assert told == ["pcp", "nat-pmp"]

    @pytest.mark.parametrize("client", [PcpClient, NatPmpClient])
    def test_where_nothing_listens_is_told_at_once(
        self, client: type[PcpClient] | type[NatPmpClient]
    ) -> None:
        async def ask() -> None:
            async with serving(Gateway()) as gateway:
                port = gateway.endpoint.port
            async with client.open(LOOPBACK, port=port, timeout_s=15) as opened:
                if isinstance(opened, PcpClient):
                    await opened.announce()
                else:
                    await opened.external_address()

        with pytest.raises(NoResponseError, match=r"nothing listens on UDP port \d+ there"):
            run(ask())

    def test_where_nothing_listens_every_request_is_told(self) -> None:
        """The second finds the first one's ICMP error when it is sent."""

        async def ask() -> list[object]:
            async with serving(Gateway()) as gateway:
                port = gateway.endpoint.port
            async with PcpClient.open(LOOPBACK, port=port, timeout_s=15) as client:
                return list(
                    await asyncio.gather(client.announce(), client.announce(), return_exceptions=True)
                )

        assert [type(each) for each in run(ask())] == [NoResponseError, NoResponseError]

    def test_an_address_of_another_machine_cannot_be_asked_from(self) -> None:
        async def ask() -> None:
            async with PcpClient.open(LOOPBACK, local_address=ip_address("192.0.2.1")):
                pass

        with pytest.raises(LocalAddressError, match=r"192\.0\.2\.1 is not an address of this machine"):
            run(ask())

    def test_a_gateway_at_no_interface_cannot_be_asked(self) -> None:
        async def ask() -> None:
            async with PcpClient.open(ip_address("fe80::1%no-such-if")):
                pass

        with pytest.raises(TransportError):
            run(ask())

    def test_the_address_that_is_asked_from_can_be_chosen(self) -> None:
        async def ask() -> str:
            async with (
                serving(Gateway()) as gateway,
                PcpClient.open(
                    LOOPBACK, local_address=ip_address("127.0.0.7"), port=gateway.endpoint.port
                ) as client,
            ):
                await client.announce()
                return str(pcp.Request.parse(gateway.requests[0]).client)

        assert run(ask()) == "127.0.0.7"

    @pytest.mark.parametrize("port", [0, -1, 65536, 70000])
    def test_a_port_that_is_none_is_not_asked_for(self, port: int) -> None:
        """Port 0 would map, or remove, all of them."""
        gateway = Gateway()

        async def ask() -> None:
            mapping = MapResult(bytes(12), ANY_PORT, 0, 0, UDP, port)
            async with (
                pcp_client(gateway) as by_pcp,
                NatPmpClient.open(LOOPBACK, port=gateway.endpoint.port) as by_natpmp,
            ):
                for question in (
                    by_pcp.map(port, UDP, suggested_external=None, lifetime_s=1),
                    by_pcp.unmap(mapping),
                    by_pcp.peer(port, UDP, ANY_PORT, lifetime_s=1),
                    by_natpmp.map(port, UDP, external_port=0, lifetime_s=1),
                    by_natpmp.unmap(port, UDP),
                ):
                    with pytest.raises(EncodeError, match=f"port {port} is not between 1 and 65535"):
                        await question

        run(ask())
        assert gateway.requests == []

    @pytest.mark.parametrize("lifetime_s", [0, -1, 1 << 32])
    def test_a_lifetime_that_is_none_is_not_asked_for(self, lifetime_s: int) -> None:
        gateway = Gateway()

        async def ask() -> None:
            async with (
                pcp_client(gateway) as by_pcp,
                NatPmpClient.open(LOOPBACK, port=gateway.endpoint.port) as by_natpmp,
            ):
                with pytest.raises(EncodeError):
                    await by_pcp.map(5060, UDP, suggested_external=None, lifetime_s=lifetime_s)
                with pytest.raises(EncodeError):
                    await by_natpmp.map(5060, UDP, external_port=0, lifetime_s=lifetime_s)

        run(ask())
        assert gateway.requests == []


@pytest.mark.parametrize(
    ("gateway", "own", "missing"),
    [
        ("192.0.2.254", IPv6Interface("2001:db8::1/64"), "eth9 has no IPv4 address"),
        ("2001:db8::fe", IPv4Interface("192.0.2.1/24"), "eth9 has no IPv6 address"),
    ],
)
def test_announcements_cannot_be_heard_where_there_is_no_address_of_that_kind(
    gateway: str, own: IPv4Interface | IPv6Interface, missing: str
) -> None:
    interface = Interface("eth9", 9, (own,), True, True, False, False)

    async def listen() -> None:
        async with AnnouncementListener.open(ip_address(gateway), interface, on_announcement=print):
            pass

    with pytest.raises(LocalAddressError, match=missing):
        run(listen())
