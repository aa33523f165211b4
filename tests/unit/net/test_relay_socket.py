"""Pairs of ports, and many sockets watched as one, on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from nattools.errors import LocalAddressError, TransportError
from nattools.net.relay_socket import SocketWatch, open_port_pair

LOOPBACK = ip_address("127.0.0.1")
_WITHIN_S = 10.0


def free_pair(address: str = "127.0.0.1") -> int:
    """An even port that is free with the next one; nobody else on this machine asks for these."""
    for even in range(41000, 49000, 2):
        pair = open_port_pair(ip_address(address), even)
        if pair is not None:
            for sock in pair:
                sock.close()
            return even
    raise AssertionError("no pair of ports is free")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_pair_is_two_ports_in_a_row_that_do_not_block(address: str) -> None:
    even = free_pair(address)
    pair = open_port_pair(ip_address(address), even)
    assert pair is not None
    with pair[0], pair[1]:
        assert [sock.getsockname()[:2] for sock in pair] == [(address, even), (address, even + 1)]
        for sock in pair:
            with pytest.raises(BlockingIOError):
                sock.recv(1)


@pytest.mark.parametrize("taken", [0, 1])
def test_where_one_port_is_taken_there_is_no_pair_and_the_other_stays_free(taken: int) -> None:
    even = free_pair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("127.0.0.1", even + taken))
        assert open_port_pair(LOOPBACK, even) is None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", even + 1 - taken))


def test_an_address_of_another_machine_is_refused_with_a_reason() -> None:
    with pytest.raises(LocalAddressError, match=r"192\.0\.2\.1, UDP ports 41000 and 41001: .*this machine"):
        open_port_pair(ip_address("192.0.2.1"), 41000)


def bound(stack: ExitStack, count: int) -> list[socket.socket]:
    """So many sockets, which do not block."""
    made = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
    for sock in made:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    return made


async def turns(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    while True:
        if is_so():
            return
        await asyncio.sleep(0)


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, _WITHIN_S))


@pytest.mark.parametrize("has_epoll", [True, False])
def test_sockets_that_have_something_are_named_until_they_are_empty_or_removed(
    has_epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_epoll:
        monkeypatch.delattr("select.epoll", raising=False)

    async def watching() -> None:
        named: list[str] = []
        with ExitStack() as stack:
            first, second, third = bound(stack, 3)
            watch: SocketWatch[str] = SocketWatch(named.extend)
            for sock, name in ((first, "first"), (second, "second"), (third, "third")):
                watch.add(sock, name)
            for sock in (first, third):
                sock.sendto(b"one", sock.getsockname())
            await until(lambda: named.count("first") > 2 < named.count("third"))
            assert set(named) == {"first", "third"}
            first.recv(10)
            watch.remove(third)
            await turns(2)  # it may be said once more of what was found in the same look
            named.clear()
            second.sendto(b"two", second.getsockname())
            await until(lambda: named.count("second") > 2)
            assert set(named) == {"second"}
            watch.remove(third)  # once more does nothing
            watch.close()
            named.clear()
            await turns(5)
            assert named == []
            watch.close()

    run(watching())


def test_a_loop_that_cannot_watch_sockets_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watching() -> None:
        def refuse(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
        with pytest.raises(TransportError, match="SelectorEventLoop"):
            SocketWatch(lambda owners: None)

    run(watching())
