"""`natgate --alg` behind real NATs and on their router: a phone gets through by its outbound proxy alone.

Phones and registrar are unmodified and know of no NAT; who is called sends where SDP and Contact say.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, next_datagram
from tests.lab.kamailio import REGISTRAR, kamailio, wait_until_at, why_no_kamailio
from tests.lab.natgate import natgate
from tests.lab.network_changes import change_wan_address, run
from tests.lab.sip_peers import Baresip, PyVoip, why_no_baresip, why_no_pyvoip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nattools.lab.namespaces import Host
    from tests.lab.conftest import OpenSockets
    from tests.lab.natgate import Natgate
    from tests.lab.sip_peers import Phone

ALICE_HZ, BOB_HZ = 440, 880
PASSWORD = "sesame"
LOOPBACK = Endpoint.of("127.0.0.1", 5060)
ROUTER = Endpoint.of("192.168.0.1", 5060)
BACK_WITHIN_S = 3.0
ON_THE_WAY_S = 0.1  # what was sent to the old address before it went
TIMER_S = 3  # until the NAT forgets a flow
IDLE_S = 2 * TIMER_S + 1
KEEPALIVE_S = 1
SECOND_CONTROL_PORT = 4445


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_kamailio(), why_no_baresip()):
        if reason is not None:
            pytest.skip(reason)


@contextmanager
def alg(lab: Lab, *words: str, host: Host | None = None, at: Endpoint = LOOPBACK) -> Iterator[Natgate]:
    """An ALG on the phone's own machine, unless a host is named; it keeps flows open every second."""
    with tempfile.TemporaryDirectory(prefix="natgate-") as directory:
        settings = [
            f"store = 'sqlite:{directory}/registrations'",
            "[binding]",
            f"keepalive_interval = {KEEPALIVE_S}",
            f"stun_servers = ['{SERVER}']",
            f"state_directory = '{directory}'",
            "",
        ]
        text = "\n".join(settings)
        with natgate(lab, "--alg", *words, settings=text, at=at, host=host or lab.client) as gate:
            yield gate
            assert "Traceback" not in gate.log


def inside(lab: Lab, proxy: Endpoint = LOOPBACK) -> Baresip:
    """Alice's phone: her server is the registrar, her outbound proxy is natgate."""
    at = Endpoint.of(lab.topology.client_address, 5060)
    return Baresip(lab.client, "alice", at, plays_hz=ALICE_HZ, password=PASSWORD, outbound=proxy)


def outside(lab: Lab) -> Baresip:
    return Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD)


def talk(caller: Phone, called: Phone) -> None:
    """Set a call up, in which both must hear the other's tone."""
    caller.call(called.user)
    caller.wait_established()
    called.wait_established()
    assert (caller.hear(), called.hear()) == ({called.plays_hz}, {caller.plays_hz})


def end(one: Phone, other: Phone) -> None:
    one.hang_up()
    one.wait_ended()
    other.wait_ended()


def audible_again(one: Phone, other: Phone) -> float:
    """Both hear each other once more; how long that took, with the listening."""
    began_at = time.monotonic()
    time.sleep(ON_THE_WAY_S)
    assert one.hear(within_s=BACK_WITHIN_S) == {other.plays_hz}
    assert other.hear(within_s=BACK_WITHIN_S) == {one.plays_hz}
    return time.monotonic() - began_at


@pytest.mark.parametrize(("nat", "idle_s"), [(NatKind.PORT_RESTRICTED_CONE, IDLE_S), (NatKind.FULL_CONE, 0)])
def test_on_the_phones_own_machine_it_gets_calls_through_both_ways_and_over_a_change(
    nat: NatKind, idle_s: int, tmp_path: Path
) -> None:
    users = tmp_path / "users.toml"
    users.write_text(f'[users]\nalice = "{PASSWORD}"\n')
    users.chmod(0o600)
    with (
        Lab(Topology(nat, udp_timeout_s=TIMER_S)) as lab,
        kamailio(lab, password=PASSWORD),
        alg(lab, "--users", str(users)) as gate,
        outside(lab) as bob,
        inside(lab) as alice,
    ):
        bob.register()
        alice.register()
        talk(alice, bob)
        change_wan_address(lab, "203.0.113.77")
        gaps = [audible_again(alice, bob)]
        end(bob, alice)
        wait_until_at(lab, "alice", "203.0.113.77")
        time.sleep(idle_s)  # longer than the NAT remembers
        talk(bob, alice)
        change_wan_address(lab, "203.0.113.78")
        gaps.append(audible_again(bob, alice))
        end(alice, bob)
        wait_until_at(lab, "alice", "203.0.113.78")
        talk(bob, alice)
        gate.kill()
        time.sleep(min(idle_s, TIMER_S + 1))  # the NAT may have forgotten everything
        gate.start()
        end(bob, alice)  # and whoever comes after a crash knows whose call it was, and is reached
    sys.stderr.write(f"audible again behind {nat.value} after {', '.join(f'{gap:.2f} s' for gap in gaps)}\n")


