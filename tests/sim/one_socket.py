"""One socket on the simulated internet, driven by its `Observer` alone, and servers as a test wants them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from nattools.binding.model import Reflection
from nattools.binding.observer import Inbound, Observer, ObserverEvent, Reflected, Silent
from nattools.endpoint import Endpoint
from nattools.stun.responder import Reply as Response
from nattools.stun.responder import Responder, ServerAddresses
from tests.sim.internet import BEHAVIOURS, Reply, Server
from tests.sim.living import ROUTER_IP, ForgetfulNat
from tests.sim.servers import A1P1, A2P2, P1

SECOND = Endpoint.of("203.0.113.30", P1)
THIRD = Endpoint.of("203.0.113.40", P1)
STRANGER = Endpoint.of("203.0.113.20", 5060)
BEHIND = Endpoint.of("192.168.0.108", 5060)
IN_FRONT = Endpoint.of("198.51.100.108", 5060)
MAPPED = Endpoint.of(ROUTER_IP, 5060)
A_LONG_TIME_S = 60.0

EventT = TypeVar("EventT", bound=ObserverEvent)


def serving(*addresses: Endpoint) -> dict[Endpoint, Server]:
    """A right server: with A1:P1 and A2:P2 one of RFC 5780, with one endpoint a plain one."""
    first, second = addresses[0], addresses[1] if len(addresses) > 1 else None
    alternate = (second.ip, second.port) if second else (None, None)
    responder = Responder(ServerAddresses(first.ip, first.port, *alternate))

    def serve(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
        reply = responder.respond(data, source, local)
        return (reply.data, reply.origin, reply.destination) if isinstance(reply, Response) else None

    return dict.fromkeys(responder.addresses.endpoints, serve)


class OneSocket:
    """The socket, one NAT of natlab's kinds in front of it, and what its observer says."""

    def __init__(
        self,
        kind: str = "port-restricted-cone",
        *,
        servers: Sequence[Endpoint] = (A1P1,),
        seed: int = 1,
        loss: float = 0.0,
        delay_s: float = 0.01,
        jitter_s: float = 0.0,
        duplicates: float = 0.0,
        fresh_port: bool = False,
    ) -> None:
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.loss, self.delay_s, self.jitter_s, self.duplicates = loss, delay_s, jitter_s, duplicates
        self.nat = ForgetfulNat(kind, self.rng, lambda: self.now, 120.0)
        self.local = BEHIND if BEHAVIOURS[kind][0] is not None else IN_FRONT
        self.world = {**serving(A1P1, A2P2), **serving(SECOND), **serving(THIRD)}
        self.servers = servers
        self.events: list[ObserverEvent] = []
        self.asked: list[Endpoint] = []
        self.not_ours: list[bytes] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.open(fresh_port=fresh_port)

    def open(self, *, fresh_port: bool = False) -> None:
        """Have an observer begin, as a program that is started anew on the same port."""
        self.observer = Observer(entropy=self.rng.randbytes, fresh_port=fresh_port)
        self.observer.use_servers(self.servers, now=self.now)

    def observe(self, *, test_mapping: bool = True) -> Reflection:
        """Find out from the beginning, to the settled end; an `AssertionError` where it is silent."""
        self.observer.observe(self.local, now=self.now)
        if test_mapping:
            self.observer.test_mapping(now=self.now)
        found = self.wait_for(Reflected, lambda event: event.reflection.is_settled or not test_mapping)
        return found.reflection

    def silence(self) -> str:
        """Find out from the beginning that there is nobody, and why."""
        self.observer.observe(self.local, now=self.now)
        return self.wait_for(Silent).reason

    def check(self) -> None:
        """Send a keepalive."""
        self.observer.check(now=self.now)
        self._drain()

    def try_inbound(self, public: Endpoint) -> Inbound:
        """Have that endpoint tried, to the end."""
        self.observer.try_inbound(public, now=self.now)
        return self.wait_for(Inbound)

    def wait_for(self, kind: type[EventT], is_it: Callable[[EventT], bool] = lambda event: True) -> EventT:
        """Let time pass until there is such an event; those before it are dropped."""
        end = self.now + A_LONG_TIME_S
        while self.now < end:
            self._drain()
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind) and is_it(event):
                    return event
            if not self._step(end):
                break
        raise AssertionError(f"no {kind.__name__} came")

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        self._drain()
        while self._step(end):
            self._drain()
        self.now = end

    def _step(self, end: float) -> bool:
        """Do what comes next, unless it comes after `end`."""
        timeout_at = self.observer.timeout_at()
        queued_at = self._queue[0][0] if self._queue else None
        next_at = min((at for at in (timeout_at, queued_at) if at is not None), default=None)
        if next_at is None or next_at > end:
            return False
        self.now = max(self.now, next_at)
        if queued_at is not None and queued_at <= self.now:
            heapq.heappop(self._queue)[2]()
        else:
            self.observer.handle_timeout(now=self.now)
        return True

    def _drain(self) -> None:
        for transmit in self.observer.transmits():
            self.asked.append(transmit.destination)
            self._send(transmit.data, transmit.destination)
        while (event := self.observer.next_event()) is not None:
            self.events.append(event)

    def _send(self, data: bytes, destination: Endpoint) -> None:
        source = self.nat.outbound(self.local, destination)
        if self._crosses():
            self._later(lambda: self._serve(data, source, destination))

    def _serve(self, data: bytes, source: Endpoint, local: Endpoint) -> None:
        server = self.world.get(local)
        reply = server(data, source, local) if server else None
        if reply is not None:
            for _ in range(1 + (self.rng.random() < self.duplicates)):
                if self._crosses():
                    self._later(lambda: self.come_in(*reply))

    def come_in(self, data: bytes, source: Endpoint, public: Endpoint) -> None:
        """A datagram reaches the NAT from outside."""
        if self.nat.inbound(public, source) == self.local:
            if not self.observer.receive(data, source, now=self.now):
                self.not_ours.append(data)
            self._drain()

    def _crosses(self) -> bool:
        return not self.loss or self.rng.random() >= self.loss

    def _later(self, action: Callable[[], None]) -> None:
        delay_s = self.delay_s + self.jitter_s * self.rng.random()
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))
