"""What `test_warm_start` runs: it says what a program sees of its own process, and ends as it is told to."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import warnings
from pathlib import Path

ENDS = ("returns", "exits", "says", "raises", "warns", "waits")

if __name__ == "__main__":
    _, end, *_words = sys.argv
    seen = {
        "arguments": sys.argv[1:],
        "program": Path(sys.argv[0]).name,
        "name": __spec__.name if __spec__ else "",
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],  # the last is of the listing itself
        "session": os.getsid(0) == os.getppid(),
        "interrupted by": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "pipes": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "input": sys.stdin.read() if end != "waits" else "",
        "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
        "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors],
        "network": "eth0" in Path("/proc/net/dev").read_text(),
        "alone": min(one for one in os.listdir("/proc") if one.isdigit()),
        "main": sys.modules["__main__"].__dict__.get("ENDS") == ENDS,
        "twice": "tests.lab.warm_sample" in sys.modules,
    }
    sys.stdout.write(json.dumps(seen, sort_keys=True) + "\n")
    if end == "waits":
        sys.stdout.flush()
    atexit.register(sys.stdout.write, "the end\n")
    if end == "exits":
        sys.exit(3)
    if end == "says":
        sys.exit("it says why")
    if end == "raises":
        raise LookupError("nothing there")
    if end == "warns":
        warnings.warn("look", UserWarning, stacklevel=1)
    if end == "waits":
        signal.pause()
