"""Telephones without any help: voices between public addresses, silence behind NATs.

The second is the trouble that nattools exists for. Where a test of this file turns, those that show its cure
prove nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nattools.lab.namespaces import Lab
from nattools.lab.nat import NatKind
from nattools.lab.topology import Topology
from nattools.stun.attributes import XOR_MAPPED_ADDRESS
from nattools.stun.message import Message, MessageClass, Method
from tests.lab.conftest import PATIENCE_SECONDS, endpoint_of, next_datagram
from tests.lab.kamailio import REGISTRAR, kamailio, why_no_kamailio
from tests.lab.makers import MAKERS
from tests.lab.sip_peers import Baresip, why_no_baresip

if TYPE_CHECKING:
    from tests.lab.conftest import OpenSockets
    from tests.lab.sip_peers import Phone

PASSWORD = "sesame"
BOB_HZ, ALICE_HZ = 880, 440
DEAF_S = 1.0  # of silence: a voice is there within a tenth of it
UNANSWERED_S = 1.5


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for reason in (why_no_kamailio(), why_no_baresip()):
        if reason is not None:
            pytest.skip(reason)


def bob_outside(lab: Lab, *, password: str = PASSWORD) -> Phone:
    return Baresip.outside(lab, "bob", plays_hz=BOB_HZ, password=password)


def alice_inside(lab: Lab, maker: str) -> Phone:
    if (reason := MAKERS[maker].why_not()) is not None:
        pytest.skip(reason)
    return MAKERS[maker].phone.inside(lab, "alice", plays_hz=ALICE_HZ, password=PASSWORD)


@pytest.mark.parametrize("maker", MAKERS)
def test_where_all_addresses_are_public_both_hear_the_other(maker: str) -> None:
    challenge = 401 if maker == "pyvoip" else 407  # it knows no other
    with (
        Lab(Topology(NatKind.OPEN), start_server=False) as lab,
        kamailio(lab, password=PASSWORD, call_challenge=challenge, gruu=maker == "linphone"),
        bob_outside(lab) as bob,
        alice_inside(lab, maker) as alice,
    ):
        bob.register()
        alice.register()
        bob.call("alice")
        bob.wait_established()
        alice.wait_established()
        assert alice.hear() == {BOB_HZ}
        assert bob.hear() == {ALICE_HZ}
        bob.hang_up()
        alice.wait_ended()
        bob.wait_ended()
        alice.call("bob")
        alice.wait_established()
        assert alice.hear() == {BOB_HZ}
        assert bob.hear() == {ALICE_HZ}
        alice.hang_up()
        alice.wait_ended()


@pytest.mark.parametrize(
    ("nat", "maker"), [(NatKind.FULL_CONE, "baresip"), (NatKind.PORT_RESTRICTED_CONE, "pyvoip")]
)
def test_behind_a_nat_nobody_can_call_it_and_it_hears_nobody(nat: NatKind, maker: str) -> None:
    with (
        Lab(Topology(nat), start_server=False) as lab,
        kamailio(lab, unanswered_s=UNANSWERED_S),
        bob_outside(lab) as bob,
        alice_inside(lab, maker) as alice,
    ):
        alice.register()
        bob.register()
        bob.call("alice")
        assert bob.wait_ended() == "408 Request Timeout"
        alice.call("bob")
        alice.wait_established()
        assert bob.hear() == {ALICE_HZ}
        assert alice.hear(within_s=DEAF_S) == set()


def test_a_wrong_password_is_refused() -> None:
    with (
        Lab(Topology(NatKind.OPEN), start_server=False) as lab,
        kamailio(lab, password=PASSWORD),
        bob_outside(lab, password="wrong") as bob,
    ):
        with pytest.raises(AssertionError, match="401 Unauthorized"):
            bob.register()
        bob.call("alice")
        assert bob.wait_ended() == "407 Proxy Authentication Required"


def test_the_registrar_answers_stun_on_its_sip_port(open_sockets: OpenSockets) -> None:
    with Lab(Topology(NatKind.OPEN), start_server=False) as lab, kamailio(lab):
        [client] = open_sockets(lab.client, [REGISTRAR.of(lab.topology.client_address, 5060)])
        request = Message(Method.BINDING, MessageClass.REQUEST, bytes(range(12)))
        client.sendto(request.encode(), (str(REGISTRAR.ip), REGISTRAR.port))
        received = next_datagram(client, PATIENCE_SECONDS)
        assert received is not None
        answer, source = received
        assert source == REGISTRAR
        assert Message.parse(answer).get(XOR_MAPPED_ADDRESS) == endpoint_of(client.getsockname())
