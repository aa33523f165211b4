"""The laboratory's router grants mappings: a real miniupnpd says so, and datagrams show it."""

from __future__ import annotations

import re
import shutil
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LabError
from nattools.lab.igd import HTTP_PORT, PCP_PORT, Igd, RunningIgd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, SERVER_ENDPOINTS, STRANGER, Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, OpenSockets, next_datagram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Build = Callable[..., "Bench"]

ROUTER, ROUTER_IPV6 = "192.168.0.1", "2001:db8:1::1"
CLIENT, CLIENT_IPV6 = Endpoint.of("192.168.0.108", 5070), Endpoint.of("2001:db8:1::108", 5070)
OUTSIDE_IPV6 = Endpoint.of("2001:db8::20", 3478)
NEXT_HOP = Endpoint.of("11.22.33.1", 3478)
EXTERNAL_PORT = 20000

WAN_IP = "/ctl/IPConn urn:schemas-upnp-org:service:WANIPConnection:1"
WAN_IPV6_FIREWALL = "/ctl/IP6FCtl urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
NO_SUCH_ENTRY, ACTION_FAILED, CONFLICT = {"errorCode": "714"}, {"errorCode": "501"}, {"errorCode": "718"}

NETWORK_FAILURE = 3  # RFC 6886 §3.5


