"""STUN servers of every temper, on loopback or without any socket.

A `Behaviour` is a function from a request to replies; `serving` puts one behind a UDP or TCP port.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    Error,
    ErrorCode,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
)
from nattools.stun.integrity import (
    SecurityFeatures,
    integrity_holds,
    integrity_sha256_holds,
    long_term_key,
    nonce_prefix,
    saslprep,
    short_term_key,
    userhash,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import Message, MessageClass, frame_size

Behaviour = Callable[[Message, Endpoint], Sequence[Message | bytes]]

MD5 = PasswordAlgorithm(PasswordAlgorithmNumber.MD5)
SHA256 = PasswordAlgorithm(PasswordAlgorithmNumber.SHA256)
UNHEARD_OF = PasswordAlgorithm(0x7777, b"salt")


def success(request: Message, source: Endpoint, *attributes: Attribute) -> Message:
    """The success response that tells `source` where it comes from."""
    mapped = XOR_MAPPED_ADDRESS.of(source, request.xor_key)
    return Message(request.method, MessageClass.SUCCESS, request.transaction_id, (mapped, *attributes))


def error(request: Message, code: int, *attributes: Attribute) -> Message:
    """An error response."""
    code_attribute = ERROR_CODE.of(Error(code, ErrorCode(code).phrase))
    return Message(request.method, MessageClass.ERROR, request.transaction_id, (code_attribute, *attributes))


def friendly(request: Message, source: Endpoint) -> list[Message]:
    """Answers every Binding request."""
    return [success(request, source)] if request.message_class is MessageClass.REQUEST else []


def mute(_request: Message, _source: Endpoint) -> list[Message]:
    """Never answers."""
    return []


def refusing(code: int, *attributes: Attribute) -> Behaviour:
    """Answers everything with an error."""
    return lambda request, _source: [error(request, code, *attributes)]


def redirecting(*servers: Endpoint, domain: str | None = None) -> Behaviour:
    """Sends everybody to `servers`."""
    attributes = [ALTERNATE_SERVER.of(server) for server in servers]
    attributes += [ALTERNATE_DOMAIN.of(domain)] if domain else []
    return refusing(ErrorCode.TRY_ALTERNATE, *attributes)


def garbage_first(behaviour: Behaviour) -> Behaviour:
    """Sends noise, half a message and an answer to somebody else before the answer."""

    def answer(request: Message, source: Endpoint) -> list[Message | bytes]:
        other = Message(request.method, MessageClass.SUCCESS, b"another one!")
        replies = behaviour(request, source)
        return [b"", b"\x80noise", other, success(request, source).encode()[:-4], *replies, *replies]

    return answer


@dataclass
class LongTermServer:
    """A server that asks for long-term credentials, by RFC 8489 §9.2.4, or as RFC 5389 had it."""

    users: dict[str, str]
    realm: str = "example.org"
    modern: bool = True
    algorithms: tuple[PasswordAlgorithm, ...] = (SHA256, MD5)
    anonymity: bool = False
    requests_per_nonce: int = 1000
    _nonces: int = field(default=0, init=False)
    _uses: int = field(default=0, init=False)

    @property
    def nonce(self) -> str:
        features = SecurityFeatures.PASSWORD_ALGORITHMS if self.algorithms else SecurityFeatures.NONE
        features |= SecurityFeatures.USERNAME_ANONYMITY if self.anonymity else SecurityFeatures.NONE
        return (nonce_prefix(features) if self.modern else "") + f"nonce {self._nonces}"

    def __call__(self, request: Message, source: Endpoint) -> list[Message]:
        if not (request.has(MESSAGE_INTEGRITY) or request.has(MESSAGE_INTEGRITY_SHA256)):
            return [self._challenge(request, ErrorCode.UNAUTHORIZED)]
        user = self._user(request)
        if request.get(REALM) is None or request.get(NONCE) is None:
            return [error(request, ErrorCode.BAD_REQUEST)]
        offered, algorithm = request.get(PASSWORD_ALGORITHMS), request.get(PASSWORD_ALGORITHM)
        if (offered or algorithm) and (offered != self.algorithms or algorithm not in self.algorithms):
            return [error(request, ErrorCode.BAD_REQUEST)]
        key = self._key(user, algorithm) if user is not None else None
        holds = integrity_sha256_holds if request.has(MESSAGE_INTEGRITY_SHA256) else integrity_holds
        if key is None or not holds(request, key):
            return [self._challenge(request, ErrorCode.UNAUTHORIZED)]
        self._uses += 1
        if request.get(NONCE) != self.nonce or self._uses > self.requests_per_nonce:
            self._nonces, self._uses = self._nonces + 1, 0
            return [self._challenge(request, ErrorCode.STALE_NONCE)]
        seal = with_integrity if algorithm is None else with_integrity_sha256
        return [seal(success(request, source), key)]

    def _challenge(self, request: Message, code: int) -> Message:
        attributes = [REALM.of(self.realm), NONCE.of(self.nonce)]
        if self.modern and self.algorithms:
            attributes.append(PASSWORD_ALGORITHMS.of(self.algorithms))
        return error(request, code, *attributes)

    def _user(self, request: Message) -> str | None:
        hashed = request.get(USERHASH)
        if hashed is None:
            return request.get(USERNAME)
        return next((user for user in self.users if userhash(user, self.realm) == hashed), None)

    def _key(self, user: str, algorithm: PasswordAlgorithm | None) -> bytes | None:
        if user not in self.users:
            return None
        password = self.users[user]
        if not self.modern:
            return long_term_key(user, self.realm, password, preparation=saslprep)
        number = PasswordAlgorithmNumber(algorithm.number if algorithm else 1)
        return long_term_key(user, self.realm, password, algorithm=number)


def short_term_server(password: str, *, sha256: bool) -> Behaviour:
    """Checks, and makes, one of the two integrity attributes (RFC 8489 §9.1.3)."""
    key = short_term_key(password)

    def answer(request: Message, source: Endpoint) -> list[Message]:
        holds = integrity_sha256_holds(request, key) if sha256 else integrity_holds(request, key)
        if not holds or not request.has(USERNAME):
            return [error(request, ErrorCode.UNAUTHORIZED)]
        reply = success(request, source)
        return [with_integrity_sha256(reply, key) if sha256 else with_integrity(reply, key)]

    return answer


def without(behaviour: Behaviour, *numbers: int) -> Behaviour:
    """An attacker on the way, who takes attributes out of every answer."""

    def answer(request: Message, source: Endpoint) -> list[Message]:
        return [
            Message(
                reply.method,
                reply.message_class,
                reply.transaction_id,
                tuple(attribute for attribute in reply.attributes if attribute.type not in numbers),
            )
            for reply in behaviour(request, source)
            if isinstance(reply, Message)
        ]

    return answer


def forging(behaviour: Behaviour, *forged: Attribute) -> Behaviour:
    """An attacker on the way, who replaces attributes in every answer that has them."""
    values = {attribute.type: attribute for attribute in forged}

    def answer(request: Message, source: Endpoint) -> list[Message]:
        return [
            Message(
                reply.method,
                reply.message_class,
                reply.transaction_id,
                tuple(values.get(attribute.type, attribute) for attribute in reply.attributes),
            )
            for reply in behaviour(request, source)
            if isinstance(reply, Message)
        ]

    return answer


@dataclass
class FakeServer:
    """A running fake: where it listens, what it was asked, and who is connected."""

    behaviour: Behaviour
    endpoint: Endpoint = field(default_factory=lambda: Endpoint.of("127.0.0.1", 0))
    requests: list[Message] = field(default_factory=list)
    connections: list[asyncio.WriteTransport] = field(default_factory=list)
    transports: list[asyncio.DatagramTransport] = field(default_factory=list)
    ended: list[asyncio.Future[None]] = field(default_factory=list)

    def replies(self, data: bytes, source: Endpoint) -> list[bytes]:
        request = Message.parse(data)
        self.requests.append(request)
        answers = self.behaviour(request, source)
        return [answer if isinstance(answer, bytes) else answer.encode() for answer in answers]


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # asyncio gives this kind
        self._transport = transport
        self._fake.transports.append(transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        for reply in self._fake.replies(data, Endpoint(ip_address(address[0]), address[1])):
            self._transport.sendto(reply, address)


class _Stream(asyncio.Protocol):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake
        self._buffer = b""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]  # asyncio gives this kind
        self._transport = transport
        self._fake.connections.append(transport)
        self._ended = asyncio.get_running_loop().create_future()
        self._fake.ended.append(self._ended)
        self._source = Endpoint.of(*transport.get_extra_info("peername")[:2])

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (size := frame_size(self._buffer)) is not None and len(self._buffer) >= size:
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            for reply in self._fake.replies(frame, self._source):
                self._transport.write(reply)


@asynccontextmanager
async def serving(behaviour: Behaviour, *, host: str = "127.0.0.1") -> AsyncIterator[FakeServer]:
    """The behaviour behind a UDP port of its own."""
    fake = FakeServer(behaviour)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(fake), local_addr=(host, 0))
    fake.endpoint = Endpoint.of(*transport.get_extra_info("sockname")[:2])
    try:
        yield fake
    finally:
        transport.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def serving_stream(
    behaviour: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeServer]:
    """The behaviour behind a TCP, or TLS, port of its own."""
    fake = FakeServer(behaviour)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(fake), host, 0, ssl=tls)
    fake.endpoint = Endpoint.of(*server.sockets[0].getsockname()[:2])
    try:
        yield fake
    finally:
        server.close()
        for connection in fake.connections:
            connection.abort()
        await asyncio.gather(*fake.ended)
        await server.wait_closed()
