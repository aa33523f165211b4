"""The servers that settings name: their addresses, when they are told, and what is learned from them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from ipaddress import ip_address

import pytest

from nattools.binding.providers import stun as stun_module
from nattools.binding.providers.stun import IntervalLearner, StunServers
from nattools.binding.schedule import SAFE_INTERVAL_S
from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.stun import lifetime
from nattools.stun.lifetime import safe_interval_s
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer
from tests.fakes.dns_server import stub_dns

TIME_LIMIT_S = 20
ZONE = """
one.test. 60 IN A 203.0.113.10
one.test. 60 IN A 203.0.113.11
one.test. 60 IN AAAA 2001:db8::10
_stun._udp.two.test. 60 IN SRV 0 0 3479 one.test.
"""


def run(work: Coroutine[None, None, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIME_LIMIT_S):
            await work

    asyncio.run(limited())


async def looked_up() -> None:
    """Wait for the tasks of everybody else."""
    this = asyncio.current_task()
    await asyncio.wait([task for task in asyncio.all_tasks() if task is not this])


def told(servers: StunServers, *, ipv6: bool = False) -> list[str]:
    return [str(endpoint) for endpoint in servers.known(ipv6=ipv6) or ()]


def test_addresses_are_known_at_once_those_of_the_family() -> None:
    def unexpected(_ipv6: bool) -> None:
        raise AssertionError("nothing has changed")

    servers = StunServers(["203.0.113.10", "stun:203.0.113.11:3479", "[2001:db8::1]:3480"], unexpected)
    assert told(servers) == ["203.0.113.10:3478", "203.0.113.11:3479"]
    assert told(servers, ipv6=True) == ["[2001:db8::1]:3480"]
    assert servers.failure(ipv6=False) == ""
    assert StunServers([], unexpected).known(ipv6=False) == ()


def test_servers_of_the_other_family_alone_are_accounted_for() -> None:
    servers = StunServers(["203.0.113.10"], lambda _: None)
    assert servers.known(ipv6=True) == ()
    assert servers.failure(ipv6=True) == "stun:203.0.113.10 is of the other address family"


def test_a_server_over_tls_is_refused() -> None:
    with pytest.raises(DecodeError, match="only STUN over UDP"):
        StunServers(["stuns:stun.example.org"], lambda _: None)


def test_names_are_looked_up_once_for_everybody_with_all_their_addresses() -> None:
    async def work() -> None:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        async with stub_dns(ZONE) as (nameserver, asked):
            servers = StunServers(
                ["two.test", "203.0.113.9", "one.test:3480"], changes.put_nowait, nameservers=[nameserver]
            )
            assert servers.known(ipv6=False) is None
            assert servers.known(ipv6=False) is None
            assert await changes.get() is False
            found = told(servers)
            assert sorted(found[:2]) == ["203.0.113.10:3479", "203.0.113.11:3479"]
            assert found[2] == "203.0.113.9:3478"
            assert sorted(found[3:]) == ["203.0.113.10:3480", "203.0.113.11:3480"]
            assert asked.count("SRV _stun._udp.two.test") == 1
            assert servers.known(ipv6=True) is None
            assert await changes.get() is True
            assert told(servers, ipv6=True) == ["[2001:db8::10]:3479", "[2001:db8::10]:3480"]

    run(work())


def test_one_that_is_slow_comes_in_later() -> None:
    async def work() -> None:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        async with stub_dns(ZONE, deaf_to=["SRV"]) as (nameserver, _):
            servers = StunServers(["two.test", "one.test:3480"], changes.put_nowait, nameservers=[nameserver])
            servers.known(ipv6=False)
            await changes.get()
            assert {endpoint.port for endpoint in servers.known(ipv6=False) or ()} == {3480}
            await servers.close()

    run(work())


def test_names_without_an_address_are_logged_once_and_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        async with stub_dns("") as (nameserver, _):
            servers = StunServers(["nobody.test:3478"], changes.put_nowait, nameservers=[nameserver])
            servers.known(ipv6=False)
            await changes.get()
            assert servers.known(ipv6=False) == ()
            assert "no IPv4 address for nobody.test" in servers.failure(ipv6=False)
            servers.look_up_again()
            await looked_up()
            assert changes.empty()

    run(work())
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_looked_up_again_only_other_addresses_are_news() -> None:
    async def work() -> None:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        async with stub_dns("one.test. 60 IN A 203.0.113.10") as (first, _):
            servers = StunServers(["one.test:3478"], changes.put_nowait, nameservers=[first])
            servers.look_up_again()  # nobody has wanted to know yet
            servers.known(ipv6=False)
            await changes.get()
            servers.look_up_again()
            await looked_up()
            assert changes.empty()
        async with stub_dns("one.test. 60 IN A 203.0.113.20") as (second, _):
            servers._nameservers = [second]  # the network is another
            servers.look_up_again()
            await changes.get()
            assert told(servers) == ["203.0.113.20:3478"]
        async with stub_dns("") as (third, _):
            servers._nameservers = [third]
            servers.look_up_again()
            await looked_up()
            assert told(servers) == ["203.0.113.20:3478"]

    run(work())


def learned(*servers: Endpoint) -> list[float]:
    intervals: list[float] = []
    run(IntervalLearner(intervals.append).learn(servers, ip_address("127.0.0.1")))
    return intervals


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 needs to be set up first on this system")
def test_the_interval_grows_with_what_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    rests_s = (1.5, 2.0, 2.5)
    monkeypatch.setattr(lifetime, "RESTS_S", rests_s)
    monkeypatch.setattr(stun_module, "socket_names", lambda: ("ask", "idle-1", "idle-2", "idle-3"))
    intervals: list[float] = []

    async def work() -> None:
        addresses = ServerAddresses(ip_address("127.0.0.1"), 0, ip_address("127.0.0.2"), 0)
        async with await StunServer.start(addresses) as server:
            endpoint = Endpoint(server.addresses.address, server.addresses.port)
            await IntervalLearner(intervals.append).learn([endpoint], ip_address("127.0.0.1"))

    run(work())
    assert len(intervals) >= len(rests_s)
    assert intervals == sorted(intervals)
    for interval, rest_s in zip(intervals, rests_s, strict=False):
        assert interval >= safe_interval_s(rest_s)


def test_what_cannot_be_learned_is_left_on_the_safe_side() -> None:
    async def work() -> None:
        async with await StunServer.start(ServerAddresses(ip_address("127.0.0.1"), 0)) as server:
            endpoint = Endpoint(server.addresses.address, server.addresses.port)
            await IntervalLearner(intervals.append).learn([endpoint], ip_address("127.0.0.1"))

    intervals: list[float] = []
    run(work())
    assert intervals == [SAFE_INTERVAL_S]
    assert learned() == [SAFE_INTERVAL_S]
    intervals.clear()
    nowhere = ip_address("203.0.113.1")  # no address of this machine, so that nothing can be sent
    run(IntervalLearner(intervals.append).learn([Endpoint.parse("127.0.0.1:9")], nowhere))
    assert intervals == [SAFE_INTERVAL_S]
