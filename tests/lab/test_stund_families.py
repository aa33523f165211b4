"""`stund` with two addresses of each family: on one machine, and on two that know each other over both."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from pathlib import Path

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_SERVER, SERVER, Topology
from nattools.stun.attributes import OTHER_ADDRESS, ChangeRequest
from tests.lab.conftest import OpenSockets
from tests.lab.stund import TRANSACTION_IDS, Stund, ask, binding, stund

CLIENT_IPV6 = "2001:db8:1::108"
PAIRS = ((str(SERVER.ip), str(ALTERNATE_SERVER.ip)), ("2001:db8::10", "2001:db8::11"))
ALONE, TOGETHER = ((3478, 3479), (4478, 4479))
CHANGES = [ChangeRequest(ip, port) for ip, port in product((False, True), repeat=2)]


def ports(port: int, alternate_port: int) -> tuple[str, ...]:
    return "--port", str(port), "--alternate-port", str(alternate_port)


def hears_of_its_peers(server: Stund) -> None:
    """Both links come up, in any order."""
    said = {server.next()["message"].split(",")[1] for _ in PAIRS}
    assert len(said) == len(PAIRS)


def test_all_behaviour_tests_over_both_families_by_one_machine_and_by_two(
    open_sockets: OpenSockets, tmp_path: Path
) -> None:
    key = tmp_path / "peer.key"
    key.write_text("thirty-two bytes that both have")
    key.chmod(0o600)
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology(NatKind.OPEN), start_server=False))
        every = (address for pair in PAIRS for address in pair)
        one = stack.enter_context(stund(lab, *every, *ports(*ALONE)))
        assert one.started["behaviour_tests"] == {"IPv4": True, "IPv6": True}
        own, others = zip(*PAIRS, strict=True)
        hosts = []
        for mine, theirs in ((own, others), (others, own)):
            peers = (f"--peer={address}" for address in theirs)
            options = (*peers, "--peer-key", str(key), *ports(*TOGETHER))
            hosts.append(stack.enter_context(stund(lab, *mine, *options)))
        for host in hosts:
            hears_of_its_peers(host)
        homes = [Endpoint.of(home, 0) for home in (lab.topology.client_address, CLIENT_IPV6)]
        for client, pair in zip(open_sockets(lab.client, homes), PAIRS, strict=True):
            for address, both_ports, change in product(pair, (ALONE, TOGETHER), CHANGES):
                asked = Endpoint.of(address, both_ports[0])
                [other_ip] = set(pair) - {address}
                reply, origin, _ = ask(client, binding(TRANSACTION_IDS[0], change), asked)
                assert reply.get(OTHER_ADDRESS) == Endpoint.of(other_ip, both_ports[1])
                assert origin == Endpoint.of(
                    other_ip if change.change_ip else address, both_ports[change.change_port]
                )
        assert one.stop()["answered"] == 2 * 2 * len(CHANGES)
        for host in hosts:
            host.stop()
