"""Records of mappings: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.mapping.state import MOST_RECORD_BYTES, Owner, Record
from tests.unit.mapping.mappings import MAPPING

RECORD = Record(
    "f00d", MAPPING, Owner(4711, 86400.25, "a-start-of-the-system"), 1795000100.5, kept=True, granted=True
)
IPV6 = replace(
    MAPPING,
    internal=Endpoint.parse("[2001:470:77::108]:5060"),
    external_address=ip_address("2001:470:77::108"),
    gateway=ip_address("fe80::1%lan"),
)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, kept=False, granted=False),
        replace(RECORD, mapping=replace(MAPPING, lease_s=None, external_address=None, nonce=b"")),
        replace(RECORD, mapping=replace(MAPPING, description='ü "quoted" <b>', router="uuid:1")),
        replace(RECORD, mapping=IPV6),
    ],
)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert Record.parse(record.encode()) == record


def test_it_expires_with_the_lease() -> None:
    assert RECORD.expires_at() == 1795003700.5
    assert replace(RECORD, mapping=replace(MAPPING, lease_s=None)).expires_at() is None


def test_what_was_granted_replaces_what_was_hoped_for() -> None:
    hoped = replace(RECORD, granted=False)
    granted = hoped.with_mapping(replace(MAPPING, external_port=7000), made_at=5.0)
    assert (granted.granted, granted.mapping.external_port, granted.made_at) == (True, 7000, 5.0)
    assert granted.record_id == hoped.record_id


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"id": 7},
        {"protocol": "tr-069"},
        {"transport": "sctp"},
        {"internal": "router:5060"},
        {"external_port": 70000},
        {"external_port": True},
        {"external_address": "somewhere"},
        {"nonce": "zz"},
        {"pid": "1"},
        {"boot": 1},
        {"made_at": None},
        {"lease_s": "long"},
        {"description": None},
    ],
)
def test_a_record_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    document = {**json.loads(RECORD.encode()), **change}
    with pytest.raises(DecodeError, match="not the record of a mapping"):
        Record.parse(json.dumps(document).encode())


@pytest.mark.parametrize("field", json.loads(RECORD.encode()))
def test_no_field_may_be_missing(field: str) -> None:
    document = json.loads(RECORD.encode())
    del document[field]
    with pytest.raises(DecodeError):
        Record.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 4000, b'{"a": "' + b"x" * MOST_RECORD_BYTES + b'"}']
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Record.parse(data)


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_parsing_is_total(data: bytes) -> None:
    with suppress(DecodeError):
        Record.parse(data)
