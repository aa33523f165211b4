"""What a public binding is, what is known of who can reach it, and what a way to one must offer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypedDict, Unpack

from nattools.endpoint import Endpoint
from nattools.sip.headers import compose_contact, compose_via
from nattools.sip.sdp import compose_sdp
from nattools.stun.classifier import Mapping


class Source(Enum):
    """Who has to be asked for a public endpoint."""

    STATIC = "static"
    VPN = "vpn"
    ROUTER = "router"
    SOCKET = "socket"  # nobody else: STUN from the very socket, or its own address


class Method(Enum):
    """How a public endpoint was found, by the names that settings use.

    Among the methods to try, `PCP` stands for NAT-PMP as well, its elder; a binding says which it was.
    """

    STATIC = "static"
    VPN = "vpn"
    PCP = "pcp"
    NAT_PMP = "nat-pmp"
    UPNP = "upnp"
    OPEN = "open"
    STUN = "stun"

    @property
    def source(self) -> Source:
        """Who is asked for it; the router once for all its protocols."""
        return _SOURCES.get(self, Source.SOCKET)


_SOURCES = {
    Method.STATIC: Source.STATIC,
    Method.VPN: Source.VPN,
    Method.PCP: Source.ROUTER,
    Method.NAT_PMP: Source.ROUTER,
    Method.UPNP: Source.ROUTER,
}

DEFAULT_METHODS = (Method.STATIC, Method.VPN, Method.PCP, Method.UPNP, Method.OPEN, Method.STUN)


class Reach(Enum):
    """Who can send to a public endpoint, as far as it was shown."""

    ANYONE = "anyone"  # a packet came in from an address that the socket never sent to
    HOSTS_SENT_TO = "hosts-sent-to"  # the endpoints that the socket has sent to: send the first packet
    SERVER_ONLY = "server-only"  # the server that saw it; whether others see the same is not known
    DECLARED = "declared"  # anyone, says the router or the administrator; nobody could test it


@dataclass(frozen=True, slots=True)
class Reachability:
    """Who can reach a binding, and what that rests on, in words."""

    reach: Reach
    evidence: tuple[str, ...] = ()


class ContactWords(TypedDict, total=False):
    """What else a Contact may say; `uri_params` and `params` are `name=value` or `name` each.

    `scheme` is `sips` where the phone wants TLS all the way (RFC 3261 §26.2.2), else `sip`. To go on by
    another transport than UDP, `uri_params` has `transport=tcp`.
    """

    display_name: str
    uri_params: Iterable[str]
    params: Iterable[str]
    scheme: str


class SdpWords(TypedDict, total=False):
    """What else a session description may say.

    `rtcp` is where RTCP is received, which peers guess to be one port above RTP. `formats` are payload types
    and encodings, the best first, `((0, "PCMU/8000"),)` where there are none. `direction` is `sendrecv`, or
    `sendonly` to hold the call, `recvonly`, `inactive`.
    """

    rtcp: Endpoint
    formats: Iterable[tuple[int, str]]
    direction: str
    username: str
    session_name: str


@dataclass(frozen=True, slots=True)
class PublicBinding:
    """What to write into Via, Contact and SDP for one local socket: a snapshot.

    `outbound_matches` says whether what the socket sends leaves from `public`; None where it was not shown. A
    router's mapping may be good for what comes in alone. `realm` is empty for the internet; otherwise it
    names the tunnel behind which alone the endpoint means something. `lease_s` is what was granted, None for
    a binding that stays as long as it is kept alive. `keepalive_s` is the interval of its keepalives, None
    where it has none.
    """

    local: Endpoint
    public: Endpoint
    method: Method
    reachability: Reachability
    lease_s: float | None = None
    keepalive_s: float | None = None
    outbound_matches: bool | None = None
    realm: str = ""

    def via(self, *, branch: str, transport: str = "UDP") -> str:
        """The value of the Via header of a request that leaves from this socket (RFC 3261 §18.1.1).

        It asks for `rport` (RFC 3581), so that the answer comes back the way the request went, whatever a
        NAT makes of it. `branch` begins with `z9hG4bK` and is new for each transaction (§8.1.1.7), save that
        CANCEL, and the ACK to a refusal, repeat that of their INVITE. Raises `EncodeError`.
        """
        return compose_via(self.public, branch=branch, transport=transport)

    def contact(self, user: str = "", **words: Unpack[ContactWords]) -> str:
        """The value of a Contact header: where this phone gets requests (RFC 3261 §8.1.1.8).

        REGISTER, INVITE, its answers and whatever else begins a dialog carry it. When the binding changes,
        register again, the new Contact with the old one as `params=("expires=0",)` behind it (§10.2.2), and
        send a re-INVITE with the new one in each dialog (§14.1). Raises `EncodeError`.
        """
        return compose_contact(self.public, user=user, **words)

    def sdp(self, *, session_id: int, version: int, **words: Unpack[SdpWords]) -> bytes:
        """The body of an INVITE or of its answer: one audio stream to this socket (RFC 8866, RFC 3264).

        Its Content-Type is `application/sdp`. `session_id` is any number, the same for a whole call, and
        `version` rises by one whenever the description is another (RFC 3264 §8): when the binding changes,
        send it again in a re-INVITE, one higher. Give `rtcp`, or let `BindingPair.sdp` do it: else RTCP gets
        lost wherever the NAT did not keep ports side by side. Raises `EncodeError`.
        """
        return compose_sdp(self.public, session_id=session_id, version=version, **words)


@dataclass(frozen=True, slots=True)
class Claim:
    """A public endpoint for `local` by somebody's word, unchecked; `word` says whose, for people."""

    method: Method
    local: Endpoint
    public: Endpoint
    word: str
    lease_s: float | None = None
    realm: str = ""


