"""What a keeper does for its bindings: asks providers, notices another network, keeps names and timers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Self

import pytest

from nattools.binding import keeper as keeper_module
from nattools.binding.keeper import Keeper
from nattools.binding.machine import BindingMachine
from nattools.binding.model import ChangeKind, Claim, Method, Source
from nattools.binding.providers import configured
from nattools.binding.providers import router as router_module
from nattools.binding.providers import stun as stun_module
from nattools.binding.settings import LEARN, Settings
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    BindingError,
    LocalAddressError,
    MappingError,
    NatToolsError,
    ResolveError,
    TransportError,
)
from nattools.mapping.client import MappingClient
from tests.ports import free_port
from tests.unit.binding.on_loopback import asking, bound, eventually, run, stun_server

PUBLIC = Endpoint.parse("140.113.131.89:5060")
MOVED = Endpoint.parse("140.113.131.90:5060")
ANY = "0.0.0.0:0"
ROUTER_ONLY = Settings(methods=(Method.UPNP,))
STATIC = Settings(methods=(Method.STATIC,), static_host="140.113.131.89")


def claim_of(local: Endpoint, public: Endpoint = PUBLIC, method: Method = Method.UPNP) -> Claim:
    real = Endpoint(ip_address("127.0.0.1"), local.port) if local.ip.is_unspecified else local
    return Claim(method, real, public, f"somebody says {public}", realm="wg0" if method is Method.VPN else "")


@dataclass(eq=False)
class FakeRouter:
    """A router's provider and its client; the test says what it answers."""

    answer: Endpoint | Exception = PUBLIC
    calls: list[str] = field(default_factory=list)
    opened: list[dict[str, object]] = field(default_factory=list)
    closed: int = 0
    told: asyncio.Queue[tuple[Endpoint, Claim | NatToolsError]] = field(default_factory=asyncio.Queue)
    asked: list[Endpoint] = field(default_factory=list)
    method = Method.UPNP

    @property
    def source(self) -> Source:
        return self.method.source

    @asynccontextmanager
    async def open(self, **words: object) -> AsyncIterator[Self]:
        self.opened.append(words)
        yield self
        self.closed += 1

    def provider(self, client: object, *, lease_s: int) -> Self:
        assert client is self
        return self

    async def acquire(self, local: Endpoint) -> Claim:
        self.asked.append(local)
        return self._answered("acquire", local)

    async def renew(self, claim: Claim) -> Claim:
        return self._answered("renew", claim.local)

    async def release(self, claim: Claim) -> None:
        self._answered("release", claim.local)

    async def news(self) -> AsyncIterator[tuple[Endpoint, Claim | NatToolsError]]:
        while True:
            yield await self.told.get()

    def _answered(self, call: str, local: Endpoint) -> Claim:
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return claim_of(local, self.answer, self.method)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> FakeRouter:
    """The only router that a keeper finds."""
    fake = FakeRouter()
    monkeypatch.setattr(MappingClient, "open", fake.open)
    monkeypatch.setattr(router_module, "RouterProvider", fake.provider)
    return fake


