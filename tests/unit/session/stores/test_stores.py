"""What every place for registrations does, in memory, in a file and in a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.session.location import Bindings, ContactBinding, Location, MemoryLocation
from nattools.session.stores.redis import RedisLocation
from nattools.session.stores.sqlite import SqliteLocation
from tests.unit.session.registering import Phone, contacts, register, registrar
from tests.unit.session.stores.redis_server import RedisServer, needs_redis, redis_server

Open = Callable[[], Awaitable[Location]]
ALICE = "alice@example.com"
FULL = ContactBinding(
    b"sip:\xff@192.0.2.1;x=y",
    1e6,
    b"call",
    2**32 - 1,
    b';+sip.instance="<urn:a>"',
    0.25,
    (b"<sip:p1;lr>", b"<sip:p2;lr>"),
    Endpoint.parse("[2001:db8::1]:40000"),
    "udp-1",
    "urn:a",
    7,
    b"sip:\xfe@203.0.113.5;natgate=a~example.com",
)
PLAIN = ContactBinding(b"sip:a@192.0.2.1", 1e6, b"call", 1)


@dataclass(frozen=True)
class Decided:
    bindings: Bindings | None


def always(*bindings: ContactBinding) -> Callable[[Bindings], Decided]:
    return lambda _: Decided(bindings)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=needs_redis)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the place, the same each time, except memory, which is another each time."""

    async def memory() -> Location:
        return MemoryLocation()

    async def sqlite() -> Location:
        return await SqliteLocation.open(tmp_path / "registrations")

    if request.param == "redis":
        url: str = request.getfixturevalue("server").url

        async def redis() -> Location:
            location = await RedisLocation.open(url)
            for name in await location.registrations(now=0.0):
                await location.update(name, always(), now=0.0)
            return location

        return redis
    return memory if request.param == "memory" else sqlite


def rounded(bindings: Bindings) -> list[ContactBinding]:
    """With times to the second: between two clocks they lose the last digits."""
    return [replace(each, expires_at=round(each.expires_at)) for each in bindings]


def run(place: Open, test: Callable[[Location], Awaitable[None]]) -> None:
    async def inner() -> None:
        location = await place()
        try:
            await test(location)
        finally:
            await location.close()

    asyncio.run(inner())


def test_all_that_is_known_of_a_contact_is_kept(place: Open) -> None:
    async def test(location: Location) -> None:
        now = time.monotonic()
        full, plain = (replace(each, expires_at=now + 100) for each in (FULL, PLAIN))
        await location.update("\udcff@example.com", always(full, plain), now=now)
        kept = await location.bindings("\udcff@example.com", now=now)
        assert rounded(kept) == rounded((full, plain))
        assert list(await location.registrations(now=now)) == ["\udcff@example.com"]

    run(place, test)


def test_an_update_sees_what_the_one_before_left(place: Open) -> None:
    async def test(location: Location) -> None:
        now, seen = time.monotonic(), list[Bindings]()
        kept = replace(PLAIN, expires_at=now + 100)

        def decide(bindings: Bindings) -> Decided:
            seen.append(bindings)
            return Decided((*bindings, kept)[:2])

        for _ in range(3):
            await location.update(ALICE, decide, now=now)
        assert [len(bindings) for bindings in seen] == [0, 1, 2]
        assert (await location.update(ALICE, lambda _: Decided(None), now=now)).bindings is None
        assert len(await location.bindings(ALICE, now=now)) == 2
        await location.update(ALICE, always(), now=now)
        await location.update(ALICE, always(), now=now)
        assert await location.bindings(ALICE, now=now) == ()
        assert dict(await location.registrations(now=now)) == {}

    run(place, test)


def test_what_expires_is_not_seen_again(place: Open) -> None:
    async def test(location: Location) -> None:
        now = time.monotonic()
        early, late = replace(PLAIN, expires_at=now + 50), replace(PLAIN, expires_at=now + 100)
        await location.update(ALICE, always(early, late), now=now)
        assert len(await location.bindings(ALICE, now=now + 49)) == 2
        assert len(await location.bindings(ALICE, now=now + 51)) == 1
        assert await location.bindings(ALICE, now=now + 101) == ()
        assert dict(await location.registrations(now=now + 101)) == {}

    run(place, test)


def test_updates_at_the_same_time_lose_nothing(place: Open) -> None:
    async def test(location: Location) -> None:
        now = time.monotonic()

        async def add(number: int) -> None:
            added = replace(PLAIN, contact=b"sip:%d@192.0.2.1" % number, expires_at=now + 100)
            await location.update(ALICE, lambda bindings: Decided((*bindings, added)), now=now)

        await asyncio.gather(*map(add, range(12)))
        assert len(await location.bindings(ALICE, now=now)) == 12

    run(place, test)


def test_a_registrar_registers_in_it(place: Open) -> None:
    async def test(location: Location) -> None:
        now = time.monotonic()
        phone = Phone(registrar(), location)
        response = await phone.answer(register("<sip:a@192.0.2.1>", "<sip:a@192.0.2.2>"), now=now)
        assert contacts(response) == {"sip:a@192.0.2.1": 3600, "sip:a@192.0.2.2": 3600}
        response = await phone.answer(register("<sip:a@192.0.2.1>;expires=0", cseq=3), now=now + 600)
        assert contacts(response) == {"sip:a@192.0.2.2": 3000}
        late = await phone.answer(register("<sip:a@192.0.2.2>", cseq=1), now=now + 600)
        assert late.status_code == 500

    run(place, test)
