"""What the rules of the kernel's relay promise for any flow, and their reader for any text."""

from __future__ import annotations

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import Side
from nattools.session.ruleset import FlowTable, KernelFlow, Label, parse_flows, parse_heard
from tests.unit.session.test_ruleset import FROM_A, listing

ports = st.integers(1, 0xFFFF)
few = st.integers(1, 3)
labels = st.builds(
    Label, st.text("0123456789abcdef", min_size=1, max_size=3), st.sampled_from(Side), st.booleans()
)


def flows(version: int) -> st.SearchStrategy[KernelFlow]:
    if version == 4:
        endpoints = st.builds(
            lambda ip, port: Endpoint(IPv4Address(ip), port), st.integers(1, 2**32 - 1), ports
        )
    else:
        endpoints = st.builds(
            lambda ip, port: Endpoint(IPv6Address(ip), port), st.integers(1, 2**128 - 1), ports
        )
    return st.builds(KernelFlow, labels, endpoints, endpoints, endpoints, endpoints)


@st.composite
def crowded_flows(draw: st.DrawFn) -> KernelFlow:
    """Flows among so few endpoints that many of them meet."""
    endpoints = [Endpoint(IPv4Address(draw(few)), draw(few)) for _ in range(4)]
    return KernelFlow(draw(labels), *endpoints)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["nftables", "map", "name", "elem", "val", "concat", "counter", "comment"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
names = st.sampled_from(["toward", "source_port", "destination_port", "source_address", "heard"])


@given(st.sampled_from([4, 6]).flatmap(flows))
def test_a_flow_that_was_put_there_is_read_back(flow: KernelFlow) -> None:
    assert parse_flows(listing(flow)) == [flow]


@given(st.text() | st.builds(json.dumps, json_values))
def test_any_text_is_flows_or_a_decode_error(text: str) -> None:
    with suppress(DecodeError):
        parse_flows(text)
    with suppress(DecodeError):
        parse_heard(text, [FROM_A])


@given(names, st.lists(st.lists(json_values, max_size=3) | json_values, max_size=3))
def test_any_elements_are_flows_or_a_decode_error(name: str, elements: list[object]) -> None:
    text = json.dumps({"nftables": [{"map": {"name": name, "elem": elements}}]})
    with suppress(DecodeError):
        parse_flows(text)
    with suppress(DecodeError):
        parse_heard(text, [FROM_A])


@given(st.lists(crowded_flows() | labels, max_size=20))
def test_no_two_flows_of_a_table_look_the_same_to_the_kernel(steps: list[KernelFlow | Label]) -> None:
    table = FlowTable()
    for step in steps:
        if isinstance(step, Label):
            table.remove(step)
            assert table.get(step) is None
        elif table.put(step):
            assert table.get(step.label) == step
        keys = [element for flow in table for element, _value in flow.elements]
        assert len(keys) == len(set(keys))
