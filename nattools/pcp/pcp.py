"""PCP messages, read and written without loss (RFC 6887 §7, §11 to §14).

An IPv4 address travels as an IPv4-mapped IPv6 one (§5) and is an `IPv4Address` here. Reserved fields and
padding, which a receiver ignores, are kept by a message as long as nobody makes another one of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, EncodeError
from nattools.wire import OpenIntEnum, Reader

VERSION = 2
SERVER_PORT = 5351
ANNOUNCEMENT_PORT = 5350
HEADER_BYTES = 24
NONCE_BYTES = 12
MOST_MESSAGE_BYTES = 1100
LONGEST_LIFETIME_S = 0xFFFFFFFF

RESPONSE_BIT = 0x80
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_MAPPED_PREFIX_BITS = 96


class Opcode(OpenIntEnum):
    """Opcodes of the IANA registry (RFC 6887 §19.2); 7 bits."""

    ANNOUNCE = 0
    MAP = 1
    PEER = 2


class ResultCode(OpenIntEnum):
    """Result codes (RFC 6887 §7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13

    @property
    def advice(self) -> str:
        """What it means, and what the user can do."""
        return _ADVICE.get(self, "which is not known here: the router's log may say more")


_ADVICE = {
    ResultCode.SUCCESS: "it did what was asked",
    ResultCode.UNSUPP_VERSION: "it does not speak PCP version 2: ask by NAT-PMP or UPnP",
    ResultCode.NOT_AUTHORIZED: "it does not allow this machine to do that, or the mapping is somebody "
    "else's: allow PCP for this machine and port in the router, or ask for a port of 1024 or more",
    ResultCode.MALFORMED_REQUEST: "it cannot read the request: its PCP may be of another draft, ask by UPnP",
    ResultCode.UNSUPP_OPCODE: "it does not have this operation, or it is turned off: ask by NAT-PMP or UPnP",
    ResultCode.UNSUPP_OPTION: "it does not have one of the options: ask without them",
    ResultCode.MALFORMED_OPTION: "it cannot read one of the options: ask without them",
    ResultCode.NETWORK_FAILURE: "it has no working connection, or no public address, now: check the router's "
    "internet connection, and whether it is behind another NAT",
    # miniupnpd answers so where its WAN address is not a public one, too.
    ResultCode.NO_RESOURCES: "it is out of memory or ports now, or it has no public address: remove mappings "
    "that nobody needs, and check whether the router is behind another NAT",
    ResultCode.UNSUPP_PROTOCOL: "it cannot map this transport protocol: ask for UDP or TCP",
    ResultCode.USER_EX_QUOTA: "this machine has as many mappings as it allows: remove one first",
    ResultCode.CANNOT_PROVIDE_EXTERNAL: "the external port or address is taken, or not its own to give: ask "
    "for another, or for any",
    ResultCode.ADDRESS_MISMATCH: "it sees the request come from another address: there is a NAT between this "
    "machine and it, ask that NAT instead",
    ResultCode.EXCESSIVE_REMOTE_PEERS: "it cannot keep so many filters for one mapping: ask for fewer",
}


class OptionCode(OpenIntEnum):
    """Options (RFC 6887 §13). A server must understand those below 128, or refuse the request (§7.3)."""

    THIRD_PARTY = 1
    PREFER_FAILURE = 2
    FILTER = 3


@dataclass(frozen=True, slots=True)
class Option:
    """An option by its code and content, without padding (RFC 6887 §7.3)."""

    code: OptionCode
    data: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.code <= 0xFF:
            raise EncodeError(f"option code {int(self.code)} does not fit 8 bits")


PREFER_FAILURE = Option(OptionCode.PREFER_FAILURE)
"""Fail rather than map another external port or address than the suggested one (RFC 6887 §13.2)."""


def third_party(address: IPAddress) -> Option:
    """The THIRD_PARTY option: the mapping is for `address`, not for the client (RFC 6887 §13.1)."""
    return Option(OptionCode.THIRD_PARTY, encode_address(address))


def third_party_address(option: Option) -> IPAddress:
    """Whom a THIRD_PARTY option is about. Raises `DecodeError`."""
    return parse_address(option.data)


@dataclass(frozen=True, slots=True)
class Filter:
    """Who may send to a mapping (RFC 6887 §13.3): one network, and one port of it or any (0).

    Without a network it takes away all filters that the mapping had before.
    """

    network: IPv4Network | IPv6Network | None
    port: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.network, IPv6Network) and self.network.prefixlen == 0:
            raise EncodeError("a filter cannot say ::/0, which on the wire takes all filters away")
        _check_range("the filter's port", self.port, 0xFFFF)

    @classmethod
    def parse(cls, option: Option) -> Filter:
        """Read a FILTER option. Raises `DecodeError`."""
        reader = Reader(option.data)
        reader.take(1)
        prefix_bits, port, address = reader.uint(1), reader.uint(2), reader.take(16)
        if reader.remaining or prefix_bits > 128:
            raise DecodeError(f"a FILTER of {len(option.data)} bytes, with a prefix of {prefix_bits} bits")
        if prefix_bits == 0:
            return cls(None, port)
        if address.startswith(_MAPPED_PREFIX) and prefix_bits >= _MAPPED_PREFIX_BITS:
            return cls(IPv4Network((address[12:], prefix_bits - _MAPPED_PREFIX_BITS), strict=False), port)
        return cls(IPv6Network((address, prefix_bits), strict=False), port)

    def option(self) -> Option:
        """The option that says so."""
        if self.network is None:
            prefix_bits, address = 0, bytes(16)
        else:
            prefix_bits, address = self.network.prefixlen, encode_address(self.network.network_address)
            if self.network.version == 4:
                prefix_bits += _MAPPED_PREFIX_BITS
        return Option(OptionCode.FILTER, bytes((0, prefix_bits)) + self.port.to_bytes(2, "big") + address)


