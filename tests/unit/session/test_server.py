"""The session controller as a registrar, with telephones on loopback."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from nattools.errors import DecodeError, LocalAddressError
from nattools.session.controller.desk import Desk
from nattools.session.events import Received
from nattools.session.server import SessionServer
from nattools.session.settings import GateSettings, parse_listen
from nattools.session.status import CallState
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from tests.unit.session.telephone import SDP, Telephone, alice_and_bob, gate, gate_settings, place


def media_port(message: SipMessage) -> int:
    """The port of the first stream."""
    return SessionDescription.parse(message.body).media[0].port


async def counter(server: SessionServer, name: str) -> int:
    """What the status says of it."""
    return (await server.status()).counters.get(name, 0)


@pytest.mark.parametrize("caller", ["UDP", "TCP"])
@pytest.mark.parametrize("callee", ["UDP", "TCP"])
def test_a_call_is_made_relayed_and_ended(tmp_path: Path, caller: str, callee: str) -> None:
    async def scenario() -> None:
        async with (
            gate(tmp_path, rtp_ports=(40000, 40099)) as server,
            Telephone("alice", place(server, caller), transport=caller) as alice,
            Telephone("bob", place(server, callee), transport=callee) as bob,
        ):
            assert (await alice.register()).status_code == 200
            assert (await bob.register()).status_code == 200
            answer = await alice.call("bob")
            assert answer.status_code == 200
            await bob.until(lambda: bob.requests_of("ACK"))
            ports = {media_port(answer), media_port(bob.requests_of("INVITE")[0])}
            assert len(ports) == 2
            assert all(40000 <= port <= 40098 and not port % 2 for port in ports)
            status = await server.status()
            [call] = status.calls
            assert call.state is CallState.ANSWERED
            assert [stream.kind for stream in call.streams] == ["audio"]
            assert {it.address_of_record for it in status.registrations} == {
                "alice@127.0.0.1",
                "bob@127.0.0.1",
            }
            assert (await bob.within("BYE")).status_code == 200
            assert [request.method for request in alice.requests] == ["BYE"]
            assert (await server.status()).calls == ()
            assert await counter(server, "faults") == 0

    asyncio.run(scenario())


def test_at_another_port_its_address_without_a_port_means_it_too(tmp_path: Path) -> None:
    """Phones that have been told a port call `sip:bob@203.0.113.5` all the same."""

    async def scenario() -> None:
        async with alice_and_bob(tmp_path) as (_server, alice, bob):
            invited = await alice.ask("INVITE", f"sip:bob@{bob.host}", body=SDP % 10000)
            assert invited.status_code == 200
            assert (await alice.within("BYE")).status_code == 200
            assert (await alice.ask("OPTIONS", f"sip:{bob.host}")).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(("transport", "count"), [("UDP", 3), ("TCP", 2)])
def test_what_is_too_large_for_a_datagram_is_sent_whole_and_counted(
    tmp_path: Path, transport: str, count: int
) -> None:
    """A request with a long header, and one whose response repeats a long Call-ID; bob has UDP."""

    async def scenario() -> None:
        async with alice_and_bob(tmp_path, alice_by=transport) as (server, alice, bob):
            long = "x" * 1200
            alice.send(alice.request("MESSAGE", f"sip:bob@{bob.server}", headers=[("X-Long", long)]))
            await bob.until(lambda: bob.requests_of("MESSAGE"))
            assert bob.requests_of("MESSAGE")[0].value(bob.requests[0].header("x-long")) == long.encode()
            call_id = "y" * 1200
            bob.send(bob.request("MESSAGE", f"sip:alice@{bob.server}", call_id=call_id))
            await bob.until(lambda: any(it.call_id == call_id.encode() for it in bob.responses))
            counters = (await server.status()).counters
            assert counters["fragmented"] == count  # two of them went to bob

    asyncio.run(scenario())


def test_a_phone_with_ipv4_calls_one_with_ipv6(tmp_path: Path) -> None:
    listen = (*parse_listen("127.0.0.1:0"), *parse_listen("[::1]:0"))

    async def scenario() -> None:
        async with (
            gate(tmp_path, listen=listen) as server,
            Telephone("alice", place(server)) as alice,
            Telephone("bob", place(server, ipv6=True)) as bob,
        ):
            await alice.register()
            await bob.register()
            answer = await alice.call("bob")
            assert b"c=IN IP4 127.0.0.1" in answer.body
            assert b"c=IN IP6 ::1" in bob.requests_of("INVITE")[0].body
            assert (await bob.within("BYE")).status_code == 200
            assert await counter(server, "faults") == 0

    asyncio.run(scenario())


def test_a_call_is_refused_and_one_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path) as (server, alice, bob):
            bob.answers = 486
            assert (await alice.call("bob")).status_code == 486
            bob.answers = None
            invite = alice.request("INVITE", f"sip:bob@{alice.server}", body=SDP % 10000, branch="z9hG4bKc")
            alice.send(invite)
            await alice.until(lambda: any(it.status_code == 180 for it in alice.responses))
            cancel = (
                invite.replace(b"INVITE", b"CANCEL").partition(b"Contact:")[0] + b"Content-Length: 0\r\n\r\n"
            )
            alice.send(cancel)
            response = await alice.final(invite)
            assert response.status_code == 487
            alice.acknowledge(invite, response)
            await bob.until(lambda: bob.requests_of("CANCEL"))
            assert (await server.status()).calls == ()

    asyncio.run(scenario())


def test_tls_and_sips(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("natgate.test")
    words = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    issued.private_key_pem.write_to_path(str(words["key"]))
    issued.cert_chain_pems[0].write_to_path(str(words["certificate"]))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    listen = (*parse_listen("127.0.0.1:0"), *parse_listen("tls:127.0.0.1:0"))

    async def scenario() -> None:
        async with gate(tmp_path, listen=listen, **words) as server:
            alice, bob = (Telephone(name, place(server, "TLS"), transport="TLS") for name in ("alice", "bob"))
            await alice.open(context=trusting)
            await bob.open(context=trusting)
            assert (await alice.register()).status_code == 200
            assert (await bob.register()).status_code == 200
            answer = await alice.ask("INVITE", f"sips:bob@{alice.server}", body=SDP % 10000)
            assert answer.status_code == 200
            assert b";transport=tls;lr>" in answer.data
            assert (await alice.within("BYE")).status_code == 200
            async with Telephone("carol", place(server)) as carol:
                await carol.register()
                assert (await alice.ask("MESSAGE", f"sip:carol@{alice.server}")).status_code == 200
                assert (await alice.ask("MESSAGE", f"sips:carol@{alice.server}")).status_code == 480
            await alice.close()
            await bob.close()

    asyncio.run(scenario())


def test_a_phone_whose_connection_has_ended_is_registered_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gate(tmp_path) as server, Telephone("alice", place(server)) as alice:
            await alice.register()
            async with Telephone("bob", place(server, "TCP"), transport="TCP") as bob:
                await bob.register()
                bob.send(b"\r\n\r\n")
                await bob.until(lambda: bob.blanks)
            async with asyncio.timeout(10):
                while (await alice.call("bob")).status_code != 480:
                    alice.responses.clear()
            assert len((await server.status()).registrations) == 1

    asyncio.run(scenario())


def test_a_phone_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path, keepalive="none") as (_server, alice, bob):
            arrived = asyncio.Queue[bytes]()
            bob.take = arrived.put_nowait  # type: ignore[method-assign,assignment]  # it hears, and says nothing
            alice.send(alice.request("INVITE", f"sip:bob@{alice.server}", body=SDP % 10000))
            async with asyncio.timeout(10):
                assert await arrived.get() == await arrived.get()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param({"calls_per_user": 1}, 486, id="of one user"),
        pytest.param({"calls_per_source": 1}, 486, id="from one source"),
        pytest.param({"most_calls": 1}, 503, id="in all"),
        pytest.param({"rtp_ports": (40000, 40003)}, 503, id="without ports for media"),
    ],
)
def test_calls_have_limits(tmp_path: Path, words: dict[str, Any], code: int) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path, **words) as (server, alice, bob):
            assert (await alice.call("bob")).status_code == 200
            assert (await alice.call("bob")).status_code == code
            assert len((await server.status()).calls) == 1
            await bob.within("BYE")
            assert (await alice.call("bob")).status_code == 200

    asyncio.run(scenario())


def test_draining_waits_for_calls_and_takes_no_new_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path) as (server, alice, bob):
            await alice.call("bob")
            draining = asyncio.ensure_future(server.drain(60))
            await asyncio.sleep(0)
            refused = await bob.call("alice")
            assert refused.status_code == 503
            assert refused.header("retry-after") is not None
            assert (await server.status()).draining
            assert not draining.done()
            assert (await alice.within("BYE")).status_code == 200
            async with asyncio.timeout(10):
                await draining

    asyncio.run(scenario())


def test_draining_lets_what_rings_be_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path) as (server, alice, bob):
            bob.answers = None
            calling = asyncio.ensure_future(alice.call("bob"))
            await bob.until(lambda: bob.requests_of("INVITE"))
            draining = asyncio.ensure_future(server.drain(60))
            await asyncio.sleep(0)
            bob.answer(bob.requests_of("INVITE")[0], 200)
            assert (await calling).status_code == 200
            assert not draining.done()
            await alice.within("BYE")
            async with asyncio.timeout(10):
                await draining

    asyncio.run(scenario())


def test_calls_that_are_left_at_the_end_of_draining_are_hung_up_on_both_sides(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with alice_and_bob(tmp_path) as (server, alice, bob):
            await alice.call("bob")
            await server.drain(0)
            assert alice.requests_of("BYE")
            assert bob.requests_of("BYE")
            assert (await server.status()).calls == ()

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
def test_garbage_costs_a_counter_and_no_call(tmp_path: Path, transport: str) -> None:
    async def scenario() -> None:
        async with (
            alice_and_bob(tmp_path) as (server, alice, _bob),
            Telephone("mallory", place(server, transport), transport=transport) as mallory,
        ):
            await alice.call("bob")
            good = mallory.request("INVITE", f"sip:bob@{alice.server}", body=SDP % 10000)
            for bad in (
                good.replace(b"Via", b"Vix"),
                good.replace(b"INVITE sip", b"INVITE \xff\xfe"),
                good.replace(b"CSeq: ", b"CSeq: x"),
                good.replace(b"Call-ID", b"Call\x00ID"),
                good.replace(b"sip:bob", b"sip:%zz"),
                good.replace(b"From: <", b"From: <<"),
            ):
                mallory.send(bad)
            mallory.send(secrets.token_bytes(900) if transport == "UDP" else b"SIP/2.0 200 OK\r\n\r\n")
            assert (await alice.within("BYE")).status_code == 200
            assert await counter(server, "malformed") >= 3
            assert await counter(server, "faults") == 0

    asyncio.run(scenario())


class _Faulty:
    """A desk with a bug."""

    def __init__(self, desk: Desk) -> None:
        self.counters = desk.counters
        self.decide_well = desk.decide
        self.edit = desk.edit
        self.close = desk.close

    async def decide(self, received: Received) -> None:
        if received.request.method == "MESSAGE":
            raise KeyError("a bug")
        await self.decide_well(received)


def test_a_fault_of_its_own_costs_one_answer_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with gate(tmp_path) as server, Telephone("alice", place(server)) as alice:
            server._desk = _Faulty(server._desk)
            assert (await alice.ask("MESSAGE", f"sip:bob@{alice.server}")).status_code == 500
            assert (await alice.register()).status_code == 200
            assert await counter(server, "faults") == 1

    caplog.set_level(logging.INFO)
    asyncio.run(scenario())
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is None
    assert "a bug" in record.getMessage()


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_after_a_restart_stored_phones_are_reached_and_calls_end(tmp_path: Path, store: str) -> None:
    name = f"sqlite:{tmp_path / 'registrations.db'}" if store == "sqlite" else store

    async def scenario() -> None:
        server = await SessionServer.start(gate_settings(tmp_path, store=name))
        listen = parse_listen(str(place(server)))
        async with Telephone("alice", place(server)) as alice, Telephone("bob", place(server)) as bob:
            await alice.register()
            await bob.register()
            assert (await alice.call("bob")).status_code == 200
            await server.close()
            async with gate(tmp_path, listen=listen, store=name) as server:
                if store == "memory":
                    assert (await alice.within("BYE")).status_code == 481  # nobody is known any more
                    return
                assert (await alice.within("BYE")).status_code == 200
                assert bob.requests_of("BYE")
                assert (await alice.call("bob")).status_code == 200

    asyncio.run(scenario())


def test_calls_leave_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    """Which would have to stop everything to look for it, RTP too."""

    async def scenario() -> None:
        async with alice_and_bob(tmp_path, alice_by="TCP") as (_server, alice, bob):
            await alice.call("bob")
            await alice.within("BYE")
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            await alice.call("bob")
            await alice.within("BYE")
            bob.answers = 486
            await alice.call("bob")
            await alice.ask("MESSAGE", f"sip:bob@{alice.server}")
            gc.collect()
            found = [each for each in gc.garbage if type(each).__module__.startswith("nattools")]
            assert found == []

    try:
        asyncio.run(scenario())
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_users_are_read_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gate(tmp_path) as server, Telephone("dave", place(server)) as dave:
            assert (await dave.register()).status_code == 401
            (tmp_path / "users.toml").write_text('[users]\ndave = "dave"\n')
            server.reload()
            assert (await dave.register()).status_code == 200
            (tmp_path / "users.toml").write_text("no users")
            with pytest.raises(DecodeError):
                server.reload()
            assert (await dave.register()).status_code == 200

    asyncio.run(scenario())


def test_what_cannot_start_leaves_nothing_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gate(tmp_path) as server:
            taken = parse_listen(str(place(server)))
            nobody = tmp_path / "nobody.toml"
            with pytest.raises(LocalAddressError):
                await SessionServer.start(gate_settings(tmp_path, listen=taken))
        with pytest.raises(DecodeError, match="no such file"):
            await SessionServer.start(gate_settings(tmp_path, listen=taken, users=nobody))
        async with gate(tmp_path, listen=taken):
            pass

    asyncio.run(scenario())


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(DecodeError):
        asyncio.run(SessionServer.start(GateSettings(listen=parse_listen("127.0.0.1:0"))))
