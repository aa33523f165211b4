"""PyVoIP, unchanged but for one line, calls and is called behind NATs, through a proxy that helps nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nattools.lab.namespaces import Lab, Process
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.network_changes import change_wan_address
from tests.lab.sip_peers import ROOT, Baresip, PyVoip, why_no_baresip, why_no_pyvoip

ALICE_HZ, BOB_HZ = 440, 880
PASSWORD = "sesame"
BACK_S = 2.0
NAT_TIMER_S = 3
KEEPALIVE_S = 1
LEFTOVERS_S = 0.2
"""So long what was received before a change may still be written down as heard."""


@pytest.fixture(autouse=True)
def _peers() -> None:
    for why in (why_no_kamailio(), why_no_baresip(), why_no_pyvoip()):
        if why is not None:
            pytest.skip(why)


def the_line(**words: object) -> str:
    """What makes the phone one that is reached; on a real network its settings are the user's own."""
    settings = {"methods": ["stun"], "stun_servers": [str(SERVER)], **words}
    made = f"__import__('nattools.blocking').blocking.SipSockets(**{json.dumps(settings)!s})"
    return f"pyVoIP.SIP.socket = pyVoIP.RTP.socket = {made}"


@contextmanager
def phones(topology: Topology, **words: object) -> Iterator[tuple[Lab, PyVoip, Baresip]]:
    """Alice with pyVoIP behind the NAT, and Bob with baresip on the public side, both registered."""
    with (
        Lab(topology) as lab,
        kamailio(lab, password=PASSWORD, call_challenge=401),
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD) as bob,
        PyVoip.inside(lab, "alice", plays_hz=ALICE_HZ, password=PASSWORD, line=the_line(**words)) as alice,
    ):
        bob.register()
        yield lab, alice, bob


def hear_each_other(alice: PyVoip, bob: Baresip) -> None:
    assert alice.hear() == {BOB_HZ}
    assert bob.hear() == {ALICE_HZ}


def go_on_at(address: str, lab: Lab, alice: PyVoip, bob: Baresip) -> None:
    """Give the NAT another address in the middle of a call."""
    change_wan_address(lab, address)  # which lasts; meanwhile the router passes nothing
    time.sleep(LEFTOVERS_S)
    assert alice.hear(within_s=BACK_S - LEFTOVERS_S) == {BOB_HZ}
    assert bob.hear() == {ALICE_HZ}


@pytest.mark.parametrize("nat", [NatKind.PORT_RESTRICTED_CONE, NatKind.FULL_CONE])
def test_calls_of_both_are_heard_and_go_on_within_two_seconds_at_another_address(nat: NatKind) -> None:
    with phones(Topology(nat)) as (lab, alice, bob):
        alice.register()
        bob.call("alice")
        bob.wait_established()
        hear_each_other(alice, bob)
        go_on_at("203.0.113.98", lab, alice, bob)
        bob.hang_up()
        alice.wait_ended()
        alice.call("bob")
        alice.wait_established()
        hear_each_other(alice, bob)
        go_on_at("203.0.113.99", lab, alice, bob)


def test_while_nobody_calls_the_nat_is_kept_from_forgetting_it() -> None:
    forgetful = Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=NAT_TIMER_S)
    with phones(forgetful, keepalive_interval=KEEPALIVE_S) as (_, alice, bob):
        alice.register()
        time.sleep(2 * NAT_TIMER_S + 1)
        bob.call("alice")
        bob.wait_established()
        hear_each_other(alice, bob)


def example(lab: Lab, user: str) -> Process:
    """The example as a process of that user's, with its settings from outside."""
    settings = {"NATTOOLS_METHODS": "stun", "NATTOOLS_STUN_SERVERS": str(SERVER)}
    words = (str(REGISTRAR.ip), user, PASSWORD, lab.topology.client_address)
    return lab.client.popen(
        [sys.executable, "examples/pyvoip_phone.py", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | settings,
        cwd=ROOT,
    )


def test_the_example_repeats_what_it_hears_and_unregisters_when_it_ends() -> None:
    with phones(Topology(NatKind.PORT_RESTRICTED_CONE)) as (lab, _, bob):
        with example(lab, "dave") as dave:
            assert Lines(dave).next() == f"call dave at {REGISTRAR.ip}"
            dave.send_signal(signal.SIGINT)
            assert dave.wait(PATIENCE_SECONDS) == 0
            bob.call("dave")
            assert "404" in bob.wait_ended()
        with example(lab, "carol") as carol:
            assert Lines(carol).next() == f"call carol at {REGISTRAR.ip}"
            bob.call("carol")
            bob.wait_established()
            assert bob.hear() == {BOB_HZ}
            bob.hang_up()
            bob.wait_ended()
            assert (carol.communicate("", timeout=PATIENCE_SECONDS)[0], carol.returncode) == ("", 0)


def test_behind_a_symmetric_nat_it_is_told_why_nobody_can_call_it() -> None:
    with phones(Topology(NatKind.SYMMETRIC)) as (_, alice, _bob):
        alice.command("register")
        alice.wait_for("refused", unless="registered")
        assert "relay" in alice.log
