"""SSDP: the messages, one search, and what is heard of a router that is watched."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.machine import Machine
from nattools.upnp.ssdp import (
    MOST_HEADERS,
    MOST_LOCATIONS,
    MOST_MESSAGE_BYTES,
    MOST_RESPONDERS,
    MOST_UNLIKELY_RESPONDERS,
    MULTICAST_IPV4,
    MULTICAST_IPV6,
    Answer,
    Heard,
    Notification,
    NotificationKind,
    RouterSign,
    Search,
    SearchEnded,
    SearchSocket,
    Watch,
    is_gateway,
    parse,
    printable,
    search_request,
)

IGD_1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
IGD_2 = "urn:schemas-upnp-org:device:InternetGatewayDevice:2"
WFA = "urn:schemas-wifialliance-org:device:WFADevice:1"
GATEWAY = Endpoint.of("192.168.1.1", 1900)
UDN = "uuid:bee7052b-49e8-3597-b545-55a1e38ac11"

# Google Wifi, Sagemcom and Huawei: captures in tailscale's net/portmapper/upnp_test.go (BSD-3)
GOOGLE = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n"
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:2"
    b"\r\nUSN: uuid:a9708184-a6c0-413a-bbac-11bcf7e30ece::urn:schemas-upnp-org:device:InternetGatewayDevice:2"
    b"\r\nEXT:\r\nSERVER: Linux/5.4.0-1034-gcp UPnP/1.1 MiniUPnPd/1.9\r\n"
    b'LOCATION: http://192.168.86.1:5000/rootDesc.xml\r\nOPT: "http://schemas.upnp.org/upnp/1/0/"; ns=01\r\n'
    b"01-NLS: 1\r\nBOOTID.UPNP.ORG: 1\r\nCONFIGID.UPNP.ORG: 1337\r\n\r\n"
)
SAGEMCOM = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nDATE: Tue, 14 Dec 2021 07:51:29 GMT\r\nEXT:\r\n"
    b"LOCATION: http://192.168.0.1:49153/69692b70/gatedesc0b.xml\r\n"
    b'OPT: "http://schemas.upnp.org/upnp/1/0/"; ns=01\r\n01-NLS: cabd6488-1dd1-11b2-9e52-a7461e1f098e\r\n'
    b"SERVER: \r\nUser-Agent: redsonic\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"USN: uuid:75802409-bccb-40e7-8e6c-fa095ecce13e::urn:schemas-upnp-org:device:InternetGatewayDevice:1"
    b"\r\n\r\n"
)
HUAWEI = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nDATE: Fri, 25 Nov 2022 07:04:37 GMT\r\nEXT:\r\n"
    b"LOCATION: http://192.168.1.1:49652/49652gatedesc.xml\r\n"
    b'OPT: "http://schemas.upnp.org/upnp/1/0/"; ns=01\r\n01-NLS: ce8dd8b0-732d-11be-a4a1-a2b26c8915fb\r\n'
    b"SERVER: Linux/4.4.240, UPnP/1.0, Portable SDK for UPnP devices/1.12.1\r\n"
    b"X-User-Agent: UPnP/1.0 DLNADOC/1.50\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"USN: uuid:00e0fc37-2525-2828-2500-0C31DCD93368::urn:schemas-upnp-org:device:InternetGatewayDevice:1"
    b"\r\n\r\n"
)


def answer(location: str = "http://192.168.1.1:5000/rootDesc.xml", target: str = IGD_1) -> bytes:
    return f"HTTP/1.1 200 OK\r\nST: {target}\r\nLOCATION: {location}\r\nUSN: {UDN}::{target}\r\n\r\n".encode()


def notify(
    kind: NotificationKind = NotificationKind.ALIVE,
    target: str = IGD_1,
    *,
    udn: str = UDN,
    boot_id: int | None = None,
    next_boot_id: int | None = None,
) -> bytes:
    lines = [
        "NOTIFY * HTTP/1.1",
        "HOST: 239.255.255.250:1900",
        "LOCATION: http://192.168.1.1:5000/rootDesc.xml",
        f"NT: {target}",
        f"NTS: {kind.value}",
        f"USN: {udn}::{target}",
    ]
    if boot_id is not None:
        lines.append(f"BOOTID.UPNP.ORG: {boot_id}")
    if next_boot_id is not None:
        lines.append(f"NEXTBOOTID.UPNP.ORG: {next_boot_id}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class TestMessages:
    def test_a_search_by_multicast(self) -> None:
        assert search_request(IGD_1, MULTICAST_IPV4) == (
            b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"
            b'MAN: "ssdp:discover"\r\nMX: 1\r\nST: ' + IGD_1.encode() + b"\r\n\r\n"
        )

    def test_a_search_by_unicast_names_its_host_and_has_an_mx_for_libupnp(self) -> None:
        request = search_request("ssdp:all", GATEWAY, mx_s=3)
        assert b"\r\nHOST: 192.168.1.1:1900\r\n" in request
        assert b"\r\nMX: 3\r\n" in request

    def test_a_search_by_ipv6_names_no_scope(self) -> None:
        assert b"HOST: [ff02::c]:1900\r\n" in search_request(IGD_1, MULTICAST_IPV6)
        assert b"HOST: [fe80::1]:1900\r\n" in search_request(IGD_1, Endpoint.of("fe80::1%eth0", 1900))

    @pytest.mark.parametrize(
        ("data", "location", "target", "udn", "server", "boot_id"),
        [
            (
                GOOGLE,
                "http://192.168.86.1:5000/rootDesc.xml",
                IGD_2,
                "uuid:a9708184-a6c0-413a-bbac-11bcf7e30ece",
                "Linux/5.4.0-1034-gcp UPnP/1.1 MiniUPnPd/1.9",
                1,
            ),
            (
                SAGEMCOM,
                "http://192.168.0.1:49153/69692b70/gatedesc0b.xml",
                IGD_1,
                "uuid:75802409-bccb-40e7-8e6c-fa095ecce13e",
                "",
                None,
            ),
            (
                HUAWEI,
                "http://192.168.1.1:49652/49652gatedesc.xml",
                IGD_1,
                "uuid:00e0fc37-2525-2828-2500-0C31DCD93368",
                "Linux/4.4.240, UPnP/1.0, Portable SDK for UPnP devices/1.12.1",
                None,
            ),
        ],
        ids=["google", "sagemcom", "huawei"],
    )
    def test_the_answers_of_real_routers(
        self, data: bytes, location: str, target: str, udn: str, server: str, boot_id: int | None
    ) -> None:
        message = parse(data)
        assert message == Answer(location, target, f"{udn}::{target}", server, boot_id)
        assert message.udn == udn
        assert message.is_likely

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nLocation:http://192.168.1.1/a\r\nst:upnp:rootdevice\r\nusn:uuid:1\r\n\r\n",
            b"HTTP/1.0 200\nlocation:   http://192.168.1.1/a  \nST: upnp:rootdevice\nUSN: uuid:1\n",
            b"http/1.1  200 ok\r\nLOCATION: http://192.168.1.1/a\0\r\nST: upnp:rootdevice\r\nUSN: uuid:1",
            b"\r\nHTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/a\r\nno header\r\n"
            b"ST: upnp:rootdevice\r\nUSN: uuid:1\r\nLOCATION: http://192.168.1.2/second\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/a\r\nST: upnp:rootdevice\r\nUSN: uuid:1\r\n\r\n"
            b"\xff\0 what follows: is no matter\r\nUSN: uuid:2\r\n",
        ],
        ids=["no space", "LF only", "NUL", "odd lines", "garbage behind"],
    )
    def test_sloppy_answers_say_the_same(self, data: bytes) -> None:
        assert parse(data) == Answer("http://192.168.1.1/a", "upnp:rootdevice", "uuid:1", "", None)

    def test_an_invalid_uuid_is_kept_as_it_is(self) -> None:
        message = parse(b"HTTP/1.1 200 OK\r\nUSN: uuid:UPnP_SpeedTouch585-1_CP0::upnp:rootdevice\r\n\r\n")
        assert message.udn == "uuid:UPnP_SpeedTouch585-1_CP0"

    def test_what_is_missing_is_none_or_empty(self) -> None:
        message = parse(b"HTTP/1.1 200 OK\r\nLOCATION:\r\nBOOTID.UPNP.ORG: soon\r\n\r\n")
        assert message == Answer(None, "", "", "", None)
        assert not message.is_likely

    def test_bytes_that_are_no_utf_8_are_latin_1(self) -> None:
        assert parse(b"HTTP/1.1 200 OK\r\nSERVER: Box/\xe9t\xe9\r\n\r\n").server == "Box/été"

    def test_texts_cannot_play_with_a_terminal(self) -> None:
        data = "HTTP/1.1 200 OK\r\nSERVER: a\x1b[31m\u202eb\x9b\r\n\r\n".encode() + b"x" * 300
        assert parse(data).server == "a [31m b"
        assert len(printable("x" * 5000)) == 200

    @pytest.mark.parametrize("kind", NotificationKind)
    def test_a_notification(self, kind: NotificationKind) -> None:
        message = parse(notify(kind, boot_id=7, next_boot_id=8))
        assert message == Notification(
            kind, "http://192.168.1.1:5000/rootDesc.xml", IGD_1, f"{UDN}::{IGD_1}", "", 7, 8
        )
        assert message.udn == UDN
        assert message.is_likely

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "neither"),
            (b"\r\n\r\n", "neither"),
            (b"GET / HTTP/1.1\r\n\r\n", "neither"),
            (search_request(IGD_1, MULTICAST_IPV4), "somebody else's search"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", "other than 200"),
            (b"HTTP/1.1\r\n\r\n", "other than 200"),
            (b"NOTIFY * HTTP/1.1\r\nNT: upnp:rootdevice\r\n\r\n", "unknown kind"),
            (b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:propchange\r\n\r\n", "unknown kind"),
            (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MOST_HEADERS + 1), "headers"),
            (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MOST_MESSAGE_BYTES, "8192 are the most"),
        ],
    )
    def test_anything_else_is_a_decode_error(self, data: bytes, reason: str) -> None:
        with pytest.raises(DecodeError, match=reason):
            parse(data)

    def test_as_many_headers_as_allowed_are_read(self) -> None:
        lines = b"A: b\r\n" * (MOST_HEADERS - 1) + b"ST: last\r\n\r\n"
        message = parse(b"HTTP/1.1 200 OK\r\n" + lines)
        assert isinstance(message, Answer)
        assert message.search_target == "last"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (IGD_1, True),
        ("urn:schemas-upnp-org:device:InternetGatewayDevice:99", True),
        ("urn:dslforum-org:device:InternetGatewayDevice:1", True),
        ("URN:SCHEMAS-UPNP-ORG:DEVICE:INTERNETGATEWAYDEVICE:1", True),
        ("urn:schemas-upnp-org:device:WANDevice:1", True),
        ("urn:schemas-upnp-org:device:WANConnectionDevice:2", True),
        ("urn:schemas-upnp-org:service:WANIPConnection:1", True),
        ("urn:schemas-upnp-org:service:WANPPPConnection", True),
        (f"{UDN}::{IGD_1}", True),
        ("upnp:rootdevice", False),
        ("ssdp:all", False),
        (UDN, False),
        (WFA, False),
        ("urn:example:device:NotAnInternetGatewayDevice:1", False),
        ("", False),
    ],
)
def test_a_gateway_is_known_by_its_type_in_any_version_and_domain(target: str, expected: bool) -> None:
    assert is_gateway(target) is expected


SOCKETS = [SearchSocket("lan", GATEWAY.ip), SearchSocket("wlan")]


def search(timeout_s: float = 3.0) -> Search:
    machine: Machine[Heard | SearchEnded] = Search(SOCKETS, timeout_s=timeout_s, now=0)
    assert isinstance(machine, Search)
    return machine


def events(machine: Search) -> list[Heard | SearchEnded]:
    taken = []
    while (event := machine.next_event()) is not None:
        taken.append(event)
    return taken


def heard(machine: Search) -> list[tuple[str, str | None, bool]]:
    """Of each event its source, its location and whether it is likely."""
    return [(str(e.source.ip), e.answer.location, e.likely) for e in events(machine) if isinstance(e, Heard)]


class TestSearch:
    def test_asks_by_unicast_first_then_by_multicast_for_both_versions(self) -> None:
        sent = [(t.socket, t.destination, t.data) for t in search().transmits()]
        assert sent == [
            (socket, destination, search_request(target, destination))
            for socket, destination in (
                ("lan", GATEWAY),
                ("lan", MULTICAST_IPV4),
                ("wlan", MULTICAST_IPV4),
            )
            for target in (IGD_1, IGD_2)
        ]

    def test_asks_over_ipv6_with_the_scope_of_the_gateway(self) -> None:
        gateway = ip_address("fe80::1%eth0")
        machine = Search([SearchSocket("six", gateway, ipv6=True)], timeout_s=1, now=0)
        destinations = [t.destination for t in machine.transmits()]
        assert destinations == [Endpoint(gateway, 1900)] * 2 + [MULTICAST_IPV6] * 2

    def test_repeats_at_doubling_intervals_with_all_once_and_ends(self) -> None:
        machine = search(timeout_s=2.0)
        machine.transmits()
        times = []
        while (due := machine.timeout_at()) is not None:
            machine.handle_timeout(now=due)
            sent = machine.transmits()
            times.append((due, len(sent), sum(b"ssdp:all" in t.data for t in sent)))
        assert times == [(0.25, 9, 3), (0.75, 6, 0), (1.75, 6, 0), (2.0, 0, 0)]
        assert events(machine) == [SearchEnded()]

    @pytest.mark.parametrize(("target", "asks_all"), [(IGD_1, False), ("urn:x:device:WFADevice:1", True)])
    def test_nobody_is_asked_for_all_once_a_gateway_has_answered(self, target: str, asks_all: bool) -> None:
        machine = search()
        machine.transmits()
        machine.receive(answer(target=target), GATEWAY, now=0.1)
        machine.handle_timeout(now=0.25)
        assert any(b"ssdp:all" in t.data for t in machine.transmits()) is asks_all

    def test_an_early_driver_does_no_harm_and_a_late_one_causes_no_burst(self) -> None:
        machine = search()
        machine.transmits()
        machine.handle_timeout(now=0.2)
        assert machine.transmits() == []
        machine.handle_timeout(now=2.0)
        assert len(machine.transmits()) == 9
        assert machine.timeout_at() == 2.5

    def test_without_sockets_it_only_listens(self) -> None:
        machine = Search([], timeout_s=1, now=0)
        assert machine.transmits() == []
        machine.receive(notify(), GATEWAY, now=0.5)
        assert len(heard(machine)) == 1

    def test_an_answer_counts_from_any_port_and_names_its_socket(self) -> None:
        machine = search()
        source = Endpoint.of("192.168.1.254", 54321)
        data = answer("http://192.168.1.254:5000/rootDesc.xml")
        machine.receive(data, source, now=0.1, socket="wlan")
        assert events(machine) == [Heard(parse(data), source, "wlan", likely=True)]

    def test_every_answer_arriving_twice_and_from_two_ports_is_heard_once(self) -> None:
        machine = search()
        for port in (1900, 40000, 1900):
            machine.receive(answer(), GATEWAY.with_port(port), now=0.1)
            machine.receive(answer(target=IGD_2), GATEWAY.with_port(port), now=0.1)
        assert heard(machine) == [("192.168.1.1", "http://192.168.1.1:5000/rootDesc.xml", True)]

    def test_a_notification_is_an_answer(self) -> None:
        machine = search()
        machine.receive(notify(), GATEWAY, now=0.1)
        machine.receive(answer(), GATEWAY, now=0.2)
        (event,) = events(machine)
        assert isinstance(event, Heard)
        assert isinstance(event.answer, Notification)

    @pytest.mark.parametrize("kind", [NotificationKind.BYEBYE, NotificationKind.UPDATE])
    def test_other_notifications_are_none(self, kind: NotificationKind) -> None:
        machine = search()
        machine.receive(notify(kind), GATEWAY, now=0.1)
        assert events(machine) == []

    def test_what_seems_to_be_no_gateway_is_unlikely_until_it_says_otherwise(self) -> None:
        machine = search()
        for target in ("upnp:rootdevice", WFA, IGD_1, "upnp:rootdevice", IGD_1):
            machine.receive(answer(target=target), GATEWAY, now=0.1)
        location = "http://192.168.1.1:5000/rootDesc.xml"
        assert heard(machine) == [("192.168.1.1", location, False), ("192.168.1.1", location, True)]

    def test_what_is_known_to_be_a_gateway_stays_one(self) -> None:
        machine = search()
        machine.receive(answer(), GATEWAY, now=0.1)
        machine.receive(answer(target="upnp:rootdevice"), GATEWAY, now=0.1)
        assert [likely for _, _, likely in heard(machine)] == [True]

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            search_request(IGD_1, MULTICAST_IPV4),
            b"HTTP/1.1 200 OK\r\nST: " + IGD_1.encode() + b"\r\n\r\n",
            answer("https://192.168.1.1/"),
            answer("http://router/"),
        ],
    )
    def test_what_cannot_be_fetched_is_passed_over_and_takes_no_room(self, data: bytes) -> None:
        machine = search()
        for _ in range(MOST_LOCATIONS + 1):
            machine.receive(data, GATEWAY, now=0.1)
        machine.receive(answer(), GATEWAY, now=0.1)
        assert len(heard(machine)) == 1

    def test_each_responder_has_few_locations(self) -> None:
        machine = search()
        for number in range(100):
            machine.receive(answer(f"http://192.168.1.1/{number}"), GATEWAY, now=0.1)
        assert [location for _, location, _ in heard(machine)] == [
            f"http://192.168.1.1/{number}" for number in range(MOST_LOCATIONS)
        ]

    def test_ten_thousand_answers_are_few_events_and_the_default_gateway_is_among_them(self) -> None:
        machine = search()
        for number in range(10_000):
            source = Endpoint.of(f"10.0.{number >> 8}.{number & 255}", 1900)
            machine.receive(answer(f"http://{source.ip}/{number}"), source, now=0.1)
        machine.receive(answer(), GATEWAY, now=0.2)
        sources = [source for source, _, _ in heard(machine)]
        assert len(sources) == MOST_RESPONDERS + 1
        assert sources[-1] == "192.168.1.1"

    def test_a_crowd_of_others_does_not_crowd_a_gateway_out(self) -> None:
        machine = search()
        for number in range(1000):
            source = Endpoint.of(f"10.0.{number >> 8}.{number & 255}", 1900)
            machine.receive(answer(f"http://{source.ip}/", WFA), source, now=0.1)
        assert len(heard(machine)) == MOST_UNLIKELY_RESPONDERS
        elsewhere = Endpoint.of("192.168.1.254", 1900)
        machine.receive(answer("http://192.168.1.254/"), elsewhere, now=0.2)
        assert heard(machine) == [("192.168.1.254", "http://192.168.1.254/", True)]

    def test_after_the_end_nothing_counts(self) -> None:
        machine = search()
        machine.handle_timeout(now=3.0)
        machine.receive(answer(), GATEWAY, now=3.1)
        assert events(machine) == [SearchEnded()]
        assert machine.transmits() == []
        machine.handle_timeout(now=9.0)
        assert events(machine) == []


ALIVE, BYEBYE, UPDATE = NotificationKind.ALIVE, NotificationKind.BYEBYE, NotificationKind.UPDATE
BURST = (
    "upnp:rootdevice",
    IGD_1,
    "urn:schemas-upnp-org:device:WANDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
)


def watch(boot_id: int | None = None) -> Watch:
    return Watch(udn=UDN, address=GATEWAY.ip, boot_id=boot_id)


def signs(tracker: Watch, *datagrams: bytes) -> list[RouterSign]:
    taken = (tracker.receive(data, GATEWAY) for data in datagrams)
    return [sign for sign in taken if sign is not None]


class TestWatch:
    def test_a_router_that_goes_and_comes_back_is_two_signs_of_two_bursts(self) -> None:
        goodbyes = [notify(BYEBYE, target, boot_id=1) for target in BURST] * 2
        hellos = [notify(ALIVE, target, boot_id=2) for target in BURST] * 2
        tracker = watch(boot_id=1)
        assert signs(tracker, *goodbyes) == [RouterSign.GONE]
        assert signs(tracker, *hellos) == [RouterSign.RESTARTED]
        assert signs(tracker, *hellos) == []

    def test_without_boot_ids_too(self) -> None:
        burst = [notify(ALIVE, target) for target in BURST]
        tracker = watch()
        assert signs(tracker, *burst) == []
        assert signs(tracker, notify(BYEBYE), *burst, *burst) == [RouterSign.GONE, RouterSign.RESTARTED]

    @pytest.mark.parametrize("boot_id", [2, 0])
    def test_another_boot_id_is_a_restart(self, boot_id: int) -> None:
        burst = [notify(ALIVE, target, boot_id=boot_id) for target in BURST]
        assert signs(watch(boot_id=1), *burst) == [RouterSign.RESTARTED]

    def test_the_first_boot_id_is_none_and_the_same_one_is_none(self) -> None:
        assert signs(watch(), *[notify(ALIVE, boot_id=1)] * 3, notify(ALIVE)) == []

    def test_an_announced_boot_id_counts_once(self) -> None:
        update = notify(UPDATE, boot_id=1, next_boot_id=2)
        tracker = watch(boot_id=1)
        assert signs(tracker, update, update, notify(ALIVE, boot_id=2)) == [RouterSign.RESTARTED]

    def test_an_update_without_a_boot_id_counts_once(self) -> None:
        tracker = watch()
        assert signs(tracker, notify(UPDATE), notify(UPDATE), notify(ALIVE)) == [RouterSign.RESTARTED]
        assert signs(tracker, notify(UPDATE)) == [RouterSign.RESTARTED]

    def test_an_update_as_the_first_thing_heard_sets_the_boot_id(self) -> None:
        tracker = watch()
        assert signs(tracker, notify(UPDATE, boot_id=1, next_boot_id=2)) == [RouterSign.RESTARTED]
        assert signs(tracker, notify(ALIVE, boot_id=2)) == []

    def test_the_devices_inside_the_router_count_by_its_address(self) -> None:
        inner = notify(BYEBYE, "urn:schemas-upnp-org:device:WANDevice:1", udn="uuid:inner")
        assert signs(watch(), inner) == [RouterSign.GONE]
        assert watch().receive(inner, Endpoint.of("192.168.1.2", 1900)) is None

    def test_the_router_counts_by_its_name_from_another_address(self) -> None:
        data = notify(BYEBYE, "upnp:rootdevice", udn=UDN.upper())
        assert watch().receive(data, Endpoint.of("192.168.1.2", 1900)) is RouterSign.GONE

    def test_a_media_server_beside_it_does_not_count(self) -> None:
        beside = notify(BYEBYE, "urn:schemas-upnp-org:device:MediaServer:1", udn="uuid:media")
        assert signs(watch(), beside) == []

    def test_without_a_name_only_the_address_counts(self) -> None:
        tracker = Watch(udn="", address=GATEWAY.ip)
        nameless = notify(BYEBYE, "upnp:rootdevice", udn="")
        assert tracker.receive(nameless, GATEWAY) is None
        assert tracker.receive(notify(BYEBYE, udn=""), GATEWAY) is RouterSign.GONE

    @pytest.mark.parametrize("data", [b"", b"\xff" * 9000, answer(), search_request("ssdp:all", GATEWAY)])
    def test_what_is_no_notification_says_nothing(self, data: bytes) -> None:
        assert signs(watch(), data) == []
