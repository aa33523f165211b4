"""The thread behind public sockets: when it begins and ends, who shares it, and what a fork leaves of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from nattools.binding import background
from nattools.binding.keeper import Keeper
from nattools.binding.model import BindingChange, ChangeKind
from nattools.binding.settings import Settings
from nattools.blocking import PublicSocket
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, TransportError
from nattools.net.udp import endpoint_of
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.server import StunServer
from tests.unit.public_sockets import (
    DEADLINE_S,
    NO_WAY,
    background_threads,
    eventually,
    in_time,
    plain_socket,
    public_socket,
    settings_for,
    stun_server,
)

REPOSITORY = Path(__file__).parents[3]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def server() -> Iterator[StunServer]:
    with stun_server() as running:
        yield running


class CountedKeeper:
    """Counts how often a keeper is opened, and fails as often as it is told to."""

    opened = 0
    failures: list[Exception] = []  # noqa: RUF012 - set by each test

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings | None = None) -> AsyncIterator[Keeper]:
        cls.opened += 1
        if cls.failures:
            raise cls.failures.pop(0)
        async with Keeper.open(settings) as keeper:
            yield keeper


@pytest.fixture
def keepers(monkeypatch: pytest.MonkeyPatch) -> type[CountedKeeper]:
    CountedKeeper.opened, CountedKeeper.failures = 0, []
    monkeypatch.setattr(background, "Keeper", CountedKeeper)
    monkeypatch.setattr(background, "RETRY_S", 0.05)
    return CountedKeeper


def test_a_hundred_sockets_have_one_thread_and_one_keeper(
    server: StunServer, keepers: type[CountedKeeper]
) -> None:
    assert not background_threads()
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(public_socket(settings_for(server))) for _ in range(100)]
        assert {sock.public for sock in sockets} == {endpoint_of(sock.getsockname()) for sock in sockets}
        assert len(background_threads()) == 1
        for sock, after in pairwise(sockets):
            sock.sendto(b"around", after.getsockname())
            assert after.recvfrom(16) == (b"around", sock.getsockname())
    assert keepers.opened == 1
    assert eventually(lambda: not background_threads())


def test_other_settings_have_another_keeper_in_the_same_thread(
    server: StunServer, keepers: type[CountedKeeper]
) -> None:
    with public_socket(settings_for(server)) as one:
        with public_socket(settings_for(server, keepalive_interval=20)) as other:
            assert one.public != other.public
            assert (keepers.opened, len(background_threads())) == (2, 1)
        with public_socket(settings_for(server)) as third:
            assert third.public
        assert keepers.opened == 2


def test_sockets_that_come_and_go_in_many_threads_find_the_thread_alive(server: StunServer) -> None:
    def come_and_go() -> None:
        for _ in range(20):
            with public_socket(settings_for(server)) as sock:
                found.append(sock.public == endpoint_of(sock.getsockname()))

    found: list[bool] = []
    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == [True] * 160
    assert eventually(lambda: not background_threads())


@pytest.mark.parametrize(
    "error",
    [BindingError("not yet"), TransportError("not yet"), ZeroDivisionError("not yet")],
    ids=lambda error: type(error).__name__,
)
def test_what_could_not_be_had_is_tried_again(
    error: Exception, server: StunServer, keepers: type[CountedKeeper]
) -> None:
    keepers.failures = [error, error]
    with PublicSocket(settings=settings_for(server)) as sock, plain_socket() as peer:
        changes = sock.changes()
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(BindingError, match="not yet"):
            _ = sock.public
        peer.sendto(b"meanwhile", sock.getsockname())
        assert sock.recv(16) == b"meanwhile"
        assert in_time(lambda: next(changes)).binding is not None
        assert sock.public == endpoint_of(sock.getsockname())
        peer.sendto(b"and now", sock.getsockname())
        assert sock.recv(16) == b"and now"
    assert keepers.opened == 3


def test_only_the_first_failure_is_worth_a_warning(
    keepers: type[CountedKeeper], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "nattools.binding.background")
    with public_socket(NO_WAY):
        assert eventually(lambda: keepers.opened >= 3)
    assert len(caplog.records) == 1


def test_an_answer_that_comes_after_the_search_is_over_is_not_the_programs(
    keepers: type[CountedKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Message(Method.BINDING, MessageClass.SUCCESS, transaction_id=b"came so late").encode()
    monkeypatch.setattr(background, "RETRY_S", DEADLINE_S)
    keepers.failures = [BindingError("not at all")]
    with public_socket(NO_WAY) as sock, plain_socket() as peer:
        with pytest.raises(BindingError):
            _ = sock.public
        for data in (late, b"INVITE"):
            peer.sendto(data, sock.getsockname())
        assert sock.recv(64) == b"INVITE"
        monkeypatch.setattr(background, "_LATE_ANSWERS_S", 0.0)
        peer.sendto(late, sock.getsockname())
        assert sock.recv(64) == late


def test_a_socket_that_nobody_has_any_more_is_closed(server: StunServer) -> None:
    sock = PublicSocket(settings=settings_for(server))
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    assert sock.public
    with pytest.warns(ResourceWarning, match="unclosed <PublicSocket"):
        del sock
    assert eventually(lambda: not background_threads())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as after:
        after.bind(address)


def test_one_that_was_never_bound_takes_its_readers_with_it() -> None:
    sock = PublicSocket(settings=NO_WAY)
    changes = sock.changes()
    with pytest.warns(ResourceWarning):
        del sock
    assert in_time(lambda: list(changes)) == []


def test_a_reader_that_does_not_read_misses_the_oldest_changes() -> None:
    kept = background.KeptSocket(socket.AF_INET, NO_WAY)
    changes = kept.changes()
    for number in range(background.MOST_CHANGES + 10):
        kept.tell(BindingChange(ChangeKind.LOST, None, None, str(number)))
    kept.close()
    reasons = [int(change.reason) for change in in_time(lambda: list(changes))]
    assert reasons == list(range(10, background.MOST_CHANGES + 10))


def kept_socket(*, port: int | None = None) -> background.KeptSocket:
    """One without a binding; bound, and looked after, if it is given a port."""
    kept = background.KeptSocket(socket.AF_INET, NO_WAY)
    if port is not None:
        kept.real.bind(("127.0.0.1", port))
        kept.start()
    return kept


def test_a_socket_that_stands_in_for_another_begins_with_what_comes_then() -> None:
    peer = Endpoint.of("127.0.0.1", 9)
    held, unbound = kept_socket(port=0), kept_socket()
    changes, descriptor = unbound.changes(), unbound.outer.fileno()
    held.deliver(b"too early", peer)
    held.stand_in_for(unbound)
    assert held.outer.fileno() == descriptor
    held.deliver(b"in time", peer)
    assert held.receive(16, 0) == (b"in time", ("127.0.0.1", 9))
    held.tell(BindingChange(ChangeKind.LOST, None, None, "told to who read the other"))
    assert in_time(lambda: next(changes)).kind is ChangeKind.LOST
    with pytest.raises(OSError):
        unbound.receive(16, 0)
    held.close()
    assert in_time(lambda: list(changes)) == []


def test_what_comes_can_be_changed_or_kept_from_the_program() -> None:
    peer = Endpoint.of("127.0.0.1", 9)
    kept = kept_socket()
    kept.on_datagram = lambda data, source: None if data == b"mine" else data + b" from %d" % source.port
    for data in (b"mine", b"yours"):
        kept.deliver(data, peer)
    assert kept.receive(16, 0) == (b"yours from 9", ("127.0.0.1", 9))
    kept.close()


def test_who_hears_of_changes_hears_of_the_end_while_the_port_is_still_taken() -> None:
    heard: list[bool] = []
    kept = kept_socket(port=0)
    address = kept.real.getsockname()

    def hear(change: BindingChange | None) -> None:
        if change is None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError):
                other.bind(address)
            heard.append(True)

    kept.on_change = hear
    kept.close()
    assert heard == [True]


def run_program(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; it must end by itself."""
    return subprocess.run(
        [sys.executable, *options, "-c", text],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=REPOSITORY,
        check=False,
    )


