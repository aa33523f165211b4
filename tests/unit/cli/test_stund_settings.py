"""`stund` with what operators set: a file, limits, users, workers, metrics, and SIGHUP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nattools.cli import stund
from nattools.stun.attributes import USERNAME
from nattools.stun.integrity import short_term_key, with_integrity
from nattools.stun.message import Message
from tests.ports import free_port, free_ports
from tests.unit.cli.test_stund import (
    BINDING,
    TIME_LIMIT_S,
    ask,
    finished,
    ports_in,
    running,
    start_line,
)

LOOPBACK = ("127.0.0.1", "127.0.0.2", "--port", "0", "--alternate-port", "0")
CHANGE = bytes.fromhex("00010008 2112a442") + bytes(12) + bytes.fromhex("00030004 00000006")
QUIET_S = 0.2


def answers(port: int, requests: int) -> int:
    """How many of so many requests of one socket, sent at once, are answered.

    No other test has had that socket's port, and so no share of its limit.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", free_port()))
        for _ in range(requests):
            client.sendto(BINDING, ("127.0.0.1", port))
        ask(port)  # by another socket: when that is answered, so are those before it
        client.settimeout(QUIET_S)
        count = 0
        try:
            while True:
                client.recv(2048)
                count += 1
        except TimeoutError:
            return count


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIME_LIMIT_S) as response:
        text: str = response.read().decode()
        return text


def sample(text: str, name: str) -> float:
    [value] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


