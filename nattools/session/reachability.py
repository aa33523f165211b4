"""Which next hops do not answer, for who would rather tell a phone at once than after half a minute."""

from __future__ import annotations

from collections.abc import Iterable

from nattools.endpoint import Endpoint


class Reachability:
    """When servers that are watched were heard last, and since when they are silent."""

    def __init__(self) -> None:
        self._heard_at: dict[Endpoint, float] = {}
        self._silent_since: dict[Endpoint, float] = {}

    def watch(self, endpoints: Iterable[Endpoint]) -> None:
        """Watch these, and no others; what is known of them stays."""
        self._heard_at = {each: self._heard_at.get(each, float("-inf")) for each in endpoints}
        self._silent_since = {
            each: since for each, since in self._silent_since.items() if each in self._heard_at
        }

    def heard(self, endpoint: Endpoint, *, now: float) -> None:
        """Take note that something came from there."""
        if endpoint in self._heard_at:
            self._heard_at[endpoint] = now
            self._silent_since.pop(endpoint, None)

    def unanswered(self, endpoint: Endpoint, *, sent_at: float, now: float) -> None:
        """Take note that a request was given up; who has said anything since it was sent is not silent."""
        if self._heard_at.get(endpoint, sent_at) < sent_at:
            self._silent_since.setdefault(endpoint, now)

    def unreachable(self, endpoint: Endpoint, *, now: float) -> None:
        """Take note that nothing can be sent there."""
        if endpoint in self._heard_at:
            self._silent_since.setdefault(endpoint, now)

    def silent_since(self, endpoint: Endpoint) -> float | None:
        """Since when it is silent; None where it is not, or nobody knows."""
        return self._silent_since.get(endpoint)
