"""The desk of a natgate in front of another registrar, or, as an ALG, in front of everybody's own.

Phones' requests go to the upstream and nowhere else; what the upstream sends goes to phones and nowhere
else. Only requests within a call that has begun here go where that call is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from typing import Self

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError, LocationError, ResolveError
from nattools.machine import Entropy
from nattools.net.dns import resolve
from nattools.session.controller.desk import Gate
from nattools.session.controller.next_hops import Resolve
from nattools.session.dialogs import Party
from nattools.session.events import Passage, Received
from nattools.session.flows import Flow
from nattools.session.forking import Target, by_flows
from nattools.session.guard import Guard
from nattools.session.location import ContactBinding
from nattools.session.nat_tests import is_neighbour, without_alias
from nattools.session.routing import NextHop, leads_to
from nattools.session.sources import Sources
from nattools.session.upstream import (
    Exchange,
    Ticket,
    Upstream,
    address_of_record,
    binding_in_dialog,
    binding_of,
    flow_to_phone,
    is_ours,
    ticket_of,
)
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri

_log = logging.getLogger(__name__)

OUTSIDE = "outside"
"""The name of the listener of an ALG that faces the servers."""

_SERVICES = {"UDP": "_sip._udp", "TCP": "_sip._tcp", "TLS": "_sips._tcp"}
_RESOLVED_FOR_S = 60.0
_RETRY_S = 5
_FORGOTTEN_AFTER_S = 64.0  # by then no REGISTER is answered any more
_MOST_CONTACTS = 20_000
_MOST_ADDRESSES = 4  # for one request


class UpstreamDesk:
    """Passes registrations on under Contacts of its own, and finds the phones again that these mean.

    `counters` has how many registrations the store could not keep (`unkept`), messages that could not be
    edited (`unedited`), and requests that were refused while the upstream was silent (`upstream_silent`).
    """

    def __init__(self, gate: Gate, guard: Guard, *, entropy: Entropy, resolve: Resolve = resolve) -> None:
        """Know no address of the upstream yet. Raises `DecodeError` where `settings.upstream` is none."""
        settings = gate.settings
        self.counters: Counter[str] = Counter()
        self._gate = gate
        self._guard = guard
        self._resolver = resolve
        self._entropy = entropy
        self._upstream = Upstream.parse(settings.upstream) if settings.upstream else None
        self._is_alg = settings.alg
        self._endpoints: tuple[Endpoint, ...] = ()
        self._resolved_at = float("-inf")
        self._resolving: asyncio.Task[None] | None = None
        self._tried_at: dict[Endpoint, float] = {}
        self._silent: set[Endpoint] = set()
        self._is_path_ignored = False
        self._exchanges: OrderedDict[int, tuple[float, Exchange]] = OrderedDict()
        self._sources = Sources(settings.registrations.users_per_source)
        self._contacts: OrderedDict[str, tuple[bytes, Flow]] = OrderedDict()
        self._tokens: dict[tuple[bytes, Flow], str] = {}
        self._registered: OrderedDict[tuple[bytes, Flow], Ticket] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, gate: Gate, guard: Guard, *, entropy: Entropy, resolve: Resolve = resolve) -> Self:
        """Look the upstream's name up; where that fails it is tried again every few seconds.

        `guard` is told to hear its addresses for good. Raises `DecodeError`, and `LocationError` where an
        ALG cannot read what is registered.
        """
        desk = cls(gate, guard, entropy=entropy, resolve=resolve)
        await desk._resolve()
        if gate.settings.alg:
            for bindings in (await gate.location.registrations(now=gate.now())).values():
                for binding in bindings:
                    desk._note_registered(binding)
        return desk

    async def decide(self, received: Received) -> None:
        """Answer a request or send it on."""
        try:
            await self._decide(received)
        except LocationError as error:
            _log.error("a request cannot be decided: %s", error)
            self._gate.answer(received, 503, "Registrations Unavailable", [("Retry-After", str(_RETRY_S))])
        except (DecodeError, EncodeError) as error:
            _log.debug("a request that cannot be read: %s", error)
            self._gate.answer(received, 400, "Bad Request")

    def edit(self, passage: Passage) -> None:
        """Exchange the Contacts of registrations; for an ALG, those of all that leaves by its outside."""
        try:
            if passage.message.method == "REGISTER":
                self._edit_register(passage)
            elif self._is_alg and passage.leaves.socket == OUTSIDE:
                self._edit_contacts(passage)
        except (DecodeError, EncodeError, ValueError) as error:
            self.counters["unedited"] += 1
            _log.warning("a %s is passed on as it is: %s", passage.message.method, error)

    async def close(self) -> None:
        """Wait until what was registered is kept."""
        if self._resolving is not None:
            self._resolving.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- requests ---

    async def _decide(self, received: Received) -> None:
        request = received.request
        ticket = _ticket_in(request)
        is_from_server = self._is_from_server(received.flow, has_ticket=ticket is not None)
        if is_from_server and ticket is not None:
            await self._to_ticket(received, ticket)
            return
        found = None if received.call is None else self._gate.proxy.dialogs.find(request)
        if found is not None:
            await self._in_call(received, found[1], is_from_server=is_from_server)
        elif _is_for_us(received, self._gate):
            self._gate.answer(received, 200, "OK", [("Accept", "application/sdp")])
        elif is_from_server:
            await self._to_phone_in_dialog(received)
        elif self._is_alg and not self._is_from_inside(received.flow):
            self.counters["strangers"] += 1
            self._gate.answer(received, 403, "Not From Inside")
        elif request.method == "REGISTER":
            await self._register(received)
        else:
            await self._to_server(received)

    def _is_from_server(self, flow: Flow, *, has_ticket: bool) -> bool:
        """Whether a request comes from the upstream, or for an ALG from outside.

        A phone may be on the same host as the upstream: then only the port tells them apart.
        """
        if self._upstream is None or flow.socket == OUTSIDE:
            return flow.socket == OUTSIDE
        if flow.remote in self._endpoints:
            return True
        listener = self._gate.flows.listener(flow.socket)
        is_stream = listener is not None and listener.is_reliable
        return (has_ticket or is_stream) and any(flow.remote.ip == each.ip for each in self._endpoints)

    def _is_from_inside(self, flow: Flow) -> bool:
        """Whether a phone of an ALG may be there: what comes from there goes anywhere, and nobody is asked.

        A gateway that listens on all its addresses is heard on the internet, too.
        """
        listener = self._gate.flows.listener(flow.socket)
        if listener is None:
            return False
        is_named = any(each.endpoint.ip == listener.local.ip for each in self._gate.settings.listen)
        return is_named or is_neighbour(flow.remote.ip, listener.local.ip)

    async def _to_ticket(self, received: Received, ticket: Ticket) -> None:
        """Send a request to the phone that a ticket means."""
        known = self._contacts.get(ticket.token)
        if known is not None:
            await self._gate.forward(received, [Target(*known)])
            return
        binding = await self._binding_of(ticket, _target(received.request))
        if binding is None and self._tasks:
            await asyncio.wait(self._tasks)  # a call may come on the heels of the 2xx to its REGISTER
            binding = await self._binding_of(ticket, _target(received.request))
        await self._to_binding(received, binding)

    async def _binding_of(self, ticket: Ticket, target: bytes) -> ContactBinding | None:
        bindings = await self._gate.location.bindings(ticket.address_of_record, now=self._gate.now())
        return binding_of(ticket, bindings, target)

    async def _to_binding(self, received: Received, binding: ContactBinding | None) -> None:
        flow = None if binding is None else flow_to_phone(binding, self._gate.flows)
        if received.request.method == "ACK" and flow is None:
            self._gate.ignore(received)
        elif binding is None:
            # An upstream that has lost a phone may look elsewhere; a 404 would have some forget the user.
            self._gate.answer(received, 480, "Not Registered Here")
        elif flow is None:
            self._gate.answer(received, 480, "Temporarily Unavailable")
        else:
            await self._gate.forward(received, [Target(binding.contact, flow)])

    async def _to_phone_in_dialog(self, received: Received) -> None:
        """Send a server's request on that has no ticket and is in no call: NOTIFY, or after a restart."""
        request = received.request
        name = None if request.to_tag is None else address_of_record(request, self._gate.flows, self._host)
        bindings = () if name is None else await self._gate.location.bindings(name, now=self._gate.now())
        target = _target(request)
        binding = binding_in_dialog(bindings, target)
        flow = None if binding is None else flow_to_phone(binding, self._gate.flows)
        if flow is not None:
            uri = without_alias(target, SipUri.parse(target))
            await self._gate.forward(received, [Target(uri, flow)])
        elif request.method == "ACK":
            self._gate.ignore(received)
        elif request.to_tag is not None:
            self._gate.answer(received, 481, "Call/Transaction Does Not Exist")
        else:
            self._gate.answer(received, 404, "Not Found")

    async def _in_call(self, received: Received, party: Party, *, is_from_server: bool) -> None:
        """Send a request on within its call, to nobody who is not in it."""
        hop = received.next_hop
        if hop is None or (is_from_server and not self._is_towards(party, hop)):
            await self._to_phone_in_dialog(received)
        elif not self._is_towards(party, hop) and not self._is_alg:
            await self._to_server(received)
        elif hop.flow is None or (self._is_alg and party.seen.socket == OUTSIDE):
            await self._forward_by(received, await self._gate.flow_to(hop.host, hop.port, hop.transport))
        else:
            await self._gate.forward(received)

    def _is_towards(self, party: Party, hop: NextHop) -> bool:
        """Whether a hop leads to `party`, or to the upstream."""
        return leads_to(hop, party) or (hop.flow is not None and hop.flow.remote in self._endpoints)

    async def _to_server(self, received: Received) -> None:
        """Send a phone's request to the upstream; for an ALG, where the phone wants it."""
        if self._upstream is None:
            hop = received.next_hop
            if hop is None:
                self._gate.answer(received, 404, "Not Found Without A Domain")
            else:
                flow = await self._gate.flow_to(hop.host, hop.port, hop.transport)
                await self._forward_by(received, flow)
            return
        flows = self._flows_to_upstream()
        target = _target(received.request)
        uri = SipUri.parse(target)
        if not flows or not is_ours(uri, self._gate.flows):
            await self._forward_by(received, *flows)
        else:
            await self._gate.forward(received, by_flows(self._upstream.address(target), flows))

    async def _forward_by(self, received: Received, *flows: Flow | None) -> None:
        found = [flow for flow in flows if flow is not None]
        if found:
            await self._gate.forward(received, flows=found)
        elif received.request.method == "ACK":
            self._gate.ignore(received)
        else:
            self.counters["upstream_silent"] += 1
            self._gate.answer(received, 503, "Server Unreachable", [("Retry-After", str(_RETRY_S))])

    # --- the upstream ---

    @property
    def _host(self) -> bytes:
        """The host that stands for this natgate's addresses in an address-of-record."""
        return b"" if self._upstream is None else self._upstream.host

    async def _resolve(self) -> None:
        upstream, now = self._upstream, self._gate.now()
        if upstream is None:
            return
        self._resolved_at = now
        default = SIPS_PORT if upstream.transport == "TLS" else SIP_PORT
        try:
            self._endpoints = tuple(
                await self._resolver(
                    upstream.host.decode("latin-1"),
                    upstream.port,
                    service=_SERVICES[upstream.transport],
                    default_port=default,
                )
            )
        except ResolveError as error:
            self._resolved_at = now - _RESOLVED_FOR_S + _RETRY_S
            _log.error("the upstream %s cannot be found: %s", upstream, error)
            return
        for endpoint in self._endpoints:
            self._guard.trust(endpoint)
            self._gate.flows.trust(endpoint)
        self._gate.proxy.reachability.watch(self._endpoints)

    def _look_up_again(self, now: float) -> None:
        """Ask DNS again now and then, while requests go to what it said last."""
        is_name = self._upstream is not None and self._upstream.name
        is_asking = self._resolving is not None and not self._resolving.done()
        if is_name and not is_asking and now - self._resolved_at >= _RESOLVED_FOR_S:
            self._resolving = asyncio.get_running_loop().create_task(self._resolve())

    def _flows_to_upstream(self) -> list[Flow]:
        """How to reach the addresses of the upstream that answer, all from one place; none do just now: none.

        Every few seconds a request is let through to one that did not, to see whether it is back.
        """
        assert self._upstream is not None
        now = self._gate.now()
        self._look_up_again(now)
        self._note_silence()
        silent_since, listener = self._gate.proxy.reachability.silent_since, self._gate.flows.listener
        found: list[Flow] = []
        for endpoint in sorted(self._endpoints, key=lambda each: silent_since(each) or float("-inf")):
            since = silent_since(endpoint)
            if since is not None and now - self._tried_at.get(endpoint, since) < _RETRY_S:
                continue
            flow = self._gate.flow_at(endpoint, self._upstream.transport, name=self._upstream.name)
            if flow is not None and (not found or listener(flow.socket) is listener(found[0].socket)):
                self._tried_at[endpoint] = now
                found.append(flow)
        return found[:_MOST_ADDRESSES]

    def _note_silence(self) -> None:
        """Write into the log which addresses of the upstream have fallen silent, and which are back."""
        silent_since = self._gate.proxy.reachability.silent_since
        silent = {endpoint for endpoint in self._endpoints if silent_since(endpoint) is not None}
        way_out = (
            "phones get 503 until it does" if len(silent) == len(self._endpoints) else "others are asked"
        )
        for endpoint in silent - self._silent:
            _log.error("the upstream %s does not answer at %s: %s", self._upstream, endpoint, way_out)
        for endpoint in self._silent - silent:
            _log.info("the upstream %s answers again at %s", self._upstream, endpoint)
        self._silent = silent

    # --- registrations ---

    async def _register(self, received: Received) -> None:
        gate, request, now = self._gate, received.request, self._gate.now()
        name = address_of_record(request, gate.flows, self._host)
        if name is None:
            gate.answer(received, 404, "Not Found")
            return
        bindings = await gate.location.bindings(name, now=now)
        exchange = Exchange(
            request,
            received.flow,
            name,
            bindings,
            entropy=self._entropy,
            by_path=gate.settings.path,
        )
        most = gate.settings.registrations.contacts_per_user
        if exchange.new_contacts and len(bindings) + exchange.new_contacts > most:
            gate.answer(received, 403, "Too Many Contacts")
            return
        if exchange.new_contacts and not self._sources.has_room(received.flow.remote.ip, name, now=now):
            gate.answer(received, 403, "Too Many Registrations")
            return
        while self._exchanges and next(iter(self._exchanges.values()))[0] <= now:
            self._exchanges.popitem(last=False)
        self._exchanges[received.number] = now + _FORGOTTEN_AFTER_S, exchange
        await self._to_server(received)

    def _edit_register(self, passage: Passage) -> None:
        _, exchange = self._exchanges.get(passage.number, (0.0, None))
        if exchange is None:
            return
        message = passage.message
        if message.is_request:
            listener = self._gate.flows.listener(passage.leaves.socket)
            if listener is not None:
                exchange.edit_request(message, listener.public, listener.transport)
        elif 200 <= (message.status_code or 0) < 300:
            del self._exchanges[passage.number]
            if exchange.lacks_path(message) and not self._is_path_ignored:
                self._is_path_ignored = True
                _log.error(
                    "the upstream ignores Path (RFC 3327), calls will not reach phones: do without path"
                )
            task = asyncio.get_running_loop().create_task(self._keep(exchange, passage))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            exchange.edit_response(message)

    async def _keep(self, exchange: Exchange, passage: Passage) -> None:
        """Keep what the upstream has registered."""
        name, now = exchange.address_of_record, self._gate.now()
        response, phone, arrived = passage.message, passage.leaves, passage.arrived
        server = arrived.remote if arrived.socket == OUTSIDE else None
        try:
            kept = await self._gate.location.update(
                name, lambda bindings: exchange.kept(response, bindings, server=server, now=now), now=now
            )
        except (LocationError, DecodeError) as error:
            self.counters["unkept"] += 1
            _log.error("the registration of %s is not kept, calls will not reach it: %s", name, error)
            return
        if kept.bindings is not None:
            until = max((binding.expires_at for binding in kept.bindings), default=None)
            self._sources.note(phone.remote.ip, name, until, now=now)
            for binding in kept.bindings if self._is_alg else ():
                self._note_registered(binding)

    def _note_registered(self, binding: ContactBinding) -> None:
        """Remember the ticket of a registration: in calls it leads to the phone even after a restart."""
        ticket, phone = ticket_of(binding), flow_to_phone(binding, self._gate.flows)
        if ticket is not None and phone is not None:
            self._registered[binding.contact, phone] = ticket
            self._registered.move_to_end((binding.contact, phone))
            if len(self._registered) > _MOST_CONTACTS:
                self._registered.popitem(last=False)

    # --- what an ALG's peers see of its phones ---

    def _edit_contacts(self, passage: Passage) -> None:
        """Give each address of a phone that leaves by the outside a ticket of this natgate."""
        listener = self._gate.flows.listener(passage.leaves.socket)
        message = passage.message
        for contact in message.contacts:
            uri = contact.uri
            if listener is None or uri is None or uri.ip is None or uri.param("gr") is not None:
                continue
            written = message.data[slice(*uri.span)]
            registered = self._registered.get((written, passage.arrived))
            ticket = registered or Ticket("", self._token(written, passage.arrived))
            new = ticket.uri(listener.public, listener.transport)
            if registered is None and uri.user is not None:
                new = new.replace(b"sip:", b"sip:%b@" % uri.user, 1)
            is_bracketed = message.data[: uri.span.start].rstrip(b" \t\r\n").endswith(b"<")
            message.edit(uri.span, new if is_bracketed else b"<%b>" % new)

    def _token(self, contact: bytes, flow: Flow) -> str:
        token = self._tokens.get((contact, flow))
        if token is None:
            token = self._tokens[contact, flow] = Ticket.new("", self._entropy).token
            self._contacts[token] = contact, flow
            if len(self._contacts) > _MOST_CONTACTS:
                del self._tokens[self._contacts.popitem(last=False)[1]]
        self._contacts.move_to_end(token)
        return token


def _target(request: SipMessage) -> bytes:
    assert request.request_uri is not None
    return request.data[slice(*request.request_uri)]


def _ticket_in(request: SipMessage) -> Ticket | None:
    """The ticket in the Request-URI, or in the first Route, where it is a Path's. Raises `DecodeError`."""
    ticket = Ticket.read(SipUri.parse(_target(request)))
    routes = request.values("route")
    if ticket is None and routes:
        ticket = Ticket.read(NameAddress.parse(request.data, routes[0]).uri)
    return ticket


def _is_for_us(received: Received, gate: Gate) -> bool:
    """Whether it is an OPTIONS to natgate itself, as somebody sends who asks whether it is there."""
    request = received.request
    uri = SipUri.parse(_target(request))
    is_asking = request.method == "OPTIONS" and request.to_tag is None and received.next_hop is None
    return is_asking and uri.user is None and gate.flows.is_own(uri.host, uri.port)
