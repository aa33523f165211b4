"""A threaded program that answers whoever writes to it, until Ctrl-D: `python blocking_socket.py`.

Only the marked import makes its socket a public one. The STUN server is set elsewhere: NATTOOLS_STUN_SERVERS.
"""

import sys
import threading
from contextlib import suppress
from socket import AF_INET, SOCK_DGRAM

from nattools.blocking import PublicSocket as socket  # noqa: N813 - this one, in place of the socket module's


def answer() -> None:
    """Answer everybody, until the socket is closed."""
    with suppress(OSError):
        while True:
            data, sender = sock.recvfrom(2048)
            sock.sendto(b"you said: " + data, sender)


with socket(AF_INET, SOCK_DGRAM) as sock:
    sock.bind(("", 0))
    print("write to", sock.public, flush=True)
    threading.Thread(target=answer).start()
    sys.stdin.read()