def answered(metrics: int) -> float:
    """How many requests, according to the metrics at that port."""
    values = re.findall(r"^stund_requests_total\{.*\} (\S+)$", get(metrics, "/metrics"), re.MULTILINE)
    return sum(map(float, values))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_and_its_flags_are_checked_without_serving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.toml").write_text('[users]\nalice = "secret"\n')
    (tmp_path / "users.toml").chmod(0o600)
    config = tmp_path / "stund.toml"
    config.write_text('addresses = ["127.0.0.1", "::1"]\nusers = "users.toml"\n[limits]\nsocket = [1, 2]\n')
    stund.main(["--config", str(config), "--port", "19302", "--limit", "address=5:5", "--check-config"])
    captured = capsys.readouterr()
    assert captured.out == "the settings are good: 127.0.0.1:19302, [::1]:19302\n"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("text", "arguments", "complaint"),
    [
        (None, [], "there is no such settings file"),
        ("port = 1\nport = 2", [], "this is not TOML"),
        ("prot = 1", [], "did you mean port?"),
        ("\xff", [], "not UTF-8"),
        ('users = "nobody.toml"', [], "nobody.toml: there is no such file of users"),
        ("", ["--limit", "socket=5"], "socket=20:40"),
        ("", ["--user", "nobody-of-that-name"], "no user 'nobody-of-that-name'"),
        ("", ["--log", "xml"], "text, json"),
        ("", ["--workers", "2", "--sip-reflector"], "one process"),
        ("", ["--advertise", "10.0.0.5"], "is not PRIVATE=PUBLIC"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    text: str | None, arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "stund.toml"
    if text is not None:
        config.write_text(text, encoding="latin-1")
    with pytest.raises(SystemExit) as raised:
        stund.main(["--config", str(config), *arguments, "--check-config"])
    captured = capsys.readouterr()
    assert (raised.value.code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_the_limiter_works_unasked() -> None:
    with running("127.0.0.1", "--port", "0") as process:
        [port] = ports_in(start_line(process))
        assert 40 <= answers(port, 200) < 100
        assert answers(port, 1) == 1  # another socket, the same address
        process.terminate()
        assert " over the limit of their source" in finished(process)[2]


def test_hangup_changes_limits_and_users_without_losing_the_sockets(tmp_path: Path) -> None:
    config, users = tmp_path / "stund.toml", tmp_path / "users.toml"
    config.write_text('users = "users.toml"\n[limits]\nsocket = [0.01, 3]\n')
    users.write_text('[users]\nalice = "secret"\n')
    users.chmod(0o600)
    with running("127.0.0.1", "--port", "0", "--config", str(config)) as process:
        line = start_line(process)
        assert f"for the users of {users} only" in line
        [port] = ports_in(line)
        assert answers(port, 9) == 3
        config.write_text(
            'users = "users.toml"\nrealm = "other"\nlog = "json"\n[limits]\nsocket = [0.01, 5]\n'
        )
        process.send_signal(signal.SIGHUP)
        assert start_line(process) == "stund: the settings were read again; for log start stund anew\n"
        assert answers(port, 9) == 5
        assert b"other" in ask(port, CHANGE)
        users.write_text("[users]")
        process.send_signal(signal.SIGHUP)
        assert start_line(process).startswith(f"stund: all stays as it was: {users}: ")
        assert answers(port, 9) == 5
        process.terminate()
        assert finished(process)[0] == 0


def test_only_a_user_has_another_address_answer(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text('[users]\nalice = "tr0ub4dor"\n')
    users.chmod(0o600)
    with (
        running(*LOOPBACK, "--users", str(users), "--credentials", "short-term") as process,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        ports = ports_in(start_line(process))
        client.settimeout(TIME_LIMIT_S)
        for password, origin in (("tr0ub4dor", ("127.0.0.2", ports[3])), ("wrong", ("127.0.0.1", ports[0]))):
            named = Message.parse(CHANGE).append(USERNAME.of("alice"))
            sealed = with_integrity(named, short_term_key(password))
            client.sendto(sealed.encode(), ("127.0.0.1", ports[0]))
            assert client.recvfrom(2048)[1] == origin
        assert len(ask(ports[0])) == 56


def test_a_log_in_json_has_the_values_of_each_line() -> None:
    with running(*LOOPBACK, "--log", "json") as process:
        serving = json.loads(start_line(process))
        assert serving["event"] == "serving"
        assert len(serving["sockets"]) == 4
        assert serving["behaviour_tests"] == {"IPv4": True}
        assert serving["message"].startswith("serving 127.0.0.1:")
        ask(int(serving["sockets"][0].rpartition(":")[2]))
        process.terminate()
        stopped = json.loads(finished(process)[2])
    assert (stopped["event"], stopped["answered"], stopped["dropped"]) == ("stopped", 1, {})


def test_metrics_tell_what_was_answered_and_what_was_not() -> None:
    metrics = free_port()
    limits = ("--limit", "socket=0.01:2")
    with running("127.0.0.1", "--port", "0", "--metrics", f"127.0.0.1:{metrics}", *limits) as process:
        line = start_line(process)
        assert f"; metrics at http://127.0.0.1:{metrics}/metrics" in line
        assert answers(ports_in(line)[0], 5) == 2
        text = get(metrics, "/metrics")
        assert get(metrics, "/health") == "200 OK\n"
        process.terminate()
        assert finished(process)[0] == 0
    assert (
        sample(text, 'stund_requests_total{family="ipv4",kind="plain",transport="udp"}') == 3
    )  # with the one that came after those
    assert sample(text, 'stund_dropped_total{reason="rate_limited"}') == 3
    assert sample(text, 'stund_limiter_refused_total{level="socket"}') == 3


def test_what_clients_are_told_is_the_address_that_is_advertised() -> None:
    advertised = ("--advertise", "127.0.0.1=198.51.100.1", "--advertise", "127.0.0.2=198.51.100.2")
    with running(*LOOPBACK, *advertised) as process:
        line = start_line(process)
        assert "told as 198.51.100.1 for 127.0.0.1" in line
        reply = ask(ports_in(line)[0])
    assert socket.inet_aton("198.51.100.1") in reply
    assert socket.inet_aton("198.51.100.2") in reply


@pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")
def test_several_workers_serve_one_port_and_stop_with_one_sum() -> None:
    metrics = free_port()
    with running(*LOOPBACK, "--workers", "2", "--metrics", f"127.0.0.1:{metrics}") as process:
        line = start_line(process)
        assert "; 2 processes" in line
        port = ports_in(line)[0]
        for _ in range(20):
            assert len(ask(port)) == 56
        until(lambda: answered(metrics) == 20)
        assert sample(get(metrics, "/metrics"), "stund_workers") == 2
        process.send_signal(signal.SIGHUP)
        assert start_line(process) == "stund: the settings were read again\n"
        process.terminate()
        assert finished(process) == (0, "", "stund: stopped: 20 requests answered; dropped: nothing\n")


@pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")
def test_a_port_in_use_is_one_line_with_several_workers_too() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with running("127.0.0.1", "--port", str(port), "--workers", "2") as process:
            code, out, err = finished(process)
    assert (code, out) == (1, "")
    assert err.startswith(f"stund: cannot listen on 127.0.0.1, UDP port {port}: ")
    assert err.count("\n") == 1


def test_users_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text('[users]\nalice = "tr0ub4dor"\n')
    users.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "nattools.cli.stund", "--users", str(users), "--check-config"],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIME_LIMIT_S,
    )
    assert f"chmod 600 {users}" in done.stderr
    assert "tr0ub4dor" not in done.stdout + done.stderr


def test_two_of_them_with_one_address_each_answer_from_each_other(tmp_path: Path) -> None:
    key = tmp_path / "peer.key"
    key.write_text("an hour of dice\nfor thirty bytes\n")
    key.chmod(0o600)
    port, alternate_port, link_port = free_ports(3)
    metrics = free_port()
    ports = ("--port", str(port), "--alternate-port", str(alternate_port), "--peer-port", str(link_port))
    alone = ("127.0.0.1", "--peer", "127.0.0.2", "--peer-key", str(key), *ports)
    with (
        running(*alone, "--metrics", f"127.0.0.1:{metrics}") as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        assert "NAT behaviour tests as long as the peer 127.0.0.2 is there" in start_line(one)
        client.settimeout(TIME_LIMIT_S)
        client.sendto(CHANGE, ("127.0.0.1", port))
        assert client.recv(2048)[:2] == b"\x01\x11"  # refused: it is alone
        with running("127.0.0.2", "--peer", "127.0.0.1", "--peer-key", str(key), *ports) as other:
            start_line(other)
            until(lambda: socket.inet_aton("127.0.0.2") in ask(port))
            client.sendto(CHANGE, ("127.0.0.1", port))
            reply, origin = client.recvfrom(2048)
            assert reply[:2] == b"\x01\x01"
            assert origin == ("127.0.0.2", alternate_port)
            text = get(metrics, "/metrics")
            for name in ("stund_peer_up", "stund_peer_handed_over_total"):
                assert sample(text, f'{name}{{family="ipv4"}}') == 1
            other.terminate()
            assert finished(other)[0] == 0
        one.terminate()
        assert finished(one)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1", "--peer", "127.0.0.2"], "peers and peer_key belong together"),
        (["127.0.0.1", "--peer", "127.0.0.2", "--peer-key", "KEY"], "a key of 5 bytes"),
        (
            ["127.0.0.1", "--peer", "127.0.0.2", "--peer-key", "NONE"],
            "NONE: there is no such file",
        ),
        (
            ["127.0.0.1", "127.0.0.3", "--peer", "127.0.0.2", "--peer-key", "KEY"],
            "has the second IPv4 address",
        ),
        (["--peer", "127.0.0.2", "--peer-key", "KEY"], "it wants one, which is named"),
        (["127.0.0.1", "--peer", "::1", "--peer-key", "KEY"], "has the second IPv6 address"),
        (["127.0.0.1", "--peer", "127.0.0.1", "--peer-key", "KEY"], "the same address"),
        (["127.0.0.1", "--port", "0", "--peer", "127.0.0.2", "--peer-key", "KEY"], "port 0"),
        (["127.0.0.1", "--port", "3480", "--peer", "127.0.0.2", "--peer-key", "KEY"], "they must differ"),
        (["127.0.0.1", "--workers", "2", "--peer", "127.0.0.2", "--peer-key", "KEY"], "one process"),
    ],
)
def test_what_a_peer_cannot_do_without_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "KEY").write_text("short")
    (tmp_path / "KEY").chmod(0o600)
    with pytest.raises(SystemExit) as raised:
        stund.main([*arguments, "--check-config"])
    captured = capsys.readouterr()
    assert (raised.value.code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root becomes somebody else; read from /proc"
)
@pytest.mark.parametrize("workers", [1, 2])
def test_root_is_given_up_once_the_ports_are_bound(workers: int) -> None:
    entry = pytest.importorskip("pwd").getpwnam("nobody")
    metrics = free_port()
    arguments = ("--user", "nobody", "--workers", str(workers), "--metrics", f"127.0.0.1:{metrics}")
    with running(*LOOPBACK, *arguments) as process:
        port = ports_in(start_line(process))[0]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        serving = [process.pid] if workers == 1 else [int(child) for child in children]
        assert len(serving) == workers
        for number in serving:
            until(partial(has_become, number, entry.pw_uid))
            assert rights(number)["Gid"] == 4 * [str(entry.pw_gid)]
            assert int(rights(number)["CapEff"][0], 16) == 0
        assert len(ask(port)) == 56
        until(lambda: answered(metrics) == 1)
        process.terminate()
        assert finished(process)[0] == 0


def has_become(process: int, user_id: int) -> bool:
    return rights(process)["Uid"] == 4 * [str(user_id)]


def rights(process: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
