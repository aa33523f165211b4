"""Event subscriptions: headers that make and renew one, and the events (UPnP Device Architecture 1.1 §4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, UpnpError
from nattools.upnp.soap import local_name, parse_xml, text_of

DEFAULT_TIMEOUT_S = 1800
LEAST_TIMEOUT_S = 30
"""A shorter subscription is taken for this long, so that no router can have itself asked without end."""
MOST_TIMEOUT_S = 86_400
MOST_SID_CHARACTERS = 256
MOST_PROPERTIES = 100

_UINT32 = 0xFFFFFFFF
_PRECONDITION_FAILED = 412

Headers = Iterable[tuple[str, str]]


class PreconditionFailedError(UpnpError):
    """412: the subscription is not known any more, or the router does not want to call back to there.

    miniupnpd says it for a callback that is not on its LAN.
    """


@dataclass(frozen=True, slots=True)
class Event:
    """A NOTIFY: the state variables that changed, by name in lower case (UDA 1.1 §4.3.2)."""

    sid: str
    sequence: int
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription that the router has granted: renew it at `renew_at`, half of its `timeout_s`.

    `sequence` is that of the last event, None before the first.
    """

    sid: str
    timeout_s: int
    renew_at: float
    sequence: int | None = None

    @property
    def next_sequence(self) -> int | None:
        """The number that the next event must have: 1 after the highest, as 0 is the initial event's."""
        if self.sequence is None:
            return None
        return 1 if self.sequence == _UINT32 else self.sequence + 1

    def has_lost_events_before(self, event: Event) -> bool:
        """Whether events between the last one and this were lost, so that one must subscribe again.

        The first event may have any number: an initial event that is late says no less.
        """
        return self.sequence is not None and event.sequence not in (self.sequence, self.next_sequence)

    def after(self, event: Event) -> Subscription:
        """The same subscription, with `event` as the last one."""
        return replace(self, sequence=event.sequence)


def subscribe_headers(
    callback: Endpoint, path: str = "/", *, timeout_s: int = DEFAULT_TIMEOUT_S
) -> tuple[tuple[str, str], ...]:
    """The headers of a SUBSCRIBE that has the router call back to `path` at `callback` (UDA 1.1 §4.1.2)."""
    if isinstance(callback.ip, IPv6Address):  # the zone of a link-local address means nothing to the router
        callback = Endpoint(IPv6Address(int(callback.ip)), callback.port)
    return (
        ("CALLBACK", f"<http://{callback}{path}>"),
        ("NT", "upnp:event"),
        ("TIMEOUT", f"Second-{timeout_s}"),
    )


def renew_headers(sid: str, *, timeout_s: int = DEFAULT_TIMEOUT_S) -> tuple[tuple[str, str], ...]:
    """The headers of a SUBSCRIBE that makes a subscription last longer (UDA 1.1 §4.1.3)."""
    return (("SID", sid), ("TIMEOUT", f"Second-{timeout_s}"))


def unsubscribe_headers(sid: str) -> tuple[tuple[str, str], ...]:
    """The headers of an UNSUBSCRIBE (UDA 1.1 §4.1.4)."""
    return (("SID", sid),)


def parse_subscription(
    status: int, headers: Headers, *, now: float, renewed: Subscription | None = None
) -> Subscription:
    """Read the reply to a SUBSCRIBE; `renewed` is the subscription that it was to renew.

    Raises `UpnpError` where the router refuses (its `code` is the HTTP status; a `PreconditionFailedError`
    means that a renewal has come too late), `DecodeError` for a reply without a usable SID.
    """
    if status == _PRECONDITION_FAILED:
        text = (
            "the router knows the event subscription no more: subscribe again"
            if renewed
            else "the router refuses to send events to this address: do without its events"
        )
        raise PreconditionFailedError(f"SUBSCRIBE was answered with HTTP status 412: {text}", code=status)
    if not 200 <= status <= 299:
        raise UpnpError(
            f"SUBSCRIBE was answered with HTTP status {status}: do without the router's events", code=status
        )
    found = _lower(headers)
    timeout_s = parse_timeout(found.get("timeout", ""))
    if renewed is not None and "sid" not in found:  # some routers do not repeat it
        return replace(renewed, timeout_s=timeout_s, renew_at=now + timeout_s / 2)
    sid = _sid(found)
    sequence = renewed.sequence if renewed is not None and renewed.sid == sid else None
    return Subscription(sid, timeout_s, now + timeout_s / 2, sequence)


def parse_timeout(text: str) -> int:
    """Seconds of a TIMEOUT header: `Second-300`; 1800 for `infinite`, and for what is neither."""
    unit, _, number = text.strip().lower().partition("-")
    if unit != "second" or not _is_uint32(number):
        return DEFAULT_TIMEOUT_S
    return min(max(int(number), LEAST_TIMEOUT_S), MOST_TIMEOUT_S)


def parse_event(headers: Headers, body: bytes) -> Event:
    """Read a NOTIFY (UDA 1.1 §4.3.2). Raises `DecodeError` for what is no event."""
    found = _lower(headers)
    if found.get("nts", "").strip().lower() != "upnp:propchange":
        raise DecodeError("the NOTIFY is no event: its NTS is not upnp:propchange")
    sequence = found.get("seq", "").strip()
    if not _is_uint32(sequence):
        raise DecodeError(f"the event has no sequence number, but {sequence[:40]!r}")
    properties: dict[str, str] = {}
    for element in parse_xml(body).iter():
        if local_name(element) == "property":
            properties.update((local_name(variable), text_of(variable)) for variable in element)
        if len(properties) > MOST_PROPERTIES:
            raise DecodeError(f"the event has more than {MOST_PROPERTIES} properties")
    if not properties:
        raise DecodeError("the event has no properties")
    return Event(_sid(found), int(sequence), properties)


def _lower(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _sid(found: dict[str, str]) -> str:
    """The subscription's id, which goes back to the router in a header."""
    sid = found.get("sid", "").strip()
    if not sid or len(sid) > MOST_SID_CHARACTERS or not (sid.isascii() and sid.isprintable()):
        raise DecodeError(f"the router's subscription id cannot be used: {sid[:40]!r}")
    return sid


def _is_uint32(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _UINT32
