"""What a STUN server answers, as a function of the request, its source and the socket it came to.

Serves RFC 8489 §12 (a basic server), RFC 5780 §6 (NAT behaviour discovery) and RFC 3489 §8 (the classic
dialect). Every datagram gives a `Reply` or a `DropReason`; nothing is kept from one to the next.

No datagram gets a reply of more than `MOST_AMPLIFICATION` times its bytes; what does not fit is left out. The
one exception is PADDING to a user whose credentials were checked (`nattools.stun.accounts`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, TransportError
from nattools.stun.accounts import Accounts, Admission, Rejection, is_sealed
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    OTHER_ADDRESS,
    PADDING,
    PASSWORD,
    PASSWORD_ALGORITHM,
    PRIORITY,
    REALM,
    REFLECTED_FROM,
    RESPONSE_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    Error,
    ErrorCode,
)
from nattools.stun.integrity import fingerprint_holds, with_fingerprint
from nattools.stun.message import HEADER_BYTES, Message, MessageClass, Method
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.uri import Transport

DEFAULT_PORT = 3478
DEFAULT_ALTERNATE_PORT = 3479

MOST_REPLY_BYTES = 65_504
"""What one UDP datagram over IPv4 carries, down to a multiple of 4."""

MOST_AMPLIFICATION = 2.8
"""Reply bytes over request bytes, at the most, over UDP: a bare request of 20 gets 56, over IPv6 44."""

PADDED_BYTES = 1500
"""So long is the PADDING at the least that a user gets who asks for it: the MTU of most interfaces.

RFC 5780 §7.6 says that it SHOULD be so for everybody, but then 24 bytes would be answered with 1500. Who is
no user gets as much as was sent: who wants to see fragments come back sends fragments.
"""

REFLECTOR_PORTS = frozenset(
    (7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 161, 389, 1900, 3702, 5353, 5683, 11211)
)
"""Ports of services that answer what they do not understand, or have been used to reflect floods.

