"""The command `stund`, as its user sees it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattools.cli import stund
from tests.ports import free_port

BINDING = bytes.fromhex("00010000 2112a442") + bytes(12)
TIME_LIMIT_S = 20


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A stund that is ended at the latest with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nattools.cli.stund", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def start_line(process: subprocess.Popen[str]) -> str:
    """The next line of its log, without the time."""
    assert process.stderr is not None
    return without_times(process.stderr.readline())


def without_times(log: str) -> str:
    return re.sub(r"^\S+Z (?=stund: )", "", log, flags=re.MULTILINE)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, and what else was written, without the times of its log."""
    out, err = process.communicate(timeout=TIME_LIMIT_S)
    return process.returncode, out, without_times(err)


def ports_in(line: str) -> list[int]:
    words = line.removeprefix("stund: serving ").split(" (")[0].split(", ")
    return [int(word.rpartition(":")[2]) for word in words]


def ask(port: int, data: bytes = BINDING) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIME_LIMIT_S)
        client.sendto(data, ("127.0.0.1", port))
        return client.recv(2048)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_then_says_what_it_did(number: signal.Signals) -> None:
    with running("127.0.0.1", "127.0.0.2", "--port", "0", "--alternate-port", "0") as process:
        line = start_line(process)
        ports = ports_in(line)
        assert ports[:2] == ports[2:]
        assert "127.0.0.1:" in line
        assert "127.0.0.2:" in line
        assert line.endswith("(UDP and TCP); NAT behaviour tests included\n")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", ("127.0.0.1", ports[0]))
        assert len(ask(ports[0])) == 56
        process.send_signal(number)
        assert finished(process) == (
            0,
            "",
            "stund: stopped: 1 requests answered; dropped: 1 not STUN\n",
        )


