"""What a service manager such as systemd is told, over the socket that it names (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
import sys

_VARIABLE = "NOTIFY_SOCKET"
_SEND_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


def tell_ready(status: str) -> None:
    """Tell whoever started this process that it serves, with a line for people.

    Without a service manager that wants to know nothing happens; one that cannot be told is one line in the
    log, since that is no reason not to serve.
    """
    path = os.environ.get(_VARIABLE)
    if not path or sys.platform == "win32":
        return
    text = f"READY=1\nSTATUS={' '.join(status.splitlines())}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_SEND_TIMEOUT_S)
            sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)  # "@" is the abstract namespace
            sock.send(text.encode())
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        _log.warning("%s: the service manager cannot be told that all is served: %s", path, reason or error)
