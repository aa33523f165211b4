"""A router's mappings as claims, with routers that do as they are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from nattools.binding.model import Claim, Method, Source
from nattools.binding.providers import router as module
from nattools.binding.providers.router import RouterProvider, protocols_of
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, MappingError, NatToolsError, NoRouterError, PcpError, UpnpError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol
from nattools.mapping.ways.pcp import PcpWay
from nattools.mapping.ways.routers import Routers
from tests.unit.mapping.ways import NAT_PMP, PCP, UPNP, FakeWay, OpenClient, opener, run

ANY = Endpoint.parse("0.0.0.0:5060")
REAL = Endpoint.parse("192.168.0.108:5060")
PUBLIC = Endpoint.parse("11.22.33.2:5060")
PATIENCE_S = 10.0

News = tuple[Endpoint, Claim | NatToolsError]


@pytest.fixture(autouse=True)
def own_addresses(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses of this machine, which a test may change."""
    own = {"192.168.0.108"}
    monkeypatch.setattr(module, "interface_of", lambda ip: object() if str(ip) in own else None)
    return own


@asynccontextmanager
async def reading(provider: RouterProvider) -> AsyncIterator[asyncio.Queue[News]]:
    """The news, as they come."""
    news = asyncio.Queue[News]()

    async def read() -> None:
        async for one in provider.news():
            news.put_nowait(one)

    reader = asyncio.create_task(read())
    try:
        yield news
    finally:
        reader.cancel()
        await asyncio.wait([reader])


async def there_are_none(news: asyncio.Queue[News]) -> None:
    await asyncio.sleep(0.1)
    assert news.empty()


async def is_watched(way: FakeWay) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while way.on_change is None:  # noqa: ASYNC110  the client tells nobody
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("methods", "protocols"),
    [
        ([Method.PCP, Method.UPNP], [PCP, NAT_PMP, UPNP]),
        ([Method.UPNP, Method.STUN, Method.PCP], [UPNP, PCP, NAT_PMP]),
        ([Method.NAT_PMP, Method.PCP], [NAT_PMP, PCP]),
        ([Method.STATIC, Method.VPN, Method.OPEN, Method.STUN], []),
        (list(Method), [PCP, NAT_PMP, UPNP]),
    ],
)
def test_methods_have_their_protocols(methods: list[Method], protocols: list[MappingProtocol]) -> None:
    assert protocols_of(methods) == protocols


@pytest.mark.parametrize("protocol", [PCP, NAT_PMP, UPNP])
def test_a_mapping_is_a_claim(open_client: OpenClient, protocol: MappingProtocol) -> None:
    way = FakeWay(protocol, lease_s=120)

    async def work() -> None:
        async with open_client(**{protocol.name.lower(): way}) as client:
            provider = RouterProvider(client, lease_s=240)
            claim = await provider.acquire(ANY)
            assert (claim.method.value, claim.method.source) == (protocol.value, Source.ROUTER)
            assert (claim.local, claim.public, claim.lease_s, claim.realm) == (REAL, PUBLIC, 120, "")
            for part in ("192.168.0.1", str(PUBLIC), str(REAL), protocol.value):
                assert part in claim.word
            assert [(draft.lease_s, draft.description) for draft in way.asked] == [(240, "nattools")]
            await provider.release(claim)
            assert [mapping.internal for mapping in way.released] == [REAL]
            await provider.release(claim)
            assert len(way.released) == 1

    run(work())


def test_a_socket_at_one_address_is_mapped_there(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP)) as client:
            claim = await RouterProvider(client).acquire(REAL)
            assert (claim.local, claim.public) == (REAL, PUBLIC)

    run(work())


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("192.168.0.7", r"192\.168\.0\.7 is not an address of this machine"),
        ("127.0.0.1", r"127\.0\.0\.1 is reached from this machine alone"),
    ],
)
def test_an_address_that_the_router_cannot_lead_to_is_not_asked_for(
    open_client: OpenClient, ip: str, reason: str
) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            with pytest.raises(BindingError, match=reason):
                await RouterProvider(client).acquire(Endpoint.of(ip, 5060))

    run(work())
    assert way.asked == []


