"""The PCP and NAT-PMP clients against a real miniupnpd; run as a program, what the client host does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import PcpError, TransportError
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Host, Lab, Process, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from nattools.net.interfaces import interfaces
from nattools.pcp.announcement import Announcement
from nattools.pcp.client import AnnouncementListener, MapResult, NatPmpClient, PcpClient
from nattools.pcp.pcp import Filter
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, Lines, OpenSockets, next_datagram

ROOT = Path(__file__).parents[2]
ROUTER, ROUTER_IPV6 = ip_address("192.168.0.1"), ip_address("2001:db8:1::1")
CLIENT = Endpoint.of("192.168.0.108", 5060)
CLIENT_IPV6 = Endpoint.of("2001:db8:1::108", 5060)
OUTSIDE_IPV6 = Endpoint.of("2001:db8::20", 3478)
WAN = Endpoint.of("11.22.33.2", 5060)
NEW_WAN_ADDRESS = "11.22.33.77"
UDP = TransportProtocol.UDP

Scenario = Callable[..., Coroutine[object, object, None]]


def say(**what: object) -> None:
    """One line for the test, at once."""
    sys.stdout.write(json.dumps(what, default=str) + "\n")
    sys.stdout.flush()


def say_mapping(made: MapResult) -> None:
    say(external=made.external, lifetime_s=made.lifetime_s)


async def said_go() -> None:
    """Wait for the test."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def map_by_pcp(client: PcpClient, **wanted: Any) -> MapResult:
    wanted = {"suggested_external": None, "lifetime_s": 600, **wanted}
    return await client.map(CLIENT.port, UDP, **wanted)


async def pcp_life() -> None:
    async with PcpClient.open(ROUTER) as client:
        say(epoch_s=(await client.announce()).epoch_s)
        made = await map_by_pcp(client, lifetime_s=10)
        say_mapping(made)
        await said_go()
        renewed = await map_by_pcp(client, lifetime_s=10**6, nonce=made.nonce)
        say_mapping(renewed)
        await client.unmap(renewed)
        await client.unmap(renewed)
        say(removed=True)
        await said_go()


async def pcp_filter() -> None:
    async with PcpClient.open(ROUTER) as client:
        made = await map_by_pcp(client, filters=[Filter(IPv4Network("203.0.113.20/32"))])
        say_mapping(made)
        await said_go()
        await client.unmap(made)


async def pcp_prefer_failure() -> None:
    async with PcpClient.open(ROUTER) as client:
        http = Endpoint.of("0.0.0.0", 80)
        with refusal():
            await map_by_pcp(client, suggested_external=http, prefer_failure=True)
        client.timeout_s = 20  # miniupnpd tries 80, 81, 82, ... 1024, and so for each retransmission
        say_mapping(await map_by_pcp(client, suggested_external=http))


async def pcp_peer() -> None:
    async with PcpClient.open(ROUTER) as client:
        result = await client.peer(CLIENT.port, UDP, STRANGER, lifetime_s=300)
        say(external_ip=result.external.ip, remote=result.remote, lifetime_s=result.lifetime_s)


async def pcp_another_nonce() -> None:
    async with PcpClient.open(ROUTER) as client:
        made = await map_by_pcp(client)
        with refusal():
            await client.unmap(replace(made, nonce=bytes(12)))
        await client.unmap(made)
        say(removed=True)


async def pcp_ipv6() -> None:
    async with PcpClient.open(ROUTER_IPV6) as client:
        await client.announce()
        made = await map_by_pcp(client)
        say_mapping(made)
        await said_go()
        await client.unmap(made)
        say(removed=True)


async def pcp_link_local(address: str) -> None:
    async with PcpClient.open(ip_address(address)) as client:
        say(epoch_s=(await client.announce()).epoch_s, local=client.local.ip.is_link_local)


async def natpmp_life() -> None:
    async with NatPmpClient.open(ROUTER) as client:
        say(address=(await client.external_address()).address)
        made = await client.map(CLIENT.port, UDP, external_port=25060, lifetime_s=300)
        say(external_port=made.external_port, lifetime_s=made.lifetime_s)
        await said_go()
        again = await client.map(CLIENT.port, UDP, external_port=made.external_port, lifetime_s=10)
        say(external_port=again.external_port, lifetime_s=again.lifetime_s)
        await client.unmap(CLIENT.port, UDP)
        say(removed=True)
        await said_go()


async def refusals() -> None:
    async with PcpClient.open(ROUTER, timeout_s=10) as by_pcp, NatPmpClient.open(ROUTER) as by_natpmp:
        for question in (
            by_pcp.announce(),
            map_by_pcp(by_pcp),
            by_natpmp.external_address(),
            by_natpmp.map(CLIENT.port, UDP, external_port=0, lifetime_s=300),
        ):
            with refusal():
                await question
                say(refused=None)


