"""A fake router without its sockets: what it is like, and what it says.

Sources: UPnP Device Architecture 1.1 (UDA) for SSDP, descriptions, SOAP and events; WANIPConnection:2 for the
actions. Texts are templates: `{host}` and `{port}` are the router's web server, `{decoy_host}` and
`{decoy_port}` a server that nobody has any business with. Texts may hold any bytes, as lone surrogates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from urllib.parse import urljoin, urlsplit

_SCHEMAS = "urn:schemas-upnp-org"
IGD = _SCHEMAS + ":device:InternetGatewayDevice:"
WAN_IP = _SCHEMAS + ":service:WANIPConnection:"
WAN_PPP = _SCHEMAS + ":service:WANPPPConnection:"
FIREWALL = _SCHEMAS + ":service:WANIPv6FirewallControl:1"

OWN_ADDRESS = "11.22.33.2"
DESCRIPTION_PATH = "/rootDesc.xml"

Arguments = dict[str, str]
"""Of an action, in or out, by name."""


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses that a template can name."""

    host: str
    port: int
    decoy_host: str
    decoy_port: int

    def fill(self, template: str, **values: str) -> str:
        """Put addresses, and `values`, into a template."""
        for one in fields(self):
            values[one.name] = str(getattr(self, one.name))
        for name, value in values.items():
            template = template.replace("{" + name + "}", value)
        return template


def encoded(text: str) -> bytes:
    """The bytes of a text: UTF-8, and whatever else its lone surrogates stand for."""
    return text.encode("utf-8", "surrogateescape")


def escaped(text: str) -> str:
    """Text for inside an element."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- Descriptions (UDA 1.1 §2.3) ---


@dataclass(frozen=True, slots=True)
class Service:
    """A service, and how its WAN connection is; no `external_address` of its own means the router's."""

    type: str = WAN_IP + "2"
    id: str = "urn:upnp-org:serviceId:WANIPConn1"
    control: str = "/ctl/IPConn"
    events: str = "/evt/IPConn"
    scpd: str = "/WANIPCn.xml"
    status: str = "Connected"
    external_address: str | None = None

    @property
    def version(self) -> int:
        """The version at the end of the type."""
        return int(self.type.rpartition(":")[2])


IP1 = Service(type=WAN_IP + "1")
IP2 = Service()
PINHOLES = Service(
    FIREWALL, "urn:upnp-org:serviceId:WANIPv6Firewall1", "/ctl/IP6FCtl", "/evt/IP6FCtl", "/WANIP6FC.xml"
)


@dataclass(frozen=True, slots=True)
class Root:
    """A root device. Each of `wan` stands in a WANDevice of its own."""

    type: str = IGD + "2"
    path: str = DESCRIPTION_PATH
    wan: tuple[Service, ...] = (IP2,)
    firewall: Service | None = PINHOLES
    friendly_name: str = "Fake router"
    manufacturer: str = "nattools"
    model_name: str = "Fake IGD"
    model_number: str = "1"
    udn: str = "uuid:6a0ce2f8-0e4b-4c4b-9d4e-0123456789ab"
    url_base: str = ""
    namespace: str = _SCHEMAS + ":device-1-0"
    domain: str = _SCHEMAS

    @property
    def services(self) -> tuple[Service, ...]:
        """All services."""
        return self.wan if self.firewall is None else (*self.wan, self.firewall)

    def path_of(self, reference: str, places: Places) -> str:
        """The request target of a URL in the description, "" if it leads to another host or port."""
        own = f"http://{places.host}:{places.port}"
        try:
            base = urljoin(own + self.path, places.fill(self.url_base))
            url = urlsplit(urljoin(base, places.fill(reference)))
        except ValueError:
            return ""
        if url.netloc != urlsplit(own).netloc:
            return ""
        return url.path + (f"?{url.query}" if url.query else "")

    def advertised(self) -> Iterator[tuple[str, str]]:
        """Each NT and its USN (UDA 1.1 §1.2.2)."""
        yield "upnp:rootdevice", f"{self.udn}::upnp:rootdevice"
        yield self.udn, self.udn
        types = [
            self.type,
            f"{self.domain}:device:WANDevice:1",
            f"{self.domain}:device:WANConnectionDevice:1",
        ]
        for type_ in (*types, *dict.fromkeys(service.type for service in self.services)):
            yield type_, f"{self.udn}::{type_}"


