"""The quirks of real routers: each test shows what a simple client makes of one, and what ours does.

They have the numbers of the list of what real routers do. Numbers 2, 4, 6 and 23 are about multicast and take
a network: tests/lab/test_router_quirks.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from nattools.endpoint import AddressClass, Endpoint, TransportProtocol
from nattools.errors import EncodeError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.upnp.client import Igd, discover
from nattools.upnp.faults import (
    ActionNotAuthorizedError,
    ConflictInMappingEntryError,
    ConflictWithOtherMechanismsError,
    ExternalPortOnlySupportsWildcardError,
    InvalidArgsError,
    NoSuchEntryInArrayError,
    SamePortValuesRequiredError,
    WildCardNotPermittedInIntPortError,
)
from tests.fakes.igd import FakeIgd
from tests.fakes.igd_descriptions import IP1, ROOT1, Arguments, Conduct, Entry, Refusal
from tests.fakes.igd_hostile import behaviour, hang_up, reset
from tests.unit.fakes import CLIENT, IGD1, adding, answer_of, call, found, get, on_a_loop, search, send, soap

UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP
PUBLIC = IPv4Address("11.22.33.2")
PATIENCE_S = 10.0
TAKEN_PORT = 5070  # another host's, where a router is "taken"
ADD, ADD_ANY = "AddPortMapping", "AddAnyPortMapping"


def router(*names: str, **more: object) -> FakeIgd:
    return FakeIgd(replace(behaviour(*names), **more))  # type: ignore[arg-type]  # each is of its field's type


async def searched(igd: FakeIgd) -> list[Igd]:
    """What our search finds; only the end of the grace ends it."""
    return await discover(gateway=ip_address(igd.address), timeout_s=PATIENCE_S, grace_s=0.05)


@asynccontextmanager
async def client_of(igd: FakeIgd, state: Path) -> AsyncIterator[MappingClient]:
    """Our mapping client, which asks this router only."""
    async with (
        asyncio.timeout(4 * PATIENCE_S),
        MappingClient.open(
            protocols=[MappingProtocol.UPNP],
            gateway=ip_address(igd.address),
            state_directory=state,
            timeout_s=PATIENCE_S,
        ) as client,
    ):
        yield client


def wanted(
    port: int = 5060,
    *,
    external_port: int | None = None,
    lease_s: int | None = 600,
    transport: TransportProtocol = UDP,
    description: str = "a phone",
) -> MappingRequest:
    return MappingRequest(Endpoint(IPv4Address(0), port), transport, external_port, lease_s, description)


async def mapped(igd: FakeIgd, state: Path, request: MappingRequest | None = None) -> PortMapping:
    """A mapping, left on the router."""
    async with client_of(igd, state) as client:
        return await client.acquire(request or wanted(), keep=False)


def asked(igd: FakeIgd, *actions: str) -> list[Arguments]:
    """The arguments of the actions that the router was asked for."""
    return [arguments for action, arguments in igd.calls if action in (actions or (ADD, ADD_ANY))]


def posted_to(igd: FakeIgd) -> set[str]:
    return {one.what.removeprefix("POST ") for one in igd.served if one.what.startswith("POST ")}


def port_of(igd: FakeIgd, mapping: PortMapping) -> Entry:
    """The row of the router's table that a mapping is; there must be one."""
    [row] = [row for row in igd.table.entries if row.external_port == mapping.external_port]
    assert (row.internal_client, row.internal_port) == (str(mapping.internal.ip), mapping.internal.port)
    return row


# --- Found ---


@on_a_loop
async def test_quirk_01_ssdp_all_is_answered_with_the_first_device_only() -> None:
    """Google Wifi: the first is WFADevice, for a push button, and no gateway."""
    async with router("first-device-only") as igd:
        assert "WFADevice:1" in await found(igd, "ssdp:all")
        [one] = await searched(igd)
        assert one.is_online


@on_a_loop
async def test_quirk_03_the_answer_comes_from_another_port_than_1900() -> None:
    """TP-Link ER605, Sagemcom: a socket that is connected to port 1900 hears nothing."""
    async with router("new-port") as igd:
        ((_, source),) = await search(igd)
        assert source[1] != 1900
        [one] = await searched(igd)
        assert one.is_online


