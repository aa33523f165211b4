"""Calls between two phones of one natgate, by a proxy behind it: each request passes natgate twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nattools.session.events import CallEnded, CallFailed, CallStarted, Received
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri
from tests.unit.session.controller.upstream_world import Phone, World, request

UPSTREAMS = pytest.mark.parametrize("strips", [False, True], ids=["recorded", "unrecorded"])


def run(scene: Callable[..., Coroutine[Any, Any, None]], **words: Any) -> None:
    """Play a scene in a world of two registered phones."""

    async def play() -> None:
        world = await World.begin(**words)
        alice, bob = world.phone("alice", 1), world.phone("bob", 2)
        for phone in (alice, bob):
            assert (await world.register(phone)).status_code == 200
        await scene(world, alice, bob)

    asyncio.run(play())


def target(message: SipMessage) -> str:
    assert message.request_uri is not None
    return message.data[slice(*message.request_uri)].decode()


@UPSTREAMS
@pytest.mark.parametrize("from_caller", [True, False])
def test_a_call_is_one_call_and_ends_at_both_phones(strips: bool, from_caller: bool) -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        ours, theirs = await world.call(alice, bob)
        assert bob.number_of("INVITE") == bob.number_of("ACK") == 1
        assert (
            target(bob.last("INVITE")) == target(bob.last("ACK")).partition(";")[0] == f"sip:bob@{bob.local}"
        )
        assert (alice.number_of(180), alice.number_of(200)) == (1, 2)  # and that of its REGISTER
        sender, dialog, other = (alice, ours, bob) if from_caller else (bob, theirs, alice)
        await world.send(sender, dialog.compose("BYE", cseq=2, via=sender.via()))
        assert other.number_of("BYE") == 1
        await world.respond(other, other.last("BYE"), 200)
        assert sender.last(200).method == "BYE"
        starts = [event for event in world.events if isinstance(event, CallStarted)]
        ends = [event for event in world.events if isinstance(event, CallEnded)]
        assert len(starts) == len(ends) == 1
        assert starts[0].call is ends[0].call
        invites = [
            event
            for event in world.events
            if isinstance(event, Received) and event.request.method == "INVITE"
        ]
        assert [event.earlier for event in invites] == [None, invites[0].number]
        assert starts[0].number == invites[0].number

    run(scene, strips=strips)


@UPSTREAMS
@pytest.mark.parametrize("from_caller", [True, False])
def test_a_re_invite_passes_both_ways_and_the_call_can_still_be_hung_up(
    strips: bool, from_caller: bool
) -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        ours, theirs = await world.call(alice, bob)
        sender, dialog, other = (alice, ours, bob) if from_caller else (bob, theirs, alice)
        data = dialog.compose("INVITE", cseq=7, via=sender.via(), contact=sender.contact)
        await world.send(sender, data)
        assert other.last("INVITE").cseq == (7, "INVITE")
        await world.respond(other, other.last("INVITE"), 200)
        assert sender.last(200).cseq == (7, "INVITE")
        await world.send(sender, dialog.compose("ACK", cseq=7, via=sender.via()))
        assert other.last("ACK").cseq == (7, "ACK")
        (start,) = [event for event in world.events if isinstance(event, CallStarted)]
        world.gate.proxy.hang_up(start.call, now=world.gate.time)
        await world.carry_on()
        assert alice.number_of("BYE") == bob.number_of("BYE") == 1
        assert len([event for event in world.events if isinstance(event, CallEnded)]) == 1

    run(scene, strips=strips)


@UPSTREAMS
def test_a_phone_that_ignores_the_route_ends_its_call_too(strips: bool) -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        ours, theirs = await world.call(alice, bob)
        for dialog in (ours, theirs):
            dialog.route, dialog.target = (), b"sip:203.0.113.5"
        await world.send(alice, ours.compose("ACK", cseq=1, via=alice.via()))
        assert bob.number_of("ACK") == 2
        await world.send(bob, theirs.compose("BYE", cseq=2, via=bob.via()))
        assert target(alice.last("BYE")) == f"sip:alice@{alice.local}"
        await world.respond(alice, alice.last("BYE"), 200)
        assert bob.last(200).method == "BYE"

    run(scene, strips=strips)


def test_a_call_is_cancelled_at_the_other_phone() -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        await world.send(
            alice,
            request(alice, "INVITE", "sip:bob@example.com", to="sip:bob@example.com", branch="z9hG4bKi"),
        )
        await world.respond(bob, bob.last("INVITE"), 180)
        cancel = request(
            alice, "CANCEL", "sip:bob@example.com", to="sip:bob@example.com", branch="z9hG4bKi", contact=None
        )
        await world.send(alice, cancel)
        await world.respond(bob, bob.last("CANCEL"), 200)
        await world.respond(bob, bob.last("INVITE"), 487)
        assert alice.last(487).method == "INVITE"
        failed = [event for event in world.events if isinstance(event, CallFailed)]
        assert [event.status_code for event in failed] == [487, 487]
        assert len({event.number for event in failed}) == 2

    run(scene)


def test_phones_that_change_their_place_are_followed() -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        ours, theirs = await world.call(alice, bob)
        moved = world.phone("bob", 9)
        await world.send(moved, theirs.compose("INVITE", cseq=3, via=moved.via(), contact=moved.contact))
        await world.respond(alice, alice.last("INVITE"), 200)
        assert moved.last(200).method == "INVITE"
        await world.send(alice, ours.compose("BYE", cseq=2, via=alice.via()))
        assert moved.number_of("BYE") == 1
        assert bob.number_of("BYE") == 0

    run(scene)


def test_a_gruu_is_left_as_it_is_and_its_phone_is_reached_all_the_same() -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        gruu = "sip:bob@example.com;gr=urn:uuid:f81d4fae"
        bob.contact_uri = f"<{gruu}>"
        ours, _ = await world.call(alice, bob)
        assert ours.target.decode() == gruu
        assert bob.number_of("ACK") == 1
        await world.send(alice, ours.compose("BYE", cseq=2, via=alice.via()))
        assert target(bob.last("BYE")) == gruu

    run(scene)


def test_a_caller_by_a_gruu_is_reached_too() -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        alice.contact_uri = "<sip:alice@example.com;gr=urn:uuid:1>"
        _, theirs = await world.call(alice, bob)
        assert SipUri.parse(theirs.target).param("alias") is None
        await world.send(bob, theirs.compose("BYE", cseq=2, via=bob.via()))
        assert alice.number_of("BYE") == 1

    run(scene)


@pytest.mark.parametrize("from_caller", [True, False])
def test_a_call_that_natgate_has_forgotten_in_a_crash_can_still_be_ended(from_caller: bool) -> None:
    async def scene(world: World, alice: Phone, bob: Phone) -> None:
        ours, theirs = await world.call(alice, bob)
        (start,) = [event for event in world.events if isinstance(event, CallStarted)]
        world.gate.proxy.dialogs.forget(start.call)
        sender, dialog, other = (alice, ours, bob) if from_caller else (bob, theirs, alice)
        await world.send(sender, dialog.compose("BYE", cseq=2, via=sender.via()))
        assert target(other.last("BYE")) == f"sip:{other.name}@{other.local}"
        await world.respond(other, other.last("BYE"), 200)
        assert sender.last(200).method == "BYE"

    run(scene)
