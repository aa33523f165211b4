"""Ports for what has to be bound by number: none that another test or the system gives away meanwhile.

A port that was got by binding to 0, and closed, belongs to whoever asks next: with thousands of sockets in a
run of the tests somebody does. Linux gives away 32768 and more, these are below; and each worker has its own.
"""

from __future__ import annotations

import errno
import os
import socket
from itertools import count

_FIRST = 10_000
_PER_WORKER = 1_000
_MOST_WORKERS = 20
_LOOPBACKS = ("127.0.0.1", "127.0.0.2")

_taken = count(0, 2)


def free_ports(many: int) -> list[int]:
    """So many even ports, each of them free with the next one for UDP and TCP, and given to no other test."""
    found: list[int] = []
    for _ in range(_PER_WORKER // 2):
        if len(found) == many:
            return found
        port = _FIRST + _PER_WORKER * _worker() + next(_taken) % _PER_WORKER
        if _is_free(port) and _is_free(port + 1):
            found.append(port)
    raise AssertionError(f"the ports from {_FIRST} on are taken")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _worker() -> int:
    """Which of the processes that share the tests this is (pytest-xdist)."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS


def _is_free(port: int) -> bool:
    """On every address of loopback; where a system has one only, on that one."""
    for address in _LOOPBACKS:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as sock:
                try:
                    sock.bind((address, port))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        return False
    return True