def test_on_the_gateway_it_serves_the_phones_of_the_lan_and_follows_its_own_address() -> None:
    with (
        gateway() as lab,
        kamailio(lab),
        alg(lab, host=lab.router, at=ROUTER),
        outside(lab) as bob,
        inside(lab, ROUTER) as alice,
    ):
        bob.register()
        alice.register()
        talk(alice, bob)
        end(alice, bob)
        talk(bob, alice)
        change_wan_address(lab, "203.0.113.77")
        serve(lab)
        audible_again(bob, alice)
        end(alice, bob)
        wait_until_at(lab, "alice", "203.0.113.77")
        talk(bob, alice)
        end(bob, alice)


@contextmanager
def gateway() -> Iterator[Lab]:
    """A laboratory whose router runs programs of its own."""
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab:
        serve(lab)
        yield lab


def serve(lab: Lab) -> None:
    """Have the router let in what is for itself, as the firewall of a gateway must."""
    run(lab.router, ["nft", "insert", "rule", "ip", "lab", "input", "udp", "dport", "1024-65535", "accept"])


def test_two_phones_of_one_house_call_each_other_by_the_registrar_outside() -> None:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab,
        kamailio(lab),
        alg(lab) as gate,
        inside(lab) as alice,
        Baresip(
            lab.client,
            "bob",
            Endpoint.of(lab.topology.client_address, 5070),
            plays_hz=BOB_HZ,
            outbound=LOOPBACK,
            control_port=SECOND_CONTROL_PORT,
        ) as bob,
    ):
        alice.register()
        bob.register()
        talk(alice, bob)
        end(alice, bob)
        talk(bob, alice)
        end(alice, bob)
        assert not gate.status().calls


def test_behind_a_symmetric_nat_it_refuses_what_could_not_be_answered(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.SYMMETRIC)) as lab, alg(lab) as gate, inside(lab) as alice:
        [registrar] = open_sockets(lab.public, [REGISTRAR])
        with pytest.raises(AssertionError, match="503 No Public Endpoint"):
            alice.register()
        assert "the NAT is symmetric" in gate.log
        assert next_datagram(registrar, FENCE_SECONDS) is None


def test_where_the_router_can_be_asked_even_a_symmetric_nat_is_passed() -> None:
    if (reason := why_no_igd()) is not None:
        pytest.skip(reason)
    with (
        Lab(Topology(NatKind.SYMMETRIC, igd=Igd())) as lab,
        kamailio(lab),
        alg(lab),
        outside(lab) as bob,
        inside(lab) as alice,
    ):
        bob.register()
        alice.register()
        talk(alice, bob)
        end(alice, bob)
        talk(bob, alice)
        end(bob, alice)


def test_a_phone_that_knows_one_server_alone_has_natgate_for_it() -> None:
    if (reason := why_no_pyvoip()) is not None:
        pytest.skip(reason)
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab,
        kamailio(lab),
        alg(lab, "--upstream", f"sip:{REGISTRAR.ip}"),
        outside(lab) as bob,
        PyVoip(
            lab.client,
            "alice",
            Endpoint.of(lab.topology.client_address, 5066),
            plays_hz=ALICE_HZ,
            server=LOOPBACK,
        ) as alice,
    ):
        bob.register()
        alice.register(within_s=2 * PATIENCE_SECONDS)
        talk(alice, bob)
        end(bob, alice)
        talk(bob, alice)
        end(bob, alice)
