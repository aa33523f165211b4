"""Where a request goes next (RFC 3261 §16.4 to §16.6): its Route, its Request-URI, its dialog."""

from __future__ import annotations

from dataclasses import dataclass

from nattools.errors import DecodeError
from nattools.session.dialogs import Dialogs, Party
from nattools.session.flows import Flow, Flows, endpoint_of, transport_of
from nattools.session.nat_tests import read_alias, without_alias
from nattools.sip.comparison import canonical_host
from nattools.sip.headers import NameAddress, split_list
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri, Span


@dataclass(frozen=True, slots=True)
class NextHop:
    """Who a request goes to: a host, its port (None: the transport's), a transport, and the flow.

    `flow` is None where `host` is a name: then somebody must resolve it (RFC 3263).
    """

    host: bytes
    port: int | None
    transport: str
    flow: Flow | None


@dataclass(frozen=True, slots=True)
class Itinerary:
    """How a request is changed to go on: what it becomes, and where that leads.

    Of its Route values the first `stripped` go, and `pushed` come before the rest; or `rebuilt` replaces all.
    `hop` is None where the Request-URI is this proxy's: a registrar knows then where it leads.
    """

    uri: bytes
    hop: NextHop | None
    stripped: int = 0
    pushed: tuple[bytes, ...] = ()
    rebuilt: tuple[bytes, ...] | None = None

    def to(self, uri: bytes, route: tuple[bytes, ...]) -> Itinerary:
        """The same to another Request-URI, with these values of Route before those that are pushed."""
        return Itinerary(uri, self.hop, self.stripped, (*route, *self.pushed), self.rebuilt)


def plan(request: SipMessage, arrived: Flow, flows: Flows, dialogs: Dialogs) -> Itinerary:
    """Say where `request` goes. Raises `DecodeError` where its Request-URI or a Route is malformed."""
    data = request.data
    assert request.request_uri is not None
    uri = data[slice(*request.request_uri)]
    values = [data[slice(*span)] for span in request.values("route")]
    rebuilt = None
    if values and _is_strict_routed(SipUri.parse(uri), flows):
        uri = _uri_in(values.pop())  # a strict router has put the target at the end (RFC 3261 §16.4)
        rebuilt = values
    near = arrived.socket
    stripped = 0
    while stripped < len(values) and (own := _own_listener(values[stripped], flows)) is not None:
        near = own or near
        stripped += 1
    rest = values[stripped:]
    if rest:
        return _by_route(uri, rest, stripped, near, flows, is_rebuilt=rebuilt is not None)
    kept = None if rebuilt is None else ()
    return _by_uri(request, uri, stripped, kept, near, flows, dialogs)


def _is_strict_routed(uri: SipUri, flows: Flows) -> bool:
    return uri.param("lr") is not None and flows.is_own(uri.host, uri.port)


def _uri_in(value: bytes) -> bytes:
    uri = NameAddress.parse(value).uri
    return b"" if uri is None else value[slice(*uri.span)]


def _own_listener(value: bytes, flows: Flows) -> str | None:
    """The name of the listener that a Route value means; empty for this proxy at large, None for others."""
    uri = NameAddress.parse(value).uri
    if uri is None or uri.scheme not in ("sip", "sips") or not flows.is_own(uri.host, uri.port):
        return None
    endpoint, transport = endpoint_of(uri), transport_of(uri)
    for listener in flows.listeners:
        if endpoint in (listener.public, listener.local) and listener.transport == transport:
            return listener.name
    return ""


def _by_route(
    uri: bytes, rest: list[bytes], stripped: int, near: str, flows: Flows, *, is_rebuilt: bool
) -> Itinerary:
    first = NameAddress.parse(rest[0]).uri
    if first is None:
        return Itinerary(uri, None, stripped)
    hop = next_hop(first, flows, near)
    if first.param("lr") is None:  # a strict router: it wants to be the Request-URI (RFC 3261 §16.6 step 6)
        rebuilt = (*rest[1:], b"<%b>" % uri)
        return Itinerary(rest[0][slice(*first.span)], hop, rebuilt=rebuilt)
    return Itinerary(uri, hop, stripped, rebuilt=tuple(rest) if is_rebuilt else None)


