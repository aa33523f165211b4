"""What a binding machine promises whatever its network, servers, providers and program do to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.binding.machine import Ask, BindingEvent, Failed, Release
from nattools.binding.model import (
    BindingChange,
    ChangeKind,
    Claim,
    Method,
    PublicBinding,
    Reach,
    Source,
)
from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, NoRouterError
from nattools.machine import Transmit
from tests.sim.internet import BEHAVIOURS
from tests.sim.living import A1, A2, ROUTER_IP, SECOND_SERVER, SERVER, STRANGER, LivingSocket

KINDS = sorted(BEHAVIOURS)
ADDRESSES = [ROUTER_IP, "203.0.113.99", "203.0.113.98"]
INSIDE = {True: ["192.168.0.108", "192.168.0.109"], False: ["198.51.100.108", "198.51.100.109"]}
SERVER_SETS: list[Sequence[Endpoint]] = [(), (SERVER,), (SECOND_SERVER,), (SERVER, SECOND_SERVER)]
METHOD_SETS = [
    (Method.OPEN, Method.STUN),
    (Method.STUN,),
    (Method.PCP, Method.OPEN, Method.STUN),
    (Method.STUN, Method.PCP),
    (Method.STATIC, Method.VPN, Method.PCP, Method.OPEN, Method.STUN),
    (Method.PCP,),
    (Method.VPN, Method.PCP),
]
PROVIDED = (Source.STATIC, Source.VPN, Source.ROUTER)
REALM = "wg0"
TUNNELED = Endpoint.of("10.8.0.2", 5060)
MOST_TURNS_PER_S = 1500
MOST_PACKETS_PER_S = 600
MOST_ASKED_PER_S = 60
RECOVERY_S = 60.0

answers = st.sampled_from(["true", "true", "true", "lie", "second NAT", "refuse", "twice", "never", "both"])
steps = st.one_of(
    st.tuples(st.just("wait"), st.floats(0, 3) | st.floats(3, 60)),
    st.tuples(st.just("wait"), st.floats(0, 0.5)),
    st.tuples(st.just("restart"), st.sampled_from([None, *ADDRESSES])),
    st.tuples(st.just("cut"), st.booleans()),
    st.tuples(st.just("stop"), st.sampled_from([(), (A1, A2), (str(SECOND_SERVER.ip),)])),
    st.tuples(st.just("lose packets"), st.sampled_from([0.0, 0.2, 0.9])),
    st.tuples(st.just("network"), st.sampled_from([None, 0, 0, 1])),
    st.tuples(st.just("storm"), st.integers(2, 30)),
    st.tuples(st.just("answers"), st.tuples(st.sampled_from(PROVIDED), answers, st.floats(0, 8))),
    st.tuples(st.just("news"), st.tuples(st.sampled_from(PROVIDED), answers)),
    st.tuples(st.just("servers"), st.sampled_from(SERVER_SETS)),
    st.tuples(st.just("sleep"), st.floats(1, 4000)),
    st.tuples(st.just("arrives"), st.binary(max_size=40)),
    st.tuples(st.just("keep open"), st.sampled_from(KeepaliveKind)),
    st.tuples(st.just("let go"), st.none()),
    st.tuples(st.just("keepalive"), st.floats(5, 25)),
    st.tuples(st.just("unsendable"), st.booleans()),
)
networks = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "methods": st.sampled_from(METHOD_SETS),
        "servers": st.none() | st.sampled_from(SERVER_SETS),
        "two_addresses": st.booleans(),
        "seed": st.integers(0, 999),
        "side_by_side": st.booleans(),
        "fresh_port": st.booleans(),
    }
)


class Walk(LivingSocket):
    """A socket to which everything happens, and whose events are judged as they come."""

    def __init__(self, kind: str, servers: Sequence[Endpoint] | None, **given: object) -> None:
        self.nat_translates = BEHAVIOURS[kind][0] is not None
        self.answers: dict[Source, tuple[str, float]] = dict.fromkeys(PROVIDED, ("true", 0.05))
        self.unanswered: list[Source] = []
        self.held: set[Source] = set()
        self.asked: set[Source] = set()
        self.kind_of_nat = kind
        self.has_acquired = False
        self.unsendable = self.is_set_up = False
        self.believed: PublicBinding | None = None
        self.turns: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.asks: Counter[int] = Counter()
        self.knows_servers = servers is not None
        super().__init__(
            kind,
            servers=servers,
            begin=False,
            **given,  # type: ignore[arg-type]  # the rest of `networks`
        )
        self.methods = given["methods"]
        self.be_at(0)
        self.begin()

    # Watched

    def _drain(self) -> None:
        self.turns[int(self.now)] += 1
        assert self.turns[int(self.now)] < MOST_TURNS_PER_S, "it runs in circles"
        seen = len(self.events)
        super()._drain()
        for _, event in self.events[seen:]:
            self._judge(event)
        assert (self.machine.binding is None) is (self.believed is None)
        if self.machine.binding is not None and self.believed is not None:
            assert _named(self.machine.binding) == _named(self.believed), "another one that was not told"

    def _judge(self, event: BindingEvent) -> None:
        if isinstance(event, Ask):
            self.asks[int(self.now)] += 1
            assert self.asks[int(self.now)] < MOST_ASKED_PER_S
            assert event.source in PROVIDED
            self.asked.add(event.source)
            answer, delay_s = self.answers[event.source]
            if answer == "never":
                self.unanswered.append(event.source)
            else:
                self.after(delay_s, partial(self.answer, event.source, answer))
        elif isinstance(event, Release):
            assert event.source in self.asked, "what nobody has is released"
            self.held.discard(event.source)
            self.asked.discard(event.source)
            if event.source is Source.ROUTER:
                self.after(0.1, self._forward_no_longer)
        elif isinstance(event, Failed):
            assert not self.has_acquired, "it failed after it was acquired"
            assert str(event.error)
        else:
            self._judge_change(event)

    def _judge_change(self, change: BindingChange) -> None:
        assert change.reason
        if change.kind is ChangeKind.LOST:
            assert self.believed is not None
            assert change.previous is not None
            assert _named(change.previous) == _named(self.believed)
            assert change.binding is None
        elif change.kind is ChangeKind.CHANGED:
            assert change.binding is not None
            assert change.previous is not None
            assert self.believed is not None
            assert _named(change.previous) == _named(self.believed)
            assert _named(change.binding) != _named(change.previous)
        else:
            assert self.believed is None
            assert (change.kind is ChangeKind.RESTORED) is self.has_acquired
            assert (change.previous is not None) is self.has_acquired
            assert change.binding is not None
            self.has_acquired = True
        self.believed = change.binding
        if change.binding is not None and change.binding.method is Method.STUN and self.is_symmetric:
            assert change.binding.reachability.reach is Reach.SERVER_ONLY

    def _transmit(self, transmit: Transmit) -> None:
        self.sent[int(self.now)] += 1
        assert self.sent[int(self.now)] < MOST_PACKETS_PER_S
        if self.unsendable:
            to = transmit.destination
            self.after(0, lambda: self.machine.undeliverable(to, "Network is unreachable", now=self.now))
        else:
            super()._transmit(transmit)

    @property
    def is_symmetric(self) -> bool:
        return self.kind_of_nat in ("symmetric", "address-dependent")

    # Providers

    def claim_of(self, source: Source, answer: str) -> Claim:
        """What a provider says, and what its router then does, or does not."""
        if source is Source.VPN:
            return Claim(Method.VPN, TUNNELED, TUNNELED, "wg0 leads there", realm=REALM)
        public = Endpoint(self.nat.public_ip, 5060)
        method = Method.PCP if source is Source.ROUTER else Method.STATIC
        if answer in ("lie", "second NAT") and source is Source.ROUTER and not self.is_set_up:
            self.nat.forwards.clear()  # what it had granted before is no more
        if answer == "lie":
            public = public.with_port(6000)
        elif answer == "second NAT":
            public = Endpoint.of("11.22.33.44", 5060)
        else:
            self.nat.forwards[public.port] = self.local
            self.is_set_up = self.is_set_up or source is Source.STATIC
        return Claim(method, self.local, public, f"{source.value} says so")

    def answer(self, source: Source, answer: str) -> None:
        """Have a provider say something, asked or not."""
        refusal = NoRouterError("no router answered") if source is Source.ROUTER else BindingError("not set")
        if answer == "refuse":
            self.machine.refuse(source, refusal, now=self.now)
            return
        times = 2 if answer == "twice" else 1
        for _ in range(times):
            self.held.add(source)
            self.asked.add(source)
            self.machine.claim(self.claim_of(source, answer), now=self.now)
            self._drain()
        if answer == "both":
            self.held.discard(source)
            self.machine.refuse(source, refusal, now=self.now)

    # What happens

    def do(self, name: str, value: object) -> None:
        """Take one step."""
        match name, value:
            case "wait", float(seconds):
                self.run_for(seconds)
            case "restart", str() | None as public_ip:
                self.nat.restart(public_ip if self.nat_translates else None)
                if not self.is_set_up:  # an administrator's outlives it
                    self.nat.forwards.clear()
                for source in (Source.STATIC, Source.ROUTER):
                    if self.answers[source][0] == "true":  # who forwarded the port notices, and does it again
                        self._renews(source)
            case "cut", bool(is_cut):
                self.cut = is_cut
            case "stop", tuple(stopped):
                self.stopped = set(stopped)
            case "lose packets", float(loss):
                self.loss = loss
            case "network", int() | None as which:
                self.network(which)
            case "storm", int(times):
                for _ in range(times):
                    self.network(self.rng.choice([None, 0, 0, 0]))
                self.network(0)
            case "answers", (Source() as source, str(answer), float(delay_s)):
                self.answers[source] = answer, delay_s
            case "news", (Source() as source, str(answer)):
                self.tell(partial(self.answer, source, answer))
            case "servers", tuple(servers):
                self.knows_servers = True
                self.tell(partial(self.machine.use_servers, servers, now=self.now))
            case "sleep", float(seconds):
                self.run_for(0.1)  # what is on its way arrives before
                self.now += seconds
            case "arrives", bytes(data):
                self.tell(lambda: _is_bool(self.machine.receive(data, STRANGER, now=self.now)))
            case "keep open", KeepaliveKind() as kind:
                self.tell(partial(self.machine.keep_open, STRANGER, kind, now=self.now))
            case "let go", None:
                self.tell(partial(self.machine.let_go, STRANGER))
            case "keepalive", float(interval_s):
                self.tell(partial(self.machine.set_keepalive, interval_s, now=self.now))
            case "unsendable", bool(is_unsendable):
                self.unsendable = is_unsendable
            case _:
                raise AssertionError(name)

    def network(self, which: int | None) -> None:
        if which is None:
            self.tell(partial(self.machine.network_changed, None, "eth0 is down", now=self.now))
            return
        self.be_at(which)
        self.asks[int(self.now)] -= len(PROVIDED)  # each network may have another router
        self.tell(partial(self.machine.network_changed, self.local, "eth0 is up", now=self.now))

    def be_at(self, which: int) -> None:
        """Have that address; a firewall opens ports for it as a NAT forwards them."""
        former, self.local = self.local, Endpoint.of(INSIDE[self.nat_translates][which], 5060)
        if former != self.local:
            self._forget_forwards()
        if not self.nat_translates:
            self.nat.public_ip = self.local.ip

    def _forget_forwards(self) -> None:
        self.nat.forwards.clear()
        self.is_set_up = False

    def _forward_no_longer(self) -> None:
        """What a router forwards is gone once it is given back; what an administrator set up stays."""
        if Source.ROUTER not in self.held and not self.is_set_up:
            self.nat.forwards.clear()

    def _renews(self, source: Source) -> None:
        if source in self.held:
            self.after(0.5, partial(self.answer, source, "true"))

    def come_to_rest(self) -> None:
        """Everything works again, whoever was asked answers, and nothing more happens."""
        self.cut = self.unsendable = False
        self.loss = 0.0
        self.stopped.clear()
        self.answers = dict.fromkeys(PROVIDED, ("true", 0.05))
        if not self.knows_servers:
            self.do("servers", (SERVER,))
        for source in (Source.STATIC, Source.ROUTER):
            self._renews(source)
        for source in self.unanswered:
            self.after(0.01, partial(self.answer, source, "true"))
        self.do("network", 0)
        self.run_for(RECOVERY_S)
        if not self.has_acquired:  # it says so, and waits for something to change
            self.do("network", 0)
            self.run_for(RECOVERY_S)

    def look(self) -> None:
        """See that what is claimed is true, and that nothing is left lying about."""
        binding = self.machine.binding
        if binding is None:
            assert not self.can_be_had(), self.events
            return
        assert self.held <= {binding.method.source}, "something that is not used is not given back"
        if binding.realm:
            return
        reach = binding.reachability.reach
        if reach is Reach.ANYONE:
            assert self.arrives(Endpoint.of("203.0.113.77", 7777), binding.public)
        elif reach is Reach.HOSTS_SENT_TO:
            peer = Endpoint.of("203.0.113.78", 7777)
            assert self.send(peer) == binding.public
            assert self.arrives(peer, binding.public)
        elif reach is Reach.SERVER_ONLY:
            assert self.arrives(self.machine._reflection.server, binding.public)  # type: ignore[union-attr]  # it has one
        if binding.method is Method.STUN and self.is_symmetric:
            assert reach is Reach.SERVER_ONLY

    def can_be_had(self) -> bool:
        """Whether it must have something; one server alone may find something even where this says no."""
        methods = self.methods
        assert isinstance(methods, tuple)
        if any(method.source in PROVIDED for method in methods):
            return True
        if not self.machine._servers:
            return False
        return not self.is_symmetric


def _named(binding: PublicBinding) -> tuple[object, ...]:
    return binding.local, binding.public, binding.method, binding.realm


def _is_bool(value: object) -> None:
    assert value in (True, False)


def lives_through(given_settings: dict[str, object], story: list[tuple[str, object]]) -> None:
    """Have all that happen, then let it come to rest, and look."""
    walk = Walk(**given_settings)  # type: ignore[arg-type]  # drawn for it
    for name, value in story:
        walk.do(name, value)
    walk.come_to_rest()
    walk.look()


@given(networks, st.lists(steps, max_size=10))
def test_after_whatever_little_happens_it_has_what_there_is_and_claims_what_is_true(
    given_settings: dict[str, object], story: list[tuple[str, object]]
) -> None:
    lives_through(given_settings, story)


@settings(max_examples=200)
@given(networks, st.lists(steps, min_size=15, max_size=40))
def test_a_long_and_eventful_life_leaves_nothing_behind(
    given_settings: dict[str, object], story: list[tuple[str, object]]
) -> None:
    lives_through(given_settings, story)
