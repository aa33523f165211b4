"""Strict telephones that do everything at random times, through a whole natgate, in virtual time."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from pathlib import Path
from random import Random

import pytest

from tests.sim.natgate_world import belongings, gates, phones_of, walk
from tests.sim.strict_line import Wire, World
from tests.sim.virtual_time import VirtualLoop

_GOOD = Wire()
_BAD = Wire(loss=0.05, doubling=0.05, jitter_s=0.1)


@pytest.mark.parametrize(
    ("seed", "upstream", "wire", "breaking"),
    [
        pytest.param(1, "", _GOOD, 0.0, id="at home"),
        pytest.param(2, "", _BAD, 0.0, id="on a bad network"),
        pytest.param(3, "", _GOOD, 0.03, id="phones break and come back"),
        pytest.param(4, "UDP", _GOOD, 0.0, id="in front of another natgate"),
    ],
)
def test_whatever_phones_do_each_call_is_heard_by_its_two_sides_and_nothing_is_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seed: int,
    upstream: str,
    wire: Wire,
    breaking: float,
) -> None:
    monkeypatch.setattr(secrets, "token_bytes", Random(seed).randbytes)
    caplog.set_level(logging.INFO, "nattools")

    async def scenario() -> None:
        world = World(Random(seed), wire)
        async with gates(tmp_path, upstream) as servers:
            before = [belongings(server) for server in servers]
            await walk(world, phones_of(world, servers[0]), seconds=25.0, breaking=breaking)
            assert not world.wrongs
            for server, empty in zip(servers, before, strict=True):
                status = await server.status()
                assert not status.calls
                assert not status.registrations
                assert status.counters["faults"] == 0
                assert belongings(server) - empty == {}
        assert world.counters["audible"] > 20
        assert world.counters["answered"] > 8
        logged = [record for record in caplog.records if record.name.startswith("nattools")]
        assert not [record for record in logged if record.levelno >= logging.WARNING or record.exc_info]
        if not upstream:
            lines = re.findall(r"\bcall_id=", caplog.text)
            assert len(lines) >= world.counters["calls"] - world.counters["timeout INVITE"]
            if wire is _GOOD and not breaking:
                assert len(lines) == world.counters["calls"] + world.counters["answered twice"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
