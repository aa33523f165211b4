"""What a router says unasked: its announcements and events, from a fake router on loopback.

Loopback has no multicast, so announcements are handed to the watch; in tests/lab they are real.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import TypeVar

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DisconnectedError
from nattools.net.http import HttpRequest, exchange
from nattools.net.udp import OnDatagram
from nattools.upnp.client import ChangeKind, Igd, RouterChange, open_igd, watch
from nattools.upnp.location import Location
from tests.fakes.igd import FakeIgd
from tests.fakes.igd_descriptions import IP2, ROOT2, Behaviour, Places
from tests.fakes.igd_hostile import behaviour, hang_up, never_answer, respond

T = TypeVar("T")

ADDRESS = f"127.{os.getpid() % 250}.77.72"  # two runs side by side do not meet
SSDP = Endpoint.of(ADDRESS, 1900)
OLD, NEW = IPv4Address("11.22.33.2"), IPv4Address("11.22.33.9")
CHANGED_TO_NEW = RouterChange(ChangeKind.ADDRESS_CHANGED, NEW)


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end, and see that nothing is left behind."""

    async def checked() -> T:
        try:
            async with asyncio.timeout(20):
                return await coroutine
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(checked())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - what it is about has no event to wait for
        await asyncio.sleep(0.005)


class Watched:
    """A fake router that is watched, and what was said of it."""

    def __init__(self, router: FakeIgd, igd: Igd, changes: list[RouterChange]) -> None:
        self.router = router
        self.igd = igd
        self.changes = changes

    def asked(self, method: str) -> list[dict[str, str]]:
        """The headers of the requests about events."""
        return [dict(s.arguments) for s in self.router.served if s.kind == "gena" and s.what == method]

    async def is_subscribed(self, times: int = 1) -> None:
        """Wait for the initial event of the last of so many subscriptions."""
        await until(lambda: len([s for s in self.asked("SUBSCRIBE") if "sid" not in s]) == times)
        await until(lambda: any(s.sequence for s in self.router._subscribers.values()))
        await until(lambda: not self.router._tasks)  # it has been answered, too

    async def next_change(self) -> RouterChange:
        await until(lambda: self.changes)
        return self.changes.pop(0)

    @property
    def callback(self) -> Location:
        return Location.parse(self.asked("SUBSCRIBE")[0]["callback"].strip("<>"))


@asynccontextmanager
async def watched(conduct: Behaviour | None = None) -> AsyncIterator[Watched]:
    changes: list[RouterChange] = []
    async with FakeIgd(conduct, address=ADDRESS) as router:
        [igd] = await open_igd(router.url)
        async with watch(igd, changes.append):
            yield Watched(router, igd, changes)


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> OnDatagram:
    """Hands a datagram to the watch, as if it had come by multicast."""
    receivers: list[OnDatagram] = []

    async def no_listener(igd: Igd, on_datagram: OnDatagram) -> None:
        receivers.append(on_datagram)

    monkeypatch.setattr("nattools.upnp.server._announcements_to", no_listener)

    def announce(data: bytes, source: Endpoint) -> None:
        receivers[-1](data, source)

    return announce


def notification(kind: str, boot_id: int = 7, usn: str = ROOT2.udn) -> bytes:
    return (
        "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"
        f"LOCATION: http://{ADDRESS}:5000/rootDesc.xml\r\nNT: {ROOT2.type}\r\n"
        f"NTS: ssdp:{kind}\r\nUSN: {usn}::{ROOT2.type}\r\nBOOTID.UPNP.ORG: {boot_id}\r\n\r\n"
    ).encode()


