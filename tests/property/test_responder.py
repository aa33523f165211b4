"""Whatever arrives, the responder neither fails nor lets itself be used against others."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    REGISTRY,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOURCE_ADDRESS,
    Attribute,
    ChangeRequest,
)
from nattools.stun.integrity import with_fingerprint
from nattools.stun.message import MAGIC_COOKIE, Message, MessageClass, Method
from nattools.stun.responder import REFLECTOR_PORTS, DropReason, Reply, Responder, ServerAddresses
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.uri import Transport

A1, A2, B1, B2 = (ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
FULL = Responder(ServerAddresses(A1, 3478, A2, 3479))
IPV6 = Responder(ServerAddresses(B1, 3478, B2, 3479))
SINGLE = Responder(ServerAddresses(A1))
SHARING = Responder(FULL.addresses, secrets=SharedSecrets(bytes(16), entropy=bytes))
WILDCARD = Responder(ServerAddresses(IPv4Address(0)))
UNKNOWN = Attribute(0xFFFF, b"")  # optional to understand

ports = st.integers(0, 0xFFFF)
ordinary_ports = st.integers(1, 0xFFFF).filter(lambda port: port not in REFLECTOR_PORTS)
endpoints = st.builds(Endpoint, st.one_of(st.ip_addresses(v=4), st.sampled_from([A1, A2])), ports)
endpoints_ipv6 = st.builds(Endpoint, st.one_of(st.ip_addresses(v=6), st.sampled_from([B1, B2])), ports)
locals_full = st.sampled_from(FULL.addresses.endpoints)

attribute_numbers = st.one_of(st.sampled_from(sorted(REGISTRY)), st.integers(0, 0xFFFF))
attribute_values = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([bytes(4), b"\0\0\0\2", b"\0\0\0\6", b"\x13\x88", b"\x13\x88\0\0"]),
    st.builds(lambda port, ip: b"\0\1" + struct.pack("!H", port) + ip.packed, ports, st.just(A1)),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Well-formed Binding requests with any attributes, known or not, in range or not."""
    attributes = draw(st.lists(st.tuples(attribute_numbers, attribute_values), max_size=8))
    body = b"".join(
        struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)
        for number, value in attributes
    )
    cookie = draw(st.sampled_from([MAGIC_COOKIE, b"abcd"]))
    data = struct.pack("!HH", 1, len(body)) + cookie + draw(st.binary(min_size=12, max_size=12)) + body
    if draw(st.booleans()) and not any(number == 0x8028 for number, _ in attributes):
        data = with_fingerprint(Message.parse(data)).encode()
    return data


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Requests with some bytes changed, cut off or added."""
    data = bytearray(draw(requests()))
    for position in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[position] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=8))


def lean(*attributes: Attribute) -> Message:
    return Message(Method.BINDING, MessageClass.REQUEST, bytes(12), attributes)


def lean_requests() -> st.SearchStrategy[Message]:
    """Modern requests with little in them: what the reply repeats, and what only makes the request larger."""
    unknown = st.integers(0x8000, 0xFFFF).filter(lambda number: number not in REGISTRY)
    attributes = st.one_of(
        st.builds(Attribute, unknown, st.binary(max_size=4)),
        st.builds(PADDING.of, st.binary(max_size=40)),
        st.builds(CHANGE_REQUEST.of, st.builds(ChangeRequest, st.booleans(), st.booleans())),
    )
    return st.lists(attributes, max_size=3).map(lambda some: lean(*some))


def is_request(data: bytes) -> bool:
    """By the header alone: the two zero bits, and the class bits of a request."""
    return len(data) >= 20 and data[0] & 0xC0 == 0 and data[0] & 1 == 0 and data[1] & 0x10 == 0


def check(responder: Responder, data: bytes, source: Endpoint, local: Endpoint, most: float) -> None:
    answer = responder.respond(data, source, local)
    if isinstance(answer, DropReason):
        return
    assert is_request(data)
    assert len(answer.data) <= most * len(data)
    assert answer.destination.ip == source.ip
    assert answer.destination.port != 0
    assert answer.destination not in responder.addresses.endpoints
    assert answer.origin == local or answer.origin in responder.addresses.endpoints
    reply = Message.parse(answer.data)
    assert reply.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
    assert reply.encode()[4:20] == data[4:20]
    classic_only = {4, 5, 0x0B}
    modern_only = {0x20, 0x802B, 0x802C, 0x8028}
    numbers = [attribute.type for attribute in reply.attributes]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & (modern_only if reply.is_classic else classic_only)
    if reply.message_class is MessageClass.ERROR:
        assert MAPPED_ADDRESS.type not in numbers
    elif reply.is_classic:
        assert reply.get(MAPPED_ADDRESS) == source
    else:
        check_mapped_address(reply, len(data), source)
    if reply.message_class is MessageClass.SUCCESS and responder.addresses.alternate_address is not None:
        check_what_is_left_out(reply)
    again = responder.respond(answer.data, source, local)
    assert again is DropReason.NOT_A_REQUEST


def check_what_is_left_out(reply: Message) -> None:
    """First the second form of the mapped address, then the origin, the other address last."""
    has_other = reply.has(CHANGED_ADDRESS if reply.is_classic else OTHER_ADDRESS)
    has_origin = reply.has(SOURCE_ADDRESS if reply.is_classic else RESPONSE_ORIGIN)
    assert has_other or not has_origin
    assert has_origin or reply.is_classic or not reply.has(MAPPED_ADDRESS)


def check_mapped_address(reply: Message, request_size: int, source: Endpoint) -> None:
    """A modern reply has MAPPED-ADDRESS, second, if and only if the request is not bare and pays for it."""
    has_it = reply.has(MAPPED_ADDRESS)
    size = len(reply.encode()) + (0 if has_it else len(source.ip.packed) + 8)
    assert has_it is (request_size > 20 and size <= 2.8 * request_size)
    if has_it:
        assert reply.attributes[1] == MAPPED_ADDRESS.of(source)


@given(st.one_of(st.binary(max_size=200), damaged()), endpoints, locals_full)
@example(b"", Endpoint(A1, 0), Endpoint(A1, 3478))
def test_any_bytes(data: bytes, source: Endpoint, local: Endpoint) -> None:
    check(FULL, data, source, local, 2.8)
    check(WILDCARD, data, source, local, 2.8)
    check(SHARING, data, source, local, 2.8)
    for transport in (Transport.TCP, Transport.TLS):
        for responder in (FULL, SHARING):
            responder.respond(data, source, local, transport=transport)


@given(requests(), endpoints, locals_full)
def test_any_request(data: bytes, source: Endpoint, local: Endpoint) -> None:
    check(FULL, data, source, local, 2.8)
    check(WILDCARD, data, source, local, 2.8)


@given(requests(), endpoints_ipv6, st.sampled_from(IPV6.addresses.endpoints))
def test_any_request_over_ipv6(data: bytes, source: Endpoint, local: Endpoint) -> None:
    check(IPV6, data, source, local, 2.8)


@pytest.mark.parametrize(
    ("responder", "client", "most"),
    [
        (FULL, "203.0.113.7:40000", 2.8),
        (SINGLE, "203.0.113.7:40000", 2.8),
        (IPV6, "[2001:db8:7::7]:40000", 2.8),
    ],
    ids=["two addresses", "one address", "IPv6"],
)
@given(message=lean_requests())
@example(message=lean())
@example(message=lean(UNKNOWN))
@example(message=lean(PADDING.of(b"")))
@example(message=lean(PADDING.of(b""), UNKNOWN))
@example(message=lean(PADDING.of(bytes(20))))
def test_the_smallest_requests_gain_no_more(
    responder: Responder, client: str, most: float, message: Message
) -> None:
    """FINGERPRINT and PADDING, which the reply repeats, weigh the most in them."""
    source, local = Endpoint.parse(client), responder.addresses.endpoints[0]
    for data in (message.encode(), with_fingerprint(message).encode()):
        assert isinstance(responder.respond(data, source, local), Reply)
        check(responder, data, source, local, most)


@given(requests(), ordinary_ports, locals_full)
@example(lean(RESPONSE_PORT.of(53)).encode(), 50_000, FULL.addresses.endpoints[0])
def test_a_request_from_an_ordinary_client_is_answered(data: bytes, port: int, local: Endpoint) -> None:
    """Unless it asks for the reply to go where it must not."""
    answer = FULL.respond(data, Endpoint.of("203.0.113.7", port), local)
    allowed = {DropReason.UNUSABLE_ADDRESS, DropReason.THIRD_PARTY, DropReason.WRONG_FINGERPRINT}
    if any(attribute.type == RESPONSE_PORT.type for attribute in Message.parse(data).attributes):
        allowed.add(DropReason.REFLECTOR_PORT)
    assert isinstance(answer, Reply) or answer in allowed


@given(requests(), st.sampled_from(sorted(REFLECTOR_PORTS)), locals_full)
def test_a_request_from_the_port_of_a_reflector_is_not(data: bytes, port: int, local: Endpoint) -> None:
    answer = FULL.respond(data, Endpoint.of("203.0.113.7", port), local)
    assert answer in {DropReason.REFLECTOR_PORT, DropReason.WRONG_FINGERPRINT}