@dataclass(frozen=True, slots=True)
class Announce:
    """The empty body of ANNOUNCE: a client asks for the epoch, a server tells it (RFC 6887 §14.1)."""

    @property
    def opcode(self) -> Opcode:
        """ANNOUNCE."""
        return Opcode.ANNOUNCE

    def encode(self) -> bytes:
        """Nothing."""
        return b""


@dataclass(frozen=True, slots=True)
class Map:
    """The body of a MAP request and of its response, which look the same (RFC 6887 §11.1).

    `protocol` is an IANA number, 0 for all; `external` is suggested by the client, assigned by the server.
    """

    nonce: bytes = field(repr=False)
    protocol: int
    internal_port: int
    external: Endpoint

    def __post_init__(self) -> None:
        _check_mapping(self.nonce, self.protocol, self.internal_port)

    @property
    def opcode(self) -> Opcode:
        """MAP."""
        return Opcode.MAP

    def encode(self) -> bytes:
        """The 36 bytes."""
        head = self.nonce + bytes((self.protocol, 0, 0, 0)) + self.internal_port.to_bytes(2, "big")
        return head + self.external.port.to_bytes(2, "big") + encode_address(self.external.ip)


@dataclass(frozen=True, slots=True)
class Peer:
    """The body of a PEER request and of its response (RFC 6887 §12.1): a mapping towards `remote` only."""

    nonce: bytes = field(repr=False)
    protocol: int
    internal_port: int
    external: Endpoint
    remote: Endpoint

    def __post_init__(self) -> None:
        _check_mapping(self.nonce, self.protocol, self.internal_port)

    @property
    def opcode(self) -> Opcode:
        """PEER."""
        return Opcode.PEER

    def encode(self) -> bytes:
        """The 56 bytes."""
        mapping = Map(self.nonce, self.protocol, self.internal_port, self.external).encode()
        return mapping + self.remote.port.to_bytes(2, "big") + bytes(2) + encode_address(self.remote.ip)


