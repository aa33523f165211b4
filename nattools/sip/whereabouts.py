"""Where one SIP socket is: on this machine, by its binding, and by what each server has seen of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import BindingError
from nattools.sip.headers import Via
from nattools.sip.learning import AlgSuspected, Learned, Sightings
from nattools.sip.uri import SipUri

_MOST_PUBLISHED = 16
_MOST_FORMER = 4
_MOST_REMEMBERED = 256
_LONGEST_REMEMBERED = 64


class Bound(Protocol):
    """A socket's two endpoints: a `PublicBinding`, a `LiveBinding`, or anything else that has them."""

    @property
    def local(self) -> Endpoint:
        """Where it is on this machine."""

    @property
    def public(self) -> Endpoint:
        """Where others reach it. May raise `BindingError` while there is no such endpoint."""


def public_of(bound: Bound) -> Endpoint | None:
    """The public endpoint, None while there is none."""
    try:
        return bound.public
    except BindingError:
        return None


class Known(NamedTuple):
    """An endpoint of the socket: `is_local` by which the phone knows it, otherwise one by which others do."""

    endpoint: Endpoint
    is_local: bool


class Whereabouts:
    """The endpoints of the socket of `signalling`, which is read anew at each `refresh`.

    Public endpoints of before stay known, since others still know the socket by them; addresses of this
    machine too, since a phone may be slow to notice that it has another.
    """

    def __init__(self, signalling: Bound, also_local: Iterable[IPAddress]) -> None:
        self._signalling = signalling
        self._also_local = frozenset(also_local)
        self._former: dict[IPAddress, None] = {}  # here and below the newest is at the end
        self._published: dict[Endpoint, None] = {}
        self._latest: Endpoint | None = None
        self._sightings = Sightings()
        self._remembered: dict[tuple[bytes, int], Known | None] = {}
        self.local = signalling.local
        self.public: Endpoint | None = None
        self.route_params: dict[str, bytes] = {}
        """What a server would write into the Via of the socket if there were no NAT (RFC 3581 §4)."""
        self._stay_at(self.local)
        self.refresh()

    def refresh(self, signalling: Bound | None = None) -> None:
        """Follow what the binding says now, or take another one."""
        bound = self._signalling = signalling or self._signalling
        local, public = bound.local, public_of(bound)
        if local is not self.local and local != self.local:
            self._stay_at(local)
        if public is not self.public:
            if public is not None and public != self._latest:
                self._latest = public
                self._sightings.forget()
                self._publish(public)
            self.public = public
            self._remembered.clear()

    def _stay_at(self, local: Endpoint) -> None:
        self.local = local
        self._former.pop(local.ip, None)
        self._former[local.ip] = None
        if len(self._former) > _MOST_FORMER:
            del self._former[next(iter(self._former))]
        self._own_ips = self._also_local | self._former.keys()
        self.route_params = {"received": str(local.ip).encode(), "rport": b"%d" % local.port}
        self._remembered.clear()

    def _publish(self, endpoint: Endpoint) -> None:
        self._published.pop(endpoint, None)
        self._published[endpoint] = None
        if len(self._published) > _MOST_PUBLISHED:
            del self._published[next(iter(self._published))]
        self._remembered.clear()

    def is_own(self, ip: IPAddress | None) -> bool:
        """Whether an address is one of this machine that the phone may write."""
        return ip is not None and ip in self._own_ips

    def known(self, text: bytes, default_port: int, place: Via | SipUri) -> Known | None:
        """Whether the host and port of `place`, which are `text`, are an endpoint of the socket."""
        key = (text, default_port)
        if key in self._remembered:
            return self._remembered[key]
        known, ip = None, place.ip
        if ip is not None:
            endpoint = Endpoint(ip, default_port if place.port is None else place.port)
            is_local = endpoint.port == self.local.port and ip in self._own_ips
            if endpoint == self.public and not is_local:
                known = Known(self.public, is_local)  # the very object, so that it is told by `is`
            elif is_local or endpoint in self._published:
                known = Known(endpoint, is_local)
        if len(text) > _LONGEST_REMEMBERED:
            return known
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = known
        return known

    def latest_first(self, endpoints: Iterable[Endpoint], first: Endpoint) -> Endpoint | None:
        """Of some public `endpoints` of the socket `first`, if it is there, or else the latest."""
        there = frozenset(endpoints)
        return next((it for it in (first, *reversed(self._published)) if it in there), None)

    def told(self, server: Endpoint | None) -> Endpoint | None:
        """What `server` is told: where it sees the socket if that is not where the binding has it."""
        return self._sightings.seen_by(server) or self.public

    def sent(self, call_id: bytes, server: Endpoint | None, written: Endpoint) -> None:
        """Note a request and its sent-by; its answers may teach something."""
        self._sightings.sent(call_id, server, written)

    def answered(
        self,
        call_id: bytes,
        source: Endpoint | None,
        known: Known,
        *,
        received: IPAddress | None,
        rport: int | None,
    ) -> Learned | AlgSuspected | None:
        """Take what a response says of a request that has `known` as its sent-by (RFC 3581 §4)."""
        event = self._sightings.answered(
            call_id,
            source,
            written=known.endpoint,
            is_local=known.is_local,
            received=received,
            rport=rport,
            binding=self.public,
        )
        if isinstance(event, Learned):
            self._publish(event.endpoint)
        return event
