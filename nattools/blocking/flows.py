"""The flows of a SIP socket that are kept open: to its servers, and to peers that send to it directly."""

from __future__ import annotations

import threading
from collections import OrderedDict

from nattools.binding.background import KeptSocket
from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint

MOST_SERVERS = 4
"""So many servers, those that were sent requests last."""
MOST_PEERS = 64
"""The peers of so many calls, the latest."""


class SipFlows:
    """Which flows of one socket are needed, for any thread. Keepalives are those of RFC 5626 §3.5.1."""

    def __init__(self, kept: KeptSocket) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._servers: OrderedDict[Endpoint, None] = OrderedDict()
        self._peers: OrderedDict[bytes, Endpoint] = OrderedDict()

    def __contains__(self, destination: Endpoint) -> bool:
        with self._lock:
            return self._is_needed(destination)

    @property
    def latest_server(self) -> Endpoint | None:
        """The server that was sent the last request."""
        with self._lock:
            return next(reversed(self._servers), None)

    def keep_server(self, server: Endpoint) -> None:
        """A request was sent to `server`."""
        with self._lock:
            self._keep(server)
            self._servers[server] = None
            self._servers.move_to_end(server)
            if len(self._servers) > MOST_SERVERS:
                self._let_go(self._servers.popitem(last=False)[0])

    def keep_peer(self, call_id: bytes, peer: Endpoint) -> None:
        """The other side of a call sends its requests from `peer`."""
        with self._lock:
            self._keep(peer)
            former = self._peers.pop(call_id, None)
            self._peers[call_id] = peer
            self._let_go(former)
            if len(self._peers) > MOST_PEERS:
                self._let_go(self._peers.popitem(last=False)[1])

    def end_call(self, call_id: bytes) -> None:
        """The call is over."""
        with self._lock:
            self._let_go(self._peers.pop(call_id, None))

    def _is_needed(self, destination: Endpoint) -> bool:
        return destination in self._servers or destination in self._peers.values()

    def _keep(self, destination: Endpoint) -> None:
        if not self._is_needed(destination):
            self._kept.keep_open(destination, KeepaliveKind.CRLF)

    def _let_go(self, destination: Endpoint | None) -> None:
        if destination is not None and not self._is_needed(destination):
            self._kept.let_go(destination)
