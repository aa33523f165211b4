"""The UPnP client against a fake router on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    LocalAddressError,
    MappingError,
    NoResponseError,
    NoRouterError,
    TransportError,
)
from nattools.upnp.client import Igd, discover, open_igd
from nattools.upnp.faults import (
    ActionNotAuthorizedError,
    ConflictInMappingEntryError,
    NoSuchEntryError,
)
from nattools.upnp.igd import AddPinhole, DeletePinhole, GetStatusInfo
from tests.fakes.igd import FakeIgd
from tests.fakes.igd_descriptions import IP1, ROOT1, ROOT2, Behaviour, Entry
from tests.fakes.igd_hostile import behaviour, hang_up, never_answer, respond

T = TypeVar("T")

UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP
ADDRESS = f"127.{os.getpid() % 250}.77.71"  # two runs side by side do not meet
GATEWAY = ip_address(ADDRESS)
PUBLIC = IPv4Address("11.22.33.2")
THEIRS = Entry(5060, "UDP", "192.168.0.77", 5060, 600, "theirs")
WAN_DEVICE_1 = "urn:schemas-upnp-org:service:WANIPConnection:1"


def sockets() -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the listing's own
    return sum(link.startswith("socket:") for link in links)


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end, and see that nothing is left behind."""

    async def checked() -> T:
        before = sockets()
        try:
            async with asyncio.timeout(20):
                return await coroutine
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert sockets() == before

    return asyncio.run(checked())


def fake(conduct: Behaviour | None = None) -> FakeIgd:
    return FakeIgd(conduct, address=ADDRESS)


async def found(*, timeout_s: float = 10.0, grace_s: float = 0.01) -> list[Igd]:
    """Search for the fake router, with time to spare: nothing but the end of the grace ends it."""
    return await discover(gateway=GATEWAY, timeout_s=timeout_s, grace_s=grace_s)


async def acquired_port(igd: Igd, *, external_port: int | None = None) -> int:
    done = await igd.acquire(
        Endpoint(igd.local, 5060), UDP, external_port=external_port, lease_s=600, description="a test"
    )
    return done.external_port


