"""The calls that a proxy has seen begin, by Call-ID and tags (RFC 3261 §12), and how each side is reached.

Clients that ignore Record-Route send their ACK and BYE to anywhere; here is where these belong.
"""

from __future__ import annotations

from dataclasses import dataclass

from nattools.errors import DecodeError
from nattools.session.flows import Flow, Flows
from nattools.session.nat_tests import without_alias
from nattools.sip.dialog import Dialog, route_set
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri

_MOST_CALLS = 50_000

_Key = tuple[bytes, bytes, bytes]


@dataclass(slots=True)
class Party:
    """One side of a call. `target` is the URI of its Contact, `route` what lies between this proxy and it."""

    tag: bytes
    address: bytes
    """Its From, or To, with the tag."""
    target: bytes
    route: tuple[bytes, ...]
    seen: Flow
    """What its messages came by last."""
    flow: Flow | None = None
    """What it is reached by whatever its Contact says: it is behind a NAT. None where that is not so."""
    sent_to: bytes = b""
    """The Request-URI that the callee was reached by, which leads to it where its Contact does not."""
    cseq: int = 0
    """The highest number of its requests."""
    told: tuple[int, int] = (-1, -1)
    """Whose response has told of it last: the CSeq of that request, and its number here."""

    def is_told_by(self, request: SipMessage, number: int) -> bool:
        """Whether this pass of `request` is the nearest to the party: its response comes by before others."""
        cseq = request.cseq
        if cseq is None or (self.told[0] == cseq[0] and self.told[1] != number):
            return False
        self.told = cseq[0], number
        return True


@dataclass(slots=True, eq=False)
class Call:
    """A dialog of an INVITE, early until a 2xx has passed."""

    call_id: bytes
    caller: Party
    callee: Party
    is_answered: bool = False
    is_acknowledged: bool = False
    """Whether the caller has sent an ACK of a 2xx by this proxy."""
    is_over: bool = False
    is_held: bool = True
    """Whether its 2xx may still be sent again: then its ACK must be led to the phone even after its end."""

    def other(self, party: Party) -> Party:
        """The side that is not `party`."""
        return self.callee if party is self.caller else self.caller

    def request_to(self, party: Party, method: str, via: str) -> bytes:
        """A request that `party` takes for one of the other side, with the next number of that side.

        Raises `DecodeError` where there is no URI to send it to, `EncodeError` for values that fit no header.
        """
        other = self.other(party)
        other.cseq += 1
        target = party.sent_to if party.sent_to and not party.target else party.target
        dialog = Dialog(self.call_id, other.address, party.address, target, party.route)
        return dialog.compose(method, cseq=other.cseq, via=via)


class Dialogs:
    """All calls that are known; of too many the oldest are forgotten, and pass like those of others."""

    def __init__(self, flows: Flows, *, most: int = _MOST_CALLS) -> None:
        self._flows = flows
        self._most = most
        self._calls: dict[_Key, Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def find(self, request: SipMessage) -> tuple[Call, Party] | None:
        """The call that a request is in, and the side that it goes to."""
        from_tag, to_tag = request.from_tag, request.to_tag
        if from_tag is None or to_tag is None:
            return None
        call = self._calls.get((request.call_id, from_tag, to_tag))
        if call is not None:
            return call, call.callee
        call = self._calls.get((request.call_id, to_tag, from_tag))
        return None if call is None else (call, call.caller)

    def begin(
        self, invite: SipMessage, arrived: Flow, response: SipMessage, answered: Flow, sent_to: bytes
    ) -> Call | None:
        """The call that a response from 101 to 299 to an INVITE outside a dialog makes, or has made before.

        `sent_to` is the Request-URI by which that phone was reached. None where a tag is missing.
        """
        from_tag, to_tag = invite.from_tag, response.to_tag
        if from_tag is None or to_tag is None:
            return None
        key = (response.call_id, from_tag, to_tag)
        call = self._calls.get(key)
        if call is not None:
            return call
        above, below = self._routes_around(response)
        number = invite.cseq
        caller = Party(from_tag, response.value(response.header("from")), b"", tuple(below), arrived)
        caller.cseq = 0 if number is None else number[0]
        callee = Party(to_tag, response.value(response.header("to")), b"", tuple(reversed(above)), answered)
        callee.sent_to = sent_to
        call = self._calls[key] = Call(response.call_id, caller, callee)
        refresh(caller, invite)
        if len(self._calls) > self._most:
            del self._calls[next(iter(self._calls))]
        return call

    def forget(self, call: Call) -> None:
        """Know a call no more."""
        self._calls.pop((call.call_id, call.caller.tag, call.callee.tag), None)

    def leads_elsewhere(self, party: Party) -> bool:
        """Whether the Contact of `party` is a URI of elsewhere, and not a GRUU of this proxy's domains."""
        try:
            uri = SipUri.parse(party.target)
        except DecodeError:
            return False
        return not self._flows.is_own(uri.host, uri.port)

    def _routes_around(self, response: SipMessage) -> tuple[list[bytes], list[bytes]]:
        """The Record-Route values above those of this proxy, and those below."""
        try:
            values = route_set(response)
        except DecodeError:
            return [], []
        own = [place for place, value in enumerate(values) if is_own_route(value, self._flows)]
        return (values[: own[0]], values[own[-1] + 1 :]) if own else ([], values)


def is_own_route(value: bytes, flows: Flows) -> bool:
    """Whether a value of Route or Record-Route means this proxy. Raises `DecodeError`."""
    uri = NameAddress.parse(value).uri
    return uri is not None and uri.scheme in ("sip", "sips") and flows.is_own(uri.host, uri.port)


def refresh(party: Party, message: SipMessage) -> None:
    """Take the Contact of a request or a 2xx as the party's new target (RFC 3261 §12.2), if it has one."""
    try:
        uris = [contact.uri for contact in message.contacts if contact.uri is not None]
    except DecodeError:
        return
    if uris:
        party.target = without_alias(message.data, uris[0])
