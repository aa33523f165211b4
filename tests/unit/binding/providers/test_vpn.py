"""Which tunnel a socket is reached through, and when there is none, on machines that a test describes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface

import pytest

from nattools.binding.model import Method, Source
from nattools.binding.providers import vpn as module
from nattools.binding.providers.vpn import VpnProvider
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import BindingError, DecodeError, ResolveError, TransportError
from nattools.net.interfaces import Interface

ANY = Endpoint.parse("0.0.0.0:5060")
INSIDE = Endpoint.parse("10.8.0.2:5060")


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, 2, tuple(ip_interface(text) for text in addresses), True, True, False, False)


@dataclass
class Machine:
    """Its interfaces, which of them are tunnels, and the addresses that it sends from."""

    interfaces: dict[str, Interface] = field(
        default_factory=lambda: {
            one.name: one
            for one in (
                interface("eth0", "192.168.0.108/24"),
                interface("tun0", "10.8.0.2/24", "10.8.0.3/24", "fe80::2%tun0/64", "fd08::2/64"),
            )
        }
    )
    tunnels: dict[str, bool | None] = field(default_factory=lambda: {"tun0": True})
    routes: dict[str, str] = field(
        default_factory=lambda: {
            "10.8.0.1": "10.8.0.2",
            "203.0.113.10": "192.168.0.108",
            "fd08::1": "fd08::2",
        }
    )

    def towards(self, destination: Endpoint) -> IPAddress:
        if str(destination.ip) not in self.routes:
            raise TransportError(f"no route to {destination.ip}: connect this machine to a network")
        return ip_address(self.routes[str(destination.ip)])

    def owner(self, ip: IPAddress) -> Interface | None:
        return next((one for one in self.interfaces.values() if ip in one.ips), None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One with a tunnel to 10.8.0.0/24 and fd08::/64."""
    machine = Machine()
    monkeypatch.setattr(module, "interfaces", lambda: list(machine.interfaces.values()))
    monkeypatch.setattr(module, "interface_of", machine.owner)
    monkeypatch.setattr(module, "is_tunnel", lambda one: machine.tunnels.get(one.name, False))
    monkeypatch.setattr(module, "local_address_towards", machine.towards)
    return machine


@pytest.mark.parametrize(
    "provider",
    [
        VpnProvider("tun0"),
        VpnProvider(peer="10.8.0.1"),
        VpnProvider(peer="10.8.0.1:5060"),
        VpnProvider("tun0", "10.8.0.1"),
    ],
)
def test_the_tunnel_s_address_is_the_binding(machine: Machine, provider: VpnProvider) -> None:
    claim = asyncio.run(provider.acquire(ANY))
    assert (provider.source, claim.method) == (Source.VPN, Method.VPN)
    assert (claim.local, claim.public, claim.realm, claim.lease_s) == (INSIDE, INSIDE, "tun0", None)
    assert "tun0" in claim.word
    assert "10.8.0.2" in claim.word


@pytest.mark.parametrize("peer", ["fd08::1", "[fd08::1]:5060", None])
def test_a_socket_of_the_other_family_has_that_address(machine: Machine, peer: str | None) -> None:
    provider = VpnProvider(None if peer else "tun0", peer)
    claim = asyncio.run(provider.acquire(Endpoint.parse("[::]:5060")))
    assert claim.public == Endpoint.parse("[fd08::2]:5060")  # rather than the link-local one


@pytest.mark.parametrize("provider", [VpnProvider("tun0"), VpnProvider(peer="10.8.0.1")])
@pytest.mark.parametrize("ip", ["10.8.0.2", "10.8.0.3"])
def test_a_socket_inside_the_tunnel_stays_where_it_is(
    machine: Machine, provider: VpnProvider, ip: str
) -> None:
    claim = asyncio.run(provider.acquire(Endpoint.of(ip, 5060)))
    assert (claim.local, claim.public) == (Endpoint.of(ip, 5060), Endpoint.of(ip, 5060))


@pytest.mark.parametrize("provider", [VpnProvider("tun0"), VpnProvider(peer="10.8.0.1")])
def test_a_socket_outside_the_tunnel_is_refused(machine: Machine, provider: VpnProvider) -> None:
    with pytest.raises(BindingError, match=r"bound to 192\.168\.0\.108, and the tunnel tun0 has 10\.8\.0\.2"):
        asyncio.run(provider.acquire(Endpoint.parse("192.168.0.108:5060")))


def _gone(machine: Machine) -> None:
    del machine.interfaces["tun0"]
    machine.routes["10.8.0.1"] = "192.168.0.108"  # by the default route


def _down(machine: Machine) -> None:
    machine.interfaces["tun0"] = replace(machine.interfaces["tun0"], is_up=False)


def _no_address(machine: Machine) -> None:
    machine.interfaces["tun0"] = interface("tun0", "fd08::2/64")
    del machine.routes["10.8.0.1"]


def _unknown(machine: Machine) -> None:
    machine.tunnels["tun0"] = None


