from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    OTHER_ADDRESS,
    REGISTRY,
    RESPONSE_ORIGIN,
    SOFTWARE,
    SOURCE_ADDRESS,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_CLASSIC,
    Attribute,
    ChangeRequest,
)
from nattools.stun.message import HEADER_BYTES, MAGIC_COOKIE, Message, MessageClass, Method, frame_size
from tests import vectors

needs_corpus = pytest.mark.skipif(not vectors.CORPUS.is_dir(), reason="../shared/corpus is not there")

TRANSACTION = bytes.fromhex("b7e7a701 bc34d686 fa87dfae")
CLASSIC_TRANSACTION = bytes.fromhex("00112233445566778899aabbccddeeff")
MAPPED = Endpoint.of("192.0.2.1", 32853)
MESSAGES = vectors.messages()


def request(*attributes: Attribute) -> Message:
    return Message(Method.BINDING, MessageClass.REQUEST, TRANSACTION, attributes)


def header(message_type: int, length: int, cookie: bytes = MAGIC_COOKIE) -> bytes:
    return message_type.to_bytes(2, "big") + length.to_bytes(2, "big") + cookie + TRANSACTION


class TestMessageType:
    @pytest.mark.parametrize(
        ("message_type", "method", "message_class"),
        [
            (0x0001, Method.BINDING, MessageClass.REQUEST),
            (0x0011, Method.BINDING, MessageClass.INDICATION),
            (0x0101, Method.BINDING, MessageClass.SUCCESS),
            (0x0111, Method.BINDING, MessageClass.ERROR),
            (0x0002, Method.SHARED_SECRET, MessageClass.REQUEST),
            (0x0112, Method.SHARED_SECRET, MessageClass.ERROR),
            (0x0113, Method.ALLOCATE, MessageClass.ERROR),
            (0x0016, Method.SEND, MessageClass.INDICATION),
            (0x010C, Method.CONNECTION_ATTEMPT, MessageClass.SUCCESS),
            (0x0000, Method(0), MessageClass.REQUEST),
            (0x0020, Method(0x010), MessageClass.REQUEST),
            (0x0200, Method(0x080), MessageClass.REQUEST),
            (0x3EEF, Method(0xFFF), MessageClass.REQUEST),
            (0x3FFF, Method(0xFFF), MessageClass.ERROR),
        ],
    )
    def test_the_two_class_bits_lie_between_the_twelve_of_the_method(
        self, message_type: int, method: Method, message_class: MessageClass
    ) -> None:
        raw = header(message_type, 0)
        message = Message.parse(raw)
        assert (message.method, message.message_class) == (method, message_class)
        assert Message(method, message_class, TRANSACTION).encode() == raw

    def test_all_16384_types_are_read_and_written(self) -> None:
        seen = set()
        for message_type in range(0x4000):
            raw = header(message_type, 0)
            message = Message.parse(raw)
            seen.add((message.method, message.message_class))
            assert Message(message.method, message.message_class, TRANSACTION).encode() == raw
        assert len(seen) == 0x4000

    def test_the_methods_are_those_that_iana_assigns(self) -> None:
        known = {int(method): method.name.replace("_", "").lower() for method in Method}
        assert known == {number: name.lower() for number, name in vectors.registry("methods").items()}

    def test_an_unknown_method_is_kept(self) -> None:
        message = Message.parse(header(0x0020, 0))
        assert message.method.name == "UNKNOWN_0x10"

    @pytest.mark.parametrize("message_type", [0x4000, 0x4001, 0x8000, 0xC001, 0xFFFF])
    def test_the_first_two_bits_are_zero(self, message_type: int) -> None:
        with pytest.raises(DecodeError, match="not STUN"):
            Message.parse(header(message_type, 0))


