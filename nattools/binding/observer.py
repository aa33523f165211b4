"""Where STUN servers see a socket, asked from that very socket, and whether that holds.

`Observer` is a machine without I/O (RFC 8489 §12, RFC 5780 §4). A1:P1 is a server, A2:P2 what it says is its
other address and port. What follows from the answers is in `views`, how a public port is tried in `inbound`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nattools.binding.inbound import InboundTest
from nattools.binding.model import Reflection
from nattools.binding.probes import (
    CHANGE_BOTH,
    Answer,
    Probe,
    Probes,
    Purpose,
    View,
    is_plain_ipv4,
    read_answer,
)
from nattools.binding.views import LEFTOVER, Views
from nattools.endpoint import Endpoint
from nattools.machine import Entropy, Transmit
from nattools.stun.classifier import Mapping
from nattools.stun.transaction import RttEstimator

_FIRST_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 1.85)
"""After 5 s in all a server is given up; one whose answers take 2 s has had every request by then."""
_REPLACED_AFTER = 4
_MOST_AT_A_TIME = 3
_MOST_SERVERS = 8
_PATIENCE_S = 0.9
"""How long the first server's answer waits for a second server's; it has been asked five times by then."""
_GRACE_S = 0.02
_OTHER_VIEW_PROBES = 6
_OTHER_VIEW_GAP_S = 0.05
_PLAIN_WAIT_S = 0.1
_PLAIN_GROWTH = (1, 1, 2, 2, 4, 4)
_CHECK_TRANSMISSIONS = 6
_LONGEST_CHECK_WAIT_S = 4.0
"""A keepalive is repeated before a NAT can forget that there was one."""
_LONGEST_RTT_S = 5.0
"""What took longer lay in the socket while the machine slept, and is no measure of anything."""
_MOST_RESTARTS = 2
_MOST_INBOUND = 8
_NO_SERVER = "no STUN server is given"


@dataclass(frozen=True, slots=True)
class Reflected:
    """Event: this is where servers see the socket, for the first time or with more known than before."""

    reflection: Reflection


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Event: a check found the endpoint as it was; `rtt_s` is the round trip to the server."""

    rtt_s: float


