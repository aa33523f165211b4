"""A `natgate` that stands in two networks tells each of them its address there, in signalling and media."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nattools.endpoint import Endpoint
from nattools.lab.namespaces import Host, Lab, Process
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, WAN_ADDRESS, Topology
from tests.lab.conftest import Lines
from tests.lab.natgate import natgate

INSIDE = "192.168.0.1"
OUTSIDE = WAN_ADDRESS


def telephone(host: Host, name: str, address: str, server: str) -> Process:
    return host.popen(
        [sys.executable, "-m", "tests.lab.telephone_program", name, address, f"{server}:5060"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def test_each_side_is_told_the_address_that_faces_it() -> None:
    users = {"alice": "alice", "bob": "bob"}
    everywhere = Endpoint.parse("0.0.0.0:5060")
    with Lab(Topology(NatKind.SYMMETRIC)) as lab:
        lab.router.run(["nft", "flush", "chain", "ip", "lab", "input"], timeout=5)  # it serves both sides
        with natgate(lab, users=users, at=everywhere, host=lab.router) as gate:
            listening = {str(listener.local.ip) for listener in gate.status().listeners}
            assert listening == {INSIDE, OUTSIDE}
            with (
                telephone(lab.client, "alice", "192.168.0.108", INSIDE) as alice,
                telephone(lab.public, "bob", str(SERVER.ip), OUTSIDE) as bob,
            ):
                said = {phone: Lines(phone) for phone in (alice, bob)}
                assert [lines.next() for lines in said.values()] == ["registered"] * 2
                for phone, callee in ((bob, "\n"), (alice, "bob\n")):
                    assert phone.stdin is not None
                    phone.stdin.write(callee)
                    phone.stdin.flush()
                heard = [json.loads(lines.next()) for lines in said.values()]
            assert [each["media"] for each in heard] == [f"c=IN IP4 {INSIDE}", f"c=IN IP4 {OUTSIDE}"]
            assert heard[1]["route"] == f"<sip:{OUTSIDE}:5060;lr>"  # what bob sends to first
            assert OUTSIDE in heard[1]["via"]
