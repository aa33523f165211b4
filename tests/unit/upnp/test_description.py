"""Root descriptions: those of real routers, their oddities, and what a hostile one may not do."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from nattools.errors import DecodeError
from nattools.upnp.description import (
    MOST_DEPTH,
    MOST_ELEMENTS,
    MOST_SERVICES,
    RootDescription,
    ServiceKind,
    parse_description,
)
from nattools.upnp.location import Location

CORPUS = Path(__file__).parents[4] / "shared" / "corpus" / "upnp"
LOCATION = Location.parse("http://192.168.1.1:5000/igd/rootDesc.xml")


def service(
    service_type: str = "urn:schemas-upnp-org:service:WANIPConnection:1",
    control: str = "/ctl/IPConn",
    events: str = "/evt/IPConn",
) -> str:
    return (
        f"<service><serviceType>{service_type}</serviceType>"
        "<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>"
        f"<controlURL>{control}</controlURL><eventSubURL>{events}</eventSubURL>"
        "<SCPDURL>/WANIPCn.xml</SCPDURL></service>"
    )


def root(services: str = "", *, url_base: str = "", device: str = "<friendlyName>Box</friendlyName>") -> str:
    """A description with the device inside a device inside a device that the specification asks for."""
    return (
        '<?xml version="1.0"?>\n<root xmlns="urn:schemas-upnp-org:device-1-0">'
        f"{f'<URLBase>{url_base}</URLBase>' if url_base else ''}<device>{device}<deviceList>"
        "<device><friendlyName>WANDevice</friendlyName><deviceList>"
        f"<device><friendlyName>WANConnectionDevice</friendlyName><serviceList>{services}</serviceList></device>"
        "</deviceList></device></deviceList></device></root>"
    )


def read(text: str) -> RootDescription:
    return parse_description(text.encode(), LOCATION)


def controls(description: RootDescription) -> list[str]:
    return [str(service.control) for service in description.wan_connections]


def corpus(name: str) -> bytes:
    path = CORPUS / name
    if not path.exists():
        pytest.skip(f"the corpus of root descriptions is missing: {path}")
    return path.read_bytes()


class TestRealRouters:
    @pytest.mark.parametrize(
        ("name", "model", "services"),
        [
            (
                "googleWifiRootDescXML.xml",
                ("OnHub", "Google", "OnHub", "1"),
                [("WANIPConnection:2", "/ctl/IPConn")],
            ),
            (
                "pfSenseRootDescXML.xml",
                ("FreeBSD router", "FreeBSD", "FreeBSD router", "2.5.0-RELEASE"),
                [("WANIPConnection:1", "/ctl/IPConn")],
            ),
            (
                "linksys_WAG200G_desc.xml",
                ("LINKSYS WAG200G Gateway", "LINKSYS", "Wireless-G ADSL Home Gateway", "WAG200G"),
                [("WANPPPConnection:1", "/upnp/control/WANPPPConn1")],
            ),
            (
                "mikrotikRootDescXML.xml",
                ("MikroTik Router", "MikroTik", "Router OS", ""),
                [
                    ("WANIPConnection:1", "/upnp/control/yomkmsnooi/wanipconn-1"),
                    ("WANIPConnection:1", "/upnp/control/xstnsgeuyh/wanipconn-7"),
                ],
            ),
        ],
    )
    def test_are_read(self, name: str, model: tuple[str, ...], services: list[tuple[str, str]]) -> None:
        location = Location.parse("http://192.168.1.1:49152/rootDesc.xml")
        description = parse_description(corpus(name), location)
        about = description
        assert (about.friendly_name, about.manufacturer, about.model_name, about.model_number) == model
        assert [(s.service_type, s.control) for s in description.wan_connections] == [
            (f"urn:schemas-upnp-org:service:{kind}", location.join(control)) for kind, control in services
        ]
        assert description.device_type.startswith("urn:schemas-upnp-org:device:InternetGatewayDevice:")
        assert description.udn.startswith("uuid:")
        assert description.firewalls == ()
        assert description.refused == ()

    def test_the_linksys_is_read_as_miniupnpc_reads_it(self) -> None:
        values = dict(
            line.strip().split(" = ")
            for line in corpus("linksys_WAG200G_desc.values").decode().partition("first:")[2].splitlines()
            if " = " in line
        )
        location = Location.parse("http://192.168.1.1:49152/gateway.xml")
        (first,) = parse_description(corpus("linksys_WAG200G_desc.xml"), location).wan_connections
        assert first.events is not None
        assert (first.service_type, first.control.target, first.events.target) == (
            values["servicetype"],
            values["controlurl"],
            values["eventsuburl"],
        )
        assert first.kind is ServiceKind.WAN_PPP_CONNECTION

    def test_a_url_base_with_another_port_is_honoured(self) -> None:
        location = Location.parse("http://192.168.1.1/gateway.xml")
        (first,) = parse_description(corpus("linksys_WAG200G_desc.xml"), location).wan_connections
        assert str(first.control) == "http://192.168.1.1:49152/upnp/control/WANPPPConn1"

    def test_a_url_base_on_another_host_refuses_what_is_relative_to_it(self) -> None:
        location = Location.parse("http://10.0.0.1:49152/gateway.xml")
        description = parse_description(corpus("linksys_WAG200G_desc.xml"), location)
        assert description.wan_connections == ()
        (reason,) = description.refused
        assert reason.startswith("urn:schemas-upnp-org:service:WANPPPConnection:1: its URLBase: ")
        assert "leads to 192.168.1.1, away from 10.0.0.1" in reason


class TestServices:
    def test_a_service_is_read_whole(self) -> None:
        (found,) = read(root(service())).wan_connections
        assert found.service_type == "urn:schemas-upnp-org:service:WANIPConnection:1"
        assert found.kind is ServiceKind.WAN_IP_CONNECTION
        assert found.version == 1
        assert found.service_id == "urn:upnp-org:serviceId:WANIPConn1"
        assert str(found.control) == "http://192.168.1.1:5000/ctl/IPConn"
        assert str(found.events) == "http://192.168.1.1:5000/evt/IPConn"
        assert found.device_name == "WANConnectionDevice"

    @pytest.mark.parametrize(
        ("service_type", "kind", "version"),
        [
            ("urn:schemas-upnp-org:service:WANIPConnection:2", ServiceKind.WAN_IP_CONNECTION, 2),
            ("urn:dslforum-org:service:WANIPConnection:1", ServiceKind.WAN_IP_CONNECTION, 1),
            ("urn:schemas-upnp-org:service:WANPPPConnection:99", ServiceKind.WAN_PPP_CONNECTION, 99),
            ("urn:schemas-upnp-org:service:WANIPConnection:0", ServiceKind.WAN_IP_CONNECTION, 1),
            ("urn:schemas-upnp-org:service:WANIPConnection:1.0", ServiceKind.WAN_IP_CONNECTION, 1),
            ("urn:schemas-upnp-org:service:WANIPConnection:" + "9" * 50, ServiceKind.WAN_IP_CONNECTION, 1),
            ("urn:schemas-upnp-org:service:WANIPConnection", ServiceKind.WAN_IP_CONNECTION, 1),
            ("URN:SCHEMAS-UPNP-ORG:SERVICE:WANIPCONNECTION:1", ServiceKind.WAN_IP_CONNECTION, 1),
        ],
    )
    def test_any_version_and_domain_is_taken_and_the_type_kept_as_it_is(
        self, service_type: str, kind: ServiceKind, version: int
    ) -> None:
        (found,) = read(root(service(service_type))).wan_connections
        assert (found.service_type, found.kind, found.version) == (service_type, kind, version)

    def test_the_livebox_has_a_ppp_connection_whose_url_says_ip(self) -> None:
        ppp = service("urn:schemas-upnp-org:service:WANPPPConnection:2", "/0af4/ctl/WANIPConn1")
        (found,) = read(root(ppp)).wan_connections
        assert found.kind is ServiceKind.WAN_PPP_CONNECTION
        assert found.control.target == "/0af4/ctl/WANIPConn1"

    def test_the_huawei_hg531_has_a_namespace_of_its_own(self) -> None:
        text = root(service("urn:dslforum-org:service:WANPPPConnection:1", "/UD/?5"))
        description = read(text.replace("urn:schemas-upnp-org:device-1-0", "urn:dslforum-org:device-1-0"))
        assert controls(description) == ["http://192.168.1.1:5000/UD/?5"]

    def test_prefixes_need_no_declaration_and_names_no_case(self) -> None:
        text = root(service())
        for name in ("root", "device", "service", "serviceType", "controlURL"):
            text = text.replace(f"<{name}", f"<u:{name.upper()}").replace(f"</{name}", f"</u:{name.upper()}")
        assert controls(read(text)) == ["http://192.168.1.1:5000/ctl/IPConn"]

    def test_firewalls_stand_apart(self) -> None:
        firewall = service("urn:schemas-upnp-org:service:WANIPv6FirewallControl:1", "/ctl/IP6FCtl")
        description = read(root(service() + firewall))
        assert controls(description) == ["http://192.168.1.1:5000/ctl/IPConn"]
        assert [str(s.control) for s in description.firewalls] == ["http://192.168.1.1:5000/ctl/IP6FCtl"]
        assert description.firewalls[0].kind is ServiceKind.WAN_IPV6_FIREWALL_CONTROL

    def test_several_connections_stay_in_order_though_their_ids_are_equal(self) -> None:
        description = read(
            root(service(control="/one") + service(control="/two") + service(control="/three"))
        )
        assert [s.control.target for s in description.wan_connections] == ["/one", "/two", "/three"]
        assert len({s.service_id for s in description.wan_connections}) == 1

    def test_other_services_are_passed_over(self) -> None:
        other = service("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1", "http://10.0.0.1/")
        description = read(root(other))
        assert description.wan_connections == ()
        assert description.refused == ()

    def test_a_device_without_services_is_a_description(self) -> None:
        description = read("<root><device><friendlyName>Printer</friendlyName></device></root>")
        assert description.friendly_name == "Printer"
        assert description.wan_connections == description.firewalls == ()
        assert description.refused == ()

    def test_a_service_directly_in_the_root_device_is_found(self) -> None:
        description = read(f"<root><device><serviceList>{service()}</serviceList></device></root>")
        assert controls(description) == ["http://192.168.1.1:5000/ctl/IPConn"]

    def test_a_service_without_events_has_none(self) -> None:
        (found,) = read(root(service(events=""))).wan_connections
        assert found.events is None

    def test_white_space_round_a_text_is_no_part_of_it(self) -> None:
        text = root(service("\n  urn:schemas-upnp-org:service:WANIPConnection:1\r\n", "\t/ctl "))
        (found,) = read(text).wan_connections
        assert found.service_type == "urn:schemas-upnp-org:service:WANIPConnection:1"
        assert found.control.target == "/ctl"


class TestUrls:
    @pytest.mark.parametrize(
        ("control", "url_base", "url"),
        [
            ("ctl/IPConn", "", "http://192.168.1.1:5000/igd/ctl/IPConn"),
            ("ctl/IPConn", "http://192.168.1.1:49152", "http://192.168.1.1:49152/ctl/IPConn"),
            ("ctl/IPConn", "http://192.168.1.1:49152/a/", "http://192.168.1.1:49152/a/ctl/IPConn"),
            ("/ctl/IPConn", "http://192.168.1.1:49152/a/b", "http://192.168.1.1:49152/ctl/IPConn"),
            # Linksys WRT120N
            (
                "http://192.168.1.1:2869/upnp?Layer3Forwarding",
                "",
                "http://192.168.1.1:2869/upnp?Layer3Forwarding",
            ),
            ("/upnp?a=1&amp;b=2", "", "http://192.168.1.1:5000/upnp?a=1&b=2"),
            ("http://192.168.1.1/ctl", "http://10.0.0.1/", "http://192.168.1.1:80/ctl"),
        ],
    )
    def test_a_control_url_is_relative_to_url_base_or_absolute(
        self, control: str, url_base: str, url: str
    ) -> None:
        description = read(root(service(control=control, events=""), url_base=url_base))
        assert controls(description) == [url]
        assert description.refused == ()

    def test_a_url_base_behind_the_device_counts_as_well(self) -> None:
        text = root(service()).replace("</root>", "<URLBase>http://192.168.1.1:2828</URLBase></root>")
        assert controls(read(text)) == ["http://192.168.1.1:2828/ctl/IPConn"]

    @pytest.mark.parametrize(
        ("control", "reason"),
        [
            ("http://127.0.0.1/ctl", "leads to 127.0.0.1, away from 192.168.1.1"),
            ("//10.0.0.1/ctl", "leads to 10.0.0.1, away from 192.168.1.1"),
            ("http://router/ctl", "not an http URL with an IP address"),
            ("https://192.168.1.1/ctl", "not an http URL with an IP address"),
            ("/ctl&#13;&#10;Host: 127.0.0.1", "is not a URL"),
            ("/" + "a" * 5000, "is not a URL"),
            ("", "no control URL"),
        ],
    )
    def test_a_service_that_leads_elsewhere_is_refused_and_the_others_stay(
        self, control: str, reason: str
    ) -> None:
        description = read(root(service(control=control) + service()))
        assert controls(description) == ["http://192.168.1.1:5000/ctl/IPConn"]
        (refused,) = description.refused
        assert refused.startswith("urn:schemas-upnp-org:service:WANIPConnection:1: ")
        assert reason in refused

    @pytest.mark.parametrize(
        "url_base", ["http://10.0.0.1/", "http://router.lan:5000/", "https://192.168.1.1/"]
    )
    def test_a_url_base_elsewhere_is_refused_with_what_depends_on_it(self, url_base: str) -> None:
        absolute = service(control="http://192.168.1.1:5000/absolute", events="")
        description = read(root(service() + absolute, url_base=url_base))
        assert controls(description) == ["http://192.168.1.1:5000/absolute"]
        assert len(description.refused) == 1
        assert "its URLBase" in description.refused[0]

    def test_events_that_lead_elsewhere_are_refused_without_the_service(self) -> None:
        description = read(root(service(events="http://192.168.1.2/evt")))
        (found,) = description.wan_connections
        assert found.events is None
        (refused,) = description.refused
        assert refused.startswith("events of urn:schemas-upnp-org:service:WANIPConnection:1: ")

    @pytest.mark.parametrize(
        "service_type",
        [
            "urn:x:WANIPConnection:1&quot;",
            "urn:x:WANIPConnection:1&#13;&#10;X: y",
            "urn:x y:WANIPConnection:1",
            "urn:é:WANIPConnection:1",
            "urn:" + "x" * 200 + ":WANIPConnection:1",
        ],
    )
    def test_a_service_type_that_would_break_a_header_is_refused(self, service_type: str) -> None:
        description = read(root(service(service_type)))
        assert description.wan_connections == ()
        assert len(description.refused) == 1

    @pytest.mark.parametrize(
        ("presentation_url", "expected"),
        [
            ("http://testwifi.here/", "http://testwifi.here/"),
            ("https://192.168.1.1/", "https://192.168.1.1/"),
            ("/index.htm", "http://192.168.1.1:5000/index.htm"),
            ("javascript:alert(1)", None),
            ("", None),
        ],
    )
    def test_the_presentation_url_is_for_people(self, presentation_url: str, expected: str | None) -> None:
        description = read(root(device=f"<presentationURL>{presentation_url}</presentationURL>"))
        assert description.presentation_url == expected


class TestTexts:
    @pytest.mark.parametrize(
        ("data", "name"),
        [
            ("<root><device><friendlyName>Böx</friendlyName></device></root>".encode(), "Böx"),
            ("\ufeff<root><device><friendlyName>Böx</friendlyName></device></root>".encode(), "Böx"),
            (
                '<?xml version="1.0" encoding="utf-8"?>'
                "<r><device><friendlyName>Böx</friendlyName></device></r>".encode(),
                "Böx",
            ),
            (
                "<?xml version='1.0' encoding='ISO-8859-1'?>"
                "<r><device><friendlyName>Ã¶</friendlyName></device></r>".encode("latin-1"),
                "Ã¶",
            ),
            (
                b'<?xml version="1.0" encoding="utf-8"?>'
                b"<r><device><friendlyName>B\xf6x</friendlyName></device></r>",
                "Böx",
            ),
            (
                b'<?xml version="1.0" encoding="no-such"?>'
                b"<r><device><friendlyName>Box</friendlyName></device></r>",
                "Box",
            ),
            ("<r><device><friendlyName>Böx</friendlyName></device></r>".encode("utf-16"), "Böx"),
            (
                b'\r\n \n<?xml version="1.0"?><r><device><friendlyName>Box</friendlyName></device></r>',
                "Box",
            ),
            (b"<r><device><friendlyName>Box</friendlyName></device></r>\r\n\0\0\0", "Box"),
            (b"<r><device><friendlyName>Box</friendlyName></device></r>\nHTTP/1.1 200 OK", "Box"),
            (b"<r><device><friendlyName>Box</friendlyName></device></r><r/>", "Box"),
            (b"<r><device><friendlyName>B\x07ox</friendlyName></device></r>", "Box"),
            (b"<r><device><friendlyName><![CDATA[A&B]]></friendlyName></device></r>", "A&B"),
            (b"<device><friendlyName>Box</friendlyName></device>", "Box"),
            (b"<r><device><friendlyName/><friendlyName>Box</friendlyName></device></r>", ""),
        ],
        ids=[
            "UTF-8",
            "byte order mark",
            "declared UTF-8",
            "declared ISO 8859-1",
            "declared UTF-8, but is not",
            "declared as nothing known",
            "UTF-16",
            "white space before the declaration",
            "NULs behind",
            "garbage behind",
            "a second root behind",
            "control characters",
            "CDATA",
            "no root element",
            "the first of two counts",
        ],
    )
    def test_documents_are_read_as_routers_write_them(self, data: bytes, name: str) -> None:
        assert parse_description(data, LOCATION).friendly_name == name

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("&#x1b;[31mred", None),  # not XML 1.0
            ("a&#x9b;31mb", "a 31mb"),
            ("a&#x202e;b", "a b"),
            ("two\n  lines", "two lines"),
            ("&lt;b&gt;", "<b>"),
            ("x" * 5000, "x" * 200),
        ],
    )
    def test_texts_cannot_play_with_a_terminal(self, name: str, shown: str | None) -> None:
        text = root(device=f"<friendlyName>{name}</friendlyName>")
        if shown is None:
            with pytest.raises(DecodeError):
                read(text)
        else:
            assert read(text).friendly_name == shown

    def test_a_refusal_cannot_either(self) -> None:
        (refused,) = read(root(service(control="/a\u202e"), url_base="http://10.0.0.1/\u202e")).refused
        assert refused.isprintable()
        assert len(refused) <= 200


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaaaaaaaa">'
    '<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<r><device><friendlyName>&c;</friendlyName></device></r>"
)
MEBIBYTE = 1 << 20


class TestHostileRouters:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "no device"),
            (b"\0\0", "no device"),
            (b"\xff\xfe", "no device"),
            (b"<html><body>404 Not Found</body></html>", "no device"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", "not XML"),
            (b"<root><device>", "not XML"),
            (b"<root></device>", "not XML"),
            (b"<root><device>&undefined;</device></root>", "not XML"),
            (b"<service><serviceType>WANIPConnection</serviceType></service>", "no device"),
            (BOMB.encode(), "DTD or entities"),
            (b'<!DOCTYPE r SYSTEM "http://127.0.0.1/"><r><device/></r>', "DTD or entities"),
            (b'<!DOCTYPE r [<!ENTITY e SYSTEM "file:///etc/passwd">]><r>&e;</r>', "DTD or entities"),
            (b"<a>" * (MOST_DEPTH + 1), f"more than {MOST_DEPTH} deep"),
            (b"<a>" + b"<b/>" * MOST_ELEMENTS, f"more than {MOST_ELEMENTS} elements"),
            (root(service() * (MOST_SERVICES + 1)).encode(), f"more than {MOST_SERVICES} WAN services"),
        ],
    )
    def test_are_refused_with_the_reason(self, data: bytes, reason: str) -> None:
        with pytest.raises(DecodeError, match=reason):
            parse_description(data, LOCATION)

    def test_what_is_just_within_the_bounds_is_read(self) -> None:
        assert len(read(root(service() * MOST_SERVICES)).wan_connections) == MOST_SERVICES
        inside = "<a>" * (MOST_DEPTH - 1) + "</a>" * (MOST_DEPTH - 1)
        assert read(f"<device>{inside}</device>").wan_connections == ()

    @pytest.mark.parametrize(
        "data",
        [
            b"<a>" * (MEBIBYTE // 3),
            b"<a>" + b"<b/>" * (MEBIBYTE // 4),
            b"<a " + b" ".join(b'a%x=""' % number for number in range(100_000)) + b"/>",
            b"<" + b"a" * MEBIBYTE + b"/>",
            b"<a><!--" + b"-" * MEBIBYTE,
            b"<r><device><friendlyName>" + b"\n" * MEBIBYTE,
            b"<r><device><friendlyName>" + b"&amp;" * (MEBIBYTE // 5),
            b"<?xml " * (MEBIBYTE // 6),
            b"<device>" + service(control="http://10.0.0.1/").encode() * 4000,
        ],
        ids=[
            "deep",
            "many",
            "attributes",
            "name",
            "comment",
            "lines",
            "references",
            "declarations",
            "refused",
        ],
    )
    def test_a_mebibyte_of_anything_takes_little_memory(self, data: bytes) -> None:
        gc.collect()
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError):
                parse_description(data, LOCATION)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MEBIBYTE