WORKERS = pytest.param("2", marks=pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux"))


@pytest.mark.parametrize("workers", ["1", WORKERS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_on_the_heels_of_the_first_change_nothing(number: signal.Signals, workers: str) -> None:
    with running("127.0.0.1", "--port", "0", "--workers", workers) as process:
        start_line(process)
        process.terminate()
        deadline = time.monotonic() + TIME_LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(number)
            time.sleep(0.001)
        code, _, log = finished(process)
        assert code == 0
        assert log.endswith("stund: stopped: 0 requests answered; dropped: nothing\n")
        assert "Traceback" not in log


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_its_processes_interrupt_no_others_unless_told_to() -> None:
    with running("127.0.0.1", "--port", "0", "--workers", "2") as process:
        start_line(process)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        numbers = [process.pid, *map(int, workers)]
        assert [os.sched_getscheduler(number) for number in numbers] == 3 * [os.SCHED_BATCH]
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        with running("127.0.0.1", "--port", "0") as process:
            start_line(process)
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_a_worker_that_begins_does_not_end_by_being_told_to_read_again() -> None:
    with running("127.0.0.1", "--port", "0", "--workers", "2") as process:
        start_line(process)
        [worker, _] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        ended = [start_line(process)]
        for _ in range(100):  # the new one hears some of them before it serves
            process.send_signal(signal.SIGHUP)
            time.sleep(0.002)
        process.terminate()
        code, _, log = finished(process)
        assert code == 0
        ended += [line for line in log.splitlines() if "ended by" in line]
        assert ["SIGKILL" in line for line in ended] == [True]


def test_one_address_says_what_it_cannot_do() -> None:
    with running("127.0.0.1", "--port", "0", "-v") as process:
        line = start_line(process)
        assert "cannot test NAT filtering: CHANGE-REQUEST is refused, OTHER-ADDRESS omitted" in line
        [port] = ports_in(line)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", ("127.0.0.1", port))
        assert len(ask(port)) == 44
        process.terminate()
        code, out, err = finished(process)
        assert (code, out) == (0, "")
        assert f"to 127.0.0.1:{port}, 5 bytes: dropped (not STUN)" in err
        assert f"to 127.0.0.1:{port}, 20 bytes: answered from 127.0.0.1:{port}" in err


OPTIONS = (
    b"OPTIONS sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK1\r\n"
    b"Max-Forwards: 70\r\nFrom: <sip:a@192.0.2.1>;tag=1\r\nTo: <sip:127.0.0.1>\r\nCall-ID: 1\r\n"
    b"CSeq: 1 OPTIONS\r\nContact: <sip:a@192.0.2.1:5060>\r\nContent-Length: 0\r\n\r\n"
)


def sip_ports_in(line: str) -> list[int]:
    return [int(word) for word in line.strip().rpartition(" UDP port ")[2].split(", ")]


def test_as_a_reflector_it_answers_sip_and_stun_on_every_udp_port() -> None:
    reflecting = ("--sip-reflector", "--sip-port", "0", "--sip-port", "0")
    with running("127.0.0.1", "--port", "0", *reflecting) as process:
        line = start_line(process)
        ports = [*ports_in(line), *sip_ports_in(line)]
        assert len(set(ports)) == 3
        for port in ports:
            assert len(ask(port)) == 44
            reflected = ask(port, OPTIONS)
            assert reflected.startswith(b"SIP/2.0 200 OK\r\n")
            assert b";received=127.0.0.1" in reflected
            assert bytes(octet ^ 0x80 for octet in reflected[-len(OPTIONS) :]) == OPTIONS
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", ("127.0.0.1", ports[2]))
        ask(ports[2])
        process.terminate()
        code, out, err = finished(process)
    assert (code, out) == (0, "")
    assert err == (
        "stund: stopped: 7 requests answered; dropped: 1 not STUN; 3 SIP requests reflected; not: 1 not SIP\n"
    )


def test_a_reflector_with_two_addresses_has_its_sip_port_on_both() -> None:
    arguments = ("127.0.0.1", "127.0.0.2", "--port", "0", "--alternate-port", "0")
    with running(*arguments, "--sip-reflector", "--sip-port", "0") as process:
        [port] = sip_ports_in(start_line(process))
        for address in ("127.0.0.1", "127.0.0.2"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(TIME_LIMIT_S)
                client.connect((address, port))
                for request in (OPTIONS, BINDING):
                    client.send(request)
                    assert client.recv(2048)


def test_it_names_each_port_that_reflects_once() -> None:
    port = str(free_port())
    with running("127.0.0.1", "--port", port, "--sip-reflector", "--sip-port", port) as process:
        assert start_line(process).strip().endswith("; reflecting SIP there")


def test_unless_told_to_it_does_not_answer_sip() -> None:
    with running("127.0.0.1", "--port", "0") as process:
        [port] = ports_in(start_line(process))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(TIME_LIMIT_S)
            client.connect(("127.0.0.1", port))
            client.send(OPTIONS)
            client.send(BINDING)
            assert client.recv(2048)[:2] == b"\x01\x01"
        process.terminate()
        assert finished(process)[2] == "stund: stopped: 1 requests answered; dropped: 1 not STUN\n"


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with running("127.0.0.1", "--port", str(port)) as process:
            code, out, err = finished(process)
    assert (code, out) == (1, "")
    assert err.startswith(f"stund: cannot listen on 127.0.0.1, UDP port {port}: address already in use; ")
    assert err.count("\n") == 1


def test_an_address_of_another_machine_is_one_line() -> None:
    with running("192.0.2.1", "--port", "0") as process:
        code, out, err = finished(process)
    assert (code, out) == (1, "")
    assert err.startswith("stund: cannot listen on 192.0.2.1, UDP port 0: ")
    assert "give an address of this machine" in err
    assert err.count("\n") == 1


def test_a_stderr_that_is_gone_does_not_stop_it() -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "nattools.cli.stund", "127.0.0.1", "--port", "0", "-v"], stderr=write
    ) as process:
        try:
            os.close(write)
            with os.fdopen(read) as lines:
                [port] = ports_in(lines.readline())
            for _ in range(2):
                assert len(ask(port)) == 44
            process.terminate()
            assert process.wait(TIME_LIMIT_S) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["localhost"], "'localhost' is not an IP address"),
        (["127.0.0.1:3478"], "'127.0.0.1:3478' is not an IP address"),
        (["127.0.0.1", "127.0.0.1"], "the same address"),
        (["0.0.0.0", "127.0.0.1"], "both addresses must be named"),
        (["127.0.0.1", "127.0.0.2", "--port", "3479"], "both 3479"),
        (["127.0.0.1", "127.0.0.2", "127.0.0.3"], "two addresses at the most"),
        (["224.0.0.1"], "multicast"),
        (["--port", "65536"], "65536"),
        (["--port", "sip"], "sip"),
        (["--sip-port", "5060"], "--sip-port says where --sip-reflector answers"),
        (["--sip-reflector", "--sip-port", "65536"], "65536"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        stund.main(arguments)
    captured = capsys.readouterr()
    assert raised.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("stund: ")
    assert complaint in captured.err


def test_help_reads_like_a_manual(capsys: pytest.CaptureFixture[str]) -> None:
    stund.main(["--help"])
    text = capsys.readouterr().out
    sections = "ONE ADDRESS/TWO ADDRESSES/TWO MACHINES/SIP REFLECTOR/EXAMPLES/SETTINGS/SAFETY/OUTPUT/SIGNALS"
    sections += "/EXIT CODES"
    for section in sections.split("/"):
        assert f"  {section}\n" in text
    options = "--port PORT/--alternate-port PORT/--sip-reflector/--sip-port PORT/-v, --verbose/--version"
    options += "/--advertise/--peer/--peer-key/--peer-port/--limit/--users/--credentials/--user NAME"
    options += "/--workers N/--metrics/--log/--config FILE/--check-config"
    for option in (*options.split("/"), "-h, --help"):
        assert option in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    stund.main(["--version"])
    assert capsys.readouterr().out.startswith("stund, version ")
