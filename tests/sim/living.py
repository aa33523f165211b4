"""A socket that lives on the simulated internet with its binding: NATs that forget, cables, and a clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from nattools.binding.machine import Ask, BindingEvent, BindingMachine, Release
from nattools.binding.model import BindingChange, ChangeKind, Claim, Method, PublicBinding, Reach, Source
from nattools.endpoint import Endpoint
from nattools.errors import NatToolsError
from nattools.machine import Transmit
from nattools.stun.responder import Reply, Responder, ServerAddresses
from tests.sim.internet import BEHAVIOURS, KEYS, Key

A1, A2 = "203.0.113.10", "203.0.113.11"
SERVER = Endpoint.of(A1, 3478)
SECOND_SERVER = Endpoint.of("203.0.113.30", 3478)
STRANGER = Endpoint.of("203.0.113.20", 5060)
ROUTER_IP = "203.0.113.1"
INSIDE_IP = "192.168.0.108"
DELAY_S = 0.01


class ForgetfulNat:
    """A NAT or firewall of natlab's kinds that forgets after `lifetime_s` of silence, or when it restarts."""

    def __init__(self, kind: str, rng: random.Random, clock: Callable[[], float], lifetime_s: float) -> None:
        mapping, filtering = BEHAVIOURS[kind]
        self._mapping = KEYS[mapping] if mapping else None
        self._filtering = KEYS[filtering]
        self._keeps_port = mapping == "endpoint-independent"
        self._rng = rng
        self._clock = clock
        self.lifetime_s = lifetime_s
        self.public_ip = ip_address(ROUTER_IP)
        self.forwards: dict[int, Endpoint] = {}
        self._public: dict[Key, Endpoint] = {}
        self._inside: dict[Endpoint, Endpoint] = {}
        self._open: dict[Endpoint, dict[Key, float]] = {}

    def restart(self, public_ip: str | None = None) -> None:
        """Forget everything, and perhaps come back with another address."""
        self.public_ip = ip_address(public_ip) if public_ip else self.public_ip
        self._public.clear()
        self._inside.clear()
        self._open.clear()

    def outbound(self, inside: Endpoint, remote: Endpoint) -> Endpoint:
        self._forget_old()
        public = inside
        if self._mapping is not None:
            key = (inside, *self._mapping(remote))
            if key not in self._public:
                self._public[key] = self._allocate(inside)
            public = self._public[key]
        self._inside[public] = inside
        self._open.setdefault(public, {})[self._filtering(remote)] = self._clock()
        return public

    def _allocate(self, inside: Endpoint) -> Endpoint:
        port = inside.port if self._keeps_port else self._rng.randint(1024, 65535)
        while (public := Endpoint(self.public_ip, port)) in self._inside:
            port = self._rng.randint(1024, 65535)
        return public

    def _forget_old(self) -> None:
        since = self._clock() - self.lifetime_s
        for public, heard in list(self._open.items()):
            for key in [key for key, at in heard.items() if at < since]:
                del heard[key]
            if not heard:
                del self._open[public]
                self._inside.pop(public, None)
                for key in [key for key, known in self._public.items() if known == public]:
                    del self._public[key]

    def inbound(self, public: Endpoint, remote: Endpoint) -> Endpoint | None:
        self._forget_old()
        if public.ip == self.public_ip and public.port in self.forwards:
            return self.forwards[public.port]
        heard = self._open.get(public)
        if heard is None or self._filtering(remote) not in heard:
            return None
        heard[self._filtering(remote)] = self._clock()
        return self._inside.get(public)


