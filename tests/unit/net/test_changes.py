"""What is news of the network, what is none, and when it is told: with messages, looks and clocks of ours."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.errors import TransportError
from nattools.net import changes as module
from nattools.net.changes import Bulletin, Clocks, NetworkWatch, differences
from nattools.net.interfaces import Interface

NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE = 16, 17, 20, 21, 24, 25
UP, RUNNING = 0x01, 0x40
DEPRECATED, TENTATIVE, OPTIMISTIC = 0x20, 0x40, 0x04
EVERY_S = 0.01
PATIENCE_S = 10.0
A_WHILE_S = 0.4  # a bell has rung by then

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs netlink")


def message(kind: int, body: bytes) -> bytes:
    padding = b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + padding


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def link(flags: int, *, kind: int = NEW_LINK, name: str = "eth0", index: int = 2, family: int = 0) -> bytes:
    body = struct.pack("=BxHiII", family, 1, index, flags, 0) + attribute(3, name.encode() + b"\0")
    return message(kind, body)


def address(ip: str, *, kind: int = NEW_ADDRESS, flags: int = 0, cached: bytes = b"") -> bytes:
    parsed = ip_address(ip)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, 2) + attribute(1, parsed.packed)
    return message(kind, body + attribute(6, cached) + attribute(8, struct.pack("=I", flags)))


def told(*datagrams: bytes) -> list[str]:
    bulletin = Bulletin()
    return [reason for datagram in datagrams for reason in bulletin.read(datagram)]


NEWS = {
    "a link that goes down and up again": (
        [link(UP | RUNNING), link(UP), link(UP | RUNNING)],
        ["eth0 is up", "eth0 is down", "eth0 is up"],
    ),
    "a wireless link that tells its signal": ([link(UP | RUNNING, index=3)] * 3, ["eth0 is up"]),
    "links are told apart": (
        [link(UP | RUNNING), link(UP | RUNNING, name="wlan0", index=3)],
        ["eth0 is up", "wlan0 is up"],
    ),
    "a link that goes and comes": (
        [link(UP | RUNNING), link(0, kind=DEL_LINK), link(UP | RUNNING)],
        ["eth0 is up", "eth0 is gone", "eth0 is up"],
    ),
    "a bridge about its ports": ([link(UP, family=7), link(0, kind=DEL_LINK, family=7)], []),
    "an address that comes and goes": (
        [address("192.168.0.7"), address("192.168.0.7", kind=DEL_ADDRESS)],
        ["the address 192.168.0.7 was added", "the address 192.168.0.7 was removed"],
    ),
    "router advertisements that repeat an address with new lifetimes": (
        [address("2001:db8::7", cached=bytes([n] * 16)) for n in range(5)],
        ["the address 2001:db8::7 was added"],
    ),
    "an address that somebody else might have is not usable yet": (
        [address("2001:db8::7", flags=TENTATIVE), address("2001:db8::7")],
        ["the address 2001:db8::7 was added"],
    ),
    "unless it is used at once": (
        [address("2001:db8::7", flags=TENTATIVE | OPTIMISTIC)],
        ["the address 2001:db8::7 was added"],
    ),
    "an address that is not to be used any more": (
        [address("2001:db8::7"), address("2001:db8::7", flags=DEPRECATED)],
        ["the address 2001:db8::7 was added", "the address 2001:db8::7 was changed"],
    ),
    "routes": (
        [message(NEW_ROUTE, bytes(12)), message(DEL_ROUTE, bytes(12))],
        ["a route was added", "a route was removed"],
    ),
    "several in one datagram": (
        [address("192.168.0.7") + message(NEW_ROUTE, bytes(13)) + link(UP)],
        ["the address 192.168.0.7 was added", "a route was added", "eth0 is down"],
    ),
    "an address without one": (
        [message(NEW_ADDRESS, struct.pack("=BBBBI", 2, 24, 0, 0, 2))],
        ["an address was added"],
    ),
    "something else": ([message(99, bytes(64)), b"", bytes(15), bytes(64)], []),
}


@needs_linux
@pytest.mark.parametrize(("datagrams", "expected"), NEWS.values(), ids=NEWS)
def test_of_what_the_kernel_tells_the_news_is_kept(datagrams: list[bytes], expected: list[str]) -> None:
    assert told(*datagrams) == expected


def test_after_lost_messages_anything_is_news() -> None:
    bulletin = Bulletin()
    for _ in range(2):
        assert list(bulletin.read(address("192.168.0.7"))) == ["the address 192.168.0.7 was added"]
        bulletin.forget()


def test_what_is_remembered_is_bounded() -> None:
    bulletin = Bulletin()
    for number in range(10_000):
        list(bulletin.read(link(UP | RUNNING, index=number)))
    assert len(bulletin._known) <= 4096


KINDS = st.sampled_from([NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE])
MESSAGES = st.builds(message, KINDS, st.binary(max_size=48))


@given(st.lists(st.binary(max_size=64) | MESSAGES | st.lists(MESSAGES).map(b"".join), max_size=8))
def test_no_datagram_breaks_the_bulletin(datagrams: list[bytes]) -> None:
    assert all(isinstance(reason, str) for reason in told(*datagrams))


@given(st.sampled_from([datagrams for datagrams, _ in NEWS.values() if datagrams]), st.data())
def test_no_cut_breaks_the_bulletin(datagrams: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(datagrams)
    told(whole[: data.draw(st.integers(0, len(whole)))])


def interface(name: str, *addresses: str, is_up: bool = True) -> Interface:
    parsed = tuple(ip_interface(each) for each in addresses)
    return Interface(name, 2, parsed, is_up, True, False, False)


ETH0 = interface("eth0", "192.168.0.7/24")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([ETH0], []),
        ([replace(ETH0, is_multicast=False, index=9)], []),
        ([replace(ETH0, is_up=False)], ["eth0 is down"]),
        ([], ["eth0 is gone"]),
        ([ETH0, interface("tun0", "10.8.0.2/24")], ["tun0 is up", "the address 10.8.0.2 was added"]),
        (
            [interface("eth0", "192.168.0.8/24")],
            ["the address 192.168.0.7 was removed", "the address 192.168.0.8 was added"],
        ),
    ],
)
def test_two_looks_are_compared(after: list[Interface], expected: list[str]) -> None:
    assert list(differences([ETH0], after)) == expected


@dataclass
class World:
    """A machine whose interfaces and clocks are a test's."""

    interfaces: list[Interface] = field(default_factory=lambda: [ETH0])
    awake_s: float = 1000.0
    always_s: float = 5000.0
    looks: int = 0
    told: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, reason: str) -> None:
        self.told.append(reason)
        self.news.set()

    def look(self) -> list[Interface]:
        self.looks += 1
        return self.interfaces

    def passes(self, seconds: float, *, asleep_s: float = 0) -> None:
        self.awake_s += seconds
        self.always_s += seconds + asleep_s

    @contextmanager
    def watched(self, *, on_change: Callable[[str], None] | None = None) -> Iterator[NetworkWatch]:
        watch = NetworkWatch.open(
            on_change or self.tell,
            clocks=Clocks(lambda: self.awake_s, lambda: self.always_s),
            look=self.look,
            every_s=EVERY_S,
        )
        try:
            yield watch
        finally:
            watch.close()

    async def until_told(self, count: int = 1) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()
        return self.told


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One where nobody tells changes: they have to be seen."""
    monkeypatch.setattr(module, "_open_netlink", lambda: None)
    return World()


def test_what_is_seen_to_change_is_told_once(world: World) -> None:
    async def run() -> None:
        with world.watched():
            world.interfaces = [interface("eth0", "192.168.0.8/24", "10.0.0.1/8", "10.0.0.2/8", "10.0.0.3/8")]
            (reason,) = await world.until_told()
            assert reason == (
                "the address 192.168.0.7 was removed, the address 192.168.0.8 was added, "
                "the address 10.0.0.1 was added and more"
            )
            await asyncio.sleep(A_WHILE_S)
            world.interfaces = [replace(ETH0, is_up=False)]
            await world.until_told(2)
            assert len(world.told) == 2

    asyncio.run(run())


def test_a_network_that_stays_as_it_is_is_no_news(world: World) -> None:
    async def run() -> None:
        with world.watched():
            await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert world.told == []


def test_a_system_that_tells_nothing_for_a_while_is_no_news(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> list[Interface]:
        world.looks += 1
        if world.looks % 2:
            raise TransportError("the system does not tell its network interfaces")
        return world.interfaces

    monkeypatch.setattr(world, "look", look)

    async def run() -> None:
        with world.watched():
            await asyncio.sleep(A_WHILE_S)
            before = list(world.told)
            world.interfaces = [replace(ETH0, is_up=False)]
            await world.until_told(len(before) + 1)

    asyncio.run(run())
    assert world.told[-1] == "eth0 is down"


def test_a_sleep_is_told(world: World) -> None:
    async def run() -> None:
        with world.watched():
            world.passes(2, asleep_s=3600)
            await world.until_told()
            await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert world.told == ["the machine slept 3600 s"]


def test_a_process_that_stood_still_is_told(world: World) -> None:
    async def run() -> None:
        with world.watched():
            world.passes(60)
            await world.until_told()
            await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert world.told == ["the machine slept, or this program stood still, for 60 s"]


def test_a_busy_machine_and_a_corrected_clock_are_no_news(world: World) -> None:
    async def run() -> None:
        with world.watched():
            for seconds, corrected_s in ((4.0, 0.0), (1.0, 2.0), (1.0, -3600.0)):
                world.passes(seconds, asleep_s=corrected_s)
                await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert world.told == []


def test_nothing_is_told_after_the_end(world: World) -> None:
    async def run() -> None:
        with world.watched() as watch:
            world.passes(2, asleep_s=3600)
            while watch._bell is None:  # noqa: ASYNC110  # it is about to ring
                await asyncio.sleep(EVERY_S / 10)
            watch.close()
            looks = world.looks
            await asyncio.sleep(A_WHILE_S)
            assert world.looks == looks
            watch.close()

    asyncio.run(run())
    assert world.told == []


def test_who_is_told_may_end_it_at_once(world: World) -> None:
    async def run() -> None:
        def end(reason: str) -> None:
            world.tell(reason)
            watch.close()

        with world.watched(on_change=end) as watch:
            world.passes(2, asleep_s=3600)
            await world.until_told()
            world.passes(2, asleep_s=3600)
            await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert len(world.told) == 1


def test_it_goes_on_when_who_is_told_fails(world: World) -> None:
    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )

        def fail(reason: str) -> None:
            world.tell(reason)
            raise ValueError(reason)

        with world.watched(on_change=fail):
            for count in (1, 2):
                world.passes(2, asleep_s=3600)
                await world.until_told(count)
        assert len(failures) == 2

    asyncio.run(run())


@needs_linux
def test_where_a_sandbox_denies_netlink_the_interfaces_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()

    async def run(seen: int) -> None:
        with world.watched():
            await asyncio.sleep(EVERY_S * 5)
            assert (world.looks > 0) == bool(seen)

    asyncio.run(run(0))
    monkeypatch.setattr(module, "_NETLINK_ROUTE", 4096)  # no such family: as it is where it is denied
    asyncio.run(run(1))


@needs_linux
def test_what_another_process_writes_is_not_believed() -> None:
    world = World()

    async def run() -> None:
        with world.watched() as watch:
            assert watch._netlink is not None
            heard_at = watch._netlink.getsockname()
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as forger:
                forger.bind((0, 0))
                forger.sendto(message(NEW_ROUTE, bytes(12)), heard_at)
            await asyncio.sleep(A_WHILE_S)

    asyncio.run(run())
    assert "a route was added" not in " ".join(world.told)
