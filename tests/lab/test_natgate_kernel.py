"""Calls whose media the kernel carries: they outlive `natgate`, and the next one takes them over."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, WAN_ADDRESS, Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.ears import Ears, ears
from tests.lab.natgate import Natgate, natgate
from tests.lab.sip_peers import Baresip, why_no_baresip

PASSWORD = "sesame"
INSIDE, OUTSIDE = Endpoint.of("192.168.0.1", 5060), Endpoint.of(WAN_ADDRESS, 5060)
EVERYWHERE = Endpoint.of("0.0.0.0", 5060)
_PACKETS = 25  # half a second of a call: no straggler
_CODECS = (0, 8)
_POLL_S = 0.02
_TOOL_S = 10


def let_the_router_serve(lab: Lab) -> None:
    """Have the router take SIP and RTP, and forward what its kernel relays, which is no connection to it."""
    lab.router.run(["nft", "flush", "chain", "ip", "lab", "input"], timeout=_TOOL_S)
    rule = ["udp", "dport", "30000-40000", "accept"]
    lab.router.run(["nft", "insert", "rule", "ip", "lab", "forward", *rule], timeout=_TOOL_S)


def both_hear(lab: Lab) -> bool:
    """Whether RTP comes to the hosts of both phones from now on."""
    with ears(lab.client) as inside, ears(lab.public) as outside:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if min(count(inside, "192.168.0.108"), count(outside, str(SERVER.ip))) >= _PACKETS:
                return True
            time.sleep(_POLL_S)
    return False


def count(heard: Ears, address: str) -> int:
    return sum(it.payload_type in _CODECS and str(it.to.ip) == address for it in heard.packets())


def until_in_kernel(gate: Natgate) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while [[it.in_kernel for it in call.streams] for call in gate.status().calls] != [[True]]:
        assert time.monotonic() < deadline, gate.status().calls
        time.sleep(_POLL_S)


def test_a_call_goes_on_without_natgate_and_is_taken_over_by_the_next() -> None:
    reason = why_no_baresip()
    if reason is not None:
        pytest.skip(reason)
    users = {"alice": PASSWORD, "bob": PASSWORD}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False))
        let_the_router_serve(lab)
        kept = 'engine = "kernel"\nstore = "sqlite:registrations.sqlite"\n'
        gate = stack.enter_context(natgate(lab, users=users, settings=kept, at=EVERYWHERE, host=lab.router))
        bob, alice = (
            stack.enter_context(phone)
            for phone in (
                Baresip.outside(lab, "bob", plays_hz=880, password=PASSWORD, server=OUTSIDE),
                Baresip.inside(lab, "alice", plays_hz=440, password=PASSWORD, server=INSIDE),
            )
        )
        bob.register()
        alice.register()
        bob.call("alice")
        bob.wait_established()
        alice.wait_established()
        assert both_hear(lab), gate.log
        until_in_kernel(gate)
        gate.kill()
        assert both_hear(lab), "the call ends with natgate"
        gate.start()
        assert both_hear(lab), gate.log
        assert not gate.status().calls, "of calls from before nothing is known"
        bob.hold()
        bob.resume()
        until_in_kernel(gate)
        assert both_hear(lab), gate.log
        bob.hang_up()
        alice.wait_ended()
        assert gate.stop() == 0, gate.log
        tables = lab.router.run(["nft", "list", "tables"], timeout=_TOOL_S).stdout
        assert "nattools" not in tables
        assert "Traceback" not in gate.log
