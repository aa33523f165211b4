"""The flows of a phone's SIP socket that are kept open, for threads that send and one that receives."""

from __future__ import annotations

import threading

from nattools.binding import sip_flows
from nattools.binding.sip_flows import KeepsOpen
from nattools.endpoint import Endpoint


class SipFlows(sip_flows.SipFlows):
    """Which flows of one socket are needed, for any thread."""

    def __init__(self, kept: KeepsOpen) -> None:
        super().__init__(kept)
        self._lock = threading.RLock()  # the base asks itself whether a flow is needed

    def __contains__(self, destination: Endpoint) -> bool:
        with self._lock:
            return super().__contains__(destination)

    @property
    def latest_server(self) -> Endpoint | None:
        """The server that was sent the last request."""
        with self._lock:
            return super().latest_server

    def keep_server(self, server: Endpoint) -> None:
        """A request was sent to `server`."""
        with self._lock:
            super().keep_server(server)

    def keep_peer(self, call_id: bytes, peer: Endpoint) -> None:
        """The other side of a call sends its requests from `peer`."""
        with self._lock:
            super().keep_peer(call_id, peer)

    def end_call(self, call_id: bytes) -> None:
        """The call is over."""
        with self._lock:
            super().end_call(call_id)
