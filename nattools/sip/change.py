"""What a phone says when its public endpoint has changed: ready messages, made out of earlier ones.

A softphone that knows its own registrations and dialogs calls these; `renewal.Renewal` does so for one that
does not know of bindings at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.dialog import Body, Dialog
from nattools.sip.digest import is_reusable
from nattools.sip.headers import NameAddress, compose_via, format_sent_by
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri, Span

CREDENTIALS = frozenset({"authorization", "proxy-authorization"})


def register_after_change(
    register: bytes,
    old: Endpoint,
    new: Endpoint,
    *,
    branch: str,
    cseq: int | None = None,
    stale: Iterable[Endpoint] | None = None,
    credentials: Iterable[tuple[str, str | bytes]] | None = None,
) -> bytes:
    """The last accepted REGISTER again, with `new` where Via and Contact had `old`.

    In the same request each of `stale`, `old` where nothing is given, is removed by `expires=0` (RFC 3261
    §10.2.2). `branch` must be new; `cseq` is one higher where it is not given. `credentials` are headers in
    place of those in `register`, of which else only those without qop are repeated: others are good for one
    request. Raises `DecodeError` where `register` is no REGISTER with a Via, a CSeq and a Contact.
    """
    message = SipMessage.parse(register)
    via, numbered = message.top_via, message.cseq
    if message.method != "REGISTER" or not message.is_request or via is None or numbered is None:
        raise DecodeError("no REGISTER with a Via and a CSeq, which could be sent again")
    if via.ip == old.ip and (via.port or SIP_PORT) == old.port and old != new:
        message.edit(via.host_port_span, format_sent_by(new))
    given = via.param("branch")
    if given is not None and given.value_span is not None:
        message.edit(given.value_span, branch.encode())
    else:
        message.edit(Span(via.span.end, via.span.end), b";branch=" + branch.encode())
    number = numbered[0] + 1 if cseq is None else cseq
    header = message.header("cseq")
    assert header is not None
    message.edit(header.value_span, b"%d REGISTER" % number)
    _replace_credentials(message, credentials)
    removed = [endpoint for endpoint in ((old,) if stale is None else stale) if endpoint != new]
    _replace_contacts(message, old, new, removed)
    return message.encode()


def own_contacts(message: SipMessage, own: Endpoint) -> list[NameAddress]:
    """The Contact values at `own`. Raises `DecodeError` when a Contact is malformed."""
    return [contact for contact in message.contacts if contact.uri is not None and _at(contact.uri) == own]


def _at(uri: SipUri) -> Endpoint | None:
    return uri.endpoint(SIPS_PORT if uri.scheme == "sips" else SIP_PORT)


def _replace_contacts(message: SipMessage, old: Endpoint, new: Endpoint, removed: list[Endpoint]) -> None:
    """Put `new` into our Contacts, and behind the last one all of them at each endpoint of `removed`."""
    own = own_contacts(message, old)
    for contact in own:
        if contact.uri is not None and old != new:
            message.edit(contact.uri.host_port_span, format_sent_by(new))
    if not own:
        return
    goodbyes = [_goodbye(message.data, contact.uri, endpoint) for endpoint in removed for contact in own]
    place = own[-1].span.end
    if goodbyes:
        message.edit(Span(place, place), b"".join(b", " + goodbye for goodbye in goodbyes))


def _goodbye(data: bytes, uri: SipUri | None, endpoint: Endpoint) -> bytes:
    """A Contact that removes the binding of `uri` at `endpoint` (RFC 3261 §10.2.2), all else the same."""
    assert uri is not None
    host = uri.host_port_span
    before, after = data[uri.span.start : host.start], data[host.end : uri.span.end]
    return b"<%b%b%b>;expires=0" % (before, format_sent_by(endpoint), after)


def _replace_credentials(message: SipMessage, credentials: Iterable[tuple[str, str | bytes]] | None) -> None:
    for header in message.headers:
        if header.name in CREDENTIALS and not (credentials is None and is_reusable(message.value(header))):
            message.remove_header(header)
    for name, value in credentials or ():
        message.insert_header_after(message.header("call-id"), name, value)


def reinvite_after_change(
    dialog: Dialog,
    sdp: bytes,
    *,
    sent_by: Endpoint,
    contact: str | bytes,
    branch: str,
    cseq: int,
    previous_sdp: bytes = b"",
    transport: str = "UDP",
    headers: Iterable[tuple[str, str | bytes]] = (),
) -> bytes:
    """A re-INVITE that tells the other side new addresses (RFC 3665 §3.7): Via, Contact and `sdp` have them.

    The version in o= is raised above that of `previous_sdp`, or the other side would take the description
    for the one that it knows (RFC 3264 §8). `cseq` is one higher than that of the last request in the
    dialog. Raises `DecodeError` for what is no SDP, `EncodeError` for a value that fits no header.
    """
    return dialog.compose(
        "INVITE",
        cseq=cseq,
        via=compose_via(sent_by, branch=branch, transport=transport),
        contact=contact,
        headers=headers,
        body=Body(raise_version(sdp, previous_sdp), (("Content-Type", b"application/sdp"),)),
    )


def raise_version(sdp: bytes, previous: bytes) -> bytes:
    """`sdp` with a version in o= that is higher than the one in `previous`; as it is where it is that
    already.

    Raises `DecodeError` where one of them is no SDP; an empty `previous` has no version.
    """
    if not previous:
        return sdp
    origin, before = SessionDescription.parse(sdp).origin, SessionDescription.parse(previous).origin
    if origin is None or before is None or origin.version > before.version:
        return sdp
    start, end = origin.version_span
    return b"%b%d%b" % (sdp[:start], before.version + 1, sdp[end:])
