"""Run the fuzz targets: `python -m tests.fuzz [--count N] [--seed N] [target ...]`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from tests import fuzz
from tests.fuzz.mutator import Target, run


def _targets() -> Iterator[Target]:
    for module in iter_modules(fuzz.__path__):
        if not module.name.startswith("_"):
            target = getattr(import_module(f"{fuzz.__name__}.{module.name}"), "TARGET", None)
            if isinstance(target, Target):
                yield target


TARGETS: dict[str, Target] = {target.name: target for target in _targets()}
"""Every target by its name; a new one is a module beside this file with a TARGET in it."""


def describe(target: Target, *, count: int, seed: int) -> bool:
    """Run one target and print what came of it; whether its promise held."""
    report = run(target, count=count, seed=seed)
    rate = report.count / max(report.seconds, 1e-9)
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in report.outcomes.most_common())
    out = sys.stdout
    out.write(f"{target.name}: {report.count} inputs (seed {seed}) in {report.seconds:.1f} s, {rate:.0f}/s: ")
    out.write(f"{outcomes}\n")
    if report.failure is None:
        return True
    out.write(f"{target.name}: FAILED at input {report.failure.index} of seed {seed}:\n")
    out.write(f"{report.failure.data.hex()}\n")
    out.writelines(traceback.format_exception(report.failure.error))
    return False


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every promise held, 1 when one was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"of: {', '.join(TARGETS)} (default: all)"
    )
    parser.add_argument(
        "--count", type=int, default=1_000_000, help="inputs for each target (default: 1000000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    held = [
        describe(TARGETS[name], count=options.count, seed=options.seed) for name in options.targets or TARGETS
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
