"""The promise of the STUN codec: bytes give a value or a `DecodeError`, the message and each attribute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    PASSWORD_ALGORITHMS,
    REGISTRY,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS_CLASSIC,
    ChangeRequest,
    Error,
    PasswordAlgorithm,
)
from nattools.stun.integrity import (
    fingerprint_holds,
    integrity_holds,
    integrity_sha256_holds,
    with_fingerprint,
    with_integrity,
    with_integrity_sha256,
)
from nattools.stun.message import HEADER_BYTES, MAGIC_COOKIE, Message, MessageClass, Method, frame_size
from tests import vectors
from tests.fuzz.mutator import Target

KEY = b"key"
_NUMBERS = tuple(REGISTRY)


def check(data: bytes) -> str:
    """Hold the codec to its promise on `data`; say whether it was a message."""
    with suppress(DecodeError):
        size = frame_size(data)
        assert size is None or size >= HEADER_BYTES
    try:
        message = Message.parse(data)
    except DecodeError:
        return "DecodeError"
    assert message.encode() == data
    assert frame_size(data) == len(data)
    for codec in REGISTRY.values():
        with suppress(DecodeError):
            message.get(codec)
    with suppress(DecodeError):
        _ = message.mapped_address
    check_values(message)
    for verdict in (integrity_holds(message, KEY), integrity_sha256_holds(message, KEY)):
        assert verdict in (True, False, None)
    assert fingerprint_holds(message) in (True, False, None)
    rebuilt = Message(message.method, message.message_class, message.transaction_id, message.attributes)
    assert Message.parse(rebuilt.encode()) == message
    return "Message"


def check_values(message: Message) -> None:
    """Every value that can be read can be written, and read again; even where `get` passes it over."""
    for number, value in message.attributes:
        codec = REGISTRY.get(number)
        if codec is None:
            continue
        try:
            read = codec.parse(value, message.xor_key)
            written = codec.of(read, message.xor_key)
        except (DecodeError, EncodeError):
            continue
        assert codec.parse(written.value, message.xor_key) == read


def _offsets(data: bytearray) -> list[int]:
    """Where the attributes begin, as far as their lengths can be believed."""
    offsets, position = [], HEADER_BYTES
    while position + 4 <= len(data):
        offsets.append(position)
        size = data[position + 2] << 8 | data[position + 3]
        position += 4 + size + -size % 4
    return offsets


def rename(data: bytearray, random: Random) -> None:
    """Give an attribute the number of another one."""
    if offsets := _offsets(data):
        position = random.choice(offsets)
        data[position : position + 2] = random.choice(_NUMBERS).to_bytes(2, "big")


def lie(data: bytearray, random: Random) -> None:
    """Change the length that an attribute claims."""
    if offsets := _offsets(data):
        position = random.choice(offsets) + 2
        claim = random.choice((random.randrange(64), random.randrange(64), random.randrange(0x10000)))
        data[position : position + 2] = claim.to_bytes(2, "big")


def add(data: bytearray, random: Random) -> None:
    """Put a whole attribute of random content between two others."""
    position = random.choice((*_offsets(data), len(data)))
    size = random.choice((0, 1, 2, 3, 4, 5, 8, 8, 8, 16, 20, 20, 32, random.randrange(100)))
    head = random.choice(_NUMBERS).to_bytes(2, "big") + size.to_bytes(2, "big")
    data[position:position] = head + random.randbytes(size + -size % 4)


def repair(data: bytearray, random: Random) -> None:
    """Make the frame fit: whole words, a length that counts them, and mostly no attribute past the end."""
    del data[len(data) - len(data) % 4 :]
    if len(data) < HEADER_BYTES:
        return
    data[0] &= 0x3F
    data[2:4] = (len(data) - HEADER_BYTES & 0xFFFF).to_bytes(2, "big")
    if random.random() < 0.8 and (offsets := _offsets(data)):
        position = offsets[-1] + 2
        left = len(data) - position - 2
        if int.from_bytes(data[position : position + 2], "big") > left:
            data[position : position + 2] = (left & 0xFFFF).to_bytes(2, "big")


def seeds() -> Sequence[bytes]:
    """The vectors, the corpus where it is there, and a few messages of what those lack."""
    modern, classic = MAGIC_COOKIE + bytes(range(12)), bytes(range(16))
    request = Message(
        Method.BINDING,
        MessageClass.REQUEST,
        modern[4:],
        (CHANGE_REQUEST.of(ChangeRequest(change_ip=True, change_port=True)), RESPONSE_PORT.of(5060)),
    )
    error = Message(
        Method.BINDING,
        MessageClass.ERROR,
        modern[4:],
        (
            ERROR_CODE.of(Error(420, "Unknown Attribute")),
            UNKNOWN_ATTRIBUTES.of((0x0003, 0x0026)),
            PASSWORD_ALGORITHMS.of((PasswordAlgorithm(2, b"parameters"), PasswordAlgorithm(1))),
        ),
    )
    mapped = XOR_MAPPED_ADDRESS_CLASSIC.of(Endpoint.of("192.0.2.1", 5060), classic)
    made = (
        request,
        error,
        Message(Method.BINDING, MessageClass.SUCCESS, classic, (mapped,)),
        with_fingerprint(with_integrity_sha256(with_integrity(request, KEY), KEY, size=16)),
    )
    encoded = (message.encode() for message in made)
    return (*vectors.messages().values(), *vectors.corpus_messages().values(), *encoded)


TARGET = Target("stun_codec", seeds, check, (rename, lie, add), repair)
