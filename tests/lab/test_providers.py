"""Providers on real networks: tunnels of the kernel's, and miniupnpd as the router."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Host, Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines, OpenSockets, next_datagram
from tests.lab.fake_routers import FakeRouter, let_the_router_be_asked
from tests.lab.news import until_news_are_heard
from tests.lab.stalls import Since

ROOT = Path(__file__).parents[2]
FENCE_S = 0.2  # for what must not arrive
NOTICED_S = 1.0  # what is promised from the router's announcement on
ANY = "0.0.0.0:5070"

# A tunnel as a VPN program has it: there as long as the program is. Nothing comes out at the other end.
_TUNNEL = """
import fcntl, os, struct, sys
tunnel = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1001))  # TUNSETIFF
print("ready", flush=True)
sys.stdin.read()
"""


class Asker:
    """The program on the client, and what it tells."""

    def __init__(self, host: Host, **options: object) -> None:
        self.process = host.popen(
            [sys.executable, "-W", "error", "-m", "tests.lab.provider_program", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lines = Lines(self.process)

    def next(self) -> dict[str, Any]:
        """The next thing that it tells."""
        return cast(dict[str, Any], json.loads(self._lines.next()))

    def news(self) -> dict[str, Any]:
        """The next news."""
        told = self.next()
        assert told["event"] == "news"
        return told

    def ask(self, *words: str) -> dict[str, Any]:
        """What comes of it; news in between are passed over."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        while (told := self.next())["event"] == "news":
            pass
        return told

    def end(self) -> None:
        """End it in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_SECONDS) == 0


@contextmanager
def asking(host: Host, **options: object) -> Iterator[Asker]:
    asker = Asker(host, **options)
    try:
        assert asker.next()["event"] == "ready"
        yield asker
    finally:
        asker.process.kill()
        asker.process.wait(PATIENCE_SECONDS)
        for stream in (asker.process.stdin, asker.process.stdout):
            if stream is not None:
                stream.close()


def ip(host: Host, *commands: str) -> None:
    done = host.run(["ip", "-batch", "-"], timeout=10, input="".join(f"{line}\n" for line in commands))
    assert done.returncode == 0, done.stderr


# The VPN


@pytest.fixture
def client() -> Iterator[Host]:
    """A host at 198.51.100.108, whose router is at .1."""
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab:
        yield lab.client


@contextmanager
def tunnel(host: Host, name: str = "tun0") -> Iterator[None]:
    """A tunnel where the host is 10.8.0.2, and 10.8.0.0/24 and 10.99.0.0/16 are behind it."""
    program = host.popen(
        [sys.executable, "-I", "-S", "-c", _TUNNEL, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        if Lines(program).next() != "ready":
            pytest.skip("no tunnel can be made on this machine")
        ip(
            host,
            f"addr add 10.8.0.2/24 dev {name}",
            f"link set {name} up",
            f"route add 10.99.0.0/16 dev {name}",
        )
        yield
    finally:
        program.stdin.close()
        program.wait(PATIENCE_SECONDS)
        program.stdout.close()


@pytest.mark.parametrize(
    "options", [{"interface": "office"}, {"peer": "10.8.0.1"}, {"peer": "10.99.1.2:5060"}], ids=str
)
def test_a_tunnel_is_found_and_missed(client: Host, options: dict[str, str]) -> None:
    with asking(client, **options) as asker:
        assert asker.ask("acquire", ANY)["event"] == "refused"
        with tunnel(client, "office"):
            claim = asker.ask("acquire", ANY)
            assert (claim["method"], claim["realm"]) == ("vpn", "office")
            assert claim["local"] == claim["public"] == "10.8.0.2:5070"
            assert asker.ask("renew") == claim | {"at": pytest.approx(claim["at"], abs=60)}
            assert asker.ask("acquire", "10.8.0.2:5070")["event"] == "claim"
            refused = asker.ask("acquire", "198.51.100.108:5070")
            assert "bind it to that" in refused["reason"]
            assert asker.ask("acquire", ANY)["event"] == "claim"

            ip(
                client,
                "addr del 10.8.0.2/24 dev office",
                "addr add 10.8.0.7/24 dev office",
                "route replace 10.99.0.0/16 dev office",
            )
            assert asker.ask("renew")["public"] == "10.8.0.7:5070"

            ip(client, "link set office down")
            assert asker.ask("renew")["event"] == "refused"
            ip(client, "link set office up", "route replace 10.99.0.0/16 dev office")
            assert asker.ask("renew")["public"] == "10.8.0.7:5070"
        refused = asker.ask("renew")
        assert (refused["event"], refused["error"]) == ("refused", "BindingError")
        asker.end()


def test_a_way_that_is_no_tunnel_is_none(client: Host) -> None:
    with asking(client, peer="203.0.113.10") as asker:
        refused = asker.ask("acquire", ANY)
        assert refused["reason"].startswith("the route to 203.0.113.10 goes through eth0, which is no tunnel")


# What the administrator says


def test_the_local_address_is_the_one_towards_the_public_one(client: Host) -> None:
    with asking(client, static_host="203.0.113.1", static_ports="5000-5100") as asker:
        claim = asker.ask("acquire", ANY)
        assert (claim["method"], claim["local"]) == ("static", "198.51.100.108:5070")
        assert claim["public"] == "203.0.113.1:5070"
        ip(client, "addr add 10.9.8.7/24 dev eth0", "route replace default via 198.51.100.1 src 10.9.8.7")
        assert asker.ask("renew")["local"] == "10.9.8.7:5070"


# The router


@pytest.fixture(scope="module")
def _router() -> None:
    reason = why_no_igd()
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def lab_with(igd: Igd) -> Iterator[Lab]:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=igd), start_server=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def router_lab(_router: None) -> Iterator[Lab]:
    """A router that nothing happens to, and of which every test gets rid of its mappings."""
    with lab_with(Igd()) as lab:
        yield lab


@pytest.fixture(scope="module")
def second_nat_lab(_router: None) -> Iterator[Lab]:
    """A router that knows of a second NAT in front of it."""
    with lab_with(Igd(wan_address="100.64.0.2")) as lab:
        yield lab


def arrives(lab: Lab, open_sockets: OpenSockets, public: str, *, within_s: float = PATIENCE_SECONDS) -> bool:
    """Whether a datagram from a stranger comes through to the client's port."""
    external = Endpoint.parse(public)
    (stranger,) = open_sockets(lab.public, [STRANGER])
    (client,) = open_sockets(lab.client, [Endpoint.of(lab.topology.client_address, 5070)])
    with stranger, client:
        stranger.sendto(b"INVITE", (str(external.ip), external.port))
        return next_datagram(client, within_s) is not None


