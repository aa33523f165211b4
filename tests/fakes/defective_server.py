"""A STUN server on 203.0.113.10 and .11 that breaks its word: `... tests.fakes.defective_server ignore`.

For the public side of the laboratory; the ways of being wrong are those of `tests.sim.servers`.
"""

from __future__ import annotations

import select
import socket
import sys

from nattools.errors import DecodeError
from nattools.net.udp import endpoint_of
from tests.sim.servers import ALL, stun_server


def main(honours: str) -> None:
    serve = stun_server(honours=honours)
    sockets = {}
    for endpoint in ALL:
        sockets[endpoint] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sockets[endpoint].bind((str(endpoint.ip), endpoint.port))
    local_of = {sock: endpoint for endpoint, sock in sockets.items()}
    while True:
        readable, _, _ = select.select(list(local_of), [], [])
        for sock in readable:
            data, address = sock.recvfrom(2048)
            try:
                reply = serve(data, endpoint_of(address), local_of[sock])
            except DecodeError:
                continue
            if reply is not None:
                message, source, destination = reply
                sockets[source].sendto(message, (str(destination.ip), destination.port))


if __name__ == "__main__":
    main(sys.argv[1])
