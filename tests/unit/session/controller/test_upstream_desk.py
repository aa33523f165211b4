"""What a natgate in front of another registrar makes of requests, and whom it never sends any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocationError, ResolveError
from nattools.session.location import Bindings
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_response
from tests.unit.session.controller.upstream_world import (
    DOMAIN,
    GATE,
    STRANGER,
    UPSTREAM,
    Phone,
    World,
    request,
)

AOR = "alice@example.com"
VICTIM = Endpoint.of("198.51.100.99", 5060)


def play(scene: Callable[[World], Coroutine[Any, Any, None]], **words: Any) -> None:
    async def whole() -> None:
        await scene(await World.begin(**words))

    asyncio.run(whole())


def target(message: SipMessage) -> str:
    assert message.request_uri is not None
    return message.data[slice(*message.request_uri)].decode()


def values(message: SipMessage, name: str) -> list[str]:
    return [message.data[slice(*span)].decode() for span in message.values(name)]


async def bindings(world: World, name: str = AOR) -> Bindings:
    return await world.gate.location.bindings(name, now=world.gate.time)


async def ticket_uri(world: World) -> str:
    """Where the upstream sends what is for alice."""
    (binding,) = await bindings(world)
    return binding.outside.decode()


class TestRegistrations:
    def test_the_registrar_sees_a_contact_here_and_the_phone_its_own(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            answer = await world.register(alice)
            assert values(answer, "contact") == [f"<sip:alice@{alice.local}>;expires=600"]
            (there,) = await world.location.bindings(AOR, now=0)
            assert there.contact.startswith(b"sip:alice@203.0.113.5:5060;natgate=")
            (kept,) = await bindings(world)
            assert (kept.contact, kept.outside) == (f"sip:alice@{alice.local}".encode(), there.contact)
            assert (kept.received, kept.flow, kept.expires_at) == (alice.heard_as, "u", 600.0)

        play(scene)

    def test_a_refresh_keeps_its_contact_and_a_removal_takes_it_away(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.register(alice)
            before = await ticket_uri(world)
            await world.register(alice, cseq=2)
            assert await ticket_uri(world) == before
            assert len(await world.location.bindings(AOR, now=0)) == 1
            answer = await world.register(alice, f"{alice.contact};expires=0", cseq=3)
            assert not answer.values("contact")
            assert not await bindings(world)
            assert not await world.location.bindings(AOR, now=0)

        play(scene)

    def test_a_star_takes_all_away(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.register(alice)
            data = request(
                alice, "REGISTER", "sip:example.com", to="sip:alice@example.com", cseq=2, contact="*",
                headers=[("Expires", "0")], call_id=f"reg-alice-{alice.heard_as}",
            )  # fmt: skip
            await world.send(alice, data)
            assert alice.inbox[-1].status_code == 200
            assert not await bindings(world)

        play(scene)

    def test_a_challenge_and_its_answer_pass_untouched(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            data = request(alice, "REGISTER", "sip:example.com", to="sip:alice@example.com", call_id="one")
            await world.send(alice, data)
            assert alice.inbox[-1].status_code == 401
            assert not await bindings(world)
            digest = DigestClient("alice", "a", entropy=bytes)
            digest.challenged(alice.inbox[-1])
            signed = request(
                alice, "REGISTER", "sip:example.com", to="sip:alice@example.com", call_id="one", cseq=2,
                headers=digest.headers("REGISTER", "sip:example.com"),
            )  # fmt: skip
            await world.send(alice, signed)
            assert alice.inbox[-1].status_code == 200
            assert len(await bindings(world)) == 1

        play(scene, has_passwords=True)

    def test_what_is_refused_is_not_kept_and_nothing_is_lost_by_it(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            assert (await world.register(alice, f"{alice.contact};expires=5")).status_code == 423
            assert not await bindings(world)
            await world.register(alice, cseq=2)
            assert (await world.register(alice, f"{alice.contact};expires=5", cseq=3)).status_code == 423
            assert len(await bindings(world)) == 1

        play(scene)

    def test_a_phone_that_has_natgate_for_its_server_registers_with_the_upstream(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            data = request(alice, "REGISTER", f"sip:{GATE.ip}", to=f"sip:alice@{GATE.ip}")
            await world.send(alice, data)
            assert alice.inbox[-1].status_code == 200
            sent = SipMessage.parse(world.sent[UPSTREAM][-1])
            assert target(sent) == f"sip:{UPSTREAM.ip}"
            assert values(sent, "to") == [f"<sip:alice@{GATE.ip}>"]
            assert len(await bindings(world, f"alice@{UPSTREAM.ip}")) == 1

        async def with_a_registrar_for_both(world: World) -> None:
            world.registrar._domains = type(world.registrar._domains)(
                [DOMAIN, str(UPSTREAM.ip), str(GATE.ip)]
            )
            await scene(world)

        play(with_a_registrar_for_both)

    def test_other_phones_of_the_user_and_other_places_are_left_alone(self) -> None:
        async def scene(world: World) -> None:
            alice, desk = world.phone("alice", 1), world.phone("alice", 2)
            await world.register(alice, f"{alice.contact};expires=600", "<sip:alice@voicemail.test>;q=0.1")
            answer = await world.register(desk)
            shown = values(answer, "contact")
            assert shown[0].startswith("<sip:alice@203.0.113.5:5060;natgate=")
            assert shown[1].startswith("<sip:alice@voicemail.test>")
            assert shown[2].startswith(f"<sip:alice@{desk.local}>")
            assert len(await bindings(world)) == 2

        play(scene)

    def test_with_path_the_contact_stays_and_requests_come_by_the_path(self) -> None:
        async def scene(world: World) -> None:
            alice, bob = world.phone("alice", 1), world.phone("bob", 2)
            for phone in (alice, bob):
                answer = await world.register(phone)
                assert values(answer, "contact")[0].startswith(f"<sip:{phone.name}@{phone.local}>")
            (there,) = await world.location.bindings(AOR, now=0)
            assert there.contact == f"sip:alice@{alice.local}".encode()
            assert len(there.path) == 1
            await world.send(
                bob, request(bob, "MESSAGE", "sip:alice@example.com", to="sip:alice@example.com")
            )
            assert target(alice.last("MESSAGE")) == f"sip:alice@{alice.local}"
            assert not alice.last("MESSAGE").values("route")
            await world.register(alice, f"{alice.contact};expires=0", cseq=2)
            assert not await bindings(world)

        play(scene, path=True)

    @pytest.mark.parametrize("path", [False, True])
    def test_a_call_on_the_heels_of_the_2xx_waits_until_the_phone_is_kept(self, path: bool) -> None:
        async def scene(world: World) -> None:
            alice, bob = world.phone("alice", 1), world.phone("bob", 2)
            update, may_write = world.gate.location.update, asyncio.Event()

            async def slow(*words: Any, **more: Any) -> Any:
                await may_write.wait()
                return await update(*words, **more)

            world.gate.location.update = slow  # type: ignore[method-assign]  # on purpose
            assert (await world.register(alice)).status_code == 200
            assert not await bindings(world)
            asyncio.get_running_loop().call_later(0.01, may_write.set)
            await world.send(bob, request(bob, "MESSAGE", f"sip:{AOR}", to=f"sip:{AOR}"))
            assert target(alice.last("MESSAGE")) == f"sip:alice@{alice.local}"

        play(scene, path=path)

    def test_too_many_contacts_are_refused_here(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            for number in range(2):
                answer = await world.register(
                    alice, f"<sip:{number}@{alice.local}>;expires=600", cseq=number + 1
                )
                assert answer.status_code == 200
            answer = await world.register(alice, f"<sip:9@{alice.local}>;expires=600", cseq=9)
            assert answer.status_code == 403
            answer = await world.register(alice, f"<sip:1@{alice.local}>;expires=600", cseq=10)
            assert answer.status_code == 200

        play(scene, contacts_per_user=2)

    def test_a_store_that_fails_costs_a_503_and_no_traceback(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)

            async def fail(*_: object, **__: object) -> Any:
                raise LocationError("the disk is full")

            await world.register(alice)
            world.gate.location.update = fail  # type: ignore[method-assign]  # on purpose
            assert (await world.register(alice, cseq=2)).status_code == 200
            await world.gate.desk.close()
            assert world.gate.desk.counters["unkept"] == 1
            world.gate.location.bindings = fail  # type: ignore[method-assign]  # on purpose
            assert (await world.register(alice, cseq=3)).status_code == 503

        play(scene)
        assert "the disk is full" in caplog.text


class TestWhoIsSentWhat:
    def test_the_upstream_reaches_a_phone_and_a_stranger_with_its_ticket_does_not(self) -> None:
        async def scene(world: World) -> None:
            alice, mallory = world.phone("alice", 1), world.phone("mallory", 5, heard_as=STRANGER)
            await world.register(alice)
            uri = await ticket_uri(world)
            await world.send(mallory, request(mallory, "MESSAGE", uri, to="sip:alice@example.com"))
            sent = map(SipMessage.parse, world.sent[UPSTREAM])
            message = next(each for each in sent if each.method == "MESSAGE")
            assert target(message) == f"sip:alice@{UPSTREAM.ip}"
            assert not alice.number_of("MESSAGE")
            await world.send(
                UPSTREAM, request(mallory, "OPTIONS", uri, to="sip:alice@example.com", branch="z9hG4bKu")
            )
            assert target(alice.last("OPTIONS")) == f"sip:alice@{alice.local}"

        play(scene)

    def test_a_forged_ticket_and_an_unknown_user_end_here(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.register(alice)
            real = await ticket_uri(world)
            before = len(world.sent[UPSTREAM])
            phone = world.phones[UPSTREAM] = Phone("upstream", UPSTREAM, local=UPSTREAM)
            for number, uri in enumerate(
                (
                    real.replace("natgate=", "natgate=00"),
                    f"sip:alice@{GATE};natgate=~example.com",
                    f"sip:alice@{GATE}",
                    f"sip:{VICTIM}",
                    f"sip:alice@192.168.0.108;alias={VICTIM.ip}~5060~1",
                )
            ):
                data = request(
                    phone, "MESSAGE", uri, to="sip:x@example.com", cseq=number + 1, branch=f"z9hG4bK{number}"
                )
                world.gate.proxy.receive(data, UPSTREAM, now=0.0, socket="u")
                (answer,) = await world.settle()
                code = b"480" if "natgate=" in uri else b"404"
                assert (answer.destination, answer.data[8:11]) == (UPSTREAM, code), uri
            assert len(world.sent[UPSTREAM]) == before
            assert not alice.number_of("MESSAGE")

        play(scene)

    @pytest.mark.parametrize("source", ["stranger", "upstream"])
    @pytest.mark.parametrize("method", ["MESSAGE", "ACK", "BYE", "INVITE"])
    def test_nobody_has_natgate_send_to_a_third_party(self, method: str, source: str) -> None:
        async def scene(world: World) -> None:
            phone = Phone("mallory", UPSTREAM if source == "upstream" else STRANGER)
            for number, (uri, headers) in enumerate(
                (
                    (f"sip:x@{VICTIM}", []),
                    (f"sip:x@192.168.0.108;alias={VICTIM.ip}~5060~1", []),
                    ("sip:x@example.com", [("Route", f"<sip:{GATE};lr>"), ("Route", f"<sip:{VICTIM};lr>")]),
                    (f"sip:{GATE};lr", [("Route", f"<sip:x@{VICTIM}>")]),
                )
            ):
                data = request(
                    phone, method, uri, to="sip:bob@example.com", cseq=number + 1, call_id=f"c{number}",
                    to_tag="" if method in ("MESSAGE", "INVITE") else "tb", headers=headers,
                )  # fmt: skip
                world.gate.proxy.receive(data, phone.heard_as, now=0.0, socket="u")
                sent = await world.settle()
                assert {each.destination for each in sent} <= {UPSTREAM, phone.heard_as}, (uri, sent)

        play(scene)

    def test_in_a_call_a_route_leads_to_nobody_else_either(self) -> None:
        async def scene(world: World) -> None:
            alice, bob = world.phone("alice", 1), world.phone("bob", 2)
            for phone in (alice, bob):
                await world.register(phone)
            ours, _ = await world.call(alice, bob)
            ours.route = (f"<sip:{GATE};lr>".encode(), f"<sip:{VICTIM};lr>".encode())
            world.gate.proxy.receive(
                ours.compose("INFO", cseq=5, via=alice.via()), alice.heard_as, now=0.0, socket="u"
            )
            assert {each.destination for each in await world.settle()} == {UPSTREAM}

        play(scene)

    def test_a_server_asks_whether_natgate_is_there(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.send(alice, request(alice, "OPTIONS", f"sip:{GATE}", to=f"sip:{GATE}"))
            assert alice.inbox[-1].status_code == 200
            assert not world.sent[UPSTREAM]

        play(scene)

    def test_notifications_reach_a_phone_by_alias_and_by_its_only_contact(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.register(alice)
            await world.send(
                alice,
                request(alice, "SUBSCRIBE", "sip:alice@example.com", to="sip:alice@example.com", cseq=4),
            )
            contact = SipMessage.parse(world.sent[UPSTREAM][-1]).contacts[0]
            assert contact.uri is not None
            aliased = SipMessage.parse(world.sent[UPSTREAM][-1]).data[slice(*contact.uri.span)].decode()
            server = Phone("server", UPSTREAM, local=UPSTREAM)
            for number, uri in enumerate((aliased, f"sip:alice@{GATE}")):
                notify = request(
                    server, "NOTIFY", uri, to="sip:alice@example.com", to_tag="talice", cseq=number + 1,
                    headers=[("Route", f"<sip:{GATE};lr>")],
                )  # fmt: skip
                await world.send(UPSTREAM, notify)
                assert alice.number_of("NOTIFY") == number + 1
                assert "alias" not in target(alice.last("NOTIFY"))

        play(scene)

    def test_a_connection_that_is_gone_is_480(self) -> None:
        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            world.gate.flows.connected("c1", "t", alice.heard_as)
            data = request(alice, "REGISTER", "sip:example.com", to="sip:alice@example.com").replace(
                b"/UDP", b"/TCP"
            )
            world.gate.proxy.receive(data.replace(b"UDP", b"TCP"), alice.heard_as, now=0.0, socket="c1")
            await world.carry_on()
            assert len(await bindings(world)) == 1
            uri = await ticket_uri(world)
            server = Phone("server", UPSTREAM, local=UPSTREAM)
            world.gate.flows.disconnected("c1")
            world.gate.proxy.receive(
                request(server, "MESSAGE", uri, to="sip:alice@example.com"), UPSTREAM, now=0.0, socket="u"
            )
            (answer,) = await world.settle()
            assert answer.data.startswith(b"SIP/2.0 480 ")

        play(scene)


class TestAnUpstreamThatIsSilent:
    def test_phones_are_told_once_it_is_known_and_served_again_when_it_is_back(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)

        async def scene(world: World) -> None:
            alice = world.phone("alice", 1)
            await world.register(alice)
            await world.wait(1)
            world.is_dead = True
            invite = request(alice, "INVITE", "sip:bob@example.com", to="sip:bob@example.com")
            await world.send(alice, invite)
            await world.wait(40)
            assert alice.last(408).method == "INVITE"
            await world.register(alice, cseq=2)  # goes there to see
            assert alice.last(408) is alice.inbox[-1]
            answer = await world.register(alice, cseq=3)
            assert (answer.status_code, answer.first_value("retry-after")) == (503, b"5")
            world.is_dead = False
            await world.wait(6)
            assert (await world.register(alice, cseq=4)).status_code == 200
            assert (await world.register(alice, cseq=5)).status_code == 200

        play(scene)
        assert caplog.text.count(f"does not answer at {UPSTREAM}: phones get 503") == 1
        assert caplog.text.count("answers again") == 1

    def test_the_next_of_its_addresses_is_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        first = Endpoint.of("203.0.113.21", 5060)

        async def resolve(host: str, port: int | None, *, service: str, default_port: int) -> list[Endpoint]:
            return [first, UPSTREAM]

        async def scene(world: World) -> None:
            alice, silent = world.phone("alice", 1), world.phone("nobody", 2, heard_as=first)
            await world.send(
                alice, request(alice, "MESSAGE", "sip:bob@example.com", to="sip:bob@example.com")
            )
            assert silent.number_of("MESSAGE") == 1
            await world.wait(40)
            assert (await world.register(alice)).status_code == 200

        play(scene, upstream="sip:pbx.test", resolve=resolve)
        assert f"does not answer at {first}: others are asked" in caplog.text

    def test_one_request_that_it_drops_makes_nobody_else_wait(self) -> None:
        async def scene(world: World) -> None:
            alice, bob = world.phone("alice", 1), world.phone("bob", 2)
            world.is_dead = True
            await world.send(
                alice, request(alice, "MESSAGE", "sip:bob@example.com", to="sip:bob@example.com")
            )
            world.is_dead = False
            await world.wait(20)
            await world.register(bob)
            await world.wait(20)
            assert (await world.register(bob, cseq=2)).status_code == 200

        play(scene)


def test_it_starts_without_dns_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Endpoint] = []

    async def resolve(host: str, port: int | None, *, service: str, default_port: int) -> list[Endpoint]:
        assert (host, port, service, default_port) == ("pbx.test", None, "_sip._udp", 5060)
        if not answers:
            raise ResolveError("DNS does not answer")
        return answers

    async def scene(world: World) -> None:
        alice = world.phone("alice", 1)
        assert (await world.register(alice)).status_code == 503
        answers.append(UPSTREAM)
        await world.wait(6)
        assert (await world.register(alice, cseq=2)).status_code == 503  # it asks meanwhile
        assert (await world.register(alice, cseq=3)).status_code == 200

    play(scene, upstream="sip:pbx.test", resolve=resolve)
    assert "pbx.test" in caplog.text


def test_a_response_that_breaks_the_exchange_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(world: World) -> None:
        alice = world.phone("alice", 1)
        world.is_dead = True
        await world.send(alice, request(alice, "REGISTER", "sip:example.com", to="sip:alice@example.com"))
        sent = SipMessage.parse(world.sent[UPSTREAM][-1])
        answer = compose_response(sent, 200, "OK", [("Contact", "<sip:alice@[")])
        await world.send(UPSTREAM, answer)
        assert alice.inbox[-1].status_code == 200
        assert world.gate.desk.counters["unedited"] == 1

    play(scene)
