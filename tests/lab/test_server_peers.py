"""Other people's STUN clients, and the whole grid, against `stund` in the laboratory."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations, product
from pathlib import Path

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import (
    ALTERNATE_PORT,
    ALTERNATE_SERVER,
    SERVER,
    SERVER_ENDPOINTS,
    WAN_ADDRESS,
    Topology,
)
from nattools.stun.attributes import (
    CHANGED_ADDRESS,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOURCE_ADDRESS,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from tests.certificates import NAME, write_certificate
from tests.lab.conftest import OpenSockets
from tests.lab.stund import NO_CHANGE, TIME_LIMIT_S, TRANSACTION_IDS, ask, binding, stund

ADDRESSES = str(SERVER.ip), str(ALTERNATE_SERVER.ip)


def public_address(lab: Lab) -> str:
    return WAN_ADDRESS if lab.topology.nat.translates else lab.topology.client_address


def said_by(lab: Lab, *command: str) -> str:
    """What a program on the client prints; the test is skipped where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = lab.client.run(command, timeout=TIME_LIMIT_S)
    return done.stdout + done.stderr


def said_by_python(lab: Lab, module: str, program: str, *arguments: str) -> str:
    pytest.importorskip(module)
    return said_by(lab, sys.executable, "-c", program, *arguments).strip()


@contextmanager
def serving(kind: NatKind) -> Iterator[Lab]:
    """A laboratory with a stund of two addresses."""
    with Lab(Topology(kind), start_server=False) as lab, stund(lab, *ADDRESSES):
        yield lab


@pytest.fixture(
    scope="module",
    params=[(NatKind.OPEN, 1), (NatKind.FULL_CONE, 2), (NatKind.FULL_CONE, None)],
    ids=["open", "full-cone, two processes", "full-cone, two hosts"],
)
def lab(
    request: pytest.FixtureRequest, _missing: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    if _missing is not None:
        pytest.skip(_missing)
    kind, workers = request.param
    with ExitStack() as stack:
        built = stack.enter_context(Lab(Topology(kind), start_server=False))
        if workers is not None:
            stack.enter_context(stund(built, *ADDRESSES, "--workers", str(workers)))
        else:
            key = tmp_path_factory.mktemp("peer") / "peer.key"
            key.write_text("thirty-two bytes that both have")
            key.chmod(0o600)
            for own, other in permutations(ADDRESSES):
                one = stack.enter_context(stund(built, own, "--peer", other, "--peer-key", str(key)))
            assert f"{SERVER.ip}, is there" in one.next()["message"]
        yield built


def test_the_grid(lab: Lab, open_sockets: OpenSockets) -> None:
    changes = (None, *(ChangeRequest(ip, port) for ip, port in product((False, True), repeat=2)))
    cells = list(product(SERVER_ENDPOINTS, changes, TRANSACTION_IDS))
    home = Endpoint.of(lab.topology.client_address, 0)
    right = 0
    for cell, client in zip(cells, open_sockets(lab.client, [home] * len(cells)), strict=True):
        asked, change, transaction_id = cell
        reply, source, data = ask(client, binding(transaction_id, change), asked)
        [other] = [e for e in SERVER_ENDPOINTS if e.ip != asked.ip and e.port != asked.port]
        wanted = change or NO_CHANGE
        origin = Endpoint(
            other.ip if wanted.change_ip else asked.ip, other.port if wanted.change_port else asked.port
        )
        assert source == origin
        mapped = Endpoint.of(public_address(lab), client.getsockname()[1])
        assert reply.get(XOR_MAPPED_ADDRESS) == (None if reply.is_classic else mapped)
        assert reply.get(MAPPED_ADDRESS) == (mapped if reply.is_classic or change is not None else None)
        assert len(data) == (56 if reply.is_classic or change is None else 68)
        assert reply.get(SOURCE_ADDRESS if reply.is_classic else RESPONSE_ORIGIN) == origin
        assert reply.get(CHANGED_ADDRESS if reply.is_classic else OTHER_ADDRESS) == other
        right += 1
    assert right == 40


def test_a_wildcard_bind_answers_from_the_address_that_was_asked(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab, stund(lab):
        [client] = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 0)])
        for asked, transaction_id in product((SERVER, ALTERNATE_SERVER), TRANSACTION_IDS):
            reply, source, _ = ask(client, binding(transaction_id), asked)
            assert source == asked
            assert reply.get(MAPPED_ADDRESS) == reply.mapped_address
            assert reply.get(SOURCE_ADDRESS if reply.is_classic else RESPONSE_ORIGIN) == asked
            assert not reply.has(CHANGED_ADDRESS)
            assert not reply.has(OTHER_ADDRESS)


