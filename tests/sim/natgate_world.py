"""A natgate, or one in front of another, and telephones that live at random; and what is left in the end."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from nattools.endpoint import Endpoint
from nattools.session.server import SessionServer
from nattools.session.settings import GateSettings, parse_listen
from tests.sim.strict_leg import Leg
from tests.sim.strict_line import World
from tests.sim.strict_phone import Phone

USERS = tuple(f"user{number}" for number in range(8))
_PHONES = 12
_STREAM_PHONES = (3, 7, 10)
_REBOUND_S = 8.0
_SILENT_S = 1.0
_UNLIMITED = 100_000
_LONGEST_S = 2400.0  # registrations last 600 s, calls on hold 1800 s without media

_KEPT = {
    "counters": "numbers",
    "_counters": "numbers",
    "_counted": "numbers",
    "_free": "ports that rest are taken from these",
    "_resting": "ports that were used, and wait",
    "_counts": "nonces until they are stale, looked at when the next is made",
    "_until": "how long an address is slowed down for wrong passwords, likewise",
    "_full_at": "the buckets of sources, likewise",
    "_full_at_before": "likewise",
    "_tried_at": "when a silent registrar was tried, one for each of its addresses",
    "_bindings": "of phones that came no more, until somebody asks for the user",
    "_exchanges": "registrations that were refused, until the next one",
    "_settings": "what does not change",
    "settings": "what does not change",
}
"""What may have more in it at the end than at the beginning, and why."""


@asynccontextmanager
async def gates(directory: Path, upstream: str) -> AsyncIterator[list[SessionServer]]:
    """A registrar; with `upstream`, a transport, in front of it another natgate, which comes first."""
    users = directory / "users.toml"
    users.write_text("[users]\n" + "".join(f'{name} = "{name}"\n' for name in USERS))
    users.chmod(0o600)
    now = asyncio.get_running_loop().time
    limits: dict[str, Any] = {
        "requests_per_second": float(_UNLIMITED),
        "calls_per_user": _UNLIMITED,
        "calls_per_source": _UNLIMITED,
    }
    async with AsyncExitStack() as exits:
        address = "127.0.0.2:0" if upstream else "127.0.0.1:0"
        home = await SessionServer.start(
            GateSettings(
                listen=parse_listen(address),
                registrar=True,
                users=users,
                domains=("127.0.0.1",) if upstream else (),
                **limits,
            ),
            now=now,
        )
        await exits.enter_async_context(home)
        if not upstream:
            yield [home]
            return
        words = f"sip:{place(home, upstream)};transport={upstream.lower()}"
        front = await SessionServer.start(
            GateSettings(listen=parse_listen("127.0.0.1:0"), upstream=words, **limits), now=now
        )
        await exits.enter_async_context(front)
        yield [front, home]


def place(server: SessionServer, transport: str) -> Endpoint:
    """Where it listens."""
    return next(it.local for it in server.listeners if it.transport == transport)


def phones_of(world: World, server: SessionServer) -> list[Phone]:
    """Telephones of all users, of some two; some are behind NATs, some use TCP."""
    udp, tcp = place(server, "UDP"), place(server, "TCP")
    found = []
    for number in range(_PHONES):
        is_stream = number in _STREAM_PHONES
        user = USERS[number % len(USERS)]
        gate = tcp if is_stream else udp
        is_natted = not is_stream and number % 2 == 0
        found.append(Phone(world, user, number, gate, str(udp), is_stream=is_stream, is_natted=is_natted))
    return found


async def live(phone: Phone, until: float, breaking: float) -> None:
    """Do this and that, at random times."""
    world = phone.world
    random = world.random
    await asyncio.sleep(random.random() * 2)
    phone.register()
    while True:
        await asyncio.sleep(random.expovariate(1 / 5))
        if world.now() >= until:
            return
        chance = random.random()
        if phone.line.is_gone:
            phone.is_silent = False
            phone.rebind()
        elif chance < 0.65:
            if len(phone.calling) < 3:
                phone.call(random.choice((*USERS, "nobody")), is_delayed=random.random() < 0.2)
        elif chance < 0.8:
            phone.register()
        elif chance < 0.85:
            phone.register(0)
            world.loop.call_later(5.0, phone.come_back)
        elif chance < 0.85 + breaking:
            phone.crash()
        elif chance < 0.85 + 2 * breaking:
            phone.rebind()


def listen(world: World, phones: list[Phone]) -> None:
    """Complain of each call whose two sides do not hear each other though they should."""
    legs: dict[str, list[Leg]] = {}
    for phone in phones:
        phone.line.forget_old()
        for leg in phone.legs.values():
            legs.setdefault(leg.call_id, []).append(leg)
    for those in legs.values():
        for leg in those:
            for other in those:
                if leg.local_tag.encode() == other.remote_tag and leg is not other:
                    _listen_to(world, leg, other)


def _listen_to(world: World, leg: Leg, other: Leg) -> None:
    now = world.now()
    rebound_at = max(leg.phone.line.rebound_at, other.phone.line.rebound_at)
    if not (leg.is_settled() and other.is_settled()) or now - rebound_at < _REBOUND_S:
        return
    for number, (ours, theirs) in enumerate(zip(leg.streams, other.streams, strict=False)):
        if not (ours.is_heard and theirs.is_sent) or (leg.phone.is_natted and not ours.is_sent):
            continue  # a phone behind a NAT that sends nothing cannot be found
        heard_at = ours.heard.get(other.local_tag.encode(), float("-inf"))
        if now - heard_at > _SILENT_S:
            leg.wrong(f"hears nothing of {other.phone.name} in stream {number} since {heard_at:.2f}")
        else:
            world.counters["audible"] += 1


async def walk(world: World, phones: list[Phone], *, seconds: float, breaking: float) -> None:
    """Let the phones live, then hang up, and then be gone for hours."""
    until = world.now() + seconds
    lives = [asyncio.ensure_future(live(phone, until, breaking)) for phone in phones]
    while world.now() < until + 150.0:
        await asyncio.sleep(1.0)
        listen(world, phones)
    await asyncio.gather(*lives)
    for phone in phones:
        for leg in [*phone.legs.values(), *phone.calling.values()]:
            leg.wrong(f"was not over (calling: {leg.call_id in phone.calling})")
        if not phone.line.is_gone:
            phone.register(0)
    await asyncio.sleep(50.0)
    world.is_open = False
    for phone in phones:
        phone.crash()
    await asyncio.sleep(_LONGEST_S)


def belongings(server: SessionServer) -> Counter[str]:
    """How much is in each container that a natgate holds, by the names that lead there."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[object, str]] = [(server, "server")]
    while waiting:
        thing, name = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            found[name] += len(thing)
            waiting += [(value, f"{name}[]") for value in thing.values()]
        elif isinstance(thing, list | set | frozenset | deque):
            found[name] += len(thing)
            waiting += [(value, f"{name}[]") for value in thing]
        elif type(thing).__module__.startswith("nattools."):
            waiting += [(value, f"{name}.{key}") for key, value in _attributes(thing) if key not in _KEPT]
    return found


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for key in [slots] if isinstance(slots, str) else slots:
            if hasattr(thing, key):
                yield key, getattr(thing, key)