@pytest.mark.parametrize(
    "name", ["motley-headers", "lower-case-headers", "upper-case-headers", "bare-line-feeds"]
)
@on_a_loop
async def test_quirk_05_headers_are_spelled_in_every_way(name: str) -> None:
    """Allegro (`Location:` without a space), pfSense (commas in SERVER), and servers with an empty one."""
    async with router(name) as igd:
        lines = (await found(igd)).split("\r\n")
        usual = [line for line in lines if line.startswith(("LOCATION: ", "Location: "))]
        assert len(usual) == (name == "upper-case-headers")  # what a client looks for that knows one spelling
        [one] = await searched(igd)
        assert str(one.location) == igd.url


@pytest.mark.parametrize("answers_all_only", [False, True])
@on_a_loop
async def test_quirk_08_a_connection_of_ppp_version_2_at_a_url_of_ip(
    answers_all_only: bool, tmp_path: Path
) -> None:
    """Orange LiveBox: WANPPPConnection:2 at .../WANIPConn1. One may answer `ssdp:all` alone."""
    async with router("answers-all-only" if answers_all_only else "livebox") as igd:
        [one] = await searched(igd)
        assert one.service.service_type.endswith(":WANPPPConnection:2")
        port_of(igd, await mapped(igd, tmp_path))
        assert posted_to(igd) == {"/upnp/control/WANIPConn1"}


@on_a_loop
async def test_quirk_24_one_router_describes_itself_twice(tmp_path: Path) -> None:
    """FRITZ!Box: igddesc.xml of version 1 and igd2desc.xml of version 2, side by side."""
    async with router("both-versions") as igd:
        answers = [data.decode() for data, _ in await search(igd, IGD1, number=2)]
        assert len({line for answer in answers for line in answer.split("\r\n") if "LOCATION" in line}) == 2
        [one] = await searched(igd)
        assert one.service.version == 2
        port_of(igd, await mapped(igd, tmp_path))
        assert len(asked(igd, ADD)) == 1


# --- Described ---


@on_a_loop
async def test_quirk_07_types_of_the_dsl_forum_and_new_up_time() -> None:
    """Huawei HG531: `urn:dslforum-org:...` in place of `urn:schemas-upnp-org:...`, `NewUpTime`."""
    async with router("dsl-forum") as igd:
        assert "schemas-upnp-org:service" not in (await get(igd, "/rootDesc.xml")).body
        assert "NewUptime" not in await call(igd, "GetStatusInfo")
        [one] = await searched(igd)
        assert one.service.service_type == "urn:dslforum-org:service:WANPPPConnection:1"
        assert one.status is not None
        assert one.status.uptime_s is not None


@pytest.mark.parametrize("word", ["Connected", "Up"])
@on_a_loop
async def test_quirk_09_of_two_connections_with_one_id_only_the_second_is_up(
    word: str, tmp_path: Path
) -> None:
    """MikroTik: two WANDevices; some routers say `Up` for what the specification calls `Connected`."""
    down, up = behaviour("two-wans").roots[0].wan
    root = replace(behaviour("two-wans").roots[0], wan=(down, replace(up, status=word)))
    async with router("two-wans", roots=(root,)) as igd:
        assert (await call(igd, "GetStatusInfo"))["NewConnectionStatus"] == "Disconnected"
        assert down.id == up.id
        mapping = await mapped(igd, tmp_path)
        assert mapping.external == Endpoint(PUBLIC, 5060)
        [added] = [one for one in igd.served if one.what == "POST /ctl/2" and "AddPort" in str(one.arguments)]
        assert added.kind == "http"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("url-base", "/upnp/control/WAN1"),
        ("absolute-control", "/control?Layer3Forwarding"),
        ("relative-control", "/dir/ctl/IPConn"),
    ],
)
@on_a_loop
async def test_quirk_10_where_the_control_url_leads(name: str, path: str, tmp_path: Path) -> None:
    """Linksys WAG200G (URLBase), WRT120N (absolute, with a query), and URLs without a leading slash."""
    async with router(name) as igd:
        control = igd.behaviour.roots[0].wan[0].control
        assert f"/{control.lstrip('/')}" != path  # put behind the host, as a simple client does
        port_of(igd, await mapped(igd, tmp_path))
        assert posted_to(igd) == {path}


