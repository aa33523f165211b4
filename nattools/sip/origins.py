"""The o= line of each description that was sent, kept true when something else has changed it (RFC 3264 §8).

A peer takes notice of a new description only where the version in its o= line has risen, and everything else
in that line must stay the same for the whole session. A phone knows nothing of the public endpoints that are
written into its descriptions. So when they change, the version has to rise without it, and stay ahead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from nattools.endpoint import IPAddress

MOST_SESSIONS = 512
"""So many are remembered, the latest."""


class _Session:
    """What was last sent of one session: `ahead` is how much its versions are above the phone's."""

    __slots__ = ("address", "ahead", "sent", "version")

    def __init__(self, version: int, sent: Hashable, address: IPAddress | None) -> None:
        self.version = version
        self.sent = sent
        self.address = address
        self.ahead = 0


class Origins:
    """The sessions of one phone, by Call-ID and session id."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[tuple[bytes, bytes], _Session] = OrderedDict()

    def __contains__(self, key: tuple[bytes, bytes]) -> bool:
        """Whether a description of that session was sent."""
        return key in self._sessions

    def next(
        self, key: tuple[bytes, bytes], version: int, sent: Hashable, address: IPAddress | None
    ) -> tuple[int, IPAddress | None]:
        """The version and the address for the o= line of a description that the phone calls `version`.

        `sent` is where it now says that media are received: anything that compares unequal when that has
        changed. `address` would be written today; what was written first is the answer.
        """
        session = self._sessions.get(key)
        if session is None:
            self._sessions[key] = _Session(version, sent, address)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return version, address
        self._sessions.move_to_end(key)
        if session.address is None:
            session.address = address
        if sent != session.sent:
            session.sent = sent
            session.ahead = max(session.ahead, session.version + 1 - version)
        session.version = max(session.version, version + session.ahead)
        return version + session.ahead, session.address
