"""The mapping client against a real router: made, kept through whatever happens to the router, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, Process, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from nattools.mapping.client import DEFAULT_TIMEOUT_S
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, Lines, OpenSockets, next_datagram
from tests.lab.news import NOTICED_S, until_news_are_heard
from tests.lab.stalls import Since

ROOT = Path(__file__).parents[2]
PROTOCOLS = ["pcp", "nat-pmp", "upnp"]
STRANGER_IPV6 = Endpoint.parse("[2001:db8::20]:3478")
LEASE_S = 8


@pytest.fixture(scope="module", autouse=True)
def _router() -> None:
    reason = why_no_igd()
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def lab_with(igd: Igd) -> Iterator[Lab]:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=igd), start_server=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A router that nothing happens to."""
    with lab_with(Igd()) as lab:
        yield lab


class Keeper:
    """The program on the client, and what it tells."""

    def __init__(
        self,
        lab: Lab,
        state: Path,
        *protocols: str,
        internal: str = "0.0.0.0:5070",
        lease_s: int = 3600,
        keep: bool = True,
        timeout_s: float = PATIENCE_SECONDS,
    ) -> None:
        self.process: Process = lab.client.popen(
            [
                *(sys.executable, "-m", "tests.lab.mapping_program", str(state), internal, str(lease_s)),
                *("keep" if keep else "leave", str(timeout_s), *(protocols or PROTOCOLS)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lines = Lines(self.process)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def next(self, *, within_s: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The next thing it tells."""
        return cast(dict[str, Any], json.loads(self._lines.next(within_s=within_s)))

    def until(self, *events: str, within_s: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The first of these events."""
        deadline = time.monotonic() + within_s
        while (told := self.next(within_s=max(deadline - time.monotonic(), 0)))["event"] not in events:
            pass
        return told

    def end(self) -> dict[str, Any]:
        """End it, and return its last words."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self.until("released", "failed")
        assert self.process.wait(PATIENCE_SECONDS) == 0
        return last


def arrives(lab: Lab, open_sockets: OpenSockets, external: Endpoint, internal_port: int) -> bool:
    """Whether a datagram from a stranger comes through to the client's port, before one that surely comes."""
    host = str(external.ip) if external.is_ipv6 else lab.topology.client_address
    at = STRANGER_IPV6 if external.is_ipv6 else STRANGER
    (stranger,) = open_sockets(lab.public, [at])
    client, other = open_sockets(lab.client, [Endpoint.of(host, internal_port), Endpoint.of(host, 0)])
    with stranger, client, other:
        other.sendto(b"OPTIONS", (str(at.ip), at.port))
        asked = next_datagram(stranger, PATIENCE_SECONDS)
        assert asked is not None
        for data, to in ((b"INVITE", external), (b"200 OK", asked[1])):
            stranger.sendto(data, (str(to.ip), to.port))
        assert next_datagram(other, PATIENCE_SECONDS) is not None
        return next_datagram(client, FENCE_SECONDS) is not None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_stranger_reaches_a_mapped_port(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str, version: int
) -> None:
    with lab_with(Igd(version=version)) as lab:
        external = Endpoint.parse("11.22.33.2:5070")
        assert not arrives(lab, open_sockets, external, 5070)
        with Keeper(lab, tmp_path, protocol) as keeper:
            told = keeper.next()
            assert (told["protocol"], told["external"], told["public"]) == (protocol, str(external), True)
            assert told["proven"]
            assert arrives(lab, open_sockets, external, 5070)
            assert keeper.end()["event"] == "released"
        assert not arrives(lab, open_sockets, external, 5070)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
def test_the_ipv6_firewall_lets_a_stranger_in(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str
) -> None:
    with lab_with(Igd()) as lab:
        external = Endpoint.parse("[2001:db8:1::108]:5070")
        assert not arrives(lab, open_sockets, external, 5070)
        with Keeper(lab, tmp_path, protocol, internal="[::]:5070") as keeper:
            told = keeper.next()
            assert (told["protocol"], told["external"]) == (protocol, str(external))
            assert arrives(lab, open_sockets, external, 5070)
            lab.igd.restart()
            assert keeper.until("renewed", "restored", within_s=5)["external"] == str(external)
            assert arrives(lab, open_sockets, external, 5070)
            assert keeper.end()["event"] == "released"
        assert not arrives(lab, open_sockets, external, 5070)
        assert not list(tmp_path.iterdir())


def test_ipv6_has_no_nat_pmp(lab: Lab, tmp_path: Path) -> None:
    with Keeper(lab, tmp_path, "nat-pmp", internal="[::]:5070") as keeper:
        assert "knows IPv4 only" in keeper.until("failed")["reason"]


def test_the_best_protocol_is_taken(lab: Lab, tmp_path: Path) -> None:
    with Keeper(lab, tmp_path) as keeper:
        assert keeper.next()["protocol"] == "pcp"


def test_the_same_mapping_again_is_only_refreshed(lab: Lab, tmp_path: Path) -> None:
    with Keeper(lab, tmp_path / "a", "upnp", internal="0.0.0.0:5080") as first:
        assert first.next()["external"] == "11.22.33.2:5080"
        with Keeper(lab, tmp_path / "b", "upnp", internal="0.0.0.0:5080") as second:
            assert second.next()["external"] == "11.22.33.2:5080"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_router_that_restarts_gives_the_mapping_back(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str
) -> None:
    with lab_with(Igd()) as lab, Keeper(lab, tmp_path, protocol) as keeper:
        external = Endpoint.parse(keeper.next()["external"])
        until_news_are_heard(lab, protocol)
        time.sleep(1.5)  # an epoch that goes back must have gone forward
        lab.igd.restart()
        since = Since()
        told = keeper.until("renewed", "restored")
        while not arrives(lab, open_sockets, external, 5070):  # news of the end of the old one come first
            told = keeper.until("renewed", "restored", within_s=NOTICED_S)
        assert since.took_s(told["at"]) < NOTICED_S
        assert told["external"] == str(external)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_new_address_is_told(open_sockets: OpenSockets, tmp_path: Path, protocol: str) -> None:
    with lab_with(Igd()) as lab, Keeper(lab, tmp_path, protocol) as keeper:
        assert keeper.next()["external"] == "11.22.33.2:5070"
        until_news_are_heard(lab, protocol)
        since = Since()
        lab.igd.change_wan_address("11.22.33.9")
        told = keeper.until("changed")
        assert told["external"] == "11.22.33.9:5070"
        assert since.took_s(told["at"]) < NOTICED_S
        assert arrives(lab, open_sockets, Endpoint.parse("11.22.33.9:5070"), 5070)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_mapping_that_vanished_silently_is_back_within_half_a_lease(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str
) -> None:
    with (
        lab_with(Igd(min_lease_s=1)) as lab,
        Keeper(lab, tmp_path, protocol, lease_s=LEASE_S) as keeper,
    ):
        external = Endpoint.parse(keeper.next()["external"])
        lab.igd.flush()
        since = Since()
        assert not arrives(lab, open_sockets, external, 5070)
        assert since.took_s(keeper.until("renewed", "restored")["at"]) < LEASE_S / 2 + 0.5
        assert arrives(lab, open_sockets, external, 5070)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_kill_9_leaves_is_removed_by_the_next_start(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str
) -> None:
    with lab_with(Igd()) as lab:
        with Keeper(lab, tmp_path, protocol) as keeper:
            external = Endpoint.parse(keeper.next()["external"])
        assert arrives(lab, open_sockets, external, 5070)
        assert len(list(tmp_path.iterdir())) == 1
        with Keeper(lab, tmp_path, protocol, internal="0.0.0.0:6000") as keeper:
            assert keeper.next()["event"] == "acquired"
            assert not arrives(lab, open_sockets, external, 5070)
            assert keeper.end()["event"] == "released"
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_mapping_follows_this_machine_to_another_address(
    open_sockets: OpenSockets, tmp_path: Path, protocol: str
) -> None:
    with (
        lab_with(Igd(min_lease_s=1)) as lab,
        Keeper(lab, tmp_path, protocol, lease_s=LEASE_S) as keeper,
    ):
        assert keeper.next()["external"] == "11.22.33.2:5070"
        for change in (
            f"addr del {lab.topology.client_address}/24 dev eth0",
            "addr add 192.168.0.7/24 dev eth0",
            "route replace default via 192.168.0.1",
        ):
            assert lab.client.run(["ip", *change.split()], timeout=5).returncode == 0
        told = keeper.until("changed", "renewed", "restored", within_s=10)
        (stranger,) = open_sockets(lab.public, [STRANGER])
        (client,) = open_sockets(lab.client, [Endpoint.parse("192.168.0.7:5070")])
        with stranger, client:
            external = Endpoint.parse(told["external"])
            stranger.sendto(b"INVITE", (str(external.ip), external.port))
            assert next_datagram(client, 1.0) is not None
        assert keeper.end()["event"] == "released"


@pytest.mark.parametrize("protocol", ["nat-pmp", "upnp"])
def test_an_address_behind_another_nat_is_not_offered_as_public(tmp_path: Path, protocol: str) -> None:
    with lab_with(Igd(wan_address="100.64.0.2")) as lab, Keeper(lab, tmp_path, protocol) as keeper:
        told = keeper.next()
        assert told["event"] == "failed"  # miniupnpd maps nothing there
        assert "NoRouterError" not in told["reason"]


def test_without_a_router_it_says_so_soon(tmp_path: Path) -> None:
    topology = Topology(NatKind.PORT_RESTRICTED_CONE)
    with (
        Lab(topology, start_server=False) as lab,
        Keeper(lab, tmp_path, timeout_s=DEFAULT_TIMEOUT_S) as keeper,
    ):
        told = keeper.next()
        assert told["event"] == "failed"
        assert told["reason"].startswith("NoRouterError: no router")
        assert not list(tmp_path.iterdir())


def test_the_example(tmp_path: Path) -> None:
    with lab_with(Igd()) as lab:
        example = lab.client.popen(
            [sys.executable, "-W", "error", str(ROOT / "examples" / "mapped_port.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        )
        assert example.stdout is not None
        assert example.stdout.readline() == "pcp: 11.22.33.2:5060 leads to 192.168.0.108:5060\n"
        example.send_signal(signal.SIGINT)
        said, errors = example.communicate(timeout=PATIENCE_SECONDS)
        assert (said, errors, example.returncode) == ("removed\n", "", 0)
