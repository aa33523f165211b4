"""What a STUN server answers, as a function of the request, its source and the socket it came to.

Serves RFC 8489 §12 (a basic server), RFC 5780 §6 (NAT behaviour discovery) and RFC 3489 §8 (the classic
dialect). Every datagram gives a `Reply` or a `DropReason`; nothing is kept from one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, TransportError
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

DEFAULT_PORT = 3478
DEFAULT_ALTERNATE_PORT = 3479

MOST_REPLY_BYTES = 65_504
"""What one UDP datagram over IPv4 carries, down to a multiple of 4."""

MOST_AMPLIFICATION = 2.8
"""Reply bytes over request bytes, at the most, over UDP and IPv4: a bare request of 20 gets 56."""

_NO_CHANGE = ChangeRequest(change_ip=False, change_port=False)
_CHANGE_BOTH = ChangeRequest(change_ip=True, change_port=True)

# No credentials are checked: a basic server SHOULD NOT (RFC 8489 §12). ICE agents probe with theirs all the
# same, so a request that carries them is answered, and the answer is not signed.
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
    SLOW_CONNECTION = "slow connections"


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send from the socket `origin` to `destination`; its IP is always the sender's own."""

    data: bytes
    origin: Endpoint
    destination: Endpoint


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

    def __init__(self, addresses: ServerAddresses) -> None:
        self.addresses = addresses
        self._own = frozenset(addresses.endpoints)
        self._own_ports = frozenset(endpoint.port for endpoint in addresses.endpoints)
        self._is_wildcard = addresses.address.is_unspecified

    def respond(
        self, data: bytes, source: Endpoint, local: Endpoint, *, stream: bool = False
    ) -> Reply | DropReason:
        """What to do about `data`, which came from `source` to `local`.

        `local` has the address that the client really asked, also where the socket is bound to the
        unspecified one. `stream` says that the message came over TCP.
        """
        if not _is_usable(source):
            return DropReason.UNUSABLE_ADDRESS
        if self._is_own(source, local):
            return DropReason.OWN_SOCKET
        try:
            request = Message.parse(data)
        except DecodeError:
            return DropReason.NOT_STUN
        if request.message_class is not MessageClass.REQUEST:
            return DropReason.NOT_A_REQUEST
        if not request.is_classic and fingerprint_holds(request) is False:
            return DropReason.WRONG_FINGERPRINT
        if request.method == Method.BINDING:
            return self._bind(request, source, local, stream)
        if request.method == Method.SHARED_SECRET and request.is_classic:
            return _refuse(request, source, local, ErrorCode.USE_TLS)  # RFC 3489 §8.2
        # RFC 8489 §6.3: what is of no supported method is silently discarded. That goes for TURN too.
        return DropReason.UNSUPPORTED_METHOD

    def _bind(self, request: Message, source: Endpoint, local: Endpoint, stream: bool) -> Reply | DropReason:
        unknown = _unknown_attributes(request, stream)
        if unknown:
            return _refuse(request, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, unknown)
        try:
            change = request.get(CHANGE_REQUEST) or _NO_CHANGE
            padding = request.get(PADDING)
            response_port = request.get(RESPONSE_PORT)
            response_address = request.get(RESPONSE_ADDRESS)
        except DecodeError:
            return _refuse(request, source, local, ErrorCode.BAD_REQUEST)
        if response_port is not None and (padding is not None or response_address is not None):
            # RFC 5780 §6.1 forbids the first pair; the second names two ways back
            return _refuse(request, source, local, ErrorCode.BAD_REQUEST)
        origin = self._origin(local, change, stream)
        if origin is None:
            return _refuse(request, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, (CHANGE_REQUEST.type,))
        destination = source
        if response_port is not None:
            # Ports below 1024 are allowed: who forges the source address forges its port just as well.
            destination = source.with_port(response_port)
        elif response_address is not None:
            destination = response_address
        if destination is not source:
            obstacle = self._obstacle(destination, source, local)
            if obstacle is not None:
                return obstacle
        attributes = self._addresses(request, source, local, origin, padding)
        if response_address is not None:
            attributes.append(REFLECTED_FROM.of(source))
        if padding is not None:
            attributes.append(_padding(padding, attributes))
        return Reply(_encode(request, MessageClass.SUCCESS, attributes), origin, destination)

    def _origin(self, local: Endpoint, change: ChangeRequest, stream: bool) -> Endpoint | None:
        """The socket that the reply must leave from, or None where there is no such."""
        if change == _NO_CHANGE:
            return local
        return None if stream else self.addresses.changed(local, change)

    def _obstacle(self, destination: Endpoint, source: Endpoint, local: Endpoint) -> DropReason | None:
        """Why the reply must not go to `destination`, which the request names."""
        if destination.ip != source.ip:
            return DropReason.THIRD_PARTY
        if not _is_usable(destination):
            return DropReason.UNUSABLE_ADDRESS
        return DropReason.OWN_SOCKET if self._is_own(destination, local) else None

    def _addresses(
        self, request: Message, source: Endpoint, local: Endpoint, origin: Endpoint, padding: bytes | None
    ) -> list[Attribute]:
        """The addresses of a reply, in the attributes of the request's dialect.

        RFC 5780 §6.1 wants MAPPED-ADDRESS in the modern dialect too, for clients that look for an ALG. It
        stands second where the request has attributes and there is room (`_has_room`): over IPv4 a request
        with CHANGE-REQUEST gets 68 bytes for its 28, a bare one 56 for its 20, over IPv6 92. libre gives
        up on the classic attributes 4 and 5 in a modern reply.
        """
        other = self.addresses.changed(local, _CHANGE_BOTH)
        if request.is_classic:
            mapped, origin_codec, other_codec = MAPPED_ADDRESS.of(source), SOURCE_ADDRESS, CHANGED_ADDRESS
        else:
            mapped = XOR_MAPPED_ADDRESS.of(source, request.xor_key)
            origin_codec, other_codec = RESPONSE_ORIGIN, OTHER_ADDRESS
        attributes = [mapped]
        if not origin.ip.is_unspecified:  # no IP_PKTINFO on this system: better silent than wrong
            attributes.append(origin_codec.of(origin))
        if other is not None:
            attributes.append(other_codec.of(other))
        if request.attributes and not request.is_classic and _has_room(request, attributes, padding):
            attributes.insert(1, MAPPED_ADDRESS.of(source))
        return attributes

    def _is_own(self, endpoint: Endpoint, local: Endpoint) -> bool:
        """Whether `endpoint` is one of the server's sockets.

        On a wildcard bind the other addresses of the machine are not known here. A loop cannot come of it:
        what the server sends is a response, and responses are not answered.
        """
        if endpoint.port not in self._own_ports:
            return False
        if self._is_wildcard:
            return endpoint.ip == local.ip or endpoint.ip.is_loopback
        return endpoint in self._own


