"""A binding stays true: short timers, new addresses, pulled cables, tunnels that go, routers that reboot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from nattools.endpoint import Endpoint
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab, why_no_igd
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, STRANGER, Topology
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.network_changes import (
    change_client_address,
    change_wan_address,
    plug_in_cable,
    pull_cable,
    reboot_router,
)
from tests.lab.news import NOTICED_S, until_news_are_heard
from tests.lab.remote_bindings import (
    ARRIVES_SECONDS,
    ROOT,
    BindingProgram,
    Impostor,
    RemoteBinding,
    remote_binding,
)
from tests.lab.stalls import Since
from tests.lab.vpn import INTERFACE, why_no_vpn, wireguard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import OpenSockets

LOCAL = "0.0.0.0:5070"
TIMER_S = 4  # until the NAT forgets a flow
KEEPALIVE_S = 2
TOO_SELDOM_S = 60


@contextmanager
def by_stun(lab: Lab, *, keepalive_s: float = 15) -> Iterator[RemoteBinding]:
    words = {"methods": ["stun"], "stun_servers": [str(SERVER)], "keepalive_interval": keepalive_s}
    with remote_binding(lab.client, LOCAL, **words) as binding:
        yield binding


@contextmanager
def by_router(lab: Lab, state: Path) -> Iterator[RemoteBinding]:
    words = {"methods": ["pcp"], "stun_servers": [str(SERVER)], "state_directory": str(state)}
    with remote_binding(lab.client, LOCAL, **words) as binding:
        yield binding


@pytest.fixture(scope="module")
def _igd() -> None:
    if (missing := why_no_igd()) is not None:
        pytest.skip(missing)


@pytest.fixture
def igd_lab(_igd: None) -> Iterator[Lab]:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd())) as lab:
        yield lab


@pytest.fixture
def _vpn() -> None:
    if (missing := why_no_vpn()) is not None:
        pytest.skip(missing)


def gets_in(outside: Impostor, who: Endpoint, binding: RemoteBinding, public: str, text: str) -> bool:
    outside.send(who, Endpoint.parse(public), text)
    return binding.has_received(text, within_s=ARRIVES_SECONDS)


def test_keepalives_outlive_the_timers_of_the_nat_and_without_them_it_forgets(
    open_sockets: OpenSockets,
) -> None:
    with ExitStack() as stack:
        outsides, kept, neglected = [], [], []
        for nat in (NatKind.FULL_CONE, NatKind.PORT_RESTRICTED_CONE):
            lab = stack.enter_context(Lab(Topology(nat, udp_timeout_s=TIMER_S)))
            program = stack.enter_context(BindingProgram(lab.client))
            words = {"methods": ["stun"], "stun_servers": [str(SERVER)]}
            outsides.append(Impostor(lab, open_sockets))
            kept.append(program.open("0.0.0.0:5070", **words, keepalive_interval=KEEPALIVE_S))
            neglected.append(program.open("0.0.0.0:5080", **words, keepalive_interval=TOO_SELDOM_S))
        acquired = {binding: binding.until("acquired")["public"] for binding in (*kept, *neglected)}
        time.sleep(2 * TIMER_S + 1)
        for outside, binding, other in zip(outsides, kept, neglected, strict=True):
            outside.send(SERVER, Endpoint.parse(acquired[other]), "too late")
            assert gets_in(outside, SERVER, binding, acquired[binding], "still here")
            assert not other.has_received("too late", within_s=0.2)
            assert binding.changes == []


@pytest.mark.parametrize("nat", [NatKind.FULL_CONE, NatKind.PORT_RESTRICTED_CONE])
def test_another_public_address_is_noticed_by_the_keepalive(nat: NatKind, open_sockets: OpenSockets) -> None:
    with Lab(Topology(nat)) as lab, by_stun(lab, keepalive_s=KEEPALIVE_S) as binding:
        assert binding.until("acquired")["public"] == "203.0.113.1:5070"
        since = Since()
        change_wan_address(lab, "203.0.113.77")
        told = binding.until("changed", "restored")
        assert told["public"] == "203.0.113.77:5070"
        assert since.took_s(told["at"]) < KEEPALIVE_S + NOTICED_S
        assert gets_in(Impostor(lab, open_sockets), SERVER, binding, told["public"], "at the new one")


def test_a_router_that_announces_its_new_address_is_heard(
    igd_lab: Lab, open_sockets: OpenSockets, tmp_path: Path
) -> None:
    with by_router(igd_lab, tmp_path) as binding:
        assert binding.until("acquired")["public"] == "11.22.33.2:5070"
        until_news_are_heard(igd_lab, "pcp")
        since = Since()
        change_wan_address(igd_lab, "11.22.33.9")
        told = binding.until("changed", "restored")
        assert told["public"] == "11.22.33.9:5070"
        assert since.took_s(told["at"]) < NOTICED_S
        assert gets_in(Impostor(igd_lab, open_sockets), STRANGER, binding, told["public"], "a stranger")


def test_a_router_that_reboots_maps_it_again(igd_lab: Lab, open_sockets: OpenSockets, tmp_path: Path) -> None:
    outside = Impostor(igd_lab, open_sockets)
    with by_router(igd_lab, tmp_path) as binding:
        public = Endpoint.parse(binding.until("acquired")["public"])
        time.sleep(1.5)  # an epoch that goes back must have gone forward
        reboot_router(igd_lab)
        deadline = time.monotonic() + 10
        outside.send(STRANGER, public, "a stranger")
        while not binding.has_received("a stranger", within_s=0.1):
            assert time.monotonic() < deadline
            outside.send(STRANGER, public, "a stranger")


def test_a_cable_that_is_pulled_is_told_and_put_back_restores_it(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab, by_stun(lab) as binding:
        binding.until("acquired")
        since = Since()
        pull_cable(lab)
        told = binding.until("lost")
        assert told["reason"]
        assert since.took_s(told["at"]) < NOTICED_S
        since = Since()
        plug_in_cable(lab)
        told = binding.until("restored")
        assert since.took_s(told["at"]) < NOTICED_S
        assert gets_in(Impostor(lab, open_sockets), SERVER, binding, told["public"], "again")


def test_another_address_of_this_machine_is_another_binding(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.FULL_CONE)) as lab, by_stun(lab) as binding:
        assert binding.until("acquired")["local"] == "192.168.0.108:5070"
        change_client_address(lab, "192.168.0.7")
        while (told := binding.until("changed", "restored"))["local"] != "192.168.0.7:5070":
            pass
        assert gets_in(Impostor(lab, open_sockets), SERVER, binding, told["public"], "at the new one")


@pytest.mark.usefixtures("_vpn")
def test_what_happens_to_a_tunnel_happens_to_its_binding() -> None:
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE), start_server=False) as lab,
        wireguard(lab) as vpn,
        remote_binding(lab.client, LOCAL, methods=["vpn"], vpn_interface=INTERFACE) as binding,
    ):
        assert binding.until("acquired")["public"] == "10.8.0.2:5070"
        vpn.unplug()
        assert INTERFACE in binding.until("lost")["reason"]
        vpn.plug_in()
        assert binding.until("restored")["public"] == "10.8.0.2:5070"
        vpn.change_address("10.8.0.7")
        while binding.until("changed", "restored")["public"] != "10.8.0.7:5070":
            pass
        vpn.delete()
        assert INTERFACE in binding.until("lost")["reason"]


@pytest.mark.usefixtures("_vpn")
def test_without_the_tunnel_another_method_steps_in(open_sockets: OpenSockets) -> None:
    words = {"methods": ["vpn", "stun"], "vpn_interface": INTERFACE, "stun_servers": [str(SERVER)]}
    with (
        Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab,
        wireguard(lab) as vpn,
        remote_binding(lab.client, LOCAL, **words) as binding,
    ):
        assert binding.until("acquired")["method"] == "vpn"
        vpn.delete()
        told = binding.until("changed", "restored")
        assert (told["method"], told["public"]) == ("stun", "203.0.113.1:5070")
        assert gets_in(Impostor(lab, open_sockets), SERVER, binding, told["public"], "without it")


def test_the_example(tmp_path: Path) -> None:
    settings = f'keepalive_interval = {KEEPALIVE_S}\nstate_directory = "{tmp_path}"\n'
    (tmp_path / "nattools.toml").write_text(settings)
    with Lab(Topology(NatKind.PORT_RESTRICTED_CONE)) as lab:
        example = lab.client.popen(
            [sys.executable, "-W", "error", str(ROOT / "examples" / "public_address.py"), str(SERVER)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"NATTOOLS_SETTINGS": str(tmp_path / "nattools.toml")},
            cwd=ROOT,
        )
        lines = Lines(example)
        assert lines.next() == "203.0.113.1:5060"
        change_wan_address(lab, "203.0.113.77")
        assert lines.next() == "changed 203.0.113.77:5060"
        example.kill()
        assert example.communicate(timeout=PATIENCE_SECONDS) == ("", "")
