"""NAT-PMP messages (RFC 6886 §3): version 0 of what PCP is version 2 of. IPv4 only."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from nattools.endpoint import TransportProtocol
from nattools.errors import DecodeError, EncodeError
from nattools.wire import OpenIntEnum, Reader

VERSION = 0
RESPONSE_BIT = 0x80
LONGEST_LIFETIME_S = 0xFFFFFFFF


class Opcode(OpenIntEnum):
    """What is asked (RFC 6886 §3.2, §3.3)."""

    EXTERNAL_ADDRESS = 0
    MAP_UDP = 1
    MAP_TCP = 2

    @classmethod
    def mapping(cls, transport: TransportProtocol) -> Opcode:
        """The opcode that maps ports of `transport`."""
        return cls.MAP_TCP if transport is TransportProtocol.TCP else cls.MAP_UDP

    @property
    def transport(self) -> TransportProtocol:
        """Whose ports a mapping opcode maps."""
        return TransportProtocol.TCP if self is Opcode.MAP_TCP else TransportProtocol.UDP


class ResultCode(OpenIntEnum):
    """Result codes (RFC 6886 §3.5); but for 0 and 1 they are others than PCP's."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5

    @property
    def advice(self) -> str:
        """What it means, and what the user can do."""
        return _ADVICE.get(self, "which is not known here: the router's log may say more")


_ADVICE = {
    ResultCode.SUCCESS: "it did what was asked",
    ResultCode.UNSUPPORTED_VERSION: "it does not speak NAT-PMP: ask by PCP or UPnP",
    ResultCode.NOT_AUTHORIZED: "it does not allow that: turn NAT-PMP on in the router, allow it for this "
    "machine and port, or ask for a port of 1024 or more",
    ResultCode.NETWORK_FAILURE: "it has no working connection, or no public address, now: check the router's "
    "internet connection, and whether it is behind another NAT",
    ResultCode.OUT_OF_RESOURCES: "it is out of memory or ports now: remove mappings that nobody needs",
    ResultCode.UNSUPPORTED_OPCODE: "it does not have this operation: ask by PCP or UPnP",
}


@dataclass(frozen=True, slots=True)
class ExternalAddressRequest:
    """Asks for the router's external address (RFC 6886 §3.2)."""

    @property
    def opcode(self) -> Opcode:
        """EXTERNAL_ADDRESS."""
        return Opcode.EXTERNAL_ADDRESS

    def encode(self) -> bytes:
        """Two bytes."""
        return bytes((VERSION, self.opcode))


@dataclass(frozen=True, slots=True)
class MappingRequest:
    """Asks for a mapping (RFC 6886 §3.3), or with a lifetime of 0 for its removal (§3.4)."""

    transport: TransportProtocol
    internal_port: int
    external_port: int
    lifetime_s: int

    def __post_init__(self) -> None:
        for what, number, largest in (
            ("the internal port", self.internal_port, 0xFFFF),
            ("the external port", self.external_port, 0xFFFF),
            ("the lifetime", self.lifetime_s, LONGEST_LIFETIME_S),
        ):
            if not 0 <= number <= largest:
                raise EncodeError(f"{what} is {number}, which is not between 0 and {largest}")

    @property
    def opcode(self) -> Opcode:
        """MAP_UDP or MAP_TCP."""
        return Opcode.mapping(self.transport)

    def encode(self) -> bytes:
        """Twelve bytes."""
        ports = self.internal_port.to_bytes(2, "big") + self.external_port.to_bytes(2, "big")
        return bytes((VERSION, self.opcode, 0, 0)) + ports + self.lifetime_s.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class UnknownRequest:
    """A request that is not understood; a server answers that it is not (RFC 6886 §3.5)."""

    version: int
    opcode: Opcode


Request = ExternalAddressRequest | MappingRequest | UnknownRequest


