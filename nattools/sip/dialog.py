"""Dialogs as they are seen by who only watches the messages pass (RFC 3261 §12), and how to speak in them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage, compose_request
from nattools.sip.uri import Span

Fields = list[tuple[str, bytes]]
"""Header fields as `compose_request` takes them."""

_MOST_STEPS = 32
_LARGEST_CSEQ = 2**31 - 1
_KEPT_NAMES = {"user-agent", "allow", "supported", "accept", "allow-events", "min-se"}
_BODY_NAMES = {"content-type", "content-disposition", "content-language", "content-encoding", "mime-version"}


class CSeqShift:
    """Makes room for requests of ours among the CSeq numbers of a phone that does not know of them.

    Numbers of the phone are its own up to our request; what it sends later comes out higher, by as many as
    were put in between. So each number that the other side sees is higher than the one before (RFC 3261
    §12.2.1.1).
    """

    __slots__ = ("_by", "_from", "_highest", "_last")

    def __init__(self) -> None:
        self._from = [0]  # from which number of the phone on ...
        self._by = [0]  # ... it is shifted by how much
        self._highest = 0
        self._last = 0

    def outgoing(self, number: int) -> int:
        """What is sent instead of the phone's `number`; the same again for the same number."""
        shifted = number + self._by[bisect_right(self._from, number) - 1]
        if shifted > _LARGEST_CSEQ:
            return number
        self._highest = max(self._highest, number)
        self._last = max(self._last, shifted)
        return shifted

    def incoming(self, number: int) -> int:
        """Which number of the phone was sent as `number`."""
        for start, by in zip(reversed(self._from), reversed(self._by), strict=True):
            if number - by >= start:
                return number - by
        return number

    def take(self) -> int:
        """A number for a request of ours, higher than all that were sent."""
        self._last += 1
        start, by = self._highest + 1, self._last - self._highest
        if self._from[-1] == start:
            self._by[-1] = by
        else:
            self._from.append(start)
            self._by.append(by)
        del self._from[1:-_MOST_STEPS], self._by[1:-_MOST_STEPS]
        return self._last


@dataclass(frozen=True, slots=True)
class Body:
    """A body and the Content headers that say what it is."""

    data: bytes
    fields: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, message: SipMessage) -> Body | None:
        """The body of a message, None where it has none that ends where it should."""
        if message.length_error or not message.body:
            return None
        return cls(message.body, tuple(copied_fields(message, _BODY_NAMES)))


@dataclass(slots=True)
class Dialog:
    """One dialog, from the side of a phone: all that a request of the phone in it has to say.

    `local` and `remote` are the values of From and To, `target` the URI that the other side is reached by,
    and `route` the values of Route in their order (RFC 3261 §12.1). An early dialog has had no 2xx yet.
    """

    call_id: bytes
    local: bytes
    remote: bytes
    target: bytes
    route: tuple[bytes, ...]
    is_early: bool = True
    fields: Fields = field(default_factory=list)
    """What the phone says of itself in each request: User-Agent, Allow, Supported ..."""

    @classmethod
    def of_caller(cls, invite: SipMessage, response: SipMessage) -> Dialog:
        """The dialog that a response from 101 to 299 makes, for whom sent the INVITE (RFC 3261 §12.1.2).

        Raises `DecodeError` where the response has no To tag or no Contact.
        """
        return cls(
            response.call_id,
            invite.value(invite.header("from")),
            _tagged(response, "to"),
            target_of(response),
            tuple(reversed(route_set(response))),
            _is_provisional(response),
            copied_fields(invite, _KEPT_NAMES),
        )

    @classmethod
    def of_callee(cls, invite: SipMessage, response: SipMessage) -> Dialog:
        """The dialog that a response from 101 to 299 makes, for whom sent that response (RFC 3261 §12.1.1).

        Raises `DecodeError` where the response has no To tag, or the INVITE no Contact.
        """
        return cls(
            response.call_id,
            _tagged(response, "to"),
            invite.value(invite.header("from")),
            target_of(invite),
            tuple(route_set(invite)),
            _is_provisional(response),
            copied_fields(response, _KEPT_NAMES),
        )

    def next_hop(self) -> Endpoint | None:
        """Where requests of this dialog are sent (RFC 3261 §8.1.2): the first of the route, else the target.

        None where that is a host name, or to be reached by another transport than UDP.
        """
        first = NameAddress.parse(self.route[0]) if self.route else NameAddress.parse(b"<%b>" % self.target)
        uri = first.uri
        transport = None if uri is None else uri.param("transport")
        if uri is None or uri.scheme != "sip" or uri.param("maddr") is not None:
            return None
        if transport is not None and (transport.value or b"").lower() != b"udp":
            return None
        return uri.endpoint()

    def compose(
        self,
        method: str,
        *,
        cseq: int,
        via: str | bytes,
        contact: str | bytes | None = None,
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: Body | None = None,
    ) -> bytes:
        """Write a request in this dialog (RFC 3261 §12.2.1.1); strict routers, without `lr`, are obeyed.

        Raises `DecodeError` for a target that is no URI, `EncodeError` for values that do not fit a header.
        """
        target, route = self.target, self.route
        first = NameAddress.parse(route[0]).uri if route else None
        if first is not None and first.param("lr") is None:
            target, route = route[0][slice(*first.span)], (*route[1:], b"<%b>" % target)
        fields: list[tuple[str, str | bytes]] = [("Via", via), ("Max-Forwards", "70")]
        fields += [("Route", value) for value in route]
        fields += [
            ("From", self.local),
            ("To", self.remote),
            ("Call-ID", self.call_id),
            ("CSeq", f"{cseq} {method}"),
        ]
        if contact is not None:
            fields.append(("Contact", contact))
        if method != "ACK":
            fields += self.fields
        fields += headers
        if body is not None:
            fields += body.fields
        return compose_request(method, as_text(target), fields, b"" if body is None else body.data)


def as_text(data: bytes) -> str:
    """A URI, or what else must be text. Raises `DecodeError` where it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"{data[:40]!r} is not UTF-8") from error


def route_set(message: SipMessage) -> list[bytes]:
    """The values of Record-Route as they stand. Raises `DecodeError` when one is no address."""
    route = []
    for span in message.values("record-route"):
        NameAddress.parse(message.data, span)
        route.append(_unfolded(message, span))
    return route


def target_of(message: SipMessage) -> bytes:
    """The URI of the first Contact (RFC 3261 §12.1). Raises `DecodeError` where there is none to send to."""
    for contact in message.contacts:
        if contact.uri is not None:
            target = message.data[slice(*contact.uri.span)]
            as_text(target)
            return target
    raise DecodeError("a message that makes a dialog has no Contact")


def copied_fields(message: SipMessage, names: Iterable[str]) -> Fields:
    """The headers of these names, spelt as they are in `message`."""
    wanted = set(names)
    return [
        (message.data[slice(*header.name_span)].decode("latin-1"), message.value(header))
        for header in message.headers
        if header.name in wanted
    ]


def _tagged(message: SipMessage, name: str) -> bytes:
    if message.to_tag is None:
        raise DecodeError("a response that makes a dialog has no To tag")
    return message.value(message.header(name))


def _is_provisional(response: SipMessage) -> bool:
    return (response.status_code or 0) < 200


def _unfolded(message: SipMessage, span: Span) -> bytes:
    return b" ".join(message.data[slice(*span)].split())