@dataclass(frozen=True, slots=True)
class Silent:
    """Event: no server shows anything, and why; it is over until `observe` is called again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Inbound:
    """Event: whether packets from where nothing was ever sent to come in at `public`; None: not shown."""

    public: Endpoint
    arrived: bool | None
    reason: str


ObserverEvent = Reflected | Unchanged | Silent | Inbound


@dataclass(slots=True, eq=False)
class _Round:
    """One observation from its beginning on: whom to ask yet, what they showed, what is waited for."""

    waiting: list[Endpoint]
    views: Views
    restarts: int
    faults: dict[Endpoint, str]
    rtt_s: float = 0.0
    grace_until: float = 0.0
    wakes_at: float | None = None
    wants_mapping: bool = False
    other_view: Endpoint | None = None
    other_fault: str = ""
    is_asking_again: bool = False
    is_silent: bool = False
    has_news: bool = False


class Observer:
    """Asks STUN servers where they see one socket, and keeps asking one of them whether it is still so.

    All endpoints that come out have IPv4 addresses where IPv4-mapped ones went in.
    """

    __slots__ = (
        "_check",
        "_estimator",
        "_events",
        "_fresh_port",
        "_inbound",
        "_known_answer",
        "_probes",
        "_public",
        "_reflection",
        "_round",
        "_servers",
    )

    def __init__(self, *, entropy: Entropy, fresh_port: bool = False) -> None:
        """`fresh_port` says that the system chose the socket's port just now, so that no NAT knows it yet."""
        self._probes = Probes(entropy)
        self._fresh_port = fresh_port
        self._events: list[ObserverEvent] = []
        self._servers: tuple[Endpoint, ...] = ()
        self._round: _Round | None = None
        self._reflection: Reflection | None = None
        self._estimator = RttEstimator()
        self._check: Probe | None = None
        self._known_answer: tuple[bytes, bytes] | None = None
        self._public: list[Endpoint] = []
        self._inbound: InboundTest | None = None

    @property
    def reflection(self) -> Reflection | None:
        """The last one that holds; None while the servers are silent or asked from the beginning."""
        return self._reflection

    # What is wanted

    def use_servers(self, servers: Sequence[Endpoint], *, now: float) -> None:  # noqa: ARG002  # as all its kin
        """Ask these from the next observation on, the best first; of more than eight the first eight."""
        self._servers = tuple(dict.fromkeys(server.unmapped for server in servers))[:_MOST_SERVERS]

    def observe(self, local: Endpoint, *, now: float) -> None:
        """Find out from the beginning where the socket at `local`, a real address, is seen.

        Ends with `Reflected` or `Silent`. The reflection settles by itself where a second server with another
        address answers; otherwise once `test_mapping` is called.
        """
        self._begin(self._servers, local.unmapped, now)

    def test_mapping(self, *, now: float) -> None:
        """Let this observation settle, if need be by asking the server's other address.

        After that no answer from there shows any more that strangers get in, at the same port.
        """
        if self._round is not None and not self._round.wants_mapping:
            self._round.wants_mapping = True
            self._advance(now)

    def check(self, *, now: float) -> None:
        """Ask the server in use whether it still sees the same: the keepalive.

        Ends with `Unchanged`; where it sees another endpoint, or is silent, with what `observe` ends with.
        Does nothing while it is asked anyway.
        """
        round_ = self._round
        if round_ is None or self._check is not None:
            return
        primary = round_.views.primary
        if primary is None:
            if round_.is_silent:
                self.observe(round_.views.local, now=now)
            return
        rto_s = self._estimator.rto_s(now=now)
        waits_s = [min(rto_s * 2**times, _LONGEST_CHECK_WAIT_S) for times in range(_CHECK_TRANSMISSIONS)]
        self._check = self._probes.ask(Probe(Purpose.CHECK, primary, waits_s, round_), now=now)

    def hasten_check(self, *, now: float) -> None:
        """Have a check that is under way not wait for its next turn: there may be an answer by now."""
        if self._check is not None:
            self._probes.hasten(self._check, now=now)

    def try_inbound(self, public: Endpoint, *, now: float) -> None:
        """Have the server send to `public` from its other address. Ends with one `Inbound`.

        Several are tried one after the other. What a new observation interrupts is tried again after it.
        """
        public = public.unmapped
        if public in self._public:
            return
        if self._round is None or self._round.is_silent:
            self._events.append(Inbound(public, None, "no STUN server is there to try it"))
        elif len(self._public) >= _MOST_INBOUND:
            self._events.append(Inbound(public, None, f"{_MOST_INBOUND} others are being tried already"))
        else:
            self._public.append(public)
            self._advance(now)

    # The machine contract

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> bool:
        """Take one datagram; False says that it answers nothing that was asked here, and is another's."""
        found = self._probes.find(data)
        if found is None:
            return False
        probe, sent_at = found
        source = source.unmapped
        rtt_s = min(now - sent_at, _LONGEST_RTT_S)
        round_, test = self._round, self._inbound
        is_known = probe is self._check and self._known_answer == (data[:8], data[20:])
        if is_known and round_ is not None and source == probe.destination:
            self._unchanged(round_, rtt_s, now)
            return True
        answer = read_answer(data, probe, source, rtt_s)
        if answer is None:
            return True
        if test is not None and probe.topic is test:
            test.answered(answer, now=now)
        elif round_ is not None and probe.topic is round_:
            self._answered(round_, answer, data, now)
        self._advance(now)
        return True

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now, from the very socket."""
        taken, self._probes.outbox = self._probes.outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next; None while nothing is awaited."""
        times = [self._probes.timeout_at()]
        if self._round is not None:
            times.append(self._round.wakes_at)
        if self._inbound is not None:
            times.append(self._inbound.timeout_at())
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due at `now`; calling early is harmless."""
        self._give_up(self._probes.fire(now=now), now)
        if self._inbound is not None:
            self._inbound.handle_timeout(now=now)
        self._advance(now)

    def next_event(self) -> ObserverEvent | None:
        """Take the next thing that was found, or None."""
        return self._events.pop(0) if self._events else None

    def undeliverable(self, destination: Endpoint | None, reason: str, *, now: float) -> None:
        """The system could not send to `destination`; None where it did not say to whom.

        After two transmissions in vain, or four where it did not say, nothing more is expected from there.
        """
        where = None if destination is None else destination.unmapped
        self._give_up(self._probes.undeliverable(where, reason), now)
        self._advance(now)

    # One observation

    def _begin(
        self,
        servers: Sequence[Endpoint],
        local: Endpoint,
        now: float,
        *,
        former: Reflection | None = None,
        restarts: int = 0,
        wants_mapping: bool = False,
        faults: dict[Endpoint, str] | None = None,
    ) -> None:
        self._probes.stop(*Purpose)
        self._check = self._inbound = self._known_answer = self._reflection = None
        views = Views(local, self._fresh_port, former)
        self._round = _Round(list(servers), views, restarts, faults or {}, wants_mapping=wants_mapping)
        self._advance(now)

    def _advance(self, now: float) -> None:
        """See what follows from what is known."""
        round_ = self._round
        if round_ is None:
            return
        round_.wakes_at = None
        self._ask_more(round_, now)
        primary = round_.views.primary
        if primary is None:
            if not round_.is_silent and not any(self._probes.under_way(Purpose.VIEW)):
                self._fall_silent(round_)
            return
        self._compare(round_, primary, now)
        has_told = self._report(round_)
        self._try_inbound(round_, primary, now)
        if round_.views.is_settled or not round_.wants_mapping:
            return
        if has_told:  # who has just been told may rather have a port tried, before A2 is sent to
            round_.wakes_at = round_.wakes_at or now
        else:
            self._ask_elsewhere(round_, primary, now)
            self._report(round_)

    def _ask_more(self, round_: _Round, now: float) -> None:
        """Have two servers with unlike addresses answer, or on their way to it; silent ones are replaced."""
        while round_.waiting and not round_.views.is_settled:
            asked = list(self._probes.under_way(Purpose.VIEW))
            hopeful = {probe.destination.ip for probe in asked if probe.sent < _REPLACED_AFTER}
            hopeful.update(server.ip for server in round_.views.seen)
            others = [server for server in round_.waiting if server.ip not in hopeful]
            if len(asked) >= _MOST_AT_A_TIME or len(hopeful) >= 2 or (hopeful and not others):
                return
            server = others[0] if others else round_.waiting[0]
            round_.waiting.remove(server)
            self._probes.ask(Probe(Purpose.VIEW, server, _FIRST_WAITS_S, round_), now=now)
            if self._fresh_port or self._has_second_address:
                round_.views.strangers.add(server)
                stranger = Probe(Purpose.STRANGER, server, _FIRST_WAITS_S, round_, (CHANGE_BOTH,))
                self._probes.ask(stranger, now=now)

    @property
    def _has_second_address(self) -> bool:
        return len({server.ip for server in self._servers}) > 1

    def _answered(self, round_: _Round, answer: Answer, data: bytes, now: float) -> None:
        """Take an answer of this round; it is believed from where it was asked for alone."""
        probe, purpose = answer.probe, answer.probe.purpose
        if purpose is Purpose.STRANGER:
            if answer.view is not None and answer.source.ip not in self._probes.touched:
                round_.views.heard.setdefault(probe.destination, answer.source)
                round_.has_news = True
        elif answer.source != probe.destination:
            probe.fault = f"an answer came from {answer.source}, not from there"
        elif answer.view is None:
            if purpose is not Purpose.VIEW or probe.destination not in round_.views.seen:
                self._useless(round_, probe, answer.fault, now)
        elif purpose is Purpose.CHECK:
            self._checked(round_, answer, answer.view, data, now)
        elif purpose is Purpose.AGAIN:
            self._seen_again(round_, answer.view, now)
        elif probe.destination not in round_.views.seen:
            self._seen(round_, answer, answer.view, now)

    def _seen(self, round_: _Round, answer: Answer, view: View, now: float) -> None:
        """One more sees the socket, in time or late."""
        server, views = answer.probe.destination, round_.views
        self._probes.stop(Purpose.VIEW, Purpose.STRANGER, Purpose.OTHER_VIEW, destination=server)
        if answer.probe.purpose is Purpose.OTHER_VIEW:  # it is no server of its own
            view = replace(view, alternate=None, fault="", sends_to_ports=False)
        if views.primary is None:
            round_.is_silent = False
            self._keep_pace(round_, answer.rtt_s, now)
        views.add(server, view)
        round_.has_news = True
        if view.alternate is not None and server in views.strangers and server not in views.heard:
            round_.grace_until = max(round_.grace_until, now + max(_GRACE_S, answer.rtt_s / 2))

    def _keep_pace(self, round_: _Round, rtt_s: float, now: float) -> None:
        round_.rtt_s = rtt_s
        self._estimator.observe(rtt_s, now=now)

    def _useless(self, round_: _Round, probe: Probe, fault: str, now: float) -> None:
        """Who was asked shows nothing: it refused, or was given up."""
        self._probes.stop(probe.purpose, destination=probe.destination)
        if probe.purpose is Purpose.VIEW:
            self._probes.stop(Purpose.STRANGER, destination=probe.destination)
            round_.faults[probe.destination] = fault
        elif probe.purpose is Purpose.OTHER_VIEW:
            round_.other_fault = f"its other endpoint {probe.destination}: {fault}"
        elif probe.purpose is Purpose.AGAIN:
            self._conclude_unknown(round_, f"{probe.destination} stopped answering")
        elif probe is self._check:
            self._begin_without(round_, probe.destination, fault, now)

    def _begin_without(self, round_: _Round, silent: Endpoint, fault: str, now: float) -> None:
        """Ask the others; the one that has fallen silent only after them."""
        servers = sorted(self._servers, key=lambda server: server == silent)
        servers = [] if servers == [silent] else servers
        self._begin(servers, round_.views.local, now, former=self._reflection, faults={silent: fault})

    def _give_up(self, probes: list[Probe], now: float) -> None:
        for probe in probes:
            if self._inbound is not None and probe.topic is self._inbound:
                self._inbound.over(probe, now=now)
            elif self._round is not None and probe.topic is self._round:
                fault = probe.fault or f"no answer in {now - probe.began_at:.1f} s"
                self._useless(self._round, probe, fault, now)

    def _fall_silent(self, round_: _Round) -> None:
        faults = "; ".join(f"{server}: {fault}" for server, fault in round_.faults.items())
        reason = _NO_SERVER
        if faults:
            reason = (
                f"no STUN server shows where this socket is seen ({faults}): the server may be down, or a "
                "firewall in between; give another one"
            )
        round_.is_silent = True
        self._events.append(Silent(reason))
        while self._public:
            self._events.append(Inbound(self._public.pop(0), None, reason))

    # Whether others see the same

    def _compare(self, round_: _Round, primary: Endpoint, now: float) -> None:
        """Conclude from what was seen, where two have seen it."""
        views = round_.views
        if views.is_settled or round_.is_asking_again:
            return
        if now < round_.grace_until:
            round_.wakes_at = round_.grace_until
        elif views.differing is not None:
            self._ask_again(round_, primary, now)
        elif views.same:
            views.conclude_same()
            self._concluded(round_)

    def _ask_elsewhere(self, round_: _Round, primary: Endpoint, now: float) -> None:
        """One server only has seen it: wait for a second one, then ask the other address of the first."""
        if round_.is_asking_again or now < round_.grace_until or self._public:
            return
        patience_s = max(_PATIENCE_S, 2 * round_.rtt_s)
        asked = [
            probe for probe in self._probes.under_way(Purpose.VIEW) if probe.destination.ip != primary.ip
        ]
        until = max((probe.began_at + patience_s for probe in asked), default=now)
        alternate = round_.views.seen[primary].alternate
        if now < until:
            round_.wakes_at = until
        elif round_.other_view is None and alternate is not None:
            # With a second server A2 has to stay a stranger, also to the next program on this port. A1:P2
            # shows only a NAT that looks at ports as well; but most that are symmetric do.
            keeps_away = not self._fresh_port and self._has_second_address
            side = primary.with_port(alternate.port)
            round_.other_view = side if keeps_away else alternate.with_port(primary.port)
            gap_s = max(_OTHER_VIEW_GAP_S, round_.rtt_s / 2)
            waits_s = (*(gap_s,) * (_OTHER_VIEW_PROBES - 1), max(_PLAIN_WAIT_S, 1.5 * round_.rtt_s))
            self._probes.ask(Probe(Purpose.OTHER_VIEW, round_.other_view, waits_s, round_), now=now)
        elif not any(self._probes.under_way(Purpose.OTHER_VIEW)):
            if asked or round_.other_view is not None:
                self._ask_again(round_, primary, now)
            else:
                self._conclude_one_view(round_, primary)

    def _ask_again(self, round_: _Round, primary: Endpoint, now: float) -> None:
        """Neither a difference nor a silence counts until the first server was asked once more."""
        round_.is_asking_again = True
        wait_s = max(_PLAIN_WAIT_S, 1.5 * round_.rtt_s)
        waits_s = tuple(wait_s * times for times in _PLAIN_GROWTH)
        self._probes.ask(Probe(Purpose.AGAIN, primary, waits_s, round_), now=now)

    def _seen_again(self, round_: _Round, view: View, now: float) -> None:
        views, primary = round_.views, round_.views.primary
        if not round_.is_asking_again or primary is None:
            return
        self._probes.stop(Purpose.AGAIN)
        round_.is_asking_again = False
        before, differing = views.mapped, views.differing
        if view.mapped != before and round_.restarts < _MOST_RESTARTS:
            restarts = round_.restarts + 1
            wants = round_.wants_mapping
            self._begin(self._servers, views.local, now, restarts=restarts, wants_mapping=wants)
        elif view.mapped != before:
            views.seen[primary] = view
            self._known_answer = None
            self._conclude_unknown(round_, f"{primary} saw {before}, then {view.mapped}: it does not stay")
        elif differing is not None:
            other = views.seen[differing].mapped
            views.conclude(Mapping.ADDRESS_DEPENDENT, f"{primary} sees {before}, {differing} sees {other}")
            self._concluded(round_)
        elif not views.same:
            self._conclude_one_view(round_, primary)

    def _conclude_one_view(self, round_: _Round, primary: Endpoint) -> None:
        faults = [f"{server}: {fault}" for server, fault in round_.faults.items()]
        asked = self._probes.under_way(Purpose.VIEW)
        faults += [f"{probe.destination}: {probe.fault or 'no answer'}" for probe in asked]
        faults.append(round_.other_fault or round_.views.seen[primary].fault)
        others = "; ".join(filter(None, faults))
        shown = f"one server only saw it, {primary} ({others}): give a second STUN server"
        self._conclude_unknown(round_, shown)

    def _conclude_unknown(self, round_: _Round, shown: str) -> None:
        """What comes late from others may still tell."""
        round_.is_asking_again = False
        round_.views.conclude(Mapping.UNKNOWN, shown)
        round_.has_news = True

    def _concluded(self, round_: _Round) -> None:
        self._probes.stop(Purpose.VIEW, Purpose.STRANGER, Purpose.OTHER_VIEW)
        round_.has_news = True

    def _report(self, round_: _Round) -> bool:
        """Tell what is known, if it is more than was told before."""
        if not round_.has_news:
            return False
        round_.has_news = False
        before, reflection = self._reflection, round_.views.reflection(self._probes.touched)
        is_less = before is not None and before.is_settled and reflection and not reflection.is_settled
        if reflection is None or reflection == before or is_less:
            return False
        self._reflection = reflection
        self._events.append(Reflected(reflection))
        return True

    # The keepalive

    def _checked(self, round_: _Round, answer: Answer, view: View, data: bytes, now: float) -> None:
        if answer.probe is not self._check:
            return
        if view.mapped != round_.views.mapped:
            self._begin(self._servers, round_.views.local, now)
            return
        self._known_answer = (data[:8], data[20:]) if is_plain_ipv4(data, view) else None
        self._unchanged(round_, answer.rtt_s, now)

    def _unchanged(self, round_: _Round, rtt_s: float, now: float) -> None:
        self._probes.stop(Purpose.CHECK)
        self._check = None
        self._keep_pace(round_, rtt_s, now)
        self._events.append(Unchanged(rtt_s))

    # Whether strangers get in at a given port

    def _try_inbound(self, round_: _Round, primary: Endpoint, now: float) -> None:
        test = self._inbound
        if test is not None and test.is_over:
            self._events.append(Inbound(test.public, test.arrived, test.reason))
            self._public.pop(0)
            self._inbound = None
        while self._public and self._inbound is None:
            self._inbound = self._begin_inbound(round_, primary, self._public[0], now)
            if self._inbound is None:
                self._public.pop(0)

    def _begin_inbound(
        self, round_: _Round, primary: Endpoint, public: Endpoint, now: float
    ) -> InboundTest | None:
        """The test of `public`, or None where it was answered at once."""
        views, touched = round_.views, self._probes.touched
        seen = views.seen[primary]
        reached, shown = views.reached(touched)
        if public.ip != seen.mapped.ip:
            self._events.append(Inbound(public, None, f"{primary} sees another address, {seen.mapped}"))
            return None
        if public == seen.mapped and reached:
            self._events.append(Inbound(public, True, shown))
            return None
        for server, view in views.seen.items():
            if view.sends_to_ports and view.alternate is not None:
                is_proof = public.port != view.mapped.port or view.alternate.ip not in touched
                return InboundTest(
                    public,
                    mapped=view.mapped,
                    server=server,
                    alternate=view.alternate,
                    rtt_s=round_.rtt_s,
                    leftover="" if is_proof else LEFTOVER,
                    probes=self._probes,
                    now=now,
                )
        fault = seen.fault or f"{primary} speaks RFC 3489 only, and cannot be given a port"
        self._events.append(Inbound(public, None, fault))
        return None