def parse_request(data: bytes) -> Request:
    """Read one request; what follows it is ignored. Raises `DecodeError`."""
    reader = Reader(data)
    version, opcode = reader.uint(1), Opcode(reader.uint(1))
    if opcode & RESPONSE_BIT:
        raise DecodeError(f"opcode {int(opcode)} is not that of a NAT-PMP request")
    if version != VERSION or opcode not in (Opcode.EXTERNAL_ADDRESS, Opcode.MAP_UDP, Opcode.MAP_TCP):
        return UnknownRequest(version, opcode)
    if opcode is Opcode.EXTERNAL_ADDRESS:
        return ExternalAddressRequest()
    reader.take(2)
    internal_port, external_port, lifetime_s = reader.uint(2), reader.uint(2), reader.uint(4)
    return MappingRequest(opcode.transport, internal_port, external_port, lifetime_s)


@dataclass(frozen=True, slots=True)
class ExternalAddressResponse:
    """The router's external address (RFC 6886 §3.2); 0.0.0.0 where it has none."""

    epoch_s: int
    address: IPv4Address

    @property
    def opcode(self) -> Opcode:
        """EXTERNAL_ADDRESS."""
        return Opcode.EXTERNAL_ADDRESS

    def encode(self) -> bytes:
        """Twelve bytes."""
        return _encode_head(self.opcode, ResultCode.SUCCESS, self.epoch_s) + self.address.packed


@dataclass(frozen=True, slots=True)
class MappingResponse:
    """A mapping that was made, or removed where `lifetime_s` is 0 (RFC 6886 §3.3, §3.4)."""

    transport: TransportProtocol
    epoch_s: int
    internal_port: int
    external_port: int
    lifetime_s: int

    @property
    def opcode(self) -> Opcode:
        """MAP_UDP or MAP_TCP."""
        return Opcode.mapping(self.transport)

    def encode(self) -> bytes:
        """Sixteen bytes."""
        ports = self.internal_port.to_bytes(2, "big") + self.external_port.to_bytes(2, "big")
        head = _encode_head(self.opcode, ResultCode.SUCCESS, self.epoch_s)
        return head + ports + self.lifetime_s.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Anything but success (RFC 6886 §3.5). `internal_port` is None where the error does not say it."""

    opcode: Opcode
    result: ResultCode
    epoch_s: int
    internal_port: int | None = None

    def encode(self) -> bytes:
        """Eight bytes, or sixteen with the internal port."""
        head = _encode_head(self.opcode, self.result, self.epoch_s)
        return head if self.internal_port is None else head + self.internal_port.to_bytes(2, "big") + bytes(6)


Response = ExternalAddressResponse | MappingResponse | ErrorResponse


def parse_response(data: bytes) -> Response:
    """Read one response, or an announcement of the external address (RFC 6886 §3.2.1).

    What follows it is ignored. Raises `DecodeError`.
    """
    reader = Reader(data)
    version, opcode_byte = reader.uint(1), reader.uint(1)
    if version != VERSION:
        raise DecodeError(f"NAT-PMP version {version} instead of {VERSION}")
    if not opcode_byte & RESPONSE_BIT:
        raise DecodeError(f"opcode {opcode_byte} is not that of a NAT-PMP response")
    opcode, result, epoch_s = Opcode(opcode_byte & ~RESPONSE_BIT), ResultCode(reader.uint(2)), reader.uint(4)
    is_mapping = opcode in (Opcode.MAP_UDP, Opcode.MAP_TCP)
    if result is not ResultCode.SUCCESS:
        named = is_mapping and reader.remaining >= 8
        return ErrorResponse(opcode, result, epoch_s, reader.uint(2) if named else None)
    if opcode is Opcode.EXTERNAL_ADDRESS:
        return ExternalAddressResponse(epoch_s, IPv4Address(reader.take(4)))
    if not is_mapping:
        raise DecodeError(f"a success for NAT-PMP opcode {int(opcode)}, which nobody here asks for")
    internal_port, external_port, lifetime_s = reader.uint(2), reader.uint(2), reader.uint(4)
    return MappingResponse(opcode.transport, epoch_s, internal_port, external_port, lifetime_s)


def _encode_head(opcode: Opcode, result: ResultCode, epoch_s: int) -> bytes:
    return (
        bytes((VERSION, RESPONSE_BIT | opcode)) + int(result).to_bytes(2, "big") + epoch_s.to_bytes(4, "big")
    )