REPLIES = [
    ("reply-google-1", "72.69.33.45:59028"),
    ("reply-google-2", "72.69.33.45:59029"),
    ("reply-sipgate", "72.69.33.45:58539"),
    ("reply-powervoip", "72.69.33.45:59859"),
    ("reply-pion", "127.0.0.1:61300"),
    ("reply-stuntman-ipv6", "[2602:d1:b4cf:c100:38b2:31ff:feef:96f6]:37070"),
    ("reply-software-a", "127.0.0.1:61300"),
    ("reply-software-abc", "127.0.0.1:61300"),
    ("reply-ipv4-mapped", "209.180.207.193:60463"),
    ("rfc5769-2.2-response-ipv4", "192.0.2.1:32853"),
    ("rfc5769-2.3-response-ipv6", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
]


class TestMessagesFromOutside:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_a_message_encodes_to_itself(self, name: str) -> None:
        assert Message.parse(MESSAGES[name]).encode() == MESSAGES[name]

    @pytest.mark.parametrize("name", MESSAGES)
    def test_its_values_make_it_anew(self, name: str) -> None:
        message = Message.parse(MESSAGES[name])
        rebuilt = Message(
            message.method,
            message.message_class,
            message.transaction_id,
            tuple(
                REGISTRY[number].of(REGISTRY[number].parse(value, message.xor_key), message.xor_key)
                for number, value in message.attributes
            ),
        )
        assert rebuilt == message
        assert rebuilt.encode() == without_padding(MESSAGES[name])

    @pytest.mark.parametrize(("name", "mapped"), REPLIES)
    def test_the_mapped_address_is_found(self, name: str, mapped: str) -> None:
        message = Message.parse(MESSAGES[name])
        assert message.message_class is MessageClass.SUCCESS
        assert message.transaction_id == MESSAGES[name][8:20]
        assert str(message.mapped_address) == mapped

    def test_the_wire_form_of_an_ipv4_mapped_address_stays_readable(self) -> None:
        message = Message.parse(MESSAGES["reply-ipv4-mapped"])
        assert message.get(XOR_MAPPED_ADDRESS) == Endpoint.of("::ffff:209.180.207.193", 60463)

    def test_an_rfc3489_server_says_its_addresses(self) -> None:
        message = Message.parse(MESSAGES["reply-sipgate"])
        assert str(message.get(SOURCE_ADDRESS)) == "217.10.68.152:10000"
        assert str(message.get(CHANGED_ADDRESS)) == "217.116.122.138:10001"
        assert str(message.get(XOR_MAPPED_ADDRESS_CLASSIC)) == "72.69.33.45:58539"
        assert message.get(MAPPED_ADDRESS) == message.get(XOR_MAPPED_ADDRESS_CLASSIC)
        assert message.get(SOFTWARE) == "Vovida.org 0.96\0"
        assert message.get(XOR_MAPPED_ADDRESS) is None

    @needs_corpus
    def test_the_corpus_holds_the_same_rfc5769_messages(self) -> None:
        corpus = vectors.corpus_messages()
        assert corpus["reqstc.raw"] == MESSAGES["rfc5769-2.1-request"]
        assert corpus["respv4.raw"] == MESSAGES["rfc5769-2.2-response-ipv4"]
        assert corpus["respv6.raw"] == MESSAGES["rfc5769-2.3-response-ipv6"]
        assert corpus["reqltc.raw"] == MESSAGES["rfc5769-2.4-request-long-term"]

    @needs_corpus
    def test_the_corpus_is_read_without_loss(self) -> None:
        corpus = vectors.corpus_messages()
        assert corpus
        for name, raw in corpus.items():
            message = Message.parse(raw)
            assert message.encode() == raw, name
            for codec in REGISTRY.values():
                message.get(codec)

    @needs_corpus
    def test_a_captured_rfc5780_reply_is_read(self) -> None:
        reply = Message.parse(vectors.corpus_messages()["binding_response.bin"])
        assert (reply.method, reply.message_class) == (Method.BINDING, MessageClass.SUCCESS)
        assert reply.transaction_id == b"Nvfx3lU7FUBF"
        assert str(reply.get(XOR_MAPPED_ADDRESS)) == "80.200.136.90:53054"
        assert reply.get(MAPPED_ADDRESS) == reply.mapped_address
        assert str(reply.get(RESPONSE_ORIGIN)) == "52.17.36.97:3478"
        assert str(reply.get(OTHER_ADDRESS)) == "52.17.36.97:3479"
        assert reply.get(SOFTWARE) == "Citrix-3.2.4.5 'Marshal West'"


def without_padding(raw: bytes) -> bytes:
    """The message with its padding set to zero: what RFC 5769 fills with spaces."""
    cleaned, position = bytearray(raw), HEADER_BYTES
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position + 2 : position + 4], "big")
        position = end + -end % 4
        cleaned[end:position] = bytes(position - end)
    return bytes(cleaned)


