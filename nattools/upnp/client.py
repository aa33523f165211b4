"""The UPnP client: find the routers on the LAN, ask them for port mappings and pinholes, watch them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    EncodeError,
    LocalAddressError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
    UpnpError,
)
from nattools.machine import Transmit
from nattools.net.http import HttpRequest, exchange
from nattools.net.interfaces import default_routes, interfaces
from nattools.net.runner import MachineRunner
from nattools.net.udp import MulticastInterface, UdpSocket, local_address_towards
from nattools.upnp.description import RootDescription, ServiceDescription, parse_description
from nattools.upnp.igd import Action, Candidate, rank
from nattools.upnp.location import Location, check_location
from nattools.upnp.server import ChangeKind, RouterChange, open_announcements, watch
from nattools.upnp.soap import encode_call, parse_reply
from nattools.upnp.ssdp import PORT, Heard, Search, SearchEnded, SearchSocket
from nattools.upnp.wan_connection import WanConnection

__all__ = ["ChangeKind", "Igd", "RouterChange", "discover", "open_igd", "watch"]

REQUEST_TIMEOUT_S = 3.0
MOST_DESCRIPTIONS = 16
"""So many root descriptions are read in one search, besides those of the default gateways."""
MOST_DESCRIPTION_BYTES = 1 << 18

_MOST_SERVICES = 8
_UNLIKELY_AFTER_S = 0.25
_REDISCOVERY_S = 1.5
_LEAST_TIMEOUT_S = 0.01
_WORSE_GRACES = 3
_PROBE_SHARE = 0.8  # of the time that is left: a router that leaves one question unanswered is found still
_OK = 200
_NOT_FOUND = 404

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
_Network = IPv4Network | IPv6Network


class Igd(WanConnection):
    """One WAN connection of one router, and the router's IPv6 firewall if it has one.

    Made by `discover` and `open_igd`.
    """

    def __init__(
        self,
        location: Location,
        description: RootDescription,
        service: ServiceDescription,
        local: IPAddress,
        *,
        local_address: IPAddress | None = None,
    ) -> None:
        super().__init__(local)
        self.location = location
        self.description = description
        self.service = service
        self.firewall = _firewall_of(description, service)
        self.boot_id: int | None = None
        self._local_address = local_address
        self._searching = asyncio.Lock()

    @property
    def host(self) -> IPAddress:
        """The router's address on this side."""
        return self.location.endpoint.ip

    @property
    def udn(self) -> str:
        """The unique device name of its root device."""
        return self.description.udn

    @property
    def version(self) -> int:
        """The version of the service."""
        return self.service.version

    @property
    def model(self) -> str:
        """Manufacturer, model and its number, as far as the router tells them, each once."""
        said, about = "", self.description
        for part in (about.manufacturer, about.model_name, about.model_number):
            if said.casefold() in part.casefold():
                said = part
            elif part.casefold() not in said.casefold():
                said += f" {part}"
        return said or about.friendly_name

    def watch(self, on_change: Callable[[RouterChange], None]) -> AbstractAsyncContextManager[None]:
        """Listen to the router; see `watch`."""
        return watch(self, on_change)

    async def call(self, action: Action[ResultT], *, timeout_s: float | None = None) -> ResultT:
        """Ask the router for `action`, in one exchange, in `timeout_s` or else in 3 s.

        A router that has moved its web server since it was found is looked for once.
        Raises `UpnpError` where it refuses, `TransportError` where it cannot be asked or does not answer,
        `DecodeError` where its answer makes no sense, and `EncodeError` for what cannot be said.
        """
        loop = asyncio.get_running_loop()
        timeout_s = REQUEST_TIMEOUT_S if timeout_s is None else timeout_s
        ends_at = loop.time() + timeout_s
        try:
            return await self._call(action, timeout_s)
        except (NoResponseError, DisconnectedError, LocalAddressError):
            raise
        except (TransportError, _NotThereError):
            await self.rediscover(timeout_s=min(_PROBE_SHARE * timeout_s, _REDISCOVERY_S))
            return await self._call(action, max(ends_at - loop.time(), _LEAST_TIMEOUT_S))

    async def _call(self, action: Action[ResultT], timeout_s: float) -> ResultT:
        service = self.firewall if action.is_of_firewall else self.service
        if service is None:
            raise MappingError(f"{self} has no IPv6 firewall that {action.name} could be asked of")
        try:
            headers, body = encode_call(service.service_type, action.name, action.arguments())
            response, _ = await exchange(
                service.control.endpoint,
                HttpRequest("POST", service.control.target, headers, body),
                timeout_s=timeout_s,
                local_address=self._local_address,
            )
            if response.status == _NOT_FOUND:
                raise _NotThereError("its web server does not know it any more: search for the router again")
            firewall = action.is_of_firewall
            return action.parse(parse_reply(response.status, response.body, action.name, firewall=firewall))
        except UpnpError as error:
            raise type(error)(f"{self}: {error}", code=error.code) from error
        except (DecodeError, EncodeError, TransportError) as error:
            raise type(error)(f"{action.name} of {self}: {error}") from error

    async def rediscover(self, *, timeout_s: float = _REDISCOVERY_S) -> None:
        """Find this router again, which may have another port or other paths now. Raises `NoRouterError`."""
        lost = self.location
        async with self._searching:
            if self.location != lost:
                return  # somebody else has found it meanwhile
            found = await discover(gateway=self.host, timeout_s=timeout_s)
            if not found:
                raise NoRouterError(f"{self} does not answer any more: is it on, and its UPnP as well?")
            igd = min(found, key=self._difference)
            self.location, self.description, self.local = igd.location, igd.description, igd.local
            self.service, self.firewall, self.boot_id = igd.service, igd.firewall, igd.boot_id

    def _difference(self, other: Igd) -> tuple[bool, bool]:
        is_other_router = other.description.udn != self.description.udn
        return is_other_router, other.service.service_id != self.service.service_id


