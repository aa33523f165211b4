"""Registrations in a Redis server: what they outlive, and what is said of one that is away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from nattools.errors import LocationError
from nattools.session.location import Bindings, ContactBinding
from nattools.session.stores.redis import RedisLocation
from tests.unit.session.stores.redis_server import needs_redis, redis_server

ALICE = "alice@example.com"
KEY = b"nattools:registration:alice@example.com"


@dataclass(frozen=True)
class Decided:
    bindings: Bindings | None


def kept(now: float, *, cseq: int = 1, lasts_s: float = 100.0) -> Decided:
    return Decided((ContactBinding(b"sip:a@192.0.2.1", now + lasts_s, b"call", cseq),))


@needs_redis
class TestServer:
    def test_many_hosts_share_it(self) -> None:
        async def run(url: str) -> None:
            hosts = [await RedisLocation.open(url) for _ in range(3)]
            now = time.monotonic()

            async def add(number: int) -> None:
                added = ContactBinding(b"sip:%d@192.0.2.1" % number, now + 100, b"call", 1)
                await hosts[number % 3].update(ALICE, lambda before: Decided((*before, added)), now=now)

            await asyncio.gather(*map(add, range(9)))
            for host in hosts:
                assert len(await host.bindings(ALICE, now=now)) == 9
                await host.close()

        with redis_server() as server:
            asyncio.run(run(server.url))

    def test_what_expires_leaves_it_by_itself(self) -> None:
        async def run(url: str) -> None:
            location, redis = await RedisLocation.open(url), Redis.from_url(url)
            now = time.monotonic()
            await redis.set("somebody:else", "stays")
            await location.update(ALICE, lambda _: kept(now), now=now)
            assert 98_000 < await redis.pttl(KEY) <= 100_000
            assert list(await location.registrations(now=now)) == [ALICE]
            await location.update(ALICE, lambda _: kept(now, lasts_s=-1.0), now=now)
            assert await redis.exists(KEY) == 0
            assert await redis.exists("somebody:else") == 1
            await location.close()
            await redis.aclose()

        with redis_server() as server:
            asyncio.run(run(server.url))

    def test_it_may_be_killed_and_started_again(self) -> None:
        async def run() -> None:
            location = await RedisLocation.open(server.url)
            now = time.monotonic()
            await location.update(ALICE, lambda _: kept(now), now=now)
            server.kill()
            for _ in range(2):
                with pytest.raises(LocationError, match=f"{server.folder}/socket"):
                    await location.bindings(ALICE, now=now)
            with pytest.raises(LocationError):
                await location.registrations(now=now)
            server.start()
            assert len(await location.bindings(ALICE, now=now)) == 1
            await location.update(ALICE, lambda bindings: kept(now, cseq=bindings[0].cseq + 1), now=now)
            server.kill()
            server.start()  # before anybody noticed
            assert [binding.cseq for binding in await location.bindings(ALICE, now=now)] == [2]
            await location.close()

        with redis_server(is_durable=True) as server:
            asyncio.run(run())

    def test_only_what_was_read_is_exchanged(self) -> None:
        async def run(url: str) -> None:
            location = await RedisLocation.open(url)
            until = time.time() + 100
            assert await location._exchange(ALICE, None, "one", until)
            assert await location._exchange(ALICE, None, "one", until)  # as if the answer had been lost
            assert not await location._exchange(ALICE, None, "two", until)
            assert not await location._exchange(ALICE, "two", None, until)
            assert await location._exchange(ALICE, "one", None, until)
            assert await location._exchange(ALICE, "one", None, until)
            assert not await location._exchange(ALICE, "one", "two", until)
            await location.close()

        with redis_server() as server:
            asyncio.run(run(server.url))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://user:hidden@127.0.0.1:1/0", "127.0.0.1:1 "),
        ("unix://:hidden@/nowhere/socket", "/nowhere/socket "),
        ("http://user:hidden@127.0.0.1", "redis://HOST"),
        ("redis://127.0.0.1:hidden", "redis://HOST"),
    ],
)
def test_a_server_that_is_not_there_is_named_without_its_password(url: str, said: str) -> None:
    with pytest.raises(LocationError, match=said) as caught:
        asyncio.run(RedisLocation.open(url))
    assert "hidden" not in str(caught.value)
