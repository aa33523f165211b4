"""What holds for any bytes and any message, against the codec itself, a model of its rules, and scapy."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib import stun as scapy_stun

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.stun.attributes import (
    FINGERPRINT,
    GOOG_NETWORK_INFO,
    ICE_CONTROLLING,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    PRIORITY,
    REGISTRY,
    SOFTWARE,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    AttributeCodec,
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
from tests.fuzz import __main__ as fuzz
from tests.fuzz.mutator import GENERAL, Target, run
from tests.fuzz.stun_codec import TARGET, check

SEEDS = TARGET.seeds()
SCAPY_TYPES = tuple(scapy_stun._stun_tlv_class)

modern_ids = st.binary(min_size=12, max_size=12)
classic_ids = st.binary(min_size=16, max_size=16).filter(lambda value: not value.startswith(MAGIC_COOKIE))
attribute_numbers = st.sampled_from(sorted(REGISTRY)) | st.integers(0, 0xFFFF)
attributes = st.builds(Attribute, attribute_numbers, st.binary(max_size=40))
messages = st.builds(
    Message,
    st.integers(0, 0xFFF).map(Method),
    st.sampled_from(MessageClass),
    modern_ids | classic_ids,
    st.lists(attributes, max_size=8).map(tuple),
)
endpoints = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 0xFFFF))


class TestAnyBytes:
    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_are_a_message_or_a_decode_error(self, data: bytes) -> None:
        check(data)

    @settings(deadline=None)
    @given(st.integers(0, 0x3FFF), modern_ids | classic_ids, st.binary(max_size=100))
    def test_behind_a_header_that_fits_too(self, message_type: int, transaction: bytes, body: bytes) -> None:
        cookie = MAGIC_COOKIE if len(transaction) == 12 else b""
        head = message_type.to_bytes(2, "big") + len(body).to_bytes(2, "big")
        check(head + cookie + transaction + body)

    @settings(deadline=None)
    @given(st.sampled_from(SEEDS), st.data())
    def test_and_what_is_nearly_a_message(self, seed: bytes, data: st.DataObject) -> None:
        changed = bytearray(seed)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        check(bytes(changed))

    @settings(deadline=None)
    @given(st.sampled_from(sorted(REGISTRY)), st.binary(max_size=64))
    def test_are_a_value_of_any_attribute_or_a_decode_error(self, number: int, value: bytes) -> None:
        with contextlib.suppress(DecodeError):
            REGISTRY[number].parse(value, MAGIC_COOKIE + bytes(12))


class TestAnyMessage:
    @settings(deadline=None)
    @given(messages)
    def test_survives_the_wire(self, message: Message) -> None:
        raw = message.encode()
        parsed = Message.parse(raw)
        assert parsed == message
        assert parsed.xor_key == message.xor_key
        assert parsed.encode() == raw

    @settings(deadline=None)
    @given(messages, st.lists(attributes, max_size=3))
    def test_can_be_extended(self, message: Message, more: list[Attribute]) -> None:
        longer = message.append(*more)
        assert longer.encode()[4:].startswith(message.encode()[4:])
        assert Message.parse(longer.encode()) == longer
        assert longer.attributes == (*message.attributes, *more)

    @settings(deadline=None)
    @given(messages, st.binary(max_size=70), st.sampled_from((16, 20, 24, 28, 32)))
    def test_can_be_sealed(self, message: Message, key: bytes, size: int) -> None:
        kept = tuple(attribute for attribute in message.attributes if attribute.type not in SEAL_NUMBERS)
        plain = Message(message.method, message.message_class, message.transaction_id, kept)
        sealed = with_fingerprint(with_integrity_sha256(with_integrity(plain, key), key, size=size))
        received = Message.parse(sealed.encode())
        assert integrity_holds(received, key) is True
        assert integrity_sha256_holds(received, key) is True
        assert fingerprint_holds(received) is True
        assert integrity_holds(received, key + b"\1") is False

    @settings(deadline=None)
    @given(st.lists(messages, max_size=4), st.binary(max_size=3))
    def test_is_cut_out_of_a_stream(self, sent: list[Message], rest: bytes) -> None:
        buffer, received = bytearray(), []
        for byte in b"".join(message.encode() for message in sent) + rest:
            buffer.append(byte)
            if frame_size(buffer) == len(buffer):
                received.append(Message.parse(bytes(buffer)))
                buffer.clear()
        assert received == sent
        assert buffer == rest

    @settings(deadline=None)
    @given(st.binary(max_size=30))
    def test_is_announced_by_its_first_four_bytes(self, data: bytes) -> None:
        try:
            size = frame_size(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                Message.parse(data + bytes(-len(data) % 4))
        else:
            assert (size is None) is (len(data) < 4)
            assert size is None or (size >= HEADER_BYTES and size % 4 == 0)


SEALS: tuple[AttributeCodec[Any], ...] = (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, FINGERPRINT)
SEAL_NUMBERS = tuple(codec.type for codec in SEALS)


def model_get(message: Message, wanted: int) -> bytes | None:
    """RFC 8489 §14.5 and §14.6 by the letter: first strike out what is to be ignored, then look."""
    visible, sealed = [], False
    for attribute in message.attributes:
        if not sealed or attribute.type in (MESSAGE_INTEGRITY_SHA256.type, FINGERPRINT.type):
            visible.append(attribute)
        sealed = sealed or attribute.type in (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type)
    return next((value for number, value in visible if number == wanted), None)


sealed_values: dict[AttributeCodec[Any], int] = {
    SOFTWARE: 3,
    MESSAGE_INTEGRITY: 20,
    MESSAGE_INTEGRITY_SHA256: 32,
    FINGERPRINT: 4,
}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(sealed_values)), st.integers(97, 122)), max_size=7))
def test_what_is_ignored_is_what_the_rfc_says(drawn: list[tuple[AttributeCodec[Any], int]]) -> None:
    made = tuple(Attribute(codec.type, bytes([fill]) * sealed_values[codec]) for codec, fill in drawn)
    message = Message(Method.BINDING, MessageClass.REQUEST, bytes(12), made)
    for codec in sealed_values:
        expected = model_get(message, codec.type)
        assert message.get(codec) == (None if expected is None else codec.parse(expected, message.xor_key))


class TestScapyReadsWhatWeWrite:
    """scapy.contrib.stun was written apart from this codec; it knows the modern dialect."""

    @settings(deadline=None)
    @given(
        st.integers(0, 0x0F).map(Method),
        st.sampled_from(MessageClass),
        modern_ids,
        st.lists(attributes.filter(lambda attribute: attribute.type not in SCAPY_TYPES), max_size=8),
    )
    def test_headers_and_attributes_that_it_does_not_know(
        self, method: Method, message_class: MessageClass, transaction_id: bytes, made: list[Attribute]
    ) -> None:
        message = Message(method, message_class, transaction_id, tuple(made))
        packet = scapy_stun.STUN(message.encode())
        assert packet.RESERVED == 0
        assert packet.stun_message_type == int.from_bytes(message.encode()[:2], "big")
        assert packet.length == len(message.encode()) - HEADER_BYTES
        assert packet.magic_cookie == scapy_stun.MAGIC_COOKIE
        assert packet.transaction_id == int.from_bytes(transaction_id, "big")
        assert [(tlv.type, tlv.length, tlv.value) for tlv in packet.attributes] == [
            (number, len(value), value) for number, value in made
        ]
        assert not packet.payload

    @settings(deadline=None)
    @given(modern_ids, endpoints, endpoints, st.text(max_size=40), st.integers(0, 0xFFFFFFFF))
    def test_the_values_that_it_knows(
        self, transaction_id: bytes, mapped: Endpoint, local: Endpoint, username: str, number: int
    ) -> None:
        key = MAGIC_COOKIE + transaction_id
        plain = Message(
            Method.BINDING,
            MessageClass.SUCCESS,
            transaction_id,
            (
                XOR_MAPPED_ADDRESS.of(mapped, key),
                MAPPED_ADDRESS.of(local),
                USERNAME.of(username),
                PRIORITY.of(number),
                USE_CANDIDATE.of(True),
                ICE_CONTROLLING.of(number << 32 | 7),
                GOOG_NETWORK_INFO.of(number.to_bytes(4, "big")),
            ),
        )
        message = with_fingerprint(with_integrity(plain, b"key"))
        packet = scapy_stun.STUN(message.encode())
        xored, address, user, priority, use, role, network, integrity, fingerprint = packet.attributes
        assert (ip_address(xored.xip), xored.xport) == (mapped.ip, mapped.port)
        assert (ip_address(address.ip), address.port) == (local.ip, local.port)
        assert user.username == username.encode()
        assert priority.priority == number
        assert use.value == b""
        assert role.tie_breaker == number << 32 | 7
        assert (network.network_id, network.network_cost) == (number >> 16, number & 0xFFFF)
        assert integrity.hmac_sha1.to_bytes(20, "big") == message.get(MESSAGE_INTEGRITY)
        assert fingerprint.crc_32 == message.get(FINGERPRINT)
        assert [tlv.type for tlv in packet.attributes] == [one.type for one in message.attributes]


class TestWeReadWhatScapyWrites:
    @settings(deadline=None)
    @given(
        st.sampled_from(sorted(scapy_stun._stun_message_type.values())),
        modern_ids,
        endpoints,
        endpoints,
        st.text(max_size=40),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=40),
    )
    def test_every_value(
        self,
        message_type: int,
        transaction_id: bytes,
        mapped: Endpoint,
        local: Endpoint,
        username: str,
        number: int,
        value: bytes,
    ) -> None:
        packet = scapy_stun.STUN(
            stun_message_type=message_type,
            transaction_id=int.from_bytes(transaction_id, "big"),
            attributes=[
                scapy_stun.STUNXorMappedAddress(
                    address_family=2 if mapped.is_ipv6 else 1, xip=str(mapped.ip), xport=mapped.port
                ),
                scapy_stun.STUNMappedAddress(
                    address_family=2 if local.is_ipv6 else 1, ip=str(local.ip), port=local.port
                ),
                scapy_stun.STUNUsername(username=username.encode()),
                scapy_stun.STUNPriority(priority=number),
                scapy_stun.STUNUseCandidate(),
                scapy_stun.STUNIceControlling(tie_breaker=number),
                scapy_stun.STUNGenericTlv(type=0x7777, value=value),
                scapy_stun.STUNMessageIntegrity(hmac_sha1=number),
                scapy_stun.STUNFingerprint(crc_32=number),
            ],
        )
        raw = bytes(packet)
        message = Message.parse(raw)
        assert message.encode() == raw
        assert message.method is Method.BINDING
        assert Message(message.method, message.message_class, transaction_id).encode()[:2] == raw[:2]
        assert message.transaction_id == transaction_id
        assert message.get(XOR_MAPPED_ADDRESS) == mapped
        assert message.mapped_address == mapped.unmapped
        assert message.get(MAPPED_ADDRESS) == local
        assert message.get(USERNAME) == username
        assert message.get(PRIORITY) == number
        assert message.get(USE_CANDIDATE) is True
        assert message.get(ICE_CONTROLLING) == number
        assert Attribute(0x7777, value) in message.attributes
        assert message.get(MESSAGE_INTEGRITY) == number.to_bytes(20, "big")
        assert message.get(FINGERPRINT) == number

    @pytest.mark.parametrize("name", vectors.messages())
    def test_the_vectors_as_scapy_writes_them_anew(self, name: str) -> None:
        message = Message.parse(vectors.message(name))
        packet = scapy_stun.STUN(message.encode())
        packet.clear_cache()
        assert Message.parse(bytes(packet)) == message


class TestFuzzing:
    def test_a_run_is_repeatable(self) -> None:
        def recorded() -> list[bytes]:
            inputs: list[bytes] = []

            def record(data: bytes) -> str:
                inputs.append(data)
                return "seen"

            run(Target("recorder", lambda: SEEDS, record), count=200, seed=7)
            return inputs

        inputs = recorded()
        assert inputs == recorded()
        assert inputs[: len(SEEDS)] == list(SEEDS)
        assert len(set(inputs)) > 150

    def test_a_short_run_holds_and_reaches_both_outcomes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fuzz.main(["stun_codec", "--count", "3000"]) == 0
        report = capsys.readouterr().out
        assert "3000 inputs (seed 1)" in report
        assert "Message" in report
        assert "DecodeError" in report

    def test_a_broken_promise_is_found_and_its_bytes_are_printed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(data: bytes) -> str:
            return f"{data[19]}"

        monkeypatch.setitem(fuzz.TARGETS, "broken", Target("broken", lambda: SEEDS, broken, GENERAL))
        assert fuzz.main(["broken", "--count", "10000", "--seed", "3"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert "of seed 3" in lines[1]
        with pytest.raises(IndexError):
            broken(bytes.fromhex(lines[2]))
        assert lines[-1].startswith("IndexError")

    def test_an_unknown_target_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            fuzz.main(["nonsense"])
        assert "no such target: nonsense" in capsys.readouterr().err
