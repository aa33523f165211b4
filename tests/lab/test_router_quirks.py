"""Those quirks of real routers that take a network: multicast, other addresses, a reboot.

The others are in tests/unit/upnp/test_quirks.py. A real miniupnpd is restarted, and gets another address, in
tests/lab/test_mapping.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.fake_routers import OTHER, ROOT, ROUTER, FakeRouter, let_the_router_be_asked
from tests.lab.news import NOTICED_S
from tests.lab.stalls import Since
from tests.lab.test_mapping import Keeper

NATMAP = [sys.executable, "-m", "nattools.cli.natmap"]
DONE, NO_ROUTER = 0, 3

SEARCH = """
import socket, sys
target, port = sys.argv[1], int(sys.argv[2])
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(0.5)
    sock.sendto(
        b'M-SEARCH * HTTP/1.1\\r\\nHOST: 239.255.255.250:1900\\r\\nMAN: "ssdp:discover"\\r\\nMX: 1\\r\\n'
        b'ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\\r\\n\\r\\n', (target, port))
    try:
        print(sock.recvfrom(4096)[1][0])
    except TimeoutError:
        print("nobody")
"""
GROUP = "239.255.255.250"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab:
        let_the_router_be_asked(lab)
        yield lab


def who_answers(lab: Lab, destination: str) -> str:
    """What a client finds that knows one way to search."""
    done = lab.client.run([sys.executable, "-c", SEARCH, destination, "1900"], timeout=PATIENCE_SECONDS)
    return done.stdout.strip()


def natmap(lab: Lab, state: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = lab.client.run(
        ["env", f"XDG_STATE_HOME={state}", *NATMAP, *arguments, "--json"], timeout=40, cwd=ROOT
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, said


def mapped_by(lab: Lab, state: Path, port: int = 5060) -> str:
    """The router that natmap gets a mapping from."""
    status, said = natmap(lab, state, "add", str(port), "--lease", "600")
    assert status == DONE, said
    assert said["mapping"]["external"] == f"11.22.33.2:{port}"
    return str(said["mapping"]["gateway"])


@pytest.mark.parametrize(("name", "deaf"), [("multicast-only", ROUTER), ("unicast-only", GROUP)])
def test_quirk_02_a_router_answers_one_way_of_searching_only(
    name: str, deaf: str, lab: Lab, tmp_path: Path
) -> None:
    """By multicast only (eero), or by unicast only, as in networks that swallow multicast."""
    with FakeRouter(lab.router, name) as router:
        assert who_answers(lab, deaf) == "nobody"
        assert who_answers(lab, ({ROUTER, GROUP} - {deaf}).pop()) == ROUTER
        assert mapped_by(lab, tmp_path) == ROUTER
        ways = [one["arguments"]["by"] for one in router.seen("ssdp")][2:]
    assert ways[0] == "unicast"  # first, to open the firewall of this host for the answer
    assert "multicast" in ways


def test_quirk_04_the_router_is_not_at_the_default_gateway(lab: Lab, tmp_path: Path) -> None:
    """CARP, VRRP: the gateway is a floating address; the answer and LOCATION are of the router's own."""
    with FakeRouter(lab.router, "other-address") as router:
        assert who_answers(lab, GROUP) == OTHER != ROUTER
        assert mapped_by(lab, tmp_path) == OTHER
        [added] = [one for one in router.seen("soap") if one["what"] == "AddPortMapping"]
    assert added["arguments"]["NewInternalClient"] == added["peer"]


def test_quirk_06_the_answer_is_a_late_notification(lab: Lab, tmp_path: Path) -> None:
    """D-Link DSL-2730E: after 5 to 10 s, by a NOTIFY to everybody; who gives it time finds it."""
    with FakeRouter(lab.router, "slow-notify"):
        assert who_answers(lab, ROUTER) == "nobody"
        started = time.monotonic()
        status, said = natmap(lab, tmp_path, "add", "5060", "--protocol", "upnp", "--timeout", "20")
        assert (status, said["mapping"]["gateway"]) == (DONE, ROUTER)
        assert time.monotonic() - started > 3  # or the router was not slow


@pytest.mark.parametrize("name", ["igd1", "igd2", "no-boot-id", "no-events", "events-refused"])
def test_quirk_23_a_reboot_is_noticed_and_the_mapping_made_again(name: str, lab: Lab, tmp_path: Path) -> None:
    """SSDP says byebye and alive; not every router has a BOOTID, or events."""
    with FakeRouter(lab.router, name) as router, Keeper(lab, tmp_path, "upnp") as keeper:
        assert keeper.next()["external"] == "11.22.33.2:5070"
        router.until("http", "SUBSCRIBE")
        router.tell("reboot")
        since = Since()
        told = keeper.until("renewed", "restored", within_s=NOTICED_S + 1)
        assert since.took_s(told["at"]) < NOTICED_S
        assert told["external"] == "11.22.33.2:5070"
        status, said = natmap(lab, tmp_path / "other", "list", "--protocol", "upnp")
        assert (status, [row["external_port"] for row in said["mappings"]]) == (DONE, [5070])
        assert keeper.end()["event"] == "released"


def test_quirk_23_another_address_is_told_by_an_event(lab: Lab, tmp_path: Path) -> None:
    """GENA: the router is silent otherwise."""
    with FakeRouter(lab.router, "igd2") as router, Keeper(lab, tmp_path, "upnp") as keeper:
        assert keeper.next()["external"] == "11.22.33.2:5070"
        router.until("event", "200")  # how things are at first is no change
        router.tell("address 11.22.33.9")
        since = Since()
        told = keeper.until("changed", within_s=NOTICED_S + 1)
        assert told["external"] == "11.22.33.9:5070"
        assert since.took_s(told["at"]) < NOTICED_S
