"""The public endpoints in, the local ones out: a phone's SIP messages on their way through its socket.

The phone knows only where its sockets are on this machine, and writes that into Via, Contact and SDP. What
it sends goes through `Rewriter.outgoing`, which puts the public endpoints of its bindings there; what it
receives goes through `Rewriter.incoming`, which puts back what the phone wrote, or it would not know its own
messages (RFC 3261 §18.1.2). All else stays as it is, byte for byte: From, To, Call-ID, CSeq, routes,
credentials, and every address that is not one of the phone's sockets.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.sip.descriptions import Descriptions, MediaPort, MediaUnbound, Unedited
from nattools.sip.headers import NameAddress, Via
from nattools.sip.learning import AlgSuspected, Learned
from nattools.sip.message import SipMessage
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri, Span
from nattools.sip.whereabouts import Bound, Known, Whereabouts

__all__ = [
    "AlgSuspected",
    "Bound",
    "Learned",
    "MediaPort",
    "MediaUnbound",
    "Rewriter",
    "RewriterEvent",
    "TooLarge",
    "Unedited",
]

MOST_UDP_BYTES = 1300
"""Above it a request should not go by UDP where the path's MTU is unknown (RFC 3261 §18.1.1)."""
_LONGEST_REMEMBERED = 512
MOST_EVENTS = 64
"""So many wait for `Rewriter.next_event`; then the oldest is forgotten."""

