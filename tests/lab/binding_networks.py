"""Who can reach a binding: every way to one, on every network, tried with packets.

`who_can_reach` builds a network, has `binding_program` open a binding in each of the `WAYS`, and sends to
what it claims: from a stranger that its socket never sent to, from a host that it has sent to, and from the
socket of the STUN server. What it finds are `Row`s; the tests judge them, a bench prints them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nattools.binding.model import Reach
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, SymmetricNatError
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_SERVER, SERVER, STRANGER, WAN_ADDRESS, Topology
from tests.lab.conftest import OpenSockets, next_datagram
from tests.lab.network_changes import configure, forward_port, run
from tests.lab.remote_bindings import ARRIVES_SECONDS, ROOT, BindingProgram, Impostor, RemoteBinding
from tests.lab.vpn import INTERFACE, STRANGER_ADDRESS, why_no_vpn, wireguard

PLAIN_PORT = 4478
"""On it each of the server's addresses has a server of its own, that knows of no other."""
ABROAD = "11.22.33"
"""A network that is reserved for nothing, so that an address of it is a public one."""

FENCE_SECONDS = 0.2  # for what need not arrive

_FIRST_PORT = 5070
_STRANGER_PORT = 7000
_KNOWN_PORT = 8000
_STRIDE = 5
_APART_SECONDS = 0.05  # or the bindings would keep each other, and the servers, from answering in time

# STUN servers, each by itself, in one process.
_SERVE = """
import asyncio, sys
from nattools.endpoint import Endpoint
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer

async def main():
    endpoints = [Endpoint.parse(word) for word in sys.argv[1:]]
    servers = [await StunServer.start(ServerAddresses(at.ip, port=at.port)) for at in endpoints]
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a binding: settings, and what there must be on the network for it."""

    name: str
    methods: tuple[str, ...]
    servers: tuple[str, ...] = (str(SERVER),)
    has_host: bool = False  # the administrator says where the client is from outside
    is_forwarded: bool = False  # and has forwarded the port
    has_vpn: bool = False
    keeps_port: bool = True  # a port that was chosen for it; otherwise the system's, which no NAT knows


_PLAIN = tuple(str(server.with_port(PLAIN_PORT)) for server in (SERVER, ALTERNATE_SERVER))

_STUN = Way("stun", ("stun",), keeps_port=False)

WAYS = (
    Way("open", ("open",), keeps_port=False),
    Way("open, nobody looks", ("open",), servers=(), keeps_port=False),
    _STUN,
    Way("stun, two plain", ("stun",), servers=_PLAIN, keeps_port=False),
    Way("stun, one plain", ("stun",), servers=_PLAIN[:1], keeps_port=False),
    Way("stun, own port", ("stun",)),
    Way("static, forwarded", ("static",), has_host=True, is_forwarded=True),
    Way("static", ("static",), has_host=True),
    Way("static, nobody looks", ("static",), servers=(), has_host=True),
    Way("pcp", ("pcp",)),
    Way("nat-pmp", ("nat-pmp",)),
    Way("upnp", ("upnp",)),
    Way("upnp, nobody looks", ("upnp",), servers=()),
    Way("vpn", ("vpn",), servers=(), has_vpn=True),
    Way("all", ("static", "vpn", "pcp", "upnp", "open", "stun"), keeps_port=False),
)


OUTCOMES = {
    "A": Reach.ANYONE.value,
    "H": Reach.HOSTS_SENT_TO.value,
    "S": Reach.SERVER_ONLY.value,
    "D": Reach.DECLARED.value,
    "-": BindingError.__name__,
    "~": SymmetricNatError.__name__,
}


