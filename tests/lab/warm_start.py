"""Programs of a laboratory that need not import everything anew: they are forked from a process that has.

Of the half second that `natmap ip` takes, more than half is the interpreter's start and its imports. Tests
start hundreds of such programs. What they see of one that was forked is what they see of any other: a child
process, with signals, a status and files; it runs in the laboratory's namespaces, with PIDs of its own there.
How programs start by themselves is shown in tests/unit/cli and in test_natmap, and that these are no
different in test_warm_start.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nattools.lab import holder
from nattools.lab.namespaces import Process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
_ENTRY = (sys.executable, "-I", "-S", holder.__file__, "enter")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_STRICT = ["-W", "error"]
_PATIENCE_S = 60.0


class WarmProcess(Process):
    """A process of a laboratory that was forked where that can be, and else started as ever.

    It can be where the command is `python -m MODULE ...` without options that change the interpreter.
    """

    def _execute_child(
        self,
        args: Sequence[str],
        executable: str | None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        startupinfo: None,
        creationflags: int,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *others: Any,
    ) -> None:
        """What every version of `subprocess.Popen` starts its process by."""
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        program = _program(args[len(_ENTRY) + 2 :])
        environment = dict(os.environ if env is None else env)
        if program is None or not close_fds or _interpreters(environment) != _interpreters(os.environ):
            first = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env)
            super()._execute_child(*first, startupinfo, creationflags, shell, *pipes, *others)  # type: ignore[misc]  # typeshed has no private method
            return
        request = {
            "holder": int(args[len(_ENTRY)]),
            "network": int(args[len(_ENTRY) + 1]),
            **dataclasses.asdict(program),
            "environment": environment,
            "directory": os.path.abspath(cwd or "."),
        }
        files = [own if file == -1 else file for own, file in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = _warm.start(request, files)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]  # of Popen, like the rest


@dataclass(frozen=True, slots=True)
class _Program:
    """What `python -m` is to run; where it is `strict`, every warning is an error to it."""

    module: str
    arguments: list[str]
    strict: bool


def _program(argv: Sequence[str]) -> _Program | None:
    """The program of a command, where a forked process can run it."""
    for options in ([], ["-P"], _STRICT):
        start = [sys.executable, *options, "-m"]
        if list(argv[: len(start)]) == start:
            module, *arguments = argv[len(start) :]
            return _Program(module, arguments, strict=options == _STRICT)
    return None


def _interpreters(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    """What the interpreter itself reads when it starts, which is over for who is forked."""
    return {(k, v) for k, v in environment.items() if k.startswith(("PYTHON", "LC_", "LANG"))}


class _Warm:
    """The process that others are forked from, started when the first is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._prctl = ctypes.CDLL(None).prctl

    def start(self, request: dict[str, Any], files: list[int]) -> int:
        """Fork a process, which is a child of this one, and return its ID."""
        with self._lock:
            if self._channel is None:
                self._channel = self._open()
            # While this is said, who loses a parent that this process has started becomes a child of its own.
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], files)
                return int(self._channel.recv(32))
            finally:
                self._prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def _open(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_PATIENCE_S)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.warm_program"],
                stdin=theirs.fileno(),
                cwd=ROOT,
                start_new_session=True,
            )

        def close() -> None:
            ours.close()
            process.wait()

        atexit.register(close)
        return ours


_warm = _Warm()