@pytest.mark.parametrize(
    ("methods", "method"),
    [(["pcp"], "pcp"), (["nat-pmp"], "nat-pmp"), (["upnp"], "upnp"), (["pcp", "upnp"], "pcp")],
)
def test_a_stranger_reaches_what_the_router_claims(
    router_lab: Lab, open_sockets: OpenSockets, tmp_path: Path, methods: list[str], method: str
) -> None:
    lab = router_lab
    with asking(
        lab.client, methods=methods, state=str(tmp_path), lease_s=600, timeout_s=PATIENCE_SECONDS
    ) as asker:
        claim = asker.ask("acquire", ANY)
        assert claim["method"] == method
        assert 600 - PATIENCE_SECONDS < claim["lease_s"] <= 600  # a router that is read says what is left
        assert (claim["local"], claim["public"]) == ("192.168.0.108:5070", "11.22.33.2:5070")
        assert arrives(lab, open_sockets, claim["public"])
        assert asker.ask("renew")["public"] == claim["public"]
        assert asker.ask("release")["event"] == "released"
        assert not arrives(lab, open_sockets, claim["public"], within_s=FENCE_S)
        assert not list(tmp_path.iterdir())
        assert asker.ask("acquire", "192.168.0.108:5070")["public"] == claim["public"]
        asker.end()
        assert not arrives(lab, open_sockets, claim["public"], within_s=FENCE_S)
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_router")
@pytest.mark.parametrize("method", ["pcp", "nat-pmp", "upnp"])
def test_a_new_address_of_the_router_is_news(open_sockets: OpenSockets, tmp_path: Path, method: str) -> None:
    with (
        lab_with(Igd()) as lab,
        asking(lab.client, methods=[method], state=str(tmp_path), timeout_s=PATIENCE_SECONDS) as asker,
    ):
        assert asker.ask("acquire", ANY)["public"] == "11.22.33.2:5070"
        until_news_are_heard(lab, method)
        since = Since()
        lab.igd.change_wan_address("11.22.33.9")
        told = asker.news()
        while told.get("public") != "11.22.33.9:5070":  # between the two there may be none
            assert "error" in told
            told = asker.news()
        assert told["bound"] == ANY
        assert since.took_s(told["at"]) < NOTICED_S
        assert arrives(lab, open_sockets, told["public"])


