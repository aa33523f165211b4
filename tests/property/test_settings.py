"""Whatever stands in a settings file, a variable or a call: settings, or a DecodeError."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from nattools.binding.settings import WORDS, PortRange, Settings
from nattools.errors import DecodeError

names = (
    st.sampled_from(sorted(WORDS)) | st.sampled_from(["static", "stun", "keepalive"]) | st.text(max_size=20)
)
texts = st.text(max_size=30) | st.sampled_from(
    ["learn", "stun", "5060", "9000-9010", "[::1]:5060", "~x", "crlf", "-"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def settings_or_refusal(make: Callable[[], Settings]) -> None:
    """Settings made of settings are the same: every value is read back as itself."""
    try:
        settings = make()
    except DecodeError:
        return
    assert Settings.of({name: getattr(settings, name) for name in WORDS}) == settings


@given(st.dictionaries(names, values, max_size=4))
def test_any_words(words: dict[str, object]) -> None:
    settings_or_refusal(lambda: Settings.of(words))


@given(st.sampled_from(sorted(WORDS)), values)
def test_any_value_of_a_word(name: str, value: object) -> None:
    settings_or_refusal(lambda: Settings.of({name: value}))


@given(st.sampled_from(sorted(WORDS)) | st.text(max_size=20), texts)
def test_any_variable(name: str, text: str) -> None:
    settings_or_refusal(lambda: Settings().with_environment({f"NATTOOLS_{name.upper()}": text}))


@given(st.text(max_size=60) | st.builds("{} = {}".format, st.sampled_from(sorted(WORDS)), texts))
def test_any_file(text: str) -> None:
    settings_or_refusal(lambda: Settings.from_toml(text))


@given(texts)
def test_any_port_range(text: str) -> None:
    try:
        ports = PortRange.parse(text)
    except DecodeError:
        return
    assert PortRange.parse(str(ports)) == ports
    assert ports.first in ports
    assert ports.last in ports
