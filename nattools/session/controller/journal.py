"""The journal of natgate: one line a call at its end, one line a registration that is new or gone.

A line is `key=value` text, and its record has the same values as a mapping in `fields`, for a log in JSON.
What phones wrote stands in it with control characters escaped, so that no line can look like two. No header
that may hold a password or its hash is ever read.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.dialogs import Call
from nattools.session.events import CallFailed, CallStarted, Received
from nattools.session.location import Bindings, ContactBinding, Decision, Removal
from nattools.session.status import CallState, CallStatus, StreamStatus
from nattools.sip.headers import NameAddress
from nattools.words import printable

_log = logging.getLogger(__name__)

_MOST_ASKED = 65_536  # calls that ring; an INVITE that was dropped unanswered leaves its entry behind
_MOST_SHOWN = 200
_PLAIN = re.compile(
    r"[!#-<>-\[\]-~]+"
)  # what needs no quotes: printable ASCII without blank, quotes, = and \
_CHALLENGES = (401, 407)
_MOST_STRANGERS_LINES = 50  # a second; who has no password can try as often as it likes

FieldValue = str | int | float | None
StreamsOf = Callable[[bytes], tuple[StreamStatus, ...]]

_Key = tuple[bytes, bytes, bytes]


@dataclass(slots=True)
class _Asked:
    """The INVITEs of one Call-ID that are under way: who calls whom, since when, by the proxy's numbers."""

    caller: bytes
    callee: bytes
    source: Endpoint
    since: float
    numbers: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Answered:
    """A call that was answered. `ended_by` is empty until somebody ends it.

    `ended_at` and `read` are set where it has ended: its streams can be asked till they have closed.
    """

    call_id: bytes
    caller: bytes
    callee: bytes
    source: Endpoint
    setup_s: float
    since: float
    ended_by: str = ""
    why: str = ""
    ended_at: float = 0.0
    read: Callable[[], tuple[StreamStatus, ...]] | None = None