@dataclass(frozen=True, slots=True)
class Opaque:
    """What follows the header and is not understood: another opcode, or an error that was cut short."""

    opcode: Opcode
    data: bytes = b""

    def __post_init__(self) -> None:
        _check_range("the opcode", self.opcode, RESPONSE_BIT - 1)

    def encode(self) -> bytes:
        """The bytes as they came."""
        return self.data


Body = Announce | Map | Peer | Opaque


@dataclass(frozen=True, slots=True)
class Request:
    """A PCP request (RFC 6887 §7.1). `client` is the address that it is sent from."""

    body: Body
    lifetime_s: int
    client: IPAddress
    options: tuple[Option, ...] = ()
    _raw: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_range("the lifetime", self.lifetime_s, LONGEST_LIFETIME_S)

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Read one request. Raises `DecodeError`."""
        reader, opcode = _parse_header(data, response=False)
        reader.take(2)
        lifetime_s = reader.uint(4)
        client = parse_address(reader.take(16))
        body = _parse_body(opcode, reader)
        request = cls(body, lifetime_s, client, _parse_options(reader))
        object.__setattr__(request, "_raw", data)
        return request

    def encode(self, *, allow_third_party: bool = False) -> bytes:
        """The bytes to send.

        Raises `EncodeError` when they are too many, and for THIRD_PARTY unless it is allowed: only a trusted
        program on a trusted network may make mappings for others (RFC 6887 §13.1).
        """
        if not allow_third_party and any(option.code == OptionCode.THIRD_PARTY for option in self.options):
            raise EncodeError(
                "THIRD_PARTY makes a mapping for another machine: it must be allowed explicitly"
            )
        if self._raw is not None:
            return self._raw
        head = bytes((VERSION, self.body.opcode, 0, 0)) + self.lifetime_s.to_bytes(4, "big")
        return _bounded(
            head + encode_address(self.client) + self.body.encode() + _encode_options(self.options)
        )


@dataclass(frozen=True, slots=True)
class Response:
    """A PCP response (RFC 6887 §7.2).

    `lifetime_s` is the mapping's; in an error it is how long the same request will fail the same way.
    `epoch_s` is how long ago the server's state began (§8.5).
    """

    result: ResultCode
    body: Body
    lifetime_s: int
    epoch_s: int
    options: tuple[Option, ...] = ()
    _raw: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_range("the result code", self.result, 0xFF)
        _check_range("the lifetime", self.lifetime_s, LONGEST_LIFETIME_S)
        _check_range("the epoch", self.epoch_s, 0xFFFFFFFF)

    @classmethod
    def parse(cls, data: bytes) -> Response:
        """Read one response; in an error, what is too short for its opcode is kept as it is.

        Raises `DecodeError`.
        """
        reader, opcode = _parse_header(data, response=True)
        reader.take(1)
        result, lifetime_s, epoch_s = ResultCode(reader.uint(1)), reader.uint(4), reader.uint(4)
        reader.take(12)
        if result is not ResultCode.SUCCESS and reader.remaining < _BODY_BYTES.get(opcode, 0):
            body: Body = Opaque(opcode, reader.rest())
        else:
            body = _parse_body(opcode, reader)
        response = cls(result, body, lifetime_s, epoch_s, _parse_options(reader))
        object.__setattr__(response, "_raw", data)
        return response

    def encode(self) -> bytes:
        """The bytes to send. Raises `EncodeError` when they are too many."""
        if self._raw is not None:
            return self._raw
        head = bytes((VERSION, RESPONSE_BIT | self.body.opcode, 0, self.result))
        head += self.lifetime_s.to_bytes(4, "big") + self.epoch_s.to_bytes(4, "big") + bytes(12)
        return _bounded(head + self.body.encode() + _encode_options(self.options))


_BODY_BYTES = {Opcode.ANNOUNCE: 0, Opcode.MAP: 36, Opcode.PEER: 56}


def refused_version(data: bytes, *, ours: int) -> int | None:
    """The version that a server speaks, if `data` is its refusal to speak `ours`.

    NAT-PMP and PCP have the result at the same place, and 1 means the same in both, so that each can read the
    other's refusal (RFC 6887 appendix A, RFC 6886 §3.5).
    """
    if len(data) < 4 or data[0] == ours or data[3] != ResultCode.UNSUPP_VERSION:
        return None
    return data[0]


def encode_address(address: IPAddress) -> bytes:
    """16 bytes; IPv4 is mapped into IPv6, and a scope is left out (RFC 6887 §5)."""
    return address.packed if isinstance(address, IPv6Address) else _MAPPED_PREFIX + address.packed


def parse_address(data: bytes) -> IPAddress:
    """The address in 16 bytes. Raises `DecodeError`."""
    if len(data) != 16:
        raise DecodeError(f"an address of {len(data)} bytes; PCP has 16")
    return IPv4Address(data[12:]) if data.startswith(_MAPPED_PREFIX) else IPv6Address(data)


def _parse_header(data: bytes, *, response: bool) -> tuple[Reader, Opcode]:
    what = "response" if response else "request"
    if not HEADER_BYTES <= len(data) <= MOST_MESSAGE_BYTES or len(data) % 4:
        raise DecodeError(
            f"a PCP {what} of {len(data)} bytes; 24 to 1100 in steps of 4 expected (RFC 6887 §7)"
        )
    reader = Reader(data)
    version, opcode = reader.uint(1), reader.uint(1)
    if version != VERSION:
        raise DecodeError(f"PCP version {version} instead of {VERSION}")
    if bool(opcode & RESPONSE_BIT) is not response:
        raise DecodeError(f"opcode byte 0x{opcode:02X} is not that of a PCP {what}")
    return reader, Opcode(opcode & ~RESPONSE_BIT)


def _parse_body(opcode: Opcode, reader: Reader) -> Body:
    if opcode not in _BODY_BYTES:
        return Opaque(opcode, reader.rest())
    if opcode is Opcode.ANNOUNCE:
        return Announce()
    nonce, protocol = reader.take(NONCE_BYTES), reader.uint(1)
    reader.take(3)
    internal_port, external_port = reader.uint(2), reader.uint(2)
    external = Endpoint(parse_address(reader.take(16)), external_port)
    if opcode is Opcode.MAP:
        return Map(nonce, protocol, internal_port, external)
    remote_port = reader.uint(2)
    reader.take(2)
    remote = Endpoint(parse_address(reader.take(16)), remote_port)
    return Peer(nonce, protocol, internal_port, external, remote)


def _parse_options(reader: Reader) -> tuple[Option, ...]:
    options = []
    while reader.remaining:
        code = OptionCode(reader.uint(1))
        reader.take(1)
        size = reader.uint(2)
        options.append(Option(code, reader.take(size)))
        reader.take(-size % 4)
    return tuple(options)


def _encode_options(options: tuple[Option, ...]) -> bytes:
    encoded = b""
    for option in options:
        size = len(option.data)
        if size > MOST_MESSAGE_BYTES:
            raise EncodeError(f"an option of {size} bytes; a PCP message has at most {MOST_MESSAGE_BYTES}")
        encoded += bytes((option.code, 0)) + size.to_bytes(2, "big") + option.data + bytes(-size % 4)
    return encoded


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_MESSAGE_BYTES:
        raise EncodeError(f"a PCP message of {len(data)} bytes; at most {MOST_MESSAGE_BYTES} are allowed")
    return data


def _check_mapping(nonce: bytes, protocol: int, internal_port: int) -> None:
    if len(nonce) != NONCE_BYTES:
        raise EncodeError(f"a mapping nonce of {len(nonce)} bytes; {NONCE_BYTES} expected")
    _check_range("the protocol", protocol, 0xFF)
    _check_range("the internal port", internal_port, 0xFFFF)


def _check_range(what: str, number: int, largest: int) -> None:
    if not 0 <= number <= largest:
        raise EncodeError(f"{what} is {int(number)}, which is not between 0 and {largest}")
