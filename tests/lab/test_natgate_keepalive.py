"""Phones behind a forgetful NAT stay reachable, over a crash of natgate too, and are kept while they live."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import lose_what_has_no_route
from tests.lab.natgate import GATE, Natgate, natgate
from tests.lab.sip_peers import Baresip, why_no_baresip
from tests.lab.sipp import Sipp, why_no_sipp

PASSWORD = "sesame"
USERS = dict.fromkeys(("alice", "bob", "dave"), PASSWORD)
NAT_TIMER_S = 5
SETTINGS = "keepalive_s = 1\ndead_after = 3\n"
POLL_S = 0.1


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_baresip(), why_no_sipp()):
        if reason is not None:
            pytest.skip(reason)


def registered(gate: Natgate) -> set[str]:
    """Who is registered now."""
    return {it.address_of_record.partition("@")[0] for it in gate.status().registrations}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def test_phones_are_kept_over_a_crash_and_until_they_answer_no_more(tmp_path: Path) -> None:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=NAT_TIMER_S), start_server=False) as lab,
        natgate(lab, users=USERS, settings=f"{SETTINGS}store = 'sqlite:{tmp_path}/kept'\n") as gate,
        Baresip.outside(lab, "bob", plays_hz=880, password=PASSWORD, server=GATE) as bob,
        Sipp(
            lab.client,
            "dave",
            Endpoint.of(lab.topology.client_address, 5064),
            plays_hz=440,
            password=PASSWORD,
            server=GATE,
        ) as dave,
        Baresip.inside(lab, "alice", plays_hz=440, password=PASSWORD, server=GATE) as alice,
    ):
        lose_what_has_no_route(lab)
        for phone in (bob, dave, alice):
            phone.register()
        gate.kill()
        gate.start()
        assert registered(gate) == {"alice", "bob", "dave"}
        time.sleep(NAT_TIMER_S + 1.5)  # nobody but natgate keeps the NAT open
        bob.call("alice")
        bob.wait_established()
        alice.wait_established()
        assert bob.hear() == {440}
        assert alice.hear() == {880}
        bob.hang_up()
        alice.wait_ended()
        bob.wait_ended()
        assert gate.status().counters["pongs"] >= 3

        alice.close()  # it is killed, and does not take leave
        wait_until(lambda: "alice" not in registered(gate))
        assert registered(gate) == {"bob", "dave"}
        assert gate.status().counters["dead"] == 1
        assert "did not answer 3 pings" in gate.log
        bob.call("alice")
        assert "480" in bob.wait_ended()