def _just_gone(machine: Machine) -> None:
    del machine.interfaces["tun0"]


@pytest.mark.parametrize(
    ("change", "provider", "reason"),
    [
        (_gone, VpnProvider("tun0"), "there is no interface tun0: this machine has eth0. Start the VPN"),
        (_gone, VpnProvider(peer="10.8.0.1"), "the route to 10.8.0.1 goes through eth0, which is no tunnel"),
        (
            _gone,
            VpnProvider("tun0", "10.8.0.1"),
            "the route to 10.8.0.1 goes through eth0, and not tun0: start",
        ),
        (_down, VpnProvider("tun0"), "the tunnel tun0 is down"),
        (_down, VpnProvider(peer="10.8.0.1"), "the tunnel tun0 is down"),
        (_no_address, VpnProvider("tun0"), "the tunnel tun0 has no IPv4 address: start the VPN, or use IPv6"),
        (_unknown, VpnProvider(peer="10.8.0.1"), "tun0, of which the system does not tell"),
        (_just_gone, VpnProvider(peer="10.8.0.1"), "the address towards 10.8.0.1, 10.8.0.2, has just gone"),
    ],
)
def test_without_the_tunnel_it_is_said_why(
    machine: Machine, change: Callable[[Machine], None], provider: VpnProvider, reason: str
) -> None:
    async def run() -> None:
        claim = await provider.acquire(ANY)
        change(machine)
        with pytest.raises(BindingError) as caught:
            await provider.renew(claim)
        assert reason in str(caught.value)
        with pytest.raises(BindingError) as caught:
            await provider.acquire(ANY)
        assert reason in str(caught.value)

    asyncio.run(run())


def test_without_a_route_it_is_said(machine: Machine) -> None:
    machine.routes.clear()
    with pytest.raises(TransportError, match=r"no route to 10\.8\.0\.1"):
        asyncio.run(VpnProvider(peer="10.8.0.1").acquire(ANY))


def test_an_interface_that_is_named_is_believed_to_be_a_tunnel(machine: Machine) -> None:
    _unknown(machine)
    assert asyncio.run(VpnProvider("tun0", "10.8.0.1").acquire(ANY)).public == INSIDE
    assert asyncio.run(VpnProvider("eth0").acquire(ANY)).realm == "eth0"


@pytest.mark.parametrize("provider", [VpnProvider("tun0"), VpnProvider(peer="10.8.0.1")])
def test_a_tunnel_with_another_address_is_another_claim(machine: Machine, provider: VpnProvider) -> None:
    async def run() -> None:
        claim = await provider.acquire(ANY)
        assert await provider.renew(claim) == claim
        for last in (7, 8):
            machine.interfaces["tun0"] = interface("tun0", f"10.8.0.{last}/24")
            machine.routes["10.8.0.1"] = f"10.8.0.{last}"
            claim = await provider.renew(claim)
            assert claim.public == claim.local == Endpoint.of(f"10.8.0.{last}", 5060)

    asyncio.run(run())


def test_a_socket_whose_address_has_left_the_tunnel_is_refused(machine: Machine) -> None:
    async def run() -> None:
        provider = VpnProvider("tun0")
        claim = await provider.acquire(INSIDE)
        machine.interfaces["tun0"] = interface("tun0", "10.8.0.7/24")
        with pytest.raises(BindingError, match=r"bound to 10\.8\.0\.2, and the tunnel tun0 has 10\.8\.0\.7"):
            await provider.renew(claim)

    asyncio.run(run())


def test_a_released_claim_is_forgotten(machine: Machine) -> None:
    async def run() -> None:
        provider = VpnProvider("tun0")
        claim = await provider.acquire(ANY)
        await provider.release(claim)
        machine.interfaces["tun0"] = interface("tun0", "10.8.0.7/24")
        with pytest.raises(BindingError, match=r"bound to 10\.8\.0\.2"):
            await provider.renew(claim)

    asyncio.run(run())


def test_a_peer_may_have_a_name(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int, *, family: int, **_: object) -> list[Endpoint]:
        if host != "pbx.example.test":
            raise ResolveError(f"no address for {host}")
        return [Endpoint.of({4: "10.8.0.1", 6: "fd08::1"}[family], port)]

    monkeypatch.setattr(module, "resolve", resolve)
    claim = asyncio.run(VpnProvider(peer="pbx.example.test:5060").acquire(ANY))
    assert claim.public == INSIDE
    assert "the route to pbx.example.test:5060 goes through tun0" in claim.word
    with pytest.raises(ResolveError, match=r"other\.example\.test"):
        asyncio.run(VpnProvider(peer="other.example.test").acquire(ANY))


def test_what_names_no_tunnel_is_refused_at_once() -> None:
    with pytest.raises(BindingError, match="set the VPN's interface, or a peer"):
        VpnProvider()
    with pytest.raises(DecodeError):
        VpnProvider(peer="[10.8.0.1")
