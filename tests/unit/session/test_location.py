"""Where bindings are kept, what is kept of them, and whom a request is sent to."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.location import (
    Bindings,
    ContactBinding,
    MemoryLocation,
    encode_bindings,
    parse_bindings,
    targets,
)

ALICE = "alice@example.com"


@dataclass(frozen=True)
class Decided:
    bindings: Bindings | None


def binding(contact: str = "sip:a@192.0.2.1", *, q: float = 1.0, **more: object) -> ContactBinding:
    plain = ContactBinding(contact.encode(), 100.0, b"call", 1, q=q)
    return replace(plain, **more) if more else plain  # type: ignore[arg-type]  # each test gives the right ones


def contacts_of(groups: list[Bindings]) -> list[list[str]]:
    return [[each.contact.decode() for each in group] for group in groups]


class TestTargets:
    def test_none_for_nobody(self) -> None:
        assert targets(()) == []

    def test_groups_go_by_q_and_the_newest_is_first_in_each(self) -> None:
        bindings = (
            binding("sip:old@h", q=0.5),
            binding("sip:best@h"),
            binding("sip:new@h", q=0.5),
            binding("sip:last@h", q=0),
        )
        assert contacts_of(targets(bindings)) == [["sip:best@h"], ["sip:new@h", "sip:old@h"], ["sip:last@h"]]

    def test_of_the_flows_of_a_phone_the_newest_is_taken(self) -> None:
        bindings = (
            binding("sip:one@h", instance="urn:a", reg_id=1),
            binding("sip:two@h", instance="urn:a", reg_id=2),
            binding("sip:other@h", instance="urn:b", reg_id=1),
            binding("sip:plain@h", instance="urn:a"),
        )
        assert contacts_of(targets(bindings)) == [["sip:plain@h", "sip:other@h", "sip:two@h"]]

    def test_a_gruu_is_one_phone(self) -> None:
        bindings = (binding("sip:1@h", instance="urn:a"), binding("sip:2@h", instance="urn:a"), binding())
        assert contacts_of(targets(bindings, instance="urn:a")) == [["sip:2@h"]]
        assert targets(bindings, instance="urn:gone") == []

    def test_nothing_is_sent_to_a_mailbox(self) -> None:
        bindings = (binding("mailto:a@h"), binding("tel:+49"), binding("sips:a@h"), binding("no URI"))
        assert contacts_of(targets(bindings)) == [["sips:a@h"]]


class TestMemory:
    def test_what_was_decided_is_there_until_it_expires(self) -> None:
        async def run() -> None:
            location = MemoryLocation()
            kept = (binding(), binding("sip:b@h", expires_at=50.0))
            seen = []

            def decide(bindings: Bindings) -> Decided:
                seen.append(bindings)
                return Decided(kept)

            assert (await location.update(ALICE, decide, now=0.0)).bindings == kept
            assert await location.bindings(ALICE, now=49.9) == kept
            assert await location.bindings(ALICE, now=50.0) == kept[:1]
            assert await location.registrations(now=50.0) == {ALICE: kept[:1]}
            await location.update(ALICE, decide, now=60.0)
            assert seen == [(), kept[:1]]
            assert await location.bindings("bob@example.com", now=0.0) == ()
            await location.update(ALICE, lambda _: Decided(None), now=60.0)
            assert await location.bindings(ALICE, now=60.0) == kept[:1]
            await location.update(ALICE, lambda _: Decided(()), now=60.0)
            assert await location.registrations(now=0.0) == {}
            await location.close()

        asyncio.run(run())

    def test_what_expired_is_forgotten_also_where_nobody_asks(self) -> None:
        async def run() -> None:
            location = MemoryLocation()
            for number in range(5000):
                await location.update(f"{number}", lambda _: Decided((binding(),)), now=0.0)
            for _ in range(5000):
                await location.update("x", lambda _: Decided(()), now=200.0)
            assert len(location._bindings) == 0

        asyncio.run(run())


FIELDS = [field.name for field in fields(ContactBinding)]
TEXTS = st.binary(max_size=20)
BINDINGS = st.builds(
    ContactBinding,
    contact=TEXTS,
    expires_at=st.floats(0, 1e9),
    call_id=TEXTS,
    cseq=st.integers(0, 2**32 - 1),
    params=TEXTS,
    q=st.floats(0, 1),
    path=st.lists(TEXTS, max_size=3).map(tuple),
    received=st.none() | st.just(Endpoint.parse("[2001:db8::1]:5060")) | st.just(Endpoint.parse("1.2.3.4:5")),
    flow=st.text(max_size=5),
    instance=TEXTS.map(lambda data: data.decode("utf-8", "surrogateescape")),
    reg_id=st.none() | st.integers(1, 2**31 - 1),
    server=st.none() | st.just(Endpoint.parse("1.2.3.4:5060")),
)


class TestRecord:
    @given(st.lists(BINDINGS, max_size=3).map(tuple))
    def test_it_is_read_as_it_was_written(self, bindings: Bindings) -> None:
        record = encode_bindings(bindings, clock_offset_s=0.0)
        assert record.isascii()
        assert "\n" not in record
        assert parse_bindings(record, clock_offset_s=0.0) == bindings

    def test_another_clock_reads_the_same_time(self) -> None:
        record = encode_bindings((binding(expires_at=100.0),), clock_offset_s=1_800_000_000.0)
        (read,) = parse_bindings(record, clock_offset_s=1_800_000_040.0)
        assert read.expires_at == 60.0

    @pytest.mark.parametrize(
        "change", [("1.0", '"x"'), ("null", "7"), ("[]", "7"), ("100.0", '"1e9x"'), ("{", "")]
    )
    def test_a_broken_one_is_a_decode_error(self, change: tuple[str, str]) -> None:
        record = encode_bindings((binding(),), clock_offset_s=0.0).replace(*change)
        with pytest.raises(DecodeError, match="registration"):
            parse_bindings(record, clock_offset_s=0.0)

    @given(
        st.text(max_size=30)
        | st.recursive(
            st.none() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
            max_leaves=20,
        ).map(json.dumps)
    )
    def test_anything_else_is_one_too(self, text: str) -> None:
        with suppress(DecodeError):
            parse_bindings(text, clock_offset_s=0.0)

    def test_the_depths_are_none(self) -> None:
        with pytest.raises(DecodeError):
            parse_bindings("[" * 100_000, clock_offset_s=0.0)

    def test_q_is_between_0_and_1(self) -> None:
        with pytest.raises(DecodeError, match="q=2"):
            binding(q=2)
