"""Registered phones are kept reachable, and those that are gone lose their registrations."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, cast

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocationError
from nattools.session.controller.desk import Gate
from nattools.session.controller.pings import Pings
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.guard import Guard
from nattools.session.location import (
    Bindings,
    ContactBinding,
    DecisionT,
    Location,
    MemoryLocation,
    Removal,
)
from nattools.session.settings import GateSettings, PingKind
from nattools.sip.message import SipMessage, compose_response
from tests.unit.session.telephone import PATIENCE_S, Telephone, gate, place

AOR = "alice@example.com"
NAT = Endpoint.of("198.51.100.1", 2753)
OTHER_NAT = Endpoint.of("198.51.100.2", 2754)
INTERVAL_S = 15.0

P = ParamSpec("P")


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to what is due next, so that nobody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(HurriedSelector(self))

    def time(self) -> float:
        return self.now


class HurriedSelector(selectors.DefaultSelector):
    """Waits by moving the clock."""

    def __init__(self, loop: HurriedLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self.loop.now += max(timeout or 0, 0)
        return super().select(0)


def hurried(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on such a loop."""

    @functools.wraps(test)
    def run(*arguments: P.args, **words: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=HurriedLoop) as runner:
            runner.run(test(*arguments, **words))

    return run


class Change:
    """What an update comes to."""

    def __init__(self, *bindings: ContactBinding) -> None:
        self.bindings: Bindings | None = bindings


class Away(MemoryLocation):
    """A location that now and then cannot be asked."""

    is_away = False

    def __init__(self) -> None:
        super().__init__()
        self.whys: list[str] = []

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        if self.is_away:
            raise LocationError("the store is away")
        decision = await super().update(address_of_record, decide, now=now)
        if isinstance(decision, Removal):
            self.whys.append(decision.why)
        return decision


class Desk:
    """A gate whose phones answer their pings, as long as they are in `living`."""

    def __init__(self, **words: Any) -> None:
        self.settings = GateSettings(keepalive_s=INTERVAL_S, dead_after=2, **words)
        self.flows = Flows(
            [
                Listener("udp:5060", "UDP", Endpoint.of("203.0.113.5", 5060)),
                Listener("tcp:5060", "TCP", Endpoint.of("203.0.113.5", 5060)),
            ]
        )
        self.flows.connected("tcp:5060#new-1", "tcp:5060", NAT)
        self.guard = Guard(GateSettings(requests_per_second=1))
        self.store = Away()
        self.sent: list[tuple[bytes, Flow]] = []
        self.living = {NAT, OTHER_NAT}
        self.pings = Pings(cast(Gate, self), self.guard)
        self.location: Location = self.pings.watched(self.store)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def send(self, data: bytes, flow: Flow) -> None:
        self.sent.append((data, flow))
        if flow.remote in self.living and data.strip():
            answer = compose_response(SipMessage.parse(data), 200, "OK", to_tag="t")
            asyncio.get_running_loop().call_soon(self.take, answer, flow)

    def take(self, answer: bytes, flow: Flow) -> None:
        assert self.pings.receive(answer, flow)

    def binding(self, **words: Any) -> ContactBinding:
        found: dict[str, Any] = {
            "contact": b"sip:alice@192.168.0.108",
            "expires_at": self.now() + 3600,
            "call_id": b"c",
            "cseq": 1,
            "received": NAT,
            "flow": "udp:5060",
        }
        return ContactBinding(**(found | words))

    async def register(self, *bindings: ContactBinding) -> None:
        await self.location.update(AOR, lambda _: Change(*bindings), now=self.now())

    async def registered(self) -> Bindings:
        return await self.location.bindings(AOR, now=self.now())

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(1000):
            while not condition():  # noqa: ASYNC110 - the clock jumps, so that nobody waits
                await asyncio.sleep(0.1)

    async def until_gone(self) -> None:
        async with asyncio.timeout(1000):
            while await self.registered():  # noqa: ASYNC110 - the clock jumps, so that nobody waits
                await asyncio.sleep(0.1)

    def is_known(self, source: Endpoint) -> bool:
        """Whether the guard hears that source while its address is flooded."""
        for _ in range(10):
            self.guard.refuses(b"x", source.with_port(9), now=self.now())
        return self.guard.refuses(b"x", source, now=self.now()) is None


@asynccontextmanager
async def desk(**words: Any) -> AsyncIterator[Desk]:
    it = Desk(**words)
    try:
        yield it
    finally:
        await it.pings.close()


@hurried
async def test_a_phone_behind_a_nat_is_pinged_by_its_flow_and_stays_registered() -> None:
    async with desk() as it:
        await it.pings.start()
        await it.register(it.binding())
        await it.until(lambda: it.pings.counters["pongs"] >= 2)
        assert {flow for _, flow in it.sent} == {Flow("udp:5060", NAT)}
        assert it.sent[0][0].startswith(b"OPTIONS sip:alice@192.168.0.108 SIP/2.0")
        assert len(await it.registered()) == 1


@hurried
async def test_a_phone_that_stops_answering_is_registered_no_more() -> None:
    async with desk() as it:
        await it.pings.start()
        stays = it.binding(contact=b"sip:other@192.168.0.109", received=OTHER_NAT)
        await it.register(it.binding(), stays)
        await it.until(lambda: it.pings.counters["pongs"] >= 4)
        it.living.remove(NAT)
        await it.until(lambda: it.pings.counters["dead"])
        await asyncio.sleep(0)
        assert await it.registered() == (stays,)
        assert it.store.whys == [f"{NAT} did not answer 2 pings in a row"]
        assert not it.is_known(NAT)
        assert it.is_known(OTHER_NAT)


