"""A client, a NAT, perhaps something that rewrites SIP, and a server; in memory, with a clock that jumps."""

from __future__ import annotations

import heapq
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.alg import AlgVerdict, judge
from nattools.sip.alg_probe import AlgProbe
from nattools.sip.reflector import RateLimit, Reflector
from nattools.stun.attributes import XOR_MAPPED_ADDRESS
from nattools.stun.message import Message, MessageClass

LOCAL = Endpoint.of("192.168.0.108", 40000)
PUBLIC_IP = ip_address("203.0.113.1")
SERVER = Endpoint.of("203.0.113.10", 5060)
CONTROL = SERVER.with_port(3478)

Rewrite = Callable[[bytes], bytes | None]
"""What becomes of a datagram of SIP on its way; None where it gets lost."""
Answer = Callable[[bytes, Endpoint], bytes | None]
"""What a server answers to a datagram, given where it sees it come from."""


def preserving(_destination: Endpoint) -> Endpoint:
    """A NAT that keeps the port."""
    return Endpoint(PUBLIC_IP, LOCAL.port)


def symmetric(destination: Endpoint) -> Endpoint:
    """A NAT with another port for each destination."""
    return Endpoint(PUBLIC_IP, 50000 + destination.port % 1000)


def no_nat(_destination: Endpoint) -> Endpoint:
    """Nothing that translates."""
    return LOCAL


NATS = (preserving, symmetric, no_nat)


def unchanged(data: bytes) -> bytes | None:
    """What most routers do."""
    return data


@dataclass(frozen=True)
class Alg:
    """Something on the way that knows SIP; on these ports, or on all."""

    outward: Rewrite = unchanged
    inward: Rewrite = unchanged
    ports: tuple[int, ...] = (SERVER.port,)

    def sees(self, port: int, data: bytes) -> bool:
        return port in self.ports and (b"SIP/2.0" in data)


def replacing(*names: bytes) -> Alg:
    """An ALG that writes the public address into lines that begin so, and puts the private one back."""
    private, public = str(LOCAL.ip).encode(), str(PUBLIC_IP).encode()
    lines = re.compile(rb"(?m)^(?:%b).*$" % b"|".join(names))

    def outward(data: bytes) -> bytes:
        head, _, body = data.partition(b"\r\n\r\n")
        head, body = (
            lines.sub(lambda match: match[0].replace(private, public, 1), part) for part in (head, body)
        )
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
        return head + b"\r\n\r\n" + body

    def inward(data: bytes) -> bytes:
        head, _, body = data.partition(b"\r\n\r\n")
        return head.replace(public, private) + b"\r\n\r\n" + body

    return Alg(outward, inward)


def stun_answer(data: bytes, source: Endpoint) -> bytes | None:
    """The answer of a STUN server, or None to what is no request."""
    try:
        request = Message.parse(data)
    except DecodeError:
        return None
    mapped = XOR_MAPPED_ADDRESS.of(source, request.xor_key)
    return Message(request.method, MessageClass.SUCCESS, request.transaction_id, (mapped,)).encode()


def reflecting() -> Answer:
    """A `stund --sip-reflector`."""
    reflector = Reflector(entropy=bytes, limit=RateLimit())
    clock = itertools.count()
    return lambda data, source: (
        stun_answer(data, source) or reflector.answer(data, source, now=float(next(clock)))
    )


def ordinary(
    *, stun: bool = True, seen: Endpoint | None = None, tells: bool = True, status: bytes = b"200 OK"
) -> Answer:
    """A SIP server that shows nothing of what it got but what RFC 3261 has it repeat.

    `seen` is what it takes for the source, behind a proxy of its own.
    """

    def answer(data: bytes, source: Endpoint) -> bytes | None:
        if stun and (answered := stun_answer(data, source)) is not None:
            return answered
        if b"SIP/2.0" not in data:
            return None
        at = seen or source
        lines = [b"SIP/2.0 " + status]
        for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
            if line.startswith(b"Via:") and tells:
                lines.append(line.replace(b";rport", f";rport={at.port};received={at.ip}".encode()))
            elif line.startswith((b"Via:", b"From:", b"To:", b"Call-ID:", b"CSeq:")):
                lines.append(line)
        return b"\r\n".join([*lines, b"Content-Length: 0", b"", b""])

    return answer


def silent(_data: bytes, _source: Endpoint) -> bytes | None:
    """Nobody."""
    return None


@dataclass
class Network:
    """Everything between the client's socket and the two ports of a server."""

    sip: Answer
    control: Answer
    nat: Callable[[Endpoint], Endpoint] = preserving
    alg: Alg = field(default_factory=Alg)
    loss: float = 0.0
    delay_s: float = 0.02
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    sent: list[tuple[bytes, Endpoint]] = field(default_factory=list)
    ended_at: float = 0.0

    def carry(self, data: bytes, destination: Endpoint) -> bytes | None:
        """Bring a datagram to the server, and return what comes back, if anything does."""
        self.sent.append((data, destination))
        if self.rng.random() < self.loss:
            return None
        passed: bytes | None = data
        if self.alg.sees(destination.port, data):
            passed = self.alg.outward(data)
        if passed is None:
            return None
        server = {SERVER: self.sip, CONTROL: self.control}[destination]
        answer = server(passed, self.nat(destination))
        if answer is not None and self.alg.sees(destination.port, answer):
            answer = self.alg.inward(answer)
        return None if self.rng.random() < self.loss else answer

    def probe(self, *, control_port: int | None = CONTROL.port, timeout_s: float = 5.0) -> AlgProbe:
        """A probe that begins at time 0."""
        return AlgProbe(
            SERVER,
            local=LOCAL,
            control_port=control_port,
            entropy=self.rng.randbytes,
            now=0.0,
            timeout_s=timeout_s,
        )

    def verdict(self, *, control_port: int | None = CONTROL.port, timeout_s: float = 5.0) -> AlgVerdict:
        """Run a probe to its end."""
        probe = self.probe(control_port=control_port, timeout_s=timeout_s)
        now, order = 0.0, itertools.count()
        arriving: list[tuple[float, int, bytes, Endpoint]] = []
        while True:
            for transmit in probe.transmits():
                answer = self.carry(transmit.data, transmit.destination)
                if answer is not None:
                    late = (now + self.delay_s, next(order), answer, transmit.destination)
                    heapq.heappush(arriving, late)
            seen = probe.next_event()
            if seen is not None:
                assert probe.timeout_at() is None
                self.ended_at = now
                return judge(seen)
            due = probe.timeout_at()
            assert due is not None
            if arriving and arriving[0][0] <= due:
                now, _, data, source = heapq.heappop(arriving)
                probe.receive(data, source, now=now)
            else:
                now = due
                probe.handle_timeout(now=now)
