"""The pair of sockets between two threads, of the system's own kind and of the one that every system has."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nattools.net.udp import datagram_pair

TIMEOUT_S = 20.0


@pytest.fixture(params=["the system's own", "loopback"])
def pair(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[socket.socket, socket.socket]]:
    with monkeypatch.context() as without:
        if request.param == "loopback":
            without.delattr(socket, "AF_UNIX", raising=False)
        one, other = datagram_pair()
    with one, other:
        for sock in (one, other):
            sock.settimeout(TIMEOUT_S)
        yield one, other


def test_datagrams_arrive_whole_and_apart_both_ways(pair: tuple[socket.socket, socket.socket]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        for data in (b"a", b"", bytes(65_507)):
            sender.send(data)
        assert [receiver.recv(65_535) for _ in range(3)] == [b"a", b"", bytes(65_507)]


def test_a_burst_is_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    one.setblocking(False)  # with a timeout Linux would wait already when a quarter of the room is taken
    for number in range(100):
        one.send(bytes([number]))
    assert [other.recv(1)[0] for _ in range(100)] == list(range(100))


def test_nobody_else_can_send_to_a_loopback_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.delattr(socket, "AF_UNIX", raising=False)
        one, other = datagram_pair()
    with one, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"forged", other.getsockname())
        one.send(b"genuine")
        other.settimeout(TIMEOUT_S)
        assert other.recv(16) == b"genuine"
