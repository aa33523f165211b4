"""What the stores have in common: one record for each address-of-record, exchanged if nobody else did.

A record is read, decided on, and written only where it is still the one that was read; else it is read again.
So no lock is held while somebody thinks, and hosts that share a store need not know of each other.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from nattools.errors import DecodeError, LocationError
from nattools.session.location import Bindings, DecisionT, encode_bindings, parse_bindings, unexpired

_LOG = logging.getLogger(__name__)
_MOST_TRIES = 32


class RecordLocation(ABC):
    """A `Location` over a store of texts, whose `now` is that of `time.monotonic`.

    `expires_at` is kept in Unix time, for who reads it after a restart or on another host.
    """

    async def bindings(self, address_of_record: str, *, now: float) -> Bindings:
        """The bindings that have not expired. Raises `LocationError`."""
        return self._parse(address_of_record, await self._read(address_of_record), now)

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        """Have `decide` look at the bindings that have not expired, and keep what it decides.

        Raises `LocationError`, also where others change the same address-of-record without end.
        """
        for _ in range(_MOST_TRIES):
            before = await self._read(address_of_record)
            decision = decide(self._parse(address_of_record, before, now))
            after = decision.bindings
            if after is None:
                return decision
            offset_s = _clock_offset_s()
            record = encode_bindings(after, clock_offset_s=offset_s) if after else None
            until = max((binding.expires_at for binding in after), default=now) + offset_s
            if await self._exchange(address_of_record, before, record, until):
                return decision
        raise LocationError(
            f"{self} could not keep the registration of {address_of_record!r}: "
            f"others changed it {_MOST_TRIES} times meanwhile; see who registers it over and over"
        )

    async def registrations(self, *, now: float) -> Mapping[str, Bindings]:
        """All addresses-of-record that have bindings, and these. Raises `LocationError`."""
        found = {name: self._parse(name, record, now) for name, record in await self._read_all()}
        return {name: kept for name, kept in found.items() if kept}

    def _parse(self, address_of_record: str, record: str | None, now: float) -> Bindings:
        if record is None:
            return ()
        try:
            return unexpired(parse_bindings(record, clock_offset_s=_clock_offset_s()), now=now)
        except DecodeError as error:
            _LOG.warning("%s: the registration of %r is taken for none: %s", self, address_of_record, error)
            return ()

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and connections; what was kept stays."""

    @abstractmethod
    async def _read(self, address_of_record: str) -> str | None:
        """The record of an address-of-record, or None."""

    @abstractmethod
    async def _read_all(self) -> Iterable[tuple[str, str]]:
        """All addresses-of-record and their records."""

    @abstractmethod
    async def _exchange(
        self, address_of_record: str, before: str | None, after: str | None, until: float
    ) -> bool:
        """Put `after` in place of `before`, None meaning no record; False where another one stands there.

        It may be dropped at `until`, in Unix time.
        """


def _clock_offset_s() -> float:
    """What turns the monotonic clock into Unix time; another one once the clock was set."""
    return time.time() - time.monotonic()
