"""The actions of an IGD: what goes out, what comes back, and which of several services is asked first."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from itertools import permutations
from typing import Any

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError, EncodeError
from nattools.upnp.igd import (
    MOST_ENTRIES,
    Action,
    AddAnyPortMapping,
    AddPinhole,
    AddPortMapping,
    Candidate,
    DeletePinhole,
    DeletePortMapping,
    DeletePortMappingRange,
    FirewallStatus,
    GetExternalIPAddress,
    GetFirewallStatus,
    GetGenericPortMappingEntry,
    GetListOfPortMappings,
    GetPinholePackets,
    GetSpecificPortMappingEntry,
    GetStatusInfo,
    PortMappingEntry,
    StatusInfo,
    UpdatePinhole,
    clean_description,
    rank,
)
from nattools.upnp.soap import parse_reply

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
PHONE = Endpoint.of("192.168.1.20", 5070)
HOST6 = IPv6Address("2001:db8::20")

ADD = [
    ("NewRemoteHost", ""),
    ("NewExternalPort", "5060"),
    ("NewProtocol", "UDP"),
    ("NewInternalPort", "5070"),
    ("NewInternalClient", "192.168.1.20"),
    ("NewEnabled", "1"),
    ("NewPortMappingDescription", "phone"),
    ("NewLeaseDuration", "3600"),
]
KEY = [("NewRemoteHost", ""), ("NewExternalPort", "5060"), ("NewProtocol", "TCP")]
RANGE = [("NewStartPort", "1"), ("NewEndPort", "65535"), ("NewProtocol", "UDP"), ("NewManage", "0")]
PINHOLE = [
    ("RemoteHost", "2001:db8:1::1"),
    ("RemotePort", "7"),
    ("InternalClient", "2001:db8::20"),
    ("InternalPort", "5060"),
    ("Protocol", "17"),
    ("LeaseTime", "60"),
]
ANY_PINHOLE = [
    ("RemoteHost", ""),
    ("RemotePort", "0"),
    ("InternalClient", "2001:db8::20"),
    ("InternalPort", "0"),
    ("Protocol", "65535"),
    ("LeaseTime", "86400"),
]
CALLS: list[tuple[Action[Any], str, list[tuple[str, str]]]] = [
    (GetExternalIPAddress(), "GetExternalIPAddress", []),
    (GetStatusInfo(), "GetStatusInfo", []),
    (AddPortMapping(PHONE, 5060, UDP, 3600, "phone"), "AddPortMapping", ADD),
    (AddPortMapping(PHONE, 5060, UDP, None, "phone"), "AddPortMapping", [*ADD[:-1], (ADD[-1][0], "0")]),
    (AddAnyPortMapping(PHONE, 5060, UDP, 3600, "phone"), "AddAnyPortMapping", ADD),
    (DeletePortMapping(5060, TCP), "DeletePortMapping", KEY),
    (DeletePortMapping(5060, TCP, "192.0.2.1"), "DeletePortMapping", [(KEY[0][0], "192.0.2.1"), *KEY[1:]]),
    (DeletePortMappingRange(1, 65535, UDP), "DeletePortMappingRange", RANGE),
    (
        DeletePortMappingRange(1, 65535, UDP, manage=True),
        "DeletePortMappingRange",
        [*RANGE[:-1], ("NewManage", "1")],
    ),
    (GetGenericPortMappingEntry(0), "GetGenericPortMappingEntry", [("NewPortMappingIndex", "0")]),
    (GetSpecificPortMappingEntry(5060, TCP), "GetSpecificPortMappingEntry", KEY),
    (
        GetListOfPortMappings(1, 65535, UDP, number=100),
        "GetListOfPortMappings",
        [*RANGE, ("NewNumberOfPorts", "100")],
    ),
    (GetFirewallStatus(), "GetFirewallStatus", []),
    (AddPinhole(HOST6, 5060, UDP, 60, IPv6Address("2001:db8:1::1"), 7), "AddPinhole", PINHOLE),
    (AddPinhole(HOST6, None, None, 86400), "AddPinhole", ANY_PINHOLE),
    (UpdatePinhole(9, 60), "UpdatePinhole", [("UniqueID", "9"), ("NewLeaseTime", "60")]),
    (DeletePinhole(9), "DeletePinhole", [("UniqueID", "9")]),
    (GetPinholePackets(9), "GetPinholePackets", [("UniqueID", "9")]),
]


@pytest.mark.parametrize(("action", "name", "arguments"), CALLS)
def test_an_action_has_its_name_and_its_arguments_in_order(
    action: Action[Any], name: str, arguments: list[tuple[str, str]]
) -> None:
    assert (action.name, list(action.arguments())) == (name, arguments)
    assert action.is_of_firewall == ("Pinhole" in name or "Firewall" in name)


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_a_port_outside_1_to_65535_is_refused_before_it_is_sent(port: int) -> None:
    for make in (
        lambda: AddPortMapping(PHONE, port, UDP, 60),
        lambda: AddAnyPortMapping(PHONE, port, UDP, 60),
        lambda: DeletePortMapping(port, UDP),
        lambda: GetSpecificPortMappingEntry(port, UDP),
        lambda: DeletePortMappingRange(port, 65535, UDP),
        lambda: GetListOfPortMappings(1, port, UDP),
        lambda: AddPinhole(HOST6, port, UDP, 60),
        lambda: AddPinhole(HOST6, 5060, UDP, 60, remote_port=port),
    ):
        with pytest.raises(EncodeError, match="not between 1 and 65535"):
            make()


def test_other_values_that_an_action_cannot_carry_are_refused() -> None:
    for make in (
        lambda: AddPortMapping(PHONE.with_port(0), 5060, UDP, 60),
        lambda: AddPortMapping(Endpoint(HOST6, 5060), 5060, UDP, 60),
        lambda: AddPortMapping(PHONE, 5060, UDP, 0),
        lambda: AddPortMapping(PHONE, 5060, UDP, -1),
        lambda: AddPortMapping(PHONE, 5060, UDP, 1 << 32),
        lambda: AddPinhole(HOST6, 5060, UDP, 0),
        lambda: AddPinhole(HOST6, 5060, UDP, 86401),
        lambda: UpdatePinhole(65536, 60),
        lambda: UpdatePinhole(1, 0),
        lambda: DeletePinhole(-1),
        lambda: GetPinholePackets(65536),
        lambda: GetGenericPortMappingEntry(-1),
        lambda: GetGenericPortMappingEntry(65536),
        lambda: DeletePortMappingRange(2, 1, UDP),
        lambda: GetListOfPortMappings(1, 2, UDP, number=0),
        lambda: GetListOfPortMappings(1, 2, UDP, number=MOST_ENTRIES + 1),
    ):
        with pytest.raises(EncodeError):
            make()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("nattools", "nattools"),
        ("", ""),
        ("  two\r\n lines ", "two lines"),
        ("café", "caf?"),
        ("a\0b", "a?b"),
        ("a<b>&", "a<b>&"),
        ("x" * 100, "x" * 60),
    ],
)
def test_a_description_is_made_one_that_every_router_keeps(text: str, cleaned: str) -> None:
    assert clean_description(text) == cleaned
    arguments = dict(AddPortMapping(PHONE, 5060, UDP, 60, text).arguments())
    assert arguments["NewPortMappingDescription"] == cleaned


@pytest.mark.parametrize(
    ("text", "address"),
    [("1.2.3.4", "1.2.3.4"), ("100.64.0.2", "100.64.0.2"), ("2001:db8::1", "2001:db8::1")],
)
def test_the_external_address_is_read(text: str, address: str) -> None:
    assert GetExternalIPAddress().parse({"newexternalipaddress": text}) == ip_address(address)


@pytest.mark.parametrize("text", ["", "0.0.0.0", "::"])
def test_no_external_address_is_said_in_several_ways(text: str) -> None:
    assert GetExternalIPAddress().parse({"newexternalipaddress": text}) is None


@pytest.mark.parametrize("text", ["router.lan", "1", "2001:db8::1%\x9b2J"])
def test_garbage_is_no_external_address(text: str) -> None:
    with pytest.raises(DecodeError):
        GetExternalIPAddress().parse({"newexternalipaddress": text})


def test_an_external_address_that_is_not_told_is_an_error() -> None:
    with pytest.raises(DecodeError):
        GetExternalIPAddress().parse({})


@pytest.mark.parametrize("name", ["NewUptime", "NewUpTime"])
def test_the_uptime_goes_by_two_names(name: str) -> None:
    body = (
        "<Envelope><Body><GetStatusInfoResponse><NewConnectionStatus>Connected</NewConnectionStatus>"
        f"<NewLastConnectionError>ERROR_NONE</NewLastConnectionError><{name}>42</{name}>"
        "</GetStatusInfoResponse></Body></Envelope>"
    )
    status = GetStatusInfo().parse(parse_reply(200, body.encode(), "GetStatusInfo"))
    assert status == StatusInfo("Connected", "ERROR_NONE", 42)
    assert status.is_connected


# async_upnp_client's fixtures have the empty, the negative and the invalid uptime of real routers
@pytest.mark.parametrize("uptime", ["", "-1", "0 Days, 01:00:00", "4294967296", "٣"])
def test_an_uptime_that_cannot_be_believed_is_none(uptime: str) -> None:
    assert GetStatusInfo().parse({"newconnectionstatus": "Up", "newuptime": uptime}).uptime_s is None


@pytest.mark.parametrize(
    ("status", "connected"),
    [("Connected", True), ("connected", True), ("Up", True), ("Disconnected", False), ("", False)],
)
def test_connected_is_said_in_two_ways(status: str, connected: bool) -> None:
    assert GetStatusInfo().parse({"newconnectionstatus": status}).is_connected is connected


def test_a_status_without_a_status_is_none() -> None:
    with pytest.raises(DecodeError, match="NewConnectionStatus"):
        GetStatusInfo().parse({"newuptime": "1"})


@pytest.mark.parametrize("name", ["newreservedport", "newexternalport"])
def test_the_reserved_port_goes_by_two_names(name: str) -> None:
    assert AddAnyPortMapping(PHONE, 5060, UDP, 60).parse({name: "40000"}) == 40000


@pytest.mark.parametrize(
    "reply", [{}, {"newreservedport": ""}, {"newreservedport": "0"}, {"newreservedport": "65536"}]
)
def test_a_reserved_port_that_was_not_told_is_not_guessed(reply: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        AddAnyPortMapping(PHONE, 5060, UDP, 60).parse(reply)


ROW = {
    "newremotehost": "",
    "newexternalport": "5060",
    "newprotocol": "UDP",
    "newinternalport": "5070",
    "newinternalclient": "192.168.1.20",
    "newenabled": "1",
    "newportmappingdescription": "phone",
    "newleaseduration": "120",
}
ENTRY = PortMappingEntry("", 5060, UDP, "192.168.1.20", 5070, True, "phone", 120)


def test_a_row_of_the_table_is_read() -> None:
    assert GetGenericPortMappingEntry(0).parse(ROW) == ENTRY
    assert ENTRY.internal == PHONE


def test_what_others_wrote_into_a_row_is_made_printable() -> None:
    steering = "\x9b2J\u202eenohp\r\n\x07"
    written = dict.fromkeys(("newremotehost", "newinternalclient", "newportmappingdescription"), steering)
    entry = GetGenericPortMappingEntry(0).parse({**ROW, **written})
    assert (entry.remote_host, entry.internal_client, entry.description) == ("2J enohp",) * 3


def test_what_a_router_says_of_its_connection_is_made_printable() -> None:
    status = GetStatusInfo().parse({"newconnectionstatus": "Up\x9b", "newlastconnectionerror": "\x9b2J"})
    assert (status.connection_status, status.last_error) == ("Up", "2J")


def test_a_specific_row_is_completed_by_what_was_asked() -> None:
    told = {name: text for name, text in ROW.items() if name not in ("newexternalport", "newprotocol")}
    assert GetSpecificPortMappingEntry(5060, UDP).parse(told) == ENTRY
    assert GetSpecificPortMappingEntry(5060, UDP).parse({**told, "newexternalport": "?"}) == ENTRY


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"newleaseduration": "0"}, "lease_s", None),
        ({"newleaseduration": ""}, "lease_s", None),
        ({"newleaseduration": "4294967295"}, "lease_s", 4294967295),
        ({"newprotocol": "tcp"}, "transport", TCP),
        ({"newenabled": "false"}, "enabled", False),
        ({"newenabled": "True"}, "enabled", True),
        ({"newexternalport": "0"}, "external_port", 0),
        ({"newinternalclient": "phone.lan"}, "internal", None),
        ({"newinternalclient": ""}, "internal", None),
        ({"newportmappingdescription": "a&lt;b"}, "description", "a&lt;b"),
        ({"newremotehost": "192.0.2.1"}, "remote_host", "192.0.2.1"),
    ],
)
def test_a_row_may_be_spelled_like_this(changed: dict[str, str], field: str, value: object) -> None:
    assert getattr(GetGenericPortMappingEntry(0).parse({**ROW, **changed}), field) == value


@pytest.mark.parametrize(
    "name", ["newremotehost", "newenabled", "newportmappingdescription", "newleaseduration"]
)
def test_a_row_may_lack_what_says_little(name: str) -> None:
    GetGenericPortMappingEntry(0).parse({key: text for key, text in ROW.items() if key != name})


@pytest.mark.parametrize(
    "changed",
    [
        {"newprotocol": "BOTH"},
        {"newprotocol": ""},
        {"newexternalport": ""},
        {"newexternalport": "65536"},
        {"newinternalport": "-1"},
        {"newinternalport": "5060.0"},
        {"newleaseduration": "-1"},
        {"newleaseduration": "forever"},
        {"newleaseduration": "9" * 5000},
        {"newenabled": "maybe"},
    ],
)
def test_a_row_of_garbage_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        GetGenericPortMappingEntry(0).parse({**ROW, **changed})


def row(port: int, description: str = "dooom") -> str:
    # as in the comment of miniupnpd's GetListOfPortMappings
    return (
        f"<p:PortMappingEntry><p:NewRemoteHost>202.233.2.1</p:NewRemoteHost><p:NewExternalPort>{port}"
        "</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>2345</p:NewInternalPort>"
        "<p:NewInternalClient>192.168.1.137</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled>"
        f"<p:NewDescription>{description}</p:NewDescription><p:NewLeaseTime>345</p:NewLeaseTime>"
        "</p:PortMappingEntry>"
    )


def listing(rows: str) -> str:
    return f'<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection">{rows}</p:PortMappingList>'


def listed(port: int, description: str = "dooom") -> PortMappingEntry:
    return PortMappingEntry("202.233.2.1", port, TCP, "192.168.1.137", 2345, True, description, 345)


LIST = GetListOfPortMappings(1, 65535, TCP, number=3)


def test_a_listing_is_read_escaped_or_as_cdata() -> None:
    text = listing(row(2345) + row(2346, "a &amp; b"))
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    for inner in (escaped, f"<![CDATA[{text}]]>"):
        body = (
            "<Envelope><Body><GetListOfPortMappingsResponse>"
            f"<NewPortListing>{inner}</NewPortListing></GetListOfPortMappingsResponse></Body></Envelope>"
        )
        reply = parse_reply(200, body.encode(), "GetListOfPortMappings")
        assert LIST.parse(reply) == [listed(2345), listed(2346, "a & b")]


def test_a_listing_leaves_out_what_cannot_be_read() -> None:
    text = listing(row(1) + row(99999) + "<p:PortMappingEntry/>" + row(2, "a & b"))
    assert LIST.parse({"newportlisting": text}) == [listed(1), listed(2, "a & b")]


def test_a_listing_is_no_longer_than_was_asked_for() -> None:
    text = listing("".join(map(row, range(1, 10))))
    assert LIST.parse({"newportlisting": text}) == [listed(1), listed(2), listed(3)]


@pytest.mark.parametrize("text", ["", listing("")])
def test_a_listing_may_be_empty(text: str) -> None:
    assert LIST.parse({"newportlisting": text}) == []


@pytest.mark.parametrize("reply", [{}, {"newportlisting": "none"}, {"newportlisting": "<!DOCTYPE a><a/>"}])
def test_a_listing_of_garbage_is_refused(reply: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        LIST.parse(reply)


def test_the_firewall_is_read() -> None:
    reply = {"firewallenabled": "1", "inboundpinholeallowed": "0"}
    assert GetFirewallStatus().parse(reply) == FirewallStatus(enabled=True, inbound_pinhole_allowed=False)
    assert AddPinhole(HOST6, 5060, UDP, 60).parse({"uniqueid": "0"}) == 0
    assert GetPinholePackets(1).parse({"pinholepackets": "4294967295"}) == 4294967295


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        (GetFirewallStatus(), {"firewallenabled": "1"}),
        (GetFirewallStatus(), {"firewallenabled": "on", "inboundpinholeallowed": "1"}),
        (AddPinhole(HOST6, 5060, UDP, 60), {}),
        (AddPinhole(HOST6, 5060, UDP, 60), {"uniqueid": "65536"}),
        (GetPinholePackets(1), {"pinholepackets": "-1"}),
    ],
)
def test_garbage_from_the_firewall_is_refused(action: Action[Any], reply: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        action.parse(reply)


def test_actions_without_out_arguments_do_not_mind_any() -> None:
    for action, name, _ in CALLS:
        if name in ("AddPortMapping", "DeletePortMapping", "UpdatePinhole", "DeletePinhole"):
            assert action.parse({"anything": "?"}) is None


UP, DOWN = StatusInfo("Connected", "ERROR_NONE", 1), StatusInfo("Disconnected", "ERROR_NONE", 0)


def candidate(
    order: int,
    external: str | None,
    status: StatusInfo | None = UP,
    *,
    version: int = 1,
    host: str | None = None,
    udn: str | None = None,
    kind: str = "WANIPConnection",
    control: str | None = None,
) -> Candidate:
    return Candidate(
        host=ip_address(host or f"192.168.1.{order + 1}"),
        control=control or f"/control/{order}",
        udn=f"uuid:{order}" if udn is None else udn,
        service_type=f"urn:schemas-upnp-org:service:{kind}:{version}",
        version=version,
        status=status,
        external_address=None if external is None else ip_address(external),
        order=order,
    )


def orders(candidates: list[Candidate]) -> list[int]:
    return [candidate.order for candidate in rank(candidates)]


BEST_FIRST = [
    candidate(0, "11.22.33.1", version=2),
    candidate(1, "11.22.33.2"),
    candidate(2, "11.22.33.3", None),
    candidate(3, "192.168.0.2", version=2),
    candidate(4, "100.64.0.2"),
    candidate(5, None, version=2),
    candidate(6, "127.0.0.1"),
    candidate(7, "11.22.33.4", DOWN, version=2),
    candidate(8, None, None),
    candidate(9, None, DOWN),
]


def test_services_are_ranked_by_connection_then_address_then_version_then_order() -> None:
    assert orders(BEST_FIRST) == list(range(10))
    assert orders(BEST_FIRST[::-1]) == list(range(10))


def test_a_router_described_as_version_1_and_2_is_one_and_asked_as_version_2() -> None:
    fritz = [
        candidate(0, "11.22.33.1", host="192.168.178.1", udn="uuid:igd"),
        candidate(1, "11.22.33.1", host="192.168.178.1", udn="uuid:igd2", version=2),
    ]
    assert orders(fritz) == orders(fritz[::-1]) == [1]


def test_two_wan_devices_of_one_router_are_both_kept() -> None:
    for other in (None, "192.168.88.1"):
        mikrotik = [
            candidate(0, other, DOWN, host="192.168.88.1", udn="uuid:m"),
            candidate(1, "11.22.33.1", host="192.168.88.1", udn="uuid:m"),
        ]
        assert orders(mikrotik) == [1, 0]


def test_services_of_two_kinds_are_both_kept() -> None:
    both = [
        candidate(0, "11.22.33.1", host="192.168.1.1", udn="uuid:x", kind="WANPPPConnection"),
        candidate(1, "11.22.33.1", host="192.168.1.1", udn="uuid:x"),
    ]
    assert orders(both) == [0, 1]


def test_one_service_found_twice_is_one() -> None:
    twice = [
        candidate(0, None, DOWN, host="192.168.1.1", control="/c"),
        candidate(1, None, DOWN, host="192.168.1.1", control="/c"),
    ]
    assert orders(twice) == [0]


def test_a_router_that_answers_at_two_addresses_is_one() -> None:
    carp = [candidate(0, "11.22.33.1", udn="uuid:x"), candidate(1, "11.22.33.1", udn="uuid:x")]
    assert orders(carp) == [0]


def test_two_routers_that_look_alike_are_two() -> None:
    assert orders([candidate(0, "11.22.33.1"), candidate(1, "11.22.33.1")]) == [0, 1]
    assert orders([candidate(0, "11.22.33.1", udn=""), candidate(1, "11.22.33.1", udn="")]) == [0, 1]
    assert orders([candidate(0, None, udn="uuid:x"), candidate(1, None, udn="uuid:x")]) == [0, 1]


def test_the_ranking_does_not_depend_on_what_was_found_first() -> None:
    some = BEST_FIRST[1:6]
    assert {tuple(orders(list(order))) for order in permutations(some)} == {(1, 2, 3, 4, 5)}
