"""Keepalives from a session controller to its phones, and what tells that a phone is gone.

A NAT forgets a flow that nothing passes for half a minute, and a phone that calls nobody sends nothing. So
each phone is sent something in time: an OPTIONS (RFC 3261 §11), whose answer shows that it lives, or a double
CRLF (RFC 5626 §3.5.1), which shows nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

from nattools.machine import Entropy, Transmit
from nattools.session.flows import Flow, Flows
from nattools.session.settings import PingKind
from nattools.sip.headers import compose_via
from nattools.sip.keepalive import PING
from nattools.sip.message import compose_request

ASK_AGAIN_S = 1.0
"""How long the answer to the first ping of a row is waited for; after each other one twice as long."""

_LONGEST_WAIT_S = 8.0
_UNIQUE_BYTES = 8
_NAME = "\0"  # where in a template goes what nobody can guess: in the branch, and in Call-ID
_ANSWER = re.compile(rb"branch=z9hG4bKping([0-9a-f]{1,12})\.([0-9a-f]{16})", re.IGNORECASE)
_PLAIN = re.compile(r"[!-;=?-~]+")
_FINAL = re.compile(rb"SIP/2\.0 [2-6]")


KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Alive(Generic[KeyT]):
    """A phone has answered for the first time, or again after it was silent."""

    key: KeyT


@dataclass(frozen=True, slots=True)
class Dead(Generic[KeyT]):
    """A phone that used to answer has not answered `pings` in a row; it is pinged no more."""

    key: KeyT
    flow: Flow
    pings: int


class _Watch(Generic[KeyT]):
    """One phone that is pinged."""

    __slots__ = (
        "answers",
        "began_at",
        "due",
        "flow",
        "key",
        "missed",
        "number",
        "parts",
        "unique",
        "until",
        "uri",
    )

    def __init__(
        self, key: KeyT, flow: Flow, uri: bytes, parts: tuple[bytes, bytes, bytes], until: float
    ) -> None:
        self.key = key
        self.flow = flow
        self.uri = uri
        self.parts = parts
        self.until = until
        self.number = 0  # of its pings
        self.answers = False  # whether it ever did
        self.missed = 0  # pings in a row
        self.unique = b""  # of the row of pings whose answer is waited for
        self.began_at = 0.0  # when it was this one's turn last
        self.due = 0.0


class Keepalive(Generic[KeyT]):
    """Pings phones by the flows that they are reached by, a `machine.Machine` but for `receive`.

    Each phone has its own moment in every `interval_s`, so that pings never come in bursts. Only of a phone
    that has answered before does silence mean death: some never answer an OPTIONS. `counters` has `pings` and
    `pongs`, answers that came `late` or were made up, and phones that were found `dead`.
    """

    def __init__(
        self, flows: Flows, kind: PingKind, *, interval_s: float, dead_after: int, entropy: Entropy
    ) -> None:
        """Ping by OPTIONS or CRLF, as `kind` has it; by none nobody is pinged."""
        self.counters: Counter[str] = Counter()
        self._flows = flows
        self._kind = kind
        self._interval_s = interval_s
        self._dead_after = dead_after
        self._entropy = entropy
        self._last = 0
        self._watches: dict[int, _Watch[KeyT]] = {}
        self._ids: dict[KeyT, int] = {}
        self._queue: list[tuple[float, int]] = []
        self._outbox: list[Transmit] = []
        self._events: deque[Alive[KeyT] | Dead[KeyT]] = deque()

    def __len__(self) -> int:
        return len(self._watches)

    def watch(
        self, key: KeyT, flow: Flow, uri: bytes, *, until: float, now: float, is_heard: bool = True
    ) -> None:
        """Ping the phone `key` until then. `uri` is its Contact, and `flow` how it is reached.

        Whoever is pinged already by that flow keeps its turn; by another one it begins anew. A phone that
        was just heard has half an interval's rest: some cannot answer while they wait for an answer (pyVoIP).
        """
        if self._kind is PingKind.NONE:
            return
        known = self._watches.get(self._ids.get(key, 0))
        if known is not None and known.flow == flow and known.uri == uri:
            known.until = until
            known.missed = 0  # who registers lives
            return
        self.unwatch(key)
        self._last += 1
        watch = _Watch(key, flow, uri, self._parts(self._last, flow, uri), until)
        self._watches[self._last] = watch
        self._ids[key] = self._last
        share = (1 + int.from_bytes(self._entropy(2), "big")) / 0x1_0000
        if is_heard:
            share = (1 + share) / 2
        self._set(self._last, watch, now + self._interval_s * share)

    def unwatch(self, key: KeyT) -> None:
        """Ping a phone no more; one that is not watched is passed over."""
        number = self._ids.pop(key, None)
        if number is not None:
            del self._watches[number]

    def receive_response(self, data: bytes, *, now: float) -> bool:
        """Take a response; False where it is not to a ping, but the proxy's."""
        match = _ANSWER.search(data)
        if match is None:
            return False
        number = int(match[1], 16)
        watch = self._watches.get(number)
        if watch is None or not watch.unique or match[2].lower() != watch.unique:
            self.counters["late"] += 1
        elif _FINAL.match(data):
            self.counters["pongs"] += 1
            if not watch.answers or watch.missed:
                self._events.append(Alive(watch.key))
            watch.answers = True
            watch.missed = 0
            watch.unique = b""
            self._rest(number, watch, now)
        return True

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def next_event(self) -> Alive[KeyT] | Dead[KeyT] | None:
        """Take the next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    def timeout_at(self) -> float | None:
        """When the next ping is due, or None."""
        queue = self._queue
        while queue and not self._is_set(queue[0]):
            heappop(queue)
        return queue[0][0] if queue else None

    def handle_timeout(self, *, now: float) -> None:
        """Send the pings that are due, and find dead who does not answer."""
        while (when := self.timeout_at()) is not None and when <= now:
            number = heappop(self._queue)[1]
            watch = self._watches[number]
            if now >= watch.until:
                self.unwatch(watch.key)
            elif watch.unique and watch.answers and watch.missed + 1 >= self._dead_after:
                self.unwatch(watch.key)
                self.counters["dead"] += 1
                self._events.append(Dead(watch.key, watch.flow, self._dead_after))
            else:
                self._ping(number, watch, now)

    def _ping(self, number: int, watch: _Watch[KeyT], now: float) -> None:
        is_again = watch.answers and bool(watch.unique)
        if is_again:
            watch.missed += 1
        else:
            watch.began_at = watch.due
        self.counters["pings"] += 1
        if self._kind is PingKind.CRLF:
            self._outbox.append(Transmit(PING, watch.flow.remote, watch.flow.socket))
            self._rest(number, watch, now)
            return
        watch.unique = watch.unique or self._entropy(_UNIQUE_BYTES).hex().encode()
        watch.number += 1
        before, between, behind = watch.parts
        name = b"%b.%x" % (watch.unique, watch.number)
        data = b"%b%b%b%b%b" % (before, name, between, name, behind)
        self._outbox.append(Transmit(data, watch.flow.remote, watch.flow.socket))
        if watch.answers:
            self._set(number, watch, now + min(ASK_AGAIN_S * 2**watch.missed, _LONGEST_WAIT_S))
        else:
            self._rest(number, watch, now)

    def _rest(self, number: int, watch: _Watch[KeyT], now: float) -> None:
        """Wait for its next turn, which is a whole number of intervals after the last one."""
        turns = max(1, math.floor((now - watch.began_at) / self._interval_s) + 1)
        self._set(number, watch, watch.began_at + turns * self._interval_s)

    def _set(self, number: int, watch: _Watch[KeyT], when: float) -> None:
        watch.due = when
        heappush(self._queue, (when, number))

    def _is_set(self, entry: tuple[float, int]) -> bool:
        watch = self._watches.get(entry[1])
        return watch is not None and watch.due == entry[0]

    def _parts(self, number: int, flow: Flow, uri: bytes) -> tuple[bytes, bytes, bytes]:
        """The OPTIONS to one phone, but for what makes each one its own (RFC 3261 §8.1.1.4, §8.1.1.7)."""
        listener = self._flows.listener(flow.socket)
        if listener is None or self._kind is not PingKind.OPTIONS:
            return b"", b"", b""
        transport = listener.transport
        branch = f"z9hG4bKping{number:x}."
        via = compose_via(listener.public, branch=branch, transport=transport, rport=not listener.is_reliable)
        target = uri.decode("ascii", "replace")
        if not _PLAIN.fullmatch(target):  # what a phone has registered may be odd; it takes any for its own
            target = f"sip:{flow.remote}"
        data = _compose(target, via, self._entropy(_UNIQUE_BYTES).hex(), str(listener.public))
        before, between, behind = data.split(_NAME.encode())
        return before, between, behind


def _compose(uri: str, via: str, tag: str, host: str) -> bytes:
    fields = (
        ("Via", via + _NAME),
        ("Max-Forwards", "70"),
        ("From", f"<sip:{host}>;tag={tag}"),
        ("To", f"<{uri}>"),
        ("Call-ID", f"{_NAME}@{host}"),
        ("CSeq", "1 OPTIONS"),
        ("Accept", "application/sdp"),
    )
    return compose_request("OPTIONS", uri, fields)
