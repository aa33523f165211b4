"""examples/softphone.py behind real NATs, through a proxy that helps nobody, with a peer that obeys SDP."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import SERVER, Topology
from tests.lab.conftest import FENCE_SECONDS, PATIENCE_SECONDS, next_datagram
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.network_changes import change_wan_address
from tests.lab.sip_peers import ROOT, Baresip, ProgramPhone, uri_of, why_no_baresip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nattools.lab.namespaces import Host
    from tests.lab.conftest import OpenSockets

PASSWORD = "sesame"
ALICE_HZ, BOB_HZ = 440, 880
BACK_WITHIN_S = 2.0
ON_THE_WAY_S = 0.1  # what was sent to the old address before it went
TIMER_S = 3  # until the NAT forgets a flow
KEEPALIVE_S = 1
TOO_SELDOM_S = 60
IDLE_S = 2 * TIMER_S + 1


def command(user: str, *options: str) -> tuple[str, ...]:
    """The example's command line."""
    words = {"SETTINGS": os.devnull, "METHODS": "open,stun", "STUN_SERVERS": str(SERVER)}
    environment = ("env", *(f"NATTOOLS_{name}={value}" for name, value in words.items()))
    program = (sys.executable, "-W", "error", str(ROOT / "examples" / "softphone.py"), uri_of(user))
    return (*environment, *program, "--password", PASSWORD, *options)


class Softphone(ProgramPhone):
    """The example as a process, told what to do by lines; it registers by itself."""

    def __init__(self, host: Host, user: str, *options: str, plays_hz: int) -> None:
        super().__init__(host, user, plays_hz=plays_hz)
        self._options = options

    def _argv(self) -> Sequence[str]:
        files = ("--play", str(self.tone), "--record", str(self.directory / "heard.wav"))
        return command(self.user, "--answer", "0", *files, *self._options)

    def register(self, *, within_s: float = PATIENCE_SECONDS) -> None:
        self.wait_for("registered", unless="Error:", within_s=within_s)

    def call(self, user: str) -> None:
        self.command("call", uri_of(user))

    def hang_up(self) -> None:
        self.command("hang up")

    def ends(self, how: signal.Signals | None = None) -> tuple[int, str]:
        """End it, and return its exit status and whatever it complained of."""
        assert self._process is not None
        if how is None:
            self.command("quit")
        else:
            self._process.send_signal(how)
        status = self._process.wait(PATIENCE_SECONDS)
        return status, self.complaints

    @property
    def complaints(self) -> str:
        """What it has on its stderr."""
        return (self.directory / "log").read_text()

    def _next_event(self, within_s: float) -> tuple[str, str] | None:
        assert self._lines is not None
        if not self._lines.are_there(within_s=within_s):
            return None
        line = self._lines.next()
        assert line, f"{self.user}: the softphone has ended: {self.complaints}"
        event, _, reason = line.partition(" ")
        return event, reason


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_kamailio(), why_no_baresip()):
        if reason is not None:
            pytest.skip(reason)


@contextmanager
def telephony(topology: Topology, *options: str) -> Iterator[tuple[Lab, Softphone, Baresip]]:
    """Alice behind the NAT, Bob outside, both registered."""
    with (
        Lab(topology) as lab,
        kamailio(lab, password=PASSWORD, unanswered_s=1),
        Softphone(lab.client, "alice", *options, plays_hz=ALICE_HZ) as alice,
        Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=PASSWORD) as bob,
    ):
        bob.register()
        alice.register()
        yield lab, alice, bob


def talk(caller: Softphone | Baresip, called: Softphone | Baresip) -> None:
    """Set a call up, in which both must hear the other's tone."""
    caller.call(called.user)
    caller.wait_established()
    called.wait_established()
    hear_each_other(caller, called)


def hear_each_other(one: Softphone | Baresip, other: Softphone | Baresip) -> None:
    assert (one.hear(), other.hear()) == ({other.plays_hz}, {one.plays_hz})


@pytest.mark.parametrize("nat", [NatKind.PORT_RESTRICTED_CONE, NatKind.FULL_CONE])
def test_it_calls_and_is_called_and_a_new_wan_address_interrupts_neither_for_long(nat: NatKind) -> None:
    with telephony(Topology(nat)) as (lab, alice, bob):
        talk(alice, bob)
        change_wan_address(lab, "203.0.113.77")
        audible_again(alice, bob)
        bob.hang_up()
        alice.wait_ended()
        bob.wait_ended()
        talk(bob, alice)
        change_wan_address(lab, "203.0.113.78")
        audible_again(alice, bob)
        alice.hang_up()
        assert "ended" not in bob.wait_ended()
        assert alice.ends() == (0, "")


def audible_again(alice: Softphone, bob: Baresip) -> None:
    """What Bob sends comes to where Alice is now, not at some later keepalive."""
    time.sleep(ON_THE_WAY_S)
    assert alice.hear(within_s=BACK_WITHIN_S - ON_THE_WAY_S) == {bob.plays_hz}
    assert bob.hear(within_s=BACK_WITHIN_S) == {alice.plays_hz}
    alice.wait_for("registered", unless="ended")


def test_calls_come_in_after_idling_for_longer_than_the_timers_of_the_nat() -> None:
    timed = Topology(NatKind.PORT_RESTRICTED_CONE, udp_timeout_s=TIMER_S)
    with telephony(timed, "--keepalive", str(KEEPALIVE_S)) as (lab, alice, bob), ExitStack() as others:
        carol = others.enter_context(
            Softphone(lab.client, "carol", "--keepalive", str(TOO_SELDOM_S), plays_hz=ALICE_HZ)
        )
        carol.register()
        time.sleep(IDLE_S)
        talk(bob, alice)
        bob.hang_up()
        bob.wait_ended()
        bob.call("carol")  # the control: without keepalives the NAT has forgotten her
        assert "408" in bob.wait_ended()


def test_behind_a_symmetric_nat_it_says_before_calling_that_it_needs_a_relay(
    open_sockets: OpenSockets,
) -> None:
    with Lab(Topology(NatKind.SYMMETRIC)) as lab:
        [registrar] = open_sockets(lab.public, [REGISTRAR])
        done = lab.client.run(command("alice", "--call", uri_of("bob")), timeout=PATIENCE_SECONDS)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("Error: no public endpoint for 192.168.0.108:")
        assert "the NAT is symmetric" in done.stderr
        assert "a relay" in done.stderr
        assert next_datagram(registrar, FENCE_SECONDS) is None


@pytest.mark.parametrize("is_called", [False, True])
def test_ctrl_c_hangs_up_and_unregisters(is_called: bool) -> None:
    with telephony(Topology(NatKind.OPEN)) as (_lab, alice, bob):
        talk(*((bob, alice) if is_called else (alice, bob)))
        assert alice.ends(signal.SIGINT) == (0, "")
        bob.wait_ended()
        bob.call("alice")
        assert "404" in bob.wait_ended()
