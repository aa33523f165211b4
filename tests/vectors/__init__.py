"""Messages and registries from outside the project: each file names its origin.

A `.hex` file is one STUN message; its lines that begin with `#` say where it comes from. The CSV files
are the registries of STUN parameters at IANA (CC0, as kept in pion/stun).
"""

from __future__ import annotations

import csv
from pathlib import Path

_HERE = Path(__file__).parent

CORPUS = _HERE.parents[2] / "shared" / "corpus" / "stun"
"""More captured messages, beside the repository; tests that need them skip where they are missing."""


def message(name: str) -> bytes:
    """The message in `name`.hex."""
    lines = (_HERE / f"{name}.hex").read_text(encoding="utf-8").splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def messages() -> dict[str, bytes]:
    """Every message here, by name."""
    return {path.stem: message(path.stem) for path in sorted(_HERE.glob("*.hex"))}


def corpus_messages() -> dict[str, bytes]:
    """Every message of the corpus, by file name; none where it is missing."""
    paths = sorted((*CORPUS.glob("*/*.raw"), *CORPUS.glob("*/*.bin")))
    return {path.name: path.read_bytes() for path in paths}


def registry(name: str) -> dict[int, str]:
    """What iana-stun-`name`.csv assigns or once assigned, by number."""
    text = (_HERE / f"iana-stun-{name}.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    assigned = {}
    for row in rows:
        number, entry = row["Value"], row["Name"]
        if "-" in number or entry in ("Unassigned", "Reserved"):
            continue
        _reserved, was, former = entry.partition("was ")
        assigned[int(number, 0)] = former.partition(" prior")[0].rstrip(")") if was else entry
    return assigned