@pytest.mark.usefixtures("_router")
def test_a_socket_at_any_address_follows_a_new_one_of_this_machine(
    open_sockets: OpenSockets, tmp_path: Path
) -> None:
    with (
        lab_with(Igd()) as lab,
        asking(lab.client, methods=["pcp"], state=str(tmp_path), timeout_s=PATIENCE_SECONDS) as asker,
    ):
        assert asker.ask("acquire", "192.168.0.108:5080")["event"] == "claim"
        assert asker.ask("acquire", ANY)["event"] == "claim"
        ip(
            lab.client,
            "addr add 192.168.0.7/24 dev eth0",
            "addr del 192.168.0.108/24 dev eth0",
            "addr replace 192.168.0.7/24 dev eth0",
            "route replace default via 192.168.0.1",
        )
        claim = asker.ask("renew")
        assert claim["local"] == "192.168.0.7:5070"
        (stranger,) = open_sockets(lab.public, [STRANGER])
        (client,) = open_sockets(lab.client, [Endpoint.parse("192.168.0.7:5070")])
        with stranger, client:
            public = Endpoint.parse(claim["public"])
            stranger.sendto(b"INVITE", (str(public.ip), public.port))
            assert next_datagram(client, PATIENCE_SECONDS) is not None
        refused = asker.ask("acquire", "192.168.0.108:5080")
        assert "not an address of this machine" in refused["reason"]
        assert asker.ask("release")["event"] == "released"


@pytest.mark.parametrize("method", ["pcp", "nat-pmp", "upnp"])
def test_a_daemon_that_knows_of_the_second_nat_grants_nothing(
    second_nat_lab: Lab, tmp_path: Path, method: str
) -> None:
    with asking(second_nat_lab.client, methods=[method], state=str(tmp_path)) as asker:
        assert asker.ask("acquire", ANY)["event"] == "refused"
        assert not list(tmp_path.iterdir())


def test_a_router_that_grants_behind_a_second_nat_is_refused_and_relieved(tmp_path: Path) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab:
        let_the_router_be_asked(lab)
        with (
            FakeRouter(lab.router) as router,
            asking(lab.client, methods=["upnp"], state=str(tmp_path)) as asker,
        ):
            router.tell("address 100.64.0.108")
            refused = asker.ask("acquire", ANY)
            assert refused["error"] == "BindingError"
            assert "100.64.0.108 is not public: there is a second NAT in front of it" in refused["reason"]
            router.until("soap", "DeletePortMapping")
            assert not list(tmp_path.iterdir())

            router.tell("address 11.22.33.2")
            assert asker.ask("acquire", ANY)["public"] == "11.22.33.2:5070"
            router.until("gena", "SUBSCRIBE")
            for address, reason in (("10.1.2.3", "second NAT"), ("11.22.33.9", "")):
                router.tell(f"address {address}")
                told = asker.news()
                assert reason in told.get("reason", "")
            assert told["public"] == "11.22.33.9:5070"
            assert asker.ask("release")["event"] == "released"


def test_without_a_router_it_is_said(tmp_path: Path) -> None:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab,
        asking(lab.client, methods=["pcp", "upnp"], state=str(tmp_path)) as asker,
    ):
        refused = asker.ask("acquire", ANY)
        assert refused["error"] == "NoRouterError"
        assert "Turn on UPnP, PCP or NAT-PMP" in refused["reason"]
