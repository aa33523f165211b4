"""What becomes of each datagram: `stund` under full load with garbage in it, and with its own limits.

First requests of both dialects, and some with CHANGE-REQUEST, as fast as one core answers them, and one
datagram in a hundred that is anything but one of these: random bytes, cut off, 65,507 bytes long, replies,
other methods, attributes with whatever in them. Then, limits as they are unless set, two that ask 25,000
times a second each, and forty that ask 15 times a second, eight of them at the address of one of the two.

All that was sent must be found again: answered, dropped for a reason, or dropped by the kernel since a socket
had no room. Nobody within the limits may be without an answer unless the kernel dropped as much.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.stund import LOAD_CORE, PLENTY, SERVER_CORE, overrun
from nattools.stun.limiter import Level, Limits

CROWD_S = 15.0
MOST_GROWTH_MB = 1.0

_PORT = 34_780
_SAMPLE_S = 0.5
_SETTLED = 0.25  # of the time: by then every row of the buffers has had its longest datagram
_PATIENCE_S = 30.0
_MARGIN_S = 0.5  # by which the clocks of the load and of the limiter may differ on a busy machine


@dataclass(slots=True)
class Watched:
    """A stund, what it said when it stopped, and its memory while it ran."""

    process: subprocess.Popen[str]
    memory_mb: list[float] = field(default_factory=list)
    overrun: int = 0
    answered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def accounted(self) -> int:
        """How many datagrams it knows of, and those that the kernel had no room for."""
        return self.answered + sum(self.dropped.values()) + self.overrun

    @property
    def growth_mb(self) -> float:
        """By how much the memory has grown from when everything had been used to its highest after that."""
        settled = self.memory_mb[int(len(self.memory_mb) * _SETTLED) :]
        return max(settled) - settled[0]


@contextmanager
def watched(*options: str) -> Iterator[Watched]:
    """Run a stund on its core; when the block ends, stop it and take what it says at its end."""
    program = (sys.executable, "-m", "nattools.cli.stund", "127.0.0.1", "127.0.0.2", "--log", "json")
    ports = ("--port", str(_PORT), "--alternate-port", str(_PORT + 1))
    process = subprocess.Popen(
        ["taskset", "-c", SERVER_CORE, *program, *ports, *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        if json.loads(process.stderr.readline()).get("event") != "serving":
            raise SystemExit("stund does not serve")
        server = Watched(process)
        yield server
        server.overrun = overrun(_PORT) + overrun(_PORT + 1)
        process.terminate()
        said = process.communicate(timeout=_PATIENCE_S)[1].splitlines()
        last = json.loads(said[-1])
        server.answered, server.dropped = last["answered"], last["dropped"]
    finally:
        process.kill()
        process.communicate()


def load(server: Watched, program: Path, kind: str, seconds: float) -> dict[str, Any]:
    """Put a load on it, and look at its memory meanwhile."""
    memory = psutil.Process(server.process.pid)
    with subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, program, kind, "4", str(_PORT), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    ) as generator:
        while generator.poll() is None:
            server.memory_mb.append(memory.memory_info().rss / 1e6)
            time.sleep(_SAMPLE_S)
        told: dict[str, Any] = json.loads(generator.communicate()[0])
    return told


class Findings:
    """Sentences that hold, or do not."""

    def __init__(self) -> None:
        self.are_good = True

    def show(self, is_good: bool, sentence: str) -> None:
        """One more."""
        self.are_good &= is_good
        print(f"{'  ' if is_good else '! '}{sentence}")


def full_load(program: Path, seconds: float, findings: Findings) -> None:
    """As fast as one core answers, with garbage."""
    plenty = [f"--limit={level.name.lower()}={PLENTY}:{PLENTY}" for level in Level]
    with watched(*plenty) as server:
        told = load(server, program, "soak", seconds)
    sent, garbage = told["sent"], told["garbage"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in server.dropped.items())
    print(f"full load for {seconds:g} s: {sent / seconds:,.0f} requests/s and {garbage:,} of garbage in all")
    print(f"  stund: {server.answered:,} answered; dropped: {reasons}; kernel: {server.overrun:,} unread")
    unanswered = sent - told["replies"]
    lost = server.overrun + told["overrun"]
    findings.show(
        server.accounted == sent + garbage,
        f"accounted for: {server.accounted:,} of {sent + garbage:,} datagrams sent",
    )
    findings.show(
        unanswered == lost if not lost else unanswered <= lost,
        f"requests without an answer: {unanswered:,}; dropped by the kernel: {server.overrun:,} at stund,"
        f" {told['overrun']:,} of the answers at the load; {told['stalls']} sockets waited over a second",
    )
    received = told["replies"] + told["to_garbage"] + told["wrong"] + told["twice"] + told["overrun"]
    findings.show(
        server.answered == received and not told["wrong"] and not told["twice"],
        f"answers: {server.answered:,} sent, {received:,} received, of which to garbage"
        f" {told['to_garbage']:,}, wrong {told['wrong']}, twice {told['twice']}",
    )
    start, *_, end = server.memory_mb
    findings.show(
        server.growth_mb <= MOST_GROWTH_MB,
        f"memory: {start:.1f} MB at the start, {end:.1f} at the end, {max(server.memory_mb):.1f} at most;"
        f" after the first quarter it grew by {server.growth_mb:.1f} (asked {MOST_GROWTH_MB:g} at most)",
    )


def crowd(program: Path, seconds: float, findings: Findings) -> None:
    """Those within their limits beside those that are not."""
    with watched() as server:
        told = load(server, program, "crowd", seconds)
    groups = {name: told[name] for name in ("neighbours", "others", "flooders")}
    sent = sum(sent for sent, _ in groups.values())
    answered = sum(answered for _, answered in groups.values())
    refused = server.dropped.get("rate_limited", 0)
    print(f"limits as they are for {seconds:g} s: {sent / seconds:,.0f} requests/s")
    findings.show(server.accounted == sent, f"accounted for: {server.accounted:,} of {sent:,} datagrams sent")
    findings.show(
        server.answered == answered + told["overrun"] and not told["wrong"],
        f"answers: {server.answered:,} sent, {answered:,} received; refused by the limiter: {refused:,}",
    )
    for name, who in (("neighbours", "at a flooder's address"), ("others", "elsewhere")):
        asked, heard = groups[name]
        findings.show(
            heard == asked if not server.overrun else asked - heard <= server.overrun,
            f"within their limits, {who}: {heard:,} of {asked:,} answered; the kernel dropped"
            f" {server.overrun:,} in all",
        )
    rate = Limits().socket
    most = told["number_of_flooders"] * (rate.at_once + rate.per_s * (seconds + _MARGIN_S))
    asked, heard = groups["flooders"]
    findings.show(heard <= most, f"above: {heard:,} of {asked:,} answered, {most:,.0f} at the most allowed")


def soak(program: Path, seconds: float) -> bool:
    """Both, the first for `seconds`; whether all was found again."""
    findings = Findings()
    full_load(program, seconds, findings)
    crowd(program, min(CROWD_S, seconds), findings)
    return findings.are_good
