"""What a proxy writes into the messages that it passes on (RFC 3261 §16.6, §16.7, §18.2, RFC 3581)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.acceptance import max_forwards
from nattools.session.flows import Listener
from nattools.session.nat_tests import port_of
from nattools.session.routing import remove_first_values
from nattools.sip.headers import NameAddress, Via
from nattools.sip.message import SipMessage, compose_request
from nattools.sip.uri import Param, Span

_REALM = re.compile(rb'(?:\A|[\s,])realm\s*=\s*"((?:[^"\\]|\\.)*+)"', re.IGNORECASE | re.DOTALL)
_TAG_BYTES = 8
_CANCELLED_NAMES = ("route", "from", "to", "call-id")
MOST_BREADTH = 60
"""Into how many branches a request may be forked in all, where it does not say (RFC 5393 §5.3.3.2)."""


def mark_source(request: SipMessage, source: Endpoint) -> SipMessage:
    """Write into the top Via where `request` came from, and read the outcome (RFC 3261 §18.2.1, RFC 3581 §4).

    `rport` is written where the client asks for it, and where its sent-by is another address: it is behind a
    NAT then, and an answer to the port that it names would be lost. What it claims of itself is overwritten.
    Raises `DecodeError` where there is no Via that can be read.
    """
    via = request.top_via
    if via is None:
        raise DecodeError("a request without a Via")
    is_elsewhere = via.ip is not None and via.ip != source.ip
    wants_port = via.has_rport or (is_elsewhere and via.transport == "UDP")
    if wants_port or via.ip != source.ip or via.param("received") is not None:
        _set_param(request, via, "received", str(source.ip).encode())
    if wants_port:
        _set_param(request, via, "rport", b"%d" % source.port)
    return SipMessage.parse(request.encode()) if request.is_edited else request


def _set_param(request: SipMessage, via: Via, name: str, value: bytes) -> None:
    param: Param | None = via.param(name)
    if param is None:
        request.edit(Span(via.span.end, via.span.end), b";%b=%b" % (name.encode(), value))
    elif param.value_span is None:
        request.edit(param.name_span, b"%b=%b" % (name.encode(), value))
    elif param.value != value:
        request.edit(param.value_span, value)


def reply_endpoint(request: SipMessage, source: Endpoint) -> Endpoint:
    """Where the responses to a request go that `mark_source` has marked (RFC 3261 §18.2.2, RFC 3581 §4)."""
    via = request.top_via
    if via is None:
        return source
    return Endpoint(source.ip, via.rport or port_of(via) or source.port)


def answer_tag(request: SipMessage, secret: bytes) -> str:
    """The To tag of this proxy's own answer to `request`: always the same, so also in its ACK (§8.2.7)."""
    number = request.cseq
    parts = (request.call_id, request.from_tag or b"", b"" if number is None else b"%d" % number[0])
    digest = blake2b(key=secret, digest_size=_TAG_BYTES)
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()


def drop_top_via(response: SipMessage) -> None:
    """Take the proxy's own Via off a response."""
    remove_first_values(response, "via", 1)


def push_via(request: SipMessage, via: str) -> None:
    """Put the proxy's own Via on top of a request."""
    request.insert_header_before(request.header("via"), "Via", via)


def lower_max_forwards(request: SipMessage) -> None:
    """Count this hop (RFC 3261 §16.6 step 3); a request that counts none begins to."""
    header = request.header("max-forwards")
    hops = max_forwards(request) or 1
    if header is None:
        request.insert_header_after(request.headers_named("via")[-1], "Max-Forwards", f"{hops}")
    else:
        request.edit(header.value_span, b"%d" % (hops - 1))


def push_record_route(request: SipMessage, arrived: Listener, leaves: Listener, *, is_sips: bool) -> None:
    """Have later requests of this dialog come back here (RFC 3261 §16.6 step 4).

    Where the two sides differ there is one value for each, that of the side that it leaves by on top
    (RFC 5658).
    """
    first = request.header("record-route")
    for value in record_routes(arrived, leaves, is_sips=is_sips):
        if first is None:
            request.insert_header_after(request.headers_named("via")[-1], "Record-Route", value)
        else:
            request.insert_header_before(first, "Record-Route", value)