_HOST_ALONE = re.compile(rb"\[[^\]]*\]|[^:]*")


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A message of `size` bytes went out over UDP: it may be fragmented on the way, or lost.

    Use TCP (RFC 3261 §18.1.1), or have the phone offer fewer codecs.
    """

    size: int


RewriterEvent = Learned | AlgSuspected | MediaUnbound | Unedited | TooLarge


class Rewriter:
    """One phone's signalling socket and its media sockets, and what is written of them.

    `signalling` is the binding of the socket that its SIP goes through, over `transport`. A sent-by or a
    Contact is the phone's own when it has the local address and port of that binding; no port means 5060, or
    5061 with TLS and `sips:`. `also_local` are more addresses that the phone may write for its sockets, such
    as 0.0.0.0, or another one of this machine. Contacts of another transport, with a GRUU (`gr`), of an
    outbound flow (`ob`), with a host name, and `*` are left alone.

    Bindings are read at every message, so a `LiveBinding` that changes is followed at once, and versions of
    descriptions are raised (RFC 3264 §8); `nattools.sip.renewal` has the messages that then must be sent. No
    message, whatever is in it, makes a method raise: what is no SIP goes on as it came. After each message
    take `next_event` until None.
    """

    def __init__(
        self, signalling: Bound, *, transport: str = "UDP", also_local: Iterable[IPAddress] = ()
    ) -> None:
        self._where = Whereabouts(signalling, also_local)
        self._transport = transport.upper()
        self._transports = (self._transport, "SIPS/TCP") if self._transport == "TLS" else (self._transport,)
        self._descriptions = Descriptions(self._where)
        self._events: deque[RewriterEvent] = deque(maxlen=MOST_EVENTS)
        self._via = _Hand()
        self._contact = _Hand()

    # What it works with

    def set_signalling(self, signalling: Bound) -> None:
        """Go on with another binding for the phone's SIP; what was published before is still understood."""
        self._where.refresh(signalling)

    def add_media(self, rtp: Bound, rtcp: Bound | None = None) -> None:
        """From now on, write the public endpoint of `rtp` for its local one, and so for `rtcp`."""
        self._descriptions.add(rtp, rtcp)

    def remove_media(self, local_port: int) -> None:
        """Forget the binding of the RTP socket at `local_port`, and that of its RTCP; none there is fine."""
        self._descriptions.remove(local_port)

    def next_event(self) -> RewriterEvent | None:
        """Take the next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def public_for(self, destination: Endpoint | None) -> Endpoint | None:
        """What is written for the phone's SIP socket to `destination`: where that server sees it, if it is
        known to see it elsewhere than the binding has it. None while there is no public endpoint.
        """
        self._where.refresh()
        return self._where.told(destination)

    def media_needed(self, message: bytes) -> tuple[MediaPort, ...]:
        """The media sockets in a message of the phone that have no binding yet; none: it can be sent."""
        self._where.refresh()
        try:
            sip = SipMessage.parse(message)
        except DecodeError:
            return ()
        return self._descriptions.needed(sip)

    # The phone's messages on their way out

    def outgoing(self, message: bytes, destination: Endpoint | None = None) -> bytes:
        """The message as it is to be sent to `destination`, with the public endpoints in it.

        In a request the top Via gets the public sent-by, and `rport` where it has none (RFC 3581 §3); in
        requests and responses the phone's own Contacts and the streams of its descriptions follow. Under
        `qop=auth-int` the body is signed and stays as it is (RFC 3261 §22.4), while the headers, which are
        not, are edited. A message whose Content-Length cannot be true is not edited at all.
        """
        self._where.refresh()
        try:
            sip = SipMessage.parse(message)
        except DecodeError:
            return message
        if sip.length_error:
            self._events.append(Unedited(f"the message was sent as it was: {sip.length_error}"))
            return message
        told = self._where.told(destination)
        call_id = sip.call_id
        if sip.is_request:
            sent_by = self._edit_via(sip, told)
            if sent_by is not None:
                self._where.sent(call_id, destination, sent_by)
        self._edit_contacts(sip, told)
        self._events += self._descriptions.edit(sip, call_id, told)
        data = sip.encode()
        if len(data) > MOST_UDP_BYTES and self._transport == "UDP":
            self._events.append(TooLarge(len(data)))
        return data

    def _edit_via(self, sip: SipMessage, told: Endpoint | None) -> Endpoint | None:
        """Edit the top Via. Returns what is its sent-by then, None where it is not the phone's."""
        via = _top_via(sip)
        if via is None:
            return None
        span = via.host_port_span
        text = sip.data[span.start : span.end]
        default_port = SIPS_PORT if via.transport == "TLS" else SIP_PORT
        known = self._where.known(text, default_port, via)
        if known is None:
            return None
        new = self._new_words(self._via, text, known, told, default_port)
        if new is None:
            return known.endpoint
        if not via.has_rport:
            new += b";rport"
        if new != text:
            sip.edit(span, new)
        return told if known.is_local else known.endpoint

    def _edit_contacts(self, sip: SipMessage, told: Endpoint | None) -> None:
        for start, address in self._contacts(sip):
            known = self._where.known(address.text, address.default_port, address.uri)
            if known is None:
                continue
            new = self._new_words(self._contact, address.text, known, told, address.default_port)
            if new is not None and new != address.text:
                sip.edit(address.span_from(start), new)

    def _new_words(
        self, hand: _Hand, text: bytes, known: Known, told: Endpoint | None, default_port: int
    ) -> bytes | None:
        """What to write instead of `text`, perhaps the same; None where there is no public endpoint."""
        if not known.is_local:
            hand.is_public = not hand.text
            return text
        hand.text, hand.is_public = text, False
        if told is None:
            reason = f"the message names {known.endpoint}, since the binding has no public endpoint now"
            self._events.append(Unedited(f"{reason}: send again what matters when it has one"))
            return None
        return _as_written(told, text, default_port)

    def _contacts(self, sip: SipMessage) -> list[tuple[int, _Address]]:
        """Those Contacts that may be this socket's, and where each value starts."""
        found = []
        for start, end in sip.values("contact"):
            address = _read_contact(sip.data[start:end])
            if address is not None and address.transport in (None, *self._transports):
                found.append((start, address))
        return found

    # What comes in for the phone

    def incoming(self, message: bytes, source: Endpoint | None = None) -> bytes:
        """The message from `source` as the phone is to see it: with what it wrote where that was edited.

        That is the top Via of its own request in a response, with `received` and `rport` (RFC 3581 §4), or it
        would correct once more what is corrected here; its Contacts in the answer to a REGISTER, where it
        looks for its expiry (RFC 3261 §10.2.4); and the Request-URI of a request.
        """
        self._where.refresh()
        try:
            sip = SipMessage.parse(message)
        except DecodeError:
            return message
        if sip.length_error:
            return message
        if sip.request_uri is not None:
            self._put_back_request_uri(sip, sip.request_uri)
        else:
            written = self._put_back_via(sip, source)
            status_code = sip.status_code or 0
            if written is not None and 200 <= status_code < 300 and sip.method == "REGISTER":
                self._put_back_contacts(sip, written)
        return sip.encode()

    def _put_back_request_uri(self, sip: SipMessage, place: Span) -> None:
        address = _read_uri(sip.data[place.start : place.end])
        if address is not None and not self._contact.is_public and self._published(address) is not None:
            sip.edit(address.span_from(place.start), self._words_of(self._contact))

    def _put_back_via(self, sip: SipMessage, source: Endpoint | None) -> Endpoint | None:
        """Put back the sent-by of the top Via, and learn from it; None where it is not the phone's."""
        via = _top_via(sip)
        if via is None:
            return None
        span = via.host_port_span
        default_port = SIPS_PORT if via.transport == "TLS" else SIP_PORT
        known = self._where.known(sip.data[span.start : span.end], default_port, via)
        if known is None:
            return None
        event = self._where.answered(sip.call_id, source, known, received=via.received, rport=via.rport)
        if event is not None:
            self._events.append(event)
        if self._via.is_public:
            return known.endpoint
        sip.edit(span, self._words_of(self._via))
        for param in via.params:
            words = self._where.route_params.get(param.name)
            if words is not None and param.value and param.value_span is not None:
                sip.edit(param.value_span, words)
        return known.endpoint

    def _put_back_contacts(self, sip: SipMessage, sent_by: Endpoint) -> None:
        """Put back the Contacts that went out with `sent_by`, or else those of the latest endpoint there is.

        After a change others are in the list too, and a phone that finds itself twice may take the wrong one.
        """
        found: dict[Endpoint, list[Span]] = {}
        for start, address in self._contacts(sip):
            endpoint = self._published(address)
            if endpoint is not None:
                found.setdefault(endpoint, []).append(address.span_from(start))
        latest = self._where.latest_first(found, sent_by)
        if latest is not None and not self._contact.is_public:
            for span in found[latest]:
                sip.edit(span, self._words_of(self._contact))

    def _published(self, address: _Address) -> Endpoint | None:
        """The endpoint in an address if it is one by which others know the phone."""
        known = self._where.known(address.text, address.default_port, address.uri)
        return None if known is None or known.is_local else known.endpoint

    def _words_of(self, hand: _Hand) -> bytes:
        return hand.text or _words(self._where.local)


