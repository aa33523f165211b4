"""The making of one port mapping: what to ask the router next when it refuses, lies or says nothing.

Routers differ more in how they refuse than in anything else. The order is: the external port that equals the
internal one; AddAnyPortMapping where the service is of version 2; a few random ports. A success is read back,
and so is a silence, since a router that was too slow to answer has often made the mapping anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    NatToolsError,
    NoResponseError,
    UpnpError,
)
from nattools.machine import Entropy
from nattools.upnp.faults import (
    ActionFailedError,
    ActionNotAuthorizedError,
    ArgumentValueInvalidError,
    ArgumentValueOutOfRangeError,
    ConflictInMappingEntryError,
    ConflictWithOtherMechanismsError,
    InvalidActionError,
    InvalidArgsError,
    NoSuchEntryInArrayError,
    OnlyPermanentLeasesSupportedError,
    OptionalActionNotImplementedError,
    OutOfSyncError,
    RefusedError,
    clean_text,
)
from nattools.upnp.igd import (
    LONGEST_LEASE_S,
    AddAnyPortMapping,
    AddPortMapping,
    DeletePortMapping,
    GetSpecificPortMappingEntry,
    PortMappingEntry,
)

MOST_ACTIONS = 12
MOST_OTHER_PORTS = 4
LEAST_RANDOM_PORT = 1024
CONFLICT_IN_MAPPING_ENTRY = 718
SHORTER_LEASE_S = 3600
"""Asked for where a router takes neither a permanent mapping nor the longest lease of WANIPConnection:2."""

Call = AddPortMapping | AddAnyPortMapping | GetSpecificPortMappingEntry | DeletePortMapping
Result = PortMappingEntry | int | None

_UNCLEAR = (NoResponseError, DisconnectedError, DecodeError)
"""Ends of an action after which the mapping may be there or not."""
_OF_THE_PORT = (
    ActionFailedError,  # Linksys: the port is taken or forbidden
    ArgumentValueInvalidError,
    ArgumentValueOutOfRangeError,
    ConflictInMappingEntryError,
    ConflictWithOtherMechanismsError,
    NoSuchEntryInArrayError,  # the router said yes and did nothing
)
_OF_THE_HOST = (ActionNotAuthorizedError, OutOfSyncError)
"""FRITZ!Box: this host may open no port. miniupnpd: it may not open this one, so that one other is tried."""
_UNKNOWN_ACTION = (InvalidActionError, OptionalActionNotImplementedError)


@dataclass(frozen=True, slots=True)
class Done:
    """The mapping is there.

    `proven` says that the router shows it, enabled. `lease_s` is the lease that the router shows, else the
    one that was asked for; None for a permanent mapping. `permanent_only` says that it takes no leases.
    """

    external_port: int
    lease_s: int | None
    proven: bool
    permanent_only: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The mapping cannot be had, for the reason in `error`."""

    error: NatToolsError
    permanent_only: bool


