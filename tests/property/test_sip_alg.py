"""What holds for any bytes: of the reflector, of the comparison, and of the search for SIP ALGs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.sip.alg_probe import MOST_PACKETS
from nattools.sip.difference import touched_fields
from nattools.sip.message import SipMessage
from nattools.sip.reflector import MOST_AMPLIFICATION, Reflector, reflect
from tests.unit.sip.alg_networks import Network, reflecting
from tests.unit.sip.test_reflector import REQUEST, SOURCE


@given(
    st.one_of(
        st.binary(max_size=400),
        st.builds(
            lambda at, cut, new: REQUEST[:at] + new + REQUEST[at + cut :],
            st.integers(0, len(REQUEST)),
            st.integers(0, 60),
            st.binary(max_size=40),
        ),
    )
)
def test_any_bytes_get_no_answer_or_a_bounded_one_that_is_no_request(data: bytes) -> None:
    given_back = Reflector(entropy=bytes).answer(data, SOURCE, now=0.0)
    if given_back is not None:
        assert len(given_back) <= MOST_AMPLIFICATION * len(data)
        response = SipMessage.parse(given_back)
        assert response.status_code in (200, 488)
        assert reflect(response.body) == data


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_the_same_or_differ_in_something(sent: bytes, arrived: bytes) -> None:
    assert bool(touched_fields(sent, arrived)) == (sent != arrived)
    for field in touched_fields(sent, arrived):
        assert str(field)


@given(
    st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 300), st.none()), max_size=12), st.randoms()
)
def test_a_server_may_answer_anything_at_all(mutations: list[bytes | int | None], rng: random.Random) -> None:
    """Garbage, an answer with a piece cut out or exchanged, or nothing: it ends with a verdict."""
    honest, turn = reflecting(), iter(mutations * 8)

    def mad(data: bytes, source: Endpoint) -> bytes | None:
        answer, mutation = honest(data, source), next(turn, None)
        if answer is None or isinstance(mutation, bytes):
            return mutation if isinstance(mutation, bytes) else None
        if mutation is None:
            return answer
        at = mutation % len(answer)
        return answer[:at] + rng.randbytes(mutation % 3) + answer[at + 1 :]

    asked = Network(mad, mad)
    verdict = asked.verdict()
    assert verdict.packets_sent <= MOST_PACKETS
    assert verdict.reasons