class TestAttributesInAMessage:
    def test_unknown_ones_are_kept_in_their_place(self) -> None:
        attributes = (
            Attribute(0x7777, b"abc"),
            SOFTWARE.of("first"),
            Attribute(0xFFFF, b""),
            SOFTWARE.of("second"),
            Attribute(0x7777, b"defgh"),
        )
        message = Message.parse(request(*attributes).encode())
        assert message.attributes == attributes
        assert message == request(*attributes)

    def test_the_first_of_several_counts(self) -> None:
        message = request(SOFTWARE.of("first"), SOFTWARE.of("second"))
        assert message.get(SOFTWARE) == "first"

    def test_a_missing_one_is_none(self) -> None:
        assert request().get(SOFTWARE) is None
        assert not request().has(SOFTWARE)
        assert request().mapped_address is None

    def test_padding_of_any_content_is_kept_and_means_nothing(self) -> None:
        zeros = request(USERNAME.of("abcde")).encode()
        spaces = zeros[:-3] + b" \xff "
        message = Message.parse(spaces)
        assert message.encode() == spaces
        assert message == Message.parse(zeros)
        assert hash(message) == hash(Message.parse(zeros))
        assert message.get(USERNAME) == "abcde"

    @pytest.mark.parametrize("size", range(9))
    def test_every_value_is_padded_to_four_bytes(self, size: int) -> None:
        message = request(Attribute(0x7777, b"x" * size), SOFTWARE.of("after"))
        raw = message.encode()
        assert len(raw) % 4 == 0
        assert int.from_bytes(raw[2:4], "big") == len(raw) - HEADER_BYTES
        assert Message.parse(raw) == message

    def test_a_malformed_value_hurts_nobody_who_does_not_ask(self) -> None:
        message = Message.parse(request(Attribute(MAPPED_ADDRESS.type, b"no"), SOFTWARE.of("s")).encode())
        assert message.get(SOFTWARE) == "s"
        assert message.has(MAPPED_ADDRESS)
        with pytest.raises(DecodeError):
            message.get(MAPPED_ADDRESS)
        with pytest.raises(DecodeError):
            _ = message.mapped_address

    @pytest.mark.parametrize("number", [-1, 0x10000, 1 << 40])
    def test_a_number_of_more_than_16_bits_is_an_encode_error(self, number: int) -> None:
        with pytest.raises(EncodeError, match="not an attribute number"):
            request(Attribute(number, b"")).encode()
        with pytest.raises(EncodeError, match="not an attribute number"):
            request().append(Attribute(number, b""))


class TestMappedAddress:
    XOR = XOR_MAPPED_ADDRESS.of(MAPPED, MAGIC_COOKIE + TRANSACTION)
    ELDER = XOR_MAPPED_ADDRESS_CLASSIC.of(MAPPED.with_port(2), MAGIC_COOKIE + TRANSACTION)
    PLAIN = MAPPED_ADDRESS.of(MAPPED.with_port(3))

    @pytest.mark.parametrize(
        ("attributes", "port"),
        [
            ((PLAIN, ELDER, XOR), MAPPED.port),
            ((PLAIN, ELDER), 2),
            ((PLAIN,), 3),
        ],
    )
    def test_a_xored_one_is_believed_before_a_plain_one(
        self, attributes: tuple[Attribute, ...], port: int
    ) -> None:
        assert request(*attributes).mapped_address == MAPPED.with_port(port)


class TestWhatFollowsTheIntegrity:
    SHA1 = Attribute(MESSAGE_INTEGRITY.type, bytes(20))
    SHA256 = Attribute(MESSAGE_INTEGRITY_SHA256.type, bytes(32))
    PRINT = FINGERPRINT.of(1)
    SOFT = SOFTWARE.of("unprotected")

    @pytest.mark.parametrize(
        "attributes", [(SHA1, SOFT), (SHA256, SOFT), (SHA1, SHA256, SOFT), (SHA256, PRINT, SOFT)]
    )
    def test_is_passed_over(self, attributes: tuple[Attribute, ...]) -> None:
        message = Message.parse(request(*attributes).encode())
        assert message.get(SOFTWARE) is None
        assert message.has(SOFTWARE)

    def test_save_the_second_integrity_and_the_fingerprint(self) -> None:
        message = request(SOFTWARE.of("protected"), self.SHA1, self.SHA256, self.PRINT)
        assert message.get(SOFTWARE) == "protected"
        assert message.get(MESSAGE_INTEGRITY) == bytes(20)
        assert message.get(MESSAGE_INTEGRITY_SHA256) == bytes(32)
        assert message.get(FINGERPRINT) == 1

    def test_an_elder_integrity_after_the_newer_one_is_passed_over(self) -> None:
        assert request(self.SHA256, self.SHA1).get(MESSAGE_INTEGRITY) is None

    def test_one_before_and_one_after(self) -> None:
        message = request(SOFTWARE.of("protected"), self.SHA1, self.SOFT)
        assert message.get(SOFTWARE) == "protected"


