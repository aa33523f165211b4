"""The kernel's own SIP ALG is found, by each of the two proofs, and no NAT without one is suspected."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from nattools.errors import LabError
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, SIP_PORT, Topology
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.network_changes import change_wan_address, run
from tests.lab.networks import NATCHECK, ROOT

if TYPE_CHECKING:
    from nattools.endpoint import Endpoint

TIME_LIMIT_S = 60
RUNS = 3
OTHER_PORT = 5062
TRANSLATING = [kind for kind in NatKind if kind.translates and kind is not NatKind.BLOCKED]
TOUCHED = {"Via", "From", "Contact", "Content-Length", "o=", "c="}

# What comes to port 5060 with this word at the beginning of its UDP payload is lost.
_DROP = """
table ip deaf {{
 chain forwards {{ type filter hook forward priority filter - 1; policy accept;
  udp dport {port} @th,64,{bits} {word} drop
 }}
}}
"""


@cache
def why_no_sip_alg() -> str | None:
    """Say why no router here can have a SIP ALG; None when one can."""
    try:
        with Lab(Topology(NatKind.FULL_CONE, sip_alg=True), start_server=False):
            return None
    except LabError as error:
        return str(error)


@pytest.fixture
def alg() -> None:
    reason = why_no_sip_alg()
    if reason is not None:
        pytest.skip(reason)


def look(lab: Lab, server: Endpoint, *, runs: int = RUNS) -> list[dict[str, Any]]:
    """What so many searches say, each from a new socket of the client's."""
    program = [sys.executable, "-m", "tests.lab.alg_program", str(server), str(runs)]
    done = lab.client.run(program, timeout=TIME_LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == runs
    return found


def touched(port: dict[str, Any]) -> set[str]:
    return {field["field"] for field in port["touched"]}


def drop(lab: Lab, word: bytes, *, port: int = SIP_PORT) -> None:
    run(lab.router, ["nft", "-f", "-"], _DROP.format(port=port, bits=8 * len(word), word=f"0x{word.hex()}"))


@pytest.mark.parametrize("kind", TRANSLATING, ids=lambda kind: kind.value)
def test_the_kernel_s_alg_is_found_and_what_it_touches_is_named(alg: None, kind: NatKind) -> None:
    topology = Topology(kind, sip_alg=True, sip_alg_ports=(SIP_PORT, OTHER_PORT))
    with Lab(topology, sip_reflector=True) as lab:
        for port in topology.sip_alg_ports:
            for found in look(lab, SERVER.with_port(port)):
                assert found["presence"] == "yes"
                sip, control = found["ports"]
                assert (touched(sip), sip["hides_address"], sip["lost"]) == (TOUCHED, True, [])
                assert sip["received"].startswith("192.168.0.108:")
                assert (control["presence"], control["touched"]) == ("no", [])
                assert "UDP port 3478 is left alone" in found["meaning"]


@pytest.mark.parametrize(
    "kind", [k for k in NatKind if k is not NatKind.BLOCKED], ids=lambda kind: kind.value
)
def test_a_nat_that_only_translates_is_not_suspected(kind: NatKind) -> None:
    with Lab(Topology(kind, sip_alg_ports=(OTHER_PORT,)), sip_reflector=True) as lab:
        for port in (SIP_PORT, OTHER_PORT):
            for found in look(lab, SERVER.with_port(port)):
                assert found["presence"] == "no"
                assert [place["touched"] for place in found["ports"]] == [[], []]
                assert not any(place["hides_address"] for place in found["ports"])


def test_an_alg_is_no_matter_for_another_port(alg: None) -> None:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE, sip_alg=True, sip_alg_ports=(OTHER_PORT,))
    with Lab(topology, sip_reflector=True) as lab:
        assert [found["presence"] for found in look(lab, SERVER.with_port(SIP_PORT))] == ["no"] * RUNS


def test_an_alg_at_home_is_found_behind_a_carrier_s_nat(alg: None) -> None:
    """It puts back only its own address, and so hides nothing: the server sees another one."""
    with Lab(Topology(NatKind.FULL_CONE, NatKind.SYMMETRIC, sip_alg=True), sip_reflector=True) as lab:
        for found in look(lab, SERVER.with_port(SIP_PORT)):
            sip = found["ports"][0]
            assert (found["presence"], touched(sip), sip["hides_address"]) == ("yes", TOUCHED, False)
            [via] = (field for field in sip["touched"] if field["field"] == "Via")
            assert "192.168.0.108" in via["sent"]
            assert "100.64.0.108" in via["arrived"]


