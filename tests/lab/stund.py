"""stund on the public side of a laboratory, as tests start it, ask it and read what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nattools.stun.attributes import CHANGE_REQUEST, ChangeRequest
from nattools.stun.message import Message, MessageClass, Method
from tests.lab.conftest import Lines, next_datagram

if TYPE_CHECKING:
    import socket

    from nattools.endpoint import Endpoint
    from nattools.lab.namespaces import Lab, Process

STUND = (sys.executable, "-m", "nattools.cli.stund")
TIME_LIMIT_S = 20
MODERN, CLASSIC = TRANSACTION_IDS = (bytes(range(12)), bytes(range(16)))
NO_CHANGE = ChangeRequest(change_ip=False, change_port=False)


class Stund:
    """One that serves."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines = Lines(process)
        self.started: dict[str, Any] = {}
        """What it said when it did, as its log has it in JSON."""

    def next(self) -> dict[str, Any]:
        """The next line of its log."""
        line = self._lines.next(within_s=TIME_LIMIT_S)
        assert line, "stund has ended"
        said: dict[str, Any] = json.loads(line)  # a traceback is no JSON
        return said

    def stop(self) -> dict[str, Any]:
        """Stop it; returns the last line of its log."""
        self.process.terminate()
        *_, last = self.rest()
        assert self.process.wait(TIME_LIMIT_S) == 0
        said: dict[str, Any] = json.loads(last)
        assert said["event"] == "stopped"
        return said

    def rest(self) -> Iterator[str]:
        """What it still says until its end, line by line."""
        while line := self._lines.next(within_s=TIME_LIMIT_S):
            yield line


@contextmanager
def stund(lab: Lab, *arguments: str) -> Iterator[Stund]:
    """A stund that serves until the block ends, in batches if there is numpy."""
    process = lab.public.popen(
        [*STUND, "--log", "json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    server = Stund(process)
    with process:
        try:
            server.started = server.next()
            assert server.started["event"] == "serving", server.started
            assert server.started["batches"] is (find_spec("numpy") is not None), server.started
            yield server
        finally:
            process.terminate()
            sys.stdout.writelines(f"{line}\n" for line in server.rest())  # for the report of a failure


def binding(transaction_id: bytes, change: ChangeRequest | None = NO_CHANGE) -> bytes:
    """A request with CHANGE-REQUEST, be it for no change; a bare one where `change` is None."""
    attributes = () if change is None else (CHANGE_REQUEST.of(change),)
    return Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes).encode()


def send(client: socket.socket, data: bytes, destination: Endpoint) -> None:
    client.sendto(data, (str(destination.ip), destination.port))


def ask(client: socket.socket, data: bytes, destination: Endpoint) -> tuple[Message, Endpoint, bytes]:
    """The reply to a request, with where it came from; it must come."""
    send(client, data, destination)
    received = next_datagram(client, TIME_LIMIT_S)
    assert received is not None, f"no answer from {destination}"
    return Message.parse(received[0]), received[1], received[0]
