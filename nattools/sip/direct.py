"""What passing messages say of a phone's calls: that one is over, or that its peer sends to the phone itself.

A call whose proxies do not stay in its path has the peer send ACK and BYE straight to the phone's Contact
(RFC 3261 §12.2.1.1). Where the NAT lets in only those that were sent to, they must be sent to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.message import SipMessage

MOST_CALLS = 64
"""So many are remembered, the latest."""
_TRY_AGAIN = frozenset({401, 407, 422, 491, 494})
"""Refusals after which a phone sends the same call once more (RFC 3261 §21.4, RFC 4028 §5, RFC 3329 §2.3)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over, or has come to nothing."""

    call_id: bytes


@dataclass(frozen=True, slots=True)
class Direct:
    """The call rings or is answered, and `peer` sends its requests to the phone without any proxy."""

    call_id: bytes
    peer: Endpoint


class Calls:
    """The calls of one phone."""

    def __init__(self) -> None:
        self._callers: OrderedDict[bytes, Endpoint] = OrderedDict()
        self._answered: OrderedDict[bytes, None] = OrderedDict()

    def passed(self, message: bytes, *, is_incoming: bool) -> Ended | Direct | None:
        """Take a message that the phone has sent, or receives; whatever is no SIP says nothing."""
        try:
            sip = SipMessage.parse(message)
        except DecodeError:
            return None
        if sip.method == "BYE" and sip.is_request:
            self._answered.pop(sip.call_id, None)
            return Ended(sip.call_id)
        if sip.method != "INVITE":
            return None
        if not sip.is_request:
            return self._responded(sip, is_incoming)
        if is_incoming and (caller := _contact(sip)) is not None:
            _remember(self._callers, sip.call_id, caller)
        return None

    def _responded(self, response: SipMessage, is_incoming: bool) -> Ended | Direct | None:
        status, call_id = response.status_code or 0, response.call_id
        if status >= 300:
            is_over = status not in _TRY_AGAIN and call_id not in self._answered  # or it goes on as it was
            return Ended(call_id) if is_over else None
        if status >= 200:
            _remember(self._answered, call_id, None)
        if status <= 100 or response.header("record-route") is not None:
            return None
        peer = _contact(response) if is_incoming else self._callers.get(call_id)
        return None if peer is None else Direct(call_id, peer)


def _remember(calls: OrderedDict[bytes, T], call_id: bytes, value: T) -> None:
    calls[call_id] = value
    calls.move_to_end(call_id)
    if len(calls) > MOST_CALLS:
        calls.popitem(last=False)


def _contact(sip: SipMessage) -> Endpoint | None:
    """Where the sender wants to be reached; None for a name, and where it says nothing."""
    for contact in sip.contacts:
        if contact.uri is not None:
            return contact.uri.endpoint()
    return None
