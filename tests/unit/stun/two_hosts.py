"""Two hosts of one server in memory: what they send each other waits here until a test carries it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from itertools import count

from nattools.endpoint import Endpoint, IPAddress
from nattools.machine import Entropy
from nattools.stun.peer import PeerLink, PeerState, TwoHosts
from nattools.stun.responder import DropReason, Reply, Responder

KEY = b"sixteen bytes it is, and more"
PORTS = (3478, 3479)
LINK_PORT = 3480
IPV4 = (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
IPV6 = (ip_address("2001:db8::1"), ip_address("2001:db8::2"))

Lost = Callable[[bytes], bool]


def numbers(seed: int) -> Entropy:
    """Entropy that never gives the same twice, nor what another seed gives."""
    counter = count(1)
    return lambda size: seed.to_bytes(4, "big") + next(counter).to_bytes(size - 4, "big")


class Host:
    """One of the two: its link and both its responders, as a server holds them together."""

    def __init__(
        self,
        own: IPAddress,
        other: IPAddress,
        seed: int,
        *,
        key: bytes = KEY,
        advertise: IPAddress | None = None,
    ) -> None:
        hosts = TwoHosts(own, other, *PORTS)
        self.address = Endpoint(own, LINK_PORT)
        self.link = PeerLink(hosts, Endpoint(other, LINK_PORT), key=key, entropy=numbers(seed))
        outside = {} if advertise is None else {own: advertise}
        self._whole = Responder(hosts.whole, advertise=outside)
        self._alone = Responder(hosts.alone, advertise=outside)
        self.sent: list[Reply] = []
        self.states: list[PeerState] = []

    def ask(self, data: bytes, source: Endpoint, port: int, *, now: float) -> DropReason | None:
        """A request comes to `port`; what leaves from here is in `sent`."""
        responder = self._whole if self.link.is_up(now=now) else self._alone
        answer = responder.respond(data, source, self.address.with_port(port))
        if isinstance(answer, DropReason):
            return answer
        if answer.origin.ip == self.address.ip:
            self.sent.append(answer)
        else:
            assert self.link.hand_over(answer, now=now)
        return None

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> None:
        """A datagram comes to the link's socket."""
        self.link.receive(data, source, now=now)
        self.drain()

    def drain(self) -> None:
        """Take the link's events."""
        while (event := self.link.next_event()) is not None:
            if isinstance(event, Reply):
                self.sent.append(event)
            else:
                self.states.append(event)


class Pair:
    """Both hosts, a clock, and the wire between them; `wire` has all that ever went over it."""

    def __init__(self, addresses: tuple[IPAddress, IPAddress] = IPV4) -> None:
        self.addresses = addresses
        self.now = 1000.0
        self.hosts = [Host(*addresses, 1), Host(addresses[1], addresses[0], 2)]
        self.wire: list[tuple[int, bytes]] = []
        self.lost: Lost = lambda _data: False
        self._seeds = count(3)

    def restart(self, which: int) -> None:
        """The host loses everything that it knew, and what it was about to send."""
        own, other = self.addresses[which], self.addresses[1 - which]
        self.hosts[which] = Host(own, other, next(self._seeds))

    def deliver(self, to: int, data: bytes) -> None:
        """Give a datagram to a host as if it came from the other."""
        self.hosts[to].receive(data, Endpoint(self.addresses[1 - to], LINK_PORT), now=self.now)

    def take(self, sender: int) -> list[bytes]:
        """What the host wants sent, not carried."""
        return [transmit.data for transmit in self.hosts[sender].link.transmits()]

    def carry(self) -> None:
        """Carry datagrams until nobody sends any more."""
        for _ in range(20):
            waiting = [(1 - sender, data) for sender in (0, 1) for data in self.take(sender)]
            if not waiting:
                return
            for to, data in waiting:
                self.wire.append((to, data))
                if not self.lost(data):
                    self.deliver(to, data)
        raise AssertionError("the hosts never stop sending to each other")

    def run(self, seconds: float) -> None:
        """Let time pass in tenths of a second."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for host in self.hosts:
                if host.link.timeout_at() <= self.now:
                    host.link.handle_timeout(now=self.now)
                    host.drain()
            self.carry()

    @property
    def up(self) -> tuple[bool, bool]:
        """Whether each host's link is."""
        first, second = (host.link.is_up(now=self.now) for host in self.hosts)
        return first, second
