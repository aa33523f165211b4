"""The promise of UPnP discovery: datagrams, descriptions and URLs give a value or a `DecodeError`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from random import Random

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.upnp.description import RootDescription, parse_description
from nattools.upnp.location import Location, check_location
from nattools.upnp.ssdp import MULTICAST_IPV4, Search, SearchSocket, Watch, parse, search_request
from tests.fuzz.mutator import Target

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "upnp"
"""Root descriptions of real routers, beside the repository; without them the one here must do."""

LOCATION = Location.parse("http://192.168.1.1:5000/rootDesc.xml")
_ON_LINK = (ip_network("192.168.1.0/24"), ip_network("2001:db8::/64"))
_ROUTER = Endpoint.of("192.168.1.1", 1900)
_IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>http://192.168.1.1:5000/</URLBase><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<friendlyName>B&#xf6;x &amp; more</friendlyName><UDN>uuid:1</UDN><presentationURL>/</presentationURL>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<controlURL>ctl?a</controlURL><eventSubURL>/evt</eventSubURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType>
<controlURL>http://192.168.1.1:80/6</controlURL></service></serviceList></device></root>"""


def check(data: bytes) -> str:
    """Hold each reader to its promise on `data`; say which of them read it."""
    outcome = check_datagram(data) or check_description(data)
    if len(data) < 2000:
        outcome = check_url(data.decode("latin-1")) or outcome
    return outcome or "DecodeError"


def check_datagram(data: bytes) -> str | None:
    """A message has printable texts; a search and a watch take anything."""
    search = Search([SearchSocket("lan", _ROUTER.ip)], timeout_s=1, now=0)
    search.receive(data, _ROUTER, now=0)
    Watch(udn="uuid:1", address=_ROUTER.ip).receive(data, _ROUTER)
    try:
        message = parse(data)
    except DecodeError:
        assert search.next_event() is None
        return None
    assert (message.usn + message.server).isprintable()
    return type(message).__name__


def check_description(data: bytes) -> str | None:
    """Whatever is in it, its services stay on their host, and can be called without breaking a header."""
    try:
        description = parse_description(data, LOCATION)
    except DecodeError:
        return None
    for service in (*description.wan_connections, *description.firewalls):
        assert service.control.endpoint.ip == LOCATION.endpoint.ip
        assert service.events is None or service.events.endpoint.ip == LOCATION.endpoint.ip
        assert service.service_type.isascii()
        assert service.service_type.isprintable()
        assert not set(service.service_type) & set(" \"'<>&")
        assert service.version >= 1
        assert (service.service_id + service.device_name).isprintable()
    check_texts(description)
    return "RootDescription"


def check_texts(description: RootDescription) -> None:
    """What may be shown can be shown."""
    texts = (
        description.friendly_name,
        description.manufacturer,
        description.model_name,
        description.model_number,
        description.udn,
        description.device_type,
        description.presentation_url or "",
        *description.refused,
    )
    for text in texts:
        assert text.isprintable()


def check_url(text: str) -> str | None:
    """A URL is written as it is read; one that is joined stays on its host and fits a request line."""
    with suppress(DecodeError):
        joined = LOCATION.join(text)
        assert joined.endpoint.ip == LOCATION.endpoint.ip
        assert joined.target.isascii()
        assert joined.target.isprintable()
        assert " " not in joined.target
    try:
        location = Location.parse(text)
    except DecodeError:
        return None
    assert Location.parse(str(location)) == location
    with suppress(DecodeError):
        check_location(location, source=_ROUTER.ip, on_link=_ON_LINK)
        assert location.endpoint.ip == _ROUTER.ip or location.endpoint.ip in _ON_LINK[1]
    return "Location"


_WORDS = (
    b"<device>",
    b"</device>",
    b"<service>",
    b"</service>",
    b"<URLBase>http://10.0.0.1/</URLBase>",
    b"<controlURL>//127.0.0.1/</controlURL>",
    b"<!DOCTYPE r [<!ENTITY a 'b'>]>",
    b"<![CDATA[",
    b"]]>",
    b"<!--",
    b"&a;",
    b"&#x202e;",
    b"&#xD800;",
    b'<?xml version="1.0" encoding="iso-8859-1"?>',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"WANPPPConnection:2",
    b"http://",
    b"//",
    b"[::1]",
    b"@",
    b":",
    b"\r\n",
    b"\r\n\r\n",
    b"NTS: ssdp:byebye\r\n",
    b"BOOTID.UPNP.ORG: 2\r\n",
    b"LOCATION:",
)


def put_word(data: bytearray, random: Random) -> None:
    """Put in something that means something to one of the readers."""
    position = random.randrange(len(data) + 1)
    data[position:position] = random.choice(_WORDS)


def change_case(data: bytearray, random: Random) -> None:
    """Swap the case of a short run."""
    start = random.randrange(len(data) + 1)
    data[start : start + 16] = data[start : start + 16].swapcase()


def seeds() -> Sequence[bytes]:
    """One or two of each, and the corpus where it is there."""
    answer = (
        f"HTTP/1.1 200 OK\r\nLOCATION: {LOCATION}\r\nST: {_IGD}\r\nUSN: uuid:1::{_IGD}\r\nSERVER: a/1\r\n\r\n"
    )
    notification = (
        f"NOTIFY * HTTP/1.1\r\nHOST: {MULTICAST_IPV4}\r\nLOCATION: {LOCATION}\r\nNT: {_IGD}\r\n"
        f"NTS: ssdp:alive\r\nUSN: uuid:1::{_IGD}\r\nBOOTID.UPNP.ORG: 1\r\nNEXTBOOTID.UPNP.ORG: 2\r\n\r\n"
    )
    urls = (str(LOCATION), "http://[2001:db8::1]:5000/a?b#c", "../ctl?Layer3Forwarding", "//192.168.1.1/a b")
    texts = (answer, notification, *urls, _DESCRIPTION)
    corpus = (path.read_bytes() for path in sorted(CORPUS.glob("*.xml")))
    return (*(text.encode() for text in texts), search_request(_IGD, MULTICAST_IPV4), *corpus)


TARGET = Target("upnp_discovery", seeds, check, (put_word, change_case))
