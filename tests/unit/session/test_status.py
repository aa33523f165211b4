"""The status of natgate as a document: what is written is read again, and nothing else is."""

from __future__ import annotations

import json

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import SideStatistics
from nattools.session.status import SCHEMA, GateStatus, SideStatus
from tests.unit.session.gate_status import STATUS


def test_what_is_written_is_read_again() -> None:
    assert GateStatus.parse(json.dumps(STATUS.as_json())) == STATUS


def test_the_document_is_of_plain_values_under_the_names_of_the_classes() -> None:
    document = json.loads(json.dumps(STATUS.as_json()))
    assert document["schema"] == SCHEMA == 1
    assert document["mode"] == "registrar"
    assert document["listeners"][0] == {
        "transport": "UDP",
        "local": "203.0.113.5:5060",
        "advertised": "198.51.100.7:5060",
    }
    assert document["calls"][0]["streams"][0]["a"] == {
        "packets": 3100,
        "octets": 533_200,
        "lost": 3,
        "jitter_ms": 1.25,
        "foreign": 2,
        "held": 0,
        "source": "203.0.113.1:40000",
        "heard_ago_s": 0.02,
    }
    assert document["calls"][1]["streams"] == []
    assert document["registrations"][1]["received"] is None


def test_what_an_engine_says_of_a_side_is_turned_into_what_people_read() -> None:
    source = Endpoint.of("203.0.113.1", 40000)
    statistics = SideStatistics(
        packets=5, octets=860, foreign=1, lost=2, jitter_s=0.0015, latched=source, last_heard=100.0, held=3
    )
    assert SideStatus.of(statistics, now=100.5) == SideStatus(5, 860, 2, 1.5, 1, 3, source, 0.5)
    unknown = SideStatus.of(SideStatistics(lost=None, jitter_s=None), now=7.0)
    assert (unknown.lost, unknown.jitter_ms, unknown.heard_ago_s, unknown.source) == (None,) * 4


DOCUMENT = STATUS.as_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no status"),
        ("[]", "no status"),
        ("7", "no status"),
        ("[" * 100_000, "no status"),
        ("{}", "schema"),
        (json.dumps(DOCUMENT | {"schema": 2}), "different versions"),
        (json.dumps(DOCUMENT | {"mode": "robot"}), "robot"),
        (json.dumps(DOCUMENT | {"calls": [{}]}), "call_id"),
        (
            json.dumps(DOCUMENT | {"listeners": [{"transport": "UDP", "local": "x", "advertised": None}]}),
            "'x'",
        ),
        (json.dumps({"error": "the file is away"}), "the file is away"),
        (b"\xff", "no status"),
    ],
)
def test_what_is_no_status_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        GateStatus.parse(text)