@pytest.mark.parametrize("name", ["new-external-port", "no-scpd", "long-scpd", "bogus-scpd"])
@on_a_loop
async def test_quirk_11_the_service_description_is_wrong_or_missing(name: str, tmp_path: Path) -> None:
    """Pace PX5001 (404), ZTE and Sagemcom (long), miniupnpd before 2.3.5 (AddAny's result is misnamed)."""
    async with router(name, "taken") as igd:
        scpd = await get(igd, IP1.scpd)
        assert "NewReservedPort" not in scpd.body
        igd.served.clear()
        mapping = await mapped(igd, tmp_path, wanted(TAKEN_PORT))
        assert port_of(igd, mapping).external_port != TAKEN_PORT
        assert mapping.proven
        assert len(asked(igd, ADD_ANY)) == 1
        assert [one.what for one in igd.served if one.what.startswith("GET ")] == ["GET /rootDesc.xml"]


# --- Spoken with ---


@pytest.mark.parametrize("name", ["camel-case-faults", "faults-with-200"])
@on_a_loop
async def test_quirk_12_faults_are_spelled_oddly_or_sent_as_a_success(name: str, tmp_path: Path) -> None:
    """MikroTik sends faults with HTTP 200; others spell `faultCode`, or have another prefix."""
    async with router(name, "taken") as igd:
        [service] = igd.behaviour.roots[0].wan
        naive = answer_of(await send(igd, b"".join(soap(ADD, adding(TAKEN_PORT), service))))
        assert naive.status == 200 or "<faultcode>" not in naive.body
        assert "<s:Fault>" not in naive.body
        with pytest.raises(ConflictInMappingEntryError, match=r"leads to 192\.168\.0\.77:5070"):
            await mapped(igd, tmp_path, wanted(TAKEN_PORT, external_port=TAKEN_PORT))
        assert port_of(igd, await mapped(igd, tmp_path, wanted(TAKEN_PORT))).external_port != TAKEN_PORT
    async with router(name, "not-permitted") as igd:
        with pytest.raises(ActionNotAuthorizedError, match="606 ActionNotAuthorized"):
            await mapped(igd, tmp_path)


@pytest.mark.parametrize("transport", TransportProtocol)
@on_a_loop
async def test_quirk_13_the_protocol_must_be_in_upper_case(
    transport: TransportProtocol, tmp_path: Path
) -> None:
    """Any other word is TCP for miniupnpd, and an error for others."""
    async with router("upper-case-protocol") as igd:
        assert (await call(igd, ADD, adding(NewProtocol="udp")))["errorCode"] == "402"
        igd.calls.clear()
        async with client_of(igd, tmp_path) as client:
            mapping = await client.acquire(wanted(transport=transport), keep=False)
            assert port_of(igd, mapping).protocol == transport.name
            await client.release(mapping)
        assert igd.table.entries == []
        said = {a["NewProtocol"] for _, a in igd.calls if "NewProtocol" in a}
        assert said == {transport.name}


@pytest.mark.parametrize("name", ["one-segment", "strict-http"])
@on_a_loop
async def test_quirk_19_http_that_must_be_just_so(name: str, tmp_path: Path) -> None:
    """Linksys reads one segment; DrayTek takes a half-close for the end; `Expect` and chunks are unknown."""
    async with router(name) as igd:
        head, body = soap(ADD, adding(), igd.behaviour.roots[0].wan[0])
        naive = await send(igd, head, body, ends=name == "strict-http")
        assert naive == b"" or answer_of(naive).status == 400
        igd.served.clear()
        port_of(igd, await mapped(igd, tmp_path))
        requests = [one for one in igd.served if one.kind == "http"]
        assert {one.segments for one in requests} <= {1, None}
        assert all(not {"expect", "transfer-encoding"} & one.arguments.keys() for one in requests)
        assert all("content-length" in one.arguments for one in requests if one.what.startswith("POST"))


@on_a_loop
async def test_quirk_19_values_may_be_empty() -> None:
    """DrayTek: no uptime and no last error."""
    async with router("empty-values") as igd:
        assert (await call(igd, "GetStatusInfo"))["NewUptime"] == ""
        [one] = await searched(igd)
        assert one.is_online
        assert one.status is not None
        assert one.status.uptime_s is None


