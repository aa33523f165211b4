"""Server transactions (RFC 3261 §17.2, RFC 6026), the names of transactions, and when each wants the time.

Client transactions are those of `nattools.sip.transaction`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from enum import Enum
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from nattools.endpoint import IPAddress
from nattools.errors import DecodeError
from nattools.sip.message import SipMessage
from nattools.sip.transaction import T1_S, T2_S, TIMEOUT_S

T4_S = 5.0
"""How long a message may stay in the network (RFC 3261 §17.1.2.2)."""

MAGIC_COOKIE = b"z9hG4bK"
"""What a branch begins with that names one transaction alone (RFC 3261 §8.1.1.7)."""


class ServerKey(NamedTuple):
    """What names a server transaction (RFC 3261 §17.2.3). CANCEL has its own, ACK that of its INVITE."""

    name: tuple[Hashable, ...]
    method: str


def server_key(request: SipMessage, source: IPAddress | None = None, method: str = "") -> ServerKey:
    """The name of the transaction that `request` belongs to, or of its like of another `method`.

    From another `source` it is none of it: nobody cancels what others have sent. Clients of RFC 2543 have no
    branch that names it; Via, tags, Call-ID and CSeq do for them. Raises `DecodeError` where the top Via is
    missing or malformed.
    """
    via = request.top_via
    if via is None:
        raise DecodeError("a request without a Via")
    method = method or request.method
    if method == "ACK":
        method = "INVITE"
    branch = via.branch
    number = None if request.cseq is None else request.cseq[0]
    if branch is not None and branch.startswith(MAGIC_COOKIE):
        # pyVoIP 1.6 repeats a challenged INVITE on the branch that it had, with another number.
        return ServerKey((branch.lower(), via.host.lower(), via.port, source, number), method)
    place = (request.call_id, request.from_tag, number)
    return ServerKey((via.host.lower(), via.port, source, branch, *place), method)


class _State(Enum):
    PROCEEDING = "proceeding"  # no final response yet; "trying" too
    COMPLETED = "completed"
    CONFIRMED = "confirmed"  # an INVITE was refused, and the ACK is here
    ACCEPTED = "accepted"  # an INVITE had a 2xx, which its two ends see to themselves
    TERMINATED = "terminated"


class ServerTransaction:
    """One request that has come, until nobody sends it any more: retransmissions get the response of before.

    Over UDP a refusal of an INVITE is sent again until its ACK is here. What must be sent is in `responses`.
    """

    def __init__(self, request: SipMessage, *, is_reliable: bool) -> None:
        self._number = request.cseq
        self._is_invite = request.method == "INVITE"
        self._is_reliable = is_reliable
        self._state = _State.PROCEEDING
        self._last: bytes | None = None
        self._outbox: list[bytes] = []
        self._interval_s = T1_S
        self._due: float | None = None
        self._ends_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it can be forgotten."""
        return self._state is _State.TERMINATED

    @property
    def is_answered(self) -> bool:
        """Whether a final response was sent."""
        return self._state is not _State.PROCEEDING

    def responses(self) -> list[bytes]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def receive(self, request: SipMessage, *, now: float) -> bool:
        """Take a request with this transaction's name; False for an ACK that must go on to the callee."""
        if request.method == "ACK":
            if request.cseq is None or self._number is None or request.cseq[0] != self._number[0]:
                return False  # of a later INVITE, by a client that uses a branch twice
            if self._state is _State.COMPLETED:
                self._state = _State.CONFIRMED
                self._due = None
                self._end(now, 0 if self._is_reliable else T4_S)
            return self._state is not _State.ACCEPTED
        if self._last is not None and self._state in (_State.PROCEEDING, _State.COMPLETED):
            self._outbox.append(self._last)
        return True

    def respond(self, response: bytes, status_code: int, *, now: float) -> bool:
        """Send a response to the client; False where it comes too late for that.

        After a 2xx to an INVITE more of them may follow, of other phones or sent again (RFC 6026 §7.1).
        """
        if self._state is _State.ACCEPTED and 200 <= status_code < 300:
            self._outbox.append(response)
            return True
        if self._state is not _State.PROCEEDING:
            return False
        self._last = response
        self._outbox.append(response)
        if status_code < 200:
            return True
        if self._is_invite and status_code < 300:
            self._state = _State.ACCEPTED
            self._end(now, TIMEOUT_S)
        elif self._is_invite:
            self._state = _State.COMPLETED
            self._due = None if self._is_reliable else now + self._interval_s
            self._end(now, TIMEOUT_S)
        else:
            self._state = _State.COMPLETED
            self._end(now, 0 if self._is_reliable else TIMEOUT_S)
        return True

    def abandon(self, *, now: float) -> None:
        """Answer it no more, and for as long as it may be sent again absorb it."""
        if self._state is _State.PROCEEDING:
            self._state = _State.COMPLETED
            self._last = None
            self._end(now, TIMEOUT_S)

    def _end(self, now: float, after_s: float) -> None:
        self._ends_at = now + after_s
        if not after_s:
            self._state = _State.TERMINATED

    def timeout_at(self) -> float | None:
        """When it wants the time next; None while it waits for a response, and when it is over."""
        if self.is_over or self._ends_at is None:
            return None
        return self._ends_at if self._due is None else min(self._due, self._ends_at)

    def handle_timeout(self, *, now: float) -> None:
        """Send a refusal again, or end, if that is due."""
        if self._ends_at is not None and now >= self._ends_at:
            self._state = _State.TERMINATED
            self._due = None
        elif self._due is not None and now >= self._due and self._last is not None:
            self._outbox.append(self._last)
            self._interval_s = min(2 * self._interval_s, T2_S)
            self._due = now + self._interval_s


class Alarms:
    """When each of many things wants the time; of each the last moment that was set counts."""

    def __init__(self) -> None:
        self._when: dict[Hashable, float] = {}
        self._queue: list[tuple[float, int, Hashable]] = []
        self._order = count()

    def set(self, key: Hashable, when: float | None) -> None:
        """Have `key` be due at `when`, or, by None, never."""
        if when is None:
            self._when.pop(key, None)
        elif self._when.get(key) != when:
            self._when[key] = when
            heappush(self._queue, (when, next(self._order), key))

    def next(self) -> float | None:
        """When the first is due, or None."""
        queue = self._queue
        while queue and self._when.get(queue[0][2]) != queue[0][0]:
            heappop(queue)
        return queue[0][0] if queue else None

    def due(self, *, now: float) -> Iterator[Hashable]:
        """Take those that are due at `now`, in their order; what is set meanwhile waits for the next call."""
        found = []
        while (when := self.next()) is not None and when <= now:
            key = heappop(self._queue)[2]
            del self._when[key]
            found.append(key)
        return iter(found)
