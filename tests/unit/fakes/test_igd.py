"""The fake router keeps to UPnP, and breaks it in the way it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from xml.etree import ElementTree as ET

import pytest

from tests.fakes.igd import SSDP_PORT, FakeIgd, Served
from tests.fakes.igd_descriptions import (
    OWN_ADDRESS,
    PINHOLES,
    ROOT1,
    WAN_IP,
    WAN_PPP,
    Behaviour,
    Entry,
    Refusal,
    Service,
)
from tests.fakes.igd_hostile import BEHAVIOURS, HOSTILE, ORDINARY, QUIRKS, behaviour, merged
from tests.unit.fakes import (
    CLIENT,
    IGD1,
    PATIENCE_S,
    Answer,
    Subscriber,
    adding,
    answer_of,
    call,
    fake,
    found,
    get,
    key,
    on_a_loop,
    search,
    send,
    served_by,
    soap,
)

# --- An ordinary router ---


@served_by("igd2")
async def test_a_search_leads_to_the_description(igd: FakeIgd) -> None:
    ((data, source),) = await search(igd)
    assert source == (igd.address, SSDP_PORT)
    assert f"\r\nST: {IGD1}\r\n" in data.decode()
    assert f"\r\nLOCATION: {igd.url}\r\n" in data.decode()
    answer = await get(igd, "/rootDesc.xml")
    assert answer.status == 200
    types = [e.text for e in ET.fromstring(answer.body).iter() if e.tag.endswith("serviceType")]
    assert types == [WAN_IP + "2", PINHOLES.type]
    assert [(s.kind, s.what) for s in igd.served] == [("ssdp", IGD1), ("http", "GET /rootDesc.xml")]


@served_by("igd1")
async def test_ssdp_all_is_answered_for_every_device_and_service(igd: FakeIgd) -> None:
    answers = await search(igd, "ssdp:all", number=6)
    assert len({data for data, _ in answers}) == 6


@served_by("igd2")
async def test_a_mapping_is_made_read_back_listed_and_deleted(igd: FakeIgd) -> None:
    assert await call(igd, "GetExternalIPAddress") == {"NewExternalIPAddress": OWN_ADDRESS}
    assert (await call(igd, "GetStatusInfo"))["NewConnectionStatus"] == "Connected"
    assert await call(igd, "AddPortMapping", adding()) == {"AddPortMappingResponse": ""}
    row = {
        "NewInternalPort": "5060",
        "NewInternalClient": CLIENT,
        "NewEnabled": "1",
        "NewPortMappingDescription": "a phone",
        "NewLeaseDuration": "3600",
    }
    assert await call(igd, "GetSpecificPortMappingEntry", key()) == row
    first = await call(igd, "GetGenericPortMappingEntry", {"NewPortMappingIndex": "0"})
    assert first == key() | row
    beyond = await call(igd, "GetGenericPortMappingEntry", {"NewPortMappingIndex": "1"})
    assert beyond["errorCode"] == "713"
    wanted = {"NewStartPort": "1", "NewEndPort": "65535", "NewProtocol": "UDP", "NewManage": "0"}
    listed = await call(igd, "GetListOfPortMappings", wanted | {"NewNumberOfPorts": "0"})
    assert "<p:NewExternalPort>5060</p:NewExternalPort>" in listed["NewPortListing"]
    assert igd.calls[2] == ("AddPortMapping", adding())
    await call(igd, "DeletePortMapping", key())
    assert (await call(igd, "GetSpecificPortMappingEntry", key()))["errorCode"] == "714"


@served_by("igd2")
async def test_leases_end(igd: FakeIgd) -> None:
    await call(igd, "AddPortMapping", adding(lease=60))
    igd.advance(59)
    assert len(igd.table.entries) == 1
    igd.advance(1)
    assert igd.table.entries == []


def test_a_lease_of_zero_is_a_week_in_version_2_and_for_ever_in_version_1() -> None:
    async def lease_of(named: str) -> list[int]:
        async with fake(named) as igd:
            await call(igd, "AddPortMapping", adding(lease=0))
            return [entry.lease_s for entry in igd.table.entries]

    assert asyncio.run(lease_of("igd2")) == [604_800]
    assert asyncio.run(lease_of("igd1")) == [0]


@served_by("igd1")
async def test_version_1_does_not_know_the_actions_of_version_2(igd: FakeIgd) -> None:
    for action in ("AddAnyPortMapping", "GetListOfPortMappings", "DeletePortMappingRange"):
        assert (await call(igd, action, adding()))["errorCode"] == "401"


@served_by("taken")
async def test_any_port_is_the_next_one_that_is_free(igd: FakeIgd) -> None:
    assert (await call(igd, "AddPortMapping", adding(5070)))["errorCode"] == "718"
    assert await call(igd, "AddAnyPortMapping", adding(5070)) == {"NewReservedPort": "5071"}


@served_by("taken")
async def test_a_range_is_deleted_as_far_as_it_is_the_callers(igd: FakeIgd) -> None:
    await call(igd, "AddPortMapping", adding(5071))
    wanted = {"NewStartPort": "5000", "NewEndPort": "5999", "NewProtocol": "UDP", "NewManage": "0"}
    await call(igd, "DeletePortMappingRange", wanted)
    assert [entry.external_port for entry in igd.table.entries] == [5070]


@served_by("igd2")
async def test_pinholes_are_made_renewed_and_closed(igd: FakeIgd) -> None:
    made = await call(igd, "AddPinhole", {"LeaseTime": "60"}, PINHOLES)
    assert made == {"UniqueID": "1"}
    await call(igd, "UpdatePinhole", {"UniqueID": "1", "NewLeaseTime": "90"}, PINHOLES)
    assert await call(igd, "GetPinholePackets", made, PINHOLES) == {"PinholePackets": "0"}
    await call(igd, "DeletePinhole", made, PINHOLES)
    assert (await call(igd, "DeletePinhole", made, PINHOLES))["errorCode"] == "704"


@on_a_loop
async def test_a_subscriber_is_told_the_address_and_each_new_one() -> None:
    subscriber = Subscriber()
    server = await asyncio.start_server(subscriber.serve, CLIENT, 0)
    port = server.sockets[0].getsockname()[1]
    async with fake("igd2") as igd:
        target = igd.behaviour.roots[0].wan[0].events
        callback = f"<http://{CLIENT}:{port}/cb>"
        answer = await get(igd, target, "SUBSCRIBE", CALLBACK=callback, NT="upnp:event")
        assert answer.status == 200
        sid = answer.head.split("SID: ")[1].split("\r\n")[0]
        first = await subscriber.next()
        assert first.startswith("NOTIFY /cb HTTP/1.1\r\n")
        assert f"SID: {sid}\r\nSEQ: 0\r\n" in first
        assert f"<ExternalIPAddress>{OWN_ADDRESS}</ExternalIPAddress>" in first
        igd.change_external_address("11.22.33.9")
        second = await subscriber.next()
        assert "SEQ: 1\r\n" in second
        assert "<ExternalIPAddress>11.22.33.9</ExternalIPAddress>" in second
        assert (await get(igd, target, "SUBSCRIBE", SID=sid)).status == 200
        igd.reboot()
        assert (await get(igd, target, "SUBSCRIBE", SID=sid)).status == 412
        elsewhere = await get(igd, target, "SUBSCRIBE", CALLBACK="<http://127.0.0.9/>", NT="upnp:event")
        assert elsewhere.status == 412
    server.close()


@served_by("taken")
async def test_a_reboot_loses_the_table_and_is_announced(igd: FakeIgd) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((CLIENT, 0))
        request = f"M-SEARCH * HTTP/1.1\r\nST: {IGD1}\r\n\r\n"
        await loop.sock_sendto(sock, request.encode(), (igd.address, SSDP_PORT))
        async with asyncio.timeout(PATIENCE_S):
            assert (await loop.sock_recv(sock, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")
            igd.reboot()
            heard = [(await loop.sock_recv(sock, 4096)).decode() for _ in range(14)]
    assert igd.table.entries == []
    assert [("ssdp:byebye" in m, "BOOTID.UPNP.ORG: 7" in m) for m in heard[:7]] == [(True, True)] * 7
    assert [("ssdp:alive" in m, "BOOTID.UPNP.ORG: 8" in m) for m in heard[7:]] == [(True, True)] * 7


# --- Odd ones ---


def test_every_quirk_has_behaviours_and_each_a_name_of_its_own() -> None:
    assert sorted(QUIRKS) == list(range(1, 25))
    assert all(QUIRKS.values())
    assert len(BEHAVIOURS) == len(HOSTILE) + sum(map(len, QUIRKS.values())) + len(ORDINARY)


def test_behaviours_are_put_together() -> None:
    both = merged(Behaviour(fault_on={"A": 1}, prefix="x"), Behaviour(fault_on={"B": 2}, pretends=True))
    assert both == Behaviour(fault_on={"A": 1, "B": 2}, prefix="x", pretends=True)


@pytest.mark.parametrize(
    ("named", "arguments", "code"),
    [
        ("upper-case-protocol", adding(NewProtocol="udp"), 402),
        ("permanent-only", adding(), 725),
        ("permanent-only-402", adding(), 402),
        ("no-permanent", adding(lease=0), 402),
        ("full", adding(), 402),
        ("taken", adding(5070), 718),
        ("taken-501", adding(5070), 501),
        ("forbidden-501", adding(80), 501),
        ("igd2", adding(NewInternalClient="127.0.0.9"), 606),
        ("not-yours-718", adding(NewInternalClient="127.0.0.9"), 718),
        ("always-718", adding(), 718),
        ("not-permitted", adding(), 606),
        ("igd2", adding(0, 5060), 716),
        ("igd2", adding(5060, 0), 732),
        ("same-port", adding(5060, 5061), 724),
        ("no-remote-host", adding(NewRemoteHost="127.0.0.9"), 726),
        ("all-ports-only", adding(), 727),
        ("other-mechanism", adding(), 729),
        ("internal-wildcard", adding(), 732),
        ("igd2", adding(NewProtocol="BOTH"), 402),
        ("igd2", {}, 402),
    ],
)
@on_a_loop
async def test_a_mapping_is_refused(named: str, arguments: dict[str, str], code: int) -> None:
    async with fake(named) as igd:
        before = igd.table.entries
        assert (await call(igd, "AddPortMapping", arguments))["errorCode"] == str(code)
        assert igd.table.entries == before


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("igd2", adding(NewProtocol="udp")),
        ("permanent-only", adding(lease=0)),
        ("insecure", adding(NewInternalClient="127.0.0.9")),
        ("port-zero-is-all", adding(0, 5060)),
        ("same-port", adding()),
        ("taken", adding(5071)),
    ],
)
@on_a_loop
async def test_a_mapping_is_granted(named: str, arguments: dict[str, str]) -> None:
    async with fake(named) as igd:
        before = len(igd.table.entries)
        assert "errorCode" not in await call(igd, "AddPortMapping", arguments)
        assert len(igd.table.entries) == before + 1


@served_by(Behaviour(fault_on={"AddPortMapping": Refusal(501, times=2)}))
async def test_a_fault_may_be_for_the_first_calls_only(igd: FakeIgd) -> None:
    codes = [(await call(igd, "AddPortMapping", adding())).get("errorCode") for _ in range(3)]
    assert codes == ["501", "501", None]


@pytest.mark.parametrize(
    ("named", "part"),
    [
        ("lower-case-headers", "\r\nlocation: http://"),
        ("upper-case-headers", "\r\nSERVER: FREEBSD/11, UPNP/1.1, MINIUPNPD/2,1,0\r\nLOCATION: http://"),
        ("motley-headers", "\r\nServer:\r\nLocation:http://"),
        ("bare-line-feeds", "\nLocation: http://"),
        ("invalid-uuid", "\r\nUSN: uuid:UPnP_Thomson TG585-1_00-14-7F::"),
        ("notify", "\r\nNTS: ssdp:alive\r\n"),
    ],
)
@on_a_loop
async def test_an_answer_is_spelled_oddly(named: str, part: str) -> None:
    async with fake(named) as igd:
        assert part in await found(igd)


@served_by("first-device-only")
async def test_the_first_device_only_answers_for_all(igd: FakeIgd) -> None:
    assert "WFADevice:1" in await found(igd, "ssdp:all")
    assert f"LOCATION: {igd.url}\r\n" in await found(igd)


@served_by("new-port")
async def test_an_answer_comes_from_another_port(igd: FakeIgd) -> None:
    ((_, source),) = await search(igd)
    assert source[0] == igd.address
    assert source[1] != SSDP_PORT


@served_by("other-address")
async def test_an_answer_and_its_location_are_of_another_address(igd: FakeIgd) -> None:
    ((data, source),) = await search(igd)
    assert source[0] == igd.places.host != igd.address
    assert f"LOCATION: http://{source[0]}:" in data.decode()


@pytest.mark.parametrize(("named", "version"), [("igd1", 2), ("multicast-only", 1), ("answers-all-only", 1)])
@on_a_loop
async def test_a_search_is_not_answered(named: str, version: int) -> None:
    async with fake(named) as igd:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await search(igd, f"{IGD1[:-1]}{version}")


@served_by("two-wans")
async def test_two_connections_share_an_id_and_one_is_up(igd: FakeIgd) -> None:
    down, up = igd.behaviour.roots[0].wan
    assert down.id == up.id
    assert (await call(igd, "GetStatusInfo", service=down))["NewConnectionStatus"] == "Disconnected"
    assert (await call(igd, "GetStatusInfo", service=up))["NewConnectionStatus"] == "Connected"


@pytest.mark.parametrize(
    ("named", "control", "path"),
    [
        ("url-base", "control/WAN1", "/upnp/control/WAN1"),
        ("absolute-control", "http://{host}:{port}/control?Layer3Forwarding", "/control?Layer3Forwarding"),
        ("relative-control", "ctl/IPConn", "/dir/ctl/IPConn"),
    ],
)
@on_a_loop
async def test_a_control_url_is_written_in_its_way(named: str, control: str, path: str) -> None:
    async with fake(named) as igd:
        root = igd.behaviour.roots[0]
        description = await get(igd, root.path)
        assert f"<controlURL>{igd.places.fill(control)}</controlURL>" in description.body
        service = Service(root.wan[0].type, control=path)
        assert "NewExternalIPAddress" in await call(igd, "GetExternalIPAddress", service=service)


def test_other_types_are_described() -> None:
    async def types(named: str) -> list[str]:
        async with fake(named) as igd:
            assert (await get(igd, "/rootDesc.xml")).status == 200
            return [service.type for service in igd.behaviour.roots[0].wan]

    assert asyncio.run(types("dsl-forum")) == ["urn:dslforum-org:service:WANPPPConnection:1"]
    assert asyncio.run(types("livebox")) == [WAN_PPP + "2"]


@served_by("both-versions")
async def test_two_descriptions_are_of_one_router(igd: FakeIgd) -> None:
    answers = await search(igd, number=2)
    assert ["igddesc.xml" in data.decode() for data, _ in answers] == [True, False]
    old, new = igd.behaviour.roots
    await call(igd, "AddPortMapping", adding(), old.wan[0])
    assert "NewInternalPort" in await call(igd, "GetSpecificPortMappingEntry", key(), new.wan[0])


@on_a_loop
async def test_out_arguments_are_renamed_and_replaced() -> None:
    odd = merged(behaviour("new-external-port"), behaviour("no-address"))
    async with fake(odd) as igd:
        assert await call(igd, "AddAnyPortMapping", adding()) == {"NewExternalPort": "5060"}
        assert await call(igd, "GetExternalIPAddress") == {"NewExternalIPAddress": ""}


def test_faults_are_spelled_oddly() -> None:
    async def fault(named: str) -> Answer:
        async with fake(named) as igd:
            return answer_of(await send(igd, b"".join(soap("Nonsense", {}, igd.behaviour.roots[0].wan[0]))))

    assert "<faultCode>SOAP-ENV:Client</faultCode>" in asyncio.run(fault("camel-case-faults")).body
    in_disguise = asyncio.run(fault("faults-with-200"))
    assert in_disguise.status == 200
    assert "<SOAP:Fault>" in in_disguise.body
    assert asyncio.run(fault("igd2")).status == 500


def test_a_request_in_two_segments_is_counted_and_may_be_refused() -> None:
    async def run() -> None:
        async with fake("one-segment") as igd:
            head, body = soap("GetExternalIPAddress", {}, igd.behaviour.roots[0].wan[0])
            assert answer_of(await send(igd, head, body)).status == 400
            assert answer_of(await send(igd, head + body)).status == 200
            assert [s.segments for s in igd.served if s.kind == "http"] == [2, 1]

    if sys.platform != "linux":
        pytest.skip("only Linux counts a connection's segments")
    asyncio.run(run())


@served_by("strict-http")
async def test_a_strict_router_breaks_off(igd: FakeIgd) -> None:
    head, body = soap("GetExternalIPAddress", {}, igd.behaviour.roots[0].wan[0])
    assert answer_of(await send(igd, head + body)).status == 200
    assert await send(igd, head + body, ends=True) == b""
    for disliked in (b"Expect: 100-continue", b"Transfer-Encoding: chunked"):
        request = head.replace(b"\r\n\r\n", b"\r\n" + disliked + b"\r\n\r\n")
        with suppress(ConnectionResetError):  # it leaves the body unread
            assert await send(igd, request + body) == b""


@served_by("naive-xml")
async def test_a_naive_router_knows_three_entities_and_prefixes_only(igd: FakeIgd) -> None:
    service = igd.behaviour.roots[0].wan[0]

    async def status(description: str, prefix: bytes = b"s:") -> int:
        arguments = adding(NewPortMappingDescription=description)
        head, body = soap("AddPortMapping", arguments, service)
        body = body.replace(b"s:", prefix).replace(b"xmlns:s=", b"xmlns=" if not prefix else b"xmlns:s=")
        head = head.partition(b"Content-Length")[0] + f"Content-Length: {len(body)}\r\n\r\n".encode()
        return answer_of(await send(igd, head + body)).status

    assert await status("&lt;a&amp;b&gt;") == 200
    assert await status("a&quot;b") == 500
    assert await status("a", prefix=b"") == 500


@served_by("unknown-hangs-up")
async def test_a_router_hangs_up_at_an_unknown_action(igd: FakeIgd) -> None:
    service = igd.behaviour.roots[0].wan[0]
    assert await send(igd, b"".join(soap("AddAnyPortMapping", adding(), service))) == b""
    assert igd.calls == [("AddAnyPortMapping", adding())]
    assert "errorCode" not in await call(igd, "AddPortMapping", adding())


@on_a_loop
async def test_success_may_be_a_lie_and_silence_too() -> None:
    async with fake("pretends") as igd:
        assert "errorCode" not in await call(igd, "AddPortMapping", adding())
        assert igd.table.entries == []
    async with fake("maps-without-answer") as igd:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call(igd, "AddPortMapping", adding())
        assert len(igd.table.entries) == 1


def test_a_description_comes_back_changed() -> None:
    async def back(named: str) -> str:
        async with fake(named) as igd:
            await call(igd, "AddPortMapping", adding(NewPortMappingDescription="a&lt;b and more"))
            return (await call(igd, "GetSpecificPortMappingEntry", key()))["NewPortMappingDescription"]

    assert asyncio.run(back("igd2")) == "a<b and more"
    assert asyncio.run(back("description-escaped")) == "a&lt;b and more"
    assert asyncio.run(back("description-cut")) == "a<b and "


# --- Hostile ones ---


@pytest.mark.parametrize("named", sorted(HOSTILE))
@on_a_loop
async def test_a_hostile_router_opens_and_closes_while_it_is_at_it(named: str) -> None:
    searched = asyncio.Event()

    def note(served: Served) -> None:
        if served.kind == "ssdp":
            searched.set()

    async with FakeIgd(behaviour(named), on_served=note) as igd:
        service = igd.behaviour.roots[0].wan[0]
        requests = (
            b"GET /rootDesc.xml HTTP/1.1\r\nHost: x\r\n\r\n",
            b"".join(soap("GetListOfPortMappings", {}, service)),
            b"".join(soap("GetExternalIPAddress", {}, service)),
        )
        for request in requests:
            reader, writer = await asyncio.open_connection(igd.places.host, igd.places.port)
            writer.write(request)
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(0.05):
                    await reader.read(1 << 16)
            writer.transport.abort()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((CLIENT, 0))
            sock.sendto(f"M-SEARCH * HTTP/1.1\r\nST: {IGD1}\r\n\r\n".encode(), (igd.address, SSDP_PORT))
            async with asyncio.timeout(PATIENCE_S):
                await searched.wait()
        assert igd.decoy_hits == []


@served_by(merged(behaviour("flood"), Behaviour(flood=100)))
async def test_a_flood_is_of_distinct_devices(igd: FakeIgd) -> None:
    answers = {data for data, _ in await search(igd, number=100)}
    assert len(answers) == 100
    assert b"/99.xml\r\n" in b"".join(answers)


@pytest.mark.parametrize("named", ["loopback", "other-host", "dns-name", "unspecified"])
@on_a_loop
async def test_whoever_follows_a_lure_is_seen(named: str) -> None:
    async with fake(f"location-{named}") as igd:
        lure = (await found(igd)).split("LOCATION: http://")[1].split("/")[0]
        host, _, port = lure.rpartition(":")
        host = {"localhost": CLIENT, "0.0.0.0": CLIENT}.get(host, host)
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            writer.write(b"GET /secret HTTP/1.1\r\n\r\n")
            await reader.readline()
        assert igd.decoy_hits == ["GET /secret HTTP/1.1"]


@served_by("description-redirects")
async def test_a_redirect_leads_to_the_decoy(igd: FakeIgd) -> None:
    answer = await get(igd, "/rootDesc.xml")
    assert answer.status == 302
    assert f"Location: http://{igd.places.decoy_host}:{igd.places.decoy_port}/secret" in answer.head


def test_a_walk_may_have_no_end() -> None:
    async def row(named: str, index: int) -> dict[str, str]:
        async with fake(named) as igd:
            return await call(igd, "GetGenericPortMappingEntry", {"NewPortMappingIndex": str(index)})

    assert asyncio.run(row("endless-list", 60_000))["NewExternalPort"] == "60001"
    assert asyncio.run(row("same-entry-for-ever", 60_000))["NewExternalPort"] == "1"


# --- As a process ---


@on_a_loop
async def test_as_a_process_it_says_what_it_was_asked_and_obeys() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.igd",
        "--address", "127.0.76.2", "--behaviour", "igd1", "--behaviour", "taken", "--json-events",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            ready = json.loads(await process.stdout.readline())
            assert ready["kind"] == "ready"
            process.stdin.write(b"address 11.22.33.9\nforget\n")
            host, port = ready["what"].removeprefix("http://").partition("/")[0].split(":")
            service = ROOT1.wan[0]
            said = b""
            while b"11.22.33.9" not in said:  # its input and its web server are not in step
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"".join(soap("GetExternalIPAddress", {}, service)))
                said = await reader.read(-1)
                writer.close()
            served = [json.loads(await process.stdout.readline()) for _ in range(2)]
            assert [(one["kind"], one["what"]) for one in served] == [
                ("http", f"POST {service.control}"),
                ("soap", "GetExternalIPAddress"),
            ]
            process.terminate()
            assert await process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


MULTICAST = """
ip link set lo up
ip link add lan type veth peer name far && ip link set far up && ip link set lan up
ip addr add 192.168.0.1/24 dev lan && ip route add default dev lan
exec "$0" -c "$1"
"""
SEARCH_BY_MULTICAST = """
import asyncio, socket, struct
from tests.fakes.igd import FakeIgd, behaviour

