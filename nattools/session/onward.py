"""How a message looks when it leaves a proxy (RFC 3261 §16.6, §16.7), and by which flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from nattools.errors import DecodeError, EncodeError
from nattools.machine import Entropy
from nattools.session import acceptance, passing, routing
from nattools.session.context import Context
from nattools.session.dialogs import Call, Party, is_own_route
from nattools.session.events import Passage
from nattools.session.flows import Flow, Flows, Listener, endpoint_of
from nattools.session.forking import Branch, Target
from nattools.session.nat_tests import ContactFix, NatTest, find_signs, fix_contacts, has_gruu
from nattools.session.transactions import MAGIC_COOKIE
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

    def flow_of_reply(self, context: Context) -> Flow | None:
        """Where responses go: the connection of the request, else where the Via says (§18.2.2)."""
        if self.flows.is_open(context.reply):
            return context.reply
        via = context.request.top_via
        if via is None:
            return None
        remote = passing.reply_endpoint(context.request, context.flow.remote)
        return self.flows.towards(remote, via.transport)

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

    def byes(self, call: Call, parties: Iterable[Party]) -> Iterator[tuple[Target, Flow, bytes]]:
        """A BYE to each of these sides of a call, as from the other one, and how it gets there."""
        for party in parties:
            flow = self.flow_of_party(party)
            branch = f"{MAGIC_COOKIE.decode()}{self.entropy(_UNIQUE_BYTES).hex()}"
            with suppress(DecodeError, EncodeError):
                yield Target(party.target, flow), flow, call.request_to(party, "BYE", self.via(flow, branch))

    def fix(self, message: SipMessage, flow: Flow) -> bool:
        """Make the Contact lead back through the NAT that it came from; whether it needed that."""
        return fix_contacts(message, flow.remote, self.listener(flow).transport, self.contact_fix)

    def request(self, context: Context, target: Target, flow: Flow, branches: int) -> tuple[bytes, bytes]:
        """The request as it goes to one target, which is one of so many `branches`, and its Via's branch."""
        message = context.request.unedited()
        routing.apply(context.itinerary.to(target.uri, target.route), message)
        passing.lower_max_forwards(message)
        passing.limit_breadth(message, branches)
        if context.realm:
            passing.drop_credentials(message, context.realm)
        if message.method != "REGISTER" and (context.nat or (context.is_direct and has_gruu(message))):
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
            self.edit_media(Passage(message, context.flow, flow, context.number, branch.encode()))
        return message.encode(), branch.encode()

    def response(self, context: Context, response: SipMessage, flow: Flow, branch: Branch) -> bool:
        """Edit a response from 101 to 299 that goes back; whether its Contact needed to be mended.

        It came by `flow`, and answers that branch of the request.
        """
        passing.drop_top_via(response)
        is_fixed = (
            context.request.method != "REGISTER"
            and self._is_nearest(context, response, branch.flow)
            and (
                bool(find_signs(response, flow.remote, self.tests))
                or _was_elsewhere(context, branch)
                or has_gruu(response)
            )
            and self.fix(response, flow)
        )
        if self.edit_media is not None:
            self.edit_media(Passage(response, flow, context.reply, context.number, response.branch or b""))
        return is_fixed

    def lacks_record_route(self, context: Context, response: SipMessage) -> bool:
        """Whether it begins a dialog without the Record-Route that the request had when it was passed on."""
        return (
            context.call is None
            and context.request.method in _RECORDED
            and response.to_tag is not None
            and response.header("record-route") is None
        )

    def _is_nearest(self, context: Context, response: SipMessage, sent_by: Flow) -> bool:
        """Whether no other proxy is beyond this one; and if the request passes twice, not this pass of it."""
        if context.call is not None and context.sender is not None:
            receiver = context.call.other(context.sender)
            return not receiver.route and self.flow_of_party(receiver).remote == sent_by.remote
        values = response.values("record-route")
        if not values:
            return True
        arrived, leaves = self.listener(context.flow), self.listener(sent_by)
        pushed = passing.record_routes(arrived, leaves, is_sips=False)
        is_last = len(values) <= len(context.request.values("record-route")) + len(pushed)
        return is_last and is_own_route(response.data[slice(*values[0])], self.flows)


def _was_elsewhere(context: Context, branch: Branch) -> bool:
    """Whether a phone was reached elsewhere than its own URI says: it is registered, or speaks, from there.

    Its Contact need not look like it: that of STUN, say, is the NAT's port towards the STUN server.
    """
    if context.call is not None and context.sender is not None:
        return context.call.other(context.sender).flow is not None
    uri = acceptance.readable_uri(branch.target.uri)
    endpoint = None if uri is None else endpoint_of(uri)
    is_registered = context.itinerary.hop is None and not branch.target.route
    return is_registered and endpoint is not None and endpoint != branch.flow.remote
