"""Several processes of one server: shared clients, deaths, restarts and the end of them all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares clients out")

TIME_LIMIT_S = 20
CLIENTS = 64
SOME = 1000
AGAIN_S = 0.5  # the RTO of RFC 8489 §6.2.1
QUIET_S = 0.3

PROGRAM = """
import asyncio, logging, os, signal, sys
from ipaddress import ip_address
from nattools.cli.stund_workers import WorkersError, run_workers
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import ServerOptions, StunServer

def say(*words):  # in one piece: there are three who do
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def probe():
    async with await StunServer.start(ServerAddresses(ip_address("127.0.0.1"), 0)) as server:
        return server.addresses

async def serving(worker):
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, say, "hangup", worker.number)
    options = ServerOptions(reuse_port=True, counts=worker.counts)
    async with await StunServer.start(addresses, options) as server:
        worker.watch(stop.set)
        worker.up()
        say("worker", worker.number, os.getpid())
        await stop.wait()

def broken(worker):
    if worker.number:
        raise RuntimeError("no such luck")
    asyncio.run(serving(worker))

def short(worker):
    worker.up()
    if not worker.tally.restarts:
        signal.pause()
    raise RuntimeError("no such luck")

logging.basicConfig(format="%(message)s")
addresses = asyncio.run(probe())
try:
    tally = run_workers(
        2,
        {"broken": broken, "short": short}.get(sys.argv[1], lambda worker: asyncio.run(serving(worker))),
        on_up=lambda: say("up", addresses.port),
        on_hangup=lambda: True,
    )
except WorkersError as error:
    sys.exit(f"error: {error}")
say(tally.counts.summary(), "restarts", tally.restarts)
"""


@contextlib.contextmanager
def workers(kind: str = "serving") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # its workers then end by themselves


def said(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The next line on stdout that is so; others before it are passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.fullmatch(pattern, line.strip()):
            return found
    raise AssertionError(f"nothing like {pattern!r} was said")


def started(process: subprocess.Popen[str]) -> tuple[dict[int, int], int]:
    """The processes by their numbers, and the port. The lines come in any order."""
    assert process.stdout is not None
    processes: dict[int, int] = {}
    port = 0
    while len(processes) < 2 or not port:
        words = process.stdout.readline().split()
        assert words, process.stderr and process.stderr.read()
        if words[0] == "up":
            port = int(words[1])
        else:
            processes[int(words[1])] = int(words[2])
    return processes, port


def request() -> bytes:
    return bytes.fromhex("000100002112a442") + secrets.token_bytes(12)


class Crowd:
    """Clients with one request each under way, that ask again where no answer comes: once."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self._again: set[socket.socket] = set()
        self._server = ("127.0.0.1", port)
        self._open: dict[socket.socket, tuple[bytes, float]] = {}
        for _ in range(CLIENTS):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            self._ask(sock)

    def _ask(self, sock: socket.socket, *, within_s: float = AGAIN_S) -> None:
        data = request()
        with contextlib.suppress(ConnectionRefusedError):
            sock.sendto(data, self._server)
        self._open[sock] = data, time.monotonic() + within_s

    def run(self, answers: int) -> None:
        """Until there were so many more, and nobody waits who has asked again."""
        wanted = self.answered + answers
        while self.answered < wanted or self._again:
            now = time.monotonic()
            for sock in select.select(list(self._open), [], [], 0.05)[0]:
                if sock.recv(2048)[8:20] == self._open[sock][0][8:20]:
                    self.answered += 1
                    self._again.discard(sock)
                    self._ask(sock)
            for sock, (_, again_at) in list(self._open.items()):
                if again_at < now:
                    assert sock not in self._again, "who asked again was not answered"
                    self._again.add(sock)
                    self._ask(sock, within_s=TIME_LIMIT_S)

    def close(self) -> None:
        for sock in self._open:
            sock.close()


def test_a_worker_killed_under_load_costs_what_was_in_flight_and_another_takes_its_place() -> None:
    with workers() as process:
        processes, port = started(process)
        with contextlib.closing(Crowd(port)) as crowd:
            crowd.run(SOME)
            os.kill(processes[1], signal.SIGKILL)
            deadline = time.monotonic() + TIME_LIMIT_S
            assert process.stdout is not None
            while not select.select([process.stdout], [], [], 0)[0]:
                assert time.monotonic() < deadline
                crowd.run(SOME)
            crowd.run(SOME)  # with the new one
            again = said(process, r"worker 1 (\d+)")
            assert int(again[1]) != processes[1]
        process.terminate()
        out, err = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0
    assert f"worker 2 (process {processes[1]}) was ended by SIGKILL and is started again" in err
    total = re.search(r"(\d+) requests answered; dropped: nothing restarts 1", out)
    assert total
    # what the dead one did is among it, but for a batch that it may have sent and not counted yet
    assert int(total[1]) >= crowd.answered - CLIENTS


def answered(clients: list[socket.socket], *, within_s: float) -> int:
    """How many of them can read an answer as soon as one of them can; 0 if none can within that time."""
    return sum(len(client.recv(2048)) > 0 for client in select.select(clients, [], [], within_s)[0])


def test_both_have_clients_and_a_hangup_reaches_both() -> None:
    with workers() as process, contextlib.ExitStack() as stack:
        processes, port = started(process)
        clients = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(CLIENTS)]
        os.kill(processes[0], signal.SIGSTOP)
        try:
            for client in clients:
                client.sendto(request(), ("127.0.0.1", port))
            by_one = answered(clients, within_s=TIME_LIMIT_S)
            while by_one < CLIENTS and (more := answered(clients, within_s=QUIET_S)):
                by_one += more
            assert 0 < by_one < CLIENTS
        finally:
            os.kill(processes[0], signal.SIGCONT)
        while by_one < CLIENTS:
            more = answered(clients, within_s=TIME_LIMIT_S)
            assert more, "some were not answered by the other either"
            by_one += more
        process.send_signal(signal.SIGHUP)
        hung_up = {said(process, r"hangup (\d)")[1] for _ in processes}
        assert hung_up == {"0", "1"}
        process.send_signal(signal.SIGINT)
        assert process.wait(TIME_LIMIT_S) == 0


def test_workers_end_when_their_supervisor_is_killed() -> None:
    with workers() as process:
        started(process)
        process.kill()
        process.communicate(timeout=TIME_LIMIT_S)  # to the end: nobody has its stdout open any more


def test_a_worker_that_cannot_begin_ends_them_all_with_its_reason() -> None:
    with workers("broken") as process:
        _, err = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 1
    assert "worker 2: RuntimeError: no such luck" in err
    assert "error: the workers were stopped: worker 2 of 2 ended with exit code 1" in err
    assert "Traceback" not in err


def test_one_that_dies_again_and_again_is_started_ever_later() -> None:
    with workers("short") as process:
        said(process, r"up \d+")
        for number in children_of(process.pid):
            os.kill(number, signal.SIGKILL)
        assert process.stderr is not None
        delays: list[float] = []
        for line in process.stderr:
            if found := re.search(r"worker 1 .* is started again in (\S+) s", line):
                delays.append(float(found[1]))
            if len(delays) == 3:
                break
        assert delays == [0.1, 0.2, 0.4]
        process.terminate()
        assert process.wait(TIME_LIMIT_S) == 0


def children_of(number: int) -> list[int]:
    with open(f"/proc/{number}/task/{number}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