async def heard(*names):
    async with FakeIgd(behaviour(*names), address="192.168.0.1", interface="lan") as igd:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            via = struct.pack("4s4s", socket.inet_aton("239.255.255.250"), socket.inet_aton("192.168.0.1"))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, via)
            sock.bind(("239.255.255.250", 1900) if "notify" in names else ("192.168.0.1", 0))
            sock.setblocking(False)
            search = b"M-SEARCH * HTTP/1.1\\r\\nST: upnp:rootdevice\\r\\n\\r\\n"
            sock.sendto(search, ("239.255.255.250", 1900))
            async with asyncio.timeout(10):
                while (data := await asyncio.get_running_loop().sock_recv(sock, 4096)) == search:
                    pass
        return data.split()[0].decode(), [one.arguments["by"] for one in igd.served]

print(asyncio.run(heard("multicast-only")))
print(asyncio.run(heard("notify")))
"""


@pytest.mark.lab
def test_multicast_is_heard_and_sent() -> None:
    unshare = [shutil.which("unshare") or "false", "--map-root-user", "--net"]
    if subprocess.run([*unshare, "ip", "link"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    script = [*unshare, "sh", "-ec", MULTICAST, sys.executable, SEARCH_BY_MULTICAST]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["('HTTP/1.1', ['multicast'])", "('NOTIFY', ['multicast'])"]


def test_a_table_begins_with_what_it_is_given() -> None:
    entry = Entry(5080, "TCP", "192.168.0.9", 5080, lease_s=60, description="somebody's")
    igd = fake(Behaviour(entries=(entry,)))
    assert igd.table.entries == [entry]
