"""Where SIP messages come from and go to: sockets, connections, and who is at their ends (RFC 3261 §18)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from nattools.endpoint import Endpoint, IPAddress
from nattools.sip.uri import SIP_PORT, SIPS_PORT, SipUri, read_ip

_TRANSPORTS = ("UDP", "TCP", "TLS")
_BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Flow:
    """A way to one peer: `socket` names a UDP listener or a connection, and `remote` is who is there.

    With the name of a stream listener it stands for a connection that is still to be opened.
    """

    socket: str
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that takes SIP: its transport (UDP, TCP or TLS), its address, and what others are told.

    `advertised` is what stands in Via and Record-Route; None where that is the local address.
    """

    name: str
    transport: str
    local: Endpoint
    advertised: Endpoint | None = None

    def __post_init__(self) -> None:
        if self.transport not in _TRANSPORTS:
            raise ValueError(f"transport {self.transport!r}: one of {', '.join(_TRANSPORTS)} expected")

    @property
    def is_reliable(self) -> bool:
        """Whether nothing is lost on the way, so that nothing is sent again (RFC 3261 §17)."""
        return self.transport != "UDP"

    @property
    def public(self) -> Endpoint:
        """The address that others are told."""
        return self.advertised or self.local


class Flows:
    """The listeners of a proxy and the connections that are open, by the names that the driver gave them."""

    def __init__(
        self,
        listeners: Iterable[Listener],
        domains: Container[bytes] = (),
        *,
        facing: Callable[[Endpoint], IPAddress | None] | None = None,
    ) -> None:
        """Know the listeners, one at least; `domains` are host names that mean this proxy, in lower case.

        `facing` tells which of this machine's addresses its routes choose towards an endpoint: what left from
        another would carry a source that is wrong there.
        """
        self._listeners = {listener.name: listener for listener in listeners}
        if not self._listeners:
            raise ValueError("a proxy without a listener")
        self._own = _own_places(self._listeners.values())
        self._domains = domains
        self._facing = facing
        self._connections: dict[str, tuple[Listener, Endpoint]] = {}
        self._by_peer: dict[tuple[str, Endpoint], str] = {}
        self._trusted: set[Endpoint] = set()

    @property
    def listeners(self) -> Collection[Listener]:
        """All listeners, in their order."""
        return self._listeners.values()

    def connected(self, name: str, listener: str, remote: Endpoint) -> None:
        """Take note of a connection that was accepted by, or opened for, the listener of that name."""
        owner = self._listeners[listener]
        self._connections[name] = owner, remote
        self._by_peer[owner.transport, remote] = name

    def disconnected(self, name: str) -> tuple[Flow, ...]:
        """Forget a connection that has ended. Returns what it stood for: itself, and the way to its peer."""
        owner, remote = self._connections.pop(name, (None, None))
        if owner is None or remote is None:
            return ()
        if self._by_peer.get((owner.transport, remote)) == name:
            del self._by_peer[owner.transport, remote]
        return Flow(name, remote), Flow(owner.name, remote)

    def is_open(self, flow: Flow) -> bool:
        """Whether something can be sent by it now, or a connection be opened for it."""
        return flow.socket in self._listeners or flow.socket in self._connections

    def listener(self, socket: str) -> Listener | None:
        """The listener of that name, or whose connection has that name; None where there is none."""
        connection = self._connections.get(socket)
        return self._listeners.get(socket) if connection is None else connection[0]

    def towards(self, remote: Endpoint, transport: str, *, near: str = "") -> Flow | None:
        """How to send to `remote`: by the open connection, or else from a listener, `near` before others.

        Where they have several addresses, it is the one that faces `remote`. None where no listener has that
        transport and IP version, and for addresses that nobody can have. What listens on this machine alone
        is not for whom anybody names: a loopback address is reached only from a loopback listener, unless the
        operator has named it (`trust`).
        """
        remote = remote.unmapped
        ip = remote.ip
        if ip.is_multicast or ip.is_unspecified or ip == _BROADCAST or not remote.port:
            return None
        name = self._by_peer.get((transport, remote))
        if name is not None:
            return Flow(name, remote)
        suitable = [
            listener
            for listener in self._listeners.values()
            if listener.transport == transport
            and listener.local.is_ipv6 == remote.is_ipv6
            and (listener.local.ip.is_loopback or not ip.is_loopback or remote in self._trusted)
        ]
        suitable.sort(key=lambda listener: listener.name != near)
        if self._facing is not None and any(it.local.ip != suitable[0].local.ip for it in suitable):
            facing = self._facing(remote)
            suitable.sort(key=lambda listener: listener.local.ip != facing)
        return Flow(suitable[0].name, remote) if suitable else None

    def trust(self, remote: Endpoint) -> None:
        """Reach it wherever it is: the operator has named it."""
        self._trusted.add(remote)

    def is_own(self, host: bytes, port: int | None) -> bool:
        """Whether a host and port of a URI or a Via are this proxy: one of its addresses, or of its names."""
        ips = self._own.get(port)
        if ips is None:
            return False
        return host.lower().rstrip(b".") in self._domains or read_ip(host) in ips


def _own_places(listeners: Iterable[Listener]) -> dict[int | None, frozenset[IPAddress | None]]:
    """The addresses of listeners by their ports; by None those that have the port of their transport."""
    found: dict[int | None, set[IPAddress | None]] = {None: set()}
    for listener in listeners:
        default = SIPS_PORT if listener.transport == "TLS" else SIP_PORT
        for place in (listener.local, listener.public):
            found.setdefault(place.port, set()).add(place.ip)
            if place.port == default:
                found[None].add(place.ip)
    return {port: frozenset(ips) for port, ips in found.items()}


def transport_of(uri: SipUri) -> str:
    """The transport that a URI asks for (RFC 3263 §4.1): UDP where it does not say, TLS for sips."""
    param = uri.param("transport")
    wanted = "UDP" if param is None or param.value is None else param.value.decode("latin-1").upper()
    return "TLS" if uri.scheme == "sips" else wanted


def endpoint_of(uri: SipUri) -> Endpoint | None:
    """Where a URI leads by itself: its IP address and port; None for a host name and for other schemes."""
    if uri.scheme not in ("sip", "sips"):
        return None
    return uri.endpoint(SIPS_PORT if transport_of(uri) == "TLS" else SIP_PORT)