class _NotThereError(DecodeError):
    """HTTP 404: the router's web server has another path for it now."""


def _firewall_of(description: RootDescription, service: ServiceDescription) -> ServiceDescription | None:
    """The firewall beside the WAN connection, or else the router's first."""
    beside = [f for f in description.firewalls if f.device_name == service.device_name]
    return next(iter(beside or description.firewalls), None)


async def open_igd(url: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> list[Igd]:
    """The WAN connections of the router whose root description is at `url`, best first.

    Raises `DecodeError` for a URL that names no host of this network or leads to no root description,
    `TransportError` where the router does not answer, and `NoRouterError` where it has no WAN connection.
    """
    location = Location.parse(url)
    on_link = [address.network for interface in interfaces() for address in interface.addresses]
    check_location(location, source=location.endpoint.ip, on_link=on_link)
    found = await _read(location, None, timeout_s)
    errors = await asyncio.gather(*(igd.probe(timeout_s) for igd in found), return_exceptions=True)
    answered = [igd for igd, error in zip(found, errors, strict=True) if error is None]
    if not answered:
        raise next(error for error in errors if error is not None)
    return _ranked(answered)


async def _read(location: Location, local_address: IPAddress | None, timeout_s: float) -> list[Igd]:
    """Read a root description; gives an `Igd` for each WAN connection in it, not asked for anything yet."""
    response, local = await exchange(
        location.endpoint,
        HttpRequest("GET", location.target),
        timeout_s=timeout_s,
        most_body_bytes=MOST_DESCRIPTION_BYTES,
        local_address=local_address,
    )
    if response.status != _OK:
        raise DecodeError(f"{location} was answered with HTTP status {response.status}, not a description")
    description = parse_description(response.body, location)
    services = description.wan_connections
    if location.endpoint.is_ipv6 and not services:  # a router without IPv4 has pinholes only
        services = description.firewalls
    if not services:
        raise NoRouterError(
            f"{location} describes {description.friendly_name!r}, which has no WAN connection: "
            "ask the router that is connected to the internet"
        )
    return [
        Igd(location, description, service, local.ip, local_address=local_address)
        for service in services[:_MOST_SERVICES]
    ]


def _ranked(found: list[Igd]) -> list[Igd]:
    """Best first, and each router once."""
    candidates = (
        Candidate(
            host=igd.host,
            control=str(igd.service.control),
            udn=igd.description.udn,
            service_type=igd.service.service_type,
            version=igd.service.version,
            status=igd.status,
            external_address=igd.external_address,
            order=order,
        )
        for order, igd in enumerate(found)
    )
    return [found[candidate.order] for candidate in rank(candidates)]


async def discover(
    *,
    gateway: IPAddress | None = None,
    interface: str | None = None,
    ipv6: bool = False,
    timeout_s: float = 1.5,
    grace_s: float = 0.1,
) -> list[Igd]:
    """Search for routers, and give their WAN connections, best first (UPnP Device Architecture 1.1 §1.3).

    Searches on every interface, or on `interface`, by multicast and by unicast to the default gateway. With a
    `gateway` only that host counts. It ends `grace_s` after a connected router with a public address has been
    found, three times that after any other, and after `timeout_s` with what there is, be it nothing. Who
    gives routers more time here than is usual gives it for what is asked of them later, too.
    With `ipv6` it searches over IPv6, as pinholes must be asked for (WANIPv6FirewallControl:1 §2.1).
    Raises `TransportError` where the gateway or the interface cannot be used.
    """
    places = _places(gateway, interface, ipv6=ipv6 or (gateway is not None and gateway.version == 6))
    search = _Discovery(places, gateway, timeout_s=timeout_s, grace_s=grace_s)
    try:
        await search.run()
    finally:
        await search.close()
    for igd in search.found:
        igd.task_timeout_s = max(igd.task_timeout_s, timeout_s)
    return _ranked(search.found)


@dataclass(frozen=True, slots=True)
class _Place:
    """From where is searched: an address of an interface; `binds`: connections leave from it, too."""

    address: IPAddress
    gateway: IPAddress | None
    multicast: MulticastInterface | None
    on_link: tuple[_Network, ...] = ()
    binds: bool = False


def _places(gateway: IPAddress | None, interface: str | None, *, ipv6: bool) -> list[_Place]:
    if gateway is not None and gateway.is_loopback:
        return [_Place(gateway, gateway, None)]
    towards = None if gateway is None else local_address_towards(Endpoint(gateway, PORT))
    present = interfaces()
    if interface is not None and interface not in (one.name for one in present):
        raise LocalAddressError(
            f"this machine has no interface {interface}, only {', '.join(one.name for one in present)}"
        )
    routes = default_routes(ipv6=ipv6)
    places: list[_Place] = []
    for one in present:
        ips = [ip for ip in one.ips if ip.version == (6 if ipv6 else 4)]
        if interface is not None:
            is_chosen = one.name == interface
        elif towards is not None:
            is_chosen = towards in ips
        else:
            is_chosen = one.is_multicast and not one.is_loopback
        if not one.is_up or not is_chosen or not ips:
            continue
        routed = next((route.gateway for route in routes if route.interface == one.name), None)
        on_link = tuple(address.network for address in one.addresses)
        for ip in ips[:1] if ipv6 else ips:
            multicast = MulticastInterface(one.index, ip) if one.is_multicast else None
            places.append(_Place(ip, gateway or routed, multicast, on_link, binds=interface is not None))
    return places


class _UnicastSearch(Search):
    """A search that leaves the multicast groups out, where the interface has none."""

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        return [transmit for transmit in super().transmits() if not transmit.destination.ip.is_multicast]


class _Discovery:
    """One search: its sockets, what was heard on them, and the routers that turned out to be behind it."""

    def __init__(
        self, places: list[_Place], only: IPAddress | None, *, timeout_s: float, grace_s: float
    ) -> None:
        self.found: list[Igd] = []
        self._places = {str(number): place for number, place in enumerate(places)}
        self._only = only
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._sockets: dict[str, UdpSocket] = {}
        self._listeners: dict[int, UdpSocket] = {}
        self._runner: MachineRunner[Heard | SearchEnded] | None = None
        self._unlikely: list[asyncio.TimerHandle] = []
        self._looks: dict[Location, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._deadline = self._ends_at = self._loop.time() + timeout_s
        self._timer = self._loop.call_at(self._ends_at, self._ended.set)

    async def run(self) -> None:
        """Search until it is over."""
        for name, place in self._places.items():
            await self._open(name, place)
        if not self._sockets:
            return
        places = [(name, self._places[name]) for name in self._sockets]
        kind = Search if any(place.multicast is not None for _, place in places) else _UnicastSearch
        sockets = [SearchSocket(name, place.gateway, place.address.version == 6) for name, place in places]
        machine = kind(sockets, timeout_s=self._timeout_s, now=self._loop.time())
        self._runner = MachineRunner(
            machine, self._sockets, on_event=self._on_event, on_unsendable=self._on_unsendable
        )
        self._runner.pump()
        await self._ended.wait()

    async def _open(self, name: str, place: _Place) -> None:
        """Open the sockets of one place; a place that cannot be had is left out."""
        receive = partial(self._received, name)
        ipv6 = place.address.version == 6
        try:
            # the kernel knows which of an interface's IPv6 addresses suits a group
            self._sockets[name] = await UdpSocket.open(
                ipv6=ipv6,
                local_address=None if ipv6 else place.address,
                multicast=place.multicast,
                on_datagram=receive,
            )
            if place.multicast is not None and place.multicast.index not in self._listeners:
                self._listeners[place.multicast.index] = await open_announcements(place.multicast, receive)
        except TransportError as error:
            _log.debug("no search on %s: %s", place, error)

    def _received(self, name: str, data: bytes, source: Endpoint) -> None:
        if self._runner is not None and self._only in (None, source.ip):
            self._runner.receive(name, data, source)

    def _on_unsendable(self, name: str, destination: Endpoint, error: TransportError) -> None:
        _log.debug("%s: cannot search at %s: %s", self._places[name].address, destination, error)

    def _on_event(self, event: Heard | SearchEnded) -> None:
        """Look at what answered, unless it has been looked at."""
        if isinstance(event, SearchEnded):
            self._ended.set()
            return
        place = self._places[event.socket]
        try:
            location = Location.parse(event.answer.location or "")
            check_location(location, source=event.source.ip, on_link=place.on_link)
        except DecodeError as error:
            _log.debug("the answer of %s is passed over: %s", event.source, error)
            return
        look = partial(self._begin_look, location, place, event)
        if event.likely:
            look()
        else:
            self._unlikely.append(self._loop.call_later(_UNLIKELY_AFTER_S, look))

    def _begin_look(self, location: Location, place: _Place, event: Heard) -> None:
        crowded = len(self._looks) >= MOST_DESCRIPTIONS and event.source.ip != place.gateway
        if location not in self._looks and not crowded:
            self._looks[location] = self._loop.create_task(self._look(location, place, event.answer.boot_id))

    async def _look(self, location: Location, place: _Place, boot_id: int | None) -> None:
        """Read a root description and ask its WAN connections. Whatever is wrong with it, others go on."""
        binds = place.binds and any(location.endpoint.ip in n and place.address in n for n in place.on_link)
        try:
            candidates = await _read(location, place.address if binds else None, self._time_left())
        except NatToolsError as error:
            _log.debug("no router at %s: %s", location, error)
            return
        for igd in candidates:
            igd.boot_id = boot_id
        await asyncio.gather(*(self._ask(igd) for igd in candidates))

    async def _ask(self, igd: Igd) -> None:
        try:
            await igd.probe(self._time_left() * _PROBE_SHARE)
        except NatToolsError as error:
            _log.debug("%s is passed over: %s", igd, error)
            return
        self.found.append(igd)
        graces = 1 if igd.is_online else _WORSE_GRACES
        ends_at = self._loop.time() + graces * self._grace_s
        if ends_at < self._ends_at:
            self._ends_at = ends_at
            self._timer.cancel()
            self._timer = self._loop.call_at(ends_at, self._ended.set)

    def _time_left(self) -> float:
        return max(_LEAST_TIMEOUT_S, min(self._deadline - self._loop.time(), REQUEST_TIMEOUT_S))

    async def close(self) -> None:
        """End every task, and close every socket."""
        for timer in (self._timer, *self._unlikely):
            timer.cancel()
        if self._runner is not None:
            self._runner.close()
        for socket in (*self._sockets.values(), *self._listeners.values()):
            socket.close()
        for look in self._looks.values():
            look.cancel()
        # also gives asyncio the round in which it closes the sockets for good
        _, *ends = await asyncio.gather(asyncio.sleep(0), *self._looks.values(), return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):
                _log.error("a device could not be looked at", exc_info=error)
