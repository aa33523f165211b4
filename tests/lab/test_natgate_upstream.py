"""`natgate` in front of a kamailio that knows nothing of NATs: both phones of each call are natgate's own.

So each call passes natgate twice, with the kamailio in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.natgate import GATE, Natgate, natgate
from tests.lab.sip_peers import Baresip, Phone, PyVoip, why_no_baresip, why_no_pyvoip

ALICE_HZ, BOB_HZ = 440, 880
PASSWORD = "sesame"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_kamailio(), why_no_baresip(), why_no_pyvoip()):
        if reason is not None:
            pytest.skip(reason)


@contextmanager
def phones(lab: Lab, *, alice: type[Baresip | PyVoip] = Baresip) -> Iterator[tuple[Phone, Phone]]:
    """Alice behind the NAT and Bob outside, both of whom know one server, natgate."""
    with (
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD, server=GATE) as bob,
        alice.inside(lab, "alice", plays_hz=ALICE_HZ, password=PASSWORD, server=GATE) as inside,
    ):
        bob.register()
        inside.register()
        yield inside, bob


def assert_they_talk(gate: Natgate, caller: Phone, callee: Phone, *, hangs_up: Phone) -> None:
    """Have one call the other: both hear, it is one call, and it ends on both sides."""
    caller.call(callee.user)
    caller.wait_established()
    callee.wait_established()
    for phone, other in ((caller, callee), (callee, caller)):
        assert phone.hear() == {other.plays_hz}, f"{phone.user} hears nothing: {gate.log}"
    assert len(gate.status().calls) == 1
    hangs_up.hang_up()
    for phone in (caller, callee):
        phone.wait_ended()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while gate.status().calls:
        assert time.monotonic() < deadline, gate.log
    assert "Traceback" not in gate.log


def test_phones_of_one_natgate_call_each_other_and_are_still_there_after_a_crash() -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False))
        stack.enter_context(kamailio(lab, password=PASSWORD))
        words = ("--upstream", f"sip:{REGISTRAR.ip}")
        gate = stack.enter_context(natgate(lab, *words, settings='store = "sqlite:registrations.sqlite"'))
        alice, bob = stack.enter_context(phones(lab))
        assert_they_talk(gate, alice, bob, hangs_up=bob)
        assert_they_talk(gate, bob, alice, hangs_up=bob)
        before = {it.address_of_record: it.contact for it in gate.status().registrations}
        assert set(before) == {f"alice@{REGISTRAR.ip}", f"bob@{REGISTRAR.ip}"}
        gate.kill()
        gate.start()
        assert {it.address_of_record: it.contact for it in gate.status().registrations} == before
        assert_they_talk(gate, bob, alice, hangs_up=alice)


def test_a_phone_that_ignores_routes_and_an_upstream_by_tcp_that_goes_away() -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology(NatKind.SYMMETRIC), start_server=False))
        upstream = ExitStack()
        stack.enter_context(upstream)
        upstream.enter_context(kamailio(lab, password=PASSWORD, call_challenge=None))
        gate = stack.enter_context(natgate(lab, "--upstream", f"sip:{REGISTRAR.ip};transport=tcp"))
        alice, bob = stack.enter_context(phones(lab, alice=PyVoip))
        assert_they_talk(gate, bob, alice, hangs_up=alice)
        assert_they_talk(gate, alice, bob, hangs_up=bob)
        upstream.close()
        bob.call("alice")
        assert bob.wait_ended().startswith("500")
        bob.call("alice")
        assert bob.wait_ended().startswith("503")
        assert f"does not answer at {REGISTRAR}: phones get 503 until it does" in gate.log


def test_with_path_the_registrar_keeps_the_phones_own_contact() -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False))
        stack.enter_context(kamailio(lab, password=PASSWORD, path=True))
        words = ("--upstream", f"sip:{REGISTRAR.ip}", "--path")
        gate = stack.enter_context(natgate(lab, *words))
        alice, bob = stack.enter_context(phones(lab))
        assert_they_talk(gate, bob, alice, hangs_up=bob)
        assert "Path" not in gate.log
