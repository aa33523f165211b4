"""The event loop of the programs that stay."""

from __future__ import annotations

import asyncio
import logging

import pytest

from nattools.cli.event_loop import service_runner


def test_what_asyncio_complains_of_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def complain() -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "accept failed", "exception": OSError("too many files")})
        loop.call_exception_handler({"message": "a callback failed"})

    with caplog.at_level(logging.ERROR, "nattools"), service_runner() as runner:
        runner.run(complain())
    assert caplog.messages == ["accept failed: too many files", "a callback failed: no more is known"]
    assert all(record.exc_info is None for record in caplog.records)
