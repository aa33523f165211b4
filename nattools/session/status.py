"""What is shown of a running natgate: its calls, its registrations and what it has counted.

It is a JSON document, which docs/natgate-json.md describes: `GateStatus.as_json` writes it, and
`GateStatus.parse` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import SideStatistics
from nattools.session.settings import EngineName, GateMode

SCHEMA = 1
"""Rises when a reader of the document must be changed."""


class CallState(StrEnum):
    """How far a call has come."""

    RINGING = "ringing"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class SideStatus:
    """What came from one side of a stream; see `SideStatistics`. `source` is where it comes from now."""

    packets: int = 0
    octets: int = 0
    lost: int | None = None
    jitter_ms: float | None = None
    foreign: int = 0
    held: int = 0
    source: Endpoint | None = None
    heard_ago_s: float | None = None

    @classmethod
    def of(cls, statistics: SideStatistics, *, now: float) -> SideStatus:
        """What an engine says of that side."""
        jitter_s, last_heard = statistics.jitter_s, statistics.last_heard
        return cls(
            statistics.packets,
            statistics.octets,
            statistics.lost,
            None if jitter_s is None else jitter_s * 1000,
            statistics.foreign,
            statistics.held,
            statistics.latched,
            None if last_heard is None else max(0.0, now - last_heard),
        )


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream of a call: `kind` is what its m= line calls it, `a` who called, `b` who was called.

    `in_kernel` says that nftables carries it now.
    """

    kind: str
    a: SideStatus
    b: SideStatus
    in_kernel: bool = False


@dataclass(frozen=True, slots=True)
class CallStatus:
    """One call. `caller` and `callee` are the URIs of From and To; `duration_s` counts from the answer."""

    call_id: str
    caller: str
    callee: str
    state: CallState
    duration_s: float
    streams: tuple[StreamStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """One contact. `received` is where the phone is heard from, if that is not where its contact says."""

    address_of_record: str
    contact: str
    received: Endpoint | None
    flow: str
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One socket that takes SIP, and what others are told instead of its address."""

    transport: str
    local: Endpoint
    advertised: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class GateStatus:
    """A running natgate. `started_s` is Unix time; `counters` are named as in docs/natgate-json.md.

    `version` is that of the command, empty where the server runs inside another program.
    """

    version: str
    started_s: float
    mode: GateMode
    engine: EngineName
    listeners: tuple[ListenerStatus, ...]
    draining: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[CallStatus, ...] = ()
    registrations: tuple[RegistrationStatus, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The document, as `json.dumps` takes it."""
        document: dict[str, object] = _plain(self)
        return {"schema": SCHEMA, **document}

    @classmethod
    def parse(cls, text: str | bytes) -> GateStatus:
        """Read the document. Raises `DecodeError`, also where it is of another schema."""
        try:
            document = json.loads(text)
            if "error" in document:
                raise DecodeError(f"natgate has no status just now: {document['error']}")
            if document["schema"] != SCHEMA:
                raise DecodeError(
                    f"the status has schema {document['schema']}, {SCHEMA} is known: "
                    "natgate and natgate status are of different versions"
                )
            return _gate(document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DecodeError(f"this is no status of natgate: {error!r}"[:200]) from error


def _plain(value: object) -> Any:
    """A value as JSON has it: objects for the classes of this file, text for endpoints and names."""
    if isinstance(value, Endpoint | StrEnum):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float):
        return round(value, 3)
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value


def _gate(it: dict[str, Any]) -> GateStatus:
    return GateStatus(
        str(it["version"]),
        float(it["started_s"]),
        GateMode(it["mode"]),
        EngineName(it["engine"]),
        tuple(
            ListenerStatus(
                str(each["transport"]), Endpoint.parse(each["local"]), _endpoint(each["advertised"])
            )
            for each in it["listeners"]
        ),
        bool(it["draining"]),
        {str(name): int(value) for name, value in it["counters"].items()},
        tuple(map(_call, it["calls"])),
        tuple(map(_registration, it["registrations"])),
    )


def _call(it: dict[str, Any]) -> CallStatus:
    return CallStatus(
        str(it["call_id"]),
        str(it["caller"]),
        str(it["callee"]),
        CallState(it["state"]),
        float(it["duration_s"]),
        tuple(
            StreamStatus(str(each["kind"]), _side(each["a"]), _side(each["b"]), bool(each["in_kernel"]))
            for each in it["streams"]
        ),
    )


def _side(it: dict[str, Any]) -> SideStatus:
    return SideStatus(
        int(it["packets"]),
        int(it["octets"]),
        None if it["lost"] is None else int(it["lost"]),
        _number(it["jitter_ms"]),
        int(it["foreign"]),
        int(it["held"]),
        _endpoint(it["source"]),
        _number(it["heard_ago_s"]),
    )


def _registration(it: dict[str, Any]) -> RegistrationStatus:
    return RegistrationStatus(
        str(it["address_of_record"]),
        str(it["contact"]),
        _endpoint(it["received"]),
        str(it["flow"]),
        float(it["expires_in_s"]),
    )


def _endpoint(value: str | None) -> Endpoint | None:
    return None if value is None else Endpoint.parse(value)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
