"""The desk of a natgate that is the registrar itself: registrations, and calls to and from its users."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocationError
from nattools.machine import Entropy
from nattools.session.controller.desk import Gate
from nattools.session.domains import Domains
from nattools.session.events import Passage, Received
from nattools.session.flows import Flow, endpoint_of, transport_of
from nattools.session.forking import Target
from nattools.session.homes import home_uri, is_elsewhere, target_elsewhere
from nattools.session.location import ContactBinding, instance_of, targets
from nattools.session.registrar import CHALLENGED_ALGORITHMS, EXTENSIONS, Refusal, Registrar
from nattools.session.routing import NextHop, leads_to
from nattools.session.upstream import Ticket, binding_of
from nattools.session.users import Users
from nattools.sip.digest import DigestServer, Verdict
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri, read_ip

_ALLOWED = (
    "INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER, UPDATE, PRACK, REFER, NOTIFY, SUBSCRIBE, MESSAGE, INFO"
)
_TO_ITSELF = (("Allow", _ALLOWED), ("Accept", "application/sdp"), ("Supported", ", ".join(EXTENSIONS)))
_LATER = (("Retry-After", "5"),)

_log = logging.getLogger(__name__)


class HomeDesk:
    """Answers REGISTER, finds users, and asks callers for their passwords.

    Who begins something shows a password (407), but for two: a stranger where `strangers` are let in to our
    users, and a phone that calls another user by the very flow that it is registered by. To other domains
    only users get, and never without the password. In a dialog nobody is asked; a dialog that this natgate
    does not know (it was restarted) must at one end have a registered phone. Nobody is asked either who has
    the ticket of a registration: another natgate with the same store (`homes`). `counters` has requests that
    were asked for a password (`challenged`), REGISTERs that were refused though they showed one
    (`registrations_refused`), and requests within dialogs that nobody here knows, or to others (`strangers`).
    """

    def __init__(
        self,
        gate: Gate,
        users: Users,
        *,
        has_phone_at: Callable[[Endpoint], bool],
        on_refused: Callable[[Received, str], None],
        on_guess: Callable[[Endpoint], None],
        on_neighbour: Callable[[Endpoint], None],
        entropy: Entropy,
    ) -> None:
        """`has_phone_at` says whether a registered phone is at an endpoint.

        `on_refused` is told of each REGISTER that showed a password and was refused, and why, `on_guess`
        where a wrong password came from, `on_neighbour` where another natgate with the same store is.
        """
        settings = gate.settings
        self.counters: Counter[str] = Counter()
        own = [listener.public for listener in gate.flows.listeners]
        own += [listener.local for listener in gate.flows.listeners]
        self._own_ips = frozenset(endpoint.ip for endpoint in own)
        self._gate = gate
        self._has_phone_at = has_phone_at
        self._on_refused = on_refused
        self._on_guess = on_guess
        self._on_neighbour = on_neighbour
        self._entropy = entropy
        self._users = users
        self._domains = Domains([*settings.domains, *dict.fromkeys(str(endpoint.ip) for endpoint in own)])
        self._realm = settings.realm or self._domains.name
        self._registrar = Registrar(
            self._domains,
            users,
            entropy=entropy,
            realm=self._realm,
            settings=settings.registrations,
        )
        self._digest = DigestServer(
            self._realm, entropy=entropy, algorithms=CHALLENGED_ALGORITHMS, is_proxy=True
        )

    async def decide(self, received: Received) -> None:
        """Answer a request or send it on."""
        request = received.request
        try:
            if request.method == "REGISTER":
                await self._register(received)
            elif request.to_tag is not None:
                await self._go_on(received)
            elif request.method == "ACK":
                self._gate.ignore(received)
            else:
                await self._begin(received)
        except LocationError as error:
            _log.error("%s", error)
            self._gate.answer(received, 503, "Registrations Not At Hand", _LATER)
        except DecodeError as error:
            self._gate.answer(received, 400, _phrase(error))

    def edit(self, passage: Passage) -> None:
        """Leave everything as it is: phones register here under their own Contacts."""

    async def close(self) -> None:
        """Do nothing: there is nothing that is held."""

    async def _register(self, received: Received) -> None:
        gate, request = self._gate, received.request
        if not self._registrar.is_responsible(request):
            gate.answer(received, 403, "Not The Registrar Of That Domain")
            return
        admitted = self._registrar.admit(
            request, source=received.flow.remote, flow=received.flow.socket, now=gate.now()
        )
        if isinstance(admitted, Refusal):
            has_tried = request.header("authorization") is not None and not admitted.is_stale
            self.counters["registrations_refused" if has_tried else "challenged"] += 1
            if has_tried:
                self._on_refused(received, admitted.reason)
            if admitted.is_guess:
                self._on_guess(received.flow.remote)
            gate.respond(received, admitted.response)
            return
        who = admitted.address_of_record
        home = home_uri(who, received.flow.socket, gate.flows, entropy=self._entropy)
        admission = replace(admitted, outside=home)
        registration = await gate.location.update(
            who,
            lambda bindings: self._registrar.register(admission, bindings, now=gate.now()),
            now=gate.now(),
        )
        gate.respond(received, registration.response)

    async def _go_on(self, received: Received) -> None:
        """Pass a request within a dialog, to its other side and to nobody else."""
        gate, hop = self._gate, self._hop(received)
        found = gate.proxy.dialogs.find(received.request)
        if found is None:
            flow = None if hop is None else hop.flow
            is_ours = self._has_phone_at(received.flow.remote)
            if not is_ours and (flow is None or not self._has_phone_at(flow.remote)):
                self.counters["strangers"] += 1
                gate.answer(received, 481, "Call/Transaction Does Not Exist")
                return
        elif hop is not None and not leads_to(hop, found[1]):
            self.counters["strangers"] += 1
            gate.answer(received, 403, "Not The Other Side Of This Call")
            return
        if hop is not None:
            await self._to_next_hop(received)
            return
        uri = _request_uri(received.request)
        if self._domains.user_of(uri) is None:
            gate.answer(received, 481, "Call/Transaction Does Not Exist")
            return
        await self._to_user(received, uri)

    async def _begin(self, received: Received) -> None:
        """Pass a request that begins something, where its sender may."""
        gate, request = self._gate, received.request
        uri, hop = _request_uri(request), self._hop(received)
        if hop is None and self._domains.user_of(uri) is None:
            if request.method == "OPTIONS":
                gate.answer(received, 200, "OK", _TO_ITSELF)
            else:
                gate.answer(received, 404, "Not Found")
            return
        ticket = Ticket.read(uri)
        if ticket is not None and hop is None:
            await self._to_phone(received, ticket)
            return
        sender = _sender(request)
        user = None if sender is None else self._domains.user_of(sender)
        realm = ""
        known = await self._registered_sender(received, user or _local_user(sender))
        is_let_in = known is not None or (user is None and gate.settings.strangers)
        if hop is None and is_let_in:
            user = known or user
        else:
            verification = self._digest.verify(request, self._users.password_of, now=gate.now())
            if verification.verdict is not Verdict.ACCEPTED:
                is_stale = verification.verdict is Verdict.STALE
                challenges = self._digest.challenges(now=gate.now(), stale=is_stale)
                self.counters["challenged"] += 1
                if verification.verdict is Verdict.REFUSED:
                    self._on_guess(received.flow.remote)
                gate.answer(received, 407, "Proxy Authentication Required", challenges)
                return
            if user is not None and user != verification.username:
                gate.answer(received, 403, "From Is Another User")
                return
            user, realm = verification.username, self._realm
        if hop is None:
            await self._to_user(received, uri, realm=realm, user=user or "")
        else:
            await self._to_next_hop(received, realm=realm, user=user or "")

    def _hop(self, received: Received) -> NextHop | None:
        """Where a request goes by itself; None where a user's phone is to be looked for.

        An address without a port is this natgate at whatever port: phones that have been told one leave it
        out of the URIs that they call.
        """
        hop = received.next_hop
        is_here = hop is not None and hop.port is None and read_ip(hop.host) in self._own_ips
        return None if is_here else hop

    async def _to_phone(self, received: Received, ticket: Ticket) -> None:
        """Send a request that comes from another natgate with the same store to the one phone it is for."""
        gate = self._gate
        bindings = await gate.location.bindings(ticket.address_of_record, now=gate.now())
        binding = binding_of(ticket, bindings)
        if binding is None:  # it has registered anew since; the other natgate does not know it yet
            gate.answer(received, 480, "Temporarily Unavailable")
            return
        self._on_neighbour(received.flow.remote)
        found = await self._targets([binding])
        if found:
            await gate.forward(received, found)
        else:
            gate.answer(received, 480, "Temporarily Unavailable")

    async def _registered_sender(self, received: Received, user: str | None) -> str | None:
        """The user, if it is by the flow of the request that this one is registered."""
        if user is None:
            return None
        address_of_record = f"{user}@{self._domains.name}"
        bindings = await self._gate.location.bindings(address_of_record, now=self._gate.now())
        flow = received.flow
        is_there = any(
            binding.flow == flow.socket and not binding.path and _place_of(binding) == flow.remote
            for binding in bindings
        )
        return user if is_there else None

    async def _to_user(self, received: Received, uri: SipUri, *, realm: str = "", user: str = "") -> None:
        """Send a request to the phones of one of our users."""
        gate = self._gate
        address_of_record = self._domains.address_of_record(uri)
        bindings = (
            ()
            if address_of_record is None
            else await gate.location.bindings(address_of_record, now=gate.now())
        )
        groups = targets(bindings, instance=instance_of(uri))
        found = [target for group in groups for target in await self._targets(group)]
        if uri.scheme == "sips":
            found = [target for target in found if self._is_secure(target)]
        if found:
            await gate.forward(received, found, realm=realm, user=user)
        elif bindings or (self._domains.user_of(uri) or "") in self._users:
            gate.answer(received, 480, "Temporarily Unavailable")
        else:
            gate.answer(received, 404, "Not Found")

    async def _targets(self, bindings: Iterable[ContactBinding]) -> list[Target]:
        """How to reach each of these, as far as it can be reached."""
        found = []
        for binding in bindings:
            target = await self._target(binding)
            if target is not None:
                found.append(target)
        return found

    async def _target(self, binding: ContactBinding) -> Target | None:
        if binding.received is not None and is_elsewhere(binding, self._gate.flows):
            return target_elsewhere(binding, self._gate.flows)
        flow = await self._flow_of(binding)
        return None if flow is None else Target(binding.contact, flow, binding.path, binding.q)

    def _is_secure(self, target: Target) -> bool:
        """Whether a target is reached by TLS, as a sips URI wants it (RFC 5630 §5.3)."""
        listener = None if target.flow is None else self._gate.flows.listener(target.flow.socket)
        return listener is not None and listener.transport == "TLS"

    async def _flow_of(self, binding: ContactBinding) -> Flow | None:
        gate = self._gate
        uri = NameAddress.parse(binding.path[0]).uri if binding.path else SipUri.parse(binding.contact)
        if uri is None or (binding.received is None and gate.flows.is_own(uri.host, uri.port)):
            return None  # what leads to natgate itself would go round
        transport, endpoint = transport_of(uri), endpoint_of(uri)
        if binding.received is not None:
            flow = Flow(binding.flow, binding.received)
            if gate.flows.is_open(flow):
                return flow
            if endpoint is None or endpoint.ip != binding.received.ip or transport == "UDP":
                return gate.flows.towards(binding.received, transport) if transport == "UDP" else None
        if endpoint is None:
            return await gate.flow_to(uri.host, uri.port, transport)
        return gate.flows.towards(endpoint, transport, near=binding.flow) if endpoint.port else None

    async def _to_next_hop(self, received: Received, *, realm: str = "", user: str = "") -> None:
        gate, hop = self._gate, received.next_hop
        assert hop is not None
        flow = hop.flow or await gate.flow_to(hop.host, hop.port, hop.transport)
        if flow is None:
            gate.answer(received, 502, "Next Hop Not Found")
            return
        await gate.forward(received, flows=[flow], realm=realm, user=user)


def _place_of(binding: ContactBinding) -> Endpoint | None:
    """Where the phone of a binding is: where it is heard from, or else where its contact says."""
    return binding.received or endpoint_of(SipUri.parse(binding.contact))


def _request_uri(request: SipMessage) -> SipUri:
    assert request.request_uri is not None
    return SipUri.parse(request.data, request.request_uri)


def _sender(request: SipMessage) -> SipUri | None:
    """The URI in From. Raises `DecodeError`."""
    header = request.header("from")
    return None if header is None else NameAddress.parse(request.data, header.value_span).uri


def _local_user(sender: SipUri | None) -> str | None:
    """The user of a From that has the phone's own address for a domain, as pyVoIP's has (1.6)."""
    if sender is None or sender.user is None or read_ip(sender.host) is None:
        return None
    return sender.user.decode("utf-8", "surrogateescape")


def _phrase(error: DecodeError) -> str:
    """A reason phrase that says what is wrong, in few words."""
    text = "".join(letter for letter in str(error) if letter.isascii() and letter.isprintable())
    return f"Bad Request: {text[:80]}"
