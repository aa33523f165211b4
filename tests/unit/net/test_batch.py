"""Datagrams by the batch, over real sockets on loopback and over a system that fails as it is told."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.net.listener import Datagram, UdpListener

np = pytest.importorskip("numpy")

from nattools.net import batch as batch_module  # noqa: E402 - there is none without numpy
from nattools.net.batch import (  # noqa: E402 - it needs numpy
    BATCHES_KEPT,
    BATCHES_PER_WAKEUP,
    REPLY_BYTES,
    BatchBuffers,
    BatchReader,
    is_available,
)

pytestmark = pytest.mark.skipif(not is_available(), reason="Linux on x86-64 or aarch64 only")

ANY_PORT = Endpoint(ip_address("127.0.0.1"), 0)
TIME_LIMIT_S = 5
MOST_PAYLOAD_BYTES = 65_507


@contextmanager
def client(ip: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        sock.settimeout(TIME_LIMIT_S)
        yield sock


def never(listener: UdpListener, datagram: Datagram) -> None:
    raise AssertionError("the listener's own way is not taken")


def read(
    act: Callable[[Endpoint], None],
    on_batch: Callable[[BatchReader, int], None],
    is_done: Callable[[], bool],
    *,
    local: Endpoint = ANY_PORT,
    rows: int = 8,
    destinations: bool = False,
    is_closed: bool = False,
) -> None:
    """Open a reader, do `act` towards it, and let it read until all is there that is waited for."""

    async def run() -> None:
        done = asyncio.Event()

        def note(reader: BatchReader, count: int) -> None:
            on_batch(reader, count)
            if is_done():
                done.set()

        listener = UdpListener.open(local, never)
        try:
            BatchReader(
                listener, BatchBuffers(ipv6=local.is_ipv6, rows=rows, destinations=destinations), note
            )
            act(listener.local)
            async with asyncio.timeout(TIME_LIMIT_S):
                await done.wait()
        finally:
            if not is_closed:
                listener.close()

    asyncio.run(run())


def test_datagrams_come_in_batches_with_their_sources_whole_and_in_order() -> None:
    sent = [b"", b"a", bytes(20), bytes(range(256)), bytes(MOST_PAYLOAD_BYTES)] * 4
    got: list[Datagram] = []
    counts: list[int] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        counts.append(count)
        got.extend(reader.datagram(row) for row in range(count))
        for row in range(count):
            start = len(got) - count + row
            assert int(reader.buffers.lengths[row]) == len(sent[start])
            assert int(reader.buffers.ports[row]) == got[start].source.port
            assert reader.buffers.addresses[row].tobytes() == got[start].source.ip.packed

    with client() as one, client("127.0.0.3") as other:

        def act(to: Endpoint) -> None:
            for index, data in enumerate(sent):
                (one, other)[index % 2].sendto(data, (str(to.ip), to.port))

        read(act, on_batch, lambda: len(got) == len(sent))
        sources = [Endpoint.of(*sock.getsockname()) for sock in (one, other)]
    assert [datagram.data for datagram in got] == sent
    assert [datagram.source for datagram in got] == [sources[index % 2] for index in range(len(sent))]
    assert max(counts) == 8
    assert all(datagram.unicast and not datagram.truncated for datagram in got)


def test_replies_go_to_the_rows_that_are_named_each_with_its_own_size() -> None:
    taken: list[int] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        rows = np.flatnonzero(reader.buffers.payload[:count, 0] == ord("?"))
        reader.buffers.replies[: len(rows)] = reader.buffers.payload[rows, :REPLY_BYTES]
        sizes = reader.buffers.lengths[rows].astype(np.uint64)
        taken.append(reader.reply(len(rows), sizes, rows))

    with client() as one, client() as other:

        def act(to: Endpoint) -> None:
            address = str(to.ip), to.port
            for data in (b"-", b"?one", b"-"):
                one.sendto(data, address)
            for data in (b"?the other", b"?"):
                other.sendto(data, address)

        read(act, on_batch, lambda: sum(taken) == 3)
        assert one.recv(100) == b"?one"
        assert [other.recv(100), other.recv(100)] == [b"?the other", b"?"]
        for sock in (one, other):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)


def test_without_rows_each_reply_goes_to_the_source_of_its_own_row() -> None:
    """Also after a batch of which only some were answered."""
    counts: list[int] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        reader.buffers.replies[:count] = reader.buffers.payload[:count, :REPLY_BYTES]
        assert reader.reply(1, np.array([4], np.uint64), np.array([count - 1])) == 1
        assert reader.reply(count, 5) == count
        assert reader.reply(count, 3) == count
        counts.append(count)

    with client() as one, client() as other:

        def act(to: Endpoint) -> None:
            for sock, data in ((one, b"first"), (other, b"other")):
                sock.sendto(data, (str(to.ip), to.port))

        read(act, on_batch, lambda: sum(counts) == 2)
        assert [one.recv(100) for _ in range(2)] == [b"first", b"fir"]
        assert [other.recv(100) for _ in range(3)] == [b"firs", b"other", b"oth"]
    assert counts == [2]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6() -> None:
    got: list[Datagram] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        got.extend(reader.datagram(row) for row in range(count))
        assert reader.buffers.addresses[0].tobytes() == bytes(15) + b"\1"
        assert reader.listener.send(b"one", got[-1].address, source=got[-1].local.ip)
        reader.buffers.replies[0, :5] = np.frombuffer(b"batch", np.uint8)
        assert reader.reply(1, 5) == 1

    with client("::1") as sock:
        read(
            lambda to: void(sock.sendto(b"hello", (str(to.ip), to.port))),
            on_batch,
            lambda: bool(got),
            local=Endpoint.of("::1", 0),
        )
        assert (got[0].data, got[0].source) == (b"hello", Endpoint.of(*sock.getsockname()[:2]))
        assert {sock.recv(100), sock.recv(100)} == {b"one", b"batch"}


def test_on_a_wildcard_bind_each_reply_leaves_from_the_address_that_was_asked() -> None:
    got: list[Datagram] = []
    asked = [f"127.0.0.{last}" for last in (2, 3, 4, 2, 5)]

    def on_batch(reader: BatchReader, count: int) -> None:
        buffers = reader.buffers
        assert buffers.own is not None
        assert buffers.asked is not None
        for row in range(count):
            got.append(reader.datagram(row))
            assert buffers.own[row].tobytes() == buffers.asked[row].tobytes() == got[-1].local.ip.packed
        buffers.replies[:count] = buffers.payload[:count, :REPLY_BYTES]
        assert reader.reply(count, 1) == count
        rows = np.arange(count)[::-1]
        buffers.replies[:count] = buffers.payload[rows, :REPLY_BYTES]
        assert reader.reply(count, 2, rows) == count

    with client("127.0.0.9") as sock:

        def act(to: Endpoint) -> None:
            for ip in asked:
                sock.sendto(ip[-1:].encode() * 2, (ip, to.port))

        local = Endpoint.of("0.0.0.0", 0)
        read(act, on_batch, lambda: len(got) == len(asked), local=local, destinations=True)
        replies = sorted(sock.recvfrom(100) for _ in range(2 * len(asked)))
        port = got[0].local.port
    assert [(str(datagram.local.ip), datagram.unicast) for datagram in got] == [(ip, True) for ip in asked]
    assert replies == sorted((ip[-1:].encode() * size, (ip, port)) for ip in asked for size in (1, 2))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_on_a_wildcard_bind_over_ipv6() -> None:
    got: list[Datagram] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        got.extend(reader.datagram(row) for row in range(count))
        reader.buffers.replies[0, :5] = np.frombuffer(b"batch", np.uint8)
        assert reader.reply(1, 5) == 1

    with client("::1") as sock:
        read(
            lambda to: void(sock.sendto(b"hello", ("::1", to.port))),
            on_batch,
            lambda: bool(got),
            local=Endpoint.of("::", 0),
            destinations=True,
        )
        assert sock.recvfrom(100) == (b"batch", ("::1", got[0].local.port, 0, 0))
    assert (str(got[0].local.ip), got[0].unicast, got[0].truncated) == ("::1", True, False)


def test_the_scope_of_a_link_local_source_is_kept() -> None:
    buffers = BatchBuffers(ipv6=True, rows=2)
    name = b"\x0a\0" + b"\x01\x02" + b"\0\0\0\x07" + b"\xfe\x80" + bytes(13) + b"\1" + b"\x05\0\0\0"
    buffers._names[1, :28] = np.frombuffer(name, np.uint8)
    assert buffers.source(1) == ("fe80::1", 0x0102, 7, 5)


def test_a_listener_closed_by_the_callback_is_not_read_again() -> None:
    counts: list[int] = []

    def on_batch(reader: BatchReader, count: int) -> None:
        counts.append(count)
        reader.listener.close()
        assert reader.reply(count, 5) == 0

    with client() as sock:

        def act(to: Endpoint) -> None:
            for _ in range(20):
                sock.sendto(b"hello", (str(to.ip), to.port))

        read(act, on_batch, lambda: bool(counts), is_closed=True)
    assert counts == [8]


class System:
    """Stands for the C library: each call gives the next number of its script, errors as negative ones."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.calls: list[tuple[int, int]] = []
        self.start = 0

    def _next(self, place: int, count: int) -> int:
        self.start = self.start or place
        self.calls.append(((place - self.start) // 64, count))
        result = self.script.pop(0)
        if result < 0:
            ctypes.set_errno(-result)
            return -1
        return result

    def sendmmsg(self, fd: int, place: int, count: int, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        return self._next(place, count)

    def recvmmsg(self, fd: int, place: int, count: int, flags: int, timeout: None) -> int:
        assert flags == socket.MSG_DONTWAIT
        return self._next(place, count)


@pytest.mark.parametrize(
    ("script", "calls", "sent"),
    [
        ([8], [(0, 8)], 8),
        ([3, 5], [(0, 8), (3, 5)], 8),
        ([3, -errno.EINTR, 5], [(0, 8), (3, 5), (3, 5)], 8),
        ([3, -errno.EPERM, 4], [(0, 8), (3, 5), (4, 4)], 7),
        ([-errno.ENETUNREACH] * 8, [(at, 8 - at) for at in range(8)], 0),
        ([-errno.ECONNREFUSED, 7], [(0, 8), (1, 7)], 7),
        ([3, -errno.EAGAIN], [(0, 8), (3, 5)], 3),
        ([3, -errno.ENOBUFS], [(0, 8), (3, 5)], 3),
        ([-errno.EBADF], [(0, 8)], 0),
    ],
    ids=["all", "some", "interrupted", "one", "none", "ICMP", "full", "no memory", "closed"],
)
def test_what_the_system_does_not_take_costs_no_more_than_it_must(
    script: list[int], calls: list[tuple[int, int]], sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(*script)
    monkeypatch.setattr(batch_module, "_LIBRARY", system)
    with client() as sock:
        assert BatchBuffers(ipv6=False, rows=8).reply(sock, 8, 20) == sent
    assert system.calls == calls
    assert not system.script


def test_what_long_datagrams_have_taken_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the system has back reads as zeros."""
    monkeypatch.setattr(batch_module, "_LIBRARY", System(*[1] * BATCHES_KEPT))
    buffers = BatchBuffers(ipv6=False, rows=8)
    buffers.payload[:, -1] = 1
    with client() as sock:
        for _ in range(BATCHES_KEPT - 1):
            buffers.receive(sock)
        assert buffers.payload.any()
        buffers.receive(sock)
    assert not buffers.payload.any()


@pytest.mark.parametrize(
    ("script", "batches"),
    [
        ([-errno.EAGAIN], []),
        ([3], [3]),
        ([8, 2], [8, 2]),
        ([8, -errno.EAGAIN], [8]),
        ([-errno.ECONNREFUSED, 8, -errno.EINTR, 4], [8, 4]),
        ([8] * BATCHES_PER_WAKEUP, [8] * BATCHES_PER_WAKEUP),
        ([8, -errno.EBADF], [8]),
    ],
    ids=["nothing", "few", "more", "just so many", "errors of earlier replies", "no end", "closed"],
)
def test_a_wakeup_reads_until_nothing_is_left_or_others_have_their_turn(
    script: list[int], batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[int] = []

    async def run() -> None:
        listener = UdpListener.open(ANY_PORT, never)
        try:
            reader = BatchReader(
                listener, BatchBuffers(ipv6=False, rows=8), lambda _, count: got.append(count)
            )
            system = System(*script)
            monkeypatch.setattr(batch_module, "_LIBRARY", system)
            reader._drain()
            assert not system.script
        finally:
            listener.close()

    asyncio.run(run())
    assert got == batches


@pytest.mark.parametrize(
    ("attribute", "value"), [("sys.platform", "darwin"), ("sys.byteorder", "big"), ("machine", "i686")]
)
def test_another_system_has_no_batches(attribute: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if attribute == "machine":
        monkeypatch.setattr(platform, "machine", lambda: value)
    else:
        monkeypatch.setattr(attribute, value)
    assert batch_module._load() is None


def test_a_layout_that_is_not_the_known_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(ctypes.Structure):  # with 32-bit pointers
        _fields_ = tuple((name, ctypes.c_uint32) for name in batch_module._HEADER.names or ())

    monkeypatch.setattr(batch_module, "_MessageOfBatch", Narrow)
    assert batch_module._load() is None


def void(_result: object) -> None:
    """Drops what a call returns."""
