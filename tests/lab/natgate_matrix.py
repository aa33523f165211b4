"""Whether phones of four makers are heard through `natgate`, behind three NATs, and by whichever registrar.

A cell is one call: who is inside, behind what, who calls, and whose registrar it is. Outside is always
baresip, which sends its voice where SDP says and nowhere else. A cell is good when each hears the other's
tone, natgate has relayed both voices, and the caller's hanging up ends the call for both and frees what it
held.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import count

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import WAN_ADDRESS, Topology
from nattools.session.settings import EngineName
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import REGISTRAR, kamailio, lose_what_has_no_route
from tests.lab.makers import MAKERS
from tests.lab.natgate import GATE, Natgate, natgate
from tests.lab.natgate_changes import Silence, silence_at_change
from tests.lab.rtpengine import rtpengine
from tests.lab.sip_peers import Baresip, Phone

NATS = {
    "port-preserving": Topology(NatKind.PORT_RESTRICTED_CONE),
    "symmetric": Topology(NatKind.SYMMETRIC),
    "SIP ALG": Topology(NatKind.PORT_RESTRICTED_CONE, sip_alg=True),
}
INSIDE_HZ, OUTSIDE_HZ = 440, 880
PASSWORD = "sesame"
_USERS_OF_A_NAME = 20
_POLL_S = 0.02


class Home(Enum):
    """Whose registrar the users are at."""

    NATGATE = "natgate"
    KAMAILIO = "kamailio"


class Direction(Enum):
    """Who calls."""

    OUTWARD = "calls out"
    INWARD = "is called"


@dataclass(frozen=True, slots=True)
class Cell:
    """One call of the matrix."""

    maker: str
    nat: str
    direction: Direction
    home: Home


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: nothing where it was good, or else what was missed."""

    cell: Cell
    fault: str
    took_s: float


