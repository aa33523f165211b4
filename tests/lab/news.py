"""News of a router: from when on they are heard, and how soon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nattools.mapping.model import MappingProtocol
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.network_changes import run

if TYPE_CHECKING:
    from nattools.lab.namespaces import Lab

NOTICED_S = 2.0
"""What the user is promised, from the router's announcement on."""

_ANNOUNCEMENTS_PORT = 5350  # RFC 6886 §3.2.1, RFC 6887 §14.1
_POLL_S = 0.01


def until_news_are_heard(lab: Lab, protocol: str) -> None:
    """Wait until who has a mapping on the client hears of a router's new address or restart.

    By UPnP a restart is told by SSDP, which is listened to before anything is subscribed to.
    """
    if MappingProtocol(protocol) is MappingProtocol.UPNP:
        until_subscribed(lab)
    else:
        until_bound(lab, _ANNOUNCEMENTS_PORT)


def until_subscribed(lab: Lab, *, starts: int = 1) -> None:
    """Wait until the router, started so often, has told how things are: from then on, events are changes.

    The daemon forgets a change that comes while another event is on its way, so that its answer counts.
    """
    assert lab.igd is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        log = lab.igd.log()
        *earlier, now = log.split(" starting ")
        if len(earlier) == starts and 0 < now.count("SEQ: ") <= now.count("upnp_event_recv: ("):
            return
        assert time.monotonic() < deadline, log[-2000:]
        time.sleep(_POLL_S)


def until_bound(lab: Lab, port: int) -> None:
    """Wait until a program on the client has a UDP socket on that port."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while f":{port:04X} 00000000:0000 " not in run(lab.client, ["cat", "/proc/net/udp"]):
        assert time.monotonic() < deadline, f"nobody listens on UDP port {port}"
        time.sleep(_POLL_S)
