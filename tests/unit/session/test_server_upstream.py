"""One natgate in front of another one, which is the registrar, with telephones on loopback."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.session.controller.upstream_desk import UpstreamDesk
from nattools.session.server import SessionServer
from nattools.session.settings import parse_listen
from tests.unit.session.telephone import Telephone, gate, place


async def talk(caller: Telephone, callee: Telephone, *gates: SessionServer) -> None:
    """Have one call the other, who hangs up; each of the gates sees one call, and its end."""
    answer = await caller.call(callee.name, call_id=secrets.token_hex(8))
    assert answer.status_code == 200
    await callee.until(lambda: callee.requests_of("ACK"))
    for server in gates:
        assert len((await server.status()).calls) == 1
    assert (await callee.within("BYE")).status_code == 200
    assert caller.requests_of("BYE")
    for server in gates:
        assert not (await server.status()).calls


@pytest.mark.parametrize(("transport", "path"), [("UDP", False), ("TCP", True)])
def test_phones_register_and_call_each_other_by_way_of_the_registrar(
    tmp_path: Path, transport: str, path: bool
) -> None:
    async def scenario() -> None:
        registrar = gate(tmp_path, listen=parse_listen("127.0.0.2:0"), domains=("127.0.0.1",))
        async with registrar as home:
            there = place(home, transport)
            words = {"upstream": f"sip:{there};transport={transport.lower()}", "path": path}
            async with (
                gate(tmp_path, **words) as front,
                Telephone("alice", place(front)) as alice,
                Telephone("bob", place(front, "TCP"), transport="TCP") as bob,
                Telephone("bob", place(front), password="wrong") as mallory,
            ):
                assert (await alice.register()).status_code == 200
                assert (await bob.register()).status_code == 200
                assert (await mallory.register()).status_code == 401
                await talk(alice, bob, front, home)
                await talk(bob, alice, front, home)
                assert {it.address_of_record for it in (await front.status()).registrations} == {
                    "alice@127.0.0.2",
                    "bob@127.0.0.2",
                }
                assert (await alice.register(0)).status_code == 200
                assert (await bob.call("alice")).status_code in (404, 480)

    asyncio.run(scenario())


def test_where_an_address_of_the_upstream_is_gone_the_same_request_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections end when something comes. Phones know nothing of it, and their media are relayed."""

    async def scenario() -> None:
        taken: list[bytes] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.append((await reader.readuntil(b"\r\n\r\n")).split()[0])
            writer.close()

        registrar = gate(tmp_path, listen=parse_listen("127.0.0.2:0"), domains=("127.0.0.1", "pbx.test"))
        async with registrar as home, await asyncio.start_server(take, "127.0.0.3", 0) as gone:
            places = [Endpoint.of("127.0.0.3", gone.sockets[0].getsockname()[1]), place(home, "TCP")]

            async def resolve(*_: object, **__: object) -> list[Endpoint]:
                return places

            monkeypatch.setattr(UpstreamDesk, "open", partial(UpstreamDesk.open, resolve=resolve))
            async with (
                gate(tmp_path, upstream="sip:pbx.test;transport=tcp") as front,
                Telephone("alice", place(front)) as alice,
                Telephone("bob", place(front)) as bob,
            ):
                assert (await alice.register()).status_code == 200
                assert (await bob.register()).status_code == 200
                assert taken == [b"REGISTER"], "it is known to be gone now"
                front.proxy.reachability.heard(places[0], now=front.now())
                await talk(alice, bob, front, home)
                assert taken == [b"REGISTER", b"INVITE"]
                offers = [bob.requests_of("INVITE")[0].body, *(it.body for it in alice.responses if it.body)]
                assert all(b"m=audio 10000 " not in it and b"m=audio 20000 " not in it for it in offers)
                assert (await front.status()).counters["faults"] == 0

    asyncio.run(scenario())