@on_a_loop
async def test_quirk_20_only_three_entities_are_known(tmp_path: Path) -> None:
    """Servers that cannot decode `&quot;` and `&apos;`, and answer a default namespace with 500."""
    description = '<Tom> & "Jerry\'s"'
    async with router("naive-xml") as igd:
        [service] = igd.behaviour.roots[0].wan
        naive = adding(NewPortMappingDescription="&quot;Jerry&apos;s&quot;")
        assert answer_of(await send(igd, b"".join(soap(ADD, naive, service)))).status == 500
        mapping = await mapped(igd, tmp_path, wanted(description=description))
        assert port_of(igd, mapping).description == description


@pytest.mark.parametrize("conduct", [hang_up(), reset()], ids=["hangs up", "resets"])
@on_a_loop
async def test_quirk_21_an_unknown_action_ends_the_connection(conduct: Conduct, tmp_path: Path) -> None:
    """Ubee: says that it is of version 2, and has none of its actions."""
    missing = dict.fromkeys((ADD_ANY, "GetListOfPortMappings"), conduct)
    async with router("taken", conduct=missing) as igd:
        mapping = await mapped(igd, tmp_path, wanted(TAKEN_PORT))
        assert [action for action, _ in igd.calls if action.startswith("Add")] == [ADD, ADD_ANY, ADD]
        assert port_of(igd, mapping).external_port != TAKEN_PORT
        [one] = await searched(igd)
        assert {entry.external_port for entry in await one.entries()} == {TAKEN_PORT, mapping.external_port}


# --- Refused ---


@pytest.mark.parametrize("name", ["permanent-only", "permanent-only-402"])
@on_a_loop
async def test_quirk_14_only_permanent_mappings(name: str, tmp_path: Path) -> None:
    """MikroTik and many others: 725, and some say 402; the client remembers it."""
    async with router("igd1", name) as igd:
        assert "errorCode" in await call(igd, ADD, adding())
        igd.calls.clear()
        async with client_of(igd, tmp_path) as client:
            mapping = await client.acquire(wanted(), keep=False)
            assert mapping.lease_s is None
            await client.acquire(wanted(5062), keep=False)
        assert [a["NewLeaseDuration"] for a in asked(igd)] == ["600", "0", "0"]


@on_a_loop
async def test_quirk_14_no_permanent_mappings(tmp_path: Path) -> None:
    """The opposite: a lease of 0 is refused with 402 (n0 net-tools#52)."""
    async with router("no-permanent") as igd:
        assert (await call(igd, ADD, adding(lease=0)))["errorCode"] == "402"
        mapping = await mapped(igd, tmp_path, wanted(lease_s=None))
        assert mapping.lease_s == port_of(igd, mapping).lease_s > 0


@on_a_loop
async def test_quirk_15_invalid_arguments_mean_that_the_table_is_full(tmp_path: Path) -> None:
    """402 where nothing is invalid (miniupnp#92): both leases are tried, the message tells what it may be."""
    async with router("full") as igd:
        with pytest.raises(InvalidArgsError, match="table of port mappings is full") as caught:
            await mapped(igd, tmp_path)
        assert caught.value.code == 402
        assert [a["NewLeaseDuration"] for a in asked(igd)] == ["600", "0"]


@pytest.mark.parametrize(("name", "port"), [("taken-501", TAKEN_PORT), ("forbidden-501", 80)])
@on_a_loop
async def test_quirk_15_action_failed_means_that_the_port_is_taken(
    name: str, port: int, tmp_path: Path
) -> None:
    """Linksys: 501 for a port that is another's or forbidden."""
    async with router("igd1", name) as igd:
        assert (await call(igd, ADD, adding(port)))["errorCode"] == "501"
        mapping = await mapped(igd, tmp_path, wanted(port))
        assert port_of(igd, mapping).external_port not in (port, TAKEN_PORT, *range(1024))


@pytest.mark.parametrize("name", ["igd1", "igd2"])
@on_a_loop
async def test_quirk_16_a_conflict_may_be_another_hosts_mapping(name: str, tmp_path: Path) -> None:
    """718 as it is meant: the other host's mapping stays, and another port is found."""
    async with router("taken", name) as igd:
        [theirs] = igd.table.entries
        mapping = await mapped(igd, tmp_path, wanted(TAKEN_PORT))
        assert port_of(igd, mapping).external_port != TAKEN_PORT
        assert theirs in igd.table.entries


