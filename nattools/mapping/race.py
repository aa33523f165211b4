"""Which protocol is used when several are asked at once: the best one that answers soon after the first."""

from __future__ import annotations

from collections.abc import Iterable

from nattools.mapping.model import MappingProtocol

GRACE_S = 0.05
"""How long the first answer waits for a better one."""


class Race:
    """Probes of several protocols, all under way; `protocols` are in the order of preference.

    A router that is known to have no public address is worse than any other, whatever its protocol.
    """

    def __init__(self, protocols: Iterable[MappingProtocol], *, grace_s: float = GRACE_S) -> None:
        self._preference = {protocol: place for place, protocol in enumerate(protocols)}
        self._pending = set(self._preference)
        self._ranks: dict[MappingProtocol, tuple[bool, int]] = {}
        self._grace_s = grace_s
        self._first_answer_at: float | None = None

    def answered(self, protocol: MappingProtocol, *, behind_second_nat: bool, now: float) -> None:
        """A router speaks `protocol`."""
        self._pending.discard(protocol)
        self._ranks[protocol] = behind_second_nat, self._preference[protocol]
        if self._first_answer_at is None:
            self._first_answer_at = now

    def failed(self, protocol: MappingProtocol) -> None:
        """No router speaks `protocol`, or the one that does refused what was asked of it."""
        self._pending.discard(protocol)
        self._ranks.pop(protocol, None)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to choose from or to wait for."""
        return not self._pending and not self._ranks

    def timeout_at(self) -> float | None:
        """When the grace ends; None while nothing has answered, or nothing is awaited."""
        if self._first_answer_at is None or not self._pending or not self._ranks:
            return None
        return self._first_answer_at + self._grace_s

    def winner(self, *, now: float) -> MappingProtocol | None:
        """The protocol to use; None while a better one may still answer."""
        if not self._ranks:
            return None
        best = min(self._ranks, key=lambda protocol: self._ranks[protocol])
        could_be_better = any((False, self._preference[p]) < self._ranks[best] for p in self._pending)
        timeout_at = self.timeout_at()
        if could_be_better and timeout_at is not None and now < timeout_at:
            return None
        return best
