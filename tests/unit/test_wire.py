from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nattools.errors import DecodeError
from nattools.stun.message import Method
from nattools.wire import OpenIntEnum, Reader


class Colour(OpenIntEnum):
    RED = 1
    GREEN = 2


def test_a_known_number_is_its_member() -> None:
    assert Colour(1) is Colour.RED
    assert Colour.GREEN.name == "GREEN"


def test_an_unknown_number_is_kept_and_named_by_its_value() -> None:
    unknown = Colour(0x1F)
    assert unknown == 0x1F
    assert isinstance(unknown, Colour)
    assert unknown.name == "UNKNOWN_0x1F"
    assert unknown == Colour(31)
    assert hash(unknown) == hash(31)
    assert {unknown: "kept"}[Colour(31)] == "kept"
    assert list(Colour) == [Colour.RED, Colour.GREEN]


def test_an_unknown_number_survives_copy_and_pickle() -> None:
    unknown = Method(0xABC)
    assert copy.deepcopy(unknown) == unknown
    assert pickle.loads(pickle.dumps(unknown)) == unknown


@pytest.mark.parametrize("value", [-1, "1", 1.5, None])
def test_what_is_no_wire_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a valid"):
        Colour(value)


def test_a_reader_takes_big_endian_numbers_and_bytes_in_order() -> None:
    reader = Reader(bytes.fromhex("01 0203 040506 0708090a"))
    assert (reader.uint(1), reader.uint(2), reader.uint(3)) == (1, 0x0203, 0x040506)
    assert reader.remaining == 4
    assert reader.take(1) == b"\x07"
    assert reader.rest() == b"\x08\x09\x0a"
    assert reader.rest() == b""
    assert reader.remaining == 0


@pytest.mark.parametrize("size", [4, 5, 1 << 40])
def test_a_reader_does_not_read_past_the_end(size: int) -> None:
    reader = Reader(b"abc")
    with pytest.raises(DecodeError, match=f"{size} bytes wanted, 3 left"):
        reader.take(size)
    assert reader.rest() == b"abc"