PROGRAM = """
import atexit, os, socket, threading, time
atexit.register(time.sleep, 0.2)  # comes last, so that threads that are left have time to complain
from nattools.binding.settings import Settings
from nattools.blocking import PublicSocket

def public_socket():
    sock = PublicSocket(settings=Settings.of({{"methods": ["stun"], "stun_servers": ["{server}"]}}))
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(10)
    return sock

def read_on(sock):
    sock.settimeout(0.001)
    while True:
        try:
            sock.recv(1)
        except TimeoutError:
            pass
"""


@pytest.mark.parametrize(
    "ending",
    [
        "sock.close()",
        "pass",
        "threading.Thread(target=sock.recv, args=(1,), daemon=True).start()",
        "threading.Thread(target=read_on, args=(sock,), daemon=True).start()",
        "threading.Thread(target=list, args=(sock.changes(),), daemon=True).start()",
        "sock.on_change = print",
        "os._exit(0)",
    ],
)
def test_the_interpreter_ends_whatever_was_left_open(server: StunServer, ending: str) -> None:
    program = PROGRAM.format(server=server.addresses.endpoints[0])
    text = f"{program}\nsock = public_socket()\nsock.public\nprint('ready', flush=True)\n{ending}\n"
    done = run_program(text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_what_is_left_open_is_given_back_at_the_end_of_the_interpreter(server: StunServer) -> None:
    program = PROGRAM.format(server=server.addresses.endpoints[0])
    text = f"""{program}
from contextlib import asynccontextmanager
from nattools.binding import background

class TellingKeeper(background.Keeper):
    @classmethod
    @asynccontextmanager
    async def open(cls, settings=None):
        async with super().open(settings) as keeper:
            yield keeper
        print("given back", flush=True)

background.Keeper = TellingKeeper
sock = public_socket()
sock.public
"""
    done = run_program(text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "given back\n", "")


@needs_fork
def test_a_forked_child_leaves_its_parents_sockets_alone_and_can_open_its_own(server: StunServer) -> None:
    program = PROGRAM.format(server=server.addresses.endpoints[0])
    text = f"""{program}
import gc, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads
sock = public_socket()
public = sock.public
child = os.fork()
if not child:
    said = []
    for use in (lambda: sock.recv(1), lambda: sock.sendto(b"", ("127.0.0.1", 9)), lambda: sock.public,
                sock.fileno, sock.changes, sock.getsockname):
        try:
            use()
        except OSError as error:
            said.append("forked" in str(error))
    said.append(sock.binding is not None)
    with public_socket() as own:
        said.append(own.public != public)
    sock.close()
    print(said, flush=True)
    del sock
    gc.collect()
    sys.exit(7)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(3):  # the parent's thread is still rung
    other.sendto(b"hello", sock.getsockname())
    print(sock.recv(16))
with public_socket() as another:
    print(another.public != public)
other.close()
sock.close()
"""
    done = run_program(text, "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str([True] * 8), "7", *["b'hello'"] * 3, "True"]


@needs_fork
def test_a_child_that_just_ends_does_not_hang(server: StunServer) -> None:
    program = PROGRAM.format(server=server.addresses.endpoints[0])
    text = f"""{program}
import multiprocessing, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
def work():
    print("working", flush=True)
if __name__ == "__main__":
    with public_socket() as sock:
        sock.public
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(10)
        print(process.exitcode, sock.public.ip)
"""
    done = run_program(text, "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "working\n0 127.0.0.1\n", "")


def test_without_unix_sockets_the_same_works_over_loopback(
    server: StunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delattr(socket, "AF_UNIX", raising=False)
        sock = PublicSocket(settings=settings_for(server), binding_timeout_s=DEADLINE_S)
    with sock, plain_socket() as peer:
        sock.bind(("127.0.0.1", 0))
        assert sock.public == Endpoint.of("127.0.0.1", sock.getsockname()[1])
        for data in (b"", b"\x80" * 172, bytes(60_000)):
            peer.sendto(data, sock.getsockname())
            assert sock.recvfrom(65536) == (data, peer.getsockname())
        outcome: list[int | None] = []

        def receive() -> None:
            try:
                sock.recv(1)
            except OSError as error:
                outcome.append(error.errno)

        thread = threading.Thread(target=receive)
        thread.start()
        sock.close()
        thread.join(DEADLINE_S)
        assert len(outcome) == 1