@pytest.mark.parametrize("sip_alg", [True, False], ids=["alg", "plain"])
def test_loss_makes_no_difference(alg: None, sip_alg: bool) -> None:
    topology = Topology(NatKind.SYMMETRIC, loss_percent=15, sip_alg=sip_alg)
    with Lab(topology, sip_reflector=True) as lab:
        for found in look(lab, SERVER.with_port(SIP_PORT)):
            assert found["presence"] == ("yes" if sip_alg else "no"), found["reasons"]


def test_an_alg_stays_when_the_wan_address_changes(alg: None) -> None:
    with Lab(Topology(NatKind.FULL_CONE, sip_alg=True), sip_reflector=True) as lab:
        change_wan_address(lab, "203.0.113.2")
        [found] = look(lab, SERVER.with_port(SIP_PORT), runs=1)
        assert found["presence"] == "yes"
        assert found["ports"][0]["mapped"].startswith("203.0.113.2:")


@pytest.mark.parametrize("kind", [NatKind.PORT_RESTRICTED_CONE, NatKind.SYMMETRIC], ids=lambda k: k.value)
@pytest.mark.parametrize("sip_alg", [True, False], ids=["alg", "plain"])
def test_any_sip_server_that_answers_stun_shows_the_alg(alg: None, kind: NatKind, sip_alg: bool) -> None:
    missing = why_no_kamailio()
    if missing is not None:
        pytest.skip(missing)
    with Lab(Topology(kind, sip_alg=sip_alg), start_server=False) as lab, kamailio(lab):
        for found in look(lab, REGISTRAR, runs=2):
            sip = found["ports"][0]
            assert (sip["touched"], sip["lost"]) == ([], [])
            assert sip["mapped"].startswith("203.0.113.1:")
            if sip_alg:
                assert (found["presence"], sip["hides_address"]) == ("yes", True)
            else:
                assert (found["presence"], sip["hides_address"]) == ("unknown", False)
                assert sip["received"] == sip["mapped"]
                assert "No sign of a SIP ALG" in found["meaning"]


def test_a_router_that_drops_sip_is_no_silent_server() -> None:
    with Lab(Topology(NatKind.FULL_CONE), sip_reflector=True) as lab:
        drop(lab, b"OPTION")
        [found] = look(lab, SERVER.with_port(SIP_PORT), runs=1)
    sip, control = found["ports"]
    assert (found["presence"], sip["lost"], control["presence"]) == ("unknown", ["OPTIONS"], "no")
    assert sip["mapped"] is not None
    assert "On UDP port 5060 SIP gets lost" in found["meaning"]


def test_a_router_that_drops_calls_alone_is_an_alg() -> None:
    with Lab(Topology(NatKind.FULL_CONE), sip_reflector=True) as lab:
        drop(lab, b"INVITE")
        [found] = look(lab, SERVER.with_port(SIP_PORT), runs=1)
    sip, control = found["ports"]
    assert (found["presence"], sip["lost"], control["presence"]) == ("yes", ["INVITE"], "no")


def natlab(*arguments: str) -> subprocess.CompletedProcess[str]:
    natlab_run = [sys.executable, "-m", "nattools.cli.natlab", "run", "--nat", "port-restricted-cone"]
    return subprocess.run(
        [*natlab_run, *arguments], capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=ROOT, check=False
    )


def test_the_commands_together(alg: None) -> None:
    found = natlab("--sip-alg", "--", *NATCHECK, "--sip-alg", str(SERVER.ip), "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert (document["nat_type"], document["sip_alg"]["presence"]) == ("port-restricted-cone", "yes")
    assert touched(document["sip_alg"]["ports"][0]) == TOUCHED

    plain = natlab("--", *NATCHECK, "--sip-alg", f"{SERVER.ip}:{SIP_PORT}", "--local-port", "5060")
    assert plain.returncode == 0, plain.stderr
    assert "SIP ALG    no: nothing is rewritten on UDP port 5060" in plain.stdout
    assert "Local      192.168.0.108:5060" in plain.stdout


def test_a_phone_s_own_port_is_no_exception(alg: None) -> None:
    """Some ALGs look at the source port as well."""
    found = natlab("--sip-alg", "--", *NATCHECK, "--sip-alg", str(SERVER.ip), "--local-port", "5060", "-v")
    assert found.returncode == 0, found.stderr
    assert "SIP ALG    yes: Via, From, Contact, Content-Length, o=, c= rewritten" in found.stdout
    assert "Content-Length: 1" in found.stdout
