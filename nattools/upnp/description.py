"""What a router says it has: root device descriptions, and the services in them (UDA 1.1 §2.3)."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from enum import Enum
from xml.sax import SAXException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from nattools.errors import DecodeError
from nattools.upnp.location import MOST_URL_CHARACTERS, Location
from nattools.upnp.ssdp import printable

MOST_DEPTH = 32
"""A WANConnectionDevice has its services at depth 9."""
MOST_ELEMENTS = 10_000
MOST_SERVICES = 64

_PIECE_CHARACTERS = 1 << 16

_SERVICE_TYPE = re.compile(r"[A-Za-z0-9:._-]{1,200}")
_VERSION = re.compile(r"[1-9][0-9]?", re.ASCII)
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECLARATION = re.compile(r"\A\s*<\?xml\s[^>]{0,200}\?>")
_LATIN_1 = re.compile(
    rb"<\?xml\s[^>]{0,200}\bencoding\s*=\s*[\"'](?:iso-8859-1|latin-?1|windows-1252)[\"']", re.IGNORECASE
)
_DEVICE_FIELDS = frozenset(
    {
        "friendlyname",
        "manufacturer",
        "modelname",
        "modelnumber",
        "udn",
        "devicetype",
        "presentationurl",
    }
)
_SERVICE_FIELDS = frozenset({"servicetype", "serviceid", "controlurl", "eventsuburl"})


class ServiceKind(Enum):
    """The services of a gateway that are used here, by the name in their types."""

    WAN_IP_CONNECTION = "WANIPConnection"
    WAN_PPP_CONNECTION = "WANPPPConnection"
    WAN_IPV6_FIREWALL_CONTROL = "WANIPv6FirewallControl"


_KINDS = {kind.value.lower(): kind for kind in ServiceKind}


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """One service of a gateway. `device_name` is the friendly name of the device that it stands in.

    `service_type` is as the router spells it, since that is what it must be called by; it has only letters,
    digits and `:._-` in it.
    """

    service_type: str
    kind: ServiceKind
    version: int
    service_id: str
    control: Location
    events: Location | None
    device_name: str


@dataclass(frozen=True, slots=True)
class RootDescription:
    """A root device: what it calls itself, its services that are used here, and those that are not to be.

    Texts are printable, on one line and at most 200 characters long; what is missing is empty. The services
    are in the order of the document. `refused` says of each that leads elsewhere why it was left out.
    """

    friendly_name: str
    manufacturer: str
    model_name: str
    model_number: str
    udn: str
    device_type: str
    presentation_url: str | None
    wan_connections: tuple[ServiceDescription, ...]
    firewalls: tuple[ServiceDescription, ...]
    refused: tuple[str, ...]


def parse_description(data: bytes, location: Location) -> RootDescription:
    """Read the root description that came from `location`.

    Elements count by their local names, in any case: the Huawei HG531 has a namespace of its own. URLs are
    relative to URLBase (Linksys WAG200G), else to `location`, and must lead to the host of `location`.
    Raises `DecodeError`, also for DTDs, entities, and more elements or depth than a gateway can need.
    """
    outline = _Outline()
    parser = DefusedExpatParser(forbid_dtd=True)
    parser.setContentHandler(outline)
    try:
        _feed(parser, outline, _text_of(data))
    except DefusedXmlException as error:
        raise DecodeError("the root description is refused: it has a DTD or entities") from error
    except SAXException as error:
        if not outline.is_whole:  # what follows the root element is no matter
            raise DecodeError(f"the root description is not XML: {printable(error.getMessage())}") from error
    if not outline.devices:
        raise DecodeError("the root description has no device in it: this is no UPnP device")
    return _described(outline, location)


def _feed(parser: DefusedExpatParser, outline: _Outline, text: str) -> None:
    """Parse piece by piece, so that a tag of a hundred thousand attributes is given up before its end."""
    for start in range(0, len(text), _PIECE_CHARACTERS):
        piece, steps = text[start : start + _PIECE_CHARACTERS], outline.steps
        parser.feed(piece)
        if len(piece) == _PIECE_CHARACTERS and outline.steps == steps:
            raise DecodeError(
                f"the root description is refused: one tag or comment of over {_PIECE_CHARACTERS} characters"
            )
    parser.close()


def _text_of(data: bytes) -> str:
    """The document without its XML declaration, and without what XML cannot hold: some end it with NULs.

    What is declared to be UTF-8 and is not is read as ISO 8859-1, which can hold any bytes.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    elif _LATIN_1.match(data.lstrip()):
        text = data.decode("latin-1")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return _DECLARATION.sub("", _NOT_XML.sub("", text), count=1).strip()


@dataclass(slots=True)
class _Device:
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Service:
    device: _Device
    fields: dict[str, str] = field(default_factory=dict)


