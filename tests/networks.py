"""The networks that natcheck must judge rightly: one table for the simulator and for the laboratory."""

from __future__ import annotations

from dataclasses import dataclass

EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Expected:
    """What natcheck must say, in the words of its JSON."""

    nat_type: str
    mapping: str
    filtering: str
    hairpin: bool | None = None


@dataclass(frozen=True, slots=True)
class TestNetwork:
    """One network: kinds of NAT in natlab's words, from the outside in, and what is wrong with the server.

    `server` is `whole`, `alternate-dead` (A2 answers nobody) or `ignores-change` (CHANGE-REQUEST is
    not honoured but answered from A1:P1).
    """

    __test__ = False

    name: str
    nat: str
    expected: Expected
    second_nat: str | None = None
    hairpin: bool = False
    server: str = "whole"


NETWORKS = (
    TestNetwork("open", "open", Expected("open", "none", EI)),
    TestNetwork("symmetric-firewall", "symmetric-firewall", Expected("symmetric-firewall", "none", APD)),
    TestNetwork("full-cone", "full-cone", Expected("full-cone", EI, EI, hairpin=False)),
    TestNetwork("restricted-cone", "restricted-cone", Expected("restricted-cone", EI, AD, hairpin=False)),
    TestNetwork(
        "port-restricted-cone",
        "port-restricted-cone",
        Expected("port-restricted-cone", EI, APD, hairpin=False),
    ),
    TestNetwork("symmetric", "symmetric", Expected("symmetric", APD, APD)),
    TestNetwork("address-dependent", "address-dependent", Expected("symmetric", AD, APD)),
    TestNetwork("blocked", "blocked", Expected("blocked", UNKNOWN, UNKNOWN)),
    TestNetwork(
        "double-nat",
        "port-restricted-cone",
        Expected("port-restricted-cone", EI, APD, hairpin=False),
        second_nat="full-cone",
    ),
    TestNetwork("hairpin", "full-cone", Expected("full-cone", EI, EI, hairpin=True), hairpin=True),
    TestNetwork(
        "alternate-dead",
        "port-restricted-cone",
        Expected("inconclusive", UNKNOWN, UNKNOWN),
        server="alternate-dead",
    ),
    TestNetwork(
        "ignores-change",
        "port-restricted-cone",
        Expected("inconclusive", EI, UNKNOWN, hairpin=False),
        server="ignores-change",
    ),
)
"""The twelve kinds; verdicts in the presence of loss may fall back to unknown, never to another verdict."""


def contradicts(said: Expected, truth: Expected) -> bool:
    """Whether something was claimed that is not so; unknown claims nothing."""
    return (
        said.nat_type not in (truth.nat_type, "inconclusive")
        or said.mapping not in (truth.mapping, "unknown")
        or said.filtering not in (truth.filtering, "unknown")
        or said.hairpin not in (truth.hairpin, None)
    )