class LivingSocket:
    """One socket behind one NAT, driven by its `BindingMachine`; what happens is in `events`."""

    def __init__(
        self,
        kind: str = "port-restricted-cone",
        *,
        methods: Sequence[Method] = (Method.OPEN, Method.STUN),
        servers: Sequence[Endpoint] | None = (SERVER,),
        two_addresses: bool = True,
        seed: int = 1,
        loss: float = 0.0,
        lifetime_s: float = 120.0,
        local: Endpoint | None = None,
        begin: bool = True,
        **settings: object,
    ) -> None:
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.loss = loss
        self.cut = False
        self.stopped: set[str] = set()
        self.nat = ForgetfulNat(kind, self.rng, lambda: self.now, lifetime_s)
        inside = INSIDE_IP if self.nat._mapping is not None else "198.51.100.108"
        self.local = local or Endpoint.of(inside, 5060)
        alternate = (ip_address(A2), 3479) if two_addresses else (None, None)
        whole = Responder(ServerAddresses(SERVER.ip, 3478, *alternate))
        plain = Responder(ServerAddresses(SECOND_SERVER.ip, 3478))
        self._responders = {**dict.fromkeys(whole.addresses.endpoints, whole), SECOND_SERVER: plain}
        self.providers: dict[Source, Callable[[], Claim | NatToolsError | None]] = {}
        self.provider_delay_s = 0.05
        self.events: list[tuple[float, BindingEvent]] = []
        self.program: list[bytes] = []
        self.packets_sent = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._make: Callable[[], BindingMachine] = lambda: BindingMachine(
            self.local,
            methods=methods,
            servers=servers,
            entropy=self.rng.randbytes,
            now=self.now,
            **settings,  # type: ignore[arg-type]  # whatever a test varies
        )
        if begin:
            self.begin()

    def begin(self) -> None:
        """Open the socket, or open it anew on the same port."""
        self.machine = self._make()
        self._drain()

    @property
    def changes(self) -> list[BindingChange]:
        return [event for _, event in self.events if isinstance(event, BindingChange)]

    @property
    def kinds(self) -> list[ChangeKind]:
        return [change.kind for change in self.changes]

    @property
    def binding(self) -> PublicBinding:
        assert self.machine.binding is not None, self.events
        return self.machine.binding

    def reach(self) -> Reach:
        """Who can reach the binding, as it claims."""
        return self.binding.reachability.reach

    def when(self, kind: ChangeKind) -> float:
        """When that was last told."""
        return [at for at, event in self.events if isinstance(event, BindingChange) and event.kind is kind][
            -1
        ]

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while True:
            timeout_at = self.machine.timeout_at()
            next_at = min(timeout_at or end, self._queue[0][0] if self._queue else end, end)
            self.now = max(self.now, next_at)
            if self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            elif timeout_at is not None and timeout_at <= self.now:
                self.machine.handle_timeout(now=self.now)
            elif self.now >= end:
                return
            self._drain()

    def tell(self, action: Callable[[], None]) -> None:
        """Do something to the machine, and drain it."""
        action()
        self._drain()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def arrives(self, sender: Endpoint, public: Endpoint, data: bytes = b"INVITE sip:me") -> bool:
        """Whether a datagram that `sender` sends to `public` now comes to the program."""
        before = len(self.program)
        self._come_in(data, sender, public)
        return len(self.program) > before

    def send(self, destination: Endpoint) -> Endpoint:
        """Have the program send something, and return where it is seen to come from."""
        return self.nat.outbound(self.local, destination)

    def _drain(self) -> None:
        for transmit in self.machine.transmits():
            self._transmit(transmit)
        while (event := self.machine.next_event()) is not None:
            self.events.append((self.now, event))
            if isinstance(event, Ask) and event.source in self.providers:
                self.after(self.provider_delay_s, lambda source=event.source: self._answer(source))  # type: ignore[misc]  # a default

    def _answer(self, source: Source) -> None:
        said = self.providers[source]()
        if isinstance(said, Claim):
            self.machine.claim(said, now=self.now)
        elif said is not None:
            self.machine.refuse(source, said, now=self.now)

    def _crosses(self) -> bool:
        return not self.cut and (not self.loss or self.rng.random() >= self.loss)

    def _transmit(self, transmit: Transmit) -> None:
        self.packets_sent += 1
        source = self.nat.outbound(self.local, transmit.destination)
        if self._crosses() and str(transmit.destination.ip) not in self.stopped:
            self.after(DELAY_S, lambda: self._serve(transmit.data, source, transmit.destination))

    def _serve(self, data: bytes, source: Endpoint, server: Endpoint) -> None:
        responder = self._responders.get(server)
        reply = responder.respond(data, source, server) if responder else None
        if isinstance(reply, Reply) and str(reply.origin.ip) not in self.stopped:
            self.after(DELAY_S, lambda: self._come_in(reply.data, reply.origin, reply.destination))

    def _come_in(self, data: bytes, source: Endpoint, public: Endpoint) -> None:
        if self._crosses() and self.nat.inbound(public, source) == self.local:
            if not self.machine.receive(data, source, now=self.now):
                self.program.append(data)
            self._drain()


def told(events: Iterable[tuple[float, BindingEvent]], kind: type[Ask | Release]) -> list[Source]:
    """The sources that were asked, or released, in order."""
    return [event.source for _, event in events if isinstance(event, kind)]
