"""What every test in the laboratory needs: the laboratory, or the reason why there is none."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from nattools.endpoint import Endpoint
from nattools.lab import namespaces
from nattools.lab.namespaces import why_unavailable
from nattools.lab.topology import SERVER_ENDPOINTS, STRANGER
from tests.lab.stalls import Since
from tests.lab.warm_start import WarmProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nattools.lab.namespaces import Host, Lab, Process

# Opens sockets where it runs and hands them to the test, which thereby has its feet on several hosts at once.
_OPENER = """
import socket, sys
channel = socket.socket(fileno=0)
kind = int(sys.argv[1])
protocol = socket.IPPROTO_RAW if kind == socket.SOCK_RAW else 0
for endpoint in sys.argv[2:]:
    ip, port = endpoint.rsplit(" ", 1)
    opened = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind, protocol)
    opened.bind((ip, int(port)))
    socket.send_fds(channel, [b"."], [opened.fileno()])
"""


_CLONE_NEWNET = 0x40000000  # linux/sched.h

PATIENCE_SECONDS = 10.0
FENCE_SECONDS = 0.01  # for what may still be on its way behind a datagram that was sent after it


class Lines:
    """The lines that a process writes, as they come; from select a buffered stream would hide some."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._file = process.stdout.fileno()
        self._held = b""

    def are_there(self, *, within_s: float) -> bool:
        """Whether something was written within that time that `next` would take, be it the end."""
        return b"\n" in self._held or bool(select.select([self._file], [], [], within_s)[0])

    def next(self, *, within_s: float = PATIENCE_SECONDS) -> str:
        """The next line, without its end; empty when there will be no other."""
        since = Since()
        while b"\n" not in self._held:
            if not select.select([self._file], [], [], max(within_s - since.took_s(), 0))[0]:
                assert since.took_s() < within_s, f"nothing was told within {within_s} s"
                continue
            piece = os.read(self._file, 65536)
            if not piece:
                break
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line.decode()


class OpenSockets(Protocol):
    """Open sockets on a host of a laboratory, one for each endpoint; they are closed when the test ends."""

    def __call__(
        self, host: Host, endpoints: Sequence[Endpoint], *, kind: socket.SocketKind = socket.SOCK_DGRAM
    ) -> list[socket.socket]: ...


def endpoint_of(sockname: tuple[str, int]) -> Endpoint:
    return Endpoint.of(*sockname[:2])


class Wire:
    """A client's sockets and those of the public side, all in the hands of one test."""

    def __init__(
        self, lab: Lab, open_sockets: OpenSockets, *, clients: int = 1, home: str | None = None
    ) -> None:
        self.lab = lab
        local = Endpoint.of(home or lab.topology.client_address, 0)
        self.clients = open_sockets(lab.client, [local] * clients)
        endpoints = [*SERVER_ENDPOINTS, STRANGER]
        self.public = dict(zip(endpoints, open_sockets(lab.public, endpoints), strict=True))

    def send(self, client: socket.socket, destination: Endpoint) -> None:
        client.sendto(b"out", (str(destination.ip), destination.port))

    def receive(self, at: Endpoint) -> Endpoint:
        """The source of the next datagram that comes to one of the public endpoints."""
        received = next_datagram(self.public[at], PATIENCE_SECONDS)
        assert received is not None, f"nothing came to {at}"
        return received[1]

    def mapped(self, client: socket.socket, destination: Endpoint) -> Endpoint:
        """The public endpoint that a destination sees a client socket at."""
        self.send(client, destination)
        return self.receive(destination)

    def who_reaches(self, client: socket.socket, mapped: Endpoint, last: Endpoint) -> set[Endpoint]:
        """Which of the public endpoints can send to a mapping; `last` must be one that surely can."""
        for sender in [*(e for e in self.public if e != last), last]:
            self.public[sender].sendto(b"in", (str(mapped.ip), mapped.port))
        reached = set(sources(client, until=last))
        assert last in reached
        return reached


def next_datagram(at: socket.socket, seconds: float) -> tuple[bytes, Endpoint] | None:
    if not select.select([at], [], [], seconds)[0]:
        return None
    data, source = at.recvfrom(2048)
    return data, endpoint_of(source)


def sources(at: socket.socket, *, until: Endpoint | None = None) -> Iterator[Endpoint]:
    """Yield the sources of what arrives: up to and including `until`, and what was close behind it."""
    while until is not None:
        received = next_datagram(at, PATIENCE_SECONDS)
        assert received is not None, f"nothing came from {until}"
        yield received[1]
        if received[1] == until:
            break
    while (received := next_datagram(at, FENCE_SECONDS)) is not None:
        yield received[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session", autouse=True)
def _warm() -> Iterator[None]:
    """Programs in the laboratories of these tests start without importing everything anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "Process", WarmProcess)
        yield


@pytest.fixture(scope="session")
def _missing() -> str | None:
    return why_unavailable()


@pytest.fixture(autouse=True)
def _laboratory(_missing: str | None) -> None:
    if _missing is not None:
        pytest.skip(_missing)


def _open_there(network: Path, endpoints: Sequence[Endpoint], kind: socket.SocketKind) -> list[socket.socket]:
    """Enter a network namespace, which a thread can do for itself, and open sockets there (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(network) as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    with ExitStack() as opened:
        sockets = []
        for endpoint in endpoints:
            family = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
            protocol = socket.IPPROTO_RAW if kind == socket.SOCK_RAW else 0
            sockets.append(opened.enter_context(socket.socket(family, kind, protocol)))
            sockets[-1].bind((str(endpoint.ip), endpoint.port))
        opened.pop_all()
    return sockets


def _open_by_process(
    host: Host, endpoints: Sequence[Endpoint], kind: socket.SocketKind
) -> list[socket.socket]:
    """Have a process on the host open them: an ordinary user's laboratory is no place for a thread."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        names = [f"{endpoint.ip} {endpoint.port}" for endpoint in endpoints]
        opener = host.popen(
            [sys.executable, "-I", "-S", "-c", _OPENER, str(kind.value), *names],
            stdin=theirs.fileno(),
        )
        theirs.close()
        files = [socket.recv_fds(ours, 1, 1)[1] for _ in endpoints]
        assert opener.wait(10) == 0
    return [socket.socket(fileno=file) for (file,) in files]


@contextmanager
def opened_sockets() -> Iterator[OpenSockets]:
    """A function that opens sockets inside a laboratory, for who stays outside; closed at the end."""
    with ExitStack() as opened:

        def open_all(
            host: Host, endpoints: Sequence[Endpoint], *, kind: socket.SocketKind = socket.SOCK_DGRAM
        ) -> list[socket.socket]:
            if os.path.samefile(host.network.parents[1] / "ns/user", "/proc/self/ns/user"):
                with ThreadPoolExecutor(1) as pool:
                    sockets = pool.submit(_open_there, host.network, endpoints, kind).result()
            else:
                sockets = _open_by_process(host, endpoints, kind)
            return [opened.enter_context(one) for one in sockets]

        yield open_all


@pytest.fixture
def open_sockets() -> Iterator[OpenSockets]:
    """The function that opens sockets inside a laboratory, for a test that stays outside."""
    with opened_sockets() as open_all:
        yield open_all
