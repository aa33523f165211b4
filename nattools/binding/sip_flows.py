"""The flows of a SIP socket that are kept open: to its servers, and to peers that send to it directly."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint

MOST_SERVERS = 4
"""So many servers, those that were sent requests last."""
MOST_PEERS = 64
"""The peers of so many calls, the latest."""


class KeepsOpen(Protocol):
    """A socket whose flows can be kept open: a `LiveBinding`, or what stands in for one."""

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind, /) -> None:
        """Keep the flow to `destination` open by keepalives of that kind."""

    def let_go(self, destination: Endpoint, /) -> None:
        """Keep it open no longer."""


class SipFlows:
    """Which flows of one socket are needed. Keepalives are those of RFC 5626 §3.5.1."""

    def __init__(self, kept: KeepsOpen, *, most_servers: int = MOST_SERVERS) -> None:
        self._kept = kept
        self._most_servers = most_servers
        self._servers: OrderedDict[Endpoint, None] = OrderedDict()
        self._peers: OrderedDict[bytes, Endpoint] = OrderedDict()

    def __contains__(self, destination: Endpoint) -> bool:
        return destination in self._servers or destination in self._peers.values()

    @property
    def latest_server(self) -> Endpoint | None:
        """The server that was sent the last request."""
        return next(reversed(self._servers), None)

    def keep_server(self, server: Endpoint) -> None:
        """A request was sent to `server`."""
        self._keep(server)
        self._servers[server] = None
        self._servers.move_to_end(server)
        if len(self._servers) > self._most_servers:
            self._let_go(self._servers.popitem(last=False)[0])

    def keep_peer(self, call_id: bytes, peer: Endpoint) -> None:
        """The other side of a call sends its requests from `peer`."""
        self._keep(peer)
        former = self._peers.pop(call_id, None)
        self._peers[call_id] = peer
        self._let_go(former)
        if len(self._peers) > MOST_PEERS:
            self._let_go(self._peers.popitem(last=False)[1])

    def end_call(self, call_id: bytes) -> None:
        """The call is over."""
        self._let_go(self._peers.pop(call_id, None))

    def _keep(self, destination: Endpoint) -> None:
        if destination not in self:
            self._kept.keep_open(destination, KeepaliveKind.CRLF)

    def _let_go(self, destination: Endpoint | None) -> None:
        if destination is not None and destination not in self:
            self._kept.let_go(destination)