ROOT1 = Root(IGD + "1", wan=(IP1,), firewall=None)
ROOT2 = Root()


def root_description(root: Root) -> str:
    """The document of a root device, as a template."""
    base = f"<URLBase>{escaped(root.url_base)}</URLBase>" if root.url_base else ""
    devices = "".join(
        _device(root, f"{root.domain}:device:WANDevice:1", f"WANDevice{number}", inner=wan_connection)
        for number, wan_connection in enumerate(_wan_connections(root), 1)
    )
    return (
        f'<?xml version="1.0"?>\r\n<root xmlns="{root.namespace}">'
        f"<specVersion><major>1</major><minor>1</minor></specVersion>{base}"
        f"{_device(root, root.type, root.friendly_name, inner=devices)}</root>\r\n"
    )


def _wan_connections(root: Root) -> Iterator[str]:
    for number, service in enumerate(root.wan or (None,), 1):
        services = [service] if service is not None else []
        if number == 1 and root.firewall is not None:
            services.append(root.firewall)
        listed = "".join(
            f"<service><serviceType>{one.type}</serviceType><serviceId>{one.id}</serviceId>"
            f"<SCPDURL>{escaped(one.scpd)}</SCPDURL><controlURL>{escaped(one.control)}</controlURL>"
            f"<eventSubURL>{escaped(one.events)}</eventSubURL></service>"
            for one in services
        )
        yield _device(
            root,
            f"{root.domain}:device:WANConnectionDevice:1",
            f"WANConnectionDevice{number}",
            services=listed,
        )


def _device(root: Root, type_: str, name: str, *, services: str = "", inner: str = "") -> str:
    udn = root.udn if type_ == root.type else f"{root.udn}-{name}"
    return (
        f"<device><deviceType>{type_}</deviceType><friendlyName>{escaped(name)}</friendlyName>"
        f"<manufacturer>{escaped(root.manufacturer)}</manufacturer>"
        f"<modelName>{escaped(root.model_name)}</modelName>"
        f"<modelNumber>{escaped(root.model_number)}</modelNumber><UDN>{escaped(udn)}</UDN>"
        + (f"<serviceList>{services}</serviceList>" if services else "")
        + (f"<deviceList>{inner}</deviceList>" if inner else "")
        + "</device>"
    )


SCPD = (
    '<?xml version="1.0"?>\r\n<scpd xmlns="urn:schemas-upnp-org:service-1-0">'
    "<specVersion><major>1</major><minor>0</minor></specVersion>"
    "<actionList/><serviceStateTable/></scpd>\r\n"
)

# --- SSDP (UDA 1.1 §1.2, §1.3) ---

ANSWER = (
    "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {st}\r\nUSN: {usn}\r\nEXT:\r\n"
    "SERVER: Linux/5 UPnP/1.1 Fake/1\r\nLOCATION: {location}\r\n"
    'OPT: "http://schemas.upnp.org/upnp/1/0/"; ns=01\r\n'
    "01-NLS: {boot_id}\r\nBOOTID.UPNP.ORG: {boot_id}\r\nCONFIGID.UPNP.ORG: 1337\r\n\r\n"
)
NOTIFY = (
    "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nCACHE-CONTROL: max-age=120\r\n"
    "LOCATION: {location}\r\nSERVER: Linux/5 UPnP/1.1 Fake/1\r\nNT: {st}\r\nUSN: {usn}\r\n"
    "NTS: {nts}\r\nBOOTID.UPNP.ORG: {boot_id}\r\nCONFIGID.UPNP.ORG: 1337\r\n\r\n"
)

# --- SOAP (UDA 1.1 §3) ---

