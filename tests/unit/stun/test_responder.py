"""What the responder answers, exactly, and what it never answers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import TransportError
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    DONT_FRAGMENT,
    ERROR_CODE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    PRIORITY,
    REFLECTED_FROM,
    RESPONSE_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    ErrorCode,
)
from nattools.stun.integrity import fingerprint_holds, with_fingerprint, with_integrity
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.responder import (
    MOST_REPLY_BYTES,
    REFLECTOR_PORTS,
    DropReason,
    Reply,
    Responder,
    ServerAddresses,
)
from nattools.stun.uri import Transport

ADDRESSES = (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
PORTS = (3478, 3479)
FULL = Responder(ServerAddresses(ADDRESSES[0], PORTS[0], ADDRESSES[1], PORTS[1]))
SINGLE = Responder(ServerAddresses(ADDRESSES[0]))
WILDCARD = Responder(ServerAddresses(ip_address("0.0.0.0")))
LOCAL = Endpoint(ADDRESSES[0], PORTS[0])
CLIENT = Endpoint.of("203.0.113.7", 40_000)

ADDRESSES_IPV6 = (ip_address("2001:db8::1"), ip_address("2001:db8::2"))
FULL_IPV6 = Responder(ServerAddresses(ADDRESSES_IPV6[0], PORTS[0], ADDRESSES_IPV6[1], PORTS[1]))
IPV6 = Responder(ServerAddresses(ADDRESSES_IPV6[0]))
LOCAL_IPV6 = Endpoint(ADDRESSES_IPV6[0], PORTS[0])
CLIENT_IPV6 = Endpoint.of("2001:db8:7::7", 40_000)

MODERN = bytes(range(12))
CLASSIC = bytes(range(16))
DIALECTS = pytest.mark.parametrize("transaction_id", [MODERN, CLASSIC], ids=["modern", "classic"])
CHANGES = [None, *(ChangeRequest(ip, port) for ip in (False, True) for port in (False, True))]
CHANGE_BOTH = CHANGE_REQUEST.of(ChangeRequest(change_ip=True, change_port=True))
CHANGE_PORT = CHANGE_REQUEST.of(ChangeRequest(change_ip=False, change_port=True))
CHANGE_NOTHING = CHANGE_REQUEST.of(ChangeRequest(change_ip=False, change_port=False))
UNKNOWN = Attribute(0xFFFF, b"")  # optional to understand


def request(
    *attributes: Attribute, transaction_id: bytes = MODERN, method: Method = Method.BINDING
) -> Message:
    return Message(method, MessageClass.REQUEST, transaction_id, attributes)


def classic(*attributes: Attribute) -> Message:
    return request(*attributes, transaction_id=CLASSIC)


def reply_to(
    message: Message,
    responder: Responder = FULL,
    *,
    source: Endpoint = CLIENT,
    local: Endpoint = LOCAL,
    transport: Transport = Transport.UDP,
) -> Reply:
    answer = responder.respond(message.encode(), source, local, transport=transport)
    assert isinstance(answer, Reply)
    reply = Message.parse(answer.data)
    assert (reply.method, reply.transaction_id) == (message.method, message.transaction_id)
    return answer


def refusal(
    message: Message, responder: Responder = FULL, *, transport: Transport = Transport.UDP
) -> tuple[int, list[int]]:
    """The error code, and the attributes named as unknown; an error goes straight back."""
    answer = reply_to(message, responder, transport=transport)
    assert (answer.origin, answer.destination) == (LOCAL, CLIENT)
    reply = Message.parse(answer.data)
    assert reply.message_class is MessageClass.ERROR
    error = reply.get(ERROR_CODE)
    assert error is not None
    unknown = reply.get(UNKNOWN_ATTRIBUTES)
    return error.code, [] if unknown is None else list(unknown)


@DIALECTS
@pytest.mark.parametrize("change", CHANGES, ids=["bare", "-", "port", "ip", "both"])
@pytest.mark.parametrize("port", [0, 1], ids=["P1", "P2"])
@pytest.mark.parametrize("address", [0, 1], ids=["A1", "A2"])
@pytest.mark.parametrize(
    ("responder", "addresses", "client"),
    [(FULL, ADDRESSES, CLIENT), (FULL_IPV6, ADDRESSES_IPV6, CLIENT_IPV6)],
    ids=["IPv4", "IPv6"],
)
def test_the_grid(
    responder: Responder,
    addresses: tuple[IPAddress, IPAddress],
    client: Endpoint,
    address: int,
    port: int,
    change: ChangeRequest | None,
    transaction_id: bytes,
) -> None:
    attributes = () if change is None else (CHANGE_REQUEST.of(change),)
    message = request(*attributes, transaction_id=transaction_id)
    local = origin = Endpoint(addresses[address], PORTS[port])
    if change is not None:
        origin = Endpoint(addresses[address ^ change.change_ip], PORTS[port ^ change.change_port])
    other = Endpoint(addresses[1 - address], PORTS[1 - port])

    answer = reply_to(message, responder, source=client, local=local)

    assert (answer.origin, answer.destination) == (origin, client)
    reply = Message.parse(answer.data)
    mapped = MAPPED_ADDRESS.of(client)
    if client.is_ipv6:
        first = mapped if reply.is_classic else XOR_MAPPED_ADDRESS.of(client, reply.xor_key)
        second = (CHANGED_ADDRESS if reply.is_classic else OTHER_ADDRESS).of(other)
        assert reply.attributes == (
            (first,) if change is None else (first, second)
        )  # a bare one pays for one
        return
    if transaction_id is CLASSIC:
        assert reply.attributes == (mapped, SOURCE_ADDRESS.of(origin), CHANGED_ADDRESS.of(other))
        return
    also_mapped = () if change is None else (mapped,)
    assert reply.attributes == (
        *(XOR_MAPPED_ADDRESS.of(client, reply.xor_key), *also_mapped),
        *(RESPONSE_ORIGIN.of(origin), OTHER_ADDRESS.of(other)),
    )


def test_the_plain_reply_byte_for_byte() -> None:
    answer = FULL.respond(request().encode(), CLIENT, LOCAL)
    assert answer == Reply(
        bytes.fromhex(
            "0101 0024 2112a442 000102030405060708090a0b"
            "0020 0008 0001 bd52 ea12d545"
            "802b 0008 0001 0d96 c0000201"
            "802c 0008 0001 0d97 c0000202"
        ),
        LOCAL,
        CLIENT,
    )


@DIALECTS
@pytest.mark.parametrize("responder", [SINGLE, WILDCARD], ids=["single", "wildcard"])
def test_one_address_names_no_other_and_refuses_to_change(
    responder: Responder, transaction_id: bytes
) -> None:
    reply = Message.parse(reply_to(request(transaction_id=transaction_id), responder).data)
    origin = RESPONSE_ORIGIN if transaction_id is MODERN else SOURCE_ADDRESS
    assert reply.mapped_address == CLIENT
    assert reply.get(origin) == LOCAL
    assert len(reply.attributes) == 2
    for change in (CHANGE_BOTH, CHANGE_PORT):
        code, unknown = refusal(request(change, transaction_id=transaction_id), responder)
        assert (code, set(unknown)) == (ErrorCode.UNKNOWN_ATTRIBUTE, {CHANGE_REQUEST.type})
    assert reply_to(request(CHANGE_NOTHING, transaction_id=transaction_id), responder).origin == LOCAL


def test_a_second_port_on_one_address_changes_nothing_either() -> None:
    responder = Responder(ServerAddresses(ADDRESSES[0], PORTS[0], alternate_port=PORTS[1]))
    assert refusal(request(CHANGE_PORT), responder) == (420, [CHANGE_REQUEST.type])
    assert reply_to(request(), responder, local=LOCAL.with_port(PORTS[1])).origin.port == PORTS[1]


def test_a_wildcard_bind_names_the_address_that_was_asked() -> None:
    asked = Endpoint.of("198.51.100.4", 3478)
    answer = reply_to(request(), WILDCARD, local=asked)
    assert answer.origin == asked
    assert Message.parse(answer.data).get(RESPONSE_ORIGIN) == asked


def test_an_origin_that_is_not_known_is_not_claimed() -> None:
    for transaction_id in (MODERN, CLASSIC):
        asked = Endpoint.of("0.0.0.0", 3478)
        answer = reply_to(request(transaction_id=transaction_id), WILDCARD, local=asked)
        assert len(Message.parse(answer.data).attributes) == 1


@DIALECTS
def test_ipv6(transaction_id: bytes) -> None:
    answer = reply_to(request(transaction_id=transaction_id), IPV6, source=CLIENT_IPV6, local=LOCAL_IPV6)
    reply = Message.parse(answer.data)
    assert reply.mapped_address == CLIENT_IPV6
    assert len(reply.attributes) == 1
    larger = reply_to(
        request(UNKNOWN, UNKNOWN, transaction_id=transaction_id), IPV6, source=CLIENT_IPV6, local=LOCAL_IPV6
    )
    origin = RESPONSE_ORIGIN if transaction_id is MODERN else SOURCE_ADDRESS
    assert Message.parse(larger.data).get(origin) == LOCAL_IPV6


@DIALECTS
@pytest.mark.parametrize("value", ["9c41", "9c410000"], ids=["2 bytes", "coturn's 4"])
def test_response_port(value: str, transaction_id: bytes) -> None:
    attribute = Attribute(RESPONSE_PORT.type, bytes.fromhex(value))
    answer = reply_to(request(attribute, transaction_id=transaction_id))
    assert answer.destination == CLIENT.with_port(0x9C41)
    assert Message.parse(answer.data).mapped_address == CLIENT


def test_response_port_goes_together_with_change_request() -> None:
    answer = reply_to(request(RESPONSE_PORT.of(5000), CHANGE_BOTH))
    assert answer.origin == Endpoint(ADDRESSES[1], PORTS[1])
    assert answer.destination == CLIENT.with_port(5000)


def test_response_address_of_the_sender_is_honoured() -> None:
    answer = reply_to(classic(RESPONSE_ADDRESS.of(CLIENT.with_port(5000))))
    assert answer.destination == CLIENT.with_port(5000)
    assert Message.parse(answer.data).get(REFLECTED_FROM) == CLIENT


@DIALECTS
@pytest.mark.parametrize("size", [0, 1, 4, 1500, 60_000])
def test_padding_is_answered_with_as_much(size: int, transaction_id: bytes) -> None:
    answer = reply_to(request(PADDING.of(b"x" * size), transaction_id=transaction_id))
    assert Message.parse(answer.data).get(PADDING) == bytes(size)


def test_padding_never_makes_a_reply_too_big_for_a_datagram() -> None:
    message = with_fingerprint(request(PADDING.of(bytes(65_440))))
    assert len(reply_to(message).data) == MOST_REPLY_BYTES


def test_fingerprint_is_answered_with_fingerprint() -> None:
    for message in (request(), request(Attribute(0x7777, b"")), request(PADDING.of(bytes(10)))):
        reply = Message.parse(reply_to(with_fingerprint(message)).data)
        assert fingerprint_holds(reply) is True
    assert not Message.parse(reply_to(request()).data).has(FINGERPRINT)


def test_what_an_ice_agent_sends_along_does_not_matter() -> None:
    probe = request(USERNAME.of("a:b"), PRIORITY.of(1), USE_CANDIDATE.of(True), SOFTWARE.of("agent"))
    reply = Message.parse(reply_to(with_fingerprint(with_integrity(probe, b"key"))).data)
    assert reply.mapped_address == CLIENT
    assert reply.get(MAPPED_ADDRESS) == CLIENT
    codecs = (XOR_MAPPED_ADDRESS, MAPPED_ADDRESS, RESPONSE_ORIGIN, OTHER_ADDRESS, FINGERPRINT)
    assert [attribute.type for attribute in reply.attributes] == [codec.type for codec in codecs]


@pytest.mark.parametrize(
    ("message", "code", "unknown"),
    [
        (request(Attribute(0x7777, b"")), 420, [0x7777]),
        (request(*(Attribute(n, b"") for n in (0x7777, 0x7778, 0x7777))), 420, [0x7777, 0x7778]),
        (classic(Attribute(0x7777, b"")), 420, [0x7777, 0x7777]),
        (classic(*(Attribute(n, b"") for n in (0x71, 0x72, 0x73))), 420, [0x71, 0x72, 0x73, 0x73]),
        (request(DONT_FRAGMENT.of(True)), 420, [DONT_FRAGMENT.type]),
        (request(RESPONSE_ADDRESS.of(CLIENT)), 420, [RESPONSE_ADDRESS.type]),
        (request(Attribute(CHANGE_REQUEST.type, b"\0\0\6")), 400, []),
        (request(Attribute(RESPONSE_PORT.type, b"\0\0\6")), 400, []),
        (classic(Attribute(RESPONSE_ADDRESS.type, b"\0\1")), 400, []),
        (classic(Attribute(RESPONSE_ADDRESS.type, b"\0\3" + bytes(6))), 400, []),
        (request(RESPONSE_PORT.of(5000), PADDING.of(b"")), 400, []),
        (classic(RESPONSE_PORT.of(5000), RESPONSE_ADDRESS.of(CLIENT)), 400, []),
        (request(method=Method.SHARED_SECRET, transaction_id=CLASSIC), 600, []),
    ],
)
def test_errors(message: Message, code: int, unknown: list[int]) -> None:
    assert refusal(message) == (code, unknown)


def test_attributes_after_message_integrity_are_ignored() -> None:
    sealed = with_integrity(request(), b"key").append(Attribute(0x7777, b""), CHANGE_BOTH)
    assert reply_to(sealed).origin == LOCAL


def test_classic_errors_are_whole_words_for_clients_that_skip_no_padding() -> None:
    for message in (classic(Attribute(0x7777, b"")), classic(Attribute(CHANGE_REQUEST.type, b""))):
        reply = Message.parse(reply_to(message).data)
        assert all(len(value) % 4 == 0 for _number, value in reply.attributes)


@DIALECTS
def test_over_a_stream_nothing_is_left_out_for_its_size(transaction_id: bytes) -> None:
    """There who asks has shown that he is there."""
    answer = reply_to(
        request(transaction_id=transaction_id),
        FULL_IPV6,
        source=CLIENT_IPV6,
        local=LOCAL_IPV6,
        transport=Transport.TCP,
    )
    assert len(answer.data) == 20 + 3 * 24


@DIALECTS
def test_a_stream_has_one_way_back(transaction_id: bytes) -> None:
    for attribute in (CHANGE_BOTH, RESPONSE_PORT.of(5000)):
        code, unknown = refusal(request(attribute, transaction_id=transaction_id), transport=Transport.TCP)
        assert (code, set(unknown)) == (420, {attribute.type})
    answer = reply_to(request(CHANGE_NOTHING, transaction_id=transaction_id), transport=Transport.TCP)
    assert Message.parse(answer.data).mapped_address == CLIENT


WRONG_FINGERPRINT = request(FINGERPRINT.of(0xDEADBEEF)).encode()
PLAIN = request().encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.NOT_STUN),
        (b"\x80" + PLAIN[1:], DropReason.NOT_STUN),
        (PLAIN[:19], DropReason.NOT_STUN),
        (PLAIN + b"\0", DropReason.NOT_STUN),
        (PLAIN[:2] + b"\0\4" + PLAIN[4:], DropReason.NOT_STUN),
        (b"REGISTER sip:example.com SIP/2.0\r\n\r\n", DropReason.NOT_STUN),
        (Message(Method.BINDING, MessageClass.SUCCESS, MODERN).encode(), DropReason.NOT_A_REQUEST),
        (Message(Method.BINDING, MessageClass.ERROR, CLASSIC).encode(), DropReason.NOT_A_REQUEST),
        (Message(Method.BINDING, MessageClass.INDICATION, MODERN).encode(), DropReason.NOT_A_REQUEST),
        (request(method=Method.ALLOCATE).encode(), DropReason.UNSUPPORTED_METHOD),
        (request(method=Method.SHARED_SECRET).encode(), DropReason.UNSUPPORTED_METHOD),
        (request(method=Method(0xABC)).encode(), DropReason.UNSUPPORTED_METHOD),
        (WRONG_FINGERPRINT, DropReason.WRONG_FINGERPRINT),
        (with_fingerprint(request()).append(SOFTWARE.of("x")).encode(), DropReason.WRONG_FINGERPRINT),
        (request(RESPONSE_PORT.of(0)).encode(), DropReason.UNUSABLE_ADDRESS),
        (classic(RESPONSE_ADDRESS.of(CLIENT.with_port(0))).encode(), DropReason.UNUSABLE_ADDRESS),
        (
            classic(RESPONSE_ADDRESS.of(Endpoint.of("203.0.113.8", 40_000))).encode(),
            DropReason.THIRD_PARTY,
        ),
        (classic(RESPONSE_ADDRESS.of(Endpoint.of("::1", 40_000))).encode(), DropReason.THIRD_PARTY),
    ],
)
def test_never_answered(data: bytes, reason: DropReason) -> None:
    assert FULL.respond(data, CLIENT, LOCAL) is reason


@pytest.mark.parametrize(
    ("responder", "source", "local", "reason"),
    [
        (FULL, "203.0.113.7:0", "192.0.2.1:3478", DropReason.UNUSABLE_ADDRESS),
        (FULL, "0.0.0.0:4000", "192.0.2.1:3478", DropReason.UNUSABLE_ADDRESS),
        (FULL, "255.255.255.255:4000", "192.0.2.1:3478", DropReason.UNUSABLE_ADDRESS),
        (FULL, "224.0.0.251:5353", "192.0.2.1:3478", DropReason.UNUSABLE_ADDRESS),
        (IPV6, "[ff02::1]:4000", "[2001:db8::1]:3478", DropReason.UNUSABLE_ADDRESS),
        (IPV6, "[::]:4000", "[2001:db8::1]:3478", DropReason.UNUSABLE_ADDRESS),
        (FULL, "192.0.2.1:3478", "192.0.2.1:3478", DropReason.OWN_SOCKET),
        (FULL, "192.0.2.2:3479", "192.0.2.1:3478", DropReason.OWN_SOCKET),
        (IPV6, "[2001:db8::1]:3478", "[2001:db8::1]:3478", DropReason.OWN_SOCKET),
        (WILDCARD, "192.0.2.1:3478", "192.0.2.1:3478", DropReason.OWN_SOCKET),
        (WILDCARD, "127.0.0.9:3478", "192.0.2.1:3478", DropReason.OWN_SOCKET),
        (FULL, "192.0.2.2:3480", "192.0.2.1:3478", None),
        (FULL, "203.0.113.7:3478", "192.0.2.1:3478", None),
        (WILDCARD, "203.0.113.7:3478", "192.0.2.1:3478", None),
    ],
)
def test_sources(responder: Responder, source: str, local: str, reason: DropReason | None) -> None:
    answer = responder.respond(PLAIN, Endpoint.parse(source), Endpoint.parse(local))
    assert (answer if isinstance(answer, DropReason) else None) is reason


@pytest.mark.parametrize("port", [7, 19, 53, 123, 161, 1900, 5353, 11211])
def test_nothing_is_sent_to_the_port_of_a_reflector(port: int) -> None:
    reflector = CLIENT.with_port(port)
    assert FULL.respond(PLAIN, reflector, LOCAL) is DropReason.REFLECTOR_PORT
    for message in (request(RESPONSE_PORT.of(port)), classic(RESPONSE_ADDRESS.of(reflector))):
        assert FULL.respond(message.encode(), CLIENT, LOCAL) is DropReason.REFLECTOR_PORT
    assert isinstance(
        FULL.respond(PLAIN, reflector, LOCAL, transport=Transport.TCP), Reply
    )  # no such handshake is forged
    other = Responder(FULL.addresses, reflector_ports=[4])
    assert other.respond(PLAIN, CLIENT.with_port(4), LOCAL) is DropReason.REFLECTOR_PORT
    assert isinstance(other.respond(PLAIN, reflector, LOCAL), Reply)


def test_the_ports_of_clients_and_of_sip_are_no_reflectors() -> None:
    assert all(0 < port < 1024 or port in (1900, 3702, 5353, 5683, 11211) for port in REFLECTOR_PORTS)
    assert not REFLECTOR_PORTS & {3478, 3479, 5060, 5061}


def test_no_reply_is_sent_to_an_own_socket_by_way_of_response_port() -> None:
    neighbour = LOCAL.with_port(40_000)  # a client on the server's own machine
    data = request(RESPONSE_PORT.of(PORTS[1])).encode()
    assert FULL.respond(data, neighbour, LOCAL) is DropReason.OWN_SOCKET


def test_a_reply_is_never_answered() -> None:
    for message in (request(), classic(), request(Attribute(0x7777, b""))):
        answer = FULL.respond(reply_to(message).data, CLIENT, LOCAL)
        assert answer is DropReason.NOT_A_REQUEST


@pytest.mark.parametrize("responder", [SINGLE, WILDCARD], ids=["single", "wildcard"])
def test_a_bare_request_gets_no_mapped_address_even_where_there_is_room(responder: Responder) -> None:
    for message, replied in ((request(), 44), (request(UNKNOWN), 56), (request(CHANGE_NOTHING), 56)):
        answer = reply_to(message, responder)
        assert len(answer.data) == replied
        mapped = Message.parse(answer.data).get(MAPPED_ADDRESS)
        assert mapped == (CLIENT if message.attributes else None)


@pytest.mark.parametrize(
    ("address", "port", "alternate", "alternate_port", "complaint"),
    [
        ("192.0.2.1", 3478, "192.0.2.1", 3479, "same address"),
        ("192.0.2.1", 3478, "2001:db8::1", 3479, "different families"),
        ("0.0.0.0", 3478, "192.0.2.1", 3479, "wildcard"),
        ("192.0.2.1", 3478, "0.0.0.0", 3479, "wildcard"),
        ("192.0.2.1", 3478, "192.0.2.2", 3478, "must differ"),
        ("192.0.2.1", 3478, None, 3478, "must differ"),
        ("192.0.2.1", 3478, "192.0.2.2", None, "alternate port"),
        ("224.0.0.1", 3478, None, None, "multicast"),
        ("192.0.2.1", 3478, "224.0.0.1", 3479, "multicast"),
    ],
)
def test_addresses_that_cannot_serve(
    address: str, port: int, alternate: str | None, alternate_port: int | None, complaint: str
) -> None:
    with pytest.raises(TransportError, match=complaint):
        ServerAddresses(
            ip_address(address), port, ip_address(alternate) if alternate else None, alternate_port
        )
