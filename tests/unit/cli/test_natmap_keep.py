"""`natmap add --keep`: what is told while it stays, and how it ends."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nattools.errors import (
    NoResponseError,
)
from nattools.mapping.model import PortMapping
from nattools.mapping.upkeep import ChangeKind, MappingChange
from tests.unit.cli.natmap_client import CARRIER, DOCUMENT, MAPPING, FakeClient, run

LATER = replace(MAPPING, external_address=ip_address("11.22.33.9"))
CHANGES = [
    MappingChange(ChangeKind.RENEWED, MAPPING, MAPPING, "half of its lease is over"),
    MappingChange(ChangeKind.LOST, MAPPING, MAPPING, "the router is silent"),
    MappingChange(ChangeKind.RESTORED, MAPPING, MAPPING, "it is back"),
    MappingChange(ChangeKind.CHANGED, LATER, MAPPING, "the router has another external address"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_kept_mapping_is_shown_and_removed_at_a_signal(client: FakeClient, number: signal.Signals) -> None:
    client.told, client.then_signal = CHANGES, number
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stderr, client.released) == (0, "", [LATER])
    lines = result.stdout.splitlines()
    assert lines[3] == "Kept      until natmap is stopped (Ctrl-C)"
    assert [line[21:] for line in lines[4:]] == [
        "renewed udp 11.22.33.2:5060 for 1 h: half of its lease is over",
        "lost udp 11.22.33.2:5060: the router is silent",
        "restored udp 11.22.33.2:5060 for 1 h: it is back",
        "changed to udp 11.22.33.9:5060 (it was 11.22.33.2:5060): the router has another external address",
        "removed udp 11.22.33.9:5060 -> 192.168.0.108:5060",
    ]


def test_a_kept_mapping_as_json_is_a_document_for_each_line(client: FakeClient) -> None:
    client.told = CHANGES
    events = [json.loads(line) for line in run("add", "5060", "--keep", "--json").stdout.splitlines()]
    assert [event["event"] for event in events] == [
        *("mapped", "renewed", "lost", "restored", "changed", "removed")
    ]
    assert events[0]["mapping"] == DOCUMENT
    assert [event["mapping"]["public"] for event in events] == [True, True, False, True, True, True]
    assert (events[4]["previous"], events[4]["mapping"]["external"]) == ("11.22.33.2:5060", "11.22.33.9:5060")
    assert events[4]["reason"] == "the router has another external address"
    assert all(event["schema"] == 1 and event["time"] for event in events)


def test_a_kept_mapping_that_moves_behind_a_second_nat_is_said_loudly(client: FakeClient) -> None:
    behind = replace(MAPPING, external_address=CARRIER)
    client.told = [MappingChange(ChangeKind.CHANGED, behind, MAPPING, "another address")]
    result = run("add", "5060", "--keep")
    assert result.exit_code == 5
    assert result.stderr.startswith("natmap: NOT REACHABLE FROM OUTSIDE: the router itself has 100.64.0.2, ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_before_there_is_a_mapping_ends_it_quietly(
    client: FakeClient, number: signal.Signals, status: int
) -> None:
    client.hangs, client.then_signal = True, number
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", "")


@pytest.mark.parametrize("arguments", [("add", "5060"), ("add", "5060", "--json")])
def test_ctrl_c_during_the_search_is_quiet(client: FakeClient, arguments: tuple[str, ...]) -> None:
    client.hangs, client.then_signal = True, signal.SIGINT
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_what_cannot_be_removed_at_the_end_is_said(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def release(_: PortMapping) -> None:
        raise NoResponseError("no answer from 192.168.0.1")

    monkeypatch.setattr(client, "release", release)
    result = run("add", "5060", "--keep")
    assert (result.exit_code, result.stderr) == (3, "natmap: no answer from 192.168.0.1\n")
    assert result.stdout.splitlines()[-1][21:] == (
        "not removed, the next natmap will: no answer from 192.168.0.1"
    )


# list and remove