@dataclass(frozen=True, slots=True)
class BindingNetwork:
    """A network, what is done to it first, and what becomes of every way to a binding on it.

    `static_host` is the address that its administrator gives out.
    """

    name: str
    topology: Topology
    outcomes: str  # of each of the `WAYS`, in the letters of `OUTCOMES`
    static_host: str = WAN_ADDRESS
    prepare: Callable[[Lab], None] = lambda lab: None

    def __post_init__(self) -> None:
        assert len(self.outcomes.replace(" ", "")) == len(WAYS)

    def outcome(self, way: Way) -> str:
        """The reach that a way must find here, or the class of the error."""
        return OUTCOMES[self.outcomes.replace(" ", "")[WAYS.index(way)]]

    def may_be(self, outcome: str, way: Way) -> bool:
        """Whether a way may find this here.

        Where all methods race, the router's has a fixed time to be ready before what STUN has found is taken.
        """
        by_stun = self.outcome(_STUN)
        runner_up = by_stun if len(way.methods) > 1 and not by_stun.endswith("Error") else ""
        return outcome in (self.outcome(way), runner_up)

    @property
    def passes_udp(self) -> bool:
        """Whether datagrams get out at all, those of a VPN among them."""
        return self.topology.nat is not NatKind.BLOCKED


def _number_as_public(lab: Lab) -> None:
    """Give the client an address that is reserved for nothing."""
    configure(lab.router, f"addr add {ABROAD}.1/24 dev lan")
    configure(lab.public, f"route add {ABROAD}.0/24 via {WAN_ADDRESS}")
    configure(
        lab.client,
        f"addr del {lab.topology.client_address}/24 dev eth0",
        f"addr add {ABROAD}.108/24 dev eth0",
        f"route add default via {ABROAD}.1",
    )


def _add_carrier_nat(lab: Lab) -> None:
    """Put one more NAT before the router, without its knowledge: the public side sees `WAN_ADDRESS`.

    It stands on the public host itself, where what comes in passes it before any socket sees it.
    """
    assert lab.topology.igd is not None
    behind = lab.topology.igd.wan_network
    rules = [
        "table ip carrier {",
        "chain inward { type nat hook input priority 100; policy accept;",
        f"ip saddr {behind} meta l4proto {{ tcp, udp }} snat to {WAN_ADDRESS}",
        "}",
        "chain outward { type filter hook output priority 0; policy accept;",
        f"ip daddr {behind} meta l4proto {{ tcp, udp }} ct state new drop",
        "}",
        "}",
        "",
    ]
    run(lab.public, ["nft", "-f", "-"], "\n".join(rules))


_CONE = NatKind.PORT_RESTRICTED_CONE
_HOME = "198.51.100.108"