class TestEvents:
    def test_the_first_event_is_no_change_and_another_address_is(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                assert w.changes == []
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW

        run(main())

    @pytest.mark.parametrize("address", ["", "0.0.0.0", "junk"])
    def test_an_address_that_is_none_is_told_as_none(self, address: str) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                w.router.change_external_address(address)
                assert await w.next_change() == RouterChange(ChangeKind.ADDRESS_CHANGED, None)

        run(main())

    def test_a_connection_that_is_down_has_no_address(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                for subscriber in w.router._subscribers.values():
                    subscriber.service = replace(subscriber.service, status="Disconnected")
                w.router.change_external_address(str(OLD))
                assert await w.next_change() == RouterChange(ChangeKind.ADDRESS_CHANGED, None)

        run(main())

    def test_an_initial_event_before_the_answer_to_subscribe_counts(self) -> None:
        async def late(writer: asyncio.StreamWriter, places: Places) -> None:
            await asyncio.sleep(0.1)
            writer.write(b"HTTP/1.1 200 OK\r\nSID: uuid:early\r\nContent-Length: 0\r\n\r\n")

        async def main() -> None:
            async with watched(Behaviour(sid="uuid:early", conduct_after={"events": late})) as w:
                await w.is_subscribed()
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW

        run(main())

    def test_a_change_that_the_router_never_tells_is_asked_for_after_an_event(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                w.router.table.external_address = str(NEW)  # as miniupnpd does while it sends another event
                assert await w.next_change() == CHANGED_TO_NEW

        run(main())

    def test_an_event_without_news_is_no_change(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                w.router.change_external_address(str(OLD))
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW
                assert w.changes == []

        run(main())

    def test_the_end_of_the_watch_ends_the_subscription(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
            assert [headers["sid"] for headers in w.asked("UNSUBSCRIBE")] != []

        run(main())

    def test_a_router_that_keeps_silent_at_the_end_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nattools.upnp.server._UNSUBSCRIBE_TIMEOUT_S", 0.05)

        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                w.router.behaviour = Behaviour(conduct={"events": never_answer()})

        run(main())

    def test_a_subscription_is_renewed_at_half_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nattools.upnp.gena.LEAST_TIMEOUT_S", 0)

        async def main() -> None:
            async with watched(Behaviour(event_timeout="Second-1")) as w:
                await until(lambda: len(w.asked("SUBSCRIBE")) == 3)
                first, *renewals = w.asked("SUBSCRIBE")
                assert "callback" in first
                assert all("sid" in renewal and "callback" not in renewal for renewal in renewals)
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW

        run(main())

    def test_a_forgotten_subscription_is_made_anew_and_says_what_was_missed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nattools.upnp.gena.LEAST_TIMEOUT_S", 0)
        monkeypatch.setattr("nattools.upnp.server._SETTLED_AFTER_S", 60)  # only the initial event can tell

        async def main() -> None:
            async with watched(Behaviour(event_timeout="Second-1")) as w:
                await w.is_subscribed()
                w.router._subscribers.clear()
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW
                await until(lambda: len([s for s in w.asked("SUBSCRIBE") if "callback" in s]) == 2)

        run(main())

    def test_a_gap_in_the_events_makes_a_new_subscription(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                for subscriber in w.router._subscribers.values():
                    subscriber.sequence += 3
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW
                await until(lambda: len([s for s in w.asked("SUBSCRIBE") if "callback" in s]) == 2)

        run(main())

    @pytest.mark.parametrize(
        "conduct",
        [
            behaviour("no-events"),
            behaviour("events-refused"),
            Behaviour(conduct={"events": respond("404 Not Found")}),
            Behaviour(conduct={"events": respond("200 OK", "", "SID: \x01")}),
            Behaviour(conduct={"events": hang_up()}),
        ],
    )
    def test_a_router_that_sends_no_events_is_watched_without(
        self, conduct: Behaviour, announce: OnDatagram
    ) -> None:
        async def main() -> None:
            async with watched(conduct) as w:
                await until(lambda: any(s.what.startswith("SUBSCRIBE") for s in w.router.served))
                announce(notification("byebye"), SSDP)
                assert await w.next_change() == RouterChange(ChangeKind.GONE, OLD)

        run(main())

    @pytest.mark.parametrize("url", ["", "http://127.0.77.99:5000/evt"])
    def test_without_a_url_on_the_router_nothing_is_subscribed_to(
        self, url: str, announce: OnDatagram
    ) -> None:
        async def main() -> None:
            root = replace(ROOT2, wan=(replace(IP2, events=url),))
            async with watched(Behaviour(roots=(root,))) as w:
                assert w.igd.service.events is None
                announce(notification("byebye"), SSDP)
                assert await w.next_change() == RouterChange(ChangeKind.GONE, OLD)
                assert w.asked("SUBSCRIBE") == []

        run(main())


class TestCallbacks:
    """What else may come to the callback."""

    async def _status(
        self, w: Watched, *, method: str = "NOTIFY", path: str = "", sid: str = "", body: bytes = b""
    ) -> int:
        event = (
            b'<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0"><e:property>'
            b"<ExternalIPAddress>11.22.33.66</ExternalIPAddress></e:property></e:propertyset>"
        )
        headers = (
            *(("NT", "upnp:event"), ("NTS", "upnp:propchange")),
            *(("SID", sid or next(iter(w.router._subscribers))), ("SEQ", "1")),
        )
        request = HttpRequest(method, path or w.callback.target, headers, body or event)
        response, _ = await exchange(w.callback.endpoint, request, local_address=ip_address(ADDRESS))
        return response.status

    @pytest.mark.parametrize(
        ("differs", "status"),
        [
            ({"sid": "uuid:somebody-elses"}, 412),
            ({"path": "/"}, 404),
            ({"method": "POST"}, 404),
            ({"body": b"<propertyset>"}, 400),
        ],
    )
    def test_what_is_no_event_of_the_subscription_is_refused(
        self, differs: dict[str, str | bytes], status: int
    ) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                assert await self._status(w, **differs) == status  # type: ignore[arg-type]  # by parameters
                assert w.changes == []

        run(main())

    def test_an_event_from_the_router_is_taken_once(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                for _ in range(2):
                    assert await self._status(w) == 200
                assert w.changes == [RouterChange(ChangeKind.ADDRESS_CHANGED, IPv4Address("11.22.33.66"))]

        run(main())

    def test_an_event_from_elsewhere_gets_no_answer(self) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                request = HttpRequest("NOTIFY", w.callback.target)
                with pytest.raises(DisconnectedError):
                    await exchange(w.callback.endpoint, request, local_address=ip_address("127.0.77.99"))

        run(main())


class TestAnnouncements:
    def test_a_farewell_and_a_return_are_told_and_events_subscribed_to_again(
        self, announce: OnDatagram
    ) -> None:
        async def main() -> None:
            async with watched() as w:
                await w.is_subscribed()
                w.router._subscribers.clear()
                announce(notification("byebye"), SSDP)
                announce(notification("alive", 8), SSDP)
                assert await w.next_change() == RouterChange(ChangeKind.GONE, OLD)
                assert await w.next_change() == RouterChange(ChangeKind.RESTARTED, OLD)
                await w.is_subscribed(2)
                w.router.change_external_address(str(NEW))
                assert await w.next_change() == CHANGED_TO_NEW

        run(main())

    def test_a_burst_of_announcements_is_one_restart(self, announce: OnDatagram) -> None:
        async def main() -> None:
            async with watched() as w:
                for boot_id in (7, *(8 for _ in range(12))):
                    announce(notification("alive", boot_id), SSDP)
                assert w.changes == [RouterChange(ChangeKind.RESTARTED, OLD)]

        run(main())

    @pytest.mark.parametrize(
        ("data", "source"),
        [
            (b"", SSDP),
            (b"\xff" * 9000, SSDP),
            (b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\nST: ssdp:all\r\n\r\n', SSDP),
            (notification("byebye", usn="uuid:another-router"), Endpoint.of("127.0.77.99", 1900)),
        ],
    )
    def test_what_others_send_there_is_no_news(
        self, data: bytes, source: Endpoint, announce: OnDatagram
    ) -> None:
        async def main() -> None:
            async with watched() as w:
                announce(data, source)
                assert w.changes == []

        run(main())
