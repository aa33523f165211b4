"""Signs of a NAT in a message, and how a Contact is made to lead back through it.

The numbers are those that nathelper's `nat_uac_test` made usual. Its faults are left out: a response is never
judged by its top Via, which is the proxy's own; a host name in a Via is no other address; `c=0.0.0.0` is a
call on hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntFlag, StrEnum
from functools import cache, reduce
from ipaddress import IPv4Network
from operator import or_

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import DecodeError
from nattools.session.flows import endpoint_of, transport_of
from nattools.sip.body import sdp_parts
from nattools.sip.headers import Via
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri, Span, read_ip

_DS_LITE = IPv4Network("192.0.0.0/29")  # RFC 6333
_INSIDE = frozenset({AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LINK_LOCAL})
_NEAR = frozenset({AddressClass.PRIVATE, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL})
_IPV6_BITS, _SUBNET_BITS = 128, 64
_ALIAS = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Fa-f:.]{2,45})~([0-9]{1,5})~([123])")
_PROTOCOLS = {"UDP": b"1", "TCP": b"2", "TLS": b"3"}
_TRANSPORTS = {number: name for name, number in _PROTOCOLS.items()}


class NatTest(IntFlag):
    """One sign each. "Inside" are RFC 1918, RFC 6598, RFC 4193, link-local addresses and 192.0.0.0/29."""

    CONTACT_INSIDE = 1
    RECEIVED_DIFFERS = 2  # the address that sent it is not the one in the top Via; requests only
    VIA_INSIDE = 4  # requests only
    SDP_INSIDE = 8
    PORT_DIFFERS = 16  # as RECEIVED_DIFFERS, the port; requests only
    SOURCE_INSIDE = 32
    WEBSOCKET = 64  # requests only
    CONTACT_PORT_DIFFERS = 128
    SDP_DIFFERS = 256  # its media go to another address than the one that sent it
    TARGET_INSIDE = 512  # the Request-URI; requests only


ABOUT_THE_VIA = NatTest.RECEIVED_DIFFERS | NatTest.VIA_INSIDE | NatTest.PORT_DIFFERS | NatTest.WEBSOCKET
USUAL_TESTS = NatTest.CONTACT_INSIDE | NatTest.RECEIVED_DIFFERS | NatTest.PORT_DIFFERS
"""What tells a phone behind a NAT from others, unless somebody wants it otherwise."""

_NO_SIGN = NatTest(0)


class ContactFix(StrEnum):
    """What is done with the Contact of a phone behind a NAT."""

    ALIAS = "alias"  # `;alias=ip~port~protocol` is added, which every phone sends back; the URI stays valid
    REWRITE = "rewrite"  # host and port become those that the message came from
    NONE = "none"


def is_inside(ip: IPAddress | None) -> bool:
    """Whether an address is one of those that only its own network knows."""
    return ip is not None and (classify_address(ip) in _INSIDE or (ip.version == 4 and ip in _DS_LITE))


def is_neighbour(remote: IPAddress, local: IPAddress) -> bool:
    """Whether `remote` is surely not on the internet as seen from `local`: private, or in the same /64."""
    if remote == local or classify_address(remote) in _NEAR:
        return True
    shift = _IPV6_BITS - _SUBNET_BITS
    return remote.version == local.version == 6 and int(remote) >> shift == int(local) >> shift


def find_signs(message: SipMessage, source: Endpoint, wanted: NatTest) -> NatTest:
    """Which of the `wanted` signs `message` bears, which came from `source`; what is malformed has none."""
    found = [sign for look in _looks(wanted) for sign in look(message, source)]
    return reduce(or_, found) & wanted if found else _NO_SIGN


def _signs_of_source(_message: SipMessage, source: Endpoint) -> Iterable[NatTest]:
    return [NatTest.SOURCE_INSIDE] if is_inside(source.ip) else ()


def _signs_of_via(message: SipMessage, source: Endpoint) -> Iterable[NatTest]:
    try:
        via = message.top_via if message.is_request else None
    except DecodeError:
        return
    if via is None:
        return
    if via.transport in ("WS", "WSS"):
        yield NatTest.WEBSOCKET
    if via.ip is None:
        return
    if is_inside(via.ip):
        yield NatTest.VIA_INSIDE
    if via.ip != source.ip:
        yield NatTest.RECEIVED_DIFFERS
    if via.transport == "UDP" and port_of(via) != source.port:
        yield NatTest.PORT_DIFFERS


def port_of(via: Via) -> int:
    """The port of a Via's sent-by, or what it is where none is written (RFC 3261 §18.2.2)."""
    if via.port is not None:
        return via.port
    return SIPS_PORT if via.transport == "TLS" else SIP_PORT


def _signs_of_target(message: SipMessage, _source: Endpoint) -> Iterable[NatTest]:
    try:
        ip = None if message.request_uri is None else SipUri.parse(message.data, message.request_uri).ip
    except DecodeError:
        return ()
    return [NatTest.TARGET_INSIDE] if is_inside(ip) else ()


def _signs_of_contact(message: SipMessage, source: Endpoint) -> Iterable[NatTest]:
    for uri in _contact_uris(message):
        endpoint = endpoint_of(uri)
        if endpoint is not None and is_inside(endpoint.ip):
            yield NatTest.CONTACT_INSIDE
        if endpoint is not None and endpoint.port != source.port:
            yield NatTest.CONTACT_PORT_DIFFERS