_SOAP = (
    'xmlns:{prefix}="http://schemas.xmlsoap.org/soap/envelope/" '
    '{prefix}:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"'
)
REPLY = (
    f'<?xml version="1.0"?>\r\n<{{prefix}}:Envelope {_SOAP}><{{prefix}}:Body>'
    '<u:{action}Response xmlns:u="{type}">{arguments}</u:{action}Response>'
    "</{prefix}:Body></{prefix}:Envelope>\r\n"
)
FAULT = (
    f'<?xml version="1.0"?>\r\n<{{prefix}}:Envelope {_SOAP}><{{prefix}}:Body><{{prefix}}:Fault>'
    "<faultcode>{prefix}:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
    '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
    "<errorDescription>{description}</errorDescription></UPnPError></detail>"
    "</{prefix}:Fault></{prefix}:Body></{prefix}:Envelope>\r\n"
)
EVENT = (
    '<?xml version="1.0"?>\r\n<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0">'
    "{properties}</e:propertyset>\r\n"
)


# --- Behaviour ---

Conduct = Callable[[asyncio.StreamWriter, Places], Awaitable[None]]
"""What a router does instead of answering an HTTP request; afterwards the connection is closed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table of port mappings; `lease_s` 0 is for ever."""

    external_port: int
    protocol: str
    internal_client: str
    internal_port: int
    lease_s: int = 0
    description: str = ""
    remote_host: str = ""
    enabled: str = "1"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A UPnP error, for so many calls of an action, or for all."""

    code: int
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Every way in which a fake router differs from others. A code of None refuses nothing."""

    # How it is found
    roots: tuple[Root, ...] = (ROOT2,)
    answers_multicast: bool = True
    answers_unicast: bool = True
    answers_from_new_port: bool = False
    answers_from_other_address: bool = False
    """Search answers and LOCATION are of the router's second address."""
    answers_by_notify: bool = False
    """To the multicast group where it has an interface, else to who searches."""
    answer_delay_s: float = 0
    answer_copies: int = 1
    all_gets_first_only: bool = False
    """An `ssdp:all` is answered for the first device only."""
    answers_only: tuple[str, ...] | None = None
    other_devices: tuple[tuple[str, str], ...] = ()
    """Advertised before the router: type, and the path of the description."""
    answer: str = ANSWER
    notification: str = NOTIFY
    locations: tuple[str, ...] | None = None
    """Instead of the true LOCATION; `{number}` counts the answers of a flood."""
    flood: int = 0
    """So many answers to the first search, each of another device."""

    # HTTP, SOAP and events
    wants_one_segment: bool = False
    is_strict_http: bool = False
    """Breaks off at a half-close, at Expect and at chunks."""
    is_naive_xml: bool = False
    """Knows no other entities than `&lt;` `&gt;` `&amp;`, and no default namespaces."""
    conduct: Mapping[str, Conduct] = field(default_factory=dict)
    """By "description", "scpd", "events", "control", "unknown" (an action), or the name of an action."""
    conduct_after: Mapping[str, Conduct] = field(default_factory=dict)
    """The action is carried out first."""
    prefix: str = "s"
    fault: str = FAULT
    fault_status: str = "500 Internal Server Error"
    fault_on: Mapping[str, Refusal | int] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Out arguments to be replaced, by action."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Out arguments that go by another name."""
    is_evented: bool = True
    event_timeout: str = "Second-1800"
    sid: str = "uuid:{boot_id}-{number}"

    # The connection and the table
    external_address: str = OWN_ADDRESS
    entries: tuple[Entry, ...] = ()
    is_secure: bool = True
    not_yours_code: int = 606
    conflict_code: int = 718
    lower_case_protocol_code: int | None = None
    lease_code: int | None = None
    permanent_code: int | None = None
    port_zero_code: int | None = 716
    other_port_code: int | None = None
    """External and internal port differ."""
    remote_host_code: int | None = None
    forbidden_ports: range = range(0)
    forbidden_code: int = 501
    most_entries: int = 1000
    full_code: int = 728
    longest_lease_s: int = 604_800
    pretends: bool = False
    """Says yes, and maps nothing."""
    description_form: Callable[[str], str] = str
    endless_entries: Callable[[int], Entry] | None = None
    """The row of any index, so that the walk has no end."""