CLASSIC_PHONE = """
import ssl, sys
from tests.fakes.classic_phone import ClassicPhone
authority, name, server = sys.argv[1:]
phone = ClassicPhone((server, 3478), ssl.create_default_context(cafile=authority), name)
username, password = phone.fetch_secret()
print(phone.ask(username, password), phone.ask(username, password[::-1]))
"""


def test_a_secret_that_was_fetched_over_tls_through_a_nat_is_good_for_datagrams_through_it(
    tmp_path: Path,
) -> None:
    """It is bound to the address of the client, which over TCP and UDP is the NAT's."""
    authority = trustme.CA()
    certificate, key = map(str, write_certificate(authority, tmp_path))
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    program = [sys.executable, "-c", CLASSIC_PHONE, str(trusted), NAME, str(SERVER.ip)]
    tls = ("--certificate", certificate, "--key", key, "--shared-secrets")
    with Lab(Topology(NatKind.SYMMETRIC), start_server=False) as lab, stund(lab, *tls) as server:
        assert server.started["tls_port"] == 5349
        done = lab.client.run(program, timeout=TIME_LIMIT_S, cwd=Path(__file__).parents[2])
        assert (done.stdout, done.stderr) == ("0 431\n", "")
        said = server.stop()
    assert (said["answered"], said["dropped"]) == (3, {})


SPOOF = """
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for line in sys.stdin:
    packet, destination = line.split()
    raw.sendto(bytes.fromhex(packet), (destination, 0))
"""


def spoofed(source: Endpoint, destination: Endpoint, data: bytes) -> str:
    """A line for SPOOF; the kernel fills in the length and the checksum of IP, UDP goes without."""
    udp = struct.pack("!HHHH", source.port, destination.port, 8 + len(data), 0) + data
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source.ip.packed, destination.ip.packed)
    return f"{(ip + udp).hex()} {destination.ip}\n"


@pytest.mark.parametrize(
    ("arguments", "own_source"),
    [
        ((str(SERVER.ip), str(ALTERNATE_SERVER.ip)), ALTERNATE_SERVER.with_port(ALTERNATE_PORT)),
        ((), SERVER),
    ],
    ids=["two addresses", "wildcard"],
)
def test_what_is_forged_to_come_from_the_server_itself_goes_round_in_no_circle(
    arguments: Sequence[str], own_source: Endpoint, open_sockets: OpenSockets
) -> None:
    data = binding(TRANSACTION_IDS[0])
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab, stund(lab, *arguments) as server:
        client = Endpoint.of(lab.topology.client_address, 0)
        packets = spoofed(own_source, SERVER, data) + spoofed(SERVER, SERVER, data)
        lab.public.run([sys.executable, "-c", SPOOF], timeout=TIME_LIMIT_S, input=packets)
        packets = spoofed(client, SERVER, data)
        lab.client.run([sys.executable, "-c", SPOOF], timeout=TIME_LIMIT_S, input=packets)
        [honest] = open_sockets(lab.client, [client])
        ask(honest, data, SERVER)
        said = server.stop()
    assert (said["answered"], said["dropped"]) == (1, {"own_socket": 2, "unusable_address": 1})


