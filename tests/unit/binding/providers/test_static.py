"""What an administrator has set: which public port a local one has, and names that move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from nattools.binding.model import Method, Source
from nattools.binding.providers import static as module
from nattools.binding.providers.static import StaticProvider
from nattools.binding.settings import PortRange
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import BindingError, ResolveError, TransportError
from tests.fakes.dns_server import stub_dns

LOCAL = Endpoint.parse("192.168.0.108:9004")
NAME = "sip.example.test"
PHONE = "140.113.131.89"


class Names:
    """Stands for DNS: what it answers is a test's to change."""

    def __init__(self, *ips: str) -> None:
        self.ips: Sequence[str] = ips
        self.asked: list[tuple[str, object]] = []
        self.error: Exception | None = None

    async def resolve(self, host: str, port: int, *, family: int, **_: object) -> list[Endpoint]:
        self.asked.append((host, family))
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        found = [Endpoint.of(ip, port) for ip in self.ips]
        return [endpoint for endpoint in found if endpoint.ip.version == family]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names that are looked up each time."""
    names = Names(PHONE)
    monkeypatch.setattr(module, "resolve", names.resolve)
    monkeypatch.setattr(module, "_FRESH_S", 0.0)
    return names


@pytest.mark.parametrize(
    ("ports", "local_port", "public_port"),
    [
        (None, 5062, 5062),
        (PortRange(5060, 5060), 5062, 5060),
        (PortRange(9000, 9010), 9000, 9000),
        (PortRange(9000, 9010), 9010, 9010),
    ],
)
def test_the_public_port_is_the_one_that_is_forwarded(
    ports: PortRange | None, local_port: int, public_port: int
) -> None:
    provider = StaticProvider(PHONE, ports)
    claim = asyncio.run(provider.acquire(LOCAL.with_port(local_port)))
    assert (provider.source, claim.method) == (Source.STATIC, Method.STATIC)
    assert claim.local == LOCAL.with_port(local_port)
    assert claim.public == Endpoint.of(PHONE, public_port)
    assert (claim.realm, claim.lease_s) == ("", None)
    assert claim.word == f"the settings say {PHONE}:{public_port}"


@pytest.mark.parametrize("port", [8999, 9011])
def test_a_port_that_is_not_forwarded_is_refused(port: int) -> None:
    with pytest.raises(BindingError, match=rf"the local port {port} is not among .* 9000-9010"):
        asyncio.run(StaticProvider(PHONE, PortRange(9000, 9010)).acquire(LOCAL.with_port(port)))


@pytest.mark.parametrize("host", ["0.0.0.0", "239.1.2.3"])
def test_an_address_of_no_host_is_refused(host: str) -> None:
    with pytest.raises(BindingError, match="no host's address"):
        asyncio.run(StaticProvider(host).acquire(LOCAL))


def test_an_address_of_the_other_family_is_refused() -> None:
    with pytest.raises(ResolveError, match="IPv6"):
        asyncio.run(StaticProvider(PHONE).acquire(Endpoint.parse("[2001:db8::1]:5060")))


def test_a_name_is_looked_up_in_dns_in_the_socket_s_family() -> None:
    zone = f"{NAME}. 60 IN A {PHONE}\n{NAME}. 60 IN AAAA 2001:db8::89\n"

    async def run(local: Endpoint) -> tuple[Endpoint, str, list[str]]:
        async with stub_dns(zone) as (server, asked):
            claim = await StaticProvider(NAME, nameservers=[server]).acquire(local)
            return claim.public, claim.word, asked

    public, word, asked = asyncio.run(run(LOCAL))
    assert (str(public), asked) == (f"{PHONE}:9004", [f"A {NAME}"])
    assert word == f"the settings say {PHONE}:9004 ({NAME})"
    public, _, asked = asyncio.run(run(Endpoint.parse("[2001:db8::1]:9004")))
    assert (str(public), asked) == ("[2001:db8::89]:9004", [f"AAAA {NAME}"])


def test_a_name_that_dns_does_not_know_is_refused() -> None:
    async def run() -> None:
        async with stub_dns("") as (server, _):
            await StaticProvider(NAME, nameservers=[server]).acquire(LOCAL)

    with pytest.raises(ResolveError, match=NAME):
        asyncio.run(run())


def test_a_dynamic_name_is_followed(names: Names) -> None:
    async def run() -> None:
        provider = StaticProvider(NAME, PortRange(9000, 9010))
        claim = await provider.acquire(LOCAL)
        assert await provider.renew(claim) == claim
        names.ips = ["140.113.131.90"]
        assert (await provider.renew(claim)).public == Endpoint.parse("140.113.131.90:9004")

    asyncio.run(run())


def test_of_several_addresses_the_same_one_stays(names: Names) -> None:
    async def run() -> None:
        provider = StaticProvider(NAME)
        names.ips = [PHONE, "140.113.131.90"]
        claim = await provider.acquire(LOCAL)
        names.ips = ["140.113.131.90", PHONE]
        assert await provider.renew(claim) == claim
        assert (await provider.acquire(LOCAL.with_port(9005))).public.ip == claim.public.ip

    asyncio.run(run())


@pytest.mark.parametrize("answer", ["nothing", "0.0.0.0"])
def test_while_a_name_cannot_be_looked_up_the_last_address_stays(
    names: Names, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    async def run() -> None:
        provider = StaticProvider(NAME)
        claim = await provider.acquire(LOCAL)
        for warnings in (1, 2):
            if answer == "nothing":
                names.error = ResolveError("no address: DNS is silent")
            names.ips = ["0.0.0.0"]  # what some resolvers block a name with
            assert await provider.renew(claim) == claim
            assert await provider.renew(claim) == claim
            assert (await provider.acquire(LOCAL.with_port(9005))).public.ip == claim.public.ip
            assert len(caplog.records) == warnings
            assert f"{NAME} stays what it was, {PHONE}" in caplog.text
            names.error, names.ips = None, [PHONE]
            assert await provider.renew(claim) == claim

    with caplog.at_level(logging.WARNING, module.__name__):
        asyncio.run(run())


def test_a_name_that_is_known_later_is_found(names: Names) -> None:
    async def run() -> None:
        provider = StaticProvider(NAME)
        names.error = ResolveError("no address: DNS is silent")
        with pytest.raises(ResolveError, match="DNS is silent"):
            await provider.acquire(LOCAL)
        names.error = None
        assert (await provider.acquire(LOCAL)).public == Endpoint.of(PHONE, 9004)

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_a_hundred_sockets_need_one_look_up(
    names: Names, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(module, "_FRESH_S", 60.0)
    names.error = ResolveError("DNS is silent") if fails else None

    async def run() -> None:
        provider = StaticProvider(NAME)
        asking = [provider.acquire(LOCAL.with_port(9000 + n)) for n in range(100)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, ResolveError) == fails for one in found)

    asyncio.run(run())
    assert names.asked == [(NAME, 4)]


def test_who_gives_up_does_not_take_the_look_up_from_others(names: Names) -> None:
    async def run() -> None:
        provider = StaticProvider(NAME)
        first = asyncio.create_task(provider.acquire(LOCAL))
        second = asyncio.create_task(provider.acquire(LOCAL.with_port(9005)))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).public == Endpoint.of(PHONE, 9005)
        assert first.cancelled()

    asyncio.run(run())


def test_a_socket_at_any_address_has_the_one_towards_the_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {PHONE: ip_address("192.168.0.108")}

    def towards(destination: Endpoint) -> IPAddress:
        if str(destination.ip) not in routes:
            raise TransportError(f"no route to {destination.ip}: connect this machine to a network")
        return routes[str(destination.ip)]

    monkeypatch.setattr(module, "local_address_towards", towards)

    async def run() -> None:
        provider = StaticProvider(PHONE)
        claim = await provider.acquire(Endpoint.parse("0.0.0.0:5060"))
        assert claim.local == Endpoint.parse("192.168.0.108:5060")
        routes[PHONE] = ip_address("192.168.0.7")
        claim = await provider.renew(claim)
        assert claim.local == Endpoint.parse("192.168.0.7:5060")
        routes[PHONE] = ip_address("192.168.0.8")
        claim = await provider.renew(claim)
        assert claim.local == Endpoint.parse("192.168.0.8:5060")
        routes.clear()
        with pytest.raises(TransportError, match="connect this machine"):
            await provider.renew(claim)
        await provider.release(claim)
        assert (await provider.renew(claim)).local == claim.local  # it stands for itself alone

    asyncio.run(run())


def test_a_socket_at_one_address_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "local_address_towards", lambda _: ip_address("192.168.0.7"))

    async def run() -> None:
        provider = StaticProvider(PHONE)
        claim = await provider.acquire(LOCAL)
        assert (await provider.renew(claim)).local == LOCAL
        await provider.release(claim)

    asyncio.run(run())
