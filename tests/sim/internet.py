"""An in-memory internet: RFC 4787 NATs as key functions, loss, delay, duplicates, and a clock that jumps."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from nattools.endpoint import Endpoint
from nattools.stun.discovery import SOCKETS, Discovery, Finished, TcpWanted
from nattools.stun.observation import Observations

Key = tuple[object, ...]
KeyFunction = Callable[[Endpoint], Key]

KEYS: dict[str, KeyFunction] = {
    "endpoint-independent": lambda remote: (),
    "address-dependent": lambda remote: (remote.ip,),
    "address-and-port-dependent": lambda remote: (remote.ip, remote.port),
}
"""RFC 4787 in three lines: what of the remote endpoint a mapping or a filter looks at."""

BEHAVIOURS = {
    "full-cone": ("endpoint-independent", "endpoint-independent"),
    "restricted-cone": ("endpoint-independent", "address-dependent"),
    "port-restricted-cone": ("endpoint-independent", "address-and-port-dependent"),
    "address-dependent": ("address-dependent", "address-and-port-dependent"),
    "symmetric": ("address-and-port-dependent", "address-and-port-dependent"),
    "open": (None, "endpoint-independent"),
    "symmetric-firewall": (None, "address-and-port-dependent"),
}
"""natlab's kinds as (mapping, filtering); a mapping of None does not translate."""


class Nat:
    """One NAT, or, without a mapping key, one stateful firewall."""

    def __init__(self, kind: str, public_ip: str, *, hairpin: bool, rng: random.Random) -> None:
        mapping, filtering = BEHAVIOURS[kind]
        self._mapping = KEYS[mapping] if mapping else None
        self._filtering = KEYS[filtering]
        self._preserves = mapping == "endpoint-independent"
        self._rng = rng
        self.public_ip = ip_address(public_ip)
        self.hairpin = hairpin
        self._public: dict[Key, Endpoint] = {}
        self._inside: dict[Endpoint, Endpoint] = {}
        self._allowed: dict[Endpoint, set[Key]] = {}

    def outbound(self, inside: Endpoint, remote: Endpoint) -> Endpoint:
        public = inside
        if self._mapping is not None:
            key = (inside, *self._mapping(remote))
            if key not in self._public:
                self._public[key] = self._allocate(inside)
            public = self._public[key]
        self._inside[public] = inside
        self._allowed.setdefault(public, set()).add(self._filtering(remote))
        return public

    def _allocate(self, inside: Endpoint) -> Endpoint:
        port = inside.port if self._preserves else self._rng.randint(1024, 65535)
        while (public := Endpoint(self.public_ip, port)) in self._inside:
            port = self._rng.randint(1024, 65535)
        return public

    def inbound(self, public: Endpoint, remote: Endpoint) -> Endpoint | None:
        inside = self._inside.get(public)
        if inside is None or self._filtering(remote) not in self._allowed[public]:
            return None
        return inside

    def knows(self, public: Endpoint) -> bool:
        return self._mapping is not None and public.ip == self.public_ip


Reply = tuple[bytes, Endpoint, Endpoint]  # data, from, to
Server = Callable[[bytes, Endpoint, Endpoint], Reply | None]  # (data, source, local) -> Reply


@dataclass
class Internet:
    """A client behind `nats` (the innermost first), and servers on the other side."""

    nats: list[Nat]
    servers: dict[Endpoint, Server]
    rng: random.Random
    loss: float = 0.0
    delay_s: float = 0.01
    jitter_s: float = 0.0
    duplicates: float = 0.0
    udp_blocked: bool = False
    tcp_answers: bool = True
    client_ip: str = "192.168.0.108"
    now: float = 1000.0
    packets_sent: int = 0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def discover(self, servers: list[Endpoint], *, timeout_s: float = 5.0) -> Observations:
        """Run one discovery to its end."""
        ports = {name: 40000 + 2 * index for index, name in enumerate(SOCKETS)}
        names = {port: name for name, port in ports.items()}
        local = Endpoint(ip_address(self.client_ip), ports["mapping"])
        machine = Discovery(
            servers, local=local, entropy=self.rng.randbytes, now=self.now, timeout_s=timeout_s
        )

        def deliver(data: bytes, source: Endpoint, inside: Endpoint) -> None:
            machine.receive(data, source, now=self.now, socket=names[inside.port])

        while True:
            for transmit in machine.transmits():
                self.packets_sent += 1
                self._send(
                    transmit.data, local.with_port(ports[transmit.socket]), transmit.destination, deliver
                )
            while (event := machine.next_event()) is not None:
                if isinstance(event, Finished):
                    return event.observations
                if isinstance(event, TcpWanted) and self.tcp_answers:
                    self._after(
                        4 * self.delay_s, lambda: machine.tcp_answered(2 * self.delay_s, now=self.now)
                    )
            timeout_at = machine.timeout_at()
            if self._queue and (timeout_at is None or self._queue[0][0] <= timeout_at):
                self.now, _, action = heapq.heappop(self._queue)
                action()
            else:
                assert timeout_at is not None
                self.now = max(self.now, timeout_at)
                machine.handle_timeout(now=self.now)

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def _crosses(self) -> bool:
        return not self.udp_blocked and self.rng.random() >= self.loss

    def _send(
        self,
        data: bytes,
        inside: Endpoint,
        remote: Endpoint,
        deliver: Callable[[bytes, Endpoint, Endpoint], None],
    ) -> None:
        source = inside
        for depth, nat in enumerate(self.nats):
            source = nat.outbound(source, remote)
            if nat.knows(remote):
                if nat.hairpin and self._crosses():
                    self._come_in(data, source, remote, deliver, depth)
                return
        if not self._crosses():
            return

        def arrive() -> None:
            server = self.servers.get(remote)
            reply = server(data, source, remote) if server else None
            if reply is not None:
                copies = 1 + (self.rng.random() < self.duplicates)
                for _ in range(copies):
                    self._answer(*reply, deliver)

        self._after(self._one_way(), arrive)

    def _one_way(self) -> float:
        return self.delay_s + self.rng.random() * self.jitter_s

    def _answer(
        self,
        data: bytes,
        source: Endpoint,
        public: Endpoint,
        deliver: Callable[[bytes, Endpoint, Endpoint], None],
    ) -> None:
        if self._crosses():
            self._after(
                self._one_way(), lambda: self._come_in(data, source, public, deliver, len(self.nats) - 1)
            )

    def _come_in(
        self,
        data: bytes,
        source: Endpoint,
        public: Endpoint,
        deliver: Callable[[bytes, Endpoint, Endpoint], None],
        depth: int,
    ) -> None:
        target: Endpoint | None = public
        for nat in reversed(self.nats[: depth + 1]):
            assert target is not None
            target = nat.inbound(target, source)
            if target is None:
                return
        if target is not None and target.ip == ip_address(self.client_ip):
            deliver(data, source, target)
