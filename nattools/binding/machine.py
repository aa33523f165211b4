"""The public binding of one socket, without I/O: what is asked, what is believed, and what became of it.

A driver feeds it the socket's datagrams, the time, and what providers say, and drains it after every input as
`nattools.machine` has it. `receive` tells the driver which datagrams are the binding's own affair; all others
are the program's, untouched: STUN, SIP and RTP share the port (RFC 7983).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nattools.binding.judge import WHAT_HELPS, judge_claim, judge_socket
from nattools.binding.model import (
    DEFAULT_METHODS,
    BindingChange,
    ChangeKind,
    Claim,
    Method,
    PublicBinding,
    Reach,
    Reflection,
    Source,
)
from nattools.binding.observer import Inbound, Observer, Reflected, Unchanged
from nattools.binding.schedule import SAFE_INTERVAL_S, Flows, KeepaliveKind
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, NatToolsError, SymmetricNatError
from nattools.machine import Entropy, Transmit

PATIENCE_S = 0.4
"""How long a way that works waits for one that is preferred to it."""
CHECK_PATIENCE_S = 0.25
"""How long a claim waits for the STUN servers that could check it."""
ANSWER_PATIENCE_S = 10.0
"""How long what is shown to be wrong is held while its provider is asked for what is right."""
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0
_BETWEEN_QUESTIONS_S = 5.0
"""Interfaces of containers come and go; providers are not asked for each of them."""
_GIVEN_BACK_S = 3.5
"""By then a mapping that is given back is gone."""

_NO_SERVER = "no STUN server is given to look from outside"


@dataclass(frozen=True, slots=True)
class Ask:
    """Event: have the provider of `source` acquire, or renew what it holds; then `claim` or `refuse`."""

    source: Source


@dataclass(frozen=True, slots=True)
class Release:
    """Event: what the provider of `source` has, or is still asked for, is not used; it may be given back."""

    source: Source


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: nothing can be had. Only before the first binding; a later change may yet bring one."""

    error: BindingError


BindingEvent = Ask | Release | BindingChange | Failed


@dataclass(slots=True)
class _Claimed:
    """A claim, when it came, and what was found out since about who gets in there."""

    claim: Claim
    at: float
    inbound: Inbound | None = None


