"""Requests that went by a connection which has ended before anything came back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nattools.machine import Transmit
from nattools.session.events import CallFailed, CallStarted
from nattools.session.flows import Flow
from nattools.session.forking import Target
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import ALICE, BOB, BOB_TARGET, CAROL, CAROL_TARGET, Desk, lines, request
from tests.unit.session.telephone import Telephone, gate, place

OPENED = Target(BOB_TARGET.uri, Flow("t", BOB))
"""Bob by a connection that this side has opened."""
ACCEPTED = Target(BOB_TARGET.uri, Flow("c1", BOB))
"""Bob by the connection that he has opened himself."""
CAROL_NEXT = Target(CAROL_TARGET.uri, CAROL_TARGET.flow, q=0.1)


def connected(method: str, *targets: Target) -> tuple[Desk, SipMessage]:
    """A request that has gone to Bob by a connection, and is what he got."""
    desk = Desk()
    desk.flows.connected("c1", "t", BOB)
    desk.put(request(method))
    sent = desk.forward(*targets)
    return desk, SipMessage.parse(next(it.data for it in sent if it.destination == BOB))


def lose(desk: Desk) -> list[Transmit]:
    """Have Bob's connection end; what is sent then."""
    desk.proxy.disconnected(desk.flows.disconnected("c1"), now=desk.now)
    return desk.proxy.transmits()


@pytest.mark.parametrize("target", [OPENED, ACCEPTED], ids=["opened", "accepted"])
@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_what_nobody_has_heard_counts_as_503_and_the_next_is_tried(method: str, target: Target) -> None:
    desk, _ = connected(method, target, CAROL_NEXT)
    assert lines(lose(desk)) == [f"{method} sip:carol@{CAROL} -> {CAROL}"]


def test_where_nobody_else_is_left_the_caller_is_told_at_once() -> None:
    desk, _ = connected("INVITE", OPENED)
    assert lines(lose(desk)) == [f"500 Server Internal Error -> {ALICE}"]
    assert desk.event(CallFailed).status_code == 500
    assert lose(desk) == []


def test_an_upstream_whose_connection_ends_under_a_request_is_silent() -> None:
    desk = Desk()
    desk.proxy.reachability.watch([BOB])
    desk.flows.connected("c1", "t", BOB)
    desk.put(request())
    desk.forward(OPENED)
    desk.now = 1.0
    lose(desk)
    assert desk.proxy.reachability.silent_since(BOB) == 1.0


@pytest.mark.parametrize("code", [100, 180])
def test_who_has_said_that_he_is_at_it_may_answer_by_another_connection(code: int) -> None:
    desk, invite = connected("INVITE", OPENED, CAROL_NEXT)
    desk.respond(invite, code, socket="c1")
    assert lose(desk) == []
    desk.flows.connected("c2", "t", BOB)
    assert lines(desk.respond(invite, 200, socket="c2")) == [f"200 Word -> {ALICE}"]
    desk.event(CallStarted)


def test_what_was_answered_and_what_went_elsewhere_is_left_alone() -> None:
    desk, message = connected("MESSAGE", OPENED)
    desk.respond(message, 404, socket="c1")
    desk.put(request("MESSAGE", via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKother"], call_id="other"))
    desk.forward(BOB_TARGET)
    assert lose(desk) == []
    assert lines(one for _, one in desk.wait(0.6)) == [f"MESSAGE sip:bob@{BOB} -> {BOB}"]


def test_nothing_is_kept_of_connections_once_their_requests_are_over() -> None:
    desk, message = connected("MESSAGE", OPENED)
    desk.respond(message, 200, socket="c1")
    desk.wait(100)
    assert desk.proxy.timeout_at() is None
    assert not desk.proxy._clients._by_connection


def test_a_phone_hears_at_once_that_the_upstream_has_gone(tmp_path: Path) -> None:
    """It closes the connection instead of answering: half a minute is what the phone waits itself."""

    async def scenario() -> None:
        taken: list[bytes] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async with await asyncio.start_server(take, "127.0.0.2", 0) as upstream:
            port = upstream.sockets[0].getsockname()[1]
            words = {"upstream": f"sip:127.0.0.2:{port};transport=tcp"}
            async with gate(tmp_path, **words) as front, Telephone("alice", place(front)) as alice:
                for method in ("REGISTER", "INVITE"):
                    answer = await alice.ask(method, f"sip:alice@{alice.server}")
                    assert answer.status_code == (500 if method == "REGISTER" else 503)
                assert [it.split()[0] for it in taken] == [b"REGISTER"]
                assert (await front.status()).counters["faults"] == 0

    asyncio.run(scenario())