class FakeNetwork:
    """Where this machine's packets leave from; `changed` is what the watch would call."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.own = {address}
        self.on_change: Callable[[str], None] = lambda _: None
        self.closed = False

    def move(self, address: str, *own: str) -> None:
        """Have another address towards everywhere (none: no way out), and say so."""
        self.address, self.own = address, {address, *own}
        self.on_change("the test says so")

    def towards(self, destination: Endpoint, *, local_address: IPAddress | None = None) -> IPAddress:
        if local_address is not None and str(local_address) not in self.own:
            raise LocalAddressError(f"{local_address} is not an address of this machine")
        if not self.address:
            raise TransportError("no route")
        return ip_address(self.address)

    def open(self, on_change: Callable[[str], None]) -> FakeNetwork:
        self.on_change = on_change
        return self

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> FakeNetwork:
    """The network of this machine."""
    fake = FakeNetwork("127.0.0.1")
    monkeypatch.setattr(keeper_module, "local_address_towards", fake.towards)
    monkeypatch.setattr(keeper_module, "NetworkWatch", fake)
    return fake


def test_a_router_is_asked_only_when_it_is_wanted_and_one_client_serves_all(router: FakeRouter) -> None:
    async def work() -> None:
        settings = ROUTER_ONLY.with_words(methods=["upnp", "pcp"], router_gateway="192.168.0.1")
        async with Keeper.open(settings) as keeper:
            assert router.opened == []
            async with keeper.open_binding(ANY) as first, keeper.open_binding("127.0.0.1:0") as second:
                assert (first.public, second.public) == (PUBLIC, PUBLIC)
                assert [local.port for local in router.asked] == [first.local.port, second.local.port]
                assert [str(local.ip) for local in router.asked] == ["0.0.0.0", "127.0.0.1"]
            assert router.calls == ["acquire", "acquire", "release", "release"]
            assert router.closed == 0
        assert router.closed == 1
        (words,) = router.opened
        assert [protocol.value for protocol in words["protocols"]] == ["upnp", "pcp", "nat-pmp"]  # type: ignore[attr-defined]  # as the keeper gave them
        assert (str(words["gateway"]), words["ipv6"]) == ("192.168.0.1", False)

    run(work())


def test_news_of_the_router_reach_the_binding_that_they_are_about(router: FakeRouter) -> None:
    async def work() -> None:
        async with (
            Keeper.open(ROUTER_ONLY) as keeper,
            keeper.open_binding(ANY) as binding,
            keeper.open_binding(ANY) as other,
        ):
            changes, others = binding.changes(), other.changes()
            asked = router.asked[0]
            router.told.put_nowait((asked, claim_of(asked, MOVED)))
            changed = await anext(changes)
            assert (changed.kind, binding.public, other.public) == (ChangeKind.CHANGED, MOVED, PUBLIC)
            router.answer = MappingError("it is gone")
            router.told.put_nowait((asked, MappingError("the router forgot it")))
            lost = await anext(changes)
            assert (lost.kind, lost.reason) == (ChangeKind.LOST, "the router forgot it")
            router.answer = MOVED
            router.told.put_nowait((asked, claim_of(asked, MOVED)))
            assert (await anext(changes)).kind is ChangeKind.RESTORED
            other.close()
            assert [change async for change in others] == []

    run(work())


def test_a_provider_that_breaks_takes_no_binding_along(
    router: FakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        router.answer = ZeroDivisionError("oh")
        async with stun_server() as server:
            settings = asking(server, methods=(Method.UPNP, Method.OPEN, Method.STUN))
            async with Keeper.open(settings) as keeper, keeper.open_binding(ANY) as binding:
                assert binding.public == binding.local
        with pytest.raises(BindingError, match="bug in nattools: ZeroDivisionError"):
            async with Keeper.open(ROUTER_ONLY) as keeper, keeper.open_binding(ANY):
                pass

    run(work())
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_nobody_waits_for_a_router_that_is_not_needed(router: FakeRouter) -> None:
    async def work() -> None:
        stuck = asyncio.Event()

        async def acquire(local: Endpoint) -> Claim:
            router.asked.append(local)
            await stuck.wait()
            raise AssertionError("nobody lets it go on")

        router.acquire = acquire  # type: ignore[method-assign]  # a router that does not answer
        async with stun_server() as server:
            settings = asking(server, methods=(Method.OPEN, Method.STUN, Method.UPNP))
            async with Keeper.open(settings) as keeper, keeper.open_binding(ANY) as binding:
                assert binding.public == binding.local
                await eventually(lambda: len(asyncio.all_tasks()) == 2)  # this, and who waits for news
            assert router.calls == []

    run(work())


def test_what_the_router_gave_for_nothing_is_given_back(router: FakeRouter) -> None:
    async def work() -> None:
        async with stun_server() as server:
            settings = asking(server, methods=(Method.OPEN, Method.STUN, Method.UPNP))
            async with Keeper.open(settings) as keeper, keeper.open_binding(ANY):
                await eventually(lambda: "release" in router.calls or not router.asked)
        assert router.calls in ([], ["acquire", "release"])

    run(work())


def test_static_claims_are_renewed_by_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRouter()
    fake.method = Method.STATIC
    monkeypatch.setattr(configured, "StaticProvider", lambda *_: fake)
    monkeypatch.setattr(keeper_module, "REFRESH_S", 0.02)

    async def work() -> None:
        async with (
            Keeper.open(STATIC) as keeper,
            keeper.open_binding(ANY) as binding,
            keeper.open_binding(ANY) as other,
        ):
            changes = binding.changes()
            fake.answer = MOVED
            assert (await anext(changes)).kind is ChangeKind.CHANGED
            await eventually(lambda: other.public == MOVED)
            assert fake.calls[:2] == ["acquire", "acquire"]
            assert set(fake.calls[2:]) == {"renew"}

    run(work())
    assert fake.calls[-2:] == ["release", "release"]


def test_the_port_is_one_of_those_that_are_forwarded() -> None:
    async def work() -> None:
        port = free_port()
        settings = STATIC.with_words(static_ports=f"{port}-{port + 1}")
        async with Keeper.open(settings) as keeper:
            async with (
                keeper.open_binding("127.0.0.1:0") as first,
                keeper.open_binding("127.0.0.1:0") as second,
            ):
                assert {first.local.port, second.local.port} == {port, port + 1}
                assert first.public == Endpoint(PUBLIC.ip, first.local.port)
                with pytest.raises(LocalAddressError, match=f"{port} to {port + 1}"):
                    async with keeper.open_binding("127.0.0.1:0"):
                        pass
            with pytest.raises(BindingError, match="not among the ports"):
                async with keeper.open_binding(f"127.0.0.1:{port + 2}"):
                    pass

    run(work())


def test_a_pair_has_two_of_the_forwarded_ports_or_does_without_static() -> None:
    async def work() -> None:
        settings = STATIC.with_words(static_ports="42001-42101")
        async with Keeper.open(settings) as keeper, keeper.open_pair("127.0.0.1") as pair:
            assert pair.rtp.public.port in range(42002, 42101, 2)
            assert pair.is_consecutive
        single = STATIC.with_words(static_ports=42001)
        async with Keeper.open(single) as keeper:
            with pytest.raises(BindingError, match="two ports"):
                async with keeper.open_pair("127.0.0.1"):
                    pass
        async with stun_server() as server:
            both = single.with_words(methods=["static", "open"], stun_servers=[str(server)])
            async with Keeper.open(both) as keeper, keeper.open_pair("127.0.0.1") as pair:
                assert pair.rtp.public == pair.rtp.local

    run(work())


def test_only_a_port_that_the_system_has_just_chosen_is_one_that_no_nat_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh: list[bool] = []

    class Machine(BindingMachine):
        def __init__(self, *arguments: Any, **words: Any) -> None:
            fresh.append(words["fresh_port"])
            super().__init__(*arguments, **words)

    monkeypatch.setattr(keeper_module, "BindingMachine", Machine)

    async def work() -> None:
        with bound() as sock:
            async with Keeper.open(STATIC) as keeper:
                async with keeper.open_binding("127.0.0.1:0") as binding:
                    local = binding.local
                await asyncio.sleep(0)
                async with keeper.open_binding(local), keeper.bind_socket(sock):
                    pass
                async with keeper.open_pair("127.0.0.1:0"):
                    pass
            forwarded = STATIC.with_words(static_ports="42102-42202")
            async with Keeper.open(forwarded) as keeper, keeper.open_binding("127.0.0.1:0"):
                pass

    run(work())
    assert fresh == [True, False, False, True, True, False]


def test_another_address_is_another_binding(network: FakeNetwork) -> None:
    async def work() -> None:
        async with Keeper.open(STATIC) as keeper, keeper.open_binding(ANY) as binding:
            port = binding.local.port
            network.move("127.0.0.5")
            assert binding.local == Endpoint(ip_address("127.0.0.5"), port)
            changes = binding.changes()
            network.move("")
            lost = await anext(changes)
            assert (lost.kind, lost.reason) == (
                ChangeKind.LOST,
                "this machine has no IPv4 route: connect it to a network",
            )
            network.move("127.0.0.6")
            assert (await anext(changes)).kind is ChangeKind.RESTORED
            assert binding.local.ip == ip_address("127.0.0.6")

    run(work())
    assert network.closed


def test_an_address_that_is_gone_takes_its_sockets_along(network: FakeNetwork) -> None:
    async def work() -> None:
        async with Keeper.open(STATIC) as keeper, keeper.open_binding("127.0.0.1:0") as binding:
            changes = binding.changes()
            network.move("127.0.0.5")
            lost = await anext(changes)
            assert (lost.kind, lost.reason) == (
                ChangeKind.LOST,
                "127.0.0.1 is no longer an address of this machine",
            )
            network.move("127.0.0.5", "127.0.0.1")
            assert (await anext(changes)).kind is ChangeKind.RESTORED
            assert str(binding.local.ip) == "127.0.0.1"

    run(work())


def test_without_any_network_it_says_so_at_once(network: FakeNetwork) -> None:
    async def work() -> None:
        network.address = ""
        with pytest.raises(BindingError, match="no IPv4 route: connect it to a network"):
            async with Keeper.open(STATIC) as keeper, keeper.open_binding(ANY):
                pass

    run(work())


def test_a_tunnel_is_looked_at_whenever_the_network_changes(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRouter()
    fake.method = Method.VPN
    monkeypatch.setattr(configured, "VpnProvider", lambda *_: fake)

    async def work() -> None:
        settings = Settings(methods=(Method.VPN,), vpn_interface="wg0")
        async with Keeper.open(settings) as keeper, keeper.open_binding(ANY) as binding:
            assert str(fake.asked[0].ip) == "0.0.0.0"
            assert binding.snapshot is not None
            assert binding.snapshot.realm == "wg0"
            for _ in range(3):
                asked = len(fake.calls)
                network.on_change("a route was added")
                await eventually(lambda asked=asked: len(fake.calls) > asked)  # type: ignore[misc]  # mypy knows no defaults of lambdas
            changes = binding.changes()
            fake.answer = BindingError("there is no interface wg0")
            network.on_change("wg0 is gone")
            assert (await anext(changes)).reason == "there is no interface wg0"

    run(work())


def test_names_of_servers_are_looked_up_once_and_again_when_that_may_help(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer: list[Endpoint] = []

    async def resolve(host: str, *_: object, **__: object) -> list[Endpoint]:
        asked.append(host)
        if not answer:
            raise ResolveError(f"no IPv4 address for {host}")
        return answer

    monkeypatch.setattr(stun_module, "resolve", resolve)
    monkeypatch.setattr(keeper_module, "REFRESH_S", 0.05)
    monkeypatch.setattr(keeper_module, "_LOOK_UP_AFTER_S", 0.1)

    async def work() -> None:
        with pytest.raises(BindingError, match=r"no IPv4 address for stun\.test") as info:
            async with Keeper.open(asking("stun.test")) as keeper, keeper.open_binding(ANY):
                pass
        assert "no IPv4 address for stun.test" in info.value.refusals["open, stun"]
        asked.clear()
        async with Keeper.open(asking("stun.test")) as keeper:
            async with stun_server() as server:
                answer[:] = [server]
                async with keeper.open_binding(ANY) as binding, keeper.open_binding(ANY) as other:
                    assert (binding.public, other.public) == (binding.local, other.local)
                    assert asked == ["stun.test"]
                    network.on_change("eth0 is up")
                    await eventually(lambda: len(asked) == 2)
            async with stun_server() as server:
                answer[:] = [server]
                network.on_change("eth0 is up")
                await eventually(lambda: len(asked) == 3)
                async with keeper.open_binding(ANY) as binding:
                    assert binding.public == binding.local

    run(work())


def test_who_has_been_lost_for_long_has_names_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: list[Endpoint] = []

    async def resolve(*_: object, **__: object) -> list[Endpoint]:
        return list(answer)

    monkeypatch.setattr(stun_module, "resolve", resolve)
    monkeypatch.setattr(keeper_module, "REFRESH_S", 0.05)
    monkeypatch.setattr(keeper_module, "_LOOK_UP_AFTER_S", 0.1)

    async def work() -> None:
        first = stun_server()
        answer[:] = [await first.__aenter__()]
        async with Keeper.open(asking("stun.test")) as keeper, keeper.open_binding(ANY) as binding:
            changes = binding.changes()
            await first.__aexit__(None, None, None)
            async with stun_server() as second:
                answer[:] = [second]
                binding.check()
                assert (await anext(changes)).kind is ChangeKind.LOST
                assert (await anext(changes)).kind is ChangeKind.RESTORED

    run(work())


def test_the_way_to_the_servers_decides_where_the_socket_is(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asyncio.Event()

    async def work() -> None:
        async with stun_server() as server:

            async def resolve(*_: object, **__: object) -> list[Endpoint]:
                await found.wait()
                network.address = "127.0.0.1"
                return [server]

            monkeypatch.setattr(stun_module, "resolve", resolve)
            network.address = "127.0.0.9"
            async with Keeper.open(asking("stun.test")) as keeper:
                asyncio.get_running_loop().call_later(0.05, found.set)
                async with keeper.open_binding(ANY) as binding:
                    assert str(binding.local.ip) == "127.0.0.1"
                    assert binding.public == binding.local

    run(work())


def test_the_interval_is_learned_once_for_all_and_anew_in_another_network(
    monkeypatch: pytest.MonkeyPatch, network: FakeNetwork
) -> None:
    learners: list[Callable[[float], None]] = []

    class FakeLearner:
        def __init__(self, on_interval: Callable[[float], None]) -> None:
            learners.append(on_interval)

        async def learn(self, servers: Sequence[Endpoint], local_address: IPAddress) -> None:
            assert (len(servers), str(local_address)) == (1, network.address)
            await asyncio.sleep(3600)

    monkeypatch.setattr(keeper_module, "IntervalLearner", FakeLearner)

    async def work() -> None:
        async with stun_server() as server:
            settings = replace(asking(server), keepalive_interval=LEARN)
            async with Keeper.open(settings) as keeper, keeper.open_binding(ANY) as binding:
                assert binding.snapshot is not None
                assert binding.snapshot.keepalive_s == 3
                await eventually(lambda: bool(learners))
                learners[0](24.0)
                assert binding.snapshot.keepalive_s == 24
                async with keeper.open_binding(ANY) as later:
                    assert later.snapshot is not None
                    assert later.snapshot.keepalive_s == 24
                network.move("127.0.0.1")
                assert len(learners) == 1
                network.move("127.0.0.2")
                assert len(learners) == 2
                await eventually(lambda: binding.snapshot is not None)
                assert binding.snapshot.keepalive_s == 3

    run(work())
