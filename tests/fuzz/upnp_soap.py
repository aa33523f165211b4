"""The promise of UPnP control and eventing: bytes give a value, a `UpnpError` or a `DecodeError`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv6Address
from random import Random
from typing import Any

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError, UpnpError
from nattools.upnp.gena import parse_event
from nattools.upnp.igd import (
    Action,
    AddAnyPortMapping,
    AddPinhole,
    GetExternalIPAddress,
    GetFirewallStatus,
    GetGenericPortMappingEntry,
    GetListOfPortMappings,
    GetPinholePackets,
    GetSpecificPortMappingEntry,
    GetStatusInfo,
    PortMappingEntry,
)
from nattools.upnp.soap import encode_call, parse_reply
from tests.fuzz.mutator import Target

SERVICE_TYPE = "urn:schemas-upnp-org:service:WANIPConnection:1"
_INTERNAL = Endpoint.of("192.168.1.20", 5070)
_EVENT_HEADERS = (("NT", "upnp:event"), ("NTS", "upnp:propchange"), ("SID", "uuid:1"), ("SEQ", "1"))
READERS: tuple[Action[Any], ...] = (
    GetExternalIPAddress(),
    GetStatusInfo(),
    AddAnyPortMapping(_INTERNAL, 5070, TransportProtocol.UDP, 60),
    GetGenericPortMappingEntry(0),
    GetSpecificPortMappingEntry(5070, TransportProtocol.UDP),
    GetListOfPortMappings(1, 65535, TransportProtocol.UDP),
    GetFirewallStatus(),
    AddPinhole(IPv6Address("2001:db8::1"), 5070, TransportProtocol.UDP, 60),
    GetPinholePackets(1),
)
"""Every action that has something to read."""


def check(data: bytes) -> str:
    """Hold all readers to their promise on `data`; say what it was as a reply."""
    with suppress(DecodeError):
        assert parse_event(_EVENT_HEADERS, data).properties
    check_values({"newportlisting": data.decode("latin-1")})
    try:
        reply = parse_reply(200, data, "Action")
    except UpnpError:
        return "UpnpError"
    except DecodeError:
        return "DecodeError"
    check_values(reply)
    return "reply"


def check_values(reply: dict[str, str]) -> None:
    """Every action reads the reply, or says that it cannot."""
    for action in READERS:
        with suppress(DecodeError):
            value = action.parse(reply)
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, PortMappingEntry):
                    assert entry.internal is None or entry.internal.port == entry.internal_port
                    assert entry.lease_s is None or entry.lease_s > 0


_TOKENS = (
    b"<",
    b">",
    b"</",
    b"/>",
    b"&",
    b"&#0;",
    b"&amp;",
    b"<![CDATA[",
    b"]]>",
    b"<!DOCTYPE a>",
    b'<?xml version="1.0" encoding="utf-16"?>',
    b"<UPnPError>",
    b"<errorCode>",
    b"-1",
    b"65536",
    b"0.0.0.0",
    b"\0",
    b"\xff",
)


def put_token(data: bytearray, random: Random) -> None:
    """Put a piece of XML, or a value at some border, somewhere."""
    start = random.randrange(len(data) + 1)
    data[start:start] = random.choice(_TOKENS)


def _elements(data: bytearray) -> list[int]:
    return [position for position, byte in enumerate(data) if byte == ord("<")]


def swap_elements(data: bytearray, random: Random) -> None:
    """Take a tag with what follows it, and put it before another one."""
    if len(starts := _elements(data)) < 3:
        return
    first = random.randrange(len(starts) - 1)
    piece = bytes(data[starts[first] : starts[first + 1]])
    del data[starts[first] : starts[first + 1]]
    start = random.choice(_elements(data))
    data[start:start] = piece


def change_text(data: bytearray, random: Random) -> None:
    """Change what stands between two tags."""
    if not (ends := [position for position, byte in enumerate(data) if byte == ord(">")]):
        return
    start = random.choice(ends) + 1
    end = data.find(b"<", start)
    if end >= 0:
        data[start:end] = random.choice((b"", b"0", b"-1", b"65536", b"1" * 40, b"Up", b"::", b"\xc3\xa9"))


def _reply(action: str, arguments: str) -> bytes:
    return (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<u:{action}Response xmlns:u="{SERVICE_TYPE}">{arguments}</u:{action}Response></s:Body></s:Envelope>'
    ).encode()


def seeds() -> Sequence[bytes]:
    """A reply of each kind, a fault, an event, a listing by itself, and a call."""
    row = (
        "<NewRemoteHost></NewRemoteHost><NewExternalPort>5060</NewExternalPort><NewProtocol>UDP</NewProtocol>"
        "<NewInternalPort>5070</NewInternalPort><NewInternalClient>192.168.1.20</NewInternalClient>"
        "<NewEnabled>1</NewEnabled><NewPortMappingDescription>phone &amp; fax</NewPortMappingDescription>"
        "<NewLeaseDuration>3600</NewLeaseDuration>"
    )
    entry = f"<p:PortMappingEntry>{row}</p:PortMappingEntry>"
    listing = f'<p:PortMappingList xmlns:p="urn:x">{entry}</p:PortMappingList>'
    status = (
        "<NewConnectionStatus>Connected</NewConnectionStatus>"
        "<NewLastConnectionError>ERROR_NONE</NewLastConnectionError><NewUptime>42</NewUptime>"
    )
    fault = (
        "<Envelope><Body><Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        "<UPnPError><errorCode>718</errorCode><errorDescription>Conflict</errorDescription></UPnPError></detail>"
        "</Fault></Body></Envelope>"
    )
    event = (
        '<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0"><e:property><ExternalIPAddress>11.22.33.2'
        "</ExternalIPAddress></e:property></e:propertyset>"
    )
    return (
        _reply("GetExternalIPAddress", "<NewExternalIPAddress>11.22.33.2</NewExternalIPAddress>"),
        _reply("GetStatusInfo", status),
        _reply("GetGenericPortMappingEntry", row),
        _reply("AddAnyPortMapping", "<NewReservedPort>40000</NewReservedPort>"),
        _reply("GetListOfPortMappings", f"<NewPortListing><![CDATA[{listing}]]></NewPortListing>"),
        _reply("AddPinhole", "<UniqueID>7</UniqueID><PinholePackets>8</PinholePackets>"),
        _reply(
            "GetFirewallStatus",
            "<FirewallEnabled>1</FirewallEnabled><InboundPinholeAllowed>0</InboundPinholeAllowed>",
        ),
        listing.encode(),
        fault.encode(),
        event.encode(),
        encode_call(SERVICE_TYPE, "AddPortMapping", READERS[2].arguments())[1],
    )


TARGET = Target("upnp_soap", seeds, check, (put_token, swap_elements, change_text))
