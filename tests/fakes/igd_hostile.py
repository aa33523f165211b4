"""The ways of a fake router, by name: the quirks of real ones, and what a hostile one might do.

The quirks have the numbers of the list of what real routers do. Hostile behaviours that lure a client to
other addresses belong on loopback or in a laboratory, where there is nobody to be harmed.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from tests.fakes.igd_descriptions import (
    ANSWER,
    FAULT,
    IP1,
    IP2,
    NOTIFY,
    REPLY,
    ROOT1,
    ROOT2,
    WAN_IP,
    WAN_PPP,
    Behaviour,
    Conduct,
    Entry,
    Places,
    Root,
    Service,
    encoded,
    escaped,
)

WFA = "urn:schemas-wifialliance-org:device:WFADevice:1"

# --- Manners of speaking ---

MOTLEY_ANSWER = (
    "HTTP/1.1 200 OK\r\nSt:{st}\r\nuSn:{usn}\r\nExt:\r\nServer:\r\nLocation:{location}\r\n\r\n"  # Allegro
)
LOWER_CASE_ANSWER = (
    "HTTP/1.1 200 OK\r\nserver: \r\nlocation: {location}\r\nst: {st}\r\next: \r\nusn: {usn}\r\n\r\n"
)
UPPER_CASE_ANSWER = (
    "HTTP/1.1 200 OK\r\nEXT:\r\nSERVER: FREEBSD/11, UPNP/1.1, MINIUPNPD/2,1,0\r\n"
    "LOCATION: {location}\r\nST: {st}\r\nUSN: {usn}\r\n\r\n"
)
BARE_LINE_FEEDS_ANSWER = "HTTP/1.0 200 OK\nST: {st}\nUSN: {usn}\nLocation: {location}\n\n"
_BOOT_ID = "BOOTID.UPNP.ORG: {boot_id}\r\n"
ANSWER_WITHOUT_BOOT_ID = ANSWER.replace(_BOOT_ID, "").replace("01-NLS: {boot_id}\r\n", "")
NOTIFY_WITHOUT_BOOT_ID = NOTIFY.replace(_BOOT_ID, "")
FAULT_IN_CAMEL_CASE = FAULT.replace("faultcode", "faultCode").replace("faultstring", "faultString")


# --- Conducts ---


def hang_up() -> Conduct:
    """Close the connection instead of answering."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        writer.close()

    return conduct


def reset() -> Conduct:
    """Break the connection."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    return conduct


def never_answer() -> Conduct:
    """Keep the connection, and say nothing."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        await asyncio.Event().wait()

    return conduct


def respond(status: str, body: str = "", *headers: str) -> Conduct:
    """Answer with a status such as "404 Not Found", and a body; both may be templates."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        data = encoded(places.fill(body))
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Connection: close"]
        writer.write(encoded(places.fill("\r\n".join([*head, *headers, "", ""]))) + data)

    return conduct


def endless(start: str, piece: str, *, pause_s: float = 0) -> Conduct:
    """Say `start`, and then `piece` for ever."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        writer.write(encoded(places.fill(start)))
        again = encoded(places.fill(piece))
        while not writer.is_closing():
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return conduct


def after(seconds: float, conduct: Conduct) -> Conduct:
    """Take so long before it."""

    async def waiting(writer: asyncio.StreamWriter, places: Places) -> None:
        await asyncio.sleep(seconds)
        await conduct(writer, places)

    return waiting


