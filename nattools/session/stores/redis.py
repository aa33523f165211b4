"""Registrations in a Redis server (6.2 or later), which many hosts share. Needs the `redis` extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nattools.errors import LocationError
from nattools.session.stores.records import RecordLocation

_PREFIX = b"nattools:registration:"
_PATIENCE_S = 2.0  # for connecting and for an answer, each
_RETRIES = 1  # a connection that lay idle may be dead, as after a restart of the server
_BATCH = 500
# What is there already counts as exchanged: the answer to a first try may have been lost.
_EXCHANGE = """
local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[2] then return 1 end
if found ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
end
return 1
"""


class RedisLocation(RecordLocation):
    """Bindings in a Redis server, one key an address-of-record; made by `open`.

    Hosts that share it need clocks that agree to a second or so: when bindings expire is kept in Unix time.
    How much a crash of the server loses is the server's to say (its appendonly and save).
    """

    def __init__(self, redis: Redis, name: str) -> None:
        """Take a connection that works; `name` is what messages call it, without any password."""
        self._redis = redis
        self._name = name

    @classmethod
    async def open(cls, url: str) -> RedisLocation:
        """Connect to `redis://[[user]:password@]host[:port][/db]`, or `rediss:` or `unix:`.

        Raises `LocationError`, which does not repeat the password.
        """
        try:
            redis = Redis.from_url(
                url,
                socket_timeout=_PATIENCE_S,
                socket_connect_timeout=_PATIENCE_S,
                retry=Retry(NoBackoff(), _RETRIES),
            )
        except ValueError as error:
            raise LocationError(
                "the address of the Redis server cannot be read: redis://HOST[:PORT][/DB] is expected, or "
                "rediss:// or unix://"
            ) from error
        where = redis.connection_pool.connection_kwargs
        place = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        location = cls(redis, f"the Redis server at {place}")
        try:
            with location._explained():
                await redis.ping()
        except LocationError:
            await redis.aclose()
            raise
        return location

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _read(self, address_of_record: str) -> str | None:
        with self._explained():
            return _text(await self._redis.get(_key(address_of_record)))

    async def _read_all(self) -> Iterable[tuple[str, str]]:
        found: dict[str, str] = {}
        cursor = 0
        with self._explained():
            while True:
                cursor, keys = await self._redis.scan(cursor, match=_PREFIX + b"*", count=_BATCH)
                for key, value in zip(keys, await self._redis.mget(keys) if keys else (), strict=True):
                    record = _text(value)
                    if record is not None and isinstance(key, bytes):  # it may have gone meanwhile
                        found[key.removeprefix(_PREFIX).decode("utf-8", "surrogateescape")] = record
                if cursor == 0:
                    return found.items()

    async def _exchange(
        self, address_of_record: str, before: str | None, after: str | None, until: float
    ) -> bool:
        until_ms = str(round(until * 1000))
        with self._explained():
            done = await self._redis.eval(
                _EXCHANGE, 1, _key(address_of_record), before or "", after or "", until_ms
            )
        return bool(done)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise LocationError(
                f"{self} does not answer as it should: {error}; see that it runs, lets this host in, and has "
                "memory left"
            ) from error

    def __str__(self) -> str:
        return self._name


def _key(address_of_record: str) -> bytes:
    return _PREFIX + address_of_record.encode("utf-8", "surrogateescape")


def _text(value: object) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None