@hurried
async def test_who_registers_again_meanwhile_is_kept() -> None:
    async with desk() as it:
        await it.pings.start()
        await it.register(it.binding())
        await it.until(lambda: it.pings.counters["pongs"])
        it.store.is_away = True
        it.living.clear()
        await it.until(lambda: it.pings.counters["dead"])
        it.store.is_away = False
        it.living = {OTHER_NAT}
        await it.register(it.binding(cseq=2, received=OTHER_NAT))
        await it.until(lambda: it.pings.counters["pongs"] >= 2)
        await it.until(lambda: not it.pings._gone)
        assert len(await it.registered()) == 1


@hurried
async def test_what_cannot_be_removed_now_is_removed_later(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as it:
        await it.pings.start()
        await it.register(it.binding(flow="tcp:5060#new-1"))
        it.store.is_away = True
        it.pings.disconnected("tcp:5060#new-1")
        await it.until(lambda: "cannot be ended" in caplog.text)
        it.store.is_away = False
        await it.until_gone()


@hurried
async def test_the_end_of_a_connection_ends_the_bindings_of_that_flow_alone() -> None:
    async with desk(keepalive=PingKind.NONE) as it:
        it.flows.connected("tcp:5060#new-2", "tcp:5060", OTHER_NAT)
        await it.pings.start()
        by_udp = it.binding(contact=b"sip:alice@192.168.0.109", received=OTHER_NAT)
        moved = it.binding(contact=b"sip:alice@192.168.0.110", flow="tcp:5060#new-1")
        await it.register(it.binding(flow="tcp:5060#new-1"), by_udp, moved)
        moved = it.binding(contact=b"sip:alice@192.168.0.110", flow="tcp:5060#new-2", received=OTHER_NAT)
        await it.register(it.binding(flow="tcp:5060#new-1"), by_udp, moved)
        it.flows.disconnected("tcp:5060#new-1")
        it.pings.disconnected("tcp:5060#new-1")
        it.pings.disconnected("tcp:5060#unknown")
        await it.until(lambda: not it.pings._gone)
        assert await it.registered() == (by_udp, moved)
        assert it.sent == []


@hurried
async def test_after_a_restart_stored_phones_are_pinged_and_stored_connections_are_gone() -> None:
    async with desk() as it:
        by_udp = it.binding()
        bindings = (
            by_udp,
            it.binding(contact=b"sip:a@192.168.0.1", flow="tcp:5060#old-1"),
            it.binding(contact=b"sip:a@192.168.0.2", flow="tcp:7777#of-another-host"),
            it.binding(contact=b"sip:a@192.168.0.3", flow="udp:7777"),
        )
        await it.store.update(AOR, lambda _: Change(*bindings), now=it.now())
        await it.pings.start()
        await it.until(lambda: it.pings.counters["pongs"] >= 2)
        assert {flow for _, flow in it.sent} == {Flow("udp:5060", NAT)}
        assert await it.registered() == (by_udp, *bindings[2:])


@hurried
async def test_who_is_behind_no_nat_or_another_proxy_is_not_pinged_but_known() -> None:
    async with desk() as it:
        await it.pings.start()
        public = Endpoint.of("203.0.113.77", 5060)
        await it.register(
            it.binding(contact=b"sip:alice@203.0.113.77", received=None),
            it.binding(contact=b"sip:a@192.168.0.1", path=(b"<sip:203.0.113.78;lr>",)),
            it.binding(contact=b"sip:a@host.example", received=None),
            it.binding(contact=b"tel:1", received=None),
        )
        assert it.is_known(public)
        assert it.pings.has_phone_at(public)
        await asyncio.sleep(1.2 * INTERVAL_S)
        assert it.sent == []
        await it.register()
        assert not it.is_known(public)
        assert not it.pings.has_phone_at(public)


@hurried
async def test_registrations_that_run_out_leave_nothing_behind() -> None:
    async with desk() as it:
        await it.register(it.binding(expires_at=it.now() + 0.05))
        await asyncio.sleep(0.06)
        assert it.is_known(NAT)
        it.pings._sweep()
        assert not it.is_known(NAT)
        assert not it.pings._phones
        assert not it.pings._by_connection
        it.pings.note(AOR, ())


@hurried
async def test_other_responses_are_the_proxys() -> None:
    response = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP x;branch=z9hG4bK1\r\n\r\n"
    async with desk() as it:
        assert not it.pings.receive(response, Flow("udp:5060", NAT))
        await it.pings.close()
        it.pings.note(AOR, (it.binding(),))
        it.pings.disconnected("tcp:5060#new-1")
        assert not it.pings._phones


def test_in_a_running_natgate_the_end_of_a_connection_ends_a_registration(tmp_path: Path) -> None:
    async def run() -> None:
        async with gate(tmp_path) as server, Telephone("bob", place(server)) as bob:
            async with Telephone("alice", place(server, "TCP"), transport="TCP") as alice:
                assert (await alice.register()).status_code == 200
                assert len((await server.status()).registrations) == 1
            async with asyncio.timeout(PATIENCE_S):
                while (await server.status()).registrations:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.01)
            assert (await bob.call("alice")).status_code == 480

    asyncio.run(run())
