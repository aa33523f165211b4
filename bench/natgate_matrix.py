"""Who is heard through natgate: four phones, three NATs, two registrars, both directions; one table.

Every phone is a real one, unmodified, and has natgate as its server. The peer outside is baresip, which sends
its voice where SDP says. A cell is good when each hears the other's tone (its frequency is looked for in what
was recorded), natgate has relayed both voices, and hanging up ends the call for both.

Then the address of the NAT changes in the middle of a call, which no phone can know: how long after the
router passes packets again RTP comes to both again; so, too, where rtpengine carries the media.

    python -m bench.natgate_matrix [--nat NAME]... [--home natgate|kamailio]... [--maker NAME]...
        [--engine sockets|rtpengine] [--rounds 1]
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from nattools.lab.namespaces import why_unavailable
from nattools.session.settings import EngineName
from tests.lab.conftest import PATIENCE_SECONDS
from tests.lab.kamailio import why_no_kamailio
from tests.lab.makers import MAKERS
from tests.lab.natgate_changes import Silence
from tests.lab.natgate_matrix import NATS, Direction, Home, Outcome, outcomes, site
from tests.lab.rtpengine import why_no_rtpengine

MOST_SILENCE_S = 1.0
CHANGES = (
    ("port-preserving", EngineName.SOCKETS),
    ("symmetric", EngineName.SOCKETS),
    ("port-preserving", EngineName.RTPENGINE),
)
_CHANGES_IN_A_CALL = 5
_LEARNT_S = 5.0  # of a call, after which rtpengine has made up its mind where the phones are
_CONSOLE = Console(width=118)


def show(tried: list[Outcome]) -> None:
    """Print a row for each NAT and registrar, and below the table what was missed."""
    cells: dict[tuple[str, Home], dict[tuple[str, Direction], list[Outcome]]] = {}
    for outcome in tried:
        cell = outcome.cell
        row = cells.setdefault((cell.nat, cell.home), {})
        row.setdefault((cell.maker, cell.direction), []).append(outcome)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    table = Table(
        title="both are heard, of so many calls; out: the phone behind the NAT calls, in: it is called"
    )
    for heading in ("NAT", "registrar"):
        table.add_column(heading, no_wrap=True)
    for maker, direction in columns:
        word = "out" if direction is Direction.OUTWARD else "in"
        table.add_column(f"{maker}\n{word}", justify="right")
    for (nat, home), row in cells.items():
        counted = []
        for column in columns:
            good = [not outcome.fault for outcome in row.get(column, [])]
            counted.append(f"{sum(good)} of {len(good)}" if good else "")
        table.add_row(nat, home.value, *counted)
    _CONSOLE.print(table)
    for outcome in tried:
        if outcome.fault:
            print(f"{outcome.cell}: {outcome.fault}\n")
    good_cells = sum(all(not one.fault for one in these) for row in cells.values() for these in row.values())
    print(f"{good_cells} of {sum(map(len, cells.values()))} cells are good")


def show_silence(changes: int) -> bool:
    """Print how soon both are heard again when the NAT's address has changed; whether it is soon enough."""
    table = Table(title="seconds until RTP is there again after the NAT has got another address in mid-call")
    for heading in ("NAT", "engine", "heard again", "phone behind the NAT", "phone outside"):
        table.add_column(heading, justify="left" if heading in ("NAT", "engine") else "right")
    is_good = True
    for nat, engine in CHANGES:
        addresses = [f"203.0.113.{98 - number}" for number in range(changes)]
        silences: list[Silence] = []
        with site(nat, Home.NATGATE, engine=engine) as there, suppress(AssertionError):
            silences.extend(there.change_address(addresses, after_s=_LEARNT_S))
        columns = [one.inside_s for one in silences], [one.outside_s for one in silences]
        ranges = (f"{min(column):.3f} to {max(column):.3f}" if column else "" for column in columns)
        table.add_row(nat, engine.value, f"{len(silences)} of {changes}", *ranges)
        if engine is not EngineName.RTPENGINE:
            is_good &= len(silences) == changes and max(map(max, columns)) < MOST_SILENCE_S
    _CONSOLE.print(table)
    print(f"asked: {MOST_SILENCE_S:.0f} s; who hears nothing for {PATIENCE_SECONDS:.0f} s is not heard again")
    return is_good


def main() -> int:
    """Try the cells that were asked for; fail where one is not good."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--nat", action="append", choices=NATS, help="only this NAT; may be repeated")
    arguments.add_argument(
        "--home", action="append", choices=[home.value for home in Home], help="only this registrar"
    )
    arguments.add_argument("--maker", action="append", choices=MAKERS, help="only this phone")
    arguments.add_argument(
        "--engine",
        default="sockets",
        choices=["sockets", "rtpengine"],
        help="what carries the media (sockets)",
    )
    arguments.add_argument("--rounds", type=int, default=1, help="how often each cell is tried (1)")
    options = arguments.parse_args()
    makers = options.maker or list(MAKERS)
    missing = why_unavailable() or why_no_kamailio() or why_no_rtpengine() or MAKERS["baresip"].why_not()
    for maker in makers:
        missing = missing or MAKERS[maker].why_not()
    if missing is not None:
        print(missing, file=sys.stderr)
        return 1
    tried: list[Outcome] = []
    for _ in range(options.rounds):
        for home in Home if options.home is None else map(Home, options.home):
            for nat in options.nat or NATS:
                for outcome in outcomes(nat, home, makers, engine=EngineName(options.engine)):
                    tried.append(outcome)
                    said = outcome.fault.splitlines()[0][:200] if outcome.fault else "good"
                    print(f"{outcome.cell}: {said} ({outcome.took_s:.1f} s)", file=sys.stderr)
    show(tried)
    return int(not show_silence(_CHANGES_IN_A_CALL) or any(outcome.fault for outcome in tried))


if __name__ == "__main__":
    sys.exit(main())
