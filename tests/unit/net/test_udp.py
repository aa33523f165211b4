"""Sockets of somebody else's: what is taken of them, what is left alone, and what is given back."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError, TransportError
from nattools.net.udp import UdpSocket, open_consecutive

TIME_LIMIT_S = 10
IP_RECVERR = 11  # <linux/in.h>

Arrivals = asyncio.Queue[tuple[bytes, Endpoint]]


def run(work: Coroutine[None, None, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIME_LIMIT_S):
            await work

    asyncio.run(limited())


@contextmanager
def bound(ip: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        yield sock


def endpoint(sock: socket.socket) -> Endpoint:
    return Endpoint.of(*sock.getsockname()[:2])


def adopting(
    scenario: Callable[[socket.socket, UdpSocket, Arrivals], Awaitable[None]], sock: socket.socket
) -> None:
    async def work() -> None:
        arrivals: Arrivals = asyncio.Queue()
        adopted = await UdpSocket.adopt(sock, lambda data, source: arrivals.put_nowait((data, source)))
        try:
            await scenario(sock, adopted, arrivals)
        finally:
            adopted.close()

    run(work())


def test_an_adopted_socket_sends_and_receives_from_its_own_port() -> None:
    async def scenario(sock: socket.socket, adopted: UdpSocket, arrivals: Arrivals) -> None:
        assert adopted.local == endpoint(sock)
        with bound() as peer:
            for data in (b"INVITE", b""):
                peer.sendto(data, sock.getsockname())
                assert await arrivals.get() == (data, endpoint(peer))
                adopted.send(data, endpoint(peer))
                assert peer.recvfrom(100) == (data, sock.getsockname())

    with bound() as sock:
        adopting(scenario, sock)


@pytest.mark.parametrize("timeout_s", [None, 0.0, 2.0])
def test_it_is_given_back_open_and_in_its_mode(timeout_s: float | None) -> None:
    async def scenario(sock: socket.socket, adopted: UdpSocket, _arrivals: Arrivals) -> None:
        assert not os.get_blocking(sock.fileno())
        adopted.close()
        adopted.close()
        assert sock.gettimeout() == timeout_s

    with bound() as sock:
        sock.settimeout(timeout_s)
        mode = os.get_blocking(sock.fileno())
        adopting(scenario, sock)
        assert os.get_blocking(sock.fileno()) == mode
        sock.settimeout(2.0)
        with bound() as peer:
            peer.sendto(b"still here", sock.getsockname())
            assert sock.recv(100) == b"still here"


def test_a_socket_that_was_made_non_blocking_behind_pythons_back_stays_so() -> None:
    async def scenario(_sock: socket.socket, _adopted: UdpSocket, _arrivals: Arrivals) -> None: ...

    with bound() as sock:
        os.set_blocking(sock.fileno(), False)
        adopting(scenario, sock)
        assert not os.get_blocking(sock.fileno())


def test_its_owner_may_close_it_meanwhile() -> None:
    async def scenario(sock: socket.socket, adopted: UdpSocket, arrivals: Arrivals) -> None:
        sock.close()
        with bound() as peer:
            peer.sendto(b"late", (str(adopted.local.ip), adopted.local.port))
            assert await arrivals.get() == (b"late", endpoint(peer))

    with bound() as sock:
        adopting(scenario, sock)


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
def test_options_are_left_alone() -> None:
    async def scenario(sock: socket.socket, _adopted: UdpSocket, _arrivals: Arrivals) -> None:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_RECVERR) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0

    with bound() as sock:
        adopting(scenario, sock)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a queue")
def test_errors_that_nobody_wants_to_know_do_not_keep_the_loop_busy() -> None:
    async def scenario(sock: socket.socket, adopted: UdpSocket, _arrivals: Arrivals) -> None:
        poll = select.poll()
        poll.register(sock, 0)
        with bound() as nobody:
            destination = endpoint(nobody)
        adopted.send(b"anybody there?", destination)
        assert poll.poll(0) == [(sock.fileno(), select.POLLERR)]
        while poll.poll(0):  # noqa: ASYNC110  the kernel has no event
            await asyncio.sleep(0.01)

    with bound() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        adopting(scenario, sock)


def refused(sock: socket.socket) -> pytest.ExceptionInfo[TransportError]:
    async def adopt() -> None:
        await UdpSocket.adopt(sock, lambda *_: None)

    with pytest.raises(TransportError) as info:
        run(adopt())
    return info


def test_a_socket_that_cannot_have_a_binding_is_refused_with_the_reason() -> None:
    with bound() as sock, bound() as peer:
        sock.connect(peer.getsockname())
        assert f"connected to {endpoint(peer)}" in str(refused(sock).value)
        sock.close()
        assert "closed" in str(refused(sock).value)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        assert "not a UDP socket" in str(refused(tcp).value)
    local, other = socket.socketpair()
    with local, other:
        assert "not a UDP socket" in str(refused(local).value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        info = refused(unbound)
        assert info.type is LocalAddressError
        assert "bind it first" in str(info.value)


@contextmanager
def dual_stack(ip: str = "::") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((ip, 0))
        yield sock


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no dual-stack sockets")
def test_a_dual_stack_socket_has_ipv4_peers_by_their_ipv4_endpoints() -> None:
    async def scenario(sock: socket.socket, adopted: UdpSocket, arrivals: Arrivals) -> None:
        assert adopted.is_dual_stack
        for ip in ("127.0.0.1", "::1"):
            with bound(ip) as peer:
                peer.sendto(b"hello", (ip, sock.getsockname()[1]))
                assert await arrivals.get() == (b"hello", endpoint(peer))
                adopted.send(b"yes", endpoint(peer))
                assert peer.recv(100) == b"yes"

    with dual_stack() as sock:
        adopting(scenario, sock)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no dual-stack sockets")
def test_one_that_is_bound_to_a_mapped_address_is_an_ipv4_one() -> None:
    async def scenario(_sock: socket.socket, adopted: UdpSocket, _arrivals: Arrivals) -> None:
        assert adopted.local.ip == ip_address("127.0.0.1")

    with dual_stack("::ffff:127.0.0.1") as sock:
        adopting(scenario, sock)


def test_consecutive_ports_are_the_first_that_are_all_free() -> None:
    async def work() -> None:
        quiet = (lambda *_: None, lambda *_: None)
        loopback = ip_address("127.0.0.1")
        with bound() as taken:
            port = taken.getsockname()[1]
            candidates = [port - 1, port, *range(port + 11, port + 211, 2)]
            first, second = await open_consecutive(loopback, candidates, [quiet, quiet])
            assert second.local.port == first.local.port + 1
            assert port not in (first.local.port, second.local.port)
            with pytest.raises(LocalAddressError, match="none is free with the next one"):
                await open_consecutive(loopback, [port - 1, port], [quiet, quiet])
            with pytest.raises(LocalAddressError, match="in use"):
                await open_consecutive(loopback, [port], [quiet])
            with pytest.raises(LocalAddressError, match=r"203\.0\.113\.1"):
                await open_consecutive(ip_address("203.0.113.1"), [port, port + 1], [quiet])
            first.close()
            second.close()

    run(work())
