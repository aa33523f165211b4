"""How a message looks when it leaves a proxy (RFC 3261 §16.6, §16.7), and by which flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nattools.errors import DecodeError
from nattools.machine import Entropy
from nattools.session import acceptance, passing, routing
from nattools.session.context import Context
from nattools.session.dialogs import Party, is_own_route
from nattools.session.events import Passage
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.forking import Target
from nattools.session.nat_tests import ContactFix, NatTest, find_signs, fix_contacts
from nattools.sip.headers import NameAddress, compose_via
from nattools.sip.message import SipMessage

_RECORDED = frozenset({"INVITE", "SUBSCRIBE", "REFER"})
_UNIQUE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Onward:
    """What a proxy does to all that it passes on: Vias, Record-Route, Contacts from behind NATs, media."""

    flows: Flows
    entropy: Entropy
    tests: NatTest
    contact_fix: ContactFix
    edit_media: Callable[[Passage], None] | None

    def listener(self, flow: Flow) -> Listener:
        """The listener of a flow; of a connection that has ended any, since nothing comes of it."""
        return self.flows.listener(flow.socket) or next(iter(self.flows.listeners))

    def flow_of_target(self, target: Target) -> Flow | None:
        """How to reach a target; None where its connection has ended, or it is no URI of an address."""
        uri = acceptance.readable_uri(target.uri)
        if uri is None:
            return None
        if target.flow is not None:
            return target.flow if self.flows.is_open(target.flow) else None
        if target.route:
            try:
                uri = NameAddress.parse(target.route[0]).uri
            except DecodeError:
                return None
        return None if uri is None else routing.next_hop(uri, self.flows, "").flow

    def flow_of_party(self, party: Party) -> Flow:
        """How to reach one side of a call."""
        if party.flow is not None and self.flows.is_open(party.flow):
            return party.flow
        return self.flow_of_target(Target(party.target, route=party.route)) or party.seen

    def via(self, flow: Flow, branch: str) -> str:
        """The Via of a request that leaves by `flow`."""
        listener = self.listener(flow)
        return compose_via(
            listener.public, branch=branch, transport=listener.transport, rport=not listener.is_reliable
        )

    def fix(self, message: SipMessage, flow: Flow) -> bool:
        """Make the Contact lead back through the NAT that it came from; whether it needed that."""
        return fix_contacts(message, flow.remote, self.listener(flow).transport, self.contact_fix)

    def request(self, context: Context, target: Target, flow: Flow, branches: int) -> bytes:
        """The request as it goes to one target, which is one of so many `branches`."""
        message = SipMessage.parse(context.request.data)
        itinerary = context.itinerary
        pushed = (*target.route, *itinerary.pushed)
        routing.apply(replace(itinerary, uri=target.uri, pushed=pushed), message)
        passing.lower_max_forwards(message)
        passing.limit_breadth(message, branches)
        if context.realm:
            passing.drop_credentials(message, context.realm)
        if context.nat and message.method != "REGISTER":
            context.is_fixed = self.fix(message, context.flow)
        if message.method in _RECORDED:
            is_sips = target.uri[:5].lower() == b"sips:"
            arrived, leaves = self.listener(context.flow), self.listener(flow)
            passing.push_record_route(message, arrived, leaves, is_sips=is_sips)
        for name, value in context.headers:
            message.insert_header_after(message.headers_named("via")[-1], name, value)
        branch = acceptance.branch(context.request, self.entropy(_UNIQUE_BYTES))
        passing.push_via(message, self.via(flow, branch))
        if self.edit_media is not None:
            self.edit_media(Passage(message, context.flow, flow))
        return message.encode()

    def response(self, context: Context, response: SipMessage, flow: Flow) -> bool:
        """Edit a response from 101 to 299 that goes back; whether its Contact needed to be mended."""
        passing.drop_top_via(response)
        is_fixed = (
            context.request.method != "REGISTER"
            and self._is_nearest(response)
            and bool(find_signs(response, flow.remote, self.tests))
            and self.fix(response, flow)
        )
        if self.edit_media is not None:
            self.edit_media(Passage(response, flow, context.reply))
        return is_fixed

    def _is_nearest(self, response: SipMessage) -> bool:
        """Whether no other proxy has recorded itself beyond this one."""
        values = response.values("record-route")
        return not values or is_own_route(response.data[slice(*values[0])], self.flows)
