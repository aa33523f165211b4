"""What a router says unasked: the receiver of its announcements and of its events."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, NatToolsError, TransportError, UpnpError
from nattools.net.http import HttpListener, HttpRequest, HttpResponse, exchange
from nattools.net.interfaces import interfaces
from nattools.net.udp import MulticastInterface, OnDatagram, UdpSocket
from nattools.upnp import ssdp
from nattools.upnp.gena import (
    Event,
    Subscription,
    parse_event,
    parse_subscription,
    renew_headers,
    subscribe_headers,
    unsubscribe_headers,
)
from nattools.upnp.igd import GetExternalIPAddress, GetStatusInfo, StatusInfo

if TYPE_CHECKING:
    from nattools.upnp.client import Igd

_REQUEST_TIMEOUT_S = 3.0
_UNSUBSCRIBE_TIMEOUT_S = 1.0
_SETTLED_AFTER_S = 0.5
_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 60.0
_MOST_EARLY_EVENTS = 4
_ADDRESS = "externalipaddress"
_STATUS = "connectionstatus"
_GROUP_CAN_BE_BOUND = sys.platform != "win32"

_log = logging.getLogger(__name__)


class ChangeKind(Enum):
    """What happened to a router that is watched."""

    RESTARTED = "restarted"  # and has forgotten its mappings
    ADDRESS_CHANGED = "address changed"  # or the connection has gone, or has come back
    GONE = "gone"  # it said goodbye


@dataclass(frozen=True, slots=True)
class RouterChange:
    """News of a router, and its external address as far as that is known."""

    kind: ChangeKind
    external_address: IPAddress | None


_MEANING = {
    ssdp.RouterSign.RESTARTED: ChangeKind.RESTARTED,
    ssdp.RouterSign.GONE: ChangeKind.GONE,
}


@asynccontextmanager
async def watch(igd: Igd, on_change: Callable[[RouterChange], None]) -> AsyncIterator[None]:
    """Listen to the router of `igd`: its multicast announcements, and its events if it sends any.

    A port that others hold, a router without events or one that is not there at the moment is no error: what
    can be heard is heard, and the rest is tried again.
    """
    watcher = _Watcher(igd, on_change)
    events = asyncio.create_task(watcher.receiver.run())
    listener: UdpSocket | None = None
    try:
        listener = await _announcements_to(igd, watcher.announced)
        yield
    finally:
        if listener is not None:
            listener.close()
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
        await watcher.close()


async def open_announcements(interface: MulticastInterface, on_datagram: OnDatagram) -> UdpSocket:
    """Listen to what devices announce on one interface (UDA 1.1 §1.2). Raises `TransportError`."""
    group = ssdp.MULTICAST_IPV6.ip if interface.address.version == 6 else ssdp.MULTICAST_IPV4.ip
    return await UdpSocket.open(
        ipv6=group.version == 6,
        # bound to the group it does not take other programs' unicast off them, who share the port
        local_address=group if _GROUP_CAN_BE_BOUND and group.version == 4 else None,
        local_port=ssdp.PORT,
        multicast=interface,
        groups=[group],
        share_port=True,
        on_datagram=on_datagram,
    )


async def _announcements_to(igd: Igd, on_datagram: OnDatagram) -> UdpSocket | None:
    """Listen on the interface that reaches the router; None where that cannot be."""
    try:
        for interface in interfaces():
            if igd.local in interface.ips and interface.is_multicast and not interface.is_loopback:
                return await open_announcements(MulticastInterface(interface.index, igd.local), on_datagram)
    except TransportError as error:
        _log.debug("the announcements of %s cannot be heard: %s", igd, error)
    return None


class _Watcher:
    """Puts together what announcements and events say."""

    def __init__(self, igd: Igd, on_change: Callable[[RouterChange], None]) -> None:
        self.receiver = EventReceiver(igd, self._evented)
        self._igd = igd
        self._on_change = on_change
        self._watch = ssdp.Watch(udn=igd.description.udn, address=igd.host, boot_id=igd.boot_id)
        self._told: dict[str, str] = {}
        self._questions: set[asyncio.Task[None]] = set()

    def announced(self, data: bytes, source: Endpoint) -> None:
        """Take a datagram of the multicast group, whoever sent it."""
        sign = self._watch.receive(data, source)
        if sign is ssdp.RouterSign.RESTARTED:
            self.receiver.subscribe_again()
        if sign is not None:
            self._on_change(RouterChange(_MEANING[sign], self._external_address()))

    def _evented(self, properties: Mapping[str, str]) -> None:
        """Take an event, and see about it once more when things have settled.

        miniupnpd drops an event while another one is on its way. Of an address that goes as its successor
        comes it tells the first half, and what is left in the end nobody hears.
        """
        self._take({name: properties[name] for name in (_ADDRESS, _STATUS) if name in properties})
        for question in self._questions:
            question.cancel()
        question = asyncio.get_running_loop().create_task(self._ask())
        self._questions.add(question)
        question.add_done_callback(self._questions.discard)

    async def _ask(self) -> None:
        await asyncio.sleep(_SETTLED_AFTER_S)
        with suppress(NatToolsError):
            address = await self._igd.external_ip_address()
            self._take({_ADDRESS: "" if address is None else str(address)})
            status = await self._igd.call(GetStatusInfo())
            self._take({_STATUS: status.connection_status})

    def _take(self, told: Mapping[str, str]) -> None:
        before = self._external_address()
        self._told |= told
        after = self._external_address()
        if before != after:
            self._on_change(RouterChange(ChangeKind.ADDRESS_CHANGED, after))

    async def close(self) -> None:
        """Ask no more."""
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)

    def _external_address(self) -> IPAddress | None:
        """The address that the router told last; None while it is not connected."""
        status = self._told.get(_STATUS)
        if status is not None and not StatusInfo(status, "", None).is_connected:
            return None
        if _ADDRESS not in self._told:
            return self._igd.external_address
        with suppress(DecodeError):
            return GetExternalIPAddress().parse({f"new{_ADDRESS}": self._told[_ADDRESS]})
        return None


class EventReceiver:
    """Keeps a subscription to the events of one WAN connection while it runs (UDA 1.1 §4.1).

    The router calls back to a port and a path that only it is told, and only its address gets an answer.
    """

    def __init__(self, igd: Igd, on_event: Callable[[Mapping[str, str]], None]) -> None:
        self._igd = igd
        self._on_event = on_event
        self._path = f"/{secrets.token_urlsafe(16)}"
        self._subscription: Subscription | None = None
        self._is_subscribing = False
        self._early: list[Event] = []
        self._again = asyncio.Event()
        self._failures = 0

    def subscribe_again(self) -> None:
        """The router has forgotten the subscription, or events were lost."""
        self._failures = 0
        self._subscription = None
        self._again.set()

    async def run(self) -> None:
        """Subscribe and stay subscribed, until cancelled; then unsubscribe. Needs an event URL."""
        if self._igd.service.events is None:
            return
        try:
            listener = await HttpListener.open(
                self._igd.local,
                on_request=self._received,
                accept_from=lambda peer: peer.ip == self._igd.host,
            )
        except TransportError as error:
            _log.debug("no events of %s: %s", self._igd, error)
            return
        try:
            while True:
                wait_s = await self._subscribe(listener.local)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._again.wait()
                        await asyncio.sleep(_FIRST_RETRY_S)  # no router is to make this run on and on
                self._again.clear()
        finally:
            await listener.close()
            await self._unsubscribe()

    async def _subscribe(self, callback: Endpoint) -> float | None:
        """Subscribe or renew; gives how long that is good for, None for until the router restarts."""
        renewed = self._subscription
        self._early.clear()
        now = asyncio.get_running_loop().time()
        try:
            headers = renew_headers(renewed.sid) if renewed else subscribe_headers(callback, self._path)
            self._is_subscribing = True
            response = await self._ask("SUBSCRIBE", headers, _REQUEST_TIMEOUT_S)
            subscription = parse_subscription(response.status, response.headers, now=now, renewed=renewed)
        except UpnpError as error:
            self._subscription = None
            _log.debug("%s: %s", self._igd, error)
            return 0 if renewed is not None else None
        except NatToolsError as error:
            self._subscription = None
            _log.debug("%s: %s", self._igd, error)
            with suppress(NatToolsError):
                await self._igd.rediscover()  # it may have restarted on another port
            self._failures += 1
            return min(_FIRST_RETRY_S * 2.0 ** min(self._failures, 16), _LONGEST_RETRY_S)
        finally:
            self._is_subscribing = False
        self._subscription = subscription
        self._failures = 0
        for event in self._early:
            self._take(event)
        return subscription.renew_at - now

    async def _unsubscribe(self) -> None:
        if self._subscription is not None:
            headers = unsubscribe_headers(self._subscription.sid)
            with suppress(NatToolsError):
                await self._ask("UNSUBSCRIBE", headers, _UNSUBSCRIBE_TIMEOUT_S)

    async def _ask(self, method: str, headers: tuple[tuple[str, str], ...], timeout_s: float) -> HttpResponse:
        events = self._igd.service.events
        if events is None:
            raise UpnpError(f"{self._igd} names no URL to subscribe to events at", code=HTTPStatus.NOT_FOUND)
        request = HttpRequest(method, events.target, headers)
        response, _ = await exchange(
            events.endpoint, request, timeout_s=timeout_s, local_address=self._igd.local
        )
        return response

    def _received(self, request: HttpRequest, source: Endpoint) -> HTTPStatus:
        """Take a NOTIFY; gives the status to answer with (UDA 1.1 §4.3.3)."""
        if request.target != self._path or request.method != "NOTIFY":
            return HTTPStatus.NOT_FOUND
        try:
            event = parse_event(request.headers, request.body)
        except DecodeError as error:
            _log.debug("%s: %s", source, error)
            return HTTPStatus.BAD_REQUEST
        if self._subscription is not None and event.sid == self._subscription.sid:
            self._take(event)
        elif self._is_subscribing and len(self._early) < _MOST_EARLY_EVENTS:
            self._early.append(event)  # it is faster than the answer to SUBSCRIBE
        else:
            return HTTPStatus.PRECONDITION_FAILED
        return HTTPStatus.OK

    def _take(self, event: Event) -> None:
        subscription = self._subscription
        if subscription is None or event.sid != subscription.sid or event.sequence == subscription.sequence:
            return
        if subscription.has_lost_events_before(event):
            self.subscribe_again()  # the initial event then tells how things are
        else:
            self._subscription = subscription.after(event)
        self._on_event(event.properties)
