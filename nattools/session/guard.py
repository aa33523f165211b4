"""What a session controller drops unread (size, rate, the marks of scanners), and which calls are too many.

It stands before the parser. Each source has a bucket, and nobody can use these against others: a bucket that
is full again is forgotten, and who is registered or in a call has one for just that address and port, which
is of no use to who does not know both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from nattools.endpoint import Endpoint, IPAddress
from nattools.session.settings import GateSettings

_USUAL_BYTES = 2048  # a larger message counts as several
_MOST_WEIGHT = 1 + 0xFFFF // _USUAL_BYTES
_BURST_S = 4.0  # of requests at the full rate, that may come at once: a house whose phones all start
_SILENCED_S = 300.0  # how long a source goes unheard that has shown itself to be a scanner
_MOST_SILENCED = 4096
_REQUESTS_PER_GUESS = 25  # what a wrong password counts as
_STRANGERS_AT_ONCE = 20  # so many sources are heard at their full rate; beyond them only who is known
_MOST_SOURCES = 65_536
_MAPPED = 0xFFFF  # what stands before an IPv4 address in an IPv6 one (RFC 4291 §2.5.5.2)
_TRUSTED = float("-inf")
_RESPONSE = b"SIP/2.0 "
_RETRY_AFTER = (("Retry-After", "10"),)

KeyT = TypeVar("KeyT")


class Refused(Enum):
    """Why a message is dropped unanswered; the values are the names of counters."""

    TOO_LARGE = "oversized"
    TOO_MANY = "flooding"
    SCANNER = "scanners"


@dataclass(frozen=True, slots=True)
class CallRefusal:
    """How an INVITE is answered that would be one call too many; `headers` go into the response."""

    status_code: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True, eq=False)
class _Attempt:
    """An INVITE that went on, and the calls that came of it."""

    user: str
    household: int
    is_answered: bool = False
    calls: set[Hashable] = field(default_factory=set)


class Guard:
    """Says which messages are dropped before anybody reads them, and which calls are not let through.

    `counters` has how many messages were refused, by the values of `Refused`, how many calls
    (`calls_refused`), and how many wrong passwords came (`guesses`).
    """

    def __init__(self, settings: GateSettings) -> None:
        """Take from `settings` the limits on messages, requests and calls, and the words of scanners."""
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._interval_s = 1 / settings.requests_per_second
        self._burst_s = max(_BURST_S - self._interval_s / 2, 0)  # half a turn before, whatever is rounded
        self._strangers_interval_s = self._interval_s / _STRANGERS_AT_ONCE
        words = b"|".join(re.escape(word.encode().lower()) for word in settings.scanners)
        self._scanner = re.compile(rb"(?<![a-z0-9])(?:%b)" % words) if words else None
        # When each bucket is full again; one that is full has no entry. What was last used before the
        # previous turn is forgotten with its generation.
        self._full_at: dict[int, float] = {}
        self._full_at_before: dict[int, float] = {}
        self._turns_at = 0.0
        self._strangers_full_at = 0.0
        self._silenced: dict[int, float] = {}
        self._known: dict[tuple[int, int], float] = {}
        self._ties: Counter[tuple[int, int]] = Counter()
        self._known_households: Counter[int] = Counter()
        self._attempts: dict[int, _Attempt] = {}
        self._calls: dict[Hashable, tuple[int, tuple[Endpoint, ...]]] = {}
        self._of_all = 0
        self._of_users: Counter[str] = Counter()
        self._of_households: Counter[int] = Counter()

    # --- messages ---

    def refuses(self, data: bytes, source: Endpoint, *, now: float) -> Refused | None:
        """Say why a message that has just come must be dropped unanswered; None where it may be read.

        A large message counts as several. Responses count as requests do, which are the same work to read;
        but not from who is known, since they are as many as were asked for.
        """
        refused = self._judge(data, source, now)
        if refused is not None:
            self.counters[refused.value] += 1
        return refused

    def _judge(self, data: bytes, source: Endpoint, now: float) -> Refused | None:
        if len(data) > self._settings.most_message_bytes:
            return Refused.TOO_LARGE
        place = _place(source)
        full_at = self._known.get(place)
        weight = 1 + len(data) // _USUAL_BYTES
        if full_at is not None:
            if data.startswith(_RESPONSE):
                return None
            if full_at - now > self._burst_s:
                return Refused.TOO_MANY
            if full_at != _TRUSTED:
                self._known[place] = max(full_at, now) + weight * self._interval_s
            return None
        household = _household(source.ip)
        if self._is_scanner(data):
            if household not in self._known_households:
                self._silence(household, now)
            return Refused.SCANNER
        if self._silenced and self._silenced.get(household, now) > now:
            return Refused.SCANNER
        return None if self._has_turn(household, weight, now) else Refused.TOO_MANY

    def _has_turn(self, household: int, weight: int, now: float) -> bool:
        """Take from a stranger's bucket, and from that of all strangers; False where one is empty."""
        if now >= self._turns_at or len(self._full_at) >= _MOST_SOURCES:
            self._turn(now)
        full_at = self._full_at.get(household) or self._full_at_before.get(household, now)
        if full_at - now > self._burst_s or self._strangers_full_at - now > _BURST_S:
            return False
        self._full_at[household] = max(full_at, now) + weight * self._interval_s
        self._strangers_full_at = max(self._strangers_full_at, now) + weight * self._strangers_interval_s
        return True

    def _turn(self, now: float) -> None:
        """Forget the buckets that nobody has used since the turn before; these are full."""
        self._full_at_before, self._full_at = self._full_at, {}
        self._turns_at = now + _BURST_S + (_MOST_WEIGHT + _REQUESTS_PER_GUESS) * self._interval_s

    def _is_scanner(self, data: bytes) -> bool:
        """Whether User-Agent says so, or From as sipvicious writes it ("sipvicious"<sip:100@1.1.1.1>)."""
        if self._scanner is None:
            return False
        lowered = data.lower()
        for name in (b"\nuser-agent", b'\nfrom: "'):
            start = lowered.find(name)
            if start >= 0 and self._scanner.search(
                lowered, start + len(name), lowered.find(b"\n", start + 1)
            ):
                return True
        return False

    def _silence(self, household: int, now: float) -> None:
        self._silenced.pop(household, None)  # the last one is to stand at the end
        self._silenced[household] = now + _SILENCED_S
        oldest = next(iter(self._silenced))
        if len(self._silenced) > _MOST_SILENCED or self._silenced[oldest] <= now:
            del self._silenced[oldest]

    def charge(self, source: Endpoint, *, now: float) -> None:
        """Count a wrong password as many requests, so that nobody tries them all."""
        place, household = _place(source), _household(source.ip)
        debt_s = _REQUESTS_PER_GUESS * self._interval_s
        self.counters["guesses"] += 1
        known = self._known.get(place)
        if known == _TRUSTED:
            return
        if known is not None:
            self._known[place] = max(known, now) + debt_s
        else:
            full_at = self._full_at.get(household) or self._full_at_before.get(household, now)
            self._full_at[household] = max(full_at, now) + debt_s

    # --- who is known ---

    def know(self, source: Endpoint) -> None:
        """Hear this address and port whatever others send: a phone is registered from there, or in a call.

        Holds until `forget` was called as often.
        """
        place = _place(source)
        self._ties[place] += 1
        if self._ties[place] == 1:
            self._known.setdefault(place, 0.0)
            self._known_households[_household(source.ip)] += 1

    def forget(self, source: Endpoint) -> None:
        """Undo one `know`."""
        place = _place(source)
        if self._ties[place] > 1:
            self._ties[place] -= 1
        elif self._ties.pop(place, 0):
            if self._known[place] != _TRUSTED:
                del self._known[place]
            _take_one(self._known_households, _household(source.ip))

    def trust(self, source: Endpoint) -> None:
        """Hear this address and port for good, however much it sends: it is the registrar behind us."""
        self._known[_place(source)] = _TRUSTED

    # --- calls ---

    def may_call(self, user: str, source: Endpoint) -> CallRefusal | None:
        """Why `user` may not begin one more call from `source`; None where that may be.

        `user` is empty for who is not authenticated: then only the source and all calls count. A source that
        is trusted has no limit of its own.
        """
        settings = self._settings
        is_trusted = self._known.get(_place(source)) == _TRUSTED
        refusal = None
        if self._of_all >= settings.most_calls:
            refusal = CallRefusal(503, "Too Many Calls", _RETRY_AFTER)
        elif user and self._of_users[user] >= settings.calls_per_user:
            refusal = CallRefusal(486, "Too Many Calls Of This User")
        elif not is_trusted and self._of_households[_household(source.ip)] >= settings.calls_per_source:
            refusal = CallRefusal(486, "Too Many Calls From This Address")
        if refusal is not None:
            self.counters["calls_refused"] += 1
        return refusal

    def call_began(self, number: int, user: str, source: Endpoint) -> None:
        """Count a call: the INVITE of that number (`Received.number`) goes on."""
        attempt = self._attempts[number] = _Attempt(user, _household(source.ip))
        self._count(attempt)

    def call_answered(self, number: int, call: Hashable, parties: Iterable[Endpoint] = ()) -> None:
        """Count the INVITE as this call from now on; what its forks bring is one call more each.

        `parties` are known as long as it lasts. A number that did not begin is passed over.
        """
        attempt = self._attempts.get(number)
        if attempt is None or call in self._calls:
            return
        if attempt.is_answered:
            self._count(attempt)
        attempt.is_answered = True
        attempt.calls.add(call)
        self._calls[call] = number, tuple(parties)
        for party in self._calls[call][1]:
            self.know(party)

    def call_failed(self, number: int) -> None:
        """Count an INVITE no more that became no call."""
        attempt = self._attempts.get(number)
        if attempt is not None and not attempt.is_answered:
            del self._attempts[number]
            self._discount(attempt)

    def call_ended(self, call: Hashable) -> None:
        """Count a call no more; one that is not known is passed over."""
        number, parties = self._calls.pop(call, (0, ()))
        attempt = self._attempts.get(number)
        if attempt is None:
            return
        attempt.calls.discard(call)
        if not attempt.calls:
            del self._attempts[number]
        self._discount(attempt)
        for party in parties:
            self.forget(party)

    def _count(self, attempt: _Attempt) -> None:
        self._of_all += 1
        self._of_users[attempt.user] += 1
        self._of_households[attempt.household] += 1

    def _discount(self, attempt: _Attempt) -> None:
        self._of_all -= 1
        _take_one(self._of_users, attempt.user)
        _take_one(self._of_households, attempt.household)


def _take_one(counter: Counter[KeyT], key: KeyT) -> None:
    """Count one less, and keep nothing of what was counted to its end."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _place(source: Endpoint) -> tuple[int, int]:
    """An address and port as what is quickly looked up; an IPv4-mapped address is the IPv4 one."""
    number = int(source.ip)
    if number >> 32 == _MAPPED:
        number &= 0xFFFF_FFFF
    return number, source.port


def _household(ip: IPAddress) -> int:
    """The address, or of an IPv6 one the /64, whose rest is the customer's own to choose (as a negative)."""
    number = int(ip)
    if ip.version == 4:
        return number
    return number & 0xFFFF_FFFF if number >> 32 == _MAPPED else ~(number >> 64)