class Journal:
    """What is known of calls and registrations for the log, and for the status."""

    def __init__(
        self,
        *,
        streams_of: StreamsOf = lambda _call_id: (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`streams_of` tells what the relay counted of a Call-ID, as long as the call is there."""
        self._streams_of = streams_of
        self._now = now
        self._asked: dict[bytes, _Asked] = {}
        self._answered: dict[_Key, _Answered] = {}
        self._registered: dict[str, Bindings] = {}
        self._look_at: float | None = None
        self._counted: Counter[str] = Counter()
        self._strangers_lines = 0

    def request(self, received: Received) -> None:
        """Take note of a request before it is decided about: who calls whom, and who hangs up."""
        request = received.request
        if request.method == "INVITE":
            if request.to_tag is None and received.earlier is None:
                self._ask(received)
        elif request.method == "BYE":
            found = self._find(request.call_id, request.from_tag or b"", request.to_tag or b"")
            if found is not None and not found[0].ended_by:
                found[0].ended_by = found[1]

    def hung_up(self, call: Call, why: str) -> None:
        """Note that natgate itself is about to hang up that call, for that reason."""
        answered = self._answered.get(_key(call))
        if answered is not None and not answered.ended_by:
            answered.ended_by, answered.why = "natgate", why

    def take(self, event: CallStarted | CallFailed) -> None:
        """Take what the proxy tells of a call."""
        if isinstance(event, CallStarted):
            self._start(event.call)
        else:
            self._fail(event)

    def ends(self, call: Call, read: Callable[[], tuple[StreamStatus, ...]], *, why: str = "") -> None:
        """Note that a call is over; `read` tells what its streams have counted while they are closed.

        `why` says why natgate itself has ended it, if it has.
        """
        if why:
            self.hung_up(call, why)
        answered = self._answered.get(_key(call))
        if answered is not None and answered.read is None:
            answered.ended_at, answered.read = self._now(), read
            self._counted["calls_ended"] += 1

    def ended(self, call: Call) -> None:
        """Write the line of a call that is over, once its streams have counted for the last time."""
        self._end(_key(call))

    def close(self) -> None:
        """Write the lines that are left, of calls that are over."""
        for key in [key for key, it in self._answered.items() if it.read is not None]:
            self._end(key)

    def registered(self, address_of_record: str, bindings: Bindings, *, why: str = "") -> None:
        """Take the bindings that an address-of-record has from now on, and write what is new or gone.

        `why` says why bindings are gone that nobody has taken away by a REGISTER.
        """
        before = {binding.contact: binding for binding in self._registered.get(address_of_record, ())}
        after = {binding.contact: binding for binding in bindings}
        for contact, binding in after.items():
            if contact not in before:
                self._counted["registrations_new"] += 1
                fields = _registration("new", address_of_record, binding)
                _write({**fields, "expires_s": round(binding.expires_at - self._now())})
        for contact, binding in before.items():
            if contact not in after:
                self._counted["registrations_gone"] += 1
                _write({**_registration("gone", address_of_record, binding), "why": why or "unregistered"})
        self.know(address_of_record, bindings)

    def changed(self, address_of_record: str, decision: Decision) -> None:
        """Take what was decided of an address-of-record, as `registered` does."""
        why = decision.why if isinstance(decision, Removal) else ""
        self.registered(address_of_record, decision.bindings or (), why=why)

    def refused(self, received: Received, why: str) -> None:
        """Write that a REGISTER with a password was refused, and from where it came."""
        if not self._has_room():
            return
        request = received.request
        _write(
            {
                "event": "registration",
                "what": "refused",
                "aor": address_of(request.value(request.header("to"))),
                "source": str(received.flow.remote),
                "why": shown(why.encode("utf-8", "surrogateescape")),
            }
        )

    def know(self, address_of_record: str, bindings: Bindings) -> None:
        """Take bindings that are nothing new, as those of before a restart."""
        if not bindings:
            self._registered.pop(address_of_record, None)
            return
        self._registered[address_of_record] = bindings
        first = min(binding.expires_at for binding in bindings)
        self._look_at = first if self._look_at is None else min(self._look_at, first)

    def look(self) -> None:
        """Write which registrations have run out, and what was left out; to be called each second."""
        now = self._now()
        if self._strangers_lines > _MOST_STRANGERS_LINES:
            _log.info("%d more calls or registrations failed", self._strangers_lines - _MOST_STRANGERS_LINES)
        self._strangers_lines = 0
        if self._look_at is None or now < self._look_at:
            return
        self._look_at = None
        for address_of_record, bindings in list(self._registered.items()):
            live = tuple(binding for binding in bindings if binding.expires_at > now)
            self.registered(address_of_record, live, why="expired")

    def calls(self) -> tuple[CallStatus, ...]:
        """The calls that ring and those that were answered, the oldest first."""
        now = self._now()
        ringing = [
            CallStatus(
                shown(call_id),
                address_of(it.caller),
                address_of(it.callee),
                CallState.RINGING,
                now - it.since,
            )
            for call_id, it in self._asked.items()
        ]
        answered = [
            CallStatus(
                shown(it.call_id),
                address_of(it.caller),
                address_of(it.callee),
                CallState.ANSWERED,
                now - it.since,
                self._streams_of(it.call_id),
            )
            for it in self._answered.values()
            if it.read is None
        ]
        return (*answered, *ringing)

    def counters(self, calls: Iterable[CallStatus]) -> Mapping[str, int]:
        """What has been counted since the start; `calls` are those that there are now."""
        counted = Counter(
            calls_answered=0, calls_failed=0, calls_ended=0, registrations_new=0, registrations_gone=0
        )
        counted.update(self._counted)
        for call in calls:
            counted.update(_media(call.streams))
        for answered in self._answered.values():
            if answered.read is not None:  # it is none of these any more, and not written yet
                counted.update(_media(answered.read()))
        return counted

    # --- calls ---

    def _ask(self, received: Received) -> None:
        request = received.request
        asked = self._asked.get(request.call_id)
        if asked is None:
            if len(self._asked) >= _MOST_ASKED:
                del self._asked[next(iter(self._asked))]
            caller, callee = (request.value(request.header(name)) for name in ("from", "to"))
            asked = _Asked(caller, callee, received.flow.remote, self._now())
            self._asked[request.call_id] = asked
        asked.numbers.add(received.number)

    def _start(self, call: Call) -> None:
        now = self._now()
        asked = self._asked.pop(call.call_id, None)
        key = _key(call)
        if key not in self._answered:
            since = now if asked is None else asked.since
            source = call.caller.seen.remote if asked is None else asked.source
            self._counted["calls_answered"] += 1
            self._answered[key] = _Answered(
                call.call_id, call.caller.address, call.callee.address, source, now - since, now
            )

    def _fail(self, event: CallFailed) -> None:
        asked = self._asked.get(event.call_id)
        if asked is None:  # another branch of it was answered
            return
        asked.numbers.discard(event.number)
        if asked.numbers:  # it has come by here twice, and is still under way
            return
        del self._asked[event.call_id]
        if event.status_code in _CHALLENGES:
            return
        self._counted["calls_failed"] += 1
        if not self._has_room():
            return
        _write(
            {
                "event": "call",
                "call_id": shown(event.call_id),
                "from": address_of(asked.caller),
                "to": address_of(asked.callee),
                "source": str(asked.source),
                "result": event.status_code,
                "setup_ms": round((self._now() - asked.since) * 1000),
            }
        )

    def _end(self, key: _Key) -> None:
        answered = self._answered.pop(key, None)
        if answered is None or answered.read is None:
            return
        fields: dict[str, FieldValue] = {
            "event": "call",
            "call_id": shown(answered.call_id),
            "from": address_of(answered.caller),
            "to": address_of(answered.callee),
            "source": str(answered.source),
            "result": 200,
            "setup_ms": round(answered.setup_s * 1000),
            "duration_s": round(answered.ended_at - answered.since, 1),
            "ended_by": answered.ended_by or "nobody",
            "why": answered.why or None,
        }
        streams = answered.read()
        self._counted.update(_media(streams))
        _write(fields | dict(_stream_fields(streams)))

    def _has_room(self) -> bool:
        """Whether one more line that strangers can cause may be written in this second."""
        self._strangers_lines += 1
        return self._strangers_lines <= _MOST_STRANGERS_LINES

    def _find(self, call_id: bytes, from_tag: bytes, to_tag: bytes) -> tuple[_Answered, str] | None:
        """The call of a BYE, and which side sends it."""
        for key, side in (((call_id, from_tag, to_tag), "caller"), ((call_id, to_tag, from_tag), "callee")):
            answered = self._answered.get(key)
            if answered is not None:
                return answered, side
        return None


def shown(value: bytes) -> str:
    """What a phone wrote, as text without control characters; what is too long is cut."""
    text = value[:_MOST_SHOWN].decode("utf-8", "backslashreplace")
    return printable(text) + ("..." if len(value) > _MOST_SHOWN else "")


def address_of(value: bytes) -> str:
    """The URI in a value of From or To, without the name and the parameters."""
    try:
        uri = NameAddress.parse(value).uri
    except DecodeError:
        uri = None
    return shown(value if uri is None else value[slice(*uri.span)])


def _key(call: Call) -> _Key:
    return call.call_id, call.caller.tag, call.callee.tag


def _registration(what: str, address_of_record: str, binding: ContactBinding) -> dict[str, FieldValue]:
    return {
        "event": "registration",
        "what": what,
        "aor": shown(address_of_record.encode("utf-8", "surrogateescape")),
        "contact": shown(binding.contact),
        "received": None if binding.received is None else str(binding.received),
    }


def _media(streams: Iterable[StreamStatus]) -> dict[str, int]:
    sides = [side for stream in streams for side in (stream.a, stream.b)]
    return {
        "media_packets": sum(side.packets for side in sides),
        "media_octets": sum(side.octets for side in sides),
        "media_lost": sum(side.lost or 0 for side in sides),
        "media_foreign": sum(side.foreign for side in sides),
        "media_held": sum(side.held for side in sides),
    }


def _stream_fields(streams: Iterable[StreamStatus]) -> Iterator[tuple[str, FieldValue]]:
    """`audio_a_packets` and so on; of several streams of a kind, `audio2_a_packets`."""
    numbers: dict[str, int] = {}
    for stream in streams:
        number = numbers[stream.kind] = numbers.get(stream.kind, 0) + 1
        kind = stream.kind if number == 1 else f"{stream.kind}{number}"
        for name, side in (("a", stream.a), ("b", stream.b)):
            yield f"{kind}_{name}_packets", side.packets
            yield f"{kind}_{name}_lost", side.lost
            yield f"{kind}_{name}_jitter_ms", None if side.jitter_ms is None else round(side.jitter_ms, 1)
            yield f"{kind}_{name}_foreign", side.foreign or None


def _write(fields: Mapping[str, FieldValue]) -> None:
    """One line; what is None is left out."""
    said = {name: value for name, value in fields.items() if value is not None}
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s", _as_text(said), extra={"fields": said})


def _as_text(fields: Mapping[str, FieldValue]) -> str:
    event, *rest = fields.items()
    return " ".join([str(event[1]), *(f"{name}={_quoted(value)}" for name, value in rest)])


def _quoted(value: FieldValue) -> str:
    if not isinstance(value, str):
        return str(value)
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
