"""The rules that are written for nft, and what is read of what nft lists."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import Side
from nattools.session.ruleset import (
    FlowTable,
    Heard,
    KernelFlow,
    Label,
    compose_difference,
    compose_removal,
    compose_table,
    counting_commands,
    listing_command,
    parse_counts,
    parse_flows,
    parse_heard,
)

FROM_A = KernelFlow(
    Label("5eed", Side.A),
    source=Endpoint.of("198.51.100.8", 5004),
    arrives_at=Endpoint.of("203.0.113.7", 30000),
    leaves_from=Endpoint.of("203.0.113.7", 30002),
    destination=Endpoint.of("192.0.2.9", 6004),
)
FROM_B = KernelFlow(
    Label("5eed", Side.B), FROM_A.destination, FROM_A.leaves_from, FROM_A.arrives_at, FROM_A.source
)
OVER_IPV6 = KernelFlow(
    Label("6", Side.A, is_rtcp=True),
    source=Endpoint.of("2001:db8::8", 5005),
    arrives_at=Endpoint.of("2001:db8::7", 30005),
    leaves_from=Endpoint.of("2001:db8::7", 30007),
    destination=Endpoint.of("2001:db8::9", 6005),
)


def listing(*flows: KernelFlow, packets: int = 0, octets: int = 0, heard: object = None) -> str:
    """What nft 1.0.6 lists when it has these flows."""
    maps: dict[str, list[object]] = {}
    for flow in flows:
        for (table, (source, destination)), value in flow.elements:
            concat = [str(source.ip), source.port, str(destination.ip), destination.port]
            key: dict[str, object] = {"concat": concat}
            if table == "toward":
                counter = {"packets": packets, "bytes": octets}
                key = {"elem": {"val": key, "comment": str(flow.label), "counter": counter}}
            maps.setdefault(table, []).append([key, int(value) if value.isdigit() else value])
        if heard is not None:
            key = {"elem": {"val": flow.arrives_at.port, "timeout": 1, "expires": 1}}
            maps.setdefault("heard", []).append([key, heard])
    items: list[object] = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "relay"}}]
    items += [{"map": {"family": "ip", "name": name, "elem": elements}} for name, elements in maps.items()]
    return json.dumps({"nftables": [*items, {"map": {"name": "empty"}}]})


def test_a_flow_is_four_elements_that_each_know_the_datagram_as_it_is_there() -> None:
    assert compose_difference("relay", [], [FROM_A]).splitlines() == [
        "add element ip relay toward { 198.51.100.8 . 5004 . 203.0.113.7 . 30000"
        ' comment "5eed a rtp" : 192.0.2.9 }',
        "add element ip relay source_port { 198.51.100.8 . 5004 . 192.0.2.9 . 30000 : 30002 }",
        "add element ip relay destination_port { 198.51.100.8 . 30002 . 192.0.2.9 . 30000 : 6004 }",
        "add element ip relay source_address { 198.51.100.8 . 30002 . 192.0.2.9 . 6004 : 203.0.113.7 }",
    ]


def test_a_difference_is_what_goes_before_what_comes() -> None:
    moved = replace(FROM_A, source=Endpoint.of("198.51.100.9", 4000))
    script = compose_difference("relay", [FROM_A, FROM_B], [FROM_B, moved]).splitlines()
    assert [line.partition(" relay")[0] for line in script] == ["delete element ip"] * 4 + [
        "add element ip"
    ] * 4
    assert script[0] == "delete element ip relay toward { 198.51.100.8 . 5004 . 203.0.113.7 . 30000 }"
    assert compose_difference("relay", [FROM_A, FROM_B], [FROM_B, FROM_A]) == ""


def test_ipv6_has_a_table_of_its_own() -> None:
    script = compose_difference("relay", [], [OVER_IPV6])
    assert script.startswith(
        "add element ip6 relay toward { 2001:db8::8 . 5005 . 2001:db8::7 . 30005 comment"
    )
    assert '"6 a rtcp"' in script
    assert listing_command("relay", 6) == "list table ip6 relay"


@pytest.mark.parametrize(("version", "family"), [(4, "ip"), (6, "ip6")])
def test_a_table_is_made_and_removed_whether_it_is_there_or_not(version: int, family: str) -> None:
    made = compose_table("relay", version)
    assert all(line.split()[0] in ("add", "flush") for line in made.splitlines())
    assert compose_removal("relay", version) == f"add table {family} relay\ndelete table {family} relay\n"


@pytest.mark.parametrize("flows", [(FROM_A,), (FROM_A, FROM_B), (OVER_IPV6,), ()])
def test_the_flows_of_a_listing_are_those_that_were_put_there(flows: tuple[KernelFlow, ...]) -> None:
    assert parse_flows(listing(*flows)) == list(flows)


@pytest.mark.parametrize("lost", ["source_port", "destination_port", "source_address"])
def test_a_flow_that_is_not_whole_is_left_out(lost: str) -> None:
    assert parse_flows(listing(FROM_A).replace(f'"{lost}"', '"other"')) == []


@pytest.mark.parametrize("comment", ["", "5eed a", "5EED a rtp", "5eed c rtp", "5eed a rtp "])
def test_an_element_that_somebody_else_put_there_is_left_out(comment: str) -> None:
    assert parse_flows(listing(FROM_A).replace("5eed a rtp", comment)) == []


def test_counts_are_of_udp_payload_and_a_header_of_rtp_is_read() -> None:
    header = "0x8000fffe000000a0cafe0001"
    told = listing(FROM_A, packets=3, octets=3 * 200, heard=header)
    assert parse_heard(told, [FROM_A, FROM_B]) == {FROM_A.label: Heard(3, 3 * 172, 0xCAFE0001, 0xFFFE)}


@pytest.mark.parametrize("sample", [5, "0x0001000021", None])
def test_a_header_of_something_else_is_none(sample: object) -> None:
    told = listing(FROM_A, packets=1, octets=200, heard=sample)
    assert parse_heard(told, [FROM_A]) == {FROM_A.label: Heard(1, 172)}


def test_the_header_of_a_report_is_none_of_rtp() -> None:
    report = replace(FROM_A, label=replace(FROM_A.label, is_rtcp=True))
    told = listing(report, packets=1, octets=36, heard="0x80c90001cafe000100000000")
    assert parse_heard(told, [report]) == {report.label: Heard(1, 8)}


def test_the_counts_of_single_flows_are_read_by_their_labels() -> None:
    assert counting_commands("relay", [FROM_A, OVER_IPV6]) == (
        "get element ip relay toward { 198.51.100.8 . 5004 . 203.0.113.7 . 30000 }; "
        "get element ip6 relay toward { 2001:db8::8 . 5005 . 2001:db8::7 . 30005 }"
    )
    told = (
        "elements = { 198.51.100.8 . 5004 . 203.0.113.7 . 30000 counter packets 2 bytes 400 "
        'comment "5eed a rtp" : 192.0.2.9 }\n'
        'elements = { 2001:db8::8 . 5005 counter packets 1 bytes 56 comment "6 a rtcp" : :: }'
    )
    assert parse_counts(told, [FROM_A, OVER_IPV6]) == {
        FROM_A.label: Heard(2, 344),
        OVER_IPV6.label: Heard(1, 8),
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"nftables": 7}',
        '{"nftables": [{"map": 7}]}',
        '{"nftables": [{"map": {"name": "toward", "elem": [7]}}]}',
        '{"nftables": [{"map": {"name": "toward", "elem": [[{"concat": [1, 2]}, 3]]}}]}',
        '{"nftables": [{"map": {"name": "toward", "elem": [[{"concat": ["x", 2, "y", 3]}, 4]]}}]}',
    ],
)
def test_what_is_no_listing_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_flows(text)


@pytest.mark.parametrize("sample", ["word", -1, 1 << 96])
def test_what_is_no_header_is_a_decode_error(sample: object) -> None:
    with pytest.raises(DecodeError, match="RTP header"):
        parse_heard(listing(FROM_A, heard=sample), [FROM_A])


@pytest.mark.parametrize("name", ["", "a b", "a;b", "1", "relay}", "x" * 32, "a\nb"])
def test_a_name_that_nft_would_not_take_for_one_is_refused(name: str) -> None:
    with pytest.raises(DecodeError, match="cannot name a table"):
        compose_table(name, 4)


@pytest.mark.parametrize("stream", ["", "relay", 'a"b', "0" * 33])
def test_a_stream_has_a_hexadecimal_name(stream: str) -> None:
    with pytest.raises(DecodeError, match="names no stream"):
        Label(stream, Side.A)


def test_a_flow_does_not_change_its_address_family() -> None:
    with pytest.raises(DecodeError, match="address family"):
        replace(FROM_A, leaves_from=OVER_IPV6.leaves_from, destination=OVER_IPV6.destination)


def test_two_flows_that_look_the_same_to_the_kernel_do_not_both_get_in() -> None:
    table = FlowTable()
    assert table.put(FROM_A)
    same = replace(FROM_A, label=Label("2", Side.A), leaves_from=FROM_A.leaves_from.with_port(30010))
    assert not table.put(same)
    assert list(table) == [FROM_A]
    table.remove(FROM_A.label)
    assert table.put(same)


def test_a_flow_takes_the_place_of_its_elder() -> None:
    table = FlowTable()
    moved = replace(FROM_A, source=Endpoint.of("198.51.100.9", 4000))
    assert table.put(FROM_A)
    assert table.put(moved)
    assert table.put(replace(FROM_A, label=Label("2", Side.A)))  # its elements are free again
    assert table.get(FROM_A.label) == moved
    assert table.remove(Label("3", Side.A)) is None