echo, daytime, quote, chargen, time, DNS, TFTP, portmapper, NTP, NetBIOS, SNMP, CLDAP, SSDP, WS-Discovery,
mDNS, CoAP, memcached. A request from there is forged, to have two servers talk to each other, or its answer
would be the flood. The NAT that gives such a port to a client gives it another the next time.
"""

_FINGERPRINT_BYTES = 8
_ALL_ADDRESSES_BYTES = 4 * 24
_NO_CHANGE = ChangeRequest(change_ip=False, change_port=False)
_CHANGE_BOTH = ChangeRequest(change_ip=True, change_port=True)

# A basic server SHOULD NOT check credentials (RFC 8489 §12), and ICE agents probe with theirs all the same.
# So a plain request that carries some is answered, and the answer is sealed only where they are a user's.
_KNOWN = frozenset(
    codec.type
    for codec in (
        *(CHANGE_REQUEST, RESPONSE_PORT, PADDING, MAPPED_ADDRESS, XOR_MAPPED_ADDRESS),
        *(ERROR_CODE, UNKNOWN_ATTRIBUTES, USERNAME, USERHASH, REALM, NONCE, PASSWORD_ALGORITHM),
        *(MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, PRIORITY, USE_CANDIDATE),
    )
)
_KNOWN_CLASSIC = _KNOWN | {
    codec.type for codec in (RESPONSE_ADDRESS, SOURCE_ADDRESS, CHANGED_ADDRESS, PASSWORD, REFLECTED_FROM)
}
# A stream has one way back; what asks for another is refused there like any attribute not understood.
_DATAGRAM_ONLY = frozenset((RESPONSE_PORT.type, RESPONSE_ADDRESS.type))
_FOR_USERS = frozenset((CHANGE_REQUEST.type, RESPONSE_PORT.type, RESPONSE_ADDRESS.type, PADDING.type))


class DropReason(Enum):
    """Why something that arrived was not answered."""

    NOT_STUN = "not STUN"
    NOT_A_REQUEST = "responses or indications"
    UNSUPPORTED_METHOD = "of an unsupported method"
    WRONG_FINGERPRINT = "with a wrong FINGERPRINT"
    OWN_SOCKET = "from or for our own sockets"
    UNUSABLE_ADDRESS = "from or for an impossible address"
    THIRD_PARTY = "with a third party's RESPONSE-ADDRESS"
    NOT_UNICAST = "broadcast or multicast"
    TRUNCATED = "truncated"
    SEND_FAILED = "replies not sent"
    TOO_MANY_CONNECTIONS = "connections too many"
    RATE_LIMITED = "over the limit of their source"
    REFLECTOR_PORT = "from or for the port of a well-known reflector"
    SLOW_CONNECTION = "slow connections"
    TLS_FAILED = "connections whose TLS failed"
    TOO_LONG = "too long for a connection"


class RequestKind(IntEnum):
    """What a request that was answered had asked."""

    PLAIN = 0  # where it comes from, as RFC 8489 and RFC 5389 do
    CLASSIC = 1  # the same, as RFC 3489 does
    BEHAVIOUR = 2  # how its NAT behaves: CHANGE-REQUEST, RESPONSE-PORT, RESPONSE-ADDRESS, PADDING
    SHARED_SECRET = 3  # RFC 3489 §8.2
    SIP = 4  # how it arrived, as SIP


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send from the socket `origin` to `destination`; its IP is always the sender's own."""

    data: bytes
    origin: Endpoint
    destination: Endpoint
    kind: RequestKind = field(default=RequestKind.PLAIN, compare=False)
    """What it answers."""

    @property
    def is_error(self) -> bool:
        """Whether it says that the request cannot be served."""
        return self.kind is not RequestKind.SIP and bool(self.data[1] & 0x10)  # RFC 8489 §5


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """Where a server listens: one address, or two addresses of one family with the same two ports.

    Only with two addresses can it serve the tests of RFC 5780 (§6). The unspecified address stands for all
    addresses of the machine, and then it must be the only one. Raises `TransportError` when made otherwise.
    """

    address: IPAddress
    port: int = DEFAULT_PORT
    alternate_address: IPAddress | None = None
    alternate_port: int | None = None

    def __post_init__(self) -> None:
        if self.port and self.port == self.alternate_port:
            raise TransportError(f"the port and the alternate port are both {self.port}; they must differ")
        if any(ip is not None and ip.is_multicast for ip in (self.address, self.alternate_address)):
            raise TransportError("a multicast address cannot answer; give an address of this machine")
        if self.alternate_address is None:
            return
        pair = f"{self.address} and {self.alternate_address}"
        if self.address.version != self.alternate_address.version:
            raise TransportError(f"{pair} are of different families; run one server for each")
        if self.address == self.alternate_address:
            raise TransportError(f"{pair} are the same address; the alternate must be another one")
        if self.address.is_unspecified or self.alternate_address.is_unspecified:
            raise TransportError(
                f"{pair}: next to an alternate, both addresses must be named; a wildcard has every address"
            )
        if self.alternate_port is None:
            raise TransportError(f"{pair} need an alternate port beside port {self.port}")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every socket: one, two or four."""
        addresses = [ip for ip in (self.address, self.alternate_address) if ip is not None]
        ports = [port for port in (self.port, self.alternate_port) if port is not None]
        return tuple(Endpoint(ip, port) for ip in addresses for port in ports)

    def changed(self, local: Endpoint, change: ChangeRequest) -> Endpoint | None:
        """The socket that differs from `local` as `change` says (RFC 5780 §6.1, table 1).

        None where there is only one address: then not even the port is changed (RFC 5780 §6).
        """
        if self.alternate_address is None or self.alternate_port is None:
            return None
        ip, port = local.ip, local.port
        if change.change_ip:
            ip = self.address if ip == self.alternate_address else self.alternate_address
        if change.change_port:
            port = self.port if port == self.alternate_port else self.alternate_port
        return Endpoint(ip, port)


class Responder:
    """Answers Binding requests for a server that listens on `addresses`."""

    def __init__(
        self,
        addresses: ServerAddresses,
        *,
        reflector_ports: Collection[int] = REFLECTOR_PORTS,
        accounts: Accounts | None = None,
        secrets: SharedSecrets | None = None,
        advertise: Mapping[IPAddress, IPAddress] | None = None,
    ) -> None:
        """With `accounts` only users may send CHANGE-REQUEST, RESPONSE-PORT, RESPONSE-ADDRESS and PADDING.

        `secrets` are handed out over TLS, and a classic request that is sealed is judged by them: its client
        is a user, and the reply is sealed alike. They do not make anything for users only.
        Nothing is answered that comes from one of `reflector_ports`, or asks for the reply to go there.
        Where a 1:1 NAT gives an address of this machine another one outside, as clouds do, `advertise` has
        that: replies name it in place of the machine's own.
        """
        self.addresses = addresses
        self.reflector_ports = frozenset(reflector_ports)
        self.accounts = accounts
        self.secrets = secrets
        self._advertise = dict(advertise or {})
        self._own = frozenset((*addresses.endpoints, *map(self._outside, addresses.endpoints)))
        self._own_ports = frozenset(endpoint.port for endpoint in addresses.endpoints)
        self._is_wildcard = addresses.address.is_unspecified

    def respond(
        self,
        data: bytes,
        source: Endpoint,
        local: Endpoint,
        *,
        transport: Transport = Transport.UDP,
        now: float = 0.0,
    ) -> Reply | DropReason:
        """What to do about `data`, which came from `source` to `local`.

        `local` has the address that the client really asked, also where the socket is bound to the
        unspecified one. `now` is wanted only with accounts and secrets: nonces and secrets age by it.
        """
        stream = transport is not Transport.UDP
        obstacle = self._obstacle(source, local, stream)
        if obstacle is not None:
            return obstacle
        try:
            request = Message.parse(data)
        except DecodeError:
            return DropReason.NOT_STUN
        if request.message_class is not MessageClass.REQUEST:
            return DropReason.NOT_A_REQUEST
        if not request.is_classic and fingerprint_holds(request) is False:
            return DropReason.WRONG_FINGERPRINT
        if request.method == Method.BINDING:
            return self._bind(request, source, local, stream, now)
        if request.method == Method.SHARED_SECRET and request.is_classic:
            return self._share(request, source, local, transport, now)
        # RFC 8489 §6.3: what is of no supported method is silently discarded. That goes for TURN too.
        return DropReason.UNSUPPORTED_METHOD

    def _share(
        self, request: Message, source: Endpoint, local: Endpoint, transport: Transport, now: float
    ) -> Reply:
        """Answer a Shared Secret Request (RFC 3489 §8.2)."""
        if self.secrets is None:
            return _refuse(request, source, local, ErrorCode.GLOBAL_FAILURE)  # elsewhere it fares no better
        if transport is not Transport.TLS:
            return _refuse(request, source, local, ErrorCode.USE_TLS)
        unknown = _unknown_attributes(request, stream=True)
        if unknown:
            return _refuse(request, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, unknown)
        secret = self.secrets.issue(source, now=now)
        data = _encode(request, MessageClass.SUCCESS, secret.attributes)
        return Reply(data, local, source, RequestKind.SHARED_SECRET)

    def _bind(
        self, request: Message, source: Endpoint, local: Endpoint, stream: bool, now: float
    ) -> Reply | DropReason:
        admission = self._judge(request, source, now)
        if isinstance(admission, Rejection):
            return _reject(request, source, local, admission)
        unknown = _unknown_attributes(request, stream)
        if unknown:
            return _refuse(request, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, unknown, admission)
        try:
            change = request.get(CHANGE_REQUEST) or _NO_CHANGE
            padding = request.get(PADDING)
            response_port = request.get(RESPONSE_PORT)
            response_address = request.get(RESPONSE_ADDRESS)
        except DecodeError:
            return _refuse(request, source, local, ErrorCode.BAD_REQUEST, admission=admission)
        if response_port is not None and (padding is not None or response_address is not None):
            # RFC 5780 §6.1 forbids the first pair; the second names two ways back
            return _refuse(request, source, local, ErrorCode.BAD_REQUEST, admission=admission)
        origin = self._origin(local, change, stream)
        if origin is None:
            unknown = (CHANGE_REQUEST.type,)
            return _refuse(request, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, unknown, admission)
        # Ports below 1024 are allowed: who forges the source address forges its port just as well.
        asked_port = None if response_port is None else source.with_port(response_port)
        destination = asked_port or response_address or source
        if destination is not source:
            if destination.ip != source.ip:
                return DropReason.THIRD_PARTY
            obstacle = self._obstacle(destination, local, stream)
            if obstacle is not None:
                return obstacle
        added = [] if response_address is None else [REFLECTED_FROM.of(source)]
        if padding is not None:
            size = len(padding) if admission is None else max(len(padding), PADDED_BYTES)
            added.append(PADDING.of(bytes(size)))
        room = _ALL_ADDRESSES_BYTES
        if not stream and (padding is None or admission is None):
            room = int(MOST_AMPLIFICATION * len(request.encode())) - _size(request, added, admission)
        attributes = self._addresses(request, source, local, origin, room) + added
        if padding is not None:
            excess = max(0, _size(request, attributes, admission) - MOST_REPLY_BYTES)
            attributes[-1] = PADDING.of(bytes(len(attributes[-1].value) - excess))
        data = _encode(request, MessageClass.SUCCESS, attributes, admission)
        return Reply(data, origin, destination, _kind_of(request))

    def _judge(self, request: Message, source: Endpoint, now: float) -> Admission | Rejection | None:
        """Whether the request is from a user; None where it need not be, and does not show that it is."""
        rejection = None
        if self.secrets is not None and request.is_classic and request.has(MESSAGE_INTEGRITY):
            judged = self.secrets.judge(request, source, now=now)
            if isinstance(judged, Admission):
                return judged
            rejection = judged
        if self.accounts is None:
            return rejection
        is_for_users = _is_for_users(request)
        if not is_for_users and not is_sealed(request):
            return None
        judged = self.accounts.judge(request, source, now=now)
        if isinstance(judged, Admission):
            return judged
        return rejection or (judged if is_for_users else None)

    def _origin(self, local: Endpoint, change: ChangeRequest, stream: bool) -> Endpoint | None:
        """The socket that the reply must leave from, or None where there is no such."""
        if change == _NO_CHANGE:
            return local
        return None if stream else self.addresses.changed(local, change)

    def _obstacle(self, peer: Endpoint, local: Endpoint, stream: bool) -> DropReason | None:
        """Why nothing must be sent to `peer`, where a request says that it is from or for."""
        if not is_usable(peer):
            return DropReason.UNUSABLE_ADDRESS
        if peer.port in self.reflector_ports and not stream:
            return DropReason.REFLECTOR_PORT
        return DropReason.OWN_SOCKET if self._is_own(peer, local) else None

    def _addresses(
        self, request: Message, source: Endpoint, local: Endpoint, origin: Endpoint, room: int
    ) -> list[Attribute]:
        """The addresses of a reply in the attributes of the request's dialect, of at most `room` bytes.

        Where the client is seen comes always. Of the rest the other address goes first, without which no
        client can test its NAT; then the origin, which most read off the datagram. Over IPv4 there is room
        for all three beside a bare request; over IPv6 the other address wants a request of 28 bytes, as
        one with CHANGE-REQUEST or FINGERPRINT is, and the origin one of 36.

        RFC 5780 §6.1 wants MAPPED-ADDRESS in the modern dialect too, for clients that look for an ALG. It
        comes last, and stands second, where the request has attributes: over IPv4 one with CHANGE-REQUEST
        gets 68 bytes for its 28. libre gives up on the classic attributes 4 and 5 in a modern reply.
        """
        if request.is_classic:
            mapped, origin_codec, other_codec = MAPPED_ADDRESS.of(source), SOURCE_ADDRESS, CHANGED_ADDRESS
        else:
            mapped = XOR_MAPPED_ADDRESS.of(source, request.xor_key)
            origin_codec, other_codec = RESPONSE_ORIGIN, OTHER_ADDRESS
        attributes = [mapped]
        further = room // (4 + len(mapped.value)) - 1  # all addresses are of one family
        other = self.addresses.changed(local, _CHANGE_BOTH)
        if other is not None and further >= len(attributes):
            attributes.append(other_codec.of(self._outside(other)))
        # without IP_PKTINFO the origin is not known: better silent than wrong
        if not origin.ip.is_unspecified and further >= len(attributes):
            attributes.insert(1, origin_codec.of(self._outside(origin)))
        if request.attributes and not request.is_classic and further >= len(attributes):
            attributes.insert(1, MAPPED_ADDRESS.of(source))
        return attributes

    def _outside(self, own: Endpoint) -> Endpoint:
        """What clients know a socket of the server as."""
        return Endpoint(self._advertise.get(own.ip, own.ip), own.port)

    def _is_own(self, endpoint: Endpoint, local: Endpoint) -> bool:
        """Whether `endpoint` is one of the server's sockets.

        On a wildcard bind the other addresses of the machine are not known here. A loop cannot come of it:
        what the server sends is a response, and responses are not answered.
        """
        if endpoint.port not in self._own_ports:
            return False
        if self._is_wildcard:
            return endpoint.ip in (local.ip, self._outside(local).ip) or endpoint.ip.is_loopback
        return endpoint in self._own


def is_usable(endpoint: Endpoint) -> bool:
    """Whether a client can have this address: a port, and no multicast, broadcast or unspecified IP."""
    packed = endpoint.ip.packed
    if endpoint.port == 0:
        return False
    if len(packed) == 4:
        return packed[0] != 0 and packed[0] >> 4 != 14 and packed != b"\xff\xff\xff\xff"
    return packed[0] != 0xFF and any(packed)


def _unknown_attributes(request: Message, stream: bool) -> tuple[int, ...]:
    """The attributes that must be understood and are not (RFC 8489 §6.3.1), each once.

    Those of TURN are among them: in a Binding request they mean nothing. What follows MESSAGE-INTEGRITY
    is ignored (RFC 8489 §14.5).
    """
    known = _KNOWN_CLASSIC if request.is_classic else _KNOWN
    unknown: dict[int, None] = {}
    for attribute in request.attributes:
        number = attribute.type
        if attribute.comprehension_required and (
            number not in known or (stream and number in _DATAGRAM_ONLY)
        ):
            unknown[number] = None
        if number in (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type):
            break
    return tuple(unknown)


def _is_for_users(request: Message) -> bool:
    """Whether the request asks for more than where it came from. A change of nothing is not more."""
    return any(
        attribute.type in _FOR_USERS
        and not (attribute.type == CHANGE_REQUEST.type and attribute.value == bytes(4))
        for attribute in request.attributes
    )


def _kind_of(request: Message) -> RequestKind:
    if request.method == Method.SHARED_SECRET:
        return RequestKind.SHARED_SECRET
    if _is_for_users(request):
        return RequestKind.BEHAVIOUR
    return RequestKind.CLASSIC if request.is_classic else RequestKind.PLAIN


def _reject(request: Message, source: Endpoint, local: Endpoint, rejection: Rejection) -> Reply:
    """The error response to who is no user; without the challenge where that is too much for the request."""
    reply = _encode(request, MessageClass.ERROR, rejection.attributes)
    if len(reply) > MOST_AMPLIFICATION * len(request.encode()):
        reply = _encode(request, MessageClass.ERROR, rejection.attributes[:1])
    return Reply(reply, local, source, _kind_of(request))


def _refuse(
    request: Message,
    source: Endpoint,
    local: Endpoint,
    code: ErrorCode,
    unknown: tuple[int, ...] = (),
    admission: Admission | None = None,
) -> Reply:
    """An error response, from where the request came to back to its source."""
    phrase = code.phrase
    if request.is_classic:  # whole words: RFC 3489 §11.2.9 pads with spaces, §11.2.10 repeats an attribute
        phrase += " " * (-len(phrase) % 4)
        unknown += unknown[-1:] * (len(unknown) % 2)
    attributes = [ERROR_CODE.of(Error(code, phrase))]
    if unknown:
        attributes.append(UNKNOWN_ATTRIBUTES.of(unknown))
    data = _encode(request, MessageClass.ERROR, attributes, admission)
    return Reply(data, local, source, _kind_of(request))


def _size(request: Message, attributes: list[Attribute], admission: Admission | None) -> int:
    """The size of a reply with these attributes, its seal and its FINGERPRINT."""
    size = HEADER_BYTES + sum(4 + (len(attribute.value) + 3 & ~3) for attribute in attributes)
    if admission is not None:
        size += admission.seal_bytes
    return size + (_FINGERPRINT_BYTES if _wants_fingerprint(request) else 0)


def _wants_fingerprint(request: Message) -> bool:
    return len(request.attributes) > 0 and not request.is_classic and request.has(FINGERPRINT)


def _encode(
    request: Message,
    message_class: MessageClass,
    attributes: Sequence[Attribute],
    admission: Admission | None = None,
) -> bytes:
    reply = Message(request.method, message_class, request.transaction_id, tuple(attributes))
    if admission is not None:
        reply = admission.seal(reply)
    if _wants_fingerprint(request):
        reply = with_fingerprint(reply)
    return reply.encode()
