"""Coroutines that are begun without a task."""

from __future__ import annotations

import asyncio

import pytest

from nattools.session.controller.eager import begin


def test_what_does_not_wait_is_done_at_once() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    assert begin(work()) is None
    assert done == [1]


def test_what_it_raises_comes_out() -> None:
    async def work() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        begin(work())


def test_the_rest_goes_on_in_a_task_where_it_waits() -> None:
    async def scenario() -> None:
        future = asyncio.get_running_loop().create_future()
        said: list[object] = []

        async def work() -> None:
            said.append(await future)
            await asyncio.sleep(0)
            async with asyncio.timeout(10):
                said.append(await asyncio.create_task(asyncio.sleep(0, "slept")))
            with pytest.raises(ValueError, match="thrown"):
                await failing

        failing = asyncio.get_running_loop().create_future()
        rest = begin(work())
        assert rest is not None
        task = asyncio.create_task(rest)
        await asyncio.sleep(0)
        assert said == []
        future.set_result("first")
        failing.set_exception(ValueError("thrown"))
        await task
        assert said == ["first", "slept"]

    asyncio.run(scenario())


def test_the_rest_can_be_cancelled_and_cleans_up() -> None:
    async def scenario() -> None:
        ends: list[str] = []

        async def work() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        rest = begin(work())
        assert rest is not None
        task = asyncio.create_task(rest)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == ["cancelled"]

    asyncio.run(scenario())


def test_what_it_raises_later_comes_out_of_the_task() -> None:
    async def scenario() -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            raise KeyError("a bug")

        rest = begin(work())
        assert rest is not None
        with pytest.raises(KeyError):
            await asyncio.create_task(rest)

    asyncio.run(scenario())