class TestClassicDialect:
    def test_a_message_without_the_cookie_has_a_longer_transaction_id(self) -> None:
        raw = bytes.fromhex("0001 0008") + CLASSIC_TRANSACTION + bytes.fromhex("0003 0004 00000006")
        message = Message.parse(raw)
        assert message.is_classic
        assert message.transaction_id == message.xor_key == CLASSIC_TRANSACTION
        assert message.get(CHANGE_REQUEST) == ChangeRequest(change_ip=True, change_port=True)
        rebuilt = Message(Method.BINDING, MessageClass.REQUEST, CLASSIC_TRANSACTION, message.attributes)
        assert rebuilt == message
        assert rebuilt.encode() == raw

    def test_a_message_with_the_cookie_is_modern(self) -> None:
        message = Message.parse(header(0x0001, 0))
        assert not message.is_classic
        assert message.transaction_id == TRANSACTION
        assert message.xor_key == MAGIC_COOKIE + TRANSACTION == request().xor_key

    @pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1"])
    def test_addresses_are_xored_with_the_whole_transaction_id(self, ip: str) -> None:
        mapped = Endpoint.of(ip, 5060)
        attribute = XOR_MAPPED_ADDRESS_CLASSIC.of(mapped, CLASSIC_TRANSACTION)
        expected = bytes(a ^ b for a, b in zip(mapped.ip.packed, CLASSIC_TRANSACTION, strict=False))
        assert attribute.value[2:4] == (5060 ^ 0x0011).to_bytes(2, "big")
        assert attribute.value[4:] == expected
        reply = Message(Method.BINDING, MessageClass.SUCCESS, CLASSIC_TRANSACTION, (attribute,))
        assert Message.parse(reply.encode()).mapped_address == mapped

    def test_its_transaction_id_cannot_begin_with_the_cookie(self) -> None:
        with pytest.raises(EncodeError, match="magic cookie"):
            Message(Method.BINDING, MessageClass.REQUEST, MAGIC_COOKIE + TRANSACTION)


class TestMalformed:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_a_message_cut_anywhere_is_a_decode_error(self, name: str) -> None:
        raw = MESSAGES[name]
        for size in range(len(raw)):
            with pytest.raises(DecodeError):
                Message.parse(raw[:size])

    @pytest.mark.parametrize("name", MESSAGES)
    def test_a_message_cut_with_a_matching_length_loses_whole_attributes_or_fails(self, name: str) -> None:
        raw = MESSAGES[name]
        whole = Message.parse(raw)
        ends = [HEADER_BYTES]
        for _number, value in whole.attributes:
            ends.append(ends[-1] + 4 + len(value) + -len(value) % 4)
        for size in range(HEADER_BYTES, len(raw), 4):
            cut = raw[:2] + (size - HEADER_BYTES).to_bytes(2, "big") + raw[4:size]
            if size in ends:
                assert Message.parse(cut).attributes == whole.attributes[: ends.index(size)]
            else:
                with pytest.raises(DecodeError, match="claims"):
                    Message.parse(cut)

    @pytest.mark.parametrize("lie", [-20, -4, -1, 1, 2, 3, 4, 8, 0xF000])
    def test_a_length_that_lies_is_a_decode_error(self, lie: int) -> None:
        raw = MESSAGES["rfc5769-2.1-request"]
        length = len(raw) - HEADER_BYTES + lie
        with pytest.raises(DecodeError, match="length field"):
            Message.parse(raw[:2] + length.to_bytes(2, "big") + raw[4:])

    @pytest.mark.parametrize("extra", [1, 2, 3])
    def test_a_length_that_is_no_multiple_of_four_is_a_decode_error(self, extra: int) -> None:
        with pytest.raises(DecodeError, match="length field"):
            Message.parse(header(0x0001, extra) + bytes(extra))

    def test_bytes_after_the_message_are_a_decode_error(self) -> None:
        with pytest.raises(DecodeError, match="length field 0 in a message of 24 bytes"):
            Message.parse(header(0x0001, 0) + bytes(4))

    @pytest.mark.parametrize("claim", [1, 4, 0xFFFC, 0xFFFF])
    def test_an_attribute_that_claims_too_much_is_named(self, claim: int) -> None:
        raw = header(0x0001, 4) + SOFTWARE.type.to_bytes(2, "big") + claim.to_bytes(2, "big")
        with pytest.raises(DecodeError, match=f"SOFTWARE claims {claim} bytes, 0 are left"):
            Message.parse(raw)


