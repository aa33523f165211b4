"""When mappings are renewed, and what became of them: pure, all of it in `now`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nattools.mapping.model import MappingKey, PortMapping

_PERMANENT_CHECKED_EVERY_S = 1800.0
"""A mapping without a lease goes when the router restarts: it is made again as often as one of an hour is."""
_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 30.0


class ChangeKind(Enum):
    """What happened to a mapping that is kept."""

    RENEWED = "renewed"  # the same external endpoint as before
    CHANGED = "changed"  # another external endpoint
    LOST = "lost"  # the router no longer has it, and does not give it back yet
    RESTORED = "restored"  # there again, after it was lost


@dataclass(frozen=True, slots=True)
class MappingChange:
    """News of a kept mapping: as it is now, as it was before, and why it was looked at."""

    kind: ChangeKind
    mapping: PortMapping
    previous: PortMapping
    reason: str


@dataclass(slots=True)
class _Kept:
    mapping: PortMapping
    due_at: float
    expires_at: float
    reason: str = "half of its lease is over"
    in_doubt: bool = False  # the router said that it forgot everything
    lost: bool = False
    failures: int = 0


class Upkeep:
    """The mappings that are kept. Whoever drives it renews what is `due` and reports how that went.

    A mapping is renewed at half of its lease; after a failure soon again, the waits doubling to 30 s, and in
    any case at the end of the lease.
    """

    def __init__(self) -> None:
        self._kept: dict[MappingKey, _Kept] = {}

    def keep(self, mapping: PortMapping, *, now: float) -> None:
        """Keep `mapping`, made at `now`, from here on."""
        self._kept[mapping.key] = _Kept(mapping, *_times(mapping, now))

    def forget(self, key: MappingKey) -> PortMapping | None:
        """Keep it no more; returns it as it last was."""
        kept = self._kept.pop(key, None)
        return kept.mapping if kept else None

    @property
    def mappings(self) -> list[PortMapping]:
        """Everything that is kept, as it last was."""
        return [kept.mapping for kept in self._kept.values()]

    def timeout_at(self) -> float | None:
        """When something becomes due; None when nothing is kept."""
        return min((kept.due_at for kept in self._kept.values()), default=None)

    def due(self, *, now: float) -> list[PortMapping]:
        """What must be renewed now, first what has the least time left."""
        due = [kept for kept in self._kept.values() if kept.due_at <= now]
        return [kept.mapping for kept in sorted(due, key=lambda kept: kept.expires_at)]

    def failures(self, key: MappingKey) -> int:
        """How often in a row its renewal has failed."""
        kept = self._kept.get(key)
        return kept.failures if kept else 0

    def router_changed(self, reason: str, *, now: float) -> None:
        """The router restarted, has a new address or forgot its mappings: everything is due."""
        for kept in self._kept.values():
            kept.due_at, kept.reason, kept.in_doubt, kept.failures = now, reason, True, 0

    def renewed(self, key: MappingKey, mapping: PortMapping, *, now: float) -> MappingChange | None:
        """The router granted `mapping` in place of what was kept as `key`."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None  # released in the meantime
        self.keep(mapping, now=now)
        kind = ChangeKind.RENEWED
        if mapping.external != kept.mapping.external:
            kind = ChangeKind.CHANGED
        elif kept.lost:
            kind = ChangeKind.RESTORED
        return MappingChange(kind, mapping, kept.mapping, kept.reason)

    def failed(self, key: MappingKey, reason: str, *, now: float) -> MappingChange | None:
        """The router did not renew it; says LOST once, when it cannot be there any more."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        kept.due_at = now + min(_FIRST_RETRY_S * 2**kept.failures, _LONGEST_RETRY_S)
        if now < kept.expires_at:
            kept.due_at = min(kept.due_at, kept.expires_at)  # that it is lost is told when it is
        kept.failures = min(kept.failures + 1, 16)
        if kept.lost or not (kept.in_doubt or now >= kept.expires_at):
            return None
        kept.lost = True
        return MappingChange(ChangeKind.LOST, kept.mapping, kept.mapping, reason)


def _times(mapping: PortMapping, now: float) -> tuple[float, float]:
    """When it is due, and when it is over."""
    if mapping.lease_s is None:
        return now + _PERMANENT_CHECKED_EVERY_S, float("inf")
    return now + mapping.lease_s / 2, now + mapping.lease_s