def _is_usable(endpoint: Endpoint) -> bool:
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


def _refuse(
    request: Message, source: Endpoint, local: Endpoint, code: ErrorCode, unknown: tuple[int, ...] = ()
) -> Reply:
    """An error response, from where the request came to back to its source."""
    phrase = code.phrase
    if request.is_classic:  # whole words: RFC 3489 §11.2.9 pads with spaces, §11.2.10 repeats an attribute
        phrase += " " * (-len(phrase) % 4)
        unknown += unknown[-1:] * (len(unknown) % 2)
    attributes = [ERROR_CODE.of(Error(code, phrase))]
    if unknown:
        attributes.append(UNKNOWN_ATTRIBUTES.of(unknown))
    return Reply(_encode(request, MessageClass.ERROR, attributes), local, source)


def _has_room(request: Message, addresses: list[Attribute], padding: bytes | None) -> bool:
    """Whether the reply to a modern request keeps within MOST_AMPLIFICATION with one more address.

    PADDING and FINGERPRINT, which the reply repeats, are counted. All its addresses are of one family.
    """
    size = HEADER_BYTES + (len(addresses) + 1) * (4 + len(addresses[0].value))
    if padding is not None:
        size += 4 + (len(padding) + 3 & ~3)
    if request.attributes[-1].type == FINGERPRINT.type:  # where it does not stand last, it is wrong
        size += 8
    return size <= MOST_AMPLIFICATION * len(request.encode())


def _padding(asked: bytes, others: list[Attribute]) -> Attribute:
    """PADDING as long as the client's own.

    RFC 5780 §7.6 says that the reply SHOULD be padded to the MTU. That would answer 24 bytes with 1500; a
    client that wants to see fragments come back sends fragments.
    """
    size = (
        HEADER_BYTES + sum(4 + len(attribute.value) for attribute in others) + 4 + 8
    )  # the last for FINGERPRINT
    return PADDING.of(bytes(min(len(asked), MOST_REPLY_BYTES - size)))


def _encode(request: Message, message_class: MessageClass, attributes: list[Attribute]) -> bytes:
    reply = Message(request.method, message_class, request.transaction_id, tuple(attributes))
    if not request.is_classic and request.has(FINGERPRINT):
        reply = with_fingerprint(reply)
    return reply.encode()
