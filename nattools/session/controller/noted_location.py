"""A place for registrations that tells of each change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nattools.session.location import Bindings, Decision, DecisionT, Location


class NotedLocation:
    """The `Location` it is given, each change of which is noted by somebody."""

    def __init__(self, location: Location, note: Callable[[str, Decision], None]) -> None:
        """`note` is called with an address-of-record and the decision once its bindings were kept."""
        self._location = location
        self._note = note

    async def bindings(self, address_of_record: str, *, now: float) -> Bindings:
        """The bindings that have not expired."""
        return await self._location.bindings(address_of_record, now=now)

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        """Have `decide` look at the bindings, keep what it decides, and have that noted."""
        decision = await self._location.update(address_of_record, decide, now=now)
        if decision.bindings is not None:
            self._note(address_of_record, decision)
        return decision

    async def registrations(self, *, now: float) -> Mapping[str, Bindings]:
        """All addresses-of-record that have bindings, and these."""
        return await self._location.registrations(now=now)

    async def close(self) -> None:
        """Let go of files and connections."""
        await self._location.close()
