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
_MOST_MESSAGES = 4  # of one session; more are hardly sent again at the same time


class _Session:
    """What was last sent of one session: `latest` is that description by the phone's own version.

    `version` is the one it was sent with, `highest` the highest that the phone has given itself. `by_message`
    has the versions that its latest messages were sent with.
    """

    __slots__ = ("address", "by_message", "highest", "latest", "version")

    def __init__(self, version: int, sent: Hashable, address: IPAddress | None) -> None:
        self.latest = (version, sent)
        self.version = self.highest = version
        self.by_message: dict[Hashable, int] = {}
        self.address = address


class Origins:
    """The sessions of one phone, by Call-ID and session id."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[tuple[bytes, bytes], _Session] = OrderedDict()

    def __contains__(self, key: tuple[bytes, bytes]) -> bool:
        """Whether a description of that session was sent."""
        return key in self._sessions

    def next(
        self,
        key: tuple[bytes, bytes],
        version: int,
        sent: Hashable,
        address: IPAddress | None,
        *,
        message: Hashable,
    ) -> tuple[int, IPAddress | None]:
        """The version and the address for the o= line of a description that the phone calls `version`.

        `sent` is where it now says that media are received: anything that compares unequal when that has
        changed. `address` would be written today; what was written first is the answer.

        The version rises with every other description, also where the phone goes back to one of before: the
        other side may know the one in between, though the phone believes that it was refused. A `message`
        that is sent again keeps its version.
        """
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = _Session(version, sent, address)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(key)
            if session.address is None:
                session.address = address
        described = (version, sent)
        sent_before = session.by_message.get((message, described))
        if sent_before is not None:
            return sent_before, session.address
        if session.latest != described:
            session.latest = described
            session.version += max(1, version - session.highest)
            session.highest = max(session.highest, version)
        session.by_message[message, described] = session.version
        if len(session.by_message) > _MOST_MESSAGES:
            del session.by_message[next(iter(session.by_message))]
        return session.version, session.address