@dataclass(frozen=True, slots=True)
class Reflection:
    """Where STUN servers see the socket (the server-reflexive address of RFC 8445 §5.1.1.2).

    `mapping` says whether others see the same: UNKNOWN where only one address of one server answered, or,
    while not `is_settled`, as yet; ADDRESS_DEPENDENT where two addresses see different endpoints.
    `reached_by_stranger` is True where an answer came in from an address that nothing was ever sent to, None
    where that was not shown. `can_test_inbound` says that the server can send to a port that it is given,
    from another address (RFC 5780 §7.4, §7.5). `evidence` says in words what was seen.
    """

    local: Endpoint
    mapped: Endpoint
    server: Endpoint
    mapping: Mapping
    reached_by_stranger: bool | None = None
    can_test_inbound: bool = False
    is_settled: bool = True
    evidence: tuple[str, ...] = ()


class ChangeKind(Enum):
    """What happened to a binding."""

    ACQUIRED = "acquired"
    CHANGED = "changed"  # another public endpoint, local address or method
    LOST = "lost"  # there is none now; it is looked for
    RESTORED = "restored"  # there is one again, perhaps another


@dataclass(frozen=True, slots=True)
class BindingChange:
    """News of a binding: as it is now (None when lost), as it was before (None when acquired), and why."""

    kind: ChangeKind
    binding: PublicBinding | None
    previous: PublicBinding | None
    reason: str


class Provider(Protocol):
    """A way to a public endpoint that needs more than the socket: a setting, a route, a router."""

    @property
    def source(self) -> Source:
        """Which one it is."""

    async def acquire(self, local: Endpoint) -> Claim:
        """Get a public endpoint for UDP at `local`, where a socket is bound.

        The unspecified address stands for any of this machine's, and the claim says which one it is. Raises
        `BindingError`, `MappingError` or `TransportError`, saying why not and what would help.
        """

    async def renew(self, claim: Claim) -> Claim:
        """See whether `claim` still holds, and return it as it is now. Raises what `acquire` does."""

    async def release(self, claim: Claim) -> None:
        """Give it back. Raises what `acquire` does."""
