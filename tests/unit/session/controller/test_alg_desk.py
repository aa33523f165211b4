"""What the desk of an ALG makes of requests: phones inside are one address outside, and each has a ticket."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nattools.endpoint import Endpoint
from nattools.session.controller import upstream_desk
from nattools.session.controller.upstream_desk import UpstreamDesk
from nattools.session.events import CallEnded, CallStarted
from nattools.session.guard import Guard
from nattools.sip.dialog import Dialog
from nattools.sip.message import SipMessage
from tests.unit.session.controller.upstream_world import (
    GATE,
    OUTSIDE,
    STRANGER,
    UPSTREAM,
    FakeGate,
    Phone,
    World,
    answer_of,
    request,
)

ALICE = Endpoint.of("192.168.0.108", 5060)
CAROL = Endpoint.of("203.0.113.50", 5060)


def play(scene: Callable[[World, Phone, Phone], Coroutine[Any, Any, None]]) -> None:
    """Play a scene with alice inside and carol outside, both registered."""

    async def whole() -> None:
        world = await World.begin(alg=True)
        alice = world.phone("alice", 1, heard_as=ALICE, local=ALICE)
        carol = world.phone("carol", 2, heard_as=CAROL, local=CAROL)
        assert (await world.register(alice)).status_code == 200
        register = request(carol, "REGISTER", "sip:example.com", to="sip:carol@example.com", call_id="c")
        await world.send(carol, register, to=UPSTREAM)
        await scene(world, alice, carol)

    asyncio.run(whole())


def target(message: SipMessage) -> str:
    assert message.request_uri is not None
    return message.data[slice(*message.request_uri)].decode()


def contact_of(message: SipMessage) -> str:
    (span,) = message.values("contact")
    return message.data[slice(*span)].decode()


def test_a_phone_registers_with_the_registrar_of_its_own_domain() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        (binding,) = await world.location.bindings("alice@example.com", now=0)
        assert binding.contact.startswith(f"sip:alice@{OUTSIDE};natgate=".encode())
        (kept,) = await world.gate.location.bindings("alice@example.com", now=0)
        assert kept.server == UPSTREAM
        assert contact_of(alice.last(200)).startswith(f"<sip:alice@{ALICE}>")

    play(scene)


def test_a_call_goes_out_and_is_ended_from_outside() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        _, theirs = await world.call(alice, carol)
        assert theirs.target.startswith(f"sip:alice@{OUTSIDE};natgate=".encode())
        theirs.route = ()  # outside, natgate does not record itself
        await world.send(carol, theirs.compose("BYE", cseq=2, via=carol.via()), to=OUTSIDE)
        assert target(alice.last("BYE")) == f"sip:alice@{ALICE}"
        await world.respond(alice, alice.last("BYE"), 200)
        assert carol.last(200).method == "BYE"
        calls = [event for event in world.events if isinstance(event, CallStarted | CallEnded)]
        assert [type(event) for event in calls] == [CallStarted, CallEnded]

    play(scene)


def test_a_call_comes_in_and_is_ended_from_inside() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        invite = request(carol, "INVITE", "sip:alice@example.com", to="sip:alice@example.com")
        await world.send(carol, invite, to=UPSTREAM)
        assert target(alice.last("INVITE")) == f"sip:alice@{ALICE}"
        await world.respond(alice, alice.last("INVITE"), 200)
        assert contact_of(carol.last(200)).startswith(f"<sip:alice@{OUTSIDE};natgate=")
        theirs = Dialog.of_callee(alice.last("INVITE"), answer_of(alice, alice.last("INVITE")))
        await world.send(alice, theirs.compose("BYE", cseq=2, via=alice.via()))
        assert carol.number_of("BYE") == 1

    play(scene)


def test_nobody_outside_reaches_anybody_without_a_ticket() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        mallory = Phone("mallory", STRANGER, local=STRANGER)
        (binding,) = await world.gate.location.bindings("alice@example.com", now=0)
        for number, uri in enumerate(
            (
                f"sip:alice@{ALICE}",
                f"sip:alice@{OUTSIDE}",
                f"sip:alice@{GATE}",
                f"sip:carol@{CAROL}",
                f"sip:alice@{OUTSIDE};natgate=0~example.com",
                binding.outside.decode().replace("example.com", "example.org"),
            )
        ):
            data = request(
                mallory, "MESSAGE", uri, to="sip:x@y.test", cseq=number + 1, branch=f"z9hG4bK{number}"
            )
            world.gate.proxy.receive(data, STRANGER, now=0.0, socket="outside")
            (answer,) = await world.settle()
            code = b"480" if "natgate=" in uri else b"404"
            assert (answer.destination, answer.data[8:11]) == (STRANGER, code), uri
        register = request(
            mallory, "REGISTER", "sip:example.com", to="sip:alice@example.com", branch="z9hG4bKr"
        )
        world.gate.proxy.receive(register, STRANGER, now=0.0, socket="outside")
        assert [each.data[:12] for each in await world.settle()] == [b"SIP/2.0 404 "]
        assert len(await world.gate.location.bindings("alice@example.com", now=0)) == 1

    play(scene)


def test_a_phone_that_names_no_domain_is_told_so() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        await world.send(alice, request(alice, "INVITE", f"sip:bob@{GATE}", to=f"sip:bob@{GATE}"))
        assert alice.last(404).reason == b"Not Found Without A Domain"
        await world.send(
            alice, request(alice, "INVITE", "sip:bob@nowhere.test", to="sip:bob@nowhere.test", call_id="2")
        )
        assert alice.last(503).reason == b"Server Unreachable"

    play(scene)


def test_of_too_many_contacts_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_desk, "_MOST_CONTACTS", 3)

    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        for number in range(9):
            alice.contact_uri = f"<sip:{number}@{ALICE}>"
            data = request(
                alice, "SUBSCRIBE", "sip:carol@example.com", to="sip:carol@example.com", cseq=number + 1,
                call_id=f"s{number}",
            )  # fmt: skip
            await world.send(alice, data)
        shown = [contact_of(each) for each in carol.inbox if each.method == "SUBSCRIBE" and each.is_request]
        assert len(set(shown)) == 9
        server = Phone("server", UPSTREAM, local=UPSTREAM)
        for place, code in ((0, 404), (8, None)):
            notify = request(
                server, "NOTIFY", shown[place].strip("<>"), to="sip:alice@example.com", to_tag="talice",
                cseq=place + 1, branch=f"z9hG4bKn{place}",
            )  # fmt: skip
            world.gate.proxy.receive(notify, UPSTREAM, now=0.0, socket="outside")
            (sent,) = await world.settle()
            assert sent.destination == (ALICE if code is None else UPSTREAM)
        assert len(world.gate.desk._tokens) == len(world.gate.desk._contacts) == 3

    play(scene)


def test_what_comes_to_the_inside_from_the_internet_goes_nowhere() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        stranger = Endpoint.of("198.51.100.66", 5060)
        mallory = world.phone("mallory", 3, heard_as=stranger, local=stranger)
        before = len(carol.inbox)
        for method, tag in (("INVITE", ""), ("REGISTER", ""), ("BYE", "x"), ("ACK", "x")):
            aor = f"sip:carol@{CAROL}"
            data = request(mallory, method, aor, to=aor, to_tag=tag, call_id=method)
            await world.send(mallory, data, to=GATE)
        assert len(carol.inbox) == before
        assert mallory.number_of(403) == 3

    play(scene)


def test_a_call_of_a_registered_phone_outlives_natgate() -> None:
    async def scene(world: World, alice: Phone, carol: Phone) -> None:
        await restart(world)
        _, theirs = await world.call(alice, carol)  # before she registers with it
        await restart(world)
        theirs.route = ()
        await world.send(carol, theirs.compose("BYE", cseq=2, via=carol.via()), to=OUTSIDE)
        assert target(alice.last("BYE")) == f"sip:alice@{ALICE}"

    play(scene)


async def restart(world: World) -> None:
    """Have another natgate in the place of the one there is, which finds what that has registered."""
    gate = FakeGate(alg=True)
    gate.location = world.gate.location
    gate.desk = await UpstreamDesk.open(gate, Guard(gate.settings), entropy=secrets.token_bytes)
    world.gate = gate