class _Hand:
    """How the phone writes its SIP endpoint in one kind of place, so that it gets it back like that.

    `text` is empty until it was seen. A phone that `is_public` there writes its public endpoint by itself.
    """

    __slots__ = ("is_public", "text")

    def __init__(self) -> None:
        self.text = b""
        self.is_public = False


def _top_via(sip: SipMessage) -> Via | None:
    try:
        return sip.top_via
    except DecodeError:
        return None


class _Address(NamedTuple):
    """A SIP URI by itself, for what is rewritten of it: `text` is its host and port.

    `default_port` is meant where there is none (RFC 3261 §19.1.2). `transport` is None where it names none.
    """

    uri: SipUri
    text: bytes
    default_port: int
    transport: str | None

    def span_from(self, start: int) -> Span:
        """Where the host and port are in a message that has the address at `start`."""
        host, end = self.uri.host_port_span
        return Span(start + host, start + end)


def _remembered(read: Callable[[bytes], _Address | None]) -> Callable[[bytes], _Address | None]:
    """Keep what was read of values of ordinary size: a phone and its peers repeat theirs in every message."""
    fast = lru_cache(maxsize=256)(read)
    return lambda value: fast(value) if len(value) <= _LONGEST_REMEMBERED else read(value)


@_remembered
def _read_contact(value: bytes) -> _Address | None:
    """The address of a Contact that can be a socket's; None for `*`, GRUU, flow, and what cannot be read."""
    try:
        uri = NameAddress.parse(value).uri
    except DecodeError:
        return None
    if uri is None or uri.param("gr") is not None or uri.param("ob") is not None:
        return None
    return _address(value, uri)


@_remembered
def _read_uri(value: bytes) -> _Address | None:
    """The address that a Request-URI is, None where it cannot be read."""
    try:
        return _address(value, SipUri.parse(value))
    except DecodeError:
        return None


def _address(value: bytes, uri: SipUri) -> _Address:
    param = uri.param("transport")
    transport = None if param is None or param.value is None else param.value.decode("latin-1").upper()
    default_port = SIPS_PORT if uri.scheme == "sips" or transport == "TLS" else SIP_PORT
    if uri.scheme == "sips" and transport == "TCP":
        transport = "SIPS/TCP"  # TLS by its newer name (RFC 3261 §26.2.2)
    return _Address(uri, value[slice(*uri.host_port_span)], default_port, transport)


def _as_written(endpoint: Endpoint, instead_of: bytes, default_port: int) -> bytes:
    """The text of `endpoint`: without its port where the text before had none, and none is needed."""
    words = _words(endpoint)
    if endpoint.port != default_port or not _HOST_ALONE.fullmatch(instead_of):
        return words
    return words[: words.rindex(b":")]


@lru_cache(maxsize=256)
def _words(endpoint: Endpoint) -> bytes:
    return str(endpoint).encode()
