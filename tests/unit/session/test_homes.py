"""Several natgates that share their registrations."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.session.flows import Flows, Listener
from nattools.session.homes import home_uri, is_elsewhere, target_elsewhere
from nattools.session.location import ContactBinding
from nattools.session.server import SessionServer
from nattools.session.settings import parse_listen
from tests.unit.session.telephone import Telephone, gate, gate_settings, place

DOMAIN = "example.com"
HERE = Endpoint.of("203.0.113.5", 5060)
THERE = Endpoint.of("203.0.113.6", 5060)


def flows_at(place: Endpoint, *, advertised: Endpoint | None = None) -> Flows:
    return Flows(
        [
            Listener("tls", "TLS", place.with_port(5061), advertised),
            Listener("udp", "UDP", place, advertised),
            Listener("tcp", "TCP", place, advertised),
        ]
    )


def bound_at(place: Endpoint, socket: str, *, advertised: Endpoint | None = None) -> ContactBinding:
    flows = flows_at(place, advertised=advertised)
    uri = home_uri("alice@example.com", socket, flows, entropy=bytes)
    return ContactBinding(b"sip:alice@192.168.0.2", 1.0, b"id", 1, outside=uri)


@pytest.mark.parametrize("socket", ["udp", "tls"])
def test_a_phone_is_reached_by_udp_at_the_natgate_it_has_registered_with(socket: str) -> None:
    binding = bound_at(HERE, socket)
    assert binding.outside == b"sip:alice@203.0.113.5:5060;natgate=000000000000000000000000~example.com"
    assert not is_elsewhere(binding, flows_at(HERE))
    assert is_elsewhere(binding, flows_at(THERE))
    target = target_elsewhere(binding, flows_at(THERE))
    assert target is not None
    assert target.flow is not None
    assert (target.uri, target.flow.socket, target.flow.remote) == (binding.outside, "udp", HERE)


def test_the_advertised_address_is_the_one_that_others_are_told() -> None:
    inner = Endpoint.of("10.0.0.5", 5060)
    binding = bound_at(inner, "udp", advertised=HERE)
    assert binding.outside.startswith(b"sip:alice@203.0.113.5:5060;")
    assert not is_elsewhere(binding, flows_at(inner, advertised=HERE))


@pytest.mark.parametrize("outside", [b"", b"sip:", b"tel:1"])
def test_without_a_home_that_is_one_it_is_here(outside: bytes) -> None:
    binding = ContactBinding(b"sip:alice@192.168.0.2", 1.0, b"id", 1, outside=outside)
    assert not is_elsewhere(binding, flows_at(HERE)) or outside == b"tel:1"
    assert target_elsewhere(binding, flows_at(HERE)) is None


def test_a_phone_at_one_natgate_is_called_by_another_and_calls_end_both_ways(tmp_path: Path) -> None:
    """By TCP, so that no other natgate can reach it by itself."""

    async def scenario() -> None:
        words = {"store": f"sqlite:{tmp_path / 'shared.db'}", "domains": (DOMAIN,)}
        async with AsyncExitStack() as exits:
            first = await exits.enter_async_context(gate(tmp_path, **words))
            second = await SessionServer.start(gate_settings(tmp_path, **words))
            exits.push_async_callback(second.close)
            alice = await exits.enter_async_context(Telephone("alice", place(first)))
            bob = await exits.enter_async_context(Telephone("bob", place(second, "TCP"), transport="TCP"))
            assert (await alice.register()).status_code == 200
            assert (await bob.register()).status_code == 200
            for _ in range(2):
                assert (await alice.call("bob")).status_code == 200
                assert (await alice.within("BYE")).status_code == 200
            invite = bob.requests_of("INVITE")[-1]
            assert b"natgate=" not in invite.data
            assert len(invite.values("record-route")) == 3  # the second goes from UDP to TCP
            assert (await alice.call("bob")).status_code == 200
            assert (await bob.within("BYE")).status_code == 200
            await alice.until(lambda: alice.requests_of("BYE"))

            await second.close()
            await bob.until(lambda: bob.is_lost)
            listen = parse_listen(str(place(second)))
            await exits.enter_async_context(gate(tmp_path, listen=listen, **words))
            assert (await alice.call("bob")).status_code in (404, 480)

    asyncio.run(scenario())


def test_a_ticket_that_is_none_leads_nobody_past_the_password(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            gate(tmp_path, domains=(DOMAIN,)) as server,
            Telephone("bob", place(server)) as bob,
            Telephone("eve", place(server)) as eve,
        ):
            await bob.register()
            for ticket in ("", "00~example.com", "~example.com", "%00~%ff"):
                uri = f"sip:bob@{place(server)};natgate={ticket}"
                assert (await eve.ask("INVITE", uri)).status_code in (407, 480)
            assert not bob.requests

    asyncio.run(scenario())