class Acquisition:
    """One port mapping on one WAN service, from the first question to the end.

    Carry out the `next_action`, tell how it went with `answered` or `failed`, and so on until the next action
    is `Done` or `GaveUp`. With an `external_port` only that one will do, be it for a new mapping or for the
    renewal of one. A `lease_s` of None wants a permanent mapping; `permanent_only` is what an earlier
    acquisition has learnt of the router, and `version` that of the service.
    Raises `EncodeError` for ports, addresses and leases that no mapping can have.
    """

    def __init__(
        self,
        internal: Endpoint,
        transport: TransportProtocol,
        *,
        external_port: int | None,
        lease_s: int | None,
        description: str,
        version: int,
        entropy: Entropy,
        permanent_only: bool = False,
    ) -> None:
        if lease_s is not None and version >= 2:
            lease_s = min(lease_s, LONGEST_LEASE_S)
        first_port = internal.port if external_port is None else external_port
        AddPortMapping(internal, first_port, transport, lease_s)  # checks the values
        self._internal = internal
        self._transport = transport
        self._external_port = external_port
        self._wanted_lease_s = lease_s
        self._lease_s = None if permanent_only else lease_s
        self._description = description
        self._version = version
        self._entropy = entropy
        self._permanent_only = permanent_only
        self._tried = [first_port]
        self._unexplained = 0
        self._actions = 0
        self._last_error: NatToolsError | None = None
        self._next: Call | Done | GaveUp
        self._life = self._acquire(first_port)
        self._advance(lambda: next(self._life))

    def next_action(self) -> Call | Done | GaveUp:
        """What to ask the router now, or how it ended."""
        return self._next

    def answered(self, result: Result) -> None:
        """Take what the action's `parse` gave."""
        self._advance(lambda: self._life.send(result))

    def failed(self, error: NatToolsError) -> None:
        """Take the error that the action ended with."""
        self._last_error = error
        self._advance(lambda: self._life.throw(error))

    def _advance(self, step: Callable[[], Call]) -> None:
        """Go on to the next action; one too many ends it, whatever the router says."""
        if self._actions and not isinstance(self._next, Call):
            return
        try:
            self._next = step()
            if self._actions == MOST_ACTIONS:
                self._next = self._life.throw(_TooManyActionsError("the router was asked too often"))
            self._actions += 1
        except StopIteration as end:
            self._next = end.value
        except NatToolsError as error:
            if isinstance(error, _TooManyActionsError) and self._last_error is not None:
                error = self._last_error
            self._next = GaveUp(error, self._permanent_only)

    def _acquire(self, first_port: int) -> Generator[Call, Result, Done]:
        """The whole of it: one port after the other, until one is granted."""
        try:
            return (yield from self._add(first_port))
        except UpnpError as error:
            if self._external_port is not None or not _may_be_of_the_port(error):
                raise
            refused = [error]
        add_any = self._version >= 2
        while len(refused) <= MOST_OTHER_PORTS and sum(isinstance(e, _OF_THE_HOST) for e in refused) < 2:
            port = self._random_port()
            try:
                done = yield from self._add_any(port) if add_any else self._add(port)
            except UpnpError as error:
                if not _may_be_of_the_port(error):
                    raise _with_text(error, f"port {first_port} was refused before: {refused[0]}") from error
                refused.append(error)
            else:
                if done is not None:
                    return done
            add_any = False
        raise self._none_granted(refused)

    def _add(self, port: int) -> Generator[Call, Result, Done]:
        """Map `port` by AddPortMapping, and show that it is mapped."""
        is_second_time = False
        while True:
            try:
                yield from self._with_a_lease(partial(self._add_port_mapping, port))
            except _UNCLEAR as error:
                done = yield from self._made_unanswered(port, error)
                if done is not None:
                    return done
                if is_second_time:
                    raise
            except ConflictInMappingEntryError as error:
                done = yield from self._own(port, error, may_remove=not is_second_time)
                if done is not None:
                    return done
            else:
                return (yield from self._prove(port))
            is_second_time = True

    def _add_any(self, port: int) -> Generator[Call, Result, Done | None]:
        """Let the router choose, with a wish for `port`; None where it does not know how.

        A wish that nobody else can have had tells, when the answer is lost, where to look for the mapping.
        """
        try:
            granted = yield from self._with_a_lease(partial(self._add_any_port_mapping, port))
        except _UNCLEAR as error:  # Ubee closes the connection on an action that it does not know
            try:
                return (yield from self._made_unanswered(port, error))
            except (DisconnectedError, DecodeError):
                return None
        except _UNKNOWN_ACTION:
            return None
        except ConflictInMappingEntryError:  # of a router that may choose any port
            self._unexplained += 1
            raise
        assert isinstance(granted, int)
        self._tried.append(granted)
        return (yield from self._prove(granted))

    def _with_a_lease(self, call: Callable[[int | None], Call]) -> Generator[Call, Result, Result]:
        """Make a call with the lease that is wanted, or with one that the router takes."""
        wanted = self._wanted_lease_s
        others = (None, wanted) if wanted is not None else (LONGEST_LEASE_S, SHORTER_LEASE_S)
        leases = [self._lease_s, *(lease_s for lease_s in others if lease_s != self._lease_s)]
        while True:
            lease_s = leases.pop(0)
            try:
                result = yield call(lease_s)
            except OnlyPermanentLeasesSupportedError:
                if None not in leases:
                    raise
            except InvalidArgsError:  # said for 725, and for its opposite, and for a full table
                if not leases:
                    raise
            except UpnpError:
                self._learn(lease_s)
                raise
            else:
                self._learn(lease_s)
                return result

    def _learn(self, lease_s: int | None) -> None:
        """Remember a lease that was not objected to."""
        self._lease_s = lease_s
        if self._wanted_lease_s is not None:
            self._permanent_only = lease_s is None

    def _made_unanswered(self, port: int, error: NatToolsError) -> Generator[Call, Result, Done | None]:
        """Look whether the mapping was made without an answer; None where it was not, or cannot be seen.

        miniupnpd makes it after its client has given up, when a lookup in the DNS kept it. Raises `error`
        where the router does not answer this either.
        """
        try:
            entry = yield self._get(port)
        except UpnpError:
            return None
        except _UNCLEAR:
            raise error from None
        assert isinstance(entry, PortMappingEntry)
        if not self._is_own(entry):
            raise self._taken(entry) from error
        return self._done(entry)

    def _own(self, port: int, error: UpnpError, *, may_remove: bool) -> Generator[Call, Result, Done | None]:
        """After a conflict: use the own mapping from before that is in the way; None once it is removed.

        It is removed where it has less than half of its lease left. Raises a `ConflictInMappingEntryError`
        where the port is somebody else's, or nobody's that can be seen.
        """
        try:
            entry = yield self._get(port)
        except NoSuchEntryInArrayError:
            self._unexplained += 1
            raise _with_text(
                error, f"but it shows no mapping of that port: it may not take {self._internal.ip} for yours"
            ) from error
        except (UpnpError, *_UNCLEAR):
            self._unexplained += 1
            raise error from None
        assert isinstance(entry, PortMappingEntry)
        if not self._is_own(entry):
            raise self._taken(entry) from error
        is_fresh = entry.lease_s is None or 2 * entry.lease_s > (self._lease_s or LONGEST_LEASE_S)
        if not may_remove or (is_fresh and entry.enabled):
            return self._done(entry)
        try:
            yield DeletePortMapping(port, self._transport)
        except (UpnpError, *_UNCLEAR):
            return self._done(entry)
        return None

    def _prove(self, port: int) -> Generator[Call, Result, Done]:
        """Read the mapping back (kaklakariada/portmapper#139: success told, and nothing there)."""
        try:
            entry = yield self._get(port)
        except NoSuchEntryInArrayError as error:
            raise NoSuchEntryInArrayError(
                f"the router said that it mapped {self._transport.name} port {port}, but shows no such "
                "mapping: choose another external port, or set it up in the router's own pages",
                code=error.code,
            ) from error
        except NatToolsError:
            return self._unproven(port)
        assert isinstance(entry, PortMappingEntry)
        if entry.internal is None and entry.internal_port == self._internal.port:
            return self._unproven(port)  # a host name: it may well be this host's
        if not self._is_own(entry):
            raise self._taken(entry)
        return self._done(entry)

    def _add_port_mapping(self, port: int, lease_s: int | None) -> Call:
        return AddPortMapping(self._internal, port, self._transport, lease_s, self._description)

    def _add_any_port_mapping(self, port: int, lease_s: int | None) -> Call:
        return AddAnyPortMapping(self._internal, port, self._transport, lease_s, self._description)

    def _get(self, port: int) -> Call:
        return GetSpecificPortMappingEntry(port, self._transport)

    def _is_own(self, entry: PortMappingEntry) -> bool:
        return entry.internal == self._internal

    def _done(self, entry: PortMappingEntry) -> Done:
        return Done(entry.external_port, entry.lease_s, entry.enabled, self._permanent_only)

    def _unproven(self, port: int) -> Done:
        return Done(port, self._lease_s, proven=False, permanent_only=self._permanent_only)

    def _random_port(self) -> int:
        """A port from 1024 up that was not tried yet."""
        ports = 0x10000 - LEAST_RANDOM_PORT
        offset = int.from_bytes(self._entropy(4), "big") % ports
        while (port := LEAST_RANDOM_PORT + offset) in self._tried:
            offset = (offset + 1) % ports
        self._tried.append(port)
        return port

    def _taken(self, entry: PortMappingEntry) -> UpnpError:
        """The error for a port that the router shows as somebody else's."""
        holder = clean_text(f"{entry.internal_client}:{entry.internal_port} {entry.description}")
        return ConflictInMappingEntryError(
            f"{self._transport.name} port {entry.external_port} of the router leads to {holder}: "
            "choose another external port",
            code=CONFLICT_IN_MAPPING_ENTRY,
        )

    def _none_granted(self, refused: list[UpnpError]) -> UpnpError:
        """The error for the first port, with what became of the others."""
        first = refused[0]
        if self._unexplained == len(refused):
            return ConflictInMappingEntryError(
                f"the router refused {len(refused)} external ports with 718 ConflictInMappingEntry: either "
                "other devices have them all, or it makes mappings only to the address that asks for them, "
                f"and does not take {self._internal.ip} for it: check that this is this machine's address",
                code=first.code,
            )
        return _with_text(first, f"{len(refused) - 1} other ports were refused as well: {refused[-1]}")


class _TooManyActionsError(NatToolsError):
    """What an acquisition without end is ended with."""


def _may_be_of_the_port(error: UpnpError) -> bool:
    """Whether another port may fare better; an unknown code may mean anything."""
    return isinstance(error, (*_OF_THE_PORT, *_OF_THE_HOST)) or type(error) is RefusedError


def _with_text(error: UpnpError, text: str) -> UpnpError:
    return type(error)(f"{error}; {text}", code=error.code)
