"""Where servers see a SIP socket, learned from `received` and `rport` of their responses (RFC 3581 §4).

What a server writes there is the truth only where nothing on the way has rewritten it. So the guards of
`Sightings` are those that phones have needed: a private address, seen from outside, is an ALG's word, and
one correction has to be confirmed before the next, or a registrar with several front ends, or a symmetric
NAT, would have a phone register without end.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address

MOST_SERVERS = 64
"""So many are remembered; then the one that has not been sent to for longest is forgotten."""
MOST_CHAINS = 512
"""So many Call-IDs of requests are remembered, the latest."""

_INSIDE = frozenset(
    {AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL}
)


@dataclass(frozen=True, slots=True)
class Learned:
    """`server` sees the socket at `endpoint`, and not at `previous`: from now on it is told so.

    Register again: its record of the phone is wrong. `server` is None where nobody said whom requests go to.
    """

    endpoint: Endpoint
    previous: Endpoint
    server: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class AlgSuspected:
    """A response of `server` has `seen`, an inside address, where `written` should be: it is not used.

    Either as the sent-by, which a server copies from the request, or as where that came from, by a server
    on the outside. A SIP ALG on the way does both; a server that is reached without any NAT may do the
    latter. So this is a suspicion; `nattools.sip.alg` can prove it.
    """

    seen: Endpoint
    written: Endpoint
    server: Endpoint


def is_inside(ip: IPAddress) -> bool:
    """Whether an address means something only on this side of some NAT."""
    return classify_address(ip) in _INSIDE


class _Chain:
    """The requests of one Call-ID: who was sent the last one, with which sent-by, and whether a correction
    waits to be confirmed.
    """

    __slots__ = ("is_corrected", "server", "written")

    def __init__(self, server: Endpoint | None, written: Endpoint) -> None:
        self.server = server
        self.written = written
        self.is_corrected = False


class Sightings:
    """The endpoint by which each server sees one socket, where it is another than its binding's."""

    def __init__(self) -> None:
        self._learned: OrderedDict[Endpoint | None, Endpoint] = OrderedDict()
        self._suspected: OrderedDict[Endpoint, Endpoint] = OrderedDict()
        self._chains: OrderedDict[bytes, _Chain] = OrderedDict()

    def seen_by(self, server: Endpoint | None) -> Endpoint | None:
        """Where `server` sees the socket, None where that is not known to differ from the binding."""
        return self._learned.get(server) if self._learned else None

    def forget(self) -> None:
        """Start anew: the binding has changed, and what was seen before means nothing."""
        self._learned.clear()
        self._suspected.clear()
        self._chains.clear()

    def sent(self, call_id: bytes, server: Endpoint | None, written: Endpoint) -> None:
        """Note a request and its sent-by, so that only its responses count."""
        chain = self._chains.get(call_id)
        if chain is None:
            self._chains[call_id] = _Chain(server, written)
            if len(self._chains) > MOST_CHAINS:
                self._chains.popitem(last=False)
        else:
            chain.server, chain.written = server, written
            self._chains.move_to_end(call_id)
        if self._learned and server in self._learned:
            self._learned.move_to_end(server)

    def answered(
        self,
        call_id: bytes,
        source: Endpoint | None,
        *,
        written: Endpoint,
        is_local: bool,
        received: IPAddress | None,
        rport: int | None,
        binding: Endpoint | None,
    ) -> Learned | AlgSuspected | None:
        """Take a response whose top Via has `written` as its sent-by, and see whether it says anything new.

        `is_local` says that this is how the phone knows its socket, and `binding` what the binding has today.
        A response to what would not be written today is too old.
        """
        chain = self._chains.get(call_id)
        if chain is None:
            return None
        told = self.seen_by(chain.server) or binding
        if told is None:
            return None
        is_as_written = written is told or written == told
        is_confirmed = is_as_written and rport in (None, told.port) and received in (None, told.ip)
        if is_confirmed and not chain.is_corrected:
            return None  # as nearly every response
        if None not in (chain.server, source) and chain.server != source:
            return None
        server = source if chain.server is None else chain.server
        if not is_as_written:
            is_altered = is_local and written != chain.written
            return self._suspect(server, written, chain.written) if is_altered and server else None
        if is_confirmed:
            chain.is_corrected = received is None and rport is None  # says nothing, so confirms nothing
            return None
        seen = Endpoint(received or written.ip, rport or written.port)
        if is_inside(seen.ip):
            if server is None or seen.ip == written.ip:
                return None
            if not is_inside(server.ip):
                return None if is_inside(written.ip) else self._suspect(server, seen, written)
        if not rport or chain.is_corrected:
            return None
        chain.is_corrected = True
        self._learn(chain.server, seen, binding)
        return Learned(seen, told, server)

    def _suspect(self, server: Endpoint, seen: Endpoint, written: Endpoint) -> AlgSuspected | None:
        if self._suspected.get(server) == seen:
            return None
        self._suspected[server] = seen
        if len(self._suspected) > MOST_SERVERS:
            self._suspected.popitem(last=False)
        return AlgSuspected(seen, written, server)

    def _learn(self, server: Endpoint | None, seen: Endpoint, binding: Endpoint | None) -> None:
        if seen == binding:
            self._learned.pop(server, None)
            return
        self._learned[server] = seen
        self._learned.move_to_end(server)
        if len(self._learned) > MOST_SERVERS:
            self._learned.popitem(last=False)
