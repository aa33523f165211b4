"""The mapping client when much happens at once: many mappings, news, bugs, and callers that give up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import (
    MappingError,
)
from nattools.mapping.model import MappingRequest, PortMapping
from nattools.mapping.registry import Registry
from nattools.mapping.upkeep import ChangeKind
from nattools.mapping.ways.routers import Routers
from nattools.mapping.ways.upnp import UpnpWay
from tests.unit.mapping.ways import (
    DEAD,
    NAT_PMP,
    OTHER,
    PCP,
    SIP,
    UPNP,
    FakeWay,
    OpenClient,
    news,
    opener,
    run,
    until,
)


def test_two_mappings_at_once_are_made_on_one_router_that_stays_open(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await asyncio.gather(client.acquire(SIP), client.acquire(OTHER))
            await asyncio.sleep(0)
            assert not way.closed
            assert way.on_change is not None

    run(work())


def test_one_port_asked_for_twice_at_once_is_one_mapping(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP)) as client:
            first, second = await asyncio.gather(
                client.acquire(SIP), client.acquire(SIP), return_exceptions=True
            )
            assert isinstance(first, PortMapping)
            assert isinstance(second, MappingError)
            assert "is being asked for already" in str(second)

    run(work())


def test_a_router_is_asked_for_two_things_at_a_time(open_client: OpenClient) -> None:
    way = FakeWay(PCP, stuck=True)
    requests = [replace(SIP, internal=Endpoint.parse(f"0.0.0.0:{port}")) for port in range(6000, 6010)]

    async def work() -> None:
        async with open_client(pcp=way) as client:
            asked = [asyncio.create_task(client.acquire(request)) for request in requests]
            await until(lambda: len(way.asked) >= 2)
            await asyncio.sleep(0.05)
            assert len(way.asked) == 2
            for one in asked:
                one.cancel()
            await asyncio.wait(asked)
            way.stuck = False

    run(work())


def test_a_renewal_that_hangs_does_not_keep_the_others(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await client.acquire(OTHER)
            assert way.on_change is not None
            way.stuck_ports = {5060}
            way.on_change("the router restarted")
            assert (await news(client)).mapping.internal.port == 5062
            way.stuck_ports = set()

    run(work())


def test_news_without_end_do_not_keep_a_slow_router_from_renewing(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.delay_s = 1.5
            way.on_change("the router restarted")
            told = asyncio.create_task(news(client))
            for _ in range(40):  # one each second is listened to, and gives up a renewal that is under way
                if told.done():
                    break
                way.on_change("the router restarted")
                await asyncio.sleep(0.15)
            assert told.done()
            assert told.result().kind is ChangeKind.RENEWED
            way.delay_s = 0

    run(work())


def test_a_bug_in_a_renewal_is_told_and_ends_nothing(
    open_client: OpenClient, caplog: pytest.LogCaptureFixture
) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.refusals = [ZeroDivisionError("a bug")]
            way.on_change("the router restarted")
            assert (await news(client)).kind is ChangeKind.LOST
            assert (await news(client)).kind is ChangeKind.RESTORED

    run(work())
    assert "is not renewed: ZeroDivisionError('a bug')" in caplog.text
    assert "Traceback" in caplog.text


def test_a_mapping_that_is_released_while_it_is_renewed_is_gone(
    open_client: OpenClient, tmp_path: Path
) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            mapping = await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.delay_s = 0.2
            way.on_change("the router restarted")
            await until(lambda: len(way.asked) == 2)
            await client.release(mapping)
            await asyncio.sleep(0.25)
            assert way.granted == [mapping]  # and not the renewal
            assert client.registry.records() == []

    run(work())


def test_a_request_that_is_given_up_is_removed_at_the_end(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP, stuck=True)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            asking = asyncio.create_task(client.acquire(SIP))
            await until(lambda: bool(way.asked))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert [record.granted for record in client.registry.records()] == [False]
            way.stuck = False

    run(work())
    assert [mapping.internal.port for mapping in way.released] == [5060]
    assert not list(tmp_path.iterdir())


def test_a_closed_client_says_so_and_has_no_more_news(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP)) as client:
            mapping = await client.acquire(SIP)
            reading = asyncio.ensure_future(anext(client.changes(), None))
            await asyncio.sleep(0)
        assert await reading is None
        asked: list[Coroutine[None, None, object]] = [
            client.acquire(SIP),
            client.renew(mapping),
            client.release(mapping),
            client.survey(),
            client.external_address(),
            client.tidy(),
        ]
        for question in asked:
            with pytest.raises(MappingError, match="is closed: open another"):
                await question

    run(work())


def test_another_address_of_this_machine_is_another_mapping(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    former, now = FakeWay(UPNP), FakeWay(UPNP, local=ip_address("192.168.0.109"))

    async def work() -> None:
        async with open_client(upnp=former) as client:
            before = await client.acquire(SIP)
            await asyncio.sleep(0)
            assert former.on_change is not None
            monkeypatch.setattr(Routers, "_is_own", lambda _, local: local == now.local)
            monkeypatch.setattr(UpnpWay, "open", opener(now))
            former.on_change("the router restarted")
            change = await news(client)
            assert change.previous == before
            assert str(change.mapping.internal) == "192.168.0.109:5060"
            await asyncio.sleep(0.05)
            assert now.released == [before]
            assert [record.mapping for record in Registry(tmp_path).records()] == [change.mapping]

    run(work())
    assert former.closed
    assert not list(tmp_path.iterdir())


def test_nat_pmp_removes_nothing_for_an_address_that_is_not_its_own(
    open_client: OpenClient, tmp_path: Path
) -> None:
    way = FakeWay(NAT_PMP)

    async def work() -> None:
        async with open_client(nat_pmp=way) as client:
            mapping = await client.acquire(SIP, keep=False)
            (record,) = client.registry.records()
            elsewhere = replace(mapping, internal=Endpoint.parse("192.168.0.7:5060"))
            client.registry.write(replace(record, owner=DEAD, kept=True, mapping=elsewhere))
            await client.tidy()
            assert way.released == []  # the router would remove the mapping of 192.168.0.108
            assert client.registry.records() == []

    run(work())


def test_another_external_port_is_another_mapping_by_upnp(open_client: OpenClient, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_client(upnp=FakeWay(UPNP)) as client:
            await client.acquire(SIP, keep=False)
            await client.acquire(replace(SIP, external_port=6000), keep=False)

    run(work())
    assert sorted(record.mapping.external_port for record in Registry(tmp_path).records()) == [5060, 6000]


def test_what_is_left_behind_is_removed_before_anybody_maps_it_anew(open_client: OpenClient) -> None:
    class Watchful(FakeWay):
        async def acquire(self, request: MappingRequest, draft: PortMapping) -> PortMapping:
            removed_before.append(len(self.released))
            return await super().acquire(request, draft)

    way, removed_before = Watchful(PCP), list[int]()

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP, keep=False)
            (record,) = client.registry.records()
            client.registry.write(replace(record, owner=DEAD, kept=True))
            way.delay_s = 0.02
            await asyncio.gather(client.acquire(OTHER), client.acquire(SIP))
            way.delay_s = 0

    run(work())
    assert removed_before == [0, 1, 1]


def test_a_description_is_remembered_as_the_router_keeps_it(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(upnp=FakeWay(UPNP)) as client:
            for description in ("a phone", "ein Telefon in der K\u00fcche"):
                mapping = await client.acquire(replace(SIP, description=description), keep=False)
            assert mapping.description == "ein Telefon in der K?che"

    run(work())
