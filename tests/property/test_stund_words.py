"""Whatever an operator writes: settings, or one error that says what is wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nattools.errors import DecodeError
from nattools.stun.settings import EVERY_ADDRESS, WORDS, StundSettings

_ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "[2001:db8::1]", "fe80::1%eth0", "0.0.0.0", "::"])
_LIKELY = _ADDRESSES | st.sampled_from(["127.0.0.1:9061", "~nobody/x", "\0", "short-term", "JSON"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | _LIKELY,
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


@given(
    st.lists(_ADDRESSES, max_size=4),
    st.lists(_ADDRESSES, max_size=2),
    st.dictionaries(_ADDRESSES, _ADDRESSES, max_size=2),
    st.sampled_from([None, 0, 3478, 3479, 3480]),
)
def test_any_addresses_are_served_as_they_were_given_or_refused(
    addresses: list[str], peers: list[str], advertise: dict[str, str], alternate_port: int | None
) -> None:
    words = {"addresses": addresses, "peers": peers, "peer_key": "key" if peers else None}
    try:
        settings = StundSettings.of({**words, "advertise": advertise, "alternate_port": alternate_port})
    except DecodeError:
        return
    served = {endpoint.ip for family in settings.families for endpoint in family.endpoints}
    assert served == set(settings.addresses or EVERY_ADDRESS)
    assert len(settings.families) == len({ip.version for ip in served})
    assert {hosts.other for hosts in settings.hosts} == set(settings.peers)
    assert {hosts.own for hosts in settings.hosts} <= served


@given(st.text(max_size=80))
def test_any_text_gives_settings_or_a_decode_error(text: str) -> None:
    try:
        StundSettings.parse(text)
    except DecodeError:
        return