class Bench:
    """A laboratory with an Igd, and what a test asks its router."""

    def __init__(self, lab: Lab, open_sockets: OpenSockets) -> None:
        self.lab = lab
        self._open_sockets = open_sockets

    def socket(self, at: Endpoint, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A socket on the host that has this address."""
        inside = at.ip in (CLIENT.ip, CLIENT_IPV6.ip)
        [opened] = self._open_sockets(self.lab.client if inside else self.lab.public, [at], kind=kind)
        opened.settimeout(PATIENCE_SECONDS)
        return opened

    def http(self, request: str, router: str = ROUTER) -> str:
        home = CLIENT_IPV6 if ":" in router else CLIENT
        with self.socket(home.with_port(0), socket.SOCK_STREAM) as connection:
            connection.connect((router, HTTP_PORT))
            connection.sendall(request.encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def upnp(self, where: str, action: str, router: str = ROUTER, **arguments: object) -> dict[str, str]:
        """The out arguments of an action, or its error code."""
        path, service = where.split()
        envelope = "http://schemas.xmlsoap.org/soap/"
        values = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
        body = (
            f'<?xml version="1.0"?><s:Envelope xmlns:s="{envelope}envelope/"'
            f' s:encodingStyle="{envelope}encoding/"><s:Body><u:{action} xmlns:u="{service}">{values}'
            f"</u:{action}></s:Body></s:Envelope>"
        )
        # The daemon refuses a name for its host, which could be rebound.
        host = f"[{router}]" if ":" in router else router
        answer = self.http(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: text/xml\r\n"
            f'SOAPAction: "{service}#{action}"\r\nContent-Length: {len(body)}\r\n\r\n{body}',
            router,
        )
        return dict(re.findall(r"<(New\w+|UniqueID|errorCode)>([^<]*)</", answer))

    def map_by_upnp(self, client: str = str(CLIENT.ip)) -> dict[str, str]:
        return self.upnp(
            WAN_IP,
            "AddPortMapping",
            NewRemoteHost="",
            NewExternalPort=EXTERNAL_PORT,
            NewProtocol="UDP",
            NewInternalPort=CLIENT.port,
            NewInternalClient=client,
            NewEnabled=1,
            NewPortMappingDescription="test",
            NewLeaseDuration=600,
        )

    def mapped_to(self) -> str | None:
        """Where the daemon says that the external port leads."""
        answer = self.upnp(
            WAN_IP,
            "GetSpecificPortMappingEntry",
            NewRemoteHost="",
            NewExternalPort=EXTERNAL_PORT,
            NewProtocol="UDP",
        )
        if answer == NO_SUCH_ENTRY:
            return None
        return f"{answer['NewInternalClient']}:{answer['NewInternalPort']}"

    def external_address(self) -> str:
        return self.upnp(WAN_IP, "GetExternalIPAddress")["NewExternalIPAddress"]

    def nat_pmp(self, request: bytes) -> bytes:
        with self.socket(CLIENT.with_port(0)) as asking:
            asking.sendto(request, (ROUTER, PCP_PORT))
            return asking.recv(1100)

    def epoch(self) -> int:
        """The daemon's seconds since it started (RFC 6886 §3.2)."""
        _, _, _, seconds, _ = struct.unpack("!BBHI4s", self.nat_pmp(bytes(2)))
        return int(seconds)

    def map_by_nat_pmp(self) -> None:
        request = struct.pack("!BBHHHI", 0, 1, 0, CLIENT.port, EXTERNAL_PORT, 600)
        answer = struct.unpack("!BBHIHHI", self.nat_pmp(request))
        assert (answer[2], *answer[4:]) == (0, CLIENT.port, EXTERNAL_PORT, 600)


@pytest.fixture(scope="module")
def _no_igd() -> str | None:
    return why_no_igd()


@pytest.fixture
def build(_no_igd: str | None, open_sockets: OpenSockets) -> Iterator[Build]:
    """Build a laboratory whose router is an Igd, made of the given words."""
    if _no_igd is not None:
        pytest.skip(_no_igd)
    built: list[Lab] = []

    def with_igd(
        nat: NatKind = NatKind.PORT_RESTRICTED_CONE, *, loss_percent: float = 0, igd: Igd | None = None
    ) -> Bench:
        lab = Lab(Topology(nat, loss_percent=loss_percent, igd=igd or Igd()), start_server=False)
        built.append(lab)
        return Bench(lab.__enter__(), open_sockets)

    yield with_igd
    for lab in built:
        lab.close()


@pytest.fixture
def bench(build: Build) -> Bench:
    return build()


def arrives(sender: socket.socket, destination: Endpoint, receiver: socket.socket) -> Endpoint | None:
    """The source of a datagram when it has arrived; None when it is lost on the way."""
    return _next_after(sender, destination, receiver, PATIENCE_SECONDS)


def kept_out(sender: socket.socket, destination: Endpoint, receiver: socket.socket) -> bool:
    """Whether a datagram is lost: the path is a few queues of one kernel, which it does not stay in."""
    return _next_after(sender, destination, receiver, 0.2) is None


def _next_after(
    sender: socket.socket, destination: Endpoint, receiver: socket.socket, seconds: float
) -> Endpoint | None:
    while next_datagram(receiver, FENCE_SECONDS) is not None:
        pass
    sender.sendto(b"in", (str(destination.ip), destination.port))
    received = next_datagram(receiver, seconds)
    return None if received is None else received[1]


def public(bench: Bench) -> Endpoint:
    return Endpoint.of(bench.lab.igd.wan_address, EXTERNAL_PORT)


@pytest.mark.parametrize("nat", [NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC])
@pytest.mark.parametrize("protocol", ["upnp", "nat-pmp"])
def test_a_mapping_lets_everybody_in(nat: NatKind, protocol: str, build: Build) -> None:
    bench = build(nat)
    client, outside = bench.socket(CLIENT), [bench.socket(at) for at in (STRANGER, NEXT_HOP)]
    assert all(kept_out(sender, public(bench), client) for sender in outside)
    if protocol == "upnp":
        assert bench.map_by_upnp() == {}
    else:
        bench.map_by_nat_pmp()
    assert bench.mapped_to() == str(CLIENT)
    assert [arrives(sender, public(bench), client) for sender in outside] == [STRANGER, NEXT_HOP]


def test_natpmpc_gets_a_mapping(bench: Bench) -> None:
    if shutil.which("natpmpc") is None:
        pytest.skip("needs the program natpmpc: install natpmpc (apt install natpmpc)")
    ports = [str(EXTERNAL_PORT), str(CLIENT.port)]
    done = bench.lab.client.run(["natpmpc", "-g", ROUTER, "-a", *ports, "udp", "300"], timeout=20)
    assert "Public IP address : 11.22.33.2\n" in done.stdout
    assert bench.mapped_to() == str(CLIENT)


@pytest.mark.parametrize(("nat", "kept"), [(NatKind.PORT_RESTRICTED_CONE, True), (NatKind.SYMMETRIC, False)])
def test_what_the_client_sends_leaves_as_the_kind_of_nat_has_it(
    nat: NatKind, kept: bool, build: Build
) -> None:
    bench = build(nat)
    client = bench.socket(CLIENT)
    seen = [arrives(client, server, bench.socket(server)) for server in SERVER_ENDPOINTS]
    assert {str(source.ip) for source in seen if source is not None} == {"11.22.33.2"}
    assert (seen == [Endpoint.of("11.22.33.2", CLIENT.port)] * len(SERVER_ENDPOINTS)) is kept


def test_a_pinhole_lets_everybody_in_over_ipv6(bench: Bench) -> None:
    if not Path("/proc/sys/net/ipv6").exists():
        pytest.skip("this kernel has no IPv6")
    client, outside = bench.socket(CLIENT_IPV6), bench.socket(OUTSIDE_IPV6)
    assert kept_out(outside, CLIENT_IPV6, client)
    pinhole = bench.upnp(
        WAN_IPV6_FIREWALL,
        "AddPinhole",
        ROUTER_IPV6,
        RemoteHost="",
        RemotePort=0,
        InternalClient=CLIENT_IPV6.ip,
        InternalPort=CLIENT_IPV6.port,
        Protocol=17,
        LeaseTime=600,
    )
    assert pinhole == {"UniqueID": "1"}
    assert arrives(outside, CLIENT_IPV6, client) == OUTSIDE_IPV6
    assert arrives(client, OUTSIDE_IPV6, outside) == CLIENT_IPV6  # routed, not translated


def test_loss_is_the_router_s(build: Build) -> None:
    bench = build(loss_percent=100)
    assert bench.map_by_upnp() == {}
    assert kept_out(bench.socket(STRANGER), public(bench), bench.socket(CLIENT))


@pytest.mark.parametrize("version", [1, 2])
def test_the_root_description_is_of_the_version(version: int, build: Build) -> None:
    description = build(igd=Igd(version=version)).http("GET /rootDesc.xml HTTP/1.0\r\n\r\n")
    assert re.findall(r"InternetGatewayDevice:(\d)|WANIPConnection:(\d)", description) == [
        (str(version), ""),
        ("", str(version)),
    ]


@pytest.mark.parametrize("how", ["restart", "kill and start"])
def test_a_reboot_loses_mappings_and_connections_and_begins_a_new_epoch(how: str, bench: Bench) -> None:
    client, outside = bench.socket(CLIENT), bench.socket(STRANGER)
    assert bench.map_by_upnp() == {}
    assert arrives(outside, public(bench), client) == STRANGER
    if how == "restart":
        bench.lab.igd.restart()
    else:
        bench.lab.igd.kill()
        assert bench.lab.igd.returncode == -9
        bench.lab.igd.start()
    assert bench.epoch() <= 1
    assert bench.mapped_to() is None
    assert kept_out(outside, public(bench), client)
    assert bench.map_by_upnp() == {}
    assert arrives(outside, public(bench), client) == STRANGER
    assert bench.lab.igd.log().count("HTTP listening on port 5000") == 2


@pytest.mark.parametrize("pcp", [True, False])
def test_a_flushed_router_has_forgotten_the_mapping_and_nothing_else(pcp: bool, build: Build) -> None:
    bench = build(igd=Igd(pcp=pcp))
    client, outside = bench.socket(CLIENT), bench.socket(STRANGER)
    assert bench.map_by_upnp() == {}
    assert arrives(outside, public(bench), client) == STRANGER
    bench.lab.igd.flush()
    assert bench.mapped_to() is None
    assert kept_out(outside, public(bench), client)
    assert bench.map_by_upnp() == {}
    assert bench.mapped_to() == str(CLIENT)
    assert arrives(outside, public(bench), client) == STRANGER
    assert bench.lab.igd.log().count("HTTP listening on port 5000") == 1


def test_another_wan_address(bench: Bench) -> None:
    client, outside = bench.socket(CLIENT), bench.socket(STRANGER)
    assert bench.map_by_upnp() == {}
    before = public(bench)
    bench.lab.igd.change_wan_address("11.22.33.9")
    assert bench.external_address() == "11.22.33.9"
    assert public(bench) == Endpoint.of("11.22.33.9", EXTERNAL_PORT)
    assert kept_out(outside, before, client)
    assert arrives(outside, public(bench), client) == STRANGER
    assert arrives(client, SERVER, bench.socket(SERVER)) == public(bench).with_port(CLIENT.port)
    with pytest.raises(LabError, match=r"11\.22\.33\.9 is the WAN address already"):
        bench.lab.igd.change_wan_address("11.22.33.9")
    with pytest.raises(LabError, match=r"11\.22\.34\.2 is no WAN address: it can be from 11\.22\.33\.2 to"):
        bench.lab.igd.change_wan_address("11.22.34.2")


@pytest.mark.parametrize("wan_address", ["100.64.0.2", "192.168.9.2"])
def test_behind_a_second_nat_nothing_is_granted_and_the_way_out_is_open(
    wan_address: str, build: Build
) -> None:
    bench = build(igd=Igd(wan_address=wan_address))
    assert bench.external_address() == ""
    assert bench.map_by_upnp() == ACTION_FAILED
    assert bench.nat_pmp(bytes(2))[3] == NETWORK_FAILURE
    source = arrives(bench.socket(CLIENT), SERVER, bench.socket(SERVER))
    assert source == Endpoint.of(wan_address, CLIENT.port)
    bench.lab.igd.flush()


def test_a_router_that_claims_another_address(build: Build) -> None:
    bench = build(igd=Igd(wan_address="100.64.0.2", external_address="11.22.33.44"))
    assert bench.external_address() == "11.22.33.44"
    assert bench.map_by_upnp() == {}
    assert arrives(bench.socket(STRANGER), public(bench), bench.socket(CLIENT)) == STRANGER


def test_what_the_daemon_refuses_is_told_in_its_words(build: Build) -> None:
    with pytest.raises(LabError, match=r"miniupnpd ended with status 1: .*ext_ip contains reserved"):
        build(igd=Igd(external_address="203.0.113.5"))


@pytest.mark.parametrize(("secure", "answer"), [(True, CONFLICT), (False, {})])
def test_only_a_secure_router_refuses_mappings_to_others(
    secure: bool, answer: dict[str, str], build: Build
) -> None:
    assert build(igd=Igd(secure=secure)).map_by_upnp("192.168.0.77") == answer


@pytest.mark.parametrize(("asked", "granted"), [(10, 60), (300, 300), (10**6, 900)])
def test_leases_keep_to_the_bounds(asked: int, granted: int, build: Build) -> None:
    bench = build(igd=Igd(min_lease_s=60, max_lease_s=900))
    # MAP (RFC 6887 §7.1, §11.1): the client's address and the suggested one are IPv4-mapped.
    client = bytes(10) + b"\xff\xff" + CLIENT.ip.packed
    nothing = bytes(10) + b"\xff\xff" + bytes(4)
    request = struct.pack("!BBHI", 2, 1, 0, asked) + client
    request += b"nonce-12byte" + struct.pack("!B3xHH", 17, CLIENT.port, EXTERNAL_PORT) + nothing
    _, opcode, result, lifetime = struct.unpack_from("!BBxBI", bench.nat_pmp(request))
    assert (opcode, result, lifetime) == (0x81, 0, granted)


def test_without_pcp_its_port_is_closed(build: Build) -> None:
    bench = build(igd=Igd(pcp=False))
    asking = bench.socket(CLIENT.with_port(0))
    asking.connect((ROUTER, PCP_PORT))
    asking.send(bytes(2))
    with pytest.raises(ConnectionRefusedError):
        asking.recv(1100)
    assert bench.external_address() == "11.22.33.2"


def test_without_upnp_its_port_is_closed(build: Build) -> None:
    bench = build(igd=Igd(upnp=False))
    with pytest.raises(ConnectionRefusedError):
        bench.http("GET /rootDesc.xml HTTP/1.0\r\n\r\n")
    bench.map_by_nat_pmp()


def test_a_stalled_router_answers_when_it_is_resumed(bench: Bench) -> None:
    asking = bench.socket(CLIENT.with_port(0))
    bench.lab.igd.stall()
    asking.sendto(bytes(2), (ROUTER, PCP_PORT))
    assert next_datagram(asking, 0.3) is None
    bench.lab.igd.resume()
    assert next_datagram(asking, PATIENCE_SECONDS) is not None


def test_a_daemon_that_was_stopped_is_not_there(bench: Bench) -> None:
    def status() -> int | None:
        return bench.lab.igd.returncode

    assert status() is None
    with pytest.raises(LabError, match="runs already"):
        bench.lab.igd.start()
    bench.lab.igd.stop()
    assert (status(), bench.lab.igd.log().count("shutting down MiniUPnPd")) == (0, 1)
    bench.lab.igd.start()
    assert bench.epoch() <= 1


@pytest.mark.parametrize("act", [RunningIgd.stop, RunningIgd.stall, RunningIgd.flush, RunningIgd.restart])
def test_nothing_can_happen_to_a_daemon_that_does_not_run(
    act: Callable[[RunningIgd], None], bench: Bench
) -> None:
    bench.lab.igd.kill()
    with pytest.raises(LabError, match="does not run"):
        act(bench.lab.igd)


def test_without_an_igd_there_is_nobody_to_ask() -> None:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab,
        pytest.raises(LabError, match="give its topology an Igd"),
    ):
        lab.igd.restart()