class _Outline(ContentHandler):
    """The devices and services of a document, in its order, and nothing else of it."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[_Device] = []
        self.services: list[_Service] = []
        self.url_base = ""
        self.steps = 0
        self._elements = 0
        self._path: list[str] = []
        self._open_devices: list[_Device] = []
        self._service: _Service | None = None
        self._text: list[str] = []
        self._characters = 0

    @property
    def is_whole(self) -> bool:
        """Whether the root element was there and is closed."""
        return self._elements > 0 and not self._path

    def startElement(self, name: str, _attributes: AttributesImpl) -> None:  # noqa: N802  # SAX calls it so
        self.steps += 1
        self._elements += 1
        if len(self._path) == MOST_DEPTH or self._elements > MOST_ELEMENTS:
            raise DecodeError(
                "the root description is refused: "
                f"it has more than {MOST_ELEMENTS} elements, or is more than {MOST_DEPTH} deep"
            )
        name = name.rpartition(":")[2].lower()
        self._path.append(name)
        self._forget_text()
        if name == "device":
            self._open_devices.append(_Device())
            self.devices.append(self._open_devices[-1])
        elif name == "service" and self._open_devices:
            self._service = _Service(self._open_devices[-1])

    def characters(self, content: str) -> None:
        self.steps += 1
        if self._characters <= MOST_URL_CHARACTERS:  # one too many is kept, so that it is seen to be too long
            self._text.append(content[: MOST_URL_CHARACTERS + 1])
            self._characters += len(content)

    def endElement(self, name: str) -> None:  # noqa: N802  # SAX calls it so
        self.steps += 1
        name = self._path.pop()
        parent = self._path[-1] if self._path else ""
        text = "".join(self._text).strip()
        self._forget_text()
        if name == "device":
            self._open_devices.pop()
        elif name == "service":
            self._end_service()
        elif parent == "service" and name in _SERVICE_FIELDS:
            if self._service is not None:
                self._service.fields.setdefault(name, text)
        elif parent == "device" and name in _DEVICE_FIELDS:
            self._open_devices[-1].fields.setdefault(name, text)
        elif name == "urlbase" and not self._open_devices:
            self.url_base = self.url_base or text

    def _end_service(self) -> None:
        service, self._service = self._service, None
        if service is not None and _kind_of(service.fields.get("servicetype", "")) is not None:
            if len(self.services) == MOST_SERVICES:
                raise DecodeError(f"the root description is refused: more than {MOST_SERVICES} WAN services")
            self.services.append(service)

    def _forget_text(self) -> None:
        self._text.clear()
        self._characters = 0


def _kind_of(service_type: str) -> ServiceKind | None:
    parts = service_type.lower().split(":")
    return next((_KINDS[part] for part in parts if part in _KINDS), None)


def _described(outline: _Outline, location: Location) -> RootDescription:
    services: list[ServiceDescription] = []
    refused: list[str] = []
    base, base_refused = location, None
    if outline.url_base:
        try:
            base = location.join(outline.url_base)
        except DecodeError as error:
            base_refused = f"its URLBase: {error}"
    for service in outline.services:
        try:
            services.append(_service_of(service, base, base_refused, refused))
        except DecodeError as error:
            refused.append(printable(f"{service.fields['servicetype']}: {error}"))
    root = outline.devices[0].fields
    texts = {name: printable(root.get(name, "")) for name in _DEVICE_FIELDS}
    return RootDescription(
        texts["friendlyname"],
        texts["manufacturer"],
        texts["modelname"],
        texts["modelnumber"],
        texts["udn"],
        texts["devicetype"],
        _presentation_url(texts["presentationurl"], base),
        tuple(s for s in services if s.kind is not ServiceKind.WAN_IPV6_FIREWALL_CONTROL),
        tuple(s for s in services if s.kind is ServiceKind.WAN_IPV6_FIREWALL_CONTROL),
        tuple(refused),
    )


def _presentation_url(text: str, base: Location) -> str | None:
    """Where a person finds the router's pages. It is only shown, so it may lead anywhere (Google Wifi)."""
    if not text or text.lower().startswith(("http://", "https://")):
        return text or None
    try:
        return str(base.join(text))
    except DecodeError:
        return None


def _service_of(
    service: _Service, base: Location, base_refused: str | None, refused: list[str]
) -> ServiceDescription:
    """Read one service; of one whose events lead elsewhere only the events are refused."""
    fields = service.fields
    service_type = fields["servicetype"]
    kind = _kind_of(service_type)
    if kind is None or not _SERVICE_TYPE.fullmatch(service_type):
        raise DecodeError("no service type that could be called")

    def located(reference: str) -> Location:
        if base_refused is not None and not reference.lower().startswith("http:"):
            raise DecodeError(base_refused)
        return base.join(reference)

    if not fields.get("controlurl"):
        raise DecodeError("no control URL")
    control = located(fields["controlurl"])
    events = None
    if fields.get("eventsuburl"):
        try:
            events = located(fields["eventsuburl"])
        except DecodeError as error:
            refused.append(printable(f"events of {service_type}: {error}"))
    version = service_type.rpartition(":")[2]
    return ServiceDescription(
        service_type,
        kind,
        int(version) if _VERSION.fullmatch(version) else 1,
        printable(fields.get("serviceid", "")),
        control,
        events,
        printable(service.device.fields.get("friendlyname", "")),
    )
