"""Keeps registered phones reachable, and ends the registrations of those that are gone.

It learns of registrations from the place where they are kept, whoever keeps them there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocationError
from nattools.session.controller.desk import Gate
from nattools.session.controller.noted_location import NotedLocation
from nattools.session.flows import Flow, Flows, endpoint_of
from nattools.session.guard import Guard
from nattools.session.keepalive import Dead, Keepalive
from nattools.session.location import Bindings, ContactBinding, Decision, Location, Removal
from nattools.sip.uri import SipUri

CONNECTION_MARK = "#"
"""Stands in the name of a connection behind that of its listener."""

_LOG = logging.getLogger(__name__)
_SLACK_S = 0.02  # what is due within this time goes out together
_SWEEP_S = 30.0  # how often registrations are looked through for those that have run out
_STORE_AGAIN_S = 5.0

_Key = tuple[str, bytes, int | None]


@dataclass(frozen=True, slots=True)
class _Phone:
    """A registration of this natgate, and where the phone is."""

    binding: ContactBinding
    remote: Endpoint


class Pings:
    """The keepalives of one natgate. Make it, have the location `watched`, `start` it, and `close` it."""

    def __init__(self, gate: Gate, guard: Guard) -> None:
        """Ping by `gate.send`, as `gate.settings` have it; who is registered is made known to `guard`."""
        settings = gate.settings
        self._gate = gate
        self._guard = guard
        self._machine: Keepalive[_Key] = Keepalive(
            gate.flows,
            settings.keepalive,
            interval_s=settings.keepalive_s,
            dead_after=settings.dead_after,
            entropy=secrets.token_bytes,
        )
        self._location: Location | None = None
        self._phones: dict[str, dict[_Key, _Phone]] = {}
        self._places: Counter[Endpoint] = Counter()
        self._by_connection: dict[str, set[_Key]] = {}
        self._gone: dict[_Key, tuple[ContactBinding, str]] = {}
        self._burial: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def counters(self) -> Counter[str]:
        """What `Keepalive` counts."""
        return self._machine.counters

    def watched(self, location: Location) -> Location:
        """The same place, whose registrations are kept alive from now on."""

        def note(address_of_record: str, decision: Decision) -> None:
            self.note(address_of_record, decision.bindings or ())

        self._location = NotedLocation(location, note)
        return self._location

    def has_phone_at(self, remote: Endpoint) -> bool:
        """Whether a phone is registered with this natgate from that address and port."""
        return remote in self._places

    async def start(self) -> None:
        """Take up the registrations that are there already. Raises `LocationError`.

        Those that came by a connection of a process before this one are ended: nobody is there any more.
        """
        assert self._location is not None, "have the location watched first"
        for address_of_record, bindings in (await self._location.registrations(now=self._gate.now())).items():
            self.note(address_of_record, bindings, is_heard=False)
            for binding in bindings:
                listener = binding.flow.partition(CONNECTION_MARK)[0]
                if listener != binding.flow and _is_ours(listener, self._gate.flows):
                    self._end(_key(address_of_record, binding), binding, "its connection is gone")
        self._sweep()

    def note(self, address_of_record: str, bindings: Bindings, *, is_heard: bool = True) -> None:
        """Take note of all bindings of an address-of-record; `is_heard` where one has just registered."""
        if self._is_closed:
            return
        old = self._phones.pop(address_of_record, {})
        new = dict[_Key, _Phone]()
        for binding in bindings:
            remote = _remote_of(binding)
            if remote is not None and _is_ours(binding.flow, self._gate.flows):
                new[_key(address_of_record, binding)] = _Phone(binding, remote)
        for key, phone in new.items():
            self._take_up(key, phone, old.get(key), is_heard=is_heard)
        for key, phone in old.items():
            replaced = new.get(key)
            if replaced is None:
                self._machine.unwatch(key)
            if replaced is None or replaced.remote != phone.remote:
                self._guard.forget(phone.remote)
                self._leave(phone.remote)
            if replaced is None or replaced.binding.flow != phone.binding.flow:
                self._untie(key, phone.binding.flow)
        if new:
            self._phones[address_of_record] = new
        self._schedule()

    def _take_up(self, key: _Key, phone: _Phone, before: _Phone | None, *, is_heard: bool) -> None:
        binding, now = phone.binding, self._gate.now()
        if before is None or before.remote != phone.remote:
            self._guard.know(phone.remote)
            self._places[phone.remote] += 1
        if binding.flow not in (listener.name for listener in self._gate.flows.listeners):
            self._by_connection.setdefault(binding.flow, set()).add(key)
        if binding.received is None:  # no NAT is in between that could forget it
            self._machine.unwatch(key)
            return
        flow = Flow(binding.flow, phone.remote)
        until = binding.expires_at
        self._machine.watch(key, flow, binding.contact, until=until, now=now, is_heard=is_heard)

    def _leave(self, remote: Endpoint) -> None:
        self._places[remote] -= 1
        if not self._places[remote]:
            del self._places[remote]

    def _untie(self, key: _Key, connection: str) -> None:
        keys = self._by_connection.get(connection, set())
        keys.discard(key)
        if not keys:
            self._by_connection.pop(connection, None)

    # --- what happens ---

    def receive(self, data: bytes, flow: Flow) -> bool:  # noqa: ARG002  # who answers is told by the branch
        """Take a response; False where it is the proxy's."""
        if not self._machine.receive_response(data, now=self._gate.now()):
            return False
        self._drain()
        return True

    def disconnected(self, name: str) -> None:
        """End the registrations that came by the connection of that name (RFC 5626 §6)."""
        for key in list(self._by_connection.get(name, ())):
            phone = self._phones.get(key[0], {}).get(key)
            if phone is not None and phone.binding.flow == name:
                self._end(key, phone.binding, f"its connection from {phone.remote} has ended")

    def _drain(self) -> None:
        for transmit in self._machine.transmits():
            self._gate.send(transmit.data, Flow(transmit.socket, transmit.destination))
        while (event := self._machine.next_event()) is not None:
            phone = self._phones.get(event.key[0], {}).get(event.key)
            if isinstance(event, Dead) and phone is not None:
                reason = f"{event.flow.remote} did not answer {event.pings} pings in a row"
                self._end(event.key, phone.binding, reason)
        self._schedule()

    def _schedule(self) -> None:
        """Have the timer ring when the next ping is due."""
        when = None if self._is_closed else self._machine.timeout_at()
        loop = asyncio.get_running_loop()
        if when is None:
            return
        due = loop.time() + max(when - self._gate.now(), _SLACK_S)
        if self._timer is not None:
            if self._timer.when() <= due + _SLACK_S:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._machine.handle_timeout(now=self._gate.now())
        self._drain()

    def _sweep(self) -> None:
        """Forget the registrations that have run out, which nobody tells of."""
        now = self._gate.now()
        for address_of_record, phones in list(self._phones.items()):
            live = tuple(phone.binding for phone in phones.values() if phone.binding.expires_at > now)
            if len(live) < len(phones):
                self.note(address_of_record, live)
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    # --- registrations that end ---

    def _end(self, key: _Key, binding: ContactBinding, reason: str) -> None:
        if self._is_closed:
            return
        self._gone[key] = binding, reason
        if self._burial is None or self._burial.done():
            self._burial = asyncio.get_running_loop().create_task(self._bury())

    async def _bury(self) -> None:
        """Take those that are gone out of the location, however long that is away."""
        assert self._location is not None
        while self._gone:
            key, (binding, reason) = next(iter(self._gone.items()))
            try:
                await self._location.update(key[0], _removal_of(binding, reason), now=self._gate.now())
            except LocationError as error:
                _LOG.warning("the registration of %r cannot be ended: %s", key[0], error)
                await asyncio.sleep(_STORE_AGAIN_S)
                continue
            if self._gone.get(key) == (binding, reason):
                del self._gone[key]

    async def close(self) -> None:
        """Ping nobody any more; registrations stay."""
        self._is_closed = True
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        if self._burial is not None:
            self._burial.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._burial


def _key(address_of_record: str, binding: ContactBinding) -> _Key:
    return address_of_record, binding.contact, binding.reg_id


def _is_ours(name: str, flows: Flows) -> bool:
    """Whether that is a listener or an open connection here, and not of another host with the same store."""
    return flows.listener(name) is not None


def _remote_of(binding: ContactBinding) -> Endpoint | None:
    """Where the phone itself is; None where other proxies are in between, or its Contact names no address."""
    if binding.path:
        return None
    try:
        return binding.received or endpoint_of(SipUri.parse(binding.contact))
    except DecodeError:
        return None


def _removal_of(gone: ContactBinding, why: str) -> Callable[[Bindings], Removal]:
    """What takes one binding away, unless the phone has registered again meanwhile."""

    def decide(bindings: Bindings) -> Removal:
        left = tuple(binding for binding in bindings if not _is_same(binding, gone))
        return Removal(None if len(left) == len(bindings) else left, why)

    return decide


def _is_same(binding: ContactBinding, other: ContactBinding) -> bool:
    return (binding.contact, binding.reg_id, binding.flow, binding.call_id, binding.cseq) == (
        other.contact,
        other.reg_id,
        other.flow,
        other.call_id,
        other.cseq,
    )
