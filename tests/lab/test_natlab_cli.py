"""`natlab` as its user sees it: exit statuses, streams, signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import nattools
from nattools.lab.namespaces import why_no_igd
from nattools.lab.nat import NatKind, behavior

if TYPE_CHECKING:
    from collections.abc import Iterator

NATLAB = [sys.executable, "-m", "nattools.cli.natlab"]
RUN = [*NATLAB, "run", "--nat", "port-restricted-cone", "--"]
PATIENCE_SECONDS = 60.0

# Names of its hosts, interfaces and table, and the networks of its addresses.
OF_A_LABORATORY = re.compile(
    r"^(client|router|inner-router|public)\b"
    r"|\b(lan|wan)@"
    r"|\b(203\.0\.113|198\.51\.100|100\.64\.0|11\.22\.33)\."
    r"|table \w+ lab\b"
)

# Send one Binding request to NATCHECK_SERVER (RFC 8489 §5) and print the type of what comes back.
ASK = """
import os, socket
ip, port = os.environ["NATCHECK_SERVER"].rsplit(":", 1)
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(0.5)
asking.sendto(bytes.fromhex("000100002112a442") + bytes(12), (ip, int(port)))
try:
    print(asking.recv(2048)[:2].hex())
except TimeoutError:
    print("silence")
"""

# Send a Binding request, let that socket rest, and then have another one ask for an answer to its port
# (RESPONSE-PORT, RFC 5780 §7.5). The kernel keeps the port where it is a cone.
ASK_LATER = """
import os, socket, struct, sys, time
ip, port = os.environ["NATCHECK_SERVER"].rsplit(":", 1)
resting, asking = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
resting.settimeout(5)
resting.sendto(bytes.fromhex("000100002112a442") + bytes(12), (ip, int(port)))
resting.recv(2048)
time.sleep(float(sys.argv[1]))
response_port = struct.pack("!HHHxx", 0x27, 4, resting.getsockname()[1])
asking.sendto(bytes.fromhex("000100082112a442") + bytes(12) + response_port, (ip, int(port)))
resting.settimeout(0.5)
try:
    resting.recv(2048)
    print("reached")
except TimeoutError:
    print("silence")
"""


def natlab(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NATLAB, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*RUN, *command], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a command writes."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def left_on_the_machine() -> list[str]:
    """Whatever of a laboratory can be seen from outside: its named namespaces, links, addresses and rules."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    found = []
    for question in ("ip netns", "ip -o link", "ip -o address", "nft list tables"):
        program = shutil.which(question.split()[0], path=path)
        assert program is not None
        done = subprocess.run(
            [program, *question.split()[1:]], capture_output=True, text=True, timeout=10, check=False
        )
        found += [line for line in done.stdout.splitlines() if OF_A_LABORATORY.search(line)]
    return found