class TestLimits:
    @pytest.mark.parametrize("size", [0, 11, 13, 15, 17])
    def test_a_transaction_id_has_12_bytes_or_16(self, size: int) -> None:
        with pytest.raises(EncodeError, match="12 or 16"):
            Message(Method.BINDING, MessageClass.REQUEST, bytes(size))

    def test_a_method_has_12_bits(self) -> None:
        with pytest.raises(EncodeError, match="12 bits"):
            Message(Method(0x1000), MessageClass.REQUEST, TRANSACTION)

    def test_the_largest_message_is_written_and_read(self) -> None:
        message = request(Attribute(0x7777, bytes(0xFFF8)))
        raw = message.encode()
        assert len(raw) == HEADER_BYTES + 0xFFFC
        assert Message.parse(raw) == message

    def test_a_larger_one_is_an_encode_error(self) -> None:
        largest = request(Attribute(0x7777, bytes(0xFFF8)))
        with pytest.raises(EncodeError, match="do not fit one message"):
            largest.append(SOFTWARE.of(""))
        with pytest.raises(EncodeError, match="do not fit one message"):
            request(Attribute(0x7777, bytes(0xFFF8)), SOFTWARE.of("")).encode()
        with pytest.raises(EncodeError, match="do not fit one message"):
            request(Attribute(0x7777, bytes(0xFFF9))).encode()

    def test_a_larger_attribute_is_an_encode_error(self) -> None:
        with pytest.raises(EncodeError, match="SOFTWARE of 65536 bytes"):
            request(Attribute(SOFTWARE.type, bytes(65536))).encode()


class TestAppend:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_what_stands_before_stays_byte_for_byte(self, name: str) -> None:
        raw = MESSAGES[name]
        message = Message.parse(raw).append(Attribute(0x7777, b"abcde"), SOFTWARE.of("s"))
        longer = message.encode()
        assert longer[:2] == raw[:2]
        assert longer[4 : len(raw)] == raw[4:]
        assert longer[len(raw) :] == bytes.fromhex("7777 0005 6162636465 000000 8022 0001 73 000000")
        assert Message.parse(longer) == message

    def test_it_is_the_message_built_at_once(self) -> None:
        first, second = SOFTWARE.of("s"), USERNAME.of("user")
        assert request(first).append(second) == request(first, second)
        assert request(first).append(second).encode() == request(first, second).encode()
        assert request(first).append() == request(first)


class TestFraming:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_the_size_is_known_from_the_fourth_byte_on(self, name: str) -> None:
        raw = MESSAGES[name]
        for size in range(len(raw) + 1):
            expected = len(raw) if size >= 4 else None
            assert frame_size(raw[:size]) == expected
            assert frame_size(bytearray(raw[:size])) == expected

    def test_a_stream_is_cut_into_its_messages(self) -> None:
        stream = b"".join(MESSAGES.values())
        cut, buffer = [], bytearray()
        for byte in stream:
            buffer.append(byte)
            if frame_size(buffer) == len(buffer):
                cut.append(bytes(buffer))
                buffer.clear()
        assert cut == list(MESSAGES.values())
        assert not buffer

    @pytest.mark.parametrize(
        "start", ["40010000", "80000000", "c0010000", "ffffffff", "00010001", "00010002"]
    )
    def test_what_begins_no_message_is_a_decode_error(self, start: str) -> None:
        with pytest.raises(DecodeError, match=f"{start} does not begin"):
            frame_size(bytes.fromhex(start))
