"""SOAP as UPnP speaks it: a call out, its reply or its fault in (UPnP Device Architecture 1.1 §3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, XMLParser

from nattools.errors import DecodeError, EncodeError, UpnpError
from nattools.upnp.faults import NO_CODE, fault

MOST_DEPTH = 16
MOST_ELEMENTS = 20_000
"""A listing of 1000 port mappings has 9000."""
MOST_TAG_BYTES = 1 << 16
"""About so long may a tag be: the attributes of one of 1 MiB would take 30 times as much."""
MOST_CODE_DIGITS = 6

_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
_ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SERVICE_TYPE = re.compile(r"[A-Za-z0-9:._-]+")
_STRAY_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")


def encode_call(
    service_type: str, action: str, arguments: Sequence[tuple[str, str]]
) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Encode a call of `action`: the headers, and the body (UDA 1.1 §3.2.1).

    Raises `EncodeError` for text that XML 1.0 cannot carry, and for a service type or a name that is none:
    the service type is what the router wrote into its description, and it goes into a header.
    """
    if not _SERVICE_TYPE.fullmatch(service_type):
        raise EncodeError(f"{service_type[:80]!r} is not a service type")
    for name in (action, *(name for name, _ in arguments)):
        if not _NAME.fullmatch(name):
            raise EncodeError(f"{name[:80]!r} is not the name of an action or argument")
    encoded = "".join(f"<{name}>{_escape(name, text)}</{name}>" for name, text in arguments)
    # Envelopes with a default namespace are answered with 500 by some servers; a prefix suits all.
    body = (
        '<?xml version="1.0"?>\r\n'
        f'<s:Envelope xmlns:s="{_ENVELOPE}" s:encodingStyle="{_ENCODING}">'
        f'<s:Body><u:{action} xmlns:u="{service_type}">{encoded}</u:{action}></s:Body></s:Envelope>\r\n'
    )
    headers = (
        ("Content-Type", 'text/xml; charset="utf-8"'),
        ("SOAPAction", f'"{service_type}#{action}"'),
    )
    return headers, body.encode()


def parse_reply(status: int, body: bytes, action: str, *, firewall: bool = False) -> dict[str, str]:
    """Read the reply to a call of `action`: its out arguments, by name in lower case (UDA 1.1 §3.2.2).

    Element names count without their namespace, and in any case: routers differ in both. `firewall` says that
    a WANIPv6FirewallControl service was called, whose fault codes mean other things.
    Raises `UpnpError`, of the class of its code, for a fault under any HTTP status (MikroTik sends them with
    200), and `DecodeError` for what is no SOAP reply.
    """
    try:
        root = parse_xml(body)
    except DecodeError as error:
        raise DecodeError(f"{action} was answered with HTTP status {status} and no SOAP: {error}") from error
    for element in root.iter():
        if local_name(element) in ("fault", "upnperror"):
            raise _fault(element, action, firewall=firewall)
    if not 200 <= status <= 299:
        raise DecodeError(f"{action} was answered with HTTP status {status} and no SOAP fault")
    answer = _answer(root)
    if answer is None:
        raise DecodeError(
            f"{action} was answered with <{local_name(root)[:40]}>, which holds no SOAP response"
        )
    return texts_in(answer)


def parse_xml(data: bytes) -> Element:
    """Read an XML document of bounded depth and size, without a DTD. Raises `DecodeError`.

    Text that is nearly XML is repaired: bytes that are no UTF-8, a bare `&`, control characters. A mapping's
    description is what some host on the LAN gave, and not every router looks at it before handing it on.
    """
    data = data.strip(b" \t\r\n\0")
    try:
        return _parse_xml(data)
    except _NotWellFormedError as error:
        text = _NOT_XML.sub("", data.decode("utf-8", "replace"))
        repaired = _STRAY_AMPERSAND.sub("&amp;", text).encode()
        if repaired == data:
            raise DecodeError(str(error)) from error
    try:
        return _parse_xml(repaired)
    except _NotWellFormedError as error:
        raise DecodeError(str(error)) from error


def local_name(element: Element) -> str:
    """The name of an element, without its namespace and in lower case."""
    return str(element.tag).rpartition("}")[2].rpartition(":")[2].lower()


def text_of(element: Element) -> str:
    """The text in an element, without the white space around it."""
    return "".join(element.itertext()).strip()


def texts_in(element: Element) -> dict[str, str]:
    """The texts of the elements in `element`, by their names in lower case."""
    return {local_name(part): text_of(part) for part in element}


class _NotWellFormedError(DecodeError):
    """What XML does not allow; it may be repaired."""


class _BoundedBuilder(TreeBuilder):
    """Builds the tree, up to a depth and a number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        """Open an element; raises `DecodeError` where it is one too many."""
        self.events += 1
        self._depth += 1
        self._elements += 1
        if self._depth > MOST_DEPTH:
            raise DecodeError(f"the XML is nested deeper than {MOST_DEPTH} elements")
        if self._elements > MOST_ELEMENTS:
            raise DecodeError(f"the XML has more than {MOST_ELEMENTS} elements")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        """Close it."""
        self.events += 1
        self._depth -= 1
        return super().end(tag)

    def data(self, data: str, /) -> None:
        """Take a piece of text."""
        self.events += 1
        super().data(data)


def _parse_xml(data: bytes) -> Element:
    builder = _BoundedBuilder()
    parser = XMLParser(target=builder, forbid_dtd=True)
    try:
        for start in range(0, len(data), MOST_TAG_BYTES):
            if start and not builder.events:
                raise DecodeError(f"the XML has a tag of more than {MOST_TAG_BYTES} bytes")
            builder.events = 0
            parser.feed(data[start : start + MOST_TAG_BYTES])
        root = parser.close()
    except ParseError as error:
        raise _NotWellFormedError(f"the XML is not well-formed: {error}") from error
    except DefusedXmlException as error:
        raise DecodeError("the XML has a DTD, which UPnP has no use for") from error
    except (ValueError, LookupError) as error:
        raise DecodeError(f"the XML is in an encoding that cannot be read: {error}") from error
    if not isinstance(root, Element):
        raise DecodeError("the XML has no element")
    return root


def _escape(name: str, text: str) -> str:
    """Escape `&`, `<` and `>` only: some servers do not decode `&quot;` and `&apos;`."""
    if bad := _NOT_XML.search(text):
        raise EncodeError(f"{name} has the character U+{ord(bad[0]):04X}, which XML cannot carry")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _answer(root: Element) -> Element | None:
    """The element in the body of the envelope whose name ends in "Response"."""
    for body in root.iter():
        if local_name(body) == "body":
            return next((child for child in body if local_name(child).endswith("response")), None)
    return None


def _fault(element: Element, action: str, *, firewall: bool) -> UpnpError:
    """The error that a fault tells (UDA 1.1 §3.2.2)."""
    code = _text_of_first(element, "errorcode")
    return fault(
        int(code) if code.isascii() and code.isdigit() and len(code) <= MOST_CODE_DIGITS else NO_CODE,
        _text_of_first(element, "errordescription") or _text_of_first(element, "faultstring"),
        action=action,
        firewall=firewall,
    )


def _text_of_first(element: Element, name: str) -> str:
    return next((text_of(part) for part in element.iter() if local_name(part) == name), "")