@on_a_loop
async def test_quirk_16_a_conflict_may_be_about_the_internal_address(tmp_path: Path) -> None:
    """As IGD:1 in secure mode, miniupnpd says 718 for any client but the one that asks."""
    async with router("igd1", "not-yours-718") as igd:
        naive = await call(igd, ADD, adding(NewInternalClient=igd.address.replace("127.0.", "127.1.")))
        assert naive["errorCode"] == "718"
        igd.served.clear()
        mapping = await mapped(igd, tmp_path)
        assert {one.peer for one in igd.served if one.kind == "soap"} == {str(mapping.internal.ip)}
        port_of(igd, mapping)
        [one] = await searched(igd)
        other = Endpoint(IPv4Address("127.9.9.9"), 5064)
        with pytest.raises(ConflictInMappingEntryError, match=r"does not take 127\.9\.9\.9 for it"):
            await one.acquire(other, UDP, external_port=None, lease_s=600, description="")


@on_a_loop
async def test_quirk_16_a_conflict_may_be_ones_own_mapping_from_before(tmp_path: Path) -> None:
    """Some say 718 to the mapping's own host, after its restart (syncthing#9324): no second one is made."""
    own = Entry(5060, "UDP", CLIENT, 5060, 600, "a phone")
    async with router("igd1", entries=(own,), fault_on={ADD: 718}) as igd:
        mapping = await mapped(igd, tmp_path)
        assert mapping.external == Endpoint(PUBLIC, 5060)
        assert [replace(row, lease_s=600) for row in igd.table.entries] == [own]
        assert len(asked(igd)) == 1


@on_a_loop
async def test_quirk_16_this_device_may_be_allowed_nothing(tmp_path: Path) -> None:
    """FRITZ!Box, where independent port sharing is off: 606, whatever the port."""
    async with router("not-permitted") as igd:
        with pytest.raises(ActionNotAuthorizedError, match="FRITZ!Box: permit independent port sharing"):
            await mapped(igd, tmp_path)
        assert len(asked(igd)) == 2  # once more with another port, for miniupnpd's sake


@pytest.mark.parametrize("external_port", [0, 65536, -1])
@on_a_loop
async def test_quirk_17_port_zero_would_be_every_port(external_port: int, tmp_path: Path) -> None:
    """Routers of version 1 forward all ports for port 0; miniupnpc maps 4464 for 70000."""
    async with router("igd1", "port-zero-is-all") as igd:
        assert "errorCode" not in await call(igd, ADD, adding(0, 5060))
        igd.calls.clear()
        [one] = await searched(igd)
        with pytest.raises(EncodeError, match="is not between 1 and 65535"):
            await one.acquire(
                Endpoint(one.local, 5060), UDP, external_port=external_port, lease_s=600, description=""
            )
        assert asked(igd) == []


@on_a_loop
async def test_quirk_17_external_and_internal_port_must_be_the_same(tmp_path: Path) -> None:
    """724: the same port is what is asked for first, and a wish for another is told to be in vain."""
    async with router("same-port") as igd:
        assert (await call(igd, ADD, adding(6000, 5060)))["errorCode"] == "724"
        assert port_of(igd, await mapped(igd, tmp_path)).external_port == 5060
        with pytest.raises(SamePortValuesRequiredError, match="that equals the internal one"):
            await mapped(igd, tmp_path, wanted(external_port=6000))


@on_a_loop
async def test_quirk_17_the_remote_host_must_be_left_empty(tmp_path: Path) -> None:
    """726."""
    async with router("no-remote-host") as igd:
        assert (await call(igd, ADD, adding(NewRemoteHost="192.0.2.1")))["errorCode"] == "726"
        port_of(igd, await mapped(igd, tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "tries"),
    [
        ("all-ports-only", ExternalPortOnlySupportsWildcardError, 1),
        ("other-mechanism", ConflictWithOtherMechanismsError, 5),
        ("internal-wildcard", WildCardNotPermittedInIntPortError, 1),
    ],
)
@on_a_loop
async def test_quirk_17_what_cannot_be_had_is_not_asked_for_in_another_way(
    name: str, error: type[Exception], tries: int, tmp_path: Path
) -> None:
    """727, 729 and 732: only 729 may fare better with another port; none is a reason to ask for port 0."""
    async with router("igd1", name) as igd:
        with pytest.raises(error):
            await mapped(igd, tmp_path)
        assert len(asked(igd)) == tries
        assert "0" not in {a["NewExternalPort"] for a in asked(igd)}


