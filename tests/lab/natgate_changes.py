"""How long nobody hears anything when a NAT's address changes in the middle of a call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import ip_address

from nattools.endpoint import IPAddress
from nattools.lab.namespaces import Lab
from nattools.lab.nat import WAN_INTERFACE
from nattools.lab.topology import SERVER
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.ears import Ears, ears
from tests.lab.network_changes import address_of, change_wan_address, configure

_PACKETS = 10  # that tell a stream from a straggler
_POLL_S = 0.02
_CODECS = (0, 8)


@dataclass(frozen=True, slots=True)
class Silence:
    """How long after the router passes packets again, or at most so long, RTP comes to either side again."""

    inside_s: float
    outside_s: float


def silence_at_change(lab: Lab, address: str) -> Silence:
    """Give the client's NAT another address, while it is in a call with the public side's first address.

    Raises `AssertionError` where one of them hears nothing any more.
    """
    inside = ip_address(lab.topology.client_address)
    with ears(lab.client) as within, ears(lab.public) as without:
        for heard, ip in ((within, inside), (without, SERVER.ip)):
            _wait_for(heard, ip, since_s=0)
        changed_s = _change(lab, address)
        inside_s, outside_s = (
            _wait_for(heard, ip, since_s=changed_s)[0] - changed_s
            for heard, ip in ((within, inside), (without, SERVER.ip))
        )
        return Silence(inside_s, outside_s)


def _change(lab: Lab, address: str) -> float:
    """The outermost NAT's; the kernel ends the flows of an address that goes. When it passed nothing yet."""
    if lab.inner_router is None:
        return change_wan_address(lab, address)
    held = address_of(lab.inner_router, WAN_INTERFACE)
    began_s = time.monotonic()
    configure(
        lab.inner_router,
        f"addr add {address}/{held.network.prefixlen} dev {WAN_INTERFACE}",
        f"addr del {held} dev {WAN_INTERFACE}",
    )
    return began_s


def _wait_for(heard: Ears, ip: IPAddress, *, since_s: float) -> list[float]:
    """When RTP came to that address after some time, once enough of it has."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        times = [
            packet.at_s
            for packet in heard.packets()
            if packet.to.ip == ip and packet.payload_type in _CODECS and packet.at_s > since_s
        ]
        if len(times) >= _PACKETS:
            return times
        assert time.monotonic() < deadline, f"{ip} hears nothing"
        time.sleep(_POLL_S)
