"""The line of a strict telephone: transactions (RFC 3261 §17) over a wire that loses, doubles, delays."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.message import SipMessage, compose_request
from nattools.sip.stream import SipStream

if TYPE_CHECKING:
    from tests.sim.strict_leg import Leg

T1_S, T2_S, TIMEOUT_S = 0.5, 4.0, 32.0
LONGEST_RING_S = 260.0  # timer C of each of two gates, and the CANCELs after them

OnResponse = Callable[[SipMessage], None]
OnTimeout = Callable[[], None]


@dataclass(frozen=True)
class Wire:
    """What happens to datagrams: how often one is lost or doubled, and by how much it is late at most."""

    loss: float = 0.0
    doubling: float = 0.0
    jitter_s: float = 0.0


@dataclass
class World:
    """What all phones share: chance, the wire, and what was found to be wrong."""

    random: Random
    wire: Wire = field(default_factory=Wire)
    wrongs: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)
    """Calls of which a phone has crashed, or come from another port: nobody is sure of anything in them."""
    is_open: bool = True

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def now(self) -> float:
        return self.loop.time()

    def complain(self, text: str) -> None:
        """Note what natgate should not have done."""
        if self.is_open:
            self.wrongs.append(f"{self.now():.2f} {text}")

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def token(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    def carry(self, deliver: Callable[[], None]) -> None:
        """Carry one datagram, or lose it, or bring it twice, or late."""
        if self.chance(self.wire.loss):
            self.counters["lost"] += 1
            return
        for _ in range(2 if self.chance(self.wire.doubling) else 1):
            if self.wire.jitter_s:
                self.loop.call_later(self.random.random() * self.wire.jitter_s, deliver)
            else:
                deliver()


class Client:
    """One request of ours, until its final response."""

    def __init__(
        self, line: Line, data: bytes, on_response: OnResponse, on_timeout: OnTimeout | None = None
    ) -> None:
        self.line = line
        self.data = data
        self.request = SipMessage.parse(data)
        self.method = self.request.method
        self.on_response = on_response
        self.on_timeout = on_timeout
        self.interval_s = T1_S
        self.began_at = line.world.now()
        self.has_rung = False
        self.final: int | None = None
        self.ack = b""
        self.timer: asyncio.TimerHandle | None = None
        self.end: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = self.line.world.loop
        self.line.send(self.data)
        if not self.line.is_stream:
            self.timer = loop.call_later(self.interval_s, self._again)
        self.end = loop.call_later(TIMEOUT_S, self._give_up)

    def _again(self) -> None:
        self.line.send(self.data)
        self.interval_s *= 2
        if self.method != "INVITE":
            self.interval_s = min(self.interval_s, T2_S)
        self.timer = self.line.world.loop.call_later(self.interval_s, self._again)

    def stop(self) -> None:
        for timer in (self.timer, self.end):
            if timer is not None:
                timer.cancel()

    def _give_up(self) -> None:
        self.stop()
        if self.final is None:
            self.final = 408
            self.line.timed_out(self)
            if self.on_timeout is not None:
                self.on_timeout()

    def receive(self, response: SipMessage) -> None:
        code = response.status_code or 0
        if code < 200:
            if self.final is not None:
                return
            if self.method == "INVITE":
                if not self.has_rung:
                    self.stop()
                    self.end = self.line.world.loop.call_later(LONGEST_RING_S, self._give_up)
                self.has_rung = True
            else:
                self.interval_s = T2_S
            self.on_response(response)
            return
        if self.final is not None:
            self._receive_again(response, code)
            return
        self.stop()
        self.final = code
        if self.method == "INVITE" and code >= 300:
            self.ack = self._refusal_ack(response)
            self.line.send(self.ack)
        self.on_response(response)

    def _receive_again(self, response: SipMessage, code: int) -> None:
        """A further final response: the same again, or of an INVITE another 2xx."""
        if self.method == "INVITE" and code < 300:
            if self.ack:
                self.line.world.complain(f"{self.line.name}: {code} after {self.final} to an INVITE")
            else:
                self.on_response(response)
        elif code != self.final and self.final != 408 and not self.line.world.wire.jitter_s:
            self.line.world.complain(f"{self.line.name}: {code} after {self.final} to {self.method}")
        elif self.ack:
            self.line.send(self.ack)

    def _refusal_ack(self, response: SipMessage) -> bytes:
        request = self.request
        fields: list[tuple[str, str | bytes]] = [("Via", request.value(request.header("via")))]
        fields += [("Route", request.value(header)) for header in request.headers_named("route")]
        fields += [
            (name, request.value(request.header(name))) for name in ("max-forwards", "from", "call-id")
        ]
        assert request.cseq is not None
        assert request.request_uri is not None
        fields += [
            ("To", response.value(response.header("to"))),
            ("CSeq", f"{request.cseq[0]} ACK"),
        ]
        uri = request.data[slice(*request.request_uri)].decode()
        return compose_request("ACK", uri, fields)


class Server:
    """One request of others: what it was answered, for when it comes again."""

    def __init__(self, line: Line, request: SipMessage) -> None:
        self.line = line
        self.request = request
        self.last = b""
        self.code = 0
        self.leg: Leg | None = None
        self.is_acknowledged = False
        self.began_at = line.world.now()
        self.interval_s = T1_S
        self.timer: asyncio.TimerHandle | None = None

    def respond(self, data: bytes) -> None:
        self.last = data
        self.code = SipMessage.parse(data).status_code or 0
        self.line.send(data)
        if self.request.method == "INVITE" and self.code >= 300 and not self.line.is_stream:
            self.timer = self.line.world.loop.call_later(self.interval_s, self._again)

    def _again(self) -> None:
        now = self.line.world.now()
        if self.is_acknowledged or now - self.began_at > 300.0:
            return
        if self.interval_s > TIMEOUT_S:
            if not self.line.is_gone and self.line.rebound_at < self.began_at:
                self.line.world.complain(f"{self.line.name}: no ACK to its {self.code}")
            return
        self.line.send(self.last)
        self.interval_s *= 2
        self.timer = self.line.world.loop.call_later(min(self.interval_s, T2_S), self._again)


class Line:
    """A socket towards the gate, and the transactions over it."""

    def __init__(self, world: World, name: str, address: str, gate: Endpoint, *, is_stream: bool) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.gate = gate
        self.is_stream = is_stream
        self.is_gone = False
        self.on_request: Callable[[Server], None] = lambda server: None
        self.on_ack: Callable[[SipMessage], None] = lambda ack: None
        self.clients: dict[tuple[bytes, str], Client] = {}
        self.servers: dict[tuple[bytes, str], Server] = {}
        self.stream = SipStream()
        self.socket = self._open()
        self.rebound_at = float("-inf")

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if self.is_stream else socket.SOCK_DGRAM)
        sock.bind((self.address, 0))
        if self.is_stream:
            sock.connect((str(self.gate.ip), self.gate.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.world.loop.add_reader(sock.fileno(), self._readable)
        self.local = Endpoint.of(*sock.getsockname()[:2])
        return sock

    def rebind(self) -> None:
        """Speak from another port, as after the NAT has forgotten this one."""
        self.close()
        self.is_gone = False
        self.stream = SipStream()
        self.socket = self._open()
        self.rebound_at = self.world.now()

    def close(self) -> None:
        """Be gone, without a word."""
        if not self.is_gone:
            self.is_gone = True
            self.world.loop.remove_reader(self.socket.fileno())
            self.socket.close()

    def send(self, data: bytes) -> None:
        if self.is_stream:
            self._put(data)
        else:
            self.world.carry(lambda: self._put(data))

    def _put(self, data: bytes) -> None:
        if self.is_gone:
            return
        try:
            if self.is_stream:
                self.socket.sendall(data)
            else:
                self.socket.sendto(data, (str(self.gate.ip), self.gate.port))
        except OSError:
            self.world.counters["unsent"] += 1

    def _readable(self) -> None:
        for _ in range(64):
            if self.is_gone:
                return
            try:
                data = self.socket.recv(0xFFFF)
            except BlockingIOError:
                return
            except OSError:
                self.world.counters["unheard"] += 1
                return
            if self.is_stream:  # the kernel must not wait for more, since its time is not ours
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            else:
                self.world.carry(lambda data=data: self.take(data))  # type: ignore[misc]  # bound at once
                continue
            if not data:
                self.close()
                return
            self.stream.feed(data)
            while (message := self.stream.next_message()) is not None:
                self.take(message)

    # --- transactions ---

    def ask(self, data: bytes, on_response: OnResponse, on_timeout: OnTimeout | None = None) -> Client:
        """Send a request in a transaction of its own."""
        client = Client(self, data, on_response, on_timeout)
        assert client.request.branch is not None
        self.clients[client.request.branch, client.method] = client
        client.start()
        return client

    def forget_old(self) -> None:
        """Forget the transactions that are long over."""
        limit = self.world.now() - LONGEST_RING_S - 2 * TIMEOUT_S
        for clients, key in [(self.clients, key) for key, it in self.clients.items() if it.began_at < limit]:
            del clients[key]
        for servers, key in [(self.servers, key) for key, it in self.servers.items() if it.began_at < limit]:
            del servers[key]

    def timed_out(self, client: Client) -> None:
        """A request was not answered."""
        if not self.is_gone:
            self.world.counters[f"timeout {client.method}"] += 1

    def take(self, data: bytes) -> None:
        """Take a message."""
        if self.is_gone or not data.strip():
            return
        try:
            message = SipMessage.parse(data)
        except DecodeError as error:
            self.world.complain(f"{self.name}: unreadable {data[:60]!r}: {error}")
            return
        if message.length_error:
            self.world.complain(f"{self.name}: {message.length_error} in {data[:60]!r}")
        if message.is_request:
            self._take_request(message)
            return
        client = self.clients.get((message.branch or b"", message.method))
        if client is None or len(message.values("via")) != 1:
            self.world.complain(f"{self.name}: a response to nothing: {data[:200]!r}")
            return
        if message.cseq != client.request.cseq or message.from_tag != client.request.from_tag:
            self.world.complain(f"{self.name}: a response that does not fit: {data[:200]!r}")
        client.receive(message)

    def _take_request(self, request: SipMessage) -> None:
        if request.method == "ACK":
            server = self.servers.get((request.branch or b"", "INVITE"))
            if server is not None:
                if server.code < 300:
                    self.world.complain(f"{self.name}: an ACK of a 2xx with the branch of its INVITE")
                server.is_acknowledged = True
                return
            self.on_ack(request)
            return
        key = request.branch or b"", request.method
        known = self.servers.get(key)
        if known is not None:
            if known.last:
                self.send(known.last)
            return
        server = self.servers[key] = Server(self, request)
        self.on_request(server)