def test_what_the_router_says_no_with_is_passed_on(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client() as client:
            with pytest.raises(NoRouterError, match="Turn on UPnP"):
                await RouterProvider(client).acquire(ANY)
        async with open_client(pcp=FakeWay(PCP, refusals=[PcpError("not authorized", code=2)])) as client:
            with pytest.raises(PcpError, match="not authorized"):
                await RouterProvider(client).acquire(ANY)

    run(work())


@pytest.mark.parametrize(
    ("external", "reason"),
    [
        ("100.64.0.108", "100.64.0.108 is not public: there is a second NAT in front of it"),
        ("10.1.2.3", "10.1.2.3 is not public: there is a second NAT in front of it"),
        ("192.0.2.7", "192.0.2.7 is not one that the internet knows"),
        (None, "192.168.0.1 has no public address"),
    ],
)
def test_a_router_without_a_public_address_is_refused_and_relieved(
    open_client: OpenClient, external: str | None, reason: str
) -> None:
    way = FakeWay(UPNP, known_external_address=ip_address(external) if external else None)

    async def work() -> None:
        async with open_client(upnp=way) as client:
            with pytest.raises(BindingError, match=reason):
                await RouterProvider(client).acquire(ANY)
            assert [mapping.internal for mapping in way.released] == [REAL]
            assert client.registry.records() == []

    run(work())


def test_a_mapping_that_is_no_use_and_not_removed_is_warned_of(
    open_client: OpenClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(FakeWay):
        async def release(self, _: object) -> None:
            raise UpnpError("no", code=606)

    way = Stubborn(UPNP, known_external_address=ip_address("10.1.2.3"))

    async def work() -> None:
        async with open_client(upnp=way) as client:
            with pytest.raises(BindingError, match="second NAT"):
                await RouterProvider(client).acquire(ANY)
            await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING, module.__name__):
        run(work())
    assert "stays mapped on 192.168.0.1: no" in caplog.text


def test_renewing_asks_the_router_at_once(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            assert await provider.renew(claim) == claim
            assert len(way.granted) == 2
            way.known_external_address = ip_address("11.22.33.9")
            renewed = await provider.renew(claim)
            assert renewed.public == Endpoint.parse("11.22.33.9:5060")

    run(work())


def test_who_asks_twice_renews(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            assert await provider.acquire(ANY) == await provider.acquire(ANY)
            assert len(client.registry.records()) == 1

    run(work())
    assert len(way.granted) == 2


def test_what_was_released_is_acquired_anew(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(REAL)
            await provider.release(claim)
            assert await provider.renew(claim) == claim

    run(work())
    assert len(way.granted) == 2


def test_a_socket_at_any_address_follows_the_machine(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    former, now = FakeWay(PCP), FakeWay(PCP, local=ip_address("192.168.0.7"))

    async def work() -> None:
        async with open_client(pcp=former) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            monkeypatch.setattr(Routers, "_is_own", lambda _, local: local == now.local)
            monkeypatch.setattr(PcpWay, "open", opener(now))
            async with reading(provider) as news:
                renewed = await provider.renew(claim)
                assert renewed.local == Endpoint.parse("192.168.0.7:5060")
                await there_are_none(news)
            assert await provider.renew(renewed) == renewed
            await provider.release(claim)  # the elder one: whoever has it may not have heard yet
            assert [mapping.internal for mapping in now.released] == [renewed.local]

    run(work())


def test_a_socket_at_an_address_that_is_gone_has_no_mapping(
    open_client: OpenClient, own_addresses: set[str]
) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(REAL)
            own_addresses.clear()
            with pytest.raises(BindingError, match="is not an address of this machine, or no longer"):
                await provider.renew(claim)
            assert [mapping.internal for mapping in way.released] == [REAL]

    run(work())


def test_news_of_the_router_come_with_what_was_asked_for(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            await provider.acquire(ANY)
            await is_watched(way)
            assert way.on_change is not None
            async with reading(provider) as news:
                way.on_change("it greets")
                await there_are_none(news)

                way.known_external_address = ip_address("11.22.33.9")
                way.on_change("it has a new address")
                bound, told = await news.get()
                assert bound == ANY
                assert isinstance(told, Claim)
                assert (told.local, told.public) == (REAL, Endpoint.parse("11.22.33.9:5060"))

    run(work())


def test_a_router_that_loses_its_public_address_and_gets_another(open_client: OpenClient) -> None:
    way = FakeWay(UPNP)

    async def work() -> None:
        async with open_client(upnp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            await is_watched(way)
            assert way.on_change is not None
            async with reading(provider) as news:
                way.known_external_address = None
                way.on_change("the line is down")
                _, told = await news.get()
                assert isinstance(told, BindingError)
                assert "no public address" in str(told)
                with pytest.raises(BindingError, match="no public address"):
                    await provider.renew(claim)

                way.known_external_address = ip_address("11.22.33.9")
                way.on_change("the line is up")
                _, told = await news.get()
                assert isinstance(told, Claim)
                assert told.public == Endpoint.parse("11.22.33.9:5060")

    run(work())


def test_a_router_that_forgets_and_remembers(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            await is_watched(way)
            assert way.on_change is not None
            async with reading(provider) as news:
                way.refusals = [PcpError("out of ports", code=8)]
                way.on_change("it restarted")
                _, told = await news.get()
                assert isinstance(told, MappingError)
                assert "192.168.0.1 maps UDP port 5060 no longer" in str(told)
                assert "out of ports" in str(told)
                assert await news.get() == (ANY, claim)

    run(work())


def test_after_an_error_the_same_as_before_is_news(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            await is_watched(way)
            assert way.on_change is not None
            async with reading(provider) as news:
                way.refusals = [PcpError("out of ports", code=8)]
                with pytest.raises(PcpError):
                    await provider.renew(claim)
                way.on_change("it greets")
                assert await news.get() == (ANY, claim)

    run(work())


def test_nothing_is_told_of_what_was_released(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            other = await provider.acquire(Endpoint.parse("0.0.0.0:5062"))
            await is_watched(way)
            assert way.on_change is not None
            await provider.release(claim)
            async with reading(provider) as news:
                way.known_external_address = ip_address("11.22.33.9")
                way.on_change("it has a new address")
                bound, _ = await news.get()
                assert bound.port == other.local.port
                await there_are_none(news)

    run(work())


def test_what_is_released_while_it_is_renewed_is_not_left_there(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            provider = RouterProvider(client)
            claim = await provider.acquire(ANY)
            way.delay_s = 0.05
            renewing = asyncio.create_task(provider.renew(claim))
            await asyncio.sleep(0)
            await provider.release(claim)
            with pytest.raises(MappingError, match="released while"):
                await renewing
            assert client.registry.records() == []
            assert way.released[-1].internal == REAL
            assert len(way.released) == len(way.granted)

    run(work())


def test_the_news_end_with_the_client(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP)) as client:
            assert isinstance(client, MappingClient)
            provider = RouterProvider(client)
            reader = asyncio.create_task(anext(provider.news(), None))
            await asyncio.sleep(0)
        assert await reader is None

    run(work())
