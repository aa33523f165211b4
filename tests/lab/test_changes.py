"""A real kernel's news of its network: what is told of it, how soon after, and how often."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nattools.lab.namespaces import Host, Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines

pytestmark = pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="needs a kernel with IPv6")

_WATCH = """
import asyncio, sys
from nattools.net.changes import NetworkWatch

async def main():
    watch = NetworkWatch.open(lambda reason: print(reason, flush=True))
    print("watching", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    watch.close()

asyncio.run(main())
"""
_MANY_ROUTES = 20_000


class Watcher:
    """A program on a host that prints what it is told of the network."""

    def __init__(self, host: Host) -> None:
        self.process = host.popen(
            [sys.executable, "-P", "-W", "error", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lines = Lines(self.process)

    def next(self) -> str:
        return self._lines.next()

    def until(self, *parts: str) -> str:
        """The first that has one of these in it."""
        while not any(part in (told := self.next()) for part in parts):
            assert told, "the watcher has ended"
        return told

    def end(self) -> list[str]:
        """What it tells until its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        rest = []
        while told := self.next():
            rest.append(told)
        assert self.process.wait(PATIENCE_SECONDS) == 0
        return rest


@contextmanager
def watching(host: Host) -> Iterator[Watcher]:
    watcher = Watcher(host)
    try:
        assert watcher.next() == "watching"
        yield watcher
    finally:
        watcher.process.kill()
        watcher.process.wait(PATIENCE_SECONDS)
        for stream in (watcher.process.stdin, watcher.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def settled() -> Iterator[Host]:
    """A host at 198.51.100.108 and 2001:db8:1::108, that is heard of no more before a test begins."""
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "tentative" in lab.client.run(["ip", "-6", "addr"], timeout=5).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield lab.client


@pytest.fixture(scope="module")
def client() -> Iterator[Host]:
    """One for tests that leave it as they found it."""
    with settled() as host:
        yield host


@pytest.fixture
def own_client() -> Iterator[Host]:
    """One that only this test has."""
    with settled() as host:
        yield host


def ip(host: Host, *commands: str) -> None:
    done = host.run(["ip", "-batch", "-"], timeout=30, input="".join(f"{line}\n" for line in commands))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("address", ["10.9.8.7/24", "2001:db8:9::7/64"])
def test_an_address_that_comes_and_goes_is_told(client: Host, address: str) -> None:
    ip_alone = address.partition("/")[0]
    nodad = "nodad" if ":" in address else ""
    with watching(client) as watcher:
        ip(client, f"addr add {address} dev eth0 {nodad}")
        assert f"the address {ip_alone} was added" in watcher.until(ip_alone)
        ip(client, f"addr del {address} dev eth0")
        assert f"the address {ip_alone} was removed" in watcher.until(ip_alone)


def test_a_cable_that_is_pulled_and_put_back_is_told(own_client: Host) -> None:
    with watching(own_client) as watcher:
        ip(own_client, "link set eth0 down")
        watcher.until("eth0 is down", "and more")
        ip(own_client, "link set eth0 up")
        watcher.until("eth0 is up")


def test_another_default_route_is_told(client: Host) -> None:
    with watching(client) as watcher:
        ip(client, "route del default")
        assert watcher.next() == "a route was removed"
        ip(client, "route add default via 198.51.100.1")
        assert watcher.next() == "a route was added"


def test_what_happens_together_is_told_together(own_client: Host) -> None:
    with watching(own_client) as watcher:
        ip(
            own_client,
            "addr add 10.9.8.7/24 dev eth0",
            "addr del 198.51.100.108/24 dev eth0",
            "route replace default via 10.9.8.1",
        )
        told = [watcher.next()]
        time.sleep(1)
        told += watcher.end()
        assert len(told) <= 2
        assert "the address 10.9.8.7 was added" in told[0]


def test_a_lifetime_that_is_renewed_is_not_told(own_client: Host) -> None:
    forever = "valid_lft 7200 preferred_lft 3600"
    ip(own_client, f"addr add 2001:db8:9::7/64 dev eth0 nodad {forever}")
    with watching(own_client) as watcher:
        for seconds in range(1800, 1810):
            ip(own_client, f"addr change 2001:db8:9::7/64 dev eth0 valid_lft 7200 preferred_lft {seconds}")
        time.sleep(1)
        told = watcher.end()
        assert told in ([], ["the address 2001:db8:9::7 was added"])  # nothing was known of it before


def test_a_flood_of_routes_rings_few_bells(own_client: Host) -> None:
    commands = [
        f"route add 10.{number >> 8 & 0xFF}.{number & 0xFF}.0/24 via 198.51.100.1"
        for number in range(_MANY_ROUTES)
    ]
    with watching(own_client) as watcher:
        began = time.monotonic()
        ip(own_client, *commands)
        time.sleep(1)
        told = watcher.end()
        lasted_s = time.monotonic() - began
        assert told
        assert len(told) <= lasted_s / 0.25 + 2


def test_a_quiet_network_is_quiet(client: Host) -> None:
    with watching(client) as watcher:
        time.sleep(4.5)  # two looks at the clocks
        assert watcher.end() == []


def test_a_process_that_was_stopped_is_told(client: Host) -> None:
    with watching(client) as watcher:
        watcher.process.send_signal(signal.SIGSTOP)
        time.sleep(7.5)  # later than by 5 s, whenever the next look was due
        watcher.process.send_signal(signal.SIGCONT)
        assert "this program stood still" in watcher.next()