class Site:
    """A laboratory with a NAT, `natgate`, and somebody outside to talk with."""

    def __init__(self, lab: Lab, gate: Natgate, nat: str, home: Home) -> None:
        self.lab = lab
        self.gate = gate
        self._nat = nat
        self._home = home
        self._bob: Baresip | None = None
        self._numbers = count()

    def try_maker(self, maker: str) -> Iterator[Outcome]:
        """Both calls of a maker's phone."""
        waiting = list(Direction)
        while waiting:
            fault = ""
            try:
                with self._registered(maker) as alice:
                    while waiting and not fault:
                        outcome = self._try(alice, maker, waiting.pop(0))
                        fault = outcome.fault
                        yield outcome
            except AssertionError as error:  # it could not even register
                fault = str(error)
                yield Outcome(Cell(maker, self._nat, waiting.pop(0), self._home), fault, 0)
            if fault:
                self.close()  # who may still be in the call

    def change_address(self, addresses: Iterable[str], *, after_s: float) -> Iterator[Silence]:
        """Give the NAT one address after the other, each so long into what is one call of baresip's."""
        with self._registered("baresip") as alice:
            bob = self._outside()
            self._connect(bob, alice)
            for address in addresses:
                time.sleep(after_s)
                yield silence_at_change(self.lab, address)
                self._hear_each_other(alice, bob)

    def close(self) -> None:
        """Leave nobody outside."""
        if self._bob is not None:
            self._bob.close()
            self._bob = None

    @contextmanager
    def _registered(self, maker: str) -> Iterator[Phone]:
        # Everyone has a name of its own: a registration stays for a while after its phone has gone.
        user = f"{maker}{next(self._numbers)}"
        alice = MAKERS[maker].phone.inside(self.lab, user, plays_hz=INSIDE_HZ, password=PASSWORD, server=GATE)
        with alice:
            alice.register()
            self._check(maker, alice)
            yield alice

    def _check(self, maker: str, alice: Phone) -> None:
        """See that the cell is what it says: with GRUU, and with an ALG or without.

        Linphone asks for a GRUU, and puts its public address into its Contact by itself.
        """
        if maker == "linphone":
            assert "pub-gruu=" in (alice.directory / "log").read_text(errors="replace")
            return
        contacts = [
            registration.contact
            for registration in self.gate.status().registrations
            if registration.address_of_record.partition("@")[0] == alice.user
        ]
        is_edited = [WAN_ADDRESS in contact for contact in contacts]
        assert is_edited == [NATS[self._nat].sip_alg], f"{alice.user} is registered as {contacts}"

    def _try(self, alice: Phone, maker: str, direction: Direction) -> Outcome:
        cell = Cell(maker, self._nat, direction, self._home)
        began = time.monotonic()
        try:
            self._call(alice, self._outside(), direction)
        except AssertionError as error:
            return Outcome(cell, str(error) or "a voice is not heard", time.monotonic() - began)
        return Outcome(cell, "", time.monotonic() - began)

    def _outside(self) -> Baresip:
        if self._bob is None:
            server = GATE if self._home is Home.NATGATE else REGISTRAR
            user = f"bob{next(self._numbers)}"
            bob = Baresip.outside(self.lab, user, plays_hz=OUTSIDE_HZ, password=PASSWORD, server=server)
            self._bob = bob.__enter__()
            bob.register()
        return self._bob

    def _call(self, alice: Phone, bob: Phone, direction: Direction) -> None:
        caller, callee = (alice, bob) if direction is Direction.OUTWARD else (bob, alice)
        self._connect(caller, callee)
        self._hear_each_other(alice, bob)
        self._wait_until_relayed()
        caller.hang_up()
        for phone in (callee, caller):
            phone.wait_ended()
        self._wait_until_free()

    @staticmethod
    def _connect(caller: Phone, callee: Phone) -> None:
        caller.call(callee.user)
        caller.wait_established()
        callee.wait_established()

    @staticmethod
    def _hear_each_other(alice: Phone, bob: Phone) -> None:
        for phone, hertz in ((alice, OUTSIDE_HZ), (bob, INSIDE_HZ)):
            heard = phone.hear()
            assert heard == {hertz}, f"{phone.user} hears {heard or 'nothing'} instead of {hertz} Hz"

    def _wait_until_relayed(self) -> None:
        """Wait until natgate says that it has relayed both voices, which with rtpengine takes it 2 s."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            streams = [stream for call in self.gate.status().calls for stream in call.streams]
            if any(stream.a.packets and stream.b.packets for stream in streams):
                return
            assert time.monotonic() < deadline, f"natgate does not relay both voices: {streams}"
            time.sleep(_POLL_S)

    def _wait_until_free(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while calls := self.gate.status().calls:
            assert time.monotonic() < deadline, f"natgate keeps a call that has ended: {calls}"
            time.sleep(_POLL_S)


@contextmanager
def site(nat: str, home: Home, *, engine: EngineName = EngineName.SOCKETS) -> Iterator[Site]:
    """A laboratory with that NAT, whose users are at home there, and whose media are carried by `engine`.

    Not by the kernel: it carries nothing for who is on natgate's own host, as the peer outside is here.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(NATS[nat], start_server=False))
        words = ("--engine", engine.value)
        if engine is EngineName.RTPENGINE:
            stack.enter_context(rtpengine(lab.public, GATE.ip))
        if home is Home.NATGATE:
            lose_what_has_no_route(lab)
            names = [f"{name}{number}" for name in (*MAKERS, "bob") for number in range(_USERS_OF_A_NAME)]
            gate = stack.enter_context(natgate(lab, *words, users=dict.fromkeys(names, PASSWORD)))
        else:
            stack.enter_context(kamailio(lab, password=PASSWORD, call_challenge=401, gruu=True))
            gate = stack.enter_context(natgate(lab, *words, "--upstream", f"sip:{REGISTRAR}"))
        there = Site(lab, gate, nat, home)
        stack.callback(there.close)
        yield there


def outcomes(
    nat: str, home: Home, makers: Iterable[str] = MAKERS, *, engine: EngineName = EngineName.SOCKETS
) -> Iterator[Outcome]:
    """Try the cells of one NAT and one registrar, those of each maker's phone in both directions."""
    with site(nat, home, engine=engine) as there:
        for maker in makers:
            yield from there.try_maker(maker)
