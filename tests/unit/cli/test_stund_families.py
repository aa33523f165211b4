"""`stund` over IPv4 and IPv6 side by side, and by several processes that share what they allow and count."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.net.listener import has_address
from tests.ports import free_port
from tests.unit.cli.test_stund import BINDING, TIME_LIMIT_S, ask, finished, ports_in, running, start_line
from tests.unit.cli.test_stund_settings import CHANGE, answered, get, sample, until

WITHOUT_IPV6 = """
import sys
from nattools.cli import stund, stund_serve
stund_serve.has_address = lambda ip: ip.version == 4
stund.main(["--port", "0"])
"""

needs_ipv6 = pytest.mark.skipif(not has_address(ip_address("::1")), reason="no IPv6 here")
needs_workers = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")


def ask_over_ipv6(port: int, data: bytes = BINDING) -> tuple[bytes, tuple[str, int]]:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(TIME_LIMIT_S)
        client.sendto(data, ("::1", port))
        reply, origin = client.recvfrom(2048)
        return reply, origin[:2]


@needs_ipv6
def test_each_family_is_served_as_its_own_addresses_allow() -> None:
    metrics = free_port()
    arguments = ("::1", "127.0.0.1", "127.0.0.2", "--port", "0", "--alternate-port", "0")
    with running(*arguments, "--metrics", f"127.0.0.1:{metrics}") as process:
        line = start_line(process)
        port, alternate_port = ports_in(line)[:2]
        assert line.startswith(f"stund: serving [::1]:{port}, [::1]:{alternate_port}, 127.0.0.1:{port}, ")
        assert ports_in(line) == 3 * [port, alternate_port]
        assert "; over IPv6 with one address clients learn their public address" in line
        assert "; over IPv4 NAT behaviour tests included; " in line
        assert len(ask(port)) == 56
        reply, origin = ask_over_ipv6(port)
        assert (len(reply), origin) == (44, ("::1", port))
        assert ask_over_ipv6(port, CHANGE)[0][:2] == b"\x01\x11"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(TIME_LIMIT_S)
            client.sendto(CHANGE, ("127.0.0.1", port))
            assert client.recvfrom(2048)[1] == ("127.0.0.2", alternate_port)
        text = get(metrics, "/metrics")
        assert 'family="ipv6",version=' in text
        assert sample(text, 'stund_requests_total{family="ipv4",kind="behaviour",transport="udp"}') == 1
        assert sample(text, 'stund_requests_total{family="ipv6",kind="plain",transport="udp"}') == 1
        assert sample(text, 'stund_replies_total{family="ipv6",result="error",transport="udp"}') == 1
        assert sample(text, "stund_limiter_admitted_total") == 4
        process.terminate()
        assert finished(process) == (0, "", "stund: stopped: 4 requests answered; dropped: nothing\n")


@needs_ipv6
def test_by_default_every_address_of_both_families_is_served() -> None:
    with running("--port", "0") as process:
        line = start_line(process)
        port = ports_in(line)[0]
        assert line.startswith(f"stund: serving 0.0.0.0:{port}, [::]:{port} (UDP and TCP); with one address ")
        assert len(ask(port)) == 44
        assert len(ask_over_ipv6(port)[0]) == 44
        with socket.create_connection(("::1", port), timeout=TIME_LIMIT_S) as stream:
            stream.sendall(BINDING)
            assert stream.recv(2048)[:2] == b"\x01\x01"
        process.terminate()
        assert finished(process)[0] == 0


def test_a_machine_without_ipv6_serves_ipv4_and_says_so() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_IPV6], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = start_line(process)
            assert "; not over IPv6, which this machine does not have" in line
            [port] = ports_in(line)
            assert len(ask(port)) == 44
            process.terminate()
            assert finished(process)[0] == 0
        finally:
            process.kill()


@needs_ipv6
def test_an_ipv6_port_in_use_is_no_lack_of_ipv6() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", port))
        with running("--port", str(port)) as process:
            code, _, err = finished(process)
    assert code == 1
    assert err.startswith(f"stund: cannot listen on ::, UDP port {port}: address already in use; ")


@needs_workers
def test_an_address_has_its_rate_once_however_many_processes_there_are() -> None:
    metrics, clients, allowed = free_port(), 30, 10
    arguments = ("--workers", "2", "--metrics", f"127.0.0.1:{metrics}", "--limit", f"address=0.001:{allowed}")
    with running("127.0.0.1", "--port", "0", *arguments) as process:
        [port] = ports_in(start_line(process))
        # each is another socket, so that both processes have some of them
        assert sum(allowed_to(port, metrics, requests=1) for _ in range(clients)) == allowed
        process.terminate()
        stopped = f"stund: stopped: {allowed} requests answered; dropped: {clients - allowed} over the limit"
        assert finished(process)[2].startswith(stopped)


def allowed_to(port: int, metrics: int, *, requests: int) -> int:
    """How many of so many requests of a new socket are answered, each sent when the last was dealt with."""
    before, settled = answered(metrics), dealt_with(metrics)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", free_port()))  # which no other test has had
        for number in range(1, requests + 1):
            client.sendto(BINDING, ("127.0.0.1", port))
            until(partial(are_dealt_with, settled + number, metrics))
    return int(answered(metrics) - before)


def dealt_with(metrics: int) -> float:
    """How many requests were answered, or refused by a limit."""
    names = r'stund_requests_total\{.*\}|stund_dropped_total\{reason="rate_limited"\}'
    return sum(map(float, re.findall(rf"^(?:{names}) (\S+)$", get(metrics, "/metrics"), re.MULTILINE)))


def are_dealt_with(requests: float, metrics: int) -> bool:
    return dealt_with(metrics) >= requests


def health(port: int) -> str:
    """What is said at `/health`, whatever the status."""
    try:
        return get(port, "/health")
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def children_of(number: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


@needs_workers
def test_a_process_that_takes_anothers_place_has_what_was_read_last(tmp_path: Path) -> None:
    metrics, config = free_port(), tmp_path / "stund.toml"
    config.write_text("workers = 2\n[limits]\nsocket = [0.01, 3]\n")
    arguments = ("--config", str(config), "--metrics", f"127.0.0.1:{metrics}")
    with running("127.0.0.1", "--port", "0", *arguments) as process:
        [port] = ports_in(start_line(process))
        assert allowed_to(port, metrics, requests=6) == 3
        config.write_text("workers = 2\nlimits = 5\n")
        process.send_signal(signal.SIGHUP)
        assert start_line(process).startswith("stund: all stays as it was: ")
        config.write_text("workers = 2\n[limits]\nsocket = [0.01, 5]\n")
        process.send_signal(signal.SIGHUP)
        assert start_line(process) == "stund: the settings were read again\n"
        has_metrics, *_ = children_of(process.pid)

        def is_ill_once_more_have_died() -> bool:
            """The oftener a process dies, the longer it stays away."""
            for other in children_of(process.pid):
                if other != has_metrics:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
            return health(metrics) == "503 Service Unavailable\n1 of 2 processes serve\n"

        until(is_ill_once_more_have_died)
        until(lambda: health(metrics) == "200 OK\n")
        text = get(metrics, "/metrics")
        assert sample(text, "stund_workers_serving") == 2
        assert sample(text, "stund_worker_restarts_total") >= 1
        for _ in range(5):  # sockets of both, but for a rare chance
            assert allowed_to(port, metrics, requests=6) == 5
        process.terminate()
        assert process.wait(TIME_LIMIT_S) == 0
