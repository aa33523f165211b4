"""What a gateway tells everybody on its LAN, unasked (RFC 6887 §14.1.3, RFC 6886 §3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from nattools.endpoint import Endpoint, IPAddress
from nattools.pcp import natpmp, pcp
from nattools.pcp.epoch import EpochTracker, natpmp_state_lost, pcp_state_lost
from nattools.pcp.request import without_scope


@dataclass(frozen=True, slots=True)
class Announcement:
    """News of a gateway: it lost its mappings (`state_lost`), has another address, or is heard first.

    `external_address` is None where the gateway has none, and in PCP (`version` 2), which does not tell it.
    """

    version: int
    epoch_s: int
    external_address: IPv4Address | None
    state_lost: bool


class Announcements:
    """Picks the news of one gateway out of what comes to port 5350.

    A gateway says the same thing up to ten times: only the first of these is news. One that was not heard
    before has news whatever it says, since it speaks up only after a restart or for a new address. Over IPv6
    a router known by its global address announces from a link-local one (miniupnpd), which nothing tells from
    others on the link: from there any is heard. All it brings about is a question to the gateway itself.
    """

    def __init__(self, gateway: IPAddress) -> None:
        self._gateway = without_scope(Endpoint(gateway, pcp.SERVER_PORT))
        self._pcp_epoch = EpochTracker(pcp_state_lost)
        self._natpmp_epoch = EpochTracker(natpmp_state_lost)
        self._addresses: dict[int, IPv4Address | None] = {}

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> Announcement | None:
        """The news in a datagram; None where it is no news, or not the gateway's. Raises `DecodeError`."""
        source = without_scope(source)
        is_neighbour = source.ip.version == 6 and source.ip.is_link_local
        if source != self._gateway and not (is_neighbour and source.port == self._gateway.port):
            return None
        announcement = self._read(data, now)
        if announcement is None:
            return None
        version, address = announcement.version, announcement.external_address
        first = version not in self._addresses
        changed = self._addresses.get(version) != address
        self._addresses[version] = address
        return announcement if first or changed or announcement.state_lost else None

    def _read(self, data: bytes, now: float) -> Announcement | None:
        if data[:1] == bytes((pcp.VERSION,)):
            response = pcp.Response.parse(data)
            if not isinstance(response.body, pcp.Announce) or response.result is not pcp.ResultCode.SUCCESS:
                return None
            lost = self._pcp_epoch.update(response.epoch_s, now=now)
            return Announcement(pcp.VERSION, response.epoch_s, None, lost)
        told = natpmp.parse_response(data)
        if not isinstance(told, natpmp.ExternalAddressResponse):
            return None
        lost = self._natpmp_epoch.update(told.epoch_s, now=now)
        address = None if told.address.is_unspecified else told.address
        return Announcement(natpmp.VERSION, told.epoch_s, address, lost)
