"""What the Contacts of a REGISTER ask for (RFC 3261 §10.2.1, RFC 5626 §6, RFC 5627 §5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import DecodeError
from nattools.sip.comparison import canonical_host
from nattools.sip.headers import NameAddress, Via
from nattools.sip.message import SipMessage
from nattools.sip.uri import Param, SipUri

_FOLD = re.compile(rb"\s*[\r\n]\s*")
_URI = re.compile(rb"[^\x00-\x20\x7f<>\"]+")
_DIGITS = re.compile(rb"[0-9]+")
_Q = re.compile(rb"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_INSTANCE = re.compile(rb"\"<([^\s<>\"\\]+)>\"")
_IN_USER = "!~*'()&=+$,;?/"  # besides letters, digits and -_. (RFC 3261 §25.1)
_IN_PARAM = "!~*'()[]/:&+$"
_MOST_CONTACT_BYTES = 1024
_LONGEST_S = 2**32 - 1
_LARGEST_REG_ID = 2**31 - 1
_OURS_TO_SAY = frozenset({"expires", "q", "pub-gruu", "temp-gruu", "temp-gruu-cookie"})
_INSIDE = frozenset({AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LINK_LOCAL})


@dataclass(frozen=True, slots=True)
class Wish:
    """One Contact of a REGISTER. `expires_s` is 0 where it is to be taken away.

    `reg_id` is None unless the phone has flows by RFC 5626; `received` is where it is heard from, if its
    contact says something else that only it can know, or if it is behind a NAT.
    """

    contact: bytes
    expires_s: int
    q: float
    params: bytes
    instance: str
    reg_id: int | None
    received: Endpoint | None


def read_wishes(
    request: SipMessage,
    contacts: Iterable[NameAddress],
    source: Endpoint,
    *,
    default_expires_s: int,
    has_outbound: bool,
) -> tuple[Wish, ...]:
    """Read all Contacts, none of them a `*`. Raises `DecodeError`.

    A time that is none counts as none given, as RFC 3261 §10.2.1.1 has it. `has_outbound` is whether the
    phone supports RFC 5626, without which a reg-id means nothing.
    """
    general = read_seconds(request.first_value("expires"))
    default = default_expires_s if general is None else general
    via = _only_via(request)
    return tuple(
        _read_wish(request, contact, default, has_outbound, via, source)
        for contact in contacts
        if contact.uri is not None
    )


def _read_wish(
    request: SipMessage,
    contact: NameAddress,
    default_expires_s: int,
    has_outbound: bool,
    via: Via | None,
    source: Endpoint,
) -> Wish:
    assert contact.uri is not None
    uri = request.data[slice(*contact.uri.span)]
    params = b"".join(_written(param) for param in contact.params if param.name not in _OURS_TO_SAY)
    if not _URI.fullmatch(uri):
        raise DecodeError("a Contact with blanks in its URI")
    if len(uri) + len(params) > _MOST_CONTACT_BYTES:
        raise DecodeError(f"a Contact of more than {_MOST_CONTACT_BYTES} bytes")
    expires_s = read_seconds(_value(contact, "expires"))
    q = _value(contact, "q")
    match = _INSTANCE.fullmatch(_value(contact, "+sip.instance"))
    instance = "" if match is None else match[1].decode("utf-8", "surrogateescape")
    return Wish(
        uri,
        default_expires_s if expires_s is None else expires_s,
        float(q) if _Q.fullmatch(q) else 1.0,
        params,
        instance,
        _read_reg_id(contact) if has_outbound and instance else None,
        None if via is None else _received(contact.uri, via, source),
    )


def _only_via(request: SipMessage) -> Via | None:
    """The Via of a phone that sends to us itself; None where a proxy is in between."""
    return request.top_via if len(request.values("via")) == 1 else None


def _received(uri: SipUri, via: Via, source: Endpoint) -> Endpoint | None:
    """`source`, where the contact is the phone's own idea of where it is, or the phone is behind a NAT.

    A contact that is neither in a private network nor where the Via says is meant as it stands: a phone may
    register another one.
    """
    is_stream = via.transport != "UDP"
    if uri.scheme not in ("sip", "sips"):
        return None
    if not is_stream and uri.endpoint() == source:
        # A phone that has learnt its public endpoint is behind a NAT all the same, which may forget it.
        return source if via.ip is not None and via.ip != source.ip else None
    is_inside = uri.ip is not None and Endpoint(uri.ip, 0).address_class in _INSIDE
    is_own = canonical_host(uri.host) == canonical_host(via.host)
    # Without rport a phone may send from one port and listen at another (RFC 3581 §1).
    is_elsewhere = is_stream or via.has_rport or uri.ip != source.ip
    return source if is_inside or (is_own and is_elsewhere) else None


def read_seconds(value: bytes) -> int | None:
    """The seconds of an expires or Expires, too many of them cut down; None for what is no number."""
    if not _DIGITS.fullmatch(value):
        return None
    digits = value.lstrip(b"0")
    return min(int(digits or b"0"), _LONGEST_S) if len(digits) <= len(str(_LONGEST_S)) else _LONGEST_S


def _read_reg_id(contact: NameAddress) -> int | None:
    number = read_seconds(_value(contact, "reg-id"))
    return number if number is not None and 0 < number <= _LARGEST_REG_ID else None


def _value(contact: NameAddress, name: str) -> bytes:
    param = contact.param(name)
    return b"" if param is None or param.value is None else param.value


def _written(param: Param) -> bytes:
    name = param.name.encode("latin-1")
    return b";" + (name if param.value is None else b"%b=%b" % (name, _FOLD.sub(b" ", param.value)))


def pub_gruu(user: str, instance: str, host: str) -> bytes:
    """The public GRUU of one phone of a user (RFC 5627 §3.1): `"sip:alice@example.com;gr=urn:uuid:..."`."""
    name, gr = (text.encode("utf-8", "surrogateescape") for text in (user, instance))
    return f'"sip:{quote(name, safe=_IN_USER)}@{host};gr={quote(gr, safe=_IN_PARAM)}"'.encode()
