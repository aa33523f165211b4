"""The mapping client with routers that do as they are told: what it asks, believes, keeps and gives back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.endpoint import AddressClass, Endpoint, TransportProtocol
from nattools.errors import (
    LocalAddressError,
    MappingError,
    NoResponseError,
    NoRouterError,
    PcpError,
    UpnpError,
)
from nattools.mapping import client as client_module
from nattools.mapping.registry import Registry
from nattools.mapping.upkeep import ChangeKind
from nattools.mapping.way import Network
from nattools.mapping.ways.pcp import PcpWay
from nattools.mapping.ways.routers import find_network
from nattools.mapping.ways.upnp import UpnpWay
from nattools.upnp.igd import PortMappingEntry
from tests.unit.mapping.ways import (
    DEAD,
    NAT_PMP,
    NOBODY,
    PCP,
    SIP,
    UPNP,
    FakeWay,
    OpenClient,
    news,
    opener,
    run,
)


def test_the_mapping_is_what_the_router_granted(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP, lease_s=120)) as client:
            mapping = await client.acquire(SIP)
            assert mapping.internal == Endpoint.parse("192.168.0.108:5060")
            assert mapping.external == Endpoint.parse("11.22.33.2:5060")
            assert (mapping.lease_s, mapping.protocol) == (120, PCP)

    run(work())


def test_the_preferred_protocol_is_asked_alone(open_client: OpenClient) -> None:
    pcp, nat_pmp, upnp = FakeWay(PCP), FakeWay(NAT_PMP), FakeWay(UPNP)

    async def work() -> None:
        async with open_client(pcp, nat_pmp, upnp) as client:
            await client.acquire(SIP)

    run(work())
    assert (len(pcp.asked), nat_pmp.asked, upnp.asked) == (1, [], [])


def test_nobody_waits_for_a_protocol_that_stays_silent(open_client: OpenClient) -> None:
    async def work() -> None:
        silent = FakeWay(PCP, answers_after_s=3600)
        async with open_client(pcp=silent, upnp=FakeWay(UPNP)) as client:
            assert (await client.acquire(SIP)).protocol is UPNP

    run(work())


def test_what_one_protocol_refuses_the_next_may_grant(open_client: OpenClient) -> None:
    async def work() -> None:
        refused = FakeWay(PCP, refusals=[PcpError("not authorized", code=2)])
        async with open_client(pcp=refused, upnp=FakeWay(UPNP)) as client:
            assert (await client.acquire(SIP)).protocol is UPNP

    run(work())


def test_the_refusal_is_raised_rather_than_the_silence_of_others(open_client: OpenClient) -> None:
    async def work() -> None:
        refused = FakeWay(UPNP, refusals=[UpnpError("718 it is taken", code=718)])
        async with open_client(upnp=refused) as client:
            with pytest.raises(UpnpError, match="718"):
                await client.acquire(SIP)
            assert client.registry.records() == []

    run(work())


def test_without_a_router_every_protocol_is_accounted_for(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=NoResponseError("no answer from 192.168.0.1")) as client:
            with pytest.raises(NoRouterError, match=r"pcp: no answer; .*upnp: nobody .*Turn on"):
                await client.acquire(SIP)
            with pytest.raises(NoRouterError):
                await client.external_address()

    run(work())


def test_a_public_address_is_preferred_to_a_preferred_protocol(open_client: OpenClient) -> None:
    async def work() -> None:
        behind = FakeWay(NAT_PMP, known_external_address=ip_address("100.64.0.2"))
        async with open_client(nat_pmp=behind, upnp=FakeWay(UPNP)) as client:
            mapping = await client.acquire(SIP)
            assert mapping.protocol is UPNP
            assert mapping.public is not None

    run(work())


def test_a_second_nat_is_said_when_there_is_nothing_better(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(upnp=FakeWay(UPNP, known_external_address=ip_address("10.0.0.2"))) as client:
            mapping = await client.acquire(SIP)
            assert (mapping.public, mapping.behind_second_nat) == (None, True)
            assert (await client.survey()).address_class is AddressClass.PRIVATE

    run(work())


def test_the_survey_says_who_answered_and_why_others_did_not(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(nat_pmp=FakeWay(NAT_PMP), upnp=FakeWay(UPNP)) as client:
            survey = await client.survey()
            assert set(survey.found) == {NAT_PMP, UPNP}
            assert survey.failed == {PCP: NOBODY}
            assert str(survey.external_address) == "11.22.33.2"

    run(work())


def test_the_mapping_is_released_at_the_end(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await client.acquire(replace(SIP, internal=Endpoint.parse("0.0.0.0:5062")))
            assert len(Registry(tmp_path).records()) == 2

    run(work())
    assert sorted(mapping.internal.port for mapping in way.released) == [5060, 5062]
    assert way.closed
    assert not list(tmp_path.iterdir())


def test_a_mapping_that_is_not_kept_stays_and_is_remembered(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP, keep=False)

    run(work())
    assert way.released == []
    (record,) = Registry(tmp_path).records()
    assert (record.kept, record.granted, record.mapping.nonce) == (False, True, b"nonce-of-12b")


def test_asked_for_again_it_is_the_same_mapping(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        for _ in range(2):
            async with open_client(pcp=way) as client:
                await client.acquire(SIP, keep=False)

    run(work())
    assert way.asked[1].nonce == way.asked[0].nonce
    assert len(Registry(tmp_path).records()) == 1


def test_a_mapping_that_another_process_keeps_is_left_alone(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP)) as client:
            await client.acquire(SIP)
            with pytest.raises(MappingError, match="is kept by process"):
                await client.acquire(SIP)

    run(work())


def test_a_router_that_does_not_answer_delays_the_end_by_seconds_only(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(client_module, "_RELEASE_S", 0.05)
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            way.stuck = True

    run(work())
    assert "is not removed, the next start will" in caplog.text
    assert len(Registry(tmp_path).records()) == 1


@pytest.mark.parametrize("reason", ["the router restarted", "the router has another external address"])
def test_news_of_the_router_renew_the_mapping_at_once(open_client: OpenClient, reason: str) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            before = await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.known_external_address = ip_address("11.22.33.9")
            way.on_change(reason)
            change = await news(client)
            assert (change.kind, change.reason, change.previous) == (ChangeKind.CHANGED, reason, before)
            assert str(change.mapping.external) == "11.22.33.9:5060"
            assert way.asked[1].nonce == way.asked[0].nonce

    run(work())


def test_a_mapping_is_renewed_at_half_of_its_lease(open_client: OpenClient) -> None:
    async def work() -> None:
        async with open_client(pcp=FakeWay(PCP, lease_s=1)) as client:
            loop = asyncio.get_running_loop()
            started = loop.time()
            await client.acquire(SIP)
            assert (await news(client)).kind is ChangeKind.RENEWED
            assert loop.time() - started >= 0.5

    run(work())


def test_lost_and_restored(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.refusals = [NoResponseError("no answer")] * 2
            way.on_change("the router restarted")
            lost = await news(client)
            assert lost.kind is ChangeKind.LOST
            assert "no answer" in lost.reason
            assert (await news(client)).kind is ChangeKind.RESTORED

    run(work())


def test_a_renewal_that_waits_for_a_dead_router_is_given_up_when_it_is_back(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            way.stuck = True
            way.on_change("the router says goodbye")
            await asyncio.sleep(0.4)
            way.stuck = False
            way.on_change("the router restarted")
            assert (await news(client)).kind is ChangeKind.RENEWED

    run(work())


def test_a_flood_of_news_is_one_renewal_and_another_a_second_later(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert way.on_change is not None
            for _ in range(10_000):
                way.on_change("the router restarted")
            await news(client)
            await news(client)
            assert len(way.asked) == 3

    run(work())


def test_when_a_protocol_is_switched_off_another_takes_over(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pcp = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=pcp) as client:
            await client.acquire(SIP)
            await asyncio.sleep(0)
            assert pcp.on_change is not None
            monkeypatch.setattr(PcpWay, "open", opener(NOBODY))
            monkeypatch.setattr(UpnpWay, "open", opener(FakeWay(UPNP)))
            pcp.refusals = [NoResponseError("no answer")] * 100
            pcp.on_change("the router restarted")
            change = await news(client)
            assert (change.kind, change.mapping.protocol) == (ChangeKind.RENEWED, UPNP)
            (record,) = Registry(tmp_path).records()
            assert record.mapping.protocol is UPNP

    run(work())


def test_a_released_mapping_is_kept_no_more(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            mapping = await client.acquire(SIP)
            await client.release(mapping)
            assert way.released == [mapping]
            assert client.registry.records() == []
            with pytest.raises(MappingError, match="is not a mapping of this client's"):
                await client.renew(mapping)

    run(work())
    assert len(way.released) == 1


def test_a_mapping_can_be_renewed_by_hand(open_client: OpenClient) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            mapping = await client.acquire(SIP)
            assert await client.renew(mapping) == mapping
            assert len(way.asked) == 2

    run(work())


def test_what_a_dead_process_left_is_removed_first(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            await client.acquire(SIP)
            (record,) = client.registry.records()
            client.registry.write(replace(record, owner=DEAD))
            other = await client.acquire(replace(SIP, internal=Endpoint.parse("0.0.0.0:6000")))
            assert [mapping.internal.port for mapping in way.released] == [5060]
            assert [record.mapping for record in client.registry.records()] == [other]

    run(work())


def test_what_was_left_on_another_router_waits_for_it(open_client: OpenClient, tmp_path: Path) -> None:
    way = FakeWay(PCP)

    async def work() -> None:
        async with open_client(pcp=way) as client:
            mapping = await client.acquire(SIP, keep=False)
            (record,) = client.registry.records()
            elsewhere = replace(mapping, gateway=ip_address("10.9.9.1"))
            client.registry.write(replace(record, owner=DEAD, kept=True, mapping=elsewhere))
            await client.tidy()
            assert way.released == []
            assert len(client.registry.records()) == 1
            with pytest.raises(MappingError, match=r"is on 10\.9\.9\.1, and the router here"):
                await client.release(elsewhere)

    run(work())


@pytest.mark.parametrize(
    ("recorded", "found", "is_removed"),
    [("uuid:a", "uuid:a", True), ("uuid:a", "uuid:b", False), ("uuid:a", "", True), ("", "uuid:b", True)],
)
def test_a_router_of_the_same_address_may_be_another(
    open_client: OpenClient, recorded: str, found: str, is_removed: bool
) -> None:
    way = FakeWay(UPNP, router=found)

    async def work() -> None:
        async with open_client(upnp=way) as client:
            mapping = await client.acquire(SIP, keep=False)
            (record,) = client.registry.records()
            left = replace(record, owner=DEAD, kept=True, mapping=replace(mapping, router=recorded))
            client.registry.write(left)
            await client.tidy()
            assert bool(way.released) is is_removed
            assert bool(client.registry.records()) is not is_removed

    run(work())


def test_a_request_whose_answer_nobody_read_is_looked_for_in_the_table(
    open_client: OpenClient, tmp_path: Path
) -> None:
    internal = Endpoint.parse("192.168.0.108:5060")

    def entry(port: int, owner: Endpoint, description: str) -> PortMappingEntry:
        return PortMappingEntry(
            "", port, TransportProtocol.UDP, str(owner.ip), owner.port, True, description, None
        )

    table = [
        entry(5060, Endpoint.parse("192.168.0.20:5060"), "nattools"),
        entry(33000, internal, "nattools"),
        entry(33001, internal, "somebody's own"),
    ]
    way = FakeWay(UPNP, table=table)

    async def work() -> None:
        async with open_client(upnp=way) as client:
            mapping = await client.acquire(SIP, keep=False)
            (record,) = client.registry.records()
            client.registry.write(replace(record, owner=DEAD, mapping=mapping, granted=False))
            await client.tidy()
            assert 33000 in [released.external_port for released in way.released]
            assert 33001 not in [released.external_port for released in way.released]
            assert client.registry.records() == []

    run(work())


def test_a_timeout_leaves_a_record_since_the_mapping_may_be_there(
    open_client: OpenClient, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_client(upnp=FakeWay(UPNP, refusals=[NoResponseError("no answer")])) as client:
            with pytest.raises(NoResponseError, match="no answer"):
                await client.acquire(SIP)
            (record,) = client.registry.records()
            assert not record.granted

    run(work())


def test_a_link_local_gateway_needs_its_interface() -> None:
    with pytest.raises(LocalAddressError, match=r"needs the name of its interface .*: write fe80::1%"):
        find_network(ip_address("fe80::1"), None)
    with pytest.raises(LocalAddressError, match="needs the name of its interface"):
        find_network(ip_address("fe80::1%wlan9"), None)


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(LocalAddressError, match="there is no interface wlan9: this machine has lo"):
        find_network(None, "wlan9")


def test_a_gateway_that_is_named_is_the_only_one_that_counts() -> None:
    network = find_network(ip_address("127.0.0.1"), None)
    assert network == Network(None, ip_address("127.0.0.1"), ip_address("127.0.0.1"), gateway_is_named=True)
    assert find_network(ip_address("::1"), None).ipv6