def _by_uri(
    request: SipMessage,
    uri: bytes,
    stripped: int,
    rebuilt: tuple[bytes, ...] | None,
    near: str,
    flows: Flows,
    dialogs: Dialogs,
) -> Itinerary:
    target = SipUri.parse(uri)
    alias = read_alias(target)
    uri = without_alias(uri, target)
    found = dialogs.find(request)
    is_own = target.scheme in ("sip", "sips") and flows.is_own(target.host, target.port)
    if found is not None:
        party = found[1]
        uri = _uri_for(party, uri, dialogs) if is_own else uri
        target = SipUri.parse(uri)
        is_own = flows.is_own(target.host, target.port)
        if party.flow is not None and not party.route and flows.is_open(party.flow):
            hop = NextHop(target.host, target.port, _transport(party.flow, flows), party.flow)
            return Itinerary(uri, hop, stripped, rebuilt=rebuilt)
        if party.route and not is_own:
            hop = next_hop(NameAddress.parse(party.route[0]).uri or target, flows, party.seen.socket)
            return Itinerary(uri, hop, stripped, party.route, rebuilt)
        near = party.seen.socket
    if alias is not None and not is_own:
        flow = flows.towards(*alias, near=near)
        return Itinerary(uri, NextHop(target.host, target.port, alias[1], flow), stripped, rebuilt=rebuilt)
    return Itinerary(uri, None if is_own else next_hop(target, flows, near), stripped, rebuilt=rebuilt)


def _uri_for(party: Party, uri: bytes, dialogs: Dialogs) -> bytes:
    """The Request-URI that leads to a phone, where a client sent to this proxy what is the phone's."""
    if party.target and dialogs.leads_elsewhere(party):
        return party.target
    return party.sent_to or uri


def _transport(flow: Flow, flows: Flows) -> str:
    listener = flows.listener(flow.socket)
    return "UDP" if listener is None else listener.transport


def next_hop(uri: SipUri, flows: Flows, near: str) -> NextHop:
    """Where a URI leads, from a socket that is `near` where there is a choice."""
    transport = transport_of(uri)
    endpoint = endpoint_of(uri)
    flow = None
    if endpoint is not None and endpoint.port:
        listener = flows.listener(near)
        flow = flows.towards(endpoint, transport, near=near if listener is None else listener.name)
    return NextHop(uri.host, uri.port, transport, flow)


def leads_to(hop: NextHop, party: Party) -> bool:
    """Whether a hop is where one side of a call is by its own messages: source, Contact or Record-Route.

    Whoever is in a call knows its tags; that is no leave to send to anybody else by way of this proxy.
    """
    if hop.flow is not None:
        known = {flow.remote for flow in (party.flow, party.seen) if flow is not None}
        if hop.flow.remote in known:
            return True
    places = [b"<%b>" % uri for uri in (party.target, party.sent_to) if uri]
    return any(_is_place(place, hop) for place in (*party.route[:1], *places))


def _is_place(value: bytes, hop: NextHop) -> bool:
    """Whether an address, as a Route has it, is the place that a hop leads to."""
    try:
        uri = NameAddress.parse(value).uri
    except DecodeError:
        return False
    return uri is not None and (canonical_host(uri.host), uri.port) == (canonical_host(hop.host), hop.port)


def apply(itinerary: Itinerary, message: SipMessage) -> None:
    """Edit the Request-URI and the Route headers of `message` as planned."""
    span = message.request_uri
    assert span is not None
    if message.data[slice(*span)] != itinerary.uri:
        message.edit(span, itinerary.uri)
    headers = message.headers_named("route")
    pushed = itinerary.pushed
    if itinerary.rebuilt is not None:
        pushed = (*pushed, *itinerary.rebuilt)
        for header in headers:
            message.remove_header(header)
    else:
        remove_first_values(message, "route", itinerary.stripped)
    for value in pushed:
        if headers:
            message.insert_header_before(headers[0], "Route", value)
        else:
            message.insert_header_after(message.headers_named("via")[-1], "Route", value)


def remove_first_values(message: SipMessage, name: str, number: int) -> None:
    """Remove as many values of a list header, from the first on; other values stay as they are written."""
    for header in message.headers_named(name):
        if number <= 0:
            return
        spans = split_list(message.data, header.value_span)
        if number >= len(spans):
            message.remove_header(header)
        else:
            message.edit(Span(header.value_span.start, spans[number].start), b"")
        number -= len(spans)