def _contact_uris(message: SipMessage) -> list[SipUri]:
    try:
        return [contact.uri for contact in message.contacts if contact.uri is not None]
    except DecodeError:
        return []


def _signs_of_sdp(message: SipMessage, source: Endpoint) -> Iterable[NatTest]:
    for part in sdp_parts(message):
        try:
            description = SessionDescription.parse(message.data, part.span)
        except DecodeError:
            continue
        for media in description.media:
            ip = None if media.endpoint is None else media.endpoint.ip
            if ip is None or ip.is_unspecified or ip.is_multicast:
                continue
            if is_inside(ip):
                yield NatTest.SDP_INSIDE
            if ip != source.ip:
                yield NatTest.SDP_DIFFERS


_LOOKS: tuple[tuple[NatTest, Callable[[SipMessage, Endpoint], Iterable[NatTest]]], ...] = (
    (NatTest.SOURCE_INSIDE, _signs_of_source),
    (ABOUT_THE_VIA, _signs_of_via),
    (NatTest.TARGET_INSIDE, _signs_of_target),
    (NatTest.CONTACT_INSIDE | NatTest.CONTACT_PORT_DIFFERS, _signs_of_contact),
    (NatTest.SDP_INSIDE | NatTest.SDP_DIFFERS, _signs_of_sdp),
)


@cache
def _looks(wanted: NatTest) -> Sequence[Callable[[SipMessage, Endpoint], Iterable[NatTest]]]:
    """What has to be looked at for the `wanted` signs."""
    return [look for signs, look in _LOOKS if signs & wanted]


def read_alias(uri: SipUri) -> tuple[Endpoint, str] | None:
    """Where a URI's alias leads, and by which transport; None where it has none that can be."""
    param = uri.param("alias")
    match = None if param is None or param.value is None else _ALIAS.fullmatch(param.value)
    ip = None if match is None else read_ip(match[1])
    if match is None or ip is None or not 0 < int(match[2]) <= 0xFFFF:
        return None
    return Endpoint(ip, int(match[2])), _TRANSPORTS[match[3]]


def without_alias(data: bytes, uri: SipUri) -> bytes:
    """The URI, which stands in `data`, as it was before an alias was added."""
    start, end = uri.span
    param = uri.param("alias")
    if param is None:
        return data[start:end]
    param_end = (param.value_span or param.name_span).end
    return data[start : param.name_start - 1] + data[param_end:end]


def has_gruu(message: SipMessage) -> bool:
    """Whether a Contact is a GRUU (RFC 5627), which leads to a registrar, and from there to the phone."""
    if b";gr" not in message.first_value("contact"):
        return False
    return any(uri.param("gr") is not None for uri in _contact_uris(message))


def fix_contacts(message: SipMessage, source: Endpoint, transport: str, fix: ContactFix) -> bool:
    """Make each Contact of `message` lead back to `source`, once; an alias of before is replaced.

    Left alone are those that lead there already, GRUUs, URIs of other schemes, and `*`. Says whether any
    leads there only by what was done, or is a GRUU, which never does. Nothing is done where a Contact is
    malformed.
    """
    try:
        contacts = message.contacts
    except DecodeError:
        return False
    fixed = False
    for contact in contacts:
        uri = contact.uri
        if uri is None or uri.scheme not in ("sip", "sips"):
            continue
        if uri.param("gr") is not None:  # it is compared letter by letter, and leads to the phone's registrar
            fixed = True
            continue
        if fix is ContactFix.NONE:
            continue
        leads_there = endpoint_of(uri) == source and transport_of(uri) == transport
        if leads_there and uri.param("alias") is None:
            continue
        if fix is ContactFix.REWRITE:
            message.edit(uri.host_port_span, str(source).encode())
        else:
            _add_alias(message, uri, source, transport)
        fixed = True
    return fixed


def _add_alias(message: SipMessage, uri: SipUri, source: Endpoint, transport: str) -> None:
    value = b"%b~%d~%b" % (
        b"[%b]" % str(source.ip).encode() if source.is_ipv6 else str(source.ip).encode(),
        source.port,
        _PROTOCOLS[transport],
    )
    param = uri.param("alias")
    if param is not None:
        span = param.value_span
        message.edit(span or Span(param.name_span.end, param.name_span.end), value if span else b"=" + value)
        return
    place = _params_end(uri)
    if _is_bracketed(message, uri):
        message.edit(Span(place, place), b";alias=" + value)
        return
    message.edit(Span(uri.span.start, uri.span.start), b"<")
    message.edit(Span(uri.span.end, uri.span.end), b";alias=%b>" % value)


def _is_bracketed(message: SipMessage, uri: SipUri) -> bool:
    """Whether the URI stands in `<>`; without them its params would be the header's (RFC 3261 §20.10)."""
    return message.data[: uri.span.start].rstrip(b" \t\r\n").endswith(b"<")


def _params_end(uri: SipUri) -> int:
    """Where a param is added to a URI: behind those that are there, before its headers."""
    if not uri.params:
        return uri.host_port_span.end
    last = uri.params[-1]
    span = last.value_span or last.name_span
    return span.end
