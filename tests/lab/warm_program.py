"""The process that `tests.lab.warm_start` has programs forked from: it has imported what they import.

It reads requests from the socket that is its stdin, each a JSON object with the three files of the program's
stdin, stdout and stderr, and answers each with a process ID. That process enters the laboratory as any
command does (`nattools.lab.holder`) and there runs a module as `python -m` would, with its own arguments,
environment, working directory and files, until the interpreter itself ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from importlib import import_module
from typing import Any, Literal, NoReturn

from nattools.lab import holder

_LARGEST_REQUEST = 1 << 20
_FIRST_FILE = 3  # behind stdin, stdout and stderr
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# What a program imports no sooner than it needs it.
_IMPORTED_LATE = {
    "nattools.cli.natcheck": ("rich.console",),
    "nattools.cli.natgate": ("nattools.cli.natgate_serve", "stringprep"),
    "nattools.cli.natmap": ("rich.console",),
    "nattools.cli.stund": ("nattools.net.batch", "nattools.stun.batch", "nattools.stun.batch_limiter"),
}


def main() -> None:
    """Serve until whoever asks closes its end."""
    channel = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's, and only who has a single thread can be forked safely
    gc.disable()  # a collection would copy the memory that parent and children share
    while True:
        said, files, _, _ = socket.recv_fds(channel, _LARGEST_REQUEST, 3)
        if not said:
            return
        request = json.loads(said)
        _import(request["module"], strict=request["strict"])
        gc.freeze()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            process = os.fork()
            if process == 0:
                channel.detach()
                _become(request, files)
            # With the end of this process the program's becomes a child of who asked for it.
            os.write(writing, str(process).encode())
            os._exit(0)
        os.waitpid(between, 0)
        for file in (*files, writing):
            os.close(file)
        channel.send(os.read(reading, 32))
        os.close(reading)


def _import(module: str, *, strict: bool) -> None:
    """Import a program and what it will; what cannot be imported is for the program itself to meet."""
    actions: tuple[Literal["error", "ignore"], ...] = ("error",) if strict else ("error", "ignore")
    for name in (module, *_IMPORTED_LATE.get(module, ())):
        for action in actions:
            if name not in sys.modules:
                with contextlib.suppress(Exception), warnings.catch_warnings(action=action):
                    import_module(name)


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the process that enters the laboratory, and in its child the program."""
    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.closerange(_FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["directory"])

    def run(argv: list[str], signals: set[signal.Signals]) -> NoReturn:
        holder._system_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*signals, signal.SIGCHLD})
        os.closerange(
            _FIRST_FILE, os.sysconf("SC_OPEN_MAX")
        )  # of the namespaces; an exec would have closed them
        if request["strict"]:
            warnings.simplefilter("error")
        _run(request["module"], argv)

    holder._execute = run  # which would have been an exec
    holder.enter(request["holder"], request["network"], request["arguments"])


def _run(module: str, arguments: list[str]) -> NoReturn:
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for file, name in enumerate(("stdin", "stdout", "stderr")):
        kept = getattr(sys, name)
        mode, buffering = ("wb", 0 if unbuffered else -1) if file else ("rb", -1)
        binary = open(file, mode, buffering, closefd=False)  # noqa: SIM115 - it stays open
        by_line = not unbuffered and (file == 2 or os.isatty(file))
        stream = io.TextIOWrapper(binary, kept.encoding, kept.errors, None, by_line, unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.modules.pop(module, None)  # as with -m, it is __main__ alone
    sys.argv = [module, *arguments]
    statuses: list[int] = []
    atexit.register(_leave, statuses)  # the first to be registered is called last
    gc.enable()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            statuses.append(ended.code or 0)
        raise
    statuses.append(0)
    sys.exit()


def _leave(statuses: list[int]) -> None:
    """End here, unless there is more to say: to take modules apart costs as much as all that was forked."""
    for status in statuses:
        with contextlib.suppress(OSError, ValueError):  # which the interpreter is about to report
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
