"""What the servers of one observation have seen, and what that shows of the NAT (RFC 4787 §4.1, §5).

A NAT remembers for minutes whom a port has sent to, and some let in whatever comes from such an address. So
an answer from a server's other address shows that strangers get in only while nothing was sent to that
address; and since an earlier program may have sent there from the same port, it shows it only for a port that
the system has just chosen, or where a second server makes questions to that address needless, in this program
and in the one before.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from nattools.binding.model import Reflection
from nattools.binding.probes import View
from nattools.endpoint import Endpoint, IPAddress
from nattools.stun.classifier import Mapping

LEFTOVER = "this port may have sent to that address before, which a NAT remembers for minutes"


@dataclass(slots=True, eq=False)
class Views:
    """The views of one observation; the `primary` one is of the server that answered first.

    `former` is what held before and may still. `strangers` are the servers that were asked to answer from
    elsewhere, `heard` has where such answers came from, if nothing had been sent there.
    """

    local: Endpoint
    fresh_port: bool
    former: Reflection | None = None
    primary: Endpoint | None = None
    seen: dict[Endpoint, View] = field(default_factory=dict)
    strangers: set[Endpoint] = field(default_factory=set)
    heard: dict[Endpoint, Endpoint] = field(default_factory=dict)
    mapping: Mapping = Mapping.UNKNOWN
    shown: str = ""
    is_settled: bool = False

    def add(self, server: Endpoint, view: View) -> None:
        """One more has seen it; what was concluded is open again where that may change it."""
        self.seen[server] = view
        if self.primary is None:
            self.primary = server
        differs = view.mapped != self.seen[self.primary].mapped
        if self.mapping is Mapping.UNKNOWN or (differs and self.mapping is not Mapping.ADDRESS_DEPENDENT):
            self.is_settled = False

    @property
    def mapped(self) -> Endpoint | None:
        """Where the first server sees it."""
        return None if self.primary is None else self.seen[self.primary].mapped

    @property
    def differing(self) -> Endpoint | None:
        """Who sees it elsewhere than the first one, if anybody does."""
        return next((server for server, view in self.seen.items() if view.mapped != self.mapped), None)

    @property
    def same(self) -> str:
        """That two addresses see the same endpoint, in words; empty where that was not shown."""
        first = self.primary
        if first is None:
            return ""
        for server, view in self.seen.items():
            if server.ip != first.ip and view.mapped == self.mapped:
                return f"{first} and {server} see the same endpoint {self.mapped}"
        former = self.former
        if former is None or former.mapped != self.mapped or former.mapping is Mapping.ADDRESS_DEPENDENT:
            return ""
        if former.server.ip == first.ip:
            return ""
        return f"{first} sees the endpoint {self.mapped} that {former.server} saw before"

    def conclude(self, mapping: Mapping, shown: str) -> None:
        """Take what was shown, and its words."""
        self.mapping, self.shown, self.is_settled = mapping, shown, True

    def conclude_same(self) -> None:
        """Two addresses see the same endpoint."""
        if self.mapped == self.local:
            self.conclude(Mapping.NONE, f"{self.same}, the socket's own: there is no NAT")
        else:
            self.conclude(Mapping.ENDPOINT_INDEPENDENT, self.same)

    def reached(self, touched: Container[IPAddress]) -> tuple[bool | None, str]:
        """Whether a stranger's answer came in, and what is to be said of it; `touched` was sent to."""
        former = self.former
        if former is not None and former.reached_by_stranger and former.mapped == self.mapped:
            return True, former.evidence[-1]
        said = ""
        for server, source in self.heard.items():
            view = self.seen.get(server)
            if view is None or view.alternate != source:
                continue
            if self.fresh_port or (self._has_second(server, source) and source.ip not in touched):
                return True, f"an answer came in from {source}, which nothing was ever sent to"
            said = f"an answer came in from {source}, but {LEFTOVER}"
        return None, said or (self._unheard() if self.is_settled else "")

    def _has_second(self, server: Endpoint, alternate: Endpoint) -> bool:
        """Whether another one answers, so that neither this program nor one before must ask `alternate`."""
        return any(other.ip not in (server.ip, alternate.ip) for other in self.seen)

    def _unheard(self) -> str:
        alternates = [
            view.alternate
            for server, view in self.seen.items()
            if view.alternate is not None and server in self.strangers
        ]
        if alternates:
            return f"nothing came in from {alternates[0]}, which was asked to send unbidden"
        if not self.strangers:
            return f"whether strangers get in was not tested, for {LEFTOVER}; a second server helps"
        return "whether strangers get in was not tested: no server names another address"

    def reflection(self, touched: Container[IPAddress]) -> Reflection | None:
        """All of it in one; None while nobody has seen anything."""
        if self.primary is None or self.mapped is None:
            return None
        reached, stranger = self.reached(touched)
        return Reflection(
            self.local,
            self.mapped,
            self.primary,
            self.mapping,
            reached,
            any(view.sends_to_ports for view in self.seen.values()),
            self.is_settled,
            (self.shown or f"{self.primary} sees {self.mapped}", *filter(None, (stranger,))),
        )