def test_vovida_names_every_nat() -> None:
    if shutil.which("stun") is None:
        pytest.skip("stun (of the package stun-client) is not installed")
    verdicts = {
        NatKind.OPEN: "Open",
        NatKind.SYMMETRIC_FIREWALL: "Firewall",
        NatKind.FULL_CONE: "Independent Mapping, Independent Filter",
        NatKind.RESTRICTED_CONE: "Independent Mapping, Address Dependent Filter",
        NatKind.PORT_RESTRICTED_CONE: "Independent Mapping, Port Dependent Filter",
        NatKind.SYMMETRIC: "Dependent Mapping",
    }
    with ExitStack() as stack:  # all at once, because it takes a second for each
        labs = {kind: stack.enter_context(serving(kind)) for kind in verdicts}
        clients = {
            kind: lab.client.popen(["stun", str(SERVER.ip)], stdout=subprocess.PIPE)
            for kind, lab in labs.items()
        }
        said = {kind: client.communicate(timeout=TIME_LIMIT_S)[0] for kind, client in clients.items()}
    for kind, verdict in verdicts.items():
        assert f"Primary: {verdict}" in said[kind]


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        (["-m"], "NAT with Endpoint Independent Mapping!"),
        (["-f"], "NAT with Endpoint Independent Filtering!"),
        (["-f", "-P"], "NAT with Endpoint Independent Filtering!"),
    ],
    ids=["mapping", "filtering", "with PADDING"],
)
def test_natdiscovery_of_coturn(lab: Lab, options: list[str], verdict: str) -> None:
    """It has no word for "no NAT" unless it is told the local address."""
    said = said_by(lab, "turnutils_natdiscovery", *options, str(SERVER.ip))
    assert verdict in said
    assert f"UDP reflexive addr: {public_address(lab)}:" in said


def test_natdiscovery_of_coturn_sees_a_symmetric_nat() -> None:
    with serving(NatKind.SYMMETRIC) as lab:
        said = said_by(lab, "turnutils_natdiscovery", "-m", str(SERVER.ip))
    assert "NAT with Address and Port Dependent Mapping!" in said


def test_natdiscovery_of_coturn_is_answered_at_its_response_port(lab: Lab) -> None:
    said = said_by(lab, "turnutils_natdiscovery", "-t", "-T", "1", str(SERVER.ip))
    assert "RFC 5780 response 2" in said


def test_stunclient_of_coturn() -> None:
    """Behind a NAT its third request, with RESPONSE-PORT to a port without a mapping, waits for ever."""
    with serving(NatKind.OPEN) as lab:
        said = said_by(lab, "turnutils_stunclient", str(SERVER.ip))
        assert said.count(f"UDP reflexive addr: {public_address(lab)}:") == 3
    for line in (f"Other addr: : {ALTERNATE_SERVER.ip}:{ALTERNATE_PORT}", f"Response origin: : {SERVER}"):
        assert line in said


def test_pystun3(lab: Lab) -> None:
    program = "import stun, sys; print(stun.get_ip_info(source_ip=sys.argv[1], stun_host=sys.argv[2]))"
    said = said_by_python(lab, "stun", program, lab.topology.client_address, str(SERVER.ip))
    verdict = "Full Cone" if lab.topology.nat.translates else "Open Internet"
    assert said == str((verdict, public_address(lab), 54320))


AIOICE = """
import asyncio, sys, aioice
async def main():
    connection = aioice.Connection(ice_controlling=True, stun_server=(sys.argv[1], 3478), use_ipv6=False)
    await connection.gather_candidates()
    print(*(c.host for c in connection.local_candidates if c.type == "srflx"))
    await connection.close()
asyncio.run(main())
"""


def test_aioice_finds_its_server_reflexive_candidate(lab: Lab) -> None:
    assert said_by_python(lab, "aioice", AIOICE, str(SERVER.ip)) == public_address(lab)


def test_aioice_reads_our_replies(lab: Lab, open_sockets: OpenSockets) -> None:
    codec = pytest.importorskip("aioice.stun")
    [client] = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 0)])
    change = ChangeRequest(change_ip=lab.topology.nat is NatKind.OPEN, change_port=False)
    *_, data = ask(client, binding(TRANSACTION_IDS[0], change), SERVER)
    origin = ALTERNATE_SERVER if lab.topology.nat is NatKind.OPEN else SERVER
    mapped = public_address(lab), client.getsockname()[1]
    assert dict(codec.parse_message(data).attributes) == {
        "XOR-MAPPED-ADDRESS": mapped,
        "MAPPED-ADDRESS": mapped,
        "RESPONSE-ORIGIN": (str(origin.ip), origin.port),
        "OTHER-ADDRESS": (str(ALTERNATE_SERVER.ip), ALTERNATE_PORT),
    }
