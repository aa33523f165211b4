"""The requests that a proxy has sent on: by the names of their transactions, and by their connections."""

from __future__ import annotations

from collections.abc import Iterable

from nattools.session.context import Context
from nattools.session.flows import Flow
from nattools.session.forking import Branch

ClientKey = tuple[bytes, str]
"""What names a client transaction: its branch and its method (RFC 3261 §17.1.3)."""


class Clients:
    """Client transactions, from when a request is sent until nothing can come of it any more."""

    def __init__(self) -> None:
        self._known: dict[ClientKey, tuple[Context | None, Branch]] = {}
        self._by_connection: dict[Flow, set[ClientKey]] = {}

    def add(self, key: ClientKey, context: Context | None, branch: Branch, *, is_reliable: bool) -> None:
        """Keep a request's branch, and its context unless it is the proxy's own; by a connection or not."""
        self._known[key] = context, branch
        if is_reliable:
            self._by_connection.setdefault(branch.flow, set()).add(key)

    def find(self, key: ClientKey) -> tuple[Context | None, Branch | None]:
        """What was kept under that name; (None, None) where nothing was."""
        return self._known.get(key, (None, None))

    def remove(self, key: ClientKey) -> None:
        """Forget it."""
        _, branch = self._known.pop(key)
        keys = self._by_connection.get(branch.flow, set())
        keys.discard(key)
        if not keys:
            self._by_connection.pop(branch.flow, None)

    def unheard(self, flow: Flow) -> list[ClientKey]:
        """Those that went by a connection of `flow`, and that nothing has come back to."""
        keys = self._by_connection.get(flow, set())
        return [key for key in keys if self._known[key][1].is_unheard]

    def sent_for(self, branches: Iterable[bytes], method: str) -> Context | None:
        """The context that one of these branches belongs to: that of the request as it came here before."""
        found = (self.find((branch, method))[0] for branch in branches)
        return next((context for context in found if context is not None), None)
