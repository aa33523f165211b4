"""An ALG's outside: public endpoints on the wire, local ones inside, and what is done when they change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from nattools.binding.client import LiveBinding
from nattools.binding.keeper import Keeper
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, LocalAddressError, SymmetricNatError
from nattools.machine import Transmit
from nattools.session.controller import outside as module
from nattools.session.controller.outside import OUTSIDE, Outside
from nattools.session.location import ContactBinding
from nattools.session.settings import GateSettings, ListenAddress
from nattools.sip.message import SipMessage
from tests.unit.binding.on_loopback import eventually, run
from tests.unit.session.controller.outsides import (
    INSIDE,
    NEW,
    NO_WAY,
    PUBLIC,
    Inside,
    Peer,
    alg,
    answer,
    move,
    outside,
    request,
)


def contacts(data: bytes) -> list[str]:
    sip = SipMessage.parse(data)
    return [sip.data[slice(*span)].decode() for span in sip.values("contact")]


def first(data: bytes, name: str) -> str:
    return SipMessage.parse(data).first_value(name).decode()


async def sent(opened: Outside, peer: Peer, data: bytes) -> bytes:
    """What the peer gets of a message that the proxy sends it."""
    opened.send(Transmit(data, peer.endpoint, OUTSIDE))
    return await peer.next()


async def register(opened: Outside, inside: Inside, peer: Peer) -> None:
    seen = await sent(opened, peer, request("REGISTER", opened.listener.local))
    await peer.send(answer(seen, "200 OK", f"Contact: {contacts(seen)[0]};expires=60"), opened.listener.local)
    assert b"200 OK" in await inside.taken.get()


def test_outside_sees_the_public_endpoint_and_the_proxy_its_own() -> None:
    async def scenario() -> None:
        async with outside() as (opened, inside, peer):
            local = opened.listener.local
            public = Endpoint.of(PUBLIC, local.port)
            assert opened.public == public
            seen = await sent(opened, peer, request("INVITE", local))
            assert first(seen, "via").startswith(f"SIP/2.0/UDP {public};")
            assert contacts(seen) == [f"<sip:alice@{public};natgate=x>"]
            assert first(seen, "record-route") == ""
            await peer.send(answer(seen, "200 OK", "Contact: <sip:bob@127.0.0.1:9>"), local)
            taken = await inside.taken.get()
            assert first(taken, "via").startswith(f"SIP/2.0/UDP {local};")
            assert first(taken, "record-route") == f"<sip:{local};lr>, <sip:{INSIDE};lr>"
            assert contacts(taken) == ["<sip:bob@127.0.0.1:9>"]
            bye = answer(seen, "").replace(b"SIP/2.0 ", b"BYE sip:alice@%s SIP/2.0" % str(public).encode(), 1)
            await peer.send(bye, local)
            assert (await inside.taken.get()).startswith(f"BYE sip:alice@{local} SIP/2.0".encode())

    run(scenario())


def test_registrations_and_calls_are_moved_to_the_new_address_without_the_phone() -> None:
    async def scenario() -> None:
        async with outside() as (opened, inside, peer):
            local = opened.listener.local
            await register(opened, inside, peer)
            seen = await sent(opened, peer, request("INVITE", local, body="v=0\r\n"))
            route = f"Record-Route: <sip:{peer.endpoint};lr>"
            await peer.send(answer(seen, "200 OK", "Contact: <sip:bob@127.0.0.1:9>", route), local)
            await inside.taken.get()
            await sent(opened, peer, request("ACK", local, to_tag="b"))
            assert opened._kept is not None
            move(opened._kept)
            told = {SipMessage.parse(data).method: data for data in [await peer.next(), await peer.next()]}
            new, old = Endpoint.of(NEW, local.port), Endpoint.of(PUBLIC, local.port)
            assert contacts(told["REGISTER"]) == [
                f"<sip:alice@{new};natgate=x>",
                f"<sip:alice@{old};natgate=x>;expires=0",
            ]
            assert contacts(told["INVITE"]) == [f"<sip:alice@{new};natgate=x>"]
            assert told["INVITE"].startswith(b"INVITE sip:bob@127.0.0.1:9 SIP/2.0")
            assert first(told["INVITE"], "cseq") == "2 INVITE"
            await peer.send(answer(told["INVITE"], "200 OK", "Contact: <sip:bob@127.0.0.1:9>"), local)
            assert (await peer.next()).startswith(b"ACK")
            bye = await sent(opened, peer, request("BYE", local, cseq=2, to_tag="b"))
            assert first(bye, "cseq") == "3 BYE"  # the phone counts without the one that was made for it
            assert inside.taken.empty()

    run(scenario())


def test_whoever_could_not_be_answered_is_refused_with_the_reason() -> None:
    async def scenario() -> None:
        async with outside(alg(NO_WAY)) as (opened, inside, peer):
            local = opened.listener.local
            for method in ("INVITE", "REGISTER", "SUBSCRIBE"):
                refusal = opened.refusal_of(SipMessage.parse(request(method, local)))
                assert refusal is not None
                assert refusal[0] == 503
                headers = dict(refusal[2])
                assert headers["Retry-After"] == "30"
                assert headers["Warning"].startswith('399 natgate "no public endpoint for 127.0.0.1:')
                assert headers["Warning"].count('"') == 2
            for goes_on in (
                request("OPTIONS", local),
                request("ACK", local),
                request("BYE", local, to_tag="b"),
            ):
                assert opened.refusal_of(SipMessage.parse(goes_on)) is None
            lost = Transmit(request("BYE", local, to_tag="b"), peer.endpoint, OUTSIDE)
            opened.send(lost)
            assert inside.lost == [lost]
            assert opened.public is None

    run(scenario())


def test_where_it_is_reachable_nobody_is_refused() -> None:
    async def scenario() -> None:
        async with outside() as (opened, _inside, _peer):
            assert opened.refusal_of(SipMessage.parse(request("INVITE", opened.listener.local))) is None

    run(scenario())


def test_a_public_endpoint_that_comes_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    once: list[str] = []
    bind: Callable[..., AbstractAsyncContextManager[LiveBinding]] = Keeper.bind_socket

    @asynccontextmanager
    async def symmetric_first(self: Keeper, *args: Any, **words: Any) -> AsyncIterator[LiveBinding]:
        if not once:
            once.append("tried")
            raise SymmetricNatError('the "NAT" is symmetric')
        async with bind(self, *args, **words) as live:
            yield live

    monkeypatch.setattr(Keeper, "bind_socket", symmetric_first)

    async def scenario() -> None:
        async with outside() as (opened, _inside, peer):
            local = opened.listener.local
            await eventually(lambda: opened.refusal_of(SipMessage.parse(request("INVITE", local))) is None)
            assert first(await sent(opened, peer, request("INVITE", local)), "via").startswith(
                f"SIP/2.0/UDP {PUBLIC}:"
            )
        assert once

    run(scenario())


def test_what_is_no_sip_or_was_refused_stays_outside() -> None:
    async def scenario() -> None:
        async with outside() as (opened, inside, peer):
            local = opened.listener.local
            inside.refused.add(b"too much")
            for data in (b"\r\n", b"too much", b"\x00\x01\x00\x00" + bytes(16), b"last"):
                await peer.send(data, local)
            assert await inside.taken.get() == b"last"
            assert inside.taken.empty()
            assert (await inside.pongs.get()).remote == peer.endpoint

    run(scenario())


def test_the_flow_to_whom_something_was_begun_with_is_kept_open() -> None:
    async def scenario() -> None:
        async with outside() as (opened, _inside, peer):
            await sent(opened, peer, request("BYE", opened.listener.local, to_tag="b"))
            assert opened._machines is not None
            assert peer.endpoint not in opened._machines.flows
            await sent(opened, peer, request("REGISTER", opened.listener.local))
            assert peer.endpoint in opened._machines.flows

    run(scenario())


@pytest.mark.parametrize("is_early", [True, False])
def test_whoever_knows_a_phone_from_before_a_restart_is_let_in_at_once(
    is_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = asyncio.Event()
    bind: Callable[..., AbstractAsyncContextManager[LiveBinding]] = Keeper.bind_socket
    if is_early:
        monkeypatch.setattr(module, "_FIRST_S", 0.01)

    @asynccontextmanager
    async def late(self: Keeper, *args: Any, **words: Any) -> AsyncIterator[LiveBinding]:
        if is_early:
            await allowed.wait()
        async with bind(self, *args, **words) as live:
            yield live

    monkeypatch.setattr(Keeper, "bind_socket", late)

    async def scenario() -> None:
        async with outside() as (opened, _inside, peer):
            assert (opened.public is None) is is_early
            known = ContactBinding(b"sip:alice@192.168.0.7", 60.0, b"call", 1, server=peer.endpoint)
            opened.keep_servers([known, replace(known, server=None)])
            allowed.set()
            assert await peer.next_of_any_kind() == b"\r\n\r\n"
            assert opened._machines is not None
            assert peer.endpoint in opened._machines.flows

    run(scenario())


def test_what_cannot_be_sent_is_told() -> None:
    async def scenario() -> None:
        async with outside() as (opened, inside, _peer):
            lost = Transmit(request("INVITE", opened.listener.local), Endpoint.of("127.0.0.1", 0), OUTSIDE)
            opened.send(lost)
            assert inside.lost == [lost]

    run(scenario())


def test_a_port_that_somebody_has_is_an_error_that_says_so() -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            at = Endpoint.of(*taken.getsockname()[:2])
            with pytest.raises(LocalAddressError, match=rf"{at}.*set outside"):
                await Outside.open(alg(outside=at), Inside())

    run(scenario())


def test_settings_without_any_method_are_an_error_and_leave_nothing_open() -> None:
    async def scenario() -> None:
        with pytest.raises(BindingError, match="static_host"):
            await Outside.open(alg(NO_WAY.with_words(methods=["static"])), Inside())

    run(scenario())


def test_without_a_wish_it_is_beside_the_inside() -> None:
    async def scenario() -> None:
        settings = GateSettings(alg=True, listen=(ListenAddress("UDP", INSIDE),), binding=NO_WAY)
        opened = await Outside.open(settings, Inside())
        try:
            assert opened.listener.local.port not in (0, INSIDE.port)
            assert not opened.listener.local.ip.is_unspecified
        finally:
            await opened.close()

    if _has_way_out():
        run(scenario())
    else:
        pytest.skip("this machine has no route that leads anywhere")


def _has_way_out() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(("192.0.2.1", 9)) == 0  # sends nothing


def test_closing_while_it_is_still_looking_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_S", 0.01)

    @asynccontextmanager
    async def never(self: Keeper, *args: Any, **words: Any) -> AsyncIterator[LiveBinding]:
        yield await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Keeper, "bind_socket", never)

    async def scenario() -> None:
        async with outside() as (opened, _inside, _peer):
            refusal = opened.refusal_of(SipMessage.parse(request("INVITE", opened.listener.local)))
            assert refusal is not None
            assert "not known yet" in dict(refusal[2])["Warning"]

    run(scenario())
