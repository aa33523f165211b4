"""A phone's registrations, as its REGISTERs and their answers tell them (RFC 3261 §10)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.change import CREDENTIALS, own_contacts
from nattools.sip.dialog import CSeqShift, copied_fields
from nattools.sip.digest import is_reusable
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage
from nattools.sip.uri import SIP_PORT

MOST_REGISTRATIONS = 32
_MOST_STALE = 8


@dataclass(slots=True)
class Registration:
    """One address-of-record at one registrar: the REGISTER that was accepted last, in the phone's own words.

    `stale` are public endpoints under which the registrar may still have the phone, and should not. One may
    come back: a REGISTER that arrived late, behind the one that removed it.
    """

    request: SipMessage
    destination: Endpoint
    shift: CSeqShift
    stale: list[Endpoint] = field(default_factory=list)

    @property
    def address_of_record(self) -> str:
        """Whom it registers, as To says it."""
        to = self.request.header("to")
        uri = None if to is None else NameAddress.parse(self.request.data, to.value_span).uri
        return "" if uri is None else self.request.data[slice(*uri.span)].decode("utf-8", "replace")

    @property
    def own(self) -> Endpoint | None:
        """Where the phone says it is, by its Via and a Contact that agrees; None where none does."""
        via = self.request.top_via
        if via is None or via.ip is None:
            return None
        own = Endpoint(via.ip, via.port or SIP_PORT)
        return own if own_contacts(self.request, own) else None

    @property
    def is_repeatable(self) -> bool:
        """Whether its credentials, if it has any, can be sent once more."""
        return all(is_reusable(value) for _, value in copied_fields(self.request, CREDENTIALS))


class Registrations:
    """The latest registrations of a phone, and the CSeq numbers of its REGISTERs."""

    def __init__(self, *, most: int = MOST_REGISTRATIONS) -> None:
        self._most = most
        self._accepted: OrderedDict[tuple[bytes, bytes], Registration] = OrderedDict()
        self._asked: OrderedDict[tuple[bytes, int], tuple[SipMessage, Endpoint]] = OrderedDict()
        self._shifts: OrderedDict[bytes, CSeqShift] = OrderedDict()
        self._left: list[Endpoint] = []  # where the phone was, the latest

    def moved(self, old: Endpoint | None, new: Endpoint, server: Endpoint | None) -> list[Registration]:
        """Note that the phone is to be reached at `new`, and no longer at `old`: the registrations to renew.

        They are those at `server`, or all where it is None.
        """
        concerned = [it for it in self._accepted.values() if server in (None, it.destination)]
        for registration in concerned:
            registration.stale = _after_move(registration.stale, old, new)
        if server is None or concerned:
            self._left = _after_move(self._left, old, new)
        return concerned

    def cleared(self, registration: Registration, response: SipMessage) -> None:
        """Note the 2xx to a REGISTER that was to remove all that is stale: left is what it did not know of.

        What it could not remove is left there, or it would be asked to for ever.
        """
        asked = registration.stale
        registration.stale = [it for it in _listed(response, self._left) if it not in asked]

    def sent(self, request: SipMessage, destination: Endpoint) -> tuple[int, Registration | None]:
        """Note a REGISTER of the phone: the CSeq number to send it by, and the registration that it ends."""
        call_id, number = request.call_id, _number(request)
        shift = self._shifts.setdefault(call_id, CSeqShift())
        self._shifts.move_to_end(call_id)
        self._asked[call_id, number] = (request, destination)
        for memory in (self._shifts, self._asked):
            while len(memory) > 2 * self._most:
                memory.popitem(last=False)
        ended = self._accepted.pop(_key(request), None) if _is_farewell(request) else None
        return shift.outgoing(number), ended

    def answered(self, response: SipMessage) -> tuple[int, Registration | None]:
        """Note the answer to one: the phone's own number of it, and the registration that it accepts."""
        call_id, number = response.call_id, _number(response)
        shift = self._shifts.get(call_id)
        if shift is None:
            return number, None
        number = shift.incoming(number)
        status_code = response.status_code or 0
        asked = self._asked.get((call_id, number))
        if status_code >= 200:
            self._asked.pop((call_id, number), None)
        if asked is None or not 200 <= status_code < 300 or _is_farewell(asked[0]):
            return number, None
        request, destination = asked
        key = _key(request)
        before = self._accepted.pop(key, None)
        stale = [] if before is None else before.stale
        stale += [it for it in _listed(response, self._left) if it not in stale]
        registration = self._accepted[key] = Registration(request, destination, shift, stale)
        while len(self._accepted) > self._most:
            self._accepted.popitem(last=False)
        return number, registration


def _listed(response: SipMessage, endpoints: list[Endpoint]) -> list[Endpoint]:
    """Those of `endpoints` that a registrar still has a Contact at; none where it cannot be read."""
    with suppress(DecodeError):
        return [endpoint for endpoint in endpoints if own_contacts(response, endpoint)]
    return []


def _after_move(endpoints: list[Endpoint], old: Endpoint | None, new: Endpoint) -> list[Endpoint]:
    """The public endpoints of before, after one more move."""
    others = [endpoint for endpoint in endpoints if endpoint not in (old, new)]
    return [*others, *([] if old in (None, new) else [old])][-_MOST_STALE:]


def _number(message: SipMessage) -> int:
    cseq = message.cseq
    if cseq is None:
        raise DecodeError("a REGISTER, or its answer, without a CSeq")
    return cseq[0]


def _key(request: SipMessage) -> tuple[bytes, bytes]:
    """Which registration a REGISTER is about: the registrar, and whom To names."""
    assert request.request_uri is not None
    to = request.header("to")
    uri = None if to is None else NameAddress.parse(request.data, to.value_span).uri
    whom = b"" if uri is None else request.data[slice(*uri.span)]
    return request.data[slice(*request.request_uri)], whom


def _is_farewell(request: SipMessage) -> bool:
    """Whether a REGISTER leaves nothing of the phone: `*`, or every Contact expires at once."""
    contacts = request.contacts
    general = request.value(request.header("expires")).strip()
    expiries = []
    for contact in contacts:
        own = contact.param("expires")
        expiries.append(b"0" if contact.is_star else general if own is None else own.value or b"")
    return bool(contacts) and all(expiry and not expiry.strip(b"0") for expiry in expiries)