async def epochs() -> None:
    async with PcpClient.open(ROUTER) as by_pcp, NatPmpClient.open(ROUTER) as by_natpmp:
        by_pcp.on_state_lost = lambda: say(lost="pcp")
        by_natpmp.on_state_lost = lambda: say(lost="nat-pmp")
        for _ in range(3):
            await by_pcp.announce()
            await by_natpmp.external_address()
            say(asked=True)
            await said_go()


async def listen(gateway: str = str(ROUTER)) -> None:
    def hear(news: Announcement) -> None:
        say(version=news.version, address=news.external_address, state_lost=news.state_lost)

    [interface] = [each for each in interfaces() if each.name == "eth0"]
    async with AnnouncementListener.open(ip_address(gateway), interface, on_announcement=hear):
        say(listening=True)
        await said_go()


@contextmanager
def refusal() -> Iterator[None]:
    try:
        yield
    except PcpError as error:
        say(refused=getattr(error.code, "name", error.code))
    except TransportError as error:
        say(failed=str(error))


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        pcp_life,
        pcp_filter,
        pcp_prefer_failure,
        pcp_peer,
        pcp_another_nonce,
        pcp_ipv6,
        pcp_link_local,
        natpmp_life,
        refusals,
        epochs,
        listen,
    )
}


class Running:
    """A scenario that runs on a host of a laboratory, inside the `with` block."""

    def __init__(self, host: Host, scenario: Scenario, *arguments: str) -> None:
        self._process: Process = host.popen(
            [sys.executable, "-m", "tests.lab.test_pcp", scenario.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._lines = Lines(self._process)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)
        self._output.close()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def line(self) -> dict[str, Any] | None:
        """The next thing that it says; None when it has ended."""
        line = self._lines.next()
        return json.loads(line) if line else None

    def go(self) -> None:
        """Let it go on."""
        self._input.write("\n")
        self._input.flush()

    def end(self) -> list[dict[str, Any]]:
        """Let it go on to its end; what it still says."""
        self._input.close()
        told = list(iter(self.line, None))
        assert self._process.wait(PATIENCE_SECONDS) == 0
        return [each for each in told if each is not None]


@pytest.fixture(scope="module", autouse=True)
def _igd() -> None:
    if (reason := why_no_igd()) is not None:
        pytest.skip(reason)


@contextmanager
def lab_with(igd: Igd | None = None) -> Iterator[Lab]:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE, igd=igd or Igd(upnp=False))
    with Lab(topology, start_server=False) as lab:
        yield lab


def told_by(lab: Lab, scenario: Scenario, *arguments: str) -> list[dict[str, Any]]:
    """What a scenario says that waits for nobody."""
    with Running(lab.client, scenario, *arguments) as client:
        return client.end()


def reaches(sender: socket.socket, to: Endpoint, receiver: socket.socket) -> bool:
    """Whether a datagram comes through."""
    sender.sendto(b"in", (str(to.ip), to.port))
    return next_datagram(receiver, 20 * FENCE_SECONDS) is not None


def test_a_pcp_mapping_lets_datagrams_in_until_it_is_removed(open_sockets: OpenSockets) -> None:
    with lab_with() as lab:
        [home], [stranger] = open_sockets(lab.client, [CLIENT]), open_sockets(lab.public, [STRANGER])
        assert not reaches(stranger, WAN, home)
        with Running(lab.client, pcp_life) as client:
            first = client.line()
            assert first is not None
            assert first["epoch_s"] < 10
            assert client.line() == {"external": str(WAN), "lifetime_s": 120}
            assert reaches(stranger, WAN, home)
            client.go()
            assert client.line() == {"external": str(WAN), "lifetime_s": 86400}
            assert client.line() == {"removed": True}
            assert not reaches(stranger, WAN, home)
            assert client.end() == []


def test_a_nat_pmp_mapping_lets_datagrams_in_until_it_is_removed(open_sockets: OpenSockets) -> None:
    """Removed by its internal port: the external one is another."""
    with lab_with() as lab:
        [home], [stranger] = open_sockets(lab.client, [CLIENT]), open_sockets(lab.public, [STRANGER])
        with Running(lab.client, natpmp_life) as client:
            assert client.line() == {"address": str(WAN.ip)}
            assert client.line() == {"external_port": 25060, "lifetime_s": 300}
            assert reaches(stranger, WAN.with_port(25060), home)
            client.go()
            assert client.line() == {"external_port": 25060, "lifetime_s": 10}
            assert client.line() == {"removed": True}
            assert not reaches(stranger, WAN.with_port(25060), home)
            assert client.end() == []


def test_a_pinhole_lets_ipv6_in_until_it_is_removed(open_sockets: OpenSockets) -> None:
    with lab_with() as lab:
        [home] = open_sockets(lab.client, [CLIENT_IPV6])
        [stranger] = open_sockets(lab.public, [OUTSIDE_IPV6])
        assert not reaches(stranger, CLIENT_IPV6, home)
        with Running(lab.client, pcp_ipv6) as client:
            assert client.line() == {"external": str(CLIENT_IPV6), "lifetime_s": 600}
            assert reaches(stranger, CLIENT_IPV6, home)
            client.go()
            assert client.line() == {"removed": True}
            assert not reaches(stranger, CLIENT_IPV6, home)
            assert client.end() == []