class TestDiscover:
    def test_a_router_is_known_by_what_it_says(self) -> None:
        async def main() -> None:
            async with fake():
                [igd] = await found()
            assert str(igd) == f"nattools Fake IGD 1 at {ADDRESS}"
            assert igd.host == GATEWAY
            assert igd.local.is_loopback
            assert igd.status is not None
            assert igd.status.is_connected
            assert igd.is_online
            assert igd.external_address == PUBLIC
            assert igd.service.version == 2
            assert igd.firewall is not None
            assert igd.boot_id == 7

        run(main())

    @pytest.mark.parametrize(
        "name",
        [
            "first-device-only",
            "gateway-and-wps",
            "unicast-only",
            "new-port",
            "motley-headers",
            "lower-case-headers",
            "upper-case-headers",
            "bare-line-feeds",
            "notify",
            "invalid-uuid",
            "dsl-forum",
            "livebox",
            "url-base",
            "absolute-control",
            "relative-control",
            "no-scpd",
            "bogus-scpd",
            "one-segment",
            "strict-http",
            "naive-xml",
            "both-versions",
            "answers-twice",
        ],
    )
    def test_a_router_with_quirks_is_found_once(self, name: str) -> None:
        async def main() -> None:
            async with fake(behaviour(name)):
                [igd] = await found()
            assert igd.is_online

        run(main())

    def test_of_two_connections_the_one_that_is_up_comes_first(self) -> None:
        async def main() -> None:
            async with fake(behaviour("two-wans")):
                up, down = await found(grace_s=0.2)
            assert (up.service.control.target, up.external_address) == ("/ctl/2", PUBLIC)
            assert (down.service.control.target, down.is_online) == ("/ctl/1", False)

        run(main())

    @pytest.mark.parametrize(
        ("name", "address"),
        [
            ("no-address", None),
            ("address-zero", None),
            ("address-loopback", IPv4Address("127.0.0.1")),
            ("address-private", IPv4Address("192.168.9.2")),
            ("address-shared", IPv4Address("100.64.0.2")),
        ],
    )
    def test_a_router_without_a_public_address_is_found_and_not_online(
        self, name: str, address: IPv4Address | None
    ) -> None:
        async def main() -> None:
            async with fake(behaviour(name)):
                [igd] = await found()
            assert (igd.external_address, igd.is_online) == (address, False)

        run(main())

    def test_a_router_that_leaves_a_question_unanswered_is_found_when_the_time_is_nearly_over(self) -> None:
        async def main() -> None:
            async with fake(Behaviour(conduct={"GetStatusInfo": never_answer()})):
                [igd] = await found(timeout_s=1)
            assert (igd.status, igd.external_address) == (None, PUBLIC)

        run(main())

    @pytest.mark.parametrize(
        "conduct",
        [
            behaviour("no-wan"),
            Behaviour(conduct={"description": never_answer()}),
            Behaviour(conduct={"description": hang_up()}),
            Behaviour(conduct={"description": respond("404 Not Found")}),
            Behaviour(conduct={"description": respond("200 OK", "<html>")}),
            Behaviour(conduct={"control": hang_up()}),
            Behaviour(conduct={"control": respond("200 OK", "<html/>")}),
            Behaviour(answers_unicast=False),
            behaviour("location-other-host"),
            behaviour("location-loopback"),
            behaviour("description-redirects"),
        ],
    )
    def test_what_is_no_router_is_passed_over_in_silence(
        self, conduct: Behaviour, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with fake(conduct) as igd:
                assert await found(timeout_s=0.4) == []
                assert igd.decoy_hits == []

        with caplog.at_level(logging.INFO):
            run(main())
        assert not caplog.records

    def test_nothing_is_found_where_nothing_is(self) -> None:
        run(self._finds_nothing())

    async def _finds_nothing(self) -> None:
        assert await found(timeout_s=0.05) == []

    @pytest.mark.parametrize("after_s", [0, 0.001, 0.02, 0.2])
    def test_a_search_that_is_cancelled_leaves_nothing_behind(self, after_s: float) -> None:
        async def main() -> None:
            async with fake(Behaviour(conduct={"control": never_answer()})):
                search = asyncio.create_task(found())
                await asyncio.sleep(after_s)
                search.cancel()
                with pytest.raises(asyncio.CancelledError):
                    async with asyncio.timeout(5):  # the questions that are open would take 8 s
                        await search

        run(main())

    def test_many_answers_cost_few_requests(self) -> None:
        async def main() -> None:
            async with fake(behaviour("flood")) as igd:
                assert await found(timeout_s=1) == []
                asked = [one for one in igd.served if one.kind == "http"]
            assert 0 < len(asked) <= 16

        run(main())

    def test_an_interface_must_be_there(self) -> None:
        async def main() -> None:
            with pytest.raises(LocalAddressError, match="no interface nowhere0"):
                await discover(interface="nowhere0")

        run(main())


class TestOpenIgd:
    def test_a_router_is_asked_by_the_url_of_its_description(self) -> None:
        async def main() -> None:
            async with fake() as router:
                [igd] = await open_igd(router.url)
            assert igd.is_online

        run(main())

    @pytest.mark.parametrize(
        ("conduct", "error", "message"),
        [
            (behaviour("no-wan"), NoRouterError, "no WAN connection"),
            (Behaviour(conduct={"description": respond("404 Not Found")}), DecodeError, "HTTP status 404"),
            (Behaviour(conduct={"description": hang_up()}), DisconnectedError, "GET http"),
            (Behaviour(conduct={"control": hang_up()}), DisconnectedError, "GetStatusInfo of nattools"),
        ],
    )
    def test_what_is_no_router_is_an_error(
        self, conduct: Behaviour, error: type[Exception], message: str
    ) -> None:
        async def main() -> None:
            async with fake(conduct) as router:
                with pytest.raises(error, match=message):
                    await open_igd(router.url)

        run(main())

    @pytest.mark.parametrize(
        "url",
        [
            "http://8.8.8.8:5000/rootDesc.xml",
            "http://router.example:5000/rootDesc.xml",
            "https://192.168.0.1/rootDesc.xml",
            "http://169.254.1.1/rootDesc.xml",
        ],
    )
    def test_a_url_away_from_this_network_is_refused_and_nothing_asked(self, url: str) -> None:
        async def main() -> None:
            with pytest.raises(DecodeError):
                await open_igd(url)

        run(main())


class TestCall:
    def test_an_error_names_the_router_and_the_action(self) -> None:
        async def main() -> None:
            async with fake(behaviour("not-permitted")):
                [igd] = await found()
                with pytest.raises(ActionNotAuthorizedError) as caught:
                    await igd.acquire(
                        Endpoint(igd.local, 5060), UDP, external_port=5060, lease_s=600, description=""
                    )
            assert caught.value.code == 606
            assert str(caught.value).startswith(
                f"nattools Fake IGD 1 at {ADDRESS}: AddPortMapping was refused: 606 "
            )

        run(main())

    def test_silence_is_named_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nattools.upnp.client.REQUEST_TIMEOUT_S", 0.2)

        async def main() -> None:
            async with fake() as router:
                [igd] = await found()
                router.behaviour = Behaviour(conduct={"GetStatusInfo": never_answer()})
                with pytest.raises(
                    NoResponseError, match=f"^GetStatusInfo of nattools Fake IGD 1 at {ADDRESS}: "
                ):
                    await igd.call(GetStatusInfo())

        run(main())

    def test_a_router_with_another_port_is_found_again(self) -> None:
        async def main() -> None:
            async with fake():
                [igd] = await found()
            before = igd.location
            async with fake() as moved:
                assert await igd.external_ip_address() == PUBLIC
                assert str(igd.location) == moved.url
            assert igd.location != before

        run(main())

    def test_a_router_with_another_path_is_found_again(self) -> None:
        async def main() -> None:
            async with fake() as router:
                [igd] = await found()
                elsewhere = replace(ROOT2, wan=(replace(IP1, control="/new/ctl"),), firewall=None)
                router.behaviour = Behaviour(roots=(elsewhere,))
                assert await igd.external_ip_address() == PUBLIC
            assert igd.service.control.target == "/new/ctl"
            assert igd.firewall is None

        run(main())

    def test_a_router_that_is_gone_is_an_error_that_says_so(self) -> None:
        async def main() -> None:
            async with fake():
                [igd] = await found()
            with pytest.raises(NoRouterError, match="does not answer any more"):
                await igd.external_ip_address()

        run(main())

    def test_pinholes_are_asked_of_the_firewall(self) -> None:
        async def main() -> None:
            async with fake():
                [igd] = await found()
                unique_id = await igd.call(AddPinhole(IPv6Address("2001:db8::1"), 5060, UDP, 600))
                await igd.call(DeletePinhole(unique_id))
                with pytest.raises(NoSuchEntryError):
                    await igd.call(DeletePinhole(unique_id))

        run(main())

    def test_a_router_without_a_firewall_service_has_no_pinholes(self) -> None:
        async def main() -> None:
            async with fake(behaviour("igd1")):
                [igd] = await found()
                with pytest.raises(MappingError, match="no IPv6 firewall"):
                    await igd.call(DeletePinhole(1))

        run(main())


class TestAcquire:
    @pytest.mark.parametrize("name", ["igd1", "igd2"])
    def test_the_same_port_is_asked_for_first_and_read_back(self, name: str) -> None:
        async def main() -> None:
            async with fake(behaviour(name)) as router:
                [igd] = await found()
                router.calls.clear()
                assert await acquired_port(igd) == 5060
                asked, read_back = router.calls
            assert asked[0] == "AddPortMapping"
            assert asked[1] == {
                "NewRemoteHost": "",
                "NewExternalPort": "5060",
                "NewProtocol": "UDP",
                "NewInternalPort": "5060",
                "NewInternalClient": str(igd.local),
                "NewEnabled": "1",
                "NewPortMappingDescription": "a test",
                "NewLeaseDuration": "600",
            }
            assert read_back[0] == "GetSpecificPortMappingEntry"

        run(main())

    def test_that_a_router_knows_no_leases_is_remembered(self) -> None:
        async def main() -> None:
            async with fake(behaviour("igd1", "permanent-only")) as router:
                [igd] = await found()
                await acquired_port(igd)
                await acquired_port(igd)
                leases = [a["NewLeaseDuration"] for name, a in router.calls if name == "AddPortMapping"]
            assert leases == ["600", "0", "0"]

        run(main())

    def test_an_external_port_that_is_taken_is_an_error_where_only_that_will_do(self) -> None:
        async def main() -> None:
            async with fake(Behaviour(entries=(THEIRS,))):
                [igd] = await found()
                with pytest.raises(ConflictInMappingEntryError):
                    await acquired_port(igd, external_port=5060)

        run(main())

    def test_another_port_is_taken_where_any_will_do(self) -> None:
        async def main() -> None:
            async with fake(Behaviour(entries=(THEIRS,))) as router:
                [igd] = await found()
                port = await acquired_port(igd)
                rows = {row.external_port: row.internal_client for row in router.table.entries}
            assert port != 5060
            assert rows == {5060: "192.168.0.77", port: str(igd.local)}

        run(main())

    def test_a_mapping_that_was_made_in_silence_is_found_out(self) -> None:
        async def main() -> None:
            async with fake(behaviour("maps-without-answer")):
                [igd] = await found()
                igd.task_timeout_s = 0.5
                assert await acquired_port(igd) == 5060

        run(main())

    def test_a_router_that_refuses_slowly_is_not_asked_for_ever(self) -> None:
        async def main() -> None:
            async with fake(Behaviour(fault_on={"AddPortMapping": 718, "AddAnyPortMapping": 718})) as router:
                [igd] = await found()
                igd.task_timeout_s = 0.6
                router.behaviour = behaviour("slow-refusals")
                with pytest.raises(NoResponseError, match="AddPortMapping of nattools"):
                    await acquired_port(igd)
                asked = [name for name, _ in router.calls if name.startswith("Add")]
            assert asked == ["AddPortMapping"] * 2  # once more after the mapping was not shown

        run(main())

    def test_who_waits_long_for_routers_lets_them_take_their_time(self) -> None:
        async def main() -> None:
            async with fake():
                [patient] = await found(timeout_s=10)
                [usual] = await found(timeout_s=1)
            assert (patient.task_timeout_s, usual.task_timeout_s) == (10, 2.5)

        run(main())


class TestRelease:
    async def _released(self, conduct: Behaviour, *mine: Entry) -> tuple[bool, list[Entry], list[str]]:
        async with fake(conduct) as router:
            [igd] = await found()
            for entry in mine:
                router.table._store(replace(entry, internal_client=str(igd.local)))
            router.calls.clear()
            removed = await igd.release(Endpoint(igd.local, 5060), UDP, 5060)
            return removed, router.table.entries, [name for name, _ in router.calls]

    def test_an_own_mapping_is_removed_and_looked_for_afterwards(self) -> None:
        removed, rows, calls = run(self._released(Behaviour(), THEIRS))
        assert (removed, rows) == (True, [])
        assert calls == ["GetSpecificPortMappingEntry", "DeletePortMapping", "GetSpecificPortMappingEntry"]

    def test_a_mapping_of_another_host_is_left_alone(self) -> None:
        removed, rows, calls = run(self._released(Behaviour(entries=(THEIRS,), is_secure=False)))
        assert (removed, rows) == (False, [THEIRS])
        assert calls == ["GetSpecificPortMappingEntry"]

    def test_a_mapping_to_another_port_of_this_host_is_left_alone(self) -> None:
        removed, rows, _ = run(self._released(Behaviour(), replace(THEIRS, internal_port=5061)))
        assert (removed, len(rows)) == (False, 1)

    def test_a_mapping_that_is_gone_is_no_error(self) -> None:
        removed, _, calls = run(self._released(Behaviour()))
        assert (removed, calls) == (False, ["GetSpecificPortMappingEntry"])

    def test_a_router_that_cannot_show_a_mapping_is_told_to_remove_it(self) -> None:
        mute = Behaviour(fault_on={"GetSpecificPortMappingEntry": 401})
        removed, rows, _ = run(self._released(mute, THEIRS))
        assert (removed, rows) == (True, [])

    def test_a_router_that_only_says_that_it_removed_it_is_found_out(self) -> None:
        done = Behaviour(
            conduct={
                "DeletePortMapping": respond(
                    "200 OK",
                    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
                    f'<u:DeletePortMappingResponse xmlns:u="{WAN_DEVICE_1}"/></s:Body></s:Envelope>',
                )
            }
        )
        with pytest.raises(MappingError, match="is still there"):
            run(self._released(done, THEIRS))


class TestEntries:
    async def _entries(self, conduct: Behaviour) -> tuple[list[int], list[str]]:
        async with fake(conduct) as router:
            [igd] = await found()
            router.calls.clear()
            rows = await igd.entries()
            return [row.external_port for row in rows], [name for name, _ in router.calls]

    ROWS = (THEIRS, replace(THEIRS, protocol="TCP", external_port=80))

    def test_an_igd2_gives_its_list(self) -> None:
        ports, calls = run(self._entries(Behaviour(entries=self.ROWS)))
        assert sorted(ports) == [80, 5060]
        assert calls == ["GetListOfPortMappings"] * 2

    def test_an_igd1_is_asked_for_one_after_the_other(self) -> None:
        ports, calls = run(self._entries(Behaviour(roots=(ROOT1,), entries=self.ROWS)))
        assert ports == [5060, 80]
        assert calls == ["GetGenericPortMappingEntry"] * 3

    @pytest.mark.parametrize("code", [401, 501, 602, 606])
    def test_an_igd2_without_a_list_is_asked_for_one_after_the_other(self, code: int) -> None:
        ports, _ = run(self._entries(Behaviour(entries=self.ROWS, fault_on={"GetListOfPortMappings": code})))
        assert ports == [5060, 80]

    def test_no_mappings_are_an_empty_list(self) -> None:
        assert run(self._entries(Behaviour()))[0] == []
        assert run(self._entries(Behaviour(roots=(ROOT1,))))[0] == []

    def test_the_same_row_for_ever_is_one(self) -> None:
        endless = Behaviour(roots=(ROOT1,), endless_entries=lambda index: THEIRS)
        assert run(self._entries(endless))[0] == [5060]

    def test_rows_without_end_end_at_a_thousand(self) -> None:
        endless = Behaviour(
            roots=(ROOT1,), endless_entries=lambda index: replace(THEIRS, external_port=1 + index)
        )
        assert len(run(self._entries(endless))[0]) <= 1000

    def test_a_router_that_is_slow_gives_what_it_can_tell_in_time(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            third = asyncio.Event()

            def row(index: int) -> Entry:
                if index == 3:
                    third.set()
                return replace(THEIRS, external_port=5060 + index)

            endless = Behaviour(roots=(ROOT1,), endless_entries=row)
            async with fake(endless) as router:
                [igd] = await found()
                igd.task_timeout_s = 0.3
                listing = asyncio.create_task(igd.entries())
                await third.wait()
                router.behaviour = Behaviour(roots=(ROOT1,), conduct={"control": never_answer()})
                listed = await listing
            assert [entry.external_port for entry in listed[:3]] == [5060, 5061, 5062]

        with caplog.at_level(logging.WARNING):
            run(main())
        assert "is slow: of its mappings only the first" in caplog.text

    def test_a_router_that_gives_no_rows_at_all_is_an_error(self) -> None:
        with pytest.raises(MappingError, match="401"):
            run(self._entries(Behaviour(roots=(ROOT1,), fault_on={"GetGenericPortMappingEntry": 401})))

    def test_a_connection_that_ends_is_an_error(self) -> None:
        with pytest.raises(TransportError):
            run(self._entries(Behaviour(roots=(ROOT1,), conduct={"GetGenericPortMappingEntry": hang_up()})))
