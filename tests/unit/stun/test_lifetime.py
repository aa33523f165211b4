"""How long an idle binding lives, measured through a NAT that forgets, with a clock that jumps."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint, IPAddress
from nattools.machine import Transmit
from nattools.stun.attributes import (
    ERROR_CODE,
    OTHER_ADDRESS,
    RESPONSE_PORT,
    XOR_MAPPED_ADDRESS,
    Attribute,
    Error,
)
from nattools.stun.integrity import with_fingerprint
from nattools.stun.lifetime import (
    RESTS_S,
    Expired,
    Finished,
    Lifetime,
    LifetimeEvent,
    Survived,
    safe_interval_s,
    socket_names,
)
from nattools.stun.message import Message, MessageClass
from nattools.stun.responder import Reply, Responder, ServerAddresses

A1, A2 = ip_address("203.0.113.10"), ip_address("203.0.113.11")
SERVER, OTHER = Endpoint(A1, 3478), Endpoint(A2, 3479)
PUBLIC_IP, NEW_PUBLIC_IP = ip_address("198.51.100.1"), ip_address("198.51.100.2")
RESPONDER = Responder(ServerAddresses(A1, 3478, A2, 3479))

Answer = tuple[bytes, Endpoint]  # the datagram, and where to
Server = Callable[[bytes, Endpoint], Answer | None]


def rfc5780_server(data: bytes, source: Endpoint) -> Answer | None:
    """The responder of `stund`."""
    reply = RESPONDER.respond(data, source, SERVER)
    return (reply.data, reply.destination) if isinstance(reply, Reply) else None


def without(*codecs: object) -> Server:
    """The same, but blind to some attributes of a request, or silent about some of the answer."""

    def serve(data: bytes, source: Endpoint) -> Answer | None:
        request = Message.parse(data)
        asked = tuple(a for a in request.attributes if a.type not in types)
        reply = rfc5780_server(_message(request, MessageClass.REQUEST, asked), source)
        if reply is None:
            return None
        answer = Message.parse(reply[0])
        said = tuple(a for a in answer.attributes if a.type not in types)
        return _message(answer, answer.message_class, said), reply[1]

    types = {codec.type for codec in codecs}  # type: ignore[attr-defined]  # codecs of several value types
    return serve


def refusing(code: int, *, only_ports: bool) -> Server:
    """Answers with an error, what asks for another port or everything."""

    def serve(data: bytes, source: Endpoint) -> Answer | None:
        request = Message.parse(data)
        if only_ports and not request.has(RESPONSE_PORT):
            return rfc5780_server(data, source)
        return _message(request, MessageClass.ERROR, (ERROR_CODE.of(Error(code, "No")),)), source

    return serve


def silent_to_other_ports(data: bytes, source: Endpoint) -> Answer | None:
    return None if Message.parse(data).has(RESPONSE_PORT) else rfc5780_server(data, source)


def _message(like: Message, message_class: MessageClass, attributes: tuple[Attribute, ...]) -> bytes:
    return Message(like.method, message_class, like.transaction_id, attributes).encode()


@dataclass
class Flow:
    """What the NAT knows of one socket."""

    public: Endpoint
    used_at: float


@dataclass
class World:
    """The machine behind a NAT that forgets a flow after `lifetime_s`, and a server."""

    lifetime_s: float
    server: Server = rfc5780_server
    seed: int = 1
    loss: float = 0.0
    delay_s: float = 0.01
    duplicates: float = 0.0
    refreshed_by_answers: bool = True
    reuses_ports: bool = False
    pool: tuple[IPAddress, ...] = (PUBLIC_IP,)
    new_address_after_s: float = float("inf")
    mixes_up_after_s: float = float("inf")
    longest_s: float = RESTS_S[-1]
    outages: list[tuple[float, float]] = field(default_factory=list)
    stops: list[tuple[float, float]] = field(default_factory=list)
    now: float = 1000.0
    events: list[tuple[float, LifetimeEvent]] = field(default_factory=list)
    sent: list[tuple[float, Transmit]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.started_at = self.now
        self._flows: dict[str, Flow] = {}
        self._ports = itertools.count(20000)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.machine = Lifetime(
            SERVER,
            sockets=socket_names(self.longest_s),
            entropy=self.rng.randbytes,
            now=self.now,
            longest_s=self.longest_s,
        )

    @property
    def elapsed_s(self) -> float:
        return self.now - self.started_at

    def run(self) -> Finished:
        while True:
            for transmit in self.machine.transmits():
                self.sent.append((self.elapsed_s, transmit))
                self._out(transmit)
            while (event := self.machine.next_event()) is not None:
                self.events.append((self.elapsed_s, event))
                if isinstance(event, Finished):
                    assert self.machine.timeout_at() is None
                    return event
            timeout_at = self.machine.timeout_at()
            assert timeout_at is not None
            if self._queue and self._queue[0][0] <= timeout_at:
                self.now, _, action = heapq.heappop(self._queue)
                action()
            else:
                self.now = self._awake_at(max(self.now, timeout_at))
                self.machine.handle_timeout(now=self.now)

    def _awake_at(self, when: float) -> float:
        """Timers that fall into a stop of the process come after it."""
        for begin, end in self.stops:
            if begin <= when - self.started_at < end:
                return self.started_at + end
        return when

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def _crosses(self) -> bool:
        is_out = any(begin <= self.elapsed_s < end for begin, end in self.outages)
        return not is_out and self.rng.random() >= self.loss

    def _out(self, transmit: Transmit) -> None:
        assert transmit.destination == SERVER
        public = self._translated(transmit.socket)
        if self._crosses():
            self._after(self.delay_s, lambda: self._serve(transmit.data, public))

    def _translated(self, socket: str) -> Endpoint:
        flow = self._flows.get(socket)
        moved = self.elapsed_s >= self.new_address_after_s
        if flow is None or self._is_over(flow) or (moved and flow.public.ip != NEW_PUBLIC_IP):
            address = NEW_PUBLIC_IP if moved else self.rng.choice(self.pool)
            flow = self._flows[socket] = Flow(Endpoint(address, self._new_port(socket)), self.now)
        flow.used_at = self.now
        return flow.public

    def _new_port(self, socket: str) -> int:
        others = [flow for name, flow in self._flows.items() if name != socket and self._is_over(flow)]
        return min(flow.public.port for flow in others) if self.reuses_ports and others else next(self._ports)

    def _is_over(self, flow: Flow) -> bool:
        return self.now - flow.used_at >= self.lifetime_s

    def _serve(self, data: bytes, public: Endpoint) -> None:
        answer = self.server(data, public)
        if answer is None:
            return
        for _ in range(1 + (self.rng.random() < self.duplicates)):
            if self._crosses():
                self._after(self.delay_s, lambda: self._in(*answer))

    def _in(self, data: bytes, public: Endpoint) -> None:
        for socket, flow in self._flows.items():
            if flow.public == public and not self._is_over(flow):
                if self.refreshed_by_answers:
                    flow.used_at = self.now
                mixed_up = self.elapsed_s >= self.mixes_up_after_s and socket != "ask"
                self.machine.receive(data, SERVER, now=self.now, socket="idle-12" if mixed_up else socket)

    def check_truth(self, finished: Finished) -> None:
        """What was said holds of the NAT as it is."""
        slack_s = 2 * self.delay_s  # one way is not seen from here
        for _, event in self.events:
            if isinstance(event, Survived):
                assert event.idle_s <= self.lifetime_s + slack_s
            elif isinstance(event, Expired):
                assert event.idle_s >= self.lifetime_s - slack_s
        if finished.longest_survived_s is not None:
            assert finished.longest_survived_s <= self.lifetime_s + slack_s
        if finished.shortest_expired_s is not None:
            assert finished.shortest_expired_s >= self.lifetime_s - slack_s


LIFETIMES_S = [2.0, 4.0, 6.5, 10.0, 20.0, 30.0, 59.0, 61.0, 120.0, 180.0, 299.0]


@pytest.mark.parametrize("lifetime_s", LIFETIMES_S)
@pytest.mark.parametrize("refreshed", [True, False], ids=["refreshed by answers", "by requests alone"])
def test_the_lifetime_is_found_between_two_rests(lifetime_s: float, refreshed: bool) -> None:
    world = World(lifetime_s, refreshed_by_answers=refreshed)
    finished = world.run()
    world.check_truth(finished)
    below = [rest_s for rest_s in RESTS_S if rest_s < lifetime_s]
    above = [rest_s for rest_s in RESTS_S if rest_s >= lifetime_s]
    assert finished.longest_survived_s == pytest.approx(max(below, default=None))
    assert finished.shortest_expired_s == pytest.approx(min(above), abs=0.6)
    assert world.elapsed_s < min(above) + 1.0  # longer rests are not waited for


def test_what_is_known_early_is_said_early() -> None:
    world = World(20.0)
    world.run()
    assert [type(event) for _, event in world.events] == [Survived] * 5 + [Expired, Finished]
    for (when, event), rest_s in zip(world.events[:-1], RESTS_S, strict=False):
        assert when == pytest.approx(rest_s, abs=0.6)
        assert not isinstance(event, Survived) or event.idle_s == rest_s


def test_a_binding_that_survives_everything_has_no_end() -> None:
    finished = World(1000.0).run()
    assert (finished.longest_survived_s, finished.shortest_expired_s) == (300.0, None)
    assert finished.reason == "bindings survived up to 300 s of silence"


def test_no_rest_is_longer_than_wanted() -> None:
    world = World(1000.0, longest_s=30.0)
    assert world.run().longest_survived_s == 27.0
    assert world.elapsed_s < 28
    assert len({transmit.socket for _, transmit in world.sent}) == 7


def test_a_binding_that_is_gone_at_once_is_said_to_be() -> None:
    finished = World(1.0).run()
    assert finished.longest_survived_s is None
    assert finished.shortest_expired_s == pytest.approx(3.0, abs=0.6)


def test_a_socket_that_rests_sends_nothing() -> None:
    world = World(1000.0, loss=0.2, seed=3)
    world.run()
    for when, transmit in world.sent:
        assert when < 20 or transmit.socket == "ask"
        assert transmit.socket == "ask" or not Message.parse(transmit.data).attributes


def test_few_packets_are_sent_where_none_is_lost() -> None:
    world = World(30.0)
    world.run()
    assert len(world.sent) < 100


@pytest.mark.parametrize("lifetime_s", [4.0, 30.0, 120.0])
def test_loss_and_duplicates_do_not_look_like_a_lifetime(lifetime_s: float) -> None:
    found = []
    for seed in range(100):
        world = World(lifetime_s, seed=seed, loss=0.2, duplicates=0.2, refreshed_by_answers=seed % 2 == 0)
        finished = world.run()
        world.check_truth(finished)
        found.append(finished.shortest_expired_s is not None)
    assert sum(found) >= 95


def test_a_slow_way_is_given_its_time() -> None:
    world = World(30.0, delay_s=1.0)
    finished = world.run()
    world.check_truth(finished)
    assert finished.longest_survived_s == pytest.approx(27.0, abs=1.0)
    assert finished.shortest_expired_s is not None


@pytest.mark.parametrize("outage", [(26.9, 27.9), (26.9, 30.0), (27.005, 29.0)])
def test_an_outage_does_not_look_like_a_lifetime(outage: tuple[float, float]) -> None:
    world = World(100.0, outages=[outage])
    finished = world.run()
    world.check_truth(finished)
    assert finished.longest_survived_s == pytest.approx(90.0)
    assert "not known" not in finished.reason  # it was waited out


def test_silence_counts_only_beside_a_plain_request_that_was_answered() -> None:
    world = World(10.0)
    answered: list[float] = []

    def serve(data: bytes, source: Endpoint) -> Answer | None:
        if world.elapsed_s > 11 and not Message.parse(data).has(RESPONSE_PORT):
            if world.rng.random() < 0.6:
                return None
            answered.append(world.elapsed_s)
        return rfc5780_server(data, source)

    world.server = serve
    finished = world.run()
    world.check_truth(finished)
    assert finished.shortest_expired_s is not None
    assert len(answered) >= 12


def test_a_server_that_stops_answering_leaves_undecided_what_is_left() -> None:
    world = World(100.0, outages=[(20.0, 1000.0)])
    finished = world.run()
    assert (finished.longest_survived_s, finished.shortest_expired_s) == (18.0, None)
    assert f"not known for 27 s: {SERVER} stopped answering" in finished.reason


def test_a_timer_that_comes_late_counts_the_whole_rest() -> None:
    world = World(30.0, stops=[(7.0, 100.0)])
    finished = world.run()
    world.check_truth(finished)
    assert finished.longest_survived_s == 5.0
    assert finished.shortest_expired_s is not None
    assert finished.shortest_expired_s >= 99


def test_a_forgotten_port_that_the_asking_socket_gets_shows_at_once_that_it_was_forgotten() -> None:
    world = World(2.5, reuses_ports=True)
    finished = world.run()
    world.check_truth(finished)
    assert finished.shortest_expired_s == pytest.approx(3.0, abs=0.1)


def test_a_new_public_address_is_not_a_lifetime() -> None:
    world = World(100.0, new_address_after_s=10.0)
    finished = world.run()
    assert (finished.longest_survived_s, finished.shortest_expired_s) == (8.0, None)
    assert f"not known for 12 s: seen at {PUBLIC_IP} before, and at {NEW_PUBLIC_IP} now" in finished.reason
    assert world.elapsed_s < 13  # nothing else that rests can be reached


def test_an_answer_at_another_socket_shows_nothing() -> None:
    world = World(100.0, mixes_up_after_s=2.0)
    world.run()
    assert not any(isinstance(event, Survived) for _, event in world.events)


def test_sockets_at_another_public_address_are_left_out() -> None:
    for seed in range(20):
        world = World(30.0, seed=seed, pool=(PUBLIC_IP, NEW_PUBLIC_IP))
        world.check_truth(world.run())


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (without(OTHER_ADDRESS), "is no RFC 5780 server"),
        (without(RESPONSE_PORT), "ignores RESPONSE-PORT"),
        (without(XOR_MAPPED_ADDRESS), "no mapped address"),
        (refusing(420, only_ports=True), "refuses RESPONSE-PORT: error 420 No"),
        (refusing(401, only_ports=False), "error 401 No"),
        (silent_to_other_ports, "answers, but not to another port"),
        (lambda data, source: None, "did not answer, asked 7 times"),
    ],
)
def test_a_server_that_cannot_do_it_is_told_from_a_short_lifetime(server: Server, said: str) -> None:
    world = World(100.0, server=server)
    finished = world.run()
    assert (finished.longest_survived_s, finished.shortest_expired_s) == (None, None)
    assert said in finished.reason
    assert str(SERVER) in finished.reason
    assert world.elapsed_s < 20


@pytest.mark.parametrize("sockets", [("ask",), socket_names(2.9)])
def test_nothing_to_rest_for_is_said_at_once(sockets: tuple[str, ...]) -> None:
    machine = Lifetime(SERVER, sockets=sockets, entropy=random.Random(1).randbytes, now=0.0, longest_s=2.9)
    assert machine.timeout_at() is None
    event = machine.next_event()
    assert isinstance(event, Finished)
    assert "nothing to measure" in event.reason
    assert list(machine.transmits()) == []


class TestForgery:
    @staticmethod
    def asked() -> tuple[Lifetime, Transmit, bytes]:
        machine = Lifetime(SERVER, sockets=socket_names(), entropy=random.Random(1).randbytes, now=0.0)
        (request,) = machine.transmits()
        answer = rfc5780_server(request.data, Endpoint(PUBLIC_IP, 20000))
        assert answer is not None
        return machine, request, answer[0]

    def test_the_answer_is_taken(self) -> None:
        machine, request, answer = self.asked()
        machine.receive(answer, SERVER, now=0.02, socket=request.socket)
        assert len(list(machine.transmits())) == len(RESTS_S)

    def test_an_answer_with_a_wrong_fingerprint_is_none(self) -> None:
        machine, request, answer = self.asked()
        sealed = bytearray(with_fingerprint(Message.parse(answer)).encode())
        sealed[-1] ^= 1
        machine.receive(bytes(sealed), SERVER, now=0.02, socket=request.socket)
        assert list(machine.transmits()) == []

    @pytest.mark.parametrize(
        ("source", "socket", "change"),
        [
            (OTHER, "ask", slice(0)),
            (SERVER.with_port(3479), "ask", slice(0)),
            (SERVER, "idle-1", slice(0)),
            (SERVER, "", slice(0)),
            (SERVER, "ask", slice(4, 8)),
            (SERVER, "ask", slice(19, 20)),
            (SERVER, "ask", slice(0, 1)),
        ],
    )
    def test_what_only_looks_like_it_is_not(self, source: Endpoint, socket: str, change: slice) -> None:
        machine, _, answer = self.asked()
        forged = bytearray(answer)
        forged[change] = bytes(byte ^ 1 for byte in forged[change])
        machine.receive(bytes(forged), source, now=0.02, socket=socket)
        assert list(machine.transmits()) == []
        assert machine.next_event() is None


@pytest.mark.parametrize(
    ("survived_s", "interval_s"), [(3.0, 2.4), (27.0, 21.6), (300.0, 240.0), (3600.0, 240.0), (0.5, 1.0)]
)
def test_the_interval_leaves_a_fifth(survived_s: float, interval_s: float) -> None:
    assert safe_interval_s(survived_s) == pytest.approx(interval_s)


def test_there_is_a_socket_for_each_rest() -> None:
    assert socket_names(8.0) == ("ask", "idle-1", "idle-2", "idle-3")
    assert len(socket_names()) == 1 + len(RESTS_S)