class BindingMachine:
    """Finds a public endpoint for the socket at `local` and keeps it true; the pure door to bindings."""

    def __init__(
        self,
        local: Endpoint,
        *,
        methods: Sequence[Method] = DEFAULT_METHODS,
        servers: Sequence[Endpoint] | None = (),
        entropy: Entropy,
        now: float,
        keepalive_s: float = SAFE_INTERVAL_S,
        side_by_side: bool = True,
        fresh_port: bool = False,
    ) -> None:
        """Begin at once.

        `local` has a real address, not a wildcard. `methods` are in the order of preference, and are tried
        all at once unless `side_by_side` is false. `servers` are STUN servers of the family of `local`, the
        best first; None while they are still looked up, until `use_servers`. `fresh_port` says that the
        system chose the socket's port just now, so that no NAT knows it yet.
        """
        # no more than 30 attributes: up to there Python keeps their names once for all machines
        self.binding: PublicBinding | None = None
        """The binding as it is now; None before it is acquired, and while it is lost."""
        self._local = local
        self._methods = tuple(methods)
        self._order = tuple(dict.fromkeys(method.source for method in methods))
        self._side_by_side = side_by_side
        self._observer = Observer(entropy=entropy, fresh_port=fresh_port)
        self._flows = Flows(interval_s=keepalive_s, entropy=entropy)
        self._events: list[BindingEvent] = []  # a deque has 0.7 kB even when it is empty
        self._outbox: list[Transmit] = []
        self._has_network = True
        self._servers: tuple[Endpoint, ...] | None = None
        self._reflection: Reflection | None = None
        self._silence = ""
        self._observed_at = now
        self._observe_at: float | None = None
        self._silences = 0
        self._given_back_at = now
        self._check_at: float | None = None
        self._claims: dict[Source, _Claimed] = {}
        self._refusals: dict[Source, str] = {}
        self._asked: dict[Source, float] = {}
        self._engaged: dict[Source, Endpoint | None] = {}
        self._asked_at = now
        self._ask_at: float | None = None
        self._failures = 0
        self._doubted: Endpoint | None = None
        self._previous: PublicBinding | None = None
        self._since: float | None = None
        self._wakes_at: float | None = None
        if servers is not None:
            self.use_servers(servers, now=now)
        self._search_anew(now)
        self._advance(now)

    # The machine contract

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> bool:
        """Take one datagram off the socket; False says that it is none of ours, and the program's."""
        if self._flows.eats(data):
            return True
        if not self._observer.receive(data, source, now=now):
            return False
        self._advance(now)
        return True

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now, from the very socket."""
        yield from self._observer.transmits()
        taken, self._outbox = self._outbox, []
        yield from taken

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None."""
        if not self._has_network:
            return None
        times = (
            self._observer.timeout_at(),
            self._flows.timeout_at(),
            self._check_at,
            self._observe_at,
            self._ask_at,
            self._wakes_at,
        )
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due at `now`; calling early is harmless."""
        if not self._has_network:
            return
        self._observer.handle_timeout(now=now)
        self._read_observer(now)
        self._outbox.extend(self._flows.due(now=now))
        is_looked_at = self.binding is None or not self.binding.realm  # no server sees into a tunnel
        if self._check_at is not None and self._check_at <= now:
            self._check_at = None
            if is_looked_at:
                self._observer.check(now=now)
        if self._observe_at is not None and self._observe_at <= now:
            self._observe_at = None
            if is_looked_at:
                self._observe(now)
        if self._ask_at is not None and self._ask_at <= now:
            self._ask_at = None
            if self.binding is None:
                self._search_anew(now)
            elif self.binding.method.source in _PROVIDED:
                self._ask(self.binding.method.source, now)
        self._advance(now)

    def next_event(self) -> BindingEvent | None:
        """Take the next thing that happened or is wanted, or None."""
        return self._events.pop(0) if self._events else None

    # What the driver knows besides

    def use_servers(self, servers: Sequence[Endpoint], *, now: float, why_none: str = "") -> None:
        """These are the STUN servers from now on, the best first; `why_none` says why there are none."""
        former, self._servers = self._servers, tuple(servers)
        if not servers:
            self._silence = f"no STUN server can be asked ({why_none})" if why_none else _NO_SERVER
        if self._servers != former:
            self._observer.use_servers(servers, now=now)
            self._observe(now)
        self._wake(now)
        self._advance(now)

    def undeliverable(self, destination: Endpoint | None, reason: str, *, now: float) -> None:
        """The system could not send to `destination`; None where it did not say to whom."""
        self._observer.undeliverable(destination, reason, now=now)
        self._advance(now)

    def claim(self, claim: Claim, *, now: float) -> None:
        """What a provider says, when asked or because something has changed."""
        source = claim.method.source
        self._engaged[source] = claim.public
        self._asked.pop(source, None)
        self._refusals.pop(source, None)
        if source not in self._order or (
            self.binding is not None and self.binding.method.source is not source
        ):
            self._give_back(source, now)
        else:
            self._take_claim(source, claim, now)
        self._advance(now)

    def _take_claim(self, source: Source, claim: Claim, now: float) -> None:
        former, seen = self._claims.get(source), self._reflection
        claimed = self._claims[source] = _Claimed(claim, now)
        if former is not None and former.claim.public == claim.public:
            if former.inbound is not None and former.inbound.arrived is not False:
                claimed.inbound = former.inbound  # what did not arrive may do so now
        elif (
            former is not None and seen is not None and seen.mapped.ip != claim.public.ip and not claim.realm
        ):
            self._observe(now)  # what was seen may be as old as the former claim
        if self.binding is None and self._since is None:
            self._since = now
        self._wake(now)

    def refuse(self, source: Source, error: NatToolsError, *, now: float) -> None:
        """A provider has nothing, or no longer what it claimed."""
        self._asked.pop(source, None)
        self._claims.pop(source, None)
        self._refusals[source] = str(error)  # the error itself keeps alive whoever raised it
        self._wake(now)
        self._advance(now)

    def network_changed(self, local: Endpoint | None, reason: str, *, now: float) -> None:
        """Links, addresses or routes have changed, or the machine slept; None: there is no way out."""
        if local is None:
            if self._has_network:
                self._network_lost(reason)
            return
        is_another = not self._has_network or local != self._local
        self._has_network, self._local, self._failures = True, local, 0
        if is_another:
            self._observe(now)
        elif self._check_at is not None:
            self._check_at = now
        elif self._observe_at is not None:
            self._observe_at = now
        else:
            self._observer.hasten_check(now=now)
        if is_another and self.binding is None:
            self._search_anew(now)
        elif self._since is None:
            ask_at = now if is_another else max(now, self._asked_at + _BETWEEN_QUESTIONS_S)
            self._ask_at = ask_at if self._ask_at is None else min(ask_at, self._ask_at)
        self.handle_timeout(now=now)

    def _network_lost(self, reason: str) -> None:
        lost, self.binding = self.binding, None
        if lost is not None:
            self._events.append(BindingChange(ChangeKind.LOST, None, lost, reason))
        elif self._since is not None and self._previous is None:
            self._events.append(Failed(BindingError(f"no public endpoint for {self._local}: {reason}")))
        self._has_network, self._since = False, None
        self._ask_at = self._check_at = self._observe_at = self._wakes_at = None

    def set_keepalive(self, interval_s: float, *, now: float) -> None:
        """Refresh the NAT's binding as often as that from now on."""
        self._flows.set_interval(interval_s, now=now)
        if self._check_at is not None:
            self._check_at = min(self._check_at, now + interval_s)
        if self.binding is not None and self.binding.keepalive_s is not None:
            self.binding = self._previous = replace(self.binding, keepalive_s=interval_s)

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind, *, now: float) -> None:
        """Keep the flow to `destination` open as well: a NAT or firewall may let nobody else in."""
        self._flows.keep(destination, kind, now=now)
        self.handle_timeout(now=now)

    def let_go(self, destination: Endpoint) -> None:
        """Keep that flow open no longer."""
        self._flows.let_go(destination)

    # What the servers show

    def _observe(self, now: float) -> None:
        """Look from the beginning; also without servers, so that no former one is listened to."""
        self._reflection = self._check_at = self._observe_at = None
        self._forget_inbound()
        self._wake(now)
        if self._servers is not None and self._has_network:
            self._observed_at = now
            if self._servers:
                self._silence = ""
            self._observer.observe(self._local, now=now)
            self._read_observer(now)

    def _read_observer(self, now: float) -> None:
        while (event := self._observer.next_event()) is not None:
            if not self._has_network:  # from before
                continue
            if isinstance(event, Unchanged):  # the keepalive, and no news
                self._check_at = self._flows.next_at(now=now)
                continue
            self._wake(now)
            if isinstance(event, Reflected):
                self._seen(event.reflection, now)
            elif isinstance(event, Inbound):
                for claimed in self._claims.values():
                    if claimed.claim.public.unmapped == event.public:
                        claimed.inbound = event
            elif self._servers:  # silent
                self._reflection, self._silence, self._check_at = None, event.reason, None
                self._observe_at = now + _retry_s(self._silences)
                self._silences += 1

    def _seen(self, reflection: Reflection, now: float) -> None:
        former = self._reflection
        if former is not None and former.mapped != reflection.mapped:
            self._forget_inbound()
        self._reflection, self._silence, self._silences = reflection, "", 0
        self._check_at = self._flows.next_at(now=now)
        if reflection.reached_by_stranger and now < self._given_back_at:
            self._observe_at = self._given_back_at
        if self.binding is None and self._since is None:
            self._since = now

    def _forget_inbound(self) -> None:
        """Whoever forwards the ports may have begun anew."""
        for claimed in self._claims.values():
            claimed.inbound = None

    def _have_mapping_tested(self, now: float) -> None:
        self._observer.test_mapping(now=now)
        self._read_observer(now)

    # The search

    def _search_anew(self, now: float, refusals: Mapping[Source, str] | None = None) -> None:
        """Ask every provider, from the beginning, apart from those whose `refusals` still count."""
        self._since = self._asked_at = now
        self._ask_at = None
        self._wake(now)
        self._claims.clear()
        self._asked.clear()
        self._refusals = dict(refusals or {})
        self._doubted = None
        if self._side_by_side:
            for source in self._order:
                if source in _PROVIDED and source not in self._refusals:
                    self._ask(source, now)

    def _ask(self, source: Source, now: float) -> None:
        self._asked[source] = self._asked_at = now
        self._engaged.setdefault(source, None)
        self._events.append(Ask(source))

    def _advance(self, now: float) -> None:
        """See what follows from what is known; a keepalive that found everything as it was is not news."""
        self._read_observer(now)
        while self._has_network and self._wakes_at is not None and self._wakes_at <= now:
            self._wakes_at = None
            if self.binding is not None:
                self._hold(self.binding, now)
            if self.binding is None and self._since is not None:
                self._search(now, self._since)

    def _wake(self, at: float) -> None:
        """See then what follows; now, where there is news."""
        self._wakes_at = at if self._wakes_at is None else min(at, self._wakes_at)

    def _search(self, now: float, since: float) -> None:
        patience_is_over = not self._side_by_side or now >= since + PATIENCE_S
        best: tuple[Source, PublicBinding] | None = None
        is_waiting = False
        for source in self._order:
            if source is Source.SOCKET and best is None and (patience_is_over or not is_waiting):
                self._have_mapping_tested(now)
            verdict = self._judged(source, now)
            if isinstance(verdict, BindingError):
                continue
            if verdict is None:
                is_waiting = is_waiting or best is None
            elif _is_perfect(verdict):
                best, is_waiting = (source, verdict), False
                break
            else:
                best = best or (source, verdict)
            if not self._side_by_side:
                break
        if best is not None and (patience_is_over or not is_waiting):
            self._take(*best, now)
        elif best is None and not is_waiting:
            self._give_up(now)
        elif not patience_is_over:
            self._wake(since + PATIENCE_S)

    def _judged(self, source: Source, now: float) -> PublicBinding | BindingError | None:
        """What a source has to offer; None while that is not known yet."""
        if source is Source.SOCKET:
            if self._servers is None:
                return None
            return self._kept_alive(judge_socket(self._local, self._methods, self._reflection, self._silence))
        if source in self._refusals:
            return BindingError(self._refusals[source])
        claimed = self._claims.get(source)
        if claimed is None:
            if source not in self._asked:
                self._ask(source, now)
            return None
        claim, silence = claimed.claim, self._silence
        if self._reflection is None and not silence:
            patience_at = max(claimed.at, self._observed_at) + CHECK_PATIENCE_S
            if now < patience_at and not claim.realm:
                self._wake(patience_at)
                return None
            silence = "no STUN server has answered yet"
        verdict = judge_claim(claim, self._reflection, silence, claimed.inbound)
        if verdict is None:
            self._observer.try_inbound(claim.public, now=now)
            self._read_observer(now)
        return self._kept_alive(verdict)

    def _kept_alive(
        self, verdict: PublicBinding | BindingError | None
    ) -> PublicBinding | BindingError | None:
        if isinstance(verdict, PublicBinding) and self._servers and not verdict.realm:
            return replace(verdict, keepalive_s=self._flows.interval_s)
        return verdict

    def _give_up(self, now: float) -> None:
        self._since = None
        if self._previous is None:
            self._events.append(Failed(self._failure(now)))
        elif self._ask_at is None:
            self._ask_at = now + _retry_s(self._failures)
            self._failures += 1

    def _failure(self, now: float) -> BindingError:
        """Why nothing can be had, and what would help."""
        refusals = {}
        error_class = BindingError
        for source in self._order:
            verdict = self._judged(source, now)
            if isinstance(verdict, BindingError):
                names = ", ".join(method.value for method in self._methods if method.source is source)
                refusals[names] = str(verdict)
                if isinstance(verdict, SymmetricNatError):
                    error_class = SymmetricNatError
        said = (f"{names}: {reason.removesuffix(WHAT_HELPS)}" for names, reason in refusals.items())
        message = f"no public endpoint for {self._local}: {'; '.join(said)}{WHAT_HELPS}"
        return error_class(message, refusals=refusals)

    # What is held

    def _take(self, source: Source, binding: PublicBinding, now: float) -> None:
        """Hold `binding`; nobody else's offer is needed any more."""
        self._since = self._ask_at = None
        self._failures = 0
        for other in self._order:
            if other is not source and other in self._engaged:
                self._give_back(other, now)
        verdict = self._judged(source, now)
        self.binding = verdict if isinstance(verdict, PublicBinding) else binding
        kind = ChangeKind.ACQUIRED if self._previous is None else ChangeKind.RESTORED
        self._events.append(BindingChange(kind, self.binding, self._previous, _why(self.binding)))
        self._previous = self.binding
        self._flows.refresh(now=now)

    def _give_back(self, source: Source, now: float) -> None:
        """Have a provider stop; a stranger who came in through the router's mapping does so no more."""
        self._events.append(Release(source))
        self._asked.pop(source, None)
        self._claims.pop(source, None)
        public, seen = self._engaged.pop(source, None), self._reflection
        if source is not Source.ROUTER or public is None:
            return
        self._given_back_at = now + _GIVEN_BACK_S
        if seen is not None and seen.mapped == public and seen.reached_by_stranger:
            self._observe_at = self._given_back_at
            doubt = "but perhaps through the router's mapping, which is not used and given back"
            self._reflection = replace(seen, reached_by_stranger=None, evidence=(*seen.evidence, doubt))
            self._wake(now)

    def _hold(self, held: PublicBinding, now: float) -> None:
        """See whether what is held still is so."""
        source = held.method.source
        if source is Source.SOCKET:
            self._have_mapping_tested(now)
        verdict = self._judged(source, now)
        if isinstance(verdict, PublicBinding):
            self.binding = self._previous = verdict
            if _endpoints(held) != _endpoints(verdict):
                self._events.append(BindingChange(ChangeKind.CHANGED, verdict, held, _why(verdict)))
                self._flows.refresh(now=now)
        elif verdict is not None:
            if source not in self._asked and self._is_worth_asking_again(source):
                self._ask(source, now)
            answer_by = self._asked.get(source, float("-inf")) + ANSWER_PATIENCE_S
            if now < answer_by:
                self._wake(answer_by)
            else:
                self._lose(held, str(verdict), now)

    def _is_worth_asking_again(self, source: Source) -> bool:
        """Whether its provider may not know yet what the STUN servers have shown; once for each endpoint."""
        if source not in self._claims or self._reflection is None:
            return False
        doubted, self._doubted = self._doubted, self._reflection.mapped
        return doubted != self._doubted

    def _lose(self, held: PublicBinding, reason: str, now: float) -> None:
        """What was held is no more: look for something else, or for it to come back."""
        self._events.append(BindingChange(ChangeKind.LOST, None, held, reason))
        self.binding = None
        self._observe(now)
        is_recent = now < self._asked_at + _BETWEEN_QUESTIONS_S
        self._search_anew(now, {**self._refusals, held.method.source: reason} if is_recent else None)


_PROVIDED = frozenset({Source.STATIC, Source.VPN, Source.ROUTER})


def _is_perfect(binding: PublicBinding) -> bool:
    """Whether no router could improve on it: no NAT, and no firewall either."""
    return binding.method is Method.OPEN and binding.reachability.reach is Reach.ANYONE


def _endpoints(binding: PublicBinding) -> tuple[object, ...]:
    return binding.local, binding.public, binding.method, binding.realm


def _why(binding: PublicBinding) -> str:
    return "; ".join(binding.reachability.evidence)


def _retry_s(failures: int) -> float:
    return min(_FIRST_RETRY_S * 2.0 ** min(failures, 16), _LONGEST_RETRY_S)
