"""What natcheck says of SIP ALGs, in words and in JSON, for each kind of finding."""

from __future__ import annotations

import json

import pytest

from nattools.cli.natcheck_alg import AlgFinding
from nattools.cli.output import Page
from nattools.errors import ResolveError
from tests.unit.sip.alg_networks import (
    CONTROL,
    SERVER,
    Alg,
    Network,
    ordinary,
    reflecting,
    replacing,
    silent,
)

REWRITING = replacing(b"Via:", b"c=")
EVERYWHERE = Alg(REWRITING.outward, REWRITING.inward, (SERVER.port, CONTROL.port))
DEAF = Alg(lambda data: None if b"SIP/2.0" in data else data)
NO_CALLS = Alg(lambda data: None if data.startswith(b"INVITE") else data)
NO_SIGN = "No sign of a SIP ALG, and no proof that there is none"

FINDINGS = {
    "fields": (
        Network(reflecting(), reflecting(), alg=REWRITING),
        "yes: Via, Content-Length, c= rewritten",
        "UDP port 3478 is left alone, so another port than 5060 helps",
    ),
    "everywhere": (
        Network(reflecting(), reflecting(), alg=EVERYWHERE),
        "yes: Via, Content-Length, c= rewritten",
        "It looks at other ports as well; where it cannot be switched off, use SIP over TLS.",
    ),
    "hidden": (
        Network(ordinary(), silent, alg=REWRITING),
        "yes: received= rewritten in answers",
        "Where that cannot be, use SIP over TLS, or another port.",
    ),
    "echoed": (
        Network(ordinary(tells=False), silent, alg=Alg(REWRITING.outward)),
        "yes: Via rewritten",
        "switch its SIP ALG (SIP helper) off",
    ),
    "calls-lost": (
        Network(reflecting(), reflecting(), alg=NO_CALLS),
        "yes: INVITE dropped",
        "UDP port 3478 is left alone",
    ),
    "none": (
        Network(reflecting(), reflecting()),
        "no: nothing is rewritten on UDP port 5060",
        "SIP arrives at UDP port 5060 as it was sent.",
    ),
    "deaf": (
        Network(reflecting(), reflecting(), alg=DEAF),
        "unknown: not shown",
        "On UDP port 5060 SIP gets lost, though the port answers",
    ),
    "ordinary": (Network(ordinary(), silent), "unknown: not shown", NO_SIGN),
    "terse": (Network(ordinary(stun=False, tells=False), silent), "unknown: not shown", NO_SIGN),
    "nobody": (Network(silent, silent), "unknown: not shown", "Nobody answered. Name a SIP server"),
    "no-sip": (
        Network(silent, ordinary()),
        "unknown: not shown",
        "Nobody answered on UDP port 5060. Name a SIP server",
    ),
}


def shown(finding: AlgFinding, capsys: pytest.CaptureFixture[str]) -> str:
    """What people read, on one line."""
    finding.show(Page(label_width=11))
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_has_words_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, words, advice = FINDINGS[name]
    finding = AlgFinding(network.verdict())
    text = shown(finding, capsys)
    assert text.startswith(f"SIP ALG {words} ")
    assert advice in text
    document = finding.document()
    presence = words.partition(":")[0]
    assert (document["presence"], finding.is_known) == (presence, presence != "unknown")
    assert advice in str(document["meaning"])
    assert document["reasons"] == finding.reasons
    assert finding.reasons
    assert json.loads(json.dumps(document)) == document


def test_what_was_rewritten_is_told_field_by_field() -> None:
    finding = AlgFinding(Network(reflecting(), reflecting(), alg=REWRITING).verdict())
    assert [line.partition(":")[0].partition("=")[0] for line in finding.rewritten] == [
        "Via",
        "Content-Length",
        "c",
    ]
    assert "192.168.0.108:40000" in finding.rewritten[0].partition(" arrived as ")[0]
    assert "203.0.113.1:40000" in finding.rewritten[0].partition(" arrived as ")[2]


def test_a_server_without_an_address_is_unknown_for_that_reason(capsys: pytest.CaptureFixture[str]) -> None:
    finding = AlgFinding(ResolveError("no address for sip.example.org"))
    assert shown(finding, capsys) == "SIP ALG unknown: no address for sip.example.org"
    assert (finding.is_known, finding.rewritten) == (False, [])
    document = finding.document()
    assert (document["presence"], document["server"], document["ports"]) == ("unknown", None, [])
    assert document["reasons"] == ["no address for sip.example.org"]