def running(mark: str) -> list[str]:
    """The processes of this machine, inside laboratories or not, that have `mark` on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            pass
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that names the processes of one test; after the test none of them may be left."""
    word = f"mark-{uuid.uuid4()}"
    yield word
    deadline = time.monotonic() + PATIENCE_SECONDS
    while running(word) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(word) == []
    assert left_on_the_machine() == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 125"], 125),
        (["sh", "-c", "kill -KILL $$"], -signal.SIGKILL),
        (["sh", "-c", "kill -USR1 $$"], -signal.SIGUSR1),
    ],
)
def test_it_ends_as_the_command_ends(command: list[str], status: int, mark: str) -> None:
    done = natlab("run", "--nat", "open", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_command_that_is_not_there() -> None:
    done = natlab("run", "--nat", "open", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "natlab: cannot run 'no-such-command': No such file or directory\n"


def test_a_command_that_cannot_be_run() -> None:
    done = natlab("run", "--nat", "open", "--", "/etc")
    assert done.returncode == 126
    assert done.stderr == "natlab: cannot run '/etc': Permission denied\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--nat", "open"], "Missing argument 'COMMAND...'"),
        (["run", "--", "true"], "Missing option '--nat'"),
        (["run", "--nat", "cone", "--", "true"], "'cone' is not one of 'open', "),
        (["run", "--nat", "open", "--second-nat", "cone", "--", "true"], "'cone' is not one of 'open', "),
        (["run", "--nat", "open", "--loss", "101", "--", "true"], "101.0 is not in the range"),
        (["run", "--nat", "open", "--delay", "5", "--", "true"], "No such option"),
        (["run", "--nat", "full-cone", "--udp-timeout", "0", "--", "true"], "0 is not in the range"),
        (["run", "--nat", "open", "--udp-timeout", "6", "--", "true"], "open keeps no UDP flow"),
        (
            ["run", "--nat", "symmetric", "--hairpin", "--", "true"],
            "symmetric has no hairpinning: it can be had with full-cone, restricted-cone, ",
        ),
        (["run", "--nat", "open", "--sip-alg", "--", "true"], "open translates no address that a SIP ALG"),
        (["run", "--igd", "3", "--", "true"], "'3' is not one of '1', '2'"),
        (["run", "--igd", "2", "--nat", "open", "--", "true"], "open grants no mappings to who asks: "),
        (["run", "--igd", "2", "--second-nat", "open", "--", "true"], "no second NAT"),
    ],
)
def test_usage_errors(arguments: list[str], complaint: str) -> None:
    done = natlab(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_options_after_the_command_are_the_command_s() -> None:
    done = natlab("run", "--nat", "open", "echo", "--nat", "--help", "-n")
    assert done.stdout == "--nat --help -n\n"


def test_natcheck_is_found_where_only_natlab_s_full_path_was_typed() -> None:
    done = subprocess.run(
        [*RUN, "natcheck", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert '"nat_type"' in done.stdout, done.stderr


def test_streams_directory_and_environment_pass_through(tmp_path: Path, mark: str) -> None:
    script = 'cat; pwd; echo "$NATCHECK_SERVER $WORD"; echo wrong >&2'
    done = subprocess.run(
        [*RUN, "sh", "-c", script],
        input="typed\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "WORD": mark},
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert done.stdout == f"typed\n{tmp_path}\n203.0.113.10:3478 {mark}\n"
    assert done.stderr == "wrong\n"


def test_open_files_pass_through() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        script = f"import os; os.write({writing}, b'here')"
        subprocess.run(
            [*RUN, sys.executable, "-c", script], pass_fds=(writing,), timeout=PATIENCE_SECONDS, check=True
        )
        os.close(writing)
        assert pipe.read() == "here"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ([], "0101"),
        (["--second-nat", "symmetric"], "0101"),
        (["--hairpin"], "0101"),
        (["--loss", "100"], "silence"),
        (["--second-nat", "blocked"], "silence"),
    ],
)
def test_the_stun_server_is_there_before_the_command(options: list[str], answer: str) -> None:
    done = natlab("run", "--nat", "full-cone", *options, "--", sys.executable, "-c", ASK)
    assert (done.stdout, done.stderr) == (f"{answer}\n", "")


@pytest.mark.parametrize(("wait_s", "answer"), [("0", "reached"), ("4.5", "silence")])
def test_a_nat_with_a_short_timer_forgets(wait_s: str, answer: str) -> None:
    done = natlab(
        *("run", "--nat", "full-cone", "--udp-timeout", "3", "--", sys.executable, "-c", ASK_LATER, wait_s)
    )
    assert (done.stdout, done.stderr) == (f"{answer}\n", "")


@pytest.fixture
def igd() -> None:
    missing = why_no_igd()
    if missing is not None:
        pytest.skip(missing)


# Ask the router for its external address (RFC 6886 §3.2) and print the result and the address.
ASK_ROUTER = """
import socket
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(5)
asking.sendto(bytes(2), ("192.168.0.1", 5351))
answer = asking.recv(1100)
print(int.from_bytes(answer[2:4]), socket.inet_ntoa(answer[8:12]))
"""


@pytest.mark.parametrize("options", [["--igd", "1"], ["--igd", "2", "--nat", "symmetric"]])
def test_an_igd_answers_before_the_command(options: list[str], igd: None) -> None:
    done = natlab("run", *options, "--", sys.executable, "-c", ASK + ASK_ROUTER)
    assert (done.stdout, done.stderr) == ("0101\n0 11.22.33.2\n", "")


def test_an_igd_that_ends_too_early_is_told(igd: None) -> None:
    done = natlab("run", "--igd", "2", "--", "sh", "-c", "kill -9 -1; sleep 0.5")
    assert (done.returncode, done.stderr.splitlines()) == (
        0,
        [
            "natlab: the STUN server ended too early, with status -9",
            "natlab: the router's miniupnpd ended too early, with status -9",
        ],
    )


def test_an_igd_that_is_not_installed_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if name == "miniupnpd" else which(name, path=path)
    )
    assert why_no_igd() == (
        "the NAT laboratory needs the program miniupnpd: install miniupnpd-nftables"
        " (apt install miniupnpd-nftables)"
    )


def test_an_igd_ends_with_natlab_however_that_ends(igd: None, mark: str) -> None:
    process = subprocess.Popen(
        [*NATLAB, "run", "--igd", "2", "--", "sh", "-c", f"echo ready {mark}; exec sleep 60"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert said(process) == f"ready {mark}"
    [daemon] = [path for path in descendants(process.pid) if (path / "comm").read_text() == "miniupnpd\n"]
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while daemon.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not daemon.exists()


def descendants(pid: int) -> Iterator[Path]:
    """The processes that a process started, and those that they did."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield Path(f"/proc/{child}")
        yield from descendants(int(child))


def test_a_server_that_ends_too_early_is_told() -> None:
    done = natlab("run", "--nat", "open", "--", "sh", "-c", "kill -9 -1; sleep 0.5")
    assert (done.returncode, done.stderr) == (0, "natlab: the STUN server ended too early, with status -9\n")


def test_only_the_laboratory_s_network_is_there() -> None:
    done = natlab("run", "--nat", "symmetric", "--", "ip", "-o", "-4", "address")
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["127.0.0.1/8", "192.168.0.108/24"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_natlab_nothing_is_left(how: signal.Signals, mark: str) -> None:
    # A daemon that has left its session, its parent and its terminal, and takes no notice of signals.
    daemon = f"trap '' HUP INT TERM; while sleep 1; do : {mark}; done"
    script = f'setsid sh -c "{daemon}" >/dev/null 2>&1 & echo ready {mark}; exec sleep 60'
    process = start("sh", "-c", script)
    assert said(process) == f"ready {mark}"
    assert running(mark)
    process.send_signal(how)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -how


def test_a_daemon_ends_with_the_command(mark: str) -> None:
    script = f'setsid sh -c "while sleep 1; do : {mark}; done" >/dev/null 2>&1 & echo {mark}'
    done = natlab("run", "--nat", "open", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, f"{mark}\n")
    assert running(mark) == []


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"])
def test_signals_reach_a_command_that_handles_them(name: str, mark: str) -> None:
    script = f"trap 'echo caught {name}; exit 5' {name}; echo ready {mark}; while :; do sleep 0.01; done"
    process = start("sh", "-c", script)
    assert said(process) == f"ready {mark}"
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.communicate(timeout=PATIENCE_SECONDS)[0] == f"caught {name}\n"
    assert process.returncode == 5


class Terminal:
    """A terminal that a test types on, with a session of its own in it."""

    def __init__(self, argv: list[str]) -> None:
        self._shown = b""
        self._screen, theirs = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PS1": "prompt> "},
        )
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def shows(self, text: bytes) -> None:
        """Read until `text` comes on the screen, and no further."""
        while text not in self._shown:
            assert select.select([self._screen], [], [], PATIENCE_SECONDS)[0], self._shown
            self._shown += os.read(self._screen, 1024)
        self._shown = self._shown.partition(text)[2]

    def close(self) -> None:
        os.close(self._screen)  # hangs up
        self.process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("trap", "status"), [("trap 'exit 5' INT", 5), ("trap '' QUIT", -signal.SIGINT)], ids=["caught", "fatal"]
)
def test_ctrl_c_is_the_command_s(trap: str, status: int, mark: str) -> None:
    terminal = Terminal([*RUN, "sh", "-c", f"{trap}; echo rea''dy; : {mark}; while :; do sleep 0.01; done"])
    try:
        terminal.shows(b"ready")
        terminal.type(b"\x03")
        assert terminal.process.wait(PATIENCE_SECONDS) == status
    finally:
        terminal.close()


def test_ctrl_z_stops_and_fg_goes_on(mark: str) -> None:
    script = f"trap 'echo going on; exit 5' CONT; echo rea''dy; : {mark}; while :; do sleep 0.01; done"
    shell = Terminal(["bash", "--norc", "--noprofile", "-i"])
    try:
        shell.shows(b"prompt> ")
        shell.type(shlex.join([*RUN, "sh", "-c", script]).encode() + b"\n")
        shell.shows(b"ready\r\n")
        shell.type(b"\x1a")
        shell.shows(b"Stopped")
        shell.shows(b"prompt> ")
        shell.type(b"fg\n")
        shell.shows(b"going on\r\n")
        shell.shows(b"prompt> ")
        shell.type(b"exit $?\n")
        assert shell.process.wait(PATIENCE_SECONDS) == 5
    finally:
        shell.close()


def test_a_shell_inside_gives_the_terminal_back(mark: str) -> None:
    inside = " ".join([*RUN, "bash", "--norc", "--noprofile", "-i"])
    script = f"{inside}; echo status $?; read line; echo got $line; : {mark}"
    terminal = Terminal(["sh", "-c", script])
    try:
        terminal.shows(b"prompt> ")
        terminal.type(b"exit 4\n")
        terminal.shows(b"status 4")
        terminal.type(b"hello\n")
        terminal.shows(b"got hello")
        assert terminal.process.wait(PATIENCE_SECONDS) == 0
    finally:
        terminal.close()


@pytest.mark.parametrize("namespace", ["mnt", "pid", "net"])
def test_a_machine_without_namespaces_is_told_so_in_one_line(namespace: str) -> None:
    limit = f"/proc/sys/user/max_{namespace}_namespaces"
    forbidding = ["unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 >{limit} && exec "$@"', "sh"]
    done = subprocess.run(
        [*forbidding, *RUN, "true"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    if "unshare" in done.stderr and done.returncode == 1:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("natlab: the NAT laboratory cannot be built: ")
    assert "No space left on device" in done.stderr


# A Python that starts itself, as natlab does, and has what natlab imports.
TRIAL = (
    "import subprocess, sys, nattools.cli.natlab, nattools.cli.stund; subprocess.run([sys.executable, '-V'])"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="is an ordinary user already")
@pytest.mark.parametrize("options", [["--nat", "port-restricted-cone"], ["--igd", "2"]])
def test_an_ordinary_user_needs_no_root(options: list[str], mark: str) -> None:
    if "--igd" in options and (missing := why_no_igd()) is not None:
        pytest.skip(missing)
    homes = {str(Path(module.__file__ or "").parents[1]) for module in (nattools, click)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(homes), "PYTHONDONTWRITEBYTECODE": "1"}

    def as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *argv],
            capture_output=True,
            text=True,
            cwd="/",
            env=environment,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    for python in (sys.executable, "/usr/bin/python3"):
        trial = as_nobody(python, "-c", TRIAL)
        if trial.returncode == 0:
            break
    else:
        pytest.skip(f"nobody cannot run Python with nattools here: {trial.stderr.splitlines()[-1]}")
    # Root of its own user namespace, to which the machine's root is a stranger like any other.
    whoami = f"{ASK}\nprint(os.geteuid(), os.stat('/').st_uid)  # {mark}"
    done = as_nobody(python, *NATLAB[1:], "run", *options, "--", python, "-c", whoami)
    if "refuses new namespaces" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, "0101\n0 65534\n", "")


def test_list_is_a_table_of_the_kinds() -> None:
    done = natlab("list")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert rows[0] == ["KIND", "MAPPING", "FILTERING", "MEANING"]
    assert [row[:3] for row in rows[1:]] == [
        [kind.value, behavior(kind).mapping, behavior(kind).filtering] for kind in NatKind
    ]


def test_list_as_json() -> None:
    document = json.loads(natlab("list", "--json").stdout)
    assert document["schema"] == 1
    assert [kind["kind"] for kind in document["kinds"]] == [kind.value for kind in NatKind]
    assert set(document["kinds"][0]) == {"kind", "mapping", "filtering", "meaning"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "--help"]])
def test_help_is_on_stdout(arguments: list[str]) -> None:
    done = natlab(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: natlab" in done.stdout