def record_routes(arrived: Listener, leaves: Listener, *, is_sips: bool) -> list[str]:
    """What `push_record_route` adds, the topmost first."""
    above, below = (_record_route(listener, is_sips=is_sips) for listener in (leaves, arrived))
    return [above] if above == below else [above, below]


def restore_record_route(response: SipMessage, request: SipMessage) -> SipMessage:
    """A response that begins a dialog, with the Record-Route of the `request` that it answers.

    Who answers must repeat it (RFC 3261 §12.1.1), and pyVoIP 1.6 does not: whoever called would send its ACK
    to the address that the phone has behind its NAT.
    """
    above = response.headers_named("via")[-1]
    for header in request.headers_named("record-route"):
        response.insert_header_after(above, "Record-Route", request.value(header))
    return SipMessage.parse(response.encode())


def mend_ack(ack: SipMessage, tag: bytes) -> SipMessage:
    """An ACK on the branch of an INVITE that one 2xx with that To tag has answered, with that tag.

    pyVoIP 1.6 sends such ACKs for 2xx, each with a tag that it has just made up. Nobody else sends any on
    that branch: the ACK of a 2xx has a branch of its own (RFC 3261 §17.1.1.3).
    """
    header = ack.header("to")
    if header is None or ack.to_tag == tag:
        return ack
    for param in NameAddress.parse(ack.data, header.value_span).params:
        if param.name == "tag" and param.value_span is not None:
            ack.edit(param.value_span, tag)
    return SipMessage.parse(ack.encode())


def _record_route(listener: Listener, *, is_sips: bool) -> str:
    transport = "" if listener.transport == "UDP" else f";transport={listener.transport.lower()}"
    return f"<{'sips' if is_sips else 'sip'}:{listener.public}{transport};lr>"


def drop_credentials(request: SipMessage, realm: str) -> None:
    """Remove the Proxy-Authorization that was for `realm` alone, which is used up (RFC 3261 §22.3)."""
    for header in request.headers_named("proxy-authorization"):
        match = _REALM.search(request.value(header))
        if match is not None and match[1] == realm.encode():
            request.remove_header(header)


def limit_breadth(request: SipMessage, branches: int) -> None:
    """Share among `branches` how far the request may be forked further (RFC 5393 §5.3.3)."""
    header = request.header("max-breadth")
    if header is None and branches == 1:
        return
    share = b"%d" % max(breadth(request) // branches, 1)
    if header is None:
        request.insert_header_after(request.headers_named("via")[-1], "Max-Breadth", share)
    elif request.value(header) != share:
        request.edit(header.value_span, share)


def breadth(request: SipMessage) -> int:
    """In how many branches at once a request may go on (RFC 5393 §5.3.1), one at least."""
    value = request.first_value("max-breadth")
    if not value.isdigit() or len(value) > 9:
        return MOST_BREADTH
    return min(max(int(value), 1), MOST_BREADTH)


def add_challenges(response: SipMessage, others: Sequence[SipMessage]) -> None:
    """Add to a 401 or 407 what the other branches ask for (RFC 3261 §16.7 step 7)."""
    for other in others:
        for name, written in (
            ("www-authenticate", "WWW-Authenticate"),
            ("proxy-authenticate", "Proxy-Authenticate"),
        ):
            for header in other.headers_named(name):
                response.insert_header_after(None, written, other.value(header))


def compose_cancel(request: SipMessage, reason: bytes) -> bytes:
    """The CANCEL of a request that was sent (RFC 3261 §9.1), with that Reason (RFC 3326) if there is one.

    Raises `DecodeError` or `EncodeError` where the request cannot be repeated.
    """
    via, number = request.top_via, request.cseq
    if via is None or number is None or request.request_uri is None:
        raise DecodeError("a request without Via or CSeq cannot be cancelled")
    fields: list[tuple[str, bytes]] = [("Via", request.data[slice(*via.span)])]
    fields += [
        (request.data[slice(*header.name_span)].decode("latin-1"), request.value(header))
        for header in request.headers
        if header.name in _CANCELLED_NAMES
    ]
    fields += [("CSeq", b"%d CANCEL" % number[0]), ("Max-Forwards", b"70")]
    if reason:
        fields.append(("Reason", reason))
    try:
        uri = request.data[slice(*request.request_uri)].decode()
    except UnicodeDecodeError as error:
        raise DecodeError("a Request-URI that is no UTF-8") from error
    return compose_request("CANCEL", uri, fields)