# Outcomes of: open, stun, static, the router's own ways, vpn, all.
WITHOUT_NAT = (
    BindingNetwork("open", Topology(NatKind.OPEN), "A- AHSH AAD ---- H A", _HOME),
    BindingNetwork(
        "open, public", Topology(NatKind.OPEN), "AD AHHH AAD ---- H A", f"{ABROAD}.108", _number_as_public
    ),
    BindingNetwork("symmetric-firewall", Topology(NatKind.SYMMETRIC_FIREWALL), "H- HHSH A-D ---- H H", _HOME),
)
CONES = (
    BindingNetwork("full-cone", Topology(NatKind.FULL_CONE), "-- AHSH AAD ---- H A"),
    BindingNetwork("restricted-cone", Topology(NatKind.RESTRICTED_CONE), "-- HHSH ADD ---- H H"),
    BindingNetwork("port-restricted-cone", Topology(_CONE), "-- HHSH A-D ---- H H"),
    BindingNetwork("double", Topology(_CONE, _CONE), "-- HHSH A-D ---- H H"),
)
NOT_BY_STUN = (
    BindingNetwork("symmetric", Topology(NatKind.SYMMETRIC), "-- ~~S~ A-D ---- H ~"),
    BindingNetwork("address-dependent", Topology(NatKind.ADDRESS_DEPENDENT), "-- ~~S~ A-D ---- H ~"),
    BindingNetwork("blocked", Topology(NatKind.BLOCKED), "-- ---- DDD ---- - -"),
)
WITH_IGD = (
    BindingNetwork("igd", Topology(_CONE, igd=Igd()), "-- HHSH A-D AAAD H A", f"{ABROAD}.2"),
    BindingNetwork(
        "igd, symmetric", Topology(NatKind.SYMMETRIC, igd=Igd()), "-- ~~S~ A-D AAAD H A", f"{ABROAD}.2"
    ),
    BindingNetwork(
        "igd, double",
        Topology(_CONE, igd=Igd(wan_address="100.64.0.2")),
        "-- HHSH --D ---- H H",
        prepare=_add_carrier_nat,
    ),
    BindingNetwork(
        "igd, double unknown to it",
        Topology(_CONE, igd=Igd()),
        "-- HHSH --D ---D H H",
        prepare=_add_carrier_nat,
    ),
)
NETWORKS = (*WITHOUT_NAT, *CONES, *NOT_BY_STUN, *WITH_IGD)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one way on one network. Who got in is None where there was nothing to send to."""

    network: BindingNetwork
    way: Way
    took_s: float
    told: dict[str, Any]
    stranger: bool | None = None
    known: bool | None = None
    server: bool | None = None
    left_from: str = ""  # where the host that was sent to saw it

    @property
    def outcome(self) -> str:
        """The reach that was claimed, or the class of the error."""
        return cast(str, self.told["error"] if self.told["event"] == "failed" else self.told["reach"])

    @property
    def broken_promises(self) -> list[str]:
        """What was claimed and is not so."""
        told = self.told
        if told["event"] == "failed":
            is_typed = told["error"] in ("BindingError", "SymmetricNatError")
            says_why = bool(told["reason"]) and "What helps" in told["reason"]
            return [] if is_typed and says_why else [f"an error that does not help: {told}"]
        reach = Reach(told["reach"])
        promises = {
            "reach anyone, and no stranger gets in": reach is not Reach.ANYONE or self.stranger,
            "a host that was sent to does not get in": reach not in (Reach.ANYONE, Reach.HOSTS_SENT_TO)
            or self.known,
            "the server does not get in": reach is not Reach.SERVER_ONLY or self.server,
            "declared, and not said by whom": reach is not Reach.DECLARED or bool(told["evidence"]),
            f"outbound matches, but it left from {self.left_from}": told["outbound_matches"] is not True
            or self.left_from == told["public"],
            "outbound does not match, but it does": told["outbound_matches"] is not False
            or self.left_from != told["public"],
        }
        return [promise for promise, is_kept in promises.items() if not is_kept]


@contextmanager
def built(network: BindingNetwork) -> Iterator[Lab]:
    """The laboratory of a network, with all its servers and, where one gets through, the VPN."""
    with Lab(network.topology) as lab, ExitStack() as stack:
        plain = [server.with_port(PLAIN_PORT) for server in (SERVER, ALTERNATE_SERVER)]
        serving = lab.public.popen(
            [sys.executable, "-c", _SERVE, *map(str, plain)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        lab.wait_until_bound(serving, plain)
        network.prepare(lab)
        if network.passes_udp and why_no_vpn() is None:
            stack.enter_context(wireguard(lab))
        yield lab


def why_not(network: BindingNetwork) -> str | None:
    """Say why this machine cannot have that network; None when it can."""
    return why_no_igd() if network.topology.igd is not None else None


def who_can_reach(
    network: BindingNetwork, open_sockets: OpenSockets, state: Path, ways: Sequence[Way] = WAYS
) -> list[Row]:
    """Try all the ways on a network; a VPN's only where this machine has one."""
    ways = [way for way in ways if not way.has_vpn or why_no_vpn() is None]
    with built(network) as lab, BindingProgram(lab.client) as program:
        outside = Impostor(lab, open_sockets)
        trials = [_Trial(network, way, lab, number) for number, way in enumerate(ways)]
        # Neighbours in the table ask the same router or server, so they do not begin one after the other.
        for trial in [trial for first in range(_STRIDE) for trial in trials[first::_STRIDE]]:
            trial.open(program, state)
            time.sleep(_APART_SECONDS)
        rows = _tried(trials, lab, outside, open_sockets)
        program.end()
    return rows


def faults(network: BindingNetwork, open_sockets: OpenSockets, state: Path) -> dict[str, object]:
    """What is claimed on a network and not so, and what is not found as it should be, way by way."""
    rows = who_can_reach(network, open_sockets, state / "together")
    # A server that is late, as on a busy machine, is not waited for, and less is claimed then. So a way that
    # was late among so many is tried by itself.
    late = [row.way for row in rows if not network.may_be(row.outcome, row.way)]
    again = who_can_reach(network, open_sockets, state / "alone", late) if late else []
    broken = {row.way.name: row.broken_promises for row in [*rows, *again] if row.broken_promises}
    wrong = {
        row.way.name: (row.outcome, row.told) for row in again if not network.may_be(row.outcome, row.way)
    }
    return {**wrong, **broken}


