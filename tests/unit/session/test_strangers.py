"""What strangers, and users who mean no good, get from a running natgate: answers to themselves, no more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nattools.endpoint import Endpoint
from nattools.session.server import SessionServer
from nattools.sip.message import SipMessage, compose_request
from tests.lab.sip_attacks import Attacker
from tests.unit.session.telephone import PATIENCE_S, Telephone, gate, place

STRANGER = "127.0.0.66"
OTHER_STRANGER = "127.0.0.67"
VICTIM = "127.0.0.99"
ELSEWHERE = "127.0.0.5"
MOST_AMPLIFICATION = 3


class Ear(Telephone):
    """A telephone that keeps what it is sent as it is."""

    def __init__(self, name: str, server: Endpoint) -> None:
        super().__init__(name, server)
        self.heard: list[bytes] = []

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.append(data)


@dataclass
class Scene:
    """A natgate; Alice and Bob, who are registered; a stranger; and somebody who wants to be left alone."""

    server: SessionServer
    alice: Telephone
    bob: Telephone
    stranger: Telephone
    victim: socket.socket
    listener: socket.socket

    @property
    def victims(self) -> str:
        return str(Endpoint.of(*self.victim.getsockname()))

    @property
    def gates(self) -> str:
        return str(place(self.server))

    async def settle(self) -> None:
        """Have natgate take what was sent; an OPTIONS comes behind it."""
        async with Telephone("fence", place(self.server)) as fence:
            assert (await fence.ask("OPTIONS", f"sip:{self.gates}")).status_code == 200

    def has_left_the_victim_alone(self) -> bool:
        for at, take in ((self.victim, self.victim.recv), (self.listener, self.listener.accept)):
            at.setblocking(False)
            try:
                take(*([2000] if at is self.victim else []))
            except BlockingIOError:
                continue
            return False
        return True


@asynccontextmanager
async def scene(directory: Path, **words: Any) -> AsyncIterator[Scene]:
    async with (
        gate(directory, **words) as server,
        Telephone("alice", place(server)) as alice,
        Telephone("bob", place(server)) as bob,
    ):
        stranger = await Telephone("mallory", place(server)).open(address=STRANGER)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim, socket.socket() as listener:
            victim.bind((VICTIM, 0))
            listener.bind(victim.getsockname())
            listener.listen()
            await alice.register()
            await bob.register()
            it = Scene(server, alice, bob, stranger, victim, listener)
            yield it
            await it.settle()
            assert it.has_left_the_victim_alone()
            assert not (await server.status()).counters.get("faults")
        await stranger.close()


def run(test: Callable[[Scene], Coroutine[Any, Any, None]], directory: Path, **words: Any) -> None:
    async def whole() -> None:
        async with scene(directory, **words) as it:
            await test(it)

    asyncio.run(whole())


def test_strangers_reach_nobody_by_route_alias_or_uri(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        ip, _, port = it.victims.rpartition(":")
        ways: list[tuple[str, list[tuple[str, str | bytes]]]] = [
            (f"sip:x@{it.victims}", []),
            (f"sip:x@{it.victims};transport=tcp", []),
            (f"sip:bob@{it.gates}", [("Route", f"<sip:{it.gates};lr>,<sip:{it.victims};lr>")]),
            (f"sip:{it.gates};lr", [("Route", f"<sip:x@{it.victims}>")]),
            (f"sip:x@10.0.0.1;alias={ip}~{port}~1", []),
            (f"sip:x@10.0.0.1;alias={ip}~{port}~2", []),
        ]
        for to_tag in ("", ";tag=x"):
            for uri, headers in ways:
                for method in ("INVITE", "BYE", "MESSAGE"):
                    to = f"<sip:bob@{it.gates}>{to_tag}"
                    response = await it.stranger.ask(method, uri, to=to, headers=headers)
                    assert response.status_code in ((407, 481) if to_tag else (407,))
                ack = it.stranger.request("ACK", uri, to=f"<sip:bob@{it.gates}>{to_tag}", headers=headers)
                it.stranger.send(ack)

    run(test, tmp_path)


def test_who_is_in_a_call_sends_to_its_other_side_alone(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        assert (await it.alice.call("bob")).status_code == 200
        for phone in (it.alice, it.bob):
            dialog = phone.dialog
            assert dialog is not None
            for method in ("INVITE", "BYE", "INFO", "ACK"):
                data = dialog.compose(method, cseq=500, via=phone.via())
                message = SipMessage.parse(data)
                assert message.request_uri is not None
                message.edit(message.request_uri, f"sip:x@{it.victims}".encode())
                phone.send(message.encode())
                if method != "ACK":
                    assert (await phone.final(data)).status_code == 403
        assert (await it.alice.within("BYE")).status_code == 200

    run(test, tmp_path)


def test_nobody_ends_or_cancels_what_is_not_his(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        it.bob.answers = None
        calling = asyncio.ensure_future(it.alice.call("bob", call_id="known"))
        await it.bob.until(lambda: it.bob.requests_of("INVITE"))
        await it.alice.until(lambda: any(each.status_code == 180 for each in it.alice.responses))
        ringing = next(each for each in it.alice.responses if each.status_code == 180)
        values = [(name, ringing.value(ringing.header(name))) for name in ("via", "from", "call-id")]
        number = ringing.cseq[0] if ringing.cseq else 0
        for method, tag in (("CANCEL", ""), ("BYE", ";tag=guessed")):
            fields: list[tuple[str, str | bytes]] = [
                *values,
                ("To", f"<sip:bob@{place(it.server).ip}>{tag}"),
                ("CSeq", f"{number} {method}"),
                ("Max-Forwards", "70"),
            ]
            data = compose_request(method, f"sip:bob@{it.gates}", fields)
            it.stranger.send(data)
            assert (await it.stranger.final(data)).status_code == 481
        it.bob.answer(it.bob.requests_of("INVITE")[-1], 200)
        assert (await calling).status_code == 200
        assert (await it.alice.within("BYE")).status_code == 200
        assert not it.bob.requests_of("CANCEL")

    run(test, tmp_path)


def test_what_was_overheard_is_of_no_use_again(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        uri = f"sip:{it.gates}"
        options: dict[str, Any] = {"to": f"<sip:alice@{place(it.server).ip}>", "call_id": "overheard"}
        sent = it.alice.request("REGISTER", uri, **options)
        it.alice.send(sent)
        it.alice.digest.challenged(await it.alice.final(sent), SipMessage.parse(sent))
        headers = it.alice.digest.headers("REGISTER", uri, b"")
        sent = it.alice.request("REGISTER", uri, headers=headers, **options)
        it.alice.send(sent)
        assert (await it.alice.final(sent)).status_code == 200
        theft = it.stranger.request("REGISTER", uri, headers=headers, cseq=900, **options)
        it.stranger.send(theft)
        assert (await it.stranger.final(theft)).status_code == 401
        replay = sent.replace(str(it.alice.local).encode(), str(it.stranger.local).encode())
        it.stranger.send(replay)
        assert (await it.stranger.final(replay)).status_code == 401
        assert (await it.bob.call("alice")).status_code == 200
        assert (await it.bob.within("BYE")).status_code == 200

    run(test, tmp_path)


def test_contacts_that_lead_to_natgate_itself_do_not_go_round(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        carol = await Telephone("carol", place(it.server)).open(address=ELSEWHERE)
        carol.answers = 486
        contacts = ", ".join(f"<sip:bob@{it.gates};n={number}>" for number in range(4))
        aor, headers = f"<sip:carol@{place(it.server).ip}>", [("Contact", contacts)]
        registered = await carol.ask("REGISTER", f"sip:{it.gates}", to=aor, headers=headers)
        assert registered.status_code == 200
        response = await it.stranger.call("carol", from_uri="sip:mallory@elsewhere.example")
        assert response.status_code == 486
        assert carol.requests_of("INVITE")
        assert not it.bob.requests_of("INVITE")
        await carol.close()

    run(test, tmp_path, strangers=True)


@pytest.mark.parametrize("to_tag", ["", ";tag=made-up"])
def test_a_user_has_so_many_calls_and_no_more(tmp_path: Path, to_tag: str) -> None:
    async def test(it: Scene) -> None:
        to = f"<sip:bob@{it.gates}>{to_tag}"
        codes = [(await it.alice.call("bob", to=to)).status_code for _ in range(3)]
        assert codes == [200, 200, 486]
        assert (await it.server.status()).counters["calls_refused"] == 1

    run(test, tmp_path, calls_per_user=2 if not to_tag else 20, calls_per_source=2 if to_tag else 500)


@pytest.mark.parametrize(("method", "user"), [("REGISTER", ""), ("INVITE", "bob@")])
def test_passwords_cannot_be_tried_at_will(tmp_path: Path, method: str, user: str) -> None:
    async def test(it: Scene) -> None:
        uri, to = f"sip:{user}{it.gates}", f"<sip:alice@{place(it.server).ip}>"
        thief = await Telephone("alice", place(it.server), password="guess").open(address=OTHER_STRANGER)
        sent = thief.request(method, uri, to=to)
        thief.send(sent)
        thief.digest.challenged(await thief.final(sent), SipMessage.parse(sent))
        for _ in range(100):
            headers = thief.digest.headers(method, uri, b"")
            thief.send(thief.request(method, uri, to=to, headers=headers))
        counters = (await it.server.status()).counters
        async with asyncio.timeout(PATIENCE_S):
            while (counters := (await it.server.status()).counters).get("flooding", 0) < 50:  # noqa: ASYNC110 - to be read
                await asyncio.sleep(0.01)
        assert counters["guesses"] < 50
        assert (await it.alice.register()).status_code == 200
        await thief.close()

    run(test, tmp_path, requests_per_second=50.0)


def test_answers_are_hardly_larger_than_requests(tmp_path: Path) -> None:
    """Nobody gains by having natgate answer somebody else."""

    async def test(it: Scene) -> None:
        ear = Ear("ear", place(it.server))
        await ear.open(address=OTHER_STRANGER)
        for number, (method, user, tag) in enumerate(
            product(
                ("OPTIONS", "REGISTER", "INVITE", "BYE", "MESSAGE"), ("", "bob@", "nobody@"), ("", ";tag=x")
            )
        ):
            lines = (
                f"{method} sip:{user}{it.gates} SIP/2.0",
                f"v:SIP/2.0/UDP h;rport;branch=z9hG4bK{number}",
                "f:<sip:a@b>;tag=1",
                f"t:<sip:a@{place(it.server).ip}>{tag}",
                f"i:{number}",
                f"CSeq:1 {method}",
            )
            smallest = "".join(f"{line}\n" for line in (*lines, "")).encode()
            ear.heard.clear()
            ear.send(smallest)
            await it.settle()
            assert len(ear.heard) == 1
            assert len(ear.heard[0]) < MOST_AMPLIFICATION * len(smallest), ear.heard
        await ear.close()

    run(test, tmp_path)


def test_scanners_and_floods_are_not_answered_and_disturb_no_call(tmp_path: Path) -> None:
    async def test(it: Scene) -> None:
        assert (await it.alice.call("bob")).status_code == 200
        scan = it.stranger.request(
            "OPTIONS", f"sip:100@{it.gates}", headers=[("User-Agent", "friendly-scanner")]
        )
        it.stranger.send(scan)
        it.stranger.send(it.stranger.request("OPTIONS", f"sip:{it.gates}"))
        flood = await Telephone("flood", place(it.server)).open(address=OTHER_STRANGER)
        random = Random(7)
        mallory = Attacker(place(it.server), Endpoint.parse(it.victims), flood.local, random)
        for data in mallory.messages(600):
            flood.send(data)
            await asyncio.sleep(0)
        for phone in (it.alice, it.bob):
            assert (await phone.within("INFO")).status_code == 200
        async with asyncio.timeout(PATIENCE_S):
            while "flooding" not in (counters := (await it.server.status()).counters):  # noqa: ASYNC110 - to be read
                await asyncio.sleep(0.01)
        assert counters["scanners"] == 2
        assert it.stranger.responses == []
        assert len(flood.responses) < 300
        assert (await it.alice.within("BYE", cseq=200)).status_code == 200
        await flood.close()

    run(test, tmp_path, requests_per_second=50.0)
