"""The program inside a laboratory: the process that holds its namespaces, and the way in for a command.

`Lab` runs this file by its path under `python -I -S`: it starts in a few milliseconds and needs nothing but
the standard library. It has two forms.

- `holder.py hold` reads a plan, one line of JSON, from stdin, builds the network and reports on stdout. Its
  child is PID 1 of a new PID namespace and stays until stdin ends, which happens when whoever started it
  closes the pipe *or dies, of whatever*. When PID 1 goes, the kernel kills every process of the namespace,
  and with the last process go the network namespaces, their links and rules: nothing is cleaned up by hand.
- `holder.py enter HOLDER NETWORK COMMAND...` runs COMMAND in one of the network namespaces, passes on the
  signals it receives, and ends as COMMAND ends.

Namespaces are entered by system calls and held as open files of PID 1, not as the names of `ip netns`: those
need a mount on /run, and an ordinary user could only make it by hiding what is there from COMMAND.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys

TYPE_CHECKING = False  # of `typing`, which would take as long to load as all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

# Exit statuses of natlab itself, as env(1) and timeout(1) have them.
EXIT_LAB = 125
EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127

# linux/sched.h, linux/mount.h, linux/prctl.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_BIND = 4096
_MS_REC_SLAVE = 16384 | 1 << 19
_PR_SET_PDEATHSIG = 1

_TOOL_SECONDS = 10
_POLL_SECONDS = 0.002


def attend(child: int) -> int:
    """Wait for a child process, passing on the signals that are meant for it, and return its `returncode`.

    A signal from the terminal reached the child already, since it is in the same process group; one that a
    process sent to this process alone did not. When the child stops itself, so does this process, for the
    shell to see it. The signals stay blocked afterwards.
    """
    signals = _passed_on()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*signals, signal.SIGCHLD})
    while True:
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
        elif pid:
            return os.waitstatus_to_exitcode(status)
        received = signal.sigwaitinfo({*signals, signal.SIGCHLD})
        sent_by_a_process = received.si_code <= 0
        if received.si_signo != signal.SIGCHLD and sent_by_a_process:
            os.kill(child, received.si_signo)


def end_as(returncode: int) -> NoReturn:
    """End this process as a child ended: with its exit status, or by the signal that killed it."""
    if returncode < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file of the child is enough
        with contextlib.suppress(OSError):  # SIGKILL has no handler to set
            signal.signal(-returncode, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-returncode})
        os.kill(os.getpid(), -returncode)
    os._exit(returncode if returncode >= 0 else 128 - returncode)


def _passed_on() -> set[signal.Signals]:
    names = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")
    return {signal.Signals[name] for name in names}


def _system_call(name: str, *arguments: int | bytes | None) -> None:
    """Call what Python 3.11 has no function for. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


class _BuildError(Exception):
    """The laboratory cannot be built; the message is for the user."""


def hold() -> None:
    """Build the network of the plan on stdin, report on stdout, and hold it until stdin ends."""
    import json

    plan = json.loads(sys.stdin.buffer.readline())
    try:
        _leave_the_machine()
        child = os.fork()
    except OSError as error:
        reason = f"the kernel refuses new namespaces ({error.strerror})"
        cure = (
            "run it as root, or let ordinary users have user namespaces; in a container, start it privileged"
        )
        sys.stdout.write(json.dumps({"error": f"{reason}: {cure}"}))
        return
    if child:
        _close_output()
        os.waitpid(child, 0)
        return
    holder = int(os.readlink("/proc/self"))  # the machine's own /proc: the PID by which the machine knows us
    report: dict[str, object]
    try:
        report = {"holder": holder, "networks": _build(plan)}
    except _BuildError as error:
        report = {"error": str(error)}
    except OSError as error:
        report = {"error": f"{error.filename}: {error.strerror}"}
    # PID 1 inherits every orphan. With the signal ignored, the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write(json.dumps(report))
    _close_output()
    while "error" not in report and os.read(0, 4096):
        pass


def _close_output() -> None:
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _leave_the_machine() -> None:
    """Enter new mount and PID namespaces, in a user namespace of our own where that is what it takes."""
    uid, gid = os.geteuid(), os.getegid()
    namespaces = _CLONE_NEWNS | _CLONE_NEWPID
    try:
        _system_call("unshare", namespaces)
    except PermissionError:
        _system_call("unshare", _CLONE_NEWUSER | namespaces)
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            _write(f"/proc/self/{file}", text)