def raw(make: Callable[[], bytes]) -> Conduct:
    """Say some bytes, which are made when they are wanted, and hang up."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        writer.write(make())

    return conduct


def document(make: Callable[[], str], *headers: str) -> Conduct:
    """Answer 200 OK with a document that is made when it is wanted."""

    async def conduct(writer: asyncio.StreamWriter, places: Places) -> None:
        await respond("200 OK", make(), *headers)(writer, places)

    return conduct


# --- Quirks of real routers ---


def merged(*behaviours: Behaviour) -> Behaviour:
    """All of them at once; of two that differ from the usual in the same way the later counts."""
    usual = whole = Behaviour()
    for behaviour in behaviours:
        for one in fields(Behaviour):
            value = getattr(behaviour, one.name)
            if isinstance(value, dict):
                value = {**getattr(whole, one.name), **value}
            if value != getattr(usual, one.name):
                whole = replace(whole, **{one.name: value})
    return whole


def _addressed(address: str) -> Behaviour:
    return Behaviour(external_address=address)


def _refusing(code: int, *actions: str) -> Behaviour:
    return Behaviour(fault_on=dict.fromkeys(actions or ("AddPortMapping", "AddAnyPortMapping"), code))


_DSL_FORUM = Root(
    "urn:dslforum-org:device:InternetGatewayDevice:1",
    wan=(
        Service(
            "urn:dslforum-org:service:WANPPPConnection:1", "urn:dslforum-org:serviceId:WANPPPConnection1"
        ),
    ),
    firewall=None,
    manufacturer="Huawei",
    model_name="HG531",
    namespace="urn:dslforum-org:device-1-0",
    domain="urn:dslforum-org",
)
_LIVEBOX = Root(
    wan=(Service(WAN_PPP + "2", "urn:upnp-org:serviceId:WANIPConn1", "/upnp/control/WANIPConn1"),),
    firewall=None,
    manufacturer="Sagemcom",
    model_name="LiveBox",
)
_TWO_WANS = replace(
    ROOT1,
    model_name="Router OS",
    manufacturer="MikroTik",
    wan=(
        replace(IP1, control="/ctl/1", events="/evt/1", status="Disconnected", external_address=""),
        replace(IP1, control="/ctl/2", events="/evt/2"),
    ),
)
_URL_BASE = replace(ROOT1, url_base="http://{host}:{port}/upnp/", wan=(replace(IP1, control="control/WAN1"),))
_ABSOLUTE = replace(
    ROOT1, wan=(replace(IP1, control="http://{host}:{port}/control?Layer3Forwarding", events="/evt"),)
)
_RELATIVE = replace(
    ROOT1, path="/dir/desc.xml", wan=(replace(IP1, control="ctl/IPConn", events="evt/IPConn"),)
)
_SIDE_BY_SIDE = (
    replace(ROOT1, path="/igddesc.xml", model_name="FRITZ!Box"),
    replace(
        ROOT2, path="/igd2desc.xml", model_name="FRITZ!Box", wan=(replace(IP2, control="/igd2upnp/control"),)
    ),
)
_OTHER_HOST = "192.168.0.77"
_THEIRS = Entry(5070, "UDP", _OTHER_HOST, 5070, description="another host's")

QUIRKS: Mapping[int, Mapping[str, Behaviour]] = {
    1: {
        "first-device-only": Behaviour(all_gets_first_only=True, other_devices=((WFA, "/wps.xml"),)),
        "gateway-and-wps": Behaviour(other_devices=((WFA, "/wps.xml"),)),
    },
    2: {
        "multicast-only": Behaviour(answers_unicast=False),
        "unicast-only": Behaviour(answers_multicast=False),
    },
    3: {"new-port": Behaviour(answers_from_new_port=True)},
    4: {"other-address": Behaviour(answers_from_other_address=True)},
    5: {
        "motley-headers": Behaviour(answer=MOTLEY_ANSWER),
        "lower-case-headers": Behaviour(answer=LOWER_CASE_ANSWER),
        "upper-case-headers": Behaviour(answer=UPPER_CASE_ANSWER),
        "bare-line-feeds": Behaviour(answer=BARE_LINE_FEEDS_ANSWER),
    },
    6: {
        "slow-notify": Behaviour(answers_by_notify=True, answer_delay_s=5),
        "notify": Behaviour(answers_by_notify=True),
        "invalid-uuid": Behaviour(roots=(replace(ROOT1, udn="uuid:UPnP_Thomson TG585-1_00-14-7F"),)),
    },
    7: {"dsl-forum": Behaviour(roots=(_DSL_FORUM,), renamed={"NewUptime": "NewUpTime"})},
    8: {
        "livebox": Behaviour(roots=(_LIVEBOX,)),
        "answers-all-only": Behaviour(roots=(_LIVEBOX,), answers_only=("ssdp:all",)),
    },
    9: {"two-wans": Behaviour(roots=(_TWO_WANS,))},
    10: {
        "url-base": Behaviour(roots=(_URL_BASE,)),
        "absolute-control": Behaviour(roots=(_ABSOLUTE,)),
        "relative-control": Behaviour(roots=(_RELATIVE,)),
    },
    11: {
        "new-external-port": Behaviour(renamed={"NewReservedPort": "NewExternalPort"}),
        "no-scpd": Behaviour(conduct={"scpd": respond("404 Not Found")}),
        "long-scpd": Behaviour(conduct={"scpd": respond("200 OK", f"<scpd>{65536 * ' '}</scpd>")}),
        "bogus-scpd": Behaviour(conduct={"scpd": respond("200 OK", "<scpd><actionList>")}),
    },
    12: {
        "camel-case-faults": Behaviour(fault=FAULT_IN_CAMEL_CASE, prefix="SOAP-ENV"),
        "faults-with-200": Behaviour(fault_status="200 OK", prefix="SOAP"),
    },
    13: {"upper-case-protocol": Behaviour(lower_case_protocol_code=402)},
    14: {
        "permanent-only": Behaviour(lease_code=725),
        "permanent-only-402": Behaviour(lease_code=402),
        "no-permanent": Behaviour(permanent_code=402),
    },
    15: {
        "full": Behaviour(most_entries=0, full_code=402),
        "taken-501": Behaviour(entries=(_THEIRS,), conflict_code=501),
        "forbidden-501": Behaviour(forbidden_ports=range(1, 1024)),
    },
    16: {
        "taken": Behaviour(entries=(_THEIRS,)),
        "not-yours-718": Behaviour(not_yours_code=718),
        "always-718": _refusing(718),
        "not-permitted": _refusing(606),
    },
    17: {
        "port-zero-is-all": Behaviour(port_zero_code=None),
        "same-port": Behaviour(other_port_code=724),
        "no-remote-host": Behaviour(remote_host_code=726),
        "all-ports-only": _refusing(727),
        "other-mechanism": _refusing(729),
        "internal-wildcard": _refusing(732),
    },
    18: {
        "no-address": _addressed(""),
        "address-zero": _addressed("0.0.0.0"),
        "address-loopback": _addressed("127.0.0.1"),
        "address-private": _addressed("192.168.9.2"),
        "address-shared": _addressed("100.64.0.2"),
        "address-of-another": _addressed("11.22.33.44"),
    },
    19: {
        "one-segment": Behaviour(wants_one_segment=True),
        "strict-http": Behaviour(is_strict_http=True),
        "empty-values": Behaviour(  # DrayTek
            answers={"GetStatusInfo": {"NewUptime": "", "NewLastConnectionError": ""}}
        ),
    },
    20: {"naive-xml": Behaviour(is_naive_xml=True)},
    21: {
        "unknown-hangs-up": Behaviour(roots=(ROOT1,), conduct={"unknown": hang_up()}),
        "unknown-resets": Behaviour(roots=(ROOT1,), conduct={"unknown": reset()}),
        "any-hangs-up": Behaviour(conduct={"AddAnyPortMapping": hang_up()}),
    },
    22: {
        "pretends": Behaviour(pretends=True),
        "description-escaped": Behaviour(description_form=escaped),
        "description-cut": Behaviour(description_form=lambda text: text[:8]),
        "maps-without-answer": Behaviour(conduct_after={"AddPortMapping": never_answer()}),
    },
    23: {
        "no-boot-id": Behaviour(answer=ANSWER_WITHOUT_BOOT_ID, notification=NOTIFY_WITHOUT_BOOT_ID),
        "no-events": Behaviour(is_evented=False),
        "events-refused": Behaviour(conduct={"events": respond("412 Precondition Failed")}),
        "short-events": Behaviour(event_timeout="Second-2"),
    },
    24: {"both-versions": Behaviour(roots=_SIDE_BY_SIDE)},
}
"""By their numbers in the list of what real routers do. The one of a reboot is `FakeIgd.reboot`, too."""

ORDINARY: Mapping[str, Behaviour] = {
    "igd1": Behaviour(roots=(ROOT1,)),
    "igd2": Behaviour(),
    "insecure": Behaviour(is_secure=False),
    "another": Behaviour(
        roots=(replace(ROOT2, udn="uuid:6a0ce2f8-0e4b-4c4b-9d4e-ba9876543210", model_name="Another"),),
        external_address="11.22.33.3",
    ),
    "disconnected": Behaviour(roots=(replace(ROOT2, wan=(replace(IP2, status="Disconnected"),)),)),
    "no-wan": Behaviour(roots=(replace(ROOT2, wan=(), firewall=None),)),
    "answers-twice": Behaviour(answer_copies=2),
}

# --- Hostile routers ---

SECRET = "http://{decoy_host}:{decoy_port}/secret"
LURES: Mapping[str, str] = {
    "loopback": "http://127.0.0.1:{decoy_port}/secret",
    "link-local": "http://169.254.77.1:{decoy_port}/secret",
    "other-host": SECRET,
    "dns-name": "http://localhost:{decoy_port}/secret",
    "ipv4-mapped": "http://[::ffff:127.0.0.1]:{decoy_port}/secret",
    "ipv6-loopback": "http://[::1]:{decoy_port}/secret",
    "unspecified": "http://0.0.0.0:{decoy_port}/secret",
    "decimal-host": "http://2130706433:{decoy_port}/secret",
    "octal-host": "http://0177.0.0.1:{decoy_port}/secret",
    "user-info": "http://{host}:{port}@{decoy_host}:{decoy_port}/secret",
    "backslash": "http://{decoy_host}:{decoy_port}\\@{host}:{port}/secret",
    "multicast": "http://239.255.255.250:{decoy_port}/secret",
    "https": "https://{host}:{port}/rootDesc.xml",
    "file": "file:///etc/passwd",
    "header-injection": "http://{host}:{port}/rootDesc.xml HTTP/1.1\rX-Injected: 1\r\rGET /secret",
    "encoded-injection": "http://{host}:{port}/rootDesc.xml%20HTTP/1.1%0d%0aX-Injected:%201",
    "space": "http://{host}:{port}/rootDesc.xml HTTP/1.1",
    "port-zero": "http://{host}:0/rootDesc.xml",
    "port-huge": "http://{host}:99999/rootDesc.xml",
    "huge": "http://{host}:{port}/" + 7000 * "a",
    "not-utf-8": "http://{host}:{port}/\udcff\udcfe",
    "empty": "",
}
"""URLs that nobody may follow, by what is wrong with them."""

ENTITY_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE bomb [<!ENTITY a0 "boom">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]>"
)
EXTERNAL_ENTITY = (
    '<?xml version="1.0"?><!DOCTYPE lure [<!ENTITY file SYSTEM "file:///etc/passwd">'
    f'<!ENTITY secret SYSTEM "{SECRET}"><!ENTITY % more SYSTEM "{SECRET}">%more;]>'
)
TERMINAL_ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31mred\u202edesrever\r\nX: y\u2066[bold]\x00"
DEPTH = 100_000
BOMB_BYTES = 400 << 20


def _reply(action: str, arguments: str) -> str:
    whole = REPLY.replace("{prefix}", "s").replace("{action}", action).replace("{type}", WAN_IP + "2")
    return whole.replace("{arguments}", arguments)


def _with_entities(prolog: str, use: str) -> str:
    return f"{prolog}<root><device><friendlyName>{use}</friendlyName></device></root>"


def _gzip_bomb() -> bytes:
    """10 MiB of zeros, packed; a real one would be larger, but no sooner recognised."""
    body = gzip.compress(bytes(10 << 20))
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


_OK = "HTTP/1.1 200 OK\r\n"
_HTTP_CONDUCTS: Mapping[str, Conduct] = {
    "endless-body": endless(_OK + "\r\n<root>", 16384 * "a"),
    "endless-chunks": endless(_OK + "Transfer-Encoding: chunked\r\n\r\n", "4000\r\n" + 16384 * "a" + "\r\n"),
    "announced-400-mb": endless(_OK + f"Content-Length: {BOMB_BYTES}\r\n\r\n", 16384 * "a"),
    "dripping-body": endless(_OK + "Content-Length: 1000\r\n\r\n", "a", pause_s=2),
    "dripping-head": endless(_OK, "a", pause_s=2),
    "endless-headers": endless(_OK, "X-More: " + 1000 * "a" + "\r\n"),
    "endless-header": endless(_OK + "X-More: ", 16384 * "a"),
    "endless-status-line": endless("HTTP/1.1 200 ", 16384 * "a"),
    "endless-interim": endless("", "HTTP/1.1 100 Continue\r\n\r\n"),
    "never-answers": never_answer(),
    "hangs-up": hang_up(),
    "resets": reset(),
    "redirects": respond("302 Found", "", f"Location: {SECRET}"),
    "redirects-for-ever": respond(
        "307 Temporary Redirect", "", "Location: http://{host}:{port}/rootDesc.xml"
    ),
    "gzip-bomb": raw(_gzip_bomb),
    "not-http": raw(lambda: bytes(range(256)) * 16),
    "not-utf-8": raw(lambda: b"HTTP/1.1 200 OK\r\nServer: \xff\xfe\r\n\r\n<root>\xff\xfe\xc0\x80</root>"),
    "header-injection": respond("200 OK", "<root/>", "X: y\r\nSet-Cookie: a=b", "Content-Length: 5"),
    "entity-bomb": document(lambda: _with_entities(ENTITY_BOMB, "&a9;")),
    "external-entity": document(lambda: _with_entities(EXTERNAL_ENTITY, "&file;&secret;")),
    "deep-nesting": document(lambda: "<a>" * DEPTH + "</a>" * DEPTH),
    "many-elements": document(lambda: "<root>" + "<a/>" * 200_000 + "</root>"),
    "many-attributes": document(lambda: "<root " + " ".join(f'a{n}=""' for n in range(50_000)) + "/>"),
}
"""For the description and for SOAP alike."""


def _listing(rows: Callable[[], str]) -> Conduct:
    """A reply to GetListOfPortMappings, with any document inside."""
    return document(
        lambda: _reply("GetListOfPortMappings", f"<NewPortListing>{escaped(rows())}</NewPortListing>")
    )


def _fault(code: int) -> Conduct:
    told = FAULT.replace("{prefix}", "s").replace("{code}", str(code)).replace("{description}", "no")
    return respond("500 Internal Server Error", told)


def _doing(conduct: Conduct, *actions: str) -> Behaviour:
    return Behaviour(conduct=dict.fromkeys(actions, conduct))


def _junk_address(text: str) -> Behaviour:
    return Behaviour(answers={"GetExternalIPAddress": {"NewExternalIPAddress": text}})


def _service_at(*, control: str = IP2.control, events: str = IP2.events, url_base: str = "") -> Behaviour:
    service = replace(IP2, control=control, events=events)
    return Behaviour(roots=(replace(ROOT2, wan=(service,), url_base=url_base, firewall=None),))


def _evil_entry(index: int) -> Entry:
    return Entry(1 + index % 0xFFFF, "UDP", "192.168.0.66", 1 + index % 0xFFFF, description=f"row {index}")


def _evil_row(index: int) -> str:
    row = {
        "NewExternalPort": index,
        "NewProtocol": "UDP",
        "NewInternalPort": 1,
        "NewInternalClient": "10.0.0.1",
    }
    arguments = "".join(f"<{name}>{value}</{name}>" for name, value in row.items())
    return _reply("GetGenericPortMappingEntry", arguments)


_ADDING = ("AddPortMapping", "AddAnyPortMapping")
_READING = ("GetSpecificPortMappingEntry", "GetGenericPortMappingEntry", "GetListOfPortMappings")

HOSTILE: Mapping[str, Behaviour] = {
    **{
        f"description-{name}": Behaviour(conduct={"description": one}) for name, one in _HTTP_CONDUCTS.items()
    },
    **{f"control-{name}": Behaviour(conduct={"control": one}) for name, one in _HTTP_CONDUCTS.items()},
    **{f"location-{name}": Behaviour(locations=(url,)) for name, url in LURES.items()},
    **{f"control-url-{name}": _service_at(control=url) for name, url in LURES.items()},
    **{f"events-url-{name}": _service_at(events=url) for name, url in LURES.items()},
    **{f"url-base-{name}": _service_at(control="ctl", url_base=url) for name, url in LURES.items()},
    "control-url-line-feeds": _service_at(control="/ctl HTTP/1.1\nX-Injected: 1\n\nGET /secret"),
    "flood": Behaviour(
        flood=10_000,
        locations=("http://{host}:{port}/{number}.xml",),
        conduct={"description": never_answer()},
    ),
    "flood-other-hosts": Behaviour(flood=10_000, locations=(SECRET + "{number}",)),
    "ssdp-header-injection": Behaviour(
        answer=ANSWER.replace("EXT:", "LOCATION: " + SECRET + "\r\nlocation: " + SECRET + "\r\nEXT:")
    ),
    "ssdp-not-utf-8": Behaviour(answer=ANSWER.replace("Fake/1", "\udcff\udcfe\udcc0")),
    "ssdp-many-headers": Behaviour(answer=ANSWER.replace("EXT:", "X: y\r\n" * 1000 + "EXT:")),
    "ssdp-endless-usn": Behaviour(answer=ANSWER.replace("{usn}", "uuid:" + 7000 * "a")),
    "ssdp-escapes": Behaviour(answer=ANSWER.replace("Fake/1", TERMINAL_ESCAPES.replace("\r\n", ""))),
    "ssdp-noise": Behaviour(answer="\udcff\x00\x01HTTP/1.1 2OO KO {location}"),
    "ssdp-empty": Behaviour(answer=""),
    "terminal-escapes": Behaviour(
        roots=(
            replace(
                ROOT2,
                friendly_name=TERMINAL_ESCAPES,
                manufacturer=TERMINAL_ESCAPES,
                model_name=TERMINAL_ESCAPES,
                model_number=TERMINAL_ESCAPES,
                udn="uuid:" + TERMINAL_ESCAPES,
            ),
        ),
        entries=(Entry(5060, "UDP", "192.168.0.66" + TERMINAL_ESCAPES, 5060, description=TERMINAL_ESCAPES),),
    ),
    "service-type-injection": Behaviour(
        roots=(
            replace(
                ROOT2, wan=(replace(IP2, type='urn:x:service:WANIPConnection"&#13;&#10;X-Injected: y:1'),)
            ),
        )
    ),
    "many-services": Behaviour(
        roots=(replace(ROOT2, wan=tuple(replace(IP2, control=f"/ctl/{n}") for n in range(500))),)
    ),
    "endless-list": Behaviour(roots=(ROOT1,), endless_entries=_evil_entry),
    "same-entry-for-ever": Behaviour(roots=(ROOT1,), endless_entries=lambda index: _evil_entry(0)),
    "list-entity-bomb": Behaviour(
        conduct={"GetListOfPortMappings": _listing(lambda: _with_entities(ENTITY_BOMB, "&a9;"))}
    ),
    "list-deep-nesting": Behaviour(
        conduct={"GetListOfPortMappings": _listing(lambda: "<a>" * DEPTH + "</a>" * DEPTH)}
    ),
    "list-huge": Behaviour(
        conduct={
            "GetListOfPortMappings": _listing(lambda: "<l>" + "<PortMappingEntry/>" * 40_000 + "</l>"),
        }
    ),
    "fault-escapes": Behaviour(
        fault=FAULT.replace("{description}", TERMINAL_ESCAPES), fault_on={"AddPortMapping": 718}
    ),
    "fault-code-huge": Behaviour(fault=FAULT.replace("{code}", "9" * 5000), fault_on={"AddPortMapping": 718}),
    "any-port-huge": Behaviour(
        fault_on={"AddPortMapping": 718}, answers={"AddAnyPortMapping": {"NewReservedPort": "9" * 5000}}
    ),
    "address-junk": _junk_address("not an address"),
    "address-escapes": _junk_address(TERMINAL_ESCAPES),
    "address-huge": _junk_address("1." * 100_000),
    "address-scope-escapes": _junk_address("2001:db8::1%\x9b2J\x9b31m"),
    "address-ipv6": _junk_address("2001:db8::1"),
    "status-huge": Behaviour(answers={"GetStatusInfo": {"NewConnectionStatus": "Connected" * 10_000}}),
    "sid-injection": Behaviour(sid="uuid:1\rX-Injected: y"),
    "events-short": Behaviour(event_timeout="Second-0"),
    "events-never-answered": Behaviour(conduct={"events": never_answer()}),
    # Routers that mean well until something is asked of them
    "status-never-told": _doing(never_answer(), "GetStatusInfo"),
    "add-never-answers": _doing(never_answer(), *_ADDING),
    "add-drips": _doing(_HTTP_CONDUCTS["dripping-body"], *_ADDING),
    "add-hangs-up": _doing(hang_up(), *_ADDING),
    "nothing-more-answers": _doing(never_answer(), *_ADDING, *_READING),
    "reading-back-never-answers": _doing(never_answer(), *_READING),
    "slow-refusals": _doing(after(0.9, _fault(718)), *_ADDING),
    "slower-refusals": _doing(after(2.5, _fault(718)), *_ADDING),
    "slow-and-forgetful": Behaviour(
        conduct=dict.fromkeys(_ADDING, never_answer()) | dict.fromkeys(_READING, after(0.5, _fault(714)))
    ),
    "list-never-answers": _doing(never_answer(), "GetListOfPortMappings"),
    "list-slow": Behaviour(
        roots=(ROOT1,),
        conduct={
            "GetGenericPortMappingEntry": after(0.9, document(lambda: _evil_row(random.randrange(50000))))
        },
    ),
    "delete-never-answers": Behaviour(
        conduct={"DeletePortMapping": never_answer()},
        entries=(Entry(5060, "UDP", "192.168.0.108", 5060),),
    ),
}
BEHAVIOURS: Mapping[str, Behaviour] = {
    **ORDINARY,
    **{name: one for named in QUIRKS.values() for name, one in named.items()},
    **HOSTILE,
}


def behaviour(*names: str) -> Behaviour:
    """The behaviours of these names, all at once."""
    return merged(*(BEHAVIOURS[name] for name in names))
