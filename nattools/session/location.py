"""The location service: which contacts an address-of-record has (RFC 3261 §10, its "location service").

`ContactBinding` is what is known of one contact, `Location` what a place to keep them can do. Times are those
of `now`, monotonic seconds; a place that outlives the process turns them into its own by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.comparison import unescaped
from nattools.sip.uri import SipUri

_TEXT = ("utf-8", "surrogateescape")  # bytes that are no UTF-8 come back as they were
_MOST_QUIET_UPDATES = 256  # after which a memory looks for addresses-of-record that have run out


@dataclass(frozen=True, slots=True)
class ContactBinding:
    """One contact of an address-of-record, until `expires_at`.

    `contact` is its URI as it was registered, `params` its other parameters as a Contact header has them
    (`;+sip.instance="<urn:...>"`), without q and expires. `path` has the values of Path (RFC 3327), which
    requests take as their Route. `received` is where the phone is heard from, if it is behind a NAT or its
    contact says something else, and `flow` names the socket or connection it was heard on, which may be gone
    by now.
    `instance` is the URN of +sip.instance without brackets, or empty. `reg_id` is set where the binding is
    one flow of several (RFC 5626 §6). `outside` is the URI by which others reach the phone through this
    program: another registrar, which was told it instead, or another host with the same store. `server` is
    set by an ALG: who has answered for that other registrar, and has to be let in by the NAT in between.
    """

    contact: bytes
    expires_at: float
    call_id: bytes
    cseq: int
    params: bytes = b""
    q: float = 1.0
    path: tuple[bytes, ...] = ()
    received: Endpoint | None = None
    flow: str = ""
    instance: str = ""
    reg_id: int | None = None
    outside: bytes = b""
    server: Endpoint | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise DecodeError(f"q={self.q} is not between 0 and 1")


Bindings = tuple[ContactBinding, ...]
"""The bindings of one address-of-record, the one that was registered last at the end."""


class Decision(Protocol):
    """What an update comes to: the bindings from now on, or None where they stay as they are."""

    @property
    def bindings(self) -> Bindings | None:
        """All bindings that the address-of-record has from now on; None changes nothing."""


DecisionT = TypeVar("DecisionT", bound=Decision)


@dataclass(frozen=True, slots=True)
class Removal:
    """What an update comes to that nobody has asked for by a REGISTER; `why` says what ended a binding."""

    bindings: Bindings | None
    why: str


class Location(Protocol):
    """A place where bindings are kept. Each method may raise `LocationError`: then nothing was changed."""

    async def bindings(self, address_of_record: str, *, now: float) -> Bindings:
        """The bindings that have not expired; none for an address-of-record that is not known."""

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        """Have `decide` look at the bindings that have not expired, and keep what it decides.

        Nobody changes them in between, be it from another host: where somebody did, `decide` is asked again,
        so it must not do anything else. Its last decision is returned once it is kept.
        """

    async def registrations(self, *, now: float) -> Mapping[str, Bindings]:
        """All addresses-of-record that have bindings, and these."""

    async def close(self) -> None:
        """Let go of files and connections; what was kept stays."""


class MemoryLocation:
    """A `Location` that lasts as long as the process."""

    def __init__(self) -> None:
        self._bindings: dict[str, Bindings] = {}
        self._updates = 0

    async def bindings(self, address_of_record: str, *, now: float) -> Bindings:
        """The bindings that have not expired."""
        return unexpired(self._bindings.get(address_of_record, ()), now=now)

    async def update(
        self, address_of_record: str, decide: Callable[[Bindings], DecisionT], *, now: float
    ) -> DecisionT:
        """Have `decide` look at the bindings that have not expired, and keep what it decides."""
        decision = decide(unexpired(self._bindings.get(address_of_record, ()), now=now))
        if decision.bindings:
            self._bindings[address_of_record] = decision.bindings
        elif decision.bindings is not None:
            self._bindings.pop(address_of_record, None)
        self._updates += 1
        if self._updates >= max(_MOST_QUIET_UPDATES, len(self._bindings)):
            self._bindings = dict(await self.registrations(now=now))
            self._updates = 0
        return decision

    async def registrations(self, *, now: float) -> Mapping[str, Bindings]:
        """All addresses-of-record that have bindings, and these."""
        live = ((name, unexpired(kept, now=now)) for name, kept in self._bindings.items())
        return {name: kept for name, kept in live if kept}

    async def close(self) -> None:
        """Do nothing: there is no file and no connection."""


def unexpired(bindings: Iterable[ContactBinding], *, now: float) -> Bindings:
    """Those whose time is not up."""
    return tuple(binding for binding in bindings if binding.expires_at > now)


def targets(bindings: Bindings, *, instance: str = "") -> list[Bindings]:
    """Whom to try for a request, best first: those in one group at the same time (RFC 3261 §16.6).

    Groups go by q. Of one phone's several flows only the newest is taken (RFC 5626 §7). With the
    `instance` of a GRUU it is the newest contact of that phone, and none where it has none (RFC 5627 §5.5).
    Contacts that are no sip or sips URI are left out: no request can be sent there.
    """
    flows: set[str] = set()
    chosen: list[ContactBinding] = []
    for binding in reversed(bindings):
        if not _is_sip(binding.contact) or (instance and binding.instance != instance):
            continue
        if binding.reg_id is not None:
            if binding.instance in flows:
                continue
            flows.add(binding.instance)
        chosen.append(binding)
        if instance:
            break
    ranks = sorted({binding.q for binding in chosen}, reverse=True)
    return [tuple(binding for binding in chosen if binding.q == q) for q in ranks]


def instance_of(uri: SipUri) -> str:
    """The phone that a public GRUU means, by its +sip.instance (RFC 5627 §3.1); empty for other URIs."""
    gr = uri.param("gr")
    return "" if gr is None else (unescaped(gr.value) or b"").decode(*_TEXT)


def _is_sip(contact: bytes) -> bool:
    try:
        return SipUri.parse(contact).scheme in ("sip", "sips")
    except DecodeError:
        return False


def encode_bindings(bindings: Bindings, *, clock_offset_s: float) -> str:
    """Write bindings as one line of JSON; `clock_offset_s` turns `expires_at` into the reader's clock."""
    return json.dumps(
        [
            asdict(binding)
            | {
                "contact": binding.contact.decode(*_TEXT),
                "call_id": binding.call_id.decode(*_TEXT),
                "params": binding.params.decode(*_TEXT),
                "outside": binding.outside.decode(*_TEXT),
                "path": [value.decode(*_TEXT) for value in binding.path],
                "received": None if binding.received is None else str(binding.received),
                "server": None if binding.server is None else str(binding.server),
                "expires_at": binding.expires_at + clock_offset_s,
            }
            for binding in bindings
        ],
        separators=(",", ":"),
    )


def parse_bindings(text: str | bytes, *, clock_offset_s: float) -> Bindings:
    """Read what `encode_bindings` wrote. Raises `DecodeError`."""
    try:
        return tuple(_parse_binding(fields, clock_offset_s) for fields in json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DecodeError(f"what is kept of a registration cannot be read: {error!r}"[:200]) from error


def _parse_binding(fields: dict[str, Any], clock_offset_s: float) -> ContactBinding:
    received, reg_id, server = fields["received"], fields["reg_id"], fields["server"]
    return ContactBinding(
        fields["contact"].encode(*_TEXT),
        float(fields["expires_at"]) - clock_offset_s,
        fields["call_id"].encode(*_TEXT),
        int(fields["cseq"]),
        fields["params"].encode(*_TEXT),
        float(fields["q"]),
        tuple(value.encode(*_TEXT) for value in fields["path"]),
        None if received is None else Endpoint.parse(received),
        str(fields["flow"]),
        str(fields["instance"]),
        None if reg_id is None else int(reg_id),
        fields["outside"].encode(*_TEXT),
        None if server is None else Endpoint.parse(server),
    )