def _build(plan: dict[str, Any]) -> dict[str, int]:
    """Make the hosts and links of the plan; return the open file of each host's network namespace."""
    _mount()
    ipv6 = os.path.exists("/proc/sys/net/ipv6")
    networks = {}
    for host in plan["hosts"]:
        _system_call("unshare", _CLONE_NEWNET)
        networks[host["name"]] = os.open("/proc/self/ns/net", os.O_RDONLY)
        _set_up([*host["sysctls"], *(host["sysctls_ipv6"] if ipv6 else [])])
    _run(
        [plan["ip"], "-batch", "-"],
        [
            f"link add {link['interface']} netns /proc/self/fd/{networks[link['host']]} type veth"
            f" peer name {link['peer_interface']} netns /proc/self/fd/{networks[link['peer']]}"
            for link in plan["links"]
        ],
        pass_fds=list(networks.values()),
    )
    # The public side comes last: PID 1 stays there, so that /proc/PID/net shows its sockets.
    for host in reversed(plan["hosts"]):
        _system_call("setns", networks[host["name"]], _CLONE_NEWNET)
        if host["ruleset"]:
            _run([plan["nft"], "-f", "-"], [host["ruleset"]])
        _set_up(host["timers"])
        _run([plan["ip"], "-batch", "-"], [*host["commands"], *(host["commands_ipv6"] if ipv6 else [])])
    for host in reversed(plan["hosts"]):
        _system_call("setns", networks[host["name"]], _CLONE_NEWNET)
        wait_until_links_run(plan["ip"])
    return networks


def wait_until_links_run(ip: str) -> None:
    """Wait until what is sent leaves: until the kernel has seen to a link that is up, it drops everything.

    The links are those of the network namespace that it is called in, as `ip` shows them. Raises
    `_BuildError` when one does not come up.
    """
    import time

    deadline = time.monotonic() + _TOOL_SECONDS
    while True:
        links = _run([ip, "-o", "link", "show", "type", "veth"], []).splitlines()
        late = [link for link in links if " state UP " not in link or " qdisc noop " in link]
        if not late:
            return
        if time.monotonic() > deadline:
            raise _BuildError(f"a link does not come up: {late[0]}")
        time.sleep(_POLL_SECONDS)


def _mount() -> None:
    """Give the laboratory a /proc and a resolv.conf of its own, where that can be done."""
    try:
        _system_call("mount", b"none", b"/", None, _MS_REC_SLAVE, None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return  # a chroot in which / is no mount point: what is mounted here would show outside, too
    # A container may refuse a second /proc. Commands then see the machine's, with other PIDs than their own.
    with contextlib.suppress(OSError):
        _system_call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None)
    # The machine's name servers are out of reach. With none listed, a look-up asks 127.0.0.1, which refuses.
    with contextlib.suppress(OSError):
        _system_call("mount", b"/dev/null", b"/etc/resolv.conf", None, _MS_BIND, None)


def _set_up(sysctls: list[list[str]]) -> None:
    for path, value in sysctls:
        try:
            _write(f"/proc/sys/{path}", value)
        except OSError as error:
            reason = f"/proc/sys/{path} cannot be written ({error.strerror})"
            raise _BuildError(f"{reason}: run it as root; in a container, start it privileged") from error


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _run(argv: list[str], lines: list[str], pass_fds: Sequence[int] = ()) -> str:
    import subprocess

    result = subprocess.run(
        argv,
        input="\n".join([*lines, ""]),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TOOL_SECONDS,
        pass_fds=pass_fds,
        check=False,
    )
    if result.returncode:
        said = " ".join(result.stdout.split())
        raise _BuildError(
            f"{os.path.basename(argv[0])} failed, which may be for want of a kernel module: {said}"
        )
    return result.stdout


def enter(holder: int, network: int, argv: list[str]) -> NoReturn:
    """Run a command in a network namespace that `holder` has open as file `network`, and end as it ends."""
    signals = _passed_on()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take away the command's status
    signal.pthread_sigmask(signal.SIG_BLOCK, {*signals, signal.SIGCHLD})
    try:
        _enter_namespaces(holder, network)
        child = os.fork()
    except OSError as error:
        sys.stderr.write(f"natlab: the laboratory cannot be entered: {error}\n")
        end_as(EXIT_LAB)
    if child == 0:
        _execute(argv, signals)
    end_as(attend(child))


def _enter_namespaces(holder: int, network: int) -> None:
    root = f"/proc/{holder}"
    directory = os.getcwd()
    root_directory = os.open(f"{root}/root", os.O_RDONLY)
    names = [f"{root}/ns/mnt", f"{root}/ns/pid", f"{root}/fd/{network}"]
    if not os.path.samefile(f"{root}/ns/user", "/proc/self/ns/user"):
        names.insert(0, f"{root}/ns/user")
    for file in [os.open(name, os.O_RDONLY) for name in names]:
        _system_call("setns", file, 0)
    # Entering the mount namespace went to its root, which is not ours in a chroot.
    os.fchdir(root_directory)
    os.chroot(".")
    os.chdir(directory)


def _execute(argv: list[str], signals: set[signal.Signals]) -> NoReturn:
    # The process that passes signals on cannot pass on SIGKILL: when that kills it, the command goes, too.
    _system_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*signals, signal.SIGCHLD})
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        # A directory of PATH that may not be read is reported as a command that may not be run.
        missing = isinstance(error, FileNotFoundError) or not _exists(argv[0])
        reason = "No such file or directory" if missing else error.strerror
        sys.stderr.write(f"natlab: cannot run {argv[0]!r}: {reason}\n")
        sys.stderr.flush()
        os._exit(EXIT_NOT_FOUND if missing else EXIT_CANNOT_RUN)


def _exists(command: str) -> bool:
    directories = [""] if "/" in command else os.get_exec_path()
    return any(os.path.exists(os.path.join(directory, command)) for directory in directories)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold()
    else:
        enter(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
