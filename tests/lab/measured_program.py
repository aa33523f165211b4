"""Runs `natmap` again and again, each time in a process of its own, and measures what it costs.

Each line of the standard input is a JSON list of arguments, and each of the standard output says what became
of it. The processes are forks of one that has loaded everything, so that the cost is that of the work alone.
One that keeps a mapping is told to end a second after it has said so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import IO

from nattools.cli.natmap import main as natmap
from tests.lab.stalls import kept_waiting_s

KEPT_S = 1.0
COUNTER = ("nft", "-j", "list", "counter", "inet", "canary", "elsewhere")
"""Of the packets that leave for anybody but the router; it is only read, which waits for nobody."""
_TIME_LIMIT_S = 60.0
_POLL_S = 0.01


def packets_elsewhere(listed: str) -> int:
    """What the counter says."""
    [count] = [one["counter"] for one in json.loads(listed)["nftables"] if "counter" in one]
    return int(count["packets"])


def _packets_elsewhere() -> int:
    done = subprocess.run(COUNTER, capture_output=True, check=True, text=True, timeout=_TIME_LIMIT_S)
    return packets_elsewhere(done.stdout)


def run(arguments: list[str]) -> dict[str, object]:
    """Run it once. The peak is of the resident memory, shared pages among it."""
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        tempfile.TemporaryFile() as waited,
        tempfile.TemporaryDirectory() as state,
    ):
        os.environ["XDG_STATE_HOME"] = state  # no run is to tidy up after another
        packets = _packets_elsewhere()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            status = _natmap(arguments, stdout, stderr)
            os.write(waited.fileno(), str(kept_waiting_s()).encode())
            os._exit(status)
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - started
        return {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "kept_waiting_s": float(_said(waited)),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_kib": usage.ru_maxrss,
            "elsewhere": _packets_elsewhere() - packets,
            "stdout": _said(stdout),
            "stderr": _said(stderr),
        }


def _natmap(arguments: list[str], stdout: IO[bytes], stderr: IO[bytes]) -> int:
    for number, file in enumerate((stdout, stderr), 1):
        os.dup2(file.fileno(), number)
    if "--keep" in arguments:
        threading.Thread(target=_end_later, args=(stdout,), daemon=True).start()
    try:
        natmap(arguments, prog_name="natmap")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent; the test sees the traceback
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _end_later(stdout: IO[bytes]) -> None:
    while os.fstat(stdout.fileno()).st_size == 0:
        time.sleep(_POLL_S)
    time.sleep(KEPT_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)  # noqa: T201  a program
