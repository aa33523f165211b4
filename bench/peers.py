"""NAT classifiers of others, run as processes, and what each of them claims in the words of RFC 5780."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from nattools.lab.nat import NatKind, behavior
from tests.lab.networks import NATCHECK
from tests.networks import AD, APD, EI, TestNetwork

SERVER = "203.0.113.10"
BLOCKED = "blocked"
DEPENDENT = "dependent"  # on the address or on both: some tools do not tell


@dataclass(frozen=True, slots=True)
class Claim:
    """What a tool says; None where it says nothing, or says that it does not know."""

    mapping: str | None = None
    filtering: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that classifies NATs."""

    name: str
    command: tuple[str, ...]
    read: Callable[[str], Claim]

    @property
    def is_here(self) -> bool:
        """Whether the program is installed."""
        return shutil.which(self.command[0]) is not None


def _natcheck(output: str) -> Claim:
    said = json.loads(output)
    if said["nat_type"] == "blocked":
        return Claim(BLOCKED)
    known = {key: said[key] if said[key] != "unknown" else None for key in ("mapping", "filtering")}
    return Claim(**known)


def _vovida(output: str) -> Claim:
    said = next(line for line in output.splitlines() if line.startswith("Primary:"))
    if "Blocked" in said:
        return Claim(BLOCKED)
    if "Open" in said:
        return Claim("none", EI)
    if "Firewall" in said:
        return Claim("none", APD)
    mapping = EI if "Independent Mapping" in said else DEPENDENT if "Dependent Mapping" in said else None
    filters = (("Independent Filter", EI), ("Address Dependent Filter", AD), ("Port Dependent Filter", APD))
    return Claim(mapping, next((name for words, name in filters if words in said), None))


def _natdiscovery(output: str) -> Claim:
    """It has no word for blocked: its requests time out, and nothing follows."""

    def word(part: str) -> str | None:
        found = re.search(rf"NAT with (.*) {part}!", output)
        words = {"Endpoint Independent": EI, "Address Dependent": AD, "Address and Port Dependent": APD}
        return words.get(found[1]) if found else None

    return Claim("none" if "No NAT" in output else word("Mapping"), word("Filtering"))


def _pystun3(output: str) -> Claim:
    return {
        "Open Internet": Claim("none", EI),
        "Symmetric UDP Firewall": Claim("none", APD),
        "Full Cone": Claim(EI, EI),
        "Restric NAT": Claim(EI, AD),
        "Restric Port NAT": Claim(EI, APD),
        "Symmetric NAT": Claim(DEPENDENT),
        "Blocked": Claim(BLOCKED),
    }.get(output.partition("NAT Type: ")[2].partition("\n")[0], Claim())


TOOLS = (
    Tool("natcheck", (*NATCHECK, SERVER, "--json"), _natcheck),
    Tool("vovida stun", ("stun", SERVER), _vovida),
    Tool("natdiscovery", ("turnutils_natdiscovery", "-m", "-f", SERVER), _natdiscovery),
    Tool("pystun3", (sys.executable, "-m", "stun.cli", "-H", SERVER), _pystun3),
)


def judge(claim: Claim, network: TestNetwork) -> str:
    """`right`, `unknown` (something is not said, nothing is wrong) or `wrong`, by what the kernel does."""
    if network.nat == "blocked":
        return {BLOCKED: "right", None: "unknown"}.get(claim.mapping, "wrong")
    truth = behavior(NatKind(network.nat), NatKind(network.second_nat) if network.second_nat else None)
    mapping_is = {truth.mapping, DEPENDENT} if truth.mapping in (AD, APD) else {truth.mapping}
    if claim.mapping not in {None, *mapping_is} or claim.filtering not in (None, truth.filtering):
        return "wrong"
    symmetric = claim.mapping == DEPENDENT
    if claim.mapping is None or (claim.filtering is None and not symmetric):
        return "unknown"
    return "right"
