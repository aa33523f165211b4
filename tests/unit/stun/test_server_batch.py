"""The server in batches: when it reads so, with the counters and the limiter of the other way."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable

import pytest

from nattools.net.listener import UdpListener
from nattools.stun.limiter import Limiter, Limits, Rate
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from tests.unit.stun.test_server import FULL, SINGLE, WILDCARD, ask, client, first, is_silent, request, serve

np = pytest.importorskip("numpy")

from nattools.net import batch  # noqa: E402 - there is none without numpy
from nattools.stun.batch_limiter import BatchLimiter  # noqa: E402 - it needs numpy

pytestmark = pytest.mark.skipif(not batch.is_available(), reason="Linux on x86-64 or aarch64 only")

FIVE = Limits(*(4 * (Rate(per_s=0.01, at_once=5),)))
TIME_LIMIT_S = 5


def why_one_by_one(addresses: ServerAddresses, limiter: Limiter | None = None) -> str:
    async def run() -> str:
        async with await StunServer.start(addresses, ServerOptions(limiter=limiter)) as server:
            return server.why_one_by_one

    return asyncio.run(run())


async def until(is_so: Callable[[], bool]) -> None:
    """Let the server work until it has counted what it should."""
    async with asyncio.timeout(TIME_LIMIT_S):
        while not is_so():  # noqa: ASYNC110 - nothing tells of a dropped datagram
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("addresses", [SINGLE, FULL, WILDCARD])
def test_all_addresses_are_read_in_batches(addresses: ServerAddresses) -> None:
    assert why_one_by_one(addresses) == ""
    assert why_one_by_one(addresses, BatchLimiter(FIVE, entropy=secrets.token_bytes)) == ""


def test_whatever_keeps_the_server_from_batches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "limiter" in why_one_by_one(SINGLE, Limiter(FIVE, entropy=secrets.token_bytes))
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_LIBRARY", None)
        assert "recvmmsg" in why_one_by_one(SINGLE)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nattools.net.batch", None)
        assert "numpy" in why_one_by_one(SINGLE)


def test_a_server_that_logs_each_request_takes_them_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "nattools")
    assert "logged" in why_one_by_one(SINGLE)


@pytest.mark.parametrize("new", [Limiter, BatchLimiter])
def test_the_limiter_is_asked_about_every_datagram(new: Callable[..., Limiter]) -> None:
    """Garbage, plain requests and others: of 12 the first 5 are looked at."""

    async def run() -> StunServer:
        limiter = new(FIVE, entropy=secrets.token_bytes)
        async with await StunServer.start(FULL, ServerOptions(limiter=limiter)) as server:
            with client() as sock:
                for data in (
                    b"garbage",
                    request(),
                    request((0x3, bytes(4))),
                    b"",
                    request(),
                    *7 * [request()],
                ):
                    sock.sendto(data, first(server))
                await until(lambda: server.answered + server.dropped.total() == 12)
                for _ in range(3):
                    sock.recv(200)
                assert is_silent(sock)
            return server

    server = asyncio.run(run())
    assert server.answered == 3
    assert server.dropped == {DropReason.NOT_STUN: 2, DropReason.RATE_LIMITED: 7}


def test_a_reply_that_the_system_does_not_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch.BatchReader, "reply", lambda *_: 0)

    async def scenario(server: StunServer) -> None:
        assert not server.why_one_by_one
        with client() as sock:
            sock.sendto(request(), first(server))
            await until(lambda: bool(server.dropped))

    server = serve(SINGLE, scenario)
    assert (server.answered, server.dropped) == (0, {DropReason.SEND_FAILED: 1})


def test_plain_requests_do_not_take_the_way_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their replies leave by sendmmsg; those to others one at a time."""
    sent: list[bytes] = []
    send = UdpListener.send

    def spy(self: UdpListener, data: bytes, address: tuple[str, int], **options: object) -> bool:
        sent.append(data)
        return send(self, data, address, **options)  # type: ignore[arg-type]  # the one keyword it has

    monkeypatch.setattr(UdpListener, "send", spy)

    async def scenario(server: StunServer) -> None:
        with client() as sock:
            await ask(sock, first(server), request())
            await ask(sock, first(server), request(classic=True))
            await ask(sock, first(server), request((0x3, bytes(4))))
            await ask(sock, first(server), request((0x8022, b"some library")))
            assert not sent
            reply, _ = await ask(sock, first(server), request((0x3, bytes((0, 0, 0, 2)))))
            assert sent == [reply]

    assert serve(FULL, scenario).answered == 5
