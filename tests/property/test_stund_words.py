"""Whatever an operator writes: settings, or one error that says what is wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nattools.errors import DecodeError
from nattools.stun.settings import WORDS, StundSettings

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=12), values, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(WORDS)), _VALUES, max_size=4))
def test_any_value_gives_settings_or_a_decode_error(words: dict[str, Any]) -> None:
    try:
        settings = StundSettings.of(words)
    except DecodeError:
        return
    assert StundSettings.of({name: getattr(settings, name) for name in WORDS}) == settings


@given(st.text(max_size=80))
def test_any_text_gives_settings_or_a_decode_error(text: str) -> None:
    try:
        StundSettings.parse(text)
    except DecodeError:
        return