def test_a_link_local_gateway_is_asked_with_its_scope() -> None:
    with lab_with() as lab:
        shown = lab.router.run(["ip", "-6", "-j", "addr", "show", "dev", "lan", "scope", "link"], timeout=10)
        infos = [info for each in json.loads(shown.stdout) for info in each["addr_info"]]
        [address] = [info["local"] for info in infos if info]
        tentative = ["ip", "-6", "addr", "show", "dev", "eth0", "tentative"]
        while lab.client.run(tentative, timeout=10).stdout:
            time.sleep(0.05)
        [answer] = told_by(lab, pcp_link_local, f"{address}%eth0")
        assert answer["local"] is True


def test_a_filter_is_granted(open_sockets: OpenSockets) -> None:
    """More cannot be shown: miniupnpd 2.3.1 lets in everybody all the same."""
    with lab_with() as lab:
        [home], [stranger] = open_sockets(lab.client, [CLIENT]), open_sockets(lab.public, [STRANGER])
        with Running(lab.client, pcp_filter) as client:
            assert client.line() == {"external": str(WAN), "lifetime_s": 600}
            assert reaches(stranger, WAN, home)
            assert client.end() == []


def test_a_port_that_cannot_be_had_is_refused_only_to_who_wants_no_other() -> None:
    """One that is not allowed: for one that another mapping has, miniupnpd 2.3.1 gives the next, whatever."""
    with lab_with() as lab:
        refused, other = told_by(lab, pcp_prefer_failure)
        assert refused == {"refused": "CANNOT_PROVIDE_EXTERNAL"}
        assert Endpoint.parse(other["external"]).port >= 1024


def test_a_peer_is_told_of() -> None:
    with lab_with() as lab:
        assert told_by(lab, pcp_peer) == [
            {"external_ip": str(WAN.ip), "remote": str(STRANGER), "lifetime_s": 300}
        ]


def test_without_its_nonce_a_mapping_cannot_be_removed() -> None:
    with lab_with() as lab:
        assert told_by(lab, pcp_another_nonce) == [
            {"refused": "NOT_AUTHORIZED"},
            {"removed": True},
        ]


def test_a_router_behind_another_nat_refuses() -> None:
    """The daemon answers ANNOUNCE, and refuses mappings: it will not have an address that is not public."""
    with lab_with(Igd(wan_address="100.64.0.2", upnp=False)) as lab:
        assert told_by(lab, refusals) == [
            {"refused": None},
            {"refused": "NO_RESOURCES"},
            {"refused": "NETWORK_FAILURE"},
            {"refused": "NETWORK_FAILURE"},
        ]


def test_a_router_without_pcp_says_so_at_once() -> None:
    with lab_with(Igd(pcp=False)) as lab:
        told = told_by(lab, refusals)
        assert len(told) == 4
        for each in told:
            assert "nothing listens on UDP port 5351 there" in each["failed"]


def test_a_restart_is_seen_by_the_epoch_without_an_announcement() -> None:
    with lab_with() as lab, Running(lab.client, epochs) as client:
        assert client.line() == {"asked": True}
        time.sleep(3.2)  # the epochs tell whole seconds, and two of them are tolerated
        client.go()
        assert client.line() == {"asked": True}
        lab.igd.kill()
        lab.igd.start()
        client.go()
        assert client.end() == [{"lost": "pcp"}, {"lost": "nat-pmp"}, {"asked": True}]


def test_a_restart_and_a_new_address_are_announced() -> None:
    """With UPnP: without it, miniupnpd 2.3.1 does not watch its WAN address."""
    with lab_with(Igd()) as lab, Running(lab.client, listen) as listener:
        assert listener.line() == {"listening": True}
        lab.igd.restart()
        assert listener.line() == {"version": 2, "address": None, "state_lost": False}
        lab.igd.change_wan_address(NEW_WAN_ADDRESS)
        # For a moment the router has both addresses, and may tell of the old one first.
        told = (listener.line() for _ in range(4))
        assert (0, NEW_WAN_ADDRESS) in ((news["version"], news["address"]) for news in told if news)


def test_an_ipv6_gateway_is_heard() -> None:
    with lab_with() as lab:
        lab.igd.kill()
        with Running(lab.client, listen, str(ROUTER_IPV6)) as listener:
            assert listener.line() == {"listening": True}
            fake = [sys.executable, "-m", "tests.fakes.pcp_gateway", str(ROUTER_IPV6), "--announce", "lan"]
            lab.router.popen(fake, cwd=ROOT)
            assert listener.line() == {"version": 2, "address": None, "state_lost": False}


if __name__ == "__main__":
    asyncio.run(SCENARIOS[sys.argv[1]](*sys.argv[2:]))