class _Trial:
    """One way on one network, step by step, so that several can wait at the same time."""

    def __init__(self, network: BindingNetwork, way: Way, lab: Lab, number: int) -> None:
        self.network, self.way, self.lab = network, way, lab
        self.port = _FIRST_PORT + 2 * number
        self.told: dict[str, Any] = {}
        self.binding: RemoteBinding
        self._number = number

    def open(self, program: BindingProgram, state: Path) -> None:
        way = self.way
        words: dict[str, object] = {"methods": way.methods, "stun_servers": way.servers}
        if way.has_host:
            words["static_host"] = self.network.static_host
        if way.has_vpn:
            words["vpn_interface"] = INTERFACE
        if way.is_forwarded:
            forward_port(self.lab, self.port, self.port)
        words["state_directory"] = str(state / f"{self._number}")
        self.binding = program.open(f"0.0.0.0:{self.port if way.keeps_port else 0}", **words)

    @property
    def public(self) -> Endpoint | None:
        return Endpoint.parse(self.told["public"]) if self.told["event"] == "acquired" else None

    @property
    def stranger(self) -> Endpoint:
        return Endpoint(self._remote_ip, _STRANGER_PORT + self._number)

    @property
    def known(self) -> Endpoint:
        return Endpoint(self._remote_ip, _KNOWN_PORT + self._number)

    @property
    def server(self) -> Endpoint:
        return Endpoint.parse(self.way.servers[0]) if self.way.servers else SERVER

    @property
    def _remote_ip(self) -> Any:
        return STRANGER_ADDRESS if self.told.get("realm") else STRANGER.ip

    def receives(self, text: str, *promised_by: Reach, until: float) -> bool:
        """Whether a datagram comes: until then, or as long as it takes where the binding promises it."""
        is_promised = Reach(self.told["reach"]) in promised_by
        within_s = ARRIVES_SECONDS if is_promised else max(until - time.monotonic(), 0)
        return self.binding.has_received(text, within_s=within_s)


def _tried(trials: Sequence[_Trial], lab: Lab, outside: Impostor, open_sockets: OpenSockets) -> list[Row]:
    """See for each what it finds, and who gets in."""
    for trial in trials:
        trial.told = trial.binding.until("acquired", "failed", within_s=30)
    found = {trial: public for trial in trials if (public := trial.public) is not None}
    strangers, known, servers, left_from = {}, {}, {}, {}
    for trial, public in found.items():
        outside.send(trial.stranger, public, "a stranger")
    until = time.monotonic() + FENCE_SECONDS
    for trial in found:
        strangers[trial] = trial.receives("a stranger", Reach.ANYONE, until=until)
    hosts = open_sockets(lab.public, [trial.known for trial in found])
    for trial in found:
        trial.binding.send(trial.known, "hello")
    for (trial, public), host in zip(found.items(), hosts, strict=True):
        hello = next_datagram(host, ARRIVES_SECONDS if trial.network.passes_udp else FENCE_SECONDS)
        left_from[trial] = "" if hello is None else str(hello[1])
        host.close()
        outside.send(trial.known, public, "a host that was sent to")
        outside.send(trial.server, public, "the server")
    until = time.monotonic() + FENCE_SECONDS
    for trial in found:
        known[trial] = trial.receives(
            "a host that was sent to", Reach.ANYONE, Reach.HOSTS_SENT_TO, until=until
        )
        servers[trial] = trial.receives("the server", Reach.SERVER_ONLY, until=until)
        trial.binding.close()
    for trial in found:
        assert trial.binding.until("released", "failed")["event"] == "released"
    return [
        Row(
            trial.network,
            trial.way,
            trial.told["took_s"],
            trial.told,
            strangers.get(trial),
            known.get(trial),
            servers.get(trial),
            left_from.get(trial, ""),
        )
        for trial in trials
    ]