@on_a_loop
async def test_quirk_17_a_port_of_the_routers_own_is_left_to_it(tmp_path: Path) -> None:
    """729 for one port only."""
    async with router("igd1", fault_on={ADD: Refusal(729, times=1)}) as igd:
        assert port_of(igd, await mapped(igd, tmp_path)).external_port != 5060


# --- Told ---


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no-address", None),
        ("address-zero", None),
        ("address-loopback", AddressClass.LOOPBACK),
        ("address-private", AddressClass.PRIVATE),
        ("address-shared", AddressClass.SHARED),
    ],
)
@on_a_loop
async def test_quirk_18_an_address_that_is_none(name: str, kind: AddressClass | None, tmp_path: Path) -> None:
    """Said by connected routers behind another NAT (miniupnpd among them): never offered as public."""
    async with router(name) as igd:
        assert (await call(igd, "GetStatusInfo"))["NewConnectionStatus"] == "Connected"
        mapping = await mapped(igd, tmp_path)
        assert (mapping.public, mapping.address_class) == (None, kind)
        assert mapping.behind_second_nat == (kind in (AddressClass.PRIVATE, AddressClass.SHARED))


@on_a_loop
async def test_quirk_18_a_connection_with_a_public_address_comes_first(tmp_path: Path) -> None:
    """Of two that are connected, whatever their order."""
    private = replace(IP1, control="/ctl/1", external_address="192.168.9.2")
    root = replace(ROOT1, wan=(private, replace(IP1, control="/ctl/2")))
    async with router(roots=(root,)) as igd:
        mapping = await mapped(igd, tmp_path)
        assert mapping.public == Endpoint(PUBLIC, 5060)


@on_a_loop
async def test_quirk_18_an_address_that_is_another_hosts_is_told_as_the_router_tells_it(
    tmp_path: Path,
) -> None:
    """`ext_ip` of miniupnpd: nobody but a STUN server can tell; the mapping says whose word it is."""
    async with router("address-of-another") as igd:
        mapping = await mapped(igd, tmp_path)
        assert mapping.external == Endpoint(IPv4Address("11.22.33.44"), 5060)
        assert mapping.gateway == ip_address(igd.address)


@pytest.mark.parametrize("name", ["igd1", "igd2"])
@on_a_loop
async def test_quirk_22_a_success_without_a_mapping(name: str, tmp_path: Path) -> None:
    """kaklakariada/portmapper#139: only reading it back tells, and nothing is claimed."""
    async with router(name, "pretends") as igd:
        assert "errorCode" not in await call(igd, ADD, adding())
        with pytest.raises(NoSuchEntryInArrayError, match="said that it mapped UDP port 5060, but shows no"):
            await mapped(igd, tmp_path)
        assert igd.table.entries == []


@pytest.mark.parametrize("form", ["description-escaped", "description-cut"])
@on_a_loop
async def test_quirk_22_the_description_comes_back_changed(form: str, tmp_path: Path) -> None:
    """Escaped once more, or cut: the mapping is known again by where it leads, and can be removed."""
    async with router("igd1", form) as igd:
        async with client_of(igd, tmp_path) as client:
            mapping = await client.acquire(wanted(description="<my> phone & yours"), keep=False)
            assert mapping.proven
            assert port_of(igd, mapping).description != "<my> phone & yours"
            assert (await client.acquire(wanted(description="<my> phone & yours"), keep=False)).proven
            [one] = await searched(igd)
            [row] = await one.entries()
            assert row.external_port == 5060
            await client.release(mapping)
        assert igd.table.entries == []


@on_a_loop
async def test_quirk_22_an_error_is_the_end_of_the_list() -> None:
    """713 after the last row."""
    async with router("igd1", "taken") as igd:
        assert (await call(igd, "GetGenericPortMappingEntry", {"NewPortMappingIndex": "1"}))[
            "errorCode"
        ] == "713"
        [one] = await searched(igd)
        assert [row.external_port for row in await one.entries()] == [TAKEN_PORT]


@on_a_loop
async def test_quirk_06_a_device_name_without_a_valid_uuid() -> None:
    """Thomson TG585. Its slow answers by multicast are in tests/lab/test_router_quirks.py."""
    async with router("invalid-uuid") as igd:
        [one] = await searched(igd)
        assert one.description.udn == "uuid:UPnP_Thomson TG585-1_00-14-7F"
